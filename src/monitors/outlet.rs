//! The Outlet: the only door in. Every line of every monitor passes here and nowhere else.
//!
//! It knows what a monitor must not get wrong: credit before reading, a stamp in the ledger before the chunk
//! travels, the shares of exactly those sinks that lack the bytes, one worker per lineage, and taking a chunk
//! back when the agent stops before anybody wanted it.
//!
//! Always true: `Stream::position` moves only when a chunk was handed over or given up.

mod timed;

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crossbeam_channel::{Receiver, Select, Sender};
use parking_lot::Mutex;

use super::SourceOptions;
use crate::ack::{Ack, Count, GenerationId, Receipts, SHARE_BYTES, SinkId, SinkSet};
use crate::budget::{Budget, Credit, Door, Holder, Refused};
use crate::clock::{Clock, StampClock};
use crate::ledger::{
    BEFORE_BYTES, Book, Head, Identity, KeptStamp, Known, Note, Opened, Progress, Restored, Stamp,
};
use crate::record::{Chunk, Labels, Lines, Origin};
use crate::tasks::Stop;

pub use timed::{Gathered, Timekeeper};

/// Lines in one chunk at most: their ends then cost no more than a quarter of a read.
pub const CHUNK_LINES: usize = 16 * 1024;

/// What a chunk costs besides its bytes and its shares: its structs, and its line in the ledger.
pub const CHUNK_OVERHEAD: usize = 768;

/// What all Outlets of one agent share.
#[derive(Clone)]
pub struct Supply {
    budget: Budget,
    clock: Clock,
    stop: Stop,
    stamps: Arc<Mutex<StampClock>>,
    next_generation: Arc<AtomicU64>,
    sinks: usize,
    book: Book,
    receipts: Arc<dyn Receipts>,
    intakes: Arc<[Sender<Chunk>]>,
}

impl Supply {
    /// `intakes`: one per worker. `sinks`: how many the configuration has.
    pub fn new(
        budget: Budget,
        clock: Clock,
        stop: Stop,
        restored: &Restored,
        sinks: usize,
        book: Book,
        intakes: Vec<Sender<Chunk>>,
    ) -> Supply {
        Supply {
            stamps: Arc::new(Mutex::new(StampClock::new(restored.last_stamp_ns))),
            budget,
            clock,
            stop,
            next_generation: Arc::new(AtomicU64::new(restored.next_generation)),
            sinks,
            receipts: Arc::new(book.clone()),
            book,
            intakes: intakes.into(),
        }
    }

    pub fn outlet(&self) -> Outlet {
        Outlet { door: self.budget.door(), supply: self.clone() }
    }
}

/// One monitor thread's door. Dropping all of them is how the path learns that nothing more comes.
pub struct Outlet {
    supply: Supply,
    door: Door,
}

/// A generation that was seen for the first time.
pub struct Opening<'a> {
    pub source: &'a SourceOptions,
    /// What [`Outlet::reserve`] gave; `None`: the next one.
    pub generation: Option<GenerationId>,
    /// The path that matched; `None` for a stream that cannot be read again.
    pub filename: Option<&'a Path>,
    pub identity: Option<Identity>,
    /// Where to begin, in bytes.
    pub start: u64,
    /// Equal for all generations of one path of one source.
    pub lineage: u64,
}

/// One generation as its monitor reads it.
pub struct Stream {
    origin: Arc<Origin>,
    filename: Option<PathBuf>,
    position: u64,
    next_line: u64,
    continues: bool,
    holder: Holder,
    /// What each sink had when we began; empty once the position is past all of it.
    progress: Vec<Progress>,
    /// How an earlier life cut and timed what is read again: those that end behind the position, rising.
    stamps: VecDeque<KeptStamp>,
}

/// The agent is stopping: nothing was handed over, the position has not moved.
#[derive(Debug, PartialEq, Eq)]
pub struct Stopped;

impl Stream {
    /// Offset of the next byte to read.
    pub fn position(&self) -> u64 {
        self.position
    }

    /// A chunk must not cross this offset: some sink has what follows, or lacks it, or what follows was cut and
    /// timed by another stamp. What ends here without a line end was cut here before.
    pub fn read_limit(&self) -> Option<u64> {
        let edges = self.progress.iter().flat_map(|progress| progress.edges(self.position));
        let stamp = self.stamps.front().map(|stamp| match self.position < stamp.start {
            true => stamp.start,
            false => stamp.end,
        });
        edges.chain(stamp).min()
    }

    /// Of the line at the position, if an earlier life has given it one.
    fn time_again(&self) -> Option<i64> {
        let stamp = self.stamps.front().filter(|stamp| stamp.start <= self.position)?;
        Some(stamp.base_ns + self.next_line.saturating_sub(stamp.first_line) as i64)
    }

    /// Moves the position, and takes numbers from the stamps where they begin and end: they are what they were,
    /// even if lines are cut at another length now.
    fn move_to(&mut self, position: u64, lines: u64, cut: bool) {
        self.position = position;
        self.next_line += lines;
        self.continues = cut;
        while let Some(stamp) = self.stamps.front().filter(|stamp| stamp.end <= position) {
            if stamp.end == position {
                (self.next_line, self.continues) = (stamp.first_line + stamp.lines, stamp.cut);
            }
            self.stamps.pop_front();
        }
        if let Some(stamp) = self.stamps.front().filter(|stamp| stamp.start == position) {
            (self.next_line, self.continues) = (stamp.first_line, stamp.continues);
        }
        if self.progress.iter().all(|progress| progress.edges(position).next().is_none()) {
            self.progress.clear(); // from here on every sink lacks everything
        }
    }

    pub fn generation(&self) -> GenerationId {
        self.origin.generation
    }

    /// The path that matched when it was first seen.
    pub fn filename(&self) -> Option<&Path> {
        self.filename.as_deref()
    }

    fn lacking(&self, sinks: usize) -> SinkSet {
        if self.progress.is_empty() {
            return SinkSet::all(sinks);
        }
        let mut lacking = SinkSet::EMPTY;
        for (at, progress) in self.progress.iter().enumerate() {
            if !progress.contains(self.position) {
                lacking.insert(SinkId(at as u8));
            }
        }
        lacking
    }
}

impl Outlet {
    pub fn stop(&self) -> &Stop {
        &self.supply.stop
    }

    pub fn clock(&self) -> &Clock {
        &self.supply.clock
    }

    /// Rings after credit was given back.
    pub fn room(&self) -> &Receiver<()> {
        self.door.room()
    }

    /// Nothing to read any more: nobody shall wait behind us in the line for credit.
    pub fn nothing_to_read(&self) {
        self.door.leave_queue();
    }

    /// A number for a generation that will perhaps be opened later: they are read in this order after a restart.
    pub fn reserve(&self) -> GenerationId {
        GenerationId(self.supply.next_generation.fetch_add(1, Ordering::Relaxed))
    }

    /// A generation seen for the first time.
    pub fn open(&mut self, opening: Opening<'_>) -> Stream {
        let generation = opening.generation.unwrap_or_else(|| self.reserve());
        self.supply.book.note(Note::Opened(Box::new(Opened {
            generation,
            source: opening.source.name.clone(),
            filename: opening.filename.map(Path::to_owned),
            identity: opening.identity,
            lineage: opening.lineage,
            start: opening.start,
            cursor: None,
        })));
        let origin = Arc::new(origin(opening.source, opening.filename, generation, opening.lineage));
        Stream {
            holder: self.holder(&origin),
            origin,
            filename: opening.filename.map(Path::to_owned),
            position: opening.start,
            next_line: 0,
            continues: false,
            progress: Vec::new(),
            stamps: VecDeque::new(),
        }
    }

    /// Goes on with a generation of an earlier life.
    pub fn reopen(&mut self, source: &SourceOptions, known: &Known) -> Stream {
        let origin = Arc::new(origin(source, known.filename.as_deref(), known.generation, known.lineage));
        Stream {
            holder: self.holder(&origin),
            origin,
            filename: known.filename.clone(),
            position: known.position,
            next_line: known.line,
            continues: known.continues,
            progress: known.progress.clone(),
            stamps: known.stamps.iter().filter(|stamp| stamp.end > known.position).copied().collect(),
        }
    }

    fn holder(&self, origin: &Origin) -> Holder {
        self.supply.budget.holder(&origin.source, origin.filename.as_ref())
    }

    /// Credit for reading up to `bytes`: before the read, never after it.
    pub fn take(&self, stream: &Stream, bytes: usize) -> Result<Credit, Refused> {
        let besides = cost_besides(CHUNK_LINES.min(bytes), self.supply.sinks);
        self.door.try_take(&stream.holder, bytes + besides)
    }

    /// Hands over whole lines that start at the position. `ends`: where each ends in `data`, the last one at its
    /// end, at most [`CHUNK_LINES`]. Waits for room downhill until the agent stops.
    pub fn send(
        &mut self,
        stream: &mut Stream,
        data: &[u8],
        ends: &[u32],
        mut credit: Credit,
    ) -> Result<(), Stopped> {
        assert!(
            ends.len() <= CHUNK_LINES && ends.last().copied() == u32::try_from(data.len()).ok(),
            "a chunk is made of whole lines"
        );
        let sinks = stream.lacking(self.supply.sinks);
        let count = Count { lines: ends.len() as u64, bytes: data.len() as u64 };
        let range = stream.position..stream.position + count.bytes;
        debug_assert!(stream.read_limit().is_none_or(|limit| range.end <= limit), "read across an edge");
        let base_ns = match stream.time_again() {
            Some(base_ns) => base_ns,
            None if sinks.is_empty() => 0, // nobody will see it
            None => self.supply.stamps.lock().reserve(count.lines, self.supply.clock.wall_ns()),
        };
        let generation = stream.origin.generation;
        let cut = !data.ends_with(b"\n");
        let stamp = Stamp {
            generation,
            start: range.start,
            end: range.end,
            first_line: stream.next_line,
            lines: count.lines,
            base_ns,
            continues: stream.continues,
            cut,
            sinks,
            before: Head::of(&data[data.len().saturating_sub(BEFORE_BYTES)..]),
            cursor: None,
        };
        self.supply.book.note(Note::Read(stamp.clone()));
        if !sinks.is_empty() {
            credit.shrink_to(data.len() + cost_besides(ends.len(), sinks.iter().count()));
            let lines = Lines {
                origin: stream.origin.clone(),
                start: range.start,
                data: data.to_vec(),
                ends: ends.to_vec(),
                base_ns,
                first_line: stream.next_line,
                continues: stream.continues,
                timed: None,
                credit,
            };
            let ack = Ack::new(generation, range.clone(), count, sinks, &self.supply.receipts);
            self.hand_over(Chunk { lines, ack }, stamp)?;
        }
        stream.move_to(range.end, count.lines, cut);
        Ok(())
    }

    fn hand_over(&self, chunk: Chunk, stamp: Stamp) -> Result<(), Stopped> {
        let intakes = &self.supply.intakes;
        let intake = &intakes[(chunk.lines.origin.lineage % intakes.len() as u64) as usize];
        let mut select = Select::new_biased();
        let room = select.send(intake);
        select.recv(self.supply.stop.stop.channel());
        let ready = select.select();
        if ready.index() == room {
            // Workers outlive every Outlet; one that panicked drops the chunk unsettled, which is a fault.
            let _ = ready.send(intake, chunk);
            return Ok(());
        }
        let _ = ready.recv(self.supply.stop.stop.channel());
        chunk.ack.take_back();
        self.supply.book.note(Note::TakenBack(stamp));
        Err(Stopped)
    }

    /// Bytes from the position up to `upto` will never be read; `why` in few words, for the account.
    pub fn give_up(&mut self, stream: &mut Stream, upto: u64, why: &str) {
        let generation = stream.origin.generation;
        self.supply.book.note(Note::GaveUp { generation, upto, why: why.into() });
        stream.move_to(stream.position.max(upto), 0, false);
    }

    /// The head of the file has grown.
    pub fn identify(&mut self, stream: &Stream, identity: Identity) {
        self.supply.book.note(Note::Identified { generation: stream.origin.generation, identity });
    }

    /// The generation is gone and was read to its end, or given up: forgotten once every sink has answered.
    pub fn finish(&mut self, stream: Stream) {
        self.supply.book.note(Note::Finished { generation: stream.origin.generation });
    }

    /// At the end: so many folders could not be looked into, so nobody knows what stands there.
    pub fn unseen(&mut self, places: u64) {
        self.supply.book.note(Note::Unseen { places });
    }

    /// What stands in the source behind the position when the monitor ends.
    pub fn unread(&mut self, stream: &Stream, bytes: u64) {
        self.supply.book.note(Note::Unread { generation: stream.origin.generation, bytes });
    }
}

fn cost_besides(lines: usize, sinks: usize) -> usize {
    lines * size_of::<u32>() + sinks * SHARE_BYTES + CHUNK_OVERHEAD
}

fn origin(source: &SourceOptions, filename: Option<&Path>, generation: GenerationId, lineage: u64) -> Origin {
    let filename = filename.map(|path| path.to_string_lossy().into_owned());
    let mut labels: Labels = source.labels.clone();
    if let Some(filename) = &filename {
        labels.set("filename", filename.as_str());
    }
    Origin {
        source: source.name.clone(),
        generation,
        lineage,
        labels: Arc::new(labels),
        replayable: filename.is_some(),
        filename: filename.map(Into::into),
    }
}

/// What stands below a monitor, for the tests of monitors: a ledger, and the test itself in the worker's place.
#[cfg(test)]
pub mod fixture {
    use std::time::Duration;

    use crossbeam_channel::bounded;

    use super::*;
    use crate::durable::OwnFiles;
    use crate::ledger::{self, Ledger};
    use crate::metrics::Registry;
    use crate::tasks::{Switch, Wires};

    pub struct Below {
        pub switch: Switch,
        pub ledger: Ledger,
        pub restored: Restored,
        pub supply: Supply,
        pub chunks: Receiver<Chunk>,
        pub metrics: Registry,
        pub own_files: OwnFiles,
    }

    /// `state`: the ledger's folder. `sinks`: how many. `budget` in bytes.
    pub fn below(state: &Path, sinks: usize, budget: usize) -> Below {
        let (switch, stop) = Switch::new().expect("pipes can be made");
        let (metrics, own_files) = (Registry::default(), OwnFiles::default());
        let settings = ledger::Settings {
            folder: state.to_owned(),
            sinks: (0..sinks).map(|number| number.to_string().into()).collect(),
            sync_interval: Duration::from_secs(3600),
            unsynced: Default::default(),
            own_files: own_files.clone(),
        };
        let margin = Duration::from_secs(1);
        let (ledger, book, restored) =
            Ledger::open(settings, stop.clone(), margin, &metrics, &mut Wires::default());
        let (intake, chunks) = bounded(1);
        let budget = Budget::new(budget);
        let supply = Supply::new(budget, Clock::real(), stop, &restored, sinks, book, vec![intake]);
        Below { switch, ledger, restored, supply, chunks, metrics, own_files }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::SourceKind;
    use super::*;
    use crate::budget::READ_BYTES;

    /// What the budget says that a chunk of one byte costs with so many sinks.
    fn cost(sinks: usize) -> usize {
        let folder = tempfile::tempdir().unwrap();
        let below = fixture::below(folder.path(), sinks, READ_BYTES);
        let source = SourceOptions {
            name: "one".into(),
            labels: Labels::default(),
            max_line_bytes: 1000,
            idle: Duration::from_secs(5),
            kind: SourceKind::Stdin,
        };
        let mut outlet = below.supply.outlet();
        let opening = Opening {
            source: &source,
            generation: None,
            filename: None,
            identity: None,
            start: 0,
            lineage: 0,
        };
        let mut stream = outlet.open(opening);
        let credit = outlet.take(&stream, 1).unwrap();
        outlet.send(&mut stream, b"\n", &[1], credit).unwrap();
        below.supply.budget.used()
    }

    #[test]
    fn a_chunk_is_paid_for_with_all_its_shares() {
        let one = cost(1);
        assert!((900..1100).contains(&one), "{one}");
        assert_eq!(cost(64) - one, 63 * SHARE_BYTES);
    }
}

#[cfg(test)]
mod replay;
