//! Many files that are there all the time, of which one or the other gets a line now and then.
//!
//! Not part of the short run: `LOG_CAPTURER_STRESS_FILES` (`--files` of the script) says how many.

use std::fs::OpenOptions;
use std::io::Write;
use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::load::{Load, output_of};
use crate::agent::{Room, pause};
use crate::expect::push_line;
use crate::files::put;

/// Their ids, above those of all others.
const IDS: u32 = 3_000_000;

/// So many get a line in each step.
const LINES_PER_STEP: usize = 20;

const STEP: Duration = Duration::from_millis(100);

pub struct Crowd<'a> {
    room: &'a Room,
    /// Lines of each.
    lines: Vec<u64>,
}

impl<'a> Crowd<'a> {
    /// With a line in each.
    pub fn new(room: &'a Room, files: u32) -> Crowd<'a> {
        let crowd = Crowd { room, lines: vec![1; files as usize] };
        for at in 0..crowd.lines.len() {
            put(&crowd.path(at), crowd.line(at, 0));
        }
        crowd
    }

    fn id(at: usize) -> u32 {
        IDS + at as u32
    }

    fn path(&self, at: usize) -> PathBuf {
        self.room.path(&format!("logs/crowd/{}/{at}.log", at % 50))
    }

    fn line(&self, at: usize, number: u64) -> Vec<u8> {
        let mut line = Vec::new();
        push_line(&mut line, Crowd::id(at), number);
        line
    }

    /// The body of the thread that writes to them.
    pub fn write(mut self, load: &Load<'_>) -> Crowd<'a> {
        let mut random = fastrand::Rng::with_seed(load.seed ^ 0xc0);
        while !load.is_over() {
            let paused = load.is_paused();
            for _ in 0..LINES_PER_STEP {
                if !paused && !self.lines.is_empty() {
                    let at = random.usize(..self.lines.len());
                    let line = self.line(at, self.lines[at]);
                    let mut file = OpenOptions::new().append(true).open(self.path(at)).expect("it is there");
                    file.write_all(&line).expect("a log can be written");
                    self.lines[at] += 1;
                    load.written.fetch_add(1, Ordering::Relaxed);
                }
            }
            if paused {
                load.set_calm(load.crowd_hand(), true); // nothing of it is ever taken away
            }
            pause(STEP);
        }
        self
    }

    /// Who wrote how much, and where the file sink has put it.
    pub fn written(&self) -> impl Iterator<Item = (u32, u64, PathBuf)> {
        let place =
            |(at, lines): (usize, &u64)| (Crowd::id(at), *lines, output_of(self.room, &self.path(at)));
        self.lines.iter().enumerate().map(place)
    }
}
