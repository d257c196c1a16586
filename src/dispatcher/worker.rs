//! A worker of the dispatcher's pool: chunks in, parcels out to every lane that lacks them. Without a pipeline there is no
//! pool: monitors deal what they have read to the lanes themselves.
//!
//! A source always comes to the same worker, so order within it holds. The records of a chunk leave only when
//! the whole chunk has passed the pipeline: a panic on its last line has not half-sent the rest.

use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::Receiver;

use super::{LINGER, SMALL_BYTES, receive};
use crate::ack::{Count, Share, Verdict};
use crate::deadletter::{DeadLetters, Letter};
use crate::error::Result;
use crate::pipeline::{Outcome, Pipeline, Poisoned};
use crate::record::{Chunk, Dealer, Records};
use crate::tasks::{Stop, Task};

pub struct Worker {
    pub intake: Receiver<Chunk>,
    pub dealer: Dealer,
    pub sinks: Vec<Arc<str>>,
    pub pipeline: Pipeline,
    pub stop: Stop,
    pub dead_letters: DeadLetters,
}

impl Worker {
    /// Ends when the monitors are gone and everything they sent has been passed on.
    pub fn run(mut self, task: &Task) -> Result<()> {
        loop {
            task.waits_for("chunks");
            let Ok(chunk) = receive(&self.intake, Duration::MAX) else { return Ok(()) };
            task.doing("passing lines through the pipeline");
            let is_small = chunk.lines.count().bytes < SMALL_BYTES;
            // What cannot be read again goes on to the lanes, which keep it.
            if self.stop.abort.is_closed() && chunk.lines.origin.replayable {
                chunk.ack.hand_out(Share::let_go);
            } else {
                self.pass(chunk, task);
            }
            if is_small && self.intake.is_empty() {
                task.waits_for("chunks");
                self.stop.stop.wait(LINGER); // others may come meanwhile
            }
        }
    }

    fn pass(&mut self, chunk: Chunk, task: &Task) {
        let Chunk { lines, mut ack } = chunk;
        let Outcome { records, poisoned } = self.pipeline.run(lines, &mut ack);
        task.waits_for("room in a lane");
        self.dealer.deal(records, ack, |records, share| {
            poisoned.iter().for_each(|line| self.dead_letter(records, line, share));
        });
        task.beat();
    }

    fn dead_letter(&self, records: &Records, poisoned: &Poisoned, share: &mut Share) {
        let record = records.as_read(poisoned.line);
        let count = Count { lines: 1, bytes: record.len };
        let part = share.pick(count, record.offset..record.offset + record.len);
        let reason = format!("the pipeline panicked: {}", poisoned.panic);
        match self.dead_letters.put(&Letter::of(&record, &self.sinks[share.sink().0 as usize], &reason)) {
            Ok(()) => {
                log::error!("{reason}; the line is kept as a dead letter");
                part.settle(&Verdict::DeadLettered);
            }
            Err(cause) => {
                log::error!("{reason}; {cause}; the line is read again after the next start");
                part.let_go();
            }
        }
    }
}
