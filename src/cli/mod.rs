//! The command line: what was asked for, and how it ends.
//!
//! [`parse`] is pure: it prints nothing and ends nothing, `main` does. One file per subcommand.

pub mod audit;
pub mod check;
pub mod deadletter;
#[cfg(test)]
mod faults;
pub mod run;

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use clap::error::ErrorKind;
use clap::{Args, Parser, Subcommand};

pub use crate::agent::Exit;
use crate::config;

/// What was asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    Run { config: PathBuf, once: Option<Once> },
    Check { config: PathBuf },
    Audit { config: PathBuf, json: bool },
    DeadLetter(deadletter::Asked),
}

/// Deliver what is there now, and end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Once {
    /// `None`: as long as something moves.
    pub max_time: Option<Duration>,
}

const EXAMPLES: &str = "\
Examples:
  log-capturer check --config config.json    what would be captured, and is it right?
  log-capturer --config config.json          capture until SIGTERM or SIGINT
  log-capturer run --once --max-time 50s --config config.json    for cron
  log-capturer audit --config config.json    is anything missing?
  log-capturer deadletter list --config config.json    what was refused, and why

Exit codes:
  0  everything is delivered, dropped by a rule, or kept as a dead letter
  1  a fault of log-capturer itself, or it could not start (the log says why)
  2  wrong arguments or configuration; nothing was started
  3  stopped with data pending: in its files, a spool or the dead letters (the log says where)
  4  a thread did not end in time
  5  another instance uses the same data folder";

/// Captures log files and delivers them to Loki, files or standard output; nothing leaks, is lost or is doubled.
#[derive(Parser)]
#[command(name = "log-capturer", version, after_help = EXAMPLES)]
struct Arguments {
    #[command(subcommand)]
    command: Asked,
}

#[derive(Subcommand)]
enum Asked {
    Run(RunArguments),
    Check(CheckArguments),
    Audit(AuditArguments),
    #[command(name = "deadletter")]
    DeadLetter(deadletter::Arguments),
}

/// Capture and deliver (the default: `log-capturer --config FILE` does the same).
#[derive(Args)]
#[command(after_help = "\
SIGTERM or SIGINT stops it within agent.stop_timeout (10s); a second one at once. SIGHUP reads the configuration
again and starts anew with it; a wrong one changes nothing. Where it stands is kept in agent.data_dir: the next
start goes on there. RUST_LOG=debug shows more of what it does.")]
struct RunArguments {
    /// The configuration, JSON
    #[arg(short, long, value_name = "FILE")]
    config: PathBuf,

    /// Deliver everything that is there now, wait for the answers and end (exit code 0; 3 if something is left). Without a terminal it is quiet when all went well
    #[arg(long)]
    once: bool,

    /// With --once: end after this time (such as 50s) even if something is left; without it, when nothing has
    /// moved for 30s
    #[arg(long, value_name = "TIME", requires = "once", value_parser = time)]
    max_time: Option<Duration>,
}

/// Say what a configuration does, or everything that is wrong with it; starts nothing, creates nothing.
#[derive(Args)]
#[command(after_help = "Exit codes: 0 it is right, 2 it is not.")]
struct CheckArguments {
    /// The configuration, JSON
    #[arg(short, long, value_name = "FILE")]
    config: PathBuf,
}

/// Say of every file what was read, delivered, given up and is left, and whether anything is missing; changes nothing.
#[derive(Args)]
#[command(after_help = "\
While an agent runs on the same agent.data_dir, or while none does; beside one that runs it is as old as its last
checkpoint (agent.sync_interval).
Exit codes: 0 nothing is missing, 3 something is, 2 wrong configuration.")]
struct AuditArguments {
    /// The configuration, JSON
    #[arg(short, long, value_name = "FILE")]
    config: PathBuf,

    /// All of it as JSON
    #[arg(long)]
    json: bool,
}

fn time(text: &str) -> Result<Duration, String> {
    let wrong = || "not a time; write it like 50s, 250ms or 1m30s".to_owned();
    config::duration(text).filter(|time| !time.is_zero()).ok_or_else(wrong)
}

/// `arguments`: with the program's name first. The error is what is to be printed before the end: to standard
/// output with [`Exit::Delivered`] (`--help`, `--version`), to standard error with [`Exit::Usage`].
pub fn parse(arguments: impl IntoIterator<Item = OsString>) -> Result<Command, (String, Exit)> {
    let mut arguments: Vec<OsString> = arguments.into_iter().collect();
    // `run` is the default: whoever begins with an option, and does not ask for help, means it.
    let first = arguments.get(1).map_or("--", |first| first.to_str().unwrap_or_default());
    if first.starts_with('-') && !["-h", "--help", "-V", "--version"].contains(&first) {
        arguments.insert(1, "run".into());
    }
    let asked = Arguments::try_parse_from(arguments).map_err(|error| {
        let told = matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion);
        (error.render().to_string(), if told { Exit::Delivered } else { Exit::Usage })
    })?;
    Ok(match asked.command {
        Asked::Run(RunArguments { config, once, max_time }) => {
            Command::Run { config, once: once.then_some(Once { max_time }) }
        }
        Asked::Check(CheckArguments { config }) => Command::Check { config },
        Asked::Audit(AuditArguments { config, json }) => Command::Audit { config, json },
        Asked::DeadLetter(asked) => Command::DeadLetter(asked.asked),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(line: &str) -> Result<Command, (String, Exit)> {
        parse(std::iter::once("log-capturer").chain(line.split_whitespace()).map(OsString::from))
    }

    #[test]
    fn what_is_asked_for() {
        let config = || PathBuf::from("c.json");
        let run = |once| Command::Run { config: config(), once };
        for (line, expected) in [
            ("--config c.json", run(None)),
            ("-c c.json", run(None)),
            ("run --config c.json", run(None)),
            ("run --config=c.json --once", run(Some(Once { max_time: None }))),
            ("--once --config c.json", run(Some(Once { max_time: None }))),
            (
                "run --once --max-time 1m30s --config c.json",
                run(Some(Once { max_time: Some(Duration::from_secs(90)) })),
            ),
            ("check --config c.json", Command::Check { config: config() }),
            ("audit --config c.json", Command::Audit { config: config(), json: false }),
            ("audit -c c.json --json", Command::Audit { config: config(), json: true }),
        ] {
            assert_eq!(ask(line), Ok(expected), "{line}");
        }
    }

    #[test]
    fn wrong_arguments_are_usage_and_say_why() {
        for (line, expected) in [
            ("", "--config"),
            ("run", "--config"),
            ("check", "--config"),
            ("chekc --config c.json", "'chekc'"),
            ("run --config c.json --max-time 5s", "--once"),
            ("run --config c.json --once --max-time 5", "50s"),
            ("run --config c.json --once --max-time 0s", "50s"),
            ("run --config c.json --conifg d.json", "--conifg"),
            ("check --config c.json --once", "--once"),
            ("deadletter", "replay"),
            ("deadletter list", "--config"),
            ("deadletter purge --config c.json", "--all"),
            ("deadletter purge --config c.json --all --sink loki", "--sink"),
            ("deadletter replay --config c.json --json", "--json"),
        ] {
            let (says, exit) = ask(line).unwrap_err();
            assert_eq!(exit, Exit::Usage, "{line}");
            assert!(says.contains(expected), "{line}: {says}");
        }
    }

    #[test]
    fn help_suffices_and_is_no_error() {
        for (line, expected) in [
            ("--help", "check --config config.json"),
            ("--help", "another instance"),
            ("run --help", "--max-time"),
            ("check --help", "Exit codes: 0"),
            ("deadletter --help", "purge"),
            ("deadletter list --help", "--json"),
            ("deadletter replay --help", "3 some are left"),
            ("deadletter purge --help", "Only of this sink"),
            ("--version", env!("CARGO_PKG_VERSION")),
        ] {
            let (says, exit) = ask(line).unwrap_err();
            assert_eq!(exit, Exit::Delivered, "{line}");
            assert!(says.contains(expected), "{line}: {says}");
        }
    }
}
