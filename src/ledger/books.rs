//! The account: what became of the lines since the agent started, for people and for its own laws.
//!
//! Always true, per sink and in lines as in bytes: read = delivered + dropped + dead-lettered + kept + spooled +
//! let go + pending.

use std::sync::Arc;

use serde::Serialize;

use super::page::Page;
use super::{KeptStamp, Progress};
use crate::ack::{Count, GenerationId, Receipt, SinkId};
use crate::metrics::{Counter, Gauge, Registry};

/// The account of one sink since the agent started, and what it owes.
#[derive(Clone, Debug, Default, Serialize)]
pub struct SinkBooks {
    pub name: String,
    /// Lines that were handed to the pipeline for this sink, or that an earlier life had spooled for it.
    pub read: u64,
    pub read_bytes: u64,
    pub delivered: Count,
    pub dead_lettered: Count,
    /// Not delivered when the agent stopped, and written to the dead letters since nobody can read it again.
    pub kept: Count,
    /// Safe in the spool; counted as delivered once it was.
    pub spooled: Count,
    pub dropped: Vec<(String, Count)>,
    /// Lines that ended without an answer: read again after the next start.
    pub let_go: u64,
    pub let_go_bytes: u64,
    /// Of those, what nobody can read again: it came through a stream, and could be kept nowhere.
    pub lost: Count,
    pub pending: u64,
    pub pending_bytes: u64,
}

impl SinkBooks {
    pub fn adds_up(&self) -> bool {
        let mut settled = Count { lines: self.let_go, bytes: self.let_go_bytes };
        for count in [self.delivered, self.dead_lettered, self.kept, self.spooled] {
            settled += count;
        }
        self.dropped.iter().for_each(|(_, count)| settled += *count);
        settled += Count { lines: self.pending, bytes: self.pending_bytes };
        settled == Count { lines: self.read, bytes: self.read_bytes }
    }

    /// Lines that the spool held are delivered, or whatever else became of them. Those of an earlier life were
    /// not read in this one: they are now.
    fn leave_spool(&mut self, count: Count) {
        let (lines, bytes) = (self.spooled.lines.min(count.lines), self.spooled.bytes.min(count.bytes));
        self.spooled.lines -= lines;
        self.spooled.bytes -= bytes;
        self.read += count.lines - lines;
        self.read_bytes += count.bytes - bytes;
    }
}

/// What the ledger shows to others.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Books {
    pub read: Count,
    pub given_up: u64,
    pub unread: u64,
    /// Folders that could not be looked into, and files of an earlier life that were not.
    pub unseen: u64,
    pub sinks: Vec<SinkBooks>,
    pub generations: usize,
    /// Of all of them.
    pub kept_stamps: usize,
    /// The first hundred, those that somebody is asked for before the others.
    pub pages: Vec<GenerationView>,
    /// How many were written in this life.
    pub checkpoints: u64,
    /// What does not add up: a fault of the agent.
    pub broken_laws: Vec<String>,
    /// Why the state cannot be written, if so.
    pub ill: Option<String>,
    /// Why files wait: what is read of them could not be stamped.
    pub stamping_ill: Option<String>,
}

/// One generation, for people.
#[derive(Clone, Debug, Serialize)]
pub struct GenerationView {
    pub generation: u64,
    pub source: String,
    pub filename: Option<String>,
    /// How far this life has read it, and how far any life has.
    pub read_to: u64,
    pub known_to: u64,
    /// Where a restart would go on.
    pub position: u64,
    pub lines: u64,
    /// In bytes, of all reasons.
    pub given_up: u64,
    pub given_up_because: Vec<(String, u64)>,
    pub finished: bool,
    pub sinks: Vec<ProgressView>,
    /// Stamps that some sink has not answered for.
    pub open_stamps: usize,
    /// The first of them.
    pub stamps: Vec<KeptStamp>,
}

/// How far one sink has answered for a generation.
#[derive(Clone, Debug, Serialize)]
pub struct ProgressView {
    pub name: String,
    /// Everything below was answered for.
    pub acked_to: u64,
    /// The first ranges above that were answered for, too.
    pub acked_ahead: Vec<(u64, u64)>,
    /// Bytes that were read and are not answered for.
    pub pending: u64,
    /// It left the configuration: kept for its return, asked for nothing.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub former: bool,
}

/// Ranges and stamps that are shown of one generation: people look at the first few.
const SHOWN: usize = 8;

impl Books {
    /// Nothing is pending, unread or given up: everything was answered for.
    pub fn all_delivered(&self) -> bool {
        self.unread == 0
            && self.unseen == 0
            && self.given_up == 0
            && self.sinks.iter().all(|sink| {
                sink.pending == 0 && sink.let_go == 0 && sink.kept.lines == 0 && sink.spooled.lines == 0
            })
    }

    /// Rises with every line that was read or answered for: stands still when nothing moves.
    pub fn movement(&self) -> u64 {
        let of_sink =
            |sink: &SinkBooks| sink.read - sink.pending + sink.delivered.lines + sink.dead_lettered.lines;
        self.read.bytes + self.sinks.iter().map(of_sink).sum::<u64>()
    }

    /// Spooled by an earlier life.
    pub(super) fn carry_over(&mut self, sink: SinkId, count: Count) {
        let books = &mut self.sinks[sink.0 as usize];
        books.read += count.lines;
        books.read_bytes += count.bytes;
        books.spooled += count;
    }

    pub(super) fn owe(&mut self, sink: SinkId, count: Count, meters: &Meters) {
        let books = &mut self.sinks[sink.0 as usize];
        books.read += count.lines;
        books.read_bytes += count.bytes;
        books.pending += count.lines;
        books.pending_bytes += count.bytes;
        meters.sinks[sink.0 as usize].pending.set(books.pending as i64);
    }

    pub(super) fn owe_no_more(&mut self, sink: SinkId, count: Count, meters: &Meters) {
        let books = &mut self.sinks[sink.0 as usize];
        books.read -= count.lines;
        books.read_bytes -= count.bytes;
        books.pending -= count.lines;
        books.pending_bytes -= count.bytes;
        meters.sinks[sink.0 as usize].pending.set(books.pending as i64);
    }

    /// Enters what became of some lines.
    pub(super) fn settle(&mut self, receipt: &Receipt, meters: &Meters) {
        let sink = receipt.sink.0 as usize;
        let (books, meters, tally) = (&mut self.sinks[sink], &meters.sinks[sink], &receipt.tally);
        books.delivered += tally.delivered;
        books.dead_lettered += tally.dead_lettered;
        books.kept += tally.kept;
        books.spooled += tally.spooled;
        meters.delivered_lines.add(tally.delivered.lines);
        meters.delivered_bytes.add(tally.delivered.bytes);
        meters.dead_lettered.add(tally.dead_lettered.lines);
        for (reason, count) in &tally.dropped {
            meters.dropped.add(count.lines);
            match books.dropped.iter_mut().find(|(known, _)| **known == **reason) {
                Some((_, sum)) => *sum += *count,
                None => books.dropped.push((reason.to_string(), *count)),
            }
        }
        let total = tally.total();
        if receipt.from_spool {
            // What was not delivered stays where it is.
            return books.leave_spool(total);
        }
        let gone = receipt.not_delivered;
        books.let_go += gone.lines;
        books.let_go_bytes += gone.bytes;
        books.pending = books.pending.saturating_sub(total.lines + gone.lines);
        books.pending_bytes = books.pending_bytes.saturating_sub(total.bytes + gone.bytes);
        meters.pending.set(books.pending as i64);
    }
}

/// `names`: of the sinks, by [`SinkId`].
pub fn view(id: GenerationId, page: &Page, names: &[Arc<str>]) -> GenerationView {
    let progress = |name: &Arc<str>, progress: &Progress, former: bool| ProgressView {
        name: name.to_string(),
        acked_to: progress.low(),
        acked_ahead: progress.ahead().take(SHOWN).collect(),
        pending: progress.lacking(page.high.to),
        former,
    };
    let sinks = names.iter().zip(&*page.sinks).map(|(name, sink)| progress(name, sink, false));
    let former = page.apart().former.iter().map(|(name, sink)| progress(name, sink, true));
    GenerationView {
        generation: id.0,
        source: page.source.to_string(),
        filename: page.filename.as_ref().map(|path| path.to_string_lossy().into_owned()),
        read_to: page.read_to,
        known_to: page.high.to,
        position: page.position(),
        lines: page.high.line,
        given_up: page.apart().given_up.iter().map(|(_, bytes)| bytes).sum(),
        given_up_because: page
            .apart()
            .given_up
            .iter()
            .map(|(why, bytes)| (why.to_string(), *bytes))
            .collect(),
        finished: page.finished,
        sinks: sinks.chain(former).collect(),
        open_stamps: page.stamps.len(),
        stamps: page.stamps().take(SHOWN).copied().collect(),
    }
}

/// The series that the books move.
pub struct Meters {
    pub read_lines: Arc<Counter>,
    pub read_bytes: Arc<Counter>,
    pub read_chunks: Arc<Counter>,
    pub generations: Arc<Gauge>,
    pub finished: Arc<Gauge>,
    pub open_chunks: Arc<Gauge>,
    kept_stamps: Arc<Gauge>,
    journal_segments: Arc<Gauge>,
    journal_segments_needed: Arc<Gauge>,
    pub faults: Arc<Counter>,
    pub broken_laws: Arc<Counter>,
    /// By [`SinkId`].
    pub sinks: Vec<SinkMeters>,
}

pub struct SinkMeters {
    pub delivered_lines: Arc<Counter>,
    pub delivered_bytes: Arc<Counter>,
    pub dropped: Arc<Counter>,
    pub dead_lettered: Arc<Counter>,
    pub replayed: Arc<Counter>,
    pub pending: Arc<Gauge>,
}

impl Meters {
    /// What is counted only when the books are shown. `segments`: of the journal, all and those that are needed.
    pub fn show(&self, books: &Books, (segments, needed): (usize, usize)) {
        self.kept_stamps.set(books.kept_stamps as i64);
        self.journal_segments.set(segments as i64);
        self.journal_segments_needed.set(needed as i64);
    }

    pub fn new(names: &[Arc<str>], metrics: &Registry) -> Meters {
        let sink = |name: &Arc<str>| {
            let label: &[(&str, &str)] = &[("sink", name)];
            SinkMeters {
                delivered_lines: metrics.counter(
                    "delivered_lines_total",
                    "Lines that a sink has accepted.",
                    label,
                ),
                delivered_bytes: metrics.counter(
                    "delivered_bytes_total",
                    "Bytes of those lines in their source, line ends included.",
                    label,
                ),
                dropped: metrics.counter(
                    "dropped_lines_total",
                    "Lines that a rule of the configuration dropped.",
                    label,
                ),
                dead_lettered: metrics.counter(
                    "dead_lettered_lines_total",
                    "Lines that were refused, kept in the dead-letter file.",
                    label,
                ),
                replayed: metrics.counter(
                    "replayed_lines_total",
                    "Lines of an earlier life that were handed to a sink again, since it had not answered for them.",
                    label,
                ),
                pending: metrics.gauge(
                    "pending_lines",
                    "Lines that were read and not answered for yet.",
                    label,
                ),
            }
        };
        Meters {
            read_lines: metrics.counter("read_lines_total", "Lines that were read from all sources.", &[]),
            read_bytes: metrics.counter("read_bytes_total", "Bytes of those lines, line ends included.", &[]),
            read_chunks: metrics.counter("read_chunks_total", "Chunks in which those lines travelled.", &[]),
            generations: metrics.gauge("generations", "Generations of sources in the ledger.", &[]),
            finished: metrics.gauge(
                "generations_finished",
                "Generations that are gone and that some sink has not answered for.",
                &[],
            ),
            open_chunks: metrics.gauge("open_chunks", "Chunks that some sink has not answered for.", &[]),
            kept_stamps: metrics.gauge(
                "kept_stamps",
                "Stamps that are kept since some sink has not answered, those of earlier lives too.",
                &[],
            ),
            journal_segments: metrics.gauge(
                "journal_segments",
                "Files of the journal of stamps, each of 1 MiB.",
                &[],
            ),
            journal_segments_needed: metrics.gauge(
                "journal_segments_needed",
                "Those of them that both checkpoints have not passed yet.",
                &[],
            ),
            broken_laws: metrics.counter(
                "broken_laws_total",
                "Accounts that did not add up: a fault of the agent.",
                &[],
            ),
            faults: metrics.counter("faults_total", "Shares that were forgotten: a fault of the agent.", &[]),
            sinks: names.iter().map(sink).collect(),
        }
    }
}
