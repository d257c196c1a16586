//! Where the way of a chunk parts: out of its records and its ack comes a parcel for every lane that lacks them.
//!
//! A worker deals what its pipeline has made of a chunk; where there is no pipeline, an Outlet deals what it has read.

use std::sync::Arc;

use crossbeam_channel::Sender;

use super::Records;
use crate::ack::{Ack, Share};
use crate::sync::{Shared, Stock};

/// What is handed to a lane: the records of one chunk, and this sink's part of the duty.
pub struct Parcel {
    pub records: Shared<Records>,
    pub share: Share,
}

/// Cheap to clone. Lanes end when all of them are gone.
#[derive(Clone)]
pub struct Dealer {
    /// By [`crate::ack::SinkId`].
    inlets: Arc<[Sender<Parcel>]>,
    /// What records leave, for those that come.
    stock: Stock<Records>,
}

impl Dealer {
    /// `inlets`: by [`crate::ack::SinkId`].
    pub fn new(inlets: Vec<Sender<Parcel>>) -> Dealer {
        Dealer { inlets: inlets.into(), stock: Stock::default() }
    }

    /// Waits for room, downhill: lanes always empty their inlets. `before`: what becomes of a share before it leaves;
    /// one without lines does not.
    pub fn deal(&self, records: Records, ack: Ack, mut before: impl FnMut(&Records, &mut Share)) {
        let records = self.stock.share(records);
        ack.hand_out(|mut share| {
            before(&records, &mut share);
            if share.count().lines > 0 {
                let inlet = &self.inlets[share.sink().0 as usize];
                // A lane that panicked drops the parcel: its share says so to the ledger, and the agent is stopping.
                let _ = inlet.send(Parcel { records: records.clone(), share });
            }
        });
    }
}
