//! Containers that the engine has no more: the ledger forgets them, and what was lost with them is said.
//!
//! Only the engine's event and a list without it say that a container is removed; that its log is not there (404) does
//! not: so answers an engine too that is still making it.
//!
//! Always true: whoever reads the log of one that is removed reads to the end that the engine gives; only after its
//! report the container is concluded.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use super::super::api::Listed;
use super::super::labels::short;
use super::super::reports::Begin;
use super::super::{of_place, place_of};
use super::Monitor;
use super::slots::State;
use crate::monitors::outlet::Timekeeper;

/// Named in the log, in an hour; more are only counted.
const NAMED_MAX: u32 = 20;
const NAMED_IN: Duration = Duration::from_secs(3600);

/// A host that runs a hundred short containers a minute must not fill the log with their names.
#[derive(Default)]
pub(super) struct Naming {
    since: Option<Instant>,
    count: u32,
}

impl Naming {
    /// How many there were before this one within the hour.
    fn count(&mut self, now: Instant) -> u32 {
        let since = *self.since.get_or_insert(now);
        if now.saturating_duration_since(since) >= NAMED_IN {
            *self = Naming { since: Some(now), count: 0 };
        }
        self.count = self.count.saturating_add(1);
        self.count - 1
    }
}

impl Monitor {
    /// The engine has it no more.
    pub(super) fn removed(&mut self, id: &str) {
        let Some(slot) = self.slots.get_mut(id) else {
            return self.forget_known(id);
        };
        slot.removed = true;
        // Whoever reads it reads to the end, and reports.
        if !matches!(slot.state, State::Reading) {
            self.conclude(id);
        }
    }

    /// Whoever is known and not in a fresh list is removed.
    pub(super) fn miss(&mut self, listed: &[Listed]) {
        let there: BTreeSet<&str> = listed.iter().map(|listed| &*listed.id).collect();
        let gone = |id: &&String| !there.contains(&***id);
        let gone: Vec<String> = self.slots.keys().chain(self.known.keys()).filter(gone).cloned().collect();
        gone.iter().for_each(|id| self.removed(id));
    }

    /// It is removed and nobody reads it: the ledger may forget it.
    pub(super) fn conclude(&mut self, id: &str) {
        let Some(slot) = self.slots.remove(id) else { return };
        let complete = slot.read_to_end || matches!(slot.state, State::Unreadable(_));
        self.queue.retain(|waits| waits != id);
        let mut cursor = None;
        match slot.next {
            Some(Begin::Going(mut place)) => {
                cursor = place.cursor;
                if !complete {
                    let upto = place.stream.position();
                    self.outlet.give_up(&mut place.stream, upto, "the container was removed");
                }
                self.outlet.finish(place.stream);
            }
            Some(Begin::Known(known)) => {
                self.known.insert(id.to_owned(), *known);
                return self.forget_known(id);
            }
            _ if self.known.contains_key(id) => return self.forget_known(id),
            _ => {}
        }
        if !complete {
            self.lost(&slot.facts.called(), slot.read_ns.or(cursor.map(|cursor| cursor.ns)));
        }
    }

    /// One of an earlier life that is gone: what no sink has answered for is lost, and what it may have said since. Of
    /// one that was dead and read to its end nothing is, unless it had another life while nobody was there.
    pub(super) fn forget_known(&mut self, id: &str) {
        let Some(known) = self.known.remove(id) else { return };
        let name = of_place(&known).map_or("", |(_, name)| name).to_owned();
        let place = place_of(id, &name);
        let source = &self.shared.source;
        let who = Timekeeper::of_the_past(source, &place, known.lineage);
        let mut stream = self.outlet.reopen_timed(who, &known);
        if !known.is_whole() {
            self.lost(&format!("{name} ({})", short(id)), known.cursor.map(|cursor| cursor.ns));
            self.outlet.give_up(&mut stream, known.known_to(), "the container was removed");
        }
        self.outlet.finish(stream);
    }

    fn lost(&mut self, called: &str, since_ns: Option<i64>) {
        self.lost.add(1);
        self.given_up += 1;
        let source = &self.shared.source.name;
        let before = self.naming.count(self.outlet.clock().now());
        if before < NAMED_MAX {
            let since = since_ns.and_then(|ns| jiff::Timestamp::from_nanosecond(ns.into()).ok());
            let since = since.map_or("its start".to_owned(), |time| format!("{time:.3}"));
            log::warn!(
                "{source}: {called} was removed before it could be read to its end: what it wrote since {since}, if \
                 anything, is lost"
            );
        } else if before == NAMED_MAX {
            log::warn!(
                "{source}: {NAMED_MAX} containers were removed before they could be read to their ends; for an hour \
                 more of them are only counted"
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Clock;

    #[test]
    fn names_are_counted_within_an_hour() {
        let mut naming = Naming::default();
        let began = Clock::real().now();
        for (minutes, expected) in [(0, 0), (1, 1), (59, 2), (60, 0), (119, 1), (300, 0), (300, 1)] {
            assert_eq!(naming.count(began + Duration::from_secs(60 * minutes)), expected, "{minutes}");
        }
    }
}
