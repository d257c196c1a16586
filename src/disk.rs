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
mod paged;

use std::fs::{DirBuilder, File, Metadata, OpenOptions};
use std::io::{self, ErrorKind};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{DirBuilderExt, FileExt, FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use rustix::fs::{FallocateFlags, OFlags, fcntl_getfl, fcntl_setfl};
use rustix::io::Errno;

pub use paged::{PAGE, Paged};

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
    /// Made for us and our group (0640) if it is not there. Every write goes to the end of the file, wherever it is
    /// said to go: what another process has put there meanwhile is not overwritten. One that we may not read can be
    /// written all the same.
    Append,
}

/// What is at a path or behind a handle.
#[derive(Clone, Copy, Debug)]
pub struct Seen {
    pub id: FileId,
    /// In bytes.
    pub size: u64,
    /// How many names it has; 0: it was deleted, and lives as long as somebody holds it open.
    pub links: u64,
    pub kind: Kind,
    /// Where the file system knows it.
    pub created: Option<SystemTime>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    File,
    Folder,
    Pipe,
    Socket,
    Device,
}

impl Seen {
    fn of(metadata: &Metadata) -> Seen {
        let kind = metadata.file_type();
        Seen {
            id: FileId::of(metadata),
            size: metadata.len(),
            links: metadata.nlink(),
            kind: match () {
                () if kind.is_file() => Kind::File,
                () if kind.is_dir() => Kind::Folder,
                () if kind.is_fifo() => Kind::Pipe,
                () if kind.is_socket() => Kind::Socket,
                () => Kind::Device,
            },
            created: metadata.created().ok(),
        }
    }
}

/// The folder that holds `path`; the working directory for a bare name.
pub fn folder_of(path: &Path) -> &Path {
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    }
}

/// Names and files. Errors are those of the operating system; callers say the path.
pub trait Disk: Send + Sync {
    fn open(&self, path: &Path, how: Open) -> io::Result<Arc<dyn DiskFile>>;
    /// With those above it, for our eyes only (0700). No error if it is there.
    fn create_folder(&self, path: &Path) -> io::Result<()>;
    /// This one alone, for us and our group (0750). An error if anything has the name.
    fn create_output_folder(&self, path: &Path) -> io::Result<()>;
    /// What a path leads to.
    fn look(&self, path: &Path) -> io::Result<Seen>;
    /// Whether anything has this name, be it a link to nowhere.
    fn is_taken(&self, path: &Path) -> io::Result<bool>;
    /// Over a file that has the name, if one has. Both in one folder; not durable before [`Disk::sync_folder`].
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    fn remove(&self, path: &Path) -> io::Result<()>;
    /// Full paths of what is in a folder, sorted. A folder that is not there is empty.
    fn list(&self, folder: &Path) -> io::Result<Vec<PathBuf>>;
    fn sync_folder(&self, folder: &Path) -> io::Result<()>;
    /// Bytes that we could still write below a folder, as far as that can be known.
    fn free_bytes(&self, _folder: &Path) -> io::Result<u64> {
        Ok(u64::MAX)
    }
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
    /// [`DiskFile::write_at`], past the page cache as far as pages are whole: for much at once that nobody is about to
    /// read. Whether it was; if the file system cannot do that, all went the usual way. Not durable before a sync
    /// either. Nobody else may write or read through this handle meanwhile.
    ///
    /// What stands before it has to be synced, or written so: else a power cut could leave a hole there. For the page in
    /// which it begins this sees to that itself.
    fn write_direct(&self, paged: Paged<'_>) -> io::Result<bool> {
        self.write_at(paged.bytes, paged.offset)?;
        Ok(false)
    }
    /// In bytes.
    fn size(&self) -> io::Result<u64>;
    /// Cuts, or makes longer by zeros.
    fn set_size(&self, size: u64) -> io::Result<()>;
    /// Makes the file at least so long, and sure that it can be written so far whatever becomes of the free room.
    /// On a file system that cannot promise it the file is made longer all the same.
    fn allocate(&self, size: u64) -> io::Result<()>;
    /// The same file, whatever it is called now, to be written where it is said to be, also if this one appends.
    fn in_place(&self) -> io::Result<Arc<dyn DiskFile>>;
    fn id(&self) -> io::Result<FileId>;
    fn seen(&self) -> io::Result<Seen>;
}

/// The operating system's.
#[derive(Clone, Copy, Debug, Default)]
pub struct RealDisk;

impl Disk for RealDisk {
    fn open(&self, path: &Path, how: Open) -> io::Result<Arc<dyn DiskFile>> {
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(how != Open::Existing).mode(0o600);
        if how == Open::Append {
            // A named pipe that came here after somebody looked must not make us wait for its reader.
            options.append(true).mode(0o640).custom_flags(OFlags::NONBLOCK.bits() as i32);
        }
        match options.open(path) {
            Err(cause) if how == Open::Append && cause.kind() == ErrorKind::PermissionDenied => {
                Ok(Arc::new(options.read(false).open(path)?))
            }
            opened => Ok(Arc::new(opened?)),
        }
    }

    fn create_folder(&self, path: &Path) -> io::Result<()> {
        DirBuilder::new().recursive(true).mode(0o700).create(path)
    }

    fn create_output_folder(&self, path: &Path) -> io::Result<()> {
        DirBuilder::new().mode(0o750).create(path)
    }

    fn look(&self, path: &Path) -> io::Result<Seen> {
        Ok(Seen::of(&std::fs::metadata(path)?))
    }

    fn is_taken(&self, path: &Path) -> io::Result<bool> {
        match std::fs::symlink_metadata(path) {
            Ok(_) => Ok(true),
            Err(cause) if cause.kind() == ErrorKind::NotFound => Ok(false),
            Err(cause) => Err(cause),
        }
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
            Err(cause) if cause.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries?,
        };
        let mut paths = entries.map(|entry| Ok(entry?.path())).collect::<io::Result<Vec<PathBuf>>>()?;
        paths.sort_unstable();
        Ok(paths)
    }

    fn sync_folder(&self, folder: &Path) -> io::Result<()> {
        File::open(folder)?.sync_all()
    }

    fn free_bytes(&self, folder: &Path) -> io::Result<u64> {
        let of = rustix::fs::statvfs(folder)?;
        Ok(of.f_bavail.saturating_mul(of.f_frsize))
    }
}

/// The operating system's, for those who only look: nothing is ever changed, and needs no right to be.
#[derive(Clone, Copy, Debug, Default)]
pub struct ReadOnlyDisk;

impl Disk for ReadOnlyDisk {
    fn open(&self, path: &Path, how: Open) -> io::Result<Arc<dyn DiskFile>> {
        if how != Open::Existing {
            return Err(Errno::ROFS.into());
        }
        Ok(Arc::new(File::open(path)?))
    }

    fn create_folder(&self, _path: &Path) -> io::Result<()> {
        Err(Errno::ROFS.into())
    }

    fn create_output_folder(&self, _path: &Path) -> io::Result<()> {
        Err(Errno::ROFS.into())
    }

    fn look(&self, path: &Path) -> io::Result<Seen> {
        RealDisk.look(path)
    }

    fn is_taken(&self, path: &Path) -> io::Result<bool> {
        RealDisk.is_taken(path)
    }

    fn rename(&self, _from: &Path, _to: &Path) -> io::Result<()> {
        Err(Errno::ROFS.into())
    }

    fn remove(&self, _path: &Path) -> io::Result<()> {
        Err(Errno::ROFS.into())
    }

    fn list(&self, folder: &Path) -> io::Result<Vec<PathBuf>> {
        RealDisk.list(folder)
    }

    fn sync_folder(&self, _folder: &Path) -> io::Result<()> {
        Ok(())
    }

    fn free_bytes(&self, folder: &Path) -> io::Result<u64> {
        RealDisk.free_bytes(folder)
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
                Err(cause) if cause.kind() == ErrorKind::Interrupted => {}
                Err(cause) => return Err(cause),
            }
        }
        Ok(filled)
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.write_all_at(bytes, offset)
    }

    fn write_direct(&self, paged: Paged<'_>) -> io::Result<bool> {
        let Paged { bytes, offset } = paged;
        let (head, pages, _) = paged.parts();
        self.write_all_at(head, offset)?;
        let mut written = head.len();
        let usual = fcntl_getfl(self)?;
        if !pages.is_empty() && fcntl_setfl(self, usual | OFlags::DIRECT).is_ok() {
            let taken = paged::write_pages(self, pages, offset + written as u64);
            fcntl_setfl(self, usual)?;
            written += taken?;
        }
        let is_direct = !pages.is_empty() && written == head.len() + pages.len();
        self.write_all_at(&bytes[written..], offset + written as u64)?;
        Ok(is_direct)
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

    fn in_place(&self) -> io::Result<Arc<dyn DiskFile>> {
        let path = format!("/proc/self/fd/{}", self.as_raw_fd());
        Ok(Arc::new(OpenOptions::new().read(true).write(true).open(path)?))
    }

    fn id(&self) -> io::Result<FileId> {
        Ok(FileId::of(&self.metadata()?))
    }

    fn seen(&self) -> io::Result<Seen> {
        Ok(Seen::of(&self.metadata()?))
    }
}
