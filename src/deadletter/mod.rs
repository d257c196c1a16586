//! Dead letters: records that a sink refused for good, kept with the reason until a person looks at them.
//!
//! `deadletter.jsonl` in its folder below `data_dir` has one JSON object a line ([`Kept`]). It says itself from
//! which sink, generation and range a letter comes, so that a whole line is as good as a receipt after a crash.
//!
//! Always true: a letter that `put` accepted is in the file, and the file is noted as unsynced, before its share is
//! settled: no checkpoint says "answered for" of a letter that a power cut could take. Nothing is dropped for lack of
//! room: `put` fails, which is counted, and its lane rests until somebody has replayed or purged.
//!
//! Every letter is part of one write at the end of the file, so several threads may call and no lock is held meanwhile.
//! A crash or a full disk can leave half a letter. The next one starts on a new line; should two threads meet
//! there, half a letter may stand before a whole one on one line, and a line may be empty. [`Kept::parse`] knows
//! the former; a reader passes over the latter.
//!
//! The commands work beside an agent that appends ([`folder`]): they move the file aside, and the next letter begins a
//! new one. A letter is written under a shared lock of its file (`flock`), taken without waiting, and only if the file
//! still has its name then; whoever has moved it aside takes the lock exclusively once, and knows that nothing comes
//! any more.

pub mod folder;
#[cfg(test)]
mod tests;

use std::borrow::Borrow;
use std::collections::BTreeMap;
use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use parking_lot::Mutex;
use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};

use crate::ack::GenerationId;
use crate::budget::Credit;
use crate::clock::Clock;
use crate::disk::{Disk, RealDisk, folder_of};
use crate::durable::{FileId, SyncFolder, Unsynced, Written};
use crate::error::{Context, Error, Result};
use crate::metrics::{Counter, Registry};
use crate::order;
use crate::record::{Changed, Entry, Labels, Lines, Origin, Record, Records, Shift};

/// The name of the file in its folder.
pub const FILE_NAME: &str = "deadletter.jsonl";

/// How often a letter is tried to be written while somebody moves files aside.
const TRIES: usize = 100;

/// A refused record. Texts and times as they stand in the file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Letter {
    pub sink: String,
    /// Why the sink refused it, in its own words.
    pub reason: String,
    pub source: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub filename: Option<String>,
    pub generation: u64,
    /// Where the line begins in its generation, in bytes.
    pub offset: u64,
    /// How many bytes it has there, line end included.
    pub len: u64,
    /// RFC 3339, UTC.
    pub record_time: String,
    pub labels: BTreeMap<String, String>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub metadata: BTreeMap<String, String>,
    /// Cut at the limit of length or at the end of a file, or the rest of such a line.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub partial: bool,
    /// A stage has replaced the text.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub replaced: bool,
    /// The exact bytes of the source, line end included; or, if a stage replaced the text, the new one without
    /// a line end. Read it with [`Letter::bytes`].
    #[serde(rename = "bytes")]
    text: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    encoding: Option<Encoding>,
}

/// How bytes that are no UTF-8 became a text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Encoding {
    Base64,
}

impl Letter {
    pub fn of(record: &Record<'_>, sink: &str, reason: &str) -> Letter {
        let bytes = record.raw.unwrap_or(record.text);
        let (text, encoding) = match std::str::from_utf8(bytes) {
            Ok(text) => (text.to_owned(), None),
            Err(_) => (STANDARD.encode(bytes), Some(Encoding::Base64)),
        };
        Letter {
            sink: sink.into(),
            reason: reason.into(),
            source: record.origin.source.to_string(),
            filename: record.origin.filename.as_deref().map(str::to_owned),
            generation: record.origin.generation.0,
            offset: record.offset,
            len: record.len,
            record_time: time_text(record.time_ns),
            labels: order::map(record.labels.iter().map(|(name, value)| (name.into(), value.into()))),
            metadata: order::map(
                record.metadata.iter().map(|(name, value)| (name.to_string(), value.to_string())),
            ),
            partial: record.partial,
            replaced: record.raw.is_none(),
            text,
            encoding,
        }
    }

    /// An error is a file that somebody else wrote.
    pub fn bytes(&self) -> Result<Vec<u8>> {
        match self.encoding {
            None => Ok(self.text.clone().into_bytes()),
            Some(Encoding::Base64) => {
                STANDARD.decode(&self.text).context(|| "a dead letter is not base64".into())
            }
        }
    }

    /// As it was when it was refused: time, labels, generation and offset make the id that it had. `credit` pays for
    /// the bytes. An error is a file that somebody else wrote.
    pub fn records(&self, credit: Credit) -> Result<Records> {
        let bytes = self.bytes()?;
        let time: jiff::Timestamp =
            self.record_time.parse().context(|| "the time of a dead letter is none".to_owned())?;
        let base_ns = i64::try_from(time.as_nanosecond()).context(|| "a time beyond all times".to_owned())?;
        let origin = Origin {
            source: self.source.as_str().into(),
            generation: GenerationId(self.generation),
            lineage: 0,
            labels: Arc::new(Labels::new(self.labels.iter().map(|(name, value)| (&**name, &**value)))),
            filename: self.filename.as_deref().map(Arc::from),
            replayable: true,
            stages: Box::default(),
            shift: Shift::default(),
        };
        let text = self.replaced.then(|| bytes.clone().into_boxed_slice());
        let data = if self.replaced || bytes.is_empty() { [&bytes, &b"\n"[..]].concat() } else { bytes };
        let metadata: Vec<(Arc<str>, Box<str>)> =
            self.metadata.iter().map(|(name, value)| (name.as_str().into(), value.as_str().into())).collect();
        let ends = vec![u32::try_from(data.len()).context(|| "a dead letter is too long".to_owned())?];
        let continues = self.partial && data.ends_with(b"\n");
        let lines = Lines {
            origin: Arc::new(origin),
            start: self.offset,
            data: data.into(),
            sums: None,
            ends: ends.into(),
            base_ns,
            first_line: 0,
            continues,
            timed: None,
            credit,
        };
        let changed = Changed { text, metadata, ..Changed::default() };
        Ok(Records::kept(lines, vec![Entry { line: 0, changed: Some(Box::new(changed)) }]))
    }
}

/// A line of the file: `time` always comes first.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kept<L> {
    /// When it was put here; RFC 3339, UTC.
    pub time: String,
    #[serde(flatten)]
    pub letter: L,
}

impl Kept<Letter> {
    /// `line` with or without its line end. An error is half a letter, or not one of ours.
    pub fn parse(line: &[u8]) -> Result<Kept<Letter>> {
        let whole = serde_json::from_slice(line);
        // Behind half a letter: the first beginning from which the line is a letter to its end.
        let behind = || memchr::memmem::find_iter(line, br#"{"time":""#);
        whole
            .or_else(|cause| behind().find_map(|at| serde_json::from_slice(&line[at..]).ok()).ok_or(cause))
            .context(|| "could not read a dead letter".into())
    }
}

/// Where dead letters are put. Clones share the file.
#[derive(Clone)]
pub struct DeadLetters(Arc<Inner>);

struct Inner {
    path: PathBuf,
    max_bytes: u64,
    unsynced: Unsynced,
    clock: Clock,
    open: Mutex<Option<Open>>,
    /// Bytes that are being written now and may not count in the length of the file yet.
    under_way: AtomicU64,
    /// The file may end within a letter.
    torn: AtomicBool,
    /// Of the file, at the last letter of this life.
    len: AtomicU64,
    /// Of the files that were moved aside, as far as is known.
    aside: AtomicU64,
    failed: Arc<Counter>,
}

#[derive(Clone)]
struct Open {
    file: Arc<File>,
    /// The same, to be synced.
    written: Arc<Written>,
    id: FileId,
}

impl DeadLetters {
    /// Touches no disk: folder (0700) and file (0600) are made by the first letter. `max_bytes`: of all letters.
    pub fn open(dir: &Path, max_bytes: u64, unsynced: Unsynced, clock: Clock) -> DeadLetters {
        DeadLetters(Arc::new(Inner {
            path: dir.join(FILE_NAME),
            max_bytes,
            unsynced,
            clock,
            open: Mutex::new(None),
            under_way: AtomicU64::new(0),
            torn: AtomicBool::new(false),
            len: AtomicU64::new(0),
            aside: AtomicU64::new(0),
            failed: Arc::default(),
        }))
    }

    pub fn count_in(&self, metrics: &Registry) {
        let help =
            "Times that dead letters could not be kept: no room, or no disk. Their sink rests meanwhile.";
        metrics.adopt("dead_letters_failed_total", help, &[], &self.0.failed);
    }

    /// Bytes of the file, as far as it is known without touching the disk: 0 before the first letter of this life.
    pub fn bytes(&self) -> u64 {
        self.0.len.load(Ordering::Relaxed)
    }

    pub fn path(&self) -> &Path {
        &self.0.path
    }

    /// After `Ok` the letter is in the file, and will be on the disk before the next checkpoint. On an error it
    /// is not, and nothing else was lost: try again later. May be called by several threads.
    pub fn put(&self, letter: &Letter) -> Result<()> {
        self.put_all([letter])
    }

    /// Many with one write. On an error some of them may be in the file all the same.
    pub fn put_all<L: Borrow<Letter>>(&self, letters: impl IntoIterator<Item = L>) -> Result<()> {
        let inner = &*self.0;
        // A line end in front, in case the file ends within a letter.
        let mut line = vec![b'\n'];
        for letter in letters {
            let kept = Kept { time: time_text(inner.clock.wall_ns()), letter: letter.borrow() };
            serde_json::to_writer(&mut line, &kept)
                .expect("a Vec takes all bytes, and every key of a letter is a string");
            line.push(b'\n');
        }
        let reserved = line.len() as u64;
        let others = inner.under_way.fetch_add(reserved, Ordering::SeqCst);
        let written = inner.write(&line, others + reserved);
        inner.under_way.fetch_sub(reserved, Ordering::SeqCst);
        if written.is_err() {
            inner.failed.add(1);
        }
        written
    }
}

impl Inner {
    /// `under_way`: this letter and those that other threads are writing.
    fn write(&self, line: &[u8], under_way: u64) -> Result<()> {
        let (Open { file, written: to_sync, .. }, len, _held) = self.held_file()?;
        let is_full = |aside: u64| aside + len + under_way > self.max_bytes;
        if is_full(self.aside.load(Ordering::Relaxed)) {
            let aside = folder::bytes_aside(folder_of(&self.path))?; // somebody may have replayed or purged
            self.aside.store(aside, Ordering::Relaxed);
            if is_full(aside) {
                return Err(Error::new(format!(
                    "{} is full with {} of {} bytes: replay or purge the dead letters",
                    folder_of(&self.path).display(),
                    aside + len,
                    self.max_bytes
                )));
            }
        }
        let was_torn = self.torn.swap(false, Ordering::SeqCst);
        let line = if was_torn { line } else { &line[1..] };
        let written = loop {
            match (&*file).write(line) {
                Err(cause) if cause.kind() == ErrorKind::Interrupted => {}
                written => break written,
            }
        };
        to_sync.wrote_unseen(); // others write beside us: where it stands is not known
        self.unsynced.note(to_sync);
        let short = match written {
            Ok(bytes) if bytes == line.len() => {
                self.len.store(len + bytes as u64, Ordering::Relaxed);
                return Ok(());
            }
            Ok(bytes) => format!("only {bytes} of {} bytes could be written", line.len()),
            Err(cause) => {
                if was_torn {
                    self.torn.store(true, Ordering::SeqCst);
                }
                return Err(cause).context(|| format!("could not write to {}", self.path.display()));
            }
        };
        self.torn.store(true, Ordering::SeqCst);
        Err(Error::new(format!("could not write to {}: {short}", self.path.display())))
    }

    /// The file, its length, and the lock that keeps it from being moved aside unnoticed.
    fn held_file(&self) -> Result<(Open, u64, File)> {
        for _ in 0..TRIES {
            let (open, len) = self.file()?;
            // A descriptor of our own: those who share one share its lock, and the first to be ready lets go of it.
            let Ok(held) = File::open(&self.path) else { continue };
            let is_it = held.metadata().is_ok_and(|metadata| FileId::of(&metadata) == open.id);
            if is_it
                && flock(&held, FlockOperation::NonBlockingLockShared).is_ok()
                && open.id.stands_at(&self.path)
            {
                return Ok((open, len, held));
            }
        }
        Err(Error::new(format!("could not write to {}: somebody holds it", self.path.display())))
    }

    /// The file that stands at `path` now (somebody may have moved it aside), and its length.
    fn file(&self) -> Result<(Open, u64)> {
        let doing = || format!("could not open {}", self.path.display());
        let known = self.open.lock().clone();
        let there = match std::fs::metadata(&self.path) {
            Ok(metadata) => Some(metadata),
            Err(cause) if cause.kind() == ErrorKind::NotFound => None,
            Err(cause) => return Err(cause).context(doing),
        };
        if let (Some(open), Some(metadata)) = (known, &there)
            && FileId::of(metadata) == open.id
        {
            return Ok((open, metadata.len()));
        }
        if there.is_none() {
            DirBuilder::new().recursive(true).mode(0o700).create(folder_of(&self.path)).context(doing)?;
        }
        let file = OpenOptions::new().read(true).append(true).create(true).mode(0o600).open(&self.path);
        let file = Arc::new(file.context(doing)?);
        let metadata = file.metadata().context(doing)?;
        self.aside.store(folder::bytes_aside(folder_of(&self.path))?, Ordering::Relaxed);
        // Also if it is there: the life that made it may have died before it could sync the name.
        let disk: Arc<dyn Disk> = Arc::new(RealDisk);
        self.unsynced.note_folder(SyncFolder::of(&disk, folder_of(&self.path)));
        if let Some(last) = metadata.len().checked_sub(1) {
            let mut byte = [0];
            file.read_exact_at(&mut byte, last).context(doing)?;
            if byte != *b"\n" {
                self.torn.store(true, Ordering::SeqCst);
            }
        }
        let open = Open { written: Written::new(file.clone()), file, id: FileId::of(&metadata) };
        *self.open.lock() = Some(open.clone());
        Ok((open, metadata.len()))
    }
}

/// RFC 3339, UTC, nine digits. An i64 of nanoseconds is within what jiff knows.
fn time_text(time_ns: i64) -> String {
    format!("{:.9}", jiff::Timestamp::from_nanosecond(time_ns.into()).unwrap_or_default())
}
