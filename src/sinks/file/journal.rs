//! The write journal of a file sink: what is about to be appended to which output, noted before it is.
//!
//! Frames (`frame.rs`) in a few preallocated segments of one folder below `data_dir`.
//!
//! Numbers rise by one from frame to frame, so that what a recycled segment held before is known by its number, and so
//! is what a power cut has taken: a number that is missing and was not said to be **void**. What is taken back of a
//! batch, and what a start does not believe, is void by number, and the next frame that reaches the disk says so. So
//! nobody has to guess from offsets why something is not there. Every frame tells all there is to know about its
//! bytes, so segments are recycled without a look at what is in them, as soon as what is in them is history even
//! for one who has not read the frames since the last checkpoint.
//!
//! Always true: a frame is never trusted, only compared (`recovery.rs`): after a power cut journal and output can
//! each have lost what was not synced. A journal that cannot be written costs doubles after a crash, and nothing
//! else: the sink goes on, and counts.

use std::collections::VecDeque;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::Relaxed;

use super::frame::{self, Entry, Frame, New, Part};
use crate::ack::merged;
use crate::disk::{Disk, DiskFile, Durable, Open};
use crate::durable::{Passed, SyncFolder, Unsynced, Written};
use crate::error::{Context, Error, Result};
use crate::metrics::{Counter, Gauge};
use crate::order;

/// A second at full speed or more; a batch of the largest size fits.
pub const SEGMENT_BYTES: u64 = 1 << 20;

/// Half a minute or more at full speed without a checkpoint. Beyond it the oldest entries are forgotten.
pub const SEGMENTS_MAX: usize = 32;

/// Passed segments that stay for the next burst; made with the first one, so that what is open is the same ever after.
const SPARE: usize = 1;

/// More of them than a segment has room for would keep every frame from being written. Beyond it what was found is
/// history at once: rather doubled, if this life is killed before its first checkpoints.
const VOID_MAX: usize = 10_000;

/// Numbers of a new life begin so far behind the last one that was found: frames that a power cut made
/// unreadable may still stand in their segments, and must not look like the next ones.
const GAP_BETWEEN_LIVES: u64 = 1 << 24;

pub struct Journal {
    /// Of the sink: begins what is said.
    name: Arc<str>,
    disk: Arc<dyn Disk>,
    folder: PathBuf,
    unsynced: Unsynced,
    passed: Passed,
    segments: Vec<Segment>,
    /// The last of them is written to, from here on. `SEGMENT_BYTES`: none is.
    at: u64,
    next: u64,
    /// Numbers below are of earlier lives, and whether all that they say was known.
    found: Option<(u64, Arc<AtomicBool>)>,
    /// Not told by any frame yet.
    void: Vec<Range<u64>>,
    live_from: u64,
    /// Numbers below `upto` were answered for when `count` checkpoints were begun.
    groups: VecDeque<Group>,
    /// What was told to be history when so many were begun.
    told: VecDeque<Group>,
    /// Segments below it can be written over: whatever a power cut takes, it is known to be history.
    free_below: u64,
    frame: Frame,
    ill: bool,
    meters: Meters,
}

/// What the journal tells of itself.
#[derive(Clone)]
pub struct Meters {
    /// Appends that could not be noted.
    pub unjournaled: Arc<Counter>,
    /// Files that are held open.
    pub segments: Arc<Gauge>,
}

struct Segment {
    path: PathBuf,
    file: Arc<Written>,
    /// Number of its newest frame; 0: it has none.
    last: u64,
}

struct Group {
    upto: u64,
    count: u64,
}

impl Group {
    /// Adds to the group of so many checkpoints.
    fn note(groups: &mut VecDeque<Group>, upto: u64, count: u64) {
        match groups.back_mut() {
            Some(group) if group.count == count => group.upto = upto,
            _ => groups.push_back(Group { upto, count }),
        }
    }

    /// Takes out those that two checkpoints have passed: the last of them.
    fn passed(groups: &mut VecDeque<Group>, passed: &Passed) -> Option<u64> {
        let by = groups.iter().take_while(|group| passed.by(group.count)).count();
        groups.drain(..by).next_back().map(|group| group.upto)
    }
}

/// What the last life has left.
#[derive(Debug, PartialEq, Eq)]
pub struct Found {
    /// Those that two checkpoints may not be past and nobody has called void, by rising number.
    pub entries: Vec<(u64, Entry)>,
    /// From this number on a power cut has taken some; `u64::MAX`: none are missing.
    pub gap: u64,
}

impl Journal {
    /// Reads what the last life left, and creates nothing. What of it is believed has to be said
    /// ([`Journal::believe`]).
    pub fn open(
        name: &Arc<str>,
        folder: PathBuf,
        disk: Arc<dyn Disk>,
        unsynced: Unsynced,
        passed: Passed,
        meters: Meters,
    ) -> (Journal, Found) {
        let mut journal = Journal {
            name: name.clone(),
            folder,
            disk,
            unsynced,
            passed,
            segments: Vec::new(),
            at: SEGMENT_BYTES,
            next: 1,
            found: None,
            void: Vec::new(),
            live_from: 1,
            groups: VecDeque::new(),
            told: VecDeque::new(),
            free_below: 1,
            frame: Frame::default(),
            ill: false,
            meters,
        };
        let found = journal.read().unwrap_or_else(|cause| {
            log::warn!("{name}: {cause}; what stands in the outputs may be written once more");
            Found { entries: Vec::new(), gap: u64::MAX }
        });
        journal.count();
        (journal, found)
    }

    fn read(&mut self) -> Result<Found> {
        let doing = || format!("could not read the journal in {}", self.folder.display());
        let mut newest = 0;
        for path in self.disk.list(&self.folder).context(doing)? {
            let Some(file) = self.open_segment(&path) else { continue };
            let mut last = 0;
            let read = frame::read(&*file, |number, payload| {
                last = number;
                if number >= newest {
                    newest = number;
                    self.live_from = payload.live_from();
                }
            });
            match read {
                Ok(()) => self.segments.push(Segment { path, file, last }),
                Err(cause) => self.say_unreadable(&path, cause),
            }
        }
        order::sort_by_key(&mut self.segments, |segment| segment.last);
        self.next = newest + GAP_BETWEEN_LIVES;
        if self.segments.last().is_some_and(|newest| newest.file.sync().is_ok()) {
            self.free_below = self.live_from;
        }
        let (mut entries, mut void) = (Vec::new(), Vec::new());
        for segment in self.segments.iter().filter(|segment| segment.last >= self.live_from) {
            let read = frame::read(&*segment.file, |number, payload| {
                if let Some((told, entry)) = payload.told()
                    && number >= self.live_from
                {
                    void.extend(told);
                    entries.push((number, entry));
                }
            });
            if let Err(cause) = read {
                self.say_unreadable(&segment.path, cause);
            }
        }
        void = merged(void);
        // A journal that was full has forgotten its oldest entries without a checkpoint.
        let is_full = self.segments.len() >= SEGMENTS_MAX;
        let first = entries.first().map(|(number, _)| *number).filter(|_| is_full);
        let gap = first_missing(first.unwrap_or(self.live_from), &entries, &void);
        let is_void = |number: u64| {
            let upto = void.partition_point(|numbers| numbers.end <= number);
            void.get(upto).is_some_and(|numbers| numbers.contains(&number))
        };
        entries.retain(|(number, entry)| matches!(entry, Entry::Deleted { .. }) || !is_void(*number));
        Ok(Found { entries, gap })
    }

    fn open_segment(&self, path: &Path) -> Option<Arc<Written>> {
        let opened = self.disk.open(path, Open::Existing);
        opened.map(Written::new).map_err(|cause| self.say_unreadable(path, cause)).ok()
    }

    /// What it had is no receipt, and it is not written over.
    fn say_unreadable(&self, path: &Path, cause: std::io::Error) {
        let (name, path) = (&self.name, path.display());
        log::warn!(
            "{name}: could not read {path}: {cause}; what stands in the outputs may be written once more"
        );
    }

    fn count(&self) {
        self.meters.segments.set(self.segments.len() as i64);
    }

    /// Of what was found only these numbers, rising, are true, now and at every later start. `was_known`: once it is set,
    /// all of it is history.
    pub fn believe(&mut self, numbers: impl IntoIterator<Item = u64>, was_known: Arc<AtomicBool>) {
        let mut from = self.live_from;
        for number in numbers.into_iter().chain([self.next]) {
            if from < number {
                self.void.push(from..number);
            }
            from = number + 1;
        }
        if self.void.len() > VOID_MAX {
            self.start_over();
        }
        self.found = Some((self.next, was_known));
        self.groups.push_back(Group { upto: self.next, count: self.passed.count() });
    }

    /// What was read is history: it does not stand in the outputs as it should, and cannot be repaired.
    pub fn start_over(&mut self) {
        self.live_from = self.next;
        self.void.clear();
    }

    /// The number of the next entry.
    pub fn next(&self) -> u64 {
        self.next
    }

    /// All appends from this number on were taken back.
    pub fn take_back(&mut self, from: u64) {
        if from < self.next {
            self.void.push(from..self.next);
        }
    }

    /// Of all that was read: whoever comes next shall not find it.
    pub fn forget(&mut self) {
        self.start_over();
        for segment in self.segments.drain(..) {
            let removed = self.disk.remove(&segment.path);
            if let Err(cause) = removed.and_then(|()| self.disk.sync_folder(&self.folder)) {
                log::warn!("{}: could not delete {}: {cause}", self.name, segment.path.display());
            }
        }
        self.count();
    }

    /// Everything that was journaled so far has been answered for: the receipts are on their way to the ledger.
    pub fn answered(&mut self) {
        if let Some((upto, was_known)) = self.found.take()
            && was_known.load(Relaxed)
        {
            self.live_from = self.live_from.max(upto);
            self.void.clear();
        }
        Group::note(&mut self.groups, self.next, self.passed.count());
        if let Some(upto) = Group::passed(&mut self.groups, &self.passed) {
            self.live_from = self.live_from.max(upto);
        }
        if let Some(upto) = Group::passed(&mut self.told, &self.passed) {
            self.free_below = upto;
        }
    }

    /// About to append to the output at `path`, which has `offset` bytes: returns their sum. An error: it must
    /// not be, now. What was noted before did not reach the disk, and is written again first.
    pub fn append(
        &mut self,
        path: &Path,
        inode: u64,
        offset: u64,
        new: New<'_>,
        parts: &[Part],
    ) -> Result<u32> {
        self.frame.begin(self.live_from, &self.void);
        let sum = self.frame.append(path, inode, offset, new, parts);
        self.write()?;
        Ok(sum)
    }

    /// About to delete an output of so many bytes. An error: as of [`Journal::append`].
    pub fn delete(&mut self, inode: u64, length: u64) -> Result<()> {
        self.frame.begin(self.live_from, &self.void);
        self.frame.delete(inode, length);
        self.write()
    }

    fn write(&mut self) -> Result<()> {
        let is_in_doubt = |segment: &Segment| segment.file.is_in_doubt();
        match self.try_write() {
            Ok(()) => {
                if std::mem::take(&mut self.ill) {
                    log::info!("{}: the journal of the outputs can be written again", self.name);
                }
            }
            Err(cause) if self.segments.last().is_some_and(is_in_doubt) => return Err(cause),
            Err(cause) => {
                self.meters.unjournaled.add(1);
                if !std::mem::replace(&mut self.ill, true) {
                    let name = &self.name;
                    log::warn!("{name}: {cause}; delivering all the same: a crash now doubles lines");
                }
            }
        }
        Ok(())
    }

    fn try_write(&mut self) -> Result<()> {
        let frame = self.frame.seal(self.next);
        let length = frame.len() as u64;
        if length > SEGMENT_BYTES {
            return Err(Error::new(format!("an entry of {length} bytes is too large for the journal")));
        }
        if self.at + length > SEGMENT_BYTES {
            let folder = self.folder.clone();
            let rolled = self.roll();
            self.count();
            rolled.context(|| format!("could not make room in {}", folder.display()))?;
        }
        let segment = self.segments.last_mut().expect("room was made");
        let written = segment.file.write_at(self.frame.bytes(), self.at);
        self.unsynced.note(segment.file.clone());
        written.context(|| format!("could not write to {}", segment.path.display()))?;
        segment.last = self.next;
        self.at += length;
        self.next += 1;
        self.void.clear();
        Group::note(&mut self.told, self.live_from, self.passed.count());
        Ok(())
    }

    /// Another segment: one that is passed, or a new one, or the oldest.
    fn roll(&mut self) -> std::io::Result<()> {
        let is_passed = |segment: &Segment| segment.last < self.free_below;
        let passed = self.segments.iter().filter(|segment| is_passed(segment)).count();
        for _ in 0..passed.saturating_sub(1 + SPARE) {
            self.disk.remove(&self.segments[0].path)?;
            self.segments.remove(0); // sorted: the passed ones come first
        }
        if passed > 0 || self.segments.len() >= SEGMENTS_MAX {
            self.live_from = self.live_from.max(self.segments[0].last + 1);
            self.segments.rotate_left(1);
        } else {
            let spares = if self.segments.is_empty() { SPARE } else { 0 };
            let segment = self.create()?;
            self.segments.push(segment);
            for _ in 0..spares {
                let spare = self.create()?;
                self.segments.insert(0, spare);
            }
        }
        self.at = 0;
        Ok(())
    }

    fn create(&self) -> std::io::Result<Segment> {
        self.disk.create_folder(&self.folder)?;
        let path = |number: usize| self.folder.join(format!("journal-{number}"));
        // One that could not be read is not among ours, and is there.
        let is_free = |path: &PathBuf| {
            self.segments.iter().all(|segment| segment.path != *path)
                && !matches!(self.disk.is_taken(path), Ok(true))
        };
        let path = (0..).map(path).find(is_free).expect("there are more numbers than segments");
        let file = Written::new(self.disk.open(&path, Open::OrCreate)?);
        if let Err(cause) = file.allocate(SEGMENT_BYTES) {
            self.disk.remove(&path)?; // else each try on a full disk would leave a file behind
            return Err(cause);
        }
        for folder in self.folder.ancestors().take(3) {
            self.unsynced.note_folder(SyncFolder::of(&self.disk, folder)); // up to `data_dir`
        }
        Ok(Segment { path, file, last: 0 })
    }
}

/// The first number from `from` on that neither stands there nor is void. `void`: as [`merged`].
fn first_missing(from: u64, entries: &[(u64, Entry)], void: &[Range<u64>]) -> u64 {
    let mut void = void.iter().peekable();
    let mut expected = from;
    for (number, _) in entries {
        while let Some(numbers) = void.next_if(|numbers| numbers.start <= expected) {
            expected = expected.max(numbers.end);
        }
        if expected < *number {
            return expected;
        }
        expected = expected.max(number + 1);
    }
    u64::MAX
}

#[cfg(test)]
mod tests;
