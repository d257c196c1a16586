//! A worker of the dispatcher's pool: chunks in, parcels out to every lane that lacks them.
//!
//! A source always comes to the same worker, so order within it holds. The records of a chunk leave only when
//! the whole chunk has passed the pipeline: a panic on its last line has not half-sent the rest.

use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender};

use super::{LINGER, SMALL_BYTES, receive};
use crate::ack::{Count, Share, Verdict};
use crate::deadletter::{DeadLetters, Letter};
use crate::error::Result;
use crate::pipeline::{Outcome, Pipeline, Poisoned};
use crate::record::{Chunk, Parcel, Records};
use crate::sync::Stock;
use crate::tasks::{Stop, Task};

pub struct Worker {
    pub intake: Receiver<Chunk>,
    /// By [`crate::ack::SinkId`].
    pub inlets: Vec<Sender<Parcel>>,
    pub sinks: Vec<Arc<str>>,
    pub pipeline: Pipeline,
    pub stop: Stop,
    pub dead_letters: DeadLetters,
    /// What records leave, for those that come.
    pub stock: Stock<Records>,
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
        let records = self.stock.share(records);
        ack.hand_out(|mut share| {
            poisoned.iter().for_each(|line| self.dead_letter(&records, line, &mut share));
            if share.count().lines > 0 {
                self.hand_over(Parcel { records: records.clone(), share }, task);
            }
        });
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

    /// Waits for room, downhill: lanes always empty their inlets.
    fn hand_over(&self, parcel: Parcel, task: &Task) {
        let inlet = &self.inlets[parcel.share.sink().0 as usize];
        task.waits_for("room in a lane");
        // A lane that panicked drops the parcel: its share says so to the ledger, and the agent is stopping.
        let _ = inlet.send(parcel);
        task.beat();
    }
}
