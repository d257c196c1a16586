//! How many threads it takes to follow many files and many containers at once, on a real engine.

use std::fs;

use log_capturer::clock::Clock;
use serde_json::json;

use super::engine::{Engine, PATIENCE, times};
use super::readers;
use crate::agent::{Agent, Room, Signal, until};
use crate::receiver::{Mood, Receiver};

/// Whatever it does, besides one for each container.
pub const THREADS_MAX: usize = 24;

/// Asks the kernel, in every look at a fact.
struct Watched<'a> {
    agent: &'a Agent,
    containers: usize,
    most: std::cell::Cell<usize>,
}

impl Watched<'_> {
    fn threads(&self) -> usize {
        let folder = format!("/proc/{}/task", self.agent.pid());
        let threads = fs::read_dir(folder).map_or(0, |entries| entries.count());
        assert!(
            threads <= THREADS_MAX + self.containers,
            "{threads} threads\n{}",
            self.agent.get("/api/v1/tasks").1
        );
        self.most.set(self.most.get().max(threads));
        threads
    }

    #[track_caller]
    fn until(&self, what: &str, mut fact: impl FnMut() -> bool) {
        until(
            what,
            PATIENCE,
            || self.agent.stderr(),
            || {
                self.threads();
                fact()
            },
        );
    }
}

fn reloads(agent: &Agent) -> bool {
    agent.get("/metrics").1.contains("log_capturer_reloads_total{result=\"done\"} 1")
}

#[test]
fn threads_depend_on_nothing_but_containers() {
    let Some(mut engine) = Engine::start("followed::threads_depend_on_nothing_but_containers") else {
        return;
    };
    let (files, containers) = (times(10_000, 300), times(50, 8));
    let receiver = Receiver::start();
    let room = Room::new(json!({
        "agent": { "sync_interval": "200ms" },
        "sources": [
            { "type": "file", "include": ["logs/*.log"], "name": "files" },
            { "type": "docker", "socket": engine.socket(), "name": "engine" },
        ],
        "sinks": [
            { "type": "loki", "name": "loki", "url": receiver.url(), "timeout": "1s", "retry": { "max": "500ms" } },
            { "type": "file", "name": "file", "path": "out.json", "format": "json" },
        ],
    }));
    fs::create_dir(room.path("logs")).unwrap();
    let log = |number: usize| room.path(&format!("logs/{number}.log"));
    let write = |round: usize| {
        for number in 0..files {
            fs::write(log(number), format!("file {number} round {round}\n")).unwrap();
        }
    };
    write(0);
    let agent = room.run();
    let watched = Watched { agent: &agent, containers, most: Default::default() };
    for number in 0..containers {
        engine.run(&format!("c-{number}"), "while true; do echo alive; sleep 1; done");
    }
    let lines = |round: usize| {
        receiver.raw().iter().filter(|entry| entry.line.ends_with(&format!("round {round}"))).count()
    };
    watched.until("all are followed", || readers(&agent) == containers);
    watched.until("all files are read", || receiver.count() >= files as u64 && lines(0) >= files);
    let base = watched.threads();

    for number in 0..files {
        fs::rename(log(number), room.path(&format!("logs/{number}.log.1"))).unwrap();
    }
    write(1);
    watched.until("all have been rotated", || lines(1) >= files);

    for mood in [Mood::status(503), Mood::Hang, Mood::Reset] {
        let asked = receiver.requests();
        receiver.set(mood);
        watched.until("it was tried again", || receiver.requests() >= asked + 2);
    }
    agent.signal(Signal::HUP);
    watched.until("it has reloaded, with a sink that is ill", || reloads(&agent));
    receiver.set(Mood::Well);
    watched.until("all are followed after the reload", || readers(&agent) == containers);

    engine.end();
    watched.until("no engine is there", || readers(&agent) == 0);
    assert!(engine.launch(), "{}", engine.log());
    watched.until("all are followed again", || readers(&agent) == containers);
    watched.until("nothing has stayed", || watched.threads() <= base);

    println!("{files} files, {containers} containers: {base} threads, at most {}", watched.most.get());
    let clock = Clock::real();
    let told = clock.now();
    assert_eq!(agent.stop(), 0, "{}", agent.stderr());
    println!("stopped after {:?}", clock.now().saturating_duration_since(told));
}
