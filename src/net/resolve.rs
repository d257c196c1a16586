//! Names into addresses, by one thread, since a look-up of the system's resolver cannot be interrupted.
//!
//! ```text
//! sender ── Resolve::look_up ──▶ queue ──▶ resolver (may hang in a look-up)
//!        ◀───────── answer, or time-out, or abort ─────────
//! ```
//!
//! Always true: nobody who asks waits longer than their time-out, whatever the thread does; the queue holds at
//! most [`QUEUE_MAX`] requests, and only of those who still wait. The thread holds no data, so it may be left
//! behind at the end.

use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::sync::{Arc, Weak};
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, TrySendError, bounded, select};
use parking_lot::Mutex;
use ureq::http::Uri;
use ureq::unversioned::resolver::{ResolvedSocketAddrs, Resolver};
use ureq::unversioned::transport::NextTimeout;

use super::connect::STOPPING;
use crate::error::Result;
use crate::tasks::{Closed, Task};

/// More than all senders of a usual configuration together; whoever finds it full comes back by its own retry.
const QUEUE_MAX: usize = 64;

/// How many addresses of one name are tried; ureq keeps no more.
const ADDRESSES_MAX: usize = 16;

/// The queue between those who ask (as many [`Resolve`] as there are agents) and the `resolver` thread, whose body
/// is [`ResolverLoop::run`].
pub fn resolver() -> (Resolve, ResolverLoop) {
    let queue = Arc::new(Mutex::new(VecDeque::new()));
    let (wake, woken) = bounded(1); // one slot: a hint to look, never waited on
    (Resolve { queue: queue.clone(), wake }, ResolverLoop { queue, woken })
}

struct Request {
    host: String,
    port: u16,
    answer: Sender<io::Result<Vec<SocketAddr>>>,
    /// Gone as soon as nobody waits for the answer.
    asker: Weak<()>,
}

type Queue = Arc<Mutex<VecDeque<Request>>>;

/// Why a name has no address, as far as somebody does something about it.
#[derive(Debug)]
pub enum LookUpError {
    /// What the system's resolver said.
    Failed(io::Error),
    TimedOut,
    /// Too many look-ups wait: the resolver hangs.
    Busy,
    /// `abort` is closed, or the resolver has ended.
    Stopping,
}

impl fmt::Display for LookUpError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            LookUpError::Failed(cause) => write!(f, "{cause}"),
            LookUpError::TimedOut => f.write_str("the resolver did not answer in time"),
            LookUpError::Busy => f.write_str("the resolver is busy"),
            LookUpError::Stopping => f.write_str(STOPPING),
        }
    }
}

/// Asks the `resolver` thread.
#[derive(Clone)]
pub struct Resolve {
    queue: Queue,
    wake: Sender<()>,
}

impl Resolve {
    /// At least one address, of `host` (a name, or an IP address, with or without brackets) with `port`. An IP
    /// address is never asked for: it needs no resolver.
    pub fn look_up(
        &self,
        host: &str,
        port: u16,
        timeout: Duration,
        abort: &Closed,
    ) -> std::result::Result<Vec<SocketAddr>, LookUpError> {
        let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
        if let Ok(address) = bare.parse::<IpAddr>() {
            return Ok(vec![SocketAddr::new(address, port)]);
        }
        let waiting = Arc::new(());
        let (answer, answered) = bounded(1);
        let asker = Arc::downgrade(&waiting);
        self.ask(Request { host: host.to_owned(), port, answer, asker })?;
        let answer = select! {
            recv(answered) -> answer => answer.map_err(|_| LookUpError::Stopping)?,
            recv(abort.channel()) -> _ => return Err(LookUpError::Stopping),
            default(timeout) => return Err(LookUpError::TimedOut),
        };
        answer.map_err(LookUpError::Failed)
    }

    fn ask(&self, request: Request) -> std::result::Result<(), LookUpError> {
        let mut queue = self.queue.lock();
        queue.retain(|request| request.asker.strong_count() > 0);
        if queue.len() >= QUEUE_MAX {
            return Err(LookUpError::Busy);
        }
        queue.push_back(request);
        // While the queue is locked: an end of the loop empties the queue either before, and this fails, or after.
        match self.wake.try_send(()) {
            Ok(()) | Err(TrySendError::Full(())) => Ok(()),
            Err(TrySendError::Disconnected(())) => {
                queue.clear();
                Err(LookUpError::Stopping)
            }
        }
    }
}

impl fmt::Debug for Resolve {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Resolve")
    }
}

/// What the `resolver` thread runs.
pub struct ResolverLoop {
    queue: Queue,
    woken: Receiver<()>,
}

impl ResolverLoop {
    /// Looks names up, one after the other, until `ended` closes or nobody can ask any more. May hang in a look-up
    /// for as long as the system's resolver likes: spawn it as abandonable.
    pub fn run(self, task: &Task, ended: Closed) -> Result<()> {
        loop {
            task.waits_for("a name to look up");
            select! {
                recv(self.woken) -> woken => if woken.is_err() { return Ok(()) },
                recv(ended.channel()) -> _ => return Ok(()),
            }
            while let Some(request) = self.next() {
                if ended.is_closed() {
                    return Ok(());
                }
                task.doing(format!("looking up {}", request.host));
                let found = look_up(&request.host, request.port);
                // One slot, asked once; an asker that has left meanwhile needs no answer.
                let _ = request.answer.try_send(found);
            }
        }
    }

    fn next(&self) -> Option<Request> {
        let mut queue = self.queue.lock();
        queue.retain(|request| request.asker.strong_count() > 0);
        queue.pop_front()
    }
}

/// Those who still wait learn at once that nobody will answer.
impl Drop for ResolverLoop {
    fn drop(&mut self) {
        // The receiver goes first, so that `ask` cannot queue behind our back.
        self.woken = crossbeam_channel::never();
        self.queue.lock().clear();
    }
}

fn look_up(host: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
    let found: Vec<SocketAddr> = (host, port).to_socket_addrs()?.take(ADDRESSES_MAX).collect();
    if found.is_empty() {
        return Err(io::Error::new(io::ErrorKind::NotFound, "the name has no address"));
    }
    Ok(found)
}

/// ureq's way to [`Resolve`].
#[derive(Debug)]
pub(super) struct Names {
    resolve: Resolve,
    timeout: Duration,
    abort: Closed,
}

impl Names {
    pub(super) fn new(resolve: Resolve, timeout: Duration, abort: Closed) -> Names {
        Names { resolve, timeout, abort }
    }
}

impl Resolver for Names {
    /// ureq's own limit is never set (see [`super::agent`]): ours counts.
    fn resolve(
        &self,
        uri: &Uri,
        _: &ureq::config::Config,
        _: NextTimeout,
    ) -> std::result::Result<ResolvedSocketAddrs, ureq::Error> {
        let host = uri.host().ok_or(ureq::Error::HostNotFound)?;
        let port = uri.port_u16().unwrap_or(if uri.scheme_str() == Some("https") { 443 } else { 80 });
        let found = self.resolve.look_up(host, port, self.timeout, &self.abort).map_err(|cause| {
            ureq::Error::Io(match cause {
                LookUpError::Stopping => io::Error::other(STOPPING),
                cause => io::Error::other(format!("could not look up {host}: {cause}")),
            })
        })?;
        let mut addresses = self.empty();
        found.into_iter().take(ADDRESSES_MAX).for_each(|address| addresses.push(address));
        Ok(addresses)
    }
}

/// For connections that lead to a socket of this host: ureq wants an address, which nobody looks at.
#[derive(Debug)]
pub(super) struct Nowhere;

impl Resolver for Nowhere {
    fn resolve(
        &self,
        _: &Uri,
        _: &ureq::config::Config,
        _: NextTimeout,
    ) -> std::result::Result<ResolvedSocketAddrs, ureq::Error> {
        let mut addresses = self.empty();
        addresses.push(SocketAddr::from(([127, 0, 0, 1], 0)));
        Ok(addresses)
    }
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "a wait that only another thread can end")]
mod tests {
    use super::*;
    use crate::clock::Clock;
    use crate::tasks::{self, Spec, Table, closing};

    const LONG: Duration = Duration::from_secs(60);

    /// The loop exists and never answers: a look-up that hangs.
    fn hanging() -> (Resolve, ResolverLoop) {
        resolver()
    }

    #[test]
    fn addresses_need_no_resolver() {
        let (resolve, gone) = resolver();
        drop(gone);
        let (_closer, abort) = closing().unwrap();
        for (host, want) in [
            ("127.0.0.1", "127.0.0.1:80"),
            ("::1", "[::1]:80"),
            ("[::1]", "[::1]:80"),
            ("0.0.0.0", "0.0.0.0:80"),
        ] {
            let found = resolve.look_up(host, 80, Duration::ZERO, &abort).unwrap();
            assert_eq!(found, [want.parse::<SocketAddr>().unwrap()], "{host}");
        }
    }

    #[test]
    fn abort_ends_a_look_up_that_hangs() {
        let (resolve, _hangs) = hanging();
        let (closer, abort) = closing().unwrap();
        let (done, ended) = bounded(1);
        let thread = std::thread::spawn(move || {
            done.send(resolve.look_up("loki.example", 80, LONG, &abort)).unwrap();
        });
        drop(closer);
        let error = ended.recv_timeout(LONG / 2).expect("abort ended the wait").unwrap_err();
        assert!(matches!(error, LookUpError::Stopping), "{error}");
        thread.join().unwrap();
    }

    #[test]
    fn a_look_up_that_hangs_times_out_and_never_fills_the_queue() {
        let (resolve, hangs) = hanging();
        let (_closer, abort) = closing().unwrap();
        for _ in 0..3 * QUEUE_MAX {
            let error = resolve.look_up("loki.example", 80, Duration::ZERO, &abort).unwrap_err();
            assert!(matches!(error, LookUpError::TimedOut), "{error}");
        }
        assert!(resolve.queue.lock().len() <= 1);
        assert!(hangs.next().is_none(), "nobody waits: nothing is looked up");
    }

    #[test]
    fn a_full_queue_is_an_error_and_not_a_wait() {
        let (resolve, _hangs) = hanging();
        let (_closer, abort) = closing().unwrap();
        let waiting = Arc::new(());
        for _ in 0..QUEUE_MAX {
            let (host, answer, asker) = ("a".to_owned(), bounded(1).0, Arc::downgrade(&waiting));
            resolve.ask(Request { host, port: 80, answer, asker }).unwrap();
        }
        let error = resolve.look_up("loki.example", 80, LONG, &abort).unwrap_err();
        assert!(matches!(error, LookUpError::Busy), "{error}");
        drop(waiting);
        let error = resolve.look_up("loki.example", 80, Duration::ZERO, &abort).unwrap_err();
        assert!(matches!(error, LookUpError::TimedOut), "there is room again: {error}");
    }

    #[test]
    fn whoever_waits_for_a_resolver_that_ends_is_told() {
        let (resolve, ends) = resolver();
        let (_closer, abort) = closing().unwrap();
        let (done, ended) = bounded(1);
        let thread = std::thread::spawn({
            let (resolve, abort) = (resolve.clone(), abort.clone());
            move || done.send(resolve.look_up("loki.example", 80, LONG, &abort)).unwrap()
        });
        drop(ends); // before or after it asked: both must end
        let error = ended.recv_timeout(LONG / 2).expect("the end was told").unwrap_err();
        assert!(matches!(error, LookUpError::Stopping), "{error}");
        thread.join().unwrap();
    }

    #[test]
    fn the_loop_finds_this_host_and_ends_when_told() {
        let (resolve, body) = resolver();
        let (closer, ended) = closing().unwrap();
        let (_abort_closer, abort) = closing().unwrap();
        let table = Arc::new(Table::new(Clock::real()));
        tasks::run(table.clone(), move |tasks| {
            tasks.spawn(Spec::keeper("resolver", LONG), move |task| body.run(task, ended)).unwrap();
            let found = resolve.look_up("localhost", 3100, LONG, &abort).unwrap();
            assert!(found.iter().all(|address| address.ip().is_loopback() && address.port() == 3100));
            drop(closer);
        })
        .unwrap(); // returns: the loop has ended
        assert_eq!(table.fault(true), None);
    }
}
