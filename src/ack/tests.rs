//! Shares against a model: which bytes were answered for, and by whom.

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
fn each_part_sends_its_receipt_when_it_ends() {
    let (ack, kept) = ack(3, 2);
    let mut shares = ack.into_shares();
    let first = shares[0].split(part(1), 110);
    first.settle(&Verdict::Delivered);
    for share in shares {
        share.settle(&Verdict::Delivered);
    }
    let receipts = kept.0.lock();
    let said: Vec<_> = receipts.iter().map(|r| (r.sink.0, r.range.clone(), r.tally.delivered)).collect();
    assert_eq!(said, [(0, 100..110, part(1)), (0, 110..130, part(2)), (1, 100..130, part(3))]);
    assert!(receipts.iter().all(|r| !r.fault && r.undelivered.is_empty()));
}

/// Ten lines; the first and the last two are dropped, one in the middle is poisonous, half a batch is delivered.
#[test]
fn what_nobody_has_to_deliver_goes_with_its_neighbours() {
    let (ack, kept) = ack(10, 1);
    let mut rest = ack.into_shares().remove(0);
    rest.settle_part(part(3), &Verdict::Dropped("rule".into()));
    let poisonous = rest.pick(part(1), 130..140);
    let mut first = rest.split(part(4), 160);
    first.split(part(1), 120).settle(&Verdict::Delivered);
    first.settle(&Verdict::Delivered);
    rest.split(part(2), 180).settle(&Verdict::Delivered);
    drop(rest);
    let answered =
        |receipt: &Receipt| receipt.answered().map(|range| (range.start, range.end)).collect::<Vec<_>>();
    let said: Vec<_> = kept.0.lock().iter().map(answered).collect();
    assert_eq!(said, [vec![(100, 120)], vec![(120, 130), (140, 160)], vec![(160, 200)]]);
    assert_eq!(kept.0.lock()[0].tally.total(), part(4), "the dropped ones have no place of their own");
    poisonous.let_go();
    let last = kept.0.lock().pop().unwrap();
    assert_eq!((last.not_delivered, answered(&last)), (part(1), vec![]));
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
    /// The model: whatever is done to the parts in whatever order, every line is in exactly one receipt, and so
    /// is every byte.
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
        }
        lacking.extend(parts.iter().map(|part| (part.range.clone(), part.count.lines)));
        drop(parts);
        let receipts = kept.0.lock();
        let said = |receipt: &Receipt| receipt.tally.total().lines + receipt.not_delivered.lines;
        prop_assert_eq!(receipts.iter().map(said).sum::<u64>(), lines);
        for byte in 100..100 + lines * 10 {
            let model = lacking.iter().any(|(range, lines)| *lines > 0 && range.contains(&byte));
            let is_in = |receipt: &&Receipt| receipt.range.contains(&byte);
            let with: Vec<&Receipt> = receipts.iter().filter(is_in).collect();
            prop_assert_eq!(with.len(), 1, "byte {}", byte);
            prop_assert_eq!(with[0].undelivered.iter().any(|range| range.contains(&byte)), model);
            prop_assert_eq!(with[0].answered().any(|range| range.contains(&byte)), !model);
        }
        for receipt in receipts.iter() {
            let bytes: u64 = receipt.undelivered.iter().map(|range| range.end - range.start).sum();
            let lacking = receipt.not_delivered.bytes;
            prop_assert!(bytes == lacking || (vague && bytes > lacking));
        }
    }
}
