//! The path of an output, with places to fill in: `/captured/{source}/{date}{file}`.
//!
//! Pure, and the same for the same record for ever: `{date}` and `{hour}` are of the record's own time, so that
//! a replay goes where the first try went.
//!
//! Always true: what is filled in never leaves the folder that the template names. Only `{file}` adds folders,
//! those of the captured file; `..`, slashes and NUL bytes of a value do no harm.

use std::borrow::Cow;
use std::fmt::Write;
use std::path::PathBuf;

use crate::glob::escape;
use crate::record::Origin;

/// What `{file}` is for lines that come from no file.
const STREAM: &str = "stdin";

/// File systems take 255 bytes; the rest is for the number that a rotation adds.
const NAME_BYTES_MAX: usize = 240;

const HOUR_NS: i64 = 3600 * 1_000_000_000;

const ALLOWED: &str = "allowed are {source}, {file}, {date} and {hour}";

#[derive(Clone, Debug)]
pub struct Template {
    text: String,
    parts: Vec<Part>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Part {
    Literal(String),
    Source,
    File,
    /// `2024-03-01`, UTC.
    Date,
    /// `00` to `23`, UTC.
    Hour,
}

impl Template {
    /// The error is a complaint for the configuration's `path`. A relative path is accepted: the configuration
    /// makes it absolute, before or after.
    pub fn parse(text: &str) -> Result<Template, String> {
        if text.is_empty() {
            return Err("is empty".into());
        }
        if text.contains('\0') {
            return Err("contains a NUL byte".into());
        }
        if matches!(text.rsplit('/').next(), Some("" | "." | "..")) {
            return Err("names a folder: it must end in the name of a file".into());
        }
        Ok(Template { text: text.into(), parts: parts_of(text)? })
    }

    pub fn text(&self) -> &str {
        &self.text
    }

    /// Whether the path depends on the record's time.
    pub fn has_time(&self) -> bool {
        self.parts.iter().any(|part| matches!(part, Part::Date | Part::Hour))
    }

    /// The path for all records of this origin in this hour (see [`hour_of`]).
    pub fn render(&self, origin: &Origin, hour: i64) -> PathBuf {
        // An hour of an i64 of nanoseconds is within what jiff knows, which is 20 000 years.
        let time = jiff::Timestamp::from_second(hour * 3600).unwrap_or_default();
        let time = jiff::tz::Offset::UTC.to_datetime(time);
        let mut path = String::with_capacity(self.text.len() + 64);
        for part in &self.parts {
            let _ = match part {
                Part::Literal(text) => path.write_str(text),
                Part::Source => path.write_str(&one_name(&origin.source)),
                Part::File => path.write_str(&relative(origin.filename.as_deref().unwrap_or(STREAM))),
                Part::Date => write!(path, "{}", time.date()),
                Part::Hour => write!(path, "{:02}", time.hour()),
            }; // a String takes all
        }
        if path.split('/').any(|name| name.len() > NAME_BYTES_MAX) {
            path = path.split('/').map(shortened).collect::<Vec<_>>().join("/");
        }
        path.into()
    }

    /// A glob of every path that this template can give, the rotated ones too: what must not be captured, known
    /// before any output was opened in this life. For globs in which `*` does not cross folders, as those of
    /// the sources. Links within the path are not followed; what they hide, the identity of the file shows.
    pub fn as_glob(&self) -> String {
        let mut names: Vec<&str> = Vec::new();
        for name in self.text.split('/').skip(usize::from(self.text.starts_with('/'))) {
            match name {
                "" | "." => {}
                ".." => drop(names.pop()),
                name => names.push(name),
            }
        }
        let last = names.len().saturating_sub(1);
        let globs: Vec<String> =
            names.iter().enumerate().map(|(at, name)| name_glob(name, at == last)).collect();
        let root = if self.text.starts_with('/') { "/" } else { "" };
        format!("{root}{}", globs.join("/"))
    }
}

/// The hour since 1970 of a record.
pub fn hour_of(time_ns: i64) -> i64 {
    time_ns.div_euclid(HOUR_NS)
}

fn parts_of(text: &str) -> Result<Vec<Part>, String> {
    let mut parts = Vec::new();
    let mut rest = text;
    while let Some(at) = rest.find(['{', '}']) {
        let (literal, braced) = rest.split_at(at);
        if !literal.is_empty() {
            parts.push(Part::Literal(literal.into()));
        }
        let inner = braced.strip_prefix('{').ok_or(format!("has a }} without a {{: {ALLOWED}"))?;
        let (name, after) = inner.split_once('}').ok_or(format!("has a {{ without a }}: {ALLOWED}"))?;
        parts.push(match name {
            "source" => Part::Source,
            "file" => Part::File,
            "date" => Part::Date,
            "hour" => Part::Hour,
            _ => return Err(format!("has an unknown placeholder {{{name}}}: {ALLOWED}")),
        });
        rest = after;
    }
    if !rest.is_empty() {
        parts.push(Part::Literal(rest.into()));
    }
    Ok(parts)
}

/// A value that is one name, or a part of one. A name of nothing but dots would be a way up.
fn one_name(value: &str) -> Cow<'_, str> {
    if value.is_empty() {
        "_".into()
    } else if value.bytes().all(|byte| byte == b'.') {
        "_".repeat(value.len()).into()
    } else if value.contains(['/', '\0']) {
        value.replace(['/', '\0'], "_").into()
    } else {
        value.into()
    }
}

/// `/var/log/a.log` as `var/log/a.log`.
fn relative(filename: &str) -> String {
    let names: Vec<_> = filename.split('/').filter(|name| !matches!(*name, "" | ".")).map(one_name).collect();
    if names.is_empty() { STREAM.into() } else { names.join("/") }
}

/// A name that no file system would take would stop the whole sink: its end becomes a hash, so that two long
/// names stay two.
fn shortened(name: &str) -> Cow<'_, str> {
    if name.len() <= NAME_BYTES_MAX {
        return name.into();
    }
    let hash = format!("~{:016x}", xxhash_rust::xxh3::xxh3_64(name.as_bytes()));
    let mut end = NAME_BYTES_MAX - hash.len();
    while !name.is_char_boundary(end) {
        end -= 1;
    }
    format!("{}{hash}", &name[..end]).into()
}

/// The glob of one name of the template; of the last one, its rotated names too.
fn name_glob(name: &str, last: bool) -> String {
    let file = "{file}";
    let forms = match (name.find(file), name.rfind(file)) {
        (Some(first), Some(end)) => {
            let (before, after) = (flat_glob(&name[..first]), flat_glob(&name[end + file.len()..]));
            match (before.is_empty(), after.is_empty()) {
                (true, true) => return "**".into(),
                (true, false) => vec![format!("**/*{after}")],
                (false, _) => vec![format!("{before}*{after}"), format!("{before}*/**/*{after}")],
            }
        }
        _ => vec![flat_glob(name)],
    };
    let rotated = forms.iter().filter(|_| last).map(|form| format!("{form}.[0-9]*"));
    let all: Vec<String> = forms.iter().cloned().chain(rotated).collect();
    match all.as_slice() {
        [only] => only.clone(),
        all => format!("{{{}}}", all.join(",")),
    }
}

/// Every placeholder as `*`, and the rest as itself.
fn flat_glob(text: &str) -> String {
    let mut glob = String::new();
    for part in parts_of(text).unwrap_or_default() {
        match part {
            Part::Literal(text) => glob.push_str(&escape(&text)),
            _ => glob.push('*'),
        }
    }
    glob
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::glob::Glob;
    use crate::sinks::file::tests::{NOON_NS, origin};

    fn check(template: &str, source: &str, file: Option<&str>, expected: &str) {
        let template = Template::parse(template).unwrap();
        let path = template.render(&origin(1, source, file), hour_of(NOON_NS));
        assert_eq!(path.to_str().unwrap(), expected);
        let own = Glob::path(&template.as_glob()).unwrap();
        for rotated in ["", ".1", ".12"] {
            let path = format!("{expected}{rotated}");
            assert!(own.matches(&path), "{} does not cover {path}", template.as_glob());
        }
        assert!(!own.matches("/var/log/app.log"), "{} covers too much", template.as_glob());
    }

    #[test]
    fn values_are_filled_in_and_do_no_harm() {
        let log = Some("/var/log/a.log");
        check("/out/all.log", "app", log, "/out/all.log");
        check("/out/{source}.log", "app", log, "/out/app.log");
        check("/out/{file}", "app", log, "/out/var/log/a.log");
        check("/out/{file}", "app", None, "/out/stdin");
        check("/out/{source}/{date}/{hour}{file}", "app", log, "/out/app/2024-03-01/12var/log/a.log");
        check("/out/{file}.json", "app", log, "/out/var/log/a.log.json");
        check("/out/x-{file}.json", "app", log, "/out/x-var/log/a.log.json");
        check("/out/x-{file}.json", "app", None, "/out/x-stdin.json");
        check("/out/{file}/{date}.log", "app", log, "/out/var/log/a.log/2024-03-01.log");
        check("/out/{source}", "../a/b", log, "/out/.._a_b");
        check("/out/{source}/x", "..", log, "/out/__/x");
        check("/out/.{source}/x", ".", log, "/out/._/x");
        check("/out/.{source}./x", "", log, "/out/._./x");
        check("/out/{source}/x", "a\0b", log, "/out/a_b/x");
        check("/out/{file}", "app", Some("/../..//./etc/passwd"), "/out/__/__/etc/passwd");
        check("/out/{file}", "app", Some("/"), "/out/stdin");
        check("/out/[a],{hour}*?\\ä.log", "app", log, "/out/[a],12*?\\ä.log");
    }

    #[test]
    fn a_path_that_is_not_straight_has_a_straight_glob() {
        for (template, glob) in [
            ("/etc/agent/../out//./{file}", "/etc/out/**"),
            ("/out/x.log", "/out/{x.log,x.log.[0-9]*}"),
            ("/out/{date}/{file}.gz", "/out/*/{**/*.gz,**/*.gz.[0-9]*}"),
            ("../../x", "{x,x.[0-9]*}"),
        ] {
            assert_eq!(Template::parse(template).unwrap().as_glob(), glob);
        }
    }

    #[test]
    fn names_that_are_too_long_are_cut_and_stay_different() {
        let template = Template::parse("/out/{file}.log").unwrap();
        let path = |end: &str| {
            let file = format!("/var/{}{end}", "ä".repeat(126));
            template.render(&origin(1, "app", Some(&file)), 0)
        };
        assert_ne!(path("a"), path("b"));
        assert!(path("a").starts_with("/out/var"));
        assert!(path("a").file_name().unwrap().len() <= NAME_BYTES_MAX);
    }

    #[test]
    fn every_i64_of_nanoseconds_has_a_date() {
        let template = Template::parse("{date}/{hour}").unwrap();
        for (time_ns, expected) in [
            (i64::MIN, "1677-09-21/00"),
            (-1, "1969-12-31/23"),
            (0, "1970-01-01/00"),
            (i64::MAX, "2262-04-11/23"),
        ] {
            assert_eq!(template.render(&origin(1, "a", None), hour_of(time_ns)).to_str(), Some(expected));
        }
    }

    #[test]
    fn complaints_say_what_is_allowed() {
        for (template, complaint) in [
            ("", "is empty"),
            ("/out/", "names a folder: it must end in the name of a file"),
            ("/out/..", "names a folder: it must end in the name of a file"),
            ("/o\0ut", "contains a NUL byte"),
            (
                "/out/{name}",
                "has an unknown placeholder {name}: allowed are {source}, {file}, {date} and {hour}",
            ),
            ("/out/{}", "has an unknown placeholder {}: allowed are {source}, {file}, {date} and {hour}"),
            ("/out/{file", "has a { without a }: allowed are {source}, {file}, {date} and {hour}"),
            ("/out/file}", "has a } without a {: allowed are {source}, {file}, {date} and {hour}"),
        ] {
            assert_eq!(Template::parse(template).unwrap_err(), complaint);
        }
    }
}
