//! One line of a log that a container runtime of Kubernetes wrote below `/var/log/pods`. Pure.
//!
//! The format is that of the CRI: `2026-01-31T12:00:00.123456789Z stdout F the text`. A line of the container that
//! is longer than the runtime's buffer (16 KiB) comes in parts, whose tag is `P` but for the last one's, `F`; parts of
//! both streams may alternate.
//!
//! Used by whoever finds records in such a file (`monitors/file/parts.rs`) and by whoever takes them apart
//! (`pipeline/cri.rs`), so that both mean the same by a part.

/// The shortest time there is: `2026-01-31T12:00:00Z`.
const TIME_BYTES_MIN: usize = 20;

/// `2026-01-31`, and then a `T`.
const DATE_BYTES: usize = 10;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Part<'l> {
    /// Looks like one in RFC 3339; is not checked.
    pub time: &'l [u8],
    pub stream: Stream,
    /// More of the same line follows, in a further part of this stream.
    pub goes_on: bool,
    pub text: &'l [u8],
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stream {
    Stdout,
    Stderr,
}

impl Stream {
    pub fn name(self) -> &'static str {
        match self {
            Stream::Stdout => "stdout",
            Stream::Stderr => "stderr",
        }
    }
}

/// `line` without its line end. `None`: it is none of a container runtime.
pub fn part(line: &[u8]) -> Option<Part<'_>> {
    if line.get(DATE_BYTES) != Some(&b'T') {
        return None;
    }
    let (time, rest) = word(line);
    let (stream, rest) = word(rest?);
    let stream = match stream {
        b"stdout" => Stream::Stdout,
        b"stderr" => Stream::Stderr,
        _ => return None,
    };
    let (tags, text) = word(rest?);
    // Further tags may follow behind colons; nobody has defined any.
    let goes_on = match tags.split(|byte| *byte == b':').next()? {
        b"P" => true,
        b"F" => false,
        _ => return None,
    };
    (time.len() >= TIME_BYTES_MIN).then_some(Part { time, stream, goes_on, text: text.unwrap_or_default() })
}

/// Up to the first space, and what stands behind it.
fn word(text: &[u8]) -> (&[u8], Option<&[u8]>) {
    match memchr::memchr(b' ', text) {
        Some(at) => (&text[..at], Some(&text[at + 1..])),
        None => (text, None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_taken_apart() {
        use Stream::{Stderr, Stdout};
        let told = |line: &'static str| {
            let part = part(line.as_bytes())?;
            assert!(line.as_bytes().starts_with(part.time));
            Some((part.stream, part.goes_on, std::str::from_utf8(part.text).unwrap()))
        };
        for (line, expected) in [
            ("2025-01-31T12:00:00.123456789Z stdout F a text", Some((Stdout, false, "a text"))),
            ("2025-01-31T13:00:00.123456789+01:00 stderr P half ", Some((Stderr, true, "half "))),
            ("2025-01-31T12:00:00Z stdout F ", Some((Stdout, false, ""))),
            ("2025-01-31T12:00:00Z stdout F", Some((Stdout, false, ""))),
            ("2025-01-31T12:00:00Z stdout P:x  two", Some((Stdout, true, " two"))),
            ("2025-01-31T12:00:00Z stdin F a", None),
            ("2025-01-31T12:00:00Z stdout X a", None),
            ("2025-01-31T12:00:00Z stdout", None),
            ("2025-01-31T12:00 stdout F a", None),
            ("2025-01-31 12:00:00Z stdout F a", None),
            ("a text", None),
            ("", None),
        ] {
            assert_eq!(told(line), expected, "{line}");
        }
    }
}
