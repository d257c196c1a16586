//! A disk in memory that forgets, tears and reorders what was not synced, fills up, and fails when told.
//!
//! At a power cut each file keeps what it had at its last sync, and of the writes since then any sectors, in any
//! combination; the names of a folder are those of its last sync, with any of the changes since. That is more
//! malice than a file system with a journal shows. Folders themselves are never lost.
//!
//! ```text
//! let disk = ModelDisk::default();
//! … work on disk.clone() …            (clones share one disk)
//! disk.power_cut(seed);               open files end; the next reader sees what survived
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use fastrand::Rng;
use parking_lot::Mutex;
use rustix::io::Errno;

use super::{Disk, DiskFile, Durable, FileId, Kind, Open, PAGE, Paged, Seen};

/// What a disk writes as a whole or not at all, in bytes.
const SECTOR: usize = 512;

fn parent(path: &Path) -> &Path {
    path.parent().unwrap_or(path)
}

#[derive(Clone, Default)]
pub struct ModelDisk(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    files: BTreeMap<u64, Content>,
    next_inode: u64,
    names: BTreeMap<PathBuf, u64>,
    /// As of the last sync of each folder.
    durable_names: BTreeMap<PathBuf, u64>,
    folders: BTreeSet<PathBuf>,
    pending_names: Vec<Change>,
    /// Rises with each power cut: handles of an earlier life are dead.
    life: u64,
    full: bool,
    /// Changes until every change fails.
    left: Option<u64>,
    changes: u64,
    reads: u64,
    largest_read: usize,
    loses_in_sync: bool,
}

#[derive(Clone, Default)]
struct Content {
    now: Vec<u8>,
    durable: Vec<u8>,
    pending: Vec<Write>,
    /// Up to here there is room even on a full disk.
    allocated: u64,
}

#[derive(Clone)]
enum Write {
    Bytes {
        offset: usize,
        bytes: Vec<u8>,
    },
    /// Past the page cache: torn at pages, and nothing behind a gap.
    Pages {
        offset: usize,
        bytes: Vec<u8>,
    },
    Size(usize),
}

impl Write {
    fn apply(self, content: &mut Vec<u8>) {
        match self {
            Write::Bytes { offset, bytes } | Write::Pages { offset, bytes } => {
                Content::write(content, offset, &bytes);
            }
            Write::Size(size) => content.resize(size, 0),
        }
    }
}

#[derive(Clone)]
enum Change {
    Link {
        path: PathBuf,
        inode: u64,
    },
    Remove(PathBuf),
    /// One step: never neither name, never both.
    Rename {
        from: PathBuf,
        to: PathBuf,
        inode: u64,
    },
}

impl Change {
    fn folder(&self) -> &Path {
        match self {
            Change::Link { path, .. } | Change::Remove(path) | Change::Rename { to: path, .. } => {
                parent(path)
            }
        }
    }

    fn apply(self, names: &mut BTreeMap<PathBuf, u64>) {
        match self {
            Change::Link { path, inode } => {
                names.insert(path, inode);
            }
            Change::Remove(path) => {
                names.remove(&path);
            }
            Change::Rename { from, to, inode } => {
                names.remove(&from);
                names.insert(to, inode);
            }
        }
    }
}

impl Content {
    fn write(content: &mut Vec<u8>, offset: usize, bytes: &[u8]) {
        if content.len() < offset + bytes.len() {
            content.resize(offset + bytes.len(), 0);
        }
        content[offset..offset + bytes.len()].copy_from_slice(bytes);
    }

    /// What is left of it after a power cut.
    fn survive(&mut self, rng: &mut Rng) {
        for write in std::mem::take(&mut self.pending) {
            match write {
                Write::Size(size) if rng.bool() => self.durable.resize(size, 0),
                Write::Size(_) => {}
                Write::Pages { offset, bytes } => {
                    let upto = rng.usize(..=bytes.len() / PAGE) * PAGE;
                    Content::write(&mut self.durable, offset, &bytes[..upto]);
                    if upto < bytes.len() {
                        break; // the file was not longer yet
                    }
                }
                Write::Bytes { offset, bytes } => {
                    // All of it, nothing of it, or any of its sectors.
                    let (all, some) = (rng.u8(..3) == 0, rng.bool());
                    let mut at = 0;
                    while at < bytes.len() {
                        let end = bytes.len().min(at + SECTOR - (offset + at) % SECTOR);
                        if all || (some && rng.bool()) {
                            Content::write(&mut self.durable, offset + at, &bytes[at..end]);
                        }
                        at = end;
                    }
                }
            }
        }
        self.now = self.durable.clone();
    }
}

impl State {
    /// Every change of the disk passes here.
    fn change(&mut self) -> io::Result<()> {
        self.changes += 1;
        match &mut self.left {
            Some(0) => Err(Errno::IO.into()),
            Some(left) => {
                *left -= 1;
                Ok(())
            }
            None => Ok(()),
        }
    }

    fn seen(&self, inode: u64) -> Seen {
        let links = self.names.values().filter(|named| **named == inode).count() as u64;
        let size = self.files[&inode].now.len() as u64;
        Seen { id: FileId { device: 0, inode }, size, links, kind: Kind::File, created: None }
    }

    fn rename_now(&mut self, change: Change) {
        change.clone().apply(&mut self.names);
        self.pending_names.push(change);
    }
}

impl ModelDisk {
    /// The machine loses its power and starts again. `seed` decides what survives of what was not synced.
    pub fn power_cut(&self, seed: u64) {
        let mut rng = Rng::with_seed(seed);
        let mut state = self.0.lock();
        let mut names = std::mem::take(&mut state.durable_names);
        for change in std::mem::take(&mut state.pending_names) {
            if rng.bool() {
                change.apply(&mut names);
            }
        }
        state.files.retain(|inode, _| names.values().any(|named| named == inode));
        state.files.values_mut().for_each(|content| content.survive(&mut rng));
        state.names = names.clone();
        state.durable_names = names;
        state.life += 1;
        state.left = None;
    }

    /// The process dies and the machine lives: nothing is forgotten.
    pub fn process_dies(&self) {
        let mut state = self.0.lock();
        state.life += 1;
        state.left = None;
    }

    /// From now on there is no room but what was allocated, or there is again.
    pub fn set_full(&self, full: bool) {
        self.0.lock().full = full;
    }

    /// After so many further changes each one fails (EIO), until a power cut or [`ModelDisk::process_dies`].
    pub fn fail_after(&self, changes: u64) {
        self.0.lock().left = Some(changes);
    }

    /// The next sync of a file fails, and what it could not write is gone though it can be read: no later sync writes
    /// it, as on Linux.
    pub fn lose_in_sync(&self) {
        self.0.lock().loses_in_sync = true;
    }

    /// What is in memory and not waiting to be written is read from the disk again.
    pub fn drop_caches(&self) {
        for content in self.0.lock().files.values_mut() {
            let mut now = content.durable.clone();
            content.pending.iter().for_each(|write| write.clone().apply(&mut now));
            content.now = now;
        }
    }

    /// How often something was read.
    pub fn reads(&self) -> u64 {
        self.0.lock().reads
    }

    /// At once, in bytes.
    pub fn largest_read(&self) -> usize {
        self.0.lock().largest_read
    }

    /// How many changes there were: to cut at each of them.
    pub fn changes(&self) -> u64 {
        self.0.lock().changes
    }
}

impl Disk for ModelDisk {
    fn open(&self, path: &Path, how: Open) -> io::Result<Arc<dyn DiskFile>> {
        let mut state = self.0.lock();
        let inode = match state.names.get(path) {
            Some(inode) => *inode,
            None if how == Open::Existing || !state.folders.contains(parent(path)) => {
                return Err(Errno::NOENT.into());
            }
            None if state.full => return Err(Errno::NOSPC.into()),
            None => {
                state.change()?;
                let inode = state.next_inode;
                state.next_inode += 1;
                state.files.insert(inode, Content::default());
                state.rename_now(Change::Link { path: path.to_owned(), inode });
                inode
            }
        };
        Ok(Arc::new(Handle { disk: self.clone(), inode, life: state.life, appends: how == Open::Append }))
    }

    fn create_folder(&self, path: &Path) -> io::Result<()> {
        let mut state = self.0.lock();
        state.change()?;
        state.folders.extend(path.ancestors().map(Path::to_owned));
        Ok(())
    }

    fn create_output_folder(&self, path: &Path) -> io::Result<()> {
        let mut state = self.0.lock();
        if state.folders.contains(path) {
            return Err(Errno::EXIST.into());
        }
        if !state.folders.contains(parent(path)) {
            return Err(Errno::NOENT.into());
        }
        state.change()?;
        state.folders.insert(path.to_owned());
        Ok(())
    }

    fn look(&self, path: &Path) -> io::Result<Seen> {
        let state = self.0.lock();
        state.names.get(path).map(|inode| state.seen(*inode)).ok_or(Errno::NOENT.into())
    }

    fn is_taken(&self, path: &Path) -> io::Result<bool> {
        Ok(self.0.lock().names.contains_key(path))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut state = self.0.lock();
        let Some(inode) = state.names.get(from).copied() else { return Err(Errno::NOENT.into()) };
        assert_eq!(parent(from), parent(to), "renames stay in their folder");
        state.change()?;
        state.rename_now(Change::Rename { from: from.to_owned(), to: to.to_owned(), inode });
        Ok(())
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        let mut state = self.0.lock();
        if !state.names.contains_key(path) {
            return Err(Errno::NOENT.into());
        }
        state.change()?;
        state.rename_now(Change::Remove(path.to_owned()));
        Ok(())
    }

    fn list(&self, folder: &Path) -> io::Result<Vec<PathBuf>> {
        let state = self.0.lock();
        Ok(state.names.keys().filter(|path| parent(path) == folder).cloned().collect())
    }

    fn sync_folder(&self, folder: &Path) -> io::Result<()> {
        let mut guard = self.0.lock();
        let state = &mut *guard;
        state.change()?;
        let (synced, rest) = std::mem::take(&mut state.pending_names)
            .into_iter()
            .partition(|change: &Change| change.folder() == folder);
        state.pending_names = rest;
        let synced: Vec<Change> = synced;
        synced.into_iter().for_each(|change| change.apply(&mut state.durable_names));
        Ok(())
    }
}

struct Handle {
    disk: ModelDisk,
    inode: u64,
    life: u64,
    appends: bool,
}

impl Handle {
    /// A file whose last name is gone lives on until the power cut.
    fn with<T>(&self, act: impl FnOnce(&mut State, u64) -> io::Result<T>) -> io::Result<T> {
        let mut state = self.disk.0.lock();
        if state.life != self.life {
            return Err(Errno::BADF.into());
        }
        act(&mut state, self.inode)
    }

    fn changed<T>(&self, act: impl FnOnce(&mut Content, bool) -> io::Result<T>) -> io::Result<T> {
        self.with(|state, inode| {
            state.change()?;
            let full = state.full;
            act(state.files.get_mut(&inode).expect("a handle of this life"), full)
        })
    }
}

impl Durable for Handle {
    fn sync(&self) -> io::Result<()> {
        self.with(|state, inode| {
            state.change()?;
            let content = state.files.get_mut(&inode).expect("a handle of this life");
            let pending = std::mem::take(&mut content.pending);
            if std::mem::take(&mut state.loses_in_sync) {
                return Err(Errno::IO.into());
            }
            pending.into_iter().for_each(|write| write.apply(&mut content.durable));
            Ok(())
        })
    }
}

impl DiskFile for Handle {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        self.with(|state, inode| {
            let content = &state.files[&inode].now;
            let start = content.len().min(offset as usize);
            let len = buffer.len().min(content.len() - start);
            buffer[..len].copy_from_slice(&content[start..start + len]);
            state.reads += 1;
            state.largest_read = state.largest_read.max(len);
            Ok(len)
        })
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.changed(|content, full| {
            let offset = if self.appends { content.now.len() } else { offset as usize };
            let mut fits = bytes.len();
            if full {
                let room = (content.allocated as usize).max(content.now.len());
                fits = fits.min(room.saturating_sub(offset));
            }
            let part = bytes[..fits].to_vec();
            Content::write(&mut content.now, offset, &part);
            content.pending.push(Write::Bytes { offset, bytes: part });
            if fits < bytes.len() { Err(Errno::NOSPC.into()) } else { Ok(()) }
        })
    }

    /// Panics where a power cut could leave a hole.
    fn write_direct(&self, paged: Paged<'_>) -> io::Result<bool> {
        let (head, pages, tail) = paged.parts();
        self.write_at(head, paged.offset)?;
        self.changed(|content, full| {
            if full {
                return Err(Errno::NOSPC.into());
            }
            let offset = content.now.len();
            let is_direct = |write: &Write| matches!(write, Write::Pages { .. });
            let is_just_before =
                |write: &Write| matches!(write, Write::Bytes { offset: at, .. } if at + PAGE >= offset);
            assert!(
                content.pending.iter().all(|write| is_direct(write) || is_just_before(write)),
                "not synced before"
            );
            std::mem::take(&mut content.pending)
                .into_iter()
                .for_each(|write| write.apply(&mut content.durable));
            Content::write(&mut content.now, offset, pages);
            content.pending.push(Write::Pages { offset, bytes: pages.to_vec() });
            Ok(())
        })?;
        self.write_at(tail, paged.offset)?;
        Ok(true)
    }

    fn size(&self) -> io::Result<u64> {
        self.with(|state, inode| Ok(state.files[&inode].now.len() as u64))
    }

    fn set_size(&self, size: u64) -> io::Result<()> {
        self.changed(|content, _| {
            content.now.resize(size as usize, 0);
            content.allocated = content.allocated.min(size);
            content.pending.push(Write::Size(size as usize));
            Ok(())
        })
    }

    fn allocate(&self, size: u64) -> io::Result<()> {
        self.changed(|content, full| {
            if full && size > content.allocated.max(content.now.len() as u64) {
                return Err(Errno::NOSPC.into());
            }
            content.allocated = content.allocated.max(size);
            if content.now.len() < size as usize {
                content.now.resize(size as usize, 0);
                content.pending.push(Write::Size(size as usize));
            }
            Ok(())
        })
    }

    fn in_place(&self) -> io::Result<Arc<dyn DiskFile>> {
        Ok(Arc::new(Handle { disk: self.disk.clone(), inode: self.inode, life: self.life, appends: false }))
    }

    fn id(&self) -> io::Result<FileId> {
        self.with(|_, inode| Ok(FileId { device: 0, inode }))
    }

    fn seen(&self) -> io::Result<Seen> {
        self.with(|state, inode| Ok(state.seen(inode)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(disk: &ModelDisk, path: &Path) -> Option<Vec<u8>> {
        let file = disk.open(path, Open::Existing).ok()?;
        let mut bytes = vec![0; file.size().unwrap() as usize];
        file.read_at(&mut bytes, 0).unwrap();
        Some(bytes)
    }

    /// What a file holds after power cuts with many seeds.
    fn outcomes(prepare: impl Fn(&ModelDisk)) -> BTreeSet<Option<Vec<u8>>> {
        let outcome = |seed| {
            let disk = ModelDisk::default();
            disk.create_folder(Path::new("/d")).unwrap();
            prepare(&disk);
            disk.power_cut(seed);
            read(&disk, Path::new("/d/a"))
        };
        (0..200).map(outcome).collect()
    }

    fn write(disk: &ModelDisk, path: &str, text: &[u8]) -> Arc<dyn DiskFile> {
        let file = disk.open(Path::new(path), Open::OrCreate).unwrap();
        file.write_at(text, 0).unwrap();
        file
    }

    #[test]
    fn only_what_was_synced_is_sure_to_survive() {
        let synced = outcomes(|disk| {
            write(disk, "/d/a", b"text").sync().unwrap();
            disk.sync_folder(Path::new("/d")).unwrap();
        });
        assert_eq!(synced, [Some(b"text".to_vec())].into());
        let nameless = outcomes(|disk| write(disk, "/d/a", b"text").sync().unwrap());
        assert_eq!(nameless, [None, Some(b"text".to_vec())].into());
        let unsynced = outcomes(|disk| {
            write(disk, "/d/a", b"text");
            disk.sync_folder(Path::new("/d")).unwrap();
        });
        assert_eq!(unsynced, [Some(Vec::new()), Some(b"text".to_vec())].into());
    }

    #[test]
    fn a_write_is_torn_at_sectors() {
        let torn = outcomes(|disk| {
            write(disk, "/d/a", &[b'x'; 3 * SECTOR]);
            disk.sync_folder(Path::new("/d")).unwrap();
        });
        let hole = [vec![b'x'; SECTOR], vec![0; SECTOR], vec![b'x'; SECTOR]].concat();
        assert!(
            torn.len() == 8 && torn.contains(&Some(hole)),
            "every combination of three sectors: {}",
            torn.len()
        );
    }

    #[test]
    fn a_rename_that_was_not_synced_leaves_the_old_file_or_the_new_one() {
        let renamed = outcomes(|disk| {
            write(disk, "/d/a", b"old").sync().unwrap();
            write(disk, "/d/b", b"new").sync().unwrap();
            disk.sync_folder(Path::new("/d")).unwrap();
            disk.rename(Path::new("/d/b"), Path::new("/d/a")).unwrap();
        });
        assert_eq!(renamed, [Some(b"old".to_vec()), Some(b"new".to_vec())].into());
    }

    #[test]
    fn a_full_disk_takes_only_what_was_allocated() {
        let disk = ModelDisk::default();
        disk.create_folder(Path::new("/d")).unwrap();
        let file = write(&disk, "/d/a", b"");
        file.allocate(4).unwrap();
        disk.set_full(true);
        file.write_at(b"text", 0).unwrap();
        assert!(file.write_at(b"more", 2).is_err() && disk.open(Path::new("/d/b"), Open::OrCreate).is_err());
        assert_eq!(read(&disk, Path::new("/d/a")).unwrap(), b"temo", "a short write leaves its part");
    }

    #[test]
    fn every_change_after_the_last_one_fails_and_a_new_life_has_new_handles() {
        let disk = ModelDisk::default();
        disk.create_folder(Path::new("/d")).unwrap();
        let file = write(&disk, "/d/a", b"");
        disk.fail_after(1);
        file.write_at(b"1", 0).unwrap();
        assert!(file.write_at(b"2", 1).is_err() && file.sync().is_err());
        disk.process_dies();
        assert!(file.size().is_err(), "a handle of the life before");
        assert_eq!(read(&disk, Path::new("/d/a")).unwrap(), b"1");
    }
}
