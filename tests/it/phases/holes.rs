//! The other sides that make a connection hang, each in its own way, and how to see that it does.

#![expect(clippy::disallowed_methods, reason = "the other side of the network has threads of its own")]

use std::io::{ErrorKind, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use rustix::fd::OwnedFd;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with, sockopt};

use crate::agent::{Agent, pause};

/// The kernel completes the handshake, and nobody accepts, reads or says anything.
pub struct Silent(TcpListener);

impl Silent {
    pub fn new() -> Silent {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a loopback port is free");
        // Inherited by what it accepts: a small window, so that a large batch does not fit.
        sockopt::set_socket_recv_buffer_size(&listener, 4096).expect("a socket has a buffer");
        Silent(listener)
    }

    pub fn port(&self) -> u16 {
        port(&self.0)
    }

    /// Bytes that the agent has sent and that nobody takes.
    pub fn is_stuffed(&self, agent: &Agent) -> bool {
        let stuffed = |row: &Row| row.remote_port == self.port() && row.unsent > 0;
        let twice = || rows(agent).iter().find(|row| stuffed(row)).map(|row| row.unsent);
        let before = twice();
        pause(Duration::from_millis(30));
        before.is_some() && before == twice()
    }

    pub fn is_connected(&self, agent: &Agent) -> bool {
        rows(agent).iter().any(|row| row.remote_port == self.port() && row.state == ESTABLISHED)
    }
}

/// A listener whose queue is full: the kernel drops what else knocks, so a connect gets no answer.
pub struct Full {
    listener: TcpListener,
    waiting: Vec<OwnedFd>,
}

impl Full {
    pub fn new() -> Full {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a loopback port is free");
        rustix::net::listen(&listener, 0).expect("a listener can listen again");
        let address = listener.local_addr().expect("a bound socket has an address");
        let knock = |_| {
            let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
            let socket =
                socket_with(AddressFamily::INET, SocketType::STREAM, flags, None).expect("a socket is free");
            let _ = rustix::net::connect(&socket, &address); // in progress, and stays so
            socket
        };
        Full { listener, waiting: (0..8).map(knock).collect() }
    }

    pub fn port(&self) -> u16 {
        port(&self.listener)
    }

    /// The knocks of our own wait, too, on ports of their own.
    pub fn is_knocked_at(&self, agent: &Agent) -> bool {
        let local = |socket| match rustix::net::getsockname(socket).map(std::net::SocketAddr::try_from) {
            Ok(Ok(address)) => address.port(),
            unknown => panic!("a socket that knocks has an address, not {unknown:?}"),
        };
        let ours: Vec<u16> = self.waiting.iter().map(local).collect();
        rows(agent).iter().any(|row| {
            row.remote_port == self.port() && row.state == SYN_SENT && !ours.contains(&row.local_port)
        })
    }
}

/// Accepts everybody, says `prefix`, and then `piece` every 20 ms for ever.
pub struct Trickle {
    address: SocketAddr,
    closing: Arc<AtomicBool>,
    pieces: Arc<AtomicU64>,
    thread: Option<JoinHandle<()>>,
}

impl Trickle {
    pub fn new(prefix: &'static [u8], piece: &'static [u8]) -> Trickle {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a loopback port is free");
        listener.set_nonblocking(true).expect("a listener need not block");
        let address = listener.local_addr().expect("a bound socket has an address");
        let (closing, pieces) = (Arc::<AtomicBool>::default(), Arc::<AtomicU64>::default());
        let thread = std::thread::spawn({
            let (closing, pieces) = (closing.clone(), pieces.clone());
            move || {
                let mut streams: Vec<TcpStream> = Vec::new();
                while !closing.load(Ordering::Relaxed) {
                    match listener.accept() {
                        Ok((mut stream, _)) => {
                            if stream.write_all(prefix).is_ok() {
                                streams.push(stream);
                            }
                        }
                        Err(cause) => assert_eq!(cause.kind(), ErrorKind::WouldBlock, "{cause}"),
                    }
                    streams.retain_mut(|stream| {
                        pieces.fetch_add(1, Ordering::Relaxed);
                        stream.write_all(piece).is_ok()
                    });
                    pause(Duration::from_millis(20));
                }
            }
        });
        Trickle { address, closing, pieces, thread: Some(thread) }
    }

    pub fn port(&self) -> u16 {
        self.address.port()
    }

    /// How many pieces were said, to all.
    pub fn pieces(&self) -> u64 {
        self.pieces.load(Ordering::Relaxed)
    }
}

impl Drop for Trickle {
    fn drop(&mut self) {
        self.closing.store(true, Ordering::Relaxed);
        let ended = self.thread.take().map(JoinHandle::join);
        assert!(std::thread::panicking() || matches!(ended, Some(Ok(()))), "the trickle panicked");
    }
}

fn port(listener: &TcpListener) -> u16 {
    listener.local_addr().expect("a bound socket has an address").port()
}

const ESTABLISHED: u8 = 1;
const SYN_SENT: u8 = 2;

/// A line of `/proc/<pid>/net/tcp`, see proc(5): all connections of its network namespace.
struct Row {
    local_port: u16,
    remote_port: u16,
    state: u8,
    unsent: u64,
}

fn rows(agent: &Agent) -> Vec<Row> {
    let table = std::fs::read_to_string(format!("/proc/{}/net/tcp", agent.pid())).unwrap_or_default();
    let row = |line: &str| {
        let mut fields = line.split_ascii_whitespace().skip(1);
        let mut port = || u16::from_str_radix(fields.next()?.split_once(':')?.1, 16).ok();
        let (local_port, remote_port) = (port()?, port()?);
        let state = u8::from_str_radix(fields.next()?, 16).ok()?;
        let unsent = u64::from_str_radix(fields.next()?.split_once(':')?.0, 16).ok()?;
        Some(Row { local_port, remote_port, state, unsent })
    };
    table.lines().skip(1).filter_map(row).collect()
}
