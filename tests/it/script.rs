//! Random scripts of what happens to one log and its agent, against a model of what must arrive.
//!
//! A script is a few actions: lines and half lines are written; the file is rotated, truncated, deleted, replaced,
//! closed to the agent; the agent is started, stopped, killed. The model is [`World::leave`] and [`World::end`]: what a
//! file holds must arrive, in order, unless the file was taken away before the agent could have it.
//!
//! The agent runs as somebody who may not read every file, where there is a way to become that. The seed is printed;
//! a script that fails is made shorter as long as it fails. `make model-files` runs many; `cargo test` a few dozen, or as
//! many as `LOG_CAPTURER_SCRIPTS` says, from `LOG_CAPTURER_SCRIPTS_SEED` on.

#![expect(clippy::disallowed_methods, reason = "programs that write logs sync nothing")]

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::Write;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::LazyLock;
use std::time::Duration;

use log_capturer::clock::Clock;
use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, TestCaseError, TestRng, TestRunner};
use serde_json::json;
use tempfile::TempDir;

use crate::agent::{Agent, BINARY, Room, pause};
use crate::receiver::Receiver;

/// In one script at most.
const ACTIONS: usize = 14;

/// How long nothing may arrive before what is missing is lost.
const PATIENCE: Duration = Duration::from_secs(5);

#[derive(Clone, Copy, Debug)]
enum Action {
    Write(u8),
    /// The beginning of a line; the next write ends it, if the file is still the same.
    Half,
    Rename,
    CopyTruncate,
    Truncate,
    Delete,
    /// Deleted and made again at once: where nobody holds it, the new file often has the inode of the old one.
    Replace,
    /// From now on nobody else may open it.
    Close,
    Open,
    Pause(u8),
    /// Until everything is out that must be.
    Settle,
    Start,
    Stop,
    Kill,
}

fn action() -> impl Strategy<Value = Action> {
    prop_oneof![
        6 => (1u8..30).prop_map(Action::Write),
        2 => Just(Action::Half),
        2 => Just(Action::Rename),
        2 => Just(Action::CopyTruncate),
        1 => Just(Action::Truncate),
        1 => Just(Action::Delete),
        1 => Just(Action::Replace),
        1 => Just(Action::Close),
        1 => Just(Action::Open),
        2 => (1u8..60).prop_map(Action::Pause),
        4 => Just(Action::Settle),
        4 => Just(Action::Start),
        1 => Just(Action::Stop),
        2 => Just(Action::Kill),
    ]
}

/// What was handed to the kernel at once, at most a line. No text is in another one.
struct Piece {
    text: String,
    must: bool,
    /// Lost if the agent ends before it has come out.
    at_risk: bool,
}

/// How a file leaves its path.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Leaves {
    Renamed,
    Copied,
    Deleted,
    Truncated,
}

struct World {
    room: Room,
    receiver: Receiver,
    agent: Option<Agent>,
    file: Option<File>,
    pieces: Vec<Piece>,
    /// The first piece of the file that stands there.
    first: usize,
    /// What had come out when the present life began.
    out_before: String,
    lines: u64,
    half: bool,
    closed: bool,
    rotations: u64,
}

impl World {
    fn new() -> World {
        let receiver = Receiver::start();
        let room = Room::new(json!({
            "agent": { "stop_timeout": "2s" },
            "status": { "listen": null },
            "sources": [{ "type": "file", "include": ["logs/app.log"], "idle": "80ms" }],
            "sinks": [{ "type": "loki", "url": receiver.url(), "batch": { "max_wait": "5ms" },
                        "retry": { "initial": "5ms" } }],
        }));
        fs::create_dir(room.path("logs")).expect("a folder can be made");
        if SOMEBODY.is_some() {
            for path in [room.outside(), &room.path("")] {
                chown(path, Some(NOBODY), Some(NOBODY)).expect("root gives away what it likes");
            }
        }
        World {
            room,
            receiver,
            agent: None,
            file: None,
            pieces: Vec::new(),
            first: 0,
            out_before: String::new(),
            lines: 0,
            half: false,
            closed: false,
            rotations: 0,
        }
    }

    fn path(&self) -> PathBuf {
        self.room.path("logs/app.log")
    }

    /// Everything that has come out, one after the other.
    fn out(&self) -> String {
        self.receiver.stored().into_iter().map(|entry| entry.line).collect()
    }

    fn put(&mut self, text: &str, end: &str) {
        let path = self.path();
        let file = self.file.get_or_insert_with(|| {
            OpenOptions::new().append(true).create(true).open(path).expect("root writes where it likes")
        });
        file.write_all([text, end].concat().as_bytes()).expect("a log can be written");
        self.pieces.push(Piece { text: text.to_owned(), must: true, at_risk: false });
    }

    fn act(&mut self, action: Action) {
        match action {
            Action::Write(lines) => {
                if std::mem::take(&mut self.half) {
                    self.put(&format!("end of {}>", self.lines), "\n");
                }
                for _ in 0..lines {
                    self.lines += 1;
                    let text = format!("<{}:{}>", self.lines, "x".repeat(self.lines as usize * 7 % 50));
                    self.put(&text, "\n");
                }
            }
            Action::Half if self.half => {}
            Action::Half => {
                self.lines += 1;
                self.put(&format!("<{}:", self.lines), "");
                self.half = true;
            }
            _ if self.file.is_none() && !action.is_of_the_agent() => {}
            Action::Rename => {
                let to = self.aside();
                fs::rename(self.path(), to).expect("a log can be renamed");
                self.leave(Leaves::Renamed);
            }
            Action::CopyTruncate => {
                let to = self.aside();
                fs::copy(self.path(), to).expect("a log can be copied");
                self.truncate(Leaves::Copied);
            }
            Action::Truncate => self.truncate(Leaves::Truncated),
            Action::Delete | Action::Replace => {
                fs::remove_file(self.path()).expect("a log can be deleted");
                self.leave(Leaves::Deleted);
                if matches!(action, Action::Replace) {
                    self.act(Action::Write(1));
                }
            }
            Action::Close | Action::Open => {
                self.closed = matches!(action, Action::Close);
                let mode = if self.closed { 0o600 } else { 0o644 };
                fs::set_permissions(self.path(), Permissions::from_mode(mode)).expect("it is ours");
            }
            Action::Pause(milliseconds) => pause(Duration::from_millis(milliseconds.into())),
            Action::Settle => {
                if self.agent.is_some() && !self.closed {
                    self.settle();
                }
            }
            Action::Start => {
                self.out_before = self.out();
                let room = &self.room;
                self.agent.get_or_insert_with(|| room.start(&mut command(room)));
            }
            Action::Stop => {
                if let Some(agent) = self.agent.take() {
                    agent.stop();
                    self.end();
                }
            }
            Action::Kill => {
                if let Some(agent) = self.agent.take() {
                    agent.kill9();
                    self.end();
                }
            }
        }
    }

    fn aside(&mut self) -> PathBuf {
        self.rotations += 1;
        self.path().with_file_name(format!("app.log.{}", self.rotations))
    }

    /// In place: the file stays, with nothing in it.
    fn truncate(&mut self, leaves: Leaves) {
        let file = self.file.take().expect("there is one");
        file.set_len(0).expect("a log can be emptied");
        let closed = self.closed;
        self.leave(leaves);
        (self.file, self.closed) = (Some(file), closed);
    }

    /// What the file held is not at its path any more.
    fn leave(&mut self, leaves: Leaves) {
        let out = self.out();
        let pieces = &mut self.pieces[self.first..];
        let is_known = pieces.iter().any(|piece| out.contains(&piece.text));
        // Then this life holds its descriptor.
        let this_life = out.strip_prefix(&self.out_before).unwrap_or(&out);
        let is_held = self.agent.is_some() && pieces.iter().any(|piece| this_life.contains(&piece.text));
        for piece in pieces.iter_mut().filter(|piece| !out.contains(&piece.text)) {
            match leaves {
                _ if !is_known => piece.must = false,
                // Nobody else may read the copy either.
                Leaves::Copied if self.closed => piece.must = false,
                Leaves::Renamed | Leaves::Copied => {}
                Leaves::Deleted if is_held => piece.at_risk = true,
                Leaves::Deleted | Leaves::Truncated => piece.must = false,
            }
        }
        (self.first, self.file, self.half, self.closed) = (self.pieces.len(), None, false, false);
    }

    /// The agent has ended.
    fn end(&mut self) {
        let out = self.out();
        for piece in self.pieces.iter_mut().filter(|piece| !out.contains(&piece.text)) {
            piece.must &= !piece.at_risk;
        }
    }

    /// Waits until everything is out that must be, or nothing comes any more.
    fn settle(&self) {
        let clock = Clock::real();
        let (mut seen, mut moved_at) = (String::new(), clock.now());
        loop {
            let out = self.out();
            let missing = self.pieces.iter().any(|piece| piece.must && !out.contains(&piece.text));
            if !missing || clock.now() - moved_at > PATIENCE {
                return;
            }
            if seen != out {
                (seen, moved_at) = (out, clock.now());
            }
            pause(Duration::from_millis(2));
        }
    }

    /// Everything that must has arrived, in order and once, and nothing besides but what may.
    fn judge(&self) -> Result<(), String> {
        let out = self.out();
        let lost: Vec<&str> = self
            .pieces
            .iter()
            .filter(|piece| piece.must && !out.contains(&piece.text))
            .map(|piece| &*piece.text)
            .collect();
        if !lost.is_empty() {
            return Err(format!("{} of {} lost: {}", lost.len(), self.pieces.len(), lost.join(" ")));
        }
        let mut rest = &out[..];
        for piece in &self.pieces {
            match rest.strip_prefix(&*piece.text) {
                Some(after) => rest = after,
                None if !piece.must => {}
                None => return Err(format!("{} should come here: {rest}", piece.text)),
            }
        }
        if rest.is_empty() { Ok(()) } else { Err(format!("nobody wrote, or not again: {rest}")) }
    }
}

impl Action {
    fn is_of_the_agent(self) -> bool {
        matches!(self, Action::Pause(_) | Action::Settle | Action::Start | Action::Stop | Action::Kill)
    }
}

const NOBODY: u32 = 65534;

/// The binary where everybody can reach it. `None`: there is no need, or no way, to become somebody else.
static SOMEBODY: LazyLock<Option<(TempDir, PathBuf)>> = LazyLock::new(|| {
    let can = Command::new("setpriv").arg("--version").output().is_ok();
    if !rustix::process::geteuid().is_root() || !can {
        return None;
    }
    let folder = TempDir::new().expect("a temporary folder can be made");
    fs::set_permissions(folder.path(), Permissions::from_mode(0o755)).expect("it is ours");
    let binary = folder.path().join("log-capturer");
    fs::copy(BINARY, &binary).expect("the binary can be copied");
    Some((folder, binary))
});

fn command(room: &Room) -> Command {
    let mut command = match &*SOMEBODY {
        None => room.command(&["run"]),
        Some((_, binary)) => {
            let mut command = Command::new("setpriv");
            command.args(["--reuid=65534", "--regid=65534", "--clear-groups"]).arg(binary);
            command.args(["run", "--config"]).arg(room.path("config.json")).env_remove("RUST_LOG");
            command
        }
    };
    command.stdin(Stdio::null()).stdout(Stdio::null());
    command
}

fn play(script: &[Action]) -> Result<(), String> {
    let mut world = World::new();
    script.iter().for_each(|action| world.act(*action));
    if world.file.is_some() {
        world.act(Action::Open);
    }
    world.act(Action::Start);
    world.settle();
    let agent = world.agent.take().expect("it was started");
    let (code, said) = (agent.stop(), agent.stderr());
    // 143: there was nothing to wait for, and its handlers were not there yet.
    if ![0, 3, 143].contains(&code) {
        return Err(format!("the agent ended with {code}:\n{said}"));
    }
    world.judge().map_err(|wrong| format!("{wrong}\nthe agent said at last:\n{said}"))
}

#[test]
fn scripts_of_everything_that_happens_to_a_file() {
    let number = |name: &str, default: u64| {
        let text = std::env::var(name).ok();
        text.map_or(default, |text| text.parse().unwrap_or_else(|_| panic!("{name} is a number, not {text}")))
    };
    let scripts = number("LOG_CAPTURER_SCRIPTS", 40);
    let seed = number("LOG_CAPTURER_SCRIPTS_SEED", fastrand::u64(..1_000_000));
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    let config = Config {
        cases: u32::try_from(scripts).expect("some scripts"),
        max_shrink_iters: 40,
        failure_persistence: None,
        ..Config::default()
    };
    let clock = Clock::real();
    let began = clock.now();
    let mut runner = TestRunner::new_with_rng(config, TestRng::from_seed(RngAlgorithm::ChaCha, &bytes));
    println!("{scripts} scripts from seed {seed}");
    let outcome = runner.run(&proptest::collection::vec(action(), 1..ACTIONS), |script| {
        play(&script).map_err(TestCaseError::fail)
    });
    if let Err(wrong) = outcome {
        panic!("seed {seed}: {wrong}");
    }
    println!("{scripts} scripts, each as the model says, in {:.1?}", clock.now() - began);
}
