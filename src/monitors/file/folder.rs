//! What stands in a folder, listed once for all questions that were raised before.
//!
//! A rotation of ten thousand files of one folder asks twice as often: where is this file now, and what came
//! between it and its successor. To list the folder for each would take minutes. A listing answers for whatever was
//! seen before it was taken, and a file that is still where an older listing says is found as well.
//!
//! Always true: what is told of a file is looked up when it is asked for; only that a name is not there is told from
//! the listing.

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::fs::{self, File, Metadata};
use std::io;
use std::os::unix::fs::DirEntryExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::files::opening::open_for_reading;
use super::names::rotated;
use crate::clock::Clock;
use crate::durable::FileId;
use crate::order;

/// Listings are for bursts: what is old and big must not stay in memory.
const KEPT_FOR: Duration = Duration::from_secs(1);

/// A file that has moved on as often while it was looked for is not caught up with.
const LOOKS_MOST: usize = 8;

/// One listing.
pub(super) struct Folder {
    path: PathBuf,
    /// By inode.
    names: Vec<(u64, OsString)>,
    /// What was rotated, by the name that it had before.
    rotated: HashMap<OsString, Vec<usize>>,
}

/// A regular file that is there now.
pub(super) struct Beside {
    pub path: PathBuf,
    pub file: FileId,
    pub metadata: Metadata,
}

impl Folder {
    pub fn list(path: &Path) -> io::Result<Folder> {
        let mut names = Vec::new();
        for entry in fs::read_dir(path)? {
            let entry = entry?;
            names.push((entry.ino(), entry.file_name()));
        }
        order::sort(&mut names);
        let mut by_original: HashMap<OsString, Vec<usize>> = HashMap::new();
        for (at, (_, name)) in names.iter().enumerate() {
            if let Some(rotated) = rotated(name) {
                by_original.entry(rotated.original).or_default().push(at);
            }
        }
        Ok(Folder { path: path.to_owned(), names, rotated: by_original })
    }

    /// The file with this inode, if it is a regular one and still there.
    pub fn file(&self, inode: u64) -> Option<Beside> {
        let mut called = self.called(inode).filter_map(|name| self.beside(name));
        called.find(|found| found.file.inode == inode)
    }

    /// The files that are called like something that was rotated from `original`.
    pub fn rotated_from(&self, original: &OsStr) -> impl Iterator<Item = Beside> {
        let at = self.rotated.get(original).into_iter().flatten();
        at.filter_map(|at| self.beside(&self.names[*at].1))
    }

    /// The files whose name this says yes to.
    pub fn named(&self, is_wanted: impl Fn(&OsStr) -> bool) -> impl Iterator<Item = Beside> {
        let wanted = self.names.iter().filter(move |(_, name)| is_wanted(name));
        wanted.filter_map(|(_, name)| self.beside(name))
    }

    fn called(&self, inode: u64) -> impl Iterator<Item = &OsStr> {
        let from = self.names.partition_point(|(other, _)| *other < inode);
        self.names[from..].iter().take_while(move |(other, _)| *other == inode).map(|(_, name)| &**name)
    }

    fn beside(&self, name: &OsStr) -> Option<Beside> {
        let path = self.path.join(name);
        let metadata = fs::symlink_metadata(&path).ok().filter(Metadata::is_file)?; // else it is gone again
        Some(Beside { path, file: FileId::of(&metadata), metadata })
    }
}

/// The listings that may still answer something.
pub(super) struct Folders {
    clock: Clock,
    listed: HashMap<PathBuf, (Instant, Arc<Folder>)>,
    #[cfg(test)]
    pub listings: usize,
}

impl Folders {
    pub fn new(clock: Clock) -> Folders {
        Folders {
            clock,
            listed: HashMap::new(),
            #[cfg(test)]
            listings: 0,
        }
    }

    /// A listing that was taken after `seen`, when what is asked about was seen. `None`: the folder cannot be read.
    pub fn since(&mut self, seen: Instant, path: &Path) -> Option<Arc<Folder>> {
        if self.listed.get(path).is_none_or(|(taken_at, _)| *taken_at <= seen) {
            let taken_at = self.clock.now();
            self.listed.retain(|_, (other, _)| taken_at.saturating_duration_since(*other) < KEPT_FOR);
            #[cfg(test)]
            {
                self.listings += 1;
            }
            match Folder::list(path) {
                Ok(folder) => self.listed.insert(path.to_owned(), (taken_at, Arc::new(folder))),
                Err(_) => self.listed.remove(path),
            };
        }
        self.last(path)
    }

    /// The last listing, if there is one: what is to be found in it is found, and nothing else follows.
    pub fn last(&self, path: &Path) -> Option<Arc<Folder>> {
        self.listed.get(path).map(|(_, folder)| folder.clone())
    }

    /// Where a file is that was found to be gone from its place at `seen`. `None`: not in this folder.
    pub fn find(&mut self, file: FileId, mut seen: Instant, path: &Path) -> Option<Beside> {
        if let Some((_, folder)) = self.listed.get(path) {
            match folder.file(file.inode) {
                Some(found) => return Some(found).filter(|found| found.file == file),
                None if folder.called(file.inode).next().is_some() => seen = self.clock.now(), // it has moved on
                None => {}
            }
        }
        self.since(seen, path)?.file(file.inode).filter(|found| found.file == file)
    }

    /// Opens a file that was at `path` a moment ago. A rotation may move it on and put another one there between any two
    /// looks: then `path` is where it is now. Fails with `NotFound` if it is nowhere in its folder.
    pub fn open(&mut self, file: FileId, path: &mut PathBuf) -> io::Result<File> {
        for _ in 0..LOOKS_MOST {
            match open_for_reading(path) {
                Ok(opened) if FileId::of(&opened.metadata()?) == file => return Ok(opened),
                Err(cause) if cause.kind() != io::ErrorKind::NotFound => return Err(cause),
                _ => {}
            }
            let now = self.clock.now();
            let found = path.parent().and_then(|folder| self.find(file, now, folder));
            *path = found.ok_or(io::ErrorKind::NotFound)?.path;
        }
        Err(io::ErrorKind::NotFound.into())
    }

    /// The burst is over.
    pub fn forget(&mut self) {
        if self.listed.capacity() > 0 {
            self.listed = HashMap::new();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    #[test]
    #[expect(clippy::disallowed_methods, reason = "a log need not survive a power cut")]
    fn one_listing_answers_all_that_was_asked_before_it() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        let id = |name: &str| FileId::of(&fs::metadata(at(name)).unwrap());
        for name in ["a.log.1", "a.log.2.gz", "b.log.1", "b.log"] {
            fs::write(at(name), name).unwrap();
        }
        let clock = Clock::real();
        let mut folders = Folders::new(clock.clone());
        let seen = clock.now();
        let a = folders.find(id("a.log.1"), seen, folder.path()).unwrap();
        assert!(a.path == at("a.log.1") && a.metadata.len() == 7);
        assert!(folders.find(id("b.log"), seen, folder.path()).is_some());
        let gone = FileId { inode: u64::MAX, ..id("b.log") };
        assert!(folders.find(gone, seen, folder.path()).is_none());
        let mut rotated = |seen| {
            let listing = folders.since(seen, folder.path()).unwrap();
            (listing.rotated_from("a.log".as_ref()).count(), folders.listings)
        };
        assert_eq!(rotated(seen), (2, 1));
        // Seen later: it may be in the folder since then.
        fs::write(at("a.log.3"), "new").unwrap();
        assert_eq!(rotated(clock.now()), (3, 2));
        // One that has moved on is found where it is, whenever it was seen.
        let b = id("b.log.1");
        fs::rename(at("b.log.1"), at("b.log.2")).unwrap();
        assert_eq!(folders.find(b, seen, folder.path()).unwrap().path, at("b.log.2"));
        assert_eq!(folders.listings, 3);
    }

    #[test]
    #[expect(clippy::disallowed_methods, reason = "a log need not survive a power cut")]
    fn what_has_moved_on_is_opened_where_it_is_and_not_who_stands_in_its_place() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        for name in ["a.log", "a.log.1"] {
            fs::write(at(name), name).unwrap();
        }
        let file = FileId::of(&fs::metadata(at("a.log.1")).unwrap());
        let mut folders = Folders::new(Clock::real());
        let mut path = at("a.log.1");
        let open = |folders: &mut Folders, path: &mut PathBuf| {
            folders.open(file, path).map(|mut opened| {
                let mut text = String::new();
                opened.read_to_string(&mut text).unwrap();
                text
            })
        };
        assert_eq!(open(&mut folders, &mut path).unwrap(), "a.log.1");
        fs::rename(at("a.log.1"), at("a.log.2")).unwrap();
        fs::rename(at("a.log"), at("a.log.1")).unwrap();
        assert_eq!(open(&mut folders, &mut path).unwrap(), "a.log.1");
        assert_eq!(path, at("a.log.2"));
        fs::rename(at("a.log.2"), at("a.log.3")).unwrap();
        assert_eq!(open(&mut folders, &mut path).unwrap(), "a.log.1");
        fs::remove_file(at("a.log.3")).unwrap();
        assert_eq!(open(&mut folders, &mut path).unwrap_err().kind(), io::ErrorKind::NotFound);
    }
}
