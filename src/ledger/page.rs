//! One generation's page: how far it was read, how far each sink has answered, and how what is not answered for
//! was cut and timed. Pure.
//!
//! Always true: the kept stamps are disjoint, and each of them lies below `high`. A stamp goes once every sink of
//! the configuration has answered for all of it. A restart begins at the start of a stamp, never within one, so
//! the same bytes get the same numbers and times again.

use std::ops::{Deref, DerefMut, Range};
use std::path::Path;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::offsets::Offsets;
use super::saved::{AnyPath, SavedGeneration};
use super::{Cursor, Head, Identity, KeptStamp, Known, Opened, Progress, Stamp};
use crate::ack::{GenerationId, SinkId};
use crate::order;

/// A chunk of a file that is read at full speed is larger, and its place is kept for the next one.
const SMALL_BYTES: u64 = 16 * 1024;

pub struct Page {
    pub source: Arc<str>,
    pub filename: Option<Arc<Path>>,
    pub identity: Option<Identity>,
    pub lineage: u64,
    /// How far the monitor of this life has come.
    pub read_to: u64,
    /// How far any life has come.
    pub high: High,
    /// `high` as the last life left it: what is read below was read before.
    pub known_to: u64,
    /// Of the sinks of the configuration, by [`crate::ack::SinkId`].
    pub sinks: Sinks,
    /// What hardly any page has.
    apart: Option<Box<Apart>>,
    /// That somebody has not answered for, by their start.
    pub stamps: Offsets<KeptStamp>,
    pub finished: bool,
    /// See [`super::Note::AtEnd`]. What is read later ends it.
    pub at_end: bool,
    pub unread: u64,
    /// What this life has done with it, from where it began: read, and given up.
    begun: u64,
    read: u64,
    passed_over: u64,
}

/// How far each sink has answered. Nearly everybody has one, which takes no memory of its own.
pub enum Sinks {
    One([Progress; 1]),
    Several(Box<[Progress]>),
}

impl From<Vec<Progress>> for Sinks {
    fn from(sinks: Vec<Progress>) -> Sinks {
        sinks.try_into().map_or_else(|sinks| Sinks::Several(sinks.into()), Sinks::One)
    }
}

impl Deref for Sinks {
    type Target = [Progress];

    fn deref(&self) -> &[Progress] {
        match self {
            Sinks::One(one) => one,
            Sinks::Several(all) => all,
        }
    }
}

impl DerefMut for Sinks {
    fn deref_mut(&mut self) -> &mut [Progress] {
        match self {
            Sinks::One(one) => one,
            Sinks::Several(all) => all,
        }
    }
}

#[derive(Default)]
pub struct Apart {
    /// Why, and how many bytes.
    pub given_up: Vec<(Arc<str>, u64)>,
    /// Of sinks that left the configuration: kept for their return, and without a say.
    pub former: Vec<(Arc<str>, Progress)>,
    /// By the name of a sink: what of its answers are frames of its spool, and nothing better yet.
    pub spooled: Vec<(Arc<str>, Progress)>,
}

impl Apart {
    const NOTHING: Apart = Apart { given_up: Vec::new(), former: Vec::new(), spooled: Vec::new() };

    fn boxed(self) -> Option<Box<Apart>> {
        let is_empty = self.given_up.is_empty() && self.former.is_empty() && self.spooled.is_empty();
        (!is_empty).then(|| Box::new(self))
    }
}

/// The end of what was read, and what is known of that place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct High {
    pub to: u64,
    /// Number of the line that starts there.
    pub line: u64,
    pub continues: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub before: Option<Head>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cursor: Option<Cursor>,
}

impl Page {
    /// `former`: sinks that left the configuration while they stood in the lineage.
    pub fn opened(opened: Opened, sinks: usize, former: Vec<Arc<str>>) -> Page {
        let at_start = |name| (name, Progress::starting_at(opened.start));
        Page {
            source: opened.source,
            filename: opened.filename,
            identity: opened.identity,
            lineage: opened.lineage,
            read_to: opened.start,
            high: High { to: opened.start, line: 0, continues: false, before: None, cursor: opened.cursor },
            known_to: opened.start,
            sinks: Sinks::from(vec![Progress::starting_at(opened.start); sinks]),
            apart: Apart { former: former.into_iter().map(at_start).collect(), ..Apart::default() }.boxed(),
            stamps: Offsets::default(),
            finished: false,
            at_end: false,
            unread: 0,
            begun: 0,
            read: 0,
            passed_over: 0,
        }
    }

    /// Of which outputs have something, and nobody knows more yet.
    pub fn foretold(sinks: usize) -> Page {
        let (generation, source) = (GenerationId(0), "".into());
        let opened =
            Opened { generation, source, filename: None, identity: None, lineage: 0, start: 0, cursor: None };
        Page::opened(opened, sinks, Vec::new())
    }

    pub fn apart(&self) -> &Apart {
        static NOTHING: Apart = Apart::NOTHING;
        self.apart.as_deref().unwrap_or(&NOTHING)
    }

    fn apart_mut(&mut self) -> &mut Apart {
        self.apart.get_or_insert_default()
    }

    /// What outputs and spools had of it before it was opened.
    pub fn take_over(&mut self, foretold: Page) {
        self.sinks = foretold.sinks;
        let spooled = foretold.apart.map_or(Vec::new(), |apart| apart.spooled);
        if !spooled.is_empty() {
            self.apart_mut().spooled = spooled;
        }
    }

    /// All of it is read once more.
    pub fn begin_anew(&mut self, start: u64) {
        (self.finished, self.at_end) = (false, false);
        self.known_to = self.high.to;
        (self.read, self.passed_over) = (0, 0);
        self.read_to = start;
    }

    /// Stamps of this life alone that somebody has not answered for.
    pub fn open_chunks(&self) -> usize {
        self.stamps.range(self.known_to, u64::MAX).count()
    }

    /// As it was saved, for the sinks of this configuration. One that is new starts at the position of the others.
    /// `source`: its name, as all of its pages share it.
    pub fn restored(saved: SavedGeneration, source: Arc<str>, names: &[Arc<str>]) -> Page {
        let mut sinks: Vec<(Arc<str>, Progress)> =
            saved.sinks.into_iter().map(|(name, progress)| (name.into(), progress)).collect();
        let low = |which: &dyn Fn(&Arc<str>) -> bool| {
            sinks.iter().filter(|(name, _)| which(name)).map(|(_, progress)| progress.low()).min()
        };
        let start = low(&|name| names.contains(name)).or_else(|| low(&|_| true)).unwrap_or(0);
        let progress = names.iter().map(|name| {
            let known = sinks.iter().position(|(known, _)| known == name);
            known.map_or_else(|| Progress::starting_at(start), |at| sinks.swap_remove(at).1)
        });
        let progress = Sinks::from(progress.collect::<Vec<_>>());
        let apart = Apart {
            given_up: saved.given_up.into_iter().map(|(why, bytes)| (why.into(), bytes)).collect(),
            former: sinks,
            spooled: saved.spooled.into_iter().map(|(name, ranges)| (name.into(), ranges)).collect(),
        };
        let mut page = Page {
            source,
            filename: saved.filename.map(|path| path.0.into()),
            identity: saved.identity,
            lineage: saved.lineage,
            read_to: 0,
            high: saved.high,
            known_to: saved.high.to,
            sinks: progress,
            apart: apart.boxed(),
            stamps: saved.stamps.into_iter().map(|stamp| (stamp.start, stamp)).collect(),
            finished: false,
            at_end: saved.at_end,
            unread: 0,
            begun: 0,
            read: 0,
            passed_over: 0,
        };
        page.begin_life();
        page
    }

    pub fn saved(&self, id: GenerationId, names: &[Arc<str>]) -> SavedGeneration {
        let named =
            names.iter().zip(&*self.sinks).map(|(name, progress)| (name.to_string(), progress.clone()));
        let apart = self.apart();
        let former = apart.former.iter().map(|(name, progress)| (name.to_string(), progress.clone()));
        let spooled = apart.spooled.iter().map(|(name, ranges)| (name.to_string(), ranges.clone()));
        SavedGeneration {
            id: id.0,
            source: self.source.to_string(),
            filename: self.filename.as_deref().map(|path| AnyPath(path.to_owned())),
            identity: self.identity,
            lineage: self.lineage,
            high: self.high,
            given_up: apart.given_up.iter().map(|(why, bytes)| (why.to_string(), *bytes)).collect(),
            sinks: named.chain(former).collect(),
            spooled: spooled.filter(|(_, ranges)| ranges.ranges().next().is_some()).collect(),
            stamps: self.stamps().copied().collect(),
            at_end: self.at_end,
        }
    }

    pub fn known(&self, generation: GenerationId) -> Known {
        let position = self.position();
        let at = match self.stamps.get(position) {
            Some(KeptStamp { first_line: line, continues, before, cursor, .. }) => {
                High { to: position, line: *line, continues: *continues, before: *before, cursor: *cursor }
            }
            None if position == self.high.to => self.high,
            // Answered for by everybody who had a say; a sink that came back has not. Nobody kept its lines' numbers.
            None => High { to: position, line: 0, continues: false, before: None, cursor: None },
        };
        Known {
            generation,
            source: self.source.clone(),
            filename: self.filename.clone(),
            identity: self.identity,
            lineage: self.lineage,
            position,
            before: at.before,
            cursor: at.cursor,
            line: at.line,
            continues: at.continues,
            at_end: self.at_end,
            stamps: self.stamps().copied().collect(),
            progress: self.sinks.to_vec(),
        }
    }

    /// That somebody has not answered for, rising.
    pub fn stamps(&self) -> impl Iterator<Item = &KeptStamp> {
        self.stamps.iter().map(|(_, stamp)| stamp)
    }

    /// Where a restart would begin: the least over the sinks, or the start of the stamp that it lies in. What an
    /// output says that it has beyond all stamps, which a power cut made us forget, is read over too, for its lines'
    /// numbers.
    pub fn position(&self) -> u64 {
        let low = self.sinks.iter().map(Progress::low).min().unwrap_or(self.high.to).min(self.high.to);
        self.stamp_at(low).map_or(low, |stamp| stamp.start)
    }

    /// The kept stamp that covers `offset`.
    pub fn stamp_at(&self, offset: u64) -> Option<&KeptStamp> {
        let (_, stamp) = self.stamps.at_or_before(offset)?;
        (offset < stamp.end).then_some(stamp)
    }

    /// Keeps a stamp, unless all of it was answered for or it is kept already. Whether that is a chunk of this
    /// life alone, which [`Page::drop_answered_in`] will count.
    pub fn keep(&mut self, stamp: &Stamp) -> bool {
        let answered = self.sinks.iter().all(|progress| progress.covers(stamp.start..stamp.end));
        let overlaps = self
            .stamps
            .at_or_before(stamp.end.saturating_sub(1))
            .is_some_and(|(_, kept)| kept.end > stamp.start);
        let (before, cursor) = match self.high.to == stamp.start {
            true => (self.high.before, self.high.cursor),
            false => (None, None),
        };
        if !answered && !overlaps {
            let Stamp { start, end, first_line, lines, base_ns, continues, cut, .. } = *stamp;
            let kept = KeptStamp { start, end, first_line, lines, base_ns, continues, cut, before, cursor };
            self.stamps.insert(start, kept);
        }
        if stamp.end > self.high.to {
            self.high = High {
                to: stamp.end,
                line: stamp.first_line + stamp.lines,
                continues: stamp.cut,
                before: Some(stamp.before),
                cursor: stamp.cursor,
            };
        }
        !answered && !overlaps && stamp.start >= self.known_to
    }

    /// A chunk of this life.
    pub fn read(&mut self, range: Range<u64>) {
        self.begin_account();
        self.at_end = false;
        self.read += range.end - range.start;
        self.read_to = range.end;
    }

    /// Nothing of it was read or given up in this life so far: what is seen begins here.
    fn begin_account(&mut self) {
        if self.read + self.passed_over == 0 {
            self.begun = self.read_to;
        }
    }

    /// The laws of one generation: what this life has seen was read or given up, and nothing is read beyond what is
    /// known, nor kept.
    pub fn adds_up(&self) -> bool {
        let seen = self.read + self.passed_over;
        (seen == 0 || self.begun + seen == self.read_to)
            && self.read_to <= self.high.to.max(self.known_to)
            && self.stamps.last().is_none_or(|(_, stamp)| stamp.end <= self.high.to)
    }

    /// A stamp that the last life had written down.
    pub fn recall(&mut self, stamp: &Stamp) {
        self.keep(stamp);
        self.known_to = self.high.to;
        self.read_to = self.position();
    }

    pub fn recall_given_up(&mut self, range: Range<u64>, why: Arc<str>) {
        self.give_up(range.start, range.end, why);
        self.begin_life();
    }

    /// All there is was read by lives before this one.
    fn begin_life(&mut self) {
        self.known_to = self.high.to;
        (self.read, self.passed_over) = (0, 0);
        self.drop_answered_in(0..u64::MAX);
        self.read_to = self.position();
    }

    /// Undoes [`Page::keep`] for the newest stamp, and returns what that returned; what was read before stays known.
    pub fn take_back(&mut self, stamp: &Stamp) -> bool {
        self.read_to = stamp.start;
        self.read -= (stamp.end - stamp.start).min(self.read);
        if stamp.start < self.known_to || stamp.end != self.high.to {
            return false;
        }
        let kept = self.stamps.remove(stamp.start);
        let (before, cursor) = kept.map_or((None, None), |kept| (kept.before, kept.cursor));
        let (line, continues) = (stamp.first_line, stamp.continues);
        self.high = High { to: stamp.start, line, continues, before, cursor };
        kept.is_some()
    }

    /// Drops the stamps among those that overlap `range` that every sink has answered for; says how many
    /// of them are of this life alone.
    /// What was small leaves no place behind: a start reads one line of each of ten thousand files.
    pub fn drop_answered_in(&mut self, range: Range<u64>) -> usize {
        let is_small = range.end - range.start < SMALL_BYTES;
        let of_this_life = self.drop_answered(range);
        if is_small {
            self.stamps.give_back();
        }
        of_this_life
    }

    fn drop_answered(&mut self, range: Range<u64>) -> usize {
        let first = self.stamp_at(range.start).map_or(range.start, |stamp| stamp.start);
        let sinks = &self.sinks;
        let answered = |stamp: &KeptStamp| sinks.iter().all(|sink| sink.covers(stamp.start..stamp.end));
        let (mut from, mut of_this_life) = (first, 0);
        loop {
            let over = self.stamps.range(from, range.end).find(|(_, stamp)| answered(stamp));
            let Some(start) = over.map(|(start, _)| start) else { return of_this_life };
            self.stamps.remove(start);
            of_this_life += usize::from(start >= self.known_to);
            from = start + 1;
        }
    }

    /// Before anything is read in this life: a sink has this of an earlier one.
    pub fn recover(&mut self, sink: SinkId, range: Range<u64>) {
        self.sinks[sink.0 as usize].add(range.clone());
        self.drop_answered_in(range);
        self.read_to = self.position();
    }

    /// What of a sink's answers are frames of its spool.
    pub fn spooled(&mut self, sink: &Arc<str>) -> &mut Progress {
        let spooled = &mut self.apart_mut().spooled;
        let at = spooled.iter().position(|(name, _)| name == sink).unwrap_or_else(|| {
            spooled.push((sink.clone(), Progress::default()));
            spooled.len() - 1
        });
        &mut spooled[at].1
    }

    /// Before anything is read in this life: of what a sink had spooled only `found` is there, and whether each was
    /// answered for in turn. Says how many bytes have to be read again.
    pub fn spool_has(&mut self, sink: SinkId, name: &Arc<str>, found: &[(Range<u64>, bool)]) -> u64 {
        if found.is_empty() && self.apart().spooled.is_empty() {
            return 0;
        }
        let mut missing = std::mem::take(self.spooled(name));
        found.iter().for_each(|(range, _)| missing.remove(range.clone()));
        let mut bytes = 0;
        for range in missing.ranges() {
            bytes += range.end - range.start;
            self.sinks[sink.0 as usize].remove(range);
        }
        let waiting = found.iter().filter(|(_, answered)| !answered);
        waiting.for_each(|(range, _)| self.spooled(name).add(range.clone()));
        self.read_to = self.position();
        bytes
    }

    /// No sink is asked for what stands up to `upto`. Says how many bytes some sink lacked.
    pub fn give_up(&mut self, from: u64, upto: u64, why: Arc<str>) -> u64 {
        let range = from..upto.max(from);
        self.begin_account();
        self.passed_over += range.end - range.start;
        let bytes = self.lacking(range.clone());
        self.sinks.iter_mut().for_each(|progress| progress.add(range.clone()));
        self.read_to = range.end;
        if range.end > self.high.to {
            let High { line, .. } = self.high;
            self.high = High { to: range.end, line, continues: false, before: None, cursor: None };
        }
        let given_up = &mut self.apart_mut().given_up;
        match given_up.iter_mut().find(|(known, _)| *known == why) {
            Some((_, sum)) => *sum += bytes,
            None => given_up.push((why, bytes)),
        }
        bytes
    }

    /// How many bytes of a range some sink has not answered for.
    pub fn lacking(&self, range: Range<u64>) -> u64 {
        let edges =
            self.sinks.iter().flat_map(|sink| sink.edges(range.start)).filter(|edge| *edge < range.end);
        let mut edges: Vec<u64> = edges.chain([range.start, range.end]).collect();
        order::sort(&mut edges);
        let lacked = |part: &&[u64]| !self.sinks.iter().all(|sink| sink.contains(part[0]));
        edges.windows(2).filter(lacked).map(|part| part[1] - part[0]).sum()
    }

    pub fn is_settled(&self) -> bool {
        self.stamps.is_empty() && self.position() >= self.high.to
    }
}
