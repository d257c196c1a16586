//! What is allowed, what was found wrong, and what a run is said to be: text and drawing. Pure.

use std::time::Duration;

use super::drawing::{Drawing, Panel};
use super::figures::{Row, Slope, least_and_most, slope, table};
use super::load::CHURN_MAX;
use super::sample::Sample;
use crate::docker::THREADS_MAX;

const KIB: u64 = 1024;
pub const MIB: u64 = 1024 * KIB;

/// What the agent is told.
pub const MEMORY_BUDGET: u64 = 16 * MIB;

/// What the agent needs whatever it is told to do: the program, the stacks of some twenty threads, the tables of
/// the compressor, and what the allocator keeps for each thread.
const RESIDENT_BASE: u64 = 12 * MIB;

/// A file that is followed: its row, its page in the books, the look of it that is served as JSON.
const RESIDENT_PER_FILE: u64 = 16 * KIB;

/// A container that is followed: a thread, the buffers of its connection, and what is left of them.
const RESIDENT_PER_CONTAINER: u64 = 512 * KIB;

/// A page of the books in the checkpoint, with two sinks and a path of some 60 bytes.
const PAGE_BYTES: u64 = 700;

/// An output in the checkpoint, with a path of some 60 bytes.
const OWN_FILE_BYTES: u64 = 180;

/// The agent looks for outputs that are gone when it knows more than this, and more than twice those that were
/// there at its last look.
const OWN_FILES_SWEEP: u64 = 256;

/// Live heap bytes may rise by so much over all quiet points: a channel takes memory when somebody first waits on it,
/// a queue doubles, and files that the agent wrote itself are looked through when there are many.
const HEAP_ONCE: f64 = 64.0 * 1024.0;

/// A slope is a leak when it is more than so many times the half of its 95 % interval: at 1, one run in forty would be
/// red by chance.
const HEAP_SURELY: f64 = 2.0;

/// A line through fewer quiet points is anybody's.
const QUIET_POINTS_LEAST: usize = 6;

fn resident_ceiling(followed: u64, containers: u64) -> u64 {
    MEMORY_BUDGET + RESIDENT_BASE + followed * RESIDENT_PER_FILE + containers * RESIDENT_PER_CONTAINER
}

/// What a slot is allocated by: room for a snapshot, for as many changes, and for one that is larger.
const SLOT_BYTES: u64 = 256 * KIB;

/// By the files that live, and by the outputs that may still be known.
fn checkpoint_ceiling(generations: u64, workers: u32) -> u64 {
    let outputs = 2 * (u64::from(workers) + CHURN_MAX as u64);
    let snapshot = KIB + generations * PAGE_BYTES + (1 + outputs.max(OWN_FILES_SWEEP)) * OWN_FILE_BYTES;
    2 * snapshot + 2 * SLOT_BYTES
}

pub fn mib(bytes: u64) -> f64 {
    bytes as f64 / MIB as f64
}

pub struct Outcome<'a> {
    /// At the quiet points.
    pub start: &'a Sample,
    pub end: &'a Sample,
    /// From the start of the load to the quiet end.
    pub samples: &'a [Sample],
    /// The quiet points during the load.
    pub quiet: &'a [Sample],
    /// Seconds: in between are the samples that slopes are made of.
    pub warm_up_ended: f64,
    pub load_ended: f64,
    pub workers: u32,
    /// That may be followed at the same time.
    pub containers: u64,
    pub rotations: u64,
    pub stopped_in: Duration,
}

impl Outcome<'_> {
    /// What the quiet points say against each other, and what does not hold in every sample.
    pub fn complaints(&self) -> Vec<String> {
        let Outcome { start, end, samples, .. } = self;
        let mut complaints = Vec::new();
        if (end.threads, end.tasks) != (start.threads, start.tasks) {
            complaints.push(format!(
                "{} threads ({} in the table) at the quiet end, {} ({}) at the start",
                end.threads, end.tasks, start.threads, start.tasks
            ));
        }
        let apart =
            |pair: &[Sample]| -> Vec<i32> { pair[0].apart.intersection(&pair[1].apart).copied().collect() };
        if let Some(pair) = samples.windows(2).rfind(|pair| !apart(pair).is_empty()) {
            complaints.push(format!(
                "{:.0} s, at last: threads {:?} are not in the table, or only there",
                pair[1].at,
                apart(pair)
            ));
        }
        let many = |sample: &Sample| sample.threads > THREADS_MAX + sample.containers as usize;
        if let Some(pair) = samples.windows(2).find(|pair| pair.iter().all(many)) {
            let Sample { at, threads, containers, .. } = &pair[1];
            complaints.push(format!(
                "{at:.0} s: {threads} threads, allowed are {THREADS_MAX} and one for each of {containers} containers"
            ));
        }
        // One that ends has no row any more for a moment.
        let pairs = samples.windows(2).map(|pair| pair[0].foreign.min(pair[1].foreign));
        let foreign = pairs.max().unwrap_or(0);
        if foreign > start.foreign {
            complaints.push(format!("{foreign} foreign threads, {} at the start", start.foreign));
        }
        let over =
            |sample: &&Sample| sample.resident_bytes > resident_ceiling(sample.followed, self.containers);
        if let Some(Sample { at, resident_bytes, followed, .. }) = samples.iter().find(over) {
            let allowed = resident_ceiling(*followed, self.containers);
            complaints.push(format!(
                "{at:.0} s: {resident_bytes} bytes resident, allowed are {allowed} with {followed} files"
            ));
        }
        let allowed = checkpoint_ceiling(end.generations, self.workers);
        if end.checkpoint_bytes > allowed {
            complaints.push(format!(
                "a checkpoint of {} bytes for {} generations, allowed are {allowed}",
                end.checkpoint_bytes, end.generations
            ));
        }
        for point in self.quiet.iter().filter(|point| point.threads != start.threads) {
            complaints.push(format!(
                "{:.0} s: {} threads at a quiet point, {} at the start",
                point.at, point.threads, start.threads
            ));
        }
        if let Some(heap) = self.heap()
            && heap.rise() > HEAP_ONCE
            && heap.slope.per_second > HEAP_SURELY * heap.slope.interval
        {
            complaints
                .push(format!("live heap bytes rise from quiet point to quiet point: {}", heap.words()));
        }
        complaints
    }

    /// Live heap bytes at the quiet points after the warm-up. `None`: nobody counts them, or there are too few.
    fn heap(&self) -> Option<Heap> {
        let warm = self.quiet.iter().filter(|point| point.at >= self.warm_up_ended);
        let points: Vec<(f64, f64)> =
            warm.filter_map(|point| Some((point.at, point.heap_bytes? as f64))).collect();
        (points.len() >= QUIET_POINTS_LEAST).then(|| Heap { slope: slope(&points), points })
    }

    /// Threads, descriptors and live heap bytes, from quiet point to quiet point and in a day.
    fn quiet_lines(&self) -> String {
        let more = |of: fn(&Sample) -> usize| {
            let most = self.quiet.iter().map(of).max().unwrap_or(0);
            most as i64 - self.quiet.first().map_or(0, of) as i64
        };
        let (threads, others) = (more(|point| point.threads), more(|point| point.descriptors.others));
        let heap = match (self.heap(), self.quiet.last().and_then(|point| point.heap_bytes)) {
            (Some(heap), _) => heap.words(),
            (None, Some(bytes)) => format!("{bytes} bytes; too few quiet points for a slope"),
            (None, None) => "not counted (scripts/stress-test.sh builds an agent that does)".into(),
        };
        format!(
            "{} quiet points during the load: threads {threads:+}, descriptors {others:+} but for logs and outputs\n             live heap there: {heap}\n",
            self.quiet.len()
        )
    }

    fn most(&self, of: fn(&Sample) -> u64) -> u64 {
        self.samples.iter().map(of).max().unwrap_or(0)
    }

    pub fn report(&self) -> String {
        type Figure = (&'static str, usize, fn(&Sample) -> f64);
        const FIGURES: [Figure; 8] = [
            ("threads", 0, |sample| sample.threads as f64),
            ("descriptors", 0, |sample| sample.descriptors.all() as f64),
            ("  of deleted files", 0, |sample| sample.descriptors.deleted as f64),
            ("resident memory, MiB", 2, |sample| mib(sample.resident_bytes)),
            ("files followed", 0, |sample| sample.followed as f64),
            ("containers followed", 0, |sample| sample.containers as f64),
            ("ledger generations", 0, |sample| sample.generations as f64),
            ("checkpoint, KiB", 1, |sample| sample.checkpoint_bytes as f64 / KIB as f64),
        ];
        let Outcome { start, end, .. } = self;
        let counts = |sample: &&Sample| (self.warm_up_ended..=self.load_ended).contains(&sample.at);
        let rows = FIGURES.map(|(name, digits, of)| {
            let points = self.samples.iter().filter(counts).map(|sample| (sample.at, of(sample))).collect();
            Row { name, digits, start: of(start), end: of(end), points }
        });
        let (seconds, lines) = (self.load_ended - start.at, end.written - start.written);
        let cpu = end.cpu_seconds - start.cpu_seconds;
        self.quiet_lines()
            + &format!(
                "{}\nslopes: least squares over {:.0} s after the warm-up; 24 hours are extrapolated from them\n\
             threads: {:+} from quiet point to quiet point\n\
             memory: {:.1} MiB at most, allowed are {:.1} (budget {} + base {} + {} KiB for each of {} files)\n\
             checkpoint: {:.1} KiB at the quiet end, allowed are {:.1}\n\
             load: {lines} lines of {} writers and of files of a moment, {} rotations, in {seconds:.0} s ({:.0} lines/s)\n\
             cost: {cpu:.1} s of processor time, {:.1} µs a line\n\
             pending: at most {} lines for loki, {} for the file; longest silence of a busy task {} ms\n\
             stop: {:.0} ms\n",
                table(&rows),
                self.load_ended - self.warm_up_ended,
                end.threads as i64 - start.threads as i64,
                mib(self.most(|sample| sample.resident_bytes)),
                mib(resident_ceiling(end.followed, self.containers)),
                MEMORY_BUDGET / MIB,
                RESIDENT_BASE / MIB,
                RESIDENT_PER_FILE / KIB,
                end.followed,
                end.checkpoint_bytes as f64 / KIB as f64,
                checkpoint_ceiling(end.generations, self.workers) as f64 / KIB as f64,
                self.workers,
                self.rotations,
                lines as f64 / seconds,
                cpu * 1e6 / lines as f64,
                self.most(|sample| sample.pending[0]),
                self.most(|sample| sample.pending[1]),
                self.most(|sample| sample.silence_ms),
                self.stopped_in.as_secs_f64() * 1000.0,
            )
    }

    pub fn drawing(&self) -> Drawing<'static> {
        let line = |of: fn(&Sample) -> f64| -> Vec<(f64, f64)> {
            self.samples.iter().map(|sample| (sample.at, of(sample))).collect()
        };
        let rate = |sink: usize| -> Vec<(f64, f64)> {
            let rate = |pair: &[Sample]| {
                let lines = pair[1].delivered[sink].saturating_sub(pair[0].delivered[sink]);
                (pair[1].at, lines as f64 / (pair[1].at - pair[0].at))
            };
            self.samples.windows(2).map(rate).collect()
        };
        let panel = |title, lines, limit| Panel { title, lines, limit };
        let heap =
            self.quiet.iter().filter_map(|point| Some((point.at, point.heap_bytes? as f64 / KIB as f64)));
        let heap = vec![("", heap.collect::<Vec<_>>())];
        let heap = (!heap[0].1.is_empty()).then(|| panel("live heap at quiet points (KiB)", heap, None));
        Drawing {
            title: "log-capturer under stress",
            subtitle: format!(
                "{} writers that rotate, files of a moment, a Loki that is ill every other moment; a sample each second",
                self.workers
            ),
            seconds: self.end.at,
            shaded: vec![(0.0, self.warm_up_ended), (self.load_ended, self.end.at)],
            panels: Vec::from_iter(
                [
                    panel("threads", vec![("", line(|sample| sample.threads as f64))], None),
                    panel(
                        "open descriptors",
                        vec![
                            ("all", line(|sample| sample.descriptors.all() as f64)),
                            ("of deleted files", line(|sample| sample.descriptors.deleted as f64)),
                        ],
                        None,
                    ),
                    panel(
                        "resident memory (MiB)",
                        vec![("", line(|sample| mib(sample.resident_bytes)))],
                        Some(("allowed", mib(resident_ceiling(self.end.followed, self.containers)))),
                    ),
                    panel(
                        "pending (lines)",
                        vec![
                            ("loki", line(|sample| sample.pending[0] as f64)),
                            ("file", line(|sample| sample.pending[1] as f64)),
                        ],
                        None,
                    ),
                    panel("delivered (lines per second)", vec![("loki", rate(0)), ("file", rate(1))], None),
                ]
                .into_iter()
                .chain(heap),
            ),
        }
    }
}

struct Heap {
    points: Vec<(f64, f64)>,
    slope: Slope,
}

impl Heap {
    /// As the line says: one point may be high by chance.
    fn rise(&self) -> f64 {
        let (first, last) = least_and_most(self.points.iter().map(|(at, _)| *at));
        self.slope.per_second * (last - first)
    }

    fn words(&self) -> String {
        const HOUR: f64 = 3600.0;
        let (least, most) = least_and_most(self.points.iter().map(|(_, bytes)| *bytes));
        let Slope { per_second, interval } = self.slope;
        let kib = |bytes: f64| bytes / KIB as f64;
        format!(
            "{least:.0} to {most:.0} bytes at {} points after the warm-up; {:+.1} ± {:.1} KiB an hour (95 %), {:+.1} ± {:.1} KiB in \
             24 hours",
            self.points.len(),
            kib(per_second * HOUR),
            kib(interval * HOUR),
            kib(per_second * 24.0 * HOUR),
            kib(interval * 24.0 * HOUR),
        )
    }
}

/// The judge is judged first.
#[test]
fn each_leak_is_seen() {
    let check = |what: &str, expected: &str, spoil: &dyn Fn(&mut [Sample])| {
        let quiet = Sample { threads: 15, tasks: 15, resident_bytes: 10 * MIB, ..Sample::default() };
        let mut samples = vec![quiet.clone(), quiet.clone(), quiet.clone()];
        spoil(&mut samples);
        let outcome = Outcome {
            start: &quiet,
            end: &samples[2],
            samples: &samples,
            quiet: &[],
            warm_up_ended: 0.0,
            load_ended: 1.0,
            workers: 10,
            containers: 0,
            rotations: 0,
            stopped_in: Duration::ZERO,
        };
        let complaints = outcome.complaints().join("; ");
        assert!(
            complaints.contains(expected) && complaints.is_empty() == expected.is_empty(),
            "{what}: {complaints}"
        );
    };
    check("nothing", "", &|_| {});
    check("a thread more", "16 threads", &|samples| samples[2].threads = 16);
    check("a row more", "(16 in the table)", &|samples| samples[2].tasks = 16);
    check("a thread that ended in time", "", &|samples| samples[1].threads = 16);
    check("an unknown thread", "threads [7]", &|samples| {
        samples[0].apart.insert(7);
        samples[1].apart.insert(7);
    });
    check("one just starting", "", &|samples| {
        samples[1].apart.insert(7);
    });
    check("two of them", "", &|samples| {
        samples[0].apart.insert(7);
        samples[1].apart.insert(8);
    });
    check("a foreign thread", "1 foreign threads", &|samples| {
        (samples[1].foreign, samples[2].foreign) = (1, 1);
    });
    check("one that just ends", "", &|samples| samples[1].foreign = 1);
    check("memory", "bytes resident", &|samples| samples[1].resident_bytes = 29 * MIB);
    check("memory for many files", "", &|samples| {
        (samples[1].resident_bytes, samples[1].followed) = (29 * MIB, 1000);
    });
    let (bound, many) = (THREADS_MAX, |samples: &mut [Sample], threads: usize, containers: u64| {
        samples[..2]
            .iter_mut()
            .for_each(|sample| (sample.threads, sample.containers) = (threads, containers));
    });
    check("a thread for each container", "", &|samples| many(samples, bound + 3, 3));
    check("a thread more", "and one for each of 3", &|samples| many(samples, bound + 4, 3));
    check("a checkpoint that grows", "a checkpoint of", &|samples| samples[2].checkpoint_bytes = 700 * KIB);
}

#[test]
fn a_heap_that_grows_is_told_from_one_that_settles() {
    let check = |what: &str, bytes: &dyn Fn(f64) -> f64, expected: &str| {
        let quiet = Sample { threads: 15, tasks: 15, ..Sample::default() };
        let point = |at: u32| {
            let at = f64::from(at) * 30.0;
            Sample { at, heap_bytes: Some(bytes(at) as u64), ..quiet.clone() }
        };
        let outcome = Outcome {
            start: &quiet,
            end: &quiet,
            samples: &[],
            quiet: &(0..20).map(point).collect::<Vec<_>>(),
            warm_up_ended: 200.0,
            load_ended: 600.0,
            workers: 10,
            containers: 0,
            rotations: 0,
            stopped_in: Duration::ZERO,
        };
        let complaints = outcome.complaints().join("; ");
        assert!(
            complaints.contains(expected) && complaints.is_empty() == expected.is_empty(),
            "{what}: {complaints}"
        );
    };
    let noise = |at: f64| 20_000.0 * ((at * 12.9898).sin() * 43758.5453).fract();
    check("flat", &|_| 3e6, "");
    check("noise", &|at| 3e6 + noise(at), "");
    check("one step", &|at| if at < 400.0 { 3e6 } else { 3e6 + 8_000.0 }, "");
    check("the warm-up", &|at| 3e6 + 1e6 * (at / 200.0).min(1.0), "");
    check("a leak of 300 bytes a second", &|at| 3e6 + 300.0 * at + noise(at), "live heap bytes rise");
}
