//! One file at full speed: the bare loops, the agent, and its peers, in turns, so that whatever else the machine does
//! meets all of them.

use std::fs;
use std::io::{Error, Result};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use log_capturer_bench::corpus::LINE_BYTES;

use crate::agent::{self, Setup, Sink};
use crate::peers::{self, Peer, Place};
use crate::process::{Look, Process};
use crate::table::{self, MB, figure, figure_or_dash, median};
use crate::{Bench, corpus};

/// Nobody is waited for longer, a run.
const DEADLINE: Duration = Duration::from_secs(300);

enum Kind {
    Bare(&'static str),
    /// What it costs is compared with the bare loops of these names.
    Agent {
        program: PathBuf,
        to_loki: bool,
        memory_budget: &'static str,
        measures: &'static [&'static str],
    },
    Peer(Peer),
}

struct Contestant {
    name: String,
    kind: Kind,
    runs: Vec<Run>,
}

#[derive(Clone, Copy)]
struct Run {
    cpu: f64,
    wall: f64,
    look: Look,
}

pub fn run(bench: &Bench) -> Result<()> {
    let logs = bench.home.join("app.log");
    let lines = bench.corpus_bytes / LINE_BYTES as u64;
    corpus::write(&logs, lines)?;
    let mut contestants = contestants(bench);
    for round in 0..bench.rounds {
        for contestant in &mut contestants {
            if matches!(contestant.kind, Kind::Peer(_)) && round >= bench.peer_rounds {
                continue;
            }
            eprintln!("round {} of {}: {}", round + 1, bench.rounds, contestant.name);
            match one(bench, &contestant.kind, &logs, lines) {
                Ok(run) => contestant.runs.push(run),
                // A peer that does not run here is not what is measured.
                Err(cause) if matches!(contestant.kind, Kind::Peer(_)) => eprintln!("  left out: {cause}"),
                Err(cause) => return Err(cause),
            }
        }
    }
    contestants.retain(|contestant| !contestant.runs.is_empty());
    show(bench, &contestants, &logs, lines)
}

fn contestants(bench: &Bench) -> Vec<Contestant> {
    let new = |name: &str, kind| Contestant { name: name.to_owned(), kind, runs: Vec::new() };
    let mut all = vec![
        new("bare: read", Kind::Bare("read")),
        new("bare: … + newlines", Kind::Bare("newlines")),
        new("bare: … + protobuf", Kind::Bare("protobuf")),
        new("bare: … + snappy", Kind::Bare("snappy")),
        new("bare: … + POST", Kind::Bare("post")),
    ];
    for program in &bench.agents {
        // Told apart only if there are several.
        let which = if bench.agents.len() > 1 { format!(" ({})", program.display()) } else { String::new() };
        let agent = |memory_budget| Kind::Agent {
            program: program.clone(),
            to_loki: true,
            memory_budget,
            measures: &["post"],
        };
        all.push(new(&format!("**agent: file to Loki**{which}"), agent("16MiB")));
        all.push(new(&format!("agent: the same, `memory_budget` 2MiB{which}"), agent("2MiB")));
    }
    all.push(new("bare: read + write", Kind::Bare("write")));
    all.push(new("bare: … + sync", Kind::Bare("sync")));
    for program in &bench.agents {
        let which = if bench.agents.len() > 1 { format!(" ({})", program.display()) } else { String::new() };
        let kind = Kind::Agent {
            program: program.clone(),
            to_loki: false,
            memory_budget: "16MiB",
            measures: &["write", "sync"],
        };
        all.push(new(&format!("**agent: file to file**{which}"), kind));
    }
    all.extend(bench.peers().into_iter().map(|peer| new(peer.name, Kind::Peer(peer))));
    all
}

/// A command, made for one run, and what it writes to if that is a file.
fn prepare(bench: &Bench, kind: &Kind, logs: &Path, once: bool) -> Result<(Command, Option<PathBuf>)> {
    let folder = bench.fresh_folder("run")?;
    let output = folder.join("out.log");
    match kind {
        Kind::Bare(what) => {
            let mut command = Command::new(&bench.bare);
            command.arg(what).arg(logs);
            match *what {
                "write" | "sync" => drop(command.arg(&output)),
                "post" => drop(command.arg(bench.receiver.address.to_string())),
                _ => {}
            }
            Ok((command, None))
        }
        Kind::Agent { program, to_loki, memory_budget, .. } => {
            let config = config(&folder, logs, *to_loki, memory_budget, bench.receiver.address)?;
            Ok((agent::command(program, &config, once), (!to_loki).then_some(output)))
        }
        Kind::Peer(peer) => {
            let place = Place { folder: &folder, logs, receiver: bench.receiver.address };
            Ok((peer.command(&place)?, None))
        }
    }
}

fn config(
    folder: &Path,
    logs: &Path,
    to_loki: bool,
    memory_budget: &str,
    receiver: SocketAddr,
) -> Result<PathBuf> {
    let sink = if to_loki { Sink::Loki(receiver) } else { Sink::File };
    Setup { logs: &logs.to_string_lossy(), sink, memory_budget, status: None }.write(folder)
}

/// The host of a virtual machine takes back memory that nobody uses for seconds, and whoever is given it first pays for
/// that: as much as a run costs that writes what it has read. So all begin alike.
fn touch_memory(bench: &Bench, logs: &Path) -> Result<()> {
    let output = bench.home.join("touched");
    let written = Command::new(&bench.bare).arg("write").arg(logs).arg(&output).status()?;
    fs::remove_file(output)?;
    if written.success() { Ok(()) } else { Err(Error::other("the bare loop could not write")) }
}

/// Until the last line has arrived, and the end of the process.
fn one(bench: &Bench, kind: &Kind, logs: &Path, lines: u64) -> Result<Run> {
    let (mut command, output) = prepare(bench, kind, logs, false)?;
    touch_memory(bench, logs)?;
    // What others have written is not written back at our cost.
    Command::new("sync").status()?;
    bench.receiver.begin();
    let mut process = Process::start(&mut command, &bench.home.join("said.txt"))?;
    if let Kind::Bare(what) = kind {
        let cost = process.wait()?;
        if *what == "post" && bench.receiver.lines() != lines {
            return Err(Error::other("the bare loop has lost lines"));
        }
        return Ok(Run { cpu: cost.cpu.as_secs_f64(), wall: cost.wall.as_secs_f64(), look: Look::default() });
    }
    let bytes = lines * LINE_BYTES as u64;
    let arrived = || match &output {
        Some(output) => fs::metadata(output).map_or(0, |metadata| metadata.len() * lines / bytes),
        None => bench.receiver.lines(),
    };
    // The last lines wait for company that does not come, up to `max_wait`: that is no matter of speed.
    process.until(DEADLINE, || arrived() >= lines - lines / 8)?;
    let wall = process.began.elapsed().as_secs_f64() * lines as f64 / arrived() as f64;
    process.until(DEADLINE, || arrived() >= lines)?;
    let look = process.look()?;
    let cost = process.stop()?;
    if output.is_none() && bench.receiver.lines() != lines {
        return Err(Error::other(format!("{lines} lines became {}", bench.receiver.lines())));
    }
    Ok(Run { cpu: cost.cpu.as_secs_f64(), wall, look })
}

fn show(bench: &Bench, contestants: &[Contestant], logs: &Path, lines: u64) -> Result<()> {
    let megabytes = (lines * LINE_BYTES as u64) as f64 / MB;
    let of = |contestant: &Contestant, what: fn(&Run) -> f64| {
        median(&contestant.runs.iter().map(what).collect::<Vec<_>>())
    };
    let bare = |wanted: &str| {
        let is_it = |contestant: &&Contestant| matches!(contestant.kind, Kind::Bare(what) if what == wanted);
        contestants.iter().find(is_it)
    };
    // Round by round, since the rounds of a machine that is shared differ more than what is compared.
    let ratio = |contestant: &Contestant, wanted: &str| {
        let pairs = contestant.runs.iter().zip(bare(wanted).map_or(&[][..], |bare| &bare.runs));
        let ratios: Vec<f64> = pairs.map(|(run, bare)| run.cpu / bare.cpu).collect();
        (!ratios.is_empty()).then(|| median(&ratios))
    };
    println!(
        "\nOne file of {megabytes:.0} MB, lines of {LINE_BYTES} bytes; medians of {} rounds in turns.",
        bench.rounds
    );
    table::head(&[
        "",
        "MB per CPU-second",
        "CPU time ÷ bare loop",
        "lines/s",
        "peak memory",
        "threads",
        "system calls per MB",
        "allocations per MB",
    ]);
    for contestant in contestants {
        let kind = &contestant.kind;
        let measured = !matches!(kind, Kind::Bare(_));
        let ratio = match kind {
            Kind::Bare(_) => None,
            Kind::Agent { measures, .. } => {
                let ratios: Option<Vec<String>> =
                    measures.iter().map(|measure| ratio(contestant, measure).map(figure)).collect();
                ratios.map(|ratios| ratios.join("; "))
            }
            Kind::Peer(_) => ratio(contestant, "post").map(figure),
        };
        let calls = match kind {
            Kind::Peer(_) => None,
            _ => system_calls(bench, kind, logs)?.map(|calls| calls as f64 / megabytes),
        };
        let allocations = match kind {
            Kind::Agent { to_loki, memory_budget, .. } => allocations(bench, *to_loki, memory_budget, lines)?,
            _ => None,
        };
        let peak = of(contestant, |run| run.look.peak_kib as f64) * 1024.0 / MB;
        table::row(&[
            contestant.name.clone(),
            figure(megabytes / of(contestant, |run| run.cpu)),
            ratio.unwrap_or("-".into()),
            figure(lines as f64 / of(contestant, |run| run.wall)),
            if measured { format!("{peak:.1} MB") } else { "-".into() },
            if measured { of(contestant, |run| run.look.threads as f64).to_string() } else { "-".into() },
            figure_or_dash(calls),
            figure_or_dash(allocations),
        ]);
    }
    Ok(())
}

/// Of a run of its own, under strace, if it is there.
fn system_calls(bench: &Bench, kind: &Kind, logs: &Path) -> Result<Option<u64>> {
    let Some(strace) = peers::find("strace") else { return Ok(None) };
    let (command, _) = prepare(bench, kind, logs, true)?;
    let summary = bench.home.join("strace.txt");
    let mut traced = Command::new(strace);
    traced.args(["-f", "-c", "-U", "calls,name", "-o"]).arg(&summary);
    traced.arg(command.get_program()).args(command.get_args());
    Process::start(&mut traced, &bench.home.join("said.txt"))?.wait()?;
    let count = |line: &str| {
        let mut words = line.split_whitespace();
        let calls = words.next()?.parse::<u64>().ok()?;
        (words.next()? != "total").then_some(calls)
    };
    Ok(Some(fs::read_to_string(summary)?.lines().filter_map(count).sum()))
}

/// In the steady state: what the rest of the file costs after its first quarter.
fn allocations(bench: &Bench, to_loki: bool, memory_budget: &str, lines: u64) -> Result<Option<f64>> {
    let Some(counted) = bench.counted.as_ref().filter(|counted| counted.is_file()) else { return Ok(None) };
    let mut counts = Vec::new();
    for lines in [lines / 4, lines] {
        let logs = bench.home.join("counted.log");
        corpus::write(&logs, lines)?;
        let folder = bench.fresh_folder("run")?;
        let config = config(&folder, &logs, to_loki, memory_budget, bench.receiver.address)?;
        let said = bench.home.join("counted.txt");
        Process::start(Command::new(counted).arg(config), &said)?.wait()?;
        let said = fs::read_to_string(said)?;
        let Some(allocations) = said.lines().last().and_then(|line| line.parse::<f64>().ok()) else {
            return Err(Error::other(format!("the counting agent said {said:?}")));
        };
        counts.push((allocations, (lines * LINE_BYTES as u64) as f64 / MB));
        fs::remove_file(logs)?;
    }
    Ok(Some((counts[1].0 - counts[0].0) / (counts[1].1 - counts[0].1)))
}
