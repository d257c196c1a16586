//! The engine's API, as far as logs need it: who is there, what happens, what they say.
//!
//! Docker's Engine API (<https://docs.docker.com/reference/api/engine/>), version 1.24 and later, and Podman's
//! compatible one, over a socket of this host or over TCP with TLS.
//!
//! Always true: every call ends by its time-outs or with `stop`; a stream ([`Stream`]) never waits at all, its reader
//! does. Each stream has a connection of its own, which is closed with it; calls keep none.
//!
//! Not here: what a log looks like (`frames.rs`), when to call (`monitor.rs`, `reader.rs`).

use std::collections::BTreeMap;
use std::fmt;
use std::io::{self, Read};
use std::os::fd::BorrowedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use ureq::tls::{Certificate, ClientCert, PemItem, PrivateKey, RootCerts, TlsConfig, parse_pem};

use crate::clock::Clock;
use crate::error::{Context, Error, Result};
use crate::ledger::Cursor;
use crate::net::{self, Resolve, Tap, To};
use crate::tasks::Closed;

/// An engine that takes longer to begin an answer hangs, or is as good as that.
const TIMEOUT: Duration = Duration::from_secs(10);

/// A host with a thousand containers, each with its labels, has a list of some MiB.
const BODY_MAX: u64 = 64 << 20;

/// The newest version whose answers were looked at. An engine that has left all up to it behind gets its own oldest.
const NEWEST: Version = Version(1, 51);

const DOCKER_23: Version = Version(1, 42);

/// Per stream. What an engine sends for a line is some hundred bytes.
const STREAM_BUFFER_BYTES: usize = 16 * 1024;

/// Where the engine listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    Socket(PathBuf),
    /// `http://host:port` or `https://host:port`.
    Url(String),
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Address::Socket(path) => write!(f, "{}", path.display()),
            Address::Url(url) => f.write_str(url),
        }
    }
}

/// PEM, each.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Tls {
    /// When it is there, only it is trusted.
    pub ca: Option<Vec<u8>>,
    /// What we show the engine: a certificate and its key.
    pub own: Option<(Vec<u8>, Vec<u8>)>,
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tls").field("ca", &self.ca.is_some()).field("own", &self.own.is_some()).finish()
    }
}

/// Why a call failed, as far as somebody does something about it.
#[derive(Debug)]
pub enum Failure {
    /// There is no such container (any more).
    Gone,
    /// Its log cannot be read: what the engine said.
    Unreadable(String),
    /// The engine does not answer, or not as an engine.
    Ill(Error),
    /// It has taken the question, and not begun to answer in time.
    Silent(Error),
    Stopping,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Version(u32, u32);

impl Version {
    fn parse(text: &str) -> Option<Version> {
        let (major, minor) = text.split_once('.')?;
        Some(Version(major.parse().ok()?, minor.parse().ok()?))
    }
}

/// Which version to speak, so that both sides know it.
fn negotiated(newest: Version, oldest: Option<Version>) -> Version {
    newest.min(NEWEST).max(oldest.unwrap_or(Version(0, 0)))
}

/// What the engine says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct About {
    version: Version,
    pub is_podman: bool,
}

impl fmt::Display for About {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (name, Version(major, minor)) = (if self.is_podman { "Podman" } else { "Docker" }, self.version);
        write!(f, "{name}, API {major}.{minor}")
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct VersionAnswer {
    api_version: String,
    #[serde(rename = "MinAPIVersion")]
    min_api_version: Option<String>,
    #[serde(default)]
    components: Vec<Component>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Component {
    name: String,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Listed {
    pub id: String,
    /// Each with a `/` in front.
    #[serde(default)]
    pub names: Option<Vec<String>>,
    pub image: String,
    #[serde(default)]
    pub labels: Option<BTreeMap<String, String>>,
    pub state: String,
}

impl Listed {
    /// It writes, or may do so at any moment.
    pub fn is_alive(&self) -> bool {
        ["running", "paused"].contains(&&*self.state)
    }

    /// It has not been started yet, or is still being made.
    pub fn never_ran(&self) -> bool {
        self.state == "created"
    }
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Inspected {
    pub config: InspectedConfig,
    pub state: InspectedState,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct InspectedConfig {
    #[serde(default)]
    pub env: Option<Vec<String>>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct InspectedState {
    pub running: bool,
    /// Between two lives: nothing can be followed.
    #[serde(default)]
    pub restarting: bool,
    #[serde(default)]
    status: String,
}

impl InspectedState {
    /// It is being removed, or that was tried in vain: its log is not given out any more.
    pub fn is_going(&self) -> bool {
        ["removing", "dead"].contains(&&*self.status)
    }
}

/// Of the stream of events; everything else is skipped.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Happening {
    pub action: String,
    pub actor: Actor,
    #[serde(rename = "timeNano", default)]
    pub time_ns: i64,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Actor {
    #[serde(rename = "ID")]
    pub id: String,
    /// Name, image, and all labels of the container.
    #[serde(default)]
    pub attributes: BTreeMap<String, String>,
}

/// What a stream is of. An answer in JSON is a stream of events, but never a log.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Expected {
    Log,
    Events,
}

#[derive(Deserialize)]
struct Said {
    message: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Info {
    system_time: String,
}

/// One engine; shared by the monitor and its readers.
pub struct Engine {
    address: Address,
    base: String,
    to: To,
    tls: TlsConfig,
    calls: ureq::Agent,
    about: Mutex<Option<About>>,
    stop: Closed,
    clock: Clock,
}

impl Engine {
    /// Errors: the certificates cannot be read.
    pub fn new(address: &Address, tls: &Tls, resolve: Resolve, stop: Closed, clock: Clock) -> Result<Engine> {
        let tls = tls_config(tls).context(|| format!("the engine at {address}"))?;
        let (base, to) = match address {
            Address::Socket(path) => ("http://engine".to_owned(), To::Local(path.clone())),
            Address::Url(url) => (url.trim_end_matches('/').to_owned(), To::Names(resolve, TIMEOUT)),
        };
        let whole = config(&tls).timeout_recv_body(Some(TIMEOUT)).build();
        Ok(Engine {
            calls: net::tapped_agent(whole, to.clone(), None, stop.clone(), clock.clone()),
            address: address.clone(),
            about: Mutex::default(),
            base,
            to,
            tls,
            stop,
            clock,
        })
    }

    pub fn address(&self) -> &Address {
        &self.address
    }

    /// Asks who is there, and speaks its language from now on.
    pub fn meet(&self) -> std::result::Result<About, Failure> {
        let answer: VersionAnswer = self.json("/version")?;
        let strange = || Failure::Ill(Error::new("does not answer like an engine: no version of an API"));
        let newest = Version::parse(&answer.api_version).ok_or_else(strange)?;
        let oldest = answer.min_api_version.as_deref().and_then(Version::parse);
        let is_podman = answer.components.iter().any(|component| component.name.contains("Podman"));
        let about = About { version: negotiated(newest, oldest), is_podman };
        *self.about.lock() = Some(about.clone());
        Ok(about)
    }

    /// As it was met last.
    pub fn is_podman(&self) -> bool {
        self.about.lock().as_ref().is_some_and(|about| about.is_podman)
    }

    /// What it sends of a log that is followed is all of it when it ends that in order. Docker before 23 may leave out what
    /// was written last.
    pub fn follows_to_the_end(&self) -> bool {
        self.about.lock().as_ref().is_some_and(|about| !about.is_podman && about.version >= DOCKER_23)
    }

    /// Whether it answers at all.
    pub fn ping(&self) -> std::result::Result<(), Failure> {
        let mut response = self.call(&self.calls, "/_ping")?;
        let read = response.body_mut().as_reader().take(BODY_MAX).read_to_end(&mut Vec::new());
        read.map(drop).map_err(|error| self.failed(&ureq::Error::Io(error)))
    }

    /// The engine's own clock.
    pub fn now_ns(&self) -> std::result::Result<i64, Failure> {
        let info: Info = self.json(&self.versioned("/info"))?;
        super::frames::parse(info.system_time.as_bytes())
            .ok_or_else(|| Failure::Ill(Error::new(format!("has a strange time: {}", info.system_time))))
    }

    /// All containers, those that do not run too.
    pub fn list(&self) -> std::result::Result<Vec<Listed>, Failure> {
        self.json(&self.versioned("/containers/json?all=1"))
    }

    pub fn inspect(&self, id: &str) -> std::result::Result<Inspected, Failure> {
        self.json(&self.versioned(&format!("/containers/{id}/json")))
    }

    /// What happens to containers from now on, and since `since_ns`, as far as the engine remembers.
    pub fn events(&self, since_ns: Option<i64>) -> std::result::Result<Stream, Failure> {
        // {"type":["container"],"event":["start","die","destroy","rename"]}
        const FILTERS: &str = "filters=%7B%22type%22%3A%5B%22container%22%5D%2C%22event%22%3A%5B%22start%22%2C%22die%22%2C\
             %22destroy%22%2C%22rename%22%2C%22remove%22%5D%7D";
        let since = since_ns.map_or(String::new(), |ns| format!("&since={}", seconds(ns)));
        self.stream(&self.versioned(&format!("/events?{FILTERS}{since}")), Expected::Events)
    }

    /// A log from a cursor on, or from its beginning; with `follow` until the container dies. What is older may come in front
    /// of it.
    pub fn logs(&self, id: &str, from: Option<Cursor>, follow: bool) -> std::result::Result<Stream, Failure> {
        let since = from.map_or(String::new(), |cursor| format!("&since={}", seconds(self.asked_ns(cursor))));
        let follow = u8::from(follow);
        let path = format!("/containers/{id}/logs?stdout=1&stderr=1&timestamps=1&follow={follow}{since}");
        self.stream(&self.versioned(&path), Expected::Log)
    }

    /// A log from now on: something comes when something is written, but not all of it; ends when the container dies.
    /// Podman before 5.3 does not begin to answer earlier than that; `None`: not within [`TIMEOUT`].
    pub fn signs(&self, id: &str) -> std::result::Result<Option<Stream>, Failure> {
        let path = format!("/containers/{id}/logs?stdout=1&stderr=1&follow=1&tail=0");
        match self.stream(&self.versioned(&path), Expected::Log) {
            Err(Failure::Silent(_)) => Ok(None),
            answered => answered.map(Some),
        }
    }

    /// Podman rounds parts of a second, and leaves out what was written at that very time. Before 5.8 a line has whole seconds,
    /// and those of them that were written before it are counted with the others.
    fn asked_ns(&self, from: Cursor) -> i64 {
        if self.is_podman() { from.ns - from.ns.rem_euclid(1_000_000_000) } else { from.ns }
    }

    fn versioned(&self, path: &str) -> String {
        match &*self.about.lock() {
            Some(About { version: Version(major, minor), .. }) => format!("/v{major}.{minor}{path}"),
            None => path.to_owned(),
        }
    }

    fn json<T: DeserializeOwned>(&self, path: &str) -> std::result::Result<T, Failure> {
        let mut response = self.call(&self.calls, path)?;
        let mut body = Vec::new();
        let read = response.body_mut().as_reader().take(BODY_MAX).read_to_end(&mut body);
        read.map_err(|error| self.failed(&ureq::Error::Io(error)))?;
        serde_json::from_slice(&body).map_err(|error| {
            Failure::Ill(Error::new(format!("does not answer like an engine to {path}: {error}")))
        })
    }

    fn stream(&self, path: &str, expected: Expected) -> std::result::Result<Stream, Failure> {
        let tap = Tap::default();
        let endless = config(&self.tls).build();
        let (to, stop, clock) = (self.to.clone(), self.stop.clone(), self.clock.clone());
        let agent = net::tapped_agent(endless, to, Some(tap.clone()), stop, clock);
        let mut response = self.call(&agent, path)?;
        let kind = response.headers().get("content-type").map_or(&b""[..], |kind| kind.as_bytes());
        if expected == Expected::Log && kind.starts_with(b"application/json") {
            return Err(Failure::Ill(Error::new(format!("sends no log: {}", said(&mut response).trim()))));
        }
        tap.stream();
        Ok(Stream { body: Box::new(response.into_body().into_reader()), tap })
    }

    fn call(
        &self,
        agent: &ureq::Agent,
        path: &str,
    ) -> std::result::Result<ureq::http::Response<ureq::Body>, Failure> {
        let url = format!("{}{path}", self.base);
        let mut response = agent.get(&url).call().map_err(|error| self.failed(&error))?;
        let status = response.status().as_u16();
        if status == 200 {
            return Ok(response);
        }
        let said = said(&mut response);
        let about_drivers = ["logging driver", "log driver"].iter().any(|words| said.contains(words));
        match status {
            404 => Err(Failure::Gone),
            501 => Err(Failure::Unreadable(said)),
            _ if about_drivers => Err(Failure::Unreadable(said)),
            // Dead, or marked for removal: a log that was there a moment ago.
            409 => Err(Failure::Gone),
            _ => Err(Failure::Ill(Error::new(format!("answered {status}: {}", said.trim())))),
        }
    }

    fn failed(&self, cause: &ureq::Error) -> Failure {
        if self.stop.is_closed() {
            return Failure::Stopping;
        }
        let why = Error::new(match cause {
            ureq::Error::Io(error) if error.raw_os_error().is_some() => error.kind().to_string(),
            ureq::Error::Timeout(phase) => format!("does not answer within {TIMEOUT:?} ({phase})"),
            other => other.to_string(),
        });
        match cause {
            ureq::Error::Timeout(ureq::Timeout::RecvResponse) => Failure::Silent(why),
            _ => Failure::Ill(why),
        }
    }
}

/// What an answer with an error says.
fn said(response: &mut ureq::http::Response<ureq::Body>) -> String {
    let mut body = Vec::new();
    // Whatever came until it broke is what there is to say.
    let _ = response.body_mut().as_reader().take(64 << 10).read_to_end(&mut body);
    let said = serde_json::from_slice::<Said>(&body).map(|said| said.message);
    said.unwrap_or_else(|_| String::from_utf8_lossy(&body).chars().take(300).collect())
}

fn config(tls: &TlsConfig) -> ureq::config::ConfigBuilder<ureq::typestate::AgentScope> {
    ureq::Agent::config_builder()
        .proxy(None)
        .http_status_as_error(false)
        .max_redirects(0)
        .max_redirects_will_error(false)
        .user_agent(concat!("log-capturer/", env!("CARGO_PKG_VERSION")))
        .tls_config(tls.clone())
        .input_buffer_size(STREAM_BUFFER_BYTES)
        .output_buffer_size(STREAM_BUFFER_BYTES)
        .max_idle_connections(0)
        .timeout_connect(Some(TIMEOUT))
        .timeout_send_request(Some(TIMEOUT))
        .timeout_recv_response(Some(TIMEOUT))
}

/// The form of the API's `since`: seconds with a fraction.
fn seconds(ns: i64) -> String {
    let ns = ns.max(0);
    format!("{}.{:09}", ns / 1_000_000_000, ns % 1_000_000_000)
}

fn tls_config(options: &Tls) -> Result<TlsConfig> {
    let mut tls = TlsConfig::builder();
    if let Some(ca) = &options.ca {
        tls = tls.root_certs(RootCerts::Specific(Arc::new(certificates(ca)?)));
    }
    if let Some((certificate, key)) = &options.own {
        let key = PrivateKey::from_pem(key).context(|| "could not read the key".into())?;
        tls = tls.client_cert(Some(ClientCert::new_with_certs(&certificates(certificate)?, key)));
    }
    Ok(tls.build())
}

fn certificates(pem: &[u8]) -> Result<Vec<Certificate<'static>>> {
    let mut all = Vec::new();
    for item in parse_pem(pem) {
        if let PemItem::Certificate(one) = item.context(|| "could not read a certificate".into())? {
            all.push(one);
        }
    }
    if all.is_empty() { Err(Error::new("a file holds no certificate")) } else { Ok(all) }
}

/// An answer that goes on.
pub struct Stream {
    body: Box<dyn Read + Send>,
    tap: Tap,
}

/// What a read brought.
#[derive(Debug, PartialEq, Eq)]
pub enum Came {
    Bytes(usize),
    /// At the moment.
    Nothing,
    /// The engine has ended it in order.
    End,
}

impl Stream {
    /// Never waits. Fails when the connection broke.
    pub fn read(&mut self, buffer: &mut [u8]) -> io::Result<Came> {
        loop {
            return match self.body.read(buffer) {
                Ok(0) => Ok(Came::End),
                Ok(bytes) => Ok(Came::Bytes(bytes)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(Came::Nothing),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => Err(error),
            };
        }
    }

    /// Until a read brings something, one of `others` has something, or the time is up.
    pub fn wait(&self, others: &[BorrowedFd<'_>], timeout: Option<Duration>) -> io::Result<()> {
        self.tap.wait(others, timeout)
    }
}

/// Reads what happens, one JSON object a line.
pub struct Events {
    stream: Stream,
    buffer: Vec<u8>,
}

/// All labels of a container come with each event.
const EVENT_BYTES_MAX: usize = 1 << 20;

impl Events {
    pub fn new(stream: Stream) -> Events {
        Events { stream, buffer: Vec::new() }
    }

    pub fn wait(&self, others: &[BorrowedFd<'_>], timeout: Duration) -> io::Result<()> {
        self.stream.wait(others, Some(timeout))
    }

    /// The next one; `None`: not yet. Errors: the stream is over, in whatever way.
    pub fn take(&mut self) -> io::Result<Option<Happening>> {
        loop {
            while let Some(end) = memchr::memchr(b'\n', &self.buffer) {
                let line: Vec<u8> = self.buffer.drain(..=end).collect();
                // What is no event of a container has another form.
                if let Ok(event) = serde_json::from_slice(&line) {
                    return Ok(Some(event));
                }
            }
            if self.buffer.len() > EVENT_BYTES_MAX {
                return Err(io::Error::other("an event without an end"));
            }
            let filled = self.buffer.len();
            self.buffer.resize(filled + STREAM_BUFFER_BYTES, 0);
            let came = self.stream.read(&mut self.buffer[filled..]);
            self.buffer.truncate(filled + if let Ok(Came::Bytes(bytes)) = came { bytes } else { 0 });
            match came? {
                Came::Bytes(_) => {}
                Came::Nothing => return Ok(None),
                Came::End => return Err(io::ErrorKind::UnexpectedEof.into()),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_is_one_that_both_know() {
        let version = |text: &str| Version::parse(text).unwrap();
        for (newest, oldest, spoken) in [
            ("1.41", Some("1.12"), "1.41"),
            ("1.99", Some("1.44"), "1.51"),
            ("2.3", Some("1.90"), "1.90"),
            ("1.24", None, "1.24"),
            ("1.9", None, "1.9"),
        ] {
            assert_eq!(negotiated(version(newest), oldest.map(version)), version(spoken), "{newest}");
        }
        assert_eq!(Version::parse("one"), None);
    }

    #[test]
    fn since_has_all_its_digits() {
        assert_eq!(seconds(1_795_458_291_000_000_008), "1795458291.000000008");
        assert_eq!(seconds(-5), "0.000000000");
    }
}
