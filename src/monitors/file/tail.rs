//! One file that is followed: what it looks like, what to do about it, and one turn of reading.
//!
//! The decision is pure (`step.rs`); the turn carries it out. Reading never goes across what a turn may
//! take, so that a hundred files get their turns one after the other.
//!
//! Always true: the position is where an unread line begins. A half line stays in the file, holds no credit, and
//! is not looked at again before the file has grown.
//!
//! Not here: which files there are, and whose turn it is (`files.rs`).

use std::fs::{File, Metadata};
use std::io;
use std::num::NonZeroU64;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::beside::modified_ns;
use super::few::Few;
use super::framing::{Counted, End, Framed};
use super::holes::{Ahead, ahead, text_from};
use super::identity::{HEAD_BYTES, begins_with, head_of, identity, read_at, stands_before};
use super::packed::{Form, Unpacked};
use super::parts::{arrange, frame_parts, keep_within};
use super::scan::{Scan, Scanned};
use super::step::{Look, Step, next_step};
use super::sweep::Found;
use super::turn::{Buffers, Caught, Reading, Turn};
use crate::ack::GenerationId;
use crate::budget::Refused;
use crate::clock::Moment;
use crate::durable::FileId;
use crate::ledger::{BEFORE_BYTES, HOLE, Head};
use crate::monitors::outlet::{GROUP_LINES, SMALL_BYTES, WholeLines};
use crate::monitors::{NotSent, Stream};

/// In which the system counts what stands on the disk.
pub(super) const BLOCK_BYTES: u64 = 512;

/// A file that is followed.
pub(super) struct Tail {
    /// Where it was last seen.
    pub path: Arc<Path>,
    /// Reserved when it was admitted, so that those of a lineage are numbered in the order in which they came.
    generation: Option<NonZeroU64>,
    pub file: FileId,
    /// Place in `sources[]`.
    source: u32,
    /// Nothing happens to it that is not reported.
    pub heard: bool,
    pub lineage: u64,
    /// Where to begin if it was never read.
    pub start: u64,
    pub descriptor: Option<File>,
    /// It was compressed after its rotation: nobody writes to it any more, and [`Tail::size`] and all offsets are
    /// of its content.
    pub form: Option<Form>,
    /// While such a file is open.
    pub content: Option<Box<Unpacked>>,
    /// `None`: it has no byte yet, or was not opened yet.
    pub stream: Option<Stream>,
    pub head: Head,
    pub size: u64,
    /// It has, or seems to have, less on the disk than its size.
    pub has_holes: bool,
    /// When it was last changed, in nanoseconds since 1970 by the clock of the file system. 0: nobody has looked.
    modified_ns: i64,
    pub scanned: u64,
    changed: Moment,
    /// When it was found.
    pub since: Moment,
    pub deleted: bool,
    /// Of another file, which was emptied.
    pub is_copy: bool,
    /// Came after the first sweep.
    pub is_late: bool,
    /// Stands in the line of those who have something to do.
    pub queued: bool,
    /// Could not be opened or read, which was said; tried again with every sweep.
    pub trouble: bool,
    /// Of what stands right before the position, up to [`BEFORE_BYTES`].
    pub before: Option<Head>,
    /// When it was last put aside, in turns.
    pub rested: u64,
    pub few: Few,
}

impl Tail {
    /// In a box, as it is everywhere: the table of them has room for more than there are.
    pub fn new(found: Found, lineage: u64, start: u64, now: Instant) -> Box<Tail> {
        let Found { path, file, size, source, heard } = found;
        Box::new(Tail {
            path: path.into(),
            generation: None,
            file,
            source: source as u32,
            heard,
            lineage,
            start,
            descriptor: None,
            form: None,
            content: None,
            stream: None,
            head: Head::default(),
            size,
            has_holes: false,
            modified_ns: 0,
            scanned: 0,
            changed: now.into(),
            since: now.into(),
            deleted: false,
            is_copy: false,
            is_late: false,
            queued: false,
            trouble: false,
            before: None,
            rested: 0,
            few: Few::default(),
        })
    }

    /// What was known of the one before says nothing of it; its stream was taken.
    pub fn is_of_another_generation(&mut self) {
        (self.start, self.scanned, self.before) = (0, 0, None);
        self.few.clear(|few| (few.until, few.first_path) = (None, None));
    }

    /// The name of its generation.
    pub fn name(&self) -> &Arc<Path> {
        self.few.first_path.as_ref().unwrap_or(&self.path)
    }

    /// A path that leads to it now.
    pub fn stands_at(&mut self, path: &Path) {
        let before = std::mem::replace(&mut self.path, path.into());
        if self.stream.is_none() {
            self.few.first_path.get_or_insert(before);
        }
    }

    pub fn position(&self) -> u64 {
        self.stream.as_ref().map_or(0, Stream::position)
    }

    /// Of its generation, or the one that is reserved for it.
    pub fn number(&self) -> Option<GenerationId> {
        self.stream.as_ref().map(Stream::generation).or(self.reserved())
    }

    pub fn reserve(&mut self, generation: GenerationId) {
        self.generation = NonZeroU64::new(generation.0);
    }

    pub fn reserved(&self) -> Option<GenerationId> {
        self.generation.map(|generation| GenerationId(generation.get()))
    }

    pub fn take_reserved(&mut self) -> Option<GenerationId> {
        let reserved = self.reserved();
        self.generation = None;
        reserved
    }

    pub fn source(&self) -> usize {
        self.source as usize
    }

    pub fn changed(&self) -> Instant {
        self.changed.into()
    }

    /// Whatever happens to it is reported, and nothing about it changes with time alone. What was reported need not have
    /// been looked at yet, if it waits for another one.
    pub fn can_be_left_alone(&self) -> bool {
        let was_read = self.stream.is_some() || self.size == 0;
        self.heard && self.few.gone_since.is_none() && !self.deleted && was_read && self.unread() == 0
    }

    /// Its size, as far as it concerns us.
    fn size_to_read(&self) -> u64 {
        let until = self.few.until.map_or(u64::MAX, |until| until.max(self.position()));
        // Shorter than what was read stays shorter.
        self.size.min(until).min(self.few.ends_at.unwrap_or(u64::MAX))
    }

    /// Bytes that it has behind the position.
    pub fn unread(&self) -> u64 {
        self.size_to_read().saturating_sub(self.position())
    }

    /// Whether the file looks as it did at its last turn.
    pub fn looks_like(&self, metadata: &Metadata) -> bool {
        let unchanged = self.looked_like(metadata.len(), modified_ns(metadata));
        unchanged && (metadata.nlink() == 0) == self.deleted
    }

    /// The same of what somebody else has seen of it.
    pub fn looked_like(&self, size: u64, modified_ns: i64) -> bool {
        size == self.size && modified_ns == self.modified_ns
    }

    /// When it was last changed, in nanoseconds since 1970. `None`: nobody has looked.
    pub fn modified_ns(&self) -> Option<i64> {
        let now = self.descriptor.as_ref().and_then(|file| file.metadata().ok());
        now.map(|metadata| modified_ns(&metadata)).or((self.modified_ns != 0).then_some(self.modified_ns))
    }

    /// Takes in what the file looks like now, and says whether it looked otherwise before.
    pub fn refresh(&mut self, metadata: &Metadata, now: Instant) -> bool {
        let changed = !self.looks_like(metadata);
        if changed {
            self.size = metadata.len();
            self.modified_ns = modified_ns(metadata);
            self.deleted = metadata.nlink() == 0;
            self.has_holes = metadata.blocks() * BLOCK_BYTES < self.size;
            self.few.clear(|few| few.ends_at = None);
            self.changed = now.into();
        }
        changed
    }

    pub fn step(&self, idle: Duration, now: Instant) -> Step {
        let last = self.few.gone_since.map_or(self.changed(), |gone| gone.max(self.changed()));
        next_step(&Look {
            position: self.position(),
            scanned: self.scanned,
            size: self.size_to_read(),
            quiet: now.saturating_duration_since(last),
            gone: self.few.gone_since.is_some(),
            deleted: self.deleted,
            once: self.few.until.is_some(),
            idle,
        })
    }

    /// Has handed over every line that is complete.
    pub fn is_at_end(&self) -> bool {
        self.size_to_read() <= self.scanned.max(self.position())
    }

    /// Its descriptor can be closed without losing a byte: its path leads to it again, or nothing that comes
    /// later is wanted.
    pub fn is_closable(&self) -> bool {
        let reachable = !self.deleted && self.few.gone_since.is_none();
        self.size_to_read() <= self.position() && !self.queued && (reachable || self.few.until.is_some())
    }

    /// Its turn concerns no other file, and finds it open.
    pub fn is_plain(&self) -> bool {
        self.few.is_nothing() && self.form.is_none() && self.descriptor.is_some() && self.stream.is_some()
    }

    /// One turn. The file is open and its stream is there; else there is nothing to do.
    pub fn turn(&mut self, reading: &mut Reading<'_>) -> Turn {
        let (Some(file), Some(_)) = (&self.descriptor, &self.stream) else { return Turn::Rest };
        let seen = self.size.min(self.few.ends_at.unwrap_or(u64::MAX));
        if self.form.is_some() {
            return match self.size {
                size if size <= self.position() => Turn::Finish,
                size if size > self.scanned => self.read(reading, End::More),
                _ => self.read(reading, End::Final),
            };
        }
        let changed = match file.metadata() {
            Ok(metadata) => self.refresh(&metadata, reading.now),
            Err(cause) => return Turn::Failed(cause),
        };
        match self.step(reading.options.idle, reading.now) {
            Step::Truncated => Turn::Truncated { seen },
            Step::Wait if self.was_rewritten() => Turn::Truncated { seen: 0 },
            Step::Wait if self.is_copy && self.unread() > 0 => self.read(reading, End::Final), // it is whole
            Step::Wait => Turn::Rest,
            Step::Finish => Turn::Finish,
            Step::Read if changed && self.begins_otherwise() => Turn::Truncated { seen: 0 },
            Step::Read => self.read(reading, End::More),
            Step::ShipHalf => self.read(reading, End::Final),
        }
    }

    /// Truncated and grown beyond the position between two looks: something else stands before it now. A read
    /// of what follows finds out by itself.
    pub fn was_rewritten(&self) -> bool {
        let Some(file) = self.descriptor.as_ref().filter(|_| self.form.is_none()) else { return false };
        // An error is met again by the read that follows.
        let before =
            self.before.is_none_or(|head| stands_before(file, head, self.position()).unwrap_or(true));
        !before || self.begins_otherwise()
    }

    /// What stands before the position may be what stood there before, in a log of equal lines. Within the head
    /// a read finds out by itself.
    fn begins_otherwise(&self) -> bool {
        let Some(file) = self.descriptor.as_ref().filter(|_| self.form.is_none()) else { return false };
        let mut head = [0; HEAD_BYTES];
        let head = &mut head[..self.head.len as usize];
        read_at(file, head, 0).is_ok_and(|_| Head::of(head) != self.head)
    }

    fn read(&mut self, reading: &mut Reading<'_>, end: End) -> Turn {
        let size = self.size_to_read();
        let in_parts = reading.options.is_in_parts();
        let open_since = self.few.open_line.filter(|open| open.0 == self.position()).map(|open| open.1);
        // A half line that is found whole by the next turn needs no look ahead.
        let turn_bytes = reading.outlet.chunk_bytes() - HEAD_BYTES; // one buffer, with what stands before
        let is_long = self.scanned >= self.position() + (turn_bytes / 2) as u64;
        let rewritten = is_long && self.was_rewritten();
        let (Some(file), Some(stream)) = (&self.descriptor, &mut self.stream) else { return Turn::Rest };
        let mut hole_at = None;
        if self.has_holes && self.form.is_none() {
            match ahead(file, stream.position(), self.size) {
                Ok(Ahead::Text { hole }) => hole_at = Some(hole).filter(|hole| *hole < self.size),
                Ok(Ahead::Hole { end }) => {
                    reading.outlet.give_up(stream, end, HOLE);
                    (self.scanned, self.before) = (end, None);
                    return Turn::Again;
                }
                Ok(Ahead::HoleToEnd) => {
                    self.few.ends_at = Some(stream.position());
                    return Turn::Rest;
                }
                Err(cause) => return Turn::Failed(cause),
            }
        }
        let content = &mut self.content;
        let mut read_at = |buffer: &mut [u8], offset| match content {
            Some(content) => content.read_at(buffer, offset),
            None => read_at(file, buffer, offset),
        };
        let Reading { outlet, options, task, buffers, cut_lines, now, gathers, in_company } = reading;
        let Buffers { ends, mixed } = &mut **buffers;
        let longest = options.max_line_bytes;
        // A place within what an earlier life has arranged means nothing without all of it.
        let again = stream.stamp_start().filter(|start| in_parts && *start < stream.position());
        let position = again.unwrap_or(stream.position());
        let there = usize::try_from(size.saturating_sub(position)).unwrap_or(usize::MAX);

        // Up to the hole at most: then there is no more of the line that stands before it.
        let to_hole = hole_at.map(|hole| (hole - position) as usize).filter(|to| *to <= turn_bytes);
        let limit = if in_parts { stream.stamp_limit() } else { stream.read_limit() }.unwrap_or(u64::MAX);
        let end = match open_since {
            Some(since) if end == End::More && limit == u64::MAX && *now - since >= options.idle => {
                End::Lines
            }
            _ => end,
        };
        let mut want = to_hole.unwrap_or(turn_bytes).min(there);
        if again.is_some() {
            want = ((limit - position) as usize).min(there);
        } else if is_long && end != End::Final && to_hole.is_none() {
            // The line that begins here is longer than what was read so far: look for its end only.
            if limit <= size && limit - position <= longest as u64 {
                want = (limit - position) as usize; // it was cut there in another life
            } else if in_parts || there >= longest {
                want = longest.min(there);
            } else if rewritten {
                return Turn::Truncated { seen: 0 };
            } else {
                let mut data = outlet.buffer(turn_bytes.min((size - self.scanned) as usize));
                let fresh = match read_at(&mut data, self.scanned) {
                    Ok(fresh) => fresh,
                    Err(cause) => return Turn::Failed(cause),
                };
                match memchr::memchr(b'\n', &data[..fresh]) {
                    Some(at) => want = want.max((self.scanned - position) as usize + at + 1),
                    None => {
                        self.scanned += fresh as u64;
                        return self.after_read(fresh, options.idle, *now);
                    }
                }
            }
        } else if end == End::Final && to_hole.is_none() {
            want = there.min(longest.max(turn_bytes));
        }
        want = want.min(usize::try_from(limit - position).unwrap_or(usize::MAX));

        // What stands before comes with it, in one read, so that nothing can be exchanged in between; at the
        // beginning all of it, so that the head is of the same bytes too.
        let before = self.before.filter(|_| again.is_none());
        let before_len = before.map_or(0, |before| before.len as usize);
        let back = if position < HEAD_BYTES as u64 { position as usize } else { before_len };
        let credit = match outlet.take(stream, back + want) {
            Ok(credit) => credit,
            Err(refused) => return Turn::NoCredit(refused),
        };
        let mut data = outlet.buffer_at(stream, position - back as u64, back + want);
        ends.clear();
        let (start, most) = (position - back as u64, outlet.chunk_lines());
        let in_steps = !in_parts && to_hole.is_none() && self.form.is_none();
        let scanned = match in_steps {
            true => {
                let counted = (!outlet.asks_for_ends()).then(Counted::default);
                let sums = outlet.summing(stream, position, want);
                Scan { longest, most, ends, counted, sums }.run(read_at, &mut data, back, start)
            }
            false => read_at(&mut data, start).map(Scanned::unseen),
        };
        let Scanned { read, mut framed, counted, sums } = match scanned {
            Ok(scanned) => scanned,
            Err(cause) => return Turn::Failed(cause),
        };
        let Some(len) = read.checked_sub(back) else { return Turn::Rest };
        let from_start = back as u64 == position;
        let known = from_start && read >= self.head.len as usize;
        if before.is_some_and(|before| Head::of(&data[back - before_len..back]) != before)
            || known && !begins_with(&data[..read], self.head)
        {
            return Turn::Truncated { seen: 0 };
        }
        let mut grown = None;
        if known && head_of(&data[..read]).len > self.head.len {
            self.head = head_of(&data[..read]);
            grown = Some(identity(self.file, self.head));
        }
        let mut gathers = *gathers && to_hole.is_none();
        if let Some(identity) = grown.take_if(|_| !gathers) {
            outlet.identify(stream, identity);
        }
        let fresh = &data[back..];
        let mut end = end;
        let len = match to_hole.filter(|to| *to == len) {
            None => len,
            Some(_) => {
                let text = fresh[..len].iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
                match text_from(file, position + len as u64) {
                    Ok(Some(_)) => end = End::Final,
                    Ok(None) => self.few.ends_at = Some(position + text as u64),
                    Err(cause) => return Turn::Failed(cause),
                }
                text
            }
        };
        // Up to the limit the pieces are those of the last life, the cut one at its end included.
        let end = if position + len as u64 == limit { End::Final } else { end };
        mixed.clear();
        let is_all = |counted: &Counted| in_steps && (end != End::Final || counted.bytes == len);
        let counted = counted.filter(is_all);
        let found = match &counted {
            Some(counted) => Framed { bytes: counted.bytes, ..Framed::default() },
            None if in_parts => frame_parts(&fresh[..len], longest, end, GROUP_LINES, ends, mixed),
            None => {
                framed.go_on(&fresh[..len], longest, end, most, ends);
                framed
            }
        };
        let consumed = found.bytes;
        let looked_at = if found.full { consumed } else { len };
        self.scanned = position + looked_at as u64;
        if self.form.is_none() && !self.has_holes && fresh[consumed..len].first() == Some(&0) {
            self.has_holes = true; // room that was taken in advance is counted as if it were used
            self.scanned = position + consumed as u64;
        }
        gathers &= consumed > 0 && (consumed <= SMALL_BYTES || *in_company);
        if let Some(identity) = grown.take_if(|_| !gathers) {
            outlet.identify(stream, identity);
        }
        if consumed > 0 {
            let before = &data[..back + consumed];
            let mut before = Some(Head::of(&before[before.len().saturating_sub(BEFORE_BYTES)..]));
            let fresh = &mut data[back..back + consumed];
            arrange(fresh, mixed);
            let mut part = 0..consumed;
            if in_parts {
                let upto = stream.read_limit().map_or(consumed, |limit| (limit - position) as usize);
                part = (stream.position() - position) as usize..upto.min(consumed);
                if part.end < consumed {
                    (before, self.scanned) = (None, position + part.end as u64); // and what follows is read again
                }
                keep_within(ends, part.start, part.end);
            }
            if part.is_empty() {
                return Turn::Failed(io::Error::other("is not what it was when it was read before"));
            }
            cut_lines.add(found.cut as u64);
            data.keep(back + part.start..back + part.end);
            let sums = sums.map(|sums| sums.end(&data));
            let lines = counted.map_or(WholeLines::Found(ends), |counted| WholeLines::Counted(counted.lines));
            if gathers {
                let small = outlet.gather(data, lines, before.unwrap_or_default(), credit, grown);
                return Turn::Caught(Caught { small, before, len });
            }
            task.waits_for("room downhill");
            match outlet.send_read(stream, data, lines, sums, before.unwrap_or_default(), credit) {
                Ok(()) => {}
                Err(why) => return self.not_handed_over(why),
            }
            task.beat();
            self.before = before;
        }
        if in_parts {
            let at = position + consumed as u64;
            let open = || open_since.filter(|_| consumed == 0).unwrap_or(*now);
            match (consumed < len && !found.full).then(|| (at, open())) {
                None => self.few.clear(|few| few.open_line = None),
                some => self.few.open_line = some,
            }
        }
        self.after_read(len, options.idle, *now)
    }

    /// The end of a turn that has caught something.
    pub fn handed_over(&mut self, before: Option<Head>, len: usize, idle: Duration, now: Instant) -> Turn {
        self.before = before;
        self.after_read(len, idle, now)
    }

    /// It is read once more.
    pub fn not_handed_over(&mut self, why: NotSent) -> Turn {
        match why {
            NotSent::Stopped => Turn::Stopped,
            // Nothing else can be stamped either: like a budget without room.
            NotSent::Unstamped => {
                self.scanned = self.position();
                Turn::NoCredit(Refused::Full)
            }
        }
    }

    /// A read that got nothing met a file that has just become shorter: the next look tells.
    fn after_read(&self, len: usize, idle: Duration, now: Instant) -> Turn {
        if len > 0 && (self.form.is_some() || self.step(idle, now) != Step::Wait) {
            Turn::Again
        } else {
            Turn::Rest
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// There is one of each for every file that is followed, idle or not: what only a few need belongs in a box.
    #[test]
    fn what_a_file_takes_does_not_grow_unseen() {
        let check = |what: &str, bytes: usize, most: usize| assert!(bytes <= most, "{what}: {bytes} bytes");
        check("a tail, with its stream", size_of::<Tail>(), 280);
        check("its stream", size_of::<Stream>(), 80);
        check("where its lines come from", size_of::<crate::record::Origin>(), 80);
        check("a stamp that is open", size_of::<crate::ledger::KeptStamp>(), 88);
        check("what a sink has of it", size_of::<crate::ledger::Progress>(), 24);
    }
}
