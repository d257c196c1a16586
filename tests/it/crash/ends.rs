//! How a life of the agent ends: a signal at a random moment, or SIGKILL in front of a chosen system call.
//!
//! The chosen call is the n-th of its kind by a thread of the agent, as strace counts them: on the files of the state
//! that stand there, or on anything. Where strace cannot be used, only random moments are left, which is said.

use std::ffi::OsString;
use std::fmt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::LazyLock;

use fastrand::Rng;

use crate::agent::{Agent, BINARY, DEADLINE, Room, Signal};

/// What the state is made of. A name that this machine does not have is passed over by strace.
const CALLS: [(&str, &str); 6] = [
    ("write", "?write,?writev,?pwrite64,?pwritev,?pwritev2"),
    ("fsync", "?fsync,?fdatasync,?sync_file_range"),
    ("rename", "?rename,?renameat,?renameat2"),
    ("fallocate", "?fallocate,?ftruncate"),
    ("open", "?open,?openat"),
    ("unlink", "?unlink,?unlinkat"),
];

/// The n-th call, n up to this: a checkpoint needs one of each, and there are some dozens in a life.
const NTH_MAX: f64 = 40.0;

#[derive(Clone, Debug)]
pub enum End {
    /// SIGKILL.
    AtRandom,
    /// SIGTERM, and time to end.
    Stop,
    /// SIGTERM, and at once a second signal.
    StopNow,
    /// SIGKILL before the `nth` call, at `CALLS[calls]`; of the state only, or of all there are.
    AtCall { calls: usize, nth: u32, of_the_state: bool },
}

impl End {
    /// In [`End::row`]: the rows of a table.
    pub const NAMES: [&str; 9] =
        ["kill", "stop", "stop now", "write", "fsync", "rename", "fallocate", "open", "unlink"];

    pub fn choose(random: &mut Rng) -> End {
        match random.u32(..10) {
            0..3 => End::AtRandom,
            3 => End::Stop,
            4 => End::StopNow,
            _ if !*STRACE => End::AtRandom,
            _ => {
                let nth = NTH_MAX.powf(random.f64()) as u32; // small ones as often as large ones
                End::AtCall { calls: random.usize(..CALLS.len()), nth, of_the_state: random.bool() }
            }
        }
    }

    pub fn choose_stop(random: &mut Rng) -> End {
        if random.bool() { End::Stop } else { End::StopNow }
    }

    /// Its place in [`End::NAMES`].
    pub fn row(&self) -> usize {
        match self {
            End::AtRandom => 0,
            End::Stop => 1,
            End::StopNow => 2,
            End::AtCall { calls, .. } => 3 + calls,
        }
    }

    /// `refused`: if nobody is killed at a call, so many writes of each thread to these paths find a full disk.
    pub fn start(&self, room: &Room, refused: Option<(u32, &[PathBuf])>) -> Agent {
        let (calls, what, paths) = match (self, refused) {
            (End::AtCall { calls, nth, of_the_state }, _) => {
                let paths = if *of_the_state { state_paths(&room.path("data")) } else { Vec::new() };
                (CALLS[*calls].1, format!("signal=KILL:when={nth}"), paths)
            }
            (_, Some((writes, paths))) if *STRACE => {
                (CALLS[0].1, format!("error=ENOSPC:when=1..{writes}"), paths.to_vec())
            }
            _ => return room.run(),
        };
        traced(room, calls, &what, &paths)
    }

    /// The life is over by chance now: returns its exit code, and whether it had to be killed although its end was
    /// to come at a call.
    pub fn now(&self, agent: &Agent) -> (i32, bool) {
        match self {
            End::AtRandom | End::AtCall { .. } => {
                let alive = agent.try_exit().is_none();
                if alive {
                    agent.kill9();
                }
                (agent.wait_exit(DEADLINE), alive)
            }
            End::Stop => (agent.stop(), false),
            End::StopNow => {
                agent.signal(Signal::TERM);
                agent.signal(Signal::INT);
                (agent.wait_exit(DEADLINE), false)
            }
        }
    }

    /// Whether an agent of ours ends like this: killed, all delivered, or with something pending.
    pub fn allows(&self, code: i32) -> bool {
        match self {
            End::AtRandom | End::AtCall { .. } => code == 128 + 9,
            // Before its handlers are there, the signal ends it.
            End::Stop | End::StopNow => [0, 3, 128 + 15, 128 + 2].contains(&code),
        }
    }
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(End::NAMES[self.row()])?;
        match self {
            End::AtCall { nth, of_the_state: true, .. } => write!(f, " {nth} of the state"),
            End::AtCall { nth, .. } => write!(f, " {nth}"),
            _ => Ok(()),
        }
    }
}

/// An agent of whose `calls` (on these paths, or on any) the chosen ones end as `what` says.
fn traced(room: &Room, calls: &str, what: &str, paths: &[PathBuf]) -> Agent {
    let mut command = Command::new("strace");
    // The tracer is the grandchild, so that the agent itself is ours.
    command.args(["-D", "-f", "-qqq", "-o", "/dev/null", "-e", &format!("trace={calls}")]);
    command.args(["-e", &format!("inject={calls}:{what}")]);
    for path in paths {
        command.arg("-P").arg(path);
    }
    command.arg(BINARY).arg("run").arg("--config").arg(room.path("config.json"));
    command.current_dir(room.outside()).env_remove("RUST_LOG");
    room.start(command.stdin(Stdio::null()).stdout(Stdio::null()))
}

/// An agent whose disk does not keep what is written to it, from the second to the `last` sync of each of its threads.
/// `None`: no program may be traced here, which is said.
pub fn with_failing_syncs(room: &Room, last: u32) -> Option<Agent> {
    let calls = CALLS[1].1;
    STRACE.then(|| traced(room, calls, &format!("error=EIO:when=2..{last}"), &[]))
}

/// An agent whose state cannot be written for a while, since each of its threads meets `error` there, from its third
/// write to the `last` one. `None`: as above.
pub fn with_failing_state(room: &Room, error: &str, last: u32) -> Option<Agent> {
    let of_ledger = ["checkpoint-0", "checkpoint-1", "journal-0", "journal-1", "journal-2"];
    let paths: Vec<PathBuf> = of_ledger.iter().map(|name| room.path("data/ledger").join(name)).collect();
    STRACE.then(|| traced(room, CALLS[0].1, &format!("error={error}:when=3..{last}"), &paths))
}

/// Whether a program may be traced here: the tool may be missing, or forbidden.
static STRACE: LazyLock<bool> = LazyLock::new(|| {
    let mut command = Command::new("strace");
    command.args(["-D", "-f", "-qqq", "-o", "/dev/null", "-e", "trace=?exit_group"]);
    let command = command.args(["-e", "inject=?exit_group:signal=KILL", "true"]).stderr(Stdio::null());
    let killed = command.status().is_ok_and(|status| status.code().is_none());
    if !killed {
        println!("skipped: kills at chosen system calls; strace is missing or may not trace");
    }
    killed
});

/// What stands in the state, and what is about to stand there.
fn state_paths(data: &Path) -> Vec<PathBuf> {
    let ledger = data.join("ledger");
    let mut paths = vec![ledger.join("checkpoint-0"), ledger.join("checkpoint-1")];
    let mut folders = vec![data.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).into_iter().flatten().flatten() {
            if entry.path().is_dir() {
                folders.push(entry.path());
            } else {
                paths.push(entry.path());
            }
        }
        paths.push(folder);
    }
    let temporary =
        |path: &PathBuf| [path.as_os_str(), ".tmp".as_ref()].into_iter().collect::<OsString>().into();
    let temporary: Vec<PathBuf> = paths.iter().map(temporary).collect();
    paths.extend(temporary);
    paths.sort();
    paths.dedup();
    paths
}
