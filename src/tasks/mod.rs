//! The Task Manager: the one place where threads are spawned, named, watched and joined.
//!
//! Always true: every thread of ours has a row in the [`Table`] from before it starts until after it has ended,
//! and the scope of [`run`] does not end before they have. A panic in a body is caught at its root, becomes the
//! row's cause of death, and rings `main`.
//!
//! Not here: what the threads do, and in which order they are told to end (`agent.rs`).

mod closing;
mod stop;
mod table;

use std::borrow::Cow;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Instant;

use crossbeam_utils::thread::Scope;
use parking_lot::Mutex;

pub use closing::{Closed, Closer, Stop, Switch, closing};
pub use stop::{Action, Event, StopPlan};
pub use table::{Kind, Spec, State, Table, TaskView};

use crate::error::{Context, Error, Result};

/// Spawns into one scope.
pub struct TaskManager<'scope, 'env> {
    scope: &'scope Scope<'env>,
    table: Arc<Table>,
    /// Threads outside of the scope: those that may be left behind.
    loose: Mutex<Vec<(Arc<table::Row>, JoinHandle<()>)>>,
}

/// A thread's view of itself, handed to its body.
pub struct Task {
    row: Arc<table::Row>,
    table: Arc<Table>,
}

/// Opens the scope: returns after every thread that was spawned in it has ended.
#[expect(clippy::disallowed_methods, reason = "the one scope of the house")]
pub fn run<'env, T>(
    table: Arc<Table>,
    body: impl for<'scope> FnOnce(TaskManager<'scope, 'env>) -> T,
) -> Result<T> {
    crossbeam_utils::thread::scope(|scope| body(TaskManager { scope, table, loose: Mutex::default() }))
        .map_err(|_| Error::new("a thread panicked outside of its body"))
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
    #[expect(clippy::disallowed_methods, reason = "the one place that spawns")]
    pub fn spawn_loose(
        &self,
        spec: Spec,
        body: impl FnOnce(&Task) -> Result<()> + Send + 'static,
    ) -> Result<()> {
        let task = self.table.enter(Spec { abandonable: true, ..spec });
        let row = task.row.clone();
        let builder = std::thread::Builder::new().name(row.spec.name.clone());
        let spawned = self.table.check_in(&row, builder.spawn(move || task.run(body)))?;
        self.loose.lock().push((row, spawned));
        Ok(())
    }

    /// Joins the loose threads that have ended, and returns the names of those that have not.
    pub fn leave_loose(&self) -> Vec<String> {
        let loose = std::mem::take(&mut *self.loose.lock());
        let (over, hanging): (Vec<_>, Vec<_>) = loose.into_iter().partition(|(row, _)| row.is_over());
        for (_, thread) in over {
            let _ = thread.join(); // its panic, if any, is in its row
        }
        hanging.into_iter().map(|(row, _)| row.spec.name.clone()).collect()
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
        self.row.enter(State::Running);
        self.row.beat(self.now());
    }

    /// Busy with this from now on: a beat with words.
    pub fn doing(&self, what: impl Into<Cow<'static, str>>) {
        self.row.say(what);
        self.beat();
    }

    /// About to wait, for as long as it takes: need not beat until the next [`Task::beat`].
    pub fn waits_for(&self, what: impl Into<Cow<'static, str>>) {
        self.row.say(what);
        self.row.enter(State::Waiting);
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
