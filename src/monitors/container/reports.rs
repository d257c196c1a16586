//! What passes between the `containers` thread and its readers: where one begins, and how it ended.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use parking_lot::Mutex;
use rustix::event::{EventfdFlags, eventfd};

use super::Place;
use crate::error::{Context, Result};
use crate::ledger::{Cursor, Known};

/// Where a reader begins.
pub(super) enum Begin {
    /// A container that was never seen before. `None`: at its beginning.
    New(Option<Cursor>),
    /// One of an earlier life.
    Known(Box<Known>),
    /// One that was read before in this life.
    Going(Box<Place>),
}

/// How a reader ended.
pub(super) enum How {
    /// The container is dead, and its log was read to its end.
    Dead,
    /// The engine has no log of it: the container is removed, or still being made. `complete`: its log was read to its
    /// end before.
    Missing {
        complete: bool,
    },
    /// The engine, or the connection.
    Broken(String),
    /// What the engine said.
    Unreadable(String),
    Stopped,
}

pub(super) struct Report {
    pub id: String,
    /// Where the next one begins.
    pub next: Option<Begin>,
    pub how: How,
}

/// Calls a thread that polls.
pub(super) struct Bell(OwnedFd);

impl Bell {
    pub fn new() -> Result<Bell> {
        let bell = eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC);
        bell.map(Bell).context(|| "could not make an event descriptor".into())
    }

    pub fn ring(&self) {
        // It can only fail because it rings already.
        let _ = rustix::io::write(&self.0, &1u64.to_ne_bytes());
    }

    pub fn silence(&self) {
        let _ = rustix::io::read(&self.0, &mut [0u8; 8]); // it was silent
    }
}

impl AsFd for Bell {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// What readers have to say, and the bell that calls the thread which polls.
pub(super) struct Reports {
    list: Mutex<Vec<Report>>,
    bell: Bell,
}

impl Reports {
    pub fn new() -> Result<Reports> {
        Ok(Reports { list: Mutex::default(), bell: Bell::new()? })
    }

    pub fn put(&self, report: Report) {
        self.list.lock().push(report);
        self.bell.ring();
    }

    /// For `poll`: rings when there are reports.
    pub fn bell(&self) -> BorrowedFd<'_> {
        self.bell.as_fd()
    }

    pub fn take(&self) -> Vec<Report> {
        self.bell.silence();
        std::mem::take(&mut *self.list.lock())
    }
}
