//! To Loki: what arrives there, and what a Loki that is dead, slow, lying or picky does to it, to the sink
//! beside it and to the status.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};

use crate::agent::{Agent, Room};
use crate::expect::Arrived;
use crate::files::{Writer, bytes, put};
use crate::receiver::{Mood, Receiver};

/// Impatient, so that a test meets every mood soon.
fn loki(receiver: &Receiver) -> Value {
    json!({
        "type": "loki", "url": receiver.url(), "timeout": "1s",
        "batch": { "max_wait": "20ms" }, "retry": { "initial": "20ms", "max": "100ms" },
    })
}

fn room(sinks: &[Value]) -> Room {
    Room::new(json!({
        "agent": { "stop_timeout": "5s" },
        "sources": [{ "type": "file", "name": "app", "include": ["logs/*.log"], "labels": { "team": "a\"b" } }],
        "sinks": sinks,
    }))
}

fn dead_letters(room: &Room) -> Vec<String> {
    let text = bytes(&room.path("data/deadletter/deadletter.jsonl"));
    String::from_utf8(text).expect("JSON is UTF-8").lines().map(str::to_owned).collect()
}

#[track_caller]
fn until_stored(agent: &Agent, receiver: &Receiver, lines: u64) {
    agent.until(&format!("Loki has {lines} lines"), || receiver.arrived().distinct() >= lines);
}

#[track_caller]
fn assert_exact(receiver: &Receiver, writer: &Writer) {
    receiver.arrived().compare(&BTreeMap::from([writer.written()])).assert_exact();
}

#[test]
fn labels_times_and_tenant() {
    for encoding in ["protobuf", "json"] {
        let receiver = Receiver::start();
        let mut sink = loki(&receiver);
        sink["tenant"] = json!("me");
        sink["encoding"] = json!(encoding);
        sink["labels"] = json!({ "site": "edge" });
        let room = room(&[sink]);
        let same = ["again\n"; 100].concat();
        put(&room.path("logs/app.log"), format!("\nna\u{ef}ve\n{same}"));
        let (code, stderr) = room.run_once();
        assert_eq!(code, 0, "{encoding}: {stderr}");

        let entries = receiver.stored();
        let lines: Vec<&str> = entries.iter().map(|entry| &*entry.line).collect();
        assert_eq!(lines[..3], ["", "na\u{ef}ve", "again"], "{encoding}");
        assert_eq!(lines.len(), 102, "{encoding}: equal lines are kept apart by their times");
        assert!(entries.is_sorted_by(|a, b| a.time_ns < b.time_ns), "{encoding}: times rise strictly");
        let (labels, filename) = (&entries[0].labels, room.path("logs/app.log"));
        assert_eq!(labels["filename"], filename.to_string_lossy(), "{encoding}");
        assert_eq!([&*labels["source"], &*labels["team"], &*labels["site"]], ["app", "a\"b", "edge"]);
        assert!(!labels["host"].is_empty());
        assert!(entries.iter().all(|entry| entry.tenant.as_deref() == Some("me") && entry.labels == *labels));
    }
}

#[test]
fn bytes_that_are_no_text_become_text() {
    let receiver = Receiver::start();
    let room = room(&[loki(&receiver)]);
    put(&room.path("logs/app.log"), b"one\ncaf\xe9 \xff\ntwo\r\n");
    assert_eq!(room.run_once().0, 0);
    let lines: Vec<String> = receiver.stored().into_iter().map(|entry| entry.line).collect();
    assert_eq!(lines, ["one", "caf\u{fffd} \u{fffd}", "two"]);
}

/// Whatever Loki answers on the way, it ends up with every line once, in order, and nothing is given up.
#[test]
fn no_mood_loses_or_doubles_a_line() {
    let check = |what: &str, script: Vec<Mood>| {
        let receiver = Receiver::start();
        let room = room(&[loki(&receiver)]);
        let mut writer = Writer::new(1, room.path("logs/app.log"));
        receiver.play(script, Mood::Well);
        let agent = room.run();
        agent.until(&format!("the script is played: {what}"), || {
            writer.write(50); // more with every look, so that there are as many requests as it takes
            receiver.script_left() == 0
        });
        until_stored(&agent, &receiver, writer.written().1);
        assert_eq!(agent.stop(), 0, "{what}: {}", agent.stderr());
        assert_exact(&receiver, &writer);
        assert_eq!(dead_letters(&room), [""; 0], "{what}");
    };
    check("ill", vec![Mood::status(503), Mood::status(500), Mood::status(502), Mood::status(504)]);
    check("busy", vec![Mood::status(429), Mood::retry_after(429, 1), Mood::retry_after(503, 1)]);
    let denied = [401, 403, 404, 408].map(Mood::status);
    check("the password was changed", denied.to_vec());
    let elsewhere = ("Location", "http://127.0.0.1:1/".to_owned());
    check("moved", vec![Mood::Status { code: 302, headers: vec![elsewhere], body: String::new() }]);
    check("resets", vec![Mood::Reset, Mood::Reset]);
    check("lies", vec![Mood::Lie, Mood::Well, Mood::Lie, Mood::Lie]);
    check("hangs until the time-out", vec![Mood::Hang, Mood::Well, Mood::Hang]);
    check("small", vec![Mood::TooLarge { limit: 20_000 }; 8]);
    check("slow", vec![Mood::Slow { bytes_per_second: 100_000 }]);
    check(
        "all at once",
        vec![
            Mood::status(503),
            Mood::retry_after(429, 1),
            Mood::Hang,
            Mood::Lie,
            Mood::Reset,
            Mood::status(401),
        ],
    );
}

#[test]
fn a_dead_sink_does_not_stop_the_healthy_one() {
    for mood in [Mood::status(503), Mood::Hang, Mood::HangInAccept] {
        let receiver = Receiver::start();
        let room = room(&[loki(&receiver), json!({ "type": "file", "path": "out.txt" })]);
        let mut writer = Writer::new(1, room.path("logs/app.log"));
        let output = || Arrived::in_file(&room.path("out.txt"));
        receiver.set(mood);
        let agent = room.run();
        writer.write(5_000);
        agent.until("the healthy sink has everything", || output().distinct() >= 5_000);
        agent.until("the status tells of the other", || agent.get("/readyz").0 == 503);
        assert_eq!(agent.get("/healthz").0, 200, "it is ill, not dead");
        assert_eq!(receiver.count(), 0);
        receiver.set(Mood::Well);
        until_stored(&agent, &receiver, 5_000);
        agent.until("it is ready again", || agent.get("/readyz").0 == 200);
        assert_eq!(agent.stop(), 0, "{}", agent.stderr());
        assert_exact(&receiver, &writer);
        output().compare(&BTreeMap::from([writer.written()])).assert_exact();
    }
}

/// It stored the batch and the answer was lost: the same entries with the same times again add nothing.
#[test]
fn an_answer_that_got_lost_doubles_nothing() {
    let receiver = Receiver::start();
    let room = room(&[loki(&receiver)]);
    let mut writer = Writer::new(1, room.path("logs/app.log"));
    writer.write(3_000);
    receiver.play(vec![Mood::Lie; 5], Mood::Well);
    assert_eq!(room.run_once().0, 0);
    assert_exact(&receiver, &writer);
    assert!(receiver.raw().len() > 3_000, "the same batch was sent again");
}

#[test]
fn a_refused_line_goes_to_the_dead_letters_alone() {
    let guilty = |line: &str| line.starts_with("1:700 ");
    for stores_the_rest in [true, false] {
        let receiver = Receiver::start();
        let room = room(&[loki(&receiver)]);
        let mut writer = Writer::new(1, room.path("logs/app.log"));
        writer.write(2_000);
        receiver.set(Mood::Refuse { guilty, stores_the_rest });
        let (code, stderr) = room.run_once();
        assert_eq!(code, 0, "{stderr}");

        let letters = dead_letters(&room);
        assert_eq!(letters.len(), 1, "{letters:?}");
        let letter: Value = serde_json::from_str(&letters[0]).expect("a dead letter is JSON");
        let texts: BTreeSet<&str> =
            letter.as_object().into_iter().flatten().filter_map(|(_, v)| v.as_str()).collect();
        assert!(texts.iter().any(|text| guilty(text)), "{letter}");
        let lines: Vec<String> = receiver.stored().into_iter().map(|entry| entry.line).collect();
        assert_eq!(lines.len(), 1_999, "everybody else is there");
        assert!(!lines.iter().any(|line| guilty(line)));
    }
}

/// Two lines are dropped by their level, one is no JSON; the times and labels are those in the text.
#[test]
fn a_pipeline_end_to_end() {
    let receiver = Receiver::start();
    let room = Room::new(json!({
        "sources": [{ "type": "file", "include": ["logs/*.log"] }],
        "pipeline": [
            { "type": "json" },
            { "type": "timestamp", "field": "time", "format": "rfc3339" },
            { "type": "labels", "from": { "level": "level" } },
            { "type": "drop", "field": "level", "equals": "debug" },
        ],
        "sinks": [loki(&receiver)],
    }));
    let line = |second: u32, level: &str| {
        format!(
            "{{\"time\":\"2024-05-01T10:00:{second:02}.5Z\",\"level\":\"{level}\",\"message\":\"m{second}\"}}\n"
        )
    };
    let text =
        [line(1, "info"), line(2, "debug"), line(3, "error"), "plain\n".into(), line(4, "debug")].concat();
    put(&room.path("logs/app.log"), text);
    let (code, stderr) = room.run_once();
    assert_eq!(code, 0, "{stderr}");

    let mut entries = receiver.stored();
    entries.sort_by_key(|entry| entry.time_ns);
    let level = |at: usize| entries[at].labels.get("level").map(String::as_str);
    assert_eq!(entries.len(), 3, "{entries:?}");
    assert_eq!([level(0), level(1), level(2)], [Some("info"), Some("error"), None]);
    // 2024-05-01T10:00:00Z; what is finer than the text belongs to the line's number.
    let start_ms = 1_714_557_600_000;
    assert_eq!(entries[0].time_ns / 1_000_000, start_ms + 1_500);
    assert_eq!(entries[1].time_ns / 1_000_000, start_ms + 3_500);
    assert_eq!(entries[2].line, "plain");
}

/// An ingester speaks of the last stream of a push only: every other is asked about alone.
#[test]
fn the_refusal_of_one_stream_says_nothing_of_the_others() {
    let receiver = Receiver::start();
    receiver.set(Mood::Refuse { guilty: |line| line.contains("bad"), stores_the_rest: true });
    let room = Room::new(json!({
        "sources": [{ "type": "file", "include": ["logs/*.log"] }],
        "sinks": [{ "type": "loki", "url": receiver.url(), "batch": { "max_wait": "500ms" } }],
    }));
    for file in 0..5 {
        put(&room.path(&format!("logs/{file}.log")), format!("good {file}\nbad {file}\nfine {file}\n"));
    }
    let (code, said) = room.run_once();
    assert_eq!(code, 0, "{said}");
    let mut stored: Vec<String> = receiver.stored().into_iter().map(|entry| entry.line).collect();
    stored.sort();
    stored.dedup(); // the same entry again is one for Loki
    let expected: Vec<String> =
        ["fine", "good"].iter().flat_map(|word| (0..5).map(move |file| format!("{word} {file}"))).collect();
    assert_eq!(stored, expected, "{said}");
    let letters = dead_letters(&room);
    let mut dead: Vec<&str> =
        letters.iter().filter_map(|letter| Some(&letter[letter.find("bad ")?..][..5])).collect();
    dead.sort();
    assert_eq!(dead, ["bad 0", "bad 1", "bad 2", "bad 3", "bad 4"], "{letters:?}");
}

/// For a push of several streams an ingester is silent about all but the last. What may be refused goes alone, so it is
/// told; and what was stored is not sent again.
#[test]
fn a_stream_that_may_be_refused_is_not_hidden_by_another() {
    let line = |time: &str, text: &str| format!("{{\"time\":\"2026-01-31T{time}Z\",\"text\":\"{text}\"}}\n");
    let far_behind = line("10:00:00", "bad");
    let much = line("12:00:00", "bad") + &line("12:00:00", &"x".repeat(1000)).repeat(300);
    for (what, suspicious, stores_the_rest) in [
        ("far behind", &far_behind, true),
        ("much", &much, true),
        ("far behind, and nobody is named", &far_behind, false),
        ("much, and nobody is named", &much, false),
    ] {
        let receiver = Receiver::start();
        receiver.set(Mood::Refuse { guilty: |line| line.contains("bad"), stores_the_rest });
        let room = Room::new(json!({
            "sources": [{ "type": "file", "include": ["logs/*.log"] }],
            "pipeline": [{ "type": "json" }, { "type": "timestamp", "field": "time", "format": "rfc3339" }],
            "sinks": [{ "type": "loki", "url": receiver.url(), "batch": { "max_wait": "500ms" } }],
        }));
        for file in 0..5 {
            let text = if file == 2 { suspicious.clone() } else { line("12:00:00", &format!("good {file}")) };
            put(&room.path(&format!("logs/{file}.log")), text);
        }
        let (code, said) = room.run_once();
        assert_eq!(code, 0, "{said}");
        assert_eq!(dead_letters(&room).len(), 1, "{what}: {said}");
        let sent = receiver.raw();
        for file in 0..5 {
            let times = sent.iter().filter(|entry| entry.line.contains(&format!("good {file}"))).count();
            assert_eq!(times, usize::from(file != 2), "{what}: {file}");
        }
        assert_eq!(receiver.stored().len(), suspicious.lines().count() - 1 + 4, "{what}");
    }
}

/// More streams that go alone than a lane waits for at once.
#[test]
fn a_crowd_of_old_streams() {
    let receiver = Receiver::start();
    let room = Room::new(json!({
        "sources": [{ "type": "file", "include": ["logs/*.log"] }],
        "pipeline": [{ "type": "json" }, { "type": "timestamp", "field": "time", "format": "rfc3339" }],
        "sinks": [{ "type": "loki", "url": receiver.url(), "batch": { "max_wait": "500ms" } }],
    }));
    for file in 0..100 {
        let hour = if file == 50 { 12 } else { 10 };
        let line = format!("{{\"time\":\"2026-01-31T{hour}:00:00Z\",\"text\":\"{file}\"}}\n");
        put(&room.path(&format!("logs/{file}.log")), line);
    }
    let (code, said) = room.run_once();
    assert_eq!(code, 0, "{said}");
    assert_eq!((receiver.stored().len(), receiver.raw().len()), (100, 100), "each once");
    assert!(receiver.requests() >= 100, "{} requests", receiver.requests());
}
