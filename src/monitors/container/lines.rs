//! Messages of a container's log, joined into lines: each stream for itself. Pure.
//!
//! The engine cuts a longer line into parts of 16 KiB, and what a container wrote last, without a line end, when
//! it died. Parts of both streams may alternate. A line has the time of its first part, and takes its place among
//! the others when it is whole.
//!
//! All parts of one line carry the same time in Docker. So a further message with another time begins a new line,
//! and what stood before it was cut short by an end of the container. Podman's parts have times of their own: there
//! the next message always goes on with the line ([`Joiner::new`]), and what a dead container wrote last without a
//! line end comes twice: as it is, and as the beginning of the next life's first line.
//!
//! Always true: the same messages give the same lines, however their text was cut into pieces; that is what
//! makes a replay equal. At most `max_line_bytes` of each stream are held.
//!
//! Not here: times that are equal, and where to read on (`cursor.rs`).

use std::mem::take;

use super::frames::{STAMP_BYTES, Side, parse};

#[derive(Debug, PartialEq, Eq)]
pub struct Line<'a> {
    pub side: Side,
    /// The engine's time, in nanoseconds since 1970.
    pub ns: i64,
    /// The same of its last part.
    pub end_ns: i64,
    /// With its line end, unless it was cut.
    pub raw: &'a [u8],
    /// Cut at the limit of length or by an end of the container, or the rest of such a line.
    pub partial: bool,
    /// The time of the other stream's half line, if it has one: it began before this line ended.
    pub held: Option<i64>,
}

#[derive(Debug, Default)]
struct Half {
    ns: i64,
    end_ns: i64,
    text: Vec<u8>,
    /// Goes on where a line was cut at the limit.
    cut: bool,
    /// Something of the line has come.
    open: bool,
}

#[derive(Debug)]
pub struct Joiner {
    max_line_bytes: usize,
    parts_share_a_time: bool,
    halves: [Half; 2],
    /// For messages without a time.
    last_ns: i64,
}

impl Joiner {
    /// `parts_share_a_time`: as Docker's do.
    pub fn new(max_line_bytes: usize, parts_share_a_time: bool) -> Joiner {
        Joiner { max_line_bytes, parts_share_a_time, halves: Default::default(), last_ns: 0 }
    }

    /// How many bytes of half lines are held.
    pub fn held_bytes(&self) -> usize {
        self.halves.iter().map(|half| half.text.len()).sum()
    }

    pub fn message(&mut self, side: Side, ns: Option<i64>, each: &mut impl FnMut(Line<'_>)) {
        let ns = ns.unwrap_or(self.last_ns);
        self.last_ns = ns;
        let half = &self.halves[side as usize];
        if half.open && half.ns != ns && self.parts_share_a_time {
            self.cut_short(side, each);
        }
        let half = &mut self.halves[side as usize];
        if !half.open {
            half.ns = ns;
            half.open = true;
        }
        half.end_ns = ns;
    }

    /// `plain`: of a terminal, whose messages do not show where they begin.
    pub fn text(&mut self, side: Side, mut bytes: &[u8], plain: bool, each: &mut impl FnMut(Line<'_>)) {
        let held = self.held_beside(side);
        let half = &mut self.halves[side as usize];
        while !bytes.is_empty() {
            let end = memchr::memchr(b'\n', bytes).map_or(bytes.len(), |at| at + 1);
            let whole = bytes[end - 1] == b'\n';
            let room = self.max_line_bytes - half.text.len();
            let (some, rest) = bytes.split_at(end.min(room));
            let over = some.len() < end || whole;
            bytes = rest;
            let partial = half.cut || !(over && some.ends_with(b"\n"));
            if !over {
                half.text.extend_from_slice(some);
                half.open = true;
            } else if half.text.is_empty() {
                emit(Line { side, ns: half.ns, end_ns: half.end_ns, raw: some, partial, held }, plain, each);
            } else {
                half.text.extend_from_slice(some);
                let text = take(&mut half.text);
                emit(Line { side, ns: half.ns, end_ns: half.end_ns, raw: &text, partial, held }, plain, each);
            }
            if over {
                half.cut = some.len() < end;
                half.open = half.cut;
            }
        }
    }

    /// Nothing more comes: half lines are what they are.
    pub fn end(&mut self, plain: bool, each: &mut impl FnMut(Line<'_>)) {
        let mut sides = [Side::Stdout, Side::Stderr];
        sides.sort_by_key(|side| self.halves[*side as usize].ns);
        for side in sides {
            if plain {
                let half = take(&mut self.halves[side as usize]);
                if !half.text.is_empty() {
                    let Half { ns, end_ns, text, .. } = &half;
                    let line = Line { side, ns: *ns, end_ns: *end_ns, raw: text, partial: true, held: None };
                    emit(line, plain, each);
                }
            } else {
                self.cut_short(side, each);
            }
        }
    }

    fn cut_short(&mut self, side: Side, each: &mut impl FnMut(Line<'_>)) {
        let held = self.held_beside(side);
        let half = take(&mut self.halves[side as usize]);
        if !half.text.is_empty() {
            let Half { ns, end_ns, text, .. } = &half;
            each(Line { side, ns: *ns, end_ns: *end_ns, raw: text, partial: true, held });
        }
    }

    fn held_beside(&self, side: Side) -> Option<i64> {
        let other = &self.halves[1 - side as usize];
        (!other.text.is_empty()).then_some(other.ns)
    }
}

/// Without frames, a half line at the end of a life and the first line of the next look like one: text, a time,
/// text. A container that prints a time itself does so before the engine gives the line its own; so a time
/// within the line that is not before the line's is the engine's.
fn emit(mut line: Line<'_>, plain: bool, each: &mut impl FnMut(Line<'_>)) {
    while plain && let Some((at, ns)) = stamp_within(line.raw, line.ns) {
        each(Line { raw: &line.raw[..at], partial: true, ..line });
        line = Line { ns, end_ns: ns, raw: &line.raw[at + STAMP_BYTES + 1..], ..line };
    }
    if !line.raw.is_empty() {
        each(line);
    }
}

fn stamp_within(raw: &[u8], since: i64) -> Option<(usize, i64)> {
    memchr::memmem::find_iter(raw, b"Z ").find_map(|at| {
        let start = (at + 1).checked_sub(STAMP_BYTES).filter(|start| *start > 0)?;
        let ns = parse(&raw[start..=at]).filter(|ns| *ns >= since)?;
        Some((start, ns))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const O: Side = Side::Stdout;
    const E: Side = Side::Stderr;

    /// `out@1 text`, with a `~` behind what is partial.
    fn lines(joiner: &mut Joiner, messages: &[(Side, i64, &str)], plain: bool) -> Vec<String> {
        let mut all = Vec::new();
        let mut each = |line: Line<'_>| {
            let side = if line.side == O { "out" } else { "err" };
            let partial = if line.partial { "~" } else { "" };
            all.push(format!("{side}@{} {}{partial}", line.ns, line.raw.escape_ascii()));
        };
        for (side, ns, text) in messages {
            joiner.message(*side, Some(*ns), &mut each);
            joiner.text(*side, text.as_bytes(), plain, &mut each);
        }
        joiner.end(plain, &mut each);
        all
    }

    fn check(messages: &[(Side, i64, &str)], expected: &[&str]) {
        assert_eq!(lines(&mut Joiner::new(8, true), messages, false), expected);
    }

    #[test]
    fn parts_are_joined_per_stream() {
        check(&[(O, 1, "a\n"), (E, 2, "b\n")], &[r"out@1 a\n", r"err@2 b\n"]);
        check(
            &[(O, 1, "aa"), (E, 2, "bb"), (O, 1, "cc"), (E, 3, "x\n"), (O, 1, "\n")],
            &["err@2 bb~", r"err@3 x\n", r"out@1 aacc\n"],
        );
        check(&[(O, 1, "\n"), (O, 1, "a\n\nb\n")], &[r"out@1 \n", r"out@1 a\n", r"out@1 \n", r"out@1 b\n"]);
    }

    #[test]
    fn another_time_begins_another_line_in_docker_and_not_in_podman() {
        let messages = [(O, 1, "half"), (O, 2, "new\n")];
        check(&messages, &["out@1 half~", r"out@2 new\n"]);
        assert_eq!(lines(&mut Joiner::new(9, false), &messages, false), [r"out@1 halfnew\n"]);
    }

    #[test]
    fn long_lines_are_cut_at_the_limit_wherever_their_parts_end() {
        for parts in
            [&["0123456789abcdefg\n"][..], &["0", "1234567", "89abcdefg", "\n"], &["01234567", "89abcdefg\n"]]
        {
            let messages: Vec<_> = parts.iter().map(|part| (O, 1, *part)).collect();
            check(&messages, &["out@1 01234567~", "out@1 89abcdef~", r"out@1 g\n~"]);
        }
        check(&[(O, 1, "0123456\n"), (O, 2, "a\n")], &[r"out@1 0123456\n", r"out@2 a\n"]);
        check(&[(O, 1, "01234567"), (O, 2, "a\n")], &["out@1 01234567~", r"out@2 a\n"]);
    }

    #[test]
    fn a_line_knows_that_the_other_stream_has_begun_one_before() {
        let mut joiner = Joiner::new(100, true);
        let mut held = Vec::new();
        let mut each = |line: Line<'_>| held.push(line.held);
        for (side, ns, text) in [(O, 1, "half"), (E, 2, "whole\n"), (O, 1, "rest\n"), (E, 3, "whole\n")] {
            joiner.message(side, Some(ns), &mut each);
            joiner.text(side, text.as_bytes(), false, &mut each);
        }
        assert_eq!(held, [Some(1), None, None]);
        assert_eq!(joiner.held_bytes(), 0);
    }

    #[test]
    fn a_terminal_that_died_in_a_line_and_went_on() {
        let (t1, t2) = ("2026-11-23T18:24:51.106223438Z", "2026-11-23T18:24:52.000000000Z");
        let (at, next) = (parse(t1.as_bytes()).unwrap(), parse(t2.as_bytes()).unwrap());
        let text = format!("half{t2} new {t1} own\n");
        let mut joiner = Joiner::new(1000, true);
        let expected = [format!("out@{at} half~"), format!(r"out@{next} new {t1} own\n")];
        assert_eq!(lines(&mut joiner, &[(O, at, &text)], true), expected);
    }
}
