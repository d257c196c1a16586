//! Files that survive: atomic writes, what is still to be synced, the lock of the data folder, and which files
//! are our own.

use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;

use crate::error::{Context, Result};

/// Outputs that were written and not yet made durable. Writers note a file *before* they report it written;
/// the ledger syncs them before it writes a checkpoint that relies on them.
#[derive(Clone, Default)]
pub struct Unsynced(Arc<Mutex<Vec<Arc<File>>>>);

impl Unsynced {
    pub fn note(&self, file: &Arc<File>) {
        let mut files = self.0.lock();
        if !files.iter().any(|known| Arc::ptr_eq(known, file)) {
            files.push(file.clone());
        }
    }

    /// Syncs everything noted so far. On an error, what was not synced stays noted.
    pub fn sync(&self) -> Result<()> {
        let files = std::mem::take(&mut *self.0.lock());
        let mut first_error = Ok(());
        for file in files {
            if let Err(cause) = file.sync_data() {
                self.note(&file);
                first_error = first_error
                    .and(Err(crate::error::Error::new(format!("could not sync an output: {cause}"))));
            }
        }
        first_error
    }
}

/// Replaces `path` by a whole new file, or leaves the old one.
#[expect(clippy::disallowed_methods, reason = "the one place that renames")]
pub fn write_atomic(path: &Path, bytes: &[u8]) -> Result<()> {
    use std::io::Write;
    let temp = path.with_extension("tmp");
    let write = || -> std::io::Result<()> {
        let mut file = File::create(&temp)?;
        file.write_all(bytes)?;
        file.sync_data()?;
        std::fs::rename(&temp, path)?;
        File::open(path.parent().unwrap_or(Path::new(".")))?.sync_all()
    };
    write().context(|| format!("could not write {}", path.display()))
}

/// A rename that survives a power cut.
#[expect(clippy::disallowed_methods, reason = "the one place that renames")]
pub fn rename(from: &Path, to: &Path) -> Result<()> {
    let rename = || -> std::io::Result<()> {
        std::fs::rename(from, to)?;
        File::open(to.parent().unwrap_or(Path::new(".")))?.sync_all()
    };
    rename().context(|| format!("could not rename {} to {}", from.display(), to.display()))
}

/// Device and inode: which file it is, whatever it is called now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FileId {
    pub device: u64,
    pub inode: u64,
}

impl FileId {
    pub fn of(metadata: &std::fs::Metadata) -> FileId {
        FileId { device: metadata.dev(), inode: metadata.ino() }
    }
}

/// The files that the agent itself writes, so that it never captures its own output. By identity, checked
/// against the path each time: an inode that was given to another file is not ours any more.
#[derive(Clone, Default)]
pub struct OwnFiles(Arc<Mutex<Vec<(FileId, PathBuf)>>>);

impl OwnFiles {
    /// `file` now stands at `path` (also after a rename of ours).
    pub fn add(&self, file: FileId, path: &Path) {
        let mut files = self.0.lock();
        files.retain(|(known, known_path)| *known != file && known_path != path);
        files.push((file, path.to_owned()));
    }

    pub fn contains(&self, file: FileId) -> bool {
        let path = self.0.lock().iter().find(|(known, _)| *known == file).map(|(_, path)| path.clone());
        let Some(path) = path else { return false };
        let still = std::fs::metadata(&path).is_ok_and(|metadata| FileId::of(&metadata) == file);
        if !still {
            self.0.lock().retain(|(known, _)| *known != file);
        }
        still
    }

    /// For the checkpoint.
    pub fn list(&self) -> Vec<(FileId, PathBuf)> {
        self.0.lock().clone()
    }
}
