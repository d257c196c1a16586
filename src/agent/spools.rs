//! The spools of the agent's sinks, as the last life left them.
//!
//! A spool that cannot be opened is no reason not to start: its sink goes without, and it is looked at again at the
//! next start. What is left in the spool of a sink that has none now is sent all the same. A spool whose sink is not
//! configured is kept and said; it is read when the sink is there again.

use std::path::PathBuf;
use std::sync::Arc;

use crate::ack::SinkId;
use crate::budget::Budget;
use crate::config::Config;
use crate::disk::{Disk, RealDisk};
use crate::dispatcher::lane::{SpoolSettings, Spooling};
use crate::durable::{Passed, Unsynced};
use crate::ledger::{Book, Ledger, Ranged};
use crate::metrics::Registry;
use crate::spool::{self, Spool, WhenFull};

/// For a spool that the configuration does not know of, so that no memory is set aside for it.
const LEFTOVER_WINDOW_BYTES: usize = 64 * 1024;

pub(super) struct Spools<'a> {
    pub config: &'a Config,
    pub unsynced: Unsynced,
    pub passed: Passed,
    pub book: Book,
    pub budget: Budget,
    pub metrics: &'a Registry,
}

impl Spools<'_> {
    fn folder(&self) -> PathBuf {
        self.config.agent.data_dir.join("spool")
    }

    fn has_files(&self, name: &str) -> bool {
        match RealDisk.list(&self.folder().join(name)) {
            Ok(files) => !files.is_empty(),
            Err(_) => true, // to open it says why
        }
    }

    /// Before monitors are told what was restored: frames are receipts. `delivered`: what the sink has, too.
    pub fn open(
        &self,
        sink: SinkId,
        streets: usize,
        delivered: Vec<Ranged>,
        ledger: &mut Ledger,
    ) -> Option<Spooling> {
        let at = sink.0 as usize;
        let (name, options) = (&self.config.sinks[at].name, self.config.spools[at]);
        let disk: Arc<dyn Disk> = Arc::new(RealDisk);
        if options.is_none() && !self.has_files(name) {
            return None;
        }
        let settings = spool::Settings {
            disk,
            folder: self.folder().join(&**name),
            max_bytes: options.map_or(u64::MAX, |options| options.max_bytes),
            when_full: options.map_or(WhenFull::Wait, |options| options.when_full),
            unsynced: self.unsynced.clone(),
            passed: self.passed.clone(),
            boot: spool::boot_id(),
            streets,
        };
        let (spool, found) = match Spool::open(settings) {
            Ok(opened) => opened,
            Err(cause) => {
                log::error!("{name}: {cause}; going on without a spool until the next start");
                return None;
            }
        };
        if found.pending.lines > 0 {
            log::info!("{name}: {} lines of an earlier life wait in its spool", found.pending.lines);
        }
        ledger.spool_found(sink, &found.frames, found.pending);
        let settings = SpoolSettings {
            sink,
            name: name.clone(),
            after: options.map(|options| options.after),
            receipts: Arc::new(self.book.clone()),
            chunks: self.budget.clone(),
            window_bytes: self.config.memory.spool_bytes.max(LEFTOVER_WINDOW_BYTES),
            delivered,
        };
        Some(Spooling::new(spool, settings, self.metrics))
    }

    /// Says what waits for a sink that is not there.
    pub fn say_who_is_missing(&self) {
        match spool::survey(&RealDisk, &self.folder()) {
            Err(cause) => log::warn!("{cause}"),
            Ok(found) => {
                let is_there = |name: &str| self.config.sinks.iter().any(|sink| &*sink.name == name);
                for spool in found.iter().filter(|spool| !is_there(&spool.sink)) {
                    if spool.count.lines > 0 {
                        log::warn!(
                            "{} lines wait in the spool of {}, which is not configured any more; they are kept",
                            spool.count.lines,
                            spool.sink
                        );
                    }
                }
            }
        }
    }
}
