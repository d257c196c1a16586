//! Rotations of all kinds, by a logger that knows nothing of us: each line once, whatever happens when.

use std::collections::HashMap;
use std::time::Duration;

use super::super::packed::tests::{gzip, zstd};
use super::world::{Life, Line, World, numbered, texts};
use crate::monitors::SourceKind;

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

const PACKS: [(&str, fn(&[u8]) -> Vec<u8>); 2] = [("gz", gzip), ("zst", zstd)];

/// What a rotation does when it compresses: the name keeps its time.
fn compress(world: &World, name: &str, end: &str, pack: fn(&[u8]) -> Vec<u8>) {
    let plain = world.path(name);
    let modified = std::fs::metadata(&plain).unwrap().modified().unwrap();
    let packed = world.append(&format!("{name}.{end}"), pack(&std::fs::read(&plain).unwrap()));
    packed.set_modified(modified).unwrap();
    std::fs::remove_file(plain).unwrap();
}

/// Each life: what is done to the folder while the agent is down, then what must arrive, in this order.
#[track_caller]
fn lives(include: &str, lives: &[(&dyn Fn(&World), &str)]) -> World {
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
