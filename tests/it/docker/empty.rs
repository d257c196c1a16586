//! The static build needs nothing of the host: it runs from an image that holds nothing else, no shell, no library and
//! no `/etc`.
//!
//! `LOG_CAPTURER_STATIC` names the binary; `make test-docker` makes it.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};

use super::engine::Engine;
use crate::agent::Room;

#[test]
fn the_static_build_runs_in_an_empty_container() {
    let case = "empty::the_static_build_runs_in_an_empty_container";
    let Some(binary) = std::env::var_os("LOG_CAPTURER_STATIC") else {
        println!("skipped: docker::{case}: LOG_CAPTURER_STATIC names no binary");
        return;
    };
    let Some(engine) = Engine::start(case) else { return };
    let image = tempfile::tempdir().unwrap();
    fs::copy(&binary, image.path().join("log-capturer")).expect("LOG_CAPTURER_STATIC names a binary");
    engine.import("empty", image.path());

    let room = Room::new(json!({
        "sources": [{ "type": "file", "include": ["app.log"] }],
        "sinks": [{ "type": "file", "path": "out.log" }],
    }));
    let lines: String = (0..1000).map(|number| format!("line {number}\n")).collect();
    fs::write(room.path("app.log"), &lines).unwrap();
    let home = room.outside().display().to_string();
    engine.well(
        "POST",
        "/containers/create?name=agent",
        &json!({
            "Image": "empty", "Cmd": ["/log-capturer", "run", "--once", "--config", room.path("config.json")],
            "NetworkDisabled": true, "HostConfig": { "Binds": [format!("{home}:{home}")], "NetworkMode": "none" },
        }),
    );
    engine.start_container("agent");
    engine.wait("agent");
    let ended = engine.well("GET", "/containers/agent/json", &Value::Null);
    let details = engine.lines("agent").join("\n");
    assert_eq!(ended["State"]["ExitCode"], 0, "{details}");
    assert_eq!(read(&room.path("out.log")), lines, "{details}");
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_default()
}
