//! A file of ours, and what was written to it since a sync last succeeded.
//!
//! A sync that fails may have dropped what it could not write and called it clean: it can still be read, perhaps, and
//! the next sync succeeds without it. So after a failure nothing is believed before it was **written again**: read
//! back, compared with what was written, put in its place once more, and synced. Until then nothing more is written,
//! so that what has to be written again stays little. What cannot be read back as it was is lost, and no checkpoint
//! that relies on it may ever be written ([`super::Unsynced::take_lost`]).
//!
//! Always true: what was written stays noted until a sync has succeeded that began after it. What is written over, or
//! behind a cut, is nobody's concern any more.
//!
//! Two locks are held during input and output here, against the rule of the house, and each by those alone who would
//! wait for the same disk anyway: `changing` is contended only after a sync has failed, and `syncing` only if two
//! threads sync one file at once, of which the kernel would tell one alone that it failed.

use std::fmt;
use std::io;
use std::ops::Range;
use std::sync::Arc;

use crc32fast::Hasher;
use parking_lot::Mutex;

use crate::disk::{DiskFile, Durable, FileId, Paged, Seen};

/// Read back and written again at once, in bytes.
const AGAIN_BYTES: usize = 64 * 1024;

/// Beyond so many pieces those that touch become one: what was written last may still be cut off, the others not.
const PIECES_MAX: usize = 128;
const PIECES_APART: usize = 32;

pub struct Written {
    file: Arc<dyn DiskFile>,
    pieces: Mutex<Pieces>,
    changing: Mutex<()>,
    syncing: Mutex<()>,
}

/// What a sync that failed has cost: bytes that cannot be read back as they were written.
#[derive(Debug)]
pub struct Lost(String);

impl fmt::Display for Lost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Lost {}

fn lost(what: impl Into<String>) -> io::Error {
    io::Error::other(Lost(what.into()))
}

#[derive(Default)]
struct Pieces {
    /// Rises with each piece.
    turn: u64,
    /// Rising; none over another. A list, since nearly all are added at its end, which takes no memory each time.
    known: Vec<Piece>,
    /// The turn of the last one that was written past us.
    unseen: Option<u64>,
    /// The last sync has failed.
    in_doubt: bool,
}

#[derive(Clone, Copy)]
struct Piece {
    start: u64,
    end: u64,
    /// `None`: a part of what it was summed up of was cut off.
    sum: Option<u32>,
    turn: u64,
}

impl Written {
    pub fn new(file: Arc<dyn DiskFile>) -> Arc<Written> {
        Arc::new(Written {
            file,
            pieces: Mutex::default(),
            changing: Mutex::default(),
            syncing: Mutex::default(),
        })
    }

    /// One in which an earlier life has written what is relied on now.
    pub fn found(file: Arc<dyn DiskFile>) -> Arc<Written> {
        let found = Written::new(file);
        found.wrote_unseen();
        found
    }

    /// Something was written to the file by another way: nobody can compare it, so a sync that fails has lost it.
    pub fn wrote_unseen(&self) {
        let mut pieces = self.pieces.lock();
        pieces.turn += 1;
        pieces.unseen = Some(pieces.turn);
    }

    /// A sync has failed, and none has succeeded since: nothing more can be written.
    pub fn is_in_doubt(&self) -> bool {
        self.pieces.lock().in_doubt
    }

    /// What is compared after a sync has failed.
    pub fn sum_of(bytes: &[u8]) -> u32 {
        crc32fast::hash(bytes)
    }

    /// [`DiskFile::write_at`] for those who have the sum of the bytes already.
    pub fn write_summed(&self, bytes: &[u8], offset: u64, sum: u32) -> io::Result<()> {
        self.write(offset..offset + bytes.len() as u64, sum, |file| file.write_at(bytes, offset))
    }

    /// [`DiskFile::write_direct`], for the same.
    pub fn write_direct_summed(&self, paged: Paged<'_>, sum: u32) -> io::Result<bool> {
        let end = paged.offset + paged.bytes.len() as u64;
        self.write(paged.offset..end, sum, |file| file.write_direct(paged))
    }

    fn write<T>(
        &self,
        range: Range<u64>,
        sum: u32,
        write: impl FnOnce(&dyn DiskFile) -> io::Result<T>,
    ) -> io::Result<T> {
        let _still = self.changing.lock();
        if self.is_in_doubt() {
            return Err(io::Error::other("the disk did not keep what was written before, which goes first"));
        }
        let written = write(&*self.file);
        let mut pieces = self.pieces.lock();
        pieces.forget(range.start, range.end);
        if written.is_ok() {
            pieces.add(range.start, range.end, sum);
        }
        written
    }

    /// Everything that was written since a sync last succeeded. Nothing of it is believed to have reached the disk.
    fn write_again(&self) -> io::Result<()> {
        let _still = self.changing.lock();
        let (known, unseen) = {
            let pieces = self.pieces.lock();
            (pieces.known.clone(), pieces.unseen)
        };
        if self.file.seen()?.links == 0 {
            return Ok(()); // it was deleted: nobody can miss what is in it
        }
        if unseen.is_some() {
            return Err(lost("what was written before a sync failed cannot be read back"));
        }
        let (place, mut bytes) = (self.file.in_place()?, Vec::new());
        for Piece { start, end, sum, .. } in known {
            let (mut at, mut hasher) = (start, Hasher::new());
            while at < end {
                bytes.resize(AGAIN_BYTES.min((end - at) as usize), 0);
                let read = place.read_at(&mut bytes, at)?;
                if read < bytes.len() {
                    break;
                }
                hasher.update(&bytes);
                place.write_at(&bytes, at)?; // if it is not what it was, this changes nothing
                at += read as u64;
            }
            if at < end || sum != Some(hasher.finalize()) {
                return Err(lost(format!(
                    "the {} bytes from {start} on are not what was written before a sync failed",
                    end - start
                )));
            }
        }
        Ok(())
    }
}

impl Durable for Written {
    /// After one that failed: of what was written again. An error that is [`Lost`] stays one.
    fn sync(&self) -> io::Result<()> {
        let _alone = self.syncing.lock();
        if self.is_in_doubt() {
            self.write_again()?;
        }
        let upto = self.pieces.lock().turn;
        let synced = self.file.sync();
        let mut pieces = self.pieces.lock();
        pieces.in_doubt = synced.is_err();
        if synced.is_ok() {
            pieces.known.retain(|piece| piece.turn > upto);
            pieces.unseen = pieces.unseen.filter(|turn| *turn > upto);
        }
        synced
    }
}

impl DiskFile for Written {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        self.file.read_at(buffer, offset)
    }

    /// At its end, for a file that is only appended to. Refused while the disk has to take again what it had before.
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.write_summed(bytes, offset, Written::sum_of(bytes))
    }

    fn write_direct(&self, paged: Paged<'_>) -> io::Result<bool> {
        self.write_direct_summed(paged, Written::sum_of(paged.bytes))
    }

    fn size(&self) -> io::Result<u64> {
        self.file.size()
    }

    fn set_size(&self, size: u64) -> io::Result<()> {
        let _still = self.changing.lock();
        self.file.set_size(size)?;
        self.pieces.lock().cut(size);
        Ok(())
    }

    fn allocate(&self, size: u64) -> io::Result<()> {
        self.file.allocate(size)
    }

    fn in_place(&self) -> io::Result<Arc<dyn DiskFile>> {
        self.file.in_place()
    }

    fn id(&self) -> io::Result<FileId> {
        self.file.id()
    }

    fn seen(&self) -> io::Result<Seen> {
        self.file.seen()
    }
}

impl Pieces {
    /// All that reach into this range.
    fn forget(&mut self, start: u64, end: u64) {
        let first = self.known.partition_point(|piece| piece.end <= start);
        let over = self.known[first..].partition_point(|piece| piece.start < end);
        self.known.drain(first..first + over);
    }

    fn add(&mut self, start: u64, end: u64, sum: u32) {
        if start < end {
            self.turn += 1;
            let at = self.known.partition_point(|piece| piece.start < start);
            self.known.insert(at, Piece { start, end, sum: Some(sum), turn: self.turn });
            if self.known.len() > PIECES_MAX {
                self.join();
            }
        }
    }

    /// All but the last ones, where they touch.
    fn join(&mut self) {
        let apart = self.known.len() - PIECES_APART;
        let mut at = 0;
        self.known.dedup_by(|piece, last| {
            at += 1;
            let joined = at < apart && last.end == piece.start;
            if joined {
                let sum_of =
                    |piece: &Piece| Some(Hasher::new_with_initial_len(piece.sum?, piece.end - piece.start));
                last.sum = sum_of(last).zip(sum_of(piece)).map(|(mut sum, next)| {
                    sum.combine(&next);
                    sum.finalize()
                });
                (last.end, last.turn) = (piece.end, last.turn.max(piece.turn));
            }
            joined
        });
    }

    fn cut(&mut self, size: u64) {
        self.known.truncate(self.known.partition_point(|piece| piece.start < size));
        if let Some(last) = self.known.last_mut().filter(|last| last.end > size) {
            (last.end, last.sum) = (size, None);
        }
    }
}
