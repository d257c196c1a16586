//! Ends and beginnings: signals, crashes, a second instance, a wrong configuration, and the exit codes.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use serde_json::{Value, json};

use crate::agent::{DEADLINE, Room, Signal};
use crate::expect::Arrived;
use crate::files::{Writer, bytes, put};
use crate::receiver::{Mood, Receiver};

/// Longer than any test waits: an agent that burns it fails the test.
const NEVER: &str = "10m";

fn room(stop_timeout: &str, sinks: Value) -> Room {
    Room::new(json!({
        "agent": { "stop_timeout": stop_timeout },
        "sources": [{ "type": "file", "include": ["logs/*.log"] }],
        "sinks": sinks,
    }))
}

fn loki(receiver: &Receiver, timeout: &str) -> Value {
    json!([{ "type": "loki", "url": receiver.url(), "timeout": timeout, "batch": { "max_wait": "20ms" } }])
}

#[test]
fn with_nothing_pending_a_stop_is_at_once() {
    for signal in [Signal::TERM, Signal::INT] {
        let room = room(NEVER, json!([{ "type": "file", "path": "out.txt" }]));
        put(&room.path("logs/app.log"), b"hello\n");
        let agent = room.run();
        agent.until("the line is in the output", || bytes(&room.path("out.txt")) == b"hello\n");
        agent.signal(signal);
        assert_eq!(agent.wait_exit(DEADLINE), 0, "{}", agent.stderr());
    }
}

#[test]
fn a_stop_right_after_the_start_is_orderly() {
    let room = room(NEVER, json!([{ "type": "file", "path": "out.txt" }]));
    let mut writer = Writer::new(1, room.path("logs/app.log"));
    writer.write(1_000);
    let agent = room.run();
    agent.status_address(); // the first thing it says: nothing else need be up yet
    let code = agent.stop();
    assert!([0, 3].contains(&code), "exit code {code}\n{}", agent.stderr());
    assert_eq!(room.run_once().0, 0);
    Arrived::in_file(&room.path("out.txt")).compare(&BTreeMap::from([writer.written()])).assert_exact();
}

/// What it could not deliver is left in its files, the stop does not wait for a miracle, and the next life
/// delivers everything once.
#[test]
fn a_dead_sink_leaves_data_for_the_next_life() {
    let receiver = Receiver::start();
    let room = room(NEVER, loki(&receiver, "5s"));
    let mut writer = Writer::new(1, room.path("logs/app.log"));
    writer.write(1_000);
    receiver.set(Mood::status(503));
    let agent = room.run();
    agent.until("it has tried", || receiver.requests() > 0);
    assert_eq!(agent.stop(), 3, "{}", agent.stderr());
    receiver.set(Mood::Well);
    assert_eq!(room.run_once().0, 0);
    receiver.arrived().compare(&BTreeMap::from([writer.written()])).assert_exact();
}

#[test]
fn a_stop_is_bounded_while_the_sink_hangs() {
    for (mood, stop_timeout) in [(Mood::Hang, "1s"), (Mood::HangInAccept, "1s"), (Mood::Hang, "100ms")] {
        let receiver = Receiver::start();
        let sinks = json!([loki(&receiver, "5m")[0], { "type": "file", "path": "out.txt" }]);
        let room = room(stop_timeout, sinks);
        let mut writer = Writer::new(1, room.path("logs/app.log"));
        writer.write(1_000);
        receiver.set(mood);
        let agent = room.run();
        let output = || Arrived::in_file(&room.path("out.txt"));
        agent.until("the sink beside it has everything", || output().distinct() == 1_000);
        agent.signal(Signal::TERM);
        // The promise is the stop_timeout; the rest is for a machine under load.
        assert_eq!(agent.wait_exit(Duration::from_secs(20)), 3, "{}", agent.stderr());
    }
}

#[test]
fn a_second_signal_cuts_the_stop_short() {
    let receiver = Receiver::start();
    let room = room(NEVER, loki(&receiver, "5m"));
    Writer::new(1, room.path("logs/app.log")).write(1_000);
    receiver.set(Mood::Hang);
    let agent = room.run();
    agent.until("a request hangs", || receiver.requests() > 0);
    agent.signal(Signal::TERM);
    agent.signal(Signal::INT); // another one, since two pending signals of one kind are one signal
    assert_eq!(agent.wait_exit(DEADLINE), 3, "{}", agent.stderr());
}

/// Stopped in the middle of the work, again and again: each line once, in order.
#[test]
fn stops_under_load_lose_and_double_nothing() {
    let receiver = Receiver::start();
    let sinks = json!([loki(&receiver, "5s")[0], { "type": "file", "path": "out.txt" }]);
    let room = room("30s", sinks);
    let mut writer = Writer::new(1, room.path("logs/app.log"));
    for round in 0..4 {
        let agent = room.run();
        for _ in 0..20 {
            writer.write(200);
        }
        agent.until("some of it has arrived", || receiver.count() > round * 4_000);
        let code = agent.stop();
        assert!([0, 3].contains(&code), "exit code {code}\n{}", agent.stderr());
    }
    assert_eq!(room.run_once().0, 0);
    let written = BTreeMap::from([writer.written()]);
    receiver.arrived().compare(&written).assert_exact();
    Arrived::in_file(&room.path("out.txt")).compare(&written).assert_exact();
}

/// kill -9 in the middle of the work: nothing is missing. Doubles are what a crash may cost; they are printed.
#[test]
fn kill_9_under_load_loses_nothing() {
    let receiver = Receiver::start();
    let sinks = json!([loki(&receiver, "5s")[0], { "type": "file", "path": "out.txt" }]);
    let room = room("30s", sinks);
    let mut writer = Writer::new(1, room.path("logs/app.log"));
    for round in 0..5 {
        let agent = room.run();
        for step in 0..20 {
            writer.write(300);
            if step == 10 {
                writer.rotate(&format!("app.{round}.log"));
            }
        }
        agent.until("some of it has arrived", || receiver.count() > round * 2_000);
        agent.kill9();
    }
    let (code, stderr) = room.run_once();
    assert_eq!(code, 0, "{stderr}");
    let written = BTreeMap::from([writer.written()]);
    let places = [("loki", receiver.arrived()), ("file", Arrived::in_file(&room.path("out.txt")))];
    for (place, report) in places.map(|(place, arrived)| (place, arrived.compare(&written))) {
        println!("{place} after 5 kills: {report}");
        report.assert_nothing_lost();
    }
}

#[test]
fn a_second_instance_ends_at_once_and_names_the_first() {
    let room = room(NEVER, json!([{ "type": "file", "path": "out.txt" }]));
    put(&room.path("logs/app.log"), b"hello\n");
    let first = room.run();
    first.until("it has looked around", || bytes(&room.path("out.txt")) == b"hello\n");
    let (code, stderr) = room.run_once();
    assert_eq!(code, 5, "{stderr}");
    assert!(stderr.contains(&first.pid().to_string()), "{stderr}");
    assert_eq!(first.stop(), 0);
    assert_eq!(room.run_once().0, 0, "the lock goes with its holder");
    let third = room.run();
    third.until("it is up", || third.get("/healthz").0 == 200);
    third.kill9();
    assert_eq!(room.run_once().0, 0, "however it goes");
}

fn names_in(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).expect("a folder can be read");
    entries
        .map(|entry| entry.expect("an entry can be read").file_name().to_string_lossy().into_owned())
        .collect()
}

#[test]
fn a_wrong_configuration_is_refused_and_nothing_is_made() {
    let check = |config: &str, expected: &[&str]| {
        let room = Room::with_config_text(config);
        for command in [&["run"][..], &["run", "--once"], &["check"]] {
            let agent = room.start(room.command(command).stdin(Stdio::null()).stdout(Stdio::null()));
            let code = agent.wait_exit(DEADLINE);
            let stderr = agent.stderr();
            assert_eq!(code, 2, "{config}: {stderr}");
            for part in expected {
                assert!(stderr.contains(part), "{config}: no {part:?} in {stderr}");
            }
        }
        assert_eq!(names_in(&room.path("")), ["config.json"], "{config}");
    };
    let sink = r#"{ "type": "file", "path": "out.txt" }"#;
    let source = r#"{ "type": "file", "include": ["*.log"] }"#;
    check("", &[]);
    check("{", &[]);
    check("{}", &["sources", "sinks"]);
    check(&format!(r#"{{ "sources": [{source}], "sinks": [{sink}], "snikt": 1 }}"#), &["snikt"]);
    check(
        &format!(
            r#"{{ "agent": {{ "stop_timeout": "soon" }}, "sources": [{source}],
                  "sinks": [{sink}, {{ "type": "file", "name": "b", "path": "b.txt", "batch": {{ "max_bytes": "1GB" }} }}] }}"#
        ),
        &["agent.stop_timeout", "soon", "sinks[1].batch.max_bytes", "1GB"],
    );
    check(
        &format!(r#"{{ "sources": [{source}], "sinks": [{{ "type": "loki", "url": "loki" }}] }}"#),
        &["sinks[0].url"],
    );
    check(&format!(r#"{{ "sources": [{{ "type": "fiel" }}], "sinks": [{sink}] }}"#), &["sources[0]", "fiel"]);
}

#[test]
fn bad_usage_is_told_apart_from_a_fault() {
    let check = |arguments: &[&str], code: i32| {
        let output =
            std::process::Command::new(crate::agent::BINARY).args(arguments).output().expect("it starts");
        assert_eq!(
            output.status.code(),
            Some(code),
            "{arguments:?}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
    };
    check(&["--help"], 0);
    check(&["run", "--help"], 0);
    check(&["--version"], 0);
    check(&["run", "--no-such-thing"], 2);
    check(&["nonsense"], 2);
    check(&["run", "--config", "/no/such/file.json"], 2);
}
