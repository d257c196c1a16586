//! The two forms of a push, written by hand, straight into one buffer.
//!
//! Protobuf is Loki's `logproto.PushRequest` (its published `push.proto`):
//!
//! ```text
//! PushRequest { repeated Stream streams = 1 }
//! Stream      { string labels = 1; repeated Entry entries = 2 }
//! Entry       { Timestamp { int64 seconds = 1; int32 nanos = 2 } timestamp = 1; string line = 2;
//!               repeated Pair { string name = 1; string value = 2 } structuredMetadata = 3 }
//! ```
//!
//! JSON is `{"streams":[{"stream":{name:value},"values":[["nanoseconds","line",{name:value}]]}]}`.

use std::borrow::Cow;
use std::io::Write;
use std::sync::Arc;

use super::labels;

/// One line as Loki knows it.
pub struct Entry<'a> {
    pub time_ns: i64,
    /// UTF-8.
    pub line: &'a [u8],
    pub metadata: &'a [(Arc<str>, Box<str>)],
    /// What we say about the line ourselves; the metadata wins.
    pub flags: &'a [(&'a str, &'a str)],
}

impl Entry<'_> {
    fn pairs(&self) -> impl Iterator<Item = (Cow<'_, str>, &str)> {
        let metadata = self.metadata.iter().map(|(name, value)| (labels::valid_name(name), &**value));
        let known = |flag: &str| self.metadata.iter().any(|(name, _)| labels::valid_name(name) == flag);
        let flags = self.flags.iter().filter(move |(name, _)| !known(name));
        metadata.chain(flags.map(|(name, value)| (Cow::Borrowed(*name), *value)))
    }
}

pub mod protobuf {
    use super::Entry;

    const LENGTH_DELIMITED: u8 = 2;

    fn tag(field: u8, kind: u8) -> u8 {
        field << 3 | kind
    }

    /// A stream's length is known only after its entries. Five bytes of varint are kept free for it; a varint may
    /// be longer than it needs to be, and all decoders must take it.
    const LENGTH_BYTES: usize = 5;

    /// Begins a stream; the answer is for [`close_stream`].
    pub fn open_stream(out: &mut Vec<u8>, labels: &str) -> usize {
        out.push(tag(1, LENGTH_DELIMITED));
        let at = out.len();
        out.extend_from_slice(&[0; LENGTH_BYTES]);
        text(out, 1, labels);
        at
    }

    pub fn close_stream(out: &mut [u8], at: usize) {
        let length = out.len() - at - LENGTH_BYTES;
        assert!(length < 1 << (7 * LENGTH_BYTES), "a stream longer than any memory budget");
        for (index, byte) in out[at..at + LENGTH_BYTES].iter_mut().enumerate() {
            let more = if index + 1 < LENGTH_BYTES { 0x80 } else { 0 };
            *byte = (length >> (7 * index)) as u8 & 0x7f | more;
        }
    }

    /// The beginnings of lines that follow each other closely: what they share is put together once a second.
    #[derive(Default)]
    pub struct Heads {
        second: Option<i64>,
        /// Tag and length of the timestamp, its seconds, and the tag of its nanoseconds.
        shared: Head,
    }

    /// A number below 2^30 always has as many, so that all timestamps of a second are of one length.
    const NANOS_BYTES: usize = 5;

    impl Heads {
        /// An entry without metadata.
        #[inline]
        pub fn entry(&mut self, out: &mut Vec<u8>, time_ns: i64, line: &[u8]) {
            let second = time_ns.div_euclid(1_000_000_000);
            if self.second != Some(second) {
                self.begin(second);
            }
            let nanos = time_ns.rem_euclid(1_000_000_000) as u64;
            let spread = nanos & 0x7f
                | (nanos & 0x7f << 7) << 1
                | (nanos & 0x7f << 14) << 2
                | (nanos & 0x7f << 21) << 3
                | (nanos & 0x7f << 28) << 4
                | 0x80808080;
            let shared = &self.shared.bytes[..self.shared.len];
            let mut head = Head::default();
            head.push(tag(2, LENGTH_DELIMITED));
            head.varint((shared.len() + NANOS_BYTES + field_len(line.len())) as u64);
            head.extend(shared);
            head.extend(&spread.to_le_bytes()[..NANOS_BYTES]);
            head.push(tag(2, LENGTH_DELIMITED));
            head.varint(line.len() as u64);
            out.extend_from_slice(&head.bytes[..head.len]);
            out.extend_from_slice(line);
        }

        fn begin(&mut self, second: i64) {
            let seconds = second as u64; // int64: its bits as they are
            let mut shared = Head::default();
            shared.push(tag(1, LENGTH_DELIMITED));
            shared.varint((2 + varint_len(seconds) + NANOS_BYTES) as u64);
            shared.push(tag(1, 0));
            shared.varint(seconds);
            shared.push(tag(2, 0));
            *self = Heads { second: Some(second), shared };
        }
    }

    pub fn entry(out: &mut Vec<u8>, entry: &Entry) {
        let seconds = entry.time_ns.div_euclid(1_000_000_000) as u64; // int64: its bits as they are
        let nanos = entry.time_ns.rem_euclid(1_000_000_000) as u64;
        let time_len = 2 + varint_len(seconds) + varint_len(nanos);
        let pairs_len: usize =
            entry.pairs().map(|(name, value)| field_len(pair_len(name.len(), value.len()))).sum();
        // All that stands before the line, put together aside: one check for room instead of one a byte.
        let mut head = Head::default();
        head.push(tag(2, LENGTH_DELIMITED));
        head.varint((field_len(time_len) + field_len(entry.line.len()) + pairs_len) as u64);
        head.push(tag(1, LENGTH_DELIMITED));
        head.varint(time_len as u64);
        head.push(tag(1, 0));
        head.varint(seconds);
        head.push(tag(2, 0));
        head.varint(nanos);
        head.push(tag(2, LENGTH_DELIMITED));
        head.varint(entry.line.len() as u64);
        out.extend_from_slice(&head.bytes[..head.len]);
        out.extend_from_slice(entry.line);
        for (name, value) in entry.pairs() {
            out.push(tag(3, LENGTH_DELIMITED));
            varint(out, pair_len(name.len(), value.len()) as u64);
            text(out, 1, &name);
            text(out, 2, value);
        }
    }

    /// Five tags and five varints.
    const HEAD_BYTES: usize = 5 + 5 * 10;

    struct Head {
        bytes: [u8; HEAD_BYTES],
        len: usize,
    }

    impl Default for Head {
        fn default() -> Head {
            Head { bytes: [0; HEAD_BYTES], len: 0 }
        }
    }

    impl Head {
        #[inline]
        fn extend(&mut self, bytes: &[u8]) {
            self.bytes[self.len..self.len + bytes.len()].copy_from_slice(bytes);
            self.len += bytes.len();
        }

        #[inline]
        fn push(&mut self, byte: u8) {
            self.bytes[self.len] = byte;
            self.len += 1;
        }

        #[inline]
        fn varint(&mut self, mut value: u64) {
            while value >= 0x80 {
                self.push(value as u8 | 0x80);
                value >>= 7;
            }
            self.push(value as u8);
        }
    }

    fn pair_len(name: usize, value: usize) -> usize {
        field_len(name) + field_len(value)
    }

    /// Of a length-delimited field with its tag and length.
    fn field_len(content: usize) -> usize {
        1 + varint_len(content as u64) + content
    }

    fn text(out: &mut Vec<u8>, field: u8, text: &str) {
        out.push(tag(field, LENGTH_DELIMITED));
        varint(out, text.len() as u64);
        out.extend_from_slice(text.as_bytes());
    }

    fn varint(out: &mut Vec<u8>, mut value: u64) {
        while value >= 0x80 {
            out.push(value as u8 | 0x80);
            value >>= 7;
        }
        out.push(value as u8);
    }

    fn varint_len(value: u64) -> usize {
        (70 - (value | 1).leading_zeros() as usize) / 7
    }
}

pub mod json {
    use super::{Entry, Write};

    pub fn open(out: &mut Vec<u8>) {
        out.extend_from_slice(b"{\"streams\":[");
    }

    pub fn open_stream(out: &mut Vec<u8>, labels: &[(String, String)]) {
        comma(out);
        out.extend_from_slice(b"{\"stream\":");
        object(out, labels.iter().map(|(name, value)| (&**name, &**value)));
        out.extend_from_slice(b",\"values\":[");
    }

    pub fn entry(out: &mut Vec<u8>, entry: &Entry) {
        comma(out);
        let _ = write!(out, "[\"{}\",", entry.time_ns); // a Vec takes everything
        text(out, &String::from_utf8_lossy(entry.line));
        let mut pairs = entry.pairs().peekable();
        if pairs.peek().is_some() {
            out.push(b',');
            object(out, pairs);
        }
        out.push(b']');
    }

    pub fn close_stream(out: &mut Vec<u8>) {
        out.extend_from_slice(b"]}");
    }

    pub fn close(out: &mut Vec<u8>) {
        out.extend_from_slice(b"]}");
    }

    fn object<N: AsRef<str>, V: AsRef<str>>(out: &mut Vec<u8>, pairs: impl Iterator<Item = (N, V)>) {
        out.push(b'{');
        for (name, value) in pairs {
            comma(out);
            text(out, name.as_ref());
            out.push(b':');
            text(out, value.as_ref());
        }
        out.push(b'}');
    }

    /// Between members: after everything but an opening bracket.
    fn comma(out: &mut Vec<u8>) {
        if !matches!(out.last(), Some(b'[' | b'{')) {
            out.push(b',');
        }
    }

    fn text(out: &mut Vec<u8>, text: &str) {
        let written = serde_json::to_writer(out, text);
        debug_assert!(written.is_ok(), "a Vec takes every text");
    }
}
