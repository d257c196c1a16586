//! The house rules that a compiler does not hold: who may know whom, what is pure, how long a file may get, and
//! what must never be among our dependencies. They read `src/` as text.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// From the ground up. A module knows those below it, and not its siblings.
const FLOORS: [(&str, &[&str]); 16] = [
    ("0", &["error", "disk"]),
    ("0b", &["clock", "cri", "durable", "glob", "metrics", "order", "sync"]),
    ("1", &["tasks"]),
    ("1b", &["net"]),
    ("2a", &["ack", "budget"]),
    ("2b", &["record"]),
    ("3", &["ledger"]),
    ("4", &["monitors", "pipeline", "sinks", "spool", "deadletter"]),
    ("5", &["dispatcher"]),
    ("6", &["stats"]),
    ("6b", &["status"]),
    ("7", &["config"]),
    ("8", &["agent"]),
    ("9", &["cli"]),
    ("9b", &["main"]),
    // Declares the modules, and is the map of the house.
    ("roof", &["lib"]),
];

/// Bytes and times come to them as arguments. Folders end with a slash. Those that are not there yet are passed over.
const PURE: [&str; 13] = [
    "ack.rs",
    "budget.rs",
    "dispatcher/batch.rs",
    "dispatcher/backoff.rs",
    "glob.rs",
    "monitors/container/cursor.rs",
    "monitors/container/frames.rs",
    "monitors/container/labels.rs",
    "monitors/container/lines.rs",
    "monitors/file/framing.rs",
    "pipeline/",
    "stats/history.rs",
    "stats/leak.rs",
];

const LINES_MAX: usize = 600;

/// Everything that would bring an async runtime in.
const RUNTIMES: [&str; 4] = ["tokio", "async-std", "smol", "futures-executor"];

#[test]
fn a_module_knows_only_the_floors_below_it() {
    let complaints: Vec<String> =
        sources().iter().flat_map(|(path, text)| imports_from_above(path, text)).collect();
    assert!(complaints.is_empty(), "\n{}", complaints.join("\n"));
}

#[test]
fn pure_files_know_no_world() {
    let complaints: Vec<String> = sources().iter().flat_map(|(path, text)| impurities(path, text)).collect();
    assert!(complaints.is_empty(), "\n{}", complaints.join("\n"));
}

#[test]
fn no_file_is_too_long() {
    let lines = |text: &str| text.lines().count();
    let long = sources().into_iter().filter(|(_, text)| lines(text) > LINES_MAX);
    let long: Vec<String> = long.map(|(path, text)| format!("src/{path}: {} lines", lines(&text))).collect();
    assert!(long.is_empty(), "more than {LINES_MAX} lines:\n{}", long.join("\n"));
}

#[test]
fn no_async_runtime_is_among_the_dependencies() {
    let tree = Command::new(env!("CARGO"))
        .args(["tree", "--edges=normal", "--prefix=none", "--format={p}", "--locked", "--offline"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .expect("cargo runs, since it built this test");
    assert!(tree.status.success(), "{}", String::from_utf8_lossy(&tree.stderr));
    let tree = String::from_utf8(tree.stdout).expect("names of crates are ASCII");
    let names: Vec<&str> = tree.lines().filter_map(|line| line.split(' ').next()).collect();
    assert!(names.contains(&"crossbeam-channel"), "this is no list of our dependencies:\n{tree}");
    let found: Vec<&&str> = RUNTIMES.iter().filter(|runtime| names.contains(runtime)).collect();
    assert!(found.is_empty(), "{found:?} in `cargo tree -e normal`; see who wants it with `cargo tree -i`");
}

/// All files of ours, by their path below `src/`.
fn sources() -> Vec<(String, String)> {
    fn walk(folder: &Path, found: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(folder).expect("src/ can be read") {
            let path = entry.expect("src/ can be read").path();
            if path.is_dir() {
                walk(&path, found);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                found.push(path);
            }
        }
    }
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut found = Vec::new();
    walk(&src, &mut found);
    found.sort();
    let named = |path: PathBuf| {
        let text = fs::read_to_string(&path).expect("a source file is text");
        let below = path.strip_prefix(&src).expect("it was found there");
        (below.to_str().expect("our names are ASCII").to_owned(), text)
    };
    let sources: Vec<(String, String)> = found.into_iter().map(named).collect();
    // Were these not found, every test here would hold for nothing.
    for known in ["ack.rs", "budget.rs", "lib.rs", "main.rs", "pipeline/mod.rs", "tasks/mod.rs"] {
        assert!(sources.iter().any(|(path, _)| path == known), "src/{known} was not found");
    }
    sources
}

/// `ledger` for `ledger/journal.rs`, `ack` for `ack.rs`.
fn module(path: &str) -> &str {
    path.split('/').next().unwrap_or(path).trim_end_matches(".rs")
}

/// How high, and what the floor is called.
fn floor(module: &str) -> Option<(usize, &'static str)> {
    let at = FLOORS.iter().position(|(_, modules)| modules.contains(&module))?;
    Some((at, FLOORS[at].0))
}

fn imports_from_above(path: &str, text: &str) -> Vec<String> {
    let own = module(path);
    let Some((height, own_floor)) = floor(own) else {
        return vec![format!("src/{path}: {own} is on no floor; give it one in FLOORS")];
    };
    let code = code_only(text);
    // `main.rs` is a crate of its own.
    let named = names_after(&code, "crate").into_iter().chain(names_after(&code, "log_capturer"));
    // The long way out: `super` may stand before a module of our own as well, so only names with a floor count.
    let outside = |name: &str| name != own && floor(name).is_some();
    let climbed = names_after(&code, "super").into_iter().filter(|(_, name)| outside(name));
    let mut complaints = Vec::new();
    for (line, name) in named.chain(climbed) {
        let place = format!("src/{path}:{line}: imports {name:?}");
        match floor(name) {
            _ if name == own => {}
            None => complaints.push(format!("{place}, which is on no floor")),
            Some((there, _)) if there < height => {}
            Some((_, its_floor)) => {
                complaints.push(format!("{place} of floor {its_floor}, while {own} is on floor {own_floor}"))
            }
        }
    }
    complaints
}

fn impurities(path: &str, text: &str) -> Vec<String> {
    let pure = PURE.iter().any(|pure| path == *pure || (pure.ends_with('/') && path.starts_with(pure)));
    if !pure {
        return Vec::new();
    }
    let code = code_only(text);
    let mut complaints = Vec::new();
    for (line, name) in names_after(&code, "std") {
        if ["fs", "net", "thread", "os", "process"].contains(&name) {
            complaints.push(format!("src/{path}:{line}: std::{name} in a pure file"));
        }
    }
    for clock in ["Instant", "SystemTime"] {
        for (line, name) in names_after(&code, clock) {
            if name == "now" {
                complaints.push(format!("src/{path}:{line}: {clock}::now in a pure file; take the time"));
            }
        }
    }
    complaints
}

/// What stands behind `root::`, each with its line: `x` in `root::x::Y`, `x` and `y` in `root::{x::Z, y}`, and
/// `*`, which is an import of everything.
fn names_after<'a>(code: &'a str, root: &str) -> Vec<(usize, &'a str)> {
    let mut names = Vec::new();
    let start = format!("{root}::");
    for (at, _) in code.match_indices(&start) {
        if code[..at].ends_with(is_word) {
            continue; // the end of a longer word
        }
        let mut add = |name_at: usize| {
            let name_at = name_at + code[name_at..].len() - code[name_at..].trim_start().len();
            let rest = &code[name_at..];
            let end = rest.find(|c| !is_word(c)).unwrap_or(rest.len());
            let name = if rest.starts_with('*') { &rest[..1] } else { &rest[..end] };
            if !name.is_empty() {
                names.push((1 + code[..name_at].matches('\n').count(), name));
            }
        };
        let behind = at + start.len();
        if !code[behind..].starts_with('{') {
            add(behind);
            continue;
        }
        let mut depth = 0;
        for (offset, c) in code[behind..].char_indices() {
            match c {
                '{' => depth += 1,
                '}' => depth -= 1,
                _ => {}
            }
            match (c, depth) {
                ('{' | ',', 1) => add(behind + offset + 1),
                (_, 0) => break,
                _ => {}
            }
        }
    }
    names
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// The text without comments and without what is in strings; every line stays in its place.
fn code_only(text: &str) -> String {
    let mut code = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        let skipped = if rest.starts_with("//") {
            rest.find('\n').unwrap_or(rest.len())
        } else if rest.starts_with("/*") {
            rest.find("*/").map_or(rest.len(), |end| end + 2)
        } else if c == '"' {
            string_length(rest)
        } else if c == 'r' && !code.ends_with(|last| is_word(last) && last != 'b') {
            raw_string_length(rest)
        } else if c == '\'' {
            character_length(rest)
        } else {
            0
        };
        if skipped == 0 {
            code.push(c);
            rest = &rest[c.len_utf8()..];
        } else {
            code.extend(rest[..skipped].matches('\n'));
            rest = &rest[skipped..];
        }
    }
    code
}

fn string_length(text: &str) -> usize {
    let mut escaped = true; // the quote it begins with
    for (at, c) in text.char_indices() {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            '"' => return at + 1,
            _ => {}
        }
    }
    text.len()
}

/// 0 if it is a word with an `r`.
fn raw_string_length(text: &str) -> usize {
    let hashes = text[1..].len() - text[1..].trim_start_matches('#').len();
    if !text[1 + hashes..].starts_with('"') {
        return 0;
    }
    let body = 2 + hashes;
    let end = format!("\"{}", "#".repeat(hashes));
    text[body..].find(&end).map_or(text.len(), |at| body + at + end.len())
}

/// 0 if it is a lifetime.
fn character_length(text: &str) -> usize {
    let inside = &text[1..];
    match inside.chars().next() {
        // The escaped one may be a quote.
        Some('\\') => inside[2..].find('\'').map_or(0, |end| end + 4),
        Some(c) if inside[c.len_utf8()..].starts_with('\'') => c.len_utf8() + 2,
        _ => 0,
    }
}

/// The tests above find nothing in a tidy house, so this is where they show that they would.
#[test]
fn the_rules_see_what_breaks_them() {
    fn check(rule: fn(&str, &str) -> Vec<String>, path: &str, text: &str, want: &[&str]) {
        assert_eq!(rule(path, text), want, "{path}: {text}");
    }
    let floors = |path, text, want: &[&str]| check(imports_from_above, path, text, want);
    floors("record.rs", "use crate::ack::Ack;\nuse crate::{budget::Credit, error::{Error, Result}};", &[]);
    floors("record.rs", "use crate::record::Labels;", &[]);
    floors("tasks/mod.rs", "pub(crate) fn x() {}\nmod clock_hands; use super::tasks::X;", &[]);
    floors(
        "pipeline/json.rs",
        "\nuse crate::sinks::Answer;",
        &["src/pipeline/json.rs:2: imports \"sinks\" of floor 4, while pipeline is on floor 4"],
    );
    floors(
        "ack.rs",
        "use crate::{\n    error::{Context, Result},\n    ledger,\n};",
        &["src/ack.rs:3: imports \"ledger\" of floor 3, while ack is on floor 2a"],
    );
    floors(
        "ack.rs",
        "fn f() { let t: &'static str = g(\"\\\"\", '\"', '\\''); crate::agent::run() }",
        &["src/ack.rs:1: imports \"agent\" of floor 8, while ack is on floor 2a"],
    );
    floors(
        "monitors/file/tail.rs",
        "use super::super::super::dispatcher::Lane;",
        &["src/monitors/file/tail.rs:1: imports \"dispatcher\" of floor 5, while monitors is on floor 4"],
    );
    floors("main.rs", "use log_capturer::{agent, cli};", &[]);
    floors("ack.rs", "use crate::*;", &["src/ack.rs:1: imports \"*\", which is on no floor"]);
    floors("helper.rs", "", &["src/helper.rs: helper is on no floor; give it one in FLOORS"]);
    let unseen = "//! [`crate::agent`]\n/* crate::agent */ const A: &str = \"crate::agent\"; const B: &str = br#\"\
                  crate::agent\"\"#;";
    floors("ack.rs", unseen, &[]);

    let purity = |path, text, want: &[&str]| check(impurities, path, text, want);
    purity("pipeline/json.rs", "use std::{fmt, sync::Arc}; use std::time::Instant; // Instant::now", &[]);
    purity("durable.rs", "use std::fs::File;", &[]);
    purity("ack.rs", "use std::fs::File;", &["src/ack.rs:1: std::fs in a pure file"]);
    purity(
        "pipeline/json.rs",
        "use std::{\nfmt, net,\nthread::spawn};",
        &[
            "src/pipeline/json.rs:2: std::net in a pure file",
            "src/pipeline/json.rs:3: std::thread in a pure file",
        ],
    );
    purity(
        "dispatcher/batch.rs",
        "let x = std::time::Instant::now();",
        &["src/dispatcher/batch.rs:1: Instant::now in a pure file; take the time"],
    );
}
