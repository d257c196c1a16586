//! A real engine: dockerd with folders and a socket of its own, so that it touches no other engine of the host.
//!
//! Needs root, `dockerd` and a static busybox (`scripts/prepare.sh` installs them on Debian); else each case is
//! reported as skipped, by name. The short form is part of `make test`; `make test-docker` runs it in full.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use log_capturer::clock::Clock;
use serde_json::{Value, json};

use super::{cpu_ms, readers, threads};
use crate::agent::{Agent, Room, Signal, pause, until};
use crate::files::bytes;

/// For an engine that is busy.
const PATIENCE: Duration = Duration::from_secs(120);

fn is_full() -> bool {
    std::env::var_os("LOG_CAPTURER_DOCKER_FULL").is_some()
}

/// In the full form, and in the short one.
fn times(full: usize, short: usize) -> usize {
    if is_full() { full } else { short }
}

fn program(names: &[&str]) -> Option<PathBuf> {
    names.iter().map(PathBuf::from).find(|path| path.exists())
}

struct Engine {
    dir: tempfile::TempDir,
    dockerd: PathBuf,
    process: Option<Child>,
}

impl Engine {
    /// `None`: not possible here, and said so.
    fn start(case: &str) -> Option<Engine> {
        let dockerd = program(&["/usr/sbin/dockerd", "/usr/bin/dockerd", "/usr/local/bin/dockerd"]);
        let busybox = program(&["/bin/busybox", "/usr/bin/busybox"]);
        let why = match (&dockerd, &busybox) {
            _ if !rustix::process::geteuid().is_root() => "only root can start an engine",
            (None, _) => "there is no dockerd",
            (_, None) => "there is no busybox",
            _ => "",
        };
        let (Some(dockerd), Some(busybox), "") = (dockerd, busybox, why) else {
            println!("skipped: docker::real::{case}: {why}");
            return None;
        };
        let mut engine = Engine { dir: tempfile::tempdir().unwrap(), dockerd, process: None };
        if !engine.launch() {
            println!("skipped: docker::real::{case}: dockerd does not start here: {}", engine.log());
            return None;
        }
        engine.import(&busybox);
        Some(engine)
    }

    fn socket(&self) -> PathBuf {
        self.dir.path().join("s")
    }

    fn log(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(self.dir.path().join("log")).unwrap_or_default()).into_owned()
    }

    /// Starts dockerd (again); `false`: it ended at once.
    fn launch(&mut self) -> bool {
        let log =
            std::fs::File::options().create(true).append(true).open(self.dir.path().join("log")).unwrap();
        let folder = |name: &str| self.dir.path().join(name);
        let mut process = Command::new(&self.dockerd)
            .arg("--data-root")
            .arg(folder("root"))
            .arg("--exec-root")
            .arg(folder("exec"))
            .arg("--pidfile")
            .arg(folder("pid"))
            .arg("-H")
            .arg(format!("unix://{}", self.socket().display()))
            .args([
                "--iptables=false",
                "--ip6tables=false",
                "--bridge=none",
                "--live-restore",
                "--log-level=error",
            ])
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        let mut ended = false;
        until(
            "the engine answers",
            PATIENCE,
            || self.log(),
            || {
                ended = process.try_wait().unwrap().is_some();
                ended || self.ask("GET", "/_ping", b"").is_some_and(|(status, _)| status == 200)
            },
        );
        self.process = Some(process);
        !ended
    }

    /// In order: containers live on (live-restore).
    fn end(&mut self) {
        if let Some(mut process) = self.process.take() {
            let pid = rustix::process::Pid::from_child(&process);
            let _ = rustix::process::kill_process(pid, Signal::TERM);
            let _ = process.wait();
        }
    }

    fn import(&self, busybox: &Path) {
        let image = self.dir.path().join("image");
        std::fs::create_dir_all(image.join("bin")).unwrap();
        std::fs::copy(busybox, image.join("bin/busybox")).unwrap();
        for name in ["sh", "seq", "sleep", "usleep", "head", "tr", "cat", "sed"] {
            std::os::unix::fs::symlink("busybox", image.join("bin").join(name)).unwrap();
        }
        let tar = Command::new("tar").arg("-C").arg(&image).args(["-c", "."]).output().unwrap();
        let (status, said) =
            self.ask("POST", "/images/create?fromSrc=-&repo=test", &tar.stdout).expect("the engine answers");
        assert_eq!(status, 200, "{said}");
    }

    /// `None`: nobody answers.
    fn ask(&self, method: &str, path: &str, body: &[u8]) -> Option<(u16, String)> {
        let mut stream = UnixStream::connect(self.socket()).ok()?;
        let kind = if body.first() == Some(&b'{') { "application/json" } else { "application/x-tar" };
        let head = format!(
            "{method} {path} HTTP/1.0\r\nHost: d\r\nContent-Type: {kind}\r\nContent-Length: {}\r\n\r\n",
            body.len()
        );
        stream.write_all(head.as_bytes()).ok()?;
        stream.write_all(body).ok()?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).ok()?;
        let end = answer.windows(4).position(|four| four == b"\r\n\r\n")?;
        let status = std::str::from_utf8(answer.get(9..12)?).ok()?.parse().ok()?;
        Some((status, String::from_utf8_lossy(&answer[end + 4..]).into_owned()))
    }

    #[track_caller]
    fn well(&self, method: &str, path: &str, body: &Value) -> Value {
        let body = if body.is_null() { String::new() } else { body.to_string() };
        let (status, said) = self.ask(method, path, body.as_bytes()).expect("the engine answers");
        assert!((200..400).contains(&status), "{method} {path}: {status} {said}");
        serde_json::from_str(&said).unwrap_or(Value::Null)
    }

    fn create(&self, name: &str, script: &str, tty: bool, rm: bool) {
        let config = json!({
            "Image": "test", "Cmd": ["/bin/busybox", "sh", "-c", script], "Tty": tty, "StopTimeout": 1,
            "HostConfig": { "AutoRemove": rm, "NetworkMode": "none", "Init": false },
        });
        self.well("POST", &format!("/containers/create?name={name}"), &config);
    }

    fn start_container(&self, name: &str) {
        self.well("POST", &format!("/containers/{name}/start"), &Value::Null);
    }

    fn run(&self, name: &str, script: &str) {
        self.create(name, script, false, false);
        self.start_container(name);
    }

    fn wait(&self, name: &str) {
        // 404: removed already.
        let _ = self.ask("POST", &format!("/containers/{name}/wait"), b"");
    }

    fn remove_all(&self) {
        let Some((200, list)) = self.ask("GET", "/containers/json?all=1", b"") else { return };
        let list: Value = serde_json::from_str(&list).unwrap_or_default();
        for container in list.as_array().into_iter().flatten() {
            let id = container["Id"].as_str().unwrap_or_default();
            let _ = self.ask("DELETE", &format!("/containers/{id}?force=1"), b"");
        }
    }

    /// The lines that the engine has of a container, without their times.
    fn lines(&self, name: &str) -> BTreeSet<String> {
        let path = format!("/containers/{name}/logs?stdout=1&stderr=1");
        let mut stream = UnixStream::connect(self.socket()).unwrap();
        write!(stream, "GET {path} HTTP/1.0\r\nHost: d\r\n\r\n").unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).unwrap();
        let end = answer.windows(4).position(|four| four == b"\r\n\r\n").unwrap() + 4;
        let (mut rest, mut all) = (&answer[end..], BTreeSet::new());
        while let Some((head, after)) = rest.split_at_checked(8) {
            let len = u32::from_be_bytes(head[4..].try_into().unwrap()) as usize;
            all.insert(String::from_utf8_lossy(&after[..len]).trim_end().to_owned());
            rest = &after[len..];
        }
        all
    }

    fn room(&self) -> Room {
        Room::new(json!({
            "agent": { "sync_interval": "200ms" },
            "sources": [{ "type": "docker", "socket": self.socket() }],
            "sinks": [{ "type": "file", "path": "out.json", "format": "json", "batch": { "max_wait": "50ms" } }],
        }))
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        if self.process.is_some() {
            self.remove_all();
        }
        self.end();
    }
}

/// `(container, stream, time, line)`, in order.
fn arrived(room: &Room) -> Vec<[String; 4]> {
    let path = room.path("out.json");
    let text = if path.exists() { bytes(&path) } else { Vec::new() };
    let whole = &text[..text.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1)];
    let line = |line: &[u8]| {
        let line: Value = serde_json::from_slice(line).unwrap();
        [&line["labels"]["container"], &line["metadata"]["stream"], &line["time"], &line["line"]]
            .map(|value| value.as_str().unwrap_or_default().to_owned())
    };
    whole.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()).map(line).collect()
}

fn by_container(lines: &[[String; 4]]) -> BTreeMap<String, BTreeSet<String>> {
    let mut all: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for [container, _, _, line] in lines {
        all.entry(container.clone()).or_default().insert(line.clone());
    }
    all
}

#[track_caller]
fn until_count(agent: &Agent, room: &Room, lines: usize) {
    let count = || arrived(room).len();
    let details = || format!("{} of {lines}\n{}", count(), agent.stderr());
    until(&format!("{lines} lines have arrived"), PATIENCE, details, || count() >= lines);
}

#[test]
fn short_lives_are_captured() {
    let Some(engine) = Engine::start("short_lives_are_captured") else { return };
    let room = engine.room();
    let agent = room.run();
    agent.until("the engine was met", || agent.stderr().contains("Docker, API"));
    let clock = Clock::real();
    let began = clock.now();

    let crashes = times(200, 15);
    engine.create("crash", "echo alive $(cat /proc/uptime); usleep 50000; echo dying; exit 1", false, false);
    for _ in 0..crashes {
        engine.start_container("crash");
        engine.wait("crash");
    }
    let restarts = times(20, 4);
    engine.run("again", "echo began; while true; do sleep 1; done");
    for _ in 0..restarts {
        engine.well("POST", "/containers/again/restart?t=0", &Value::Null);
    }
    let short = times(200, 15);
    for number in 0..short {
        engine.create(&format!("rm-{number}"), &format!("echo only {number}"), false, true);
        engine.start_container(&format!("rm-{number}"));
        engine.wait(&format!("rm-{number}"));
    }
    let expected = 2 * crashes + 1 + restarts + short;
    println!("{expected} lines of short lives in {:?}", clock.now().saturating_duration_since(began));
    let details = || {
        let lines = arrived(&room);
        let missing: Vec<usize> = (0..short)
            .filter(|number| !lines.iter().any(|line| line[3] == format!("only {number}")))
            .collect();
        format!("{} of {expected}; --rm that are missing: {missing:?}\n{}", lines.len(), agent.stderr())
    };
    until("all have arrived", PATIENCE, details, || arrived(&room).len() >= expected);
    assert_eq!(arrived(&room).len(), expected, "none twice");
    assert_eq!(agent.stop(), 0);
}

#[test]
fn lines_of_all_lengths_arrive_byte_for_byte() {
    let Some(engine) = Engine::start("lines_of_all_lengths_arrive_byte_for_byte") else { return };
    let room = engine.room();
    let agent = room.run();
    let lengths = [1, 2, 100, 8191, 16383, 16384, 16385, 32768, 100_000, 1_000_000];
    let script: Vec<String> = lengths
        .iter()
        .flat_map(|len| [("a", ""), ("b", " >&2")].map(|(byte, to)| (len, byte, to)))
        .map(|(len, byte, to)| format!("{{ head -c {len} /dev/zero | tr '\\0' {byte}; echo; }}{to}"))
        .collect();
    let script = format!("{}; printf end", script.join("; "));
    engine.run("frames", &script);
    engine.create("tty", &script, true, false);
    engine.start_container("tty");
    let each = 2 * lengths.len() + 1;
    until_count(&agent, &room, 2 * each);
    assert_eq!(agent.stop(), 0, "{}", agent.stderr());
    let lines = arrived(&room);
    assert_eq!(lines.len(), 2 * each, "none twice");
    let expected = |byte: &str| -> Vec<String> { lengths.iter().map(|len| byte.repeat(*len)).collect() };
    let of = |name: &str, wanted: &dyn Fn(&[String; 4]) -> bool| -> Vec<String> {
        lines.iter().filter(|line| line[0] == name && wanted(line)).map(|line| line[3].clone()).collect()
    };
    let stdout = [expected("a"), vec!["end".into()]].concat();
    assert!(of("frames", &|line| line[1] == "stdout") == stdout, "stdout without a terminal");
    assert!(of("frames", &|line| line[1] == "stderr") == expected("b"), "stderr without a terminal");
    let both: Vec<String> = expected("a").into_iter().zip(expected("b")).flat_map(|(a, b)| [a, b]).collect();
    assert!(of("tty", &|_| true) == [both, vec!["end".into()]].concat(), "a terminal, in order");
}

#[test]
fn under_load_with_lives_of_both_the_sets_are_equal() {
    let Some(mut engine) = Engine::start("under_load_with_lives_of_both_the_sets_are_equal") else { return };
    let (containers, seconds) = (times(50, 4), times(60, 6));
    let (rate, kills, restarts) = (times(2000, 400), times(5, 2), times(2, 1));
    let room = engine.room();
    let mut agent = room.run();
    let script = format!(
        "n=0; while [ $n -lt {} ]; do seq $n $((n + {tenth} - 1)); n=$((n + {tenth})); usleep 100000; done",
        rate * seconds,
        tenth = rate / 10,
    );
    for number in 0..containers {
        engine.run(&format!("load-{number}"), &script);
    }
    let clock = Clock::real();
    let began = clock.now();
    let steps = kills + restarts;
    for step in 0..steps {
        let at = began + Duration::from_secs_f64((step + 1) as f64 * seconds as f64 / (steps + 1) as f64);
        pause(at.saturating_duration_since(clock.now()));
        if step % 3 == 1 && step / 3 < restarts {
            engine.end();
            pause(Duration::from_millis(500)); // as long as a package's upgrade takes, at least
            assert!(engine.launch(), "{}", engine.log());
        } else {
            agent.kill9();
            agent = room.run();
        }
    }
    for number in 0..containers {
        engine.wait(&format!("load-{number}"));
    }
    let expected: BTreeMap<String, BTreeSet<String>> = (0..containers)
        .map(|number| (format!("load-{number}"), engine.lines(&format!("load-{number}"))))
        .collect();
    let details = || {
        let found = by_container(&arrived(&room));
        let missing: usize = expected
            .iter()
            .map(|(name, lines)| found.get(name).map_or(lines.len(), |found| lines.difference(found).count()))
            .sum();
        format!("{missing} are missing\n{}", agent.stderr())
    };
    until("the sets are equal", PATIENCE, details, || by_container(&arrived(&room)) == expected);
    let lines = arrived(&room);
    let total: usize = expected.values().map(BTreeSet::len).sum();
    let kept: BTreeSet<&[String; 4]> = lines.iter().collect();
    println!("{total} lines, {} came again", lines.len() - kept.len());
    assert_eq!(kept.len(), total, "a receiver that drops equal entries has each once");
    assert_eq!(agent.stop(), 0);
}

#[test]
fn threads_and_descriptors_go_with_their_containers() {
    let Some(mut engine) = Engine::start("threads_and_descriptors_go_with_their_containers") else { return };
    let containers = times(50, 8);
    let room = engine.room();
    let agent = room.run();
    agent.until("the engine was met", || agent.stderr().contains("Docker, API"));
    let descriptors = || std::fs::read_dir(format!("/proc/{}/fd", agent.pid())).unwrap().count();
    let mut base = (0, 0);
    agent.until("all threads have started", || {
        let now = (threads(&agent).len(), descriptors());
        std::mem::replace(&mut base, now) == now
    });
    for number in 0..containers {
        engine.run(&format!("c-{number}"), "echo here; while true; do sleep 1; done");
    }
    agent.until("all are followed", || readers(&agent) == containers);
    assert_eq!(threads(&agent).len(), base.0 + containers);
    until_count(&agent, &room, containers);

    let clock = Clock::real();
    engine.end();
    agent.until("it is noticed", || agent.get("/readyz").0 == 503 && readers(&agent) == 0);
    let (spent, began) = (cpu_ms(&agent), clock.now());
    pause(Duration::from_secs(times(30, 3) as u64));
    let spent = cpu_ms(&agent) - spent;
    let gone = clock.now().saturating_duration_since(began);
    println!("without an engine: {spent} ms of CPU in {gone:?}");
    assert!(engine.launch(), "{}", engine.log());
    let back = clock.now();
    agent.until("it is well again", || agent.get("/readyz").0 == 200 && readers(&agent) == containers);
    println!("well again after {:?}", clock.now().saturating_duration_since(back));

    engine.remove_all();
    let details = || format!("{:?}, {} descriptors, base {base:?}", threads(&agent), descriptors());
    until("threads and descriptors are back at the base", PATIENCE, details, || {
        threads(&agent).len() == base.0 && descriptors() <= base.1
    });
    for number in 0..containers {
        engine.run(&format!("d-{number}"), "echo here; while true; do sleep 1; done");
    }
    agent.until("all are followed", || readers(&agent) == containers);
    let told = clock.now();
    assert_eq!(agent.stop(), 0, "{}", agent.stderr());
    println!("{containers} followed: stopped after {:?}", clock.now().saturating_duration_since(told));
}
