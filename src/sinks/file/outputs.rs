//! The open outputs of a file sink: a batch goes into all of its files whole, or into none.
//!
//! ```text
//! send ── look at the file ── rotate ── journal, append ──┬── all pieces written: noted for the sync, Delivered
//!                                                         └── an error: all is taken back, Retry
//! ```
//!
//! Always true: a file that was written is noted as unsynced before the answer. After an error each file of the
//! batch is as long, and is called, as it was before; if not even that was possible, the answer says so.
//! At most [`OPEN_MAX`] files are held open here, and about [`UNSYNCED_MAX`] for a later sync.
//!
//! An output is ours alone: what another process appends to it during a batch that fails is cut off with the
//! batch. Moving, deleting and truncating it is everybody's right (logrotate), and is noticed.
//!
//! What is much and stands in memory as it will stand in the output goes to the disk from where it is, past the page
//! cache; the reader of its source is told where what follows should stand.
//!
//! A line never goes on where something else ends: if the last byte of an output that is opened ends no line, a
//! line end comes first, unless what comes is the rest of a line that was cut.

use std::collections::HashMap;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant, UNIX_EPOCH};

use super::frame::{Block, New, Part};
use super::journal::Journal;
use super::payload::{Payload, Piece};
use super::rotate;
use crate::clock::Clock;
use crate::disk::{Disk, DiskFile, FileId, Kind, Open, Paged, Seen, folder_of};
use crate::durable::{OwnFiles, SyncFolder, Unsynced, Written};
use crate::error::{Context, Error, Result};
use crate::metrics::Gauge;
use crate::sinks::{Answer, RotateOptions, Sender, SinkContext};

/// Enough for the hot files of a host; opening one more costs microseconds.
pub const OPEN_MAX: usize = 64;

/// A file that is closed here stays open until it is synced: without a limit ten thousand outputs would hold
/// ten thousand descriptors. With the default limit of 1024 there must be room for the sources.
pub const UNSYNCED_MAX: usize = 256;

/// What goes into one output at once may go past the page cache if it is so much: who brings it is behind, or fast, and
/// the disk would have to take it soon in any case, since what was written is synced before a checkpoint relies on
/// it. For less, a disk that turns would have to look for its place too often.
const DIRECT_LEAST: usize = 128 * 1024;

/// An output that was moved by others is written to for that long.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// A quiet output is closed, so that deleting it frees its space.
const CLOSE_AFTER: Duration = Duration::from_secs(5);

pub struct Outputs {
    /// The sink's: begins every error.
    name: Arc<str>,
    rotate: Option<RotateOptions>,
    clock: Clock,
    disk: Arc<dyn Disk>,
    journal: Option<Journal>,
    /// Where what is about to be written comes from; kept for its memory.
    parts: Vec<Part>,
    unsynced: Unsynced,
    own_files: OwnFiles,
    open: HashMap<Arc<Path>, Output>,
    open_gauge: Arc<Gauge>,
    /// Rises with every try of a batch.
    turn: u64,
    /// Of the batch that is being written; kept for its memory.
    undo: Vec<Undo>,
    /// The last folder that got a new name in this turn: many outputs are created side by side.
    folder: Option<(PathBuf, Arc<SyncFolder>)>,
    /// A rotation by age failed, and that was said.
    complained: bool,
}

struct Output {
    file: Arc<Written>,
    id: FileId,
    len: u64,
    /// Empty, or ends in a line end.
    whole: bool,
    /// It had this age at this time.
    age: (Duration, Instant),
    used: Instant,
    looked: Instant,
    /// The turn that wrote to it last; 0: nothing was written since it was opened.
    turn: u64,
    way: Way,
}

/// Which way to the disk an output has had last.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    /// Some of it may be in the page cache alone.
    Cached,
    /// Past the cache: only its last page may be there.
    Direct,
    /// As it has to: its file system knows no other.
    CachedAlways,
}

/// A step of a batch, and how to take it back.
enum Undo {
    /// It had this length. `file` is weak, since a batch may have more outputs than may be open.
    Appended { path: Arc<Path>, file: Weak<Written>, id: FileId, len: u64 },
    /// `new` was created at `path` and has only bytes of this batch.
    Rotated { path: Arc<Path>, new: Option<FileId>, moves: Vec<(PathBuf, PathBuf)> },
}

impl Sender<Payload> for Outputs {
    fn send(&mut self, payload: &Payload) -> Answer {
        self.turn += 1;
        self.folder = None;
        if let Some(journal) = &mut self.journal {
            journal.answered(); // who brings a batch has dealt with the answer for the last one
        }
        let begun = self.journal.as_ref().map(Journal::next);
        let mut undo = std::mem::take(&mut self.undo);
        let written = payload.pieces().try_for_each(|piece| self.write_piece(&piece, &mut undo));
        self.open_gauge.set(self.open.len() as i64);
        if let Err(why) = written {
            let why = self.take_back(undo, why);
            if let Some((journal, begun)) = self.journal.as_mut().zip(begun) {
                journal.take_back(begun);
            }
            return Answer::Retry { not_before: None, why: Error::new(format!("{}: {why}", self.name)) };
        }
        for step in undo.drain(..) {
            if let Undo::Rotated { path, .. } = step {
                self.prune(&path);
            }
        }
        self.undo = undo;
        Answer::Delivered
    }

    fn idle(&mut self, now: Instant) -> Option<Instant> {
        let max_age = self.rotate.and_then(|rotate| rotate.max_age);
        let mut open = std::mem::take(&mut self.open);
        open.retain(|path, output| {
            if !output.is_old(max_age, now) || !rotate::may_end(output.len, output.whole, None) {
                // With an age limit, it must stay in sight.
                return now.saturating_duration_since(output.used) < CLOSE_AFTER
                    || max_age.is_some() && output.file.seen().is_ok_and(|seen| seen.links > 0);
            }
            match self.rotate_quiet(path, output, now) {
                Ok(()) => self.complained = false, // and it is made anew by the next line
                Err(cause) => {
                    let name = &self.name;
                    if !std::mem::replace(&mut self.complained, true) {
                        log::warn!("{name}: could not rotate by age, trying again every second: {cause}");
                    }
                    return true;
                }
            }
            false
        });
        self.open = open;
        self.open_gauge.set(self.open.len() as i64);
        (!self.open.is_empty()).then(|| now + LOOK_EVERY)
    }
}

impl Outputs {
    pub fn new(
        name: &Arc<str>,
        rotate: Option<RotateOptions>,
        journal: Option<Journal>,
        cx: &SinkContext,
    ) -> Outputs {
        Outputs {
            name: name.clone(),
            rotate,
            clock: cx.clock.clone(),
            disk: cx.disk.clone(),
            journal,
            parts: Vec::new(),
            unsynced: cx.unsynced.clone(),
            own_files: cx.own_files.clone(),
            open: HashMap::new(),
            open_gauge: cx.metrics.gauge("outputs_open", "Outputs that are held open.", &[("sink", name)]),
            turn: 0,
            undo: Vec::new(),
            folder: None,
            complained: false,
        }
    }

    fn write_piece(&mut self, piece: &Piece<'_>, undo: &mut Vec<Undo>) -> Result<()> {
        let now = self.clock.now();
        let mut output = self.output(piece.path, now)?;
        output.used = now;
        let written = self.write_lines(piece, &mut output, undo);
        self.open.insert(piece.path.clone(), output);
        written
    }

    fn write_lines(&mut self, piece: &Piece<'_>, output: &mut Output, undo: &mut Vec<Undo>) -> Result<()> {
        let path = piece.path;
        if output.turn != self.turn {
            let begun = |step: &Undo| matches!(step, Undo::Appended { path: known, .. } if known == path);
            if self.is_due(output, piece) && !undo.iter().any(begun) {
                // Due whatever becomes of the batch: it is not taken back, and makes room on a full disk.
                self.shift(path)?;
                self.prune(path);
                *output = self.open_output(path, output.used)?;
            }
            undo.push(Undo::Appended {
                path: path.clone(),
                file: Arc::downgrade(&output.file),
                id: output.id,
                len: output.len,
            });
            let fresh = std::mem::replace(&mut output.turn, self.turn) == 0;
            if fresh && !output.whole && !piece.continues {
                self.parts.clear();
                self.append(path, output, b"\n", None)?;
            }
        }
        let mut at = 0;
        loop {
            let part = self.fits(output, piece, at);
            if part > 0 {
                piece.parts(at..at + part, &mut self.parts);
                let (bytes, offset) = (at..at + part, output.len);
                let sums = piece.sums(&bytes, offset);
                let is_direct = self.append(path, output, &piece.bytes[bytes], sums)?;
                piece.teach(&self.parts, offset, is_direct);
                at += part;
            }
            if at == piece.bytes.len() {
                return Ok(());
            }
            let moves = self.shift(path)?;
            undo.push(Undo::Rotated { path: path.clone(), new: None, moves });
            *output = self.open_output(path, output.used)?;
            output.turn = self.turn;
            if let (0, Some(Undo::Rotated { new, .. })) = (output.len, undo.last_mut()) {
                *new = Some(output.id);
            }
        }
    }

    /// Notes it first, with where it comes from. The bytes are summed up once, for the journal and for the file; `sums`:
    /// or were, for each page. Whether they went from where they are.
    fn append(
        &mut self,
        path: &Path,
        output: &mut Output,
        bytes: &[u8],
        sums: Option<&[u32]>,
    ) -> Result<bool> {
        let may_be_direct = bytes.len() >= DIRECT_LEAST && output.way != Way::CachedAlways;
        let paged = Paged::of(bytes, output.len).filter(|_| may_be_direct);
        if paged.is_some() && output.way == Way::Cached && output.len > 0 {
            self.unsynced.sync()?; // else a power cut leaves a hole in front of it
        }
        let new = match paged {
            Some(_) => New { bytes, block: Block::Page, sums: sums.unwrap_or_default() },
            None => New { bytes, block: Block::Sector, sums: &[] },
        };
        let sum = match &mut self.journal {
            Some(journal) => journal.append(path, output.id.inode, output.len, new, &self.parts)?,
            None => Written::sum_of(bytes),
        };
        let written = output.append(bytes, paged, sum);
        self.unsynced.note(output.file.clone()); // a write that failed may have left its part
        written.context(|| format!("could not write {} bytes to {}", bytes.len(), path.display()))?;
        Ok(output.way == Way::Direct)
    }

    /// How many bytes of the piece from `at` on go into the output before it is rotated.
    fn fits(&self, output: &Output, piece: &Piece<'_>, at: usize) -> usize {
        let rest = &piece.bytes[at..];
        let Some(max_bytes) = self.rotate.and_then(|rotate| rotate.max_bytes) else { return rest.len() };
        let fits = rotate::fits(rest, output.len, output.whole, max_bytes);
        // No record is divided by a rotation, whatever lines it is made of.
        match piece.cuts_around(at + fits) {
            (before, _) if before > at || fits == 0 => before - at,
            _ if rotate::may_end(output.len, output.whole, Some(max_bytes)) => 0,
            (_, behind) => behind - at,
        }
    }

    fn is_due(&self, output: &Output, piece: &Piece<'_>) -> bool {
        let Some(RotateOptions { max_bytes, max_age, .. }) = self.rotate else { return false };
        rotate::may_end(output.len, output.whole, max_bytes)
            && (output.is_old(max_age, output.used)
                || max_bytes.is_some() && self.fits(output, piece, 0) == 0)
    }

    /// The open output, if it still is the one that stands at `path`; else it is opened, or made.
    fn output(&mut self, path: &Arc<Path>, now: Instant) -> Result<Output> {
        if let Some(mut output) = self.open.remove(path)
            && (output.turn == self.turn || output.still_at(&*self.disk, path, now, LOOK_EVERY)?)
        {
            return Ok(output);
        }
        self.open_output(path, now)
    }

    fn open_output(&mut self, path: &Path, now: Instant) -> Result<Output> {
        self.make_room()?;
        let doing = || format!("could not open {}", path.display());
        // Asked first: to open a named pipe or a device can do things already.
        let is_new = match self.disk.look(path) {
            Ok(seen) => must_be_regular(path, &seen).map(|()| false)?,
            Err(cause) if cause.kind() == ErrorKind::NotFound => true,
            Err(cause) => return Err(cause).context(doing),
        };
        if is_new {
            self.create_folder(folder_of(path))
                .context(|| format!("could not create the folder {}", folder_of(path).display()))?;
        }
        let file = Written::new(self.disk.open(path, Open::Append).context(doing)?);
        let seen = file.seen().context(doing)?;
        must_be_regular(path, &seen)?;
        if is_new {
            self.note_folder(folder_of(path));
        }
        self.own_files.add(seen.id, path);
        Ok(Output {
            id: seen.id,
            len: seen.size,
            whole: ends_whole(&*file, seen.size),
            age: (self.age_of(&seen), now),
            file,
            used: now,
            looked: now,
            turn: 0,
            way: Way::Cached,
        })
    }

    /// By its time of creation, where the file system knows one.
    fn age_of(&self, seen: &Seen) -> Duration {
        let created = seen.created.and_then(|created| created.duration_since(UNIX_EPOCH).ok());
        let now = Duration::from_nanos(self.clock.wall_ns().max(0) as u64);
        created.map_or(Duration::ZERO, |created| now.saturating_sub(created))
    }

    fn make_room(&mut self) -> Result<()> {
        if self.unsynced.len() >= UNSYNCED_MAX {
            self.unsynced.sync()?;
        }
        while self.open.len() >= OPEN_MAX {
            let oldest = self.open.iter().min_by_key(|(_, output)| output.used).map(|(path, _)| path.clone());
            oldest.and_then(|path| self.open.remove(&path));
        }
        Ok(())
    }

    /// With all above it, each noted in its own folder.
    fn create_folder(&mut self, folder: &Path) -> io::Result<()> {
        let mut create = self.disk.create_output_folder(folder);
        if let (Err(cause), Some(_)) = (&create, folder.parent())
            && cause.kind() == ErrorKind::NotFound
        {
            self.create_folder(folder_of(folder))?;
            create = self.disk.create_output_folder(folder);
        }
        match create {
            Err(cause) if cause.kind() == ErrorKind::AlreadyExists => {}
            created => {
                created?;
                self.note_folder(folder_of(folder));
            }
        }
        Ok(())
    }

    fn note_folder(&mut self, folder: &Path) {
        let note = match &self.folder {
            Some((known, note)) if known == folder => note.clone(),
            _ => SyncFolder::of(&self.disk, folder),
        };
        self.unsynced.note_folder(note.clone());
        self.folder = Some((folder.to_owned(), note));
    }

    fn rotate_quiet(&mut self, path: &Path, output: &mut Output, now: Instant) -> Result<()> {
        if output.still_at(&*self.disk, path, now, Duration::ZERO)? {
            self.shift(path)?;
            self.prune(path);
        }
        Ok(())
    }

    /// Frees `path` for a new file. The oldest are not deleted yet: see [`Outputs::prune`].
    fn shift(&self, path: &Path) -> Result<Vec<(PathBuf, PathBuf)>> {
        let moves = rotate::moves(&*self.disk, path)?;
        self.rename_all(&moves)?;
        Ok(moves)
    }

    /// Each one is made durable before the next: a disk that forgets one of them and keeps the next, which takes its
    /// place, would have lost a file.
    fn rename_all(&self, moves: &[(PathBuf, PathBuf)]) -> Result<()> {
        for (from, to) in moves {
            let moved = self.disk.rename(from, to).and_then(|()| self.disk.sync_folder(folder_of(to)));
            moved.context(|| format!("could not rename {} to {}", from.display(), to.display()))?;
            if let Ok(seen) = self.disk.look(to) {
                self.own_files.add(seen.id, to); // else it is gone, and nobody can capture it
            }
        }
        Ok(())
    }

    /// The batch is written: that an old file cannot be deleted must not write it again.
    fn prune(&mut self, path: &Path) {
        let keep = self.rotate.map_or(usize::MAX - 1, |rotate| rotate.keep);
        let Outputs { disk, journal, .. } = self;
        let note = |old: &Path| match (&mut *journal, disk.look(old)) {
            (Some(journal), Ok(seen)) => journal.delete(seen.id.inode, seen.size),
            _ => Ok(()),
        };
        if let Err(cause) = rotate::prune(&**disk, path, keep, note) {
            log::warn!("file: the rotated files of {} are more than {keep}: {cause}", path.display());
        }
    }

    /// Back to where the batch began, last step first.
    fn take_back(&mut self, undo: Vec<Undo>, why: Error) -> Error {
        let mut failed = Ok(());
        for step in undo.into_iter().rev() {
            failed = failed.and(self.undo(step));
        }
        self.open.clear(); // what is true of the files is found out anew
        match failed {
            Ok(()) => why,
            Err(cause) => Error::new(format!(
                "{why}; the next try will double lines, since what was written could not be taken back: {cause}"
            )),
        }
    }

    fn undo(&self, step: Undo) -> Result<()> {
        match step {
            Undo::Appended { path, file, id, len } => {
                let doing = || format!("could not cut {} back to {len} bytes", path.display());
                let file = match file.upgrade() {
                    Some(file) => file,
                    None => Written::new(self.disk.open(&path, Open::Existing).context(doing)?),
                };
                let seen = file.seen().context(doing)?;
                if seen.id != id {
                    return Err(Error::new("it is another file now")).context(doing);
                }
                if seen.size > len {
                    file.set_size(len).context(doing)?;
                    self.unsynced.note(file.clone());
                }
                Ok(())
            }
            Undo::Rotated { path, new, moves } => {
                if new.is_some_and(|new| stands_at(&*self.disk, new, &path)) {
                    self.disk.remove(&path).context(|| format!("could not remove {}", path.display()))?;
                }
                if rotate::exists(&*self.disk, &path)? {
                    return Err(Error::new(format!("{} is another file now", path.display())));
                }
                let back: Vec<_> = moves.into_iter().rev().map(|(from, to)| (to, from)).collect();
                self.rename_all(&back)
            }
        }
    }
}

impl Output {
    fn append(&mut self, bytes: &[u8], paged: Option<Paged<'_>>, sum: u32) -> io::Result<()> {
        if self.len == 0 {
            self.age = (Duration::ZERO, self.used);
        }
        match paged {
            Some(paged) => {
                self.way = Way::Cached; // whatever becomes of it
                let is_direct = self.file.write_direct_summed(paged, sum)?;
                self.way = if is_direct { Way::Direct } else { Way::CachedAlways };
            }
            None => {
                self.file.write_summed(bytes, self.len, sum)?;
                self.way = if self.way == Way::CachedAlways { self.way } else { Way::Cached };
            }
        }
        self.len += bytes.len() as u64;
        self.whole = bytes.ends_with(b"\n");
        Ok(())
    }

    fn is_old(&self, max_age: Option<Duration>, now: Instant) -> bool {
        let (age, then) = self.age;
        max_age.is_some_and(|max_age| age + now.saturating_duration_since(then) >= max_age)
    }

    /// Whether this still is the output, asking the path at most every `look_every`; learns its true length.
    fn still_at(&mut self, disk: &dyn Disk, path: &Path, now: Instant, look_every: Duration) -> Result<bool> {
        let seen = self.file.seen().context(|| format!("could not look at {}", path.display()))?;
        if seen.links == 0 {
            return Ok(false);
        }
        if seen.size != self.len {
            self.len = seen.size; // somebody truncated it, or wrote to it
            self.way = Way::Cached;
            self.whole = ends_whole(&*self.file, self.len);
        }
        if now.saturating_duration_since(self.looked) < look_every {
            return Ok(true);
        }
        self.looked = now;
        Ok(stands_at(disk, self.id, path))
    }
}

fn stands_at(disk: &dyn Disk, id: FileId, path: &Path) -> bool {
    disk.look(path).is_ok_and(|seen| seen.id == id)
}

/// Whether the file is empty or its last byte ends a line. One that we may write but not read is taken as whole.
fn ends_whole(file: &dyn DiskFile, len: u64) -> bool {
    let Some(at) = len.checked_sub(1) else { return true };
    let mut last = [0];
    file.read_at(&mut last, at).is_err() || last == *b"\n"
}

fn must_be_regular(path: &Path, seen: &Seen) -> Result<()> {
    let what = match seen.kind {
        Kind::File => return Ok(()),
        Kind::Folder => "a folder",
        Kind::Pipe => "a named pipe",
        Kind::Socket => "a socket",
        Kind::Device => "a device",
    };
    Err(Error::new(format!("{} is {what}: an output must be a regular file", path.display())))
}
