//! A container's log as kubelet and its runtime write it: parts of two streams in between each other, rotated by
//! renaming, compressed one rotation later; and an agent that is killed over and over meanwhile.

#![expect(clippy::disallowed_methods, reason = "a runtime syncs nothing, and kubelet renames")]

use std::collections::VecDeque;
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::PathBuf;

use fastrand::Rng;
use serde_json::{Value, json};

use crate::agent::Room;
use crate::files::bytes;
use crate::receiver::Receiver;

const OUTPUT: &str = "out.json";

/// As one that is killed has it in the middle of its work.
const PARTS_PER_LIFE: u32 = 150;

/// A part of the real ones has 16 KiB.
const PART_BYTES_MAX: usize = 60;

const STREAMS: [&str; 2] = ["stdout", "stderr"];

/// Kubelet, the runtime and the container.
struct Pod {
    folder: PathBuf,
    file: File,
    rng: Rng,
    nanoseconds: u64,
    rotated: Vec<PathBuf>,
    /// Of each stream: what is left of its line, in parts.
    open: [VecDeque<String>; 2],
    /// Of each stream: its lines.
    written: [Vec<String>; 2],
}

impl Pod {
    fn new(folder: PathBuf, seed: u64) -> Pod {
        fs::create_dir_all(&folder).expect("a folder can be made");
        let file = open(&folder);
        let rng = Rng::with_seed(seed);
        Pod {
            folder,
            file,
            rng,
            nanoseconds: 0,
            rotated: Vec::new(),
            open: Default::default(),
            written: Default::default(),
        }
    }

    fn write(&mut self) {
        let side = self.rng.usize(..2);
        if self.open[side].is_empty() {
            let number = self.written[side].len();
            let parts = (0..self.rng.usize(1..6)).map(|part| match part {
                0 => format!("{} {number} ", STREAMS[side]),
                _ => "x".repeat(self.rng.usize(..PART_BYTES_MAX)),
            });
            self.open[side] = parts.collect();
            let line: Vec<String> = self.open[side].iter().cloned().collect();
            self.written[side].push(line.concat());
        }
        self.write_part(side);
    }

    fn write_part(&mut self, side: usize) {
        let Some(text) = self.open[side].pop_front() else { return };
        let tag = if self.open[side].is_empty() { "F" } else { "P" };
        self.nanoseconds += 1 + self.rng.u64(..1000);
        let line = format!("2026-01-31T12:00:00.{:09}Z {} {tag} {text}\n", self.nanoseconds, STREAMS[side]);
        // A reader may come at any moment.
        let (some, rest) = line.split_at(self.rng.usize(..line.len()));
        for bytes in [some, rest] {
            self.file.write_all(bytes.as_bytes()).expect("a log can be written");
        }
    }

    fn finish_lines(&mut self) {
        while self.open.iter().any(|open| !open.is_empty()) {
            (0..2).for_each(|side| self.write_part(side));
        }
    }

    fn rotate(&mut self) {
        self.finish_lines();
        if let Some(before) = self.rotated.last() {
            let packed = File::create(before.with_extension("gz.tmp")).expect("a file can be made");
            let mut packer = flate2::write::GzEncoder::new(packed, flate2::Compression::fast());
            packer.write_all(&bytes(before)).expect("a file can be written");
            packer.finish().expect("a file can be written");
            let name = format!("{}.gz", before.display());
            fs::rename(before.with_extension("gz.tmp"), name).expect("a file can be renamed");
            fs::remove_file(before).expect("a file can be deleted");
        }
        let name = self.folder.join(format!("0.log.20260131-1200{:02}", self.rotated.len()));
        fs::rename(self.folder.join("0.log"), &name).expect("a log can be renamed");
        self.rotated.push(name);
        self.file = open(&self.folder);
    }
}

fn open(folder: &std::path::Path) -> File {
    OpenOptions::new().append(true).create(true).open(folder.join("0.log")).expect("a log can be made")
}

/// Each line of each stream once, whole, and in its place.
fn compare(arrived: &[Vec<String>; 2], written: &[Vec<String>; 2], seed: u64, said: &str) {
    for (arrived, written) in arrived.iter().zip(written) {
        let wrong = |line: &&String| arrived.iter().filter(|other| other == line).count() != 1;
        let wrong: Vec<&String> = written.iter().filter(wrong).collect();
        assert!(wrong.is_empty(), "not there once, seed {seed}: {wrong:#?}\n{said}");
        let moved = arrived.iter().zip(written).find(|(arrived, written)| arrived != written);
        assert!(
            moved.is_none() && arrived.len() == written.len(),
            "out of order, seed {seed}: {moved:?}\n{said}"
        );
    }
}

/// Of each stream, in order of arrival.
fn by_stream(lines: impl Iterator<Item = (String, String)>) -> [Vec<String>; 2] {
    let mut all: [Vec<String>; 2] = Default::default();
    for (stream, line) in lines {
        let side = STREAMS.iter().position(|name| *name == stream).expect("every line has a stream");
        all[side].push(line);
    }
    all
}

#[test]
fn parts_are_joined_through_rotations_and_deaths() {
    let seed = fastrand::u64(..);
    println!("seed {seed}");
    let receiver = Receiver::start();
    let room = Room::new(json!({
        "sources": [{ "type": "file", "include": ["pods/*/*/*.log"], "idle": "60s" }],
        "pipeline": [{ "type": "cri" }],
        // Batches that end in the middle of what was arranged.
        "sinks": [
            { "type": "loki", "url": receiver.url(), "batch": { "max_lines": 3, "max_wait": "1ms" } },
            { "type": "file", "path": OUTPUT, "format": "json", "batch": { "max_lines": 2, "max_wait": "1ms" } },
        ],
    }));
    let mut pod = Pod::new(room.path("pods/shop_web-1_0123-4567/nginx"), seed);
    let written = |pod: &Pod| pod.written.iter().map(Vec::len).sum::<usize>();
    let in_output = || -> Vec<Value> {
        let lines = bytes(&room.path(OUTPUT));
        let lines = lines.split_inclusive(|byte| *byte == b'\n').filter(|line| line.ends_with(b"\n"));
        lines.map(|line| serde_json::from_slice(line).expect("it is JSON")).collect()
    };
    for life in 0..6 {
        let agent = room.run();
        let (before, dies_at) = (receiver.requests(), pod.rng.u64(1..10));
        for part in 0..PARTS_PER_LIFE {
            pod.write();
            if life % 2 == 0 && part == PARTS_PER_LIFE / 2 {
                // What was rotated before the first life had seen any of it is no log of ours.
                agent.until("the log is known", || receiver.requests() > 0);
                pod.rotate();
            }
        }
        agent.until("some was sent", || receiver.requests() >= before + dies_at);
        agent.kill9();
        if life % 2 == 1 {
            pod.rotate();
        }
    }
    pod.finish_lines();
    let agent = room.run();
    agent.until("everything is there", || {
        receiver.stored().len() >= written(&pod) && in_output().len() >= written(&pod)
    });
    assert_eq!(agent.stop(), 0, "{}", agent.stderr());

    let stored = receiver.stored();
    let of_loki = stored.iter().map(|entry| {
        let stream = entry.metadata.iter().find(|(name, _)| name == "stream").expect("it has a stream");
        (stream.1.clone(), entry.line.clone())
    });
    compare(&by_stream(of_loki), &pod.written, seed, &agent.stderr());
    let of_file = in_output().into_iter().map(|line| {
        let text = |key: &str| line[key].as_str().expect("it is text").to_owned();
        (line["metadata"]["stream"].as_str().expect("it has a stream").to_owned(), text("line"))
    });
    compare(&by_stream(of_file), &pod.written, seed, &agent.stderr());
    let labels = [("namespace", "shop"), ("pod", "web-1"), ("container", "nginx")];
    for (name, value) in labels {
        assert!(
            stored.iter().all(|entry| entry.labels.get(name).is_some_and(|known| known == value)),
            "{name}"
        );
    }
}

/// A container that draws a progress bar holds up its other stream for `idle`, and no longer.
#[test]
fn an_open_line_is_not_waited_for_for_ever() {
    let receiver = Receiver::start();
    let room = Room::new(json!({
        "sources": [{ "type": "file", "include": ["pods/*/*/*.log"], "idle": "300ms" }],
        "pipeline": [{ "type": "cri" }],
        "sinks": [{ "type": "loki", "url": receiver.url(), "batch": { "max_wait": "1ms" } }],
    }));
    let folder = room.path("pods/shop_web-1_0123-4567/nginx");
    fs::create_dir_all(&folder).expect("a folder can be made");
    let mut file = open(&folder);
    let mut write = |stream, tag, text: &str| {
        writeln!(file, "2026-01-31T12:00:00Z {stream} {tag} {text}").expect("a log can be written");
    };
    let agent = room.run();
    write("stdout", "P", "10 % ");
    // The log is never quiet.
    agent.until("the other stream is there", || {
        write("stderr", "F", "busy");
        receiver.stored().iter().any(|entry| entry.line == "busy")
    });
    write("stdout", "F", "100 %");
    agent.until("the rest is there", || receiver.stored().iter().any(|entry| entry.line == "100 %"));
    let stored = receiver.stored();
    let half =
        stored.iter().find(|entry| entry.line == "10 % ").expect("it was shipped before what came later");
    assert!(half.metadata.contains(&("partial".into(), "true".into())), "{half:?}");
    assert_eq!(agent.stop(), 0, "{}", agent.stderr());
}
