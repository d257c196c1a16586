//! What the last life followed and this one has not met yet.
//!
//! A file is met when its inode is found under a path that matches, or, renamed by a rotation while nobody
//! looked, beside where it was. One that is on its file system no more is finished; one whose file system is
//! not there now (a mount that comes later) is kept.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::folder::{Beside, Folder};
use super::identity::{is_known, read_head, stands_before};
use super::sweep::Found;
use crate::durable::FileId;
use crate::ledger::{Head, Known};
use crate::order;

/// By inode; nearly always one each.
#[derive(Default)]
pub(super) struct NotMet(HashMap<u64, Vec<Known>>);

impl NotMet {
    /// Only files are taken: a stream has no path.
    pub fn new(known: Vec<Known>) -> NotMet {
        let mut by_inode: HashMap<u64, Vec<Known>> = HashMap::new();
        for known in known {
            if let (Some(_), Some(identity)) = (&known.filename, known.identity) {
                by_inode.entry(identity.inode).or_default().push(known);
            }
        }
        NotMet(by_inode)
    }

    pub fn len(&self) -> usize {
        self.0.values().map(Vec::len).sum()
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The oldest that may be this file, told by its inode alone.
    pub fn perhaps(&self, file: FileId) -> Option<&Known> {
        self.0.get(&file.inode)?.iter().min_by_key(|known| known.generation)
    }

    pub fn all(&self) -> impl Iterator<Item = &Known> {
        self.0.values().flatten()
    }

    pub fn put_back(&mut self, known: Known) {
        if let Some(identity) = known.identity {
            self.0.entry(identity.inode).or_default().push(known);
        }
    }

    /// Those that may be this file by their inode and are another by their content.
    pub fn take_others(&mut self, id: FileId, file: &File) -> io::Result<Vec<Known>> {
        let (size, head) = (file.metadata()?.len(), read_head(file)?);
        let before = |before, position| stands_before(file, before, position).unwrap_or(false);
        let Some(candidates) = self.0.get_mut(&id.inode) else { return Ok(Vec::new()) };
        let others = candidates.extract_if(.., |known| !is_known(known, id, size, &head, before)).collect();
        self.0.retain(|_, known| !known.is_empty());
        Ok(others)
    }

    /// The one that is this file, and those that were, before another file got the inode. `before`: as
    /// [`is_known`] asks it.
    pub fn claim(
        &mut self,
        file: FileId,
        size: u64,
        head: &[u8],
        before: impl Fn(Head, u64) -> bool,
    ) -> (Option<Known>, Vec<Known>) {
        let Some(mut candidates) = self.0.remove(&file.inode) else { return (None, Vec::new()) };
        order::sort_by_key(&mut candidates, |known| known.generation);
        let same = candidates.iter().rposition(|known| is_known(known, file, size, head, &before));
        let same = same.map(|at| candidates.remove(at));
        let device = |known: &Known| known.identity.map(|identity| identity.device);
        let (replaced, others) =
            candidates.into_iter().partition(|known: &Known| device(known) == Some(file.device));
        let others: Vec<Known> = others;
        if !others.is_empty() {
            self.0.insert(file.inode, others);
        }
        (same, replaced)
    }

    /// Looks for those that no pattern leads to: beside where they were, by inode, the oldest generation first;
    /// and takes out those that are gone for good. `source`: its place in the configuration.
    pub fn search(
        &mut self,
        met: &HashSet<u64>,
        source: impl Fn(&Known) -> Option<usize>,
    ) -> (Vec<Found>, Vec<Known>) {
        let mut by_folder: BTreeMap<PathBuf, Vec<&Known>> = BTreeMap::new();
        for known in self.0.values().flatten() {
            let folder = known.filename.as_deref().and_then(Path::parent);
            let inode = known.identity.map(|identity| identity.inode);
            if let (Some(folder), Some(inode)) = (folder, inode)
                && !met.contains(&inode)
            {
                by_folder.entry(folder.to_owned()).or_default().push(known);
            }
        }
        let (mut found, mut gone) = (Vec::new(), Vec::new());
        for (folder, wanted) in by_folder {
            let beside = Folder::list(&folder).ok();
            for known in wanted {
                let inode = known.identity.map_or(0, |identity| identity.inode);
                match (beside.as_ref().and_then(|beside| beside.file(inode)), source(known)) {
                    (Some(beside), Some(source)) => {
                        let Beside { path, file, metadata } = beside;
                        let at = Found { path, file, size: metadata.len(), source, heard: false };
                        found.push((known.generation, at));
                    }
                    (None, _) if is_gone(known, &folder, beside.is_some()) => gone.push(known.generation),
                    _ => {}
                }
            }
        }
        order::sort_by_key(&mut found, |(generation, _)| *generation);
        let mut finished = Vec::new();
        self.0.retain(|_, known| {
            finished.extend(known.extract_if(.., |known| gone.contains(&known.generation)));
            !known.is_empty()
        });
        (found.into_iter().map(|(_, found)| found).collect(), finished)
    }
}

/// Its file system is there, and it is not: deleted, or compressed into another.
fn is_gone(known: &Known, folder: &Path, readable: bool) -> bool {
    let device = known.identity.map(|identity| identity.device);
    let there = |folder: &Path| fs::metadata(folder).is_ok_and(|metadata| Some(metadata.dev()) == device);
    if readable {
        return there(folder);
    }
    // A folder that exists and cannot be read says nothing.
    let missing =
        |path: &Path| fs::metadata(path).is_err_and(|cause| cause.kind() == std::io::ErrorKind::NotFound);
    missing(folder) && folder.ancestors().find(|up| !missing(up)).is_some_and(there)
}

#[cfg(test)]
mod tests {
    use super::super::identity::identity;
    use super::*;
    use crate::ack::GenerationId;

    fn known(generation: u64, path: &Path, file: FileId, position: u64) -> Known {
        Known {
            generation: GenerationId(generation),
            source: "s".into(),
            filename: Some(path.into()),
            identity: Some(identity(file, Head::of(b"li"))),
            lineage: 1,
            position,
            before: None,
            cursor: None,
            line: 0,
            continues: false,
            at_end: false,
            stamps: Vec::new(),
            progress: Vec::new(),
        }
    }

    fn file(path: &Path, text: &str) -> FileId {
        std::io::Write::write_all(&mut fs::File::create(path).unwrap(), text.as_bytes()).unwrap();
        FileId::of(&fs::metadata(path).unwrap())
    }

    #[test]
    fn a_file_that_was_renamed_is_found_beside_where_it_was() {
        let folder = tempfile::tempdir().unwrap();
        let (path, rotated) = (folder.path().join("a.log"), folder.path().join("a.log.1"));
        let id = file(&rotated, "line\n");
        let deleted = FileId { inode: u64::MAX, ..id };
        let unmounted = FileId { device: u64::MAX, inode: u64::MAX - 1 };
        let mut not_met = NotMet::new(vec![
            known(3, &path, id, 5),
            known(4, &path, deleted, 5),
            known(5, &path, unmounted, 5),
            known(6, &folder.path().join("gone/b.log"), FileId { inode: u64::MAX - 2, ..id }, 0),
        ]);
        let (found, gone) = not_met.search(&HashSet::new(), |_| Some(0));
        assert_eq!(found, [Found { path: rotated, file: id, size: 5, source: 0, heard: false }]);
        let mut gone: Vec<u64> = gone.iter().map(|known| known.generation.0).collect();
        gone.sort();
        assert_eq!(gone, [4, 6]);
        let (same, replaced) = not_met.claim(id, 5, b"line\n", |_, _| true);
        assert_eq!((same.unwrap().generation.0, replaced.len()), (3, 0));
        assert!(not_met.perhaps(unmounted).is_some() && not_met.perhaps(id).is_none());
    }

    #[test]
    fn a_reused_inode_is_another_file() {
        let id = FileId { device: 1, inode: 9 };
        let mut not_met = NotMet::new(vec![known(3, Path::new("/v/a.log"), id, 100)]);
        let (same, replaced) = not_met.claim(id, 50, b"line\n", |_, _| true);
        assert_eq!((same, replaced.len()), (None, 1));
        assert!(not_met.is_empty());
    }
}
