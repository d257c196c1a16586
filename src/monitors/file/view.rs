//! What the status page sees of the files: a snapshot, replaced at most once a second.

use std::sync::Arc;

use parking_lot::Mutex;
use serde::Serialize;

/// Files that are listed; the counts are of all.
pub const SHOWN_MAX: usize = 1000;

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct FilesSnapshot {
    pub followed: usize,
    pub open: usize,
    pub passed_over: usize,
    pub unreadable: usize,
    /// At most [`SHOWN_MAX`], by path.
    pub files: Vec<FileView>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct FileView {
    /// Invalid UTF-8 replaced.
    pub path: String,
    pub source: String,
    pub size: u64,
    /// Handed to the pipeline, in bytes.
    pub position: u64,
    pub state: &'static str,
    /// `None`: nothing was read of it yet.
    pub generation: Option<u64>,
}

/// Cheap to clone; all clones see the same.
#[derive(Clone, Default)]
pub struct FilesView(Arc<Mutex<Arc<FilesSnapshot>>>);

impl FilesView {
    pub fn get(&self) -> Arc<FilesSnapshot> {
        self.0.lock().clone()
    }

    pub(super) fn replace(&self, snapshot: FilesSnapshot) {
        *self.0.lock() = Arc::new(snapshot);
    }
}
