//! Does anything leak, get lost or come twice, when everything goes on at once for long?
//!
//! One agent of its own process, writers that rotate, files of a moment, a Loki with moods, SIGHUP and a watchdog.
//! `scripts/stress-test.sh --duration 2h --workers 10` is the full form, `make soak` two minutes of it; without
//! `LOG_CAPTURER_STRESS_SECONDS`, `_WORKERS` and `_OUT` it is half a minute, in the target folder.
//!
//! ```text
//! start ── quiet point ── load, a sample each second ── load ends ── all is out ── quiet point ── stop ── sets
//! ```
//!
//! What is judged compares the two quiet points, where nobody has anything to do, or holds in every sample. Slopes
//! are printed and not judged: that depends on the machine. Leaves `samples.csv`, `report.txt` and `stress.svg`.

#![expect(clippy::disallowed_methods, reason = "many programs write at the same time, and sync nothing")]

mod drawing;
mod figures;
mod load;
mod sample;

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

use crate::agent::{Agent, DEADLINE, Room, pause};
use crate::expect::{Arrived, Report};
use crate::files::bytes;
use crate::receiver::Receiver;
use drawing::{Drawing, Panel};
use figures::{Row, table};
use load::{CHURN_MAX, Churn, Hand, Heard, Load};
use sample::{Descriptors, Sample, csv_head};

const SAMPLE_EVERY: Duration = Duration::from_secs(1);

const KIB: u64 = 1024;
const MIB: u64 = 1024 * KIB;

const MEMORY_BUDGET: u64 = 16 * MIB;

/// What the agent needs whatever it is told to do: the program, stacks of some twenty threads, tables of the
/// compressors, and what the allocator keeps for each thread.
const RESIDENT_BASE: u64 = 16 * MIB;

/// A file that is followed: its row, its page in the books, the look that is served as JSON.
const RESIDENT_PER_FILE: u64 = 16 * KIB;

/// A page of the books in the checkpoint, with two sinks and its path of some 60 bytes.
const PAGE_BYTES: u64 = 700;

/// An output in the checkpoint, with its path of some 60 bytes.
const OWN_FILE_BYTES: u64 = 180;

/// The agent looks for outputs that are gone when it knows more than this and more than twice those that were
/// there at its last look.
const OWN_FILES_SWEEP: u64 = 256;

struct Orders {
    seconds: f64,
    workers: u32,
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

    /// Waits for a fact; one that does not come true is a complaint, and the run goes on to show the rest.
    fn settles(&self, what: &str, details: impl Fn() -> String, mut fact: impl FnMut() -> bool) {
        let deadline = self.clock.now() + DEADLINE;
        while !fact() {
            if self.clock.now() >= deadline || self.agent.try_exit().is_some() {
                return self.complain(format!("waited in vain until {what}: {}", details()));
            }
            pause(Duration::from_millis(50));
        }
    }

    /// The fewest of a second, since a client of the status server may still be on its way out.
    fn other_descriptors(&self) -> usize {
        let look = |_| {
            pause(Duration::from_millis(50));
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
    let room = Room::new(json!({
        "agent": { "memory_budget": format!("{}MiB", MEMORY_BUDGET / MIB) },
        "sources": [{ "type": "file", "include": ["logs/*.log", "logs/churn/*.log"] }],
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
        complaints: RefCell::default(),
    };

    let lines = || heard.lock().arrived.distinct();
    agent.until("the first line of each writer is out", || {
        lines() >= u64::from(orders.workers) && hands.iter().all(Hand::is_complete)
    });
    let others = run.other_descriptors();
    let start = run.sample("well", u64::from(orders.workers));

    let load = Load::new(&room, &agent, &receiver, seed, orders.workers);
    let (mut samples, hands, mut churn) = thread::scope(|scope| {
        let guard = EndsLoad(&load);
        let writers: Vec<_> = hands.into_iter().map(|hand| scope.spawn(|| load.write(hand))).collect();
        let churn = scope.spawn(|| load.churn());
        let moods = scope.spawn(|| load.moods());
        let samples = watch(&run, &load, orders.seconds);
        drop(guard);
        moods.join().expect("the moods end");
        let hands = writers.into_iter().map(|writer| writer.join().expect("a writer ends")).collect();
        (samples, hands, churn.join().expect("the churn ends"))
    });
    let end = quiet_end(&run, &load, &start, others, hands, &mut churn, &lines);
    let (end, hands) = end;
    samples.push(end.clone());

    let began_stop = run.clock.now();
    let code = agent.stop();
    let stopped_in = run.clock.now() - began_stop;
    if code != 0 {
        run.complain(format!("the agent ended with {code}"));
    }
    let sets = compare(&run, &hands, &mut churn, &mut heard.lock());
    judge(&run, &orders, &start, &samples);

    let report = report(&orders, &load, &start, &end, &samples, &sets, stopped_in);
    println!("\n{report}");
    fs::write(orders.out.join("report.txt"), &report).expect("a report can be written");
    fs::write(orders.out.join("stress.svg"), drawing(&orders, &samples).svg())
        .expect("a drawing can be written");
    let complaints = run.complaints.take();
    assert!(
        complaints.is_empty(),
        "{}\nthe agent said at last:\n{}",
        complaints.join("\n"),
        tail(&agent.stderr())
    );
}

/// A sample each second while the load lasts.
fn watch(run: &Run<'_>, load: &Load<'_>, seconds: f64) -> Vec<Sample> {
    let mut samples: Vec<Sample> = Vec::new();
    let began = run.at();
    let mut told = 0.0;
    while run.at() - began < seconds {
        let sample = run.sample(load.mood(), load.written.load(Ordering::Relaxed));
        if sample.at - told >= seconds / 10.0 {
            told = sample.at;
            println!(
                "{:7.0} s  {} threads  {} descriptors  {:.1} MiB  {} lines written  {} pending for loki ({})",
                sample.at,
                sample.threads,
                sample.descriptors.all(),
                sample.resident_bytes as f64 / MIB as f64,
                sample.written,
                sample.pending[0],
                sample.mood
            );
        }
        samples.push(sample);
        let next = SAMPLE_EVERY.mul_f64(samples.len() as f64).as_secs_f64() + began - run.at();
        pause(Duration::from_secs_f64(next.max(0.0)));
    }
    samples
}

/// Everything comes out, what was rotated is deleted, and nobody has anything to do.
fn quiet_end(
    run: &Run<'_>,
    load: &Load<'_>,
    start: &Sample,
    others: usize,
    mut hands: Vec<Hand>,
    churn: &mut Churn<'_>,
    lines: &dyn Fn() -> u64,
) -> (Sample, Vec<Hand>) {
    let written = load.written.load(Ordering::Relaxed);
    run.settles(
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
    run.settles("nothing is pending, and only living files are known", details, || {
        let now = Sample::take(run.agent, run.room, run.at(), "well", written);
        let living = hands.len() as u64;
        let quiet = now.pending == [0, 0] && now.budget_bytes == 0 && now.generations == living;
        let quiet = quiet && now.followed == living;
        last.replace(now);
        quiet
    });
    let pid = run.agent.pid();
    let open = || Descriptors::of(pid, run.room);
    run.settles(
        "only files that are followed and outputs that are in use are open",
        || {
            let open = open();
            let Descriptors { logs, outputs, deleted, others: now } = open;
            let paths = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
            let paths = paths.filter_map(|entry| Some(fs::read_link(entry.path()).ok()?.display().to_string()));
            format!(
                "{} descriptors: {logs} of {} followed, {outputs} outputs, {deleted} deleted, {now} others although \
                 they were {others} at the start:\n{}",
                open.all(),
                hands.len(),
                paths.collect::<Vec<_>>().join("\n")
            )
        },
        || {
            let open = open();
            open.logs <= hands.len() && open.outputs <= hands.len() && open.deleted == 0 && open.others <= others
        },
    );
    println!(
        "descriptors: {} at the quiet end; allowed are {others} as at the start + {} files followed + {} outputs",
        open().all(),
        hands.len(),
        hands.len()
    );
    let end = run.sample("well", written);
    if (end.threads, end.tasks) != (start.threads, start.tasks) {
        run.complain(format!(
            "{} threads ({} in the table) at the quiet end, {} ({}) at the start",
            end.threads, end.tasks, start.threads, start.tasks
        ));
    }
    (end, hands)
}

/// What was written against what came out, as sets. Loki and the file sink have everything once and in order.
fn compare(run: &Run<'_>, hands: &[Hand], churn: &mut Churn<'_>, heard: &mut Heard) -> String {
    churn.take_in_the_rest();
    let written: BTreeMap<u32, u64> = hands.iter().map(|hand| hand.writer.written()).collect();
    let all: BTreeMap<u32, u64> =
        written.iter().chain(&churn.written).map(|(id, lines)| (*id, *lines)).collect();
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
    if !bytes(&run.room.path("data/deadletter/deadletter.jsonl")).is_empty() {
        run.complain("there are dead letters, and nobody refused a line".into());
    }
    sets + &format!("loki was sent {} entries again that it had already\n", heard.repeats)
}

/// What holds in every sample.
fn judge(run: &Run<'_>, orders: &Orders, start: &Sample, samples: &[Sample]) {
    for pair in samples.windows(2) {
        let apart: Vec<_> = pair[0].apart.intersection(&pair[1].apart).collect();
        if !apart.is_empty() {
            run.complain(format!(
                "{:.0} s: threads {apart:?} are not in the table, or only there",
                pair[1].at
            ));
        }
    }
    let foreign = samples.iter().map(|sample| sample.foreign).max().unwrap_or(0);
    if foreign > start.foreign {
        run.complain(format!("{foreign} foreign threads, {} at the start", start.foreign));
    }
    let over = |sample: &&Sample| sample.resident_bytes > resident_ceiling(sample.followed);
    if let Some(sample) = samples.iter().find(over) {
        run.complain(format!(
            "{:.0} s: {} bytes resident, allowed are {} with {} files",
            sample.at,
            sample.resident_bytes,
            resident_ceiling(sample.followed),
            sample.followed
        ));
    }
    if let Some(end) = samples.last()
        && end.checkpoint_bytes > checkpoint_ceiling(orders, end.generations)
    {
        run.complain(format!(
            "a checkpoint of {} bytes for {} generations, allowed are {}",
            end.checkpoint_bytes,
            end.generations,
            checkpoint_ceiling(orders, end.generations)
        ));
    }
}

fn resident_ceiling(followed: u64) -> u64 {
    MEMORY_BUDGET + RESIDENT_BASE + followed * RESIDENT_PER_FILE
}

/// Living files, and the outputs that may be known: those that are there twice over, or what is never swept.
fn checkpoint_ceiling(orders: &Orders, generations: u64) -> u64 {
    let outputs = 2 * (u64::from(orders.workers) + CHURN_MAX as u64);
    KIB + generations * PAGE_BYTES + (1 + outputs.max(OWN_FILES_SWEEP)) * OWN_FILE_BYTES
}

/// Samples of the load after its first third.
fn judged<'a>(orders: &Orders, samples: &'a [Sample]) -> impl Iterator<Item = &'a Sample> + Clone {
    let from = orders.seconds / 3.0;
    samples[..samples.len().saturating_sub(1)].iter().filter(move |sample| sample.at >= from)
}

fn mib(bytes: u64) -> f64 {
    bytes as f64 / MIB as f64
}

fn report(
    orders: &Orders,
    load: &Load<'_>,
    start: &Sample,
    end: &Sample,
    samples: &[Sample],
    sets: &str,
    stopped_in: Duration,
) -> String {
    type Figure = (&'static str, usize, fn(&Sample) -> f64);
    const FIGURES: [Figure; 7] = [
        ("threads", 0, |sample| sample.threads as f64),
        ("descriptors", 0, |sample| sample.descriptors.all() as f64),
        ("  of deleted files", 0, |sample| sample.descriptors.deleted as f64),
        ("resident memory, MiB", 2, |sample| mib(sample.resident_bytes)),
        ("files followed", 0, |sample| sample.followed as f64),
        ("ledger generations", 0, |sample| sample.generations as f64),
        ("checkpoint, KiB", 1, |sample| sample.checkpoint_bytes as f64 / KIB as f64),
    ];
    let rows = FIGURES.map(|(name, digits, of)| Row {
        name,
        digits,
        start: of(start),
        end: of(end),
        points: judged(orders, samples).map(|sample| (sample.at, of(sample))).collect(),
    });
    let most = |of: fn(&Sample) -> u64| samples.iter().map(of).max().unwrap_or(0);
    let cpu = end.cpu_seconds - start.cpu_seconds;
    let (seconds, lines) = (end.at - start.at, end.written - start.written);
    format!(
        "{}\nthreads +{} from quiet point to quiet point; least squares, extrapolated from {:.0} s after the warm-up\n\
         memory: {:.1} MiB at most, allowed are {:.1} (budget {} + base {} + {} KiB for each file)\n\
         checkpoint: {} bytes at the quiet end, allowed are {}\n\
         {lines} lines of {} writers and {} rotations in {seconds:.0} s ({:.0}/s); {:.1} s of processor time \
         ({:.1} µs a line)\n\
         pending at most {} lines for loki, {} for the file; longest silence of a busy task {} ms; stopped in {:.0} ms\n\
         {sets}",
        table(&rows),
        end.threads as i64 - start.threads as i64,
        orders.seconds * 2.0 / 3.0,
        mib(most(|sample| sample.resident_bytes)),
        mib(resident_ceiling(end.followed)),
        MEMORY_BUDGET / MIB,
        RESIDENT_BASE / MIB,
        RESIDENT_PER_FILE / KIB,
        end.checkpoint_bytes,
        checkpoint_ceiling(orders, end.generations),
        orders.workers,
        load.rotations.load(Ordering::Relaxed),
        lines as f64 / seconds,
        cpu,
        cpu * 1e6 / lines as f64,
        most(|sample| sample.pending[0]),
        most(|sample| sample.pending[1]),
        most(|sample| sample.silence_ms),
        stopped_in.as_secs_f64() * 1000.0,
    )
}

fn drawing<'a>(orders: &Orders, samples: &[Sample]) -> Drawing<'a> {
    let line =
        |of: fn(&Sample) -> f64| samples.iter().map(|sample| (sample.at, of(sample))).collect::<Vec<_>>();
    let rate = |sink: usize| {
        let rate = |pair: &[Sample]| {
            let lines = pair[1].delivered[sink].saturating_sub(pair[0].delivered[sink]);
            (pair[1].at, lines as f64 / (pair[1].at - pair[0].at))
        };
        samples.windows(2).map(rate).collect::<Vec<_>>()
    };
    let ceiling = samples.last().map_or(0, |sample| resident_ceiling(sample.followed));
    let seconds = samples.last().map_or(1.0, |sample| sample.at);
    let panel = |title, lines, limit| Panel { title, lines, limit };
    Drawing {
        title: "log-capturer under stress",
        subtitle: format!(
            "{} writers that rotate, files of a moment, a Loki that is ill every four seconds; a sample each second",
            orders.workers
        ),
        seconds,
        warm_up: orders.seconds / 3.0,
        panels: vec![
            panel("threads", vec![("", line(|sample| sample.threads as f64))], None),
            panel("open descriptors", vec![("", line(|sample| sample.descriptors.all() as f64))], None),
            panel(
                "resident memory (MiB)",
                vec![("", line(|sample| mib(sample.resident_bytes)))],
                Some(("allowed", mib(ceiling))),
            ),
            panel(
                "pending (lines)",
                vec![
                    ("loki", line(|sample| sample.pending[0] as f64)),
                    ("file", line(|sample| sample.pending[1] as f64)),
                ],
                None,
            ),
            panel("delivered (lines per second)", vec![("loki", rate(0)), ("file", rate(1))], None),
        ],
    }
}

/// The last lines: hours of warnings are in nobody's interest.
fn tail(stderr: &str) -> String {
    let lines: Vec<&str> = stderr.lines().collect();
    lines[lines.len().saturating_sub(30)..].join("\n")
}
