//! What is resident at most while everything is read at full speed, beside what the configuration promises.

use std::fs::{self, File};
use std::io::{Result, copy};
use std::time::Duration;

use log_capturer_bench::corpus::{self, LINE_BYTES};

use crate::Bench;
use crate::agent::{self, Setup, Sink};
use crate::process::Process;
use crate::table::{self, MB};

const DEADLINE: Duration = Duration::from_secs(300);

/// Beside the budget, and for each file: the promise.
const FIXED: f64 = 8e6;
const A_FILE: f64 = 1e3;

pub fn run(bench: &Bench) -> Result<()> {
    println!("\nAt full speed, the same bytes in so many files, to so many Lokis.");
    table::head(&["files", "sinks", "memory_budget", "peak", "budget + 8 MB + 1 KB a file"]);
    for (files, sinks) in [(1, 1), (1, 5), (bench.files, 1), (bench.files, 5)] {
        for (memory_budget, budget) in [("16MiB", 16 << 20), ("2MiB", 2 << 20)] {
            eprintln!("memory: {files} files, {sinks} sinks, {memory_budget}");
            let peak = peak(bench, files, sinks, memory_budget)?;
            table::row(&[
                files.to_string(),
                sinks.to_string(),
                memory_budget.to_owned(),
                format!("{:.1} MB", peak / MB),
                format!("{:.1} MB", (f64::from(budget) + FIXED + A_FILE * files as f64) / MB),
            ]);
        }
    }
    Ok(())
}

fn peak(bench: &Bench, files: u64, sinks: usize, memory_budget: &str) -> Result<f64> {
    let folder = bench.fresh_folder("run")?;
    let (logs, one) = (folder.join("logs"), folder.join("one"));
    fs::create_dir_all(&logs)?;
    let lines = (bench.corpus_bytes / LINE_BYTES as u64 / files).max(1);
    corpus::write(&one, lines)?;
    for number in 0..files {
        copy(&mut File::open(&one)?, &mut File::create(logs.join(format!("{number:05}.log")))?)?;
    }
    let pattern = logs.join("*.log");
    let sink = Sink::Lokis(bench.receiver.address, sinks);
    let config =
        Setup { logs: &pattern.to_string_lossy(), sink, memory_budget, status: None }.write(&folder)?;
    bench.receiver.begin();
    let mut command = agent::command(&bench.agents[0], &config, false);
    let mut process = Process::start(&mut command, &bench.home.join("said.txt"))?;
    process.until(DEADLINE, || bench.receiver.lines() >= lines * files * sinks as u64)?;
    let look = process.look()?;
    process.stop()?;
    Ok(look.peak_kib as f64 * 1024.0)
}
