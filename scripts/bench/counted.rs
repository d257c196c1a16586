//! The agent itself, with an allocator that counts: `counted CONFIG` delivers what is there and prints how often
//! memory was asked for.

use std::alloc::System;
use std::path::Path;
use std::process::ExitCode;

use log_capturer::cli::run::run;
use log_capturer::cli::{Exit, Once};
use stats_alloc::{INSTRUMENTED_SYSTEM, StatsAlloc};

#[global_allocator]
static COUNTED: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

fn main() -> ExitCode {
    let config = std::env::args().nth(1).unwrap_or_default();
    let exit = run(Path::new(&config), Some(Once { max_time: None }));
    let stats = COUNTED.stats();
    println!("{}", stats.allocations + stats.reallocations);
    if exit == Exit::Delivered { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
