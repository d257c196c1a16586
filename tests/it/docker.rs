//! Containers, against an engine that does what the test says ([`daemon`]), and against a real one
//! ([`engine`]): [`real`], [`drivers`], [`empty`], [`followed`], [`others`]; [`stuck`] against both. [`gone`], [`late`],
//! [`removed`] and [`torn`] against the first.

#![expect(clippy::disallowed_methods, reason = "the other side of the socket has threads of its own")]

mod daemon;
mod drivers;
mod empty;
pub mod engine;
mod followed;
mod gone;
mod late;
mod others;
mod real;
mod removed;
mod stuck;
mod torn;

pub use followed::THREADS_MAX;

use std::collections::BTreeSet;
use std::time::Duration;

use daemon::{Daemon, ERR, Mood, OUT, stamp};
use serde_json::{Value, json};

use crate::agent::{Agent, Room, Signal};
use crate::files::bytes;

const OUTPUT: &str = "out.json";

/// 2026-11-23T18:24:51Z
const T: i64 = 1_795_458_291_000_000_000;
const MS: i64 = 1_000_000;

struct House {
    room: Room,
    daemon: Daemon,
}

impl House {
    fn new(source: Value) -> House {
        House::built(source, "100ms", json!([]))
    }

    fn saved_every(source: Value, sync_interval: &str) -> House {
        House::built(source, sync_interval, json!([]))
    }

    fn with_pipeline(source: Value, pipeline: Value) -> House {
        House::built(source, "100ms", pipeline)
    }

    fn built(source: Value, sync_interval: &str, pipeline: Value) -> House {
        let room = Room::new(json!({
            "sources": [{ "type": "docker", "socket": "PLACE", "name": "engine" }],
            "sinks": [{ "type": "file", "path": OUTPUT, "format": "json", "batch": { "max_wait": "20ms" } }],
        }));
        let socket = room.outside().join("engine.sock");
        let mut entry = json!({ "type": "docker", "socket": socket, "name": "engine" });
        entry.as_object_mut().unwrap().extend(source.as_object().cloned().unwrap_or_default());
        room.configure(
            &json!({
                "status": { "listen": "127.0.0.1:0" },
                "agent": { "sync_interval": sync_interval },
                "sources": [entry],
                "pipeline": pipeline,
                "sinks": [{ "type": "file", "path": OUTPUT, "format": "json", "batch": { "max_wait": "20ms" } }],
            })
            .to_string(),
        );
        let daemon = Daemon::start(&socket);
        House { room, daemon }
    }

    /// `container stream time line`, in the order of the file.
    fn arrived(&self) -> Vec<String> {
        let path = self.room.path(OUTPUT);
        if !path.exists() {
            return Vec::new();
        }
        let text = bytes(&path);
        // The last line may be half written.
        let whole = &text[..text.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1)];
        let shown = |line: &[u8]| {
            let line: Value = serde_json::from_slice(line).unwrap();
            let text = |value: &Value| value.as_str().unwrap_or("?").to_owned();
            let (labels, stream) = (&line["labels"], &line["metadata"]["stream"]);
            let partial = if line["partial"] == true { "~" } else { "" };
            let container = text(&labels["container"]);
            format!("{container} {} {} {}{partial}", text(stream), text(&line["time"]), text(&line["line"]))
        };
        whole.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()).map(shown).collect()
    }

    #[track_caller]
    fn until_arrived(&self, agent: &Agent, lines: usize) {
        agent.until(&format!("{lines} lines have arrived"), || self.arrived().len() >= lines);
    }

    #[track_caller]
    fn assert_arrived(&self, agent: &Agent, expected: &[String]) {
        self.until_arrived(agent, expected.len());
        assert_eq!(self.arrived(), expected, "{}", agent.stderr());
    }

    /// Numbered lines, one a millisecond, both streams in turn.
    fn say(&self, name: &str, numbers: std::ops::Range<i64>) {
        for number in numbers {
            let stream = if number % 3 == 0 { ERR } else { OUT };
            self.daemon.say(name, stream, T + number * MS, format!("line {number}\n"));
        }
    }
}

fn line(name: &str, stream: u8, ns: i64, text: &str) -> String {
    let stream = if stream == OUT { "stdout" } else { "stderr" };
    let time = stamp(ns);
    format!("{name} {stream} {time} {text}")
}

fn numbered(name: &str, numbers: std::ops::Range<i64>) -> Vec<String> {
    let stream = |number| if number % 3 == 0 { ERR } else { OUT };
    numbers.map(|number| line(name, stream(number), T + number * MS, &format!("line {number}"))).collect()
}

fn threads(agent: &Agent) -> Vec<String> {
    let (_, tasks) = agent.get("/api/v1/tasks");
    let tasks: Value = serde_json::from_str(&tasks).unwrap();
    tasks.as_array().unwrap().iter().map(|task| task["name"].as_str().unwrap().to_owned()).collect()
}

fn readers(agent: &Agent) -> usize {
    threads(agent).iter().filter(|name| name.starts_with("c/")).count()
}

fn checkpoints(agent: &Agent) -> u64 {
    let books: Value = serde_json::from_str(&agent.get("/api/v1/ledger").1).unwrap();
    books["checkpoints"].as_u64().unwrap()
}

fn cpu_ms(agent: &Agent) -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", agent.pid())).unwrap();
    let after = stat.rsplit_once(')').unwrap().1;
    let ticks: u64 =
        after.split_whitespace().skip(11).take(2).map(|ticks| ticks.parse::<u64>().unwrap()).sum();
    ticks * 1000 / rustix::param::clock_ticks_per_second()
}

fn metric(agent: &Agent, name: &str) -> f64 {
    let (_, text) = agent.get("/metrics");
    let of = |line: &str| {
        line.starts_with(&format!("log_capturer_{name}{{")).then(|| line.rsplit(' ').next()?.parse().ok())
    };
    text.lines().find_map(of).flatten().unwrap_or(0.0)
}

/// The names of the containers of which the agent says that something may be lost.
fn named_as_removed(agent: &Agent) -> BTreeSet<String> {
    let log = agent.stderr();
    let said =
        log.lines().filter_map(|line| line.split_once(" was removed before it could be read to its end"));
    said.filter_map(|(before, _)| before.rsplit(' ').nth(1).map(str::to_owned)).collect()
}

/// So many are named in the agent's log; more are only counted.
const NAMED_MAX: usize = 20;

/// Whether the agent says of all of them that something may be lost.
fn are_said_to_be_lost(agent: &Agent, names: &[String]) -> bool {
    let named = named_as_removed(agent);
    let unnamed = names.iter().filter(|name| !named.contains(*name)).count();
    let counted = metric(agent, "containers_given_up_total") as usize;
    unnamed == 0 || named.len() == NAMED_MAX && counted >= NAMED_MAX + unnamed
}

#[test]
fn what_a_log_may_contain_arrives_exactly() {
    let house = House::new(json!({}));
    let daemon = &house.daemon;
    daemon.run("all");
    let part = "p".repeat(16 * 1024);
    let lf = "x".repeat(0x0a0a - 32); // the length of its frame is 0x0a0a
    for (stream, ms, text) in [
        (OUT, 0, "one\n"),
        (ERR, 1, "two\n"),
        (OUT, 2, "\n"),
        (OUT, 3, &format!("{lf}\n")),
        (OUT, 4, &part),
        (ERR, 5, "between\n"),
        (OUT, 4, &part),
        (OUT, 4, "end\n"),
        (OUT, 6, "equal\n"),
        (OUT, 6, "equal\n"),
        (ERR, 6, "equal\n"),
        (OUT, 5, "a step back\n"),
        (OUT, 7, "half"),
    ] {
        daemon.say("all", stream, T + ms * MS, text);
    }
    let agent = house.room.run();
    let mut expected = vec![
        line("all", OUT, T, "one"),
        line("all", ERR, T + MS, "two"),
        line("all", OUT, T + 2 * MS, ""),
        line("all", OUT, T + 3 * MS, &lf),
        line("all", ERR, T + 5 * MS, "between"),
        line("all", OUT, T + 4 * MS, &format!("{part}{part}end")),
        line("all", OUT, T + 6 * MS, "equal"),
        line("all", OUT, T + 6 * MS + 1, "equal"),
        line("all", ERR, T + 6 * MS + 2, "equal"),
        line("all", OUT, T + 5 * MS, "a step back"),
    ];
    house.assert_arrived(&agent, &expected);
    daemon.die("all");
    expected.push(line("all", OUT, T + 7 * MS, "half~"));
    house.assert_arrived(&agent, &expected);
    assert_eq!(agent.stop(), 0);
}

/// Rather doubled than lost, and with the same times, so that a sink which can tell has each once.
#[test]
fn a_clock_that_was_set_back_loses_nothing() {
    let house = House::new(json!({}));
    house.daemon.run("c");
    house.say("c", 0..100);
    let agent = house.room.run();
    house.until_arrived(&agent, 100);
    for number in 100..200 {
        house.daemon.say("c", OUT, T - 3600 * 1000 * MS + number * MS, format!("line {number}\n"));
    }
    house.until_arrived(&agent, 200);
    house.daemon.die("c");
    agent.until("nobody reads it", || readers(&agent) == 0);
    assert_eq!(agent.stop(), 0);
    house.say("c", 300..310);
    let agent = house.room.run();
    let texts = || house.arrived().into_iter().collect::<BTreeSet<_>>();
    agent.until("all are there", || texts().len() >= 210);
    assert_eq!(texts().len(), 210, "{}", agent.stderr());
}

#[test]
fn a_terminal_has_one_stream_and_long_lines() {
    let house = House::new(json!({}));
    house.daemon.create("tty", true, &[]);
    house.daemon.run("tty");
    let part = "p".repeat(16 * 1024);
    for (ms, text) in
        [(0, "one\r\n"), (1, &part), (1, &part), (1, "end\r\n"), (2, "half"), (3, "next life\r\n")]
    {
        house.daemon.say("tty", OUT, T + ms * MS, text);
    }
    let agent = house.room.run();
    let expected = [
        line("tty", OUT, T, "one"),
        line("tty", OUT, T + MS, &format!("{part}{part}end")),
        line("tty", OUT, T + 2 * MS, "half~"),
        line("tty", OUT, T + 3 * MS, "next life"),
    ];
    house.assert_arrived(&agent, &expected);
}

#[test]
fn lives_of_the_agent_and_of_the_container_double_and_lose_nothing() {
    let house = House::new(json!({}));
    house.daemon.run("c");
    let mut said = 0;
    for life in 0..4 {
        house.say("c", said..said + 700); // nobody is there
        let agent = house.room.run();
        house.until_arrived(&agent, said as usize + 700);
        house.say("c", said + 700..said + 1500);
        if life == 1 {
            house.daemon.die("c");
        }
        house.until_arrived(&agent, said as usize + 1500);
        if life == 1 {
            house.daemon.run("c");
        }
        said += 1500;
        assert_eq!(agent.stop(), 0, "{}", agent.stderr());
    }
    assert_eq!(house.arrived(), numbered("c", 0..said));
}

#[test]
fn killed_in_the_middle_the_same_lines_come_with_the_same_times() {
    let house = House::new(json!({}));
    house.daemon.run("c");
    for life in 0..4 {
        let agent = house.room.run();
        for round in 0..20 {
            let number = (life * 20 + round) * 100;
            house.say("c", number..number + 100);
            if round == 13 {
                house.until_arrived(&agent, (life * 2000 + 500) as usize);
                agent.kill9();
            }
        }
    }
    let agent = house.room.run();
    let expected: BTreeSet<String> = numbered("c", 0..8000).into_iter().collect();
    let distinct = || house.arrived().into_iter().collect::<BTreeSet<_>>();
    agent.until("all have arrived", || distinct().len() >= expected.len());
    assert!(distinct() == expected, "what came again was not the same\n{}", agent.stderr());
}

/// Nobody has saved that there are containers: what the outputs have tells how far each was read.
#[test]
fn killed_before_they_were_saved_each_line_of_containers_comes_once() {
    let house = House::saved_every(json!({}), "10m");
    // The first start is saved soon: then nothing is.
    let agent = house.room.run();
    agent.until("it is well", || checkpoints(&agent) == 1);
    let mut said = 0;
    house.daemon.run("a");
    house.daemon.run("b");
    let mut agent = Some(agent);
    for life in 0..4 {
        let agent = agent.take().unwrap_or_else(|| house.room.run());
        for round in 1..=6 {
            house.say("a", said..said + 50);
            house.say("b", said..said + 50);
            said += 50;
            if life == 0 || round % 2 == 0 {
                house.until_arrived(&agent, 2 * said as usize);
            }
        }
        agent.kill9();
    }
    let agent = house.room.run();
    house.until_arrived(&agent, 2 * said as usize);
    house.say("a", said..said + 10);
    house.until_arrived(&agent, 2 * said as usize + 10);
    let of = |name: &str| -> Vec<String> {
        let begin = format!("{name} ");
        house.arrived().into_iter().filter(|line| line.starts_with(&begin)).collect()
    };
    assert_eq!((of("a"), of("b")), (numbered("a", 0..said + 10), numbered("b", 0..said)));
    assert_eq!(agent.stop(), 0);
}

#[test]
fn a_log_that_breaks_in_a_frame_is_read_on_where_it_broke() {
    let house = House::new(json!({}));
    house.daemon.run("c");
    let agent = house.room.run();
    agent.until("it is followed", || readers(&agent) == 1);
    for round in 0..5 {
        house.daemon.die("c");
        house.say("c", round * 200..round * 200 + 200);
        agent.until("nobody reads it", || readers(&agent) == 0);
        house.daemon.mood(Mood::CutAfter(1000 + round as usize * 7));
        house.daemon.run("c");
        house.until_arrived(&agent, (round * 200 + 200) as usize);
        agent.until("it is followed again", || readers(&agent) == 1);
    }
    assert_eq!(house.arrived(), numbered("c", 0..1000), "{}", agent.stderr());
}

/// Its last words come, half lines too (marked as such), and nobody waits for more.
#[test]
fn a_log_that_stays_open_after_a_death_is_read_to_its_end_and_closed() {
    let house = House::new(json!({}));
    house.daemon.leave_logs_open();
    house.daemon.run("c");
    house.say("c", 0..10);
    let agent = house.room.run();
    house.until_arrived(&agent, 10);
    house.daemon.say("c", OUT, T + 10 * MS, "last words");
    house.daemon.die("c");
    agent.until("nobody reads it", || readers(&agent) == 0);
    let mut expected = numbered("c", 0..10);
    expected.push(line("c", OUT, T + 10 * MS, "last words~"));
    house.assert_arrived(&agent, &expected);
    house.daemon.run("c");
    house.say("c", 11..20);
    expected.extend(numbered("c", 11..20));
    house.assert_arrived(&agent, &expected);
    assert_eq!(readers(&agent), 1);
    assert_eq!(agent.stop(), 0, "{}", agent.stderr());
}

#[test]
fn a_log_that_cannot_be_read_is_one_line_in_ours() {
    let house = House::new(json!({}));
    house.daemon.mood(Mood::Unreadable);
    house.daemon.run("none");
    let agent = house.room.run();
    agent.until("it is said", || agent.stderr().contains("its log cannot be read"));
    for _ in 0..3 {
        let asked = house.daemon.requests("logs");
        house.daemon.die("none");
        house.daemon.run("none");
        agent.until("it was asked again", || house.daemon.requests("logs") > asked);
    }
    agent.until("nobody reads it", || readers(&agent) == 0);
    assert_eq!(agent.stderr().matches("cannot be read").count(), 1, "{}", agent.stderr());
    assert_eq!(agent.stop(), 0);
}

/// Podman answers 200 before it knows that it has no log.
#[test]
fn an_error_in_the_place_of_a_log_is_no_line() {
    for kind in ["application/json", "text/plain; charset=utf-8"] {
        let house = House::new(json!({}));
        house.daemon.mood(Mood::ErrorAs(kind));
        house.daemon.create("c", true, &[]);
        house.daemon.run("c");
        house.daemon.say("c", OUT, T, "line\r\n");
        let agent = house.room.run();
        agent.until("it is asked again", || house.daemon.requests("logs") >= 2);
        house.daemon.mood(Mood::Well);
        house.assert_arrived(&agent, &[line("c", OUT, T, "line")]);
        assert_eq!(agent.stop(), 0, "{}", agent.stderr());
    }
}

#[test]
fn threads_come_and_go_with_containers_and_a_stop_is_quick() {
    let house = House::new(json!({}));
    house.daemon.run("c0");
    let agent = house.room.run();
    agent.until("one is followed", || readers(&agent) == 1);
    let base = threads(&agent).len() - 1;
    for number in 1..50 {
        house.daemon.run(&format!("c{number}"));
    }
    agent.until("fifty are followed", || threads(&agent).len() == base + 50);
    (0..50).for_each(|number| house.say(&format!("c{number}"), 0..3));
    house.until_arrived(&agent, 150);
    for number in 0..25 {
        house.daemon.remove(&format!("c{number}"));
    }
    agent.until("threads go with them", || threads(&agent).len() == base + 25);
    let clock = log_capturer::clock::Clock::real();
    let told = clock.now();
    agent.signal(Signal::TERM);
    assert_eq!(agent.wait_exit(Duration::from_secs(10)), 0, "{}", agent.stderr());
    println!("25 followed streams: stopped after {:?}", clock.now().saturating_duration_since(told));
}

#[test]
fn who_is_followed_and_how_lines_are_labelled() {
    let house = House::new(json!({
        "include": { "names": ["web-*", "db"] },
        "exclude": { "labels": { "tier": "test*" } },
        "labels_from": ["name"],
        "container_labels": { "team": "com.example.team" },
        "container_env": { "stage": "STAGE" },
        "stream": "label",
    }));
    house.daemon.env(&["PATH=/bin", "STAGE=prod"]);
    for (name, labels) in [
        ("web-1", &[("com.example.team", "red")][..]),
        ("web-2", &[("tier", "testing")]),
        ("db", &[("log-capturer.enable", "false")]),
        ("other", &[]),
    ] {
        house.daemon.create(name, false, labels);
        house.daemon.run(name);
        house.daemon.say(name, ERR, T, "line\n");
    }
    let (code, stderr) = house.room.run_once();
    assert_eq!(code, 0, "{stderr}");
    let lines: Vec<Value> = bytes(&house.room.path(OUTPUT))
        .split(|byte| *byte == b'\n')
        .filter(|line| !line.is_empty())
        .map(|line| serde_json::from_slice(line).unwrap())
        .collect();
    assert_eq!(lines.len(), 1, "{lines:?}");
    let mut labels = lines[0]["labels"].clone();
    labels.as_object_mut().unwrap().remove("host");
    let expected = json!({ "container": "web-1", "source": "engine", "stage": "prod", "stream": "stderr", "team": "red" });
    assert_eq!(labels, expected);
}

#[test]
fn a_container_chooses_the_stages_for_its_lines() {
    let stages = json!([{ "type": "drop", "contains": "noise", "by_label": "quiet" }]);
    let house = House::with_pipeline(json!({}), stages);
    for (name, chosen) in [("all", None), ("quiet", Some("quiet")), ("wrong", Some("quite"))] {
        let labels: Vec<(&str, &str)> =
            chosen.map(|value| ("log-capturer.stages", value)).into_iter().collect();
        house.daemon.create(name, false, &labels);
        house.daemon.run(name);
        house.daemon.say(name, OUT, T, "noise\n");
        house.daemon.say(name, OUT, T + MS, "line\n");
    }
    let agent = house.room.run();
    house.until_arrived(&agent, 5);
    house.daemon.die("wrong");
    house.daemon.run("wrong");
    house.daemon.say("wrong", OUT, T + 2 * MS, "again\n");
    house.until_arrived(&agent, 6);
    let mut arrived = house.arrived();
    arrived.sort();
    let all = |name| [line(name, OUT, T, "noise"), line(name, OUT, T + MS, "line")];
    let quiet = [line("quiet", OUT, T + MS, "line")];
    let mut expected =
        [&all("all")[..], &quiet, &all("wrong"), &[line("wrong", OUT, T + 2 * MS, "again")]].concat();
    expected.sort();
    assert_eq!(arrived, expected, "{}", agent.stderr());
    let said =
        r#"has the label log-capturer.stages with ["quite"]; the stages that can be chosen are ["quiet"]"#;
    assert_eq!(agent.stderr().matches(said).count(), 1, "{}", agent.stderr());
    assert_eq!(agent.stop(), 0, "{}", agent.stderr());
}
