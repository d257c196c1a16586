//! The spool from outside: a receiver that is ill, deaths at any moment, and more on the disk than memory holds.
//!
//! The full form of [`gigabytes_pass_through_little_memory`] is `make spool` (2 GB); here the same in short.

use std::collections::BTreeMap;
use std::io::Write;
use std::process::Stdio;
use std::time::Duration;

use serde_json::{Value, json};

use crate::agent::{Agent, DEADLINE, Room, Signal, pause};
use crate::expect::{Arrived, push_line};
use crate::files::Writer;
use crate::receiver::{Mood, Receiver};

/// Resident, whatever stands in the spool.
const PEAK_KIB_MAX: u64 = 40 * 1024;

fn loki(url: &str, spool: Value) -> Value {
    json!({ "type": "loki", "url": url, "timeout": "2s", "retry": { "initial": "20ms", "max": "200ms" },
            "batch": { "max_wait": "50ms" }, "spool": spool })
}

fn room(sinks: Value) -> Room {
    Room::new(json!({
        "agent": { "memory_budget": "4MiB", "sync_interval": "50ms" },
        "sources": [{ "type": "file", "include": ["logs/*.log"], "poll_interval": "100ms" }],
        "sinks": sinks,
    }))
}

/// Lines in the spool of the first sink.
fn spooled(agent: &Agent) -> u64 {
    let (code, body) = agent.get("/api/v1/sinks");
    assert_eq!(code, 200);
    let sinks: Value = serde_json::from_str(&body).expect("the sinks are JSON");
    sinks[0]["health"]["spooled_lines"].as_u64().expect("a number")
}

/// Ill for far longer than its part of the memory lasts: the healthy one never waits, and the ill one gets all.
#[test]
fn a_healthy_sink_is_not_stopped_by_an_ill_one() {
    let receiver = Receiver::start();
    receiver.set(Mood::status(503));
    let room = room(json!([
        loki(&receiver.url(), json!({ "after": "200ms" })),
        { "type": "file", "path": "out.txt", "batch": { "max_wait": "10ms" } },
    ]));
    let mut writer = Writer::new(1, room.path("logs/app.log"));
    let agent = room.run();
    let output = || Arrived::in_file(&room.path("out.txt")).distinct();
    for _ in 0..8 {
        writer.write(10_000); // 1.5 MB: several times the 4 MiB in all
        let written = writer.written().1;
        agent.until("the healthy sink has everything", || output() == written);
    }
    agent.until("the rest is spooled", || spooled(&agent) == writer.written().1);
    let (code, reasons) = agent.get("/readyz");
    assert_eq!(code, 503);
    assert!(reasons.contains("rests") && reasons.contains(" lines wait in its spool"), "{reasons}");
    let metrics = agent.get("/metrics").1;
    assert!(metrics.contains("log_capturer_spool_lines{sink=\"loki\"} 80000"), "{metrics}");
    receiver.set(Mood::Well);
    writer.write(1000);
    let lines = writer.written().1;
    agent.until("the ill one has everything too", || receiver.count() >= lines);
    agent.until("the spool is empty", || spooled(&agent) == 0);
    writer.write(1000);
    agent.until("it goes direct again", || receiver.count() >= lines + 1000);
    assert_eq!(agent.stop(), 0, "{}", agent.stderr());
    let written = BTreeMap::from([writer.written()]);
    receiver.arrived().compare(&written).assert_exact();
    assert_eq!(receiver.count(), lines + 1000, "not one was sent twice");
    Arrived::in_file(&room.path("out.txt")).compare(&written).assert_exact();
}

/// Killed in the middle of spooling, again and again, then in the middle of the replay.
#[test]
fn deaths_lose_nothing_and_double_nothing() {
    let receiver = Receiver::start();
    let room = room(json!([
        loki(&receiver.url(), json!({ "after": "0s" })),
        { "type": "file", "path": "out.txt", "batch": { "max_wait": "10ms" } },
    ]));
    let mut writer = Writer::new(1, room.path("logs/app.log"));
    receiver.set(Mood::status(503));
    for round in 0..4 {
        let agent = room.run();
        let before = writer.written().1;
        while spooled(&agent) <= before {
            writer.write(2000);
            pause(Duration::from_millis(3 + round * 5));
        }
        agent.kill9();
    }
    // Slow, so that each death finds it at another place of the replay.
    receiver.set(Mood::Slow { bytes_per_second: 400_000 });
    for _ in 0..4 {
        let (agent, before) = (room.run(), receiver.count());
        agent.until("some of it is sent", || receiver.count() > before);
        agent.kill9();
    }
    receiver.set(Mood::Well);
    let (code, said) = room.run_once();
    assert_eq!(code, 0, "{said}");
    let written = BTreeMap::from([writer.written()]);
    receiver.arrived().compare(&written).assert_once();
    Arrived::in_file(&room.path("out.txt")).compare(&written).assert_exact();
    println!(
        "8 deaths, {} lines: {} were sent again, and are one with what was there",
        writer.written().1,
        receiver.count() - writer.written().1
    );
}

/// A stop is no reason to forget, and neither is the end of `--once`: 3, until everything is delivered.
#[test]
fn what_is_spooled_is_pending() {
    let receiver = Receiver::start();
    receiver.set(Mood::status(503));
    let room = room(json!([loki(&receiver.url(), json!({ "enabled": true, "after": "100ms" }))]));
    let mut writer = Writer::new(1, room.path("logs/app.log"));
    writer.write(1000);
    let agent = room.run();
    agent.until("it is spooled", || spooled(&agent) == 1000);
    assert_eq!(agent.stop(), 3, "{}", agent.stderr());
    writer.write(1000);
    let once = ["run", "--once", "--max-time", "1s"];
    let agent = room.start(room.command(&once).stdin(Stdio::null()).stdout(Stdio::null()));
    assert_eq!(agent.wait_exit(DEADLINE), 3, "{}", agent.stderr());
    // All of it stands in the spool: the log may go.
    writer.delete();
    receiver.set(Mood::Well);
    let (code, said) = room.run_once();
    assert_eq!(code, 0, "{said}");
    receiver.arrived().compare(&BTreeMap::from([writer.written()])).assert_exact();
    assert_eq!(receiver.count(), 2000);
    assert_eq!(room.run_once().0, 0);
    assert_eq!(receiver.count(), 2000, "nothing comes again");
}

/// The last thing that is said tells how much is pending for whom, and where it stands.
#[test]
fn the_last_sentence_says_where_what_is_pending_stands() {
    let nobody = "http://127.0.0.1:9";
    for (enabled, where_it_stands) in
        [(true, "in its spool, sent at the next start"), (false, "unanswered, read again at the next start")]
    {
        let room = room(json!([loki(nobody, json!({ "enabled": enabled }))]));
        let mut writer = Writer::new(1, room.path("logs/app.log"));
        writer.write(20);
        let bytes = std::fs::metadata(room.path("logs/app.log")).expect("it was written").len();
        let once = ["run", "--once", "--max-time", "500ms"];
        let agent = room.start(room.command(&once).stdin(Stdio::null()).stdout(Stdio::null()));
        assert_eq!(agent.wait_exit(DEADLINE), 3, "{}", agent.stderr());
        let said = agent.stderr();
        let last = said.lines().next_back().unwrap_or_default();
        let size = log_capturer::config::figure(bytes as usize);
        let expected = format!("stopped with data pending: loki: 20 lines ({size}) {where_it_stands}");
        assert!(last.ends_with(&expected), "{expected}\n{said}");
        let (code, said) = room.audit();
        let missing = if enabled {
            "20 lines in the spool of loki".into()
        } else {
            format!("{bytes} bytes pending for loki")
        };
        assert_eq!((code, said.lines().next_back()), (3, Some(&*format!("missing: {missing}"))), "{said}");
    }
}

/// Nobody can read it again: a stream goes to the spool at the stop, and is delivered by the next life.
#[test]
fn what_a_stream_brought_is_sent_by_the_next_life() {
    let receiver = Receiver::start();
    receiver.set(Mood::Hang);
    let mut config = json!({
        "agent": { "stop_timeout": "30s" },
        "sources": [{ "type": "stdin" }],
        "sinks": [{ "type": "loki", "url": receiver.url(), "timeout": "5m", "batch": { "max_wait": "20ms" } }],
    });
    let room = Room::new(config.clone());
    let agent = room.start(room.command(&["run"]).stdin(Stdio::piped()).stdout(Stdio::null()));
    let mut lines = Vec::new();
    (0..2000).for_each(|number| push_line(&mut lines, 1, number));
    let mut stdin = agent.take_stdin();
    stdin.write_all(&lines).expect("the agent takes it");
    let read = "log_capturer_read_lines_total 2000";
    agent.until("all lines are read", || agent.get("/metrics").1.contains(read));
    agent.signal(Signal::TERM);
    agent.signal(Signal::INT);
    assert_eq!(agent.wait_exit(DEADLINE), 3, "{}", agent.stderr());
    assert!(!room.path("data/deadletter").exists(), "the spool has it all");
    receiver.set(Mood::Well);
    // The source is gone, and nobody asks for a spool any more: it is emptied all the same.
    config["sources"] = json!([{ "type": "file", "include": ["logs/*.log"] }]);
    config["status"] = json!({ "listen": null });
    room.configure(&config.to_string());
    let (code, said) = room.run_once();
    assert_eq!(code, 0, "{said}");
    receiver.arrived().compare(&BTreeMap::from([(1, 2000)])).assert_exact();
}

/// As many bytes as `LOG_CAPTURER_SPOOL_BYTES` says into the spool and out of it again.
#[test]
fn gigabytes_pass_through_little_memory() {
    let bytes = std::env::var("LOG_CAPTURER_SPOOL_BYTES").ok();
    let bytes: u64 =
        bytes.map_or(20_000_000, |bytes| bytes.parse().expect("LOG_CAPTURER_SPOOL_BYTES is a number"));
    let receiver = Receiver::start_tally();
    receiver.set(Mood::status(503));
    let spool = json!({ "enabled": true, "after": "0s", "max_bytes": "8GiB" });
    let room = Room::new(json!({
        "sources": [{ "type": "file", "include": ["logs/*.log"] }],
        "sinks": [loki(&receiver.url(), spool)],
    }));
    let mut writer = Writer::new(1, room.path("logs/app.log"));
    let agent = room.run();
    while std::fs::metadata(room.path("logs/app.log")).map_or(0, |file| file.len()) < bytes {
        writer.write(10_000);
    }
    let lines = writer.written().1;
    let limit = Duration::from_secs(60 + bytes / 5_000_000);
    let wait = |agent: &Agent, what: &str, fact: &dyn Fn() -> bool| {
        let mut peak_kib = 0;
        let look = || {
            peak_kib = agent.peak_memory_kib().unwrap_or(0).max(peak_kib);
            pause(Duration::from_millis(20));
            fact()
        };
        crate::agent::until(what, limit, || agent.stderr(), look);
        let (megabytes, peak_mib) = (bytes / 1_000_000, peak_kib as f64 / 1024.0);
        println!("{what}: {lines} lines, {megabytes} MB; resident memory at most {peak_mib:.1} MiB");
        assert!(peak_kib < PEAK_KIB_MAX, "{what}: {peak_kib} KiB");
    };
    wait(&agent, "all is spooled", &|| spooled(&agent) == lines);
    agent.kill9();
    writer.delete();
    receiver.set(Mood::Well);
    let agent = room.run();
    wait(&agent, "all is sent", &|| receiver.count() >= lines && spooled(&agent) == 0);
    assert_eq!(agent.stop(), 0, "{}", agent.stderr());
    let report = receiver.take_tally().compare(&BTreeMap::from([(1, lines)]));
    println!("{report}");
    report.assert_exact();
}
