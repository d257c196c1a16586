//! From the monitors to the sinks: the worker pool, one lane per sink, its senders, and the retry scheduler.
//!
//! ```text
//! intake ─▶ worker ─▶ inlet ─▶ lane ─▶ jobs ─▶ sender ─▶ the sink
//!                               ▲ ▲               │
//!                 "try again" ──┘ └── reports ◀───┘
//! ```

pub mod backoff;
pub mod batch;
pub mod lane;
#[cfg(test)]
mod panics;
pub mod retry;
pub mod sender;
pub mod worker;

use std::time::Duration;

use crossbeam_channel::{Receiver, RecvTimeoutError, never, select};

/// How late something small may be taken. Where many files have a line each, one comes shortly behind the other, and to
/// wake up for each costs several times what is done with it.
const LINGER: Duration = Duration::from_millis(1);

/// Nobody lingers behind what is larger: a file is read at full speed.
const SMALL_BYTES: u64 = 16 * 1024;

/// What comes next, within so long. `recv` would spin before it sleeps, as [`crate::tasks::Closed::wait`] tells.
fn receive<T>(channel: &Receiver<T>, at_most: Duration) -> Result<T, RecvTimeoutError> {
    select! {
        recv(channel) -> next => next.map_err(|_| RecvTimeoutError::Disconnected),
        recv(never::<()>()) -> _ => Err(RecvTimeoutError::Disconnected),
        default(at_most) => Err(RecvTimeoutError::Timeout),
    }
}
