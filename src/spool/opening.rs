//! What a spool finds at the start: how far it is, where it ends, what is damaged.
//!
//! Only the segments that the last checkpoints may not know are read whole. Of the others the headers are: which
//! frames are in them. How much that is, is known from the running totals.

use std::io::{self, ErrorKind};
use std::ops::Range;
use std::path::Path;

use super::cursor::{Cursor, CursorFile, Position};
use super::frame::Header;
use super::segment::{self, FIRST_FRAME, Segment};
use super::{Opened, Settings, Spool, between};
use crate::ack::Count;
use crate::disk::{Disk, Open};
use crate::durable::Written;
use crate::error::{Context, Result};

/// What waits in the spool of one sink.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Survey {
    pub sink: String,
    pub frames: u64,
    pub count: Count,
    /// On the disk.
    pub bytes: u64,
}

/// Tells one life of the operating system from another: what a process has written is there after its death, but
/// not after a power cut. Where it cannot be known it is another one each time, which is safe.
pub fn boot_id() -> u64 {
    match std::fs::read("/proc/sys/kernel/random/boot_id") {
        Ok(id) => xxhash_rust::xxh3::xxh3_64(&id),
        Err(cause) => {
            log::debug!("the boot has no id: {cause}");
            fastrand::u64(..)
        }
    }
}

/// Every spool below `folder` (`data_dir/spool`), whether its sink is configured or not; touches nothing. For
/// those who ask what is left, while an agent is running or not.
pub fn survey(disk: &dyn Disk, folder: &Path) -> Result<Vec<Survey>> {
    let one = |path: &Path| {
        let segments = open_segments(disk, path)?;
        let cursor = open_cursor(disk, path, Open::Existing, boot_id())?.and_then(|(_, cursor)| cursor);
        let mut end = End::new(cursor.as_ref(), segments.last());
        if let Some(last) = segments.last() {
            let reach = |header: Header, is_whole| {
                if is_whole {
                    end.reach(&header)
                }
            };
            last.scan(disk, &mut Vec::new(), reach)?;
        }
        let start = Start::new(cursor.as_ref(), &segments, &end);
        let count = between(start.total, end.total);
        let frames = end.sequence.saturating_sub(start.sequence);
        let sink = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let bytes = segments.iter().map(|segment| segment.end).sum();
        Ok::<Survey, io::Error>(Survey { sink, frames, count, bytes })
    };
    let all = disk.list(folder).and_then(|paths| paths.iter().map(|path| one(path)).collect());
    all.context(|| format!("could not look into the spools in {}", folder.display()))
}

fn open_segments(disk: &dyn Disk, folder: &Path) -> io::Result<Vec<Segment>> {
    let found = segment::list(disk, folder)?;
    let opened = found.iter().map(|(number, path)| Segment::open(disk, path, *number));
    opened.filter_map(io::Result::transpose).collect()
}

/// `None`: there is none, and none was to be made.
pub(super) fn open_cursor(
    disk: &dyn Disk,
    folder: &Path,
    how: Open,
    boot: u64,
) -> io::Result<Option<(CursorFile, Option<Cursor>)>> {
    match CursorFile::open(disk, &folder.join("cursor"), how, boot) {
        Err(cause) if cause.kind() == ErrorKind::NotFound && how == Open::Existing => Ok(None),
        opened => opened.map(Some),
    }
}

/// Where what is written next goes on.
#[derive(Clone, Copy, Debug, Default)]
struct End {
    sequence: u64,
    total: Count,
}

impl End {
    fn new(cursor: Option<&Cursor>, last: Option<&Segment>) -> End {
        let mut end = End::default();
        if let Some(cursor) = cursor {
            end = End { sequence: cursor.sequence, total: cursor.before };
        }
        match last {
            Some(last) if last.sequence > end.sequence => End { sequence: last.sequence, total: last.before },
            _ => end,
        }
    }

    fn reach(&mut self, header: &Header) {
        if header.sequence >= self.sequence {
            *self = End { sequence: header.sequence + 1, total: header.after() };
        }
    }
}

/// Frames that no whole one was found for, between two that are whole.
#[derive(Default)]
struct Gaps {
    found: Vec<Gap>,
    sequence: u64,
    total: Count,
}

struct Gap {
    frames: Range<u64>,
    from: Count,
    to: Count,
}

impl Gaps {
    fn new(first: &Segment) -> Gaps {
        Gaps { found: Vec::new(), sequence: first.sequence, total: first.before }
    }

    fn reach(&mut self, header: &Header) {
        if header.sequence > self.sequence {
            let (frames, from) = (self.sequence..header.sequence, self.total);
            self.found.push(Gap { frames, from, to: header.before });
        }
        (self.sequence, self.total) = (header.sequence + 1, header.after());
    }
}

/// Where reading goes on.
struct Start {
    at: Position,
    sequence: u64,
    total: Count,
}

impl Start {
    fn new(cursor: Option<&Cursor>, segments: &[Segment], end: &End) -> Start {
        let from = cursor.map_or(0, |cursor| cursor.at.segment);
        match (cursor, segments.iter().find(|segment| segment.number >= from)) {
            (Some(cursor), Some(segment)) if segment.number == from => {
                let offset = cursor.at.offset.clamp(FIRST_FRAME, segment.end.max(FIRST_FRAME));
                let at = Position { segment: from, offset };
                Start { at, sequence: cursor.sequence, total: cursor.before }
            }
            (_, Some(segment)) => {
                let at = Position { segment: segment.number, offset: FIRST_FRAME };
                Start { at, sequence: segment.sequence, total: segment.before }
            }
            (_, None) => {
                let behind = segments.last().map_or(from, |last| from.max(last.number + 1));
                let at = Position { segment: behind, offset: FIRST_FRAME };
                Start { at, sequence: end.sequence, total: end.total }
            }
        }
    }
}

impl Spool {
    /// Reads what the last life left, and makes nothing. An error: the disk does not give it.
    pub fn open(settings: Settings) -> Result<(Spool, Opened)> {
        let folder = settings.folder.clone();
        Spool::load(settings).context(|| format!("could not open the spool {}", folder.display()))
    }

    fn load(settings: Settings) -> io::Result<(Spool, Opened)> {
        let disk = settings.disk.clone();
        let passed = settings.passed.clone();
        let found = segment::list(&*disk, &settings.folder)?;
        let (mut file, cursor) =
            open_cursor(&*disk, &settings.folder, Open::Existing, settings.boot)?.unzip();
        let cursor = cursor.flatten();
        if let (Some(file), Some(cursor)) = (&mut file, &cursor) {
            file.take_over(cursor, &passed);
        }
        // Never again a segment or a frame that a cursor of ours has named, even if a power cut took the file.
        let after_cursor = cursor.as_ref().map_or(0, |cursor| cursor.at.segment + 1);
        let next_segment = found.last().map_or(after_cursor, |(last, _)| after_cursor.max(last + 1));
        let mut spool = Spool::empty(settings, file, next_segment);
        let mut segments = Vec::new();
        for (number, path) in found {
            match Segment::open(&*disk, &path, number)? {
                Some(segment) => segments.push(segment),
                None => {
                    spool.put_aside(&path, 0..u64::MAX)?;
                    disk.remove(&path)?;
                }
            }
        }
        spool.known = cursor.as_ref().map_or(0, |cursor| cursor.known);
        // The last one is read in any case: it tells where all of it ends.
        let first = segments.iter().take_while(|segment| segment.number < spool.known).count();
        let first = first.min(segments.len().saturating_sub(1));
        let mut gaps = segments.get(first).map(Gaps::new).unwrap_or_default();
        let mut end = End::new(cursor.as_ref(), segments.last());
        let mut opened = Opened::default();
        let found = |header: &Header| {
            let answered = cursor.as_ref().is_some_and(|cursor| {
                let answered = cursor.answered(header.sequence, header.lineage);
                answered.is_none_or(|records| records >= header.records)
            });
            (header.generation, header.start..header.end, answered)
        };
        for segment in &segments[..first] {
            segment.headers(&*disk, &mut spool.scratch, |_, _, header| {
                opened.frames.push(found(&header));
                Ok(())
            })?;
        }
        for segment in &mut segments[first..] {
            spool.look_through(segment, |header| {
                end.reach(header);
                gaps.reach(header);
                opened.frames.push(found(header));
            })?;
        }
        if !segments.is_empty() {
            spool.make_folder()?; // it is there, and its names are to be synced
        }
        let start = Start::new(cursor.as_ref(), &segments, &end);
        for segment in &mut segments {
            segment.ended = Some(passed.count());
            segment.answered = (segment.number < start.at.segment).then_some(passed.count());
        }
        spool.segments = segments.into();
        let named = cursor.iter().flat_map(|cursor| &cursor.marks).map(|mark| mark.sequence + 1);
        spool.next_sequence = named.fold(end.sequence.max(start.sequence), u64::max);
        spool.total = end.total;
        (spool.read, spool.read_sequence, spool.read_total) = (start.at, start.sequence, start.total);
        spool.pending = between(start.total, end.total);
        for Gap { frames, from, to } in gaps.found {
            if frames.end > start.sequence {
                let from = if frames.start < start.sequence { start.total } else { from };
                spool.settle(between(from, to));
                spool.torn.push((from, to));
            }
        }
        spool.former = cursor.map(|cursor| (spool.next_sequence, cursor));
        opened.pending = spool.pending;
        Ok((spool, opened))
    }

    /// Which frames are whole, and cuts what is behind the last one.
    fn look_through(&mut self, segment: &mut Segment, mut each: impl FnMut(&Header)) -> io::Result<()> {
        let disk = self.settings.disk.clone();
        let mut scratch = std::mem::take(&mut self.scratch);
        let mut behind = 0;
        let whole_to = segment.scan(&*disk, &mut scratch, |header, is_whole| {
            behind = if is_whole { 0 } else { behind + u64::from(header.records) };
            if is_whole {
                each(&header);
            }
        })?;
        self.scratch = scratch;
        let file = disk.open(&segment.path, Open::Existing)?;
        if self.settings.unsynced.was_in_doubt() {
            segment.write_again(&*file, &mut self.scratch)?;
        }
        if whole_to < segment.end {
            if behind > 0 {
                self.put_aside(&segment.path, whole_to..segment.end)?;
            }
            file.set_size(whole_to)?;
            segment.end = whole_to;
        }
        // The next checkpoint relies on what is said here, and the last life may have died before it could sync.
        self.settings.unsynced.note(Written::found(file));
        Ok(())
    }
}
