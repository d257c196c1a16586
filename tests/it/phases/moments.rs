//! Stopped at a certain moment: while it starts, in the first sweep of a large tree, in the middle of a giant,
//! during a reload, and while it stops already.

use std::fs;
use std::time::Duration;

use log_capturer::clock::Clock;
use serde_json::json;

use super::{Ends, arrives_at_last, each, each_waiting, is_in_the_file_at_last, loki, out, room, written};
use crate::agent::{Agent, DEADLINE, Signal, pause};
use crate::files::Writer;
use crate::receiver::{Mood, Receiver};

/// Before the agent catches signals, SIGTERM ends it as it ends every program: nothing had begun.
const NOT_YET: i32 = 128 + 15;

#[test]
fn while_it_starts() {
    each("the first milliseconds", |case| {
        let room = room(&case.config(json!([out()])));
        let mut writer = Writer::new(1, room.path("logs/app.log"));
        let clock = Clock::real();
        let (mut longest, mut ends, mut worst) = (Duration::ZERO, [0; 3], String::new());
        for round in 0..40u64 {
            writer.write(50);
            let agent = room.run();
            pause(Duration::from_micros(round * 500));
            let began = clock.now();
            agent.signal(Signal::TERM);
            let code = loop {
                if let Some(code) = agent.try_exit() {
                    break code;
                }
                assert!(clock.now() < began + DEADLINE, "no end\n{}", agent.stderr());
                pause(Duration::from_micros(500));
            };
            let took = clock.now() - began;
            if took > longest {
                (longest, worst) = (took, agent.stderr());
            }
            let which = [0, 3, NOT_YET].iter().position(|known| *known == code);
            ends[which.unwrap_or_else(|| panic!("exit code {code}\n{}", agent.stderr()))] += 1;
        }
        case.row(longest, if ends[1] > 0 { 3 } else { 0 }, Ends::Either, &worst);
        println!(
            "       of 40 starts, {} ended with 0, {} with 3, {} before it caught signals",
            ends[0], ends[1], ends[2]
        );
        is_in_the_file_at_last(&room, &[&writer]);
    });
}

/// From its first step on: the process 1 of a container would never hear of a signal that it does not catch.
#[test]
fn whoever_holds_the_lock_catches_signals() {
    each("as soon as the lock is there", |case| {
        for _ in 0..3 {
            let room = room(&case.config(json!([out()])));
            let agent = room.run();
            agent.until("it has its first file", || room.path("data/lock").exists());
            assert!(catches_signals(&agent), "{}", agent.stderr());
            agent.signal(Signal::HUP);
            case.stop(&agent, Ends::EitherAtOnce);
        }
    });
}

/// Whether SIGTERM has a handler: bit 14 of `SigCgt`, see proc(5). It is the first to have one, so this looks into
/// the microseconds before the others do, and before the handler does anything: what comes there must wait.
fn catches_signals(agent: &Agent) -> bool {
    let status = fs::read_to_string(format!("/proc/{}/status", agent.pid())).unwrap_or_default();
    let caught = status.lines().find_map(|line| line.strip_prefix("SigCgt:"));
    caught
        .and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok())
        .is_some_and(|mask| mask & (1 << 14) != 0)
}

/// 20 000 folders, made once.
#[test]
fn in_the_first_sweep() {
    let tree = tempfile::tempdir().expect("a temporary folder can be made");
    for hundred in 0..200 {
        let folder = tree.path().join(format!("a{hundred}"));
        fs::create_dir(&folder).expect("a folder can be made");
        for one in 0..99 {
            fs::create_dir(folder.join(format!("b{one}"))).expect("a folder can be made");
        }
    }
    let mut last = Writer::new(1, tree.path().join("a199/b98/z/last.log"));
    last.write(100);
    let check = |phase, fraction: f64| {
        each(phase, |case| {
            let mut config = case.config(json!([out()]));
            config["sources"][0]["include"] = json!([format!("{}/**/*.log", tree.path().display())]);
            let room = room(&config);
            let clock = Clock::real();
            let began = clock.now();
            let (code, stderr) = room.run_once(); // how long a sweep takes here
            assert_eq!(code, 0, "{stderr}");
            let sweep = clock.now() - began;
            fs::remove_dir_all(room.path("data")).expect("a folder can be deleted");
            fs::remove_file(room.path("out.txt")).expect("a file can be deleted");
            let agent = room.run();
            agent.until("it catches signals", || catches_signals(&agent));
            pause(sweep.mul_f64(fraction));
            case.stop(&agent, Ends::Either);
            is_in_the_file_at_last(&room, &[&last]);
        });
    };
    check("the first sweep of 20 000 folders, at its beginning", 0.0);
    check("the first sweep of 20 000 folders, in its middle", 0.4);
}

#[test]
fn in_the_middle_of_a_giant() {
    each("--once, in the middle of a giant", |case| {
        let room = room(&case.config(json!([out()])));
        let mut writer = Writer::new(1, room.path("logs/giant.log"));
        writer.write(300_000);
        let agent = room.start(&mut room.command(&["run", "--once"]));
        let output = || fs::metadata(room.path("out.txt")).map_or(0, |metadata| metadata.len());
        agent.until("some of it is there", || output() > 2_000_000);
        case.stop(&agent, Ends::Pending);
        is_in_the_file_at_last(&room, &[&writer]);
    });
}

/// The old life waits for a sink that hangs. What it could not deliver is the next one's.
#[test]
fn while_it_reloads() {
    let check = |phase, ends: Option<Ends>, more: fn(&Agent)| {
        each_waiting(phase, |case| {
            let receiver = Receiver::start();
            receiver.set(Mood::Hang);
            let room = room(&case.config(json!([loki(&receiver.url())])));
            let mut writer = Writer::new(1, room.path("logs/app.log"));
            writer.write(1_000);
            let agent = room.run();
            agent.until("a request hangs", || receiver.requests() > 0);
            let healthy = Receiver::start();
            room.configure(&case.config(json!([loki(&healthy.url())])).to_string());
            let reload = || {
                assert_eq!(agent.post("/api/v1/reload").0, 202);
                agent.until("it reloads", || {
                    agent.stderr().contains("reload: the new configuration is right")
                });
            };
            let Some(ends) = ends else {
                case.measure_until(&agent, reload, "reload: runs with the new configuration");
                agent.until("the next life delivers", || healthy.count() == 1_000);
                assert_eq!(agent.stop(), 0, "{}", agent.stderr());
                return healthy.arrived().compare(&written(&[&writer])).assert_exact();
            };
            case.measure(&agent, ends, || {
                reload();
                more(&agent);
            });
            arrives_at_last(case, &room, &[], &[&writer]);
        });
    };
    check("a reload, until the next life begins", None, |_| ());
    check("during a reload", Some(Ends::Pending), |agent| agent.signal(Signal::TERM));
    check("during a reload, and a second signal", Some(Ends::PendingAtOnce), |agent| {
        agent.signal(Signal::TERM);
        agent.until("it obeys", || agent.stderr().contains("the reload is given up"));
        agent.signal(Signal::TERM);
    });
}

/// The second signal is sent as soon as the agent has understood the first.
fn stopping(agent: &Agent) {
    agent.signal(Signal::TERM);
    agent.until("it stops", || agent.stderr().contains("stopping: SIGTERM"));
}

#[test]
fn while_it_stops() {
    let check = |phase, ends, more: fn(&Agent)| {
        each_waiting(phase, |case| {
            let receiver = Receiver::start();
            receiver.set(Mood::Hang);
            let room = room(&case.config(json!([loki(&receiver.url())])));
            let mut writer = Writer::new(1, room.path("logs/app.log"));
            writer.write(1_000);
            let agent = room.run();
            agent.until("a request hangs", || receiver.requests() > 0);
            case.measure(&agent, ends, || {
                stopping(&agent);
                more(&agent);
            });
            drop(receiver);
            arrives_at_last(case, &room, &[], &[&writer]);
        });
    };
    check("a second signal", Ends::PendingAtOnce, |agent| agent.signal(Signal::INT));
    check("a second and a third signal", Ends::PendingAtOnce, |agent| {
        for signal in [Signal::TERM, Signal::INT, Signal::TERM, Signal::INT, Signal::TERM] {
            agent.signal(signal);
        }
    });
    check("SIGHUP while it stops", Ends::Pending, |agent| {
        for _ in 0..3 {
            agent.signal(Signal::HUP);
        }
        agent.until("it has heard it", || agent.stderr().contains("SIGHUP"));
    });
    check("SIGHUP between the first and the second signal", Ends::PendingAtOnce, |agent| {
        for _ in 0..50 {
            agent.signal(Signal::HUP);
        }
        agent.signal(Signal::INT);
    });
}
