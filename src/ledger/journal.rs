//! The journal: what the file monitor has cut and timed, written down before it is handed over.
//!
//! The monitor's Outlet alone owns the [`Journal`] and appends to it; nobody waits for a sync there. A checkpoint
//! says up to where it holds it ([`Mark`]); a snapshot syncs what was written so far, too, since it leaves the other
//! slot behind. After a crash the checkpoint and the records behind its mark are the state: so the same bytes get the
//! same times again.
//!
//! ```text
//! journal-<n>     a header of 64 bytes, then records; 1 MiB, allocated before it is used
//! header          magic (24) | sequence of the first record (8) | seal of the record before it (4) | salt (4)
//!                 | number of the data folder (8) | zeros (12) | CRC-32 of all that (4)
//! record          length of the body (4) | sequence (8) | seal (4) | body, JSON
//! ```
//!
//! Numbers are little endian. A seal is the CRC-32 of length, sequence and body, begun with the seal before it; for
//! the first record of a segment, with that and the salt, which is drawn whenever a segment is begun. So each record
//! proves all those that led to it: whatever was torn by a crash, or left over in a segment that is used again, is
//! not sealed by what stands before it, and ends the journal there. Names mean nothing.
//!
//! Always true: a segment is used again only when both checkpoints are past it. What could not be appended has no
//! sequence, and is written over by the next attempt.

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use super::checkpoint::seal_of;
use super::saved::AnyPath;
use super::{Head, Identity, Stamp};
use crate::ack::{GenerationId, SinkSet};
use crate::disk::{Disk, DiskFile, Durable, Open};
use crate::error::{Context, Error, Result};
use crate::order;

/// Ten thousand stamps: 2.5 GB of a file that is read at full speed, or a second of as many quiet files.
const SEGMENT_BYTES: u64 = 1024 * 1024;

/// Allocated at the first start, and kept when the journal was longer for a while: what both checkpoints wait for,
/// what is written meanwhile, and one more.
pub const SPARE_SEGMENTS: usize = 3;

/// Only if no checkpoint can be written there are ever so many. Then files wait.
const SEGMENTS_MAX: usize = 128;

const MAGIC: &[u8; 24] = b"log-capturer journal 1\n\0";

const HEADER_BYTES: usize = 64;

const RECORD_HEAD_BYTES: usize = 16;

/// The last record that a checkpoint holds, and its seal: what the next one has to be sealed with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Mark {
    pub sequence: u64,
    pub seal: u32,
}

/// What is written down.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Record {
    #[serde(rename = "o")]
    Opened {
        generation: u64,
        source: String,
        filename: Option<AnyPath>,
        identity: Option<Identity>,
        lineage: u64,
        start: u64,
    },
    #[serde(rename = "i")]
    Identified { generation: u64, identity: Identity },
    #[serde(rename = "r")]
    Read(ReadRecord),
    #[serde(rename = "g")]
    GaveUp { generation: u64, from: u64, upto: u64, why: String },
    #[serde(rename = "f")]
    Finished { generation: u64 },
}

/// A stamp, in few bytes: there are thousands a second.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct ReadRecord {
    #[serde(rename = "g")]
    generation: u64,
    #[serde(rename = "s")]
    start: u64,
    #[serde(rename = "e")]
    end: u64,
    #[serde(rename = "f")]
    first_line: u64,
    #[serde(rename = "l")]
    lines: u64,
    #[serde(rename = "t")]
    base_ns: i64,
    #[serde(rename = "c")]
    continues: bool,
    #[serde(rename = "x")]
    cut: bool,
    #[serde(rename = "b")]
    before: (u32, u64),
}

impl Record {
    pub fn generation(&self) -> u64 {
        match self {
            Record::Opened { generation, .. }
            | Record::Identified { generation, .. }
            | Record::Read(ReadRecord { generation, .. })
            | Record::GaveUp { generation, .. }
            | Record::Finished { generation } => *generation,
        }
    }

    pub fn opened(opened: &super::Opened) -> Record {
        Record::Opened {
            generation: opened.generation.0,
            source: opened.source.to_string(),
            filename: opened.filename.as_deref().map(|path| AnyPath(path.to_owned())),
            identity: opened.identity,
            lineage: opened.lineage,
            start: opened.start,
        }
    }

    /// Allocates nothing.
    pub fn read(stamp: &Stamp) -> Record {
        let Stamp { generation, start, end, first_line, lines, base_ns, continues, cut, before, .. } = *stamp;
        let (generation, before) = (generation.0, (before.len, before.hash));
        Record::Read(ReadRecord {
            generation,
            start,
            end,
            first_line,
            lines,
            base_ns,
            continues,
            cut,
            before,
        })
    }
}

impl ReadRecord {
    /// Who lacked it then is not known any more, and does not matter: the progress says who lacks it now.
    pub fn stamp(&self) -> Stamp {
        let ReadRecord {
            start, end, first_line, lines, base_ns, continues, cut, before: (len, hash), ..
        } = *self;
        Stamp {
            generation: GenerationId(self.generation),
            start,
            end,
            first_line,
            lines,
            base_ns,
            continues,
            cut,
            sinks: SinkSet::EMPTY,
            before: Head::new(len, hash),
            cursor: None,
        }
    }
}

/// What the journal and the ledger, which are on two threads, tell each other.
#[derive(Default)]
pub struct Link {
    /// Both checkpoints hold every record up to this sequence.
    passed: AtomicU64,
    /// A sync has failed: what was written before it may be lost although the next one succeeds.
    is_doubtful: AtomicBool,
    /// What was written since the last sync, in order; the last one is written to now.
    to_sync: Mutex<Vec<Arc<dyn Durable>>>,
    /// Segments that are held open, and those of them that a checkpoint needs, or that are written to.
    segments: AtomicUsize,
    needed: AtomicUsize,
}

impl Link {
    pub fn pass(&self, sequence: u64) {
        self.passed.store(sequence, Ordering::Relaxed);
    }

    /// Segments that are held open, and how many of them could not be used again when the last one was begun.
    pub fn segments(&self) -> (usize, usize) {
        (self.segments.load(Ordering::Relaxed), self.needed.load(Ordering::Relaxed))
    }

    /// Makes everything durable that was appended before the call. The ledger alone calls this.
    pub fn sync(&self) -> Result<()> {
        let files = self.to_sync.lock().clone();
        for file in &files {
            if let Err(cause) = file.sync() {
                self.is_doubtful.store(true, Ordering::SeqCst);
                return Err(Error::new(format!("could not sync the journal of the ledger: {cause}")));
            }
        }
        // Others may have come meanwhile, in front and behind, and the first ones once more; the last one may be written
        // to again.
        let mut to_sync = self.to_sync.lock();
        for file in &files[..files.len().saturating_sub(1)] {
            if let Some(at) = to_sync.iter().position(|known| Arc::ptr_eq(known, file)) {
                to_sync.remove(at);
            }
        }
        Ok(())
    }
}

struct Segment {
    path: PathBuf,
    file: Arc<dyn DiskFile>,
    /// Of the highest record in it that may be needed.
    last: u64,
}

/// Owned by whoever stamps.
pub struct Journal {
    disk: Arc<dyn Disk>,
    folder: PathBuf,
    /// Of the data folder.
    id: u64,
    link: Arc<Link>,
    last: Mark,
    /// What the next record is sealed with: the seal of the last one, or what the header of the segment made of it.
    chain: u32,
    current: Option<Segment>,
    /// How far the current one is written.
    used: u64,
    /// The others, those that were written first in front.
    others: Vec<Segment>,
    /// Kept from call to call, so that a stamp costs no allocation.
    buffer: Vec<u8>,
}

/// What a segment holds that seals itself.
struct Run {
    segment: Segment,
    id: u64,
    /// What the first record is sealed with.
    before: Mark,
    /// The last record; as before, if there is none.
    last: Mark,
    /// Where the record behind the checkpoint's begins, if that one is among them.
    resume: Option<usize>,
}

impl Run {
    fn is_empty(&self) -> bool {
        self.last.sequence == self.before.sequence
    }
}

/// The journal of the lives before, looked through and not read yet.
pub struct Found {
    disk: Arc<dyn Disk>,
    folder: PathBuf,
    /// The oldest first.
    runs: Vec<Run>,
    mark: Option<Mark>,
    /// Of the data folder, if somebody has written to the journal, in whatever life.
    pub id: Option<u64>,
}

/// The journal to go on with, and the last record that was read.
pub struct Opened {
    pub journal: Journal,
    pub link: Arc<Link>,
    pub last: Mark,
}

/// Looks for what is behind `mark`; without a checkpoint, for everything there is. Never fails because of what it
/// reads: what is no journal is used as room for one. Writes nothing, and holds one segment at a time.
pub fn find(disk: Arc<dyn Disk>, folder: &Path, mark: Option<Mark>) -> Found {
    let (mut runs, mut bytes) = (Vec::new(), Vec::new());
    for path in segment_paths(&*disk, folder) {
        match scan_segment(&*disk, &path, mark, &mut bytes) {
            Ok(run) => runs.push(run),
            Err(cause) => log::error!("ledger: could not read {}: {cause}", path.display()),
        }
    }
    order::sort_by_key(&mut runs, |run| run.before.sequence);
    let id = runs.iter().find(|run| !run.is_empty()).map(|run| run.id);
    Found { disk, folder: folder.to_owned(), runs, mark, id }
}

impl Found {
    /// Hands over each record behind the mark, in order. Reads one segment after the other.
    pub fn read(self, mut each: impl FnMut(Record)) -> Opened {
        let runs = &self.runs;
        let first = || runs.iter().find(|run| !run.is_empty()).map(|run| run.before);
        let mut last = self.mark.or_else(first).unwrap_or_default();
        let mut resume = runs.iter().find_map(|run| Some((run, run.resume?)));
        let mut bytes = Vec::new();
        // A segment that was begun behind a record hides what stands behind it in the one before.
        while let Some((run, at)) = begun_behind(runs, last).map(|run| (run, HEADER_BYTES)).or(resume.take())
        {
            let before = last;
            if let Err(cause) = read_segment(&*run.segment.file, &mut bytes) {
                log::error!("ledger: could not read {}: {cause}", run.segment.path.display());
                break;
            }
            let chain =
                if at == HEADER_BYTES { parse_header(&bytes).map(|(_, chain, _)| chain) } else { None };
            for (mark, body) in records_from(&bytes, at, Mark { seal: chain.unwrap_or(last.seal), ..last }) {
                match serde_json::from_slice(&bytes[body]) {
                    Ok(record) => each(record),
                    Err(cause) => log::error!("ledger: record {} of the journal: {cause}", mark.sequence),
                }
                last = mark;
                if begun_behind(runs, last).is_some() {
                    break;
                }
            }
            if last == before {
                break; // nothing is behind it, or it is not what it was a moment ago
            }
        }
        self.opened(last)
    }

    fn opened(self, last: Mark) -> Opened {
        // Junk behind a tear can be written over at once; it holds nothing that a checkpoint could go on with.
        let segment = |run: Run| Segment { last: run.last.sequence.min(last.sequence), ..run.segment };
        let link = Arc::new(Link::default());
        let journal = Journal {
            disk: self.disk,
            folder: self.folder,
            id: 0,
            link: link.clone(),
            last,
            chain: last.seal,
            current: None,
            used: 0,
            others: self.runs.into_iter().map(segment).collect(),
            buffer: Vec::new(),
        };
        Opened { journal, link, last }
    }
}

/// A segment was begun behind `mark`: what stands behind it in the one before could not be appended as a whole.
fn begun_behind(runs: &[Run], mark: Mark) -> Option<&Run> {
    runs.iter().find(|run| run.before == mark && !run.is_empty())
}

fn segment_paths(disk: &dyn Disk, folder: &Path) -> Vec<PathBuf> {
    let mut paths = disk.list(folder).unwrap_or_else(|cause| {
        log::error!("ledger: could not look into {}: {cause}", folder.display());
        Vec::new()
    });
    paths.retain(|path| {
        let number = path.file_name().and_then(|name| name.to_str()?.strip_prefix("journal-"));
        number.is_some_and(|number| number.parse::<u64>().is_ok())
    });
    paths
}

fn read_segment(file: &dyn DiskFile, bytes: &mut Vec<u8>) -> std::io::Result<()> {
    bytes.resize(file.size()?.min(SEGMENT_BYTES) as usize, 0);
    let read = file.read_at(bytes, 0)?;
    bytes.truncate(read);
    Ok(())
}

fn scan_segment(
    disk: &dyn Disk,
    path: &Path,
    wanted: Option<Mark>,
    bytes: &mut Vec<u8>,
) -> std::io::Result<Run> {
    let file = disk.open(path, Open::Existing)?;
    read_segment(&*file, bytes)?;
    let segment = Segment { path: path.to_owned(), file, last: 0 };
    let Some((before, chain, id)) = parse_header(bytes) else {
        // Allocated and never used, or damaged: room for the next.
        let none = Mark::default();
        return Ok(Run { segment, id: 0, before: none, last: none, resume: None });
    };
    let (mut last, mut resume) = (before, None);
    for (mark, body) in records_from(bytes, HEADER_BYTES, Mark { seal: chain, ..before }) {
        if Some(mark) == wanted {
            resume = Some(body.end);
        }
        last = mark;
    }
    Ok(Run { segment, id, before, last, resume })
}

/// The records from `at` on, as far as each is sealed by the one before, the first one by `last`; with the places of
/// their bodies.
fn records_from(bytes: &[u8], mut at: usize, mut last: Mark) -> impl Iterator<Item = (Mark, Range<usize>)> {
    std::iter::from_fn(move || {
        let (mark, body) = parse_record(bytes, at, last)?;
        (at, last) = (body.end, mark);
        Some((mark, body))
    })
}

/// What stands before the first record, what that is sealed with, and the number of the data folder.
fn parse_header(bytes: &[u8]) -> Option<(Mark, u32, u64)> {
    let header = bytes.get(..HEADER_BYTES)?;
    let (fields, sum) = header.split_at(HEADER_BYTES - 4);
    let good = fields.starts_with(MAGIC) && sum == crc32fast::hash(fields).to_le_bytes();
    let first = u64::from_le_bytes(fields[24..32].try_into().ok()?);
    let seal = u32::from_le_bytes(fields[32..36].try_into().ok()?);
    let salt = u32::from_le_bytes(fields[36..40].try_into().ok()?);
    let id = u64::from_le_bytes(fields[40..48].try_into().ok()?);
    (good && first > 0).then(|| (Mark { sequence: first - 1, seal }, salted(seal, salt), id))
}

fn parse_record(bytes: &[u8], at: usize, last: Mark) -> Option<(Mark, Range<usize>)> {
    let head = bytes.get(at..at + RECORD_HEAD_BYTES)?;
    let len = u32::from_le_bytes(head[..4].try_into().ok()?) as usize;
    let sequence = u64::from_le_bytes(head[4..12].try_into().ok()?);
    let seal = u32::from_le_bytes(head[12..].try_into().ok()?);
    let body = at + RECORD_HEAD_BYTES..(at + RECORD_HEAD_BYTES).checked_add(len)?;
    let text = bytes.get(body.clone())?;
    let good = sequence == last.sequence + 1 && seal == seal_of(last.seal, &head[..12], text);
    (good && len > 0).then_some((Mark { sequence, seal }, body))
}

/// Of two lives that wrote behind the same record, one of which a power cut had forgotten, neither goes on in what is
/// left of the other.
fn salted(seal: u32, salt: u32) -> u32 {
    seal_of(seal, &salt.to_le_bytes(), &[])
}

impl Journal {
    /// Before anything is appended: makes room for a while, if it can. `id`: of the data folder.
    pub fn begin(&mut self, id: u64) {
        self.id = id;
        let before = self.others.len();
        while self.others.len() < SPARE_SEGMENTS {
            match self.allocate() {
                Ok(segment) => self.others.push(segment),
                // Said by whoever needs it.
                Err(cause) => {
                    log::debug!("ledger: {cause}");
                    break;
                }
            }
        }
        if self.others.len() > before && self.disk.sync_folder(&self.folder).is_ok() {
            self.link.to_sync.lock().clear(); // it held nothing but the names
        }
        self.count(0); // whatever the last life left may be needed
    }

    /// `free`: those that may be used again.
    fn count(&self, free: usize) {
        let held = self.others.len() + usize::from(self.current.is_some());
        self.link.segments.store(held, Ordering::Relaxed);
        self.link.needed.store(held - free, Ordering::Relaxed);
    }

    /// Writes some records at once, and says where the last one stands. After it they outlive the process. On an
    /// error none of them does, as far as anybody may rely on it: append them again, or others in their place.
    pub fn append(&mut self, records: &[Record]) -> Result<Mark> {
        self.buffer.clear();
        for record in records {
            let at = self.buffer.len();
            self.buffer.resize(at + RECORD_HEAD_BYTES, 0);
            serde_json::to_writer(&mut self.buffer, record)
                .context(|| "could not encode a record of the journal".into())?;
            let len = (self.buffer.len() - at - RECORD_HEAD_BYTES) as u32;
            self.buffer[at..at + 4].copy_from_slice(&len.to_le_bytes());
        }
        let len = self.buffer.len() as u64;
        if len > SEGMENT_BYTES - HEADER_BYTES as u64 {
            return Err(Error::new(format!("{len} bytes are too many for a segment of the journal")));
        }
        // What follows must not stand behind a hole: a checkpoint that has what was in it goes on in the next segment.
        let is_doubtful = self.link.is_doubtful.swap(false, Ordering::SeqCst);
        let is_full = self.current.is_none() || is_doubtful || self.used + len > SEGMENT_BYTES;
        if is_full && let Err(cause) = self.next_segment() {
            self.link.is_doubtful.fetch_or(is_doubtful, Ordering::SeqCst);
            return Err(cause);
        }
        let Some(current) = &mut self.current else { return Err(Error::new("the journal has no segment")) };
        let (mut sequence, mut chain, mut at) = (self.last.sequence, self.chain, 0);
        for _ in records {
            let (head, rest) = self.buffer[at..].split_at_mut(RECORD_HEAD_BYTES);
            let body = &rest[..u32::from_le_bytes([head[0], head[1], head[2], head[3]]) as usize];
            sequence += 1;
            head[4..12].copy_from_slice(&sequence.to_le_bytes());
            chain = seal_of(chain, &head[..12], body);
            head[12..].copy_from_slice(&chain.to_le_bytes());
            at += RECORD_HEAD_BYTES + body.len();
        }
        let doing = || format!("could not write {}", current.path.display());
        current.file.write_at(&self.buffer, self.used).context(doing)?;
        current.last = sequence;
        self.used += len;
        self.chain = chain;
        self.last = Mark { sequence, seal: chain };
        Ok(self.last)
    }

    /// The one that was written longest ago, if both checkpoints are past it; else a new one.
    fn next_segment(&mut self) -> Result<()> {
        let passed = self.link.passed.load(Ordering::Relaxed);
        let free = |segment: &Segment| segment.last <= passed;
        let segment = match self.others.iter().position(free) {
            Some(at) => self.others.remove(at),
            None => self.allocate()?,
        };
        let salt = fastrand::u32(..);
        if let Err(cause) = segment.file.write_at(&self.header(salt), 0) {
            let error = Error::new(format!("could not write {}: {cause}", segment.path.display()));
            self.others.insert(0, Segment { last: 0, ..segment });
            return Err(error);
        }
        self.link.to_sync.lock().push(segment.file.clone());
        self.others.extend(self.current.replace(segment));
        self.used = HEADER_BYTES as u64;
        self.chain = salted(self.last.seal, salt);
        while self.others.iter().filter(|segment| free(segment)).count() > SPARE_SEGMENTS {
            let Some(at) = self.others.iter().position(free) else { break };
            let surplus = self.others.remove(at);
            if let Err(cause) = self.disk.remove(&surplus.path) {
                log::warn!("ledger: could not remove {}: {cause}", surplus.path.display());
            }
        }
        self.count(self.others.iter().filter(|segment| free(segment)).count());
        Ok(())
    }

    fn header(&self, salt: u32) -> [u8; HEADER_BYTES] {
        let mut header = [0; HEADER_BYTES];
        header[..24].copy_from_slice(MAGIC);
        header[24..32].copy_from_slice(&(self.last.sequence + 1).to_le_bytes());
        header[32..36].copy_from_slice(&self.last.seal.to_le_bytes());
        header[36..40].copy_from_slice(&salt.to_le_bytes());
        header[40..48].copy_from_slice(&self.id.to_le_bytes());
        let sum = crc32fast::hash(&header[..HEADER_BYTES - 4]);
        header[HEADER_BYTES - 4..].copy_from_slice(&sum.to_le_bytes());
        header
    }

    fn allocate(&mut self) -> Result<Segment> {
        if self.others.len() + 1 >= SEGMENTS_MAX {
            return Err(Error::new(
                "the journal is as long as it may get, since no checkpoint can be written",
            ));
        }
        // One that could not be read is not among ours, and is there.
        let path = |number: usize| self.folder.join(format!("journal-{number}"));
        let is_free = |path: &PathBuf| matches!(self.disk.is_taken(path), Ok(false));
        let Some(path) = (0..2 * SEGMENTS_MAX).map(path).find(is_free) else {
            return Err(Error::new(format!("there is no free name in {}", self.folder.display())));
        };
        let doing = || format!("could not make {}", path.display());
        self.disk.create_folder(&self.folder).context(doing)?;
        let file = self.disk.open(&path, Open::OrCreate).context(doing)?;
        if let Err(cause) = file.allocate(SEGMENT_BYTES) {
            // Half a segment must not keep a full disk full. That it cannot be removed is no news then.
            let _ = self.disk.remove(&path);
            return Err(Error::new(format!("could not make {}: {cause}", path.display())));
        }
        let folder = NewName { disk: self.disk.clone(), folder: self.folder.clone() };
        self.link.to_sync.lock().insert(0, Arc::new(folder));
        Ok(Segment { path, file, last: 0 })
    }
}

/// A name that was made in a folder.
struct NewName {
    disk: Arc<dyn Disk>,
    folder: PathBuf,
}

impl Durable for NewName {
    fn sync(&self) -> std::io::Result<()> {
        self.disk.sync_folder(&self.folder)
    }
}

#[cfg(test)]
mod tests;
