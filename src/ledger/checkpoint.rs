//! Two checkpoints on disk, written in turn: whatever happens to one, the other one is whole.
//!
//! A slot is one line `log-capturer checkpoint 1 <sequence> <crc32 of the body> <length of the body>` and a JSON
//! body. A torn, zeroed or flipped file is detected by it. Each is replaced atomically (temp, fsync, rename,
//! fsync of the folder). The agent never refuses to start because of one: what cannot be read is put aside as
//! `….corrupt` for a person to look at, and said.

use std::fs::DirBuilder;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::page::High;
use super::{Identity, KeptStamp, Mark, Progress};
use crate::durable::{self, FileId};
use crate::error::{Context, Error, Result};

const MAGIC: &str = "log-capturer checkpoint 1";

/// Everything that outlives the process.
#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Saved {
    /// The last record of the journal that is in it.
    #[serde(default)]
    pub journal: Mark,
    pub last_stamp_ns: i64,
    pub next_generation: u64,
    pub generations: Vec<SavedGeneration>,
    pub own_files: Vec<OwnFile>,
}

#[derive(Debug, PartialEq, Clone, Serialize, Deserialize)]
pub struct SavedGeneration {
    pub id: u64,
    pub source: String,
    pub filename: Option<AnyPath>,
    pub identity: Option<Identity>,
    pub lineage: u64,
    pub high: High,
    pub given_up: Vec<(String, u64)>,
    /// By the name of the sink, those that left the configuration too.
    pub sinks: Vec<(String, Progress)>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub stamps: Vec<KeptStamp>,
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub struct OwnFile {
    pub device: u64,
    pub inode: u64,
    pub path: AnyPath,
}

impl OwnFile {
    pub fn file_id(&self) -> FileId {
        FileId { device: self.device, inode: self.inode }
    }
}

/// A path of any bytes: a string where it is UTF-8, else its bytes.
#[derive(Debug, PartialEq, Clone, Serialize, Deserialize)]
#[serde(from = "PathForm", into = "PathForm")]
pub struct AnyPath(pub PathBuf);

#[derive(Clone, Serialize, Deserialize)]
#[serde(untagged)]
enum PathForm {
    Text(String),
    Bytes(Vec<u8>),
}

impl From<PathForm> for AnyPath {
    fn from(form: PathForm) -> AnyPath {
        use std::os::unix::ffi::OsStringExt;
        AnyPath(match form {
            PathForm::Text(text) => PathBuf::from(text),
            PathForm::Bytes(bytes) => PathBuf::from(std::ffi::OsString::from_vec(bytes)),
        })
    }
}

impl From<AnyPath> for PathForm {
    fn from(path: AnyPath) -> PathForm {
        use std::os::unix::ffi::OsStringExt;
        match path.0.into_os_string().into_string() {
            Ok(text) => PathForm::Text(text),
            Err(bytes) => PathForm::Bytes(bytes.into_vec()),
        }
    }
}

/// The two files, and which comes next.
#[derive(Debug)]
pub struct Slots {
    folder: PathBuf,
    next_sequence: u64,
    /// Of each slot that is whole.
    marks: [Option<Mark>; 2],
}

impl Slots {
    /// Touches nothing if all is well. `None`: there has never been a checkpoint here. If there was and
    /// none is whole, the state is empty, but no first start: that would skip what stands in the files.
    pub fn open(folder: &Path) -> (Slots, Option<Saved>) {
        let mut newest: Option<(u64, Saved)> = None;
        let (mut damaged, mut marks) = (false, [None; 2]);
        for slot in 0..2 {
            let path = slot_path(folder, slot);
            match read(&path) {
                Ok(Some((sequence, saved))) => {
                    marks[slot as usize] = Some(saved.journal);
                    if newest.as_ref().is_none_or(|(known, _)| sequence > *known) {
                        newest = Some((sequence, saved));
                    }
                }
                Ok(None) => damaged |= path.with_extension("corrupt").exists(),
                Err(cause) => {
                    damaged = true;
                    let aside = path.with_extension("corrupt");
                    log::error!(
                        "ledger: {cause}; using the other checkpoint, this one is kept as {}",
                        aside.display()
                    );
                    if let Err(cause) = durable::rename(&path, &aside) {
                        log::error!("ledger: {cause}");
                    }
                }
            }
        }
        let next_sequence = newest.as_ref().map_or(1, |(sequence, _)| sequence + 1);
        let found = newest.map(|(_, saved)| saved).or_else(|| damaged.then(Saved::default));
        (Slots { folder: folder.to_owned(), next_sequence, marks }, found)
    }

    /// Of the newest checkpoint that is whole; `None`: there is none.
    pub fn mark(&self) -> Option<Mark> {
        self.marks.iter().flatten().max().copied()
    }

    /// Both checkpoints hold the journal up to here.
    pub fn passed(&self) -> u64 {
        self.marks.iter().map(|mark| mark.map_or(0, |mark| mark.sequence)).min().unwrap_or(0)
    }

    /// Replaces the older of the two. The folder is made if it is not there: on a disk that was full at the
    /// start, or for somebody who has deleted it meanwhile.
    pub fn write(&mut self, saved: &Saved) -> Result<()> {
        let made = DirBuilder::new().recursive(true).mode(0o700).create(&self.folder);
        made.context(|| format!("could not create the folder {}", self.folder.display()))?;
        let body = serde_json::to_vec(saved).context(|| "could not encode the checkpoint".into())?;
        let sum = crc32fast::hash(&body);
        let mut bytes = format!("{MAGIC} {} {sum:08x} {}\n", self.next_sequence, body.len()).into_bytes();
        bytes.extend_from_slice(&body);
        durable::write_atomic(&slot_path(&self.folder, self.next_sequence % 2), &bytes)?;
        self.marks[(self.next_sequence % 2) as usize] = Some(saved.journal);
        self.next_sequence += 1;
        Ok(())
    }
}

fn slot_path(folder: &Path, slot: u64) -> PathBuf {
    folder.join(format!("checkpoint-{slot}"))
}

fn read(path: &Path) -> Result<Option<(u64, Saved)>> {
    let bytes = match std::fs::read(path) {
        Ok(bytes) => bytes,
        Err(cause) if cause.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(cause) => return Err(Error::new(format!("could not read {}: {cause}", path.display()))),
    };
    let bad = |why: &str| Error::new(format!("{} is not a whole checkpoint: {why}", path.display()));
    let end = memchr::memchr(b'\n', &bytes).ok_or_else(|| bad("its first line has no end"))?;
    let (head, body) = (&bytes[..end], &bytes[end + 1..]);
    let head = std::str::from_utf8(head).ok().and_then(|head| head.strip_prefix(MAGIC));
    let fields: Vec<&str> =
        head.ok_or_else(|| bad("its first line is not ours"))?.split_ascii_whitespace().collect();
    let [sequence, sum, length] = fields[..] else { return Err(bad("its first line is not ours")) };
    if length.parse() != Ok(body.len()) {
        return Err(bad("its length is wrong"));
    }
    if u32::from_str_radix(sum, 16) != Ok(crc32fast::hash(body)) {
        return Err(bad("its checksum is wrong"));
    }
    let sequence = sequence.parse().map_err(|_| bad("its sequence is no number"))?;
    let saved = serde_json::from_slice(body).map_err(|cause| bad(&cause.to_string()))?;
    Ok(Some((sequence, saved)))
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "the tests damage files on purpose")]
mod tests {
    use super::*;

    fn saved(stamp: i64) -> Saved {
        let path = AnyPath(PathBuf::from("/var/log/a"));
        Saved {
            journal: Mark::default(),
            last_stamp_ns: stamp,
            next_generation: 3,
            generations: vec![SavedGeneration {
                id: 2,
                source: "files".into(),
                filename: Some(path),
                identity: None,
                lineage: 9,
                high: High { to: 70, line: 4, continues: true, before: None, cursor: None },
                stamps: Vec::new(),
                given_up: vec![("truncated".into(), 7)],
                sinks: vec![("loki".into(), Progress::starting_at(40))],
            }],
            own_files: Vec::new(),
        }
    }

    #[test]
    fn the_newest_whole_checkpoint_is_used_whatever_happened_to_the_other() {
        for (damage, expected) in [("none", 3), ("torn", 2), ("zeroed", 2), ("flipped", 2), ("deleted", 2)] {
            let folder = tempfile::tempdir().unwrap();
            let (mut slots, none) = Slots::open(folder.path());
            assert!(none.is_none());
            for stamp in 1..=3 {
                slots.write(&saved(stamp)).unwrap();
            }
            let newest = slot_path(folder.path(), 1);
            let bytes = std::fs::read(&newest).unwrap();
            match damage {
                "torn" => std::fs::write(&newest, &bytes[..bytes.len() - 5]).unwrap(),
                "zeroed" => std::fs::write(&newest, vec![0; bytes.len()]).unwrap(),
                "flipped" => {
                    let mut flipped = bytes.clone();
                    *flipped.last_mut().unwrap() ^= 4;
                    std::fs::write(&newest, flipped).unwrap();
                }
                "deleted" => std::fs::remove_file(&newest).unwrap(),
                _ => {}
            }
            let (mut slots, found) = Slots::open(folder.path());
            assert_eq!(found.unwrap(), saved(expected), "{damage}");
            slots.write(&saved(10)).unwrap();
            assert_eq!(Slots::open(folder.path()).1.unwrap(), saved(10), "{damage}");
        }
    }

    #[test]
    fn a_folder_that_somebody_deleted_is_made_again() {
        let folder = tempfile::tempdir().unwrap();
        let ledger = folder.path().join("data/ledger");
        let (mut slots, _) = Slots::open(&ledger);
        assert!(!ledger.exists());
        for stamp in 1..=2 {
            slots.write(&saved(stamp)).unwrap();
            assert_eq!(Slots::open(&ledger).1, Some(saved(stamp)));
            std::fs::remove_dir_all(folder.path().join("data")).unwrap();
        }
    }

    #[test]
    fn a_state_that_is_all_damaged_is_empty_and_was_there() {
        let folder = tempfile::tempdir().unwrap();
        let (mut slots, _) = Slots::open(folder.path());
        (1..=2).for_each(|stamp| slots.write(&saved(stamp)).unwrap());
        (0..2).for_each(|slot| std::fs::write(slot_path(folder.path(), slot), b"\0\0").unwrap());
        for life in 1..=2 {
            let found = Slots::open(folder.path()).1;
            assert_eq!(found, Some(Saved::default()), "life {life}, which saved nothing either");
        }
    }

    #[test]
    fn a_path_that_is_no_text_survives() {
        use std::os::unix::ffi::OsStringExt;
        let odd = AnyPath(PathBuf::from(std::ffi::OsString::from_vec(b"/a\xff\nb".to_vec())));
        let text = serde_json::to_string(&odd).unwrap();
        assert_eq!(serde_json::from_str::<AnyPath>(&text).unwrap(), odd);
    }
}
