//! THE wiring: every channel and every thread, along the path, and the stop.
//!
//! Read it beside the picture in `lib.rs`, from its right to its left, since whoever takes must stand before
//! whoever gives: what was left behind, what lines leave through, what they pass, where they come from. The loop
//! of `main`, which only waits for ends, is in `agent/vigil.rs`.
//!
//! Always true: every channel is made here, beside the two threads it joins, and nobody else keeps a copy of
//! its sending end; so the end of the monitors is the end of everybody, in path order.

mod farewell;
mod lives;
mod pool;
mod scale;
pub(crate) mod signals;
mod spools;
mod vigil;

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use crossbeam_channel::Receiver;
use lives::Lives;
pub use lives::Load;
use spools::Spools;
use vigil::Vigil;

use crate::ack::SinkId;
use crate::budget::Budget;
use crate::clock::Clock;
use crate::config::Config;
use crate::deadletter::DeadLetters;
use crate::disk::RealDisk;
use crate::dispatcher::backoff::Backoff;
use crate::dispatcher::lane::{self, Lane};
use crate::dispatcher::retry::{Patient, REQUESTS_PER_LANE, Retry};
use crate::dispatcher::sender::SenderLoop;
use crate::dispatcher::worker::Worker;
use crate::durable::{OwnFiles, Passed, Unsynced};
use crate::error::{Error, Result};
use crate::ledger::{self, Books, BooksView, Ledger};
use crate::metrics::Registry;
use crate::monitors::{self, SourceKind, Supply};
use crate::net;
use crate::record::Dealer;
use crate::sinks::{self, SinkContext, SinkOptions};
use crate::spool;
use crate::stats::{self, Stats};
use crate::status::{self, Rooms};
use crate::tasks::{self, Closed, Post, Spec, StopPlan, Switch, Table, TaskManager, Wires};

/// Parcels on their way to one lane, which empties its inlet whatever its sink does.
const INLET_PARCELS: usize = 128;

/// A thread that holds no lock and waits in `select!` beats far more often.
const SILENCE_MAX: Duration = Duration::from_secs(5);

/// One `readdir` on a network file system can take its time.
const SWEEP_SILENCE_MAX: Duration = Duration::from_secs(60);

/// A few calls to an engine that hangs, each with its time-out.
const ENGINE_SILENCE_MAX: Duration = Duration::from_secs(60);

/// Dead letters on disk: beyond it a sink that refuses rests, so that nothing is dropped.
const DEAD_LETTERS_MAX_BYTES: u64 = 256 * 1024 * 1024;

/// How the process ends. The numbers are the exit codes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// Everything that was read was answered for.
    Delivered = 0,
    /// A fault of ours, or the world would not let us start.
    Fault = 1,
    /// Bad usage or configuration.
    Usage = 2,
    /// Stopped with data pending: it stands in its files, in a spool or among the dead letters, and the log says how
    /// much of it where.
    Pending = 3,
    /// A thread did not end in time; the log names it.
    Stuck = 4,
    /// Another instance holds the `data_dir`.
    AnotherInstance = 5,
}

/// What the caller wants besides the configuration.
pub struct Orders<'a> {
    /// Ship what is there now, wait for the answers, end.
    pub once: bool,
    /// With `once`: stop after this long.
    pub max_time: Option<Duration>,
    /// Obey SIGTERM and SIGINT, and SIGHUP, which would end us, as far as `reload` goes.
    pub signals: bool,
    /// What a reload reads. `None`: there is none.
    pub reload: Option<Load>,
    /// With `once`: told every now and then how far it is.
    pub progress: Option<&'a (dyn Fn(&Books) + Sync)>,
    /// Another way to stop, for those who run an agent inside of their own process: a message, or its end.
    pub stop: Option<Receiver<()>>,
}

/// Runs an agent to its end, through as many lives as it is reloaded. Everything it starts has ended when it
/// returns, but for a look-up that hangs.
pub fn run(config: Config, orders: &Orders<'_>) -> Exit {
    // Before anything else: what comes while it starts waits until it is up. A signal that nobody catches would
    // end it without a word, and process 1 of a container would never hear of it.
    let mut lives = match Lives::new(orders) {
        Ok(lives) => lives,
        Err(error) => {
            log::error!("{error}");
            return Exit::Fault;
        }
    };
    let (mut config, mut before) = (config, None);
    loop {
        let (exit, next) = match (Agent::prepare(&config, orders, &mut lives), before.take()) {
            (Ok(agent), before) => {
                if before.is_some() {
                    lives.desk.count_done();
                    log::info!("reload: runs with the new configuration: {}", config.summary());
                }
                agent.live(orders, &mut lives)
            }
            (Err(cause), None) => {
                log::error!("{cause}");
                return cause.exit();
            }
            (Err(cause), Some(before)) => {
                log::error!(
                    "reload: could not start with the new configuration: {cause}; going back to the one before"
                );
                lives.desk.count_failed();
                config = before;
                continue;
            }
        };
        let Some(next) = next.filter(|_| !lives.are_over()) else { return exit };
        before = Some(std::mem::replace(&mut config, next));
    }
}

enum NotStarted {
    AnotherInstance(String),
    Failed(Error),
}

impl NotStarted {
    fn exit(&self) -> Exit {
        match self {
            NotStarted::AnotherInstance(_) => Exit::AnotherInstance,
            NotStarted::Failed(_) => Exit::Fault,
        }
    }
}

impl fmt::Display for NotStarted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            NotStarted::AnotherInstance(sentence) => f.write_str(sentence),
            NotStarted::Failed(error) => error.fmt(f),
        }
    }
}

impl From<Error> for NotStarted {
    fn from(error: Error) -> NotStarted {
        NotStarted::Failed(error)
    }
}

/// An agent whose every part is made and none is running.
struct Agent {
    table: Arc<Table>,
    clock: Clock,
    switch: Switch,
    plan: StopPlan,
    books: BooksView,
    parts: Parts,
    /// Closed last of all: for those who serve the others.
    ended: (tasks::Closer, Closed),
    stdout_closed: Receiver<()>,
    /// Every channel of the path, for those who ask who waits for whom.
    wires: Wires,
}

/// What runs: those who take before those who give, so the path from its end.
struct Parts {
    resolver: net::ResolverLoop,
    ledger: Ledger,
    retry: Retry,
    /// Each with the senders of its connections, and the sink's time-out.
    lanes: Vec<(Lane, Vec<SenderLoop>, Duration)>,
    workers: Vec<Worker>,
    files: Option<monitors::file::Bodies>,
    /// One per source, with the name of its thread.
    containers: Vec<(String, monitors::container::Monitor)>,
    stdin: Option<monitors::stdin::Stdin>,
    stats: Stats,
    status: Option<(status::Server, Rooms)>,
}

impl Agent {
    fn prepare(
        config: &Config,
        orders: &Orders<'_>,
        lives: &mut Lives,
    ) -> std::result::Result<Agent, NotStarted> {
        let clock = Clock::real();
        let at_start = stats::Footprint::read();
        lives.lock(&config.agent.data_dir)?;
        let descriptors = raise_descriptor_limit();
        let metrics = Arc::new(Registry::default());
        lives.desk.count_in(&metrics);
        let table = Arc::new(Table::new(clock.clone()));
        let (mut switch, stop) = Switch::new()?;
        let plan = StopPlan::new(config.agent.stop_timeout);
        let ended = tasks::closing()?;
        let budget = Budget::new(config.memory.chunk_bytes);
        let in_doubt = config.agent.data_dir.join("in-doubt");
        let unsynced = Unsynced::open(Arc::new(RealDisk), &in_doubt, spool::boot_id());
        let (own_files, passed) = (OwnFiles::default(), Passed::default());

        // What was left behind.
        let names: Vec<Arc<str>> = config.sinks.iter().map(|sink| sink.name.clone()).collect();
        let settings = ledger::Settings {
            folder: config.agent.data_dir.join("ledger"),
            sinks: names.clone(),
            sync_interval: config.agent.sync_interval,
            unsynced: unsynced.clone(),
            own_files: own_files.clone(),
            disk: Arc::new(RealDisk),
            passed: passed.clone(),
        };
        let mut wires = Wires::default();
        let (mut ledger, book, journal) =
            Ledger::open(settings, stop.clone(), plan.margin(), &metrics, &mut wires);
        let books = ledger.view();
        let dead_letters = DeadLetters::open(
            &config.agent.data_dir.join("deadletter"),
            DEAD_LETTERS_MAX_BYTES,
            unsynced.clone(),
            clock.clone(),
        );
        dead_letters.count_in(&metrics);

        // Where lines leave: senders, lanes, and the scheduler that wakes lanes whose sink rests.
        let (resolve, resolver) = net::resolver();
        let (stdout_gone, stdout_closed) = wires.hint("stdout is gone", Post::Sender, Post::Main);
        let context = SinkContext {
            stop: stop.clone(),
            resolve: resolve.clone(),
            clock: clock.clone(),
            metrics: metrics.clone(),
            unsynced: unsynced.clone(),
            own_files: own_files.clone(),
            disk: Arc::new(RealDisk),
            journals: Some(config.agent.data_dir.join("outputs")),
            passed: passed.clone(),
            first_start: ledger.is_first_start(),
            stdout_gone,
        };
        let spools = Spools {
            config,
            unsynced: unsynced.clone(),
            passed,
            book: book.clone(),
            budget: budget.clone(),
            metrics: &metrics,
        };
        spools.say_who_is_missing();
        let requests_max = REQUESTS_PER_LANE * config.sinks.len();
        let (requests, requests_end) = wires.room_for_all("requests", Post::Lane, Post::Retry, requests_max);
        let dealing = if pool::workers(config) > 0 { Post::Worker } else { Post::Monitor };
        let (mut lanes, mut patients, mut inlets) = (Vec::new(), Vec::new(), Vec::new());
        let mut spool_is_left = false;
        for (number, options) in config.sinks.iter().enumerate() {
            let sink = SinkId(number as u8); // the configuration allows 64
            let open = sinks::open(options, &context)?;
            switch.on_abort(open.cancel);
            let (inlet, inlet_end) = wires.downhill("parcels", &[dealing], Post::Lane, INLET_PARCELS);
            let (again, again_end) = wires.hint("try again", Post::Retry, Post::Lane);
            let (refused, refusals) = wires.hint("no room", Post::Monitor, Post::Lane);
            budget.tell_of_refusals(refused);
            let connections = open.connections.len();
            let (reports, reports_end) = wires.room_for_all("reports", Post::Sender, Post::Lane, connections);
            let (mut jobs, mut senders) = (Vec::new(), Vec::new());
            for (street, connection) in open.connections.into_iter().enumerate() {
                let (job, job_end) = wires.room_for_all("jobs", Post::Lane, Post::Sender, 1);
                let (reports, towards) = (reports.clone(), format!("sending to {}", open.describe).into());
                jobs.push(job);
                senders.push(SenderLoop { street, jobs: job_end, reports, connection, towards });
            }
            let ends = lane::Ends {
                inlet: inlet_end,
                jobs,
                reports: reports_end,
                retry: requests.clone(),
                again: again_end,
                refusals,
            };
            open.was_known.store(ledger.knows(sink, &open.recovered), Relaxed);
            let spooling = spools.open(sink, connections, open.recovered.clone(), &mut ledger);
            spool_is_left |= spooling.as_ref().is_some_and(|spooling| spooling.is_leftover());
            // What a spool has lost of it is there all the same.
            ledger.recovered(sink, &open.recovered);
            let (letters, now) = (dead_letters.clone(), clock.now());
            let lane = Lane::new(sink, options.clone(), ends, stop.clone(), letters, spooling, now);
            patients.push(Patient::new(Backoff::new(options.retry, fastrand::u64(..)), again));
            inlets.push(inlet);
            lanes.push((lane, senders, options.timeout));
        }
        drop((requests, spools));
        let retry = Retry::new(requests_end, patients);

        // What they pass.
        let dealer = Dealer::new(inlets);
        let tools = pool::Tools {
            config,
            sinks: &names,
            dealer,
            stop: &stop,
            dead_letters: &dead_letters,
            metrics: &metrics,
        };
        let (workers, onward) = pool::wire(tools, &mut wires)?;

        // Where they come from: now that outputs and spools have told what they have.
        let restored = ledger.restored();
        let known = restored.known.len();
        let known_stamps = restored.known.iter().map(|known| known.stamps.len()).sum();
        let (known_containers, known_files): (Vec<_>, Vec<_>) =
            restored.known.iter().cloned().partition(monitors::container::is_container);
        let asks_for_ends =
            !config.pipeline.is_empty() || config.sinks.iter().any(SinkOptions::looks_at_each_line);
        let supply =
            Supply::new(budget.clone(), clock.clone(), stop.clone(), &restored, names.len(), book, onward)
                .asking_for_ends(asks_for_ends);
        let stdin = config.sources.iter().find(|source| matches!(source.kind, SourceKind::Stdin));
        let stdin = stdin.map(|source| monitors::stdin::Stdin::new(source.clone(), supply.outlet()));
        let open_files_max = config.agent.open_files_max.unwrap_or(descriptors / 2);
        let files = match config.sources.iter().any(|source| matches!(source.kind, SourceKind::File(_))) {
            false => None,
            true => {
                let settings = monitors::file::Settings {
                    sources: config.sources.clone(),
                    off: monitors::Off { folders: vec![config.agent.data_dir.clone()] },
                    outputs: sinks::output_globs(&config.sinks),
                    own_files: own_files.clone(),
                    once: orders.once,
                    known: known_files,
                    last_stamp_ns: restored.last_stamp_ns,
                    first_start: restored.first_start,
                    open_files_max,
                };
                Some(monitors::file::wire(settings, supply.stamping_outlet(journal), &metrics)?)
            }
        };
        let mut containers = Vec::new();
        for source in &config.sources {
            let SourceKind::Docker(options) = &source.kind else { continue };
            let settings = monitors::container::Settings {
                source: source.clone(),
                options: (**options).clone(),
                known: known_containers.clone(),
                folder: config.agent.data_dir.join("containers"),
                once: orders.once,
                supply: supply.clone(),
                helpers: tasks::Helpers::new(table.clone()),
                resolve: resolve.clone(),
                metrics: metrics.clone(),
            };
            // One engine is the rule; threads of several are told apart by their sources.
            let name = if containers.is_empty() {
                "containers".into()
            } else {
                format!("containers/{}", source.name)
            };
            containers.push((name, monitors::container::wire(settings)?));
        }
        let pools = supply.pools();
        drop((supply, resolve));

        // Who watches, and who tells the world.
        let watched = stats::Rooms {
            clock: clock.clone(),
            metrics: metrics.clone(),
            table: table.clone(),
            budget: budget.clone(),
            pools,
            unsynced,
            own_files,
            dead_letters,
            files: files.as_ref().map(|bodies| bodies.files.view()),
            sinks: names,
        };
        let connections = lanes.iter().map(|(_, senders, _)| senders.len()).sum();
        let actual =
            scale::Actual { at_start, connections, open_files_max, known, known_stamps, spool_is_left };
        let stats = Stats::new(watched, scale::of(config, orders, actual), stop.stop);
        let bind = |at| status::Server::bind(at, config.status.token.clone(), lives.door.as_ref());
        let server = match config.status.listen.map(bind) {
            None => None,
            Some(Ok(server)) => Some(server),
            // A job of cron beside an agent that runs: to deliver is what it is there for.
            Some(Err(cause)) if orders.once => {
                log::warn!("{cause}; going on without a status server");
                None
            }
            Some(Err(cause)) => return Err(cause.into()),
        };
        let door = server.as_ref().filter(|_| orders.reload.is_some()).map(status::Server::door);
        lives.settle(&config.agent.data_dir, door.transpose()?);
        let desk = lives.desk.clone();
        let status = server.map(|mut server| {
            log::info!("status: listening on http://{}", server.local_addr());
            server.count_in(&metrics);
            let rooms = Rooms {
                table: table.clone(),
                metrics,
                books: books.clone(),
                healths: lanes.iter().map(|(lane, ..)| lane.health()).collect(),
                budget,
                files: files.as_ref().map(|bodies| bodies.files.view()),
                engines: containers.iter().map(|(_, monitor)| monitor.view()).collect(),
                stats: stats.view(),
                started: clock.now(),
                clock: clock.clone(),
                reload: Box::new(move || desk.ask("POST /api/v1/reload")),
            };
            (server, rooms)
        });
        let parts =
            Parts { resolver, ledger, retry, lanes, workers, files, containers, stdin, stats, status };
        Ok(Agent { table, clock, switch, plan, books, parts, ended, stdout_closed, wires })
    }

    /// To its end. With the configuration of the next life, if there is to be one.
    fn live(self, orders: &Orders<'_>, lives: &mut Lives) -> (Exit, Option<Config>) {
        log::debug!("channels: {}", self.wires);
        let Agent { table, clock, switch, plan, books, parts, ended: (ender, ended), stdout_closed, .. } =
            self;
        let Lives { caught, signals: (signals, signals_end), desk, .. } = lives;
        let outcome = tasks::run(table.clone(), |tasks| {
            let main = Vigil {
                table: &table,
                clock: &clock,
                switch,
                plan,
                books: &books,
                desk,
                next: None,
                read_again: false,
                faults: Vec::new(),
            };
            // Signals first: from the first thread on, a stop is heard.
            let heard = caught.as_mut().map_or(Ok(()), |caught| {
                let (signals, told) = (signals.clone(), ended.clone());
                tasks.spawn(Spec::keeper("signals", SILENCE_MAX), move |task| {
                    signals::listen(caught, &signals, task, &told)
                })
            });
            let started = heard.and_then(|()| parts.start(&tasks, &ended));
            main.wait(started, signals_end, stdout_closed, orders, &tasks, ender)
        });
        outcome.unwrap_or_else(|error| {
            log::error!("{error}");
            (Exit::Fault, None)
        })
    }
}

impl Parts {
    /// Starts every thread, those who take before those who give.
    fn start<'env>(self, tasks: &TaskManager<'_, 'env>, ended: &Closed) -> Result<()> {
        let told = ended.clone();
        let (resolver, ledger, retry) = (self.resolver, self.ledger, self.retry);
        tasks.spawn_loose(Spec::carrier("resolver", SILENCE_MAX), move |task| resolver.run(task, told))?;
        if let Some((server, rooms)) = self.status {
            let told = ended.clone();
            tasks.spawn(Spec::keeper("status", SILENCE_MAX), move |task| {
                server.run(Arc::new(rooms), task, told)
            })?;
        }
        let (stats, told) = (self.stats, ended.clone());
        tasks.spawn(Spec::keeper("stats", SILENCE_MAX), move |task| stats.run(task, &told))?;
        tasks.spawn(Spec::carrier("ledger", SILENCE_MAX), move |task| ledger.run(task))?;
        tasks.spawn(Spec::carrier("retry", SILENCE_MAX), move |task| retry.run(task))?;
        for (lane, senders, timeout) in self.lanes {
            let name = lane.name().to_owned();
            for (number, sender) in senders.into_iter().enumerate() {
                // Every phase of a request has this time: connect, TLS, send, wait, read.
                let spec = Spec::carrier(format!("sender/{name}/{number}"), timeout * 5 + SILENCE_MAX);
                tasks.spawn(spec, move |task| sender.run(task))?;
            }
            tasks.spawn(Spec::carrier(format!("lane/{name}"), SILENCE_MAX), move |task| lane.run(task))?;
        }
        for (number, worker) in self.workers.into_iter().enumerate() {
            let spec = Spec::carrier(format!("worker/{number}"), SILENCE_MAX);
            tasks.spawn(spec, move |task| worker.run(task))?;
        }
        if let Some(stdin) = self.stdin {
            tasks.spawn(Spec::carrier("stdin", SILENCE_MAX), move |task| stdin.run(task))?;
        }
        for (name, monitor) in self.containers {
            // Calls to the engine wait for as long as their time-outs allow.
            tasks.spawn(Spec::carrier(name, ENGINE_SILENCE_MAX), move |task| monitor.run(task))?;
        }
        if let Some(files) = self.files {
            let monitors::file::Bodies { watch, discovery, files } = files;
            if let Some(watch) = watch {
                tasks.spawn(Spec::carrier("watch", SILENCE_MAX), move |task| watch.run(task))?;
            }
            tasks.spawn(Spec::carrier("discovery", SWEEP_SILENCE_MAX), move |task| discovery.run(task))?;
            tasks.spawn(Spec::carrier("files", SILENCE_MAX), move |task| files.run(task))?;
        }
        Ok(())
    }
}

/// Many files need many descriptors: the soft limit is a default of shells, the hard one is what we may have.
/// Returns how many we may hold now.
fn raise_descriptor_limit() -> usize {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    if current != maximum
        && let Err(cause) = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum })
    {
        log::warn!("could not raise the limit of open files from {current:?} to {maximum:?}: {cause}");
    }
    getrlimit(Resource::Nofile)
        .current
        .map_or(usize::MAX, |limit| usize::try_from(limit).unwrap_or(usize::MAX))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn wires_of(config: &str) -> Vec<tasks::Wire> {
        let folder = tempfile::tempdir().unwrap();
        let config = Config::parse(config, folder.path(), &|_| None).unwrap();
        let orders =
            Orders { once: false, max_time: None, signals: false, reload: None, progress: None, stop: None };
        let mut lives = Lives::new(&orders).unwrap();
        let agent = Agent::prepare(&config, &orders, &mut lives).unwrap_or_else(|cause| panic!("{cause}"));
        agent.wires.iter().copied().collect()
    }

    /// The graph of who waits for whom, as the wiring has declared it, has no cycle.
    #[test]
    fn nobody_waits_for_itself_in_the_end() {
        for (pipeline, next) in [("", Post::Lane), (r#""pipeline": [ { "type": "json" } ],"#, Post::Worker)] {
            let wires = wires_of(&format!(
                r#"{{ "status": {{ "listen": null }}, {pipeline}
                      "sources": [ {{ "type": "file", "include": ["/nowhere/*.log"] }}, {{ "type": "stdin" }} ],
                      "sinks": [ {{ "type": "loki", "url": "http://127.0.0.1:9", "connections": 2 }},
                                 {{ "type": "file", "path": "out" }}, {{ "type": "stdout" }} ] }}"#,
            ));
            let waits: Vec<(Post, Post)> =
                wires.iter().filter(|wire| wire.waits).map(|wire| (wire.from, wire.to)).collect();
            assert!(waits.contains(&(Post::Monitor, next)) && waits.contains(&(Post::Lane, Post::Ledger)));
            for start in waits.iter().map(|(from, _)| *from) {
                let (mut reached, mut next) = (BTreeSet::new(), vec![start]);
                while let Some(post) = next.pop() {
                    for (_, to) in waits.iter().filter(|(from, _)| *from == post) {
                        assert_ne!(*to, start, "{start:?} waits for itself: {waits:?}");
                        if reached.insert(*to) {
                            next.push(*to);
                        }
                    }
                }
            }
            let uphill: Vec<&str> =
                wires.iter().filter(|wire| wire.from > wire.to).map(|wire| wire.what).collect();
            assert_eq!(uphill, ["try again", "reports"], "what leads uphill, and is never waited on");
        }
    }
}
