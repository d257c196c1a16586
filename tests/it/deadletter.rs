//! Dead letters, and the commands for them: beside an agent that runs and writes more, and without one.

use rustix::process::Signal;
use serde_json::{Value, json};

use crate::agent::{DEADLINE, Room};
use crate::files::{bytes, put};
use crate::receiver::{Mood, Receiver};

fn room(receiver: &Receiver) -> Room {
    Room::new(json!({
        "sources": [{ "type": "file", "name": "app", "include": ["logs/*.log"] }],
        "sinks": [{
            "type": "loki", "url": receiver.url(), "timeout": "1s",
            "batch": { "max_wait": "20ms" }, "retry": { "initial": "20ms", "max": "100ms" },
        }],
    }))
}

/// Exit code, and what was said on either way out.
fn deadletter(room: &Room, arguments: &[&str]) -> (i32, String) {
    let mut command = room.command(&[&["deadletter"], arguments].concat());
    let output = command.output().expect("the command runs");
    let text = [output.stdout, output.stderr].concat();
    (output.status.code().expect("an exit code"), String::from_utf8_lossy(&text).into_owned())
}

/// The texts of all letters.
fn letters(room: &Room) -> Vec<String> {
    let (code, text) = deadletter(room, &["list", "--json"]);
    assert_eq!(code, 0, "{text}");
    let letter = |line: &str| serde_json::from_str::<Value>(line).expect("a letter is JSON");
    text.lines().map(|line| letter(line)["bytes"].as_str().expect("text").trim_end().to_owned()).collect()
}

fn refuse(stores_the_rest: bool) -> Mood {
    Mood::Refuse { guilty: |line| line.contains("bad"), stores_the_rest }
}

#[test]
fn refused_letters_are_listed_replayed_and_purged() {
    let receiver = Receiver::start();
    let room = room(&receiver);
    receiver.set(refuse(true));
    let lines = ["good 1", "bad 1", "bad 2", "good 2", "bad 3"];
    put(&room.path("logs/app.log"), lines.map(|line| format!("{line}\n")).concat());
    assert_eq!(room.run_once().0, 0);
    assert_eq!(letters(&room), ["bad 1", "bad 2", "bad 3"]);
    let (code, table) = deadletter(&room, &["list"]);
    assert!(
        code == 0 && table.starts_with("TIME") && table.contains("bad 2") && table.ends_with("3 letters\n"),
        "{table}"
    );
    assert_eq!(deadletter(&room, &["list", "--sink", "nobody"]), (0, "0 letters\n".to_owned()));

    // Refused again, by a Loki that names nobody: each stays, in order, with the new reason.
    receiver.set(refuse(false));
    let (code, text) = deadletter(&room, &["replay"]);
    assert_eq!((code, text.as_str()), (3, "sent 0 letters\nleft 3 letters: refused again\n"));
    assert_eq!(letters(&room), ["bad 1", "bad 2", "bad 3"]);

    // Ill: they wait.
    receiver.set(Mood::status(503));
    let (code, text) = deadletter(&room, &["replay", "--source", "app"]);
    assert!(code == 3 && text.starts_with("sent 0 letters\nleft 3 letters: "), "{text}");
    assert_eq!(letters(&room).len(), 3);

    // Beside an agent that runs and has more of them.
    receiver.set(refuse(true));
    let agent = room.run();
    put(&room.path("logs/other.log"), "bad 4\n");
    agent.until("another letter is there", || letters(&room).len() == 4);
    receiver.set(Mood::Well);
    assert_eq!(deadletter(&room, &["replay"]), (0, "sent 4 letters\n".to_owned()));
    assert_eq!(letters(&room), [""; 0]);
    let before = receiver.stored();
    let first = before.iter().find(|entry| entry.line == "good 1").expect("it was stored");
    let bad = before.iter().find(|entry| entry.line == "bad 1").expect("it was replayed");
    assert_eq!((bad.time_ns, &bad.labels), (first.time_ns + 1, &first.labels), "as it was read");
    receiver.set(refuse(true));
    put(&room.path("logs/third.log"), "bad 5\nbad 6\n");
    agent.until("two letters more", || letters(&room).len() == 2);
    assert_eq!(agent.stop(), 0);

    let (code, text) = deadletter(&room, &["purge"]);
    assert!(code == 2 && text.contains("--all"), "{text}");
    assert_eq!(deadletter(&room, &["purge", "--source", "nobody"]), (0, "purged 0 letters\n".to_owned()));
    assert_eq!(deadletter(&room, &["purge", "--source", "app"]), (0, "purged 2 letters\n".to_owned()));
    assert_eq!(deadletter(&room, &["purge", "--all"]), (0, "purged 0 letters\n".to_owned()));
    assert_eq!(letters(&room), [""; 0]);
}

#[test]
fn a_replay_that_is_killed_or_interrupted_loses_nothing() {
    let receiver = Receiver::start();
    let room = room(&receiver);
    receiver.set(refuse(true));
    put(&room.path("logs/app.log"), (0..50).map(|at| format!("bad {at}\n")).collect::<String>());
    assert_eq!(room.run_once().0, 0);
    let all = letters(&room);
    assert_eq!(all.len(), 50);
    receiver.set(Mood::Hang);
    let replay = |end: &dyn Fn(&crate::agent::Agent)| {
        let requests = receiver.requests();
        let replay = room.start(&mut room.command(&["deadletter", "replay"]));
        replay.until("it sends", || receiver.requests() > requests);
        end(&replay);
        assert_eq!(letters(&room), all);
    };
    replay(&|replay| replay.kill9());
    replay(&|replay| {
        replay.signal(Signal::INT);
        replay.signal(Signal::INT);
        assert_eq!(replay.wait_exit(DEADLINE), 3, "{}", replay.stderr());
    });
    receiver.set(Mood::Well);
    assert_eq!(deadletter(&room, &["replay"]), (0, "sent 50 letters\n".to_owned()));
    assert_eq!(receiver.stored().len(), 50, "what was sent twice is the same to a Loki");
    assert!(bytes(&room.path("data/deadletter/deadletter.jsonl")).is_empty());
}

/// A file sink appends them, in their order; what is no letter, or for a sink that is gone, stays.
#[test]
fn letters_for_files() {
    let room = Room::new(json!({
        "sources": [{ "type": "file", "include": ["logs/*.log"] }],
        "sinks": [{ "type": "file", "name": "out", "path": "out.txt" }],
    }));
    let letter = |sink: &str, offset: u64, text: &str| {
        let letter = json!({
            "time": "2024-01-01T00:00:00Z", "sink": sink, "reason": "why", "source": "app", "generation": 7,
            "offset": offset, "len": text.len(), "record_time": "2024-01-01T00:00:00Z", "labels": {}, "bytes": text,
        });
        format!("{letter}\n")
    };
    let half = "{\"time\":\"2024-\n";
    let older =
        [letter("out", 0, "1\n"), half.into(), letter("gone", 2, "x\n"), letter("out", 4, "2\r\n")].concat();
    put(&room.path("data/deadletter/deadletter-000004.jsonl"), older);
    let newer: String = (3..5000).map(|at| letter("out", at * 10, &format!("{at}\n"))).collect();
    put(&room.path("data/deadletter/deadletter.jsonl"), newer);

    let (code, text) = deadletter(&room, &["replay"]);
    assert_eq!(code, 3, "{text}");
    assert_eq!(text, "sent 4999 letters\nleft 1 letter: gone: the configuration has no such sink\n");
    let expected = (3..5000).map(|at| format!("{at}\n")).collect::<String>();
    assert_eq!(String::from_utf8(bytes(&room.path("out.txt"))).unwrap(), format!("1\n2\r\n{expected}"));
    let left = bytes(&room.path("data/deadletter/deadletter-000004.jsonl"));
    assert_eq!(String::from_utf8(left).unwrap(), format!("{half}{}", letter("gone", 2, "x\n")));
    assert_eq!(deadletter(&room, &["list"]).0, 3, "one line is no letter");
    assert_eq!(
        deadletter(&room, &["purge", "--all"]),
        (0, "purged 1 letter, and lines that were none: 1\n".to_owned())
    );
    assert_eq!(deadletter(&room, &["list"]), (0, "0 letters\n".to_owned()));
}
