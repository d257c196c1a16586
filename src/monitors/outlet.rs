//! The Outlet: the only door in. Every line of every monitor passes here and nowhere else.
//!
//! It knows what a monitor must not get wrong: credit before reading, a stamp in the ledger before the chunk
//! travels, the shares of exactly those sinks that lack the bytes, one worker per lineage (none without a pipeline), and taking a chunk
//! back when the agent stops before anybody wanted it. What is small may go together with others (`group.rs`).
//!
//! Always true: `Stream::position` moves only when a chunk was handed over or given up.

mod group;
mod origins;
mod paged;
mod pools;
mod stream;
mod timed;
mod whole;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Select, Sender, TrySendError};
use parking_lot::Mutex;

use super::SourceOptions;
use crate::ack::{Claims, Count, GenerationId, SHARE_BYTES};
use crate::budget::{Budget, Credit, Door, Refused};
use crate::clock::{Clock, StampClock};
use crate::disk::PAGE;
use crate::ledger::{
    BEFORE_BYTES, Book, Head, Identity, Journal, Known, Mark, Note, Opened, Progress, Record, Restored, Stamp,
};
use crate::record::{Buffer, Chunk, Dealer, Ends, Lines, Origin, PageSums, Records, Shift};
use crate::tasks::Stop;
pub use group::{SMALL_BYTES, Small};
use origins::{Account, Origins, Own, Place};
pub use pools::Pools;
use stream::Past;
pub use stream::Stream;
pub use whole::WholeLines;

pub use timed::{Gathered, Timekeeper};

/// Lines in one chunk at most.
pub const CHUNK_LINES: usize = CHUNK_BYTES / LINE_BYTES;

/// What is read at once where much waits: what a chunk costs besides its bytes is little then.
const CHUNK_BYTES: usize = 1024 * 1024;

/// A small budget has smaller chunks: several are under way, so that nobody waits for the one in front of him.
const CHUNKS_IN_BUDGET: usize = 4;

const CHUNK_BYTES_LEAST: usize = 128 * 1024;

/// Lines that are as long fill a chunk: the ends of shorter ones would cost more than an eighth of it.
const LINE_BYTES: usize = 32;

/// Lines of a log in parts that belong together, and go into one chunk: as many with every budget, since it decides what
/// is joined.
pub const GROUP_LINES: usize = CHUNK_BYTES_LEAST / LINE_BYTES;

/// What a chunk costs besides its bytes and its shares: its structs, and its line in the ledger.
pub const CHUNK_OVERHEAD: usize = 768;

/// However small they are, no more of them fit into the budget: what so many pieces leave behind on the heap is of
/// no use to anybody else, and is never given back. Whoever waits has a larger chunk then.
const CHUNKS_MOST: usize = 256;

/// Where chunks go.
#[derive(Clone)]
pub enum Onward {
    /// Through the pipeline: the intake of each worker.
    Workers(Arc<[Sender<Chunk>]>),
    /// There is nothing to be done with lines.
    Lanes(Dealer),
}

/// What all Outlets of one agent share.
#[derive(Clone)]
pub struct Supply {
    budget: Budget,
    clock: Clock,
    stop: Stop,
    stamps: Arc<Mutex<StampClock>>,
    next_generation: Arc<AtomicU64>,
    /// What sinks have of streams with times that are about to be opened, see [`Restored::foretold`].
    foretold: Arc<BTreeMap<GenerationId, Vec<Progress>>>,
    sinks: usize,
    book: Book,
    claims: Claims,
    onward: Onward,
    /// What is read at once takes so much memory at most, but for a longer line.
    chunk_bytes: usize,
    /// What any chunk costs.
    least_cost: usize,
    pools: Pools,
    asks_for_ends: bool,
}

impl Supply {
    /// `sinks`: how many the configuration has.
    pub fn new(
        budget: Budget,
        clock: Clock,
        stop: Stop,
        restored: &Restored,
        sinks: usize,
        book: Book,
        onward: Onward,
    ) -> Supply {
        let part = budget.capacity() / CHUNKS_IN_BUDGET;
        let chunk_bytes = (1 << part.ilog2()).clamp(CHUNK_BYTES_LEAST, CHUNK_BYTES);
        Supply {
            pools: Pools::new(budget.capacity(), chunk_bytes),
            chunk_bytes,
            least_cost: budget.capacity() / CHUNKS_MOST,
            stamps: Arc::new(Mutex::new(StampClock::new(restored.last_stamp_ns))),
            budget,
            clock,
            stop,
            next_generation: Arc::new(AtomicU64::new(restored.next_generation)),
            foretold: restored.foretold.clone(),
            sinks,
            claims: Claims::new(Arc::new(book.clone())),
            book,
            onward,
            asks_for_ends: false,
        }
    }

    /// Whether somebody downhill looks at each line anyway: then where it ends is found when it is read, while its bytes
    /// are at hand.
    pub fn asking_for_ends(self, asks_for_ends: bool) -> Supply {
        Supply { asks_for_ends, ..self }
    }

    pub fn pools(&self) -> Pools {
        self.pools.clone()
    }

    /// Of a chunk that takes so many bytes.
    fn cost(&self, bytes: usize) -> usize {
        bytes.max(self.least_cost)
    }

    /// For what gives its lines times of its own, or cannot be read again.
    pub fn outlet(&self) -> Outlet {
        Outlet {
            door: self.budget.door(),
            origins: Origins::new(self.budget.clone()),
            supply: self.clone(),
            stamping: None,
            until_abort: false,
        }
    }

    /// For what is read again after a crash: its stamps are in the journal before anything leaves.
    pub fn stamping_outlet(&self, journal: Journal) -> Outlet {
        Outlet { stamping: Some(Stamping { journal, ill_until: None }), ..self.outlet() }
    }
}

/// One monitor thread's door. Dropping all of them is how the path learns that nothing more comes.
pub struct Outlet {
    supply: Supply,
    door: Door,
    origins: Origins,
    stamping: Option<Stamping>,
    /// Goes on behind the stop.
    until_abort: bool,
}

/// What an Outlet has whose stamps outlive the process.
struct Stamping {
    journal: Journal,
    /// The last stamp could not be written; before that nothing is tried.
    ill_until: Option<Instant>,
}

/// A disk that was full has room again within seconds or within hours: in neither case is this late.
const STAMP_RETRY: Duration = Duration::from_secs(1);

/// A generation that was seen for the first time.
pub struct Opening<'a> {
    pub source: &'a SourceOptions,
    /// What [`Outlet::reserve`] gave; `None`: the next one.
    pub generation: Option<GenerationId>,
    /// The path that matched; `None` for a stream that cannot be read again.
    pub filename: Option<&'a Arc<Path>>,
    pub identity: Option<Identity>,
    /// Where to begin, in bytes.
    pub start: u64,
    /// Equal for all generations of one path of one source.
    pub lineage: u64,
}

/// Nothing was handed over, the position has not moved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotSent {
    /// The agent is stopping.
    Stopped,
    /// The journal could not be written, which was said. What is read waits where it stands: [`Outlet::take`]
    /// gives no credit before it is worth another try.
    Unstamped,
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

    /// Once in a while: gives back what was kept for files that have had nothing to say since.
    pub fn tidy(&mut self) {
        self.origins.tidy();
    }

    /// There is nothing left for it to let go of.
    pub fn is_tidy(&self) -> bool {
        self.origins.is_empty()
    }

    /// A number for a generation that will perhaps be opened later: they are read in this order after a restart.
    pub fn reserve(&self) -> GenerationId {
        GenerationId(self.supply.next_generation.fetch_add(1, Ordering::Relaxed))
    }

    /// A generation seen for the first time.
    pub fn open(&mut self, opening: Opening<'_>) -> Stream {
        let generation = opening.generation.unwrap_or_else(|| self.reserve());
        let opened = Opened {
            generation,
            source: opening.source.name.clone(),
            filename: opening.filename.cloned(),
            identity: opening.identity,
            lineage: opening.lineage,
            start: opening.start,
            cursor: None,
        };
        let record = self.stamping.as_ref().map(|_| Record::opened(&opened));
        let written = self.tell(Note::Opened(Box::new(opened)), record.as_ref());
        Stream {
            generation,
            lineage: opening.lineage,
            place: self.place(opening.source, opening.filename, generation, opening.lineage),
            position: opening.start,
            next_line: 0,
            continues: false,
            past: None,
            unwritten: record.filter(|_| !written).map(Box::new),
            nameless: false,
        }
    }

    fn place(
        &mut self,
        source: &SourceOptions,
        path: Option<&Arc<Path>>,
        generation: GenerationId,
        lineage: u64,
    ) -> Place {
        if let Some(path) = path {
            return Place::File { home: self.origins.home(source), path: path.clone() };
        }
        let origin = Origin {
            source: source.name.clone(),
            generation,
            lineage,
            labels: Arc::new(source.labels.clone()),
            filename: None,
            replayable: false,
            stages: Box::default(),
            shift: Shift::default(),
        };
        let holder = self.supply.budget.holder(&origin.source, None);
        Place::Own(Box::new(Own { account: Account { origin: Arc::new(origin), holder }, filename: None }))
    }

    /// Tells the ledger, and the journal if it can be told: what is missing there costs no line, only work after a
    /// crash. Whether it is in the journal.
    fn tell(&mut self, note: Note, record: Option<&Record>) -> bool {
        let stamping = self.stamping.as_mut().filter(|stamping| stamping.ill_until.is_none());
        let mark = stamping.zip(record).and_then(|(stamping, record)| {
            stamping.journal.append(std::slice::from_ref(record)).ok() // the next stamp says why not
        });
        self.supply.book.noted(note, mark);
        mark.is_some()
    }

    /// Tells the journal, then the ledger.
    fn stamp(&mut self, stream: &mut Stream, stamp: &Stamp) -> Result<(), NotSent> {
        if self.stamping.is_none() {
            self.supply.book.note(Note::Read(stamp.clone()));
            return Ok(());
        }
        let mark = match stream.unwritten.take() {
            None => self.write_down(&[Record::read(stamp)])?,
            Some(opened) => {
                let written = self.write_down(&[(*opened).clone(), Record::read(stamp)]);
                stream.unwritten = Some(opened).filter(|_| written.is_err());
                written?
            }
        };
        self.supply.book.noted(Note::Read(stamp.clone()), mark);
        Ok(())
    }

    /// Where the last of them stands in the journal.
    fn write_down(&mut self, records: &[Record]) -> Result<Option<Mark>, NotSent> {
        let Some(Stamping { journal, ill_until }) = &mut self.stamping else { return Ok(None) };
        match journal.append(records) {
            Ok(mark) => {
                if ill_until.take().is_some() {
                    log::info!("files: the journal can be written again");
                    self.supply.book.note(Note::Stamping { ill: None });
                }
                Ok(Some(mark))
            }
            Err(cause) => {
                if ill_until.replace(self.supply.clock.now() + STAMP_RETRY).is_none() {
                    log::error!(
                        "files: {cause}; they wait where they stand, trying again every {STAMP_RETRY:?}"
                    );
                    self.supply.book.note(Note::Stamping { ill: Some(cause.to_string()) });
                }
                Err(NotSent::Unstamped)
            }
        }
    }

    /// Goes on with a generation of an earlier life.
    pub fn reopen(&mut self, source: &SourceOptions, known: &Known) -> Stream {
        let mut stream = Stream {
            generation: known.generation,
            lineage: known.lineage,
            place: self.place(source, known.filename.as_ref(), known.generation, known.lineage),
            position: known.position,
            next_line: known.line,
            continues: known.continues,
            past: Some(Box::new(Past::of(known))),
            unwritten: None,
            nameless: false,
        };
        stream.forget_what_is_over();
        stream
    }

    /// How many bytes are worth to be read at once: wherever in a page they are laid, they fit into one buffer.
    pub fn chunk_bytes(&self) -> usize {
        self.supply.chunk_bytes - PAGE
    }

    /// See [`Supply::asking_for_ends`].
    pub fn asks_for_ends(&self) -> bool {
        self.supply.asks_for_ends
    }

    /// How many lines a chunk of this Outlet has at most.
    pub fn chunk_lines(&self) -> usize {
        self.supply.chunk_bytes / LINE_BYTES
    }

    /// For `len` bytes, whatever they are yet.
    pub fn buffer(&self, len: usize) -> Buffer<u8> {
        self.supply.pools.data.take(len)
    }

    /// Credit for reading up to `bytes`: before the read, never after it.
    pub fn take(&mut self, stream: &Stream, bytes: usize) -> Result<Credit, Refused> {
        let ill_until = self.stamping.as_ref().and_then(|stamping| stamping.ill_until);
        if ill_until.is_some_and(|until| self.supply.clock.now() < until) {
            return Err(Refused::Full);
        }
        let Supply { pools, sinks, .. } = &self.supply;
        let besides = cost_besides(pools.ends.capacity_for(self.chunk_lines().min(bytes)), *sinks);
        let cost = self.supply.cost(pools.cost_at(bytes) + besides);
        self.door.try_take(&self.origins.of(stream).holder, cost)
    }

    /// As [`Outlet::send_read`], for bytes that stay where they are.
    pub fn send(
        &mut self,
        stream: &mut Stream,
        data: &[u8],
        ends: &[u32],
        credit: Credit,
    ) -> Result<(), NotSent> {
        let before = Head::of(&data[data.len().saturating_sub(BEFORE_BYTES)..]);
        let data = self.supply.pools.data.copy_of(data);
        self.send_read(stream, data, WholeLines::Found(ends), None, before, credit)
    }

    /// Hands over whole lines that start at the position. `lines`: those of `data`, at most [`Outlet::chunk_lines`].
    /// `before`: of the bytes that stand in the source right before where the chunk ends; those of `data` may be arranged
    /// otherwise. Waits for room downhill until the agent stops. The stamp is written down first.
    pub fn send_read(
        &mut self,
        stream: &mut Stream,
        data: Buffer<u8>,
        lines: WholeLines<'_>,
        sums: Option<PageSums>,
        before: Head,
        credit: Credit,
    ) -> Result<(), NotSent> {
        lines.assert_whole(&data);
        let sinks = stream.lacking(self.supply.sinks);
        let count = Count { lines: lines.count() as u64, bytes: data.len() as u64 };
        let range = stream.position..stream.position + count.bytes;
        debug_assert!(stream.read_limit().is_none_or(|limit| range.end <= limit), "read across an edge");
        let again = stream.time_again();
        let is_new = again.is_none() && !sinks.is_empty();
        let base_ns = match again {
            Some(base_ns) => base_ns,
            None if sinks.is_empty() => 0, // nobody will see it
            None => self.supply.stamps.lock().reserve(count.lines, self.supply.clock.wall_ns()),
        };
        let stamp = stream.stamp(&data, lines.count(), base_ns, sinks, before);
        match is_new {
            true => self.stamp(stream, &stamp)?,
            false => self.supply.book.note(Note::Read(stamp.clone())),
        }
        let cut = stamp.cut;
        if !sinks.is_empty() {
            let ends = lines.ends(&self.supply.pools.ends);
            let chunk = self.chunk(stream, data, ends, sums, credit, &stamp);
            self.hand_over(chunk, stamp)?;
        }
        stream.move_to(range.end, count.lines, cut);
        Ok(())
    }

    fn chunk(
        &mut self,
        stream: &Stream,
        mut data: Buffer<u8>,
        ends: Ends,
        sums: Option<PageSums>,
        mut credit: Credit,
        stamp: &Stamp,
    ) -> Chunk {
        if data.len() < data.capacity() / 4 {
            data = self.supply.pools.data.copy_of(&data); // the rest of it is for others
        }
        let besides =
            cost_besides(self.supply.pools.ends.capacity_for(ends.len()), stamp.sinks.iter().count());
        let cost = data.capacity() + sums.as_ref().map_or(0, PageSums::cost) + besides;
        credit.shrink_to(self.supply.cost(cost));
        let lines = Lines {
            origin: self.origins.of(stream).origin.clone(),
            start: stamp.start,
            data,
            sums,
            ends,
            base_ns: stamp.base_ns,
            first_line: stamp.first_line,
            continues: stamp.continues,
            timed: None,
            credit,
        };
        let ack =
            self.supply.claims.ack(stamp.generation, stamp.start..stamp.end, stamp.count(), stamp.sinks);
        Chunk { lines, ack }
    }

    /// For what no later life can read: from now on it is the abort that ends the wait for room.
    pub fn read_on_until_abort(&mut self) {
        self.until_abort = true;
    }

    fn hand_over(&self, chunk: Chunk, stamp: Stamp) -> Result<(), NotSent> {
        let intakes = match &self.supply.onward {
            Onward::Workers(intakes) => intakes,
            Onward::Lanes(dealer) => {
                dealer.deal(Records::untouched(chunk.lines), chunk.ack, |_, _| {});
                return Ok(());
            }
        };
        let intake = &intakes[(chunk.lines.origin.lineage % intakes.len() as u64) as usize];
        // Nearly always there is room. Workers outlive every Outlet; one that panicked drops the chunk unsettled, which
        // is a fault.
        let Err(TrySendError::Full(chunk)) = intake.try_send(chunk) else { return Ok(()) };
        let mut select = Select::new_biased();
        let room = select.send(intake);
        let stop = if self.until_abort { &self.supply.stop.abort } else { &self.supply.stop.stop };
        select.recv(stop.channel());
        let ready = select.select();
        if ready.index() == room {
            let _ = ready.send(intake, chunk);
            return Ok(());
        }
        let _ = ready.recv(stop.channel());
        chunk.ack.take_back();
        self.supply.book.note(Note::TakenBack(stamp));
        Err(NotSent::Stopped)
    }

    /// Bytes from the position up to `upto` will never be read; `why` in few words, for the account.
    pub fn give_up(&mut self, stream: &mut Stream, upto: u64, why: &str) {
        if stream.nameless {
            return; // nobody has ever heard of it
        }
        let (generation, from) = (stream.generation, stream.position);
        let record = Record::GaveUp { generation: generation.0, from, upto, why: why.into() };
        self.tell(Note::GaveUp { generation, upto, why: why.into() }, Some(&record));
        stream.move_to(stream.position.max(upto), 0, false);
    }

    /// The head of the file has grown.
    pub fn identify(&mut self, stream: &Stream, identity: Identity) {
        let generation = stream.generation;
        let record = Record::Identified { generation: generation.0, identity };
        self.tell(Note::Identified { generation, identity }, Some(&record));
    }

    /// The generation is gone and was read to its end, or given up: forgotten once every sink has answered.
    pub fn finish(&mut self, stream: Stream) {
        self.origins.forget(&stream);
        if stream.nameless {
            return;
        }
        let generation = stream.generation;
        self.tell(Note::Finished { generation }, Some(&Record::Finished { generation: generation.0 }));
    }

    /// At the end: so many folders and files could not be looked into, so nobody knows what stands there.
    pub fn unseen(&mut self, places: u64) {
        self.supply.book.note(Note::Unseen { places });
    }

    /// What stands in the source behind the position when the monitor ends.
    pub fn unread(&mut self, stream: &Stream, bytes: u64) {
        self.supply.book.note(Note::Unread { generation: stream.generation, bytes });
    }
}

fn cost_besides(lines: usize, sinks: usize) -> usize {
    lines * size_of::<u32>() + sinks * SHARE_BYTES + CHUNK_OVERHEAD
}

#[cfg(test)]
pub mod fixture;

#[cfg(test)]
mod tests;

#[cfg(test)]
mod replay;
