//! What the agent makes of a real engine's containers ([`Engine`]).

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::time::Duration;

use log_capturer::clock::Clock;
use parking_lot::Mutex;
use serde_json::{Value, json};

use super::engine::{Engine, PATIENCE, times};
use super::{are_said_to_be_lost, cpu_ms, metric, readers, threads};
use crate::agent::{Agent, Room, pause, until};
use crate::files::bytes;
use crate::push::Entry;
use crate::receiver::Receiver;

/// Short lines in what an engine reads at once, and in a pipe.
const BUFFER_LINES: usize = (16 + 64) * 1024 / 2;

/// `(container, stream, time, line)`, in order.
pub fn arrived(room: &Room) -> Vec<[String; 4]> {
    let path = room.path("out.json");
    let text = if path.exists() { bytes(&path) } else { Vec::new() };
    let whole = &text[..text.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1)];
    let line = |line: &[u8]| {
        let line: Value = serde_json::from_slice(line).unwrap();
        [&line["labels"]["container"], &line["metadata"]["stream"], &line["time"], &line["line"]]
            .map(|value| value.as_str().unwrap_or_default().to_owned())
    };
    whole.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()).map(line).collect()
}

/// What a query of Loki would give, by container, in order of arrival: entries with equal labels, time and text are
/// one.
#[derive(Default)]
struct Heard {
    marks: HashSet<u64>,
    repeats: u64,
    lines: BTreeMap<String, Vec<String>>,
}

impl Heard {
    fn hear(&mut self, entry: Entry) {
        let mut hasher = DefaultHasher::new();
        (&entry.labels, entry.time_ns, &entry.line).hash(&mut hasher);
        if !self.marks.insert(hasher.finish()) {
            self.repeats += 1;
            return;
        }
        let container = entry.labels.get("container").cloned().unwrap_or_default();
        self.lines.entry(container).or_default().push(entry.line);
    }
}

/// Stretches of `0..count` that an engine does not have, and how many lines of it are none of these numbers.
fn gaps(lines: &[String], count: usize) -> (Vec<std::ops::Range<usize>>, usize) {
    let numbers: BTreeSet<usize> =
        lines.iter().filter_map(|line| line.parse().ok()).filter(|number| *number < count).collect();
    let mut missing: Vec<std::ops::Range<usize>> = Vec::new();
    for number in (0..count).filter(|number| !numbers.contains(number)) {
        match missing.last_mut() {
            Some(last) if last.end + 2 >= number => last.end = number + 1, // one may be made of two halves
            _ => missing.push(number..number + 1),
        }
    }
    (missing, lines.len() - numbers.len())
}

#[track_caller]
pub fn until_count(agent: &Agent, room: &Room, lines: usize) {
    let count = || arrived(room).len();
    let details = || format!("{} of {lines}\n{}", count(), agent.stderr());
    until(&format!("{lines} lines have arrived"), PATIENCE, details, || count() >= lines);
}

#[test]
fn short_lives_are_captured() {
    let Some(engine) = Engine::start("real::short_lives_are_captured") else { return };
    let room = engine.room();
    let agent = room.run();
    agent.until("the engine was met", || agent.stderr().contains("Docker, API"));
    let clock = Clock::real();
    let began = clock.now();

    let crashes = times(200, 15);
    engine.create("crash", "echo alive $(cat /proc/uptime); usleep 50000; echo dying; exit 1", false, false);
    for _ in 0..crashes {
        engine.start_container("crash");
        engine.wait("crash");
    }
    let restarts = times(20, 4);
    engine.run("again", "echo began; while true; do sleep 1; done");
    for _ in 0..restarts {
        engine.well("POST", "/containers/again/restart?t=0", &Value::Null);
    }
    let short = times(200, 15);
    for number in 0..short {
        engine.create(&format!("rm-{number}"), &format!("echo only {number}"), false, true);
        engine.start_container(&format!("rm-{number}"));
        engine.wait(&format!("rm-{number}"));
    }
    // A life that is ended at once may not have said anything: what the engine has is what there is.
    let kept = ["crash", "again"].map(|name| engine.lines(name).len());
    assert!(kept[0] > crashes && kept[1] > 0, "{kept:?}");
    let expected = kept[0] + kept[1] + short;
    println!(
        "{expected} lines of short lives, {restarts} restarts, in {:?}",
        clock.now().saturating_duration_since(began)
    );
    // The engine removes those of `--rm` at once: one that it had no more when it was asked is said to be lost, and no other is
    // missing.
    let missing = || -> Vec<String> {
        let lines = arrived(&room);
        let is_missing = |number: &usize| !lines.iter().any(|line| line[3] == format!("only {number}"));
        (0..short).filter(is_missing).map(|number| format!("rm-{number}")).collect()
    };
    let details = || {
        format!(
            "{} of {expected}; --rm that are missing: {:?}\n{}",
            arrived(&room).len(),
            missing(),
            agent.stderr()
        )
    };
    until("all have arrived, or are said to be lost", PATIENCE, details, || {
        let missing = missing();
        arrived(&room).len() + missing.len() >= expected && are_said_to_be_lost(&agent, &missing)
    });
    println!(
        "of {short} with --rm {} were removed before they could be read, and {} may have been before they were to their end",
        missing().len(),
        metric(&agent, "containers_given_up_total")
    );
    assert_eq!(arrived(&room).len() + missing().len(), expected, "none twice");
    assert_eq!(agent.stop(), 0);
}

#[test]
fn lines_of_all_lengths_arrive_byte_for_byte() {
    let Some(engine) = Engine::start("real::lines_of_all_lengths_arrive_byte_for_byte") else { return };
    let room = engine.room();
    let agent = room.run();
    let lengths = [1, 2, 100, 8191, 16383, 16384, 16385, 32768, 100_000, 1_000_000];
    let script: Vec<String> = lengths
        .iter()
        .flat_map(|len| [("a", ""), ("b", " >&2")].map(|(byte, to)| (len, byte, to)))
        .map(|(len, byte, to)| format!("{{ head -c {len} /dev/zero | tr '\\0' {byte}; echo; }}{to}"))
        .collect();
    let script = format!("{}; printf end", script.join("; "));
    engine.run("frames", &script);
    engine.create("tty", &script, true, false);
    engine.start_container("tty");
    let each = 2 * lengths.len() + 1;
    until_count(&agent, &room, 2 * each);
    assert_eq!(agent.stop(), 0, "{}", agent.stderr());
    let lines = arrived(&room);
    assert_eq!(lines.len(), 2 * each, "none twice");
    let expected = |byte: &str| -> Vec<String> { lengths.iter().map(|len| byte.repeat(*len)).collect() };
    let of = |name: &str, wanted: &dyn Fn(&[String; 4]) -> bool| -> Vec<String> {
        lines.iter().filter(|line| line[0] == name && wanted(line)).map(|line| line[3].clone()).collect()
    };
    let stdout = [expected("a"), vec!["end".into()]].concat();
    assert!(of("frames", &|line| line[1] == "stdout") == stdout, "stdout without a terminal");
    assert!(of("frames", &|line| line[1] == "stderr") == expected("b"), "stderr without a terminal");
    let both: Vec<String> = expected("a").into_iter().zip(expected("b")).flat_map(|(a, b)| [a, b]).collect();
    assert!(of("tty", &|_| true) == [both, vec!["end".into()]].concat(), "a terminal, in order");
}

#[test]
fn under_load_with_lives_of_both_the_sets_are_equal() {
    let Some(mut engine) = Engine::start("real::under_load_with_lives_of_both_the_sets_are_equal") else {
        return;
    };
    let (containers, seconds) = (times(50, 4), times(60, 6));
    let (rate, kills, restarts) = (times(2000, 400), times(5, 2), times(2, 1));
    let heard = Arc::new(Mutex::new(Heard::default()));
    let receiver = Receiver::start_telling({
        let heard = heard.clone();
        move |entry| heard.lock().hear(entry)
    });
    let room = Room::new(json!({
        "agent": { "sync_interval": "200ms" },
        "sources": [{ "type": "docker", "socket": engine.socket() }],
        "sinks": [{ "type": "loki", "url": receiver.url() }],
    }));
    let mut agent = room.run();
    let script = format!(
        "n=0; while [ $n -lt {} ]; do seq $n $((n + {tenth} - 1)); n=$((n + {tenth})); usleep 100000; done",
        rate * seconds,
        tenth = rate / 10,
    );
    for number in 0..containers {
        engine.run(&format!("load-{number}"), &script);
    }
    let clock = Clock::real();
    let began = clock.now();
    let steps = kills + restarts;
    for step in 0..steps {
        let at = began + Duration::from_secs_f64((step + 1) as f64 * seconds as f64 / (steps + 1) as f64);
        pause(at.saturating_duration_since(clock.now()));
        if step % 3 == 1 && step / 3 < restarts {
            engine.end();
            pause(Duration::from_millis(500)); // as long as a package's upgrade takes, at least
            assert!(engine.launch(), "{}", engine.log());
        } else {
            agent.kill9();
            agent = room.run();
        }
    }
    for number in 0..containers {
        engine.wait(&format!("load-{number}"));
    }
    let expected: BTreeMap<String, Vec<String>> = (0..containers)
        .map(|number| (format!("load-{number}"), engine.lines(&format!("load-{number}"))))
        .collect();
    // An engine that is stopped drops what it had taken out of a container's pipe and not written down: its own loss,
    // at most one stretch of a buffer for each time. All else must be there, or "the sets are equal" says nothing.
    let mut dropped = 0;
    for (name, lines) in &expected {
        let (missing, strange) = gaps(lines, rate * seconds);
        assert!(
            missing.len() <= restarts && strange <= restarts,
            "{name}: {missing:?}, {strange} strange lines"
        );
        assert!(missing.iter().all(|gap| gap.len() <= BUFFER_LINES), "{name}: {missing:?}");
        dropped += missing.iter().map(ExactSizeIterator::len).sum::<usize>();
    }
    let total: usize = expected.values().map(Vec::len).sum();
    let count = || heard.lock().lines.values().map(Vec::len).sum::<usize>();
    let details = || format!("{} of {total}\n{}", count(), agent.stderr());
    until("all have arrived", PATIENCE, details, || count() >= total);
    assert_eq!(agent.stop(), 0, "{}", agent.stderr());
    let heard = heard.lock();
    println!(
        "{total} lines, {dropped} dropped by the engine when it was stopped, {} came again",
        heard.repeats
    );
    for (name, lines) in &expected {
        let found = heard.lines.get(name).map_or(&[][..], Vec::as_slice);
        let differs = lines.iter().zip(found).position(|(line, found)| line != found);
        assert!(
            lines.len() == found.len() && differs.is_none(),
            "{name}: {} lines, {} arrived at a receiver that drops equal entries; line {differs:?} is another",
            lines.len(),
            found.len()
        );
    }
}

#[test]
fn threads_and_descriptors_go_with_their_containers() {
    let Some(mut engine) = Engine::start("real::threads_and_descriptors_go_with_their_containers") else {
        return;
    };
    let containers = times(50, 8);
    let room = engine.room();
    let agent = room.run();
    agent.until("the engine was met", || agent.stderr().contains("Docker, API"));
    let descriptors = || std::fs::read_dir(format!("/proc/{}/fd", agent.pid())).unwrap().count();
    // Once through: then what is made with the first line is made (the output, journals, checkpoints).
    engine.run("warm-up", "echo warm; while true; do sleep 1; done");
    until_count(&agent, &room, 1);
    engine.remove_all();
    agent.until("it is not followed any more", || readers(&agent) == 0);
    let mut base = (0, 0);
    agent.until("all threads have started", || {
        let now = (threads(&agent).len(), descriptors());
        std::mem::replace(&mut base, now) == now
    });
    for number in 0..containers {
        engine.run(&format!("c-{number}"), "echo here; while true; do sleep 1; done");
    }
    agent.until("all are followed", || readers(&agent) == containers);
    assert_eq!(threads(&agent).len(), base.0 + containers);
    until_count(&agent, &room, 1 + containers);

    let clock = Clock::real();
    engine.end();
    agent.until("it is noticed", || agent.get("/readyz").0 == 503 && readers(&agent) == 0);
    let (spent, began) = (cpu_ms(&agent), clock.now());
    pause(Duration::from_secs(times(30, 3) as u64));
    let spent = cpu_ms(&agent) - spent;
    let gone = clock.now().saturating_duration_since(began);
    let share = spent as f64 / gone.as_secs_f64() / 10.0;
    println!("{containers} containers without their engine: {spent} ms of CPU in {gone:?}, {share:.2} %");
    assert!(engine.launch(), "{}", engine.log());
    let back = clock.now();
    agent.until("it is well again", || agent.get("/readyz").0 == 200 && readers(&agent) == containers);
    println!("well again after {:?}", clock.now().saturating_duration_since(back));
    let log = agent.stderr();
    let said = |words: &str| log.matches(words).count();
    assert_eq!((said("trying again"), said("answers again")), (1, 1), "one line per change\n{log}");

    engine.remove_all();
    let details = || format!("{:?}, {} descriptors, base {base:?}", threads(&agent), descriptors());
    until("threads and descriptors are back at the base", PATIENCE, details, || {
        threads(&agent).len() == base.0 && descriptors() <= base.1
    });
    println!(
        "after rm -f of all: {} threads and {} descriptors, before them {base:?}",
        threads(&agent).len(),
        descriptors()
    );
    for number in 0..containers {
        engine.run(&format!("d-{number}"), "echo here; while true; do sleep 1; done");
    }
    agent.until("all are followed", || readers(&agent) == containers);
    let told = clock.now();
    assert_eq!(agent.stop(), 0, "{}", agent.stderr());
    println!("{containers} followed: stopped after {:?}", clock.now().saturating_duration_since(told));
}
