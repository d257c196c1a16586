//! What is read at once is laid in memory as an output will have it, so that it can go to the disk from where it is: see
//! [`Shift`](crate::record::Shift).

use super::{Outlet, Pools, Stream};
use crate::disk::PAGE;
use crate::record::{Buffer, Summing};

/// In bytes: where it may be worth it.
const LEAST: usize = 128 * 1024;

impl Pools {
    /// What [`Outlet::buffer_at`] and [`Outlet::summing`] take for so many bytes.
    pub(super) fn cost_at(&self, bytes: usize) -> usize {
        match bytes {
            LEAST.. => self.data.capacity_for(bytes + PAGE) + self.ends.class_cost(Summing::count(bytes)),
            _ => self.data.capacity_for(bytes),
        }
    }
}

impl Outlet {
    /// For `len` bytes that stand at `offset` in the source of `stream`.
    pub fn buffer_at(&mut self, stream: &Stream, offset: u64, len: usize) -> Buffer<u8> {
        if len < LEAST {
            return self.buffer(len);
        }
        let into_page = self.origins.of(stream).origin.shift.into_page(offset);
        self.supply.pools.data.take_paged(len, into_page)
    }

    /// For the same, if it is of use to sum them up while they are read.
    pub fn summing(&mut self, stream: &Stream, offset: u64, len: usize) -> Option<Summing> {
        let shift = &self.origins.of(stream).origin.shift;
        (len >= LEAST && shift.is_of_use()).then(|| {
            Summing::new(shift.into_page(offset), self.supply.pools.ends.take_class(Summing::count(len)))
        })
    }
}
