//! The same lines in more and more files, one hot file among quiet ones, a folder full of what is of no interest, and
//! more lines at the start than memory could hold.

use std::fs::{self, OpenOptions};
use std::io::{Result, Write};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use log_capturer_bench::corpus::{self, LINE_BYTES, stamped};

use crate::Bench;
use crate::agent::{self, Setup, Sink};
use crate::process::Process;
use crate::table::{self, MB, figure, ms, percentile};

/// All files together.
const LINES_A_SECOND: u64 = 10_000;

/// Between two rounds of writing.
const STEP: Duration = Duration::from_millis(10);

const QUIET_FILES: u64 = 99;

const FOLDERS: usize = 100;

const DEADLINE: Duration = Duration::from_secs(120);

const BACKLOG_DEADLINE: Duration = Duration::from_secs(900);

pub fn run(bench: &Bench) -> Result<()> {
    println!(
        "\n{LINES_A_SECOND} lines a second, one after the other into so many files, for {} s.",
        bench.latency_for.as_secs()
    );
    table::head(&["files", "CPU µs per line", "p50", "p99", "resident"]);
    for files in [10, 1_000, 10_000] {
        eprintln!("scale: {files} files");
        many_files(bench, files)?;
    }
    eprintln!("scale: a hot file among quiet ones");
    one_hot(bench)?;
    eprintln!("scale: discovery");
    discovery(bench)?;
    eprintln!("scale: a backlog");
    backlog(bench)
}

/// An agent that follows `logs` below a fresh folder, and its status address.
fn start(bench: &Bench, folder: &Path, sink: Sink) -> Result<Process> {
    let status = agent::free_address()?;
    let logs = folder.join("logs/**/*.log");
    let setup = Setup { logs: &logs.to_string_lossy(), sink, memory_budget: "16MiB", status: Some(status) };
    let config = setup.write(folder)?;
    bench.receiver.begin();
    let mut command = agent::command(&bench.agents[0], &config, false);
    let mut process = Process::start(&mut command, &bench.home.join("said.txt"))?;
    agent::until_ready(&mut process, status)?;
    Ok(process)
}

fn logs(folder: &Path) -> Result<PathBuf> {
    let logs = folder.join("logs");
    fs::create_dir_all(&logs)?;
    Ok(logs)
}

/// Appends one stamped line.
fn line(bench: &Bench, path: &Path, number: u64) -> Result<()> {
    let mut file = OpenOptions::new().append(true).create(true).open(path)?;
    file.write_all(&stamped(number, bench.receiver.now_ns()))
}

/// Line `number` goes into file `number` modulo their count, until `bench.latency_for` is over or `done` says so.
fn write_lines(bench: &Bench, paths: &[PathBuf], rate: u64, mut done: impl FnMut() -> bool) -> Result<u64> {
    let (mut written, began) = (0, Instant::now());
    while began.elapsed() < bench.latency_for && !done() {
        let due = (began.elapsed().as_secs_f64() * rate as f64) as u64;
        for number in written..due {
            line(bench, &paths[number as usize % paths.len()], number)?;
        }
        written = due;
        thread::sleep(STEP);
    }
    Ok(written)
}

fn many_files(bench: &Bench, files: usize) -> Result<()> {
    let folder = bench.fresh_folder("run")?;
    let logs = logs(&folder)?;
    let paths: Vec<PathBuf> = (0..files).map(|number| logs.join(format!("{number:05}.log"))).collect();
    for path in &paths {
        line(bench, path, 0)?;
    }
    let mut process = start(bench, &folder, Sink::Loki(bench.receiver.address))?;
    process.until(DEADLINE, || bench.receiver.lines() >= files as u64)?;
    bench.receiver.begin();
    let before = process.look()?;
    let written = write_lines(bench, &paths, LINES_A_SECOND, || false)?;
    process.until(DEADLINE, || bench.receiver.lines() >= written)?;
    let after = process.look()?;
    process.stop()?;
    let travels: Vec<f64> = bench.receiver.travels().into_iter().map(ms).collect();
    let micros = ms(after.cpu.saturating_sub(before.cpu)) * 1e3 / written as f64;
    table::row(&[
        files.to_string(),
        figure(micros),
        format!("{:.1} ms", percentile(&travels, 0.5)),
        format!("{:.1} ms", percentile(&travels, 0.99)),
        format!("{:.1} MB", after.resident_kib as f64 * 1024.0 / MB),
    ]);
    Ok(())
}

/// While a backlog of one file is read at full speed, the others have a line now and then.
fn one_hot(bench: &Bench) -> Result<()> {
    let folder = bench.fresh_folder("run")?;
    let logs = logs(&folder)?;
    let paths: Vec<PathBuf> = (0..QUIET_FILES).map(|number| logs.join(format!("{number:05}.log"))).collect();
    for path in &paths {
        line(bench, path, 0)?;
    }
    let mut process = start(bench, &folder, Sink::SwiftLoki(bench.receiver.address))?;
    process.until(DEADLINE, || bench.receiver.lines() >= QUIET_FILES)?;
    let hot = bench.corpus_bytes * 4 / LINE_BYTES as u64;
    let aside = folder.join("hot");
    corpus::write(&aside, hot)?;
    bench.receiver.begin();
    let began = Instant::now();
    fs::rename(aside, logs.join("hot.log"))?;
    let mut wall = None;
    let written = write_lines(bench, &paths, QUIET_FILES * 10, || bench.receiver.lines() >= hot)?;
    process.until(DEADLINE, || {
        let all = bench.receiver.lines() >= hot + written;
        wall = wall.or(all.then(|| began.elapsed().as_secs_f64()));
        all
    })?;
    process.stop()?;
    let travels: Vec<f64> = bench.receiver.travels().into_iter().map(ms).collect();
    let megabytes = (hot * LINE_BYTES as u64) as f64 / MB;
    println!(
        "\nOne file of {megabytes:.0} MB beside {QUIET_FILES} with ten lines a second each, `max_wait` of 10 ms: {} lines/s \
         of it; the lines of the others arrive after {:.1} ms (p50), {:.1} ms (p99).",
        figure(hot as f64 / wall.unwrap_or(f64::NAN)),
        percentile(&travels, 0.5),
        percentile(&travels, 0.99),
    );
    Ok(())
}

/// A folder with a file, and with many entries that no pattern matches, comes while another file is written to.
fn discovery(bench: &Bench) -> Result<()> {
    let folder = bench.fresh_folder("run")?;
    let (logs, aside) = (logs(&folder)?, folder.join("aside"));
    for number in 0..FOLDERS {
        let many = aside.join(format!("{number:03}"));
        fs::create_dir_all(&many)?;
        for entry in 0..bench.entries / FOLDERS {
            fs::write(many.join(format!("{entry:05}.txt")), "")?;
        }
    }
    // More of them than there will be in the other file, so that their coming is seen.
    let (rate, seconds) = (1_000, bench.latency_for.as_secs());
    let other_lines = rate * (seconds + 1);
    corpus::write(&aside.join(format!("{:03}/last.log", FOLDERS - 1)), 2 * other_lines)?;
    let busy = [logs.join("busy.log")];
    line(bench, &busy[0], 0)?;
    let mut process = start(bench, &folder, Sink::SwiftLoki(bench.receiver.address))?;
    process.until(DEADLINE, || bench.receiver.lines() >= 1)?;
    bench.receiver.begin();
    let began = Instant::now();
    let (mut came, mut found) = (None, None);
    let written = write_lines(bench, &busy, rate, || {
        if came.is_none() && began.elapsed() > bench.latency_for / 3 {
            came = fs::rename(&aside, logs.join("many")).ok().map(|()| Instant::now());
        }
        if let (Some(came), None) = (came, found)
            && bench.receiver.lines() > other_lines
        {
            found = Some(came.elapsed());
        }
        false
    })?;
    process.until(DEADLINE, || bench.receiver.lines() >= written + 2 * other_lines)?;
    process.stop()?;
    let travels: Vec<f64> = bench.receiver.travels().into_iter().map(ms).collect();
    println!(
        "\nA folder with {} entries that do not match, and a file that does: its lines arrive {} after it came. The lines \
         of another file, 1000 a second with a `max_wait` of 10 ms, arrive meanwhile after {:.1} ms (p50), {:.1} ms (p99), \
         {:.1} ms (worst).",
        bench.entries,
        found.map_or("later than the measurement ended".into(), |found| format!("{:.0} ms", ms(found))),
        percentile(&travels, 0.5),
        percentile(&travels, 0.99),
        percentile(&travels, 1.0),
    );
    Ok(())
}

/// One file that nobody has read yet: the corpus, over and over.
fn backlog(bench: &Bench) -> Result<()> {
    let folder = bench.fresh_folder("run")?;
    let (logs, once) = (logs(&folder)?, folder.join("once"));
    let lines = bench.corpus_bytes / LINE_BYTES as u64;
    corpus::write(&once, lines)?;
    let mut file = fs::File::create(logs.join("backlog.log"))?;
    for _ in 0..bench.backlog {
        std::io::copy(&mut fs::File::open(&once)?, &mut file)?;
    }
    let (lines, bytes) = (lines * bench.backlog, file.metadata()?.len() as f64);
    let mut process = start(bench, &folder, Sink::Loki(bench.receiver.address))?;
    let ready = process.began.elapsed();
    process.until(BACKLOG_DEADLINE, || bench.receiver.lines() >= lines)?;
    let wall = process.began.elapsed().as_secs_f64();
    let look = process.look()?;
    let cpu = process.stop()?.cpu.as_secs_f64();
    println!(
        "\nA backlog of {:.1} GB in one file: ready {:.0} ms after the start, delivered after {wall:.1} s, {:.2} s of processor \
         time a GB, peak {:.1} MB.",
        bytes / 1e9,
        ms(ready),
        cpu / (bytes / 1e9),
        look.peak_kib as f64 * 1024.0 / MB,
    );
    Ok(())
}
