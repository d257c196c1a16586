//! What a stop writes: little, once, and nothing that a death in the middle could take away.

use super::*;
use crate::disk::model::ModelDisk;
use crate::tasks::Switch;

const FOLDER: &str = "/data/ledger";

/// A ledger that nobody runs, what writes to it, and what closes `stop`.
struct Books {
    ledger: Ledger,
    book: Book,
    _switch: Switch,
}

fn books(disk: &ModelDisk) -> Books {
    let settings = Settings {
        folder: FOLDER.into(),
        sinks: names(),
        sync_interval: Duration::from_secs(10),
        unsynced: Default::default(),
        passed: Default::default(),
        own_files: Default::default(),
        disk: Arc::new(disk.clone()),
    };
    let (switch, stop) = Switch::new().unwrap();
    let metrics = Registry::default();
    let (ledger, book, _) =
        Ledger::open(settings, stop, Duration::from_secs(1), &metrics, &mut tasks::Wires::default());
    Books { ledger, book, _switch: switch }
}

impl Books {
    /// So many files, of which each has one chunk that nobody has answered for. The name of the first one is `long`.
    fn with_files(disk: &ModelDisk, files: u64, long: usize) -> Books {
        let mut books = books(disk);
        for number in 0..files {
            let generation = GenerationId(number);
            let (Note::Opened(opened), Note::Read(stamp)) = (opened(0), stamp(0, SinkSet::all(2))) else {
                unreachable!()
            };
            let filename = Some(Path::new(&"x".repeat(if number == 0 { long } else { 20 })).into());
            books.take(Note::Opened(Box::new(Opened { generation, filename, ..*opened })));
            books.take(Note::Read(Stamp { generation, ..stamp }));
        }
        assert!(books.ledger.write(false).unwrap(), "the first checkpoint of a life is a snapshot");
        books
    }

    fn take(&mut self, note: Note) {
        self.book.note(note);
        self.ledger.catch_up(false).unwrap();
    }

    /// News of the first file, so that there is something to write.
    fn news(&mut self, number: u64) {
        self.take(Note::Identified { generation: GenerationId(0), identity: identity(number) });
    }

    fn begin_to_stop(&mut self) {
        self.ledger.begin_to_stop(Clock::by_hand(0).now());
    }

    fn state(&self) -> State {
        summary(&self.ledger)
    }
}

fn identity(number: u64) -> Identity {
    Identity { device: 1, inode: number, head: Head::new(1, number) }
}

/// Generation, position, who it is, kept stamps.
type State = Vec<(u64, u64, Option<Identity>, usize)>;

fn summary(ledger: &Ledger) -> State {
    let known = ledger.restored().known;
    known.iter().map(|at| (at.generation.0, at.position, at.identity, at.stamps.len())).collect()
}

fn found(disk: &ModelDisk) -> State {
    summary(&books(disk).ledger)
}

/// So long that a handful of its changes fills a slot.
const LONG: usize = 40_000;

/// When the next checkpoint is due after `stop` has closed at 100 s, every 10 s being the rule.
#[test]
fn what_is_due_when_a_stop_begins_is_put_off_once() {
    let check = |first_start: bool, checkpoints: u64, save_at: Option<u64>, expected: Option<u64>| {
        let mut ledger = books(&ModelDisk::default()).ledger;
        let zero = Clock::by_hand(0).now();
        let at = |seconds: u64| zero + Duration::from_secs(seconds);
        (ledger.first_start, ledger.checkpoints) = (first_start, checkpoints);
        (ledger.save_at, ledger.snapshot_at) = (save_at.map(at), Some(at(120)));
        ledger.begin_to_stop(at(100));
        let what = format!("first start {first_start}, {checkpoints} checkpoints, due at {save_at:?}");
        assert_eq!((ledger.save_at, ledger.snapshot_at), (expected.map(at), None), "{what}");
    };
    check(false, 0, None, None);
    check(false, 0, Some(100), Some(110));
    check(false, 7, Some(109), Some(110));
    check(true, 1, Some(100), Some(110));
    check(true, 1, None, None);
    // That there was a first start must be known to the next one, whoever kills us now.
    check(true, 0, Some(101), Some(101));
}

#[test]
fn a_stop_costs_one_write_and_one_sync_however_many_files_there_are() {
    for files in [1, 2_000] {
        let disk = ModelDisk::default();
        let mut books = Books::with_files(&disk, files, 20);
        books.begin_to_stop();
        for number in 0..files {
            books.take(Note::Unread { generation: GenerationId(number), bytes: 0 });
        }
        let before = (disk.changes(), used(&disk));
        assert!(!books.ledger.write(false).unwrap(), "{files} files: it is no snapshot");
        assert_eq!(disk.changes() - before.0, 2, "{files} files");
        let bytes = used(&disk) - before.1;
        assert!((1..400).contains(&bytes), "{files} files: {bytes} bytes");
    }
}

/// Bytes of the first slot.
fn used(disk: &ModelDisk) -> usize {
    let file = disk.open(&Path::new(FOLDER).join("checkpoint-0"), crate::disk::Open::Existing).unwrap();
    let mut bytes = vec![0; file.size().unwrap() as usize];
    file.read_at(&mut bytes, 0).unwrap();
    bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1)
}

/// The other slot has the room that this one lacks, though the disk is full and nothing can be allocated.
#[test]
fn changes_that_do_not_fit_any_more_become_a_snapshot() {
    let disk = ModelDisk::default();
    let mut books = Books::with_files(&disk, 30, LONG);
    disk.set_full(true);
    books.begin_to_stop();
    let mut written = String::new();
    for number in 0..30 {
        books.news(number);
        written.push(if books.ledger.write(false).unwrap() { 's' } else { 'c' });
        assert_eq!(found(&disk), books.state(), "after {written}");
    }
    assert!(written.contains("ccs") && written.ends_with('c'), "{written}");
}

#[test]
fn a_slot_that_somebody_deleted_is_made_again_in_a_stop_too() {
    let disk = ModelDisk::default();
    let mut books = Books::with_files(&disk, 3, 20);
    books.begin_to_stop();
    books.news(7);
    disk.remove(&Path::new(FOLDER).join("checkpoint-0")).unwrap();
    assert!(books.ledger.write(false).unwrap(), "a snapshot");
    assert_eq!(found(&disk), books.state());
}

/// Killed, or without power, at each change of the disk that the last save makes, be it changes or, since they do not
/// fit any more, a snapshot: what the save before it said is found, or what this one was to say.
#[test]
fn a_death_in_the_last_save_loses_nothing_that_was_saved() {
    // As many changes as fit, by trying.
    let fit = {
        let mut books = on_a_full_disk(&ModelDisk::default());
        (0..).take_while(|number| !books.save(*number).unwrap()).count() as u64
    };
    assert!((3..30).contains(&fit), "{fit}");
    for (saves, seed) in [1, fit].into_iter().flat_map(|saves| (0..12).map(move |seed| (saves, seed))) {
        for after in 0.. {
            let disk = ModelDisk::default();
            let mut books = on_a_full_disk(&disk);
            (0..saves).for_each(|number| assert!(!books.save(number).unwrap()));
            let before = books.state();
            disk.fail_after(after);
            let written = books.save(saves);
            match seed {
                0 => disk.process_dies(),
                _ => disk.power_cut(seed),
            }
            let left = found(&disk);
            let what =
                format!("behind {saves} saves, seed {seed}, failing after {after}: {written:?}, {left:?}");
            assert!(left == books.state() || written.is_err() && left == before, "{what}");
            if let Ok(is_snapshot) = written {
                assert!((1..9).contains(&after) && is_snapshot == (saves == fit), "{what}");
                break;
            }
        }
    }
}

/// In a stop, with the first snapshot written.
fn on_a_full_disk(disk: &ModelDisk) -> Books {
    let mut books = Books::with_files(disk, 3, LONG);
    disk.set_full(true);
    books.begin_to_stop();
    books
}

impl Books {
    /// Whether it was a snapshot.
    fn save(&mut self, number: u64) -> Result<bool> {
        self.news(number);
        self.ledger.write(false)
    }
}
