//! A batch into the body of a push: grouped by stream, in order within each, from the records straight into one
//! buffer that is kept from batch to batch.
//!
//! **Long lines.** Loki refuses a line above its limit, so it is cut before. The pieces keep the line's own time:
//! the next nanosecond belongs to the next line. Loki drops an entry whose time and text are known, and a line may
//! consist of equal parts (zeros at the end of a file that was preallocated), so every piece is shorter than the one
//! before it: no two are equal. `partial` marks them and `part` numbers them, since their time does not order them.
//!
//! Not here: the bytes of the forms (`wire.rs`), the text of labels (`labels.rs`).

use std::cell::Cell;
use std::collections::HashMap;
use std::ops::Range;
use std::sync::{Arc, Weak};

use super::alone::{self, Look, Way};
use super::wire::{Entry, json, protobuf};
use super::{labels, wire};
use crate::metrics::{Counter, Registry};
use crate::record::{Batch, Labels, Plain, RECORD_WEIGHT, Record, Records};
use crate::sinks::{Encoder, LokiEncoding, LokiOptions, LongLines};

/// The longest character of UTF-8: a piece must be able to hold one.
const CHAR_BYTES_MAX: usize = 4;

/// Whether all is ASCII is found out for so many lines at once.
const LOOK_LINES: usize = 64;

/// What the requests of one batch carry: one, or some streams in one and others alone (`alone.rs`).
#[derive(Default)]
pub struct LokiPayload {
    pub(super) pushes: Vec<Push>,
    /// So many of them are answered for: a retry goes on behind them.
    pub(super) answered: Cell<usize>,
    /// Behind the first record: where another stream begins than that of the record before.
    pub(super) cuts: Vec<usize>,
}

/// What one request carries.
#[derive(Default)]
pub(super) struct Push {
    /// Longer than the body: a compressor wants room for the worst case, and to clear that each time is work.
    buffer: Vec<u8>,
    length: usize,
    pub streams: usize,
    /// One per entry, in the order of the body.
    pub sent: Vec<Sent>,
}

/// Which record an entry was made from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Sent {
    pub time_ns: i64,
    /// Index into [`Batch::records`].
    pub record: u32,
}

impl Push {
    pub fn body(&self) -> &[u8] {
        &self.buffer[..self.length]
    }
}

pub struct LokiEncoder {
    encoding: LokiEncoding,
    sink_labels: Labels,
    max_line_bytes: usize,
    long_lines: LongLines,
    long_lines_total: Arc<Counter>,
    runs: Vec<Run>,
    /// Of the current batch.
    streams: Streams,
    known: alone::Sent,
    names: LastName,
    /// The body before it is compressed.
    raw: Vec<u8>,
    /// A line whose invalid UTF-8 was replaced.
    clean: String,
    snappy: snap::raw::Encoder,
}

/// Records that stand next to each other in one part and go into one stream: as a rule, all of a chunk.
struct Run {
    way: Way,
    stream: u32,
    /// Index into [`Batch::records`] of the first one.
    record: u32,
    part: u32,
    /// Within the part's records.
    range: Range<u32>,
}

/// The streams of one batch, by their labels. What tells them apart is made of their labels once.
#[derive(Default)]
struct Streams {
    /// By their hash, or what follows it if that is another stream's.
    by_hash: HashMap<u64, u32>,
    all: Vec<(Arc<Labels>, u64)>,
}

impl Streams {
    fn of(&mut self, labels: &Arc<Labels>, hash: u64) -> u32 {
        let mut place = hash;
        loop {
            let next = self.all.len() as u32;
            let stream = *self.by_hash.entry(place).or_insert(next);
            if stream == next {
                self.all.push((labels.clone(), hash));
            } else if self.all[stream as usize].0 != *labels {
                place = place.wrapping_add(1);
                continue;
            }
            return stream;
        }
    }

    /// Keeps no source's labels alive.
    fn clear(&mut self) {
        self.by_hash.clear();
        self.all.clear();
    }
}

/// The text of the stream that was written last: batch after batch may be of one stream alone.
#[derive(Default)]
struct LastName {
    /// Weak: keeps no source's labels alive. What it points to is not used again for others as long as it is here.
    labels: Weak<Labels>,
    text: String,
}

impl LastName {
    fn of(&mut self, labels: &Arc<Labels>, of_the_sink: &Labels) -> &str {
        if !std::ptr::eq(self.labels.as_ptr(), Arc::as_ptr(labels)) {
            labels::write_text(&mut self.text, labels, of_the_sink);
            self.labels = Arc::downgrade(labels);
        }
        &self.text
    }
}

impl Encoder for LokiEncoder {
    type Payload = LokiPayload;

    fn encode(&mut self, batch: &Batch, payload: &mut LokiPayload) {
        self.known.settle(payload.answered.take());
        let streams = self.group(batch);
        self.cuts(streams, &mut payload.cuts);
        let mut runs = std::mem::take(&mut self.runs);
        if streams > 1 {
            self.set_apart(batch, &mut runs);
        }
        let mut pushes = 0;
        for runs in runs.chunk_by(|a, b| a.stream == b.stream || a.way.max(b.way) < Way::Alone) {
            if payload.pushes.len() == pushes {
                payload.pushes.push(Push::default());
            }
            self.fill(batch, runs, pushes, &mut payload.pushes[pushes]);
            pushes += 1;
        }
        payload.pushes.truncate(pushes);
        self.runs = runs;
        self.streams.clear();
    }

    fn rest(&mut self, payload: LokiPayload) {
        self.known.rest(payload.answered.get());
        (self.runs, self.raw, self.streams) = (Vec::new(), Vec::new(), Streams::default());
        (self.clean, self.snappy) = (String::new(), snap::raw::Encoder::new());
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
            runs: Vec::new(),
            streams: Streams::default(),
            known: alone::Sent::default(),
            names: LastName::default(),
            raw: Vec::new(),
            clean: String::new(),
            snappy: snap::raw::Encoder::new(),
        }
    }

    /// Fills `runs`, ordered by stream and then as the batch is. Returns how many streams there are.
    fn group(&mut self, batch: &Batch) -> usize {
        self.runs.clear();
        self.streams.clear();
        let (mut record, mut stream, mut last): (u32, u32, Option<&Arc<Labels>>) = (0, 0, None);
        for (part, slice) in batch.slices().enumerate() {
            let part = part as u32;
            if slice.records.plain(slice.range.clone()).is_some() {
                let labels = slice.records.labels(slice.range.start);
                stream = self.stream_of(labels);
                self.runs.push(Run { way: Way::Shared, stream, record, part, range: slice.range.clone() });
                record += slice.range.end - slice.range.start;
                last = Some(labels);
                continue;
            }
            for index in slice.range.clone() {
                let labels = slice.records.labels(index);
                let is_same = last.is_some_and(|last| Arc::ptr_eq(last, labels));
                if !is_same {
                    stream = self.stream_of(labels);
                    last = Some(labels);
                }
                match self.runs.last_mut() {
                    Some(run) if is_same && run.part == part => run.range.end = index + 1,
                    _ => self.runs.push(Run {
                        way: Way::Shared,
                        stream,
                        record,
                        part,
                        range: index..index + 1,
                    }),
                }
                record += 1;
            }
        }
        let streams = self.streams.all.len();
        if streams > 1 {
            self.runs.sort_unstable_by_key(|run| (run.stream, run.record));
        }
        streams
    }

    /// A source is a stream as a rule, so there are as many as it has taken turns.
    fn cuts(&self, streams: usize, cuts: &mut Vec<usize>) {
        cuts.clear();
        if streams > 1 {
            let mut begins: Vec<(u32, u32)> = self.runs.iter().map(|run| (run.record, run.stream)).collect();
            begins.sort_unstable();
            let changes = begins.windows(2).filter(|two| two[0].1 != two[1].1);
            cuts.extend(changes.map(|two| two[1].0 as usize));
        }
    }

    /// Orders the runs by the way they go.
    fn set_apart(&mut self, batch: &Batch, runs: &mut [Run]) {
        let streams = || runs.chunk_by(|a, b| a.stream == b.stream);
        let looks: Vec<Look> = streams().map(|stream| look(batch, stream)).collect();
        looks.iter().for_each(|look| self.known.see(look.newest_ns));
        let way =
            |(stream, look): (&[Run], _)| self.known.way(self.streams.all[stream[0].stream as usize].1, look);
        let ways: Vec<Way> = streams().zip(&looks).map(way).collect();
        runs.iter_mut().for_each(|run| run.way = ways[run.stream as usize]);
        runs.sort_by_key(|run| (run.way, run.stream)); // stable: within a stream they stay as the batch is
    }

    fn fill(&mut self, batch: &Batch, runs: &[Run], number: usize, push: &mut Push) {
        push.sent.clear();
        self.raw.clear();
        match self.encoding {
            LokiEncoding::Protobuf => {
                self.write(batch, runs, number, push);
                push.length = compress(&mut self.snappy, &self.raw, &mut push.buffer);
            }
            LokiEncoding::Json => {
                json::open(&mut self.raw);
                self.write(batch, runs, number, push);
                json::close(&mut self.raw);
                std::mem::swap(&mut self.raw, &mut push.buffer);
                push.length = push.buffer.len();
            }
        }
    }

    fn stream_of(&mut self, labels: &Arc<Labels>) -> u32 {
        self.streams.of(labels, self.known.hash(labels))
    }

    fn write(&mut self, batch: &Batch, runs: &[Run], number: usize, push: &mut Push) {
        let records = |run: &Run| records_of(batch, run);
        push.streams = 0;
        let sent = &mut push.sent;
        for stream in runs.chunk_by(|a, b| a.stream == b.stream) {
            push.streams += 1;
            let first = sent.len();
            let labels = labels_of(batch, stream);
            let opened = match self.encoding {
                LokiEncoding::Protobuf => {
                    let name = self.names.of(labels, &self.sink_labels);
                    protobuf::open_stream(&mut self.raw, name)
                }
                LokiEncoding::Json => {
                    json::open_stream(&mut self.raw, &labels::stream_labels(labels, &self.sink_labels));
                    0
                }
            };
            for run in stream {
                if self.encoding == LokiEncoding::Protobuf
                    && let Some(plain) = records(run).plain(run.range.clone())
                {
                    self.plain(&plain, run, records(run), sent);
                    continue;
                }
                for (number, index) in (run.record..).zip(run.range.clone()) {
                    self.line(&records(run).get(index), number, sent);
                }
            }
            match self.encoding {
                LokiEncoding::Protobuf => protobuf::close_stream(&mut self.raw, opened),
                LokiEncoding::Json => json::close_stream(&mut self.raw),
            }
            let newest_ns = sent[first..].iter().map(|sent| sent.time_ns).max();
            let hash = self.streams.all[stream[0].stream as usize].1;
            self.known.note(number, hash, newest_ns.unwrap_or(i64::MIN));
        }
    }

    /// Many lines as they were read: what can be said of all of them is found out once.
    fn plain(&mut self, plain: &Plain<'_>, run: &Run, records: &Records, sent: &mut Vec<Sent>) {
        let mut heads = protobuf::Heads::default();
        let mut at = 0;
        for part in plain.parts(LOOK_LINES) {
            let is_ascii = part.bytes.is_ascii();
            for text in part.texts() {
                let (time_ns, number) = (plain.time_ns + i64::from(at), run.record + at);
                match text {
                    Some(text) if text.len() <= self.max_line_bytes && (is_ascii || text.is_ascii()) => {
                        heads.entry(&mut self.raw, time_ns, text);
                        sent.push(Sent { time_ns, record: number });
                    }
                    _ => self.line(&records.get(run.range.start + at), number, sent),
                }
                at += 1;
            }
        }
    }

    /// One record: an entry, or several if it is too long.
    fn line(&mut self, record: &Record, number: u32, sent: &mut Vec<Sent>) {
        let sent = &mut |time_ns| sent.push(Sent { time_ns, record: number });
        let flags: &[_] = if record.partial { &[PARTIAL] } else { &[] };
        // Nearly every line: found out faster than that it is UTF-8.
        if record.text.len() <= self.max_line_bytes && record.text.is_ascii() {
            return self.entry(record, record.text, flags, sent);
        }
        let mut clean = std::mem::take(&mut self.clean);
        let text = clean_text(record.text, &mut clean);
        if text.len() <= self.max_line_bytes {
            self.entry(record, text.as_bytes(), flags, sent);
        } else {
            self.long_lines_total.add(1);
            match self.long_lines {
                LongLines::Truncate => {
                    let end = cut(text, self.max_line_bytes);
                    self.entry(record, &text.as_bytes()[..end], &[PARTIAL], sent);
                }
                LongLines::Split => {
                    for (index, piece) in pieces(text, self.max_line_bytes).enumerate() {
                        let part = (index + 1).to_string();
                        self.entry(record, piece.as_bytes(), &[PARTIAL, ("part", &part)], sent);
                    }
                }
            }
        }
        self.clean = clean;
    }

    /// `line` is UTF-8.
    fn entry(&mut self, record: &Record, line: &[u8], flags: &[(&str, &str)], sent: &mut impl FnMut(i64)) {
        let entry = Entry { time_ns: record.time_ns, line, metadata: record.metadata, flags };
        match self.encoding {
            LokiEncoding::Protobuf => wire::protobuf::entry(&mut self.raw, &entry),
            LokiEncoding::Json => wire::json::entry(&mut self.raw, &entry),
        }
        sent(record.time_ns);
    }
}

fn records_of<'a>(batch: &'a Batch, run: &Run) -> &'a Records {
    &batch.parts[run.part as usize].0.records
}

fn labels_of<'a>(batch: &'a Batch, stream: &[Run]) -> &'a Arc<Labels> {
    records_of(batch, &stream[0]).labels(stream[0].range.start)
}

fn look(batch: &Batch, stream: &[Run]) -> Look {
    let mut look = Look { oldest_ns: i64::MAX, newest_ns: i64::MIN, weight: 0 };
    let mut see = |time_ns: i64| {
        (look.oldest_ns, look.newest_ns) = (look.oldest_ns.min(time_ns), look.newest_ns.max(time_ns));
    };
    for run in stream {
        let records = records_of(batch, run);
        match records.plain(run.range.clone()) {
            Some(plain) => [0, i64::from(run.range.end - run.range.start) - 1]
                .iter()
                .for_each(|at| see(plain.time_ns.saturating_add(*at))),
            None => run.range.clone().for_each(|index| see(records.get(index).time_ns)),
        }
    }
    look.weight =
        stream.iter().map(|run| records_of(batch, run).weight(run.range.clone(), RECORD_WEIGHT)).sum();
    look
}

const PARTIAL: (&str, &str) = ("partial", "true");

/// Snappy's block format, which Loki expects of a protobuf push. Returns how much of `buffer` it fills.
fn compress(snappy: &mut snap::raw::Encoder, raw: &[u8], buffer: &mut Vec<u8>) -> usize {
    let most = snap::raw::max_compress_len(raw.len());
    if buffer.len() < most {
        buffer.resize(most, 0);
    }
    // It fails only on a buffer that is too small, or on 4 GiB, which no memory budget lets a batch have.
    snappy.compress(raw, buffer).expect("the buffer is as large as snappy wants it")
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
