//! What happens around the agent: programs that write and rotate, files that live for a moment, a Loki with moods.
//!
//! Each hand is a thread that goes on in small steps until [`Load::end`], and leaves the finishing to whoever
//! joins it: a hand never waits for the agent. What it may only do once the agent has read far enough (to
//! truncate, to delete), it does in a later step.
//!
//! Always true: nothing is taken away that the agent could not have read. A file is rotated when a line of it has
//! come out, so the agent holds it; emptied or deleted when all that was ever written to its path has come out of the
//! file sink. Loki may still lack it, also when a life ends: then it is in the spool.
//!
//! Containers are in `vessels.rs`.

use std::collections::{BTreeMap, HashSet, VecDeque};
use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use log_capturer::clock::Clock;

use crate::agent::{Room, pause};
use crate::expect::Arrived;
use crate::files::{Writer, bytes};
use crate::push::Entry;
use crate::receiver::{Mood, Receiver};

/// Of all writers together: a load that a small machine carries beside other tests, some 0.5 MB a second.
const LINES_PER_SECOND: u64 = 3_000;

/// One in so many bursts is followed by a rotation: with ten writers about one a second.
const BURSTS_PER_ROTATION: u32 = 8;

/// Rotated files that may stand there: beyond it a writer waits with its next rotation.
const ROTATED_MAX: usize = 3;

const STEP: Duration = Duration::from_millis(100);

/// Files of a moment that stand there at the same time.
pub const CHURN_MAX: usize = 40;

/// Their ids, above those of all writers.
const CHURN_IDS: u32 = 1_000_000;

/// What it is called, how Loki feels, and for how many seconds.
type Spell = (&'static str, fn() -> Mood, u64);

/// The time-out of the sink is shorter than the hang, so that requests are given up and sent again.
const MOODS: [Spell; 12] = [
    ("well", || Mood::Well, 2),
    ("503", || Mood::status(503), 2),
    ("well", || Mood::Well, 2),
    ("429", || Mood::retry_after(429, 1), 2),
    ("well", || Mood::Well, 2),
    ("hang", || Mood::Hang, 4),
    ("well", || Mood::Well, 2),
    ("lie", || Mood::Lie, 2),
    ("well", || Mood::Well, 2),
    ("reset", || Mood::Reset, 2),
    ("well", || Mood::Well, 2),
    ("slow", || Mood::Slow { bytes_per_second: 400_000 }, 3),
];

/// Shared by all hands.
pub struct Load<'a> {
    pub room: &'a Room,
    pub receiver: &'a Receiver,
    pub seed: u64,
    pub workers: u32,
    /// Lines, of all hands.
    pub written: AtomicU64,
    pub rotations: AtomicU64,
    mood: AtomicUsize,
    over: AtomicBool,
    /// Nobody begins anything: a quiet point.
    paused: AtomicBool,
    /// Loki has no moods.
    well: AtomicBool,
    /// By hand, behind the writers those who make files of a moment, and containers: all that is theirs has come out,
    /// since the pause began.
    calm: Vec<AtomicBool>,
}

impl<'a> Load<'a> {
    /// `vessels`: there is a hand for containers, too.
    pub fn new(room: &'a Room, receiver: &'a Receiver, seed: u64, workers: u32, vessels: bool) -> Load<'a> {
        Load {
            room,
            receiver,
            seed,
            workers,
            written: AtomicU64::new(u64::from(workers)), // the first line of each
            rotations: AtomicU64::new(0),
            mood: AtomicUsize::new(0),
            over: AtomicBool::new(false),
            paused: AtomicBool::new(false),
            well: AtomicBool::new(false),
            calm: (0..=workers + u32::from(vessels)).map(|_| AtomicBool::new(false)).collect(),
        }
    }

    pub fn mood(&self) -> &'static str {
        MOODS[self.mood.load(Ordering::Relaxed)].0
    }

    /// The hands end with their present step.
    pub fn end(&self) {
        self.over.store(true, Ordering::Relaxed);
    }

    pub fn pause(&self) {
        self.calm.iter().for_each(|calm| calm.store(false, Ordering::Release));
        self.paused.store(true, Ordering::Release);
    }

    /// The hands go on; Loki stays well until [`Load::fall_ill`].
    pub fn resume(&self) {
        self.well.store(true, Ordering::Release);
        self.paused.store(false, Ordering::Release);
    }

    pub fn fall_ill(&self) {
        self.well.store(false, Ordering::Release);
    }

    /// Every hand has nothing left that did not come out. What was written by then is counted.
    pub fn is_calm(&self) -> bool {
        self.calm.iter().all(|calm| calm.load(Ordering::Acquire))
    }

    pub fn set_calm(&self, hand: usize, is_calm: bool) {
        self.calm[hand].store(is_calm, Ordering::Release);
    }

    pub fn is_paused(&self) -> bool {
        self.paused.load(Ordering::Acquire) && !self.is_over()
    }

    pub fn is_over(&self) -> bool {
        self.over.load(Ordering::Relaxed)
    }

    /// The body of one writer's thread.
    pub fn write(&self, mut hand: Hand) -> Hand {
        let mut random = fastrand::Rng::with_seed(self.seed.wrapping_add(u64::from(hand.writer.written().0)));
        let mut wish = None;
        while !self.is_over() {
            if self.is_paused() {
                self.rest(&mut hand);
            }
            let lines = random.u64(20..400);
            hand.clean_up();
            if hand.rotated.len() < ROTATED_MAX && wish.is_none() && random.u32(..BURSTS_PER_ROTATION) == 0 {
                wish = Some(if random.bool() { Rotation::Rename } else { Rotation::CopyTruncate });
            }
            match wish {
                Some(Rotation::Rename) if hand.is_known() => {
                    hand.rename(lines);
                    (wish, _) = (None, self.rotations.fetch_add(1, Ordering::Relaxed));
                }
                Some(Rotation::CopyTruncate) if hand.is_complete() => {
                    hand.copytruncate();
                    (wish, _) = (None, self.rotations.fetch_add(1, Ordering::Relaxed));
                    continue;
                }
                Some(Rotation::CopyTruncate) => {
                    pause(STEP); // nothing is written before it was emptied
                    continue;
                }
                Some(Rotation::Rename) | None => hand.writer.write(lines),
            }
            self.written.fetch_add(lines, Ordering::Relaxed);
            let rate = LINES_PER_SECOND as f64 / f64::from(self.workers);
            pause(Duration::from_secs_f64(lines as f64 / rate));
        }
        hand.writer.write(1); // a file that was just emptied would have no page in the books
        self.written.fetch_add(1, Ordering::Relaxed);
        hand
    }

    /// To the end of the pause.
    fn rest(&self, hand: &mut Hand) {
        hand.writer.write(1); // a file that was just emptied would have no page in the books
        self.written.fetch_add(1, Ordering::Relaxed);
        let number = hand.writer.written().0 as usize;
        while self.is_paused() {
            hand.clean_up();
            self.set_calm(number, hand.is_complete() && hand.rotated.is_empty());
            pause(STEP);
        }
    }

    /// The body of the thread that makes files which live for a moment.
    pub fn churn(&self) -> Churn<'a> {
        let mut random = fastrand::Rng::with_seed(!self.seed);
        let mut churn = Churn {
            room: self.room,
            living: Vec::new(),
            arrived: Arrived::default(),
            written: BTreeMap::new(),
        };
        while !self.is_over() {
            let paused = self.is_paused();
            if churn.living.len() < CHURN_MAX && !paused {
                let lines = random.u64(1..100);
                churn.make(lines);
                self.written.fetch_add(lines, Ordering::Relaxed);
            }
            churn.clean_up();
            if paused {
                self.set_calm(self.workers as usize, churn.is_complete());
            }
            pause(STEP);
        }
        churn
    }

    /// The body of the thread that changes the receiver's mood. A pause ends a mood.
    pub fn moods(&self) {
        let clock = Clock::real();
        for at in (0..MOODS.len()).cycle() {
            let (_, mood, seconds) = MOODS[at];
            self.receiver.set(mood());
            self.mood.store(at, Ordering::Relaxed);
            let until = clock.now() + Duration::from_secs(seconds);
            while clock.now() < until && !self.is_over() && !self.is_paused() {
                pause(STEP);
            }
            if self.is_paused() {
                self.be_well();
            }
            while self.is_paused() || self.well.load(Ordering::Acquire) && !self.is_over() {
                pause(STEP);
            }
            if self.is_over() {
                break;
            }
        }
        self.be_well();
    }

    fn be_well(&self) {
        self.receiver.set(Mood::Well);
        self.mood.store(0, Ordering::Relaxed);
    }
}

/// Where the file sink puts what is written to `path`.
fn output_of(room: &Room, path: &Path) -> PathBuf {
    room.path("out").join(path.strip_prefix("/").expect("a room has an absolute path"))
}

fn size(path: &Path) -> u64 {
    fs::metadata(path).map_or(0, |metadata| metadata.len())
}

#[derive(Clone, Copy)]
enum Rotation {
    Rename,
    CopyTruncate,
}

/// A program that writes a log, and whoever rotates it.
pub struct Hand {
    pub writer: Writer,
    pub output: PathBuf,
    /// Bytes that were written to the path before the file that stands there now, or before it was last emptied.
    before: u64,
    /// Renamed, and not deleted yet.
    rotated: Vec<PathBuf>,
    turn: u64,
}

impl Hand {
    pub fn new(room: &Room, id: u32) -> Hand {
        let path = room.path(&format!("logs/{id}.log"));
        let mut hand = Hand {
            output: output_of(room, &path),
            writer: Writer::new(id, path),
            before: 0,
            rotated: Vec::new(),
            turn: 0,
        };
        hand.writer.write(1);
        hand
    }

    /// All that was ever written to the path has come out.
    pub fn is_complete(&self) -> bool {
        size(&self.output) >= self.before + size(self.writer.path())
    }

    /// Deletes what was rotated, if it may.
    pub fn clean_up(&mut self) {
        if !self.rotated.is_empty() && self.is_complete() {
            for path in self.rotated.drain(..) {
                fs::remove_file(path).expect("a log can be deleted");
            }
        }
    }

    /// Something of the file that stands there has come out, so the agent holds it.
    fn is_known(&self) -> bool {
        size(&self.output) > self.before
    }

    /// Rename and create; the program is told of it late, and has written `lines` into the renamed file.
    fn rename(&mut self, lines: u64) {
        self.turn += 1;
        let name = format!("{}.{}", self.writer.written().0, self.turn);
        let rotated = self.writer.path().with_file_name(&name);
        self.writer.rename(&name);
        self.writer.write(lines);
        self.before += size(&rotated);
        self.writer.reopen();
        self.rotated.push(rotated);
    }

    fn copytruncate(&mut self) {
        self.before += size(self.writer.path());
        let copy = format!("{}.copy", self.writer.written().0);
        self.writer.copytruncate(&copy);
        fs::remove_file(self.writer.path().with_file_name(copy)).expect("a copy can be deleted");
    }
}

/// Files that live for a moment, each with an id of its own.
pub struct Churn<'a> {
    room: &'a Room,
    living: Vec<(PathBuf, PathBuf, u64)>,
    /// The outputs of those that are gone.
    pub arrived: Arrived,
    pub written: BTreeMap<u32, u64>,
}

impl Churn<'_> {
    fn make(&mut self, lines: u64) {
        let id = CHURN_IDS + self.written.len() as u32;
        let path = self.room.path(&format!("logs/churn/{id}.log"));
        let mut writer = Writer::new(id, path.clone());
        writer.write(lines);
        self.written.insert(id, lines);
        let output = output_of(self.room, &path);
        self.living.push((output, path.clone(), size(&path)));
    }

    /// Deletes those that have come out whole, and reads and deletes their outputs.
    pub fn clean_up(&mut self) {
        let arrived = &mut self.arrived;
        self.living.retain(|(output, path, written)| {
            let complete = size(output) >= *written;
            if complete {
                fs::remove_file(path).expect("a log can be deleted");
                take_in(arrived, output);
            }
            !complete
        });
    }

    pub fn is_complete(&self) -> bool {
        self.living.is_empty()
    }

    /// An output that is there again although it was read and deleted holds doubles; one whose file is still
    /// there, what came out of it.
    pub fn take_in_the_rest(&mut self) {
        let folder = output_of(self.room, &self.room.path("logs/churn"));
        for output in fs::read_dir(folder).into_iter().flatten() {
            take_in(&mut self.arrived, &output.expect("a folder can be read").path());
        }
    }
}

fn take_in(arrived: &mut Arrived, output: &Path) {
    bytes(output).split_inclusive(|byte| *byte == b'\n').for_each(|line| arrived.line(line));
    fs::remove_file(output).expect("an output can be deleted");
}

/// What a Loki would hold: an entry whose labels, time and text are those of one it has adds nothing.
///
/// It remembers a window only, so that hours fit into memory: what is sent again was under way, and the budget
/// holds a tenth of it.
#[derive(Default)]
pub struct Heard {
    pub arrived: Arrived,
    pub repeats: u64,
    known: HashSet<u64>,
    window: VecDeque<u64>,
}

const WINDOW_ENTRIES: usize = 600_000;

impl Heard {
    pub fn hear(&mut self, entry: &Entry) {
        let mut hasher = DefaultHasher::new();
        (&entry.labels, entry.time_ns, &entry.line).hash(&mut hasher);
        let mark = hasher.finish();
        if !self.known.insert(mark) {
            self.repeats += 1;
            return;
        }
        self.window.push_back(mark);
        if self.window.len() > WINDOW_ENTRIES
            && let Some(oldest) = self.window.pop_front()
        {
            self.known.remove(&oldest);
        }
        self.arrived.line(entry.line.as_bytes());
    }
}
