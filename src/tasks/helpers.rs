//! Threads that come and go while the agent runs: a reader for each container, say.
//!
//! A scope remembers every spawn until it ends, so these live outside of it: they own what they need, and the
//! thread that spawned them joins them as soon as they have ended. In its loop that looks so:
//!
//! ```text
//! select! {
//!     recv(helpers.bell()) -> _ => for id in helpers.reap() { … },
//!     …
//! }
//! ```
//!
//! Always true: one that has ended in order leaves the table at once, and the process when it is reaped. One that
//! failed or panicked is a fault of the house like any other thread: it stays in the table with its cause, and the
//! agent stops. `main` waits for helpers at the stop as for everybody on the path, and joins those that nobody has
//! reaped.

use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, bounded};
use parking_lot::Mutex;

use super::{Kind, Spec, Table, Task};
use crate::error::Result;

/// The helpers of one thread, in its hands.
pub struct Helpers {
    table: Arc<Table>,
    /// Ids of those that have ended and were not reaped.
    ended: Arc<Mutex<Vec<u64>>>,
    bell: (Sender<()>, Receiver<()>),
}

impl Helpers {
    pub fn new(table: Arc<Table>) -> Helpers {
        Helpers { table, ended: Arc::default(), bell: bounded(1) }
    }

    /// Starts one, and returns its id. `Ok` from the body is an orderly end, `Err` or a panic a fault of the house;
    /// illness of the world is the body's own affair. It must end soon after `stop`, and at once on `abort`. Errors:
    /// the system has no thread left.
    pub fn spawn(
        &mut self,
        name: impl Into<String>,
        silence_max: Duration,
        body: impl FnOnce(&Task) -> Result<()> + Send + 'static,
    ) -> Result<u64> {
        let spec = Spec { kind: Kind::Helper, ..Spec::carrier(name, silence_max) };
        let (ended, bell) = (self.ended.clone(), self.bell.0.clone());
        self.table.spawn_outside(spec, body, move |id| {
            ended.lock().push(id);
            let _ = bell.try_send(()); // one slot: a hint to look, never waited on
        })
    }

    /// Rings after some have ended; reap after each ring. Never closes.
    pub fn bell(&self) -> &Receiver<()> {
        &self.bell.1
    }

    /// Joins those that have ended, in the order in which they did, and returns their ids. Waits for nobody who
    /// does anything any more.
    pub fn reap(&mut self) -> Vec<u64> {
        let ended = std::mem::take(&mut *self.ended.lock());
        self.table.join_outside(|row| ended.contains(&row.id));
        ended
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Clock;
    use crate::error::Error;
    use crate::tasks::State;

    const PATIENCE: Duration = Duration::from_secs(10);

    fn helpers() -> Helpers {
        Helpers::new(Arc::new(Table::new(Clock::real())))
    }

    /// Lives until its sender is dropped.
    fn spawn(helpers: &mut Helpers, how: Result<()>) -> (u64, Sender<()>) {
        let (end, ended) = bounded(0);
        let body = move |task: &Task| {
            task.waits_for("its end");
            let _ = ended.recv();
            how
        };
        (helpers.spawn("c/1", PATIENCE, body).unwrap(), end)
    }

    fn end(helpers: &mut Helpers, end: Sender<()>) -> Vec<u64> {
        drop(end);
        helpers.bell().recv_timeout(PATIENCE).expect("it ends");
        helpers.reap()
    }

    /// Rows, threads that were not joined, and those that have come and gone.
    fn counts(helpers: &Helpers) -> (usize, usize, u64) {
        (helpers.table.len(), helpers.table.helpers(), helpers.table.helpers_ended())
    }

    #[test]
    fn one_that_ended_is_joined_at_once_and_gone_from_the_table_and_the_process() {
        let mut helpers = helpers();
        let (first, end_first) = spawn(&mut helpers, Ok(()));
        let (second, end_second) = spawn(&mut helpers, Ok(()));
        let view = loop {
            let view = helpers.table.view();
            if view.iter().all(|row| row.tid != 0) {
                break view;
            }
            std::thread::yield_now();
        };
        assert_eq!((view[1].name.as_str(), view[1].kind), ("c/1", Kind::Helper));
        assert_eq!(counts(&helpers), (2, 2, 0));
        assert_eq!(end(&mut helpers, end_second), [second]);
        assert_eq!(counts(&helpers), (1, 1, 1));
        assert!(!std::path::Path::new(&format!("/proc/self/task/{}", view[1].tid)).exists());
        assert_eq!(end(&mut helpers, end_first), [first]);
        assert_eq!(counts(&helpers), (0, 0, 2));
        assert_eq!(helpers.reap(), [0; 0]);
        assert!(helpers.table.faults(false).is_empty());
    }

    #[test]
    fn a_thousand_leave_nothing() {
        let mut helpers = helpers();
        for _ in 0..1000 {
            let (id, life) = spawn(&mut helpers, Ok(()));
            assert_eq!(end(&mut helpers, life), [id]);
        }
        assert_eq!(counts(&helpers), (0, 0, 1000));
    }

    #[test]
    fn one_that_fails_is_a_fault_of_the_house_and_is_joined_all_the_same() {
        let mut helpers = helpers();
        let (id, life) = spawn(&mut helpers, Err(Error::new("no room")));
        assert_eq!(end(&mut helpers, life), [id]);
        let panics = helpers.spawn("c/2", PATIENCE, |_| panic!("on purpose")).unwrap();
        helpers.bell().recv_timeout(PATIENCE).expect("it ends");
        assert_eq!(helpers.reap(), [panics]);
        assert_eq!(counts(&helpers), (2, 0, 0), "their rows say why");
        assert_eq!(helpers.table.faults(true), ["c/1: no room", "c/2: panicked: on purpose"]);
        assert!(helpers.table.view().iter().all(|row| row.state == State::Failed));
    }

    #[test]
    fn those_whose_owner_is_gone_are_waited_for_and_joined_by_main() {
        let mut helpers = helpers();
        let table = helpers.table.clone();
        let (_, life) = spawn(&mut helpers, Ok(()));
        drop(helpers);
        assert_eq!(table.alive(|_| true), ["c/1"]);
        drop(life);
        while !table.alive(|_| true).is_empty() {
            table.changed().recv_timeout(PATIENCE).expect("it rings main");
        }
        assert_eq!(table.leave_outside(), [""; 0]);
        assert_eq!(table.helpers(), 0);
    }
}
