//! Walks the tree and takes note of everything that is wrong, instead of stopping at the first thing.
//!
//! A [`Reader`] stands at one object, an [`Item`] at one value. Asking a reader for a key makes the key known;
//! [`Reader::finish`] complains about the others. So every key has to be asked for on every way through a
//! function, and a value that is wrong reads as if it had not been given: its complaint is already noted, and
//! the walk goes on to find the next.
//!
//! A complaint shows a value as it was written, before variables are replaced, and never a secret.

use std::cell::{Cell, RefCell};
use std::fmt;
use std::io::Read;
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::json::Json;
use super::values::{self, nearest, quoted, show_duration, show_size};
use crate::record::Labels;

/// What is wrong with one place of a configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Complaint {
    /// `sinks[1].batch.max_bytes`
    pub path: String,
    /// The value, what is wrong with it, what to do: `"1GB" is above the limit 4MiB`.
    pub says: String,
}

impl Complaint {
    pub fn new(path: impl Into<String>, says: impl Into<String>) -> Complaint {
        Complaint { path: path.into(), says: says.into() }
    }
}

impl fmt::Display for Complaint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.path, self.says)
    }
}

/// What the whole walk shares: where relative paths count from, the environment, the complaints so far.
pub struct Room<'a> {
    folder: &'a Path,
    env: &'a dyn Fn(&str) -> Option<String>,
    complaints: RefCell<Vec<Complaint>>,
}

impl<'a> Room<'a> {
    /// `folder`: absolute.
    pub fn new(folder: &'a Path, env: &'a dyn Fn(&str) -> Option<String>) -> Room<'a> {
        Room { folder, env, complaints: RefCell::default() }
    }

    pub fn complain(&self, path: &str, says: impl Into<String>) {
        self.complaints.borrow_mut().push(Complaint::new(path, says));
    }

    pub fn into_complaints(self) -> Vec<Complaint> {
        self.complaints.into_inner()
    }

    pub fn folder(&self) -> &Path {
        self.folder
    }

    /// Absolute, without `.` and doubled slashes.
    pub fn absolute(&self, path: &str) -> PathBuf {
        self.folder.join(path).components().collect()
    }
}

/// One value and where it stands.
#[derive(Clone)]
pub struct Item<'a> {
    path: String,
    node: &'a Json,
    room: &'a Room<'a>,
    /// A secret: no complaint shows it.
    hidden: bool,
}

impl<'a> Item<'a> {
    pub fn root(node: &'a Json, room: &'a Room<'a>) -> Item<'a> {
        Item { path: String::new(), node, room, hidden: false }
    }

    pub fn path(&self) -> &str {
        if self.path.is_empty() { "the configuration" } else { &self.path }
    }

    pub fn room(&self) -> &'a Room<'a> {
        self.room
    }

    /// From here on no complaint shows the value.
    pub fn hide(self) -> Item<'a> {
        Item { hidden: true, ..self }
    }

    /// `{path}: {value} {says}`
    pub fn complain(&self, says: impl fmt::Display) {
        self.room.complain(self.path(), format!("{} {says}", self.shown()));
    }

    fn shown(&self) -> String {
        match self.node {
            Json::List(_) | Json::Map(_) => self.kind().into(),
            _ if self.hidden => "the value (hidden)".into(),
            Json::String(text) if self.is_substituted() => {
                format!("{} (with its variables replaced)", quoted(text))
            }
            Json::String(text) => quoted(text),
            Json::Null => "null".into(),
            Json::Bool(value) => value.to_string(),
            Json::Integer(value) => value.to_string(),
            Json::Number(value) => value.to_string(),
        }
    }

    fn kind(&self) -> &'static str {
        match self.node {
            Json::Null => "null",
            Json::Bool(_) => "a boolean",
            Json::Integer(_) | Json::Number(_) => "a number",
            Json::String(_) => "a string",
            Json::List(_) => "a list",
            Json::Map(_) => "an object",
        }
    }

    fn is_substituted(&self) -> bool {
        matches!(self.node, Json::String(text) if text.contains("${"))
    }

    /// With variables replaced. `None`: not a string (no complaint), or a variable is missing (complaint).
    fn text(&self) -> Option<String> {
        let Json::String(text) = self.node else { return None };
        match values::substitute(text, self.room.env) {
            Ok(value) => Some(value),
            Err(says) if self.hidden => {
                self.room.complain(self.path(), says);
                None
            }
            Err(says) => {
                self.room.complain(self.path(), format!("{} {says}", quoted(text)));
                None
            }
        }
    }

    pub fn string(&self) -> Option<String> {
        if !matches!(self.node, Json::String(_)) {
            self.complain("is not a string");
            return None;
        }
        let text = self.text()?;
        if text.is_empty() {
            self.complain("is empty; write a value or leave the key out");
            return None;
        }
        Some(text)
    }

    /// A string that `parse` understands; `example` is the remedy.
    fn parsed<T>(&self, parse: impl Fn(&str) -> Option<T>, what: &str) -> Option<T> {
        if !matches!(self.node, Json::String(_)) {
            self.complain(format_args!("is not {what}"));
            return None;
        }
        let value = parse(&self.text()?);
        if value.is_none() {
            self.complain(format_args!("is not {what}"));
        }
        value
    }

    fn within<T: PartialOrd + Copy>(
        &self,
        value: T,
        range: &RangeInclusive<T>,
        show: impl Fn(T) -> String,
    ) -> Option<T> {
        if value < *range.start() {
            self.complain(format_args!("is below the limit {}", show(*range.start())));
        } else if value > *range.end() {
            self.complain(format_args!("is above the limit {}", show(*range.end())));
        }
        range.contains(&value).then_some(value)
    }

    pub fn integer(&self, range: RangeInclusive<u64>) -> Option<u64> {
        let what = format!("a whole number from {} to {}", range.start(), range.end());
        let value = match self.node {
            Json::Integer(value) => *value,
            // The environment has no numbers.
            Json::String(_) if self.is_substituted() => self.parsed(|text| text.parse().ok(), &what)?,
            _ => {
                self.complain(format_args!("is not {what} (without quotes)"));
                return None;
            }
        };
        let value = value.clamp(-1, i128::from(u64::MAX));
        self.within(value, &(i128::from(*range.start())..=i128::from(*range.end())), |limit| {
            limit.to_string()
        })
        .map(|value| value as u64)
    }

    pub fn boolean(&self) -> Option<bool> {
        match self.node {
            Json::Bool(value) => Some(*value),
            Json::String(_) if self.is_substituted() => {
                self.parsed(|text| text.parse().ok(), "true or false")
            }
            _ => {
                self.complain("is not true or false (without quotes)");
                None
            }
        }
    }

    pub fn duration(&self, range: RangeInclusive<Duration>) -> Option<Duration> {
        let value =
            self.parsed(values::duration, "a duration; write it like \"5s\", \"250ms\" or \"1m30s\"")?;
        self.within(value, &range, show_duration)
    }

    /// In bytes.
    pub fn size(&self, range: RangeInclusive<u64>) -> Option<u64> {
        let value =
            self.parsed(values::size, "a size; write it like \"1MiB\", \"64KiB\" or \"100\" (bytes)")?;
        self.within(value, &range, show_size)
    }

    pub fn one_of<T: Clone>(&self, words: &[(&str, T)]) -> Option<T> {
        let names: Vec<&str> = words.iter().map(|(word, _)| *word).collect();
        let allowed = names.iter().map(|word| format!("{word:?}")).collect::<Vec<_>>().join(" or ");
        let text = self.text().or_else(|| {
            if !matches!(self.node, Json::String(_)) {
                self.complain(format_args!("is not allowed; write {allowed}"));
            }
            None
        })?;
        let found = words.iter().find(|(word, _)| *word == text).map(|(_, value)| value.clone());
        if found.is_none() {
            let meant = if self.is_substituted() { None } else { nearest(&text, &names) };
            let meant = meant.map(|word| format!("; did you mean {word:?}?")).unwrap_or_default();
            self.complain(format_args!("is not allowed{meant}; allowed are {allowed}"));
        }
        found
    }

    /// As [`Item::one_of`], for a `type`; `planned` words are not there yet, which is said instead of "not allowed".
    pub fn type_of<T: Clone>(&self, words: &[(&str, T)], planned: &[&str]) -> Option<T> {
        if planned.iter().any(|word| self.is_word(word)) {
            let names: Vec<String> = words.iter().map(|(word, _)| format!("{word:?}")).collect();
            self.complain(format_args!("is not available in this version; use {}", names.join(" or ")));
            return None;
        }
        self.one_of(words)
    }

    /// Whether it is this word; no complaint if not.
    pub fn is_word(&self, word: &str) -> bool {
        matches!(self.node, Json::String(text) if values::substitute(text, self.room.env).is_ok_and(|text| text == word))
    }

    pub fn address(&self) -> Option<SocketAddr> {
        self.parsed(|text| text.parse().ok(), "an address with a port; write it like \"127.0.0.1:8401\"")
    }

    pub fn list(&self) -> Option<Vec<Item<'a>>> {
        let Json::List(nodes) = self.node else {
            let remedy = match self.node {
                Json::String(text) if !self.hidden => format!("; write [{}]", quoted(text)),
                _ => String::new(),
            };
            self.complain(format_args!("is not a list{remedy}"));
            return None;
        };
        let item = |(at, node)| Item { path: format!("{}[{at}]", self.path), node, ..self.clone() };
        Some(nodes.iter().enumerate().map(item).collect())
    }

    /// Its entries; a key that is there twice is complained about, and its first value counts.
    pub fn entries(&self) -> Option<Vec<(&'a str, Item<'a>)>> {
        let Json::Map(entries) = self.node else {
            // A string in the place of an object may well be a secret in the wrong place.
            self.room.complain(self.path(), format!("{} is not an object; write {{ … }}", self.kind()));
            return None;
        };
        let mut known: Vec<(&str, Item)> = Vec::with_capacity(entries.len());
        for (key, node) in entries {
            let path = join(&self.path, key);
            if known.iter().any(|(other, _)| other == key) {
                self.room.complain(&path, "is given more than once; keep one of them");
            } else {
                known.push((key, Item { path, node, ..self.clone() }));
            }
        }
        Some(known)
    }

    pub fn reader(&self) -> Option<Reader<'a>> {
        Some(Reader {
            path: self.path.clone(),
            entries: self.entries()?,
            asked: RefCell::default(),
            room: self.room,
            finished: Cell::new(false),
        })
    }

    /// The content of the file this names: at most `limit` bytes, and at least one.
    pub fn file(&self, limit: u64) -> Option<Vec<u8>> {
        let path = self.room.absolute(&self.string()?);
        let mut content = Vec::new();
        let read = std::fs::File::open(&path).and_then(|file| file.take(limit + 1).read_to_end(&mut content));
        if let Err(cause) = read {
            self.complain(format_args!(
                "could not be read: {cause}; relative paths count from the configuration file's folder"
            ));
        } else if content.is_empty() {
            self.complain("names an empty file");
        } else if content.len() as u64 > limit {
            self.complain(format_args!("names a file larger than {}", show_size(limit)));
        } else {
            return Some(content);
        }
        None
    }
}

/// One object, and which of its keys were asked for.
pub struct Reader<'a> {
    path: String,
    entries: Vec<(&'a str, Item<'a>)>,
    asked: RefCell<Vec<&'static str>>,
    room: &'a Room<'a>,
    finished: Cell<bool>,
}

impl<'a> Reader<'a> {
    pub fn path(&self) -> &str {
        &self.path
    }

    pub fn room(&self) -> &'a Room<'a> {
        self.room
    }

    /// Where `key` stands, whether it is there or not.
    pub fn path_of(&self, key: &str) -> String {
        join(&self.path, key)
    }

    /// What stands at `key`, `null` too.
    pub fn given(&self, key: &'static str) -> Option<Item<'a>> {
        if !self.asked.borrow().contains(&key) {
            self.asked.borrow_mut().push(key);
        }
        self.entries.iter().find(|(known, _)| *known == key).map(|(_, item)| item.clone())
    }

    /// For keys whose default is "none": `null` is the same as not there.
    pub fn item(&self, key: &'static str) -> Option<Item<'a>> {
        self.given(key).filter(|item| *item.node != Json::Null)
    }

    /// Something that must be there; `example` is a value as it would be written.
    pub fn required(&self, key: &'static str, example: &str) -> Option<Item<'a>> {
        let item = self.item(key);
        if item.is_none() {
            self.room.complain(&self.path_of(key), format!("is missing; write for example {example}"));
        }
        item
    }

    pub fn string(&self, key: &'static str) -> Option<String> {
        self.item(key)?.string()
    }

    pub fn integer(&self, key: &'static str, default: u64, range: RangeInclusive<u64>) -> u64 {
        self.given(key).and_then(|item| item.integer(range)).unwrap_or(default)
    }

    pub fn duration(
        &self,
        key: &'static str,
        default: Duration,
        range: RangeInclusive<Duration>,
    ) -> Duration {
        self.given(key).and_then(|item| item.duration(range)).unwrap_or(default)
    }

    /// In bytes.
    pub fn size(&self, key: &'static str, default: u64, range: RangeInclusive<u64>) -> u64 {
        self.given(key).and_then(|item| item.size(range)).unwrap_or(default)
    }

    /// The first of `words` is the default.
    pub fn one_of<T: Clone>(&self, key: &'static str, words: &[(&str, T)]) -> T {
        self.given(key).and_then(|item| item.one_of(words)).unwrap_or_else(|| words[0].1.clone())
    }

    /// Empty when it is not there.
    pub fn list(&self, key: &'static str) -> Vec<Item<'a>> {
        self.item(key).and_then(|item| item.list()).unwrap_or_default()
    }

    /// The object at `key`, or an empty one, so that its defaults apply.
    pub fn section(&self, key: &'static str) -> Reader<'a> {
        self.item(key).and_then(|item| item.reader()).unwrap_or_else(|| Reader {
            path: self.path_of(key),
            entries: Vec::new(),
            asked: RefCell::default(),
            room: self.room,
            finished: Cell::new(false),
        })
    }

    /// Names with strings, in their order: for objects whose keys are free.
    pub fn pairs(&self, key: &'static str) -> Vec<(&'a str, Item<'a>)> {
        self.item(key).and_then(|item| item.entries()).unwrap_or_default()
    }

    /// As [`Reader::pairs`], and no complaint shows a value.
    pub fn hidden_pairs(&self, key: &'static str) -> Vec<(&'a str, Item<'a>)> {
        self.item(key).and_then(|item| item.hide().entries()).unwrap_or_default()
    }

    /// Label names and values; `reserved` ones are set by the agent itself.
    pub fn labels(&self, key: &'static str, reserved: &[&str]) -> Labels {
        let mut labels = Labels::default();
        for (name, item) in self.pairs(key) {
            let wrong = match values::label_name_complaint(name) {
                None if reserved.contains(&name) => Some("is set by the agent itself; choose another name"),
                wrong => wrong,
            };
            if let Some(says) = wrong {
                self.room.complain(item.path(), format!("{} {says}", quoted(name)));
            } else if let Some(value) = item.string() {
                labels.set(name, value);
            }
        }
        labels
    }

    /// The secret at `key`, or the content of the file at `key_file` without its last newline.
    pub fn secret(&self, key: &'static str, key_file: &'static str) -> Option<String> {
        debug_assert_eq!(key_file.strip_suffix("_file"), Some(key));
        let (direct, file) = (self.item(key), self.item(key_file));
        if direct.is_some() && file.is_some() {
            self.room.complain(&self.path_of(key), format!("is given as {key_file} too; keep one of them"));
            return None;
        }
        let (item, secret) = match (direct, file) {
            (Some(item), _) => (item.clone(), item.hide().string()?),
            (None, Some(item)) => (item.clone(), secret_of(&item)?),
            (None, None) => return None,
        };
        if secret.chars().any(char::is_control) {
            self.room.complain(item.path(), "holds a line break or another control character");
            return None;
        }
        Some(secret)
    }

    /// For what is planned and not there yet: an answer better than "unknown key".
    pub fn not_available(&self, keys: &[&'static str]) {
        for key in keys {
            if self.entries.iter().any(|(known, _)| known == key) {
                self.asked.borrow_mut().push(key);
                self.room.complain(&self.path_of(key), "is not available in this version; leave the key out");
            }
        }
    }

    /// Complains about every key that nobody asked for.
    pub fn finish(self) {
        self.finished.set(true);
        let asked = self.asked.borrow();
        for (key, item) in self.entries.iter().filter(|(key, _)| !asked.contains(key)) {
            let meant =
                nearest(key, &asked).map(|known| format!("did you mean {known:?}? ")).unwrap_or_default();
            let allowed = asked.join(", ");
            self.room.complain(item.path(), format!("unknown key; {meant}allowed are {allowed}"));
        }
    }

    /// Nothing more can be said about this object, for instance because its type is unknown.
    pub fn give_up(self) {
        self.finished.set(true);
    }
}

/// A reader that is forgotten would let a typing error pass.
impl Drop for Reader<'_> {
    fn drop(&mut self) {
        debug_assert!(self.finished.get() || std::thread::panicking(), "{} was not finished", self.path);
    }
}

fn secret_of(item: &Item<'_>) -> Option<String> {
    /// Longer than any token, short enough for a wrong path to be noticed.
    const LIMIT: u64 = 64 * values::KIB;
    let Ok(text) = String::from_utf8(item.file(LIMIT)?) else {
        item.complain("names a file that is not text (UTF-8)");
        return None;
    };
    let secret = text.strip_suffix('\n').map_or(&*text, |line| line.strip_suffix('\r').unwrap_or(line));
    if secret.is_empty() {
        item.complain("names a file that holds only a line break");
        return None;
    }
    Some(secret.to_owned())
}

fn join(path: &str, key: &str) -> String {
    let plain = !key.is_empty() && key.chars().all(|c| c.is_ascii_alphanumeric() || c == '_' || c == '-');
    match (plain, path.is_empty()) {
        (true, true) => key.to_owned(),
        (true, false) => format!("{path}.{key}"),
        (false, _) => format!("{path}[{}]", quoted(key)),
    }
}
