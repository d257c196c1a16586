//! What a checkpoint holds: the state as it is written down.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::page::High;
use super::{Identity, KeptStamp, Mark, Progress};
use crate::durable::FileId;

/// Everything that outlives the process. `G`: its generations, as a list of [`SavedGeneration`] or as what is written
/// like one.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Saved<G = Vec<SavedGeneration>> {
    /// Of the data folder: drawn at its first start.
    pub id: u64,
    /// The last record of the journal that is in it.
    pub journal: Mark,
    pub last_stamp_ns: i64,
    pub next_generation: u64,
    pub generations: G,
    pub own_files: Vec<OwnFile>,
}

/// What has changed since the frame before.
#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Changes<G = Vec<SavedGeneration>> {
    pub journal: Mark,
    pub last_stamp_ns: i64,
    pub next_generation: u64,
    /// As they are now, whole.
    pub generations: G,
    pub gone: Vec<u64>,
    /// All of them, if they have changed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub own_files: Option<Vec<OwnFile>>,
}

impl Saved {
    /// In the order in which they were written.
    pub fn apply(&mut self, all: Vec<Changes>) {
        if all.is_empty() {
            return;
        }
        let generations = std::mem::take(&mut self.generations).into_iter();
        let mut generations: BTreeMap<u64, SavedGeneration> =
            generations.map(|generation| (generation.id, generation)).collect();
        for changes in all {
            let Changes { journal, last_stamp_ns, next_generation, .. } = changes;
            self.journal = journal;
            (self.last_stamp_ns, self.next_generation) = (last_stamp_ns, next_generation);
            changes.gone.iter().for_each(|id| drop(generations.remove(id)));
            generations.extend(changes.generations.into_iter().map(|generation| (generation.id, generation)));
            self.own_files = changes.own_files.unwrap_or(std::mem::take(&mut self.own_files));
        }
        self.generations = generations.into_values().collect();
    }
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
    /// By the name of the sink: what of it stands in its spool and nowhere else.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub spooled: Vec<(String, Progress)>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub stamps: Vec<KeptStamp>,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub at_end: bool,
}

#[derive(Debug, PartialEq, Clone, Serialize, Deserialize)]
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
