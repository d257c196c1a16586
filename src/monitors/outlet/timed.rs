//! The same door for sources that give every line its own time, and can be read again from a time on: containers.
//!
//! They need no journal. Their times are their own, their offsets are virtual: the bytes of their lines, counted from
//! the first one that was ever read; and their numbers are derived from what they are and where reading began. So a
//! replay that brings the same lines brings the same offsets, even of a stream that the ledger had no time to save:
//! what outputs have of it is not sent again.

use std::path::Path;
use std::sync::Arc;

use xxhash_rust::xxh3::Xxh3;

use super::origins::{Account, Own, Place};
use super::stream::Past;
use super::{CHUNK_LINES, NotSent, Outlet, Stream, cost_besides};
use crate::ack::{Count, GenerationId};
use crate::budget::{Credit, Refused};
use crate::ledger::{BEFORE_BYTES, Cursor, Head, Known, Note, Opened, Stamp};
use crate::monitors::SourceOptions;
use crate::record::{Chunk, Labels, Lines, Origin, Shift, TIMED_BYTES, Timed};

/// No line costs less on its way to us: its time, and a head or a line end.
const WIRE_BYTES_MIN: usize = 32;

/// Who a stream with times is.
pub struct Timekeeper<'a> {
    pub source: &'a SourceOptions,
    /// What the ledger and people know it by.
    pub place: &'a str,
    pub labels: Labels,
    pub lineage: u64,
    /// See [`Origin::stages`].
    pub stages: Vec<Arc<str>>,
}

impl<'a> Timekeeper<'a> {
    /// One that nothing more will be read of.
    pub fn of_the_past(source: &'a SourceOptions, place: &'a str, lineage: u64) -> Timekeeper<'a> {
        Timekeeper { source, place, labels: Labels::default(), lineage, stages: Vec::new() }
    }
}

/// Lines with their times, gathered until they are sent.
pub struct Gathered {
    pub data: Vec<u8>,
    pub ends: Vec<u32>,
    pub timed: Timed,
    /// Behind the last of them.
    pub cursor: Option<Cursor>,
}

impl Stream {
    /// See [`Outlet::open_timed`].
    pub fn is_nameless(&self) -> bool {
        self.nameless
    }

    /// What is read now is not what was read before: no sink has any of it.
    pub fn forget_the_past(&mut self) {
        self.past = None;
    }
}

impl Outlet {
    /// One that was never seen before. `from`: where reading begins; `None`: at its beginning, and it is nameless until
    /// its first line is there, since the beginning of a log may be gone when it is read again.
    pub fn open_timed(&mut self, who: Timekeeper<'_>, from: Option<Cursor>) -> Stream {
        let mut stream = self.timed_stream(who, GenerationId(0));
        match from {
            Some(cursor) => self.name(&mut stream, (b'c', cursor.ns), from),
            None => stream.nameless = true,
        }
        stream
    }

    /// The first line of a stream that is nameless is about to come: its time, `ns`, names it.
    pub fn name_by_first_line(&mut self, stream: &mut Stream, ns: i64) {
        stream.nameless = false;
        self.name(stream, (b'l', ns), None);
    }

    fn name(&mut self, stream: &mut Stream, (kind, ns): (u8, i64), cursor: Option<Cursor>) {
        let mut hash = Xxh3::with_seed(stream.lineage);
        hash.update(&[kind]);
        hash.update(&ns.to_le_bytes());
        let generation = GenerationId::derived_from(hash.digest());
        let Place::Own(own) = &mut stream.place else { return }; // a file has a number from its beginning
        let origin = Arc::make_mut(&mut own.account.origin);
        (origin.generation, stream.generation) = (generation, generation);
        let progress = self.supply.foretold.get(&generation).cloned();
        stream.past = progress.map(|progress| Box::new(Past { progress, ..Past::default() }));
        self.supply.book.note(Note::Opened(Box::new(Opened {
            generation,
            source: origin.source.clone(),
            filename: own.filename.clone(),
            identity: None,
            lineage: stream.lineage,
            start: 0,
            cursor,
        })));
    }

    /// Goes on with one of an earlier life.
    pub fn reopen_timed(&mut self, who: Timekeeper<'_>, known: &Known) -> Stream {
        Stream {
            position: known.position,
            next_line: known.line,
            continues: known.continues,
            past: Some(Box::new(Past::of(known))),
            ..self.timed_stream(who, known.generation)
        }
    }

    fn timed_stream(&self, who: Timekeeper<'_>, generation: GenerationId) -> Stream {
        let place: Arc<str> = who.place.into();
        let origin = Origin {
            source: who.source.name.clone(),
            generation,
            lineage: who.lineage,
            labels: Arc::new(who.labels),
            filename: None,
            // Anybody may remove a container, and its log with it.
            replayable: false,
            stages: who.stages.into(),
            shift: Shift::default(),
        };
        let holder = self.supply.budget.holder(&origin.source, Some(&place));
        let account = Account { origin: Arc::new(origin), holder };
        let own = Own { account, filename: Some(Path::new(who.place).into()) };
        Stream {
            generation,
            lineage: who.lineage,
            place: Place::Own(Box::new(own)),
            position: 0,
            next_line: 0,
            continues: false,
            past: None,
            unwritten: None,
            nameless: false,
        }
    }

    /// Whether what it is read from is silent for good, as far as anybody knows, and all of it was read.
    pub fn at_end(&mut self, stream: &Stream, at_end: bool) {
        if !stream.nameless {
            self.supply.book.note(Note::AtEnd { generation: stream.generation, at_end });
        }
    }

    /// One of an earlier life that was at its end then is read from now on.
    pub fn goes_on(&mut self, known: &Known) {
        self.supply.book.note(Note::AtEnd { generation: known.generation, at_end: false });
    }

    /// Credit for reading up to `bytes` as they come, and for the lines that they may be.
    pub fn take_timed(&mut self, stream: &Stream, bytes: usize) -> Result<Credit, Refused> {
        let lines = CHUNK_LINES.min(bytes / WIRE_BYTES_MIN + 1);
        let besides = cost_besides(lines, self.supply.sinks) + lines * TIMED_BYTES;
        self.door.try_take(&self.origins.of(stream).holder, bytes + besides)
    }

    /// Like [`Outlet::send`]. What was gathered is empty afterwards.
    pub fn send_timed(
        &mut self,
        stream: &mut Stream,
        gathered: &mut Gathered,
        mut credit: Credit,
    ) -> Result<(), NotSent> {
        let (data, ends) = (std::mem::take(&mut gathered.data), std::mem::take(&mut gathered.ends));
        let sides = gathered.timed.sides.clone();
        let fresh = Timed { times: Vec::new(), marks: Vec::new(), sides };
        let timed = std::mem::replace(&mut gathered.timed, fresh);
        assert!(
            ends.len() <= CHUNK_LINES
                && ends.last().copied() == u32::try_from(data.len()).ok()
                && timed.times.len() == ends.len(),
            "a chunk is made of whole lines"
        );
        let sinks = stream.lacking(self.supply.sinks);
        let count = Count { lines: ends.len() as u64, bytes: data.len() as u64 };
        let range = stream.position..stream.position + count.bytes;
        debug_assert!(stream.read_limit().is_none_or(|limit| range.end <= limit), "read across an edge");
        let generation = stream.generation;
        let stamp = Stamp {
            generation,
            start: range.start,
            end: range.end,
            first_line: stream.next_line,
            lines: count.lines,
            base_ns: 0, // the lines have their own
            continues: false,
            cut: false,
            sinks,
            before: Head::of(&data[data.len().saturating_sub(BEFORE_BYTES)..]),
            cursor: gathered.cursor,
        };
        self.supply.book.note(Note::Read(stamp.clone()));
        if !sinks.is_empty() {
            let besides = cost_besides(ends.len(), sinks.iter().count()) + ends.len() * TIMED_BYTES;
            credit.shrink_to(data.len() + besides);
            let lines = Lines {
                origin: self.origins.of(stream).origin.clone(),
                start: range.start,
                data: data.into(),
                sums: None,
                ends: ends.into(),
                base_ns: 0,
                first_line: stream.next_line,
                continues: false,
                timed: Some(timed),
                credit,
            };
            let ack = self.supply.claims.ack(generation, range.clone(), count, sinks);
            self.hand_over(Chunk { lines, ack }, stamp)?;
        }
        stream.move_to(range.end, count.lines, false);
        Ok(())
    }
}
