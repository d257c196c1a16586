//! `log-capturer deadletter`: what sinks have refused: to be looked at, sent once more, or thrown away. With an agent
//! that runs on the same `data_dir`, or without.
//!
//! Always true: a letter leaves its file only after its sink has taken it, or when a purge names it; whatever ends the
//! command, and whenever. Killed in the middle, a replay sends again what it has sent: with the same times and ids.

mod replay;

use std::fmt::Write as _;
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};

use clap::{ArgGroup, Args, Subcommand};

use super::{Exit, check};
use crate::config::Config;
use crate::deadletter::folder::{self, Desk, Lines, Rewrite};
use crate::deadletter::{Kept, Letter};
use crate::error::Result;

/// Show, send again or throw away what sinks have refused (the dead letters).
#[derive(Args)]
pub struct Arguments {
    #[command(subcommand)]
    pub asked: Asked,
}

#[derive(Clone, Debug, PartialEq, Eq, Subcommand)]
pub enum Asked {
    /// Show the letters, the oldest first.
    #[command(after_help = "Exit codes: 0 all were read, 3 some lines are no letters.")]
    List {
        #[command(flatten)]
        which: Which,
        /// Each letter as it stands in its file: one JSON object a line
        #[arg(long)]
        json: bool,
    },
    /// Send the letters to their sinks once more, the oldest first, with the times, labels and ids that they had.
    #[command(after_help = "\
What a sink takes leaves the dead letters; what it refuses again stays, with the new reason. A sink that is ill, or is
not in the configuration, keeps its letters waiting. SIGINT or SIGTERM ends it after the answer that is awaited, a
second one at once; nothing is lost by either. An agent may run on the same data folder.
Exit codes: 0 all went, 3 some are left, 2 wrong configuration.")]
    Replay {
        #[command(flatten)]
        which: Which,
    },
    /// Throw letters away, for good.
    #[command(
        group(ArgGroup::new("chosen").required(true).multiple(true).args(["all", "sink", "source", "reason"])),
        after_help = "Exit codes: 0 they are gone, 2 wrong arguments; what to throw away must be said."
    )]
    Purge {
        #[command(flatten)]
        which: Which,
        /// All of them, and lines that are no letters
        #[arg(long, conflicts_with_all = ["sink", "source", "reason"])]
        all: bool,
    },
}

/// Which letters; all that is given must be true of one.
#[derive(Clone, Debug, Default, PartialEq, Eq, Args)]
pub struct Which {
    /// The configuration, JSON
    #[arg(short, long, value_name = "FILE")]
    config: PathBuf,
    /// Only of this sink
    #[arg(long, value_name = "NAME")]
    sink: Option<String>,
    /// Only of this source
    #[arg(long, value_name = "NAME")]
    source: Option<String>,
    /// Only those whose reason contains this
    #[arg(long, value_name = "TEXT")]
    reason: Option<String>,
}

impl Which {
    fn takes(&self, letter: &Letter) -> bool {
        let is = |wanted: &Option<String>, there: &str| wanted.as_ref().is_none_or(|wanted| wanted == there);
        is(&self.sink, &letter.sink)
            && is(&self.source, &letter.source)
            && self.reason.as_ref().is_none_or(|part| letter.reason.contains(part))
    }
}

/// What to print at the end, and how to end; see `main`.
pub fn run(asked: &Asked) -> (String, Exit) {
    let (Asked::List { which, .. } | Asked::Replay { which } | Asked::Purge { which, .. }) = asked;
    let config = match Config::load(&which.config) {
        Ok(config) => config,
        Err(complaints) => return (check::complain(&which.config, &complaints), Exit::Usage),
    };
    let folder = config.agent.data_dir.join("deadletter");
    let done = match asked {
        Asked::List { json, .. } => list(&folder, which, *json),
        Asked::Replay { .. } => replay::run(&config, &folder, which),
        Asked::Purge { all, .. } => purge(&folder, which, *all),
    };
    done.unwrap_or_else(|error| (format!("{error}\n"), Exit::Fault))
}

/// `3 letters`, `1 letter`.
fn letters(count: usize) -> String {
    if count == 1 { "1 letter".into() } else { format!("{count} letters") }
}

/// On one line, at most so many characters of it.
fn short(text: &str, most: usize) -> String {
    let mut shown: String = text.trim_end().chars().take(most).flat_map(char::escape_debug).collect();
    if text.trim_end().chars().nth(most).is_some() {
        shown.push('…');
    }
    shown
}

fn row(kept: &Kept<Letter>) -> String {
    let letter = &kept.letter;
    let text =
        letter.bytes().map_or_else(|_| "?".into(), |bytes| String::from_utf8_lossy(&bytes).into_owned());
    let time = kept.time.get(..19).unwrap_or(&kept.time);
    let (sink, source) = (short(&letter.sink, 16), short(&letter.source, 16));
    format!("{time:19}  {sink:16}  {source:16}  {:40}  {}\n", short(&letter.reason, 40), short(&text, 60))
}

/// A file may be moved aside or replaced while it is read: that shows some letters twice or not at all, and harms none.
fn list(folder: &Path, which: &Which, json: bool) -> Result<(String, Exit)> {
    let mut out = std::io::BufWriter::new(std::io::stdout().lock());
    let (mut count, mut strange) = (0, 0);
    let show = |out: &mut dyn Write, text: &[u8]| match out.write_all(text) {
        Err(cause) if cause.kind() == ErrorKind::BrokenPipe => false, // `| head` has seen enough
        _ => true,
    };
    for path in folder::files(folder)? {
        for line in Lines::open(&path)?.into_iter().flatten() {
            let line = line?;
            let Some(kept) = line.kept else {
                strange += 1;
                continue;
            };
            if !which.takes(&kept.letter) {
                continue;
            }
            if count == 0 && !json {
                let (time, sink, source, reason) = ("TIME", "SINK", "SOURCE", "REASON");
                show(&mut out, format!("{time:19}  {sink:16}  {source:16}  {reason:40}  TEXT\n").as_bytes());
            }
            count += 1;
            let text = match json {
                true => serde_json::to_string(&kept).unwrap_or_default() + "\n",
                false => row(&kept),
            };
            if !show(&mut out, text.as_bytes()) {
                return Ok((String::new(), Exit::Delivered));
            }
        }
    }
    if !json {
        show(&mut out, format!("{}\n", letters(count)).as_bytes());
    }
    let _ = out.flush(); // nobody is left to tell
    Ok(match strange {
        0 => (String::new(), Exit::Delivered),
        _ => (
            format!("lines that are no letters, half written or not by log-capturer: {strange}\n"),
            Exit::Pending,
        ),
    })
}

fn purge(folder: &Path, which: &Which, all: bool) -> Result<(String, Exit)> {
    let (mut gone, mut strange) = (0, 0);
    if let Some(desk) = Desk::take(folder)? {
        for path in desk.clear()? {
            let mut rest = Rewrite::of(&path);
            let mut here = (0, 0);
            for line in Lines::open(&path)?.into_iter().flatten() {
                let line = line?;
                match line.kept {
                    Some(kept) if all || which.takes(&kept.letter) => here.0 += 1,
                    None if all => here.1 += 1,
                    _ => rest.keep(&line.raw)?,
                }
            }
            rest.finish()?;
            gone += here.0;
            strange += here.1;
        }
    }
    let mut says = format!("purged {}", letters(gone));
    if strange > 0 {
        let _ = write!(says, ", and lines that were none: {strange}"); // a String takes all
    }
    Ok((says + "\n", Exit::Delivered))
}
