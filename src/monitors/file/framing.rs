//! Finds whole lines in what was read. Pure.
//!
//! Always true: where a line or a piece ends depends on the bytes from its own first byte on and on nothing
//! else, so cutting a file into other reads, or reading it again after a crash, gives the same pieces.
//!
//! Not here: how much is read at once, and what a half line at the end waits for (`tail.rs`).

use memchr::{memchr_iter, memrchr};

/// Whether more may follow what was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// A half line at the end stays: its rest may come.
    More,
    /// As well, but a line that was written in parts (`parts.rs`) is not waited for any longer.
    Lines,
    /// A half line at the end is shipped as it is.
    Final,
}

/// Appends to `ends` where each line of `data` ends (exclusive, line end included) and returns how many bytes
/// they cover. Stops after `max_lines`. A line longer than `longest` bytes, its end included, is cut into
/// pieces that have no line end; neither a UTF-8 sequence nor `\r\n` is cut if that can be helped.
///
/// `data` has at most 4 GiB, `longest` and `max_lines` are at least 1.
pub fn frame(data: &[u8], longest: usize, end: End, max_lines: usize, ends: &mut Vec<u32>) -> usize {
    let (mut framed, full_at) = (Framed::default(), ends.len() + max_lines);
    framed.go_on(data, longest, end, full_at, ends);
    framed.bytes
}

/// What was found.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Framed {
    /// How many bytes the lines cover.
    pub bytes: usize,
    /// How many of them were cut, or are shipped without their last part.
    pub cut: usize,
    /// Stopped at the limit of lines: there may be more.
    pub full: bool,
}

impl Framed {
    /// As [`frame`], behind what was found already in the same data, of which there is more now. `full_at`: how long
    /// `ends` may become.
    pub fn go_on(&mut self, data: &[u8], longest: usize, end: End, full_at: usize, ends: &mut Vec<u32>) {
        assert!(longest > 0 && u32::try_from(data.len()).is_ok(), "{} bytes, longest {longest}", data.len());
        let mut done = self.bytes;
        for newline in memchr_iter(b'\n', &data[done..]) {
            let next = self.bytes + newline + 1;
            while next - done > longest && ends.len() < full_at {
                done += self.cut_off(&data[done..done + longest], done, ends);
            }
            if ends.len() == full_at {
                break;
            }
            ends.push(next as u32);
            done = next;
        }
        // No line end follows. What is `longest` already is longer than that with its end.
        while data.len() - done >= longest && ends.len() < full_at {
            done += self.cut_off(&data[done..done + longest], done, ends);
        }
        if end == End::Final && done < data.len() && ends.len() < full_at {
            ends.push(data.len() as u32);
            self.cut += 1;
            done = data.len();
        }
        self.bytes = done;
        self.full = ends.len() == full_at;
    }

    /// The piece has no line end and stands at `at`. How much of it goes into one record.
    fn cut_off(&mut self, piece: &[u8], at: usize, ends: &mut Vec<u32>) -> usize {
        let len = cut(piece);
        ends.push((at + len) as u32);
        self.cut += 1;
        len
    }
}

/// Lines that were counted, and not looked at: each ends in `\n`, and none is too long.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Counted {
    /// How many bytes the lines cover.
    pub bytes: usize,
    pub lines: usize,
    searched: usize,
}

impl Counted {
    /// With what has come behind what was counted already. `None`: there are more than `most`, or one that has to be cut;
    /// [`Framed::go_on`] has to look for each.
    pub fn go_on(mut self, data: &[u8], longest: usize, most: usize) -> Option<Counted> {
        self.lines += bytecount::count(&data[self.searched..], b'\n');
        self.searched = data.len();
        // Where a line ends in every stretch of that length, none is longer.
        while let Some(stretch) = data[self.bytes..].get(..longest) {
            self.bytes += memrchr(b'\n', stretch)? + 1;
        }
        self.bytes += memrchr(b'\n', &data[self.bytes..]).map_or(0, |last| last + 1);
        (self.lines <= most).then_some(self)
    }
}

/// How much of `piece`, which has no line end and is not empty, goes into one record: all but a UTF-8 sequence that it does not
/// hold whole, or a `\r` whose `\n` may follow. Looks at nothing behind it, so that a reader needs no byte more
/// than the limit.
pub fn cut(piece: &[u8]) -> usize {
    let len = piece.len();
    let back = if piece[len - 1] == b'\r' { 1 } else { half_character(piece) };
    if back < len { len - back } else { len }
}

/// How many bytes at the end begin a UTF-8 sequence that is not complete.
fn half_character(piece: &[u8]) -> usize {
    for back in 1..=piece.len().min(3) {
        let needs = match piece[piece.len() - back] {
            0x80..=0xbf => continue, // the middle of a sequence: its first byte is further back
            0xc2..=0xdf => 2,
            0xe0..=0xef => 3,
            0xf0..=0xf4 => 4,
            _ => 1,
        };
        return if needs > back { back } else { 0 };
    }
    0
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn check(data: &str, longest: usize, end: End, pieces: &[&str]) {
        let mut ends = Vec::new();
        let consumed = frame(data.as_bytes(), longest, end, usize::MAX / 2, &mut ends);
        let found = split(data.as_bytes(), &ends);
        let pieces: Vec<Vec<u8>> = pieces.iter().map(|piece| piece.as_bytes().to_vec()).collect();
        assert_eq!(found, pieces, "{data:?}");
        assert_eq!(consumed, pieces.iter().map(Vec::len).sum::<usize>());
    }

    fn split(data: &[u8], ends: &[u32]) -> Vec<Vec<u8>> {
        let starts = std::iter::once(0).chain(ends.iter().copied());
        starts.zip(ends).map(|(from, to)| data[from as usize..*to as usize].to_vec()).collect()
    }

    #[test]
    fn lines_and_what_is_left() {
        use End::{Final, More};
        check("", 10, Final, &[]);
        check("a\nb", 10, More, &["a\n"]);
        check("a\nb", 10, Final, &["a\n", "b"]);
        check("\n\n\r\n", 10, More, &["\n", "\n", "\r\n"]);
        check("half", 10, More, &[]);
        // At the limit: with its line end it fits, or it is cut.
        check("abc\nd\n", 4, More, &["abc\n", "d\n"]);
        check("abcd\ne\n", 4, More, &["abcd", "\n", "e\n"]);
        check("abcd", 4, More, &["abcd"]);
        check("abc", 4, More, &[]);
        check("abcdefghij", 4, Final, &["abcd", "efgh", "ij"]);
        // Neither a character nor a line end is cut in two.
        check("abc\r\nd\n", 4, More, &["abc", "\r\n", "d\n"]);
        check("abcé\n", 4, More, &["abc", "é\n"]);
        check("ab€€\n", 4, More, &["ab", "€", "€\n"]);
        check("a😀b\n", 4, More, &["a", "😀", "b\n"]);
        // Where it cannot be helped, it is.
        check("\r\n", 1, More, &["\r", "\n"]);
        check("éa\n", 2, More, &["é", "a\n"]);
    }

    #[test]
    fn no_more_lines_than_asked_for() {
        let mut ends = vec![7];
        assert_eq!(frame(b"a\nb\nc\n", 10, End::Final, 2, &mut ends), 4);
        assert_eq!(ends, [7, 2, 4]);
        ends.clear();
        assert_eq!(frame(b"abcdef", 2, End::Final, 2, &mut ends), 4);
        assert_eq!(ends, [2, 4]);
    }

    /// Mostly line ends, carriage returns and pieces of UTF-8, where the mistakes would be.
    fn bytes() -> impl Strategy<Value = Vec<u8>> {
        let byte = prop_oneof![
            Just(b'a'),
            Just(b'\n'),
            Just(b'\r'),
            Just(0xc3u8),
            Just(0xe2u8),
            Just(0xf0u8),
            Just(0x9fu8),
            any::<u8>(),
        ];
        proptest::collection::vec(byte, 0..300)
    }

    /// Reads `data` as a tail does: some bytes at a time, what was not consumed again with the next.
    fn in_reads(data: &[u8], longest: usize, max_lines: usize, reads: &[usize]) -> Vec<Vec<u8>> {
        let (mut done, mut have, mut pieces, mut ends) = (0, 0, Vec::new(), Vec::new());
        let mut reads = reads.iter().cycle();
        while done < data.len() {
            have = (have + reads.next().unwrap()).min(data.len());
            let end = if have == data.len() { End::Final } else { End::More };
            ends.clear();
            let consumed = frame(&data[done..have], longest, end, max_lines, &mut ends);
            pieces.extend(split(&data[done..], &ends));
            done += consumed;
        }
        pieces
    }

    proptest! {
        #[test]
        fn nothing_is_lost_and_reads_do_not_matter(
            data in bytes(),
            longest in 1usize..40,
            max_lines in 1usize..20,
            reads in proptest::collection::vec(1usize..50, 1..5),
        ) {
            let whole = in_reads(&data, longest, usize::MAX / 2, &[data.len().max(1)]);
            prop_assert_eq!(whole.concat(), data.clone());
            prop_assert!(whole.iter().all(|piece| !piece.is_empty() && piece.len() <= longest));
            prop_assert_eq!(&in_reads(&data, longest, max_lines, &reads), &whole);
            // What can be counted is what is found one by one.
            let (mut framed, mut ends) = (Framed::default(), Vec::new());
            framed.go_on(&data, longest, End::More, usize::MAX / 2, &mut ends);
            let (mut counted, mut have, mut steps) = (Some(Counted::default()), 0, reads.iter().cycle());
            while have < data.len() {
                have = (have + steps.next().unwrap()).min(data.len());
                counted = counted.and_then(|counted| counted.go_on(&data[..have], longest, max_lines));
            }
            let can_be = framed.cut == 0 && ends.len() <= max_lines;
            prop_assert_eq!(counted.map(|all| (all.bytes, all.lines)), can_be.then_some((framed.bytes, ends.len())));
            // Every line that fits is one piece of its own.
            let mut at = 0;
            let starts: Vec<usize> = whole.iter().map(|piece| { at += piece.len(); at - piece.len() }).collect();
            let mut from = 0;
            for line in data.split_inclusive(|byte| *byte == b'\n') {
                if line.len() < longest || (line.len() == longest && line.ends_with(b"\n")) {
                    let found = starts.binary_search(&from).ok().map(|index| whole[index].as_slice());
                    prop_assert_eq!(found, Some(line));
                }
                from += line.len();
            }
        }
    }
}
