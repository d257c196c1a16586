//! The files beside a log that may be what it was: renamed, copied aside, or packed; and what was rotated unseen.
//!
//! Here is what can be told from the folder and the bytes alone, for the monitor and for the audit. What becomes of it
//! says `files/missing.rs`.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::files::opening::open_for_reading;
use super::folder::{Beside, Folder};
use super::identity::{begins_with, goes_on_like, is_enough, read_head};
use super::names::{Sibling, oldest_first, rotated};
use super::packed::{Form, Survey, Unpacked, form};
use crate::durable::FileId;
use crate::ledger::Known;
use crate::order;

/// Files of the folder that are looked into at most, the newest first.
const CANDIDATES_MAX: usize = 64;

/// A file beside the one that it was rotated from.
pub(super) struct Rest {
    pub path: PathBuf,
    pub file: FileId,
    pub size: u64,
}

/// A file that has what was read of a generation.
pub(super) struct Content {
    /// Of what is in it; of a torn one as far as it can be read.
    pub size: u64,
    /// `None`: it is not packed.
    pub form: Option<Form>,
    /// Packed, and it ends too early: it is being written, or nobody will end it.
    pub torn: bool,
    /// What it was read from.
    pub file: Option<File>,
}

/// Files that may have the content of one that was at `original`, by their names; the newest first, and at
/// most [`CANDIDATES_MAX`]. `may_be`: nobody else has it.
pub(super) fn candidates(
    folder: &Folder,
    original: &Path,
    size_min: u64,
    may_be: impl Fn(FileId) -> bool,
) -> Vec<PathBuf> {
    let named = folder.named(|name| is_called_after(original, name));
    let mut candidates: Vec<_> = named
        .filter(|Beside { file, metadata, .. }| metadata.len() >= size_min && may_be(*file))
        .map(|Beside { path, metadata, .. }| (modified_ns(&metadata), path))
        .collect();
    order::sort_by(&mut candidates, |a, b| b.cmp(a));
    candidates.into_iter().take(CANDIDATES_MAX).map(|(_, path)| path).collect()
}

pub(super) fn is_named_after(original: &Path, copy: &Path) -> bool {
    let name = copy.file_name();
    original.parent() == copy.parent() && name.is_some_and(|name| is_called_after(original, name))
}

fn is_called_after(original: &Path, name: &OsStr) -> bool {
    let stem = original.file_stem().map(OsStr::as_encoded_bytes);
    stem.is_some_and(|stem| name.as_encoded_bytes().starts_with(stem))
}

/// Whether what was read of `known`, whose head is not empty, stands in this file. `go_on`: asked now and then, since
/// unpacking takes its time; if it says no the answer is `None`.
pub(super) fn content_of(known: &Known, file: File, go_on: &dyn Fn() -> bool) -> io::Result<Option<Content>> {
    let Some(head) = known.identity.map(|identity| identity.head) else { return Ok(None) };
    let begin = read_head(&file)?;
    let Some(form) = form(&begin) else {
        let size = file.metadata()?.len();
        let same = size >= known.position
            && begins_with(&begin, head)
            && goes_on_like(&file, head, known.before, known.position)?;
        return Ok(same.then_some(Content { size, form: None, torn: false, file: Some(file) }));
    };
    let mut content = Unpacked::new(file, form);
    let mut begin = vec![0; head.len as usize];
    let len = content.read_at(&mut begin, 0)?;
    if !begins_with(&begin[..len], head) {
        return Ok(None);
    }
    let survey = content.survey(known.position, go_on)?;
    Ok(survey.and_then(|survey| {
        let (size, torn) = (survey.size, survey.torn);
        let same = match known.before {
            // Too short to tell.
            _ if torn && size <= known.position => true,
            Some(_) => survey.stands_before(known.before),
            None => is_enough(head, known.position),
        };
        let file = content.into_file();
        (same && (torn || size >= known.position)).then_some(Content { size, form: Some(form), torn, file })
    }))
}

/// What is in a file, be it packed or not.
pub(super) fn look_into(path: &Path) -> io::Result<Survey> {
    let file = open_for_reading(path)?;
    let (head, size) = (read_head(&file)?, file.metadata()?.len());
    let survey = match form(&head) {
        None => None,
        Some(form) => Unpacked::new(file, form).survey(0, &|| true)?,
    };
    Ok(survey.unwrap_or(Survey { size, head, ..Survey::default() }))
}

/// What a file must be newer than to be unseen, by its name; and if the names do not tell, since when it must have been
/// changed, in nanoseconds since 1970.
#[derive(Clone, Copy)]
pub(super) enum After<'a> {
    /// The file that stands here, whose own time counts if it has one.
    Path(&'a Path, i64),
    /// This file, whatever it is called. If it has no such name, what is packed may be what became of it.
    File(FileId, i64),
    Time(i64),
}

/// What was rotated and nobody has read, the oldest first. `may_be`: nobody else has it.
pub(super) fn unseen(
    folder: &Folder,
    original: &Path,
    after: After<'_>,
    may_be: impl Fn(FileId) -> bool,
) -> Vec<Sibling<Rest>> {
    let Some(name) = original.file_name() else { return Vec::new() };
    let mut by_plain_name: BTreeMap<_, Sibling<Rest>> = BTreeMap::new();
    for Beside { path, file, metadata } in folder.rotated_from(name) {
        let Some(rotated) = path.file_name().and_then(rotated) else { continue };
        let modified_ns = modified_ns(&metadata);
        let is_plain = path.file_name() == Some(&*rotated.plain);
        let what = Rest { path, file, size: metadata.len() };
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
    let here = match after {
        After::Path(path, _) => plain_name(path)
            .and_then(|plain| siblings.iter().position(|sibling| sibling.rotated.plain == plain)),
        After::File(file, _) => siblings.iter().position(|sibling| sibling.what.file == file),
        After::Time(_) => None,
    };
    match here {
        Some(at) => drop(siblings.drain(..=at)),
        None => {
            let since_ns = match after {
                After::Path(path, otherwise) => fs::metadata(path).map_or(otherwise, |at| modified_ns(&at)),
                After::File(_, since_ns) | After::Time(since_ns) => since_ns,
            };
            let is_packed = |path: &Path| path.file_name() != plain_name(path).as_deref();
            let may_be_it = |path: &Path| matches!(after, After::File(..)) && is_packed(path);
            siblings.retain(|sibling| sibling.modified_ns > since_ns && !may_be_it(&sibling.what.path));
        }
    }
    siblings.retain(|Sibling { what, .. }| what.size > 0 && may_be(what.file));
    siblings
}

pub(super) fn modified_ns(metadata: &fs::Metadata) -> i64 {
    metadata.mtime().saturating_mul(1_000_000_000) + metadata.mtime_nsec()
}
