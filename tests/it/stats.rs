//! The agent's figures over time, and the watch for leaks, as a healthy agent shows them after a busy time.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::agent::{Agent, Room};
use crate::expect::Arrived;
use crate::files::{Writer, put};

/// Everything that is watched, so that a gauge that was renamed does not silently drop out of the watch.
const WATCHED: [&str; 31] = [
    "budget_holders",
    "budget_used_bytes",
    "buffers_pooled_bytes",
    "dead_letter_bytes",
    "descriptors",
    "files_followed",
    "files_in_line",
    "files_not_met",
    "files_open",
    "files_overdue",
    "files_passed_over",
    "files_rested",
    "folders_complained_of",
    "generations",
    "generations_finished",
    "helpers",
    "journal_segments",
    "kept_stamps",
    "label_sets_bytes",
    "lineages",
    "metric_series",
    "open_chunks",
    "output_journal_segments",
    "outputs_open",
    "outputs_unsynced",
    "own_files",
    "paths",
    "resident_bytes",
    "tasks",
    "threads",
    "watches",
];

fn page(agent: &Agent, path: &str) -> Value {
    let (code, body) = agent.get(path);
    assert_eq!(code, 200, "{path}: {body}");
    serde_json::from_str(&body).unwrap_or_else(|cause| panic!("{path}: {cause}: {body}"))
}

fn column<'a>(history: &'a Value, name: &str, sink: Option<&str>) -> &'a Vec<Value> {
    let columns = history["columns"].as_array().expect("it has columns");
    let found = columns.iter().find(|column| column["name"] == name && column["sink"].as_str() == sink);
    let found = found.unwrap_or_else(|| panic!("no column {name} of {sink:?} in {history}"));
    assert!(found["unit"].is_string(), "{found}");
    found["values"].as_array().expect("it has values")
}

fn samples(agent: &Agent) -> usize {
    column(&page(agent, "/api/v1/history"), "time", None).len()
}

/// Files that come, are rotated in both ways and go, some of them without lines; outputs, labels, a stage for each
/// kind of cache: then every thing that is watched is within its bound, in the very next sample, and threads are
/// exactly as many as the bound says.
#[test]
fn a_healthy_agent_is_within_all_its_bounds_after_a_busy_time() {
    const FILES: u32 = 20;
    let room = Room::new(json!({
        "agent": { "sync_interval": "50ms" },
        "sources": [{ "type": "file", "include": ["logs/**/*.log*"], "poll_interval": "200ms" }],
        "pipeline": [{ "type": "labels", "set": { "team": "a" } }],
        "sinks": [{ "type": "file", "name": "keep", "path": "out.txt" }],
    }));
    let mut writers: Vec<Writer> =
        (0..FILES).map(|number| Writer::new(number, room.path(&format!("logs/{number}/a.log")))).collect();
    put(&room.path("logs/packed.log.1"), b"\x1f\x8b\x08\0\0\0\0\0\0\0");
    let agent = room.run();
    let arrived = || Arrived::in_file(&room.path("out.txt")).distinct();
    let written = |writers: &[Writer]| writers.iter().map(|writer| writer.written().1).sum::<u64>();
    for round in 0..6 {
        writers.iter_mut().for_each(|writer| writer.write(500));
        agent.until("all lines have arrived", || arrived() == written(&writers));
        for (number, writer) in writers.iter_mut().enumerate() {
            match (number + round) % 3 {
                0 => writer.rotate(&format!("a.log.{round}")),
                1 => writer.rotate("old"), // leaves what the pattern matches
                _ => {}
            }
        }
    }
    let before = samples(&agent);
    agent.until("two more samples", || samples(&agent) >= before + 2);

    let status = page(&agent, "/api/v1/status");
    let watch = status["leak_watch"].as_array().expect("it is a list");
    let mut names: Vec<&str> = watch.iter().filter_map(|thing| thing["what"].as_str()).collect();
    names.sort_unstable();
    assert_eq!(names, WATCHED);
    for thing in watch {
        assert!(thing["value"].as_u64() <= thing["bound"].as_u64(), "{thing}");
        assert_eq!(thing["suspected"], false, "{thing}");
        println!(
            "{:>22} {:>10} of {:>10}",
            thing["what"].as_str().unwrap_or("?"),
            thing["value"],
            thing["bound"]
        );
    }
    let of = |what: &str| watch.iter().find(|thing| thing["what"] == what).expect("it is listed").clone();
    // The resolver ends at once where no sink has a name to look up.
    assert_eq!(of("threads")["value"].as_u64(), of("threads")["bound"].as_u64().map(|bound| bound - 1));
    assert_eq!(of("tasks")["value"], of("tasks")["bound"]);
    assert!(of("files_followed")["value"].as_u64() >= Some(u64::from(FILES)), "{}", of("files_followed"));
    assert!(of("watches")["value"].as_u64() > Some(u64::from(FILES)), "{}", of("watches"));
    assert_eq!(of("files_passed_over")["value"], 1);

    assert_eq!(agent.get("/readyz"), (200, "ready\n".into()));
    let (_, metrics) = agent.get("/metrics");
    for what in WATCHED {
        let series = format!("\nlog_capturer_leak_suspected{{what=\"{what}\"}} 0\n");
        assert!(metrics.contains(&series), "{what} in\n{metrics}");
    }
    assert_eq!(agent.stop(), 0, "{}", agent.stderr());
    assert!(!agent.stderr().contains(" WARN "), "{}", agent.stderr());
    let written: BTreeMap<u32, u64> = writers.iter().map(Writer::written).collect();
    Arrived::in_file(&room.path("out.txt")).compare(&written).assert_once();
}

#[test]
fn rates_and_history_add_up_to_what_was_written() {
    const LINES: u64 = 10_000;
    let room = Room::new(json!({
        "sources": [{ "type": "file", "include": ["logs/*.log"] }],
        "sinks": [{ "type": "file", "name": "keep", "path": "out.txt" }],
    }));
    let agent = room.run();
    agent.until("the first sample", || samples(&agent) > 0);
    let mut writer = Writer::new(1, room.path("logs/a.log"));
    writer.write(LINES);
    let delivered = |history: &Value| column(history, "delivered_lines", Some("keep")).last().cloned();
    let mut history = Value::Null;
    agent.until("the lines are in a sample", || {
        history = page(&agent, "/api/v1/history");
        delivered(&history) == Some(json!(LINES))
    });
    assert_eq!(column(&history, "read_lines", None).last(), Some(&json!(LINES)));
    assert_eq!(column(&history, "pending_lines", Some("keep")).last(), Some(&json!(0)));
    // The first sample may be older than the last thread that was started.
    assert!(
        column(&history, "threads", None).last().is_some_and(|threads| threads.as_u64() > Some(8)),
        "{history}"
    );
    let times: Vec<i64> = column(&history, "time", None).iter().filter_map(Value::as_i64).collect();
    assert!(times.is_sorted_by(|a, b| a < b), "{times:?}");

    // Whatever the window, it begins at 0 lines here, so rate and time must give all of them.
    let rates = page(&agent, "/api/v1/status")["rates_per_second"].clone();
    let history = page(&agent, "/api/v1/history");
    let times = column(&history, "time", None);
    let elapsed_s =
        (times[times.len() - 1].as_i64().unwrap_or(0) - times[0].as_i64().unwrap_or(0)) as f64 / 1000.0;
    let lines = rates["sinks"]["keep"]["delivered_lines"]["5m"].as_f64().expect("a rate") * elapsed_s;
    // A sample may have come between the two pages.
    assert!((LINES as f64 * 0.99..LINES as f64 * 3.0).contains(&lines), "{lines} in {elapsed_s} s: {rates}");

    let (_, memory) = agent.get("/debug/memory");
    for part in ["VmHWM:", "VmRSS:", "budget: ", " resident_bytes\n", " files_followed\n"] {
        assert!(memory.contains(part), "{part} in\n{memory}");
    }
    assert_eq!(agent.stop(), 0);
}
