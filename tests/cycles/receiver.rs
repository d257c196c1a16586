//! A Loki for tests that count bytes: it notes which numbered lines arrived, in room that it took before the
//! first measurement, and keeps nothing else between two connections.

#![expect(clippy::disallowed_methods, reason = "the other side of the network has a thread of its own")]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;

use parking_lot::Mutex;
use prost::Message;

use crate::house::Tally;

/// Of Loki's `push.proto`, what it takes to find the lines.
#[derive(Clone, PartialEq, Message)]
struct Push {
    #[prost(message, repeated, tag = "1")]
    streams: Vec<Stream>,
}

#[derive(Clone, PartialEq, Message)]
struct Stream {
    #[prost(message, repeated, tag = "2")]
    entries: Vec<Entry>,
}

#[derive(Clone, PartialEq, Message)]
struct Entry {
    #[prost(string, tag = "2")]
    line: String,
}

/// How requests are answered.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Mood {
    Well,
    /// So many requests are answered with 503 before it is well again.
    BusyFor(u32),
    /// Reads requests and says nothing.
    Hang,
}

pub struct Receiver {
    shared: Arc<Shared>,
    address: SocketAddr,
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    tally: Mutex<Tally>,
    mood: Mutex<Mood>,
    hangs: AtomicBool,
    open: AtomicU64,
    closing: AtomicBool,
}

impl Receiver {
    /// For lines numbered below `lines`.
    pub fn start(lines: u64) -> Receiver {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a loopback port is free");
        let address = listener.local_addr().expect("a bound socket has an address");
        let shared = Arc::new(Shared {
            tally: Mutex::new(Tally::new(lines)),
            mood: Mutex::new(Mood::Well),
            hangs: AtomicBool::new(false),
            open: AtomicU64::new(0),
            closing: AtomicBool::new(false),
        });
        let thread = std::thread::spawn({
            let shared = shared.clone();
            move || shared.serve(&listener)
        });
        Receiver { shared, address, thread: Some(thread) }
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// How many different lines have arrived.
    pub fn distinct(&self) -> u64 {
        self.shared.tally.lock().distinct()
    }

    /// Each line below `lines` exactly once, and nothing else.
    #[track_caller]
    pub fn assert_exact(&self, lines: u64) {
        self.shared.tally.lock().assert_exact("the receiver", lines);
    }

    pub fn set(&self, mood: Mood) {
        *self.shared.mood.lock() = mood;
    }

    /// Somebody waits for an answer that will not come.
    pub fn hangs(&self) -> bool {
        self.shared.hangs.load(Ordering::SeqCst)
    }

    pub fn connections(&self) -> u64 {
        self.shared.open.load(Ordering::SeqCst)
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        self.shared.closing.store(true, Ordering::SeqCst);
        let _ = TcpStream::connect(self.address); // wakes it
        self.thread.take().map(JoinHandle::join);
    }
}

impl Shared {
    /// One connection after the other: the agent is told to have one.
    fn serve(&self, listener: &TcpListener) {
        loop {
            let (stream, _) = listener.accept().expect("a connection can be accepted");
            if self.closing.load(Ordering::SeqCst) {
                return;
            }
            self.open.fetch_add(1, Ordering::SeqCst);
            while let Some(()) = self.answer(&mut BufReader::new(&stream)) {}
            drop(stream);
            self.open.fetch_sub(1, Ordering::SeqCst);
        }
    }

    /// `None`: the other side has gone. A client sends its next request after our answer, so a reader per
    /// request loses nothing.
    fn answer(&self, reader: &mut BufReader<&TcpStream>) -> Option<()> {
        let (mut line, mut length) = (String::new(), 0);
        while reader.read_line(&mut line).ok()? > 0 && line != "\r\n" {
            if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
                length = value.trim().parse().ok()?;
            }
            line.clear();
        }
        if line.is_empty() {
            return None;
        }
        let mut body = vec![0; length];
        reader.read_exact(&mut body).ok()?;
        let stored = match self.next_mood() {
            Mood::Well => {
                let plain = snap::raw::Decoder::new().decompress_vec(&body).expect("a push is compressed");
                let push = Push::decode(&*plain).expect("a push can be read");
                let mut tally = self.tally.lock();
                let entries = push.streams.iter().flat_map(|stream| &stream.entries);
                entries.for_each(|entry| tally.line(entry.line.as_bytes()));
                true
            }
            Mood::BusyFor(_) => false,
            Mood::Hang => {
                self.hangs.store(true, Ordering::SeqCst);
                let _ = reader.read(&mut [0]); // until the other side gives up, with or without a reset
                self.hangs.store(false, Ordering::SeqCst);
                return None;
            }
        };
        let answer: &[u8] = match stored {
            true => b"HTTP/1.1 204 Stored\r\n\r\n",
            false => b"HTTP/1.1 503 Busy\r\nContent-Length: 0\r\n\r\n",
        };
        reader.get_mut().write_all(answer).ok()
    }

    fn next_mood(&self) -> Mood {
        let mut mood = self.mood.lock();
        let now = *mood;
        *mood = match now {
            Mood::BusyFor(0 | 1) => Mood::Well,
            Mood::BusyFor(more) => Mood::BusyFor(more - 1),
            other => other,
        };
        now
    }
}
