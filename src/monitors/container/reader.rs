//! The thread `c/<id>`: reads one container's log, as long as it lives.
//!
//! It begins where the last reading ended, follows the log until the engine ends it, and reads what is left once the
//! container is dead: its last words. Then it reports how it ended, and its place, to the `containers` thread.
//!
//! Always true: credit is taken before a read, and none is held while the log is silent; at most `max_line_bytes`
//! of half lines per stream are held besides. A report is made whatever happens, but for a panic, which is a fault.

use std::os::fd::AsFd;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crossbeam_channel::select;

use super::api::{Came, Engine, Failure, Stream as Log};
use super::cursor::{Step, Track};
use super::frames::{Event, Frames};
use super::labels::{Chosen, Facts, Labeller, STAGES, chosen, exist};
use super::lines::{Joiner, Line};
use super::reports::{Begin, How, Report, Reports};
use super::{Place, READ_BYTES, StreamAs, place_of};
use crate::budget::Credit;
use crate::ledger::{BEFORE_BYTES, Head};
use crate::monitors::file::identity::lineage;
use crate::monitors::outlet::{CHUNK_LINES, Gathered, Timekeeper};
use crate::monitors::{Outlet, SourceOptions};
use crate::record::{Beside, Labels, Mark, Timed};
use crate::tasks::Task;

/// A busy container's lines come one by one; so long they gather. Nobody waits for it: the engine writes on.
const GATHER: Duration = Duration::from_millis(50);

/// A round that brought more is followed by the next one at once.
const GATHER_BYTES: usize = 6 * 1024;

/// The engine ended the log of a container that runs: it was started again, or this is all that it can do.
const AGAIN: Duration = Duration::from_millis(50);
const AGAIN_MAX: Duration = Duration::from_secs(2);

/// An engine that says nothing for so long has nothing left of a log; a shorter silence is its own reading.
const CAUGHT_UP: Duration = Duration::from_millis(200);

/// There are engines that leave the log of a dead container open. After such a silence it is asked for once more, to its
/// end. As often a silent reader looks whether its container is dead.
const DEAD_SILENCE: Duration = Duration::from_secs(5);

/// Of what came instead of a log: a sentence of the engine.
const SHOWN_BYTES: usize = 200;

/// What all readers of a source share.
pub(super) struct Shared {
    pub engine: Engine,
    pub source: SourceOptions,
    pub stream_as: StreamAs,
    /// Those that a container may choose.
    pub stages: Vec<Arc<str>>,
    pub labeller: parking_lot::Mutex<Labeller>,
    pub reports: Reports,
}

impl Shared {
    fn is_dead(&self, id: &str) -> bool {
        match self.engine.inspect(id) {
            Ok(found) => !found.state.running,
            Err(failure) => matches!(failure, Failure::Gone),
        }
    }
}

pub(super) struct Reader {
    pub shared: Arc<Shared>,
    pub facts: Facts,
    pub outlet: Outlet,
    pub begin: Option<Begin>,
    /// Until it dies; else only what is there.
    pub follow: bool,
    /// As far as is known; the `containers` thread hears of it.
    pub alive: Arc<AtomicBool>,
    /// It had to wait for room, and has not seen since that nothing is left, see [`CAUGHT_UP`]. An engine ends the log
    /// of a container that is removed meanwhile, and does not say that there was more.
    pub behind: bool,
}

/// The place, and what its lines have.
struct Opened {
    place: Place,
    sides: Arc<[Beside; 2]>,
}

impl Reader {
    /// The thread's body.
    pub fn run(mut self, task: &Task) -> crate::error::Result<()> {
        let mut opened = None;
        let was_dead = !self.alive.load(Ordering::Relaxed);
        let how = self.read(&mut opened, task);
        if let (How::Dead, Some(Opened { place, .. })) = (&how, &mut opened)
            && (self.follow || was_dead)
        {
            place.set_at_end(true, &mut self.outlet);
        }
        let next = opened.map(|opened: Opened| Begin::Going(Box::new(opened.place))).or(self.begin);
        self.outlet.nothing_to_read();
        self.shared.reports.put(Report { id: self.facts.id, next, how });
        Ok(())
    }

    fn read(&mut self, opened: &mut Option<Opened>, task: &Task) -> How {
        let mut pause = AGAIN;
        loop {
            let before = opened.as_ref().map(|opened| opened.place.stream.position());
            if self.follow {
                // The log that is followed ends when the container does, and some engines end it before all of it was
                // sent. What is left is asked for first of all: one that was run with `--rm` is removed at once.
                if let Err(how) =
                    self.round(opened, true, task).and_then(|()| self.round(opened, false, task))
                {
                    return how;
                }
                // Is the container dead?
                match self.shared.engine.inspect(&self.facts.id).map(|found| found.state) {
                    Ok(state) if state.running && !state.restarting => {
                        let after = opened.as_ref().map(|opened| opened.place.stream.position());
                        pause = if before == after { (pause * 2).min(AGAIN_MAX) } else { AGAIN };
                        task.waits_for("the next life");
                        select! {
                            recv(self.outlet.stop().stop.channel()) -> _ => return How::Stopped,
                            default(pause) => {}
                        }
                        continue;
                    }
                    Ok(_) => {}
                    Err(Failure::Gone) => return How::Missing { complete: !self.behind },
                    Err(failure) => return ended_by(failure),
                }
            }
            return match self.round(opened, false, task) {
                Ok(()) if self.behind && self.is_gone() => How::Missing { complete: false },
                Ok(()) => How::Dead,
                // It was read to its end a moment ago, when it was dead already.
                Err(How::Missing { .. }) if self.follow => How::Missing { complete: !self.behind },
                Err(how) => how,
            };
        }
    }

    fn is_gone(&self) -> bool {
        match self.shared.engine.inspect(&self.facts.id) {
            Ok(found) => found.state.is_going(),
            Err(failure) => matches!(failure, Failure::Gone),
        }
    }

    /// Reads the log once, from the place on, to the end that the engine gives it.
    fn round(
        &mut self,
        opened: &mut Option<Opened>,
        follow: bool,
        task: &Task,
    ) -> std::result::Result<(), How> {
        task.doing("asking for the log");
        let was_dead = !self.alive.load(Ordering::Relaxed);
        let from = match (&opened, &self.begin) {
            (Some(opened), _) => opened.place.cursor,
            (None, Some(Begin::New(from))) => *from,
            (None, Some(Begin::Known(known))) => known.cursor,
            (None, Some(Begin::Going(place))) => place.cursor,
            (None, None) => None,
        };
        // First of all: whoever has the log open can read it, even if the container is removed at once.
        let log = self.shared.engine.logs(&self.facts.id, from, follow);
        let log = log.map_err(ended_by)?;
        if opened.is_none() {
            *opened = Some(self.open());
        }
        let Some(Opened { place, sides }) = opened else { return Ok(()) };
        let parts_share_a_time = !self.shared.engine.is_podman();
        let max_line_bytes = self.shared.source.max_line_bytes;
        let mut shipper = Shipper {
            outlet: &mut self.outlet,
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
            alive: follow.then_some(&*self.alive),
            counts: true,
            credit: None,
            stopped: false,
            gap: false,
            behind: self.behind,
        };
        let mut text =
            Text { frames: Frames::default(), joiner: Joiner::new(max_line_bytes, parts_share_a_time) };
        let how = shipper.pump(log, &mut text);
        self.behind = shipper.behind;
        if shipper.gap {
            log::warn!(
                "{}: {}: the engine does not have the log any more that was read last; what it still has is \
                 read, some of it perhaps again",
                self.shared.source.name,
                self.facts.called()
            );
        }
        // Only of a dead container: else the rest of a half line may come, and be taken for what was read.
        if how.is_ok() && !follow && (self.follow || was_dead) && self.shared.is_dead(&self.facts.id) {
            shipper.counts = parts_share_a_time;
            text.end(&mut shipper);
            let half = shipper.half();
            if half.is_none() || half != shipper.place.half {
                shipper.ship();
            }
        }
        if shipper.stopped { Err(How::Stopped) } else { how }
    }

    fn open(&mut self) -> Opened {
        if self.shared.labeller.lock().needs_env() && self.facts.env.is_empty() {
            // Gone already, or ill: its lines are worth more than this label.
            if let Ok(found) = self.shared.engine.inspect(&self.facts.id) {
                self.facts.env = found.config.env.unwrap_or_default();
            }
        }
        let source = &self.shared.source;
        let labels = self.shared.labeller.lock().label(&source.labels, &self.facts, &mut |label| {
            log::warn!("{}: too many values of the label {label}: new ones become \"other\"", source.name);
        });
        let sides = [("stdout", &labels), ("stderr", &labels)].map(|(side, labels)| {
            let mut labels: Labels = labels.clone();
            let mut metadata = Vec::new();
            match self.shared.stream_as {
                StreamAs::Label => labels.set("stream", side),
                StreamAs::Metadata => metadata.push(("stream".into(), side.into())),
                StreamAs::Nothing => {}
            }
            Beside { labels: Arc::new(labels), metadata }
        });
        let place = place_of(&self.facts.id, &self.facts.name);
        let who = Timekeeper {
            source,
            place: &place,
            labels,
            lineage: lineage(&source.name, Path::new(&self.facts.id)),
            stages: self.stages(),
        };
        let mut place = match self.begin.take() {
            Some(Begin::Going(place)) => *place,
            Some(Begin::Known(known)) => {
                let stream = self.outlet.reopen_timed(who, &known);
                let half = known.before.filter(|_| known.is_whole());
                Place { stream, cursor: known.cursor, at_end: known.at_end, half }
            }
            begin => {
                let from = if let Some(Begin::New(from)) = begin { from } else { None };
                Place { stream: self.outlet.open_timed(who, from), cursor: from, at_end: false, half: None }
            }
        };
        if self.follow {
            place.set_at_end(false, &mut self.outlet);
        }
        Opened { place, sides: Arc::new(sides) }
    }

    /// Those that the container chooses. What it asks for in vain is said when its reading begins, not again when it is
    /// resumed.
    fn stages(&self) -> Vec<Arc<str>> {
        let Chosen { stages, unknown } = chosen(&self.facts, &self.shared.stages);
        if !unknown.is_empty() && !matches!(self.begin, Some(Begin::Going(_))) {
            let (source, called) = (&self.shared.source.name, self.facts.called());
            log::warn!(
                "{source}: {called} has the label {STAGES} with {unknown:?}; {}",
                exist(&self.shared.stages)
            );
        }
        stages
    }
}

fn ended_by(failure: Failure) -> How {
    match failure {
        Failure::Gone => How::Missing { complete: false },
        Failure::Unreadable(said) => How::Unreadable(said),
        Failure::Ill(why) => How::Broken(why.to_string()),
        Failure::Stopping => How::Stopped,
    }
}

/// From bytes to lines.
struct Text {
    frames: Frames,
    joiner: Joiner,
}

impl Text {
    /// `false`: nobody can understand what follows.
    fn feed(&mut self, bytes: &[u8], shipper: &mut Shipper<'_>) -> bool {
        let (joiner, plain) = (&mut self.joiner, self.frames.is_plain_from(bytes));
        let each = &mut |event: Event<'_>| match event {
            Event::Message { side, ns } => joiner.message(side, ns, &mut |line| shipper.line(&line)),
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

    fn end(&mut self, shipper: &mut Shipper<'_>) {
        let (joiner, plain) = (&mut self.joiner, self.frames.is_plain_from(&[]));
        self.frames.end(&mut |event| {
            if let Event::Text { side, bytes } = event {
                joiner.text(side, bytes, plain, &mut |line| shipper.line(&line));
            }
        });
        joiner.end(plain, &mut |line| shipper.line(&line));
    }
}

/// Gathers lines into chunks.
struct Shipper<'a> {
    outlet: &'a mut Outlet,
    task: &'a Task,
    place: &'a mut Place,
    track: Track,
    /// Of one that is followed.
    alive: Option<&'a AtomicBool>,
    gathered: Gathered,
    /// A chunk ends here, as it did in an earlier life.
    edge: Option<u64>,
    /// For the next chunk.
    credit: Option<Credit>,
    /// The cursor moves with the lines. Not for half lines whose rest may still come to them: they would
    /// not be found again.
    counts: bool,
    stopped: bool,
    gap: bool,
    behind: bool,
}

impl Shipper<'_> {
    /// Reads until the engine ends the log, or should have.
    fn pump(&mut self, mut log: Log, text: &mut Text) -> std::result::Result<(), How> {
        let stop = self.outlet.stop().stop.clone();
        let mut buffer = vec![0; 16 * 1024];
        loop {
            self.take_credit(READ_BYTES + text.joiner.held_bytes());
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
            match came? {
                Came::Bytes(_) => {}
                Came::End => return Ok(()),
                Came::Nothing => {
                    self.credit = None;
                    self.outlet.nothing_to_read();
                    if read > 0 && read < GATHER_BYTES {
                        self.task.waits_for("more lines");
                        select! {
                            recv(stop.channel()) -> _ => self.stopped = true,
                            default(GATHER) => {}
                        }
                    } else if read == 0 {
                        self.task.waits_for("lines");
                        let began = self.task.now();
                        if let Err(cause) = log.wait(&[stop.as_fd()], self.alive.map(|_| DEAD_SILENCE)) {
                            return Err(How::Broken(format!("could not wait for lines: {cause}")));
                        }
                        let silence = self.task.now().saturating_duration_since(began);
                        self.behind &= silence < CAUGHT_UP;
                        self.stopped |= stop.is_closed();
                        let is_dead = self.alive.is_some_and(|alive| !alive.load(Ordering::Relaxed));
                        if is_dead && silence >= DEAD_SILENCE && !self.stopped {
                            return Ok(());
                        }
                    }
                    self.task.beat();
                }
            }
        }
    }

    fn line(&mut self, line: &Line<'_>) {
        if self.stopped {
            return;
        }
        let before = self.track.cursor();
        let time_ns = match self.track.line(line.ns, line.held) {
            Step::Known => return,
            Step::New { time_ns } => time_ns,
            Step::NewAfterGap { time_ns } => {
                self.gap = true;
                self.place.stream.forget_the_past();
                self.edge = None;
                time_ns
            }
        };
        if self.place.stream.is_nameless() {
            self.outlet.name_by_first_line(&mut self.place.stream, time_ns);
            self.edge = self.place.stream.read_limit();
        }
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
        let gathered = &mut self.gathered;
        gathered.data.extend_from_slice(line.raw);
        gathered.ends.push(gathered.data.len() as u32);
        gathered.timed.times.push(time_ns);
        gathered.timed.marks.push(Mark::new(line.side as u8, line.partial));
        gathered.cursor = if self.counts { self.track.cursor() } else { before };
        if self.edge == Some(self.place.stream.position() + self.gathered.data.len() as u64) {
            self.ship();
        }
    }

    fn ship(&mut self) {
        if self.gathered.ends.is_empty() || self.stopped {
            return;
        }
        if self.credit.is_none() {
            self.take_credit(self.gathered.data.len());
        }
        let Some(credit) = self.credit.take() else { return }; // the agent is stopping
        self.task.waits_for("the workers");
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
    fn half(&self) -> Option<Head> {
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
