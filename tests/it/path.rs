//! From files and stdin to a file and stdout: every byte, whatever the files go through.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::{self, Permissions};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::json;

use crate::agent::{Agent, BINARY, DEADLINE, Room, pause};
use crate::expect::{Arrived, push_line};
use crate::files::{Writer, bytes, put};

const OUTPUT: &str = "out.txt";

/// `include` to one file, byte for byte.
fn to_file(include: &[&str]) -> Room {
    Room::new(json!({
        "sources": [{ "type": "file", "include": include, "idle": "200ms" }],
        "sinks": [{ "type": "file", "path": OUTPUT }],
    }))
}

fn all_logs_to_file() -> Room {
    to_file(&["logs/**/*.log"])
}

fn output(room: &Room) -> Arrived {
    Arrived::in_file(&room.path(OUTPUT))
}

/// Waits until as many different lines are in the output as the writers wrote.
#[track_caller]
fn until_arrived(room: &Room, agent: &Agent, writers: &[&Writer]) {
    let written: u64 = writers.iter().map(|writer| writer.written().1).sum();
    agent.until(&format!("{written} lines are in the output"), || output(room).distinct() >= written);
}

#[track_caller]
fn assert_exact(room: &Room, writers: &[&Writer]) {
    let written: BTreeMap<u32, u64> = writers.iter().map(|writer| writer.written()).collect();
    output(room).compare(&written).assert_exact();
}

/// All have arrived, the stop is orderly, and nothing came twice.
#[track_caller]
fn ends_exact(room: &Room, agent: &Agent, writers: &[&Writer]) {
    until_arrived(room, agent, writers);
    assert_eq!(agent.stop(), 0, "{}", agent.stderr());
    assert_exact(room, writers);
}

fn numbered(lines: u64) -> Vec<u8> {
    let mut text = Vec::new();
    (0..lines).for_each(|number| push_line(&mut text, 1, number));
    text
}

#[test]
fn bytes_arrive_as_they_are() {
    let check = |what: &str, content: &[u8]| {
        let room = all_logs_to_file();
        put(&room.path("logs/app.log"), content);
        let (code, stderr) = room.run_once();
        assert_eq!(code, 0, "{what}: {stderr}");
        let arrived = bytes(&room.path(OUTPUT));
        assert!(arrived == content, "{what}: {} bytes became {}\n{stderr}", content.len(), arrived.len());
    };
    let text = numbered(2_000);
    let long = [&b"before\n"[..], &vec![b'x'; 3 << 20], b"\nafter\n"].concat();
    check("an empty file", b"");
    check("one line", b"hello\n");
    check("a few chunks", &text);
    check("no final newline", b"one\ntwo");
    check("only a newline", b"\n");
    check("empty lines", b"\n\none\n\n\n");
    check("CRLF", b"one\r\ntwo\r\n\r\n");
    check("a lone carriage return", b"one\rtwo\n\r\n\r");
    check("invalid UTF-8", b"caf\xe9\n\xff\xfe\xfd\n\xc3\n");
    check("NUL bytes below a head of text", &[&text[..], b"a\0b\n\0\n"].concat());
    check("a line of 3 MiB between two short ones", &long);
}

#[test]
fn a_second_once_adds_nothing() {
    let room = all_logs_to_file();
    let mut writer = Writer::new(1, room.path("logs/app.log"));
    writer.write(1_000);
    for _ in 0..2 {
        let (code, stderr) = room.run_once();
        assert_eq!(code, 0, "{stderr}");
        assert_exact(&room, &[&writer]);
    }
    writer.write(10);
    assert_eq!(room.run_once().0, 0);
    assert_exact(&room, &[&writer]);
}

#[test]
fn half_a_line_is_continued_after_a_restart() {
    let room = all_logs_to_file();
    let mut writer = Writer::new(1, room.path("logs/app.log"));
    writer.write(3);
    writer.begin_line();
    assert_eq!(room.run_once().0, 0);
    writer.finish_line();
    writer.write(3);
    assert_eq!(room.run_once().0, 0);
    assert_eq!(bytes(&room.path(OUTPUT)), bytes(writer.path()));
}

#[test]
fn what_was_rotated_while_the_agent_was_down_is_found() {
    let room = to_file(&["logs/app.log"]);
    let mut writer = Writer::new(1, room.path("logs/app.log"));
    writer.write(100);
    assert_eq!(room.run_once().0, 0);
    writer.write(50);
    writer.rotate("app.log.1");
    writer.write(30);
    assert_eq!(room.run_once().0, 0);
    output(&room).compare(&BTreeMap::from([writer.written()])).assert_once();
}

#[test]
fn many_small_files() {
    let room = all_logs_to_file();
    let write = |id: u32| {
        let mut writer = Writer::new(id, room.path(&format!("logs/{}/{id}.log", id % 7)));
        writer.write(u64::from(id % 5));
        writer.written()
    };
    let written: BTreeMap<u32, u64> = (0..500).map(write).collect();
    let (code, stderr) = room.run_once();
    assert_eq!(code, 0, "{stderr}");
    output(&room).compare(&written).assert_exact();
}

#[test]
fn rotation_under_a_fast_writer() {
    let room = to_file(&["logs/app.log*"]);
    let agent = room.run();
    let mut writer = Writer::new(1, room.path("logs/app.log"));
    for rotation in 0..20 {
        for _ in 0..50 {
            writer.write(40);
        }
        writer.rotate(&format!("app.log.{rotation}"));
    }
    writer.write(1);
    until_arrived(&room, &agent, &[&writer]);
    assert_eq!(agent.stop(), 0, "{}", agent.stderr());
    output(&room).compare(&BTreeMap::from([writer.written()])).assert_once();
}

#[test]
fn a_writer_that_stays_on_the_renamed_file_is_followed() {
    let room = to_file(&["logs/app.log"]);
    let agent = room.run();
    let mut writer = Writer::new(1, room.path("logs/app.log"));
    for rotation in 0..3 {
        writer.write(100);
        until_arrived(&room, &agent, &[&writer]);
        writer.rename(&format!("app.log.{rotation}"));
        writer.write(100);
        writer.reopen();
    }
    writer.write(100);
    ends_exact(&room, &agent, &[&writer]);
}

#[test]
fn truncation() {
    let room = all_logs_to_file();
    let agent = room.run();
    let mut writer = Writer::new(1, room.path("logs/app.log"));
    // Fewer lines than before, then more: the new end stands below the old offset, then far above it.
    for lines in [1_000, 300, 3_000, 1] {
        writer.write(lines);
        until_arrived(&room, &agent, &[&writer]);
        writer.truncate();
    }
    writer.write(10);
    until_arrived(&room, &agent, &[&writer]);
    writer.copytruncate("app.copy");
    writer.write(2_000);
    ends_exact(&room, &agent, &[&writer]);
}

#[test]
fn deleted_and_made_again() {
    let room = all_logs_to_file();
    let agent = room.run();
    let mut writer = Writer::new(1, room.path("logs/app.log"));
    writer.write(100);
    until_arrived(&room, &agent, &[&writer]);
    writer.write(5_000);
    writer.delete();
    writer.write(100); // into the deleted file: our descriptor is what still holds it
    until_arrived(&room, &agent, &[&writer]);
    writer.reopen();
    writer.write(100);
    ends_exact(&room, &agent, &[&writer]);
}

#[test]
fn a_file_that_may_be_read_only_later() {
    let room = all_logs_to_file();
    let (mut open, mut secret) =
        (Writer::new(1, room.path("logs/open.log")), Writer::new(2, room.path("logs/secret.log")));
    open.write(10);
    secret.write(10);
    fs::set_permissions(secret.path(), Permissions::from_mode(0o000)).expect("a mode can be set");

    let Some(mut command) = room.as_somebody(&["run"]) else { return };
    let agent = room.start(command.stdin(Stdio::null()).stdout(Stdio::null()));
    until_arrived(&room, &agent, &[&open]);
    agent.until("it names the file it may not read", || agent.stderr().contains("secret.log"));
    assert_exact(&room, &[&open]);
    fs::set_permissions(secret.path(), Permissions::from_mode(0o644)).expect("a mode can be set");
    ends_exact(&room, &agent, &[&open, &secret]);
}

#[test]
fn a_folder_that_appears_with_files_in_it() {
    let room = all_logs_to_file();
    let mut early = Writer::new(1, room.path("logs/early.log"));
    early.write(10);
    let agent = room.run();
    until_arrived(&room, &agent, &[&early]);
    let mut late = Writer::new(2, room.path("aside/deep/er/late.log"));
    late.write(10);
    #[expect(clippy::disallowed_methods, reason = "whoever moves folders about syncs nothing")]
    fs::rename(room.path("aside"), room.path("logs/new")).expect("a folder can be moved");
    let mut later = Writer::new(3, room.path("logs/x/y/z/later.log"));
    later.write(10);
    ends_exact(&room, &agent, &[&early, &late, &later]);
}

#[test]
fn links_lead_to_each_file_once() {
    let room = all_logs_to_file();
    let mut writer = Writer::new(1, room.path("logs/a/app.log"));
    writer.write(10);
    symlink("..", room.path("logs/a/up")).expect("a link can be made");
    symlink(room.path("logs"), room.path("logs/again")).expect("a link can be made");
    symlink("itself.log", room.path("logs/itself.log")).expect("a link can be made");
    symlink("nothing", room.path("logs/dangling.log")).expect("a link can be made");
    symlink("a/app.log", room.path("logs/link.log")).expect("a link can be made");
    let (code, stderr) = room.run_once();
    assert_eq!(code, 0, "{stderr}");
    assert_exact(&room, &[&writer]);
}

#[test]
fn what_is_not_a_file_does_not_block() {
    let room = all_logs_to_file();
    let mut writer = Writer::new(1, room.path("logs/app.log"));
    writer.write(10);
    let mode = rustix::fs::Mode::from_raw_mode(0o644);
    let fifo = room.path("logs/fifo.log");
    rustix::fs::mknodat(rustix::fs::CWD, &fifo, rustix::fs::FileType::Fifo, mode, 0)
        .expect("a FIFO can be made");
    fs::create_dir(room.path("logs/folder.log")).expect("a folder can be made");
    let _socket =
        std::os::unix::net::UnixListener::bind(room.path("logs/socket.log")).expect("it can listen");
    let agent = room.run();
    ends_exact(&room, &agent, &[&writer]);
}

#[test]
fn a_binary_file_is_passed_over_and_named_once() {
    let room = all_logs_to_file();
    put(&room.path("logs/picture.log"), b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\n");
    let mut writer = Writer::new(1, room.path("logs/app.log"));
    let agent = room.run();
    for _ in 0..3 {
        writer.write(10);
        until_arrived(&room, &agent, &[&writer]);
    }
    ends_exact(&room, &agent, &[&writer]);
    let stderr = agent.stderr();
    assert_eq!(stderr.matches("picture.log").count(), 1, "{stderr}");
}

#[test]
fn names_may_be_any_bytes() {
    let room = all_logs_to_file();
    let names: [&[u8]; 4] = [b"new\nline.log", b"caf\xe9\xff.log", b" .log", b"[a-b]*?{x}.log"];
    let mut writers: Vec<Writer> = Vec::new();
    for (id, name) in names.iter().enumerate() {
        writers.push(Writer::new(id as u32, room.path("logs").join(OsStr::from_bytes(name))));
        writers[id].write(10);
    }
    let (code, stderr) = room.run_once();
    assert_eq!(code, 0, "{stderr}");
    assert_exact(&room, &writers.iter().collect::<Vec<_>>());
}

#[test]
fn several_outputs_by_source() {
    let source =
        |name: &str| json!({ "type": "file", "name": name, "include": [format!("logs/{name}.log")] });
    let room = Room::new(json!({
        "sources": [source("one"), source("two")],
        "sinks": [{ "type": "file", "path": "out/{source}.txt" }],
    }));
    for (id, name) in [(1, "one"), (2, "two")] {
        Writer::new(id, room.path(&format!("logs/{name}.log"))).write(10);
    }
    assert_eq!(room.run_once().0, 0);
    for name in ["one", "two"] {
        let (written, arrived) =
            (room.path(&format!("logs/{name}.log")), room.path(&format!("out/{name}.txt")));
        assert_eq!(bytes(&arrived), bytes(&written), "{name}");
    }
}

#[test]
fn its_own_output_is_no_input() {
    let room = Room::new(json!({
        "sources": [{ "type": "file", "include": ["**/*.log"] }],
        "sinks": [{ "type": "file", "path": "logs/out.log" }],
    }));
    let mut writer = Writer::new(1, room.path("logs/app.log"));
    let agent = room.run();
    let arrived = || Arrived::in_file(&room.path("logs/out.log"));
    for round in 1..=20 {
        writer.write(10);
        agent.until("the lines are in the output", || arrived().distinct() >= round * 10);
    }
    assert_eq!(agent.stop(), 0);
    let (code, stderr) = room.run_once();
    assert_eq!(code, 0, "{stderr}");
    arrived().compare(&BTreeMap::from([writer.written()])).assert_exact();
}

/// stdin to stdout, with nothing else.
fn through() -> Room {
    Room::new(json!({ "sources": [{ "type": "stdin" }], "sinks": [{ "type": "stdout" }] }))
}

#[test]
fn stdin_to_stdout_is_exact() {
    let room = through();
    let text = [&numbered(20_000)[..], b"\r\n\ncaf\xe9\nno end"].concat();
    let input = room.path("input");
    put(&input, &text);
    let (from, to) = (fs::File::open(&input), fs::File::create(room.path("output")));
    let mut command = room.command(&["run", "--once"]);
    command.stdin(from.expect("it is there")).stdout(to.expect("it can be made"));
    let agent = room.start(&mut command);
    assert_eq!(agent.wait_exit(DEADLINE), 0, "{}", agent.stderr());
    assert!(bytes(&room.path("output")) == text, "{}", agent.stderr());
}

#[test]
fn a_stdout_that_is_closed_is_an_orderly_stop() {
    let room = through();
    let agent = room.start(room.command(&["run"]).stdin(Stdio::piped()).stdout(Stdio::piped()));
    let (mut stdin, stdout) = (agent.take_stdin(), agent.take_stdout());
    stdin.write_all(&numbered(10)).expect("it reads");
    let head: Vec<_> = BufReader::new(stdout).lines().take(10).collect(); // and closed, as `head` does
    assert_eq!(head.len(), 10);
    while agent.try_exit().is_none() && stdin.write_all(&numbered(10)).is_ok() {
        pause(std::time::Duration::from_millis(5));
    }
    // 3: what it had read and could not hand over any more cannot be read again.
    let code = agent.wait_exit(DEADLINE);
    assert!([0, 3].contains(&code), "exit code {code}\n{}", agent.stderr());
}

/// `yes | log-capturer run | head`: said once, and what nobody took is sent by the next life, from where it stands.
#[test]
fn what_a_closed_stdout_did_not_take_comes_with_the_next_life() {
    const LINES: u64 = 40_000; // several times what a pipe holds
    for from_file in [false, true] {
        let source = match from_file {
            true => json!({ "type": "file", "include": ["logs/*.log"] }),
            false => json!({ "type": "stdin" }),
        };
        let config =
            json!({ "status": { "listen": null }, "sources": [source], "sinks": [{ "type": "stdout" }] });
        let room = Room::new(config);
        put(&room.path("logs/app.log"), numbered(LINES));
        let input = fs::File::open(room.path("logs/app.log")).expect("it is there");
        let agent = room.start(room.command(&["run"]).stdin(input).stdout(Stdio::piped()));
        let head: Vec<_> = BufReader::new(agent.take_stdout()).lines().take(10).collect();
        assert_eq!(head.len(), 10);
        let (code, said) = (agent.wait_exit(DEADLINE), agent.stderr());
        assert_eq!(code, 3, "{said}");
        let closed = |line: &&str| line.contains("WARN") && line.contains("stdout was closed by its reader");
        assert_eq!(said.lines().filter(closed).count(), 1, "{said}");
        assert!(!said.contains("trying again") && !said.contains("last try"), "{said}");
        let place = if from_file {
            "unanswered, read again at the next start"
        } else {
            "in its spool, sent at the next start"
        };
        assert!(said.contains(&format!(") {place}")), "{place}: {said}");
        assert!(!room.path("data/deadletter").exists(), "{said}");

        let output = fs::File::create(room.path("output")).expect("it can be made");
        let agent = room.start(room.command(&["run", "--once"]).stdin(Stdio::null()).stdout(output));
        assert_eq!(agent.wait_exit(DEADLINE), 0, "{}", agent.stderr());
        let rest = bytes(&room.path("output"));
        assert!(!rest.is_empty());
        if from_file {
            assert!(numbered(LINES).ends_with(&rest), "all that is left of it");
        } else {
            // How much of its input it had read by then is chance; it may end in half a line.
            let all = numbered(LINES);
            assert!(memchr::memmem::find(&all, &rest).is_some(), "some of it, in one piece");
        }
    }
}

#[test]
fn the_status_server_answers() {
    let room = all_logs_to_file();
    put(&room.path("logs/app.log"), b"hello\n");
    let agent = room.run();
    agent.until("the line is in the output", || bytes(&room.path(OUTPUT)) == b"hello\n");
    agent.until("it is ready", || agent.get("/readyz").0 == 200);
    assert_eq!(agent.get("/healthz").0, 200);
    let (code, metrics) = agent.get("/metrics");
    assert_eq!(code, 200);
    let ours = |line: &&str| line.starts_with("log_capturer_");
    assert!(
        metrics.lines().filter(|line| !line.starts_with('#') && !line.is_empty()).all(|line| ours(&line))
    );
    for page in ["status", "tasks", "sources", "sinks", "ledger"] {
        let (code, text) = agent.get(&format!("/api/v1/{page}"));
        assert_eq!(code, 200, "{page}: {text}");
        assert!(serde_json::from_str::<serde_json::Value>(&text).is_ok(), "{page}: {text}");
    }
    assert_eq!(agent.get("/no/such/page").0, 404);
    assert_eq!(agent.stop(), 0);
}

/// From cron: a journal that kept what the ledger knows would be compared with the outputs at each start, all of it.
#[test]
fn short_runs_leave_no_more_behind_than_one() {
    let room = all_logs_to_file();
    let journals = || {
        let folders = std::fs::read_dir(room.path("data/outputs")).expect("the sink has a journal");
        let folder = folders.map(|folder| folder.expect("it can be read").path()).next().expect("one sink");
        std::fs::read_dir(folder).expect("it can be read").count()
    };
    for run in 1..=12 {
        put(&room.path("logs/app.log"), numbered(run));
        let (code, said) = room.run_once();
        assert_eq!(code, 0, "{said}");
        assert_eq!(bytes(&room.path(OUTPUT)), numbered(run));
        assert!(journals() <= 4, "{} after {run} runs", journals());
    }
}

/// What a user tries first has to work.
#[test]
fn the_example_is_a_good_configuration() {
    let example = Path::new(env!("CARGO_MANIFEST_DIR")).join("config.example.json");
    let check = Command::new(BINARY).arg("check").arg("--config").arg(example).output().expect("it starts");
    assert!(check.status.success(), "{}", String::from_utf8_lossy(&check.stderr));
}
