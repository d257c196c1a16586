//! The thread `containers`: knows who is there, and sees to it that each is read.
//!
//! A session begins with the version, opens the stream of events, lists, and lasts until the engine is ill. Between
//! sessions it only tries again, at most a second apart. An engine that is silent is asked every
//! [`PING_AFTER`] whether it is still there: one that hangs keeps its connections open.
//!
//! Always true: a container that runs and is wanted has one reader, or a time at which it gets one; the engine's
//! state is said once per change.
//!
//! Not here: what becomes of a container that is removed (`monitor/removal.rs`).

mod removal;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crossbeam_channel::select;
use parking_lot::Mutex;

use super::api::{Engine, Events, Failure, Happening, Listed};
use super::labels::{Facts, Labeller, short};
use super::own::own_id;
use super::reader::{Reader, Shared};
use super::reports::{Begin, How, Report, Reports};
use super::view::{ContainerView, EngineView, View};
use super::{ContainerSourceOptions, Settings, of_place};
use crate::error::Result;
use crate::ledger::{Cursor, Known};
use crate::metrics::{Counter, Gauge};
use crate::monitors::{Outlet, StartAt, Supply};
use crate::tasks::{Helpers, Task};

/// Between two tries to reach the engine: soon back, and still next to nothing.
const TRY_AGAIN: Duration = Duration::from_millis(250);
const TRY_AGAIN_MAX: Duration = Duration::from_secs(1);

/// Nothing happens on most hosts for hours.
const PING_AFTER: Duration = Duration::from_secs(10);

/// A log that broke although the engine is well is asked for again.
const BROKEN_AGAIN: Duration = Duration::from_millis(250);
const BROKEN_AGAIN_MAX: Duration = Duration::from_secs(10);

/// Logs of stopped containers that are looked through at a time; there may be hundreds.
const LOOKS_MAX: usize = 4;

/// A reader waits for the engine's answer for as long as its time-outs allow.
const READER_SILENCE_MAX: Duration = Duration::from_secs(60);

enum State {
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
    Unreadable(String),
}

struct Slot {
    facts: Facts,
    /// Its reader looks at it too: an engine may leave the log of a dead one open.
    alive: Arc<AtomicBool>,
    state: State,
    /// Where reading begins; `None` while somebody reads.
    next: Option<Begin>,
    /// Happened while it was read.
    started: bool,
    removed: bool,
    /// As a dead one, and nobody saw it start since.
    read_to_end: bool,
    /// When its log could last be read to where it stood, in wall time.
    read_ns: Option<i64>,
    pause: Duration,
    /// Its log cannot be read, and that was said.
    said_unreadable: bool,
}

impl Slot {
    fn is_alive(&self) -> bool {
        self.alive.load(Ordering::Relaxed)
    }
}

/// How a session ended.
enum End {
    Stop,
    /// With `--once`: all is read.
    Done,
    Ill(String),
}

impl From<Failure> for End {
    fn from(failure: Failure) -> End {
        match failure {
            Failure::Stopping => End::Stop,
            Failure::Ill(why) => End::Ill(why.to_string()),
            Failure::Gone => End::Ill("does not know what every engine knows (404)".into()),
            Failure::Unreadable(said) => End::Ill(said),
        }
    }
}

/// The thread's body, for one source.
pub struct Monitor {
    options: ContainerSourceOptions,
    shared: Arc<Shared>,
    supply: Supply,
    outlet: Outlet,
    helpers: Helpers,
    slots: BTreeMap<String, Slot>,
    /// Stopped containers whose logs are to be looked through.
    queue: VecDeque<String>,
    known: BTreeMap<String, Known>,
    own: Option<String>,
    /// Containers that stood there when the agent started for the first time begin here.
    begin_at: Option<i64>,
    wants_begin: bool,
    once: bool,
    /// The newest event.
    event_ns: Option<i64>,
    /// Why the engine is ill, as it was said.
    ill: Option<String>,
    met: bool,
    given_up: u64,
    view: View,
    followed: Arc<Gauge>,
    /// Those that the ledger may have a page of.
    known_gauge: Arc<Gauge>,
    known_here: i64,
    gone: Arc<Gauge>,
    in_line: Arc<Gauge>,
    lost: Arc<Counter>,
}

impl Monitor {
    pub(super) fn new(settings: Settings) -> Result<Monitor> {
        let Settings { source, options, known, first_start, once, supply, helpers, resolve, metrics } =
            settings;
        let outlet = supply.outlet();
        let stop = outlet.stop().stop.clone();
        let engine = Engine::new(&options.address, &options.tls, resolve, stop, outlet.clock().clone())?;
        let known = known.into_iter().filter(|known| known.source == source.name);
        let known = known.filter_map(|known| Some((of_place(&known)?.0.to_owned(), known))).collect();
        let name = source.name.clone();
        let about_lost = "Containers that were removed before their logs could be read to the end.";
        let shared = Shared {
            engine,
            stream_as: options.stream_as,
            stages: options.stages.clone(),
            labeller: Mutex::new(Labeller::new(&options.labels)),
            reports: Reports::new()?,
            source,
        };
        Ok(Monitor {
            followed: metrics.gauge("containers_followed", "Containers whose logs are being read.", &[]),
            known_gauge: metrics.gauge(
                "containers_known",
                "Containers that have a place in the ledger.",
                &[],
            ),
            known_here: 0,
            gone: metrics.gauge("containers_gone", "Removed, and still read.", &[("source", &name)]),
            in_line: metrics.gauge(
                "containers_in_line",
                "Stopped containers whose logs are to be looked through.",
                &[("source", &name)],
            ),
            lost: metrics.counter("containers_given_up_total", about_lost, &[("source", &name)]),
            view: Arc::default(),
            shared: Arc::new(shared),
            wants_begin: first_start && options.start_at == StartAt::End,
            options,
            supply,
            outlet,
            helpers,
            slots: BTreeMap::new(),
            queue: VecDeque::new(),
            known,
            own: own_id(),
            begin_at: None,
            once,
            event_ns: None,
            ill: None,
            met: false,
            given_up: 0,
        })
    }

    pub fn view(&self) -> View {
        self.view.clone()
    }

    /// Ends on stop; with `--once` when all is read.
    pub fn run(mut self, task: &Task) -> Result<()> {
        let mut pause = TRY_AGAIN;
        loop {
            let met = self.met;
            let why = match self.session(task) {
                End::Stop | End::Done => break,
                End::Ill(why) => why,
            };
            if self.met != met {
                pause = TRY_AGAIN;
            }
            self.fell_ill(why);
            self.met = false;
            if !self.wait_out(pause, task) {
                break;
            }
            pause = (pause * 2).min(TRY_AGAIN_MAX);
        }
        task.stopping();
        Ok(()) // readers end by themselves
    }

    /// Until the next try; `false`: stop.
    fn wait_out(&mut self, pause: Duration, task: &Task) -> bool {
        task.waits_for("the engine");
        let until = crossbeam_channel::after(pause);
        let (stop, bell) = (self.outlet.stop().stop.clone(), self.helpers.bell().clone());
        loop {
            select! {
                recv(stop.channel()) -> _ => return false,
                recv(bell) -> _ => self.take_reports(task),
                recv(until) -> _ => break,
            }
        }
        task.beat();
        true
    }

    fn session(&mut self, task: &Task) -> End {
        match self.try_session(task) {
            Ok(end) | Err(end) => end,
        }
    }

    fn try_session(&mut self, task: &Task) -> std::result::Result<End, End> {
        task.doing("asking the engine who is there");
        let about = self.shared.engine.meet()?;
        if self.wants_begin {
            self.begin_at = Some(self.shared.engine.now_ns()?);
            self.wants_begin = false;
        }
        let mut events = Events::new(self.shared.engine.events(self.event_ns)?);
        let listed = self.shared.engine.list()?;
        self.is_well(&about);
        self.take_in(listed, task);
        let mut heard = task.now();
        let stop = self.outlet.stop().stop.clone();
        loop {
            while let Some(event) =
                events.take().map_err(|cause| End::Ill(format!("the stream of events ended: {cause}")))?
            {
                heard = task.now();
                self.happened(&event, task);
            }
            self.take_reports(task);
            self.start_waiting(task);
            self.show();
            if self.once
                && self.slots.values().all(|slot| !matches!(slot.state, State::Waiting | State::Reading))
            {
                return Ok(End::Done);
            }
            let now = task.now();
            if now.saturating_duration_since(heard) >= PING_AFTER {
                task.doing("asking whether the engine is there");
                self.shared.engine.ping()?;
                heard = task.now();
            }
            let due = self.next_due().unwrap_or(heard + PING_AFTER).min(heard + PING_AFTER);
            let left = due.saturating_duration_since(task.now()).max(Duration::from_millis(1));
            task.waits_for("events");
            let waited = events.wait(&[stop.as_fd(), self.shared.reports.bell()], left);
            waited.map_err(|cause| End::Ill(format!("could not wait for events: {cause}")))?;
            task.beat();
            if stop.is_closed() {
                return Ok(End::Stop);
            }
        }
    }

    fn is_well(&mut self, about: &super::api::About) {
        let (source, address) = (&self.shared.source.name, self.shared.engine.address());
        match self.ill.take() {
            Some(_) => log::info!("{source}: the engine at {address} answers again"),
            None if !self.met => log::info!("{source}: {about} at {address}"),
            None => {}
        }
        self.met = true;
    }

    fn fell_ill(&mut self, why: String) {
        if self.ill.is_none() {
            let (source, address) = (&self.shared.source.name, self.shared.engine.address());
            log::warn!("{source}: the engine at {address}: {why}; trying again every {TRY_AGAIN_MAX:?}");
        }
        self.ill = Some(why);
        self.show();
    }

    /// All that is there now: what is new, what has gone meanwhile, what may have said more meanwhile.
    fn take_in(&mut self, listed: Vec<Listed>, task: &Task) {
        let mut there = BTreeSet::new();
        for listed in listed {
            there.insert(listed.id.clone());
            let alive = listed.is_alive();
            let name =
                listed.names.iter().flatten().next().map(|name| name.trim_start_matches('/').to_owned());
            let facts = Facts {
                id: listed.id,
                name: name.unwrap_or_default(),
                image: listed.image,
                labels: listed.labels.unwrap_or_default(),
                env: Vec::new(),
            };
            self.wants_reader(facts, alive);
        }
        let gone: Vec<String> = self.slots.keys().filter(|id| !there.contains(*id)).cloned().collect();
        gone.iter().for_each(|id| self.removed(id));
        let gone: Vec<String> = self.known.keys().filter(|id| !there.contains(*id)).cloned().collect();
        for id in gone {
            self.forget_known(&id);
        }
        self.start_waiting(task);
    }

    fn happened(&mut self, event: &Happening, task: &Task) {
        // One more than the event: the engine gives those of that very time again.
        self.event_ns = self.event_ns.max(Some(event.time_ns + 1));
        let id = &event.actor.id;
        match &*event.action {
            "start" => self.wants_reader(Facts::of_event(id, &event.actor.attributes), true),
            "die" => {
                let facts = Facts::of_event(id, &event.actor.attributes);
                match self.slots.get_mut(id) {
                    Some(slot) => {
                        slot.alive.store(false, Ordering::Relaxed);
                        // Its start was missed, or it could not be read: what it said is still there.
                        if !matches!(slot.state, State::Reading) {
                            self.wants_reader(facts, false);
                        }
                    }
                    None => self.wants_reader(facts, false),
                }
            }
            "destroy" | "remove" => self.removed(id),
            "rename" => {
                if let (Some(slot), Some(name)) = (self.slots.get_mut(id), event.actor.attributes.get("name"))
                {
                    slot.facts.name = name.trim_start_matches('/').to_owned();
                }
            }
            _ => {}
        }
        self.start_waiting(task);
    }

    /// Has something to read, or may have.
    fn wants_reader(&mut self, facts: Facts, alive: bool) {
        if !self.options.choice.wants(&facts, self.own.as_deref()) {
            return;
        }
        let fresh = || Slot {
            facts: facts.clone(),
            alive: Arc::default(),
            state: State::Quiet,
            next: None,
            started: false,
            removed: false,
            read_to_end: false,
            read_ns: None,
            pause: BROKEN_AGAIN,
            said_unreadable: false,
        };
        let slot = self.slots.entry(facts.id.clone()).or_insert_with(fresh);
        slot.alive.store(alive, Ordering::Relaxed);
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
    fn start_waiting(&mut self, task: &Task) {
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
        let begin = match (slot.next.take(), known) {
            (Some(next), _) => next,
            (None, Some(known)) => Begin::Known(Box::new(known)),
            (None, None) => Begin::New(self.begin_at.map(|ns| Cursor { ns, lines: 0 })),
        };
        let reader = Reader {
            shared: self.shared.clone(),
            facts: slot.facts.clone(),
            outlet: self.supply.outlet(),
            begin: Some(begin),
            follow: slot.is_alive() && !self.once,
            alive: slot.alive.clone(),
            behind: false,
        };
        slot.state = State::Reading;
        slot.started = false;
        let name = format!("c/{}", short(id));
        match self.helpers.spawn(name, READER_SILENCE_MAX, move |task| reader.run(task)) {
            Ok(_) => self.followed.add(1),
            Err(cause) => {
                // Its place went down with the reader; the ledger has it at the next start.
                log::error!("{}: {}: {cause}", self.shared.source.name, slot.facts.called());
                let again = task.now() + BROKEN_AGAIN_MAX;
                slot.state = State::Broken { why: cause.to_string(), again };
            }
        }
    }

    fn take_reports(&mut self, task: &Task) {
        for report in self.shared.reports.take() {
            self.followed.add(-1);
            self.ended(report, task);
        }
        self.helpers.reap();
    }

    fn ended(&mut self, report: Report, task: &Task) {
        let wall_ns = self.outlet.clock().wall_ns();
        let Some(slot) = self.slots.get_mut(&report.id) else { return };
        slot.next = report.next;
        let called = slot.facts.called();
        match report.how {
            How::Stopped => slot.state = State::Quiet,
            // A reader whose log has ended is often faster than the event, after which it is asked for once more.
            How::Gone { complete } => {
                let complete = complete || slot.read_to_end;
                return self.conclude(&report.id, complete);
            }
            How::Dead => {
                slot.state = State::Quiet;
                slot.read_to_end = !slot.started;
                slot.read_ns = Some(wall_ns);
                slot.pause = BROKEN_AGAIN;
                if slot.removed {
                    return self.conclude(&report.id, true);
                }
            }
            How::Unreadable(said) => {
                slot.state = State::Unreadable(said.clone());
                if slot.removed {
                    return self.conclude(&report.id, true);
                }
                if !std::mem::replace(&mut slot.said_unreadable, true) {
                    log::warn!("{}: {called}: its log cannot be read: {said}", self.shared.source.name);
                }
            }
            How::Broken(why) => {
                if slot.removed {
                    return self.conclude(&report.id, false);
                }
                log::debug!("{}: {called}: {why}", self.shared.source.name);
                let pause = slot.pause;
                slot.pause = (pause * 2).min(BROKEN_AGAIN_MAX);
                slot.state = State::Broken { why, again: task.now() + pause };
                return;
            }
        }
        if slot.started {
            let (facts, alive) = (slot.facts.clone(), slot.is_alive());
            self.wants_reader(facts, alive);
        }
    }

    /// When a reader is to be started again.
    fn next_due(&self) -> Option<Instant> {
        let again = |slot: &Slot| match &slot.state {
            State::Broken { again, .. } => Some(*again),
            _ => None,
        };
        self.slots.values().filter_map(again).min()
    }

    fn show(&mut self) {
        let known = (self.slots.len() + self.known.len()) as i64;
        self.known_gauge.add(known - std::mem::replace(&mut self.known_here, known));
        self.in_line.set(self.queue.len() as i64);
        self.gone.set(self.slots.values().filter(|slot| slot.removed).count() as i64);
        let state = |slot: &Slot| match &slot.state {
            State::Waiting => ("waiting", None),
            State::Reading => ("reading", None),
            State::Quiet => ("stopped", None),
            State::Broken { why, .. } => ("broken", Some(why.clone())),
            State::Unreadable(said) => ("unreadable", Some(said.clone())),
        };
        let container = |slot: &Slot| {
            let (state, why) = state(slot);
            let Facts { id, name, image, .. } = slot.facts.clone();
            ContainerView { id, name, image, state, why }
        };
        let view = EngineView {
            source: self.shared.source.name.to_string(),
            engine: self.shared.engine.address().to_string(),
            ill: self.ill.clone(),
            met: self.met,
            containers: self.slots.values().map(container).collect(),
            given_up: self.given_up,
        };
        *self.view.lock() = Arc::new(view);
    }
}
