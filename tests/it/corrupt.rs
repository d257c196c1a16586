//! State that was damaged on the disk: every byte flipped, every file cut at every length, deleted, zeroed, or left
//! behind under its temporary name. The agent starts all the same, at once, and loses nothing; what it sends again is
//! counted and printed.
//!
//! A small state is made once for each way to end: one sink has everything, the other one lacks it. Each damage is
//! done to a copy of it, in the place where it was made, since files are known by their inodes; then one more line
//! is written and all is shipped by an agent of this process. `make corrupt` does every damage; without
//! `LOG_CAPTURER_CORRUPT_ALL` it is a few hundred of them, evenly spread from a random one on.

#![expect(
    clippy::disallowed_methods,
    reason = "state is damaged on purpose, and need not survive a power cut"
)]

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use log_capturer::agent::{self, Exit, Orders};
use log_capturer::clock::Clock;
use log_capturer::config::Config;
use log_capturer::disk::RealDisk;
use log_capturer::spool;
use serde_json::{Value, json};

use crate::agent::Room;
use crate::expect::Arrived;
use crate::files::{Writer, bytes, put};

/// In the state, and then one more.
const LINES: u64 = 8;

/// Of each state, in the short form.
const DAMAGES: usize = 150;

/// The promise is a second. This is for machines that are busy with something else.
const START_MAX: Duration = Duration::from_secs(10);

/// Behind the last byte that says something, preallocated files are all the same.
const ZEROS: usize = 64;

#[derive(Clone, Debug)]
enum Damage {
    Flip(usize),
    Cut(usize),
    Deleted,
    Zeroed,
    /// A crash in the middle of replacing it: half of the new file beside it.
    TwinLeft,
    /// Only the temporary file is there.
    OnlyTwin,
}

impl fmt::Display for Damage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Damage::Flip(at) => write!(f, "byte {at} flipped"),
            Damage::Cut(len) => write!(f, "cut to {len} bytes"),
            Damage::Deleted => f.write_str("deleted"),
            Damage::Zeroed => f.write_str("zeroed"),
            Damage::TwinLeft => f.write_str("a temporary twin left behind"),
            Damage::OnlyTwin => f.write_str("only a temporary twin left"),
        }
    }
}

impl Damage {
    fn all(file: &[u8]) -> Vec<Damage> {
        let told = file.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
        let told = file.len().min(told + ZEROS);
        let mut damages = vec![Damage::Deleted, Damage::Zeroed, Damage::TwinLeft, Damage::OnlyTwin];
        damages.extend((0..told).map(Damage::Flip));
        damages.extend((0..told).map(Damage::Cut));
        damages
    }

    fn is_of_a_byte(&self) -> bool {
        matches!(self, Damage::Flip(_) | Damage::Cut(_))
    }

    fn inflict(&self, path: &Path, file: &[u8]) {
        let twin: PathBuf =
            [path.as_os_str(), ".tmp".as_ref()].into_iter().collect::<std::ffi::OsString>().into();
        match self {
            Damage::Flip(at) => {
                let mut flipped = file.to_vec();
                flipped[*at] ^= 1 << (at % 8);
                put(path, flipped);
            }
            Damage::Cut(len) => put(path, &file[..*len]),
            Damage::Deleted => fs::remove_file(path).expect("a file can be deleted"),
            Damage::Zeroed => put(path, vec![0; file.len()]),
            Damage::TwinLeft => put(&twin, &file[..file.len() / 2]),
            Damage::OnlyTwin => fs::rename(path, twin).expect("a file can be renamed"),
        }
    }
}

/// How the agent ends whose state is damaged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// In order: what one sink lacks is in its spool. The two checkpoints differ.
    Stopped,
    /// By SIGKILL when everything has come out, with no checkpoint but the very first one: it is for the journals of
    /// the ledger and of the outputs to tell.
    Killed,
    /// By SIGKILL when everything has come out of one sink, and is in the spool of the other.
    KilledWithSpool,
    /// By SIGKILL when all of the spool has come out, too.
    KilledAfterSpool,
}

/// A room with an agent that ended, and everything to begin again from there.
struct Place {
    room: Room,
    writer: Writer,
    log: Vec<u8>,
    /// Everything below `data`, without its folder.
    state: BTreeMap<PathBuf, Vec<u8>>,
    output: Vec<u8>,
    /// Of the other sink, if it has one.
    ill: Option<Vec<u8>>,
    config: Value,
}

impl Place {
    fn make(end: End) -> Place {
        let sync_interval = if end == End::Killed { "10m" } else { "10ms" };
        let spools = [End::KilledWithSpool, End::KilledAfterSpool].contains(&end);
        let after = if spools { "0ms" } else { "10m" };
        let config = json!({
            "agent": { "stop_timeout": "5s", "sync_interval": sync_interval },
            "status": { "listen": null },
            "sources": [{ "type": "file", "include": ["logs/*.log"] }],
            "sinks": [
                { "type": "file", "name": "well", "path": "well.txt", "batch": { "max_wait": "1ms" } },
                // A folder that is none, so far.
                { "type": "file", "name": "ill", "path": "ill/out.txt", "batch": { "max_wait": "1ms" },
                  "retry": { "initial": "1ms", "max": "10ms" }, "spool": { "after": after } },
            ],
        });
        let room = Room::new(config.clone());
        let mut writer = Writer::new(1, room.path("logs/app.log"));
        put(&room.path("ill"), b"");
        writer.write(LINES / 2);
        let agent = room.run();
        let out = |lines| Arrived::in_file(&room.path("well.txt")).distinct() == lines;
        let saved = |slot: &str| room.path("data/ledger").join(slot).exists();
        agent.until("the first lines are out", || out(LINES / 2) && saved("checkpoint-1"));
        writer.write(LINES / 2);
        agent.until("all lines are out", || out(LINES) && (end == End::Killed || saved("checkpoint-0")));
        let spooled = || {
            let spools = spool::survey(&RealDisk, &room.path("data/spool")).unwrap_or_default();
            spools.iter().map(|spool| spool.count.lines).sum::<u64>()
        };
        match end {
            End::Stopped => assert_eq!(agent.stop(), 3, "{}", agent.stderr()),
            End::Killed => agent.kill9(),
            End::KilledWithSpool => {
                agent.until("all lines are spooled", || spooled() == LINES);
                agent.kill9();
            }
            End::KilledAfterSpool => {
                agent.until("all lines are spooled", || spooled() == LINES);
                fs::remove_file(room.path("ill")).expect("a file can be deleted");
                agent.until("all of the spool is out", || {
                    Arrived::in_file(&room.path("ill/out.txt")).distinct() == LINES && spooled() == 0
                });
                agent.kill9();
            }
        }
        let in_spool = [End::Stopped, End::KilledWithSpool].contains(&end);
        assert_eq!(spooled(), if in_spool { LINES } else { 0 });
        let ill = (end == End::KilledAfterSpool).then(|| bytes(&room.path("ill/out.txt")));
        if ill.is_none() {
            fs::remove_file(room.path("ill")).expect("a file can be deleted");
        }
        let (log, output) = (bytes(writer.path()), bytes(&room.path("well.txt")));
        let state = files_below(&room.path("data"));
        Place { room, writer, log, state, output, ill, config }
    }

    /// Everything as it was, in the same files.
    fn restore(&self) {
        let _ = fs::remove_dir_all(self.room.path("data")); // the first time there is nothing to remove
        match &self.ill {
            Some(output) => put(&self.room.path("ill/out.txt"), output),
            None => drop(fs::remove_dir_all(self.room.path("ill"))),
        }
        self.state.iter().for_each(|(path, file)| put(&self.room.path("data").join(path), file));
        put(self.writer.path(), &self.log);
        put(&self.room.path("well.txt"), &self.output);
    }

    /// Ships everything; how often lines came again.
    fn run(&mut self, what: &str) -> (u64, Duration) {
        let mut written = self.writer.written();
        let mut line = Vec::new();
        crate::expect::push_line(&mut line, written.0, written.1);
        put(self.writer.path(), [&self.log[..], &line].concat());
        written.1 += 1;
        let text = self.config.to_string();
        let config =
            Config::parse(&text, &self.room.path(""), &|_| None).expect("the configuration is right");
        let clock = Clock::real();
        let began = clock.now();
        let orders =
            Orders { once: true, max_time: None, signals: false, progress: None, stop: None, reload: None };
        let exit = agent::run(config, &orders);
        let took = clock.now() - began;
        assert_eq!(exit, Exit::Delivered, "{what}");
        assert!(took < START_MAX, "{what}: started, shipped and ended in {took:?}");
        let mut again = 0;
        for output in ["well.txt", "ill/out.txt"] {
            let report = Arrived::in_file(&self.room.path(output)).compare(&BTreeMap::from([written]));
            assert!(report.is_nothing_lost(), "{what}: {output}: {report}");
            again += report.doubled();
        }
        (again, took)
    }
}

fn files_below(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let (mut files, mut folders) = (BTreeMap::new(), vec![folder.to_owned()]);
    while let Some(at) = folders.pop() {
        for entry in fs::read_dir(&at).expect("a folder can be read") {
            let path = entry.expect("a folder can be read").path();
            if path.is_dir() {
                folders.push(path);
            } else {
                let below = path.strip_prefix(folder).expect("it was found there");
                files.insert(below.to_owned(), bytes(&path));
            }
        }
    }
    files
}

#[test]
fn a_damaged_state_loses_nothing() {
    let all = std::env::var_os("LOG_CAPTURER_CORRUPT_ALL").is_some();
    for end in [End::Stopped, End::Killed, End::KilledWithSpool, End::KilledAfterSpool] {
        let mut place = Place::make(end);
        place.restore();
        let (untouched, _) = place.run("nothing was damaged");
        let state = place.state.clone();
        let damages = || {
            state.iter().flat_map(|(path, file)| {
                Damage::all(file).into_iter().map(move |damage| (path, file, damage))
            })
        };
        let stride = if all { 1 } else { (damages().count() / DAMAGES).max(1) };
        let first = fastrand::usize(..stride);
        let chosen =
            damages().enumerate().filter(|(at, (.., damage))| at % stride == first || !damage.is_of_a_byte());
        let (mut again, mut most, mut took) = (0, (0, String::new()), Vec::new());
        for (_, (path, file, damage)) in chosen {
            let what = format!("{}: {damage}", path.display());
            place.restore();
            damage.inflict(&place.room.path("data").join(path), file);
            let (repeated, so_long) = place.run(&what);
            took.push((so_long, what.clone()));
            again += repeated;
            if repeated > most.0 {
                most = (repeated, what);
            }
        }
        took.sort_unstable();
        let (count, (longest, by)) = (took.len(), took.last().expect("something was damaged"));
        let median = took[count / 2].0;
        let sizes: Vec<String> =
            state.iter().map(|(path, file)| format!("{} {}", path.display(), file.len())).collect();
        println!(
            "{end:?} ({}): {count} damages, 0 lines lost, {again} of {} lines sent again (at most {} \
             by one: {}; {untouched} with no damage); from start to end {median:.1?} (median), at most \
             {longest:.1?} ({by})",
            sizes.join(", "),
            count as u64 * 2 * (LINES + 1),
            most.0,
            most.1,
        );
    }
}
