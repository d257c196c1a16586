//! Who has to be looked at although nobody said that something happened, and when.
//!
//! Most files need no look: whatever happens to them is reported, and should a report be missed, the next sweep sees it.
//! The others are restless: nobody reports what happens to them, or time alone changes what is to be done. Only a look
//! at all tells who they are; it is repeated when something has happened, since nothing else makes a file restless.
//! With nobody restless the thread sleeps.

use std::fs::{self, Metadata};
use std::io;
use std::time::{Duration, Instant};

use super::super::step::Step;
use super::super::tail::Tail;
use super::roster::is_missing;
use super::{Files, file_options};
use crate::durable::FileId;
use crate::monitors::SourceOptions;
use crate::tasks::Task;

pub(super) struct Polls {
    /// By source.
    at: Vec<Instant>,
    /// As of the last look at all.
    restless: Vec<FileId>,
    /// Something has happened since.
    stirred: bool,
}

impl Polls {
    pub fn new(sources: usize, now: Instant) -> Polls {
        Polls { at: vec![now; sources], restless: Vec::new(), stirred: true }
    }

    pub fn restless(&self) -> &[FileId] {
        &self.restless
    }
}

impl Files {
    /// `None`: time alone changes nothing.
    pub(super) fn next_poll(&self) -> Option<Instant> {
        let Polls { at, restless, stirred } = &self.polls;
        let is_calm = !stirred
            && restless.is_empty()
            && !self.view_is_old
            && self.outlet.is_tidy()
            && self.open_max == self.open_limit;
        at.iter().min().copied().filter(|_| !is_calm)
    }

    /// Something has happened: others may have become restless.
    pub(super) fn stir(&mut self, now: Instant) {
        if !self.polls.stirred && self.next_poll().is_none() {
            let next = |source: &SourceOptions| now + poll_interval(source);
            self.polls.at.iter_mut().zip(self.sources.iter()).for_each(|(at, source)| *at = next(source));
        }
        (self.polls.stirred, self.view_is_old) = (true, true);
    }

    /// Looks at the restless files of the sources whose time has come. Puts those in the line that look different from
    /// what their last turn saw, or whose own time has come. Looks at paths, so that a rotation is found even if nothing
    /// reports it.
    pub(super) fn poll_restless(&mut self, now: Instant, task: &Task) {
        let mut due = vec![false; self.sources.len()];
        for ((at, source), due) in self.polls.at.iter_mut().zip(self.sources.iter()).zip(&mut due) {
            if *at <= now {
                (*at, *due) = (now + poll_interval(source), true);
            }
        }
        self.ready.shrink_to(4 * self.ready.len() + 64); // at the start every file stands in the line
        if std::mem::take(&mut self.polls.stirred) {
            let restless = self.tails.values().filter(|tail| tail.trouble || !tail.can_be_left_alone());
            self.polls.restless.clear();
            self.polls.restless.extend(restless.map(|tail| tail.file));
            self.polls.restless.shrink_to(2 * self.polls.restless.len());
        }
        let restless = std::mem::take(&mut self.polls.restless);
        let tails = restless.iter().filter_map(|file| self.tails.get(file));
        self.poll_these(tails.map(|tail| &**tail).filter(|tail| due[tail.source()]), task).apply(self, task);
        self.polls.restless = restless;
    }

    /// All.
    pub(super) fn poll(&mut self, task: &Task) {
        self.poll_these(self.tails.values().map(|tail| &**tail), task).apply(self, task);
    }

    fn poll_these<'a>(&'a self, tails: impl Iterator<Item = &'a Tail>, task: &Task) -> Polled {
        let now = task.now();
        let mut polled = Polled::default();
        for tail in tails.filter(|tail| !tail.trouble) {
            if self.outlet.stop().stop.is_closed() {
                return Polled::default(); // there may be thousands, on a slow file system
            }
            let leads = self.paths.get(&tail.path) == Some(&tail.file) || tail.descriptor.is_none();
            let at_path = leads.then(|| fs::metadata(&tail.path));
            let differs = match (at_path, &tail.descriptor) {
                (Some(Ok(metadata)), _) if FileId::of(&metadata) == tail.file => !tail.looks_like(&metadata),
                (Some(Ok(metadata)), _) => {
                    polled.moved.push((tail.file, Ok(metadata)));
                    false
                }
                (Some(Err(cause)), _) if is_missing(&cause) && tail.few.gone_since.is_none() => {
                    polled.moved.push((tail.file, Err(cause)));
                    false
                }
                // Other errors are of the folder, and the sweep tells them.
                (_, Some(file)) => file.metadata().is_ok_and(|metadata| !tail.looks_like(&metadata)),
                (_, None) => false,
            };
            if differs || tail.step(self.sources[tail.source()].idle, now) != Step::Wait {
                polled.changed.push(tail.file);
            }
        }
        polled
    }

    /// Its path leads elsewhere, or nowhere.
    fn has_moved(&mut self, file: FileId, metadata: io::Result<Metadata>, now: Instant) {
        let Some(tail) = self.tails.get(&file) else { return };
        let (path, closed) = (tail.path.clone(), tail.descriptor.is_none());
        if self.paths.get(&path) == Some(&file) {
            self.deal_with(&path, metadata, now);
        } else if closed {
            self.tails.entry(file).and_modify(|tail| {
                tail.few.gone_since.get_or_insert(now);
            });
        }
    }
}

/// What a look at many has shown.
#[derive(Default)]
struct Polled {
    changed: Vec<FileId>,
    moved: Vec<(FileId, io::Result<Metadata>)>,
}

impl Polled {
    fn apply(self, files: &mut Files, task: &Task) {
        let now = task.now();
        if !self.changed.is_empty() || !self.moved.is_empty() {
            files.stir(now);
        }
        self.changed.into_iter().for_each(|file| files.queue(file));
        for (file, metadata) in self.moved {
            task.beat();
            files.has_moved(file, metadata, now);
        }
    }
}

/// Of a source of files; others have none.
pub(super) fn poll_interval(source: &SourceOptions) -> Duration {
    file_options(source).map_or(Duration::from_secs(3600), |file| file.poll_interval)
}
