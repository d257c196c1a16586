//! What names a stream: labels in a form that Loki accepts.
//!
//! Loki parses the text of a stream's labels as Prometheus does, so a label that it cannot parse would cost every
//! line of the stream. Names become valid, values lose what its lexer refuses; both by rule, so that the same
//! labels name the same stream for ever.

use std::borrow::Cow;
use std::fmt::Write;

use crate::order;
use crate::record::Labels;

/// A stream needs at least one label; a stage may have taken them all.
const NAMELESS: (&str, &str) = ("source", "unknown");

/// The labels of a stream, sorted by name: the record's own and those of the sink, where the record's own win. A
/// label without a value is none, as everywhere in Prometheus.
pub fn stream_labels(own: &Labels, sink: &Labels) -> Vec<(String, String)> {
    let mut pairs: Vec<(String, String)> = Vec::new();
    for (name, value) in own.iter().filter(|(_, value)| !value.is_empty()) {
        let mut name = valid_name(name).into_owned();
        // Two names may become one: Loki refuses that, and dropping one would merge streams.
        while has(&pairs, &name) {
            name.push('_');
        }
        pairs.push((name, valid_value(value)));
    }
    for (name, value) in sink.iter().filter(|(_, value)| !value.is_empty()) {
        let name = valid_name(name);
        if !has(&pairs, &name) {
            pairs.push((name.into_owned(), valid_value(value)));
        }
    }
    if pairs.is_empty() {
        pairs.push((NAMELESS.0.to_owned(), NAMELESS.1.to_owned()));
    }
    order::sort(&mut pairs);
    pairs
}

fn has(pairs: &[(String, String)], name: &str) -> bool {
    pairs.iter().any(|(known, _)| known == name)
}

/// `[a-zA-Z_][a-zA-Z0-9_]*`: every other character becomes `_`, and a digit at the beginning gets one before it.
pub fn valid_name(name: &str) -> Cow<'_, str> {
    if is_valid(name) {
        return Cow::Borrowed(name);
    }
    let mut valid = String::with_capacity(name.len() + 1);
    if !name.starts_with(|c: char| !c.is_ascii_digit()) {
        valid.push('_'); // a digit, or nothing at all
    }
    valid.extend(name.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '_' }));
    Cow::Owned(valid)
}

fn is_valid(name: &str) -> bool {
    let starts_well = name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_');
    starts_well && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
}

/// Prometheus' lexer takes U+FFFD, even written as a character, for broken text; an escape would not help, since
/// Loki writes the labels anew for its ingesters.
fn valid_value(value: &str) -> String {
    value.replace('\u{FFFD}', "?")
}

/// `{a="b", c="d"}`, quoted as Go does.
pub fn text(pairs: &[(String, String)]) -> String {
    let mut text = String::from("{");
    pairs.iter().for_each(|(name, value)| pair(&mut text, name, value));
    text.push('}');
    text
}

/// The text of [`stream_labels`], in place of another one.
pub fn write_text(text: &mut String, own: &Labels, sink: &Labels) {
    text.clear();
    text.push('{');
    // Nearly always they stay as they are, sorted as they are.
    if are_plain(own) && are_plain(sink) {
        let mut others = sink.iter().filter(|(_, value)| !value.is_empty()).peekable();
        for (name, value) in own.iter().filter(|(_, value)| !value.is_empty()) {
            while let Some((other, value)) = others.next_if(|(other, _)| *other < name) {
                pair(text, other, value);
            }
            others.next_if(|(other, _)| *other == name);
            pair(text, name, value);
        }
        others.for_each(|(name, value)| pair(text, name, value));
    }
    if text.len() > 1 {
        text.push('}');
    } else {
        *text = self::text(&stream_labels(own, sink));
    }
}

/// Nothing has to be made of them that Loki accepts.
fn are_plain(labels: &Labels) -> bool {
    labels.iter().all(|(name, value)| is_valid(name) && !value.contains('\u{FFFD}'))
}

fn pair(text: &mut String, name: &str, value: &str) {
    text.push_str(if text.len() == 1 { "" } else { ", " });
    text.push_str(name);
    text.push_str("=\"");
    let is_special = |byte: u8| matches!(byte, b'"' | b'\\') || byte.is_ascii_control();
    if !value.bytes().any(is_special) {
        text.push_str(value);
        text.push('"');
        return;
    }
    for c in value.chars() {
        match c {
            '"' => text.push_str("\\\""),
            '\\' => text.push_str("\\\\"),
            '\n' => text.push_str("\\n"),
            '\r' => text.push_str("\\r"),
            '\t' => text.push_str("\\t"),
            c if c.is_ascii_control() => {
                let _ = write!(text, "\\x{:02x}", u32::from(c)); // a String takes everything
            }
            c => text.push(c),
        }
    }
    text.push('"');
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(own: &[(&str, &str)], sink: &[(&str, &str)], want: &str) {
        let labels = |pairs: &[(&str, &str)]| Labels::new(pairs.iter().copied());
        let mut text = String::from("of another one");
        write_text(&mut text, &labels(own), &labels(sink));
        assert_eq!(text, want);
        assert_eq!(super::text(&stream_labels(&labels(own), &labels(sink))), want);
    }

    #[test]
    fn labels_are_text_that_loki_parses() {
        check(&[("host", "a"), ("app", "b")], &[], r#"{app="b", host="a"}"#);
        check(&[("a", r#"say "hi" \ bye"#)], &[], r#"{a="say \"hi\" \\ bye"}"#);
        check(&[("a", "1\n2\r3\t4\0\u{1b}\u{7f}")], &[], r#"{a="1\n2\r3\t4\x00\x1b\x7f"}"#);
        check(&[("a", "größe 日本 🙂")], &[], r#"{a="größe 日本 🙂"}"#);
        check(&[("filename", "/var/log/\u{FFFD}.log")], &[], r#"{filename="/var/log/?.log"}"#);
    }

    #[test]
    fn names_become_valid_and_stay_apart() {
        check(&[("k8s.io/app-name", "x")], &[], r#"{k8s_io_app_name="x"}"#);
        check(&[("9lives", "x")], &[], r#"{_9lives="x"}"#);
        check(&[("", "x")], &[], r#"{_="x"}"#);
        check(&[("größe", "x")], &[], r#"{gr__e="x"}"#);
        check(&[("a-b", "1"), ("a.b", "2"), ("a_b", "3")], &[], r#"{a_b="1", a_b_="2", a_b__="3"}"#);
    }

    #[test]
    fn the_labels_of_the_sink_are_added_and_lose() {
        check(&[("a", "own")], &[("a", "sink"), ("b", "sink")], r#"{a="own", b="sink"}"#);
        check(&[("a.b", "own")], &[("a_b", "sink")], r#"{a_b="own"}"#);
        check(&[("a", "")], &[("a", "sink")], r#"{a="sink"}"#);
        check(
            &[("b", "1"), ("d", "2")],
            &[("a", "3"), ("b", "4"), ("c", ""), ("e", "5")],
            r#"{a="3", b="1", d="2", e="5"}"#,
        );
    }

    #[test]
    fn a_stream_is_never_without_labels() {
        check(&[], &[], r#"{source="unknown"}"#);
        check(&[("a", "")], &[("b", "")], r#"{source="unknown"}"#);
    }
}
