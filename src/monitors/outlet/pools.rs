//! The buffers of chunks that wait to be used again.

use super::LINE_BYTES;
use crate::record::Pool;

/// A small budget has as few of them lying about.
const SPARES_IN_BUDGET: usize = 4;

/// What chunks are made of, used again. Cheap to clone.
#[derive(Clone)]
pub struct Pools {
    pub(super) data: Pool<u8>,
    pub(super) ends: Pool<u32>,
}

impl Pools {
    /// For a budget of so many bytes, and the largest chunk in it.
    pub fn new(budget_bytes: usize, chunk_bytes: usize) -> Pools {
        let spare_bytes = budget_bytes / SPARES_IN_BUDGET;
        Pools {
            data: Pool::new(chunk_bytes, spare_bytes),
            ends: Pool::new(chunk_bytes / LINE_BYTES, spare_bytes / LINE_BYTES),
        }
    }

    /// Bytes that wait to be used again, and how many may.
    pub fn spare_bytes_and_most(&self) -> (usize, usize) {
        let ((data, data_most), (ends, ends_most)) =
            (self.data.spare_bytes_and_most(), self.ends.spare_bytes_and_most());
        (data + ends, data_most + ends_most)
    }
}
