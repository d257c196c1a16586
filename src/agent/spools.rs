//! The spools of the agent's sinks, as the last life left them.
//!
//! A spool that cannot be opened is no reason not to start: its sink goes without, and it is looked at again at the
//! next start. One whose sink is to have none any more is emptied, and nothing is put into it. One whose sink is not
//! configured is kept and said; it is read when the sink is back.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::ack::SinkId;
use crate::budget::{Budget, Credit, Holder, READ_BYTES};
use crate::config::Config;
use crate::disk::{Disk, RealDisk};
use crate::dispatcher::lane::{SpoolSettings, Spooling};
use crate::durable::{Passed, Unsynced};
use crate::ledger::{Book, Ledger, Ranged};
use crate::metrics::Registry;
use crate::spool::{self, Spool, SpoolOptions, Survey, WhenFull};

/// Of a spool that nobody wants any more.
const EMPTIED: SpoolOptions = SpoolOptions { max_bytes: 0, after: Duration::ZERO, when_full: WhenFull::Wait };

pub(super) struct Spools<'a> {
    pub config: &'a Config,
    /// See [`survey`].
    pub found: Vec<Survey>,
    pub unsynced: Unsynced,
    pub passed: Passed,
    pub book: Book,
    pub budget: Budget,
    pub metrics: &'a Registry,
}

fn folder(config: &Config) -> PathBuf {
    config.agent.data_dir.join("spool")
}

/// What the last life left, of sinks that are not there, too. One that cannot be looked into is said.
pub(super) fn survey(config: &Config) -> Vec<Survey> {
    spool::survey(&RealDisk, &folder(config)).unwrap_or_else(|cause| {
        log::warn!("{cause}");
        Vec::new()
    })
}

impl Spools<'_> {
    /// A quarter of what chunks have less, as long as it is there: the configuration has set nothing aside for it.
    fn rent(&self) -> Option<Credit> {
        self.budget.door().try_take(&Holder::default(), READ_BYTES.min(self.budget.capacity() / 4)).ok()
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
        let (name, configured) = (&self.config.sinks[at].name, self.config.spools[at]);
        let is_left = self.found.iter().any(|spool| *spool.sink == **name && spool.bytes > 0);
        let options = configured.or(is_left.then_some(EMPTIED))?;
        let disk: Arc<dyn Disk> = Arc::new(RealDisk);
        let settings = spool::Settings {
            disk,
            folder: folder(self.config).join(&**name),
            max_bytes: options.max_bytes,
            when_full: options.when_full,
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
        ledger.spool_found(sink, &found.recovered, &found.damaged, found.pending);
        let rent = configured.map_or_else(|| self.rent(), |_| None);
        let settings = SpoolSettings {
            sink,
            name: name.clone(),
            options,
            receipts: Arc::new(self.book.clone()),
            chunks: self.budget.clone(),
            window_bytes: rent.as_ref().map_or(self.config.memory.spool_bytes, Credit::bytes),
            rent,
            delivered,
        };
        Some(Spooling::new(spool, settings, self.metrics))
    }

    /// Says what waits for a sink that is not there.
    pub fn say_who_is_missing(&self) {
        for Survey { sink, count, .. } in &self.found {
            if count.lines > 0 && self.config.sinks.iter().all(|known| *known.name != **sink) {
                log::warn!(
                    "{} lines wait in the spool of {sink}, which is not configured; they are kept",
                    count.lines
                );
            }
        }
    }
}
