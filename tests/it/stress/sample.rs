//! The agent at one moment: what the kernel says of its process, and what it says of itself.
//!
//! Formats: proc(5), `/proc/pid/statm`, `/proc/pid/stat`, `/proc/pid/fd`, `/proc/pid/task`.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use serde_json::Value;

use crate::agent::{Agent, Room};

/// A picture of the process. What is of the page of books is up to `sync_interval` (a second) old.
#[derive(Clone, Default)]
pub struct Sample {
    /// Seconds since the agent started.
    pub at: f64,
    pub mood: &'static str,
    pub threads: usize,
    /// Threads in the table of tasks, and the main thread, which has no row there.
    pub tasks: usize,
    /// Thread ids that are only in one of the two.
    pub apart: BTreeSet<i32>,
    pub foreign: u64,
    pub descriptors: Descriptors,
    pub resident_bytes: u64,
    /// `None`: this agent does not count them (see `scripts/stress-test.sh`).
    pub heap_bytes: Option<u64>,
    pub cpu_seconds: f64,
    pub budget_bytes: u64,
    /// Lines, for each sink.
    pub pending: [u64; 2],
    pub delivered: [u64; 2],
    pub followed: u64,
    /// Containers that are being read.
    pub containers: u64,
    pub generations: u64,
    /// The larger of the two.
    pub checkpoint_bytes: u64,
    /// Of the task that is busy and has been silent for longest.
    pub silence_ms: u64,
    /// Lines, of all writers.
    pub written: u64,
}

/// What the open descriptors lead to.
#[derive(Clone, Copy, Default)]
pub struct Descriptors {
    pub logs: usize,
    pub outputs: usize,
    /// Logs and outputs that have no name any more.
    pub deleted: usize,
    /// Files of journals and spools: more after a burst, within limits of their own.
    pub segments: usize,
    /// Sockets, pipes, state: what does not depend on how many files there are.
    pub others: usize,
}

impl Descriptors {
    pub fn all(&self) -> usize {
        self.logs + self.outputs + self.deleted + self.segments + self.others
    }

    pub fn of(pid: u32, room: &Room) -> Descriptors {
        let (logs, out, data) = (room.path("logs"), room.path("out"), room.path("data"));
        let is_segment = |path: &Path| {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            let is_one = name.starts_with("journal-") || name.starts_with("segment-") || name == "cursor";
            path.starts_with(&data) && is_one
        };
        let mut open = Descriptors::default();
        for entry in fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten() {
            let Ok(target) = fs::read_link(entry.path()) else { continue }; // closed while we looked
            let ours = target.starts_with(&logs) || target.starts_with(&out);
            let kind = match ours {
                true if target.to_string_lossy().ends_with(" (deleted)") => &mut open.deleted,
                true if target.starts_with(&logs) => &mut open.logs,
                true => &mut open.outputs,
                false if is_segment(&target) => &mut open.segments,
                false => &mut open.others,
            };
            *kind += 1;
        }
        open
    }
}

/// The names of the columns of `samples.csv`, and how a sample fills them.
type Column = (&'static str, fn(&Sample) -> String);

const COLUMNS: [Column; 25] = [
    ("seconds", |sample| format!("{:.2}", sample.at)),
    ("mood", |sample| sample.mood.to_string()),
    ("threads_of_process", |sample| sample.threads.to_string()),
    ("threads_in_table", |sample| sample.tasks.to_string()),
    ("threads_in_one_only", |sample| sample.apart.len().to_string()),
    ("foreign_threads", |sample| sample.foreign.to_string()),
    ("descriptors", |sample| sample.descriptors.all().to_string()),
    ("descriptors_logs", |sample| sample.descriptors.logs.to_string()),
    ("descriptors_outputs", |sample| sample.descriptors.outputs.to_string()),
    ("descriptors_deleted", |sample| sample.descriptors.deleted.to_string()),
    ("descriptors_others", |sample| sample.descriptors.others.to_string()),
    ("resident_bytes", |sample| sample.resident_bytes.to_string()),
    ("heap_live_bytes", |sample| sample.heap_bytes.map_or_else(String::new, |bytes| bytes.to_string())),
    ("cpu_seconds", |sample| format!("{:.2}", sample.cpu_seconds)),
    ("budget_used_bytes", |sample| sample.budget_bytes.to_string()),
    ("pending_lines_loki", |sample| sample.pending[0].to_string()),
    ("pending_lines_file", |sample| sample.pending[1].to_string()),
    ("files_followed", |sample| sample.followed.to_string()),
    ("containers_followed", |sample| sample.containers.to_string()),
    ("ledger_generations", |sample| sample.generations.to_string()),
    ("checkpoint_bytes", |sample| sample.checkpoint_bytes.to_string()),
    ("largest_silence_ms", |sample| sample.silence_ms.to_string()),
    ("written_lines", |sample| sample.written.to_string()),
    ("delivered_lines_loki", |sample| sample.delivered[0].to_string()),
    ("delivered_lines_file", |sample| sample.delivered[1].to_string()),
];

pub fn csv_head() -> String {
    COLUMNS.map(|(name, _)| name).join(",")
}

impl Sample {
    /// Panics when the agent does not answer: it is asked as a watchdog would ask it.
    pub fn take(agent: &Agent, room: &Room, at: f64, mood: &'static str, written: u64) -> Sample {
        let pid = agent.pid();
        // Before anything is asked: the sockets of our own questions are none of its load.
        let (threads, descriptors) = (threads(pid), Descriptors::of(pid, room));
        let tasks = page(agent, "tasks");
        let ended = |task: &Value| matches!(task["state"].as_str(), Some("finished" | "failed"));
        let tasks: Vec<&Value> =
            tasks.as_array().expect("a list").iter().filter(|task| !ended(task)).collect();
        let mut table: BTreeSet<i32> = tasks.iter().map(|task| number(&task["tid"]) as i32).collect();
        table.insert(pid as i32);
        let silent = |task: &&&Value| task["state"] == "running";
        let silences = tasks.iter().filter(silent).map(|task| number(&task["silent_ms"]));
        let (status, ledger) = (page(agent, "status"), page(agent, "ledger"));
        let sinks = ["pending", "delivered"].map(|what| {
            [0, 1].map(|sink| {
                let value = &status["sinks"][sink][what];
                number(if what == "delivered" { &value["lines"] } else { value })
            })
        });
        Sample {
            at,
            mood,
            threads: threads.len(),
            tasks: table.len(),
            apart: threads.symmetric_difference(&table).copied().collect(),
            foreign: metric(agent, "foreign_threads").expect("it is always there"),
            descriptors,
            resident_bytes: resident_bytes(pid),
            heap_bytes: heap_bytes(agent),
            cpu_seconds: cpu_seconds(pid),
            budget_bytes: number(&status["budget"]["used"]),
            pending: sinks[0],
            delivered: sinks[1],
            followed: number(&page(agent, "sources")["followed"]),
            containers: metric(agent, "containers_followed").unwrap_or(0), // without an engine there is no such series
            generations: number(&ledger["generations"]),
            checkpoint_bytes: checkpoint_bytes(&room.path("data/ledger")),
            silence_ms: silences.max().unwrap_or(0),
            written,
        }
    }

    pub fn csv(&self) -> String {
        COLUMNS.map(|(_, fill)| fill(self)).join(",")
    }
}

fn page(agent: &Agent, name: &str) -> Value {
    let (code, body) = get(agent, &format!("/api/v1/{name}"));
    assert_eq!(code, 200, "{name}: {body}");
    serde_json::from_str(&body).unwrap_or_else(|cause| panic!("{name}: {cause}: {body}"))
}

#[track_caller]
fn number(value: &Value) -> u64 {
    value.as_u64().unwrap_or_else(|| panic!("not a number: {value}"))
}

/// Between two lives one who had no answer asks again.
fn get(agent: &Agent, path: &str) -> (u16, String) {
    (0..3).find_map(|_| agent.try_get(path)).unwrap_or_else(|| panic!("{path}: no answer, three times"))
}

/// `None`: there is no such series.
pub fn metric(agent: &Agent, name: &str) -> Option<u64> {
    let (_, text) = get(agent, "/metrics");
    let line = text.lines().find_map(|line| line.strip_prefix(&format!("log_capturer_{name} ")));
    line.and_then(|value| value.parse().ok())
}

pub fn heap_bytes(agent: &Agent) -> Option<u64> {
    metric(agent, "heap_live_bytes")
}

fn threads(pid: u32) -> BTreeSet<i32> {
    let entries = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
}

fn resident_bytes(pid: u32) -> u64 {
    let text = fs::read_to_string(format!("/proc/{pid}/statm")).unwrap_or_default();
    let pages: u64 = text.split(' ').nth(1).and_then(|pages| pages.parse().ok()).unwrap_or(0);
    pages * rustix::param::page_size() as u64
}

fn cpu_seconds(pid: u32) -> f64 {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let after_name = text.rsplit_once(')').map_or("", |(_, after)| after); // the name may hold blanks
    let fields = after_name.split_ascii_whitespace().skip(11).take(2);
    let ticks: u64 = fields.filter_map(|field| field.parse::<u64>().ok()).sum();
    ticks as f64 / rustix::param::clock_ticks_per_second() as f64
}

fn checkpoint_bytes(folder: &Path) -> u64 {
    let size = |slot| fs::metadata(folder.join(format!("checkpoint-{slot}"))).map_or(0, |file| file.len());
    size(0).max(size(1))
}
