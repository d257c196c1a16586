//! The journal on a disk that is damaged, full, or loses its power.

use proptest::prelude::*;

use super::*;
use crate::disk::model::ModelDisk;

const FOLDER: &str = "/data/ledger";

/// A record that nobody else writes.
fn record(number: u64) -> Record {
    Record::GaveUp { generation: number, from: 0, upto: 1, why: "x".repeat(number as usize % 40) }
}

/// All there is, and what to go on with.
struct Found {
    journal: Journal,
    link: Arc<Link>,
    records: Vec<Record>,
    id: Option<u64>,
}

fn found(disk: &ModelDisk, mark: Option<Mark>) -> Found {
    let found = find(Arc::new(disk.clone()), Path::new(FOLDER), mark);
    let (id, mut records) = (found.id, Vec::new());
    let Opened { mut journal, link, .. } = found.read(|record| records.push(record));
    journal.begin(7);
    Found { journal, link, records, id }
}

fn numbers(found: &Found) -> Vec<u64> {
    found.records.iter().map(Record::generation).collect()
}

/// A journal of five records that the disk keeps, and the only file they are in.
fn five() -> (ModelDisk, Arc<dyn DiskFile>) {
    let disk = ModelDisk::default();
    let Found { mut journal, link, .. } = found(&disk, None);
    for number in 1..=5 {
        journal.append(&[record(number)]).unwrap();
    }
    link.sync().unwrap();
    let file = journal.current.take().unwrap().file;
    (disk, file)
}

#[test]
fn a_crash_of_the_process_loses_no_record() {
    let (disk, _) = five();
    disk.process_dies();
    let Found { mut journal, .. } = found(&disk, None);
    let mark = journal.append(&[record(6), record(7)]).unwrap();
    assert_eq!(mark.sequence, 7);
    assert_eq!(numbers(&found(&disk, None)), [1, 2, 3, 4, 5, 6, 7]);
    assert_eq!(numbers(&found(&disk, Some(mark))), [0; 0]);
    assert_eq!(found(&disk, None).id, Some(7));
    assert_eq!(found(&ModelDisk::default(), None).id, None);
}

#[test]
fn every_damage_ends_the_journal_where_it_is() {
    let (_, file) = five();
    let mut whole = vec![0; 600];
    file.read_at(&mut whole, 0).unwrap();
    for at in (0..whole.len()).step_by(5) {
        // Each takes a while, and bytes of one record are much alike.
        for damage in ["flipped", "zeroed from here on", "cut"]
            .into_iter()
            .filter(|how| *how == "flipped" || at % 35 == 0)
        {
            let (disk, file) = five();
            match damage {
                "flipped" => {
                    // Its own byte: seals are drawn anew each time.
                    let mut byte = [0];
                    file.read_at(&mut byte, at as u64).unwrap();
                    file.write_at(&[byte[0] ^ 4], at as u64).unwrap();
                }
                "cut" => file.set_size(at as u64).unwrap(),
                _ => file.write_at(&vec![0; whole.len() - at], at as u64).unwrap(),
            }
            let Found { mut journal, records, .. } = found(&disk, None);
            let expected: Vec<Record> = (1..=5).map(record).collect();
            assert!(expected.starts_with(&records), "{damage} at {at}: {records:?}");
            assert!(
                !(HEADER_BYTES..=300).contains(&at) || records.len() < 5,
                "{damage} at {at} was not seen"
            );
            // And it goes on, in a way that the next life understands.
            journal.append(&[record(9)]).unwrap();
            let known = if records.is_empty() { 0 } else { records.len() };
            assert_eq!(numbers(&found(&disk, None)).len(), known + 1, "{damage} at {at}");
        }
    }
}

/// A write that failed half-way can have left whole records, and the next one may not fit behind it.
#[test]
fn what_could_not_be_appended_does_not_hide_what_follows_in_another_segment() {
    let disk = ModelDisk::default();
    let Found { mut journal, .. } = found(&disk, None);
    journal.append(&[record(1)]).unwrap();
    let (last, chain) = (journal.last, journal.chain);
    journal.append(&[record(90), record(91)]).unwrap();
    (journal.last, journal.chain, journal.used) = (last, chain, SEGMENT_BYTES); // as if that had failed
    journal.append(&[record(2)]).unwrap();
    journal.append(&[record(3)]).unwrap();
    assert_eq!(numbers(&found(&disk, None)), [1, 2, 3]);
    assert_eq!(numbers(&found(&disk, Some(last))), [2, 3]);
}

/// While the ledger syncs, the monitor may go on to new segments and use old ones again.
#[test]
fn what_is_written_during_a_sync_is_synced_by_the_next_one() {
    struct Synced(Mutex<u32>, Mutex<Option<Box<dyn FnOnce() + Send>>>);
    impl Durable for Synced {
        fn sync(&self) -> std::io::Result<()> {
            *self.0.lock() += 1;
            if let Some(meanwhile) = self.1.lock().take() {
                meanwhile();
            }
            Ok(())
        }
    }
    let file = || Arc::new(Synced(Mutex::new(0), Mutex::new(None)));
    let (first, second, name, third) = (file(), file(), file(), file());
    let link = Arc::new(Link::default());
    link.to_sync.lock().extend([first.clone() as Arc<dyn Durable>, second.clone()]);
    let (shared, new) = (link.clone(), (name.clone(), third.clone(), first.clone()));
    *first.1.lock() = Some(Box::new(move || {
        let mut to_sync = shared.to_sync.lock();
        to_sync.insert(0, new.0);
        to_sync.push(new.1);
        to_sync.push(new.2); // used again
    }));
    link.sync().unwrap();
    link.sync().unwrap();
    let counts = [&first, &second, &name, &third].map(|file| *file.0.lock());
    assert_eq!(counts, [2, 2, 1, 1]);
    link.sync().unwrap();
    assert_eq!(*first.0.lock(), 3, "the last one is written to");
}

#[test]
fn segments_are_used_again_when_both_checkpoints_are_past_them() {
    let disk = ModelDisk::default();
    let Found { mut journal, link, .. } = found(&disk, None);
    let segments = || disk.list(Path::new(FOLDER)).unwrap().len();
    let mut fill = |segments: u64| {
        let before = journal.last;
        while journal.last.sequence < before.sequence + segments * SEGMENT_BYTES / 1000 {
            let why = "x".repeat(900);
            journal.append(&[Record::GaveUp { generation: 1, from: 0, upto: 1, why }]).unwrap();
        }
        journal.last
    };
    fill(2);
    assert_eq!(segments(), SPARE_SEGMENTS);
    let mark = fill(5);
    assert!(segments() >= 6, "nothing was saved, so nothing is lost: {}", segments());
    link.pass(mark.sequence);
    let last = fill(3);
    assert!(segments() <= SPARE_SEGMENTS + 4, "the room is used again: {}", segments());
    let after = found(&disk, Some(mark)).records.len() as u64;
    assert_eq!(after, last.sequence - mark.sequence);
}

#[test]
fn a_full_disk_is_reached_only_when_no_checkpoint_can_be_written() {
    let disk = ModelDisk::default();
    let Found { mut journal, link, .. } = found(&disk, None);
    disk.set_full(true);
    let mut appended = 0;
    let cause = loop {
        let why = "x".repeat(900);
        match journal.append(&[Record::GaveUp { generation: 1, from: 0, upto: 1, why }]) {
            Ok(_) => appended += 1,
            Err(cause) => break cause.to_string(),
        }
    };
    assert!(appended > 3 * SEGMENT_BYTES / 1100, "three segments were there: {appended}");
    assert!(cause.starts_with("could not make /data/ledger/journal-3: "), "{cause}");
    link.pass(journal.last.sequence);
    journal.append(&[record(1)]).unwrap();
    assert_eq!(journal.last.sequence, appended + 1, "what failed has no sequence");
}

/// A start with a hundred and more of them must not need their room in memory.
#[test]
fn segments_are_read_one_after_the_other() {
    let disk = ModelDisk::default();
    let Found { mut journal, .. } = found(&disk, None);
    let why = "x".repeat(700_000);
    for generation in 0..20 {
        journal.append(&[Record::GaveUp { generation, from: 0, upto: 1, why: why.clone() }]).unwrap();
    }
    assert_eq!(disk.list(Path::new(FOLDER)).unwrap().len(), 20);
    let before = disk.reads();
    let found = find(Arc::new(disk.clone()), Path::new(FOLDER), None);
    assert_eq!(disk.reads() - before, 20, "to look where each stands");
    let (before, mut met) = (disk.reads(), 0);
    found.read(|record| {
        met += 1;
        assert_eq!((disk.reads() - before, record.generation()), (met, met - 1), "and none before its turn");
    });
    assert_eq!(met, 20);
    assert!(disk.largest_read() <= SEGMENT_BYTES as usize, "{}", disk.largest_read());
}

#[test]
fn a_name_that_nobody_gave_is_no_trouble() {
    let (disk, _) = five();
    for name in ["journal-18446744073709551615", "journal-18446744073709551616", "journal-x"] {
        let other = disk.open(&Path::new(FOLDER).join(name), Open::OrCreate).unwrap();
        other.write_at(b"of somebody", 0).unwrap();
    }
    let mut again = found(&disk, None);
    assert_eq!(numbers(&again), [1, 2, 3, 4, 5]);
    again.journal.append(&[record(6)]).unwrap();
    assert_eq!(numbers(&found(&disk, None)), [1, 2, 3, 4, 5, 6]);
}

/// Linux forgets what a failed sync could not write, and the next sync succeeds.
#[test]
fn what_follows_a_sync_that_failed_does_not_stand_behind_what_it_lost() {
    for seed in 0..50 {
        let disk = ModelDisk::default();
        let Found { mut journal, link, .. } = found(&disk, None);
        journal.append(&[record(1)]).unwrap();
        link.sync().unwrap();
        journal.append(&[record(2)]).unwrap();
        disk.lose_in_sync();
        assert!(link.sync().is_err());
        let saved = journal.last; // a checkpoint has it, with all up to here
        journal.append(&[record(3)]).unwrap();
        link.sync().unwrap();
        disk.power_cut(seed);
        assert_eq!(numbers(&found(&disk, Some(saved))), [3], "{seed}");
    }
}

#[derive(Clone, Debug)]
enum Act {
    Append(u8),
    /// The sync of a checkpoint, which then holds it all.
    Save,
    Kill,
    Cut(u64),
}

fn acts() -> impl Strategy<Value = Vec<Act>> {
    let act = prop_oneof![
        4 => (1u8..4).prop_map(Act::Append),
        2 => Just(Act::Save),
        1 => Just(Act::Kill),
        2 => any::<u64>().prop_map(Act::Cut),
    ];
    proptest::collection::vec(act, 0..40)
}

proptest! {
    /// The model: a list. After a power cut it is some beginning of it that holds what was synced.
    #[test]
    fn what_was_synced_survives_and_nothing_comes_out_of_order(acts in acts()) {
        let disk = ModelDisk::default();
        let mut now = found(&disk, None);
        let (mut model, mut saved, mut mark, mut next) = (Vec::new(), 0, Mark::default(), 0);
        for act in acts {
            match act {
                Act::Append(count) => {
                    let fresh: Vec<u64> = (next..next + u64::from(count)).collect();
                    next += u64::from(count);
                    now.journal.append(&fresh.iter().map(|number| record(*number)).collect::<Vec<_>>()).unwrap();
                    model.extend(fresh);
                }
                Act::Save => {
                    now.link.sync().unwrap();
                    (saved, mark) = (model.len(), now.journal.last);
                    now.link.pass(mark.sequence);
                }
                Act::Kill | Act::Cut(_) => {
                    match act {
                        Act::Cut(seed) => disk.power_cut(seed),
                        _ => disk.process_dies(),
                    }
                    now = found(&disk, Some(mark).filter(|mark| *mark != Mark::default()));
                    let behind = numbers(&now);
                    // Before the first checkpoint nobody knows where the journal began: what is there counts.
                    let first = model.iter().position(|number| saved == 0 && behind.first() == Some(number));
                    model.drain(..first.unwrap_or(0));
                    prop_assert!(model[saved..].starts_with(&behind), "{behind:?} of {:?}", &model[saved..]);
                    prop_assert!(matches!(act, Act::Cut(_)) || behind.len() == model.len() - saved);
                    model.truncate(saved + behind.len());
                }
            }
        }
    }
}
