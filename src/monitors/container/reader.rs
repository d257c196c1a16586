//! The thread `c/<id>`: reads one container's log, as long as it lives.
//!
//! It begins where the last reading ended, follows the log until the engine ends it, and reads what is left once the
//! container is dead: its last words. Then it reports how it ended, and its place, to the `containers` thread.
//!
//! Always true: a report is made whatever happens, but for a panic, which is a fault.
//!
//! Not here: how a log becomes lines and chunks (`shipper.rs`).

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crossbeam_channel::select;

use super::api::{Engine, Failure, Stream as Log};
use super::labels::{Chosen, Facts, Labeller, STAGES, chosen, exist};
use super::podman::{Newest, Spare};
use super::reports::{Begin, Bell, How, Report, Reports};
use super::shipper::{Followed, Shipper, Text};
use super::{Place, StreamAs, place_of};
use crate::ledger::Cursor;
use crate::monitors::file::identity::lineage;
use crate::monitors::outlet::Timekeeper;
use crate::monitors::{Outlet, SourceOptions};
use crate::record::{Beside, Labels};
use crate::tasks::Task;

/// The engine ended the log of a container that runs: it was started again, or this is all that it can do.
const AGAIN: Duration = Duration::from_millis(50);
const AGAIN_MAX: Duration = Duration::from_secs(2);

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
    /// Rings when it dies.
    pub bell: Option<Arc<Bell>>,
    /// It had to wait for room, and has not seen since that nothing is left, see `CAUGHT_UP` in `shipper.rs`. An engine ends the log
    /// of a container that is removed meanwhile, and does not say that there was more.
    pub behind: bool,
    /// What the engine had of its last life was read to the end: it was asked for it when the container was dead, or is one
    /// that leaves nothing out.
    pub heard_out: bool,
    /// How long the engine has let us wait in the last reading: not how long we had no room.
    pub engine_took: Duration,
    /// The last line of a log that may have been read while that line was being written.
    pub newest: Newest,
    /// For a container that is gone before it can be read.
    pub spare: Option<Spare>,
}

/// The place, and what its lines have.
pub(super) struct Opened {
    pub place: Place,
    pub sides: Arc<[Beside; 2]>,
}

/// How a log is read.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Reading {
    /// Until the engine ends it, which is when the container dies.
    Followed,
    /// All that is there.
    ToItsEnd,
    /// The same, but its last line may be half a line, see `podman.rs`.
    WhileWritten,
}

impl Reader {
    /// The thread's body.
    pub fn run(mut self, task: &Task) -> crate::error::Result<()> {
        let mut opened = None;
        let was_dead = self.is_dead();
        let mut how = self.read(&mut opened, task);
        if let How::Missing { complete: false } = how {
            how = self.read_what_is_left(&mut opened, task);
        }
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
                let followed = match self.shared.engine.is_podman() {
                    true => self.read_again_and_again(opened, task),
                    false => self.round(opened, Reading::Followed, task),
                };
                let read = followed.and_then(|()| match self.heard_out {
                    true => Ok(()),
                    false => self.round(opened, Reading::ToItsEnd, task),
                });
                if let Err(how) = read {
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
            let read = match self.shared.engine.is_podman() && !self.follow && !self.is_dead() {
                true => self.read_again_and_again(opened, task).and_then(|()| match self.is_dead() {
                    true => self.round(opened, Reading::ToItsEnd, task),
                    false => Ok(()),
                }),
                false => self.round(opened, Reading::ToItsEnd, task),
            };
            return match read {
                Ok(()) if self.behind && self.is_gone() => How::Missing { complete: false },
                Ok(()) => How::Dead,
                // It was read to its end a moment ago, when it was dead already.
                Err(How::Missing { .. }) if self.follow => How::Missing { complete: !self.behind },
                Err(how) => how,
            };
        }
    }

    /// As far as is known.
    pub(super) fn is_dead(&self) -> bool {
        !self.alive.load(Ordering::Relaxed)
    }

    pub(super) fn is_gone(&self) -> bool {
        match self.shared.engine.inspect(&self.facts.id) {
            Ok(found) => found.state.is_going(),
            Err(failure) => matches!(failure, Failure::Gone),
        }
    }

    /// Where its log is read on.
    pub(super) fn from(&self, opened: Option<&Opened>) -> Option<Cursor> {
        match (opened, &self.begin) {
            (Some(opened), _) => opened.place.cursor,
            (None, Some(Begin::New(from))) => *from,
            (None, Some(Begin::Known(known))) => known.cursor,
            (None, Some(Begin::Going(place))) => place.cursor,
            (None, None) => None,
        }
    }

    /// Reads the log once, from the place on, to the end that the engine gives it.
    pub(super) fn round(
        &mut self,
        opened: &mut Option<Opened>,
        reading: Reading,
        task: &Task,
    ) -> std::result::Result<(), How> {
        task.doing("asking for the log");
        let was_dead = self.is_dead();
        let from = self.from(opened.as_ref());
        // First of all: whoever has the log open can read it, even if the container is removed at once.
        self.heard_out = false;
        let follow = reading == Reading::Followed;
        let asked = task.now();
        let log = self.shared.engine.logs(&self.facts.id, from, follow).map_err(ended_by)?;
        self.engine_took = task.now().saturating_duration_since(asked);
        if opened.is_none() {
            *opened = Some(self.open());
        }
        let Some(opened) = opened else { return Ok(()) };
        let Some(last_words) = self.take(opened, log, reading, was_dead, task)? else { return Ok(()) };
        self.take(opened, last_words, Reading::ToItsEnd, true, task)?;
        self.heard_out = true;
        Ok(())
    }

    /// Reads a log that is open. When the container dies meanwhile, what is left of it to be read instead is returned.
    fn take(
        &mut self,
        opened: &mut Opened,
        log: Log,
        reading: Reading,
        was_dead: bool,
        task: &Task,
    ) -> std::result::Result<Option<Log>, How> {
        // Dead before the engine began to answer: then it has waited with that for the end of all that there is.
        let was_over = self.is_dead();
        let follow = reading == Reading::Followed;
        let parts_share_a_time = !self.shared.engine.is_podman();
        let followed = follow.then_some(Followed {
            shared: &self.shared,
            id: &self.facts.id,
            alive: &self.alive,
            bell: self.bell.as_deref(),
            asked: false,
        });
        let since_ns = opened.place.cursor.map(|cursor| cursor.ns);
        let mut shipper = Shipper::new(&mut self.outlet, task, opened, followed);
        shipper.behind = self.behind;
        shipper.newest = (reading == Reading::WhileWritten).then_some(&mut self.newest);
        let mut text = Text::new(&self.shared, since_ns);
        let how = shipper.pump(log, &mut text);
        self.behind = shipper.behind;
        self.engine_took += shipper.waited;
        if shipper.gap {
            log::warn!(
                "{}: {}: the engine does not have the log any more that was read last; what it still has is \
                 read, some of it perhaps again",
                self.shared.source.name,
                self.facts.called()
            );
        }
        if let Ok(Some(last_words)) = how {
            return Ok(Some(last_words));
        }
        if how.is_ok() {
            shipper.end_of_reading();
        }
        self.heard_out = how.is_ok() && follow && (was_over || self.shared.engine.follows_to_the_end());
        // Only of a dead container: else the rest of a half line may come, and be taken for what was read.
        if how.is_ok()
            && (!follow || self.heard_out)
            && (self.follow || was_dead)
            && reading != Reading::WhileWritten
            && self.shared.is_dead(&self.facts.id)
        {
            shipper.counts = parts_share_a_time;
            text.end(&mut shipper);
            let half = shipper.half();
            if half.is_none() || half != shipper.place.half {
                shipper.ship();
            }
        }
        if let Some(spare) = &mut self.spare {
            spare.taken += shipper.taken;
        }
        if shipper.stopped { Err(How::Stopped) } else { how }
    }

    pub(super) fn open(&mut self) -> Opened {
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
        let place = match self.begin.take() {
            Some(Begin::Going(place)) => *place,
            Some(Begin::Known(known)) => {
                let stream = self.outlet.reopen_timed(who, &known);
                let half = known.before.filter(|_| known.is_whole());
                Place { stream, cursor: known.cursor, at_end: known.at_end && !self.follow, half }
            }
            begin => {
                let from = if let Some(Begin::New(from)) = begin { from } else { None };
                Place { stream: self.outlet.open_timed(who, from), cursor: from, at_end: false, half: None }
            }
        };
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

pub(super) fn ended_by(failure: Failure) -> How {
    match failure {
        Failure::Gone => How::Missing { complete: false },
        Failure::Unreadable(said) => How::Unreadable(said),
        Failure::Ill(why) | Failure::Silent(why) => How::Broken(why.to_string()),
        Failure::Stopping => How::Stopped,
    }
}
