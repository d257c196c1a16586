//! Captures log files: `discovery` finds them, `watch` says which have changed, `files` reads them.
//!
//! ```text
//! watch ──changed names (hints)──▶ files ──chunks──▶ Outlet
//!   └──entries changed──▶ discovery ──the whole picture──┘
//! ```
//!
//! Always true: what is between these threads are one-slot signals beside a shared value that is replaced or
//! merged, never a queue: nobody waits for room, and a burst costs no memory. Hints only save time; sweeps and
//! polls are the truth, so a file system without events loses nothing but speed. Files of which everything is
//! reported are looked at by sweeps alone, every two minutes.
//!
//! Not here: credit, stamps and acknowledgement (the Outlet), what became of the lines (the ledger).

mod beside;
pub mod discovery;
mod few;
pub mod files;
mod folder;
pub mod framing;
pub mod glob;
mod holes;
pub mod identity;
mod kin;
mod known;
mod names;
mod packed;
mod parts;
mod scan;
mod step;
pub mod survey;
mod sweep;
mod tail;
#[cfg(test)]
mod tests;
mod turn;
pub mod view;
pub mod watch;

#[cfg(test)]
pub(crate) use packed::tests as packing;

use std::sync::Arc;

use crossbeam_channel::{Receiver, Sender, bounded};
use parking_lot::Mutex;

use discovery::Discovery;
use files::Files;
use watch::Watch;

use super::{Off, Outlet, SourceOptions};
use crate::durable::OwnFiles;
use crate::error::Result;
use crate::ledger::Known;
use crate::metrics::Registry;

/// What the three threads are told by the agent.
pub struct Settings {
    /// All of the configuration: those that are not files are passed over, so that places stay places.
    pub sources: Vec<SourceOptions>,
    pub off: Off,
    /// Glob patterns of what our own sinks write, now or later.
    pub outputs: Vec<String>,
    pub own_files: OwnFiles,
    /// Read what is there, then end.
    pub once: bool,
    /// From the ledger.
    pub known: Vec<Known>,
    pub last_stamp_ns: i64,
    pub first_start: bool,
    /// Descriptors that may be held on files.
    pub open_files_max: usize,
}

/// The three bodies, wired together; each has a `run(self, &Task)`.
pub struct Bodies {
    /// Ends on stop. `None` with `once`: nobody waits for changes.
    pub watch: Option<Watch>,
    /// Ends on stop, with `once` after one sweep.
    pub discovery: Discovery,
    /// Ends on stop, with `once` when everything was read.
    pub files: Files,
}

/// An error is a pattern that is not one.
pub fn wire(settings: Settings, outlet: Outlet, metrics: &Registry) -> Result<Bodies> {
    let stop = outlet.stop().stop.clone();
    let (post_hints, hints) = mailbox();
    let (post_picture, picture) = mailbox();
    let (stir, stirred) = bounded(1); // a signal: entries have changed
    let (watch, watches, heard_out) = watch::watch(post_hints, stir, stop.clone(), settings.once);
    let discovery = Discovery::new(
        &settings.sources,
        discovery::Setting {
            off: settings.off,
            outputs: settings.outputs,
            own: settings.own_files.clone(),
            once: settings.once,
            stop,
        },
        watches,
        stirred,
        post_picture,
    )?;
    let setting = files::Setting {
        outlet,
        picture,
        hints,
        heard_out,
        own: settings.own_files,
        once: settings.once,
        first_start: settings.first_start,
        known: settings.known,
        last_stamp_ns: settings.last_stamp_ns,
        open_max: settings.open_files_max,
    };
    let files = Files::new(settings.sources.into(), setting, metrics);
    Ok(Bodies { watch: (!settings.once).then_some(watch), discovery, files })
}

/// One slot beside a bell. What is put in replaces, or is merged with, what was not taken out yet.
pub(crate) struct Post<T> {
    slot: Arc<Mutex<T>>,
    bell: Sender<()>,
}

/// The other end of a [`Post`].
pub(crate) struct Mailbox<T> {
    slot: Arc<Mutex<T>>,
    bell: Receiver<()>,
    /// So that the bell is silent, and not broken, once nobody can ring it any more.
    _ring: Sender<()>,
}

pub(crate) fn mailbox<T: Default>() -> (Post<T>, Mailbox<T>) {
    let slot = Arc::new(Mutex::new(T::default()));
    let (ring, bell) = bounded(1);
    (Post { slot: slot.clone(), bell: ring.clone() }, Mailbox { slot, bell, _ring: ring })
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
