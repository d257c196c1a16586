//! What it costs to have nothing to do, to begin, and to end.

use std::fs;
use std::io::{Error, Result};
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use crate::Bench;
use crate::agent::{self, Setup, Sink};
use crate::process::Process;
use crate::table::{self, MB, figure, median, ms};

const DEADLINE: Duration = Duration::from_secs(60);

pub fn run(bench: &Bench) -> Result<()> {
    let (settle, span) = (bench.idle_after, bench.idle_for);
    println!(
        "\nNothing to do: {} s after everything was delivered, for {} s. Begin and end: medians of {}.",
        settle.as_secs(),
        span.as_secs(),
        bench.starts
    );
    table::head(&[
        "files",
        "CPU ms a second",
        "thread switches a second",
        "resident",
        "of it the program",
        "descriptors",
        "threads",
        "ready after",
        "stopped after",
    ]);
    for files in [1, 1_000, 10_000] {
        eprintln!("idle: {files} files");
        one(bench, files)?;
    }
    Ok(())
}

fn one(bench: &Bench, files: usize) -> Result<()> {
    let folder = bench.fresh_folder("run")?;
    write_logs(&folder.join("logs"), files)?;
    let (mut starts, mut stops) = (Vec::new(), Vec::new());
    let mut idle = None;
    // The first life finds the files; the others know them.
    for life in 0..=bench.starts {
        let status = agent::free_address()?;
        let logs = folder.join("logs/*.log");
        let sink = Sink::Loki(bench.receiver.address);
        let setup =
            Setup { logs: &logs.to_string_lossy(), sink, memory_budget: "16MiB", status: Some(status) };
        let config = setup.write(&folder)?;
        bench.receiver.begin();
        let mut command = agent::command(&bench.agents[0], &config, false);
        let mut process = Process::start(&mut command, &bench.home.join("said.txt"))?;
        let ready = agent::until_ready(&mut process, status)?;
        if life == 0 {
            process.until(DEADLINE, || bench.receiver.lines() >= files as u64)?;
            thread::sleep(bench.idle_after);
            let (before, began) = (process.look()?, Instant::now());
            thread::sleep(bench.idle_for);
            idle = Some((before, process.look()?, began.elapsed().as_secs_f64()));
            process.stop()?;
        } else {
            starts.push(ms(ready));
            until_quiet(&process)?; // the first look at the files is over
            let began = Instant::now();
            process.stop()?;
            stops.push(ms(began.elapsed()));
        }
    }
    let Some((before, after, seconds)) = idle else { return Ok(()) };
    table::row(&[
        files.to_string(),
        figure(ms(after.cpu.saturating_sub(before.cpu)) / seconds),
        figure((after.switches - before.switches) as f64 / seconds),
        format!("{:.1} MB", after.resident_kib as f64 * 1024.0 / MB),
        format!("{:.1} MB", after.of_files_kib as f64 * 1024.0 / MB),
        after.descriptors.to_string(),
        after.threads.to_string(),
        format!("{:.1} ms", median(&starts)),
        format!("{:.1} ms", median(&stops)),
    ]);
    Ok(())
}

/// Until it has used next to no time for a while.
fn until_quiet(process: &Process) -> Result<()> {
    const SPAN: Duration = Duration::from_millis(300);
    let (deadline, mut before) = (Instant::now() + DEADLINE, process.look()?.cpu);
    while Instant::now() < deadline {
        thread::sleep(SPAN);
        let now = process.look()?.cpu;
        if now.saturating_sub(before) < SPAN / 100 {
            return Ok(());
        }
        before = now;
    }
    Err(Error::other("it never became quiet"))
}

/// One line each.
fn write_logs(folder: &Path, files: usize) -> Result<()> {
    fs::create_dir_all(folder)?;
    for number in 0..files {
        let line = format!("file {number:05} seq=0 has one line, and nothing more will ever come\n");
        fs::write(folder.join(format!("{number:05}.log")), line)?;
    }
    Ok(())
}
