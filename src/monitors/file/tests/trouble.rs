//! What a file can go through at the worst moment.

use std::fs::File;
use std::os::unix::fs::FileExt;

use super::world::{DEADLINE, World, numbered, texts};
use crate::budget::READ_BYTES;

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
