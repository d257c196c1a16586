//! The stdout sink: lines for a person, a pipe or the journal.
//!
//! Nothing that was written to a pipe can be taken back, so the sender remembers how far it is in a payload:
//! the next try goes on there. It never blocks in a write: it polls stdout together with `abort`, and writes
//! no more than what an answer of `poll` stands for. (A terminal that was stopped within a write, or a second
//! process that fills the same pipe between poll and write, still can hold it up.)
//!
//! A stdout that was closed (`| head`) is not an illness that passes: the sender rings the agent, which stops in
//! order, and says so.

use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, AsRawFd};
use std::sync::Arc;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;

use super::format::Renderer;
use super::{Answer, Encoder, Format, Link, OpenResult, OpenSink, Sender, SinkContext, SinkOptions};
use crate::durable::{FileId, Unsynced, Written};
use crate::error::{Context, Error, Result};
use crate::record::Batch;
use crate::tasks::Closed;

/// PIPE_BUF: what a pipe that polls as writable takes at once, see pipe(7). A socket takes more.
const PIECE_BYTES: usize = 4096;

/// Always one connection.
pub fn open(options: &SinkOptions, format: Format, cx: &SinkContext) -> OpenResult {
    let stdout = rustix::stdio::stdout().try_clone_to_owned().context(|| "could not open stdout".into())?;
    let encoder = StdoutEncoder { renderer: Renderer::new(format, options.labels.clone()), number: 0 };
    let sender = StdoutSender::new(stdout.into(), cx.stdout_gone.clone(), cx)?;
    Ok(OpenSink {
        connections: vec![Box::new(Link::new(encoder, sender))],
        cancel: Box::new(|| {}), // the sender polls `abort` itself
        describe: "stdout".into(),
        recovered: Vec::new(),
        was_known: Arc::default(),
    })
}

#[derive(Default)]
struct Payload {
    /// Tells payloads apart: two batches may have the same bytes.
    number: u64,
    bytes: Vec<u8>,
}

struct StdoutEncoder {
    renderer: Renderer,
    number: u64,
}

impl Encoder for StdoutEncoder {
    type Payload = Payload;

    fn encode(&mut self, batch: &Batch, payload: &mut Payload) {
        self.number += 1;
        payload.number = self.number;
        payload.bytes.clear();
        batch.records().for_each(|record| self.renderer.push(&record, &mut payload.bytes));
    }
}

struct StdoutSender {
    stdout: Arc<File>,
    /// A regular file never makes us wait, and has to be synced like every output.
    file: Option<Arc<Written>>,
    unsynced: Unsynced,
    abort: Closed,
    closed: crossbeam_channel::Sender<()>,
    /// This many bytes of the payload of this number went out.
    written: (u64, usize),
}

impl StdoutSender {
    fn new(stdout: File, closed: crossbeam_channel::Sender<()>, cx: &SinkContext) -> Result<StdoutSender> {
        let metadata = stdout.metadata().context(|| "could not look at stdout".into())?;
        let stdout = Arc::new(stdout);
        let file = metadata.is_file().then(|| Written::new(stdout.clone()));
        if file.is_some() {
            // `> agent.log` in a folder that is captured: the agent would feed itself. Without /proc nobody can
            // tell the path; then that is for the configuration to avoid.
            if let Ok(path) = std::fs::read_link(format!("/proc/self/fd/{}", stdout.as_raw_fd())) {
                cx.own_files.add(FileId::of(&metadata), &path);
            }
        }
        Ok(StdoutSender {
            stdout,
            file,
            unsynced: cx.unsynced.clone(),
            abort: cx.stop.abort.clone(),
            closed,
            written: (0, 0),
        })
    }

    /// Until there is room, or nobody is left to make some: the write will tell.
    fn wait(&self) -> std::result::Result<(), Failure> {
        let mut both = [
            PollFd::from_borrowed_fd(self.stdout.as_fd(), PollFlags::OUT),
            PollFd::from_borrowed_fd(self.abort.as_fd(), PollFlags::empty()),
        ];
        loop {
            match poll(&mut both, None) {
                Err(Errno::INTR) => {}
                Err(cause) => return Err(Failure::Io(cause.into())),
                // What can be written at once is written on abort too.
                Ok(_) if !both[0].revents().is_empty() => return Ok(()),
                Ok(_) => return Err(Failure::Aborted),
            }
        }
    }

    fn write(&mut self, payload: &Payload) -> std::result::Result<(), Failure> {
        if self.written.0 != payload.number {
            self.written = (payload.number, 0);
        }
        let piece_bytes = if self.file.is_some() { usize::MAX } else { PIECE_BYTES };
        loop {
            let rest = &payload.bytes[self.written.1..];
            if rest.is_empty() {
                return Ok(());
            }
            self.wait()?;
            match (&*self.stdout).write(&rest[..rest.len().min(piece_bytes)]) {
                Ok(0) => return Err(Failure::Io(std::io::ErrorKind::WriteZero.into())),
                Ok(written) => self.written.1 += written,
                Err(cause) => match cause.kind() {
                    std::io::ErrorKind::Interrupted | std::io::ErrorKind::WouldBlock => {}
                    std::io::ErrorKind::BrokenPipe => return Err(Failure::Closed),
                    _ => return Err(Failure::Io(cause)),
                },
            }
        }
    }
}

enum Failure {
    Aborted,
    /// For ever.
    Closed,
    Io(std::io::Error),
}

impl Sender<Payload> for StdoutSender {
    fn send(&mut self, payload: &Payload) -> Answer {
        let written = self.write(payload);
        if let Some(file) = &self.file {
            file.wrote_unseen(); // also after an error: a part of it counts on the next try
            self.unsynced.note(file.clone());
        }
        let why = match written {
            Ok(()) => return Answer::Delivered,
            Err(Failure::Aborted) => "told to stop while stdout took nothing".into(),
            Err(Failure::Closed) => {
                let _ = self.closed.try_send(()); // one slot: it has rung already, or the agent is gone
                return Answer::Gone { why: Error::new("stdout was closed by its reader") };
            }
            Err(Failure::Io(cause)) => {
                let rest = payload.bytes.len() - self.written.1;
                format!("could not write {rest} bytes to stdout: {cause}")
            }
        };
        Answer::Retry { not_before: None, why: Error::new(why) }
    }
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "a write that waits needs a thread beside it")]
mod tests {
    use std::io::Read;

    use super::*;
    use crate::record::Labels;
    use crate::sinks::file::tests::{NOON_NS, batch, context, lines, origin};
    use crate::tasks::Switch;

    struct Bench {
        sender: StdoutSender,
        rung: crossbeam_channel::Receiver<()>,
        switch: Switch,
        cx: SinkContext,
    }

    fn bench(stdout: impl Into<File>) -> Bench {
        let (switch, cx) = context();
        let (closed, rung) = crossbeam_channel::bounded(1);
        Bench { sender: StdoutSender::new(stdout.into(), closed, &cx).unwrap(), rung, switch, cx }
    }

    fn payload(number: u64, bytes: &[u8]) -> Payload {
        Payload { number, bytes: bytes.into() }
    }

    /// More than a pipe holds.
    fn large() -> Vec<u8> {
        (0..50_000).flat_map(|number| format!("line {number}\n").into_bytes()).collect()
    }

    fn why(answer: Answer) -> String {
        match answer {
            Answer::Retry { why, .. } | Answer::Gone { why } => why.to_string(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_slow_reader_gets_every_byte() {
        let (mut read, write) = std::io::pipe().unwrap();
        let mut bench = bench(std::os::fd::OwnedFd::from(write));
        let reader = std::thread::spawn(move || {
            let mut all = Vec::new();
            read.read_to_end(&mut all).map(|_| all)
        });
        assert!(matches!(bench.sender.send(&payload(1, &large())), Answer::Delivered));
        assert!(matches!(bench.sender.send(&payload(2, b"last\n")), Answer::Delivered));
        drop(bench.sender);
        assert!(reader.join().unwrap().unwrap() == [&large()[..], b"last\n"].concat());
    }

    #[test]
    fn a_reader_that_does_not_read_cannot_hold_up_the_stop_and_a_retry_goes_on() {
        let (mut read, write) = std::io::pipe().unwrap();
        let mut bench = bench(std::os::fd::OwnedFd::from(write));
        let payload = payload(1, &large());
        let sending = std::thread::spawn(move || {
            let why = why(bench.sender.send(&payload));
            (bench.sender, payload, why)
        });
        bench.switch.abort();
        let (mut sender, payload, why) = sending.join().unwrap();
        assert_eq!(why, "told to stop while stdout took nothing");
        let (_switch, cx) = context();
        sender.abort = cx.stop.abort; // the next life, as far as this sender can tell
        let reader = std::thread::spawn(move || {
            let mut all = Vec::new();
            read.read_to_end(&mut all).map(|_| all)
        });
        assert!(matches!(sender.send(&payload), Answer::Delivered));
        drop(sender);
        assert!(reader.join().unwrap().unwrap() == large(), "nothing twice, nothing missing");
    }

    #[test]
    fn a_closed_stdout_rings_the_agent() {
        let (read, write) = std::io::pipe().unwrap();
        let mut bench = bench(std::os::fd::OwnedFd::from(write));
        assert!(bench.rung.is_empty());
        drop(read);
        for _ in 0..2 {
            let answer = bench.sender.send(&payload(1, b"x\n"));
            assert!(matches!(answer, Answer::Gone { .. }), "{answer:?}");
            assert_eq!(why(answer), "stdout was closed by its reader");
        }
        assert_eq!(bench.rung.len(), 1);
    }

    #[test]
    fn a_full_disk_is_an_illness() {
        let mut bench = bench(File::options().write(true).open("/dev/full").unwrap());
        let why = why(bench.sender.send(&payload(1, b"x\n")));
        assert!(why.starts_with("could not write 2 bytes to stdout: No space"), "{why}");
        assert!(bench.rung.is_empty());
    }

    #[test]
    fn a_file_as_stdout_is_synced_and_never_captured() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("agent.log");
        let mut bench = bench(File::create(&path).unwrap());
        assert!(matches!(bench.sender.send(&payload(1, b"x\n")), Answer::Delivered));
        assert_eq!(std::fs::read(&path).unwrap(), b"x\n");
        assert_eq!(bench.cx.unsynced.len(), 1);
        assert!(bench.cx.own_files.contains(FileId::of(&std::fs::metadata(&path).unwrap())));
    }

    #[test]
    fn equal_batches_are_two_payloads() {
        let renderer = Renderer::new(Format::Text, Labels::default());
        let mut encoder = StdoutEncoder { renderer, number: 0 };
        let batch = batch(1, vec![lines(&origin(1, "a", None), &[b"a\r\n", b"cut"], NOON_NS)]);
        let mut payload = Payload::default();
        encoder.encode(&batch, &mut payload);
        assert_eq!((payload.number, payload.bytes.as_slice()), (1, b"a\r\ncut".as_slice()));
        encoder.encode(&batch, &mut payload);
        assert_eq!((payload.number, payload.bytes.as_slice()), (2, b"a\r\ncut".as_slice()));
    }
}
