//! The thread `containers`: knows who is there, and sees to it that each is read.
//!
//! A session begins with the version, opens the stream of events, lists, and lasts until the engine is ill. Between
//! sessions it only tries again, at most a second apart. An engine that is silent is asked every
//! [`PING_AFTER`] whether it is still there: one that hangs keeps its connections open.
//!
//! Always true: a container that runs and is wanted has one reader, or a time at which it gets one; the engine's
//! state is said once per change.
//!
//! Not here: who is read when (`monitor/slots.rs`), what becomes of a container that is removed (`monitor/removal.rs`).

mod removal;
mod slots;

use std::collections::{BTreeMap, VecDeque};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::select;
use parking_lot::Mutex;

use super::api::{Engine, Events, Failure, Happening, Listed};
use super::labels::{Facts, Labeller};
use super::meeting::Meeting;
use super::own::own_id;
use super::pause::Pause;
use super::reader::Shared;
use super::reports::Reports;
use super::view::{ContainerView, EngineView, View};
use super::{AVAILABLE, ContainerSourceOptions, Settings, of_place};
use crate::error::Result;
use crate::ledger::Known;
use crate::metrics::{Counter, Gauge};
use crate::monitors::{Outlet, StartAt, Supply};
use crate::tasks::{Helpers, Task};
use removal::Naming;
use slots::{Slot, State};

/// Between two tries to reach the engine: soon back, and still next to nothing.
const TRY_AGAIN: Duration = Duration::from_millis(250);
const TRY_AGAIN_MAX: Duration = Duration::from_secs(1);

/// Nothing happens on most hosts for hours.
const PING_AFTER: Duration = Duration::from_secs(10);

/// Engines drop events of those that are slow to take them, on a host that is busy for a moment.
const LIST_AFTER: Duration = Duration::from_secs(60);

/// Of whatever broke. An engine that was well for so long was well.
const THE_LONGEST_PAUSE: Duration = Duration::from_secs(10);

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
            Failure::Ill(why) | Failure::Silent(why) => End::Ill(why.to_string()),
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
    /// With `start_at: end`: containers without a place in the ledger begin there.
    meeting: Option<Meeting>,
    once: bool,
    /// The newest event.
    event_ns: Option<i64>,
    /// Why the engine is ill, as it was said.
    ill: Option<String>,
    met: bool,
    /// When the session began, once it has met the engine.
    met_at: Option<Instant>,
    /// When it was asked last who is there.
    listed_at: Option<Instant>,
    given_up: u64,
    naming: Naming,
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
        let Settings { source, options, known, folder, once, supply, helpers, resolve, metrics } = settings;
        let outlet = supply.outlet();
        let stop = outlet.stop().stop.clone();
        let engine = Engine::new(&options.address, &options.tls, resolve, stop, outlet.clock().clone())?;
        let known = known.into_iter().filter(|known| known.source == source.name);
        let known: BTreeMap<String, Known> =
            known.filter_map(|known| Some((of_place(&known)?.0.to_owned(), known))).collect();
        let meeting = match options.start_at {
            StartAt::Beginning => None,
            StartAt::End => Some(Meeting::open(&folder, &source.name)),
        };
        // A source that has read from the beginning goes on so.
        let meeting = meeting.filter(|meeting| meeting.at_ns().is_some() || known.is_empty());
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
            meeting,
            options,
            supply,
            outlet,
            helpers,
            slots: BTreeMap::new(),
            queue: VecDeque::new(),
            known,
            own: own_id(),
            once,
            event_ns: None,
            ill: None,
            met: false,
            met_at: None,
            listed_at: None,
            given_up: 0,
            naming: Naming::default(),
        })
    }

    pub fn view(&self) -> View {
        self.view.clone()
    }

    /// Ends on stop; with `--once` when all is read.
    pub fn run(mut self, task: &Task) -> Result<()> {
        if !AVAILABLE {
            return Ok(());
        }
        let mut pause = Pause::new(TRY_AGAIN, TRY_AGAIN_MAX);
        loop {
            let why = match self.session(task) {
                End::Stop | End::Done => break,
                End::Ill(why) => why,
            };
            let now = task.now();
            let met_at = self.met_at.take();
            let lasted = met_at.map_or(Duration::ZERO, |met_at| now.saturating_duration_since(met_at));
            if lasted >= THE_LONGEST_PAUSE {
                self.forgive(now);
            }
            self.fell_ill(why);
            if !self.wait_out(pause.after(lasted), task) {
                break;
            }
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
        if let Some(meeting) = &mut self.meeting
            && meeting.at_ns().is_none()
            && let Err(cause) = meeting.is_now(self.shared.engine.now_ns()?)
        {
            log::error!("{}: {cause}; if the agent dies, it will begin elsewhere", self.shared.source.name);
        }
        let mut events = Events::new(self.shared.engine.events(self.event_ns)?);
        let listed = self.list(task)?;
        self.is_well(&about, task.now());
        self.miss(&listed);
        self.see(listed, task);
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
            if self.once && !self.is_any(|state| matches!(state, State::Waiting | State::Reading)) {
                if self.is_any(|state| matches!(state, State::Missing { .. })) {
                    let listed = self.list(task)?;
                    self.miss(&listed);
                }
                return Ok(End::Done);
            }
            self.look_again(task)?;
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

    fn is_well(&mut self, about: &super::api::About, now: Instant) {
        let (source, address) = (&self.shared.source.name, self.shared.engine.address());
        match self.ill.take() {
            Some(_) => log::info!("{source}: the engine at {address} answers again"),
            None if !self.met => log::info!("{source}: {about} at {address}"),
            None => {}
        }
        self.met = true;
        self.met_at = Some(now);
    }

    fn fell_ill(&mut self, why: String) {
        if self.ill.is_none() {
            let (source, address) = (&self.shared.source.name, self.shared.engine.address());
            log::warn!("{source}: the engine at {address}: {why}; trying again every {TRY_AGAIN_MAX:?}");
        }
        self.ill = Some(why);
        self.show();
    }

    /// They are there now: what is new, what may have said more meanwhile.
    fn see(&mut self, listed: Vec<Listed>, task: &Task) {
        for listed in listed {
            let (never_ran, alive) = (listed.never_ran(), listed.is_alive());
            let facts = Facts::of_list(listed);
            if never_ran {
                self.is_only_made(&facts);
            } else {
                self.is_there(facts, alive, task.now());
            }
        }
        self.start_waiting(task);
    }

    /// Is it still in the list, whose log was not there? And once in a while: was an event lost?
    fn look_again(&mut self, task: &Task) -> std::result::Result<(), Failure> {
        let now = task.now();
        let is_due = |state: &State| matches!(state, State::Missing { look } if *look <= now);
        let is_old = |at: Instant| now.saturating_duration_since(at) >= LIST_AFTER;
        if !self.listed_at.is_some_and(is_old) && !self.is_any(is_due) {
            return Ok(());
        }
        task.doing("asking the engine who is there");
        let listed = self.list(task)?;
        self.miss(&listed);
        // Those that are dead and were read need no look.
        let has_news = |listed: &Listed| {
            let slot = self.slots.get(&listed.id);
            slot.is_none_or(|slot| is_due(&slot.state) || slot.is_alive() != listed.is_alive())
        };
        let news = listed.into_iter().filter(has_news).collect();
        self.see(news, task);
        Ok(())
    }

    fn list(&mut self, task: &Task) -> std::result::Result<Vec<Listed>, Failure> {
        self.listed_at = Some(task.now());
        self.shared.engine.list()
    }

    fn happened(&mut self, event: &Happening, task: &Task) {
        // One more than the event: the engine gives those of that very time again.
        self.event_ns = self.event_ns.max(Some(event.time_ns + 1));
        let id = &event.actor.id;
        match &*event.action {
            "start" => self.wants_reader(Facts::of_event(id, &event.actor.attributes), true),
            "die" => self.died(Facts::of_event(id, &event.actor.attributes)),
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

    fn take_reports(&mut self, task: &Task) {
        for report in self.shared.reports.take() {
            self.followed.add(-1);
            self.ended(report, task);
        }
        self.helpers.reap();
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
            State::Missing { .. } => ("missing", Some("the engine has no log of it".to_owned())),
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
