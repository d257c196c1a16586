//! Loki: records into pushes (`encode.rs`), pushes to the server, and what it says about them (`answer.rs`).
//!
//! The API: <https://grafana.com/docs/loki/latest/reference/loki-http-api/#ingest-logs>.
//!
//! A push that repeats stored entries (equal labels, time and text) adds nothing, so a batch whose answer was lost
//! is simply sent again, and the good half of a batch that was split does no harm.
//!
//! Known limit, and Loki's: for a push of several streams its ingester reports only what happened to the last of
//! them. So a push that it refuses is sent again stream by stream, and each is judged; but if all is well with the last
//! one, entries of another stream that it finds too far behind go without a word.

mod answer;
mod encode;
mod labels;
mod wire;

use std::sync::Arc;

pub use encode::{LokiEncoder, LokiPayload};
use ureq::http::{HeaderName, HeaderValue};

use crate::clock::Clock;
use crate::error::{Context, Error};
use crate::sinks::http::{HttpClient, HttpReply, header_value};
use crate::sinks::{
    Answer, Connection, Link, LokiEncoding, LokiOptions, OpenResult, OpenSink, Sender, SinkContext,
    SinkOptions,
};

/// Added to the URL unless it ends with it already.
const PUSH_PATH: &str = "/loki/api/v1/push";

const TENANT_HEADER: HeaderName = HeaderName::from_static("x-scope-orgid");

/// 2024-01-01, before this program was written: a clock that shows less was never set.
const CLOCK_UNSET_NS: i64 = 1_704_067_200_000_000_000;

/// Makes the sink's connections; touches no network. Fails when the options hold what no request could carry.
pub fn open(options: &SinkOptions, loki: &LokiOptions, cx: &SinkContext) -> OpenResult {
    let name = &*options.name;
    let client = Arc::new(HttpClient::new(name, &loki.http, options.timeout, options.connections, cx)?);
    let mut headers = Vec::new();
    if let Some(tenant) = &loki.tenant {
        headers.push((TENANT_HEADER, header_value("X-Scope-OrgID", tenant).context(|| name.to_owned())?));
    }
    let connection = || {
        let sender = LokiSender {
            name: name.to_owned(),
            client: client.clone(),
            path: if client.base().ends_with(PUSH_PATH) { "" } else { PUSH_PATH },
            content_type: match loki.encoding {
                LokiEncoding::Protobuf => "application/x-protobuf",
                LokiEncoding::Json => "application/json",
            },
            headers: headers.clone(),
            clock: cx.clock.clone(),
        };
        let encoder = LokiEncoder::new(name, &options.labels, loki, &cx.metrics);
        Box::new(Link::new(encoder, sender)) as Box<dyn Connection>
    };
    Ok(OpenSink {
        connections: (0..options.connections).map(|_| connection()).collect(),
        cancel: Box::new(client.canceller()),
        describe: format!("loki at {}", client.base()),
        recovered: Vec::new(),
    })
}

struct LokiSender {
    name: String,
    client: Arc<HttpClient>,
    path: &'static str,
    content_type: &'static str,
    headers: Vec<(HeaderName, HeaderValue)>,
    clock: Clock,
}

impl Sender<LokiPayload> for LokiSender {
    fn send(&mut self, payload: &LokiPayload) -> Answer {
        match self.client.post(self.path, self.content_type, &self.headers, payload.body()) {
            Ok(reply) => self.read(&reply, payload),
            Err(why) => Answer::Retry { not_before: None, why },
        }
    }
}

impl LokiSender {
    fn read(&self, reply: &HttpReply, payload: &LokiPayload) -> Answer {
        match self.client.answer(reply) {
            Answer::Refused { why, .. } if self.clock_is_to_blame(reply) => Answer::Retry {
                not_before: None,
                why: Error::new(format!(
                    "{}: the time of the lines is refused, and the clock of this host is not set: {why}",
                    self.name
                )),
            },
            Answer::Refused { why, .. } if reply.status == 400 => {
                Answer::Refused { which: answer::guilty(&reply.body, payload), why }
            }
            answer => answer,
        }
    }

    /// Lines from a box that has not learnt the time yet are not bad data.
    fn clock_is_to_blame(&self, reply: &HttpReply) -> bool {
        reply.status == 400 && self.clock.wall_ns() < CLOCK_UNSET_NS && answer::is_about_time(&reply.body)
    }
}

#[cfg(test)]
mod tests;
