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

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use super::super::discovery::Found;
use super::super::identity::{begins_with, goes_on_like, identity, is_enough, not_text, read_head};
use super::super::names::{Sibling, oldest_first, rotated};
use super::super::packed::{Form, Unpacked, form};
use super::super::tail::Tail;
use super::opening::open_for_reading;
use super::{Files, file_options};
use crate::durable::FileId;
use crate::ledger::{Head, Known};
use crate::monitors::{Binary, Opening};
use crate::tasks::Task;

/// Where the content of a generation stands now.
struct Place {
    /// Its size is that of the content.
    found: Found,
    form: Option<Form>,
}

/// A file beside the one that it was rotated from.
struct Rest {
    path: PathBuf,
    file: FileId,
    size: u64,
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
            line.sort_by_key(|(known, _)| known.generation);
            let newest = line.last().map(|(known, _)| known.generation);
            for (known, found) in line {
                let is_newest = newest == Some(known.generation);
                if let Some(found) = found {
                    let (path, file) = (found.path.clone(), found.file);
                    self.admit(found, now);
                    self.tails.entry(file).and_modify(|tail| tail.gone_since = Some(now));
                    if is_newest {
                        self.line_up_unseen(&known, Some(&path), None, now);
                    }
                } else {
                    self.line_up_one(known, is_newest, "deleted while the agent was down", None, task);
                }
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
        let named: Vec<_> = others.iter().map(|known| (known.lineage, known.generation)).collect();
        for known in others {
            let newest =
                named.iter().filter(|(lineage, _)| *lineage == known.lineage).map(|(_, number)| number).max();
            let is_newest = newest == Some(&known.generation);
            let next = next.as_deref_mut().filter(|next| next.lineage == known.lineage);
            self.line_up_one(known, is_newest, why, next, task);
        }
    }

    fn line_up_one(
        &mut self,
        known: Known,
        is_newest: bool,
        why: &str,
        mut next: Option<&mut Tail>,
        task: &Task,
    ) {
        let now = task.now();
        let path = known.filename.as_deref().unwrap_or(Path::new(""));
        let position = known.position;
        let Some(place) = self.locate(&known, task) else {
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
        self.put_before(tail, next.as_deref_mut(), now);
        if is_newest {
            self.line_up_unseen(&known, Some(&at), next, now);
        }
    }

    /// What has the content of this generation, as far as it was read, beside where it was.
    fn locate(&self, known: &Known, task: &Task) -> Option<Place> {
        let head = known.identity?.head;
        let source = self.source_of(known)?;
        if head.len == 0 {
            return None;
        }
        // A generation can be there twice for a moment: the plain file is the whole one.
        let mut packed = None;
        for path in self.candidates(known.filename.as_deref()?, 0) {
            task.beat();
            match self.has_content_of(known, head, &path, task) {
                Ok(Some((file, size, form))) => {
                    let place = Place { found: Found { path, file, size, source, heard: false }, form };
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
        head: Head,
        path: &Path,
        task: &Task,
    ) -> io::Result<Option<(FileId, u64, Option<Form>)>> {
        let file = Arc::new(open_for_reading(path)?);
        let metadata = file.metadata()?;
        let (id, size) = (FileId::of(&metadata), metadata.len());
        if !metadata.is_file() || !self.is_free(id) || self.not_met.perhaps(id).is_some() {
            return Ok(None);
        }
        let begin = read_head(&file)?;
        let Some(form) = form(&begin) else {
            let same = size >= known.position
                && begins_with(&begin, head)
                && goes_on_like(&file, head, known.before, known.position)?;
            return Ok(same.then_some((id, size, None)));
        };
        let mut content = Unpacked::new(file, form);
        let mut begin = vec![0; head.len as usize];
        let len = content.read_at(&mut begin, 0)?;
        if !begins_with(&begin[..len], head) {
            return Ok(None);
        }
        let survey = content.survey(known.position, &|| self.goes_on(task))?;
        Ok(survey.and_then(|survey| {
            if survey.torn && survey.size <= known.position {
                // Being written, as far as we can tell: at least one byte is to come.
                return Some((id, known.position + 1, Some(form)));
            }
            let same = match known.before {
                Some(_) => survey.stands_before(known.before),
                None => is_enough(head, known.position),
            };
            (same && survey.size >= known.position).then_some((id, survey.size, Some(form)))
        }))
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
        let followed = |tail: &Box<Tail>| {
            let generation = tail.stream.as_ref().map(|stream| stream.generation());
            tail.lineage == known.lineage
                && generation.is_some_and(|generation| generation > known.generation)
        };
        if self.not_met.all().any(newer) || self.tails.values().any(followed) {
            return;
        }
        let Some((source, original)) = self.source_of(known).zip(known.filename.as_ref()) else { return };
        for sibling in self.unseen(original, place) {
            let Rest { path, file, size } = sibling.what;
            let found = Found { path, file, size, source, heard: false };
            if let Err(cause) = self.admit_unseen(found, original, known.lineage, next.as_deref_mut(), now) {
                log::warn!("files: could not read what was rotated unseen: {}: {cause}", original.display());
            }
        }
    }

    /// The oldest first. `place`: those that are newer than what stands there.
    fn unseen(&self, original: &Path, place: Option<&Path>) -> Vec<Sibling<Rest>> {
        let Some((folder, name)) = original.parent().zip(original.file_name()) else { return Vec::new() };
        let mut by_plain_name: BTreeMap<_, Sibling<Rest>> = BTreeMap::new();
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            let (entry_name, path) = (entry.file_name(), entry.path());
            let Some(rotated) = rotated(&entry_name).filter(|rotated| rotated.original == name) else {
                continue;
            };
            let Ok(metadata) = entry.metadata() else { continue }; // gone again
            if !metadata.is_file() {
                continue;
            }
            let modified_ns = metadata.mtime().saturating_mul(1_000_000_000) + metadata.mtime_nsec();
            let what = Rest { path, file: FileId::of(&metadata), size: metadata.len() };
            let is_plain = rotated.plain == entry_name;
            let plain = rotated.plain.clone();
            let sibling = Sibling { rotated, modified_ns, what };
            if is_plain {
                by_plain_name.insert(plain, sibling);
            } else {
                by_plain_name.entry(plain).or_insert(sibling);
            }
        }
        let mut siblings: Vec<Sibling<Rest>> = by_plain_name.into_values().collect();
        oldest_first(&mut siblings);
        let plain_name = |path: &Path| path.file_name().and_then(rotated).map(|rotated| rotated.plain);
        let here = place.and_then(plain_name);
        match siblings.iter().position(|sibling| here.as_deref() == Some(sibling.rotated.plain.as_os_str())) {
            Some(at) => drop(siblings.drain(..=at)),
            None => {
                let since_ns = match place.map(fs::metadata) {
                    Some(Ok(at)) => at.mtime().saturating_mul(1_000_000_000) + at.mtime_nsec(),
                    _ => self.last_stamp_ns,
                };
                siblings.retain(|sibling| sibling.modified_ns > since_ns);
            }
        }
        siblings.retain(|Sibling { what, .. }| {
            what.size > 0 && self.is_free(what.file) && self.not_met.perhaps(what.file).is_none()
        });
        siblings
    }

    /// Its generation is in the books from now on, under the name of the file that it was.
    fn admit_unseen(
        &mut self,
        found: Found,
        original: &Arc<Path>,
        lineage: u64,
        next: Option<&mut Tail>,
        now: Instant,
    ) -> io::Result<()> {
        let file = Arc::new(open_for_reading(&found.path)?);
        let mut head = read_head(&file)?;
        let form = form(&head);
        if let Some(form) = form {
            let mut content = vec![0; super::super::identity::HEAD_BYTES];
            let len = Unpacked::new(file, form).read_at(&mut content, 0)?;
            content.truncate(len);
            head = content;
        }
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
        self.put_before(tail, next, now);
        Ok(())
    }

    /// Into the line, behind those of its lineage that are there, and before `next`.
    fn put_before(&mut self, mut tail: Box<Tail>, next: Option<&mut Tail>, now: Instant) {
        let file = tail.file;
        tail.gone_since = Some(now);
        tail.until = (self.once && tail.form.is_none()).then_some(tail.size);
        if let Some(mut found) = self.tails.remove(&file) {
            self.close(&mut found); // it matches as well, and nothing was read of it
            tail.followers = std::mem::take(&mut found.followers);
            if self.newest.get(&found.lineage) == Some(&file) {
                self.newest.remove(&found.lineage);
            }
            (tail.gone_since, tail.queued) = (found.gone_since, found.queued);
        }
        match next {
            Some(next) => {
                tail.after = next.after.replace(file);
                // The generations of a lineage are numbered in their order.
                next.generation = Some(self.outlet.reserve());
            }
            None => {
                let older = self.newest.insert(tail.lineage, file);
                tail.after = older.filter(|older| *older != file && self.tails.contains_key(older));
            }
        }
        self.tails.insert(file, tail);
        self.newcomers.push(file);
        self.queue(file);
        self.meters.followed.set(self.tails.len() as i64);
    }
}
