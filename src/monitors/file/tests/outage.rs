//! A sink that is dead for an hour, by a clock by hand, while small files rotate every minute and the oldest are
//! deleted: what the disk holds for us, and what arrives in the end. It prints its figures.

use std::fs::{self, Metadata};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::super::tail::BLOCK_BYTES;
use super::world::{DEADLINE, Line, World, numbered, texts};
use crate::budget::READ_BYTES;
use crate::clock::Clock;
use crate::monitors::{HoldDeleted, SourceKind};

const MINUTES: usize = 60;

/// Generations that the rotation keeps besides the file that is written to.
const KEPT: usize = 2;

/// Some 70 KiB a minute.
fn text(minute: usize) -> String {
    let filling = "x".repeat(1000);
    numbered(&format!("{minute} {filling} "), 0..70)
}

struct Hour {
    world: World,
    lines: Vec<Line>,
    /// Bytes of the disk that deleted files held: at most right after a rotation, and one poll later.
    most: u64,
    most_polled: u64,
    given_up_metered: u64,
}

/// `max_bytes`: of deleted files.
fn hour(max_bytes: u64) -> Hour {
    let mut world = World::new("a.log");
    let clock = Clock::by_hand(Clock::real().wall_ns());
    (world.clock, world.budget) = (clock.clone(), READ_BYTES);
    world.sources[0].max_line_bytes = 64 * 1024;
    if let SourceKind::File(file) = &mut world.sources[0].kind {
        file.hold_deleted = HoldDeleted { max_bytes, max_age: None };
    }
    world.append("a.log", text(0).repeat(6));
    let (mut most, mut most_polled, mut given_up_metered) = (0, 0, 0);
    let lines = world.live(|world, life| {
        let chunk = life.chunks.recv_timeout(DEADLINE).expect("the first chunk, which holds all the credit");
        for minute in 1..=MINUTES {
            for number in (0..=KEPT).rev().filter(|number| world.path(&name(*number)).exists()) {
                match number {
                    KEPT => fs::remove_file(world.path(&name(KEPT))).unwrap(),
                    _ => world.rename(&name(number), &name(number + 1)),
                }
            }
            world.append("a.log", text(minute));
            most = most.max(held(world));
            clock.advance(Duration::from_secs(60));
            until("the new file is held", || {
                clock.advance(Duration::from_millis(100));
                open(world.logs.path()).iter().any(|(path, _)| *path == world.path("a.log"))
            });
            until("no more is held than may be", || {
                clock.advance(Duration::from_millis(100));
                held(world) <= max_bytes
            });
            most_polled = most_polled.max(held(world));
            until("that is said", || {
                clock.advance(Duration::from_millis(100));
                life.metrics.value("files_deleted_held_bytes", &[]) == Some(held(world))
            });
        }
        life.take(chunk);
        let last = format!("{MINUTES} ");
        life.until("the newest is here", |life| {
            life.lines.iter().filter(|line| line.text.starts_with(&last)).count() == 70
        });
        given_up_metered = life.metrics.value("files_deleted_given_up_bytes_total", &[]).unwrap();
    });
    Hour { world, lines, most, most_polled, given_up_metered }
}

fn name(number: usize) -> String {
    if number == 0 { "a.log".into() } else { format!("a.log.{number}") }
}

/// What this process has open in the log folder.
fn open(folder: &Path) -> Vec<(PathBuf, Metadata)> {
    let descriptors = fs::read_dir("/proc/self/fd").unwrap().flatten();
    let open = descriptors.filter_map(|descriptor| {
        let path = fs::read_link(descriptor.path())
            .ok()
            .filter(|path| path.starts_with(folder) && path != folder)?;
        Some((path, fs::metadata(descriptor.path()).ok()?))
    });
    open.collect()
}

/// Bytes of the disk that deleted files take since this process has them open.
fn held(world: &World) -> u64 {
    let open = open(world.logs.path());
    open.iter().filter(|(_, file)| file.nlink() == 0).map(|(_, file)| file.blocks() * BLOCK_BYTES).sum()
}

fn until(what: &str, mut fact: impl FnMut() -> bool) {
    let deadline = crossbeam_channel::after(DEADLINE);
    while !fact() {
        assert!(deadline.try_recv().is_err(), "until {what}");
        let _ = crossbeam_channel::after(Duration::from_millis(5)).recv();
    }
}

#[track_caller]
fn check(what: &str, max_bytes: u64, all_arrive: bool) {
    let Hour { world, lines, most, most_polled, given_up_metered } = hour(max_bytes);
    let expected: String = text(0).repeat(6) + &(1..=MINUTES).map(text).collect::<String>();
    let arrived: String = lines.iter().map(|line| line.text.clone() + "\n").collect();
    let lost = expected.len() - arrived.len();
    println!(
        "{what}: of {} bytes {lost} were given up; deleted files held {most} bytes of the disk at most, \
         {most_polled} after a poll, and may hold {max_bytes}",
        expected.len(),
    );
    let mut wanted = expected.lines();
    assert!(
        texts(&lines).iter().all(|line| wanted.any(|wanted| wanted == *line)),
        "in the order of the rotations"
    );
    assert_eq!(world.books().given_up, lost as u64, "{:?}", world.books().pages);
    assert!(most_polled <= max_bytes && most <= max_bytes + 2 * text(MINUTES).len() as u64);
    assert_eq!((all_arrive, given_up_metered), (lost == 0, if all_arrive { 0 } else { lost as u64 }));
}

#[test]
fn an_hour_without_a_sink() {
    check("all are held", 16 << 20, true);
}

#[test]
fn an_hour_without_a_sink_and_more_than_may_be_held() {
    check("the limit is 1 MiB", 1 << 20, false);
}
