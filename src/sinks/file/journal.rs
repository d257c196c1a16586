//! The write journal of a file sink: what is about to be appended to which output, noted before it is.
//!
//! Frames (`frame.rs`) in a few preallocated segments of one folder below `data_dir`.
//!
//! Numbers rise by one from frame to frame, so that what a recycled segment held before is known by its number, and so
//! is what a power cut has taken from the middle. `live from` is the first number that two checkpoints were not past
//! yet when the frame was written: what stands below it in the newest frame is history. Every frame tells all there is
//! to know about its bytes, so segments are recycled without a look at what is in them.
//!
//! Always true: a frame is never trusted, only compared (`recovery.rs`): after a power cut journal and output can
//! each have lost what was not synced. A journal that cannot be written costs doubles after a crash, and nothing
//! else: the sink goes on, and counts.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::frame::{self, Appended, Entry, Frame, Part};
use crate::disk::{Disk, DiskFile, Open};
use crate::durable::{Passed, SyncFolder, Unsynced, Written};
use crate::error::{Context, Error, Result};
use crate::metrics::{Counter, Gauge};

/// One second at full speed; a batch of the largest size fits.
pub const SEGMENT_BYTES: u64 = 1 << 20;

/// Half a minute at full speed without a checkpoint. Beyond it the oldest entries are forgotten.
pub const SEGMENTS_MAX: usize = 32;

/// Passed segments that stay for the next burst; made with the first one, so that what is open is the same ever after.
const SPARE: usize = 1;

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
    live_from: u64,
    /// Numbers below `upto` were answered for when `count` checkpoints were written.
    groups: VecDeque<Group>,
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

impl Journal {
    /// Reads what the last life left: entries that two checkpoints may not be past, in their order. Creates nothing.
    /// A segment that cannot be read is passed over, and said.
    pub fn open(
        name: &Arc<str>,
        folder: PathBuf,
        disk: Arc<dyn Disk>,
        unsynced: Unsynced,
        passed: Passed,
        meters: Meters,
    ) -> (Journal, Vec<Entry>) {
        let mut journal = Journal {
            name: name.clone(),
            folder,
            disk,
            unsynced,
            passed,
            segments: Vec::new(),
            at: SEGMENT_BYTES,
            next: 1,
            live_from: 1,
            groups: VecDeque::new(),
            frame: Frame::default(),
            ill: false,
            meters,
        };
        let mut entries = Vec::new();
        if let Err(cause) = journal.read(&mut entries) {
            log::warn!("{name}: {cause}; what stands in the outputs may be written once more");
        }
        journal.count();
        (journal, entries)
    }

    fn read(&mut self, entries: &mut Vec<Entry>) -> Result<()> {
        let doing = || format!("could not read the journal in {}", self.folder.display());
        let mut newest = 0;
        for path in self.disk.list(&self.folder).context(doing)? {
            let file = Written::new(self.disk.open(&path, Open::Existing).context(doing)?);
            let mut last = 0;
            frame::read(&*file, |number, payload| {
                last = number;
                if number >= newest {
                    newest = number;
                    self.live_from = payload.live_from();
                }
            })
            .context(doing)?;
            self.segments.push(Segment { path, file, last });
        }
        self.segments.sort_by_key(|segment| segment.last);
        let (mut last, mut is_whole) = (self.live_from - 1, true);
        for segment in self.segments.iter().filter(|segment| segment.last >= self.live_from) {
            frame::read(&*segment.file, |number, payload| {
                if number < self.live_from {
                    return;
                }
                is_whole &= [last + 1, last + GAP_BETWEEN_LIVES].contains(&number);
                last = number;
                entries.extend(payload.entry().map(|entry| match entry {
                    Entry::Appended(entry) => Entry::Appended(Appended { is_behind_gap: !is_whole, ..entry }),
                    deleted => deleted,
                }));
            })
            .context(doing)?;
        }
        self.next = newest + GAP_BETWEEN_LIVES;
        self.groups.push_back(Group { upto: self.next, count: self.passed.count() });
        Ok(())
    }

    fn count(&self) {
        self.meters.segments.set(self.segments.len() as i64);
    }

    /// What was read is history: it does not stand in the outputs as it should, and cannot be repaired.
    pub fn start_over(&mut self) {
        self.live_from = self.next;
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
        let (next, count) = (self.next, self.passed.count());
        match self.groups.back_mut() {
            Some(group) if group.count == count => group.upto = next,
            _ => self.groups.push_back(Group { upto: next, count }),
        }
        while let Some(group) = self.groups.front()
            && self.passed.by(group.count)
        {
            self.live_from = self.live_from.max(group.upto);
            self.groups.pop_front();
        }
    }

    /// About to append `bytes` to the output at `path`, which has `offset` bytes: returns their sum. An error: it must
    /// not be, now. What was noted before did not reach the disk, and is written again first.
    pub fn append(
        &mut self,
        path: &Path,
        inode: u64,
        offset: u64,
        bytes: &[u8],
        parts: &[Part],
    ) -> Result<u32> {
        let sum = self.frame.append(self.live_from, path, inode, offset, bytes, parts);
        self.write()?;
        Ok(sum)
    }

    /// About to delete an output of so many bytes. An error: as of [`Journal::append`].
    pub fn delete(&mut self, inode: u64, length: u64) -> Result<()> {
        self.frame.delete(self.live_from, inode, length);
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
        Ok(())
    }

    /// Another segment: one that is passed, or a new one, or the oldest.
    fn roll(&mut self) -> std::io::Result<()> {
        let is_passed = |segment: &Segment| segment.last < self.live_from;
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
        let is_free = |path: &PathBuf| self.segments.iter().all(|segment| segment.path != *path);
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

#[cfg(test)]
mod tests {
    use std::ops::Range;

    use super::*;
    use crate::ack::GenerationId;
    use crate::disk::model::ModelDisk;
    use crate::sinks::file::frame::sums;

    struct Bench {
        disk: ModelDisk,
        unsynced: Unsynced,
        passed: Passed,
        counter: Arc<Counter>,
        segments_held: Arc<Gauge>,
    }

    impl Bench {
        fn new() -> Bench {
            Bench {
                disk: ModelDisk::default(),
                unsynced: Unsynced::default(),
                passed: Passed::default(),
                counter: Arc::default(),
                segments_held: Arc::default(),
            }
        }

        fn open(&self) -> (Journal, Vec<Entry>) {
            let (unsynced, passed) = (self.unsynced.clone(), self.passed.clone());
            let disk = Arc::new(self.disk.clone());
            Journal::open(
                &"out".into(),
                "/data/outputs/out".into(),
                disk,
                unsynced,
                passed,
                Meters { unjournaled: self.counter.clone(), segments: self.segments_held.clone() },
            )
        }

        fn segments(&self) -> usize {
            self.disk.list(Path::new("/data/outputs/out")).unwrap().len()
        }
    }

    fn part(generation: u64, range: Range<u64>) -> Part {
        Part { generation: GenerationId(generation), range, replayable: generation == 2 }
    }

    fn offsets(entries: &[Entry]) -> Vec<u64> {
        entries
            .iter()
            .map(|entry| match entry {
                Entry::Appended(appended) => appended.offset,
                Entry::Deleted { length, .. } => *length,
            })
            .collect()
    }

    #[test]
    fn what_was_noted_is_read_in_its_order() {
        let bench = Bench::new();
        let (mut journal, entries) = bench.open();
        assert!(entries.is_empty() && bench.segments() == 0, "nothing is made before the first entry");
        let bytes = vec![7; 1300];
        let parts = [part(1, 0..1000), part(2, 1 << 40..u64::MAX / 4)];
        let sum = journal.append(Path::new("/out/x \u{e4}"), 9, 300, &bytes, &parts).unwrap();
        assert_eq!(sum, crc32fast::hash(&bytes));
        journal.delete(9, 1600).unwrap();
        let (mut journal, entries) = bench.open();
        let sums: Vec<u32> = sums(300, &bytes).collect();
        assert_eq!(sums, [212, 724, 1236, 1300].map(|upto| crc32fast::hash(&bytes[..upto])));
        let path = "/out/x \u{e4}".into();
        let appended = Appended {
            path,
            inode: 9,
            offset: 300,
            length: 1300,
            sums,
            parts: parts.to_vec(),
            is_behind_gap: false,
        };
        let expected = [Entry::Appended(appended), Entry::Deleted { inode: 9, length: 1600 }];
        assert_eq!(entries, expected);
        journal.append(Path::new("/y"), 1, 0, b"", &[]).unwrap();
        assert_eq!(offsets(&bench.open().1), [300, 1600, 0], "over two lives");
    }

    #[test]
    fn an_entry_is_history_when_two_checkpoints_are_past_its_answer() {
        let bench = Bench::new();
        let (mut journal, _) = bench.open();
        let mut note = |offset| {
            journal.answered();
            journal.append(Path::new("/x"), 1, offset, b"x", &[]).unwrap();
            offsets(&bench.open().1)
        };
        assert_eq!(note(0), [0]);
        bench.passed.written();
        assert_eq!(note(1), [0, 1], "0 was answered for after the first checkpoint");
        bench.passed.written();
        assert_eq!(note(2), [0, 1, 2]);
        bench.passed.written();
        assert_eq!(note(3), [1, 2, 3]);
        bench.passed.written();
        bench.passed.written();
        assert_eq!(note(4), [3, 4], "the answer for 3 came after the last one");
    }

    #[test]
    fn segments_are_recycled_and_bounded() {
        let bench = Bench::new();
        let (mut journal, _) = bench.open();
        let parts = vec![part(1, 1 << 60..(1 << 60) + 1); 40_000]; // an entry of 430 KiB: two a segment
        let mut note = |offset| {
            journal.answered();
            journal.append(Path::new("/x"), 1, offset, b"x", &parts).unwrap();
        };
        (0..20).for_each(|at| {
            note(at);
            bench.passed.written();
        });
        assert!((2..=4).contains(&bench.segments()), "{}", bench.segments());
        (20..30).for_each(&mut note);
        assert!(bench.segments() >= 5);
        bench.passed.written();
        bench.passed.written();
        (30..34).for_each(&mut note);
        bench.passed.written();
        bench.passed.written();
        (34..38).for_each(&mut note);
        assert!(bench.segments() <= 4, "what a burst needed does not stay: {}", bench.segments());
        (100..100 + 2 * SEGMENTS_MAX as u64 + 4).for_each(&mut note);
        assert_eq!(bench.segments(), SEGMENTS_MAX);
        let known = offsets(&bench.open().1);
        let last = 100 + 2 * SEGMENTS_MAX as u64 + 3;
        assert!(known.iter().copied().eq(last + 1 - known.len() as u64..=last), "the newest: {known:?}");
        assert_eq!(bench.counter.get(), 0);
    }

    #[test]
    fn every_byte_flipped_and_every_length_is_survived() {
        let bench = Bench::new();
        let (mut journal, _) = bench.open();
        (0..3).for_each(|at| {
            journal.append(Path::new("/x"), 1, at * 10, b"0123456789", &[part(1, 0..10)]).unwrap();
        });
        let path = bench.disk.list(Path::new("/data/outputs/out")).unwrap().remove(0);
        let file = bench.disk.open(&path, Open::Existing).unwrap();
        let mut whole = vec![0; journal.at as usize];
        file.read_at(&mut whole, 0).unwrap();
        for at in 0..whole.len() {
            file.write_at(&[whole[at] ^ 0x41], at as u64).unwrap();
            let (_, entries) = bench.open();
            let intact = at / (whole.len() / 3);
            assert_eq!(
                offsets(&entries),
                (0..intact as u64).map(|at| at * 10).collect::<Vec<_>>(),
                "byte {at}"
            );
            file.write_at(&whole[at..=at], at as u64).unwrap();
        }
        for len in (0..whole.len()).rev() {
            file.set_size(len as u64).unwrap();
            assert_eq!(bench.open().1.len(), len / (whole.len() / 3), "{len} bytes");
        }
    }

    #[test]
    fn a_full_disk_costs_the_entry_and_nothing_else() {
        let bench = Bench::new();
        let (mut journal, _) = bench.open();
        bench.disk.set_full(true);
        journal.append(Path::new("/x"), 1, 0, b"x", &[]).unwrap();
        assert_eq!((bench.counter.get(), bench.segments()), (1, 0));
        bench.disk.set_full(false);
        journal.append(Path::new("/x"), 1, 1, b"x", &[]).unwrap();
        bench.disk.set_full(true);
        journal.append(Path::new("/x"), 1, 2, b"x", &[]).unwrap();
        assert_eq!((bench.counter.get(), offsets(&bench.open().1)), (1, vec![1, 2]), "room was set aside");
    }

    /// What was synced is read, what was not may be; nothing else ever is.
    #[test]
    fn a_power_cut_takes_the_newest_entries_at_most() {
        for seed in 0..200 {
            let bench = Bench::new();
            let (mut journal, _) = bench.open();
            let mut note = |offset| {
                journal.append(Path::new("/x"), 1, offset, &[1; 9000], &[]).unwrap();
            };
            (0..5).for_each(&mut note);
            bench.unsynced.sync().unwrap();
            (5..9).for_each(&mut note);
            bench.disk.power_cut(seed);
            let (mut journal, entries) = bench.open();
            let known = offsets(&entries);
            assert!(known.len() >= 5 && known.iter().copied().eq(0..known.len() as u64), "{seed}: {known:?}");
            journal.append(Path::new("/x"), 1, 77, b"x", &[]).unwrap();
            assert_eq!(*offsets(&bench.open().1).last().unwrap(), 77, "{seed}");
        }
    }
}
