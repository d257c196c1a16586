//! A sender: one connection's thread. Takes a batch, delivers it, reports what the sink said.
//!
//! It may block in the network for as long as its time-outs say; closing `abort` ends that at once (the sinks
//! see to it). It holds one batch at most, and always gives it back.
//!
//! A panic while a batch is delivered is caused by data: the answer is "refused, nobody knows which", the lane
//! halves the batch, and the guilty record ends alone among the dead letters.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender};

use super::receive;
use crate::error::Result;
use crate::record::Batch;
use crate::sinks::{Answer, Connection, Guilty};
use crate::tasks::{Task, panic_text};

/// What became of a batch, and the batch itself.
pub struct Report {
    /// Which connection of the lane.
    pub street: usize,
    pub batch: Batch,
    pub answer: Answer,
}

pub struct SenderLoop {
    pub street: usize,
    pub jobs: Receiver<Batch>,
    pub reports: Sender<Report>,
    pub connection: Box<dyn Connection>,
    /// For `doing`: `sending to loki at http://…`.
    pub towards: Arc<str>,
}

impl SenderLoop {
    /// Ends when the lane has let go of its jobs.
    pub fn run(mut self, task: &Task) -> Result<()> {
        loop {
            task.waits_for("batches");
            let now = task.now();
            // A time to wait, and not a channel that rings at a time: that takes memory, for each batch.
            let idle =
                self.connection.idle(now).map_or(Duration::MAX, |at| at.saturating_duration_since(now));
            match receive(&self.jobs, idle) {
                Ok(batch) => {
                    let answer = self.deliver(&batch, task);
                    // The lane waits for this report and outlives it, unless it has panicked.
                    let _ = self.reports.send(Report { street: self.street, batch, answer });
                }
                Err(RecvTimeoutError::Timeout) => task.doing("tidying up"),
                Err(RecvTimeoutError::Disconnected) => return Ok(()),
            }
        }
    }

    /// Nothing that is done with a batch stands outside of the net: a lane waits for what is away.
    fn deliver(&mut self, batch: &Batch, task: &Task) -> Answer {
        let deliver = || {
            task.doing(&self.towards);
            self.connection.deliver(batch)
        };
        catch_unwind(AssertUnwindSafe(deliver)).unwrap_or_else(|panic| {
            let why = format!("{} panicked: {}", self.towards, panic_text(&*panic));
            log::error!("{why}");
            Answer::Refused { which: Guilty::Unknown, why }
        })
    }
}
