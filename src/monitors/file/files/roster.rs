//! Which files there are: what sweeps, hints and polls tell about paths and files.

use std::collections::HashSet;
use std::fs;
use std::io;
use std::path::Path;
use std::time::Instant;

use super::super::discovery::{Found, Sweep};
use super::super::identity::lineage;
use super::super::tail::{Step, Tail};
use super::{Files, file_options};
use crate::durable::FileId;
use crate::monitors::StartAt;

impl Files {
    pub(super) fn take_in(&mut self, sweep: Sweep, now: Instant) {
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
    pub(super) fn admit(&mut self, found: Found, now: Instant) {
        let Found { ref path, file, size, source } = found;
        if self.passed_over.get(&file).is_some_and(|(at, seen)| at == path && size >= *seen) {
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
    pub(super) fn look_at(&mut self, path: &Path, now: Instant) {
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
    pub(super) fn left(&mut self, file: FileId, now: Instant) {
        if let Some(tail) = self.tails.get_mut(&file) {
            tail.gone_since.get_or_insert(now);
        }
        self.queue(file);
    }

    /// Puts those in the line that look different from what their last turn saw, or whose time has come.
    pub(super) fn poll(&mut self, due: impl Fn(usize) -> bool, now: Instant) {
        let mut changed = Vec::new();
        for tail in self.tails.values_mut().filter(|tail| due(tail.source) && !tail.queued && !tail.trouble) {
            let look = match &tail.descriptor {
                Some(descriptor) => descriptor.metadata(),
                None => fs::metadata(&tail.path).and_then(|metadata| {
                    let same = FileId::of(&metadata) == tail.file;
                    if same { Ok(metadata) } else { Err(io::ErrorKind::NotFound.into()) }
                }),
            };
            let differs = match look {
                Ok(metadata) => !tail.looks_like(&metadata),
                Err(cause) => {
                    // Other errors are of the folder, and the sweep tells them.
                    if cause.kind() == io::ErrorKind::NotFound {
                        tail.gone_since.get_or_insert(now);
                    }
                    false
                }
            };
            if differs || tail.step(self.sources[tail.source].idle, now) != Step::Wait {
                changed.push(tail.file);
            }
        }
        changed.into_iter().for_each(|file| self.queue(file));
    }
}
