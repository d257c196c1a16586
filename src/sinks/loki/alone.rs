//! Which streams of a batch go into a push of their own. Pure.
//!
//! For a push of several streams Loki's ingester tells what happened to the last of them, and to no other: entries
//! that are too far behind those it has, a stream above its rate, a new one above the limit of streams would be gone
//! without a word, with a 204. What is sent alone is answered for. So alone goes
//!
//! * a stream whose times go far back behind those that it had, or behind all others if nobody knows it;
//! * one that brings much at once.
//!
//! All others share a push, so ten thousand quiet files are not ten thousand requests a second. New ones stand behind
//! those that Loki has: where there is room for no more, there is none for the last one either. What the front door
//! refuses (labels, lines that are too long or too old for any stream) it says for every push.

use std::collections::HashMap;
use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;

use crate::record::Labels;

/// A quarter of what Loki takes behind the newest entry of a stream (half of `max_chunk_age`), and half of the time
/// after which it forgets one (`chunk_idle_period`), both by default.
const FAR_NS: i64 = 15 * 60 * 1_000_000_000;

/// A quarter of a full batch: what is less comes near to the limit of a stream (3 MB/s) only in a crowd of such.
const MUCH: u64 = 256 * 1024;

/// Streams that are remembered, some twenty bytes each. With more of them all begin anew.
const STREAMS_MAX: usize = 65_536;

/// What a batch brings for one stream.
#[derive(Clone, Copy)]
pub(super) struct Look {
    pub oldest_ns: i64,
    pub newest_ns: i64,
    pub weight: u64,
}

/// How a stream goes; in the order of the pushes and within the first one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Way {
    Shared,
    /// Shared, and nobody knows it.
    SharedNew,
    Alone,
}

/// What was sent, and accepted: of each stream its newest time.
#[derive(Default)]
pub(super) struct Sent {
    hasher: RandomState,
    newest_ns: HashMap<u64, i64>,
    /// Of all streams, whether they were accepted or not.
    newest_of_all_ns: Option<i64>,
    /// By the number of its push, which has no answer yet.
    pending: Vec<(usize, u64, i64)>,
}

impl Sent {
    /// The last batch got an answer to so many of its pushes, which was not "try again".
    pub fn settle(&mut self, answered: usize) {
        for (_, stream, newest_ns) in self.pending.drain(..).filter(|(push, ..)| *push < answered) {
            if self.newest_ns.len() >= STREAMS_MAX {
                self.newest_ns.clear();
            }
            let newest = self.newest_ns.entry(stream).or_insert(newest_ns);
            *newest = newest_ns.max(*newest);
        }
    }

    pub fn way(&self, labels: &Labels, look: &Look) -> Way {
        let known = self.newest_ns.get(&self.hasher.hash_one(labels)).copied();
        let known = known.filter(|newest_ns| look.oldest_ns <= newest_ns.saturating_add(FAR_NS));
        let newest_ns = known.or(self.newest_of_all_ns).unwrap_or(i64::MIN);
        let oldest_safe_ns = newest_ns.saturating_sub(FAR_NS);
        match known {
            _ if look.weight >= MUCH || look.oldest_ns < oldest_safe_ns => Way::Alone,
            Some(_) => Way::Shared,
            None => Way::SharedNew,
        }
    }

    /// Something of this time is about to be sent.
    pub fn see(&mut self, newest_ns: i64) {
        self.newest_of_all_ns = self.newest_of_all_ns.max(Some(newest_ns));
    }

    pub fn note(&mut self, push: usize, labels: &Labels, newest_ns: i64) {
        self.see(newest_ns);
        self.pending.push((push, self.hasher.hash_one(labels), newest_ns));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_goes_how() {
        let (one, other) = (Labels::new([("a", "1")]), Labels::new([("a", "2")]));
        let look = |oldest_ns, weight| Look { oldest_ns, newest_ns: oldest_ns, weight };
        let mut sent = Sent::default();
        let now = 10 * FAR_NS;
        sent.see(now);
        sent.note(0, &one, now);
        assert_eq!(sent.way(&one, &look(now, 1)), Way::SharedNew, "nobody has answered");
        sent.settle(0);
        assert_eq!(sent.way(&one, &look(now, 1)), Way::SharedNew, "it was not taken");
        sent.note(0, &one, now);
        sent.note(1, &other, now);
        sent.settle(1);
        for (stream, oldest_ns, weight, way) in [
            (&one, now, 1, Way::Shared),
            (&one, now - FAR_NS, MUCH - 1, Way::Shared),
            (&one, now - FAR_NS - 1, 1, Way::Alone),
            (&one, now, MUCH, Way::Alone),
            (&one, now + FAR_NS, 1, Way::Shared),
            (&one, now + FAR_NS + 1, 1, Way::SharedNew), // Loki may have forgotten it
            (&one, i64::MIN, 1, Way::Alone),
            (&other, now, 1, Way::SharedNew), // only the first push was taken
            (&other, now - FAR_NS, 1, Way::SharedNew),
            (&other, now - FAR_NS - 1, 1, Way::Alone),
            (&other, now, MUCH, Way::Alone),
        ] {
            assert_eq!(sent.way(stream, &look(oldest_ns, weight)), way, "{oldest_ns}");
        }
    }
}
