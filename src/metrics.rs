//! Counters and gauges, and their Prometheus text.
//!
//! A series is made once, at the start, by the room that moves it, and handed around as an `Arc`: moving it is
//! one atomic add. Labels come from the configuration only (sinks, sources), so the number of series is bounded.

use std::fmt::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};

use parking_lot::Mutex;

/// Only rises.
#[derive(Default, Debug)]
pub struct Counter(AtomicU64);

impl Counter {
    pub fn add(&self, n: u64) {
        self.0.fetch_add(n, Ordering::Relaxed);
    }
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Rises and falls.
#[derive(Default, Debug)]
pub struct Gauge(AtomicI64);

impl Gauge {
    pub fn set(&self, value: i64) {
        self.0.store(value, Ordering::Relaxed);
    }
    pub fn add(&self, n: i64) {
        self.0.fetch_add(n, Ordering::Relaxed);
    }
    pub fn get(&self) -> i64 {
        self.0.load(Ordering::Relaxed)
    }
}

enum Value {
    Counter(Arc<Counter>),
    Gauge(Arc<Gauge>),
}

impl Value {
    /// A gauge below 0 is taken for 0: nothing that is counted here can be less.
    fn get(&self) -> u64 {
        match self {
            Value::Counter(counter) => counter.get(),
            Value::Gauge(gauge) => gauge.get().max(0) as u64,
        }
    }
}

struct Family {
    name: &'static str,
    help: &'static str,
    series: Vec<(String, Value)>,
}

/// All series of one agent. One per agent, so that tests can run several in a process.
#[derive(Default)]
pub struct Registry(Mutex<Vec<Family>>);

/// Every name starts with it.
pub const PREFIX: &str = "log_capturer_";

impl Registry {
    /// `name` without the prefix, with Prometheus' `_total` ending. Asking twice for the same series gives the
    /// same counter.
    pub fn counter(&self, name: &'static str, help: &'static str, labels: &[(&str, &str)]) -> Arc<Counter> {
        self.series(
            name,
            help,
            labels,
            || Value::Counter(Arc::default()),
            |value| match value {
                Value::Counter(counter) => Some(counter.clone()),
                Value::Gauge(_) => None,
            },
        )
    }

    pub fn gauge(&self, name: &'static str, help: &'static str, labels: &[(&str, &str)]) -> Arc<Gauge> {
        self.series(
            name,
            help,
            labels,
            || Value::Gauge(Arc::default()),
            |value| match value {
                Value::Gauge(gauge) => Some(gauge.clone()),
                Value::Counter(_) => None,
            },
        )
    }

    /// Shows a counter that outlives this registry.
    pub fn adopt(
        &self,
        name: &'static str,
        help: &'static str,
        labels: &[(&str, &str)],
        counter: &Arc<Counter>,
    ) {
        self.series(name, help, labels, || Value::Counter(counter.clone()), |_| Some(()));
    }

    /// What the series of this name and with these labels says now. `None`: nobody has made it.
    pub fn value(&self, name: &str, labels: &[(&str, &str)]) -> Option<u64> {
        let key = label_text(labels);
        let families = self.0.lock();
        let family = families.iter().find(|family| family.name == name)?;
        family.series.iter().find(|(known, _)| *known == key).map(|(_, value)| value.get())
    }

    /// The sum over all series of this name. `None`: nobody has made one.
    pub fn sum(&self, name: &str) -> Option<u64> {
        let families = self.0.lock();
        let family = families.iter().find(|family| family.name == name)?;
        Some(family.series.iter().map(|(_, value)| value.get()).sum())
    }

    /// How many series there are.
    pub fn series_count(&self) -> usize {
        self.0.lock().iter().map(|family| family.series.len()).sum()
    }

    fn series<T>(
        &self,
        name: &'static str,
        help: &'static str,
        labels: &[(&str, &str)],
        make: impl FnOnce() -> Value,
        open: impl Fn(&Value) -> Option<T>,
    ) -> T {
        let key = label_text(labels);
        let mut families = self.0.lock();
        let at = families.iter().position(|family| family.name == name).unwrap_or_else(|| {
            families.push(Family { name, help, series: Vec::new() });
            families.len() - 1
        });
        let family = &mut families[at];
        let at = family.series.iter().position(|(known, _)| *known == key).unwrap_or_else(|| {
            family.series.push((key, make()));
            family.series.len() - 1
        });
        open(&family.series[at].1).unwrap_or_else(|| panic!("{name} is both a counter and a gauge"))
    }

    /// Prometheus text exposition format 0.0.4:
    /// <https://prometheus.io/docs/instrumenting/exposition_formats/#text-based-format>.
    pub fn render(&self) -> String {
        let mut text = String::new();
        for Family { name, help, series } in self.0.lock().iter() {
            let kind = if matches!(series[0].1, Value::Counter(_)) { "counter" } else { "gauge" };
            let _ = writeln!(text, "# HELP {PREFIX}{name} {help}\n# TYPE {PREFIX}{name} {kind}");
            for (labels, value) in series {
                let _ = match value {
                    Value::Counter(counter) => writeln!(text, "{PREFIX}{name}{labels} {}", counter.get()),
                    Value::Gauge(gauge) => writeln!(text, "{PREFIX}{name}{labels} {}", gauge.get()),
                };
            }
        }
        text
    }
}

fn label_text(labels: &[(&str, &str)]) -> String {
    if labels.is_empty() {
        return String::new();
    }
    let pairs: Vec<String> = labels
        .iter()
        .map(|(name, value)| {
            let value = value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
            format!("{name}=\"{value}\"")
        })
        .collect();
    format!("{{{}}}", pairs.join(","))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_stands_in_it_can_be_asked_for() {
        let registry = Registry::default();
        registry.counter("lines_total", "Lines.", &[("sink", "a")]).add(3);
        registry.counter("lines_total", "Lines.", &[("sink", "b")]).add(4);
        registry.gauge("depth", "Depth.", &[]).set(-1);
        assert_eq!(registry.value("lines_total", &[("sink", "b")]), Some(4));
        assert_eq!(registry.value("lines_total", &[("sink", "c")]), None);
        assert_eq!((registry.sum("lines_total"), registry.sum("depth")), (Some(7), Some(0)));
        assert_eq!((registry.sum("lines"), registry.series_count()), (None, 3));
    }

    #[test]
    fn text_follows_the_exposition_format() {
        let registry = Registry::default();
        registry.counter("lines_total", "Lines.", &[("sink", "a\"b")]).add(3);
        registry.counter("lines_total", "Lines.", &[("sink", "a\"b")]).add(1);
        registry.gauge("up", "Alive.", &[]).set(1);
        assert_eq!(
            registry.render(),
            "# HELP log_capturer_lines_total Lines.\n# TYPE log_capturer_lines_total counter\n\
             log_capturer_lines_total{sink=\"a\\\"b\"} 4\n\
             # HELP log_capturer_up Alive.\n# TYPE log_capturer_up gauge\nlog_capturer_up 1\n"
        );
    }
}
