//! One generation as its monitor reads it: where it stands, and what earlier lives have made of what follows. Pure.
//!
//! Always true: a chunk that ends at [`Stream::read_limit`] or before it lacks the same sinks all over, and lies in one
//! stamp of an earlier life or in none.

use std::collections::VecDeque;
use std::path::Path;

use super::origins::Place;
use crate::ack::{GenerationId, SinkId, SinkSet};
use crate::ledger::{Head, KeptStamp, Known, Progress, Record, Stamp};

/// One generation as its monitor reads it.
pub struct Stream {
    pub(super) generation: GenerationId,
    pub(super) lineage: u64,
    pub(super) place: Place,
    pub(super) position: u64,
    pub(super) next_line: u64,
    pub(super) continues: bool,
    /// `None` once the position is past all of it.
    pub(super) past: Option<Box<Past>>,
    /// How it began, if that is not in the journal yet.
    pub(super) unwritten: Option<Box<Record>>,
    /// It has no number before its first line tells which one.
    pub(super) nameless: bool,
}

/// What earlier lives have made of what follows.
#[derive(Default)]
pub(super) struct Past {
    /// What each sink had when we began; empty once the position is past all of it.
    pub progress: Vec<Progress>,
    /// How an earlier life cut and timed what is read again: those that end behind the position, rising.
    pub stamps: VecDeque<KeptStamp>,
}

impl Past {
    pub fn of(known: &Known) -> Past {
        let ahead = known.stamps.iter().filter(|stamp| stamp.end > known.position);
        Past { progress: known.progress.clone(), stamps: ahead.copied().collect() }
    }
}

impl Stream {
    /// Offset of the next byte to read.
    pub fn position(&self) -> u64 {
        self.position
    }

    /// A chunk must not cross this offset: some sink has what follows, or lacks it, or what follows was cut and
    /// timed by another stamp. What ends here without a line end was cut here before.
    pub fn read_limit(&self) -> Option<u64> {
        let edges = self.progress().iter().flat_map(|progress| progress.edges(self.position));
        edges.chain(self.stamp_limit()).min()
    }

    /// Where an earlier life began or ended a chunk behind the position.
    pub fn stamp_limit(&self) -> Option<u64> {
        self.next_stamp().map(|stamp| match self.position < stamp.start {
            true => stamp.start,
            false => stamp.end,
        })
    }

    /// Where an earlier life began the chunk that the position lies in.
    pub fn stamp_start(&self) -> Option<u64> {
        self.next_stamp().map(|stamp| stamp.start).filter(|start| *start <= self.position)
    }

    /// Of the line at the position, if an earlier life has given it one.
    pub(super) fn time_again(&self) -> Option<i64> {
        let stamp = self.next_stamp().filter(|stamp| stamp.start <= self.position)?;
        Some(stamp.base_ns + self.next_line.saturating_sub(stamp.first_line) as i64)
    }

    /// Of a chunk that begins at the position.
    pub(super) fn stamp(
        &self,
        data: &[u8],
        lines: usize,
        base_ns: i64,
        sinks: SinkSet,
        before: Head,
    ) -> Stamp {
        Stamp {
            generation: self.generation,
            start: self.position,
            end: self.position + data.len() as u64,
            first_line: self.next_line,
            lines: lines as u64,
            base_ns,
            continues: self.continues,
            cut: !data.ends_with(b"\n"),
            sinks,
            before,
            cursor: None,
        }
    }

    /// Moves the position, and takes numbers from the stamps where they begin and end: they are what they were,
    /// even if lines are cut at another length now.
    pub(super) fn move_to(&mut self, position: u64, lines: u64, cut: bool) {
        self.position = position;
        self.next_line += lines;
        self.continues = cut;
        while let Some(stamp) = self.next_stamp().copied().filter(|stamp| stamp.end <= position) {
            if stamp.end == position {
                (self.next_line, self.continues) = (stamp.first_line + stamp.lines, stamp.cut);
            }
            self.past.as_mut().and_then(|past| past.stamps.pop_front());
        }
        if let Some(stamp) = self.next_stamp().copied().filter(|stamp| stamp.start == position) {
            (self.next_line, self.continues) = (stamp.first_line, stamp.continues);
        }
        self.forget_what_is_over();
    }

    /// So that an idle file keeps no memory for what earlier lives have made of it.
    pub(super) fn forget_what_is_over(&mut self) {
        let Some(past) = &mut self.past else { return };
        if past.progress.iter().all(|progress| progress.edges(self.position).next().is_none()) {
            past.progress = Vec::new(); // from here on every sink lacks everything
        }
        if past.progress.is_empty() && past.stamps.is_empty() {
            self.past = None;
        }
    }

    fn progress(&self) -> &[Progress] {
        self.past.as_ref().map_or(&[], |past| &past.progress)
    }

    fn next_stamp(&self) -> Option<&KeptStamp> {
        self.past.as_ref()?.stamps.front()
    }

    pub fn generation(&self) -> GenerationId {
        self.generation
    }

    /// The path that matched when it was first seen.
    pub fn filename(&self) -> Option<&Path> {
        match &self.place {
            Place::File { path, .. } => Some(path),
            Place::Own(own) => own.filename.as_deref(),
        }
    }

    pub(super) fn lacking(&self, sinks: usize) -> SinkSet {
        if self.progress().is_empty() {
            return SinkSet::all(sinks);
        }
        let mut lacking = SinkSet::EMPTY;
        for (at, progress) in self.progress().iter().enumerate() {
            if !progress.contains(self.position) {
                lacking.insert(SinkId(at as u8));
            }
        }
        lacking
    }
}
