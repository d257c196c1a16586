//! Parcels into batches: when a batch is full, when it has waited long enough, where it is divided. Pure.
//!
//! Always true: records leave in the order in which they came; a batch is never empty; only a single record that
//! is larger than the limit makes a batch above it.

use std::ops::Range;
use std::time::Instant;

use crate::ack::Share;
use crate::record::{Batch, Parcel, Slice};
use crate::sinks::BatchLimits;

/// A batch that lacks only such a part of its bytes is full: what still fits into it would be a scrap of the next
/// chunk, which costs another write, another answer and another receipt.
const SCRAP: u64 = 8;

/// At full speed a batch has one or two. A list for more of them, as ten thousand quiet files fill one, is made anew.
const PARTS_KEPT: usize = 8;

/// The open batch of one connection.
pub struct Batcher {
    limits: BatchLimits,
    parts: Sealed,
    spare: Sealed,
    records: usize,
    weight: u64,
    opened: Option<Instant>,
}

/// A batch without its number yet.
pub type Sealed = Vec<(Slice, Share)>;

impl Batcher {
    pub fn new(limits: BatchLimits) -> Batcher {
        Batcher { limits, parts: Vec::new(), spare: Vec::new(), records: 0, weight: 0, opened: None }
    }

    /// Takes a parcel and hands every batch that it filled to `sealed`.
    pub fn push(&mut self, parcel: Parcel, now: Instant, sealed: impl FnMut(Sealed)) {
        self.push_slice(Slice::all(parcel.records), parcel.share, now, sealed);
    }

    /// Some records of a chunk, with the share that is theirs.
    pub fn push_slice(
        &mut self,
        slice: Slice,
        mut share: Share,
        now: Instant,
        mut sealed: impl FnMut(Sealed),
    ) {
        let Slice { records, range: Range { start: mut first, end } } = slice;
        while first < end {
            let room = self.limits.max_lines - self.records;
            let room = room.min((end - first) as usize);
            let (max_bytes, line_weight) = (self.limits.max_bytes as u64, self.limits.line_weight);
            let mut fits = records.fit(first, room, max_bytes.saturating_sub(self.weight), line_weight);
            if fits == 0 {
                if self.records > 0 {
                    sealed(self.seal());
                    continue;
                }
                fits = 1; // larger than the limit all by itself
            }
            let range = first..first + fits;
            self.records += fits as usize;
            self.weight += records.weight(range.clone(), line_weight);
            let part = share.split(records.count(range.clone()), records.end(&range));
            self.parts.push((Slice { records: records.clone(), range }, part));
            self.opened.get_or_insert(now);
            first += fits;
            if self.records >= self.limits.max_lines || self.weight >= max_bytes - max_bytes / SCRAP {
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

    /// The list of a batch that is over, for the one after the next.
    pub fn use_again(&mut self, mut parts: Sealed) {
        parts.clear();
        if parts.capacity() <= PARTS_KEPT {
            self.spare = parts;
        }
    }

    fn seal(&mut self) -> Sealed {
        self.records = 0;
        self.weight = 0;
        self.opened = None;
        std::mem::replace(&mut self.parts, std::mem::take(&mut self.spare))
    }
}

/// A batch of at least two records in two halves, by number of records, in order.
pub fn halves(batch: Batch) -> (Sealed, Sealed) {
    let total: u32 = batch.slices().map(|slice| slice.range.end - slice.range.start).sum();
    divide(batch.parts, total / 2)
}

/// What begins at each of `cuts` (rising indices behind the first record), and what stands before the first of them.
pub fn apart(batch: Batch, cuts: &[usize]) -> Vec<Sealed> {
    let (mut all, mut rest, mut begun) = (Vec::new(), batch.parts, 0);
    for cut in cuts {
        let (first, second) = divide(rest, (cut - begun) as u32);
        (rest, begun) = (second, *cut);
        all.push(first);
    }
    all.push(rest);
    all.retain(|parts| !parts.is_empty());
    all
}

/// After so many records.
fn divide(parts: Sealed, mut before: u32) -> (Sealed, Sealed) {
    let (mut first, mut second) = (Vec::new(), Vec::new());
    for (slice, mut share) in parts {
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
            first.push((left.clone(), share.split(left.count(), left.end())));
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
                        let its_share = share.split(part.count(), part.end());
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

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;
    use crate::ack::Verdict;
    use crate::clock::Clock;
    use crate::record::fixture::{Kept, lines, parcel};
    use crate::record::{Changed, Entry, Records};
    use crate::sync::Shared;

    fn limits(max_bytes: usize, max_lines: usize) -> BatchLimits {
        BatchLimits { max_bytes, line_weight: 24, max_lines, max_wait: Duration::from_secs(1) }
    }

    /// Batches of the given chunks, each chunk a list of line lengths.
    fn batches(limits: BatchLimits, chunks: &[Vec<usize>], kept: &Arc<Kept>) -> (Vec<Batch>, Vec<String>) {
        let (mut batcher, mut sealed, mut all) = (Batcher::new(limits), Vec::new(), Vec::new());
        let now = Clock::real().now();
        for lengths in chunks {
            let texts: Vec<String> = lengths
                .iter()
                .enumerate()
                .map(|(at, length)| format!("{}{}\n", all.len() + at, "x".repeat(*length)))
                .collect();
            let raw: Vec<&str> = texts.iter().map(String::as_str).collect();
            batcher.push(parcel(lines(&raw, all.len() as u64, true), kept), now, |batch| sealed.push(batch));
            all.extend(texts);
        }
        sealed.extend(batcher.flush());
        (sealed.into_iter().map(|parts| Batch { number: 0, parts }).collect(), all)
    }

    fn texts(batch: &Batch) -> Vec<String> {
        batch.records().map(|record| String::from_utf8_lossy(record.raw.unwrap()).into_owned()).collect()
    }

    #[test]
    fn a_batch_waits_no_longer_than_it_may() {
        let (mut batcher, now) = (Batcher::new(limits(1000, 10)), Clock::real().now());
        assert_eq!(batcher.due(), None);
        let kept = Arc::new(Kept::default());
        batcher.push(parcel(lines(&["a\n"], 0, true), &kept), now, |_| panic!("not full"));
        assert_eq!(batcher.due(), Some(now + Duration::from_secs(1)));
        assert!(batcher.flush().is_some() && batcher.due().is_none() && batcher.flush().is_none());
    }

    /// At full speed a chunk and a batch have the same limit: one goes into the other, and none is divided.
    #[test]
    fn what_nearly_fills_a_batch_is_not_mixed_with_a_scrap_of_the_next() {
        let check = |limits: BatchLimits, length: usize, expected: &[usize]| {
            let kept = Arc::new(Kept::default());
            let (batches, _) = batches(limits, &vec![vec![length; 10]; 3], &kept);
            let lines = |batch: Batch| {
                let lines = batch.records().count();
                batch.parts.into_iter().for_each(|(_, share)| share.settle(&Verdict::Delivered));
                lines
            };
            assert_eq!(batches.into_iter().map(lines).collect::<Vec<_>>(), expected, "lines of {length}");
        };
        let text = BatchLimits { line_weight: 0, ..limits(1000, 1000) };
        check(text, 86, &[10, 10, 10]); // 88 with its number and its end
        check(text, 85, &[11, 11, 8]);
        check(limits(1000, 1000), 85, &[9, 8, 8, 5]); // 111 and 112 with what an encoding adds
    }

    proptest! {
        /// The model: the batches, one after the other, are the lines, and none is over a limit.
        #[test]
        fn batches_are_the_lines_in_order_within_the_limits(
            chunks in proptest::collection::vec(proptest::collection::vec(0usize..300, 1..20), 1..6),
            max_bytes in 30usize..2_000,
            max_lines in 1usize..20,
        ) {
            let kept = Arc::new(Kept::default());
            let (batches, all) = batches(limits(max_bytes, max_lines), &chunks, &kept);
            for batch in &batches {
                let weight: u64 = batch.slices().map(|slice| slice.records.weight(slice.range.clone(), 24)).sum();
                let records = batch.records().count();
                prop_assert!(records >= 1 && records <= max_lines);
                prop_assert!(weight <= max_bytes as u64 || records == 1, "{} in {}", weight, records);
            }
            prop_assert_eq!(batches.iter().flat_map(texts).collect::<Vec<_>>(), all);
            batches.into_iter().flat_map(|batch| batch.parts).for_each(|(_, share)| share.settle(&Verdict::Delivered));
            let answered: u64 = kept.0.lock().iter().map(|receipt| receipt.tally.delivered.lines).sum();
            prop_assert_eq!(answered, chunks.iter().map(Vec::len).sum::<usize>() as u64);
        }

        /// Records that were joined of parts, as `cri` leaves them: whichever batch is the last that arrives, what is read
        /// again begins with the first part of a record, and is all that did not arrive.
        #[test]
        fn a_record_of_many_parts_is_in_one_batch(
            records in proptest::collection::vec(proptest::collection::vec(0usize..60, 1..6), 1..20),
            max_bytes in 30usize..600,
            max_lines in 1usize..6,
            arrives in 0usize..20,
        ) {
            let raw: Vec<String> = records
                .iter()
                .map(|parts| parts.iter().map(|length| format!("P {}\n", "x".repeat(*length))).collect())
                .collect();
            let raw: Vec<&str> = raw.iter().map(String::as_str).collect();
            let entry = |(line, raw): (usize, &&str)| {
                let text = format!("{line} {}", raw.replace("P ", "").replace('\n', ""));
                let changed = Changed { text: Some(text.into_bytes().into()), ..Changed::default() };
                Entry { line: line as u32, changed: Some(Box::new(changed)) }
            };
            let entries: Vec<Entry> = raw.iter().enumerate().map(entry).collect();
            let texts: Vec<Vec<u8>> = entries
                .iter()
                .filter_map(|entry| Some(entry.changed.as_ref()?.text.as_deref()?.to_vec()))
                .collect();
            let kept = Arc::new(Kept::default());
            let share = parcel(lines(&raw, 0, true), &kept).share;
            let all = Shared::from(Records::kept(lines(&raw, 0, true), entries));
            let (mut batcher, mut sealed) = (Batcher::new(limits(max_bytes, max_lines)), Vec::new());
            batcher.push(Parcel { records: all.clone(), share }, Clock::real().now(), |batch| sealed.push(batch));
            sealed.extend(batcher.flush());
            let (mut seen, mut arrived) = (Vec::new(), 0);
            for (number, parts) in sealed.into_iter().enumerate() {
                for (slice, share) in parts {
                    seen.extend(slice.iter().map(|record| record.text.to_vec()));
                    if number < arrives {
                        arrived += slice.range.len();
                        share.settle(&Verdict::Delivered);
                    } else {
                        share.let_go();
                    }
                }
            }
            prop_assert_eq!(seen, texts);
            let (receipts, upto) = (kept.0.lock(), raw[..arrived].concat().len() as u64);
            let answered: Vec<Range<u64>> = receipts.iter().flat_map(|receipt| receipt.answered()).collect();
            prop_assert!(answered.iter().all(|range| range.end <= upto), "{:?}, but {}", answered, upto);
            prop_assert_eq!(answered.iter().map(|range| range.end - range.start).sum::<u64>(), upto);
        }

        /// Cutting loses nothing, keeps the order, and cuts where it was told.
        #[test]
        fn a_batch_that_is_taken_apart_is_still_all_of_it(
            chunks in proptest::collection::vec(proptest::collection::vec(0usize..10, 1..8), 1..5),
            cuts in proptest::collection::btree_set(1usize..20, 0..6),
        ) {
            let kept = Arc::new(Kept::default());
            let (batches, all) = batches(limits(1 << 20, 1 << 20), &chunks, &kept);
            let cuts: Vec<usize> = cuts.into_iter().filter(|index| *index < all.len()).collect();
            let (mut seen, mut begun) = (Vec::new(), Vec::new());
            for batch in batches {
                for parts in apart(batch, &cuts) {
                    begun.push(seen.len());
                    let part = Batch { number: 0, parts };
                    seen.extend(texts(&part));
                    part.parts.into_iter().for_each(|(_, share)| share.settle(&Verdict::Delivered));
                }
            }
            prop_assert_eq!(seen, all);
            prop_assert_eq!(&begun[1..], &cuts);
            prop_assert!(kept.0.lock().iter().all(|receipt| !receipt.fault && receipt.undelivered.is_empty()));
        }

        /// Halving, and picking out the guilty, lose nothing and keep the order.
        #[test]
        fn a_divided_batch_is_still_all_of_it(
            chunks in proptest::collection::vec(proptest::collection::vec(0usize..10, 1..8), 1..5),
            guilty in proptest::collection::btree_set(0usize..20, 0..6),
        ) {
            let kept = Arc::new(Kept::default());
            let (batches, all) = batches(limits(1 << 20, 1 << 20), &chunks, &kept);
            let guilty: Vec<usize> = guilty.into_iter().filter(|index| *index < all.len()).collect();
            let (mut seen, mut found) = (Vec::new(), Vec::new());
            for batch in batches {
                let rest = if all.len() >= 2 {
                    let (first, second) = halves(batch);
                    prop_assert!(!first.is_empty() && !second.is_empty());
                    first.into_iter().chain(second).collect()
                } else { batch.parts };
                each_record(Batch { number: 0, parts: rest }, &guilty, |slice, share, is_guilty| {
                    assert_eq!(slice.count(), share.count());
                    if is_guilty { found.push(seen.len()); }
                    seen.extend(slice.iter().map(|record| String::from_utf8_lossy(record.raw.unwrap()).into_owned()));
                    share.settle(&Verdict::Delivered);
                });
            }
            prop_assert_eq!(seen, all);
            prop_assert_eq!(found, guilty);
            prop_assert!(kept.0.lock().iter().all(|receipt| !receipt.fault && receipt.undelivered.is_empty()));
        }
    }
}
