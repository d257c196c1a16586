//! From the bytes of a container's log to chunks on their way: reads as they come, gathers lines, hands them over.
//!
//! Always true: credit is taken before a read, and none is held while the log is silent; at most `max_line_bytes`
//! of half lines per stream are held besides.
//!
//! Not here: what is read when, and what the end of a log means (`reader.rs`).

use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crossbeam_channel::select;

use super::api::{Came, Stream as Log};
use super::cursor::{Step, Track};
use super::frames::{Event, Frames};
use super::lines::{Joiner, Line};
use super::podman::{Fresh, Newest};
use super::reader::{Opened, Shared};
use super::reports::{Bell, How};
use super::{Place, READ_BYTES};
use crate::budget::Credit;
use crate::ledger::{BEFORE_BYTES, Head};
use crate::monitors::Outlet;
use crate::monitors::outlet::{CHUNK_LINES, Gathered};
use crate::record::{Mark, Timed};
use crate::tasks::Task;

/// A busy container's lines come one by one; so long they gather. Nobody waits for it: the engine writes on.
const GATHER: Duration = Duration::from_millis(50);

/// A round that brought more is followed by the next one at once.
const GATHER_BYTES: usize = 6 * 1024;

/// An engine that says nothing for so long has nothing left of a log; a shorter silence is its own reading.
const CAUGHT_UP: Duration = Duration::from_millis(200);

/// There are engines that leave the log of a dead container open. After such a silence it is asked for once more, to its
/// end. As often a silent reader that has no bell looks whether its container is dead.
pub(super) const DEAD_SILENCE: Duration = Duration::from_secs(5);

const SECOND_NS: i64 = 1_000_000_000;

/// Of what came instead of a log: a sentence of the engine.
const SHOWN_BYTES: usize = 200;

/// From bytes to lines.
pub(super) struct Text {
    frames: Frames,
    joiner: Joiner,
    /// What is older was not asked for.
    since_ns: Option<i64>,
    /// The message that comes is older.
    skips: bool,
}

impl Text {
    /// `since_ns`: what is older was not asked for.
    pub fn new(shared: &Shared, since_ns: Option<i64>) -> Text {
        let parts_share_a_time = !shared.engine.is_podman();
        let joiner = Joiner::new(shared.source.max_line_bytes, parts_share_a_time);
        Text { frames: Frames::default(), joiner, since_ns, skips: false }
    }

    /// `false`: nobody can understand what follows.
    fn feed(&mut self, bytes: &[u8], shipper: &mut Shipper<'_>) -> bool {
        let (joiner, plain) = (&mut self.joiner, self.frames.is_plain_from(bytes));
        let (since_ns, skips) = (self.since_ns, &mut self.skips);
        let each = &mut |event: Event<'_>| match event {
            Event::Message { ns: Some(ns), .. }
                if since_ns.is_some_and(|since_ns| is_older(ns, since_ns)) =>
            {
                *skips = true
            }
            Event::Message { side, ns } => {
                *skips = false;
                joiner.message(side, ns, &mut |line| shipper.line(&line));
            }
            Event::Text { .. } if *skips => {}
            Event::Text { side, bytes } => joiner.text(side, bytes, plain, &mut |line| shipper.line(&line)),
            Event::Complaint(said) => {
                shipper.behind = true; // what it could not read may be removed before it is asked again
                log::warn!(
                    "{}: the engine says: {}",
                    shipper.task.name(),
                    String::from_utf8_lossy(said).trim()
                );
            }
        };
        self.frames.feed(bytes, each).is_ok()
    }

    pub fn end(&mut self, shipper: &mut Shipper<'_>) {
        let (joiner, plain) = (&mut self.joiner, self.frames.is_plain_from(&[]));
        let skips = self.skips;
        self.frames.end(&mut |event| {
            if let Event::Text { side, bytes } = event
                && !skips
            {
                joiner.text(side, bytes, plain, &mut |line| shipper.line(&line));
            }
        });
        joiner.end(plain, &mut |line| shipper.line(&line));
    }
}

/// Podman before 5.8 gives whole seconds: of the one that was asked for nobody knows, so all of it is taken.
fn is_older(ns: i64, since_ns: i64) -> bool {
    ns < if ns % SECOND_NS == 0 { since_ns - since_ns.rem_euclid(SECOND_NS) } else { since_ns }
}

/// Gathers lines into chunks.
pub(super) struct Shipper<'a> {
    pub outlet: &'a mut Outlet,
    pub task: &'a Task,
    pub place: &'a mut Place,
    pub track: Track,
    pub followed: Option<Followed<'a>>,
    pub gathered: Gathered,
    /// A chunk ends here, as it did in an earlier life.
    pub edge: Option<u64>,
    /// For the next chunk.
    pub credit: Option<Credit>,
    /// The cursor moves with the lines. Not for half lines whose rest may still come to them: they would
    /// not be found again.
    pub counts: bool,
    pub stopped: bool,
    pub gap: bool,
    pub behind: bool,
    /// How long the engine had nothing to give.
    pub waited: Duration,
    /// Of a log whose last line may be half a line.
    pub newest: Option<&'a mut Newest>,
    /// So many more lines are known.
    pub skip: u64,
    /// Lines that were gathered.
    pub taken: u64,
}

/// A container whose log is followed.
pub(super) struct Followed<'a> {
    pub shared: &'a Shared,
    pub id: &'a str,
    pub alive: &'a AtomicBool,
    pub bell: Option<&'a Bell>,
    /// For its last words.
    pub asked: bool,
}

impl Followed<'_> {
    fn is_dead(&self) -> bool {
        !self.alive.load(Ordering::Relaxed)
    }
}

impl<'a> Shipper<'a> {
    /// Goes on at the place.
    pub fn new(
        outlet: &'a mut Outlet,
        task: &'a Task,
        opened: &'a mut Opened,
        followed: Option<Followed<'a>>,
    ) -> Shipper<'a> {
        let Opened { place, sides } = opened;
        let from = place.cursor;
        Shipper {
            outlet,
            task,
            edge: place.stream.read_limit(),
            gathered: Gathered {
                data: Vec::new(),
                ends: Vec::new(),
                timed: Timed { times: Vec::new(), marks: Vec::new(), sides: sides.clone() },
                cursor: from,
            },
            place,
            track: Track::new(from),
            followed,
            counts: true,
            credit: None,
            stopped: false,
            gap: false,
            behind: false,
            waited: Duration::ZERO,
            newest: None,
            skip: 0,
            taken: 0,
        }
    }

    /// Reads until the engine ends the log, or should have. Of a container that dies meanwhile another log is returned, of
    /// all that is left to read.
    pub fn pump(&mut self, mut log: Log, text: &mut Text) -> std::result::Result<Option<Log>, How> {
        let stop = self.outlet.stop().stop.clone();
        let mut buffer = vec![0; 16 * 1024];
        loop {
            let held_back = self.newest.as_ref().map_or(0, |newest| newest.held_bytes());
            self.take_credit(READ_BYTES + text.joiner.held_bytes() + held_back);
            let mut read = 0;
            let came = loop {
                if self.stopped {
                    return Err(How::Stopped);
                }
                match log.read(&mut buffer) {
                    Ok(Came::Bytes(bytes)) => {
                        read += bytes;
                        if !text.feed(&buffer[..bytes], self) {
                            let start = String::from_utf8_lossy(&buffer[..bytes.min(SHOWN_BYTES)]);
                            break Err(How::Broken(format!("what came is no log: {}", start.escape_debug())));
                        }
                        if read >= READ_BYTES {
                            break Ok(Came::Bytes(read));
                        }
                    }
                    Ok(came) => break Ok(came),
                    Err(cause) => break Err(How::Broken(format!("the connection broke: {cause}"))),
                }
            };
            self.ship();
            let came = came?;
            if let Some(last_words) = self.last_words() {
                return Ok(Some(last_words));
            }
            match came {
                Came::Bytes(_) => {}
                Came::End => return Ok(None),
                Came::Nothing => {
                    self.credit = None;
                    self.outlet.nothing_to_read();
                    let began = self.task.now();
                    if read > 0 && read < GATHER_BYTES {
                        self.task.waits_for("more lines");
                        select! {
                            recv(stop.channel()) -> _ => self.stopped = true,
                            default(GATHER) => {}
                        }
                    } else if read == 0 {
                        self.task.waits_for("lines");
                        if let Err(cause) = self.wait(&log) {
                            return Err(How::Broken(format!("could not wait for lines: {cause}")));
                        }
                        let silence = self.task.now().saturating_duration_since(began);
                        self.behind &= silence < CAUGHT_UP;
                        self.stopped |= stop.is_closed();
                        let is_dead = self.followed.as_ref().is_some_and(Followed::is_dead);
                        if is_dead && silence >= DEAD_SILENCE && !self.stopped {
                            return Ok(None);
                        }
                    }
                    self.waited += self.task.now().saturating_duration_since(began);
                    self.task.beat();
                }
            }
        }
    }

    /// As soon as a container is dead its log is complete. But it may be removed at any moment, and some engines end a log
    /// that is followed before all of it was sent: so the rest is asked for at once, as long as this one is open.
    fn last_words(&mut self) -> Option<Log> {
        let followed = self.followed.as_mut().filter(|followed| followed.is_dead() && !followed.asked)?;
        if self.stopped {
            return None;
        }
        followed.asked = true;
        self.credit = None; // the engine may take its time
        self.task.doing("asking for the last words");
        let log = followed.shared.engine.logs(followed.id, self.place.cursor, false);
        log.ok() // too late, perhaps: the one that is open is as good as it is
    }

    /// For lines, the stop, or the container's death.
    fn wait(&self, log: &Log) -> std::io::Result<()> {
        let stop = &self.outlet.stop().stop;
        let Some(followed) = &self.followed else { return log.wait(&[stop.as_fd()], None) };
        let Some(bell) = followed.bell else { return log.wait(&[stop.as_fd()], Some(DEAD_SILENCE)) };
        bell.silence();
        let timeout = followed.is_dead().then_some(DEAD_SILENCE);
        if timeout.is_some() && !followed.asked {
            return Ok(()); // it rang just now
        }
        log.wait(&[stop.as_fd(), bell.as_fd()], timeout)
    }

    fn line(&mut self, line: &Line<'_>) {
        if self.stopped {
            return;
        }
        let before = self.track.cursor();
        let step = self.track.line(line.ns, line.held);
        self.track.ended(line.end_ns);
        let time_ns = match step {
            Step::Known => return,
            Step::New { .. } if self.skip > 0 => {
                self.skip -= 1;
                return;
            }
            Step::New { time_ns } => time_ns,
            Step::NewAfterGap { time_ns } => {
                self.gap = true;
                self.hand_on_the_newest();
                self.place.stream.forget_the_past();
                self.edge = None;
                time_ns
            }
        };
        if self.place.stream.is_nameless() {
            self.outlet.name_by_first_line(&mut self.place.stream, time_ns);
            self.edge = self.place.stream.read_limit();
        }
        let cursor = if self.counts { self.track.cursor() } else { before };
        let mark = Mark::new(line.side as u8, line.partial);
        let fresh = Fresh { time_ns, mark, cursor, raw: line.raw.into() };
        let whole = match &mut self.newest {
            Some(newest) => newest.hold(fresh.into_owned()),
            None => Some(fresh),
        };
        if let Some(whole) = whole {
            self.gather(whole);
        }
    }

    pub fn gather(&mut self, line: Fresh<'_>) {
        let end = |shipper: &Shipper<'_>| {
            shipper.place.stream.position() + (shipper.gathered.data.len() + line.raw.len()) as u64
        };
        let crosses = |shipper: &Shipper<'_>| shipper.edge.is_some_and(|edge| end(shipper) > edge);
        if self.gathered.ends.len() == CHUNK_LINES || crosses(self) {
            self.ship();
            if crosses(self) {
                // Not the line that stood here: the log is not what it was.
                self.place.stream.forget_the_past();
                self.edge = None;
            }
        }
        self.taken += 1;
        let gathered = &mut self.gathered;
        gathered.data.extend_from_slice(&line.raw);
        gathered.ends.push(gathered.data.len() as u32);
        gathered.timed.times.push(line.time_ns);
        gathered.timed.marks.push(line.mark);
        gathered.cursor = line.cursor;
        if self.edge == Some(self.place.stream.position() + self.gathered.data.len() as u64) {
            self.ship();
        }
    }

    /// The log does not have any more what was held back: that is all that there will be of it.
    pub fn hand_on_the_newest(&mut self) {
        let position = self.place.stream.position();
        if let Some(line) = self.newest.as_mut().and_then(|newest| newest.give_up_waiting(position)) {
            self.gather(line);
            self.ship();
        }
    }

    /// The engine has sent all that there was.
    pub fn end_of_reading(&mut self) {
        let position = self.place.stream.position() + self.gathered.data.len() as u64;
        if let Some(line) = self.newest.as_mut().and_then(|newest| newest.end(position)) {
            self.gather(line);
            self.ship();
        }
    }

    pub fn ship(&mut self) {
        if self.gathered.ends.is_empty() || self.stopped {
            return;
        }
        if self.credit.is_none() {
            self.take_credit(self.gathered.data.len());
        }
        let Some(credit) = self.credit.take() else { return }; // the agent is stopping
        self.task.waits_for("room downhill");
        let (cursor, half) = (self.gathered.cursor, self.half());
        match self.outlet.send_timed(&mut self.place.stream, &mut self.gathered, credit) {
            Ok(()) => {
                let place = &mut *self.place;
                (place.cursor, place.at_end, place.half) = (cursor, false, half);
            }
            Err(_) => self.stopped = true,
        }
        self.edge = self.place.stream.read_limit();
        self.task.doing("reading");
    }

    /// Of what is gathered, if it will come again: as the ledger keeps it.
    pub fn half(&self) -> Option<Head> {
        let data = &self.gathered.data;
        let end = &data[data.len().saturating_sub(BEFORE_BYTES)..];
        (!self.counts && !data.is_empty()).then(|| Head::of(end))
    }

    fn take_credit(&mut self, bytes: usize) {
        while !self.stopped && self.credit.is_none() {
            if let Ok(credit) = self.outlet.take_timed(&self.place.stream, bytes) {
                self.credit = Some(credit);
                return;
            }
            self.behind = true;
            self.task.waits_for("room");
            select! {
                recv(self.outlet.stop().stop.channel()) -> _ => self.stopped = true,
                recv(self.outlet.room()) -> _ => self.task.beat(),
            }
        }
    }
}
