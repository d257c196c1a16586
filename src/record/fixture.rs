//! Chunks out of thin air, for the tests of those who carry them.

use super::*;
use crate::ack::{Receipt, Receipts, SinkSet};
use crate::budget::{Budget, Holder};

/// Keeps receipts for a look.
#[derive(Default)]
pub struct Kept(pub parking_lot::Mutex<Vec<Receipt>>);

impl Receipts for Kept {
    fn receipt(&self, receipt: Receipt) {
        self.0.lock().push(receipt);
    }
}

/// `raw`: with line ends, all in one chunk that starts at `start`.
pub fn lines(raw: &[&str], start: u64, replayable: bool) -> Lines {
    let data = raw.concat().into_bytes();
    let ends = raw.iter().scan(0, |end, line| {
        *end += line.len() as u32;
        Some(*end)
    });
    let origin = Origin {
        source: "test".into(),
        generation: GenerationId(1),
        lineage: 0,
        labels: Arc::new(Labels::new([("source", "test")])),
        filename: replayable.then(|| "/var/log/test.log".into()),
        replayable,
        stages: Box::default(),
        shift: Shift::default(),
    };
    let credit = Budget::new(1 << 20).door().try_take(&Holder::default(), data.len()).expect("there is room");
    Lines {
        origin: Arc::new(origin),
        start,
        ends: ends.collect::<Vec<u32>>().into(),
        data: data.into(),
        sums: None,
        base_ns: 1_000 + start as i64,
        first_line: start,
        continues: false,
        timed: None,
        credit,
    }
}

/// A parcel for one sink, and where its receipt goes.
pub fn parcel(lines: Lines, kept: &Arc<Kept>) -> Parcel {
    let receipts: Arc<dyn Receipts> = kept.clone();
    let ack = Ack::new(GenerationId(1), lines.byte_range(), lines.count(), SinkSet::all(1), &receipts);
    let share = ack.into_shares().remove(0);
    Parcel { records: Records::untouched(lines).into(), share }
}
