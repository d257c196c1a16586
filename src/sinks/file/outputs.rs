//! The open outputs of a file sink: a batch goes into all of its files whole, or into none.
//!
//! ```text
//! send ── look at the file ── rotate ── append ──┬── all pieces written: noted for the sync, Delivered
//!                                                └── an error: all is taken back, Retry
//! ```
//!
//! Always true: a file that was written is noted as unsynced before the answer. After an error each file of the
//! batch is as long, and is called, as it was before; if not even that was possible, the answer says so.
//! At most [`OPEN_MAX`] files are held open here, and about [`UNSYNCED_MAX`] for a later sync.
//!
//! An output is ours alone: what another process appends to it during a batch that fails is cut off with the
//! batch. Moving, deleting and truncating it is everybody's right (logrotate), and is noticed.
//!
//! Not here yet: after a kill in the middle of a batch its first part stands in the files and is written again
//! with the replay. A write journal belongs into [`Outputs::open_output`], which is the first to see an output
//! after a start, and into [`Outputs::write_lines`], which knows offset and bytes before they are written.

use std::collections::HashMap;
use std::fs::{DirBuilder, File, Metadata, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::{DirBuilderExt, FileExt, FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant, UNIX_EPOCH};

use rustix::fs::OFlags;

use super::{Payload, rotate};
use crate::clock::Clock;
use crate::durable::{self, FileId, OwnFiles, Unsynced, folder_of};
use crate::error::{Context, Error, Result};
use crate::metrics::Gauge;
use crate::sinks::{Answer, RotateOptions, Sender, SinkContext};

/// Enough for the hot files of a host; opening one more costs microseconds.
pub const OPEN_MAX: usize = 64;

/// A file that is closed here stays open until it is synced: without a limit ten thousand outputs would hold
/// ten thousand descriptors. With the default limit of 1024 there must be room for the sources.
pub const UNSYNCED_MAX: usize = 256;

/// An output that was moved by others is written to for that long.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// A quiet output is closed, so that deleting it frees its space.
const CLOSE_AFTER: Duration = Duration::from_secs(5);

/// Not for everybody: what was captured may be as private as `/var/log/auth.log`, which has this mode too.
const FILE_MODE: u32 = 0o640;

/// Those that we make on the way to an output.
const FOLDER_MODE: u32 = 0o750;

pub struct Outputs {
    /// The sink's: begins every error.
    name: Arc<str>,
    rotate: Option<RotateOptions>,
    clock: Clock,
    unsynced: Unsynced,
    own_files: OwnFiles,
    open: HashMap<Arc<Path>, Output>,
    open_gauge: Arc<Gauge>,
    /// Rises with every try of a batch.
    turn: u64,
    /// The last folder that got a new name in this turn: many outputs are created side by side.
    folder: Option<(PathBuf, Arc<File>)>,
    /// A rotation by age failed, and that was said.
    complained: bool,
}

struct Output {
    file: Arc<File>,
    id: FileId,
    len: u64,
    /// Empty, or ends in a line end.
    whole: bool,
    /// It had this age at this time.
    age: (Duration, Instant),
    used: Instant,
    looked: Instant,
    /// The turn that wrote to it last.
    turn: u64,
}

/// A step of a batch, and how to take it back.
enum Undo {
    /// It had this length. `file` is weak, since a batch may have more outputs than may be open.
    Appended { path: Arc<Path>, file: Weak<File>, id: FileId, len: u64 },
    /// `new` was created at `path` and has only bytes of this batch.
    Rotated { path: Arc<Path>, new: Option<FileId>, moves: Vec<(PathBuf, PathBuf)> },
}

impl Sender<Payload> for Outputs {
    fn send(&mut self, payload: &Payload) -> Answer {
        self.turn += 1;
        self.folder = None;
        let mut undo = Vec::new();
        let written = payload.pieces().try_for_each(|(path, bytes)| self.write_piece(path, bytes, &mut undo));
        self.open_gauge.set(self.open.len() as i64);
        if let Err(why) = written {
            let why = self.take_back(undo, why);
            return Answer::Retry { not_before: None, why: Error::new(format!("{}: {why}", self.name)) };
        }
        for step in undo {
            if let Undo::Rotated { path, .. } = step {
                self.prune(&path);
            }
        }
        Answer::Delivered
    }

    fn idle(&mut self, now: Instant) -> Option<Instant> {
        let max_age = self.rotate.and_then(|rotate| rotate.max_age);
        for (path, mut output) in std::mem::take(&mut self.open) {
            if output.is_old(max_age, now) && rotate::may_end(output.len, output.whole, None) {
                match self.rotate_quiet(&path, &mut output, now) {
                    Ok(()) => self.complained = false, // and it is made anew by the next line
                    Err(cause) => {
                        if !std::mem::replace(&mut self.complained, true) {
                            log::warn!(
                                "{}: could not rotate by age, trying again every second: {cause}",
                                self.name
                            );
                        }
                        self.open.insert(path, output);
                    }
                }
            } else if now.saturating_duration_since(output.used) < CLOSE_AFTER
                || max_age.is_some() && output.file.metadata().is_ok_and(|metadata| metadata.nlink() > 0)
            {
                self.open.insert(path, output); // with an age limit, it must stay in sight
            }
        }
        self.open_gauge.set(self.open.len() as i64);
        (!self.open.is_empty()).then(|| now + LOOK_EVERY)
    }
}

impl Outputs {
    pub fn new(name: &Arc<str>, rotate: Option<RotateOptions>, cx: &SinkContext) -> Outputs {
        Outputs {
            name: name.clone(),
            rotate,
            clock: cx.clock.clone(),
            unsynced: cx.unsynced.clone(),
            own_files: cx.own_files.clone(),
            open: HashMap::new(),
            open_gauge: cx.metrics.gauge("outputs_open", "Outputs that are held open.", &[("sink", name)]),
            turn: 0,
            folder: None,
            complained: false,
        }
    }

    fn write_piece(&mut self, path: &Arc<Path>, bytes: &[u8], undo: &mut Vec<Undo>) -> Result<()> {
        let now = self.clock.now();
        let mut output = self.output(path, now)?;
        output.used = now;
        let written = self.write_lines(path, &mut output, bytes, undo);
        self.open.insert(path.clone(), output);
        written
    }

    fn write_lines(
        &mut self,
        path: &Arc<Path>,
        output: &mut Output,
        mut rest: &[u8],
        undo: &mut Vec<Undo>,
    ) -> Result<()> {
        if output.turn != self.turn {
            let begun = |step: &Undo| matches!(step, Undo::Appended { path: known, .. } if known == path);
            if self.is_due(output, rest) && !undo.iter().any(begun) {
                // Due whatever becomes of the batch: it is not taken back, and makes room on a full disk.
                self.shift(path)?;
                self.prune(path);
                *output = self.open_output(path, output.used)?;
            }
            output.turn = self.turn;
            undo.push(Undo::Appended {
                path: path.clone(),
                file: Arc::downgrade(&output.file),
                id: output.id,
                len: output.len,
            });
        }
        loop {
            let max_bytes = self.rotate.and_then(|rotate| rotate.max_bytes);
            let part = max_bytes
                .map_or(rest.len(), |max_bytes| rotate::fits(rest, output.len, output.whole, max_bytes));
            if part > 0 {
                output
                    .append(&rest[..part])
                    .context(|| format!("could not write {part} bytes to {}", path.display()))?;
                self.unsynced.note(output.file.clone());
                rest = &rest[part..];
            }
            if rest.is_empty() {
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

    fn is_due(&self, output: &Output, rest: &[u8]) -> bool {
        let Some(RotateOptions { max_bytes, max_age, .. }) = self.rotate else { return false };
        rotate::may_end(output.len, output.whole, max_bytes)
            && (output.is_old(max_age, output.used)
                || max_bytes.is_some_and(|max| rotate::fits(rest, output.len, output.whole, max) == 0))
    }

    /// The open output, if it still is the one that stands at `path`; else it is opened, or made.
    fn output(&mut self, path: &Arc<Path>, now: Instant) -> Result<Output> {
        if let Some(mut output) = self.open.remove(path)
            && (output.turn == self.turn || output.still_at(path, now, LOOK_EVERY)?)
        {
            return Ok(output);
        }
        self.open_output(path, now)
    }

    fn open_output(&mut self, path: &Path, now: Instant) -> Result<Output> {
        self.make_room()?;
        let doing = || format!("could not open {}", path.display());
        // Asked first: to open a named pipe or a device can do things already.
        let is_new = match std::fs::metadata(path) {
            Ok(metadata) => must_be_regular(path, &metadata).map(|()| false)?,
            Err(cause) if cause.kind() == ErrorKind::NotFound => true,
            Err(cause) => return Err(cause).context(doing),
        };
        if is_new {
            self.create_folder(folder_of(path))
                .context(|| format!("could not create the folder {}", folder_of(path).display()))?;
        }
        let mut how = OpenOptions::new();
        how.append(true).create(true).mode(FILE_MODE).custom_flags(OFlags::NONBLOCK.bits() as i32);
        let file = how.open(path).context(doing)?;
        let metadata = file.metadata().context(doing)?;
        must_be_regular(path, &metadata)?;
        if is_new {
            self.note_folder(folder_of(path)).context(doing)?;
        }
        let id = FileId::of(&metadata);
        self.own_files.add(id, path);
        let len = metadata.len();
        Ok(Output {
            file: Arc::new(file),
            id,
            len,
            whole: ends_whole(path, len),
            age: (self.age_of(&metadata), now),
            used: now,
            looked: now,
            turn: 0,
        })
    }

    /// By its time of creation, where the file system knows one.
    fn age_of(&self, metadata: &Metadata) -> Duration {
        let created = metadata.created().ok().and_then(|created| created.duration_since(UNIX_EPOCH).ok());
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
        let mut create = DirBuilder::new().mode(FOLDER_MODE).create(folder);
        if let (Err(cause), Some(_)) = (&create, folder.parent())
            && cause.kind() == ErrorKind::NotFound
        {
            self.create_folder(folder_of(folder))?;
            create = DirBuilder::new().mode(FOLDER_MODE).create(folder);
        }
        match create {
            Err(cause) if cause.kind() == ErrorKind::AlreadyExists => Ok(()),
            Err(cause) => Err(cause),
            Ok(()) => self.note_folder(folder_of(folder)),
        }
    }

    fn note_folder(&mut self, folder: &Path) -> io::Result<()> {
        let handle = match &self.folder {
            Some((known, handle)) if known == folder => handle.clone(),
            _ => Arc::new(File::open(folder)?),
        };
        self.unsynced.note(handle.clone());
        self.folder = Some((folder.to_owned(), handle));
        Ok(())
    }

    fn rotate_quiet(&self, path: &Path, output: &mut Output, now: Instant) -> Result<()> {
        if output.still_at(path, now, Duration::ZERO)? {
            self.shift(path)?;
            self.prune(path);
        }
        Ok(())
    }

    /// Frees `path` for a new file. The oldest are not deleted yet: see [`Outputs::prune`].
    fn shift(&self, path: &Path) -> Result<Vec<(PathBuf, PathBuf)>> {
        let moves = rotate::moves(path)?;
        self.rename_all(&moves)?;
        Ok(moves)
    }

    fn rename_all(&self, moves: &[(PathBuf, PathBuf)]) -> Result<()> {
        durable::rename_all(moves)?;
        for (_, to) in moves {
            if let Ok(metadata) = std::fs::metadata(to) {
                self.own_files.add(FileId::of(&metadata), to); // else it is gone, and nobody can capture it
            }
        }
        Ok(())
    }

    /// The batch is written: that an old file cannot be deleted must not write it again.
    fn prune(&self, path: &Path) {
        let keep = self.rotate.map_or(usize::MAX - 1, |rotate| rotate.keep);
        if let Err(cause) = rotate::prune(path, keep) {
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
                    None => Arc::new(OpenOptions::new().append(true).open(&path).context(doing)?),
                };
                let metadata = file.metadata().context(doing)?;
                if FileId::of(&metadata) != id {
                    return Err(Error::new("it is another file now")).context(doing);
                }
                if metadata.len() > len {
                    file.set_len(len).context(doing)?;
                    self.unsynced.note(file.clone());
                }
                Ok(())
            }
            Undo::Rotated { path, new, moves } => {
                if new.is_some_and(|new| new.stands_at(&path)) {
                    std::fs::remove_file(&path).context(|| format!("could not remove {}", path.display()))?;
                }
                if rotate::exists(&path)? {
                    return Err(Error::new(format!("{} is another file now", path.display())));
                }
                let back: Vec<_> = moves.into_iter().rev().map(|(from, to)| (to, from)).collect();
                self.rename_all(&back)
            }
        }
    }
}

impl Output {
    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        if self.len == 0 {
            self.age = (Duration::ZERO, self.used);
        }
        (&*self.file).write_all(bytes)?;
        self.len += bytes.len() as u64;
        self.whole = bytes.ends_with(b"\n");
        Ok(())
    }

    fn is_old(&self, max_age: Option<Duration>, now: Instant) -> bool {
        let (age, then) = self.age;
        max_age.is_some_and(|max_age| age + now.saturating_duration_since(then) >= max_age)
    }

    /// Whether this still is the output, asking the path at most every `look_every`; learns its true length.
    fn still_at(&mut self, path: &Path, now: Instant, look_every: Duration) -> Result<bool> {
        let metadata = self.file.metadata().context(|| format!("could not look at {}", path.display()))?;
        if metadata.nlink() == 0 {
            return Ok(false);
        }
        if metadata.len() != self.len {
            self.len = metadata.len(); // somebody truncated it, or wrote to it
            self.whole = ends_whole(path, self.len);
        }
        if now.saturating_duration_since(self.looked) < look_every {
            return Ok(true);
        }
        self.looked = now;
        Ok(self.id.stands_at(path))
    }
}

/// Whether the file is empty or its last byte ends a line. One that we may write but not read is taken as whole.
fn ends_whole(path: &Path, len: u64) -> bool {
    let Some(at) = len.checked_sub(1) else { return true };
    let mut last = [0];
    let read = File::open(path).and_then(|file| file.read_exact_at(&mut last, at));
    read.is_err() || last == *b"\n"
}

fn must_be_regular(path: &Path, metadata: &Metadata) -> Result<()> {
    let kind = metadata.file_type();
    let what = match () {
        () if kind.is_file() => return Ok(()),
        () if kind.is_dir() => "a folder",
        () if kind.is_fifo() => "a named pipe",
        () if kind.is_socket() => "a socket",
        () => "a device",
    };
    Err(Error::new(format!("{} is {what}: an output must be a regular file", path.display())))
}
