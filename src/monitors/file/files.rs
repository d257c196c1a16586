//! The `files` thread: owns every file that is followed and gives each its turn.
//!
//! A turn reads one chunk at most and puts the file back at the end of the line, so a hot file holds up nobody.
//! Hints put files into the line at once; polls look at those that nobody gives hints of, which finds the same
//! later; a sweep tells which paths lead where, and what hints have missed.
//!
//! Always true: one [`Tail`] per file, by device and inode, whatever its names. A generation of a path is read
//! before the one that followed it. A descriptor with unread bytes that no path leads to is never closed.
//!
//! Not here: what a turn does (`tail.rs`), how files are found (`discovery.rs`).

mod copies;
mod deleted;
mod meters;
mod missing;
pub(super) mod opening;
mod polls;
mod roster;
mod turns;

use std::collections::{HashMap, VecDeque};
use std::convert::Infallible;
use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, select};

use super::Mailbox;
use super::folder::Folders;
use super::kin::Kin;
use super::known::NotMet;
use super::names::rotated;
use super::step::Step;
use super::sweep::Sweep;
use super::tail::Tail;
use super::turn::{Buffers, Caught, Reading, Turn};
use super::view::{FileView, FilesView, SHOWN_MAX, Sizes};
use super::watch::Hints;
use crate::budget::Refused;
use crate::durable::{FileId, OwnFiles};
use crate::error::Result;
use crate::ledger::Known;
use crate::metrics::Registry;
use crate::monitors::{FileSourceOptions, Outlet, SourceKind, SourceOptions};
use crate::order;
use crate::tasks::Task;
use meters::Meters;
pub use opening::most_rested;
use opening::{Opened, captures};
use polls::{Polls, poll_interval};

/// A file that is gone and read leaves at the next look after its grace; this long after it, it has not.
const OVERDUE_AFTER: Duration = Duration::from_secs(60);

/// People do not read faster.
const VIEW_EVERY: Duration = Duration::from_secs(1);

/// The thread's body.
pub struct Files {
    sources: Arc<[SourceOptions]>,
    outlet: Outlet,
    picture: Mailbox<Option<Sweep>>,
    hints: Mailbox<Hints>,
    heard_out: Receiver<Infallible>, // breaks when `watch` has ended: no hint comes after that
    own: OwnFiles,
    once: bool,
    first_start: bool,
    swept: bool,
    /// Folders that the last sweep could not look into.
    unsure: usize,
    not_met: NotMet,
    tails: HashMap<FileId, Box<Tail>>,
    paths: HashMap<Arc<Path>, FileId>,
    /// The newest file of each lineage.
    newest: HashMap<u64, FileId>,
    /// Files without lines, with path and size when that was found: looked at again under another path or with
    /// another size, since the inode may be another file's by then, and since text may come after zeros.
    passed_over: HashMap<FileId, (Arc<Path>, u64)>,
    /// Kept ready while many files are rotated at once; nothing of it while the thread waits.
    folders: Folders,
    kin: Kin,
    /// Compressed files are read one at a time: each takes memory that no budget knows.
    unpacking: Option<FileId>,
    /// Of the last life.
    last_stamp_ns: i64,
    /// Found, and not opened yet.
    newcomers: Vec<FileId>,
    ready: VecDeque<FileId>,
    /// Turns in a row that got nowhere: as many as the line is long, and there is nothing to do but wait.
    stalled: usize,
    /// What was read and is not handed over yet: nothing of it between two events.
    caught: Vec<(Box<Tail>, Caught)>,
    /// Nobody in the line can go on before something happens.
    waiting: bool,
    /// We stand in the line for credit.
    in_line: bool,
    open: usize,
    /// Less than the limit for a while after the system had no more.
    open_max: usize,
    open_limit: usize,
    /// Files whose descriptor can perhaps be closed, the one that rested longest first; never more than
    /// [`most_rested`] of them. `None`: none had to be closed yet, and nobody keeps a list.
    rested: Option<VecDeque<(FileId, u64)>>,
    turns: u64,
    /// When those that are in trouble get another turn.
    try_again_at: Instant,
    polls: Polls,
    view_at: Instant,
    view: FilesView,
    /// Something has happened since the view was made.
    view_is_old: bool,
    /// As the last sweep left them; the others are looked up when they are shown.
    sizes: Sizes,
    buffers: Buffers,
    meters: Meters,
}

/// What the thread is told about the world around it.
pub(super) struct Setting {
    pub outlet: Outlet,
    pub picture: Mailbox<Option<Sweep>>,
    pub hints: Mailbox<Hints>,
    pub heard_out: Receiver<Infallible>,
    pub own: OwnFiles,
    pub once: bool,
    pub first_start: bool,
    pub known: Vec<Known>,
    pub last_stamp_ns: i64,
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

impl Files {
    pub(super) fn new(sources: Arc<[SourceOptions]>, setting: Setting, metrics: &Registry) -> Files {
        let now = setting.outlet.clock().now();
        Files {
            picture: setting.picture,
            hints: setting.hints,
            heard_out: setting.heard_out,
            own: setting.own,
            once: setting.once,
            first_start: setting.first_start,
            swept: false,
            unsure: 0,
            not_met: NotMet::new(setting.known),
            tails: HashMap::new(),
            paths: HashMap::new(),
            newest: HashMap::new(),
            passed_over: HashMap::new(),
            folders: Folders::new(setting.outlet.clock().clone()),
            kin: Kin::default(),
            unpacking: None,
            last_stamp_ns: setting.last_stamp_ns,
            newcomers: Vec::new(),
            ready: VecDeque::new(),
            stalled: 0,
            caught: Vec::new(),
            waiting: false,
            in_line: false,
            open: 0,
            open_max: setting.open_max.max(1),
            open_limit: setting.open_max.max(1),
            rested: None,
            turns: 0,
            try_again_at: now,
            polls: Polls::new(sources.len(), now),
            view_at: now,
            view: FilesView::default(),
            view_is_old: true,
            sizes: Sizes::default(),
            buffers: Buffers::default(),
            meters: Meters::new(metrics),
            sources,
            outlet: setting.outlet,
        }
    }

    /// For the status page: take it before [`Files::run`] takes the rest.
    pub fn view(&self) -> FilesView {
        self.view.clone()
    }

    /// Ends on stop, or, if once was asked for, when everything that was found has been read.
    pub fn run(mut self, task: &Task) -> Result<()> {
        loop {
            match self.next_event(task) {
                Event::Stop | Event::Done => break,
                event => {
                    task.beat();
                    self.handle(event, task);
                }
            }
        }
        task.stopping();
        self.read_deleted_on(task);
        self.account_for_unread(task);
        Ok(())
    }

    fn next_event(&mut self, task: &Task) -> Event {
        let now = task.now();
        let poll_at = self.next_poll();
        let busy = !self.ready.is_empty() && !self.waiting;
        if !busy && self.once && self.swept && self.ready.is_empty() {
            return Event::Done;
        }
        if self.in_line && self.ready.is_empty() {
            self.outlet.nothing_to_read();
            self.in_line = false;
        }
        if self.outlet.stop().stop.is_closed() {
            return Event::Stop; // and no chunk more, even if there is room for it
        }
        let wait = match poll_at {
            _ if busy => Duration::ZERO,
            None => Duration::MAX,
            Some(at) => at.saturating_duration_since(now),
        };
        let stop = self.outlet.stop().stop.channel();
        if !busy {
            self.folders.forget();
            self.kin.forget();
            task.waits_for(if self.ready.is_empty() { "changes" } else { "room" });
        }
        select! {
            recv(stop) -> _ => Event::Stop,
            recv(self.picture.bell()) -> _ => Event::Swept,
            recv(self.hints.bell()) -> _ => Event::Hinted,
            recv(self.outlet.room()) -> _ => Event::Room,
            default(wait) => if busy && poll_at.is_none_or(|at| now < at) { Event::Turn } else { Event::Poll },
        }
    }

    fn handle(&mut self, event: Event, task: &Task) {
        let now = task.now();
        if !matches!(event, Event::Turn) {
            self.waiting = false;
            self.stalled = 0;
        }
        if !matches!(event, Event::Poll | Event::Swept) {
            self.stir(now);
        }
        match event {
            Event::Swept => {
                if let Some(sweep) = self.picture.take() {
                    self.take_in(sweep, task);
                }
            }
            Event::Hinted => match self.hints.take() {
                Hints::Everything => self.poll(task),
                Hints::These(these) => self.look_at(these, task),
            },
            Event::Poll => {
                self.poll_restless(now, task);
                if self.try_again_at <= now {
                    self.try_again(now);
                }
                self.outlet.tidy();
                self.limit_deleted(now);
                self.show(now);
            }
            Event::Turn => self.give_turns(task),
            Event::Room | Event::Stop | Event::Done => {}
        }
        self.open_newcomers(task);
    }

    /// Before anything is read, and even if nothing can be: so that they are held before they are rotated away.
    fn open_newcomers(&mut self, task: &Task) {
        for file in std::mem::take(&mut self.newcomers) {
            if self.open + 1 >= self.open_max {
                return; // they take turns
            }
            let Some(mut tail) = self.tails.remove(&file) else { continue };
            task.beat();
            if let Opened::Remove = self.open(&mut tail, task) {
                self.remove(tail);
            } else {
                self.tails.insert(file, tail);
            }
        }
    }

    fn queue(&mut self, file: FileId) {
        if let Some(tail) = self.tails.get_mut(&file)
            && !tail.queued
        {
            tail.queued = true;
            self.ready.push_back(file);
        }
    }

    fn give_turn(&mut self, now: Instant, task: &Task) {
        let Some(file) = self.ready.pop_front() else { return };
        let Some(mut tail) = self.tails.remove(&file) else { return };
        tail.queued = false;
        self.turns += 1;
        if self.is_blocked(&tail) {
            return self.hold_back(tail, task);
        }
        tail.few.clear(|few| few.after = None);
        if tail.form.is_some()
            && self.unpacking.is_some_and(|one| one != file && self.tails.contains_key(&one))
        {
            return self.stall(tail, false);
        }
        let packed = tail.form.is_some() && tail.content.is_none();
        if tail.descriptor.is_none() || tail.stream.is_none() || packed {
            let opened = match self.open(&mut tail, task) {
                Opened::Ready if packed => self.unpack(&mut tail, task),
                opened => opened,
            };
            match opened {
                Opened::Ready => {}
                Opened::Rest => return self.rest(tail),
                Opened::Remove => return self.remove(tail),
                Opened::NoDescriptor => return self.stall(tail, false),
            }
        }
        self.unpacking = tail.form.map(|_| file).or(self.unpacking);
        let gathers = self.gathers(&tail);
        let mut reading = Reading {
            outlet: &mut self.outlet,
            options: &self.sources[tail.source()],
            task,
            buffers: &mut self.buffers,
            cut_lines: &self.meters.cut_lines,
            now,
            gathers,
            in_company: !self.caught.is_empty(),
        };
        let turn = tail.turn(&mut reading);
        if !matches!(turn, Turn::Caught(_) | Turn::Rest | Turn::Again) {
            self.hand_over(task); // what follows may concern others
        }
        self.end_turn(tail, turn, now);
    }

    fn end_turn(&mut self, mut tail: Box<Tail>, turn: Turn, now: Instant) {
        let file = tail.file;
        if !matches!(turn, Turn::NoCredit(_)) {
            self.stalled = 0;
            tail.trouble &= matches!(turn, Turn::Failed(_));
        }
        match turn {
            Turn::Again => {
                tail.queued = true;
                self.ready.push_back(file);
                self.tails.insert(file, tail);
            }
            Turn::Rest => self.rest(tail),
            Turn::Caught(caught) => self.caught.push((tail, caught)),
            Turn::NoCredit(Refused::SourceFull) => self.stall(tail, false),
            Turn::NoCredit(Refused::Full) => self.stall(tail, true),
            Turn::Truncated { seen } => {
                self.meters.truncations.add(1);
                if tail.is_copy && tail.few.gone_since.is_some() {
                    // What is in it now is another copy, and belongs to whoever was emptied after it was made.
                    self.begin_anew(&mut tail, seen, "overwritten by another copy");
                    return self.remove(tail);
                }
                log::info!("files: {} was truncated; it is read from its beginning", tail.path.display());
                self.go_on_in_copy(&mut tail, seen, now);
                self.begin_anew(&mut tail, seen, "truncated");
                if tail.is_copy || tail.path.file_name().is_some_and(|name| rotated(name).is_some()) {
                    (tail.is_copy, tail.is_late, tail.since) = (false, true, now.into()); // perhaps a copy again
                }
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

    /// The generation before it is read first, its half line too, which waits for its rest for a while; if it is in
    /// the line, it may have grown.
    fn is_blocked<'a>(&'a self, mut tail: &'a Tail) -> bool {
        // One that is blocked itself may have grown since it was looked at. Older at each step, so it ends.
        let age = |tail: &Tail| tail.number().map_or(u64::MAX, |number| number.0);
        while let Some(before) = tail.few.after.and_then(|before| self.tails.get(&before))
            && age(before) < age(tail)
        {
            if (before.queued || before.unread() > 0) && !before.trouble {
                return true;
            }
            tail = before;
        }
        false
    }

    /// Keeps a file open that is not read yet, since it may be rotated away before it is; but not with the last
    /// descriptor, which the one before it may need.
    fn hold_back(&mut self, mut tail: Box<Tail>, task: &Task) {
        if self.open + 1 < self.open_max && tail.descriptor.is_none() {
            if let Opened::Remove = self.open(&mut tail, task) {
                return self.remove(tail);
            }
        } else if self.open >= self.open_max && !tail.deleted && tail.few.gone_since.is_none() {
            self.close(&mut tail);
        }
        if let Some(before) = tail.few.after.and_then(|before| self.tails.get_mut(&before))
            && !before.few.followers.contains(&tail.file)
        {
            before.few.followers.push(tail.file);
        }
        self.rest(tail);
    }

    /// Nothing to do for it now. Those that wait for it can go on.
    fn rest(&mut self, mut tail: Box<Tail>) {
        self.stalled = 0;
        tail.rested = self.turns;
        if let Some(rested) = self.rested.as_mut().filter(|_| tail.descriptor.is_some() && tail.is_closable())
        {
            if rested.len() == rested.capacity() {
                rested.reserve_exact(rested.len() / 8 + 64); // all files may stand in it: not twice the room
            }
            rested.push_back((tail.file, self.turns));
        }
        let done = tail.unread() == 0 || tail.trouble;
        let followers = if done { tail.few.take_followers() } else { Vec::new() };
        self.tails.insert(tail.file, tail);
        self.trim_rested();
        while self.open > self.open_max && self.close_one() {}
        followers.into_iter().for_each(|file| self.queue(file));
    }

    /// It cannot go on for now. `first`: nor can anybody else, and it shall be the first to.
    fn stall(&mut self, mut tail: Box<Tail>, first: bool) {
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
    fn finish_if_gone(&mut self, mut tail: Box<Tail>) {
        if tail.form.is_some() {
            return self.remove(tail);
        }
        // It may stand where it was rotated to, for as long as it likes.
        let leads = self.sources.iter().any(|source| captures(source, &tail.path));
        let there =
            leads && fs::metadata(&tail.path).is_ok_and(|metadata| FileId::of(&metadata) == tail.file);
        if there && !tail.deleted {
            tail.few.clear(|few| few.gone_since = None);
            return self.rest(tail);
        }
        self.remove(tail);
    }

    fn remove(&mut self, mut tail: Box<Tail>) {
        self.close(&mut tail);
        let unread = tail.unread();
        if let Some(mut stream) = tail.stream.take() {
            // A descriptor that was closed when everything was read, and bytes that came in the moment between.
            if unread > 0 {
                let upto = stream.position() + unread;
                self.outlet.give_up(&mut stream, upto, "deleted before it was read");
            }
            if tail.few.seen > stream.position() {
                self.outlet.give_up(&mut stream, tail.few.seen, "truncated");
            }
            self.outlet.finish(stream);
        }
        if self.paths.get(&tail.path) == Some(&tail.file) {
            self.paths.remove(&tail.path);
        }
        if self.newest.get(&tail.lineage) == Some(&tail.file) {
            self.newest.remove(&tail.lineage);
        }
        for follower in tail.few.take_followers() {
            // It must not wait for a file that comes back under the same inode, and perhaps after it.
            self.tails.entry(follower).and_modify(|follower| follower.few.clear(|few| few.after = None));
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
        tail.is_of_another_generation();
    }

    /// It has been over for longer than it takes to find that out.
    fn is_overdue(&self, tail: &Tail, now: Instant) -> bool {
        let source = &self.sources[tail.source()];
        let then = now.checked_sub(OVERDUE_AFTER + 2 * poll_interval(source));
        is_gone(tail) && then.is_some_and(|then| tail.step(source.idle, then) == Step::Finish)
    }

    fn show(&mut self, now: Instant) {
        if now < self.view_at || !self.view_is_old {
            return;
        }
        self.view_is_old = false;
        self.view_at = now + VIEW_EVERY;
        let files = self.tails.values().take(SHOWN_MAX).map(|tail| FileView {
            path: tail.path.clone(),
            source: self.sources[tail.source()].name.clone(),
            size: tail.size,
            position: tail.position(),
            state: state(tail),
            generation: tail.stream.as_ref().map(|stream| stream.generation().0),
        });
        self.view.renew(|shown| {
            shown.files.clear();
            shown.files.extend(files);
            shown.files.shrink_to_fit();
            order::sort_by(&mut shown.files, |a, b| a.path.cmp(&b.path));
            shown.followed = self.tails.len();
            shown.open = self.open;
            shown.passed_over = self.passed_over.len();
            shown.unreadable = self.tails.values().filter(|tail| tail.trouble).count();
            shown.sizes = Sizes {
                gone: self.tails.values().filter(|tail| is_gone(tail)).count(),
                overdue: self.tails.values().filter(|tail| self.is_overdue(tail, now)).count(),
                paths: self.paths.len(),
                lineages: self.newest.len(),
                in_line: self.ready.len(),
                rested: self.rested.as_ref().map_or(0, VecDeque::len),
                not_met: self.not_met.len(),
                ..self.sizes
            };
        });
    }
}

/// No path leads to it any more.
fn is_gone(tail: &Tail) -> bool {
    tail.deleted || tail.few.gone_since.is_some()
}

fn state(tail: &Tail) -> &'static str {
    match tail {
        Tail { trouble: true, .. } => "unreadable",
        Tail { deleted: true, .. } => "deleted",
        tail if tail.few.gone_since.is_some() => "rotated",
        tail if !tail.is_at_end() => "reading",
        Tail { descriptor: None, .. } => "closed",
        _ => "at its end",
    }
}

fn file_options(source: &SourceOptions) -> Option<&FileSourceOptions> {
    match &source.kind {
        SourceKind::File(file) => Some(file),
        SourceKind::Docker(_) | SourceKind::Stdin => None,
    }
}
