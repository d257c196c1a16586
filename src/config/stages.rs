//! `pipeline[]`: what becomes of a line on its way.
//!
//! What the stages themselves can tell (expressions, names, the order of stages) they tell when they are
//! compiled: once here, to collect their complaints, and once in every worker.

use std::sync::Arc;

use super::reader::{Item, Reader};
use super::sources::Source;
use super::values::{self, quoted};
use crate::monitors::{SourceKind, SourceOptions};
use crate::pipeline::{
    Condition, JsonOptions, LabelsOptions, MatchOptions, OnError, Pipeline, StageKind, StageOptions,
    TimeFormat, TimeFrom, TimestampOptions,
};

#[derive(Clone, Copy)]
enum Type {
    Cri,
    Json,
    Timestamp,
    Labels,
    Keep,
    Drop,
}

/// `sources`: those that stages may name. Empty when they could not be read: then any name will do.
pub fn read<'a>(items: &[Item<'a>], sources: &[&SourceOptions]) -> Vec<StageOptions> {
    // A stage that cannot be read counts as one that reads JSON, so that nobody after it is blamed for its lack.
    let unread =
        || StageOptions { sources: None, by_label: None, kind: StageKind::Json(JsonOptions::default()) };
    let stages: Vec<StageOptions> =
        items.iter().map(|item| entry(item, sources).unwrap_or_else(unread)).collect();
    for (index, key, says) in Pipeline::compile(&stages).err().unwrap_or_default() {
        items[index].room().complain(&format!("{}.{key}", items[index].path()), says);
    }
    stages
}

/// Tells each source which of its lines' stages depend on it.
pub fn tell(stages: &[StageOptions], sources: &mut [Source<'_>]) {
    for SourceOptions { name, kind, .. } in sources.iter_mut().map(|source| &mut source.options) {
        match kind {
            SourceKind::File(file) => file.in_parts = see_parts(stages, name),
            SourceKind::Docker(docker) => {
                let names = stages
                    .iter()
                    .filter(|stage| stage.is_for(name))
                    .filter_map(|stage| stage.by_label.clone());
                docker.stages = names.collect();
                docker.stages.dedup();
            }
            SourceKind::Stdin => {}
        }
    }
}

/// Whether a stage takes the lines of a source for those of a container runtime, whose parts have to be joined.
fn see_parts(stages: &[StageOptions], source: &str) -> bool {
    stages.iter().any(|stage| matches!(stage.kind, StageKind::Cri) && stage.is_for(source))
}

fn entry(item: &Item<'_>, known: &[&SourceOptions]) -> Option<StageOptions> {
    let reader = item.reader()?;
    let words = [
        ("cri", Type::Cri),
        ("json", Type::Json),
        ("timestamp", Type::Timestamp),
        ("labels", Type::Labels),
        ("keep", Type::Keep),
        ("drop", Type::Drop),
    ];
    let Some(kind) = reader.required("type", "\"json\"").and_then(|item| item.one_of(&words)) else {
        reader.give_up();
        return None;
    };
    let chosen = reader.item("sources").map(|item| names(&item, known));
    let kind = match kind {
        Type::Cri => Some(StageKind::Cri),
        Type::Json => Some(StageKind::Json(JsonOptions {
            message: text(&reader, "message"),
            on_error: reader.one_of("on_error", &[("pass", OnError::Pass), ("drop", OnError::Drop)]),
        })),
        Type::Timestamp => timestamp(&reader).map(StageKind::Timestamp),
        Type::Labels => Some(StageKind::Labels(labels(&reader))),
        Type::Keep => matching(&reader).map(StageKind::Keep),
        Type::Drop => matching(&reader).map(StageKind::Drop),
    };
    let by_label = reader.item("by_label").and_then(|item| {
        let name = by_label(&item)?;
        let is_chosen_from =
            |source: &&SourceOptions| chosen.as_ref().is_none_or(|names| names.contains(&source.name));
        let mut captured = known.iter().copied().filter(is_chosen_from);
        if matches!(kind, Some(StageKind::Cri)) {
            item.complain(
                "chooses among containers, and the lines of the type cri come from files; leave it out",
            );
        } else if !known.is_empty() && !captured.any(|source| matches!(source.kind, SourceKind::Docker(_))) {
            item.complain(
                "chooses among containers, and no source of the stage has the type \"docker\"; leave it out",
            );
        }
        Some(name)
    });
    reader.finish();
    Some(StageOptions { sources: chosen, by_label, kind: kind? })
}

fn by_label(item: &Item<'_>) -> Option<Arc<str>> {
    let name = item.string()?;
    if let Some(says) = values::name_complaint(&name) {
        item.complain(says);
        return None;
    }
    Some(name.into())
}

fn text(reader: &Reader<'_>, key: &'static str) -> Option<Arc<str>> {
    reader.string(key).map(Arc::from)
}

fn names(item: &Item<'_>, sources: &[&SourceOptions]) -> Vec<Arc<str>> {
    let mut names = Vec::new();
    for item in item.list().unwrap_or_default() {
        let Some(name) = item.string() else { continue };
        if !sources.is_empty() && !sources.iter().any(|source| *source.name == *name) {
            let known: Vec<String> = sources.iter().map(|source| quoted(&source.name)).collect();
            item.complain(format_args!("is not the name of a source; there are {}", known.join(", ")));
        }
        names.push(name.into());
    }
    names
}

fn timestamp(reader: &Reader<'_>) -> Option<TimestampOptions> {
    let (field, from) = (reader.item("field"), reader.item("from"));
    let format = reader.required("format", "\"rfc3339\"").and_then(|item| {
        item.one_of(&[
            ("rfc3339", TimeFormat::Rfc3339),
            ("unix", TimeFormat::Unix),
            ("unix_ms", TimeFormat::UnixMs),
            ("unix_us", TimeFormat::UnixUs),
            ("unix_ns", TimeFormat::UnixNs),
        ])
    });
    let from = match (field, from) {
        (Some(field), None) => field.string().map(|name| TimeFrom::Field(name.into())),
        (None, Some(from)) => from.one_of(&[("text", TimeFrom::Text)]),
        (_, both) => {
            let says =
                if both.is_some() { "has both field and from" } else { "does not say where the time stands" };
            reader.room().complain(
                reader.path(),
                format!("{says}; write either \"field\": \"time\" or \"from\": \"text\""),
            );
            None
        }
    };
    Some(TimestampOptions { from: from?, format: format? })
}

fn labels(reader: &Reader<'_>) -> LabelsOptions {
    let pairs = |key| {
        let text = |(name, item): (&str, Item<'_>)| Some((name.into(), item.string()?.into()));
        reader.pairs(key).into_iter().filter_map(text).collect::<Vec<(Arc<str>, Arc<str>)>>()
    };
    let options = LabelsOptions {
        remove: reader.list("remove").iter().filter_map(|item| item.string().map(Arc::from)).collect(),
        set: pairs("set"),
        from: pairs("from"),
        metadata: pairs("metadata"),
    };
    if ["remove", "set", "from", "metadata"].iter().all(|key| reader.item(key).is_none()) {
        reader.room().complain(reader.path(), "changes nothing; write set, from, metadata or remove");
    }
    options
}

fn matching(reader: &Reader<'_>) -> Option<MatchOptions> {
    let reason = text(reader, "reason");
    let (pattern, contains) = (reader.item("match"), reader.item("contains"));
    let (field, equals) = (reader.item("field"), reader.item("equals"));
    let condition = match (&pattern, &contains, &field, &equals) {
        (Some(pattern), None, None, None) => pattern.string().map(Condition::Match),
        (None, Some(bytes), None, None) => bytes.string().map(Condition::Contains),
        (None, None, Some(field), Some(equals)) => match (field.string(), equals.string()) {
            (Some(field), Some(equals)) => {
                Some(Condition::Field { field: field.into(), equals: equals.into() })
            }
            _ => None,
        },
        _ => {
            reader.room().complain(
                reader.path(),
                "needs exactly one condition; write match, or contains, or field together with equals",
            );
            None
        }
    };
    Some(MatchOptions { condition: condition?, reason })
}
