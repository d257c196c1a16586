//! The disk, as those see it who must survive a power cut: the ledger, the spool, the file sink.
//!
//! They reach their files only through [`Disk`], so that their tests can run on a disk that forgets, tears and
//! reorders whatever was not synced (`model`). Everybody else uses `std::fs`.
//!
//! Always true of a disk: what was written before a `sync` of that file that succeeded is there after a power cut;
//! names that were made, moved or removed before a `sync_folder` that succeeded stand as they stood then. Nothing
//! else is promised, not even the order of two writes.

#[cfg(test)]
pub mod model;

use std::fs::{DirBuilder, File, Metadata, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::FallocateFlags;
use rustix::io::Errno;

/// Device and inode: which file it is, whatever it is called now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FileId {
    pub device: u64,
    pub inode: u64,
}

impl FileId {
    pub fn of(metadata: &Metadata) -> FileId {
        FileId { device: metadata.dev(), inode: metadata.ino() }
    }

    /// Whether `path` leads to this file now.
    pub fn stands_at(self, path: &Path) -> bool {
        std::fs::metadata(path).is_ok_and(|metadata| FileId::of(&metadata) == self)
    }
}

/// How a file is opened: always to read and to write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Open {
    /// It must be there.
    Existing,
    /// Made, readable by us alone (0600), if it is not there.
    OrCreate,
}

/// Names and files. Errors are those of the operating system; callers say the path.
pub trait Disk: Send + Sync {
    fn open(&self, path: &Path, how: Open) -> io::Result<Arc<dyn DiskFile>>;
    /// With those above it, for our eyes only (0700). No error if it is there.
    fn create_folder(&self, path: &Path) -> io::Result<()>;
    /// Over a file that has the name, if one has. Both in one folder; not durable before [`Disk::sync_folder`].
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    fn remove(&self, path: &Path) -> io::Result<()>;
    /// Full paths of what is in a folder, sorted. A folder that is not there is empty.
    fn list(&self, folder: &Path) -> io::Result<Vec<PathBuf>>;
    fn sync_folder(&self, folder: &Path) -> io::Result<()>;
}

/// What can be made durable.
pub trait Durable: Send + Sync {
    fn sync(&self) -> io::Result<()>;
}

/// One open file. For several threads: positions are given, never kept.
pub trait DiskFile: Durable {
    /// Fills the buffer; less only at the end of the file.
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize>;
    /// All of them; on an error any part may have been written. A gap before `offset` reads as zeros.
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()>;
    /// In bytes.
    fn size(&self) -> io::Result<u64>;
    /// Cuts, or makes longer by zeros.
    fn set_size(&self, size: u64) -> io::Result<()>;
    /// Makes the file at least so long, and sure that it can be written so far whatever becomes of the free room.
    /// On a file system that cannot promise it the file is made longer all the same.
    fn allocate(&self, size: u64) -> io::Result<()>;
    fn id(&self) -> io::Result<FileId>;
}

/// The operating system's.
#[derive(Clone, Copy, Debug, Default)]
pub struct RealDisk;

impl Disk for RealDisk {
    fn open(&self, path: &Path, how: Open) -> io::Result<Arc<dyn DiskFile>> {
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(how == Open::OrCreate).mode(0o600);
        Ok(Arc::new(options.open(path)?))
    }

    fn create_folder(&self, path: &Path) -> io::Result<()> {
        DirBuilder::new().recursive(true).mode(0o700).create(path)
    }

    #[expect(clippy::disallowed_methods, reason = "callers sync the folder, once for several renames")]
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        std::fs::rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        std::fs::remove_file(path)
    }

    fn list(&self, folder: &Path) -> io::Result<Vec<PathBuf>> {
        let entries = match std::fs::read_dir(folder) {
            Err(cause) if cause.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries?,
        };
        let mut paths = entries.map(|entry| Ok(entry?.path())).collect::<io::Result<Vec<PathBuf>>>()?;
        paths.sort();
        Ok(paths)
    }

    fn sync_folder(&self, folder: &Path) -> io::Result<()> {
        File::open(folder)?.sync_all()
    }
}

impl Durable for File {
    fn sync(&self) -> io::Result<()> {
        self.sync_data()
    }
}

impl DiskFile for File {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let mut filled = 0;
        while filled < buffer.len() {
            match FileExt::read_at(self, &mut buffer[filled..], offset + filled as u64) {
                Ok(0) => break,
                Ok(read) => filled += read,
                Err(cause) if cause.kind() == io::ErrorKind::Interrupted => {}
                Err(cause) => return Err(cause),
            }
        }
        Ok(filled)
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.write_all_at(bytes, offset)
    }

    fn size(&self) -> io::Result<u64> {
        Ok(self.metadata()?.len())
    }

    fn set_size(&self, size: u64) -> io::Result<()> {
        self.set_len(size)
    }

    fn allocate(&self, size: u64) -> io::Result<()> {
        match rustix::fs::fallocate(self, FallocateFlags::empty(), 0, size) {
            Ok(()) => Ok(()),
            Err(Errno::OPNOTSUPP | Errno::NOSYS) if self.metadata()?.len() < size => self.set_len(size),
            Err(Errno::OPNOTSUPP | Errno::NOSYS) => Ok(()),
            Err(cause) => Err(cause.into()),
        }
    }

    fn id(&self) -> io::Result<FileId> {
        Ok(FileId::of(&self.metadata()?))
    }
}
