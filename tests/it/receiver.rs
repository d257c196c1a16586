//! A Loki that does what the test says: takes pushes on 127.0.0.1, keeps every entry in the order of arrival,
//! and has moods (dead, slow, lying, hanging) that the test changes while the agent runs.
//!
//! It is strict where Loki is: a push to the wrong path, with the wrong type or that does not decode is a
//! complaint, and a test with complaints fails when its receiver is dropped.
//!
//! Not here: what should have arrived (`expect.rs`).

#![expect(clippy::disallowed_methods, reason = "the other side of the network has threads of its own")]

use std::collections::{BTreeMap, HashSet, VecDeque};
use std::io::{BufRead, BufReader, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use crate::expect::Arrived;
use crate::push::{Entry, decode, refusal};
use parking_lot::{Condvar, Mutex};

/// How the next requests are answered.
#[derive(Clone)]
pub enum Mood {
    /// Stores and answers 204.
    Well,
    /// Stores nothing.
    Status { code: u16, headers: Vec<(&'static str, String)>, body: String },
    /// Reads the request and is silent until the mood changes; then answers in the new mood.
    Hang,
    /// Takes no new connection (the kernel still completes the handshake), and hangs on the old ones.
    HangInAccept,
    /// Reads the request, stores nothing, and ends the connection with a reset.
    Reset,
    /// Stores and answers 500: the answer that got lost.
    Lie,
    /// Stores and ends the connection with a reset: the same, by the network.
    Cut,
    /// Stores at once and answers so much later.
    Late(Duration),
    /// 400 for pushes that hold a guilty line. Either stores the others and names the guilty ones of the last
    /// stream, if it has some, as an ingester does; or stores nothing and names nobody, as the front door does.
    Refuse { guilty: fn(&str) -> bool, stores_the_rest: bool },
    /// 413 for a push that is larger when decompressed.
    TooLarge { limit: usize },
    /// Like `Well`, but reads the body at this pace.
    Slow { bytes_per_second: usize },
}

impl Mood {
    pub fn status(code: u16) -> Mood {
        Mood::Status { code, headers: Vec::new(), body: format!("this is a {code}\n") }
    }

    pub fn retry_after(code: u16, seconds: u32) -> Mood {
        let headers = vec![("Retry-After", seconds.to_string())];
        Mood::Status { code, headers, body: "too many of them\n".into() }
    }
}

pub struct Receiver {
    shared: Arc<Shared>,
    address: String,
    door: Option<JoinHandle<()>>,
}

struct Shared {
    state: Mutex<State>,
    /// The mood has changed, or we close.
    changed: Condvar,
}

struct State {
    steady: Mood,
    /// Used up first, one for each request.
    script: VecDeque<Mood>,
    /// Counts the changes of mood.
    changes: u64,
    closing: bool,
    keep: Keep,
    requests: u64,
    complaints: Vec<String>,
    connections: BTreeMap<u64, Connection>,
    accepted: u64,
}

struct Connection {
    /// A clone, to end it when the receiver is dropped. `None`: it has ended by itself.
    stream: Option<TcpStream>,
    thread: JoinHandle<()>,
}

enum Keep {
    All(Vec<Entry>),
    /// For runs that do not fit into memory: numbered lines, a bit each.
    Tally(Arrived),
    /// The test's own: each entry as often as it was stored.
    Told(Box<dyn FnMut(Entry) + Send>),
}

impl Receiver {
    /// Keeps every entry.
    pub fn start() -> Receiver {
        Receiver::open(Keep::All(Vec::new()))
    }

    /// Keeps one bit for every line of our own writers, see [`Receiver::take_tally`].
    pub fn start_tally() -> Receiver {
        Receiver::open(Keep::Tally(Arrived::default()))
    }

    /// Keeps nothing: tells `hear` of every entry that is stored, in order. `hear` must not ask the receiver.
    pub fn start_telling(hear: impl FnMut(Entry) + Send + 'static) -> Receiver {
        Receiver::open(Keep::Told(Box::new(hear)))
    }

    fn open(keep: Keep) -> Receiver {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a loopback port is free");
        let address = listener.local_addr().expect("a bound socket has an address").to_string();
        let state = State {
            steady: Mood::Well,
            script: VecDeque::new(),
            changes: 0,
            closing: false,
            keep,
            requests: 0,
            complaints: Vec::new(),
            connections: BTreeMap::new(),
            accepted: 0,
        };
        let shared = Arc::new(Shared { state: Mutex::new(state), changed: Condvar::new() });
        let door = std::thread::spawn({
            let shared = shared.clone();
            move || shared.accept(&listener)
        });
        Receiver { shared, address, door: Some(door) }
    }

    /// For the key `url`.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// From now on; releases whoever hangs.
    pub fn set(&self, mood: Mood) {
        self.play([], mood);
    }

    /// The next requests get these moods, one each; all that follow, the last.
    pub fn play(&self, script: impl IntoIterator<Item = Mood>, then: Mood) {
        let mut state = self.shared.state.lock();
        state.script = script.into_iter().collect();
        state.steady = then;
        state.changes += 1;
        self.shared.changed.notify_all();
    }

    /// Moods of the script that no request has met yet.
    pub fn script_left(&self) -> usize {
        self.shared.state.lock().script.len()
    }

    /// Requests of which the head has arrived.
    pub fn requests(&self) -> u64 {
        self.shared.state.lock().requests
    }

    /// Every entry as often as it was stored, in order of arrival.
    pub fn raw(&self) -> Vec<Entry> {
        match &self.shared.state.lock().keep {
            Keep::All(entries) => entries.clone(),
            Keep::Tally(_) | Keep::Told(_) => panic!("this receiver keeps no entries"),
        }
    }

    /// What a query would give: entries with equal labels, time and text are one.
    pub fn stored(&self) -> Vec<Entry> {
        let mut known = HashSet::new();
        let is_new = |entry: &Entry| {
            known.insert((entry.tenant.clone(), entry.labels.clone(), entry.time_ns, entry.line.clone()))
        };
        let mut entries = self.raw();
        let new: Vec<bool> = entries.iter().map(is_new).collect();
        let mut new = new.into_iter();
        entries.retain(|_| new.next() == Some(true));
        entries
    }

    /// How many entries were stored, doubles too.
    pub fn count(&self) -> u64 {
        match &self.shared.state.lock().keep {
            Keep::All(entries) => entries.len() as u64,
            Keep::Tally(arrived) => arrived.lines(),
            Keep::Told(_) => panic!("this receiver counts nothing"),
        }
    }

    /// The numbered lines of [`Receiver::stored`].
    pub fn arrived(&self) -> Arrived {
        Arrived::of(self.stored().iter().map(|entry| entry.line.as_bytes()))
    }

    /// What a receiver of [`Receiver::start_tally`] saw; it starts anew.
    pub fn take_tally(&self) -> Arrived {
        match &mut self.shared.state.lock().keep {
            Keep::Tally(arrived) => std::mem::take(arrived),
            Keep::All(_) | Keep::Told(_) => panic!("this receiver keeps no tally"),
        }
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        self.shared.state.lock().closing = true;
        self.shared.changed.notify_all();
        self.door.take().map(JoinHandle::join);
        let connections = std::mem::take(&mut self.shared.state.lock().connections);
        for (_, Connection { stream, thread }) in connections {
            if let Some(stream) = stream {
                let _ = stream.shutdown(Shutdown::Both); // the other side may have closed it already
            }
            let _ = thread.join(); // its panic is on stderr, and the test misses the entries
        }
        let complaints = std::mem::take(&mut self.shared.state.lock().complaints);
        if !std::thread::panicking() {
            assert!(complaints.is_empty(), "the receiver complains: {}", complaints.join("; "));
        }
    }
}

/// A request, as far as it is read before its body.
pub struct Head {
    pub method: String,
    pub path: String,
    /// Names in lower case.
    pub headers: BTreeMap<String, String>,
}

impl Head {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(String::as_str)
    }
}

struct Answer {
    code: u16,
    headers: Vec<(&'static str, String)>,
    text: String,
}

impl Answer {
    fn bytes(&self) -> Vec<u8> {
        let Answer { code, headers, text } = self;
        let mut answer = format!("HTTP/1.1 {code} Status\r\n");
        headers.iter().for_each(|(name, value)| answer.push_str(&format!("{name}: {value}\r\n")));
        if *code != 204 {
            answer.push_str(&format!("Content-Length: {}\r\n", text.len()));
        }
        format!("{answer}\r\n{text}").into_bytes()
    }
}

impl Shared {
    fn accept(self: &Arc<Shared>, listener: &TcpListener) {
        use rustix::event::{PollFd, PollFlags, Timespec, poll};
        let a_moment = Timespec { tv_sec: 0, tv_nsec: 10_000_000 };
        loop {
            let somebody = poll(&mut [PollFd::new(listener, PollFlags::IN)], Some(&a_moment))
                .is_ok_and(|ready| ready > 0);
            let mut state = self.state.lock();
            if state.closing {
                return;
            }
            if matches!(state.steady, Mood::HangInAccept) {
                self.changed.wait_for(&mut state, Duration::from_millis(10));
                continue;
            }
            if !somebody {
                continue;
            }
            let (stream, _) = listener.accept().expect("a connection can be accepted");
            let second = stream.try_clone().expect("a socket can be cloned");
            let shared = self.clone();
            state.connections.retain(|_, connection| !connection.thread.is_finished());
            state.accepted += 1;
            let id = state.accepted;
            let thread = std::thread::spawn(move || shared.serve(id, second));
            state.connections.insert(id, Connection { stream: Some(stream), thread });
        }
    }

    fn serve(&self, id: u64, stream: TcpStream) {
        self.talk(&stream);
        // The clone must go with it, or the connection would stay open until the receiver is dropped.
        if let Some(connection) = self.state.lock().connections.get_mut(&id) {
            connection.stream = None;
        }
    }

    /// One connection, kept alive until one side ends it.
    fn talk(&self, mut stream: &TcpStream) {
        let mut reader = BufReader::new(stream);
        while let Some(head) = read_head(&mut reader) {
            let (mood, changes) = self.next_mood();
            let Some(body) = self.read_body(&mut reader, &head, &mood) else { return };
            let Some(answer) = self.answer(&head, &body, mood, changes) else {
                // Lingering for no time turns the close into a reset.
                let _ = rustix::net::sockopt::set_socket_linger(stream, Some(Duration::ZERO));
                return;
            };
            let last = head.header("connection").is_some_and(|value| value.eq_ignore_ascii_case("close"));
            if stream.write_all(&answer.bytes()).is_err() || last {
                return;
            }
        }
    }

    /// And how often it had changed: a change while the body is read counts.
    fn next_mood(&self) -> (Mood, u64) {
        let mut state = self.state.lock();
        state.requests += 1;
        let mood = state.script.pop_front().unwrap_or_else(|| state.steady.clone());
        (mood, state.changes)
    }

    /// `None`: the other side gave up, or we close.
    fn read_body(&self, reader: &mut impl BufRead, head: &Head, mood: &Mood) -> Option<Vec<u8>> {
        if head.header("transfer-encoding").is_some_and(|value| value.eq_ignore_ascii_case("chunked")) {
            let mut body = Vec::new();
            loop {
                let size = usize::from_str_radix(read_line(reader)?.trim(), 16).ok()?;
                let at = body.len();
                body.resize(at + size, 0);
                reader.read_exact(&mut body[at..]).ok()?;
                read_line(reader)?;
                if size == 0 {
                    return Some(body);
                }
            }
        }
        let length: usize = head.header("content-length").unwrap_or("0").parse().ok()?;
        let mut body = vec![0; length];
        let piece = match mood {
            Mood::Slow { bytes_per_second } => (bytes_per_second / 20).max(1),
            _ => length.max(1),
        };
        for part in body.chunks_mut(piece) {
            reader.read_exact(part).ok()?;
            if matches!(mood, Mood::Slow { .. }) {
                let mut state = self.state.lock();
                if state.closing {
                    return None;
                }
                self.changed.wait_for(&mut state, Duration::from_millis(50));
            }
        }
        Some(body)
    }

    /// `None`: no answer but a reset.
    fn answer(&self, head: &Head, body: &[u8], mut mood: Mood, mut changes: u64) -> Option<Answer> {
        let entries = match decode(head, body) {
            Ok(entries) => entries,
            Err(complaint) => {
                self.state.lock().complaints.push(complaint.clone());
                return Some(Answer { code: 400, headers: Vec::new(), text: complaint });
            }
        };
        while matches!(mood, Mood::Hang | Mood::HangInAccept) {
            (mood, changes) = self.wait_for_another_mood(changes)?;
        }
        let plain = |code, text: String| Some(Answer { code, headers: Vec::new(), text });
        match mood {
            Mood::Well | Mood::Slow { .. } => {
                self.keep(entries);
                plain(204, String::new())
            }
            Mood::Status { code, headers, body } => Some(Answer { code, headers, text: body }),
            Mood::Reset => None,
            Mood::Lie => {
                self.keep(entries);
                plain(500, "the answer got lost\n".into())
            }
            Mood::Cut => {
                self.keep(entries);
                None
            }
            Mood::Late(by) => {
                self.keep(entries);
                let _ = self.changed.wait_while_for(&mut self.state.lock(), |state| !state.closing, by);
                plain(204, String::new())
            }
            Mood::Refuse { guilty, stores_the_rest } => {
                let last = entries.last().map(|entry| entry.labels.clone());
                let is_last = |entry: &Entry| last.as_ref() == Some(&entry.labels);
                let all = entries.iter().filter(|entry| is_last(entry)).count();
                let (mut bad, good): (Vec<_>, Vec<_>) =
                    entries.into_iter().partition(|entry| guilty(&entry.line));
                if !bad.is_empty() && !stores_the_rest {
                    return plain(400, "something in there is not to our liking\n".into());
                }
                self.keep(good);
                bad.retain(is_last);
                match bad.is_empty() {
                    true => plain(204, String::new()),
                    false => plain(400, refusal(&bad, all)),
                }
            }
            Mood::TooLarge { limit } => {
                let size = snap::raw::decompress_len(body).unwrap_or(body.len());
                if size > limit {
                    return plain(413, format!("the request is {size} bytes, the limit is {limit}\n"));
                }
                self.keep(entries);
                plain(204, String::new())
            }
            Mood::Hang | Mood::HangInAccept => unreachable!("the loop above waits them out"),
        }
    }

    /// `None`: we close.
    fn wait_for_another_mood(&self, before: u64) -> Option<(Mood, u64)> {
        let mut state = self.state.lock();
        while !state.closing && state.changes == before {
            self.changed.wait(&mut state);
        }
        (!state.closing).then(|| (state.steady.clone(), state.changes))
    }

    fn keep(&self, entries: Vec<Entry>) {
        match &mut self.state.lock().keep {
            Keep::All(kept) => kept.extend(entries),
            Keep::Tally(arrived) => entries.iter().for_each(|entry| arrived.line(entry.line.as_bytes())),
            Keep::Told(hear) => entries.into_iter().for_each(hear),
        }
    }
}

fn read_line(reader: &mut impl BufRead) -> Option<String> {
    let mut line = String::new();
    reader.read_line(&mut line).ok().filter(|bytes| *bytes > 0)?;
    Some(line.trim_end().to_owned())
}

/// `None`: the connection has ended.
fn read_head(reader: &mut impl BufRead) -> Option<Head> {
    let first = read_line(reader)?;
    let mut words = first.split(' ');
    let (method, path) = (words.next()?.to_owned(), words.next()?.to_owned());
    let mut headers = BTreeMap::new();
    loop {
        let line = read_line(reader)?;
        let Some((name, value)) = line.split_once(':') else { break };
        headers.insert(name.to_ascii_lowercase(), value.trim().to_owned());
    }
    Some(Head { method, path, headers })
}

/// The instrument is tested first: a plain client meets every mood.
#[test]
fn every_mood_does_what_it_says() {
    let receiver = Receiver::start();
    let push = |lines: &[&str]| -> Option<u16> {
        let mut stream = TcpStream::connect(&receiver.address).expect("it listens");
        let values: Vec<String> =
            lines.iter().map(|line| format!(r#"["1700000000000000000","{line}"]"#)).collect();
        let body = format!(r#"{{"streams":[{{"stream":{{"a":"b"}},"values":[{}]}}]}}"#, values.join(","));
        let head =
            "POST /loki/api/v1/push HTTP/1.1\r\nContent-Type: application/json\r\nX-Scope-OrgID: me\r\n";
        let request = format!("{head}Content-Length: {}\r\n\r\n{body}", body.len());
        stream.write_all(request.as_bytes()).expect("it reads");
        read_line(&mut BufReader::new(stream))?.split(' ').nth(1)?.parse().ok()
    };
    let check = |mood: Mood, lines: &[&str], code: Option<u16>, stored: &[&str]| {
        let before = receiver.raw().len();
        receiver.play([mood], Mood::Well);
        assert_eq!(push(lines), code, "{lines:?}");
        let new: Vec<String> = receiver.raw().drain(..).skip(before).map(|entry| entry.line).collect();
        assert_eq!(new, stored);
    };
    let guilty = |line: &str| line == "bad";
    check(Mood::Well, &["one", "one"], Some(204), &["one", "one"]);
    check(Mood::Lie, &["two"], Some(500), &["two"]);
    check(Mood::status(503), &["three"], Some(503), &[]);
    check(Mood::Reset, &["four"], None, &[]);
    check(Mood::Cut, &["four"], None, &["four"]);
    check(Mood::Late(Duration::from_millis(1)), &["ten"], Some(204), &["ten"]);
    check(Mood::Refuse { guilty, stores_the_rest: false }, &["bad", "five"], Some(400), &[]);
    check(Mood::Refuse { guilty, stores_the_rest: true }, &["bad", "six"], Some(400), &["six"]);
    check(Mood::Refuse { guilty, stores_the_rest: true }, &["seven"], Some(204), &["seven"]);
    check(Mood::TooLarge { limit: 10 }, &["eight"], Some(413), &[]);
    check(Mood::Slow { bytes_per_second: 2_000 }, &["nine"], Some(204), &["nine"]);
    assert_eq!(receiver.stored().len(), receiver.raw().len() - 1, "the repeat is seen as Loki sees it");
    assert_eq!(receiver.raw()[0].tenant.as_deref(), Some("me"));
    assert_eq!(receiver.requests(), 11);

    for mood in [Mood::Hang, Mood::HangInAccept] {
        let before = receiver.requests();
        receiver.set(mood.clone());
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| push(&["late"]));
            if matches!(mood, Mood::Hang) {
                crate::agent::until("it hangs", crate::agent::DEADLINE, String::new, || {
                    receiver.requests() > before
                });
            }
            assert!(!waiting.is_finished());
            receiver.set(Mood::Well);
            assert_eq!(waiting.join().expect("a client does not panic"), Some(204));
        });
    }
}
