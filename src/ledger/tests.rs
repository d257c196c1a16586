//! The books against a model: which bytes each sink has answered for.

mod stops;

use std::path::Path;
use std::sync::Arc;

use proptest::prelude::*;

use super::saved::Saved;
use super::state::State;
use super::*;
use crate::ack::{Count, GenerationId, Receipt, SinkId, SinkSet, Tally, Verdict};
use crate::clock::Clock;
use crate::disk::RealDisk;
use crate::tasks;

const GENERATION: GenerationId = GenerationId(5);

fn names() -> Vec<Arc<str>> {
    vec!["loki".into(), "file".into()]
}

fn opened(start: u64) -> Note {
    Note::Opened(Box::new(Opened {
        generation: GENERATION,
        source: "file".into(),
        filename: Some(Path::new("/var/log/a").into()),
        identity: None,
        lineage: 1,
        start,
        cursor: None,
    }))
}

/// Chunk `number`: ten lines of ten bytes.
fn stamp(number: u64, sinks: SinkSet) -> Note {
    Note::Read(Stamp {
        before: Head::default(),
        cursor: None,
        generation: GENERATION,
        start: number * 100,
        end: number * 100 + 100,
        first_line: number * 10,
        lines: 10,
        base_ns: 1_000 * number as i64,
        continues: number % 3 == 1,
        cut: number.is_multiple_of(3),
        sinks,
    })
}

fn receipt(number: u64, sink: u8, delivered: bool, fault: bool) -> Note {
    let mut tally = Tally::default();
    if delivered {
        tally.add(&Verdict::Delivered, Count { lines: 10, bytes: 100 });
    }
    let range = number * 100..number * 100 + 100;
    let (not_delivered, undelivered) = match delivered {
        true => Default::default(),
        false => (Count { lines: 10, bytes: 100 }, vec![range.clone()]),
    };
    let (generation, sink) = (GENERATION, SinkId(sink));
    Note::Receipt(Receipt {
        generation,
        range,
        sink,
        tally,
        not_delivered,
        undelivered,
        fault,
        from_spool: false,
    })
}

fn state() -> State {
    State::new(Saved::default(), &names(), &Registry::default())
}

/// As it stands in a checkpoint.
fn saved(state: &State) -> Saved {
    let saved = serde_json::to_vec(&state.to_save(Mark::default(), &OwnFiles::default())).unwrap();
    serde_json::from_slice(&saved).unwrap()
}

fn reload(state: &State) -> State {
    State::new(saved(state), &names(), &Registry::default())
}

fn known(state: &State) -> Known {
    state.restored(false).known.remove(0)
}

#[test]
fn a_forgotten_share_is_a_fault_unless_the_agent_aborts() {
    for (aborting, is_fault) in [(false, true), (true, false)] {
        let mut state = state();
        state.apply(opened(0), false).unwrap();
        state.apply(stamp(0, SinkSet::all(2)), false).unwrap();
        assert_eq!(state.apply(receipt(0, 0, false, true), aborting).is_err(), is_fault);
    }
}

/// A stop with thousands of files says this of each of them.
#[test]
fn what_is_let_go_or_not_read_is_not_written_again() {
    let mut state = state();
    state.apply(opened(0), false).unwrap();
    state.apply(stamp(0, SinkSet::all(2)), false).unwrap();
    let changed =
        |state: &State| state.changes(Mark::default(), &OwnFiles::default()).generations.iter().count();
    assert_eq!(changed(&state), 1);
    state.was_saved(None);
    let unread = || Note::Unread { generation: GENERATION, bytes: 7 };
    for (note, expected) in [(unread(), 0), (receipt(0, 0, false, false), 0), (receipt(0, 1, true, false), 1)]
    {
        let words = format!("{note:?}");
        state.apply(note, true).unwrap();
        assert_eq!(changed(&state), expected, "{words}");
    }
    assert_eq!(state.books().unread, 7);
}

#[test]
fn a_stop_in_the_middle_of_a_chunk_asks_only_for_the_rest() {
    let mut state = state();
    state.apply(opened(0), false).unwrap();
    (0..2).for_each(|number| state.apply(stamp(number, SinkSet::all(2)), false).unwrap());
    state.apply(receipt(0, 1, true, false), false).unwrap();
    // Lines 0, 1, 3 and 5 to 9 were delivered when the stop came.
    let (mut tally, ten) = (Tally::default(), |lines| Count { lines, bytes: lines * 10 });
    tally.add(&Verdict::Delivered, ten(8));
    let receipt = Receipt {
        generation: GENERATION,
        range: 0..100,
        sink: SinkId(0),
        tally,
        not_delivered: ten(2),
        undelivered: vec![20..30, 40..50],
        fault: false,
        from_spool: false,
    };
    state.apply(Note::Receipt(receipt), false).unwrap();
    let known = known(&reload(&state));
    let lacks = |sink: usize| -> Vec<u64> {
        (0..20).map(|line| line * 10).filter(|at| !known.progress[sink].contains(*at)).collect()
    };
    assert_eq!(lacks(0), [20, 40, 100, 110, 120, 130, 140, 150, 160, 170, 180, 190]);
    assert_eq!(lacks(1).len(), 10, "the second chunk");
}

#[test]
fn a_chunk_taken_back_was_never_read() {
    let mut state = state();
    state.apply(opened(0), false).unwrap();
    state.apply(stamp(0, SinkSet::all(2)), false).unwrap();
    state.apply(stamp(1, SinkSet::all(2)), false).unwrap();
    let Note::Read(second) = stamp(1, SinkSet::all(2)) else { unreachable!() };
    state.apply(Note::TakenBack(second), false).unwrap();
    let books = state.books();
    assert_eq!((books.read.lines, books.sinks[0].pending, books.sinks[1].read), (10, 10, 10));
    state.apply(stamp(1, SinkSet::all(2)), false).unwrap();
}

#[test]
fn a_finished_generation_is_forgotten_once_every_sink_has_answered() {
    let mut state = state();
    state.apply(opened(0), false).unwrap();
    state.apply(stamp(0, SinkSet::all(2)), false).unwrap();
    state.apply(Note::Finished { generation: GENERATION }, false).unwrap();
    state.apply(receipt(0, 0, true, false), false).unwrap();
    assert_eq!(state.books().generations, 1);
    state.apply(receipt(0, 1, true, false), false).unwrap();
    assert_eq!(state.books().generations, 0);
}

#[test]
fn a_new_sink_begins_where_the_others_are_and_a_former_one_has_no_say() {
    let mut state = state();
    state.apply(opened(0), false).unwrap();
    for number in 0..3 {
        state.apply(stamp(number, SinkSet::all(2)), false).unwrap();
    }
    state.apply(receipt(0, 0, true, false), false).unwrap();
    (0..2).for_each(|number| state.apply(receipt(number, 1, true, false), false).unwrap());
    let sinks: Vec<Arc<str>> = vec!["new".into(), "file".into()];
    let state = State::new(saved(&state), &sinks, &Registry::default());
    let known = known(&state);
    assert_eq!(known.position, 200);
    assert!(known.progress.iter().all(|progress| progress.low() == 200));
    // The former sink returns to where it was.
    let state = reload(&state);
    assert_eq!(state.restored(false).known[0].progress[0].low(), 100);
}

#[test]
fn what_follows_a_file_is_also_for_a_sink_that_was_away_when_it_began() {
    let mut state = state();
    state.apply(opened(0), false).unwrap();
    state.apply(stamp(0, SinkSet::all(2)), false).unwrap();
    let others: Vec<Arc<str>> = vec!["new".into()];
    let mut state = State::new(saved(&state), &others, &Registry::default());
    for (number, lineage) in [(6, 1), (7, 99)] {
        let generation = GenerationId(number);
        let (Note::Opened(opened), Note::Read(stamp), Note::Receipt(receipt)) =
            (opened(0), stamp(0, SinkSet::all(1)), receipt(0, 0, true, false))
        else {
            unreachable!("each makes a note of its kind")
        };
        let opened = Note::Opened(Box::new(Opened { generation, lineage, ..*opened }));
        let stamp = Note::Read(Stamp { generation, ..stamp });
        let receipt = Note::Receipt(Receipt { generation, ..receipt });
        [opened, stamp, receipt].into_iter().for_each(|note| state.apply(note, false).unwrap());
    }
    let state = reload(&state);
    let lows: Vec<u64> = state.restored(false).known.iter().map(|known| known.progress[0].low()).collect();
    assert_eq!(lows, [0, 0, 100], "the last one is of another lineage");
}

#[test]
fn what_was_given_up_is_asked_of_no_sink_and_stands_in_the_account() {
    let mut state = state();
    state.apply(opened(50), false).unwrap();
    state.apply(Note::GaveUp { generation: GENERATION, upto: 80, why: "truncated".into() }, false).unwrap();
    assert_eq!(state.books().given_up, 30);
    assert!(!state.books().all_delivered());
    assert_eq!(known(&reload(&state)).position, 80);
}

#[test]
fn what_an_output_turned_out_to_have_is_not_asked_again_and_what_it_lost_is() {
    let mut state = state();
    state.apply(opened(0), false).unwrap();
    (0..3).for_each(|number| state.apply(stamp(number, SinkSet::all(2)), false).unwrap());
    state.apply(receipt(0, 0, true, false), false).unwrap();
    let mut state = reload(&state);
    state.recovered(SinkId(1), &[(GENERATION, 0..150)]);
    // Another life had it, which nobody knows of: after a power cut.
    state.recovered(SinkId(1), &[(GenerationId(77), 0..150)]);
    let found = known(&state);
    assert_eq!((found.position, found.progress[0].low(), found.progress[1].low()), (100, 100, 150));
    state.recovered(SinkId(0), &[(GENERATION, 100..500)]);
    state.recovered(SinkId(1), &[(GENERATION, 150..400)]);
    let found = known(&state);
    assert_eq!((found.position, found.line, found.stamps.len()), (300, 30, 0), "read over what has no stamp");
}

/// A spool that lost frames: what it had of them is asked for again, and what had left it before is not.
#[test]
fn what_is_missing_in_a_spool_is_read_again() {
    let spooled = |number: u64, from_spool: bool| {
        let Note::Receipt(mut receipt) = receipt(number, 1, true, false) else { unreachable!() };
        if !from_spool {
            receipt.tally = Tally { spooled: receipt.tally.delivered, ..Tally::default() };
        }
        Note::Receipt(Receipt { from_spool, ..receipt })
    };
    let mut state = state();
    state.apply(opened(0), false).unwrap();
    for number in 0..4 {
        state.apply(stamp(number, SinkSet::all(2)), false).unwrap();
        state.apply(receipt(number, 0, true, false), false).unwrap();
        state.apply(spooled(number, false), false).unwrap();
    }
    state.apply(spooled(0, true), false).unwrap();
    let found = |frames: &[InSpool]| {
        let mut state = reload(&state);
        state.spool_found(SinkId(1), frames, Count { lines: 20, bytes: 200 });
        assert_eq!(state.books().sinks[1].spooled.lines, 20);
        let first = known(&state);
        // And once more: what was missing is no longer expected, what was there is.
        let mut state = reload(&state);
        state.spool_found(SinkId(1), frames, Count::default());
        assert_eq!(known(&state).progress, first.progress);
        first.progress[1].clone()
    };
    let mut lacks_the_third = Progress::starting_at(400);
    lacks_the_third.remove(200..300);
    assert_eq!(found(&[(GENERATION, 100..200, true), (GENERATION, 300..400, false)]), lacks_the_third);
    let all = [(GENERATION, 100..200, true), (GENERATION, 200..300, false), (GENERATION, 300..400, false)];
    assert_eq!(found(&all), Progress::starting_at(400));
    assert_eq!(found(&[]), Progress::starting_at(100));
}

#[test]
fn a_stream_of_an_earlier_life_leaves_no_page() {
    let mut state = state();
    let Note::Opened(opened) = opened(0) else { unreachable!() };
    state.apply(Note::Opened(Box::new(Opened { filename: None, ..*opened })), false).unwrap();
    state.apply(stamp(0, SinkSet::all(2)), false).unwrap();
    assert_eq!(reload(&state).books().generations, 0);
}

mod rare;

/// Runs a ledger beside `body`, which ends all books. Returns what is restored from it, the table, and its folder.
fn live(
    sync_interval: Duration,
    body: impl FnOnce(Book, &BooksView, &Path),
) -> (Vec<Known>, Arc<tasks::Table>, tempfile::TempDir) {
    let folder = tempfile::tempdir().unwrap();
    let settings = || Settings {
        folder: folder.path().to_owned(),
        sinks: names(),
        sync_interval,
        unsynced: Default::default(),
        passed: Default::default(),
        own_files: Default::default(),
        disk: Arc::new(RealDisk),
    };
    let (_switch, stop) = tasks::Switch::new().unwrap();
    let open = || {
        Ledger::open(
            settings(),
            stop.clone(),
            Duration::from_secs(1),
            &Registry::default(),
            &mut crate::tasks::Wires::default(),
        )
    };
    let (ledger, book, ..) = open();
    let table = Arc::new(tasks::Table::new(Clock::real()));
    tasks::run(table.clone(), |tasks| {
        let view = ledger.view();
        let spec = tasks::Spec::carrier("ledger", Duration::from_secs(5));
        tasks.spawn(spec, move |task| ledger.run(task)).unwrap();
        body(book, &view, folder.path());
    })
    .unwrap();
    (open().0.restored().known, table, folder)
}

#[test]
fn receipts_after_a_fault_are_still_taken_and_saved() {
    let (known, table, _) = live(Duration::from_secs(600), |book, _, _| {
        book.note(opened(0));
        (0..3).for_each(|number| book.note(stamp(number, SinkSet::all(2))));
        book.note(receipt(2, 0, false, true)); // forgotten by a thread that panicked
        for sink in 0..2 {
            book.note(receipt(0, sink, true, false));
        }
    });
    assert!(table.fault(true).unwrap().contains("were forgotten on the way to loki"));
    assert_eq!(known[0].position, 100);
}

#[test]
fn the_view_is_young_however_seldom_the_state_is_saved() {
    live(Duration::from_secs(600), |book, view, _| {
        book.note(opened(0));
        book.note(stamp(0, SinkSet::all(2)));
        until("the view is young", || view.lock().read.lines > 0);
    });
}

#[test]
fn what_was_let_go_is_no_reason_for_a_checkpoint() {
    let read = |folder: &Path| {
        ["0", "1"].map(|slot| std::fs::read(folder.join(format!("checkpoint-{slot}"))).unwrap())
    };
    live(Duration::from_millis(1), |book, view, folder| {
        until("the first checkpoint is there", || view.lock().checkpoints == 1);
        book.note(opened(0));
        until("the second checkpoint is there", || view.lock().checkpoints == 2);
        book.note(stamp(0, SinkSet::all(1)));
        until("the third checkpoint is there", || view.lock().checkpoints == 3);
        let before = read(folder);
        book.note(receipt(0, 0, false, false));
        until("it was taken", || view.lock().sinks[0].let_go == 10);
        assert_eq!(read(folder), before);
    });
}

fn until(what: &str, mut fact: impl FnMut() -> bool) {
    let clock = Clock::real();
    let deadline = clock.now() + Duration::from_secs(60);
    while !fact() {
        assert!(clock.now() < deadline, "waited in vain until {what}");
        let _ = crossbeam_channel::after(Duration::from_millis(5)).recv();
    }
}

/// The leak watch lives on them.
#[test]
fn the_gauges_say_what_is_open_and_what_is_finished() {
    let metrics = Registry::default();
    let mut state = State::new(Saved::default(), &names(), &metrics);
    let mut check = |note: Note, open: u64, finished: u64, generations: u64| {
        let text = format!("{note:?}");
        state.apply(note, false).unwrap();
        let found = ["open_chunks", "generations_finished", "generations"].map(|name| metrics.sum(name));
        assert_eq!(found, [Some(open), Some(finished), Some(generations)], "after {text}");
    };
    check(opened(0), 0, 0, 1);
    check(stamp(0, SinkSet::all(2)), 1, 0, 1);
    check(stamp(1, SinkSet::all(2)), 2, 0, 1);
    let Note::Read(second) = stamp(1, SinkSet::all(2)) else { unreachable!() };
    check(Note::TakenBack(second), 1, 0, 1);
    check(stamp(1, SinkSet::all(2)), 2, 0, 1);
    check(receipt(0, 0, true, false), 2, 0, 1);
    check(receipt(0, 1, true, false), 1, 0, 1);
    check(Note::Finished { generation: GENERATION }, 1, 1, 1);
    check(receipt(1, 0, true, false), 1, 1, 1);
    check(receipt(1, 1, true, false), 0, 0, 0);
}

#[test]
fn what_could_not_be_looked_at_is_not_delivered() {
    let mut state = state();
    assert!(state.books().all_delivered());
    state.apply(Note::Unseen { places: 1 }, false).unwrap();
    assert!(!state.books().all_delivered());
}

#[test]
fn what_a_stop_kept_is_not_delivered() {
    let mut state = state();
    state.apply(opened(0), false).unwrap();
    state.apply(stamp(0, SinkSet::all(1)), false).unwrap();
    let mut tally = Tally::default();
    tally.add(&Verdict::Kept, Count { lines: 10, bytes: 100 });
    let receipt = Receipt {
        generation: GENERATION,
        range: 0..100,
        sink: SinkId(0),
        tally,
        not_delivered: Count::default(),
        undelivered: Vec::new(),
        fault: false,
        from_spool: false,
    };
    state.apply(Note::Receipt(receipt), false).unwrap();
    let books = state.books();
    assert_eq!((books.sinks[0].pending, books.sinks[0].kept.lines), (0, 10));
    assert!(!books.all_delivered());
}

/// Prints its figures; the promise is a second, of a release build.
#[test]
fn a_hundred_thousand_generations_are_ready_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let disk: Arc<dyn crate::disk::Disk> = Arc::new(RealDisk);
    let mut state = state();
    let count = 100_000;
    for number in 0..count {
        let Note::Opened(opened) = opened(0) else { unreachable!() };
        let filename = Some(Path::new(&format!("/var/log/applications/a/long/path/{number}.log")).into());
        let identity = Some(Identity { device: 65025, inode: number, head: Head::new(1024, !number) });
        let opened = Opened { generation: GenerationId(number), filename, identity, ..*opened };
        state.apply(Note::Opened(Box::new(opened)), false).unwrap();
    }
    let (mut slots, _) = super::checkpoint::Slots::open(disk.clone(), folder.path());
    let clock = Clock::real();
    let began = clock.now();
    slots.write_snapshot(&state.to_save(Mark::default(), &OwnFiles::default())).unwrap();
    let (written, bytes) =
        (clock.now() - began, std::fs::metadata(folder.path().join("checkpoint-0")).unwrap().len());
    let began = clock.now();
    let settings = Settings {
        folder: folder.path().to_owned(),
        sinks: names(),
        sync_interval: Duration::from_secs(1),
        unsynced: Default::default(),
        passed: Default::default(),
        own_files: Default::default(),
        disk,
    };
    let (_switch, stop) = tasks::Switch::new().unwrap();
    let (ledger, ..) = Ledger::open(
        settings,
        stop,
        Duration::from_secs(1),
        &Registry::default(),
        &mut tasks::Wires::default(),
    );
    let known = ledger.restored().known.len() as u64;
    println!(
        "{count} generations: a slot of {bytes} bytes, written in {written:.0?}, ready in {:.0?}",
        clock.now() - began
    );
    assert_eq!(known, count);
}

#[test]
fn an_account_that_does_not_add_up_is_seen() {
    let count = Count { lines: 1, bytes: 10 };
    let well =
        SinkBooks { read: 2, read_bytes: 20, delivered: count, spooled: count, ..SinkBooks::default() };
    assert!(well.adds_up());
    assert!(!SinkBooks { read: 3, ..well.clone() }.adds_up());
    assert!(!SinkBooks { pending_bytes: 1, ..well }.adds_up());
}

proptest! {
    /// The model: whatever order the answers come in, and wherever the process ends, the next life starts at
    /// the first chunk that some sink lacks, at its line, and asks each sink for exactly what it lacks.
    #[test]
    fn a_restart_asks_each_sink_for_what_it_lacks(
        chunks in 1u64..12,
        answers in proptest::collection::vec((0u64..12, 0u8..2, any::<bool>()), 0..40),
    ) {
        let mut state = state();
        state.apply(opened(0), false).unwrap();
        for number in 0..chunks {
            state.apply(stamp(number, SinkSet::all(2)), false).unwrap();
        }
        let mut answered = std::collections::BTreeMap::new();
        for (number, sink, delivered) in answers {
            if number < chunks && !answered.contains_key(&(number, sink)) {
                answered.insert((number, sink), delivered);
                state.apply(receipt(number, sink, delivered, false), false).unwrap();
            }
        }
        let has = |number: u64, sink: u8| answered.get(&(number, sink)).copied().unwrap_or(false);
        let first_lacking = (0..chunks).find(|number| !has(*number, 0) || !has(*number, 1)).unwrap_or(chunks);
        let next = reload(&state);
        let known = known(&next);
        prop_assert_eq!((known.position, known.line), (first_lacking * 100, first_lacking * 10));
        prop_assert_eq!(known.continues, first_lacking % 3 == 1);
        for (sink, progress) in known.progress.iter().enumerate() {
            for number in first_lacking..chunks {
                prop_assert_eq!(progress.contains(number * 100 + 50), has(number, sink as u8));
            }
        }
        prop_assert!(state.check_laws().is_none());
        let books = state.books();
        for sink in 0..2u8 {
            let account = &books.sinks[sink as usize];
            let count = |wanted: bool| answered.iter().filter(|((_, of), got)| *of == sink && **got == wanted).count() as u64;
            prop_assert_eq!(account.delivered.lines, 10 * count(true));
            prop_assert_eq!(account.let_go, 10 * count(false));
            prop_assert_eq!(account.read, account.delivered.lines + account.let_go + account.pending);
        }
    }
}
