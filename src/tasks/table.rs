//! Who lives in this house: one row per thread, and what each is doing now.
//!
//! Rows are written by the thread itself (beats, states: atomics and one short lock) and read by everybody.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, bounded};
use serde::Serialize;

use crate::clock::Clock;
use crate::error::Error;
use crate::sync::{AtomicI32, AtomicU8, AtomicU64, Mutex, Ordering};

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    Starting = 0,
    Running,
    /// Waits for something and need not beat.
    Waiting,
    Stopping,
    Finished,
    Failed,
    /// Running, and silent for longer than it may be.
    Stuck,
}

const STATES: [State; 7] = [
    State::Starting,
    State::Running,
    State::Waiting,
    State::Stopping,
    State::Finished,
    State::Failed,
    State::Stuck,
];

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// Stays in the table to the end. One that fails, or ends before it may, stops the agent.
    Core,
    /// Comes and goes; leaves the table as soon as it has ended in order.
    Helper,
}

/// What a thread is called and what is expected of it.
#[derive(Clone, Debug)]
pub struct Spec {
    pub name: String,
    pub kind: Kind,
    /// A busy task that is silent for longer is stuck.
    pub silence_max: Duration,
    /// Ends only when told so: an earlier end is a fault.
    pub until_stop: bool,
    /// Is not waited for at the end: it holds no data and may hang in a call that cannot be interrupted.
    pub abandonable: bool,
}

impl Spec {
    /// Carries data: ends by itself once everything above it has ended.
    pub fn carrier(name: impl Into<String>, silence_max: Duration) -> Spec {
        Spec { name: name.into(), kind: Kind::Core, silence_max, until_stop: false, abandonable: false }
    }

    /// Ends when it is told so, and not before.
    pub fn keeper(name: impl Into<String>, silence_max: Duration) -> Spec {
        Spec { until_stop: true, ..Spec::carrier(name, silence_max) }
    }
}

/// What a thread does, for people. To say it takes no memory, where the words are there already.
#[derive(Clone, Debug)]
pub enum Words {
    Fixed(&'static str),
    Shared(Arc<str>),
}

impl From<&'static str> for Words {
    fn from(words: &'static str) -> Words {
        Words::Fixed(words)
    }
}

impl From<&Arc<str>> for Words {
    fn from(words: &Arc<str>) -> Words {
        Words::Shared(words.clone())
    }
}

impl From<String> for Words {
    fn from(words: String) -> Words {
        Words::Shared(words.into())
    }
}

impl std::ops::Deref for Words {
    type Target = str;

    fn deref(&self) -> &str {
        match self {
            Words::Fixed(words) => words,
            Words::Shared(words) => words,
        }
    }
}

/// One row, shared between the thread and the table.
pub struct Row {
    pub id: u64,
    pub spec: Spec,
    tid: AtomicI32,
    state: AtomicU8,
    started: Instant,
    /// Milliseconds after `started`.
    last_beat: AtomicU64,
    doing: Mutex<Words>,
    ended: Mutex<Option<std::result::Result<(), Error>>>,
    /// It survived this one.
    fault: Mutex<Option<Error>>,
}

impl Row {
    /// By exchange, like [`Row::mark_stuck`]: all changes of a state then stand in one order for everybody.
    pub(super) fn enter(&self, state: State) {
        self.state.swap(state as u8, Ordering::AcqRel);
    }

    pub fn state(&self) -> State {
        STATES[self.state.load(Ordering::Acquire) as usize]
    }

    pub(super) fn beat(&self, now: Instant) {
        let since = now.saturating_duration_since(self.started).as_millis() as u64;
        self.last_beat.store(since, Ordering::Relaxed);
    }

    pub(super) fn say(&self, doing: impl Into<Words>) {
        *self.doing.lock() = doing.into();
    }

    pub(super) fn set_tid(&self, tid: i32) {
        self.tid.store(tid, Ordering::Release);
    }

    pub(super) fn end(&self, how: std::result::Result<(), Error>) {
        self.enter(if how.is_ok() { State::Finished } else { State::Failed });
        *self.ended.lock() = Some(how);
    }

    /// `false`: it is not busy any more.
    fn mark_stuck(&self, seen: State) -> bool {
        let swap =
            self.state.compare_exchange(seen as u8, State::Stuck as u8, Ordering::AcqRel, Ordering::Relaxed);
        swap.is_ok()
    }

    pub fn is_over(&self) -> bool {
        matches!(self.state(), State::Finished | State::Failed)
    }

    fn silence(&self, now: Instant) -> Duration {
        let beat = Duration::from_millis(self.last_beat.load(Ordering::Relaxed));
        now.saturating_duration_since(self.started + beat)
    }

    /// What it looks like to whoever asks: one that has become silent since somebody looked for that is stuck too.
    fn looks(&self, now: Instant) -> State {
        let state = self.state();
        if self.is_too_silent(state, now) { State::Stuck } else { state }
    }

    fn is_too_silent(&self, state: State, now: Instant) -> bool {
        matches!(state, State::Running | State::Starting) && self.silence(now) > self.spec.silence_max
    }
}

/// A row as it is shown.
#[derive(Clone, Debug, Serialize)]
pub struct TaskView {
    pub id: u64,
    pub name: String,
    pub kind: Kind,
    pub state: State,
    pub tid: i32,
    pub doing: String,
    pub age_ms: u64,
    pub silent_ms: u64,
    /// User and system time, from `/proc/self/task/<tid>/stat`; `None` once it has ended.
    pub cpu_ms: Option<u64>,
    pub error: Option<String>,
}

/// All threads of one agent.
pub struct Table {
    clock: Clock,
    rows: Mutex<BTreeMap<u64, Arc<Row>>>,
    next_id: AtomicU64,
    helpers_ended: AtomicU64,
    /// Threads outside of the scope, until they are joined.
    outside: Mutex<Vec<(Arc<Row>, JoinHandle<()>)>>,
    changed: (Sender<()>, Receiver<()>),
}

impl Table {
    pub fn new(clock: Clock) -> Table {
        Table {
            clock,
            rows: Mutex::default(),
            next_id: AtomicU64::new(1),
            helpers_ended: AtomicU64::new(0),
            outside: Mutex::default(),
            changed: bounded(1),
        }
    }

    pub(super) fn clock(&self) -> &Clock {
        &self.clock
    }

    pub(super) fn add(&self, spec: Spec) -> Arc<Row> {
        let row = Arc::new(Row {
            id: self.next_id.fetch_add(1, Ordering::Relaxed),
            spec,
            tid: AtomicI32::new(0),
            state: AtomicU8::new(State::Starting as u8),
            started: self.clock.now(),
            last_beat: AtomicU64::new(0),
            doing: Mutex::new("".into()),
            ended: Mutex::new(None),
            fault: Mutex::new(None),
        });
        self.rows.lock().insert(row.id, row.clone());
        row
    }

    /// Called by the thread as the last thing it does.
    pub(super) fn ended(&self, row: &Row, how: std::result::Result<(), Error>) {
        let in_order = how.is_ok();
        row.end(how);
        if row.spec.kind == Kind::Helper && in_order {
            self.rows.lock().remove(&row.id);
            self.helpers_ended.fetch_add(1, Ordering::Relaxed);
        }
        let _ = self.changed.0.try_send(()); // one slot: a hint to look, never waited on
    }

    pub(super) fn faulted(&self, row: &Row, cause: Error) {
        row.fault.lock().get_or_insert(cause);
        let _ = self.changed.0.try_send(());
    }

    pub(super) fn forget(&self, id: u64) {
        self.rows.lock().remove(&id);
    }

    pub(super) fn keep_outside(&self, row: Arc<Row>, thread: JoinHandle<()>) {
        self.outside.lock().push((row, thread));
    }

    /// Joins those outside of the scope that `which` names: they must have ended, or be about to.
    pub(super) fn join_outside(&self, which: impl Fn(&Row) -> bool) {
        let over: Vec<_> = self.outside.lock().extract_if(.., |(row, _)| which(row)).collect();
        for (_, thread) in over {
            let _ = thread.join(); // its panic, if any, is in its row
        }
    }

    pub(super) fn outside_names(&self) -> Vec<String> {
        self.outside.lock().iter().map(|(row, _)| row.spec.name.clone()).collect()
    }

    /// How many helpers there are that were not joined.
    pub fn helpers(&self) -> usize {
        self.outside.lock().iter().filter(|(row, _)| row.spec.kind == Kind::Helper).count()
    }

    /// Rings after a task has ended; look at the table after each ring.
    pub fn changed(&self) -> &Receiver<()> {
        &self.changed.1
    }

    fn rows(&self) -> Vec<Arc<Row>> {
        self.rows.lock().values().cloned().collect()
    }

    /// Who failed, or ended although it should not have, and why. One fault brings others with it, and they are
    /// seen in any order.
    pub fn faults(&self, stopping: bool) -> Vec<String> {
        let said = |row: &Row, cause: &dyn std::fmt::Display| format!("{}: {cause}", row.spec.name);
        let of = |row: Arc<Row>| {
            let survived = row.fault.lock().as_ref().map(|cause| said(&row, cause));
            let ended = match &*row.ended.lock() {
                Some(Err(cause)) => Some(said(&row, cause)),
                Some(Ok(())) if row.spec.until_stop && !stopping => {
                    Some(said(&row, &"ended before it was told to"))
                }
                _ => None,
            };
            survived.into_iter().chain(ended)
        };
        self.rows().into_iter().flat_map(of).collect()
    }

    #[cfg(test)]
    pub fn fault(&self, stopping: bool) -> Option<String> {
        self.faults(stopping).into_iter().next()
    }

    /// Names of those that have not ended and are to be waited for. `among`: by name. One that may be left
    /// behind is waited for as long as it does nothing that could hang.
    pub fn alive(&self, among: impl Fn(&str) -> bool) -> Vec<String> {
        let held_up = |row: &Row| row.spec.abandonable && row.state() != State::Waiting;
        let alive = |row: &Arc<Row>| !row.is_over() && !held_up(row) && among(&row.spec.name);
        self.rows().into_iter().filter(alive).map(|row| row.spec.name.clone()).collect()
    }

    /// Whether one of this name lives.
    pub fn is_there(&self, name: &str) -> bool {
        self.rows.lock().values().any(|row| row.spec.name == name && !row.is_over())
    }

    /// Says who is busy and has been silent for too long, once; they are marked from then on.
    pub fn report_silence(&self) {
        for name in self.newly_stuck() {
            log::error!("{name}: busy and silent for too long; see /debug/threads");
        }
    }

    /// Marks the tasks that are busy and have been silent for too long; returns those that were not marked
    /// before. One that beats again is running again.
    pub(super) fn newly_stuck(&self) -> Vec<String> {
        let now = self.clock.now();
        // By exchange: one that has begun to wait meanwhile would stay marked until somebody wakes it.
        let stuck = |row: &Arc<Row>| {
            let state = row.state();
            row.is_too_silent(state, now) && row.mark_stuck(state)
        };
        self.rows().into_iter().filter(stuck).map(|row| row.spec.name.clone()).collect()
    }

    /// Names of the tasks that are stuck, be it said yet or not.
    pub fn stuck(&self) -> Vec<String> {
        let now = self.clock.now();
        let stuck = |row: &Arc<Row>| row.looks(now) == State::Stuck;
        self.rows().into_iter().filter(stuck).map(|row| row.spec.name.clone()).collect()
    }

    /// How many rows there are: of those that live, and of those of the core that have ended.
    pub fn len(&self) -> usize {
        self.rows.lock().len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How many helpers have come and gone.
    pub fn helpers_ended(&self) -> u64 {
        self.helpers_ended.load(Ordering::Relaxed)
    }

    pub fn view(&self) -> Vec<TaskView> {
        let now = self.clock.now();
        self.rows()
            .into_iter()
            .map(|row| TaskView {
                id: row.id,
                name: row.spec.name.clone(),
                kind: row.spec.kind,
                state: row.looks(now),
                tid: row.tid.load(Ordering::Acquire),
                doing: row.doing.lock().to_string(),
                age_ms: now.saturating_duration_since(row.started).as_millis() as u64,
                silent_ms: row.silence(now).as_millis() as u64,
                cpu_ms: if row.is_over() { None } else { cpu_ms(row.tid.load(Ordering::Acquire)) },
                error: row.ended.lock().as_ref().and_then(|how| how.as_ref().err().map(Error::to_string)),
            })
            .collect()
    }
}

/// User and system time of a thread of this process. Fields 14 and 15 of proc(5)'s `stat`, in clock ticks.
fn cpu_ms(tid: i32) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/self/task/{tid}/stat")).ok()?;
    let after_name = stat.rsplit_once(')')?.1; // the name may hold blanks and brackets
    let ticks: u64 =
        after_name.split_ascii_whitespace().skip(11).take(2).filter_map(|t| t.parse::<u64>().ok()).sum();
    Some(ticks * 1000 / rustix::param::clock_ticks_per_second())
}

/// Every interleaving of a thread that lives and of whoever looks for silence meanwhile.
#[cfg(all(test, feature = "model"))]
mod model {
    use super::*;

    #[test]
    fn whoever_waits_or_has_ended_is_never_taken_for_stuck() {
        loom::model(|| {
            let clock = Clock::by_hand(0);
            let table = Arc::new(Table::new(clock.clone()));
            let row = table.add(Spec::carrier("worker/0", Duration::from_secs(1)));
            row.enter(State::Running);
            clock.advance(Duration::from_secs(2)); // silent for too long, from the first look on
            let (its_row, its_table) = (row.clone(), table.clone());
            let thread = loom::thread::spawn(move || {
                its_row.enter(State::Waiting);
                its_table.ended(&its_row, Ok(()));
            });
            table.newly_stuck();
            thread.join().expect("a life without panics");
            assert_eq!(row.state(), State::Finished, "main would wait for it until the deadline");
            assert!(table.alive(|_| true).is_empty());
        });
    }
}
