//! The file sink: the exact bytes of the sources, or a JSON object a line, into files named by a [`Template`].
//!
//! The encoder lays the records of a batch one after the other into one buffer and says which part of it goes
//! into which file; [`outputs`] opens, rotates, writes, and takes back what was written of a batch that failed.
//!
//! Always true: records of one output keep their order. In text, what was written is what was read, byte by
//! byte.

mod outputs;
mod rotate;
mod template;

use std::collections::HashMap;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

pub use template::Template;

use self::outputs::Outputs;
use super::format::Renderer;
use super::{Encoder, FileOptions, Link, OpenResult, OpenSink, SinkContext, SinkOptions};
use crate::ack::GenerationId;
use crate::error::Error;
use crate::record::{Batch, Record};

/// Opens nothing yet: an output is opened, or made, by its first line. Always one connection, whatever the
/// options say: the outputs have one writer. An error is a path that the configuration should have refused.
pub fn open(options: &SinkOptions, file: &FileOptions, cx: &SinkContext) -> OpenResult {
    let template = Template::parse(&file.path)
        .map_err(|complaint| Error::new(format!("{}: path: {:?} {complaint}", options.name, file.path)))?;
    let encoder = FileEncoder {
        timed: template.has_time(),
        template,
        renderer: Renderer::new(file.format, options.labels.clone()),
        places: HashMap::new(),
        paths: HashMap::new(),
    };
    Ok(OpenSink {
        connections: vec![Box::new(Link::new(encoder, Outputs::new(&options.name, file.rotate, cx)))],
        cancel: Box::new(|| {}), // a write to a disk cannot be interrupted, and does not wait for others
        describe: format!("files at {}", file.path),
    })
}

/// A batch, laid out for the disk.
#[derive(Default)]
pub struct Payload {
    bytes: Vec<u8>,
    paths: Vec<Arc<Path>>,
    /// Index into `paths`, and range of `bytes`. Neighbours have different paths.
    pieces: Vec<(usize, Range<usize>)>,
}

impl Payload {
    /// In order.
    fn pieces(&self) -> impl Iterator<Item = (&Arc<Path>, &[u8])> {
        self.pieces.iter().map(|(path, range)| (&self.paths[*path], &self.bytes[range.clone()]))
    }
}

struct FileEncoder {
    template: Template,
    /// The path depends on the record's time.
    timed: bool,
    renderer: Renderer,
    /// Index into the payload's paths. A generation has one source and one filename for ever.
    places: HashMap<(GenerationId, i64), usize>,
    /// The same by path: several generations may share an output.
    paths: HashMap<Arc<Path>, usize>,
}

impl Encoder for FileEncoder {
    type Payload = Payload;

    fn encode(&mut self, batch: &Batch, payload: &mut Payload) {
        payload.bytes.clear();
        payload.pieces.clear();
        payload.paths.clear();
        self.places.clear();
        self.paths.clear();
        let mut run = None; // records come in long runs of one place
        for record in batch.records() {
            let hour = if self.timed { template::hour_of(record.time_ns) } else { 0 };
            let place = (record.origin.generation, hour);
            let path = match run {
                Some((known, path)) if known == place => path,
                _ => self.path(&record, place, payload),
            };
            run = Some((place, path));
            let start = payload.bytes.len();
            self.renderer.push(&record, &mut payload.bytes);
            let end = payload.bytes.len();
            match payload.pieces.last_mut() {
                Some((last, range)) if *last == path => range.end = end,
                _ => payload.pieces.push((path, start..end)),
            }
        }
    }
}

impl FileEncoder {
    fn path(&mut self, record: &Record<'_>, place: (GenerationId, i64), payload: &mut Payload) -> usize {
        *self.places.entry(place).or_insert_with(|| {
            let path: Arc<Path> = self.template.render(record.origin, place.1).into();
            *self.paths.entry(path).or_insert_with_key(|path| {
                payload.paths.push(path.clone());
                payload.paths.len() - 1
            })
        })
    }
}

#[cfg(test)]
pub mod tests;
