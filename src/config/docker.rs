//! `sources[]` of the type `docker`: which engine, which of its containers, and what their lines are labelled with.

use super::reader::{Item, Reader};
use super::values::{self, MIB, quoted};
use crate::glob::Glob;
use crate::monitors::StartAt;
use crate::monitors::container::labels::{Choice, From, Matching};
use crate::monitors::container::{Address, ContainerSourceOptions, StreamAs, Tls};

const SOCKET: &str = "/var/run/docker.sock";

/// Enough to find a service's lines in most houses; the id would make a stream of every container there ever was.
const LABELS_FROM: [From; 4] = [From::Name, From::Image, From::ComposeProject, From::ComposeService];

/// Labels that the agent sets itself, whatever the choice is.
const RESERVED: [&str; 1] = ["stream"];

pub fn read(reader: &Reader<'_>) -> ContainerSourceOptions {
    let tls_section = reader.section("tls");
    let tls = tls(&tls_section);
    let has_tls = reader.item("tls").is_some();
    tls_section.finish();
    let address = match reader.item("socket") {
        Some(item) => item.string().and_then(|text| address(&item, &text, has_tls)),
        None => None,
    };
    let address = address.unwrap_or_else(|| Address::Socket(SOCKET.into()));
    if let (Address::Socket(_), Some(item)) = (&address, reader.item("tls")) {
        item.complain(
            "has no effect on a socket of this host; leave it out, or write socket as tcp://host:2376",
        );
    }
    let opt_in = reader.one_of("enable", &[("all", false), ("labelled", true)]);
    ContainerSourceOptions {
        address,
        tls,
        choice: Choice { include: matching(reader, "include"), exclude: matching(reader, "exclude"), opt_in },
        start_at: reader.one_of("start_at", &[("beginning", StartAt::Beginning), ("end", StartAt::End)]),
        labels: labels(reader),
        stream_as: reader.one_of(
            "stream",
            &[("metadata", StreamAs::Metadata), ("label", StreamAs::Label), ("none", StreamAs::Nothing)],
        ),
        stages: Vec::new(), // the pipeline knows them
    }
}

fn address(item: &Item<'_>, text: &str, has_tls: bool) -> Option<Address> {
    let (scheme, rest) = text.split_once("://").unwrap_or(("unix", text));
    let authority = !rest.is_empty() && !rest.contains(['/', '@', '?', '#']);
    let scheme = match scheme {
        "unix" if rest.starts_with('/') => return Some(Address::Socket(rest.into())),
        "tcp" if authority && has_tls => "https",
        "tcp" | "http" if authority => "http",
        "https" if authority => "https",
        _ => {
            item.complain(
                "is not where an engine listens; write \"/var/run/docker.sock\" or \"tcp://host:2376\"",
            );
            return None;
        }
    };
    Some(Address::Url(format!("{scheme}://{rest}")))
}

fn tls(reader: &Reader<'_>) -> Tls {
    let pem = |key, mark: &str| {
        let item = reader.item(key)?;
        let pem = item.file(4 * MIB)?;
        if memchr::memmem::find(&pem, mark.as_bytes()).is_none() {
            item.complain(format_args!("names a file without {mark} (PEM form)"));
        }
        Some(pem)
    };
    let ca = pem("ca_file", "-----BEGIN CERTIFICATE-----");
    let own = (pem("cert_file", "-----BEGIN CERTIFICATE-----"), pem("key_file", "PRIVATE KEY-----"));
    if reader.item("cert_file").is_some() != reader.item("key_file").is_some() {
        reader.room().complain(reader.path(), "has only one of cert_file and key_file; write both");
    }
    Tls { ca, own: own.0.zip(own.1) }
}

fn matching(reader: &Reader<'_>, key: &'static str) -> Matching {
    let section = reader.section(key);
    let globs = |key| section.list(key).iter().filter_map(glob).collect();
    let label = |(key, item): (&str, Item<'_>)| Some((key.to_owned(), glob(&item)?));
    let matching = Matching {
        names: globs("names"),
        images: globs("images"),
        labels: section.pairs("labels").into_iter().filter_map(label).collect(),
    };
    section.finish();
    matching
}

fn glob(item: &Item<'_>) -> Option<Glob> {
    match Glob::text(&item.string()?) {
        Ok(glob) => Some(glob),
        Err(cause) => {
            item.complain(format_args!("is not a pattern: {cause}"));
            None
        }
    }
}

fn labels(reader: &Reader<'_>) -> Vec<(String, From)> {
    let named = |from: &From| {
        let (_, label, from) = From::WORDS.into_iter().find(|(_, _, known)| known == from)?;
        Some((label.to_owned(), from))
    };
    let words = From::WORDS.map(|(word, _, from)| (word, from));
    let chosen: Vec<From> = match reader.item("labels_from") {
        Some(item) => item.list().unwrap_or_default().iter().filter_map(|item| item.one_of(&words)).collect(),
        None => LABELS_FROM.to_vec(),
    };
    let mut labels: Vec<(String, From)> = chosen.iter().filter_map(named).collect();
    for (key, from) in [("container_labels", From::Label as fn(String) -> From), ("container_env", From::Env)]
    {
        for (name, item) in reader.pairs(key) {
            let taken = labels.iter().any(|(known, _)| known == name) || RESERVED.contains(&name);
            let wrong = values::label_name_complaint(name).or((taken || ["host", "source"].contains(&name))
                .then_some("is taken already; choose another name"));
            if let Some(says) = wrong {
                item.complain(format_args!("{} {says}", quoted(name)));
            } else if let Some(text) = item.string() {
                labels.push((name.to_owned(), from(text)));
            }
        }
    }
    labels
}

/// For people: `the containers of /var/run/docker.sock`.
pub fn describe(options: &ContainerSourceOptions) -> String {
    format!("the containers of {}", options.address)
}
