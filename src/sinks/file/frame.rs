//! How the journal of a file sink stands on the disk.
//!
//! ```text
//! frame   = length u32 · crc u32 · number u64 · payload            (crc: of number and payload)
//! payload = live from · void · entry
//! void    = nothing | 'v' count (start length)…              (of numbers)
//! entry   = 'a' path inode offset length sums parts          (about to be appended: a sum for each sector)
//!         | 'p' path inode offset length sums parts          (the same: a sum for each whole page, and each sector beside)
//!         | 'd' inode length                                 (about to be deleted, with so many bytes in it)
//! ```
//!
//! `live from` is the first number that two checkpoints were not past yet when the frame was written: what stands
//! below it in the newest frame is history. Appends whose number is void count for nothing: they were taken back, cut
//! off, or not believed at a start. Every frame tells all there is to know about its bytes.

use std::ffi::OsStr;
use std::ops::Range;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use crc32fast::Hasher;

use super::journal::SEGMENT_BYTES;
use crate::ack::GenerationId;
use crate::disk::{DiskFile, PAGE};

/// Bytes that are about to be appended.
#[derive(Clone, Copy)]
pub struct New<'a> {
    pub bytes: &'a [u8],
    pub block: Block,
    /// Of all bytes before each border of a page, as far as they are known: none, or those of all borders.
    pub sums: &'a [u32],
}

const SECTOR: u64 = 512;

/// What is written as a whole or not at all, in bytes from the start of the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Block {
    /// By any disk that loses power.
    Sector,
    /// Whole pages by a file system past its cache: what it has not written to the end is behind the end of the file, or
    /// reads as zeros. What stands before and behind them goes through the cache, and may be torn at each sector.
    Page,
}

impl Block {
    /// Where the one that begins at `start` of such bytes ends.
    fn end(self, start: u64, bytes_end: u64) -> u64 {
        let sector_end = (start / SECTOR + 1).saturating_mul(SECTOR);
        let page_end = start.saturating_add(PAGE as u64);
        match self {
            Block::Page if start.is_multiple_of(PAGE as u64) && page_end <= bytes_end => page_end,
            _ => sector_end.min(bytes_end),
        }
    }

    fn tag(self) -> u8 {
        match self {
            Block::Sector => b'a',
            Block::Page => b'p',
        }
    }
}

const HEADER: usize = 16;

/// Source bytes that stand in an output.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    pub generation: GenerationId,
    pub range: Range<u64>,
    /// Its source can be read again.
    pub replayable: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Appended {
    /// The output's name when it was written; a rotation moves it beside that name.
    pub path: PathBuf,
    pub inode: u64,
    pub offset: u64,
    pub length: u64,
    pub block: Block,
    /// See [`sums`].
    pub sums: Vec<u32>,
    pub parts: Vec<Part>,
}

impl Appended {
    pub fn end(&self) -> u64 {
        self.offset + self.length
    }

    pub fn can_be_read_again(&self) -> bool {
        self.parts.iter().all(|part| part.replayable)
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Entry {
    Appended(Appended),
    /// Our own rotation took it away: what was whole in its `length` bytes has been delivered.
    Deleted {
        inode: u64,
        length: u64,
    },
}

/// Ranges of a file, cut where a write of all of it may be torn.
pub fn blocks(range: Range<u64>, block: Block) -> impl Iterator<Item = Range<u64>> {
    let mut at = range.start;
    std::iter::from_fn(move || {
        let start = at;
        at = block.end(start, range.end);
        (start < range.end).then_some(start..at)
    })
}

/// Of bytes that are to stand at `offset`, up to the end of each block: the last one is of all of them, and each block can
/// be told from others by itself, see [`sum_on`].
pub fn sums(offset: u64, new: New<'_>) -> impl Iterator<Item = u32> {
    let New { bytes, block, sums: known } = new;
    let mut before = 0;
    blocks(offset..offset + bytes.len() as u64, block).map(move |block| {
        let borders = (block.end / PAGE as u64 - offset / PAGE as u64) as usize;
        let is_border = block.end.is_multiple_of(PAGE as u64);
        before = match known.get(borders.wrapping_sub(1)).filter(|_| is_border) {
            Some(known) => *known,
            None => sum_on(before, &bytes[(block.start - offset) as usize..(block.end - offset) as usize]),
        };
        before
    })
}

/// What the sum is behind this block, if it is `before` in front of it.
pub fn sum_on(before: u32, block: &[u8]) -> u32 {
    let mut hasher = Hasher::new_with_initial(before);
    hasher.update(block);
    hasher.finalize()
}

/// The one that is written now.
#[derive(Default)]
pub struct Frame(Vec<u8>);

impl Frame {
    /// Before its entry.
    pub fn begin(&mut self, live_from: u64, void: &[Range<u64>]) {
        self.0.clear();
        self.0.resize(HEADER, 0);
        self.put(live_from);
        if !void.is_empty() {
            self.0.push(b'v');
            self.put(void.len() as u64);
            for numbers in void {
                self.put(numbers.start);
                self.put(numbers.end - numbers.start);
            }
        }
    }

    /// Returns the sum of all of the bytes.
    pub fn append(&mut self, path: &Path, inode: u64, offset: u64, new: New<'_>, parts: &[Part]) -> u32 {
        self.0.push(new.block.tag());
        let name = path.as_os_str().as_bytes();
        self.put(name.len() as u64);
        self.0.extend_from_slice(name);
        [inode, offset, new.bytes.len() as u64].into_iter().for_each(|number| self.put(number));
        let mut all = 0;
        for sum in sums(offset, new) {
            self.0.extend_from_slice(&sum.to_le_bytes());
            all = sum;
        }
        debug_assert!(
            sums(offset, new).eq(sums(offset, New { sums: &[], ..new })),
            "they are of other bytes"
        );
        for Part { generation, range, replayable } in parts {
            self.put(generation.0);
            self.put(range.start);
            self.put((range.end - range.start) << 1 | u64::from(*replayable));
        }
        all
    }

    pub fn delete(&mut self, inode: u64, length: u64) {
        self.0.push(b'd');
        self.put(inode);
        self.put(length);
    }

    /// Seven bits a byte, the lowest first.
    fn put(&mut self, mut number: u64) {
        while number >= 0x80 {
            self.0.push(number as u8 | 0x80);
            number >>= 7;
        }
        self.0.push(number as u8);
    }

    /// With its number: what is to be written.
    pub fn seal(&mut self, number: u64) -> &[u8] {
        let length = (self.0.len() - HEADER) as u32;
        self.0[..4].copy_from_slice(&length.to_le_bytes());
        self.0[8..HEADER].copy_from_slice(&number.to_le_bytes());
        let crc = crc32fast::hash(&self.0[8..]);
        self.0[4..8].copy_from_slice(&crc.to_le_bytes());
        &self.0
    }

    /// As it was sealed.
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }
}

/// Whole frames from the start of a segment, with their numbers.
pub fn read(file: &dyn DiskFile, mut each: impl FnMut(u64, Payload<'_>)) -> std::io::Result<()> {
    let mut bytes = vec![0; file.size()?.min(SEGMENT_BYTES) as usize];
    let filled = file.read_at(&mut bytes, 0)?;
    let mut rest = &bytes[..filled];
    let mut expected = None;
    while let Some((header, behind)) = rest.split_at_checked(HEADER) {
        let word = |at: usize| u32::from_le_bytes(header[at..at + 4].try_into().expect("four bytes"));
        let number = u64::from_le_bytes(header[8..].try_into().expect("eight bytes"));
        let Some((payload, behind)) = behind.split_at_checked(word(0) as usize) else { break };
        let whole = &rest[8..HEADER + payload.len()];
        if payload.is_empty() || crc32fast::hash(whole) != word(4) || expected.is_some_and(|at| at != number)
        {
            break;
        }
        each(number, Payload(payload));
        expected = Some(number + 1);
        rest = behind;
    }
    Ok(())
}

#[derive(Clone, Copy)]
pub struct Payload<'a>(&'a [u8]);

impl Payload<'_> {
    /// Frames with lower numbers are history.
    pub fn live_from(self) -> u64 {
        Reader(self.0).number().unwrap_or(1)
    }

    /// What it says is void, and what it tells of.
    pub fn told(self) -> Option<(Vec<Range<u64>>, Entry)> {
        let mut reader = Reader(self.0);
        let _live_from = reader.number()?;
        Some((reader.void()?, reader.entry()?))
    }
}

/// Takes a payload apart. `None`: it is none of ours.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn number(&mut self) -> Option<u64> {
        let mut number = 0;
        for shift in (0..64).step_by(7) {
            let byte = self.bytes(1)?[0];
            number |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Some(number);
            }
        }
        None
    }

    fn bytes(&mut self, length: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(taken)
    }

    fn void(&mut self) -> Option<Vec<Range<u64>>> {
        let Some(rest) = self.0.strip_prefix(b"v") else { return Some(Vec::new()) };
        self.0 = rest;
        let count = self.number()?;
        let mut range = || {
            let (start, length) = (self.number()?, self.number()?);
            Some(start..start.checked_add(length)?)
        };
        (0..count).map(|_| range()).collect()
    }

    fn entry(&mut self) -> Option<Entry> {
        match self.bytes(1)? {
            b"a" => self.appended(Block::Sector).map(Entry::Appended),
            b"p" => self.appended(Block::Page).map(Entry::Appended),
            b"d" => Some(Entry::Deleted { inode: self.number()?, length: self.number()? }),
            _ => None,
        }
    }

    fn appended(&mut self, block: Block) -> Option<Appended> {
        let length = self.number()? as usize;
        let path = PathBuf::from(OsStr::from_bytes(self.bytes(length)?));
        let (inode, offset, length) = (self.number()?, self.number()?, self.number()?);
        let range = offset..offset.checked_add(length)?;
        if length / SECTOR > self.0.len() as u64 * (PAGE as u64 / SECTOR) {
            return None; // it would have to have more sums than there are bytes
        }
        let sums = self.bytes(blocks(range, block).count() * 4)?.chunks_exact(4);
        let sums = sums.map(|sum| u32::from_le_bytes(sum.try_into().expect("four bytes"))).collect();
        let mut parts = Vec::new();
        while !self.0.is_empty() {
            let (generation, start, tail) = (GenerationId(self.number()?), self.number()?, self.number()?);
            let range = start..start.checked_add(tail >> 1)?;
            parts.push(Part { generation, range, replayable: tail & 1 == 1 });
        }
        Some(Appended { path, inode, offset, length, block, sums, parts })
    }
}
