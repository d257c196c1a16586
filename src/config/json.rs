//! JSON as it was written: a tree that keeps duplicate keys, so that they can be complained about.
//!
//! `serde`'s derive stops at the first error and takes the last of two equal keys; a configuration deserves
//! better. Pure: text in, tree out.

use std::fmt;

use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};

use super::reader::Complaint;

/// A value, its map keys in the order in which they were written.
#[derive(Clone, Debug, PartialEq)]
pub enum Json {
    Null,
    Bool(bool),
    /// Holds everything from `i64::MIN` to `u64::MAX`.
    Integer(i128),
    Number(f64),
    String(String),
    List(Vec<Json>),
    Map(Vec<(String, Json)>),
}

impl Json {
    /// A syntax error is one complaint with its line and column: after it nothing can be said about the rest.
    pub fn parse(text: &str) -> Result<Json, Complaint> {
        serde_json::from_str(text).map_err(|cause| {
            let (line, column) = (cause.line(), cause.column());
            let what = cause.to_string();
            let what = what.split(" at line ").next().unwrap_or_default();
            Complaint::new(format!("line {line} column {column}"), format!("is not JSON: {what}"))
        })
    }
}

impl<'de> Deserialize<'de> for Json {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Json, D::Error> {
        deserializer.deserialize_any(Tree)
    }
}

struct Tree;

impl<'de> Visitor<'de> for Tree {
    type Value = Json;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }
    fn visit_unit<E>(self) -> Result<Json, E> {
        Ok(Json::Null)
    }
    fn visit_bool<E>(self, value: bool) -> Result<Json, E> {
        Ok(Json::Bool(value))
    }
    fn visit_i64<E>(self, value: i64) -> Result<Json, E> {
        Ok(Json::Integer(value.into()))
    }
    fn visit_u64<E>(self, value: u64) -> Result<Json, E> {
        Ok(Json::Integer(value.into()))
    }
    fn visit_f64<E>(self, value: f64) -> Result<Json, E> {
        Ok(Json::Number(value))
    }
    fn visit_str<E>(self, value: &str) -> Result<Json, E> {
        Ok(Json::String(value.to_owned()))
    }
    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Json, A::Error> {
        let mut list = Vec::new();
        while let Some(item) = items.next_element()? {
            list.push(item);
        }
        Ok(Json::List(list))
    }
    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Json, A::Error> {
        let mut map = Vec::new();
        while let Some(entry) = entries.next_entry()? {
            map.push(entry);
        }
        Ok(Json::Map(map))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tree_keeps_both_of_two_equal_keys() {
        let tree = Json::parse(r#"{ "a": 1, "a": [null, true, -2, 0.5, "x"] }"#).unwrap();
        let list = vec![
            Json::Null,
            Json::Bool(true),
            Json::Integer(-2),
            Json::Number(0.5),
            Json::String("x".into()),
        ];
        assert_eq!(tree, Json::Map(vec![("a".into(), Json::Integer(1)), ("a".into(), Json::List(list))]));
    }

    #[test]
    fn syntax_errors_say_where() {
        for (text, expected) in [
            ("", "line 1 column 0: is not JSON: EOF while parsing a value"),
            ("{\n  \"a\": 1,\n}", "line 3 column 1: is not JSON: trailing comma"),
            ("{} x", "line 1 column 4: is not JSON: trailing characters"),
            ("{ // no\n}", "line 1 column 3: is not JSON: key must be a string"),
            ("[1e999]", "line 1 column 6: is not JSON: number out of range"),
        ] {
            assert_eq!(Json::parse(text).unwrap_err().to_string(), expected, "{text:?}");
        }
        assert!(Json::parse(&"[".repeat(100_000)).unwrap_err().to_string().contains("recursion limit"));
    }
}
