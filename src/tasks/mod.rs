//! The Task Manager: the one place where threads are spawned, named, watched and joined.
//!
//! Always true: every thread of ours has a row in the [`Table`] from before it starts until after it has ended,
//! and the scope of [`run`] does not end before they have. A panic in a body is caught at its root, becomes the
//! row's cause of death, and rings `main`.
//!
//! Not here: what the threads do, and in which order they are told to end (`agent.rs`).

mod closing;
#[cfg(test)]
pub mod faults;
mod helpers;
mod stop;
mod table;
mod wires;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Instant;

use crossbeam_utils::thread::Scope;

pub use closing::{Closed, Closer, Stop, Switch, closing};
pub use helpers::Helpers;
pub use stop::{Action, Event, StopPlan};
pub use table::{Kind, Spec, State, Table, TaskView, Words};
pub use wires::{Post, Wire, Wires};

use crate::error::{Context, Error, Result};

/// Spawns into one scope.
pub struct TaskManager<'scope, 'env> {
    scope: &'scope Scope<'env>,
    table: Arc<Table>,
}

/// A thread's view of itself, handed to its body.
pub struct Task {
    row: Arc<table::Row>,
    table: Arc<Table>,
}

/// Opens the scope: returns after every thread that was spawned in it has ended. A panic of `body` is an error
/// like any other, once they have: the caller knows an exit code for it.
#[expect(clippy::disallowed_methods, reason = "the one scope of the house")]
pub fn run<'env, T>(
    table: Arc<Table>,
    body: impl for<'scope> FnOnce(TaskManager<'scope, 'env>) -> T,
) -> Result<T> {
    let open = || crossbeam_utils::thread::scope(|scope| body(TaskManager { scope, table }));
    match catch_unwind(AssertUnwindSafe(open)) {
        Ok(ended) => ended.map_err(|_| Error::new("a thread panicked outside of its body")),
        Err(panic) => Err(Error::new(format!("main: panicked: {}", panic_text(&*panic)))),
    }
}

impl<'env> TaskManager<'_, 'env> {
    pub fn table(&self) -> &Arc<Table> {
        &self.table
    }

    /// Starts a thread. `Ok` from the body is an orderly end, `Err` or a panic a fault of the house. Linux cuts
    /// the name after 15 bytes; the table has the whole one.
    #[expect(clippy::disallowed_methods, reason = "the one place that spawns")]
    pub fn spawn(&self, spec: Spec, body: impl FnOnce(&Task) -> Result<()> + Send + 'env) -> Result<()> {
        let task = self.table.enter(spec);
        let row = task.row.clone();
        let spawned = self.scope.builder().name(row.spec.name.clone()).spawn(move |_| task.run(body));
        self.table.check_in(&row, spawned).map(drop)
    }

    /// Starts a thread that the end of the scope does not wait for: it owns what it needs, and is left behind by
    /// name if it hangs in a call that nobody can interrupt.
    pub fn spawn_loose(
        &self,
        spec: Spec,
        body: impl FnOnce(&Task) -> Result<()> + Send + 'static,
    ) -> Result<()> {
        self.table.spawn_outside(Spec { abandonable: true, ..spec }, body, |_| ()).map(drop)
    }

    /// Joins the threads outside of the scope that have ended.
    pub fn join_loose(&self) {
        self.table.join_outside(table::Row::is_over);
    }

    /// Joins the threads outside of the scope that have ended, and returns the names of those that have not.
    pub fn leave_loose(&self) -> Vec<String> {
        self.table.leave_outside()
    }
}

impl Task {
    fn run(&self, body: impl FnOnce(&Task) -> Result<()>) {
        self.row.set_tid(rustix::thread::gettid().as_raw_nonzero().get());
        self.row.enter(State::Running);
        let how = catch_unwind(AssertUnwindSafe(|| body(self)))
            .unwrap_or_else(|panic| Err(Error::new(format!("panicked: {}", panic_text(&*panic)))));
        self.table.ended(&self.row, how);
    }

    pub fn name(&self) -> &str {
        &self.row.spec.name
    }

    pub fn now(&self) -> Instant {
        self.table.clock().now()
    }

    /// Busy, and alive.
    pub fn beat(&self) {
        self.row.beat(self.now()); // first: nobody shall see it busy with the beat of before its wait
        self.row.enter(State::Running);
    }

    /// Busy with this from now on: a beat with words.
    pub fn doing(&self, what: impl Into<Words>) {
        self.say(what.into());
        self.beat();
    }

    /// About to wait, for as long as it takes: need not beat until the next [`Task::beat`].
    pub fn waits_for(&self, what: impl Into<Words>) {
        self.say(what.into());
        self.row.enter(State::Waiting);
    }

    fn say(&self, what: Words) {
        #[cfg(test)]
        faults::strike(self.name(), &what);
        self.row.say(what);
    }

    /// A fault of the house that this thread survives, because others need it to the end: the agent stops in
    /// an orderly way, as if the thread had ended with it. The first one counts.
    pub fn fault(&self, cause: Error) {
        self.table.faulted(&self.row, cause);
    }

    /// Told to end, and on the way.
    pub fn stopping(&self) {
        self.row.enter(State::Stopping);
    }
}

impl Table {
    fn enter(self: &Arc<Table>, spec: Spec) -> Task {
        Task { row: self.add(spec), table: self.clone() }
    }

    /// Starts a thread outside of the scope. `last` is told its id as the last thing that happens in it.
    #[expect(clippy::disallowed_methods, reason = "the one place that spawns outside of the scope")]
    fn spawn_outside(
        self: &Arc<Table>,
        spec: Spec,
        body: impl FnOnce(&Task) -> Result<()> + Send + 'static,
        last: impl FnOnce(u64) + Send + 'static,
    ) -> Result<u64> {
        let task = self.enter(spec);
        let row = task.row.clone();
        let life = move || {
            task.run(body);
            last(task.row.id);
        };
        let spawned = std::thread::Builder::new().name(row.spec.name.clone()).spawn(life);
        let (id, thread) = (row.id, self.check_in(&row, spawned)?);
        self.keep_outside(row, thread);
        Ok(id)
    }

    /// Joins those that have ended, and returns the names of those that have not: they are left behind.
    fn leave_outside(&self) -> Vec<String> {
        self.join_outside(table::Row::is_over);
        self.outside_names()
    }

    /// A thread that did not start has no row.
    fn check_in<T>(&self, row: &table::Row, spawned: std::io::Result<T>) -> Result<T> {
        if spawned.is_err() {
            self.forget(row.id);
        }
        spawned.context(|| format!("could not start the thread {}", row.spec.name))
    }
}

/// What a panic said.
pub fn panic_text(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "no message".into())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::clock::Clock;

    fn table() -> (Arc<Table>, Clock) {
        let clock = Clock::by_hand(0);
        (Arc::new(Table::new(clock.clone())), clock)
    }

    fn spec() -> Spec {
        Spec::carrier("one", Duration::from_secs(5))
    }

    #[test]
    fn a_panic_of_main_is_an_error_and_not_the_end_of_the_process() {
        let (table, _) = table();
        let error = run::<()>(table, |_| panic!("on purpose")).unwrap_err();
        assert!(error.to_string().ends_with("panicked: on purpose"), "{error}");
    }

    #[test]
    fn a_fault_stops_the_agent_while_its_thread_goes_on() {
        let (table, _) = table();
        let task = table.enter(spec());
        task.fault(Error::new("first"));
        task.fault(Error::new("second"));
        assert!(table.changed().try_recv().is_ok());
        assert_eq!(table.fault(false).unwrap(), "one: first");
        assert_eq!(table.alive(|_| true), ["one"]);
        task.run(|_| Ok(()));
        assert_eq!(table.fault(true).unwrap(), "one: first", "an orderly end does not undo it");
    }

    #[test]
    fn a_task_that_waits_is_not_stuck_however_long() {
        let (table, clock) = table();
        let task = table.enter(spec());
        let (mut asked, mut seen) = (Vec::new(), Vec::new());
        for (what, step_s) in [("beat", 0), ("beat", 6), ("wait", 0), ("wait", 60), ("beat", 0), ("beat", 4)]
        {
            if step_s == 0 {
                if what == "beat" { task.beat() } else { task.waits_for("nothing") }
            }
            clock.advance(Duration::from_secs(step_s));
            asked.push((table.stuck().len(), table.view()[0].state == State::Stuck));
            seen.push(table.newly_stuck().len());
        }
        assert_eq!(seen, [0, 1, 0, 0, 0, 0]);
        assert_eq!(
            asked,
            [0, 1, 0, 0, 0, 0].map(|stuck| (stuck, stuck == 1)),
            "whoever asks need not wait for somebody who looks"
        );
    }

    #[test]
    fn one_that_may_be_left_behind_is_waited_for_only_while_it_is_idle() {
        let (table, _) = table();
        let task = table.enter(Spec { abandonable: true, ..spec() });
        task.waits_for("a name");
        assert_eq!(table.alive(|_| true), ["one"]);
        task.doing("looking up");
        assert!(table.alive(|_| true).is_empty());
    }
}
