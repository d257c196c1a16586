//! Dead letters: records that a sink refused for good, kept with the reason until a person looks at them.
//!
//! `deadletter.jsonl` in its folder below `data_dir` has one JSON object a line ([`Kept`]). It says itself from
//! which sink, generation and range a letter comes, so that a whole line is as good as a receipt after a crash.
//!
//! Always true: a letter that `put` accepted is in the file, and the file is noted as unsynced. Nothing is
//! dropped for lack of room: `put` fails, and its lane rests.
//!
//! Every letter is part of one write at the end of the file, so several threads may call and no lock is held meanwhile.
//! A crash or a full disk can leave half a letter. The next one starts on a new line; should two threads meet
//! there, half a letter may stand before a whole one on one line, and a line may be empty. [`Kept::parse`] knows
//! the former; a reader passes over the latter.

use std::borrow::Borrow;
use std::collections::BTreeMap;
use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use crate::clock::Clock;
use crate::durable::{FileId, Unsynced, folder_of};
use crate::error::{Context, Error, Result};
use crate::record::Record;

/// The name of the file in its folder.
pub const FILE_NAME: &str = "deadletter.jsonl";

/// A refused record. Texts and times as they stand in the file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Letter {
    pub sink: String,
    /// Why the sink refused it, in its own words.
    pub reason: String,
    pub source: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub filename: Option<String>,
    pub generation: u64,
    /// Where the line begins in its generation, in bytes.
    pub offset: u64,
    /// How many bytes it has there, line end included.
    pub len: u64,
    /// RFC 3339, UTC.
    pub record_time: String,
    pub labels: BTreeMap<String, String>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub metadata: BTreeMap<String, String>,
    /// Cut at the limit of length or at the end of a file, or the rest of such a line.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub partial: bool,
    /// The exact bytes of the source, line end included; or, if a stage replaced the text, the new one without
    /// a line end. Read it with [`Letter::bytes`].
    #[serde(rename = "bytes")]
    text: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    encoding: Option<Encoding>,
}

/// How bytes that are no UTF-8 became a text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Encoding {
    Base64,
}

impl Letter {
    pub fn of(record: &Record<'_>, sink: &str, reason: &str) -> Letter {
        let bytes = record.raw.unwrap_or(record.text);
        let (text, encoding) = match std::str::from_utf8(bytes) {
            Ok(text) => (text.to_owned(), None),
            Err(_) => (STANDARD.encode(bytes), Some(Encoding::Base64)),
        };
        Letter {
            sink: sink.into(),
            reason: reason.into(),
            source: record.origin.source.to_string(),
            filename: record.origin.filename.as_deref().map(str::to_owned),
            generation: record.origin.generation.0,
            offset: record.offset,
            len: record.len,
            record_time: time_text(record.time_ns),
            labels: record.labels.iter().map(|(name, value)| (name.into(), value.into())).collect(),
            metadata: record
                .metadata
                .iter()
                .map(|(name, value)| (name.to_string(), value.to_string()))
                .collect(),
            partial: record.partial,
            text,
            encoding,
        }
    }

    /// An error is a file that somebody else wrote.
    pub fn bytes(&self) -> Result<Vec<u8>> {
        match self.encoding {
            None => Ok(self.text.clone().into_bytes()),
            Some(Encoding::Base64) => {
                STANDARD.decode(&self.text).context(|| "a dead letter is not base64".into())
            }
        }
    }
}

/// A line of the file: `time` always comes first.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kept<L> {
    /// When it was put here; RFC 3339, UTC.
    pub time: String,
    #[serde(flatten)]
    pub letter: L,
}

impl Kept<Letter> {
    /// `line` with or without its line end. An error is half a letter, or not one of ours.
    pub fn parse(line: &[u8]) -> Result<Kept<Letter>> {
        let whole = serde_json::from_slice(line);
        // Behind half a letter: the first beginning from which the line is a letter to its end.
        let behind = || memchr::memmem::find_iter(line, br#"{"time":""#);
        whole
            .or_else(|cause| behind().find_map(|at| serde_json::from_slice(&line[at..]).ok()).ok_or(cause))
            .context(|| "could not read a dead letter".into())
    }
}

/// Where dead letters are put. Clones share the file.
#[derive(Clone)]
pub struct DeadLetters(Arc<Inner>);

struct Inner {
    path: PathBuf,
    max_bytes: u64,
    unsynced: Unsynced,
    clock: Clock,
    open: Mutex<Option<Open>>,
    /// Bytes that are being written now and may not count in the length of the file yet.
    under_way: AtomicU64,
    /// The file may end within a letter.
    torn: AtomicBool,
    /// Of the file, at the last letter of this life.
    len: AtomicU64,
}

#[derive(Clone)]
struct Open {
    file: Arc<File>,
    id: FileId,
}

impl DeadLetters {
    /// Touches no disk: folder (0700) and file (0600) are made by the first letter. `max_bytes`: of the file.
    pub fn open(dir: &Path, max_bytes: u64, unsynced: Unsynced, clock: Clock) -> DeadLetters {
        DeadLetters(Arc::new(Inner {
            path: dir.join(FILE_NAME),
            max_bytes,
            unsynced,
            clock,
            open: Mutex::new(None),
            under_way: AtomicU64::new(0),
            torn: AtomicBool::new(false),
            len: AtomicU64::new(0),
        }))
    }

    /// Bytes of the file, as far as it is known without touching the disk: 0 before the first letter of this life.
    pub fn bytes(&self) -> u64 {
        self.0.len.load(Ordering::Relaxed)
    }

    pub fn path(&self) -> &Path {
        &self.0.path
    }

    /// After `Ok` the letter is in the file, and will be on the disk before the next checkpoint. On an error it
    /// is not, and nothing else was lost: try again later. May be called by several threads.
    pub fn put(&self, letter: &Letter) -> Result<()> {
        self.put_all([letter])
    }

    /// Many with one write. On an error some of them may be in the file all the same.
    pub fn put_all<L: Borrow<Letter>>(&self, letters: impl IntoIterator<Item = L>) -> Result<()> {
        let inner = &*self.0;
        // A line end in front, in case the file ends within a letter.
        let mut line = vec![b'\n'];
        for letter in letters {
            let kept = Kept { time: time_text(inner.clock.wall_ns()), letter: letter.borrow() };
            serde_json::to_writer(&mut line, &kept)
                .expect("a Vec takes all bytes, and every key of a letter is a string");
            line.push(b'\n');
        }
        let reserved = line.len() as u64;
        let others = inner.under_way.fetch_add(reserved, Ordering::SeqCst);
        let written = inner.write(&line, others + reserved);
        inner.under_way.fetch_sub(reserved, Ordering::SeqCst);
        written
    }
}

impl Inner {
    /// `under_way`: this letter and those that other threads are writing.
    fn write(&self, line: &[u8], under_way: u64) -> Result<()> {
        let (file, len) = self.file()?;
        if len + under_way > self.max_bytes {
            return Err(Error::new(format!(
                "{} is full with {len} of {} bytes: purge it or raise its limit",
                self.path.display(),
                self.max_bytes
            )));
        }
        let was_torn = self.torn.swap(false, Ordering::SeqCst);
        let line = if was_torn { line } else { &line[1..] };
        let written = loop {
            match (&*file).write(line) {
                Err(cause) if cause.kind() == ErrorKind::Interrupted => {}
                written => break written,
            }
        };
        self.unsynced.note(file.clone());
        let short = match written {
            Ok(bytes) if bytes == line.len() => {
                self.len.store(len + bytes as u64, Ordering::Relaxed);
                return Ok(());
            }
            Ok(bytes) => format!("only {bytes} of {} bytes could be written", line.len()),
            Err(cause) => {
                if was_torn {
                    self.torn.store(true, Ordering::SeqCst);
                }
                return Err(cause).context(|| format!("could not write to {}", self.path.display()));
            }
        };
        self.torn.store(true, Ordering::SeqCst);
        Err(Error::new(format!("could not write to {}: {short}", self.path.display())))
    }

    /// The file that stands at `path` now (somebody may have purged it), and its length.
    fn file(&self) -> Result<(Arc<File>, u64)> {
        let doing = || format!("could not open {}", self.path.display());
        let known = self.open.lock().clone();
        let there = match std::fs::metadata(&self.path) {
            Ok(metadata) => Some(metadata),
            Err(cause) if cause.kind() == ErrorKind::NotFound => None,
            Err(cause) => return Err(cause).context(doing),
        };
        if let (Some(Open { file, id }), Some(metadata)) = (known, &there)
            && FileId::of(metadata) == id
        {
            return Ok((file, metadata.len()));
        }
        if there.is_none() {
            DirBuilder::new().recursive(true).mode(0o700).create(folder_of(&self.path)).context(doing)?;
        }
        let file = OpenOptions::new().read(true).append(true).create(true).mode(0o600).open(&self.path);
        let file = Arc::new(file.context(doing)?);
        let metadata = file.metadata().context(doing)?;
        if there.is_none() {
            self.unsynced.note(Arc::new(File::open(folder_of(&self.path)).context(doing)?));
        }
        if let Some(last) = metadata.len().checked_sub(1) {
            let mut byte = [0];
            file.read_exact_at(&mut byte, last).context(doing)?;
            if byte != *b"\n" {
                self.torn.store(true, Ordering::SeqCst);
            }
        }
        *self.open.lock() = Some(Open { file: file.clone(), id: FileId::of(&metadata) });
        Ok((file, metadata.len()))
    }
}

/// RFC 3339, UTC, nine digits. An i64 of nanoseconds is within what jiff knows.
fn time_text(time_ns: i64) -> String {
    format!("{:.9}", jiff::Timestamp::from_nanosecond(time_ns.into()).unwrap_or_default())
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "several threads put letters at once")]
mod tests {
    use super::*;
    use crate::ack::GenerationId;
    use crate::budget::{Budget, Holder, READ_BYTES};
    use crate::record::{Changed, Entry, Labels, Lines, Origin, Records};

    fn letter(raw: &[u8], changed: Option<Changed>) -> Letter {
        let origin = Arc::new(Origin {
            source: "app".into(),
            generation: GenerationId(7),
            lineage: 1,
            labels: Arc::new(Labels::new([("time", "of the label")])),
            filename: Some("/var/log/a.log".into()),
            replayable: true,
        });
        let credit = Budget::new(READ_BYTES).door().try_take(&Holder::default(), 1).unwrap();
        let lines = Lines {
            origin,
            start: 40,
            data: [b"first\n", raw].concat(),
            ends: vec![6, 6 + raw.len() as u32],
            base_ns: 1_000_000_000,
            first_line: 0,
            continues: false,
            timed: None,
            credit,
        };
        let records = Records::kept(lines, vec![Entry { line: 1, changed: changed.map(Box::new) }]);
        Letter::of(&records.get(0), "loki", "entry too far behind")
    }

    fn open(folder: &tempfile::TempDir, max_bytes: u64) -> DeadLetters {
        let clock = Clock::by_hand(5_000_000_007);
        DeadLetters::open(&folder.path().join("deadletter"), max_bytes, Unsynced::default(), clock)
    }

    fn read(letters: &DeadLetters) -> Vec<Result<Kept<Letter>>> {
        let text = std::fs::read(letters.path()).unwrap();
        text.split_inclusive(|byte| *byte == b'\n').map(Kept::parse).collect()
    }

    fn check(raw: &[u8], changed: Option<Changed>, expected: &[u8]) {
        let folder = tempfile::tempdir().unwrap();
        let letters = open(&folder, 1 << 20);
        let letter = letter(raw, changed);
        assert_eq!((letter.offset, letter.len), (46, raw.len() as u64));
        letters.put(&letter).unwrap();
        let kept = read(&letters).pop().unwrap().unwrap();
        assert_eq!(kept.letter.bytes().unwrap(), expected);
        assert_eq!(kept, Kept { time: "1970-01-01T00:00:05.000000007Z".into(), letter });
    }

    #[test]
    fn letters_come_back_as_they_went() {
        for raw in ["a\n", "a\r\n", "no end", "\n", "nul\0\n", "{\"time\":\"\n", "ä \u{1f600}\n"] {
            check(raw.as_bytes(), None, raw.as_bytes());
        }
        check(b"\xff\xfe\n", None, b"\xff\xfe\n");
        let metadata = vec![("trace".into(), "7".into())];
        let changed = Changed { text: Some(b"new".as_slice().into()), metadata, ..Changed::default() };
        check(b"old\n", Some(changed), b"new");
    }

    #[test]
    fn the_format_is_one_object_a_line() {
        let folder = tempfile::tempdir().unwrap();
        let letters = open(&folder, 1 << 20);
        letters.put(&letter(b"a\xff\n", None)).unwrap();
        assert_eq!(
            std::fs::read_to_string(letters.path()).unwrap(),
            "{\"time\":\"1970-01-01T00:00:05.000000007Z\",\"sink\":\"loki\",\"reason\":\"entry too far behind\",\
             \"source\":\"app\",\"filename\":\"/var/log/a.log\",\"generation\":7,\"offset\":46,\"len\":3,\
             \"record_time\":\"1970-01-01T00:00:01.000000001Z\",\"labels\":{\"time\":\"of the label\"},\
             \"bytes\":\"Yf8K\",\"encoding\":\"base64\"}\n"
        );
    }

    #[test]
    fn nothing_is_made_before_the_first_letter_and_that_waits_for_its_sync() {
        let folder = tempfile::tempdir().unwrap();
        let letters = open(&folder, 1 << 20);
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
        letters.put(&letter(b"a\n", None)).unwrap();
        assert_eq!(letters.0.unsynced.len(), 2, "the file and its folder");
        letters.put(&letter(b"b\n", None)).unwrap();
        assert_eq!(letters.0.unsynced.len(), 2, "one descriptor for all letters");
    }

    #[test]
    fn a_full_file_is_an_error_until_it_is_purged() {
        let folder = tempfile::tempdir().unwrap();
        let letters = open(&folder, 1000);
        let accepted = (0..10).take_while(|_| letters.put(&letter(b"a\n", None)).is_ok()).count();
        assert!((2..5).contains(&accepted), "{accepted}");
        let error = letters.put(&letter(b"a\n", None)).unwrap_err().to_string();
        assert!(error.contains(" is full with ") && error.contains(" of 1000 bytes: purge it"), "{error}");
        assert_eq!(read(&letters).len(), accepted);
        std::fs::remove_file(letters.path()).unwrap();
        letters.put(&letter(b"b\n", None)).unwrap();
        assert_eq!(read(&letters).len(), 1);
    }

    #[test]
    fn half_a_letter_costs_no_other_letter() {
        let folder = tempfile::tempdir().unwrap();
        let letters = open(&folder, 1 << 20);
        letters.put(&letter(b"a\n", None)).unwrap();
        let whole = std::fs::read(letters.path()).unwrap();
        let half = &whole[..whole.len() / 2];
        OpenOptions::new().append(true).open(letters.path()).unwrap().write_all(half).unwrap();
        let letters = open(&folder, 1 << 20);
        letters.put(&letter(b"b\n", None)).unwrap();
        letters.put(&letter(b"c\n", None)).unwrap();
        let read = read(&letters);
        let bytes: Vec<_> =
            read.iter().map(|kept| kept.as_ref().ok().map(|kept| kept.letter.text.as_str())).collect();
        assert_eq!(bytes, [Some("a\n"), None, Some("b\n"), Some("c\n")]);
        for cut in 1..whole.len() - 1 {
            let glued = [&whole[..cut], &whole].concat();
            assert_eq!(Kept::parse(&glued).unwrap().letter.text, "a\n", "cut at {cut}");
            assert!(Kept::parse(&whole[..cut]).is_err(), "cut at {cut}");
        }
    }

    #[test]
    fn a_disk_that_takes_nothing_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let letters = open(&folder, 1 << 20);
        std::fs::create_dir(folder.path().join("deadletter")).unwrap();
        std::os::unix::fs::symlink("/dev/full", letters.path()).unwrap();
        let error = letters.put(&letter(b"a\n", None)).unwrap_err().to_string();
        assert!(error.contains("could not write to ") && error.contains("No space"), "{error}");
        std::fs::remove_file(letters.path()).unwrap();
        letters.put(&letter(b"a\n", None)).unwrap();
        assert_eq!(read(&letters).len(), 1);
    }

    #[test]
    fn letters_of_several_threads_stay_whole() {
        let folder = tempfile::tempdir().unwrap();
        let letters = open(&folder, 1 << 20);
        let put = |name: usize| {
            let letters = letters.clone();
            move || {
                (0..50)
                    .for_each(|at| letters.put(&letter(format!("{name}.{at}\n").as_bytes(), None)).unwrap())
            }
        };
        let threads: Vec<_> = (0..4).map(|name| std::thread::spawn(put(name))).collect();
        threads.into_iter().for_each(|thread| thread.join().unwrap());
        let mut all: Vec<String> = read(&letters).into_iter().map(|kept| kept.unwrap().letter.text).collect();
        all.sort();
        all.dedup();
        assert_eq!(all.len(), 200);
    }
}
