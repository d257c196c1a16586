//! A lot at once: four writers at full speed, to a file and to Loki together, compared line by line.
//!
//! `LOG_CAPTURER_BIG_LINES` says how many lines; `make big` asks for six million, some 900 MB. Prints its
//! figures and asserts only what is promised whatever the machine: sets, order, doubles.

use std::collections::BTreeMap;
use std::time::Duration;

use log_capturer::clock::Clock;
use serde_json::json;

use crate::agent::{Room, until};
use crate::expect::Arrived;
use crate::files::{Writer, bytes};
use crate::receiver::Receiver;

const WRITERS: u32 = 4;
const DEFAULT_LINES: u64 = 200_000;

/// Lines between two looks at the agent's memory.
const ROUND_LINES: u64 = 5_000;

#[test]
fn a_lot_at_once() {
    let lines = std::env::var("LOG_CAPTURER_BIG_LINES").ok();
    let lines =
        lines.map_or(DEFAULT_LINES, |lines| lines.parse().expect("LOG_CAPTURER_BIG_LINES is a number"));
    let each = lines / u64::from(WRITERS);
    let receiver = Receiver::start_tally();
    let room = Room::new(json!({
        "sources": [{ "type": "file", "include": ["logs/*.log"] }],
        "sinks": [{ "type": "loki", "url": receiver.url() }, { "type": "file", "path": "out.txt" }],
    }));
    let mut writers: Vec<Writer> =
        (0..WRITERS).map(|id| Writer::new(id, room.path(&format!("logs/{id}.log")))).collect();
    let clock = Clock::real();
    let began = clock.now();
    let agent = room.run();
    let mut peak_kib = 0;
    let mut written = 0;
    while written < each {
        let round = ROUND_LINES.min(each - written);
        writers.iter_mut().for_each(|writer| writer.write(round));
        written += round;
        peak_kib = agent.peak_memory_kib().unwrap_or(peak_kib);
    }
    let total = each * u64::from(WRITERS);
    // Counted by the ends of lines, in one look at a time: comparing is for afterwards.
    let output = room.path("out.txt");
    let size: u64 = written_bytes(&room);
    let deadline = Duration::from_secs(120 + total / 10_000);
    until(
        "both sinks have everything",
        deadline,
        || agent.stderr(),
        || {
            let in_file = std::fs::metadata(&output).map_or(0, |metadata| metadata.len());
            peak_kib = agent.peak_memory_kib().unwrap_or(peak_kib);
            (receiver.count() >= total && in_file >= size) || agent.try_exit().is_some()
        },
    );
    let seconds = (clock.now() - began).as_secs_f64();
    assert_eq!(agent.stop(), 0, "{}", agent.stderr());

    let expected: BTreeMap<u32, u64> = writers.iter().map(Writer::written).collect();
    let reports =
        [("loki", receiver.take_tally()), ("file", Arrived::in_file(&output))].map(|(place, arrived)| {
            let report = arrived.compare(&expected);
            println!("{place}: {report}");
            report
        });
    println!(
        "{total} lines, {} MB, to both in {seconds:.1} s ({:.0} lines/s), peak memory {:.1} MiB",
        size / 1_000_000,
        total as f64 / seconds,
        peak_kib as f64 / 1024.0
    );
    reports.iter().for_each(|report| report.assert_exact());
    assert!(bytes(&room.path("data/deadletter/deadletter.jsonl")).is_empty());
}

fn written_bytes(room: &Room) -> u64 {
    let logs = std::fs::read_dir(room.path("logs")).expect("a folder can be read");
    logs.map(|log| log.and_then(|log| log.metadata()).expect("a log can be looked at").len()).sum()
}
