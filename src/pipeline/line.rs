//! A line on its way through the stages: borrowed from its chunk until a stage really changes it.
//!
//! One [`Line`] serves a whole pass: [`Line::begin`] makes it the next line and forgets everything about the
//! one before, so no line can learn anything from its neighbours.

use std::borrow::Cow;
use std::mem::{size_of, take};
use std::sync::Arc;

use crate::record::{Changed, Labels, Origin, without_line_end};

/// A JSON field that some stage asks for: its place in the list of all their names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct FieldId(pub usize);

pub(super) struct Line<'a> {
    /// What it has before any stage.
    base: &'a Arc<Labels>,
    base_metadata: &'a [(Arc<str>, Box<str>)],
    /// The fields that stages ask for. Few, so a list beats a map.
    pub names: &'a [Arc<str>],
    /// Which pass this is: whatever is shared by its lines is charged once in it.
    pub pass: u64,
    /// Bytes of memory that the lines of this pass hold besides their chunk.
    pub charge: usize,

    /// Of the line in its generation, from 0.
    pub number: u64,
    text: Cow<'a, [u8]>,
    replaced: bool,
    partial: bool,
    /// What the `json` stages found, by [`FieldId`], as it stands in the JSON. Not shipped.
    fields: Vec<Option<Cow<'a, str>>>,
    pub time_ns: Option<i64>,
    labels: Option<Arc<Labels>>,
    pub metadata: Vec<(Arc<str>, Box<str>)>,
}

impl<'a> Line<'a> {
    pub fn new(origin: &'a Origin, names: &'a [Arc<str>], pass: u64) -> Line<'a> {
        Line {
            base: &origin.labels,
            base_metadata: &[],
            names,
            pass,
            charge: 0,
            number: 0,
            text: Cow::Borrowed(&[]),
            replaced: false,
            partial: false,
            fields: vec![None; names.len()],
            time_ns: None,
            labels: None,
            metadata: Vec::new(),
        }
    }

    pub fn begin(&mut self, number: u64, text: &'a [u8]) {
        self.number = number;
        self.text = Cow::Borrowed(text);
        (self.replaced, self.partial) = (false, false);
        self.fields.fill(None);
        self.time_ns = None;
        self.labels = None;
        self.metadata.clear();
    }

    /// Where lines of one chunk differ: after [`Line::begin`].
    pub fn set_base(&mut self, labels: &'a Arc<Labels>, metadata: &'a [(Arc<str>, Box<str>)]) {
        (self.base, self.base_metadata) = (labels, metadata);
    }

    pub fn text(&self) -> &Cow<'a, [u8]> {
        &self.text
    }

    /// A line end at the end of `text` is cut off: a text has none.
    pub fn replace_text(&mut self, text: Cow<'a, str>) {
        self.text = match text {
            Cow::Borrowed(text) => Cow::Borrowed(without_line_end(text.as_bytes())),
            Cow::Owned(text) => {
                let mut text = text.into_bytes();
                text.truncate(without_line_end(&text).len());
                Cow::Owned(text)
            }
        };
        self.replaced = true;
    }

    /// As [`Line::replace_text`], for a part of the text that was there.
    pub fn keep_text(&mut self, text: Cow<'a, [u8]>) {
        self.text = text;
        self.replaced = true;
    }

    /// Something of it is missing, although it has a line end.
    pub fn set_partial(&mut self) {
        self.partial = true;
    }

    /// The text of a string, a number or a boolean; `None` for everything else, and if there is no such field.
    pub fn field(&self, id: FieldId) -> Option<Cow<'_, str>> {
        scalar_text(self.fields[id.0].as_deref()?)
    }

    /// `json` is one JSON value, or a later stage finds no text in it.
    pub fn set_field(&mut self, id: FieldId, json: Cow<'a, str>) {
        self.fields[id.0] = Some(json);
    }

    pub fn labels(&self) -> &Arc<Labels> {
        self.labels.as_ref().unwrap_or(self.base)
    }

    pub fn set_labels(&mut self, labels: Arc<Labels>) {
        self.labels = (!Arc::ptr_eq(&labels, self.base)).then_some(labels);
    }

    /// A later value of the same name wins.
    pub fn set_metadata(&mut self, name: &Arc<str>, value: &str) {
        if self.metadata.is_empty() {
            self.metadata.extend_from_slice(self.base_metadata);
        }
        self.metadata.retain(|(known, _)| known != name);
        self.metadata.push((name.clone(), value.into()));
    }

    /// What the stages made of the line; `None` if they left it alone. Charges what it copies.
    pub fn take_changed(&mut self) -> Option<Box<Changed>> {
        let untouched =
            !self.replaced && self.time_ns.is_none() && self.labels.is_none() && self.metadata.is_empty();
        if untouched {
            return None;
        }
        let changed = Changed {
            text: self.replaced.then(|| take(&mut self.text).into_owned().into_boxed_slice()),
            time_ns: self.time_ns,
            partial: self.partial,
            labels: self.labels.take(),
            metadata: take(&mut self.metadata),
        };
        self.charge += size_of::<Changed>()
            + changed.text.as_ref().map_or(0, |text| text.len())
            + changed.metadata.capacity() * size_of::<(Arc<str>, Box<str>)>()
            + changed.metadata.iter().map(|(_, value)| value.len()).sum::<usize>();
        Some(Box::new(changed))
    }
}

/// `None` for objects, arrays, `null` and strings that are no text (half a surrogate pair).
pub(super) fn scalar_text(json: &str) -> Option<Cow<'_, str>> {
    match json.as_bytes().first()? {
        b'"' => string_text(json),
        b'{' | b'[' | b'n' => None,
        _ => Some(Cow::Borrowed(json)),
    }
}

/// `None` for everything but a string.
pub(super) fn string_text(json: &str) -> Option<Cow<'_, str>> {
    let inside = json.strip_prefix('"')?.strip_suffix('"')?;
    if memchr::memchr(b'\\', inside.as_bytes()).is_none() {
        return Some(Cow::Borrowed(inside));
    }
    serde_json::from_str(json).ok().map(Cow::Owned)
}
