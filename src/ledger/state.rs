//! The books themselves: what notes do to progress and account. Pure, but for the counters it moves.
//!
//! Always true: per generation and sink, the lines read for it are the lines settled, let go, or pending. A
//! finished generation is forgotten once every sink has answered; its account lives on in the totals.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;

use serde::{Serialize, Serializer};

use super::books::{Books, GenerationView, Meters, SinkBooks, view};
use super::page::Page;
use super::saved::{AnyPath, Changes, OwnFile, Saved, SavedGeneration};
use super::{HOLE, InSpool, Known, Mark, Note, Opened, Ranged, Record, Restored, Stamp};
use crate::ack::{Count, GenerationId, Receipt, SinkId};
use crate::durable::{FileId, OwnFiles};
use crate::error::{Error, Result};
use crate::metrics::Registry;
use crate::order;

pub struct State {
    names: Vec<Arc<str>>,
    /// Of the data folder.
    id: u64,
    /// In boxes, since nodes of a tree that grows at its end are half empty.
    pages: BTreeMap<GenerationId, Box<Page>>,
    /// What outputs and spools have of generations that are not opened yet, and whose numbers are derived.
    foretold: BTreeMap<GenerationId, Box<Page>>,
    /// By lineage: sinks that left the configuration. What follows in the lineage is theirs too when they return.
    former: BTreeMap<u64, Vec<Arc<str>>>,
    /// Pages that are not as the last checkpoint has them, and those that it has and that are gone.
    changed: BTreeSet<GenerationId>,
    gone: Vec<GenerationId>,
    /// As the last checkpoint has them.
    own_files: Vec<OwnFile>,
    last_stamp_ns: i64,
    next_generation: u64,
    books: Books,
    meters: Meters,
}

/// Pages that are shown; the totals count them all.
const PAGES_SHOWN: usize = 100;

impl State {
    /// `names`: the sinks of the configuration, by [`SinkId`]. One that is new here starts at the position of
    /// the others.
    pub fn new(saved: Saved, names: &[Arc<str>], metrics: &Registry) -> State {
        let (again, streams): (Vec<_>, Vec<_>) = saved
            .generations
            .into_iter()
            .partition(|saved| saved.filename.is_some() || saved.high.cursor.is_some());
        // Nobody can go on with a stream of an earlier life, nor ever finish its page.
        for stream in streams {
            // What was spooled was answered for.
            if stream.sinks.iter().all(|(_, progress)| progress.low() >= stream.high.to) {
                continue;
            }
            log::warn!("{}: what the last life had taken from it and not delivered is lost", stream.source);
        }
        let mut sources: BTreeSet<Arc<str>> = BTreeSet::new();
        sources.extend(again.iter().map(|saved| Arc::from(saved.source.as_str())));
        let restored = |saved: SavedGeneration| {
            let source = sources.get(saved.source.as_str()).cloned().unwrap_or_default();
            (GenerationId(saved.id), Box::new(Page::restored(saved, source, names)))
        };
        let pages: BTreeMap<GenerationId, Box<Page>> = again.into_iter().map(restored).collect();
        let left = |page: &Page| page.apart().former.iter().map(|(name, _)| name.clone()).collect();
        let former = pages.values().filter(|page| !page.apart().former.is_empty());
        let former = order::map(former.map(|page| (page.lineage, left(page)))); // of the newest generation
        let sinks = names.iter().map(|name| SinkBooks { name: name.to_string(), ..SinkBooks::default() });
        let meters = Meters::new(names, metrics);
        meters.generations.set(pages.len() as i64);
        State {
            names: names.to_vec(),
            id: saved.id,
            pages,
            foretold: BTreeMap::new(),
            former,
            changed: BTreeSet::new(),
            gone: Vec::new(),
            own_files: Vec::new(),
            last_stamp_ns: saved.last_stamp_ns,
            next_generation: saved.next_generation,
            books: Books { sinks: sinks.collect(), ..Books::default() },
            meters,
        }
    }

    pub fn restored(&self, first_start: bool) -> Restored {
        Restored {
            known: self.pages.iter().map(|(id, page)| page.known(*id)).collect(),
            id: id_text(self.id),
            last_stamp_ns: self.last_stamp_ns,
            next_generation: self.next_generation,
            first_start,
            foretold: Arc::new(order::map(self.foretold.iter().map(|(id, page)| (*id, page.sinks.to_vec())))),
        }
    }

    /// Errors are faults of ours: a note about something that is not there, a share that was forgotten.
    pub fn apply(&mut self, note: Note, aborting: bool) -> Result<()> {
        match note {
            Note::Opened(opened) => self.opened(*opened),
            Note::Identified { generation, identity } => self.page(generation)?.identity = Some(identity),
            Note::Read(stamp) => self.read(&stamp)?,
            Note::TakenBack(stamp) => self.taken_back(&stamp)?,
            Note::Receipt(receipt) => self.receipt(receipt, aborting)?,
            Note::GaveUp { generation, upto, why } => self.gave_up(generation, upto, why)?,
            Note::Finished { generation } => {
                if !std::mem::replace(&mut self.page(generation)?.finished, true) {
                    self.meters.finished.add(1);
                }
                self.forget_if_over(generation);
            }
            Note::AtEnd { generation, at_end } => self.page(generation)?.at_end = at_end,
            Note::Unseen { places } => self.books.unseen = places,
            Note::Stamping { .. } => {} // the ledger's own affair
            Note::Several(notes) => return all(notes.into_iter().map(|note| self.apply(note, aborting))),
            Note::Receipts(receipts) => {
                return all(receipts.into_iter().map(|receipt| self.receipt(receipt, aborting)));
            }
            Note::Unread { generation, bytes } => {
                let page = self.unchanged_page(generation)?;
                let before = std::mem::replace(&mut page.unread, bytes);
                self.books.unread = self.books.unread - before + bytes;
            }
        }
        Ok(())
    }

    fn page(&mut self, generation: GenerationId) -> Result<&mut Page> {
        self.changed.insert(generation);
        self.unchanged_page(generation)
    }

    /// For what no checkpoint says of a page: a stop with thousands of files must not write each of them again.
    fn unchanged_page(&mut self, generation: GenerationId) -> Result<&mut Page> {
        let missing =
            || Error::new(format!("a note about generation {}, which is not in the books", generation.0));
        self.pages.get_mut(&generation).map(Box::as_mut).ok_or_else(missing)
    }

    fn opened(&mut self, opened: Opened) {
        let generation = opened.generation;
        self.is_used(generation);
        self.changed.insert(generation);
        if let Some(page) = self.pages.get_mut(&generation) {
            // Its monitor has lost the place in it, or was told too early that it is gone.
            self.meters.open_chunks.add(-(page.open_chunks() as i64));
            self.meters.finished.add(-i64::from(page.finished));
            return page.begin_anew(opened.start);
        }
        let mut page = self.first_page(opened);
        if let Some(foretold) = self.foretold.remove(&generation) {
            page.take_over(*foretold);
        }
        self.pages.insert(generation, Box::new(page));
        self.meters.generations.set(self.pages.len() as i64);
    }

    fn first_page(&self, opened: Opened) -> Page {
        let former = self.former.get(&opened.lineage).cloned().unwrap_or_default();
        Page::opened(opened, self.names.len(), former)
    }

    /// A chunk of this life: of bytes that nobody has read before, or of those of a kept stamp, or a part of it.
    fn read(&mut self, stamp: &Stamp) -> Result<()> {
        let page = self.page(stamp.generation)?;
        if stamp.start != page.read_to {
            return Err(Error::new(format!(
                "generation {}: read from {} although it was read to {}",
                stamp.generation.0, stamp.start, page.read_to
            )));
        }
        page.read(stamp.start..stamp.end);
        let again = stamp.start < page.known_to;
        if page.keep(stamp) {
            self.meters.open_chunks.add(1);
        }
        if !stamp.sinks.is_empty() {
            self.last_stamp_ns = self.last_stamp_ns.max(stamp.base_ns + stamp.lines as i64);
        }
        let count = stamp.count();
        self.books.read += count;
        self.meters.read_lines.add(count.lines);
        self.meters.read_bytes.add(count.bytes);
        self.meters.read_chunks.add(1);
        for sink in stamp.sinks.iter() {
            self.books.owe(sink, count, &self.meters);
            if again {
                self.meters.sinks[sink.0 as usize].replayed.add(count.lines);
            }
        }
        Ok(())
    }

    /// Undoes the last reading of a generation: its chunk never left the monitor, which is about to end.
    fn taken_back(&mut self, stamp: &Stamp) -> Result<()> {
        let page = self.page(stamp.generation)?;
        if page.take_back(stamp) {
            self.meters.open_chunks.add(-1);
        }
        let count = stamp.count();
        self.books.read.lines -= count.lines;
        self.books.read.bytes -= count.bytes;
        stamp.sinks.iter().for_each(|sink| self.books.owe_no_more(sink, count, &self.meters));
        Ok(())
    }

    /// Such a number is not given again.
    fn is_used(&mut self, generation: GenerationId) {
        if !generation.is_derived() {
            self.next_generation = self.next_generation.max(generation.0 + 1);
        }
    }

    /// Whether no answer of this sink is missing. Of a generation without a page every sink has answered, unless it is one
    /// whose number anybody can derive at any time.
    pub fn knows(&self, sink: SinkId, ranges: &[Ranged]) -> bool {
        ranges.iter().all(|(generation, range)| match self.pages.get(generation) {
            Some(page) => page.sinks[sink.0 as usize].covers(range.clone()),
            None => !generation.is_derived(),
        })
    }

    /// A sink has these of an earlier life. Whether that is news.
    pub fn recovered(&mut self, sink: SinkId, ranges: &[Ranged]) -> bool {
        let mut is_news = false;
        for (generation, range) in ranges {
            // A power cut may have taken a generation from the ledger and not from the outputs.
            self.is_used(*generation);
            if let Some(page) = self.pages.get_mut(generation) {
                is_news |= !page.sinks[sink.0 as usize].covers(range.clone());
                page.recover(sink, range.clone());
            } else if generation.is_derived() {
                let foretold = || Box::new(Page::foretold(self.names.len()));
                self.foretold.entry(*generation).or_insert_with(foretold).recover(sink, range.clone());
            }
            // Of others every sink has answered, or they were streams.
        }
        is_news
    }

    /// Whether it is news.
    pub fn spool_found(&mut self, sink: SinkId, frames: &[InSpool], pending: Count) -> bool {
        let mut is_news = false;
        self.books.carry_over(sink, pending);
        let name = self.names[sink.0 as usize].clone();
        let mut found: BTreeMap<GenerationId, Vec<(Range<u64>, bool)>> = BTreeMap::new();
        for (generation, range, answered) in frames {
            is_news |= self.recovered(sink, &[(*generation, range.clone())]);
            found.entry(*generation).or_default().push((range.clone(), *answered));
        }
        let mut missing = 0;
        for (generation, page) in self.pages.iter_mut().chain(&mut self.foretold) {
            missing += page.spool_has(sink, &name, found.get(generation).map_or(&[], |found| found));
        }
        if missing > 0 {
            log::error!(
                "{name}: {missing} bytes are missing in its spool; they are read again from their sources"
            );
        }
        is_news || missing > 0
    }

    fn receipt(&mut self, receipt: Receipt, aborting: bool) -> Result<()> {
        let sink = receipt.sink.0 as usize;
        self.books.settle(&receipt, &self.meters);
        let name = self.names[sink].clone();
        if receipt.from_spool {
            // It was answered for when it was spooled; its page may be gone. What was spooled anew is still there.
            if receipt.tally.spooled.lines == 0
                && let Some(page) = self.pages.get_mut(&receipt.generation)
            {
                receipt.answered().for_each(|range| page.spooled(&name).remove(range));
                self.changed.insert(receipt.generation);
            }
            return Ok(());
        }
        let page = match receipt.answered().next() {
            Some(_) => self.page(receipt.generation)?,
            None => self.unchanged_page(receipt.generation)?,
        };
        let is_lost = page.filename.is_none() && !receipt.generation.is_derived();
        receipt.answered().for_each(|range| page.sinks[sink].add(range));
        if receipt.tally.spooled.lines > 0 {
            receipt.answered().for_each(|range| page.spooled(&name).add(range));
        }
        let over = page.drop_answered_in(receipt.range.clone());
        if is_lost {
            self.books.sinks[sink].lost += receipt.not_delivered;
        }
        self.meters.open_chunks.add(-(over as i64));
        if receipt.fault && !aborting {
            self.meters.faults.add(1);
            return Err(Error::new(format!(
                "{} lines of generation {} were forgotten on the way to {}; they are read again after the next start",
                receipt.not_delivered.lines, receipt.generation.0, self.names[sink]
            )));
        }
        self.forget_if_over(receipt.generation);
        Ok(())
    }

    fn gave_up(&mut self, generation: GenerationId, upto: u64, why: Arc<str>) -> Result<()> {
        let page = self.page(generation)?;
        let from = page.read_to;
        let is_hole = *why == *HOLE;
        let bytes = page.give_up(from, upto, why);
        self.books.given_up += if is_hole { 0 } else { bytes };
        let page = self.page(generation)?;
        let over = page.drop_answered_in(from..upto.max(from));
        self.meters.open_chunks.add(-(over as i64));
        Ok(())
    }

    fn forget_if_over(&mut self, generation: GenerationId) {
        if self.pages.get(&generation).is_some_and(|page| page.finished && page.is_settled()) {
            self.pages.remove(&generation);
            self.changed.remove(&generation);
            self.gone.push(generation);
            self.meters.finished.add(-1);
            self.meters.generations.set(self.pages.len() as i64);
        }
    }

    /// Takes in what the last life had written down and no checkpoint knows.
    pub fn recall(&mut self, record: Record) {
        let generation = GenerationId(record.generation());
        self.is_used(generation);
        if let Record::Opened { source, filename, identity, lineage, start, .. } = record {
            let (source, filename) = (source.into(), filename.map(|path| path.0.into()));
            let opened = Opened { generation, source, filename, identity, lineage, start, cursor: None };
            if !self.pages.contains_key(&generation) {
                self.pages.insert(generation, Box::new(self.first_page(opened)));
            }
        } else if let Record::Read(read) = &record {
            let stamp = read.stamp();
            self.last_stamp_ns = self.last_stamp_ns.max(stamp.base_ns + stamp.lines as i64);
            self.pages.entry(generation).and_modify(|page| page.recall(&stamp));
        } else if let Some(page) = self.pages.get_mut(&generation) {
            // One that is not there is over, or its beginning was lost with both checkpoints: it begins anew.
            match record {
                Record::Identified { identity, .. } => page.identity = Some(identity),
                Record::GaveUp { from, upto, why, .. } => page.recall_given_up(from..upto, why.into()),
                // Whether it is gone for good is found out again, unless nobody is asked for anything more.
                Record::Finished { .. } if page.is_settled() => drop(self.pages.remove(&generation)),
                _ => {}
            }
        }
        self.meters.generations.set(self.pages.len() as i64);
    }

    /// A life that died before its first checkpoint may have given numbers that nobody here knows of, but outputs,
    /// spools and receivers do: so they are never given again. How many they were is not known either, nor how many
    /// such lives there were: `count` is drawn.
    pub fn skip_generations(&mut self, count: u64) {
        self.next_generation += count;
    }

    pub fn last_stamp_ns(&self) -> i64 {
        self.last_stamp_ns
    }

    /// Everything, for a snapshot.
    pub fn to_save(&self, journal: Mark, own_files: &OwnFiles) -> Saved<Pages<'_>> {
        Saved {
            id: self.id,
            journal,
            last_stamp_ns: self.last_stamp_ns,
            next_generation: self.next_generation,
            generations: Pages { state: self, only_changed: false },
            own_files: list(own_files),
        }
    }

    /// What has changed since [`State::was_saved`].
    pub fn changes(&self, journal: Mark, own_files: &OwnFiles) -> Changes<Pages<'_>> {
        Changes {
            journal,
            last_stamp_ns: self.last_stamp_ns,
            next_generation: self.next_generation,
            generations: Pages { state: self, only_changed: true },
            gone: self.gone.iter().map(|generation| generation.0).collect(),
            own_files: Some(list(own_files)).filter(|files| *files != self.own_files),
        }
    }

    /// The checkpoint has it all. `own_files`: those that it has, if they were in it.
    pub fn was_saved(&mut self, own_files: Option<Vec<OwnFile>>) {
        for generation in std::mem::take(&mut self.changed) {
            if let Some(page) = self.pages.get_mut(&generation) {
                page.stamps.give_back();
            }
        }
        self.gone = Vec::new();
        self.own_files = own_files.unwrap_or(std::mem::take(&mut self.own_files));
    }

    /// Looks at every account that has changed since the last checkpoint. What does not add up is returned, once.
    pub fn check_laws(&mut self) -> Option<Error> {
        let sinks = self.books.sinks.iter().filter(|sink| !sink.adds_up());
        let sinks = sinks.map(|sink| format!("the account of {} does not add up: {sink:?}", sink.name));
        let page =
            |id: &GenerationId| self.pages.get(id).filter(|page| !page.adds_up()).map(|page| (*id, page));
        let pages = self.changed.iter().filter_map(page).map(|(id, page)| {
            let view = view(id, page, &self.names);
            format!("the account of generation {} does not add up: {view:?}", id.0)
        });
        let broken: Vec<String> = sinks.chain(pages).collect();
        let is_news = self.books.broken_laws.is_empty() && !broken.is_empty();
        if is_news {
            self.meters.broken_laws.add(broken.len() as u64);
            self.books.broken_laws = broken;
        }
        is_news.then(|| Error::new(self.books.broken_laws.join("; ")))
    }

    /// A snapshot.
    pub fn books(&self) -> Books {
        let mut books = self.books.clone();
        books.generations = self.pages.len();
        books.kept_stamps = self.pages.values().map(|page| page.stamps.len()).sum();
        let asked = self.pages.iter().filter(|(_, page)| !page.is_settled());
        let settled = self.pages.iter().filter(|(_, page)| page.is_settled());
        let shown = asked.chain(settled).take(PAGES_SHOWN);
        books.pages = shown.map(|(id, page)| view(*id, page, &self.names)).collect();
        books
    }

    pub fn meters(&self) -> &Meters {
        &self.meters
    }

    /// Every generation, for an audit.
    pub fn views(&self) -> impl Iterator<Item = (GenerationView, Known)> {
        self.pages.iter().map(|(id, page)| (view(*id, page, &self.names), page.known(*id)))
    }
}

/// Pages on their way into a checkpoint, each made when its turn comes.
pub struct Pages<'a> {
    state: &'a State,
    only_changed: bool,
}

impl Pages<'_> {
    pub fn iter(&self) -> impl Iterator<Item = SavedGeneration> {
        let State { pages, changed, names, .. } = self.state;
        let changed = changed.iter().filter(|_| self.only_changed).filter_map(|id| pages.get_key_value(id));
        let all = pages.iter().filter(|_| !self.only_changed);
        changed.chain(all).map(|(id, page)| page.saved(*id, names))
    }
}

impl Serialize for Pages<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        serializer.collect_seq(self.iter())
    }
}

/// A fault of one keeps no other from being taken; the first one is told.
fn all(taken: impl Iterator<Item = Result<()>>) -> Result<()> {
    let mut first = Ok(());
    for one in taken {
        first = first.and(one);
    }
    first
}

/// As it stands in the ids of records.
pub fn id_text(id: u64) -> Arc<str> {
    format!("{id:016x}").into()
}

fn list(own_files: &OwnFiles) -> Vec<OwnFile> {
    let own_file =
        |(id, path): (FileId, PathBuf)| OwnFile { device: id.device, inode: id.inode, path: AnyPath(path) };
    own_files.list().into_iter().map(own_file).collect()
}
