//! # log-capturer
#![forbid(unsafe_code)]

pub mod ack;
pub mod agent;
pub mod budget;
pub mod cli;
pub mod clock;
pub mod config;
pub mod deadletter;
pub mod dispatcher;
pub mod durable;
pub mod error;
pub mod ledger;
pub mod metrics;
pub mod monitors;
pub mod net;
pub mod pipeline;
pub mod record;
pub mod sinks;
pub mod status;
pub mod tasks;
