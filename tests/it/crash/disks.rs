//! A disk that takes nothing of the state, or keeps nothing of what it took. Of the latter all is written again, and
//! a sink whose disk it is waits; a life that ends meanwhile leaves word of it to the next one.

use serde_json::json;

use super::ends::{with_failing_state, with_failing_syncs};
use crate::agent::{Agent, Room};
use crate::files::{Writer, bytes};

/// Of each thread, some of which sync the state, too.
const SYNCS_THAT_FAIL: u32 = 15;

/// Near the most that strace counts.
const NO_END: u32 = 65_000;

const LINES: u64 = 5_000;

fn room() -> Room {
    Room::new(json!({
        "agent": { "sync_interval": "20ms" },
        "sources": [{ "type": "file", "include": ["logs/*.log"] }],
        "sinks": [{ "type": "file", "path": "out.txt", "retry": { "initial": "10ms", "max": "100ms" } }],
    }))
}

/// An agent that has heard of the first failure, its room, and what was written until then and once more.
fn agent_in_doubt(last: u32) -> Option<(Room, Agent, Writer)> {
    let room = room();
    let agent = with_failing_syncs(&room, last)?;
    let mut writer = Writer::new(1, room.path("logs/a.log"));
    writer.write(LINES);
    agent.until("a sync fails", || agent.stderr().contains("positions are kept in memory"));
    writer.write(LINES);
    Some((room, agent, writer))
}

fn assert_exact(room: &Room) {
    let (written, out) = (bytes(&room.path("logs/a.log")), bytes(&room.path("out.txt")));
    assert!(written == out, "{} bytes were written, {} came out", written.len(), out.len());
    let (code, said) = room.audit();
    assert_eq!((code, said.lines().next_back()), (0, Some("nothing is missing")), "{said}");
    assert!(!room.path("data/in-doubt").exists(), "all is proved");
}

#[test]
fn a_disk_that_keeps_nothing_for_a_while_costs_and_doubles_nothing() {
    let Some((room, agent, _)) = agent_in_doubt(SYNCS_THAT_FAIL) else { return };
    agent.until("the state can be written again", || agent.stderr().contains("can be written again"));
    let written = bytes(&room.path("logs/a.log")).len();
    agent.until("all is out", || bytes(&room.path("out.txt")).len() >= written);
    assert_eq!(agent.stop(), 0, "{}", agent.stderr());
    assert_exact(&room);
}

#[test]
fn a_life_that_is_killed_in_doubt_leaves_word_to_the_next_one() {
    let Some((room, agent, _)) = agent_in_doubt(NO_END) else { return };
    agent.until("the next life will hear of it", || room.path("data/in-doubt").exists());
    agent.kill9();
    let (code, said) = room.run_once();
    assert_eq!(code, 0, "{said}");
    assert_exact(&room);
}

/// The last state could not be written, which is said; nothing is lost by it.
#[test]
fn a_stop_in_doubt_ends_with_a_fault_and_costs_nothing() {
    let Some((room, agent, _)) = agent_in_doubt(NO_END) else { return };
    assert_eq!(agent.stop(), 1, "{}", agent.stderr());
    let (code, said) = room.run_once();
    assert_eq!(code, 0, "{said}");
    assert_exact(&room);
}

/// Full, failing, read-only: it is said where machines look, positions wait, files too; and when it is over nothing is
/// torn, lost or doubled.
#[test]
fn a_state_that_cannot_be_written_for_a_while_is_said_and_costs_nothing() {
    for error in ["ENOSPC", "EIO", "EROFS"] {
        let room = room();
        let Some(agent) = with_failing_state(&room, error, 5) else { return };
        let mut writer = Writer::new(1, room.path("logs/a.log"));
        let mut said = String::new();
        agent.until("it is said that the state cannot be written", || {
            writer.write(100);
            let (code, body) = agent.get("/readyz");
            said = body;
            code == 503 && (said.contains("the ledger cannot be written") || said.contains("files wait"))
        });
        writer.write(LINES);
        let written = bytes(&room.path("logs/a.log")).len();
        agent.until("all is out", || bytes(&room.path("out.txt")).len() >= written);
        agent.until("it is well again", || agent.get("/readyz").0 == 200);
        assert_eq!(agent.stop(), 0, "{error}: {}", agent.stderr());
        assert_exact(&room);
        println!("{error}: {said}");
    }
}
