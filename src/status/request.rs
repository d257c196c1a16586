//! The head of a request, from the bytes that have come so far. Pure.
//!
//! Only what the routes look at is kept. What follows the head (a body, a second request) is never looked at:
//! every answer says `Connection: close`.

use httparse::Status;

/// A head is at most this long. Browsers send some 2 KiB with all their cookies.
pub(super) const HEAD_MAX_BYTES: usize = 8 * 1024;

/// Browsers send about twenty.
const HEADERS_MAX: usize = 64;

/// A whole head.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Request<'a> {
    pub method: &'a str,
    /// Without the query.
    pub path: &'a str,
    /// The value of the first `Authorization` header.
    pub authorization: Option<&'a [u8]>,
}

/// Why there will never be a request in these bytes.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    /// It is not HTTP; says where it went wrong.
    Malformed(String),
    TooLarge,
}

/// `Ok(None)`: so far it may become a request.
pub(super) fn parse(bytes: &[u8]) -> Result<Option<Request<'_>>, Refusal> {
    let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
    let mut head = httparse::Request::new(&mut headers);
    match head.parse(bytes) {
        Ok(Status::Complete(_)) => {}
        Ok(Status::Partial) if bytes.len() < HEAD_MAX_BYTES => return Ok(None),
        Ok(Status::Partial) | Err(httparse::Error::TooManyHeaders) => return Err(Refusal::TooLarge),
        Err(cause) => return Err(Refusal::Malformed(cause.to_string())),
    }
    let (Some(method), Some(target)) = (head.method, head.path) else {
        return Err(Refusal::Malformed("no request line".into()));
    };
    if !target.starts_with('/') {
        return Err(Refusal::Malformed("the target is not a path".into()));
    }
    let path = target.split_once('?').map_or(target, |(path, _)| path);
    let authorization = head.headers.iter().find(|header| header.name.eq_ignore_ascii_case("authorization"));
    Ok(Some(Request { method, path, authorization: authorization.map(|header| header.value) }))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The bytes, and what `parse` makes of them: `GET /path [authorization]`, `...`, `too large` or `malformed`.
    fn check(bytes: impl AsRef<[u8]>, expected: &str) {
        let found = match parse(bytes.as_ref()) {
            Ok(None) => "...".into(),
            Err(Refusal::TooLarge) => "too large".into(),
            Err(Refusal::Malformed(_)) => "malformed".into(),
            Ok(Some(Request { method, path, authorization })) => {
                let words = authorization.map(|value| format!(" [{}]", String::from_utf8_lossy(value)));
                format!("{method} {path}{}", words.unwrap_or_default())
            }
        };
        assert_eq!(found, expected, "{:?}", String::from_utf8_lossy(bytes.as_ref()));
    }

    #[test]
    fn heads() {
        check("", "...");
        check("GET / HT", "...");
        check("GET / HTTP/1.1\r\nHost: a\r\n", "...");
        check("GET / HTTP/1.1\r\nHost: a\r\n\r\n", "GET /");
        check("GET /a?b=c HTTP/1.0\r\n\r\n", "GET /a");
        check("POST /a HTTP/1.1\r\nContent-Length: 3\r\n\r\nabc", "POST /a");
        check("GET / HTTP/1.1\r\naUTHORIZATION: Bearer x\r\n\r\n", "GET / [Bearer x]");
        check("GET / HTTP/1.1\r\n\r\n\0garbage", "GET /");
        check("\0garbage\r\n\r\nGET / HTTP/1.1\r\n\r\n", "malformed");
        check("\x16\x03\x01\x02", "malformed"); // the hello of a TLS client
        check("GET / HTTP/2.0\r\n\r\n", "malformed");
        check("GET http://elsewhere/ HTTP/1.1\r\n\r\n", "malformed");
        check("GET / HTTP/1.1\r\nno colon\r\n\r\n", "malformed");
    }

    #[test]
    fn limits() {
        let with_filler = |bytes: usize| {
            let head = "GET / HTTP/1.1\r\nFiller: ";
            format!("{head}{}", "x".repeat(bytes - head.len()))
        };
        check(with_filler(HEAD_MAX_BYTES - 1), "...");
        check(with_filler(HEAD_MAX_BYTES), "too large");
        check(with_filler(HEAD_MAX_BYTES - 4) + "\r\n\r\n", "GET /");
        check("\r\n".repeat(HEAD_MAX_BYTES / 2), "too large");
        let headers = |count| format!("GET / HTTP/1.1\r\n{}\r\n", "A: b\r\n".repeat(count));
        check(headers(HEADERS_MAX), "GET /");
        check(headers(HEADERS_MAX + 1), "too large");
    }
}
