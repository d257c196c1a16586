//! One read, in steps: what has come is looked through while it still is in the cache of the processor.
//!
//! Not here: how much is read, and whether it is what it should be (`tail.rs`).

use std::io;

use super::framing::{Counted, End, Framed};
use crate::ledger::BEFORE_BYTES;
use crate::record::{Buffer, Summing};

const STEP_BYTES: usize = 256 * 1024;

/// What is looked for.
pub(super) struct Scan<'a> {
    /// See [`super::framing::frame`].
    pub longest: usize,
    pub most: usize,
    pub ends: &'a mut Vec<u32>,
    /// As long as lines are counted, and not looked for.
    pub counted: Option<Counted>,
    pub sums: Option<Summing>,
}

/// What was found.
pub(super) struct Scanned {
    /// How many bytes of the buffer are filled.
    pub read: usize,
    pub framed: Framed,
    /// `None`: lines were looked for.
    pub counted: Option<Counted>,
    pub sums: Option<Summing>,
}

impl Scanned {
    /// So much was read at once, and not looked at.
    pub fn unseen(read: usize) -> Scanned {
        Scanned { read, framed: Framed::default(), counted: None, sums: None }
    }
}

impl Scan<'_> {
    /// Fills `data` with what stands at `start`. Lines begin behind its first `back` bytes.
    pub fn run(
        self,
        mut read_at: impl FnMut(&mut [u8], u64) -> io::Result<usize>,
        data: &mut Buffer<u8>,
        back: usize,
        start: u64,
    ) -> io::Result<Scanned> {
        let Scan { longest, most, ends, counted, sums } = self;
        let mut scanned = Scanned { read: 0, framed: Framed::default(), counted, sums };
        while scanned.read < data.len() && !scanned.framed.full {
            let upto = data.len().min(scanned.read + STEP_BYTES);
            scanned.read = read_on(&mut read_at, &mut data[..upto], scanned.read, start)?;
            if let Some(lines) = data[..scanned.read].get(back..).filter(|lines| !lines.is_empty()) {
                scanned.counted = scanned.counted.and_then(|counted| counted.go_on(lines, longest, most));
                if scanned.counted.is_none() {
                    scanned.framed.go_on(lines, longest, End::More, most, ends);
                }
                scanned.sums.iter_mut().for_each(|sums| sums.go_on(lines));
            }
            if scanned.read < upto {
                break;
            }
        }
        Ok(scanned)
    }
}

/// Fills `data`, which has `filled` bytes of what begins at `start`, and says how far: less at the end of the file, or
/// if something else stands there by now. The last bytes are read once more with what follows them, so that nothing
/// can be exchanged in between.
fn read_on(
    mut read_at: impl FnMut(&mut [u8], u64) -> io::Result<usize>,
    data: &mut [u8],
    filled: usize,
    start: u64,
) -> io::Result<usize> {
    let from = filled.saturating_sub(BEFORE_BYTES);
    let mut stood = [0; BEFORE_BYTES];
    let stood = &mut stood[..filled - from];
    stood.copy_from_slice(&data[from..filled]);
    let read = from + read_at(&mut data[from..], start + from as u64)?;
    if read < filled || data[from..filled] != *stood {
        data[from..filled].copy_from_slice(stood);
        return Ok(filled);
    }
    Ok(read)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_exchanged_between_two_reads_is_not_mixed() {
        let text: Vec<u8> = (0..=255).collect();
        let check = |now: &[u8], filled: usize, expected: usize| {
            let read_at = |buffer: &mut [u8], offset: u64| {
                let there = now.get(offset as usize - 1000..).unwrap_or_default();
                let len = there.len().min(buffer.len());
                buffer[..len].copy_from_slice(&there[..len]);
                Ok(len)
            };
            let mut data = text[..filled].to_vec();
            data.resize(200, 0);
            let read = read_on(read_at, &mut data, filled, 1000).unwrap();
            assert_eq!(data[..read], text[..expected], "{} bytes, {filled} filled", now.len());
        };
        check(&text, 0, 200);
        check(&text, 3, 200);
        check(&text, 100, 200);
        check(&text[..150], 100, 150);
        check(&text[..100], 100, 100);
        check(&text[..70], 100, 100); // it was cut
        check(&[], 100, 100);
        check(&[&[b'x'; 99], &text[99..]].concat(), 100, 100);
    }
}
