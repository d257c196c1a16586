//! Stopped while much waits: full channels, a blocked standard output, an idle input, many files, and clients of
//! the status server that do not speak or do not listen.

#![expect(clippy::disallowed_methods, reason = "a fast writer beside the test is a thread")]

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use log_capturer::deadletter::Kept;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with, sockopt};
use serde_json::{Value, json};

use super::{Case, Ends, arrives_at_last, doing, each, each_waiting, is_full, loki, out, room, written};
use crate::agent::{Agent, Room};
use crate::expect::{Arrived, push_line};
use crate::files::{Writer, put};
use crate::receiver::{Mood, Receiver};

fn budget(agent: &Agent) -> (u64, u64) {
    let (_, body) = agent.get("/api/v1/status");
    let status: Value = serde_json::from_str(&body).expect("the status is JSON");
    let of = |key: &str| status["budget"][key].as_u64().expect("the budget is a number");
    (of("used"), of("bytes"))
}

#[test]
fn with_every_channel_full() {
    each("every channel full, a fast writer", |case| {
        let receiver = Receiver::start();
        receiver.set(Mood::Hang);
        let mut config = case.config(json!([loki(&receiver.url()), out()]));
        config["agent"]["memory_budget"] = json!("8MiB");
        let room = room(&config);
        let mut writers: Vec<Writer> =
            (0..8).map(|id| Writer::new(id, room.path(&format!("logs/{id}.log")))).collect();
        writers.iter_mut().for_each(|writer| writer.write(10_000));
        let agent = room.run();
        let enough = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for _ in 0..100 {
                    writers.iter_mut().for_each(|writer| writer.write(200));
                    if enough.load(Ordering::Relaxed) {
                        break;
                    }
                }
            });
            // No source may hold more than half of what is free, so it is never quite full.
            let mut before = 0;
            agent.until("the budget is used up", || {
                let (used, bytes) = budget(&agent);
                let stands_still = std::mem::replace(&mut before, used) == used;
                receiver.requests() > 0 && used * 2 > bytes && stands_still
            });
            case.stop(&agent, Ends::Pending);
            enough.store(true, Ordering::Relaxed);
        });
        drop(receiver);
        let writers: Vec<&Writer> = writers.iter().collect();
        arrives_at_last(case, &room, &[out()], &writers);
        Arrived::in_file(&room.path("out.txt")).compare(&written(&writers)).assert_exact();
    });
}

/// Standard output cannot tell what it was sent twice, and its last line may be torn.
#[test]
fn with_a_blocked_standard_output() {
    each_waiting("standard output that nobody reads", |case| {
        let room = room(&case.config(json!([{ "type": "stdout" }])));
        let mut writer = Writer::new(1, room.path("logs/app.log"));
        writer.write(20_000);
        let agent = room.start(room.command(&["run"]).stdin(Stdio::null()).stdout(Stdio::piped()));
        let mut pipe = agent.take_stdout();
        agent.until("the pipe is full", || {
            rustix::io::ioctl_fionread(&pipe).expect("a pipe knows what it holds") > 60_000
        });
        case.stop(&agent, Ends::Pending);
        let mut all = Vec::new();
        pipe.read_to_end(&mut all).expect("a pipe can be read");
        all.truncate(all.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1));
        let second = room.outside().join("second.txt");
        let file = fs::File::create(&second).expect("a file can be made");
        let agent = room.start(room.command(&["run", "--once"]).stdin(Stdio::null()).stdout(file));
        assert_eq!(agent.wait_exit(crate::agent::DEADLINE), 0, "{}", agent.stderr());
        all.extend(fs::read(&second).expect("a file can be read"));
        let lines = all.split_inclusive(|byte| *byte == b'\n');
        Arrived::of(lines).compare(&written(&[&writer])).assert_nothing_lost();
    });
}

fn from_stdin(case: &Case, sink: Value) -> (Room, Agent) {
    let mut config = case.config(json!([sink]));
    config["sources"] = json!([{ "type": "stdin" }]);
    let room = room(&config);
    let agent = room.start(room.command(&["run"]).stdin(Stdio::piped()).stdout(Stdio::null()));
    (room, agent)
}

#[test]
fn with_a_standard_input_that_stays_open() {
    each_waiting("nothing pending, an idle standard input", |case| {
        let (room, agent) = from_stdin(case, out());
        let mut stdin = agent.take_stdin();
        stdin.write_all(b"hello\n").expect("a pipe can be written");
        let output = || fs::read(room.path("out.txt")).unwrap_or_default();
        agent.until("the line is in the output", || output() == b"hello\n");
        case.stop(&agent, Ends::NothingPending);
        drop(stdin);
    });
    // It cannot be read again: what the sink did not take is kept as dead letters, where there is no spool.
    each_waiting("lines of a standard input, a sink that hangs", |case| {
        let receiver = Receiver::start();
        receiver.set(Mood::Hang);
        let mut sink = loki(&receiver.url());
        sink["spool"] = json!({ "enabled": false });
        let (room, agent) = from_stdin(case, sink);
        let (mut stdin, mut lines) = (agent.take_stdin(), Vec::new());
        (0..200).for_each(|number| push_line(&mut lines, 1, number));
        stdin.write_all(&lines).expect("a pipe can be written");
        agent.until("a request hangs, and all was read", || {
            receiver.requests() > 0 && rustix::io::ioctl_fionread(&stdin).is_ok_and(|bytes| bytes == 0)
        });
        case.stop(&agent, Ends::Pending);
        let letters = fs::read_to_string(room.path("data/deadletter/deadletter.jsonl")).unwrap_or_default();
        let kept = letters.lines().map(|line| match Kept::parse(line.as_bytes()) {
            Ok(kept) => kept.letter.bytes().expect("a letter of ours"),
            Err(cause) => panic!("{line}: {cause}"),
        });
        Arrived::of(kept).compare(&std::collections::BTreeMap::from([(1, 200)])).assert_nothing_lost();
    });
}

/// A client with a small window.
fn client(address: &str) -> TcpStream {
    let address: std::net::SocketAddr = address.parse().expect("an address");
    let socket = socket_with(AddressFamily::INET, SocketType::STREAM, SocketFlags::CLOEXEC, None)
        .expect("a socket is free");
    sockopt::set_socket_recv_buffer_size(&socket, 2048).expect("a socket has a buffer");
    rustix::net::connect(&socket, &address).expect("the status server takes it");
    TcpStream::from(socket)
}

fn say(mut stream: TcpStream, words: &str) -> TcpStream {
    let _ = stream.write_all(words.as_bytes()); // it may have been sent away again
    stream
}

#[test]
fn with_ten_thousand_files_and_rude_clients() {
    const FILES: u32 = 10_000;
    /// More than a `sync_interval`.
    const SAVED: Duration = Duration::from_millis(1_500);
    let start = |case: &Case| {
        let room = room(&case.config(json!([out()])));
        let mut line = Vec::new();
        for file in 0..FILES {
            line.clear();
            push_line(&mut line, file, 0);
            put(&room.path(&format!("logs/{}/{file}.log", file % 100)), &line);
        }
        let agent = room.run();
        let output = || fs::read(room.path("out.txt")).unwrap_or_default();
        let lines = |bytes: Vec<u8>| bytes.iter().filter(|byte| **byte == b'\n').count();
        agent.until("everything is delivered", || lines(output()) == FILES as usize);
        agent.until("discovery rests", || doing(&agent, "discovery") == "changes in folders");
        (room, agent)
    };
    // A stop writes down where each of them stands, unless that was done.
    let saved = |room: &Room, agent: &Agent| {
        let slots = ["data/ledger/checkpoint-0", "data/ledger/checkpoint-1"].map(|slot| room.path(slot));
        let rests = |slot: &PathBuf| {
            let written = fs::metadata(slot).and_then(|slot| slot.modified());
            written.is_ok_and(|written| written.elapsed().is_ok_and(|age| age > SAVED))
        };
        agent.until("all of it is saved", || slots.iter().all(rests));
    };
    if is_full() {
        // In a debug build it writes for a fifth of a second, which comes near to the shortest `stop_timeout`.
        each("nothing pending, 10 000 files that were just read", |case| {
            let (_room, agent) = start(case);
            case.stop(&agent, Ends::NothingPending);
        });
    }
    each("nothing pending, 10 000 files", |case| {
        let (room, agent) = start(case);
        saved(&room, &agent);
        case.stop(&agent, Ends::NothingPending);
        assert_eq!(room.run_once().0, 0);
        let written = (0..FILES).map(|file| (file, 1)).collect();
        Arrived::in_file(&room.path("out.txt")).compare(&written).assert_exact();
    });
    each("nothing pending, clients that do not read or speak", |case| {
        let (room, agent) = start(case);
        saved(&room, &agent);
        let address = agent.status_address();
        let request = |page: &str| format!("GET {page} HTTP/1.1\r\nHost: {address}\r\n\r\n");
        let mut clients = Vec::new();
        for page in ["/api/v1/sources", "/api/v1/ledger", "/metrics", "/debug/threads"] {
            clients.push(say(client(&address), &request(page)));
        }
        for _ in 0..200 {
            clients.push(say(client(&address), "GET /healthz HT"));
        }
        assert_eq!(agent.get("/healthz").0, 200);
        case.stop(&agent, Ends::NothingPending);
    });
}
