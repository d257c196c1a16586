//! Five hundred clients of the status server who do not do as they should, and one that asks for its health.
//!
//! What is promised is an answer within a second; what is asserted is ten times as much, so that only a server that
//! is locked out fails on a busy machine. The figures are printed.

use std::fs;
use std::io::Write;
use std::net::TcpStream;
use std::time::Duration;

use log_capturer::clock::Clock;
use log_capturer::status::MAX_CLIENTS;
use rustix::process::{Resource, getrlimit, setrlimit};
use serde_json::json;

use crate::agent::{Agent, Room};

const CLIENTS: usize = 500;

/// The promise.
const ANSWER: Duration = Duration::from_secs(1);

/// Asserted is this many times the promise.
const PATIENCE: u32 = 10;

/// They ask for its health, one after the other, while the crowd is there.
const ASKED: usize = 20;

fn threads(agent: &Agent) -> usize {
    fs::read_dir(format!("/proc/{}/task", agent.pid())).expect("the agent lives").count()
}

/// Descriptors that are sockets: the agent may open and close files of its own meanwhile.
fn sockets(agent: &Agent) -> usize {
    let entries = fs::read_dir(format!("/proc/{}/fd", agent.pid())).expect("the agent lives").flatten();
    let is_socket = |entry: &fs::DirEntry| {
        fs::read_link(entry.path()).is_ok_and(|target| target.to_string_lossy().starts_with("socket:"))
    };
    entries.filter(is_socket).count()
}

/// `speak`: what the nth client says and no more.
fn crowd(agent: &Agent, what: &str, speak: impl Fn(usize) -> &'static str) {
    let address = agent.status_address();
    let held = || (threads(agent), sockets(agent));
    // Once it has stayed the same for a while: the last client takes a moment to be gone.
    let (mut base, mut same) = (held(), 0);
    agent.until("nothing moves", || {
        let now = held();
        same = if now == base { same + 1 } else { 0 };
        base = now;
        same >= 20
    });
    let clock = Clock::real();
    let mut slowest = Duration::ZERO;
    let mut ask = || {
        let began = clock.now();
        assert_eq!(agent.get("/healthz"), (200, "ok\n".into()), "beside {CLIENTS} {what} clients");
        slowest = slowest.max(clock.now() - began);
    };
    let mut clients = Vec::with_capacity(CLIENTS);
    for number in 0..CLIENTS {
        let mut client = TcpStream::connect(&address).expect("there is room in the kernel");
        let _ = client.write_all(speak(number).as_bytes()); // it may have been sent away already
        clients.push(client);
        if number % 100 == 99 {
            ask(); // while more are coming, too
        }
    }
    (0..ASKED).for_each(|_| ask());
    let with_them = held();
    drop(clients);
    let left = clock.now();
    agent.until("they are gone", || held() == base);
    println!(
        "{CLIENTS} {what} clients: {} threads as before, {} sockets more; the slowest of {} answers took {:.1} ms; back at the \
         base {:.1} ms after they had left",
        with_them.0,
        with_them.1 - base.1,
        ASKED + CLIENTS / 100,
        slowest.as_secs_f64() * 1e3,
        (clock.now() - left).as_secs_f64() * 1e3,
    );
    assert_eq!(with_them.0, base.0, "no thread more");
    assert!(with_them.1 <= base.1 + MAX_CLIENTS, "{with_them:?}, {base:?} without them");
    assert!(slowest < ANSWER * PATIENCE, "{slowest:?}");
}

#[test]
fn five_hundred_who_say_nothing_or_half_a_request_lock_nobody_out() {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    setrlimit(Resource::Nofile, limit).expect("up to the hard limit one may");
    let room = Room::new(json!({
        "sources": [{ "type": "file", "include": ["logs/*.log"] }],
        "sinks": [{ "type": "file", "path": "out.txt" }],
    }));
    let agent = room.run();
    agent.until("its first look is over", || agent.get("/readyz").0 == 200);
    let sampled = || agent.get("/metrics").1.contains("log_capturer_watched{what=\"threads\"}");
    agent.until("all its threads are there", sampled);
    crowd(&agent, "idle", |_| "");
    crowd(&agent, "half-speaking", |number| match number % 3 {
        0 => "G",
        1 => "GET /healthz HTTP/1.1\r\nHost: a",
        _ => "GET /metrics HTTP/1.1\r\nHost: a\r\n",
    });
    crowd(&agent, "mixed", |number| if number % 2 == 0 { "" } else { "GET / HTTP" });
    assert_eq!(agent.stop(), 0, "{}", agent.stderr());
    assert!(!agent.stderr().contains(" WARN "), "{}", agent.stderr());
}
