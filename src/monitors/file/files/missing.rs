//! What became of files while nobody looked: rotated, copied and emptied, compressed, or deleted.
//!
//! A generation of the last life whose file is not what it was is looked for in the files beside it: by inode if
//! it was only renamed, else by its content, also inside of gzip and zstd. It is finished there, from where the
//! last life ended. Rotated files that are newer than it and stand before the file that has the name now came and
//! went unseen: they are read too, the oldest first, and all of that before the file itself.
//!
//! How a rotated file is called, and which is older, says `names.rs`. If the last generation is nowhere, those
//! are unseen that were changed after the last line that this agent has read.
//!
//! Always true: what is lined up here is in the ledger before the first byte of it is read, so that a death in
//! between forgets none.

use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File};
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use super::super::beside::{After, Content, Rest, candidates, content_of, unseen};
use super::super::folder::Folder;
use super::super::identity::{HEAD_BYTES, identity, not_text, read_head};
use super::super::packed::{Form, Unpacked, form};
use super::super::sweep::{Found, Spot, Sweep};
use super::super::tail::Tail;
use super::copies::is_copy_at;
use super::opening::open_for_reading;
use super::{Files, file_options};
use crate::durable::FileId;
use crate::ledger::{Head, Known};
use crate::monitors::{Binary, Opening};
use crate::order;
use crate::tasks::Task;

/// Where the content of a generation stands now.
struct Place {
    /// Its size is that of the content.
    found: Found,
    form: Option<Form>,
    file: Option<File>,
}

impl Files {
    /// With the first sweep: those that are beside where they were, and those that are not. Admits what has to be
    /// read before the files of the sweep.
    pub(super) fn line_up_missing(&mut self, moved: Vec<Found>, gone: Vec<Known>, now: Instant, task: &Task) {
        // Of each lineage the moved and the missing in their order, since they are read in it.
        let mut lines: BTreeMap<u64, Vec<(Known, Option<Found>)>> = BTreeMap::new();
        let mut gone = gone;
        for found in moved {
            match self.others_at(&found) {
                Ok(others) => gone.extend(others),
                Err(cause) => log::warn!("files: could not read {}: {cause}", found.path.display()),
            }
            if let Some(known) = self.not_met.perhaps(found.file) {
                lines.entry(known.lineage).or_default().push((known.clone(), Some(found)));
            }
        }
        for known in gone {
            lines.entry(known.lineage).or_default().push((known, None));
        }
        for (_, mut line) in lines {
            order::sort_by_key(&mut line, |(known, _)| known.generation);
            let newest = line.last().map(|(known, _)| known.generation);
            for (known, found) in line {
                let is_newest = newest == Some(known.generation);
                if let Some(found) = found {
                    let (path, file) = (found.path.clone(), found.file);
                    self.admit(found, now);
                    self.tails.entry(file).and_modify(|tail| tail.few.gone_since = Some(now));
                    if is_newest {
                        self.line_up_unseen(&known, Some(&path), None, now);
                    }
                } else {
                    self.line_up_one(known, is_newest, "deleted while the agent was down", None, now, task);
                }
            }
        }
    }

    /// Adds to `gone` those whose inode one of these files has now, where others of their lineage have to be read in
    /// their order: else it is soon enough when that file is opened.
    pub(super) fn add_replaced(&mut self, gone: &mut Vec<Known>, sweep: &Sweep, spots: &[Spot]) {
        let mut generations: HashMap<u64, usize> = HashMap::new();
        let all = self.not_met.all().chain(gone.iter());
        all.for_each(|known| *generations.entry(known.lineage).or_default() += 1);
        for spot in spots.iter().copied() {
            let (file, several) = (sweep.file(spot), |known: &Known| {
                generations.get(&known.lineage).is_some_and(|all| *all > 1)
            });
            if self.not_met.perhaps(file).is_some_and(several) && !self.tails.contains_key(&file) {
                // An error is met again when it is opened.
                gone.extend(self.others_at(&sweep.found(spot)).unwrap_or_default());
            }
        }
    }

    /// Generations that have this file's inode and another content.
    fn others_at(&mut self, found: &Found) -> io::Result<Vec<Known>> {
        let file = open_for_reading(&found.path)?;
        match FileId::of(&file.metadata()?) == found.file {
            true => self.not_met.take_others(found.file, &file),
            false => Ok(Vec::new()),
        }
    }

    /// Generations whose file, by its inode, is `next` now, and another by its content; and what came unseen after
    /// them. `why`: they are given up if they are nowhere.
    pub(super) fn line_up(
        &mut self,
        others: Vec<Known>,
        why: &str,
        mut next: Option<&mut Tail>,
        task: &Task,
    ) {
        let now = task.now();
        let named: Vec<_> = others.iter().map(|known| (known.lineage, known.generation)).collect();
        for known in others {
            let newest =
                named.iter().filter(|(lineage, _)| *lineage == known.lineage).map(|(_, number)| number).max();
            let is_newest = newest == Some(&known.generation);
            let next = next.as_deref_mut().filter(|next| next.lineage == known.lineage);
            self.line_up_one(known, is_newest, why, next, now, task);
        }
    }

    fn line_up_one(
        &mut self,
        known: Known,
        is_newest: bool,
        why: &str,
        mut next: Option<&mut Tail>,
        now: Instant,
        task: &Task,
    ) {
        let path = known.filename.as_deref().unwrap_or(Path::new(""));
        let position = known.position;
        let Some(place) = self.locate(&known, now, task) else {
            log::info!(
                "files: {} is gone or another; {position} bytes of it were read: {why}",
                path.display()
            );
            if is_newest {
                self.line_up_unseen(&known, None, next, now);
            }
            return self.finish_known(known, why);
        };
        let at = place.found.path.clone();
        log::info!("files: {} goes on in {} behind byte {position}", path.display(), at.display());
        let source = &self.sources[place.found.source];
        let stream = self.outlet.reopen(source, &known);
        let head = known.identity.map_or(Head::default(), |identity| identity.head);
        if place.form.is_none() {
            self.outlet.identify(&stream, identity(place.found.file, head));
        }
        let mut tail = Tail::new(place.found, known.lineage, 0, now);
        (tail.form, tail.head, tail.before, tail.scanned) = (place.form, head, known.before, position);
        tail.is_copy = tail.form.is_none();
        tail.stream = Some(stream);
        self.hold_found(&mut tail, place.file);
        self.put_before(tail, next.as_deref_mut(), now);
        if is_newest {
            self.line_up_unseen(&known, Some(&at), next, now);
        }
    }

    /// What has the content of this generation, as far as it was read, beside where it was.
    fn locate(&mut self, known: &Known, seen: Instant, task: &Task) -> Option<Place> {
        let folder = known.filename.as_deref()?.parent()?;
        let place = self.folders.last(folder).and_then(|folder| self.locate_in(&folder, known, task));
        place.or_else(|| {
            let folder = self.folders.since(seen, folder)?;
            self.locate_in(&folder, known, task)
        })
    }

    fn locate_in(&self, folder: &Folder, known: &Known, task: &Task) -> Option<Place> {
        let source = self.source_of(known)?;
        if known.identity?.head.len == 0 {
            return None;
        }
        // A generation can be there twice for a moment: the plain file is the whole one.
        let mut packed = None;
        for path in candidates(folder, known.filename.as_deref()?, 0, |id| !self.is_followed(id)) {
            task.beat();
            match self.has_content_of(known, &path, task) {
                Ok(Some((id, Content { mut size, form, torn, file }))) => {
                    if torn {
                        size = size.max(known.position + 1); // being written, as far as we can tell: more is to come
                    }
                    let place =
                        Place { found: Found { path, file: id, size, source, heard: false }, form, file };
                    match form {
                        None => return Some(place),
                        Some(_) => packed = packed.or(Some(place)),
                    }
                }
                Ok(None) => {}
                Err(cause) => log::info!("files: could not look into {}: {cause}", path.display()),
            }
        }
        packed
    }

    fn has_content_of(
        &self,
        known: &Known,
        path: &Path,
        task: &Task,
    ) -> io::Result<Option<(FileId, Content)>> {
        let file = open_for_reading(path)?;
        let metadata = file.metadata()?;
        let id = FileId::of(&metadata);
        if !metadata.is_file() || !self.is_free(id) || self.not_met.perhaps(id).is_some() {
            return Ok(None);
        }
        Ok(content_of(known, file, &|| self.goes_on(task))?.map(|content| (id, content)))
    }

    /// Decompression takes its time: until the stop.
    pub(super) fn goes_on(&self, task: &Task) -> bool {
        task.beat();
        !self.outlet.stop().stop.is_closed()
    }

    /// Files that were rotated after `known`, which is at `place` now, and that nobody has seen; if it is the
    /// newest of its lineage.
    fn line_up_unseen(
        &mut self,
        known: &Known,
        place: Option<&Path>,
        mut next: Option<&mut Tail>,
        now: Instant,
    ) {
        let newer = |other: &Known| other.lineage == known.lineage && other.generation > known.generation;
        let followed = |tail: &Tail| {
            let generation = tail.stream.as_ref().map(|stream| stream.generation());
            tail.lineage == known.lineage
                && generation.is_some_and(|generation| generation > known.generation)
        };
        if self.not_met.all().any(newer) || self.tails.values().any(|tail| followed(tail)) {
            return;
        }
        let Some((source, original)) = self.source_of(known).zip(known.filename.as_ref()) else { return };
        let Some(folder) = original.parent().and_then(|folder| self.folders.since(now, folder)) else {
            return;
        };
        let may_be = |id| self.is_free(id) && self.not_met.perhaps(id).is_none();
        let last = self.last_stamp_ns;
        let after = place.map_or(After::Time(last), |path| After::Path(path, last));
        for sibling in unseen(&folder, original, after, may_be) {
            let Rest { path, file, size } = sibling.what;
            let found = Found { path, file, size, source, heard: false };
            if let Err(cause) = self.admit_unseen(found, original, known.lineage, next.as_deref_mut(), now) {
                log::warn!("files: could not read what was rotated unseen: {}: {cause}", original.display());
            }
        }
    }

    /// Files that were made and rotated away since the last look, between `older` and the one that `original` leads to
    /// now, which is `next`: that was seen before `seen`.
    pub(super) fn came_between(
        &mut self,
        older: &Tail,
        original: &Path,
        next: FileId,
        seen: Instant,
    ) -> Vec<Found> {
        let Some(folder) = original.parent().and_then(|folder| self.folders.since(seen, folder)) else {
            return Vec::new();
        };
        let since_ns = older.modified_ns().unwrap_or(i64::MAX); // then only the names tell
        let has_a_place = |tail: &Tail| tail.stream.is_some() || tail.lineage == older.lineage;
        let may_be = |id| {
            let is_new = id != older.file && self.not_met.perhaps(id).is_none();
            let is_free = || self.is_free(id) && !self.tails.get(&id).is_some_and(|tail| has_a_place(tail));
            id == next || is_new && is_free()
        };
        let mut unseen = unseen(&folder, original, After::File(older.file, since_ns), may_be);
        // It may have been rotated away since it was seen: what is newer comes after it.
        if let Some(at) = unseen.iter().position(|sibling| sibling.what.file == next) {
            unseen.truncate(at);
        }
        if unseen.is_empty() {
            return Vec::new();
        }
        let beside = folder.file(older.file.inode);
        // Times of change tell nothing of a quiet log. Where a file system does not say when a file was made, the
        // next start reads what it finds.
        let open = older.descriptor.as_ref().and_then(|file| file.metadata().ok());
        let metadata = open.or_else(|| beside.as_ref().map(|beside| beside.metadata.clone()));
        let Some(made) = metadata.and_then(|metadata| metadata.created().ok()) else { return Vec::new() };
        let is_younger = |path: &Path| {
            fs::metadata(path).and_then(|metadata| metadata.created()).is_ok_and(|other| other > made)
        };
        unseen.retain(|sibling| is_younger(&sibling.what.path));
        if beside.is_none() {
            // It was deleted, and perhaps copied before that.
            unseen.retain(|sibling| !is_copy_at(older, &sibling.what.path));
        }
        let found =
            |Rest { path, file, size }| Found { path, file, size, source: older.source(), heard: false };
        unseen.into_iter().map(|sibling| found(sibling.what)).collect()
    }

    /// What came between `older` and `next`.
    pub(super) fn line_up_between(
        &mut self,
        older: FileId,
        original: &Arc<Path>,
        next: FileId,
        now: Instant,
    ) {
        let Some(older) = self.tails.remove(&older) else { return };
        let between = self.came_between(&older, original, next, now);
        self.tails.insert(older.file, older);
        self.line_up_these(between, original, next, now);
    }

    /// To be read before `next`, which waits for the one before them.
    pub(super) fn line_up_these(
        &mut self,
        between: Vec<Found>,
        original: &Arc<Path>,
        next: FileId,
        now: Instant,
    ) {
        let Some(mut next) = self.tails.remove(&next) else { return };
        for found in between {
            if let Err(cause) = self.admit_unseen(found, original, next.lineage, Some(&mut next), now) {
                log::warn!("files: could not read what was rotated unseen: {}: {cause}", original.display());
            }
        }
        self.tails.insert(next.file, next);
    }

    /// Its generation is in the books from now on, under the name of the file that it was.
    fn admit_unseen(
        &mut self,
        mut found: Found,
        original: &Arc<Path>,
        lineage: u64,
        next: Option<&mut Tail>,
        now: Instant,
    ) -> io::Result<()> {
        let file = self.folders.open(found.file, &mut found.path)?;
        let mut head = read_head(&file)?;
        let form = form(&head);
        let file = match form {
            None => Some(file),
            Some(form) => {
                let mut unpacked = Unpacked::new(file, form);
                head = vec![0; HEAD_BYTES];
                let len = unpacked.read_at(&mut head, 0)?;
                head.truncate(len);
                unpacked.into_file()
            }
        };
        let source = &self.sources[found.source];
        let skip = file_options(source).is_some_and(|file| file.binary == Binary::Skip);
        if skip && not_text(&head).is_some() {
            return Ok(());
        }
        log::info!(
            "files: {} was rotated unseen: it is read before {}",
            found.path.display(),
            original.display()
        );
        let stream = self.outlet.open(Opening {
            source,
            generation: None,
            filename: Some(original),
            identity: Some(identity(found.file, Head::of(&head))),
            start: 0,
            lineage,
        });
        let mut tail = Tail::new(found, lineage, 0, now);
        (tail.form, tail.head, tail.stream) = (form, Head::of(&head), Some(stream));
        self.hold_found(&mut tail, file);
        self.put_before(tail, next, now);
        Ok(())
    }

    /// It may be deleted before its turn comes; but not with the last descriptor, which the one before it may need.
    fn hold_found(&mut self, tail: &mut Tail, file: Option<File>) {
        while self.open + 1 >= self.open_max && self.close_one() {}
        if let Some(file) = file.filter(|_| self.open + 1 < self.open_max) {
            self.hold(tail, file);
        }
    }

    /// Into the line, behind those of its lineage that are there, and before `next`.
    fn put_before(&mut self, mut tail: Box<Tail>, next: Option<&mut Tail>, now: Instant) {
        let file = tail.file;
        self.kin.add(&tail.path, file);
        tail.few.gone_since = Some(now);
        tail.few.until = (self.once && tail.form.is_none()).then_some(tail.size);
        if let Some(mut found) = self.tails.remove(&file) {
            self.close(&mut found); // it matches as well, and nothing was read of it
            tail.few.followers = std::mem::take(&mut found.few.followers);
            if self.newest.get(&found.lineage) == Some(&file) {
                self.newest.remove(&found.lineage);
            }
            (tail.few.gone_since, tail.queued) = (found.few.gone_since, found.queued);
        }
        match next {
            Some(next) => {
                tail.few.after = next.few.after.replace(file);
                // The generations of a lineage are numbered in their order.
                next.reserve(self.outlet.reserve());
            }
            None => {
                let older = self.newest.insert(tail.lineage, file);
                tail.few.after = older.filter(|older| *older != file && self.tails.contains_key(older));
            }
        }
        self.tails.insert(file, tail);
        self.newcomers.push(file);
        self.queue(file);
        self.meters.followed.set(self.tails.len() as i64);
    }
}
