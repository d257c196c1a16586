//! How far one sink has answered for one generation. Pure.
//!
//! Always true: `low` is the first byte without an answer; the ranges ahead of it are disjoint, do not touch,
//! and start above it. Batches end in any order, so answers arrive in any order.

use std::ops::Range;

use serde::{Deserialize, Serialize};

use super::offsets::Offsets;

/// A low-water mark and what is ahead of it, in bytes of the generation.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    low: u64,
    #[serde(default, skip_serializing_if = "Offsets::is_empty")]
    ahead: Offsets<u64>,
}

impl Progress {
    /// Everything below `start` is none of this sink's business.
    pub fn starting_at(start: u64) -> Progress {
        Progress { low: start, ahead: Offsets::default() }
    }

    /// Where this sink would go on: everything below was answered for.
    pub fn low(&self) -> u64 {
        self.low
    }

    pub fn add(&mut self, range: Range<u64>) {
        let mut range = range.start.max(self.low)..range.end;
        if range.is_empty() {
            return;
        }
        // Swallow every known range that overlaps or touches the new one.
        while let Some((start, &end)) = self.ahead.at_or_before(range.end) {
            if end < range.start {
                break;
            }
            range = range.start.min(start)..range.end.max(end);
            self.ahead.remove(start);
        }
        if range.start == self.low {
            self.low = range.end;
            self.ahead.give_back();
        } else {
            self.ahead.insert(range.start, range.end);
        }
    }

    /// What was answered for and is lost after all.
    pub fn remove(&mut self, range: Range<u64>) {
        if range.is_empty() {
            return;
        }
        let was_low = self.low;
        self.low = self.low.min(range.start);
        let mut known: Vec<(u64, u64)> = self.ahead().collect();
        self.ahead = Offsets::default();
        known.push((range.start.min(was_low), was_low)); // what the mark has moved back over
        for (start, end) in known {
            for part in [start..end.min(range.start), start.max(range.end)..end] {
                self.add(part);
            }
        }
    }

    /// Everything in it, rising.
    pub fn ranges(&self) -> impl Iterator<Item = Range<u64>> {
        let low = (self.low > 0).then_some(0..self.low);
        low.into_iter().chain(self.ahead().map(|(start, end)| start..end))
    }

    /// What is ahead of the mark, rising.
    pub fn ahead(&self) -> impl Iterator<Item = (u64, u64)> {
        self.ahead.iter().map(|(start, end)| (start, *end))
    }

    /// How many bytes below `upto` were not answered for.
    pub fn lacking(&self, upto: u64) -> u64 {
        let ahead: u64 = self.ahead().map(|(start, end)| end.min(upto).saturating_sub(start)).sum();
        upto.saturating_sub(self.low) - ahead
    }

    /// Whether the byte at `offset` was answered for.
    pub fn contains(&self, offset: u64) -> bool {
        offset < self.low || self.ahead.at_or_before(offset).is_some_and(|(_, &end)| offset < end)
    }

    /// Whether every byte of a range was answered for.
    pub fn covers(&self, range: Range<u64>) -> bool {
        let ahead = || self.ahead.at_or_before(range.start).is_some_and(|(_, &end)| range.end <= end);
        range.is_empty() || range.end <= self.low || ahead()
    }

    /// Offsets above `position` where this sink starts or stops lacking bytes. Chunks do not cross them.
    pub fn edges(&self, position: u64) -> impl Iterator<Item = u64> {
        let ahead = self.ahead().flat_map(|(start, end)| [start, end]);
        std::iter::once(self.low).chain(ahead).filter(move |edge| *edge > position)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_mark_moves_only_over_what_was_answered_for() {
        let mut progress = Progress::starting_at(10);
        progress.add(20..30);
        assert_eq!(progress.low(), 10);
        assert!(progress.contains(9) && !progress.contains(10) && progress.contains(20));
        assert_eq!(progress.edges(10).collect::<Vec<_>>(), [20, 30]);
        progress.add(10..20);
        assert_eq!(progress, Progress::starting_at(30));
    }

    proptest! {
        /// The model: a set of bytes.
        #[test]
        fn ranges_behave_like_a_set_of_bytes(
            adds in proptest::collection::vec((0u64..120, 0u64..20, 0..4), 0..40),
        ) {
            let mut progress = Progress::starting_at(5);
            let mut model: Vec<bool> = (0..150).map(|byte| byte < 5).collect();
            for (start, len, removes) in adds {
                let range = start..start + len;
                if removes == 0 { progress.remove(range) } else { progress.add(range) }
                model[start as usize..(start + len) as usize].fill(removes != 0);
                for (byte, known) in model.iter().enumerate() {
                    prop_assert_eq!(progress.contains(byte as u64), *known);
                    let all = model[byte..].iter().take(len as usize).all(|known| *known);
                    prop_assert_eq!(progress.covers(byte as u64..byte as u64 + len), all);
                }
                let ranges: Vec<_> = progress.ranges().collect();
                prop_assert!(ranges.windows(2).all(|pair| pair[0].end < pair[1].start), "{:?}", ranges);
                prop_assert_eq!(
                    ranges.iter().map(|range| range.end - range.start).sum::<u64>(),
                    model.iter().filter(|known| **known).count() as u64
                );
                for upto in [0, 60, 150] {
                    let lacking = model[..upto].iter().filter(|known| !**known).count() as u64;
                    prop_assert_eq!(progress.lacking(upto as u64), lacking);
                }
                prop_assert_eq!(progress.low(), model.iter().position(|known| !known).unwrap() as u64);
            }
        }
    }
}
