//! A process that is measured: its time by the system's account of ended children, the rest from `/proc`.
//!
//! Only one measured process runs at a time, so what the account of children has grown by is that one's.

use std::fs;
use std::io::{Error, Result};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// How often a fact is looked at that somebody waits for.
const LOOK_EVERY: Duration = Duration::from_micros(500);

pub struct Process {
    child: Child,
    name: String,
    pub began: Instant,
    cpu_before: Duration,
}

/// What a process has cost, from its start to its end.
#[derive(Clone, Copy)]
pub struct Cost {
    pub cpu: Duration,
    pub wall: Duration,
}

impl Process {
    /// What it says goes to `log`.
    pub fn start(command: &mut Command, log: &Path) -> Result<Process> {
        let log = fs::File::create(log)?;
        let name = command.get_program().to_string_lossy().into_owned();
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        let (cpu_before, began) = (cpu_of_children()?, Instant::now());
        let child = command.spawn().map_err(|cause| Error::other(format!("{name}: {cause}")))?;
        Ok(Process { child, name, began, cpu_before })
    }

    /// Waits until `fact` holds; an error if the process ends before, or after `deadline`.
    pub fn until(&mut self, deadline: Duration, mut fact: impl FnMut() -> bool) -> Result<()> {
        let began = Instant::now();
        while !fact() {
            if let Some(status) = self.child.try_wait()? {
                return Err(Error::other(format!("{} has ended: {status}", self.name)));
            }
            if began.elapsed() > deadline {
                return Err(Error::other(format!("{} was not done after {deadline:?}", self.name)));
            }
            thread::sleep(LOOK_EVERY);
        }
        Ok(())
    }

    /// Asks it to stop and waits for its end.
    pub fn stop(self) -> Result<Cost> {
        let _ = kill(Pid::from_raw(self.child.id() as i32), Signal::SIGTERM); // if it is gone, its status tells
        self.wait()
    }

    /// Waits for its end, which must be a good one.
    pub fn wait(mut self) -> Result<Cost> {
        let status = self.child.wait()?;
        let wall = self.began.elapsed();
        if !status.success() {
            return Err(Error::other(format!("{} ended with {status}", self.name)));
        }
        Ok(Cost { cpu: cpu_of_children()? - self.cpu_before, wall })
    }

    pub fn look(&self) -> Result<Look> {
        Look::at(self.child.id())
    }
}

/// Whoever gave up on it does not want it any more.
impl Drop for Process {
    fn drop(&mut self) {
        if let Ok(None) = self.child.try_wait() {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

fn cpu_of_children() -> Result<Duration> {
    let usage = getrusage(UsageWho::RUSAGE_CHILDREN)?;
    let micros = |time: nix::sys::time::TimeVal| time.tv_sec() as u64 * 1_000_000 + time.tv_usec() as u64;
    Ok(Duration::from_micros(micros(usage.user_time()) + micros(usage.system_time())))
}

/// A process at one moment.
#[derive(Clone, Copy, Default)]
pub struct Look {
    pub peak_kib: u64,
    pub resident_kib: u64,
    /// Of it, pages of files: of the program and its libraries.
    pub of_files_kib: u64,
    pub threads: usize,
    pub descriptors: usize,
    pub cpu: Duration,
    /// Voluntary and not.
    pub switches: u64,
}

impl Look {
    fn at(pid: u32) -> Result<Look> {
        let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
        let mut look = Look {
            peak_kib: field(&status, "VmHWM:"),
            resident_kib: field(&status, "VmRSS:"),
            of_files_kib: field(&status, "RssFile:"),
            descriptors: fs::read_dir(format!("/proc/{pid}/fd"))?.count(),
            ..Look::default()
        };
        for task in fs::read_dir(format!("/proc/{pid}/task"))? {
            let task = task?.path();
            // A thread that has just ended has no more to say.
            let Ok(status) = fs::read_to_string(task.join("status")) else { continue };
            let times = fs::read_to_string(task.join("schedstat")).unwrap_or_default();
            let ran_ns = times.split(' ').next().and_then(|ns| ns.parse().ok()).unwrap_or(0);
            look.threads += 1;
            look.cpu += Duration::from_nanos(ran_ns);
            look.switches += field(&status, "\nvoluntary_ctxt_switches:");
            look.switches += field(&status, "nonvoluntary_ctxt_switches:");
        }
        Ok(look)
    }
}

fn field(status: &str, name: &str) -> u64 {
    let value = status.split_once(name).map_or("", |(_, rest)| rest);
    value.split_whitespace().next().and_then(|digits| digits.parse().ok()).unwrap_or(0)
}
