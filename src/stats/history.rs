//! The last fifteen minutes, in memory of a fixed size, and the rates that follow from them. Pure.
//!
//! A ring of rows, one per sample; a row has one figure per column. Counters are kept as they are, so that a rate
//! is the difference of two rows, whatever came in between, and a row that was lost costs no accuracy.

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};

/// What is shown.
const SPAN: Duration = Duration::from_secs(15 * 60);

/// At one sample in five seconds: there are fewer while nothing happens.
pub const SAMPLES: usize = 180;

/// Over which times rates are shown.
const WINDOWS: [(&str, Duration); 3] =
    [("10s", Duration::from_secs(10)), ("1m", Duration::from_secs(60)), ("5m", Duration::from_secs(300))];

/// Samples are taken at ticks, now and then some milliseconds late: one that is as old as a window counts.
const LATE_MAX: Duration = Duration::from_secs(1);

/// What could not be measured. No figure of ours comes near it.
const UNKNOWN: u64 = u64::MAX;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Only rises: it has a rate.
    Counter,
    Gauge,
}

/// What the figures at one place of every row mean.
#[derive(Clone, Debug)]
pub struct Column {
    pub name: &'static str,
    pub unit: &'static str,
    pub kind: Kind,
    /// Of this sink; `None`: of the agent as a whole.
    pub sink: Option<Arc<str>>,
}

pub struct History {
    columns: Vec<Column>,
    /// Rows of `1 + columns` figures, each beginning with its time: milliseconds since the agent started, by the
    /// clock that never goes back.
    ring: Box<[u64]>,
    /// How many rows were ever taken in.
    taken: u64,
    /// The wall clock at the last row, in milliseconds since 1970.
    last_unix_ms: i64,
}

impl History {
    /// All memory that it will ever use is taken here.
    pub fn new(columns: Vec<Column>) -> History {
        let ring = vec![UNKNOWN; SAMPLES * (1 + columns.len())].into();
        History { columns, ring, taken: 0, last_unix_ms: 0 }
    }

    /// `figures`: one per column, `None` where nothing is known. The oldest row makes room.
    pub fn push(&mut self, at_ms: u64, unix_ms: i64, figures: &[Option<u64>]) {
        assert_eq!(figures.len(), self.columns.len(), "one figure per column");
        let width = self.width();
        let start = (self.taken % SAMPLES as u64) as usize * width;
        let row = &mut self.ring[start..start + width];
        row[0] = at_ms;
        for (place, figure) in row[1..].iter_mut().zip(figures) {
            *place = figure.unwrap_or(UNKNOWN);
        }
        self.taken += 1;
        self.last_unix_ms = unix_ms;
    }

    fn width(&self) -> usize {
        1 + self.columns.len()
    }

    /// The oldest first.
    fn rows(&self) -> impl DoubleEndedIterator<Item = &[u64]> {
        let width = self.width();
        let row = move |number: u64| {
            let start = (number % SAMPLES as u64) as usize * width;
            &self.ring[start..start + width]
        };
        (self.taken.saturating_sub(SAMPLES as u64)..self.taken).map(row)
    }

    /// Per second, over the last `window`, or over what there is of it, or since the sample before if that is longer ago.
    /// `None` before the second sample.
    fn rate(&self, column: usize, window: Duration) -> Option<f64> {
        let last = self.rows().next_back()?;
        let since = last[0].saturating_sub((window + LATE_MAX).as_millis() as u64);
        let known = |row: &&[u64]| row[1 + column] != UNKNOWN;
        // Samples may be further apart than the window is long.
        let before = self.rows().rev().skip(1).find(known).or(Some(last))?;
        let since = since.min(before[0]);
        let first = self.rows().find(|row| row[0] >= since && known(row))?;
        let (new, old) = (last[1 + column], first[1 + column]);
        let elapsed_s = last[0].saturating_sub(first[0]) as f64 / 1000.0;
        (new != UNKNOWN && elapsed_s > 0.0).then(|| new.saturating_sub(old) as f64 / elapsed_s)
    }

    /// `{ "read_lines": { "10s": 1.5, "1m": …, "5m": … }, "sinks": { "loki": { "delivered_lines": … } } }`: per
    /// second; `null` while there are not two samples.
    pub fn rates(&self) -> Value {
        let (mut rates, mut sinks) = (json!({}), json!({}));
        for (at, column) in self.columns.iter().enumerate().filter(|(_, column)| column.kind == Kind::Counter)
        {
            let mut windows = json!({});
            for (name, window) in WINDOWS {
                windows[name] = json!(self.rate(at, window).map(|rate| (rate * 1000.0).round() / 1000.0));
            }
            match &column.sink {
                None => rates[column.name] = windows,
                Some(sink) => sinks[&**sink][column.name] = windows,
            }
        }
        rates["sinks"] = sinks;
        rates
    }

    /// The last quarter of an hour, column by column, the oldest first; `time` is reckoned back from the last sample, so
    /// it rises steadily even if the wall clock was set meanwhile.
    pub fn show(&self) -> Value {
        let last_ms = self.rows().next_back().map_or(0, |row| row[0]);
        let shown = || self.rows().filter(|row| row[0] + SPAN.as_millis() as u64 > last_ms);
        let unix_ms = |row: &[u64]| self.last_unix_ms - last_ms.saturating_sub(row[0]) as i64;
        let time = json!({
            "name": "time", "unit": "milliseconds since 1970", "kind": "time",
            "values": shown().map(unix_ms).collect::<Vec<_>>(),
        });
        let columns = self.columns.iter().enumerate().map(|(at, column)| {
            let figure = |row: &[u64]| Some(row[1 + at]).filter(|figure| *figure != UNKNOWN);
            json!({
                "name": column.name, "unit": column.unit, "sink": column.sink.as_deref(),
                "kind": if column.kind == Kind::Counter { "counter" } else { "gauge" },
                "values": shown().map(figure).collect::<Vec<_>>(),
            })
        });
        json!({ "samples_max": SAMPLES, "columns": std::iter::once(time).chain(columns).collect::<Vec<_>>() })
    }

    /// Of the ring, in bytes.
    #[cfg(test)]
    fn ring_bytes(&self) -> usize {
        size_of_val(&*self.ring)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn column(name: &'static str, kind: Kind, sink: Option<&str>) -> Column {
        Column { name, unit: "lines", kind, sink: sink.map(Into::into) }
    }

    fn history() -> History {
        History::new(vec![
            column("read_lines", Kind::Counter, None),
            column("budget_used", Kind::Gauge, None),
            column("delivered_lines", Kind::Counter, Some("loki")),
        ])
    }

    /// Samples five seconds apart, of a counter: the rates over 10 s, 1 min and 5 min.
    fn check(counter: &[Option<u64>], expected: [Option<f64>; 3]) {
        let mut history = history();
        for (number, figure) in counter.iter().enumerate() {
            history.push(number as u64 * 5000, 0, &[*figure, Some(1), *figure]);
        }
        let rates = history.rates();
        for ((name, _), expected) in WINDOWS.iter().zip(expected) {
            assert_eq!(rates["read_lines"][*name].as_f64(), expected, "{name} of {counter:?}");
            assert_eq!(rates["sinks"]["loki"]["delivered_lines"][*name].as_f64(), expected);
        }
        assert!(rates.get("budget_used").is_none(), "a gauge has no rate");
    }

    #[test]
    fn rates() {
        check(&[], [None; 3]);
        check(&[Some(7)], [None; 3]);
        check(&[Some(0), Some(50)], [Some(10.0); 3]);
        check(&[Some(0), Some(50), Some(50)], [Some(5.0); 3]);
        check(&[Some(0), Some(50), Some(50), Some(50)], [Some(0.0), Some(3.333), Some(3.333)]);
        check(&[None, Some(0), Some(50)], [Some(10.0); 3]);
        check(&[Some(0), Some(50), None], [None; 3]);
        check(&[Some(50), Some(40)], [Some(0.0); 3]); // a chunk was taken back
        let minute: Vec<_> = (0..=12).map(|sample| Some(sample * 5)).collect();
        check(&[vec![Some(0); 60], minute].concat(), [Some(1.0), Some(1.0), Some(0.2)]);
    }

    /// Whoever is woken up at a tick is a millisecond late, now more and now less.
    #[test]
    fn a_sample_that_is_as_old_as_a_window_counts_if_it_was_a_moment_late() {
        let check = |window: &str, rows: [(u64, u64); 3], expected: f64| {
            let mut history = history();
            for (at_ms, count) in rows {
                history.push(at_ms, 0, &[Some(count), Some(1), None]);
            }
            let rate = history.rates()["read_lines"][window].as_f64().unwrap();
            assert!((rate - expected).abs() < expected / 100.0, "{window}: {rate}");
        };
        check("1m", [(0, 0), (30_000, 600), (60_001, 600)], 10.0);
        check("10s", [(0, 0), (5_000, 500), (10_001, 500)], 50.0);
    }

    #[test]
    fn samples_that_are_further_apart_than_a_window_still_have_a_rate_and_old_ones_are_not_shown() {
        let mut history = history();
        for number in 0..100 {
            history.push(number * 15_000, 0, &[Some(number * 30), Some(1), None]);
        }
        assert_eq!(history.rates()["read_lines"], json!({ "10s": 2.0, "1m": 2.0, "5m": 2.0 }));
        let shown = history.show();
        assert_eq!(shown["columns"][1]["values"].as_array().unwrap()[0], json!(40 * 30));
        assert_eq!(shown["columns"][0]["values"].as_array().unwrap().len(), 60);
    }

    #[test]
    fn the_ring_keeps_the_last_quarter_of_an_hour_in_the_memory_of_the_first_sample() {
        let mut history = history();
        let before = history.ring_bytes();
        for number in 0..1000 {
            history.push(number * 5000, 1_000_000 + number as i64 * 5000, &[Some(number), None, Some(0)]);
        }
        assert_eq!(history.ring_bytes(), before);
        assert_eq!(before, SAMPLES * 4 * size_of::<u64>());
        let shown = history.show();
        let column = |at: usize| shown["columns"][at]["values"].as_array().unwrap().clone();
        assert_eq!((column(0).len(), column(1).len()), (SAMPLES, SAMPLES));
        assert_eq!((&column(1)[0], &column(1)[SAMPLES - 1]), (&json!(820), &json!(999)));
        assert_eq!((&column(0)[0], &column(2)[0]), (&json!(1_000_000 + 820 * 5000), &Value::Null));
    }

    #[test]
    fn a_wall_clock_that_was_set_back_bends_no_curve() {
        let mut history = history();
        history.push(0, 9_000_000, &[Some(0); 3]);
        history.push(5000, 1_000_000, &[Some(0); 3]);
        assert_eq!(history.show()["columns"][0]["values"], json!([995_000, 1_000_000]));
    }
}
