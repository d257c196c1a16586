//! Files that are created, written, rotated, written again and deleted, by the thousand, under one agent.
//!
//! A quiet point comes after each tenth of them: everything has arrived and the ledger has forgotten every file.
//! There the agent must hold what it holds at any other: the same threads and descriptors, and the same
//! bytes on the heap but for [`ONCE`], which is less than two bytes a file in the short form, and a twentieth of
//! a byte in the long one. (From life to life they are the same to the byte: see `lives`.)

#![expect(clippy::disallowed_methods, reason = "a program that rotates its log syncs nothing")]

use std::fs;
use std::ops::RangeInclusive;
use std::sync::Arc;

use log_capturer::agent::Exit;
use log_capturer::clock::Clock;
use log_capturer::disk::{Disk, RealDisk};
use log_capturer::ledger;
use serde_json::json;

use crate::house::{Census, Held, Life, ONCE, Tally, append, descriptors, errors, memory_kib, until};
use crate::receiver::Receiver;

/// Files that are there at once. Each is deleted when its lines have arrived, since nobody could read it later.
/// The agent takes a moment for each round of them, however many they are.
const AT_ONCE: RangeInclusive<u64> = 50..=500;

const QUIET_POINTS: u64 = 10;

/// What holds after the first tenth is not compared.
const WARM: usize = 1;

/// What the agent writes: its output, and where its standard output and error lead if these are files.
const OWN_FILES: usize = 3;

/// The default of `agent.memory_budget`: what may be under way.
const BUDGET_KIB: u64 = 16 * 1024;

/// The touched part of a stack, and what the allocator keeps for a thread that has freed it.
const THREAD_KIB: u64 = 512;

pub fn files_that_come_and_go(files: u64) {
    let at_once = (files / 30).clamp(*AT_ONCE.start(), *AT_ONCE.end());
    let files = files.next_multiple_of(at_once * QUIET_POINTS);
    let crowd = at_once * 4;
    let receiver = Receiver::start((files + crowd) * 2);
    let room = tempfile::tempdir().expect("a temporary folder can be made");
    let logs = room.path().join("logs");
    fs::create_dir(&logs).expect("a folder can be made");
    // Buffers and queues of a sink grow to the most that they ever held, and stay: the crowd fills whole batches,
    // and no round that follows brings more.
    let batch = json!({ "max_wait": "50ms", "max_lines": at_once });
    let config = json!({
        "agent": { "data_dir": "data", "sync_interval": "100ms" },
        "status": { "listen": "127.0.0.1:0" },
        "sources": [{ "type": "file", "include": ["logs/*.log"], "poll_interval": "50ms", "idle": "100ms" }],
        "sinks": [
            { "type": "loki", "url": receiver.url(), "batch": batch },
            { "type": "file", "path": "out.txt", "batch": batch },
        ],
    })
    .to_string();

    let clock = Clock::real();
    let (began, resident_before) = (clock.now(), memory_kib("VmRSS:"));
    let mut census = Census::new();
    let life = Life::start(&config, room.path());
    let (mut written, mut resident_most) = (0, 0);
    let mut quiet: Vec<Held> = Vec::with_capacity(QUIET_POINTS as usize);
    let mut come_and_go = |files: u64| {
        let first = written;
        let log = |at: u64, end: &str| logs.join(format!("{:08}.{end}", first + at));
        let arrived = |written| until("the lines have arrived", errors, || receiver.distinct() == written);
        (0..files).for_each(|at| append(&log(at, "log"), first + at..first + at + 1));
        arrived(first + files);
        census.sample(&life);
        for at in 0..files {
            fs::rename(log(at, "log"), log(at, "log.1")).expect("a log can be renamed");
            let number = first + files + at;
            append(&log(at, "log.1"), number..number + 1);
        }
        written += 2 * files;
        arrived(written);
        resident_most = resident_most.max(memory_kib("VmRSS:"));
        (0..files).for_each(|at| fs::remove_file(log(at, "log.1")).expect("a log can be deleted"));
        written
    };
    // Lists grow to the most that there ever was at once, and stay: more than in any round that follows.
    come_and_go(crowd);
    for _ in 0..QUIET_POINTS {
        let written = (0..files / QUIET_POINTS / at_once).fold(0, |_, _| come_and_go(at_once));
        until("the ledger has forgotten every file", errors, || forgotten(&life, written));
        let held = Held::settled();
        if quiet.last().is_some_and(|last| held.descriptors > last.descriptors) {
            println!("there are more descriptors than at the last quiet point:\n{}", descriptors());
        }
        quiet.push(held);
    }
    let took = clock.now() - began;
    assert_eq!(life.stop(), Exit::Delivered, "{}", errors());

    let ceiling = resident_before + BUDGET_KIB + census.most as u64 * THREAD_KIB;
    println!(
        "{files} files came and went, {:.2} ms each: {} threads at most, the same as in the table; resident {resident_most} KiB \
         at most, {resident_before} before, the ceiling is {ceiling} (+ budget + {THREAD_KIB} for each thread)",
        took.as_secs_f64() * 1e3 / files as f64,
        census.most,
    );
    for (at, Held { threads, descriptors, heap }) in quiet.iter().enumerate() {
        println!(
            "after {:3} %: {threads} threads, {descriptors} descriptors, live heap {heap}",
            10 * (at + 1)
        );
    }
    let disk: Arc<dyn Disk> = Arc::new(RealDisk);
    let left = ledger::audit(&disk, &room.path().join("data/ledger"), &[]);
    let (pages, own) = (left.generations.len(), left.own_files.list());
    println!("the last checkpoint has {pages} pages, and files of its own: {own:?}");

    // With the least of them: what is kept at one quiet point and not at another stays too long.
    let warm = &quiet[WARM..];
    let least = warm.iter().min_by_key(|held| held.heap.bytes).expect("there are quiet points");
    for held in warm {
        let same = Held { heap: least.heap, ..*held };
        assert_eq!(same, *least, "threads and descriptors at two quiet points");
        let more = held.heap.bytes - least.heap.bytes;
        assert!(more <= ONCE.bytes, "{more} bytes more at one quiet point than at another");
        assert!(held.heap.blocks <= least.heap.blocks + ONCE.blocks, "{held:?} against {least:?}");
    }
    assert!(resident_most <= ceiling, "resident {resident_most} KiB are above {ceiling}");
    assert!(!left.is_empty);
    assert_eq!(pages, 0, "the files are gone, and so are their pages");
    assert!(own.len() <= OWN_FILES, "the output and standard output, and nothing else: {own:?}");

    receiver.assert_exact(written);
    let mut output = Tally::new(written);
    let text = fs::read(room.path().join("out.txt")).expect("there is an output");
    text.split_inclusive(|byte| *byte == b'\n').for_each(|line| output.line(line));
    output.assert_exact("the output", written);
}

/// Nothing is pending, no page is left, and the file monitor has let go of all of them.
fn forgotten(life: &Life, written: u64) -> bool {
    let (books, files) = (life.json("/api/v1/ledger"), life.json("/api/v1/sources"));
    books["read"]["lines"] == written
        && books["generations"] == 0
        && books["sinks"].as_array().is_some_and(|sinks| sinks.iter().all(|sink| sink["pending"] == 0))
        && files["followed"] == 0
        && ["matching", "gone", "paths", "lineages", "in_line"].iter().all(|thing| files["sizes"][thing] == 0)
}
