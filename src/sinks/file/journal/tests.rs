use super::*;
use crate::ack::GenerationId;
use crate::disk::model::ModelDisk;
use crate::sinks::file::frame::{Appended, Block, sums};

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

    fn read(&self) -> (Journal, Found) {
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

    /// Believes all up to the gap.
    fn open(&self) -> (Journal, Vec<Entry>) {
        let (mut journal, Found { mut entries, gap }) = self.read();
        entries.retain(|(number, _)| *number < gap);
        journal.believe(entries.iter().map(|(number, _)| *number), Arc::default());
        (journal, entries.into_iter().map(|(_, entry)| entry).collect())
    }

    fn segments(&self) -> usize {
        self.disk.list(Path::new("/data/outputs/out")).unwrap().len()
    }
}

fn new(bytes: &[u8]) -> New<'_> {
    New { bytes, block: Block::Sector, sums: &[] }
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
    let sum = journal.append(Path::new("/out/x \u{e4}"), 9, 300, new(&bytes), &parts).unwrap();
    assert_eq!(sum, crc32fast::hash(&bytes));
    journal.delete(9, 1600).unwrap();
    let (mut journal, entries) = bench.open();
    let sums: Vec<u32> = sums(300, new(&bytes)).collect();
    assert_eq!(sums, [212, 724, 1236, 1300].map(|upto| crc32fast::hash(&bytes[..upto])));
    let path = "/out/x \u{e4}".into();
    let appended = Appended {
        path,
        inode: 9,
        offset: 300,
        length: 1300,
        block: Block::Sector,
        sums,
        parts: parts.to_vec(),
    };
    let expected = [Entry::Appended(appended), Entry::Deleted { inode: 9, length: 1600 }];
    assert_eq!(entries, expected);
    journal.append(Path::new("/y"), 1, 0, new(b""), &[]).unwrap();
    assert_eq!(offsets(&bench.open().1), [300, 1600, 0], "over two lives");
}

#[test]
fn an_entry_is_history_when_two_checkpoints_are_past_its_answer() {
    let bench = Bench::new();
    let (mut journal, _) = bench.open();
    let mut note = |offset| {
        journal.answered();
        journal.append(Path::new("/x"), 1, offset, new(b"x"), &[]).unwrap();
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
        journal.append(Path::new("/x"), 1, offset, new(b"x"), &parts).unwrap();
    };
    (0..20).for_each(|at| {
        note(at);
        bench.passed.written();
    });
    assert!((2..=4).contains(&bench.segments()), "{}", bench.segments());
    (20..40).for_each(&mut note);
    assert!(bench.segments() >= 10);
    for first in [40, 44, 48] {
        bench.passed.written();
        bench.passed.written();
        (first..first + 4).for_each(&mut note);
    }
    assert!(bench.segments() <= 5, "what a burst needed does not stay: {}", bench.segments());
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
    let ends: Vec<usize> = (0..3)
        .map(|at| {
            let parts = [part(1, 0..10)];
            journal.append(Path::new("/x"), 1, at * 10, new(b"0123456789"), &parts).unwrap();
            journal.at as usize
        })
        .collect();
    let before = |at: usize| ends.iter().take_while(|end| **end <= at).count();
    let path = bench.disk.list(Path::new("/data/outputs/out")).unwrap().remove(0);
    let file = bench.disk.open(&path, Open::Existing).unwrap();
    let mut whole = vec![0; journal.at as usize];
    file.read_at(&mut whole, 0).unwrap();
    for at in 0..whole.len() {
        file.write_at(&[whole[at] ^ 0x41], at as u64).unwrap();
        let (_, entries) = bench.open();
        let intact = (0..before(at) as u64).map(|at| at * 10).collect::<Vec<_>>();
        assert_eq!(offsets(&entries), intact, "byte {at}");
        file.write_at(&whole[at..=at], at as u64).unwrap();
    }
    for len in (0..whole.len()).rev() {
        file.set_size(len as u64).unwrap();
        assert_eq!(bench.open().1.len(), before(len), "{len} bytes");
    }
}

#[test]
fn a_full_disk_costs_the_entry_and_nothing_else() {
    let bench = Bench::new();
    let (mut journal, _) = bench.open();
    bench.disk.set_full(true);
    journal.append(Path::new("/x"), 1, 0, new(b"x"), &[]).unwrap();
    assert_eq!((bench.counter.get(), bench.segments()), (1, 0));
    bench.disk.set_full(false);
    journal.append(Path::new("/x"), 1, 1, new(b"x"), &[]).unwrap();
    bench.disk.set_full(true);
    journal.append(Path::new("/x"), 1, 2, new(b"x"), &[]).unwrap();
    assert_eq!((bench.counter.get(), offsets(&bench.open().1)), (1, vec![1, 2]), "room was set aside");
}

#[test]
fn what_was_taken_back_is_void_and_no_gap() {
    let bench = Bench::new();
    let (mut journal, _) = bench.open();
    let mut note = |offset: u64, is_taken_back: bool| {
        let begun = journal.next();
        journal.append(Path::new("/x"), 1, offset, new(b"x"), &[]).unwrap();
        journal.append(Path::new("/y"), 2, offset, new(b"x"), &[]).unwrap();
        if is_taken_back {
            journal.delete(3, offset).unwrap();
            journal.take_back(begun);
        }
    };
    note(0, false);
    note(1, true);
    note(2, true);
    let Found { entries, gap } = bench.read().1;
    let entries: Vec<Entry> = entries.into_iter().map(|(_, entry)| entry).collect();
    assert_eq!(offsets(&entries), [0, 0, 1, 2, 2, 2], "not told of the last one");
    assert_eq!(gap, u64::MAX);
    note(3, false);
    assert_eq!(offsets(&bench.open().1), [0, 0, 1, 2, 3, 3], "what was deleted stays deleted");
}

/// As with `--once`, from cron: no life sees two checkpoints.
#[test]
fn short_lives_whose_end_the_ledger_knows_leave_no_history_behind() {
    let bench = Bench::new();
    for life in 0..40 {
        let (mut journal, found) = bench.read();
        assert!(found.entries.len() <= 2, "life {life}: {:?}", found.entries);
        let was_known = Arc::new(AtomicBool::new(true));
        journal.believe(found.entries.iter().map(|(number, _)| *number), was_known);
        for offset in [life, life + 1] {
            journal.answered();
            journal.append(Path::new("/x"), 1, offset, new(b"x"), &[]).unwrap();
        }
        assert_eq!(offsets(&bench.open().1), [life, life + 1]);
        assert!(bench.segments() <= 4, "{}", bench.segments());
    }
}

#[test]
fn a_segment_that_cannot_be_read_costs_nothing_of_what_is_written_later() {
    let folder = tempfile::tempdir().unwrap();
    let open = || {
        let meters = Meters { unjournaled: Arc::default(), segments: Arc::default() };
        let (disk, unsynced) = (Arc::new(crate::disk::RealDisk), Unsynced::default());
        Journal::open(&"out".into(), folder.path().into(), disk, unsynced, Passed::default(), meters)
    };
    let note = |offset| {
        let (mut journal, Found { entries, gap }) = open();
        journal.believe(entries.iter().map(|(number, _)| *number).filter(|at| *at < gap), Arc::default());
        journal.append(Path::new("/x"), 1, offset, new(b"x"), &[]).unwrap();
        let entries: Vec<Entry> = open().1.entries.into_iter().map(|(_, entry)| entry).collect();
        offsets(&entries)
    };
    assert_eq!(note(0), [0]);
    std::fs::create_dir(folder.path().join("journal-7")).unwrap(); // opened, and not read
    assert_eq!(note(1), [0, 1]);
    std::fs::remove_dir(folder.path().join("journal-7")).unwrap();
    assert_eq!(note(2), [0, 1, 2]);
}

#[test]
fn what_is_void_never_outgrows_a_frame() {
    let bench = Bench::new();
    let (mut journal, _) = bench.read();
    journal.live_from = 1;
    journal.believe((1..10_000_000).step_by(20), Arc::default());
    journal.append(Path::new("/x"), 1, 0, new(b"x"), &[]).unwrap();
    assert_eq!((bench.counter.get(), offsets(&bench.open().1)), (0, vec![0]));
}

/// Else what the checkpoint knows would be cut off outputs.
#[test]
fn a_power_cut_takes_nothing_that_was_synced_however_segments_were_recycled() {
    let large = "x".repeat(SEGMENT_BYTES as usize * 3 / 4); // one a segment
    for seed in 0..40 {
        let mut rng = fastrand::Rng::with_seed(seed);
        let mut bench = Bench::new();
        for _ in 0..3 {
            bench.unsynced = Unsynced::default();
            let (mut journal, found) = bench.read();
            let believed = found.entries.iter().map(|(number, _)| *number).filter(|at| *at < found.gap);
            journal.believe(believed, Arc::default());
            let begun = journal.next();
            let mut synced = 0;
            let checkpoints_are_rare = rng.u8(..3) == 0;
            for _ in 0..rng.usize(..100) {
                match rng.u8(..10) {
                    0..7 => {
                        let path = if rng.bool() { &large } else { "/x" };
                        journal.append(Path::new(path), 1, 0, new(b"x"), &[]).unwrap();
                    }
                    7 => journal.answered(),
                    8 if checkpoints_are_rare => {}
                    _ => {
                        bench.passed.begins();
                        bench.unsynced.sync().unwrap();
                        synced = if journal.next() > begun { journal.next() - 1 } else { 0 };
                        bench.passed.written();
                    }
                }
            }
            let live_from = journal.live_from;
            bench.disk.power_cut(seed);
            let Found { entries, gap } = bench.read().1;
            assert!(gap > synced, "seed {seed}: {gap} is missing and {synced} is synced");
            let numbers: Vec<u64> = entries.iter().map(|(number, _)| *number).collect();
            let mut known = live_from.max(begun)..=synced;
            assert!(known.all(|number| numbers.contains(&number)), "seed {seed}");
        }
    }
}

/// What was synced is read, what was not may be; nothing else ever is.
#[test]
fn a_power_cut_takes_the_newest_entries_at_most() {
    for seed in 0..200 {
        let bench = Bench::new();
        let (mut journal, _) = bench.open();
        let mut note = |offset| {
            journal.append(Path::new("/x"), 1, offset, new(&[1; 9000]), &[]).unwrap();
        };
        (0..5).for_each(&mut note);
        bench.unsynced.sync().unwrap();
        (5..9).for_each(&mut note);
        bench.disk.power_cut(seed);
        let (mut journal, entries) = bench.open();
        let known = offsets(&entries);
        assert!(known.len() >= 5 && known.iter().copied().eq(0..known.len() as u64), "{seed}: {known:?}");
        journal.append(Path::new("/x"), 1, 77, new(b"x"), &[]).unwrap();
        assert_eq!(*offsets(&bench.open().1).last().unwrap(), 77, "{seed}");
    }
}
