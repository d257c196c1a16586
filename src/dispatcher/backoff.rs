//! How long a sink that is ill is left alone. Pure but for the dice.
//!
//! Exponential with full jitter, so that agents which fell ill together do not come back together:
//! <https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/>.

use std::time::Duration;

use crate::sinks::RetryOptions;

/// A sink may ask for more patience than our cap, but not for ever: a wrong `Retry-After` must not silence it.
const ASKED_MAX: Duration = Duration::from_secs(3600);

#[derive(Debug)]
pub struct Backoff {
    options: RetryOptions,
    tries: u32,
    dice: fastrand::Rng,
}

impl Backoff {
    pub fn new(options: RetryOptions, seed: u64) -> Backoff {
        Backoff { options, tries: 0, dice: fastrand::Rng::with_seed(seed) }
    }

    /// The wait before the next try. `asked`: the sink's own wish, which wins.
    pub fn next(&mut self, asked: Option<Duration>) -> Duration {
        let doubled = self.options.initial.saturating_mul(2u32.saturating_pow(self.tries.min(31)));
        let ceiling = doubled.min(self.options.max);
        self.tries = self.tries.saturating_add(1);
        asked.map_or_else(|| ceiling.mul_f64(self.dice.f64()), |asked| asked.min(ASKED_MAX))
    }

    /// The sink is well.
    pub fn reset(&mut self) {
        self.tries = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn backoff(seed: u64) -> Backoff {
        let second = Duration::from_secs(1);
        Backoff::new(RetryOptions { initial: second, max: 8 * second, max_attempts: None }, seed)
    }

    #[test]
    fn waits_stay_below_a_doubling_ceiling_and_use_all_of_it() {
        for (try_number, ceiling_s) in [(0, 1), (1, 2), (2, 4), (3, 8), (4, 8), (40, 8)] {
            let ceiling = Duration::from_secs(ceiling_s);
            let waits: Vec<Duration> = (0..200)
                .map(|seed| {
                    let mut backoff = backoff(seed);
                    for _ in 0..try_number {
                        backoff.next(None);
                    }
                    backoff.next(None)
                })
                .collect();
            assert!(waits.iter().all(|wait| *wait <= ceiling), "try {try_number}");
            assert!(waits.iter().any(|wait| *wait > ceiling.mul_f64(0.9)), "try {try_number}");
            assert!(waits.iter().any(|wait| *wait < ceiling.mul_f64(0.1)), "try {try_number}");
        }
    }

    #[test]
    fn the_wish_of_the_sink_wins_within_reason() {
        let mut backoff = backoff(1);
        assert_eq!(backoff.next(Some(Duration::from_secs(90))), Duration::from_secs(90));
        assert_eq!(backoff.next(Some(Duration::from_secs(1 << 40))), ASKED_MAX);
    }
}
