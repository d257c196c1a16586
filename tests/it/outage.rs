//! A long illness of one sink beside a healthy one, and a giant through `--once`.
//!
//! The full forms are `make outage` (the receiver is ill for a minute, then busy, then hangs) and `make big`;
//! here the same runs in short. Prints its figures; asserts what holds at any speed.

use std::collections::BTreeMap;
use std::time::Duration;

use log_capturer::clock::Clock;
use serde_json::{Value, json};

use crate::agent::{Agent, Room, pause, until};
use crate::expect::Arrived;
use crate::files::Writer;
use crate::receiver::{Mood, Receiver};

/// Some 30 KB: the whole outage of `make outage` is several times what the budget lets an ill sink hold.
const ROUND_LINES: u64 = 200;

fn seconds(default: u64) -> Duration {
    let asked = std::env::var("LOG_CAPTURER_OUTAGE_SECONDS").ok();
    let asked = asked.map(|seconds| seconds.parse().expect("LOG_CAPTURER_OUTAGE_SECONDS is a number"));
    Duration::from_secs(asked.unwrap_or(default))
}

fn budget(agent: &Agent) -> (u64, u64) {
    let (code, body) = agent.get("/api/v1/status");
    assert_eq!(code, 200);
    let status: Value = serde_json::from_str(&body).expect("the status is JSON");
    let of = |key: &str| status["budget"][key].as_u64().expect("the budget is a number");
    (of("used"), of("bytes"))
}

/// 503 for long, then 429 with Retry-After, then a hang, then well: everything arrives, once, in order; and while
/// what the ill sink lacks fits its part of the budget, the healthy one never waits.
#[test]
fn a_long_illness_of_one_sink() {
    let receiver = Receiver::start();
    let room = Room::new(json!({
        "sources": [{ "type": "file", "include": ["logs/*.log"] }],
        "sinks": [
            { "type": "loki", "url": receiver.url(), "timeout": "2s", "retry": { "max": "2s" } },
            { "type": "file", "path": "out.txt" },
        ],
    }));
    let output = room.path("out.txt");
    let mut writer = Writer::new(1, room.path("logs/app.log"));
    receiver.set(Mood::status(503));
    let agent = room.run();
    let clock = Clock::real();
    let written_bytes = || std::fs::metadata(room.path("logs/app.log")).map_or(0, |metadata| metadata.len());
    let output_bytes = || std::fs::metadata(&output).map_or(0, |metadata| metadata.len());

    let (began, mut longest_pause, mut paused_with) = (clock.now(), Duration::ZERO, 0.0f64);
    let ill_for = seconds(3);
    let moods = [Mood::status(503), Mood::retry_after(429, 2), Mood::Hang];
    for (at, mood) in moods.into_iter().enumerate() {
        receiver.set(mood);
        let until_s = ill_for.mul_f64([1.0, 1.2, 1.4][at]);
        while clock.now() < began + until_s {
            writer.write(ROUND_LINES);
            let (size, asked_at) = (written_bytes(), clock.now());
            // The healthy sink follows, or the budget tells why it cannot.
            loop {
                if output_bytes() >= size {
                    break;
                }
                let (used, bytes) = budget(&agent);
                let waited = clock.now() - asked_at;
                longest_pause = longest_pause.max(waited);
                if waited > Duration::from_secs(5) {
                    // One source gets at most the larger of one read and half of what is free: a third.
                    let part = used as f64 / bytes as f64;
                    assert!(
                        part > 0.25,
                        "the healthy sink waits although only {used} of {bytes} are under way"
                    );
                    paused_with = paused_with.max(part);
                    break;
                }
                pause(Duration::from_millis(5));
            }
            pause(Duration::from_millis(20));
        }
    }
    let backlog = written_bytes();
    receiver.set(Mood::Well);
    let lines = writer.written().1;
    agent.until("Loki has everything", || receiver.count() >= lines);
    agent.until("the file has everything", || output_bytes() >= backlog);
    assert_eq!(agent.stop(), 0, "{}", agent.stderr());
    println!(
        "ill for {:.0} s in three ways while {lines} lines ({backlog} bytes) were written: the healthy sink waited \
         {longest_pause:.1?} at most{}",
        ill_for.as_secs_f64() * 1.4,
        if paused_with > 0.0 {
            format!(", with {:.0} % of the budget under way", paused_with * 100.0)
        } else {
            String::new()
        },
    );
    let written = BTreeMap::from([writer.written()]);
    for (sink, arrived) in [("loki", receiver.arrived()), ("file", Arrived::in_file(&output))] {
        let report = arrived.compare(&written);
        println!("{sink}: {report}");
        report.assert_exact();
    }
}

/// One file, larger than every buffer, to both sinks, and the process ends by itself.
#[test]
fn a_giant_goes_through_once() {
    let lines = std::env::var("LOG_CAPTURER_BIG_LINES").ok();
    let lines = lines.map_or(100_000, |lines| lines.parse().expect("LOG_CAPTURER_BIG_LINES is a number"));
    let receiver = Receiver::start_tally();
    let room = Room::new(json!({
        "sources": [{ "type": "file", "include": ["logs/*.log"] }],
        "sinks": [{ "type": "loki", "url": receiver.url() }, { "type": "file", "path": "out.txt" }],
    }));
    let mut writer = Writer::new(1, room.path("logs/giant.log"));
    writer.write(lines);
    let clock = Clock::real();
    let began = clock.now();
    let agent = room.start(&mut room.command(&["run", "--once"]));
    let mut peak_kib = 0;
    let deadline = Duration::from_secs(60 + lines / 10_000);
    until(
        "it has ended",
        deadline,
        || agent.stderr(),
        || {
            peak_kib = agent.peak_memory_kib().unwrap_or(peak_kib);
            agent.try_exit().is_some()
        },
    );
    let took = clock.now() - began;
    assert_eq!(agent.try_exit(), Some(0), "{}", agent.stderr());
    let size = std::fs::metadata(room.path("logs/giant.log")).expect("it is there").len();
    println!(
        "--once: {lines} lines, {} MB in {:.1} s, peak memory {:.1} MiB",
        size / 1_000_000,
        took.as_secs_f64(),
        peak_kib as f64 / 1024.0
    );
    let written = BTreeMap::from([writer.written()]);
    for (sink, arrived) in
        [("loki", receiver.take_tally()), ("file", Arrived::in_file(&room.path("out.txt")))]
    {
        let report = arrived.compare(&written);
        println!("{sink}: {report}");
        report.assert_exact();
    }
}
