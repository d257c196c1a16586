//! A batch into the body of a push: grouped by stream, in order within each, from the records straight into one
//! buffer that is kept from batch to batch.
//!
//! **Long lines.** Loki refuses a line above its limit, so it is cut before. The pieces keep the line's own time:
//! the next nanosecond belongs to the next line. Loki drops an entry whose time and text are known, and a line may
//! consist of equal parts (zeros at the end of a file that was preallocated), so every piece is shorter than the one
//! before it: no two are equal. `partial` marks them and `part` numbers them, since their time does not order them.
//!
//! Not here: the bytes of the forms (`wire.rs`), the text of labels (`labels.rs`).

use std::collections::HashMap;
use std::sync::Arc;

use super::wire::{Entry, json, protobuf};
use super::{labels, wire};
use crate::metrics::{Counter, Registry};
use crate::record::{Batch, Labels, Record};
use crate::sinks::{Encoder, LokiEncoding, LokiOptions, LongLines};

/// The longest character of UTF-8: a piece must be able to hold one.
const CHAR_BYTES_MAX: usize = 4;

/// What one request carries.
#[derive(Default)]
pub struct LokiPayload {
    body: Vec<u8>,
    pub(super) streams: usize,
    /// One per entry, in the order of the body.
    pub(super) sent: Vec<Sent>,
}

/// Which record an entry was made from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Sent {
    pub time_ns: i64,
    /// Index into [`Batch::records`].
    pub record: u32,
}

impl LokiPayload {
    pub fn body(&self) -> &[u8] {
        &self.body
    }
}

pub struct LokiEncoder {
    encoding: LokiEncoding,
    sink_labels: Labels,
    max_line_bytes: usize,
    long_lines: LongLines,
    long_lines_total: Arc<Counter>,
    places: Vec<Place>,
    /// The streams of the current batch, by their labels.
    streams: HashMap<Arc<Labels>, u32>,
    /// The body before it is compressed.
    raw: Vec<u8>,
    /// A line whose invalid UTF-8 was replaced.
    clean: String,
    snappy: snap::raw::Encoder,
}

/// Where a record is, and into which stream it goes.
struct Place {
    stream: u32,
    /// Index into [`Batch::records`].
    record: u32,
    part: u32,
    index: u32,
}

impl Encoder for LokiEncoder {
    type Payload = LokiPayload;

    fn encode(&mut self, batch: &Batch, payload: &mut LokiPayload) {
        payload.sent.clear();
        payload.streams = self.group(batch);
        let places = std::mem::take(&mut self.places);
        self.raw.clear();
        match self.encoding {
            LokiEncoding::Protobuf => {
                self.write(batch, &places, &mut payload.sent);
                compress(&mut self.snappy, &self.raw, &mut payload.body);
            }
            LokiEncoding::Json => {
                json::open(&mut self.raw);
                self.write(batch, &places, &mut payload.sent);
                json::close(&mut self.raw);
                std::mem::swap(&mut self.raw, &mut payload.body);
            }
        }
        self.places = places;
    }
}

impl LokiEncoder {
    /// `name` is the sink's; the labels of `sink_labels` are added to every record.
    pub fn new(name: &str, sink_labels: &Labels, options: &LokiOptions, metrics: &Registry) -> LokiEncoder {
        let help = "Lines that were split or truncated because the sink refuses longer ones.";
        LokiEncoder {
            encoding: options.encoding,
            sink_labels: sink_labels.clone(),
            max_line_bytes: options.max_line_bytes.max(CHAR_BYTES_MAX),
            long_lines: options.long_lines,
            long_lines_total: metrics.counter("sink_long_lines_total", help, &[("sink", name)]),
            places: Vec::new(),
            streams: HashMap::new(),
            raw: Vec::new(),
            clean: String::new(),
            snappy: snap::raw::Encoder::new(),
        }
    }

    /// Fills `places`, ordered by stream and then as the batch is. Returns how many streams there are.
    fn group(&mut self, batch: &Batch) -> usize {
        self.places.clear();
        self.streams.clear();
        let (mut stream, mut last): (u32, Option<&Arc<Labels>>) = (0, None);
        for (part, slice) in batch.slices().enumerate() {
            for index in slice.range.clone() {
                let labels = slice.records.get(index).labels;
                if !last.is_some_and(|last| Arc::ptr_eq(last, labels)) {
                    let next = self.streams.len() as u32;
                    stream = match self.streams.get(labels) {
                        Some(known) => *known,
                        None => *self.streams.entry(labels.clone()).or_insert(next),
                    };
                    last = Some(labels);
                }
                let record = self.places.len() as u32;
                self.places.push(Place { stream, record, part: part as u32, index });
            }
        }
        let streams = self.streams.len();
        self.streams.clear(); // keeps no source's labels alive
        if streams > 1 {
            self.places.sort_unstable_by_key(|place| (place.stream, place.record));
        }
        streams
    }

    fn write(&mut self, batch: &Batch, places: &[Place], sent: &mut Vec<Sent>) {
        let record = |place: &Place| {
            let (slice, _) = &batch.parts[place.part as usize];
            slice.records.get(place.index)
        };
        for stream in places.chunk_by(|a, b| a.stream == b.stream) {
            let pairs = labels::stream_labels(record(&stream[0]).labels, &self.sink_labels);
            let opened = match self.encoding {
                LokiEncoding::Protobuf => protobuf::open_stream(&mut self.raw, &labels::text(&pairs)),
                LokiEncoding::Json => {
                    json::open_stream(&mut self.raw, &pairs);
                    0
                }
            };
            for place in stream {
                self.line(&record(place), place.record, sent);
            }
            match self.encoding {
                LokiEncoding::Protobuf => protobuf::close_stream(&mut self.raw, opened),
                LokiEncoding::Json => json::close_stream(&mut self.raw),
            }
        }
    }

    /// One record: an entry, or several if it is too long.
    fn line(&mut self, record: &Record, number: u32, sent: &mut Vec<Sent>) {
        let mut clean = std::mem::take(&mut self.clean);
        let text = clean_text(record.text, &mut clean);
        let sent = &mut |time_ns| sent.push(Sent { time_ns, record: number });
        if text.len() <= self.max_line_bytes {
            let flags: &[_] = if record.partial { &[PARTIAL] } else { &[] };
            self.entry(record, text, flags, sent);
        } else {
            self.long_lines_total.add(1);
            match self.long_lines {
                LongLines::Truncate => {
                    let end = cut(text, self.max_line_bytes);
                    self.entry(record, &text[..end], &[PARTIAL], sent);
                }
                LongLines::Split => {
                    for (index, piece) in pieces(text, self.max_line_bytes).enumerate() {
                        let part = (index + 1).to_string();
                        self.entry(record, piece, &[PARTIAL, ("part", &part)], sent);
                    }
                }
            }
        }
        self.clean = clean;
    }

    fn entry(&mut self, record: &Record, line: &str, flags: &[(&str, &str)], sent: &mut impl FnMut(i64)) {
        let entry = Entry { time_ns: record.time_ns, line, metadata: record.metadata, flags };
        match self.encoding {
            LokiEncoding::Protobuf => wire::protobuf::entry(&mut self.raw, &entry),
            LokiEncoding::Json => wire::json::entry(&mut self.raw, &entry),
        }
        sent(record.time_ns);
    }
}

const PARTIAL: (&str, &str) = ("partial", "true");

/// Snappy's block format, which Loki expects of a protobuf push.
fn compress(snappy: &mut snap::raw::Encoder, raw: &[u8], body: &mut Vec<u8>) {
    body.resize(snap::raw::max_compress_len(raw.len()), 0);
    // It fails only on a buffer that is too small, or on 4 GiB, which no memory budget lets a batch have.
    let length = snappy.compress(raw, body).expect("the buffer is as large as snappy wants it");
    body.truncate(length);
}

/// Every invalid sequence becomes one U+FFFD, as everywhere else.
fn clean_text<'a>(text: &'a [u8], scratch: &'a mut String) -> &'a str {
    if let Ok(valid) = std::str::from_utf8(text) {
        return valid;
    }
    scratch.clear();
    for chunk in text.utf8_chunks() {
        scratch.push_str(chunk.valid());
        if !chunk.invalid().is_empty() {
            scratch.push(char::REPLACEMENT_CHARACTER);
        }
    }
    scratch
}

/// The last character boundary at or before `limit`. Above zero, as a limit holds at least one character.
fn cut(text: &str, limit: usize) -> usize {
    let limit = limit.min(text.len());
    (0..=limit).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0)
}

/// Pieces of at most `max` bytes, each shorter than the one before. Only a line of thousands of pieces reaches half
/// of `max`, where they stop shrinking, so that a small limit does not turn one line into any number of entries.
fn pieces(mut text: &str, max: usize) -> impl Iterator<Item = &str> {
    let (mut limit, least) = (max, (max / 2).max(CHAR_BYTES_MAX));
    std::iter::from_fn(move || {
        let (piece, rest) = text.split_at(cut(text, limit));
        text = rest;
        limit = piece.len().saturating_sub(1).max(least);
        (!piece.is_empty()).then_some(piece)
    })
}
