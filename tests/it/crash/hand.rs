//! A program that writes a log, and whoever rotates it: in both forms, at any moment, whether the agent lives or not.
//!
//! Always true: the truth is known. Nothing is written while a file is copied and truncated, since what is would be
//! lost by the rotation itself. A file is rotated only when its first line has come out: what nobody ever saw
//! before it got another name is nobody's to find. What was rotated stays, unless somebody
//! cleans up.

use std::path::{Path, PathBuf};

use fastrand::Rng;

use crate::agent::Room;
use crate::expect::{ALL_SIZES, push_line};
use crate::files::Writer;

/// One step in so many is the beginning of a half line, which the next step completes.
const STEPS_PER_HALF_LINE: u32 = 10;

/// In one step at most.
const LINES_MAX: u64 = 60;

/// How a file is rotated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Habit {
    /// Renamed, and made again at once.
    Rename,
    /// Renamed, and the program is told of it late: it ends its line and writes on into the renamed file.
    RenameLate,
    CopyTruncate,
    /// Any of these.
    Mixed,
}

pub const HABITS: [Habit; 4] = [Habit::Rename, Habit::RenameLate, Habit::CopyTruncate, Habit::Mixed];

pub struct Hand {
    pub writer: Writer,
    /// Where the file sink puts it.
    pub output: PathBuf,
    pub habit: Habit,
    /// Number of the first line of the file that stands there now.
    first: u64,
    rotations: u64,
    /// What was rotated, and the number of the line after its last.
    rotated: Vec<(PathBuf, u64)>,
    half: bool,
    steps_per_rotation: u32,
}

impl Hand {
    /// Writes `logs/<id>.log`; one in `steps_per_rotation` steps is a rotation, if it may be.
    pub fn new(room: &Room, id: u32, steps_per_rotation: u32) -> Hand {
        let path = room.path(&format!("logs/{id}.log"));
        let below = path.strip_prefix("/").expect("a room has an absolute path");
        let output = room.path("out").join(below);
        let writer = Writer::new(ALL_SIZES + id, path);
        let habit = HABITS[id as usize % HABITS.len()];
        Hand {
            writer,
            output,
            habit,
            first: 0,
            rotations: 0,
            rotated: Vec::new(),
            half: false,
            steps_per_rotation,
        }
    }

    pub fn rotations(&self) -> u64 {
        self.rotations
    }

    /// `is_out`: whether a line of a writer has come out somewhere.
    pub fn step(&mut self, random: &mut Rng, is_out: impl Fn(u32, u64) -> bool) {
        let (id, written) = self.writer.written();
        if self.half {
            return self.finish();
        }
        let may_rotate = written > self.first && is_out(id, self.first);
        if may_rotate && random.u32(..self.steps_per_rotation) == 0 {
            return self.rotate(random);
        }
        match random.u32(..STEPS_PER_HALF_LINE) {
            0 => {
                self.writer.begin_line();
                self.half = true;
            }
            _ => self.writer.write(random.u64(1..LINES_MAX)),
        }
    }

    /// No line is left half.
    pub fn finish(&mut self) {
        if std::mem::take(&mut self.half) {
            self.writer.finish_line();
        }
    }

    fn rotate(&mut self, random: &mut Rng) {
        self.rotations += 1;
        let path = self.writer.path();
        let name = path.file_name().and_then(|name| name.to_str()).expect("our names are text");
        let name = format!("{name}.{}", self.rotations);
        let habit = if self.habit == Habit::Mixed { HABITS[random.usize(..3)] } else { self.habit };
        match habit {
            Habit::RenameLate => {
                self.writer.begin_line();
                self.writer.rename(&name);
                self.writer.finish_line();
                self.writer.write(random.u64(..LINES_MAX));
                self.writer.reopen();
            }
            Habit::CopyTruncate => self.writer.copytruncate(&name),
            Habit::Rename | Habit::Mixed => self.writer.rotate(&name),
        }
        self.first = self.writer.written().1;
        self.rotated.push((self.writer.path().with_file_name(name), self.first));
    }

    /// Deletes what was rotated and has come out to its last line.
    pub fn clean_up(&mut self, is_out: impl Fn(u32, u64) -> bool) {
        let id = self.writer.written().0;
        for (path, _) in self.rotated.extract_if(.., |(_, end)| is_out(id, *end - 1)) {
            std::fs::remove_file(path).expect("a log can be deleted");
        }
    }

    /// Everything that was ever written to the path, as the file sink has to have it.
    pub fn truth(&self) -> Vec<u8> {
        let (id, lines) = self.writer.written();
        let mut truth = Vec::new();
        (0..lines).for_each(|number| push_line(&mut truth, id, number));
        truth
    }
}

/// 0 for one that is not there.
pub fn size(path: &Path) -> u64 {
    std::fs::metadata(path).map_or(0, |metadata| metadata.len())
}
