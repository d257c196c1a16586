//! What was written against what arrived, compared as sets: a count would let one double hide one loss.
//!
//! Every line of ours says who wrote it and which one it is, `{writer}:{number} {payload}`, and its payload
//! follows from the number, so that a damaged line is told apart from a lost one. One bit per line: six million
//! of them fit into a megabyte.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::io::{BufRead, BufReader, ErrorKind};
use std::path::Path;
use std::sync::LazyLock;

/// Examples in a message: enough to see a pattern, few enough to read.
const EXAMPLES: usize = 10;

/// Payloads are cut out of it.
const FILLER: [u8; 256] = {
    let mut filler = [0; 256];
    let mut at = 0;
    while at < filler.len() {
        filler[at] = b'a' + (at * 7 % 26) as u8;
        at += 1;
    }
    filler
};

/// Writers from here on write lines of all sizes: most are short, one in 500 does not fit into a page, or into two
/// hundred of them.
pub const ALL_SIZES: u32 = 4_000_000;

/// Below what a Loki takes as one line.
const LINE_BYTES_MAX: usize = 200 * 1024;

fn payload(writer: u32, number: u64) -> &'static [u8] {
    static LONG: LazyLock<Vec<u8>> = LazyLock::new(|| FILLER.repeat(LINE_BYTES_MAX / FILLER.len() + 1));
    let start = (number % 64) as usize;
    if writer < ALL_SIZES {
        return &FILLER[start..start + 112 + (number % 61) as usize];
    }
    let mixed = number.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 32; // neighbours differ
    let len = if number % 500 == 123 { mixed as usize % LINE_BYTES_MAX } else { mixed as usize % 200 };
    &LONG[start..start + len]
}

/// What the payloads of writers below [`ALL_SIZES`] are cut out of, for whoever writes somewhere else: line `number`
/// has `112 + number % 61` bytes of it, from `number % 64` on.
pub fn filler() -> &'static str {
    std::str::from_utf8(&FILLER).expect("it is letters")
}

/// Appends line `number` of `writer` with its `\n`: some 150 bytes, or see [`ALL_SIZES`].
pub fn push_line(to: &mut Vec<u8>, writer: u32, number: u64) {
    to.extend_from_slice(format!("{writer}:{number} ").as_bytes());
    to.extend_from_slice(payload(writer, number));
    to.push(b'\n');
}

/// Everything that arrived at one place, in the order in which it arrived there.
#[derive(Default)]
pub struct Arrived {
    writers: BTreeMap<u32, Seen>,
    lines: u64,
    foreign: Examples,
}

#[derive(Default)]
struct Seen {
    bits: Vec<u64>,
    distinct: u64,
    /// One above the highest number so far.
    next: u64,
    doubled: Examples,
    out_of_order: Examples,
}

/// How many there were, and the first few of them.
#[derive(Default, Clone)]
struct Examples {
    count: u64,
    first: Vec<String>,
}

impl Examples {
    fn add(&mut self, example: impl FnOnce() -> String) {
        self.count += 1;
        if self.first.len() < EXAMPLES {
            self.first.push(example());
        }
    }

    fn merge(&mut self, other: &Examples) {
        self.count += other.count;
        let room = EXAMPLES.saturating_sub(self.first.len());
        self.first.extend(other.first.iter().take(room).cloned());
    }
}

impl Arrived {
    pub fn of<L: AsRef<[u8]>>(lines: impl IntoIterator<Item = L>) -> Arrived {
        let mut arrived = Arrived::default();
        lines.into_iter().for_each(|line| arrived.line(line.as_ref()));
        arrived
    }

    /// Reads a text file line by line. One that is not there yet is empty.
    pub fn in_file(path: &Path) -> Arrived {
        let mut arrived = Arrived::default();
        let file = match File::open(path) {
            Err(cause) if cause.kind() == ErrorKind::NotFound => return arrived,
            opened => opened.unwrap_or_else(|cause| panic!("{}: {cause}", path.display())),
        };
        let (mut reader, mut line) = (BufReader::with_capacity(1 << 20, file), Vec::new());
        while reader.read_until(b'\n', &mut line).expect("an output can be read") > 0 {
            arrived.line(&line);
            line.clear();
        }
        arrived
    }

    /// With or without its line end.
    pub fn line(&mut self, line: &[u8]) {
        self.lines += 1;
        let line = line.strip_suffix(b"\n").unwrap_or(line);
        match parse(line) {
            Some((writer, number)) => self.writers.entry(writer).or_default().note(writer, number),
            None => self.foreign.add(|| String::from_utf8_lossy(&line[..line.len().min(80)]).into_owned()),
        }
    }

    /// All that arrived, doubles and damaged ones too.
    pub fn lines(&self) -> u64 {
        self.lines
    }

    /// Numbered lines of ours that arrived at least once.
    pub fn distinct(&self) -> u64 {
        self.writers.values().map(|seen| seen.distinct).sum()
    }

    /// Whether it arrived.
    pub fn has(&self, writer: u32, number: u64) -> bool {
        self.writers.get(&writer).is_some_and(|seen| seen.has(number))
    }

    /// `written`: how many lines each writer wrote, numbered from 0.
    pub fn compare(&self, written: &BTreeMap<u32, u64>) -> Report {
        let mut report = Report { foreign: self.foreign.clone(), ..Report::default() };
        report.written = written.values().sum();
        report.arrived = self.lines;
        let nothing = Seen::default();
        for (writer, count) in written {
            let seen = self.writers.get(writer).unwrap_or(&nothing);
            report.doubled.merge(&seen.doubled);
            report.out_of_order.merge(&seen.out_of_order);
            for number in (0..*count).filter(|number| !seen.has(*number)) {
                report.lost.add(|| format!("{writer}:{number}"));
            }
            for number in (*count..seen.next).filter(|number| seen.has(*number)) {
                report.foreign.add(|| format!("{writer}:{number}, which nobody wrote"));
            }
        }
        for writer in self.writers.keys().filter(|writer| !written.contains_key(writer)) {
            report.foreign.add(|| format!("a line of writer {writer}, who does not exist"));
        }
        report
    }
}

/// `None`: not a line of ours, or a damaged one.
fn parse(line: &[u8]) -> Option<(u32, u64)> {
    let colon = line.iter().take(12).position(|byte| *byte == b':')?;
    let space = colon + line[colon..].iter().take(24).position(|byte| *byte == b' ')?;
    let writer = std::str::from_utf8(&line[..colon]).ok()?.parse().ok()?;
    let number = std::str::from_utf8(&line[colon + 1..space]).ok()?.parse().ok()?;
    (&line[space + 1..] == payload(writer, number)).then_some((writer, number))
}

impl Seen {
    fn has(&self, number: u64) -> bool {
        let word = self.bits.get((number / 64) as usize);
        word.is_some_and(|word| word & (1 << (number % 64)) != 0)
    }

    fn note(&mut self, writer: u32, number: u64) {
        if self.has(number) {
            self.doubled.add(|| format!("{writer}:{number}"));
            return; // a repeat says nothing about order: what was resent was in order once
        }
        let word = (number / 64) as usize;
        if self.bits.len() <= word {
            self.bits.resize(word + 1, 0);
        }
        self.bits[word] |= 1 << (number % 64);
        self.distinct += 1;
        if number + 1 < self.next {
            let highest = self.next - 1;
            self.out_of_order.add(|| format!("{writer}:{number} after {writer}:{highest}"));
        }
        self.next = self.next.max(number + 1);
    }
}

/// How what arrived differs from what was written.
#[derive(Default)]
pub struct Report {
    pub written: u64,
    pub arrived: u64,
    lost: Examples,
    doubled: Examples,
    out_of_order: Examples,
    /// Damaged, or never written.
    foreign: Examples,
}

impl Report {
    pub fn lost(&self) -> u64 {
        self.lost.count
    }

    pub fn doubled(&self) -> u64 {
        self.doubled.count
    }

    /// Each line once, whole and in order.
    pub fn is_exact(&self) -> bool {
        let wrong = [&self.lost, &self.doubled, &self.out_of_order, &self.foreign];
        wrong.iter().all(|examples| examples.count == 0)
    }

    #[track_caller]
    pub fn assert_exact(&self) {
        assert!(self.is_exact(), "{self}");
    }

    /// Each line once and whole, in whatever order: for what the agent cannot know to be one log (files that were
    /// renamed before it ever saw them).
    #[track_caller]
    pub fn assert_once(&self) {
        let wrong = [&self.lost, &self.doubled, &self.foreign];
        assert!(wrong.iter().all(|examples| examples.count == 0), "{self}");
    }

    /// Each line at least once, and whole.
    pub fn is_nothing_lost(&self) -> bool {
        let wrong = [&self.lost, &self.foreign];
        wrong.iter().all(|examples| examples.count == 0)
    }

    /// For where doubles are allowed, and only there.
    #[track_caller]
    pub fn assert_nothing_lost(&self) {
        assert!(self.is_nothing_lost(), "{self}");
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} lines written, {} arrived", self.written, self.arrived)?;
        let parts = [
            ("lost", &self.lost),
            ("doubled", &self.doubled),
            ("out of order", &self.out_of_order),
            ("damaged or foreign", &self.foreign),
        ];
        for (name, examples) in parts {
            write!(f, ", {} {name}", examples.count)?;
            if !examples.first.is_empty() {
                write!(f, " ({}", examples.first.join("; "))?;
                f.write_str(if examples.count as usize > examples.first.len() { "; …)" } else { ")" })?;
            }
        }
        Ok(())
    }
}

fn text(numbers: &[u64]) -> Vec<Vec<u8>> {
    let line = |number: &u64| {
        let mut line = Vec::new();
        push_line(&mut line, 1, *number);
        line
    };
    numbers.iter().map(line).collect()
}

/// The judge is judged first: each kind of fault is seen, and none is taken for another.
#[test]
fn every_fault_is_told_apart() {
    // lost, doubled, out of order, foreign
    let check = |what: &str, lines: Vec<Vec<u8>>, expected: [u64; 4]| {
        let report = Arrived::of(lines).compare(&BTreeMap::from([(1, 4)]));
        let found = [&report.lost, &report.doubled, &report.out_of_order, &report.foreign].map(|e| e.count);
        assert_eq!(found, expected, "{what}: {report}");
    };
    check("as written", text(&[0, 1, 2, 3]), [0, 0, 0, 0]);
    check("one is missing", text(&[0, 1, 3]), [1, 0, 0, 0]);
    check("a double does not hide a loss", text(&[0, 1, 1, 3]), [1, 1, 0, 0]);
    check("a replay is doubled, not disordered", text(&[0, 1, 0, 1, 2, 3]), [0, 2, 0, 0]);
    check("two changed places", text(&[0, 2, 1, 3]), [0, 0, 1, 0]);
    check("one too many", text(&[0, 1, 2, 3, 4]), [0, 0, 0, 1]);
    check("nothing arrived", text(&[]), [4, 0, 0, 0]);
    let mut cut = text(&[0, 1, 2, 3]);
    cut[2].truncate(40);
    check("a damaged line is lost too", cut, [1, 0, 0, 1]);
    let mut strange = text(&[0, 1, 2, 3]);
    strange.push(b"hello\n".to_vec());
    check("a stranger", strange, [0, 0, 0, 1]);
}
