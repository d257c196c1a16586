//! The leak watch: what can grow, how large it may be, and when growth is suspicious. Pure.
//!
//! [`THINGS`] is the whole list. Each thing has a bound that follows from the configuration ([`Scale`]) and from
//! what the agent has to do at the moment ([`Sample`]); the reason for each stands beside it. A bound is no limit:
//! nothing is stopped by it. It is what must hold if nothing leaks.
//!
//! Always true: one [`Verdict`] per change of state. Above the bound for [`PATIENCE`] samples in a row is a
//! suspicion, since the figures of one sample are not all of the same instant; one sample within it ends it.

use super::process::Footprint;
use crate::budget::READ_BYTES;
use crate::ledger::{NOTES, SPARE_SEGMENTS};
use crate::monitors::CHUNK_OVERHEAD;
use crate::monitors::file::discovery::COMPLAINTS_MAX;
use crate::monitors::file::files::most_rested;
use crate::pipeline::LABEL_SETS_BYTES_MAX;
use crate::sinks::file::{JOURNAL_SEGMENTS_MAX, OPEN_MAX, UNSYNCED_MAX};

/// Samples in a row above the bound.
pub const PATIENCE: u32 = 3;

/// The lock of `data_dir`, the two checkpoints, the pipes of `stop`, `abort` and `ended`, inotify, the listener, and
/// what keeps it open for the next life.
const OWN_DESCRIPTORS: u64 = 1 + 2 + 3 * 2 + 1 + 1 + 1;

/// Open for a moment: a checkpoint and its folder, the dead letters and theirs, a folder in a sweep, a file that
/// is being looked at, what a look-up reads, and a client that has just come.
const PASSING_DESCRIPTORS: u64 = 16;

/// A socket in use, and the one it replaces.
const DESCRIPTORS_PER_CONNECTION: u64 = 2;

/// Readers of containers that have just gone, on their way out.
const PASSING_HELPERS: u64 = 8;

/// The bell of its readers, its events, and a call.
const DESCRIPTORS_PER_ENGINE: u64 = 3;

/// A spool: the segment that is written, the one that is read, and how far it is.
const SPOOL_DESCRIPTORS: u64 = 3;

/// Its cursor and folders, and segments that were dropped before they were synced.
const SPOOL_UNSYNCED: u64 = 4 + 16;

/// Code that was not touched yet when the agent started (the binary has some 6 MiB), tables of expressions, TLS,
/// and a few answers of the status server on their way.
const BASE_BYTES: u64 = 32 << 20;

/// The stack that a thread touches, and the arena that the allocator gives it.
const BYTES_PER_THREAD: u64 = 256 << 10;

/// Paths, maps, its pages in the ledger, and its line in a checkpoint, which is built in memory.
const BYTES_PER_FILE: u64 = 8 << 10;

/// Series that every agent has, and those of the leak watch: three per thing.
const SERIES: u64 = 75 + 3 * COUNT as u64;

/// How many things there are.
pub const COUNT: usize = 35;

/// What the configuration says about sizes.
#[derive(Clone, Debug, Default)]
pub struct Scale {
    /// Of the process, before the first thread was started: what is not ours.
    pub at_start: Option<Footprint>,
    /// That the agent starts, the main thread not counted.
    pub threads: u64,
    /// Connections of all sinks together.
    pub connections: u64,
    pub sinks: u64,
    pub file_sinks: u64,
    pub workers: u64,
    pub stages: u64,
    pub label_stages: u64,
    pub open_files_max: u64,
    /// Sources that are streams.
    pub streams: u64,
    /// Sources that are engines.
    pub engines: u64,
    /// Generations that the last life has left.
    pub known: u64,
    /// Stamps that they had.
    pub known_stamps: u64,
    pub memory_budget: u64,
    /// The part of it that is for chunks.
    pub chunk_bytes: u64,
    pub dead_letters_max_bytes: u64,
    /// Of all spools together; `None`: one of them is only emptied, and as large as it was left.
    pub spools_max_bytes: Option<u64>,
}

/// What was found at one moment. `None`: not known, or the room it is of is not in use.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sample {
    pub threads: Option<u64>,
    pub descriptors: Option<u64>,
    pub resident_bytes: Option<u64>,
    pub tasks: Option<u64>,
    pub helpers: Option<u64>,
    pub containers_followed: Option<u64>,
    /// That may have a page in the ledger.
    pub containers_known: Option<u64>,
    /// That the engine has no more.
    pub containers_gone: Option<u64>,
    pub containers_in_line: Option<u64>,
    /// Of the file monitor: these at the moment of its last view.
    pub files_shown: Option<u64>,
    pub files_matching: Option<u64>,
    pub files_gone: Option<u64>,
    pub files_overdue: Option<u64>,
    pub paths: Option<u64>,
    pub lineages: Option<u64>,
    pub files_in_line: Option<u64>,
    pub files_rested: Option<u64>,
    pub passed_over: Option<u64>,
    pub not_met: Option<u64>,
    pub folders: Option<u64>,
    pub watches: Option<u64>,
    pub complaints: Option<u64>,
    /// And these at this one.
    pub files_followed: Option<u64>,
    pub files_open: Option<u64>,
    pub generations: Option<u64>,
    pub generations_finished: Option<u64>,
    pub open_chunks: Option<u64>,
    pub kept_stamps: Option<u64>,
    pub journal_segments: Option<u64>,
    pub journal_segments_needed: Option<u64>,
    pub budget_used: Option<u64>,
    pub budget_holders: Option<u64>,
    pub buffers_spare_bytes: Option<u64>,
    pub buffers_spare_most: Option<u64>,
    pub label_sets_bytes: Option<u64>,
    pub outputs_open: Option<u64>,
    pub output_journal_segments: Option<u64>,
    pub spool_files: Option<u64>,
    pub spool_bytes: Option<u64>,
    pub spool_former: Option<u64>,
    pub outputs_unsynced: Option<u64>,
    pub own_files: Option<u64>,
    pub own_files_room: Option<u64>,
    pub dead_letter_bytes: Option<u64>,
    pub status_clients: Option<u64>,
    pub series: Option<u64>,
}

/// Something that can grow.
pub struct Thing {
    /// As metrics call it.
    pub what: &'static str,
    /// Where to look.
    pub place: &'static str,
    value: fn(&Sample) -> Option<u64>,
    /// `None`: no bound is known.
    bound: fn(&Scale, &Sample) -> Option<u64>,
}

/// A room that is not in use has nothing.
fn n(figure: Option<u64>) -> u64 {
    figure.unwrap_or(0)
}

pub static THINGS: [Thing; COUNT] = [
    // Exactly: who was there before us, every thread that the wiring has, and the helpers, which are watched
    // themselves. Those that end early (the resolver when nobody needs one) make it smaller.
    Thing {
        what: "threads",
        place: "see /debug/threads",
        value: |sample| sample.threads,
        bound: |scale, sample| Some(scale.at_start?.threads + scale.threads + n(sample.helpers)),
    },
    // A row per thread that we started.
    Thing {
        what: "tasks",
        place: "rows of the task table; see /api/v1/tasks",
        value: |sample| sample.tasks,
        bound: |scale, sample| Some(scale.threads + n(sample.helpers)),
    },
    // One per container.
    Thing {
        what: "helpers",
        place: "threads that come and go, those included that nobody has joined; see /api/v1/tasks",
        value: |sample| sample.helpers,
        bound: |_, sample| Some(n(sample.containers_followed) + PASSING_HELPERS),
    },
    // The sum of all who hold some. Those who hold many tell how many they hold *now*, and are watched
    // themselves below: with what they may hold at most, a leak of ten would hide for years.
    Thing {
        what: "descriptors",
        place: "of the process; see /proc/<pid>/fd",
        value: |sample| sample.descriptors,
        bound: |scale, sample| {
            let held = n(sample.files_open) + n(sample.outputs_open) + n(sample.outputs_unsynced);
            let held = held + n(sample.journal_segments) + n(sample.output_journal_segments);
            let connections = scale.connections + n(sample.helpers);
            let held = held + SPOOL_DESCRIPTORS * scale.sinks;
            let sockets = DESCRIPTORS_PER_CONNECTION * connections + n(sample.status_clients);
            let bells = n(sample.containers_followed);
            let own = OWN_DESCRIPTORS + DESCRIPTORS_PER_ENGINE * scale.engines;
            Some(scale.at_start?.descriptors + own + PASSING_DESCRIPTORS + held + sockets + bells)
        },
    },
    // Twice the budget, since an allocator keeps what was freed in another size; then what grows with the number
    // of threads, files and label sets, and is not paid for from the budget.
    Thing {
        what: "resident_bytes",
        place: "memory of the process in RAM; see /debug/memory",
        value: |sample| sample.resident_bytes,
        bound: |scale, sample| {
            let files =
                n(sample.files_followed).max(n(sample.generations)) + n(sample.passed_over) + scale.known;
            let label_sets = scale.workers * scale.label_stages * LABEL_SETS_BYTES_MAX as u64;
            let threads = (scale.threads + n(sample.helpers)) * BYTES_PER_THREAD;
            let tables = files * BYTES_PER_FILE + 2 * label_sets;
            Some(scale.at_start?.resident_bytes + BASE_BYTES + 2 * scale.memory_budget + threads + tables)
        },
    },
    // Those that match, and those that did and are not read to their end, or not for long enough.
    Thing {
        what: "files_followed",
        place: "the thread files: files that are followed; see /api/v1/sources",
        value: |sample| sample.files_shown,
        bound: |_, sample| Some(sample.files_matching? + n(sample.files_gone)),
    },
    Thing {
        what: "files_open",
        place: "the thread files: descriptors held on files that are followed",
        value: |sample| sample.files_open,
        bound: |scale, _| Some(scale.open_files_max),
    },
    // They leave within a minute after they are over, unless they stand in the line.
    Thing {
        what: "files_overdue",
        place: "the thread files: files that are gone and read, and were not let go",
        value: |sample| sample.files_overdue,
        bound: |_, sample| sample.files_in_line,
    },
    // One path leads to each file.
    Thing {
        what: "paths",
        place: "the thread files: which path leads to which file",
        value: |sample| sample.paths,
        bound: |_, sample| sample.files_shown,
    },
    // One newest file each.
    Thing {
        what: "lineages",
        place: "the thread files: the newest file of each lineage",
        value: |sample| sample.lineages,
        bound: |_, sample| sample.files_shown,
    },
    // A file stands in the line once.
    Thing {
        what: "files_in_line",
        place: "the thread files: the line of those with something to do",
        value: |sample| sample.files_in_line,
        bound: |_, sample| sample.files_shown,
    },
    // Its own rule: trimmed when it is longer.
    Thing {
        what: "files_rested",
        place: "the thread files: files whose descriptor can be closed",
        value: |sample| sample.files_rested,
        bound: |scale, _| Some(most_rested(scale.open_files_max)),
    },
    // They match, too. Between two sweeps a path may have had several of them.
    Thing {
        what: "files_passed_over",
        place: "the thread files: files without lines, compressed or binary",
        value: |sample| sample.passed_over,
        bound: |_, sample| Some(2 * sample.files_matching? + 64),
    },
    // Known from the last life: it can only shrink.
    Thing {
        what: "files_not_met",
        place: "the thread files: what the last life followed and this one has not found yet",
        value: |sample| sample.not_met,
        bound: |scale, _| Some(scale.known),
    },
    // One per folder that the last sweep asked for.
    Thing {
        what: "watches",
        place: "the thread discovery: folders that inotify watches",
        value: |sample| sample.watches,
        bound: |_, sample| sample.folders,
    },
    // Its own rule: no more are named.
    Thing {
        what: "folders_complained_of",
        place: "the thread discovery: folders that it could not look into, and has said so",
        value: |sample| sample.complaints,
        bound: |_, _| Some(COMPLAINTS_MAX as u64),
    },
    // Somebody reads each of them to its end; all others leave at once, and their cursors with them.
    Thing {
        what: "containers_gone",
        place: "the thread containers: places of containers that were removed; see /api/v1/sources",
        value: |sample| sample.containers_gone,
        bound: |_, sample| Some(n(sample.containers_followed) + PASSING_HELPERS),
    },
    // A container stands in the line once, and leaves it when it is removed.
    Thing {
        what: "containers_in_line",
        place: "the thread containers: stopped containers whose logs are to be looked through",
        value: |sample| sample.containers_in_line,
        bound: |_, sample| sample.containers_known,
    },
    // One per file that is followed, per stream and per container, those of the last life that were not met yet, and those that
    // are finished and not answered for.
    Thing {
        what: "generations",
        place: "the thread ledger: one life of a file each; see /api/v1/ledger",
        value: |sample| sample.generations,
        bound: |scale, sample| {
            let not_met = sample.not_met.unwrap_or(scale.known);
            let containers = n(sample.containers_known);
            Some(
                n(sample.files_followed)
                    + scale.streams
                    + containers
                    + not_met
                    + n(sample.generations_finished),
            )
        },
    },
    // Each waits for an answer about at least one chunk.
    Thing {
        what: "generations_finished",
        place: "the thread ledger: finished generations that wait for the answer of a sink",
        value: |sample| sample.generations_finished,
        bound: |_, sample| sample.open_chunks,
    },
    // Each has a buffer that is paid for, or its receipt is on the way to the ledger.
    Thing {
        what: "open_chunks",
        place: "the thread ledger: chunks that some sink has not answered for",
        value: |sample| sample.open_chunks,
        bound: |_, sample| Some(sample.budget_used? / CHUNK_OVERHEAD as u64 + 2 * NOTES as u64),
    },
    // One per chunk that is under way, and those that the last life left, which can only become fewer.
    Thing {
        what: "kept_stamps",
        place: "the thread ledger: how chunks were cut and timed that some sink has not answered for",
        value: |sample| sample.kept_stamps,
        bound: |scale, sample| {
            let chunks = (sample.budget_used? / CHUNK_OVERHEAD as u64).max(n(sample.open_chunks));
            Some(scale.known_stamps + chunks + 2 * NOTES as u64)
        },
    },
    // Its own rule, whenever one is begun: those that both checkpoints are past are used again, but for a few.
    Thing {
        what: "journal_segments",
        place: "the thread files: data_dir/ledger/journal-*, 1 MiB each",
        value: |sample| sample.journal_segments,
        bound: |_, sample| Some(sample.journal_segments_needed? + SPARE_SEGMENTS as u64),
    },
    // One per generation that is being read, for as long as a chunk of it is alive.
    Thing {
        what: "budget_holders",
        place: "credit for chunks: sources that may hold some; see /debug/memory",
        value: |sample| sample.budget_holders,
        bound: |scale, sample| {
            let readers = n(sample.files_followed) + n(sample.containers_known) + scale.streams;
            Some(readers + n(sample.generations) + scale.sinks + 2 * NOTES as u64)
        },
    },
    // Stages may overdraw it by what they add to a chunk. With every chunk answered for, only the reads that are
    // being made now and the last batch of each connection hold some.
    Thing {
        what: "budget_used_bytes",
        place: "credit for chunks; see /debug/memory for who holds it",
        value: |sample| sample.budget_used,
        bound: |scale, sample| match sample.open_chunks? {
            0 => Some((2 + scale.streams + scale.connections) * 2 * READ_BYTES as u64),
            _ => Some(2 * scale.chunk_bytes),
        },
    },
    // Its own rule.
    Thing {
        what: "buffers_pooled_bytes",
        place: "buffers of chunks that wait to be used again",
        value: |sample| sample.buffers_spare_bytes,
        bound: |_, sample| sample.buffers_spare_most,
    },
    // Its own rule, for each worker and stage.
    Thing {
        what: "label_sets_bytes",
        place: "the workers: label sets that are kept to be shared",
        value: |sample| sample.label_sets_bytes,
        bound: |scale, _| Some(scale.workers * scale.label_stages * LABEL_SETS_BYTES_MAX as u64),
    },
    // Its own rule, for each sink.
    Thing {
        what: "outputs_open",
        place: "the senders of file sinks: outputs that are held open",
        value: |sample| sample.outputs_open,
        bound: |scale, _| Some(scale.file_sinks * OPEN_MAX as u64),
    },
    // Its own rule, for each sink.
    Thing {
        what: "output_journal_segments",
        place: "the senders of file sinks: data_dir/outputs/<sink>/journal-*, 1 MiB each",
        value: |sample| sample.output_journal_segments,
        bound: |scale, _| Some(scale.file_sinks * JOURNAL_SEGMENTS_MAX as u64),
    },
    // Looked at when an output is opened: those that are open already may be noted again after that, and each new
    // one with its folder; then the dead letters, and the segments of spools.
    Thing {
        what: "outputs_unsynced",
        place: "the ledger and the senders of file sinks: files that are held open until they are synced",
        value: |sample| sample.outputs_unsynced,
        bound: |scale, sample| {
            let spools = n(sample.spool_files) + scale.sinks * SPOOL_UNSYNCED;
            Some(UNSYNCED_MAX as u64 + scale.file_sinks * (OPEN_MAX as u64 + 2) + 4 + spools)
        },
    },
    // Their own rule, over which one frame may go. A spool remembers nothing of what is not there: its lists have an
    // entry for each of its files, and for each frame that is under way.
    Thing {
        what: "spool_bytes",
        place: "the lanes: spools on the disk; see /api/v1/sinks",
        value: |sample| sample.spool_bytes,
        bound: |scale, _| Some(scale.spools_max_bytes? + scale.sinks * 2 * scale.memory_budget),
    },
    // At most all that the last life left, for each sink; none any more once its spool is emptied.
    Thing {
        what: "spool_former",
        place: "the lanes: generations of which the sink had some of the spool when the last life died",
        value: |sample| sample.spool_former,
        bound: |scale, _| Some(scale.sinks * scale.known),
    },
    // Its own rule: those that are gone are looked for when it is longer.
    Thing {
        what: "own_files",
        place: "files that the agent itself writes",
        value: |sample| sample.own_files,
        bound: |_, sample| Some(sample.own_files_room? + 1),
    },
    // What is refused beyond it.
    Thing {
        what: "dead_letter_bytes",
        place: "deadletter/deadletter.jsonl in data_dir",
        value: |sample| sample.dead_letter_bytes,
        bound: |scale, _| Some(scale.dead_letters_max_bytes),
    },
    // Labels come from the configuration only.
    Thing {
        what: "metric_series",
        place: "counters and gauges; see /metrics",
        value: |sample| sample.series,
        bound: |scale, _| Some(SERIES + 16 * scale.sinks + 4 * scale.stages),
    },
];

/// What a thing measures, and how much it may.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reading {
    pub value: u64,
    pub bound: u64,
}

impl Thing {
    /// `None`: it is not in use, or no bound is known.
    pub fn read(&self, scale: &Scale, sample: &Sample) -> Option<Reading> {
        Some(Reading { value: (self.value)(sample)?, bound: (self.bound)(scale, sample)? })
    }

    /// As people read it.
    pub fn words(&self) -> String {
        self.what.replace('_', " ")
    }
}

/// What is remembered of one thing from sample to sample.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Suspect {
    /// Samples above the bound, in a row.
    above: u32,
    /// The last value that was within it.
    within: Option<u64>,
    pub is_suspected: bool,
}

/// A change of state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// `from`: when it was last within its bound; `None`: never.
    Grew {
        from: Option<u64>,
        reading: Reading,
    },
    Back {
        reading: Reading,
    },
}

impl Suspect {
    /// At the last sample.
    pub fn is_within(&self) -> bool {
        self.above == 0
    }
}

/// One sample more of one thing.
pub fn judge(suspect: &mut Suspect, reading: Reading) -> Option<Verdict> {
    if reading.value <= reading.bound {
        (suspect.above, suspect.within) = (0, Some(reading.value));
        let was_suspected = std::mem::replace(&mut suspect.is_suspected, false);
        return was_suspected.then_some(Verdict::Back { reading });
    }
    suspect.above = suspect.above.saturating_add(1);
    let is_news = suspect.above >= PATIENCE && !suspect.is_suspected;
    suspect.is_suspected |= is_news;
    is_news.then_some(Verdict::Grew { from: suspect.within, reading })
}

#[cfg(test)]
mod tests;
