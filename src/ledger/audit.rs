//! What the ledger on the disk says, for those who ask while an agent runs on it or none does. Reads only.

use std::path::Path;
use std::sync::Arc;

use super::checkpoint::{Left, Slots};
use super::journal;
use super::saved::Saved;
use super::state::State;
use super::{GenerationView, Known};
use crate::disk::Disk;
use crate::durable::OwnFiles;
use crate::metrics::Registry;

/// The state as the next start would find it.
pub struct Audited {
    /// There is no ledger here: no agent has ever run, or its folder is gone.
    pub is_empty: bool,
    pub generations: Vec<(GenerationView, Known)>,
    /// No line of ours has a later time.
    pub last_stamp_ns: i64,
    /// What the agent itself has written.
    pub own_files: OwnFiles,
}

/// `folder`: of the ledger. `sinks`: of the configuration.
pub fn audit(disk: &Arc<dyn Disk>, folder: &Path, sinks: &[Arc<str>]) -> Audited {
    let (slots, left) = Slots::open(disk.clone(), folder);
    let found = journal::find(disk.clone(), folder, slots.mark());
    let is_empty = left == Left::Nothing && found.id.is_none();
    let saved = match left {
        Left::State(saved) => *saved,
        Left::Nothing | Left::Ruins => Saved::default(),
    };
    let own_files = OwnFiles::default();
    saved.own_files.iter().for_each(|own| own_files.add(own.file_id(), &own.path.0));
    let mut state = State::new(saved, sinks, &Registry::default());
    found.records.into_iter().for_each(|record| state.recall(record));
    let last_stamp_ns = state.last_stamp_ns();
    Audited { is_empty, generations: state.views().collect(), last_stamp_ns, own_files }
}
