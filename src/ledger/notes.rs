//! What the ledger is told, and what it tells those who go on after a restart.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use crossbeam_channel::Sender;
use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_64;

use super::{Mark, Progress};
use crate::ack::{Count, GenerationId, Receipt, Receipts, SinkSet};

/// Which file a generation is, whatever it is called. Compared field by field by the file monitor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    pub device: u64,
    pub inode: u64,
    /// Tells a new file with a reused inode from the old one.
    pub head: Head,
}

/// A hash of the first `len` bytes; grows with the file up to 1 KiB.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Head {
    pub len: u32,
    pub hash: u64,
    /// Always the same: it lets `None` be said without a word more, of which every file would have three.
    #[serde(skip)]
    given: Given,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Given {
    #[default]
    Yes,
    #[expect(dead_code, reason = "an enum of one takes no room, and has none for `None`")]
    Never,
}

impl Head {
    pub fn of(bytes: &[u8]) -> Head {
        Head::new(bytes.len() as u32, xxh3_64(bytes))
    }

    pub fn new(len: u32, hash: u64) -> Head {
        Head { len, hash, given: Given::Yes }
    }
}

/// A generation that was seen for the first time.
#[derive(Clone, Debug)]
pub struct Opened {
    pub generation: GenerationId,
    pub source: Arc<str>,
    pub filename: Option<Arc<Path>>,
    pub identity: Option<Identity>,
    pub lineage: u64,
    pub start: u64,
    /// Of a stream that is read by time, and not from its beginning.
    pub cursor: Option<Cursor>,
}

impl Note {
    /// Whether a checkpoint would be another one after it. What was let go, or not read, is as it was: an abort
    /// with thousands of files has no time to save the same again.
    pub(super) fn changes_the_state(&self) -> bool {
        match self {
            Note::Receipt(receipt) => receipt.answered().next().is_some(),
            Note::Receipts(receipts) => receipts.iter().any(|receipt| receipt.answered().next().is_some()),
            Note::Unread { .. } | Note::Unseen { .. } | Note::Stamping { .. } => false,
            Note::Several(notes) => notes.iter().any(Note::changes_the_state),
            _ => true,
        }
    }
}

/// What was read: sent before the chunk is, so that no receipt ever comes before it.
#[derive(Clone, Debug)]
pub struct Stamp {
    pub generation: GenerationId,
    pub start: u64,
    pub end: u64,
    pub first_line: u64,
    pub lines: u64,
    pub base_ns: i64,
    /// The first line goes on where an earlier record was cut; the last line was cut.
    pub continues: bool,
    pub cut: bool,
    /// Who lacked it.
    pub sinks: SinkSet,
    /// Of the last bytes, up to [`BEFORE_BYTES`]: a position behind them is believed only if they are still there.
    pub before: Head,
    /// Of a stream that is read by time: where it stands behind the last line.
    pub cursor: Option<Cursor>,
}

impl Stamp {
    pub fn count(&self) -> Count {
        Count { lines: self.lines, bytes: self.end - self.start }
    }
}

/// A stamp that some sink has not answered for, kept so that the same bytes are cut and timed the same again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeptStamp {
    pub start: u64,
    pub end: u64,
    /// Line `first_line + i` has the time `base_ns + i`.
    pub first_line: u64,
    pub lines: u64,
    pub base_ns: i64,
    pub continues: bool,
    pub cut: bool,
    /// Of the bytes in front of its start.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub before: Option<Head>,
    /// At its start.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cursor: Option<Cursor>,
}

/// Why bytes are given up that nobody has written: they are not missing.
pub const HOLE: &str = "a hole in the file";

/// How many bytes in front of a position tell whether it is still in the same text.
pub const BEFORE_BYTES: usize = 64;

/// Where a stream stands whose lines have times of their own, and which can be read again from a time on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cursor {
    /// Of the last line, in nanoseconds since 1970, as its source gave it.
    pub ns: i64,
    /// How many lines up to here had this time: to be skipped when it is read again from `ns` on.
    pub lines: u64,
}

/// Everything the ledger is told.
#[derive(Debug)]
pub enum Note {
    Opened(Box<Opened>),
    Identified {
        generation: GenerationId,
        identity: Identity,
    },
    Read(Stamp),
    /// The chunk that was read last of this generation was not handed over.
    TakenBack(Stamp),
    Receipt(Receipt),
    Receipts(Vec<Receipt>),
    /// Why nothing can be stamped, so that files wait; `None`: it can be again.
    Stamping {
        ill: Option<String>,
    },
    /// Bytes from the read position up to `upto` that will never be read.
    GaveUp {
        generation: GenerationId,
        upto: u64,
        why: Arc<str>,
    },
    /// The file is gone and was read to its end: forget it once every sink has answered.
    Finished {
        generation: GenerationId,
    },
    /// Whether its source is silent for good, as far as anybody knows, and all that it said was read.
    AtEnd {
        generation: GenerationId,
        at_end: bool,
    },
    /// At the end: what stands in the source and was not read.
    Unread {
        generation: GenerationId,
        bytes: u64,
    },
    /// At the end: folders that could not be looked into, or all of them when the first look was not over.
    Unseen {
        places: u64,
    },
    /// One behind the other, and none of them is of this kind.
    Several(Vec<Note>),
}

/// A generation as the last life left it: what a monitor needs to go on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Known {
    pub generation: GenerationId,
    pub source: Arc<str>,
    pub filename: Option<Arc<Path>>,
    pub identity: Option<Identity>,
    pub lineage: u64,
    /// Where to read on: the least over the sinks, or the start of the stamp that it lies in.
    pub position: u64,
    /// Of the bytes in front of the position, where they are known.
    pub before: Option<Head>,
    /// At the position.
    pub cursor: Option<Cursor>,
    /// Number of the line that starts there.
    pub line: u64,
    pub continues: bool,
    /// Its source was silent for good, and all that it said was read.
    pub at_end: bool,
    /// How what is read again was cut and timed: rising, disjoint, none ends before the position.
    pub stamps: Vec<KeptStamp>,
    /// What each sink of the configuration has of it, by [`crate::ack::SinkId`].
    pub progress: Vec<Progress>,
}

impl Known {
    /// Its source was silent for good, all that it said was read, and every sink has answered for it.
    pub fn is_whole(&self) -> bool {
        self.at_end && self.position >= self.known_to()
    }

    /// Up to here it was read: all of this did stand in the source once.
    pub fn known_to(&self) -> u64 {
        let edges = self.progress.iter().flat_map(|progress| progress.edges(self.position));
        edges.chain(self.stamps.last().map(|stamp| stamp.end)).max().unwrap_or(self.position)
    }
}

/// What the last life left behind.
#[derive(Debug)]
pub struct Restored {
    /// Of the data folder, for ever: what the ids of records begin with.
    pub id: Arc<str>,
    pub known: Vec<Known>,
    /// One more than any stamp that was given to a line of a file.
    pub last_stamp_ns: i64,
    pub next_generation: u64,
    /// There was no state at all: this is the first start in this `data_dir`.
    pub first_start: bool,
    /// What each sink has, by [`crate::ack::SinkId`], of generations that the ledger will meet once more: their
    /// numbers are derived from what they are, and the last life died before it could save them.
    pub foretold: Arc<BTreeMap<GenerationId, Vec<Progress>>>,
}

/// Bytes of a generation.
pub type Ranged = (GenerationId, Range<u64>);

/// A frame of a spool: what it answers for, and whether the sink has answered for it in turn.
pub type InSpool = (GenerationId, Range<u64>, bool);

/// The way to the ledger: one per carrier, cheap to clone. Notes are never dropped: a full channel makes the
/// carrier wait, and the ledger waits for nobody.
#[derive(Clone)]
pub struct Book(Sender<Noted>);

/// A note, and where it stands in the journal, if it does.
pub type Noted = (Note, Option<Mark>);

impl Book {
    pub(super) fn new(notes: Sender<Noted>) -> Book {
        Book(notes)
    }

    pub fn note(&self, note: Note) {
        self.noted(note, None);
    }

    /// A note that is in the journal, `mark` being its last record. In the order of the journal.
    pub fn noted(&self, note: Note, mark: Option<Mark>) {
        // The ledger outlives every carrier; only a ledger that panicked is gone, and the agent is stopping then.
        let _ = self.0.send((note, mark));
    }
}

impl Receipts for Book {
    fn receipt(&self, receipt: Receipt) {
        self.note(Note::Receipt(receipt));
    }

    fn receipts(&self, receipts: Vec<Receipt>) {
        self.note(Note::Receipts(receipts));
    }
}
