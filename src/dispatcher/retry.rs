//! The retry scheduler: one thread that knows when each resting sink may be tried again. It holds no data.
//!
//! A lane says "my sink rests" and gets one "try again" back; it says "my sink is well" and its back-off starts
//! from the beginning. Both channels have room for all of it, so nobody ever waits here.

use std::time::Instant;

use crossbeam_channel::{Receiver, Sender, at, never, select};

use super::backoff::Backoff;
use crate::ack::SinkId;
use crate::error::{Error, Result};
use crate::tasks::Task;

#[derive(Debug)]
pub enum Request {
    /// `asked`: how long the sink wants to be left alone. `news`: why, if it was well until now.
    Rest {
        sink: SinkId,
        asked: Option<std::time::Duration>,
        news: Option<Error>,
    },
    Well {
        sink: SinkId,
    },
}

/// Requests that one lane can have on their way: it rests once until it is told to try again.
pub const REQUESTS_PER_LANE: usize = 2;

pub struct Retry {
    requests: Receiver<Request>,
    /// By [`SinkId`].
    sinks: Vec<Patient>,
}

/// A sink as the scheduler sees it.
pub struct Patient {
    pub backoff: Backoff,
    /// One slot: the lane looks when it has time.
    pub again: Sender<()>,
    due: Option<Instant>,
}

impl Patient {
    pub fn new(backoff: Backoff, again: Sender<()>) -> Patient {
        Patient { backoff, again, due: None }
    }
}

enum Event {
    Request(Request),
    Due,
    Closed,
}

impl Retry {
    pub fn new(requests: Receiver<Request>, sinks: Vec<Patient>) -> Retry {
        Retry { requests, sinks }
    }

    /// Ends when the lanes are gone.
    pub fn run(mut self, task: &Task) -> Result<()> {
        loop {
            task.waits_for("sinks that rest");
            let event = self.next_event();
            task.beat();
            match event {
                Event::Request(request) => self.handle(request, task.now()),
                Event::Due => self.wake(task.now()),
                Event::Closed => return Ok(()),
            }
        }
    }

    fn next_event(&self) -> Event {
        let due = self.sinks.iter().filter_map(|patient| patient.due).min().map_or(never(), at);
        select! {
            recv(self.requests) -> request => request.map_or(Event::Closed, Event::Request),
            recv(due) -> _ => Event::Due,
        }
    }

    fn handle(&mut self, request: Request, now: Instant) {
        match request {
            Request::Rest { sink, asked, news } => {
                let patient = &mut self.sinks[sink.0 as usize];
                let wait = patient.backoff.next(asked);
                patient.due = Some(now + wait);
                if let Some(why) = news {
                    log::warn!("{why}; trying again in {wait:.0?}");
                }
            }
            Request::Well { sink } => {
                let patient = &mut self.sinks[sink.0 as usize];
                patient.backoff.reset();
                patient.due = None;
            }
        }
    }

    fn wake(&mut self, now: Instant) {
        for patient in &mut self.sinks {
            if patient.due.is_some_and(|due| due <= now) {
                patient.due = None;
                let _ = patient.again.try_send(()); // full: the lane has not looked yet, and one is enough
            }
        }
    }
}
