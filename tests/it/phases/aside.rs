//! A mount namespace beside the machine's own: for a resolver that never answers and for disks that are full.
//!
//! It lives as long as a process that does nothing in it. Needs root, `unshare` and `nsenter`.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use crate::agent::{Agent, BINARY, Room};

pub struct Aside {
    holder: Child,
}

impl Aside {
    /// `setup`: shell commands that mount something; `$1` is `argument`. `None`: this machine does not allow it,
    /// and the test says that it is skipped.
    pub fn new(what: &str, setup: &str, argument: &Path) -> Option<Aside> {
        let skipped = |why: &str| println!("stop | {what}: SKIPPED ({why})");
        if !rustix::process::getuid().is_root() {
            skipped("a mount of its own needs root");
            return None;
        }
        let mut holder = Command::new("unshare");
        holder.args(["--mount", "sh", "-c", &format!("{setup} && echo up && exec cat"), "sh"]).arg(argument);
        let holder = holder.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn();
        let Ok(mut holder) = holder else {
            skipped("there is no unshare");
            return None;
        };
        let mut said = String::new();
        let mut stdout = BufReader::new(holder.stdout.take().expect("it is piped"));
        stdout.read_line(&mut said).expect("a pipe can be read");
        let aside = Aside { holder };
        if said != "up\n" {
            skipped("it may not mount");
            return None;
        }
        Some(aside)
    }

    /// A program that sees the mounts.
    fn enter(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--mount=/proc/{}/ns/mnt", self.holder.id())).arg(program);
        command
    }

    /// One life of the agent in here.
    pub fn start(&self, room: &Room, arguments: &[&str]) -> Agent {
        let mut command = self.enter(BINARY);
        command.args(arguments).arg("--config").arg(room.path("config.json")).env_remove("RUST_LOG");
        room.start(command.stdin(Stdio::null()).stdout(Stdio::null()))
    }

    pub fn run(&self, program: &str, arguments: &[&str]) {
        let status = self.enter(program).args(arguments).status().expect("nsenter is there");
        assert!(status.success(), "{program} {arguments:?}: {status}");
    }

    /// What is mounted in here, as it is seen from outside.
    pub fn path(&self, path: &Path) -> PathBuf {
        let path = path.strip_prefix("/").expect("an absolute path");
        PathBuf::from(format!("/proc/{}/root", self.holder.id())).join(path)
    }
}

impl Drop for Aside {
    fn drop(&mut self) {
        let _ = self.holder.kill(); // it may have ended already
        let _ = self.holder.wait();
    }
}
