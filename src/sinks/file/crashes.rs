//! The file sink on a disk that kills, forgets, tears and reorders: what stands in its outputs after any number of
//! lives. The ledger is a model of one line: what it was told before its last checkpoint, it knows.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use fastrand::Rng;

use super::*;
use crate::clock::Clock;
use crate::disk::model::ModelDisk;
use crate::disk::{Disk, Open, PAGE};
use crate::durable::{Passed, Unsynced};
use crate::record::Pool;
use crate::sinks::file::tests::{NOON_NS, batch, lines, options, origin};
use crate::sinks::{Answer, Connection, KindOptions, RotateOptions};

/// Generations, each with lines of its own.
const SOURCES: usize = 3;

struct World {
    disk: ModelDisk,
    file: FileOptions,
    rng: Rng,
    /// All lines of each source that were ever read.
    read: [Vec<Vec<u8>>; SOURCES],
    /// What the last checkpoint knows to be delivered.
    known: BTreeSet<(usize, usize)>,
    /// Tried since the last checkpoint: what a power cut may double.
    unsynced: BTreeSet<(usize, usize)>,
    batches: u64,
    /// Rises with each power cut.
    boot: u64,
    /// One sync in so many fails, and has lost what it was to write; 0: none.
    syncs_per_loss: u32,
}

/// One life of the process.
struct Life {
    connection: Box<dyn Connection>,
    unsynced: Unsynced,
    passed: Passed,
    delivered: BTreeSet<(usize, usize)>,
}

impl World {
    fn new(seed: u64, path: &str, format: Format, rotate: Option<RotateOptions>) -> World {
        let disk = ModelDisk::default();
        ["/out", "/data"].iter().for_each(|folder| disk.create_folder(Path::new(folder)).unwrap());
        World {
            disk,
            file: FileOptions { path: path.into(), format, rotate },
            rng: Rng::with_seed(seed),
            read: Default::default(),
            known: BTreeSet::new(),
            unsynced: BTreeSet::new(),
            batches: 0,
            boot: 1,
            syncs_per_loss: 0,
        }
    }

    fn offsets(&self, source: usize) -> Vec<Range<u64>> {
        let lines = self.read[source].iter().scan(0, |end, line| {
            let start = std::mem::replace(end, *end + line.len() as u64);
            Some(start..*end)
        });
        lines.collect()
    }

    /// Every line that neither the checkpoint nor the outputs know is about to be written again.
    fn begin(&self) -> Life {
        let (_, mut cx) = SinkContext::alone(Clock::by_hand(NOON_NS));
        cx.disk = Arc::new(self.disk.clone());
        cx.journals = Some("/data/outputs".into());
        cx.unsynced = Unsynced::open(cx.disk.clone(), Path::new("/data/in-doubt"), self.boot);
        let mut sink = open(&options(KindOptions::File(self.file.clone())), &self.file, &cx).unwrap();
        let mut delivered = self.known.clone();
        for source in 0..SOURCES {
            for (at, line) in self.offsets(source).into_iter().enumerate() {
                let is_in = |(generation, range): &Delivered| {
                    generation.0 == source as u64 && range.start <= line.start && line.end <= range.end
                };
                if sink.recovered.iter().any(is_in) {
                    delivered.insert((source, at));
                }
            }
        }
        sink.was_known.store(delivered == self.known, Relaxed);
        let connection = sink.connections.pop().unwrap();
        Life { connection, unsynced: cx.unsynced, passed: cx.passed, delivered }
    }

    /// Reads some new lines.
    fn read(&mut self) {
        for source in 0..SOURCES {
            for _ in 0..self.rng.usize(..4) {
                let padding = ["", ".", &"x".repeat(self.rng.usize(..1500))][self.rng.usize(..3)].to_owned();
                let line = format!("{source}-{:04}{padding}\n", self.read[source].len());
                self.read[source].push(line.into());
            }
        }
    }

    /// Tries to deliver the first few lines that each source still owes, in one batch.
    fn deliver(&mut self, life: &mut Life) -> bool {
        let (mut parts, mut taken) = (Vec::new(), Vec::new());
        for source in 0..SOURCES {
            let offsets = self.offsets(source);
            let lacking = (0..offsets.len()).filter(|at| !life.delivered.contains(&(source, *at)));
            for at in lacking.take(self.rng.usize(..6)) {
                let generation = origin(source as u64, &source.to_string(), Some("/var/log/a.log"));
                let mut line = lines(&generation, &[&self.read[source][at]], NOON_NS);
                line.start = offsets[at].start;
                parts.push(line);
                taken.push((source, at));
            }
        }
        if parts.is_empty() {
            return false;
        }
        self.unsynced.extend(&taken);
        self.batches += 1;
        match life.connection.deliver(&batch(self.batches, parts)) {
            Answer::Delivered => {
                life.delivered.extend(taken);
                true
            }
            Answer::Retry { .. } => false,
            refused => panic!("{refused:?}"),
        }
    }

    fn checkpoint(&mut self, life: &Life) {
        if self.syncs_per_loss > 0 && self.rng.u32(..self.syncs_per_loss) == 0 {
            self.disk.lose_in_sync();
        }
        if life.unsynced.prove().is_ok() {
            self.known.clone_from(&life.delivered);
            self.unsynced.clear();
            life.passed.written();
        }
    }

    fn live(&mut self, steps: usize) -> Life {
        let mut life = self.begin();
        for _ in 0..steps {
            match self.rng.u8(..10) {
                0..3 => self.read(),
                3..8 => drop(self.deliver(&mut life)),
                8 => drop(life.connection.idle(Clock::by_hand(0).now())),
                _ => self.checkpoint(&life),
            }
            if life.unsynced.take_lost().is_some() {
                break; // the agent ends
            }
        }
        life
    }

    fn power_cut(&mut self, seed: u64) {
        self.disk.power_cut(seed);
        self.boot += 1;
    }

    /// All that is owed is delivered, and nothing fails.
    fn finish(&mut self) {
        let mut life = self.begin();
        while (0..SOURCES).any(|source| self.owes(source, &life)) {
            self.deliver(&mut life);
        }
    }

    /// Six of them, each killed at one of its first `changes` of the disk.
    fn lives_that_end_in_a_kill(&mut self, changes: u64) {
        for _ in 0..6 {
            let (kill, steps) = (self.rng.u64(..changes), self.rng.usize(..40));
            self.disk.fail_after(kill);
            drop(self.live(steps));
            self.disk.process_dies();
        }
    }

    fn owes(&self, source: usize, life: &Life) -> bool {
        (0..self.read[source].len()).any(|at| !life.delivered.contains(&(source, at)))
    }

    /// All files, each output after what was rotated away from it.
    fn files(&self) -> Vec<Vec<u8>> {
        let mut files = BTreeMap::new();
        for path in self.disk.list(Path::new("/out")).unwrap() {
            let file = self.disk.open(&path, Open::Existing).unwrap();
            let mut bytes = vec![0; file.size().unwrap() as usize];
            file.read_at(&mut bytes, 0).unwrap();
            let name = path.to_str().unwrap();
            let (base, number): (&str, usize) = match name.rsplit_once('.') {
                Some((base, number)) => (base, number.parse().unwrap()),
                None => (name, 0),
            };
            files.insert((base.to_owned(), std::cmp::Reverse(number)), bytes);
        }
        files.into_values().collect()
    }

    /// The lines of each source as they stand there, whatever else stands there.
    fn written(&self) -> [Vec<usize>; SOURCES] {
        let mut written: [Vec<usize>; SOURCES] = Default::default();
        for text in self.files() {
            for line in text.split_inclusive(|byte| *byte == b'\n') {
                let json = serde_json::from_slice::<serde_json::Value>(line).ok();
                let of_json =
                    json.and_then(|json| Some(format!("{}\n", json["line"].as_str()?).into_bytes()));
                let line = of_json.as_deref().unwrap_or(line);
                for (lines, written) in self.read.iter().zip(&mut written) {
                    written.extend(lines.iter().position(|known| known == line));
                }
            }
        }
        written
    }

    fn rotates(&self) -> bool {
        self.file.rotate.is_some_and(|rotate| rotate.keep < 1000)
    }

    /// Each line once, in order, and not a byte besides; with a quota: the newest ones.
    fn assert_exact(&self, what: &str) {
        let mut bytes = 0;
        for (source, written) in self.written().into_iter().enumerate() {
            let first = if self.rotates() { written.first().copied().unwrap_or(0) } else { 0 };
            let all: Vec<usize> = (first..self.read[source].len()).collect();
            assert!(
                written == all || self.rotates() && written.is_empty(),
                "{what}: source {source}: {written:?}"
            );
            bytes +=
                self.read[source][first.min(self.read[source].len())..].iter().map(Vec::len).sum::<usize>();
        }
        if self.file.format == Format::Text && !self.rotates() {
            assert_eq!(self.files().concat().len(), bytes, "{what}");
        }
    }
}

/// The ways to be configured.
fn ways() -> Vec<(&'static str, Format, Option<RotateOptions>)> {
    let by_size = |max_bytes, keep| Some(RotateOptions { max_bytes: Some(max_bytes), max_age: None, keep });
    vec![
        ("/out/all", Format::Text, None),
        ("/out/{source}", Format::Text, None),
        ("/out/all", Format::Json, None),
        ("/out/{source}", Format::Text, by_size(3000, 1000)),
        ("/out/all", Format::Json, by_size(5000, 1000)),
        ("/out/{source}", Format::Text, by_size(100, 1000)),
        ("/out/all", Format::Text, by_size(2000, 2)),
    ]
}

#[test]
fn a_kill_at_any_change_of_the_disk_costs_and_doubles_nothing() {
    for (path, format, rotate) in ways() {
        let script = |kill: u64| {
            let mut world = World::new(7, path, format, rotate);
            drop(world.live(15));
            world.disk.process_dies();
            let before = world.disk.changes();
            world.disk.fail_after(kill);
            drop(world.live(25));
            world.disk.process_dies();
            world.finish();
            world.assert_exact(&format!("{path} {format:?} {rotate:?}: killed at change {kill}"));
            world.disk.changes() - before
        };
        let changes = script(u64::MAX);
        assert!(changes > 20, "{changes}");
        for kill in 0..changes {
            script(kill);
        }
    }
}

/// Many a line is larger than an output may be; none is divided, and an entry that was cut off at one start is no gap in
/// front of what was written since.
#[test]
fn lives_that_end_in_a_kill_with_outputs_smaller_than_a_line() {
    let rotate = Some(RotateOptions { max_bytes: Some(100), max_age: None, keep: 1000 });
    for seed in 0..40 {
        let mut world = World::new(seed, "/out/{source}", Format::Text, rotate);
        world.lives_that_end_in_a_kill(200);
        world.finish();
        world.assert_exact(&format!("seed {seed}"));
    }
}

#[test]
fn many_lives_that_end_in_a_kill() {
    for seed in (0..60).chain([172]) {
        let (path, format, rotate) = ways().swap_remove(seed as usize % ways().len());
        let mut world = World::new(seed, path, format, rotate);
        world.lives_that_end_in_a_kill(60);
        world.finish();
        world.assert_exact(&format!("seed {seed}: {path} {format:?} {rotate:?}"));
    }
}

/// What is beyond the quota goes oldest first: else a kill in between leaves an older file, and a gap in front of it.
#[test]
fn a_kill_while_the_quota_is_kept_leaves_no_gap() {
    for seed in 100..130 {
        let rotate = RotateOptions { max_bytes: Some(2000), max_age: None, keep: 2 };
        let mut world = World::new(seed, "/out/all", Format::Text, Some(rotate));
        world.lives_that_end_in_a_kill(60);
        world.finish();
        world.assert_exact(&format!("seed {seed}"));
    }
}

/// A full disk is an illness: nothing is torn, and what comes later comes in order.
#[test]
fn a_disk_that_fills_up_and_a_kill() {
    for seed in 0..40 {
        let (path, format, rotate) = ways().swap_remove(seed as usize % ways().len());
        let mut world = World::new(seed, path, format, rotate);
        for _ in 0..4 {
            drop(world.live(15));
            world.disk.set_full(true);
            drop(world.live(15));
            world.disk.process_dies();
            world.disk.set_full(false);
        }
        world.finish();
        world.assert_exact(&format!("seed {seed}: {path} {format:?} {rotate:?}"));
    }
}

#[test]
fn a_power_cut_doubles_at_most_what_was_not_synced() {
    power_cuts(1, 0, (0..150).chain([599, 2780]));
}

/// What a life has found after a kill was synced by nobody.
#[test]
fn a_power_cut_after_lives_that_were_killed_doubles_no_more() {
    power_cuts(4, 0, (0..150).chain([471]));
}

/// What a sync has lost can still be read, by the same life or the next one, and the next sync succeeds without it.
#[test]
fn a_power_cut_loses_nothing_of_what_a_sync_had_failed_to_write() {
    power_cuts(4, 3, (0..150).chain([508, 611, 771, 975]));
}

/// After a power cut every line is there, in order as it was written last, and no line stands there twice that was
/// written before the last checkpoint.
fn power_cuts(lives_max: usize, syncs_per_loss: u32, seeds: impl IntoIterator<Item = u64>) {
    let (mut doubled, mut cuts) = (0, 0);
    for seed in seeds {
        let (path, format, rotate) = ways().swap_remove(seed as usize % (ways().len() - 1));
        let mut world = World { syncs_per_loss, ..World::new(seed, path, format, rotate) };
        let mut may_double = BTreeSet::new();
        for _ in 0..3 {
            for _ in 0..world.rng.usize(1..=lives_max) {
                let steps = world.rng.usize(..40);
                drop(world.live(steps));
                may_double.extend(std::mem::take(&mut world.unsynced));
                world.disk.process_dies();
            }
            world.power_cut(seed);
            cuts += 1;
        }
        world.finish();
        for (source, written) in world.written().into_iter().enumerate() {
            let last: BTreeMap<usize, usize> =
                written.iter().enumerate().map(|(at, line)| (*line, at)).collect();
            let what = format!("seed {seed}: {path} {format:?} {rotate:?}: source {source}: {written:?}");
            assert!(last.keys().copied().eq(0..world.read[source].len()), "{what}: a line is missing");
            assert!(last.values().is_sorted(), "{what}: out of order");
            for line in last.keys() {
                let times = written.iter().filter(|other| *other == line).count();
                doubled += times - 1;
                assert!(times == 1 || may_double.contains(&(source, *line)), "{what}: {line} was synced");
            }
        }
    }
    println!("{cuts} power cuts doubled {doubled} lines");
}

/// Chunks of one source as they are read from a backlog, each laid where the sink has said.
#[test]
fn a_power_cut_leaves_no_hole_in_what_went_past_the_page_cache() {
    let (mut cut_in_the_middle, mut delivered) = (0, 0);
    for seed in 0..60 {
        let mut world = World::new(seed, "/out/all", Format::Text, None);
        let (generation, pool) = (origin(1, "1", Some("/var/log/a.log")), Pool::new(1 << 18, 1 << 20));
        let text: Vec<u8> = (0..90_000).flat_map(|number| format!("{number}\n").into_bytes()).collect();
        let mut life = world.begin();
        world.disk.fail_after(world.rng.u64(1..60));
        let mut at = 0;
        // One that is small comes first, and sometimes in between.
        while text.len() - at > 200_000 {
            let most =
                if at == 0 || world.rng.u8(..5) == 0 { 3000 } else { 131_072 + world.rng.usize(..20_000) };
            let upto = at + text[at..at + most].iter().rposition(|byte| *byte == b'\n').unwrap() + 1;
            let mut data = pool.take_paged(upto - at, generation.shift.into_page(at as u64));
            data.copy_from_slice(&text[at..upto]);
            let mut chunk = lines(
                &generation,
                &text[at..upto].split_inclusive(|byte| *byte == b'\n').collect::<Vec<_>>(),
                NOON_NS,
            );
            (chunk.start, chunk.data) = (at as u64, data);
            world.batches += 1;
            if !matches!(life.connection.deliver(&batch(world.batches, vec![chunk])), Answer::Delivered) {
                break;
            }
            at = upto;
        }
        drop(life);
        delivered += usize::from(at > 300_000 && generation.shift.is_of_use());
        world.power_cut(seed);
        drop(world.begin());
        let there = world.files().concat();
        // Only the last of what went through the cache may have holes, as ever.
        let whole = &there[..there.len().saturating_sub(2 * PAGE)];
        let same = whole.iter().zip(&text).take_while(|(a, b)| a == b).count();
        assert_eq!(same, whole.len(), "seed {seed}: something else stands in {} bytes", there.len());
        cut_in_the_middle += usize::from(!there.is_empty() && there.len() < at);
    }
    assert!(
        cut_in_the_middle > 10 && delivered > 10,
        "{cut_in_the_middle} {delivered}: hardly anything was tried"
    );
}
