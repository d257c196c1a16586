//! Our bytes as Loki reads them, decoded with an independent reader; its answers as we read them.

use std::collections::BTreeMap;
use std::time::Duration;

use proptest::prelude::*;
use prost::Message;

use super::encode::Sent;
use super::*;
use crate::ack::{Ack, GenerationId, Receipt, Receipts, SinkSet};
use crate::budget::{Budget, Holder};
use crate::metrics::Registry;
use crate::record::{Batch, Changed, Entry, Labels, Lines, Origin, Records, Shift, Slice};
use crate::sinks::http::tests::{body_of, context, options, serve};
use crate::sinks::{BatchLimits, Encoder, Guilty, KindOptions, LongLines, RetryOptions};

/// Loki's published schema of a push.
#[derive(Message)]
struct PushRequest {
    #[prost(message, repeated, tag = "1")]
    streams: Vec<StreamAdapter>,
}

#[derive(Message)]
struct StreamAdapter {
    #[prost(string, tag = "1")]
    labels: String,
    #[prost(message, repeated, tag = "2")]
    entries: Vec<EntryAdapter>,
    #[prost(uint64, tag = "3")]
    hash: u64,
}

#[derive(Message)]
struct EntryAdapter {
    #[prost(message, optional, tag = "1")]
    timestamp: Option<Timestamp>,
    #[prost(string, tag = "2")]
    line: String,
    #[prost(message, repeated, tag = "3")]
    structured_metadata: Vec<LabelPairAdapter>,
}

#[derive(Message)]
struct Timestamp {
    #[prost(int64, tag = "1")]
    seconds: i64,
    #[prost(int32, tag = "2")]
    nanos: i32,
}

#[derive(Message)]
struct LabelPairAdapter {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(string, tag = "2")]
    value: String,
}

/// An entry as it arrived: time, line, metadata.
type Arrived = (i64, String, BTreeMap<String, String>);
/// Streams in the order of the body, by the text of their labels.
type Streams = Vec<(String, Vec<Arrived>)>;

fn decode_protobuf(body: &[u8]) -> Streams {
    let raw = snap::raw::Decoder::new().decompress_vec(body).unwrap();
    let entry = |entry: EntryAdapter| {
        let time = entry.timestamp.unwrap();
        assert!((0..1_000_000_000).contains(&time.nanos));
        let metadata = entry.structured_metadata.into_iter().map(|pair| (pair.name, pair.value)).collect();
        let time_ns = i128::from(time.seconds) * 1_000_000_000 + i128::from(time.nanos);
        (i64::try_from(time_ns).unwrap(), entry.line, metadata)
    };
    let push = PushRequest::decode(&*raw).unwrap();
    push.streams
        .into_iter()
        .map(|stream| (stream.labels, stream.entries.into_iter().map(entry).collect()))
        .collect()
}

fn decode_json(body: &[u8]) -> Streams {
    let strings = |value: &serde_json::Value| -> BTreeMap<String, String> {
        serde_json::from_value(value.clone()).unwrap()
    };
    let push: serde_json::Value = serde_json::from_slice(body).unwrap();
    let entry = |entry: &serde_json::Value| {
        let time_ns = entry[0].as_str().unwrap().parse().unwrap();
        let metadata = entry.get(2).map(strings).unwrap_or_default();
        (time_ns, entry[1].as_str().unwrap().to_owned(), metadata)
    };
    let stream = |stream: &serde_json::Value| {
        let labels: Vec<_> = strings(&stream["stream"]).into_iter().collect();
        (labels::text(&labels), stream["values"].as_array().unwrap().iter().map(entry).collect())
    };
    push["streams"].as_array().unwrap().iter().map(stream).collect()
}

struct Nowhere;
impl Receipts for Nowhere {
    fn receipt(&self, _: Receipt) {}
}

fn origin(labels: &[(&str, &str)]) -> Arc<Origin> {
    Arc::new(Origin {
        source: "test".into(),
        generation: GenerationId(1),
        lineage: 1,
        labels: Arc::new(Labels::new(labels.iter().copied())),
        filename: None,
        replayable: true,
        stages: Box::default(),
        shift: Shift::default(),
    })
}

fn lines(origin: &Arc<Origin>, base_ns: i64, texts: &[&[u8]]) -> Lines {
    let (mut data, mut ends) = (Vec::new(), Vec::new());
    for text in texts {
        data.extend_from_slice(text);
        ends.push(data.len() as u32);
    }
    let credit = Budget::new(1 << 30).door().try_take(&Holder::default(), data.len()).unwrap();
    let (origin, start, first_line) = (origin.clone(), 0, 0);
    let (data, ends) = (data.into(), ends.into());
    Lines {
        origin,
        start,
        data,
        sums: None,
        ends,
        base_ns,
        first_line,
        continues: false,
        timed: None,
        credit,
    }
}

fn batch(all: Vec<Records>) -> Batch {
    let receipts: Arc<dyn Receipts> = Arc::new(Nowhere);
    let part = |records: Records| {
        let range = 0..records.len();
        let count = records.count(range.clone());
        let ack = Ack::new(GenerationId(1), 0..count.bytes, count, SinkSet::all(1), &receipts);
        let share = ack.into_shares().remove(0);
        (Slice { records: records.into(), range }, share)
    };
    Batch { number: 1, parts: all.into_iter().map(part).collect() }
}

fn loki(encoding: LokiEncoding, max_line_bytes: usize, long_lines: LongLines) -> LokiOptions {
    let http = options("http://127.0.0.1:1".into());
    LokiOptions { http, tenant: None, encoding, max_line_bytes, long_lines }
}

/// Encodes in both forms, which must say the same, and twice, which must give the same bytes.
fn encode(batch: &Batch, max_line_bytes: usize, long_lines: LongLines) -> (Streams, Vec<Sent>) {
    let registry = Registry::default();
    let form = |encoding, decode: fn(&[u8]) -> Streams| {
        let options = loki(encoding, max_line_bytes, long_lines);
        let mut encoder = LokiEncoder::new("loki", &Labels::default(), &options, &registry);
        let (mut first, mut again) = (LokiPayload::default(), LokiPayload::default());
        encoder.encode(batch, &mut first);
        encoder.encode(batch, &mut again);
        let same = |(a, b): (&Push, &Push)| a.body() == b.body() && a.sent == b.sent;
        assert!(first.pushes.iter().zip(&again.pushes).all(same), "not the same bytes again");
        let [push] = &first.pushes[..] else { panic!("{} pushes", first.pushes.len()) };
        let streams = decode(push.body());
        assert_eq!(push.streams, streams.len());
        (streams, first.pushes.remove(0).sent)
    };
    let protobuf = form(LokiEncoding::Protobuf, decode_protobuf);
    assert_eq!(form(LokiEncoding::Json, decode_json), protobuf);
    let times = protobuf.0.iter().flat_map(|(_, entries)| entries.iter().map(|(time_ns, ..)| *time_ns));
    assert!(times.eq(protobuf.1.iter().map(|sent| sent.time_ns)), "each entry is accounted for");
    protobuf
}

fn flags(flags: &[(&str, &str)]) -> BTreeMap<String, String> {
    flags.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

#[test]
fn a_line_arrives_as_text() {
    for (raw, want) in [
        (&b"plain\n"[..], "plain"),
        (b"\n", ""),
        (b"crlf\r\n", "crlf"),
        (b"nul \0 nul\n", "nul \0 nul"),
        (b"a \"quote\" and a \\\n", "a \"quote\" and a \\"),
        ("größe 日本 🙂\n".as_bytes(), "größe 日本 🙂"),
        (b"broken \xff\xfe end\n", "broken \u{FFFD}\u{FFFD} end"),
        (b"cut \xe6\x97\n", "cut \u{FFFD}"),
        (b"\xed\xa0\x80\n", "\u{FFFD}\u{FFFD}\u{FFFD}"),
    ] {
        let source = origin(&[("host", "a")]);
        let batch = batch(vec![Records::untouched(lines(&source, 5, &[b"before\n", raw, b"after\n"]))]);
        let (streams, sent) = encode(&batch, 1000, LongLines::Split);
        let entry = |time_ns, line: &str| (time_ns, line.to_owned(), BTreeMap::new());
        let want = vec![entry(5, "before"), entry(6, want), entry(7, "after")];
        assert_eq!(streams, [("{host=\"a\"}".to_owned(), want)]);
        assert_eq!(sent.iter().map(|sent| sent.record).collect::<Vec<_>>(), [0, 1, 2]);
    }
}

#[test]
fn every_time_arrives_to_the_nanosecond() {
    for time_ns in
        [0, 1, -1, 999_999_999, 1_000_000_000, -1_000_000_000, 1_704_067_200_123_456_789, i64::MAX, i64::MIN]
    {
        let batch = batch(vec![Records::untouched(lines(&origin(&[("a", "b")]), time_ns, &[b"x\n"]))]);
        assert_eq!(encode(&batch, 1000, LongLines::Split).0[0].1[0].0, time_ns);
    }
}

#[test]
fn streams_are_gathered_and_their_order_is_kept() {
    let (a, b) = (origin(&[("app", "a")]), origin(&[("app", "b")]));
    let again = origin(&[("app", "a")]); // equal labels, held elsewhere
    let batch = batch(vec![
        Records::untouched(lines(&a, 10, &[b"a0\n", b"a1\n"])),
        Records::untouched(lines(&b, 20, &[b"b0\n"])),
        Records::untouched(lines(&again, 30, &[b"a2\n"])),
        Records::untouched(lines(&b, 40, &[b"b1\n"])),
    ]);
    let (streams, sent) = encode(&batch, 1000, LongLines::Split);
    let texts = |index: usize| -> Vec<&str> { streams[index].1.iter().map(|(_, line, _)| &**line).collect() };
    assert_eq!(streams.len(), 2);
    assert_eq!((&*streams[0].0, texts(0)), ("{app=\"a\"}", vec!["a0", "a1", "a2"]));
    assert_eq!((&*streams[1].0, texts(1)), ("{app=\"b\"}", vec!["b0", "b1"]));
    let records: Vec<_> = sent.iter().map(|sent| sent.record).collect();
    assert_eq!(records, [0, 1, 3, 2, 4], "an entry is named by its place in the batch");
}

#[test]
fn what_a_stage_changed_is_what_arrives() {
    let source = origin(&[("app", "a")]);
    let changed = Changed {
        partial: false,
        text: Some((*b"new text").into()),
        time_ns: Some(77),
        labels: Some(Arc::new(Labels::new([("app", "a"), ("level", "warn")]))),
        metadata: vec![("trace.id".into(), "1f".into()), ("partial".into(), "ours".into())],
    };
    let entry = Entry { line: 0, changed: Some(Box::new(changed)) };
    let batch = batch(vec![Records::kept(lines(&source, 5, &[b"no line end"]), vec![entry])]);
    let (streams, _) = encode(&batch, 1000, LongLines::Split);
    let metadata = flags(&[("trace_id", "1f"), ("partial", "ours")]);
    let want = (77, "new text".to_owned(), metadata);
    assert_eq!(streams, [("{app=\"a\", level=\"warn\"}".to_owned(), vec![want])]);
}

#[test]
fn a_part_of_a_line_says_so() {
    let batch = batch(vec![Records::untouched(lines(&origin(&[("a", "b")]), 5, &[b"whole\n", b"half"]))]);
    let (streams, _) = encode(&batch, 1000, LongLines::Split);
    let metadata: Vec<_> = streams[0].1.iter().map(|(_, _, metadata)| metadata.clone()).collect();
    assert_eq!(metadata, [flags(&[]), flags(&[("partial", "true")])]);
}

/// The texts of the entries that one line becomes.
fn long(text: &str, max: usize, long_lines: LongLines) -> Vec<Arrived> {
    let line = format!("{text}\n");
    let batch =
        batch(vec![Records::untouched(lines(&origin(&[("a", "b")]), 5, &[line.as_bytes(), b"next\n"]))]);
    let (streams, sent) = encode(&batch, max, long_lines);
    let mut entries = streams.into_iter().next().unwrap().1;
    assert_eq!(entries.pop().map(|(time_ns, line, _)| (time_ns, line)), Some((6, "next".to_owned())));
    assert!(sent[..entries.len()].iter().all(|sent| sent.record == 0) && sent[entries.len()].record == 1);
    assert!(entries.iter().all(|(time_ns, line, _)| *time_ns == 5 && line.len() <= max));
    entries
}

#[test]
fn a_long_line_is_split_into_pieces_that_loki_keeps_apart() {
    for text in ["x".repeat(5000), "日本".repeat(900), "🙂".repeat(1100), "\0".repeat(4097), "é".repeat(513)]
    {
        let pieces = long(&text, 1024, LongLines::Split);
        let joined: String = pieces.iter().map(|(_, line, _)| &**line).collect();
        assert_eq!(joined, text);
        assert!(pieces.windows(2).all(|two| two[1].1.len() < two[0].1.len()), "equal pieces would be one");
        for (index, (_, _, metadata)) in pieces.iter().enumerate() {
            assert_eq!(*metadata, flags(&[("partial", "true"), ("part", &(index + 1).to_string())]));
        }
    }
}

#[test]
fn a_line_at_the_limit_stays_whole_and_one_above_does_not() {
    assert_eq!(long(&"x".repeat(1024), 1024, LongLines::Split), [(5, "x".repeat(1024), flags(&[]))]);
    let pieces = long(&"x".repeat(1025), 1024, LongLines::Split);
    assert_eq!(pieces.iter().map(|(_, line, _)| line.len()).collect::<Vec<_>>(), [1024, 1]);
    let cut = (5, "x".repeat(1024), flags(&[("partial", "true")]));
    assert_eq!(long(&"x".repeat(1025), 1024, LongLines::Truncate), [cut]);
    // No half of a character, and no limit so small that nothing fits.
    assert_eq!(long("aa日本", 6, LongLines::Truncate)[0].1, "aa日");
    let pieces = long("🙂🙂🙂", 4, LongLines::Split);
    assert_eq!(pieces.len(), 3);
}

#[test]
fn long_lines_are_counted() {
    let registry = Registry::default();
    let options = loki(LokiEncoding::Protobuf, 10, LongLines::Truncate);
    let mut encoder = LokiEncoder::new("edge", &Labels::default(), &options, &registry);
    let texts: [&[u8]; 3] = [b"short\n", b"longer than ten\n", b"so is this one\n"];
    let batch = batch(vec![Records::untouched(lines(&origin(&[("a", "b")]), 5, &texts))]);
    encoder.encode(&batch, &mut LokiPayload::default());
    let text = registry.render();
    assert!(text.contains("log_capturer_sink_long_lines_total{sink=\"edge\"} 2\n"), "{text}");
}

proptest! {
    /// The model: any lines of any bytes, at any time, of three sources, one with a sink's worth of odd labels.
    /// What arrives, stream by stream, is what was read, and every entry names its record.
    #[test]
    fn what_arrives_is_what_was_read(
        chunks in proptest::collection::vec(
            (0usize..3, any::<i32>(), proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..40), 1..6)),
            1..8,
        ),
    ) {
        let sources = [
            origin(&[("app", "a")]),
            origin(&[("app", "b"), ("odd name", "odd \"value\"\n")]),
            origin(&[("app", "a")]),
        ];
        let names = [r#"{app="a"}"#, r#"{app="b", odd_name="odd \"value\"\n"}"#, r#"{app="a"}"#];
        let mut want: BTreeMap<String, Vec<(i64, String)>> = BTreeMap::new();
        let (mut all, mut times) = (Vec::new(), Vec::new());
        for (source, base_ns, texts) in &chunks {
            let ended: Vec<Vec<u8>> = texts.iter().map(|text| {
                let text = text.iter().map(|byte| if *byte == b'\n' || *byte == b'\r' { b' ' } else { *byte });
                text.chain([b'\n']).collect()
            }).collect();
            for (index, line) in ended.iter().enumerate() {
                let time_ns = i64::from(*base_ns) + index as i64;
                let text = String::from_utf8_lossy(&line[..line.len() - 1]).into_owned();
                want.entry(names[*source].to_owned()).or_default().push((time_ns, text));
                times.push(time_ns);
            }
            let slices: Vec<&[u8]> = ended.iter().map(|line| &**line).collect();
            all.push(Records::untouched(lines(&sources[*source], i64::from(*base_ns), &slices)));
        }
        let (streams, sent) = encode(&batch(all), 1000, LongLines::Split);
        let got: BTreeMap<_, _> = streams.into_iter().map(|(labels, entries)| {
            (labels, entries.into_iter().map(|(time_ns, line, _)| (time_ns, line)).collect::<Vec<_>>())
        }).collect();
        prop_assert_eq!(got, want);
        let mut records: Vec<_> = sent.iter().map(|sent| sent.record as usize).collect();
        prop_assert!(sent.iter().all(|sent| times[sent.record as usize] == sent.time_ns));
        records.sort_unstable();
        prop_assert!(records.into_iter().eq(0..times.len()));
    }
}

/// 2024-01-01 00:00:00 UTC, plus so many nanoseconds.
fn at(ns: i64) -> i64 {
    CLOCK_UNSET_NS + ns
}

fn push(streams: usize, sent: &[(i64, u32)]) -> Push {
    let sent = sent.iter().map(|(ns, record)| Sent { time_ns: at(*ns), record: *record }).collect();
    let mut push = Push::default();
    (push.streams, push.sent) = (streams, sent);
    push
}

fn entry(time: &str) -> String {
    format!(
        "entry with timestamp {time} ignored, reason: 'entry too far behind, entry timestamp is: x, oldest acceptable timestamp is: y',\n"
    )
}

fn total(ignored: usize, all: usize) -> String {
    format!("user 'fake', total ignored: {ignored} out of {all} for stream: {{host=\"a\"}}\n")
}

#[test]
fn a_push_tells_where_its_streams_change() {
    let (one, other) = (origin(&[("a", "1")]), origin(&[("a", "2")]));
    let part = |origin: &Arc<Origin>, count: usize| {
        Records::untouched(lines(origin, 5, &[b"x\n".as_slice(); 3][..count]))
    };
    for (parts, streams, cuts) in [
        (vec![part(&one, 3), part(&one, 2)], 1, vec![]),
        (vec![part(&one, 3), part(&other, 2)], 2, vec![3]),
        (vec![part(&one, 1), part(&other, 2), part(&other, 1), part(&one, 3)], 2, vec![1, 4]),
    ] {
        let options = loki(LokiEncoding::Protobuf, 1000, LongLines::Split);
        let mut encoder = LokiEncoder::new("loki", &Labels::default(), &options, &Registry::default());
        let mut payload = LokiPayload::default();
        encoder.encode(&batch(parts), &mut payload);
        assert_eq!((payload.pushes[0].streams, &payload.cuts), (streams, &cuts));
    }
}

#[test]
fn a_refusal_names_the_guilty_only_if_it_accounts_for_all() {
    let four = || push(1, &[(0, 0), (1, 1), (2, 2), (3, 3)]);
    let first = entry("2024-01-01 00:00:00 +0000 UTC");
    let second = entry("2024-01-01 00:00:00.000000001 +0000 UTC");
    let third_in_summer = entry("2024-01-01 02:00:00.000000002 +0200 CEST");
    let other = entry("2024-01-01 00:00:09 +0000 UTC");
    let limited = "entry with timestamp 2024-01-01 00:00:00 +0000 UTC ignored, reason: 'Per stream rate limit exceeded (limit: 3MB/sec) while attempting to ingest for stream '{}' totaling 5B, …',\n";
    let split = || push(1, &[(0, 0), (0, 0), (0, 0), (1, 1)]);
    let these = |records: &[usize]| Guilty::These(records.to_vec());
    for (case, body, push, want) in [
        ("one", format!("{second}{}", total(1, 4)), four(), these(&[1])),
        ("in any order", format!("{second}{first}{}", total(2, 4)), four(), these(&[0, 1])),
        ("another zone", format!("{third_in_summer}{}", total(1, 4)), four(), these(&[2])),
        ("not all are named", format!("{second}{}", total(2, 4)), four(), Guilty::Unknown),
        ("not all were looked at", format!("{second}{}", total(1, 3)), four(), Guilty::Unknown),
        ("a time that is not ours", format!("{other}{}", total(1, 4)), four(), Guilty::Unknown),
        ("several streams", format!("{second}{}", total(1, 4)), push(2, &[(0, 0), (1, 1), (2, 2), (3, 3)]), Guilty::Apart(vec![2])),
        ("two records of one time", format!("{first}{}", total(1, 2)), push(1, &[(0, 0), (0, 1)]), Guilty::Unknown),
        ("pieces of one record", format!("{first}{first}{first}{}", total(3, 4)), split(), these(&[0])),
        ("an ill sink too", format!("{limited}{second}{}", total(2, 4)), four(), Guilty::Unknown),
        ("something else too", format!("{second}{}oops\n", total(1, 4)), four(), Guilty::Unknown),
        ("two answers", format!("{second}{}{}", total(1, 4), total(1, 4)), four(), Guilty::Unknown),
        ("the end is missing", second.clone(), four(), Guilty::Unknown),
        ("another reason", "entry for stream '{host=\"a\"}' has timestamp too old: 2024-01-01T00:00:00Z, oldest acceptable timestamp is: 2024-02-01T00:00:00Z\n".into(), four(), Guilty::Unknown),
        ("labels", "Error parsing labels '{' with error: 1:2: parse error".into(), four(), Guilty::Unknown),
        ("nothing", String::new(), four(), Guilty::Unknown),
    ] {
        assert_eq!(answer::guilty(&body, &push, &[2]), want, "{case}");
    }
}

fn sink(loki: &LokiOptions) -> SinkOptions {
    let second = Duration::from_secs(1);
    SinkOptions {
        name: "loki".into(),
        labels: Labels::new([("env", "test")]),
        batch: BatchLimits { max_bytes: 1000, line_weight: 24, max_lines: 10, max_wait: second },
        connections: 2,
        timeout: Duration::from_secs(60),
        retry: RetryOptions { initial: second, max: second, max_attempts: None },
        kind: KindOptions::Loki(loki.clone()),
    }
}

#[test]
fn a_sink_pushes_and_tells_what_loki_said() {
    let refusal = format!("{}{}", entry("1970-01-01 00:00:00.000000006 +0000 UTC"), total(1, 2));
    let bad = format!("HTTP/1.1 400 Bad Request\r\ncontent-length: {}\r\n\r\n{refusal}", refusal.len());
    let ok = "HTTP/1.1 204 No Content\r\n\r\n".to_owned();
    for (reply, path_of_url) in [(ok, ""), (bad, "/proxied/loki/api/v1/push")] {
        let refused = reply.contains("400");
        let (url, server) = serve(reply.into_bytes());
        let mut options = loki(LokiEncoding::Protobuf, 1000, LongLines::Split);
        options.http = self::options(format!("{url}{path_of_url}"));
        options.tenant = Some("team".into());
        let (_switch, cx) = context();
        let mut open = open(&sink(&options), &options, &cx).unwrap();
        assert_eq!((open.connections.len(), &*open.describe), (2, &*format!("loki at {url}{path_of_url}")));
        let batch = batch(vec![Records::untouched(lines(&origin(&[("a", "b")]), 5, &[b"x\n", b"y\n"]))]);
        match open.connections[0].deliver(&batch) {
            Answer::Refused { which, why } => {
                assert!(refused && why.starts_with("400 Bad Request: entry with timestamp"), "{why}");
                assert_eq!(which, Guilty::These(vec![1]));
            }
            answer => assert!(!refused && matches!(answer, Answer::Delivered), "{answer:?}"),
        }
        let request = server.join().unwrap();
        let head = String::from_utf8_lossy(&request).to_lowercase();
        let path = if path_of_url.is_empty() { PUSH_PATH } else { path_of_url };
        assert!(head.starts_with(&format!("post {path} http/1.1\r\n")), "{head}");
        assert!(head.contains("\r\nx-scope-orgid: team\r\n"), "{head}");
        assert!(head.contains("\r\ncontent-type: application/x-protobuf\r\n"), "{head}");
        let arrived = decode_protobuf(body_of(&request).unwrap());
        assert_eq!((&*arrived[0].0, arrived[0].1.len()), ("{a=\"b\", env=\"test\"}", 2));
    }
}

#[test]
fn a_clock_that_was_never_set_is_an_illness() {
    let body = "entry for stream '{}' has timestamp too old: 1970-01-01T00:00:00Z, oldest acceptable timestamp is: 2024-02-01T00:00:00Z";
    for (wall_ns, status, body, ill) in [
        (5, 400, body, true),
        (5, 400, "Error parsing labels", false),
        (5, 413, body, false),
        (CLOCK_UNSET_NS, 400, body, false),
    ] {
        let (_switch, mut cx) = context();
        cx.clock = Clock::by_hand(wall_ns);
        let http = options("http://127.0.0.1:1".into());
        let sender = LokiSender {
            name: "loki".into(),
            client: Arc::new(
                HttpClient::new("loki", &http, Duration::from_secs(1), (1, 1 << 20), &cx).unwrap(),
            ),
            path: PUSH_PATH,
            content_type: "application/x-protobuf",
            headers: Vec::new(),
            clock: cx.clock.clone(),
        };
        let reply = HttpReply { status, retry_after: None, body: body.into() };
        let answer = sender.read(&reply, &push(1, &[(0, 0)]), &[]);
        assert_eq!(matches!(answer, Answer::Retry { .. }), ill, "{wall_ns} {status} {answer:?}");
        assert_eq!(matches!(answer, Answer::Refused { .. }), !ill);
    }
}
