//! What stands below a monitor, for the tests of monitors: a ledger, and the test itself in the worker's place.

use crossbeam_channel::bounded;

use super::*;
use crate::disk::{Disk, RealDisk};
use crate::durable::OwnFiles;
use crate::ledger::{self, Ledger};
use crate::metrics::Registry;
use crate::tasks::{Switch, Wires};

pub struct Below {
    pub switch: Switch,
    pub ledger: Ledger,
    pub restored: Restored,
    pub supply: Supply,
    pub journal: Journal,
    pub chunks: Receiver<Chunk>,
    pub metrics: Registry,
    pub own_files: OwnFiles,
}

/// `state`: the ledger's folder. `sinks`: how many. `budget` in bytes.
pub fn below(state: &Path, sinks: usize, budget: usize) -> Below {
    below_on(Arc::new(RealDisk), state, sinks, budget)
}

pub fn below_on(disk: Arc<dyn Disk>, state: &Path, sinks: usize, budget: usize) -> Below {
    below_at(Clock::real(), disk, state, sinks, budget)
}

pub fn below_at(clock: Clock, disk: Arc<dyn Disk>, state: &Path, sinks: usize, budget: usize) -> Below {
    let (switch, stop) = Switch::new().expect("pipes can be made");
    let (metrics, own_files) = (Registry::default(), OwnFiles::default());
    let settings = ledger::Settings {
        folder: state.to_owned(),
        sinks: (0..sinks).map(|number| number.to_string().into()).collect(),
        sync_interval: Duration::from_secs(3600),
        unsynced: Default::default(),
        own_files: own_files.clone(),
        disk,
        passed: Default::default(),
    };
    let margin = Duration::from_secs(1);
    let (ledger, book, journal) =
        Ledger::open(settings, stop.clone(), margin, &metrics, &mut Wires::default());
    let restored = ledger.restored();
    let (intake, chunks) = bounded(1);
    let budget = Budget::new(budget);
    let supply = Supply::new(budget, clock, stop, &restored, sinks, book, Onward::Workers([intake].into()));
    Below { switch, ledger, restored, supply, journal, chunks, metrics, own_files }
}
