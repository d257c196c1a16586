//! The ledger: the truth about progress. One thread owns it; everybody else sends it [`Note`]s.
//!
//! For each generation of each source: who it is, how far it was read, and, for each sink *by its name*, how far
//! that sink has answered. A position moves only on a receipt. The read position of a restart is the least over
//! the sinks, and what is read again goes only to the sinks that lack it.
//!
//! Always true, checked before every checkpoint: per sink, in lines and bytes, read = settled + pending; per
//! generation, seen = read + given up. What does not add up is a fault.
//!
//! It outlives its own faults: a note that cannot be true is reported to `main`, which stops the agent, and every
//! receipt of that stop is still taken and saved.
//!
//! What the next life needs is in the newest checkpoint (`checkpoint.rs`) and in the records of the journal behind
//! it (`journal.rs`), which the file monitor writes before it hands a chunk over. So a crash loses no stamp, and
//! only the receipts since the last checkpoint: those bytes are sent again, as they were.

mod audit;
mod books;
mod checkpoint;
mod journal;
mod notes;
mod offsets;
mod page;
mod pieces;
mod progress;
mod saved;
mod state;
#[cfg(test)]
mod tests;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, never, select};
use parking_lot::Mutex;

use crate::ack::{Count, SinkId};
use crate::clock::Alarm;
use crate::disk::Disk;
use crate::durable::{OwnFiles, Passed, Unsynced};
use crate::error::Result;
use crate::metrics::Registry;
use crate::tasks::{Post, Stop, Task, Wires};

pub use audit::{Audited, audit};
pub use books::{Books, GenerationView, ProgressView, SinkBooks};
use checkpoint::{Left, Slots};
pub use journal::{Journal, Mark, Record, SPARE_SEGMENTS};
use notes::Noted;
pub use notes::{
    BEFORE_BYTES, Book, Cursor, HOLE, Head, Identity, InSpool, KeptStamp, Known, Note, Opened, Ranged,
    Restored, Stamp,
};
pub use progress::Progress;
use saved::Saved;
use state::State;

/// Notes on their way: a few hundred cost little, and one turn of the ledger takes them all. Each is of one chunk, or of a
/// few dozens of small ones.
pub const NOTES: usize = 256;

/// How late a note may be taken. A file at full speed sends a handful in that time, and a stop ends as much later.
const LINGER: Duration = Duration::from_millis(2);

/// What the ledger shows to others. Replaced as a whole.
pub type BooksView = Arc<Mutex<Arc<Books>>>;

/// How old the view gets while something happens, whatever the `sync_interval`: people look at it, and `run
/// --once` concludes from it that nothing moves.
const VIEW_AGE_MAX: Duration = Duration::from_secs(1);

/// Long enough for the first sweep of most hosts, short enough for whoever kills us at once.
const FIRST_SAVE: Duration = Duration::from_millis(100);

/// How long the other slot may stay behind, while something changes: those who wait for two checkpoints before they
/// delete something must not wait for ever.
const SNAPSHOT_EVERY: Duration = Duration::from_secs(30);

/// What the ledger needs from the agent.
pub struct Settings {
    pub folder: PathBuf,
    /// By [`crate::ack::SinkId`].
    pub sinks: Vec<Arc<str>>,
    pub sync_interval: Duration,
    pub unsynced: Unsynced,
    pub own_files: OwnFiles,
    pub disk: Arc<dyn Disk>,
    /// Told of each checkpoint that was written.
    pub passed: Passed,
}

pub struct Ledger {
    settings: Settings,
    stop: Stop,
    notes: Receiver<Noted>,
    state: State,
    /// The last record of the journal that is in the state.
    mark: Mark,
    link: Arc<journal::Link>,
    slots: Slots,
    view: BooksView,
    /// Something is not in a checkpoint yet: when to write the next one.
    save_at: Option<Instant>,
    last_save: LastSave,
    /// `stop` is closed, and what was due at that moment was put off.
    stopping: bool,
    /// When the next checkpoint has to be a snapshot, whatever the slots say; `None`: both slots have everything.
    snapshot_at: Option<Instant>,
    /// How many more of them it takes until then.
    snapshots_due: u8,
    /// How many checkpoints this life has written.
    checkpoints: u64,
    /// The view is older than the books: when to replace it.
    show_at: Option<Instant>,
    alarm: Alarm,
    /// Why the last attempt to save failed: said once, retried every `sync_interval`.
    ill: Option<String>,
    /// Why files wait, if nothing can be stamped.
    stamping_ill: Option<String>,
    first_start: bool,
    /// Outputs and spools have told what no checkpoint knows.
    has_found: bool,
}

/// The checkpoint that a stop owes us even if somebody never ends.
enum LastSave {
    WhenAborted { half_margin: Duration },
    At(Instant),
    Done,
}

enum Event {
    Note(Noted),
    Stopping,
    Aborted,
    Due,
    Closed,
}

impl Ledger {
    /// Reads what the last life left and makes the way in. Never fails because of the state itself: what cannot
    /// be read is set aside and said. `margin`: from the closing of `abort` to the deadline of the stop.
    pub fn open(
        settings: Settings,
        stop: Stop,
        margin: Duration,
        metrics: &Registry,
        wires: &mut Wires,
    ) -> (Ledger, Book, Journal) {
        let carriers = [Post::Monitor, Post::Worker, Post::Lane];
        let (book, notes) = wires.downhill("notes", &carriers, Post::Ledger, NOTES);
        let (slots, left) = Slots::open(settings.disk.clone(), &settings.folder);
        let found = journal::find(settings.disk.clone(), &settings.folder, slots.mark());
        let first_start = left == Left::Nothing && found.id.is_none();
        let saved = match left {
            Left::State(saved) => *saved,
            Left::Nothing | Left::Ruins => {
                let id = found.id.unwrap_or_else(|| fastrand::u64(..));
                Saved { id, ..Saved::default() }
            }
        };
        let id = saved.id;
        saved.own_files.iter().for_each(|own| settings.own_files.add(own.file_id(), &own.path.0));
        let mut state = State::new(saved, &settings.sinks, metrics);
        let journal::Opened { mut journal, link, last } = found.read(|record| state.recall(record));
        // At a first start too: a power cut may have taken the ledger, and left the journals of outputs.
        state.skip_generations(1 + u64::from(fastrand::u32(..)));
        journal.begin(id);
        link.pass(slots.passed());
        let ledger = Ledger {
            settings,
            stop,
            notes,
            view: Arc::new(Mutex::new(Arc::new(state.books()))),
            state,
            mark: last,
            link,
            slots,
            save_at: None,
            last_save: LastSave::WhenAborted { half_margin: margin / 2 },
            stopping: false,
            snapshot_at: None,
            snapshots_due: 0,
            checkpoints: 0,
            show_at: None,
            alarm: Alarm::default(),
            ill: None,
            stamping_ill: None,
            first_start,
            has_found: false,
        };
        (ledger, Book::new(book), journal)
    }

    /// There was no state at all: this is the first start in this `data_dir`.
    pub fn is_first_start(&self) -> bool {
        self.first_start
    }

    /// Whether the state that was found has all of that.
    pub fn knows(&self, sink: SinkId, ranges: &[Ranged]) -> bool {
        self.state.knows(sink, ranges)
    }

    /// What a sink has found of an earlier life in its outputs: as good as receipts. Before monitors are given
    /// [`Ledger::restored`].
    pub fn recovered(&mut self, sink: SinkId, ranges: &[Ranged]) {
        self.has_found |= self.state.recovered(sink, ranges);
        self.show();
    }

    /// What a spool has found at the start: each whole frame is as good as a receipt, `pending` of them waits there,
    /// and what is missing is read again. Before monitors are given [`Ledger::restored`].
    pub fn spool_found(&mut self, sink: SinkId, frames: &[InSpool], pending: Count) {
        self.has_found |= self.state.spool_found(sink, frames, pending);
        self.show();
    }

    /// What monitors need to go on.
    pub fn restored(&self) -> Restored {
        self.state.restored(self.first_start)
    }

    pub fn view(&self) -> BooksView {
        self.view.clone()
    }

    /// Ends when every [`Book`] is gone.
    pub fn run(mut self, task: &Task) -> Result<()> {
        if self.first_start {
            // That there has been a start must outlive us whatever happens, and soon: the next one must not take
            // `start_at: end` for its own.
            self.save_at = Some(task.now() + FIRST_SAVE);
        } else if self.has_found || self.settings.unsynced.was_in_doubt() {
            // Although nothing may be left to read: whoever audits believes the checkpoint alone.
            self.save_at = Some(task.now() + self.settings.sync_interval);
        }
        loop {
            task.waits_for("notes");
            let event = self.next_event();
            task.doing("keeping the books");
            match event {
                Event::Note(note) => {
                    self.take(note, task);
                    self.take_those_there(task);
                    self.show_at.get_or_insert(task.now() + VIEW_AGE_MAX);
                    self.linger();
                }
                Event::Stopping => self.begin_to_stop(task.now()),
                Event::Aborted => {
                    if let LastSave::WhenAborted { half_margin } = self.last_save {
                        self.last_save = LastSave::At(task.now() + half_margin);
                    }
                }
                Event::Due => {
                    let now = task.now();
                    let last = if let LastSave::At(at) = self.last_save { Some(at) } else { None };
                    match [self.save_at, self.snapshot_at, last].into_iter().flatten().any(|due| due <= now) {
                        true => self.save(task),
                        false => self.show(),
                    }
                }
                Event::Closed => break,
            }
        }
        self.save(task);
        if self.ill.is_some() {
            self.save(task); // nobody comes after us, and what a disk did not keep at first it may keep now
        }
        Ok(())
    }

    /// Nobody waits for a note to be taken, and many come one shortly behind the other: to wake up for each of them
    /// would cost more than what is written down. Not when there are so many that somebody may wait for room.
    fn linger(&self) {
        if self.notes.len() < NOTES / 4 {
            self.stop.abort.wait(LINGER);
        }
    }

    fn next_event(&mut self) -> Event {
        let aborted = match self.last_save {
            LastSave::WhenAborted { .. } => self.stop.abort.channel().clone(),
            _ => never(),
        };
        let stopping = if self.stopping { never() } else { self.stop.stop.channel().clone() };
        let last = if let LastSave::At(at) = self.last_save { Some(at) } else { None };
        let due = [self.save_at, self.snapshot_at, self.show_at, last].into_iter().flatten().min();
        let due = self.alarm.set(due).clone();
        select! {
            recv(self.notes) -> note => note.map_or(Event::Closed, Event::Note),
            recv(stopping) -> _ => Event::Stopping,
            recv(aborted) -> _ => Event::Aborted,
            recv(due) -> _ => Event::Due,
        }
    }

    /// All that were sent before this call, and not many more: a checkpoint must become due in between.
    fn take_those_there(&mut self, task: &Task) {
        for _ in 0..NOTES {
            let Ok(note) = self.notes.try_recv() else { break };
            self.take(note, task);
        }
    }

    fn take(&mut self, (note, mark): Noted, task: &Task) {
        let aborting = self.stop.abort.is_closed();
        self.mark = mark.unwrap_or(self.mark);
        if let Note::Stamping { ill } = note {
            self.stamping_ill = ill;
            return;
        }
        if note.changes_the_state() {
            self.save_at.get_or_insert_with(|| task.now() + self.settings.sync_interval);
        }
        if let Err(fault) = self.state.apply(note, aborting) {
            task.fault(fault);
        }
    }

    /// `stop` is closed: with nothing pending the last save is milliseconds away, and has all that is due now. If it
    /// is not, there is one `sync_interval` later, as ever.
    fn begin_to_stop(&mut self, now: Instant) {
        self.stopping = true;
        self.slots.in_haste = true;
        self.snapshot_at = None;
        if !self.first_start || self.checkpoints > 0 {
            self.save_at = self.save_at.map(|_| now + self.settings.sync_interval);
        }
    }

    /// Whether nothing less than a snapshot will do: in a stop that costs as much as there are files.
    fn needs_snapshot(&self) -> bool {
        if self.stopping { !self.slots.takes_changes() } else { self.slots.wants_snapshot(self.mark) }
    }

    /// Outputs first, then the checkpoint that relies on them. Whether it became a snapshot.
    fn write(&mut self, force_snapshot: bool) -> Result<bool> {
        self.settings.unsynced.prove()?;
        let mut is_snapshot = force_snapshot || self.needs_snapshot();
        let (mark, own_files) = (self.mark, &self.settings.own_files);
        let mut written = None;
        if !is_snapshot {
            let changes = self.state.changes(mark, own_files);
            match self.slots.write_changes(&changes) {
                Ok(()) => written = changes.own_files,
                // There may be no next time, and the other slot has the room that this one lacks.
                Err(cause) if self.stopping => {
                    log::debug!("ledger: {cause}; writing a snapshot instead");
                    is_snapshot = true;
                }
                Err(cause) => return Err(cause),
            }
        }
        if is_snapshot {
            // Every open stamp is in each checkpoint. The journal before its mark is for those who find this one
            // damaged and go back to the other slot.
            self.link.sync()?;
            let saved = self.state.to_save(mark, own_files);
            self.slots.write_snapshot(&saved)?;
            written = Some(saved.own_files);
        }
        self.state.was_saved(written);
        self.checkpoints += 1;
        self.link.pass(self.slots.passed());
        if is_snapshot {
            self.settings.passed.written();
        }
        Ok(is_snapshot)
    }

    /// After a checkpoint: when the next snapshot is due, so that in the end both slots have everything.
    fn plan_snapshot(&mut self, has_news: bool, was_snapshot: bool, now: Instant) {
        let due = if has_news { 2 } else { self.snapshots_due };
        self.snapshots_due = due.saturating_sub(u8::from(was_snapshot));
        let later = now + SNAPSHOT_EVERY;
        self.snapshot_at = match self.snapshots_due {
            0 => None,
            _ if was_snapshot => Some(later),
            _ => self.snapshot_at.or(Some(later)),
        };
    }

    /// For tests that play the thread: takes what is there, and saves it if told.
    #[cfg(test)]
    pub fn catch_up(&mut self, save: bool) -> Result<()> {
        while let Ok((note, mark)) = self.notes.try_recv() {
            self.mark = mark.unwrap_or(self.mark);
            match note {
                Note::Stamping { ill } => self.stamping_ill = ill,
                note => self.state.apply(note, true)?,
            }
        }
        if save { self.write(false).map(drop) } else { Ok(()) }
    }

    #[cfg(test)]
    pub fn stamping_trouble(&self) -> Option<String> {
        self.stamping_ill.clone()
    }

    fn save(&mut self, task: &Task) {
        task.doing("writing a checkpoint");
        let now = task.now();
        let force = self.snapshot_at.is_some_and(|at| at <= now);
        let is_due = self.save_at.is_some() || force; // else nothing happened since the last one
        let is_snapshot = is_due && (force || self.needs_snapshot());
        if is_snapshot || self.stopping {
            self.settings.passed.begins();
            self.take_those_there(task);
        }
        if let Some(fault) = self.state.check_laws() {
            task.fault(fault);
        }
        if matches!(self.last_save, LastSave::At(at) if task.now() >= at) {
            self.last_save = LastSave::Done;
        }
        let saved = if is_due { self.write(is_snapshot).map(Some) } else { Ok(None) };
        match saved {
            Ok(written) => {
                if let Some(was_snapshot) = written {
                    self.plan_snapshot(self.save_at.is_some(), was_snapshot, now);
                }
                if self.ill.take().is_some() {
                    log::info!("ledger: the state can be written again");
                }
                self.save_at = None;
            }
            Err(cause) => {
                let cause = cause.to_string();
                if self.ill.is_none() {
                    log::error!(
                        "ledger: {cause}; positions are kept in memory, trying again every {:?}",
                        self.settings.sync_interval
                    );
                }
                self.ill = Some(cause);
                if let Some(fault) = self.settings.unsynced.take_lost() {
                    task.fault(fault); // the next life begins at the last checkpoint, and writes it again
                }
                self.save_at = Some(task.now() + self.settings.sync_interval);
                self.snapshot_at = None; // the next one is tried soon enough
            }
        }
        self.show();
    }

    fn show(&mut self) {
        self.show_at = None;
        let mut books = self.state.books();
        books.checkpoints = self.checkpoints;
        books.ill = self.ill.clone();
        books.stamping_ill = self.stamping_ill.clone();
        self.state.meters().show(&books, self.link.segments());
        *self.view.lock() = Arc::new(books);
    }
}
