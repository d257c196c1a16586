//! Parcels into batches: when a batch is full, when it has waited long enough, where it is divided. Pure.
//!
//! Always true: records leave in the order in which they came; a batch is never empty; only a single record that
//! is larger than the limit makes a batch above it.

use std::time::Instant;

use crate::ack::Share;
use crate::record::{Batch, Parcel, Slice};
use crate::sinks::BatchLimits;

/// The open batch of one connection.
pub struct Batcher {
    limits: BatchLimits,
    parts: Vec<(Slice, Share)>,
    records: usize,
    weight: u64,
    opened: Option<Instant>,
}

/// A batch without its number yet.
pub type Sealed = Vec<(Slice, Share)>;

impl Batcher {
    pub fn new(limits: BatchLimits) -> Batcher {
        Batcher { limits, parts: Vec::new(), records: 0, weight: 0, opened: None }
    }

    /// Takes a parcel and hands every batch that it filled to `sealed`.
    pub fn push(&mut self, parcel: Parcel, now: Instant, mut sealed: impl FnMut(Sealed)) {
        let Parcel { records, mut share } = parcel;
        let mut first = 0;
        while first < records.len() {
            let room = self.limits.max_lines - self.records;
            let mut fits = records.fit(first, room, (self.limits.max_bytes as u64).saturating_sub(self.weight));
            if fits == 0 {
                if self.records > 0 {
                    sealed(self.seal());
                    continue;
                }
                fits = 1; // larger than the limit all by itself
            }
            let range = first..first + fits;
            self.records += fits as usize;
            self.weight += records.weight(range.clone());
            let part = share.split(records.count(range.clone()));
            self.parts.push((Slice { records: records.clone(), range }, part));
            self.opened.get_or_insert(now);
            first += fits;
            if self.records >= self.limits.max_lines || self.weight >= self.limits.max_bytes as u64 {
                sealed(self.seal());
            }
        }
    }

    /// When the open batch has waited long enough.
    pub fn due(&self) -> Option<Instant> {
        self.opened.map(|opened| opened + self.limits.max_wait)
    }

    /// What is there, whether full or not.
    pub fn flush(&mut self) -> Option<Sealed> {
        (!self.parts.is_empty()).then(|| self.seal())
    }

    fn seal(&mut self) -> Sealed {
        self.records = 0;
        self.weight = 0;
        self.opened = None;
        std::mem::take(&mut self.parts)
    }
}

/// A batch of at least two records in two halves, by number of records, in order.
pub fn halves(batch: Batch) -> (Sealed, Sealed) {
    let total: u32 = batch.slices().map(|slice| slice.range.end - slice.range.start).sum();
    let mut before = total / 2;
    let (mut first, mut second) = (Vec::new(), Vec::new());
    for (slice, mut share) in batch.parts {
        let here = slice.range.end - slice.range.start;
        let taken = before.min(here);
        before -= taken;
        if taken == here {
            first.push((slice, share));
            continue;
        }
        let middle = slice.range.start + taken;
        if taken > 0 {
            let left = Slice { records: slice.records.clone(), range: slice.range.start..middle };
            first.push((left.clone(), share.split(left.count())));
        }
        second.push((Slice { range: middle..slice.range.end, ..slice }, share));
    }
    (first, second)
}

/// One record, its share, and whether it is among `guilty` (rising indices over the whole batch).
pub fn each_record(batch: Batch, guilty: &[usize], mut take: impl FnMut(Slice, Share, bool)) {
    let (mut index, mut guilty) = (0, guilty.iter().copied().peekable());
    for (slice, mut share) in batch.parts {
        // Runs of innocent records stay together: there may be thousands around one guilty one.
        let mut from = slice.range.start;
        for at in slice.range.clone() {
            if guilty.peek() == Some(&index) {
                guilty.next();
                for (range, is_guilty) in [(from..at, false), (at..at + 1, true)] {
                    if !range.is_empty() {
                        let part = Slice { records: slice.records.clone(), range };
                        let its_share = share.split(part.count());
                        take(part, its_share, is_guilty);
                    }
                }
                from = at + 1;
            }
            index += 1;
        }
        if from < slice.range.end {
            take(Slice { records: slice.records, range: from..slice.range.end }, share, false);
        }
    }
}
