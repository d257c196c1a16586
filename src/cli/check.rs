//! `log-capturer check`: what a configuration does, or everything that is wrong with it.
//!
//! Reads the configuration and what it names; creates nothing, opens no connection.

use std::fmt::Write;
use std::path::Path;

use super::Exit;
use crate::config::{Complaint, Config, describe_sink, figure, show_duration};
use crate::monitors::container::labels::ENABLE;
use crate::monitors::{SourceKind, StartAt};
use crate::spool::WhenFull;

/// What to print, with a line break at its end, and how to end: to standard output with [`Exit::Delivered`], to
/// standard error with [`Exit::Usage`].
pub fn run(path: &Path) -> (String, Exit) {
    match Config::load(path) {
        Ok(config) => (describe(path, &config), Exit::Delivered),
        Err(complaints) => (complain(path, &complaints), Exit::Usage),
    }
}

/// All complaints, one a line; for a refused start too.
pub fn complain(path: &Path, complaints: &[Complaint]) -> String {
    let mut text = match complaints.len() {
        1 => format!("{}: 1 complaint\n", path.display()),
        n => format!("{}: {n} complaints\n", path.display()),
    };
    for complaint in complaints {
        let _ = writeln!(text, "  {complaint}"); // a String takes all
    }
    text
}

fn describe(path: &Path, config: &Config) -> String {
    let mut text = format!("{}: good\n", path.display());
    // A String takes all: no write can fail.
    for source in &config.sources {
        let _ = writeln!(text, "source {}:", source.name);
        if let SourceKind::Docker(options) = &source.kind {
            let _ = writeln!(text, "  captures the containers of {}", options.address);
            let labels: Vec<&str> = options.labels.iter().map(|(name, _)| &**name).collect();
            let _ = writeln!(text, "  labels them with {}", labels.join(", "));
            if options.choice.opt_in {
                let _ = writeln!(text, "  only those that ask for it (the label {ENABLE})");
            }
            if options.start_at == StartAt::End {
                let _ =
                    writeln!(text, "  from the moment on at which it meets its engine for the first time");
            }
        } else if let SourceKind::File(file) = &source.kind {
            let _ = writeln!(text, "  captures {}", file.include.join(", "));
            if !file.exclude.is_empty() {
                let _ = writeln!(text, "  but not {}", file.exclude.join(", "));
            }
            if file.start_at == StartAt::End {
                let _ = writeln!(text, "  at the first start, from the end of what is there");
            }
            let held = figure(usize::try_from(file.hold_deleted.max_bytes).unwrap_or(usize::MAX));
            let _ = writeln!(text, "  holds deleted files open until they are read, up to {held}");
        } else {
            let _ = writeln!(text, "  captures standard input");
        }
        let _ = writeln!(text, "  lines of up to {} stay whole", figure(source.max_line_bytes));
    }
    for (sink, spool) in config.sinks.iter().zip(&config.spools) {
        let _ = writeln!(
            text,
            "sink {}:\n  delivers to {}\n  in batches of up to {} or {} lines, sent after {} at the latest, over {}",
            sink.name,
            describe_sink(sink),
            figure(sink.batch.max_bytes),
            sink.batch.max_lines,
            show_duration(sink.batch.max_wait),
            if sink.connections == 1 {
                "1 connection".into()
            } else {
                format!("{} connections", sink.connections)
            },
        );
        let _ = match spool {
            Some(spool) => writeln!(
                text,
                "  what it cannot take for {} waits in a spool of up to {}; when that is full, {}",
                show_duration(spool.after),
                figure(usize::try_from(spool.max_bytes).unwrap_or(usize::MAX)),
                match spool.when_full {
                    WhenFull::Wait => "its sources wait",
                    WhenFull::DropOldest => "the oldest is dropped",
                },
            ),
            None => writeln!(text, "  has no spool: while it is ill, its sources wait"),
        };
    }
    let memory = &config.memory;
    let _ = writeln!(
        text,
        "memory: at most {} under way: {} of lines, {} out of spools, {} of encoded batches; the longest record is {}",
        figure(memory.budget),
        figure(memory.chunk_bytes),
        figure(memory.spool_bytes * config.spools.iter().flatten().count()),
        figure(memory.batch_bytes),
        figure(memory.max_record_bytes),
    );
    let _ = writeln!(text, "state: {}", config.agent.data_dir.display());
    let status = config.status.listen.map_or("none".into(), |listen| format!("http://{listen}/"));
    let _ = writeln!(text, "status page: {status}");
    text
}
