//! # log-capturer
#![forbid(unsafe_code)]

pub mod ack;
pub mod budget;
pub mod clock;
pub mod error;
pub mod metrics;
pub mod monitors;
pub mod record;
pub mod sinks;
pub mod tasks;
