//! The lane with a spool, on a disk in memory, by a clock by hand.

use super::*;
use crate::ack::GenerationId;
use crate::budget::{Budget, Holder};
use crate::disk::model::ModelDisk;
use crate::durable::Passed;
use crate::spool::{self, Spool, WhenFull};

const AFTER: Duration = Duration::from_secs(5);

/// A disk, and the lives of a lane on it.
struct Bench {
    disk: ModelDisk,
    passed: Passed,
    chunks: Budget,
    max_bytes: u64,
    when_full: WhenFull,
    /// What the sink says at the start of a life that it has.
    delivered: Vec<(GenerationId, std::ops::Range<u64>)>,
}

impl Bench {
    fn new(max_bytes: u64, when_full: WhenFull) -> Bench {
        let (passed, chunks) = (Passed::default(), Budget::new(1 << 20));
        let (disk, delivered) = (ModelDisk::default(), Vec::new());
        Bench { disk, passed, chunks, max_bytes, when_full, delivered }
    }

    /// A new life. What it finds, and whose sink has what `stored` says.
    fn life(&self, max_lines: usize, stored: Vec<String>) -> (Stage, spool::Opened) {
        let mut stage = Stage::new(max_lines, None);
        let settings = spool::Settings {
            disk: Arc::new(self.disk.clone()),
            folder: "/spool/sink".into(),
            max_bytes: self.max_bytes,
            when_full: self.when_full,
            unsynced: Unsynced::default(),
            passed: self.passed.clone(),
            boot: 1,
            streets: 1,
        };
        let (spool, found) = Spool::open(settings).unwrap();
        let settings = SpoolSettings {
            sink: SinkId(0),
            name: "sink".into(),
            after: Some(AFTER),
            receipts: stage.kept.clone(),
            chunks: self.chunks.clone(),
            window_bytes: 64 << 10,
            delivered: self.delivered.clone(),
        };
        let mut spooling = Spooling::new(spool, settings, &Default::default());
        spooling.begin(stage.clock.now());
        stage.lane.spooling = Some(spooling);
        stage.stored = stored;
        stage.lane.turn(stage.clock.now());
        (stage, found)
    }
}

impl Stage {
    fn feed_numbers(&mut self, numbers: std::ops::Range<u32>, replayable: bool) {
        for number in numbers {
            self.feed(&[&number.to_string()], replayable);
            // The inlet of the test has room for a hundred.
            if number % 50 == 49 {
                self.patience = 2;
                self.play(|| Says::Busy);
            }
        }
    }

    /// Ill for long enough that what waits goes into the spool.
    fn begin_to_spool(&mut self) {
        self.fall_ill();
        self.clock.advance(AFTER);
        self.fall_ill();
    }

    fn fall_ill(&mut self) {
        self.patience = 2;
        self.play(|| Says::Busy);
        // It ends at rest, with nothing away.
        if let Ok(batch) = self.jobs.try_recv() {
            let answer = self.answer_busy();
            self.reports.send(Report { street: 0, batch, answer }).unwrap();
        }
        while self.has_event() || self.is_due() {
            let event = if self.has_event() { self.lane.next_event(self.clock.now()) } else { Event::Due };
            self.lane.handle(event, self.clock.now()).unwrap();
        }
    }

    fn recover(&mut self) {
        self.patience = 1_000_000;
        let mut quiet = 0;
        while quiet < 2 {
            let before = self.stored.len();
            self.play(|| Says::Yes);
            self.clock.advance(Duration::from_secs(2));
            quiet = if self.stored.len() == before { quiet + 1 } else { 0 };
        }
    }

    fn spooled(&self) -> u64 {
        self.lane.spooling.as_ref().unwrap().pending().lines
    }

    /// Lines delivered, spooled and let go, as the ledger would count them.
    fn account(&self) -> (u64, i64, u64) {
        let (mut delivered, mut spooled, mut let_go) = (0, 0, 0);
        for receipt in self.kept.0.lock().iter() {
            assert!(!receipt.fault, "{receipt:?}");
            delivered += receipt.tally.delivered.lines;
            spooled += receipt.tally.spooled.lines as i64;
            match receipt.from_spool {
                true => spooled -= receipt.tally.total().lines as i64,
                false => let_go += receipt.not_delivered.lines,
            }
        }
        (delivered, spooled, let_go)
    }
}

fn numbers(range: std::ops::Range<u32>) -> Vec<String> {
    range.map(|number| number.to_string()).collect()
}

#[test]
fn a_sink_that_stays_ill_is_spooled_and_gets_everything_in_order_when_it_is_well() {
    let (mut stage, _) = Bench::new(1 << 20, WhenFull::Wait).life(3, Vec::new());
    stage.feed_numbers(0..10, true);
    stage.fall_ill();
    assert_eq!((stage.spooled(), stage.account()), (0, (0, 0, 0)), "not yet");
    stage.clock.advance(AFTER);
    stage.fall_ill();
    assert_eq!((stage.spooled(), stage.account()), (10, (0, 10, 0)));
    stage.feed_numbers(10..30, true);
    stage.fall_ill();
    assert_eq!(stage.account(), (0, 30, 0), "and all that comes");
    stage.recover();
    assert_eq!(stage.stored, numbers(0..30));
    assert_eq!((stage.spooled(), stage.account()), (0, (30, 0, 0)));
    stage.feed_numbers(30..40, true);
    stage.recover();
    assert_eq!(stage.stored, numbers(0..40));
    assert_eq!(stage.account(), (40, 0, 0), "it goes direct again");
    stage.close_inlet();
    stage.recover();
    assert!(stage.lane.is_over());
}

#[test]
fn half_of_the_budget_is_reason_enough() {
    let bench = Bench::new(1 << 20, WhenFull::Wait);
    let (mut stage, _) = bench.life(3, Vec::new());
    stage.feed_numbers(0..3, true);
    stage.fall_ill();
    assert_eq!(stage.spooled(), 0);
    let _held = bench.chunks.door().try_take(&Holder::default(), 512 << 10).unwrap();
    stage.feed_numbers(3..4, true);
    stage.fall_ill();
    assert_eq!(stage.spooled(), 4);
}

/// An hour without a sink: what the lane holds in memory stays small, and all of it arrives.
#[test]
fn a_sink_is_dead_for_an_hour() {
    let (mut stage, _) = Bench::new(64 << 20, WhenFull::Wait).life(100, Vec::new());
    let mut most_queued = 0;
    for minute in 0..60 {
        stage.feed_numbers(minute * 200..(minute + 1) * 200, true);
        stage.fall_ill();
        stage.clock.advance(Duration::from_secs(60));
        let health = stage.lane.health().lock().clone();
        if minute > 0 {
            most_queued = most_queued.max(health.queued_batches);
            assert!(health.spooled_lines >= u64::from(minute) * 200, "{health:?}");
        }
    }
    assert!(most_queued <= 5, "{most_queued} batches: no more than the window");
    stage.recover();
    assert_eq!(stage.stored, numbers(0..12_000));
    assert_eq!(stage.account(), (12_000, 0, 0));
}

/// A frame that lies in three batches: a death after the first leaves two.
#[test]
fn what_was_answered_for_does_not_come_back_after_a_death() {
    let bench = Bench::new(1 << 20, WhenFull::Wait);
    let (mut stage, _) = bench.life(2, Vec::new());
    stage.feed(&["0", "1", "2", "3", "4", "5"], true);
    stage.begin_to_spool();
    assert_eq!(stage.spooled(), 6);
    stage.patience = 1;
    stage.play(|| Says::Yes);
    assert_eq!((stage.stored.clone(), stage.spooled()), (numbers(0..2), 4));
    bench.disk.process_dies();
    let (mut stage, _) = bench.life(2, stage.stored);
    stage.recover();
    assert_eq!((stage.stored.clone(), stage.spooled()), (numbers(0..6), 0));
}

/// What of a frame was answered for in an earlier life is as little in the spool alone as the rest of it: the ledger would
/// miss it there one day, and have it sent again.
#[test]
fn the_ledger_hears_that_all_of_a_frame_was_answered_for() {
    let bench = Bench::new(1 << 20, WhenFull::Wait);
    let (mut stage, _) = bench.life(6, Vec::new());
    stage.feed(&["0", "1", "2", "3", "4", "5"], true);
    stage.begin_to_spool();
    bench.disk.process_dies();
    let (mut stage, _) = bench.life(2, Vec::new());
    stage.patience = 1;
    stage.play(|| Says::Yes);
    assert_eq!((stage.stored.clone(), stage.spooled()), (numbers(0..2), 4));
    bench.disk.process_dies();
    let (mut stage, _) = bench.life(2, stage.stored);
    stage.recover();
    assert_eq!((stage.stored.clone(), stage.spooled()), (numbers(0..6), 0));
    let receipts = stage.kept.0.lock();
    let answered: Vec<_> =
        receipts.iter().flat_map(|receipt| receipt.answered().collect::<Vec<_>>()).collect();
    assert_eq!(answered, vec![std::ops::Range { start: 0, end: 12 }]);
}

/// A sink falls ill while it is sent what had been spooled for it: that stands in the spool already, and a death at any
/// moment leaves it there once.
#[test]
fn what_comes_out_of_the_spool_for_a_sink_that_falls_ill_is_not_spooled_again() {
    let changes = |kill: u64| {
        let bench = Bench::new(1 << 20, WhenFull::Wait);
        let (mut stage, _) = bench.life(2, Vec::new());
        stage.feed(&["0", "1", "2", "3", "4", "5"], true);
        stage.begin_to_spool();
        bench.disk.process_dies();
        let before = bench.disk.changes();
        let (mut stage, _) = bench.life(2, Vec::new());
        bench.disk.fail_after(kill);
        stage.patience = 1;
        stage.play(|| Says::Yes);
        let stored = stage.stored.clone();
        stage.feed(&["6", "7"], true);
        stage.begin_to_spool();
        bench.disk.process_dies();
        let changes = bench.disk.changes() - before;
        let (mut stage, found) = bench.life(2, stored);
        assert!(found.pending.lines <= 8, "killed at {kill}: {found:?}");
        stage.recover();
        let mut stored = stage.stored;
        stored.retain(|line| line.as_str() < "6"); // the source has the others again
        stored.sort();
        stored.dedup_by(|next, last| next == last && next.as_str() < "2"); // the answer was not noted
        assert_eq!(stored, numbers(0..6), "killed at {kill}");
        changes
    };
    for kill in 0..=changes(u64::MAX) {
        changes(kill);
    }
}

/// The agent has died between the sink's answer and its own note of it.
#[test]
fn what_the_sink_says_it_has_is_not_sent_again() {
    // Each line has two bytes.
    for (has, lacks) in [(0..0, "012345"), (0..2, "12345"), (4..8, "0145"), (0..12, "")] {
        let mut bench = Bench::new(1 << 20, WhenFull::Wait);
        let (mut stage, _) = bench.life(3, Vec::new());
        stage.feed(&["0", "1", "2", "3", "4", "5"], true);
        stage.begin_to_spool();
        assert_eq!(stage.spooled(), 6);
        bench.disk.process_dies();
        bench.delivered = vec![(GenerationId(1), has.clone())];
        let (mut stage, _) = bench.life(3, Vec::new());
        stage.recover();
        assert_eq!((stage.stored.concat(), stage.spooled()), (lacks.to_owned(), 0), "{has:?}");
        assert_eq!(stage.account(), (6, -6, 0), "{has:?}");
        let (_, found) = bench.life(3, Vec::new());
        assert_eq!(found.pending.lines, 0, "{has:?}");
    }
}

#[test]
fn what_is_refused_out_of_the_spool_is_a_dead_letter() {
    let (mut stage, _) = Bench::new(1 << 20, WhenFull::Wait).life(3, Vec::new());
    stage.feed(&["1", "bad2", "3"], true);
    for _ in 0..3 {
        stage.fall_ill();
        stage.clock.advance(AFTER);
    }
    assert_eq!(stage.spooled(), 3);
    stage.recover();
    assert_eq!(
        (stage.stored.clone(), stage.dead_letters()),
        (vec!["1".into(), "3".into()], vec!["bad2".into()])
    );
    assert_eq!((stage.spooled(), stage.account()), (0, (2, 0, 0)));
}

/// At the stop everything goes to the spool whatever `after` says, and the next life sends it, in order, once.
#[test]
fn a_stop_spools_what_the_sink_did_not_take() {
    for aborts in [false, true] {
        let bench = Bench::new(1 << 20, WhenFull::Wait);
        let (mut stage, _) = bench.life(4, Vec::new());
        stage.feed_numbers(0..10, false);
        stage.fall_ill();
        stage.switch.stop();
        stage.close_inlet();
        if aborts {
            stage.switch.abort();
        }
        stage.fall_ill();
        assert!(stage.lane.is_over(), "aborts: {aborts}");
        assert_eq!(stage.dead_letters(), [""; 0], "the spool keeps it");
        assert_eq!(stage.account(), (0, 10, 0));
        let (mut stage, found) = bench.life(4, Vec::new());
        assert_eq!(found.pending.lines, 10);
        stage.recover();
        assert_eq!(stage.stored, numbers(0..10));
        assert_eq!(stage.account(), (10, -10, 0), "what an earlier life had spooled");
    }
}

/// A batch that is away when the agent aborts is older than all that is spooled then.
#[test]
fn an_abort_keeps_the_order_of_what_is_away() {
    let bench = Bench::new(1 << 20, WhenFull::Wait);
    let (mut stage, _) = bench.life(2, Vec::new());
    stage.feed_numbers(0..6, false);
    stage.patience = 0;
    stage.play(|| Says::Yes);
    let batch = stage.jobs.recv().unwrap();
    stage.switch.abort();
    stage.play(|| Says::Yes);
    stage.feed_numbers(6..8, false);
    stage.close_inlet();
    stage.play(|| Says::Yes);
    assert!(!stage.lane.is_over());
    let answer = stage.answer_busy();
    stage.reports.send(Report { street: 0, batch, answer }).unwrap();
    stage.play(|| Says::Yes);
    assert!(stage.lane.is_over());
    let (mut stage, _) = bench.life(2, Vec::new());
    stage.recover();
    assert_eq!(stage.stored, numbers(0..8));
}

#[test]
fn a_full_spool_makes_its_sources_wait_and_loses_nothing() {
    let (mut stage, _) = Bench::new(4096 + 600, WhenFull::Wait).life(1, Vec::new());
    stage.feed_numbers(0..2, true);
    stage.fall_ill();
    stage.clock.advance(AFTER);
    stage.feed_numbers(2..40, true);
    stage.fall_ill();
    let (_, spooled, _) = stage.account();
    assert!((1..20).contains(&spooled), "{spooled} found room");
    stage.recover();
    assert_eq!(stage.stored, numbers(0..40));
}

#[test]
fn a_disk_that_fails_is_as_no_spool_until_it_is_well() {
    let bench = Bench::new(1 << 20, WhenFull::Wait);
    let (mut stage, _) = bench.life(1, Vec::new());
    bench.disk.set_full(true);
    stage.feed_numbers(0..3, true);
    stage.begin_to_spool();
    assert_eq!(stage.account(), (0, 0, 0), "they wait in memory, as without a spool");
    bench.disk.set_full(false);
    stage.clock.advance(AFTER);
    stage.fall_ill();
    assert_eq!(stage.account(), (0, 3, 0));
    stage.recover();
    assert_eq!(stage.stored, numbers(0..3));
}

proptest! {
    /// Whatever the sink says, whenever the process dies: once it is well each line was stored, in order; only what
    /// was on its way at a death can come twice, at once and in order again.
    #[test]
    fn everything_arrives_through_moods_and_deaths(
        rounds in proptest::collection::vec((0u32..20, 0usize..8, 0u64..8, 0u8..12), 1..30),
        max_lines in 1usize..6,
    ) {
        let bench = Bench::new(1 << 20, WhenFull::Wait);
        let (mut stage, _) = bench.life(max_lines, Vec::new());
        let (mut next, mut base) = (0, 0);
        for (lines, patience, seconds, death) in rounds {
            stage.feed_numbers(next..next + lines, true);
            next += lines;
            stage.patience = patience;
            let mut busy = 0;
            stage.play(|| { busy += 1; if busy % 3 == 0 { Says::Yes } else { Says::Busy } });
            stage.clock.advance(Duration::from_secs(seconds));
            stage.patience = patience;
            stage.play(|| if seconds % 2 == 0 { Says::Yes } else { Says::Busy });
            if death == 0 {
                // What has no answer is read again by the next life: here, all from the position on.
                let (position, mut offset) = (stage.position(), 0);
                base = (base..next)
                    .find(|number| {
                        let is_behind = offset >= position;
                        offset += number.to_string().len() as u64 + 1;
                        is_behind
                    })
                    .unwrap_or(next);
                let stored = std::mem::take(&mut stage.stored);
                bench.disk.process_dies();
                drop(std::mem::replace(&mut stage, bench.life(max_lines, stored).0));
                stage.feed_numbers(base..next, true);
            }
        }
        stage.close_inlet();
        stage.recover();
        prop_assert!(stage.lane.is_over(), "{:?} {:?}", stage.lane.mood, stage.lane.health().lock());
        let mut seen: Vec<String> = Vec::new();
        for line in &stage.stored {
            if !seen.contains(line) {
                seen.push(line.clone());
            }
        }
        prop_assert_eq!(seen, numbers(0..next), "{:?}", stage.stored);
    }
}
