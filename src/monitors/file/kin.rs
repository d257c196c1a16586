//! Which files are called so that a given one may be a copy of them: a copy's name goes on where theirs ends
//! before its last dot.
//!
//! To look through all files for each newcomer takes minutes if ten thousand come at once; so in a burst of newcomers
//! the names are kept ready, and made anew every now and then: files that have gone are among them until then.
//! Afterwards they would only cost memory.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::path::Path;
use std::time::{Duration, Instant};

use crate::durable::FileId;

const KEPT_FOR: Duration = Duration::from_secs(1);

#[derive(Default)]
pub(super) struct Kin(Option<Names>);

struct Names {
    made_at: Instant,
    hasher: RandomState,
    /// By the hash of the path without its last dot and what is behind; perhaps more than are meant.
    files: HashMap<u64, Vec<FileId>>,
}

impl Kin {
    /// Those that `path` may be called after, and perhaps others. `all`: every file, with the path where it stands.
    pub fn of<'a>(
        &mut self,
        path: &Path,
        now: Instant,
        all: impl Iterator<Item = (&'a Path, FileId)>,
    ) -> Vec<FileId> {
        self.0.take_if(|names| now.saturating_duration_since(names.made_at) >= KEPT_FOR);
        let names = self.0.get_or_insert_with(|| {
            let mut names = Names { made_at: now, hasher: RandomState::new(), files: HashMap::new() };
            all.for_each(|(path, file)| names.add(path, file));
            names
        });
        let bytes = path.as_os_str().as_encoded_bytes();
        let name = path.file_name().map_or(0, |name| name.len());
        let begins = (bytes.len() - name + 1..=bytes.len()).map(|to| names.hasher.hash_one(&bytes[..to]));
        begins.filter_map(|hash| names.files.get(&hash)).flatten().copied().collect()
    }

    /// A file stands at this path from now on.
    pub fn add(&mut self, path: &Path, file: FileId) {
        if let Some(names) = &mut self.0 {
            names.add(path, file);
        }
    }

    /// The burst is over.
    pub fn forget(&mut self) {
        self.0 = None;
    }
}

impl Names {
    fn add(&mut self, path: &Path, file: FileId) {
        let (Some(stem), Some(name)) = (path.file_stem(), path.file_name()) else { return };
        let bytes = path.as_os_str().as_encoded_bytes();
        let hash = self.hasher.hash_one(&bytes[..bytes.len() - name.len() + stem.len()]);
        let files = self.files.entry(hash).or_default();
        if !files.contains(&file) {
            files.push(file);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::beside::is_named_after;
    use super::*;

    #[test]
    fn none_is_missed_that_a_name_may_be_made_of() {
        let names = ["/v/app.log", "/v/app", "/v/a", "/v/app.log.1", "/w/app.log", "/v/app-1.log", "/v/.hid"];
        let all = names.map(Path::new);
        let id = |inode: usize| FileId { device: 1, inode: inode as u64 };
        let mut kin = Kin::default();
        let now = crate::clock::Clock::real().now();
        kin.of(all[0], now, all[..4].iter().enumerate().map(|(at, path)| (*path, id(at))));
        (4..all.len()).for_each(|at| kin.add(all[at], id(at)));
        for path in ["/v/app.log.1", "/v/app-20260131.log", "/v/apple", "/w/app.log", "/v/.hidden", "/v/b"] {
            let path = Path::new(path);
            let mut found = kin.of(path, now, std::iter::empty());
            found.sort();
            let expected: Vec<FileId> =
                (0..all.len()).filter(|at| is_named_after(all[*at], path)).map(id).collect();
            assert_eq!(found, expected, "{path:?}");
        }
        let later = now + KEPT_FOR;
        assert_eq!(
            kin.of(all[3], later, [(all[1], id(1))].into_iter()),
            [id(1)],
            "those that have gone are forgotten"
        );
    }
}
