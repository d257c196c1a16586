//! Containers, from the API of an engine: Docker, or Podman's socket.
//!
//! ```text
//!   engine ── list, events ──▶ containers ── starts, with a place in the log ──▶ c/<id>, one per container
//!                                   ▲                                              │  ├── log ── engine
//!                                   └──────────── reports how it ended ────────────┘  └──▶ Outlet
//! ```
//!
//! The `containers` thread (`monitor.rs`) knows who is there: it opens the stream of events, then lists, so that nothing
//! falls between; after every gap it lists again. A container that runs has a reader (`reader.rs`, `shipper.rs`), a
//! helper with an Outlet of its own; one that has stopped has none once its log was read to its end, only a place in
//! memory.
//!
//! Always true: the place of a container in the ledger is forgotten only when the container is removed. Only the
//! `containers` thread finds out whether the engine is well; readers that lose it end and are started again.
//!
//! Not here: what becomes of the lines (`dispatcher/`), files below `/var/log/pods` (the file monitor, with the
//! stage `cri`).

pub mod api;
pub mod cursor;
pub mod frames;
pub mod labels;
pub mod lines;
mod meeting;
mod monitor;
mod own;
mod pause;
mod podman;
mod reader;
mod reports;
mod shipper;
pub mod view;

use std::path::PathBuf;
use std::sync::Arc;

use labels::{Choice, From};

pub use api::{Address, Tls};
pub use monitor::Monitor;

use super::{SourceOptions, StartAt, Supply};
use crate::error::{Error, Result};
use crate::ledger::{Head, Known};
use crate::metrics::Registry;
use crate::net::Resolve;
use crate::tasks::Helpers;

#[derive(Clone, Debug)]
pub struct ContainerSourceOptions {
    pub address: Address,
    pub tls: Tls,
    pub choice: Choice,
    pub start_at: StartAt,
    /// Names of labels, and what they are made of.
    pub labels: Vec<(String, From)>,
    /// How lines tell whether they were written to stdout or stderr.
    pub stream_as: StreamAs,
    /// Stages that containers may choose by the label [`labels::STAGES`].
    pub stages: Vec<Arc<str>>,
}

/// What `stream` becomes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StreamAs {
    Metadata,
    Label,
    Nothing,
}

/// What the monitor of one source needs from the agent.
pub struct Settings {
    pub source: SourceOptions,
    pub options: ContainerSourceOptions,
    /// All that the last life left behind of containers; others' are passed over.
    pub known: Vec<Known>,
    /// For what the sources have to keep, besides their places in the ledger.
    pub folder: PathBuf,
    pub once: bool,
    pub supply: Supply,
    pub helpers: Helpers,
    pub resolve: Resolve,
    pub metrics: Arc<Registry>,
}

/// Makes the body of the `containers` thread. Errors: certificates that cannot be read, no descriptor left.
pub fn wire(settings: Settings) -> Result<Monitor> {
    if !AVAILABLE {
        return Err(Error::new("this build follows no containers"));
    }
    Monitor::new(settings)
}

/// Else nothing of it is in the binary: the configuration complains, and neither [`wire`] nor [`Monitor::run`] goes on.
pub const AVAILABLE: bool = cfg!(feature = "containers");

/// What the ledger calls a container: the filename of its generation.
const PLACE: &str = "docker:";

fn place_of(id: &str, name: &str) -> String {
    format!("{PLACE}{id}/{name}")
}

/// The id, and the name that it had.
fn of_place(known: &Known) -> Option<(&str, &str)> {
    known.filename.as_deref()?.to_str()?.strip_prefix(PLACE)?.split_once('/')
}

/// Whether a generation of the ledger is one of a container.
pub fn is_container(known: &Known) -> bool {
    of_place(known).is_some()
}

/// How far a container's log was handed over.
struct Place {
    stream: super::Stream,
    cursor: Option<crate::ledger::Cursor>,
    /// The container was dead and all of it was read: the ledger knows.
    at_end: bool,
    /// Of half a line that was handed over because the container was dead, and that its log gives once more: see
    /// [`lines`].
    half: Option<Head>,
}

impl Place {
    fn set_at_end(&mut self, at_end: bool, outlet: &mut super::Outlet) {
        if std::mem::replace(&mut self.at_end, at_end) != at_end {
            outlet.at_end(&self.stream, at_end);
        }
    }
}

/// Room for text on its way from a socket into a chunk.
const READ_BYTES: usize = 64 * 1024;
