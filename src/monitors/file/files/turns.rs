//! Turns one behind the other: what many quiet files have to say at the same moment leaves together.

use std::time::Duration;

use super::super::tail::Tail;
use super::super::turn::Caught;
use super::Files;
use crate::monitors::outlet::SMALL_BYTES;
use crate::tasks::Task;

/// What so many files have to say is written down at once.
const GROUP_MOST: usize = 32;

/// How long what was read waits for company, on a disk that is slow.
const GROUP_WAIT: Duration = Duration::from_millis(5);

impl Files {
    /// One turn, and those that go with it.
    pub(super) fn give_turns(&mut self, task: &Task) {
        let began = task.now();
        let (mut now, mut caught) = (began, 0);
        loop {
            self.give_turn(now, task);
            now = task.now();
            let is_full = self.caught.len() == GROUP_MOST || now >= began + GROUP_WAIT;
            let next = self.ready.front().and_then(|file| self.tails.get(file));
            let goes_along =
                next.is_some_and(|next| self.gathers(next) && next.unread() <= SMALL_BYTES as u64);
            // It went with the others, and is the last of them.
            let is_large = self.caught.last().is_some_and(|(_, last)| last.len > SMALL_BYTES);
            // Behind one that had much to say, or nothing, nobody waits.
            if self.caught.len() <= caught || is_full || is_large || !goes_along {
                return self.hand_over(task);
            }
            caught = self.caught.len();
        }
    }

    /// Whether what it has to say may be handed over with others. What may not goes by itself, and not while others wait.
    pub(super) fn gathers(&self, tail: &Tail) -> bool {
        let may_be_parts = self.sources[tail.source()].is_in_parts();
        tail.is_plain()
            && !may_be_parts
            && tail.stream.as_ref().is_some_and(|stream| self.outlet.gathers(stream))
    }

    /// What was caught; that ends those turns.
    pub(super) fn hand_over(&mut self, task: &Task) {
        if self.caught.is_empty() {
            return;
        }
        task.waits_for("room downhill");
        let most = self.caught.len();
        let (mut tails, mut smalls) = (Vec::with_capacity(most), Vec::with_capacity(most));
        for (tail, Caught { small, before, len }) in self.caught.drain(..) {
            tails.push((tail, before, len));
            smalls.push(small);
        }
        let streams = tails.iter_mut().filter_map(|(tail, ..)| tail.stream.as_mut());
        let (sent, ended) = self.outlet.send_all(streams.zip(smalls));
        task.beat();
        let now = task.now();
        for (number, (mut tail, before, len)) in tails.into_iter().enumerate() {
            let turn = match ended {
                Err(why) if number >= sent => tail.not_handed_over(why),
                _ => tail.handed_over(before, len, self.sources[tail.source()].idle, now),
            };
            self.end_turn(tail, turn, now);
        }
    }
}
