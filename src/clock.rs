//! Time: real and by hand, and the stamps that lines without a time of their own get.
//!
//! The only file that reads a clock. Everything else is told the time as an argument, or holds a [`Clock`].

use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crossbeam_channel::{Receiver, at, never};
use parking_lot::Mutex;

/// An [`Instant`] in one word, for what there is ten thousand times. Nobody else needs to know since when it counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Moment(i64);

/// What moments count from, in nanoseconds: the first that there was. Others may lie before it.
static FIRST: OnceLock<Instant> = OnceLock::new();

impl From<Instant> for Moment {
    fn from(instant: Instant) -> Moment {
        let first = *FIRST.get_or_init(|| instant);
        let since = instant.saturating_duration_since(first).as_nanos() as i64;
        Moment(since - first.saturating_duration_since(instant).as_nanos() as i64)
    }
}

impl From<Moment> for Instant {
    fn from(moment: Moment) -> Instant {
        let first = *FIRST.get_or_init(real_now);
        let distance = Duration::from_nanos(moment.0.unsigned_abs());
        if moment.0 < 0 { first - distance } else { first + distance }
    }
}

/// When something is due that has to come about `every` so often, but at no special time: the same for all who ask, so
/// that those who have nothing else to do wake up together. Later than `now`, by `every` at most.
pub fn next_tick(now: Instant, every: Duration) -> Instant {
    let every_ns = i64::try_from(every.as_nanos()).unwrap_or(i64::MAX).max(1);
    let into = Moment::from(now).0.rem_euclid(every_ns);
    now + Duration::from_nanos((every_ns - into) as u64)
}

/// A source of time. Cheap to clone; clones of one made by hand move together.
#[derive(Clone)]
pub struct Clock(Kind);

#[derive(Clone)]
enum Kind {
    Real,
    ByHand(Arc<Mutex<(Instant, i64)>>),
}

impl Clock {
    pub fn real() -> Clock {
        Clock(Kind::Real)
    }

    /// For tests: stands still until [`Clock::advance`].
    pub fn by_hand(wall_ns: i64) -> Clock {
        Clock(Kind::ByHand(Arc::new(Mutex::new((real_now(), wall_ns)))))
    }

    /// Monotonic: for every deadline and every measure.
    pub fn now(&self) -> Instant {
        match &self.0 {
            Kind::Real => real_now(),
            Kind::ByHand(hands) => hands.lock().0,
        }
    }

    /// Nanoseconds since 1970, UTC: for stamps and for people, never for a time-out.
    pub fn wall_ns(&self) -> i64 {
        match &self.0 {
            Kind::Real => real_wall_ns(),
            Kind::ByHand(hands) => hands.lock().1,
        }
    }

    /// Moves a clock made by hand; a real one moves by itself.
    pub fn advance(&self, by: Duration) {
        if let Kind::ByHand(hands) = &self.0 {
            let mut hands = hands.lock();
            hands.0 += by;
            hands.1 += by.as_nanos() as i64;
        }
    }
}

/// A time to be woken up at, for `select!`: made anew only when it is another one, since that takes memory.
pub struct Alarm {
    at: Option<Instant>,
    bell: Receiver<Instant>,
}

impl Default for Alarm {
    fn default() -> Alarm {
        Alarm { at: None, bell: never() }
    }
}

impl Alarm {
    /// Rings at `time`, once; `None`: never.
    pub fn set(&mut self, time: Option<Instant>) -> &Receiver<Instant> {
        // One that has rung is empty for ever.
        if self.at != time || self.at.is_some_and(|at| at <= real_now()) {
            (self.at, self.bell) = (time, time.map_or(never(), at));
        }
        &self.bell
    }
}

#[expect(clippy::disallowed_methods, reason = "this is the one place that reads the clock")]
fn real_now() -> Instant {
    Instant::now()
}

#[expect(clippy::disallowed_methods, reason = "this is the one place that reads the clock")]
fn real_wall_ns() -> i64 {
    match SystemTime::now().duration_since(UNIX_EPOCH) {
        Ok(since) => since.as_nanos() as i64,
        Err(before) => -(before.duration().as_nanos() as i64),
    }
}

/// How far the stamps may stand ahead of the wall clock before we believe the wall clock and start a new
/// epoch: longer than any leap or slew, shorter than what a box without a battery invents at boot.
const EPOCH_GAP_NS: i64 = 3600 * 1_000_000_000;

/// Gives every line of the agent a nanosecond of its own: reserves `[base, base + n)`, strictly rising over
/// all sources and restarts, so that a sink which drops equal entries never drops a real repeat.
#[derive(Debug)]
pub struct StampClock {
    next_ns: i64,
    epochs: u64,
}

impl StampClock {
    /// `floor_ns`: nothing below it is handed out (what the last life may have used).
    pub fn new(floor_ns: i64) -> StampClock {
        StampClock { next_ns: floor_ns, epochs: 0 }
    }

    pub fn reserve(&mut self, lines: u64, wall_ns: i64) -> i64 {
        if self.next_ns > wall_ns.saturating_add(EPOCH_GAP_NS) {
            self.next_ns = wall_ns;
            self.epochs += 1;
        }
        let base = self.next_ns.max(wall_ns);
        self.next_ns = base + lines as i64;
        base
    }

    /// One more than the last stamp that was handed out.
    pub fn next_ns(&self) -> i64 {
        self.next_ns
    }

    /// How often the wall clock had gone back so far that rising order was given up.
    pub fn epochs(&self) -> u64 {
        self.epochs
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_moment_is_an_instant_in_half_the_room() {
        let now = Clock::real().now();
        let check = |instant: Instant| assert_eq!(Instant::from(Moment::from(instant)), instant);
        check(now);
        check(now + Duration::from_nanos(1));
        check(now - Duration::from_millis(3)); // perhaps before the first
        assert!(Moment::from(now - Duration::from_secs(1)) < Moment::from(now));
        assert_eq!((size_of::<Moment>(), size_of::<Instant>()), (8, 16));
    }

    #[test]
    fn who_waits_for_a_tick_wakes_up_with_all_others() {
        let (now, every) = (Clock::real().now(), Duration::from_secs(5));
        let tick = next_tick(now, every);
        assert!(now < tick && tick <= now + every);
        for ms in [1, 700, 4999] {
            assert_eq!(next_tick(tick - Duration::from_millis(ms), every), tick);
        }
        assert_eq!(next_tick(tick, every), tick + every);
        let minute = next_tick(now, 12 * every);
        assert_eq!(
            next_tick(minute - Duration::from_millis(1), every),
            minute,
            "a tick of many is one of few"
        );
    }

    #[test]
    fn stamps_never_meet_and_follow_the_wall_clock() {
        let mut stamps = StampClock::new(0);
        assert_eq!(stamps.reserve(10, 1_000), 1_000);
        assert_eq!(stamps.reserve(5, 1_000), 1_010);
        assert_eq!(stamps.reserve(1, 500), 1_015, "a small step back does not repeat a stamp");
        assert_eq!(stamps.reserve(1, 2_000), 2_000);
    }

    #[test]
    fn a_restart_stays_above_the_floor() {
        assert_eq!(StampClock::new(9_000).reserve(1, 8_000), 9_000);
    }

    #[test]
    fn a_wildly_wrong_clock_starts_a_new_epoch_once_corrected() {
        let mut stamps = StampClock::new(0);
        let wrong = 10 * EPOCH_GAP_NS;
        stamps.reserve(1, wrong);
        assert_eq!(stamps.reserve(1, 5), 5);
        assert_eq!(stamps.epochs(), 1);
    }
}
