//! What carries ureq over our connections, and how a stream without an end is read from it.
//!
//! An answer that may go on for days (the engine's events, a container's log) is read without waiting, through a
//! [`Tap`]: whoever reads decides himself what else he waits for, for how long, and holds no memory meanwhile.
//!
//! Always true: every wait ends with its phase's time-out and with `abort`; a read through a tap that streams
//! never waits.

use std::fmt;
use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rustix::event::PollFlags;
use ureq::unversioned::transport::{
    Buffers, ConnectionDetails, Connector, NextTimeout, ShutdownHandle, Transport,
};

use super::buffers::Growing;
use super::connect::{connect, connect_local, wait, wait_for_any};
use crate::clock::Clock;
use crate::tasks::Closed;

/// ureq's way to our connections.
pub(super) struct Connect {
    /// A socket of this host, whatever the URL says.
    pub local: Option<PathBuf>,
    pub tap: Option<Tap>,
    pub abort: Closed,
    pub clock: Clock,
}

impl fmt::Debug for Connect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Connect")
    }
}

impl Connector<()> for Connect {
    type Out = Plain;

    fn connect(&self, details: &ConnectionDetails, _: Option<()>) -> Result<Option<Plain>, ureq::Error> {
        let socket = match &self.local {
            Some(path) => Socket::Local(connect_local(path)?),
            None => {
                let deadline = deadline(details.timeout, &self.clock);
                let stream = connect(&details.addrs, deadline, &self.abort, &self.clock);
                Socket::Tcp(stream.map_err(|error| timed_out(error, details.timeout))?)
            }
        };
        let socket = Arc::new(socket);
        let handle: Weak<dyn ShutdownHandle> = Arc::downgrade(&(socket.clone() as Arc<dyn ShutdownHandle>));
        (details.register_shutdown)(handle)?;
        if let Some(tap) = &self.tap {
            *tap.0.socket.lock() = Arc::downgrade(&socket);
        }
        let config = details.config;
        let buffers = Growing::new(config.input_buffer_size(), config.output_buffer_size());
        Ok(Some(Plain {
            socket,
            buffers,
            tap: self.tap.clone(),
            abort: self.abort.clone(),
            clock: self.clock.clone(),
        }))
    }
}

#[derive(Debug)]
enum Socket {
    Tcp(TcpStream),
    Local(UnixStream),
}

impl Socket {
    fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Socket::Tcp(stream) => (&*stream).read(buffer),
            Socket::Local(stream) => (&*stream).read(buffer),
        }
    }

    fn write(&self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Socket::Tcp(stream) => (&*stream).write(bytes),
            Socket::Local(stream) => (&*stream).write(bytes),
        }
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Socket::Tcp(stream) => stream.as_fd(),
            Socket::Local(stream) => stream.as_fd(),
        }
    }
}

impl ShutdownHandle for Socket {
    fn shutdown(&self) {
        // An error means that it is shut down already.
        let _ = match self {
            Socket::Tcp(stream) => stream.shutdown(Shutdown::Both),
            Socket::Local(stream) => stream.shutdown(Shutdown::Both),
        };
    }
}

/// The connection of an agent that has one at a time, for reading what it brings without waiting. Clones are of
/// the same one.
#[derive(Clone, Debug, Default)]
pub struct Tap(Arc<Tapped>);

#[derive(Debug, Default)]
struct Tapped {
    streams: AtomicBool,
    socket: Mutex<Weak<Socket>>,
}

impl Tap {
    /// From now on a read that finds nothing fails with `WouldBlock`, and may be repeated.
    pub fn stream(&self) {
        self.0.streams.store(true, Ordering::Relaxed);
    }

    /// Until a read may find something (or the end), one of `others` has something, or the time is up.
    pub fn wait(&self, others: &[BorrowedFd<'_>], timeout: Option<Duration>) -> io::Result<()> {
        let Some(socket) = self.0.socket.lock().upgrade() else { return Ok(()) }; // its end is to be read
        wait_for_any(&[&[socket.as_fd()], others].concat(), timeout)
    }

    fn streams(&self) -> bool {
        self.0.streams.load(Ordering::Relaxed)
    }
}

/// A connection without TLS.
pub(super) struct Plain {
    /// Shared (weakly) with the agent's list of what a shutdown ends.
    socket: Arc<Socket>,
    buffers: Growing,
    tap: Option<Tap>,
    abort: Closed,
    clock: Clock,
}

impl Transport for Plain {
    fn buffers(&mut self) -> &mut dyn Buffers {
        &mut self.buffers
    }

    fn transmit_output(&mut self, amount: usize, timeout: NextTimeout) -> Result<(), ureq::Error> {
        let timeout = timeout.for_write();
        let deadline = deadline(timeout, &self.clock);
        let mut left = &self.buffers.output()[..amount];
        while !left.is_empty() {
            match self.socket.write(left) {
                Ok(0) => return Err(io::Error::from(io::ErrorKind::WriteZero).into()),
                Ok(written) => left = &left[written..],
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    wait(&*self.socket, PollFlags::OUT, deadline, &self.abort, &self.clock)
                        .map_err(|error| timed_out(error, timeout))?;
                }
                Err(error) => return Err(error.into()),
            }
        }
        self.buffers.sent(amount);
        Ok(())
    }

    fn await_input(&mut self, timeout: NextTimeout) -> Result<bool, ureq::Error> {
        let timeout = timeout.for_read();
        let deadline = deadline(timeout, &self.clock);
        loop {
            let streams = self.tap.as_ref().is_some_and(Tap::streams);
            if !streams {
                wait(&*self.socket, PollFlags::IN, deadline, &self.abort, &self.clock)
                    .map_err(|error| timed_out(error, timeout))?;
            }
            match self.socket.read(self.buffers.input_append_buf()) {
                Ok(amount) => {
                    self.buffers.input_appended(amount);
                    return Ok(amount > 0);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock && !streams => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Nothing may be readable on an idle connection: neither an end nor bytes that nobody asked for.
    fn is_open(&mut self) -> bool {
        let read = self.socket.read(&mut [0]);
        read.is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock)
    }
}

impl fmt::Debug for Plain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Plain").field(&self.socket).finish()
    }
}

/// A phase without a time-out of its own: longer than any stop, and no overflow.
const UNLIMITED: Duration = Duration::from_secs(24 * 3600);

fn deadline(timeout: NextTimeout, clock: &Clock) -> Instant {
    clock.now() + (*timeout.after).min(UNLIMITED)
}

/// ureq's own words for a time-out say which phase it was.
fn timed_out(error: io::Error, timeout: NextTimeout) -> ureq::Error {
    match error.kind() {
        io::ErrorKind::TimedOut => ureq::Error::Timeout(timeout.reason),
        _ => ureq::Error::Io(error),
    }
}
