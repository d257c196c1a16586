//! The agent as its users meet it: a program with a configuration file, a terminal and signals.
//!
//! A [`Room`] is the folder it lives in and outlives its lives; an [`Agent`] is one life, which ends with the
//! test at the latest. All waiting is "until a fact, with a deadline".

#![expect(clippy::disallowed_methods, reason = "a file of the test need not survive a power cut")]

use std::fs::{self, File};
use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::chown;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Duration;

use log_capturer::clock::Clock;
use parking_lot::Mutex;
pub use rustix::process::Signal;
use rustix::process::{Pid, kill_process};
use serde_json::{Value, json};
use tempfile::TempDir;

pub const BINARY: &str = env!("CARGO_BIN_EXE_log-capturer");

/// Long enough for a slow machine under load: only a test that fails waits for it.
pub const DEADLINE: Duration = Duration::from_secs(60);

/// How often a fact is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(5);

/// Waits for a fact, and panics with `what` and `details` when it does not come true.
#[track_caller]
pub fn until(what: &str, deadline: Duration, details: impl Fn() -> String, mut fact: impl FnMut() -> bool) {
    let clock = Clock::real();
    let end = clock.now() + deadline;
    while !fact() {
        assert!(clock.now() < end, "waited {deadline:?} in vain until {what}\n{}", details());
        pause(LOOK_EVERY);
    }
}

/// Between two looks at a fact, or as the pace of a writer. Never to give the agent time for something.
pub fn pause(time: Duration) {
    let _ = crossbeam_channel::after(time).recv();
}

/// A folder with `home/` (the configuration and everything relative to it) and the agent's stderr beside it.
pub struct Room {
    dir: TempDir,
    lives: Mutex<u32>,
}

impl Room {
    /// `config`: the whole file. Where it is silent, the status server gets a free port, so that tests can run
    /// beside each other.
    pub fn new(mut config: Value) -> Room {
        let status = &mut config["status"];
        if status.get("listen").is_none() {
            status["listen"] = json!("127.0.0.1:0");
        }
        Room::with_config_text(&serde_json::to_string_pretty(&config).expect("JSON can be printed"))
    }

    pub fn with_config_text(config: &str) -> Room {
        let dir = TempDir::new().expect("a temporary folder can be made");
        let room = Room { dir, lives: Mutex::new(0) };
        fs::create_dir(room.path("")).expect("a folder can be made");
        room.configure(config);
        room
    }

    /// Replaces the configuration file.
    pub fn configure(&self, config: &str) {
        fs::write(self.path("config.json"), config).expect("a file can be written");
    }

    /// Below the folder of the configuration.
    pub fn path(&self, relative: &str) -> PathBuf {
        self.dir.path().join("home").join(relative)
    }

    /// Its parent: for what the agent must not see.
    pub fn outside(&self) -> &Path {
        self.dir.path()
    }

    pub fn run(&self) -> Agent {
        self.start(self.command(&["run"]).stdin(Stdio::null()).stdout(Stdio::null()))
    }

    /// Ships what is there, and returns how it ended and what it said.
    pub fn run_once(&self) -> (i32, String) {
        let agent = self.start(self.command(&["run", "--once"]).stdin(Stdio::null()).stdout(Stdio::null()));
        let code = agent.wait_exit(DEADLINE);
        (code, agent.stderr())
    }

    /// What `audit` says, and how it ended.
    pub fn audit(&self) -> (i32, String) {
        let output = self.command(&["audit"]).output().expect("the binary can be run");
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        (output.status.code().expect("nothing kills it"), said + &String::from_utf8_lossy(&output.stderr))
    }

    /// `log-capturer <arguments> --config <home>/config.json`, from a folder that is not home.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(BINARY);
        command.args(arguments).arg("--config").arg(self.path("config.json"));
        command.current_dir(self.outside()).env_remove("RUST_LOG");
        command
    }

    /// Modes mean nothing to root: the agent becomes nobody, with a binary and a home that nobody can reach.
    /// `None`: there is no way to become somebody else, which is said.
    pub fn as_somebody(&self, arguments: &[&str]) -> Option<Command> {
        if !rustix::process::geteuid().is_root() {
            return Some(self.command(arguments));
        }
        if Command::new("setpriv").arg("--version").output().is_err() {
            println!("skipped: root reads every file, and there is no setpriv to become somebody else");
            return None;
        }
        let (nobody, binary) = (65534, self.outside().join("log-capturer"));
        fs::copy(BINARY, &binary).expect("the binary can be copied");
        for path in [self.outside(), &self.path("")] {
            chown(path, Some(nobody), Some(nobody)).expect("root gives away what it likes");
        }
        let mut command = Command::new("setpriv");
        command.args(["--reuid=65534", "--regid=65534", "--clear-groups"]).arg(binary);
        command.args(arguments).arg("--config").arg(self.path("config.json"));
        Some(command)
    }

    /// Starts one life with its stderr in a file of its own.
    pub fn start(&self, command: &mut Command) -> Agent {
        let mut lives = self.lives.lock();
        *lives += 1;
        let stderr = self.outside().join(format!("stderr-{lives}.txt"));
        let file = File::create(&stderr).expect("a file can be made");
        let child = command.stderr(file).spawn().unwrap_or_else(|cause| panic!("{command:?}: {cause}"));
        Agent { child: Mutex::new(child), stderr }
    }
}

/// One life of the agent. Killed when the test is over.
pub struct Agent {
    child: Mutex<Child>,
    stderr: PathBuf,
}

impl Agent {
    pub fn pid(&self) -> u32 {
        self.child.lock().id()
    }

    /// What it said so far.
    pub fn stderr(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.stderr).unwrap_or_default()).into_owned()
    }

    /// Waits for a fact while the agent lives; an agent that ends ends the waiting.
    #[track_caller]
    pub fn until(&self, what: &str, mut fact: impl FnMut() -> bool) {
        let details = || format!("the agent said:\n{}", self.stderr());
        until(what, DEADLINE, details, || {
            let ended = self.try_exit();
            let come_true = fact(); // looked at after the end, too: it may have ended because of it
            if let (false, Some(code)) = (come_true, ended) {
                panic!("the agent ended with {code} before {what}\n{}", details());
            }
            come_true
        });
    }

    /// Exit code; `128 + n` when signal n ended it, as a shell says it.
    #[track_caller]
    pub fn wait_exit(&self, deadline: Duration) -> i32 {
        let details = || format!("it said:\n{}", self.stderr());
        until("the agent ends", deadline, details, || self.try_exit().is_some());
        self.try_exit().expect("it has ended")
    }

    pub fn try_exit(&self) -> Option<i32> {
        let status = self.child.lock().try_wait().expect("a child can be asked")?;
        Some(status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0)))
    }

    /// SIGTERM, and how it ended.
    #[track_caller]
    pub fn stop(&self) -> i32 {
        self.signal(Signal::TERM);
        self.wait_exit(DEADLINE)
    }

    pub fn signal(&self, signal: Signal) {
        let pid = Pid::from_child(&self.child.lock());
        kill_process(pid, signal).expect("a child can be signalled");
    }

    pub fn kill9(&self) {
        self.signal(Signal::KILL);
        self.wait_exit(DEADLINE);
    }

    pub fn take_stdin(&self) -> ChildStdin {
        self.child.lock().stdin.take().expect("started with a piped stdin")
    }

    pub fn take_stdout(&self) -> ChildStdout {
        self.child.lock().stdout.take().expect("started with a piped stdout")
    }

    /// Where the status server listens, as it says on stderr.
    #[track_caller]
    pub fn status_address(&self) -> String {
        let mut address = None;
        self.until("the status server says where it listens", || {
            address = address_in(&self.stderr());
            address.is_some()
        });
        address.expect("found")
    }

    /// Status code and body of a page of the status server.
    #[track_caller]
    pub fn get(&self, path: &str) -> (u16, String) {
        self.ask("GET", path)
    }

    /// The same, with an empty body.
    #[track_caller]
    pub fn post(&self, path: &str) -> (u16, String) {
        self.ask("POST", path)
    }

    /// `None`: it went away before it answered, as it may between two lives.
    pub fn try_get(&self, path: &str) -> Option<(u16, String)> {
        self.try_ask("GET", path)
    }

    #[track_caller]
    fn ask(&self, method: &str, path: &str) -> (u16, String) {
        self.try_ask(method, path).unwrap_or_else(|| panic!("{path}: no answer"))
    }

    #[track_caller]
    fn try_ask(&self, method: &str, path: &str) -> Option<(u16, String)> {
        let address = self.status_address();
        let mut stream = TcpStream::connect(&address).unwrap_or_else(|cause| panic!("{address}: {cause}"));
        stream.set_read_timeout(Some(DEADLINE)).expect("a socket has a time-out");
        let request = format!("{method} {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
        let mut answer = Vec::new();
        let heard = stream.write_all(request.as_bytes()).and_then(|()| stream.read_to_end(&mut answer));
        match heard {
            Err(cause) if !matches!(cause.kind(), ErrorKind::ConnectionReset | ErrorKind::BrokenPipe) => {
                panic!("{path}: no answer: {cause}")
            }
            _ if answer.is_empty() => return None,
            _ => {}
        }
        let answer = String::from_utf8_lossy(&answer).into_owned();
        let code = answer.split(' ').nth(1).and_then(|code| code.parse().ok());
        let body = answer.split_once("\r\n\r\n").map(|(_, body)| body.to_owned());
        Some((code.unwrap_or_else(|| panic!("not HTTP: {answer}")), body.unwrap_or_default()))
    }

    /// The most memory it ever had, in KiB: `VmHWM` of `/proc/<pid>/status`. `None` once it has ended.
    pub fn peak_memory_kib(&self) -> Option<u64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid())).ok()?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
        line.split_whitespace().next()?.parse().ok()
    }
}

/// Whole lines only: half a line has half a port.
fn address_in(stderr: &str) -> Option<String> {
    let (_, after) = stderr.split_once("status: listening on http://")?;
    let (line, _) = after.split_once('\n')?;
    line.split_whitespace().next().map(|address| address.trim_end_matches('/').to_owned())
}

impl Drop for Agent {
    fn drop(&mut self) {
        let mut child = self.child.lock();
        let _ = child.kill(); // it may have ended already
        let _ = child.wait();
    }
}
