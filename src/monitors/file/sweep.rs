//! What one sweep has found: the whole picture at one time, in little memory, since there may be ten thousand files and
//! nobody needs it for longer than it takes to look through.
//!
//! Always true, once it is [complete](Sweep::complete): one entry per file, whatever the number of its names: the one that
//! was noted first.
//!
//! Not here: where to look (`discovery.rs`).

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::durable::FileId;

/// A file that matches.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// As it was walked: not resolved, so that it is what the pattern matched.
    pub path: PathBuf,
    pub file: FileId,
    /// Bytes, at the time of the sweep.
    pub size: u64,
    /// Place in `sources[]`.
    pub source: usize,
    /// Whatever happens to it is reported: it has one name, in a folder that is watched, on a disk of this host.
    pub heard: bool,
}

/// The whole picture at one time.
#[derive(Debug, Default)]
pub struct Sweep {
    lists: Vec<List>,
    /// By their ids, which are each there once when the sweep is complete.
    by_file: Vec<Spot>,
    /// Folders that could not be read: files below them may be there all the same.
    pub unsure: Vec<PathBuf>,
    /// Something may change that inotify does not report.
    pub unheard: bool,
    /// Folders that inotify was asked for, and how many are watched now.
    pub folders: usize,
    /// Folders that could not be looked into, as far as they were named.
    pub complaints: usize,
    pub watches: usize,
}

/// Files in a list at most: many small pieces of memory find room among others, one that grows with the files does not,
/// and is never given back.
const LIST_FILES: usize = 256;

/// Files of one folder that belong to one source, as they were walked.
#[derive(Debug)]
struct List {
    folder: Arc<Path>,
    source: usize,
    /// One behind the other.
    names: Vec<u8>,
    files: Vec<Seen>,
}

#[derive(Clone, Copy, Debug)]
struct Seen {
    file: FileId,
    size: u64,
    modified_ns: i64,
    name_end: u32,
    heard: bool,
}

/// Where an entry stands: its list, and its place there. They rise in the order in which files were noted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Spot(u32, u32);

impl Sweep {
    /// `name` in `folder`, and when it was last changed, in nanoseconds since 1970; the rest as in [`Found`].
    pub fn note(
        &mut self,
        folder: &Arc<Path>,
        name: &OsStr,
        (file, size, modified_ns): (FileId, u64, i64),
        source: usize,
        heard: bool,
    ) {
        let fits = |list: &&mut List| {
            let same_folder = Arc::ptr_eq(&list.folder, folder) && list.source == source;
            same_folder && list.files.len() < LIST_FILES
        };
        if self.lists.last_mut().filter(fits).is_none() {
            let (folder, names, files) = (folder.clone(), Vec::new(), Vec::new());
            self.lists.push(List { folder, source, names, files });
        }
        let at = self.lists.len() - 1;
        let list = &mut self.lists[at];
        list.names.extend_from_slice(name.as_bytes());
        let name_end = list.names.len() as u32; // a name has 255 bytes at most
        self.by_file.push(Spot(at as u32, list.files.len() as u32));
        list.files.push(Seen { file, size, modified_ns, name_end, heard });
    }

    /// Other names of the same files are forgotten. Returns which sources have files that belong to an earlier one.
    pub fn complete(&mut self) -> BTreeSet<(usize, usize)> {
        let (lists, mut overlaps) = (&self.lists, BTreeSet::new());
        let seen = |spot: &Spot| &lists[spot.0 as usize].files[spot.1 as usize];
        self.by_file.sort_unstable_by(|a, b| seen(a).file.cmp(&seen(b).file).then(a.cmp(b)));
        self.by_file.dedup_by(|later, first| {
            let is_same = seen(later).file == seen(first).file;
            let sources = (lists[first.0 as usize].source, lists[later.0 as usize].source);
            if is_same && sources.0 != sources.1 {
                overlaps.insert(sources);
            }
            is_same
        });
        self.unheard |= self.by_file.iter().any(|spot| !seen(spot).heard);
        overlaps
    }

    pub fn len(&self) -> usize {
        self.by_file.len()
    }

    pub fn contains(&self, file: FileId) -> bool {
        self.by_file.binary_search_by_key(&file, |spot| self.file(*spot)).is_ok()
    }

    /// Of the files, in the order in which they were noted.
    pub fn spots(&self) -> Vec<Spot> {
        let mut spots = self.by_file.clone();
        spots.sort_unstable();
        spots
    }

    pub fn file(&self, spot: Spot) -> FileId {
        self.lists[spot.0 as usize].files[spot.1 as usize].file
    }

    /// When it was last changed, in nanoseconds since 1970.
    pub fn modified_ns(&self, spot: Spot) -> i64 {
        self.lists[spot.0 as usize].files[spot.1 as usize].modified_ns
    }

    pub fn found(&self, spot: Spot) -> Found {
        let (list, at) = (&self.lists[spot.0 as usize], spot.1 as usize);
        let Seen { file, size, name_end, heard, .. } = list.files[at];
        let begin = at.checked_sub(1).map_or(0, |before| list.files[before].name_end);
        let name = OsStr::from_bytes(&list.names[begin as usize..name_end as usize]);
        Found { path: join(&list.folder, name), file, size, source: list.source, heard }
    }
}

/// As [`Path::join`], in as much memory as it takes.
pub(super) fn join(folder: &Path, name: &OsStr) -> PathBuf {
    let mut path = PathBuf::with_capacity(folder.as_os_str().len() + 1 + name.len());
    path.push(folder);
    path.push(name);
    path
}

#[cfg(test)]
pub(super) mod tests {
    use std::fs;

    use super::super::beside::modified_ns;
    use super::*;

    /// A sweep that has found just these.
    pub fn of(all: impl IntoIterator<Item = Found>) -> Sweep {
        let mut sweep = Sweep::default();
        for found in all {
            let (folder, name) = (found.path.parent().unwrap().into(), found.path.file_name().unwrap());
            let modified_ns = fs::metadata(&found.path).map_or(0, |metadata| modified_ns(&metadata));
            sweep.note(&folder, name, (found.file, found.size, modified_ns), found.source, found.heard);
        }
        sweep.complete();
        sweep
    }

    fn found(path: &str, inode: u64, source: usize) -> Found {
        Found { path: path.into(), file: FileId { device: 1, inode }, size: 7 * inode, source, heard: true }
    }

    #[test]
    fn each_file_is_there_once_by_the_name_that_came_first() {
        let (a, b): (Arc<Path>, Arc<Path>) = (Path::new("/a").into(), Path::new("/b").into());
        let mut sweep = Sweep::default();
        let mut note = |folder, name: &str, inode, source| {
            sweep.note(folder, name.as_ref(), (FileId { device: 1, inode }, 7 * inode, 1), source, true);
        };
        for (folder, name, inode, source) in
            [(&b, "z", 9, 0), (&b, "y", 3, 0), (&a, "x", 9, 0), (&a, "long", 5, 0), (&a, "y", 3, 1)]
        {
            note(folder, name, inode, source);
        }
        (0..1000).for_each(|number| note(&b, &format!("{number}.log"), 100 + number, 1));
        assert_eq!(sweep.complete(), [(0, 1)].into());
        let all: Vec<Found> = sweep.spots().into_iter().map(|spot| sweep.found(spot)).collect();
        let first = [found("/b/z", 9, 0), found("/b/y", 3, 0), found("/a/long", 5, 0)];
        let rest = (0..1000).map(|number| found(&format!("/b/{number}.log"), 100 + number, 1));
        assert_eq!(all, first.into_iter().chain(rest).collect::<Vec<_>>());
        assert!(sweep.len() == 1003 && !sweep.unheard && sweep.contains(FileId { device: 1, inode: 1099 }));
        assert!(!sweep.contains(FileId { device: 2, inode: 9 }));
    }
}
