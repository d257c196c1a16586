//! A thing that closes once and is never sent on: how every thread learns that it is time to end.
//!
//! Closing reaches those who wait in a `select!` (a channel whose sender is gone) and those who wait in
//! `poll` (a pipe whose write end is gone). A closed channel beats a flag: nobody can miss it or clear it.

use std::convert::Infallible;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, TryRecvError, bounded, never, select};

use crate::error::{Context, Result};

/// Closes when it is dropped.
#[derive(Debug)]
pub struct Closer {
    _channel: Sender<Infallible>,
    _pipe: OwnedFd,
}

/// The side that waits. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Closed {
    channel: Receiver<Infallible>,
    pipe: Arc<OwnedFd>,
}

pub fn closing() -> Result<(Closer, Closed)> {
    use rustix::pipe::{PipeFlags, pipe_with};
    let (read, write) = pipe_with(PipeFlags::CLOEXEC).context(|| "could not make a pipe".into())?;
    // Nothing is ever sent; but to wait for a channel without a slot takes memory each time.
    let (sender, channel) = bounded(1);
    Ok((Closer { _channel: sender, _pipe: write }, Closed { channel, pipe: Arc::new(read) }))
}

impl Closed {
    /// For `select!`: ready for ever once closed, and never before.
    pub fn channel(&self) -> &Receiver<Infallible> {
        &self.channel
    }

    /// Until it is closed, for so long at most. For short waits that come again and again: `select!` on one channel alone
    /// would spin before it sleeps, and give the processor away in between.
    pub fn wait(&self, at_most: Duration) {
        select! {
            recv(self.channel) -> _ => {}
            recv(never::<Infallible>()) -> _ => {}
            default(at_most) => {}
        }
    }

    pub fn is_closed(&self) -> bool {
        matches!(self.channel.try_recv(), Err(TryRecvError::Disconnected))
    }
}

/// For `poll`: reports `HUP` once closed, and nothing before.
impl AsFd for Closed {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.pipe.as_fd()
    }
}

/// What every thread of the path holds: `stop` for those who bring data in, `abort` for everyone who may wait.
#[derive(Clone, Debug)]
pub struct Stop {
    pub stop: Closed,
    pub abort: Closed,
}

/// The other end of [`Stop`]: one per agent, in `main`'s hands. Dropping it aborts, so that a panic of `main`
/// cannot leave the others waiting.
pub struct Switch {
    stop: Option<Closer>,
    abort: Option<Closer>,
    /// What ends calls that cannot wait for a channel: requests in flight.
    cancellers: Vec<Box<dyn Fn() + Send + Sync>>,
}

impl Switch {
    pub fn new() -> Result<(Switch, Stop)> {
        let (stop, stopped) = closing()?;
        let (abort, aborted) = closing()?;
        let switch = Switch { stop: Some(stop), abort: Some(abort), cancellers: Vec::new() };
        Ok((switch, Stop { stop: stopped, abort: aborted }))
    }

    /// `cancel` is run once, right after `abort` was closed.
    pub fn on_abort(&mut self, cancel: Box<dyn Fn() + Send + Sync>) {
        self.cancellers.push(cancel);
    }

    /// Sources bring nothing in any more; what is under way is delivered.
    pub fn stop(&mut self) {
        self.stop = None;
    }

    /// Nobody waits any more. Implies `stop`.
    pub fn abort(&mut self) {
        self.stop = None;
        self.abort = None;
        self.cancellers.drain(..).for_each(|cancel| cancel());
    }
}

impl Drop for Switch {
    fn drop(&mut self) {
        self.abort();
    }
}
