//! Rotations of all kinds, by a logger that knows nothing of us: each line once, whatever happens when.

use std::collections::HashMap;
use std::time::Duration;

use super::world::{Life, Line, World, numbered};
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
