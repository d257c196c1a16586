//! Where a container's log is read on, and the time of each of its lines. Pure.
//!
//! The engine gives a log again from a time on ([`Cursor::ns`]). How many lines from there on were taken already
//! ([`Cursor::lines`]) says what to skip. For this to be exact the time must part the log cleanly: whatever came
//! before it is older, whatever comes after it is not. The last line's time does not: dockerd copies stdout and
//! stderr with two threads, each of which takes the time and then the lock, so neighbours may be out of order;
//! and a long line takes its place when it ends and has the time of its beginning. So a line's time becomes a
//! cursor only if it is above all before it, no half line is older, and nothing older has come for [`LAG_NS`].
//!
//! The log's first line is one of such neighbours too: until the first cursor is found, what is older than it by
//! [`LAG_NS`] stands for the beginning.
//!
//! A clock that was set back further than that begins anew: from the first line after it on. A replay from there
//! brings some of the lines from before again, with their own times: rather doubled than lost.
//!
//! The time of a line is the engine's. One that is not above that of the line before it, though it is not older
//! either, gets one nanosecond more than that: a sink that drops equal entries never drops a real repeat.
//!
//! Always true: the same log, read from any cursor that this gave, has the same lines with the same times.

use crate::ledger::Cursor;

/// Longer than a thread of a busy engine waits for its turn.
const LAG_NS: i64 = 1_000_000_000;

/// So that a younger cursor is found about as often as the last one has become old enough.
const SPACING_NS: i64 = LAG_NS / 2;

/// One log from some cursor on. A new one for every time it is read again.
#[derive(Debug)]
pub struct Track {
    skip: Skip,
    /// From here on it would be read again.
    cut: Option<Cursor>,
    /// The next one, once it is old enough.
    next: Option<Cursor>,
    /// The largest time that came, or was given.
    high_ns: i64,
    /// Of the line before, as it came, and as it was given.
    last: Option<(i64, i64)>,
}

#[derive(Debug)]
enum Skip {
    /// The first line tells.
    Unknown(Cursor),
    Lines(u64),
    Done,
}

/// What to do with a line.
#[derive(Debug, PartialEq, Eq)]
pub enum Step {
    /// It was taken before.
    Known,
    /// To be taken, with this time.
    New { time_ns: i64 },
    /// The same; but the log does not begin where it was left, so what follows is not what was expected.
    NewAfterGap { time_ns: i64 },
}

impl Track {
    /// `from`: as [`Track::cursor`] gave it, if it is read again; ask the engine for lines since [`Cursor::ns`].
    pub fn new(from: Option<Cursor>) -> Track {
        let skip = from.map_or(Skip::Done, Skip::Unknown);
        Track { skip, cut: None, next: None, high_ns: i64::MIN, last: None }
    }

    /// `held`: when the oldest half line began that is older than the end of this one.
    pub fn line(&mut self, ns: i64, held: Option<i64>) -> Step {
        let time_ns = match self.last {
            Some((last_ns, last_given)) if ns >= last_ns => ns.max(last_given + 1),
            _ => ns,
        };
        self.mark(ns, held);
        self.last = Some((ns, time_ns));
        self.high_ns = self.high_ns.max(time_ns);
        match self.skip {
            Skip::Done => Step::New { time_ns },
            Skip::Unknown(cursor) if cursor.lines > 0 && begins_at(cursor, ns, held) => {
                self.skip = if cursor.lines > 1 { Skip::Lines(cursor.lines - 1) } else { Skip::Done };
                Step::Known
            }
            Skip::Unknown(cursor) => {
                self.skip = Skip::Done;
                if cursor.lines > 0 { Step::NewAfterGap { time_ns } } else { Step::New { time_ns } }
            }
            Skip::Lines(left) => {
                self.skip = if left > 1 { Skip::Lines(left - 1) } else { Skip::Done };
                Step::Known
            }
        }
    }

    /// Of the line that was taken last: its last part, which may have a time of its own. A log from a time in between on would begin
    /// with the rest of that line.
    pub fn ended(&mut self, ns: i64) {
        self.high_ns = self.high_ns.max(ns);
    }

    fn mark(&mut self, ns: i64, held: Option<i64>) {
        let here = Cursor { ns, lines: 0 };
        match (self.cut, &self.skip) {
            (Some(cut), _) if ns >= cut.ns => {}
            (None, Skip::Unknown(from)) if begins_at(*from, ns, held) => {
                self.cut = Some(Cursor { lines: 0, ..*from })
            }
            (None, Skip::Unknown(from)) if from.lines == 0 => self.cut = Some(here),
            _ => {
                self.cut = Some(Cursor { ns: began(ns, held).saturating_sub(LAG_NS), lines: 0 });
                self.next = None;
            }
        }
        if self.next.is_some_and(|next| ns < next.ns || held.is_some_and(|held| held < next.ns)) {
            self.next = None;
        }
        let clean = ns > self.high_ns && held.is_none_or(|held| held >= ns);
        let spaced = self.cut.is_some_and(|cut| ns.saturating_sub(cut.ns) >= SPACING_NS);
        if self.next.is_none() && clean && spaced {
            self.next = Some(here);
        }
        if let Some(next) = self.next
            && ns.max(self.high_ns).saturating_sub(next.ns) >= LAG_NS
        {
            self.cut = self.next.take();
        }
        for cursor in [&mut self.cut, &mut self.next].into_iter().flatten() {
            cursor.lines += 1;
        }
    }

    /// Behind the last line. `None`: from the beginning.
    pub fn cursor(&self) -> Option<Cursor> {
        match self.skip {
            // What was known before, as long as this reading is not past it.
            Skip::Unknown(cursor) => Some(cursor),
            Skip::Lines(left) => self.cut.map(|cut| Cursor { lines: cut.lines + left, ..cut }),
            Skip::Done => self.cut,
        }
    }
}

/// Whether a log with this first line is whole from the cursor on: it is the cursor's, or the first one of all.
fn begins_at(cursor: Cursor, ns: i64, held: Option<i64>) -> bool {
    ns == cursor.ns || began(ns, held) == cursor.ns.saturating_add(LAG_NS)
}

/// The oldest of what has come.
fn began(ns: i64, held: Option<i64>) -> i64 {
    held.map_or(ns, |held| held.min(ns))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::frames::{Event, Frames, Side};
    use super::super::lines::{Joiner, Line};
    use super::*;

    const SECOND: i64 = 1_000_000_000;

    fn given(times: &[i64]) -> Vec<i64> {
        let mut track = Track::new(None);
        let time = |ns: &i64| match track.line(*ns, None) {
            Step::New { time_ns } => time_ns,
            other => panic!("{other:?}"),
        };
        times.iter().map(time).collect()
    }

    #[test]
    fn equal_times_are_counted_and_steps_back_are_believed() {
        assert_eq!(given(&[5, 5, 5, 6, 10]), [5, 6, 7, 8, 10]);
        assert_eq!(given(&[5, 4, 4, 9]), [5, 4, 5, 9]);
        assert_eq!(given(&[9 * SECOND, SECOND, SECOND]), [9 * SECOND, SECOND, SECOND + 1]);
    }

    #[test]
    fn a_cursor_follows_at_a_distance() {
        let mut track = Track::new(None);
        let mut cursors = Vec::new();
        for ns in [0, SECOND, 3 * SECOND / 2, 2 * SECOND, 9 * SECOND, 9 * SECOND] {
            track.line(ns, None);
            let cursor = track.cursor().unwrap();
            cursors.push((cursor.ns / SECOND, cursor.lines));
        }
        assert_eq!(cursors, [(-1, 1), (0, 2), (0, 3), (0, 4), (1, 3), (1, 4)]);
    }

    #[test]
    fn a_log_that_lost_its_beginning_is_taken_as_it_is() {
        let mut track = Track::new(Some(Cursor { ns: 5, lines: 3 }));
        assert_eq!(track.line(6, None), Step::NewAfterGap { time_ns: 6 });
        assert_eq!(track.line(7, None), Step::New { time_ns: 7 });
        let mut track = Track::new(Some(Cursor { ns: 5, lines: 0 }));
        assert_eq!(track.line(6, None), Step::New { time_ns: 6 });
    }

    type Message = (Side, i64, String);
    /// Its time and its text.
    type Taken = (i64, Vec<u8>);

    /// An engine that filters each message by its time, which is what Docker 20 does; and a reader of it. Lines as
    /// `(time, text)`, the cursor behind each.
    fn read(log: &[Message], from: Option<Cursor>) -> Vec<(Taken, Option<Cursor>)> {
        read_as(log, from, true)
    }

    /// `parts_share_a_time`: else, as in Podman, nobody knows whether there is an end.
    fn read_as(
        log: &[Message],
        from: Option<Cursor>,
        parts_share_a_time: bool,
    ) -> Vec<(Taken, Option<Cursor>)> {
        let mut track = Track::new(from);
        let (mut joiner, mut all) = (Joiner::new(9, parts_share_a_time), Vec::new());
        let mut each = |line: Line<'_>| {
            let step = track.line(line.ns, line.held);
            track.ended(line.end_ns);
            if let Step::New { time_ns } | Step::NewAfterGap { time_ns } = step {
                all.push(((time_ns, line.raw.to_vec()), track.cursor()));
            }
        };
        for (side, ns, text) in log.iter().filter(|(_, ns, _)| from.is_none_or(|from| *ns >= from.ns)) {
            joiner.message(*side, Some(*ns), &mut each);
            joiner.text(*side, text.as_bytes(), false, &mut each);
        }
        if parts_share_a_time {
            joiner.end(false, &mut each);
        }
        all
    }

    /// Messages as two threads of an engine write them: parts of one line have one time, neighbours may be out
    /// of order by less than [`LAG_NS`], times may be equal, some lines end without a line end.
    fn log() -> impl Strategy<Value = Vec<Message>> {
        let step = prop_oneof![Just(0i64), 1..3i64, Just(SECOND / 10), Just(SECOND), Just(3 * SECOND)];
        let message = (any::<bool>(), step, -SECOND / 3..=0i64, 0..6u8, any::<bool>());
        proptest::collection::vec(message, 0..60).prop_map(|steps| {
            let (mut now, mut open) = (100 * SECOND, [None; 2]);
            let mut log = Vec::new();
            for (number, (err, step, late, kind, out_of_order)) in steps.into_iter().enumerate() {
                now += step;
                let side = if err { Side::Stderr } else { Side::Stdout };
                let fresh = if out_of_order { now + late } else { now };
                let ns = open[side as usize].unwrap_or(fresh);
                let (text, end) = match kind {
                    0 => (format!("part{number}"), false),
                    1 => ("x\n".into(), true),
                    _ => (format!("line {number}\n"), true),
                };
                open[side as usize] = if end { None } else { Some(ns) };
                log.push((side, ns, text));
            }
            log
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn from_any_cursor_on_the_same_lines_follow(log in log()) {
            // A line that waits for its end has one time however long that takes.
            let whole = read(&log, None);
            for (taken, (_, cursor)) in whole.iter().enumerate() {
                let rest: Vec<_> = read(&log, *cursor).into_iter().map(|(line, _)| line).collect();
                let expected: Vec<_> = whole[taken + 1..].iter().map(|(line, _)| line.clone()).collect();
                prop_assert_eq!(rest, expected, "after {} lines, from {:?}", taken + 1, cursor);
            }
        }

        #[test]
        fn so_it_is_where_parts_have_times_of_their_own(log in log(), whole_seconds: bool) {
            let mut now = 0;
            let as_written = |(side, ns, text): Message| {
                now = now.max(ns);
                (side, if whole_seconds { now - now % SECOND } else { now }, text)
            };
            let log: Vec<Message> = log.into_iter().map(as_written).collect();
            let whole = read_as(&log, None, false);
            for (taken, (_, cursor)) in whole.iter().enumerate() {
                let rest: Vec<_> = read_as(&log, *cursor, false).into_iter().map(|(line, _)| line).collect();
                let expected: Vec<_> = whole[taken + 1..].iter().map(|(line, _)| line.clone()).collect();
                prop_assert_eq!(rest, expected, "after {} lines, from {:?}", taken + 1, cursor);
            }
        }

        #[test]
        fn a_cursor_after_a_cursor_leads_to_the_same_place(log in log()) {
            let whole = read(&log, None);
            for (taken, (_, cursor)) in whole.iter().enumerate() {
                for (more, (_, again)) in read(&log, *cursor).iter().enumerate() {
                    let rest: Vec<_> = read(&log, *again).into_iter().map(|(line, _)| line).collect();
                    let expected: Vec<_> = whole[taken + more + 2..].iter().map(|(line, _)| line.clone()).collect();
                    prop_assert_eq!(rest, expected);
                }
            }
        }

        /// The whole way from bytes: however they are cut.
        #[test]
        fn bytes_become_the_same_lines_however_they_are_cut(log in log(), piece in 1..200usize) {
            let mut bytes = Vec::new();
            for (side, ns, text) in &log {
                let time = jiff::Timestamp::from_nanosecond((*ns).into()).unwrap();
                let payload = format!("{time:.9} {text}");
                bytes.extend([1 + *side as u8, 0, 0, 0]);
                bytes.extend((payload.len() as u32).to_be_bytes());
                bytes.extend(payload.as_bytes());
            }
            let (mut frames, mut joiner, mut lines) = (Frames::default(), Joiner::new(9, true), Vec::new());
            let mut each = |line: Line<'_>| lines.push((line.ns, line.raw.to_vec()));
            for piece in bytes.chunks(piece) {
                frames.feed(piece, &mut |event| match event {
                    Event::Message { side, ns } => joiner.message(side, ns, &mut each),
                    Event::Text { side, bytes } => joiner.text(side, bytes, false, &mut each),
                    Event::Complaint(_) => panic!("nobody complains"),
                }).unwrap();
            }
            joiner.end(false, &mut each);
            let texts: Vec<_> = read(&log, None).into_iter().map(|((_, text), _)| text).collect();
            prop_assert_eq!(lines.into_iter().map(|(_, text)| text).collect::<Vec<_>>(), texts);
        }
    }
}
