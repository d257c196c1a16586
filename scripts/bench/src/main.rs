//! `make bench`: what the agent costs beside the bare work, on this machine, as a table for the README.
//!
//! ```text
//! log-capturer-bench [--quick] [--only throughput|latency|idle|scale|memory] [--without-peers] AGENT...
//! ```
//!
//! Progress goes to standard error, the tables to standard output. It asserts nothing but that no line is lost.
//! With several agents (an older one and a newer one) all take part in the first table, the first one in the rest.

mod agent;
mod idle;
mod latency;
mod memory;
mod peers;
mod process;
mod receiver;
mod scale;
mod table;
mod throughput;

use std::fs;
use std::io::{Error, Result};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use log_capturer_bench::corpus;

use crate::receiver::Receiver;

/// What is measured, for how long, and with what.
pub struct Bench {
    agents: Vec<PathBuf>,
    /// Beside this program.
    bare: PathBuf,
    /// The agent that counts allocations, if it was built.
    counted: Option<PathBuf>,
    /// Temporary.
    home: PathBuf,
    receiver: Receiver,
    with_peers: bool,
    corpus_bytes: u64,
    rounds: usize,
    peer_rounds: usize,
    latency_for: Duration,
    idle_after: Duration,
    idle_for: Duration,
    starts: usize,
    /// Of a folder that is looked through.
    entries: usize,
    /// So many times the corpus.
    backlog: u64,
    /// That share the corpus.
    files: u64,
}

fn main() -> Result<()> {
    let (mut quick, mut with_peers, mut only, mut agents) = (false, true, None, Vec::new());
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--quick" => quick = true,
            "--without-peers" => with_peers = false,
            "--only" => only = arguments.next(),
            agent => agents.push(fs::canonicalize(agent)?),
        }
    }
    if agents.is_empty() {
        return Err(Error::other("name the binary of the agent"));
    }
    let seconds = |short, long| Duration::from_secs(if quick { short } else { long });
    let programs = std::env::current_exe()?.parent().map(Path::to_owned).unwrap_or_default();
    let home = std::env::temp_dir().join(format!("log-capturer-bench-{}", std::process::id()));
    fs::create_dir_all(&home)?;
    let bench = Bench {
        agents,
        bare: programs.join("bare"),
        counted: std::env::var_os("BENCH_COUNTED").map(PathBuf::from),
        receiver: Receiver::start()?,
        with_peers,
        corpus_bytes: if quick { 64_000_000 } else { 400_000_000 },
        rounds: if quick { 3 } else { 7 },
        peer_rounds: if quick { 1 } else { 3 },
        latency_for: seconds(3, 20),
        idle_after: seconds(2, 60),
        idle_for: seconds(4, 30),
        starts: if quick { 3 } else { 10 },
        entries: if quick { 20_000 } else { 100_000 },
        backlog: if quick { 8 } else { 50 },
        files: if quick { 1_000 } else { 10_000 },
        home,
    };
    let measured = bench.run(only.as_deref());
    fs::remove_dir_all(&bench.home)?;
    measured
}

impl Bench {
    fn run(&self, only: Option<&str>) -> Result<()> {
        self.introduce();
        let wanted = |name| only.is_none_or(|only| only == name);
        if wanted("throughput") {
            throughput::run(self)?;
        }
        if wanted("latency") {
            latency::run(self)?;
        }
        if wanted("idle") {
            idle::run(self)?;
        }
        if wanted("scale") {
            scale::run(self)?;
        }
        if wanted("memory") {
            memory::run(self)?;
        }
        Ok(())
    }

    /// The machine, and the versions of all who take part.
    fn introduce(&self) {
        let text = |path| fs::read_to_string(path).unwrap_or_default();
        let (processors, memory) = (text("/proc/cpuinfo"), text("/proc/meminfo"));
        let after = |line: &str| line.split_once(':').map(|(_, value)| value.trim().to_owned());
        let model = processors.lines().find(|line| line.starts_with("model name")).and_then(after);
        let cores = std::thread::available_parallelism().map_or(1, |cores| cores.get());
        let kib = memory.lines().next().and_then(after).unwrap_or_default();
        let gib = kib.split(' ').next().and_then(|kib| kib.parse::<f64>().ok()).unwrap_or(0.0) / 1_048_576.0;
        let kernel = text("/proc/sys/kernel/osrelease");
        println!(
            "{}, {cores} cores, {gib:.0} GiB; Linux {}",
            model.unwrap_or_default(),
            kernel.trim().split('-').next().unwrap_or_default()
        );
        let mut versions: Vec<String> = self.agents.iter().map(|agent| agent_version(agent)).collect();
        versions.extend(self.peers().iter().map(|peer| peer.version()));
        versions.dedup();
        println!("{}", versions.join("; "));
    }

    fn peers(&self) -> Vec<peers::Peer> {
        if self.with_peers { peers::installed() } else { Vec::new() }
    }

    /// An empty folder below [`Bench::home`].
    fn fresh_folder(&self, name: &str) -> Result<PathBuf> {
        let folder = self.home.join(name);
        if folder.exists() {
            fs::remove_dir_all(&folder)?;
        }
        fs::create_dir(&folder)?;
        Ok(folder)
    }
}

fn agent_version(agent: &Path) -> String {
    let output = Command::new(agent).arg("--version").output();
    let size = fs::metadata(agent).map_or(0, |metadata| metadata.len());
    let name =
        output.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned()).unwrap_or_default();
    format!("{name} ({:.2} MB)", size as f64 / table::MB)
}
