//! Loki: records into pushes (`encode.rs`), pushes to the server, and what it says about them (`answer.rs`).
//!
//! The API: <https://grafana.com/docs/loki/latest/reference/loki-http-api/#ingest-logs>.
//!
//! A push that repeats stored entries (equal labels, time and text) adds nothing, so a batch whose answer was lost
//! is simply sent again, and the good half of a batch that was split does no harm.
//!
//! For a push of several streams Loki's ingester reports only what happened to the last of them. So a stream that may be
//! refused goes alone (`alone.rs`), and a push of several that is refused is sent again stream by stream.
//!
//! Known limit, and Loki's: where its limits are far below their defaults a shared push may lose entries without a
//! word all the same, if all is well with its last stream.

mod alone;
mod answer;
mod encode;
mod labels;
mod wire;

use std::sync::Arc;

use encode::Push;
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
    let most = (options.connections, options.batch.max_bytes);
    let client = Arc::new(HttpClient::new(name, &loki.http, options.timeout, most, cx)?);
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
        was_known: Arc::default(),
    })
}

/// Of one batch, before its lane hears of it: a thousand files with old lines are as many pushes.
const PUSHES_MAX: usize = 64;

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
        let begin = payload.answered.get();
        let (now, later) = payload.pushes[begin..].split_at(PUSHES_MAX.min(payload.pushes.len() - begin));
        let (mut refused, mut last) = (Vec::new(), String::new());
        for push in now {
            let reply = self.client.post(self.path, self.content_type, &self.headers, push.body());
            match reply.map(|reply| self.read(&reply, push, &payload.cuts)) {
                Ok(Answer::Delivered) if refused.is_empty() => {
                    payload.answered.set(payload.answered.get() + 1)
                }
                Ok(Answer::Delivered) => {}
                Ok(Answer::Refused { which, why }) => {
                    refused.push((push, which));
                    last = why;
                }
                Ok(answer) => return answer,
                Err(why) => return Answer::Retry { not_before: None, why },
            }
        }
        payload.answered.set(begin + now.len());
        match refused.pop() {
            None if later.is_empty() => Answer::Delivered,
            Some((_, which)) if payload.pushes.len() == 1 => Answer::Refused { which, why: last },
            only => {
                refused.extend(only);
                Answer::Refused { which: answer::of_several(payload, &refused, later), why: last }
            }
        }
    }
}

impl LokiSender {
    fn read(&self, reply: &HttpReply, push: &Push, cuts: &[usize]) -> Answer {
        match self.client.answer(reply) {
            Answer::Refused { why, .. } if self.clock_is_to_blame(reply) => Answer::Retry {
                not_before: None,
                why: Error::new(format!(
                    "{}: the time of the lines is refused, and the clock of this host is not set: {why}",
                    self.name
                )),
            },
            Answer::Refused { why, .. } if reply.status == 400 => {
                Answer::Refused { which: answer::guilty(&reply.body, push, cuts), why }
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
