//! The stop in every phase of the work: real hangs on loopback, real full disks, one signal, one figure.
//!
//! Each case is stopped with several values of `stop_timeout` and gives one line of a table: how long it took
//! from the signal to the exit, the exit code, and whether that is within the budget. The budget is what the
//! user was promised (`stop_timeout`, or "at once" with nothing pending) and a little for a busy machine; what
//! is asserted is ten times as much, so that only a stop that does not come fails. Afterwards the agent is
//! started with a healthy sink, and everything that was written arrives.
//!
//! `make stops` runs all of it from the release binary, with a `stop_timeout` of 10 s too, and prints the table.
//! What needs root (a resolver or a full disk of its own) is skipped without it, and says so.

mod aside;
mod disk;
mod holes;
mod moments;
mod network;
mod waiting;

use std::collections::BTreeMap;
use std::time::Duration;

use log_capturer::clock::Clock;
use serde_json::{Value, json};

use crate::agent::{Agent, DEADLINE, Room, Signal, pause};
use crate::expect::Arrived;
use crate::files::Writer;
use crate::receiver::Receiver;

/// What a busy machine may add to the promised time before the table says "over".
const SLACK: Duration = Duration::from_millis(250);

/// "At once".
const NOTHING_PENDING: Duration = Duration::from_millis(100);

/// Asserted is this many times the budget.
const PATIENCE: u32 = 10;

/// Of a time-out that must not be what ends a hang.
const LONG: &str = "5m";

/// How it has to end, and how soon.
#[derive(Clone, Copy)]
enum Ends {
    /// Exit 0, at once.
    NothingPending,
    /// Exit 0, with the time that the answers take.
    Delivered,
    /// Exit 3 within `stop_timeout`.
    Pending,
    /// Exit 3, without waiting for more than the threads take to end: a second signal, or a sink that said no.
    PendingAtOnce,
    /// Exit 0 or 3: it depends on how far it was.
    Either,
    /// 3 before the first look is over: nobody knows what there is to deliver.
    EitherAtOnce,
    /// Exit 1 within `stop_timeout`: where it stands could not be written down. 3, once a full disk cannot reach it.
    NotWritten,
    /// The same, with nothing pending.
    NotWrittenAtOnce,
}

/// One phase with one `stop_timeout`.
struct Case {
    phase: &'static str,
    stop_timeout: Duration,
}

fn is_full() -> bool {
    std::env::var_os("LOG_CAPTURER_STOPS_FULL").is_some()
}

fn cases(phase: &'static str) -> Vec<Case> {
    let timeouts_ms: &[u64] = if is_full() { &[300, 1_000, 10_000] } else { &[300, 1_000] };
    let case = |ms: &u64| Case { phase, stop_timeout: Duration::from_millis(*ms) };
    timeouts_ms.iter().map(case).collect()
}

/// Runs `body` once for each `stop_timeout`, one after the other.
fn each(phase: &'static str, body: impl Fn(&Case)) {
    cases(phase).iter().for_each(body);
}

/// The same, for phases that do nothing but wait: beside each other, unless it is for the figures.
#[expect(clippy::disallowed_methods, reason = "two agents that wait, and a test for each")]
fn each_waiting(phase: &'static str, body: impl Fn(&Case) + Sync) {
    if is_full() {
        return each(phase, body);
    }
    std::thread::scope(|scope| {
        let body = &body;
        cases(phase).into_iter().for_each(|case| drop(scope.spawn(move || body(&case))));
    });
}

impl Case {
    /// All logs below `logs/`, to these sinks.
    fn config(&self, sinks: Value) -> Value {
        json!({
            "agent": { "stop_timeout": format!("{}ms", self.stop_timeout.as_millis()) },
            "status": { "listen": "127.0.0.1:0" },
            "sources": [{ "type": "file", "include": ["logs/**/*.log"] }],
            "sinks": sinks,
        })
    }

    /// SIGTERM, and a line of the table.
    #[track_caller]
    fn stop(&self, agent: &Agent, ends: Ends) {
        self.measure(agent, ends, || agent.signal(Signal::TERM));
    }

    /// `signals`: from the first one on, the time counts.
    #[track_caller]
    fn measure(&self, agent: &Agent, ends: Ends, signals: impl FnOnce()) {
        let clock = Clock::real();
        let began = clock.now();
        signals();
        let code = loop {
            if let Some(code) = agent.try_exit() {
                break code;
            }
            assert!(clock.now() < began + DEADLINE, "{}: no end\n{}", self.phase, agent.stderr());
            pause(Duration::from_millis(1));
        };
        self.row(clock.now() - began, code, ends, &agent.stderr());
    }

    /// A reload instead of a stop: until it says `words`.
    #[track_caller]
    fn measure_until(&self, agent: &Agent, begin: impl FnOnce(), words: &str) {
        let clock = Clock::real();
        let began = clock.now();
        begin();
        agent.until(words, || agent.stderr().contains(words));
        self.line(clock.now() - began, "-", self.stop_timeout + SLACK, &agent.stderr());
    }

    /// The line, and what is demanded.
    #[track_caller]
    fn row(&self, took: Duration, code: i32, ends: Ends, stderr: &str) {
        let (codes, budget): (&[i32], _) = match ends {
            Ends::NothingPending => (&[0], NOTHING_PENDING),
            Ends::Delivered => (&[0], self.stop_timeout + SLACK),
            Ends::Pending => (&[3], self.stop_timeout + SLACK),
            Ends::PendingAtOnce => (&[3], SLACK),
            Ends::Either => (&[0, 3], self.stop_timeout + SLACK),
            Ends::EitherAtOnce => (&[0, 3], NOTHING_PENDING),
            Ends::NotWritten => (&[1, 3], self.stop_timeout + SLACK),
            Ends::NotWrittenAtOnce => (&[0, 1], NOTHING_PENDING),
        };
        assert!(codes.contains(&code), "{}: exit code {code}, not {codes:?}\n{stderr}", self.phase);
        self.line(took, &code.to_string(), budget, stderr);
    }

    #[track_caller]
    fn line(&self, took: Duration, exit: &str, budget: Duration, stderr: &str) {
        println!(
            "stop | {:<52} | {:>5} ms | {:>8.1} ms | exit {exit} | {:>5} ms | {}",
            self.phase,
            self.stop_timeout.as_millis(),
            took.as_secs_f64() * 1000.0,
            budget.as_millis(),
            if took <= budget { "ok" } else { "OVER" },
        );
        assert!(took <= budget * PATIENCE, "{}: {took:?}, the budget is {budget:?}\n{stderr}", self.phase);
    }
}

/// A Loki at this address, which is sent small batches at once and given all the time in the world.
fn loki(url: &str) -> Value {
    json!({ "type": "loki", "url": url, "timeout": LONG, "batch": { "max_wait": "10ms" } })
}

fn out() -> Value {
    json!({ "type": "file", "path": "out.txt" })
}

fn room(config: &Value) -> Room {
    Room::new(config.clone())
}

/// The next life has a Loki that is well: everything arrives there, once and in order.
#[track_caller]
fn arrives_at_last(case: &Case, room: &Room, others: &[Value], writers: &[&Writer]) {
    let receiver = Receiver::start();
    let mut sinks = vec![loki(&receiver.url())];
    sinks.extend_from_slice(others);
    room.configure(&case.config(Value::from(sinks)).to_string());
    let (code, stderr) = room.run_once();
    assert_eq!(code, 0, "{}: {stderr}", case.phase);
    receiver.arrived().compare(&written(writers)).assert_exact();
}

/// One more life with the same sinks: afterwards `out.txt` has everything, once.
#[track_caller]
fn is_in_the_file_at_last(room: &Room, writers: &[&Writer]) {
    let (code, stderr) = room.run_once();
    assert_eq!(code, 0, "{stderr}");
    Arrived::in_file(&room.path("out.txt")).compare(&written(writers)).assert_exact();
}

fn written(writers: &[&Writer]) -> BTreeMap<u32, u64> {
    writers.iter().map(|writer| writer.written()).collect()
}

/// What a thread of the agent does just now, in its own words. Empty: it has not started yet.
fn doing(agent: &Agent, task: &str) -> String {
    let (_, body) = agent.get("/api/v1/tasks");
    let tasks: Value = serde_json::from_str(&body).expect("the tasks are JSON");
    let tasks = tasks.as_array().or_else(|| tasks["tasks"].as_array()).expect("the tasks are a list");
    let row = tasks.iter().find(|row| row["name"] == task);
    row.map_or_else(String::new, |row| row["doing"].as_str().expect("what it does is a text").to_owned())
}
