//! What happens once in many lives: no line may be lost by it, and none doubled.

use super::*;
use crate::ack::{Ack, Receipts};
use crate::disk::model::ModelDisk;
use crate::error::Result;

fn open(disk: &ModelDisk) -> (Ledger, Book) {
    let settings = Settings {
        folder: "/data/ledger".into(),
        sinks: names(),
        sync_interval: Duration::from_secs(1),
        unsynced: Default::default(),
        passed: Default::default(),
        own_files: Default::default(),
        disk: Arc::new(disk.clone()),
    };
    let (_switch, stop) = tasks::Switch::new().unwrap();
    let (metrics, mut wires) = (Registry::default(), tasks::Wires::default());
    let (ledger, book, _) = Ledger::open(settings, stop, Duration::from_secs(1), &metrics, &mut wires);
    (ledger, book)
}

fn in_its_thread(body: impl FnOnce(&tasks::Task) -> Result<()> + Send) {
    let table = Arc::new(tasks::Table::new(Clock::real()));
    tasks::run(table, |tasks| {
        let spec = tasks::Spec::carrier("ledger", Duration::from_secs(5));
        tasks.spawn(spec, body).unwrap();
    })
    .unwrap();
}

/// Gathers what shares say.
#[derive(Default)]
struct Said(Mutex<Vec<Receipt>>);

impl Receipts for Said {
    fn receipt(&self, receipt: Receipt) {
        self.0.lock().push(receipt);
    }
}

/// A chunk that fell into two batches: the first one was delivered, and for the second one the sink is ill.
#[test]
fn half_a_chunk_that_was_delivered_is_known_while_the_rest_waits() {
    let (mut state, said) = (state(), Arc::new(Said::default()));
    state.apply(opened(0), false).unwrap();
    state.apply(stamp(0, SinkSet::all(2)), false).unwrap();
    state.apply(receipt(0, 1, true, false), false).unwrap();
    let half = Count { lines: 5, bytes: 50 };
    let tell = |state: &mut State| {
        said.0.lock().drain(..).for_each(|receipt| state.apply(Note::Receipt(receipt), false).unwrap());
    };
    let receipts: Arc<dyn Receipts> = said.clone();
    let count = Count { lines: 10, bytes: 100 };
    let ack = Ack::new(GENERATION, 0..100, count, SinkSet::all(1), &receipts);
    let mut rest = ack.into_shares().remove(0);
    rest.split(half, 50).settle(&Verdict::Delivered);
    tell(&mut state);
    // It dies here, however many checkpoints later.
    let lacks = |state: &State| known(&reload(state)).progress[0].lacking(100);
    assert_eq!((lacks(&state), state.books().sinks[0].pending), (50, 5));
    // Or the rest is spooled, comes back out of the spool and is delivered: nothing of the chunk is expected there.
    rest.settle(&Verdict::Spooled);
    tell(&mut state);
    let from_spool = Ack::from_spool(GENERATION, 50..100, half, SinkId(0), &receipts);
    from_spool.into_shares().remove(0).settle(&Verdict::Delivered);
    tell(&mut state);
    let mut next = reload(&state);
    next.spool_found(SinkId(0), &[], Count::default());
    assert_eq!(lacks(&next), 0, "a spool is asked for what it never had");
}

/// Nobody but its outputs knows of a life that died before its first checkpoint, and the life before it had ended in
/// good order.
#[test]
fn a_life_that_left_no_trace_used_its_numbers_all_the_same() {
    let disk = ModelDisk::default();
    let (ledger, book) = open(&disk);
    in_its_thread(move |task| {
        drop(book);
        ledger.run(task)
    });
    for life in 0..20 {
        let first = open(&disk).0.restored().next_generation;
        disk.process_dies();
        let next = open(&disk).0.restored().next_generation;
        assert_ne!(first, next, "life {life} gave a number, which went out with its lines");
        disk.process_dies();
    }
}

/// What the outputs of one say is none of the other's.
#[test]
fn two_first_starts_share_no_number() {
    let first = || open(&ModelDisk::default()).0.restored().next_generation;
    assert_ne!(first(), first());
}

/// Whoever counts checkpoints relies on it: see [`Passed`].
#[test]
fn a_snapshot_has_all_that_was_sent_before_it_begins() {
    let disk = ModelDisk::default();
    let (mut ledger, book) = open(&disk);
    in_its_thread(|task| {
        for note in [opened(0), stamp(0, SinkSet::all(2)), receipt(0, 0, true, false)] {
            book.note(note);
        }
        let sent = ledger.settings.passed.count();
        ledger.save_at = Some(task.now());
        ledger.save(task);
        assert_eq!((sent, ledger.settings.passed.count()), (0, 1));
        Ok(())
    });
    disk.process_dies();
    let known = open(&disk).0.restored().known;
    assert_eq!(known.iter().map(|known| known.progress[0].low()).collect::<Vec<_>>(), [100]);
}

/// A container that was found, and whose lines were delivered, since the last checkpoint.
#[test]
fn what_outputs_have_of_a_stream_that_nobody_saved_is_not_sent_again() {
    let generation = GenerationId::derived_from(77);
    let opened = || {
        let Note::Opened(opened) = opened(0) else { unreachable!() };
        Note::Opened(Box::new(Opened {
            generation,
            filename: Some(Path::new("docker:1/a").into()),
            ..*opened
        }))
    };
    let read = || {
        let Note::Read(stamp) = stamp(0, SinkSet::all(2)) else { unreachable!() };
        Note::Read(Stamp { generation, ..stamp })
    };
    let mut state = state();
    state.recovered(SinkId(1), &[(generation, 0..50)]);
    state.spool_found(SinkId(0), &[(generation, 0..70, false)], Count { lines: 7, bytes: 70 });
    let restored = state.restored(false);
    assert!(restored.known.is_empty() && restored.next_generation == 0, "{restored:?}");
    let lows = |progress: &[Progress]| progress.iter().map(Progress::low).collect::<Vec<_>>();
    assert_eq!(lows(&restored.foretold[&generation]), [70, 50]);
    state.apply(opened(), false).unwrap();
    state.apply(read(), false).unwrap();
    assert!(state.check_laws().is_none());
    assert!(state.restored(false).foretold.is_empty());
    assert_eq!(lows(&known(&reload(&state)).progress), [70, 50]);
    // And what the spool has of it is expected there.
    let mut next = reload(&state);
    next.spool_found(SinkId(0), &[], Count::default());
    assert_eq!(lows(&known(&next).progress), [0, 50]);
    // Its monitor loses its place, and reads it once more.
    state.apply(Note::Finished { generation }, false).unwrap();
    state.apply(opened(), false).unwrap();
    state.apply(read(), false).unwrap();
    assert!(state.check_laws().is_none());
    assert_eq!(state.books().generations, 1);
}

#[test]
fn that_a_source_was_read_to_its_end_outlives_the_process_until_more_is_read() {
    let mut state = state();
    let at_end = |at_end| Note::AtEnd { generation: GENERATION, at_end };
    for (note, expected) in [
        (opened(0), false),
        (stamp(0, SinkSet::all(2)), false),
        (at_end(true), true),
        (receipt(0, 0, true, false), true),
        (stamp(1, SinkSet::all(2)), false),
        (at_end(true), true),
        (at_end(false), false),
    ] {
        let words = format!("{note:?}");
        state.apply(note, false).unwrap();
        assert_eq!(known(&reload(&state)).at_end, expected, "{words}");
    }
}

/// Everything was delivered, and the last life died before it could save that: nothing is left to read, and nobody tells
/// the ledger anything more.
#[test]
fn what_outputs_told_at_the_start_is_saved_although_nothing_else_happens() {
    let disk = ModelDisk::default();
    let (mut ledger, book) = open(&disk);
    [opened(0), stamp(0, SinkSet::all(2)), receipt(0, 0, true, false)]
        .into_iter()
        .for_each(|note| book.note(note));
    ledger.catch_up(true).unwrap();
    let lows = |ledger: &Ledger| {
        let known = ledger.restored().known;
        known[0].progress.iter().map(Progress::low).collect::<Vec<_>>()
    };
    for (recovered, expected) in [(true, [100, 100]), (false, [100, 100])] {
        disk.process_dies();
        let (mut ledger, book) = open(&disk);
        let passed = ledger.settings.passed.clone();
        if recovered {
            ledger.recovered(SinkId(1), &[(GENERATION, 0..100)]);
        }
        drop(book);
        in_its_thread(|task| ledger.run(task));
        disk.process_dies();
        assert_eq!(lows(&open(&disk).0), expected);
        assert_eq!(passed.count() > 0, recovered, "what is known is not saved again");
    }
}
