//! Wrong configurations, and what is said about them: the path, the value, the remedy. Nothing else.

mod right;

use std::fs::File;
use std::io::Write;
use std::path::Path;

use log_capturer::config::Config;

const SECRET: &str = "hunter2";

/// A folder with the files that configurations of these tests name.
fn folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (name, content) in [
        ("secret", "hunter2\n"),
        ("windows", "hunter2\r\n"),
        ("two_lines", "hunter2\nhunter2\n"),
        ("empty", ""),
        ("blank", "\n"),
        ("no_pem", "not a certificate\n"),
        ("pem", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"),
    ] {
        put(&folder.path().join(name), content);
    }
    std::fs::create_dir(folder.path().join("logs")).unwrap();
    folder
}

fn put(path: &Path, content: &str) {
    File::create(path).unwrap().write_all(content.as_bytes()).unwrap();
}

fn env(name: &str) -> Option<String> {
    match name {
        "SECRET" => Some(SECRET.into()),
        "WORKERS" => Some("3".into()),
        "EMPTY" => Some(String::new()),
        _ => None,
    }
}

const SOURCE: &str = r#"{ "type": "file", "include": ["/l/*.log"] }"#;
const SINK: &str = r#"{ "type": "stdout" }"#;

/// The smallest configuration, with one thing put in its place.
fn agent(rest: &str) -> String {
    format!(r#"{{ "agent": {{ {rest} }}, "sources": [{SOURCE}], "sinks": [{SINK}] }}"#)
}
fn status(rest: &str) -> String {
    format!(r#"{{ "status": {{ {rest} }}, "sources": [{SOURCE}], "sinks": [{SINK}] }}"#)
}
fn sources(entries: &str) -> String {
    format!(r#"{{ "sources": [{entries}], "sinks": [{SINK}] }}"#)
}
fn source(rest: &str) -> String {
    sources(&format!(r#"{{ "type": "file", "include": ["/l/*.log"], {rest} }}"#))
}
fn stage(stage: &str) -> String {
    format!(r#"{{ "sources": [{SOURCE}], "pipeline": [{stage}], "sinks": [{SINK}] }}"#)
}
fn sinks(entries: &str) -> String {
    format!(r#"{{ "sources": [{SOURCE}], "sinks": [{entries}] }}"#)
}
fn loki(rest: &str) -> String {
    sinks(&format!(r#"{{ "type": "loki", "url": "http://l:3100", {rest} }}"#))
}
fn loki_at(url: &str) -> String {
    sinks(&format!(r#"{{ "type": "loki", "url": "{url}" }}"#))
}
fn file(rest: &str) -> String {
    sinks(&format!(r#"{{ "type": "file", "path": "out/{{file}}", {rest} }}"#))
}

fn load(text: &str) -> Result<Config, Vec<String>> {
    load_in(text, folder().path())
}

fn load_in(text: &str, folder: &Path) -> Result<Config, Vec<String>> {
    Config::parse(text, folder, &env).map_err(|all| all.iter().map(ToString::to_string).collect())
}

fn good(text: &str) -> Config {
    load(text).unwrap_or_else(|complaints| panic!("{text}\n{complaints:#?}"))
}

/// Exactly one complaint, which begins with the first part and holds the others.
#[track_caller]
fn check(text: &str, parts: &[&str]) {
    let complaints = load(text).err().unwrap_or_default();
    let [complaint] = &*complaints else { panic!("{text}\none complaint expected: {complaints:#?}") };
    assert!(complaint.starts_with(&format!("{}: ", parts[0])), "{text}\n{complaint}");
    for part in &parts[1..] {
        assert!(complaint.contains(part), "{text}\n{part}\n{complaint}");
    }
}

#[test]
fn syntax_and_shape() {
    check("{\n\"sources\": [,] }", &["line 2 column 13", "is not JSON", "expected value"]);
    check("[]", &["the configuration", "a list is not an object"]);
    check(r#"{ "sinks": [{ "type": "stdout" }] }"#, &["sources", "is missing", "\"include\": ["]);
    check(&format!(r#"{{ "sources": [{SOURCE}] }}"#), &["sinks", "is missing", "\"url\": \"http"]);
    check(&sources(""), &["sources", "is empty", "write for example"]);
    check(&sinks(""), &["sinks", "is empty", "write for example"]);
    check(&sources("7"), &["sources[0]", "a number is not an object", "{ … }"]);
    check(
        &format!(r#"{{ "sources": {SOURCE}, "sinks": [{SINK}] }}"#),
        &["sources", "an object is not a list"],
    );
    check(
        &format!(r#"{{ "source": [], "sources": [{SOURCE}], "sinks": [{SINK}] }}"#),
        &[
            "source",
            "unknown key",
            "did you mean \"sources\"?",
            "allowed are agent, status, sources, pipeline, sinks",
        ],
    );
}

#[test]
fn keys() {
    check(
        &source(r#""inclued": []"#),
        &["sources[0].inclued", "unknown key", "did you mean \"include\"?", "allowed are type, name"],
    );
    check(&agent(r#""dataDir": "x""#), &["agent.dataDir", "unknown key", "did you mean \"data_dir\"?"]);
    check(&agent(r#""threads": 4"#), &["agent.threads", "unknown key; allowed are data_dir, workers"]);
    check(&agent(r#""a\nb": 4"#), &["agent[\"a\\nb\"]", "unknown key"]);
    check(&agent(r#""workers": 1, "workers": 2"#), &["agent.workers", "more than once", "keep one"]);
    check(&source(r#""labels": { "a": "1", "a": "2" }"#), &["sources[0].labels.a", "more than once"]);
    check(&loki(r#""batch": { "bytes": "1MiB" }"#), &["sinks[0].batch.bytes", "unknown key", "max_bytes"]);
    check(&loki(r#""retry": { "maxx": "1s" }"#), &["sinks[0].retry.maxx", "did you mean \"max\"?"]);
    check(&file(r#""rotate": { "max_bytes": "1MiB", "kep": 1 }"#), &["sinks[0].rotate.kep", "\"keep\"?"]);
    check(
        &sources(r#"{ "type": "stdin", "include": ["/l"] }"#),
        &["sources[0].include", "unknown key", "allowed are type, name, labels, max_line_bytes, idle"],
    );
}

#[test]
fn agent_and_status() {
    check(&agent(r#""data_dir": """#), &["agent.data_dir", "\"\" is empty", "leave the key out"]);
    check(&agent(r#""data_dir": 5"#), &["agent.data_dir", "5 is not a string"]);
    check(&agent(r#""workers": 0"#), &["agent.workers", "0 is below the limit 1"]);
    check(&agent(r#""workers": 65"#), &["agent.workers", "65 is above the limit 64"]);
    check(&agent(r#""workers": -1"#), &["agent.workers", "-1 is below the limit 1"]);
    check(&agent(r#""workers": "many""#), &["agent.workers", "\"many\" is not a whole number from 1 to 64"]);
    check(&agent(r#""workers": 2.5"#), &["agent.workers", "2.5 is not a whole number"]);
    check(&agent(r#""workers": null"#), &["agent.workers", "null is not a whole number"]);
    check(
        &agent(r#""memory_budget": "512KiB""#),
        &["agent.memory_budget", "\"512KiB\" is below the limit 1MiB"],
    );
    check(&agent(r#""memory_budget": "5GiB""#), &["agent.memory_budget", "\"5GiB\" is above the limit 4GiB"]);
    check(
        &agent(r#""memory_budget": 16777216"#),
        &["agent.memory_budget", "16777216 is not a size", "\"1MiB\""],
    );
    check(&agent(r#""memory_budget": "16M""#), &["agent.memory_budget", "\"16M\" is not a size", "\"1MiB\""]);
    check(
        &agent(r#""stop_timeout": "soon""#),
        &["agent.stop_timeout", "\"soon\" is not a duration", "\"5s\""],
    );
    check(&agent(r#""stop_timeout": 10"#), &["agent.stop_timeout", "10 is not a duration", "\"5s\""]);
    check(&agent(r#""stop_timeout": "0s""#), &["agent.stop_timeout", "\"0s\" is below the limit 10ms"]);
    check(&agent(r#""sync_interval": "1h""#), &["agent.sync_interval", "\"1h\" is above the limit 10m"]);
    check(&agent(r#""open_files_max": 1"#), &["agent.open_files_max", "1 is below the limit 16"]);
    check(
        &status(r#""listen": "8401""#),
        &["status.listen", "\"8401\" is not an address", "\"127.0.0.1:8401\""],
    );
    check(&status(r#""listen": "0.0.0.0:8401""#), &["status.listen", "\"0.0.0.0:8401\"", "add status.token"]);
    check(&status(r#""listen": "[::]:8401""#), &["status.listen", "other machines", "127.0.0.1"]);
    check(&status(r#""token": """#), &["status.token", "is empty"]);
    check(
        &status(r#""token_file": "none""#),
        &["status.token_file", "\"none\" could not be read: No such file"],
    );
    check(&status(r#""token_file": "empty""#), &["status.token_file", "names an empty file"]);
    check(&status(r#""token_file": "blank""#), &["status.token_file", "only a line break"]);
    check(&status(r#""token_file": "two_lines""#), &["status.token_file", "a line break"]);
    check(
        &status(r#""token": "a", "token_file": "secret""#),
        &["status.token", "token_file too", "keep one"],
    );
}

#[test]
fn variables() {
    check(
        &agent(r#""data_dir": "${HOME_OF_LOGS}/data""#),
        &[
            "agent.data_dir",
            "\"${HOME_OF_LOGS}/data\"",
            "variable HOME_OF_LOGS is not set",
            "${HOME_OF_LOGS:-default}",
        ],
    );
    check(&agent(r#""data_dir": "${OPEN""#), &["agent.data_dir", "without its }", "write $$"]);
    check(&status(r#""token": "${NO_TOKEN}""#), &["status.token", "variable NO_TOKEN is not set"]);
    // What the variable holds may be secret: the complaint shows what was written.
    check(
        &agent(r#""stop_timeout": "${SECRET}""#),
        &["agent.stop_timeout", "\"${SECRET}\"", "is not a duration"],
    );
    check(&source(r#""${SECRET}": 1"#), &["sources[0][\"${SECRET}\"]", "unknown key"]);
}

#[test]
fn file_sources() {
    check(&sources("{}"), &["sources[0].type", "is missing", "\"file\""]);
    check(
        &sources(r#"{ "type": "fiel" }"#),
        &[
            "sources[0].type",
            "\"fiel\" is not allowed",
            "did you mean \"file\"?",
            "allowed are \"file\" or \"docker\" or \"stdin\"",
        ],
    );
    for (keys, complaint) in [
        (r#""socket": "x""#, ["sources[0].socket", "\"x\" is not where an engine listens"]),
        (r#""socket": "tcp://host/path""#, ["sources[0].socket", "tcp://host:2376"]),
        (r#""tls": {}"#, ["sources[0].tls", "no effect on a socket of this host"]),
        (r#""include": { "names": ["a["] }"#, ["sources[0].include.names[0]", "is not a pattern"]),
        (r#""exclude": { "name": ["a"] }"#, ["sources[0].exclude.name", "did you mean \"names\"?"]),
        (r#""enable": "none""#, ["sources[0].enable", "allowed are \"all\" or \"labelled\""]),
        (r#""labels_from": ["host"]"#, ["sources[0].labels_from[0]", "\"compose_project\""]),
        (r#""container_labels": { "host": "x" }"#, ["sources[0].container_labels.host", "is taken already"]),
        (r#""container_env": { "a-b": "x" }"#, ["sources[0].container_env.a-b", "is not a label name"]),
        (r#""multiline": {}"#, ["sources[0].multiline", "is not available in this version"]),
    ] {
        check(&sources(&format!(r#"{{ "type": "docker", {keys} }}"#)), &complaint);
    }
    check(
        &sources(r#"{ "type": "file" }"#),
        &["sources[0].include", "is missing", "[\"/var/log/**/*.log\"]"],
    );
    check(&sources(r#"{ "type": "file", "include": [] }"#), &["sources[0].include", "is empty"]);
    check(
        &sources(r#"{ "type": "file", "include": "/l" }"#),
        &["sources[0].include", "\"/l\" is not a list; write [\"/l\"]"],
    );
    check(
        &sources(r#"{ "type": "file", "include": ["/l", 5] }"#),
        &["sources[0].include[1]", "5 is not a string"],
    );
    check(
        &sources(r#"{ "type": "file", "include": ["/l/[a"] }"#),
        &["sources[0].include[0]", "\"/l/[a\" is not a pattern", "]"],
    );
    check(
        &sources(r#"{ "type": "file", "include": ["/l/"] }"#),
        &["sources[0].include[0]", "\"/l/\" is a folder", "/**"],
    );
    check(
        &sources(r#"{ "type": "file", "include": ["logs"] }"#),
        &["sources[0].include[0]", "\"logs\" is a folder", "/*.log"],
    );
    check(
        &sources(r#"{ "type": "file", "include": ["../x"] }"#),
        &["sources[0].include[0]", "\"../x\" has a \"..\""],
    );
    check(&source(r#""exclude": ["{a"]"#), &["sources[0].exclude[0]", "\"{a\" is not a pattern"]);
    check(
        &source(r#""start_at": "tail""#),
        &["sources[0].start_at", "\"tail\" is not allowed", "\"beginning\" or \"end\""],
    );
    check(
        &source(r#""binary": true"#),
        &["sources[0].binary", "true is not allowed", "\"skip\" or \"read\""],
    );
    check(
        &source(r#""poll_interval": "1ms""#),
        &["sources[0].poll_interval", "\"1ms\" is below the limit 50ms"],
    );
    check(&source(r#""idle": "2d""#), &["sources[0].idle", "\"2d\" is above the limit 1day"]);
    check(
        &source(r#""max_line_bytes": "3MiB""#),
        &["sources[0].max_line_bytes", "\"3MiB\" is above the limit 2MiB", "raise memory_budget"],
    );
    check(
        &source(r#""multiline": {}"#),
        &["sources[0].multiline", "not available in this version", "leave the key out"],
    );
    check(
        &source(r#""hold_deleted": { "max_age": "0s" }"#),
        &["sources[0].hold_deleted.max_age", "\"0s\" is below the limit 1s"],
    );
    check(&source(r#""hold_deleted": { "bytes": 1 }"#), &["sources[0].hold_deleted.bytes"]);
    check(
        &source(r#""labels": { "a-b": "1" }"#),
        &["sources[0].labels.a-b", "\"a-b\" is not a label name", "letters, digits and _"],
    );
    check(&source(r#""labels": { "__a": "1" }"#), &["sources[0].labels.__a", "reserved"]);
    check(
        &source(r#""labels": { "source": "1" }"#),
        &["sources[0].labels.source", "is set by the agent itself"],
    );
    check(&source(r#""labels": { "a": 1 }"#), &["sources[0].labels.a", "1 is not a string"]);
    check(&source(r#""labels": ["a"]"#), &["sources[0].labels", "a list is not an object"]);
    check(&source(r#""name": "a b""#), &["sources[0].name", "\"a b\" is not a name", "A-Z a-z 0-9"]);
    check(&source(r#""name": "..""#), &["sources[0].name", "\"..\" is not a name"]);
    let named = r#"{ "type": "stdin", "name": "x" }, { "type": "file", "include": ["/l"], "name": "x" }"#;
    check(&sources(named), &["sources[1].name", "\"x\" is the name of another source"]);
    check(&sources(r#"{ "type": "stdin" }, { "type": "stdin" }"#), &["sources", "only one standard input"]);
}

#[test]
fn stages() {
    check(&stage("{}"), &["pipeline[0].type", "is missing"]);
    check(
        &stage(r#"{ "type": "regexp" }"#),
        &["pipeline[0].type", "\"regexp\" is not allowed", "\"keep\" or \"drop\""],
    );
    check(
        &stage(r#"{ "type": "json", "on_error": "fail" }"#),
        &["pipeline[0].on_error", "\"fail\"", "\"pass\" or \"drop\""],
    );
    check(
        &stage(r#"{ "type": "json", "sources": ["app"] }"#),
        &["pipeline[0].sources[0]", "\"app\" is not the name of a source", "\"file\""],
    );
    check(&stage(r#"{ "type": "json", "sources": [] }"#), &["pipeline[0].sources", "leave the key out"]);
    check(
        &stage(r#"{ "type": "timestamp", "from": "text" }"#),
        &["pipeline[0].format", "is missing", "\"rfc3339\""],
    );
    check(&stage(r#"{ "type": "timestamp", "format": "unix" }"#), &["pipeline[0]", "\"from\": \"text\""]);
    check(
        &stage(r#"{ "type": "timestamp", "format": "unix", "field": "t" }"#),
        &["pipeline[0].field", "\"t\"", "json"],
    );
    check(&stage(r#"{ "type": "drop" }"#), &["pipeline[0]", "exactly one condition", "write match"]);
    check(
        &stage(r#"{ "type": "drop", "match": "a", "contains": "b" }"#),
        &["pipeline[0]", "exactly one condition"],
    );
    check(&stage(r#"{ "type": "keep", "match": "(a" }"#), &["pipeline[0].match", "(a"]);
    check(&stage(r#"{ "type": "labels" }"#), &["pipeline[0]", "changes nothing", "write set"]);
    check(
        &stage(r#"{ "type": "json", "by_label": "a, b" }"#),
        &["pipeline[0].by_label", "\"a, b\" is not a name", "1 to 64"],
    );
    check(
        &stage(r#"{ "type": "json", "by_label": "app" }"#),
        &["pipeline[0].by_label", "among containers", "\"docker\"", "leave it out"],
    );
    check(
        &stage(r#"{ "type": "cri", "by_label": "app" }"#),
        &["pipeline[0].by_label", "cri come from files", "leave it out"],
    );
    check(&stage(r#"{ "type": "labels", "set": { "a-b": "1" } }"#), &["pipeline[0].set", "\"a-b\""]);
    // One wrong stage is not blamed on those after it.
    check(
        &stage(r#"{ "type": "jsn" }, { "type": "keep", "field": "a", "equals": "b" }"#),
        &["pipeline[0].type", "did you mean \"json\"?"],
    );
}

#[test]
fn sinks_of_all_types() {
    check(&sinks("{}"), &["sinks[0].type", "is missing", "\"loki\""]);
    for planned in ["elasticsearch", "splunk_hec", "otlp", "http"] {
        let text = sinks(&format!(r#"{{ "type": "{planned}", "url": "x" }}"#));
        check(&text, &["sinks[0].type", planned, "is not available in this version", "\"loki\""]);
    }
    check(&sinks(r#"{ "type": "lokki" }"#), &["sinks[0].type", "\"lokki\"", "did you mean \"loki\"?"]);
    check(
        &loki(r#""spool": { "enabled": "yes" }"#),
        &["sinks[0].spool.enabled", "\"yes\" is not true or false"],
    );
    check(
        &loki(r#""spool": { "max_bytes": "1KiB" }"#),
        &["sinks[0].spool.max_bytes", "below the limit 1MiB"],
    );
    check(&loki(r#""spool": { "after": 5 }"#), &["sinks[0].spool.after", "5 is not a duration"]);
    check(
        &loki(r#""spool": { "when_full": "drop" }"#),
        &["sinks[0].spool.when_full", "\"drop\" is not allowed", "\"wait\" or \"drop_oldest\""],
    );
    check(&loki(r#""spool": { "size": 1 }"#), &["sinks[0].spool.size", "unknown key", "when_full"]);
    check(&file(r#""compress": true"#), &["sinks[0].compress", "is not available in this version"]);
    check(&file(r#""max_total_bytes": "1GiB""#), &["sinks[0].max_total_bytes", "is not available"]);
    check(&loki(r#""connections": 17"#), &["sinks[0].connections", "17 is above the limit 16"]);
    check(
        &loki(r#""connections": "2""#),
        &["sinks[0].connections", "\"2\" is not a whole number", "without quotes"],
    );
    check(&loki(r#""timeout": "1h""#), &["sinks[0].timeout", "\"1h\" is above the limit 10m"]);
    check(
        &loki(r#""batch": { "max_bytes": "1GB" }"#),
        &["sinks[0].batch.max_bytes", "\"1GB\" is above the limit 4MiB"],
    );
    check(
        &loki(r#""batch": { "max_bytes": "100" }"#),
        &["sinks[0].batch.max_bytes", "\"100\" is below the limit 1KiB"],
    );
    check(&loki(r#""batch": { "max_lines": 0 }"#), &["sinks[0].batch.max_lines", "0 is below the limit 1"]);
    check(&loki(r#""batch": { "max_wait": "1" }"#), &["sinks[0].batch.max_wait", "\"1\" is not a duration"]);
    check(&loki(r#""batch": 5"#), &["sinks[0].batch", "a number is not an object"]);
    check(
        &loki(r#""retry": { "max_attempts": 0 }"#),
        &["sinks[0].retry.max_attempts", "0 is below the limit 1"],
    );
    check(
        &loki(r#""retry": { "initial": "5s", "max": "1s" }"#),
        &["sinks[0].retry.initial", "\"5s\" is above retry.max, which is \"1s\""],
    );
    check(&loki(r#""labels": { "0": "1" }"#), &["sinks[0].labels.0", "\"0\" is not a label name"]);
    check(&loki(r#""name": "a/b""#), &["sinks[0].name", "\"a/b\" is not a name"]);
    let two = r#"{ "type": "stdout" }, { "type": "stdout" }"#;
    check(&sinks(two), &["sinks[1].name", "is missing", "two sinks of type \"stdout\"", "\"stdout-2\""]);
    let same = r#"{ "type": "stdout" }, { "type": "file", "path": "x", "name": "stdout" }"#;
    check(&sinks(same), &["sinks[1].name", "\"stdout\" is the name of another sink"]);
    let many: Vec<String> = (0..65).map(|n| format!(r#"{{ "type": "stdout", "name": "s{n}" }}"#)).collect();
    check(
        &sinks(&many.join(",")).replacen('{', r#"{ "agent": { "memory_budget": "64MiB" },"#, 1),
        &["sinks", "65 sinks are above the limit 64"],
    );
}

#[test]
fn loki_and_file_sinks() {
    check(&sinks(r#"{ "type": "loki" }"#), &["sinks[0].url", "is missing", "\"http://127.0.0.1:3100\""]);
    for wrong in [
        "l:3100",
        "ftp://l",
        "http://",
        "http://:3100",
        "http://l:99999",
        "http://l l/",
        "http://[::1",
        "http://l:+1",
    ] {
        check(&loki_at(wrong), &["sinks[0].url", &format!("{wrong:?}"), "http://host:port"]);
    }
    check(&loki_at("http://l/loki/api/v1/push"), &["sinks[0].url", "leave /loki/api/v1/push out"]);
    check(&loki_at("http://me:hunter2@l"), &["sinks[0].url", "hidden", "auth.basic"]);
    check(&loki_at("http://l/?token=hunter2"), &["sinks[0].url", "hidden", "leave ? and # out"]);
    check(&loki(r#""encoding": "proto""#), &["sinks[0].encoding", "\"proto\"", "\"protobuf\" or \"json\""]);
    check(
        &loki(r#""long_lines": "drop""#),
        &["sinks[0].long_lines", "\"drop\"", "\"split\" or \"truncate\""],
    );
    check(&loki(r#""max_line_bytes": "10""#), &["sinks[0].max_line_bytes", "\"10\" is below the limit 1KiB"]);
    check(&loki(r#""tenant": "a\nb""#), &["sinks[0].tenant", "a line break"]);
    check(
        &loki(r#""auth": { "basic": { "user": "me" } }"#),
        &["sinks[0].auth.basic.password", "is missing", "password_file"],
    );
    check(
        &loki(r#""auth": { "basic": { "password": "hunter2" } }"#),
        &["sinks[0].auth.basic.user", "is missing"],
    );
    check(
        &loki(r#""auth": { "basic": { "user": "me:hunter2", "password": "x" } }"#),
        &["sinks[0].auth.basic.user", "hidden", "a colon"],
    );
    check(
        &loki(r#""auth": { "basic": { "user": "me", "password": "x" }, "bearer": "hunter2" }"#),
        &["sinks[0].auth", "both basic and bearer", "keep one"],
    );
    check(&loki(r#""auth": { "bearer_file": "none" }"#), &["sinks[0].auth.bearer_file", "could not be read"]);
    check(&loki(r#""auth": { "bearer": 5 }"#), &["sinks[0].auth.bearer", "hidden", "is not a string"]);
    check(&loki(r#""auth": "Bearer hunter2""#), &["sinks[0].auth", "a string is not an object"]);
    check(
        &loki(r#""headers": { "a b": "hunter2" }"#),
        &["sinks[0].headers[\"a b\"]", "is not the name of a header"],
    );
    check(&loki(r#""headers": { "X-A": "a\r\nhunter2" }"#), &["sinks[0].headers.X-A", "a line break"]);
    check(
        &loki(r#""headers": { "Authorization": "hunter2" }"#),
        &["sinks[0].headers.Authorization", "under auth"],
    );
    check(&loki(r#""headers": { "X-Scope-OrgID": "x" }"#), &["sinks[0].headers.X-Scope-OrgID", "tenant"]);
    check(&loki(r#""headers": { "Content-Type": "x" }"#), &["sinks[0].headers.Content-Type", "leave it out"]);
    check(
        &loki(r#""tls": { "ca_file": "pem" }"#),
        &["sinks[0].tls.ca_file", "\"pem\" has no effect", "https://"],
    );
    check(
        &sinks(r#"{ "type": "loki", "url": "https://l", "tls": { "ca_file": "no_pem" } }"#),
        &["sinks[0].tls.ca_file", "\"no_pem\" names a file without a certificate"],
    );
    check(&sinks(r#"{ "type": "file" }"#), &["sinks[0].path", "is missing", "{file}"]);
    for (path, remedy) in [
        ("out/{name}", "has an unknown placeholder {name}: allowed are {source}"),
        ("out/{file", "has a { without a }"),
        ("out/file}", "has a } without a {"),
        ("out/{container}", "has an unknown placeholder {container}"),
        ("out/", "is a folder; add a name"),
    ] {
        let text = sinks(&format!(r#"{{ "type": "file", "path": "{path}" }}"#));
        check(&text, &["sinks[0].path", &format!("{path:?}"), remedy]);
    }
    let twice = r#"{ "type": "file", "path": "x" }, { "type": "file", "path": "./x", "name": "b" }"#;
    check(&sinks(twice), &["sinks[1].path", "is the path of another sink"]);
    check(&file(r#""format": "csv""#), &["sinks[0].format", "\"csv\"", "\"text\" or \"json\""]);
    check(&file(r#""rotate": {}"#), &["sinks[0].rotate", "max_bytes or max_age"]);
    check(
        &file(r#""rotate": { "max_bytes": "1" }"#),
        &["sinks[0].rotate.max_bytes", "\"1\" is below the limit 4KiB"],
    );
}

#[test]
fn memory_that_does_not_fit() {
    check(
        &loki(r#""connections": 16, "batch": { "max_bytes": "1MiB" }"#),
        &["sinks[0].batch.max_bytes", "\"1MiB\" is above the limit 168KiB", "16MiB", "fewer connections"],
    );
    let small = loki(r#""connections": 16"#).replacen('{', r#"{ "agent": { "memory_budget": "1MiB" },"#, 1);
    check(&small, &["agent.memory_budget", "\"1MiB\" is too small for 16 connections", "at least \"4MiB\""]);
}

#[test]
fn all_complaints_come_at_once_and_in_order() {
    let text = r#"{
        "agent": { "workers": 0, "stop_timeout": "soon", "colour": 1 },
        "status": { "listen": "0.0.0.0:1" },
        "sources": [ { "type": "file", "include": ["/l"], "name": "a b" }, { "type": "dock" } ],
        "pipeline": [ { "type": "keep" } ],
        "sinks": [ { "type": "loki", "batch": { "max_bytes": "1GB" } }, { "type": "carrier pigeon" } ],
        "extra": true }"#;
    let complaints = load(text).unwrap_err();
    let paths: Vec<&str> = complaints.iter().map(|text| text.split(": ").next().unwrap()).collect();
    assert_eq!(
        paths,
        [
            "agent.workers",
            "agent.stop_timeout",
            "agent.colour",
            "status.listen",
            "sources[1].type",
            "sources[0].name",
            "pipeline[0]",
            "sinks[0].url",
            "sinks[0].batch.max_bytes",
            "sinks[1].type",
            "extra",
        ],
        "{complaints:#?}"
    );
}

#[test]
fn secrets_are_never_shown() {
    let wrong = r#"{
        "status": { "token": "hunter2\n" },
        "sources": [ { "type": "file", "include": ["/l"] } ],
        "sinks": [ { "type": "loki", "url": "http://a:hunter2@l", "tenant": ["hunter2"],
                     "auth": { "bearer": "hunter2\n", "basic": { "user": "hunter2:", "password": "hunter2\u0007" } },
                     "headers": { "Authorization": "hunter2", "X": "hunter2\n", "Y": ["hunter2"] } },
                   { "type": "loki", "name": "b", "url": "${SECRET}", "auth": "hunter2", "headers": "hunter2",
                     "timeout": "${SECRET}", "connections": "${SECRET}", "encoding": "${SECRET}" } ] }"#;
    let complaints = load(wrong).unwrap_err();
    assert!(complaints.len() >= 12, "{complaints:#?}");
    assert!(!complaints.iter().any(|text| text.contains(SECRET)), "{complaints:#?}");

    let right = r#"{
        "status": { "token": "hunter2" },
        "sources": [ { "type": "file", "include": ["/l"] } ],
        "sinks": [ { "type": "loki", "url": "http://l", "auth": { "bearer": "hunter2" },
                     "headers": { "X": "hunter2" } },
                   { "type": "loki", "name": "b", "url": "http://l",
                     "auth": { "basic": { "user": "me", "password_file": "secret" } } } ] }"#;
    let config = good(right);
    assert!(!format!("{config:?} {}", config.summary()).contains(SECRET), "{config:?}");
}
