//! What returns: the claim that a chunk must be answered for, and the receipt that answers it.
//!
//! An [`Ack`] has one [`Share`] per sink that still lacks the chunk. A share is divided as its lines land in
//! several batches; every part is settled by a verdict, and sends a [`Receipt`] for its bytes to the ledger at once:
//! the rest of its chunk may wait for an ill sink for hours, and a crash must not repeat what was delivered.
//!
//! Always true: the lines of all parts plus the lines that were settled are the lines of the chunk. Each line is in
//! one receipt, and so is each byte, never in two, never in none. A share that is dropped without a verdict says so
//! in its receipt (`not_delivered`), and whether that was meant ([`Share::let_go`]) or a fault of ours (`Drop`).
//! What came out of a spool sends one receipt for all of its frame, when its last part has ended.
//!
//! A part knows where its lines stand: between the end of the part that was split off before it and its own end.
//! So what ends without a verdict is named by its bytes, and only those are read again. Lines that a rule has
//! dropped may lie between those of a part: they are dropped once more if it is read again.
//!
//! Not here: what a receipt means for a position (the ledger), who holds the memory (the budget).

use std::ops::{AddAssign, Range};
use std::sync::Arc;

use crate::sync::{Mutex, Shared, Stock};

/// Which sink, by its place in the configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SinkId(pub u8);

/// One life of one file (or stream): from its first byte until it is truncated, replaced or gone. Unique within
/// a `data_dir`, for ever.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct GenerationId(pub u64);

impl GenerationId {
    const DERIVED: u64 = 1 << 63;

    /// For what can be told from all others by a hash: whoever meets it again gives it the same number, although
    /// nobody has written that down.
    pub fn derived_from(hash: u64) -> GenerationId {
        GenerationId(hash | Self::DERIVED)
    }

    pub fn is_derived(self) -> bool {
        self.0 & Self::DERIVED != 0
    }
}

/// A set of sinks. The configuration allows 64.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SinkSet(u64);

impl SinkSet {
    pub const MAX: usize = 64;
    pub const EMPTY: SinkSet = SinkSet(0);

    /// The first `count` sinks.
    pub fn all(count: usize) -> SinkSet {
        assert!(count <= Self::MAX);
        SinkSet(if count == Self::MAX { u64::MAX } else { (1 << count) - 1 })
    }
    pub fn insert(&mut self, sink: SinkId) {
        self.0 |= 1 << sink.0;
    }
    pub fn contains(self, sink: SinkId) -> bool {
        self.0 & (1 << sink.0) != 0
    }
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }
    pub fn iter(self) -> impl Iterator<Item = SinkId> {
        (0..Self::MAX as u8).map(SinkId).filter(move |sink| self.contains(*sink))
    }
}

/// Lines and the bytes they have in their source, line ends included.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Count {
    pub lines: u64,
    pub bytes: u64,
}

impl AddAssign for Count {
    fn add_assign(&mut self, other: Count) {
        self.lines += other.lines;
        self.bytes += other.bytes;
    }
}

/// What became of some lines at one sink.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    Delivered,
    /// By a rule of the configuration, which is named.
    Dropped(Arc<str>),
    DeadLettered,
    /// Not delivered when the agent stopped, from a source that cannot be read again: among the dead letters.
    Kept,
    Spooled,
}

/// How the lines of a share, or of many, were settled.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    pub delivered: Count,
    pub dead_lettered: Count,
    pub kept: Count,
    pub spooled: Count,
    /// By reason. Few reasons, so a list beats a map.
    pub dropped: Vec<(Arc<str>, Count)>,
}

impl Tally {
    pub fn add(&mut self, verdict: &Verdict, count: Count) {
        match verdict {
            Verdict::Delivered => self.delivered += count,
            Verdict::DeadLettered => self.dead_lettered += count,
            Verdict::Kept => self.kept += count,
            Verdict::Spooled => self.spooled += count,
            Verdict::Dropped(reason) => self.add_dropped(reason, count),
        }
    }

    fn add_dropped(&mut self, reason: &Arc<str>, count: Count) {
        match self.dropped.iter_mut().find(|(known, _)| known == reason) {
            Some((_, sum)) => *sum += count,
            None => self.dropped.push((reason.clone(), count)),
        }
    }

    pub fn total(&self) -> Count {
        let mut total = self.delivered;
        total += self.dead_lettered;
        total += self.kept;
        total += self.spooled;
        self.dropped.iter().for_each(|(_, count)| total += *count);
        total
    }
}

/// The answer of one sink for a chunk, or for a part of one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Receipt {
    pub generation: GenerationId,
    /// Bytes of the generation, half open.
    pub range: Range<u64>,
    pub sink: SinkId,
    pub tally: Tally,
    /// Without a verdict.
    pub not_delivered: Count,
    /// Where those stand, and what has a receipt of its own, in bytes of the generation: rising, disjoint, not
    /// touching. All else of the range was answered for.
    pub undelivered: Vec<Range<u64>>,
    /// Some of them were forgotten rather than let go: a fault of ours, unless the agent is aborting.
    pub fault: bool,
    /// Of records that were spooled before, and answered for by that.
    pub from_spool: bool,
}

impl Receipt {
    /// Lines of a spool whose place in their sources is not known, since they cannot be read.
    pub fn of_lost(sink: SinkId, tally: Tally) -> Receipt {
        Receipt {
            generation: GenerationId(0),
            range: 0..0,
            sink,
            tally,
            not_delivered: Count::default(),
            undelivered: Vec::new(),
            fault: false,
            from_spool: true,
        }
    }

    /// What was answered for, rising.
    pub fn answered(&self) -> impl Iterator<Item = Range<u64>> {
        let starts = std::iter::once(self.range.start).chain(self.undelivered.iter().map(|gap| gap.end));
        let ends = self.undelivered.iter().map(|gap| gap.start).chain(std::iter::once(self.range.end));
        starts.zip(ends).map(|(start, end)| start..end).filter(|range| !range.is_empty())
    }
}

/// Where receipts go. Called by whoever ends a part of a share: may wait for the ledger, must not panic,
/// and ignores a ledger that is gone.
pub trait Receipts: Send + Sync {
    fn receipt(&self, receipt: Receipt);

    fn receipts(&self, receipts: Vec<Receipt>) {
        receipts.into_iter().for_each(|receipt| self.receipt(receipt));
    }
}

/// Receipts of one batch that go to the ledger together, where it has many parts.
const RECEIPTS_MOST: usize = 32;

/// At full speed a batch has one part or two: a list of receipts would be more work than it saves.
const PARTS_FEW: usize = 4;

/// Settles all of them in the same way.
pub fn settle_all(shares: impl ExactSizeIterator<Item = Share>, verdict: &Verdict) {
    if shares.len() <= PARTS_FEW {
        return shares.for_each(|share| share.settle(verdict));
    }
    let mut receipts: Vec<Receipt> = Vec::new();
    let mut to: Option<Arc<dyn Receipts>> = None;
    for mut share in shares {
        let count = std::mem::take(&mut share.count);
        let claim = &share.claim;
        let Some(receipt) = claim.end(count, &share.range, &share.picked, End::Settled(verdict)) else {
            continue;
        };
        if to.as_ref().is_some_and(|to| receipts.len() == RECEIPTS_MOST || !Arc::ptr_eq(to, &claim.receipts))
        {
            to.take().into_iter().for_each(|to| to.receipts(std::mem::take(&mut receipts)));
        }
        to.get_or_insert_with(|| claim.receipts.clone());
        receipts.push(receipt);
    }
    to.into_iter().for_each(|to| to.receipts(std::mem::take(&mut receipts)));
}

/// The shares of one chunk, until each is dealt to its lane.
pub struct Ack {
    shares: Vec<Share>,
    lists: Lists,
}

impl Ack {
    /// `count` is the whole chunk: at least one line.
    pub fn new(
        generation: GenerationId,
        range: Range<u64>,
        count: Count,
        sinks: SinkSet,
        receipts: &Arc<dyn Receipts>,
    ) -> Ack {
        Claims::new(receipts.clone()).ack(generation, range, count, sinks)
    }

    /// For records that come out of a spool: their receipt moves them in the account and no position, and what is
    /// not delivered stays in the spool.
    pub fn from_spool(
        generation: GenerationId,
        range: Range<u64>,
        count: Count,
        sink: SinkId,
        receipts: &Arc<dyn Receipts>,
    ) -> Ack {
        let mut sinks = SinkSet::EMPTY;
        sinks.insert(sink);
        Claims::new(receipts.clone()).made(generation, range, count, sinks, true)
    }

    /// Every share at once, for a verdict that holds for all sinks.
    pub fn shares_mut(&mut self) -> &mut [Share] {
        &mut self.shares
    }

    pub fn into_shares(self) -> Vec<Share> {
        self.shares
    }

    /// Each to whom it belongs. The list is kept for another chunk.
    pub fn hand_out(self, to: impl FnMut(Share)) {
        let Ack { mut shares, lists } = self;
        shares.drain(..).for_each(to);
        let mut lists = lists.lock();
        if lists.len() < LISTS_MOST {
            lists.push(shares);
        }
    }

    /// The chunk was never handed over: no receipt, no fault, since a share without lines has nothing to say.
    /// Only the Outlet calls this.
    pub fn take_back(mut self) {
        self.shares.iter_mut().for_each(|share| share.count = Count::default());
    }
}

/// Where acks come from, in memory that earlier ones have left. Cheap to clone.
#[derive(Clone)]
pub struct Claims {
    receipts: Arc<dyn Receipts>,
    claims: Stock<Claim>,
    lists: Lists,
}

/// Lists of shares that wait to be used again: more than chunks are between a monitor and its worker at full speed.
type Lists = Arc<Mutex<Vec<Vec<Share>>>>;

const LISTS_MOST: usize = 16;

impl Claims {
    pub fn new(receipts: Arc<dyn Receipts>) -> Claims {
        Claims { receipts, claims: Stock::default(), lists: Arc::new(Mutex::new(Vec::new())) }
    }

    /// As [`Ack::new`].
    pub fn ack(&self, generation: GenerationId, range: Range<u64>, count: Count, sinks: SinkSet) -> Ack {
        self.made(generation, range, count, sinks, false)
    }

    fn made(
        &self,
        generation: GenerationId,
        range: Range<u64>,
        count: Count,
        sinks: SinkSet,
        from_spool: bool,
    ) -> Ack {
        assert!(count.lines > 0, "a chunk without lines has nothing to answer for");
        let share = |sink| Share {
            claim: self.claims.share(Claim {
                generation,
                range: range.clone(),
                sink,
                from_spool,
                receipts: self.receipts.clone(),
                open: Mutex::new(Open { lines: count.lines, ..Open::default() }),
            }),
            count,
            range: range.clone(),
            picked: Vec::new(),
        };
        let mut shares = self.lists.lock().pop().unwrap_or_default();
        shares.extend(sinks.iter().map(share));
        Ack { shares, lists: self.lists.clone() }
    }
}

/// What one sink costs a chunk, in bytes of memory: the claim with its counts, and twice a part with its place
/// in a batch (a list grows by doubling).
pub const SHARE_BYTES: usize =
    size_of::<Claim>() + 2 * (size_of::<Share>() + size_of::<(usize, Range<u32>)>());

/// A part of what one sink must answer for.
pub struct Share {
    claim: Shared<Claim>,
    count: Count,
    /// Where its lines stand, and what of it others answer for.
    range: Range<u64>,
    picked: Vec<Range<u64>>,
}

/// What all parts of one share have in common.
struct Claim {
    generation: GenerationId,
    range: Range<u64>,
    sink: SinkId,
    from_spool: bool,
    receipts: Arc<dyn Receipts>,
    open: Mutex<Open>,
}

/// How far the answer is.
#[derive(Default)]
struct Open {
    /// Still without an end.
    lines: u64,
    /// What the next receipt will say.
    tally: Tally,
    not_delivered: Count,
    /// In the order in which they ended; they may touch or overlap.
    undelivered: Vec<Range<u64>>,
    fault: bool,
}

enum End<'a> {
    Settled(&'a Verdict),
    /// And the rest of its part has no end yet.
    Somewhere(&'a Verdict),
    LetGo,
    Forgotten,
}

impl Share {
    pub fn sink(&self) -> SinkId {
        self.claim.sink
    }

    pub fn count(&self) -> Count {
        self.count
    }

    /// Takes the first `part` off this share: its lines end at `upto`, in bytes of the generation, and all that
    /// are left begin there or behind it.
    pub fn split(&mut self, part: Count, upto: u64) -> Share {
        assert!(self.range.contains(&upto) || upto == self.range.end, "a part ends within its share");
        self.take(part);
        // With the last line goes what a rule has dropped behind it: nobody else will answer for it.
        let upto = if self.count.lines == 0 { self.range.end } else { upto };
        let range = self.range.start..upto;
        self.range.start = upto;
        let picked = self.picked.extract_if(.., |picked| picked.start < upto).collect();
        Share { claim: self.claim.clone(), count: part, range, picked }
    }

    /// Takes lines that stand at `range` out of the middle; what is left keeps its place around them.
    pub fn pick(&mut self, part: Count, range: Range<u64>) -> Share {
        self.take(part);
        let claim = self.claim.clone();
        if self.count.lines == 0 {
            let all = std::mem::replace(&mut self.range, range.end..range.end);
            return Share { claim, count: part, range: all, picked: std::mem::take(&mut self.picked) };
        }
        self.picked.push(range.clone());
        Share { claim, count: part, range, picked: Vec::new() }
    }

    /// Settles some lines of this share, wherever they stand, and keeps the rest.
    pub fn settle_part(&mut self, part: Count, verdict: &Verdict) {
        self.take(part);
        let rest = self.count;
        self.end(part, if rest.lines > 0 { End::Somewhere(verdict) } else { End::Settled(verdict) });
    }

    pub fn settle(mut self, verdict: &Verdict) {
        let count = std::mem::take(&mut self.count);
        self.end(count, End::Settled(verdict));
    }

    /// Ends without a verdict on purpose: the lines stand in their source and will be read again.
    pub fn let_go(mut self) {
        let count = std::mem::take(&mut self.count);
        self.end(count, End::LetGo);
    }

    fn end(&self, count: Count, how: End<'_>) {
        if let Some(receipt) = self.claim.end(count, &self.range, &self.picked, how) {
            self.claim.receipts.receipt(receipt);
        }
    }

    fn take(&mut self, part: Count) {
        assert!(
            part.lines <= self.count.lines && part.bytes <= self.count.bytes,
            "a part is larger than its share"
        );
        self.count.lines -= part.lines;
        self.count.bytes -= part.bytes;
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.end(self.count, End::Forgotten);
    }
}

impl Claim {
    /// What the ledger has to hear of it.
    fn end(&self, count: Count, range: &Range<u64>, picked: &[Range<u64>], how: End<'_>) -> Option<Receipt> {
        if count.lines == 0 {
            return None;
        }
        let mut open = self.open.lock();
        open.lines -= count.lines;
        match how {
            End::Somewhere(verdict) => {
                open.tally.add(verdict, count);
                return None;
            }
            End::Settled(verdict) => open.tally.add(verdict, count),
            End::LetGo | End::Forgotten => {
                open.not_delivered += count;
                open.undelivered.push(range.clone());
                open.fault |= matches!(how, End::Forgotten);
            }
        }
        let range = match self.from_spool {
            true if open.lines > 0 => return None,
            true => self.range.clone(),
            false => range.clone(),
        };
        let rest = Open { lines: open.lines, ..Open::default() };
        let Open { tally, not_delivered, mut undelivered, fault, .. } = std::mem::replace(&mut *open, rest);
        drop(open); // the ledger may make us wait: not with a lock held
        undelivered.extend_from_slice(picked);
        Some(Receipt {
            generation: self.generation,
            range,
            sink: self.sink,
            tally,
            not_delivered,
            undelivered: merged(undelivered),
            fault,
            from_spool: self.from_spool,
        })
    }
}

/// Rising, and those that touch as one.
pub fn merged(mut ranges: Vec<Range<u64>>) -> Vec<Range<u64>> {
    ranges.sort_unstable_by_key(|range| range.start);
    ranges.dedup_by(|next, last| {
        let joined = next.start <= last.end;
        if joined {
            last.end = last.end.max(next.end);
        }
        joined
    });
    ranges
}

#[cfg(test)]
mod tests;

/// Every interleaving of threads that end parts of one share at the same time.
#[cfg(all(test, feature = "model"))]
mod model {
    use super::*;

    /// What came back; a lock of its own kind, since the model is about ours.
    #[derive(Default)]
    struct Kept(parking_lot::Mutex<Vec<Receipt>>);

    impl Receipts for Kept {
        fn receipt(&self, receipt: Receipt) {
            self.0.lock().push(receipt);
        }
    }

    /// Three parts of a share of three lines, each ended in a thread of its own by the ends given.
    fn check(ends: [fn(Share); 3], expected: impl Fn(&Receipt) + Send + Sync + 'static) {
        let expected = Arc::new(expected);
        loom::model(move || {
            let kept = Arc::new(Kept::default());
            let receipts: Arc<dyn Receipts> = kept.clone();
            let count = Count { lines: 3, bytes: 30 };
            let ack = Ack::new(GenerationId(1), 0..30, count, SinkSet::all(1), &receipts);
            let mut rest = ack.into_shares().remove(0);
            let line = Count { lines: 1, bytes: 10 };
            let parts = [rest.split(line, 10), rest.split(line, 20)];
            let mut threads = Vec::new();
            for (part, end) in parts.into_iter().zip(ends) {
                threads.push(loom::thread::spawn(move || end(part)));
            }
            ends[2](rest);
            threads.into_iter().for_each(|thread| thread.join().expect("no end panics"));
            let kept = std::mem::take(&mut *kept.0.lock());
            assert_eq!(kept.len(), 3, "each part has its own");
            let all = kept.into_iter().reduce(|mut all, one| {
                all.tally.delivered += one.tally.delivered;
                all.not_delivered += one.not_delivered;
                all.undelivered = merged([all.undelivered, one.undelivered].concat());
                Receipt { fault: all.fault || one.fault, ..all }
            });
            let all = all.expect("three of them");
            assert_eq!(all.tally.total().lines + all.not_delivered.lines, 3);
            expected(&all);
        });
    }

    #[test]
    fn parts_that_end_at_once_are_all_of_the_share() {
        let delivered: fn(Share) = |share| share.settle(&Verdict::Delivered);
        check([delivered; 3], |receipt| assert_eq!(receipt.undelivered, []));
        check([delivered, Share::let_go, delivered], |receipt| {
            assert!(!receipt.fault && receipt.undelivered.first() == Some(&(10..20)))
        });
        check([delivered, drop, Share::let_go], |receipt| {
            assert!(
                receipt.fault
                    && receipt.not_delivered.lines == 2
                    && receipt.undelivered.first() == Some(&(10..30))
            )
        });
    }
}
