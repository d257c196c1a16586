//! Where lines go. A sink is an [`Encoder`] (pure: the same batch gives the same bytes, on every try and after
//! a restart) and a [`Sender`] (one connection: bytes out, an [`Answer`] back).
//!
//! Always true: a sink never decides what becomes of a record. It says what the other side said; the lane
//! retries, splits, dead-letters and settles.
//!
//! Not here: batching, order, back-off (`dispatcher/`).

pub mod file;
pub mod format;
pub mod http;
pub mod loki;
pub mod stdout;

use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use crate::ack::GenerationId;
use crate::clock::Clock;
use crate::disk::Disk;
use crate::durable;
use crate::error::{Error, Result};
use crate::metrics::Registry;
use crate::net;
use crate::record::{Batch, Labels};
use crate::tasks::Stop;

/// What the other side said about a batch.
#[derive(Debug)]
pub enum Answer {
    Delivered,
    /// The sink is ill. `not_before`: how long it asked to be left alone (`Retry-After`), from now.
    Retry {
        not_before: Option<Duration>,
        why: Error,
    },
    /// The sink will take nothing more in this life, and has told the agent, which stops.
    Gone {
        why: Error,
    },
    /// The data is bad, or too much at once. Everything else was stored.
    Refused {
        which: Guilty,
        why: String,
    },
}

#[derive(Debug, PartialEq, Eq)]
pub enum Guilty {
    /// The answer does not tell: the lane splits the batch until the guilty stand alone.
    Unknown,
    /// Indices into [`Batch::records`], rising. All others were stored.
    These(Vec<usize>),
    /// The answer may be silent about some, and would be again: what begins at each of these indices, which rise and
    /// are behind the first record, is sent by itself.
    Apart(Vec<usize>),
    /// Indices, rising, and not all: these have no verdict yet and are sent again by themselves. All others were stored.
    Rest(Vec<usize>),
}

/// Records into a payload. Pure: no files, no network, no clock.
pub trait Encoder: Send {
    type Payload: Send + Default;

    /// Overwrites `payload`, whose buffers are kept from batch to batch. Never fails: what a record contains
    /// is brought into a form the sink accepts (invalid UTF-8 becomes U+FFFD).
    fn encode(&mut self, batch: &Batch, payload: &mut Self::Payload);

    /// The sink has it: whatever the payload has of the batch itself is given back.
    fn delivered(&mut self, _payload: &mut Self::Payload) {}

    /// Nothing came for a while: gives back buffers that were kept for the next batch. `payload`: of the last one.
    fn rest(&mut self, _payload: Self::Payload) {}
}

/// One connection. `send` may block, as long as its time-outs say; closing `abort` ends it at once.
pub trait Sender<Payload>: Send {
    fn send(&mut self, payload: &Payload) -> Answer;

    /// Called between batches: closes idle files, rotates by age. When to call again although no batch comes;
    /// `None`: never, so that an idle agent does not wake up.
    fn idle(&mut self, _now: Instant) -> Option<Instant> {
        None
    }
}

/// An encoder and its sender, with the payload between them: what a sender thread owns.
pub trait Connection: Send {
    fn deliver(&mut self, batch: &Batch) -> Answer;
    /// See [`Sender::idle`].
    fn idle(&mut self, now: Instant) -> Option<Instant>;
}

/// The one implementation of [`Connection`].
pub struct Link<E: Encoder, S: Sender<E::Payload>> {
    encoder: E,
    sender: S,
    payload: E::Payload,
    /// The number of the batch that `payload` holds: a retry does not encode again.
    holds: Option<u64>,
    /// Something was encoded since the last look.
    has_worked: bool,
    /// When buffers are given back, unless something comes before.
    rest_at: Option<Instant>,
}

/// As long as a few batches that are shipped because of their age: what comes again and again keeps its buffers,
/// and the ten thousand files of a start do not leave megabytes behind.
const REST_AFTER: Duration = Duration::from_secs(3);

impl<E: Encoder, S: Sender<E::Payload>> Link<E, S> {
    pub fn new(encoder: E, sender: S) -> Link<E, S> {
        Link {
            encoder,
            sender,
            payload: E::Payload::default(),
            holds: None,
            has_worked: false,
            rest_at: None,
        }
    }
}

impl<E: Encoder, S: Sender<E::Payload>> Connection for Link<E, S> {
    fn deliver(&mut self, batch: &Batch) -> Answer {
        if self.holds != Some(batch.number) {
            self.holds = None; // a panic in the encoder must not leave half a payload behind
            self.has_worked = true;
            self.encoder.encode(batch, &mut self.payload);
            self.holds = Some(batch.number);
        }
        let answer = self.sender.send(&self.payload);
        if matches!(answer, Answer::Delivered) {
            self.holds = None; // nobody asks for it again
            self.encoder.delivered(&mut self.payload);
        }
        answer
    }

    fn idle(&mut self, now: Instant) -> Option<Instant> {
        if std::mem::take(&mut self.has_worked) {
            self.rest_at = Some(now + REST_AFTER);
        } else if self.rest_at.take_if(|at| *at <= now).is_some() {
            self.holds = None;
            self.encoder.rest(std::mem::take(&mut self.payload));
        }
        self.sender.idle(now).into_iter().chain(self.rest_at).min()
    }
}

/// An opened sink, ready to be wired.
pub struct OpenSink {
    /// As many as `connections` says.
    pub connections: Vec<Box<dyn Connection>>,
    /// Run once when `abort` closes: ends what is blocked in a call that cannot wait for a channel.
    pub cancel: Box<dyn Fn() + Send + Sync>,
    /// For the line at the start: `loki at http://127.0.0.1:3100`.
    pub describe: String,
    /// What the last life delivered, as far as the sink can tell for certain: for the ledger, which may not know.
    pub recovered: Vec<Delivered>,
    /// To be set before the first batch if the ledger's state had all of that, so that nobody has to find it again.
    pub was_known: Arc<AtomicBool>,
}

/// Source bytes that a sink has.
pub type Delivered = (GenerationId, Range<u64>);

/// What a sink needs of the house to open.
pub struct SinkContext {
    pub stop: Stop,
    pub resolve: net::Resolve,
    pub clock: Clock,
    pub metrics: Arc<Registry>,
    pub unsynced: durable::Unsynced,
    pub own_files: durable::OwnFiles,
    pub disk: Arc<dyn Disk>,
    /// Where sinks that write to the disk keep a journal each; `None`: they keep none, and another process that has
    /// one may be writing beside us.
    pub journals: Option<PathBuf>,
    pub passed: durable::Passed,
    /// The ledger knows nothing of an earlier life: what journals say is about generations whose numbers are given
    /// out anew.
    pub first_start: bool,
    /// One slot: rung when nobody will ever read stdout again.
    pub stdout_gone: crossbeam_channel::Sender<()>,
}

#[cfg(test)]
impl SinkContext {
    /// A house without a resolver: addresses only.
    pub fn alone(clock: Clock) -> (crate::tasks::Switch, SinkContext) {
        let (switch, stop) = crate::tasks::Switch::new().expect("pipes can be made");
        let cx = SinkContext {
            stop,
            resolve: net::resolver().0,
            clock,
            metrics: Arc::default(),
            unsynced: durable::Unsynced::default(),
            own_files: durable::OwnFiles::default(),
            disk: Arc::new(crate::disk::RealDisk),
            journals: None,
            passed: durable::Passed::default(),
            first_start: false,
            stdout_gone: crossbeam_channel::bounded(1).0,
        };
        (switch, cx)
    }
}

/// What every sink has.
#[derive(Clone, Debug)]
pub struct SinkOptions {
    /// The ledger knows the sink by it.
    pub name: Arc<str>,
    /// Added to every record; the record's own win.
    pub labels: Labels,
    pub batch: BatchLimits,
    pub connections: usize,
    /// For each phase of a request: connect, TLS, send, wait for the answer.
    pub timeout: Duration,
    pub retry: RetryOptions,
    pub kind: KindOptions,
}

impl SinkOptions {
    /// Else what no stage has touched is taken as one stretch of lines.
    pub fn looks_at_each_line(&self) -> bool {
        !matches!(self.kind, KindOptions::File(FileOptions { format: Format::Text, .. }))
    }
}

/// A batch is sealed by whichever limit it meets first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BatchLimits {
    /// Of source bytes. A single larger record is a batch of its own.
    pub max_bytes: usize,
    /// What a line that nothing has touched counts besides its bytes: what an encoding adds to it.
    pub line_weight: u64,
    pub max_lines: usize,
    /// How long the first record of a batch waits for company.
    pub max_wait: Duration,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RetryOptions {
    pub initial: Duration,
    pub max: Duration,
    /// `None`: for ever. Reached: the batch goes to the dead letters.
    pub max_attempts: Option<u32>,
}

/// What one kind of sink has besides.
#[derive(Clone, Debug)]
pub enum KindOptions {
    File(FileOptions),
    Stdout(Format),
    Loki(LokiOptions),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// The exact bytes of the source, with their line ends.
    Text,
    /// One JSON object a line: `time`, `line`, `labels`, and `metadata` and `partial` where there are some.
    Json,
}

#[derive(Clone, Debug)]
pub struct FileOptions {
    /// Absolute, with `{source}`, `{file}`, `{date}`, `{hour}`; checked by `file::Template::parse`.
    pub path: String,
    pub format: Format,
    pub rotate: Option<RotateOptions>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RotateOptions {
    pub max_bytes: Option<u64>,
    pub max_age: Option<Duration>,
    /// How many rotated files stay; the oldest go first.
    pub keep: usize,
}

#[derive(Clone, Debug)]
pub struct LokiOptions {
    pub http: HttpOptions,
    /// `X-Scope-OrgID`.
    pub tenant: Option<String>,
    pub encoding: LokiEncoding,
    /// Loki refuses longer lines (256 KB by default there).
    pub max_line_bytes: usize,
    pub long_lines: LongLines,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LokiEncoding {
    Protobuf,
    Json,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LongLines {
    /// Into entries of at most the limit with the line's time, each flagged `partial` and numbered by `part`.
    Split,
    /// To one entry of at most the limit, flagged `partial`.
    Truncate,
}

/// What every sink that speaks HTTP has.
#[derive(Clone)]
pub struct HttpOptions {
    /// `http` or `https`, host, optional port and path; checked by the configuration.
    pub url: String,
    pub auth: Auth,
    /// Added to every request. Never logged.
    pub headers: Vec<(String, String)>,
    pub tls: TlsOptions,
}

/// The values of headers are as secret as `auth`.
impl std::fmt::Debug for HttpOptions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let names: Vec<&str> = self.headers.iter().map(|(name, _)| &**name).collect();
        let mut shown = f.debug_struct("HttpOptions");
        shown.field("url", &self.url).field("auth", &self.auth).field("headers", &names);
        shown.field("ca_pem", &self.tls.ca_pem.is_some()).finish()
    }
}

#[derive(Clone, PartialEq, Eq)]
pub enum Auth {
    None,
    Basic { user: String, password: String },
    Bearer(String),
}

/// Secrets stay out of logs by having no way into them.
impl std::fmt::Debug for Auth {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Auth::None => "none",
            Auth::Basic { .. } => "basic (hidden)",
            Auth::Bearer(_) => "bearer (hidden)",
        })
    }
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TlsOptions {
    /// PEM; added to nothing: when it is there, only it is trusted.
    pub ca_pem: Option<Vec<u8>>,
}

pub type OpenResult = Result<OpenSink>;

/// Makes a sink's connections. Touches no network yet, and of the disk only what the last life left torn.
pub fn open(options: &SinkOptions, cx: &SinkContext) -> OpenResult {
    match &options.kind {
        KindOptions::File(file) => file::open(options, file, cx),
        KindOptions::Stdout(format) => stdout::open(options, *format, cx),
        KindOptions::Loki(loki) => loki::open(options, loki, cx),
    }
}

/// Globs of every path that the file sinks may ever write: what must not be captured, known before any output
/// was opened in this life.
pub fn output_globs(sinks: &[SinkOptions]) -> Vec<String> {
    let template = |sink: &SinkOptions| match &sink.kind {
        KindOptions::File(file) => file::Template::parse(&file.path).ok(),
        _ => None,
    };
    sinks.iter().filter_map(template).map(|template| template.as_glob()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Clock;

    #[derive(Default)]
    struct Kept(Vec<u8>);

    impl Encoder for Kept {
        type Payload = Vec<u8>;

        fn encode(&mut self, _: &Batch, payload: &mut Vec<u8>) {
            (self.0, *payload) = (vec![0; 9], vec![0; 9]);
        }

        fn rest(&mut self, _: Vec<u8>) {
            self.0 = Vec::new();
        }
    }

    struct Taken;

    impl Sender<Vec<u8>> for Taken {
        fn send(&mut self, payload: &Vec<u8>) -> Answer {
            assert_eq!(payload.len(), 9, "what was given back is made again");
            Answer::Delivered
        }
    }

    #[test]
    fn buffers_are_given_back_when_nothing_comes_for_a_while() {
        let now = Clock::by_hand(0).now();
        let mut link = Link::new(Kept::default(), Taken);
        assert_eq!(link.idle(now), None, "nothing to give back");
        let batch = Batch { number: 1, parts: Vec::new() };
        for _ in 0..2 {
            assert!(matches!(link.deliver(&batch), Answer::Delivered));
            let due = now + REST_AFTER;
            assert_eq!((link.idle(now), link.idle(now)), (Some(due), Some(due)));
            assert_eq!((link.encoder.0.len(), link.payload.len()), (9, 9));
            assert_eq!(link.idle(due), None);
            assert_eq!((link.encoder.0.capacity(), link.payload.capacity()), (0, 0));
        }
    }
}
