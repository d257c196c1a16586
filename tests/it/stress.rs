//! Does anything leak, get lost or come twice, when everything goes on at once for long?
//!
//! One agent of its own process, writers that rotate, files of a moment, containers if an engine can run here, a Loki
//! with moods, reloads and a watchdog.
//! `scripts/stress-test.sh --duration 2h --workers 10` is the full form, `make soak` two minutes of it; without
//! `LOG_CAPTURER_STRESS_SECONDS`, `_WORKERS` and `_OUT` it is half a minute, in the target folder.
//!
//! ```text
//! start ── quiet point ── load, a sample each second, and every now and then a pause until all is out: a quiet point
//!       ── load ends ── all is out ── quiet point ── stop ── sets
//! ```
//!
//! What is judged compares the quiet points, where nobody has anything to do, or holds in every sample. Threads and
//! descriptors are the same at all of them; live heap bytes, which an agent with the feature `heap` tells (the script
//! builds one), have a slope over them. All other slopes are printed and not judged: that depends on the machine. Leaves `samples.csv`, `report.txt` and `stress.svg`.

#![expect(clippy::disallowed_methods, reason = "many programs write at the same time, and sync nothing")]

mod drawing;
mod figures;
pub mod load;
mod report;
mod sample;
mod vessels;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::{Duration, Instant};

use log_capturer::clock::Clock;
use parking_lot::Mutex;
use serde_json::json;

use crate::agent::{Agent, DEADLINE, Room, Signal, pause};
use crate::docker::engine::Engine;
use crate::expect::{Arrived, Report};
use crate::files::bytes;
use crate::receiver::Receiver;
use load::{Churn, Hand, Heard, Load};
use report::{MEMORY_BUDGET, MIB, Outcome, mib};
use sample::{Descriptors, Sample, csv_head, heap_bytes, metric};
use vessels::{CONTAINERS_MOST, Vessels};

const SAMPLE_EVERY: Duration = Duration::from_secs(1);

/// Enough to see a pattern.
const DESCRIPTORS_NAMED: usize = 60;

/// Of the load, from one quiet point to the next: some twenty in a run, in reason.
fn quiet_every(seconds: f64) -> f64 {
    (seconds / 20.0).clamp(8.0, 300.0)
}

/// The first comes after the first one, while Loki is ill, and another one after the second, while it is well: so
/// there are both in half a minute, too.
const QUIET_POINTS_PER_RELOAD: usize = 5;

/// Of the journals of ledger and file sink, and the spools of both sinks, that may be open while nobody does anything.
const SEGMENTS_MOST: usize = 12;

const LOOK_EVERY: Duration = Duration::from_millis(50);

pub struct Orders {
    pub seconds: f64,
    pub workers: u32,
    out: PathBuf,
}

impl Orders {
    fn from_environment() -> Orders {
        let asked = |name: &str| std::env::var(format!("LOG_CAPTURER_STRESS_{name}")).ok();
        let number = |name: &str, default: f64| {
            asked(name).map_or(default, |text| {
                text.parse().unwrap_or_else(|_| panic!("LOG_CAPTURER_STRESS_{name} is a number, not {text}"))
            })
        };
        let out =
            asked("OUT").map_or_else(|| Path::new(env!("CARGO_TARGET_TMPDIR")).join("stress"), PathBuf::from);
        Orders { seconds: number("SECONDS", 30.0), workers: number("WORKERS", 10.0) as u32, out }
    }
}

/// The run as it goes on: its samples, and what was found wrong.
struct Run<'a> {
    room: &'a Room,
    agent: &'a Agent,
    began: Instant,
    clock: Clock,
    csv: RefCell<File>,
    /// One each second, from the start of the load to the quiet end.
    samples: RefCell<Vec<Sample>>,
    /// At the quiet points in between.
    quiet: RefCell<Vec<Sample>>,
    complaints: RefCell<Vec<String>>,
}

impl Run<'_> {
    fn complain(&self, what: String) {
        println!("WRONG: {what}");
        self.complaints.borrow_mut().push(what);
    }

    fn at(&self) -> f64 {
        (self.clock.now() - self.began).as_secs_f64()
    }

    fn sample(&self, mood: &'static str, written: u64) -> Sample {
        assert_eq!(self.agent.try_exit(), None, "the agent has ended; it said:\n{}", self.agent.stderr());
        let sample = Sample::take(self.agent, self.room, self.at(), mood, written);
        writeln!(self.csv.borrow_mut(), "{}", sample.csv()).expect("samples can be written");
        sample
    }

    /// Keeps a sample if the last one is a second old.
    fn sample_when_due(&self, load: &Load<'_>) {
        let last = self.samples.borrow().last().map_or(f64::NEG_INFINITY, |sample| sample.at);
        if self.at() - last >= SAMPLE_EVERY.as_secs_f64() {
            let sample = self.sample(load.mood(), load.written.load(Ordering::Relaxed));
            self.samples.borrow_mut().push(sample);
        }
    }

    /// Waits for a fact; one that does not come true is a complaint, and the run goes on to show the rest.
    fn settles(
        &self,
        load: &Load<'_>,
        what: &str,
        details: impl Fn() -> String,
        mut fact: impl FnMut() -> bool,
    ) {
        let deadline = self.clock.now() + DEADLINE;
        while !fact() {
            if self.clock.now() >= deadline {
                return self.complain(format!("waited in vain until {what}: {}", details()));
            }
            self.sample_when_due(load);
            pause(LOOK_EVERY);
        }
    }

    /// The fewest of a second, since a client of the status server may still be on its way out.
    fn other_descriptors(&self) -> usize {
        let look = |_| {
            pause(LOOK_EVERY);
            Descriptors::of(self.agent.pid(), self.room).others
        };
        (0..20).map(look).min().unwrap_or(0)
    }
}

/// Ends the load also when the sampler panics, or nobody would ever join the hands.
struct EndsLoad<'a, 'b>(&'a Load<'b>);

impl Drop for EndsLoad<'_, '_> {
    fn drop(&mut self) {
        self.0.end();
    }
}

#[test]
fn a_stress_run() {
    let orders = Orders::from_environment();
    fs::create_dir_all(&orders.out).expect("a folder can be made");
    let heard = Arc::new(Mutex::new(Heard::default()));
    let receiver = Receiver::start_telling({
        let heard = heard.clone();
        move |entry| heard.lock().hear(&entry)
    });
    let engine = Engine::start("stress::a_stress_run, its containers");
    let files = json!({ "type": "file", "include": ["logs/*.log", "logs/churn/*.log"] });
    let containers = engine.as_ref().map(|engine| json!({ "type": "docker", "socket": engine.socket() }));
    let sources: Vec<_> = [files].into_iter().chain(containers).collect();
    let room = Room::new(json!({
        "agent": { "memory_budget": format!("{}MiB", MEMORY_BUDGET / MIB) },
        "sources": sources,
        "sinks": [
            { "type": "loki", "name": "loki", "url": receiver.url(), "timeout": "2s", "retry": { "max": "1s" } },
            { "type": "file", "name": "file", "path": "out/{file}" },
        ],
    }));
    let seed = fastrand::u64(..);
    println!(
        "stress: {} writers for {} s, seed {seed:#x}; figures below {}",
        orders.workers,
        orders.seconds,
        orders.out.display()
    );
    let hands: Vec<Hand> = (0..orders.workers).map(|id| Hand::new(&room, id)).collect();
    fs::create_dir_all(room.path("logs/churn")).expect("a folder can be made");
    let agent = room.run();
    let clock = Clock::real();
    let mut csv = File::create(orders.out.join("samples.csv")).expect("samples can be written");
    writeln!(csv, "{}", csv_head()).expect("samples can be written");
    let run = Run {
        room: &room,
        agent: &agent,
        began: clock.now(),
        clock,
        csv: RefCell::new(csv),
        samples: RefCell::default(),
        quiet: RefCell::default(),
        complaints: RefCell::default(),
    };

    let lines = || heard.lock().arrived.distinct();
    agent.until("the first line of each writer is out", || {
        lines() >= u64::from(orders.workers) && hands.iter().all(Hand::is_complete)
    });
    if engine.is_some() {
        agent.until("the engine was met", || agent.stderr().contains("Docker, API"));
    }
    let others = run.other_descriptors();
    let start = run.sample("well", u64::from(orders.workers));

    let load = Load::new(&room, &receiver, seed, orders.workers, engine.is_some());
    let (load_ended, hands, mut churn, mut vessels) = thread::scope(|scope| {
        let guard = EndsLoad(&load);
        let writers: Vec<_> = hands.into_iter().map(|hand| scope.spawn(|| load.write(hand))).collect();
        let churn = scope.spawn(|| load.churn());
        let vessels = engine.as_ref().map(|engine| scope.spawn(|| Vessels::new(&load, engine).run()));
        let moods = scope.spawn(|| load.moods());
        let load_ended = watch(&run, &load, orders.seconds, others, &lines);
        drop(guard);
        moods.join().expect("the moods end");
        let hands = writers.into_iter().map(|writer| writer.join().expect("a writer ends")).collect();
        let vessels = vessels.map(|vessels| vessels.join().expect("the containers end"));
        (load_ended, hands, churn.join().expect("the churn ends"), vessels)
    });
    let hands = quiet_end(&run, &load, others, hands, (&mut churn, vessels.as_mut()), &lines);
    let end = run.sample("well", load.written.load(Ordering::Relaxed));
    run.samples.borrow_mut().push(end.clone());

    let began_stop = run.clock.now();
    let code = agent.stop();
    let stopped_in = run.clock.now() - began_stop;
    if code != 0 {
        run.complain(format!("the agent ended with {code}"));
    }
    for line in agent.stderr().lines().filter(|line| line.contains("something leaks")) {
        run.complain(format!("its own watch says: {line}"));
    }
    let sets = compare(&run, &hands, (&mut churn, vessels.as_ref()), &mut heard.lock());
    let outcome = Outcome {
        start: &start,
        end: &end,
        samples: &run.samples.take(),
        quiet: &run.quiet.take(),
        warm_up_ended: start.at + orders.seconds / 3.0,
        load_ended,
        workers: orders.workers,
        containers: if engine.is_some() { CONTAINERS_MOST as u64 } else { 0 },
        rotations: load.rotations.load(Ordering::Relaxed),
        stopped_in,
    };
    outcome.complaints().into_iter().for_each(|complaint| run.complain(complaint));
    let report = outcome.report() + &sets;
    println!("\n{report}");
    fs::write(orders.out.join("report.txt"), &report).expect("a report can be written");
    fs::write(orders.out.join("stress.svg"), outcome.drawing().svg()).expect("a drawing can be written");
    let complaints = run.complaints.take();
    assert!(
        complaints.is_empty(),
        "{}\nthe agent said at last:\n{}",
        complaints.join("\n"),
        tail(&agent.stderr())
    );
}

/// A sample each second while the load lasts, quiet points in between, and a word of it now and then. Returns when
/// it ended.
fn watch(run: &Run<'_>, load: &Load<'_>, seconds: f64, others: usize, lines: &dyn Fn() -> u64) -> f64 {
    let (began, mut told, mut resumed) = (run.at(), 0, run.at());
    while run.at() - began < seconds {
        run.sample_when_due(load);
        if run.at() - resumed >= quiet_every(seconds) {
            load.pause();
            quiet_point(run, load, others, lines);
            load.resume();
            let turn = run.quiet.borrow().len() % QUIET_POINTS_PER_RELOAD;
            if turn == 2 {
                reload(run, load);
            }
            load.fall_ill();
            if turn == 1 {
                run.settles(load, "Loki is ill", String::new, || load.mood() != "well");
                reload(run, load);
            }
            resumed = run.at();
        }
        let tenth = ((run.at() - began) / seconds * 10.0) as usize;
        if let Some(sample) = run.samples.borrow().last().filter(|_| tenth > told) {
            told = tenth;
            println!(
                "{:7.0} s  {} threads  {} descriptors  {:.1} MiB  {} lines written  {} pending for loki ({})",
                sample.at,
                sample.threads,
                sample.descriptors.all(),
                mib(sample.resident_bytes),
                sample.written,
                sample.pending[0],
                sample.mood
            );
        }
        pause(LOOK_EVERY);
    }
    run.at()
}

/// The configuration is the same: what changes is the life.
fn reload(run: &Run<'_>, load: &Load<'_>) {
    let done = || metric(run.agent, "reloads_total{result=\"done\"}");
    let before = done();
    run.agent.signal(Signal::HUP);
    run.settles(load, "the agent has reloaded", String::new, || done() > before);
}

/// Whether nothing is under way and only the logs of the writers are known.
fn is_quiet(now: &Sample, living: u64) -> bool {
    now.pending == [0, 0] && now.budget_bytes == 0 && now.generations == living && now.followed == living
}

/// In a pause: everything comes out, and what is held then is kept.
fn quiet_point(run: &Run<'_>, load: &Load<'_>, others: usize, lines: &dyn Fn() -> u64) {
    let written = || load.written.load(Ordering::Relaxed);
    run.settles(load, "everything has come out in a pause", String::new, || {
        load.is_calm() && lines() >= written()
    });
    let last = RefCell::new(Sample::default());
    let details = || format!("pending {:?}, budget {}", last.borrow().pending, last.borrow().budget_bytes);
    run.settles(load, "nothing is pending in a pause", details, || {
        let open = Descriptors::of(run.agent.pid(), run.room);
        let now = Sample::take(run.agent, run.room, run.at(), load.mood(), written());
        let quiet = is_quiet(&now, u64::from(load.workers))
            && open.deleted == 0
            && open.segments <= SEGMENTS_MOST
            && open.others <= others;
        last.replace(Sample { descriptors: open, ..now });
        quiet
    });
    // The least of a few: whoever writes a checkpoint meanwhile gives back what it takes.
    let least = (0..10).filter_map(|_| {
        pause(LOOK_EVERY);
        heap_bytes(run.agent)
    });
    let heap_bytes = least.min();
    run.quiet.borrow_mut().push(Sample { heap_bytes, ..last.take() });
}

/// Everything comes out, what was rotated is deleted, and nobody has anything to do.
fn quiet_end(
    run: &Run<'_>,
    load: &Load<'_>,
    others: usize,
    mut hands: Vec<Hand>,
    (churn, mut vessels): (&mut Churn<'_>, Option<&mut Vessels<'_>>),
    lines: &dyn Fn() -> u64,
) -> Vec<Hand> {
    // The containers first: what they have written is counted when they have ended.
    run.settles(load, "the containers have come out", String::new, || {
        vessels.as_mut().is_none_or(|vessels| {
            vessels.clean_up();
            vessels.is_complete()
        })
    });
    let outputs = hands.len() + usize::from(vessels.is_some());
    let written = load.written.load(Ordering::Relaxed);
    run.settles(
        load,
        "everything has come out",
        || format!("{} of {written} lines at Loki", lines()),
        || {
            churn.clean_up();
            lines() >= written && churn.is_complete() && hands.iter().all(Hand::is_complete)
        },
    );
    hands.iter_mut().for_each(Hand::clean_up);
    let last = RefCell::new(Sample::default());
    let details = || {
        let last = last.borrow();
        let (pending, generations, followed) = (last.pending, last.generations, last.followed);
        format!("pending {pending:?}, {generations} generations, {followed} files followed")
    };
    run.settles(load, "nothing is pending, and only living files are known", details, || {
        let now = Sample::take(run.agent, run.room, run.at(), "well", written);
        let quiet = is_quiet(&now, hands.len() as u64);
        last.replace(now);
        quiet
    });
    let pid = run.agent.pid();
    let open = || Descriptors::of(pid, run.room);
    run.settles(
        load,
        "only files that are followed and outputs that are in use are open",
        || {
            let open = open();
            let Descriptors { logs, outputs, deleted, segments, others: now } = open;
            let paths = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
            let paths = paths.filter_map(|entry| Some(fs::read_link(entry.path()).ok()?.display().to_string()));
            format!(
                "{} descriptors: {logs} of {} followed, {outputs} outputs, {deleted} deleted, {segments} segments, {now} others although \
                 they were {others} at the start:\n{}",
                open.all(),
                hands.len(),
                paths.take(DESCRIPTORS_NAMED).collect::<Vec<_>>().join("\n")
            )
        },
        || {
            let open = open();
            let few = |open: &Descriptors| open.logs <= hands.len() && open.outputs <= outputs;
            few(&open) && open.deleted == 0 && open.segments <= SEGMENTS_MOST && open.others <= others
        },
    );
    println!(
        "descriptors: {} at the quiet end; allowed are {others} as at the start + {} files followed + {outputs} outputs",
        open().all(),
        hands.len(),
    );
    hands
}

/// What was written against what came out, as sets. Loki and the file sink have everything once and in order.
fn compare(
    run: &Run<'_>,
    hands: &[Hand],
    (churn, vessels): (&mut Churn<'_>, Option<&Vessels<'_>>),
    heard: &mut Heard,
) -> String {
    churn.take_in_the_rest();
    let written: BTreeMap<u32, u64> = hands.iter().map(|hand| hand.writer.written()).collect();
    let of_containers = vessels.iter().flat_map(|vessels| &vessels.written);
    let all = written.iter().chain(&churn.written).chain(of_containers);
    let all: BTreeMap<u32, u64> = all.map(|(id, lines)| (*id, *lines)).collect();
    let mut sets = String::new();
    let mut note = |place: &str, report: Report| {
        if !report.is_exact() {
            run.complain(format!("{place}: {report}"));
        }
        sets += &format!("{place}: {report}\n");
    };
    note("loki", heard.arrived.compare(&all));
    for hand in hands {
        let (id, lines) = hand.writer.written();
        let report = Arrived::in_file(&hand.output).compare(&BTreeMap::from([(id, lines)]));
        note(&format!("file, writer {id}"), report);
    }
    note("file, files of a moment", churn.arrived.compare(&churn.written));
    if let Some(Vessels { arrived, written, .. }) = vessels {
        note(&format!("file, {} containers", written.len()), arrived.compare(written));
    }
    if !bytes(&run.room.path("data/deadletter/deadletter.jsonl")).is_empty() {
        run.complain("there are dead letters, and nobody refused a line".into());
    }
    sets + &format!("loki was sent {} entries again that it had already\n", heard.repeats)
}

/// The last lines: hours of warnings are in nobody's interest.
fn tail(stderr: &str) -> String {
    let lines: Vec<&str> = stderr.lines().collect();
    lines[lines.len().saturating_sub(30)..].join("\n")
}
