//! What only a few files have at a time: those that are gone, that wait for another one, or are read to a place where
//! they end. The others hold a word for it.

use std::ops::{Deref, DerefMut};
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use crate::durable::FileId;

/// Reads as if it were there always; what is written makes it be there. What is taken away is [`Few::clear`]ed, so that
/// nothing stays.
#[derive(Default)]
pub(super) struct Few(Option<Box<Rest>>);

#[derive(PartialEq, Eq)]
pub(super) struct Rest {
    /// Where it was seen first, if it was renamed before its generation was opened: that is its name.
    pub first_path: Option<Arc<Path>>,
    /// Behind it is nothing but a hole.
    pub ends_at: Option<u64>,
    /// No path leads to it any more.
    pub gone_since: Option<Instant>,
    /// The size it was seen with, if it was larger before: a copy that lacks the last lines of its original.
    pub seen: u64,
    /// With `once`: its size when it was opened.
    pub until: Option<u64>,
    /// The generation before it, which is read first.
    pub after: Option<FileId>,
    /// Where a line begins that was written in parts and lacks its last one, and since when we know.
    pub open_line: Option<(u64, Instant)>,
    /// Who waits for this one.
    pub followers: Vec<FileId>,
}

const NOTHING: Rest = Rest {
    first_path: None,
    ends_at: None,
    gone_since: None,
    seen: 0,
    until: None,
    after: None,
    open_line: None,
    followers: Vec::new(),
};

impl Few {
    pub fn is_nothing(&self) -> bool {
        self.0.is_none()
    }

    /// For writing what was there before anything was: makes nothing, and leaves nothing if nothing is left.
    pub fn clear(&mut self, change: impl FnOnce(&mut Rest)) {
        let Some(rest) = &mut self.0 else { return };
        change(rest);
        if **rest == NOTHING {
            self.0 = None;
        }
    }

    pub fn take_followers(&mut self) -> Vec<FileId> {
        let mut followers = Vec::new();
        self.clear(|few| followers = std::mem::take(&mut few.followers));
        followers
    }
}

impl Deref for Few {
    type Target = Rest;

    fn deref(&self) -> &Rest {
        static NONE: Rest = NOTHING;
        self.0.as_deref().unwrap_or(&NONE)
    }
}

impl DerefMut for Few {
    fn deref_mut(&mut self) -> &mut Rest {
        self.0.get_or_insert_with(|| Box::new(NOTHING))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_there_for_as_long_as_something_is_in_it() {
        let mut few = Few::default();
        few.clear(|few| few.after = None);
        assert!(few.seen == 0 && few.0.is_none());
        few.seen = 5;
        few.until = Some(7);
        few.clear(|few| few.until = None);
        assert!(few.seen == 5 && few.0.is_some());
        few.clear(|few| few.seen = 0);
        assert!(few.0.is_none());
    }
}
