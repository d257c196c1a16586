//! What becomes of the agent when one of its own threads panics: it says why, stops in an orderly way, ends with
//! 1, and the next life goes on where it stood.
//!
//! Seen from outside: each case runs this test binary again as a child that plays `log-capturer run`, with one
//! thread poisoned ([`crate::tasks::faults`]), while lines are being written. `stop_timeout` is far beyond the
//! deadline of the test, so a thread that waits for one that has died fails it.

#![expect(
    clippy::disallowed_methods,
    reason = "logs need no sync, and a child ends with the code of its agent"
)]

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use super::{Exit, Once, run};
use rustix::process::{Pid, Signal, kill_process};

use crate::clock::Clock;
use crate::tasks::faults;

/// For the child: its configuration; and `<thread>@<word>@<nth>`, without which it runs once and to its end.
const CONFIG: &str = "LOG_CAPTURER_TEST_CONFIG";
const POISON: &str = "LOG_CAPTURER_TEST_POISON";

/// Only a test that fails waits for it.
const DEADLINE: Duration = Duration::from_secs(60);

/// Not a test by itself.
#[test]
fn a_life() {
    let Ok(config) = std::env::var(CONFIG) else { return };
    let once = match std::env::var(POISON) {
        Err(_) => Some(Once { max_time: None }),
        Ok(poison) => {
            let mut parts = poison.split('@');
            let mut part = || parts.next().expect("three parts");
            faults::poison(part(), part(), part().parse().expect("a number"));
            None
        }
    };
    std::process::exit(run::run(Path::new(&config), once) as i32);
}

struct House {
    room: tempfile::TempDir,
    written: usize,
}

/// Whether a line may arrive twice: where the one who died knew of deliveries that nobody had written down.
#[derive(Clone, Copy, PartialEq)]
enum Twice {
    Never,
    MayBe,
}

impl House {
    /// `stage`: there are none by default, and then no worker.
    fn new(stage: &str) -> House {
        let house = House { room: tempfile::tempdir().unwrap(), written: 0 };
        let config = |name: &str, source: &str, sink: &str| {
            let text = format!(
                r#"{{ "agent": {{ "data_dir": "data", "stop_timeout": "10m", "sync_interval": "100ms", "workers": 1 }},
                      "status": {{ "listen": "127.0.0.1:0" }},
                      "sources": [ {{ "type": "file", "include": ["logs/*.log"], "poll_interval": "50ms" }} {source} ],
                      "sinks": [ {{ "type": "file", "path": "out.txt", "batch": {{ "max_wait": "5ms" }} }} {sink} ],
                      "pipeline": [ {stage} ] }}"#
            );
            std::fs::write(house.path(name), text).unwrap();
        };
        config("well.json", "", "");
        // Refuses every connection, so that there is always somebody who rests.
        config(
            "ill.json",
            r#", { "type": "stdin" }"#,
            r#", { "type": "loki", "url": "http://127.0.0.1:9", "retry": { "initial": "20ms", "max": "20ms" } }"#,
        );
        std::fs::create_dir(house.path("logs")).unwrap();
        house
    }

    fn path(&self, name: &str) -> PathBuf {
        self.room.path().join(name)
    }

    fn life(&self, config: &str, poison: Option<&str>) -> Child {
        let said = std::fs::File::create(self.path("said.txt")).unwrap();
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", "cli::faults::a_life", "--nocapture", "--test-threads=1"]);
        command.env(CONFIG, self.path(config)).env_remove("RUST_LOG").env_remove("RUST_BACKTRACE");
        poison.inspect(|poison| {
            command.env(POISON, poison);
        });
        command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(said).spawn().unwrap()
    }

    fn said(&self) -> String {
        std::fs::read_to_string(self.path("said.txt")).unwrap()
    }

    /// To a log, and the same number to the life's standard input.
    fn write(&mut self, life: &mut Child, lines: usize) {
        let numbers = self.written..self.written + lines;
        if let Some(stdin) = life.stdin.as_mut() {
            let text: String = numbers.clone().map(|line| format!("input {line}\n")).collect();
            let _ = stdin.write_all(text.as_bytes()); // it may have ended
        }
        let text: String = numbers.map(|line| format!("line {line}\n")).collect();
        let mut log =
            std::fs::OpenOptions::new().append(true).create(true).open(self.path("logs/a.log")).unwrap();
        log.write_all(text.as_bytes()).unwrap();
        self.written += lines;
    }

    /// Its exit code. Lines are written all the while, and if `hangs_up` there is SIGHUP once some have arrived.
    fn wait(&mut self, mut life: Child, lines: usize, hangs_up: bool) -> i32 {
        let clock = Clock::real();
        let end = clock.now() + DEADLINE;
        loop {
            if let Some(status) = life.try_wait().unwrap() {
                return status.code().unwrap_or(-1);
            }
            if clock.now() > end {
                let _ = life.kill();
                let _ = life.wait();
                panic!("it did not end; it said:\n{}", self.said());
            }
            self.write(&mut life, lines);
            if hangs_up && self.path("out.txt").exists() {
                let _ = kill_process(Pid::from_child(&life), Signal::HUP); // it may have ended
            }
            let _ = crossbeam_channel::after(Duration::from_millis(3)).recv();
        }
    }
}

fn check(thread: &str, word: &str, nth: u32, twice: Twice) {
    let has_pool = thread.starts_with("worker");
    let mut house =
        House::new(if has_pool { r#"{ "type": "labels", "set": { "seen": "yes" } }"# } else { "" });
    let life = house.life("ill.json", Some(&format!("{thread}@{word}@{nth}")));
    let code = house.wait(life, 5, matches!(thread, "signals" | "reload"));
    let said = house.said();
    assert_eq!(code, Exit::Fault as i32, "{thread} at {word:?}: {said}");
    let cause = format!("{thread}: panicked: on purpose");
    assert!(
        said.lines().any(|line| line.contains(" ERROR ") && line.contains(&cause)),
        "no {cause:?} in: {said}"
    );

    let life = house.life("well.json", None);
    assert_eq!(house.wait(life, 0, false), Exit::Delivered as i32, "{thread} at {word:?}: {}", house.said());
    let output = std::fs::read_to_string(house.path("out.txt")).unwrap();
    let (mut seen, mut inputs) = (vec![0; house.written], Vec::new());
    for line in output.lines() {
        let (from, number) = line.split_once(' ').expect(line);
        let number: usize = number.parse().expect(line);
        match from {
            "line" => seen[number] += 1,
            "input" => inputs.push(number),
            _ => panic!("{line:?} was written by nobody"),
        }
    }
    // What it had taken from a pipe cannot be read again: what is there is a beginning without a gap.
    if twice == Twice::Never {
        assert!(inputs.iter().copied().eq(0..inputs.len()), "{thread} at {word:?}: {inputs:?}");
    }
    let (lost, doubled) = (seen.iter().filter(|n| **n == 0).count(), seen.iter().filter(|n| **n > 1).count());
    println!("{thread} at {word:?} ({nth}): {} lines, {lost} lost, {doubled} doubled", house.written);
    assert_eq!(lost, 0, "{thread} at {word:?}");
    assert!(doubled == 0 || twice == Twice::MayBe, "{thread} at {word:?}: {doubled} lines came twice");
}

#[test]
fn a_monitor_that_panics_ends_the_agent_with_its_cause() {
    check("files", "", 9, Twice::Never);
    check("discovery", "", 2, Twice::Never);
    check("watch", "", 3, Twice::Never);
}

#[test]
fn so_does_whoever_carries_lines() {
    check("worker/0", "passing", 3, Twice::Never);
    check("lane/file", "", 5, Twice::MayBe);
    check("sender/file/0", "batches", 3, Twice::MayBe);
}

#[test]
fn so_does_the_ledger_and_what_it_had_saved_is_not_lost() {
    check("ledger", "keeping the books", 4, Twice::MayBe);
    check("ledger", "writing a checkpoint", 2, Twice::MayBe);
}

#[test]
fn so_do_those_who_serve() {
    check("retry", "", 4, Twice::Never);
    check("resolver", "", 1, Twice::Never);
    check("status", "", 1, Twice::Never);
    check("stats", "", 2, Twice::Never);
}

#[test]
fn so_does_whoever_hears_signals_or_reads_a_pipe() {
    check("signals", "signals", 2, Twice::Never);
    check("reload", "reading", 1, Twice::Never);
    check("stdin", "input", 3, Twice::Never);
    check("stdin", "room downhill", 2, Twice::Never);
}
