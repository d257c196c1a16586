//! A backlog at full speed takes memory neither for a line nor for its bytes nor for a chunk of them: what earlier ones
//! have left is used again.

use std::fs::{self, OpenOptions};
use std::io::Write;

use log_capturer::agent::Exit;
use log_capturer::clock::Clock;
use serde_json::json;

use crate::HEAP;
use crate::house::{Life, errors, until};

const LINE: &[u8; 128] = &{
    let mut line = [b'x'; 128];
    line[127] = b'\n';
    line
};

/// What fills buffers, queues and tables once, and what is counted.
const WARM_LINES: usize = 160_000;
const LINES: usize = 2_000_000;

/// What goes on besides, however fast lines come: a checkpoint, a sample, looks at files and folders. The small budget has
/// small chunks, so many a second that one time for each of them is seen beside it.
const PER_SECOND: u64 = 250;

pub fn a_backlog_takes_no_memory_for_its_lines() {
    let room = tempfile::tempdir().expect("a temporary folder can be made");
    let config = json!({
        "agent": { "data_dir": "data", "memory_budget": "2MiB" },
        "status": { "listen": "127.0.0.1:0" },
        "sources": [{ "type": "file", "include": ["app.log"] }],
        "sinks": [{ "type": "file", "path": "out.txt", "batch": { "max_wait": "5ms" } }],
    });
    let (log, out) = (room.path().join("app.log"), room.path().join("out.txt"));
    let mut log = OpenOptions::new().append(true).create(true).open(log).expect("a file can be made");
    let (life, clock) = (Life::start(&config.to_string(), room.path()), Clock::real());
    let mut write = |lines: usize, before: usize| {
        let text = LINE.repeat(lines);
        let began = HEAP.stats();
        log.write_all(&text).expect("a file can be written");
        let written =
            || fs::metadata(&out).map_or(0, |out| out.len() as usize) >= (before + lines) * LINE.len();
        until("all of it is in the output", errors, written);
        let took = HEAP.stats() - began;
        (took.allocations + took.reallocations, took.bytes_allocated)
    };
    write(WARM_LINES, 0);
    let (before, began) = (chunks(&life), clock.now());
    let (times, bytes) = write(LINES, WARM_LINES);
    let took = clock.now() - began;
    let chunks = chunks(&life) - before;
    assert_eq!(life.stop(), Exit::Delivered, "{}", errors());
    println!(
        "{LINES} lines: {times} allocations for {chunks} chunks, {:.1} each; {bytes} bytes",
        times as f64 / chunks as f64
    );
    let most = PER_SECOND * (took.as_millis() as u64 + 500) / 1000;
    assert!(times as u64 <= most, "{times} allocations for {chunks} chunks in {took:?}, allowed are {most}");
    assert!(bytes <= LINES * LINE.len() / 4, "{bytes} bytes for {} that were passed on", LINES * LINE.len());
}

/// That the agent has read so far.
fn chunks(life: &Life) -> u64 {
    let metrics = life.get("/metrics");
    let of = |line: &str| line.strip_prefix("log_capturer_read_chunks_total ")?.parse().ok();
    metrics.lines().find_map(of).expect("it is counted")
}
