//! Configuration that changes between stop and start: nothing is lost, and nothing is handed to the wrong one.
//!
//! Each case is a few lives of one agent. Before each, two programs write some more lines; in each, some sinks are
//! there and some of these are dead. What a sink has in the end is told by the lives whose lines it has: "02" are
//! those that were written before the first and the third.

use std::fs;
use std::process::Stdio;

use serde_json::{Value, json};

use crate::agent::{DEADLINE, Room};
use crate::expect::{ALL_SIZES, push_line};
use crate::files::{Writer, bytes, put};

/// Of each writer before each life. The first life has a long line among them.
const LINES: u64 = 150;

/// Many short lines in one log, and lines of all sizes in the other.
const WRITERS: [(u32, &str); 2] = [(1, "app"), (ALL_SIZES + 2, "web")];

/// One life: the sources, the sinks by name, and which of these are dead.
struct Life {
    sources: Value,
    /// Names, and what is special about a sink.
    sinks: Vec<(&'static str, Value)>,
    dead: &'static str,
    agent: Value,
    /// Both logs were renamed and made again before it, in the middle of what was written.
    rotated: bool,
}

fn life(sources: Value, sinks: &'static str) -> Life {
    let sinks = sinks.split_whitespace().map(|name| (name, json!({}))).collect();
    Life { sources, sinks, dead: "", agent: json!({}), rotated: false }
}

impl Life {
    fn dead(self, sinks: &'static str) -> Life {
        Life { dead: sinks, ..self }
    }

    fn rotated(self) -> Life {
        Life { rotated: true, ..self }
    }

    fn agent(self, agent: Value) -> Life {
        Life { agent, ..self }
    }

    fn each_sink(mut self, special: Value) -> Life {
        self.sinks.iter_mut().for_each(|(_, at)| at.clone_from(&special));
        self
    }
}

fn source(name: &str, include: &str) -> Value {
    json!({ "type": "file", "name": name, "include": [include] })
}

fn all() -> Value {
    json!([source("all", "logs/*.log")])
}

fn with(mut object: Value, special: &Value) -> Value {
    for (key, value) in special.as_object().into_iter().flatten() {
        object[key] = value.clone();
    }
    object
}

/// What each sink has of the lines of each writer.
type Expected = (&'static str, [&'static str; 2]);

/// The only one who knows the agent. `expected`: exactly these lines, each once, in their order and byte for byte.
fn check(what: &str, lives: Vec<Life>, expected: &[Expected]) {
    let room = Room::new(json!({}));
    let mut writers = WRITERS.map(|(id, name)| Writer::new(id, room.path(&format!("logs/{name}.log"))));
    for (number, life) in lives.into_iter().enumerate() {
        for (writer, (_, name)) in writers.iter_mut().zip(WRITERS) {
            let before = if life.rotated { LINES / 3 } else { LINES };
            writer.write(before);
            if life.rotated {
                writer.rotate(&format!("{name}.log.{number}"));
                writer.write(LINES - before);
            }
        }
        let path = |name: &str| format!("{name}/out");
        let sinks = life.sinks.iter().map(|(name, special)| {
            with(json!({ "type": "file", "name": name, "path": path(name) + "/{file}" }), special)
        });
        let config = json!({
            "agent": with(json!({ "stop_timeout": "500ms" }), &life.agent),
            "status": { "listen": null },
            "sources": life.sources,
            "sinks": sinks.collect::<Vec<_>>(),
        });
        room.configure(&config.to_string());
        // A file where its folder should be: no sink can write there.
        let blocked = |name: &str| room.path(name);
        for name in life.dead.split_whitespace() {
            let (folder, aside) = (blocked(name), blocked(&format!("{name}.aside")));
            if folder.exists() {
                rename(&folder, &aside);
            }
            put(&folder, b"");
        }
        let once = ["run", "--once", "--max-time", if life.dead.is_empty() { "50s" } else { "1s" }];
        let agent = room.start(room.command(&once).stdin(Stdio::null()).stdout(Stdio::null()));
        let code = agent.wait_exit(DEADLINE);
        let right = if life.dead.is_empty() { 0 } else { 3 };
        assert_eq!(code, right, "{what}: life {number}\n{}", agent.stderr());
        for name in life.dead.split_whitespace() {
            let (folder, aside) = (blocked(name), blocked(&format!("{name}.aside")));
            fs::remove_file(&folder).expect("a file can be deleted");
            if aside.exists() {
                rename(&aside, &folder);
            }
        }
    }
    for (sink, lives) in expected {
        for (writer, lives) in writers.iter().zip(lives) {
            let path = writer.path().strip_prefix("/").expect("a room has an absolute path");
            let output = bytes(&room.path(sink).join("out").join(path));
            let mut truth = Vec::new();
            for life in lives.bytes().map(|digit| u64::from(digit - b'0')) {
                (life * LINES..(life + 1) * LINES)
                    .for_each(|line| push_line(&mut truth, writer.written().0, line));
            }
            let has = lives_in(&output, writer.written());
            assert!(
                output == truth,
                "{what}: {sink} has {has} of writer {}, not {lives}",
                writer.written().0
            );
        }
    }
}

#[expect(clippy::disallowed_methods, reason = "a folder of the test need not survive a power cut")]
fn rename(from: &std::path::Path, to: &std::path::Path) {
    fs::rename(from, to).expect("a folder can be renamed");
}

/// For a message: how many lines of each life, as "0: 150, 1: 20".
fn lives_in(output: &[u8], (id, written): (u32, u64)) -> String {
    let count = |life: u64| {
        let numbers = life * LINES..(life + 1) * LINES;
        let starts: Vec<Vec<u8>> = numbers.map(|number| format!("{id}:{number} ").into_bytes()).collect();
        let lines = output.split(|byte| *byte == b'\n');
        lines.filter(|line| starts.iter().any(|start| line.starts_with(start))).count()
    };
    let counts: Vec<String> = (0..written / LINES).map(|life| format!("{life}: {}", count(life))).collect();
    format!("{} ({} bytes)", counts.join(", "), output.len())
}

#[test]
fn sinks_come_and_go() {
    let lives = |sinks: &[&'static str]| sinks.iter().map(|sinks| life(all(), sinks)).collect();
    check("a sink is added", lives(&["a", "a b"]), &[("a", ["01"; 2]), ("b", ["1"; 2])]);
    check("a sink is removed", lives(&["a b", "a"]), &[("a", ["01"; 2]), ("b", ["0"; 2])]);
    check("one comes back", lives(&["a b", "a", "a b"]), &[("a", ["012"; 2]), ("b", ["012"; 2])]);
    check("all are others", lives(&["a", "b"]), &[("a", ["0"; 2]), ("b", ["1"; 2])]);
    check("there and back", lives(&["a", "b", "a"]), &[("a", ["012"; 2]), ("b", ["1"; 2])]);
    check(
        "in another order",
        lives(&["a b c", "c a b"]),
        &[("a", ["01"; 2]), ("b", ["01"; 2]), ("c", ["01"; 2])],
    );
    check("renamed", lives(&["a b", "a c", "a c"]), &[("a", ["012"; 2]), ("b", ["0"; 2]), ("c", ["12"; 2])]);
}

/// One is dead in the first life: what it lacks is its own.
#[test]
fn what_a_dead_sink_lacks_is_for_nobody_else() {
    let lives = |sinks: &[&'static str]| {
        let mut lives: Vec<Life> = sinks.iter().map(|sinks| life(all(), sinks)).collect();
        lives[0].dead = "b";
        lives
    };
    check("it is well again", lives(&["a b", "a b"]), &[("a", ["01"; 2]), ("b", ["01"; 2])]);
    check("in another order", lives(&["a b", "b a"]), &[("a", ["01"; 2]), ("b", ["01"; 2])]);
    check("among others", lives(&["b a", "c a d b"]), &[("a", ["01"; 2]), ("b", ["01"; 2])]);
    check("alone", lives(&["a b", "b"]), &[("a", ["0"; 2]), ("b", ["01"; 2])]);
    check("removed", lives(&["a b", "a"]), &[("a", ["01"; 2]), ("b", [""; 2])]);
    check("removed and back", lives(&["a b", "a", "b a"]), &[("a", ["012"; 2]), ("b", ["012"; 2])]);
    check("renamed and back", lives(&["a b", "a c", "a b"]), &[("a", ["012"; 2]), ("b", ["012"; 2])]);
    check("the well one is removed", lives(&["a b", "b", "a b"]), &[("a", ["012"; 2]), ("b", ["012"; 2])]);
}

#[test]
fn sources_come_and_go() {
    let (app, web) = (|name| source(name, "logs/app.log"), |name| source(name, "logs/web.log"));
    let lives = |sources: &[Value]| -> Vec<Life> {
        sources.iter().map(|sources| life(sources.clone(), "a b")).collect()
    };
    let both = |lives: [&'static str; 2]| [("a", lives), ("b", lives)];
    check("renamed", lives(&[all(), json!([source("else", "logs/*.log")])]), &both(["01"; 2]));
    check("split", lives(&[all(), json!([app("x"), web("y")])]), &both(["01"; 2]));
    check("put together", lives(&[json!([app("x"), web("y")]), all()]), &both(["01"; 2]));
    check(
        "names exchanged",
        lives(&[json!([app("x"), web("y")]), json!([web("x"), app("y")])]),
        &both(["01"; 2]),
    );
    check("one is added", lives(&[json!([app("x")]), json!([app("x"), web("y")])]), &both(["01"; 2]));
    check("one is removed", lives(&[json!([app("x"), web("y")]), json!([app("x")])]), &both(["01", "0"]));
    let without_web =
        json!([{ "type": "file", "name": "all", "include": ["logs/*.log"], "exclude": ["logs/web*"] }]);
    check("excluded for a while", lives(&[all(), without_web, all()]), &both(["012"; 2]));
    check(
        "away for a while",
        lives(&[json!([app("x"), web("y")]), json!([app("x")]), json!([app("x"), web("y")])]),
        &both(["012"; 2]),
    );
    check(
        "back with another name",
        lives(&[json!([app("x"), web("y")]), json!([app("x")]), json!([app("x"), web("z")])]),
        &both(["012"; 2]),
    );
}

/// What a rotated file holds is found by what the ledger knows of it.
#[test]
fn rotated_and_changed_at_once() {
    let lives = |sources: Value, sinks| vec![life(all(), "a b").dead("b"), life(sources, sinks).rotated()];
    let both = [("a", ["01"; 2]), ("b", ["01"; 2])];
    check("nothing else", lives(all(), "a b"), &both);
    check("sinks in another order", lives(all(), "b a"), &both);
    check("a sink is removed", lives(all(), "a"), &[("a", ["01"; 2]), ("b", [""; 2])]);
}

/// Whoever captures the path now is who goes on with what was rotated away from it.
#[test]
fn rotated_and_the_sources_changed() {
    let lives = |sources: Value| vec![life(all(), "a b").dead("b"), life(sources, "a b").rotated()];
    let both = [("a", ["01"; 2]), ("b", ["01"; 2])];
    let renamed = json!([source("else", "logs/*.log")]);
    let split = json!([source("x", "logs/app.log"), source("y", "logs/web.log")]);
    let added = json!([source("new", "logs/w*.log"), source("all", "logs/*.log")]);
    check("the source is renamed", lives(renamed), &both);
    check("the source is split", lives(split), &both);
    check("another source takes one of them", lives(added), &both);
}

/// Whatever else is changed while a sink lacks something.
#[test]
fn labels_and_limits_change() {
    let to_both = [("a", ["012"; 2]), ("b", ["012"; 2])];
    let lives = |change: fn(Life) -> Life| {
        vec![life(all(), "a b").dead("b"), change(life(all(), "a b").dead("a")), life(all(), "b a")]
    };
    let labelled =
        json!([{ "type": "file", "name": "all", "include": ["logs/*.log"], "labels": { "env": "new" } }]);
    check("nothing", lives(|life| life), &to_both);
    check(
        "labels",
        vec![life(all(), "a b").dead("b"), life(labelled, "a b")],
        &[("a", ["01"; 2]), ("b", ["01"; 2])],
    );
    check("labels of sinks", lives(|life| life.each_sink(json!({ "labels": { "env": "new" } }))), &to_both);
    check("small batches", lives(|life| life.each_sink(json!({ "batch": { "max_lines": 7 } }))), &to_both);
    check("workers", lives(|life| life.agent(json!({ "workers": 3 }))), &to_both);
    check("less memory", lives(|life| life.agent(json!({ "memory_budget": "4MiB" }))), &to_both);
    let short =
        json!([{ "type": "file", "name": "all", "include": ["logs/*.log"], "max_line_bytes": "4KiB" }]);
    check(
        "shorter lines, and long ones again",
        vec![life(all(), "a b").dead("b"), life(short, "a b").dead("a"), life(all(), "a b")],
        &to_both,
    );
}
