//! Stopped while a disk is full: that of an output, and that of the agent's own state.

#![expect(clippy::disallowed_methods, reason = "a ballast need not survive a power cut")]

use std::fs;
use std::io::ErrorKind;
use std::path::Path;

use serde_json::json;

use super::aside::Aside;
use super::{Ends, arrives_at_last, each_waiting, loki, out, room, written};
use crate::agent::DEADLINE;
use crate::expect::Arrived;
use crate::files::Writer;
use crate::receiver::{Mood, Receiver};

/// To the last byte.
fn fill(folder: &Path) {
    use std::io::Write;
    let mut ballast = fs::File::create(folder.join("ballast")).expect("a file can be made");
    for size in [1 << 20, 4096, 1] {
        let zeros = vec![0; size];
        let cause = loop {
            if let Err(cause) = ballast.write_all(&zeros) {
                break cause;
            }
        };
        assert_eq!(cause.kind(), ErrorKind::StorageFull, "{cause}");
    }
}

#[test]
fn the_disk_of_an_output() {
    each_waiting("a full disk under the file sink", |case| {
        let room = room(&case.config(json!([{ "type": "file", "path": "full/out.txt" }])));
        let disk = room.path("full");
        fs::create_dir(&disk).expect("a folder can be made");
        let mount = "mount -t tmpfs -o size=1m none \"$1\"";
        let Some(aside) = Aside::new(case.phase, mount, &disk) else { return };
        let mut writer = Writer::new(1, room.path("logs/app.log"));
        writer.write(20_000);
        let agent = aside.start(&room, &["run"]);
        agent.until("the disk is full", || agent.stderr().contains("No space left"));
        case.stop(&agent, Ends::PendingAtOnce);
        aside.run("mount", &["-o", "remount,size=64m", disk.to_str().expect("a path of ours")]);
        let agent = aside.start(&room, &["run", "--once"]);
        assert_eq!(agent.wait_exit(DEADLINE), 0, "{}", agent.stderr());
        nothing_lost(Arrived::in_file(&aside.path(&disk.join("out.txt"))), &writer);
    });
}

/// What was delivered of a chunk that was not delivered to its end is read again, after an orderly stop, too.
fn nothing_lost(arrived: Arrived, writer: &Writer) {
    let report = arrived.compare(&written(&[writer]));
    println!("       {report}");
    report.assert_nothing_lost();
}

/// The work goes on; where it stands cannot be written down, which is said (exit 1), and costs doubles.
#[test]
fn the_disk_of_the_state() {
    let full = |case: &super::Case, sinks: serde_json::Value, dead: Option<&Receiver>| {
        let room = room(&case.config(sinks));
        let data = room.path("data");
        fs::create_dir(&data).expect("a folder can be made");
        let mount = "mount -t tmpfs -o size=256m none \"$1\"";
        let aside = Aside::new(case.phase, mount, &data)?;
        let mut writer = Writer::new(1, room.path("logs/app.log"));
        writer.write(1_000);
        let agent = aside.start(&room, &["run"]);
        let output = || Arrived::in_file(&room.path("out.txt")).distinct();
        agent.until("the first lines are there", || output() == 1_000);
        fill(&aside.path(&data));
        writer.write(1_000);
        agent.until("the others, too", || output() == 2_000 && dead.is_none_or(|dead| dead.requests() > 0));
        case.stop(&agent, if dead.is_some() { Ends::NotWritten } else { Ends::NotWrittenAtOnce });
        // The state goes with `aside`: it is kept for the next life.
        fs::remove_file(aside.path(&data.join("ballast"))).expect("a file can be deleted");
        let text = |path: &Path| path.to_str().expect("a path of ours").to_owned();
        aside.run("cp", &["-a", &text(&data), &text(room.outside())]);
        drop(aside);
        fs::remove_dir(&data).expect("the place of the mount is empty");
        fs::rename(room.outside().join("data"), &data).expect("a folder can be moved");
        Some((room, writer))
    };
    each_waiting("a full disk under data_dir", |case| {
        let Some((room, writer)) = full(case, json!([out()]), None) else { return };
        assert_eq!(room.run_once().0, 0);
        nothing_lost(Arrived::in_file(&room.path("out.txt")), &writer);
    });
    each_waiting("a full disk under data_dir, and a sink that hangs", |case| {
        let receiver = Receiver::start();
        receiver.set(Mood::Hang);
        let Some((room, writer)) = full(case, json!([loki(&receiver.url()), out()]), Some(&receiver)) else {
            return;
        };
        drop(receiver);
        arrives_at_last(case, &room, &[out()], &[&writer]);
        nothing_lost(Arrived::in_file(&room.path("out.txt")), &writer);
    });
}
