//! An engine that does what the test says: Docker's API on a socket, as far as logs need it.
//!
//! It filters by `since` as Docker 20 does (each message for itself) or as Podman (without those of that very time),
//! sends a log in frames or as a terminal's, follows it, and has moods. It can be gone, which ends all its connections, and come back.

use std::collections::{BTreeMap, HashMap};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};
use serde_json::{Value, json};

/// Of Docker 20.
const API: &str = "1.41";

pub const OUT: u8 = 1;
pub const ERR: u8 = 2;

#[derive(Clone, Default)]
pub struct Message {
    pub stream: u8,
    pub ns: i64,
    pub text: Vec<u8>,
}

#[derive(Clone, Default)]
struct Container {
    name: String,
    labels: BTreeMap<String, String>,
    running: bool,
    ran: bool,
    tty: bool,
    /// In the list, and whoever asks for it hears that there is no such container.
    only_listed: bool,
    log: Vec<Message>,
}

/// What happens to requests.
#[derive(Clone, Copy, Default, PartialEq)]
pub enum Mood {
    #[default]
    Well,
    /// Logs are answered with 500.
    NoLogs,
    /// And logs of this kind cannot be read at all.
    Unreadable,
    /// Inspecting is answered with 500.
    NoInspect,
    /// The next log ends so many bytes later, in the middle of whatever it is.
    CutAfter(usize),
    /// Promises a log (200) and sends an error in JSON, as something of this type.
    ErrorAs(&'static str),
    /// Takes requests and is silent.
    Hang,
}

#[derive(Default)]
struct State {
    containers: BTreeMap<String, Container>,
    /// Whoever has their logs open can read them to their ends.
    removed: BTreeMap<String, Container>,
    events: Vec<Value>,
    mood: Mood,
    /// Rises when it goes: connections of before end.
    life: u64,
    connections: Vec<UnixStream>,
    requests: HashMap<String, u64>,
    inspected_env: Vec<String>,
    leaves_logs_open: bool,
    ends_events: bool,
    is_podman: bool,
    api: Option<&'static str>,
    /// Its own clock; 0: before all that the tests say.
    now_ns: i64,
    /// Whoever follows a log gets so many messages of it.
    followers_get: Option<usize>,
    /// They do not get these, by their number in the log.
    left_out: std::ops::Range<usize>,
    /// A log can be followed, and not be read otherwise.
    only_follows: bool,
    /// The next reading of a whole log ends within its last message.
    torn: bool,
    /// An answer with a log begins with its first message, not before.
    answers_late: bool,
    /// What it says of times.
    whole_seconds: bool,
    /// Whenever a whole log is asked for, the container writes one more line to it.
    writes_on: bool,
}

impl State {
    fn take_away(&mut self, name: &str) -> Container {
        let container = self.containers.remove(&id_of(name)).unwrap();
        self.removed.insert(id_of(name), container.clone());
        container
    }
}

#[derive(Default)]
struct Inner {
    state: Mutex<State>,
    changed: Condvar,
}

pub struct Daemon {
    path: PathBuf,
    inner: Arc<Inner>,
}

/// Ids look like Docker's.
pub fn id_of(name: &str) -> String {
    format!("{:064x}", xxhash_rust::xxh3::xxh3_64(name.as_bytes()))
}

impl Daemon {
    pub fn start(path: &Path) -> Daemon {
        let daemon = Daemon { path: path.to_owned(), inner: Arc::default() };
        daemon.come_back();
        daemon
    }

    /// Listens (again).
    pub fn come_back(&self) {
        let _ = std::fs::remove_file(&self.path);
        let listener = UnixListener::bind(&self.path).unwrap();
        let (inner, life) = (self.inner.clone(), self.inner.state.lock().life);
        std::thread::spawn(move || {
            for connection in listener.incoming() {
                let Ok(connection) = connection else { return };
                if inner.state.lock().life != life {
                    return;
                }
                let inner = inner.clone();
                inner.state.lock().connections.push(connection.try_clone().unwrap());
                std::thread::spawn(move || {
                    let end = connection.try_clone();
                    // An error is a client that went away.
                    let _ = serve(&inner, life, connection);
                    let _ = end.map(|end| end.shutdown(std::net::Shutdown::Both));
                });
            }
        });
    }

    /// Ends all connections and listens no more. What it knows of events is lost with it.
    pub fn go(&self) {
        let mut state = self.inner.state.lock();
        state.life += 1;
        state.events.clear();
        for connection in state.connections.drain(..) {
            let _ = connection.shutdown(std::net::Shutdown::Both);
        }
        drop(state);
        self.inner.changed.notify_all();
        let _ = UnixStream::connect(&self.path); // ends the accept of the life before
        let _ = std::fs::remove_file(&self.path);
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.inner.state.lock());
        self.inner.changed.notify_all();
    }

    pub fn mood(&self, mood: Mood) {
        self.change(|state| state.mood = mood);
    }

    pub fn env(&self, env: &[&str]) {
        self.change(|state| state.inspected_env = env.iter().map(|pair| (*pair).to_owned()).collect());
    }

    pub fn create(&self, name: &str, tty: bool, labels: &[(&str, &str)]) {
        let labels = labels.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        let container = Container { name: name.into(), labels, tty, ..Container::default() };
        self.change(|state| drop(state.containers.insert(id_of(name), container)));
    }

    /// As Docker 20 while it is making or removing one: it is in the list, and all else is answered with 404.
    pub fn only_list(&self, name: &str, only: bool) {
        self.change(|state| state.containers.get_mut(&id_of(name)).unwrap().only_listed = only);
    }

    pub fn run(&self, name: &str) {
        if !self.inner.state.lock().containers.contains_key(&id_of(name)) {
            self.create(name, false, &[]);
        }
        self.set_running(name, true, "start");
    }

    /// Whoever follows a log does not hear that its container is dead.
    pub fn leave_logs_open(&self) {
        self.change(|state| state.leaves_logs_open = true);
    }

    /// The newest version that it speaks.
    pub fn api(&self, version: &'static str) {
        self.change(|state| state.api = Some(version));
    }

    pub fn pretend_podman(&self) {
        self.change(|state| state.is_podman = true);
    }

    pub fn clock(&self, now_ns: i64) {
        self.change(|state| state.now_ns = now_ns);
    }

    /// Whoever asks for events hears that there are no more of them.
    pub fn end_events(&self) {
        self.change(|state| state.ends_events = true);
    }

    /// Docker before 23 may end a log that is followed before all of it was sent.
    pub fn keep_from_followers(&self, more_than: usize) {
        self.change(|state| state.followers_get = Some(more_than));
    }

    /// As Podman does when it meets the end of a file in the middle of a write.
    pub fn leave_out(&self, messages: std::ops::Range<usize>) {
        self.change(|state| state.left_out = messages);
    }

    /// As an engine that removes a container while it is asked for its log.
    pub fn only_follow(&self) {
        self.change(|state| state.only_follows = true);
    }

    /// Whoever next reads a whole log comes while its last message is being written.
    pub fn tear(&self) {
        self.change(|state| state.torn = true);
    }

    /// A new log file, as when the old one is too large: nobody can ask for what stood in that.
    pub fn rotate(&self, name: &str) {
        self.change(|state| state.containers.get_mut(&id_of(name)).unwrap().log.clear());
    }

    /// Podman before 5.8.
    pub fn say_whole_seconds(&self) {
        self.change(|state| state.whole_seconds = true);
    }

    pub fn write_on(&self) {
        self.change(|state| state.writes_on = true);
    }

    /// Podman before 5.3 says nothing at all before it has something to send of a log.
    pub fn answer_late(&self) {
        self.change(|state| state.answers_late = true);
    }

    /// As with `--rm`: nobody can ask for its log once it is dead.
    pub fn die_removed(&self, name: &str) {
        self.change(|state| {
            let container = state.take_away(name);
            state.events.extend(["die", "destroy"].map(|action| event(action, name, &container)));
        });
    }

    pub fn die(&self, name: &str) {
        self.set_running(name, false, "die");
    }

    pub fn remove(&self, name: &str) {
        self.change(|state| {
            let container = state.take_away(name);
            state.events.push(event("destroy", name, &container));
        });
    }

    /// Started, and the event of it gets lost.
    pub fn run_unheard(&self, name: &str) {
        self.change(|state| {
            let container = state.containers.get_mut(&id_of(name)).unwrap();
            (container.running, container.ran) = (true, true);
        });
    }

    /// Removed, and the event of it gets lost.
    pub fn forget(&self, name: &str) {
        self.change(|state| drop(state.take_away(name)));
    }

    fn set_running(&self, name: &str, running: bool, action: &str) {
        self.change(|state| {
            let container = state.containers.get_mut(&id_of(name)).unwrap();
            container.running = running;
            container.ran = true;
            let event = event(action, name, container);
            state.events.push(event);
        });
    }

    pub fn say(&self, name: &str, stream: u8, ns: i64, text: impl AsRef<[u8]>) {
        let message = Message { stream, ns, text: text.as_ref().to_vec() };
        self.change(|state| state.containers.get_mut(&id_of(name)).unwrap().log.push(message));
    }

    /// How often something was asked for: `list`, `logs`, `events`, …
    pub fn requests(&self, what: &str) -> u64 {
        self.inner.state.lock().requests.get(what).copied().unwrap_or(0)
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.go();
    }
}

fn event(action: &str, name: &str, container: &Container) -> Value {
    let mut attributes: BTreeMap<String, String> = container.labels.clone();
    attributes.extend([("name".into(), name.into()), ("image".into(), "scripted".into())]);
    json!({ "Type": "container", "Action": action, "Actor": { "ID": id_of(name), "Attributes": attributes },
            "timeNano": 1 })
}

fn serve(inner: &Inner, life: u64, connection: UnixStream) -> std::io::Result<()> {
    let mut reader = BufReader::new(connection.try_clone()?);
    let mut line = String::new();
    reader.read_line(&mut line)?;
    let path = line.split(' ').nth(1).unwrap_or("").to_owned();
    while line.trim() != "" {
        line.clear();
        reader.read_line(&mut line)?;
    }
    let (bare, query) = path.split_once('?').unwrap_or((&path, ""));
    let bare =
        bare.strip_prefix("/v1.").and_then(|rest| rest.find('/').map(|at| &rest[at..])).unwrap_or(bare);
    let query: HashMap<&str, &str> = query.split('&').filter_map(|pair| pair.split_once('=')).collect();
    let parts: Vec<&str> = bare.trim_start_matches('/').split('/').collect();
    let what = match &parts[..] {
        ["containers", "json"] => "list",
        ["containers", _, "json"] => "inspect",
        ["containers", _, "logs"] => "logs",
        [what, ..] => what,
        [] => "",
    };
    let mut out = connection;
    let mut state = inner.state.lock();
    *state.requests.entry(what.into()).or_default() += 1;
    while state.mood == Mood::Hang && state.life == life {
        inner.changed.wait(&mut state);
    }
    if state.life != life {
        return Ok(());
    }
    let (mood, id) = (state.mood, parts.get(1).map_or("", |id| id).to_owned());
    let answer = match what {
        "_ping" => json!("OK"),
        "version" => {
            let name = if state.is_podman { "Podman Engine" } else { "Engine" };
            let api = state.api.unwrap_or(API);
            json!({ "ApiVersion": api, "MinAPIVersion": "1.12", "Components": [{ "Name": name }] })
        }
        "info" => json!({ "SystemTime": stamp(state.now_ns) }),
        "list" => state.containers.iter().map(|(id, container)| listed(id, container)).collect(),
        "inspect" if mood == Mood::NoInspect => return refuse(&mut out, 500, "cannot inspect"),
        "inspect" => match state.containers.get(&id) {
            Some(container) if !container.only_listed => {
                json!({ "Config": { "Tty": container.tty, "Env": state.inspected_env },
                                       "State": { "Running": container.running } })
            }
            _ => return refuse(&mut out, 404, "No such container"),
        },
        "events" if state.ends_events => return respond(&mut out, 200, &json!("")),
        "events" => {
            drop(state);
            return events(inner, life, &mut out);
        }
        "logs" if mood == Mood::NoLogs => return refuse(&mut out, 500, "cannot read the log"),
        "logs" if mood == Mood::Unreadable => {
            return refuse(&mut out, 501, "configured logging driver does not support reading");
        }
        "logs" if let Mood::ErrorAs(kind) = mood => {
            let body = json!({ "cause": "gone", "message": "no such thing", "response": 500 }).to_string();
            let len = body.len();
            return write!(
                out,
                "HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\nContent-Length: {len}\r\n\r\n{body}"
            );
        }
        "logs" if state.only_follows && query.get("follow") != Some(&"1") => {
            return refuse(&mut out, 404, "No such container");
        }
        "logs" if state.containers.get(&id).is_none_or(|container| container.only_listed) => {
            return refuse(&mut out, 404, "No such container");
        }
        "logs" => {
            if let Mood::CutAfter(_) = mood {
                state.mood = Mood::Well;
            }
            let cut = if let Mood::CutAfter(bytes) = mood { bytes } else { usize::MAX };
            drop(state);
            let since = query.get("since").map_or(0, |text| {
                let (seconds, fraction) = text.split_once('.').unwrap();
                assert_eq!(fraction.len(), 9, "since has all its digits");
                seconds.parse::<i64>().unwrap() * 1_000_000_000 + fraction.parse::<i64>().unwrap()
            });
            let follow = query.get("follow") == Some(&"1");
            let from_now = query.get("tail") == Some(&"0");
            return logs(inner, life, &mut out, &id, Wanted { since, follow, from_now, cut });
        }
        _ => return refuse(&mut out, 404, "page not found"),
    };
    drop(state);
    respond(&mut out, 200, &answer)
}

fn listed(id: &str, container: &Container) -> Value {
    let state = match container {
        Container { running: true, .. } => "running",
        Container { ran: true, .. } => "exited",
        _ => "created",
    };
    json!({ "Id": id, "Names": [format!("/{}", container.name)], "Image": "scripted",
            "Labels": container.labels, "State": state })
}

fn respond(out: &mut UnixStream, status: u16, body: &Value) -> std::io::Result<()> {
    let body = body.to_string();
    write!(out, "HTTP/1.1 {status} X\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}", body.len())
}

fn refuse(out: &mut UnixStream, status: u16, message: &str) -> std::io::Result<()> {
    respond(out, status, &json!({ "message": message }))
}

const HEAD: &[u8] = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";

fn chunk(out: &mut UnixStream, bytes: &[u8]) -> std::io::Result<()> {
    let framed = [format!("{:x}\r\n", bytes.len()).as_bytes(), bytes, b"\r\n"].concat();
    out.write_all(&framed)
}

fn events(inner: &Inner, life: u64, out: &mut UnixStream) -> std::io::Result<()> {
    out.write_all(HEAD)?;
    let mut told = inner.state.lock().events.len();
    loop {
        let mut state = inner.state.lock();
        while (state.events.len() == told || state.mood == Mood::Hang) && state.life == life {
            inner.changed.wait(&mut state);
        }
        if state.life != life {
            return Ok(());
        }
        let fresh: Vec<Value> = state.events[told..].to_vec();
        told = state.events.len();
        drop(state);
        for event in fresh {
            chunk(out, format!("{event}\n").as_bytes())?;
        }
    }
}

pub fn stamp(ns: i64) -> String {
    format!("{:.9}", jiff::Timestamp::from_nanosecond(ns.into()).unwrap())
}

/// What of a log.
struct Wanted {
    since: i64,
    follow: bool,
    /// Nothing that was written before.
    from_now: bool,
    /// The connection breaks after so many bytes.
    cut: usize,
}

fn logs(inner: &Inner, life: u64, out: &mut UnixStream, id: &str, wanted: Wanted) -> std::io::Result<()> {
    let Wanted { since, follow, from_now, mut cut } = wanted;
    let mut at = 0;
    if from_now {
        at = inner.state.lock().containers.get(id).map_or(0, |container| container.log.len());
    }
    if inner.state.lock().writes_on && !follow {
        let mut state = inner.state.lock();
        let log = &mut state.containers.get_mut(id).unwrap().log;
        let ns = log.last().map_or(1, |last| last.ns + 1);
        log.push(Message { stream: OUT, ns, text: b"and on\n".to_vec() });
    }
    let mut head = HEAD;
    if !inner.state.lock().answers_late {
        out.write_all(std::mem::take(&mut head))?;
    }
    loop {
        let mut state = inner.state.lock();
        let (container, upto, is_over) = loop {
            if state.life != life {
                return Ok(());
            }
            let there = state.containers.get(id);
            let Some(container) = there.or_else(|| state.removed.get(id)) else {
                return out.write_all(&[head, b"0\r\n\r\n"].concat());
            };
            let is_over = !follow || there.is_none() || !container.running && !state.leaves_logs_open;
            let upto = state.followers_get.filter(|_| follow).unwrap_or(usize::MAX).min(container.log.len());
            if upto > at || is_over {
                break (container.clone(), upto, is_over);
            }
            inner.changed.wait_for(&mut state, Duration::from_secs(5));
        };
        let left_out = if follow { state.left_out.clone() } else { 0..0 };
        let torn = !follow && state.torn;
        let (is_podman, whole_seconds) = (state.is_podman, state.whole_seconds);
        state.torn &= !torn;
        drop(state);
        for (number, message) in (at..upto).zip(&container.log[at..upto]) {
            let is_older = if is_podman { message.ns <= since } else { message.ns < since };
            if is_older || left_out.contains(&number) {
                continue;
            }
            let mut message = message.clone();
            if torn && number + 1 == upto {
                message.text.truncate(message.text.len() / 2);
                message.text.push(b'\n'); // Podman adds it to what it takes for a line
            }
            let shown_ns = if whole_seconds { message.ns - message.ns % 1_000_000_000 } else { message.ns };
            let mut bytes = format!("{} ", stamp(shown_ns)).into_bytes();
            bytes.extend(&message.text);
            if !container.tty {
                let len = (bytes.len() as u32).to_be_bytes();
                bytes = [&[message.stream, 0, 0, 0], &len[..], &bytes].concat();
            }
            out.write_all(std::mem::take(&mut head))?;
            if bytes.len() >= cut {
                return chunk(out, &bytes[..cut]);
            }
            cut -= bytes.len().min(cut);
            chunk(out, &bytes)?;
        }
        at = upto;
        if is_over {
            return out.write_all(&[head, b"0\r\n\r\n"].concat());
        }
    }
}
