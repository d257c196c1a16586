//! SIGTERM, SIGINT and SIGHUP: caught once for the life of the process, heard by the thread `signals` of each life
//! of the agent. What comes while nobody listens waits.

use std::os::unix::net::UnixStream;

use crossbeam_channel::Sender;
use nix::sys::signal::{SigSet, SigmaskHow};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::backend::SignalDelivery;
use signal_hook::iterator::exfiltrator::SignalOnly;

use crate::error::{Context, Result};
use crate::tasks::{Closed, Task};

/// Signals that were caught; let go of when it is dropped.
pub(crate) type Delivery = SignalDelivery<UnixStream, SignalOnly>;

#[derive(Debug)]
pub(crate) enum Signal {
    Stop(&'static str),
    Reload,
}

impl From<i32> for Signal {
    fn from(signal: i32) -> Signal {
        match signal {
            SIGTERM => Signal::Stop("SIGTERM"),
            SIGINT => Signal::Stop("SIGINT"),
            _ => Signal::Reload,
        }
    }
}

/// From here on they wait for [`listen`]. Held back meanwhile: signal-hook (registry 1.4.8) swallows one that comes
/// between its handler and what the handler does.
pub(crate) fn catch() -> Result<Delivery> {
    use nix::sys::signal::Signal::{SIGHUP as HUP, SIGINT as INT, SIGTERM as TERM};
    let doing = || "could not catch signals".to_owned();
    let ours: SigSet = [TERM, INT, HUP].into_iter().collect();
    let (read, write) = UnixStream::pair().context(doing)?;
    let before = ours.thread_swap_mask(SigmaskHow::SIG_BLOCK).context(doing)?;
    let caught = SignalDelivery::with_pipe(read, write, SignalOnly, [SIGTERM, SIGINT, SIGHUP]);
    before.thread_set_mask().context(doing)?;
    caught.context(doing)
}

/// The thread `signals`, until `ended` closes.
pub(crate) fn listen(
    caught: &mut Delivery,
    to_main: &Sender<Signal>,
    task: &Task,
    ended: &Closed,
) -> Result<()> {
    while !ended.is_closed() {
        task.waits_for("signals");
        let polled = &mut [
            PollFd::new(caught.get_read(), PollFlags::IN),
            PollFd::new(ended, PollFlags::empty()), // HUP needs not be asked for
        ];
        match poll(polled, None) {
            Ok(_) | Err(Errno::INTR) => task.beat(),
            Err(cause) => return Err(cause).context(|| "could not wait for signals".into()),
        }
        if ended.is_closed() {
            break; // what came so late is the next life's
        }
        for signal in caught.pending().map(Signal::from) {
            // Reloads never take the place of a stop. Full of stops: main has enough to do with those.
            if matches!(signal, Signal::Stop(_)) || to_main.is_empty() {
                let _ = to_main.try_send(signal);
            }
        }
    }
    Ok(())
}
