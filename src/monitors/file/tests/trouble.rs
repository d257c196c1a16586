//! What a file can go through at the worst moment.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::time::Duration;

use inotify::{EventMask, Inotify, WatchMask};

use super::world::{DEADLINE, World, names, numbered, texts};
use crate::ack::{Count, Verdict};
use crate::budget::READ_BYTES;
use crate::clock::Clock;
use crate::monitors::SourceKind;

/// A slow sink, a long backlog, and a file that is rewritten before the next read of it: what comes next is not
/// the rest of the old content.
#[test]
fn rewritten_while_the_reader_is_behind() {
    let mut world = World::new("*.log");
    world.budget = READ_BYTES;
    world.sources[0].max_line_bytes = 64 * 1024;
    let (old, new) = (numbered("old ", 0..100_000), numbered("new content ", 0..100_000));
    let writer = File::create(world.path("a.log")).unwrap();
    writer.write_all_at(old.as_bytes(), 0).unwrap();
    let lines = world.live(|_, life| {
        // It holds all the credit there is: nothing is read until it is answered for.
        let chunk = life.chunks.recv_timeout(DEADLINE).expect("the first chunk");
        writer.write_all_at(new.as_bytes(), 0).unwrap();
        let first = chunk.lines.len();
        life.take(chunk);
        life.until_lines(first + 100_000);
    });
    let all: String = lines.iter().map(|line| line.text.clone() + "\n").collect();
    let (first, second) = all.split_at(all.len() - new.len());
    assert!(old.starts_with(first), "{:?}", &first[first.len() - 30..]);
    assert!(second == new, "the new content is whole");
}

#[test]
fn rotations_on_a_file_system_without_events() {
    let mut world = World::new("a.log");
    world.events = false;
    world.append("a.log", "0\n");
    let lines = world.live(|world, life| {
        life.until_lines(1);
        for round in 1..5 {
            world.rename("a.log", &format!("a.log.{round}"));
            world.append("a.log", format!("{round}\n"));
            life.until_lines(round + 1);
        }
        std::fs::remove_file(world.path("a.log")).unwrap();
        life.until_view("the last is deleted", |view| view.files.iter().any(|file| file.state == "deleted"));
        world.append("a.log", "5\n");
        life.until_lines(6);
    });
    assert_eq!(texts(&lines), ["0", "1", "2", "3", "4", "5"]);
}

/// The same inode, perhaps even the same file: blocks of zeros before the first text after a power cut.
#[test]
fn a_file_that_was_binary_becomes_text() {
    let mut world = World::new("*.log");
    let writer = File::create(world.path("a.log")).unwrap();
    writer.write_all_at(b"\0\0\0\0", 0).unwrap();
    let lines = world.live(|world, life| {
        life.until_view("it is passed over", |view| view.passed_over == 1);
        writer.write_all_at(b"1\n2\n3\n", 0).unwrap();
        world.append("b.log", "b\n"); // for another sweep
        life.until_lines(4);
    });
    let mut found = texts(&lines);
    found.sort();
    assert_eq!(found, ["1", "2", "3", "b"]);
}

/// What was not read when a file was copied and emptied stands in the copy, though no pattern leads to it.
#[test]
fn the_copy_of_a_truncated_file_is_read_on() {
    let mut world = World::new("a.log");
    world.budget = READ_BYTES;
    world.sources[0].max_line_bytes = 64 * 1024;
    let (old, new) = (numbered("old ", 0..100_000), numbered("new ", 0..1000));
    let writer = world.append("a.log", &old);
    let lines = world.live(|world, life| {
        // It holds all the credit there is: nothing is read until it is answered for.
        let chunk = life.chunks.recv_timeout(DEADLINE).expect("the first chunk");
        std::fs::copy(world.path("a.log"), world.path("a-2026-01-31.log")).unwrap();
        writer.set_len(0).unwrap();
        world.append("a.log", &new);
        life.take(chunk);
        life.until_lines(101_000);
    });
    let all: String = lines.iter().map(|line| line.text.clone() + "\n").collect();
    assert!(all == old + &new, "all lines, in their order");
    assert!(lines.iter().all(|line| line.lineage == lines[0].lineage && line.filename == lines[0].filename));
    assert_eq!((world.books().given_up, world.books().unread), (0, 0));
    assert!(world.run_once().is_empty(), "nothing is read again");
}

/// It may be deleted as soon as it was found: no moment is left in which it could not be read any more.
#[test]
fn the_copy_that_a_generation_goes_on_in_is_opened_once() {
    let mut world = World::new("a.log");
    let writer = world.append("a.log", numbered("old ", 0..100));
    world.live(|_, life| life.until_lines(100));
    world.append("a.log", numbered("old ", 100..200));
    std::fs::copy(world.path("a.log"), world.path("a.copy")).unwrap();
    writer.set_len(0).unwrap();
    world.append("a.log", numbered("new ", 0..100));

    let mut opened = Inotify::init().unwrap();
    opened.watches().add(world.path("a.copy"), WatchMask::OPEN | WatchMask::CLOSE_NOWRITE).unwrap();
    let lines = world.live(|_, life| life.until_lines(200));
    let all: String = lines.iter().map(|line| line.text.clone() + "\n").collect();
    assert!(all == numbered("old ", 100..200) + &numbered("new ", 0..100), "all lines, in their order");
    let masks: Vec<_> = opened.read_events(&mut [0; 1024]).unwrap().map(|event| event.mask).collect();
    assert_eq!(masks, [EventMask::OPEN, EventMask::CLOSE_NOWRITE]);
}

/// One that could not be held, for want of descriptors, and was deleted: what it had is given up, and counted, and
/// nobody waits for it.
#[test]
fn a_copy_that_is_gone_before_it_could_be_held_is_given_up() {
    let mut world = World::new("*.log");
    (world.budget, world.open_files_max) = (READ_BYTES, 2);
    world.clock = Clock::by_hand(Clock::real().wall_ns());
    world.sources[0].max_line_bytes = 64 * 1024;
    let writer = world.append("b.log", numbered("old ", 0..100));
    world.append("a.log", numbered("first ", 0..1000));
    world.live(|_, life| life.until_lines(1100));
    let (rest, large) = (numbered("old ", 100..200), numbered("large ", 0..100_000));
    world.append("b.log", &rest);
    std::fs::copy(world.path("b.log"), world.path("b.copy")).unwrap();
    writer.set_len(0).unwrap();
    world.append("b.log", numbered("new ", 0..100));
    world.append("a.log", &large); // holds one of two descriptors for as long as nothing is answered for
    let clock = world.clock.clone();
    let lines = world.live(|world, life| {
        let chunk = life.chunks.recv_timeout(DEADLINE).expect("the first chunk");
        life.until_view_only("the copy is in the line", |view| {
            clock.advance(Duration::from_millis(100));
            view.followed == 3
        });
        std::fs::remove_file(world.path("b.copy")).unwrap();
        life.take(chunk);
        life.until_lines(100_100);
        for _ in 0..700 {
            clock.advance(Duration::from_millis(100));
            let _ = crossbeam_channel::after(Duration::from_millis(1)).recv();
        }
        life.until_view_only("it is over", |view| {
            clock.advance(Duration::from_millis(100));
            view.followed == 2
        });
    });
    let all: Vec<&str> = texts(&lines).into_iter().filter(|line| !line.starts_with("large")).collect();
    assert_eq!(all.join("\n") + "\n", numbered("new ", 0..100));
    assert_eq!((world.books().given_up, world.books().unread), (rest.len() as u64, 0));
}

/// A copy that is found before the file is emptied, and matches as well.
#[test]
fn the_copy_of_a_truncated_file_is_not_another_file() {
    let mut world = World::new("*.log*");
    if let SourceKind::File(file) = &mut world.sources[0].kind {
        file.poll_interval = Duration::from_secs(10); // so that it is not taken for a file of its own soon
    }
    let writer = world.append("a.log", numbered("old ", 0..100));
    let lines = world.live(|world, life| {
        life.until_lines(100);
        std::fs::copy(world.path("a.log"), world.path("a.log.1")).unwrap();
        world.append("b.log", "found with the copy\n");
        life.until_lines(101);
        writer.set_len(0).unwrap();
        world.append("a.log", numbered("new ", 0..100));
        life.until_lines(201);
        world.append("c.log", "the last\n");
        life.until_lines(202);
    });
    let expected =
        numbered("old ", 0..100) + "found with the copy\n" + &numbered("new ", 0..100) + "the last\n";
    assert_eq!(texts(&lines).join("\n") + "\n", expected);
    assert!(world.run_once().is_empty(), "nothing is read again");
}

#[test]
fn equal_files_are_two_files() {
    let mut world = World::new("*.log");
    world.append("a.log", numbered("line ", 0..1000));
    let lines = world.live(|world, life| {
        life.until_lines(1000);
        world.append("a-2.log", numbered("line ", 0..1000));
        life.until_lines(2000);
    });
    assert_eq!(names(&lines).len(), 2);
}

/// New files while the sink is dead and the budget is used up: all are held before they are gone.
#[test]
fn files_that_live_shorter_than_the_standstill() {
    let mut world = World::new("*.log");
    world.budget = READ_BYTES;
    world.sources[0].max_line_bytes = 64 * 1024;
    let line = |name: &str| format!("{name} {}\n", "x".repeat(1000));
    world.append("a.log", line("a").repeat(1000));
    let names = ["b", "c", "d", "e"];
    let lines = world.live(|world, life| {
        // It holds all the credit there is: nothing is read until it is answered for.
        let chunk = life.chunks.recv_timeout(DEADLINE).expect("the first chunk");
        names.iter().for_each(|name| drop(world.append(&format!("{name}.log"), line(name).repeat(300))));
        life.until_view("all are held", |view| view.open == 5);
        names.iter().for_each(|name| std::fs::remove_file(world.path(&format!("{name}.log"))).unwrap());
        life.take(chunk);
        life.until_lines(1000 + names.len() * 300);
    });
    assert!(names.iter().all(|name| lines.iter().filter(|line| line.text.starts_with(name)).count() == 300));
}

/// More new files than descriptors, and a dead sink: those that are gone before their turn were not read, and this
/// is said.
#[test]
fn files_that_are_gone_before_there_is_a_descriptor_for_them() {
    let mut world = World::new("*.log");
    (world.budget, world.open_files_max) = (READ_BYTES, 4);
    world.sources[0].max_line_bytes = 64 * 1024;
    world.append("a.log", numbered("a line of some length ", 0..100_000));
    let text = |name: &str| numbered(&format!("{name} "), 0..100);
    let names: Vec<String> = (0..10).map(|number| format!("new-{number}.log")).collect();
    let lines = world.live(|world, life| {
        // It holds all the credit there is: nothing is read until it is answered for.
        let chunk = life.chunks.recv_timeout(DEADLINE).expect("the first chunk");
        names.iter().for_each(|name| drop(world.append(name, text(name))));
        life.until_view_only("all are found", |view| view.followed == 11 && view.open == 3);
        names.iter().for_each(|name| std::fs::remove_file(world.path(name)).unwrap());
        life.take(chunk);
        life.until_view("the others are forgotten", |view| view.followed == 3);
    });
    let arrived: usize = lines.iter().map(|line| line.text.len() + 1).sum();
    let written = numbered("a line of some length ", 0..100_000).len()
        + names.iter().map(|name| text(name).len()).sum::<usize>();
    assert!(
        arrived < written && names.iter().any(|name| lines.iter().any(|line| line.text.starts_with(name)))
    );
    assert_eq!(world.books().given_up, (written - arrived) as u64, "of {written}: {:?}", world.books().pages);
}

/// With a name per day, an entry per day would stay for ever.
#[test]
fn the_path_of_a_file_that_was_renamed_while_it_was_closed_is_forgotten() {
    let mut world = World::new("*.log");
    world.open_files_max = 1;
    world.append("a.log", "a\n");
    world.live(|world, life| {
        life.until_lines(1);
        world.append("b.log", "b\n");
        life.until_lines(2);
        life.until_view("a is closed", |view| view.files.iter().any(|file| file.state == "closed"));
        world.rename("a.log", "a.done");
        life.until_view("one path is left", |view| view.followed == 2 && view.sizes.paths == 1);
    });
}

/// Nobody reports what happens to a file by a name that stands in another folder: these are looked at all the time.
#[test]
fn files_that_are_written_by_another_name() {
    let mut world = World::new("*.log");
    std::fs::create_dir(world.path("elsewhere")).unwrap();
    for (number, link) in ["soft", "hard"].into_iter().enumerate() {
        let target = format!("elsewhere/{link}");
        world.append(&target, format!("{number}\n"));
        match number {
            0 => std::os::unix::fs::symlink(world.path(&target), world.path("soft.log")).unwrap(),
            _ => std::fs::hard_link(world.path(&target), world.path("hard.log")).unwrap(),
        }
    }
    let lines = world.live(|world, life| {
        life.until_lines(2);
        world.append("elsewhere/soft", "2\n");
        life.until_lines(3);
        world.append("elsewhere/hard", "3\n");
        life.until_lines(4);
    });
    assert_eq!(texts(&lines)[2..], ["2", "3"]);
}

/// Another folder is put in the place of one that a link leads to. Nothing is reported where the link stands, so somebody
/// has to look.
#[test]
fn a_file_in_a_folder_that_a_link_leads_to_since_then_is_found_soon() {
    let mut world = World::new("current/*.log");
    let point = |world: &World, folder: &str| {
        std::fs::create_dir(world.path(folder)).unwrap();
        world.append(&format!("{folder}/a.log"), format!("{folder}\n"));
        std::os::unix::fs::symlink(folder, world.path("new link")).unwrap();
        world.rename("new link", "current");
    };
    point(&world, "first");
    let lines = world.live(|world, life| {
        life.until_lines(1);
        point(world, "second");
        world.append("second/b.log", "b\n");
        life.until_lines(3);
    });
    let mut found = texts(&lines);
    found.sort();
    assert_eq!(found, ["b", "first", "second"]);
}

/// A sink has the middle of a chunk whose lines may be parts, and the process dies: the next life reads up to there, and
/// goes on behind it at once.
#[test]
fn what_stands_around_a_part_that_was_delivered() {
    let mut world = World::new("a.log");
    if let SourceKind::File(file) = &mut world.sources[0].kind {
        file.in_parts = true;
    }
    let lines: Vec<String> = (0..3).map(|number| format!("2026-01-31T12:00:00Z stdout F {number}")).collect();
    world.append("a.log", lines.join("\n") + "\n");
    world.live(|_, life| {
        let chunk = life.chunks.recv_timeout(DEADLINE).expect("the only chunk");
        let mut share = chunk.ack.into_shares().remove(0);
        let bytes = lines[0].len() as u64 + 1;
        let count = Count { lines: 1, bytes };
        let first = share.split(count, bytes);
        share.split(count, 2 * bytes).settle(&Verdict::Delivered);
        first.let_go();
        share.let_go();
    });
    assert_eq!(texts(&world.live(|_, life| life.until_lines(2))), [&*lines[0], &lines[2]]);
}
