//! Start, work, stop, in one process: what an agent took it gives back, to the last byte.

use std::collections::BTreeSet;
use std::fs;

use log_capturer::agent::Exit;
use log_capturer::clock::Clock;
use serde_json::json;

use crate::house::{Census, Held, Life, Tally, append, descriptors, errors, until};
use crate::receiver::{Mood, Receiver};

const FILES: u64 = 3;

const LINES_PER_FILE: u64 = 20;

/// Once-only things (lazy tables of libraries, the capacity of the test's own lists) have happened by then.
fn warm_up(cycles: u64) -> u64 {
    (cycles / 3).clamp(1, 100)
}

/// What a cycle is about besides lines that flow.
enum Trouble {
    None,
    /// Stopped as soon as its status server listens.
    NoTime,
    /// The sink turns the first requests away.
    Busy,
    /// The sink never answers: the stop has to cut it off.
    Hang,
}

impl Trouble {
    fn of(cycle: u64) -> Trouble {
        match cycle % 10 {
            // Each of these costs a whole `stop_timeout`.
            1 if cycle % 75 == 21 => Trouble::Hang,
            3 => Trouble::NoTime,
            7 => Trouble::Busy,
            _ => Trouble::None,
        }
    }
}

pub fn many_lives_in_one_process(cycles: u64) {
    let lines = cycles * FILES * LINES_PER_FILE;
    let receiver = Receiver::start(lines);
    let room = tempfile::tempdir().expect("a temporary folder can be made");
    let logs = room.path().join("logs");
    fs::create_dir(&logs).expect("a folder can be made");
    let config = json!({
        "agent": { "data_dir": "data", "stop_timeout": "2s" },
        "status": { "listen": "127.0.0.1:0" },
        "sources": [{ "type": "file", "include": ["logs/*.log"] }],
        "sinks": [
            { "type": "loki", "url": receiver.url(), "batch": { "max_wait": "5ms" }, "retry": { "initial": "5ms" } },
            { "type": "file", "path": "out.txt", "batch": { "max_wait": "5ms" } },
        ],
    })
    .to_string();

    let clock = Clock::real();
    let began = clock.now();
    let (mut census, before, mut after, mut written) = (Census::new(), Held::now(), Vec::new(), 0);
    after.reserve(cycles as usize);
    for cycle in 0..cycles {
        let life = Life::start(&config, room.path());
        let trouble = Trouble::of(cycle);
        receiver.set(match trouble {
            Trouble::Busy => Mood::BusyFor(2),
            Trouble::Hang => Mood::Hang,
            _ => Mood::Well,
        });
        for file in 0..FILES {
            append(&logs.join(format!("{file}.log")), written..written + LINES_PER_FILE);
            written += LINES_PER_FILE;
        }
        census.sample(&life);
        match trouble {
            Trouble::NoTime => {}
            Trouble::Hang => until("a request hangs", errors, || receiver.hangs()),
            _ => until("the lines have arrived", errors, || receiver.distinct() == written),
        }
        census.sample(&life);
        let exit = life.stop();
        let right = match trouble {
            Trouble::None | Trouble::Busy => exit == Exit::Delivered,
            Trouble::Hang => exit == Exit::Pending,
            Trouble::NoTime => matches!(exit, Exit::Delivered | Exit::Pending),
        };
        assert!(right, "cycle {cycle} ended with {exit:?}\n{}", errors());
        until("the receiver has seen the end of the connection", errors, || receiver.connections() == 0);
        let counts = |held: Held| (held.threads, held.descriptors);
        let details = || {
            let (held, first) = (counts(Held::now()), (before.threads, before.descriptors));
            format!("{held:?} after cycle {cycle}, {first:?} before the first\n{}", descriptors())
        };
        // The kernel lists a thread that was joined for a moment longer.
        until("threads and descriptors are as before", details, || {
            counts(Held::now()) == (before.threads, before.descriptors)
        });
        after.push(Held::now().heap);
    }
    let took = clock.now() - began;
    receiver.assert_exact(written);
    let mut output = Tally::new(lines);
    let text = fs::read(room.path().join("out.txt")).expect("there is an output");
    text.split_inclusive(|byte| *byte == b'\n').for_each(|line| output.line(line));
    output.assert_exact("the output", written);

    println!(
        "{cycles} lives in one process, {:.0?} each: threads {} and descriptors {} after each as before the first; \
         {written} lines, each once; {} samples of threads, up to {}, the same as in the table",
        took / cycles as u32,
        before.threads,
        before.descriptors,
        census.samples,
        census.most
    );
    let warm = warm_up(cycles);
    println!("live heap before the first: {}", before.heap);
    for cycle in BTreeSet::from([1, 50.min(cycles), warm, cycles]) {
        println!("live heap after cycle {cycle}: {}", after[cycle as usize - 1]);
    }
    let changes = |at: &u64| after[*at as usize] != after[*at as usize - 1];
    let changed: Vec<String> =
        (1..cycles).filter(changes).map(|at| format!("{}: {}", at + 1, after[at as usize])).collect();
    let (first, last) = (after[warm as usize - 1], after[cycles as usize - 1]);
    assert_eq!(
        last,
        first,
        "live heap after cycle {cycles} and after cycle {warm}; it changed after\n{}",
        changed.join("\n")
    );
}
