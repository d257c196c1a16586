//! Takes what is sent to it over HTTP on loopback, says yes, and counts lines: a Loki for everybody, and an
//! Elasticsearch for who speaks only that.
//!
//! Bodies are decoded (snappy, gzip) and lines are counted by their mark, so that nobody is fast by losing some. It
//! runs in the benchmark's own process: its time is in nobody's figures.

use std::io::{BufRead, BufReader, Error, Read, Result, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use log_capturer_bench::corpus::{MARK, STAMP_MARK};
use memchr::memmem::Finder;

pub struct Receiver {
    pub address: SocketAddr,
    shared: Arc<Shared>,
}

struct Shared {
    /// The zero of the stamps in timed lines.
    epoch: Instant,
    lines: AtomicU64,
    /// How long each timed line was on its way, in nanoseconds.
    travels: Mutex<Vec<u64>>,
}

impl Receiver {
    pub fn start() -> Result<Receiver> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let address = listener.local_addr()?;
        let shared =
            Arc::new(Shared { epoch: Instant::now(), lines: AtomicU64::new(0), travels: Mutex::default() });
        let served = shared.clone();
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let shared = served.clone();
                // A client that breaks off says nothing about the next one.
                thread::spawn(move || serve(client, &shared));
            }
        });
        Ok(Receiver { address, shared })
    }

    /// Forgets what came so far.
    pub fn begin(&self) {
        self.shared.lines.store(0, Ordering::SeqCst);
        self.shared.travels.lock().unwrap().clear();
    }

    pub fn lines(&self) -> u64 {
        self.shared.lines.load(Ordering::SeqCst)
    }

    /// By the clock of the stamps.
    pub fn now_ns(&self) -> u64 {
        self.shared.epoch.elapsed().as_nanos() as u64
    }

    /// Of all timed lines since [`Receiver::begin`].
    pub fn travels(&self) -> Vec<Duration> {
        self.shared.travels.lock().unwrap().iter().copied().map(Duration::from_nanos).collect()
    }
}

struct Request {
    target: String,
    length: usize,
    chunked: bool,
    encoding: Encoding,
    expects: bool,
}

enum Encoding {
    Plain,
    Snappy,
    Gzip,
}

fn serve(client: TcpStream, shared: &Shared) -> Result<()> {
    client.set_nodelay(true)?;
    let mut out = client.try_clone()?;
    let mut input = BufReader::with_capacity(64 * 1024, client);
    let (mut body, mut decoded) = (Vec::new(), Vec::new());
    while let Some(request) = head(&mut input)? {
        if request.expects {
            out.write_all(b"HTTP/1.1 100 Continue\r\n\r\n")?;
        }
        read_body(&mut input, &request, &mut body)?;
        let arrived = shared.epoch.elapsed().as_nanos() as u64;
        let text = match request.encoding {
            Encoding::Plain => &body,
            Encoding::Snappy => {
                decoded.resize(snap::raw::decompress_len(&body)?, 0);
                snap::raw::Decoder::new().decompress(&body, &mut decoded)?;
                &decoded
            }
            Encoding::Gzip => {
                decoded.clear();
                flate2::read::MultiGzDecoder::new(&*body).read_to_end(&mut decoded)?;
                &decoded
            }
        };
        take(text, arrived, shared);
        out.write_all(match request.target.as_str() {
            "/loki/api/v1/push" => b"HTTP/1.1 204 No Content\r\n\r\n",
            // Enough for an Elasticsearch that has taken everything.
            _ => b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 37\r\n\r\n{\"took\":1,\"errors\":false,\"items\":[]}\n",
        })?;
    }
    Ok(())
}

fn take(text: &[u8], arrived: u64, shared: &Shared) {
    let lines = Finder::new(MARK).find_iter(text).count();
    let stamp = Finder::new(STAMP_MARK);
    let stamps = stamp.find_iter(text).filter_map(|at| {
        let digits = text.get(at + STAMP_MARK.len()..)?.get(..20)?;
        std::str::from_utf8(digits).ok()?.parse::<u64>().ok()
    });
    shared.travels.lock().unwrap().extend(stamps.map(|sent| arrived.saturating_sub(sent)));
    shared.lines.fetch_add(lines as u64, Ordering::SeqCst);
}

/// `None`: the client has hung up between two requests.
fn head(input: &mut impl BufRead) -> Result<Option<Request>> {
    let mut line = String::new();
    if input.read_line(&mut line)? == 0 {
        return Ok(None);
    }
    let target = line.split(' ').nth(1).unwrap_or_default().to_owned();
    let mut request =
        Request { target, length: 0, chunked: false, encoding: Encoding::Plain, expects: false };
    loop {
        line.clear();
        if input.read_line(&mut line)? == 0 {
            return Err(Error::other("a head without an end"));
        }
        let header = line.trim_end().to_ascii_lowercase();
        match header.split_once(": ").unwrap_or((&header, "")) {
            ("", _) => return Ok(Some(request)),
            ("content-length", value) => request.length = value.parse().map_err(Error::other)?,
            ("transfer-encoding", "chunked") => request.chunked = true,
            ("content-type", "application/x-protobuf") => request.encoding = Encoding::Snappy,
            ("content-encoding", "snappy") => request.encoding = Encoding::Snappy,
            ("content-encoding", "gzip") => request.encoding = Encoding::Gzip,
            ("expect", "100-continue") => request.expects = true,
            _ => {}
        }
    }
}

fn read_body(input: &mut impl BufRead, request: &Request, body: &mut Vec<u8>) -> Result<()> {
    body.clear();
    if !request.chunked {
        body.resize(request.length, 0);
        return input.read_exact(body);
    }
    loop {
        let mut line = String::new();
        input.read_line(&mut line)?;
        let length = usize::from_str_radix(line.trim(), 16).map_err(Error::other)?;
        let there = body.len();
        body.resize(there + length, 0);
        input.read_exact(&mut body[there..])?;
        line.clear();
        input.read_line(&mut line)?;
        if length == 0 {
            return Ok(());
        }
    }
}
