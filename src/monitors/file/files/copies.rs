//! Copy and truncate: a log that is copied aside and then emptied in place.
//!
//! What was not read of it by then stands in the copy beside it, which is told by its name (`app.log.1` and
//! `app-20260131.log` after `app.log`) and its content: it begins as the file did, and before our position stands
//! what we have read there. The generation goes on in the copy, so a copy that
//! matches a pattern as well is not read twice. It may be found before the file is emptied: a new file that may
//! be a copy waits for that, for a moment.
//!
//! What was written between the end of the copying and the truncation is in no file any more.

use std::fs::{self, File};
use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

use super::super::beside::{candidates, is_named_after};
use super::super::folder::Folder;
use super::super::identity::{begins_with, goes_on_like, identity, read_head};
use super::super::sweep::Found;
use super::super::tail::Tail;
use super::Files;
use super::opening::open_for_reading;
use super::polls::poll_interval;
use crate::durable::FileId;
use crate::ledger::Head;

/// A folder that is being rotated is looked through again: a name leads to another file a moment later.
const LOOKS_MAX: usize = 3;

/// A file is emptied as soon as its copy is whole; and we hear of it within two polls.
const TRUNCATION_FOLLOWS: Duration = Duration::from_secs(1);

/// And if it grows for longer than this, it is no copy but a log that says the same as another.
const COPYING_MAX: Duration = Duration::from_secs(60);

impl Files {
    /// The file was emptied: its generation goes on in its copy, if there is one. `seen`: its size before.
    pub(super) fn go_on_in_copy(&mut self, tail: &mut Tail, seen: u64, now: Instant) {
        if self.open >= self.open_max && !self.close_one() {
            return;
        }
        let Some((mut file, metadata)) = self.find_copy(tail) else { return };
        let Some(stream) = tail.stream.take() else { return };
        let id = FileId::of(&metadata);
        // Its place is where the lines came from; a sweep tells if the copy matches too.
        let found = Found {
            path: tail.path.to_path_buf(),
            file: id,
            size: metadata.len(),
            source: tail.source(),
            heard: false,
        };
        self.kin.add(&tail.path, id);
        let mut copy = Tail::new(found, tail.lineage, 0, now);
        self.outlet.identify(&stream, identity(id, tail.head));
        copy.scanned = stream.position();
        copy.stream = Some(stream);
        (copy.head, copy.before, copy.few.seen, copy.is_copy) = (tail.head, tail.before, seen, true);
        copy.few.until = self.once.then_some(metadata.len());
        copy.few.gone_since = Some(now);
        copy.few.after = tail.few.after.take();
        if let Some(mut found) = self.tails.remove(&id) {
            // It has waited for this, or it is the copy of the generation before, and overwritten.
            let seen = found.size;
            self.begin_anew(&mut found, seen, "overwritten by another copy");
            file = file.or_else(|| self.take_descriptor(&mut found));
            self.close(&mut found);
            (copy.few.followers, copy.queued) = (std::mem::take(&mut found.few.followers), found.queued);
        }
        if let Some(file) = file {
            self.hold(&mut copy, file);
        }
        tail.few.after = Some(id);
        self.tails.insert(id, copy);
        self.queue(id);
        self.meters.followed.set(self.tails.len() as i64);
    }

    /// Without the file if one of the tails holds it.
    fn find_copy(&mut self, tail: &Tail) -> Option<(Option<File>, fs::Metadata)> {
        if tail.head.len == 0 {
            return None;
        }
        let waiting = self.tails.values().filter(|other| {
            // It may have been renamed since: its content has to do.
            other.stream.is_none() && other.path.parent() == tail.path.parent()
        });
        let mut held = waiting.filter_map(|other| other.descriptor.as_ref());
        // What cannot be read is no copy for us.
        if let Some(metadata) = held.find_map(|file| is_copy(tail, file).ok()?) {
            return Some((None, metadata));
        }
        let folder = tail.path.parent()?;
        let copy = self.folders.last(folder).and_then(|folder| self.find_copy_in(&folder, tail));
        copy.or_else(|| {
            (0..LOOKS_MAX).find_map(|_| {
                let now = self.outlet.clock().now();
                let folder = self.folders.since(now, folder)?;
                self.find_copy_in(&folder, tail)
            })
        })
    }

    fn find_copy_in(&self, folder: &Folder, tail: &Tail) -> Option<(Option<File>, fs::Metadata)> {
        let candidates = candidates(folder, &tail.path, tail.position(), |id| !self.is_followed(id));
        candidates.iter().find_map(|path| {
            let file = open_for_reading(path).ok()?;
            let metadata = is_copy(tail, &file).ok()??;
            // Asked of what was opened: the name may lead elsewhere by now.
            self.is_free(FileId::of(&metadata)).then_some((Some(file), metadata))
        })
    }

    /// Nobody reads it, nor is it ours.
    pub(super) fn is_free(&self, id: FileId) -> bool {
        !self.is_followed(id) && !self.own.contains(id)
    }

    /// Something was read of what is in it now: it is no copy that waits for its original.
    pub(super) fn is_followed(&self, id: FileId) -> bool {
        self.tails
            .get(&id)
            .is_some_and(|tail| tail.stream.is_some() && !(tail.is_copy && is_overwritten(tail)))
    }

    /// A file that begins like one beside it and holds all that we have read of that: it may be a copy of it.
    /// When it was looked at long enough it is not.
    pub(super) fn may_be_copy(&mut self, tail: &Tail, file: &File, head: &[u8], now: Instant) -> bool {
        let poll = poll_interval(&self.sources[tail.source()]);
        let until =
            (tail.changed() + TRUNCATION_FOLLOWS + 2 * poll).min(Instant::from(tail.since) + COPYING_MAX);
        if self.once || !tail.is_late || tail.deleted || now >= until {
            return false;
        }
        // Nearly all heads are equally long, and hashing them is what takes time.
        let mut begin = Head::of(head);
        let all = self.tails.values().map(|other| (&*other.path, other.file));
        let kin = self.kin.of(&tail.path, now, all);
        kin.iter().filter_map(|file| self.tails.get(file)).any(|other| {
            if other.deleted || !is_named_after(&other.path, &tail.path) {
                return false;
            }
            let len = other.head.len as usize;
            if other.stream.is_some() && 0 < len && len <= head.len() {
                if begin.len != other.head.len {
                    begin = Head::of(&head[..len]);
                }
                // One that is still being written has not come so far.
                let here = || tail.size < other.position() || has_read_of(other, file).unwrap_or(false);
                if begin == other.head && here() {
                    return true;
                }
            }
            // Nothing was read of it since it was made, or rewritten, or the copy is just being written: then the
            // bytes themselves tell.
            let original = other.descriptor.as_ref().filter(|file| {
                let looks_like = |metadata| other.looks_like(&metadata);
                other.stream.is_none() || head.len() < len || !file.metadata().is_ok_and(looks_like)
            });
            original.and_then(|file| read_head(file).ok()).is_some_and(|original| {
                let both = original.len().min(head.len());
                both > 0 && original[..both] == head[..both]
            })
        })
    }
}

/// Many make each copy under the name of the last, and in its file.
fn is_overwritten(copy: &Tail) -> bool {
    let size = copy.descriptor.as_ref().and_then(|file| file.metadata().ok()).map(|metadata| metadata.len());
    size.is_some_and(|size| size < copy.position()) || copy.was_rewritten()
}

/// Whether a copy of what was read of it stands here. One that cannot be looked into may be.
pub(super) fn is_copy_at(tail: &Tail, path: &Path) -> bool {
    open_for_reading(path).and_then(|file| is_copy(tail, &file)).map_or(true, |copy| copy.is_some())
}

fn is_copy(tail: &Tail, file: &File) -> io::Result<Option<fs::Metadata>> {
    let metadata = file.metadata()?;
    let same = metadata.is_file()
        && FileId::of(&metadata) != tail.file
        && metadata.len() >= tail.position()
        && begins_with(&read_head(file)?, tail.head)
        && has_read_of(tail, file)?;
    Ok(same.then_some(metadata))
}

/// Whether what `tail` has read before its position stands there in `file` as well.
fn has_read_of(tail: &Tail, file: &File) -> io::Result<bool> {
    goes_on_like(file, tail.head, tail.before, tail.position())
}
