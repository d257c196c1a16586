//! `log-capturer run`: the agent in the foreground, its log on standard error, progress on a terminal.

use std::io::{IsTerminal, Write};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::{Exit, Once, check};
use crate::agent::{self, Load, Orders};
use crate::config::{Complaint, Config, figure};
use crate::ledger::Books;

pub fn run(path: &Path, once: Option<Once>) -> Exit {
    let config = match Config::load(path) {
        Ok(config) => config,
        Err(complaints) => {
            // A standard error that is closed leaves nobody to tell.
            let _ = std::io::stderr().write_all(check::complain(path, &complaints).as_bytes());
            return Exit::Usage;
        }
    };
    let watched = std::io::stderr().is_terminal();
    // cron mails every word: a run that went well has none.
    log_to_stderr(if once.is_some() && !watched { "warn" } else { "info" });
    log::info!("log-capturer {}: {}", env!("CARGO_PKG_VERSION"), config.summary());
    let progress = (once.is_some() && watched).then_some(&show as &(dyn Fn(&Books) + Sync));
    let exit = agent::run(
        config,
        &Orders {
            once: once.is_some(),
            max_time: once.and_then(|once| once.max_time),
            signals: true,
            reload: once.is_none().then(|| again(path)),
            progress,
            stop: None,
        },
    );
    if PROGRESS_STANDS.swap(false, Ordering::Relaxed) {
        let _ = writeln!(std::io::stderr());
    }
    exit
}

/// Reads the configuration for a reload. Not from a pipe: it was read to its end at the start.
fn again(path: &Path) -> Load {
    let path = path.to_owned();
    Arc::new(move || match std::fs::metadata(&path) {
        Ok(metadata) if !metadata.is_file() => {
            let says = "is no file that could be read again; restart to change the configuration";
            Err(vec![Complaint::new(path.display().to_string(), says)])
        }
        _ => Config::load(&path),
    })
}

/// The last thing on the terminal is a line of progress without an end.
static PROGRESS_STANDS: AtomicBool = AtomicBool::new(false);

/// One line that overwrites itself.
fn show(books: &Books) {
    let pending: u64 = books.sinks.iter().map(|sink| sink.pending).sum();
    let dead: u64 = books.sinks.iter().map(|sink| sink.dead_lettered.lines).sum();
    let bytes = figure(usize::try_from(books.read.bytes).unwrap_or(usize::MAX));
    let line =
        format!("{} lines ({bytes}) read, {pending} waiting for an answer, {dead} refused", books.read.lines);
    let _ = write!(std::io::stderr(), "\r\x1b[K{line}");
    PROGRESS_STANDS.store(true, Ordering::Relaxed);
}

/// `2026-01-31T12:00:00.123Z INFO  what happened`. `RUST_LOG` chooses more or less than `level` and above.
fn log_to_stderr(level: &str) {
    let environment = env_logger::Env::default().default_filter_or(level);
    env_logger::Builder::from_env(environment)
        .format(|out, record| {
            let now = jiff::Timestamp::from_nanosecond(i128::from(crate::clock::Clock::real().wall_ns()));
            let now = now.unwrap_or_default();
            if PROGRESS_STANDS.swap(false, Ordering::Relaxed) {
                writeln!(out)?;
            }
            writeln!(out, "{now:.3} {:<5} {}", record.level(), record.args())
        })
        .init();
}
