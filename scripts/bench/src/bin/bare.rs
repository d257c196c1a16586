//! The bare loops: what the bytes themselves cost, with nothing of an agent around them.
//!
//! ```text
//! bare read|newlines|protobuf|snappy FILE       bare post FILE ADDRESS       bare write|sync FILE OUTPUT
//! ```
//!
//! Each does what the one before it does, and one thing more; `write` reads and writes, and does not look;
//! `sync` makes durable at the end what it wrote, as the agent does, which leaves less of it to the kernel. One
//! thread, reads of 256 KiB, pushes of 1 MiB: what the agent does by default.
//!
//! What is read is read to the beginning of a page: there are processors that copy at a quarter of their speed to a place
//! that stands a few bytes further behind the beginning of its page than what is copied, which is where an allocator puts
//! it. A bare loop must not be slow by accident.

use std::fs::File;
use std::hint::black_box;
use std::io::{Error, Read, Result, Write};
use std::net::TcpStream;

use log_capturer_bench::push::{self, PUSH_BYTES};

const READ_BYTES: usize = 256 * 1024;

const PAGE_BYTES: usize = 4096;

const LABELS: &str = r#"{filename="/var/log/app.log", host="edge-01", source="app"}"#;

#[derive(Clone, Copy, PartialEq, PartialOrd)]
enum Depth {
    Read,
    Newlines,
    Protobuf,
    Snappy,
    Post,
}

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let (what, file, to) = match arguments.as_slice() {
        [what, file] => (what.as_str(), file, None),
        [what, file, to] => (what.as_str(), file, Some(to)),
        _ => return Err(Error::other("usage: bare WHAT FILE [ADDRESS or OUTPUT]")),
    };
    let input = File::open(file)?;
    let depth = match (what, to) {
        ("write", Some(output)) => return copy(input, &File::create(output)?),
        ("sync", Some(output)) => {
            let output = File::create(output)?;
            copy(input, &output)?;
            return output.sync_data();
        }
        ("read", _) => Depth::Read,
        ("newlines", _) => Depth::Newlines,
        ("protobuf", _) => Depth::Protobuf,
        ("snappy", _) => Depth::Snappy,
        ("post", Some(_)) => Depth::Post,
        _ => return Err(Error::other(format!("cannot do {what}"))),
    };
    let server = to.map(TcpStream::connect).transpose()?;
    Loop {
        depth,
        server,
        body: Vec::new(),
        compressed: Vec::new(),
        snappy: snap::raw::Encoder::new(),
        held: 0,
        time_ns: 1_770_000_000_000_000_000,
    }
    .run(input)
}

fn copy(mut input: File, mut output: &File) -> Result<()> {
    let (mut memory, start) = pages();
    let buffer = &mut memory[start..start + READ_BYTES];
    loop {
        match input.read(buffer)? {
            0 => return Ok(()),
            read => output.write_all(&buffer[..read])?,
        }
    }
}

/// [`READ_BYTES`], and where they begin.
fn pages() -> (Vec<u8>, usize) {
    let memory = vec![0; READ_BYTES + PAGE_BYTES];
    let start = memory.as_ptr().align_offset(PAGE_BYTES);
    (memory, start)
}

struct Loop {
    depth: Depth,
    server: Option<TcpStream>,
    body: Vec<u8>,
    compressed: Vec<u8>,
    snappy: snap::raw::Encoder,
    /// Source bytes in `body`.
    held: usize,
    time_ns: u64,
}

impl Loop {
    fn run(mut self, mut input: File) -> Result<()> {
        let (mut memory, start) = pages();
        let buffer = &mut memory[start..start + READ_BYTES];
        let mut kept = 0; // the half line at the end of the last read
        push::open(&mut self.body, LABELS);
        loop {
            let read = input.read(&mut buffer[kept..])?;
            if read == 0 {
                break;
            }
            if self.depth == Depth::Read {
                black_box(&*buffer);
                continue;
            }
            let there = kept + read;
            let mut done = 0;
            for newline in memchr::memchr_iter(b'\n', &buffer[..there]) {
                let line = &buffer[done..newline];
                done = newline + 1;
                if self.depth == Depth::Newlines {
                    black_box(line);
                } else {
                    push::line(&mut self.body, self.time_ns, line);
                    self.time_ns += 1;
                    self.held += line.len() + 1;
                    if self.held >= PUSH_BYTES {
                        self.push()?;
                    }
                }
            }
            buffer.copy_within(done..there, 0);
            kept = there - done;
        }
        if self.held > 0 { self.push() } else { Ok(()) }
    }

    fn push(&mut self) -> Result<()> {
        push::close(&mut self.body);
        if self.depth >= Depth::Snappy {
            self.compressed.resize(snap::raw::max_compress_len(self.body.len()), 0);
            let length = self.snappy.compress(&self.body, &mut self.compressed)?;
            if let Some(server) = &mut self.server {
                post(server, &self.compressed[..length])?;
            }
            black_box(&self.compressed);
        }
        black_box(&self.body);
        self.held = 0;
        push::open(&mut self.body, LABELS);
        Ok(())
    }
}

fn post(server: &mut TcpStream, body: &[u8]) -> Result<()> {
    let head = format!(
        "POST /loki/api/v1/push HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/x-protobuf\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    server.write_all(head.as_bytes())?;
    server.write_all(body)?;
    let mut answer = [0; 1024];
    let mut there = 0;
    while !answer[..there].ends_with(b"\r\n\r\n") {
        match server.read(&mut answer[there..])? {
            0 => return Err(Error::other("the receiver hung up")),
            read => there += read,
        }
    }
    if answer.starts_with(b"HTTP/1.1 204") {
        Ok(())
    } else {
        Err(Error::other("the receiver refused a push"))
    }
}
