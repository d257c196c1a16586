//! The pipeline: what becomes of a line between its source and its sinks, by rules of the configuration.
//!
//! ```text
//! Lines ──▶ stage 0 ──▶ stage 1 ──▶ … ──▶ Records    (all sinks)
//!              └───────────┴──▶ dropped, settled      (by the stage's reason, on every share)
//!              └───────────┴──▶ poisoned              (a stage panicked on it: the worker dead-letters it)
//! ```
//!
//! Pure: no files, no network, no threads, no clock. Each worker compiles a [`Pipeline`] of its own and calls
//! [`Pipeline::run`] for every chunk.
//!
//! Always true: a stage sees one line, its number and its source, nothing else, so a replay gives the same
//! records wherever the chunks are cut. A line that no stage changes is not copied, and a chunk of such lines
//! costs no memory at all. Lines are dropped or not first, and settled when all of the chunk has passed: a panic
//! leaves nothing half done. What stages copy is charged to the chunk's credit.
//!
//! Not here: what becomes of poisoned lines (the worker), whether `sources` exist (the configuration).

mod cri;
mod json;
mod labels;
mod line;
mod matching;
#[cfg(test)]
mod tests;
mod timestamp;

use std::mem::size_of;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use crate::ack::{Ack, Count, Verdict};
use crate::metrics::{Counter, Registry};
use crate::record::{Entry, Lines, Origin, Records};
use crate::tasks::panic_text;

pub use json::{JsonOptions, OnError};
pub use labels::{LabelsOptions, SETS_BYTES_MAX as LABEL_SETS_BYTES_MAX};
pub use matching::{Condition, MatchOptions};
pub use timestamp::{TimeFormat, TimeFrom, TimestampOptions};

use line::{FieldId, Line};

/// One entry of `pipeline[]`.
#[derive(Clone, Debug)]
pub struct StageOptions {
    /// `sources`: names of the sources whose lines the stage sees; `None`: of all.
    pub sources: Option<Vec<Arc<str>>>,
    /// `by_label`: what a source has to ask for to have its lines passed through here, see [`Origin::stages`].
    pub by_label: Option<Arc<str>>,
    /// `type`, and the keys that belong to it.
    pub kind: StageKind,
}

impl StageOptions {
    /// Whether it may see lines of the source of this name.
    pub fn is_for(&self, source: &str) -> bool {
        names(self.sources.as_deref(), source)
    }
}

fn names(sources: Option<&[Arc<str>]>, source: &str) -> bool {
    sources.is_none_or(|sources| sources.iter().any(|name| **name == *source))
}

/// The name of a variant, in lower case, is its `type`.
#[derive(Clone, Debug)]
pub enum StageKind {
    Cri,
    Json(JsonOptions),
    Timestamp(TimestampOptions),
    Labels(LabelsOptions),
    Keep(MatchOptions),
    Drop(MatchOptions),
    /// Panics on texts that contain it, to show what becomes of them.
    #[cfg(test)]
    PanicOn(&'static str),
}

/// Index of the stage, its key, and what is wrong there: the value, why not, and what to write instead.
pub type Complaint = (usize, &'static str, String);

/// What became of a chunk besides what was dropped.
#[derive(Debug)]
pub struct Outcome {
    /// Without the poisoned lines.
    pub records: Records,
    /// In rising order. Not settled: their text is [`Records::as_read`].
    pub poisoned: Vec<Poisoned>,
}

/// A line that a stage panicked on.
#[derive(Debug, PartialEq, Eq)]
pub struct Poisoned {
    /// In its chunk, from 0.
    pub line: u32,
    pub panic: String,
}

/// Compiled stages, with the caches of one worker.
pub struct Pipeline {
    stages: Vec<Stage>,
    /// The JSON fields that stages ask for; a [`FieldId`] is a place in it.
    names: Vec<Arc<str>>,
    /// How many there were: tells apart what is charged to which. A number is never used twice.
    passes: u64,
}

struct Stage {
    sources: Option<Vec<Arc<str>>>,
    by_label: Option<Arc<str>>,
    type_name: &'static str,
    work: Work,
    dropped_here: Verdict,
    unparsed_total: Arc<Counter>,
    /// Sees the chunk that is under way.
    active: bool,
    /// In the pass that is under way.
    dropped: Count,
    /// In the pass that is under way.
    unparsed: u64,
}

enum Work {
    Cri(cri::Cri),
    Json(json::Json),
    Timestamp(timestamp::Timestamp),
    Labels(labels::Labeller),
    Match(matching::Matcher),
    #[cfg(test)]
    PanicOn(&'static str),
}

/// Where a line goes from a stage.
enum Step {
    Next,
    /// On as well, but what the stage looked for was not there.
    Unparsed,
    Drop,
}

/// What is known about the stages while they are compiled.
struct Builder<'c> {
    stage: usize,
    /// A `json` stage comes before this one.
    json_before: bool,
    names: Vec<Arc<str>>,
    complaints: &'c mut Vec<Complaint>,
}

impl Pipeline {
    /// All complaints at once. Cheap enough for a mere check of the configuration.
    pub fn compile(options: &[StageOptions]) -> Result<Pipeline, Vec<Complaint>> {
        let mut complaints = Vec::new();
        let mut builder = Builder::new(&mut complaints);
        let mut stages = Vec::new();
        for (index, options) in options.iter().enumerate() {
            builder.stage = index;
            stages.extend(Stage::new(options, &mut builder));
            builder.json_before |= matches!(options.kind, StageKind::Json(_));
        }
        let names = builder.names;
        if complaints.is_empty() { Ok(Pipeline { stages, names, passes: 0 }) } else { Err(complaints) }
    }

    /// Counts there from now on what no stage could parse; the pipelines of all workers share the series.
    pub fn count_in(&mut self, registry: &Registry) {
        for (index, stage) in self.stages.iter_mut().enumerate() {
            if matches!(stage.work, Work::Cri(_) | Work::Json(_) | Work::Timestamp(_)) {
                stage.unparsed_total = registry.counter(
                    "pipeline_unparsed_lines_total",
                    "Lines that a stage could not parse and passed on as they were.",
                    &[("stage", &index.to_string()), ("type", stage.type_name)],
                );
            }
            if let Work::Labels(labeller) = &mut stage.work {
                labeller.sets_gauge =
                    registry.gauge("label_sets_bytes", "Label sets that are kept to be shared.", &[]);
            }
        }
    }

    /// Passes one chunk. Dropped lines are settled on every share of `ack`, whose shares have to be whole; the
    /// rest of each is for the records and the poisoned lines.
    pub fn run(&mut self, mut lines: Lines, ack: &mut Ack) -> Outcome {
        self.stages.iter_mut().for_each(|stage| stage.active = stage.sees(&lines.origin));
        if !self.stages.iter().any(|stage| stage.active) {
            return Outcome { records: Records::untouched(lines), poisoned: Vec::new() };
        }
        // A panic leaves behind a pass, which is thrown away, counts, which begin anew with each pass, and
        // tables of label sets, which only ever get whole ones.
        let pass = catch_unwind(AssertUnwindSafe(|| self.pass(&lines, Care::Chunk)))
            .unwrap_or_else(|_| self.pass(&lines, Care::Line));

        for stage in self.stages.iter().filter(|stage| stage.active) {
            stage.unparsed_total.add(stage.unparsed);
            if stage.dropped.lines > 0 {
                for share in ack.shares_mut() {
                    share.settle_part(stage.dropped, &stage.dropped_here);
                }
            }
        }
        let records = match pass.entries {
            None => Records::untouched(lines),
            Some(mut entries) => {
                entries.shrink_to_fit();
                lines.credit.grow(pass.charge + entries.capacity() * size_of::<Entry>());
                Records::kept(lines, entries)
            }
        };
        Outcome { records, poisoned: pass.poisoned }
    }

    fn pass(&mut self, lines: &Lines, care: Care) -> Pass {
        self.passes += 1;
        let Pipeline { stages, names, passes } = self;
        stages.iter_mut().for_each(Stage::begin_pass);
        let mut pass = Pass::default();
        let mut line = Line::new(&lines.origin, names, *passes);
        for index in 0..lines.len() {
            let mut through = || {
                line.begin(lines.first_line + index as u64, lines.text(index));
                line.set_base(lines.labels(index), lines.metadata(index));
                stages.iter_mut().position(|stage| stage.active && stage.drops(&mut line))
            };
            let dropped_by = match care {
                Care::Chunk => Ok(through()),
                // The line begins anew after a panic, like after any other.
                Care::Line => catch_unwind(AssertUnwindSafe(through)),
            };
            match dropped_by {
                Ok(None) => pass.keep(lines, index, &mut line),
                Ok(Some(stage)) => {
                    pass.list_all_before(index, lines.len());
                    stages[stage].dropped += Count { lines: 1, bytes: lines.raw(index).len() as u64 };
                }
                Err(panic) => {
                    pass.list_all_before(index, lines.len());
                    pass.poisoned.push(Poisoned { line: index as u32, panic: panic_text(&*panic) });
                }
            }
        }
        pass.charge = line.charge;
        pass
    }
}

/// What one panic costs.
#[derive(Clone, Copy)]
enum Care {
    /// The pass: free, and good for all chunks but the rare one that has to be passed again.
    Chunk,
    /// The line that caused it.
    Line,
}

#[derive(Default)]
struct Pass {
    /// `None` as long as all lines are as they were.
    entries: Option<Vec<Entry>>,
    poisoned: Vec<Poisoned>,
    /// Bytes.
    charge: usize,
}

impl Pass {
    fn keep(&mut self, lines: &Lines, index: usize, line: &mut Line<'_>) {
        let changed = line.take_changed();
        if changed.is_some() {
            self.list_all_before(index, lines.len());
        }
        if let Some(entries) = &mut self.entries {
            entries.push(Entry { line: index as u32, changed });
        }
    }

    /// From `index` on there are differences, so the lines before it need entries too.
    fn list_all_before(&mut self, index: usize, lines: usize) {
        self.entries.get_or_insert_with(|| {
            let mut entries = Vec::with_capacity(lines);
            entries.extend((0..index as u32).map(|line| Entry { line, changed: None }));
            entries
        });
    }
}

impl Stage {
    /// `None` after a complaint.
    fn new(options: &StageOptions, builder: &mut Builder<'_>) -> Option<Stage> {
        if options.sources.as_ref().is_some_and(Vec::is_empty) {
            builder.complain("sources", "[] names no source; leave the key out for all of them".into());
        }
        let mut reason = None;
        let (type_name, work) = match &options.kind {
            StageKind::Cri => ("cri", Work::Cri(cri::Cri::new())),
            StageKind::Json(options) => ("json", Work::Json(json::Json::new(options, builder))),
            StageKind::Timestamp(options) => {
                ("timestamp", Work::Timestamp(timestamp::Timestamp::new(options, builder)))
            }
            StageKind::Labels(options) => ("labels", Work::Labels(labels::Labeller::new(options, builder))),
            StageKind::Keep(options) => {
                reason = options.reason.clone();
                ("keep", Work::Match(matching::Matcher::new(options, false, builder)?))
            }
            StageKind::Drop(options) => {
                reason = options.reason.clone();
                ("drop", Work::Match(matching::Matcher::new(options, true, builder)?))
            }
            #[cfg(test)]
            StageKind::PanicOn(marker) => ("panic_on", Work::PanicOn(marker)),
        };
        let reason = reason.unwrap_or_else(|| format!("pipeline[{}]: {type_name}", builder.stage).into());
        Some(Stage {
            sources: options.sources.clone(),
            by_label: options.by_label.clone(),
            type_name,
            work,
            dropped_here: Verdict::Dropped(reason),
            unparsed_total: Arc::default(),
            active: false,
            dropped: Count::default(),
            unparsed: 0,
        })
    }

    fn sees(&self, origin: &Origin) -> bool {
        names(self.sources.as_deref(), &origin.source)
            && self.by_label.as_ref().is_none_or(|label| origin.stages.contains(label))
    }

    fn begin_pass(&mut self) {
        self.dropped = Count::default();
        self.unparsed = 0;
    }

    fn drops(&mut self, line: &mut Line<'_>) -> bool {
        let step = match &mut self.work {
            Work::Cri(stage) => stage.step(line),
            Work::Json(stage) => stage.step(line),
            Work::Timestamp(stage) => stage.step(line),
            Work::Labels(stage) => stage.step(line),
            Work::Match(stage) => stage.step(line),
            #[cfg(test)]
            Work::PanicOn(marker) => {
                let found = memchr::memmem::find(line.text(), marker.as_bytes()).is_some();
                assert!(!found, "met {marker}");
                Step::Next
            }
        };
        self.unparsed += u64::from(matches!(step, Step::Unparsed));
        matches!(step, Step::Drop)
    }
}

impl<'c> Builder<'c> {
    fn new(complaints: &'c mut Vec<Complaint>) -> Builder<'c> {
        Builder { stage: 0, json_before: false, names: Vec::new(), complaints }
    }

    fn complain(&mut self, key: &'static str, complaint: String) {
        self.complaints.push((self.stage, key, complaint));
    }

    /// A field that an earlier stage has to read.
    fn field(&mut self, key: &'static str, name: &Arc<str>) -> FieldId {
        if !self.json_before {
            let remedy = "put a stage of type json in front of this one";
            self.complain(key, format!("{name:?} is a field of JSON that nothing has read; {remedy}"));
        }
        self.name(name)
    }

    fn name(&mut self, name: &Arc<str>) -> FieldId {
        let known = self.names.iter().position(|known| known == name);
        FieldId(known.unwrap_or_else(|| {
            self.names.push(name.clone());
            self.names.len() - 1
        }))
    }
}
