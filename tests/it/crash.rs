//! Nothing lost, nothing doubled, whatever ends the agent and whenever.
//!
//! Programs write and rotate without a pause; the agent is killed over and over, at random moments and in front of
//! chosen system calls, beside a Loki that lies now and then and a file sink. Some lives make a block:
//!
//! ```text
//! life ─ end ─ life ─ end ─ … ─ the writers rest ─ a life in peace ─ all is out ─ stop ─ sets compared
//! ```
//!
//! Loki drops an entry whose labels, time and text it has: each line is left once. What the file sink wrote is, byte
//! for byte, what was written to each path, one generation after the other.
//!
//! `scripts/crash-test.sh --rounds 1000 --seed 7` is the full form, `make crash` a hundred rounds of it; without
//! `LOG_CAPTURER_CRASH_ROUNDS` and `_SEED` it is twenty. Each block has a room and a seed of its own, the first one the
//! seed that was given, so that `--rounds 10 --seed <that of a block>` does what the block did, as far as the machine
//! lets it.

#![expect(clippy::disallowed_methods, reason = "many programs write at the same time, and sync nothing")]

mod disks;
mod ends;
mod hand;
mod many;

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use fastrand::Rng;
use log_capturer::clock::Clock;
use parking_lot::Mutex;
use serde_json::json;

use crate::agent::{Agent, Room, pause};
use crate::expect::{Arrived, Report};
use crate::files::bytes;
use crate::receiver::{Mood, Receiver};
use crate::stress::load::Heard;
use ends::End;
use hand::{HABITS, Hand, size};

/// Rounds that share a state: enough for it to grow old, few enough to tell which one was it.
const BLOCK: u64 = 10;

/// One of each habit.
const HANDS: u32 = HABITS.len() as u32;

const STEPS_PER_ROTATION: u32 = 12;

/// How long a life lasts that nothing ends earlier.
const LIFE_MS: std::ops::Range<u64> = 20..800;

/// Requests of a life that are answered in a mood of their own.
const MOODS_PER_LIFE: usize = 30;

/// One life in so many has a sink that is ill from its beginning on, for seconds if it lasts so long: Loki or the
/// disk of the outputs. What it cannot take is spooled, and comes back in a later life.
const LIVES_PER_ILLNESS: u32 = 3;

/// Writes to an output that fail, if it is ill; half of the lives end before.
const WRITES_REFUSED: std::ops::Range<u32> = 3..12;

/// What an agent says that spools.
const SPOOLS: &str = "spools what it cannot take";

/// How long nothing may come out before the rest is given up for lost.
const PATIENCE: Duration = Duration::from_secs(10);

/// How long nothing more comes after all is there: what comes then is doubled.
const REST: Duration = Duration::from_millis(300);

fn asked(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name} is a number, not {text}")))
}

#[test]
fn killed_over_and_over() {
    over_and_over(End::choose);
}

/// An agent that has time to save its state, and one that has hardly any.
#[test]
fn stopped_over_and_over() {
    over_and_over(End::choose_stop);
}

fn over_and_over(choose: fn(&mut Rng) -> End) {
    let rounds = asked("LOG_CAPTURER_CRASH_ROUNDS").unwrap_or(20);
    let seed = asked("LOG_CAPTURER_CRASH_SEED").unwrap_or_else(|| fastrand::u64(..1_000_000));
    println!("crash: {rounds} rounds from seed {seed} on; {}", Figures::HEAD);
    let (mut all, mut complaints) = (Figures::default(), Vec::new());
    for (block, begun) in (0..rounds).step_by(BLOCK as usize).enumerate() {
        let seed = seed.wrapping_add(block as u64);
        let mut figures = Figures { rounds: BLOCK.min(rounds - begun), ..Figures::default() };
        let wrong = run_block(seed, &mut figures, choose);
        println!("seed {seed:<10} {figures}");
        complaints.extend(wrong.into_iter().map(|complaint| format!("seed {seed}: {complaint}")));
        all.add(&figures);
    }
    println!("{:15} {all}", "all");
    println!("ends: {}", all.ends());
    assert!(complaints.is_empty(), "{}", complaints.join("\n"));
}

/// What is printed of a block, and of all.
#[derive(Default)]
struct Figures {
    rounds: u64,
    /// By [`End::row`].
    ends: [u64; End::NAMES.len()],
    /// Killed all the same, at a random moment: the call did not come.
    calls_not_met: u64,
    rotations: u64,
    lines: u64,
    bytes: u64,
    lost: u64,
    doubled: u64,
    /// Lives that had to spool.
    spooled: u64,
    /// Entries that Loki had already, and dropped.
    again: u64,
    file_lost: u64,
    file_doubled: u64,
    files_equal: u64,
    files: u64,
}

impl Figures {
    const HEAD: &str = "rounds, of these some spooled, rotations, lines, MiB | loki: lost, doubled, dropped as known | \
                        file: lost, doubled, outputs equal";

    fn add(&mut self, other: &Figures) {
        self.rounds += other.rounds;
        self.ends.iter_mut().zip(other.ends).for_each(|(all, these)| *all += these);
        self.calls_not_met += other.calls_not_met;
        self.spooled += other.spooled;
        self.rotations += other.rotations;
        self.lines += other.lines;
        self.bytes += other.bytes;
        self.lost += other.lost;
        self.doubled += other.doubled;
        self.again += other.again;
        self.file_lost += other.file_lost;
        self.file_doubled += other.file_doubled;
        self.files_equal += other.files_equal;
        self.files += other.files;
    }

    fn ends(&self) -> String {
        let ends = End::NAMES.iter().zip(self.ends).map(|(name, count)| format!("{name} {count}"));
        let ends: Vec<String> = ends.collect();
        format!("{}; {} of the calls did not come in time", ends.join(", "), self.calls_not_met)
    }
}

impl fmt::Display for Figures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mib = self.bytes as f64 / f64::from(1 << 20);
        write!(f, "{:5} {:5} {:5} {:8} {mib:7.1}", self.rounds, self.spooled, self.rotations, self.lines)?;
        write!(f, " | {:6} {:6} {:7}", self.lost, self.doubled, self.again)?;
        write!(f, " | {:6} {:6} {:3} of {}", self.file_lost, self.file_doubled, self.files_equal, self.files)
    }
}

/// Ends the writers also when a round panics, or nobody would ever join them.
struct Ends<'a>(&'a AtomicBool);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn run_block(seed: u64, figures: &mut Figures, choose: fn(&mut Rng) -> End) -> Vec<String> {
    let mut random = Rng::with_seed(seed);
    let heard = Arc::new(Mutex::new(Heard::default()));
    let receiver = Receiver::start_telling({
        let heard = heard.clone();
        move |entry| heard.lock().hear(&entry)
    });
    let retry = json!({ "initial": "10ms", "max": "100ms" });
    let spool = match random.choice([Some("0ms"), Some("50ms"), None]).expect("some") {
        Some(after) => json!({ "after": after }),
        None => json!({ "enabled": false }),
    };
    let room = Room::new(json!({
        "agent": { "sync_interval": random.choice(["20ms", "200ms", "1s"]), "stop_timeout": "5s" },
        "sources": [{ "type": "file", "include": ["logs/*.log"], "idle": "30s" }],
        "sinks": [
            { "type": "loki", "name": "loki", "url": receiver.url(), "timeout": "300ms", "retry": retry,
              "spool": spool, "batch": { "max_wait": "20ms" } },
            { "type": "file", "name": "file", "path": "out/{file}", "retry": retry, "spool": spool,
              "batch": { "max_wait": "20ms" } },
        ],
    }));
    let mut hands: Vec<Hand> = (0..HANDS).map(|id| Hand::new(&room, id, STEPS_PER_ROTATION)).collect();
    let outputs: Vec<PathBuf> = hands.iter().map(|hand| hand.output.clone()).collect();
    let (mut complaints, mut lives) = (Vec::new(), Vec::new());
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        let guard = Ends(&over);
        for hand in &mut hands {
            let mut random = random.fork();
            let (heard, over) = (&heard, &over);
            scope.spawn(move || {
                while !over.load(Ordering::Relaxed) {
                    hand.step(&mut random, |id, number| heard.lock().arrived.has(id, number));
                    pause(Duration::from_millis(random.u64(2..40)));
                }
                hand.finish();
            });
        }
        for _ in 0..figures.rounds {
            let is_ill = |random: &mut Rng| random.u32(..LIVES_PER_ILLNESS) == 0;
            if is_ill(&mut random) {
                receiver.set(Mood::status(503));
            } else {
                receiver.play((0..MOODS_PER_LIFE).map(|_| mood(&mut random)), Mood::Well);
            }
            let end = choose(&mut random);
            let refused = is_ill(&mut random).then(|| random.u32(WRITES_REFUSED));
            let agent = end.start(&room, refused.map(|writes| (writes, &outputs[..])));
            live(&agent, Duration::from_millis(random.u64(LIFE_MS)));
            figures.spooled += u64::from(agent.stderr().contains(SPOOLS));
            let (code, late) = end.now(&agent);
            figures.ends[end.row()] += 1;
            figures.calls_not_met += u64::from(late && matches!(end, End::AtCall { .. }));
            if !end.allows(code) {
                complaints.push(format!(
                    "an agent that met its end by {end} ended with {code}: {}",
                    agent.stderr()
                ));
            }
            lives.push(format!(
                "a life that ended by {end}, its outputs refused {refused:?}:\n{}",
                agent.stderr()
            ));
            pause(Duration::from_millis(random.u64(..60)));
        }
        drop(guard);
    });
    receiver.set(Mood::Well);
    let agent = room.run();
    settle(&agent, &hands, &heard);
    let code = agent.stop();
    if code != 0 {
        complaints.push(format!("the life in peace ended with {code}: {}", agent.stderr()));
    }
    let findings = compare(&hands, &heard.lock(), figures);
    complaints.extend(findings.iter().filter(|finding| !finding.is_exact()).map(ToString::to_string));
    if !complaints.is_empty() {
        complaints.extend(lives);
        complaints.push(format!("the life in peace:\n{}", agent.stderr()));
    }
    complaints
}

/// Well as a rule, else every other entry would be sent twice.
fn mood(random: &mut Rng) -> Mood {
    match random.u32(..20) {
        0 => Mood::Lie,
        1 => Mood::Cut,
        2 => Mood::Late(Duration::from_millis(random.u64(..400))), // some are later than the sink's time-out
        3 => Mood::status(503),
        4 => Mood::Reset,
        _ => Mood::Well,
    }
}

/// Until it ends, or its time is over.
fn live(agent: &Agent, time: Duration) {
    let clock = Clock::real();
    let end = clock.now() + time;
    while clock.now() < end && agent.try_exit().is_none() {
        pause(Duration::from_millis(2));
    }
}

/// Everything has come out, or nothing comes out any more: what is missing then is found by the comparison.
fn settle(agent: &Agent, hands: &[Hand], heard: &Mutex<Heard>) {
    let written: u64 = hands.iter().map(|hand| hand.writer.written().1).sum();
    let truths: Vec<u64> = hands.iter().map(|hand| hand.truth().len() as u64).collect();
    let clock = Clock::real();
    let (mut before, mut moved_at) = ((0, 0), clock.now());
    loop {
        let distinct = heard.lock().arrived.distinct();
        let sizes = || hands.iter().map(|hand| size(&hand.output));
        let complete = distinct >= written && sizes().zip(&truths).all(|(size, truth)| size >= *truth);
        let now = (distinct, sizes().sum());
        if now != before {
            (before, moved_at) = (now, clock.now());
        }
        let patience = if complete { REST } else { PATIENCE };
        if clock.now() - moved_at > patience || agent.try_exit().is_some() {
            return;
        }
        pause(Duration::from_millis(10));
    }
}

/// One comparison: where, and what was found.
struct Finding {
    place: String,
    report: Report,
    /// Of a file: byte for byte the truth. Loki keeps no bytes.
    equal: bool,
}

fn compare(hands: &[Hand], heard: &Heard, figures: &mut Figures) -> Vec<Finding> {
    let written: BTreeMap<u32, u64> = hands.iter().map(|hand| hand.writer.written()).collect();
    let report = heard.arrived.compare(&written);
    figures.rotations += hands.iter().map(Hand::rotations).sum::<u64>();
    figures.lines += report.written;
    figures.lost += report.lost();
    figures.doubled += report.doubled();
    figures.again += heard.repeats;
    let mut findings = vec![Finding { place: "loki".into(), report, equal: true }];
    for hand in hands {
        let truth = hand.truth();
        let equal = truth == bytes(&hand.output);
        let report = Arrived::in_file(&hand.output).compare(&BTreeMap::from([hand.writer.written()]));
        figures.bytes += truth.len() as u64;
        figures.file_lost += report.lost();
        figures.file_doubled += report.doubled();
        figures.files_equal += u64::from(equal);
        figures.files += 1;
        let place = format!("file, {:?} {}", hand.habit, hand.writer.written().0);
        findings.push(Finding { place, report, equal });
    }
    findings
}

impl Finding {
    fn is_exact(&self) -> bool {
        self.report.is_exact() && self.equal
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bytes = if self.equal { "" } else { "; the bytes differ" };
        write!(f, "{}: {}{bytes}", self.place, self.report)
    }
}
