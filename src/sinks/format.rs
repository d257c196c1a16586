//! How a record looks in a file and on stdout.
//!
//! Text is the bytes of the source, line end and all: the raw lines of a file, one after the other, are that
//! file. So a record that was cut has no line end here either, and its rest follows it.
//!
//! Pure. Not here: where the bytes go (`file/`, `stdout.rs`).

use serde::ser::SerializeMap;
use serde::{Serialize, Serializer};

use super::Format;
use crate::record::{Labels, Record};

/// Renders the records of one sink.
pub struct Renderer {
    format: Format,
    /// Of the sink; the record's own win.
    labels: Labels,
}

impl Renderer {
    pub fn new(format: Format, labels: Labels) -> Renderer {
        Renderer { format, labels }
    }

    /// Appends the record to `out`. Text takes no memory besides `out`.
    pub fn push(&self, record: &Record<'_>, out: &mut Vec<u8>) {
        match (self.format, record.raw) {
            (Format::Text, Some(raw)) => out.extend_from_slice(raw),
            (Format::Text, None) => {
                out.extend_from_slice(record.text);
                out.push(b'\n');
            }
            (Format::Json, _) => {
                serde_json::to_writer(&mut *out, &self.line(record))
                    .expect("a Vec takes all bytes, and every key of the line is a string");
                out.push(b'\n');
            }
        }
    }

    fn line<'a>(&'a self, record: &'a Record<'a>) -> Line<'a> {
        Line {
            time: Time(record.time_ns),
            line: String::from_utf8_lossy(record.text),
            labels: Merged { own: record.labels, of_the_sink: &self.labels },
            metadata: Metadata(record.metadata),
            partial: record.partial,
        }
    }
}

#[derive(Serialize)]
struct Line<'a> {
    time: Time,
    line: std::borrow::Cow<'a, str>,
    labels: Merged<'a>,
    #[serde(skip_serializing_if = "Metadata::is_empty")]
    metadata: Metadata<'a>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    partial: bool,
}

/// RFC 3339, UTC, always with nine digits: texts of one length sort like their times.
struct Time(i64);

impl Serialize for Time {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let time = jiff::Timestamp::from_nanosecond(self.0.into()).map_err(serde::ser::Error::custom)?;
        serializer.collect_str(&format_args!("{time:.9}"))
    }
}

struct Merged<'a> {
    own: &'a Labels,
    of_the_sink: &'a Labels,
}

impl Serialize for Merged<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let more = self.of_the_sink.iter().filter(|(name, _)| self.own.get(name).is_none());
        serializer.collect_map(self.own.iter().chain(more))
    }
}

struct Metadata<'a>(&'a [(std::sync::Arc<str>, Box<str>)]);

impl Metadata<'_> {
    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl Serialize for Metadata<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.0.len()))?;
        for (name, value) in self.0 {
            map.serialize_entry(&**name, &**value)?;
        }
        map.end()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::{Changed, Entry, Records};
    use crate::sinks::file::tests::{NOON_NS, lines, origin};

    fn check(format: Format, source: &[u8], changed: Option<Changed>, expected: &str) {
        let lines = lines(&origin(1, "app", Some("/var/log/a.log")), &[source], NOON_NS);
        let records = Records::kept(lines, vec![Entry { line: 0, changed: changed.map(Box::new) }]);
        let renderer = Renderer::new(format, Labels::new([("env", "prod"), ("host", "of the sink")]));
        let mut out = b"before ".to_vec();
        renderer.push(&records.get(0), &mut out);
        assert_eq!(out, [b"before ", expected.as_bytes()].concat(), "{}", String::from_utf8_lossy(&out));
    }

    fn text(text: &str) -> Option<Changed> {
        Some(Changed { text: Some(text.as_bytes().into()), ..Changed::default() })
    }

    #[test]
    fn text_is_the_bytes_of_the_source() {
        for source in ["a\n", "a\r\n", "\n", "\r\n", "a\0b\n", "cut", "\u{feff}x\n"] {
            check(Format::Text, source.as_bytes(), None, source);
        }
        check(Format::Text, b"a\r\n", text("new"), "new\n");
        check(Format::Text, b"cut", text(""), "\n");
        check(Format::Text, b"a\n", Some(Changed { time_ns: Some(1), ..Changed::default() }), "a\n");
    }

    #[test]
    fn invalid_utf8_passes_through_as_text() {
        let lines = lines(&origin(1, "app", None), &[b"\xff\xfe\n"], NOON_NS);
        let mut out = Vec::new();
        Renderer::new(Format::Text, Labels::default()).push(&Records::untouched(lines).get(0), &mut out);
        assert_eq!(out, b"\xff\xfe\n");
    }

    #[test]
    fn json_is_one_object_a_line() {
        let labels = r#""labels":{"host":"box","source":"app","env":"prod"}"#;
        let time = r#"{"time":"2024-03-01T12:00:00.000000007Z""#;
        check(
            Format::Json,
            b"say \"hi\"\r\n",
            None,
            &format!("{time},\"line\":\"say \\\"hi\\\"\",{labels}}}\n"),
        );
        check(
            Format::Json,
            b"\xffx\0\n",
            None,
            &format!("{time},\"line\":\"\u{fffd}x\\u0000\",{labels}}}\n"),
        );
        check(Format::Json, b"cut", None, &format!("{time},\"line\":\"cut\",{labels},\"partial\":true}}\n"));
        let changed = Changed {
            partial: false,
            text: Some(b"new".as_slice().into()),
            time_ns: Some(-1),
            labels: Some(Labels::new([("env", "own")]).into()),
            metadata: vec![("trace".into(), "7".into())],
        };
        let expected = "{\"time\":\"1969-12-31T23:59:59.999999999Z\",\"line\":\"new\",\
                        \"labels\":{\"env\":\"own\",\"host\":\"of the sink\"},\"metadata\":{\"trace\":\"7\"}}\n";
        check(Format::Json, b"old\n", Some(changed), expected);
    }
}
