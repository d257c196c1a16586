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
use crate::ledger::NOTES;
use crate::monitors::CHUNK_OVERHEAD;
use crate::pipeline::LABEL_SETS_BYTES_MAX;
use crate::sinks::file::{OPEN_MAX, UNSYNCED_MAX};

/// Samples in a row above the bound.
pub const PATIENCE: u32 = 3;

/// The lock of `data_dir`, the pipes of `stop`, `abort` and `ended`, inotify, the listener, and what keeps it open
/// for the next life.
const OWN_DESCRIPTORS: u64 = 1 + 3 * 2 + 1 + 1 + 1;

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
const SERIES: u64 = 72 + 3 * COUNT as u64;

/// How many things there are.
pub const COUNT: usize = 25;

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
    /// Of the file monitor: these at the moment of its last view.
    pub files_shown: Option<u64>,
    pub files_matching: Option<u64>,
    pub files_gone: Option<u64>,
    pub paths: Option<u64>,
    pub lineages: Option<u64>,
    pub files_in_line: Option<u64>,
    pub files_rested: Option<u64>,
    pub passed_over: Option<u64>,
    pub not_met: Option<u64>,
    pub folders: Option<u64>,
    pub watches: Option<u64>,
    /// And these at this one.
    pub files_followed: Option<u64>,
    pub files_open: Option<u64>,
    pub generations: Option<u64>,
    pub generations_finished: Option<u64>,
    pub open_chunks: Option<u64>,
    pub budget_used: Option<u64>,
    pub label_sets_bytes: Option<u64>,
    pub outputs_open: Option<u64>,
    pub spool_files: Option<u64>,
    pub spool_bytes: Option<u64>,
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
            let connections = scale.connections + n(sample.helpers);
            let held = held + SPOOL_DESCRIPTORS * scale.sinks;
            let sockets = DESCRIPTORS_PER_CONNECTION * connections + n(sample.status_clients);
            let own = OWN_DESCRIPTORS + DESCRIPTORS_PER_ENGINE * scale.engines;
            Some(scale.at_start?.descriptors + own + PASSING_DESCRIPTORS + held + sockets)
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
        bound: |_, sample| Some(2 * sample.files_shown? + 64),
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
    // Their own rule, over which one frame may go.
    Thing {
        what: "spool_bytes",
        place: "the lanes: spools on the disk; see /api/v1/sinks",
        value: |sample| sample.spool_bytes,
        bound: |scale, _| Some(scale.spools_max_bytes? + scale.sinks * 2 * scale.memory_budget),
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
mod tests {
    use super::*;

    /// Values against a bound of 10, and what is said: `+` grew, `-` back, `.` nothing.
    fn check(values: &[u64], said: &str) {
        let mut suspect = Suspect::default();
        let word = |value: &u64| match judge(&mut suspect, Reading { value: *value, bound: 10 }) {
            None => '.',
            Some(Verdict::Grew { .. }) => '+',
            Some(Verdict::Back { .. }) => '-',
        };
        assert_eq!(values.iter().map(word).collect::<String>(), said, "{values:?}");
    }

    #[test]
    fn one_word_per_change_of_state() {
        check(&[0, 10, 10, 10], "....");
        check(&[11, 11, 11, 11, 12, 99], "..+...");
        check(&[11, 11, 10, 11, 11, 10], "......");
        check(&[11, 11, 10, 11, 11, 11], ".....+");
        check(&[11, 11, 11, 10, 10], "..+-.");
        check(&[11, 11, 11, 10, 11, 11, 11], "..+-..+");
    }

    #[test]
    fn growth_is_told_from_the_last_value_that_was_right() {
        let mut suspect = Suspect::default();
        let mut said = [3, 7, 11, 12, 13].map(|value| judge(&mut suspect, Reading { value, bound: 10 }));
        let grew = Verdict::Grew { from: Some(7), reading: Reading { value: 13, bound: 10 } };
        assert_eq!(said[4].take(), Some(grew));
        assert_eq!(said, [None; 5]);
    }

    fn scale() -> Scale {
        let at_start = Footprint { threads: 1, descriptors: 5, resident_bytes: 4 << 20, peak_bytes: 0 };
        Scale {
            at_start: Some(at_start),
            threads: 12,
            connections: 3,
            sinks: 2,
            file_sinks: 1,
            workers: 2,
            stages: 3,
            label_stages: 1,
            open_files_max: 512,
            streams: 1,
            engines: 0,
            known: 7,
            memory_budget: 16 << 20,
            chunk_bytes: 8 << 20,
            spools_max_bytes: Some(2 << 30),
            dead_letters_max_bytes: 1000,
        }
    }

    fn bound(what: &str, sample: Sample) -> Option<u64> {
        let thing = THINGS.iter().find(|thing| thing.what == what).unwrap_or_else(|| panic!("no {what}"));
        (thing.bound)(&scale(), &sample)
    }

    #[test]
    fn bounds_follow_the_configuration_and_the_work() {
        let check = |what: &str, sample: Sample, expected: u64| {
            assert_eq!(bound(what, sample.clone()), Some(expected), "{what} with {sample:?}");
        };
        let some = Some;
        let idle = Sample::default;
        check("threads", idle(), 13);
        check("tasks", idle(), 12);
        let readers = Sample { helpers: some(5), containers_followed: some(4), ..idle() };
        check("threads", readers.clone(), 18);
        check("tasks", readers.clone(), 17);
        check("helpers", readers.clone(), 12);
        check("descriptors", readers, 37 + 6 + 10);
        check("descriptors", idle(), 5 + 10 + 16 + 6 + 2 * 3);
        let busy = Sample {
            files_open: some(100),
            outputs_open: some(10),
            outputs_unsynced: some(20),
            status_clients: some(4),
            ..idle()
        };
        check("descriptors", busy, 37 + 6 + 134);
        let mib = 1 << 20;
        check("resident_bytes", idle(), (4 + 32 + 32 + 3 + 1) * mib + 7 * 8192);
        let files = Sample { files_followed: some(1280), generations: some(1300), ..idle() };
        check("resident_bytes", files, 72 * mib + 1307 * 8192);
        let files = Sample { files_matching: some(10), files_gone: some(2), files_shown: some(12), ..idle() };
        check("files_followed", files.clone(), 12);
        check("files_open", files.clone(), 512);
        check("paths", files.clone(), 12);
        check("lineages", files.clone(), 12);
        check("files_in_line", files.clone(), 12);
        check("files_rested", files.clone(), 88);
        check("files_passed_over", files.clone(), 84);
        check("files_not_met", files, 7);
        check("watches", Sample { folders: some(3), ..idle() }, 3);
        check("generations", Sample { files_followed: some(5), ..idle() }, 5 + 1 + 7);
        let finished = Sample {
            files_followed: some(5),
            not_met: some(2),
            generations_finished: some(4),
            open_chunks: some(6),
            ..idle()
        };
        check("generations", finished.clone(), 5 + 1 + 2 + 4);
        check("generations_finished", finished, 6);
        check("open_chunks", Sample { budget_used: some(7680), ..idle() }, 10 + 512);
        check("budget_used_bytes", Sample { open_chunks: some(0), ..idle() }, 3 * mib);
        check("budget_used_bytes", Sample { open_chunks: some(1), ..idle() }, 16 * mib);
        check("label_sets_bytes", idle(), 512 << 10);
        check("outputs_open", idle(), 64);
        check("outputs_unsynced", idle(), 256 + 66 + 4 + 2 * 20);
        check("own_files", Sample { own_files_room: some(256), ..idle() }, 257);
        check("dead_letter_bytes", idle(), 1000);
        check("metric_series", idle(), 72 + 75 + 32 + 12);
    }

    #[test]
    fn nothing_is_said_about_what_is_not_known() {
        let nothing = Scale { at_start: None, ..scale() };
        let sample = Sample { threads: Some(1_000), paths: Some(1_000), ..Sample::default() };
        let read: Vec<&str> = THINGS
            .iter()
            .filter(|thing| thing.read(&nothing, &sample).is_some())
            .map(|thing| thing.what)
            .collect();
        assert_eq!(read, [""; 0]);
    }
}
