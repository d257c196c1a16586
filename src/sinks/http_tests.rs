//! What [`HttpClient`] does with real sockets, and its tables.
#![expect(clippy::disallowed_methods, reason = "a server needs a thread")]

use std::io::Write;
use std::net::TcpListener;
use std::thread::JoinHandle;

use crossbeam_channel::bounded;

use super::*;
use crate::tasks::Switch;

/// Far beyond what any of these takes.
const LONG: Duration = Duration::from_secs(60);

pub(crate) fn context() -> (Switch, SinkContext) {
    SinkContext::alone(Clock::real())
}

pub(crate) fn options(url: String) -> HttpOptions {
    HttpOptions { url, auth: Auth::None, headers: Vec::new(), tls: TlsOptions::default() }
}

/// A server that reads one request whole, answers with `reply`, and gives back what it read.
pub(crate) fn serve(reply: Vec<u8>) -> (String, JoinHandle<Vec<u8>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let thread = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut read = Vec::new();
        while !is_whole(&read) {
            let mut buffer = [0; 4096];
            let amount = stream.read(&mut buffer).unwrap();
            assert!(amount > 0, "the request was cut: {}", String::from_utf8_lossy(&read));
            read.extend_from_slice(&buffer[..amount]);
        }
        let _ = stream.write_all(&reply); // the client may have read enough
        read
    });
    (url, thread)
}

/// The body of a request, by its `content-length`.
pub(crate) fn body_of(request: &[u8]) -> Option<&[u8]> {
    let end = request.windows(4).position(|four| four == b"\r\n\r\n")? + 4;
    let head = String::from_utf8_lossy(&request[..end]).to_lowercase();
    let length = head.split_once("content-length: ")?.1.split("\r\n").next()?.parse::<usize>().ok()?;
    request.get(end..end + length)
}

fn is_whole(request: &[u8]) -> bool {
    body_of(request).is_some()
}

fn client(options: &HttpOptions, cx: &SinkContext) -> HttpClient {
    HttpClient::new("loki", options, LONG, (1, 1 << 20), cx).unwrap()
}

fn post(client: &HttpClient) -> Result<HttpReply> {
    client.post("/push", "text/plain", &[], b"hello")
}

#[test]
fn a_status_means_what_section_7_says() {
    let (_switch, cx) = context();
    let client = client(&options("http://127.0.0.1:1".into()), &cx);
    let after = Some(Duration::from_secs(7));
    for status in [200, 201, 204, 299] {
        let reply = HttpReply { status, retry_after: None, body: String::new() };
        assert!(matches!(client.answer(&reply), Answer::Delivered), "{status}");
    }
    for status in [400, 413, 422] {
        let reply = HttpReply { status, retry_after: after, body: "bad".into() };
        match client.answer(&reply) {
            Answer::Refused { which: Guilty::Unknown, why } => assert!(why.ends_with(": bad"), "{why}"),
            other => panic!("{status}: {other:?}"),
        }
    }
    let page = "<!DOCTYPE html>\n<head><title>Oops</title></head><body>the plain HTTP request was sent to HTTPS port";
    for (status, ill) in [(400, true), (422, true), (413, false)] {
        let reply = HttpReply { status, retry_after: None, body: page.into() };
        match client.answer(&reply) {
            Answer::Retry { why, .. } if ill => assert!(why.to_string().ends_with(": Oops"), "{why}"),
            Answer::Refused { why, .. } if !ill => assert!(why.ends_with(": Oops"), "{why}"),
            other => panic!("{status}: {other:?}"),
        }
    }
    for status in [301, 302, 307, 308, 401, 403, 404, 405, 408, 409, 418, 429, 500, 502, 503, 504, 599] {
        let reply = HttpReply { status, retry_after: after, body: "ill".into() };
        match client.answer(&reply) {
            Answer::Retry { not_before, why } => {
                assert_eq!(not_before, after);
                assert!(why.to_string().contains(&format!("answered {status}")), "{why}");
            }
            other => panic!("{status}: {other:?}"),
        }
    }
}

#[test]
fn a_redirect_says_where_it_leads() {
    let answer =
        b"HTTP/1.1 301 Moved Permanently\r\nlocation: https://loki/push\r\ncontent-length: 2\r\n\r\nhi";
    let (url, server) = serve(answer.to_vec());
    let (_switch, cx) = context();
    let client = client(&options(url), &cx);
    match client.answer(&post(&client).unwrap()) {
        Answer::Retry { why, .. } => {
            assert!(
                why.to_string().ends_with("301 Moved Permanently: it is at https://loki/push now"),
                "{why}"
            );
        }
        other => panic!("{other:?}"),
    }
    server.join().unwrap();
}

#[test]
fn what_tls_says_comes_with_a_remedy() {
    for (says, remedy) in [
        ("invalid peer certificate: UnknownIssuer", "tls.ca_file"),
        ("invalid peer certificate: Other(OtherError(CaUsedAsEndEntity))", "CA:FALSE"),
        ("invalid peer certificate: Expired", "clock"),
        ("received corrupt message of type InvalidContentType", "http://"),
    ] {
        let told = with_remedy(says.into());
        assert!(told.starts_with(says) && told.contains(remedy), "{told}");
    }
    assert_eq!(with_remedy("connection refused".into()), "connection refused");
}

#[test]
fn retry_after_is_seconds_or_a_date() {
    // 2024-01-01 00:00:00 UTC.
    let wall_ns = 1_704_067_200_000_000_000;
    for (value, seconds) in [
        ("0", Some(0)),
        ("120", Some(120)),
        (" 3 ", Some(3)),
        ("Mon, 01 Jan 2024 00:00:30 GMT", Some(30)),
        ("Monday, 01-Jan-24 00:01:00 GMT", Some(60)),
        ("Sun, 31 Dec 2023 23:59:00 GMT", Some(0)),
        ("Wed, 01 Jan 2031 00:00:00 GMT", Some(3600)),
        ("18446744073709551615", Some(3600)),
        ("-1", None),
        ("1.5", None),
        ("soon", None),
        ("", None),
    ] {
        let got = retry_after_from(value, wall_ns).map(|wait| wait.as_secs());
        assert_eq!(got, seconds, "{value:?}");
    }
}

#[test]
fn a_request_carries_what_is_configured_and_an_answer_comes_back_whole() {
    let answer = b"HTTP/1.1 429 Too Many Requests\r\nretry-after: 9\r\ncontent-length: 4\r\n\r\nslow";
    let (url, server) = serve(answer.to_vec());
    let (_switch, cx) = context();
    let mut options = options(url);
    options.auth = Auth::Basic { user: "me".into(), password: "secret".into() };
    options.headers = vec![("X-Team".into(), "edge".into())];
    let reply = post(&client(&options, &cx)).unwrap();
    let want = HttpReply { status: 429, retry_after: Some(Duration::from_secs(9)), body: "slow".into() };
    assert_eq!(reply, want);
    let request = String::from_utf8(server.join().unwrap()).unwrap().to_lowercase();
    assert!(request.starts_with("post /push http/1.1\r\n"), "{request}");
    for line in [
        "content-type: text/plain",
        "x-team: edge",
        "content-length: 5",
        "authorization: basic bwu6c2vjcmv0",
        concat!("user-agent: log-capturer/", env!("CARGO_PKG_VERSION")),
    ] {
        assert!(request.contains(&format!("\r\n{line}\r\n")), "{line} in {request}");
    }
    assert!(!request.contains("accept-encoding"), "we could not read it: {request}");
    assert!(request.ends_with("\r\n\r\nhello"), "{request}");
}

#[test]
fn a_redirect_is_an_answer_and_is_not_followed() {
    let answer = b"HTTP/1.1 302 Found\r\nlocation: http://127.0.0.1:1/\r\ncontent-length: 0\r\n\r\n";
    let (url, server) = serve(answer.to_vec());
    let (_switch, cx) = context();
    assert_eq!(post(&client(&options(url), &cx)).unwrap().status, 302);
    server.join().unwrap();
}

#[test]
fn a_long_answer_is_cut() {
    let mut answer = b"HTTP/1.1 500 Oops\r\ncontent-length: 100000000\r\n\r\n".to_vec();
    answer.resize(10 * REPLY_MAX as usize, b'x');
    let (url, server) = serve(answer);
    let (_switch, cx) = context();
    let reply = post(&client(&options(url), &cx)).unwrap();
    assert_eq!((reply.status, reply.body.len() as u64), (500, REPLY_MAX));
    server.join().unwrap();
}

/// A server that takes the first bytes and then neither reads nor answers; `end` must end the wait.
fn check_ends(scheme: &str, body: &[u8], end: impl FnOnce(Switch, &HttpClient)) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("{scheme}://{}", listener.local_addr().unwrap());
    let (switch, cx) = context();
    let client = Arc::new(client(&options(url), &cx));
    let (done, ended) = bounded(1);
    let thread = std::thread::spawn({
        let (client, body) = (client.clone(), body.to_vec());
        move || done.send(client.post("/push", "text/plain", &[], &body)).unwrap()
    });
    let (mut stream, _) = listener.accept().unwrap();
    let mut first = [0; 1];
    stream.read_exact(&mut first).unwrap();
    assert_eq!(first[0], if scheme == "https" { 0x16 } else { b'P' }, "a handshake, or POST");
    end(switch, &client);
    let answer = ended.recv_timeout(LONG / 2).expect("the wait was ended");
    assert!(answer.is_err(), "{answer:?}");
    thread.join().unwrap();
}

#[test]
fn abort_and_cancel_each_end_a_request_in_flight() {
    let large = vec![0; 32 << 20]; // more than the kernel takes for a peer that does not read
    for (scheme, body) in [("http", &b"hello"[..]), ("http", &large), ("https", b"hello")] {
        check_ends(scheme, body, |mut switch, _| switch.abort());
        check_ends(scheme, body, |_switch, client| client.canceller()());
    }
}

#[test]
fn an_error_says_what_where_and_why_and_no_secret() {
    let (mut switch, cx) = context();
    let refusing = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap(); // closed again
    let client = client(&options(format!("http://me:secret@{refusing}/in/")), &cx);
    assert_eq!(client.base(), format!("http://{refusing}/in"));
    assert_eq!(client.headers[header::AUTHORIZATION], "Basic bWU6c2VjcmV0");
    let error = post(&client).unwrap_err().to_string();
    let want =
        format!("loki: could not send a batch of 5 B to http://{refusing}/in/push: connection refused");
    assert_eq!(error, want);
    switch.abort();
    assert!(post(&client).unwrap_err().to_string().ends_with(": the agent is stopping"));
}

#[test]
fn what_no_request_could_carry_is_refused_at_the_start_without_its_value() {
    let (_switch, cx) = context();
    let base = || options("http://me:secret@127.0.0.1:1".into());
    let header =
        |name: &str, value: &str| HttpOptions { headers: vec![(name.into(), value.into())], ..base() };
    let pem = |pem: &str| HttpOptions { tls: TlsOptions { ca_pem: Some(pem.into()) }, ..base() };
    for (options, want) in [
        (
            options("ftp://me:secret@host".into()),
            "loki: could not use the url: it must begin with http:// or https://",
        ),
        (options("http://me:secret@ho st".into()), "loki: could not use the url: it is not one"),
        (
            options("http://me:secret@h/?a=secret".into()),
            "loki: could not use the url: it may not have a query",
        ),
        (header("a b", "secret"), "loki: \"a b\" is not the name of a header"),
        (header("X-Key", "secret\n"), "loki: the value of the header X-Key has characters it must not have"),
        (header("Host", "secret"), "loki: the header Host cannot be set: every request has its own"),
        (pem("secret"), "loki: the CA file holds no certificate"),
    ] {
        let error = HttpClient::new("loki", &options, LONG, (1, 1 << 20), &cx).err().expect(want).to_string();
        assert_eq!(error, want);
    }
}

#[test]
fn sizes_and_escapes() {
    for (bytes, want) in
        [(0, "0 B"), (1023, "1023 B"), (1024, "1 KiB"), (831_000, "812 KiB"), (1_572_864, "1.5 MiB")]
    {
        assert_eq!(size_text(bytes), want);
    }
    for (text, want) in
        [("plain", "plain"), ("a%40b", "a@b"), ("100%", "100%"), ("%zz%", "%zz%"), ("%+1", "%+1")]
    {
        assert_eq!(percent_decoded(text), want);
    }
}
