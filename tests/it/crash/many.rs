//! Many files, rotated at random, at full load, and an agent that lives: all sets are equal in the end, and an audit
//! of what it leaves says that nothing is missing.
//!
//! `scripts/crash-test.sh --files 1000 --minutes 10` is the full form; without `LOG_CAPTURER_MANY_FILES` and
//! `_MINUTES` it is fifty files for a third of a minute, at a load that leaves room for other tests.
//!
//! Writers stay at most a few seconds ahead of what has come out: that is full load, and bounds the disk.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use fastrand::Rng;
use log_capturer::clock::Clock;
use parking_lot::Mutex;
use serde_json::json;

use super::hand::Hand;
use super::{Ends, Figures, asked, compare, mood, settle};
use crate::agent::{Room, pause};
use crate::receiver::{Mood, Receiver};
use crate::stress::load::Heard;

/// Each with its share of the files.
const WRITERS: usize = 4;

const STEPS_PER_ROTATION: u32 = 30;

/// Lines that were written and did not come out yet: beyond it nobody writes.
const AHEAD_MAX: u64 = 100_000;

/// Of all writers, in the full form and in the short one.
const LINES_PER_SECOND: [u64; 2] = [20_000, 4_000];

/// A step writes thirty lines on the average.
const LINES_PER_STEP: u64 = 30;

#[test]
fn many_files_with_random_rotations() {
    let (files, minutes) = (asked("LOG_CAPTURER_MANY_FILES"), asked("LOG_CAPTURER_MANY_MINUTES"));
    let seed = asked("LOG_CAPTURER_CRASH_SEED").unwrap_or_else(|| fastrand::u64(..1_000_000));
    let short = files.is_none() && minutes.is_none();
    let files = files.unwrap_or(50);
    let time = minutes.map_or(Duration::from_secs(20), |minutes| Duration::from_secs(60 * minutes));
    let pace = Duration::from_secs(1).mul_f64((LINES_PER_STEP * WRITERS as u64) as f64)
        / LINES_PER_SECOND[usize::from(short)] as u32;
    println!("many: {files} files for {time:?}, seed {seed}");

    let mut random = Rng::with_seed(seed);
    let heard = Arc::new(Mutex::new(Heard::default()));
    let receiver = Receiver::start_telling({
        let heard = heard.clone();
        move |entry| heard.lock().hear(&entry)
    });
    let room = Room::new(json!({
        "sources": [{ "type": "file", "include": ["logs/*.log"], "idle": "30s" }],
        "sinks": [
            { "type": "loki", "name": "loki", "url": receiver.url(), "timeout": "2s",
              "retry": { "initial": "10ms", "max": "100ms" } },
            { "type": "file", "name": "file", "path": "out/{file}" },
        ],
    }));
    let files = u32::try_from(files).expect("a number of files");
    let mut hands: Vec<Hand> = (0..files).map(|id| Hand::new(&room, id, STEPS_PER_ROTATION)).collect();
    let agent = room.run();
    let (over, written) = (AtomicBool::new(false), AtomicU64::new(0));
    let clock = Clock::real();
    let began = clock.now();
    thread::scope(|scope| {
        let guard = Ends(&over);
        for hands in hands.chunks_mut((files as usize).div_ceil(WRITERS)) {
            let mut random = random.fork();
            let (heard, over, written) = (&heard, &over, &written);
            let is_out = |id, number| heard.lock().arrived.has(id, number);
            scope.spawn(move || {
                while !over.load(Ordering::Relaxed) {
                    let hand = &mut hands[random.usize(..hands.len())];
                    let before = hand.writer.written().1;
                    hand.step(&mut random, is_out);
                    hand.clean_up(is_out);
                    written.fetch_add(hand.writer.written().1 - before, Ordering::Relaxed);
                    pause(pace);
                    let ahead =
                        || written.load(Ordering::Relaxed) > heard.lock().arrived.distinct() + AHEAD_MAX;
                    while ahead() && !over.load(Ordering::Relaxed) {
                        pause(pace);
                    }
                }
                hands.iter_mut().for_each(Hand::finish);
            });
        }
        let mut told = Duration::ZERO;
        while clock.now() - began < time && agent.try_exit().is_none() {
            receiver.set(mood(&mut random));
            pause(Duration::from_millis(50));
            let at = clock.now() - began;
            if at - told > time / 10 {
                told = at;
                let out = heard.lock().arrived.distinct();
                println!("{at:7.1?}: {} lines written, {out} at loki", written.load(Ordering::Relaxed));
            }
        }
        drop(guard);
    });
    receiver.set(Mood::Well);
    settle(&agent, &hands, &heard);
    let code = agent.stop();
    let took = clock.now() - began;
    let mut figures = Figures::default();
    let findings = compare(&hands, &heard.lock(), &mut figures);
    println!("{}\n{figures} in {took:.1?}", Figures::HEAD);
    let wrong: Vec<String> =
        findings.iter().filter(|finding| !finding.is_exact()).map(ToString::to_string).collect();
    assert!(wrong.is_empty(), "{}\n{}", wrong.join("\n"), agent.stderr());
    assert_eq!(code, 0, "{}", agent.stderr());
    let (code, said) = room.audit();
    let last = said.lines().next_back().unwrap_or_default();
    println!("audit: {last}");
    assert_eq!((code, last), (0, "nothing is missing"), "{said}");
}
