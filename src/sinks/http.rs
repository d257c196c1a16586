//! What all sinks that speak HTTP share: the client, its secrets, and what a status means.
//!
//! One client (and one ureq agent with its pool) per sink, shared by the sink's connections. Called from sender
//! threads; a call ends by its time-outs, and at once when `abort` closes or [`HttpClient::canceller`] is run.
//!
//! Always true: a redirect is not followed, a proxy of the environment is not used, a reply is read to
//! [`REPLY_MAX`] and no further, and no secret (URL, `auth`, `headers`) comes into an error or a log.
//!
//! Not here: payloads and what a body says (the sinks), when to try again (`dispatcher/`).

use std::io::Read;
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use ureq::http::{HeaderMap, HeaderName, HeaderValue, Request, StatusCode, Uri, header};
use ureq::tls::{PemItem, RootCerts, TlsConfig, parse_pem};

use crate::clock::Clock;
use crate::error::{Context, Error, Result};
use crate::net;
use crate::sinks::{Answer, Auth, Guilty, HttpOptions, SinkContext, TlsOptions};

/// More than any error text that is of use; Elasticsearch's answers for a whole batch are the longest.
const REPLY_MAX: u64 = 64 * 1024;

/// Half of a batch holds the body of a full one, compressed, as a rule: then it goes out in one write. Per connection, and
/// only once there were such bodies; with TLS, from the beginning. `batch_bytes`: how much a batch has at most.
pub fn send_buffer_bytes(batch_bytes: usize) -> usize {
    (batch_bytes / 2).min(SEND_BUFFER_MOST)
}

pub const SEND_BUFFER_MOST: usize = 512 * 1024;

/// The head of a request must fit.
const SEND_BUFFER_LEAST: usize = 16 * 1024;

/// The head of an answer must fit.
const RECEIVE_BUFFER_BYTES: usize = 16 * 1024;

/// How much of an answer's text is repeated in our own.
const EXCERPT_CHARS: usize = 300;

/// A longer `Retry-After` is taken for this: what a wrong clock or a joker says must not silence a sink for days.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(3600);

/// Headers that belong to the transfer: with another value no request could succeed.
const OURS: [HeaderName; 3] = [header::CONTENT_LENGTH, header::TRANSFER_ENCODING, header::HOST];

/// Posts payloads to one server.
pub struct HttpClient {
    agent: ureq::Agent,
    /// Scheme, host, port and path, without credentials and without a `/` at the end.
    base: String,
    /// Of every request: `Authorization` and the configured ones.
    headers: HeaderMap,
    sink: String,
    timeout: Duration,
    clock: Clock,
}

/// What came back, whatever the status.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HttpReply {
    pub status: u16,
    /// How long the server asked to be left alone, from now.
    pub retry_after: Option<Duration>,
    /// At most [`REPLY_MAX`] bytes, invalid UTF-8 replaced. Of a redirect: where it leads.
    pub body: String,
}

impl HttpClient {
    /// `sink` begins every error. `timeout` is for each phase: look-up, connect with TLS, send, wait, receive.
    /// `connections`: how many threads will post at the same time, each at most `batch_bytes` at once, as a rule.
    ///
    /// Fails when the options hold what no request could carry: a header, a URL or a certificate.
    pub fn new(
        sink: &str,
        options: &HttpOptions,
        timeout: Duration,
        (connections, batch_bytes): (usize, usize),
        cx: &SinkContext,
    ) -> Result<HttpClient> {
        let target = Target::parse(&options.url).context(|| sink.to_owned())?;
        let config = ureq::Agent::config_builder()
            .proxy(None)
            .http_status_as_error(false)
            .max_redirects(0)
            .max_redirects_will_error(false)
            .user_agent(concat!("log-capturer/", env!("CARGO_PKG_VERSION")))
            .tls_config(tls(&options.tls).context(|| sink.to_owned())?)
            .input_buffer_size(RECEIVE_BUFFER_BYTES)
            .output_buffer_size(send_buffer_bytes(batch_bytes).max(SEND_BUFFER_LEAST))
            .max_response_header_size(RECEIVE_BUFFER_BYTES)
            .max_idle_connections(connections)
            .max_idle_connections_per_host(connections)
            // Phases only: a global time-out would bound a slow line, and ask for the resolver's hidden thread.
            .timeout_connect(Some(timeout))
            .timeout_send_request(Some(timeout))
            .timeout_send_body(Some(timeout))
            .timeout_recv_response(Some(timeout))
            .timeout_recv_body(Some(timeout))
            .build();
        let auth = if options.auth == Auth::None { &target.auth } else { &options.auth };
        Ok(HttpClient {
            agent: net::agent(config, cx.resolve.clone(), timeout, cx.stop.abort.clone(), cx.clock.clone()),
            headers: headers(auth, &options.headers).context(|| sink.to_owned())?,
            base: target.base,
            sink: sink.to_owned(),
            timeout,
            clock: cx.clock.clone(),
        })
    }

    /// Scheme, host, port and path; fit for logs.
    pub fn base(&self) -> &str {
        &self.base
    }

    /// Sends `body` to the base URL and `path`, and reads the answer. Every answer is an `Ok`, whatever its status;
    /// an error is a sentence like `loki: could not send a batch of 812 KiB to http://…/push: connection refused`.
    pub fn post(
        &self,
        path: &str,
        content_type: &'static str,
        extra_headers: &[(HeaderName, HeaderValue)],
        body: &[u8],
    ) -> Result<HttpReply> {
        let url = format!("{}{path}", self.base);
        self.exchange(&url, content_type, extra_headers, body).map_err(|cause| {
            let size = size_text(body.len());
            let why = self.why(&cause);
            Error::new(format!("{}: could not send a batch of {size} to {url}: {why}", self.sink))
        })
    }

    fn exchange(
        &self,
        url: &str,
        content_type: &'static str,
        extra_headers: &[(HeaderName, HeaderValue)],
        body: &[u8],
    ) -> std::result::Result<HttpReply, ureq::Error> {
        let mut request = Request::post(url).body(body)?;
        let headers = request.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
        headers.extend(extra_headers.iter().cloned());
        // Last: what is configured is meant.
        self.headers.iter().for_each(|(name, value)| drop(headers.insert(name, value.clone())));
        let mut response = self.agent.run(request)?;
        let retry_after = response.headers().get(header::RETRY_AFTER);
        let retry_after = retry_after
            .and_then(|value| value.to_str().ok())
            .and_then(|value| retry_after_from(value, self.clock.wall_ns()));
        let status = response.status();
        let moved = response.headers().get(header::LOCATION).filter(|_| status.is_redirection());
        let moved = moved.and_then(|to| to.to_str().ok()).map(|to| format!("it is at {to} now"));
        let mut bytes = Vec::new();
        response.body_mut().as_reader().take(REPLY_MAX).read_to_end(&mut bytes)?;
        let body = moved.unwrap_or_else(|| String::from_utf8_lossy(&bytes).into_owned());
        Ok(HttpReply { status: status.as_u16(), retry_after, body })
    }

    /// What a reply means if its body says nothing else: 400, 413 and 422 are the data's fault, all that is not
    /// 2xx besides is an illness of the sink, whoever caused it: a rotated password (401) or a wrong path (404)
    /// must not send a day to the dead letters. Nor must a web server in the sink's place (`http://` to its TLS
    /// port is a 400): 400 and 422 with a page for people do not come from an API.
    pub fn answer(&self, reply: &HttpReply) -> Answer {
        match reply.status {
            200..=299 => Answer::Delivered,
            413 => Answer::Refused { which: Guilty::Unknown, why: said(reply) },
            400 | 422 if !is_page(&reply.body) => {
                Answer::Refused { which: Guilty::Unknown, why: said(reply) }
            }
            _ => Answer::Retry {
                not_before: reply.retry_after,
                why: Error::new(format!("{}: {} answered {}", self.sink, self.base, said(reply))),
            },
        }
    }

    /// Ends what is in flight on all threads, for good.
    pub fn canceller(&self) -> impl Fn() + Send + Sync + 'static {
        let agent = self.agent.clone();
        move || agent.clone().shutdown()
    }

    fn why(&self, cause: &ureq::Error) -> String {
        match cause {
            // The kind reads better than "Connection refused (os error 111)".
            ureq::Error::Io(error) if error.raw_os_error().is_some() => match error.kind().to_string() {
                vague if vague.contains("error") => error.to_string(),
                clear => clear,
            },
            ureq::Error::Io(error) => with_remedy(error.to_string()),
            ureq::Error::Timeout(phase) => {
                format!("timed out after {:.1} s ({phase})", self.timeout.as_secs_f64())
            }
            other => with_remedy(other.to_string()),
        }
    }
}

/// What the TLS library says is a word of its own for most certificates that people make themselves.
fn with_remedy(mut says: String) -> String {
    const REMEDIES: [(&str, &str); 5] = [
        ("UnknownIssuer", "we do not trust the CA that issued it: name that CA's certificate in tls.ca_file"),
        (
            "CaUsedAsEndEntity",
            "it is the certificate of a CA: the server needs one of its own, with CA:FALSE",
        ),
        ("Expired", "its time is over, or the clock of this host is wrong"),
        ("NotValidYet", "its time has not begun, or the clock of this host is wrong"),
        ("InvalidContentType", "the other side does not speak TLS: is its url http://?"),
    ];
    if let Some((_, remedy)) = REMEDIES.iter().find(|(word, _)| says.contains(word)) {
        says.push_str(&format!(" ({remedy})"));
    }
    says
}

/// `503 Service Unavailable: no healthy ingester`.
fn said(reply: &HttpReply) -> String {
    let status = StatusCode::from_u16(reply.status).ok().and_then(|status| status.canonical_reason());
    let mut text = format!("{} {}", reply.status, status.unwrap_or("(unknown status)"));
    let body = match is_page(&reply.body) {
        true => title_of(&reply.body).unwrap_or("a page of HTML"),
        false => reply.body.trim(),
    };
    if !body.is_empty() {
        text.push_str(": ");
        text.extend(body.chars().take(EXCERPT_CHARS).map(|c| if c.is_control() { ' ' } else { c }));
        if body.chars().nth(EXCERPT_CHARS).is_some() {
            text.push('…');
        }
    }
    text
}

/// HTML: from a proxy on the way, or from a server that is not the sink.
fn is_page(body: &str) -> bool {
    let begins =
        |tag: &str| body.trim_start().get(..tag.len()).is_some_and(|is| is.eq_ignore_ascii_case(tag));
    begins("<html") || begins("<!doctype html")
}

fn title_of(page: &str) -> Option<&str> {
    let (_, rest) = page.split_once("<title>")?;
    rest.split_once("</title>").map(|(title, _)| title.trim()).filter(|title| !title.is_empty())
}

/// Seconds, or an HTTP date; RFC 9110, section 10.2.3. Nothing else is an answer.
fn retry_after_from(value: &str, wall_ns: i64) -> Option<Duration> {
    let value = value.trim();
    let wait = match value.parse::<u64>() {
        Ok(seconds) => Duration::from_secs(seconds),
        Err(_) => {
            let until = httpdate::parse_http_date(value).ok()?.duration_since(UNIX_EPOCH).ok()?;
            until.saturating_sub(Duration::from_nanos(u64::try_from(wall_ns).unwrap_or(0)))
        }
    };
    Some(wait.min(RETRY_AFTER_MAX))
}

fn size_text(bytes: usize) -> String {
    match bytes {
        0..1024 => format!("{bytes} B"),
        1024..1_048_576 => format!("{} KiB", bytes.div_ceil(1024)),
        _ => format!("{:.1} MiB", bytes as f64 / 1_048_576.0),
    }
}

/// Where to, taken apart so that the password stays out of everything that is printed.
struct Target {
    base: String,
    auth: Auth,
}

impl Target {
    fn parse(url: &str) -> Result<Target> {
        // The text is not repeated: it may hold a password.
        let bad = |why: &str| Error::new(format!("could not use the url: {why}"));
        let uri: Uri = url.parse().map_err(|_| bad("it is not one"))?;
        let scheme = uri.scheme_str().filter(|scheme| ["http", "https"].contains(scheme));
        let scheme = scheme.ok_or_else(|| bad("it must begin with http:// or https://"))?;
        let authority = uri.authority().ok_or_else(|| bad("it names no host"))?.as_str();
        if uri.query().is_some() {
            return Err(bad("it may not have a query"));
        }
        let (user, place) = authority.rsplit_once('@').map_or((None, authority), |(u, p)| (Some(u), p));
        let auth = user.map_or(Auth::None, |user| {
            let (user, password) = user.split_once(':').unwrap_or((user, ""));
            Auth::Basic { user: percent_decoded(user), password: percent_decoded(password) }
        });
        Ok(Target { base: format!("{scheme}://{place}{}", uri.path().trim_end_matches('/')), auth })
    }
}

/// A `%` that is not followed by two hexadecimal digits stands for itself.
fn percent_decoded(text: &str) -> String {
    let digit = |byte: Option<&u8>| byte.and_then(|byte| char::from(*byte).to_digit(16));
    let text = text.as_bytes();
    let (mut bytes, mut at) = (Vec::with_capacity(text.len()), 0);
    while at < text.len() {
        match (text[at], digit(text.get(at + 1)), digit(text.get(at + 2))) {
            (b'%', Some(high), Some(low)) => {
                bytes.push((16 * high + low) as u8);
                at += 3;
            }
            (byte, ..) => {
                bytes.push(byte);
                at += 1;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

fn headers(auth: &Auth, configured: &[(String, String)]) -> Result<HeaderMap> {
    let mut headers = HeaderMap::new();
    let authorization = match auth {
        Auth::None => None,
        Auth::Basic { user, password } => {
            Some(format!("Basic {}", STANDARD.encode(format!("{user}:{password}"))))
        }
        Auth::Bearer(token) => Some(format!("Bearer {token}")),
    };
    if let Some(value) = authorization {
        headers.insert(header::AUTHORIZATION, header_value("Authorization", &value)?);
    }
    for (name, value) in configured {
        let known = HeaderName::from_bytes(name.as_bytes());
        let known = known.map_err(|_| Error::new(format!("{name:?} is not the name of a header")))?;
        if OURS.contains(&known) {
            return Err(Error::new(format!("the header {name} cannot be set: every request has its own")));
        }
        headers.insert(known, header_value(name, value)?);
    }
    Ok(headers)
}

/// A header's value from the configuration. The error names the header, not the value.
pub fn header_value(name: &str, value: &str) -> Result<HeaderValue> {
    let value = HeaderValue::from_str(value);
    let mut value = value
        .map_err(|_| Error::new(format!("the value of the header {name} has characters it must not have")))?;
    value.set_sensitive(true);
    Ok(value)
}

fn tls(options: &TlsOptions) -> Result<TlsConfig> {
    let Some(pem) = &options.ca_pem else { return Ok(TlsConfig::default()) }; // the roots of Mozilla's program
    let mut trusted = Vec::new();
    for item in parse_pem(pem) {
        if let PemItem::Certificate(certificate) = item.context(|| "could not read the CA file".into())? {
            trusted.push(certificate);
        }
    }
    if trusted.is_empty() {
        return Err(Error::new("the CA file holds no certificate"));
    }
    Ok(TlsConfig::builder().root_certs(RootCerts::Specific(Arc::new(trusted))).build())
}

#[cfg(test)]
#[path = "http_tests.rs"]
pub(crate) mod tests;
