//! Files that survive: atomic writes, what is still to be synced (`unsynced.rs`) and what a failed sync means
//! (`written.rs`), the lock of the data folder, and which files are our own.
//!
//! The only place that renames, and the only one that replaces a file: a rename without a sync of its folder
//! may be forgotten by a power cut, and a plain write can be torn.

mod unsynced;
mod written;

use std::collections::BTreeMap;
use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;
use rustix::fs::{FlockOperation, flock};

pub use unsynced::{SyncFolder, Unsynced};
pub use written::Written;

pub use crate::disk::FileId;
use crate::disk::{Disk, RealDisk, folder_of};
use crate::error::{Context, Error, Result};

/// Replaces `path` by a file of these bytes, readable by us alone (0600). After a crash at any moment `path` is
/// the old file or the new one, whole. The bytes stand in `path` with `.tmp` at its end first; a leftover of an
/// earlier crash is overwritten. One caller per `path` at a time. On an error the old file is untouched, unless
/// it was the sync of the folder that failed: then the new one is there, and may not survive a power cut.
pub fn write_atomic(path: &Path, bytes: &[u8]) -> Result<()> {
    let doing = || format!("could not write {}", path.display());
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(".tmp");
    let temporary = PathBuf::from(temporary);
    let written = write_synced(&temporary, bytes);
    if written.is_err() {
        // Half a file must not keep a full disk full. That it could not be removed changes nothing for the
        // caller, who hears of the first error.
        let _ = std::fs::remove_file(&temporary);
    }
    written.context(doing)?;
    rename(&temporary, path).context(doing)
}

fn write_synced(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

/// Renames a file, over another one if there is one, and syncs the folder of `to`. Both must be in one folder.
/// On an error the rename may have happened.
pub fn rename(from: &Path, to: &Path) -> Result<()> {
    rename_all(&[(from.to_owned(), to.to_owned())])
}

/// Renames in this order, all in one folder, which is synced once at the end. On an error the renames before
/// the one that is named have happened.
#[expect(clippy::disallowed_methods, reason = "the one place that renames: it syncs the folder")]
pub fn rename_all(moves: &[(PathBuf, PathBuf)]) -> Result<()> {
    for (from, to) in moves {
        std::fs::rename(from, to)
            .context(|| format!("could not rename {} to {}", from.display(), to.display()))?;
    }
    match moves.last() {
        Some((_, to)) => sync_folder(folder_of(to)),
        None => Ok(()),
    }
}

/// Makes the names in a folder durable: after files were created, renamed or deleted in it.
pub fn sync_folder(folder: &Path) -> Result<()> {
    let doing = || format!("could not sync the folder {}", folder.display());
    File::open(folder).and_then(|folder| folder.sync_all()).context(doing)
}

/// Holds a data folder for this process; let go when it is dropped, or when the process dies.
#[derive(Debug)]
pub struct Lock {
    _file: File,
}

#[derive(Debug)]
pub enum LockError {
    /// Another process has it. `by`: its own words, `pid 123 since 2024-01-01T00:00:00Z`.
    Held {
        by: String,
    },
    Io(Error),
}

impl fmt::Display for LockError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            LockError::Held { by } => write!(f, "another instance is running: {by}"),
            LockError::Io(cause) => cause.fmt(f),
        }
    }
}

/// Takes `dir/lock`, without waiting. Creates `dir`, for our eyes only (0700), when it is missing. The file
/// stays when the lock goes: to delete it would let two processes hold two files of one name.
pub fn lock_dir(dir: &Path) -> std::result::Result<Lock, LockError> {
    let failed = |doing: &str, path: &Path, cause: io::Error| {
        LockError::Io(Error::new(format!("could not {doing} {}: {cause}", path.display())))
    };
    let missing: Vec<&Path> = dir.ancestors().take_while(|folder| !folder.exists()).collect();
    RealDisk.create_folder(dir).map_err(|cause| failed("create the folder", dir, cause))?;
    for made in missing.into_iter().filter(|made| !made.as_os_str().is_empty()) {
        if let Err(cause) = sync_folder(folder_of(made)) {
            log::warn!("{cause}: a power cut may take {} with all that is in it", made.display());
        }
    }
    let path = dir.join("lock");
    let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(&path);
    let file = file.map_err(|cause| failed("open", &path, cause))?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {}
        Err(rustix::io::Errno::WOULDBLOCK) => {
            let words = io::read_to_string(&file).map_err(|cause| failed("read", &path, cause))?;
            let words = words.trim();
            let by = if words.is_empty() { "a process that has not given its name yet" } else { words };
            return Err(LockError::Held { by: by.into() });
        }
        Err(cause) => return Err(failed("lock", &path, cause.into())),
    }
    if let Err(cause) = sign(&file) {
        // Whoever reads it is told less; but a full disk is a reason to ship logs, not to refuse to.
        log::warn!("could not write our name to {}: {cause}", path.display());
    }
    Ok(Lock { _file: file })
}

/// Writes who we are. The time is the one that the file system gives to this very write: no clock is read here.
fn sign(file: &File) -> io::Result<()> {
    let pid = std::process::id();
    file.set_len(0)?;
    file.write_all_at(format!("pid {pid}").as_bytes(), 0)?;
    let written = file.metadata()?.mtime();
    let since = jiff::Timestamp::from_second(written).map_err(io::Error::other)?;
    file.write_all_at(format!("pid {pid} since {since}\n").as_bytes(), 0)
}

/// Which checkpoints this life has begun and written: the ledger counts, the keepers of journals read. What the ledger
/// was told before the count was `n` is in every checkpoint that can be read once it is [`Passed::by`] `n`.
#[derive(Clone, Default)]
pub struct Passed(Arc<Checkpoints>);

#[derive(Default)]
struct Checkpoints {
    begun: AtomicU64,
    written: AtomicU64,
}

impl Passed {
    /// One is put together: it has all that the ledger was told before this call, and perhaps nothing of what it is
    /// told after it. Only the ledger calls this; again, if the last one could not be written.
    pub fn begins(&self) {
        self.0.begun.store(self.0.written.load(Ordering::SeqCst) + 1, Ordering::SeqCst);
    }

    /// It stands on the disk. Only the ledger calls this.
    pub fn written(&self) {
        let written = self.0.written.fetch_add(1, Ordering::SeqCst) + 1;
        self.0.begun.fetch_max(written, Ordering::SeqCst);
    }

    /// Those that were begun. To be asked after the ledger was told.
    pub fn count(&self) -> u64 {
        self.0.begun.load(Ordering::SeqCst)
    }

    /// Two checkpoints that were begun since are written: the newest one may be torn by a power cut.
    pub fn by(&self, count: u64) -> bool {
        self.0.written.load(Ordering::SeqCst) >= count + 2
    }
}

/// The files that the agent itself writes, so that it never captures its own output. By identity, checked
/// against the path each time: an inode that was given to another file is not ours any more.
#[derive(Clone, Default)]
pub struct OwnFiles(Arc<Mutex<Own>>);

#[derive(Default)]
struct Own {
    files: BTreeMap<FileId, PathBuf>,
    /// How many are let in before those that are gone are looked for.
    room: usize,
}

/// Below it nobody minds a few entries of outputs that were deleted.
const OWN_FILES_SWEEP: usize = 256;

impl OwnFiles {
    /// `file` now stands at `path` (also after a rename of ours).
    pub fn add(&self, file: FileId, path: &Path) {
        let mut own = self.0.lock();
        own.files.insert(file, path.to_owned());
        if own.files.len() <= own.room.max(OWN_FILES_SWEEP) {
            return;
        }
        let listed = own.files.clone();
        drop(own);
        // An output per hour, for ever, must not leave an entry per hour, for ever.
        let gone: Vec<_> = listed.into_iter().filter(|(file, path)| !file.stands_at(path)).collect();
        let mut own = self.0.lock();
        for (file, path) in gone {
            if own.files.get(&file) == Some(&path) {
                own.files.remove(&file);
            }
        }
        own.room = own.files.len() * 2;
    }

    pub fn contains(&self, file: FileId) -> bool {
        let path = self.0.lock().files.get(&file).cloned();
        let Some(path) = path else { return false };
        let still = file.stands_at(&path);
        if !still {
            let mut own = self.0.lock();
            if own.files.get(&file) == Some(&path) {
                own.files.remove(&file); // unless it was added anew meanwhile, after a rename
            }
        }
        still
    }

    /// How many there are, and how many there may be before those that are gone are looked for.
    pub fn len_and_room(&self) -> (usize, usize) {
        let own = self.0.lock();
        (own.files.len(), own.room.max(OWN_FILES_SWEEP))
    }

    /// For the checkpoint.
    pub fn list(&self) -> Vec<(FileId, PathBuf)> {
        self.0.lock().files.iter().map(|(file, path)| (*file, path.clone())).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_atomic_write_replaces_the_file_and_a_leftover() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state");
        write_atomic(&path, b"one").unwrap();
        write_synced(&folder.path().join("state.tmp"), b"a longer leftover of a crash").unwrap();
        write_atomic(&path, b"two").unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"two");
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1, "no leftover stays");
    }

    #[test]
    fn an_atomic_write_that_fails_leaves_the_old_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state");
        write_atomic(&path, b"one").unwrap();
        std::fs::create_dir(folder.path().join("state.tmp")).unwrap();
        let error = write_atomic(&path, b"two").unwrap_err().to_string();
        assert!(error.starts_with(&format!("could not write {}: ", path.display())), "{error}");
        assert_eq!(std::fs::read(&path).unwrap(), b"one");
    }

    #[test]
    fn a_rename_error_names_both_ends() {
        let folder = tempfile::tempdir().unwrap();
        let (from, to) = (folder.path().join("a"), folder.path().join("b"));
        let error = rename(&from, &to).unwrap_err().to_string();
        assert!(error.contains(&format!("{} to {}", from.display(), to.display())), "{error}");
    }

    #[test]
    fn the_second_instance_hears_who_is_there_and_the_next_one_gets_in() {
        let folder = tempfile::tempdir().unwrap();
        let dir = folder.path().join("new/data");
        let held = lock_dir(&dir).unwrap();
        assert_eq!(std::fs::metadata(&dir).unwrap().mode() & 0o777, 0o700);
        let Err(LockError::Held { by }) = lock_dir(&dir) else { panic!("two hold one folder") };
        let since = by.strip_prefix(&format!("pid {} since ", std::process::id()));
        let since: jiff::Timestamp = since.expect(&by).parse().expect(&by);
        assert!(since.as_second() > 0);
        drop(held);
        assert!(lock_dir(&dir).is_ok());
    }

    #[test]
    fn a_full_disk_does_not_keep_us_out() {
        let folder = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink("/dev/full", folder.path().join("lock")).unwrap();
        assert!(lock_dir(folder.path()).is_ok());
    }

    #[test]
    fn a_folder_that_cannot_be_is_not_taken_for_a_held_one() {
        let folder = tempfile::tempdir().unwrap();
        write_atomic(&folder.path().join("file"), b"").unwrap();
        assert!(matches!(lock_dir(&folder.path().join("file/data")), Err(LockError::Io(_))));
    }

    #[test]
    fn what_is_told_while_a_checkpoint_is_written_waits_for_two_more() {
        let passed = Passed::default();
        let before = passed.count();
        passed.begins();
        let meanwhile = passed.count();
        passed.begins(); // the first try failed
        passed.written();
        let after = passed.count();
        let by = || [before, meanwhile, after].map(|count| passed.by(count));
        assert_eq!(by(), [false; 3]);
        passed.begins();
        assert_eq!(by(), [false; 3]);
        passed.written();
        assert_eq!(by(), [true, false, false]);
        passed.written();
        assert_eq!(by(), [true; 3]);
    }

    #[test]
    fn entries_of_deleted_outputs_do_not_pile_up() {
        let folder = tempfile::tempdir().unwrap();
        let own = OwnFiles::default();
        let path = folder.path().join("output");
        let kept = File::create(&path).unwrap().metadata().unwrap();
        own.add(FileId::of(&kept), &path);
        for inode in 0..10 * OWN_FILES_SWEEP as u64 {
            own.add(FileId { device: u64::MAX, inode }, &folder.path().join("gone"));
        }
        let (len, room) = own.len_and_room();
        assert!(len <= room && room == OWN_FILES_SWEEP, "{len} of {room}");
        assert!(own.contains(FileId::of(&kept)));
    }
}
