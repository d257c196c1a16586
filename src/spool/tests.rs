//! The spool on a disk that forgets, tears and reorders, against a list of what was put into it.

use proptest::prelude::*;

use super::*;
use crate::budget::{Budget, Credit, Holder};
use crate::disk::RealDisk;
use crate::disk::model::ModelDisk;
use crate::record::fixture::lines;
use crate::record::{Changed, Entry, Labels};

fn credit() -> Credit {
    Budget::new(1 << 20).door().try_take(&Holder::default(), 1).expect("there is room")
}

fn settings(disk: &ModelDisk, max_bytes: u64, when_full: WhenFull) -> Settings {
    Settings {
        disk: Arc::new(disk.clone()),
        folder: "/data/spool/sink".into(),
        max_bytes,
        when_full,
        unsynced: Unsynced::default(),
        passed: Passed::default(),
        boot: 1,
        streets: 1,
    }
}

/// A chunk of one line that says where it stands.
fn chunk(start: u64, text: &str) -> Slice {
    Slice::all(Shared::from(Records::untouched(lines(&[text], start, false))))
}

/// All that is there to be read, as (sequence, offset, text).
fn read_all(spool: &mut Spool) -> Vec<(u64, u64, String)> {
    let mut read = Vec::new();
    while spool.next_cost().unwrap().is_some() {
        if let Some(replayed) = spool.next(credit()).unwrap() {
            let record = replayed.records.get(0);
            read.push((replayed.sequence, record.offset, String::from_utf8_lossy(record.text).into_owned()));
        }
    }
    read
}

/// What a stage may do to a line.
fn change(which: u8, labels: &[Arc<Labels>]) -> Option<Box<Changed>> {
    let changed = Changed {
        partial: true,
        text: (which & 1 != 0).then(|| format!("new text {which}").into_bytes().into()),
        time_ns: (which & 2 != 0).then(|| i64::from(which) * 1_000_003 - 7),
        labels: (which & 4 != 0).then(|| labels[usize::from(which) % labels.len()].clone()),
        metadata: (0..which / 8 % 3)
            .map(|at| (format!("m{at}").into(), format!("v{which}").into()))
            .collect(),
    };
    (which != 0).then(|| Box::new(changed))
}

proptest! {
    /// Whatever the pipeline made of a chunk and whichever part of it was spooled, the same records come back.
    #[test]
    fn records_come_back_as_they_went(
        raw in proptest::collection::vec(("[a-z\\x00é]{0,12}", 0usize..4), 1..30),
        kept in proptest::option::of(proptest::collection::vec((any::<bool>(), 0u8..32), 30)),
        (from, to) in (0u32..30, 0u32..30),
        large in 0usize..3,
        replayable: bool,
    ) {
        let ends = ["\n", "\r\n", "\n", ""];
        let mut raw: Vec<String> = raw.iter().map(|(text, end)| format!("{text}{}", ends[*end])).collect();
        raw[0].insert_str(0, &"x".repeat(large * frame::SCRATCH_BYTES * 3 / 4));
        let raw: Vec<&str> = raw.iter().map(String::as_str).filter(|raw| !raw.is_empty()).collect();
        prop_assume!(!raw.is_empty());
        let (count, chunk) = (raw.len(), lines(&raw, 1000, replayable));
        let labels: Vec<Arc<Labels>> =
            ["a", "b"].into_iter().map(|level| Arc::new(Labels::new([("level", level)]))).collect();
        let records = match kept {
            None => Records::untouched(chunk),
            Some(kept) => {
                let entry = |(line, (keep, which)): (usize, &(bool, u8))| {
                    keep.then(|| Entry { line: line as u32, changed: change(*which, &labels) })
                };
                Records::kept(chunk, kept[..count].iter().enumerate().filter_map(entry).collect())
            }
        };
        prop_assume!(!records.is_empty());
        let (from, to) = (from % records.len(), to % records.len());
        let slice = Slice { records: records.into(), range: from.min(to)..from.max(to) + 1 };

        let disk = ModelDisk::default();
        let (mut spool, _) = Spool::open(settings(&disk, 1 << 20, WhenFull::Wait)).unwrap();
        prop_assert_eq!(spool.put(&slice).unwrap(), Put::Written);
        prop_assert_eq!(spool.pending(), slice.count());
        spool.next_cost().unwrap();
        let back = spool.next(credit()).unwrap().unwrap();
        let shown = |slice: &Slice| slice.iter().map(|record| frame::shown(&record)).collect::<Vec<_>>();
        let back = Slice::all(back.records);
        prop_assert_eq!(shown(&back), shown(&slice));
        prop_assert_eq!(back.count(), slice.count());

        // And a second time: a sink that falls ill again.
        spool.put(&back).unwrap();
        spool.next_cost().unwrap();
        prop_assert_eq!(shown(&Slice::all(spool.next(credit()).unwrap().unwrap().records)), shown(&slice));
    }
}

#[derive(Clone, Debug)]
enum Act {
    Put(usize),
    /// Reads so many frames, and has all but so many of those under way answered for.
    Read(usize, usize),
    /// Those under way are let go of.
    Rewind,
    Checkpoint,
    /// The next sync fails, and has lost what it was to write.
    LoseInSync,
    Kill,
    PowerCut(u64),
}

fn acts() -> impl Strategy<Value = Vec<Act>> {
    let act = prop_oneof![
        6 => (0usize..2000).prop_map(Act::Put),
        3 => (0usize..6, 0usize..3).prop_map(|(read, left)| Act::Read(read, left)),
        1 => Just(Act::Rewind),
        3 => Just(Act::Checkpoint),
        1 => Just(Act::LoseInSync),
        1 => Just(Act::Kill),
        1 => any::<u64>().prop_map(Act::PowerCut),
    ];
    proptest::collection::vec(act, 1..60)
}

/// What the model knows of a frame.
#[derive(Clone, Debug)]
struct Known {
    start: u64,
    synced: bool,
    /// At which checkpoint it was put, and answered for.
    put: u64,
    answered: Option<u64>,
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    /// Whenever the process dies or the power fails, and whatever became of earlier syncs: what was synced and not answered for comes back, in order; after
    /// a mere death nothing else does; nothing torn ever does; and what no checkpoint knows is a receipt.
    #[test]
    fn what_was_synced_is_never_lost(acts in acts()) {
        let disk = ModelDisk::default();
        let mut settings = settings(&disk, 1 << 16, WhenFull::Wait);
        let begin = |boot| Unsynced::open(Arc::new(disk.clone()), Path::new("/data/in-doubt"), boot);
        settings.unsynced = begin(settings.boot);
        let (mut spool, _) = Spool::open(settings.clone()).unwrap();
        let mut frames: Vec<Known> = Vec::new();
        let mut under_way: VecDeque<(u64, u64)> = VecDeque::new();
        let (mut next, mut passed, mut was_cut) = (0, 0, false);
        for act in acts {
            let act = match act {
                Act::Checkpoint if settings.unsynced.prove().is_err() => {
                    // What can be written again waits for the next one; else the agent ends, and another life begins.
                    if settings.unsynced.take_lost().is_none() { continue }
                    Act::Kill
                }
                act => act,
            };
            match act {
                Act::LoseInSync => disk.lose_in_sync(),
                Act::Rewind => {
                    spool.rewind();
                    under_way.clear();
                }
                Act::Put(len) => {
                    let text = format!("{next} {}\n", "x".repeat(len));
                    // An error: what is in it has to be written again first.
                    if spool.put(&chunk(next, &text)).is_ok_and(|put| put == Put::Written) {
                        frames.push(Known { start: next, synced: false, put: passed, answered: None });
                        next += text.len() as u64;
                    }
                }
                Act::Read(count, left) => {
                    for _ in 0..count {
                        if spool.next_cost().unwrap().is_none() { break }
                        // What a power cut has torn was never synced, and is passed over.
                        let Some(replayed) = spool.next(credit()).unwrap() else { continue };
                        under_way.push_back((replayed.sequence, replayed.range.start));
                    }
                    prop_assert!(under_way.iter().is_sorted(), "{under_way:?}");
                    while under_way.len() > left {
                        let (sequence, start) = under_way.pop_front().unwrap();
                        spool.answered(sequence);
                        let frame = frames.iter_mut().find(|frame| frame.start == start);
                        frame.expect("it was put").answered = Some(passed);
                    }
                    while spool.save().is_err() {
                        drop(settings.unsynced.sync()); // and a lane tries again
                    }
                    // A hole that a power cut has torn is told at the start that finds it; a later start can take it for
                    // damage.
                    prop_assert!(spool.take_lost().iter().all(|lost| was_cut || lost.why == Why::AnsweredBefore));
                }
                Act::Checkpoint => {
                    frames.iter_mut().for_each(|frame| frame.synced = true);
                    passed += 1;
                    settings.passed.written();
                    spool.tidy().unwrap();
                }
                Act::Kill | Act::PowerCut(_) => {
                    if let Act::PowerCut(seed) = act {
                        disk.power_cut(seed);
                        was_cut = true;
                        settings.boot += 1;
                    } else {
                        disk.process_dies();
                        // The next life waits for checkpoints of its own before it calls anything safe.
                        frames.iter_mut().for_each(|frame| frame.answered = frame.answered.map(|_| passed));
                    }
                    under_way.clear();
                    settings.unsynced = begin(settings.boot);
                    let (mut opened, found) = Spool::open(settings.clone()).unwrap();
                    let back: Vec<u64> = read_all(&mut opened).iter().map(|(_, offset, text)| {
                        assert!(text.starts_with(&format!("{offset} ")), "{offset}: {text}");
                        *offset
                    }).collect();
                    prop_assert!(back.is_sorted(), "{back:?}");
                    let open: Vec<u64> =
                        frames.iter().filter(|frame| frame.answered.is_none()).map(|frame| frame.start).collect();
                    if matches!(act, Act::Kill) {
                        prop_assert_eq!(&back, &open);
                        let unknown = |frame: &&Known| frame.put + 2 > passed && frame.answered.is_none();
                        for frame in frames.iter().filter(unknown) {
                            let is_it = |(_, range, _): &Found| range.start == frame.start;
                            prop_assert!(found.frames.iter().any(is_it), "{frame:?} is no receipt");
                        }
                    } else {
                        for frame in &frames {
                            if frame.synced && frame.answered.is_none() {
                                prop_assert!(back.contains(&frame.start), "{frame:?} is lost");
                            }
                            // Answered for, then a checkpoint that made that safe, then one that made this durable.
                            if frame.answered.is_some_and(|at| at + 6 <= passed) {
                                prop_assert!(!back.contains(&frame.start), "{frame:?} comes again");
                            }
                        }
                    }
                    // The next life: what did not survive was never synced, so its source has it.
                    frames.retain(|frame| frame.answered.is_some() || back.contains(&frame.start));
                    frames.iter_mut().filter(|frame| back.contains(&frame.start)).for_each(|frame| frame.answered = None);
                    spool = Spool::open(settings.clone()).unwrap().0;
                }
            }
            let open = frames.iter().filter(|frame| frame.answered.is_none()).count() as u64;
            // Before they are read, nobody knows which were answered for in an earlier life.
            prop_assert!(spool.pending().lines >= open);
            if spool.former.is_none() && !was_cut {
                prop_assert_eq!(spool.pending().lines, open);
            }
        }
    }
}

#[test]
fn what_was_answered_for_goes_after_two_checkpoints() {
    let disk = ModelDisk::default();
    let settings = settings(&disk, 1 << 20, WhenFull::Wait);
    let (mut spool, _) = Spool::open(settings.clone()).unwrap();
    assert_eq!(disk.changes(), 0, "nothing is made before the first frame");
    spool.put(&chunk(0, "one\n")).unwrap();
    assert_eq!(read_all(&mut spool).len(), 1);
    spool.answered(0);
    spool.save().unwrap();
    assert_eq!((spool.pending(), spool.files()), (Count::default(), 1));
    for (passed, waits, files) in [(1, true, 1), (2, false, 0)] {
        settings.passed.written();
        assert_eq!((spool.tidy().unwrap(), spool.files()), (waits, files), "after checkpoint {passed}");
    }
}

#[test]
fn a_full_spool_says_so_or_drops_its_oldest() {
    let fill = |when_full| {
        let disk = ModelDisk::default();
        let (mut spool, _) = Spool::open(settings(&disk, 1 << 20, when_full)).unwrap();
        let text = format!("{}\n", "x".repeat(100_000));
        let put = (0..40).filter(|at| spool.put(&chunk(at * 100_001, &text)).unwrap() == Put::Written);
        let put = put.count();
        assert!(spool.used_bytes() <= 1 << 20);
        let lost: u64 = spool
            .take_lost()
            .iter()
            .map(|lost| {
                assert_eq!(lost.why, Why::Full);
                lost.count.lines
            })
            .sum();
        let left: Vec<u64> = read_all(&mut spool).iter().map(|(_, offset, _)| offset / 100_001).collect();
        assert_eq!(spool.pending().lines, left.len() as u64);
        (put, lost, left)
    };
    let (put, lost, left) = fill(WhenFull::Wait);
    assert_eq!((put, lost, left), (10, 0, (0..10).collect()));
    let (put, lost, left) = fill(WhenFull::DropOldest);
    assert_eq!((put, lost as usize + left.len()), (40, 40));
    assert!(left.len() >= 8 && *left.last().unwrap() == 39 && left.is_sorted(), "{left:?}");
}

/// Every byte of the segment is turned, one after the other.
#[test]
fn damage_costs_the_frame_it_hits_and_is_told() {
    let written = || {
        let disk = ModelDisk::default();
        let mut settings = settings(&disk, 1 << 20, WhenFull::Wait);
        let (mut spool, _) = Spool::open(settings.clone()).unwrap();
        (0..4).for_each(|at| assert_eq!(spool.put(&chunk(at * 4, "abc\n")).unwrap(), Put::Written));
        settings.unsynced.sync().unwrap();
        settings.unsynced = Unsynced::default();
        (disk, settings)
    };
    let (disk, settings) = written();
    let path = segment::path(&settings.folder, 0);
    let bytes = disk.open(&path, Open::Existing).unwrap().size().unwrap();
    let folder = settings.folder.clone();
    for at in 0..bytes {
        let (disk, settings) = written();
        let file = disk.open(&path, Open::Existing).unwrap();
        let mut byte = [0];
        file.read_at(&mut byte, at).unwrap();
        file.write_at(&[byte[0] ^ 1], at).unwrap();
        let (mut spool, found) = Spool::open(settings).unwrap();
        let back: Vec<u64> = read_all(&mut spool).iter().map(|(_, offset, _)| *offset).collect();
        let lost: u64 = spool.take_lost().iter().map(|lost| lost.count.lines).sum();
        let whole = found.frames.len();
        assert!(back.len() >= 3 && back.len() == whole, "byte {at}: {back:?}");
        assert!(back.is_sorted() && back.iter().all(|offset| [0, 4, 8, 12].contains(offset)), "byte {at}");
        // No checkpoint knows these frames: their source still has them, so they are no loss.
        assert_eq!((lost, found.pending.lines), (0, back.len() as u64), "byte {at}");
        assert_eq!(spool.pending(), found.pending, "byte {at}: nothing is answered for yet");
        let aside = disk.list(&folder).unwrap();
        let is_aside = aside.iter().any(|path| path.ends_with(QUARANTINE));
        assert!(is_aside || back.len() == 4 || !back.contains(&12), "byte {at} is not kept aside");

        // Two checkpoints later it is not looked through any more.
        let (disk, settings) = written();
        let (mut spool, _) = Spool::open(settings.clone()).unwrap();
        spool.put(&chunk(16, "new\n")).unwrap();
        (0..2).for_each(|_| settings.passed.written());
        spool.tidy().unwrap();
        let file = disk.open(&path, Open::Existing).unwrap();
        file.write_at(&[byte[0] ^ 1], at).unwrap();
        let (mut spool, found) = Spool::open(settings).unwrap();
        assert!(found.frames.len() >= 4 && found.pending.lines == 5, "byte {at}: {found:?}");
        let back = read_all(&mut spool);
        let lost = spool.take_lost();
        let lines: u64 = lost.iter().map(|lost| lost.count.lines).sum();
        assert!(back.len() >= 4 && lines + back.len() as u64 == 5, "byte {at}");
        assert!(lost.iter().all(|lost| lost.why == Why::Corrupt), "byte {at}: {lost:?}");
        assert_eq!(spool.pending().lines, back.len() as u64);
    }
}

#[test]
fn a_segment_that_is_cut_anywhere_gives_what_is_whole() {
    for size in 0..700 {
        let disk = ModelDisk::default();
        let settings = settings(&disk, 1 << 20, WhenFull::Wait);
        let (mut spool, _) = Spool::open(settings.clone()).unwrap();
        (0..4).for_each(|at| assert_eq!(spool.put(&chunk(at * 4, "abc\n")).unwrap(), Put::Written));
        let file = disk.open(&segment::path(&settings.folder, 0), Open::Existing).unwrap();
        let cut = file.size().unwrap().min(size);
        file.set_size(cut).unwrap();
        let (mut spool, _) = Spool::open(settings).unwrap();
        let back = read_all(&mut spool).len();
        let frame = (file.size().unwrap().max(64) - 64) / back.max(1) as u64;
        assert!(back == 0 || frame > 96, "{back} frames in {cut} bytes");
        spool.put(&chunk(16, "new\n")).unwrap();
        assert_eq!(read_all(&mut spool).len(), 1, "it goes on");
    }
}

#[test]
fn an_earlier_life_that_had_answers_out_of_turn_is_believed() {
    let disk = ModelDisk::default();
    let settings = Settings { streets: 2, ..settings(&disk, 1 << 20, WhenFull::Wait) };
    let (mut spool, _) = Spool::open(settings.clone()).unwrap();
    for at in 0..6u64 {
        let mut chunk = lines(&["a\n", "b\n", "c\n"], at * 6, true);
        let origin = Arc::get_mut(&mut chunk.origin).unwrap();
        origin.lineage = at % 2;
        spool.put(&Slice::all(Shared::from(Records::untouched(chunk)))).unwrap();
    }
    assert_eq!(read_all(&mut spool).len(), 6);
    // The first connection has one line of its first frame; the second is done with two of its three.
    spool.answered(1);
    spool.answered(3);
    spool.answered_in_part(0, 1..2, Count { lines: 1, bytes: 2 }); // behind a gap
    spool.answered_in_part(0, 0..1, Count { lines: 1, bytes: 2 });
    spool.save().unwrap();
    disk.process_dies();
    let (mut spool, found) = Spool::open(settings).unwrap();
    assert_eq!(found.pending.lines, 18, "more exactly it is known when they are read");
    let mut back = Vec::new();
    while spool.next_cost().unwrap().is_some() {
        let replayed = spool.next(credit()).unwrap().unwrap();
        back.push((replayed.sequence, replayed.answered));
    }
    assert_eq!(back, [(0, 1), (2, 0), (4, 0), (5, 0)]);
    let lost = spool.take_lost();
    assert!(lost.iter().all(|lost| lost.why == Why::AnsweredBefore));
    assert_eq!(lost.iter().map(|lost| lost.count.lines).sum::<u64>(), 7);
    assert_eq!(spool.pending().lines, 11);
}

#[test]
fn a_survey_counts_what_waits_and_touches_nothing() {
    let data_dir = tempfile::tempdir().unwrap();
    let folder = data_dir.path().join("spool/sink");
    let model = settings(&ModelDisk::default(), 1 << 20, WhenFull::Wait);
    let settings = Settings { disk: Arc::new(RealDisk), folder: folder.clone(), boot: boot_id(), ..model };
    let survey = || survey(&RealDisk, &data_dir.path().join("spool")).unwrap();
    assert_eq!(survey(), []);
    let (mut spool, _) = Spool::open(settings).unwrap();
    assert!(!folder.exists(), "nothing is made before the first frame");
    (0..3).for_each(|at| assert_eq!(spool.put(&chunk(at * 4, "abc\n")).unwrap(), Put::Written));
    spool.next_cost().unwrap();
    let first = spool.next(credit()).unwrap().unwrap();
    spool.answered(first.sequence);
    spool.save().unwrap();
    let count = Count { lines: 2, bytes: 8 };
    assert_eq!(survey(), [Survey { sink: "sink".into(), frames: 2, count, bytes: spool.used_bytes() }]);
}

#[test]
fn a_full_disk_leaves_no_half_frame() {
    let disk = ModelDisk::default();
    let (mut spool, _) = Spool::open(settings(&disk, 1 << 20, WhenFull::Wait)).unwrap();
    spool.put(&chunk(0, "one\n")).unwrap();
    disk.set_full(true);
    let error = spool.put(&chunk(4, "two\n")).unwrap_err().to_string();
    assert!(error.starts_with("could not write to the spool /data/spool/sink: "), "{error}");
    disk.set_full(false);
    spool.put(&chunk(4, "two\n")).unwrap();
    assert_eq!(read_all(&mut spool).iter().map(|(_, offset, _)| *offset).collect::<Vec<_>>(), [0, 4]);
}
