//! Records that nothing has touched, seen as what they are: one stretch of the source.
//!
//! An empty pipeline leaves all lines of a chunk so. Encoders ask for it first, and then need not look at each line
//! for labels, places and times that all of them share.

use std::ops::Range;

use super::{Kept, Lines, Origin, PageSums, Records, without_line_end};

/// Lines one behind the other, each as it was read, with the labels of their origin and without metadata; the time
/// of each is that of the one before it and one nanosecond.
#[derive(Clone, Copy, Debug)]
pub struct Plain<'a> {
    /// All of them, line ends included.
    pub bytes: &'a [u8],
    /// Of the first line.
    pub time_ns: i64,
    /// Of the first byte, in the generation.
    pub offset: u64,
    /// The first line goes on where an earlier record was cut.
    pub continues: bool,
    /// Of `bytes`, if they are all of the chunk.
    pub sums: Option<&'a PageSums>,
    /// The chunk, and which of its lines these are.
    lines: &'a Lines,
    range: (usize, usize),
}

impl Records {
    /// `None`: they have to be looked at one by one. `range` is not empty.
    pub fn plain(&self, range: Range<u32>) -> Option<Plain<'_>> {
        let lines = &self.lines;
        if !matches!(self.kept, Kept::All) || !self.places.is_empty() || lines.timed.is_some() {
            return None;
        }
        Some(Plain::of(lines, (range.start as usize, range.end as usize)))
    }
}

impl<'a> Plain<'a> {
    /// The same in parts of so many lines at most: what is found out of a part is still in the cache of the processor
    /// when its lines are looked at one by one.
    pub fn parts(&self, lines_most: usize) -> impl Iterator<Item = Plain<'a>> {
        let Plain { lines, range: (first, end), .. } = *self;
        let part = move |from: usize| Plain::of(lines, (from, end.min(from + lines_most)));
        (first..end).step_by(lines_most).map(part)
    }

    fn of(lines: &'a Lines, range: (usize, usize)) -> Plain<'a> {
        let (first, end) = range;
        let start = lines.starts_at(first);
        Plain {
            bytes: &lines.data[start..lines.starts_at(end)],
            time_ns: lines.base_ns + first as i64,
            offset: lines.start + start as u64,
            continues: lines.goes_on(first),
            sums: lines.sums.as_ref().filter(|_| range == (0, lines.len())),
            lines,
            range,
        }
    }

    pub fn origin(&self) -> &'a Origin {
        &self.lines.origin
    }

    /// The text of each line without its line end; `None` for one that was cut, or is the rest of one.
    #[inline]
    pub fn texts(&self) -> impl Iterator<Item = Option<&'a [u8]>> {
        let Plain { lines, range: (first, end), .. } = *self;
        let (mut from, mut goes_on) = (lines.starts_at(first), self.continues);
        lines.ends.of(&lines.data)[first..end].iter().map(move |end| {
            let raw = &lines.data[from..*end as usize];
            from += raw.len();
            let text = without_line_end(raw);
            let is_cut = text.len() == raw.len();
            let is_partial = is_cut || goes_on;
            goes_on = is_cut;
            (!is_partial).then_some(text)
        })
    }

    /// Of the last line.
    pub fn last_time_ns(&self) -> i64 {
        self.time_ns + (self.range.1 - self.range.0 - 1) as i64
    }
}

#[cfg(test)]
mod tests {
    use super::super::fixture::lines;
    use super::super::{Entry, Records};
    use super::Plain;

    /// What it says of each line is what a look at each line says.
    #[test]
    fn it_is_what_the_records_are() {
        let raw = ["a\n", "half", "rest\n", "\r\n", "e\r\n", "end"];
        for continues in [false, true] {
            let mut lines = lines(&raw, 100, true);
            lines.continues = continues;
            let records = Records::untouched(lines);
            for (from, to) in (0..6).flat_map(|from| (from + 1..=6).map(move |to| (from, to))) {
                let plain = records.plain(from..to).expect("nothing was touched");
                assert_eq!(plain.bytes, raw[from as usize..to as usize].concat().as_bytes());
                let (first, last) = (records.get(from), records.get(to - 1));
                assert_eq!((plain.offset, plain.time_ns), (first.offset, first.time_ns));
                assert_eq!((plain.continues, plain.last_time_ns()), (first.continues, last.time_ns));
                let texts = (from..to).map(|index| records.get(index));
                let texts = texts.map(|record| (!record.partial).then_some(record.text));
                assert!(plain.texts().eq(texts.clone()), "{from}..{to}");
                for most in 1..=4 {
                    let parts: Vec<_> = plain.parts(most).collect();
                    let of_parts = parts.iter().flat_map(|part| part.texts());
                    assert!(of_parts.eq(texts.clone()), "{from}..{to} in parts of {most}");
                    let bytes: Vec<&[u8]> = parts.iter().map(|part| part.bytes).collect();
                    assert_eq!(bytes.concat(), plain.bytes);
                    let is_right = |(number, part): (usize, &Plain<'_>)| {
                        part.time_ns == plain.time_ns + (number * most) as i64
                    };
                    assert!(parts.iter().enumerate().all(is_right));
                }
            }
        }
    }

    #[test]
    fn what_a_stage_has_looked_at_is_not_plain() {
        let entries = vec![Entry { line: 0, changed: None }];
        assert!(Records::kept(lines(&["a\n", "b\n"], 0, true), entries).plain(0..1).is_none());
    }
}
