//! One connection of the status server: hears a request, gives one answer, leaves.
//!
//! ```text
//! speaking ──whole head, or refused──▶ answering ──all written──▶ leaving ──the client has closed──▶ over
//!     └─────────── closed or broken by the client, or its deadline has passed ───────┴────────────────┘
//! ```
//!
//! Nothing here blocks: the server's loop calls [`Client::advance`] when the socket is ready for what
//! [`Client::interest`] names, or when the deadline has passed. An idle client holds no buffer.
//!
//! Not here: what is answered (`routes.rs`), and who must go when there is no room (`server.rs`).

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use rustix::event::PollFlags;

use super::request::{self, HEAD_MAX_BYTES, Refusal, Request};

/// For the whole request, however slowly it drips in.
const REQUEST_TIME_MAX: Duration = Duration::from_secs(5);

/// For the whole answer, however slowly it is read.
const ANSWER_TIME_MAX: Duration = Duration::from_secs(5);

/// For the client's own close after the answer. Most need one round trip.
const LEAVING_TIME_MAX: Duration = Duration::from_secs(1);

pub(super) struct Client {
    stream: TcpStream,
    state: State,
    deadline: Instant,
}

enum State {
    Speaking {
        head: Vec<u8>,
    },
    Answering {
        answer: Vec<u8>,
        sent: usize,
    },
    /// Our side is closed; what the client still sends is thrown away. Closing with unread bytes would make the
    /// kernel send a reset, which can destroy the answer on its way.
    Leaving,
    Over,
}

impl Client {
    /// `stream` does not block.
    pub fn new(stream: TcpStream, now: Instant) -> Client {
        Client { stream, state: State::Speaking { head: Vec::new() }, deadline: now + REQUEST_TIME_MAX }
    }

    pub fn interest(&self) -> PollFlags {
        match self.state {
            State::Speaking { .. } | State::Leaving => PollFlags::IN,
            State::Answering { .. } => PollFlags::OUT,
            State::Over => PollFlags::empty(),
        }
    }

    /// When the client is over, whatever it does.
    pub fn deadline(&self) -> Instant {
        self.deadline
    }

    /// It has an answer that did not fit into the socket: it costs memory until it has read it.
    pub fn is_answering(&self) -> bool {
        matches!(self.state, State::Answering { .. })
    }

    pub fn is_over(&self) -> bool {
        matches!(self.state, State::Over)
    }

    /// Lets go of what it holds in memory; the socket goes with the client.
    pub fn end(&mut self) {
        self.state = State::Over;
    }

    /// Goes as far as the socket allows. `answer` is asked once in the life of a client.
    pub fn advance(&mut self, now: Instant, answer: impl FnOnce(Result<Request<'_>, Refusal>) -> Vec<u8>) {
        if now >= self.deadline {
            return self.end();
        }
        let moved = match self.state {
            State::Speaking { .. } => self.hear(now, answer),
            State::Answering { .. } => self.write(now),
            State::Leaving => self.discard(),
            State::Over => Ok(()),
        };
        match moved {
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
            // A client that breaks its own connection is nobody's concern but its own.
            Err(_) => self.end(),
            Ok(()) => {}
        }
    }

    fn hear(
        &mut self,
        now: Instant,
        answer: impl FnOnce(Result<Request<'_>, Refusal>) -> Vec<u8>,
    ) -> std::io::Result<()> {
        let State::Speaking { head } = &mut self.state else { return Ok(()) };
        let mut room = [0; HEAD_MAX_BYTES];
        // `head` is never full here: at `HEAD_MAX_BYTES` the parser has refused it.
        let read = self.stream.read(&mut room[..HEAD_MAX_BYTES - head.len()])?;
        if read == 0 {
            self.end();
            return Ok(());
        }
        head.extend_from_slice(&room[..read]);
        let answer = match request::parse(head) {
            Ok(None) => return Ok(()),
            Ok(Some(request)) => answer(Ok(request)),
            Err(refusal) => answer(Err(refusal)),
        };
        self.state = State::Answering { answer, sent: 0 };
        self.deadline = now + ANSWER_TIME_MAX;
        self.write(now)
    }

    fn write(&mut self, now: Instant) -> std::io::Result<()> {
        let State::Answering { answer, sent } = &mut self.state else { return Ok(()) };
        while *sent < answer.len() {
            match self.stream.write(&answer[*sent..])? {
                0 => return Err(ErrorKind::WriteZero.into()),
                written => *sent += written,
            }
        }
        self.stream.shutdown(Shutdown::Write)?;
        self.state = State::Leaving;
        self.deadline = now + LEAVING_TIME_MAX;
        Ok(())
    }

    /// One read a time: a client that pours does not keep the loop from the others.
    fn discard(&mut self) -> std::io::Result<()> {
        if self.stream.read(&mut [0; HEAD_MAX_BYTES])? == 0 {
            self.end();
        }
        Ok(())
    }
}

impl AsFd for Client {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}
