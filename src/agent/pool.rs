//! What lines pass between a monitor and the lanes: the pool of workers, or nothing.

use std::sync::Arc;

use crate::config::Config;
use crate::deadletter::DeadLetters;
use crate::dispatcher::worker::Worker;
use crate::error::{Error, Result};
use crate::metrics::Registry;
use crate::monitors::Onward;
use crate::pipeline::Pipeline;
use crate::record::Dealer;
use crate::tasks::{Post, Stop, Wires};

/// Chunks on their way to one worker: as many small ones as come while it lingers. What they may take in memory the
/// budget says.
const INTAKE_CHUNKS: usize = 128;

/// What each worker has.
pub(super) struct Tools<'a> {
    pub config: &'a Config,
    pub sinks: &'a [Arc<str>],
    pub dealer: Dealer,
    pub stop: &'a Stop,
    pub dead_letters: &'a DeadLetters,
    pub metrics: &'a Registry,
}

/// How many there are: none where no line is looked at.
pub(super) fn workers(config: &Config) -> usize {
    if config.pipeline.is_empty() { 0 } else { config.agent.workers }
}

/// The bodies of the threads, and the way to them: nobody else keeps a dealer.
pub(super) fn wire(tools: Tools<'_>, wires: &mut Wires) -> Result<(Vec<Worker>, Onward)> {
    let Tools { config, sinks, dealer, stop, dead_letters, metrics } = tools;
    let (mut pool, mut intakes) = (Vec::new(), Vec::new());
    for _ in 0..workers(config) {
        let (intake, intake_end) = wires.downhill("chunks", &[Post::Monitor], Post::Worker, INTAKE_CHUNKS);
        intakes.push(intake);
        pool.push(Worker {
            intake: intake_end,
            dealer: dealer.clone(),
            sinks: sinks.to_vec(),
            pipeline: pipeline(config, metrics)?,
            stop: stop.clone(),
            dead_letters: dead_letters.clone(),
        });
    }
    let onward = if pool.is_empty() { Onward::Lanes(dealer) } else { Onward::Workers(intakes.into()) };
    Ok((pool, onward))
}

/// The same for each worker.
fn pipeline(config: &Config, metrics: &Registry) -> Result<Pipeline> {
    let mut pipeline = Pipeline::compile(&config.pipeline).map_err(|complaints| {
        Error::new(format!("the pipeline was checked and is wrong all the same: {complaints:?}"))
    })?;
    pipeline.count_in(metrics);
    Ok(pipeline)
}
