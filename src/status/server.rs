//! The server's loop: one thread, one `poll` over the listener, the order to end and every client.
//!
//! Who must go when there is no room: the client next to its deadline among those that are not being answered,
//! which is the one that has been idle for longest. So a thousand clients that say nothing cost each other
//! their places and cannot lock out `/healthz`. Of those that read their answer slowly a few may stay.
//!
//! Always true: `clients <= MAX_CLIENTS`, `answering <= ANSWERING_MAX` between two clients' turns, and no error
//! of the world ends the loop: only `ended` does.

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use log::warn;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{SocketFlags, accept_with, listen};

use super::House;
use super::client::Client;
use super::routes;
use crate::error::{Context, Error, Result};
use crate::metrics::{Gauge, Registry};
use crate::tasks::{Closed, Task};

/// A browser opens six, a scraper one.
pub const MAX_CLIENTS: usize = 128;

/// Clients whose answer did not fit into their socket. Each holds a whole answer, some megabytes where there are
/// ten thousand sources; the one that has been at it for longest goes when there is one too many.
pub(super) const ANSWERING_MAX: usize = 8;

/// A quarter of the places, so that a flood of new clients does not push out one that has just come before it
/// had a turn to speak.
const ACCEPTS_PER_TURN: usize = MAX_CLIENTS / 4;

/// How many may wait in the kernel until we accept them: 500 at once must not lose a packet, which would cost
/// the second that TCP waits before it sends it again. The kernel cuts it at `net.core.somaxconn`.
const BACKLOG: i32 = 1024;

/// How long the listener is left alone after `accept` failed and nobody could be sent away.
pub(super) const PAUSE: Duration = Duration::from_millis(100);

/// What the task says meanwhile.
pub(super) const RESTING: &str = "waiting to accept again";

/// Trouble is told once in this time, not once per try.
const TROUBLE_SAID_EVERY: Duration = Duration::from_secs(60);

/// Where a server listens, held open for the next one: whoever knocks meanwhile waits.
pub struct Door {
    /// As it was configured.
    asked: SocketAddr,
    listener: TcpListener,
}

/// Bound, and not yet running: clients may connect already and wait.
pub struct Server {
    listener: TcpListener,
    /// As it was configured, and as it is: port 0 is any.
    asked: SocketAddr,
    address: SocketAddr,
    token: Option<String>,
    clients: Vec<Client>,
    clients_gauge: Arc<Gauge>,
    listen_again: Option<Instant>,
    trouble_said: Option<Instant>,
}

/// Whose turn it is.
struct Turn {
    knock: bool,
    /// By place in `clients`.
    ready: Vec<bool>,
}

impl Server {
    /// With a `token`, every page but `/healthz` asks for it. Without one, only loopback is served. `door`: used if
    /// it is the one that is asked for.
    pub fn bind(addr: SocketAddr, token: Option<String>, door: Option<&Door>) -> Result<Server> {
        let refused = |why: String, remedy: &str| {
            Error::new(format!("status: could not listen on {addr}: {why}; {remedy}"))
        };
        match &token {
            Some(token) if token.is_empty() => {
                return Err(refused("the token is empty".into(), "give status.token a value, or remove it"));
            }
            None if !addr.ip().is_loopback() => {
                let why = "anybody who reaches this address could read it".into();
                return Err(refused(why, "set status.token, or set status.listen to 127.0.0.1"));
            }
            _ => {}
        }
        let bound = || -> std::io::Result<(TcpListener, SocketAddr)> {
            let listener = match door.filter(|door| door.asked == addr) {
                Some(door) => door.listener.try_clone()?,
                None => TcpListener::bind(addr)?,
            };
            listener.set_nonblocking(true)?;
            listen(&listener, BACKLOG)?; // std has listened already, with 128: this only widens it
            let address = listener.local_addr()?;
            Ok((listener, address))
        };
        let (listener, address) = bound().map_err(|cause| {
            refused(
                cause.to_string(),
                "set status.listen to a free address of this host, or to null for none",
            )
        })?;
        Ok(Server {
            listener,
            asked: addr,
            address,
            token,
            clients: Vec::new(),
            clients_gauge: Arc::default(),
            listen_again: None,
            trouble_said: None,
        })
    }

    /// Tells there from now on how many clients there are.
    pub fn count_in(&mut self, registry: &Registry) {
        self.clients_gauge = registry.gauge("status_clients", "Clients of the status server.", &[]);
    }

    /// For the server after this one. Errors: no descriptor is left.
    pub fn door(&self) -> Result<Door> {
        let listener = self.listener.try_clone();
        let listener = listener.context(|| format!("status: could not keep {} open", self.address))?;
        Ok(Door { asked: self.asked, listener })
    }

    /// The real port where port 0 was asked for.
    pub fn local_addr(&self) -> SocketAddr {
        self.address
    }

    /// Serves until `ended` closes, then drops every client that has not asked yet.
    pub fn run(mut self, house: Arc<dyn House>, task: &Task, ended: Closed) -> Result<()> {
        while let Some(turn) = self.next_turn(task, &ended) {
            task.beat();
            self.advance_clients(&turn.ready, &*house, task);
            if turn.knock {
                self.accept(&*house, task);
            }
            self.clients.retain(|client| !client.is_over());
            self.clients_gauge.set(self.clients.len() as i64);
        }
        task.stopping();
        // Those who have asked by now get what fits into their socket.
        self.advance_clients(&vec![true; self.clients.len()], &*house, task);
        Ok(())
    }

    /// Waits for whatever comes first; `None`: told to end.
    fn next_turn(&mut self, task: &Task, ended: &Closed) -> Option<Turn> {
        let now = task.now();
        self.listen_again = self.listen_again.filter(|again| now < *again);
        let deadline = self.clients.iter().map(Client::deadline).chain(self.listen_again).min();
        let wait = deadline.map(|deadline| timespec(deadline.saturating_duration_since(now)));

        let mut polled = vec![PollFd::new(ended, PollFlags::empty())]; // HUP needs not be asked for
        polled.extend(self.clients.iter().map(|client| PollFd::new(client, client.interest())));
        if self.listen_again.is_none() {
            polled.push(PollFd::new(&self.listener, PollFlags::IN));
        }
        task.waits_for(if self.listen_again.is_none() { "waiting for a client" } else { RESTING });
        let woken = poll(&mut polled, wait.as_ref());
        let mut ready = polled.iter().map(|entry| !entry.revents().is_empty());
        let is_ended = ready.next().unwrap_or(false);
        let ready: Vec<bool> = ready.collect();
        match woken {
            _ if is_ended || ended.is_closed() => None,
            Ok(_) => {
                let knock = self.listen_again.is_none() && ready.last() == Some(&true);
                Some(Turn { knock, ready })
            }
            Err(Errno::INTR) => Some(Turn { knock: false, ready: Vec::new() }),
            Err(cause) => {
                // No memory, or a limit below the number of our descriptors: with fewer clients it may do.
                self.make_room();
                self.trouble("wait for clients", cause, task.now());
                let _ = ended.channel().recv_timeout(PAUSE); // told to end or not, the next turn sees it
                Some(Turn { knock: false, ready: Vec::new() })
            }
        }
    }

    /// Those that are ready, and those whose time is over.
    fn advance_clients(&mut self, ready: &[bool], house: &dyn House, task: &Task) {
        let now = task.now();
        for at in 0..self.clients.len() {
            if ready.get(at) == Some(&true) || self.clients[at].deadline() <= now {
                self.advance(at, house, task);
            }
        }
    }

    fn advance(&mut self, at: usize, house: &dyn House, task: &Task) {
        let token = self.token.as_deref();
        self.clients[at].advance(task.now(), |heard| {
            task.doing("answering");
            routes::answer(heard, house, token)
        });
        let answering = || self.clients.iter().filter(|client| client.is_answering());
        if answering().count() > ANSWERING_MAX {
            let longest = self.clients.iter_mut().filter(|client| client.is_answering());
            longest.min_by_key(|client| client.deadline()).into_iter().for_each(Client::end);
        }
    }

    fn accept(&mut self, house: &dyn House, task: &Task) {
        for _ in 0..ACCEPTS_PER_TURN {
            match accept_with(&self.listener, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK) {
                Ok(socket) => self.admit(socket, house, task),
                Err(Errno::AGAIN) => return,
                Err(Errno::INTR | Errno::CONNABORTED) => {} // that client has gone; the next one
                Err(cause) => {
                    self.trouble("accept a client", cause, task.now());
                    let is_starved =
                        matches!(cause, Errno::MFILE | Errno::NFILE | Errno::NOMEM | Errno::NOBUFS);
                    if !(is_starved && self.make_room()) {
                        self.listen_again = Some(task.now() + PAUSE);
                        return;
                    }
                }
            }
        }
    }

    fn admit(&mut self, socket: OwnedFd, house: &dyn House, task: &Task) {
        if self.clients.len() >= MAX_CLIENTS {
            self.make_room(); // there is always one: `ANSWERING_MAX` is below `MAX_CLIENTS`
        }
        self.clients.push(Client::new(TcpStream::from(socket), task.now()));
        self.advance(self.clients.len() - 1, house, task); // most have sent their request by now
    }

    /// Frees a place and its descriptor at once: of those that are over anyway, else of the client next to its
    /// deadline among those that are not being answered. `false`: there is none.
    fn make_room(&mut self) -> bool {
        let before = self.clients.len();
        self.clients.retain(|client| !client.is_over());
        if self.clients.len() < before {
            return true;
        }
        let idle = self.clients.iter().enumerate().filter(|(_, client)| !client.is_answering());
        let next = idle.min_by_key(|(_, client)| client.deadline()).map(|(at, _)| at);
        next.map(|at| self.clients.remove(at)).is_some()
    }

    fn trouble(&mut self, doing: &str, cause: Errno, now: Instant) {
        if self.trouble_said.is_none_or(|said| now >= said + TROUBLE_SAID_EVERY) {
            self.trouble_said = Some(now);
            warn!(
                "status: could not {doing} on {}: {cause}; goes on with {} of {MAX_CLIENTS} clients and tries again \
                 (told at most once a minute)",
                self.address,
                self.clients.len()
            );
        }
    }
}

fn timespec(wait: Duration) -> Timespec {
    Timespec { tv_sec: wait.as_secs() as i64, tv_nsec: wait.subsec_nanos().into() }
}
