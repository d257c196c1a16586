//! Engines that are gone, that hang, refuse or falter.

use std::collections::BTreeSet;
use std::time::Duration;

use serde_json::json;

use super::daemon::Mood;
use super::{House, cpu_ms, numbered, readers};
use crate::agent::until;

#[test]
fn an_engine_that_refuses_is_asked_again() {
    for mood in [Mood::NoLogs, Mood::NoInspect] {
        let house = House::new(json!({ "container_env": { "tier": "TIER" } }));
        house.daemon.env(&["TIER=front"]);
        house.daemon.mood(mood);
        house.daemon.run("c");
        house.say("c", 0..10);
        let agent = house.room.run();
        let asked = if mood == Mood::NoLogs { "logs" } else { "inspect" };
        agent.until("it was asked twice", || {
            house.daemon.die("c");
            house.daemon.requests(asked) >= 2
        });
        house.daemon.mood(Mood::Well);
        house.until_arrived(&agent, 10);
        house.say("c", 10..20);
        house.daemon.run("c");
        house.until_arrived(&agent, 20);
        assert_eq!(house.arrived(), numbered("c", 0..20));
        assert_eq!(agent.stop(), 0);
    }
}

/// A log that cannot be had is asked for less and less often, however often the agent has to begin anew with its engine.
#[test]
fn an_engine_that_falters_is_not_asked_for_all_logs_each_time() {
    let house = House::new(json!({}));
    house.daemon.mood(Mood::NoLogs);
    house.daemon.end_events();
    house.daemon.run("c");
    let agent = house.room.run();
    agent.until("it has begun anew often", || house.daemon.requests("list") >= 10);
    let (lists, logs) = (house.daemon.requests("list"), house.daemon.requests("logs"));
    assert!(logs < lists, "{logs} logs were asked for in {lists} sessions\n{}", agent.stderr());
    assert_eq!(agent.stop(), 0, "{}", agent.stderr());
}

/// What happened while the engine was gone: nobody saw an event of it.
#[test]
fn after_an_absence_of_the_engine_everything_is_found() {
    let seconds: u64 =
        std::env::var("LOG_CAPTURER_DOCKER_GONE_SECONDS").map_or(3, |text| text.parse().unwrap());
    let house = House::new(json!({}));
    for name in ["stays", "dies", "vanishes"] {
        house.daemon.run(name);
        house.say(name, 0..100);
    }
    let agent = house.room.run();
    house.until_arrived(&agent, 300);
    house.daemon.go();
    agent.until("it is said", || agent.get("/readyz").0 == 503);
    agent.until("no reader is left", || readers(&agent) == 0);
    let cpu_before = cpu_ms(&agent);
    let clock = log_capturer::clock::Clock::real();
    let end = clock.now() + Duration::from_secs(seconds);
    until("the time is over", Duration::from_secs(seconds + 60), String::new, || clock.now() >= end);
    let spent = cpu_ms(&agent) - cpu_before;
    println!("{spent} ms of CPU in {seconds} s without an engine");
    for name in ["stays", "dies"] {
        house.say(name, 100..200);
    }
    house.daemon.die("dies");
    house.daemon.remove("vanishes");
    house.daemon.run("new");
    house.say("new", 0..50);
    house.daemon.die("new");
    house.daemon.come_back();
    let back = clock.now();
    agent.until("it is well again", || agent.get("/readyz").0 == 200);
    println!("well again after {:?}", clock.now().saturating_duration_since(back));
    house.until_arrived(&agent, 300 + 200 + 50);
    let expected: BTreeSet<String> = [("stays", 200), ("dies", 200), ("vanishes", 100), ("new", 50)]
        .into_iter()
        .flat_map(|(name, lines)| numbered(name, 0..lines))
        .collect();
    assert_eq!(house.arrived().len(), expected.len(), "none twice");
    assert!(house.arrived().into_iter().collect::<BTreeSet<_>>() == expected);
    let log = agent.stderr();
    assert_eq!(log.matches("trying again").count(), 1, "one line per change of state\n{log}");
    assert_eq!(log.matches("answers again").count(), 1, "{log}");
    assert!(log.contains("vanishes (") && log.contains("was removed before"), "{log}");
    assert_eq!(agent.stop(), 0, "what was removed had been read as far as it was there");
}

#[test]
fn an_engine_that_hangs_is_noticed() {
    let house = House::new(json!({}));
    house.daemon.run("c");
    house.say("c", 0..10);
    let agent = house.room.run();
    house.until_arrived(&agent, 10);
    house.daemon.mood(Mood::Hang);
    agent.until("it is noticed", || agent.get("/readyz").0 == 503);
    assert!(agent.get("/readyz").1.contains("does not answer within"), "{}", agent.get("/readyz").1);
    house.daemon.mood(Mood::Well);
    agent.until("and that it is over", || agent.get("/readyz").0 == 200);
    house.say("c", 10..20);
    house.until_arrived(&agent, 20);
    assert_eq!(house.arrived(), numbered("c", 0..20));
}
