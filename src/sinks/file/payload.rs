//! A batch, laid out for the disk: bytes, which of them go into which output, and from where they come. Pure.

use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use super::frame::Part;
use crate::record::{Origin, Plain, Record, Slice};

/// To write it by itself costs less than to copy it.
const LENT_LEAST: usize = 64 * 1024;

#[derive(Default)]
pub struct Payload {
    /// What had to be put together.
    bytes: Vec<u8>,
    paths: Vec<Arc<Path>>,
    pieces: Vec<Stretch>,
    /// In the order of the pieces, and without gaps; none is in two pieces.
    runs: Vec<Run>,
    /// Of all pieces.
    length: usize,
}

/// Some bytes for one output.
struct Stretch {
    path: usize,
    /// Of all pieces one behind the other.
    bytes: Range<usize>,
    continues: bool,
    stands: Stands,
}

/// Where the bytes of a piece are.
enum Stands {
    /// In [`Payload::bytes`], from here on.
    Here(usize),
    /// In their chunk.
    Lent(Slice),
}

/// Bytes that come from one range of one source.
struct Run {
    /// In the payload; it begins where the one before ends.
    end: usize,
    part: Part,
    /// Byte by byte as in the source: may be cut at each line end.
    exact: bool,
}

/// What goes into one output, one after the other.
pub struct Piece<'a> {
    pub path: &'a Arc<Path>,
    /// Its first record goes on where another was cut off.
    pub continues: bool,
    pub bytes: &'a [u8],
    start: usize,
    runs: &'a [Run],
    /// It is where it was read.
    lent: Option<Plain<'a>>,
}

impl Payload {
    /// What was lent is given back.
    pub fn clear(&mut self) {
        let Payload { bytes, paths, pieces, runs, length } = self;
        bytes.clear();
        paths.clear();
        pieces.clear();
        runs.clear();
        *length = 0;
    }

    /// Returns what to call it in [`Payload::push`].
    pub fn add_path(&mut self, path: Arc<Path>) -> usize {
        self.paths.push(path);
        self.paths.len() - 1
    }

    /// `exact`: `render` puts the raw bytes of the record. `cuts`: the batch may be cut between any two records, so
    /// each must be told from its neighbours.
    pub fn push(
        &mut self,
        path: usize,
        record: &Record<'_>,
        exact: bool,
        cuts: bool,
        render: impl FnOnce(&mut Vec<u8>),
    ) {
        let start = self.bytes.len();
        render(&mut self.bytes);
        let range = record.offset..record.offset + record.len;
        self.pushed(Stands::Here(start), path, record.origin, range, record.continues, (exact, cuts));
    }

    /// All of it, as exact as it is. What is large stays where it is, in the chunk, until [`Payload::clear`].
    pub fn push_plain(&mut self, path: usize, slice: &Slice, plain: &Plain<'_>) {
        let stands = match plain.bytes.len() {
            LENT_LEAST.. => Stands::Lent(slice.clone()),
            _ => {
                self.bytes.extend_from_slice(plain.bytes);
                Stands::Here(self.bytes.len() - plain.bytes.len())
            }
        };
        let range = plain.offset..plain.offset + plain.bytes.len() as u64;
        self.pushed(stands, path, slice.records.origin(), range, plain.continues, (true, true));
    }

    /// The bytes that stand there stand for that range of the source.
    fn pushed(
        &mut self,
        stands: Stands,
        path: usize,
        origin: &Origin,
        range: Range<u64>,
        continues: bool,
        (exact, cuts): (bool, bool),
    ) {
        let start = self.length;
        self.length += match stands {
            Stands::Here(at) => self.bytes.len() - at,
            Stands::Lent(_) => (range.end - range.start) as usize,
        };
        let end = self.length;
        let is_here = matches!(stands, Stands::Here(_));
        let goes_on = match self.pieces.last_mut() {
            Some(last) if last.path == path && is_here && matches!(last.stands, Stands::Here(_)) => {
                last.bytes.end = end;
                true
            }
            _ => {
                let continues = exact && continues;
                self.pieces.push(Stretch { path, bytes: start..end, continues, stands });
                false
            }
        };
        match self.runs.last_mut() {
            Some(Run { end: known, part, exact: was_exact })
                if goes_on
                    && part.generation == origin.generation
                    && part.range.end == range.start
                    && (exact && *was_exact || !cuts) =>
            {
                *known = end;
                part.range.end = range.end;
                *was_exact &= exact;
            }
            _ => {
                let (generation, replayable) = (origin.generation, origin.replayable);
                self.runs.push(Run { end, part: Part { generation, range, replayable }, exact });
            }
        }
    }

    /// In order.
    pub fn pieces(&self) -> impl Iterator<Item = Piece<'_>> {
        self.pieces.iter().map(|piece| {
            let Stretch { path, bytes, continues, stands } = piece;
            let first = self.runs.partition_point(|run| run.end <= bytes.start);
            let behind = self.runs.partition_point(|run| run.end <= bytes.end);
            let lent = match stands {
                Stands::Here(_) => None,
                Stands::Lent(slice) => slice.records.plain(slice.range.clone()),
            };
            let here = match (stands, &lent) {
                (Stands::Here(at), _) => &self.bytes[*at..at + bytes.len()],
                (_, lent) => lent.as_ref().expect("it was plain when it was lent").bytes,
            };
            Piece {
                path: &self.paths[*path],
                continues: *continues,
                bytes: here,
                start: bytes.start,
                runs: &self.runs[first..behind],
                lent,
            }
        })
    }
}

impl Piece<'_> {
    /// The largest place not behind `upto` where no record is divided, and the next one.
    pub fn cuts_around(&self, upto: usize) -> (usize, usize) {
        let mut start = 0;
        for run in self.runs {
            let end = run.end - self.start;
            if upto < end {
                return if run.exact || upto == start { (upto, upto) } else { (start, end) };
            }
            start = end;
        }
        (start, start)
    }

    /// Of some of its bytes that go to `offset` of a file, if they were summed up when they were read.
    pub fn sums(&self, bytes: &Range<usize>, offset: u64) -> Option<&[u32]> {
        self.lent?.sums.filter(|_| *bytes == (0..self.bytes.len()))?.at(offset)
    }

    /// To whoever reads its source: these parts of it went to `offset` of a file, and that from where they are.
    pub fn teach(&self, parts: &[Part], offset: u64, from_here: bool) {
        if let (Some(plain), [part, ..]) = (&self.lent, parts) {
            plain.origin().shift.learn(part.range.start, offset, from_here);
        }
    }

    /// From where some of the bytes come, which were cut as [`Piece::cuts_around`] says.
    pub fn parts(&self, bytes: Range<usize>, parts: &mut Vec<Part>) {
        parts.clear();
        let mut start = 0;
        for run in self.runs {
            let run_start = std::mem::replace(&mut start, run.end - self.start);
            let (from, to) = (bytes.start.max(run_start), bytes.end.min(start));
            if from < to {
                let mut part = run.part.clone();
                if run.exact {
                    part.range =
                        part.range.start + (from - run_start) as u64..part.range.end - (start - to) as u64;
                }
                parts.push(part);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ack::GenerationId;
    use crate::record::fixture::lines;
    use crate::record::{Changed, Entry, Records};
    use crate::sync::Shared;

    /// Two lines as they are, one replaced by two lines, one dropped, one as it is.
    fn payload(cuts: bool) -> Payload {
        let text = Changed { text: Some(b"new\ntwo".as_slice().into()), ..Changed::default() };
        let entries = [(0, None), (1, None), (2, Some(Box::new(text))), (4, None)];
        let entries = entries.map(|(line, changed)| Entry { line, changed });
        let lines = lines(&["a\n", "bb\n", "old\n", "dropped\n", "c\n"], 100, true);
        let records = Records::kept(lines, entries.into());
        let mut payload = Payload::default();
        let path = payload.add_path(Path::new("/x").into());
        for index in 0..4 {
            let record = records.get(index);
            payload.push(path, &record, record.raw.is_some(), cuts, |bytes| {
                bytes.extend_from_slice(record.raw.unwrap_or(b"new\ntwo\n"));
            });
        }
        payload
    }

    /// The same slices, so small that they are copied, and so large that they are not.
    #[test]
    fn what_is_large_stays_in_its_chunk_until_the_payload_is_cleared() {
        for (repeat, pieces) in [(1, 1), (LENT_LEAST, 2)] {
            let line = "x".repeat(repeat) + "\n";
            let records = Shared::from(Records::untouched(lines(&["a\n", &line, &line, "c"], 100, true)));
            let (mut payload, mut parts) = (Payload::default(), Vec::new());
            let path = payload.add_path(Path::new("/x").into());
            for range in [1..2, 2..4] {
                let slice = Slice { records: records.clone(), range };
                let plain = slice.records.plain(slice.range.clone()).unwrap();
                payload.push_plain(path, &slice, &plain);
            }
            assert_eq!(payload.pieces().count(), pieces);
            let (mut text, mut from) = (Vec::new(), 102);
            for piece in payload.pieces() {
                piece.parts(0..piece.bytes.len(), &mut parts);
                assert_eq!((parts.len(), parts[0].range.start), (1, from));
                assert_eq!(piece.cuts_around(1), (1, 1));
                text.extend_from_slice(piece.bytes);
                from = parts[0].range.end;
            }
            assert!(text == [&line, &line, "c"].concat().as_bytes(), "{repeat}");
            assert_eq!((from, Shared::owners(&records)), (102 + text.len() as u64, pieces * 2 - 1));
            payload.clear();
            assert_eq!((payload.pieces().count(), Shared::owners(&records)), (0, 1));
        }
    }

    fn parts(payload: &Payload, bytes: Range<usize>) -> Vec<Range<u64>> {
        let mut parts = Vec::new();
        payload.pieces().next().unwrap().parts(bytes, &mut parts);
        assert!(parts.iter().all(|part| part.generation == GenerationId(1) && part.replayable));
        parts.into_iter().map(|part| part.range).collect()
    }

    #[test]
    fn every_cut_says_where_its_bytes_come_from() {
        let payload = payload(true);
        let piece = payload.pieces().next().unwrap();
        assert_eq!(piece.bytes, b"a\nbb\nnew\ntwo\nc\n");
        for (upto, expected) in
            [(0, (0, 0)), (2, (2, 2)), (5, (5, 5)), (9, (5, 13)), (13, (13, 13)), (15, (15, 15))]
        {
            assert_eq!(piece.cuts_around(upto), expected, "{upto}");
        }
        assert_eq!(parts(&payload, 0..15), [100..105, 105..109, 117..119]);
        assert_eq!(parts(&payload, 1..13), [101..105, 105..109]);
        assert_eq!(parts(&payload, 2..15), [102..105, 105..109, 117..119]);
    }

    #[test]
    fn what_is_never_cut_is_told_in_few_words() {
        assert_eq!(parts(&payload(false), 0..15), [100..109, 117..119]);
    }
}
