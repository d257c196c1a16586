//! Connections, over TCP and to sockets of this host, that can be interrupted.
//!
//! The socket never blocks: every wait is one `poll` on the socket and on `abort` with what is left of the
//! phase's time-out. So a write to a peer that reads a byte a minute ends in time too, which a socket's own
//! time-out (per call, not in all) would not do.
//!
//! Not here: names (`resolve.rs`), what ureq does with a connection (`transport.rs`), TLS and HTTP (ureq).

use std::io;
use std::net::{SocketAddr, TcpStream};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, ipproto, socket_with, sockopt};

use crate::clock::Clock;
use crate::tasks::Closed;

/// Connects to the first address that answers. Each attempt may take an even part of the time that is left, so
/// that a dead first address leaves time for the others. The stream is non-blocking, without Nagle's delay.
///
/// Fails with the last address' error, with `TimedOut`, or with "the agent is stopping" once `abort` is closed.
pub fn connect(
    addresses: &[SocketAddr],
    deadline: Instant,
    abort: &Closed,
    clock: &Clock,
) -> io::Result<TcpStream> {
    let mut failed = io::Error::new(io::ErrorKind::NotFound, "there is no address to connect to");
    for (index, address) in addresses.iter().enumerate() {
        let now = clock.now();
        let left = deadline.saturating_duration_since(now) / (addresses.len() - index) as u32;
        match connect_one(*address, now + left, abort, clock) {
            Ok(stream) => return Ok(stream),
            Err(error) if abort.is_closed() => return Err(error),
            Err(error) => failed = error,
        }
    }
    Err(failed)
}

fn connect_one(
    address: SocketAddr,
    deadline: Instant,
    abort: &Closed,
    clock: &Clock,
) -> io::Result<TcpStream> {
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let socket = socket_with(family, SocketType::STREAM, flags, Some(ipproto::TCP))?;
    match rustix::net::connect(&socket, &address) {
        Ok(()) => {}
        // A connect that a signal interrupts goes on by itself.
        Err(rustix::io::Errno::INPROGRESS | rustix::io::Errno::INTR) => {
            wait(&socket, PollFlags::OUT, deadline, abort, clock)?;
            sockopt::socket_error(&socket)??;
        }
        Err(error) => return Err(error.into()),
    }
    let stream = TcpStream::from(socket);
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// Connects to a socket of this host, which never waits: a listener whose queue is full says so (`WouldBlock`).
pub(super) fn connect_local(path: &Path) -> io::Result<UnixStream> {
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    rustix::net::connect(&socket, &SocketAddrUnix::new(path)?)?;
    Ok(socket.into())
}

/// Waits until `socket` has one of `events`, or failed (the next call on it says how). Fails with `TimedOut` at
/// the deadline, and with "the agent is stopping" once `abort` is closed, whatever the socket has.
pub fn wait(
    socket: impl AsFd,
    events: PollFlags,
    deadline: Instant,
    abort: &Closed,
    clock: &Clock,
) -> io::Result<()> {
    loop {
        let left = deadline.saturating_duration_since(clock.now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        let mut both = [PollFd::new(&socket, events), PollFd::new(abort, PollFlags::empty())];
        match poll(&mut both, Some(&timespec(left))) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        if !both[1].revents().is_empty() {
            // Not `Interrupted`: standard `write_all` would try again for ever.
            return Err(io::Error::other(STOPPING));
        }
        if !both[0].revents().is_empty() {
            return Ok(());
        }
    }
}

/// Until one of them has something to read, or the time is up.
pub fn wait_for_any(all: &[BorrowedFd<'_>], timeout: Option<Duration>) -> io::Result<()> {
    let mut all: Vec<_> = all.iter().map(|one| PollFd::from_borrowed_fd(*one, PollFlags::IN)).collect();
    match poll(&mut all, timeout.map(timespec).as_ref()) {
        Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Why a wait ended that `abort` ended.
pub(super) const STOPPING: &str = "the agent is stopping";

fn timespec(duration: Duration) -> Timespec {
    Timespec {
        tv_sec: i64::try_from(duration.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: duration.subsec_nanos().into(),
    }
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "a wait that only another thread can end")]
mod tests {
    use std::net::TcpListener;

    use crossbeam_channel::bounded;

    use super::*;
    use crate::tasks::closing;

    /// Far beyond what any of these takes.
    const LONG: Duration = Duration::from_secs(60);

    fn soon() -> Instant {
        Clock::real().now() + LONG
    }

    /// A listener whose queue is full: the kernel drops what else knocks, so a connect hangs.
    fn full_listener() -> (TcpListener, SocketAddr, Vec<rustix::fd::OwnedFd>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        rustix::net::listen(&listener, 0).unwrap();
        let address = listener.local_addr().unwrap();
        let knock = || {
            let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
            let socket = socket_with(AddressFamily::INET, SocketType::STREAM, flags, None).unwrap();
            let _ = rustix::net::connect(&socket, &address); // in progress
            socket
        };
        let waiting = (0..8).map(|_| knock()).collect();
        (listener, address, waiting)
    }

    #[test]
    fn abort_ends_a_connect_that_hangs() {
        let (_listener, address, _waiting) = full_listener();
        let (closer, abort) = closing().unwrap();
        let (done, ended) = bounded(1);
        let thread = std::thread::spawn(move || {
            done.send(connect(&[address], soon(), &abort, &Clock::real())).unwrap();
        });
        assert!(ended.try_recv().is_err(), "nothing has ended it yet");
        drop(closer);
        let error = ended.recv_timeout(LONG / 2).expect("abort ended the wait").unwrap_err();
        assert_eq!(error.to_string(), STOPPING);
        thread.join().unwrap();
    }

    #[test]
    fn a_connect_that_hangs_ends_at_its_deadline() {
        let (_listener, address, _waiting) = full_listener();
        let (_closer, abort) = closing().unwrap();
        let clock = Clock::real();
        let deadline = clock.now() + Duration::from_millis(20);
        let error = connect(&[address], deadline, &abort, &clock).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    }

    #[test]
    fn all_addresses_are_tried_in_turn() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let refusing = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap(); // closed again
        let listening = listener.local_addr().unwrap();
        let (_closer, abort) = closing().unwrap();
        let stream = connect(&[refusing, listening], soon(), &abort, &Clock::real()).unwrap();
        assert_eq!(stream.peer_addr().unwrap(), listening);
        let error = connect(&[refusing], soon(), &abort, &Clock::real()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
        assert_eq!(connect(&[], soon(), &abort, &Clock::real()).unwrap_err().kind(), io::ErrorKind::NotFound);
    }
}
