//! The folder of the dead letters, as the commands see it: files in the order of their letters, read line by line,
//! and written anew without those that are done with.
//!
//! ```text
//! deadletter-000001.jsonl   deadletter-000002.jsonl   deadletter.jsonl ◀── the agent appends here
//!     the oldest letters         moved aside              the newest
//! ```
//!
//! Always true: at every moment each letter stands in one of these files, or has been done with. A file is replaced
//! as a whole by what is left of it, or deleted when nothing is. One command at a time.

use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, BufWriter, ErrorKind, Write};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};

use super::{FILE_NAME, Kept, Letter};
use crate::disk::folder_of;
use crate::durable;
use crate::error::{Context, Error, Result};
use crate::order;

/// A letter is at most a line of 1 MiB in base64, with its labels; what is longer is none of ours.
const LINE_MOST: u64 = 16 << 20;

/// All files, those with the oldest letters first. A folder that is not there has none.
pub fn files(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut aside = aside(folder)?;
    let newest = folder.join(FILE_NAME);
    if newest.exists() {
        aside.push((u64::MAX, newest));
    }
    Ok(aside.into_iter().map(|(_, path)| path).collect())
}

/// What was moved aside, by number.
fn aside(folder: &Path) -> Result<Vec<(u64, PathBuf)>> {
    let doing = || format!("could not look into {}", folder.display());
    let entries = match std::fs::read_dir(folder) {
        Err(cause) if cause.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.context(doing)?,
    };
    let mut aside = Vec::new();
    for entry in entries {
        let path = entry.context(doing)?.path();
        let name = path.file_name().and_then(|name| name.to_str());
        let number =
            name.and_then(|name| name.strip_prefix("deadletter-")?.strip_suffix(".jsonl")?.parse().ok());
        aside.extend(number.map(|number| (number, path)));
    }
    order::sort(&mut aside);
    Ok(aside)
}

/// In the files that were moved aside.
pub fn bytes_aside(folder: &Path) -> Result<u64> {
    let sizes = aside(folder)?.into_iter().filter_map(|(_, path)| path.metadata().ok());
    Ok(sizes.map(|metadata| metadata.len()).sum())
}

/// A line of a file of letters.
pub struct Line {
    /// With its line end, if it has one.
    pub raw: Vec<u8>,
    /// `None`: half a letter, or none of ours.
    pub kept: Option<Kept<Letter>>,
}

/// Reads a file line by line; empty ones are passed over.
pub struct Lines {
    path: PathBuf,
    file: BufReader<File>,
}

impl Lines {
    /// `None`: it has been deleted meanwhile.
    pub fn open(path: &Path) -> Result<Option<Lines>> {
        match File::open(path) {
            Ok(file) => Ok(Some(Lines { path: path.to_owned(), file: BufReader::new(file) })),
            Err(cause) if cause.kind() == ErrorKind::NotFound => Ok(None),
            Err(cause) => Err(cause).context(|| format!("could not open {}", path.display())),
        }
    }
}

impl Iterator for Lines {
    type Item = Result<Line>;

    fn next(&mut self) -> Option<Result<Line>> {
        loop {
            let mut raw = Vec::new();
            let read = std::io::Read::take(&mut self.file, LINE_MOST).read_until(b'\n', &mut raw);
            return match read.context(|| format!("could not read {}", self.path.display())) {
                Ok(0) => None,
                Ok(_) if raw == b"\n" => continue,
                Ok(_) => Some(Ok(Line { kept: Kept::parse(&raw).ok(), raw })),
                Err(cause) => Some(Err(cause)),
            };
        }
    }
}

/// The right to take letters away.
pub struct Desk {
    folder: PathBuf,
    _lock: File,
}

impl Desk {
    /// `None`: there are no letters, and never were. An error: another command is at work.
    pub fn take(folder: &Path) -> Result<Option<Desk>> {
        let path = folder.join("lock");
        let lock = match OpenOptions::new().write(true).create(true).truncate(false).open(&path) {
            Err(cause) if cause.kind() == ErrorKind::NotFound => return Ok(None),
            lock => lock.context(|| format!("could not open {}", path.display()))?,
        };
        match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Some(Desk { folder: folder.to_owned(), _lock: lock })),
            Err(rustix::io::Errno::WOULDBLOCK) => Err(Error::new(format!(
                "another command is at work on the dead letters in {}",
                folder.display()
            ))),
            Err(cause) => Err(cause).context(|| format!("could not lock {}", path.display())),
        }
    }

    /// Moves the newest file aside, so that an agent begins another one. All files that nobody else writes to any
    /// more, those with the oldest letters first: also those that a command that was killed has left.
    pub fn clear(&self) -> Result<Vec<PathBuf>> {
        let newest = self.folder.join(FILE_NAME);
        if newest.exists() {
            let last = aside(&self.folder)?.last().map_or(0, |(number, _)| *number);
            durable::rename(&newest, &self.folder.join(format!("deadletter-{:06}.jsonl", last + 1)))?;
        }
        let aside = aside(&self.folder)?;
        for (_, path) in &aside {
            let doing = || format!("could not lock {}", path.display());
            let file = File::open(path).context(doing)?;
            // Waits for those who write a letter to it just now, and lets go: nobody begins one any more.
            flock(&file, FlockOperation::LockExclusive).context(doing)?;
        }
        Ok(aside.into_iter().map(|(_, path)| path).collect())
    }
}

/// What is left of a file, being written. Dropped before [`Rewrite::finish`]: the file stays as it is.
pub struct Rewrite {
    path: PathBuf,
    temporary: PathBuf,
    left: Option<BufWriter<File>>,
}

impl Rewrite {
    /// Nothing is made before the first letter that is left.
    pub fn of(path: &Path) -> Rewrite {
        Rewrite { path: path.to_owned(), temporary: path.with_extension("tmp"), left: None }
    }

    fn doing(&self) -> String {
        format!("could not write {}", self.temporary.display())
    }

    /// This line stays.
    pub fn keep(&mut self, raw: &[u8]) -> Result<()> {
        let left = match &mut self.left {
            Some(left) => left,
            none => {
                let made = File::create(&self.temporary);
                none.insert(BufWriter::new(
                    made.context(|| format!("could not make {}", self.temporary.display()))?,
                ))
            }
        };
        let end = if raw.ends_with(b"\n") { &b""[..] } else { b"\n" };
        left.write_all(raw).and_then(|()| left.write_all(end)).context(|| self.doing())
    }

    /// This letter stays, for another reason.
    pub fn keep_letter(&mut self, kept: &Kept<Letter>) -> Result<()> {
        let raw = serde_json::to_vec(kept).context(|| "could not write a dead letter".into())?;
        self.keep(&raw)
    }

    /// The file is replaced by what is left, or deleted.
    pub fn finish(mut self) -> Result<()> {
        let Some(left) = self.left.take() else {
            std::fs::remove_file(&self.path)
                .context(|| format!("could not delete {}", self.path.display()))?;
            return durable::sync_folder(folder_of(&self.path));
        };
        let file = left.into_inner().map_err(|failed| failed.into_error());
        file.and_then(|file| file.sync_all()).context(|| self.doing())?;
        durable::rename(&self.temporary, &self.path)
    }
}

impl Drop for Rewrite {
    fn drop(&mut self) {
        if self.left.is_some() {
            // Not finished: the letters are all where they were. A leftover is overwritten by the next one.
            let _ = std::fs::remove_file(&self.temporary);
        }
    }
}
