//! Podman's log of a container that runs: read to its end again and again, and followed only for a sign that there is
//! more.
//!
//! A log that Podman keeps in a file it follows with a library that takes half a line for a whole one when it meets the
//! end of the file in the middle of a write, and goes on behind all that was written meanwhile (nxadm/tail, `tail.go`, up
//! to 1.4.11: `seekEnd`). So what is followed has holes. What is read to its end has none; but its last line may be half
//! a line there too. So that one is taken only if a second reading ends with the same: a [`Newest`].
//!
//! Podman looks through the whole file each time, so the next reading waits for ten times as long as the last one took.
//!
//! One that was run with `--rm` is often gone before it can be read. What is followed of it can be read all the same, holes
//! or not: so of a young container that is kept open besides, and not read unless there is nothing else: a [`Spare`].
//!
//! Not here: how a log is read (`shipper.rs`), what is done when the container is dead (`reader.rs`).

use std::borrow::Cow;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use super::api::{Came, Failure, Stream as Log};
use super::cursor::Track;
use super::reader::{Opened, Reader, Reading, ended_by};
use super::reports::How;
use super::shipper::{DEAD_SILENCE, Followed, Shipper, Text};
use crate::ledger::Cursor;
use crate::net::wait_for_any;
use crate::record::Mark;
use crate::tasks::Task;

/// Longer than a line is being written. Nobody waits for it: the engine writes on.
const PAUSE: Duration = Duration::from_millis(300);

/// Of the time that Podman may spend on one log.
const PAUSE_PER_READING: u32 = 10;

/// However large a log has become.
const PAUSE_MOST: Duration = Duration::from_secs(60);

/// What a second one ends with was not there in the first, or is sure.
const READINGS_ONCE: u64 = 2;

/// A sign may be lost: the library passes over what would have been one.
const WITHOUT_A_SIGN: Duration = Duration::from_secs(60);

/// A container that has lived longer is asked for its last words when it dies; until then its spare takes a descriptor.
const SPARE_FOR: Duration = Duration::from_secs(60);

/// And if there are more, they would all be sent once more before the first one that is needed.
const SPARE_LINES: u64 = 10_000;

/// A log that is followed and was not read yet.
pub(super) struct Spare {
    log: Log,
    /// Where it begins.
    from: Option<Cursor>,
    /// Lines that were taken since then.
    pub taken: u64,
    until: Instant,
}

/// A line that was not handed on yet.
#[derive(Clone, Default)]
pub(super) struct Fresh<'a> {
    pub time_ns: i64,
    pub mark: Mark,
    /// Behind it.
    pub cursor: Option<Cursor>,
    pub raw: Cow<'a, [u8]>,
}

impl Fresh<'_> {
    pub fn into_owned(self) -> Fresh<'static> {
        Fresh { raw: Cow::Owned(self.raw.into_owned()), ..self }
    }
}

/// Holds back the last line of a reading.
#[derive(Default)]
pub(super) struct Newest {
    held: Option<Fresh<'static>>,
    /// With which line the last reading ended, if that was held back, and where it would stand.
    unsure: Option<(u64, Fresh<'static>)>,
}

impl Newest {
    /// Gives out the one before it, which is whole.
    pub fn hold(&mut self, fresh: Fresh<'static>) -> Option<Fresh<'static>> {
        self.held.replace(fresh)
    }

    pub fn held_bytes(&self) -> usize {
        self.held.as_ref().map_or(0, |line| line.raw.len())
    }

    /// At the end of a reading: what is held, if the last one ended just so. If nothing is, the log does not have any more
    /// what was held back before. `position`: where it would stand.
    pub fn end(&mut self, position: u64) -> Option<Fresh<'static>> {
        let before = self.give_up_waiting(position);
        let Some(held) = self.held.take() else { return before };
        if before.is_some_and(|line| line.raw == held.raw) {
            return Some(held);
        }
        self.unsure = Some((position, held));
        None
    }

    /// No further reading will have it. `position`: where the next line stands.
    pub fn give_up_waiting(&mut self, position: u64) -> Option<Fresh<'static>> {
        self.unsure.take().filter(|(at, _)| *at == position).map(|(_, line)| line)
    }
}

impl Reader {
    /// Until the container is dead, as far as is known; of one that is not followed, until all is sure that stood there at
    /// first: what is written while it is looked at comes without end.
    pub(super) fn read_again_and_again(
        &mut self,
        opened: &mut Option<Opened>,
        task: &Task,
    ) -> Result<(), How> {
        self.spare = if self.follow { self.open_spare(opened.as_ref(), task)? } else { None };
        let mut sign = None;
        for reading in 1_u64.. {
            self.spare.take_if(|spare| spare.taken > SPARE_LINES || spare.until <= task.now());
            self.round(opened, Reading::WhileWritten, task)?;
            if self.behind {
                self.behind = self.is_gone(); // else what it ended with was the end
            }
            let is_sure = self.newest.unsure.is_none();
            if !self.follow && (is_sure || reading == READINGS_ONCE) {
                return Ok(());
            } else if !is_sure {
                sign = None;
            } else if let Some(sign) = sign.take() {
                if self.is_over(sign, task)? {
                    return Ok(());
                }
            } else {
                // What was written before it began is none: so the log is read once more before it is waited for.
                task.waits_for("lines");
                sign = self.shared.engine.signs(&self.facts.id).map_err(ended_by)?;
            }
            task.waits_for("more lines");
            self.wait((self.engine_took * PAUSE_PER_READING).clamp(PAUSE, PAUSE_MOST), None)?;
            if self.is_dead() {
                break;
            }
        }
        Ok(())
    }

    /// It is gone, and was not read to its end: what there is of it otherwise.
    pub(super) fn read_what_is_left(&mut self, opened: &mut Option<Opened>, task: &Task) -> How {
        let gone = How::Missing { complete: false };
        let read = self.spare.take().map(|spare| self.read_spare(spare, opened, task));
        match (read, opened) {
            (Some(Ok(())), _) => How::Missing { complete: true },
            (Some(Err(How::Stopped)), _) => How::Stopped,
            (_, Some(opened)) => {
                let mut shipper = Shipper::new(&mut self.outlet, task, opened, None);
                shipper.newest = Some(&mut self.newest);
                shipper.hand_on_the_newest();
                gone
            }
            (_, None) => gone,
        }
    }

    /// `None`: nothing is there yet, or Podman does not begin to answer.
    fn open_spare(&self, opened: Option<&Opened>, task: &Task) -> Result<Option<Spare>, How> {
        task.doing("asking for the log");
        let from = self.from(opened);
        match self.shared.engine.logs(&self.facts.id, from, true) {
            Ok(log) => Ok(Some(Spare { log, from, taken: 0, until: task.now() + SPARE_FOR })),
            Err(Failure::Silent(_)) => Ok(None),
            Err(failure) => Err(ended_by(failure)),
        }
    }

    fn read_spare(&mut self, spare: Spare, opened: &mut Option<Opened>, task: &Task) -> Result<(), How> {
        let opened = match opened {
            Some(opened) => opened,
            None => opened.insert(self.open()),
        };
        let followed = Followed {
            shared: &self.shared,
            id: &self.facts.id,
            alive: &self.alive,
            bell: self.bell.as_deref(),
            asked: true,
        };
        let mut shipper = Shipper::new(&mut self.outlet, task, opened, Some(followed));
        (shipper.track, shipper.skip) = (Track::new(spare.from), spare.taken);
        let mut text = Text::new(&self.shared, spare.from.map(|from| from.ns));
        shipper.pump(spare.log, &mut text)?;
        text.end(&mut shipper);
        shipper.ship();
        if shipper.stopped { Err(How::Stopped) } else { Ok(()) }
    }

    /// Waits for a sign that there is more. Whether the container is dead instead.
    fn is_over(&mut self, mut sign: Log, task: &Task) -> Result<bool, How> {
        task.waits_for("lines");
        let until = task.now() + WITHOUT_A_SIGN;
        loop {
            match sign.read(&mut [0; 1024]) {
                Ok(Came::Bytes(_)) => return Ok(false),
                Ok(Came::End) => return Ok(true),
                Ok(Came::Nothing) => {}
                Err(cause) => return Err(How::Broken(format!("the connection broke: {cause}"))),
            }
            let left = until.saturating_duration_since(task.now());
            if self.is_dead() || left.is_zero() {
                return Ok(self.is_dead());
            }
            self.wait(left, Some(&sign))?;
        }
    }

    /// For the stop, the container's death, a sign, or the end of `at_most`.
    fn wait(&self, at_most: Duration, sign: Option<&Log>) -> Result<(), How> {
        let stop = &self.outlet.stop().stop;
        let mut others = vec![stop.as_fd()];
        let mut at_most = at_most;
        match &self.bell {
            Some(bell) => {
                bell.silence();
                others.push(bell.as_fd());
            }
            None => at_most = at_most.min(DEAD_SILENCE),
        }
        if self.is_dead() {
            return Ok(()); // it rang just now
        }
        let waited = match sign {
            Some(sign) => sign.wait(&others, Some(at_most)),
            None => wait_for_any(&others, Some(at_most)),
        };
        waited.map_err(|cause| How::Broken(format!("could not wait for lines: {cause}")))?;
        if stop.is_closed() { Err(How::Stopped) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn held(newest: &mut Newest, position: u64, lines: &[&str]) -> Vec<String> {
        let text = |fresh: Fresh<'_>| String::from_utf8(fresh.raw.into_owned()).unwrap();
        let mut taken = Vec::new();
        let mut at = position;
        for line in lines {
            let fresh = Fresh { raw: line.as_bytes().to_vec().into(), ..Fresh::default() };
            if let Some(fresh) = newest.hold(fresh) {
                at += fresh.raw.len() as u64;
                taken.push(text(fresh));
            }
        }
        taken.extend(newest.end(at).map(text));
        taken
    }

    #[test]
    fn the_last_line_is_taken_when_two_readings_end_with_it() {
        let mut newest = Newest::default();
        assert_eq!(held(&mut newest, 0, &["a", "b", "ha"]), ["a", "b"]);
        assert_eq!(held(&mut newest, 2, &["half", "x"]), ["half"]);
        assert_eq!(held(&mut newest, 6, &["x"]), ["x"]);
        assert_eq!(held(&mut newest, 7, &["x"]), [""; 0], "another one, though it looks the same");
        assert_eq!(held(&mut newest, 7, &["x"]), ["x"]);
        assert_eq!(held(&mut newest, 8, &[]), [""; 0]);
        assert_eq!(held(&mut newest, 8, &["y"]), [""; 0]);
        assert_eq!(held(&mut newest, 8, &[]), ["y"], "it is not there any more");
        assert_eq!(held(&mut newest, 9, &[]), [""; 0]);
    }

    #[test]
    fn what_was_held_back_is_handed_on_if_nobody_has_taken_it_since() {
        for (position, expected) in [(4, true), (5, false)] {
            let mut newest = Newest::default();
            held(&mut newest, 4, &["x"]);
            assert_eq!(newest.give_up_waiting(position).is_some(), expected);
        }
    }
}
