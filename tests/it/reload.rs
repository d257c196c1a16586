//! A new configuration for an agent that runs: by SIGHUP, and by `POST /api/v1/reload`.
//!
//! What is asked for is always the same: the new one works or the old one goes on, no line is lost or doubled at a
//! sink that is well, and no signal is lost between two lives.

use std::collections::BTreeMap;
use std::process::Stdio;
use std::time::Duration;

use serde_json::{Value, json};

use crate::agent::{Agent, DEADLINE, Room, Signal};
use crate::expect::Arrived;
use crate::files::{Writer, bytes, put};
use crate::receiver::{Mood, Receiver};

/// Longer than any test waits: an agent that burns it fails the test.
const NEVER: &str = "10m";

fn config(sources: &[&str], sinks: Value) -> Value {
    let source = |name: &&str| json!({ "type": "file", "name": name, "include": [format!("{name}/*.log")] });
    json!({
        "agent": { "stop_timeout": NEVER },
        "status": { "listen": "127.0.0.1:0" },
        "sources": sources.iter().map(source).collect::<Vec<_>>(),
        "sinks": sinks,
    })
}

fn loki(receiver: &Receiver) -> Value {
    json!({ "type": "loki", "url": receiver.url(), "timeout": "5m", "batch": { "max_wait": "20ms" } })
}

fn out() -> Value {
    json!({ "type": "file", "path": "out.txt", "batch": { "max_wait": "20ms" } })
}

/// In the present life, or in the next one.
fn metric(agent: &Agent, result: &str) -> u64 {
    let text =
        std::iter::repeat_with(|| agent.try_get("/metrics")).flatten().next().expect("it never ends").1;
    let series = format!("log_capturer_reloads_total{{result=\"{result}\"}} ");
    let value = text.lines().find_map(|line| line.strip_prefix(&series));
    value.and_then(|value| value.parse().ok()).unwrap_or_else(|| panic!("no {series} in {text}"))
}

/// Answered before the old life ends, and the new one counts it.
#[track_caller]
fn reload(agent: &Agent) {
    let done = metric(agent, "done");
    let (code, body) = agent.post("/api/v1/reload");
    assert_eq!((code, body.contains("begins")), (202, true), "{body}");
    agent.until("it has started anew", || metric(agent, "done") == done + 1);
}

#[test]
fn a_reload_adds_a_source_and_removes_a_sink_under_load() {
    let receiver = Receiver::start();
    let (few, many) =
        (config(&["a"], json!([loki(&receiver), out()])), config(&["a", "b"], json!([loki(&receiver)])));
    let room = Room::new(few.clone());
    let (mut a, mut b) = (Writer::new(1, room.path("a/app.log")), Writer::new(2, room.path("b/app.log")));
    let output = || Arrived::in_file(&room.path("out.txt"));
    a.write(1_000);
    b.write(1_000);
    let agent = room.run();
    agent.until("both sinks have the first lines", || receiver.count() == 1_000 && output().lines() == 1_000);
    let address = agent.status_address();
    for round in 0..6 {
        room.configure(&[&many, &few][round % 2].to_string());
        a.write(3_000);
        if round == 3 {
            a.rotate("app.1.log"); // its rest is read by the next life
        }
        reload(&agent);
        a.write(1_000);
        assert!(agent.get("/readyz").0 == 200, "{}", agent.stderr());
    }
    room.configure(&many.to_string());
    reload(&agent);
    a.write(10);
    b.write(10); // so that the last life has looked into all of them before it is stopped
    let written = BTreeMap::from([a.written(), b.written()]);
    agent.until("everything is there", || receiver.count() >= written.values().sum());
    assert_eq!(agent.stop(), 0, "{}", agent.stderr());
    receiver.arrived().compare(&written).assert_exact();
    let again = format!("status: listening on http://{address}\n");
    assert_eq!(agent.stderr().matches(&again).count(), 8, "the same port in each life: {}", agent.stderr());

    // The sink that was removed at the end comes back: it goes on where it stood.
    room.configure(&config(&["a"], json!([out()])).to_string());
    assert_eq!(room.run_once().0, 0);
    output().compare(&BTreeMap::from([a.written()])).assert_exact();
}

#[test]
fn sighup_reloads_as_often_as_it_comes() {
    let room = Room::new(config(&["a"], json!([out()])));
    let mut writer = Writer::new(1, room.path("a/app.log"));
    let agent = room.run();
    agent.status_address(); // before it catches signals, one ends it
    for round in 1..=5 {
        writer.write(500);
        agent.signal(Signal::HUP);
        agent.until("it has started anew", || metric(&agent, "done") >= round);
    }
    for _ in 0..50 {
        writer.write(10);
        agent.signal(Signal::HUP); // many are fewer, and the last one counts
    }
    room.configure(&config(&["a", "b"], json!([out()])).to_string());
    put(&room.path("b/last.log"), b"");
    let mut last = Writer::new(2, room.path("b/last.log"));
    last.write(1);
    agent.signal(Signal::HUP);
    let output = || Arrived::in_file(&room.path("out.txt"));
    agent.until("the new source is read", || output().distinct() == 3_001);
    assert_eq!(agent.stop(), 0, "{}", agent.stderr());
    output().compare(&BTreeMap::from([writer.written(), last.written()])).assert_exact();
}

#[test]
fn a_wrong_configuration_changes_nothing_and_is_told_whole() {
    let right = config(&["a"], json!([out()]));
    let room = Room::new(right.clone());
    put(&room.path("a/app.log"), b"one\n");
    let agent = room.run();
    agent.until("the line is there", || bytes(&room.path("out.txt")) == b"one\n");

    let mut wrong = right.clone();
    wrong["agent"]["stop_timeout"] = json!("soon");
    wrong["snikt"] = json!(1);
    room.configure(&wrong.to_string());
    let (code, body) = agent.post("/api/v1/reload");
    assert_eq!(code, 400, "{body}");
    let told: Value = serde_json::from_str(&body).expect("it is JSON");
    let complaints = told["complaints"].as_array().expect("a list");
    let paths: Vec<&str> = complaints.iter().filter_map(|complaint| complaint["path"].as_str()).collect();
    assert_eq!(paths, ["agent.stop_timeout", "snikt"], "{body}");
    assert!(complaints[0]["says"].as_str().is_some_and(|says| says.contains("soon")), "{body}");

    room.configure("{");
    agent.signal(Signal::HUP);
    agent.until("it says so", || {
        agent.stderr().contains("SIGHUP: the configuration is wrong, so nothing changes:")
    });
    agent.until("it is counted", || metric(&agent, "refused") == 2);
    for line in ["  agent.stop_timeout: \"soon\"", "  snikt: "] {
        assert!(agent.stderr().contains(line), "no {line:?} in {}", agent.stderr());
    }
    assert_eq!((metric(&agent, "done"), agent.get("/readyz").0), (0, 200));
    put(&room.path("a/more.log"), b"two\n");
    agent.until("it goes on", || bytes(&room.path("out.txt")) == b"one\ntwo\n");

    room.configure(&right.to_string());
    reload(&agent);
    assert_eq!(metric(&agent, "refused"), 2, "counts go through all lives");
    put(&room.path("a/most.log"), b"three\n");
    agent.until("the next life goes on too", || bytes(&room.path("out.txt")) == b"one\ntwo\nthree\n");
    assert_eq!(agent.stop(), 0, "{}", agent.stderr());
}

/// It was right and the world says no: the port is taken, the data folder is another's.
#[test]
fn one_that_cannot_be_started_gives_way_to_the_one_before() {
    let (right, taken) = (config(&["a"], json!([out()])), Receiver::start());
    let other_room = Room::new(config(&["a"], json!([out()])));
    let other = other_room.run();
    other.until("it has its lock", || other_room.path("data/lock").exists());
    let room = Room::new(right.clone());
    put(&room.path("a/app.log"), b"one\n");
    let agent = room.run();
    agent.until("the line is there", || bytes(&room.path("out.txt")) == b"one\n");
    let (mut port, mut folder) = (right.clone(), right.clone());
    port["status"]["listen"] = json!(taken.url().trim_start_matches("http://"));
    folder["agent"]["data_dir"] = json!(other_room.path("data"));
    let holder = other.pid().to_string();
    for (failed, (config, why)) in (1..).zip([(port, "Address already in use"), (folder, holder.as_str())]) {
        room.configure(&config.to_string());
        assert_eq!(agent.post("/api/v1/reload").0, 202);
        agent.until("it went back", || metric(&agent, "failed") == failed);
        let said = agent.stderr();
        let line = said.lines().rfind(|line| line.contains("could not start with the new configuration"));
        assert!(line.is_some_and(|line| line.contains(why) && line.contains(" ERROR ")), "{why}: {said}");
        assert_eq!(room.run_once().0, 5, "its own data folder is still its own");
    }
    put(&room.path("a/more.log"), b"two\n");
    agent.until("it goes on", || bytes(&room.path("out.txt")) == b"one\ntwo\n");
    assert_eq!((agent.stop(), other.stop()), (0, 0), "{}", agent.stderr());
}

#[test]
fn another_data_folder_lets_go_of_the_one_before() {
    let right = config(&["a"], json!([out()]));
    let room = Room::new(right.clone());
    let agent = room.run();
    let mut moved = right.clone();
    moved["agent"]["data_dir"] = json!("elsewhere");
    room.configure(&moved.to_string());
    reload(&agent);
    assert_eq!(room.run_once().0, 5, "the new one is held");
    room.configure(&right.to_string());
    assert_eq!(room.run_once().0, 0, "the old one is free");
    assert_eq!(agent.stop(), 0);
}

/// The sink hangs, so the reload takes its time; `stop_timeout` is beyond the deadline of the test.
#[test]
fn a_stop_wins_over_a_reload() {
    let receiver = Receiver::start();
    receiver.set(Mood::Hang);
    let room = Room::new(config(&["a"], json!([loki(&receiver)])));
    let mut writer = Writer::new(1, room.path("a/app.log"));
    writer.write(100);
    let agent = room.run();
    agent.until("a request hangs", || receiver.requests() > 0);
    agent.signal(Signal::HUP);
    agent.until("it reloads", || agent.stderr().contains("reload: the new configuration is right"));
    agent.signal(Signal::TERM);
    agent.until("it obeys", || agent.stderr().contains("stopping: SIGTERM; the reload is given up"));
    assert_eq!(agent.post("/api/v1/reload").0, 409, "there will be no next life");
    agent.signal(Signal::INT);
    assert_eq!(agent.wait_exit(DEADLINE), 3, "{}", agent.stderr());
    let receiver = Receiver::start();
    room.configure(&config(&["a"], json!([loki(&receiver)])).to_string());
    assert_eq!(room.run_once().0, 0);
    receiver.arrived().compare(&BTreeMap::from([writer.written()])).assert_exact();
}

/// SIGTERM at any moment of a reload, those between two lives too, ends it in order.
#[test]
fn no_stop_is_lost_between_two_lives() {
    let room = Room::new(config(&["a"], json!([out()])));
    let mut writer = Writer::new(1, room.path("a/app.log"));
    let (mut given_up, mut after) = (0, 0);
    for round in 0..30u64 {
        let agent = room.run();
        agent.until("it is up", || agent.get("/healthz").0 == 200);
        writer.write(20);
        agent.signal(Signal::HUP);
        crate::agent::pause(Duration::from_micros(round * 400));
        agent.signal(Signal::TERM);
        let code = agent.wait_exit(DEADLINE);
        assert!([0, 3].contains(&code), "exit code {code}\n{}", agent.stderr());
        let said = agent.stderr();
        given_up += usize::from(said.contains("the reload is given up"));
        after += usize::from(said.contains("runs with the new configuration"));
    }
    println!("of 30 stops, {given_up} came during the reload, {after} after it");
    assert_eq!(room.run_once().0, 0);
    Arrived::in_file(&room.path("out.txt")).compare(&BTreeMap::from([writer.written()])).assert_exact();
}

#[test]
fn once_is_never_reloaded() {
    let receiver = Receiver::start();
    receiver.set(Mood::Hang);
    let room = Room::new(config(&["a"], json!([loki(&receiver)])));
    put(&room.path("a/app.log"), b"one\n");
    let once = &["run", "--once"];
    let agent =
        room.start(room.command(once).env("RUST_LOG", "info").stdin(Stdio::null()).stdout(Stdio::null()));
    agent.until("a request hangs", || receiver.requests() > 0);
    agent.signal(Signal::HUP);
    agent
        .until("it says so", || agent.stderr().contains("SIGHUP: this agent was not started to be reloaded"));
    assert_eq!(agent.post("/api/v1/reload").0, 409);
    agent.signal(Signal::TERM);
    agent.signal(Signal::INT);
    assert_eq!(agent.wait_exit(DEADLINE), 3, "{}", agent.stderr());
}

/// A configuration that came through a pipe was read to its end: to read it again would wait for ever.
#[test]
fn what_cannot_be_read_again_is_not() {
    let room = Room::new(json!({}));
    let mut text = config(&["a"], json!([out()]));
    text["sources"][0]["include"] = json!([room.path("a/*.log")]);
    text["sinks"][0]["path"] = json!(room.path("out.txt"));
    text["agent"]["data_dir"] = json!(room.path("data"));
    let mut command = std::process::Command::new(crate::agent::BINARY);
    command.args(["run", "--config", "/dev/stdin"]).stdin(Stdio::piped()).stdout(Stdio::null());
    let agent = room.start(&mut command);
    std::io::Write::write_all(&mut agent.take_stdin(), text.to_string().as_bytes()).expect("it reads");
    put(&room.path("a/app.log"), b"one\n");
    agent.until("the line is there", || bytes(&room.path("out.txt")) == b"one\n");
    let (code, body) = agent.post("/api/v1/reload");
    assert!(code == 400 && body.contains("is no file that could be read again"), "{code}: {body}");
    assert_eq!(agent.stop(), 0);
}
