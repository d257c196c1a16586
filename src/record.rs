//! What travels: a chunk of whole lines, its records, and a sink's batch of them.
//!
//! ```text
//! monitor ── Chunk { Lines, Ack } ──▶ worker ── Parcel { Shared<Records>, Share } ──▶ lane ── Batch ──▶ sender
//! ```
//!
//! The bytes are copied once, from the file into the chunk. Everything after that is a view: a [`Record`]
//! borrows its text from the chunk until a stage really changes it, and a batch is a list of ranges.
//!
//! Not here: what a line is (`monitors/file/framing.rs`), who answers for it (`ack.rs`).

mod buffer;
mod dealer;
mod ends;
mod plain;
mod shift;
mod sums;

use std::ops::Range;
use std::sync::Arc;

pub use buffer::{Buffer, Pool};
pub use dealer::{Dealer, Parcel};
pub use ends::Ends;
pub use plain::Plain;
pub use shift::Shift;
pub use sums::{PageSums, Summing};

use crate::ack::{Ack, Count, GenerationId, Share};
use crate::budget::Credit;
use crate::sync::Shared;

/// Sorted by name, names unique. Shared by all records of a source until a stage changes them; the names and values
/// are shared even by those of different files.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Labels(Vec<(Arc<str>, Arc<str>)>);

impl Labels {
    pub fn new<N: Into<Arc<str>>, V: Into<Arc<str>>>(pairs: impl IntoIterator<Item = (N, V)>) -> Labels {
        let mut labels = Labels::default();
        pairs.into_iter().for_each(|(name, value)| labels.set(name, value));
        labels
    }

    /// Adds a label, or replaces the value of one.
    pub fn set(&mut self, name: impl Into<Arc<str>>, value: impl Into<Arc<str>>) {
        let (name, value) = (name.into(), value.into());
        match self.0.binary_search_by(|(known, _)| known.cmp(&name)) {
            Ok(at) => self.0[at].1 = value,
            Err(at) => {
                self.0.reserve_exact(1); // every file that is followed has some
                self.0.insert(at, (name, value));
            }
        }
    }

    /// A copy, with one more.
    pub fn with(&self, name: Arc<str>, value: Arc<str>) -> Labels {
        let mut all = Vec::with_capacity(self.0.len() + 1);
        all.extend_from_slice(&self.0);
        let mut labels = Labels(all);
        labels.set(name, value);
        labels
    }

    pub fn remove(&mut self, name: &str) {
        self.0.retain(|(known, _)| **known != *name);
    }

    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.binary_search_by(|(known, _)| (**known).cmp(name)).ok().map(|at| &*self.0[at].1)
    }

    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(name, value)| (&**name, &**value))
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// Where lines come from: one generation of one file, or one stream.
#[derive(Clone, Debug)]
pub struct Origin {
    /// The `name` of the entry of `sources[]`.
    pub source: Arc<str>,
    pub generation: GenerationId,
    /// Binds the source to one worker and one sender: equal for all generations of one lineage, so that order
    /// holds across a rotation.
    pub lineage: u64,
    /// `host`, `source`, `filename` and those of the configuration.
    pub labels: Arc<Labels>,
    /// The path that matched, with invalid UTF-8 replaced; `None` for a stream.
    pub filename: Option<Arc<str>>,
    /// Can be read again after a restart: what is let go is not lost.
    pub replayable: bool,
    /// Stages of the pipeline that its lines pass because it asks for them.
    pub stages: Box<[Arc<str>]>,
    /// Where they should stand in memory.
    pub shift: Shift,
}

/// Whole lines of one source in one buffer.
#[derive(Debug)]
pub struct Lines {
    pub origin: Arc<Origin>,
    /// Offset of `data[0]` in the generation, in bytes.
    pub start: u64,
    /// The exact bytes, line ends included. A line without an end at its end was cut: at the limit of length,
    /// or because the file ended there.
    pub data: Buffer<u8>,
    /// Of `data`, if it is likely to go to a disk from where it is.
    pub sums: Option<PageSums>,
    /// Of the lines in `data`.
    pub ends: Ends,
    /// Line `i` has the time `base_ns + i`, unless it is `timed` or a stage parses a better one.
    pub base_ns: i64,
    /// Number of the first line in its generation, from 0.
    pub first_line: u64,
    /// The first line goes on where an earlier record was cut.
    pub continues: bool,
    /// Of sources whose lines have times of their own.
    pub timed: Option<Timed>,
    /// Pays for `data` and `ends`, for as long as they live.
    pub credit: Credit,
}

/// What the lines of a source have each for themselves that gives every line a time: a container.
#[derive(Debug)]
pub struct Timed {
    /// Of each line, in nanoseconds since 1970.
    pub times: Vec<i64>,
    pub marks: Vec<Mark>,
    /// By [`Mark::side`].
    pub sides: Arc<[Beside; 2]>,
}

/// One byte per line.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Mark(u8);

impl Mark {
    /// `side`: 0 or 1. `partial`: see [`Lines::is_partial`], which cannot know it where lines of two streams alternate.
    pub fn new(side: u8, partial: bool) -> Mark {
        Mark(side & 1 | u8::from(partial) << 1)
    }

    pub fn side(self) -> usize {
        usize::from(self.0 & 1)
    }

    pub fn is_partial(self) -> bool {
        self.0 & 2 != 0
    }
}

/// What all lines of one stream of a source have.
#[derive(Debug, Default)]
pub struct Beside {
    pub labels: Arc<Labels>,
    pub metadata: Vec<(Arc<str>, Box<str>)>,
}

/// What [`Timed`] costs per line.
pub const TIMED_BYTES: usize = size_of::<i64>() + size_of::<Mark>();

impl Lines {
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    pub fn byte_range(&self) -> Range<u64> {
        self.start..self.start + self.data.len() as u64
    }

    pub fn count(&self) -> Count {
        Count { lines: self.ends.len() as u64, bytes: self.data.len() as u64 }
    }

    #[inline]
    fn starts_at(&self, line: usize) -> usize {
        self.ends.start(line, &self.data)
    }

    /// With its line end.
    #[inline]
    pub fn raw(&self, line: usize) -> &[u8] {
        &self.data[self.starts_at(line)..self.starts_at(line + 1)]
    }

    /// Without its line end (`\n` or `\r\n`).
    pub fn text(&self, line: usize) -> &[u8] {
        without_line_end(self.raw(line))
    }

    /// Cut off before its end, or the rest of one that was.
    pub fn is_partial(&self, line: usize) -> bool {
        match &self.timed {
            Some(timed) => timed.marks[line].is_partial(),
            None => self.goes_on(line) || !self.raw(line).ends_with(b"\n"),
        }
    }

    /// Lines of two streams may alternate: there every line stands for itself.
    #[inline]
    fn goes_on(&self, line: usize) -> bool {
        match line {
            _ if self.timed.is_some() => false,
            0 => self.continues,
            _ => !self.data[..self.starts_at(line)].ends_with(b"\n"),
        }
    }
}

/// What a line has before any stage has seen it.
impl Lines {
    pub fn time_ns(&self, line: usize) -> i64 {
        self.timed.as_ref().map_or(self.base_ns + line as i64, |timed| timed.times[line])
    }

    pub fn labels(&self, line: usize) -> &Arc<Labels> {
        self.beside(line).map_or(&self.origin.labels, |beside| &beside.labels)
    }

    pub fn metadata(&self, line: usize) -> &[(Arc<str>, Box<str>)] {
        self.beside(line).map_or(&[], |beside| &beside.metadata)
    }

    fn beside(&self, line: usize) -> Option<&Beside> {
        self.timed.as_ref().map(|timed| &timed.sides[timed.marks[line].side()])
    }
}

#[inline]
pub fn without_line_end(raw: &[u8]) -> &[u8] {
    let text = raw.strip_suffix(b"\n").unwrap_or(raw);
    if text.len() < raw.len() { text.strip_suffix(b"\r").unwrap_or(text) } else { text }
}

/// Lines and who must answer for them: what an Outlet hands over.
pub struct Chunk {
    pub lines: Lines,
    pub ack: Ack,
}

/// What is left of a chunk after the pipeline, for all sinks.
#[derive(Debug)]
pub struct Records {
    lines: Lines,
    kept: Kept,
    /// Of each line, where that cannot be seen from `lines` alone; empty for what was read.
    places: Vec<Place>,
    frame: Option<u64>,
}

/// What a line that came back from a spool was when it was read: others may have stood in between.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    pub time_ns: i64,
    /// Counted from [`Lines::start`].
    pub offset: u32,
    /// Bytes it has in its source, line end included.
    pub len: u32,
    pub partial: bool,
    /// The rest of a line that was cut.
    pub continues: bool,
    /// The bytes in the chunk are what a stage made of its text.
    pub rewritten: bool,
}

#[derive(Debug)]
enum Kept {
    /// The pipeline changed nothing.
    All,
    Some(Vec<Entry>),
}

/// One line that the pipeline kept.
#[derive(Debug)]
pub struct Entry {
    pub line: u32,
    /// `None`: as it was read.
    pub changed: Option<Box<Changed>>,
}

/// What stages made of a line; `None` and empty mean: as it was.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Changed {
    pub text: Option<Box<[u8]>>,
    pub time_ns: Option<i64>,
    /// Something of the line is missing, although it has a line end.
    pub partial: bool,
    pub labels: Option<Arc<Labels>>,
    /// Structured metadata: belongs to the line, not to its stream. Holds what the line had before, too.
    pub metadata: Vec<(Arc<str>, Box<str>)>,
}

/// A view of one line, as a sink sees it.
#[derive(Debug, Clone, Copy)]
pub struct Record<'a> {
    pub origin: &'a Arc<Origin>,
    pub labels: &'a Arc<Labels>,
    pub time_ns: i64,
    /// Without its line end.
    pub text: &'a [u8],
    /// As it stands in the source, line end included; `None` when a stage replaced the text.
    pub raw: Option<&'a [u8]>,
    pub metadata: &'a [(Arc<str>, Box<str>)],
    /// Cut at the limit of length or at the end of a file, or the rest of such a line.
    pub partial: bool,
    /// The rest of a line that was cut.
    pub continues: bool,
    /// Offset of the line in its generation, in bytes.
    pub offset: u64,
    /// How many bytes it has there, line end included.
    pub len: u64,
}

impl Records {
    /// An empty pipeline: every line as it is.
    pub fn untouched(lines: Lines) -> Records {
        Records { lines, kept: Kept::All, places: Vec::new(), frame: None }
    }

    /// `entries` in rising order of lines. Lines that are not named were dropped and are settled already.
    pub fn kept(lines: Lines, entries: Vec<Entry>) -> Records {
        Records { lines, kept: Kept::Some(entries), places: Vec::new(), frame: None }
    }

    /// What a spool gives back, of frame number `frame`: one entry a line, and one place a line, or none at all if
    /// the lines stand as they were read, one behind the other.
    pub fn replayed(lines: Lines, entries: Option<Vec<Entry>>, places: Vec<Place>, frame: u64) -> Records {
        assert!(places.is_empty() || places.len() == lines.len(), "a place for every line, or for none");
        Records { lines, kept: entries.map_or(Kept::All, Kept::Some), places, frame: Some(frame) }
    }

    /// They came out of the spool of their sink, where they are this frame until they are answered for.
    pub fn frame(&self) -> Option<u64> {
        self.frame
    }

    /// The bytes of the source that all of them stand for, with what was dropped around them.
    pub fn byte_range(&self) -> Range<u64> {
        self.lines.byte_range()
    }

    pub fn origin(&self) -> &Arc<Origin> {
        &self.lines.origin
    }

    /// How many records there are.
    pub fn len(&self) -> u32 {
        match &self.kept {
            Kept::All => self.lines.len() as u32,
            Kept::Some(entries) => entries.len() as u32,
        }
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    #[inline]
    pub fn get(&self, index: u32) -> Record<'_> {
        let (line, changed) = self.entry(index);
        self.view(line, changed)
    }

    /// Of one record; less work than all of it.
    #[inline]
    pub fn labels(&self, index: u32) -> &Arc<Labels> {
        let (_, changed) = self.entry(index);
        changed.and_then(|changed| changed.labels.as_ref()).unwrap_or(&self.lines.origin.labels)
    }

    /// A line of the chunk by its place there, as it was read, whether it is among the records or not: for the
    /// dead letters, when a stage could not bear it.
    pub fn as_read(&self, line: u32) -> Record<'_> {
        self.view(line as usize, None)
    }

    #[inline]
    fn view<'a>(&'a self, line: usize, changed: Option<&'a Changed>) -> Record<'a> {
        let raw = self.lines.raw(line);
        let text = changed.and_then(|c| c.text.as_deref());
        if let Some(place) = self.places.get(line) {
            return Record {
                origin: &self.lines.origin,
                labels: changed.and_then(|c| c.labels.as_ref()).unwrap_or(&self.lines.origin.labels),
                time_ns: place.time_ns,
                text: if place.rewritten { raw } else { without_line_end(raw) },
                raw: (!place.rewritten).then_some(raw),
                metadata: changed.map_or(&[], |c| &c.metadata),
                partial: place.partial,
                continues: place.continues,
                offset: self.lines.start + u64::from(place.offset),
                len: u64::from(place.len),
            };
        }
        Record {
            origin: &self.lines.origin,
            labels: changed.and_then(|c| c.labels.as_ref()).unwrap_or_else(|| self.lines.labels(line)),
            time_ns: changed.and_then(|c| c.time_ns).unwrap_or_else(|| self.lines.time_ns(line)),
            text: text.unwrap_or_else(|| without_line_end(raw)),
            raw: text.is_none().then_some(raw),
            metadata: match changed {
                Some(changed) if !changed.metadata.is_empty() => &changed.metadata,
                _ => self.lines.metadata(line),
            },
            partial: changed.is_some_and(|c| c.partial) || self.lines.is_partial(line),
            continues: self.lines.goes_on(line),
            offset: self.lines.start + self.lines.starts_at(line) as u64,
            len: raw.len() as u64,
        }
    }

    /// Where the last of some records ends in its generation, in bytes: all that follow stand behind it.
    ///
    /// `range` is not empty.
    pub fn end(&self, range: &Range<u32>) -> u64 {
        let line = self.entry(range.end - 1).0;
        let end = match self.places.get(line) {
            Some(place) => u64::from(place.offset + place.len),
            None => self.lines.starts_at(line + 1) as u64,
        };
        self.lines.start + end
    }

    #[inline]
    fn entry(&self, index: u32) -> (usize, Option<&Changed>) {
        match &self.kept {
            Kept::All => (index as usize, None),
            Kept::Some(entries) => {
                let entry = &entries[index as usize];
                (entry.line as usize, entry.changed.as_deref())
            }
        }
    }

    /// Lines and source bytes of some of the records: what their shares count.
    pub fn count(&self, range: Range<u32>) -> Count {
        let lines = u64::from(range.end - range.start);
        let bytes = match &self.kept {
            _ if !self.places.is_empty() => {
                range.map(|index| u64::from(self.places[self.entry(index).0].len)).sum()
            }
            Kept::All if range.is_empty() => 0,
            Kept::All => {
                let [start, end] = [range.start, range.end].map(|line| self.lines.starts_at(line as usize));
                (end - start) as u64
            }
            Kept::Some(_) => range.map(|index| self.lines.raw(self.entry(index).0).len() as u64).sum(),
        };
        Count { lines, bytes }
    }
}

/// What a record adds to any encoding besides its text: time, tags, lengths. Keeps a batch of empty lines from
/// growing to ten times its source bytes when it is encoded.
pub const RECORD_WEIGHT: u64 = 24;

impl Records {
    /// How many records from `first` on fit into `max_records` and `max_weight`, by source bytes plus a fixed
    /// weight per record (changed ones by what they have become). May be none. `plain`: that weight where nothing has
    /// touched the records; all others weigh [`RECORD_WEIGHT`] each.
    pub fn fit(&self, first: u32, max_records: usize, max_weight: u64, plain: u64) -> u32 {
        let most = (self.len() - first).min(u32::try_from(max_records).unwrap_or(u32::MAX));
        match &self.kept {
            Kept::All if self.weight(first..first + most, plain) <= max_weight => most,
            Kept::All => {
                let begin = self.lines.starts_at(first as usize) as u64;
                let ends = &self.lines.ends.of(&self.lines.data)[first as usize..(first + most) as usize];
                // Ends rise, so the weights of longer and longer prefixes do: a binary search finds the last fit.
                let (mut fits, mut beyond) = (0, ends.len() + 1);
                while beyond - fits > 1 {
                    let middle = fits + (beyond - fits) / 2;
                    let weight = u64::from(ends[middle - 1]) - begin + middle as u64 * plain;
                    if weight <= max_weight { fits = middle } else { beyond = middle }
                }
                fits as u32
            }
            Kept::Some(_) => {
                let mut left = max_weight;
                let fits = (first..first + most).take_while(|index| {
                    let weight = self.weight_of(*index);
                    let fits = weight <= left;
                    left = left.saturating_sub(weight);
                    fits
                });
                fits.count() as u32
            }
        }
    }

    /// What some of the records weigh; see [`Records::fit`].
    pub fn weight(&self, range: Range<u32>, plain: u64) -> u64 {
        match &self.kept {
            Kept::All => {
                let count = self.count(range);
                count.bytes + count.lines * plain
            }
            Kept::Some(_) => range.map(|index| self.weight_of(index)).sum(),
        }
    }

    fn weight_of(&self, index: u32) -> u64 {
        let (line, changed) = self.entry(index);
        let added =
            changed.map_or(0, |changed| changed.text.as_ref().map_or(0, |text| text.len()) + changed.size());
        (self.lines.raw(line).len() + added) as u64 + RECORD_WEIGHT
    }
}

impl Changed {
    /// Bytes of labels and metadata, as an encoder may have to repeat them.
    fn size(&self) -> usize {
        let labels =
            self.labels.iter().flat_map(|labels| labels.iter()).map(|(name, value)| name.len() + value.len());
        let metadata = self.metadata.iter().map(|(name, value)| name.len() + value.len());
        labels.sum::<usize>() + metadata.sum::<usize>()
    }
}

impl Record<'_> {
    /// The same in every replay, and no other record's anywhere: for sinks that know by it what they have already.
    /// `data_id`: of the data folder ([`crate::ledger::Restored::id`]).
    pub fn id(&self, data_id: &str) -> String {
        format!("{data_id}-{}-{}", self.origin.generation.0, self.offset)
    }
}

/// Some records of one chunk.
#[derive(Clone, Debug)]
pub struct Slice {
    pub records: Shared<Records>,
    pub range: Range<u32>,
}

impl Slice {
    /// The whole of it.
    pub fn all(records: Shared<Records>) -> Slice {
        let range = 0..records.len();
        Slice { records, range }
    }

    /// Its first record: the only one, where it was cut to one.
    pub fn first(&self) -> Record<'_> {
        self.records.get(self.range.start)
    }

    pub fn iter(&self) -> impl Iterator<Item = Record<'_>> {
        self.range.clone().map(|index| self.records.get(index))
    }

    pub fn count(&self) -> Count {
        self.records.count(self.range.clone())
    }

    /// Where it ends in its generation, in bytes. Not for one without records.
    pub fn end(&self) -> u64 {
        self.records.end(&self.range)
    }
}

/// Records for one sink, numbered and in order. Encoded by the sender, with the same bytes on every try.
pub struct Batch {
    /// Rises by one per batch of a lane; the halves of a split batch get new numbers.
    pub number: u64,
    pub parts: Vec<(Slice, Share)>,
}

impl Batch {
    /// All records, in order. The index of a record in this walk is what a refusal names.
    pub fn records(&self) -> impl Iterator<Item = Record<'_>> {
        self.parts.iter().flat_map(|(slice, _)| slice.iter())
    }

    pub fn slices(&self) -> impl Iterator<Item = &Slice> {
        self.parts.iter().map(|(slice, _)| slice)
    }

    pub fn count(&self) -> Count {
        let mut sum = Count::default();
        self.parts.iter().for_each(|(_, share)| sum += share.count());
        sum
    }
}

#[cfg(test)]
pub mod fixture;
