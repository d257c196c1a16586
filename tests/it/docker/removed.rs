//! When a container counts as removed, and what is said of it then.

use serde_json::json;

use super::daemon::{Mood, OUT};
use super::engine::{PATIENCE, is_left_out};
use super::{House, MS, T, checkpoints, line, metric, named_as_removed, numbered, readers};
use crate::agent::{Agent, until};

fn given_up(agent: &Agent, count: usize) -> bool {
    metric(agent, "containers_given_up_total") == count as f64
}

#[test]
fn what_was_removed_unread_is_counted_with_its_name() {
    let house = House::new(json!({}));
    house.daemon.mood(Mood::NoLogs);
    house.daemon.run("short");
    let agent = house.room.run();
    agent.until("it was tried", || house.daemon.requests("logs") > 0);
    house.daemon.die("short");
    house.daemon.remove("short");
    agent.until("it is counted", || {
        agent.get("/metrics").1.contains("log_capturer_containers_given_up_total{source=\"engine\"} 1")
    });
    assert!(agent.stderr().contains("short ("), "{}", agent.stderr());
}

/// Docker 20 has it in its list a moment before anybody can ask for it.
#[test]
fn one_that_is_still_being_made_is_not_removed() {
    let house = House::new(json!({}));
    house.daemon.create("c", false, &[]);
    house.daemon.only_list("c", true);
    house.daemon.run("other");
    house.say("other", 0..10);
    let agent = house.room.run();
    house.until_arrived(&agent, 10);
    house.daemon.only_list("c", false);
    house.daemon.run("c");
    house.say("c", 0..10);
    house.until_arrived(&agent, 20);
    assert!(given_up(&agent, 0) && named_as_removed(&agent).is_empty(), "{}", agent.stderr());
    house.daemon.remove("c");
    agent.until("it is not followed any more", || readers(&agent) == 1);
    assert_eq!(agent.stop(), 0, "{}", agent.stderr());
}

/// Whatever an engine answers: that a log is not there says nothing as long as the container is in the list.
#[test]
fn a_log_that_is_not_there_is_asked_for_again() {
    let house = House::new(json!({}));
    house.daemon.run("c");
    house.daemon.only_list("c", true);
    house.say("c", 0..10);
    let agent = house.room.run();
    agent.until("it is asked again", || house.daemon.requests("logs") >= 3);
    assert!(given_up(&agent, 0) && named_as_removed(&agent).is_empty(), "{}", agent.stderr());
    house.daemon.only_list("c", false);
    house.until_arrived(&agent, 10);
    house.daemon.die("c");
    agent.until("nobody reads it", || readers(&agent) == 0);
    assert_eq!(house.arrived(), numbered("c", 0..10));
    assert_eq!(agent.stop(), 0, "{}", agent.stderr());
}

/// Docker drops events of those that are slow to take them.
#[test]
fn one_that_is_gone_without_an_event_is_missed_in_the_list() {
    let house = House::new(json!({}));
    house.daemon.run("c");
    house.daemon.only_list("c", true);
    let agent = house.room.run();
    agent.until("its log was asked for", || house.daemon.requests("logs") >= 1);
    house.daemon.forget("c");
    agent.until("it is counted", || given_up(&agent, 1));
    assert_eq!(named_as_removed(&agent), ["c".to_owned()].into(), "{}", agent.stderr());
    assert_eq!(agent.stop(), 0, "{}", agent.stderr());
}

/// That one was dead and read to its end outlives the agent, however that ends.
#[test]
fn of_one_that_was_read_to_its_end_nothing_is_lost_in_a_later_life() {
    for dies in [false, true] {
        let house = House::new(json!({}));
        for name in ["read", "again", "lives"] {
            house.daemon.run(name);
            house.say(name, 0..10);
        }
        let agent = house.room.run();
        house.until_arrived(&agent, 30);
        house.daemon.die("read");
        house.daemon.die("again");
        agent.until("both are read to their ends", || readers(&agent) == 1);
        house.daemon.run("again");
        agent.until("one is read again", || readers(&agent) == 2);
        if dies {
            let (saved, mut said) = (checkpoints(&agent), 10);
            agent.until("all of it is saved", || {
                house.say("lives", said..said + 1);
                said += 1;
                checkpoints(&agent) >= saved + 2
            });
            house.until_arrived(&agent, 20 + said as usize);
            agent.kill9();
        } else {
            assert_eq!(agent.stop(), 0, "{}", agent.stderr());
        }
        ["read", "again", "lives"].iter().for_each(|name| house.daemon.remove(name));
        let agent = house.room.run();
        agent.until("two are counted, and all are forgotten", || {
            given_up(&agent, 2) && agent.get("/metrics").1.contains("containers_known 0")
        });
        let expected = ["again", "lives"].map(str::to_owned).into();
        assert_eq!(named_as_removed(&agent), expected, "dies: {dies}\n{}", agent.stderr());
        assert_eq!(agent.stop(), 0, "{}", agent.stderr());
    }
}

/// As with `--rm`: nobody can ask for more of its log. But an engine that leaves nothing out has sent all of it.
#[test]
fn what_was_sent_to_its_end_is_not_lost() {
    for (version, is_whole) in [("1.41", false), ("1.42", true), ("1.51", true)] {
        let house = House::new(json!({}));
        house.daemon.api(version);
        house.daemon.run("c");
        house.say("c", 0..10);
        let agent = house.room.run();
        house.until_arrived(&agent, 10);
        house.daemon.say("c", OUT, T + 10 * MS, "last words");
        house.daemon.run("other");
        agent.until("both are followed", || readers(&agent) == 2);
        house.daemon.die_removed("c");
        agent.until("it is forgotten", || agent.get("/metrics").1.contains("containers_known 1\n"));
        let mut expected = numbered("c", 0..10);
        if is_whole {
            expected.push(line("c", OUT, T + 10 * MS, "last words~"));
        }
        house.assert_arrived(&agent, &expected);
        assert!(given_up(&agent, usize::from(!is_whole)), "{version}: {}", agent.stderr());
        assert_eq!(agent.stop(), 0, "{}", agent.stderr());
    }
}

/// The log that is followed goes on for as long as the engine likes; the rest is asked for as soon as it is dead, and
/// read even if it is removed meanwhile.
#[test]
fn the_last_words_are_asked_for_at_once() {
    let house = House::new(json!({}));
    house.daemon.leave_logs_open();
    house.daemon.keep_from_followers(10);
    house.daemon.run("c");
    house.say("c", 0..15);
    let agent = house.room.run();
    house.until_arrived(&agent, 10);
    house.daemon.die("c");
    agent.until("it is asked again", || house.daemon.requests("logs") >= 2);
    house.until_arrived(&agent, 15);
    house.daemon.remove("c");
    agent.until("nobody reads it", || readers(&agent) == 0);
    assert_eq!(house.arrived(), numbered("c", 0..15));
    assert!(given_up(&agent, 0), "{}", agent.stderr());
    assert_eq!(agent.stop(), 0, "{}", agent.stderr());
}

#[test]
fn what_no_event_told_is_found_in_the_list() {
    if is_left_out("removed::what_no_event_told_is_found_in_the_list", "takes a minute") {
        return;
    }
    let house = House::new(json!({}));
    for name in ["stays", "vanishes", "returns"] {
        house.daemon.run(name);
        house.say(name, 0..10);
    }
    let agent = house.room.run();
    house.until_arrived(&agent, 30);
    house.daemon.die("vanishes");
    house.daemon.die("returns");
    agent.until("one is followed", || readers(&agent) == 1);
    let asked = house.daemon.requests("logs");
    house.daemon.forget("vanishes");
    house.daemon.create("new", false, &[]);
    house.daemon.run_unheard("returns");
    house.daemon.run_unheard("new");
    let details = || agent.stderr();
    until("three are followed", PATIENCE, details, || readers(&agent) == 3);
    agent.until("one is forgotten", || agent.get("/metrics").1.contains("containers_known 3\n"));
    assert_eq!(house.daemon.requests("logs"), asked + 2, "nobody was asked in vain");
    assert!(given_up(&agent, 0), "{}", agent.stderr());
    assert_eq!(agent.stop(), 0, "{}", agent.stderr());
}
