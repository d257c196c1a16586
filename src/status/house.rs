//! What the status server shows: snapshots of the rooms below, put into words. Reads only, and never waits.

use std::sync::Arc;
use std::time::Instant;

use serde_json::{Value, json};

use super::{House, NoReload};
use crate::budget::Budget;
use crate::clock::Clock;
use crate::dispatcher::lane::{HealthView, Mood};
use crate::ledger::BooksView;
use crate::metrics::Registry;
use crate::monitors::container::view::View as EngineView;
use crate::monitors::file::view::FilesView;
use crate::stats::StatsView;
use crate::tasks::{Table, TaskView};

/// One agent, as its rooms describe themselves.
pub struct Rooms {
    pub table: Arc<Table>,
    pub metrics: Arc<Registry>,
    pub books: BooksView,
    pub healths: Vec<HealthView>,
    pub budget: Budget,
    /// `None` without a file source.
    pub files: Option<FilesView>,
    /// One per source of containers.
    pub engines: Vec<EngineView>,
    pub stats: StatsView,
    pub started: Instant,
    pub clock: Clock,
    pub reload: Box<dyn Fn() -> Result<(), NoReload> + Send + Sync>,
}

impl House for Rooms {
    fn tasks(&self) -> Vec<TaskView> {
        self.table.view()
    }

    fn metrics(&self) -> String {
        self.metrics
            .gauge("budget_used_bytes", "Bytes of chunks under way.", &[])
            .set(self.budget.used() as i64);
        self.metrics
            .gauge("budget_bytes", "Bytes of chunks that may be under way.", &[])
            .set(self.budget.capacity() as i64);
        let stuck = self.metrics.gauge("stuck_tasks", "Tasks that are busy and silent for too long.", &[]);
        stuck.set(self.table.stuck().len() as i64);
        if let Some(files) = &self.files {
            let unreadable =
                self.metrics.gauge("files_unreadable", "Files that match and could not be opened.", &[]);
            unreadable.set(files.get().unreadable as i64);
        }
        let given_up = self.metrics.gauge("given_up_bytes", "Bytes that could not be read any more.", &[]);
        given_up.set(self.books.lock().given_up as i64);
        for health in &self.healths {
            let health = health.lock();
            let resting =
                self.metrics.gauge("sink_resting", "1 while the sink is ill.", &[("sink", &health.name)]);
            resting.set(i64::from(health.mood != Mood::Well));
        }
        self.metrics.render()
    }

    fn unready(&self) -> Vec<String> {
        let stuck =
            self.table.stuck().into_iter().map(|name| format!("{name} is busy and silent for too long"));
        let books = self.books.lock().clone();
        let ill = books.ill.iter().map(|why| format!("the ledger cannot be written: {why}"));
        let waiting = books.stamping_ill.iter().map(|why| format!("files wait: {why}"));
        let resting = self.healths.iter().filter_map(|health| {
            let health = health.lock();
            let why = health.why.as_deref().unwrap_or("no reason is known");
            let spooled = match health.spooled_lines {
                0 => String::new(),
                lines => format!("; {lines} lines wait in its spool"),
            };
            (health.mood != Mood::Well).then(|| format!("the sink {} rests: {why}{spooled}", health.name))
        });
        let engines = self.engines.iter().filter_map(|view| {
            let view = view.lock().clone();
            let why = view.ill.as_ref()?;
            Some(format!("{}: the engine at {} is not well: {why}", view.source, view.engine))
        });
        stuck.chain(ill).chain(waiting).chain(resting).chain(engines).chain(self.stats.suspicions()).collect()
    }

    fn status(&self) -> Value {
        let books = self.books.lock().clone();
        let unready = self.unready();
        json!({
            "version": env!("CARGO_PKG_VERSION"),
            "uptime_ms": self.clock.now().saturating_duration_since(self.started).as_millis() as u64,
            "ready": unready.is_empty(),
            "reasons": unready,
            "budget": { "bytes": self.budget.capacity(), "used": self.budget.used() },
            "read": books.read,
            "helpers": { "alive": self.table.helpers(), "ended": self.table.helpers_ended() },
            "given_up_bytes": books.given_up,
            "sinks": books.sinks,
            "rates_per_second": self.stats.rates(),
            "leak_watch": self.stats.leak_watch(),
        })
    }

    fn history(&self) -> Value {
        self.stats.history()
    }

    fn memory(&self) -> String {
        self.stats.memory_text()
    }

    fn sources(&self) -> Value {
        let mut sources = self.files.as_ref().map_or(json!([]), |files| json!(*files.get()));
        if !self.engines.is_empty() {
            let engines: Vec<_> = self.engines.iter().map(|view| json!(**view.lock())).collect();
            sources = match sources {
                Value::Object(mut files) => {
                    files.insert("engines".into(), engines.into());
                    files.into()
                }
                _ => json!({ "engines": engines }),
            };
        }
        sources
    }

    fn sinks(&self) -> Value {
        let books = self.books.lock().clone();
        let sink = |health: &HealthView| {
            let health = health.lock().clone();
            let account = books.sinks.iter().find(|sink| sink.name == health.name);
            let for_ms = self.clock.now().saturating_duration_since(health.since).as_millis() as u64;
            json!({ "health": health, "for_ms": for_ms, "account": account })
        };
        self.healths.iter().map(sink).collect()
    }

    fn ledger(&self) -> Value {
        json!(**self.books.lock())
    }

    fn reload(&self) -> Result<(), NoReload> {
        (self.reload)()
    }
}
