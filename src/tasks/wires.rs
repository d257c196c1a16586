//! The channels of the path, declared: who stands at which end, and whether the giver may wait for room.
//!
//! One law: downhill may wait, uphill never waits. A channel that somebody waits on can only be made downhill
//! ([`Wires::downhill`] asserts it), so a cycle of threads that wait for each other cannot be built; a test walks
//! the graph all the same. Channels that lead uphill have room for everything that can be on its way
//! ([`Wires::room_for_all`]), or one slot for a hint that may be lost ([`Wires::hint`]).

use std::fmt;

use crossbeam_channel::{Receiver, Sender, bounded};

/// Who stands at the end of a channel. The order is the rank: who may wait for whom.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Post {
    Monitor,
    Worker,
    Lane,
    Sender,
    Retry,
    Ledger,
    /// Waits for nobody on the path.
    Main,
}

#[derive(Clone, Copy, Debug)]
pub struct Wire {
    pub what: &'static str,
    pub from: Post,
    pub to: Post,
    /// The giver waits when the channel is full.
    pub waits: bool,
}

/// Every channel of one agent, in the order in which they were made; one entry per name and pair of ends.
#[derive(Debug, Default)]
pub struct Wires(Vec<Wire>);

impl Wires {
    /// The giver waits for room. Panics if that is uphill: a mistake in the wiring.
    pub fn downhill<T>(
        &mut self,
        what: &'static str,
        from: &[Post],
        to: Post,
        room: usize,
    ) -> (Sender<T>, Receiver<T>) {
        for from in from {
            assert!(*from < to, "{what}: {from:?} must not wait for {to:?}, which is uphill");
            self.add(Wire { what, from: *from, to, waits: true });
        }
        bounded(room)
    }

    /// Nobody waits: at most `most` of these are ever on their way.
    pub fn room_for_all<T>(
        &mut self,
        what: &'static str,
        from: Post,
        to: Post,
        most: usize,
    ) -> (Sender<T>, Receiver<T>) {
        self.add(Wire { what, from, to, waits: false });
        bounded(most)
    }

    /// Nobody waits: one that finds the slot full says nothing new.
    pub fn hint(&mut self, what: &'static str, from: Post, to: Post) -> (Sender<()>, Receiver<()>) {
        self.room_for_all(what, from, to, 1)
    }

    fn add(&mut self, wire: Wire) {
        if !self.0.iter().any(|known| (known.what, known.from, known.to) == (wire.what, wire.from, wire.to)) {
            self.0.push(wire);
        }
    }

    pub fn iter(&self) -> impl Iterator<Item = &Wire> {
        self.0.iter()
    }
}

impl fmt::Display for Wires {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for Wire { what, from, to, waits } in self.iter() {
            let arrow = if *waits { "waits for" } else { "tells" };
            write!(f, "{from:?} {arrow} {to:?} ({what}); ")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[should_panic(expected = "reports: Sender must not wait for Lane, which is uphill")]
    fn nobody_can_be_made_to_wait_uphill() {
        Wires::default().downhill::<()>("reports", &[Post::Sender], Post::Lane, 1);
    }
}
