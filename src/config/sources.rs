//! `sources[]`: where lines come from.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use super::docker;
use super::memory::MAX_LINE_BYTES;
use super::reader::{Item, Reader, Room};
use super::values::{self, GIB, quoted};
use crate::glob::{self, Glob};
use crate::monitors::{
    Binary, FileSourceOptions, HoldDeleted, SourceKind, SourceOptions, StartAt, container,
};

/// One entry, before the memory is shared out.
pub struct Source<'a> {
    pub options: SourceOptions,
    /// Where `max_line_bytes` was written down, if it was.
    pub max_line_bytes: Option<Item<'a>>,
    name: Option<Item<'a>>,
}

#[derive(Clone, Copy, PartialEq)]
enum Type {
    File,
    Docker,
    Stdin,
}

/// `host`: the value of that label, unless an entry has its own.
pub fn read<'a>(items: &[Item<'a>], host: &str) -> Vec<Source<'a>> {
    let mut sources: Vec<Source> = items.iter().filter_map(|item| entry(item, host)).collect();
    name(&mut sources);
    let stdin = |source: &&Source| matches!(source.options.kind, SourceKind::Stdin);
    if let (Some(item), true) = (items.last(), sources.iter().filter(stdin).count() > 1) {
        item.room()
            .complain("sources", "there is only one standard input; keep one source of type \"stdin\"");
    }
    sources
}

fn entry<'a>(item: &Item<'a>, host: &str) -> Option<Source<'a>> {
    let reader = item.reader()?;
    let words = [("file", Type::File), ("docker", Type::Docker), ("stdin", Type::Stdin)];
    let kind = reader.required("type", "\"file\"").and_then(|item| item.one_of(&words));
    let Some(kind) = kind else {
        reader.give_up();
        return None;
    };
    if matches!(kind, Type::Docker) && !container::AVAILABLE {
        item.complain("follows containers, which this build leaves out (cargo feature containers)");
        reader.give_up();
        return None;
    }
    let name = reader.item("name");
    let mut labels = reader.labels("labels", &["source", "filename"]);
    if labels.get("host").is_none() {
        labels.set("host", host);
    }
    let max_line_bytes = reader.given("max_line_bytes");
    let bytes = max_line_bytes.as_ref().and_then(|item| item.size(64..=GIB));
    let idle = reader.duration("idle", secs(5), Duration::from_millis(10)..=secs(86_400));
    let kind = match kind {
        Type::File => SourceKind::File(file(&reader)),
        Type::Docker => SourceKind::Docker(Box::new(docker::read(&reader))),
        Type::Stdin => SourceKind::Stdin,
    };
    reader.not_available(&["multiline"]);
    reader.finish();
    let options = SourceOptions {
        name: "".into(), // the names of all entries are decided together
        labels,
        max_line_bytes: bytes.map_or(MAX_LINE_BYTES, |bytes| bytes as usize),
        idle,
        kind,
    };
    Some(Source { options, max_line_bytes: max_line_bytes.filter(|_| bytes.is_some()), name })
}

fn file(reader: &Reader<'_>) -> FileSourceOptions {
    let example = "[\"/var/log/**/*.log\"]";
    let include = reader.required("include", example).and_then(|item| {
        let list = item.list()?;
        if list.is_empty() {
            item.complain(format_args!("is empty; write for example {example}"));
        }
        Some(list)
    });
    FileSourceOptions {
        include: include.unwrap_or_default().iter().filter_map(included).collect(),
        exclude: reader.list("exclude").iter().filter_map(excluded).collect(),
        start_at: reader.one_of("start_at", &[("beginning", StartAt::Beginning), ("end", StartAt::End)]),
        poll_interval: reader.duration("poll_interval", secs(2), Duration::from_millis(50)..=secs(3_600)),
        binary: reader.one_of("binary", &[("skip", Binary::Skip), ("read", Binary::Read)]),
        hold_deleted: hold_deleted(reader.section("hold_deleted")),
        in_parts: false, // the pipeline decides
    }
}

fn hold_deleted(reader: Reader<'_>) -> HoldDeleted {
    let default = HoldDeleted::default();
    let hold = HoldDeleted {
        max_bytes: reader.size("max_bytes", default.max_bytes, 0..=1 << 50),
        max_age: reader.item("max_age").and_then(|item| item.duration(secs(1)..=secs(30 * 86_400))),
    };
    reader.finish();
    hold
}

fn secs(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn included(item: &Item<'_>) -> Option<String> {
    let text = item.string()?;
    if text.ends_with('/') || item.room().absolute(&text).is_dir() {
        item.complain("is a folder; add /** for every file below it, or /*.log for some files in it");
        return None;
    }
    glob(item, &text)
}

/// A pattern without a folder, and one that begins with `**/`, holds everywhere: `*.gz` next to the
/// configuration file is nobody's wish.
fn excluded(item: &Item<'_>) -> Option<String> {
    let text = item.string()?;
    let anywhere = if text.starts_with("**/") {
        format!("/{text}")
    } else if !text.contains('/') {
        format!("/**/{text}")
    } else {
        text
    };
    glob(item, &anywhere)
}

/// The pattern from the root, in the form in which paths are written: no `.`, no doubled slash.
fn glob(item: &Item<'_>, text: &str) -> Option<String> {
    if text.split('/').any(|part| part == "..") {
        item.complain("has a \"..\", which no path of a file has; write the folder itself");
        return None;
    }
    let rooted = if text.starts_with('/') { text.to_owned() } else { below_folder(item.room(), text) };
    let pattern = Path::new(&rooted).components().collect::<std::path::PathBuf>();
    let pattern = pattern.to_string_lossy().into_owned();
    if let Err(cause) = Glob::path(&pattern) {
        item.complain(format_args!("is not a pattern: {cause}"));
        return None;
    }
    Some(pattern)
}

fn below_folder(room: &Room<'_>, text: &str) -> String {
    format!("{}/{text}", glob::escape(&room.folder().to_string_lossy()))
}

/// Each entry gets the name it asks for, else its type, with a number from the second one on.
fn name(sources: &mut [Source<'_>]) {
    let mut taken: BTreeSet<String> = BTreeSet::new();
    let wanted: Vec<Option<String>> = sources
        .iter()
        .map(|source| {
            let item = source.name.as_ref()?;
            let name = item.string()?;
            match values::name_complaint(&name) {
                Some(says) => item.complain(says),
                None if taken.contains(&name) => {
                    item.complain("is the name of another source; names are unique")
                }
                None => {
                    taken.insert(name.clone());
                    return Some(name);
                }
            }
            None
        })
        .collect();
    for (source, wanted) in sources.iter_mut().zip(wanted) {
        let name = wanted.unwrap_or_else(|| {
            let kind = kind_name(&source.options.kind);
            let numbered = (2..).map(|number| format!("{kind}-{number}"));
            let free = std::iter::once(kind.to_owned()).chain(numbered).find(|name| !taken.contains(name));
            free.unwrap_or_default() // there are always more numbers
        });
        taken.insert(name.clone());
        source.options.labels.set("source", name.as_str());
        source.options.name = name.into();
    }
}

fn kind_name(kind: &SourceKind) -> &'static str {
    match kind {
        SourceKind::File(_) => "file",
        SourceKind::Docker(_) => "docker",
        SourceKind::Stdin => "stdin",
    }
}

/// For people: `/var/log/** and 2 more`.
pub fn describe(source: &SourceOptions) -> String {
    match &source.kind {
        SourceKind::Stdin => "standard input".into(),
        SourceKind::Docker(options) => docker::describe(options),
        SourceKind::File(file) => match &*file.include {
            [one] => one.clone(),
            [first, rest @ ..] => format!("{first} and {} more", rest.len()),
            [] => quoted(""),
        },
    }
}
