//! `sinks[]`: where lines go.

use std::time::Duration;

use super::memory::Wish;
use super::reader::{Item, Reader};
use super::values::{self, KIB, MIB, quoted};
use crate::ack::SinkSet;
use crate::record::RECORD_WEIGHT;
use crate::sinks::{
    Auth, BatchLimits, FileOptions, Format, HttpOptions, KindOptions, LokiEncoding, LokiOptions, LongLines,
    RetryOptions, RotateOptions, SinkOptions, TlsOptions,
};
use crate::spool::{SpoolOptions, WhenFull};

/// Loki takes 4 MiB at most by default, and a file is not written faster in larger pieces.
const BATCH_MOST: u64 = 4 * MIB;

/// One entry, before the memory is shared out.
pub struct Sink<'a> {
    pub options: SinkOptions,
    pub spool: Option<SpoolOptions>,
    /// Where `batch.max_bytes` was written down, if it was.
    pub max_bytes: Option<Item<'a>>,
    item: Item<'a>,
    name: Option<Item<'a>>,
}

#[derive(Clone, Copy, PartialEq)]
enum Type {
    Loki,
    File,
    Stdout,
}

const TYPES: [(&str, Type); 3] = [("loki", Type::Loki), ("file", Type::File), ("stdout", Type::Stdout)];
const PLANNED: [&str; 4] = ["elasticsearch", "splunk_hec", "otlp", "http"];

/// `streams`: some source cannot be read again.
pub fn read<'a>(items: &[Item<'a>], streams: bool) -> Vec<Sink<'a>> {
    if let Some(item) = items.get(SinkSet::MAX) {
        item.room().complain("sinks", format!("{} sinks are above the limit {}", items.len(), SinkSet::MAX));
    }
    // An ill sink must not stop a healthy one, nor lose what nobody else has. A file waits for its only sink.
    let spools = items.len() > 1 || streams;
    let mut sinks: Vec<Sink> = items.iter().filter_map(|item| entry(item, spools)).collect();
    name(&mut sinks);
    distinct_files(&sinks);
    sinks
}

impl Sink<'_> {
    pub fn wish(&self) -> Wish {
        Wish {
            connections: self.options.connections,
            set: self.max_bytes.is_some().then_some(self.options.batch.max_bytes),
            default: self.options.batch.max_bytes,
            spools: self.spool.is_some(),
        }
    }
}

fn entry<'a>(item: &Item<'a>, spools: bool) -> Option<Sink<'a>> {
    let reader = item.reader()?;
    let kind = reader.required("type", "\"loki\"").and_then(|item| item.type_of(&TYPES, &PLANNED));
    let kind = match kind {
        Some(Type::Loki) => KindOptions::Loki(loki(&reader)),
        Some(Type::File) => KindOptions::File(file(&reader)),
        Some(Type::Stdout) => KindOptions::Stdout(format(&reader)),
        None => {
            reader.give_up();
            return None;
        }
    };
    let name = reader.item("name");
    let (batch, max_bytes) = batch(reader.section("batch"), &kind);
    let options = SinkOptions {
        name: "".into(), // the names of all entries are decided together
        labels: reader.labels("labels", &[]),
        batch,
        connections: reader.integer("connections", 1, 1..=16) as usize,
        timeout: reader.duration("timeout", secs(10), ms(10)..=secs(600)),
        retry: retry(reader.section("retry")),
        kind,
    };
    let spool = spool(reader.section("spool"), spools);
    reader.not_available(&["compress", "max_total_bytes"]);
    reader.finish();
    Some(Sink { options, spool, max_bytes, item: item.clone(), name })
}

fn secs(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn ms(milliseconds: u64) -> Duration {
    Duration::from_millis(milliseconds)
}

fn batch<'a>(reader: Reader<'a>, kind: &KindOptions) -> (BatchLimits, Option<Item<'a>>) {
    // A request costs a round trip, so it carries much; a write to a file costs little, and whoever follows
    // the file wants to see the line soon.
    let (default, wait) = match kind {
        KindOptions::Loki(_) => (MIB, secs(1)),
        KindOptions::File(_) => (MIB, ms(250)),
        KindOptions::Stdout(_) => (256 * KIB, secs(1)),
    };
    let item = reader.given("max_bytes");
    let bytes = item.as_ref().and_then(|item| item.size(KIB..=BATCH_MOST));
    let limits = BatchLimits {
        max_bytes: bytes.unwrap_or(default) as usize,
        line_weight: match kind {
            KindOptions::File(FileOptions { format: Format::Text, .. }) => 0, // stays in its chunk
            _ => RECORD_WEIGHT,
        },
        max_lines: reader.integer("max_lines", 10_000, 1..=1_000_000) as usize,
        max_wait: reader.duration("max_wait", wait, ms(1)..=secs(600)),
    };
    reader.finish();
    (limits, item.filter(|_| bytes.is_some()))
}

fn retry(reader: Reader<'_>) -> RetryOptions {
    let (least, most) = (ms(1), secs(86_400));
    let set = reader.given("initial").is_some();
    let max = reader.duration("max", secs(30), least..=most);
    let initial = reader.duration("initial", ms(500).min(max), least..=most);
    if set && initial > max {
        reader.room().complain(
            &reader.path_of("initial"),
            format!(
                "{:?} is above retry.max, which is {:?}",
                values::show_duration(initial),
                values::show_duration(max)
            ),
        );
    }
    let attempts = reader.item("max_attempts").and_then(|item| item.integer(1..=u64::from(u32::MAX)));
    reader.finish();
    RetryOptions { initial, max, max_attempts: attempts.map(|attempts| attempts as u32) }
}

/// `default`: whether there is one if nobody says so.
fn spool(reader: Reader<'_>, default: bool) -> Option<SpoolOptions> {
    let enabled = reader.given("enabled").and_then(|item| item.boolean()).unwrap_or(default);
    let options = SpoolOptions {
        max_bytes: reader.size("max_bytes", values::GIB, MIB..=64 * 1024 * values::GIB),
        after: reader.duration("after", secs(5), ms(0)..=secs(86_400)),
        when_full: reader
            .one_of("when_full", &[("wait", WhenFull::Wait), ("drop_oldest", WhenFull::DropOldest)]),
    };
    reader.finish();
    enabled.then_some(options)
}

fn format(reader: &Reader<'_>) -> Format {
    reader.one_of("format", &[("text", Format::Text), ("json", Format::Json)])
}

fn file(reader: &Reader<'_>) -> FileOptions {
    let path = reader.required("path", "\"./captured/{file}\"").and_then(|item| {
        let path = item.string()?;
        let absolute = item.room().absolute(&path).to_string_lossy().into_owned();
        let wrong = if path.ends_with('/') {
            Some("is a folder; add a name such as {file}".into())
        } else {
            crate::sinks::file::Template::parse(&absolute).err()
        };
        if let Some(says) = wrong {
            item.complain(says);
            return None;
        }
        Some(absolute)
    });
    FileOptions { path: path.unwrap_or_default(), format: format(reader), rotate: rotate(reader) }
}

fn rotate(reader: &Reader<'_>) -> Option<RotateOptions> {
    let item = reader.item("rotate")?;
    let reader = item.reader()?;
    let rotate = RotateOptions {
        max_bytes: reader.item("max_bytes").and_then(|item| item.size(4 * KIB..=1024 * values::GIB)),
        max_age: reader.item("max_age").and_then(|item| item.duration(secs(1)..=secs(3650 * 86_400))),
        keep: reader.integer("keep", 5, 0..=10_000) as usize,
    };
    if reader.item("max_bytes").is_none() && reader.item("max_age").is_none() {
        item.complain("does not say when to rotate; write max_bytes or max_age, or leave rotate out");
    }
    reader.not_available(&["compress", "max_total_bytes"]);
    reader.finish();
    Some(rotate)
}

fn loki(reader: &Reader<'_>) -> LokiOptions {
    const PUSH: &str = "/loki/api/v1/push";
    let http = http(reader);
    if http.url.trim_end_matches('/').ends_with(PUSH)
        && let Some(item) = reader.item("url")
    {
        item.complain(format_args!("has the push path, which is added by itself; leave {PUSH} out"));
    }
    LokiOptions {
        http,
        tenant: reader.item("tenant").and_then(|item| header_text(&item)),
        encoding: reader
            .one_of("encoding", &[("protobuf", LokiEncoding::Protobuf), ("json", LokiEncoding::Json)]),
        max_line_bytes: reader.size("max_line_bytes", 256_000, KIB..=64 * MIB) as usize,
        long_lines: reader
            .one_of("long_lines", &[("split", LongLines::Split), ("truncate", LongLines::Truncate)]),
    }
}

fn http(reader: &Reader<'_>) -> HttpOptions {
    let url = reader.required("url", "\"http://127.0.0.1:3100\"").and_then(|item| {
        let url = item.string()?;
        if let Some(says) = url_complaint(&url) {
            // A password may be in it.
            let item = if url.contains(['@', '?']) { item.hide() } else { item };
            item.complain(says);
            return None;
        }
        Some(url)
    });
    let url = url.unwrap_or_default();
    let tls = reader.section("tls");
    let ca_file = tls.item("ca_file");
    let ca_pem = ca_file.as_ref().and_then(certificate);
    if let (Some(item), true) = (ca_file, url.to_ascii_lowercase().starts_with("http://")) {
        item.complain("has no effect, since the url is http://; write https:// or leave tls out");
    }
    tls.finish();
    HttpOptions {
        auth: auth(reader.section("auth")),
        headers: headers(reader),
        tls: TlsOptions { ca_pem },
        url,
    }
}

fn certificate(item: &Item<'_>) -> Option<Vec<u8>> {
    let pem = item.file(4 * MIB)?;
    let found = memchr::memmem::find(&pem, b"-----BEGIN CERTIFICATE-----").is_some();
    if !found {
        item.complain("names a file without a certificate in PEM form (-----BEGIN CERTIFICATE-----)");
    }
    found.then_some(pem)
}

/// `http` or `https`, a host, a port if need be, a path if need be; nothing secret and nothing else.
fn url_complaint(url: &str) -> Option<&'static str> {
    let example = "must look like http://host:port or https://host/path";
    let Some((scheme, rest)) = url.split_once("://") else { return Some(example) };
    if !["http", "https"].contains(&&*scheme.to_ascii_lowercase()) {
        return Some(example);
    }
    if !cfg!(feature = "tls") && scheme.eq_ignore_ascii_case("https") {
        return Some("needs TLS, which this build leaves out (cargo feature tls)");
    }
    if rest.contains('@') {
        return Some("has a user or password in it; write them under auth.basic");
    }
    if rest.contains(['?', '#']) {
        return Some("has a query or a fragment; leave ? and # out");
    }
    let authority = rest.split('/').next().unwrap_or_default();
    let (host, port) = match authority.rsplit_once(':') {
        Some((host, port)) if !port.ends_with(']') => (host, Some(port)),
        _ => (authority, None),
    };
    let bracketed = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
    let host_is_fine = match bracketed {
        Some(address) => address.parse::<std::net::Ipv6Addr>().is_ok(),
        None => !host.is_empty() && host.chars().all(|c| c.is_ascii_alphanumeric() || "._-".contains(c)),
    };
    let port_is_fine =
        port.is_none_or(|port| port.parse::<u16>().is_ok_and(|number| number > 0) && !port.starts_with('+'));
    let path_is_fine = rest.chars().all(|c| c.is_ascii_graphic());
    (!host_is_fine || !port_is_fine || !path_is_fine).then_some(example)
}

fn auth(reader: Reader<'_>) -> Auth {
    let basic = reader.item("basic");
    let bearer = reader.secret("bearer", "bearer_file");
    if basic.is_some() && (reader.item("bearer").is_some() || reader.item("bearer_file").is_some()) {
        reader.room().complain(reader.path(), "has both basic and bearer; keep one of them");
    }
    let basic = basic.and_then(|item| item.reader()).map(|reader| {
        let user = reader.required("user", "\"me\"").and_then(|item| {
            let item = item.hide(); // "me:secret" is an easy mistake
            let user = header_text(&item)?;
            if user.contains(':') {
                item.complain("has a colon, which a user of basic authentication must not have");
            }
            Some(user)
        });
        let password = reader.secret("password", "password_file");
        if reader.item("password").is_none() && reader.item("password_file").is_none() {
            reader.room().complain(
                &reader.path_of("password"),
                "is missing; write it as password, as \"${NAME}\" or as password_file",
            );
        }
        reader.finish();
        Auth::Basic { user: user.unwrap_or_default(), password: password.unwrap_or_default() }
    });
    reader.finish();
    basic.or(bearer.map(Auth::Bearer)).unwrap_or(Auth::None)
}

fn headers(reader: &Reader<'_>) -> Vec<(String, String)> {
    const OURS: [&str; 6] =
        ["content-type", "content-encoding", "content-length", "host", "transfer-encoding", "connection"];
    let mut headers = Vec::new();
    for (name, item) in reader.hidden_pairs("headers") {
        let token = |c: char| c.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~".contains(c);
        let lower = name.to_ascii_lowercase();
        let wrong = if name.is_empty() || !name.chars().all(token) {
            Some("is not the name of a header; use letters, digits and -")
        } else if OURS.contains(&&*lower) {
            Some("is set by the sink itself; leave it out")
        } else if lower == "authorization" {
            Some("belongs under auth, as basic or bearer")
        } else if lower == "x-scope-orgid" {
            Some("is written as the sink's tenant")
        } else {
            None
        };
        if let Some(says) = wrong {
            item.room().complain(item.path(), format!("{} {says}", quoted(name)));
        } else if let Some(value) = header_text(&item) {
            headers.push((name.to_owned(), value));
        }
    }
    headers
}

/// A string that may stand in a header.
fn header_text(item: &Item<'_>) -> Option<String> {
    let text = item.string()?;
    if text.chars().any(char::is_control) {
        item.complain("holds a line break or another control character");
        return None;
    }
    Some(text)
}

/// The ledger knows a sink by its name: the type for one of its kind, and two of a kind must say theirs, so
/// that moving an entry up or down does not exchange their positions.
fn name(sinks: &mut [Sink<'_>]) {
    let mut names: Vec<String> = Vec::new();
    for sink in sinks.iter_mut() {
        let named = sink.name.as_ref().and_then(|item| {
            let name = item.string()?;
            match values::name_complaint(&name) {
                Some(says) => item.complain(says),
                None => return Some((item, name)),
            }
            None
        });
        let (item, name) = match named {
            Some((item, name)) => (Some(item), name),
            None => (None, kind_name(&sink.options.kind).to_owned()),
        };
        if names.contains(&name) {
            match (item, &sink.name) {
                (Some(item), _) => item.complain("is the name of another sink; names are unique"),
                (None, None) => sink.item.room().complain(
                    &format!("{}.name", sink.item.path()),
                    format!(
                        "is missing: two sinks of type {name:?} need names; write for example \"{name}-2\""
                    ),
                ),
                (None, Some(_)) => {} // its name was complained about
            }
        }
        sink.options.name = name.as_str().into();
        names.push(name);
    }
}

/// Two writers of one file would tear each other's lines and rotate each other's output.
fn distinct_files(sinks: &[Sink<'_>]) {
    let mut paths: Vec<&str> = Vec::new();
    for sink in sinks {
        let KindOptions::File(file) = &sink.options.kind else { continue };
        if !file.path.is_empty() && paths.contains(&&*file.path) {
            sink.item.room().complain(
                &format!("{}.path", sink.item.path()),
                format!("{} is the path of another sink; each needs files of its own", quoted(&file.path)),
            );
        }
        paths.push(&file.path);
    }
}

/// For people: `loki at http://127.0.0.1:3100`, `files /srv/captured/{file}`.
pub fn describe(sink: &SinkOptions) -> String {
    match &sink.kind {
        KindOptions::Loki(loki) => format!("loki at {}", loki.http.url),
        KindOptions::File(file) => format!("files {}", file.path),
        KindOptions::Stdout(_) => "standard output".into(),
    }
}

fn kind_name(kind: &KindOptions) -> &'static str {
    match kind {
        KindOptions::File(_) => "file",
        KindOptions::Stdout(_) => "stdout",
        KindOptions::Loki(_) => "loki",
    }
}
