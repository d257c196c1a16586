//! Nothing grows: the agent started and stopped over and over, and files that come and go by the thousand.
//!
//! A process of its own, since it counts: its threads, its descriptors and every byte on its heap, which no
//! other test may share. So it is one test, whose parts follow each other. The agent runs inside, as
//! `agent::run` in a thread; `house` starts it and measures, `receiver` is a Loki that allocates nothing it keeps.
//!
//! `cargo test` runs a short form; `make cycles` the whole one, optimised, and prints its figures.

mod churn;
mod house;
mod idle;
mod lives;
mod receiver;
mod reloads;
mod speed;

use std::alloc::System;

use stats_alloc::{INSTRUMENTED_SYSTEM, StatsAlloc};

#[global_allocator]
static HEAP: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

/// How often, or how many: the environment's word, or what `cargo test` has time for.
fn amount(variable: &str, short: u64) -> u64 {
    let asked = std::env::var(variable).ok();
    asked.map_or(short, |text| text.parse().unwrap_or_else(|_| panic!("{variable}={text} is not a number")))
}

#[test]
fn nothing_grows() {
    house::listen_to_the_log();
    house::grow_the_parking_lot();
    idle::an_idle_file_takes_a_kilobyte();
    speed::a_backlog_takes_no_memory_for_its_lines();
    lives::many_lives_in_one_process(amount("LOG_CAPTURER_CYCLES", 150));
    reloads::many_reloads(amount("LOG_CAPTURER_RELOADS", 50));
    churn::files_that_come_and_go(amount("LOG_CAPTURER_CHURN", 3_000));
}
