//! Opening and closing: is it the file we mean, and where is it read on.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::fs::OFlags;
use rustix::io::Errno;

use super::super::glob::{Excludes, Pattern};
use super::super::holes::{Ahead, ahead};
use super::super::identity::{
    begins_with, head_of, identity, not_text, read_head, read_head_at, stands_before,
};
use super::super::packed::Unpacked;
use super::super::step::{GRACE, Step};
use super::super::sweep::Found;
use super::super::tail::Tail;
use super::{Files, file_options};
use crate::durable::FileId;
use crate::ledger::Known;
use crate::monitors::{Binary, Opening, SourceOptions};
use crate::order;
use crate::tasks::Task;

/// A compressed file that ends in the middle is waited for until it was not changed for so long.
const TORN_PATIENCE: Duration = Duration::from_secs(60);

/// Entries for files whose descriptor can perhaps be closed, while so many are open: one each, and as many as make
/// sorting out those that do not count any more worth it.
pub const fn most_rested(open: u64) -> u64 {
    open + open / 4 + 64
}

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
    pub(super) fn open(&mut self, tail: &mut Tail, task: &Task) -> Opened {
        let now = task.now();
        if tail.descriptor.is_none() {
            if self.open >= self.open_max && !self.close_one() {
                return Opened::NoDescriptor;
            }
            match open_for_reading(&tail.path) {
                Ok(file) => self.hold(tail, file),
                Err(cause) => match Errno::from_io_error(&cause) {
                    Some(Errno::MFILE | Errno::NFILE) => return self.out_of_descriptors(&cause),
                    Some(Errno::NOENT) => return self.not_there(tail, task),
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
            return self.not_there(tail, task);
        }
        if tail.form.is_some() {
            return Opened::Ready; // what is in it is found out when it is read
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
                self.line_up_others(tail, task);
                let over = tail.deleted || tail.step(Duration::ZERO, now) == Step::Finish;
                return if over { Opened::Remove } else { Opened::Rest };
            }
            if tail.descriptor.as_ref().is_some_and(|file| self.may_be_copy(tail, file, &head, now)) {
                return Opened::Rest;
            }
            return self.begin(tail, &head, task);
        }
        Opened::Ready
    }

    /// Finds out how much is in it, and that it is whole. What is being written now is waited for.
    pub(super) fn unpack(&mut self, tail: &mut Tail, task: &Task) -> Opened {
        let (Some(file), Some(stream), Some(form)) = (&tail.descriptor, &tail.stream, tail.form) else {
            return Opened::Rest;
        };
        let descriptor = match file.try_clone() {
            Err(cause) if matches!(Errno::from_io_error(&cause), Some(Errno::MFILE | Errno::NFILE)) => {
                return self.out_of_descriptors(&cause);
            }
            cloned => cloned,
        };
        let unpacked = descriptor.and_then(|file| {
            let mut content = Unpacked::new(file, form);
            Ok((content.survey(stream.position(), &|| self.goes_on(task))?, content))
        });
        let (metadata, survey, content) = match file.metadata().and_then(|metadata| Ok((metadata, unpacked?)))
        {
            Ok((metadata, (Some(survey), content))) => (metadata, survey, content),
            Ok((_, (None, _))) => return Opened::Rest, // the stop is the next event
            Err(_) if file.metadata().is_ok_and(|metadata| metadata.nlink() == 0) => return Opened::Remove,
            Err(cause) => {
                self.complain(tail, "unpack", &cause);
                return Opened::Rest;
            }
        };
        tail.trouble = false;
        let quiet_s = self.outlet.clock().wall_ns() / 1_000_000_000 - metadata.mtime();
        if survey.torn && quiet_s < TORN_PATIENCE.as_secs() as i64 {
            return Opened::Rest;
        }
        let goes_on = survey.begins_with(tail.head) && survey.stands_before(tail.before);
        if survey.torn || !goes_on {
            let what = if goes_on { "is damaged behind" } else { "is not what it was before" };
            log::warn!("files: {} {what} byte {} of its content", tail.path.display(), survey.size);
        }
        if !goes_on || survey.size <= stream.position() {
            tail.size = stream.position();
            return Opened::Remove;
        }
        (tail.size, tail.scanned, tail.content) = (survey.size, stream.position(), Some(Box::new(content)));
        Opened::Ready
    }

    /// It is empty now, and was not: what was read of it before may go on elsewhere.
    fn line_up_others(&mut self, tail: &mut Tail, task: &Task) {
        let Some(file) = &tail.descriptor else { return };
        // An error is met again when there is something to read.
        let others = self.not_met.take_others(tail.file, file).unwrap_or_default();
        if !others.is_empty() {
            self.line_up(others, "truncated while the agent was down", Some(tail), task);
        }
    }

    /// The first byte is there: goes on where the last life ended, or begins a generation.
    pub(super) fn begin(&mut self, tail: &mut Tail, head: &[u8], task: &Task) -> Opened {
        let file = tail.descriptor.as_ref();
        let (known, others) = self.not_met.claim(tail.file, tail.size, head, |before, position| {
            file.is_some_and(|file| stands_before(file, before, position).unwrap_or(false))
        });
        if !others.is_empty() {
            let why = "rewritten or replaced while the agent was down";
            self.line_up(others, why, Some(tail), task);
            if self.is_blocked(tail) {
                known.into_iter().for_each(|known| self.not_met.put_back(known));
                if !tail.queued {
                    tail.queued = true;
                    self.ready.push_back(tail.file);
                }
                return Opened::Rest;
            }
        }
        let source = &self.sources[tail.source()];
        tail.head = head_of(head);
        let identity = identity(tail.file, tail.head);
        if let Some(known) = known {
            let stream = self.outlet.reopen(source, &known);
            let lineage = std::mem::replace(&mut tail.lineage, known.lineage);
            if lineage != known.lineage && self.newest.get(&lineage) == Some(&tail.file) {
                self.newest.remove(&lineage);
                self.newest.entry(known.lineage).or_insert(tail.file);
            }
            tail.before = known.before;
            if known.identity != Some(identity) {
                self.outlet.identify(&stream, identity);
            }
            tail.stream = Some(stream);
        } else {
            let skip = file_options(source).is_some_and(|file| file.binary == Binary::Skip);
            // What a hole hides of the head is not what makes a file binary.
            let (mut begin, mut text) = (0, head.to_vec());
            let nothing = head.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
            if let Some(file) = tail.descriptor.as_ref().filter(|_| nothing < head.len()) {
                match (nothing, ahead(file, nothing as u64, tail.size)) {
                    (0, Ok(Ahead::HoleToEnd)) => return Opened::Rest, // as if it were empty
                    (0, Ok(Ahead::Hole { end })) => {
                        begin = end;
                        text = read_head_at(file, begin).unwrap_or(text);
                        text.truncate(text.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1));
                    }
                    (_, Ok(Ahead::Hole { .. } | Ahead::HoleToEnd)) => text.truncate(nothing),
                    (_, Ok(Ahead::Text { .. }) | Err(_)) => {} // an error is met again by the first read
                }
            }
            if begin > 0 {
                log::info!("files: {} begins with a hole of {begin} bytes", tail.path.display());
                tail.start = tail.start.max(begin);
            }
            if let Some(what) = not_text(&text).filter(|_| skip) {
                if self.passed_over.insert(tail.file, (tail.path.clone(), tail.size)).is_none() {
                    log::info!("files: {} is passed over: it is {what}", tail.path.display());
                    self.meters.passed_over.add(1);
                }
                return Opened::Remove;
            }
            tail.stream = Some(self.outlet.open(Opening {
                source,
                generation: tail.take_reserved(),
                filename: Some(tail.name()),
                identity: Some(identity),
                start: tail.start.min(tail.size),
                lineage: tail.lineage,
            }));
        }
        if self.once {
            tail.few.until = Some(tail.size);
        }
        tail.scanned = tail.position();
        Opened::Ready
    }

    /// Its path leads elsewhere. A sweep may find it under another name.
    fn not_there(&mut self, tail: &mut Tail, task: &Task) -> Opened {
        let now = task.now();
        tail.few.gone_since.get_or_insert(now);
        let path = tail.path.clone();
        // Renamed while its descriptor was closed: it is beside where it was, and may have unread bytes.
        let seen = tail.few.gone_since.unwrap_or(now);
        let beside = path.parent().and_then(|folder| self.folders.find(tail.file, seen, folder));
        let beside = beside.filter(|found| *found.path != *path);
        if let Some(found) = &beside {
            if self.paths.get(&path) == Some(&tail.file) {
                self.paths.remove(&path); // nobody else would: no file may ever stand there again
            }
            tail.stands_at(&found.path);
            self.kin.add(&found.path, tail.file);
            if !tail.queued {
                tail.queued = true; // and read before what stands in its place now
                self.ready.push_back(tail.file);
            }
        }
        if let Ok(metadata) = fs::metadata(&path)
            && metadata.is_file()
            && FileId::of(&metadata) != tail.file
            && !self.own.contains(FileId::of(&metadata))
            && self.may_follow_at(&path, tail.lineage, FileId::of(&metadata))
        {
            let (path, file, size) = (path.to_path_buf(), FileId::of(&metadata), metadata.len());
            let is_new = !self.tails.contains_key(&file);
            let now = task.now(); // it was seen just now
            self.admit(Found { path, file, size, source: tail.source(), heard: false }, now);
            if let Some(next) =
                self.tails.get_mut(&file).filter(|next| is_new && next.lineage == tail.lineage)
            {
                next.few.after = next.few.after.or(beside.as_ref().map(|_| tail.file));
            }
            let next = self.tails.get(&file).filter(|next| is_new && next.lineage == tail.lineage);
            if let Some(original) = next.map(|next| next.path.clone()) {
                let between = self.came_between(tail, &original, file, now);
                self.line_up_these(between, &original, file, now);
            }
        }
        if beside.is_some() {
            return Opened::Rest;
        }
        if tail.stream.is_some() && tail.unread() > 0 {
            return self.is_missed(tail, now);
        }
        let idle = self.sources[tail.source()].idle;
        let over = tail.stream.is_none() || tail.step(idle, now) == Step::Finish;
        if tail.stream.is_none() && tail.size > tail.start && self.not_met.perhaps(tail.file).is_none() {
            let (path, bytes) = (tail.path.display(), tail.size - tail.start);
            log::warn!("files: gave up {bytes} bytes of {path}: it was gone before it could be opened");
            self.open_books(tail); // what is unread is given up when it is removed
        }
        if over { Opened::Remove } else { Opened::Rest }
    }

    /// It was not held for want of descriptors, has unread bytes, and is not where it was. Nobody waits for it; a sweep may
    /// find it yet.
    fn is_missed(&self, tail: &mut Tail, now: Instant) -> Opened {
        if !tail.trouble {
            tail.few.gone_since = Some(now);
            self.complain(tail, "find", &io::ErrorKind::NotFound.into());
        }
        let since = tail.few.gone_since.unwrap_or(now);
        if now.saturating_duration_since(since) < GRACE {
            return Opened::Rest;
        }
        log::warn!("files: gave up {} bytes of {}: it is nowhere", tail.unread(), tail.path.display());
        Opened::Remove
    }

    pub(super) fn hold(&mut self, tail: &mut Tail, file: File) {
        tail.descriptor = Some(file);
        self.open += 1;
        self.meters.open.set(self.open as i64);
    }

    /// For another one to [`hold`](Files::hold).
    pub(super) fn take_descriptor(&mut self, tail: &mut Tail) -> Option<File> {
        let file = tail.descriptor.take()?;
        self.open -= 1;
        self.meters.open.set(self.open as i64);
        Some(file)
    }

    pub(super) fn close(&mut self, tail: &mut Tail) {
        if self.take_descriptor(tail).is_some() {
            self.trim_rested();
        }
    }

    /// Entries of files that have had a turn since, or are closed, are worth nothing; they must not pile up.
    pub(super) fn trim_rested(&mut self) {
        if self.open < self.open_max / 2 {
            self.rested = None;
        }
        let most = most_rested(self.open as u64) as usize;
        if let Some(rested) = self.rested.as_mut().filter(|rested| rested.len() > most) {
            let tails = &self.tails;
            rested.retain(|(file, turn)| {
                tails.get(file).is_some_and(|tail| tail.rested == *turn && tail.descriptor.is_some())
            });
        }
    }

    /// Closes the file that rested longest.
    pub(super) fn close_one(&mut self) -> bool {
        let tails = &self.tails;
        let rested = self.rested.get_or_insert_with(|| {
            let closable = tails.values().filter(|tail| tail.descriptor.is_some() && tail.is_closable());
            let mut all: Vec<(FileId, u64)> = closable.map(|tail| (tail.file, tail.rested)).collect();
            order::sort_by_key(&mut all, |(_, turn)| *turn);
            all.into()
        });
        while let Some((file, turn)) = rested.pop_front() {
            let is_closable =
                |tail: &Tail| tail.rested == turn && tail.descriptor.is_some() && tail.is_closable();
            if self.tails.get(&file).is_some_and(|tail| is_closable(tail))
                && let Some(mut tail) = self.tails.remove(&file)
            {
                self.close(&mut tail);
                self.tails.insert(file, tail);
                return true;
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

    /// The source that a generation of the last life belongs to: by its name, else the first that would capture
    /// its file now, since names change. `None`: nobody wants it any more.
    pub(super) fn source_of(&self, known: &Known) -> Option<usize> {
        let named = self.sources.iter().position(|source| source.name == known.source);
        let path = known.filename.as_deref();
        named.or_else(|| {
            self.sources.iter().position(|source| path.is_some_and(|path| captures(source, path)))
        })
    }

    /// A generation of the last life that will not be met again.
    pub(super) fn finish_known(&mut self, known: Known, why: &str) {
        let Some(source) = self.source_of(&known).or((!self.sources.is_empty()).then_some(0)) else { return };
        let mut stream = self.outlet.reopen(&self.sources[source], &known);
        // What one sink has and another lacks did stand there once.
        if known.known_to() > known.position {
            self.outlet.give_up(&mut stream, known.known_to(), why);
        }
        self.outlet.finish(stream);
    }
}

/// Whether a pattern of the source leads to this path.
pub(super) fn captures(source: &SourceOptions, path: &Path) -> bool {
    let Some(file) = file_options(source) else { return false };
    let included = |text: &String| Pattern::parse(text).is_ok_and(|pattern| pattern.matches(path));
    let excluded = Excludes::parse(&file.exclude).is_ok_and(|excludes| excludes.matches(path));
    file.include.iter().any(included) && !excluded
}

/// A FIFO that has taken the file's place must not block us. And reading shall leave no trace where we may see to that:
/// else each line that is written and read has the time of the access written to the disk, too.
pub(in super::super) fn open_for_reading(path: &Path) -> io::Result<File> {
    let open = |flags: OFlags| OpenOptions::new().read(true).custom_flags(flags.bits() as i32).open(path);
    match open(OFlags::NONBLOCK | OFlags::NOATIME) {
        Err(cause) if Errno::from_io_error(&cause) == Some(Errno::PERM) => open(OFlags::NONBLOCK), // another user's
        opened => opened,
    }
}
