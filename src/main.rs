//! `log-capturer`: what was asked for, done, and told by the exit code.

use std::io::Write;
use std::process::ExitCode;

use log_capturer::cli::{self, Command};

/// One heap for all threads: with an arena for each, as the C library has it, what one thread frees another cannot
/// use, and the process stands megabytes above what it holds.
#[cfg(not(feature = "heap"))] // else it is the same one, counted: stats/process.rs
#[global_allocator]
static HEAP: dlmalloc::GlobalDlmalloc = dlmalloc::GlobalDlmalloc;

fn main() -> ExitCode {
    let (text, exit) = match cli::parse(std::env::args_os()) {
        Ok(Command::Run { config, once }) => (String::new(), cli::run::run(&config, once)),
        Ok(Command::Check { config }) => cli::check::run(&config),
        Ok(Command::Audit { config, json }) => cli::audit::run(&config, json),
        Ok(Command::DeadLetter(asked)) => cli::deadletter::run(&asked),
        Err(told) => told,
    };
    // Nobody is left to tell if these are closed (`log-capturer --help | head -1`).
    let _ = match exit {
        cli::Exit::Delivered => std::io::stdout().write_all(text.as_bytes()),
        _ => std::io::stderr().write_all(text.as_bytes()),
    };
    ExitCode::from(exit as u8)
}
