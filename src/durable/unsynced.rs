//! Outputs that were written and not yet made durable. Writers note a file *before* they report it written; the
//! ledger syncs them before it writes a checkpoint that relies on them.
//!
//! Always true: what was noted stays noted until a sync of it has succeeded that began after the note.
//!
//! A sync that failed leaves a note in the data folder: what the next life of this boot finds in outputs and spools
//! may stand in memory and nowhere else ([`Unsynced::was_in_doubt`]). The note itself needs no sync: a power cut takes
//! it, and with it all that it warns of.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;

use super::Written;
use super::written::Lost;
use crate::disk::{Disk, Durable, Open};
use crate::error::{Error, Result};

#[derive(Clone, Default)]
pub struct Unsynced(Arc<Inner>);

#[derive(Default)]
struct Inner {
    notes: Mutex<Notes>,
    /// `None`: nobody outlives the process.
    warning: Option<Warning>,
}

#[derive(Default)]
struct Notes {
    /// With the turn of the last note: what was noted again during a sync has to be synced again.
    files: Vec<(Arc<dyn Durable>, u64)>,
    turn: u64,
    lost: Option<Error>,
}

impl Unsynced {
    /// `path`: of the note for the next life. `boot`: another number for each life of the operating system.
    pub fn open(disk: Arc<dyn Disk>, path: &Path, boot: u64) -> Unsynced {
        let warning = Some(Warning::open(disk, path, boot));
        Unsynced(Arc::new(Inner { notes: Mutex::default(), warning }))
    }

    /// A sync of an earlier life has failed: what it wrote has to be written again before it is believed, although
    /// it can be read.
    pub fn was_in_doubt(&self) -> bool {
        self.0.warning.as_ref().is_some_and(|warning| warning.was_there)
    }

    pub fn note(&self, file: Arc<Written>) {
        self.note_any(file);
    }

    /// Of a file that was made in it, moved or removed. A file system that could not write what it knows of names
    /// fails for good, so that a sync that succeeds after all proves all of it.
    pub fn note_folder(&self, folder: Arc<SyncFolder>) {
        self.note_any(folder);
    }

    fn note_any(&self, file: Arc<dyn Durable>) {
        let mut notes = self.0.notes.lock();
        notes.turn += 1;
        let turn = notes.turn;
        match notes.files.iter_mut().find(|(known, _)| Arc::ptr_eq(known, &file)) {
            Some((_, noted)) => *noted = turn,
            None => notes.files.push((file, turn)),
        }
    }

    /// How many files are held open for a later sync.
    pub fn len(&self) -> usize {
        self.0.notes.lock().files.len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Syncs everything noted so far. On an error, what was not synced stays noted. Several threads may sync at
    /// the same time: each returns after all that was noted before it began is on the disk.
    pub fn sync(&self) -> Result<()> {
        let files = self.0.notes.lock().files.clone();
        let mut first_error = Ok(());
        for (file, turn) in files {
            match file.sync() {
                Ok(()) => self.synced(&file, turn),
                Err(cause) => {
                    self.0.warning.iter().for_each(Warning::write);
                    let is_lost = cause.get_ref().is_some_and(|cause| cause.is::<Lost>());
                    let error = Error::new(format!("could not sync an output: {cause}"));
                    if is_lost {
                        self.0.notes.lock().lost.get_or_insert(error.clone());
                    }
                    first_error = first_error.and(Err(error));
                }
            }
        }
        first_error
    }

    /// The same, for the ledger: everything that any life has ever reported written is on the disk then.
    pub fn prove(&self) -> Result<()> {
        let failures = self.0.warning.as_ref().map(|warning| warning.state.lock().failures);
        self.sync()?;
        if let (Some(warning), Some(failures)) = (&self.0.warning, failures) {
            warning.remove(failures);
        }
        Ok(())
    }

    /// What was noted at `turn` is on the disk; a later note stays.
    fn synced(&self, file: &Arc<dyn Durable>, turn: u64) {
        let is_it = |(known, noted): &(Arc<dyn Durable>, u64)| Arc::ptr_eq(known, file) && *noted == turn;
        self.0.notes.lock().files.retain(|noted| !is_it(noted));
    }

    /// Something that was reported written is not there, and nobody here can write it again: only the next life can,
    /// which begins at the last checkpoint.
    pub fn take_lost(&self) -> Option<Error> {
        self.0.notes.lock().lost.take()
    }
}

/// The names in a folder, to be made durable with everything else.
pub struct SyncFolder {
    disk: Arc<dyn Disk>,
    folder: PathBuf,
    /// Nobody knows whether there is a name of ours in it.
    is_above: bool,
}

impl SyncFolder {
    /// Whoever makes many names in one folder should keep it: each one that is noted is synced.
    pub fn of(disk: &Arc<dyn Disk>, folder: &Path) -> Arc<SyncFolder> {
        Arc::new(SyncFolder { disk: disk.clone(), folder: folder.to_owned(), is_above: false })
    }

    /// One in which an earlier life may have made a folder. If we may not look into it, it has not.
    pub fn above(disk: &Arc<dyn Disk>, folder: &Path) -> Arc<SyncFolder> {
        Arc::new(SyncFolder { disk: disk.clone(), folder: folder.to_owned(), is_above: true })
    }
}

impl Durable for SyncFolder {
    fn sync(&self) -> io::Result<()> {
        match self.disk.sync_folder(&self.folder) {
            Err(cause) if cause.kind() == io::ErrorKind::NotFound => Ok(()), // somebody deleted it with all names
            Err(cause) if self.is_above && cause.kind() == io::ErrorKind::PermissionDenied => Ok(()),
            synced => synced,
        }
    }
}

/// The note for the next life.
struct Warning {
    disk: Arc<dyn Disk>,
    path: PathBuf,
    boot: u64,
    was_there: bool,
    /// Held while the note is written or removed, so that what stands there is what was said last.
    state: Mutex<WarningState>,
}

struct WarningState {
    is_there: bool,
    failures: u64,
}

impl Warning {
    fn open(disk: Arc<dyn Disk>, path: &Path, boot: u64) -> Warning {
        let mut bytes = [0; 8];
        let found = disk.open(path, Open::Existing).and_then(|file| file.read_at(&mut bytes, 0));
        let was_there = found.as_ref().is_ok_and(|read| *read == 8 && u64::from_le_bytes(bytes) == boot);
        let state = Mutex::new(WarningState { is_there: found.is_ok(), failures: 0 });
        Warning { disk, path: path.to_owned(), boot, was_there, state }
    }

    fn write(&self) {
        let mut state = self.state.lock();
        state.failures += 1;
        if state.failures > 1 && state.is_there {
            return;
        }
        let file = self.disk.open(&self.path, Open::OrCreate);
        match file.and_then(|file| file.write_at(&self.boot.to_le_bytes(), 0)) {
            Ok(()) => state.is_there = true,
            Err(cause) if state.failures == 1 => {
                let path = self.path.display();
                log::warn!(
                    "could not write {path}: {cause}; a kill before the disk is well again may lose lines"
                );
            }
            Err(_) => {} // that was said
        }
    }

    /// Unless a sync has failed since there were so many failures.
    fn remove(&self, failures: u64) {
        let mut state = self.state.lock();
        if !state.is_there || state.failures != failures {
            return;
        }
        match self.disk.remove(&self.path) {
            Ok(()) => *state = WarningState { is_there: false, failures: 0 },
            Err(cause) => log::debug!("could not remove {}: {cause}; trying again", self.path.display()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::DiskFile;
    use crate::disk::model::ModelDisk;

    const FILE: &str = "/data/file";
    const WARNING: &str = "/data/in-doubt";

    struct Bench {
        disk: ModelDisk,
        unsynced: Unsynced,
        file: Arc<Written>,
    }

    /// One life of the process, in the boot of that number.
    fn begin(disk: &ModelDisk, boot: u64) -> Bench {
        disk.create_folder(Path::new("/data")).unwrap();
        let unsynced = Unsynced::open(Arc::new(disk.clone()), Path::new(WARNING), boot);
        let file = Written::new(disk.open(Path::new(FILE), Open::Append).unwrap());
        disk.sync_folder(Path::new("/data")).unwrap();
        Bench { disk: disk.clone(), unsynced, file }
    }

    impl Bench {
        fn new() -> Bench {
            begin(&ModelDisk::default(), 1)
        }

        fn append(&self, bytes: &[u8]) -> io::Result<()> {
            let written = self.file.write_at(bytes, self.file.size().unwrap());
            self.unsynced.note(self.file.clone());
            written
        }

        /// What is there, by all that was promised.
        fn after_a_power_cut(&self) -> Vec<u8> {
            self.disk.power_cut(7);
            let file = self.disk.open(Path::new(FILE), Open::Existing).unwrap();
            let mut bytes = vec![0; file.size().unwrap() as usize];
            file.read_at(&mut bytes, 0).unwrap();
            bytes
        }
    }

    #[test]
    fn what_could_not_be_synced_stays_noted() {
        let bench = Bench::new();
        let bad = Written::new(bench.disk.open(Path::new("/data/bad"), Open::OrCreate).unwrap());
        bench.unsynced.note(bad.clone());
        bench.append(b"good").unwrap();
        bench.unsynced.note(bad.clone());
        assert_eq!(bench.unsynced.len(), 2);
        bench.disk.lose_in_sync();
        assert!(bench.unsynced.sync().is_err());
        assert_eq!(bench.unsynced.len(), 1);
        assert_eq!((Arc::strong_count(&bench.file), Arc::strong_count(&bad)), (1, 2));
    }

    #[test]
    fn what_was_written_during_a_sync_is_synced_again() {
        let bench = Bench::new();
        bench.append(b"before").unwrap();
        let before = bench.unsynced.0.notes.lock().files[0].1;
        bench.append(b"meanwhile").unwrap();
        bench.unsynced.synced(&(bench.file.clone() as Arc<dyn Durable>), before);
        assert_eq!(bench.unsynced.len(), 1);
        bench.unsynced.sync().unwrap();
        assert!(bench.unsynced.is_empty());
    }

    /// The kernel calls clean what it could not write: the second sync alone would prove nothing.
    #[test]
    fn a_sync_that_succeeds_after_one_that_failed_has_written_everything_again() {
        let bench = Bench::new();
        bench.append(b"synced ").unwrap();
        bench.unsynced.sync().unwrap();
        (0..1000).for_each(|_| bench.append(b"not synced ").unwrap());
        bench.disk.lose_in_sync();
        assert!(bench.unsynced.sync().is_err());
        assert!(bench.append(b"more").is_err(), "what is there has to be kept first");
        bench.unsynced.sync().unwrap();
        bench.append(b"more").unwrap();
        bench.unsynced.sync().unwrap();
        let kept = bench.after_a_power_cut();
        assert_eq!(kept, [&b"synced "[..], &b"not synced ".repeat(1000), b"more"].concat());
    }

    #[test]
    fn one_that_fails_again_and_again_is_in_doubt_until_one_succeeds() {
        let bench = Bench::new();
        bench.append(b"text").unwrap();
        for _ in 0..3 {
            bench.disk.lose_in_sync();
            assert!(bench.unsynced.sync().is_err() && bench.append(b"more").is_err());
        }
        bench.unsynced.sync().unwrap();
        assert_eq!(bench.after_a_power_cut(), b"text");
    }

    #[test]
    fn what_was_cut_off_is_not_written_again() {
        for keep in [0, 4, 6] {
            let bench = Bench::new();
            bench.append(b"some").unwrap();
            bench.append(b"text").unwrap();
            bench.file.set_size(keep).unwrap();
            bench.disk.lose_in_sync();
            assert!(bench.unsynced.sync().is_err());
            // In the middle of what was written at once: what is left of that cannot be compared.
            assert_eq!(bench.unsynced.sync().is_err(), keep == 6, "{keep}");
            assert_eq!(bench.unsynced.take_lost().is_some(), keep == 6, "{keep}");
        }
    }

    /// It was dropped from memory, too, before it could be written again.
    #[test]
    fn what_cannot_be_read_back_is_lost_and_said_once() {
        let bench = Bench::new();
        bench.append(b"text").unwrap();
        bench.disk.lose_in_sync();
        assert!(bench.unsynced.sync().is_err());
        assert_eq!(bench.unsynced.take_lost(), None, "it can still be read");
        bench.disk.drop_caches();
        assert!(bench.unsynced.sync().is_err());
        let said = bench.unsynced.take_lost().expect("it is lost").to_string();
        assert!(said.contains("the 4 bytes from 0 on are not what was written"), "{said}");
        assert!(bench.unsynced.sync().is_err(), "and stays so");
    }

    #[test]
    fn of_what_was_written_another_way_nothing_can_be_written_again() {
        let bench = Bench::new();
        bench.file.wrote_unseen();
        bench.unsynced.note(bench.file.clone());
        bench.unsynced.sync().unwrap();
        bench.file.wrote_unseen();
        bench.unsynced.note(bench.file.clone());
        bench.disk.lose_in_sync();
        assert!(bench.unsynced.sync().is_err() && bench.unsynced.take_lost().is_none());
        assert!(bench.unsynced.sync().is_err() && bench.unsynced.take_lost().is_some());
    }

    #[test]
    fn a_file_that_was_deleted_is_missed_by_nobody() {
        let bench = Bench::new();
        bench.append(b"text").unwrap();
        bench.disk.lose_in_sync();
        assert!(bench.unsynced.sync().is_err());
        bench.disk.remove(Path::new(FILE)).unwrap();
        bench.disk.drop_caches();
        bench.unsynced.sync().unwrap();
    }

    #[test]
    fn the_next_life_of_this_boot_hears_of_a_sync_that_failed_until_one_has_proved_everything() {
        let bench = Bench::new();
        let hears = |boot| begin(&bench.disk, boot).unsynced.was_in_doubt();
        assert!(!hears(1));
        bench.append(b"text").unwrap();
        bench.disk.lose_in_sync();
        assert!(bench.unsynced.prove().is_err());
        assert!(hears(1) && !hears(2), "after a power cut the disk says what it has");
        bench.unsynced.sync().unwrap();
        assert!(hears(1), "others may still have to look at what they find");
        bench.unsynced.prove().unwrap();
        assert!(!hears(1));
        // An old one says nothing about this boot; a failure writes over it.
        bench.append(b"text").unwrap();
        bench.disk.lose_in_sync();
        assert!(bench.unsynced.prove().is_err());
        let next = begin(&bench.disk, 2);
        next.append(b"text").unwrap();
        bench.disk.lose_in_sync();
        assert!(next.unsynced.prove().is_err() && hears(2));
        next.unsynced.prove().unwrap();
        assert!(!hears(2) && !hears(1));
    }
}
