//! What the status page sees of the files: a snapshot, written anew at most once a second.

use std::ffi::OsStr;
use std::path::Path;
use std::sync::Arc;

use parking_lot::Mutex;
use serde::{Serialize, Serializer};

/// Files that are listed; the counts are of all.
pub const SHOWN_MAX: usize = 1000;

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct FilesSnapshot {
    pub followed: usize,
    pub open: usize,
    pub passed_over: usize,
    pub unreadable: usize,
    pub sizes: Sizes,
    /// At most [`SHOWN_MAX`], by path.
    pub files: Vec<FileView>,
}

/// Entries of everything that grows and shrinks with the files, at the same moment: for the leak watch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Sizes {
    /// Files that the last sweep found, and those below folders that it could not look into.
    pub matching: usize,
    /// Of those that are followed: no path leads to them any more.
    pub gone: usize,
    /// Of those, such as have been over for long, and should have been let go.
    pub overdue: usize,
    pub paths: usize,
    pub lineages: usize,
    /// Files in the line for a turn, and files whose descriptor can perhaps be closed.
    pub in_line: usize,
    pub rested: usize,
    /// Generations of the last life.
    pub not_met: usize,
    /// What the last sweep asked inotify for, and what is watched since.
    pub folders: usize,
    pub watches: usize,
    /// Folders that could not be looked into, as far as they were named.
    pub complaints: usize,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct FileView {
    /// Shown with invalid UTF-8 replaced.
    #[serde(serialize_with = "lossy")]
    pub path: Arc<Path>,
    #[serde(serialize_with = "lossy")]
    pub source: Arc<str>,
    pub size: u64,
    /// Handed to the pipeline, in bytes.
    pub position: u64,
    pub state: &'static str,
    /// `None`: nothing was read of it yet.
    pub generation: Option<u64>,
}

/// Shared with what is followed: there are a thousand, whether somebody looks at them or not.
fn lossy<T: AsRef<OsStr> + ?Sized, S: Serializer>(text: &Arc<T>, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_str(&(**text).as_ref().to_string_lossy())
}

/// Cheap to clone; all clones see the same.
#[derive(Clone, Default)]
pub struct FilesView(Arc<Mutex<Arc<FilesSnapshot>>>);

impl FilesView {
    pub fn get(&self) -> Arc<FilesSnapshot> {
        self.0.lock().clone()
    }

    /// `write` finds the old one, whose memory serves again, or an empty one if somebody still reads the old one.
    pub(super) fn renew(&self, write: impl FnOnce(&mut FilesSnapshot)) {
        let mut shown = self.0.lock();
        if Arc::get_mut(&mut shown).is_none() {
            *shown = Arc::default();
        }
        if let Some(snapshot) = Arc::get_mut(&mut shown) {
            write(snapshot);
        }
    }
}
