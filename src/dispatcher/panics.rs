//! Panics that data causes, through the real threads: the worker, the lane and its sender are contained to the
//! line that is guilty, which becomes a dead letter; everything else is delivered, and nobody ends early.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, bounded, never};
use parking_lot::Mutex;

use super::lane::{Ends, Lane};
use super::retry::Request;
use super::sender::SenderLoop;
use super::worker::Worker;
use crate::ack::{Ack, GenerationId, Receipts, SinkId, SinkSet};
use crate::clock::Clock;
use crate::deadletter::DeadLetters;
use crate::durable::Unsynced;
use crate::pipeline::{Pipeline, StageKind, StageOptions};
use crate::record::fixture::{Kept, lines, parcel};
use crate::record::{Batch, Chunk, Dealer, Parcel};
use crate::sinks::{Answer, BatchLimits, Connection, Format, KindOptions, RetryOptions, SinkOptions};
use crate::tasks::{self, Spec, Stop, Switch, Table};

struct House {
    table: Arc<Table>,
    _switch: Switch,
    stop: Stop,
    folder: tempfile::TempDir,
    dead_letters: DeadLetters,
    kept: Arc<Kept>,
}

impl House {
    fn new() -> House {
        let (switch, stop) = Switch::new().unwrap();
        let folder = tempfile::tempdir().unwrap();
        let dead_letters = DeadLetters::open(folder.path(), 8 << 20, Unsynced::default(), Clock::real());
        let table = Arc::new(Table::new(Clock::real()));
        House { table, _switch: switch, stop, folder, dead_letters, kept: Arc::default() }
    }

    /// What was kept, and why.
    fn letters(&self) -> Vec<(String, String)> {
        let text = std::fs::read_to_string(self.folder.path().join("deadletter.jsonl")).unwrap_or_default();
        let letter = |line: &str| {
            let letter: serde_json::Value = serde_json::from_str(line).unwrap();
            let word = |key: &str| letter[key].as_str().unwrap().trim_end().to_owned();
            (word("bytes"), word("reason"))
        };
        text.lines().map(letter).collect()
    }

    /// Lines delivered and dead-lettered; every line has an answer.
    fn answered(&self) -> (u64, u64) {
        let receipts = self.kept.0.lock();
        assert!(
            receipts.iter().all(|receipt| !receipt.fault && receipt.not_delivered.lines == 0),
            "{receipts:?}"
        );
        let sum = |of: fn(&crate::ack::Tally) -> u64| receipts.iter().map(|receipt| of(&receipt.tally)).sum();
        (sum(|tally| tally.delivered.lines), sum(|tally| tally.dead_lettered.lines))
    }
}

fn spec(name: &str) -> Spec {
    Spec::carrier(name, Duration::from_secs(60))
}

/// Panics on batches that hold a bad line: an encoder or a sender with a mistake.
struct Touchy {
    stored: Arc<Mutex<Vec<String>>>,
    tries: Arc<Mutex<usize>>,
}

impl Connection for Touchy {
    fn deliver(&mut self, batch: &Batch) -> Answer {
        *self.tries.lock() += 1;
        let texts: Vec<String> =
            batch.records().map(|record| String::from_utf8_lossy(record.text).into_owned()).collect();
        assert!(!texts.iter().any(|text| text.starts_with("bad")), "met something bad");
        self.stored.lock().extend(texts);
        Answer::Delivered
    }

    fn idle(&mut self, _now: Instant) -> Option<Instant> {
        None
    }
}

fn lane_with(house: &House, connection: Touchy) -> (Lane, SenderLoop, Receiver<Request>) {
    let (inlet, inlet_end) = bounded(1);
    let (job, jobs) = bounded(1);
    let (reports, reports_end) = bounded(1);
    let (requests, requests_end) = bounded(8);
    let second = Duration::from_secs(1);
    let options = SinkOptions {
        name: "sink".into(),
        labels: Default::default(),
        batch: BatchLimits { max_bytes: 1 << 20, line_weight: 24, max_lines: 1000, max_wait: second },
        connections: 1,
        timeout: second,
        retry: RetryOptions { initial: second, max: second, max_attempts: None },
        kind: KindOptions::Stdout(Format::Text),
    };
    let ends = Ends {
        inlet: inlet_end,
        jobs: vec![job],
        reports: reports_end,
        retry: requests,
        again: bounded(1).1,
        refusals: never(),
    };
    let raw: Vec<String> = (0..32)
        .map(|at| if [5, 21].contains(&at) { format!("bad {at}\n") } else { format!("{at}\n") })
        .collect();
    let raw: Vec<&str> = raw.iter().map(String::as_str).collect();
    inlet.send(parcel(lines(&raw, 0, true), &house.kept)).unwrap();
    let lane = Lane::new(
        SinkId(0),
        options,
        ends,
        house.stop.clone(),
        house.dead_letters.clone(),
        None,
        Clock::real().now(),
    );
    let sender = SenderLoop {
        street: 0,
        jobs,
        reports,
        connection: Box::new(connection),
        towards: "sending to sink".into(),
    };
    (lane, sender, requests_end)
}

#[test]
fn a_sender_that_panics_halves_its_batch_down_to_the_guilty() {
    let house = House::new();
    let (stored, tries) = (Arc::default(), Arc::default());
    let touchy = Touchy { stored: Arc::clone(&stored), tries: Arc::clone(&tries) };
    let (lane, sender, requests) = lane_with(&house, touchy);
    tasks::run(house.table.clone(), |tasks| {
        tasks.spawn(spec("sender"), move |task| sender.run(task)).unwrap();
        tasks.spawn(spec("lane"), move |task| lane.run(task)).unwrap();
    })
    .unwrap();
    assert_eq!(house.table.faults(true), [""; 0], "nobody ended early");
    let expected: Vec<String> = (0..32).filter(|at| ![5, 21].contains(at)).map(|at| at.to_string()).collect();
    assert_eq!(*stored.lock(), expected, "each once, in order");
    let why = "sending to sink panicked: met something bad".to_owned();
    assert_eq!(house.letters(), [("bad 5".to_owned(), why.clone()), ("bad 21".to_owned(), why)]);
    assert_eq!(house.answered(), (30, 2));
    assert!(*tries.lock() <= 2 * 2 * 6, "halves, not one by one: {} tries", tries.lock());
    assert!(requests.try_recv().is_err(), "the sink is well: nobody rests");
}

#[test]
fn a_worker_that_panics_on_a_line_goes_on_without_it() {
    let house = House::new();
    let (intake, intake_end) = bounded(3);
    let (inlet, inlet_end) = bounded(8);
    let stage = StageOptions { sources: None, by_label: None, kind: StageKind::PanicOn("boom") };
    let worker = Worker {
        intake: intake_end,
        dealer: Dealer::new(vec![inlet]),
        sinks: vec!["sink".into()],
        pipeline: Pipeline::compile(&[stage]).unwrap_or_else(|why| panic!("{why:?}")),
        stop: house.stop.clone(),
        dead_letters: house.dead_letters.clone(),
    };
    let receipts: Arc<dyn Receipts> = house.kept.clone();
    let mut start = 0;
    for raw in [&["one\n", "boom\n", "two\n"][..], &["boom, boom\n"], &["three\n"]] {
        let lines = lines(raw, start, true);
        start = lines.byte_range().end;
        let ack = Ack::new(GenerationId(1), lines.byte_range(), lines.count(), SinkSet::all(1), &receipts);
        let chunk = Chunk { lines, ack };
        intake.send(chunk).unwrap();
    }
    drop(intake);
    tasks::run(house.table.clone(), |tasks| {
        tasks.spawn(spec("worker"), move |task| worker.run(task)).unwrap();
    })
    .unwrap();
    assert_eq!(house.table.faults(true), [""; 0], "it ended with its intake");
    let mut passed = Vec::new();
    for Parcel { records, share } in inlet_end {
        passed
            .extend((0..records.len()).map(|at| String::from_utf8_lossy(records.get(at).text).into_owned()));
        share.settle(&crate::ack::Verdict::Delivered);
    }
    assert_eq!(passed, ["one", "two", "three"]);
    let why = "the pipeline panicked: met boom".to_owned();
    assert_eq!(house.letters(), [("boom".to_owned(), why.clone()), ("boom, boom".to_owned(), why)]);
    assert_eq!(house.answered(), (3, 2));
}
