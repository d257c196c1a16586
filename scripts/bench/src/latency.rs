//! How long a line is on its way from the write to the receiver, at a steady rate.

use std::fs::File;
use std::io::{Result, Write};
use std::thread;
use std::time::{Duration, Instant};

use log_capturer_bench::corpus::stamped;

use crate::Bench;
use crate::agent::{self, Setup, Sink};
use crate::process::Process;
use crate::table::{self, ms, percentile};

/// Between two writes.
const STEP: Duration = Duration::from_millis(1);

const DEADLINE: Duration = Duration::from_secs(30);

pub fn run(bench: &Bench) -> Result<()> {
    println!(
        "\nFrom a line's write to its receipt, at a steady rate for {} s, with the default `max_wait` of 1 s.",
        bench.latency_for.as_secs()
    );
    table::head(&["lines a second", "p50", "p99", "worst"]);
    for rate in [1_000, 100_000] {
        eprintln!("latency: {rate} lines/s");
        let travels = one(bench, rate)?;
        let at = |part| format!("{:.1} ms", percentile(&travels, part));
        table::row(&[rate.to_string(), at(0.5), at(0.99), at(1.0)]);
    }
    Ok(())
}

/// In milliseconds.
fn one(bench: &Bench, rate: u64) -> Result<Vec<f64>> {
    let folder = bench.fresh_folder("run")?;
    let logs = folder.join("app.log");
    let mut out = File::create(&logs)?;
    let status = agent::free_address()?;
    let sink = Sink::Loki(bench.receiver.address);
    let setup = Setup { logs: &logs.to_string_lossy(), sink, memory_budget: "16MiB", status: Some(status) };
    let config = setup.write(&folder)?;
    bench.receiver.begin();
    let mut command = agent::command(&bench.agents[0], &config, false);
    let mut process = Process::start(&mut command, &bench.home.join("said.txt"))?;
    agent::until_ready(&mut process, status)?;

    let (mut written, began) = (0, Instant::now());
    while began.elapsed() < bench.latency_for {
        let due = (began.elapsed().as_secs_f64() * rate as f64) as u64;
        let lines: Vec<u8> =
            (written..due).flat_map(|number| stamped(number, bench.receiver.now_ns())).collect();
        out.write_all(&lines)?;
        written = due;
        thread::sleep(STEP);
    }
    process.until(DEADLINE, || bench.receiver.lines() >= written)?;
    process.stop()?;
    Ok(bench.receiver.travels().into_iter().map(ms).collect())
}
