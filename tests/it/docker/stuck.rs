//! When delivery is stuck: a container cannot be read again once it is removed, so its lines go to the spool; only when
//! that is full reading stops, with the stream kept open. Against the scripted engine, and against a real one.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::{Value, json};

use super::daemon::Daemon;
use super::engine::{Engine, PATIENCE, times};
use super::{MS, OUT, T, metric, named_as_removed, readers};
use crate::agent::{Agent, Room, until};
use crate::receiver::{Mood, Receiver};

/// Looks at the spool one after the other at which it is the same: some half a second.
const SAME_LOOKS: u32 = 60;

/// One sink, a Loki; everything is small, so that it is soon full.
fn room(socket: &Path, receiver: &Receiver, spool: Value) -> Room {
    Room::new(json!({
        "agent": { "sync_interval": "100ms", "memory_budget": "2MiB" },
        "sources": [{ "type": "docker", "socket": socket, "name": "engine" }],
        "sinks": [{
            "type": "loki", "name": "loki", "url": receiver.url(), "timeout": "2s", "spool": spool,
            "retry": { "initial": "50ms", "max": "200ms" },
        }],
    }))
}

fn scripted(spool: Value) -> (Receiver, Room, Daemon) {
    let receiver = Receiver::start();
    receiver.set(Mood::status(503));
    let socket = tempfile::tempdir().unwrap().keep().join("s");
    let room = room(&socket, &receiver, spool);
    let daemon = Daemon::start(&socket);
    (receiver, room, daemon)
}

/// Each line once, in order, as a query would give them.
fn texts(receiver: &Receiver) -> Vec<String> {
    receiver.stored().into_iter().map(|entry| entry.line).collect()
}

/// All that the engine has was read: the reader has waited for lines for a while, and has not missed any.
fn until_caught_up(agent: &Agent) {
    let mut looks = 0;
    agent.until("the reader has caught up", || {
        let waits = agent.get("/api/v1/tasks").1.contains("\"lines\"");
        looks = if waits { looks + 1 } else { 0 };
        looks > SAME_LOOKS
    });
}

/// Nobody reads on: the reader waits for room, and the spool stays as it is.
fn until_full(agent: &Agent) {
    let (mut last, mut same) = (0.0, 0);
    agent.until("the spool is full and reading has stopped", || {
        let waits = agent.get("/api/v1/tasks").1.contains("\"room\"");
        let now = metric(agent, "spool_lines");
        same = if waits && now > 0.0 && now == last { same + 1 } else { 0 };
        last = now;
        same > SAME_LOOKS
    });
}

/// All that could be read of containers that are gone.
fn until_all_spooled(agent: &Agent) {
    let (mut last, mut same) = (0.0, 0);
    agent.until("nobody reads, and all is spooled", || {
        let (now, metrics) = (metric(agent, "spooled_lines_total"), agent.get("/metrics").1);
        let is_over = metrics.contains("log_capturer_containers_known 0")
            && metrics.contains("log_capturer_pending_lines{sink=\"loki\"} 0");
        same = if is_over && now > 0.0 && now == last { same + 1 } else { 0 };
        last = now;
        same > SAME_LOOKS
    });
}

fn long(number: i64) -> String {
    format!("{number:08} {}", "x".repeat(191))
}

fn say_long(daemon: &Daemon, numbers: std::ops::Range<i64>) -> Vec<String> {
    let said = numbers.map(|number| {
        daemon.say("c", OUT, T + number * MS, format!("{}\n", long(number)));
        long(number)
    });
    said.collect()
}

#[test]
fn removed_while_its_sink_was_dead() {
    for dies in [false, true] {
        let (receiver, room, daemon) = scripted(json!({ "after": "50ms" }));
        daemon.run("c");
        let said = say_long(&daemon, 0..500);
        let agent = room.run();
        agent.until("it is spooled", || metric(&agent, "spooled_lines_total") == 500.0);
        until_caught_up(&agent);
        daemon.die("c");
        agent.until("nobody reads it", || readers(&agent) == 0);
        daemon.remove("c");
        agent.until("it is forgotten", || agent.get("/metrics").1.contains("containers_known 0"));
        assert_eq!(metric(&agent, "containers_given_up_total"), 0.0, "it was read to its end");
        if dies {
            agent.kill9();
        } else {
            assert_eq!(agent.stop(), 3, "what is spooled is pending\n{}", agent.stderr());
        }
        receiver.set(Mood::Well);
        let agent = room.run();
        agent.until("every line arrives", || receiver.count() >= 500);
        agent.until("the spool is empty", || metric(&agent, "spool_lines") == 0.0);
        assert_eq!(agent.stop(), 0, "{}", agent.stderr());
        assert_eq!(texts(&receiver), said, "dies: {dies}");
        // After a kill it cannot know, and says so.
        assert!(dies || !agent.stderr().contains("was removed before"), "{}", agent.stderr());
    }
}

#[test]
fn a_full_spool_stops_reading_and_keeps_the_stream() {
    let (receiver, room, daemon) = scripted(json!({ "after": "50ms", "max_bytes": "1MiB" }));
    daemon.run("c");
    let said = say_long(&daemon, 0..60_000); // 12 MB
    let agent = room.run();
    until_full(&agent);
    assert_eq!(readers(&agent), 1);
    let spooled = metric(&agent, "spooled_lines_total");
    assert!(spooled < 30_000.0, "{spooled} lines were spooled, into 1 MiB");
    receiver.set(Mood::Well);
    agent.until("every line arrives", || receiver.count() >= 60_000);
    assert_eq!(readers(&agent), 1);
    assert_eq!(daemon.requests("logs"), 1, "the stream was kept open\n{}", agent.stderr());
    assert_eq!(metric(&agent, "containers_given_up_total"), 0.0);
    assert_eq!(agent.stop(), 0, "{}", agent.stderr());
    assert!(texts(&receiver) == said, "each once and in order");
}

#[test]
fn what_was_removed_while_nobody_could_read_on_is_given_up() {
    let (receiver, room, daemon) = scripted(json!({ "after": "50ms", "max_bytes": "1MiB" }));
    daemon.run("c");
    let said = say_long(&daemon, 0..60_000);
    let agent = room.run();
    until_full(&agent);
    assert_eq!(agent.stop(), 3, "{}", agent.stderr());
    daemon.remove("c");
    receiver.set(Mood::Well);
    let agent = room.run();
    agent.until("it is counted", || metric(&agent, "containers_given_up_total") == 1.0);
    agent.until("the spool is empty", || metric(&agent, "spool_lines") == 0.0);
    assert_eq!(agent.stop(), 0, "{}", agent.stderr());
    let arrived = texts(&receiver);
    assert!(arrived.len() > 1000 && arrived[..] == said[..arrived.len()], "{} arrived", arrived.len());
    let log = agent.stderr();
    assert!(log.contains("c (") && log.contains("was removed before"), "{log}");
    // As far as is certain: the beginning of the chunk that was not answered for as a whole.
    let since = log.split_once("since ").unwrap().1.split(',').next().unwrap().parse().unwrap();
    let at = |number: usize| jiff::Timestamp::from_nanosecond((T + number as i64 * MS).into()).unwrap();
    assert!((at(1)..at(arrived.len())).contains(&since), "{} arrived\n{log}", arrived.len());
}

/// `--rm`, so that the engine has nothing any more when the sink is back; and the agent dies meanwhile.
#[test]
fn really_removed_while_its_sink_was_dead() {
    let Some(engine) = Engine::start("stuck::really_removed_while_its_sink_was_dead") else { return };
    let (containers, lines) = (times(20, 4), times(50_000, 5000));
    let receiver = Receiver::start();
    receiver.set(Mood::status(503));
    let room = room(&engine.socket(), &receiver, json!({ "after": "50ms" }));
    let agent = room.run();
    agent.until("the engine was met", || agent.stderr().contains("Docker, API"));
    for number in 0..containers {
        engine.create(&format!("c-{number}"), &format!("seq {number}000000 {number}{lines:06}"), false, true);
        engine.start_container(&format!("c-{number}"));
    }
    (0..containers).for_each(|number| engine.wait(&format!("c-{number}")));
    until_all_spooled(&agent);
    // On a busy machine the engine may remove one before anybody could ask for the rest of its log; then that is said.
    let named = named_as_removed(&agent);
    assert_eq!(metric(&agent, "containers_given_up_total") as usize, named.len(), "{}", agent.stderr());
    let spooled = metric(&agent, "spooled_lines_total") as u64;
    agent.kill9();
    receiver.set(Mood::Well);
    let agent = room.run();
    let details = || format!("{} of {spooled}\n{}", receiver.count(), agent.stderr());
    until("every line arrives", PATIENCE, details, || receiver.count() >= spooled);
    assert_eq!(agent.stop(), 0, "{}", agent.stderr());
    let mut arrived = BTreeMap::<usize, Vec<usize>>::new();
    for line in texts(&receiver) {
        let line: usize = line.parse().unwrap();
        arrived.entry(line / 1_000_000).or_default().push(line % 1_000_000);
    }
    for number in 0..containers {
        let of = arrived.remove(&number).unwrap_or_default();
        assert!(of.iter().copied().eq(0..of.len()), "c-{number}: in order, none twice");
        assert!(
            of.len() == lines + 1 || named.contains(&format!("c-{number}")),
            "c-{number} has {}",
            of.len()
        );
    }
    println!("{} of {containers} may have been removed before they were read to their end", named.len());
}

/// `docker rm -f` of a container whose log nobody can take: what the open stream still gives is delivered, and if
/// that is not all, it is said.
#[test]
fn really_removed_while_the_spool_was_full() {
    let Some(engine) = Engine::start("stuck::really_removed_while_the_spool_was_full") else { return };
    let receiver = Receiver::start();
    receiver.set(Mood::status(503));
    let room = room(&engine.socket(), &receiver, json!({ "after": "50ms", "max_bytes": "1MiB" }));
    let agent = room.run();
    let lines = 1_000_000;
    engine.run("cc", &format!("seq 1 {lines}; sleep 1000"));
    until_full(&agent);
    assert_eq!(readers(&agent), 1, "the stream is kept open");
    until("the container has written", PATIENCE, String::new, || {
        engine.well("GET", "/containers/cc/top", &Value::Null).to_string().contains("sleep 1000")
    });
    engine.well("DELETE", "/containers/cc?force=1", &Value::Null);
    receiver.set(Mood::Well);
    let details = || agent.stderr();
    until("nobody reads it", PATIENCE, details, || readers(&agent) == 0);
    let known = || agent.get("/metrics").1.contains("log_capturer_containers_known 0");
    until("it is forgotten", PATIENCE, details, known);
    let given_up = metric(&agent, "containers_given_up_total");
    assert_eq!(agent.stop(), 0, "{}", agent.stderr());
    let arrived = texts(&receiver);
    println!(
        "{} of {lines} lines arrived of a container that was removed while nobody could read on",
        arrived.len()
    );
    assert!(
        arrived.iter().enumerate().all(|(at, line)| *line == (at + 1).to_string()),
        "in order, none twice"
    );
    assert!(arrived.len() == lines || given_up == 1.0, "what is missing was said\n{}", agent.stderr());
}
