//! The `stats` thread: every five seconds it looks at the process and at every room of the house, keeps what it
//! saw for a quarter of an hour, and says so when something has grown beyond what it may. While nothing is read or
//! delivered or under way, all is within its bounds and nobody asks for what it saw, it looks every thirty. It also
//! says who is busy and silent for too long.
//!
//! ```text
//! /proc/self, gauges, counters ──▶ Sample ──┬──▶ history ──▶ rates, the ring       (/api/v1/status, /history)
//!                                           └──▶ leak watch ──▶ log, metrics, /readyz, /debug/memory
//! ```
//!
//! Always true: one wake-up per sample, and one for the first who asks in a calm time; the memory of the ring is taken at the start. It only
//! reads what others have put into gauges and views, so nobody ever waits for it longer than for a short lock.
//!
//! Not here: what may grow and how far, with the reasons (`leak.rs`); rates and the ring (`history.rs`); pages.

mod history;
mod leak;
mod process;
#[cfg(test)]
mod tests;

use std::fmt::Write;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, at, bounded, never, select};
use parking_lot::{Mutex, MutexGuard};
use serde_json::{Value, json};

use history::{Column, History, Kind};
use leak::{COUNT, PATIENCE, Reading, Sample, Suspect, THINGS, Verdict, judge};

pub use history::SAMPLES;
pub use leak::Scale;
pub use process::{Footprint, live_heap_bytes, open_descriptors};

use crate::budget::Budget;
use crate::clock::{Clock, next_tick};
use crate::deadletter::DeadLetters;
use crate::durable::{OwnFiles, Unsynced};
use crate::error::Result;
use crate::metrics::{Gauge, Registry};
use crate::monitors::Pools;
use crate::monitors::file::view::{FilesSnapshot, FilesView};
use crate::order;
use crate::tasks::{Closed, Table, Task};

/// Between two samples: short enough for a curve, long enough to cost nothing.
const SAMPLE_EVERY: Duration = Duration::from_secs(5);

/// How many times longer that is while nothing happens: to wake up is all that costs something then.
const CALM_TIMES: u32 = 6;

/// Counters that rise whenever something happens: a spool may be delivered although nothing is read.
const MOVING: [&str; 2] = ["read_bytes_total", "delivered_lines_total"];

/// Sources that `/debug/memory` lists by what they hold.
const HOLDINGS_SHOWN: usize = 20;

/// What is looked at. What a thread owns alone it tells in a gauge of the registry; what is shared is asked here.
pub struct Rooms {
    pub clock: Clock,
    pub metrics: Arc<Registry>,
    pub table: Arc<Table>,
    pub budget: Budget,
    pub pools: Pools,
    pub unsynced: Unsynced,
    pub own_files: OwnFiles,
    pub dead_letters: DeadLetters,
    /// `None` without a file source.
    pub files: Option<FilesView>,
    /// Names, in the order of the configuration.
    pub sinks: Vec<Arc<str>>,
}

/// The thread's body.
pub struct Stats {
    rooms: Rooms,
    scale: Scale,
    /// Once it is closed nothing is judged any more: those who hold things are letting go of them.
    stop: Closed,
    footprint: Box<dyn FnMut() -> Result<Footprint> + Send>,
    /// Why the last look at the process failed: said once.
    blind: Option<String>,
    every: Duration,
    /// Nothing was read or delivered since the sample before, nothing is under way, and all is within its bounds.
    is_calm: bool,
    /// What was read and delivered by then.
    moved: [Option<u64>; MOVING.len()],
    /// Somebody wants to see what is going on.
    asked: Receiver<()>,
    started: Instant,
    suspects: [Suspect; COUNT],
    view: StatsView,
}

/// What others see of it. Cheap to clone; all clones see the same.
#[derive(Clone)]
pub struct StatsView {
    shown: Arc<Mutex<Shown>>,
    ask: Sender<()>,
}

struct Shown {
    history: History,
    /// By place in [`THINGS`]: what was read last, and whether a leak is suspected.
    readings: [(Option<Reading>, bool); COUNT],
    budget: Budget,
}

impl Stats {
    pub fn new(rooms: Rooms, scale: Scale, stop: Closed) -> Stats {
        let shown = Shown {
            history: History::new(columns(&rooms.sinks)),
            readings: [(None, false); COUNT],
            budget: rooms.budget.clone(),
        };
        for thing in &THINGS {
            suspected(&rooms.metrics, thing).set(0);
        }
        let (ask, asked) = bounded(1);
        Stats {
            started: rooms.clock.now(),
            rooms,
            scale,
            stop,
            footprint: Box::new(Footprint::read),
            blind: None,
            every: SAMPLE_EVERY,
            is_calm: false,
            moved: [None; MOVING.len()],
            asked,
            suspects: [Suspect::default(); COUNT],
            view: StatsView { shown: Arc::new(Mutex::new(shown)), ask },
        }
    }

    pub fn view(&self) -> StatsView {
        self.view.clone()
    }

    /// Ends when `ended` closes.
    pub fn run(mut self, task: &Task, ended: &Closed) -> Result<()> {
        loop {
            task.doing("taking a sample");
            self.look();
            task.waits_for("the next sample");
            if !self.wait(task, ended) {
                break;
            }
        }
        task.stopping();
        Ok(())
    }

    /// For the next sample. `false`: there is none.
    fn wait(&self, task: &Task, ended: &Closed) -> bool {
        let mut is_calm = self.asked.try_recv().is_err() && self.is_calm;
        loop {
            let every = if is_calm { self.every * CALM_TIMES } else { self.every };
            // Not two samples right after each other: what is between them would pass for a rate.
            let at_tick = next_tick(task.now() + self.every / 2, every);
            let asked = if is_calm { self.asked.clone() } else { never() };
            select! {
                recv(ended.channel()) -> _ => return false,
                recv(asked) -> _ => is_calm = false,
                recv(at(at_tick)) -> _ => return true,
            }
        }
    }

    /// One sample: taken, kept, judged.
    fn look(&mut self) {
        self.rooms.table.report_silence();
        let footprint = self.footprint();
        let sample = self.sample(footprint);
        let figures = self.figures(footprint);
        let now = self.rooms.clock.now();
        let at_ms = now.saturating_duration_since(self.started).as_millis() as u64;
        let readings = THINGS.each_ref().map(|thing| thing.read(&self.scale, &sample));
        if !self.stop.is_closed() {
            self.judge(&readings);
        }
        let moved = MOVING.map(|counter| self.rooms.metrics.sum(counter));
        let is_quiet = std::mem::replace(&mut self.moved, moved) == moved;
        self.is_calm =
            is_quiet && self.rooms.budget.used() == 0 && self.suspects.iter().all(Suspect::is_within);
        let mut shown = self.view.shown.lock();
        shown.history.push(at_ms, self.rooms.clock.wall_ns() / 1_000_000, &figures);
        let suspects = self.suspects.iter().map(|suspect| suspect.is_suspected);
        for ((place, reading), is_suspected) in shown.readings.iter_mut().zip(readings).zip(suspects) {
            *place = (reading, is_suspected);
        }
    }

    fn footprint(&mut self) -> Option<Footprint> {
        match (self.footprint)() {
            Ok(footprint) => {
                self.blind = None;
                Some(footprint)
            }
            Err(cause) => {
                if self.blind.is_none() {
                    log::warn!(
                        "stats: {cause}; threads, descriptors and memory are not watched until it can"
                    );
                }
                self.blind = Some(cause.to_string());
                None
            }
        }
    }

    fn sample(&self, process: Option<Footprint>) -> Sample {
        let Rooms { metrics, table, budget, pools, unsynced, own_files, dead_letters, files, .. } =
            &self.rooms;
        let gauge = |name: &str| metrics.sum(name);
        let files = files.as_ref().map(FilesView::get);
        let of_files = |size: fn(&FilesSnapshot) -> usize| files.as_ref().map(|files| size(files) as u64);
        let (own, own_room) = own_files.len_and_room();
        let (spare, spare_most) = pools.spare_bytes_and_most();
        Sample {
            threads: process.map(|process| process.threads),
            descriptors: process.map(|process| process.descriptors),
            resident_bytes: process.map(|process| process.resident_bytes),
            tasks: Some(table.len() as u64),
            helpers: Some(table.helpers() as u64),
            containers_followed: gauge("containers_followed"),
            containers_known: gauge("containers_known"),
            containers_gone: gauge("containers_gone"),
            containers_in_line: gauge("containers_in_line"),
            files_shown: of_files(|files| files.followed),
            files_matching: of_files(|files| files.sizes.matching),
            files_gone: of_files(|files| files.sizes.gone),
            files_overdue: of_files(|files| files.sizes.overdue),
            paths: of_files(|files| files.sizes.paths),
            lineages: of_files(|files| files.sizes.lineages),
            files_in_line: of_files(|files| files.sizes.in_line),
            files_rested: of_files(|files| files.sizes.rested),
            passed_over: of_files(|files| files.passed_over),
            not_met: of_files(|files| files.sizes.not_met),
            folders: of_files(|files| files.sizes.folders),
            watches: of_files(|files| files.sizes.watches),
            complaints: of_files(|files| files.sizes.complaints),
            files_followed: gauge("files_followed"),
            files_open: gauge("files_open"),
            generations: gauge("generations"),
            generations_finished: gauge("generations_finished"),
            open_chunks: gauge("open_chunks"),
            kept_stamps: gauge("kept_stamps"),
            journal_segments: gauge("journal_segments"),
            journal_segments_needed: gauge("journal_segments_needed"),
            budget_used: Some(budget.used() as u64),
            budget_holders: Some(budget.holders() as u64),
            buffers_spare_bytes: Some(spare as u64),
            buffers_spare_most: Some(spare_most as u64),
            label_sets_bytes: gauge("label_sets_bytes"),
            outputs_open: gauge("outputs_open"),
            output_journal_segments: gauge("output_journal_segments"),
            spool_files: gauge("spool_files"),
            spool_bytes: gauge("spool_bytes"),
            spool_former: gauge("spool_former"),
            outputs_unsynced: Some(unsynced.len() as u64),
            own_files: Some(own as u64),
            own_files_room: Some(own_room as u64),
            dead_letter_bytes: Some(dead_letters.bytes()),
            status_clients: gauge("status_clients"),
            series: Some(metrics.series_count() as u64),
        }
    }

    /// In the order of [`columns`].
    fn figures(&self, process: Option<Footprint>) -> Vec<Option<u64>> {
        let metrics = &self.rooms.metrics;
        let of_sinks = self.rooms.sinks.iter().flat_map(|name| {
            ["delivered_lines_total", "delivered_bytes_total", "pending_lines"]
                .map(|series| metrics.value(series, &[("sink", name)]))
        });
        let of_agent = [
            process.map(|process| process.threads),
            process.map(|process| process.descriptors),
            process.map(|process| process.resident_bytes),
            metrics.sum("read_lines_total"),
            metrics.sum("read_bytes_total"),
            Some(self.rooms.budget.used() as u64),
        ];
        of_agent.into_iter().chain(of_sinks).collect()
    }

    fn judge(&mut self, readings: &[Option<Reading>; COUNT]) {
        let metrics = &self.rooms.metrics;
        for ((thing, reading), suspect) in THINGS.iter().zip(readings).zip(&mut self.suspects) {
            let Some(reading) = reading else { continue };
            let labels = [("what", thing.what)];
            metrics
                .gauge("watched", "What can grow, as the leak watch saw it last.", &labels)
                .set(reading.value as i64);
            metrics
                .gauge("watched_bound", "Above it a leak is suspected.", &labels)
                .set(reading.bound as i64);
            let (words, place) = (thing.words(), thing.place);
            match judge(suspect, *reading) {
                None => continue,
                Some(Verdict::Grew { from, reading: Reading { value, bound } }) => {
                    let from = from.map_or("the start".to_owned(), |from| from.to_string());
                    log::warn!(
                        "stats: {words} grew from {from} to {value}, and were above their bound {bound} in \
                         {PATIENCE} samples: something leaks, or the bound is wrong; {place}"
                    );
                }
                Some(Verdict::Back { reading: Reading { value, bound } }) => {
                    log::info!("stats: {words} are back at {value}, within their bound {bound}");
                }
            }
            suspected(metrics, thing).set(i64::from(suspect.is_suspected));
        }
    }
}

fn suspected(metrics: &Registry, thing: &leak::Thing) -> Arc<Gauge> {
    let help = "1 while something is above its bound; the log says what it means.";
    metrics.gauge("leak_suspected", help, &[("what", thing.what)])
}

/// Of the history; [`Stats::figures`] fills them.
fn columns(sinks: &[Arc<str>]) -> Vec<Column> {
    let column = |name, unit, kind| Column { name, unit, kind, sink: None };
    let of_agent = [
        column("threads", "threads", Kind::Gauge),
        column("descriptors", "descriptors", Kind::Gauge),
        column("resident_bytes", "bytes", Kind::Gauge),
        column("read_lines", "lines", Kind::Counter),
        column("read_bytes", "bytes", Kind::Counter),
        column("budget_used_bytes", "bytes", Kind::Gauge),
    ];
    let of_sink = |sink: &Arc<str>| {
        [
            column("delivered_lines", "lines", Kind::Counter),
            column("delivered_bytes", "bytes", Kind::Counter),
            column("pending_lines", "lines", Kind::Gauge),
        ]
        .map(|column| Column { sink: Some(sink.clone()), ..column })
    };
    of_agent.into_iter().chain(sinks.iter().flat_map(of_sink)).collect()
}

impl StatsView {
    /// Whoever looks shall see what happens while it looks.
    fn asked_for(&self) -> MutexGuard<'_, Shown> {
        let _ = self.ask.try_send(()); // one slot: who has asked before has asked for us too
        self.shown.lock()
    }

    /// Lines and bytes per second, over 10 s, 1 min and 5 min.
    pub fn rates(&self) -> Value {
        self.asked_for().history.rates()
    }

    /// The last fifteen minutes, column by column.
    pub fn history(&self) -> Value {
        self.asked_for().history.show()
    }

    /// Everything that is watched, with its bound.
    pub fn leak_watch(&self) -> Value {
        let readings = self.asked_for().readings;
        let known = THINGS.iter().zip(readings).filter_map(|(thing, (reading, suspected))| {
            let Reading { value, bound } = reading?;
            let what = thing.what;
            Some(json!({ "what": what, "value": value, "bound": bound, "suspected": suspected, "place": thing.place }))
        });
        known.collect()
    }

    /// For `/readyz`: a sentence for each suspicion.
    pub fn suspicions(&self) -> Vec<String> {
        let readings = self.shown.lock().readings;
        let suspected = THINGS.iter().zip(readings).filter_map(|(thing, (reading, suspected))| {
            let Reading { value, bound } = reading.filter(|_| suspected)?;
            Some(format!("degraded: {} {value} above their bound {bound}", thing.words()))
        });
        suspected.collect()
    }

    /// For `/debug/memory`: who holds the budget, and how large everything is that can grow.
    pub fn memory_text(&self) -> String {
        let (readings, budget) = {
            let shown = self.asked_for();
            (shown.readings, shown.budget.clone())
        };
        let mut text = format!("budget: {} of {} bytes used\n", budget.used(), budget.capacity());
        for holding in budget.holdings(HOLDINGS_SHOWN) {
            let filename = holding.filename.as_deref().unwrap_or("-");
            let _ = writeln!(text, "{:>12}  {}  {filename}", holding.bytes, holding.source);
        }
        let mut known: Vec<(&str, Reading)> = THINGS
            .iter()
            .zip(readings)
            .filter_map(|(thing, (reading, _))| Some((thing.what, reading?)))
            .collect();
        order::sort_by_key(&mut known, |(_, reading)| std::cmp::Reverse(reading.value));
        let (every, calm) = (SAMPLE_EVERY.as_secs(), (SAMPLE_EVERY * CALM_TIMES).as_secs());
        let _ = writeln!(
            text,
            "\n{:>12}  {:>12}  what, the largest first; a sample every {every} s, or {calm} while nothing happens",
            "sampled", "bound"
        );
        for (what, Reading { value, bound }) in known {
            let _ = writeln!(text, "{value:>12}  {bound:>12}  {what}");
        }
        text
    }
}
