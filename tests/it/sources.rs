//! What sources must not get wrong whatever happens around them: who may read, what the agent says of itself.

use std::collections::BTreeMap;
use std::fs::{self, File, Permissions};
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Resource, Rlimit, getrlimit, prlimit};
use serde_json::json;

use crate::agent::{Agent, BINARY, DEADLINE, Room, pause};
use crate::expect::Arrived;
use crate::files::{Writer, bytes, put};

const OUTPUT: &str = "out.txt";

fn to_file(include: &[&str]) -> Room {
    Room::new(json!({
        "sources": [{ "type": "file", "include": include, "idle": "200ms" }],
        "sinks": [{ "type": "file", "path": OUTPUT }],
    }))
}

fn close(path: &Path, mode: u32) {
    fs::set_permissions(path, Permissions::from_mode(mode)).expect("a mode can be set");
}

/// 0 would mean that everything was delivered.
#[test]
fn once_says_that_it_could_not_read_a_file() {
    let room = to_file(&["logs/**/*.log"]);
    put(&room.path("logs/open.log"), "open\n");
    put(&room.path("logs/secret.log"), "secret\n");
    close(&room.path("logs/secret.log"), 0o000);
    for (code, text) in [(3, "open\n"), (3, "open\n"), (0, "open\nsecret\n")] {
        let Some(mut command) = room.as_somebody(&["run", "--once"]) else { return };
        if code == 0 {
            close(&room.path("logs/secret.log"), 0o644);
        }
        let agent = room.start(command.stdin(Stdio::null()).stdout(Stdio::null()));
        assert_eq!(agent.wait_exit(DEADLINE), code, "{}", agent.stderr());
        assert_eq!(String::from_utf8_lossy(&bytes(&room.path(OUTPUT))), text, "{}", agent.stderr());
    }
}

/// Rotated while it runs, and left behind by an earlier life.
#[test]
fn its_own_log_is_no_input() {
    let room = Room::new(json!({
        "agent": { "sync_interval": "60s" }, // so that the last checkpoint is the one at the end
        "sources": [{ "type": "file", "include": ["logs/*.log*"] }],
        "sinks": [{ "type": "file", "path": OUTPUT }],
    }));
    let mut writer = Writer::new(1, room.path("logs/app.log"));
    for life in 0..2 {
        let mut shell = Command::new("sh");
        shell.arg("-c").arg("exec \"$@\" 2>>\"$0\"").arg(room.path("logs/agent.log")).arg(BINARY);
        shell.args(["run", "--config"]).arg(room.path("config.json"));
        let agent = room.start(shell.stdin(Stdio::null()).stdout(Stdio::null()));
        for round in 1..=2 {
            writer.write(10);
            writer.rotate(&format!("app.log.{life}{round}")); // for another sweep
            agent.until("the lines are in the output", || {
                Arrived::in_file(&room.path(OUTPUT)).distinct() >= writer.written().1
            });
            if life == 0 && round == 1 {
                #[expect(clippy::disallowed_methods, reason = "whoever rotates logs syncs nothing")]
                fs::rename(room.path("logs/agent.log"), room.path("logs/agent.log.1"))
                    .expect("a log can be renamed");
            }
        }
        assert_eq!(agent.stop(), 0, "{}", agent.stderr());
    }
    Arrived::in_file(&room.path(OUTPUT)).compare(&[writer.written()].into()).assert_once();
}

/// `None`: as many as may be.
fn limit_descriptors(agent: &Agent, most: Option<usize>) {
    let maximum = getrlimit(Resource::Nofile).maximum;
    let current = most.map_or(maximum, |most| Some(most as u64));
    let pid = Pid::from_raw(agent.pid() as i32);
    prlimit(pid, Resource::Nofile, Rlimit { current, maximum }).expect("a child can be limited");
}

/// Somebody takes all descriptors, for a while: files take turns, and afterwards all of them are held again.
#[test]
fn descriptors_that_run_out_come_back() {
    const FILES: u32 = 20;
    let room = to_file(&["logs/*.log"]);
    let agent = room.run();
    let limit = |room_for: Option<usize>| {
        let held = fs::read_dir(format!("/proc/{}/fd", agent.pid())).expect("it runs").count();
        limit_descriptors(&agent, room_for.map(|room_for| held + room_for));
    };
    let writer = |id| Writer::new(id, room.path(&format!("logs/{id}.log")));
    // What the agent needs for itself it has by now: its output, its journals, its first checkpoint.
    let mut writers = vec![writer(0)];
    writers[0].write(1);
    agent.until("it runs", || Arrived::in_file(&room.path(OUTPUT)).distinct() == 1);
    agent.until("it has saved that", || room.path("data/ledger/checkpoint-1").exists());
    limit(Some(4));
    writers.extend((1..FILES).map(writer));
    let mut write_all = |rounds: u64| {
        writers.iter_mut().for_each(|writer| writer.write(1));
        agent.until("the lines are in the output", || {
            Arrived::in_file(&room.path(OUTPUT)).distinct() > rounds * u64::from(FILES)
        });
    };
    write_all(1);
    assert!(agent.stderr().contains("files can be open"), "{}", agent.stderr());
    limit(None);
    let mut rounds = 1;
    agent.until("all are held", || {
        rounds += 1;
        write_all(rounds);
        put(&room.path("logs/empty.log"), ""); // a reason to look for files
        fs::remove_file(room.path("logs/empty.log")).expect("a file can be deleted");
        let (_, page) = agent.get("/api/v1/sources");
        let page: serde_json::Value = serde_json::from_str(&page).expect("it is JSON");
        page["open"].as_u64() >= Some(u64::from(FILES))
    });
    assert_eq!(agent.stop(), 0, "{}", agent.stderr());
    let written = (0..FILES).map(|id| (id, rounds + u64::from(id == 0))).collect();
    Arrived::in_file(&room.path(OUTPUT)).compare(&written).assert_exact();
}

/// A log was being compressed when the agent started, was deleted before that was over, and there is no descriptor for
/// unpacking it: its lines are nowhere else, so they wait until there is one.
#[test]
fn a_deleted_file_that_cannot_be_unpacked_for_want_of_descriptors_is_not_given_up() {
    let room = to_file(&["logs/*.log"]);
    let mut writer = Writer::new(1, room.path("logs/app.log"));
    writer.write(5_000);
    assert_eq!(room.run_once().0, 0);
    writer.write(5_000);
    let mut packer = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    packer.write_all(&bytes(writer.path())).expect("memory can be written");
    let packed = packer.finish().expect("memory can be written");
    writer.delete();
    let name = room.path("logs/app.log.1.gz");
    let mut file = File::create(&name).expect("a file can be made");
    file.write_all(&packed[..packed.len() / 2]).expect("a file can be written");

    let agent = room.run();
    agent.until("it is held", || agent.get("/metrics").1.contains("\nlog_capturer_files_open 1\n"));
    fs::remove_file(&name).expect("a file can be deleted");
    // The next descriptor would have the number 4 at least: what the agent got first it has to its end.
    assert!(fs::exists(format!("/proc/{}/fd/3", agent.pid())).expect("it runs"));
    limit_descriptors(&agent, Some(4));
    agent.until("it has tried to unpack it", || agent.stderr().contains("files can be open"));
    file.write_all(&packed[packed.len() / 2..]).expect("a file can be written");
    limit_descriptors(&agent, None);
    agent.until("the lines are in the output", || {
        Arrived::in_file(&room.path(OUTPUT)).distinct() == writer.written().1
    });
    agent.stop(); // whether every folder has been looked into again by then is not what is asked here
    Arrived::in_file(&room.path(OUTPUT)).compare(&[writer.written()].into()).assert_exact();
}

/// Rotated several times while nothing could be read: the generations wait, are read in their order even if the
/// agent is stopped and started in between, and belong to the name under which each began.
#[test]
fn generations_that_waited_are_read_in_order_under_their_first_name() {
    let room = Room::new(json!({
        "sources": [{ "type": "file", "include": ["logs/*.log", "logs/*.log.1"] }],
        "sinks": [{ "type": "file", "path": "out/{file}", "retry": { "max": "50ms" } }],
    }));
    let log = room.path("logs/app.log");
    let output = room.path(&format!("out{}", log.display()));
    fs::create_dir_all(&output).expect("a folder stands where the output belongs");
    let agent = room.run();
    agent.until("it looks", || agent.get("/api/v1/status").0 == 200);
    let mut writer = Writer::new(1, &log);
    let followed = |files: u32| {
        let line = format!("log_capturer_files_followed {files}");
        agent.until("the new file was seen", || agent.get("/metrics").1.contains(&line));
    };
    followed(1);
    for rotation in 0..6 {
        writer.write(30_000);
        // As logrotate does: the newest rotated file matches, the older ones do not.
        let rotated = room.path("logs/app.log.1");
        if rotated.exists() {
            let moved =
                Command::new("mv").arg(&rotated).arg(room.path(&format!("logs/old.{rotation}"))).status();
            assert!(moved.is_ok_and(|status| status.success()));
        }
        writer.rename("app.log.1");
        writer.reopen();
        followed(rotation + 2);
    }
    assert_eq!(agent.stop(), 3, "{}", agent.stderr());
    fs::remove_dir(&output).expect("the folder is empty");
    let (code, stderr) = room.run_once();
    assert_eq!(code, 0, "{stderr}");
    let written = BTreeMap::from([writer.written()]);
    Arrived::in_file(&output).compare(&written).assert_exact();
}

/// How often the system has let `thread` of this agent wait for something.
fn waits(agent: &Agent, thread: &str) -> u64 {
    let tasks = fs::read_dir(format!("/proc/{}/task", agent.pid())).expect("a process has threads");
    let statuses = tasks.flatten().filter_map(|task| fs::read_to_string(task.path().join("status")).ok());
    let status = statuses.into_iter().find(|status| status.starts_with(&format!("Name:\t{thread}\n")));
    let status = status.unwrap_or_else(|| panic!("no thread {thread}"));
    let count = status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
    count.and_then(|count| count.trim().parse().ok()).expect("proc(5) has it")
}

/// Whatever may happen to its files is reported: twenty times `poll_interval` go by, and nobody polls. One of them is
/// empty, as a log is right after its rotation.
#[test]
fn the_thread_that_reads_sleeps_while_nothing_happens() {
    let room = Room::new(json!({
        "sources": [{ "type": "file", "include": ["logs/*.log"], "poll_interval": "50ms" }],
        "sinks": [{ "type": "file", "path": OUTPUT }],
    }));
    let mut writer = Writer::new(1, room.path("logs/a.log"));
    writer.write(100);
    put(&room.path("logs/empty.log"), "");
    let agent = room.run();
    let arrived = || Arrived::in_file(&room.path(OUTPUT)).distinct();
    for lines in [100, 200] {
        agent.until("all lines have arrived", || arrived() == lines);
        agent.until("it sleeps", || {
            let before = waits(&agent, "files");
            pause(Duration::from_secs(1));
            waits(&agent, "files") == before
        });
        writer.write(100);
    }
    agent.until("all lines have arrived", || arrived() == 300);
    assert_eq!(agent.stop(), 0);
}
