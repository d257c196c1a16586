//! A log that breaks in the middle of a line and is taken up again: the line comes once, and whole. And one that ends
//! before all of it was sent.

use serde_json::{Value, json};

use super::daemon::{ERR, Mood, OUT};
use super::{House, MS, T, line, named_as_removed, numbered, readers};
use crate::agent::Agent;

fn with_podman(source: Value) -> House {
    let house = House::new(source);
    house.daemon.pretend_podman();
    house
}

/// Container `c` ends, and then the agent, which has delivered just this.
#[track_caller]
fn dies_and_has_said(house: &House, agent: &Agent, expected: &[String]) {
    house.daemon.die("c");
    agent.until("nobody reads it", || readers(agent) == 0);
    assert_eq!(agent.stop(), 0, "{}", agent.stderr());
    assert_eq!(house.arrived(), expected, "{}", agent.stderr());
}

/// A line of three parts, which share a time as Docker's do, with a line of the other stream in between, and the lines
/// around it; from millisecond `ms` on. What is said, and what has to arrive.
fn round(house: &House, ms: i64) -> Vec<String> {
    let at = |more: i64| T + (ms + more) * MS;
    let part = "p".repeat(100);
    for (stream, more, text) in [
        (OUT, 0, "before\n"),
        (OUT, 1, &*part),
        (ERR, 2, "between\n"),
        (OUT, 1, &*part),
        (OUT, 1, "end\n"),
        (OUT, 3, "after\n"),
    ] {
        house.daemon.say("c", stream, at(more), text);
    }
    vec![
        line("c", OUT, at(0), "before"),
        line("c", ERR, at(2), "between"),
        line("c", OUT, at(1), &format!("{part}{part}end")),
        line("c", OUT, at(3), "after"),
    ]
}

/// In a frame's head, a time, a part.
#[test]
fn a_line_in_parts_is_whole_wherever_its_log_breaks() {
    let house = House::new(json!({}));
    house.daemon.run("c");
    let agent = house.room.run();
    agent.until("it is followed", || readers(&agent) == 1);
    let (mut expected, mut ms) = (Vec::new(), 0);
    for cut in (1..500).step_by(29) {
        house.daemon.die("c");
        agent.until("nobody reads it", || readers(&agent) == 0);
        expected.extend(round(&house, ms));
        house.daemon.mood(Mood::CutAfter(cut));
        house.daemon.run("c");
        house.until_arrived(&agent, expected.len());
        assert_eq!(house.arrived(), expected, "cut after {cut}: {}", agent.stderr());
        agent.until("it is followed again", || readers(&agent) == 1);
        ms += 4;
    }
    assert_eq!(agent.stop(), 0, "{}", agent.stderr());
}

/// The engine goes, the agent stops, or it dies, while half a line is there.
#[test]
fn half_a_line_waits_for_its_rest() {
    let house = House::new(json!({}));
    house.daemon.run("c");
    let mut agent = house.room.run();
    let mut expected = Vec::new();
    for (ms, how) in ["the engine goes", "a stop", "a death"].into_iter().enumerate() {
        let at = |more: i64| T + (4 * ms as i64 + more) * MS;
        house.daemon.say("c", OUT, at(0), "whole\n");
        house.daemon.say("c", OUT, at(1), "half ");
        house.daemon.say("c", ERR, at(2), "other\n");
        expected.push(line("c", OUT, at(0), "whole"));
        expected.push(line("c", ERR, at(2), "other"));
        house.assert_arrived(&agent, &expected);
        match how {
            "the engine goes" => {
                house.daemon.go();
                agent.until("nobody reads it", || readers(&agent) == 0);
                house.daemon.come_back();
            }
            "a stop" => {
                assert_eq!(agent.stop(), 0, "{}", agent.stderr());
                agent = house.room.run();
            }
            _ => {
                agent.kill9();
                agent = house.room.run();
            }
        }
        house.daemon.say("c", OUT, at(1), "and its rest\n");
        expected.push(line("c", OUT, at(1), "half and its rest"));
        house.until_arrived(&agent, expected.len());
        assert_eq!(house.arrived(), expected, "{how}: {}", agent.stderr());
    }
    assert_eq!(agent.stop(), 0, "{}", agent.stderr());
}

#[test]
fn a_log_that_ended_too_early_is_asked_for_again_or_said_to_be_lost() {
    let house = House::new(json!({}));
    house.daemon.keep_from_followers(10);
    for name in ["stays", "vanishes"] {
        house.daemon.run(name);
        house.say(name, 0..15);
    }
    let agent = house.room.run();
    house.until_arrived(&agent, 20);
    house.daemon.die("stays");
    house.daemon.die_removed("vanishes");
    house.until_arrived(&agent, 25);
    agent.until("nobody reads", || readers(&agent) == 0);
    agent.until("it is said", || !named_as_removed(&agent).is_empty());
    assert_eq!(named_as_removed(&agent), ["vanishes".to_owned()].into(), "{}", agent.stderr());
    assert_eq!(agent.stop(), 0, "{}", agent.stderr());
    let (mut arrived, mut expected) = (house.arrived(), numbered("stays", 0..15));
    expected.extend(numbered("vanishes", 0..10));
    arrived.sort();
    expected.sort();
    assert_eq!(arrived, expected);
}

/// Podman's log does not show where a life ended within a line: what follows is the same line. But a dead container is
/// looked at again and again.
#[test]
fn half_a_line_of_a_dead_one_comes_once_from_podman() {
    let house = with_podman(json!({}));
    house.daemon.run("c");
    house.daemon.say("c", OUT, T, "whole\n");
    house.daemon.say("c", OUT, T + MS, "half ");
    house.daemon.die("c");
    let mut expected = vec![line("c", OUT, T, "whole"), line("c", OUT, T + MS, "half ~")];
    let asked_again = |agent: &Agent, asked| {
        agent.until("it is asked again", || house.daemon.requests("logs") > asked && readers(agent) == 0);
    };
    let mut agent = house.room.run();
    house.assert_arrived(&agent, &expected);
    for how in ["the engine goes", "a stop", "a death"] {
        agent.until("nobody reads it", || readers(&agent) == 0);
        let asked = house.daemon.requests("logs");
        match how {
            "the engine goes" => {
                house.daemon.go();
                agent.until("it is noticed", || agent.get("/readyz").0 == 503);
                house.daemon.come_back();
            }
            "a stop" => {
                assert_eq!(agent.stop(), 0, "{}", agent.stderr());
                agent = house.room.run();
            }
            _ => {
                agent.kill9();
                agent = house.room.run();
            }
        }
        asked_again(&agent, asked);
    }
    house.daemon.run("c");
    house.daemon.say("c", OUT, T + 2 * MS, "and another life\n");
    expected.push(line("c", OUT, T + MS, "half and another life"));
    house.assert_arrived(&agent, &expected);
    assert_eq!(agent.stop(), 0, "{}", agent.stderr());
    assert_eq!(house.arrived(), expected, "{}", agent.stderr());
}

/// Podman leaves out of a log that is followed what was written while it met the end of the file, and gives out half a
/// line that is being written as a whole one.
#[test]
fn what_podman_leaves_out_or_tears_arrives_whole_and_once() {
    let house = with_podman(json!({}));
    house.daemon.run("c");
    let agent = house.room.run();
    agent.until("it is followed", || readers(&agent) == 1);
    house.daemon.leave_out(1..8);
    house.say("c", 0..10);
    house.assert_arrived(&agent, &numbered("c", 0..10));
    house.daemon.leave_out(0..0);
    for tens in 1..4 {
        house.daemon.tear();
        house.say("c", tens * 10..(tens + 1) * 10);
        house.assert_arrived(&agent, &numbered("c", 0..(tens + 1) * 10));
    }
    house.say("c", 40..41);
    house.daemon.die("c");
    agent.until("nobody reads it", || readers(&agent) == 0);
    house.assert_arrived(&agent, &numbered("c", 0..41));
    assert_eq!(agent.stop(), 0, "{}", agent.stderr());
}

/// Its last line is held back for a moment; what is removed in that moment is not less of a line.
#[test]
fn what_podman_removes_is_handed_on_with_its_last_line() {
    let house = with_podman(json!({}));
    house.daemon.run("c");
    house.say("c", 0..10);
    let agent = house.room.run();
    house.until_arrived(&agent, 9);
    house.daemon.die_removed("c");
    agent.until("nobody reads it", || readers(&agent) == 0);
    house.assert_arrived(&agent, &numbered("c", 0..10));
    assert_eq!(agent.stop(), 0, "{}", agent.stderr());
}

/// What is followed was open before it was removed, and its lines come once, those that were read before included.
#[test]
fn what_podman_removes_before_it_can_be_read_is_read_from_what_was_open() {
    let house = with_podman(json!({}));
    house.daemon.run("read-before");
    house.say("read-before", 0..10);
    let agent = house.room.run();
    house.until_arrived(&agent, 10);
    house.daemon.only_follow();
    house.daemon.run("never-read");
    house.say("never-read", 0..1);
    house.say("read-before", 10..15);
    house.until_arrived(&agent, 16);
    for name in ["never-read", "read-before"] {
        house.daemon.die_removed(name);
    }
    agent.until("nobody reads", || readers(&agent) == 0);
    let (mut arrived, mut expected) = (house.arrived(), numbered("read-before", 0..15));
    expected.extend(numbered("never-read", 0..1));
    arrived.sort();
    expected.sort();
    assert_eq!(arrived, expected, "{}", agent.stderr());
    assert!(named_as_removed(&agent).is_empty(), "{}", agent.stderr());
    assert_eq!(agent.stop(), 0, "{}", agent.stderr());
}

#[test]
fn what_a_quiet_container_has_said_is_read_though_podman_answers_late() {
    let house = with_podman(json!({}));
    house.daemon.answer_late();
    house.daemon.run("c");
    house.say("c", 0..10);
    let agent = house.room.run();
    house.assert_arrived(&agent, &numbered("c", 0..10));
    house.say("c", 10..20);
    house.assert_arrived(&agent, &numbered("c", 0..20));
    dies_and_has_said(&house, &agent, &numbered("c", 0..20));
}

/// Since 5.8 its times have nanoseconds; and what it is asked for since some time is without the line of that time.
#[test]
fn lines_of_many_seconds_come_once_from_podman() {
    let house = with_podman(json!({}));
    house.daemon.run("c");
    let agent = house.room.run();
    let mut expected = Vec::new();
    for number in 0..10 {
        let ns = T + number * 700 * MS + 1;
        house.daemon.say("c", OUT, ns, format!("line {number}\n"));
        expected.push(line("c", OUT, ns, &format!("line {number}")));
        house.assert_arrived(&agent, &expected);
    }
    dies_and_has_said(&house, &agent, &expected);
}

/// Before 5.8 its times are whole seconds: what it wrote in the second of the meeting, before it, may come too, but nothing
/// comes twice.
#[test]
fn podman_is_read_from_its_end_on() {
    let house = with_podman(json!({ "start_at": "end" }));
    house.daemon.say_whole_seconds();
    house.daemon.clock(T + 500 * MS);
    house.daemon.run("c");
    for (number, at) in [-1500, 200, 300].into_iter().enumerate() {
        house.daemon.say("c", OUT, T + at * MS, format!("before {number}\n"));
    }
    let agent = house.room.run();
    agent.until("it is followed", || readers(&agent) == 1);
    let mut expected: Vec<String> =
        (1..3).map(|number| line("c", OUT, T + number - 1, &format!("before {number}"))).collect();
    for number in 0..4 {
        house.daemon.say("c", OUT, T + (600 + number) * MS, format!("after {number}\n"));
        expected.push(line("c", OUT, T + 2 + number, &format!("after {number}")));
        house.assert_arrived(&agent, &expected);
    }
    dies_and_has_said(&house, &agent, &expected);
}

/// Each reading ends with another line. What stood there when it was first looked at is all that is waited for.
#[test]
fn once_ends_though_a_container_of_podman_writes_on() {
    let house = with_podman(json!({}));
    house.daemon.write_on();
    house.daemon.run("c");
    house.say("c", 0..10);
    let (code, stderr) = house.room.run_once();
    assert_eq!(code, 0, "{stderr}");
    assert_eq!(house.arrived()[..10], numbered("c", 0..10), "{stderr}");
}

/// Podman keeps one file of a log. What was seen of the one before, and held back, arrives.
#[test]
fn the_last_line_before_podman_rotates_a_log_arrives() {
    let house = with_podman(json!({}));
    house.daemon.run("c");
    house.say("c", 0..10);
    let agent = house.room.run();
    house.until_arrived(&agent, 9);
    house.daemon.rotate("c");
    house.assert_arrived(&agent, &numbered("c", 0..10));
    house.say("c", 10..20);
    house.until_arrived(&agent, 19);
    house.daemon.rotate("c");
    house.say("c", 20..30);
    house.assert_arrived(&agent, &numbered("c", 0..30));
    assert_eq!(agent.stop(), 0, "{}", agent.stderr());
}

/// Parts of a line have times of their own: a log that is asked for again may begin with the rest of a line.
#[test]
fn the_rest_of_a_line_is_no_line_of_podman() {
    let house = with_podman(json!({}));
    house.daemon.say_whole_seconds();
    house.daemon.run("c");
    let agent = house.room.run();
    house.daemon.say("c", OUT, T + 100 * MS, "half ");
    let mut expected = Vec::new();
    for (at, text, shown, whole) in [
        (2100, "and its rest\n", 0, "half and its rest"),
        (2200, "next\n", 2000, "next"),
        (3500, "more\n", 3000, "more"),
        (4600, "still more\n", 4000, "still more"),
        (6700, "last\n", 6000, "last"),
    ] {
        house.daemon.say("c", OUT, T + at * MS, text);
        expected.push(line("c", OUT, T + shown * MS, whole));
        house.assert_arrived(&agent, &expected);
    }
    dies_and_has_said(&house, &agent, &expected);
}
