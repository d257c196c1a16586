//! The spool of one sink: what it could not take while it was ill, on disk, in order, until it is well again.
//!
//! The lane of the sink owns it and is the only one who calls it. It writes records as frames (`frame.rs`) into
//! segments (`segment.rs`), reads them back oldest first, a frame at a time, and is told when each is answered for
//! (`cursor.rs`). Frames hold records, not payloads: they are encoded anew, so that a changed configuration applies.
//!
//! ```text
//! data_dir/spool/<sink>/segment-<number>     up to 16 MiB each, rising
//!                       cursor               how far it was answered for
//!                       quarantine           bytes that were frames once and are damaged
//! ```
//!
//! Always true: a frame is noted as unsynced before `put` returns, so that no checkpoint relies on one that is not on
//! the disk. A frame stays until all its records are answered for, and its file until two checkpoints have been
//! written since: until then it is the receipt for its lines ([`Opened::frames`]). Nothing is ever appended to
//! a segment of an earlier life. Neither writing nor reading needs more memory than [`frame::SCRATCH_BYTES`] and the
//! records of the frame.
//!
//! Damage: a frame whose checksum is wrong is put aside and passed over, and counted by the running totals that each
//! frame carries. What is torn at the end is cut at the start.
//!
//! Not compressed: log lines would shrink to a quarter or so, for one more dependency and a copy of each frame; the
//! limit is in bytes and nobody reads it twice.
//!
//! Not here: when records go to the spool and when they come back (the lane), what the ledger makes of it.

mod cursor;
mod frame;
mod opening;
mod replay;
mod segment;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use cursor::{Cursor, CursorFile, Position};
use frame::{Header, Ticket};
pub use opening::{Survey, boot_id, survey};
use segment::{FIRST_FRAME, Segment};

use crate::ack::{Count, GenerationId};
use crate::disk::{Disk, DiskFile, Open};
use crate::durable::{Passed, SyncFolder, Unsynced, Written};
use crate::error::{Context, Result};
use crate::record::{Origin, RECORD_WEIGHT, Records, Slice};
use crate::sync::Shared;

/// What is freed at once, and what a start reads at most to find the end.
const SEGMENT_BYTES_MOST: u64 = 16 << 20;

/// A small spool has some eight segments all the same, so that it is freed in steps.
const SEGMENTS_LEAST: u64 = 8;

/// The part of the free disk that a spool may take, as a divisor.
const DISK_PART: u64 = 10;

/// Damaged bytes are for a person to look at; more than this nobody does.
const QUARANTINE_BYTES_MOST: u64 = 16 << 20;

const QUARANTINE: &str = "quarantine";

/// Besides the source bytes: header, labels, what stages added. For the question whether there is room.
const FRAME_BYTES_BESIDES: u64 = 4096;

/// What to do when the spool is full.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WhenFull {
    /// Back to the reader.
    Wait,
    /// The oldest segment goes, counted.
    DropOldest,
}

/// What a configuration says about a spool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SpoolOptions {
    pub max_bytes: u64,
    /// How long its sink has to be ill.
    pub after: Duration,
    pub when_full: WhenFull,
}

/// What a spool needs.
#[derive(Clone)]
pub struct Settings {
    pub disk: Arc<dyn Disk>,
    /// Of this sink.
    pub folder: PathBuf,
    pub max_bytes: u64,
    pub when_full: WhenFull,
    pub unsynced: Unsynced,
    /// Counts the checkpoints.
    pub passed: Passed,
    /// Another one for each life of the operating system; see [`boot_id`].
    pub boot: u64,
    /// Connections of the sink: how many frames may be answered for out of turn.
    pub streets: usize,
}

/// What an earlier life left.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Opened {
    /// Every whole frame in it: as good as receipts.
    pub frames: Vec<Found>,
    /// What waits to be sent.
    pub pending: Count,
}

/// A frame that was found at the start: what it answers for, and whether it was answered for in turn.
pub type Found = (GenerationId, Range<u64>, bool);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Put {
    Written,
    /// Nothing was written: there is no room until something is answered for.
    Full,
}

/// Lines of the spool that will not be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lost {
    pub why: Why,
    pub count: Count,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    Corrupt,
    /// Dropped for newer ones.
    Full,
    /// The sink has them since an earlier life, which had no time to count them.
    AnsweredBefore,
}

/// A frame that came back.
pub struct Replayed {
    pub sequence: u64,
    pub records: Shared<Records>,
    /// So many of them were answered for in an earlier life.
    pub answered: u32,
    pub range: Range<u64>,
}

/// A frame that was read and is not answered for.
struct UnderWay {
    sequence: u64,
    at: Position,
    lineage: u64,
    before: Count,
    /// Not answered for.
    count: Count,
    /// How many of its records are answered for, from its front.
    answered: u32,
    done: bool,
}

pub struct Spool {
    settings: Settings,
    /// Oldest first.
    segments: VecDeque<Segment>,
    /// The last segment, if this life has begun it.
    writing: Option<Arc<Written>>,
    next_segment: u64,
    next_sequence: u64,
    /// All that was ever put into it.
    total: Count,
    /// Not answered for.
    pending: Count,
    max_bytes: u64,
    /// Where the next frame to be read stands, and all that was put in before it.
    read: Position,
    read_total: Count,
    read_sequence: u64,
    reading: Option<(u64, Arc<dyn DiskFile>)>,
    ahead: Option<Header>,
    tries: u32,
    under_way: VecDeque<UnderWay>,
    /// Read, not answered for, and to be read again before all others: see [`Spool::rewind`].
    again: VecDeque<UnderWay>,
    /// How far the last life was, for frames below the sequence where it ended.
    former: Option<(u64, Cursor)>,
    /// What was found torn at the start, from one running total to another: told then, and not counted as pending.
    torn: Vec<(Count, Count)>,
    cursor: Option<CursorFile>,
    /// Made in this life, or known to be there.
    folder: Option<Arc<SyncFolder>>,
    /// What the segments below it answer for is in every checkpoint that can be read.
    known: u64,
    /// Of the last frame that was read.
    origin: Option<Arc<Origin>>,
    scratch: Vec<u8>,
    lost: Vec<Lost>,
}

impl Spool {
    fn empty(settings: Settings, cursor: Option<CursorFile>, next_segment: u64) -> Spool {
        Spool {
            segments: VecDeque::new(),
            writing: None,
            next_segment,
            next_sequence: 0,
            total: Count::default(),
            pending: Count::default(),
            max_bytes: settings.max_bytes,
            read: Position::default(),
            read_total: Count::default(),
            read_sequence: 0,
            reading: None,
            ahead: None,
            tries: 0,
            under_way: VecDeque::new(),
            again: VecDeque::new(),
            former: None,
            torn: Vec::new(),
            cursor,
            folder: None,
            known: 0,
            origin: None,
            scratch: Vec::new(),
            lost: Vec::new(),
            settings,
        }
    }

    /// Something waits to be read.
    pub fn has_unread(&self) -> bool {
        self.read_sequence < self.next_sequence || !self.again.is_empty()
    }

    /// Something was read and is not answered for.
    pub fn has_under_way(&self) -> bool {
        self.oldest().is_some()
    }

    /// The oldest frame that was read and is not answered for.
    fn oldest(&self) -> Option<&UnderWay> {
        self.under_way.front().or(self.again.front())
    }

    /// What is not answered for, read or not.
    pub fn pending(&self) -> Count {
        self.pending
    }

    /// Bytes on the disk, those included that stay as receipts.
    pub fn used_bytes(&self) -> u64 {
        self.segments.iter().map(|segment| segment.end).sum()
    }

    pub fn files(&self) -> usize {
        self.segments.len()
    }

    /// What was lost since the last call.
    pub fn take_lost(&mut self) -> Vec<Lost> {
        std::mem::take(&mut self.lost)
    }

    /// Puts records in, behind all others. After an error nothing of them is in it.
    pub fn put(&mut self, slice: &Slice) -> Result<Put> {
        let folder = self.settings.folder.clone();
        self.try_put(slice).context(|| format!("could not write to the spool {}", folder.display()))
    }

    fn try_put(&mut self, slice: &Slice) -> io::Result<Put> {
        let need = slice.records.weight(slice.range.clone(), RECORD_WEIGHT) + FRAME_BYTES_BESIDES;
        if !self.has_room(need)? {
            return Ok(Put::Full);
        }
        let file = self.file_to_write()?;
        let segment = self.segments.back_mut().expect("there is a file to write to");
        let ticket =
            Ticket { sequence: self.next_sequence, before: self.total, salt: segment.salt, at: segment.end };
        let header = match frame::write(&*file, ticket, slice, &mut self.scratch) {
            Ok(header) => header,
            Err(cause) => {
                // What is left behind the end is no frame and is written over. To cut it frees a full disk; if
                // that fails too, nothing is lost by it.
                let _ = file.set_size(segment.end);
                return Err(cause);
            }
        };
        segment.end += header.len();
        self.next_sequence += 1;
        self.total = header.after();
        self.pending += header.count();
        self.settings.unsynced.note(file);
        Ok(Put::Written)
    }

    fn has_room(&mut self, need: u64) -> io::Result<bool> {
        while self.used_bytes() + need > self.max_bytes {
            if self.settings.when_full == WhenFull::Wait || !self.drop_oldest() {
                return Ok(false);
            }
            self.remove_answered()?;
        }
        Ok(true)
    }

    /// Passes over what is unread of the oldest segment. `false`: nothing is unread.
    fn drop_oldest(&mut self) -> bool {
        let Some(at) = self.segments.iter().position(|segment| segment.number >= self.read.segment) else {
            return false;
        };
        if self.read_sequence == self.next_sequence {
            return false;
        }
        let (upto, sequence) = match self.segments.get(at + 1) {
            Some(next) => (next.before, next.sequence),
            None => (self.total, self.next_sequence),
        };
        if at + 1 == self.segments.len() {
            self.end_segment();
        }
        let segment = &mut self.segments[at];
        let number = segment.number;
        segment.dropped = true;
        self.ahead = None;
        self.read = Position { segment: number + 1, offset: FIRST_FRAME };
        self.pass_over(upto, sequence, Why::Full);
        true
    }

    /// Up to a frame that stands behind a gap: what was in it is lost.
    fn pass_over(&mut self, upto: Count, sequence: u64, why: Why) {
        let from = std::mem::replace(&mut self.read_total, upto);
        self.read_sequence = sequence;
        let count = self.not_torn(from, upto);
        self.lose(Lost { why, count });
    }

    /// What is between two running totals and was not told at the start.
    fn not_torn(&self, from: Count, to: Count) -> Count {
        let mut count = between(from, to);
        for (first, last) in &self.torn {
            let first = Count { lines: first.lines.max(from.lines), bytes: first.bytes.max(from.bytes) };
            let last = Count { lines: last.lines.min(to.lines), bytes: last.bytes.min(to.bytes) };
            count = between(between(first, last), count);
        }
        count
    }

    fn lose(&mut self, lost: Lost) {
        if lost.count != Count::default() {
            self.settle(lost.count);
            self.lost.push(lost);
        }
    }

    fn settle(&mut self, count: Count) {
        self.pending = between(count, self.pending);
    }

    /// Nothing is written into the last segment any more.
    fn end_segment(&mut self) {
        if self.writing.take().is_some()
            && let Some(last) = self.segments.back_mut()
        {
            last.ended = Some(self.settings.passed.count());
        }
    }

    fn file_to_write(&mut self) -> io::Result<Arc<Written>> {
        let most = (self.max_bytes / SEGMENTS_LEAST).min(SEGMENT_BYTES_MOST);
        if let (Some(file), Some(last)) = (&self.writing, self.segments.back())
            && last.end < most
        {
            return Ok(file.clone());
        }
        let folder = self.make_folder()?;
        self.end_segment();
        let free = self.settings.disk.free_bytes(&self.settings.folder)?;
        self.max_bytes = self.settings.max_bytes.min(free.saturating_add(self.used_bytes()) / DISK_PART);
        let mut segment = Segment {
            number: self.next_segment,
            path: segment::path(&self.settings.folder, self.next_segment),
            salt: fastrand::u32(..),
            sequence: self.next_sequence,
            before: self.total,
            end: 0,
            ended: None,
            answered: None,
            dropped: false,
        };
        let file = segment.create(&*self.settings.disk)?;
        segment.end = FIRST_FRAME;
        self.settings.unsynced.note(file.clone());
        self.settings.unsynced.note_folder(folder);
        self.next_segment += 1;
        self.segments.push_back(segment);
        self.writing = Some(file.clone());
        Ok(file)
    }

    /// Lets go of what nobody needs any more. Whether to look again after the next checkpoints.
    pub fn tidy(&mut self) -> Result<bool> {
        let folder = self.settings.folder.clone();
        self.try_tidy().context(|| format!("could not tidy the spool {}", folder.display()))
    }

    fn try_tidy(&mut self) -> io::Result<bool> {
        self.remove_answered()?;
        let mut now = self.cursor_now();
        let Settings { passed, unsynced, .. } = &self.settings;
        let Some(cursor) = &mut self.cursor else { return Ok(!self.segments.is_empty()) };
        let is_known = |segment: &&Segment| segment.ended.is_some_and(|ended| passed.by(ended));
        let known = self.segments.iter().take_while(is_known).last();
        let known = known.map_or(now.known, |segment| now.known.max(segment.number + 1));
        if known > now.known {
            (self.known, now.known) = (known, known);
            cursor.write(&now, passed)?;
        }
        cursor.mature(passed, &now)?;
        unsynced.note(cursor.file().clone());
        let more = |segment: &Segment| segment.answered.is_some() || segment.ended.is_some();
        let is_maturing = cursor.is_maturing();
        if self.segments.is_empty() && !is_maturing {
            self.cursor = None; // an empty spool holds no descriptor
        }
        Ok(is_maturing
            || self.segments.iter().any(|segment| segment.number >= known && more(segment))
            || self.segments.front().is_some_and(|first| first.answered.is_some()))
    }

    fn remove_answered(&mut self) -> io::Result<()> {
        let passed = &self.settings.passed;
        let oldest_needed = self.oldest().map_or(self.read.segment, |frame| frame.at.segment);
        while let Some(first) = self.segments.front()
            && first.number < oldest_needed
            && (first.dropped || first.answered.is_some_and(|answered| passed.by(answered)))
        {
            self.settings.disk.remove(&first.path)?;
            self.segments.pop_front();
        }
        Ok(())
    }

    /// With the cursor's file in it.
    fn make_folder(&mut self) -> io::Result<Arc<SyncFolder>> {
        if let Some(folder) = self.folder.as_ref().filter(|_| self.cursor.is_some()) {
            return Ok(folder.clone());
        }
        let Settings { disk, folder: path, unsynced, boot, passed, .. } = &self.settings;
        disk.create_folder(path)?;
        if self.cursor.is_none() {
            let opened = opening::open_cursor(&**disk, path, Open::OrCreate, *boot)?;
            self.cursor = opened.map(|(mut file, cursor)| {
                cursor.iter().for_each(|cursor| file.take_over(cursor, passed));
                file
            });
        }
        for above in path.ancestors().skip(1).take(2) {
            unsynced.note_folder(SyncFolder::of(disk, above));
        }
        let folder = SyncFolder::of(disk, path);
        unsynced.note_folder(folder.clone());
        self.folder = Some(folder.clone());
        Ok(folder)
    }

    /// Copies damaged bytes to where a person can look at them.
    fn put_aside(&mut self, path: &Path, range: Range<u64>) -> io::Result<()> {
        let Settings { disk, folder, unsynced, .. } = &self.settings;
        let from = disk.open(path, Open::Existing)?;
        let to = Written::new(disk.open(&folder.join(QUARANTINE), Open::OrCreate)?);
        let (mut at, mut end) = (range.start, to.size()?);
        while at < range.end && end < QUARANTINE_BYTES_MOST {
            let most = (range.end - at).min(frame::SCRATCH_BYTES as u64);
            self.scratch.resize(most as usize, 0);
            let read = from.read_at(&mut self.scratch, at)?;
            if read == 0 {
                break;
            }
            to.write_at(&self.scratch[..read], end)?;
            (at, end) = (at + read as u64, end + read as u64);
        }
        unsynced.note(to);
        log::error!("the spool {} is damaged: put aside what stood in {}", folder.display(), path.display());
        Ok(())
    }
}

/// From one running total to another, or nothing.
fn between(from: Count, to: Count) -> Count {
    Count { lines: to.lines.saturating_sub(from.lines), bytes: to.bytes.saturating_sub(from.bytes) }
}
