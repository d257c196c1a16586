//! Finds whole lines in a log whose long lines were written in parts, those of two streams in between each other. Pure.
//!
//! ```text
//! in the file      1 stdout P aa | 2 stderr F b | 3 stdout F cc | 4 stdout F d
//!                  └──────────────── a group ─────────────────┘   └─ another ─┘
//! in the chunk     1 stdout P aa   3 stdout F cc | 2 stderr F b | 4 stdout F d
//! ```
//!
//! A group begins where no stream has an open line, and ends where none has one again. Its bytes are arranged: parts of
//! one line stand one behind the other, where the first one stood, so a record is one piece of the chunk as everywhere
//! else; the stage `cri` takes it apart. Offsets within such a group are those of its arranged bytes. Most groups are one line.
//!
//! Always true: a chunk is made of whole groups, and where a group ends, and what is joined in it, depends on the bytes from
//! its first one on and on nothing else. So it does not matter how the file was cut into reads, and a replay gives the
//! same records. An open line that gets too long, or that nobody goes on with, ends its group: its parts so far are a
//! record, and what follows is another one.
//!
//! Not here: how long an open line is waited for (`tail.rs`), what a part is (`cri.rs`).

use std::ops::Range;

use memchr::memchr;

use super::framing::{End, Framed, cut};
use crate::cri::{Part, part};

/// As [`super::framing::frame`], with whole groups in the place of lines: none is longer than `longest` bytes or has more than
/// `max_lines` lines in the file, unless it is a line of its own, which is cut. Appends to `ends` where each record ends
/// in the arranged bytes, and to `mixed` which bytes [`arrange`] has to arrange.
pub fn frame_parts(
    data: &[u8],
    longest: usize,
    end: End,
    max_lines: usize,
    ends: &mut Vec<u32>,
    mixed: &mut Vec<Range<usize>>,
) -> Framed {
    assert!(longest > 0 && u32::try_from(data.len()).is_ok(), "{} bytes, longest {longest}", data.len());
    let mut groups = Groups { data, full_at: ends.len() + max_lines, ends, mixed, found: Framed::default() };
    let mut group = Group::default();
    loop {
        let start = groups.found.bytes;
        let next = start + group.bytes;
        let line_end = memchr(b'\n', &data[next..]).map(|at| next + at + 1);
        let too_long = line_end.unwrap_or(data.len() + 1) - start > longest;
        if group.lines > 0 && (too_long || group.lines == max_lines) {
            if !groups.close(&mut group) {
                break;
            }
        } else if too_long {
            if !groups.push(cut(&data[start..start + longest]), 1) {
                break;
            }
        } else if let Some(line_end) = line_end {
            group.add(line_end - next, part(&data[next..line_end - 1]));
            if !group.is_open() && !groups.close(&mut group) {
                break;
            }
        } else {
            break;
        }
    }
    if end != End::More && group.lines > 0 && !groups.found.full {
        groups.close(&mut group);
    }
    // What is half a line belongs to nobody.
    if end == End::Final && group.lines == 0 && groups.found.bytes < data.len() && !groups.found.full {
        groups.push(data.len() - groups.found.bytes, 1);
    }
    groups.found
}

/// Lines that are not shipped yet.
#[derive(Default)]
struct Group {
    bytes: usize,
    lines: usize,
    open: [bool; 2],
}

impl Group {
    fn add(&mut self, bytes: usize, part: Option<Part<'_>>) {
        self.bytes += bytes;
        self.lines += 1;
        if let Some(part) = part {
            self.open[part.stream as usize] = part.goes_on;
        }
    }

    fn is_open(&self) -> bool {
        self.open.contains(&true)
    }
}

struct Groups<'a> {
    data: &'a [u8],
    /// How many ends there may be.
    full_at: usize,
    ends: &'a mut Vec<u32>,
    mixed: &'a mut Vec<Range<usize>>,
    found: Framed,
}

impl Groups<'_> {
    /// Whether there was room for it: else it stays.
    fn close(&mut self, group: &mut Group) -> bool {
        let Group { bytes, lines, open } = std::mem::take(group);
        let cut = open.iter().filter(|open| **open).count();
        if lines == 1 {
            return self.push(bytes, cut);
        }
        let start = self.found.bytes;
        let range = start..start + bytes;
        let records = records(&self.data[range.clone()]);
        if self.ends.len() + records.len() > self.full_at {
            self.found.full = true;
            return false;
        }
        if records.iter().any(|parts| parts.windows(2).any(|pair| pair[0].end != pair[1].start)) {
            self.mixed.push(range);
        }
        let mut end = start;
        for parts in &records {
            end += parts.iter().map(Range::len).sum::<usize>();
            self.ends.push(end as u32);
        }
        self.found.bytes = end;
        self.found.cut += cut;
        true
    }

    /// One that is one record.
    fn push(&mut self, bytes: usize, cut: usize) -> bool {
        if self.ends.len() == self.full_at {
            self.found.full = true;
            return false;
        }
        self.found.bytes += bytes;
        self.found.cut += cut;
        self.ends.push(self.found.bytes as u32);
        true
    }
}

/// The parts of each record of a group, in the order of their first ones.
fn records(group: &[u8]) -> Vec<Vec<Range<usize>>> {
    let mut records: Vec<Vec<Range<usize>>> = Vec::new();
    let mut open: [Option<usize>; 2] = [None; 2];
    let mut start = 0;
    for line in group.split_inclusive(|byte| *byte == b'\n') {
        let range = start..start + line.len();
        start = range.end;
        let part = part(&line[..line.len() - 1]);
        let record = part.and_then(|part| open[part.stream as usize]).unwrap_or_else(|| {
            records.push(Vec::new());
            records.len() - 1
        });
        records[record].push(range);
        if let Some(part) = part {
            open[part.stream as usize] = part.goes_on.then_some(record);
        }
    }
    records
}

/// Arranges the groups that [`frame_parts`] has named, in the bytes that it was given.
pub fn arrange(data: &mut [u8], mixed: &[Range<usize>]) {
    for range in mixed {
        let group = &mut data[range.clone()];
        let arranged: Vec<u8> =
            records(group).concat().into_iter().flat_map(|part| &group[part]).copied().collect();
        group.copy_from_slice(&arranged);
    }
}

/// Of the records that end at `ends`, those from `from` up to `upto`, whose ends then count from `from`. Both are ends of
/// records, but where lines were cut at another length in an earlier life: there the record is cut.
pub fn keep_within(ends: &mut Vec<u32>, from: usize, upto: usize) {
    let last = ends.last().map_or(0, |last| *last as usize);
    ends.retain(|end| (from + 1..=upto).contains(&(*end as usize)));
    if upto < last && upto > from && ends.last() != Some(&(upto as u32)) {
        ends.push(upto as u32);
    }
    ends.iter_mut().for_each(|end| *end -= from as u32);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// `o+ text` is a part of stdout that goes on, `e. text` a last one of stderr; anything else is no line of a runtime.
    fn written(lines: &[&str]) -> Vec<u8> {
        let mut data = String::new();
        for line in lines {
            let (stream, tag) = match &line[..line.len().min(3)] {
                "o+ " => ("stdout", "P"),
                "o. " => ("stdout", "F"),
                "e+ " => ("stderr", "P"),
                "e. " => ("stderr", "F"),
                _ => {
                    data += line;
                    continue;
                }
            };
            data += &format!("2026-01-31T12:00:00Z {stream} {tag} {}", &line[3..]);
        }
        data.into_bytes()
    }

    /// What [`written`] made of it.
    fn told(record: &[u8]) -> String {
        let text = String::from_utf8_lossy(record).replace("2026-01-31T12:00:00Z ", "");
        let words = [("stdout P ", "o+ "), ("stdout F ", "o. "), ("stderr P ", "e+ "), ("stderr F ", "e. ")];
        words.iter().fold(text, |text, (long, short)| text.replace(long, short))
    }

    fn split(data: &[u8], ends: &[u32]) -> Vec<Vec<u8>> {
        let starts = std::iter::once(0).chain(ends.iter().copied());
        starts.zip(ends).map(|(from, to)| data[from as usize..*to as usize].to_vec()).collect()
    }

    fn framed(data: &[u8], longest: usize, end: End, max_lines: usize) -> (Vec<Vec<u8>>, Framed) {
        let (mut data, mut ends, mut mixed) = (data.to_vec(), Vec::new(), Vec::new());
        let found = frame_parts(&data, longest, end, max_lines, &mut ends, &mut mixed);
        arrange(&mut data[..found.bytes], &mixed);
        (split(&data, &ends), found)
    }

    /// `cut`: how many lines are not whole.
    fn check(lines: &[&str], end: End, expected: &[&str], cut: usize) {
        let data = written(lines);
        let (records, found) = framed(&data, 200, end, 5);
        assert_eq!(records.iter().map(|record| told(record)).collect::<Vec<_>>(), expected, "{lines:?}");
        assert_eq!(found.bytes, records.iter().map(Vec::len).sum::<usize>());
        assert_eq!(found.cut, cut, "{lines:?}");
    }

    #[test]
    fn parts_are_joined_per_stream() {
        use End::{Final, Lines, More};
        check(&[], Final, &[], 0);
        check(&["o. a\n", "e. b\n", "half"], More, &["o. a\n", "e. b\n"], 0);
        check(&["o. a\n", "half"], Lines, &["o. a\n"], 0);
        check(&["o. a\n", "half"], Final, &["o. a\n", "half"], 1);
        check(&["o+ a\n", "o+ b\n", "o. c\n", "o. d\n"], More, &["o+ a\no+ b\no. c\n", "o. d\n"], 0);
        // In between each other: each where its first part stood.
        check(&["o+ a\n", "e. b\n", "o. c\n"], More, &["o+ a\no. c\n", "e. b\n"], 0);
        check(
            &["e+ 1\n", "o+ a\n", "e. 2\n", "x\n", "o. b\n"],
            More,
            &["e+ 1\ne. 2\n", "o+ a\no. b\n", "x\n"],
            0,
        );
        // Open: nothing leaves that began later, and nothing of it, before it has to.
        check(&["o. 0\n", "o+ a\n", "e. b\n"], More, &["o. 0\n"], 0);
        check(&["o+ a\n", "e. b\n", "o. ha"], Lines, &["o+ a\n", "e. b\n"], 1);
        check(&["o+ a\n", "e. b\n", "o. ha"], Final, &["o+ a\n", "e. b\n", "o. ha"], 2);
        check(&["o+ a\n", "e+ b\n"], Lines, &["o+ a\n", "e+ b\n"], 2);
    }

    #[test]
    fn what_gets_too_long_or_too_many_ends_its_group() {
        use End::More;
        let long = format!("o+ {}\n", "a".repeat(60));
        let twice = format!("{long}{long}");
        // 200 bytes hold two such parts; what follows is a record of its own.
        check(
            &[&long, &long, &long, "e. b\n", "o. c\n"],
            More,
            &[&twice, &format!("{long}o. c\n"), "e. b\n"],
            1,
        );
        // Five lines at most.
        check(
            &["o+ a\n", "e. 1\n", "e. 2\n", "e. 3\n", "e. 4\n", "e. 5\n"],
            More,
            &["o+ a\n", "e. 1\n", "e. 2\n", "e. 3\n", "e. 4\n"],
            1,
        );
        // A line that no part can be that long.
        let giant = format!("{}\n", "x".repeat(250));
        check(&[&giant, "o. a\n"], More, &[&giant[..200], &giant[200..], "o. a\n"], 1);
        check(&["o+ a\n", &giant], More, &["o+ a\n", &giant[..200], &giant[200..]], 2);
    }

    #[test]
    fn a_part_of_what_was_found() {
        for (from, upto, expected) in [
            (0, 30, &[10, 20, 30][..]),
            (10, 30, &[10, 20]),
            (10, 20, &[10]),
            (0, 15, &[10, 15]),
            (15, 100, &[5, 15]),
            (12, 18, &[6]),
        ] {
            let mut ends = vec![10, 20, 30];
            keep_within(&mut ends, from, upto);
            assert_eq!(ends, expected, "{from}..{upto}");
        }
    }

    /// What each stream's lines are cut into, and which stream writes next.
    fn writers() -> impl Strategy<Value = Vec<(bool, bool, String)>> {
        proptest::collection::vec((any::<bool>(), proptest::bool::weighted(0.6), "[a-z+.\r]{0,12}"), 0..40)
    }

    /// Reads as a tail does: some bytes at a time, what was not consumed again with the next.
    fn in_reads(data: &[u8], longest: usize, reads: &[usize]) -> Vec<Vec<u8>> {
        let (mut done, mut have, mut records) = (0, 0, Vec::new());
        let mut reads = reads.iter().cycle();
        while done < data.len() {
            have = (have + reads.next().unwrap()).min(data.len());
            let end = if have == data.len() { End::Final } else { End::More };
            let (more, found) = framed(&data[done..have], longest, end, 7);
            records.extend(more);
            done += found.bytes;
        }
        records
    }

    proptest! {
        #[test]
        fn nothing_is_lost_and_reads_do_not_matter(
            parts in writers(),
            longest in prop_oneof![Just(1_000_000usize), 60usize..400],
            reads in proptest::collection::vec(1usize..200, 1..5),
            torn in 0usize..20,
        ) {
            let lines: Vec<String> = parts
                .iter()
                .map(|(stdout, goes_on, text)| {
                    format!("{}{} {text}\n", if *stdout { 'o' } else { 'e' }, if *goes_on { '+' } else { '.' })
                })
                .collect();
            let mut data = written(&lines.iter().map(String::as_str).collect::<Vec<_>>());
            data.truncate(data.len().saturating_sub(torn));
            let whole = in_reads(&data, longest, &[data.len().max(1)]);
            prop_assert_eq!(&in_reads(&data, longest, &reads), &whole);
            prop_assert!(whole.iter().all(|record| !record.is_empty() && record.len() <= longest));
            // The same lines of the file, all of them, each once.
            let sorted = |bytes: &[u8]| {
                let mut lines: Vec<Vec<u8>> = bytes.split_inclusive(|byte| *byte == b'\n').map(<[u8]>::to_vec).collect();
                lines.sort();
                lines
            };
            prop_assert_eq!(sorted(&whole.concat()), sorted(&data));
            // What each stream has said is what its container wrote, in that order.
            let said = |records: &[Vec<u8>], stream| -> Vec<u8> {
                let lines = records.iter().flat_map(|record| record.split_inclusive(|byte| *byte == b'\n'));
                lines
                    .filter(|line| line.ends_with(b"\n"))
                    .filter_map(|line| part(&line[..line.len() - 1]))
                    .filter(|part| part.stream == stream)
                    .flat_map(|part| part.text.iter().copied().chain((!part.goes_on).then_some(b'\n')))
                    .collect()
            };
            for stream in [crate::cri::Stream::Stdout, crate::cri::Stream::Stderr] {
                prop_assert_eq!(said(&whole, stream), said(std::slice::from_ref(&data), stream));
            }
        }
    }
}
