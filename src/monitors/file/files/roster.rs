//! Which files there are: what sweeps, hints and polls tell about paths and files.

use std::collections::HashSet;
use std::fs::{self, Metadata};
use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

use super::super::identity::lineage;
use super::super::names::rotated;
use super::super::sweep::{Found, Spot, Sweep};
use super::super::tail::Tail;
use super::super::watch::Hint;
use super::{Files, file_options};
use crate::durable::FileId;
use crate::monitors::StartAt;
use crate::order;
use crate::tasks::Task;

/// How often a file is tried that could not be opened or read, if no sweep comes before.
const TRY_AGAIN: Duration = Duration::from_secs(10);

impl Files {
    pub(super) fn take_in(&mut self, sweep: Sweep, task: &Task) {
        let now = task.now();
        let mut found = sweep.spots();
        if !self.not_met.is_empty() {
            let mut not_met = std::mem::take(&mut self.not_met);
            let met: HashSet<u64> = found.iter().map(|spot| sweep.file(*spot).inode).collect();
            let (mut moved, mut gone) = not_met.search(&met, |known| self.source_of(known));
            self.not_met = not_met;
            self.add_replaced(&mut gone, &sweep, &found);
            // Renamed to where a pattern leads as well.
            let elsewhere = |spot: &Spot| {
                let known = self.not_met.perhaps(sweep.file(*spot))?;
                Some(sweep.found(*spot)).filter(|found| known.filename.as_deref() != Some(&*found.path))
            };
            moved.extend(found.iter().filter_map(elsewhere));
            moved.retain(|found| !self.tails.contains_key(&found.file));
            self.line_up_missing(moved, gone, now, task);
            // Oldest first, and before the files that stand in their places now.
            order::sort_by_key(&mut found, |spot| match self.not_met.perhaps(sweep.file(*spot)) {
                Some(known) => known.generation.0,
                None => u64::MAX,
            });
        }
        if !self.swept {
            self.make_room(found.len());
        }
        let mut is_news = !self.swept;
        for spot in found {
            let (found, modified_ns) = (sweep.found(spot), sweep.modified_ns(spot));
            if self.is_passed_over(&found) || self.is_known_as(&found) {
                // Most of them, and all is well if nobody has missed a report.
                let tail = self.tails.get(&found.file);
                if tail.is_some_and(|tail| !tail.looked_like(found.size, modified_ns)) {
                    self.queue(found.file);
                }
                continue;
            }
            is_news = true;
            self.admit(found, now);
        }
        let unsure = |path: &Path| sweep.unsure.iter().any(|folder| path.starts_with(folder));
        let mut unseen = 0;
        for tail in self.tails.values_mut().filter(|tail| !sweep.contains(tail.file)) {
            match unsure(&tail.path) {
                true => {
                    unseen += 1;
                    is_news |= std::mem::take(&mut tail.heard); // perhaps nobody listens there any more
                }
                false => {
                    is_news |= tail.few.gone_since.is_none();
                    tail.few.gone_since.get_or_insert(now);
                }
            }
        }
        let (sizes, passed_over) = (self.sizes, self.passed_over.len());
        (self.sizes.folders, self.sizes.watches) = (sweep.folders, sweep.watches);
        self.sizes.complaints = sweep.complaints;
        // A folder that can never be looked into must not keep the entries of all the others.
        self.passed_over.retain(|file, (path, _)| {
            let is_found = sweep.contains(*file);
            let stays = is_found || unsure(path);
            unseen += usize::from(stays && !is_found);
            stays
        });
        self.sizes.matching = sweep.len() + unseen;
        self.swept = true;
        self.unsure = sweep.unsure.len();
        self.try_again(now);
        if is_news || sizes != self.sizes || passed_over != self.passed_over.len() {
            self.stir(now);
        }
    }

    /// It has no lines, as far as it was looked into.
    fn is_passed_over(&self, found: &Found) -> bool {
        let seen = self.passed_over.get(&found.file);
        seen.is_some_and(|(path, size)| **path == *found.path && *size == found.size)
    }

    /// It is followed where it was found, and nothing else was thought of it.
    fn is_known_as(&self, found: &Found) -> bool {
        self.tails.get(&found.file).is_some_and(|tail| {
            *tail.path == *found.path
                && tail.heard == found.heard
                && tail.few.gone_since.is_none()
                && self.paths.get(&tail.path) == Some(&found.file)
        })
    }

    /// For so many files that come at once: what grows by doubling leaves holes behind, in which nothing as large fits.
    fn make_room(&mut self, files: usize) {
        self.tails.reserve(files);
        self.paths.reserve(files);
        self.newest.reserve(files);
        self.ready.reserve_exact(files);
        self.newcomers.reserve_exact(files);
    }

    /// Time has passed: what could not be opened or read perhaps can be, and there may be more descriptors.
    pub(super) fn try_again(&mut self, now: Instant) {
        self.try_again_at = now + TRY_AGAIN;
        let troubled: Vec<FileId> =
            self.tails.values().filter(|tail| tail.trouble).map(|tail| tail.file).collect();
        troubled.into_iter().for_each(|file| self.queue(file));
        self.try_more_descriptors();
    }

    /// A path that matches leads to this file: that was seen before `now`.
    pub(super) fn admit(&mut self, found: Found, now: Instant) {
        if self.is_passed_over(&found) {
            return;
        }
        let Found { ref path, file, size, source, heard } = found;
        if let Some(tail) = self.tails.get_mut(&file) {
            tail.few.clear(|few| few.gone_since = None);
            tail.heard = heard;
            if *tail.path != **path {
                if self.paths.get(&tail.path) == Some(&file) {
                    self.paths.remove(&tail.path);
                }
                tail.stands_at(path);
                self.kin.add(path, file);
            }
            let path = tail.path.clone();
            // Another one stood here: what was written meanwhile was heard of for that one.
            if self.paths.insert(path, file) != Some(file) {
                self.queue(file);
            }
            return;
        }
        let options = &self.sources[source];
        let at_end = file_options(options).is_some_and(|file| file.start_at == StartAt::End);
        let start = if at_end && self.first_start && !self.swept { size } else { 0 };
        let lineage = match self.not_met.perhaps(file) {
            Some(known) => known.lineage,
            None => lineage("", path),
        };
        let mut tail = Tail::new(found, lineage, start, now);
        let path = tail.path.clone();
        self.paths.insert(path.clone(), file);
        self.kin.add(&path, file);
        let older = self.newest.insert(lineage, file).filter(|older| self.tails.contains_key(older));
        if older.is_some() {
            tail.few.after = older;
        }
        tail.queued = true;
        tail.is_late = self.swept;
        tail.reserve(self.outlet.reserve());
        self.tails.insert(file, tail);
        self.newcomers.push(file);
        self.ready.push_back(file);
        if let Some(older) = older.filter(|_| self.swept) {
            self.line_up_between(older, &path, file, now);
        }
        // Its writer may have gone on in the old file, after our last look, until this one was there.
        older.into_iter().for_each(|older| self.queue(older));
        self.meters.followed.set(self.tails.len() as i64);
    }

    /// Something happened at these paths. Where that is more than that something was written, each is looked at before
    /// any is dealt with, so that one listing of their folder says what came between.
    pub(super) fn look_at(&mut self, hints: Vec<Hint>, task: &Task) {
        let mut others = Vec::new();
        for Hint { path, is_written } in hints {
            let Some(file) = self.paths.get(&*path) else { continue };
            match self.tails.get_mut(file) {
                Some(tail) if is_written && tail.heard => {
                    if !std::mem::replace(&mut tail.queued, true) {
                        self.ready.push_back(tail.file);
                    }
                }
                _ => others.push(path),
            }
        }
        others.sort_unstable();
        others.dedup();
        let seen: Vec<_> = others.into_iter().map(|path| (fs::metadata(&path), path)).collect();
        let now = task.now();
        for (metadata, path) in seen {
            task.beat();
            self.deal_with(&path, metadata, now);
        }
    }

    /// Where a path leads. If it is to another file than before that is a rotation: the new file is taken in at
    /// once, without waiting for a sweep.
    pub(super) fn deal_with(&mut self, path: &Path, metadata: io::Result<Metadata>, now: Instant) {
        let Some(&file) = self.paths.get(path) else { return };
        match metadata {
            Ok(metadata) if FileId::of(&metadata) == file => self.queue(file),
            Ok(metadata) if metadata.is_file() => {
                let other = FileId::of(&metadata);
                let Some(tail) = self.tails.get(&file) else { return };
                let (source, lineage) = (tail.source(), tail.lineage);
                self.left(file, now);
                if !self.own.contains(other) && self.may_follow_at(path, lineage, other) {
                    let (path, size) = (path.to_owned(), metadata.len());
                    self.admit(Found { path, file: other, size, source, heard: false }, now);
                    self.queue(other);
                }
            }
            Err(cause) if is_missing(&cause) => self.left(file, now),
            Ok(_) | Err(_) => {} // the next sweep tells
        }
    }

    /// Whether a file is taken in where another one stood, of this lineage. Perhaps that one was moved there by a rotation, and
    /// no pattern leads there: then who is not known yet is found from where the lineage begins, or by a sweep.
    pub(super) fn may_follow_at(&self, path: &Path, of: u64, file: FileId) -> bool {
        let is_rotated = path.file_name().is_some_and(|name| rotated(name).is_some());
        !is_rotated || self.tails.contains_key(&file) || lineage("", path) == of
    }

    /// No path that we know leads to it now.
    pub(super) fn left(&mut self, file: FileId, now: Instant) {
        if let Some(tail) = self.tails.get_mut(&file) {
            tail.few.gone_since.get_or_insert(now);
        }
        self.queue(file);
    }
}

pub(super) fn is_missing(cause: &io::Error) -> bool {
    cause.kind() == io::ErrorKind::NotFound
}
