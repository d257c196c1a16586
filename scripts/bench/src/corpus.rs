//! The file that everybody reads: lines of a web service, all of one length, the same on every machine.

use std::fs::File;
use std::io::{BufWriter, Result, Write};
use std::path::Path;

/// With its line end.
pub const LINE_BYTES: usize = 153;

/// Stands once in every line, and in nothing else that a sender may wrap around it: so lines can be counted in any
/// encoding. A quote or a backslash would be escaped, so it has none.
pub const MARK: &[u8] = b" seq=";

/// Followed by nanoseconds of the monotonic clock in lines whose travel is timed.
pub const STAMP_MARK: &[u8] = b" sent=";

/// Writes `lines` lines.
pub fn write(path: &Path, lines: u64) -> Result<()> {
    let mut out = BufWriter::with_capacity(1 << 20, File::create(path)?);
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    for number in 0..lines {
        out.write_all(&line(number, &mut random))?;
    }
    out.flush()
}

fn line(number: u64, random: &mut Random) -> Vec<u8> {
    const LEVELS: [&str; 8] = ["INFO ", "INFO ", "INFO ", "INFO ", "INFO ", "DEBUG", "WARN ", "ERROR"];
    const PATHS: [&str; 6] = ["items", "orders", "users", "carts", "search", "health"];
    let (seconds, micros) = (number / 2000, number % 2000 * 500);
    let text = format!(
        "2026-01-31T{:02}:{:02}:{:02}.{micros:06}Z {} web-{:02} seq={number:010} GET /api/v1/{}/{} status={} bytes={} took_us={} client=10.{}.{}.{} trace={:016x}",
        seconds / 3600 % 24,
        seconds / 60 % 60,
        seconds % 60,
        LEVELS[random.below(8)],
        random.below(40),
        PATHS[random.below(6)],
        random.below(100_000),
        [200, 200, 200, 200, 204, 301, 404, 500][random.below(8)],
        random.below(50_000),
        random.below(900_000),
        random.below(4),
        random.below(256),
        random.below(256),
        random.next(),
    );
    filled(text)
}

/// A line that says when it was written, by the monotonic clock.
pub fn stamped(number: u64, now_ns: u64) -> Vec<u8> {
    filled(format!("web-07 INFO seq={number:010} sent={now_ns:020} a line that is timed on its way"))
}

/// As long as all others.
fn filled(text: String) -> Vec<u8> {
    let mut line = text.into_bytes();
    line.resize(LINE_BYTES - 1, b'.');
    line.push(b'\n');
    line
}

/// Xorshift: the same numbers everywhere.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, limit: u64) -> usize {
        (self.next() % limit) as usize
    }
}
