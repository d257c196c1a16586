//! The lane against a sink with moods, one event at a time and without threads: the test plays the worker, the
//! senders and the retry scheduler.

use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, bounded};
use proptest::prelude::*;

use super::*;
use crate::clock::Clock;
use crate::durable::Unsynced;
use crate::ledger::Progress;
use crate::record::fixture::{Kept, lines, parcel};
use crate::sinks::{BatchLimits, Format, KindOptions, RetryOptions};
use crate::tasks::Switch;

mod spooled;

struct Stage {
    lane: Lane,
    clock: Clock,
    inlet: Option<Sender<Parcel>>,
    jobs: Receiver<Batch>,
    reports: Sender<Report>,
    requests: Receiver<Request>,
    again: Sender<()>,
    refused: Sender<()>,
    switch: Switch,
    kept: Arc<Kept>,
    folder: tempfile::TempDir,
    /// Lines the sink has stored, in order of arrival.
    stored: Vec<String>,
    sent: u64,
    /// Batches that the sink still answers.
    patience: usize,
    /// How often the lane told the scheduler news of an illness, and that the sink is well.
    told: (u32, u32),
}

#[derive(Clone, Copy, Debug)]
enum Says {
    Yes,
    Busy,
    No,
}

impl Stage {
    fn new(max_lines: usize, max_attempts: Option<u32>) -> Stage {
        let clock = Clock::by_hand(0);
        let (switch, stop) = Switch::new().unwrap();
        let folder = tempfile::tempdir().unwrap();
        let dead_letters = DeadLetters::open(folder.path(), 8 << 20, Unsynced::default(), clock.clone());
        let (inlet, inlet_end) = bounded(100);
        let (job, jobs) = bounded(1);
        let (reports, reports_end) = bounded(1);
        let (requests_in, requests) = bounded(8);
        let (again, again_end) = bounded(1);
        let (refused, refusals) = bounded(1);
        let second = Duration::from_secs(1);
        let options = SinkOptions {
            name: "sink".into(),
            labels: Default::default(),
            batch: BatchLimits { max_bytes: 1 << 20, line_weight: 24, max_lines, max_wait: second },
            connections: 1,
            timeout: second,
            retry: RetryOptions { initial: second, max: second, max_attempts },
            kind: KindOptions::Stdout(Format::Text),
        };
        let ends = Ends {
            inlet: inlet_end,
            jobs: vec![job],
            reports: reports_end,
            retry: requests_in,
            again: again_end,
            refusals,
        };
        let lane = Lane::new(SinkId(0), options, ends, stop, dead_letters, None, clock.now());
        let (kept, stored) = (Arc::default(), Vec::new());
        Stage {
            lane,
            clock,
            inlet: Some(inlet),
            jobs,
            reports,
            requests,
            again,
            refused,
            switch,
            kept,
            folder,
            stored,
            sent: 0,
            patience: 10_000,
            told: (0, 0),
        }
    }

    /// A chunk of `count` lines; those named `bad…` are refused by the sink.
    fn feed(&mut self, texts: &[&str], replayable: bool) {
        let raw: Vec<String> = texts.iter().map(|text| format!("{text}\n")).collect();
        let raw: Vec<&str> = raw.iter().map(String::as_str).collect();
        let chunk = lines(&raw, self.sent, replayable);
        self.sent += chunk.data.len() as u64;
        self.inlet.as_ref().unwrap().send(parcel(chunk, &self.kept)).unwrap();
    }

    /// Lets the lane handle everything that is there; the sink answers each batch with what `says` tells.
    fn play(&mut self, mut says: impl FnMut() -> Says) {
        loop {
            loop {
                let event = match (self.has_event(), self.is_due()) {
                    (true, _) => self.lane.next_event(self.clock.now()),
                    (false, true) => Event::Due,
                    (false, false) => break,
                };
                self.lane.handle(event, self.clock.now()).unwrap();
            }
            if let Ok(request) = self.requests.try_recv() {
                match request {
                    Request::Rest { news, .. } => {
                        self.told.0 += u32::from(news.is_some());
                        self.again.send(()).unwrap();
                    }
                    Request::Well { .. } => self.told.1 += 1,
                }
                continue;
            }
            if self.patience == 0 {
                return;
            }
            let Ok(batch) = self.jobs.try_recv() else { return };
            self.patience -= 1;
            let answer = self.answer(&batch, says());
            self.reports.send(Report { street: 0, batch, answer }).unwrap();
        }
    }

    /// Events come from channels of ours only.
    fn has_event(&self) -> bool {
        let closed = self.inlet.is_none() && !self.lane.inlet_closed;
        let resting =
            self.lane.mood == Mood::Resting && self.lane.inlet_closed && self.lane.stop.stop.is_closed();
        let aborted = self.lane.stop.abort.is_closed() && !self.lane.giving_up;
        let refused = !self.lane.refusals.is_empty()
            && self.lane.streets.iter().any(|street| self.lane.could_leave(street));
        let queued =
            !self.lane.inlet.is_empty() || !self.lane.reports.is_empty() || !self.lane.again.is_empty();
        !self.lane.is_over() && (queued || closed || refused || resting || aborted)
    }

    /// By our clock: the timer itself would wait for the one on the wall.
    fn is_due(&self) -> bool {
        let due = self.lane.streets.iter().filter_map(|street| street.batcher.due());
        due.chain(self.lane.spool_due()).any(|due| due <= self.clock.now()) && !self.lane.is_over()
    }

    fn answer(&mut self, batch: &Batch, says: Says) -> Answer {
        let texts: Vec<String> =
            batch.records().map(|record| String::from_utf8_lossy(record.text).into_owned()).collect();
        let bad: Vec<usize> = (0..texts.len()).filter(|at| texts[*at].starts_with("bad")).collect();
        match says {
            Says::Busy => self.answer_busy(),
            // A sink that refuses all because of one does not say which: the lane has to find out.
            _ if !bad.is_empty() && texts.len() > 1 && matches!(says, Says::Yes) => {
                Answer::Refused { which: Guilty::Unknown, why: "bad".into() }
            }
            _ if !bad.is_empty() => {
                self.stored.extend(texts.into_iter().filter(|text| !text.starts_with("bad")));
                Answer::Refused { which: Guilty::These(bad), why: "bad".into() }
            }
            _ => {
                self.stored.extend(texts);
                Answer::Delivered
            }
        }
    }

    fn answer_busy(&self) -> Answer {
        Answer::Retry { not_before: None, why: Error::new("busy") }
    }

    fn close_inlet(&mut self) {
        self.inlet = None;
    }

    fn dead_letters(&self) -> Vec<String> {
        let text = std::fs::read_to_string(self.folder.path().join("deadletter.jsonl")).unwrap_or_default();
        text.lines()
            .map(|line| {
                let letter: serde_json::Value = serde_json::from_str(line).unwrap();
                letter["bytes"].as_str().unwrap().trim_end().to_owned()
            })
            .collect()
    }

    /// Bytes from the start that were answered for.
    fn position(&self) -> u64 {
        let mut progress = Progress::starting_at(0);
        self.kept
            .0
            .lock()
            .iter()
            .filter(|r| r.undelivered.is_empty() && !r.from_spool)
            .for_each(|r| progress.add(r.range.clone()));
        progress.low()
    }
}

#[test]
fn a_sink_that_is_ill_gets_the_oldest_batch_alone_and_then_the_rest_in_order() {
    let mut stage = Stage::new(1, None);
    stage.feed(&["1", "2", "3"], true);
    let mut answers = [Says::Busy, Says::Busy, Says::Yes].into_iter();
    stage.play(|| answers.next().unwrap_or(Says::Yes));
    assert_eq!(stage.stored, ["1", "2", "3"]);
    assert_eq!(stage.lane.health().lock().mood, Mood::Well);
    assert_eq!(stage.position(), stage.sent);
}

#[test]
fn an_open_batch_leaves_when_it_has_waited_long_enough() {
    let mut stage = Stage::new(100, None);
    stage.feed(&["1"], true);
    stage.play(|| Says::Yes);
    assert!(stage.stored.is_empty());
    stage.clock.advance(Duration::from_secs(2));
    stage.play(|| Says::Yes);
    assert_eq!(stage.stored, ["1"]);
}

/// With a small budget one chunk can be all that is granted, and less than a batch.
#[test]
fn an_open_batch_does_not_wait_for_company_that_cannot_come() {
    let mut stage = Stage::new(100, None);
    stage.refused.send(()).unwrap();
    stage.play(|| Says::Yes);
    assert!(!stage.refused.is_empty(), "it may come before the records that it means");
    stage.feed(&["1"], true);
    stage.play(|| Says::Yes);
    assert_eq!((stage.stored.clone(), stage.refused.is_empty()), (vec!["1".to_owned()], true));
    stage.feed(&["2"], true);
    stage.play(|| Says::Yes);
    assert_eq!(stage.stored, ["1"], "it was told once, and has obeyed");
}

#[test]
fn after_max_attempts_the_batch_is_a_dead_letter_and_the_next_one_has_its_chance() {
    let mut stage = Stage::new(1, Some(2));
    stage.feed(&["1", "2"], true);
    let mut answers = [Says::Busy, Says::Busy].into_iter();
    stage.play(|| answers.next().unwrap_or(Says::Yes));
    assert_eq!((stage.stored.clone(), stage.dead_letters()), (vec!["2".to_owned()], vec!["1".to_owned()]));
    assert_eq!(stage.position(), stage.sent);
}

#[test]
fn a_stop_gives_a_resting_sink_one_last_try_and_then_lets_go() {
    let mut stage = Stage::new(1, None);
    stage.feed(&["1", "2"], true);
    let mut tries = 0;
    stage.switch.stop();
    stage.close_inlet();
    stage.play(|| {
        tries += 1;
        Says::Busy
    });
    assert!(stage.lane.is_over() && tries <= 2, "{tries} tries");
    let receipts = stage.kept.0.lock();
    assert!(receipts.iter().all(|receipt| !receipt.fault && receipt.not_delivered.lines > 0));
    assert_eq!(receipts.iter().map(|receipt| receipt.not_delivered.lines).sum::<u64>(), 2);
}

#[test]
fn what_cannot_be_read_again_is_kept_as_dead_letters_when_the_agent_ends() {
    let mut stage = Stage::new(1, None);
    stage.feed(&["1", "2"], false);
    stage.switch.abort();
    stage.close_inlet();
    stage.play(|| Says::Busy);
    let mut letters = stage.dead_letters();
    letters.sort();
    assert_eq!(letters, ["1", "2"]);
    assert_eq!(stage.position(), stage.sent);
}

#[test]
fn a_full_dead_letter_file_makes_the_sink_rest_and_loses_nothing() {
    let mut stage = Stage::new(10, None);
    stage.lane.dead_letters =
        DeadLetters::open(stage.folder.path(), 1, Unsynced::default(), stage.clock.clone());
    stage.feed(&["bad"], true);
    stage.patience = 3;
    stage.close_inlet();
    stage.play(|| Says::No);
    assert!(!stage.lane.is_over());
    assert_eq!(stage.position(), 0);
    assert!(stage.kept.0.lock().is_empty(), "the share is still open");
    assert_eq!(stage.told, (1, 0), "one illness is one piece of news, and its back-off grows");
}

#[test]
fn connections_that_fail_at_once_have_failed_once() {
    let mut stage = Stage::new(1, Some(2));
    let (job, second) = bounded(1);
    let batcher = Batcher::new(stage.lane.options.batch);
    stage.lane.streets.push(Street { jobs: job, batcher, queue: VecDeque::new(), away: false });
    stage.feed(&["1", "2"], true);
    let event = stage.lane.next_event(stage.clock.now());
    stage.lane.handle(event, stage.clock.now()).unwrap();
    let other = stage.lane.streets[0].queue.pop_front().unwrap();
    stage.lane.streets[1].queue.push_back(other);
    stage.lane.dispatch(stage.clock.now());
    for (street, jobs) in [&stage.jobs, &second].into_iter().enumerate() {
        let (batch, answer) = (jobs.recv().unwrap(), stage.answer_busy());
        stage.lane.handle(Event::Report(Report { street, batch, answer }), stage.clock.now()).unwrap();
    }
    assert_eq!(stage.dead_letters(), Vec::<String>::new(), "each was tried once, and may be twice");
}

/// What a sink has stored is settled, even if its answer comes when nothing is sent any more.
#[test]
fn a_refusal_that_comes_late_counts_all_the_same() {
    let mut stage = Stage::new(1, None);
    stage.feed(&["bad"], true);
    stage.feed(&["2"], true);
    let event = stage.lane.next_event(stage.clock.now());
    stage.lane.handle(event, stage.clock.now()).unwrap();
    let batch = stage.jobs.recv().unwrap();
    stage.switch.abort();
    stage.close_inlet();
    stage.play(|| Says::Yes);
    let answer = stage.answer(&batch, Says::No);
    stage.reports.send(Report { street: 0, batch, answer }).unwrap();
    stage.play(|| Says::Yes);
    assert!(stage.lane.is_over());
    assert_eq!(stage.dead_letters(), ["bad"]);
    assert_eq!(stage.position(), 4);
}

#[test]
fn a_stream_is_kept_with_few_writes_and_what_finds_no_room_is_let_go() {
    let mut stage = Stage::new(usize::MAX, None);
    let lines: Vec<String> = (0..10_000).map(|number| number.to_string()).collect();
    let texts: Vec<&str> = lines.iter().map(String::as_str).collect();
    stage.feed(&texts, false);
    stage.switch.abort();
    stage.close_inlet();
    stage.play(|| Says::Busy);
    assert_eq!(stage.dead_letters(), lines);
    assert_eq!(stage.position(), stage.sent);

    let mut stage = Stage::new(usize::MAX, None);
    stage.lane.dead_letters =
        DeadLetters::open(stage.folder.path(), 1 << 20, Unsynced::default(), stage.clock.clone());
    stage.feed(&texts, false);
    stage.switch.abort();
    stage.close_inlet();
    stage.play(|| Says::Busy);
    let receipts = stage.kept.0.lock();
    let kept: u64 = receipts.iter().map(|receipt| receipt.tally.kept.lines).sum();
    let lost: u64 = receipts.iter().map(|receipt| receipt.not_delivered.lines).sum();
    assert_eq!(kept, stage.dead_letters().len() as u64);
    assert!(kept > 0 && lost > 0 && kept + lost == 10_000, "{kept} + {lost}");
}

proptest! {
    /// The model: whatever the sink says on the way, once it is well every good line is stored, in order, once;
    /// every bad one is a dead letter, once; and every share has its receipt.
    #[test]
    fn everything_arrives_whatever_the_mood(
        chunks in proptest::collection::vec(proptest::collection::vec(any::<bool>(), 1..6), 1..8),
        moods in proptest::collection::vec(prop_oneof![Just(Says::Yes), Just(Says::Busy), Just(Says::No)], 0..30),
        max_lines in 1usize..8,
    ) {
        let mut stage = Stage::new(max_lines, None);
        let (mut good, mut bad, mut number) = (Vec::new(), Vec::new(), 0);
        for chunk in &chunks {
            let texts: Vec<String> = chunk.iter().map(|is_bad| {
                number += 1;
                if *is_bad { format!("bad{number}") } else { format!("line{number}") }
            }).collect();
            texts.iter().for_each(|text| if text.starts_with("bad") { bad.push(text.clone()) } else { good.push(text.clone()) });
            let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
            stage.feed(&texts, true);
        }
        stage.close_inlet();
        let mut moods = moods.into_iter();
        stage.play(|| moods.next().unwrap_or(Says::Yes));
        prop_assert!(stage.lane.is_over());
        prop_assert_eq!(&stage.stored, &good);
        prop_assert_eq!(stage.dead_letters(), bad);
        prop_assert_eq!(stage.position(), stage.sent);
        prop_assert!(stage.kept.0.lock().iter().all(|receipt| !receipt.fault));
    }
}

/// The scheduler has panicked: the stop is on its way, and until it comes nobody runs in a circle.
#[test]
fn a_scheduler_that_is_gone_is_not_heard_again() {
    let mut stage = Stage::new(1, None);
    drop(std::mem::replace(&mut stage.again, bounded(1).0));
    let event = stage.lane.next_event(stage.clock.now());
    assert!(matches!(event, Event::SchedulerGone));
    stage.lane.handle(event, stage.clock.now()).unwrap();
    stage.feed(&["1"], true);
    assert!(matches!(stage.lane.next_event(stage.clock.now()), Event::Parcel(_)));
    stage.close_inlet();
    assert!(matches!(stage.lane.next_event(stage.clock.now()), Event::InletClosed));
}
