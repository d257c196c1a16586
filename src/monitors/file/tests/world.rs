//! A log folder, the three threads, a real Outlet and a real ledger; the test is the worker.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::Receiver;
use tempfile::TempDir;

use super::super::files::{self, Files};
use super::super::sweep::{Found, Sweep};
use super::super::view::{FilesSnapshot, FilesView};
use super::super::watch::{Hint, Hints};
use super::super::{Bodies, Post, Settings, mailbox, wire};
use crate::ack::Verdict;
use crate::clock::Clock;
use crate::disk::RealDisk;
use crate::durable::FileId;
use crate::ledger::Books;
use crate::metrics::Registry;
use crate::monitors::outlet::fixture::{Below, below_at};
use crate::monitors::{
    Binary, FileSourceOptions, HoldDeleted, Off, Outlet, SourceKind, SourceOptions, StartAt,
};
use crate::record::{Chunk, Labels};
use crate::tasks::{self, Spec, Table};

pub const DEADLINE: Duration = Duration::from_secs(30);

pub struct World {
    pub logs: TempDir,
    pub state: TempDir,
    pub sources: Vec<SourceOptions>,
    pub open_files_max: usize,
    pub budget: usize,
    pub once: bool,
    pub clock: Clock,
    /// `false`: a file system that reports nothing, and a sweep that is never repeated. Polls are all there is.
    pub events: bool,
    /// The next life has this sweep, however old it is, and nobody who sweeps or watches: what else it is told of comes
    /// from the test, see [`Life::tell`].
    pub sweep: Option<Sweep>,
    /// Closed by the ledger of the last life.
    pub books: Option<Arc<Books>>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    pub generation: u64,
    pub lineage: u64,
    pub offset: u64,
    pub filename: String,
    pub text: String,
    pub partial: bool,
}

/// What a test sees of a running agent.
pub struct Life {
    pub chunks: Receiver<Chunk>,
    pub lines: Vec<Line>,
    pub view: FilesView,
    pub metrics: Registry,
    teller: Option<Teller>,
}

/// What stands in the place of `discovery` and `watch` in a life that has neither.
struct Teller {
    pictures: Post<Option<Sweep>>,
    hints: Post<Hints>,
}

pub fn source(name: &str, include: &[PathBuf]) -> SourceOptions {
    SourceOptions {
        name: name.into(),
        labels: Labels::default(),
        max_line_bytes: 1024 * 1024,
        idle: Duration::from_secs(600),
        kind: SourceKind::File(FileSourceOptions {
            include: include.iter().map(|path| path.to_str().unwrap().to_owned()).collect(),
            exclude: Vec::new(),
            start_at: StartAt::Beginning,
            poll_interval: Duration::from_millis(50),
            binary: Binary::Skip,
            hold_deleted: HoldDeleted::default(),
            in_parts: false,
        }),
    }
}

impl World {
    pub fn new(include: &str) -> World {
        let logs = tempfile::tempdir().unwrap();
        let sources = vec![source("s", &[logs.path().join(include)])];
        let state = tempfile::tempdir().unwrap();
        World {
            logs,
            state,
            sources,
            open_files_max: 100,
            budget: 8 << 20,
            once: false,
            clock: Clock::real(),
            events: true,
            sweep: None,
            books: None,
        }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.logs.path().join(name)
    }

    pub fn append(&self, name: &str, text: impl AsRef<[u8]>) -> File {
        let mut file = OpenOptions::new().create(true).append(true).open(self.path(name)).unwrap();
        file.write_all(text.as_ref()).unwrap();
        file
    }

    pub fn rename(&self, from: &str, to: &str) {
        rustix::fs::rename(self.path(from), self.path(to)).unwrap();
    }

    /// One life of the agent, from its start to its stop; returns every line of it.
    pub fn live(&mut self, body: impl FnOnce(&World, &mut Life)) -> Vec<Line> {
        let Below { switch, ledger, restored, supply, journal, chunks, metrics, own_files } =
            below_at(self.clock.clone(), Arc::new(RealDisk), self.state.path(), 1, self.budget);
        let view = ledger.view();
        let settings = Settings {
            sources: self.sources.clone(),
            off: Off { folders: vec![self.state.path().to_owned()] },
            outputs: Vec::new(),
            own_files,
            once: self.once,
            known: restored.known,
            last_stamp_ns: restored.last_stamp_ns,
            first_start: restored.first_start,
            open_files_max: self.open_files_max,
        };
        let outlet = supply.stamping_outlet(journal);
        drop(supply);
        let (around, teller, files) = match self.sweep.take() {
            None => {
                let Bodies { watch, discovery, files } = wire(settings, outlet, &metrics).unwrap();
                (Some((watch, discovery)), None, files)
            }
            Some(sweep) => {
                let (teller, files) = alone(settings, outlet, &metrics);
                teller.pictures.put(|slot| *slot = Some(sweep));
                (None, Some(teller), files)
            }
        };
        let table = Arc::new(Table::new(self.clock.clone()));
        let world = &*self;
        let lines = tasks::run(table.clone(), |tasks| {
            let mut switch = switch; // closes if the test panics
            let mut life = Life { chunks, lines: Vec::new(), view: files.view(), metrics, teller };
            let spec = |name| Spec::carrier(name, Duration::from_secs(10));
            tasks.spawn(spec("ledger"), |task| ledger.run(task)).unwrap();
            if let Some((watch, discovery)) = around {
                if let Some(watch) = watch.filter(|_| world.events) {
                    tasks.spawn(spec("watch"), |task| watch.run(task)).unwrap();
                }
                tasks.spawn(spec("discovery"), |task| discovery.run(task)).unwrap();
            }
            tasks.spawn(spec("files"), |task| files.run(task)).unwrap();
            body(world, &mut life);
            switch.stop();
            life.until_closed();
            life.lines
        })
        .unwrap();
        assert_eq!(table.fault(true), None);
        let books = view.lock().clone();
        self.books = Some(books);
        lines
    }

    /// What a sweep says of this file now, where nothing is reported.
    pub fn found(&self, name: &str) -> Found {
        let metadata = std::fs::metadata(self.path(name)).unwrap();
        let (path, file, size) = (self.path(name), FileId::of(&metadata), metadata.len());
        Found { path, file, size, source: 0, heard: false }
    }

    /// All that is there, with `once`.
    pub fn run_once(&mut self) -> Vec<Line> {
        self.once = true;
        self.live(|_, life| life.until_closed())
    }

    pub fn books(&self) -> &Books {
        self.books.as_ref().unwrap()
    }
}

/// The body of `files`, and who tells it what happens.
fn alone(settings: Settings, outlet: Outlet, metrics: &Registry) -> (Teller, Files) {
    let (pictures, picture) = mailbox();
    let (post_hints, hints) = mailbox();
    let setting = files::Setting {
        outlet,
        picture,
        hints,
        heard_out: crossbeam_channel::bounded(0).1,
        own: settings.own_files,
        once: settings.once,
        first_start: settings.first_start,
        known: settings.known,
        last_stamp_ns: settings.last_stamp_ns,
        open_max: settings.open_files_max,
    };
    (Teller { pictures, hints: post_hints }, Files::new(settings.sources.into(), setting, metrics))
}

impl Life {
    /// Another sweep is over.
    pub fn swept(&self, sweep: Sweep) {
        let teller = self.teller.as_ref().expect("nobody else sweeps");
        teller.pictures.put(|slot| *slot = Some(sweep));
    }

    /// Hints about these paths, in this order and all at once. `is_written`: nothing else happened there.
    pub fn tell(&self, paths: &[PathBuf], is_written: bool) {
        let teller = self.teller.as_ref().expect("nobody else watches");
        teller
            .hints
            .put(|hints| paths.iter().for_each(|path| hints.add(Hint { path: path.clone(), is_written })));
    }

    pub fn take(&mut self, chunk: Chunk) {
        let lines = &chunk.lines;
        let mut offset = lines.start;
        for at in 0..lines.len() {
            self.lines.push(Line {
                generation: lines.origin.generation.0,
                lineage: lines.origin.lineage,
                offset,
                filename: lines.origin.filename.as_deref().unwrap_or("").to_owned(),
                text: String::from_utf8_lossy(lines.text(at)).into_owned(),
                partial: lines.is_partial(at),
            });
            offset += lines.raw(at).len() as u64;
        }
        chunk.ack.into_shares().into_iter().for_each(|share| share.settle(&Verdict::Delivered));
    }

    pub fn until(&mut self, what: &str, fact: impl Fn(&Life) -> bool) {
        while !fact(self) {
            match self.chunks.recv_timeout(DEADLINE) {
                Ok(chunk) => self.take(chunk),
                Err(cause) => {
                    let (all, last) = (self.lines.len(), self.lines.len().saturating_sub(20));
                    panic!("until {what}: {cause}, got {all}, the last {:?}", texts(&self.lines[last..]));
                }
            }
        }
    }

    pub fn until_lines(&mut self, count: usize) {
        self.until(&format!("{count} lines"), |life| life.lines.len() >= count);
    }

    /// Of what the status page would show.
    pub fn until_view(&mut self, what: &str, fact: impl Fn(&FilesSnapshot) -> bool) {
        let deadline = crossbeam_channel::after(DEADLINE);
        while !fact(&self.view.get()) {
            assert!(deadline.try_recv().is_err(), "until {what}: {:?}", self.view.get());
            if let Ok(chunk) = self.chunks.recv_timeout(Duration::from_millis(20)) {
                self.take(chunk);
            }
        }
    }

    /// The same, and no chunk is taken: the sink is dead.
    pub fn until_view_only(&mut self, what: &str, fact: impl Fn(&FilesSnapshot) -> bool) {
        let deadline = crossbeam_channel::after(DEADLINE);
        while !fact(&self.view.get()) {
            assert!(deadline.try_recv().is_err(), "until {what}: {:?}", self.view.get());
            let _ = crossbeam_channel::after(Duration::from_millis(20)).recv();
        }
    }

    /// The same, of a meter that needs no poll to be shown.
    pub fn until_metric(&mut self, name: &str, value: u64) {
        let deadline = crossbeam_channel::after(DEADLINE);
        while self.metrics.value(name, &[]) != Some(value) {
            assert!(
                deadline.try_recv().is_err(),
                "until {name} is {value}: {:?}",
                self.metrics.value(name, &[])
            );
            let _ = crossbeam_channel::after(Duration::from_millis(5)).recv();
        }
    }

    pub fn until_closed(&mut self) {
        while let Ok(chunk) = self.chunks.recv_timeout(DEADLINE) {
            self.take(chunk);
        }
        assert!(self.chunks.recv_timeout(Duration::ZERO).is_err_and(|cause| cause.is_disconnected()));
    }
}

pub fn texts(lines: &[Line]) -> Vec<&str> {
    lines.iter().map(|line| line.text.as_str()).collect()
}

/// The names of the files that were captured.
pub fn names(lines: &[Line]) -> Vec<String> {
    let mut names: Vec<String> = lines.iter().map(|line| line.filename.clone()).collect();
    names.sort();
    names.dedup();
    names
}

pub fn numbered(prefix: &str, range: std::ops::Range<usize>) -> String {
    range.map(|n| format!("{prefix}{n}\n")).collect()
}
