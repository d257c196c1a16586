//! The three threads together, with real files.

mod moments;
mod outage;
mod rotation;
mod told;
mod trouble;
mod world;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::bounded;

use crate::budget::READ_BYTES;
use crate::clock::Clock;
use crate::durable::{FileId, OwnFiles};
use crate::monitors::{Off, SourceKind, StartAt};
use crate::tasks::{self, Spec, Switch, Table};
use world::{World, names, numbered, source, texts};

#[test]
fn what_is_there_and_what_comes_later() {
    let mut world = World::new("*.log");
    world.append("a.log", "1\n2\n");
    world.append("other.txt", "no\n");
    let lines = world.live(|world, life| {
        life.until_lines(2);
        world.append("a.log", "3\n");
        life.until_lines(3);
        world.append("new.log", "4\n");
        life.until_lines(4);
    });
    assert_eq!(texts(&lines), ["1", "2", "3", "4"]);
    assert!(lines[3].filename.ends_with("new.log") && world.books().unread == 0);
}

#[test]
fn once_reads_all_that_is_there_and_ends_by_itself() {
    let mut world = World::new("**/*.log");
    fs::create_dir_all(world.path("x/y")).unwrap();
    world.append("x/y/a.log", "1\nhalf");
    world.append("empty.log", "");
    world.append("b.log", numbered("b", 0..50_000));
    let lines = world.run_once();
    assert_eq!(lines.len(), 50_002);
    let half = lines.iter().find(|line| line.text == "half").unwrap();
    assert!(half.partial);
    assert!(world.run_once().is_empty(), "nothing is read twice");
    world.append("x/y/a.log", " rest\n");
    let rest = world.run_once();
    assert_eq!(texts(&rest), [" rest"]);
    assert!(rest[0].partial && rest[0].generation == half.generation);
}

/// Every kind of thing that lies in a log folder, and which of them are captured.
#[test]
fn only_regular_files_that_match_each_once() {
    let mut world = World::new("**/*.log");
    let odd = Path::new(std::ffi::OsStr::from_bytes(b"odd\n\xff.log"));
    File::create(world.logs.path().join(odd)).unwrap().write_all(b"odd name\n").unwrap();
    world.append("real.log", "real\n");
    fs::hard_link(world.path("real.log"), world.path("second name.log")).unwrap();
    symlink(world.path("real.log"), world.path("a link.log")).unwrap();
    symlink(world.path("nowhere"), world.path("dangling.log")).unwrap();
    world.append("target.txt", "by link only\n");
    symlink(world.path("target.txt"), world.path("to target.log")).unwrap();
    fs::create_dir(world.path("folder.log")).unwrap();
    world.append("folder.log/in.log", "below\n");
    symlink(world.logs.path(), world.path("folder.log/loop")).unwrap();
    symlink(world.path("self.log"), world.path("self.log")).unwrap();
    // Twelve folders that all lead to each other: more ways than anybody can walk.
    for from in 0..12 {
        fs::create_dir(world.path(&format!("web{from}"))).unwrap();
        (0..12).for_each(|to| {
            symlink(world.path(&format!("web{to}")), world.path(&format!("web{from}/{to}"))).unwrap();
        });
    }
    rustix::fs::mkfifoat(rustix::fs::CWD, world.path("fifo.log"), 0o600.into()).unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(world.path("socket.log")).unwrap();
    fs::create_dir(world.path("excluded")).unwrap();
    world.append("excluded/e.log", "no\n");
    world.append("b.gz.log", b"\x1f\x8b\x08 compressed\n");
    world.append("c.log", b"bin\0ary\n");
    // What the agent writes itself, directly and by a link.
    File::create(world.state.path().join("own.log")).unwrap().write_all(b"no\n").unwrap();
    symlink(world.state.path(), world.path("own")).unwrap();
    symlink(world.state.path().join("own.log"), world.path("own.log")).unwrap();
    let excluded = world.path("excluded").to_str().unwrap().to_owned();
    if let SourceKind::File(file) = &mut world.sources[0].kind {
        file.exclude.push(excluded);
    }
    // A second source that matches some of the same: the first has them.
    world.sources.push(source("t", &[world.path("real.log"), world.path("target.txt")]));
    let lines = world.run_once();
    let mut found = texts(&lines);
    found.sort();
    assert_eq!(found, ["below", "by link only", "odd name", "real"]);
    let expect = ["a link.log", "folder.log/in.log", "odd\n\u{fffd}.log", "to target.log"];
    assert_eq!(names(&lines), expect.map(|name| world.path(name).to_str().unwrap().to_owned()));
}

#[test]
fn an_output_of_our_own_is_never_captured() {
    let world = World::new("*.log");
    world.append("own.log", "x\n");
    let own = OwnFiles::default();
    own.add(FileId::of(&fs::metadata(world.path("own.log")).unwrap()), &world.path("own.log"));
    let (_switch, stop) = Switch::new().unwrap();
    let (post, picture) = super::mailbox();
    let (stir, stirred) = bounded(1);
    let (_watch, watches, _) = super::watch::watch(super::mailbox().0, stir, stop.stop.clone(), true);
    let setting = super::discovery::Setting {
        off: Off::default(),
        outputs: vec![world.path("out-*.log").to_str().unwrap().into()],
        own,
        once: true,
        stop: stop.stop,
    };
    world.append("out-1.log", "x\n");
    world.append("in.log", "x\n");
    let discovery =
        super::discovery::Discovery::new(&world.sources, setting, watches, stirred, post).unwrap();
    let table = Arc::new(Table::new(Clock::real()));
    tasks::run(table, |tasks| {
        let spec = Spec::carrier("discovery", Duration::from_secs(5));
        tasks.spawn(spec, |task| discovery.run(task)).unwrap();
    })
    .unwrap();
    let sweep = picture.take().unwrap();
    let found: Vec<PathBuf> = sweep.spots().into_iter().map(|spot| sweep.found(spot).path).collect();
    assert_eq!(found, [world.path("in.log")]);
}

#[test]
fn a_rotation_by_rename_loses_nothing() {
    let mut world = World::new("a.log");
    let mut writer = world.append("a.log", "1\n");
    let lines = world.live(|world, life| {
        life.until_lines(1);
        world.rename("a.log", "a.log.1");
        writer.write_all(b"2\n").unwrap(); // the writer was not told yet
        world.append("a.log", "3\n");
        life.until_lines(3);
        writer.write_all(b"4\n").unwrap();
        life.until_lines(4);
    });
    assert_eq!(texts(&lines), ["1", "2", "3", "4"]);
    assert!(lines.iter().all(|line| line.lineage == lines[0].lineage && line.filename == lines[0].filename));
    let generation = |text: &str| lines.iter().find(|line| line.text == text).unwrap().generation;
    assert!(generation("1") == generation("4") && generation("1") != generation("3"));
}

/// As fast as a disk renames, with the rotated names matched as well: each line once, in order.
#[test]
fn fast_rotations_within_the_pattern() {
    let mut world = World::new("a.log*");
    let lines = world.live(|world, life| {
        for round in 0..20 {
            world.append("a.log", numbered(&format!("{round}-"), 0..50));
            world.rename("a.log", &format!("a.log.{round}"));
        }
        life.until_lines(1000);
    });
    let mut per_file: BTreeMap<u64, Vec<&str>> = BTreeMap::new();
    for line in &lines {
        per_file.entry(line.generation).or_default().push(&line.text);
    }
    let mut rounds: Vec<String> = per_file.values().map(|lines| lines.join("\n") + "\n").collect();
    rounds.sort();
    let mut expected: Vec<String> = (0..20).map(|round| numbered(&format!("{round}-"), 0..50)).collect();
    expected.sort();
    assert_eq!(rounds, expected);
}

#[test]
fn a_truncated_file_begins_anew() {
    let mut world = World::new("*.log");
    let writer = world.append("a.log", "1\n22\n");
    let lines = world.live(|world, life| {
        life.until_lines(2);
        writer.set_len(0).unwrap();
        life.until_view("it is empty", |view| view.files.iter().any(|file| file.size == 0));
        world.append("a.log", "3\n");
        life.until_lines(3);
    });
    assert_eq!(texts(&lines), ["1", "22", "3"]);
    assert_eq!((lines[2].offset, lines[2].lineage), (0, lines[0].lineage));
    assert_ne!(lines[2].generation, lines[0].generation);
    assert_eq!(world.books().given_up, 0, "all of it had been read");
}

#[test]
fn a_file_that_was_truncated_and_has_grown_again_between_two_looks() {
    let mut world = World::new("*.log");
    let writer = File::create(world.path("a.log")).unwrap();
    writer.write_all_at(b"1\n2\n", 0).unwrap();
    let lines = world.live(|_, life| {
        life.until_lines(2);
        // One write, so that no look can fall between: longer than before, and another text.
        writer.write_all_at(b"3\n4\n5\n", 0).unwrap();
        life.until_lines(5);
        writer.write_all_at(b"6\n7\n8\n", 0).unwrap(); // and of the same length
        life.until_lines(8);
    });
    assert_eq!(texts(&lines), ["1", "2", "3", "4", "5", "6", "7", "8"]);
}

#[test]
fn a_hole_that_a_truncation_left_is_passed_over() {
    let mut world = World::new("*.log");
    let writer = File::create(world.path("a.log")).unwrap();
    writer.write_all_at(b"1\n", 0).unwrap();
    let lines = world.live(|_, life| {
        life.until_lines(1);
        writer.set_len(0).unwrap();
        life.until_view("it is empty", |view| view.files.iter().any(|file| file.size == 0));
        writer.write_all_at(b"2\n", 1 << 30).unwrap();
        life.until_lines(2);
    });
    assert_eq!(texts(&lines), ["1", "2"]);
    assert_eq!(lines[1].offset, 1 << 30);
}

#[test]
fn a_deleted_file_is_read_to_its_end() {
    let mut world = World::new("*.log");
    world.sources[0].idle = Duration::from_millis(300);
    let mut writer = world.append("a.log", "1\n");
    let lines = world.live(|world, life| {
        life.until_view("it is followed", |view| view.followed == 1);
        fs::remove_file(world.path("a.log")).unwrap();
        writer.write_all(b"2\nend").unwrap();
        life.until_lines(3);
        drop(writer);
        life.until_view("it is forgotten", |view| view.followed == 0 && view.open == 0);
    });
    assert_eq!(texts(&lines), ["1", "2", "end"]);
    assert_eq!((world.books().generations, world.books().given_up), (0, 0));
}

/// Days of churn in a moment: nothing stays behind for files that came and went.
#[test]
fn files_that_come_and_go_leave_nothing_behind() {
    let mut world = World::new("*.log");
    world.sources[0].idle = Duration::from_millis(1);
    let lines = world.live(|world, life| {
        for round in 0..10 {
            (0..20).for_each(|n| drop(world.append(&format!("{round}-{n}.log"), "line\n")));
            life.until_lines(20 * (round + 1));
            let last = world.path(&format!("{round}-19.log"));
            if round == 9 {
                life.until_view("the last is followed", |view| {
                    view.files.iter().any(|file| *file.path == *last)
                });
            }
            (0..20).for_each(|n| fs::remove_file(world.path(&format!("{round}-{n}.log"))).unwrap());
        }
        life.until_view("all are forgotten", |view| view.followed == 0 && view.open == 0);
    });
    assert_eq!(lines.len(), 200);
    assert_eq!(world.books().generations, 0);
}

#[test]
fn a_half_line_is_shipped_when_nobody_goes_on() {
    let mut world = World::new("*.log");
    world.sources[0].idle = Duration::from_millis(100);
    world.append("a.log", "1\nha");
    let lines = world.live(|world, life| {
        life.until_lines(2);
        world.append("a.log", "lf\n3\n");
        life.until_lines(4);
    });
    assert_eq!(texts(&lines), ["1", "ha", "lf", "3"]);
    assert_eq!(lines.iter().map(|line| line.partial).collect::<Vec<_>>(), [false, true, true, false]);
}

#[test]
fn a_half_line_waits_for_its_rest() {
    let mut world = World::new("*.log");
    world.append("a.log", "1\nha");
    let lines = world.live(|world, life| {
        life.until_lines(1);
        world.append("a.log", "lf\n");
        life.until_lines(2);
        world.append("a.log", "not read");
        life.until_view("it was seen", |view| view.files.iter().any(|file| file.size == 15));
    });
    assert_eq!(texts(&lines), ["1", "half"]);
    assert_eq!(world.books().unread, 8);
    assert_eq!(texts(&world.run_once()), ["not read"]);
}

/// Nearly every read ends in the middle of a line. That is no reason to take that line for a long one.
#[test]
fn a_chunk_is_one_read_wherever_its_last_line_is_cut() {
    let mut world = World::new("*.log");
    world.append("a.log", numbered("a line that is long enough for its bytes to count ", 0..100_000));
    let lines = world.live(|_, life| {
        while life.lines.len() < 100_000 {
            let chunk = life.chunks.recv_timeout(world::DEADLINE).unwrap();
            assert!(chunk.lines.data.len() <= 4 * READ_BYTES, "{} bytes", chunk.lines.data.len());
            life.take(chunk);
        }
    });
    assert_eq!(lines.len(), 100_000);
}

#[test]
fn lines_longer_than_a_read_and_longer_than_the_limit() {
    let mut world = World::new("*.log");
    let long = "x".repeat(1_048_200);
    let endless = "y".repeat(2_500_000);
    world.append("a.log", format!("short\n{long}\nafter\n{endless}\nlast\n"));
    let lines = world.run_once();
    let lens: Vec<usize> = lines.iter().map(|line| line.text.len()).collect();
    let limit = 1024 * 1024;
    assert_eq!(lens, [5, 1_048_200, 5, limit, limit, 2_500_000 - 2 * limit, 4]);
    let partial: Vec<bool> = lines.iter().map(|line| line.partial).collect();
    assert_eq!(partial, [false, false, false, true, true, true, false]);
}

#[test]
fn rotated_while_the_agent_was_down() {
    [100, 1].into_iter().for_each(rotated_while_down);
}

fn rotated_while_down(open_files_max: usize) {
    let mut world = World::new("a.log");
    world.open_files_max = open_files_max;
    world.append("a.log", "1\n2\n");
    assert_eq!(texts(&world.run_once()), ["1", "2"]);
    world.append("a.log", "3\n");
    world.rename("a.log", "a.log.1");
    world.append("a.log", "4\n");
    world.rename("a.log.1", "a.log.2");
    world.rename("a.log", "a.log.1");
    world.append("a.log", "5\n");
    // The one in the middle was never met, and no pattern leads to it.
    let lines = world.run_once();
    assert_eq!(texts(&lines), ["3", "4", "5"], "the old files first");
    assert!(world.run_once().is_empty());
    // Compressed meanwhile: forgotten, and nothing is read again.
    ["a.log.2", "a.log.1"].into_iter().for_each(|name| fs::remove_file(world.path(name)).unwrap());
    assert!(world.run_once().is_empty());
    assert_eq!(world.books().generations, 1);
}

#[test]
fn replaced_or_truncated_while_the_agent_was_down() {
    let mut world = World::new("*.log");
    let file = world.append("a.log", "one line\nanother line\n");
    assert_eq!(world.run_once().len(), 2);
    // The same inode, another content: shorter, then longer than what was read.
    file.set_len(0).unwrap();
    file.write_all_at(b"new\n", 0).unwrap();
    assert_eq!(texts(&world.run_once()), ["new"]);
    file.set_len(0).unwrap();
    file.write_all_at(b"fresh\nand longer than before\n", 0).unwrap();
    assert_eq!(texts(&world.run_once()), ["fresh", "and longer than before"]);
    assert_eq!(world.books().generations, 1);
}

#[test]
fn few_descriptors_for_many_files() {
    let mut world = World::new("*.log");
    world.open_files_max = 3;
    (0..20).for_each(|n| drop(world.append(&format!("{n}.log"), format!("{n} first\n"))));
    let lines = world.live(|world, life| {
        life.until_lines(20);
        (0..20).for_each(|n| drop(world.append(&format!("{n}.log"), format!("{n} second\n"))));
        life.until_lines(40);
        life.until_view("few are open", |view| view.followed == 20 && view.open <= 3);
    });
    let mut found = texts(&lines);
    found.sort();
    found.dedup();
    assert_eq!(found.len(), 40);
    assert_eq!(world.books().generations, 20, "closed and opened again, each is still the same");
}

/// Every file is rotated away and deleted before its turn has come: the descriptors are what saves the lines.
#[test]
fn rotations_while_the_reader_is_behind() {
    let mut world = World::new("*.log");
    let text = |round: usize| numbered(&format!("{round}-"), 0..100_000);
    world.append("a.log", text(0));
    let lines = world.live(|world, life| {
        life.until_lines(1);
        for round in 1..4 {
            world.rename("a.log", &format!("a.log.{round}"));
            world.append("a.log", text(round));
            life.until_view("the new file is held", |view| view.open > round);
            fs::remove_file(world.path(&format!("a.log.{round}"))).unwrap();
        }
        life.until_lines(400_000);
    });
    let all: String = lines.iter().map(|line| line.text.clone() + "\n").collect();
    let expected: String = (0..4).map(text).collect();
    assert!(all == expected, "all lines, and in the order of the rotations");
    assert_eq!(world.books().given_up, 0);
}

/// A budget of one read, many files, and a worker that takes its time: everybody gets a turn, nothing is lost.
#[test]
fn a_small_budget_is_shared() {
    let mut world = World::new("*.log");
    world.budget = crate::budget::READ_BYTES;
    world.sources[0].max_line_bytes = 64 * 1024;
    (0..5).for_each(|n| drop(world.append(&format!("{n}.log"), numbered(&format!("{n}-"), 0..30_000))));
    let lines = world.run_once();
    assert_eq!(lines.len(), 150_000);
    let mut firsts: Vec<usize> =
        (0..5).map(|n| lines.iter().position(|line| line.text == format!("{n}-0")).unwrap()).collect();
    firsts.sort();
    let lasts = (0..5).map(|n| lines.iter().position(|line| line.text == format!("{n}-29999")).unwrap());
    assert!(firsts[4] < lasts.min().unwrap(), "each has its first turn before any has its last");
}

#[test]
fn the_end_is_where_the_first_start_finds_it() {
    let mut world = World::new("*.log");
    if let SourceKind::File(file) = &mut world.sources[0].kind {
        file.start_at = StartAt::End;
    }
    world.append("a.log", "old\n");
    let lines = world.live(|world, life| {
        life.until_view("it is followed", |view| view.files.iter().any(|file| file.position == 4));
        world.append("a.log", "new\n");
        world.append("b.log", "b\n");
        life.until_lines(2);
    });
    let mut found = texts(&lines);
    found.sort();
    assert_eq!(found, ["b", "new"]);
    world.append("c.log", "c\n");
    assert_eq!(texts(&world.run_once()), ["c"], "after that, files are read whole");
}

#[test]
fn a_stop_in_the_middle_says_what_is_unread() {
    let mut world = World::new("*.log");
    let text = numbered("line ", 0..200_000);
    world.append("a.log", &text);
    let first = world.live(|_, life| life.until_lines(1));
    let read: usize = first.iter().map(|line| line.text.len() + 1).sum();
    assert!(read < text.len());
    assert_eq!(world.books().unread, (text.len() - read) as u64);
    let second = world.run_once();
    let all: String = first.iter().chain(&second).map(|line| line.text.clone() + "\n").collect();
    assert_eq!(all, text);
}

/// What the last life knew and this one had no time to look into may be read to its end, or not: nobody knows.
#[test]
fn a_stop_before_a_known_file_was_looked_into() {
    let mut world = World::new("*.log");
    world.append("a.log", "a\n");
    world.live(|world, life| {
        life.until_lines(1);
        world.append("b.log", "b\n");
        life.until_lines(2);
    });
    assert_eq!(world.books().generations, 2);
    world.append("a.log", numbered("a", 0..500_000));
    (world.open_files_max, world.budget) = (1, 1 << 20); // so that the second is not opened before the first is read
    world.live(|_, life| life.until_lines(1));
    let (books, left) = (world.books(), fs::metadata(world.path("a.log")).unwrap().len());
    assert_eq!((books.generations, books.unseen), (2, 1), "{:?}", books.pages);
    let read: u64 = books.pages.iter().map(|page| page.read_to).max().unwrap();
    assert_eq!(books.unread, left - read);
}

/// Nobody looks at a file again at the stop that was read to its end, but for those that were just reported.
#[test]
fn what_is_written_right_before_the_stop_is_known() {
    let mut world = World::new("*.log");
    world.append("a.log", "1\n");
    for round in 0..10 {
        let lines = world.live(|world, life| {
            life.until_view("it is at its end", |view| {
                view.files.len() == 1 && view.files.iter().all(|file| file.position == file.size)
            });
            world.append("a.log", "2\n");
        });
        let is_read = lines.iter().any(|line| line.offset == 2 * round + 2);
        assert_eq!(world.books().unread, if is_read { 0 } else { 2 }, "round {round}");
        if !is_read {
            assert_eq!(world.live(|_, life| life.until_lines(1)).len(), 1);
        }
    }
}
