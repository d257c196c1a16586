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

use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;

use crate::record::Labels;

const SECOND_NS: i64 = 1_000_000_000;

/// A quarter of what Loki takes behind the newest entry of a stream (half of `max_chunk_age`), and half of the time
/// after which it forgets one (`chunk_idle_period`), both by default.
const FAR_NS: i64 = 15 * 60 * SECOND_NS;

/// A quarter of a full batch: what is less comes near to the limit of a stream (3 MB/s) only in a crowd of such.
const MUCH: u64 = 256 * 1024;

/// Streams that can be remembered, at most: two that want the same place push each other out. That many are 128 KiB,
/// in pages that the system provides when they are written to.
const PLACES: usize = 16 * 1024;

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
    /// Empty, or [`PLACES`], by the hash: whatever comes and goes, it does not grow.
    known: Box<[Known]>,
    /// Of all streams, whether they were accepted or not.
    newest_of_all_ns: Option<i64>,
    /// By the number of its push, which has no answer yet.
    pending: Vec<(usize, Known)>,
}

/// The hash of a stream's labels, and its newest time in seconds since 1970. Nobody, as long as that is 0. With two
/// of one hash, the one may go as the other would. (No struct: a list of zeros in pairs costs no page.)
type Known = (u32, u32);

impl Sent {
    /// The last batch got an answer to so many of its pushes, which was not "try again".
    pub fn settle(&mut self, answered: usize) {
        if self.known.is_empty() {
            self.known = vec![(0, 0); PLACES].into();
        }
        for (_, (hash, newest_s)) in self.pending.drain(..).filter(|(push, _)| *push < answered) {
            let known = &mut self.known[hash as usize % PLACES];
            let before_s = if known.0 == hash { known.1 } else { 0 };
            *known = (hash, newest_s.max(before_s));
        }
    }

    /// As [`Sent::settle`], and no batch follows for a while.
    pub fn rest(&mut self, answered: usize) {
        self.settle(answered);
        self.pending = Vec::new();
    }

    /// `stream`: what [`Sent::hash`] makes of its labels.
    pub fn way(&self, stream: u64, look: &Look) -> Way {
        let known = self.newest_ns(stream).filter(|newest_ns| look.oldest_ns <= newest_ns + FAR_NS);
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

    pub fn note(&mut self, push: usize, stream: u64, newest_ns: i64) {
        self.see(newest_ns);
        let newest_s = (newest_ns / SECOND_NS).clamp(1, u32::MAX.into()) as u32;
        self.pending.push((push, (stream as u32, newest_s)));
    }

    fn newest_ns(&self, stream: u64) -> Option<i64> {
        let hash = stream as u32;
        let (of, newest_s) = *self.known.get(hash as usize % PLACES)?;
        (of == hash && newest_s > 0).then(|| i64::from(newest_s) * SECOND_NS)
    }

    pub fn hash(&self, labels: &Labels) -> u64 {
        self.hasher.hash_one(labels)
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
        let (one, other) = (sent.hash(&one), sent.hash(&other));
        let now = 10 * FAR_NS;
        sent.see(now);
        sent.note(0, one, now);
        assert_eq!(sent.way(one, &look(now, 1)), Way::SharedNew, "nobody has answered");
        sent.settle(0);
        assert_eq!(sent.way(one, &look(now, 1)), Way::SharedNew, "it was not taken");
        sent.note(0, one, now);
        sent.note(1, other, now);
        sent.rest(1);
        sent.settle(2); // the answers were taken in, and nothing was sent since
        for (stream, oldest_ns, weight, way) in [
            (one, now, 1, Way::Shared),
            (one, now - FAR_NS, MUCH - 1, Way::Shared),
            (one, now - FAR_NS - 1, 1, Way::Alone),
            (one, now, MUCH, Way::Alone),
            (one, now + FAR_NS, 1, Way::Shared),
            (one, now + FAR_NS + 1, 1, Way::SharedNew), // Loki may have forgotten it
            (one, i64::MIN, 1, Way::Alone),
            (other, now, 1, Way::SharedNew), // only the first push was taken
            (other, now - FAR_NS, 1, Way::SharedNew),
            (other, now - FAR_NS - 1, 1, Way::Alone),
            (other, now, MUCH, Way::Alone),
        ] {
            assert_eq!(sent.way(stream, &look(oldest_ns, weight)), way, "{oldest_ns}");
        }
    }
}
