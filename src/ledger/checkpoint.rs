//! Two checkpoints on disk: whatever happens to one, the other one and the journal make up for it.
//!
//! A slot begins with a snapshot of everything; behind it the pages that have changed since are appended, frame by
//! frame. When those outgrow the snapshot, or the journal would have to wait for the other slot for too long, the
//! next snapshot goes to the other slot. So ten thousand files cost no more than those of them that move.
//!
//! ```text
//! checkpoint-0, checkpoint-1     header of 64 bytes, a frame that is a snapshot, frames that are changes
//! header     magic (32) | sequence of the snapshot, 0 if there is none (8) | salt (4) | zeros (16) | CRC-32 of that (4)
//! frame      length of the body (4) | sequence (8) | mark in the journal (8 + 4) | seal (4) | body, JSON
//! ```
//!
//! Numbers are little endian; each frame that is tried, in either slot, has a higher sequence than all before it. A seal is the CRC-32 of what
//! stands before it and of the body, begun with the seal before it, or with the salt, which is drawn for each snapshot. So what is
//! torn or flipped ends the usable part of a slot, and so does what an earlier use of it left behind.
//!
//! Always true: the slot that holds the newest frame is never written over. Both are allocated beyond what the next
//! snapshot needs, so that a full disk does not reach them. The agent never refuses to start because of one.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::Serialize;

use super::Mark;
use super::pieces::Frame;
use super::saved::{Changes, Saved};
use crate::disk::{Disk, DiskFile, Open, folder_of};
use crate::error::{Context, Error, Result};
use crate::order;

const MAGIC: &[u8; 32] = b"log-capturer checkpoint 2\n\0\0\0\0\0\0";

const HEADER_BYTES: usize = 64;

pub const FRAME_HEAD_BYTES: usize = 28;

/// What a slot has room for at least, and grows by: a hundred files and what becomes of them in some minutes.
const SLOT_BYTES: u64 = 256 * 1024;

/// How far the other slot may stay behind, in records of the journal, which is kept for so long: some 1 MiB. If the
/// snapshot is larger, as many as take twice its room.
const JOURNAL_RECORDS: u64 = 8 * 1024;

/// One of them, in bytes.
const JOURNAL_RECORD_BYTES: u64 = 128;

/// The two slots, and where the next frame goes.
pub struct Slots {
    disk: Arc<dyn Disk>,
    folder: PathBuf,
    /// Held open, so that nobody who takes the last descriptor keeps the state from being saved.
    files: [Option<Arc<dyn DiskFile>>; 2],
    /// What each holds, if it is whole.
    held: [Option<Held>; 2],
    /// The one that this life writes to.
    current: Option<usize>,
    /// Of the last frame that was tried: one that failed may stand there all the same.
    sequence: u64,
    /// The agent stops: a frame is made at once, whatever memory that takes.
    pub in_haste: bool,
}

/// The usable part of a slot.
#[derive(Clone, Copy, Debug)]
struct Held {
    /// Of its last frame.
    sequence: u64,
    seal: u32,
    mark: Mark,
    /// Where the snapshot ends, and where the next frame would begin.
    snapshot_end: u64,
    end: u64,
}

/// What stands in the slots.
#[derive(Debug, PartialEq)]
pub enum Left {
    /// There has never been a checkpoint here.
    Nothing,
    /// There was, and none is whole: the state is empty, but this is no first start, which would skip what stands in
    /// the files.
    Ruins,
    State(Box<Saved>),
}

/// How a slot looks.
enum Slot {
    Missing,
    /// Made, and never written.
    Blank,
    Whole(Held),
    Ruined(String),
}

impl Slots {
    /// Reads; writes nothing.
    pub fn open(disk: Arc<dyn Disk>, folder: &Path) -> (Slots, Left) {
        let mut slots = Slots {
            disk,
            folder: folder.to_owned(),
            files: [None, None],
            held: [None; 2],
            current: None,
            sequence: 0,
            in_haste: false,
        };
        let (mut was_there, mut newest) = (false, Vec::new());
        for number in 0..2 {
            match slots.scan(number) {
                Slot::Missing | Slot::Blank => {}
                Slot::Whole(held) => newest.push((held.sequence, number, held)),
                Slot::Ruined(why) => {
                    was_there = true;
                    log::error!("ledger: {} is not whole: {why}", slots.path(number).display());
                }
            }
        }
        order::sort_by_key(&mut newest, |(sequence, ..)| std::cmp::Reverse(*sequence));
        let mut left = None;
        for (sequence, number, held) in newest {
            was_there = true;
            slots.sequence = slots.sequence.max(sequence);
            slots.held[number] = Some(held);
            if left.is_none() {
                match slots.read(number, held) {
                    Ok(saved) => left = Some(saved),
                    Err(cause) => {
                        slots.held[number] = None;
                        log::error!("ledger: {}: {cause}", slots.path(number).display());
                    }
                }
            }
        }
        let left = match left {
            Some(saved) => Left::State(Box::new(saved)),
            None if was_there => Left::Ruins,
            None => Left::Nothing,
        };
        (slots, left)
    }

    fn path(&self, number: usize) -> PathBuf {
        self.folder.join(format!("checkpoint-{number}"))
    }

    /// How far the frames of a slot prove themselves.
    fn scan(&self, number: usize) -> Slot {
        let file = match self.disk.open(&self.path(number), Open::Existing) {
            Ok(file) => file,
            Err(cause) if cause.kind() == std::io::ErrorKind::NotFound => return Slot::Missing,
            Err(cause) => return Slot::Ruined(cause.to_string()),
        };
        let mut header = [0; HEADER_BYTES];
        let (first, salt) = match file.read_at(&mut header, 0).map(|read| (read, parse_header(&header))) {
            Ok((HEADER_BYTES, Some(header))) => header,
            Ok(_) => return Slot::Ruined("its header is not ours".into()),
            Err(cause) => return Slot::Ruined(cause.to_string()),
        };
        if first == 0 {
            return Slot::Blank;
        }
        let (mut held, mut body) = (None, Vec::new());
        let (mut at, mut sequence, mut seal) = (HEADER_BYTES as u64, first - 1, salt);
        while let Some(head) = read_frame(&*file, at, sequence, seal, &mut body) {
            let mark;
            (sequence, mark, seal) = head;
            at += (FRAME_HEAD_BYTES + body.len()) as u64;
            let snapshot_end = held.map_or(at, |held: Held| held.snapshot_end);
            held = Some(Held { sequence, seal, mark, snapshot_end, end: at });
        }
        held.map_or_else(|| Slot::Ruined("its snapshot is damaged".into()), Slot::Whole)
    }

    /// What the frames of a slot that was scanned come to.
    fn read(&self, number: usize, held: Held) -> Result<Saved> {
        let file =
            self.disk.open(&self.path(number), Open::Existing).context(|| "could not open it".into())?;
        let (mut saved, mut changes, mut at) = (None, Vec::new(), HEADER_BYTES as u64);
        while at < held.end {
            let mut head = [0; FRAME_HEAD_BYTES];
            let doing = || format!("could not read the frame at {at}");
            file.read_at(&mut head, at).context(doing)?;
            let mut body = vec![0; length_of(&head)];
            file.read_at(&mut body, at + FRAME_HEAD_BYTES as u64).context(doing)?;
            match &saved {
                None => saved = Some(serde_json::from_slice(&body).context(doing)?),
                Some(_) => changes.push(serde_json::from_slice(&body).context(doing)?),
            }
            at += (FRAME_HEAD_BYTES + body.len()) as u64;
        }
        let mut saved: Saved = saved.ok_or_else(|| Error::new("it has no frame"))?;
        saved.apply(changes);
        Ok(saved)
    }

    /// Of the newest checkpoint; `None`: there is none.
    pub fn mark(&self) -> Option<Mark> {
        self.held.iter().flatten().max_by_key(|held| held.sequence).map(|held| held.mark)
    }

    /// Both checkpoints hold the journal up to here.
    pub fn passed(&self) -> u64 {
        self.held.iter().map(|held| held.map_or(0, |held| held.mark.sequence)).min().unwrap_or(0)
    }

    /// Whether the next frame has to be a snapshot, which goes to the other slot: the changes outgrow the last one, or
    /// the journal has to be kept for too long. `mark`: of the next frame.
    pub fn wants_snapshot(&self, mark: Mark) -> bool {
        let Some(held) = self.current.and_then(|number| self.held[number]) else { return true };
        let snapshot = held.snapshot_end;
        let records = JOURNAL_RECORDS.max(2 * snapshot / JOURNAL_RECORD_BYTES);
        held.end - snapshot > snapshot.max(SLOT_BYTES / 2)
            || mark.sequence - self.passed().min(mark.sequence) > records
    }

    /// There is a snapshot of this life to add to.
    pub fn takes_changes(&self) -> bool {
        self.current.is_some_and(|number| self.held[number].is_some())
    }

    /// Everything, to the slot that does not hold the newest frame.
    pub fn write_snapshot(&mut self, saved: &Saved<impl Serialize>) -> Result<()> {
        let newest = (0..2).filter_map(|number| Some((self.held[number]?.sequence, number))).max();
        let number = newest.map_or(0, |(_, newest)| 1 - newest);
        let salt = fastrand::u32(..);
        self.sequence += 1;
        let sequence = self.sequence;
        let frame = Frame::new((sequence, saved.journal), salt, saved, self.in_haste)?;
        let (seal, end) = (frame.seal, HEADER_BYTES as u64 + frame.len());
        // Ruined from here on, until it is whole again.
        self.held[number] = None;
        let file = self.file(number, 2 * end + SLOT_BYTES)?;
        let doing = || format!("could not write {}", self.path(number).display());
        frame.write(&*file, 0, &header(sequence, salt)).context(doing)?;
        file.sync().context(doing)?;
        self.held[number] = Some(Held { sequence, seal, mark: saved.journal, snapshot_end: end, end });
        self.current = Some(number);
        // The other one will have to take as much; that there is no room for it now is said when it matters.
        if let Err(cause) = self.file(1 - number, 2 * end + SLOT_BYTES) {
            log::debug!("ledger: {cause}");
        }
        Ok(())
    }

    /// Behind the frames of this life. After an error the next one has to be a snapshot.
    pub fn write_changes(&mut self, changes: &Changes<impl Serialize>) -> Result<()> {
        let current = self.current.take().and_then(|number| Some((number, self.held[number]?)));
        let Some((number, held)) = current else { return Err(Error::new("there is no snapshot to add to")) };
        self.sequence += 1;
        let sequence = self.sequence;
        let frame = Frame::new((sequence, changes.journal), held.seal, changes, self.in_haste)?;
        let (seal, end) = (frame.seal, held.end + frame.len());
        let path = self.path(number);
        let doing = || format!("could not write {}", path.display());
        let Some(file) = self.open_file(number) else {
            self.held[number] = None;
            return Err(Error::new(format!("{} is gone", path.display())));
        };
        frame.write(&*file, held.end, &[]).context(doing)?;
        file.sync().context(doing)?;
        self.held[number] = Some(Held { sequence, seal, mark: changes.journal, end, ..held });
        self.current = Some(number);
        Ok(())
    }

    /// A slot with room for so many bytes, made if it is not there: on a disk that was full at the start, or for
    /// somebody who has deleted it meanwhile.
    fn file(&mut self, number: usize, room: u64) -> Result<Arc<dyn DiskFile>> {
        let path = self.path(number);
        let doing = || format!("could not make room for {}", path.display());
        let file = match self.open_file(number) {
            Some(file) => file,
            None => {
                self.disk.create_folder(&self.folder).context(doing)?;
                let file = self.disk.open(&path, Open::OrCreate).context(doing)?;
                if file.size().context(doing)? == 0 {
                    file.write_at(&header(0, 0), 0).context(doing)?;
                    self.disk.sync_folder(&self.folder).context(doing)?;
                    self.disk.sync_folder(folder_of(&self.folder)).context(doing)?;
                }
                self.files[number] = Some(file.clone());
                file
            }
        };
        let room = room.div_ceil(SLOT_BYTES) * SLOT_BYTES;
        if file.size().context(doing)? < room {
            // What is written next may fit all the same.
            if let Err(cause) = file.allocate(room) {
                log::debug!("ledger: {}: {cause}", doing());
            }
        }
        Ok(file)
    }
}

impl Slots {
    /// The one that is held open, if its name still leads to it.
    fn open_file(&self, number: usize) -> Option<Arc<dyn DiskFile>> {
        let file = self.files[number].as_ref()?;
        let there = self.disk.look(&self.path(number)).ok()?;
        (file.id().ok()? == there.id).then(|| file.clone())
    }
}

fn header(sequence: u64, salt: u32) -> [u8; HEADER_BYTES] {
    let mut header = [0; HEADER_BYTES];
    header[..32].copy_from_slice(MAGIC);
    header[32..40].copy_from_slice(&sequence.to_le_bytes());
    header[40..44].copy_from_slice(&salt.to_le_bytes());
    let sum = crc32fast::hash(&header[..HEADER_BYTES - 4]);
    header[HEADER_BYTES - 4..].copy_from_slice(&sum.to_le_bytes());
    header
}

/// The sequence of the snapshot, and the salt.
fn parse_header(bytes: &[u8; HEADER_BYTES]) -> Option<(u64, u32)> {
    let sequence = u64::from_le_bytes(bytes[32..40].try_into().ok()?);
    let salt = u32::from_le_bytes(bytes[40..44].try_into().ok()?);
    (*bytes == header(sequence, salt)).then_some((sequence, salt))
}

fn length_of(head: &[u8; FRAME_HEAD_BYTES]) -> usize {
    u32::from_le_bytes([head[0], head[1], head[2], head[3]]) as usize
}

/// The frame at `at`, if it goes on from the one before: its sequence, mark and seal; its body is in `body` then.
fn read_frame(
    file: &dyn DiskFile,
    at: u64,
    last: u64,
    before: u32,
    body: &mut Vec<u8>,
) -> Option<(u64, Mark, u32)> {
    let mut head = [0; FRAME_HEAD_BYTES];
    let size = file.size().ok()?;
    let whole = file.read_at(&mut head, at).ok()? == FRAME_HEAD_BYTES;
    let sequence = u64::from_le_bytes(head[4..12].try_into().ok()?);
    let length = length_of(&head);
    if !whole || sequence <= last || at + (FRAME_HEAD_BYTES + length) as u64 > size {
        return None;
    }
    body.resize(length, 0);
    let whole = file.read_at(body, at + FRAME_HEAD_BYTES as u64).ok()? == length;
    let mark = Mark {
        sequence: u64::from_le_bytes(head[12..20].try_into().ok()?),
        seal: u32::from_le_bytes(head[20..24].try_into().ok()?),
    };
    let seal = u32::from_le_bytes(head[24..].try_into().ok()?);
    (whole && seal == seal_of(before, &head[..24], body)).then_some((sequence, mark, seal))
}

/// Each proves all that led to it.
pub fn seal_of(before: u32, head: &[u8], body: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new_with_initial(before);
    hasher.update(head);
    hasher.update(body);
    hasher.finalize()
}

#[cfg(test)]
mod tests;
