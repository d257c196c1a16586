//! What somebody meets who tries the agent for the first time: what it says, and to whom it shows what it captured.

#![expect(clippy::disallowed_methods, reason = "a file of the test need not survive a power cut")]

use std::fs;
use std::os::unix::fs::PermissionsExt;

use serde_json::json;

use crate::agent::{DEADLINE, Room};

/// Lines from `logs/` into `captured/`.
fn room() -> Room {
    let room = Room::new(json!({
        "sources": [{ "type": "file", "include": ["logs/*.log"] }],
        "sinks": [{ "type": "file", "path": "captured/{source}/all.txt" }],
    }));
    fs::create_dir(room.path("logs")).expect("a folder can be made");
    fs::write(room.path("logs/a.log"), "one\ntwo\n").expect("a file can be written");
    room
}

/// cron mails what a job says.
#[test]
fn once_without_a_terminal_is_quiet_when_all_went_well() {
    let room = room();
    assert_eq!(room.run_once(), (0, String::new()));
    assert_eq!(fs::read_to_string(room.path("captured/file/all.txt")).ok().as_deref(), Some("one\ntwo\n"));
}

/// A password in `/var/log/auth.log` must not become readable for everybody by being captured.
#[test]
fn what_was_captured_is_not_for_everybody() {
    let room = room();
    assert_eq!(room.run_once().0, 0);
    for (path, mode) in [("captured", 0o750), ("captured/file", 0o750), ("captured/file/all.txt", 0o640)] {
        let metadata = fs::metadata(room.path(path)).expect("it was made");
        let others = metadata.permissions().mode() & 0o777 & !mode;
        assert_eq!(others, 0, "{path}: {:o}", metadata.permissions().mode());
    }
}

#[test]
fn a_second_agent_on_the_same_port_is_told_what_to_change() {
    let first = room();
    let first = first.run();
    let address = first.status_address();
    let second = Room::new(json!({
        "status": { "listen": address },
        "sources": [{ "type": "file", "include": ["*.log"] }],
        "sinks": [{ "type": "file", "path": "out.txt" }],
    }));
    let second = second.run();
    assert_eq!(second.wait_exit(DEADLINE), 1);
    let said = second.stderr();
    assert!(said.contains(&address) && said.contains("set status.listen to a free address"), "{said}");
    assert_eq!(first.stop(), 0);
}

/// What needs somebody's hand must be visible to those who only look at the metrics.
#[test]
fn the_metrics_to_watch_are_there_from_the_start() {
    let agent_room = room();
    let agent = agent_room.run();
    let (code, metrics) = agent.get("/metrics");
    assert_eq!(code, 200);
    for series in [
        "pending_lines{sink=\"file\"} ",
        "sink_resting{sink=\"file\"} 0",
        "stuck_tasks 0",
        "files_unreadable 0",
        "given_up_bytes 0",
    ] {
        assert!(metrics.contains(&format!("\nlog_capturer_{series}")), "{series} in\n{metrics}");
    }
    assert_eq!(agent.stop(), 0);
}

#[test]
fn an_output_that_cannot_be_written_names_its_sink() {
    let room = Room::new(json!({
        "sources": [{ "type": "file", "include": ["*.log"] }],
        "sinks": [{ "type": "file", "name": "keep", "path": "a.log/out.txt" }],
    }));
    fs::write(room.path("a.log"), "one\n").expect("a file can be written");
    let agent = room.run();
    agent.until("it says why it cannot write", || agent.stderr().contains("WARN  keep: could not "));
    assert_eq!(agent.stop(), 3);
}
