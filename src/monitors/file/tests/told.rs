//! What `files` makes of what it is told, and when: here the test is who sweeps and who watches.

use std::path::PathBuf;
use std::time::Duration;

use super::super::sweep::{self, Found, Sweep};
use super::moments::rotate;
use super::world::{DEADLINE, Life, Line, World, names, numbered, source, texts};
use crate::budget::READ_BYTES;
use crate::clock::Clock;
use crate::monitors::SourceKind;
use crate::monitors::outlet::SMALL_BYTES;

/// Nothing happens by itself but for polls, since time stands still.
fn still_world(include: &str) -> World {
    let mut world = World::new(include);
    world.clock = Clock::by_hand(Clock::real().wall_ns());
    world
}

/// Nobody polls either.
fn quiet_world(include: &str) -> World {
    let mut world = still_world(include);
    if let SourceKind::File(file) = &mut world.sources[0].kind {
        file.poll_interval = Duration::from_secs(600);
    }
    world
}

/// A file of which everything is reported from now on.
fn heard(world: &World, name: &str) -> Found {
    Found { heard: true, ..world.found(name) }
}

fn sweep_of(world: &World, names: &[&str]) -> Sweep {
    sweep::tests::of(names.iter().map(|name| heard(world, name)))
}

fn paths<const N: usize>(world: &World, names: [&str; N]) -> [PathBuf; N] {
    names.map(|name| world.path(name))
}

/// A sweep that began before a rotation comes after it: what is written to the new file then is heard of for the old one,
/// which seems to be back. `other.log` shows that what was told has been taken in.
#[test]
fn who_takes_its_place_back_after_an_old_sweep_is_read_at_once() {
    let mut world = quiet_world("*.log");
    world.append("a.log", "1\n");
    world.append("other.log", "");
    world.sweep = Some(sweep_of(&world, &["a.log", "other.log"]));
    let lines = world.live(|world, life| {
        life.until_lines(1);
        let before = sweep_of(world, &["a.log", "other.log"]);
        world.rename("a.log", "a.log.1");
        world.append("a.log", "2\n");
        life.tell(&paths(world, ["a.log"]), false);
        life.until_lines(2);

        world.append("other.log", "the old sweep was taken in\n");
        life.swept(before);
        life.tell(&paths(world, ["other.log"]), true);
        life.until_lines(3);
        world.append("a.log", "3\n");
        world.append("other.log", "so was the hint\n");
        life.tell(&paths(world, ["a.log", "other.log"]), true);
        life.until_lines(4);

        life.swept(sweep_of(world, &["a.log", "other.log"]));
        life.until_lines(5);
    });
    assert_eq!(texts(&lines), ["1", "2", "the old sweep was taken in", "so was the hint", "3"]);
}

/// Three files have something to say at the same moment, and the second has much: nobody knows before it is read.
#[test]
fn what_is_large_does_not_pass_what_is_small_and_was_read_before_it() {
    let mut world = quiet_world("*.log");
    let names = ["a.log", "b.log", "c.log"];
    names.iter().for_each(|name| drop(world.append(name, format!("{name} begins\n"))));
    world.sweep = Some(sweep_of(&world, &names));
    let much = numbered("much of ", 0..SMALL_BYTES);
    let lines = world.live(|world, life| {
        life.until_lines(3);
        world.append("a.log", "a\n");
        world.append("b.log", &much);
        world.append("c.log", "c\n");
        life.tell(&paths(world, names), true);
        life.until_lines(3 + 2 + SMALL_BYTES);
    });
    assert_eq!(texts(&lines)[3..].join("\n"), format!("a\n{much}c"));
}

/// The lines of the second file go by themselves, since they may be parts of lines.
#[test]
fn what_cannot_be_gathered_does_not_pass_what_was_read_before_it() {
    let mut world = quiet_world("a.log");
    world.sources.push(source("parts", &[world.path("b.log")]));
    if let SourceKind::File(file) = &mut world.sources[1].kind {
        (file.in_parts, file.poll_interval) = (true, Duration::from_secs(600));
    }
    let part = |number| format!("2026-01-31T12:00:00Z stdout F {number}");
    world.append("a.log", "0\n");
    world.append("b.log", part(0) + "\n");
    let of_parts = Found { source: 1, ..heard(&world, "b.log") };
    world.sweep = Some(sweep::tests::of([heard(&world, "a.log"), of_parts]));
    let lines = world.live(|world, life| {
        life.until_lines(2);
        world.append("a.log", "1\n");
        world.append("b.log", part(1) + "\n");
        life.tell(&paths(world, ["a.log", "b.log"]), true);
        life.until_lines(4);
    });
    assert_eq!(texts(&lines)[2..], ["1", &part(1)]);
}

/// A sweep is taken in when the new file that it has found was rotated away too, and what came after that as well.
#[test]
fn what_came_after_a_file_that_an_old_sweep_tells_of_is_read_after_it() {
    let mut world = quiet_world("a.log");
    world.append("a.log", "0\n");
    world.sweep = Some(sweep_of(&world, &["a.log"]));
    let lines = world.live(|world, life| {
        life.until_lines(1);
        rotate(world, 1..=1);
        let sweep = sweep_of(world, &["a.log"]);
        rotate(world, 2..=3);
        life.swept(sweep);
        life.until_lines(4);
    });
    assert_eq!(texts(&lines), ["0", "1", "2", "3"]);
}

/// A new file is rotated away before it can be opened, so often before its turn has come, and so often behind that. What
/// stands at a rotated name meanwhile is another one that came and went unseen, and no pattern leads there.
#[track_caller]
fn rotated_again_and_again(before_its_turn: usize, behind_it: usize) {
    let mut world = quiet_world("*.log");
    world.budget = READ_BYTES;
    world.sources[0].max_line_bytes = 64 * 1024;
    world.append("big.log", numbered("a line of some length ", 0..20_000));
    world.sweep = Some(sweep_of(&world, &["big.log"]));
    let last = 1 + before_its_turn + behind_it;
    let lines = world.live(|world, life| {
        // It holds all the credit there is: nothing is read until it is answered for.
        let chunk = life.chunks.recv_timeout(DEADLINE).expect("the first chunk");
        world.append("a.log", "0\n");
        let sweep = sweep_of(world, &["a.log", "big.log"]);
        rotate(world, 1..=1);
        life.swept(sweep);
        life.until_metric("files_followed", 2);
        life.tell(&paths(world, ["big.log"]), true);
        life.until_metric("files_open", 2);
        rotate(world, 2..=1 + before_its_turn);
        life.take(chunk);
        let has_come = |life: &Life, text: &str| life.lines.iter().any(|line| line.text == text);
        life.until("the first of them was read", |life| has_come(life, "0"));
        rotate(world, 2 + before_its_turn..=last);
        world.append("big.log", "the hint was taken in\n");
        life.tell(&paths(world, ["a.log.1", "big.log"]), false);
        life.until("the hint was taken in", |life| has_come(life, "the hint was taken in"));
        life.swept(sweep_of(world, &["a.log", "big.log"]));
        life.until_lines(20_000 + 1 + last + 1);
    });
    let of_a: Vec<Line> = lines.into_iter().filter(|line| line.text.len() == 1).collect();
    assert_eq!(texts(&of_a), (0..=last).map(|number| number.to_string()).collect::<Vec<_>>());
    assert_eq!(names(&of_a), [world.path("a.log").to_str().unwrap()]);
}

#[test]
fn what_stands_at_a_rotated_name_is_not_followed_by_that_name() {
    rotated_again_and_again(2, 0);
    rotated_again_and_again(1, 2);
}

#[test]
fn who_takes_the_place_of_a_renamed_file_is_read_at_a_hint() {
    let mut world = quiet_world("*.log");
    world.append("a.log", "1\n");
    world.sweep = Some(sweep_of(&world, &["a.log"]));
    let lines = world.live(|world, life| {
        life.until_lines(1);
        world.rename("a.log", "b.log");
        world.append("b.log", "2\n");
        life.swept(sweep_of(world, &["b.log"]));
        life.tell(&paths(world, ["b.log"]), true);
        life.until_lines(2);
        world.rename("b.log", "b.log.1");
        world.append("b.log", "3\n");
        life.tell(&paths(world, ["b.log"]), false);
        life.until_lines(3);
    });
    assert_eq!(texts(&lines), ["1", "2", "3"]);
}

/// Time goes by, and something else happens: that is no reason to look at a file of which everything is reported.
#[test]
fn a_report_that_was_missed_is_made_up_for_by_the_next_sweep() {
    let mut world = quiet_world("*.log");
    let names = ["a.log", "other.log"];
    names.iter().for_each(|name| drop(world.append(name, format!("{name} begins\n"))));
    world.sweep = Some(sweep_of(&world, &names));
    let clock = world.clock.clone();
    let lines = world.live(|world, life| {
        life.until_lines(2);
        world.append("a.log", "missed\n");
        for round in 0..3 {
            clock.advance(Duration::from_secs(1200));
            world.append("other.log", format!("{round}\n"));
            life.tell(&paths(world, ["other.log"]), true);
            life.until_lines(3 + round);
        }
        assert_eq!(texts(&life.lines)[2..], ["0", "1", "2"]);
        life.swept(sweep_of(world, &names));
        life.until_lines(6);
    });
    assert_eq!(texts(&lines)[5], "missed");
}

/// Nothing is reported from there, and no sweep sees it: the open file tells.
#[test]
fn a_file_in_a_folder_that_cannot_be_looked_into_any_more_is_still_read() {
    let mut world = still_world("*.log");
    world.append("a.log", "1\n");
    world.sweep = Some(sweep_of(&world, &["a.log"]));
    let clock = world.clock.clone();
    let lines = world.live(|world, life| {
        life.until_lines(1);
        let mut sweep = Sweep::default();
        sweep.unsure.push(world.logs.path().to_owned());
        sweep.unheard = true;
        sweep.complete();
        life.swept(sweep);
        world.append("a.log", "2\n");
        life.until_view("its last line was read", |view| {
            clock.advance(Duration::from_millis(100));
            view.files.iter().all(|file| file.position == 4)
        });
        life.until_lines(2);
    });
    assert_eq!(texts(&lines), ["1", "2"]);
}

#[test]
fn what_waits_behind_a_half_line_is_counted_at_the_stop() {
    let mut world = quiet_world("*.log");
    world.append("a.log", "1\nhalf");
    world.sweep = Some(sweep_of(&world, &["a.log"]));
    world.live(|world, life| {
        life.until_lines(1);
        world.rename("a.log", "a.log.1");
        world.append("a.log", "");
        life.tell(&paths(world, ["a.log"]), false);
        life.until_metric("files_open", 2);
        world.append("other.log", "the sweep was taken in\n");
        life.swept(sweep_of(world, &["a.log", "other.log"])); // heard from now on
        life.until_lines(2);
        world.append("a.log", "2\n");
        world.append("other.log", "so were the hints\n");
        life.tell(&paths(world, ["a.log", "other.log"]), true);
        life.until_lines(3);
    });
    assert_eq!(world.books().unread, "half2\n".len() as u64);
}

#[test]
fn who_was_given_up_because_of_hold_deleted_is_not_shown_any_more() {
    let mut world = still_world("*.log");
    if let SourceKind::File(file) = &mut world.sources[0].kind {
        file.hold_deleted.max_age = Some(Duration::from_secs(30));
    }
    world.append("a.log", "1\nhalf");
    world.sweep = Some(sweep_of(&world, &["a.log"]));
    let clock = world.clock.clone();
    world.live(|world, life| {
        life.until_lines(1);
        std::fs::remove_file(world.path("a.log")).unwrap();
        life.tell(&paths(world, ["a.log"]), false);
        life.until_view_only("it is not followed any more", |view| {
            clock.advance(Duration::from_millis(100));
            view.followed == 0
        });
    });
}

/// It stands there for days, where no pattern leads.
#[test]
fn what_was_rotated_while_the_agent_was_down_is_let_go_some_time_after_it_was_read() {
    let mut world = still_world("a.log");
    world.append("a.log", "1\n");
    world.sweep = Some(sweep_of(&world, &["a.log"]));
    world.live(|_, life| life.until_lines(1));
    world.append("a.log", "2\n");
    world.rename("a.log", "a.log.1");
    world.append("a.log", "3\n");
    world.sweep = Some(sweep_of(&world, &["a.log"]));
    let clock = world.clock.clone();
    let lines = world.live(|_, life| {
        life.until_lines(2);
        life.until_view_only("one is followed", |view| {
            clock.advance(Duration::from_secs(1));
            view.followed == 1
        });
    });
    assert_eq!(texts(&lines), ["2", "3"]);
    assert!(world.run_once().is_empty(), "nothing is read again");
}
