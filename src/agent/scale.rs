//! How large everything may become that can grow, as far as the configuration says: what the leak watch computes
//! its bounds from. Must say the same as the wiring: a test starts the agent and counts.

use super::{DEAD_LETTERS_MAX_BYTES, Orders};
use crate::config::Config;
use crate::error::Result;
use crate::monitors::SourceKind;
use crate::pipeline::StageKind;
use crate::sinks::KindOptions;
use crate::stats::{Footprint, Scale};

/// What was found out while the parts were made.
pub(super) struct Actual {
    /// Before anything was made.
    pub at_start: Result<Footprint>,
    /// Of all sinks together; some have one whatever the configuration says.
    pub connections: usize,
    pub open_files_max: usize,
    /// Generations that the last life has left.
    pub known: usize,
    /// Kept with them.
    pub known_stamps: usize,
    /// A sink that has no spool now has one from an earlier life.
    pub spool_is_left: bool,
}

pub(super) fn of(config: &Config, orders: &Orders<'_>, actual: Actual) -> Scale {
    let has_files = config.sources.iter().any(|source| matches!(source.kind, SourceKind::File(_)));
    let streams = config.sources.iter().filter(|source| matches!(source.kind, SourceKind::Stdin)).count();
    let of_files = if has_files { 2 + usize::from(!orders.once) } else { 0 }; // watch, discovery, files
    let engines = config.sources.iter().filter(|source| matches!(source.kind, SourceKind::Docker(_))).count();
    let workers = super::pool::workers(config);
    let of_path = 1 + 1 + config.sinks.len() + actual.connections + workers + streams + of_files + engines;
    let of_service = 1 + 1 + usize::from(config.status.listen.is_some()) + usize::from(orders.signals);
    let file_sinks = config.sinks.iter().filter(|sink| matches!(sink.kind, KindOptions::File(_))).count();
    let label_stages =
        config.pipeline.iter().filter(|stage| matches!(stage.kind, StageKind::Labels(_))).count();
    let spools_max_bytes = config.spools.iter().flatten().map(|spool| spool.max_bytes).sum();
    Scale {
        at_start: actual.at_start.ok(),         // `stats` meets the same, and says so
        threads: (of_path + of_service) as u64, // ledger, retry, the path; resolver, stats, status, signals
        connections: actual.connections as u64,
        sinks: config.sinks.len() as u64,
        file_sinks: file_sinks as u64,
        workers: workers as u64,
        stages: config.pipeline.len() as u64,
        label_stages: label_stages as u64,
        open_files_max: actual.open_files_max as u64,
        streams: streams as u64,
        engines: engines as u64,
        known: actual.known as u64,
        known_stamps: actual.known_stamps as u64,
        memory_budget: config.agent.memory_budget as u64,
        chunk_bytes: config.memory.chunk_bytes as u64,
        dead_letters_max_bytes: DEAD_LETTERS_MAX_BYTES,
        spools_max_bytes: (!actual.spool_is_left).then_some(spools_max_bytes),
    }
}
