//! A lane: everything that happens to one sink's records after the pipeline.
//!
//! One thread owns the open batches, the queues and the mood of its sink. Senders do the network and report
//! back as events, so nothing here ever waits for it.
//!
//! ```text
//!            Retry                         "try again"
//! Well ───────────────▶ Resting ────────────────────────▶ Probing (the oldest batch, alone)
//!   ▲                      ▲                  Retry            │
//!   │                      └───────────────────────────────────┤
//!   └──────────────────────────────────────────────────────────┘ Delivered, Refused
//! ```
//!
//! Always true: at most one batch per connection is away, and each channel of the street has room for all of
//! them. A source stays with one connection, and a batch that comes back goes to the front of its queue: order
//! within a source holds. The inlet is always emptied, whatever the sink does: what waits here is bounded by
//! the budget, and no worker is ever held up by an ill sink. A share is settled after the sink said yes, after the
//! dead letter was written, or after its records were spooled, and at no other moment. A sink that stays ill is
//! spooled (`lane/spooling.rs`) as soon as no batch of it is away: what is away is older than all that is here.
//!
//! Not here: how a batch is encoded (the sinks), when a sink is tried again (`retry.rs`), when a position is
//! saved (the ledger).

mod health;
mod spooling;

use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, never, select};
use parking_lot::Mutex;

pub use self::health::{Health, HealthView, Mood};
pub use self::spooling::{Settings as SpoolSettings, Spooling};
use super::batch::{Batcher, Sealed, apart, each_record, halves};
use super::retry::Request;
use super::sender::Report;
use super::{LINGER, SMALL_BYTES, receive};
use crate::ack::{Count, Share, SinkId, Verdict, settle_all};
use crate::deadletter::{DeadLetters, Letter};
use crate::error::{Error, Result};
use crate::order;
use crate::record::{Batch, Parcel, RECORD_WEIGHT, Slice};
use crate::sinks::{Answer, Guilty, SinkOptions};
use crate::tasks::{Stop, Task};

/// Lines that become dead letters with one write: an abort leaves little time, and there may be millions.
const LETTERS_BYTES: u64 = 64 * 1024;

/// A disk or a receiver near by answers within this. While all connections are busy nothing can be done with what comes,
/// so it is taken when the answer comes: one wake-up less for each batch.
const QUICK_ANSWER: Duration = Duration::from_millis(3);

/// Between two lines of the log about refused records.
const TELL_EVERY: Duration = Duration::from_secs(10);

pub struct Lane {
    sink: SinkId,
    options: SinkOptions,
    inlet: Receiver<Parcel>,
    streets: Vec<Street>,
    reports: Receiver<Report>,
    retry: Sender<Request>,
    again: Receiver<()>,
    refusals: Receiver<()>,
    /// Of the batch that was sent last, if the sink is quick.
    answer_due: Instant,
    stop: Stop,
    dead_letters: DeadLetters,
    mood: Mood,
    /// Tries of the sink that failed, one after the other; several connections that fail at once are one.
    failures: u32,
    next_number: u64,
    inlet_closed: bool,
    /// The agent aborts, or the last try of a stop failed: nothing is sent any more.
    giving_up: bool,
    /// `None`: what an ill sink cannot take waits in its sources.
    spooling: Option<Spooling>,
    health: HealthView,
    /// Refused since that was last said, and when it may be said again.
    untold_refusals: usize,
    tell_at: Option<Instant>,
}

/// The way to one connection.
struct Street {
    jobs: Sender<Batch>,
    batcher: Batcher,
    queue: VecDeque<Batch>,
    away: bool,
}

/// The channels that end at a lane.
pub struct Ends {
    pub inlet: Receiver<Parcel>,
    /// One per connection, with room for one batch.
    pub jobs: Vec<Sender<Batch>>,
    /// With room for one report per connection.
    pub reports: Receiver<Report>,
    pub retry: Sender<Request>,
    pub again: Receiver<()>,
    /// See [`crate::budget::Budget::tell_of_refusals`].
    pub refusals: Receiver<()>,
}

enum Event {
    Parcel(Parcel),
    InletClosed,
    Report(Report),
    Again,
    /// An open batch has waited long enough.
    Due,
    /// Monitors wait for the memory that an open batch holds: no company will come for it.
    Refusal,
    NoMoreRefusals,
    Stopping,
    Aborted,
    SendersGone,
    /// It has panicked, and the agent is about to stop.
    SchedulerGone,
}

impl Lane {
    pub fn new(
        sink: SinkId,
        options: SinkOptions,
        ends: Ends,
        stop: Stop,
        dead_letters: DeadLetters,
        mut spooling: Option<Spooling>,
        now: Instant,
    ) -> Lane {
        if let Some(spooling) = &mut spooling {
            spooling.begin(now);
        }
        let street =
            |jobs| Street { jobs, batcher: Batcher::new(options.batch), queue: VecDeque::new(), away: false };
        Lane {
            sink,
            inlet: ends.inlet,
            streets: ends.jobs.into_iter().map(street).collect(),
            reports: ends.reports,
            retry: ends.retry,
            again: ends.again,
            refusals: ends.refusals,
            answer_due: now,
            stop,
            dead_letters,
            mood: Mood::Well,
            failures: 0,
            next_number: 0,
            inlet_closed: false,
            giving_up: false,
            spooling,
            untold_refusals: 0,
            tell_at: None,
            health: Arc::new(Mutex::new(Health::new(&options.name, now))),
            options,
        }
    }

    pub fn name(&self) -> &str {
        &self.options.name
    }

    pub fn health(&self) -> HealthView {
        self.health.clone()
    }

    /// Ends when the inlet is closed and everything is answered for, or let go.
    pub fn run(mut self, task: &Task) -> Result<()> {
        self.turn(task.now()); // an earlier life may have left something
        while !self.is_over() {
            task.waits_for(match self.mood {
                Mood::Well => "records and answers",
                Mood::Resting => "the sink to recover",
                Mood::Probing => "the answer to a probe",
            });
            let event = self.next_event(task.now());
            task.beat();
            let is_small =
                matches!(&event, Event::Parcel(parcel) if parcel.share.count().bytes < SMALL_BYTES);
            self.handle(event, task.now())?;
            if is_small && self.inlet.is_empty() {
                task.waits_for("records");
                self.stop.stop.wait(LINGER); // others may come meanwhile
            }
        }
        self.tell_at = None;
        self.tell_refusals("see the dead letters", task.now());
        Ok(())
    }

    fn is_over(&self) -> bool {
        let nothing_here =
            |street: &Street| !street.away && street.queue.is_empty() && street.batcher.due().is_none();
        let spool_may_wait = self.giving_up || self.stop.stop.is_closed();
        let spooled = |spooling: &Spooling| !spooling.waits() && (spool_may_wait || !spooling.has_unread());
        self.inlet_closed
            && self.streets.iter().all(nothing_here)
            && self.spooling.as_ref().is_none_or(spooled)
    }

    fn next_event(&self, now: Instant) -> Event {
        let quick = self.answer_due.saturating_duration_since(now);
        if !quick.is_zero() && self.streets.iter().all(|street| street.away) {
            match receive(&self.reports, quick) {
                Ok(report) => return Event::Report(report),
                Err(RecvTimeoutError::Disconnected) => return Event::SendersGone,
                Err(RecvTimeoutError::Timeout) => {}
            }
        }
        let due = self.streets.iter().filter_map(|street| street.batcher.due());
        // A time to wait, and not a channel that rings at a time: that takes memory, for each batch that waits.
        let due = due.chain(self.spool_due()).min();
        let wait = due.map_or(Duration::MAX, |due| due.saturating_duration_since(now));
        let inlet = if self.inlet_closed { &never() } else { &self.inlet };
        // A stop means nothing here before the inlet has closed: what is on its way comes first.
        let last_call = self.inlet_closed && self.mood == Mood::Resting;
        // Looked at only when it matters: until then the bell keeps, and nobody is woken up.
        let refusals = if self.streets.iter().any(|street| self.could_leave(street)) {
            &self.refusals
        } else {
            &never()
        };
        let stopping = if last_call { self.stop.stop.channel() } else { &never::<Infallible>() };
        let aborted = if self.giving_up { &never::<Infallible>() } else { self.stop.abort.channel() };
        select! {
            recv(self.reports) -> report => report.map_or(Event::SendersGone, Event::Report),
            recv(inlet) -> parcel => parcel.map_or(Event::InletClosed, Event::Parcel),
            recv(self.again) -> again => again.map_or(Event::SchedulerGone, |()| Event::Again),
            recv(refusals) -> bell => bell.map_or(Event::NoMoreRefusals, |()| Event::Refusal),
            recv(stopping) -> _ => Event::Stopping,
            recv(aborted) -> _ => Event::Aborted,
            default(wait) => Event::Due,
        }
    }

    /// Its open batch would be sent at once.
    fn could_leave(&self, street: &Street) -> bool {
        let is_free = !street.away && street.queue.is_empty();
        self.mood == Mood::Well && is_free && street.batcher.due().is_some()
    }

    fn handle(&mut self, event: Event, now: Instant) -> Result<()> {
        match event {
            Event::Parcel(Parcel { records, share }) => {
                self.take(Slice::all(records), share, now);
                for Parcel { records, share } in self.inlet.clone().try_iter().take(self.inlet.len()) {
                    self.take(Slice::all(records), share, now);
                }
            }
            Event::InletClosed => {
                self.inlet_closed = true;
                self.flush(|_| true);
            }
            Event::Due => {}
            Event::Refusal => self.flush(|street| !street.away && street.queue.is_empty()),
            Event::NoMoreRefusals => self.refusals = never(),
            Event::Report(report) => self.take_report(report, now),
            // The last try of a stop does not wait for the scheduler; if it fails, `rest` gives up.
            Event::Again | Event::Stopping if self.mood == Mood::Resting => {
                self.feel(Mood::Probing, None, now)
            }
            Event::Again | Event::Stopping => {}
            Event::Aborted => self.give_up(now),
            Event::SchedulerGone => self.again = never(),
            Event::SendersGone => {
                self.streets.iter_mut().for_each(|street| street.away = false);
                self.give_up(now);
                return Err(Error::new(format!("{}: its senders have ended", self.options.name)));
            }
        }
        self.turn(now);
        Ok(())
    }

    /// What follows from whatever has happened.
    fn turn(&mut self, now: Instant) {
        self.flush(|street| street.batcher.due().is_some_and(|due| due <= now));
        self.spool(now);
        self.dispatch(now);
        let spooled = self.spooling.as_ref().map_or(Count::default(), Spooling::pending);
        let mut health = self.health.lock();
        health.queued_batches = self.streets.iter().map(|street| street.queue.len()).sum();
        (health.spooled_lines, health.spooled_bytes) = (spooled.lines, spooled.bytes);
    }

    /// New records go where all that came before them went.
    fn take(&mut self, slice: Slice, share: Share, now: Instant) {
        let waits_for_older = self.spooling.is_some() && !self.nobody_away();
        match &mut self.spooling {
            _ if self.giving_up && !waits_for_older => self.abandon(slice, share, now),
            Some(spooling) if spooling.takes_all() => spooling.put(slice, share, now),
            _ => self.collect(slice, share, now),
        }
    }

    fn collect(&mut self, slice: Slice, share: Share, now: Instant) {
        let at = (slice.records.origin().lineage % self.streets.len() as u64) as usize;
        let Street { batcher, queue, .. } = &mut self.streets[at];
        let next_number = &mut self.next_number;
        batcher.push_slice(slice, share, now, |parts| queue.push_back(number(next_number, parts)));
    }

    fn nobody_away(&self) -> bool {
        self.streets.iter().all(|street| !street.away)
    }

    fn flush(&mut self, which: impl Fn(&Street) -> bool) {
        for street in self.streets.iter_mut().filter(|street| which(street)) {
            let parts = street.batcher.flush();
            street.queue.extend(parts.map(|parts| number(&mut self.next_number, parts)));
        }
    }

    /// Hands out what may be sent now.
    fn dispatch(&mut self, now: Instant) {
        let oldest = |street: &Street| street.queue.front().map(|batch| batch.number);
        match self.mood {
            _ if self.giving_up => {}
            Mood::Resting => {}
            Mood::Well => (0..self.streets.len()).for_each(|at| self.send(at, now)),
            Mood::Probing => {
                let first = (0..self.streets.len())
                    .filter(|at| oldest(&self.streets[*at]).is_some())
                    .min_by_key(|at| oldest(&self.streets[*at]));
                if let (true, Some(at)) = (self.nobody_away(), first) {
                    self.send(at, now);
                }
            }
        }
    }

    fn send(&mut self, at: usize, now: Instant) {
        let street = &mut self.streets[at];
        if street.away {
            return;
        }
        let Some(batch) = street.queue.pop_front() else { return };
        street.away = true;
        self.answer_due = now + QUICK_ANSWER;
        if let Err(back) = street.jobs.send(batch) {
            // The sender has panicked; the Task Manager stops the agent for it.
            street.away = false;
            street.queue.push_front(back.into_inner());
            self.give_up(now);
        }
    }

    fn take_report(&mut self, report: Report, now: Instant) {
        let Report { street: at, batch, answer } = report;
        self.streets[at].away = false;
        match answer {
            Answer::Delivered => {
                self.recovered(now);
                let (spooling, mut parts) = (&mut self.spooling, batch.parts);
                let shares = parts.drain(..).map(|(slice, share)| {
                    spooling.iter_mut().for_each(|spooling| spooling.answered(&slice));
                    share
                });
                settle_all(shares, &Verdict::Delivered);
                self.streets[at].batcher.use_again(parts);
            }
            Answer::Refused { which, why } => self.refused(at, batch, which, &why, now),
            Answer::Retry { .. } | Answer::Gone { .. } if self.giving_up => {
                self.streets[at].queue.push_front(batch);
            }
            Answer::Gone { why } => {
                log::warn!("{why}; what it did not take is kept where it can be read again");
                self.streets[at].queue.push_front(batch);
                self.feel(Mood::Resting, Some(why), now);
                self.give_up(now);
            }
            Answer::Retry { not_before, why } => {
                self.failures += u32::from(self.mood != Mood::Resting);
                if self.options.retry.max_attempts.is_some_and(|most| self.failures >= most) {
                    self.failures = 0;
                    let reason =
                        format!("no success after {:?} tries: {why}", self.options.retry.max_attempts);
                    self.bury(at, batch, &reason, now);
                } else {
                    self.streets[at].queue.push_front(batch);
                }
                self.rest(not_before, why, now);
            }
        }
        if self.giving_up {
            self.give_up(now); // what came back is not sent again
        }
    }

    fn recovered(&mut self, now: Instant) {
        self.failures = 0;
        if self.mood == Mood::Probing {
            let ill_for = now.saturating_duration_since(self.health.lock().since);
            log::info!("{}: well again after {ill_for:.0?}", self.options.name);
            self.feel(Mood::Well, None, now);
            let _ = self.retry.send(Request::Well { sink: self.sink });
        }
    }

    fn rest(&mut self, asked: Option<Duration>, why: Error, now: Instant) {
        if self.giving_up {
            return;
        }
        if self.inlet_closed && self.stop.stop.is_closed() {
            log::warn!("{why}; the agent is stopping, so that was the last try");
            self.give_up(now);
            return;
        }
        if self.mood != Mood::Resting {
            // A connection that fails while the sink rests already brings no news.
            let news = (self.mood == Mood::Well).then_some(why.clone());
            self.feel(Mood::Resting, Some(why), now);
            let _ = self.retry.send(Request::Rest { sink: self.sink, asked, news });
        }
    }

    fn feel(&mut self, mood: Mood, why: Option<Error>, now: Instant) {
        self.mood = mood;
        let mut health = self.health.lock();
        if health.mood == Mood::Well || mood == Mood::Well {
            health.since = now;
        }
        health.mood = mood;
        if mood == Mood::Well || why.is_some() {
            health.why = why.map(|why| why.to_string());
        }
    }

    /// Everything but the guilty was stored; if nobody knows who they are, halves tell.
    fn refused(&mut self, at: usize, batch: Batch, which: Guilty, why: &str, now: Instant) {
        let alone = batch.records().nth(1).is_none();
        match which {
            Guilty::These(guilty) => self.verdicts(at, batch, &guilty, why, now),
            Guilty::Unknown if alone => self.verdicts(at, batch, &[0], why, now),
            Guilty::Unknown => {
                self.recovered(now);
                let (first, second) = halves(batch);
                self.send_apart(at, vec![first, second]);
            }
            Guilty::Apart(cuts) => {
                self.recovered(now);
                self.send_apart(at, apart(batch, &cuts));
            }
            Guilty::Rest(open) => {
                self.recovered(now);
                let mut rest = Vec::new();
                each_record(batch, &open, |slice, share, is_open| match is_open {
                    true => rest.push((slice, share)),
                    false => settle(&mut self.spooling, &slice, share, &Verdict::Delivered),
                });
                self.send_apart(at, vec![rest]);
            }
        }
    }

    fn send_apart(&mut self, at: usize, all: Vec<Sealed>) {
        for parts in all.into_iter().rev() {
            let batch = number(&mut self.next_number, parts);
            self.streets[at].queue.push_front(batch);
        }
    }

    /// The whole batch goes to the dead letters.
    fn bury(&mut self, at: usize, batch: Batch, why: &str, now: Instant) {
        let all: Vec<usize> = (0..batch.records().count()).collect();
        self.verdicts(at, batch, &all, why, now);
    }

    fn verdicts(&mut self, at: usize, batch: Batch, guilty: &[usize], why: &str, now: Instant) {
        let (mut left, mut ill) = (Vec::new(), None);
        each_record(batch, guilty, |slice, share, is_guilty| {
            if !is_guilty {
                return settle(&mut self.spooling, &slice, share, &Verdict::Delivered);
            }
            match self.dead_letters.put(&Letter::of(&slice.first(), &self.options.name, why)) {
                Ok(()) => settle(&mut self.spooling, &slice, share, &Verdict::DeadLettered),
                Err(cause) => {
                    left.push((slice, share));
                    ill = Some(cause);
                }
            }
        });
        self.untold_refusals += guilty.len() - left.len();
        self.tell_refusals(why, now);
        // A sink whose dead letters nobody takes is not well: else it would rest anew, and say so, each time.
        if ill.is_none() {
            self.recovered(now);
        }
        if let Some(cause) = ill {
            let batch = number(&mut self.next_number, left);
            self.streets[at].queue.push_front(batch);
            self.rest(None, Error::new(format!("{}: {cause}", self.options.name)), now);
        }
    }

    /// The guilty of one batch are found one by one, and may be thousands: one line for many.
    fn tell_refusals(&mut self, why: &str, now: Instant) {
        if self.untold_refusals > 0 && self.tell_at.is_none_or(|at| at <= now) {
            let (name, records) = (&self.options.name, std::mem::take(&mut self.untold_refusals));
            log::warn!("{name}: refused {records} records, kept as dead letters; the last one: {why}");
            self.tell_at = Some(now + TELL_EVERY);
        }
    }

    /// From here on only the inlet is emptied and what is away is waited for.
    fn give_up(&mut self, now: Instant) {
        self.giving_up = true;
        if self.spooling.is_some() && !self.nobody_away() {
            return; // it is older than all that is here, and comes back soon
        }
        for (slice, share) in self.take_all() {
            self.abandon(slice, share, now);
        }
        self.let_go_of_waiting(now);
    }

    /// All that has not been sent, oldest first.
    fn take_all(&mut self) -> Vec<(Slice, Share)> {
        self.flush(|_| true);
        let queues = self.streets.iter_mut().flat_map(|street| street.queue.drain(..));
        let mut batches: Vec<Batch> = queues.collect();
        order::sort_by_key(&mut batches, |batch| batch.number);
        batches.into_iter().flat_map(|batch| batch.parts).collect()
    }

    /// Nothing is sent any more: what did not come out of the spool goes there, or is let go.
    fn abandon(&mut self, slice: Slice, share: Share, now: Instant) {
        match &mut self.spooling {
            _ if slice.records.frame().is_some() => share.let_go(),
            Some(spooling) if spooling.takes_the_rest() => {
                spooling.put(slice, share, now);
                self.let_go_of_waiting(now);
            }
            _ => self.let_go_of(share, &slice),
        }
    }

    /// Nobody waits for room in the spool any more.
    fn let_go_of_waiting(&mut self, now: Instant) {
        if let Some(spooling) = &mut self.spooling {
            spooling.write(now);
        }
        while let Some((slice, share)) = self.spooling.as_mut().and_then(Spooling::take_back) {
            self.let_go_of(share, &slice);
        }
    }

    /// What stands in a file is read again; what came through a stream would be lost, so it is kept as dead
    /// letters.
    fn let_go_of(&self, mut share: Share, slice: &Slice) {
        if slice.records.origin().replayable {
            return share.let_go();
        }
        let Slice { records, range } = slice;
        let mut left = range.clone();
        while !left.is_empty() {
            let most = (left.end - left.start) as usize;
            let some =
                left.start..left.start + records.fit(left.start, most, LETTERS_BYTES, RECORD_WEIGHT).max(1);
            let letter =
                |at| Letter::of(&records.get(at), &self.options.name, "not delivered when the agent stopped");
            if let Err(cause) = self.dead_letters.put_all(some.clone().map(letter)) {
                let (name, source) = (&self.options.name, &records.origin().source);
                log::error!("{name}: {} lines of {source} are lost: {cause}", share.count().lines);
                return share.let_go();
            }
            share.split(records.count(some.clone()), records.end(&some)).settle(&Verdict::Kept);
            left.start = some.end;
        }
    }
}

/// Answered for: what came out of the spool does not come back, even if we die now.
fn settle(spooling: &mut Option<Spooling>, slice: &Slice, share: Share, verdict: &Verdict) {
    if let Some(spooling) = spooling {
        spooling.answered(slice);
    }
    share.settle(verdict);
}

fn number(next: &mut u64, parts: Sealed) -> Batch {
    *next += 1;
    Batch { number: *next, parts }
}

#[cfg(test)]
mod tests;
