//! Containers around the agent, if an engine can run here: some that live from quiet point to quiet point, and some
//! of a moment. What they have written is what the engine has of them.
//!
//! Always true: a container is removed when all that it has written has come out of the file sink, so nothing is
//! taken away that the agent could not have read.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::time::Duration;

use serde_json::Value;

use super::load::Load;
use crate::agent::pause;
use crate::docker::engine::Engine;
use crate::expect::{Arrived, filler};

/// Their ids, above those of all files.
const IDS: u32 = 2_000_000;

/// At the same time: those that go on, and those of a moment.
const LONG: usize = 2;
const SHORT: usize = 3;
pub const CONTAINERS_MOST: usize = LONG + SHORT;

/// Of a container that goes on: ten at once, ten times a second.
const LONG_SCRIPT: &str = "[ $((n % 10)) = 0 ] && usleep 100000";

/// The engine has work with each of them.
const STEP: Duration = Duration::from_millis(500);

pub struct Vessels<'a> {
    load: &'a Load<'a>,
    engine: &'a Engine,
    living: Vec<Vessel>,
    /// All lines of containers go there, and how far it was read.
    output: PathBuf,
    read: u64,
    rest: Vec<u8>,
    seen: BTreeMap<u32, u64>,
    pub arrived: Arrived,
    pub written: BTreeMap<u32, u64>,
    made: u32,
}

struct Vessel {
    id: u32,
    goes_on: bool,
    /// That it has written, once it has ended.
    lines: Option<u64>,
}

impl Vessel {
    fn name(&self) -> String {
        format!("vessel-{}", self.id)
    }
}

impl<'a> Vessels<'a> {
    pub fn new(load: &'a Load<'a>, engine: &'a Engine) -> Vessels<'a> {
        Vessels {
            load,
            engine,
            living: Vec::new(),
            output: load.room.path("out/stdin"),
            read: 0,
            rest: Vec::new(),
            seen: BTreeMap::new(),
            arrived: Arrived::default(),
            written: BTreeMap::new(),
            made: 0,
        }
    }

    /// The body of the thread that makes them. Ends with the load; what lives then has been told to end.
    pub fn run(mut self) -> Vessels<'a> {
        let mut random = fastrand::Rng::with_seed(self.load.seed ^ 0x5e55);
        while !self.load.is_over() {
            let paused = self.load.is_paused();
            if paused {
                self.end_those_that_go_on();
            } else {
                let going = self.living.iter().filter(|vessel| vessel.goes_on).count();
                (going..LONG).for_each(|_| self.make(true, u64::MAX >> 1));
                if self.living.len() < CONTAINERS_MOST {
                    self.make(false, random.u64(1..100));
                }
            }
            self.clean_up();
            if paused {
                self.load.set_calm(self.load.workers as usize + 1, self.is_complete());
            }
            pause(STEP);
        }
        self.end_those_that_go_on();
        self
    }

    fn make(&mut self, goes_on: bool, lines: u64) {
        let vessel = Vessel { id: IDS + self.made, goes_on, lines: None };
        self.made += 1;
        let each = if goes_on { LONG_SCRIPT } else { ":" };
        let script = format!(
            "F={}; n=0; trap 'exit 0' TERM; while [ $n -lt {lines} ]; do \
             echo \"{}:$n ${{F:$((n % 64)):$((112 + n % 61))}}\"; n=$((n + 1)); {each}; done",
            filler(),
            vessel.id
        );
        self.engine.run(&vessel.name(), &script);
        self.living.push(vessel);
    }

    fn end_those_that_go_on(&self) {
        for vessel in self.living.iter().filter(|vessel| vessel.goes_on && vessel.lines.is_none()) {
            // It waits for the end; 304: it has ended already.
            let _ = self.engine.ask("POST", &format!("/containers/{}/stop?t=5", vessel.name()), b"");
        }
    }

    /// Counts what those that have ended have written, and removes those of which all has come out.
    pub fn clean_up(&mut self) {
        let ended = self.ended();
        for vessel in self.living.iter_mut().filter(|vessel| vessel.lines.is_none()) {
            if ended.contains(&vessel.name()) {
                let lines = self.engine.lines(&vessel.name()).len() as u64;
                vessel.lines = Some(lines);
                self.written.insert(vessel.id, lines);
                self.load.written.fetch_add(lines, Ordering::Relaxed);
            }
        }
        self.take_in();
        let (engine, seen) = (self.engine, &self.seen);
        self.living.retain(|vessel| {
            let complete =
                vessel.lines.is_some_and(|lines| seen.get(&vessel.id).is_some_and(|seen| *seen >= lines));
            if complete {
                engine.well("DELETE", &format!("/containers/{}", vessel.name()), &Value::Null);
            }
            !complete
        });
    }

    fn ended(&self) -> BTreeSet<String> {
        let list = self.engine.well(
            "GET",
            "/containers/json?all=1&filters=%7B%22status%22%3A%5B%22exited%22%5D%7D",
            &Value::Null,
        );
        let names =
            list.as_array().into_iter().flatten().filter_map(|container| {
                Some(container["Names"][0].as_str()?.trim_start_matches('/').to_owned())
            });
        names.collect()
    }

    pub fn is_complete(&self) -> bool {
        self.living.is_empty()
    }

    /// Reads what has come out since the last look.
    fn take_in(&mut self) {
        let Ok(mut file) = File::open(&self.output) else { return }; // nothing has come out yet
        file.seek(SeekFrom::Start(self.read)).expect("an output can be read");
        self.read += file.read_to_end(&mut self.rest).expect("an output can be read") as u64;
        let whole = self.rest.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
        for line in self.rest[..whole].split_inclusive(|byte| *byte == b'\n') {
            self.arrived.line(line);
            let id = line.split(|byte| *byte == b':').next();
            let id = id.and_then(|id| std::str::from_utf8(id).ok()?.parse().ok());
            *self.seen.entry(id.unwrap_or(0)).or_default() += 1;
        }
        self.rest.drain(..whole);
    }
}
