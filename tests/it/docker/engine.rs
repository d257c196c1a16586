//! A real engine: dockerd, or Podman's service, with folders and a socket of its own, so that it touches no other engine
//! of the host.
//!
//! Needs root, `dockerd` or `podman`, and a static busybox (`scripts/prepare.sh` installs them on Debian); else each case
//! is reported as skipped, by name. The short form is part of `make test`; `make test-docker` runs it in full.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde_json::{Value, json};

use crate::agent::{Room, Signal, until};

/// For an engine that is busy.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// For a container that works for a minute on a busy machine; an engine that has locked itself up fails the test.
const PATIENCE_MAX: Duration = Duration::from_secs(600);

fn is_full() -> bool {
    std::env::var_os("LOG_CAPTURER_DOCKER_FULL").is_some()
}

/// Says that this case was skipped, and why, if this is the short form.
pub fn is_left_out(case: &str, why: &str) -> bool {
    if !is_full() {
        println!("skipped: docker::{case}: {why}, in the full form only");
    }
    !is_full()
}

/// In the full form, and in the short one.
pub fn times(full: usize, short: usize) -> usize {
    if is_full() { full } else { short }
}

const JOURNALD: &str = "/lib/systemd/systemd-journald";

/// A journal of this engine alone, in places of its own; then the engine, in the place of the shell.
const WITH_JOURNAL: &str = "mkdir -p /run/systemd /run/log /var/log
for place in /run/systemd /run/log /var/log; do mount -t tmpfs none $place || exit 1; done
mkdir -p /run/systemd/journal
/lib/systemd/systemd-journald & echo $! > \"$0\"
exec \"$@\"";

fn program(names: &[&str]) -> Option<PathBuf> {
    names.iter().map(PathBuf::from).find(|path| path.exists())
}

/// Without a host's own settings: no journal, no systemd, a driver for storage that works everywhere, and no limit that
/// somebody may not raise.
const PODMAN: &str = r#"[engine]
cgroup_manager = "cgroupfs"
events_logger = "file"
runtime = "runc"
[containers]
log_driver = "k8s-file"
default_ulimits = ["nofile=1024:1024", "nproc=1024:1024"]
"#;

#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Docker,
    WithJournal,
    Podman,
}

pub struct Engine {
    dir: tempfile::TempDir,
    kind: Kind,
    program: PathBuf,
    process: Option<Child>,
    options: Vec<String>,
}

impl Engine {
    /// `None`: not possible here, and said so.
    pub fn start(case: &str) -> Option<Engine> {
        Engine::start_as(case, Kind::Docker, Vec::new())
    }

    /// With more options of dockerd.
    pub fn start_with(case: &str, options: Vec<String>) -> Option<Engine> {
        Engine::start_as(case, Kind::Docker, options)
    }

    /// Its service starts on every host; whether it can start a container shows only then.
    pub fn start_podman(case: &str) -> Option<Engine> {
        let engine = Engine::start_as(case, Kind::Podman, Vec::new())?;
        engine.create("probe", "true", false, false);
        let (status, said) = engine.ask("POST", "/containers/probe/start", b"").expect("the engine answers");
        engine.remove_all();
        if status >= 300 {
            println!("skipped: docker::{case}: podman starts no container here: {}", said.trim());
            return None;
        }
        Some(engine)
    }

    /// One that can write to a journal; if none can be had here, only that is said.
    pub fn start_with_journal(case: &str) -> Option<Engine> {
        let has_journal = Path::new(JOURNALD).exists() && Path::new("/usr/bin/unshare").exists();
        if !has_journal {
            println!("skipped: docker::{case}: journald: there is no {JOURNALD}");
        }
        let kind = if has_journal { Kind::WithJournal } else { Kind::Docker };
        Engine::start_as(case, kind, Vec::new())
    }

    fn start_as(case: &str, kind: Kind, options: Vec<String>) -> Option<Engine> {
        let (name, paths) = match kind {
            Kind::Podman => ("podman", &["/usr/bin/podman", "/usr/local/bin/podman"][..]),
            _ => ("dockerd", &["/usr/sbin/dockerd", "/usr/bin/dockerd", "/usr/local/bin/dockerd"][..]),
        };
        let busybox = program(&["/bin/busybox", "/usr/bin/busybox"]);
        let why = match (program(paths), &busybox) {
            _ if !rustix::process::geteuid().is_root() => Err("only root can start an engine".to_owned()),
            (None, _) => Err(format!("there is no {name}")),
            (_, None) => Err("there is no busybox".to_owned()),
            (Some(program), Some(busybox)) => Ok((program, busybox)),
        };
        let (program, busybox) = match why {
            Ok(found) => found,
            Err(why) => {
                println!("skipped: docker::{case}: {why}");
                return None;
            }
        };
        let dir = tempfile::tempdir().unwrap();
        let mut engine = Engine { dir, kind, program, process: None, options };
        if !engine.launch() {
            println!("skipped: docker::{case}: {name} does not start here: {}", engine.log());
            return None;
        }
        engine.import_shell(busybox);
        Some(engine)
    }

    pub fn socket(&self) -> PathBuf {
        self.dir.path().join("s")
    }

    pub fn log(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(self.dir.path().join("log")).unwrap_or_default()).into_owned()
    }

    fn podman(&self) -> Command {
        let folder = |name: &str| self.dir.path().join(name);
        let storage = format!(
            "[storage]\ndriver = \"vfs\"\nrunroot = \"{}\"\ngraphroot = \"{}\"\n",
            folder("exec").display(),
            folder("root").display()
        );
        std::fs::write(folder("containers.conf"), PODMAN).unwrap();
        std::fs::write(folder("storage.conf"), storage).unwrap();
        let mut command = Command::new(&self.program);
        command
            .env("CONTAINERS_CONF", folder("containers.conf"))
            .env("CONTAINERS_STORAGE_CONF", folder("storage.conf"))
            .args(["system", "service", "--time=0"])
            .arg(format!("unix://{}", self.socket().display()));
        command
    }

    fn dockerd(&self) -> Command {
        let folder = |name: &str| self.dir.path().join(name);
        let mut command = if self.kind == Kind::WithJournal {
            let mut command = Command::new("unshare");
            command.args(["-m", "sh", "-c", WITH_JOURNAL]).arg(folder("journald.pid")).arg(&self.program);
            command
        } else {
            Command::new(&self.program)
        };
        command
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
            .args(&self.options);
        command
    }

    /// Starts it (again); `false`: it ended at once.
    pub fn launch(&mut self) -> bool {
        let log =
            std::fs::File::options().create(true).append(true).open(self.dir.path().join("log")).unwrap();
        let mut command = if self.kind == Kind::Podman { self.podman() } else { self.dockerd() };
        let mut process =
            command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log).spawn().unwrap();
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
    pub fn end(&mut self) {
        if let Some(mut process) = self.process.take() {
            let pid = rustix::process::Pid::from_child(&process);
            let _ = rustix::process::kill_process(pid, Signal::TERM);
            let _ = process.wait();
        }
        let journald = std::fs::read_to_string(self.dir.path().join("journald.pid")).unwrap_or_default();
        if let Some(pid) = journald.trim().parse().ok().and_then(rustix::process::Pid::from_raw) {
            let _ = rustix::process::kill_process(pid, Signal::TERM);
        }
    }

    pub fn signal(&self, signal: Signal) {
        if let Some(process) = &self.process {
            let _ = rustix::process::kill_process(rustix::process::Pid::from_child(process), signal); // gone: no matter
        }
    }

    fn import_shell(&self, busybox: &Path) {
        let image = self.dir.path().join("image");
        std::fs::create_dir_all(image.join("bin")).unwrap();
        std::fs::copy(busybox, image.join("bin/busybox")).unwrap();
        for name in ["sh", "seq", "sleep", "usleep", "head", "tr", "cat", "sed"] {
            std::os::unix::fs::symlink("busybox", image.join("bin").join(name)).unwrap();
        }
        self.import("test", &image);
    }

    /// What stands in `folder` is an image.
    pub fn import(&self, name: &str, folder: &Path) {
        let tar = Command::new("tar").arg("-C").arg(folder).args(["-c", "."]).output().unwrap();
        let path = format!("/images/create?fromSrc=-&repo={name}");
        let (status, said) = self.ask("POST", &path, &tar.stdout).expect("the engine answers");
        assert_eq!(status, 200, "{said}");
    }

    /// `None`: nobody answers.
    pub fn ask(&self, method: &str, path: &str, body: &[u8]) -> Option<(u16, String)> {
        let mut stream = UnixStream::connect(self.socket()).ok()?;
        stream.set_read_timeout(Some(PATIENCE_MAX)).ok()?;
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
    pub fn well(&self, method: &str, path: &str, body: &Value) -> Value {
        let body = if body.is_null() { String::new() } else { body.to_string() };
        let (status, said) = self.ask(method, path, body.as_bytes()).expect("the engine answers");
        assert!((200..400).contains(&status), "{method} {path}: {status} {said}");
        serde_json::from_str(&said).unwrap_or(Value::Null)
    }

    pub fn create(&self, name: &str, script: &str, tty: bool, rm: bool) {
        self.create_logged(name, script, tty, rm, &Value::Null);
    }

    /// `log`: a driver and its options, as the API has them; `null`: the engine's own choice.
    pub fn create_logged(&self, name: &str, script: &str, tty: bool, rm: bool, log: &Value) {
        // Without any network, not even that named none: when fifty end at once, libnetwork of Docker 20.10 can lock itself
        // up for good (its list of networks against one network), and the engine then answers nothing about them.
        let config = json!({
            "NetworkDisabled": true, "Image": "test", "Cmd": ["/bin/busybox", "sh", "-c", script], "Tty": tty, "StopTimeout": 1,
            "HostConfig": { "AutoRemove": rm, "NetworkMode": "none", "Init": false, "LogConfig": log },
        });
        self.well("POST", &format!("/containers/create?name={name}"), &config);
    }

    pub fn start_container(&self, name: &str) {
        self.well("POST", &format!("/containers/{name}/start"), &Value::Null);
    }

    pub fn run(&self, name: &str, script: &str) {
        self.create(name, script, false, false);
        self.start_container(name);
    }

    pub fn wait(&self, name: &str) {
        // 404: removed already.
        let _ = self.ask("POST", &format!("/containers/{name}/wait"), b"");
    }

    pub fn remove_all(&self) {
        let Some((200, list)) = self.ask("GET", "/containers/json?all=1", b"") else { return };
        let list: Value = serde_json::from_str(&list).unwrap_or_default();
        for container in list.as_array().into_iter().flatten() {
            let id = container["Id"].as_str().unwrap_or_default();
            let _ = self.ask("DELETE", &format!("/containers/{id}?force=1"), b"");
        }
    }

    /// The lines that the engine has of a container, in order, without their times.
    pub fn lines(&self, name: &str) -> Vec<String> {
        let path = format!("/containers/{name}/logs?stdout=1&stderr=1");
        let mut stream = UnixStream::connect(self.socket()).unwrap();
        write!(stream, "GET {path} HTTP/1.0\r\nHost: d\r\n\r\n").unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).unwrap();
        let end = answer.windows(4).position(|four| four == b"\r\n\r\n").unwrap() + 4;
        let (mut rest, mut all) = (&answer[end..], Vec::new());
        while let Some((head, after)) = rest.split_at_checked(8) {
            let len = u32::from_be_bytes(head[4..].try_into().unwrap()) as usize;
            all.push(String::from_utf8_lossy(&after[..len]).trim_end().to_owned());
            rest = &after[len..];
        }
        all
    }

    pub fn room(&self) -> Room {
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
            self.signal(Signal::CONT);
            self.remove_all();
        }
        self.end();
    }
}
