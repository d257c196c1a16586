//! The file sink: the exact bytes of the sources, or a JSON object a line, into files named by a [`Template`].
//!
//! The encoder lays the records of a batch one after the other into one buffer and says which part of it goes
//! into which file, and where it comes from; [`outputs`] opens, rotates, writes, and takes back what was written of
//! a batch that failed. Before it writes, it notes in the [`journal`] what it is about to write; so the next life
//! knows what stands in the outputs, and cuts off what a crash has torn ([`recovery`]).
//!
//! Always true: records of one output keep their order. In text, what was written is what was read, byte by
//! byte. After the death of the process at any moment, and a replay of what was not recovered, each line stands in
//! its output once.

mod frame;
mod journal;
mod outputs;
mod payload;
mod recovery;
mod rotate;
mod template;

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

pub use journal::SEGMENTS_MAX as JOURNAL_SEGMENTS_MAX;
pub use outputs::{OPEN_MAX, UNSYNCED_MAX};
pub use template::Template;

use self::journal::Journal;
use self::outputs::Outputs;
use self::payload::Payload;
use self::recovery::{Recovered, recover};
use super::format::Renderer;
use super::{Delivered, Encoder, FileOptions, Format, Link, OpenResult, OpenSink, SinkContext, SinkOptions};
use crate::ack::GenerationId;
use crate::error::Error;
use crate::record::{Batch, Origin, Slice};

/// Reads the journal of the last life and repairs its outputs; else an output is opened, or made, by its first
/// line. Always one connection, whatever the options say: the outputs have one writer. An error is a path that the
/// configuration should have refused.
pub fn open(options: &SinkOptions, file: &FileOptions, cx: &SinkContext) -> OpenResult {
    let template = Template::parse(&file.path)
        .map_err(|complaint| Error::new(format!("{}: path: {:?} {complaint}", options.name, file.path)))?;
    let encoder = FileEncoder {
        timed: template.has_time(),
        template,
        exact: file.format == Format::Text,
        cuts: file.rotate.is_some_and(|rotate| rotate.max_bytes.is_some()),
        renderer: Renderer::new(file.format, options.labels.clone()),
        places: HashMap::new(),
        paths: HashMap::new(),
        last: None,
    };
    let was_known = Arc::<AtomicBool>::default();
    let (journal, recovered) = match &cx.journals {
        Some(folder) => {
            let (journal, recovered) = open_journal(&options.name, folder, was_known.clone(), cx);
            (Some(journal), recovered)
        }
        None => (None, Vec::new()),
    };
    let outputs = Outputs::new(&options.name, file.rotate, journal, cx);
    Ok(OpenSink {
        connections: vec![Box::new(Link::new(encoder, outputs))],
        cancel: Box::new(|| {}), // a write to a disk cannot be interrupted, and does not wait for others
        describe: format!("files at {}", file.path),
        recovered,
        was_known,
    })
}

fn open_journal(
    name: &Arc<str>,
    folder: &Path,
    was_known: Arc<AtomicBool>,
    cx: &SinkContext,
) -> (Journal, Vec<Delivered>) {
    let counter = |family, help| cx.metrics.counter(family, help, &[("sink", name)]);
    let unjournaled = counter(
        "outputs_unjournaled_total",
        "Writes to outputs that could not be noted first: a crash soon after them doubles lines.",
    );
    let about = "Files of the journal of the outputs of a sink, each of 1 MiB.";
    let segments = cx.metrics.gauge("output_journal_segments", about, &[("sink", name)]);
    let meters = journal::Meters { unjournaled, segments };
    let (disk, unsynced, passed) = (cx.disk.clone(), cx.unsynced.clone(), cx.passed.clone());
    let (mut journal, found) = Journal::open(name, folder.join(&**name), disk, unsynced, passed, meters);
    let Recovered { mut delivered, believed, cut, strange, failed } =
        recover(name, found, &cx.disk, &cx.unsynced);
    journal.believe(believed, was_known);
    counter("outputs_cut_bytes_total", "Bytes of torn writes cut off outputs at the start.").add(cut);
    counter(
        "outputs_strange_bytes_total",
        "Bytes that a crash may have doubled: torn, and not to be cut off.",
    )
    .add(strange);
    if cut > 0 {
        log::info!("{name}: cut {cut} bytes off the outputs that the last life had not written to their end");
    }
    if strange > 0 {
        log::warn!(
            "{name}: {strange} bytes of outputs are not as they were written, and may stand there twice now"
        );
    }
    if failed {
        journal.start_over();
    }
    if cx.first_start {
        journal.forget();
        delivered.clear();
    }
    if !delivered.is_empty() {
        log::info!("{name}: {} ranges that the last life wrote stand in the outputs", delivered.len());
    }
    (journal, delivered)
}

struct FileEncoder {
    template: Template,
    /// The path depends on the record's time.
    timed: bool,
    /// A record that no stage has replaced stands in the output byte by byte.
    exact: bool,
    /// A rotation may come between the records of a batch.
    cuts: bool,
    renderer: Renderer,
    /// Index into the payload's paths. A generation has one source and one filename for ever.
    places: HashMap<(GenerationId, i64), usize>,
    /// The same by path: several generations may share an output.
    paths: HashMap<Arc<Path>, usize>,
    /// Where the last place leads to: batch after batch may be of one source.
    last: Option<((GenerationId, i64), Arc<Path>)>,
}

impl Encoder for FileEncoder {
    type Payload = Payload;

    fn encode(&mut self, batch: &Batch, payload: &mut Payload) {
        payload.clear();
        self.places.clear();
        self.paths.clear();
        for slice in batch.slices() {
            // Nearly always: one stretch of the source, which goes into one output as it is.
            if self.exact
                && let Some(plain) = slice.records.plain(slice.range.clone())
                && let hours = [plain.time_ns, plain.last_time_ns()].map(|time_ns| self.hour(time_ns))
                && hours[0] == hours[1]
            {
                let origin = slice.records.origin();
                let path = self.path(origin, (origin.generation, hours[0]), payload);
                payload.push_plain(path, slice, &plain);
            } else {
                self.encode_each(slice, payload);
            }
        }
    }

    fn delivered(&mut self, payload: &mut Payload) {
        payload.clear();
    }

    fn rest(&mut self, _: Payload) {
        (self.places, self.paths, self.last) = (HashMap::new(), HashMap::new(), None);
    }
}

impl FileEncoder {
    fn encode_each(&mut self, slice: &Slice, payload: &mut Payload) {
        let mut run = None; // records come in long runs of one place
        for record in slice.iter() {
            let place = (record.origin.generation, self.hour(record.time_ns));
            let path = match run {
                Some((known, path)) if known == place => path,
                _ => self.path(record.origin, place, payload),
            };
            run = Some((place, path));
            let exact = self.exact && record.raw.is_some();
            let renderer = &self.renderer;
            payload.push(path, &record, exact, self.cuts, |bytes| renderer.push(&record, bytes));
        }
    }

    fn hour(&self, time_ns: i64) -> i64 {
        if self.timed { template::hour_of(time_ns) } else { 0 }
    }

    fn path(&mut self, origin: &Origin, place: (GenerationId, i64), payload: &mut Payload) -> usize {
        *self.places.entry(place).or_insert_with(|| {
            let (_, path) = match self.last.take() {
                Some(last) if last.0 == place => self.last.insert(last),
                _ => self.last.insert((place, self.template.render(origin, place.1).into())),
            };
            *self.paths.entry(path.clone()).or_insert_with_key(|path| payload.add_path(path.clone()))
        })
    }
}

#[cfg(test)]
mod crashes;
#[cfg(test)]
pub mod tests;
