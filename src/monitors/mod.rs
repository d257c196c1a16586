//! Where lines come from, and the [`Outlet`]: the only door in.
//!
//! Not here: what a line is (`file/framing.rs`), what becomes of it (`dispatcher/`).

pub mod container;
pub mod file;
mod outlet;
pub mod stdin;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

pub use outlet::{CHUNK_OVERHEAD, NotSent, Onward, Opening, Outlet, Pools, Stream, Supply};

use crate::record::Labels;

/// One entry of `sources[]`.
#[derive(Clone, Debug)]
pub struct SourceOptions {
    pub name: Arc<str>,
    /// With `host` and `source` already in it; `filename` is added per file.
    pub labels: Labels,
    /// A longer line is cut, flagged and counted. Already shrunk to what the budget allows.
    pub max_line_bytes: usize,
    /// How long a half line at a quiet end waits for its rest.
    pub idle: Duration,
    pub kind: SourceKind,
}

impl SourceOptions {
    /// See [`FileSourceOptions::in_parts`].
    pub fn is_in_parts(&self) -> bool {
        matches!(&self.kind, SourceKind::File(file) if file.in_parts)
    }
}

#[derive(Clone, Debug)]
pub enum SourceKind {
    File(FileSourceOptions),
    Docker(Box<container::ContainerSourceOptions>),
    Stdin,
}

#[derive(Clone, Debug)]
pub struct FileSourceOptions {
    /// Absolute glob patterns (`**` crosses folders, `*` does not), checked by the configuration.
    pub include: Vec<String>,
    pub exclude: Vec<String>,
    pub start_at: StartAt,
    /// How often files are looked at of which not everything is reported; the others every two minutes.
    pub poll_interval: Duration,
    pub binary: Binary,
    pub hold_deleted: HoldDeleted,
    /// A stage `cri` sees their lines: those that were written in parts are joined.
    pub in_parts: bool,
}

/// How far deleted files that are not read to their end are held open: the oldest are given up beyond it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HoldDeleted {
    /// Of the disk, of all files of the source together.
    pub max_bytes: u64,
    /// Since the name was gone. `None`: for ever.
    pub max_age: Option<Duration>,
}

impl Default for HoldDeleted {
    /// As much as a spool: enough for an hour of most hosts, and not a disk.
    fn default() -> HoldDeleted {
        HoldDeleted { max_bytes: 1 << 30, max_age: None }
    }
}

/// Where a file begins that was never seen before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StartAt {
    Beginning,
    /// Of files that stand there at the agent's first start; later ones are read whole.
    End,
}

/// What becomes of files whose head is not text (a NUL byte, or the mark of a compressed file).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Binary {
    /// Passed over, counted and named once.
    Skip,
    Read,
}

/// Places that are never captured: what the agent itself writes.
#[derive(Clone, Debug, Default)]
pub struct Off {
    /// Folders, with everything below.
    pub folders: Vec<PathBuf>,
}
