//! The network, so that a stop reaches it: connects, look-ups and requests in flight all end when `abort` closes.
//!
//! ureq's own resolver starts a hidden thread per look-up as soon as a time-out could end it, and its connect
//! cannot be interrupted. So an [`agent`] of ours has its own resolver (one thread, `resolve.rs`) and its own
//! connector and transport (`connect.rs`); ureq keeps what it is good at: HTTP/1.1, the pool, TLS.
//!
//! Always true: no thread is started here, and no wait lasts longer than its phase's time-out.
//!
//! Not here: what is sent, and what an answer means (`sinks/http.rs`).

mod buffers;
mod connect;
mod resolve;
mod transport;

use std::path::PathBuf;
use std::time::Duration;

pub use connect::{connect, wait, wait_for_any};
pub use resolve::{LookUpError, Resolve, ResolverLoop, resolver};
pub use transport::Tap;
use ureq::config::Config;
#[cfg(feature = "tls")]
use ureq::unversioned::transport::{Connector, RustlsConnector};

use crate::clock::Clock;
use crate::tasks::Closed;

/// A ureq agent whose every wait ends with `abort`. `look_up_max` bounds a look-up; the other phases are bounded
/// by `config`, whose global, per-call and resolve time-outs must be unset and whose proxy must be `None`: the
/// connector below knows none.
///
/// `clock` must be a real one: it measures what is left of a phase.
pub fn agent(
    config: Config,
    resolve: Resolve,
    look_up_max: Duration,
    abort: Closed,
    clock: Clock,
) -> ureq::Agent {
    tapped_agent(config, To::Names(resolve, look_up_max), None, abort, clock)
}

/// Where the connections of an agent lead.
#[derive(Clone, Debug)]
pub enum To {
    /// To whom the URL names; a look-up takes this long at most.
    Names(Resolve, Duration),
    /// To a socket of this host, whatever the URL says.
    Local(PathBuf),
}

/// Like [`agent`], and `tap` is on its newest connection.
pub fn tapped_agent(config: Config, to: To, tap: Option<Tap>, abort: Closed, clock: Clock) -> ureq::Agent {
    assert!(config.proxy().is_none(), "the connector would silently pass the proxy by");
    let (local, resolver) = match to {
        To::Names(resolve, timeout) => (None, Some(resolve::Names::new(resolve, timeout, abort.clone()))),
        To::Local(path) => (Some(path), None),
    };
    let connect = transport::Connect { local, tap, abort, clock };
    #[cfg(feature = "tls")]
    let connect = connect.chain(RustlsConnector::default());
    match resolver {
        Some(names) => ureq::Agent::with_parts(config, connect, names),
        None => ureq::Agent::with_parts(config, connect, resolve::Nowhere),
    }
}
