//! What `main` does once everything runs: wait for ends, and see to it that they come.
//!
//! It carries out what the [`StopPlan`] says, and nothing else decides when the agent ends: signals, faults, the
//! end of all sources and `--max-time` are events of the plan. It joins by looking at the table; a thread that is
//! still alive at the deadline is named and left behind.

use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, at, never, select};

use super::lives::Desk;
use super::signals::Signal;
use super::{Exit, Orders, SILENCE_MAX, farewell};
use crate::clock::{Clock, next_tick};
use crate::config::Config;
use crate::error::Result;
use crate::ledger::{Books, BooksView};
use crate::tasks::{self, Action, Event, Kind, Spec, StopPlan, Switch, Table, TaskManager};

/// How often `main` looks for tasks that are silent although they are busy. `stats` does so with each sample; this is for
/// the time when `stats` itself hangs.
const WATCH_INTERVAL: Duration = Duration::from_secs(60);

/// `run --once` gives up when nothing has moved for so long, unless it was given a time of its own.
const STANDSTILL_MAX: Duration = Duration::from_secs(30);

/// How often `run --once` looks whether something has moved, and reports it.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(500);

/// The helper that reads the configuration after SIGHUP.
const RELOAD: &str = "reload";

/// What `main` does once everything runs: wait for ends, and see to it that they come.
pub(super) struct Vigil<'a> {
    pub table: &'a Table,
    pub clock: &'a Clock,
    pub switch: Switch,
    pub plan: StopPlan,
    pub books: &'a BooksView,
    pub desk: &'a Desk,
    /// The configuration of the next life: this stop is a reload.
    pub next: Option<Config>,
    /// SIGHUP came, and the configuration was not read since.
    pub read_again: bool,
    /// Each once: whoever dies takes others along, and the cause may be seen after its effects.
    pub faults: Vec<String>,
}

enum Wake {
    Signal(Signal),
    Stop(&'static str),
    NewConfig,
    TaskEnded,
    Due,
}

impl Vigil<'_> {
    pub fn wait(
        mut self,
        started: Result<()>,
        signals: &Receiver<Signal>,
        mut stdout_closed: Receiver<()>,
        orders: &Orders<'_>,
        tasks: &TaskManager<'_, '_>,
        ender: tasks::Closer,
    ) -> (Exit, Option<Config>) {
        if let Err(error) = started {
            self.fault(error.to_string());
        }
        let began = self.clock.now();
        let mut watch_at = next_tick(began, WATCH_INTERVAL);
        let mut progress = orders.once.then_some(Progress { next: began, movement: 0, moved: began });
        // A time that no clock will ever show is no limit.
        let time_is_up = orders.max_time.and_then(|max_time| began.checked_add(max_time));
        let mut stop_orders = orders.stop.clone().unwrap_or_else(never);
        let leave_by = loop {
            // Looked at before each wait, the first one too: if no thread could be started, none will ring.
            let now = self.clock.now();
            let event = if self.alive().is_empty() { Event::AllEnded } else { Event::Tick };
            let leave_by = self.plan.leave_by(now);
            match self.plan.handle(event, now) {
                Some(Action::Leave) => break leave_by,
                Some(action) => self.act(action),
                None => {}
            }
            let mut due = vec![watch_at];
            due.extend(self.plan.next_deadline());
            due.extend(progress.as_ref().map(|progress| progress.next));
            due.extend(time_is_up.filter(|_| !self.plan.is_stopping()));
            let due = at(due.into_iter().min().unwrap_or(watch_at));
            let wake = select! {
                recv(self.table.changed()) -> _ => Wake::TaskEnded,
                // Whoever calls holds the other ends of these two.
                recv(signals) -> signal => signal.map_or(Wake::Due, Wake::Signal),
                recv(self.desk.bell()) -> _ => Wake::NewConfig,
                recv(stdout_closed) -> gone => match gone {
                    Ok(()) => Wake::Stop("stdout was closed"),
                    Err(_) => { stdout_closed = never(); continue }
                },
                recv(stop_orders) -> _ => { stop_orders = never(); Wake::Stop("told to") },
                recv(due) -> _ => Wake::Due,
            };
            let now = self.clock.now();
            match wake {
                Wake::Signal(Signal::Stop(name)) => self.stop(name),
                Wake::Signal(Signal::Reload) => {
                    self.read_again = true;
                    self.read_config(tasks);
                }
                Wake::NewConfig => self.desk.take().into_iter().for_each(|config| self.reload(config)),
                // Unlike a second signal, nobody asks for haste here.
                Wake::Stop(why) if !self.is_ending() => self.stop(why),
                Wake::Stop(_) => {}
                Wake::TaskEnded => {
                    self.look_for_faults();
                    tasks.join_loose();
                    self.read_config(tasks);
                }
                Wake::Due => {
                    if now >= watch_at {
                        self.table.report_silence();
                        watch_at = next_tick(now, WATCH_INTERVAL);
                    }
                    if let Some(progress) = progress.as_mut().filter(|progress| now >= progress.next) {
                        let books = self.books.lock().clone();
                        orders.progress.inspect(|report| report(&books));
                        if progress.stands_still(&books, now)
                            && orders.max_time.is_none()
                            && !self.plan.is_stopping()
                        {
                            log::error!("nothing has moved for {STANDSTILL_MAX:?}");
                            self.stop("nothing moves");
                        }
                    }
                    if time_is_up.is_some_and(|time| now >= time) && !self.plan.is_stopping() {
                        self.stop("the time is up");
                    }
                }
            }
        };
        if let Some(progress) = orders.progress.filter(|_| orders.once) {
            progress(&self.books.lock().clone());
        }
        self.leave(leave_by, tasks, ender)
    }

    /// Everybody on the path has ended: now those who served them.
    fn leave(
        mut self,
        leave_by: Instant,
        tasks: &TaskManager<'_, '_>,
        ender: tasks::Closer,
    ) -> (Exit, Option<Config>) {
        self.switch.abort(); // nobody waits any more; ends idle connections
        drop(ender);
        let deadline = at(leave_by);
        while !self.table.alive(|_| true).is_empty() {
            select! {
                recv(self.table.changed()) -> _ => self.look_for_faults(),
                recv(deadline) -> _ => self.give_up(&self.table.alive(|_| true)),
            }
        }
        for name in tasks.leave_loose() {
            log::warn!("{name}: left behind in a call that does not return; it holds no data");
        }
        self.look_for_faults(); // the last one to end may have been the one that failed
        let exit = self.exit();
        // Who was at fault once is not let loose again.
        (exit, self.next.filter(|_| self.faults.is_empty()))
    }

    fn exit(&self) -> Exit {
        let books = self.books.lock().clone();
        match &self.faults[..] {
            [_, ..] => {
                log::error!("stopped because of a fault: {}", self.faults.join("; "));
                Exit::Fault
            }
            [] if books.ill.is_some() => Exit::Fault,
            [] if books.all_delivered() => {
                log::info!("stopped: everything that was read has been answered for");
                Exit::Delivered
            }
            [] => {
                log::warn!("{}", farewell::pending(&books));
                Exit::Pending
            }
        }
    }

    /// On the path, and still alive.
    fn alive(&self) -> Vec<String> {
        self.table.alive(|name| !matches!(name, "stats" | "status" | "signals" | "resolver" | RELOAD))
    }

    /// For good: no reload.
    fn is_ending(&self) -> bool {
        self.plan.is_stopping() && self.next.is_none()
    }

    /// In a helper, since a file can hang: one at a time, however many signals come.
    fn read_config(&mut self, tasks: &TaskManager<'_, '_>) {
        if !self.read_again || self.table.is_there(RELOAD) {
            return;
        }
        self.read_again = false;
        let desk = self.desk.clone();
        let spec = Spec { kind: Kind::Helper, ..Spec::carrier(RELOAD, SILENCE_MAX) };
        let spawned = tasks.spawn_loose(spec, move |task| {
            task.doing("reading the configuration");
            let _ = desk.ask("SIGHUP"); // the log knows what is wrong
            Ok(())
        });
        if let Err(error) = spawned {
            log::error!("SIGHUP: {error}; nothing is reloaded");
        }
    }

    /// An orderly stop, with another life to come. A newer configuration takes the place of the one before it.
    fn reload(&mut self, config: Config) {
        if self.is_ending() {
            return log::warn!("reload: the agent is stopping; nothing is reloaded");
        }
        self.next = Some(config);
        if !self.plan.is_stopping() {
            log::info!("reload: the new configuration is right; stopping, to start anew with it");
            self.begin();
        }
    }

    /// The stop wins over a reload that is under way; its time began with it.
    fn stop(&mut self, why: &str) {
        self.desk.close();
        if self.next.take().is_some() {
            return log::info!("stopping: {why}; the reload is given up");
        }
        if self.plan.is_stopping() {
            log::warn!("{why}: ending now, without waiting for what is under way");
        } else {
            log::info!("stopping: {why}");
        }
        self.begin();
    }

    fn begin(&mut self) {
        if let Some(action) = self.plan.handle(Event::Stop, self.clock.now()) {
            self.act(action);
        }
    }

    fn act(&mut self, action: Action) {
        match action {
            Action::CloseStop => self.switch.stop(),
            Action::CloseAbort => self.switch.abort(),
            Action::GiveUp => self.give_up(&self.alive()),
            Action::Leave => {}
        }
    }

    #[expect(clippy::disallowed_methods, reason = "the scope would wait for the thread that hangs")]
    fn give_up(&self, hanging: &[String]) {
        log::error!("these threads did not end in time and are left behind: {}", hanging.join(", "));
        std::process::exit(Exit::Stuck as i32);
    }

    fn look_for_faults(&mut self) {
        for fault in self.table.faults(self.plan.is_stopping()) {
            self.fault(fault);
        }
    }

    fn fault(&mut self, fault: String) {
        if !self.faults.contains(&fault) {
            log::error!("{fault}");
            self.faults.push(fault);
            if !self.plan.is_stopping() {
                self.stop("a fault");
            }
        }
    }
}

/// How far `run --once` is.
struct Progress {
    next: Instant,
    movement: u64,
    moved: Instant,
}

impl Progress {
    fn stands_still(&mut self, books: &Books, now: Instant) -> bool {
        self.next = now + PROGRESS_INTERVAL;
        if books.movement() != self.movement {
            self.movement = books.movement();
            self.moved = now;
        }
        now.saturating_duration_since(self.moved) > STANDSTILL_MAX
    }
}
