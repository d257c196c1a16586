//! What the agent shows of itself, over HTTP: health, readiness, metrics, the state of every part, and every
//! thread of the process.
//!
//! `agent.rs` binds the [`Server`] before anything else starts (a taken port is a complaint, not a surprise an
//! hour later), runs it in the thread `status`, and ends it last of all. What the pages show comes from a
//! [`House`]: copies that were made when they were asked for. So a slow client never holds anything of the
//! house, and nothing in the house waits for a client.
//!
//! Always true: one thread, whatever the clients do; at most [`MAX_CLIENTS`] connections, each with a bounded
//! head, an answer of its own and a deadline. No wake-up while nobody asks.
//!
//! Why our own loop and not `tiny_http::Server`: that one reads each connection in a thread of a pool that grows
//! by one for every idle client, without limit or time-out; the threads have no name, are joined by nobody and
//! live on after the server was dropped (those above four up to five seconds); and the first error of `accept`
//! (a process out of descriptors is enough) ends it for good, silently. None of it can be configured. What it
//! does well is kept: its `Response`, `Header` and `StatusCode` make and print every answer (`routes.rs`).
//!
//! Not here: what a page of the house says ([`Rooms`]), and whether an address may be
//! configured (`config/`; that nothing but loopback goes without a token is refused here too).

mod client;
mod house;
mod process;
mod request;
mod routes;
mod server;
#[cfg(test)]
mod tests;

use serde_json::Value;

use crate::tasks::TaskView;

pub use house::Rooms;
pub use server::{Door, MAX_CLIENTS, Server};

/// Why nothing is reloaded.
pub enum NoReload {
    /// The new configuration is; what is wrong with it, for the client.
    Wrong(Value),
    NotNow(String),
}

/// What the pages read. Every answer is a snapshot: made at once, from what is in memory, without waiting for
/// another thread longer than for a short lock. Called in the thread `status` only.
pub trait House: Send + Sync {
    /// One per row of the task table (`Table::view`). The main thread needs none.
    fn tasks(&self) -> Vec<TaskView>;

    /// The counters in Prometheus' text format (`Registry::render`); those of the process are added to it.
    fn metrics(&self) -> String;

    /// Why the agent is not ready, one sentence each. Empty: it is.
    fn unready(&self) -> Vec<String>;

    /// `/api/v1/status`: the agent as a whole.
    fn status(&self) -> Value;

    /// `/api/v1/history`.
    fn history(&self) -> Value;

    /// `/debug/memory`, below what the kernel says: lines of text.
    fn memory(&self) -> String;

    /// `/api/v1/sources`.
    fn sources(&self) -> Value;

    /// `/api/v1/sinks`.
    fn sinks(&self) -> Value;

    /// `/api/v1/ledger`.
    fn ledger(&self) -> Value;

    /// `POST /api/v1/reload`: reads the configuration, and has the agent start anew with it if it is right. The one
    /// answer that waits for the disk.
    fn reload(&self) -> std::result::Result<(), NoReload>;
}
