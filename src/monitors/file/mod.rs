//! Captures log files: `discovery` finds them, `watch` says which have changed, `files` reads them.
//!
//! ```text
//! watch ──changed names (hints)──▶ files ──chunks──▶ Outlet
//!   └──entries changed──▶ discovery ──the whole picture──┘
//! ```
//!
//! Always true: what is between these threads are one-slot signals beside a shared value that is replaced or
//! merged, never a queue: nobody waits for room, and a burst costs no memory. Hints only save time; sweeps and
//! polls are the truth, so a file system without events loses nothing but speed.
//!
//! Not here: credit, stamps and acknowledgement (the Outlet), what became of the lines (the ledger).

pub mod discovery;
pub mod framing;
pub mod glob;
pub mod watch;

use std::sync::Arc;

use crossbeam_channel::{Receiver, Sender, bounded};
use parking_lot::Mutex;

/// One slot beside a bell. What is put in replaces, or is merged with, what was not taken out yet.
pub(crate) struct Post<T> {
    slot: Arc<Mutex<T>>,
    bell: Sender<()>,
}

/// The other end of a [`Post`].
pub(crate) struct Mailbox<T> {
    slot: Arc<Mutex<T>>,
    bell: Receiver<()>,
}

pub(crate) fn mailbox<T: Default>() -> (Post<T>, Mailbox<T>) {
    let slot = Arc::new(Mutex::new(T::default()));
    let (ring, bell) = bounded(1);
    (Post { slot: slot.clone(), bell: ring }, Mailbox { slot, bell })
}

impl<T> Post<T> {
    /// Changes what lies in the slot and rings.
    pub(crate) fn put(&self, change: impl FnOnce(&mut T)) {
        change(&mut self.slot.lock());
        let _ = self.bell.try_send(()); // full: it has rung already; closed: nobody wants it any more
    }
}

impl<T: Default> Mailbox<T> {
    /// Rings after something was put in; take it after each ring.
    pub(crate) fn bell(&self) -> &Receiver<()> {
        &self.bell
    }

    pub(crate) fn take(&self) -> T {
        std::mem::take(&mut self.slot.lock())
    }
}
