//! Reading a spool back, a frame at a time, and writing down how far it was answered for.

use std::io;
use std::ops::Range;
use std::sync::Arc;

use super::cursor::{Cursor, Mark, Position};
use super::frame::{self, Broken, Header};
use super::segment::{FIRST_FRAME, Segment};
use super::{Lost, Replayed, Spool, UnderWay, Why, between};
use crate::ack::Count;
use crate::budget::Credit;
use crate::disk::{DiskFile, Open};
use crate::error::{Context, Result};
use crate::order;

/// Tries of a frame that the disk does not give, before it counts as damaged.
const TRIES_MOST: u32 = 5;

impl Spool {
    /// What the next frame costs in memory, in bytes; `None`: nothing to read now.
    pub fn next_cost(&mut self) -> Result<Option<usize>> {
        let folder = self.settings.folder.clone();
        let found = self.seek().context(|| format!("could not read the spool {}", folder.display()))?;
        Ok(found.then(|| self.ahead.as_ref().expect("it was found").cost()))
    }

    /// What was read and is not answered for is read once more, and next. For whoever has let go of all of it.
    pub fn rewind(&mut self) {
        self.ahead = None;
        self.again.extend(self.under_way.drain(..).filter(|frame| !frame.done));
        order::sort_by_key(self.again.make_contiguous(), |frame| frame.sequence);
    }

    /// Finds the next frame that is not answered for.
    fn seek(&mut self) -> io::Result<bool> {
        if self.ahead.is_none()
            && let Some(UnderWay { at: place, .. }) = self.again.front()
        {
            let place = *place;
            let held = |segment: &Segment| segment.number == place.segment;
            let at = self.segments.iter().position(held).expect("what is not answered for stays");
            let file = self.file_to_read(at)?;
            self.ahead = self.segments[at].header(&*file, place.offset)?;
            if self.ahead.is_none() {
                self.lose_again();
                return self.seek();
            }
        }
        while self.ahead.is_none() {
            let Some(at) = self.segments.iter().position(|segment| segment.number >= self.read.segment)
            else {
                self.pass_over(self.total, self.next_sequence, Why::Corrupt);
                return Ok(false);
            };
            let segment = &self.segments[at];
            if segment.number > self.read.segment {
                self.read = Position { segment: segment.number, offset: FIRST_FRAME };
            }
            if self.read.offset >= segment.end {
                let Some(next) = self.segments.get(at + 1) else {
                    self.pass_over(self.total, self.next_sequence, Why::Corrupt);
                    return Ok(false);
                };
                self.read = Position { segment: next.number, offset: FIRST_FRAME };
                continue;
            }
            let (file, segment) = (self.file_to_read(at)?, &self.segments[at]);
            let Some(header) = segment.header(&*file, self.read.offset)? else {
                let next = segment.find(&*file, self.read.offset + 1, &mut self.scratch)?;
                let path = segment.path.clone();
                self.put_aside(&path, self.read.offset..next)?;
                self.read.offset = next;
                continue;
            };
            self.pass_over(header.before, header.sequence, Why::Corrupt);
            if self.answered_before(&header) >= header.records {
                self.lose(Lost { why: Why::AnsweredBefore, count: header.count() });
                self.step_over(&header);
            } else {
                self.ahead = Some(header);
            }
        }
        Ok(true)
    }

    /// A frame that was whole a moment ago is not any more.
    fn lose_again(&mut self) {
        (self.ahead, self.tries) = (None, 0);
        if let Some(UnderWay { count, .. }) = self.again.pop_front() {
            self.lose(Lost { why: Why::Corrupt, count });
        }
    }

    fn answered_before(&mut self, header: &Header) -> u32 {
        match &self.former {
            Some((limit, cursor)) if header.sequence < *limit => {
                cursor.answered(header.sequence, header.lineage).unwrap_or(header.records)
            }
            _ => {
                self.former = None;
                0
            }
        }
    }

    fn step_over(&mut self, header: &Header) {
        self.ahead = None;
        self.tries = 0;
        self.read.offset += header.len();
        self.read_total = header.after();
        self.read_sequence = header.sequence + 1;
    }

    fn file_to_read(&mut self, at: usize) -> io::Result<Arc<dyn DiskFile>> {
        let Segment { number, path, .. } = &self.segments[at];
        if let Some((_, file)) = self.reading.as_ref().filter(|(known, _)| known == number) {
            return Ok(file.clone());
        }
        let file = self.settings.disk.open(path, Open::Existing)?;
        self.reading = Some((*number, file.clone()));
        Ok(file)
    }

    /// The frame that [`Spool::next_cost`] told of. `None`: it is damaged, and passed over.
    pub fn next(&mut self, credit: Credit) -> Result<Option<Replayed>> {
        let folder = self.settings.folder.clone();
        self.try_next(credit).context(|| format!("could not read the spool {}", folder.display()))
    }

    fn try_next(&mut self, credit: Credit) -> io::Result<Option<Replayed>> {
        let Some(header) = self.ahead.clone() else { return Ok(None) };
        let place = self.again.front().map_or(self.read, |frame| frame.at);
        let at = self.segments.iter().position(|segment| segment.number == place.segment);
        let Some(at) = at else { return Ok(None) };
        let file = self.file_to_read(at)?;
        let range = header.start..header.end;
        let records = match frame::read(&*file, place.offset, &header, credit, &mut self.origin) {
            Ok(records) => records.into(),
            Err(Broken::Unreadable(cause)) if self.tries + 1 < TRIES_MOST => {
                self.tries += 1;
                return Err(cause);
            }
            Err(_) => {
                let path = self.segments[at].path.clone();
                self.put_aside(&path, place.offset..place.offset + header.len())?;
                if !self.again.is_empty() {
                    self.lose_again();
                    return Ok(None);
                }
                let count = self.not_torn(header.before, header.after());
                self.lose(Lost { why: Why::Corrupt, count });
                self.step_over(&header);
                return Ok(None);
            }
        };
        if let Some(frame) = self.again.pop_front() {
            let (sequence, answered) = (frame.sequence, frame.answered);
            self.under_way.push_back(frame);
            (self.ahead, self.tries) = (None, 0);
            return Ok(Some(Replayed { sequence, records, answered, range }));
        }
        let answered = self.answered_before(&header);
        let answered_count = records.count(0..answered);
        self.lose(Lost { why: Why::AnsweredBefore, count: answered_count });
        let mut count = header.count();
        count.lines -= answered_count.lines;
        count.bytes -= answered_count.bytes;
        let sequence = header.sequence;
        self.under_way.push_back(UnderWay {
            sequence,
            at: place,
            lineage: header.lineage,
            before: header.before,
            count,
            answered,
            done: false,
        });
        self.step_over(&header);
        Ok(Some(Replayed { sequence, records, answered, range }))
    }

    /// All of a frame is answered for: it never comes back. Takes effect on disk with [`Spool::save`].
    pub fn answered(&mut self, sequence: u64) {
        if let Some(frame) = self.under_way.iter_mut().find(|frame| frame.sequence == sequence) {
            frame.done = true;
            let count = frame.count;
            self.settle(count);
        }
    }

    /// Some records of a frame are answered for: `count` lines and bytes. Remembered if all that stand before them
    /// are, too; else they come back after a death, unless the rest of the frame is answered for by then.
    pub fn answered_in_part(&mut self, sequence: u64, records: Range<u32>, count: Count) {
        if let Some(frame) = self.under_way.iter_mut().find(|frame| frame.sequence == sequence)
            && frame.answered == records.start
        {
            frame.answered = records.end;
            frame.count = between(count, frame.count);
            self.settle(count);
        }
    }

    /// Writes down how far it was answered for. After an error: only in memory, so a crash would repeat more.
    pub fn save(&mut self) -> Result<()> {
        while self.under_way.front().is_some_and(|frame| frame.done) {
            self.under_way.pop_front();
        }
        if self.under_way.is_empty() && !self.has_unread() {
            // All of it can go: what comes next begins anew.
            self.end_segment();
            self.read = Position { segment: self.next_segment, offset: FIRST_FRAME };
        }
        let cursor = self.cursor_now();
        let behind = self.segments.iter_mut().take_while(|segment| segment.number < cursor.at.segment);
        let passed = self.settings.passed.count();
        behind.for_each(|segment| segment.answered = segment.answered.or(Some(passed)));
        let folder = self.settings.folder.clone();
        let written = self.make_folder().and_then(|_| {
            let file = self.cursor.as_mut().expect("it was made with the folder");
            file.write(&cursor, &self.settings.passed)?;
            self.settings.unsynced.note(file.file().clone());
            if cursor.at.segment == self.next_segment {
                // Nothing is left: no descriptor is held for it, either.
                self.reading = None; // the cursor goes when it is safe
            }
            Ok(())
        });
        written.context(|| format!("could not write to the spool {}", folder.display()))
    }

    pub(super) fn cursor_now(&self) -> Cursor {
        let (at, sequence, before) = match self.oldest() {
            Some(frame) => (frame.at, frame.sequence, frame.before),
            None => (self.read, self.read_sequence, self.read_total),
        };
        let former = self.former.as_ref().filter(|(limit, _)| self.read_sequence < *limit);
        let former = former.map_or(&[][..], |(_, cursor)| &cursor.marks);
        let streets = if former.is_empty() { self.settings.streets } else { former.len() };
        let mark = |street: usize| {
            let of_street =
                |frame: &&UnderWay| !frame.done && (frame.lineage % streets as u64) as usize == street;
            let unread = Mark { sequence: self.read_sequence, records: 0 };
            match (self.under_way.iter().chain(&self.again).find(of_street), former.get(street)) {
                (Some(frame), _) => Mark { sequence: frame.sequence, records: frame.answered },
                (None, Some(former)) if former.sequence >= self.read_sequence => *former,
                (None, _) => unread,
            }
        };
        Cursor { at, sequence, before, known: self.known, marks: (0..streets).map(mark).collect() }
    }
}
