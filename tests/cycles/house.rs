//! The instruments: an agent in a thread of this process, and what `/proc` and the allocator say of it.

#![expect(clippy::disallowed_methods, reason = "the agent's main needs a thread, and logs need no sync")]

use std::collections::BTreeSet;
use std::fmt;
use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use crossbeam_channel::{Sender, bounded, never};
use log_capturer::agent::{self, Exit, Load, Orders};
use log_capturer::clock::Clock;
use log_capturer::config::Config;
use parking_lot::Mutex;
use serde_json::Value;

use crate::HEAP;

/// Only a test that fails waits for it.
const DEADLINE: Duration = Duration::from_secs(60);

/// Waits for a fact, and panics with `what` and `details` when it does not come true.
#[track_caller]
pub fn until(what: &str, details: impl Fn() -> String, mut fact: impl FnMut() -> bool) {
    let clock = Clock::real();
    let end = clock.now() + DEADLINE;
    while !fact() {
        assert!(clock.now() < end, "waited {DEADLINE:?} in vain until {what}\n{}", details());
        let _ = never::<()>().recv_timeout(Duration::from_millis(2)); // `after` would take memory each time
    }
}

/// What the agent has said that a test wants to know.
struct Ear {
    address: Mutex<Option<String>>,
    errors: Mutex<Vec<String>>,
}

static EAR: Ear = Ear { address: Mutex::new(None), errors: Mutex::new(Vec::new()) };

impl log::Log for Ear {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &log::Record<'_>) {
        let text = record.args().to_string();
        if let Some(address) = text.strip_prefix("status: listening on http://") {
            *self.address.lock() = Some(address.to_owned());
        }
        if record.level() == log::Level::Error {
            self.errors.lock().push(text);
        }
    }

    fn flush(&self) {}
}

/// Once per process, before the first agent.
pub fn listen_to_the_log() {
    log::set_logger(&EAR).expect("nobody else listens");
    log::set_max_level(log::LevelFilter::Info);
}

/// parking_lot makes its table of parked threads at the first contention and makes a larger one, beside the old,
/// when there were more threads at once: a leak that is bounded by the most threads ever, and would come at a
/// random moment. So that it comes now: more threads than an agent has, all parked.
pub fn grow_the_parking_lot() {
    const THREADS: usize = 64;
    let (parked, all) = (Mutex::new(0), parking_lot::Condvar::new());
    let park = || {
        let mut parked = parked.lock();
        *parked += 1;
        all.notify_all();
        all.wait_while(&mut parked, |parked| *parked < THREADS);
    };
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..THREADS).map(|_| scope.spawn(park)).collect();
        // The end of a scope does not wait until the kernel has forgotten them.
        threads.into_iter().for_each(|thread| thread.join().expect("parking does not fail"));
    });
}

/// A life ends while a client connects once; not so often in a row.
const ASKED_MOST: usize = 3;

/// An agent that runs.
pub struct Life {
    stop: Sender<()>,
    main: JoinHandle<Exit>,
    main_tid: i32,
    address: String,
}

impl Life {
    /// `config`: JSON, relative paths below `folder`. A reload reads `next.json` there. Returns once it has said where
    /// its status server is.
    pub fn start(config: &str, folder: &Path) -> Life {
        let config = Config::parse(config, folder, &|_| None).expect("the configuration is right");
        let home = folder.to_owned();
        let next = move || {
            let text = fs::read_to_string(home.join("next.json")).expect("the test has written it");
            Config::parse(&text, &home, &|_| None)
        };
        *EAR.address.lock() = None;
        let (stop, stop_end) = bounded(1);
        let (hello, hello_end) = bounded(1);
        let main = std::thread::spawn(move || {
            hello.send(tid()).expect("the test waits for it");
            let stop = Some(stop_end);
            let reload: Option<Load> = Some(Arc::new(next));
            agent::run(
                config,
                &Orders { once: false, max_time: None, signals: false, reload, progress: None, stop },
            )
        });
        let main_tid = hello_end.recv().expect("a thread says hello");
        until("the status server listens", errors, || EAR.address.lock().is_some());
        let address = EAR.address.lock().take().expect("it was there");
        Life { stop, main, main_tid, address }
    }

    /// Nothing of it is left when this returns; that is what the tests are about.
    pub fn stop(self) -> Exit {
        drop(self.stop);
        self.main.join().expect("the agent's main does not panic")
    }

    /// A page of its status server.
    pub fn get(&self, path: &str) -> String {
        let (code, body) = self.ask("GET", path);
        assert_eq!(code, 200, "{path}: {body}");
        body
    }

    /// Its status code.
    pub fn post(&self, path: &str) -> u16 {
        self.ask("POST", path).0
    }

    /// Once more if it was sent away without an answer: it had connected and not asked yet when a life ended.
    fn ask(&self, method: &str, path: &str) -> (u16, String) {
        let answers = (0..ASKED_MOST).map(|_| self.ask_once(method, path));
        let answer = answers.into_iter().find(|answer| !answer.is_empty());
        let answer = answer.unwrap_or_else(|| panic!("{path}: no answer to {ASKED_MOST} requests"));
        let (head, body) = answer.split_once("\r\n\r\n").expect("an answer has a head");
        let code = head.split(' ').nth(1).and_then(|code| code.parse().ok());
        (code.unwrap_or_else(|| panic!("{path}: {answer}")), body.to_owned())
    }

    fn ask_once(&self, method: &str, path: &str) -> String {
        let mut stream = TcpStream::connect(&self.address).expect("it listens");
        let request = format!("{method} {path} HTTP/1.1\r\nHost: {}\r\n\r\n", self.address);
        let mut answer = String::new();
        let told = stream.write_all(request.as_bytes()).and_then(|()| stream.read_to_string(&mut answer));
        if let Err(cause) = told {
            assert!(
                cause.kind() == ErrorKind::ConnectionReset || cause.kind() == ErrorKind::BrokenPipe,
                "{cause}"
            );
        }
        answer
    }

    pub fn json(&self, path: &str) -> Value {
        serde_json::from_str(&self.get(path)).expect("it is JSON")
    }
}

/// What it complained about so far.
pub fn errors() -> String {
    EAR.errors.lock().join("\n")
}

fn tid() -> i32 {
    rustix::thread::gettid().as_raw_nonzero().get()
}

fn numbers_in(folder: &str) -> BTreeSet<i32> {
    let entries = fs::read_dir(folder).expect("it can be listed");
    entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok()).collect()
}

/// What a process holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Held {
    pub threads: usize,
    pub descriptors: usize,
    pub heap: Heap,
}

/// Bytes that were asked for and not given back, and in how many pieces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Heap {
    pub bytes: usize,
    pub blocks: usize,
}

/// What may still come in one life, once each and at any time: a channel takes 96 bytes when somebody first waits
/// at one of its ends, and a queue doubles when more wait in it than ever before.
pub const ONCE: Heap = Heap { bytes: 4096, blocks: 16 };

impl Held {
    pub fn now() -> Held {
        let threads = numbers_in("/proc/self/task").len();
        let descriptors = numbers_in("/proc/self/fd").len() - 1; // its own
        Held { threads, descriptors, heap: Heap::now() }
    }

    /// Once it has stayed the same for a while: the last client of the status server takes a moment to be gone.
    pub fn settled() -> Held {
        const LOOKS: usize = 50;
        let (mut last, mut same) = (Held::now(), 0);
        until("nothing moves", errors, || {
            let held = Held::now();
            same = if held == last { same + 1 } else { 0 };
            last = held;
            same >= LOOKS
        });
        last
    }
}

impl Heap {
    pub fn now() -> Heap {
        let stats = HEAP.stats();
        Heap {
            bytes: stats.bytes_allocated - stats.bytes_deallocated,
            blocks: stats.allocations - stats.deallocations,
        }
    }
}

impl fmt::Display for Heap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes in {} blocks", self.bytes, self.blocks)
    }
}

/// Where each descriptor leads: for a message.
pub fn descriptors() -> String {
    let lead = |fd: &i32| {
        let to = fs::read_link(format!("/proc/self/fd/{fd}")).ok()?;
        Some(format!("{fd} -> {}", to.display()))
    };
    numbers_in("/proc/self/fd").iter().filter_map(lead).collect::<Vec<_>>().join("\n")
}

/// `VmRSS` or `VmHWM`, in KiB.
pub fn memory_kib(field: &str) -> u64 {
    let status = fs::read_to_string("/proc/self/status").expect("it can be read");
    let line = status.lines().find_map(|line| line.strip_prefix(field)).expect("Linux says it");
    line.trim_matches(|c: char| !c.is_ascii_digit()).parse().expect("a number")
}

/// The threads of the kernel against the threads of the table, by id.
pub struct Census {
    /// The test's own.
    others: BTreeSet<i32>,
    /// What the last sample saw on one side only.
    suspects: BTreeSet<i32>,
    pub samples: u64,
    /// The most threads that an agent ever had.
    pub most: usize,
}

impl Census {
    /// Before the first agent.
    pub fn new() -> Census {
        let others = numbers_in("/proc/self/task");
        Census { others, suspects: BTreeSet::new(), samples: 0, most: 0 }
    }

    /// The table is asked before and after the kernel: whoever stands in both answers was there all the while, and
    /// whoever begins in between stands in the second. A difference counts when the next sample shows it, too. One
    /// that is starting may not have told the table its id yet.
    #[track_caller]
    pub fn sample(&mut self, life: &Life) {
        let (before, _) = rows(life);
        let kernel: BTreeSet<i32> = numbers_in("/proc/self/task").difference(&self.others).copied().collect();
        let (after, tasks) = rows(life);
        let starting = after.iter().filter(|id| **id == 0).count();
        let known = |id: &i32| before.contains(id) || after.contains(id);
        let unknown: Vec<i32> = kernel.iter().filter(|id| !known(id)).copied().collect();
        let mut differ: BTreeSet<i32> =
            before.iter().filter(|id| after.contains(id) && !kernel.contains(id)).copied().collect();
        differ.remove(&0);
        if unknown.len() > starting {
            differ.extend(unknown);
        }
        let twice: Vec<_> = differ.intersection(&self.suspects).collect();
        assert!(
            twice.is_empty(),
            "threads {twice:?} stand on one side only\nkernel {kernel:?}\ntable {tasks:#}"
        );
        self.suspects = differ;
        self.samples += 1;
        self.most = self.most.max(kernel.len());
    }
}

/// The ids of the threads in the table that are not over, that of `main` too, and the table.
fn rows(life: &Life) -> (Vec<i32>, Value) {
    let tasks = life.json("/api/v1/tasks");
    let over = |task: &&Value| matches!(task["state"].as_str(), Some("finished" | "failed"));
    let rows = tasks.as_array().expect("tasks are a list").iter().filter(|task| !over(task));
    let ids = rows.filter_map(|task| i32::try_from(task["tid"].as_i64()?).ok());
    (ids.chain([life.main_tid]).collect(), tasks)
}

/// Numbered lines that arrived somewhere, a byte of room for each, taken at once.
pub struct Tally {
    seen: Vec<u8>,
    distinct: u64,
    strange: u64,
}

impl Tally {
    pub fn new(lines: u64) -> Tally {
        Tally { seen: vec![0; lines as usize], distinct: 0, strange: 0 }
    }

    pub fn distinct(&self) -> u64 {
        self.distinct
    }

    pub fn line(&mut self, line: &[u8]) {
        let line = line.strip_suffix(b"\n").unwrap_or(line);
        let number =
            std::str::from_utf8(line).ok().and_then(|line| line.split(' ').next()?.parse::<u64>().ok());
        let whole = number.filter(|number| text_of(*number).as_bytes() == [line, b"\n"].concat());
        match whole.and_then(|number| self.seen.get_mut(number as usize)) {
            None => self.strange += 1,
            Some(seen) => {
                self.distinct += u64::from(*seen == 0);
                *seen = seen.saturating_add(1);
            }
        }
    }

    #[track_caller]
    pub fn assert_exact(&self, place: &str, lines: u64) {
        let (written, never) = self.seen.split_at(lines as usize);
        let first = |what: &dyn Fn(&u8) -> bool| written.iter().position(what);
        let (lost, doubled) = (first(&|seen| *seen == 0), first(&|seen| *seen > 1));
        assert_eq!(
            (lost, doubled, self.strange),
            (None, None, 0),
            "{place}: first lost, first doubled, damaged"
        );
        assert!(never.iter().all(|seen| *seen == 0), "{place}: a line that nobody wrote");
    }
}

/// Line `number`, some hundred bytes with its line end.
pub fn text_of(number: u64) -> String {
    format!(
        "{number:08} a line like many, as long as each, number {number:08} of those that this test has written\n"
    )
}

/// Appends lines to a file.
pub fn append(path: &Path, numbers: std::ops::Range<u64>) {
    let mut file = fs::OpenOptions::new().append(true).create(true).open(path).expect("a log can be opened");
    let text: String = numbers.map(text_of).collect();
    file.write_all(text.as_bytes()).expect("a log can be written");
}
