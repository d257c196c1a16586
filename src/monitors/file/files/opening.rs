//! Opening and closing: is it the file we mean, and where is it read on.

use std::collections::HashSet;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::fs::OFlags;
use rustix::io::Errno;

use super::super::discovery::Found;
use super::super::identity::{begins_with, identity, not_text, read_head, text_after_hole};
use super::super::known::inodes;
use super::super::tail::{Step, Tail};
use super::{Files, file_options};
use crate::durable::FileId;
use crate::ledger::{Head, Known};
use crate::monitors::{Binary, Opening};

/// What came of opening a file.
pub(super) enum Opened {
    Ready,
    /// Nothing to read yet, or not for us.
    Rest,
    NoDescriptor,
    Remove,
}

impl Files {
    /// Opens the file if it is closed, makes sure that it is the one we mean, and finds out where to read on.
    pub(super) fn open(&mut self, tail: &mut Tail, now: Instant) -> Opened {
        if tail.descriptor.is_none() {
            if self.open >= self.open_max && !self.close_one() {
                return Opened::NoDescriptor;
            }
            match open_for_reading(&tail.path) {
                Ok(file) => self.hold(tail, file),
                Err(cause) => match Errno::from_io_error(&cause) {
                    Some(Errno::MFILE | Errno::NFILE) => return self.out_of_descriptors(&cause),
                    Some(Errno::NOENT) => return self.not_there(tail, now),
                    _ => {
                        self.complain(tail, "open", &cause);
                        return Opened::Rest;
                    }
                },
            }
        }
        let Some(file) = &tail.descriptor else { return Opened::Rest };
        let metadata = match file.metadata() {
            Ok(metadata) => metadata,
            Err(cause) => {
                self.complain(tail, "look at", &cause);
                return Opened::Rest;
            }
        };
        if FileId::of(&metadata) != tail.file || !metadata.is_file() {
            self.close(tail);
            return self.not_there(tail, now);
        }
        let head = match read_head(file) {
            Ok(head) => head,
            Err(cause) => {
                self.complain(tail, "read", &cause);
                return Opened::Rest;
            }
        };
        tail.trouble = false;
        if tail.stream.is_some() && !begins_with(&head, tail.head) {
            // The inode was given to another file while ours was closed.
            self.begin_anew(tail, tail.size, "replaced");
        }
        if tail.stream.is_none() {
            tail.refresh(&metadata, now);
            if head.is_empty() {
                let over = tail.deleted || tail.step(Duration::ZERO, now) == Step::Finish;
                return if over { Opened::Remove } else { Opened::Rest };
            }
            if tail.descriptor.as_ref().is_some_and(|file| self.may_be_copy(tail, file, &head, now)) {
                return Opened::Rest;
            }
            return self.begin(tail, &head);
        }
        Opened::Ready
    }

    /// The first byte is there: goes on where the last life ended, or begins a generation.
    pub(super) fn begin(&mut self, tail: &mut Tail, head: &[u8]) -> Opened {
        let (known, replaced) = self.not_met.claim(tail.file, tail.size, head);
        replaced.into_iter().for_each(|known| self.finish_known(known, "replaced while the agent was down"));
        let source = &self.sources[tail.source];
        tail.head = Head::of(head);
        let identity = identity(tail.file, tail.head);
        if let Some(known) = known {
            let stream = self.outlet.reopen(source, &known);
            tail.lineage = known.lineage;
            if known.identity != Some(identity) {
                self.outlet.identify(&stream, identity);
            }
            tail.stream = Some(stream);
        } else {
            let skip = file_options(source).is_some_and(|file| file.binary == Binary::Skip);
            let hole = match &tail.descriptor {
                Some(file) if head.iter().all(|byte| *byte == 0) => text_after_hole(file).unwrap_or(None),
                _ => None,
            };
            if let Some((start, _)) = hole {
                log::info!(
                    "files: {} begins with a hole of {start} bytes, which is passed over",
                    tail.path.display()
                );
                tail.start = tail.start.max(start);
            }
            let text = hole.as_ref().map_or(head, |(_, text)| text);
            if let Some(what) = not_text(text).filter(|_| skip) {
                if self.passed_over.insert(tail.file, (tail.path.clone(), tail.size)).is_none() {
                    log::info!("files: {} is passed over: it is {what}", tail.path.display());
                    self.meters.passed_over.add(1);
                }
                return Opened::Remove;
            }
            tail.stream = Some(self.outlet.open(Opening {
                source,
                generation: tail.generation.take(),
                filename: Some(tail.name()),
                identity: Some(identity),
                start: tail.start.min(tail.size),
                lineage: tail.lineage,
            }));
        }
        tail.until = self.once.then_some(tail.size);
        tail.scanned = tail.position();
        Opened::Ready
    }

    /// Its path leads elsewhere. A sweep may find it under another name.
    pub(super) fn not_there(&mut self, tail: &mut Tail, now: Instant) -> Opened {
        tail.gone_since.get_or_insert(now);
        if let Ok(metadata) = fs::metadata(&tail.path)
            && metadata.is_file()
            && FileId::of(&metadata) != tail.file
            && !self.own.contains(FileId::of(&metadata))
        {
            let (path, file, size) = (tail.path.clone(), FileId::of(&metadata), metadata.len());
            self.admit(Found { path, file, size, source: tail.source }, now);
        }
        if tail.stream.is_none() {
            return Opened::Remove;
        }
        // Renamed while its descriptor was closed: it is beside where it was, and may have unread bytes.
        let wanted = HashSet::from([tail.file.inode]);
        let beside = tail.path.parent().and_then(|folder| inodes(folder, &wanted)).unwrap_or_default();
        if let Some(found) = beside.get(&tail.file.inode).filter(|found| found.file == tail.file)
            && found.path != tail.path
        {
            if self.paths.get(&tail.path) == Some(&tail.file) {
                self.paths.remove(&tail.path); // nobody else would: no file may ever stand there again
            }
            tail.stands_at(&found.path);
            tail.size = tail.position(); // looks different now, so that it gets a turn
        }
        let idle = self.sources[tail.source].idle;
        if tail.step(idle, now) == Step::Finish { Opened::Remove } else { Opened::Rest }
    }

    pub(super) fn hold(&mut self, tail: &mut Tail, file: File) {
        tail.descriptor = Some(file);
        self.open += 1;
        self.meters.open.set(self.open as i64);
    }

    pub(super) fn close(&mut self, tail: &mut Tail) {
        if tail.descriptor.take().is_some() {
            self.open -= 1;
            self.meters.open.set(self.open as i64);
        }
    }

    /// Closes the file that rested longest.
    pub(super) fn close_one(&mut self) -> bool {
        while let Some((file, turn)) = self.rested.pop_front() {
            if let Some(mut tail) = self.tails.remove(&file) {
                let closable = tail.rested == turn && tail.descriptor.is_some() && tail.is_closable();
                if closable {
                    self.close(&mut tail);
                }
                self.tails.insert(file, tail);
                if closable {
                    return true;
                }
            }
        }
        false
    }

    /// The system has no more. Half of ours are given back: outputs, checkpoints and connections need some too.
    pub(super) fn out_of_descriptors(&mut self, cause: &io::Error) -> Opened {
        if self.open_max == self.open_limit {
            log::warn!("files: no more than {} files can be open: {cause}; they take turns", self.open);
        }
        self.open_max = (self.open / 2).max(1).min(self.open_max);
        while self.open > self.open_max && self.close_one() {} // the others when they rest
        Opened::NoDescriptor
    }

    /// Time has passed since: perhaps there are more again.
    pub(super) fn try_more_descriptors(&mut self) {
        self.open_max = self.open_max.saturating_mul(2).min(self.open_limit);
    }

    /// Once per file and trouble.
    pub(super) fn complain(&self, tail: &mut Tail, what: &str, cause: &io::Error) {
        if !tail.trouble {
            log::warn!("files: could not {what} {}: {cause}; trying again later", tail.path.display());
        }
        tail.trouble = true;
    }

    /// A generation of the last life that will not be met again.
    pub(super) fn finish_known(&mut self, known: Known, why: &str) {
        let Some(source) =
            self.sources.iter().find(|source| source.name == known.source).or(self.sources.first())
        else {
            return;
        };
        let mut stream = self.outlet.reopen(source, &known);
        // What one sink has and another lacks did stand there once.
        if known.known_to() > known.position {
            self.outlet.give_up(&mut stream, known.known_to(), why);
        }
        self.outlet.finish(stream);
    }
}

/// A FIFO that has taken the file's place must not block us.
pub(super) fn open_for_reading(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).custom_flags(OFlags::NONBLOCK.bits() as i32).open(path)
}
