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

/// Streams that can be remembered, at most, in 128 KiB; there are more places when half of those that there are have
/// somebody.
const PLACES_MOST: usize = 16 * 1024;
const PLACES_FIRST: usize = 256;

/// Places behind each other where a stream may stand. Whoever finds all of them taken pushes out the first.
const STEPS: usize = 8;

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
    /// By the hash, as many as a power of two; at most [`PLACES_MOST`].
    known: Box<[Known]>,
    /// Places that have somebody.
    taken: usize,
    /// Of all streams, whether they were accepted or not.
    newest_of_all_ns: Option<i64>,
    /// By the number of its push, which has no answer yet.
    pending: Vec<(usize, Known)>,
}

/// The hash of a stream's labels, and its newest time in seconds since 1970. Nobody, as long as that is 0. With two
/// of one hash, the one may go as the other would.
type Known = (u32, u32);

impl Sent {
    /// The last batch got an answer to so many of its pushes, which was not "try again".
    pub fn settle(&mut self, answered: usize) {
        let mut pending = std::mem::take(&mut self.pending);
        for (_, known) in pending.drain(..).filter(|(push, _)| *push < answered) {
            if 2 * self.taken >= self.known.len() && self.known.len() < PLACES_MOST {
                self.grow();
            }
            self.put(known);
        }
        self.pending = pending;
    }

    fn put(&mut self, (hash, newest_s): Known) {
        let at = self
            .places(hash)
            .find(|at| matches!(self.known[*at], (of, newest_s) if of == hash || newest_s == 0));
        let place = &mut self.known[at.unwrap_or(hash as usize % self.known.len())];
        let before_s = if place.0 == hash { place.1 } else { 0 };
        self.taken += usize::from(place.1 == 0);
        *place = (hash, newest_s.max(before_s));
    }

    fn grow(&mut self) {
        let places = (2 * self.known.len()).max(PLACES_FIRST);
        let before = std::mem::replace(&mut self.known, vec![(0, 0); places].into());
        self.taken = 0;
        before.into_iter().filter(|(_, newest_s)| *newest_s > 0).for_each(|known| self.put(known));
    }

    /// As [`Sent::settle`], and no batch follows for a while.
    pub fn rest(&mut self, answered: usize) {
        self.settle(answered);
        self.pending = Vec::new();
    }

    pub fn way(&self, labels: &Labels, look: &Look) -> Way {
        let known = self.newest_ns(labels).filter(|newest_ns| look.oldest_ns <= newest_ns + FAR_NS);
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
        let newest_s = (newest_ns / SECOND_NS).clamp(1, u32::MAX.into()) as u32;
        self.pending.push((push, (self.hash(labels), newest_s)));
    }

    fn newest_ns(&self, labels: &Labels) -> Option<i64> {
        let hash = self.hash(labels);
        let (_, newest_s) = self.places(hash).map(|at| self.known[at]).find(|(of, _)| *of == hash)?;
        (newest_s > 0).then(|| i64::from(newest_s) * SECOND_NS)
    }

    fn places(&self, hash: u32) -> impl Iterator<Item = usize> + use<> {
        let places = self.known.len();
        (0..STEPS.min(places)).map(move |step| (hash as usize + step) % places)
    }

    fn hash(&self, labels: &Labels) -> u32 {
        self.hasher.hash_one(labels) as u32
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
        sent.rest(1);
        sent.settle(2); // the answers were taken in, and nothing was sent since
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

    #[test]
    fn there_is_room_for_as_many_as_there_are() {
        let mut sent = Sent::default();
        let labels = |number: u32| Labels::new([("a", number.to_string().as_str())]);
        sent.rest(0);
        assert!(sent.known.is_empty());
        (0..100).for_each(|number| sent.note(0, &labels(number), SECOND_NS));
        sent.rest(1);
        assert_eq!(sent.known.len(), PLACES_FIRST);
        (0..2000).for_each(|number| sent.note(0, &labels(number), 2 * SECOND_NS));
        sent.rest(1);
        let known =
            (0..2000).filter(|number| sent.newest_ns(&labels(*number)) == Some(2 * SECOND_NS)).count();
        assert!(sent.known.len() <= 8192 && known > 1950, "{known} of 2000 in {} places", sent.known.len());
        (0..50_000).for_each(|number| sent.note(0, &labels(number), SECOND_NS));
        sent.rest(1);
        assert_eq!(sent.known.len(), PLACES_MOST);
        assert_eq!(sent.taken, sent.known.iter().filter(|known| known.1 > 0).count());
    }
}
