//! The `labels` stage: labels and structured metadata, fixed or from JSON fields.
//!
//! Records with equal labels share one set: sets are interned, by the set they were made from and the values
//! that were added. The table is bounded in bytes and starts over when it is full, so a field with a new value
//! on every line costs time but no memory.

use std::collections::HashMap;
use std::mem::size_of;
use std::sync::Arc;

use crate::metrics::Gauge;
use crate::record::Labels;

use super::line::{FieldId, Line};
use super::{Builder, Step};

/// Longer values of fields are cut at it, at the end of a character. Loki's own limit for labels is twice as much.
const VALUE_BYTES_MAX: usize = 1024;

/// Some thousand small sets, for every worker and `labels` stage.
pub const SETS_BYTES_MAX: usize = 256 * 1024;

/// `"type": "labels"`. Applied in the order of these keys. A field that is missing, empty or no scalar is passed
/// over, so `set` can hold what a label is otherwise.
#[derive(Clone, Debug, Default)]
pub struct LabelsOptions {
    /// `remove`: names of labels.
    pub remove: Vec<Arc<str>>,
    /// `set`: label and value.
    pub set: Vec<(Arc<str>, Arc<str>)>,
    /// `from`: label and the JSON field that holds its value. Few different values, or the sink will suffer.
    pub from: Vec<(Arc<str>, Arc<str>)>,
    /// `metadata`: name and the JSON field that holds its value, for what differs from line to line.
    pub metadata: Vec<(Arc<str>, Arc<str>)>,
}

pub(super) struct Labeller {
    remove: Vec<Arc<str>>,
    set: Vec<(Arc<str>, Arc<str>)>,
    from: Vec<(Arc<str>, FieldId)>,
    metadata: Vec<(Arc<str>, FieldId)>,
    sets: HashMap<Box<[u8]>, Interned>,
    sets_bytes: usize,
    /// The same, of all workers and stages together.
    pub(super) sets_gauge: Arc<Gauge>,
    /// Of the line under way; kept for its memory.
    key: Vec<u8>,
}

struct Interned {
    /// Kept alive because its address is part of the key: no other set may get it.
    _base: Arc<Labels>,
    labels: Arc<Labels>,
    bytes: usize,
    /// The last pass that was charged for it.
    charged_in: u64,
}

impl Labeller {
    pub fn new(options: &LabelsOptions, builder: &mut Builder<'_>) -> Labeller {
        for (label, _) in &options.set {
            check_name("set", label, builder);
        }
        for (label, _) in &options.from {
            check_name("from", label, builder);
        }
        for (name, _) in options.metadata.iter().filter(|(name, _)| name.is_empty()) {
            builder.complain("metadata", format!("{name:?} is no name; give it one"));
        }
        let mut fields = |key, list: &[(Arc<str>, Arc<str>)]| -> Vec<(Arc<str>, FieldId)> {
            list.iter().map(|(name, field)| (name.clone(), builder.field(key, field))).collect()
        };
        Labeller {
            remove: options.remove.clone(),
            set: options.set.clone(),
            from: fields("from", &options.from),
            metadata: fields("metadata", &options.metadata),
            sets: HashMap::new(),
            sets_bytes: 0,
            sets_gauge: Arc::default(),
            key: Vec::new(),
        }
    }

    pub fn step(&mut self, line: &mut Line<'_>) -> Step {
        for (name, field) in &self.metadata {
            let value = line.field(*field).map(|value| cut(&value).to_owned());
            value.into_iter().filter(|value| !value.is_empty()).for_each(|value| {
                line.set_metadata(name, &value);
            });
        }
        if !(self.remove.is_empty() && self.set.is_empty() && self.from.is_empty()) {
            let labels = self.interned(line);
            line.set_labels(labels);
        }
        Step::Next
    }

    fn interned(&mut self, line: &mut Line<'_>) -> Arc<Labels> {
        self.key.clear();
        self.key.extend_from_slice(&(Arc::as_ptr(line.labels()) as usize).to_ne_bytes());
        for (_, field) in &self.from {
            let value = line.field(*field);
            let value = cut(value.as_deref().unwrap_or_default()).as_bytes();
            self.key.extend_from_slice(&(value.len() as u32).to_ne_bytes());
            self.key.extend_from_slice(value);
        }
        if !self.sets.contains_key(&*self.key) {
            self.intern(line);
        }
        let set = self.sets.get_mut(&*self.key).expect("it was there, or was put there just now");
        if set.charged_in != line.pass {
            set.charged_in = line.pass;
            line.charge += set.bytes;
        }
        set.labels.clone()
    }

    fn intern(&mut self, line: &Line<'_>) {
        let base = line.labels();
        let labels = self.apply(line, base);
        let bytes = self.key.len() + size_of::<Interned>() + memory(&labels) + memory(base);
        if self.sets_bytes + bytes > SETS_BYTES_MAX {
            self.sets.clear();
            self.sets_gauge.add(-(self.sets_bytes as i64));
            self.sets_bytes = 0;
        }
        self.sets_bytes += bytes;
        self.sets_gauge.add(bytes as i64);
        let labels = if labels == **base { base.clone() } else { Arc::new(labels) };
        let set = Interned { _base: base.clone(), labels, bytes, charged_in: 0 };
        self.sets.insert(self.key.as_slice().into(), set);
    }

    fn apply(&self, line: &Line<'_>, base: &Labels) -> Labels {
        let mut labels = base.clone();
        self.remove.iter().for_each(|name| labels.remove(name));
        self.set.iter().for_each(|(name, value)| labels.set(&**name, &**value));
        for (name, field) in &self.from {
            let value = line.field(*field);
            let value = cut(value.as_deref().unwrap_or_default());
            if !value.is_empty() {
                labels.set(&**name, value);
            }
        }
        labels
    }
}

/// The names that Prometheus and Loki take.
fn check_name(key: &'static str, name: &str, builder: &mut Builder<'_>) {
    let fits = |byte: &u8| byte.is_ascii_alphanumeric() || *byte == b'_';
    let fits = name.as_bytes().iter().all(fits) && name.starts_with(|first: char| !first.is_ascii_digit());
    if !fits {
        let remedy = "use letters, digits and _, and no digit first";
        builder.complain(key, format!("{name:?} is not a name for a label; {remedy}"));
    }
}

fn cut(value: &str) -> &str {
    let end = (0..=VALUE_BYTES_MAX.min(value.len())).rev().find(|at| value.is_char_boundary(*at));
    &value[..end.unwrap_or(0)]
}

fn memory(labels: &Labels) -> usize {
    let pair = |(name, value): (&str, &str)| name.len() + value.len() + 2 * size_of::<Box<str>>();
    labels.iter().map(pair).sum()
}

#[cfg(test)]
mod tests {
    use std::borrow::Cow;

    use super::*;
    use crate::pipeline::tests::origin;

    #[test]
    fn a_new_value_on_every_line_fills_no_memory_and_never_gets_the_labels_of_another() {
        let mut complaints = Vec::new();
        let mut builder = Builder::new(&mut complaints);
        builder.json_before = true;
        let from = vec![("user".into(), "user".into())];
        let mut stage = Labeller::new(&LabelsOptions { from, ..LabelsOptions::default() }, &mut builder);
        let (origin, names) = (origin("app"), builder.names);
        let mut line = Line::new(&origin, &names, 1);
        for number in 0..10_000 {
            line.begin(number, b"");
            line.set_field(FieldId(0), Cow::Owned(number.to_string()));
            stage.step(&mut line);
            assert_eq!(line.labels().get("user"), Some(&*number.to_string()));
            assert!(stage.sets_bytes <= SETS_BYTES_MAX);
        }
        assert!(stage.sets.len() < 10_000, "the table never started over");
        assert!(line.charge > SETS_BYTES_MAX, "what was forgotten is still held by its records");
        assert!(complaints.is_empty());
    }

    #[test]
    fn a_long_value_is_cut_between_characters() {
        assert_eq!(cut(&"é".repeat(600)).len(), 1024);
        assert_eq!(cut(&format!("x{}", "é".repeat(600))).len(), 1023);
        assert_eq!(cut("short"), "short");
    }
}
