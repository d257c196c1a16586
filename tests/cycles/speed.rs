//! A backlog at full speed takes memory neither for a line nor for its bytes: buffers come back.

use std::fs::{self, OpenOptions};
use std::io::Write;

use log_capturer::agent::Exit;
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
const LINES: usize = 400_000;

/// Of what a chunk may be at most.
const CHUNK_BYTES: usize = 1024 * 1024;

/// Three: the claim, its list, and the records. More chunks than that are not full, for lines come while they are read;
/// the rest is for what happens once a second. As long as nobody allocates for lines or bytes.
const PER_CHUNK: usize = 24;

pub fn a_backlog_takes_no_memory_for_its_lines() {
    let room = tempfile::tempdir().expect("a temporary folder can be made");
    let config = json!({
        "agent": { "data_dir": "data" },
        "status": { "listen": "127.0.0.1:0" },
        "sources": [{ "type": "file", "include": ["app.log"] }],
        "sinks": [{ "type": "file", "path": "out.txt", "batch": { "max_wait": "5ms" } }],
    });
    let (log, out) = (room.path().join("app.log"), room.path().join("out.txt"));
    let mut log = OpenOptions::new().append(true).create(true).open(log).expect("a file can be made");
    let life = Life::start(&config.to_string(), room.path());
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
    let (times, bytes) = write(LINES, WARM_LINES);
    assert_eq!(life.stop(), Exit::Delivered, "{}", errors());
    let chunks = LINES * LINE.len() / CHUNK_BYTES;
    println!(
        "{LINES} lines: {times} allocations, {:.1} a chunk; {bytes} bytes",
        times as f64 / chunks as f64
    );
    assert!(times <= PER_CHUNK * chunks, "{times} allocations for {LINES} lines");
    assert!(bytes <= LINES * LINE.len() / 4, "{bytes} bytes for {} that were passed on", LINES * LINE.len());
}
