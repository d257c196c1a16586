//! What a push to Loki looks like, in both of its forms, read as strictly as Loki reads it.
//!
//! The protobuf schema is written down here by hand, so that our own encoder is checked against something that
//! it has no part in.

use std::collections::BTreeMap;
use std::sync::Arc;

use prost::Message;

use crate::receiver::Head;

const PUSH_PATH: &str = "/loki/api/v1/push";

/// What one line became on the way: an entry as Loki keeps it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Entry {
    /// Shared by the entries of one pushed stream.
    pub labels: Arc<BTreeMap<String, String>>,
    pub time_ns: i64,
    pub line: String,
    pub metadata: Vec<(String, String)>,
    /// `X-Scope-OrgID`.
    pub tenant: Option<String>,
}

/// Every entry in its order, or what is wrong with the request.
pub fn decode(head: &Head, body: &[u8]) -> Result<Vec<Entry>, String> {
    if (head.method.as_str(), head.path.as_str()) != ("POST", PUSH_PATH) {
        return Err(format!("{} {} is not a push", head.method, head.path));
    }
    let tenant = head.header("x-scope-orgid").map(str::to_owned);
    let entries = match (head.header("content-type"), head.header("content-encoding")) {
        (Some("application/x-protobuf"), None | Some("snappy")) => decode_protobuf(body, &tenant),
        (Some("application/json"), None) => decode_json(body, &tenant),
        (kind, encoding) => Err(format!("content type {kind:?} with encoding {encoding:?}")),
    }?;
    match entries.iter().find(|entry| entry.labels.is_empty()) {
        Some(entry) => Err(format!("a stream without labels: {}", entry.line)),
        None if entries.is_empty() => Err("a push without entries".into()),
        None => Ok(entries),
    }
}

/// The push schema of Loki, `pkg/push/push.proto`.
#[derive(Clone, PartialEq, Message)]
pub struct PushRequest {
    #[prost(message, repeated, tag = "1")]
    pub streams: Vec<PushStream>,
}

#[derive(Clone, PartialEq, Message)]
pub struct PushStream {
    #[prost(string, tag = "1")]
    pub labels: String,
    #[prost(message, repeated, tag = "2")]
    pub entries: Vec<PushEntry>,
}

#[derive(Clone, PartialEq, Message)]
pub struct PushEntry {
    #[prost(message, optional, tag = "1")]
    pub timestamp: Option<PushTime>,
    #[prost(string, tag = "2")]
    pub line: String,
    #[prost(message, repeated, tag = "3")]
    pub metadata: Vec<PushPair>,
}

#[derive(Clone, PartialEq, Message)]
pub struct PushTime {
    #[prost(int64, tag = "1")]
    pub seconds: i64,
    #[prost(int32, tag = "2")]
    pub nanos: i32,
}

#[derive(Clone, PartialEq, Message)]
pub struct PushPair {
    #[prost(string, tag = "1")]
    pub name: String,
    #[prost(string, tag = "2")]
    pub value: String,
}

fn decode_protobuf(body: &[u8], tenant: &Option<String>) -> Result<Vec<Entry>, String> {
    let plain = snap::raw::Decoder::new().decompress_vec(body).map_err(|cause| format!("snappy: {cause}"))?;
    let push = PushRequest::decode(&*plain).map_err(|cause| format!("protobuf: {cause}"))?;
    let mut entries = Vec::new();
    for stream in push.streams {
        let labels = parse_labels(&stream.labels).ok_or_else(|| format!("the labels {}", stream.labels))?;
        let labels = Arc::new(labels);
        for entry in stream.entries {
            let time = entry.timestamp.ok_or_else(|| format!("no time: {}", entry.line))?;
            entries.push(Entry {
                labels: labels.clone(),
                time_ns: time.seconds * 1_000_000_000 + i64::from(time.nanos),
                line: entry.line,
                metadata: entry.metadata.into_iter().map(|pair| (pair.name, pair.value)).collect(),
                tenant: tenant.clone(),
            });
        }
    }
    Ok(entries)
}

/// `{a="b", c="d\n"}`: names as Prometheus allows them, values quoted as Go quotes them.
fn parse_labels(text: &str) -> Option<BTreeMap<String, String>> {
    let mut rest = text.strip_prefix('{')?.strip_suffix('}')?.trim();
    let mut labels = BTreeMap::new();
    while !rest.is_empty() {
        let (name, after) = rest.split_once("=\"")?;
        let good = |c: char| c.is_ascii_alphanumeric() || c == '_';
        if name.is_empty() || !name.chars().all(good) || name.starts_with(|c: char| c.is_ascii_digit()) {
            return None;
        }
        let mut end = 0;
        while !after.get(end..)?.starts_with('"') {
            end += if after[end..].starts_with('\\') { 2 } else { after[end..].chars().next()?.len_utf8() };
        }
        // What Go and JSON escape in the same way is all that may occur here.
        let value: String = serde_json::from_str(&format!("\"{}\"", &after[..end])).ok()?;
        labels.insert(name.to_owned(), value).is_none().then_some(())?;
        rest = &after[end + 1..];
        rest = if rest.is_empty() { rest } else { rest.strip_prefix(',')?.trim_start() };
    }
    Some(labels)
}

/// `{"streams":[{"stream":{…},"values":[["<ns>","<line>",{…}]]}]}`.
fn decode_json(body: &[u8], tenant: &Option<String>) -> Result<Vec<Entry>, String> {
    #[derive(serde::Deserialize)]
    struct Push {
        streams: Vec<Stream>,
    }
    #[derive(serde::Deserialize)]
    struct Stream {
        stream: BTreeMap<String, String>,
        values: Vec<Value>,
    }
    #[derive(serde::Deserialize)]
    #[serde(untagged)]
    enum Value {
        Plain(String, String),
        Full(String, String, BTreeMap<String, String>),
    }
    let push: Push = serde_json::from_slice(body).map_err(|cause| format!("json: {cause}"))?;
    let mut entries = Vec::new();
    for stream in push.streams {
        let labels = Arc::new(stream.stream);
        for value in stream.values {
            let (time, line, metadata) = match value {
                Value::Plain(time, line) => (time, line, BTreeMap::new()),
                Value::Full(time, line, metadata) => (time, line, metadata),
            };
            let time_ns = time.parse().map_err(|_| format!("the time {time}"))?;
            let metadata = metadata.into_iter().collect();
            entries.push(Entry { labels: labels.clone(), time_ns, line, metadata, tenant: tenant.clone() });
        }
    }
    Ok(entries)
}

/// Word for word what Loki's ingester answers when it stored all but some entries (`errorForFailedEntries` in
/// `pkg/ingester/stream.go`); times as Go prints them.
pub fn refusal(bad: &[Entry], all: usize) -> String {
    let go_time = |ns: i64| {
        let time = jiff::Timestamp::from_nanosecond(i128::from(ns)).expect("a time that Loki could hold");
        let text = time.strftime("%Y-%m-%d %H:%M:%S%.f").to_string();
        format!("{text} +0000 UTC")
    };
    let mut text = String::new();
    for entry in bad {
        let time = go_time(entry.time_ns);
        text.push_str(&format!("entry with timestamp {time} ignored, reason: 'entry too far behind',\n"));
    }
    let labels: Vec<String> = bad[0].labels.iter().map(|(name, value)| format!("{name}={value:?}")).collect();
    let (bad, labels) = (bad.len(), labels.join(", "));
    text + &format!("user 'fake', total ignored: {bad} out of {all} for stream: {{{labels}}}\n")
}

#[test]
fn labels_are_read_as_loki_reads_them() {
    let check = |text: &str, expected: Option<&[(&str, &str)]>| {
        let expected = expected.map(|pairs| {
            pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
        });
        assert_eq!(parse_labels(text), expected, "{text}");
    };
    check("{}", Some(&[]));
    check(r#"{a="b"}"#, Some(&[("a", "b")]));
    check(r#"{a="b", c="d"}"#, Some(&[("a", "b"), ("c", "d")]));
    check(r#"{a="b",c="d"}"#, Some(&[("a", "b"), ("c", "d")]));
    check(r#"{a="x\"y\\\n, z=\"1"}"#, Some(&[("a", "x\"y\\\n, z=\"1")]));
    check(r#"{a="\u00e9é"}"#, Some(&[("a", "éé")]));
    check(r#"{a="b"#, None);
    check(r#"{a="b\"}"#, None);
    check(r#"{a="b" c="d"}"#, None);
    check(r#"{a="b", a="d"}"#, None);
    check(r#"{1a="b"}"#, None);
    check(r#"{a-b="c"}"#, None);
    check(r#"{="c"}"#, None);
}

#[test]
fn a_refusal_names_times_as_go_prints_them() {
    let labels = Arc::new(BTreeMap::from([("a".to_owned(), "b".to_owned())]));
    let entry = |time_ns| Entry {
        labels: labels.clone(),
        time_ns,
        line: String::new(),
        metadata: Vec::new(),
        tenant: None,
    };
    let text = refusal(&[entry(1_700_000_000_120_000_000), entry(1_700_000_001_000_000_000)], 5);
    assert_eq!(
        text,
        "entry with timestamp 2023-11-14 22:13:20.12 +0000 UTC ignored, reason: 'entry too far behind',\n\
         entry with timestamp 2023-11-14 22:13:21 +0000 UTC ignored, reason: 'entry too far behind',\n\
         user 'fake', total ignored: 2 out of 5 for stream: {a=\"b\"}\n"
    );
}
