//! The configuration: JSON in, every module's own options out, or every complaint at once.
//!
//! [`Config::load`] is called once, by the command line. What it returns cannot be wrong: whoever holds a
//! [`Config`] checks nothing again.
//!
//! Always true: everything has a default, unknown keys are errors, memory is shared out so that it is bounded
//! by construction ([`Memory`]). Reads the configuration, the secrets and certificates it names, and the
//! environment; creates nothing.
//!
//! Not here: what the options mean (beside the code that obeys them).
//!
//! ```text
//! text ── json (a tree) ── reader (walks, takes notes) ── sources, stages, sinks ── memory (shares out) ── Config
//! ```

mod docker;
mod json;
mod memory;
mod reader;
mod sinks;
mod sources;
mod stages;
mod values;

use std::fmt;
use std::io::Read;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

pub use self::memory::Memory;
pub use self::reader::Complaint;
pub use self::sinks::describe as describe_sink;
use self::values::show_size;
pub use self::values::{duration, figure, show_duration};

use self::json::Json;
use self::memory::{BUDGET_LEAST, BUDGET_MOST, Fit, TooMuch, Wish};
use self::reader::{Item, Reader, Room};
use self::sinks::Sink;
use self::sources::Source;
use crate::monitors::{SourceKind, SourceOptions};
use crate::pipeline::StageOptions;
use crate::sinks::SinkOptions;
use crate::spool::SpoolOptions;

/// A configuration that was checked.
#[derive(Clone, Debug)]
pub struct Config {
    pub agent: AgentOptions,
    pub status: StatusOptions,
    /// At least one, names unique.
    pub sources: Vec<SourceOptions>,
    /// [`crate::pipeline::Pipeline::compile`] accepts them.
    pub pipeline: Vec<StageOptions>,
    /// From 1 to [`crate::ack::SinkSet::MAX`], names unique; `SinkId(i)` is `sinks[i]`.
    pub sinks: Vec<SinkOptions>,
    /// Of each sink, `None` where it has none.
    pub spools: Vec<Option<SpoolOptions>>,
    pub memory: Memory,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AgentOptions {
    /// Absolute. May not exist yet.
    pub data_dir: PathBuf,
    /// Threads of the pool, 1 to 64.
    pub workers: usize,
    /// In bytes; how it is shared out stands in [`Config::memory`].
    pub memory_budget: usize,
    pub stop_timeout: Duration,
    pub sync_interval: Duration,
    /// `None`: half of what the system allows the process.
    pub open_files_max: Option<usize>,
}

#[derive(Clone, PartialEq, Eq)]
pub struct StatusOptions {
    /// `None`: no status server. Anything but loopback comes with a token.
    pub listen: Option<SocketAddr>,
    /// Secret.
    pub token: Option<String>,
}

impl fmt::Debug for StatusOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let token = self.token.as_ref().map(|_| "hidden");
        f.debug_struct("StatusOptions").field("listen", &self.listen).field("token", &token).finish()
    }
}

/// A configuration of thousands of sources is a tenth of it; a log given by mistake is not read to its end.
const FILE_MOST: u64 = 16 * values::MIB;

impl Config {
    /// Reads the file at `path`; relative paths in it count from its folder.
    pub fn load(path: &Path) -> Result<Config, Vec<Complaint>> {
        let refuse = |says: String| vec![Complaint::new(path.display().to_string(), says)];
        let mut bytes = Vec::new();
        let read =
            std::fs::File::open(path).and_then(|file| file.take(FILE_MOST + 1).read_to_end(&mut bytes));
        read.map_err(|cause| refuse(format!("could not be read: {cause}")))?;
        if bytes.len() as u64 > FILE_MOST {
            return Err(refuse(format!("is larger than {}; is it a configuration?", show_size(FILE_MOST))));
        }
        let text = String::from_utf8(bytes).map_err(|_| refuse("is not text (UTF-8)".into()))?;
        let whole =
            std::path::absolute(path).map_err(|cause| refuse(format!("has no absolute path: {cause}")))?;
        let folder = whole.parent().unwrap_or(Path::new("/"));
        if folder.to_str().is_none() {
            return Err(refuse("stands in a folder whose name is not UTF-8; move it".into()));
        }
        Config::parse(&text, folder, &|name| std::env::var(name).ok())
    }

    /// `folder`: absolute, where relative paths count from. `env`: a variable of the environment.
    pub fn parse(
        text: &str,
        folder: &Path,
        env: &dyn Fn(&str) -> Option<String>,
    ) -> Result<Config, Vec<Complaint>> {
        let tree = Json::parse(text).map_err(|complaint| vec![complaint])?;
        let room = Room::new(folder, env);
        let config = Item::root(&tree, &room).reader().map(|reader| whole(reader, &room));
        match (config, room.into_complaints()) {
            (Some(config), complaints) if complaints.is_empty() => Ok(config),
            (_, complaints) => Err(complaints),
        }
    }

    /// The one line at start: what is captured, where it goes, how much memory can be under way.
    pub fn summary(&self) -> String {
        let sources: Vec<String> = self.sources.iter().map(sources::describe).collect();
        let sinks: Vec<String> = self.sinks.iter().map(sinks::describe).collect();
        format!(
            "captures {} into {}; at most {} under way, records of at most {}; state in {}",
            sources.join(", "),
            sinks.join(", "),
            figure(self.memory.budget),
            figure(self.memory.max_record_bytes),
            self.agent.data_dir.display(),
        )
    }
}

/// In the order in which people read it, so that complaints come in that order too.
fn whole(reader: Reader<'_>, room: &Room<'_>) -> Config {
    let (agent, budget) = agent(reader.section("agent"));
    let status = status(reader.section("status"));
    let host = host();
    let entries = |key, example| {
        let list = reader.required(key, example).and_then(|item| {
            let list = item.list()?;
            if list.is_empty() {
                item.complain(format_args!("is empty; write for example {example}"));
            }
            Some(list)
        });
        list.unwrap_or_default()
    };
    let mut sources = sources::read(
        &entries("sources", r#"[ { "type": "file", "include": ["/var/log/**/*.log"] } ]"#),
        &host,
    );
    let known: Vec<&SourceOptions> = sources.iter().map(|source| &source.options).collect();
    let pipeline = stages::read(&reader.list("pipeline"), &known);
    stages::tell(&pipeline, &mut sources);
    let streams = sources.iter().any(|source| !matches!(source.options.kind, SourceKind::File(_)));
    let sinks = entries("sinks", r#"[ { "type": "loki", "url": "http://127.0.0.1:3100" } ]"#);
    let sinks = sinks::read(&sinks, streams);
    let config = share_out(agent, status, sources, pipeline, sinks, budget, room);
    reader.finish();
    config
}

/// And where the budget was written down, if it was.
fn agent(reader: Reader<'_>) -> (AgentOptions, Option<Item<'_>>) {
    let (second, ms) = (Duration::from_secs(1), Duration::from_millis(1));
    let data_dir = reader.string("data_dir").unwrap_or_else(|| "./data".into());
    let options = AgentOptions {
        data_dir: reader.room().absolute(&data_dir),
        workers: reader.given("workers").and_then(|item| workers(&item)).unwrap_or_else(cores),
        memory_budget: usize::try_from(reader.size(
            "memory_budget",
            16 * values::MIB,
            BUDGET_LEAST..=BUDGET_MOST,
        ))
        .unwrap_or(usize::MAX),
        stop_timeout: reader.duration("stop_timeout", 10 * second, 10 * ms..=3_600 * second),
        sync_interval: reader.duration("sync_interval", second, 10 * ms..=600 * second),
        open_files_max: reader
            .item("open_files_max")
            .and_then(|item| item.integer(16..=10_000_000))
            .map(|files| files as usize),
    };
    let budget = reader.item("memory_budget");
    reader.finish();
    (options, budget)
}

fn workers(item: &Item<'_>) -> Option<usize> {
    if item.is_word("auto") { Some(cores()) } else { item.integer(1..=64).map(|workers| workers as usize) }
}

/// More than four workers have nothing to do: one of them is faster than most disks.
fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, |cores| cores.get().clamp(1, 4))
}

fn status(reader: Reader<'_>) -> StatusOptions {
    let given = reader.given("listen");
    let default = || SocketAddr::from(([127, 0, 0, 1], 8401));
    let listen = match (&given, reader.item("listen")) {
        (Some(_), None) => None, // null: none
        (_, item) => Some(item.and_then(|item| item.address()).unwrap_or_else(default)),
    };
    let token = reader.secret("token", "token_file");
    let told = reader.item("token").is_some() || reader.item("token_file").is_some();
    if let (Some(address), Some(item), false) = (listen, given, told)
        && !address.ip().is_loopback()
    {
        item.complain(
            "can be reached from other machines; add status.token (or token_file), or listen on 127.0.0.1",
        );
    }
    reader.finish();
    StatusOptions { listen, token }
}

/// Shares the memory out, and complains about what was written down and does not fit.
fn share_out(
    agent: AgentOptions,
    status: StatusOptions,
    mut sources: Vec<Source<'_>>,
    pipeline: Vec<StageOptions>,
    mut sinks: Vec<Sink<'_>>,
    budget: Option<Item<'_>>,
    room: &Room<'_>,
) -> Config {
    let wishes: Vec<Wish> = sinks.iter().map(Sink::wish).collect();
    let longest = sources.iter().map(|source| source.options.max_line_bytes).max();
    let longest = longest.unwrap_or(memory::MAX_LINE_BYTES);
    let total = show_size(agent.memory_budget as u64);
    let fit = memory::fit(agent.memory_budget, &wishes, longest).unwrap_or_else(|too_much| {
        match too_much {
            TooMuch::Connections { connections, budget_least } => {
                let least = show_size((budget_least as u64).next_multiple_of(values::MIB));
                let says = format!("is too small for {connections} connections; write at least {least:?}, or use fewer connections");
                match &budget {
                    Some(item) => item.complain(says),
                    None => room.complain("agent.memory_budget", format!("{total:?} {says}")),
                }
            }
            TooMuch::Batches { sinks: named, most } => {
                for item in named.iter().filter_map(|at| sinks[*at].max_bytes.as_ref()) {
                    item.complain(format_args!(
                        "is above the limit {}: encoded batches have half of agent.memory_budget ({total}); \
                         write less, use fewer connections, or raise memory_budget",
                        show_size(most as u64)
                    ));
                }
            }
        }
        let zero = Memory { budget: 0, chunk_bytes: 0, batch_bytes: 0, spool_bytes: 0, max_record_bytes: longest };
        Fit { memory: zero, batches: wishes.iter().map(|wish| wish.default).collect() }
    });
    for (sink, bytes) in sinks.iter_mut().zip(fit.batches) {
        sink.options.batch.max_bytes = bytes;
    }
    for source in &mut sources {
        let most = fit.memory.max_record_bytes;
        if let (Some(item), true) = (&source.max_line_bytes, source.options.max_line_bytes > most) {
            item.complain(format_args!(
                "is above the limit {} of a record with agent.memory_budget ({total}); write less, or raise memory_budget",
                show_size(most as u64)
            ));
        }
        source.options.max_line_bytes = source.options.max_line_bytes.min(most);
    }
    Config {
        agent,
        status,
        sources: sources.into_iter().map(|source| source.options).collect(),
        pipeline,
        spools: sinks.iter().map(|sink| sink.spool).collect(),
        sinks: sinks.into_iter().map(|sink| sink.options).collect(),
        memory: fit.memory,
    }
}

/// The value of the label `host`.
fn host() -> String {
    let name = rustix::system::uname().nodename().to_string_lossy().into_owned();
    if name.is_empty() { "localhost".into() } else { name }
}
