//! Many lives of one file against a model: whatever each life did and however it ended, the same bytes always have
//! the same number and time, and a sink gets every byte; once, if the stops were in good order.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;

use proptest::prelude::*;

use super::super::SourceKind;
use super::super::file::framing::{End, frame};
use super::fixture::{Below, below_on};
use super::*;
use crate::ack::{Share, Verdict};
use crate::budget::READ_BYTES;
use crate::disk::model::ModelDisk;
use crate::record::Labels;

/// As long as the shortest lines are cut at.
const LONGEST: usize = 8;

const SINKS: usize = 2;

/// What becomes of one chunk at each sink: how many lines are delivered before the rest is let go.
type Fate = [u8; SINKS];

#[derive(Clone, Debug)]
struct Life {
    /// How much each turn reads, whether a half line at its end is shipped, and what becomes of the chunk.
    turns: Vec<(usize, bool, Fate)>,
    /// After so many turns there is a checkpoint.
    saved_after: Option<usize>,
    end: Ending,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Ending {
    InGoodOrder,
    Killed,
    /// What was not synced survives as the seed says.
    PowerCut(u64),
}

/// What stands at one place of the file: where the line ends, its number and its time.
type Line = (u64, u64, i64);

#[derive(Default)]
struct Model {
    /// As each was first handed over, by its start. Those after a stop that came too early are found out anew.
    lines: BTreeMap<u64, Line>,
    /// As of the last checkpoint: what a power cut must not change.
    synced: BTreeMap<u64, Line>,
    /// How often each sink got each byte.
    got: [Vec<u8>; SINKS],
}

impl Model {
    fn hand_over(&mut self, chunk: &Lines) {
        let mut start = chunk.start;
        for (at, end) in chunk.ends.of(&chunk.data).iter().enumerate() {
            let end = chunk.start + u64::from(*end);
            let line = (end, chunk.first_line + at as u64, chunk.base_ns + at as i64);
            let known = *self.lines.entry(start).or_insert(line);
            assert_eq!(known, line, "the line at {start} is what it was");
            start = end;
        }
    }

    /// Delivers the first `lines` and lets the rest go.
    fn answer(&mut self, chunk: &Lines, mut share: Share, lines: u8) {
        let lines = usize::from(lines).min(chunk.len());
        if lines > 0 {
            let end = u64::from(chunk.ends.of(&chunk.data)[lines - 1]);
            let part = share.split(Count { lines: lines as u64, bytes: end }, chunk.start + end);
            let got = &mut self.got[part.sink().0 as usize];
            (chunk.start..chunk.start + end).for_each(|byte| got[byte as usize] += 1);
            part.settle(&Verdict::Delivered);
        }
        share.let_go();
    }
}

fn source() -> SourceOptions {
    SourceOptions {
        name: "files".into(),
        labels: Labels::default(),
        max_line_bytes: LONGEST,
        idle: Duration::from_secs(5),
        kind: SourceKind::Stdin, // whatever: nobody asks here
    }
}

/// One life: goes on where the last one was.
fn live(disk: &ModelDisk, data: &[u8], life: &Life, model: &mut Model) {
    let Below { switch: _switch, mut ledger, restored, supply, journal, chunks, .. } =
        below_on(Arc::new(disk.clone()), Path::new("/data/ledger"), SINKS, READ_BYTES);
    let source = source();
    let mut outlet = supply.stamping_outlet(journal);
    drop(supply);
    let mut stream = match restored.known.first() {
        Some(known) => outlet.reopen(&source, known),
        None => outlet.open(Opening {
            source: &source,
            generation: None,
            filename: Some(&Path::new("/var/log/a").into()),
            identity: None,
            start: 0,
            lineage: 0,
        }),
    };
    for (turn, (bytes, half, fate)) in life.turns.iter().enumerate() {
        let save = life.saved_after == Some(turn);
        ledger.catch_up(save).unwrap();
        if save {
            model.synced = model.lines.clone();
        }
        let Range { start, end } = stream.position()..data.len() as u64;
        let limit = stream.read_limit().unwrap_or(u64::MAX);
        let upto = end.min(limit).min(start + *bytes as u64);
        let fresh = &data[start as usize..upto as usize];
        // What an earlier life has read stands there, so nobody takes it for the end of the file.
        let at_end = *half && limit == u64::MAX;
        let end = if upto == limit || at_end { End::Final } else { End::More };
        let mut ends = Vec::new();
        let len = frame(fresh, LONGEST, end, CHUNK_LINES, &mut ends);
        if len == 0 {
            continue;
        }
        let credit = outlet.take(&stream, len).unwrap();
        outlet.send(&mut stream, &fresh[..len], &ends, credit).unwrap();
        // None: every sink has had it.
        let Ok(Chunk { lines, ack }) = chunks.try_recv() else { continue };
        model.hand_over(&lines);
        for share in ack.into_shares() {
            let fate = fate[share.sink().0 as usize];
            model.answer(&lines, share, fate);
        }
    }
    match life.end {
        Ending::InGoodOrder => {
            ledger.catch_up(true).unwrap();
            model.synced = model.lines.clone();
        }
        Ending::Killed => disk.process_dies(),
        Ending::PowerCut(seed) => {
            disk.power_cut(seed);
            model.lines = model.synced.clone();
        }
    }
}

fn lives() -> impl Strategy<Value = Vec<Life>> {
    let fate = [0u8..6, 0u8..6].prop_map(|fate| fate.map(|lines| if lines == 5 { u8::MAX } else { lines }));
    let turn = (1usize..40, proptest::bool::weighted(0.2), fate);
    let end = prop_oneof![
        Just(Ending::InGoodOrder),
        Just(Ending::Killed),
        any::<u64>().prop_map(Ending::PowerCut),
    ];
    let life = (proptest::collection::vec(turn, 0..8), proptest::option::of(0usize..8), end)
        .prop_map(|(turns, saved_after, end)| Life { turns, saved_after, end });
    proptest::collection::vec(life, 1..6)
}

/// The last one: reads everything, and every sink takes everything.
fn good_life() -> Life {
    let turns = vec![(1000, true, [u8::MAX; SINKS]); 200];
    Life { turns, saved_after: None, end: Ending::InGoodOrder }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn what_is_read_again_is_what_it_was(
        data in proptest::collection::vec(prop_oneof![Just(b'\n'), Just(b'a'), Just(b'\r'), any::<u8>()], 1..150),
        lives in lives(),
    ) {
        let disk = ModelDisk::default();
        let mut model = Model { got: [vec![0; data.len()], vec![0; data.len()]], ..Model::default() };
        let mut twice = false;
        for life in lives.iter().chain([&good_life()]) {
            live(&disk, &data, life, &mut model);
            twice |= life.end != Ending::InGoodOrder;
        }
        for (sink, got) in model.got.iter().enumerate() {
            let right = |times: &u8| *times == 1 || (twice && *times > 1);
            prop_assert!(got.iter().all(right), "sink {sink} got {got:?}");
        }
        let times: Vec<i64> = model.lines.values().map(|(_, _, time)| *time).collect();
        prop_assert!(times.windows(2).all(|pair| pair[0] < pair[1]), "{times:?}");
    }
}
