//! What happens in the moment between two looks: a sweep or a poll tells of a file, and before it is opened, or before the
//! next one, the folder is another.

use std::fs;
use std::time::{Duration, SystemTime};

use super::super::packed::tests::gzip;
use super::super::sweep;
use super::world::{World, texts};

/// A sweep tells of `a.log`, which is rotated so often before it is opened. All of it is read, in the order in which
/// it was written: what is left of the file that was found, the files that came and went, the new one.
#[track_caller]
fn rotated_before_it_is_opened(rotations: usize, is_known: bool, once: bool) {
    let mut world = World::new("a.log");
    if is_known {
        world.append("a.log", "read before\n");
        assert_eq!(texts(&world.run_once()), ["read before"]);
    }
    world.append("a.log", "0\n");
    world.sweep = Some(sweep::tests::of([world.found("a.log")]));
    rotate(&world, 1..=rotations);
    world.once = once;
    let expected: Vec<String> = (0..=rotations).map(|number| number.to_string()).collect();
    let lines = world.live(|_, life| life.until_lines(expected.len()));
    assert_eq!(texts(&lines), expected, "{rotations} rotations, known: {is_known}, once: {once}");
    assert!(lines.iter().all(|line| line.lineage == lines[0].lineage && line.filename == lines[0].filename));
    assert_eq!(world.books().given_up, 0);
    assert!(world.run_once().is_empty(), "nothing is read again");
}

/// By numbers, and each new file has its number for a line.
pub(super) fn rotate(world: &World, rounds: std::ops::RangeInclusive<usize>) {
    for round in rounds {
        for number in (1..round).rev() {
            world.rename(&format!("a.log.{number}"), &format!("a.log.{}", number + 1));
        }
        world.rename("a.log", "a.log.1");
        until_later(world, "a.log.1");
        world.append("a.log", format!("{round}\n"));
    }
}

/// What is made from now on is younger than this file: a file system counts in milliseconds.
fn until_later(world: &World, name: &str) {
    let made = |name: &str| fs::metadata(world.path(name)).unwrap().created().unwrap();
    while {
        world.append("probe", "");
        let is_later = made("probe") > made(name);
        fs::remove_file(world.path("probe")).unwrap();
        !is_later
    } {}
}

#[test]
fn renamed_between_the_sweep_and_its_opening() {
    for rotations in 1..4 {
        for is_known in [true, false] {
            for once in [true, false] {
                rotated_before_it_is_opened(rotations, is_known, once);
            }
        }
    }
}

/// Files that are made and rotated away before anybody has looked at them once.
#[test]
fn rotated_away_between_two_looks() {
    for include in ["a.log", "a.log*"] {
        let mut world = World::new(include);
        world.events = false;
        world.append("a.log", "0\n");
        let lines = world.live(|world, life| {
            life.until_lines(1);
            rotate(world, 1..=4);
            life.until_lines(5);
            rotate(world, 5..=7);
            life.until_lines(8);
        });
        assert_eq!(texts(&lines), ["0", "1", "2", "3", "4", "5", "6", "7"], "{include}");
        assert!(lines.iter().all(|line| line.filename == lines[0].filename), "one name");
        assert!(world.run_once().is_empty(), "nothing is read again");
    }
}

/// Between two looks the file that was read is deleted too: what came after it is read, and what it became is not.
#[test]
fn replaced_between_two_looks_by_what_is_no_news() {
    type Replace = fn(&World);
    let cases: [(&str, Replace, &[&str]); 4] = [
        (
            "two rotations that keep one",
            |world| {
                rotate(world, 1..=2);
                fs::remove_file(world.path("a.log.2")).unwrap();
            },
            &["0", "1", "2"],
        ),
        (
            "compressed",
            |world| {
                until_later(world, "a.log");
                world.append("a.log.1.gz", gzip(b"0\n"));
                fs::remove_file(world.path("a.log")).unwrap();
                world.append("a.log", "2\n");
            },
            &["0", "2"],
        ),
        (
            "copied, deleted and made anew",
            |world| {
                until_later(world, "a.log");
                fs::copy(world.path("a.log"), world.path("a.log.1")).unwrap();
                fs::remove_file(world.path("a.log")).unwrap();
                world.append("a.log", "2\n");
            },
            &["0", "2"],
        ),
        (
            "an older one stands beside it",
            |world| {
                let old = world.append("a.log.2", "older\n");
                old.set_modified(SystemTime::UNIX_EPOCH + Duration::from_secs(1)).unwrap();
                rotate(world, 1..=1);
            },
            &["0", "1"],
        ),
    ];
    for (what, replace, expected) in cases {
        let mut world = World::new("a.log");
        world.events = false;
        let first = world.append("a.log", "0\n");
        first.set_modified(SystemTime::UNIX_EPOCH + Duration::from_secs(60)).unwrap();
        let lines = world.live(|world, life| {
            life.until_lines(1);
            replace(world);
            life.until_lines(expected.len());
            world.append("a.log", "the last\n");
            life.until_lines(expected.len() + 1);
        });
        assert_eq!(texts(&lines)[..expected.len()], *expected, "{what}");
        assert_eq!(lines.last().unwrap().text, "the last", "{what}");
    }
}

/// It was read before, or is older than the agent; a late writer, or a tool, has touched it since.
#[test]
fn a_rotated_file_that_was_changed_last_is_not_the_newest() {
    let mut world = World::new("a.log");
    world.events = false;
    let older = world.append("a.log.2", "older\n");
    until_later(&world, "a.log.2");
    let first = world.append("a.log", "0\n");
    let lines = world.live(|world, life| {
        life.until_lines(1);
        first.set_modified(SystemTime::UNIX_EPOCH + Duration::from_secs(60)).unwrap();
        older.set_modified(SystemTime::UNIX_EPOCH + Duration::from_secs(90)).unwrap();
        rotate(world, 1..=1);
        life.until_lines(2);
        rotate(world, 2..=2);
        life.until_lines(3);
    });
    assert_eq!(texts(&lines), ["0", "1", "2"]);
}
