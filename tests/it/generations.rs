//! A ledger with very many generations: the agent is ready at once with it, and forgets those that are gone.
//!
//! `make generations` has 100 000 of them; without `LOG_CAPTURER_GENERATIONS` it is a few thousand. Prints how long it
//! takes until `/readyz` says 200, until the last new line is out, and what the state weighs.

use std::fs;
use std::path::Path;
use std::time::Duration;

use log_capturer::clock::Clock;
use serde_json::json;

use crate::agent::{Agent, Room, until};
use crate::files::{bytes, put};

/// The promise is a second. This is for machines that are busy with something else.
const READY_MAX: Duration = Duration::from_secs(10);

/// A file that is not held open for want of descriptors may have been renamed to anywhere: it is waited for, a minute.
const GONE_MAX: Duration = Duration::from_secs(240);

/// A folder with more entries is slow to look through on some file systems.
const FILES_PER_FOLDER: u64 = 1000;

fn metric(agent: &Agent, name: &str) -> Option<u64> {
    let metrics = agent.get("/metrics").1;
    let value = metrics.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '))?;
    value.parse().ok()
}

fn weight(folder: &Path) -> u64 {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let weigh =
        |path: &Path| if path.is_dir() { weight(path) } else { fs::metadata(path).map_or(0, |m| m.len()) };
    entries.map(|entry| weigh(&entry.path())).sum()
}

#[test]
fn a_start_with_many_generations() {
    let files: u64 = std::env::var("LOG_CAPTURER_GENERATIONS").map_or(3_000, |text| {
        text.parse().unwrap_or_else(|_| panic!("LOG_CAPTURER_GENERATIONS is a number, not {text}"))
    });
    let room = Room::new(json!({
        "agent": { "sync_interval": "200ms" },
        "sources": [{ "type": "file", "include": ["logs/*/*.log"], "idle": "200ms" }],
        "sinks": [{ "type": "file", "path": "out.txt" }],
    }));
    let path = |number| room.path(&format!("logs/{}/{number}.log", number / FILES_PER_FOLDER));
    (0..files).for_each(|number| put(&path(number), format!("{number}\n")));
    let (code, stderr) = room.run_once();
    assert_eq!(code, 0, "{stderr}");
    let out = || bytes(&room.path("out.txt")).iter().filter(|byte| **byte == b'\n').count() as u64;
    assert_eq!(out(), files, "each file once");
    let state = room.path("data/ledger");
    let full = weight(&state);

    let clock = Clock::real();
    let began = clock.now();
    let agent = room.run();
    agent.until("it is ready", || agent.get("/readyz").0 == 200);
    let ready = clock.now() - began;
    let known = || metric(&agent, "log_capturer_generations");
    assert_eq!(known(), Some(files), "all are in the ledger when it is ready");
    put(&path(files - 1), format!("{}\nand one more\n", files - 1));
    agent.until("a new line of an old file is out", || out() > files);
    let first_line = clock.now() - began;

    fs::remove_dir_all(room.path("logs")).expect("logs can be deleted");
    let deleted = clock.now();
    until("those that are gone have left the ledger", GONE_MAX, || agent.stderr(), || known() == Some(0));
    let forgotten = clock.now() - deleted;
    let code = agent.stop();
    assert_eq!(code, 0, "{}", agent.stderr());
    assert_eq!(out(), files + 1, "nothing came twice");
    println!(
        "{files} generations: ready in {ready:.0?}, a new line out after {first_line:.0?}; state {} KiB, and {} KiB when \
         all were gone, which took {forgotten:.0?} to be sure of",
        full / 1024,
        weight(&state) / 1024
    );
    assert!(ready < READY_MAX, "ready after {ready:?}");
}
