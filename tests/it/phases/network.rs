//! Stopped on the way to a sink, in each step of a request: the name, the connection, TLS, the request, the
//! answer.

use std::net::UdpSocket;

use serde_json::json;

use super::aside::Aside;
use super::holes::{Full, Silent, Trickle};
use super::{Case, Ends, arrives_at_last, each_waiting, loki, room};
use crate::agent::{Agent, DEADLINE, until};
use crate::files::{Writer, put};
use crate::receiver::{Mood, Receiver};

/// The agent runs, `fact` comes true, it is stopped, and delivers everything in its next life.
fn hangs(case: &Case, url: &str, fact: impl Fn(&Agent) -> bool) {
    let room = room(&case.config(json!([loki(url)])));
    let mut writer = Writer::new(1, room.path("logs/app.log"));
    writer.write(1_000);
    let agent = room.run();
    agent.until("it hangs", || fact(&agent));
    case.stop(&agent, Ends::Pending);
    arrives_at_last(case, &room, &[], &[&writer]);
}

#[test]
fn in_a_look_up() {
    each_waiting("a look-up that is never answered", |case| {
        // The port of a name server cannot be chosen, its address can.
        let address = format!("127.53.53.{}", case.stop_timeout.as_millis() / 100);
        let Ok(server) = UdpSocket::bind((&*address, 53)) else {
            println!("stop | {}: SKIPPED (port 53 needs root, and nobody else on it)", case.phase);
            return;
        };
        let room = room(&case.config(json!([loki("http://loki.example.test:3100")])));
        put(&room.path("resolv.conf"), format!("nameserver {address}\noptions timeout:30 attempts:5\n"));
        let mount = "mount --bind \"$1\" /etc/resolv.conf";
        let Some(aside) = Aside::new(case.phase, mount, &room.path("resolv.conf")) else { return };
        let mut writer = Writer::new(1, room.path("logs/app.log"));
        writer.write(1_000);
        let agent = aside.start(&room, &["run"]);
        server.set_nonblocking(true).expect("a socket need not block");
        agent.until("it asks for the address", || server.recv(&mut [0; 512]).is_ok());
        case.stop(&agent, Ends::Pending);
        assert!(agent.stderr().contains("resolver: left behind"), "{}", agent.stderr());
        arrives_at_last(case, &room, &[], &[&writer]);
    });
}

#[test]
fn in_a_connect() {
    each_waiting("a connect into nothing", |case| {
        let full = Full::new();
        hangs(case, &format!("http://127.0.0.1:{}", full.port()), |agent| full.is_knocked_at(agent));
    });
}

#[test]
fn in_a_tls_handshake() {
    each_waiting("a TLS handshake that is not answered", |case| {
        let silent = Silent::new();
        hangs(case, &format!("https://127.0.0.1:{}", silent.port()), |agent| silent.is_connected(agent));
    });
    each_waiting("a TLS handshake that trickles", |case| {
        // A handshake record of 16 KiB, a byte at a time.
        let trickle = Trickle::new(&[22, 3, 3, 0x40, 0], &[2]);
        hangs(case, &format!("https://127.0.0.1:{}", trickle.port()), |_| trickle.pieces() > 4);
    });
}

#[test]
fn in_a_write() {
    each_waiting("a write that nobody reads", |case| {
        let silent = Silent::new();
        let mut sink = loki(&format!("http://127.0.0.1:{}", silent.port()));
        // Not compressed, and larger than what the sockets of both sides hold.
        sink["encoding"] = json!("json");
        sink["batch"] = json!({ "max_bytes": "4MiB", "max_wait": "10s", "max_lines": 100_000 });
        let mut config = case.config(json!([sink]));
        config["agent"]["memory_budget"] = json!("64MiB");
        let room = room(&config);
        let mut writer = Writer::new(1, room.path("logs/app.log"));
        writer.write(60_000);
        let agent = room.run();
        agent.until("the write hangs", || silent.is_stuffed(&agent));
        case.stop(&agent, Ends::Pending);
        arrives_at_last(case, &room, &[], &[&writer]);
    });
    each_waiting("a write that is read at 20 KB/s", |case| {
        let receiver = Receiver::start();
        receiver.set(Mood::Slow { bytes_per_second: 20_000 });
        let mut sink = loki(&receiver.url());
        sink["encoding"] = json!("json");
        let room = room(&case.config(json!([sink])));
        let mut writer = Writer::new(1, room.path("logs/app.log"));
        writer.write(20_000);
        let agent = room.run();
        agent.until("a request is on its way", || receiver.requests() > 0);
        case.stop(&agent, Ends::Pending);
        drop(receiver);
        arrives_at_last(case, &room, &[], &[&writer]);
    });
}

#[test]
fn in_a_wait_for_an_answer() {
    each_waiting("an answer that does not come", |case| {
        let receiver = Receiver::start();
        receiver.set(Mood::Hang);
        hangs(case, &receiver.url(), |_| receiver.requests() > 0);
    });
}

#[test]
fn in_an_answer_without_end() {
    each_waiting("a head of an answer that trickles", |case| {
        let trickle = Trickle::new(b"HTTP/1.1 200 OK\r\nX-Long: ", b"a");
        hangs(case, &format!("http://127.0.0.1:{}", trickle.port()), |_| trickle.pieces() > 4);
    });
    each_waiting("a body of an answer that trickles", |case| {
        let trickle = Trickle::new(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"1\r\nx\r\n");
        hangs(case, &format!("http://127.0.0.1:{}", trickle.port()), |_| trickle.pieces() > 4);
    });
}

#[test]
fn in_back_off() {
    let rests = |case: &Case, agent: &Agent, receiver: &Receiver| {
        agent.until("the sink rests", || super::doing(agent, "lane/loki") == "the sink to recover");
        assert!(receiver.requests() > 0, "{}", case.phase);
    };
    let start = |case: &Case| {
        let receiver = Receiver::start();
        receiver.set(Mood::retry_after(503, 3_600));
        let room = room(&case.config(json!([loki(&receiver.url())])));
        let mut writer = Writer::new(1, room.path("logs/app.log"));
        writer.write(1_000);
        let agent = room.run();
        rests(case, &agent, &receiver);
        (receiver, room, writer, agent)
    };
    // Both get one last try, whatever Retry-After said.
    each_waiting("back-off for an hour, the sink is still ill", |case| {
        let (receiver, room, writer, agent) = start(case);
        case.stop(&agent, Ends::PendingAtOnce);
        drop(receiver);
        arrives_at_last(case, &room, &[], &[&writer]);
    });
    each_waiting("back-off for an hour, the sink is well again", |case| {
        let (receiver, _room, writer, agent) = start(case);
        receiver.set(Mood::Well);
        case.stop(&agent, Ends::Delivered);
        receiver.arrived().compare(&super::written(&[&writer])).assert_exact();
    });
    each_waiting("back-off for an hour, the last try hangs", |case| {
        let (receiver, room, writer, agent) = start(case);
        receiver.set(Mood::Hang);
        case.stop(&agent, Ends::Pending);
        drop(receiver);
        arrives_at_last(case, &room, &[], &[&writer]);
    });
}

#[test]
fn with_nothing_pending() {
    each_waiting("nothing pending, a connection kept alive", |case| {
        let receiver = Receiver::start();
        let room = room(&case.config(json!([loki(&receiver.url())])));
        let mut writer = Writer::new(1, room.path("logs/app.log"));
        writer.write(1_000);
        let agent = room.run();
        until("Loki has everything", DEADLINE, || agent.stderr(), || receiver.count() == 1_000);
        // The answer of the last push is on its way back.
        agent.until("the answer is there", || super::doing(&agent, "sender/loki/0") == "batches");
        case.stop(&agent, Ends::NothingPending);
        receiver.arrived().compare(&super::written(&[&writer])).assert_exact();
    });
}
