//! The `files` thread: owns every file that is followed and gives each its turn.
//!
//! A turn reads one chunk at most and puts the file back at the end of the line, so a hot file holds up nobody.
//! Hints put files into the line at once; a poll looks at every file each `poll_interval`, which finds the same
//! without hints; a sweep tells which paths lead where.
//!
//! Always true: one [`Tail`] per file, by device and inode, whatever its names. A generation of a path is read
//! before the one that followed it. A descriptor with unread bytes that no path leads to is never closed.
//!
//! Not here: what a turn does (`tail.rs`), how files are found (`discovery.rs`).

use std::collections::{HashMap, HashSet, VecDeque};
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::select;
use rustix::fs::OFlags;
use rustix::io::Errno;

use super::Mailbox;
use super::discovery::{Found, Sweep};
use super::identity::{begins_with, hash_head, identity, lineage, not_text, read_head};
use super::known::NotMet;
use super::tail::{Buffers, Reading, Step, Tail, Turn};
use super::view::{FileView, FilesSnapshot, FilesView, SHOWN_MAX};
use super::watch::Hints;
use crate::budget::Refused;
use crate::durable::{FileId, OwnFiles};
use crate::error::Result;
use crate::ledger::Known;
use crate::metrics::{Counter, Gauge, Registry};
use crate::monitors::{Binary, FileSourceOptions, Opening, Outlet, SourceKind, SourceOptions, StartAt};
use crate::tasks::Task;

/// People do not read faster.
const VIEW_EVERY: Duration = Duration::from_secs(1);

/// The thread's body.
pub struct Files {
    sources: Arc<[SourceOptions]>,
    outlet: Outlet,
    picture: Mailbox<Option<Sweep>>,
    hints: Mailbox<Hints>,
    own: OwnFiles,
    once: bool,
    first_start: bool,
    swept: bool,
    not_met: NotMet,
    tails: HashMap<FileId, Tail>,
    paths: HashMap<PathBuf, FileId>,
    /// The newest file of each lineage.
    newest: HashMap<u64, FileId>,
    /// Files without lines, with the size at which that was found.
    passed_over: HashMap<FileId, u64>,
    ready: VecDeque<FileId>,
    /// Turns in a row that got nowhere: as many as the line is long, and there is nothing to do but wait.
    stalled: usize,
    /// Nobody in the line can go on before something happens.
    waiting: bool,
    /// We stand in the line for credit.
    in_line: bool,
    open: usize,
    open_max: usize,
    /// Files whose descriptor can perhaps be closed, the one that rested longest first.
    rested: VecDeque<(FileId, u64)>,
    turns: u64,
    /// By source.
    poll_at: Vec<Instant>,
    view_at: Instant,
    view: FilesView,
    buffers: Buffers,
    meters: Meters,
}

struct Meters {
    followed: Arc<Gauge>,
    open: Arc<Gauge>,
    passed_over: Arc<Counter>,
    truncations: Arc<Counter>,
    cut_lines: Arc<Counter>,
}

/// What the thread is told about the world around it.
pub(super) struct Setting {
    pub outlet: Outlet,
    pub picture: Mailbox<Option<Sweep>>,
    pub hints: Mailbox<Hints>,
    pub own: OwnFiles,
    pub once: bool,
    pub first_start: bool,
    pub known: Vec<Known>,
    pub open_max: usize,
}

enum Event {
    Stop,
    Swept,
    Hinted,
    Room,
    Poll,
    Turn,
    /// `once`: everything was read.
    Done,
}

/// What came of opening a file.
enum Opened {
    Ready,
    /// Nothing to read yet, or not for us.
    Rest,
    NoDescriptor,
    Remove,
}

impl Files {
    pub(super) fn new(sources: Arc<[SourceOptions]>, setting: Setting, metrics: &Registry) -> Files {
        let now = setting.outlet.clock().now();
        Files {
            outlet: setting.outlet,
            picture: setting.picture,
            hints: setting.hints,
            own: setting.own,
            once: setting.once,
            first_start: setting.first_start,
            swept: false,
            not_met: NotMet::new(setting.known),
            tails: HashMap::new(),
            paths: HashMap::new(),
            newest: HashMap::new(),
            passed_over: HashMap::new(),
            ready: VecDeque::new(),
            stalled: 0,
            waiting: false,
            in_line: false,
            open: 0,
            open_max: setting.open_max.max(1),
            rested: VecDeque::new(),
            turns: 0,
            poll_at: vec![now; sources.len()],
            view_at: now,
            view: FilesView::default(),
            buffers: Buffers::default(),
            meters: Meters::new(metrics),
            sources,
        }
    }

    pub fn view(&self) -> FilesView {
        self.view.clone()
    }

    /// Ends on stop, or, if once was asked for, when everything that was found has been read.
    pub fn run(mut self, task: &Task) -> Result<()> {
        loop {
            match self.next_event(task) {
                Event::Stop => break,
                Event::Done => return Ok(()),
                event => {
                    task.beat();
                    self.handle(event, task);
                }
            }
        }
        task.stopping();
        self.account_for_unread();
        Ok(())
    }

    fn next_event(&mut self, task: &Task) -> Event {
        let now = task.now();
        let poll_at = self.poll_at.iter().min().copied().unwrap_or(now);
        let busy = !self.ready.is_empty() && !self.waiting;
        if !busy && self.once && self.swept && self.ready.is_empty() {
            return Event::Done;
        }
        if self.in_line && self.ready.is_empty() {
            self.outlet.nothing_to_read();
            self.in_line = false;
        }
        let wait = if busy { Duration::ZERO } else { poll_at.saturating_duration_since(now) };
        let stop = self.outlet.stop().stop.channel();
        if !busy {
            task.waits_for(if self.ready.is_empty() { "changes" } else { "room" });
        }
        select! {
            recv(stop) -> _ => Event::Stop,
            recv(self.picture.bell()) -> _ => Event::Swept,
            recv(self.hints.bell()) -> _ => Event::Hinted,
            recv(self.outlet.room()) -> _ => Event::Room,
            default(wait) => if busy && now < poll_at { Event::Turn } else { Event::Poll },
        }
    }

    fn handle(&mut self, event: Event, task: &Task) {
        let now = task.now();
        if !matches!(event, Event::Turn) {
            self.waiting = false;
            self.stalled = 0;
        }
        match event {
            Event::Swept => {
                if let Some(sweep) = self.picture.take() {
                    self.take_in(sweep, now);
                }
            }
            Event::Hinted => match self.hints.take() {
                Hints::Everything => self.poll(|_| true, now),
                Hints::These(paths) => paths.iter().for_each(|path| self.look_at(path, now)),
            },
            Event::Poll => {
                let due: Vec<bool> = self.poll_at.iter().map(|at| *at <= now).collect();
                for (at, source) in
                    self.poll_at.iter_mut().zip(self.sources.iter()).filter(|(at, _)| **at <= now)
                {
                    *at = now
                        + file_options(source).map_or(Duration::from_secs(3600), |file| file.poll_interval);
                }
                self.poll(|source| due[source], now);
                self.show(now);
            }
            Event::Turn => self.give_turn(task),
            Event::Room | Event::Stop | Event::Done => {}
        }
    }

    // ---- which files there are

    fn take_in(&mut self, sweep: Sweep, now: Instant) {
        let mut found = sweep.found;
        let met: HashSet<u64> = found.iter().map(|found| found.file.inode).collect();
        let ids: HashSet<FileId> = found.iter().map(|found| found.file).collect();
        if !self.not_met.is_empty() {
            let sources = self.sources.clone();
            let place = |name: &str| sources.iter().position(|source| *source.name == *name);
            let (beside, gone) = self.not_met.search(&met, place);
            gone.into_iter().for_each(|known| self.finish_known(known, "deleted while the agent was down"));
            // Oldest first, and before the files that stand in their places now.
            found.sort_by_key(|found| match self.not_met.perhaps(found.file) {
                Some(known) => known.generation.0,
                None => u64::MAX,
            });
            for beside in beside {
                let file = beside.file;
                self.admit(beside, now);
                self.tails.entry(file).and_modify(|tail| tail.gone_since = Some(now));
            }
        }
        for found in found {
            self.admit(found, now);
        }
        let unsure = |path: &Path| sweep.unsure.iter().any(|folder| path.starts_with(folder));
        for tail in self.tails.values_mut() {
            if !ids.contains(&tail.file) && !unsure(&tail.path) {
                tail.gone_since.get_or_insert(now);
            }
        }
        if sweep.unsure.is_empty() {
            self.passed_over.retain(|file, _| ids.contains(file));
        }
        let troubled: Vec<FileId> =
            self.tails.values().filter(|tail| tail.trouble).map(|tail| tail.file).collect();
        troubled.into_iter().for_each(|file| self.queue(file));
        self.swept = true;
    }

    /// A path that matches leads to this file.
    fn admit(&mut self, found: Found, now: Instant) {
        let Found { ref path, file, size, source } = found;
        if self.passed_over.get(&file).is_some_and(|at| size >= *at) {
            return;
        }
        if let Some(tail) = self.tails.get_mut(&file) {
            tail.gone_since = None;
            if tail.path != *path {
                if self.paths.get(&tail.path) == Some(&file) {
                    self.paths.remove(&tail.path);
                }
                self.paths.insert(path.clone(), file);
                tail.path = path.clone();
            }
            return;
        }
        let options = &self.sources[source];
        let at_end = file_options(options).is_some_and(|file| file.start_at == StartAt::End);
        let start = if at_end && self.first_start && !self.swept { size } else { 0 };
        let lineage = match self.not_met.perhaps(file) {
            Some(known) => known.lineage,
            None => lineage(&options.name, path),
        };
        self.paths.insert(path.clone(), file);
        let mut tail = Tail::new(found, lineage, start, now);
        if let Some(before) = self.newest.insert(lineage, file)
            && let Some(older) = self.tails.get_mut(&before)
        {
            older.followers.push(file);
            tail.after = Some(before);
        }
        tail.queued = true;
        self.tails.insert(file, tail);
        // Opened soon, so that it is held before it is rotated away.
        self.ready.push_front(file);
        self.meters.followed.set(self.tails.len() as i64);
    }

    /// Something happened at this path. A path that leads to another file than before is a rotation: the new
    /// file is taken in at once, without waiting for a sweep.
    fn look_at(&mut self, path: &Path, now: Instant) {
        let Some(&file) = self.paths.get(path) else { return };
        match fs::metadata(path) {
            Ok(metadata) if FileId::of(&metadata) == file => self.queue(file),
            Ok(metadata) if metadata.is_file() => {
                let other = FileId::of(&metadata);
                let source = self.tails.get(&file).map_or(0, |tail| tail.source);
                self.left(file, now);
                if !self.own.contains(other) {
                    self.admit(
                        Found { path: path.to_owned(), file: other, size: metadata.len(), source },
                        now,
                    );
                    self.paths.insert(path.to_owned(), other);
                    self.queue(other);
                }
            }
            Err(cause) if cause.kind() == io::ErrorKind::NotFound => self.left(file, now),
            Ok(_) | Err(_) => {} // the next sweep tells
        }
    }

    /// No path that we know leads to it now.
    fn left(&mut self, file: FileId, now: Instant) {
        if let Some(tail) = self.tails.get_mut(&file) {
            tail.gone_since.get_or_insert(now);
        }
        self.queue(file);
    }

    fn poll(&mut self, due: impl Fn(usize) -> bool, now: Instant) {
        let mut changed = Vec::new();
        for tail in self.tails.values_mut().filter(|tail| due(tail.source) && !tail.queued && !tail.trouble) {
            let idle = self.sources[tail.source].idle;
            let look = match &tail.descriptor {
                Some(descriptor) => descriptor.metadata(),
                None => fs::metadata(&tail.path).and_then(|metadata| {
                    let same = FileId::of(&metadata) == tail.file;
                    if same { Ok(metadata) } else { Err(io::ErrorKind::NotFound.into()) }
                }),
            };
            match look {
                Ok(metadata) => {
                    let before = tail.size;
                    tail.refresh(&metadata, now);
                    // Truncation counts what had been seen before: the turn has to see it itself.
                    if tail.size < tail.position() {
                        tail.size = before;
                    }
                    let step =
                        if metadata.len() < tail.position() { Step::Truncated } else { tail.step(idle, now) };
                    if step != Step::Wait || tail.stream.is_none() && tail.size > 0 {
                        changed.push(tail.file);
                    }
                }
                Err(cause) if cause.kind() == io::ErrorKind::NotFound => {
                    tail.gone_since.get_or_insert(now);
                    if tail.step(idle, now) == Step::Finish {
                        changed.push(tail.file);
                    }
                }
                Err(_) => {} // the folder cannot be entered now: the sweep says so
            }
        }
        changed.into_iter().for_each(|file| self.queue(file));
    }

    fn queue(&mut self, file: FileId) {
        if let Some(tail) = self.tails.get_mut(&file)
            && !tail.queued
        {
            tail.queued = true;
            self.ready.push_back(file);
        }
    }

    // ---- turns

    fn give_turn(&mut self, task: &Task) {
        let Some(file) = self.ready.pop_front() else { return };
        let Some(mut tail) = self.tails.remove(&file) else { return };
        tail.queued = false;
        self.turns += 1;
        let now = task.now();
        if tail.descriptor.is_none() || tail.stream.is_none() {
            match self.open(&mut tail, now) {
                Opened::Ready => {}
                Opened::Rest => return self.rest(tail),
                Opened::Remove => return self.remove(tail),
                Opened::NoDescriptor => return self.stall(tail, false),
            }
        }
        // The generation before it is read first, as far as it goes.
        if let Some(before) = tail.after {
            if self.tails.get(&before).is_some_and(|before| !before.is_at_end() && !before.trouble) {
                return self.rest(tail);
            }
            tail.after = None;
        }
        let mut reading = Reading {
            outlet: &mut self.outlet,
            options: &self.sources[tail.source],
            task,
            buffers: &mut self.buffers,
            cut_lines: &self.meters.cut_lines,
            now,
        };
        let turn = tail.turn(&mut reading);
        if !matches!(turn, Turn::NoCredit(_)) {
            self.stalled = 0;
        }
        match turn {
            Turn::Again => {
                tail.queued = true;
                self.ready.push_back(file);
                self.tails.insert(file, tail);
            }
            Turn::Rest => self.rest(tail),
            Turn::NoCredit(Refused::SourceFull) => self.stall(tail, false),
            Turn::NoCredit(Refused::Full) => self.stall(tail, true),
            Turn::Truncated { seen } => {
                self.meters.truncations.add(1);
                log::info!("files: {} was truncated; it is read from its beginning", tail.path.display());
                self.begin_anew(&mut tail, seen, "truncated");
                tail.queued = true;
                self.ready.push_back(file);
                self.tails.insert(file, tail);
            }
            Turn::Finish => self.finish_if_gone(tail),
            // The stop is the next event.
            Turn::Stopped => {
                self.tails.insert(file, tail);
            }
            Turn::Failed(cause) => {
                self.complain(&mut tail, "read", &cause);
                self.rest(tail);
            }
        }
    }

    /// Nothing to do for it now. Those that wait for it can go on.
    fn rest(&mut self, mut tail: Tail) {
        self.stalled = 0;
        tail.rested = self.turns;
        if tail.descriptor.is_some() && tail.is_closable() {
            self.rested.push_back((tail.file, self.turns));
            self.trim_rested();
        }
        let followers =
            if tail.is_at_end() || tail.trouble { std::mem::take(&mut tail.followers) } else { Vec::new() };
        self.tails.insert(tail.file, tail);
        followers.into_iter().for_each(|file| self.queue(file));
    }

    /// Entries of files that have had a turn since are worth nothing; they must not pile up.
    fn trim_rested(&mut self) {
        if self.rested.len() > 2 * self.tails.len() + 64 {
            let tails = &self.tails;
            self.rested.retain(|(file, turn)| tails.get(file).is_some_and(|tail| tail.rested == *turn));
        }
    }

    /// It cannot go on for now. `first`: nor can anybody else, and it shall be the first to.
    fn stall(&mut self, mut tail: Tail, first: bool) {
        tail.queued = true;
        self.stalled += 1;
        if first {
            self.in_line = true;
            self.ready.push_front(tail.file);
        } else {
            self.ready.push_back(tail.file);
        }
        self.waiting = first || self.stalled >= self.ready.len();
        self.tails.insert(tail.file, tail);
    }

    /// Nothing more will come: if it is still true that no path leads to it.
    fn finish_if_gone(&mut self, mut tail: Tail) {
        let there = fs::metadata(&tail.path).is_ok_and(|metadata| FileId::of(&metadata) == tail.file);
        if there && !tail.deleted {
            tail.gone_since = None;
            return self.rest(tail);
        }
        self.remove(tail);
    }

    fn remove(&mut self, mut tail: Tail) {
        self.close(&mut tail);
        if let Some(mut stream) = tail.stream.take() {
            // A descriptor that was closed when everything was read, and bytes that came in the moment between.
            if tail.size > stream.position() {
                self.outlet.give_up(&mut stream, tail.size, "deleted before it was read");
            }
            self.outlet.finish(stream);
        }
        if self.paths.get(&tail.path) == Some(&tail.file) {
            self.paths.remove(&tail.path);
        }
        if self.newest.get(&tail.lineage) == Some(&tail.file) {
            self.newest.remove(&tail.lineage);
        }
        for follower in std::mem::take(&mut tail.followers) {
            // It must not wait for a file that comes back under the same inode, and perhaps after it.
            self.tails.entry(follower).and_modify(|follower| follower.after = None);
            self.queue(follower);
        }
        self.meters.followed.set(self.tails.len() as i64);
    }

    /// The file's content was replaced: one generation ends and the next begins at 0.
    fn begin_anew(&mut self, tail: &mut Tail, seen: u64, why: &str) {
        if let Some(mut stream) = tail.stream.take() {
            if seen > stream.position() {
                self.outlet.give_up(&mut stream, seen, why);
            }
            self.outlet.finish(stream);
        }
        (tail.start, tail.scanned, tail.until) = (0, 0, None);
    }

    // ---- opening and closing

    /// Opens the file if it is closed, makes sure that it is the one we mean, and finds out where to read on.
    fn open(&mut self, tail: &mut Tail, now: Instant) -> Opened {
        if tail.descriptor.is_none() {
            if self.open >= self.open_max && !self.close_one() {
                return Opened::NoDescriptor;
            }
            // A FIFO that has taken the file's place must not block us.
            let flags = OFlags::NONBLOCK.bits() as i32;
            match OpenOptions::new().read(true).custom_flags(flags).open(&tail.path) {
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
            return self.begin(tail, &head);
        }
        Opened::Ready
    }

    /// The first byte is there: goes on where the last life ended, or begins a generation.
    fn begin(&mut self, tail: &mut Tail, head: &[u8]) -> Opened {
        let (known, replaced) = self.not_met.claim(tail.file, tail.size, head);
        replaced.into_iter().for_each(|known| self.finish_known(known, "replaced while the agent was down"));
        let source = &self.sources[tail.source];
        tail.head = hash_head(head);
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
            if let Some(what) = not_text(head).filter(|_| skip) {
                log::info!("files: {} is passed over: it is {what}", tail.path.display());
                self.meters.passed_over.add(1);
                self.passed_over.insert(tail.file, tail.size);
                return Opened::Remove;
            }
            tail.stream = Some(self.outlet.open(Opening {
                source,
                filename: Some(&tail.path),
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
    fn not_there(&mut self, tail: &mut Tail, now: Instant) -> Opened {
        tail.gone_since.get_or_insert(now);
        if let Ok(metadata) = fs::metadata(&tail.path)
            && metadata.is_file()
            && FileId::of(&metadata) != tail.file
            && !self.own.contains(FileId::of(&metadata))
        {
            let (path, file, size) = (tail.path.clone(), FileId::of(&metadata), metadata.len());
            self.admit(Found { path: path.clone(), file, size, source: tail.source }, now);
            self.paths.insert(path, file);
        }
        let idle = self.sources[tail.source].idle;
        let over = tail.stream.is_none() || tail.step(idle, now) == Step::Finish;
        if over { Opened::Remove } else { Opened::Rest }
    }

    fn hold(&mut self, tail: &mut Tail, file: File) {
        tail.descriptor = Some(file);
        self.open += 1;
        self.meters.open.set(self.open as i64);
    }

    fn close(&mut self, tail: &mut Tail) {
        if tail.descriptor.take().is_some() {
            self.open -= 1;
            self.meters.open.set(self.open as i64);
        }
    }

    /// Closes the file that rested longest.
    fn close_one(&mut self) -> bool {
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

    fn out_of_descriptors(&mut self, cause: &io::Error) -> Opened {
        let possible = self.open.max(1);
        if possible < self.open_max {
            log::warn!("files: no more than {possible} files can be open: {cause}; the others take turns");
            self.open_max = possible;
        }
        Opened::NoDescriptor
    }

    /// Once per file and trouble.
    fn complain(&self, tail: &mut Tail, what: &str, cause: &io::Error) {
        if !tail.trouble {
            log::warn!("files: could not {what} {}: {cause}; trying again later", tail.path.display());
        }
        tail.trouble = true;
    }

    /// A generation of the last life that will not be met again.
    fn finish_known(&mut self, known: Known, why: &str) {
        let Some(source) =
            self.sources.iter().find(|source| source.name == known.source).or(self.sources.first())
        else {
            return;
        };
        let mut stream = self.outlet.reopen(source, &known);
        // What one sink has and another lacks did stand there once.
        if let Some(lost) = known.progress.iter().flat_map(|progress| progress.edges(known.position)).max() {
            self.outlet.give_up(&mut stream, lost, why);
        }
        self.outlet.finish(stream);
    }

    // ---- what others see

    fn account_for_unread(&mut self) {
        for tail in self.tails.values_mut() {
            if let Some(stream) = &tail.stream {
                let size = tail.descriptor.as_ref().and_then(|file| file.metadata().ok());
                let size = size.map_or(tail.size, |metadata| metadata.len());
                let bytes = size.saturating_sub(stream.position());
                if bytes > 0 {
                    self.outlet.unread(stream, bytes);
                }
            }
        }
    }

    fn show(&mut self, now: Instant) {
        if now < self.view_at {
            return;
        }
        self.view_at = now + VIEW_EVERY;
        let mut shown: Vec<&Tail> = self.tails.values().collect();
        shown.truncate(SHOWN_MAX);
        let files = shown.into_iter().map(|tail| FileView {
            path: tail.path.to_string_lossy().into_owned(),
            source: self.sources[tail.source].name.to_string(),
            size: tail.size,
            position: tail.position(),
            state: state(tail),
            generation: tail.stream.as_ref().map(|stream| stream.generation().0),
        });
        let mut snapshot = FilesSnapshot {
            followed: self.tails.len(),
            open: self.open,
            passed_over: self.passed_over.len(),
            unreadable: self.tails.values().filter(|tail| tail.trouble).count(),
            files: files.collect(),
        };
        snapshot.files.sort_by(|a, b| a.path.cmp(&b.path));
        self.view.replace(snapshot);
    }
}

fn state(tail: &Tail) -> &'static str {
    match tail {
        Tail { trouble: true, .. } => "unreadable",
        Tail { deleted: true, .. } => "deleted",
        Tail { gone_since: Some(_), .. } => "rotated",
        tail if !tail.is_at_end() => "reading",
        Tail { descriptor: None, .. } => "closed",
        _ => "at its end",
    }
}

fn file_options(source: &SourceOptions) -> Option<&FileSourceOptions> {
    match &source.kind {
        SourceKind::File(file) => Some(file),
        SourceKind::Stdin => None,
    }
}

impl Meters {
    fn new(metrics: &Registry) -> Meters {
        Meters {
            followed: metrics.gauge("files_followed", "Files that are followed.", &[]),
            open: metrics.gauge("files_open", "Descriptors held on files that are followed.", &[]),
            passed_over: metrics.counter(
                "files_passed_over_total",
                "Files that have no lines: compressed or binary.",
                &[],
            ),
            truncations: metrics.counter(
                "file_truncations_total",
                "Files that became shorter than what was read.",
                &[],
            ),
            cut_lines: metrics.counter(
                "lines_cut_total",
                "Pieces without a line end: of lines over the limit, or at a quiet end of a file.",
                &[],
            ),
        }
    }
}
