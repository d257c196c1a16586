//! Sends dead letters to their sinks once more.
//!
//! ```text
//! file ── lines, some at a time ──┬── of a sink: one batch ── taken: gone ── refused: halves, until the guilty stand
//!                                 │                                          alone: stay, with the new reason
//!                                 └── others: stay
//! ```
//!
//! The sinks are opened for this process alone. With the agent's lock free, it is held: then the file sink keeps its
//! journal as ever. Beside an agent it appends as any other process would.

use std::collections::{BTreeMap, HashMap};
use std::fmt::Write;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::{after, bounded, select};
use parking_lot::Mutex;

use super::{Which, letters};
use crate::ack::{Ack, Receipt, Receipts, SinkSet};
use crate::agent::signals::{self, Signal};
use crate::budget::{Budget, Holder};
use crate::cli::Exit;
use crate::clock::Clock;
use crate::config::Config;
use crate::deadletter::folder::{Desk, Line, Lines, Rewrite};
use crate::deadletter::{Kept, Letter};
use crate::disk::RealDisk;
use crate::durable::{self, LockError, OwnFiles, Passed, Unsynced};
use crate::error::{Context, Result};
use crate::metrics::Registry;
use crate::net;
use crate::record::{Batch, Slice};
use crate::sinks::{self, Answer, Connection, Guilty, SinkContext};
use crate::tasks::{self, Closed, Spec, Switch, Table};

/// A sink that is ill so often, one try after the other, keeps its letters.
const TRIES: u32 = 5;

/// Before the second try; twice as long before each one after it.
const PAUSE: Duration = Duration::from_millis(500);

/// Lines of a file that are held at a time, in bytes as they stand there.
const GROUP_BYTES: usize = 1 << 20;

/// Signals on their way; more than these at once say nothing new.
const SIGNALS: usize = 4;

const SILENCE_MAX: Duration = Duration::from_secs(60);

pub fn run(config: &Config, folder: &Path, which: &Which) -> Result<(String, Exit)> {
    let Some(desk) = Desk::take(folder)? else { return Ok(("no dead letters\n".into(), Exit::Delivered)) };
    let mut caught = signals::catch()?;
    let lock = match durable::lock_dir(&config.agent.data_dir) {
        Ok(lock) => Some(lock),
        Err(LockError::Held { .. }) => None, // an agent runs
        Err(LockError::Io(error)) => return Err(error),
    };
    let clock = Clock::real();
    let table = Arc::new(Table::new(clock.clone()));
    let (switch, stop) = Switch::new()?;
    let (end, ended) = tasks::closing()?;
    let (resolve, resolver) = net::resolver();
    let (to_us, heard) = bounded(SIGNALS);
    let (switch, stopped) = (Mutex::new(switch), stop.stop.clone());
    let context = SinkContext {
        stop,
        resolve,
        clock,
        metrics: Arc::new(Registry::default()),
        unsynced: Unsynced::default(),
        own_files: OwnFiles::default(),
        disk: Arc::new(RealDisk),
        journals: lock.as_ref().map(|_| config.agent.data_dir.join("outputs")),
        passed: Passed::default(),
        first_start: false,
        stdout_gone: bounded(1).0,
    };
    tasks::run(table, |tasks| {
        let (told, end) = (ended.clone(), end);
        tasks.spawn_loose(Spec::carrier("resolver", SILENCE_MAX), move |task| resolver.run(task, told))?;
        tasks.spawn(Spec::keeper("signals", SILENCE_MAX), |task| {
            signals::listen(&mut caught, &{ to_us }, task, &ended) // its end ends the next one
        })?;
        tasks.spawn(Spec::keeper("stop", SILENCE_MAX), |task| {
            task.waits_for("signals");
            let mut stops = heard.into_iter().filter(|signal| matches!(signal, Signal::Stop(_)));
            if stops.next().is_some() {
                switch.lock().stop();
            }
            if stops.next().is_some() {
                switch.lock().abort();
            }
            Ok(())
        })?;
        let mut replay = Replay {
            config,
            which,
            context: &context,
            switch: &switch,
            stopped,
            streets: HashMap::new(),
            budget: Budget::new(4 * GROUP_BYTES),
            batches: 0,
            sent: 0,
            left: Vec::new(),
        };
        let done = desk.clear().and_then(|files| files.iter().try_for_each(|path| replay.file(path)));
        drop(end); // the others have nobody left to serve
        done.map(|()| replay.report())
    })?
}

struct Replay<'a> {
    config: &'a Config,
    which: &'a Which,
    context: &'a SinkContext,
    switch: &'a Mutex<Switch>,
    stopped: Closed,
    /// One for each sink that has letters, or why there is none.
    streets: HashMap<String, std::result::Result<Box<dyn Connection>, String>>,
    budget: Budget,
    batches: u64,
    sent: usize,
    /// Why letters stay, and how many.
    left: Vec<(String, usize)>,
}

/// What became of a letter.
enum Fate {
    Sent,
    Refused(String),
    /// It waits in its file.
    Waits(String),
}

impl Replay<'_> {
    fn file(&mut self, path: &Path) -> Result<()> {
        let mut rest = Rewrite::of(path);
        let before = self.sent;
        let (mut group, mut bytes) = (Vec::new(), 0);
        for line in Lines::open(path)?.into_iter().flatten() {
            let line = line?;
            bytes += line.raw.len();
            group.push(line);
            if bytes >= GROUP_BYTES {
                self.group(std::mem::take(&mut group), &mut rest)?;
                bytes = 0;
            }
        }
        self.group(group, &mut rest)?;
        if self.sent == before && self.left.is_empty() {
            return Ok(()); // nothing of it was asked for
        }
        self.context.unsynced.sync()?; // what leaves its file must not be lost in an output
        rest.finish()
    }

    /// Some lines of a file, in their order.
    fn group(&mut self, mut lines: Vec<Line>, rest: &mut Rewrite) -> Result<()> {
        let mut of_sinks: BTreeMap<String, Vec<usize>> = BTreeMap::new();
        for (at, line) in lines.iter().enumerate() {
            if let Some(kept) = line.kept.as_ref().filter(|kept| self.which.takes(&kept.letter)) {
                of_sinks.entry(kept.letter.sink.clone()).or_default().push(at);
            }
        }
        let mut fates: Vec<Option<Fate>> = lines.iter().map(|_| None).collect();
        for (sink, chosen) in of_sinks {
            let mut left = &chosen[..];
            while !left.is_empty() {
                let fit = self.fit(&sink, &lines, left);
                let (batch, behind) = left.split_at(fit);
                let of: Vec<&Kept<Letter>> = batch.iter().filter_map(|at| lines[*at].kept.as_ref()).collect();
                for (at, fate) in batch.iter().zip(self.send(&sink, &of)) {
                    fates[*at] = Some(fate);
                }
                left = behind;
            }
        }
        for (line, fate) in lines.iter_mut().zip(fates) {
            match (fate, &mut line.kept) {
                (Some(Fate::Sent), _) => self.sent += 1,
                (Some(Fate::Refused(why)), Some(kept)) => {
                    self.leave("refused again");
                    kept.letter.reason = why;
                    rest.keep_letter(kept)?;
                }
                (Some(Fate::Waits(why)), _) => {
                    self.leave(&why);
                    rest.keep(&line.raw)?;
                }
                _ => rest.keep(&line.raw)?,
            }
        }
        Ok(())
    }

    fn leave(&mut self, why: &str) {
        match self.left.iter_mut().find(|(known, _)| known == why) {
            Some((_, count)) => *count += 1,
            None => self.left.push((why.to_owned(), 1)),
        }
    }

    /// How many of the first letters make a batch of this sink: at least one.
    fn fit(&self, sink: &str, lines: &[Line], left: &[usize]) -> usize {
        let Some(options) = self.config.sinks.iter().find(|known| *known.name == *sink) else {
            return left.len();
        };
        let mut bytes = 0;
        let fit = left.iter().take(options.batch.max_lines).take_while(|at| {
            bytes += lines[**at].raw.len();
            bytes <= options.batch.max_bytes
        });
        fit.count().max(1)
    }

    fn send(&mut self, sink: &str, letters: &[&Kept<Letter>]) -> Vec<Fate> {
        let waits = |why: String| letters.iter().map(|_| Fate::Waits(why.clone())).collect();
        if self.stopped.is_closed() {
            return waits("not tried: stopped".into());
        }
        if !self.streets.contains_key(sink) {
            let street = self.open(sink);
            self.streets.insert(sink.to_owned(), street);
        }
        let mut street = match self.streets.remove(sink).expect("it was put there") {
            Ok(street) => street,
            Err(why) => {
                self.streets.insert(sink.to_owned(), Err(why.clone()));
                return waits(why);
            }
        };
        let fates = self.deliver(&mut street, letters);
        let ill =
            fates.iter().find_map(|fate| if let Fate::Waits(why) = fate { Some(why.clone()) } else { None });
        self.streets.insert(sink.to_owned(), ill.map_or(Ok(street), Err));
        fates
    }

    fn open(&self, sink: &str) -> std::result::Result<Box<dyn Connection>, String> {
        let options = self.config.sinks.iter().find(|known| *known.name == *sink);
        let options = options.ok_or(format!("{sink}: the configuration has no such sink"))?;
        let mut open = sinks::open(options, self.context).map_err(|error| error.to_string())?;
        self.switch.lock().on_abort(open.cancel);
        open.connections.pop().ok_or(format!("{sink}: has no connection"))
    }

    /// One fate for each letter.
    fn deliver(&mut self, street: &mut Box<dyn Connection>, letters: &[&Kept<Letter>]) -> Vec<Fate> {
        let all =
            |fate: fn(String) -> Fate, why: &str| letters.iter().map(|_| fate(why.to_owned())).collect();
        let batch = match self.batch(letters) {
            Ok(batch) => batch,
            Err(error) => return all(Fate::Waits, &error.to_string()),
        };
        let mut pause = PAUSE;
        for attempt in 1.. {
            // As in a sender: what panics is the data.
            let answer = catch_unwind(AssertUnwindSafe(|| street.deliver(&batch)));
            let answer = answer.unwrap_or_else(|panic| Answer::Refused {
                which: Guilty::Unknown,
                why: format!("sending it panicked: {}", tasks::panic_text(&*panic)),
            });
            match answer {
                Answer::Delivered => return letters.iter().map(|_| Fate::Sent).collect(),
                Answer::Refused { which: Guilty::These(guilty), why } => {
                    let fate =
                        |at| if guilty.contains(&at) { Fate::Refused(why.clone()) } else { Fate::Sent };
                    return (0..letters.len()).map(fate).collect();
                }
                Answer::Refused { why, .. } if letters.len() == 1 => return vec![Fate::Refused(why)],
                Answer::Refused { which, .. } => {
                    let cuts = match which {
                        Guilty::Apart(cuts) => cuts,
                        _ => vec![letters.len() / 2],
                    };
                    let bounds: Vec<usize> = [0].into_iter().chain(cuts).chain([letters.len()]).collect();
                    let parts = bounds.windows(2).map(|bounds| &letters[bounds[0]..bounds[1]]);
                    return parts.flat_map(|part| self.deliver(street, part)).collect();
                }
                Answer::Gone { why } => return all(Fate::Waits, &why.to_string()),
                Answer::Retry { why, .. } if attempt >= TRIES || !self.rest(pause) => {
                    return all(Fate::Waits, &why.to_string());
                }
                Answer::Retry { not_before, .. } => pause = not_before.unwrap_or_default().max(pause * 2),
            }
        }
        unreachable!("the last try returns")
    }

    /// Whether the whole pause has passed: a signal ends it.
    fn rest(&self, pause: Duration) -> bool {
        select! {
            recv(after(pause)) -> _ => true,
            recv(self.stopped.channel()) -> _ => false,
        }
    }

    fn batch(&mut self, letters: &[&Kept<Letter>]) -> Result<Batch> {
        struct Nobody;
        impl Receipts for Nobody {
            fn receipt(&self, _: Receipt) {} // these lines were answered for when they became letters
        }
        let receipts: Arc<dyn Receipts> = Arc::new(Nobody);
        let (door, holder) = (self.budget.door(), Holder::default());
        let mut parts = Vec::new();
        for kept in letters {
            let credit = door.try_take(&holder, 1).map_err(|_| "no room").context(|| "a replay".into())?;
            let slice = Slice::all(kept.letter.records(credit)?.into());
            let range = kept.letter.offset..kept.letter.offset + kept.letter.len;
            let ack =
                Ack::new(slice.records.origin().generation, range, slice.count(), SinkSet::all(1), &receipts);
            parts.extend(ack.into_shares().pop().map(|share| (slice, share)));
        }
        self.batches += 1;
        Ok(Batch { number: self.batches, parts })
    }

    fn report(&self) -> (String, Exit) {
        let mut text = format!("sent {}\n", letters(self.sent));
        for (why, count) in &self.left {
            let _ = writeln!(text, "left {}: {why}", letters(*count)); // a String takes all
        }
        (text, if self.left.is_empty() { Exit::Delivered } else { Exit::Pending })
    }
}
