//! Checkpoints on a disk that is damaged, full, or loses its power.

use proptest::prelude::*;

use super::super::Progress;
use super::super::page::High;
use super::super::saved::{AnyPath, SavedGeneration};
use super::*;
use crate::disk::model::ModelDisk;

const FOLDER: &str = "/data/ledger";

fn slots(disk: &ModelDisk) -> (Slots, Left) {
    Slots::open(Arc::new(disk.clone()), Path::new(FOLDER))
}

fn generation(id: u64, low: u64) -> SavedGeneration {
    SavedGeneration {
        id,
        source: "files".into(),
        filename: Some(AnyPath("/var/log/a".into())),
        identity: None,
        lineage: 9,
        high: High { to: 70, line: 4, continues: true, before: None, cursor: None },
        given_up: vec![("truncated".into(), 7)],
        sinks: vec![("loki".into(), Progress::starting_at(low))],
        spooled: Vec::new(),
        stamps: Vec::new(),
        at_end: false,
    }
}

fn snapshot(generations: &[(u64, u64)]) -> Saved {
    let generations = generations.iter().map(|(id, low)| generation(*id, *low)).collect();
    Saved { id: 5, next_generation: 3, generations, ..Saved::default() }
}

fn changes(stamp: i64, generations: &[(u64, u64)], gone: &[u64]) -> Changes {
    let generations = generations.iter().map(|(id, low)| generation(*id, *low)).collect();
    let journal = Mark { sequence: stamp as u64, seal: 1 };
    Changes {
        journal,
        last_stamp_ns: stamp,
        next_generation: 9,
        generations,
        gone: gone.to_vec(),
        ..Changes::default()
    }
}

fn state(left: Left) -> Saved {
    match left {
        Left::State(saved) => *saved,
        other => panic!("{other:?}"),
    }
}

/// Three states, one in a slot of its own, then the other slot with a snapshot and a frame of changes.
fn three() -> (ModelDisk, [Saved; 3]) {
    let disk = ModelDisk::default();
    let (mut slots, left) = slots(&disk);
    assert_eq!(left, Left::Nothing);
    let (first, second) = (snapshot(&[(1, 10)]), snapshot(&[(1, 20), (2, 30)]));
    slots.write_snapshot(&first).unwrap();
    slots.write_snapshot(&second).unwrap();
    slots.write_changes(&changes(4, &[(2, 40), (3, 1)], &[1])).unwrap();
    let journal = Mark { sequence: 4, seal: 1 };
    let third = Saved { journal, last_stamp_ns: 4, next_generation: 9, ..snapshot(&[(2, 40), (3, 1)]) };
    (disk, [first, second, third])
}

fn bytes(file: &dyn DiskFile) -> Vec<u8> {
    let mut bytes = vec![0; file.size().unwrap() as usize];
    file.read_at(&mut bytes, 0).unwrap();
    let told = bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
    bytes[..told].to_vec()
}

#[test]
fn the_newest_whole_frame_is_used_whatever_was_damaged() {
    let (disk, expected) = three();
    let whole: Vec<Vec<u8>> = (0..2).map(|slot| bytes(&*open(&disk, slot))).collect();
    let check = |slot: usize, at: usize, damage: &str, expected: &[Saved], bytes: &[u8]| {
        let (disk, _) = three();
        let file = open(&disk, slot);
        match damage {
            "cut" => file.set_size(at as u64).unwrap(),
            "flipped" => file.write_at(&[bytes[at] ^ 4], at as u64).unwrap(),
            _ => file.write_at(&vec![0; bytes.len() - at], at as u64).unwrap(),
        }
        let (mut again, left) = slots(&disk);
        let found = state(left);
        assert!(expected.contains(&found), "{damage} at {at} of slot {slot}: {found:?}");
        // And what is written next is what is found after it, twice as ever.
        for low in [50, 60] {
            again.write_snapshot(&snapshot(&[(1, low)])).unwrap();
            assert_eq!(state(slots(&disk).1), snapshot(&[(1, low)]), "{damage} at {at} of slot {slot}");
        }
    };
    for (slot, bytes) in whole.iter().enumerate() {
        let left = if slot == 0 { &expected[2..] } else { &expected[..] };
        // `make corrupt` does all of it to a whole agent.
        for at in (0..bytes.len()).step_by(5) {
            check(slot, at, "flipped", left, bytes);
        }
        for at in (0..bytes.len()).step_by(31) {
            check(slot, at, "cut", left, bytes);
            check(slot, at, "zeroed from here on", left, bytes);
        }
    }
}

fn open(disk: &ModelDisk, slot: usize) -> Arc<dyn DiskFile> {
    disk.open(&Path::new(FOLDER).join(format!("checkpoint-{slot}")), Open::Existing).unwrap()
}

#[test]
fn a_state_that_is_all_damaged_was_there_and_one_that_was_never_saved_was_not() {
    let (disk, _) = three();
    (0..2).for_each(|slot| open(&disk, slot).write_at(&[0; 100], 0).unwrap());
    for life in 1..=2 {
        assert_eq!(slots(&disk).1, Left::Ruins, "life {life}, which saved nothing either");
    }
    assert_eq!(slots(&ModelDisk::default()).1, Left::Nothing);
    // The first checkpoint failed: nothing but what was allocated is there.
    let disk = ModelDisk::default();
    disk.fail_after(4);
    assert!(slots(&disk).0.write_snapshot(&snapshot(&[(1, 1)])).is_err());
    disk.process_dies();
    assert_eq!(slots(&disk).1, Left::Nothing);
}

#[test]
fn a_full_disk_does_not_reach_what_was_allocated() {
    let disk = ModelDisk::default();
    let (mut slots, _) = slots(&disk);
    let some: Vec<(u64, u64)> = (0..500).map(|id| (id, id)).collect();
    slots.write_snapshot(&snapshot(&some)).unwrap();
    disk.set_full(true);
    for _ in 0..4 {
        slots.write_snapshot(&snapshot(&some)).unwrap();
        while !slots.wants_snapshot(Mark::default()) {
            slots.write_changes(&changes(0, &some[..50], &[])).unwrap();
        }
    }
}

#[test]
fn changes_are_appended_until_they_outgrow_the_snapshot_or_the_journal_waits_too_long() {
    let disk = ModelDisk::default();
    let (mut slots, _) = slots(&disk);
    let mark = |sequence| Mark { sequence, seal: 1 };
    assert!(slots.wants_snapshot(mark(0)), "the first one of a life is one");
    for _ in 0..2 {
        slots.write_snapshot(&snapshot(&[(1, 1)])).unwrap();
    }
    assert!(!slots.wants_snapshot(mark(JOURNAL_RECORDS)) && slots.wants_snapshot(mark(JOURNAL_RECORDS + 1)));
    let many: Vec<(u64, u64)> = (0..100).map(|id| (id, id)).collect();
    let mut frames = 0;
    while !slots.wants_snapshot(mark(0)) {
        slots.write_changes(&changes(0, &many, &[])).unwrap();
        frames += 1;
    }
    assert!((3..20).contains(&frames), "{frames}");
}

#[test]
fn a_folder_that_somebody_deleted_is_made_again() {
    let folder = tempfile::tempdir().unwrap();
    let ledger = folder.path().join("data/ledger");
    let (mut slots, _) = Slots::open(Arc::new(crate::disk::RealDisk), &ledger);
    assert!(!ledger.exists());
    for low in 1..=3 {
        slots.write_snapshot(&snapshot(&[(1, low)])).unwrap();
        let found = Slots::open(Arc::new(crate::disk::RealDisk), &ledger).1;
        assert_eq!(state(found), snapshot(&[(1, low)]));
        std::fs::remove_dir_all(folder.path().join("data")).unwrap();
        assert!(slots.write_changes(&changes(1, &[], &[])).is_err(), "there is nothing to add to");
        assert!(slots.wants_snapshot(Mark::default()));
    }
}

#[test]
fn a_path_that_is_no_text_survives() {
    use std::os::unix::ffi::OsStringExt;
    let odd = AnyPath(PathBuf::from(std::ffi::OsString::from_vec(b"/a\xff\nb".to_vec())));
    let text = serde_json::to_string(&odd).unwrap();
    assert_eq!(serde_json::from_str::<AnyPath>(&text).unwrap(), odd);
}

/// A write whose sync failed may stand on the disk all the same: what is written after it is newer, in whichever slot.
#[test]
fn what_was_written_after_a_failure_is_newer_than_what_failed() {
    for failed_is_snapshot in [false, true] {
        let (disk, _) = three();
        let (mut now, _) = slots(&disk);
        // The frame that fails goes to the first slot, what follows to the second.
        for low in (1..).take(if failed_is_snapshot { 2 } else { 1 }) {
            now.write_snapshot(&snapshot(&[(1, low)])).unwrap();
        }
        disk.fail_after(1);
        let (failed, next) = (changes(50, &[(1, 50)], &[]), changes(60, &[(1, 60)], &[]));
        let written = match failed_is_snapshot {
            false => now.write_changes(&failed),
            true => now.write_snapshot(&snapshot(&[(1, 50)])),
        };
        written.unwrap_err();
        disk.fail_after(u64::MAX);
        match now.current {
            Some(_) => now.write_changes(&next).unwrap(),
            None => now.write_snapshot(&snapshot(&[(1, 60)])).unwrap(),
        }
        assert_eq!(state(slots(&disk).1).generations, [generation(1, 60)], "{failed_is_snapshot}");
    }
}

#[derive(Clone, Debug)]
enum Act {
    Snapshot,
    Changes,
    Kill,
    Cut(u64),
    /// The next write fails after so many changes of the disk, and the power is cut then.
    FailAndCut(u64, u64),
}

fn acts() -> impl Strategy<Value = Vec<Act>> {
    let act = prop_oneof![
        2 => Just(Act::Snapshot),
        4 => Just(Act::Changes),
        1 => Just(Act::Kill),
        1 => any::<u64>().prop_map(Act::Cut),
        2 => (0u64..6, any::<u64>()).prop_map(|(after, seed)| Act::FailAndCut(after, seed)),
    ];
    proptest::collection::vec(act, 0..25)
}

proptest! {
    /// The model: the state that was written last, or, if its writing failed, that or the one before it.
    #[test]
    fn what_was_written_is_found_and_nothing_older(acts in acts()) {
        let disk = ModelDisk::default();
        let (mut now, _) = slots(&disk);
        let (mut model, mut low): (Option<Saved>, u64) = (None, 0);
        for act in acts {
            low += 1;
            let next = Saved { last_stamp_ns: low as i64, ..snapshot(&[(1, low)]) };
            let write = |now: &mut Slots| match (&act, now.current) {
                (Act::Changes | Act::FailAndCut(..), Some(_)) => {
                    let changes = Changes { next_generation: 3, journal: Mark::default(), ..changes(low as i64, &[(1, low)], &[]) };
                    now.write_changes(&changes)
                }
                _ => now.write_snapshot(&next),
            };
            match act {
                Act::Snapshot | Act::Changes => {
                    write(&mut now).unwrap();
                    model = Some(next);
                }
                Act::Kill | Act::Cut(_) => {
                    match act {
                        Act::Cut(seed) => disk.power_cut(seed),
                        _ => disk.process_dies(),
                    }
                    let left;
                    (now, left) = slots(&disk);
                    if let Some(model) = &model {
                        prop_assert_eq!(&state(left), model);
                    }
                }
                Act::FailAndCut(after, seed) => {
                    disk.fail_after(after);
                    let written = write(&mut now);
                    disk.power_cut(seed);
                    let left;
                    (now, left) = slots(&disk);
                    if let Some(model) = &mut model {
                        let found = state(left);
                        prop_assert!(found == next || (written.is_err() && found == *model), "{found:?}");
                        *model = found;
                    } else if written.is_ok() {
                        model = Some(state(left));
                    }
                }
            }
        }
    }
}
