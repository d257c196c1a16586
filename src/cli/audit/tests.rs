use std::path::PathBuf;
use std::time::Duration;

use super::*;
use crate::agent::{self, Orders};
use crate::monitors::file::packing::{gzip, zstd};

struct House(tempfile::TempDir);

impl House {
    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    #[expect(clippy::disallowed_methods, reason = "a log need not survive a power cut")]
    fn put(&self, name: &str, text: &str) {
        std::fs::create_dir_all(self.path(name).parent().unwrap()).unwrap();
        std::fs::write(self.path(name), text).unwrap();
    }

    fn config(&self, sinks: &str) -> Config {
        let config = format!(
            r#"{{ "agent": {{ "data_dir": "data" }}, "status": {{ "listen": null }},
                  "sources": [ {{ "type": "file", "name": "logs", "include": ["logs/*"] }} ], "sinks": [ {sinks} ] }}"#
        );
        Config::parse(&config, self.0.path(), &|_| None).unwrap_or_else(|why| panic!("{why:?}"))
    }

    /// Replaces a file by what its bytes become.
    #[expect(clippy::disallowed_methods, reason = "a log need not survive a power cut")]
    fn pack(&self, from: &str, pack: fn(&[u8]) -> Vec<u8>, to: &str) {
        let text = std::fs::read(self.path(from)).unwrap();
        std::fs::write(self.path(to), pack(&text)).unwrap();
        std::fs::remove_file(self.path(from)).unwrap();
    }

    /// Ships what is there.
    fn run(&self, sinks: &str) -> Exit {
        self.run_for(sinks, None)
    }

    fn run_for(&self, sinks: &str, max_time: Option<Duration>) -> Exit {
        let orders =
            Orders { once: true, max_time, signals: false, progress: None, stop: None, reload: None };
        agent::run(self.config(sinks), &orders)
    }

    /// All lines of the report; what stands below `data` is untouched by it.
    fn audit(&self, sinks: &str) -> Vec<String> {
        let report = look(&self.config(sinks)).unwrap();
        let root = format!("{}/", self.0.path().display());
        let text = describe(&report).replace(&root, "");
        assert_eq!(report.nothing_is_missing, text.ends_with("nothing is missing\n"), "{text}");
        assert!(serde_json::from_str::<serde_json::Value>(&as_json(&report)).is_ok());
        // Numbers of generations are what they are.
        text.lines().map(|line| line.split("; generation").next().unwrap().to_owned()).collect()
    }
}

const OUT: &str = r#"{ "type": "file", "name": "out", "path": "out.txt" }"#;
const OTHER: &str = r#"{ "type": "file", "name": "other", "path": "other.txt" }"#;

#[test]
fn what_is_missing_is_named_and_what_is_not_is_not() {
    let house = House(tempfile::tempdir().unwrap());
    house.put("logs/a.log", "one\ntwo\n");
    assert_eq!(
        house.audit(OUT),
        ["logs/a.log (source logs)", "  size 8, nothing read yet", "missing: 8 bytes not read"]
    );
    assert!(!house.path("data").exists(), "an audit makes nothing");
    assert_eq!(house.run(OUT), Exit::Delivered);
    let all = ["logs/a.log (source logs", "  size 8, read 8, unread 0", "  out: acknowledged 8, pending 0"];
    assert_eq!(house.audit(OUT)[..3], all);
    assert_eq!(house.audit(OUT)[3], "nothing is missing");

    house.put("logs/b.log", "b\n");
    house.put("logs/c.gz", "\x1f\u{8b}c\n");
    #[expect(clippy::disallowed_methods, reason = "as a rotation does")]
    std::fs::rename(house.path("logs/a.log"), house.path("logs/a.log.1")).unwrap();
    let found = house.audit(OUT);
    assert!(found.contains(&"  size 8, read 8, unread 0, now logs/a.log.1".into()), "{found:?}");
    assert!(found.last().unwrap().starts_with("missing: "), "{found:?}");

    // A sink that left is asked for nothing; one that is new has all that was read before it came.
    assert_eq!(house.run(&format!("{OUT}, {OTHER}")), Exit::Delivered);
    house.put("logs/d.log", "dd\n");
    assert_eq!(house.run(OTHER), Exit::Delivered);
    let found = house.audit(OTHER);
    assert!(
        found.iter().any(|line| line.starts_with("  out: acknowledged") && line.contains("not configured"))
    );
    assert_eq!(found.last().unwrap(), "nothing is missing");
    // Without its file, and with the sink back, that is another matter.
    std::fs::remove_file(house.path("logs/d.log")).unwrap();
    let found = house.audit(OUT);
    assert!(found.contains(&"  not found on the disk, read 3".into()), "{found:?}");
}

/// Nobody listens there.
const DEAD: &str =
    r#"{ "type": "loki", "name": "dead", "url": "http://127.0.0.1:9", "spool": { "enabled": false } }"#;

#[test]
fn what_was_packed_is_looked_into() {
    for (pack, end) in [(gzip as fn(&[u8]) -> Vec<u8>, "gz"), (zstd, "zst")] {
        let house = House(tempfile::tempdir().unwrap());
        let both = format!("{OUT}, {DEAD}");
        house.put("logs/a.log", "one\ntwo\n");
        assert_eq!(house.run_for(&both, Some(Duration::from_millis(300))), Exit::Pending);
        house.put("logs/a.log", "one\ntwo\nthree\n");
        let packed = format!("logs/a.log.2.{end}");
        house.pack("logs/a.log", pack, &packed);
        // Rotated and packed, and nobody has seen it.
        house.put("logs/a.log", "four\n");
        let unseen = format!("logs/a.log.1.{end}");
        house.pack("logs/a.log", pack, &unseen);
        assert_eq!(
            house.audit(&both),
            [
                "logs/a.log (source logs",
                &format!("  size 14, read 8, unread 6, now {packed}, compressed"),
                "  out: acknowledged 8, pending 0",
                "  dead: acknowledged 0, pending 8",
                &format!("{unseen} (source logs)"),
                "  size 5, nothing read yet",
                "missing: 11 bytes not read, 8 bytes pending for dead",
            ]
        );
        assert_eq!(house.run(OUT), Exit::Delivered);
        assert_eq!(house.audit(OUT).last().unwrap(), "nothing is missing");
        assert_eq!(std::fs::read_to_string(house.path("out.txt")).unwrap(), "one\ntwo\nthree\nfour\n");
    }
}

#[test]
fn what_was_copied_aside_is_found_and_what_is_torn_is_not_taken_for_whole() {
    let house = House(tempfile::tempdir().unwrap());
    house.put("logs/a.log", "one\ntwo\n");
    assert_eq!(house.run(OUT), Exit::Delivered);
    house.put("logs/a.log.1", "one\ntwo\nthree\n");
    house.put("logs/a.log", "");
    let found = house.audit(OUT);
    assert_eq!(found[1], "  size 14, read 8, unread 6, now logs/a.log.1");
    assert_eq!(found.last().unwrap(), "missing: 6 bytes not read");

    house.pack("logs/a.log.1", |text| gzip(text)[..gzip(text).len() - 6].to_vec(), "logs/a.log.1.gz");
    let found = house.audit(OUT);
    assert!(found.contains(&"logs/a.log.1.gz could not be looked into to its end".into()), "{found:?}");
    assert!(found.last().unwrap().starts_with("missing: "), "{found:?}");
}
