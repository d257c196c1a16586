//! The lines that a monitor hands over.

use super::CHUNK_LINES;
use crate::record::{Ends, Pool};

/// Of one chunk, one behind the other.
#[derive(Clone, Copy, Debug)]
pub enum WholeLines<'a> {
    /// Where each ends, exclusive.
    Found(&'a [u32]),
    /// So many, and each ends in `\n`.
    Counted(usize),
}

impl WholeLines<'_> {
    pub(super) fn count(self) -> usize {
        match self {
            WholeLines::Found(ends) => ends.len(),
            WholeLines::Counted(lines) => lines,
        }
    }

    /// Panics unless they are all of `data`, which may be a chunk.
    pub(super) fn assert_whole(self, data: &[u8]) {
        let are_all = match self {
            WholeLines::Found(ends) => ends.last().copied() == u32::try_from(data.len()).ok(),
            WholeLines::Counted(lines) => lines > 0 && data.ends_with(b"\n"),
        };
        assert!(are_all && self.count() <= CHUNK_LINES, "a chunk is made of whole lines");
    }

    pub(super) fn ends(self, pool: &Pool<u32>) -> Ends {
        match self {
            WholeLines::Found(ends) => pool.copy_of(ends).into(),
            WholeLines::Counted(lines) => Ends::counted(lines as u32, pool.clone()),
        }
    }
}
