//! What is kept from one life of the agent to the next: a reload is an orderly stop of the whole house and the start
//! of a new one in the same process, after the new configuration was read and found right.
//!
//! ```text
//! SIGHUP ──▶ signals ──▶ main ──▶ the helper `reload` ──┐ read it
//! POST /api/v1/reload ──▶ status ───────────────────────┴──▶ Desk ──▶ main: stop, and the next life
//! ```
//!
//! Always true: signals stay caught from the first life to the end of the last one. The lock of `data_dir` and the
//! address of the status server are not let go of between two lives that both have them, so that nobody gets in
//! between; those of the life before are held until the new one was made, so that there is a way back.
//!
//! Not here: the stop of a life (`vigil.rs`); what a configuration may be (`config/`).

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crossbeam_channel::{Receiver, Sender, bounded};
use parking_lot::Mutex;
use serde_json::{Value, json};

use super::signals::{self, Delivery, Signal};
use super::{NotStarted, Orders};
use crate::config::{Complaint, Config};
use crate::durable::{self, LockError};
use crate::error::Result;
use crate::metrics::{Counter, Registry};
use crate::status::{Door, NoReload};

/// Reads the configuration again, whoever asks: a file that hangs would hang the caller.
pub type Load = Arc<dyn Fn() -> std::result::Result<Config, Vec<Complaint>> + Send + Sync>;

/// Signals on their way to `main`; more than these at once say nothing new.
const SIGNALS: usize = 4;

/// One per process, in the hands of `main`.
pub(super) struct Lives {
    /// `None`: signals are not ours to catch.
    pub caught: Option<Delivery>,
    pub signals: (Sender<Signal>, Receiver<Signal>),
    pub desk: Desk,
    /// By the real path of the folder. Two while a life with another `data_dir` is being made.
    locks: Vec<(PathBuf, durable::Lock)>,
    /// Where the last life has listened.
    pub door: Option<Door>,
}

impl Lives {
    pub fn new(orders: &Orders<'_>) -> Result<Lives> {
        Ok(Lives {
            caught: orders.signals.then(signals::catch).transpose()?,
            signals: bounded(SIGNALS),
            desk: Desk::new(orders.reload.clone()),
            locks: Vec::new(),
            door: None,
        })
    }

    /// Takes the lock of this folder, unless it is held already.
    pub fn lock(&mut self, data_dir: &Path) -> std::result::Result<(), NotStarted> {
        if self.locks.iter().any(|(held, _)| *held == real(data_dir)) {
            return Ok(());
        }
        let lock = durable::lock_dir(data_dir).map_err(|error| match error {
            LockError::Held { by } => NotStarted::AnotherInstance(format!(
                "another instance is running on {}: {by}",
                data_dir.display()
            )),
            LockError::Io(error) => NotStarted::Failed(error),
        })?;
        self.locks.push((real(data_dir), lock));
        Ok(())
    }

    /// A life was made: what only the one before needed is let go of.
    pub fn settle(&mut self, data_dir: &Path, door: Option<Door>) {
        self.locks.retain(|(held, _)| *held == real(data_dir));
        self.door = door;
    }

    /// Whether a stop came so late that the last life did not hear it. Other signals are left to the next one.
    pub fn are_over(&mut self) -> bool {
        let (to_main, heard) = &self.signals;
        let late = self.caught.iter_mut().flat_map(|caught| caught.pending().map(Signal::from));
        let late: Vec<Signal> = heard.try_iter().chain(late).collect();
        for signal in late {
            match signal {
                Signal::Stop(name) => {
                    log::info!("stopping: {name}; the reload is given up");
                    return true;
                }
                Signal::Reload => drop(to_main.try_send(Signal::Reload)), // full: of the same
            }
        }
        false
    }
}

/// A folder that does not exist yet is nobody's.
fn real(folder: &Path) -> PathBuf {
    folder.canonicalize().unwrap_or_else(|_| folder.to_owned())
}

/// Where those who ask for a reload put the configuration of the next life. Cheap to clone, for every thread.
#[derive(Clone)]
pub(super) struct Desk(Arc<Papers>);

struct Papers {
    load: Option<Load>,
    /// The newest one counts.
    next: Mutex<Option<Config>>,
    bell: (Sender<()>, Receiver<()>),
    is_closed: AtomicBool,
    /// The new configuration runs.
    done: Arc<Counter>,
    /// It was wrong: nothing has changed.
    refused: Arc<Counter>,
    /// It was right and could not be started: the one before runs again.
    failed: Arc<Counter>,
}

impl Desk {
    fn new(load: Option<Load>) -> Desk {
        Desk(Arc::new(Papers {
            load,
            next: Mutex::default(),
            bell: bounded(1),
            is_closed: AtomicBool::new(false),
            done: Arc::default(),
            refused: Arc::default(),
            failed: Arc::default(),
        }))
    }

    /// Every life shows what all of them have seen.
    pub fn count_in(&self, registry: &Registry) {
        for (result, counter) in
            [("done", &self.0.done), ("refused", &self.0.refused), ("failed", &self.0.failed)]
        {
            let help = "Reloads of the configuration, since the process was started.";
            registry.adopt("reloads_total", help, &[("result", result)], counter);
        }
    }

    pub fn count_done(&self) {
        self.0.done.add(1);
    }

    pub fn count_failed(&self) {
        self.0.failed.add(1);
    }

    /// Reads the configuration; one that is right will be that of the next life. Waits for the disk. `asked_by`:
    /// for the log.
    pub fn ask(&self, asked_by: &str) -> std::result::Result<(), NoReload> {
        let Some(load) = &self.0.load else {
            let why = "this agent was not started to be reloaded (run --once never is)";
            log::warn!("{asked_by}: {why}");
            return Err(NoReload::NotNow(why.into()));
        };
        if self.0.is_closed.load(Ordering::Acquire) {
            let why = "the agent is stopping; nothing is reloaded";
            log::warn!("{asked_by}: {why}");
            return Err(NoReload::NotNow(why.into()));
        }
        match load() {
            Ok(config) => {
                *self.0.next.lock() = Some(config);
                let _ = self.0.bell.0.try_send(()); // one slot: a hint to look, never waited on
                Ok(())
            }
            Err(complaints) => {
                log::error!("{asked_by}: the configuration is wrong, so nothing changes:");
                complaints.iter().for_each(|complaint| log::error!("  {complaint}"));
                self.0.refused.add(1);
                Err(NoReload::Wrong(told(&complaints)))
            }
        }
    }

    /// Rings when there may be a configuration to [`Desk::take`].
    pub fn bell(&self) -> &Receiver<()> {
        &self.0.bell.1
    }

    pub fn take(&self) -> Option<Config> {
        self.0.next.lock().take()
    }

    /// There will be no next life.
    pub fn close(&self) {
        self.0.is_closed.store(true, Ordering::Release);
    }
}

fn told(complaints: &[Complaint]) -> Value {
    let one = |complaint: &Complaint| json!({ "path": complaint.path, "says": complaint.says });
    json!({ "complaints": complaints.iter().map(one).collect::<Vec<_>>() })
}
