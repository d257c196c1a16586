//! The containers that are wanted, a slot for each: who is read, who will be, and what came of it.
//!
//! Always true: what broke is tried again after a pause of its own, whatever becomes of the connection to the engine;
//! only a new life of the container, or an engine that was well for long, ends a pause.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::super::labels::{Facts, short};
use super::super::meeting::Meeting;
use super::super::pause::Pause;
use super::super::podman::Newest;
use super::super::reader::Reader;
use super::super::reports::{Begin, Bell, How, Report};
use super::{Monitor, THE_LONGEST_PAUSE};
use crate::ledger::Cursor;
use crate::tasks::Task;

/// A log that broke although the engine is well is asked for again.
const BROKEN_AGAIN: Duration = Duration::from_millis(250);

/// Logs of stopped containers that are looked through at a time; there may be hundreds.
const LOOKS_MAX: usize = 4;

/// A reader waits for the engine's answer for as long as its time-outs allow.
const READER_SILENCE_MAX: Duration = Duration::from_secs(60);

pub(super) enum State {
    /// Wants a reader: nobody reads it yet.
    Waiting,
    Reading,
    /// Read to its end; nothing more comes until it is started.
    Quiet,
    /// To be asked for again.
    Broken {
        why: String,
        again: Instant,
    },
    /// The engine has no log of it. That is no removal: an engine answers so too while it is still making a container.
    /// Whoever is not in a fresh list is removed.
    Missing {
        look: Instant,
    },
    Unreadable(String),
}

pub(super) struct Slot {
    pub facts: Facts,
    /// Its reader looks at it too.
    alive: Arc<AtomicBool>,
    /// Calls the reader that follows it when it dies.
    bell: Option<Arc<Bell>>,
    pub state: State,
    /// Where reading begins; `None` while somebody reads.
    pub next: Option<Begin>,
    /// Happened while it was read.
    started: bool,
    pub removed: bool,
    /// As a dead one, or as one that never ran, and nobody saw it start since.
    pub read_to_end: bool,
    /// When its log could last be read to where it stood, in wall time.
    pub read_ns: Option<i64>,
    /// When its last reader began.
    began: Option<Instant>,
    pause: Pause,
    /// Its log cannot be read, and that was said.
    said_unreadable: bool,
}

impl Slot {
    fn new(facts: Facts) -> Slot {
        Slot {
            facts,
            alive: Arc::default(),
            bell: None,
            state: State::Quiet,
            next: None,
            started: false,
            removed: false,
            read_to_end: false,
            read_ns: None,
            began: None,
            pause: Pause::new(BROKEN_AGAIN, THE_LONGEST_PAUSE),
            said_unreadable: false,
        }
    }

    pub fn is_alive(&self) -> bool {
        self.alive.load(Ordering::Relaxed)
    }

    fn set_alive(&self, alive: bool) {
        self.alive.store(alive, Ordering::Relaxed);
        if let Some(bell) = self.bell.as_ref().filter(|_| !alive) {
            bell.ring();
        }
    }

    /// Until then it is left alone.
    fn rests_until(&self) -> Option<Instant> {
        match self.state {
            State::Broken { again: until, .. } | State::Missing { look: until } => Some(until),
            _ => None,
        }
    }
}

impl Monitor {
    fn slot(&mut self, facts: &Facts) -> Option<&mut Slot> {
        self.options
            .choice
            .wants(facts, self.own.as_deref())
            .then(|| self.slots.entry(facts.id.clone()).or_insert_with(|| Slot::new(facts.clone())))
    }

    /// It is in the list, and has never run: nobody can have written to its log, and it may not even have one yet.
    pub(super) fn is_only_made(&mut self, facts: &Facts) {
        if self.slots.contains_key(&facts.id) {
            return; // it is known better
        }
        if let Some(slot) = self.slot(facts) {
            slot.read_to_end = true;
        }
    }

    /// It is in the list, so nobody knows whether anything has happened to it.
    pub(super) fn is_there(&mut self, facts: Facts, alive: bool, now: Instant) {
        if let Some(slot) = self.slots.get(&facts.id) {
            let has_begun = alive && !slot.is_alive();
            let rests = slot.rests_until().is_some_and(|until| until > now);
            if rests && !has_begun {
                return slot.set_alive(alive);
            }
        }
        self.wants_reader(facts, alive);
    }

    pub(super) fn died(&mut self, facts: Facts) {
        if let Some(slot) = self.slots.get_mut(&facts.id) {
            let was_alive = slot.is_alive();
            slot.set_alive(false);
            if matches!(slot.state, State::Reading) {
                return;
            }
            // Its start was missed, or it could not be read: what it said is still there.
            slot.read_to_end &= was_alive;
        }
        self.wants_reader(facts, false);
    }

    /// Has something to read, or may have.
    pub(super) fn wants_reader(&mut self, facts: Facts, alive: bool) {
        let Some(slot) = self.slot(&facts) else { return };
        slot.set_alive(alive);
        slot.read_to_end &= !alive;
        match slot.state {
            State::Reading => slot.started |= alive,
            State::Unreadable(_) if !alive => {}
            State::Waiting => {}
            _ => {
                slot.state = State::Waiting;
                if !alive {
                    self.queue.push_back(facts.id);
                }
            }
        }
    }

    /// Starts readers: for those that run at once, for the others a few at a time.
    pub(super) fn start_waiting(&mut self, task: &Task) {
        let now = task.now();
        let due = |slot: &Slot| match &slot.state {
            State::Waiting => slot.is_alive(),
            State::Broken { again, .. } => *again <= now,
            _ => false,
        };
        let ids: Vec<String> =
            self.slots.iter().filter(|(_, slot)| due(slot)).map(|(id, _)| id.clone()).collect();
        ids.into_iter().for_each(|id| self.start(&id, task));
        while let Some(id) = self.queue.front() {
            let wants = self.slots.get(id).is_some_and(|slot| matches!(slot.state, State::Waiting));
            let looks = |slot: &&Slot| matches!(slot.state, State::Reading) && !slot.is_alive();
            if wants && self.slots.values().filter(looks).count() >= LOOKS_MAX {
                break;
            }
            if let Some(id) = self.queue.pop_front().filter(|_| wants) {
                self.start(&id, task);
            }
        }
    }

    fn start(&mut self, id: &str, task: &Task) {
        let known = self.known.remove(id);
        let Some(slot) = self.slots.get_mut(id) else { return };
        let mut begin = match (slot.next.take(), known) {
            (Some(next), _) => next,
            (None, Some(known)) => Begin::Known(Box::new(known)),
            (None, None) => {
                let from_ns = self.meeting.as_ref().and_then(Meeting::at_ns);
                Begin::New(from_ns.map(|ns| Cursor { ns, lines: 0 }))
            }
        };
        let follow = slot.is_alive() && !self.once;
        match &mut begin {
            Begin::Going(place) if follow => place.set_at_end(false, &mut self.outlet),
            Begin::Known(known) if follow && known.at_end => self.outlet.goes_on(known),
            _ => {}
        }
        // Without a descriptor for it, the reader looks now and then.
        slot.bell = follow.then(|| Bell::new().ok().map(Arc::new)).flatten();
        let reader = Reader {
            shared: self.shared.clone(),
            facts: slot.facts.clone(),
            outlet: self.supply.outlet(),
            begin: Some(begin),
            follow,
            alive: slot.alive.clone(),
            bell: slot.bell.clone(),
            behind: false,
            heard_out: false,
            engine_took: Duration::ZERO,
            newest: Newest::default(),
            spare: None,
        };
        slot.state = State::Reading;
        slot.started = false;
        slot.began = Some(task.now());
        let name = format!("c/{}", short(id));
        match self.helpers.spawn(name, READER_SILENCE_MAX, move |task| reader.run(task)) {
            Ok(_) => self.followed.add(1),
            Err(cause) => {
                // Its place went down with the reader; the ledger has it at the next start.
                log::error!("{}: {}: {cause}", self.shared.source.name, slot.facts.called());
                slot.bell = None;
                let again = task.now() + THE_LONGEST_PAUSE;
                slot.state = State::Broken { why: cause.to_string(), again };
            }
        }
    }

    pub(super) fn ended(&mut self, report: Report, task: &Task) {
        let wall_ns = self.outlet.clock().wall_ns();
        let Some(slot) = self.slots.get_mut(&report.id) else { return };
        slot.next = report.next;
        slot.bell = None;
        let called = slot.facts.called();
        let lasted = slot.began.map_or(Duration::ZERO, |began| task.now().saturating_duration_since(began));
        match report.how {
            How::Stopped => slot.state = State::Quiet,
            // A reader whose log has ended is often faster than the event, after which it is asked for once more.
            How::Missing { complete } => {
                slot.read_to_end |= complete;
                if slot.removed {
                    return self.conclude(&report.id);
                }
                slot.state = State::Missing { look: task.now() + slot.pause.after(lasted) };
            }
            How::Dead => {
                slot.state = State::Quiet;
                slot.read_to_end = !slot.started;
                slot.read_ns = Some(wall_ns);
                slot.pause.forgive();
                if slot.removed {
                    slot.read_to_end = true;
                    return self.conclude(&report.id);
                }
            }
            How::Unreadable(said) => {
                slot.state = State::Unreadable(said.clone());
                if slot.removed {
                    return self.conclude(&report.id);
                }
                if !std::mem::replace(&mut slot.said_unreadable, true) {
                    log::warn!("{}: {called}: its log cannot be read: {said}", self.shared.source.name);
                }
            }
            How::Broken(why) => {
                if slot.removed {
                    return self.conclude(&report.id);
                }
                log::debug!("{}: {called}: {why}", self.shared.source.name);
                slot.state = State::Broken { why, again: task.now() + slot.pause.after(lasted) };
                return;
            }
        }
        if slot.started {
            let (facts, alive) = (slot.facts.clone(), slot.is_alive());
            self.wants_reader(facts, alive);
        }
    }

    /// The engine was well for long, and has fallen ill: that their logs broke with it is no fault of theirs.
    pub(super) fn forgive(&mut self, now: Instant) {
        for slot in self.slots.values_mut() {
            slot.pause.forgive();
            if let State::Broken { again, .. } = &mut slot.state {
                *again = now.min(*again);
            }
        }
    }

    /// When somebody is to be asked for again, or looked for.
    pub(super) fn next_due(&self) -> Option<Instant> {
        self.slots.values().filter_map(Slot::rests_until).min()
    }

    pub(super) fn is_any(&self, such: impl Fn(&State) -> bool) -> bool {
        self.slots.values().any(|slot| such(&slot.state))
    }
}
