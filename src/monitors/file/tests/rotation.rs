//! Rotations of all kinds, by a logger that knows nothing of us: each line once, whatever happens when.

use std::collections::HashMap;
use std::fs::File;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::time::Duration;

use super::super::packed::tests::{gzip, zstd};
use super::world::{DEADLINE, Life, Line, World, numbered, texts};
use crate::budget::READ_BYTES;
use crate::monitors::{HoldDeleted, SourceKind};

/// Lets the agent go on for a moment: what it reads is taken, and time passes if there is nothing.
fn pause(life: &mut Life, millis: u64) {
    if let Ok(chunk) = life.chunks.recv_timeout(Duration::from_millis(millis)) {
        life.take(chunk);
    }
}

/// As sets: what was written and did not arrive, and what arrived more than once.
#[track_caller]
fn each_line_once(lines: &[Line], written: &str) {
    let mut arrived: HashMap<&str, usize> = HashMap::new();
    lines.iter().for_each(|line| *arrived.entry(&line.text).or_default() += 1);
    let lost: Vec<&str> = written.lines().filter(|line| !arrived.contains_key(line)).collect();
    let doubled: Vec<&&str> = arrived.iter().filter(|(_, times)| **times > 1).map(|(line, _)| line).collect();
    let some = |lines: &[&str]| lines.iter().take(5).map(|line| line.to_string()).collect::<Vec<_>>();
    assert!(
        lost.is_empty() && doubled.is_empty() && arrived.len() == written.lines().count(),
        "{} lost: {:?}; {} doubled: {:?}",
        lost.len(),
        some(&lost),
        doubled.len(),
        some(&doubled.into_iter().copied().collect::<Vec<_>>()),
    );
}

/// Each copy matches the pattern as well, is short, and is whole before the file is emptied.
#[test]
fn copied_and_truncated_many_times_a_second() {
    let mut world = World::new("a.log*");
    if let SourceKind::File(file) = &mut world.sources[0].kind {
        file.poll_interval = Duration::from_secs(1);
    }
    let writer = world.append("a.log", "");
    let mut written = String::new();
    let seed = fastrand::u64(..);
    println!("seed {seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    let lines = world.live(|world, life| {
        life.until_view("it is followed", |view| view.followed == 1);
        for round in 0..60 {
            for part in 0..random.usize(1..4) {
                let from = random.usize(..1000) * 1000;
                let text = numbered(&format!("{round}-{part}-"), from..from + random.usize(1..60));
                world.append("a.log", &text);
                written += &text;
                pause(life, random.u64(0..30));
            }
            std::fs::copy(world.path("a.log"), world.path(&format!("a.log.{round}"))).unwrap();
            pause(life, random.u64(0..30));
            writer.set_len(0).unwrap();
        }
        life.until_lines(written.lines().count());
        let due = life.lines.len() + 1;
        world.append("a.log", "the end\n");
        life.until_lines(due);
        written += "the end\n";
    });
    each_line_once(&lines, &written);
}

/// Each copy overwrites the last one in its file.
#[test]
fn copied_and_truncated_under_one_name() {
    for include in ["a.log", "a.log*"] {
        for unread in [false, true] {
            let mut world = World::new(include);
            if let SourceKind::File(file) = &mut world.sources[0].kind {
                file.poll_interval = Duration::from_secs(1);
            }
            let writer = world.append("a.log", "");
            let mut written = String::new();
            let lines = world.live(|world, life| {
                life.until_view("it is followed", |view| view.followed == 1);
                for round in 0..6 {
                    for part in 0..if unread { 2 } else { 1 } {
                        let text = numbered(&format!("{round}-{part}-"), 0..20);
                        world.append("a.log", &text);
                        written += &text;
                        if part == 0 {
                            life.until_lines(written.lines().count());
                        }
                    }
                    std::fs::copy(world.path("a.log"), world.path("a.log.1")).unwrap();
                    writer.set_len(0).unwrap();
                }
                life.until_lines(written.lines().count());
                world.append("a.log", "the end\n");
                world.append("a.log.2", "");
                written += "the end\n";
                life.until_view("all is read", |view| view.files.iter().any(|file| file.size == 8));
            });
            each_line_once(&lines, &written);
        }
    }
}

#[test]
fn rotated_while_the_agent_was_down_and_its_source_has_another_name() {
    let mut world = World::new("a.log");
    world.append("a.log", "1\n");
    assert_eq!(world.run_once().len(), 1);
    world.append("a.log", "2\n");
    world.rename("a.log", "a.log.1");
    world.append("a.log", "3\n");
    world.sources[0].name = "else".into();
    assert_eq!(texts(&world.run_once()), ["2", "3"]);
}

type Pack = fn(&[u8]) -> Vec<u8>;

const PACKS: [(&str, Pack); 2] = [("gz", gzip), ("zst", zstd)];

/// What a rotation does when it compresses: the name keeps its time.
fn compress(world: &World, name: &str, end: &str, pack: Pack) {
    let plain = world.path(name);
    let modified = std::fs::metadata(&plain).unwrap().modified().unwrap();
    let packed = world.append(&format!("{name}.{end}"), pack(&std::fs::read(&plain).unwrap()));
    packed.set_modified(modified).unwrap();
    std::fs::remove_file(plain).unwrap();
}

/// What is done to the folder while the agent is down, and what must arrive then.
type Lived<'a> = (&'a dyn Fn(&World), &'a str);

/// Each life: what is done to the folder while the agent is down, then what must arrive, in this order.
#[track_caller]
fn lives(include: &str, lives: &[Lived<'_>]) -> World {
    let mut world = World::new(include);
    for (number, (meanwhile, expected)) in lives.iter().enumerate() {
        meanwhile(&world);
        let lines = world.run_once();
        assert_eq!(texts(&lines).join("\n"), expected.trim_end(), "life {number}");
        let name = world.path("a.log");
        assert!(lines.iter().all(|line| line.filename == name.to_str().unwrap()), "one name");
        assert!(lines.iter().all(|line| line.lineage == lines[0].lineage), "one lineage");
    }
    assert!(world.run_once().is_empty(), "nothing is read again");
    world
}

#[test]
fn compressed_while_the_agent_was_down() {
    for (end, pack) in PACKS {
        for include in ["a.log", "a.log*"] {
            let (first, second) = (numbered("one ", 0..500), numbered("two ", 0..50_000));
            let world = lives(
                include,
                &[
                    (&|world: &World| drop(world.append("a.log", &first)), &first),
                    (
                        &|world| {
                            world.append("a.log", &second);
                            world.rename("a.log", "a.log.1");
                            world.append("a.log", "three\n");
                            compress(world, "a.log.1", end, pack);
                        },
                        &format!("{second}three"),
                    ),
                ],
            );
            assert_eq!((world.books().generations, world.books().given_up), (1, 0));
        }
    }
}

/// The agent has never seen what stands between the file that it knew and the one that is there now.
#[test]
fn rotated_many_times_while_the_agent_was_down() {
    let rotate = |world: &World, round: usize| {
        for number in (1..round).rev() {
            for end in ["", ".gz"] {
                if world.path(&format!("a.log.{number}{end}")).exists() {
                    world.rename(&format!("a.log.{number}{end}"), &format!("a.log.{}{end}", number + 1));
                }
            }
        }
        world.rename("a.log", "a.log.1");
        if round > 1 && world.path("a.log.2").exists() {
            compress(world, "a.log.2", "gz", gzip);
        }
    };
    for include in ["a.log", "a.log*"] {
        lives(
            include,
            &[
                (&|world: &World| drop(world.append("a.log", "0\n")), "0"),
                (
                    &|world| {
                        world.append("a.log", "1\n");
                        for round in 1..5 {
                            rotate(world, round);
                            world.append("a.log", format!("{}\n", round + 1));
                        }
                    },
                    "1\n2\n3\n4\n5",
                ),
                (
                    &|world| {
                        rotate(world, 5);
                        world.append("a.log", "6\n");
                    },
                    "6",
                ),
            ],
        );
    }
}

#[test]
fn copied_and_truncated_while_the_agent_was_down() {
    for include in ["a.log", "a.log*", "a*"] {
        for copy in ["a.log.1", "a-2026-01-01.log"] {
            lives(
                include,
                &[
                    (&|world: &World| drop(world.append("a.log", "1\n2\n")), "1\n2"),
                    (
                        &|world| {
                            world.append("a.log", "3\n");
                            std::fs::copy(world.path("a.log"), world.path(copy)).unwrap();
                            world.append("a.log", "").set_len(0).unwrap();
                            world.append("a.log", "4\n5\n6\n7\n8\n");
                        },
                        "3\n4\n5\n6\n7\n8",
                    ),
                ],
            );
        }
    }
}

/// The inode of the file that was deleted is the new file's, which begins as the old one did.
#[test]
fn rewritten_behind_an_equal_head_while_the_agent_was_down() {
    let head = "x".repeat(2000) + "\n";
    let mut world = World::new("a.log");
    let file = world.append("a.log", head.clone() + "old\n");
    assert_eq!(world.run_once().len(), 2);
    file.set_len(0).unwrap();
    world.append("a.log", head.clone() + "new\nand more\n");
    let lines = world.run_once();
    assert_eq!(texts(&lines), [head.trim_end(), "new", "and more"]);
}

/// A file of a terabyte in which three lines stand, two of them behind holes; nothing of the holes is read.
#[test]
fn holes_are_passed_over() {
    let mut world = World::new("a.log");
    let file = File::create(world.path("a.log")).unwrap();
    file.set_len(1 << 40).unwrap();
    file.write_all_at(b"1\nhalf", 0).unwrap();
    file.write_all_at(b"2\n", (1 << 30) + 5).unwrap();
    file.write_all_at(b"3\n", 1 << 39).unwrap();
    let lines = world.live(|world, life| {
        life.until_lines(4);
        // Where the text ends somebody goes on, and the file is not longer than before.
        file.write_all_at(b"4\n5", (1 << 39) + 2).unwrap();
        life.until_lines(5);
        file.write_all_at(b"5\n", (1 << 39) + 5).unwrap();
        life.until_lines(6);
        world.append("a.log", "6\n");
        life.until_lines(7);
    });
    assert_eq!(texts(&lines), ["1", "half", "2", "3", "4", "55", "6"]);
    assert!(lines[1].partial);
    assert_eq!(
        (world.books().given_up, world.books().unread),
        (0, 0),
        "nobody has written what is not there"
    );
    assert!(world.run_once().is_empty());
}

#[test]
fn a_file_that_was_made_large_before_its_first_line() {
    let mut world = World::new("a.log");
    let file = File::create(world.path("a.log")).unwrap();
    file.set_len(1 << 30).unwrap();
    let lines = world.live(|_, life| {
        life.until_view("it is followed", |view| view.followed == 1);
        file.write_all_at(b"1\n", 0).unwrap();
        life.until_lines(1);
        file.write_all_at(b"2\n", 2).unwrap();
        life.until_lines(2);
    });
    assert_eq!(texts(&lines), ["1", "2"]);
}

/// A sink that is dead for an hour while small files come and go: what the disk holds for us stays bounded, and the
/// newest of them are kept.
#[test]
fn deleted_files_are_held_within_the_limit() {
    let mut world = World::new("*.log");
    world.budget = READ_BYTES;
    world.sources[0].max_line_bytes = 64 * 1024;
    if let SourceKind::File(file) = &mut world.sources[0].kind {
        file.hold_deleted = HoldDeleted { max_bytes: 1 << 20, max_age: None };
    }
    world.append("first.log", numbered("first ", 0..100_000));
    let line = |round: usize| format!("{round} {}\n", "x".repeat(1000)).repeat(200);
    let lines = world.live(|world, life| {
        let chunk = life.chunks.recv_timeout(DEADLINE).expect("the first chunk, which holds all the credit");
        for round in 0..20 {
            world.append(&format!("{round}.log"), line(round));
            life.until_view_only("it is held", |view| {
                view.files
                    .iter()
                    .any(|file| file.path.ends_with(format!("{round}.log")) && file.state != "closed")
                    && view.open >= 2
            });
            std::fs::remove_file(world.path(&format!("{round}.log"))).unwrap();
        }
        life.until_view_only("the oldest are let go", |view| view.followed <= 1 + 5);
        life.take(chunk);
        let last = |line: &Line| line.text.starts_with("19 ");
        life.until("the newest are here", |life| life.lines.iter().filter(|line| last(line)).count() == 200);
    });
    let of = |round: usize| lines.iter().filter(|line| line.text.starts_with(&format!("{round} "))).count();
    assert_eq!((of(0), of(19)), (0, 200));
    let given_up: usize = (0..20).filter(|round| of(*round) == 0).map(|round| line(round).len()).sum();
    assert!(given_up >= 14 * 200_000);
    assert_eq!(world.books().given_up, given_up as u64, "and it is said");
}

/// Nobody can read them in another life.
#[test]
fn deleted_files_are_read_to_their_end_at_the_stop() {
    let mut world = World::new("*.log");
    world.budget = READ_BYTES;
    world.sources[0].max_line_bytes = 64 * 1024;
    let (text, other) = (numbered("deleted ", 0..100_000) + "half", numbered("stays ", 0..100_000));
    world.append("a.log", &text);
    world.append("b.log", &other);
    let lines = world.live(|world, life| {
        let chunk = life.chunks.recv_timeout(DEADLINE).expect("the first chunk, which holds all the credit");
        life.until_view_only("both are held", |view| view.open == 2);
        std::fs::remove_file(world.path("a.log")).unwrap();
        life.until_view_only("it is deleted", |view| view.sizes.gone == 1);
        life.take(chunk);
    });
    let deleted: String = lines
        .iter()
        .filter(|line| line.filename.ends_with("a.log"))
        .map(|line| line.text.clone() + "\n")
        .collect();
    assert!(deleted == text + "\n", "all of it, the half line too");
    let stays = lines.iter().filter(|line| line.filename.ends_with("b.log")).count();
    assert!(stays < 100_000, "what another life can read is left");
    assert_eq!(world.books().given_up, 0);
    assert_eq!(stays + world.run_once().len(), 100_000);
}

/// `gzip` is not done yet when the agent starts: nothing is given up, and the new file waits for its turn.
#[test]
fn a_compression_that_is_under_way_is_waited_for() {
    let mut world = World::new("a.log");
    world.append("a.log", "0\n");
    assert_eq!(world.run_once().len(), 1);
    let rest = numbered("rest ", 0..20_000);
    world.append("a.log", &rest);
    let packed = gzip(&std::fs::read(world.path("a.log")).unwrap());
    std::fs::remove_file(world.path("a.log")).unwrap();
    world.append("a.log", "new\n");
    world.append("a.log.1.gz", &packed[..packed.len() / 2]);
    world.once = false;
    let lines = world.live(|world, life| {
        life.until_view("both are held", |view| view.open == 2);
        world.append("a.log.1.gz", &packed[packed.len() / 2..]);
        life.until_lines(20_001);
    });
    assert!(texts(&lines).join("\n") == rest + "new", "the old file first");
    assert_eq!(world.books().given_up, 0);
}

/// A stop in the middle of what was never seen before: the next life goes on there, and in the same order.
#[test]
fn a_stop_among_compressed_files() {
    let mut world = World::new("a.log");
    world.append("a.log", "first\n");
    assert_eq!(world.run_once().len(), 1);
    let mut expected = String::new();
    for round in 0..3 {
        let text = numbered(&format!("{round} "), 0..100_000);
        world.append("a.log", &text);
        expected += &text;
        let name = format!("a.log-2026010{round}");
        world.rename("a.log", &name);
        compress(&world, &name, "gz", gzip);
    }
    world.append("a.log", "last\n");
    world.once = false;
    let mut all = String::new();
    for lines_at_least in [10_000, 150_000] {
        let lines = world.live(|_, life| life.until_lines(lines_at_least));
        all += &(texts(&lines).join("\n") + "\n");
    }
    all += &(texts(&world.run_once()).join("\n") + "\n");
    assert!(all == expected + "last\n", "all of it, once and in its order");
}

#[test]
fn two_rotations_while_still_in_the_first_file() {
    let mut world = World::new("a.log");
    world.budget = READ_BYTES;
    world.sources[0].max_line_bytes = 64 * 1024;
    let text =
        |round: usize| numbered(&format!("{round} is the round "), 0..100_000) + &format!("half {round}");
    world.append("a.log", text(0));
    let mut writer = None;
    let lines = world.live(|world, life| {
        let chunk = life.chunks.recv_timeout(DEADLINE).expect("the first chunk, which holds all the credit");
        for round in 1..3 {
            world.rename("a.log", &format!("a.log.{round}"));
            writer = Some(world.append("a.log", text(round)));
            life.until_view_only("the new file is held", |view| view.open == round + 1);
        }
        world.append("a.log.1", " is completed\n"); // its writer was not told of the rotation
        world.append("a.log.2", "\n");
        world.append("a.log", "\n");
        life.take(chunk);
        life.until_lines(3 * 100_001);
    });
    let all: String = lines.iter().map(|line| line.text.clone() + "\n").collect();
    let expected: String =
        (0..3).map(|round| text(round) + if round == 0 { " is completed\n" } else { "\n" }).collect();
    let wrong = all.lines().zip(expected.lines()).position(|(got, wanted)| got != wanted);
    let got = wrong.map(|at| (&lines[at], expected.lines().nth(at)));
    assert!(all == expected, "each line whole, and in the order of the rotations, but {got:?}");
}

#[test]
fn renamed_into_another_folder() {
    let mut world = World::new("*.log");
    let mut writer = world.append("a.log", "1\n");
    let lines = world.live(|world, life| {
        life.until_lines(1);
        std::fs::create_dir(world.path("old")).unwrap();
        world.rename("a.log", "old/a.log");
        writer.write_all(b"2\n").unwrap();
        world.append("a.log", "3\n");
        life.until_lines(3);
        writer.write_all(b"4\n").unwrap();
        life.until_lines(4);
    });
    assert_eq!(texts(&lines), ["1", "2", "3", "4"]);
}

/// As an editor saves: a new file under the old name, at once, with the old lines in it. Its lines are new lines.
#[test]
fn replaced_by_an_editor() {
    let mut world = World::new("a.log");
    world.append("a.log", "1\n2\n");
    let lines = world.live(|world, life| {
        life.until_lines(2);
        world.append(".a.log.swp", "1\n2 edited\n");
        world.rename(".a.log.swp", "a.log");
        life.until_lines(4);
        world.append("a.log", "3\n");
        life.until_lines(5);
    });
    assert_eq!(texts(&lines), ["1", "2", "1", "2 edited", "3"]);
    assert_ne!(lines[0].generation, lines[2].generation);
}

/// Shipped since nobody went on with it, in one life; completed in the next.
#[test]
fn half_a_line_is_completed_once() {
    let mut world = World::new("a.log");
    world.append("a.log", "1\nha");
    assert_eq!(texts(&world.run_once()), ["1", "ha"], "with --once it is shipped");
    world.append("a.log", "lf\n2\nno");
    world.sources[0].idle = Duration::from_millis(50);
    world.once = false;
    let lines = world.live(|world, life| {
        life.until_lines(3);
        world.rename("a.log", "a.log.1");
        world.append("a.log.1", "t lost\n");
        life.until_lines(4);
        std::fs::remove_file(world.path("a.log.1")).unwrap();
        world.append("a.log", "end");
        life.until_lines(5);
        std::fs::remove_file(world.path("a.log")).unwrap();
    });
    let with_flags: Vec<(&str, bool)> = lines.iter().map(|line| (line.text.as_str(), line.partial)).collect();
    assert_eq!(with_flags, [("lf", true), ("2", false), ("no", true), ("t lost", true), ("end", true)]);
    assert!(world.run_once().is_empty());
}

/// The disk does not give back what it was given: said once, tried again, and others go on. This file of the system
/// cannot be read at its beginning.
#[test]
fn a_file_that_cannot_be_read_stops_nobody() {
    let mut world = World::new("*.log");
    std::os::unix::fs::symlink("/proc/self/mem", world.path("a.log")).unwrap();
    world.append("b.log", "1\n");
    let lines = world.live(|world, life| {
        life.until_lines(1);
        life.until_view("it is known to be ill", |view| view.unreadable == 1);
        world.append("c.log", "2\n");
        life.until_lines(2);
        std::fs::remove_file(world.path("a.log")).unwrap();
        world.append("a.log", "3\n");
        life.until_lines(3);
    });
    assert_eq!(texts(&lines), ["1", "2", "3"]);
}

/// Its place is in front of what follows it, and it waits for its rest only so long.
#[test]
fn half_a_line_keeps_its_place() {
    let mut world = World::new("a.log");
    world.sources[0].idle = Duration::from_millis(200);
    world.append("a.log", "1\nhalf");
    let lines = world.live(|world, life| {
        life.until_lines(1);
        std::fs::remove_file(world.path("a.log")).unwrap();
        world.append("a.log", "3\n");
        life.until_lines(3);
    });
    assert_eq!(texts(&lines), ["1", "half", "3"]);
}

#[test]
fn copied_and_truncated_while_the_agent_was_down_and_not_written_to_since() {
    let mut world = World::new("a.log");
    world.append("a.log", "1\n");
    assert_eq!(world.run_once().len(), 1);
    let writer = world.append("a.log", "2\nhalf");
    std::fs::copy(world.path("a.log"), world.path("a.log.1")).unwrap();
    writer.set_len(0).unwrap();
    assert_eq!(texts(&world.run_once()), ["2", "half"]);
    world.append("a.log", "3\n");
    assert_eq!(texts(&world.run_once()), ["3"]);
}
