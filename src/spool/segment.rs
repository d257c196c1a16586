//! Segments: the files of a spool, each a header and frames behind each other. Who writes which, and when one
//! goes, is decided in `mod.rs`.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::frame::{self, HEADER_BYTES, Header};
use crate::ack::Count;
use crate::disk::{Disk, DiskFile, Open};
use crate::durable::Written;
use crate::order;

/// `lcspool` and the version of the format.
const MAGIC: u64 = u64::from_le_bytes(*b"lcspool\x01");

pub const SEGMENT_HEADER_BYTES: usize = 64;
pub const FIRST_FRAME: u64 = SEGMENT_HEADER_BYTES as u64;

const PREFIX: &str = "segment-";

#[derive(Clone, Debug)]
pub struct Segment {
    pub number: u64,
    pub path: PathBuf,
    pub salt: u32,
    /// Of its first frame, whether it is there or not.
    pub sequence: u64,
    /// All lines and bytes that were put into the spool before it.
    pub before: Count,
    /// Behind its last frame.
    pub end: u64,
    /// How many checkpoints there were when its last frame was written, or found at the start.
    pub ended: Option<u64>,
    /// And when its last frame was answered for.
    pub answered: Option<u64>,
    /// No sink ever has it: nothing has to be synced before it goes.
    pub dropped: bool,
}

impl Segment {
    /// Writes the header of a new file.
    pub fn create(&self, disk: &dyn Disk) -> io::Result<Arc<Written>> {
        let file = Written::new(disk.open(&self.path, Open::OrCreate)?);
        file.set_size(0)?; // of an attempt that failed
        file.write_at(&self.encode(), 0)?;
        Ok(file)
    }

    fn found(number: u64, path: PathBuf, salt: u32, sequence: u64, before: Count, end: u64) -> Segment {
        Segment { number, path, salt, sequence, before, end, ended: None, answered: None, dropped: false }
    }

    fn encode(&self) -> Vec<u8> {
        let Count { lines, bytes: before } = self.before;
        let mut bytes = vec![0; 4];
        bytes.extend_from_slice(&self.salt.to_le_bytes());
        for word in [MAGIC, self.number, self.sequence, lines, before, 0, 0] {
            bytes.extend_from_slice(&word.to_le_bytes());
        }
        let crc = crc32fast::hash(&bytes[4..]);
        bytes[..4].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    /// The segment at `path`, as far as its file tells; `None`: it has neither a header nor a first frame.
    pub fn open(disk: &dyn Disk, path: &Path, number: u64) -> io::Result<Option<Segment>> {
        let file = disk.open(path, Open::Existing)?;
        let end = file.size()?;
        let mut bytes = [0; SEGMENT_HEADER_BYTES];
        if file.read_at(&mut bytes, 0)? < bytes.len() {
            return Ok(None);
        }
        let path = path.to_owned();
        let salt = u32::from_le_bytes(bytes[4..8].try_into().expect("four bytes"));
        let word = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"));
        let crc = u32::from_le_bytes(bytes[..4].try_into().expect("four bytes"));
        if crc == crc32fast::hash(&bytes[4..]) && word(8) == MAGIC && word(16) == number {
            let before = Count { lines: word(32), bytes: word(40) };
            return Ok(Some(Segment::found(number, path, salt, word(24), before, end)));
        }
        // A frame begins with the salt, so the first one tells all of it again.
        let mut bytes = [0; HEADER_BYTES];
        if file.read_at(&mut bytes, FIRST_FRAME)? < bytes.len() {
            return Ok(None);
        }
        let salt = u32::from_le_bytes(bytes[..4].try_into().expect("four bytes"));
        Ok(Header::decode(&bytes, salt)
            .map(|first| Segment::found(number, path, salt, first.sequence, first.before, end)))
    }

    /// The header that stands at `at`, if a whole frame of it fits in front of the end.
    pub fn header(&self, file: &dyn DiskFile, at: u64) -> io::Result<Option<Header>> {
        let mut bytes = [0; HEADER_BYTES];
        if self.end < at + HEADER_BYTES as u64 || file.read_at(&mut bytes, at)? < bytes.len() {
            return Ok(None);
        }
        Ok(Header::decode(&bytes, self.salt).filter(|header| {
            at.checked_add(header.len()).is_some_and(|end| end <= self.end)
                && header.sequence >= self.sequence
        }))
    }

    /// Where the next frame begins at or behind `from`, whatever stands in between; the end if there is none.
    pub fn find(&self, file: &dyn DiskFile, from: u64, scratch: &mut Vec<u8>) -> io::Result<u64> {
        let salt = self.salt.to_le_bytes();
        let mut at = from;
        while at < self.end {
            scratch.resize(frame::SCRATCH_BYTES, 0);
            let read = file.read_at(scratch, at)?;
            for found in memchr::memmem::find_iter(&scratch[..read], &salt) {
                let place = at + found as u64;
                if self.header(file, place)?.is_some() {
                    return Ok(place);
                }
            }
            if read < scratch.len() {
                break;
            }
            at += (read - (salt.len() - 1)) as u64; // one that stands across the edge
        }
        Ok(self.end)
    }

    /// A sync of the last life has failed: what can be read may not stand on the disk, and a sync would not know.
    pub fn write_again(&self, file: &dyn DiskFile, scratch: &mut Vec<u8>) -> io::Result<()> {
        let mut at = 0;
        while at < self.end {
            scratch.resize(frame::SCRATCH_BYTES.min((self.end - at) as usize), 0);
            file.read_at(scratch, at)?;
            file.write_at(scratch, at)?;
            at += scratch.len() as u64;
        }
        Ok(())
    }

    /// Goes over its frames by their headers alone, past what is damaged.
    pub fn headers(
        &self,
        disk: &dyn Disk,
        scratch: &mut Vec<u8>,
        mut each: impl FnMut(&dyn DiskFile, u64, Header) -> io::Result<()>,
    ) -> io::Result<()> {
        let file = disk.open(&self.path, Open::Existing)?;
        let mut at = FIRST_FRAME;
        while at < self.end {
            at = match self.header(&*file, at)? {
                Some(header) => {
                    let next = at + header.len();
                    each(&*file, at, header)?;
                    next
                }
                None => self.find(&*file, at + 1, scratch)?,
            };
        }
        Ok(())
    }

    /// The same, and tells of each whether its body is whole. Returns where the last whole one ends: behind it are
    /// torn or damaged ones, or nothing.
    pub fn scan(
        &self,
        disk: &dyn Disk,
        scratch: &mut Vec<u8>,
        mut each: impl FnMut(Header, bool),
    ) -> io::Result<u64> {
        let (mut whole_to, mut body) = (FIRST_FRAME, Vec::new());
        self.headers(disk, scratch, |file, at, header| {
            let next = at + header.len();
            let is_whole = frame::is_whole(file, at, &header, &mut body)?;
            each(header, is_whole);
            if is_whole {
                whole_to = next;
            }
            Ok(())
        })?;
        Ok(whole_to)
    }
}

pub fn path(folder: &Path, number: u64) -> PathBuf {
    folder.join(format!("{PREFIX}{number:016x}"))
}

/// The segments in a folder by their number, oldest first. A folder that is not there has none.
pub fn list(disk: &dyn Disk, folder: &Path) -> io::Result<Vec<(u64, PathBuf)>> {
    let number = |path: &PathBuf| {
        let digits = path.file_name()?.to_str()?.strip_prefix(PREFIX)?;
        (digits.len() == 16).then(|| u64::from_str_radix(digits, 16).ok()).flatten()
    };
    let mut segments: Vec<(u64, PathBuf)> =
        disk.list(folder)?.into_iter().filter_map(|path| Some((number(&path)?, path))).collect();
    order::sort(&mut segments);
    Ok(segments)
}
