use std::path::PathBuf;

use super::*;
use crate::agent::{self, Orders};

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

    /// Ships what is there.
    fn run(&self, sinks: &str) -> Exit {
        let orders =
            Orders { once: true, max_time: None, signals: false, progress: None, stop: None, reload: None };
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
