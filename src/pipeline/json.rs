//! The `json` stage: reads the text as a JSON object, for the stages after it.
//!
//! Only the top-level fields that some stage asks for are kept, as they stand in the text; the rest is skipped
//! without recursion, so neither a deep nor a wide object costs memory. Without `message` nothing of the line
//! changes: what was read is scratch.

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;

use serde::de::{DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess, Visitor};
use serde_json::value::RawValue;

use super::line::{FieldId, Line, string_text};
use super::{Builder, Step};

/// `"type": "json"`.
#[derive(Clone, Debug, Default)]
pub struct JsonOptions {
    /// `message`: the field whose value becomes the text, if it is a string. Otherwise the text stays.
    pub message: Option<Arc<str>>,
    /// `on_error`: what becomes of a line that is no JSON object.
    pub on_error: OnError,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnError {
    /// `pass`, the default: goes on as it is, counted.
    #[default]
    Pass,
    /// `drop`: settled as dropped by this stage.
    Drop,
}

pub(super) struct Json {
    message: Option<FieldId>,
    on_error: OnError,
}

impl Json {
    pub fn new(options: &JsonOptions, builder: &mut Builder<'_>) -> Json {
        let message = options.message.as_ref().map(|name| builder.name(name));
        Json { message, on_error: options.on_error }
    }

    pub fn step(&self, line: &mut Line<'_>) -> Step {
        match (self.read(line), self.on_error) {
            (Some(()), _) => Step::Next,
            (None, OnError::Pass) => Step::Unparsed,
            (None, OnError::Drop) => Step::Drop,
        }
    }

    /// `None`: not an object, and the line is as it was.
    fn read(&self, line: &mut Line<'_>) -> Option<()> {
        let found = match line.text() {
            Cow::Borrowed(text) => found(text, line.names)?,
            // An earlier stage has unescaped the text; what is found there has to outlive it.
            Cow::Owned(text) => own(found(text, line.names)?),
        };
        for (id, json) in found {
            if self.message == Some(id) {
                let text = match &json {
                    Cow::Borrowed(json) => string_text(json),
                    Cow::Owned(json) => string_text(json).map(|text| Cow::Owned(text.into_owned())),
                };
                text.into_iter().for_each(|text| line.replace_text(text));
            }
            line.set_field(id, json);
        }
        Some(())
    }
}

type Found<'a> = Vec<(FieldId, Cow<'a, str>)>;

fn own<'a>(found: Found<'_>) -> Found<'a> {
    found.into_iter().map(|(id, json)| (id, Cow::Owned(json.into_owned()))).collect()
}

fn found<'a>(text: &'a [u8], names: &[Arc<str>]) -> Option<Found<'a>> {
    // Most lines that are no JSON show it at once; serde_json's refusal would allocate.
    if text.trim_ascii_start().first() != Some(&b'{') {
        return None;
    }
    let mut json = serde_json::Deserializer::from_slice(text);
    let found = Fields(names).deserialize(&mut json).ok()?;
    json.end().ok()?;
    Some(found)
}

/// Reads an object into the fields that have one of these names. The last one of a name wins.
struct Fields<'n>(&'n [Arc<str>]);

impl<'a> DeserializeSeed<'a> for Fields<'_> {
    type Value = Found<'a>;

    fn deserialize<D: Deserializer<'a>>(self, json: D) -> Result<Found<'a>, D::Error> {
        json.deserialize_map(self)
    }
}

impl<'a> Visitor<'a> for Fields<'_> {
    type Value = Found<'a>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'a>>(self, mut object: A) -> Result<Found<'a>, A::Error> {
        let mut found = Found::new();
        while let Some(id) = object.next_key_seed(Name(self.0))? {
            let Some(id) = id else {
                object.next_value::<IgnoredAny>()?;
                continue;
            };
            let json = Cow::Borrowed(object.next_value::<&RawValue>()?.get());
            match found.iter_mut().find(|(known, _)| *known == id) {
                Some((_, value)) => *value = json,
                None => found.push((id, json)),
            }
        }
        Ok(found)
    }
}

/// Which of the names a key is.
struct Name<'n>(&'n [Arc<str>]);

impl<'a> DeserializeSeed<'a> for Name<'_> {
    type Value = Option<FieldId>;

    fn deserialize<D: Deserializer<'a>>(self, json: D) -> Result<Option<FieldId>, D::Error> {
        json.deserialize_str(self)
    }
}

impl Visitor<'_> for Name<'_> {
    type Value = Option<FieldId>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a key")
    }

    fn visit_str<E: Error>(self, key: &str) -> Result<Option<FieldId>, E> {
        Ok(self.0.iter().position(|name| **name == *key).map(FieldId))
    }
}
