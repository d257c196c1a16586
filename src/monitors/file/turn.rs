//! What a turn is given, and what comes of it.
//!
//! Not here: what it does (`tail.rs`), and what follows from it (`files.rs`).

use std::io;
use std::ops::Range;
use std::time::Instant;

use crate::budget::Refused;
use crate::ledger::Head;
use crate::metrics::Counter;
use crate::monitors::outlet::Small;
use crate::monitors::{Outlet, SourceOptions};
use crate::tasks::Task;

/// What a turn needs besides the file.
pub(super) struct Reading<'a> {
    pub outlet: &'a mut Outlet,
    pub options: &'a SourceOptions,
    pub task: &'a Task,
    pub buffers: &'a mut Buffers,
    pub cut_lines: &'a Counter,
    pub now: Instant,
    /// What is small may be handed over later, with others.
    pub gathers: bool,
    /// Others wait to be handed over: what is large goes with them, and not in front of them.
    pub in_company: bool,
}

/// What a turn has read, before it is handed over.
#[derive(Debug)]
pub(super) struct Caught {
    pub small: Small,
    pub before: Option<Head>,
    /// What was read, a half line at its end included.
    pub len: usize,
}

/// Shared by all files: one turn at a time.
#[derive(Default)]
pub(super) struct Buffers {
    pub ends: Vec<u32>,
    /// What has to be arranged (`parts.rs`).
    pub mixed: Vec<Range<usize>>,
}

#[derive(Debug)]
pub(super) enum Turn {
    /// There is more.
    Again,
    Rest,
    /// The turn ends with [`super::tail::Tail::handed_over`] or [`super::tail::Tail::not_handed_over`].
    Caught(Caught),
    NoCredit(Refused),
    /// `seen`: its size before.
    Truncated {
        seen: u64,
    },
    Finish,
    Stopped,
    Failed(io::Error),
}
