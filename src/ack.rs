//! What returns: the claim that a chunk must be answered for, and the receipt that answers it.
//!
//! An [`Ack`] has one [`Share`] per sink that still lacks the chunk. A share is divided as its lines land in
//! several batches; every part is settled by a verdict, and the last part sends one [`Receipt`] to the ledger.
//!
//! Always true: the lines of all parts plus the lines that were settled are the lines of the chunk. One receipt
//! per share, never two, never none. A share that is dropped without a verdict says so in its receipt
//! (`not_delivered`), and whether that was meant ([`Share::let_go`]) or a fault of ours (`Drop`).
//!
//! A part knows where its lines stand: between the end of the part that was split off before it and its own end.
//! So what ends without a verdict is named by its bytes, and only those are read again. Lines that a rule has
//! dropped may lie between those of a part: they are dropped once more if it is read again.
//!
//! Not here: what a receipt means for a position (the ledger), who holds the memory (the budget).

use std::ops::{AddAssign, Range};
use std::sync::Arc;

use crate::sync::Mutex;

/// Which sink, by its place in the configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SinkId(pub u8);

/// One life of one file (or stream): from its first byte until it is truncated, replaced or gone. Unique within
/// a `data_dir`, for ever.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct GenerationId(pub u64);

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

/// The answer of one sink for one chunk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Receipt {
    pub generation: GenerationId,
    /// Bytes of the generation, half open.
    pub range: Range<u64>,
    pub sink: SinkId,
    pub tally: Tally,
    /// Without a verdict.
    pub not_delivered: Count,
    /// Where those stand, in bytes of the generation: rising, disjoint, not touching. All else of the range was
    /// answered for.
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

/// Where receipts go. Called by whoever ends the last part of a share: may wait for the ledger, must not panic,
/// and ignores a ledger that is gone.
pub trait Receipts: Send + Sync {
    fn receipt(&self, receipt: Receipt);
}

/// The shares of one chunk, until the worker hands each to its lane.
pub struct Ack {
    shares: Vec<Share>,
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
        Ack::made(generation, range, count, sinks, receipts, false)
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
        Ack::made(generation, range, count, sinks, receipts, true)
    }

    fn made(
        generation: GenerationId,
        range: Range<u64>,
        count: Count,
        sinks: SinkSet,
        receipts: &Arc<dyn Receipts>,
        from_spool: bool,
    ) -> Ack {
        assert!(count.lines > 0, "a chunk without lines has nothing to answer for");
        let share = |sink| Share {
            claim: Arc::new(Claim {
                generation,
                range: range.clone(),
                sink,
                from_spool,
                receipts: receipts.clone(),
                open: Mutex::new(Open { lines: count.lines, ..Open::default() }),
            }),
            count,
            range: range.clone(),
        };
        Ack { shares: sinks.iter().map(share).collect() }
    }

    /// Every share at once, for a verdict that holds for all sinks.
    pub fn shares_mut(&mut self) -> &mut [Share] {
        &mut self.shares
    }

    pub fn into_shares(self) -> Vec<Share> {
        self.shares
    }

    /// The chunk was never handed over: no receipt, no fault, since a share without lines has nothing to say.
    /// Only the Outlet calls this.
    pub fn take_back(mut self) {
        self.shares.iter_mut().for_each(|share| share.count = Count::default());
    }
}

/// What one sink costs a chunk, in bytes of memory: the claim with its counts, and twice a part with its place
/// in a batch (a list grows by doubling).
pub const SHARE_BYTES: usize =
    size_of::<Claim>() + 2 * (size_of::<Share>() + size_of::<(usize, Range<u32>)>());

/// A part of what one sink must answer for.
pub struct Share {
    claim: Arc<Claim>,
    count: Count,
    /// Where its lines stand.
    range: Range<u64>,
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
    /// Still without an end; at zero the receipt goes out.
    lines: u64,
    tally: Tally,
    not_delivered: Count,
    /// In the order in which they ended; they may touch or overlap.
    undelivered: Vec<Range<u64>>,
    fault: bool,
}

enum End<'a> {
    Settled(&'a Verdict),
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
        let range = self.range.start..upto;
        self.range.start = upto;
        Share { claim: self.claim.clone(), count: part, range }
    }

    /// Takes lines that stand at `range` out of the middle; what is left keeps its place around them.
    pub fn pick(&mut self, part: Count, range: Range<u64>) -> Share {
        self.take(part);
        Share { claim: self.claim.clone(), count: part, range }
    }

    /// Settles some lines of this share, wherever they stand, and keeps the rest.
    pub fn settle_part(&mut self, part: Count, verdict: &Verdict) {
        self.take(part);
        self.claim.end(part, &self.range, End::Settled(verdict));
    }

    pub fn settle(mut self, verdict: &Verdict) {
        let count = std::mem::take(&mut self.count);
        self.claim.end(count, &self.range, End::Settled(verdict));
    }

    /// Ends without a verdict on purpose: the lines stand in their source and will be read again.
    pub fn let_go(mut self) {
        let count = std::mem::take(&mut self.count);
        self.claim.end(count, &self.range, End::LetGo);
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
        self.claim.end(self.count, &self.range, End::Forgotten);
    }
}

impl Claim {
    fn end(&self, count: Count, range: &Range<u64>, how: End<'_>) {
        if count.lines == 0 {
            return;
        }
        let mut open = self.open.lock();
        open.lines -= count.lines;
        match how {
            End::Settled(verdict) => open.tally.add(verdict, count),
            End::LetGo | End::Forgotten => {
                open.not_delivered += count;
                open.undelivered.push(range.clone());
                open.fault |= matches!(how, End::Forgotten);
            }
        }
        if open.lines > 0 {
            return;
        }
        let Open { tally, not_delivered, undelivered, fault, .. } = std::mem::take(&mut *open);
        drop(open); // the ledger may make us wait: not with a lock held
        self.receipts.receipt(Receipt {
            generation: self.generation,
            range: self.range.clone(),
            sink: self.sink,
            tally,
            not_delivered,
            undelivered: merged(undelivered),
            fault,
            from_spool: self.from_spool,
        });
    }
}

/// Rising, and without those that touch.
fn merged(mut ranges: Vec<Range<u64>>) -> Vec<Range<u64>> {
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
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[derive(Default)]
    struct Kept(Mutex<Vec<Receipt>>);
    impl Receipts for Kept {
        fn receipt(&self, receipt: Receipt) {
            self.0.lock().push(receipt);
        }
    }

    fn ack(lines: u64, sinks: usize) -> (Ack, Arc<Kept>) {
        let kept = Arc::new(Kept::default());
        let receipts: Arc<dyn Receipts> = kept.clone();
        let count = Count { lines, bytes: lines * 10 };
        (Ack::new(GenerationId(7), 100..100 + lines * 10, count, SinkSet::all(sinks), &receipts), kept)
    }

    fn part(lines: u64) -> Count {
        Count { lines, bytes: lines * 10 }
    }

    #[test]
    fn each_share_sends_one_receipt_when_its_last_part_ends() {
        let (ack, kept) = ack(3, 2);
        let mut shares = ack.into_shares();
        let first = shares[0].split(part(1), 110);
        first.settle(&Verdict::Delivered);
        assert!(kept.0.lock().is_empty());
        for share in shares {
            share.settle(&Verdict::Delivered);
        }
        let receipts = kept.0.lock();
        assert_eq!(receipts.len(), 2);
        assert!(
            receipts.iter().all(|r| r.tally.delivered == part(3) && !r.fault && r.undelivered.is_empty())
        );
    }

    #[test]
    fn a_forgotten_share_is_a_fault_and_a_share_let_go_is_not() {
        let (first, kept) = ack(2, 1);
        drop(first);
        assert!(kept.0.lock()[0].fault && kept.0.lock()[0].not_delivered == part(2));
        let (second, kept) = ack(2, 1);
        second.into_shares().into_iter().for_each(Share::let_go);
        assert!(!kept.0.lock()[0].fault && kept.0.lock()[0].not_delivered == part(2));
    }

    #[test]
    fn a_chunk_taken_back_sends_nothing() {
        let (ack, kept) = ack(2, 2);
        ack.take_back();
        assert!(kept.0.lock().is_empty());
    }

    #[derive(Clone, Debug)]
    enum Act {
        Split(u8),
        SettlePart(u8, u8),
        Settle(u8),
        LetGo,
        Forget,
    }

    fn acts() -> impl Strategy<Value = Vec<(usize, Act)>> {
        let act = prop_oneof![
            any::<u8>().prop_map(Act::Split),
            (any::<u8>(), 0u8..4).prop_map(|(n, v)| Act::SettlePart(n, v)),
            (0u8..4).prop_map(Act::Settle),
            Just(Act::LetGo),
            Just(Act::Forget),
        ];
        proptest::collection::vec((any::<usize>(), act), 0..40)
    }

    fn verdict(of: u8) -> Verdict {
        match of {
            0 => Verdict::Delivered,
            1 => Verdict::Dropped("rule".into()),
            2 => Verdict::DeadLettered,
            _ => Verdict::Spooled,
        }
    }

    proptest! {
        /// The model: whatever is done to the parts in whatever order, there is exactly one receipt, and every
        /// line is in it exactly once.
        #[test]
        fn no_line_is_lost_or_counted_twice(lines in 1u64..200, acts in acts()) {
            let (ack, kept) = ack(lines, 1);
            let mut parts = ack.into_shares();
            let (mut lacking, mut vague) = (Vec::new(), false);
            for (at, act) in acts {
                if parts.is_empty() { break; }
                let at = at % parts.len();
                let size = |n: u8, share: &Share| part(u64::from(n) % (share.count().lines + 1));
                match act {
                    Act::Split(n) => {
                        let n = size(n, &parts[at]);
                        let upto = parts[at].range.start + n.bytes;
                        let new = parts[at].split(n, upto);
                        parts.push(new);
                    }
                    Act::SettlePart(n, v) => {
                        let n = size(n, &parts[at]);
                        parts[at].settle_part(n, &verdict(v));
                        // The model cannot say which lines of the part those were: all of it may be read again.
                        vague |= n.lines > 0;
                    }
                    Act::Settle(v) => parts.swap_remove(at).settle(&verdict(v)),
                    Act::LetGo => {
                        lacking.push((parts[at].range.clone(), parts[at].count.lines));
                        parts.swap_remove(at).let_go();
                    }
                    Act::Forget => {
                        lacking.push((parts[at].range.clone(), parts[at].count.lines));
                        drop(parts.swap_remove(at));
                    }
                }
                let open: u64 = parts.iter().map(|p| p.count().lines).sum();
                prop_assert_eq!(kept.0.lock().len(), usize::from(open == 0));
            }
            lacking.extend(parts.iter().map(|part| (part.range.clone(), part.count.lines)));
            drop(parts);
            let receipts = kept.0.lock();
            prop_assert_eq!(receipts.len(), 1);
            let receipt = &receipts[0];
            prop_assert_eq!(receipt.tally.total().lines + receipt.not_delivered.lines, lines);
            for byte in receipt.range.clone() {
                let model = lacking.iter().any(|(range, lines)| *lines > 0 && range.contains(&byte));
                prop_assert_eq!(receipt.undelivered.iter().any(|range| range.contains(&byte)), model);
                prop_assert_eq!(receipt.answered().any(|range| range.contains(&byte)), !model);
            }
            let bytes: u64 = receipt.undelivered.iter().map(|range| range.end - range.start).sum();
            prop_assert!(bytes == receipt.not_delivered.bytes || (vague && bytes > receipt.not_delivered.bytes));
        }
    }
}

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
            let kept = kept.0.lock();
            assert_eq!(kept.len(), 1, "one receipt, whoever was last");
            assert_eq!(kept[0].tally.total().lines + kept[0].not_delivered.lines, 3);
            expected(&kept[0]);
        });
    }

    #[test]
    fn parts_that_end_at_once_make_one_receipt() {
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
