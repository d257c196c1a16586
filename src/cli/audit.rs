//! `log-capturer audit`: what the ledger says beside what stands on the disk; what is missing, if anything is.
//!
//! Reads the newest checkpoint, the journal behind it, the spools, the heads of the files and, of what was compressed,
//! all, while an agent runs on the same `data_dir` or none does; takes no lock, writes nothing. Beside an agent it is as
//! old as its last checkpoint.
//!
//! Missing is: what was not read of a file that matches; what was read and a configured sink has not answered for, be
//! it in a spool; what was given up. A dead letter is an answer, and so is a line that a rule has dropped.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::Write;
use std::path::Path;
use std::sync::Arc;

use serde::Serialize;

use super::{Exit, check};
use crate::config::Config;
use crate::disk::{Disk, ReadOnlyDisk};
use crate::error::Result;
use crate::ledger::{self, GenerationView, HOLE, Known};
use crate::monitors::Off;
use crate::monitors::file::survey::{Standing, Survey, survey};
use crate::sinks;
use crate::spool;

/// What was found, as `--json` prints it.
#[derive(Debug, Default, Serialize)]
struct Report {
    files: Vec<FileReport>,
    /// Files that match and of which nothing was read yet.
    not_begun: Vec<Stranger>,
    /// Files that match and have no lines.
    passed_over: Vec<Stranger>,
    spools: Vec<SpoolReport>,
    /// Folders and files that could not be looked into to their end.
    unsure: Vec<String>,
    missing: Missing,
    nothing_is_missing: bool,
}

#[derive(Debug, Serialize)]
struct FileReport {
    /// Its name now; `None`: it is gone, or its file system is.
    stands_at: Option<String>,
    /// Of what is in it, if it is packed.
    size: Option<u64>,
    /// It was compressed since.
    packed: bool,
    /// Bytes that stand there and were not read.
    unread: u64,
    /// Its source has left the configuration: nobody reads on.
    source_is_gone: bool,
    #[serde(flatten)]
    ledger: GenerationView,
}

#[derive(Debug, Serialize)]
struct Stranger {
    path: String,
    size: u64,
    source: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    because: Option<String>,
}

#[derive(Debug, Serialize)]
struct SpoolReport {
    sink: String,
    lines: u64,
    bytes: u64,
    /// It has left the configuration: kept until it returns.
    sink_is_gone: bool,
}

/// In bytes, but for the spools.
#[derive(Debug, Default, PartialEq, Serialize)]
struct Missing {
    unread: u64,
    /// By sink.
    pending: BTreeMap<String, u64>,
    spooled_lines: BTreeMap<String, u64>,
    given_up: BTreeMap<String, u64>,
    /// Folders and files that could not be looked into to their end.
    unsure: usize,
}

/// What to print if it could not be done, and how to end; else it is printed already.
pub fn run(path: &Path, json: bool) -> (String, Exit) {
    let config = match Config::load(path) {
        Ok(config) => config,
        Err(complaints) => return (check::complain(path, &complaints), Exit::Usage),
    };
    let report = match look(&config) {
        Ok(report) => report,
        Err(cause) => return (format!("{cause}\n"), Exit::Fault),
    };
    let text = if json { as_json(&report) } else { describe(&report) };
    // Nobody is left to tell if it is closed.
    let _ = std::io::stdout().write_all(text.as_bytes());
    (String::new(), if report.nothing_is_missing { Exit::Delivered } else { Exit::Pending })
}

fn look(config: &Config) -> Result<Report> {
    let data_dir = &config.agent.data_dir;
    let disk: Arc<dyn Disk> = Arc::new(ReadOnlyDisk);
    let names: Vec<Arc<str>> = config.sinks.iter().map(|sink| sink.name.clone()).collect();
    let audited = ledger::audit(&disk, &data_dir.join("ledger"), &names);
    let known: Vec<&Known> = audited.generations.iter().map(|(_, known)| known).collect();
    let off = Off { folders: vec![data_dir.clone()] };
    let outputs = sinks::output_globs(&config.sinks);
    let Survey { mut standing, strangers, unsure } =
        survey(&config.sources, off, outputs, &audited.own_files, &known, audited.last_stamp_ns)?;
    let mut report = Report::default();
    for (ledger, known) in audited.generations {
        let stands = standing.remove(&known.generation);
        let source_is_gone = !config.sources.iter().any(|source| source.name == known.source);
        report.files.push(file_report(ledger, stands, source_is_gone));
    }
    for stranger in strangers {
        let source = config.sources[stranger.source].name.to_string();
        let because = stranger.passed_over.map(str::to_owned);
        let path = stranger.path.to_string_lossy().into_owned();
        let list = if because.is_some() { &mut report.passed_over } else { &mut report.not_begun };
        list.push(Stranger { path, size: stranger.size, source, because });
    }
    for found in spool::survey(&*disk, &data_dir.join("spool"))? {
        let sink_is_gone = !names.iter().any(|name| **name == *found.sink);
        let (sink, lines, bytes) = (found.sink, found.count.lines, found.count.bytes);
        report.spools.push(SpoolReport { sink, lines, bytes, sink_is_gone });
    }
    report.unsure = unsure.iter().map(|folder| folder.display().to_string()).collect();
    report.missing = missing(&report);
    report.nothing_is_missing = report.missing == Missing::default();
    Ok(report)
}

fn file_report(ledger: GenerationView, stands: Option<Standing>, source_is_gone: bool) -> FileReport {
    let unread = stands.as_ref().map_or(0, |stands| stands.size.saturating_sub(ledger.known_to));
    FileReport {
        size: stands.as_ref().map(|stands| stands.size),
        packed: stands.as_ref().is_some_and(|stands| stands.packed),
        stands_at: stands.map(|stands| stands.path.display().to_string()),
        unread,
        source_is_gone,
        ledger,
    }
}

fn missing(report: &Report) -> Missing {
    let mut missing = Missing { unsure: report.unsure.len(), ..Missing::default() };
    let add = |list: &mut BTreeMap<String, u64>, name: &str, sum: u64| {
        if sum > 0 {
            *list.entry(name.to_owned()).or_default() += sum;
        }
    };
    for file in &report.files {
        missing.unread += file.unread;
        for sink in file.ledger.sinks.iter().filter(|sink| !sink.former) {
            add(&mut missing.pending, &sink.name, sink.pending);
        }
        for (why, bytes) in file.ledger.given_up_because.iter().filter(|(why, _)| why != HOLE) {
            add(&mut missing.given_up, why, *bytes);
        }
    }
    missing.unread += report.not_begun.iter().map(|file| file.size).sum::<u64>();
    for spool in report.spools.iter().filter(|spool| !spool.sink_is_gone) {
        add(&mut missing.spooled_lines, &spool.sink, spool.lines);
    }
    missing
}

fn as_json(report: &Report) -> String {
    match serde_json::to_string_pretty(report) {
        Ok(text) => text + "\n",
        Err(cause) => format!("{{ \"error\": \"{cause}\" }}\n"),
    }
}

/// One paragraph a file, and the line that says it all at the end. A String takes all: no write can fail.
fn describe(report: &Report) -> String {
    let mut text = String::new();
    for file in &report.files {
        describe_file(&mut text, file);
    }
    for file in &report.not_begun {
        let _ =
            writeln!(text, "{} (source {})\n  size {}, nothing read yet", file.path, file.source, file.size);
    }
    for file in &report.passed_over {
        let _ = writeln!(
            text,
            "{}: passed over, it is {}",
            file.path,
            file.because.as_deref().unwrap_or("empty")
        );
    }
    for SpoolReport { sink, lines, bytes, sink_is_gone } in
        report.spools.iter().filter(|spool| spool.lines > 0)
    {
        let gone = if *sink_is_gone { ", which is not configured: they wait until it returns" } else { "" };
        let _ = writeln!(text, "{lines} lines ({bytes} bytes) in the spool of {sink}{gone}");
    }
    for folder in &report.unsure {
        let _ = writeln!(text, "{folder} could not be looked into to its end");
    }
    text + &closing_line(&report.missing)
}

fn describe_file(text: &mut String, file: &FileReport) {
    let FileReport { stands_at, size, packed, unread, source_is_gone, ledger } = file;
    let name = ledger.filename.as_deref().unwrap_or("a stream");
    let _ = write!(text, "{name} (source {}", ledger.source);
    if *source_is_gone {
        let _ = write!(text, ", which is not configured: nobody reads on");
    }
    let _ = writeln!(text, "; generation {})", ledger.generation);
    match (stands_at, size) {
        (Some(path), Some(size)) => {
            let now = if path == name { String::new() } else { format!(", now {path}") };
            let packed = if *packed { ", compressed" } else { "" };
            let _ = writeln!(text, "  size {size}, read {}, unread {unread}{now}{packed}", ledger.known_to);
        }
        _ => {
            let found = if ledger.filename.is_some() { "not found on the disk, " } else { "" };
            let _ = writeln!(text, "  {found}read {}", ledger.known_to);
        }
    }
    for sink in &ledger.sinks {
        let acked = ledger.known_to - sink.pending;
        let gone = if sink.former { " (not configured: asked again when it returns)" } else { "" };
        let _ = writeln!(text, "  {}: acknowledged {acked}, pending {}{gone}", sink.name, sink.pending);
    }
    for (why, bytes) in &ledger.given_up_because {
        let _ = writeln!(text, "  given up {bytes}: {why}");
    }
}

fn closing_line(missing: &Missing) -> String {
    let Missing { unread, pending, spooled_lines, given_up, unsure } = missing;
    let mut parts = Vec::new();
    if *unread > 0 {
        parts.push(format!("{unread} bytes not read"));
    }
    parts.extend(pending.iter().map(|(sink, bytes)| format!("{bytes} bytes pending for {sink}")));
    parts.extend(spooled_lines.iter().map(|(sink, lines)| format!("{lines} lines in the spool of {sink}")));
    parts.extend(given_up.iter().map(|(why, bytes)| format!("{bytes} bytes given up ({why})")));
    if *unsure > 0 {
        parts.push(format!("{unsure} folders or files not looked into to their end"));
    }
    match parts.is_empty() {
        true => "nothing is missing\n".into(),
        false => format!("missing: {}\n", parts.join(", ")),
    }
}

#[cfg(test)]
mod tests;
