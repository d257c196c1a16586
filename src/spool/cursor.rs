//! How far a spool was answered for, in a small file beside its segments.
//!
//! Here and not in the checkpoint, since this file is written after each answer, into the page cache: the death of
//! the process loses nothing of it, so a restart sends only what was on its way again. After a power cut it may be
//! ahead of what the sink itself had made durable (a file sink writes into the same page cache). So each record of
//! it carries the boot in which it was written, and one of another boot is not believed: then the last *safe* one
//! counts, written when two checkpoints, and with them the outputs, had been synced since.
//!
//! Four slots of a sector each: two for what is, two for what is safe, written in turn, so that a torn write leaves
//! the one before.

use std::io;
use std::path::Path;
use std::sync::Arc;

use crate::ack::Count;
use crate::disk::{Disk, DiskFile, Open};
use crate::durable::{Passed, Written};

const SLOT_BYTES: usize = 512;

/// More connections than the configuration allows.
const MARKS_MOST: usize = 32;

/// A frame's place: which segment, and the offset in it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Position {
    pub segment: u64,
    pub offset: u64,
}

/// How far one connection is: all frames of its lineages below `sequence` are answered for, and of that frame the
/// first `records`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Mark {
    pub sequence: u64,
    pub records: u32,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cursor {
    /// The oldest frame that is not answered for.
    pub at: Position,
    pub sequence: u64,
    /// All lines and bytes that were put into the spool before that frame.
    pub before: Count,
    /// What the segments below it answer for is in every checkpoint that can be read.
    pub known: u64,
    /// By lineage modulo their number.
    pub marks: Vec<Mark>,
}

impl Cursor {
    /// How many records of this frame are answered for; `None`: all of them.
    pub fn answered(&self, sequence: u64, lineage: u64) -> Option<u32> {
        if self.marks.is_empty() {
            return if sequence < self.sequence { None } else { Some(0) };
        }
        let mark = self.marks[(lineage % self.marks.len() as u64) as usize];
        match sequence.cmp(&mark.sequence) {
            std::cmp::Ordering::Less => None,
            std::cmp::Ordering::Equal => Some(mark.records),
            std::cmp::Ordering::Greater => Some(0),
        }
    }
}

/// The file, once there is a spool at all.
pub struct CursorFile {
    file: Arc<Written>,
    boot: u64,
    /// Of the newest record of each kind.
    turn: u64,
    safe_turn: u64,
    /// What becomes safe when checkpoints are past this count.
    maturing: Option<(u64, Cursor)>,
}

impl CursorFile {
    /// `boot`: another number for each life of the operating system.
    pub fn open(
        disk: &dyn Disk,
        path: &Path,
        how: Open,
        boot: u64,
    ) -> io::Result<(CursorFile, Option<Cursor>)> {
        let file = Written::new(disk.open(path, how)?);
        let mut newest: [Option<Slot>; 2] = [None, None];
        for at in 0..4 {
            let mut bytes = [0; SLOT_BYTES];
            if file.read_at(&mut bytes, at * SLOT_BYTES as u64)? == SLOT_BYTES
                && let Some(slot) = Slot::decode(&bytes)
            {
                let kind = &mut newest[(at / 2) as usize];
                if kind.as_ref().is_none_or(|known| known.turn < slot.turn) {
                    *kind = Some(slot);
                }
            }
        }
        let [turn, safe_turn] =
            [0, 1].map(|kind: usize| newest[kind].as_ref().map_or(0, |slot: &Slot| slot.turn));
        let [now, safe] = newest;
        let cursor = now.filter(|slot| slot.boot == boot).or(safe).map(|slot| slot.cursor);
        Ok((CursorFile { file, boot, turn, safe_turn, maturing: None }, cursor))
    }

    pub fn file(&self) -> &Arc<Written> {
        &self.file
    }

    /// What the last life has written becomes safe in this one.
    pub fn take_over(&mut self, cursor: &Cursor, passed: &Passed) {
        self.maturing.get_or_insert_with(|| (passed.count(), cursor.clone()));
    }

    pub fn write(&mut self, cursor: &Cursor, passed: &Passed) -> io::Result<()> {
        self.take_over(cursor, passed);
        self.turn += 1;
        let slot = Slot { turn: self.turn, boot: self.boot, cursor: cursor.clone() };
        self.file.write_at(&slot.encode(), self.turn % 2 * SLOT_BYTES as u64)
    }

    /// Whether something became safe, and was written.
    pub fn mature(&mut self, passed: &Passed, now: &Cursor) -> io::Result<bool> {
        let Some((_, cursor)) = self.maturing.take_if(|(at, _)| passed.by(*at)) else { return Ok(false) };
        if cursor != *now {
            self.take_over(now, passed);
        }
        self.safe_turn += 1;
        let slot = Slot { turn: self.safe_turn, boot: self.boot, cursor };
        self.file.write_at(&slot.encode(), (2 + self.safe_turn % 2) * SLOT_BYTES as u64)?;
        Ok(true)
    }

    /// Whether something becomes safe by checkpoints that are still to come.
    pub fn is_maturing(&self) -> bool {
        self.maturing.is_some()
    }
}

struct Slot {
    turn: u64,
    boot: u64,
    cursor: Cursor,
}

impl Slot {
    fn encode(&self) -> [u8; SLOT_BYTES] {
        let Cursor { at, sequence, before, known, marks } = &self.cursor;
        let mut bytes = vec![0; 4];
        let words = [
            self.turn,
            self.boot,
            at.segment,
            at.offset,
            *sequence,
            before.lines,
            before.bytes,
            *known,
            marks.len() as u64,
        ];
        words.iter().for_each(|word| bytes.extend_from_slice(&word.to_le_bytes()));
        for mark in marks {
            bytes.extend_from_slice(&mark.sequence.to_le_bytes());
            bytes.extend_from_slice(&mark.records.to_le_bytes());
        }
        bytes.resize(SLOT_BYTES, 0);
        let crc = crc32fast::hash(&bytes[4..]);
        bytes[..4].copy_from_slice(&crc.to_le_bytes());
        bytes.try_into().expect("32 marks fit into a sector")
    }

    fn decode(bytes: &[u8; SLOT_BYTES]) -> Option<Slot> {
        let short = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"));
        let long = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"));
        if short(0) != crc32fast::hash(&bytes[4..]) {
            return None;
        }
        let word = |number: usize| long(4 + 8 * number);
        let marks = usize::try_from(word(8)).ok().filter(|marks| *marks <= MARKS_MOST)?;
        let mark = |number: usize| {
            let at = 76 + 12 * number;
            Mark { sequence: long(at), records: short(at + 8) }
        };
        let cursor = Cursor {
            at: Position { segment: word(2), offset: word(3) },
            sequence: word(4),
            before: Count { lines: word(5), bytes: word(6) },
            known: word(7),
            marks: (0..marks).map(mark).collect(),
        };
        Some(Slot { turn: word(0), boot: word(1), cursor })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::model::ModelDisk;

    fn cursor(sequence: u64) -> Cursor {
        let marks = vec![Mark { sequence, records: 3 }, Mark { sequence: sequence + 2, records: 0 }];
        let before = Count { lines: sequence * 10, bytes: sequence * 100 };
        let at = Position { segment: 1, offset: sequence };
        Cursor { at, sequence, before, known: sequence, marks }
    }

    /// The disk after cursors 1..=4 of boot 7, where 2 is safe.
    fn written() -> ModelDisk {
        let disk = ModelDisk::default();
        disk.create_folder(Path::new("/")).unwrap();
        let (mut file, none) = CursorFile::open(&disk, Path::new("/c"), Open::OrCreate, 7).unwrap();
        assert_eq!(none, None);
        let passed = Passed::default();
        file.write(&cursor(1), &passed).unwrap();
        passed.written();
        assert!(!file.mature(&passed, &cursor(1)).unwrap(), "one checkpoint may have begun before");
        file.write(&cursor(2), &passed).unwrap();
        passed.written();
        assert!(file.mature(&passed, &cursor(2)).unwrap() && file.is_maturing());
        file.write(&cursor(3), &passed).unwrap();
        (0..2).for_each(|_| passed.written());
        assert!(file.mature(&passed, &cursor(3)).unwrap());
        file.write(&cursor(4), &passed).unwrap();
        disk
    }

    #[test]
    fn the_newest_record_of_this_boot_counts_and_of_another_boot_only_a_safe_one() {
        let disk = written();
        let open = |boot| CursorFile::open(&disk, Path::new("/c"), Open::Existing, boot).unwrap().1;
        assert_eq!(open(7), Some(cursor(4)));
        assert_eq!(open(8), Some(cursor(2)));
    }

    #[test]
    fn a_slot_that_is_damaged_leaves_the_one_before() {
        for at in 0..2048 {
            let disk = written();
            let file = disk.open(Path::new("/c"), Open::Existing).unwrap();
            let mut byte = [0];
            file.read_at(&mut byte, at).unwrap();
            file.write_at(&[byte[0] ^ 0x10], at).unwrap();
            let sequence = |boot| {
                CursorFile::open(&disk, Path::new("/c"), Open::Existing, boot).unwrap().1.unwrap().sequence
            };
            assert!([3, 4].contains(&sequence(7)), "byte {at}");
            assert!([1, 2].contains(&sequence(8)), "byte {at}");
        }
    }

    #[test]
    fn each_connection_has_a_mark_of_its_own() {
        let cursor = cursor(5);
        let answered = |sequence, lineage| cursor.answered(sequence, lineage);
        assert_eq!([answered(4, 0), answered(5, 0), answered(6, 0)], [None, Some(3), Some(0)]);
        assert_eq!([answered(5, 1), answered(6, 1), answered(7, 1)], [None, None, Some(0)]);
    }
}
