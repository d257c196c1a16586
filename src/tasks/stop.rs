//! The stop, as a pure state machine: when to close `stop`, when to close `abort`, when to give up waiting.
//!
//! ```text
//! running ──signal, fault, max_time──▶ draining ──stop_timeout - margin, second signal──▶ aborting ──stop_timeout──▶ gave up
//!    └──────────────── everything has ended by itself ────┴───────────────────────────────────┴──▶ ended
//! ```
//!
//! `main` feeds it events and carries out what it answers. It never waits and never asks for the time.

use std::time::{Duration, Instant};

/// A fifth of the time-out, at most a second: what is left for threads to end after `abort`.
fn margin(stop_timeout: Duration) -> Duration {
    (stop_timeout / 5).min(Duration::from_secs(1))
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// SIGTERM, SIGINT, or the agent's own wish to end.
    Stop,
    /// Every thread of the data path has ended.
    AllEnded,
    /// The deadline may have passed.
    Tick,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    CloseStop,
    /// Also runs the cancellers.
    CloseAbort,
    /// Join what is left and leave.
    Leave,
    /// Name the threads that did not end and leave without them.
    GiveUp,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Running,
    Draining { began: Instant },
    Aborting { deadline: Instant },
    Over,
}

#[derive(Debug)]
pub struct StopPlan {
    stop_timeout: Duration,
    phase: Phase,
}

impl StopPlan {
    pub fn new(stop_timeout: Duration) -> StopPlan {
        StopPlan { stop_timeout, phase: Phase::Running }
    }

    /// From the closing of `abort` to the deadline.
    pub fn margin(&self) -> Duration {
        margin(self.stop_timeout)
    }

    /// When the process has to be gone if everything on the path ended at `now`: those who served it have what
    /// is left of the time-out, and at least the margin.
    pub fn leave_by(&self, now: Instant) -> Instant {
        let deadline = match self.phase {
            Phase::Running | Phase::Over => now + self.stop_timeout,
            Phase::Draining { began } => began + self.stop_timeout,
            Phase::Aborting { deadline } => deadline,
        };
        deadline.max(now + self.margin())
    }

    pub fn is_stopping(&self) -> bool {
        self.phase != Phase::Running
    }

    /// When to come back with [`Event::Tick`] if nothing else happens.
    pub fn next_deadline(&self) -> Option<Instant> {
        match self.phase {
            Phase::Running | Phase::Over => None,
            Phase::Draining { began } => Some(began + self.stop_timeout - margin(self.stop_timeout)),
            Phase::Aborting { deadline } => Some(deadline),
        }
    }

    pub fn handle(&mut self, event: Event, now: Instant) -> Option<Action> {
        match (self.phase, event) {
            (Phase::Over, _) | (Phase::Running, Event::Tick) | (Phase::Aborting { .. }, Event::Stop) => None,
            (_, Event::AllEnded) => self.go(Phase::Over, Action::Leave),
            (Phase::Running, Event::Stop) => self.go(Phase::Draining { began: now }, Action::CloseStop),
            (Phase::Draining { .. }, Event::Stop) => {
                // The second signal: what a drain would still have got, the margin has to do for.
                self.go(Phase::Aborting { deadline: now + margin(self.stop_timeout) }, Action::CloseAbort)
            }
            (Phase::Draining { began }, Event::Tick) if Some(now) >= self.next_deadline() => {
                self.go(Phase::Aborting { deadline: began + self.stop_timeout }, Action::CloseAbort)
            }
            (Phase::Aborting { deadline }, Event::Tick) if now >= deadline => {
                self.go(Phase::Over, Action::GiveUp)
            }
            (Phase::Draining { .. } | Phase::Aborting { .. }, Event::Tick) => None,
        }
    }

    fn go(&mut self, phase: Phase, action: Action) -> Option<Action> {
        self.phase = phase;
        Some(action)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::clock::Clock;

    #[test]
    fn a_stop_with_nothing_pending_leaves_at_once() {
        let now = Clock::real().now();
        let mut plan = StopPlan::new(Duration::from_secs(10));
        assert_eq!(plan.handle(Event::Stop, now), Some(Action::CloseStop));
        assert_eq!(plan.handle(Event::AllEnded, now), Some(Action::Leave));
    }

    #[test]
    fn those_who_served_have_what_is_left_of_the_time() {
        let (now, ms) = (Clock::real().now(), Duration::from_millis);
        let mut plan = StopPlan::new(ms(100));
        assert_eq!(plan.leave_by(now), now + ms(100), "everything ended by itself");
        plan.handle(Event::Stop, now);
        assert_eq!(plan.leave_by(now + ms(5)), now + ms(100));
        plan.handle(Event::Tick, now + ms(80));
        assert_eq!(plan.leave_by(now + ms(99)), now + ms(119), "never less than the margin");
    }

    #[test]
    fn the_second_signal_aborts_and_the_third_changes_nothing() {
        let now = Clock::real().now();
        let mut plan = StopPlan::new(Duration::from_secs(10));
        plan.handle(Event::Stop, now);
        assert_eq!(plan.handle(Event::Stop, now), Some(Action::CloseAbort));
        assert_eq!(plan.handle(Event::Stop, now), None);
        assert_eq!(plan.next_deadline(), Some(now + Duration::from_secs(1)));
    }

    proptest! {
        /// The model: whatever happens in whatever order, `stop` is closed before `abort`, each once, and the plan
        /// is over within `stop_timeout` of the first stop, as long as it is asked at its own deadlines.
        #[test]
        fn every_stop_is_bounded(
            timeout_ms in 1u64..20_000,
            steps in proptest::collection::vec((0u8..8, 0u64..3_000), 1..50),
        ) {
            let timeout = Duration::from_millis(timeout_ms);
            let mut plan = StopPlan::new(timeout);
            let (mut now, mut seen, mut began) = (Clock::real().now(), Vec::new(), None);
            for (kind, ms) in steps.into_iter().chain([(0, 0), (2, u64::MAX), (2, u64::MAX), (2, u64::MAX)]) {
                let step = now + Duration::from_millis(ms.min(1 << 40));
                let event = match kind {
                    0 => Event::Stop,
                    1 => Event::AllEnded,
                    _ => {
                        now = plan.next_deadline().map_or(now, |deadline| step.min(deadline));
                        Event::Tick
                    }
                };
                if event == Event::Stop && began.is_none() && seen.is_empty() {
                    began = Some(now);
                }
                seen.extend(plan.handle(event, now));
            }
            let last = seen.pop();
            prop_assert!(matches!(last, Some(Action::GiveUp | Action::Leave)), "{last:?}");
            prop_assert!([Action::CloseStop, Action::CloseAbort].starts_with(&seen), "{seen:?}");
            if let Some(began) = began {
                prop_assert!(now <= began + timeout, "{:?}", now - began);
            }
        }
    }
}
