//! The server over real sockets, in a thread that is spawned as the agent does it.
//!
//! The clock stands still unless a test moves it, so no deadline passes by accident; what blocks (reads of the
//! clients) has a time-out of its own, so that a server that says nothing is a failure and not a hang.

use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};

use super::server::{ANSWERING_MAX, PAUSE, RESTING};
use super::{Door, House, MAX_CLIENTS, NoReload, Server};
use crate::clock::Clock;
use crate::tasks::{self, Closer, Spec, Table, TaskView, closing};

const PATIENCE: Duration = Duration::from_secs(20);

/// Set in the process of a test that needs one of its own.
const IS_CHILD: &str = "LOG_CAPTURER_TEST_CHILD";

struct Fake {
    table: Arc<Table>,
    unready: Vec<String>,
    status: Value,
}

impl House for Fake {
    fn tasks(&self) -> Vec<TaskView> {
        self.table.view()
    }
    fn metrics(&self) -> String {
        "# HELP log_capturer_up Alive.\n# TYPE log_capturer_up gauge\nlog_capturer_up 1\n".into()
    }
    fn unready(&self) -> Vec<String> {
        self.unready.clone()
    }
    fn status(&self) -> Value {
        self.status.clone()
    }
    fn history(&self) -> Value {
        json!({ "columns": [] })
    }
    fn memory(&self) -> String {
        "budget: 1 of 2 bytes used\n".into()
    }
    fn sources(&self) -> Value {
        json!(["a source"])
    }
    fn sinks(&self) -> Value {
        json!(["a sink"])
    }
    fn ledger(&self) -> Value {
        json!({ "generations": 0 })
    }
    fn reload(&self) -> Result<(), NoReload> {
        match &self.status["reload"] {
            Value::Null => Ok(()),
            Value::String(why) => Err(NoReload::NotNow(why.clone())),
            wrong => Err(NoReload::Wrong(wrong.clone())),
        }
    }
}

/// What a test sees of the running server.
struct Site {
    address: SocketAddr,
    clock: Clock,
    table: Arc<Table>,
    closer: Closer,
}

#[derive(Default)]
struct Setup {
    token: Option<&'static str>,
    unready: &'static [&'static str],
    status: Value,
    door: Option<Door>,
}

/// Runs a server, then `test`, then sees that the thread ends as told, whatever clients are still there.
fn serve(setup: Setup, test: impl FnOnce(&Site) -> Vec<TcpStream>) {
    let clock = Clock::by_hand(0);
    let table = Arc::new(Table::new(clock.clone()));
    let server =
        Server::bind(([127, 0, 0, 1], 0).into(), setup.token.map(str::to_owned), setup.door.as_ref())
            .unwrap();
    let address = server.local_addr();
    let (closer, ended) = closing().unwrap();
    let unready = setup.unready.iter().map(|reason| (*reason).to_owned()).collect();
    let house = Arc::new(Fake { table: table.clone(), unready, status: setup.status });
    tasks::run(table.clone(), |tasks| {
        // Here, so that a test that panics drops it before the scope waits for the thread.
        let site = Site { address, clock, table: table.clone(), closer };
        tasks
            .spawn(Spec::keeper("status", Duration::from_secs(5)), move |task| server.run(house, task, ended))
            .unwrap();
        let hanging = test(&site);
        drop(site.closer);
        site.table.changed().recv_timeout(PATIENCE).expect("the server ends when it is told to");
        drop(hanging);
    })
    .unwrap();
    assert_eq!(table.fault(true), None);
}

fn connect(address: SocketAddr, send: impl AsRef<[u8]>) -> TcpStream {
    let mut stream = TcpStream::connect_timeout(&address, PATIENCE).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.set_write_timeout(Some(PATIENCE)).unwrap();
    stream.write_all(send.as_ref()).unwrap();
    stream
}

/// Everything until the server closes: the head, and the body after it.
fn read_answer(mut stream: TcpStream) -> (String, String) {
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).unwrap();
    let text = String::from_utf8(bytes).unwrap();
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no head in {text:?}"));
    assert!(head.contains("\r\nConnection: close"), "{head}");
    if head.contains("Content-Length: ") && !body.is_empty() {
        assert!(head.contains(&format!("\r\nContent-Length: {}", body.len())), "{head}");
    }
    (head.to_owned(), body.to_owned())
}

fn ask(address: SocketAddr, request: &str) -> (String, String) {
    read_answer(connect(address, request))
}

fn get(address: SocketAddr, path: &str) -> (String, String) {
    ask(address, &format!("GET {path} HTTP/1.1\r\nHost: here\r\n\r\n"))
}

fn is_healthy(address: SocketAddr) {
    let (head, body) = get(address, "/healthz");
    assert!(head.starts_with("HTTP/1.1 200 OK\r\n") && body == "ok\n", "{head}\n{body}");
}

/// Whether the server has closed or reset this connection (waits for it), given that nothing is to be read.
fn is_cut(mut stream: &TcpStream) -> bool {
    match stream.read(&mut [0]) {
        Ok(read) => read == 0,
        Err(cause) => cause.kind() == ErrorKind::ConnectionReset,
    }
}

/// Whether it stands there, with nothing to read.
fn is_open(mut stream: &TcpStream) -> bool {
    stream.set_nonblocking(true).unwrap();
    let read = stream.read(&mut [0]);
    stream.set_nonblocking(false).unwrap();
    matches!(read, Err(cause) if cause.kind() == ErrorKind::WouldBlock)
}

/// More than the kernel keeps for a [`slow_reader`] that reads nothing.
fn endless() -> Value {
    let limits = std::fs::read_to_string("/proc/sys/net/ipv4/tcp_wmem").unwrap();
    let largest: usize = limits.split_whitespace().last().unwrap().parse().unwrap();
    Value::String("x".repeat(largest + (1 << 20)))
}

/// A client with a small buffer that asks for the status and has seen that the answer begins.
fn slow_reader(site: &Site) -> TcpStream {
    let mut stream = connect(site.address, "");
    rustix::net::sockopt::set_socket_recv_buffer_size(&stream, 64 * 1024).unwrap();
    stream.write_all(b"GET /api/v1/status HTTP/1.1\r\n\r\n").unwrap();
    assert_eq!(stream.peek(&mut [0]).unwrap(), 1);
    stream
}

/// What is still to be read of an answer.
fn rest(mut stream: TcpStream) -> usize {
    let (mut sum, mut room) = (0, vec![0; 1 << 20]);
    loop {
        match stream.read(&mut room) {
            Ok(0) => return sum,
            Ok(read) => sum += read,
            Err(cause) if cause.kind() == ErrorKind::ConnectionReset => return sum,
            Err(cause) => panic!("after {sum} bytes: {cause}"),
        }
    }
}

#[test]
fn routes() {
    let status = json!({ "name": "agent" });
    serve(Setup { status, ..Setup::default() }, |site| {
        let check = |request: &str, code: &str, kind: &str, body: &str| {
            let (head, found) = ask(site.address, &format!("{request} HTTP/1.1\r\nHost: here\r\n\r\n"));
            assert!(head.starts_with(&format!("HTTP/1.1 {code} ")), "{request}: {head}");
            assert!(head.contains(&format!("\r\nContent-Type: {kind}")), "{request}: {head}");
            assert!(found.contains(body), "{request}: {found}");
        };
        check("GET /", "200", "text/plain", "\n/api/v1/sources ");
        check("GET /healthz", "200", "text/plain", "ok\n");
        check("GET /healthz?x=1", "200", "text/plain", "ok\n");
        check("GET /readyz", "200", "text/plain", "ready\n");
        check("GET /metrics", "200", "text/plain; version=0.0.4", "log_capturer_up 1\n");
        check("GET /metrics", "200", "text/plain; version=0.0.4", "\nlog_capturer_resident_bytes ");
        check("GET /api/v1/status", "200", "application/json", "{\n  \"name\": \"agent\"\n}\n");
        check("GET /api/v1/tasks", "200", "application/json", "\"name\": \"status\",\n");
        check("GET /api/v1/sources", "200", "application/json", "a source");
        check("GET /api/v1/sinks", "200", "application/json", "a sink");
        check("GET /api/v1/ledger", "200", "application/json", "\"generations\": 0");
        check("GET /debug/threads", "200", "text/plain", " foreign)\n");
        check("GET /debug/threads?debug=1", "200", "text/plain", "threads: ");
        check("GET /debug/memory", "200", "text/plain", "VmRSS:");
        check("GET /debug/memory", "200", "text/plain", " kB\n\nbudget: 1 of 2 bytes used\n");
        check("GET /api/v1/history", "200", "application/json", "\"columns\": []");
        check("GET /nowhere", "404", "text/plain", "\n/healthz ");
        check("GET /healthz/", "404", "text/plain", "no page /healthz/");
        check("POST /healthz", "405", "text/plain", "only GET");
        check("HEAD /healthz", "200", "text/plain", "");
        check("DELETE /api/v1/tasks", "405", "text/plain", "only GET");
        check("POST /api/v1/reload", "202", "application/json", "\"reload\": \"begins\"");
        check("GET /api/v1/reload", "405", "text/plain", "only POST");
        Vec::new()
    });
}

#[test]
fn a_reload_that_cannot_be_says_why() {
    for (reload, code, body) in [
        (json!("stopping"), "409", "stopping\n"),
        (json!({ "complaints": [] }), "400", "{\n  \"complaints\": []\n}\n"),
    ] {
        serve(Setup { status: json!({ "reload": reload }), ..Setup::default() }, |site| {
            let (head, found) = ask(site.address, "POST /api/v1/reload HTTP/1.1\r\n\r\n");
            assert!(head.starts_with(&format!("HTTP/1.1 {code} ")), "{head}");
            assert_eq!(found, body);
            Vec::new()
        });
    }
}

#[test]
fn the_next_server_behind_the_same_door_answers_those_who_have_waited() {
    let any = ([127, 0, 0, 1], 0).into();
    let first = Server::bind(any, None, None).unwrap();
    let (address, door) = (first.local_addr(), first.door().unwrap());
    drop(first);
    let waiting = connect(address, "GET /healthz HTTP/1.1\r\n\r\n");
    serve(Setup { door: Some(door), ..Setup::default() }, |site| {
        assert_eq!(site.address, address);
        assert_eq!(read_answer(waiting).1, "ok\n");
        Vec::new()
    });
    let first = Server::bind(any, None, None).unwrap();
    let other = Server::bind(([127, 0, 0, 2], 0).into(), None, Some(&first.door().unwrap())).unwrap();
    assert_ne!(other.local_addr().ip(), first.local_addr().ip(), "another address is another door");
}

#[test]
fn not_ready_says_why_one_reason_a_line() {
    let unready = &["files: silent for 9 s", "a name\nin two lines"];
    serve(Setup { unready, ..Setup::default() }, |site| {
        let (head, body) = get(site.address, "/readyz");
        assert!(head.starts_with("HTTP/1.1 503 "), "{head}");
        assert_eq!(body, "files: silent for 9 s\na name?in two lines\n");
        is_healthy(site.address);
        Vec::new()
    });
}

#[test]
fn the_thread_of_the_server_knows_what_it_does() {
    serve(Setup::default(), |site| {
        let (_, page) = get(site.address, "/debug/threads");
        let row = site.table.view().remove(0);
        let line = page.lines().find(|line| line.trim_start().starts_with(&format!("{} ", row.tid)));
        let words: Vec<&str> = line.expect("the server's own thread").split_whitespace().collect();
        assert_eq!(words[1..4], ["status", "status", "running"], "{page}");
        assert_eq!(words.last(), Some(&"answering"), "{page}");
        Vec::new()
    });
}

#[test]
fn tokens() {
    serve(Setup { token: Some("secret"), ..Setup::default() }, |site| {
        let check = |path: &str, authorization: &str, code: &str| {
            let (head, _) = ask(site.address, &format!("GET {path} HTTP/1.1\r\n{authorization}\r\n"));
            assert!(head.starts_with(&format!("HTTP/1.1 {code} ")), "{path} {authorization:?}: {head}");
            assert_eq!(head.contains("\r\nWWW-Authenticate: Bearer"), code == "401", "{head}");
        };
        check("/healthz", "", "200");
        check("/healthz", "Authorization: Bearer wrong\r\n", "200");
        check("/readyz", "", "401");
        check("/metrics", "Authorization: Bearer secret\r\n", "200");
        check("/metrics", "authorization: bearer secret\r\n", "200");
        check("/metrics", "Authorization: Bearer Secret\r\n", "401");
        check("/metrics", "Authorization: Bearer secre\r\n", "401");
        check("/metrics", "Authorization: Bearer secrets\r\n", "401");
        check("/metrics", "Authorization: Bearer\r\n", "401");
        check("/metrics", "Authorization: Basic secret\r\n", "401");
        check("/metrics", "Authorization: secret\r\n", "401");
        check("/metrics", "Authorization: \u{fc}\u{fc}\u{fc}\u{fc}\r\n", "401");
        check("/nowhere", "", "401");
        check("/api/v1/reload", "", "401");
        check("/nowhere", "Authorization: Bearer secret\r\n", "404");
        Vec::new()
    });
}

#[test]
fn what_is_no_request_gets_an_answer_and_the_next_client_too() {
    serve(Setup::default(), |site| {
        let check = |bytes: &[u8], code: &str| {
            let (head, _) = read_answer(connect(site.address, bytes));
            assert!(head.starts_with(&format!("HTTP/1.1 {code} ")), "{head}");
            is_healthy(site.address);
        };
        check(b"\x16\x03\x01\x00\xff", "400");
        check(b"garbage\r\n\r\nGET /healthz HTTP/1.1\r\n\r\n", "400");
        check(b"GET /healthz HTTP/1.1\r\n\r\n\0\0garbage\r\n\r\n", "200");
        check(b"GET /healthz HTTP/1.1\r\n\r\nGET / HTTP/1.1\r\n\r\n", "200");
        check(&[b"GET / HTTP/1.1\r\nFiller: ".as_slice(), &[b'x'; 100_000]].concat(), "431");
        check(&[b"POST /api/v1/reload HTTP/1.1\r\n\r\n".as_slice(), &[b'x'; 100_000]].concat(), "202");
        check(&[b"GET / HTTP/1.1\r\n".as_slice(), &b"A: b\r\n".repeat(100)].concat(), "431");
        Vec::new()
    });
}

#[test]
fn a_request_may_come_in_pieces() {
    serve(Setup::default(), |site| {
        let mut pieces = connect(site.address, "GET /hea");
        is_healthy(site.address);
        pieces.write_all(b"lthz HTTP/1.1\r\n").unwrap();
        is_healthy(site.address);
        pieces.write_all(b"\r\n").unwrap();
        assert_eq!(read_answer(pieces).1, "ok\n");
        Vec::new()
    });
}

#[test]
fn idle_clients_do_not_lock_out_healthz() {
    serve(Setup::default(), |site| {
        let idle: Vec<TcpStream> = (0..MAX_CLIENTS + 50)
            .map(|at| connect(site.address, if at % 2 == 0 { "" } else { "GET /healthz HTTP" }))
            .collect();
        is_healthy(site.address);
        // One more than there are clients too many, for the healthy one.
        assert!(idle[..51].iter().all(is_cut), "the oldest have made room");
        assert!(idle[51..].iter().all(is_open), "and nobody else");
        idle
    });
}

#[test]
fn a_client_that_speaks_half_has_five_seconds() {
    serve(Setup::default(), |site| {
        let half = connect(site.address, "GET /healthz HTTP/1.1\r\n");
        is_healthy(site.address);
        site.clock.advance(Duration::from_millis(4_999));
        is_healthy(site.address);
        assert!(is_open(&half));
        site.clock.advance(Duration::from_millis(1));
        is_healthy(site.address);
        assert!(is_cut(&half));
        Vec::new()
    });
}

#[test]
fn a_client_that_reads_nothing_blocks_nobody_and_has_five_seconds() {
    let status = endless();
    let whole = status.to_string().len();
    serve(Setup { status, ..Setup::default() }, |site| {
        let (first, second) = (slow_reader(site), slow_reader(site));
        is_healthy(site.address);
        site.clock.advance(Duration::from_millis(4_999));
        is_healthy(site.address);
        assert!(rest(first) > whole, "who begins to read gets the head and the whole body");
        site.clock.advance(Duration::from_millis(1));
        is_healthy(site.address);
        assert!(rest(second) < whole);
        Vec::new()
    });
}

#[test]
fn only_a_few_may_read_slowly() {
    let status = endless();
    let whole = status.to_string().len();
    serve(Setup { status, ..Setup::default() }, |site| {
        let mut slow: Vec<TcpStream> = (0..=ANSWERING_MAX).map(|_| slow_reader(site)).collect();
        is_healthy(site.address);
        assert!(rest(slow.remove(0)) < whole, "the first had to go");
        assert!(rest(slow.remove(0)) > whole, "the second may stay");
        slow
    });
}

#[test]
fn it_ends_when_told_whatever_the_clients_do() {
    serve(Setup { status: endless(), ..Setup::default() }, |site| {
        let clients = vec![
            connect(site.address, ""),
            connect(site.address, "GET /"),
            connect(site.address, "GET /healthz HTTP/1.1\r\n\r\n"), // answered, and does not leave
            slow_reader(site),
        ];
        is_healthy(site.address);
        clients
    });
}

#[test]
fn an_address_that_cannot_be_had_is_a_sentence_with_a_remedy() {
    let taken = Server::bind(([127, 0, 0, 1], 0).into(), None, None).unwrap();
    let check = |address: SocketAddr, token: Option<&str>, why: &str, remedy: &str| {
        let error =
            Server::bind(address, token.map(str::to_owned), None).err().expect("is refused").to_string();
        assert!(error.starts_with(&format!("status: could not listen on {address}: ")), "{error}");
        assert!(error.contains(why) && error.contains(remedy), "{error}");
    };
    check(taken.local_addr(), None, "in use", "set status.listen to a free address");
    check(([192, 0, 2, 1], 0).into(), Some("secret"), "Cannot assign", "or to null");
    check(([0, 0, 0, 0], 0).into(), None, "could read it", "set status.token");
    check(([127, 0, 0, 1], 0).into(), Some(""), "token is empty", "remove it");
}

/// A limit holds for a process, so the server without descriptors runs in one of its own: the test below, which
/// says where it listens and ends when its input does.
#[test]
fn running_out_of_descriptors_does_not_end_it() {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "status::tests::server_with_few_descriptors", "--ignored", "--nocapture"])
        .env(IS_CHILD, "yes")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map(Result::unwrap);
    let address = lines.find_map(|line| Some(line.split_once("listens on ")?.1.to_owned()));
    let address = address.expect("the child says where it listens").parse().unwrap();

    let idle: Vec<TcpStream> = (0..60).map(|_| connect(address, "")).collect();
    is_healthy(address);
    assert!(is_cut(&idle[0]) && is_open(&idle[59]), "the oldest have made room");
    drop(idle);

    // Now nobody can be sent away: it rests, and goes on when there are descriptors again.
    let mut commands = child.stdin.take().unwrap();
    writeln!(commands, "take all").unwrap();
    lines.find(|line| line.contains("taken")).expect("the child takes all descriptors");
    let waiting = connect(address, "GET /healthz HTTP/1.1\r\n\r\n");
    writeln!(commands, "give back").unwrap();
    assert_eq!(read_answer(waiting).1, "ok\n");
    is_healthy(address);
    drop(commands);
    assert!(child.wait().unwrap().success());
}

#[test]
#[ignore = "the other process of running_out_of_descriptors_does_not_end_it"]
fn server_with_few_descriptors() {
    use rustix::process::{Resource, getrlimit, setrlimit};
    if std::env::var_os(IS_CHILD).is_none() {
        return; // somebody runs the ignored tests: not with this limit in the process of all the others
    }
    // `None` while there is no descriptor left to look with.
    let open_count = || std::fs::read_dir("/proc/self/fd").ok().map(Iterator::count);
    serve(Setup::default(), |site| {
        let base = open_count();
        let mut limit = getrlimit(Resource::Nofile);
        limit.current = base.map(|count| count as u64 + 10);
        setrlimit(Resource::Nofile, limit).unwrap();
        println!("listens on {}", site.address);
        let mut taken = Vec::new();
        for line in std::io::stdin().lines() {
            if line.unwrap() == "take all" {
                until("all clients are gone", || open_count() == base);
                taken.extend(std::iter::from_fn(|| std::fs::File::open("/dev/null").ok()));
                println!("taken");
            } else {
                until("the server rests", || site.table.view()[0].doing == RESTING);
                taken.clear();
                site.clock.advance(PAUSE);
            }
        }
        Vec::new()
    });
}

fn until(fact: &str, is_so: impl Fn() -> bool) {
    let patience = crossbeam_channel::after(PATIENCE);
    while !is_so() {
        assert!(patience.is_empty(), "not in time: {fact}");
        let _ = crossbeam_channel::after(Duration::from_millis(5)).recv(); // a timer: it always comes
    }
}
