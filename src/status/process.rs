//! What the kernel knows about this process: its threads, descriptors, memory and processor time, from `/proc`.
//!
//! The threads are joined with the task table by thread id. One that has no row there is foreign: a library
//! started it, and either it is declared or it is a leak.
//!
//! Formats: proc(5), `/proc/pid/stat`, `/proc/pid/fd`, `/proc/pid/task`.

use std::fmt::Write;
use std::io::ErrorKind;

use crate::error::{Context, Error, Result};
use crate::metrics::PREFIX;
use crate::order;
use crate::stats::{live_heap_bytes, open_descriptors};
use crate::tasks::{State, TaskView};

/// What we use of a `stat` file, of the process or of one thread.
#[derive(Debug, PartialEq, Eq)]
struct Stat {
    /// As the kernel keeps it: cut after 15 bytes.
    name: String,
    /// User and system time together.
    cpu_ticks: u64,
    /// After boot.
    start_ticks: u64,
    resident_pages: u64,
}

fn parse_stat(text: &str) -> Option<Stat> {
    let (before, after) = text.rsplit_once(')')?; // the name may hold blanks and brackets
    let name = before.split_once('(')?.1.to_owned();
    let fields: Vec<&str> = after.split_ascii_whitespace().collect();
    // The manual counts from 1, and the field after the name is its third.
    let field = |number: usize| fields.get(number - 3)?.parse::<u64>().ok();
    Some(Stat {
        name,
        cpu_ticks: field(14)? + field(15)?,
        start_ticks: field(22)?,
        resident_pages: field(24)?,
    })
}

fn read_stat(path: &str) -> std::io::Result<Stat> {
    let bytes = std::fs::read(path)?;
    parse_stat(&String::from_utf8_lossy(&bytes))
        .ok_or_else(|| std::io::Error::new(ErrorKind::InvalidData, "its format is unknown"))
}

/// A thread of this process, and its row if it is one of ours.
struct Thread<'a> {
    tid: i32,
    name: String,
    cpu_ms: u64,
    task: Option<&'a TaskView>,
}

/// Every thread of the process, by thread id.
fn threads(tasks: &[TaskView]) -> Result<Vec<Thread<'_>>> {
    let doing = || "could not list the threads in /proc/self/task".to_string();
    let mut threads = Vec::new();
    for entry in std::fs::read_dir("/proc/self/task").context(doing)? {
        let tid = entry.context(doing)?.file_name().to_string_lossy().into_owned();
        let path = format!("/proc/self/task/{tid}/stat");
        let stat = match read_stat(&path) {
            Ok(stat) => stat,
            Err(cause) if has_ended(&cause) => continue,
            Err(cause) => return Err(Error::new(format!("could not read {path}: {cause}"))),
        };
        let tid = tid.parse().context(|| format!("/proc/self/task has an entry {tid}"))?;
        let cpu_ms = stat.cpu_ticks * 1000 / rustix::param::clock_ticks_per_second();
        threads.push(Thread { tid, name: stat.name, cpu_ms, task: row_of(tid, tasks) });
    }
    order::sort_by_key(&mut threads, |thread| thread.tid);
    Ok(threads)
}

/// Threads may end while we look.
fn has_ended(cause: &std::io::Error) -> bool {
    cause.kind() == ErrorKind::NotFound
        || cause.raw_os_error() == Some(rustix::io::Errno::SRCH.raw_os_error())
}

/// A row outlives its thread and a thread its last word, so an ended row counts only where no living one has
/// the same thread id.
fn row_of(tid: i32, tasks: &[TaskView]) -> Option<&TaskView> {
    let rows = tasks.iter().filter(|task| task.tid == tid);
    rows.min_by_key(|task| matches!(task.state, State::Finished | State::Failed))
}

/// The main thread's id is the process's, whether or not it has a row.
fn is_foreign(thread: &Thread<'_>) -> bool {
    thread.task.is_none() && thread.tid != own_pid()
}

fn foreign_count(threads: &[Thread<'_>]) -> usize {
    threads.iter().filter(|thread| is_foreign(thread)).count()
}

fn own_pid() -> i32 {
    rustix::process::getpid().as_raw_nonzero().get()
}

/// The page `/debug/threads`: a line with the total, then a table.
pub(super) fn thread_page(tasks: &[TaskView]) -> Result<String> {
    let threads = threads(tasks)?;
    let foreign = foreign_count(&threads);
    let ours = threads.len() - foreign;
    let mut page = format!("threads: {} ({ours} ours, {foreign} foreign)\n\n", threads.len());
    page += &line(["tid", "name", "task", "state", "cpu ms", "beat ms", "doing"]);
    for thread in &threads {
        let (tid, cpu_ms) = (thread.tid.to_string(), thread.cpu_ms.to_string());
        page += &match thread.task {
            Some(task) => {
                let silent_ms = task.silent_ms.to_string();
                let state = state_word(task.state);
                line([&tid, &thread.name, &task.name, state, &cpu_ms, &silent_ms, &task.doing])
            }
            None if is_foreign(thread) => line([&tid, &thread.name, "foreign", "-", &cpu_ms, "-", "-"]),
            None => line([&tid, &thread.name, "main", "-", &cpu_ms, "-", "-"]),
        };
    }
    Ok(page)
}

fn line([tid, name, task, state, cpu, beat, doing]: [&str; 7]) -> String {
    let line = format!("{tid:>8}  {name:<15}  {task:<24}  {state:<8}  {cpu:>9}  {beat:>9}  {doing}");
    one_line(line.trim_end()) + "\n"
}

fn state_word(state: State) -> &'static str {
    match state {
        State::Starting => "starting",
        State::Running => "running",
        State::Waiting => "waiting",
        State::Stopping => "stopping",
        State::Finished => "finished",
        State::Failed => "failed",
        State::Stuck => "stuck",
    }
}

/// File names may hold line ends, and what a task is doing may name a file.
pub(super) fn one_line(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '?' } else { c }).collect()
}

/// The page `/debug/memory`: what the kernel says this process has of it, in kB, and what the house says.
pub(super) fn memory_page(of_the_house: &str) -> Result<String> {
    let path = "/proc/self/status";
    let status = std::fs::read_to_string(path).context(|| format!("could not read {path}"))?;
    let of_memory = |line: &&str| line.starts_with("Vm") || line.starts_with("Rss");
    let of_the_kernel: String = status.lines().filter(of_memory).map(|line| format!("{line}\n")).collect();
    let live = live_heap_bytes().map(|bytes| format!("live heap: {bytes} bytes\n"));
    Ok(format!("{of_the_kernel}{}\n{of_the_house}", live.unwrap_or_default()))
}

/// The process's own series, in Prometheus' text format. What could not be read is missing and a comment says
/// why: a series that is absent can be alerted on, one that says 0 is a lie.
pub(super) fn metrics(tasks: &[TaskView]) -> String {
    let mut text = String::new();
    let mut series = |name: &str, kind: &str, help: &str, value: Result<String>| {
        let _ = match value {
            Ok(value) => writeln!(
                text,
                "# HELP {PREFIX}{name} {help}\n# TYPE {PREFIX}{name} {kind}\n{PREFIX}{name} {value}"
            ),
            Err(cause) => writeln!(text, "# {PREFIX}{name} is missing: {}", one_line(&cause.to_string())),
        };
    };
    let stat = read_stat("/proc/self/stat").context(|| "could not read /proc/self/stat".into());
    let of_stat = |value: &dyn Fn(&Stat) -> String| stat.as_ref().map(value).map_err(Error::clone);
    let threads = threads(tasks); // once, so that the two series of it are of one moment
    let of_threads = |value: &dyn Fn(&[Thread<'_>]) -> usize| {
        threads.as_ref().map(|all| value(all).to_string()).map_err(Error::clone)
    };
    let ticks = rustix::param::clock_ticks_per_second();
    let page_bytes = rustix::param::page_size() as u64;
    series("threads", "gauge", "Threads of the process.", of_threads(&|all| all.len()));
    series("foreign_threads", "gauge", "Threads that are not in the task table.", of_threads(&foreign_count));
    series(
        "open_descriptors",
        "gauge",
        "Open file descriptors of the process.",
        open_descriptors().map(|count| count.to_string()),
    );
    series(
        "resident_bytes",
        "gauge",
        "Memory of the process that is in RAM.",
        of_stat(&|stat| (stat.resident_pages * page_bytes).to_string()),
    );
    if let Some(bytes) = live_heap_bytes() {
        let help = "Memory that was asked for and not given back.";
        series("heap_live_bytes", "gauge", help, Ok(bytes.to_string()));
    }
    series(
        "cpu_seconds_total",
        "counter",
        "User and system time of the process.",
        of_stat(&|stat| format!("{:.2}", stat.cpu_ticks as f64 / ticks as f64)),
    );
    let started = boot_seconds().and_then(|boot| {
        of_stat(&|stat| format!("{:.2}", boot as f64 + stat.start_ticks as f64 / ticks as f64))
    });
    series("start_time_seconds", "gauge", "Start of the process, in seconds after 1970.", started);
    text
}

/// When the kernel started, in seconds after 1970: `btime` of `/proc/stat`.
fn boot_seconds() -> Result<u64> {
    let text = std::fs::read_to_string("/proc/stat").context(|| "could not read /proc/stat".into())?;
    let line = text.lines().find_map(|line| line.strip_prefix("btime "));
    line.and_then(|seconds| seconds.trim().parse().ok())
        .ok_or_else(|| Error::new("/proc/stat does not say when the kernel started"))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use super::*;
    use crate::clock::Clock;
    use crate::tasks::{self, Kind, Spec, Table};

    #[test]
    fn the_fields_of_a_stat_file_are_found_behind_any_name() {
        let stat = |name: &str| {
            let text = format!("7 ({name}) S 1 2 3 4 5 6 7 8 9 10 140 150 16 17 18 19 20 21 220 23 240 25\n");
            let expected = Stat { name: name.into(), cpu_ticks: 290, start_ticks: 220, resident_pages: 240 };
            assert_eq!(parse_stat(&text), Some(expected), "{name}");
        };
        stat("worker/0");
        stat("a b) (c");
        stat("");
        assert_eq!(parse_stat("7 (short) S 1 2"), None);
        assert_eq!(parse_stat(""), None);
    }

    fn row(name: &str, tid: i32, state: State) -> TaskView {
        TaskView {
            id: 1,
            name: name.into(),
            kind: Kind::Core,
            state,
            tid,
            doing: "reading /a\nb".into(),
            age_ms: 5,
            silent_ms: 4,
            cpu_ms: Some(3),
            error: None,
        }
    }

    #[test]
    fn a_thread_belongs_to_the_living_row_with_its_id() {
        let rows =
            [row("old", 7, State::Finished), row("new", 7, State::Running), row("last", 8, State::Failed)];
        let owner = |tid| row_of(tid, &rows).map(|task| task.name.as_str());
        assert_eq!(owner(7), Some("new"));
        assert_eq!(owner(8), Some("last"), "it has said its last word and is about to go");
        assert_eq!(owner(9), None);
    }

    #[test]
    fn the_page_has_a_line_per_thread_and_tells_ours_from_foreign() {
        let table = Arc::new(Table::new(Clock::real()));
        // In a thread of its own: a test may run in the main thread, which is never foreign.
        let spec = Spec::carrier("thread page", Duration::from_secs(5));
        tasks::run(table.clone(), |tasks| tasks.spawn(spec, |_| check_page())).unwrap().unwrap();
        assert_eq!(table.fault(true), None);
    }

    fn check_page() -> Result<()> {
        let own = rustix::thread::gettid().as_raw_nonzero().get();
        let line = |page: &str, tid: i32| {
            let found = page.lines().find(|line| line.split_whitespace().next() == Some(&tid.to_string()));
            found.map(str::to_owned).unwrap_or_else(|| panic!("no line for thread {tid}:\n{page}"))
        };
        let foreign = thread_page(&[]).unwrap();
        assert!(line(&foreign, own).contains(" foreign "), "{foreign}");
        let ours = thread_page(&[row("worker/0", own, State::Running)]).unwrap();
        let found = line(&ours, own);
        assert!(found.contains(" worker/0 ") && found.ends_with("reading /a?b"), "{ours}");
        assert!(line(&ours, own_pid()).contains(" main "), "{ours}");
        let count = ours.lines().count() - 3; // the total, an empty line, the heading
        assert!(ours.starts_with(&format!("threads: {count} (2 ours, {} foreign)\n", count - 2)), "{ours}");
        Ok(())
    }

    #[test]
    fn the_process_has_all_its_series() {
        let text = metrics(&[]);
        let value = |name: &str| -> f64 {
            let found = text.lines().find_map(|line| line.strip_prefix(&format!("{PREFIX}{name} ")));
            found.unwrap_or_else(|| panic!("{name} is missing:\n{text}")).parse().unwrap()
        };
        assert!(value("threads") >= 1.0);
        assert!(value("foreign_threads") < value("threads"), "the main thread is never foreign");
        assert!(value("open_descriptors") >= 3.0);
        assert!(value("resident_bytes") > 100_000.0);
        assert!(value("cpu_seconds_total") >= 0.0);
        let now = Clock::real().wall_ns() as f64 / 1e9;
        assert!((now - 86_400.0..=now + 1.0).contains(&value("start_time_seconds")), "{text}");
    }
}
