//! The `stdin` thread: lines from a pipe, until it ends.
//!
//! What was taken from a pipe cannot be read again, so it is taken only when there is credit for it; before
//! that it waits with its writer. The read is preceded by a `poll` that the stop can end.
//!
//! Always true: what was read and not handed over is in the buffer: a half line, shorter than the limit.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use crossbeam_channel::select;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;

use super::file::framing::{End, frame};
use super::file::identity::lineage;
use super::{NotSent, Opening, Outlet, SourceOptions, Stream};
use crate::budget::Credit;
use crate::error::{Context, Result};
use crate::tasks::Task;

/// What a pipe holds on Linux: a larger read would seldom get more.
const PIPE_BYTES: usize = 64 * 1024;

/// The thread's body.
pub struct Stdin {
    source: SourceOptions,
    outlet: Outlet,
    /// `None`: descriptor 0.
    input: Option<OwnedFd>,
    buffer: Vec<u8>,
    ends: Vec<u32>,
}

/// The agent is stopping.
struct Stop;

impl From<NotSent> for Stop {
    fn from(_: NotSent) -> Stop {
        // A stream has no journal that could fail.
        Stop
    }
}

impl Stdin {
    pub fn new(source: SourceOptions, outlet: Outlet) -> Stdin {
        Stdin { source, outlet, input: None, buffer: Vec::new(), ends: Vec::new() }
    }

    /// Ends at the end of the input, or on stop.
    pub fn run(mut self, task: &Task) -> Result<()> {
        let mut stream = self.outlet.open(Opening {
            generation: None,
            source: &self.source,
            filename: None,
            identity: None,
            start: 0,
            lineage: lineage(&self.source.name, Path::new("")),
        });
        let read = self.read_all(&mut stream, task);
        // Its half line cannot be read again either; there is room for it as a rule.
        if !self.buffer.is_empty() && self.ship(&mut stream, End::Final, None, task).is_err() {
            let upto = stream.position() + self.buffer.len() as u64;
            self.outlet.give_up(&mut stream, upto, "stopped before it could be handed over");
        }
        self.outlet.finish(stream);
        read
    }

    fn read_all(&mut self, stream: &mut Stream, task: &Task) -> Result<()> {
        while self.wait(task)? {
            let Ok(credit) = self.credit(stream, self.buffer.len() + PIPE_BYTES, task) else { break };
            let half = self.buffer.len();
            self.buffer.resize(half + PIPE_BYTES, 0);
            let read = rustix::io::read(input(&self.input), &mut self.buffer[half..]);
            self.buffer.truncate(half + read.unwrap_or(0));
            match read {
                Ok(0) => break,
                Ok(_) => {}
                Err(Errno::INTR | Errno::AGAIN) => continue,
                Err(cause) => return Err(cause).context(|| "could not read the standard input".into()),
            }
            if self.ship(stream, End::More, Some(credit), task).is_err() {
                break;
            }
        }
        Ok(())
    }

    /// Until there is something to read, or its end; `false`: stop.
    fn wait(&self, task: &Task) -> Result<bool> {
        task.waits_for("input");
        let stop = &self.outlet.stop().stop;
        loop {
            let input = input(&self.input);
            let mut ready =
                [PollFd::from_borrowed_fd(input, PollFlags::IN), PollFd::new(stop, PollFlags::empty())];
            match poll(&mut ready, None) {
                Ok(_) if !ready[1].revents().is_empty() => return Ok(false),
                Ok(_) => break,
                Err(Errno::INTR) => {}
                Err(cause) => return Err(cause).context(|| "could not wait for the standard input".into()),
            }
        }
        task.beat();
        Ok(true)
    }

    fn credit(&mut self, stream: &Stream, bytes: usize, task: &Task) -> std::result::Result<Credit, Stop> {
        loop {
            if let Ok(credit) = self.outlet.take(stream, bytes) {
                task.beat();
                return Ok(credit);
            }
            task.waits_for("room");
            select! {
                recv(self.outlet.stop().stop.channel()) -> _ => return Err(Stop),
                recv(self.outlet.room()) -> _ => {}
            }
        }
    }

    /// Hands over every whole line of the buffer, and with `Final` the half one too. `credit` pays for the first
    /// chunk; more are needed only if the lines are very short.
    fn ship(
        &mut self,
        stream: &mut Stream,
        end: End,
        mut credit: Option<Credit>,
        task: &Task,
    ) -> std::result::Result<(), Stop> {
        loop {
            self.ends.clear();
            let (longest, most) = (self.source.max_line_bytes, self.outlet.chunk_lines());
            let len = frame(&self.buffer, longest, end, most, &mut self.ends);
            if len == 0 {
                return Ok(());
            }
            let credit = match credit.take() {
                Some(credit) => credit,
                None => self.credit(stream, len, task)?,
            };
            task.waits_for("room downhill");
            self.outlet.send(stream, &self.buffer[..len], &self.ends, credit)?;
            task.beat();
            self.buffer.drain(..len);
        }
    }
}

fn input(input: &Option<OwnedFd>) -> BorrowedFd<'_> {
    input.as_ref().map_or(rustix::stdio::stdin(), AsFd::as_fd)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use super::super::SourceKind;
    use super::*;
    use crate::ack::Verdict;
    use crate::budget::READ_BYTES;
    use crate::clock::Clock;
    use crate::ledger::Books;
    use crate::monitors::outlet::fixture::{Below, below};
    use crate::record::Labels;
    use crate::tasks::{self, Spec, Table};

    /// Runs `body` beside a thread that reads a pipe; then the stop. Returns what arrived and the last books.
    fn check(body: impl FnOnce(OwnedFd, &mut dyn FnMut() -> Option<Vec<u8>>)) -> (Vec<u8>, Arc<Books>) {
        let state = tempfile::tempdir().unwrap();
        let Below { switch, ledger, supply, chunks, .. } = below(state.path(), 1, READ_BYTES);
        let view = ledger.view();
        let source = SourceOptions {
            name: "stdin".into(),
            labels: Labels::default(),
            max_line_bytes: 1000,
            idle: Duration::from_secs(5),
            kind: SourceKind::Stdin,
        };
        let (read, write) = rustix::pipe::pipe().unwrap();
        let stdin = Stdin { input: Some(read), ..Stdin::new(source, supply.outlet()) };
        drop(supply);
        let table = Arc::new(Table::new(Clock::real()));
        let mut all = Vec::new();
        tasks::run(table.clone(), |tasks| {
            let (mut switch, chunks) = (switch, chunks); // end with us if the test panics
            let spec = |name| Spec::carrier(name, Duration::from_secs(10));
            tasks.spawn(spec("ledger"), |task| ledger.run(task)).unwrap();
            tasks.spawn(spec("stdin"), |task| stdin.run(task)).unwrap();
            let mut next = || {
                let chunk = chunks.recv_timeout(Duration::from_secs(20)).ok()?;
                let data = chunk.lines.data.to_vec();
                chunk.ack.into_shares().into_iter().for_each(|share| share.settle(&Verdict::Delivered));
                all.extend_from_slice(&data);
                Some(data)
            };
            body(write, &mut next);
            switch.stop();
            while next().is_some() {}
        })
        .unwrap();
        assert_eq!(table.fault(true), None);
        let books = view.lock().clone();
        (all, books)
    }

    fn write(pipe: &OwnedFd, text: &[u8]) {
        let mut rest = text;
        while !rest.is_empty() {
            rest = &rest[rustix::io::write(pipe, rest).unwrap()..];
        }
    }

    #[test]
    fn lines_arrive_as_they_come_and_the_half_one_at_the_end() {
        let (all, books) = check(|pipe, next| {
            write(&pipe, b"1\n2\nha");
            assert_eq!(next().unwrap(), b"1\n2\n");
            write(&pipe, b"lf\nend");
            assert_eq!(next().unwrap(), b"half\n");
            drop(pipe);
            assert_eq!(next().unwrap(), b"end");
            assert!(next().is_none(), "the end of the input ends the thread");
        });
        assert_eq!(all, b"1\n2\nhalf\nend");
        assert!(books.all_delivered() && books.generations == 0);
    }

    #[test]
    fn a_stop_ends_a_wait_for_input_and_ships_the_half_line() {
        let (all, books) = check(|pipe, next| {
            write(&pipe, b"1\nhalf");
            assert_eq!(next().unwrap(), b"1\n");
            std::mem::forget(pipe); // nobody closes it: only the stop can end the thread
        });
        assert_eq!(all, b"1\nhalf");
        assert!(books.all_delivered() && books.generations == 0);
    }

    #[test]
    fn more_lines_than_a_chunk_holds_and_longer_ones_than_the_limit() {
        let text = [vec![b'\n'; 40_000], vec![b'x'; 2500], vec![b'\n']].concat();
        let (all, _) = check(|pipe, next| {
            write(&pipe, &text);
            drop(pipe);
            while next().is_some() {}
        });
        assert_eq!(all, text);
    }
}
