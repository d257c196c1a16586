//! What the path does when the ground under it gives way: its state, its signals, its time.

use std::collections::BTreeMap;
use std::fs;
use std::process::Stdio;

use serde_json::{Value, json};

use crate::agent::{DEADLINE, Room, Signal};
use crate::expect::Arrived;
use crate::files::{Writer, bytes, put};
use crate::receiver::{Mood, Receiver};

fn to_file(source: Value) -> Room {
    Room::new(json!({
        "agent": { "sync_interval": "20ms" },
        "sources": [source],
        "sinks": [{ "type": "file", "path": "out.txt" }],
    }))
}

/// With `start_at: end` a first start passes over what is there. A start whose state was lost is no first one.
#[test]
fn a_damaged_state_is_no_reason_to_skip_data() {
    let room = to_file(json!({ "type": "file", "include": ["logs/*.log"], "start_at": "end" }));
    put(&room.path("logs/app.log"), b"before\n");
    assert_eq!(room.run_once().0, 0);
    assert_eq!(room.run_once().0, 0);
    assert_eq!(bytes(&room.path("out.txt")), b"");
    for slot in ["data/ledger/checkpoint-0", "data/ledger/checkpoint-1"] {
        let path = room.path(slot);
        if path.exists() {
            put(&path, [0; 100]);
        }
    }
    put(&room.path("logs/app.log"), b"before\nmeanwhile\n");
    let (code, stderr) = room.run_once();
    assert_eq!(code, 0, "{stderr}");
    assert!(bytes(&room.path("out.txt")).ends_with(b"meanwhile\n"), "{stderr}");
}

/// A first start is one that nobody remembers: not the one after a life in which nothing was there to read.
#[test]
fn the_second_start_is_not_the_first() {
    for killed in [false, true] {
        let room = Room::new(json!({
            "agent": { "sync_interval": "10m" },
            "sources": [{ "type": "file", "include": ["logs/*.log"], "start_at": "end" }],
            "sinks": [{ "type": "file", "path": "out.txt" }],
        }));
        let agent = room.run();
        let checkpoint = || room.path("data/ledger/checkpoint-1").exists();
        agent.until("there is a checkpoint although nothing has happened", checkpoint);
        match killed {
            // 3 if the first look was not over by then.
            false => assert!([0, 3].contains(&agent.stop()), "{}", agent.stderr()),
            true => agent.kill9(),
        }
        put(&room.path("logs/app.log"), b"meanwhile\n");
        let (code, stderr) = room.run_once();
        assert_eq!(code, 0, "killed: {killed}\n{stderr}");
        assert_eq!(bytes(&room.path("out.txt")), b"meanwhile\n", "killed: {killed}\n{stderr}");
    }
}

#[test]
fn a_state_deleted_under_the_agent_is_written_again() {
    let room = to_file(json!({ "type": "file", "include": ["logs/*.log"] }));
    let mut writer = Writer::new(1, room.path("logs/app.log"));
    writer.write(100);
    let agent = room.run();
    let arrived = || Arrived::in_file(&room.path("out.txt")).distinct();
    agent.until("the first lines are there", || arrived() == 100);
    fs::remove_dir_all(room.path("data")).expect("a folder can be deleted");
    writer.write(100);
    agent.until("the next lines are there", || arrived() == 200);
    assert_eq!(agent.stop(), 0, "{}", agent.stderr());
    assert_eq!(room.run_once().0, 0);
    let written = BTreeMap::from([writer.written()]);
    Arrived::in_file(&room.path("out.txt")).compare(&written).assert_exact();
}

/// Nothing is delivered, and there is no spool.
fn a_stream_and_a_sink_that_hangs() -> (Receiver, Room) {
    let receiver = Receiver::start();
    receiver.set(Mood::Hang);
    let room = Room::new(json!({
        "agent": { "stop_timeout": "30s" },
        "sources": [{ "type": "stdin" }],
        "sinks": [{ "type": "loki", "url": receiver.url(), "timeout": "5m", "batch": { "max_wait": "20ms" },
                    "spool": { "enabled": false } }],
    }));
    (receiver, room)
}

/// A stop that has no time for the sink, which has no spool: each line is a dead letter, once.
#[test]
fn what_a_stream_brought_survives_an_abort() {
    const LINES: usize = 20_000;
    let (_receiver, room) = a_stream_and_a_sink_that_hangs();
    let agent = room.start(room.command(&["run"]).stdin(Stdio::piped()).stdout(Stdio::null()));
    let lines: String = (0..LINES).map(|number| format!("{number}\n")).collect();
    let mut stdin = agent.take_stdin();
    std::io::Write::write_all(&mut stdin, lines.as_bytes()).expect("the agent takes it");
    let read = format!("log_capturer_read_lines_total {LINES}");
    agent.until("all lines are read", || agent.get("/metrics").1.contains(&read));
    agent.signal(Signal::TERM);
    agent.signal(Signal::INT);
    assert_eq!(agent.wait_exit(DEADLINE), 3, "{}", agent.stderr());
    let letters = bytes(&room.path("data/deadletter/deadletter.jsonl"));
    let mut kept: Vec<u64> = letters
        .split(|byte| *byte == b'\n')
        .filter(|line| !line.is_empty())
        .map(|line| {
            let letter: Value = serde_json::from_slice(line).expect("a dead letter is JSON");
            letter["bytes"].as_str().and_then(|text| text.trim_end().parse().ok()).expect("a number")
        })
        .collect();
    kept.sort_unstable();
    assert!(kept.into_iter().eq(0..LINES as u64));
    let farewell = "among the dead letters (log-capturer deadletter replay sends them)";
    assert!(agent.stderr().contains(&format!("stopped with data pending: loki: {LINES} lines (")));
    assert!(agent.stderr().contains(farewell), "{}", agent.stderr());
}

/// The same, and a letter cannot be written: what is lost is called so, and not promised to the next start.
#[test]
fn what_a_stream_brought_and_nothing_could_keep_is_said_to_be_lost() {
    let (_receiver, room) = a_stream_and_a_sink_that_hangs();
    put(&room.path("data/deadletter"), "in the place of the folder");
    let agent = room.start(room.command(&["run"]).stdin(Stdio::piped()).stdout(Stdio::null()));
    let mut stdin = agent.take_stdin();
    std::io::Write::write_all(&mut stdin, b"1\n2\n3\n").expect("the agent takes it");
    agent.until("all lines are read", || agent.get("/metrics").1.contains("log_capturer_read_lines_total 3"));
    agent.signal(Signal::TERM);
    agent.signal(Signal::INT);
    assert_eq!(agent.wait_exit(DEADLINE), 3, "{}", agent.stderr());
    let said = agent.stderr();
    assert!(said.contains("pending: loki: 3 lines (6 bytes) lost"), "{said}");
    assert!(!said.contains("next start"), "{said}");
}
