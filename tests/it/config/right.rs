//! Right configurations, what they mean, and both kinds through the program.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use log_capturer::config::Config;
use log_capturer::monitors::{Binary, HoldDeleted, SourceKind, StartAt};
use log_capturer::sinks::{Auth, Format, KindOptions, LokiEncoding, LongLines, SinkOptions};
use log_capturer::spool::{SpoolOptions, WhenFull};

use super::{SECRET, folder, good, load_in, loki, put, sinks, source, sources, stage, status};

const KIB: usize = 1024;
const MIB: usize = 1024 * KIB;

fn auth_of(sink: &SinkOptions) -> &Auth {
    let KindOptions::Loki(loki) = &sink.kind else { panic!("{sink:?}") };
    &loki.http.auth
}

#[test]
fn secrets_come_from_values_variables_and_files() {
    for auth in [
        r#""bearer": "hunter2""#,
        r#""bearer": "${SECRET}""#,
        r#""bearer": "${NONE:-hunter2}""#,
        r#""bearer_file": "secret""#,
        r#""bearer_file": "${NONE:-windows}""#,
    ] {
        let config = good(&loki(&format!(r#""auth": {{ {auth} }}"#)));
        assert!(*auth_of(&config.sinks[0]) == Auth::Bearer(SECRET.into()), "{auth}");
    }
    let config = good(&loki(r#""auth": { "basic": { "user": "me", "password_file": "secret" } }"#));
    assert!(*auth_of(&config.sinks[0]) == Auth::Basic { user: "me".into(), password: SECRET.into() });
    let config = good(&status(r#""listen": "0.0.0.0:0", "token_file": "secret""#));
    assert_eq!(config.status.token.as_deref(), Some(SECRET));
}

#[test]
fn everything_has_a_default() {
    let folder = folder();
    let text = r#"{ "sources": [ { "type": "file", "include": ["/var/log/**/*.log"] } ],
                    "sinks":   [ { "type": "loki", "url": "http://127.0.0.1:3100" } ] }"#;
    let config = load_in(text, folder.path()).unwrap();
    let second = Duration::from_secs(1);

    assert_eq!(config.agent.data_dir, folder.path().join("data"));
    assert!((1..=4).contains(&config.agent.workers));
    assert_eq!(config.agent.memory_budget, 16 * MIB);
    assert_eq!((config.agent.stop_timeout, config.agent.sync_interval), (10 * second, second));
    assert_eq!(config.agent.open_files_max, None);
    assert_eq!(config.status.listen, Some("127.0.0.1:8401".parse().unwrap()));
    assert_eq!(config.status.token, None);

    let source = &config.sources[0];
    assert_eq!((&*source.name, source.max_line_bytes, source.idle), ("file", MIB, 5 * second));
    assert_eq!(source.labels.get("source"), Some("file"));
    assert!(source.labels.get("host").is_some_and(|host| !host.is_empty()));
    let SourceKind::File(file) = &source.kind else { panic!("{source:?}") };
    assert_eq!(file.include, ["/var/log/**/*.log"]);
    assert_eq!(
        (file.start_at, file.binary, file.poll_interval, file.hold_deleted),
        (
            StartAt::Beginning,
            Binary::Skip,
            2 * second,
            HoldDeleted { max_bytes: 1024 * MIB as u64, max_age: None }
        )
    );

    let sink = &config.sinks[0];
    assert_eq!((&*sink.name, sink.connections, sink.timeout), ("loki", 1, 10 * second));
    assert_eq!((sink.batch.max_bytes, sink.batch.max_lines, sink.batch.max_wait), (MIB, 10_000, second));
    assert_eq!((sink.retry.initial, sink.retry.max), (second / 2, 30 * second));
    assert_eq!(sink.retry.max_attempts, None);
    let KindOptions::Loki(loki) = &sink.kind else { panic!("{sink:?}") };
    assert_eq!(
        (loki.encoding, loki.long_lines, loki.max_line_bytes),
        (LokiEncoding::Protobuf, LongLines::Split, 256_000)
    );

    assert_eq!((config.memory.chunk_bytes, config.memory.max_record_bytes), (8 * MIB, MIB));
    assert_eq!(
        config.summary(),
        format!(
            "captures /var/log/**/*.log into loki at http://127.0.0.1:3100; at most 16 MiB under way, records of at \
             most 1 MiB; state in {}",
            folder.path().join("data").display()
        )
    );
}

#[test]
fn what_nobody_wrote_down_shrinks_to_fit() {
    let config = good(&loki(r#""connections": 16"#));
    assert_eq!(config.sinks[0].batch.max_bytes, 160 * KIB);
    assert_eq!((config.memory.max_record_bytes, config.sources[0].max_line_bytes), (160 * KIB, 160 * KIB));
    let config = good(&source(r#""max_line_bytes": "2MiB""#));
    assert_eq!(config.sources[0].max_line_bytes, 2 * MIB, "a quarter of the chunks");
    let config = good(&source(r#""max_line_bytes": "1KiB""#));
    assert_eq!((config.memory.max_record_bytes, config.sinks[0].batch.max_bytes), (KIB, 256 * KIB));
}

/// One sink that files wait for needs none; everybody else has one, unless somebody says otherwise.
#[test]
fn who_has_a_spool() {
    let has = |config: &Config| config.spools.iter().map(Option::is_some).collect::<Vec<bool>>();
    assert_eq!(has(&good(&loki(r#""connections": 1"#))), [false]);
    assert_eq!(has(&good(&loki(r#""spool": { "enabled": true }"#))), [true]);
    let stdin =
        r#"{ "sources": [ { "type": "stdin" } ], "sinks": [ { "type": "loki", "url": "http://l" } ] }"#;
    assert_eq!(has(&good(stdin)), [true]);
    let two = good(&sinks(
        r#"{ "type": "loki", "url": "http://l",
             "spool": { "max_bytes": "10MiB", "after": "1m", "when_full": "drop_oldest" } },
           { "type": "stdout", "spool": { "enabled": false } }, { "type": "file", "path": "out" }"#,
    ));
    assert_eq!(has(&two), [true, false, true]);
    let (minute, second) = (Duration::from_secs(60), Duration::from_secs(1));
    let expected = SpoolOptions { max_bytes: 10 << 20, after: minute, when_full: WhenFull::DropOldest };
    assert_eq!(two.spools[0], Some(expected));
    let default = SpoolOptions { max_bytes: 1 << 30, after: 5 * second, when_full: WhenFull::Wait };
    assert_eq!(two.spools[2], Some(default));
    assert_eq!((two.memory.spool_bytes, two.memory.chunk_bytes), (MIB, 6 * MIB));
}

#[test]
fn names_follow_the_type() {
    let text = r#"{ "type": "file", "include": ["/a"] }, { "type": "file", "include": ["/b"] },
                  { "type": "file", "include": ["/c"], "name": "file-3" }, { "type": "stdin" },
                  { "type": "file", "include": ["/d"] }"#;
    let config = good(&sources(text));
    let names: Vec<&str> = config.sources.iter().map(|source| &*source.name).collect();
    assert_eq!(names, ["file", "file-2", "file-3", "stdin", "file-4"]);
    assert!(config.sources.iter().all(|source| source.labels.get("source") == Some(&*source.name)));
    let config = good(&source(r#""labels": { "host": "web-1", "job": "app" }"#));
    assert_eq!(config.sources[0].labels.get("host"), Some("web-1"));
}

#[test]
fn paths_count_from_the_folder_of_the_configuration() {
    let folder = tempfile::tempdir().unwrap();
    let odd = folder.path().join("a[b]");
    std::fs::create_dir(&odd).unwrap();
    let text = r#"{ "agent": { "data_dir": "./state//x" },
                    "sources": [ { "type": "file", "include": ["./logs/*.log", "/abs/./x"],
                                   "exclude": ["*.gz", "**/old/*", "logs/no.log"] } ],
                    "sinks": [ { "type": "file", "path": "./out/{source}/{date}.log", "format": "json" } ] }"#;
    let config = load_in(text, &odd).unwrap();
    let at = |rest: &str| odd.join(rest).display().to_string();
    assert_eq!(config.agent.data_dir, PathBuf::from(at("state/x")));
    let SourceKind::File(file) = &config.sources[0].kind else { panic!("{config:?}") };
    let escaped = format!("{}/a[[]b[]]", folder.path().display());
    assert_eq!(file.include, [format!("{escaped}/logs/*.log"), "/abs/x".into()]);
    assert_eq!(file.exclude, ["/**/*.gz".into(), "/**/old/*".into(), format!("{escaped}/logs/no.log")]);
    let KindOptions::File(out) = &config.sinks[0].kind else { panic!("{config:?}") };
    assert_eq!((&*out.path, out.format), (&*at("out/{source}/{date}.log"), Format::Json));
}

#[test]
fn variables_stand_in_for_any_value() {
    let config = good(
        r#"{ "agent": { "workers": "${WORKERS}", "stop_timeout": "${EMPTY:-3s}", "data_dir": "/x/$${a}$" },
             "status": { "listen": null },
             "sources": [ { "type": "${NONE:-stdin}" } ], "sinks": [ { "type": "stdout" } ] }"#,
    );
    assert_eq!((config.agent.workers, config.agent.stop_timeout), (3, Duration::from_secs(3)));
    assert_eq!(config.agent.data_dir, PathBuf::from("/x/${a}$"));
    assert_eq!(config.status.listen, None);
    assert!(matches!(config.sources[0].kind, SourceKind::Stdin));
}

#[test]
fn stages_are_read() {
    let config = good(&stage(
        r#"{ "type": "json", "message": "msg", "on_error": "drop", "sources": ["file"] },
           { "type": "timestamp", "field": "time", "format": "rfc3339" },
           { "type": "labels", "set": { "a": "1" }, "from": { "level": "lvl" }, "metadata": { "id": "id" }, "remove": ["host"] },
           { "type": "drop", "match": "^debug", "reason": "noise" },
           { "type": "keep", "field": "app", "equals": "web" }"#,
    ));
    assert_eq!(config.pipeline.len(), 5);
    assert_eq!(config.pipeline[0].sources.as_deref(), Some(&["file".into()][..]));
}

const EXAMPLE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/config.example.json");

/// Every key that sources and sinks of any type have, and those of the types it uses, each with its default.
#[test]
fn the_example_shows_every_common_key_with_its_default() {
    let example = Config::load(Path::new(EXAMPLE)).unwrap();
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let least = r#"{ "sources": [ { "type": "file", "include": ["/var/log/**"],
                                    "exclude": ["/var/log/journal/**", "*.gz", "*.xz", "*.zst", "*.bz2"] } ],
                     "sinks": [ { "type": "file", "path": "./captured/{file}" } ] }"#;
    let defaults = load_in(least, root).unwrap();
    assert_eq!(format!("{example:#?}"), format!("{defaults:#?}"));
    assert_eq!(example.agent.data_dir, root.join("data"));

    let text = std::fs::read_to_string(EXAMPLE).unwrap();
    let tree: serde_json::Value = serde_json::from_str(&text).unwrap();
    for (path, keys) in [
        ("/agent", "data_dir workers memory_budget stop_timeout sync_interval open_files_max"),
        ("/status", "listen token"),
        (
            "/sources/0",
            "name labels include exclude start_at max_line_bytes poll_interval idle binary hold_deleted",
        ),
        ("/sinks/0", "name labels path format rotate batch connections timeout retry"),
        ("/sinks/0/batch", "max_bytes max_lines max_wait"),
        ("/sinks/0/retry", "initial max max_attempts"),
    ] {
        for key in keys.split(' ') {
            let shown = tree.pointer(path).is_some_and(|at| at.get(key).is_some());
            assert!(shown, "{path} lacks {key}");
        }
    }
}

fn program(folder: &Path, arguments: &[&str]) -> Output {
    let program = env!("CARGO_BIN_EXE_log-capturer");
    Command::new(program).args(arguments).current_dir(folder).output().unwrap()
}

/// Through the program: `check` says what a configuration does or everything that is wrong with it; neither it
/// nor a refused `run` creates anything.
#[test]
fn check_and_a_refused_run_leave_no_trace() {
    let folder = tempfile::tempdir().unwrap();
    put(&folder.path().join("good.json"), &std::fs::read_to_string(EXAMPLE).unwrap());
    let bad = r#"{ "agent": { "stop_timeout": "soon" }, "sources": [ { "type": "file", "inclued": ["/l"] } ],
                   "sinks": [ { "type": "file", "path": "out", "batch": { "max_bytes": "1GB" } } ] }"#;
    put(&folder.path().join("bad.json"), bad);

    let good = program(folder.path(), &["check", "--config", "good.json"]);
    let said = String::from_utf8_lossy(&good.stdout);
    assert_eq!(good.status.code(), Some(0), "{good:?}");
    for part in ["/var/log/**", "captured/{file}", "at most 16 MiB under way", "the longest record is 1 MiB"]
    {
        assert!(said.contains(part), "{part}\n{said}");
    }

    for command in ["check", "run"] {
        let refused = program(folder.path(), &[command, "--config", "bad.json"]);
        let said = String::from_utf8_lossy(&refused.stderr);
        assert_eq!(refused.status.code(), Some(2), "{command}: {refused:?}");
        for part in [
            "agent.stop_timeout: \"soon\" is not a duration",
            "sources[0].include: is missing",
            "sources[0].inclued: unknown key; did you mean \"include\"?",
            "sinks[0].batch.max_bytes: \"1GB\" is above the limit 4MiB",
        ] {
            assert!(said.contains(part), "{command}: {part}\n{said}");
        }
    }
    let absent = program(folder.path(), &["check", "--config", "none.json"]);
    assert_eq!(absent.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&absent.stderr).contains("none.json: could not be read"), "{absent:?}");
    assert_eq!(program(folder.path(), &["check"]).status.code(), Some(2));
    assert_eq!(program(folder.path(), &["--help"]).status.code(), Some(0));

    let mut left: Vec<_> =
        std::fs::read_dir(folder.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    left.sort();
    assert_eq!(left, ["bad.json", "good.json"]);
}

#[test]
fn a_docker_source_needs_nothing_and_may_say_much() {
    use log_capturer::monitors::container::labels::From;
    use log_capturer::monitors::container::{Address, StreamAs};

    let folder = folder();
    let text = r#"{ "sources": [ { "type": "docker" },
                                 { "type": "docker", "name": "far", "socket": "tcp://10.0.0.1:2376", "tls": {},
                                   "enable": "labelled", "start_at": "end", "stream": "label",
                                   "labels_from": ["id"], "container_env": { "tier": "TIER" } } ],
                    "sinks":   [ { "type": "stdout" } ] }"#;
    let config = load_in(text, folder.path()).unwrap();
    let [near, far] = [0, 1].map(|at| match &config.sources[at].kind {
        SourceKind::Docker(options) => options.clone(),
        other => panic!("{other:?}"),
    });
    assert_eq!(near.address, Address::Socket("/var/run/docker.sock".into()));
    assert_eq!(
        (near.start_at, near.stream_as, near.choice.opt_in),
        (StartAt::Beginning, StreamAs::Metadata, false)
    );
    let names: Vec<&str> = near.labels.iter().map(|(name, _)| &**name).collect();
    assert_eq!(names, ["container", "image", "compose_project", "compose_service"]);
    assert_eq!(far.address, Address::Url("https://10.0.0.1:2376".into()));
    assert_eq!((far.start_at, far.stream_as, far.choice.opt_in), (StartAt::End, StreamAs::Label, true));
    let labels = [("container_id".to_owned(), From::Id), ("tier".to_owned(), From::Env("TIER".into()))];
    assert_eq!(far.labels, labels);
}
