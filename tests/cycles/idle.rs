//! Files that are followed and have nothing to say: what each of them takes for as long as it stands there.

use std::fs;
use std::time::Duration;

use log_capturer::agent::Exit;
use serde_json::{Value, json};

use crate::house::{Heap, Held, Life, append, errors, until};
use crate::receiver::Receiver;

/// Long enough that nobody is served by what is there anyway.
const FILES: u64 = 2_000;

/// The promise, allocator's overhead apart: a path of sixty bytes, what is known of the file, what the ledger knows.
const PER_FILE: usize = 1024;

/// Longer than what sinks keep their buffers for, in case more comes.
const QUIET: Duration = Duration::from_secs(4);

pub fn an_idle_file_takes_a_kilobyte() {
    let receiver = Receiver::start(FILES);
    let sinks = json!([{ "type": "loki", "url": receiver.url() }, { "type": "file", "path": "out.txt" }]);
    let (few, many) = (live_heap(1, &sinks), live_heap(FILES, &sinks));
    let each = (many.bytes - few.bytes) / FILES as usize;
    let blocks = (many.blocks - few.blocks) as f64 / FILES as f64;
    println!("{FILES} idle files: {each} bytes each, in {blocks:.1} blocks; without them {few}");
    assert!(each <= PER_FILE, "{each} bytes for an idle file");
}

/// When every line of so many files was delivered, and nothing moves any more.
fn live_heap(files: u64, sinks: &Value) -> Heap {
    let room = tempfile::tempdir().expect("a temporary folder can be made");
    let logs = room.path().join("logs");
    fs::create_dir(&logs).expect("a folder can be made");
    for number in 0..files {
        append(&logs.join(format!("a-service-of-some-name-{number:06}.log")), number..number + 1);
    }
    let config = json!({
        "agent": { "data_dir": "data", "sync_interval": "100ms" },
        "status": { "listen": "127.0.0.1:0" },
        "sources": [{ "type": "file", "include": ["logs/*.log"], "idle": "100ms" }],
        "sinks": sinks,
    });
    let life = Life::start(&config.to_string(), room.path());
    until("every line was answered for", errors, || {
        let books = life.json("/api/v1/ledger");
        let pending = |sink: &Value| sink["pending"] != 0 || sink["delivered"]["lines"] != files;
        books["sinks"].as_array().is_some_and(|sinks| !sinks.iter().any(pending))
    });
    let _ = crossbeam_channel::after(QUIET).recv();
    let heap = Held::settled().heap;
    assert_eq!(life.stop(), Exit::Delivered, "{}", errors());
    heap
}
