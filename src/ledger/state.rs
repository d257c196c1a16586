//! The books themselves: what notes do to progress and account. Pure, but for the counters it moves.
//!
//! Always true: per generation and sink, the lines read for it are the lines settled, let go, or pending. A
//! finished generation is forgotten once every sink has answered; its account lives on in the totals.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use serde::Serialize;

use super::checkpoint::{AnyPath, OwnFile, Saved, SavedGeneration};
use super::{Identity, Known, Note, Opened, Progress, Restored, Stamp};
use crate::ack::{Count, GenerationId, Receipt, SinkId, Tally};
use crate::durable::OwnFiles;
use crate::error::{Error, Result};
use crate::metrics::{Counter, Gauge, Registry};

/// One generation's page.
struct Page {
    source: Arc<str>,
    filename: Option<PathBuf>,
    identity: Option<Identity>,
    lineage: u64,
    /// Everything below was handed to the pipeline.
    read_to: u64,
    next_line: u64,
    continues: bool,
    given_up: Vec<(Arc<str>, u64)>,
    /// Of the sinks of the configuration, by [`SinkId`].
    sinks: Vec<Progress>,
    /// Of sinks that left the configuration: kept for their return, and without a say.
    former: Vec<(Arc<str>, Progress)>,
    /// Chunks that somebody has not answered for, by their start.
    open: BTreeMap<u64, OpenChunk>,
    finished: bool,
    unread: u64,
}

struct OpenChunk {
    end: u64,
    first_line: u64,
    lines: u64,
    continues: bool,
    waiting_for: u32,
}

impl Page {
    /// The least over the sinks.
    fn position(&self) -> u64 {
        self.sinks.iter().map(Progress::low).min().unwrap_or(self.read_to)
    }

    /// The line at the position, and whether it goes on where another was cut.
    fn line(&self) -> (u64, bool) {
        let position = self.position();
        match self.open.range(position..).next() {
            Some((_, chunk)) => (chunk.first_line, chunk.continues),
            None => (self.next_line, self.continues),
        }
    }

    fn is_settled(&self) -> bool {
        self.open.is_empty() && self.position() >= self.read_to
    }
}

/// The account of one sink since the agent started, and what it owes.
#[derive(Clone, Debug, Default, Serialize)]
pub struct SinkBooks {
    pub name: String,
    /// Lines that were handed to the pipeline for this sink.
    pub read: u64,
    pub delivered: Count,
    pub dead_lettered: Count,
    /// Not delivered when the agent stopped, and written to the dead letters since nobody can read it again.
    pub kept: Count,
    pub spooled: Count,
    pub dropped: Vec<(String, Count)>,
    /// Ended without an answer: read again after the next start.
    pub let_go: u64,
    pub pending: u64,
}

/// What the ledger shows to others.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Books {
    pub read: Count,
    pub given_up: u64,
    pub unread: u64,
    /// Folders that could not be looked into.
    pub unseen: u64,
    pub sinks: Vec<SinkBooks>,
    pub generations: usize,
    /// The first thousand.
    pub pages: Vec<GenerationView>,
    /// Why the state cannot be written, if so.
    pub ill: Option<String>,
}

#[derive(Clone, Debug, Serialize)]
pub struct GenerationView {
    pub generation: u64,
    pub source: String,
    pub filename: Option<String>,
    pub read_to: u64,
    pub position: u64,
    pub lines: u64,
    pub given_up: u64,
    pub finished: bool,
}

impl Books {
    /// Nothing is pending, unread or given up: everything was answered for.
    pub fn all_delivered(&self) -> bool {
        self.unread == 0
            && self.unseen == 0
            && self.given_up == 0
            && self.sinks.iter().all(|sink| sink.pending == 0 && sink.let_go == 0 && sink.kept.lines == 0)
    }

    /// Rises with every line that was read or answered for: stands still when nothing moves.
    pub fn movement(&self) -> u64 {
        self.read.bytes + self.sinks.iter().map(|sink| sink.read - sink.pending).sum::<u64>()
    }
}

struct Meters {
    read_lines: Arc<Counter>,
    read_bytes: Arc<Counter>,
    generations: Arc<Gauge>,
    finished: Arc<Gauge>,
    open_chunks: Arc<Gauge>,
    faults: Arc<Counter>,
    sinks: Vec<SinkMeters>,
}

struct SinkMeters {
    delivered_lines: Arc<Counter>,
    delivered_bytes: Arc<Counter>,
    dropped: Arc<Counter>,
    dead_lettered: Arc<Counter>,
    pending: Arc<Gauge>,
}

pub struct State {
    names: Vec<Arc<str>>,
    pages: BTreeMap<GenerationId, Page>,
    last_stamp_ns: i64,
    next_generation: u64,
    books: Books,
    meters: Meters,
}

/// Pages that are shown; the totals count them all.
const PAGES_SHOWN: usize = 1000;

impl State {
    /// `names`: the sinks of the configuration, by [`SinkId`]. One that is new here starts at the position of
    /// the others.
    pub fn new(saved: Saved, names: &[Arc<str>], metrics: &Registry) -> State {
        let (files, streams): (Vec<_>, Vec<_>) =
            saved.generations.into_iter().partition(|saved| saved.filename.is_some());
        // Nobody can go on with a stream of an earlier life, nor ever finish its page.
        for stream in streams {
            log::warn!("{}: what the last life had taken from it and not delivered is lost", stream.source);
        }
        let pages = files.into_iter().map(|saved| page(saved, names)).collect();
        let sinks = names.iter().map(|name| SinkBooks { name: name.to_string(), ..SinkBooks::default() });
        State {
            names: names.to_vec(),
            pages,
            last_stamp_ns: saved.last_stamp_ns,
            next_generation: saved.next_generation,
            books: Books { sinks: sinks.collect(), ..Books::default() },
            meters: Meters::new(names, metrics),
        }
    }

    pub fn restored(&self, first_start: bool) -> Restored {
        let known = self.pages.iter().map(|(id, page)| {
            let (line, continues) = page.line();
            Known {
                generation: *id,
                source: page.source.clone(),
                filename: page.filename.clone(),
                identity: page.identity,
                lineage: page.lineage,
                position: page.position(),
                before: None,
                cursor: None,
                line,
                continues,
                progress: page.sinks.clone(),
            }
        });
        Restored {
            known: known.collect(),
            last_stamp_ns: self.last_stamp_ns,
            next_generation: self.next_generation,
            first_start,
        }
    }

    /// Errors are faults of ours: a note about something that is not there, a share that was forgotten.
    pub fn apply(&mut self, note: Note, aborting: bool) -> Result<()> {
        match note {
            Note::Opened(opened) => self.opened(*opened),
            Note::Identified { generation, identity } => self.page(generation)?.identity = Some(identity),
            Note::Read(stamp) => self.read(stamp)?,
            Note::TakenBack { generation } => self.taken_back(generation)?,
            Note::Receipt(receipt) => self.receipt(receipt, aborting)?,
            Note::GaveUp { generation, upto, why } => self.gave_up(generation, upto, why)?,
            Note::Finished { generation } => {
                if !std::mem::replace(&mut self.page(generation)?.finished, true) {
                    self.meters.finished.add(1);
                }
                self.forget_if_over(generation);
            }
            Note::Unseen { places } => self.books.unseen = places,
            Note::Unread { generation, bytes } => {
                let page = self.page(generation)?;
                let before = std::mem::replace(&mut page.unread, bytes);
                self.books.unread = self.books.unread - before + bytes;
            }
        }
        Ok(())
    }

    fn page(&mut self, generation: GenerationId) -> Result<&mut Page> {
        let missing =
            || Error::new(format!("a note about generation {}, which is not in the books", generation.0));
        self.pages.get_mut(&generation).ok_or_else(missing)
    }

    fn opened(&mut self, opened: Opened) {
        self.next_generation = self.next_generation.max(opened.generation.0 + 1);
        let page = Page {
            source: opened.source,
            filename: opened.filename,
            identity: opened.identity,
            lineage: opened.lineage,
            read_to: opened.start,
            next_line: 0,
            continues: false,
            given_up: Vec::new(),
            sinks: vec![Progress::starting_at(opened.start); self.names.len()],
            former: Vec::new(),
            open: BTreeMap::new(),
            finished: false,
            unread: 0,
        };
        self.pages.insert(opened.generation, page);
        self.meters.generations.set(self.pages.len() as i64);
    }

    fn read(&mut self, stamp: Stamp) -> Result<()> {
        let page = self.page(stamp.generation)?;
        if stamp.start != page.read_to {
            return Err(Error::new(format!(
                "generation {}: read from {} although it was read to {}",
                stamp.generation.0, stamp.start, page.read_to
            )));
        }
        let count = Count { lines: stamp.lines, bytes: stamp.end - stamp.start };
        page.read_to = stamp.end;
        page.next_line = stamp.first_line + stamp.lines;
        page.continues = stamp.cut;
        let waiting_for = stamp.sinks.iter().count() as u32;
        if waiting_for > 0 {
            let (end, first_line, lines, continues) =
                (stamp.end, stamp.first_line, stamp.lines, stamp.continues);
            page.open.insert(stamp.start, OpenChunk { end, first_line, lines, continues, waiting_for });
            self.meters.open_chunks.add(1);
        }
        self.last_stamp_ns = self.last_stamp_ns.max(stamp.base_ns + stamp.lines as i64);
        self.books.read += count;
        self.meters.read_lines.add(count.lines);
        self.meters.read_bytes.add(count.bytes);
        for sink in stamp.sinks.iter() {
            self.owe(sink, stamp.lines as i64);
            self.books.sinks[sink.0 as usize].read += stamp.lines;
        }
        Ok(())
    }

    fn owe(&mut self, sink: SinkId, lines: i64) {
        let books = &mut self.books.sinks[sink.0 as usize];
        books.pending = books.pending.saturating_add_signed(lines);
        self.meters.sinks[sink.0 as usize].pending.set(books.pending as i64);
    }

    /// Undoes the last stamp: its chunk never left the monitor, which is about to end.
    fn taken_back(&mut self, generation: GenerationId) -> Result<()> {
        let page = self.page(generation)?;
        let Some((start, chunk)) = page.open.pop_last() else {
            return Err(Error::new(format!("generation {}: took back what was not read", generation.0)));
        };
        let count = Count { lines: chunk.lines, bytes: chunk.end - start };
        page.read_to = start;
        page.next_line = chunk.first_line;
        page.continues = chunk.continues;
        let lacking: Vec<SinkId> = (0..page.sinks.len())
            .filter(|at| !page.sinks[*at].contains(start))
            .map(|at| SinkId(at as u8))
            .collect();
        self.meters.open_chunks.add(-1);
        self.books.read.lines -= count.lines;
        self.books.read.bytes -= count.bytes;
        for sink in lacking {
            self.owe(sink, -(count.lines as i64));
            self.books.sinks[sink.0 as usize].read -= count.lines;
        }
        Ok(())
    }

    fn receipt(&mut self, receipt: Receipt, aborting: bool) -> Result<()> {
        let sink = receipt.sink.0 as usize;
        let name = self.names[sink].clone();
        self.settle(sink, &receipt.tally, receipt.not_delivered);
        let page = self.page(receipt.generation)?;
        receipt.answered().for_each(|range| page.sinks[sink].add(range));
        if let Some(chunk) = page.open.get_mut(&receipt.range.start)
            && receipt.undelivered.is_empty()
        {
            chunk.waiting_for -= 1;
            if chunk.waiting_for == 0 {
                page.open.remove(&receipt.range.start);
                self.meters.open_chunks.add(-1);
            }
        }
        if receipt.fault && !aborting {
            self.meters.faults.add(1);
            return Err(Error::new(format!(
                "{} lines of generation {} were forgotten on the way to {name}; they are read again after the next start",
                receipt.not_delivered.lines, receipt.generation.0
            )));
        }
        self.forget_if_over(receipt.generation);
        Ok(())
    }

    fn settle(&mut self, sink: usize, tally: &Tally, not_delivered: Count) {
        let (books, meters) = (&mut self.books.sinks[sink], &self.meters.sinks[sink]);
        books.delivered += tally.delivered;
        books.dead_lettered += tally.dead_lettered;
        books.kept += tally.kept;
        books.spooled += tally.spooled;
        books.let_go += not_delivered.lines;
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
        self.owe(SinkId(sink as u8), -((tally.total().lines + not_delivered.lines) as i64));
    }

    fn gave_up(&mut self, generation: GenerationId, upto: u64, why: Arc<str>) -> Result<()> {
        let page = self.page(generation)?;
        let range = page.read_to..upto.max(page.read_to);
        let bytes = range.end - range.start;
        page.sinks.iter_mut().for_each(|progress| progress.add(range.clone()));
        page.read_to = range.end;
        match page.given_up.iter_mut().find(|(known, _)| *known == why) {
            Some((_, sum)) => *sum += bytes,
            None => page.given_up.push((why, bytes)),
        }
        self.books.given_up += bytes;
        Ok(())
    }

    fn forget_if_over(&mut self, generation: GenerationId) {
        if self.pages.get(&generation).is_some_and(|page| page.finished && page.is_settled()) {
            self.pages.remove(&generation);
            self.meters.finished.add(-1);
            self.meters.generations.set(self.pages.len() as i64);
        }
    }

    pub fn to_save(&self, own_files: &OwnFiles) -> Saved {
        let own_file = |(id, path): (crate::durable::FileId, PathBuf)| OwnFile {
            device: id.device,
            inode: id.inode,
            path: AnyPath(path),
        };
        Saved {
            last_stamp_ns: self.last_stamp_ns,
            next_generation: self.next_generation,
            generations: self.pages.iter().map(|(id, page)| self.saved_page(*id, page)).collect(),
            own_files: own_files.list().into_iter().map(own_file).collect(),
        }
    }

    fn saved_page(&self, id: GenerationId, page: &Page) -> SavedGeneration {
        let (line, continues) = page.line();
        let named =
            self.names.iter().zip(&page.sinks).map(|(name, progress)| (name.to_string(), progress.clone()));
        let former = page.former.iter().map(|(name, progress)| (name.to_string(), progress.clone()));
        SavedGeneration {
            id: id.0,
            source: page.source.to_string(),
            filename: page.filename.clone().map(AnyPath),
            identity: page.identity,
            lineage: page.lineage,
            line,
            continues,
            given_up: page.given_up.iter().map(|(why, bytes)| (why.to_string(), *bytes)).collect(),
            sinks: named.chain(former).collect(),
        }
    }

    /// A snapshot, checked against the law: what was read for a sink is settled, let go or pending.
    pub fn books(&self) -> Books {
        let mut books = self.books.clone();
        for sink in &books.sinks {
            let dropped: u64 = sink.dropped.iter().map(|(_, count)| count.lines).sum();
            let settled = sink.delivered.lines
                + sink.dead_lettered.lines
                + sink.kept.lines
                + sink.spooled.lines
                + dropped;
            debug_assert_eq!(
                sink.read,
                settled + sink.let_go + sink.pending,
                "the books of {} do not add up",
                sink.name
            );
        }
        books.generations = self.pages.len();
        books.pages = self.pages.iter().take(PAGES_SHOWN).map(|(id, page)| view(*id, page)).collect();
        books
    }
}

fn page(saved: SavedGeneration, names: &[Arc<str>]) -> (GenerationId, Page) {
    let mut sinks: Vec<(Arc<str>, Progress)> =
        saved.sinks.into_iter().map(|(name, progress)| (name.into(), progress)).collect();
    let position =
        |progress: &[(Arc<str>, Progress)]| progress.iter().map(|(_, p)| p.low()).min().unwrap_or(0);
    let in_use: Vec<(Arc<str>, Progress)> =
        sinks.iter().filter(|(name, _)| names.contains(name)).cloned().collect();
    let start = position(if in_use.is_empty() { &sinks } else { &in_use });
    let progress = names.iter().map(|name| {
        let known = sinks.iter().position(|(known, _)| known == name);
        known.map_or_else(|| Progress::starting_at(start), |at| sinks.swap_remove(at).1)
    });
    let progress: Vec<Progress> = progress.collect();
    let page = Page {
        source: saved.source.into(),
        filename: saved.filename.map(|path| path.0),
        identity: saved.identity,
        lineage: saved.lineage,
        read_to: start,
        next_line: saved.line,
        continues: saved.continues,
        given_up: saved.given_up.into_iter().map(|(why, bytes)| (why.into(), bytes)).collect(),
        sinks: progress,
        former: sinks,
        open: BTreeMap::new(),
        finished: false,
        unread: 0,
    };
    (GenerationId(saved.id), page)
}

fn view(id: GenerationId, page: &Page) -> GenerationView {
    GenerationView {
        generation: id.0,
        source: page.source.to_string(),
        filename: page.filename.as_ref().map(|path| path.to_string_lossy().into_owned()),
        read_to: page.read_to,
        position: page.position(),
        lines: page.next_line,
        given_up: page.given_up.iter().map(|(_, bytes)| bytes).sum(),
        finished: page.finished,
    }
}

impl Meters {
    fn new(names: &[Arc<str>], metrics: &Registry) -> Meters {
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
            generations: metrics.gauge("generations", "Generations of sources in the ledger.", &[]),
            finished: metrics.gauge(
                "generations_finished",
                "Generations that are gone and that some sink has not answered for.",
                &[],
            ),
            open_chunks: metrics.gauge("open_chunks", "Chunks that some sink has not answered for.", &[]),
            faults: metrics.counter("faults_total", "Shares that were forgotten: a fault of the agent.", &[]),
            sinks: names.iter().map(sink).collect(),
        }
    }
}
