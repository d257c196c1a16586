//! How a sink is: what its lane feels, and what others see of it.

use std::sync::Arc;
use std::time::Instant;

use parking_lot::Mutex;
use serde::Serialize;

/// The states in the picture of `lane.rs`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Mood {
    Well,
    Resting,
    Probing,
}

/// How a sink is, for the status server.
#[derive(Clone, Debug, Serialize)]
pub struct Health {
    pub name: String,
    pub mood: Mood,
    /// Why it is not well.
    pub why: Option<String>,
    #[serde(skip)]
    pub since: Instant,
    pub queued_batches: usize,
    /// Lines that wait in its spool.
    pub spooled_lines: u64,
    pub spooled_bytes: u64,
}

pub type HealthView = Arc<Mutex<Health>>;

impl Health {
    /// Of a sink that was not tried yet.
    pub fn new(name: &str, now: Instant) -> Health {
        Health {
            name: name.to_owned(),
            mood: Mood::Well,
            why: None,
            since: now,
            queued_batches: 0,
            spooled_lines: 0,
            spooled_bytes: 0,
        }
    }
}
