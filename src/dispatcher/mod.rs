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
