//! How far the bytes of a source stand from where an output has them, within a page: whoever reads lays them in memory as
//! they will stand in the output, and they go to the disk from where they are (`disk/paged.rs`).
//!
//! A hint, and all that goes uphill beside the acknowledgement: the sink says what it sees, and the next chunk is laid
//! so. One that is wrong costs a copy in the kernel, and nothing else.

use std::sync::atomic::{AtomicU16, Ordering::Relaxed};

use crate::disk::PAGE;

/// Beside the shift: what was laid so was of use.
const OF_USE: u16 = 1 << 15;
const _: () = assert!(PAGE <= OF_USE as usize);

/// Of one origin. Where nobody has said anything, an output is taken for a copy of the source from its start.
#[derive(Debug, Default)]
pub struct Shift(AtomicU16);

impl Shift {
    /// The byte that stands at `source` goes to `output`, both in bytes from the start. `of_use`: it went from where it
    /// was laid.
    pub fn learn(&self, source: u64, output: u64, of_use: bool) {
        let shift = (output.wrapping_sub(source) % PAGE as u64) as u16;
        self.0.store(if of_use { shift | OF_USE } else { shift }, Relaxed);
    }

    /// Where in its page the byte at `source` will stand.
    pub fn into_page(&self, source: u64) -> usize {
        let shift = self.0.load(Relaxed) & !OF_USE;
        ((source % PAGE as u64) as usize + usize::from(shift)) % PAGE
    }

    /// Whether it is known to go from where it is laid.
    pub fn is_of_use(&self) -> bool {
        self.0.load(Relaxed) & OF_USE != 0
    }
}

impl Clone for Shift {
    fn clone(&self) -> Shift {
        Shift(self.0.load(Relaxed).into())
    }
}
