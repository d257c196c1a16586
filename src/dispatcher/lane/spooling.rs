//! A lane's spool: what goes there while the sink is ill, and how it comes back.
//!
//! ```text
//!            inlet ──────────────────────────▶ batches ──▶ senders        direct
//!
//!   batches ──▶ waiting ──▶ [ disk ] ──▶ window ──▶ batches ──▶ senders   while anything waits on the disk
//!     inlet ──▶
//! ```
//!
//! Always true: while something is unread in the spool, or waits to get into it, or the sink is still ill, all
//! records of the sink pass through it, behind what is there: order holds. What has come back and is not answered for fits the window. A
//! share is settled `Spooled` once its frame is written and noted as unsynced.
//!
//! Not here: the moods of the sink and what is sent when (`lane.rs`), the files (`spool/`).

use std::collections::{HashMap, VecDeque};
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::{Lane, Mood, Street};
use crate::ack::{Ack, Count, GenerationId, Receipt, Receipts, Share, SinkId, Tally, Verdict};
use crate::budget::{Budget, Door, Holder};
use crate::error::{Error, Result};
use crate::ledger::Progress;
use crate::metrics::{Counter, Gauge, Registry};
use crate::record::{RECORD_WEIGHT, Slice};
use crate::spool::{Lost, Put, Spool, Why};

/// A frame is as large as a read at most, if a single record is not larger, so that a window has room for several.
const FRAME_BYTES: usize = 256 * 1024;

/// A disk that fails is not asked again before that.
const DISK_RESTS: Duration = Duration::from_secs(1);

/// Between looks whether a checkpoint has set something free: the first, and the longest.
const TIDY_FIRST: Duration = Duration::from_secs(1);
const TIDY_MOST: Duration = Duration::from_secs(60);

/// What a lane needs to spool.
pub struct Spooling {
    sink: SinkId,
    name: Arc<str>,
    spool: Spool,
    /// `None`: it is only emptied.
    after: Option<Duration>,
    /// The ledger.
    receipts: Arc<dyn Receipts>,
    /// What all sources share: when half of it is under way, an ill sink spools at once.
    chunks: Budget,
    window: Door,
    window_bytes: usize,
    frame_bytes: u64,
    /// From the moment when an ill sink is spooled until it is well and all has been read back.
    active: bool,
    /// Behind all that is in the spool: it is full, or the disk is ill.
    waiting: VecDeque<(Slice, Share)>,
    ends: Arc<Mutex<Vec<End>>>,
    /// Some of the spool was answered for since that was written down.
    progressed: bool,
    /// What the sink has of it since an earlier life, which died before it could write that down.
    delivered: HashMap<GenerationId, Progress>,
    /// Why the disk cannot be used, if that was said.
    ill: Option<String>,
    /// When to try again: the disk failed, or the spool has no room although nothing in it waits.
    again: Option<Instant>,
    tidy_at: Option<Instant>,
    tidy_wait: Duration,
    meters: Meters,
}

/// What the agent knows about the spool of one sink.
pub struct Settings {
    pub sink: SinkId,
    pub name: Arc<str>,
    /// How long the sink has to be ill. `None`: what an earlier life has left is sent, and no more is spooled.
    pub after: Option<Duration>,
    pub receipts: Arc<dyn Receipts>,
    pub chunks: Budget,
    /// For what is read back, in bytes.
    pub window_bytes: usize,
    /// What the sink has of earlier lives, as far as it can tell.
    pub delivered: Vec<(GenerationId, Range<u64>)>,
}

struct Meters {
    lines: Arc<Gauge>,
    bytes: Arc<Gauge>,
    files: Arc<Gauge>,
    former: Arc<Gauge>,
    spooled: Arc<Counter>,
}

/// All records of a frame have an end.
struct End {
    sequence: u64,
    receipt: Receipt,
}

/// Waits for the end of one frame.
struct Frame {
    sequence: u64,
    ends: Arc<Mutex<Vec<End>>>,
}

impl Lane {
    /// Moves records into the spool and out of it, as far as the mood of the sink and the room allow.
    pub(super) fn spool(&mut self, now: Instant) {
        let since = self.health.lock().since;
        let (has_some, nobody_away) = (self.has_some_to_spool(), self.nobody_away());
        let Some(spooling) = &mut self.spooling else { return };
        spooling.again = spooling.again.filter(|again| *again > now);
        spooling.reap(now);
        if self.giving_up {
            return;
        }
        if has_some && nobody_away && !spooling.takes_all() && spooling.starts_now(since, now) {
            let all = self.take_all();
            let Some(spooling) = &mut self.spooling else { return };
            log::info!("{}: spools what it cannot take", spooling.name);
            spooling.active = true;
            spooling.put_all(all, now);
        }
        let is_over = self.inlet_closed && self.stop.stop.is_closed();
        let Some(spooling) = &mut self.spooling else { return };
        spooling.write(now);
        if is_over && spooling.has_unread() {
            return self.let_go_of_waiting(now);
        }
        // An empty spool that takes nothing is no spool.
        while let Some((slice, share)) = self.spooling.as_mut().and_then(Spooling::take_back_if_empty) {
            self.collect(slice, share, now);
        }
        if !self.stop.stop.is_closed() {
            self.replay(now);
        }
        let is_well = self.mood == Mood::Well;
        if let Some(spooling) = &mut self.spooling {
            spooling.active &= !is_well || spooling.has_unread();
        }
    }

    fn replay(&mut self, now: Instant) {
        while let Some(parts) = self.spooling.as_mut().and_then(|spooling| spooling.next(now)) {
            parts.into_iter().for_each(|(slice, share)| self.collect(slice, share, now));
        }
        if let Some(spooling) = &mut self.spooling {
            spooling.reap(now); // nobody reports what the sink had already
        }
        if self.spooling.as_ref().is_some_and(Spooling::has_unread) {
            // The window is full: a batch that is open waits in vain for more.
            self.flush(|street| !street.away && street.queue.is_empty());
        } else if self.inlet_closed {
            self.flush(|_| true); // nothing more will come
        }
    }

    fn has_some_to_spool(&self) -> bool {
        let has_some = |street: &Street| !street.queue.is_empty() || street.batcher.due().is_some();
        self.mood == Mood::Resting && self.streets.iter().any(has_some)
    }

    /// When to call [`Lane::spool`] although nothing happens.
    pub(super) fn spool_due(&self) -> Option<Instant> {
        let spooling = self.spooling.as_ref()?;
        let may_start = self.has_some_to_spool() && self.nobody_away() && !spooling.takes_all();
        let may_start = may_start && !self.giving_up;
        let start = may_start.then(|| spooling.starts_at(self.health.lock().since)).flatten();
        start.into_iter().chain(spooling.due()).min()
    }
}

impl Receipts for Frame {
    fn receipt(&self, receipt: Receipt) {
        self.ends.lock().push(End { sequence: self.sequence, receipt });
    }
}

impl Spooling {
    pub fn new(spool: Spool, settings: Settings, metrics: &Registry) -> Spooling {
        let Settings { sink, name, after, receipts, chunks, window_bytes, delivered } = settings;
        let mut had: HashMap<GenerationId, Progress> = HashMap::new();
        if spool.has_unread() {
            delivered
                .into_iter()
                .for_each(|(generation, range)| had.entry(generation).or_default().add(range));
        }
        let label: &[(&str, &str)] = &[("sink", &name)];
        let meters = Meters {
            lines: metrics.gauge("spool_lines", "Lines in the spool of a sink.", label),
            bytes: metrics.gauge("spool_bytes", "Bytes of the spool of a sink on disk.", label),
            files: metrics.gauge("spool_files", "Files of the spool of a sink.", label),
            former: metrics.gauge(
                "spool_former",
                "Generations of which the sink had some of its spool when the last life died.",
                label,
            ),
            spooled: metrics.counter("spooled_lines_total", "Lines that were put into a spool.", label),
        };
        let spooling = Spooling {
            active: spool.has_unread(),
            sink,
            name,
            spool,
            after,
            receipts,
            chunks,
            window: Budget::small(window_bytes).door(),
            window_bytes,
            frame_bytes: FRAME_BYTES.min(window_bytes / 2) as u64,
            waiting: VecDeque::new(),
            ends: Arc::default(),
            progressed: false,
            delivered: had,
            ill: None,
            again: None,
            tidy_at: None,
            tidy_wait: TIDY_FIRST,
            meters,
        };
        spooling.show();
        spooling
    }

    /// Whether what comes now has to queue behind what is here.
    pub fn takes_all(&self) -> bool {
        self.active || !self.waiting.is_empty()
    }

    pub fn has_unread(&self) -> bool {
        self.spool.has_unread()
    }

    pub fn waits(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// Lines, and bytes in their sources.
    pub fn pending(&self) -> Count {
        self.spool.pending()
    }

    /// When a sink that is ill since `since` has been so for long enough; `None`: never.
    fn starts_at(&self, since: Instant) -> Option<Instant> {
        Some(self.again.unwrap_or(since).max(since + self.after?))
    }

    fn starts_now(&self, since: Instant, now: Instant) -> bool {
        let pressed = self.chunks.used() * 2 >= self.chunks.capacity();
        self.starts_at(since).is_some_and(|start| start <= now || (pressed && !self.rests(now)))
    }

    /// Whether it is only emptied.
    pub fn is_leftover(&self) -> bool {
        self.after.is_none()
    }

    /// Whether the end of the agent is a reason to spool.
    pub fn takes_the_rest(&self) -> bool {
        self.active || self.after.is_some()
    }

    fn rests(&self, now: Instant) -> bool {
        self.again.is_some_and(|again| again > now)
    }

    /// When to look here again though nothing else happens.
    fn due(&self) -> Option<Instant> {
        self.again.filter(|_| self.takes_all()).into_iter().chain(self.tidy_at).min()
    }

    /// Behind all that is here. It is on the disk, or waits.
    pub fn put(&mut self, slice: Slice, share: Share, now: Instant) {
        self.waiting.push_back((slice, share));
        self.write(now);
    }

    /// The same for all that the sink could not take. What came out of the spool stands there: to write it once more would
    /// leave it there twice, if we died before the first one is called answered for.
    fn put_all(&mut self, all: Vec<(Slice, Share)>, now: Instant) {
        let (back, new): (Vec<_>, Vec<_>) =
            all.into_iter().partition(|(slice, _)| slice.records.frame().is_some());
        if !back.is_empty() {
            back.into_iter().for_each(|(_, share)| share.let_go());
            self.reap(now);
            self.spool.rewind();
        }
        self.waiting.extend(new);
        self.write(now);
    }

    /// What waits, as far as there is room.
    pub fn write(&mut self, now: Instant) {
        if self.waiting.is_empty() {
            return;
        }
        while let Some((slice, mut share)) = self.waiting.pop_front() {
            let most = (slice.range.end - slice.range.start) as usize;
            let fits = slice.records.fit(slice.range.start, most, self.frame_bytes, RECORD_WEIGHT).max(1);
            let middle = slice.range.start + fits;
            let part = Slice { records: slice.records.clone(), range: slice.range.start..middle };
            let rest = Slice { records: slice.records, range: middle..slice.range.end };
            let its_share = match rest.range.is_empty() {
                true => share,
                false => {
                    let its_share = share.split(part.count(), part.end());
                    self.waiting.push_front((rest, share));
                    its_share
                }
            };
            if !self.has_written(&part, now) {
                self.waiting.push_front((part, its_share));
                break;
            }
            self.meters.spooled.add(part.count().lines);
            its_share.settle(&Verdict::Spooled);
        }
        self.tell_lost();
        self.show();
    }

    fn has_written(&mut self, part: &Slice, now: Instant) -> bool {
        if self.rests(now) {
            return false;
        }
        match self.spool.put(part) {
            Ok(Put::Written) => {
                self.is_well();
                true
            }
            Ok(Put::Full) => {
                // With something to read in it, the next answer makes room; else only checkpoints do.
                self.again = (!self.has_unread()).then(|| now + DISK_RESTS);
                false
            }
            Err(cause) => {
                self.is_ill(cause, now);
                false
            }
        }
    }

    fn is_ill(&mut self, cause: Error, now: Instant) {
        let cause = cause.to_string();
        if self.ill.as_ref() != Some(&cause) {
            log::error!("{}: {cause}; trying again every {DISK_RESTS:?}", self.name);
        }
        (self.ill, self.again) = (Some(cause), Some(now + DISK_RESTS));
    }

    fn is_well(&mut self) {
        self.again = None;
        if self.ill.take().is_some() {
            log::info!("{}: its spool can be used again", self.name);
        }
    }

    /// What waits comes back to the lane.
    pub fn take_back(&mut self) -> Option<(Slice, Share)> {
        self.waiting.pop_front()
    }

    fn take_back_if_empty(&mut self) -> Option<(Slice, Share)> {
        if self.waiting.is_empty() || self.has_unread() {
            return None;
        }
        self.active = false;
        self.take_back()
    }

    /// The oldest records of the spool, if the window has room for them: those that the sink lacks.
    pub fn next(&mut self, now: Instant) -> Option<Vec<(Slice, Share)>> {
        if self.rests(now) {
            return None;
        }
        let next = self.try_next();
        self.tell_lost();
        match next {
            Ok(Some((slice, share))) => Some(self.without_delivered(slice, share)),
            Ok(None) => {
                // What is under way may be read again.
                if !self.has_unread() && !self.spool.has_under_way() {
                    self.delivered = HashMap::new();
                }
                None
            }
            Err(cause) => {
                self.is_ill(cause, now);
                None
            }
        }
    }

    /// A sink that knows what it has may have it without our knowing: we died between its answer and the note of it.
    fn without_delivered(&mut self, slice: Slice, mut share: Share) -> Vec<(Slice, Share)> {
        let Slice { records, range } = slice;
        let Some(delivered) = self.delivered.get(&records.origin().generation) else {
            return vec![(Slice { records, range }, share)];
        };
        let has = |at: u32| {
            let record = records.get(at);
            delivered.covers(record.offset..record.offset + record.len)
        };
        let (mut lacking, mut had, mut start) = (Vec::new(), Vec::new(), range.start);
        while start < range.end {
            let is_there = has(start);
            let end = (start..range.end).find(|at| has(*at) != is_there).unwrap_or(range.end);
            let part = Slice { records: records.clone(), range: start..end };
            let its_share = share.split(part.count(), part.end());
            if is_there { &mut had } else { &mut lacking }.push((part, its_share));
            start = end;
        }
        for (part, share) in had {
            self.answered(&part);
            share.settle(&Verdict::Delivered);
        }
        lacking
    }

    /// Records are answered for; if they came out of the spool, they do not come back.
    pub fn answered(&mut self, slice: &Slice) {
        if let Some(frame) = slice.records.frame() {
            self.spool.answered_in_part(frame, slice.range.clone(), slice.count());
            self.progressed = true;
        }
    }

    fn try_next(&mut self) -> Result<Option<(Slice, Share)>> {
        while let Some(cost) = self.spool.next_cost()? {
            let paid = cost.min(self.window_bytes);
            // A holder of its own each: the window is this lane's alone.
            let Ok(mut credit) = self.window.try_take(&Holder::default(), paid) else { return Ok(None) };
            credit.grow(cost - paid);
            let Some(frame) = self.spool.next(credit)? else { continue };
            let slice = Slice { range: frame.answered..frame.records.len(), records: frame.records };
            let generation = slice.records.origin().generation;
            let (sequence, ends) = (frame.sequence, self.ends.clone());
            let receipts: Arc<dyn Receipts> = Arc::new(Frame { sequence, ends });
            // All of it, though some was answered for in an earlier life, which may not have told the ledger.
            let ack = Ack::from_spool(generation, frame.range, slice.count(), self.sink, &receipts);
            let share = ack.into_shares().pop().expect("one share for one sink");
            return Ok(Some((slice, share)));
        }
        Ok(None)
    }

    /// What the senders have ended: the ledger hears of it, and it never comes back.
    pub fn reap(&mut self, now: Instant) {
        let ends = std::mem::take(&mut *self.ends.lock());
        if std::mem::take(&mut self.progressed) || !ends.is_empty() {
            for End { sequence, receipt } in ends {
                if receipt.undelivered.is_empty() {
                    self.spool.answered(sequence);
                }
                self.receipts.receipt(receipt);
            }
            if let Err(cause) = self.spool.save() {
                self.progressed = true; // written down as soon as that can be
                self.is_ill(cause, now);
            }
            (self.tidy_at, self.tidy_wait) = (Some(now + TIDY_FIRST), TIDY_FIRST);
            self.show();
        }
        if self.tidy_at.is_some_and(|at| at <= now) {
            self.tidy_at = match self.spool.tidy() {
                Ok(false) => None,
                Ok(true) => {
                    // An idle agent writes no checkpoints: then there is nothing to wait for in a hurry.
                    self.tidy_wait = (self.tidy_wait * 2).min(TIDY_MOST);
                    Some(now + self.tidy_wait)
                }
                Err(cause) => {
                    self.is_ill(cause, now);
                    Some(now + DISK_RESTS)
                }
            };
            self.show();
        }
    }

    /// Looks after what an earlier life left, from `now` on.
    pub fn begin(&mut self, now: Instant) {
        self.tidy_at = (self.spool.files() > 0).then_some(now + TIDY_FIRST);
    }

    fn tell_lost(&mut self) {
        for Lost { why, count } in self.spool.take_lost() {
            let verdict = match why {
                Why::AnsweredBefore => Verdict::Delivered,
                Why::Corrupt => Verdict::Dropped("spool corrupt".into()),
                Why::Full => Verdict::Dropped("spool full".into()),
            };
            if why == Why::Corrupt {
                let name = &self.name;
                log::error!("{name}: {} lines in its spool are damaged and cannot be sent", count.lines);
            }
            let mut tally = Tally::default();
            tally.add(&verdict, count);
            self.receipts.receipt(Receipt::of_lost(self.sink, tally));
        }
    }

    fn show(&self) {
        self.meters.lines.set(self.spool.pending().lines as i64);
        self.meters.bytes.set(self.spool.used_bytes() as i64);
        self.meters.files.set(self.spool.files() as i64);
        self.meters.former.set(self.delivered.len() as i64);
    }
}
