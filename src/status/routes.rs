//! From a request to the bytes of its answer. Pure but for what the house and `/proc` say.
//!
//! [`PAGES`] is the whole outside: the list at `/` and the answer to an unknown path are made from it. Every
//! answer has its length and says `Connection: close`. A query is accepted everywhere and means nothing yet.

use std::io::Cursor;

use serde::Serialize;
use serde_json::json;
use tiny_http::{HTTPVersion, Header, Response};

use super::process;
use super::request::{Refusal, Request};
use super::{House, NoReload};
use crate::error::Result;

type Answer = Response<Cursor<Vec<u8>>>;

struct Page {
    path: &'static str,
    about: &'static str,
    answer: fn(&dyn House) -> Answer,
}

const PAGES: [Page; 12] = [
    Page { path: "/", about: "this list", answer: |_| text(200, index()) },
    Page { path: HEALTH, about: "200 while the process lives", answer: |_| text(200, "ok\n") },
    Page { path: "/readyz", about: "200, or 503 and the reasons, one a line", answer: ready },
    Page { path: "/metrics", about: "all counters, for Prometheus", answer: metrics },
    Page { path: "/api/v1/status", about: "the agent as a whole", answer: |house| json(&house.status()) },
    Page {
        path: "/api/v1/history",
        about: "the last fifteen minutes",
        answer: |house| json(&house.history()),
    },
    Page { path: "/api/v1/tasks", about: "the threads of the house", answer: |house| json(&house.tasks()) },
    Page { path: "/api/v1/sources", about: "where lines come from", answer: |house| json(&house.sources()) },
    Page { path: "/api/v1/sinks", about: "where lines go", answer: |house| json(&house.sinks()) },
    Page { path: "/api/v1/ledger", about: "the positions", answer: |house| json(&house.ledger()) },
    Page {
        path: "/debug/threads",
        about: "every thread of the process",
        answer: |house| fallible(process::thread_page(&house.tasks())),
    },
    Page {
        path: "/debug/memory",
        about: "the memory of the process, and who holds it",
        answer: |house| fallible(process::memory_page(&house.memory())),
    },
];

/// Open without a token: whoever restarts us must be able to ask, and learns nothing else.
const HEALTH: &str = "/healthz";

const RELOAD: &str = "/api/v1/reload";

/// Never fails: whatever is wrong becomes an answer.
pub(super) fn answer(
    heard: std::result::Result<Request<'_>, Refusal>,
    house: &dyn House,
    token: Option<&str>,
) -> Vec<u8> {
    match heard {
        Ok(request) => print(page(&request, house, token), request.method == "HEAD"),
        Err(Refusal::Malformed(why)) => {
            print(text(400, format!("this is not an HTTP request: {why}\n")), false)
        }
        Err(Refusal::TooLarge) => print(text(431, "the head of the request is too large\n"), false),
    }
}

fn page(request: &Request<'_>, house: &dyn House, token: Option<&str>) -> Answer {
    if let Some(token) = token
        && request.path != HEALTH
        && !is_allowed(request.authorization, token)
    {
        let why = "this page needs the header `Authorization: Bearer <token>` with the token of the configuration \
                   (status.token)\n";
        return text(401, why).with_header(header("WWW-Authenticate", "Bearer"));
    }
    if request.path == RELOAD {
        return match request.method {
            "POST" => reload(house),
            _ => text(405, "only POST works here\n").with_header(header("Allow", "POST")),
        };
    }
    let Some(page) = PAGES.iter().find(|page| page.path == request.path) else {
        return text(404, format!("there is no page {}; these are:\n\n{}", request.path, index()));
    };
    match request.method {
        "GET" | "HEAD" => (page.answer)(house),
        _ => text(405, "only GET works here\n").with_header(header("Allow", "GET, HEAD")),
    }
}

/// RFC 6750, section 2.1: `Authorization: Bearer <token>`; the scheme's case does not matter (RFC 9110, 11.1).
fn is_allowed(authorization: Option<&[u8]>, token: &str) -> bool {
    let Some((scheme, given)) = authorization.and_then(|value| value.split_at_checked("Bearer ".len()))
    else {
        return false;
    };
    scheme.eq_ignore_ascii_case(b"Bearer ") && is_same(given, token.as_bytes())
}

/// Takes as long for a wrong first byte as for a wrong last one, so that a token cannot be guessed byte by byte.
/// Its length is no secret.
fn is_same(given: &[u8], expected: &[u8]) -> bool {
    let differences = given.iter().zip(expected).fold(0, |sum, (a, b)| std::hint::black_box(sum | (a ^ b)));
    given.len() == expected.len() && differences == 0
}

fn ready(house: &dyn House) -> Answer {
    let reasons = house.unready();
    if reasons.is_empty() {
        return text(200, "ready\n");
    }
    text(503, reasons.iter().map(|reason| process::one_line(reason) + "\n").collect::<String>())
}

/// 202, since the stop is still to come. The answer leaves before it does: this thread ends last of all.
fn reload(house: &dyn House) -> Answer {
    match house.reload() {
        Ok(()) => json(&json!({ "reload": "begins" })).with_status_code(202),
        Err(NoReload::Wrong(why)) => json(&why).with_status_code(400),
        Err(NoReload::NotNow(why)) => text(409, why + "\n"),
    }
}

fn metrics(house: &dyn House) -> Answer {
    let all = house.metrics() + &process::metrics(&house.tasks());
    text(200, all).with_header(header("Content-Type", "text/plain; version=0.0.4; charset=utf-8"))
}

fn index() -> String {
    let line = |path: &str, about: &str| format!("{path:<20}  {about}\n");
    let pages: String = PAGES.iter().map(|page| line(page.path, page.about)).collect();
    let about = "read the configuration and start anew with it; if it is wrong, 400 and why";
    let reload = line(&format!("POST {RELOAD}"), about);
    format!("log-capturer {}\n\n{pages}{reload}", env!("CARGO_PKG_VERSION"))
}

fn text(status: u16, body: impl Into<String>) -> Answer {
    Response::from_string(body).with_status_code(status)
}

fn json(value: &impl Serialize) -> Answer {
    match serde_json::to_string_pretty(value) {
        Ok(body) => text(200, body + "\n").with_header(header("Content-Type", "application/json")),
        Err(cause) => text(500, format!("could not write this as JSON: {cause}\n")),
    }
}

fn fallible(page: Result<String>) -> Answer {
    match page {
        Ok(page) => text(200, page),
        Err(cause) => text(500, format!("{cause}\n")),
    }
}

fn header(field: &'static str, value: &'static str) -> Header {
    Header::from_bytes(field, value).unwrap_or_else(|()| panic!("{field}: {value} is not ASCII"))
}

/// `head_only`: an answer to HEAD has no body, whatever it says.
fn print(answer: Answer, head_only: bool) -> Vec<u8> {
    let mut bytes = Vec::new();
    answer
        .with_header(header("Server", "log-capturer"))
        .with_chunked_threshold(usize::MAX) // the length is known: no chunks
        .raw_print(&mut bytes, HTTPVersion(1, 1), &[], head_only, None)
        .expect("a vector takes everything");
    // tiny_http keeps this header for its own server, which would add it now.
    let status_line = memchr::memchr(b'\n', &bytes).map_or(0, |at| at + 1);
    bytes.splice(status_line..status_line, *b"Connection: close\r\n");
    bytes
}
