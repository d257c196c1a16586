//! The `discovery` thread: sweeps the folders for files that match, so that slow walks are never in the way of
//! reading.
//!
//! Always true: each sweep gives the whole picture and replaces the one before. One entry per file, whatever
//! the number of its names (links of both kinds, overlapping patterns): the first configured source that
//! matches wins, then the first pattern, then the first name. Nothing but regular files is in it, and nothing
//! is opened to find that out (opening a FIFO would block). What the agent itself writes is never in it.
//!
//! Not here: what becomes of a file that was found (`tail.rs`).

use std::collections::{HashMap, HashSet};
use std::ffi::OsStr;
use std::fs;
use std::io;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, select};
use rustix::fs::FileType;
use rustix::io::Errno;

use super::Post;
use super::beside::modified_ns;
use super::glob::{Excludes, Pattern};
use super::sweep::{Sweep, join};
use super::watch::Watches;
use crate::clock::next_tick;
use crate::durable::{FileId, OwnFiles};
use crate::error::Result;
use crate::monitors::{Off, SourceKind, SourceOptions};
use crate::tasks::{Closed, Task};

/// Sweeps without any reason: for file systems that report nothing, and permissions that were given later.
const SWEEP_EVERY: Duration = Duration::from_secs(10);

/// The same where every change is reported: what a report that was missed costs at most.
const SWEEP_SELDOM: Duration = Duration::from_secs(120);

/// After a sweep there is at least this much rest, and ten times as long as it took: folders that change all
/// the time cost a tenth of a core at most. After a longer quiet time a change is answered at once. A file that
/// lives for a shorter time is perhaps never seen.
const REST: Duration = Duration::from_millis(50);

/// More folders that cannot be read are not named one by one.
pub const COMPLAINTS_MAX: usize = 1000;

/// A folder is entered by so many ways at most, for one pattern: links that lead everywhere have more ways than
/// anybody can walk.
const WAYS_MAX: u32 = 16;

/// One source as discovery sees it.
struct Target {
    source: usize,
    name: Arc<str>,
    include: Vec<Pattern>,
    exclude: Excludes,
}

/// The thread's body.
pub struct Discovery {
    targets: Vec<Target>,
    off: Off,
    /// Patterns of what our own sinks write.
    outputs: Excludes,
    own: OwnFiles,
    watches: Watches,
    stirred: Receiver<()>,
    picture: Post<Option<Sweep>>,
    stop: Closed,
    once: bool,
    complaints: Complaints,
}

/// What was said already, so that it is said once.
#[derive(Default)]
struct Complaints {
    folders: HashSet<PathBuf>,
    overlaps: HashSet<(usize, usize)>,
}

/// What discovery is told about the world around it.
pub(super) struct Setting {
    pub off: Off,
    pub outputs: Vec<String>,
    pub own: OwnFiles,
    pub once: bool,
    pub stop: Closed,
}

enum Event {
    Stop,
    Sweep,
}

impl Discovery {
    pub(super) fn new(
        sources: &[SourceOptions],
        setting: Setting,
        watches: Watches,
        stirred: Receiver<()>,
        picture: Post<Option<Sweep>>,
    ) -> Result<Discovery> {
        let mut targets = Vec::new();
        for (source, options) in sources.iter().enumerate() {
            if let SourceKind::File(file) = &options.kind {
                let include = file.include.iter().map(|text| Pattern::parse(text)).collect::<Result<_>>()?;
                let exclude = Excludes::parse(&file.exclude)?;
                targets.push(Target { source, name: options.name.clone(), include, exclude });
            }
        }
        let Setting { off, outputs, own, once, stop } = setting;
        let outputs = Excludes::parse(&outputs)?;
        let complaints = Complaints::default();
        Ok(Discovery { targets, off, outputs, own, watches, stirred, picture, stop, once, complaints })
    }

    /// Ends on stop, or after one sweep if that is all that was asked for.
    pub fn run(mut self, task: &Task) -> Result<()> {
        loop {
            task.doing("looking for files");
            let began = task.now();
            let Some(sweep) = self.sweep(task) else { break };
            let every = if sweep.unheard { SWEEP_EVERY } else { SWEEP_SELDOM };
            self.picture.put(|slot| *slot = Some(sweep));
            if self.once {
                break;
            }
            task.waits_for("changes in folders");
            match self.next_event(began, task.now(), every) {
                Event::Stop => break,
                Event::Sweep => {}
            }
        }
        note_own_log(&self.own); // for the next life: it may have been renamed since the sweep
        Ok(())
    }

    /// Waits for the rest to be over, then for a reason to sweep again.
    fn next_event(&self, began: Instant, ended: Instant, every: Duration) -> Event {
        let until_tick = next_tick(ended, every).saturating_duration_since(ended);
        let rest = REST.max(10 * ended.saturating_duration_since(began));
        select! {
            recv(self.stop.channel()) -> _ => return Event::Stop,
            default(rest) => {}
        }
        select! {
            recv(self.stop.channel()) -> _ => Event::Stop,
            recv(self.stirred) -> rung => match rung {
                Ok(()) => Event::Sweep,
                // `watch` has ended: it is either the stop or a fault of its own, which ends in one.
                Err(_) => { let _ = self.stop.channel().recv(); Event::Stop }
            },
            default(until_tick.saturating_sub(rest)) => Event::Sweep,
        }
    }

    /// `None`: the stop came first.
    fn sweep(&mut self, task: &Task) -> Option<Sweep> {
        self.watches.begin_sweep();
        let own_log = note_own_log(&self.own);
        let off = self.off.folders.iter().filter_map(|folder| folder_id(folder).ok()).collect();
        let mut walk = Walk {
            off,
            own_log,
            outputs: &self.outputs,
            own: &self.own,
            watches: &mut self.watches,
            stop: &self.stop,
            task,
            ways: HashMap::new(),
            failed: Vec::new(),
            sweep: Sweep::default(),
        };
        for target in &self.targets {
            for pattern in &target.include {
                walk.pattern(target, pattern)?;
            }
        }
        let Walk { failed, mut sweep, .. } = walk;
        let overlaps = sweep.complete();
        self.watches.end_sweep();
        (sweep.folders, sweep.watches) = self.watches.asked_and_watched();
        let name = |source: usize| {
            self.targets.iter().find(|target| target.source == source).map_or("", |target| &target.name)
        };
        for (first, second) in overlaps {
            if self.complaints.overlaps.insert((first, second)) {
                let (first, second) = (name(first), name(second));
                log::warn!("files: {first} and {second} match the same files; these belong to {first}");
            }
        }
        self.complaints.tell(failed);
        sweep.complaints = self.complaints.folders.len();
        Some(sweep)
    }
}

impl Complaints {
    /// Each folder once, and again if it could be read in between.
    fn tell(&mut self, failed: Vec<(PathBuf, io::Error)>) {
        let now: HashSet<&PathBuf> = failed.iter().map(|(folder, _)| folder).collect();
        self.folders.retain(|folder| now.contains(folder));
        for (folder, cause) in failed {
            if self.folders.len() < COMPLAINTS_MAX && !self.folders.contains(&folder) {
                log::warn!("files: could not look into {}: {cause}; trying again later", folder.display());
                self.folders.insert(folder);
                if self.folders.len() == COMPLAINTS_MAX {
                    log::warn!(
                        "files: more than {COMPLAINTS_MAX} folders cannot be read; the rest is not named"
                    );
                }
            }
        }
    }
}

/// One sweep under way.
struct Walk<'a> {
    off: HashSet<FileId>,
    own_log: Vec<FileId>,
    outputs: &'a Excludes,
    own: &'a OwnFiles,
    watches: &'a mut Watches,
    stop: &'a Closed,
    task: &'a Task,
    /// How often each folder was entered for the pattern at hand.
    ways: HashMap<FileId, u32>,
    failed: Vec<(PathBuf, io::Error)>,
    sweep: Sweep,
}

/// A folder on the way down: the stack of these is the path, so a loop is an id that is on it already.
struct Level {
    id: FileId,
    heard: bool,
    folder: Arc<Path>,
    /// Of all entries, one behind the other.
    names: Vec<u8>,
    /// Backwards: taken from the end.
    entries: Vec<Entry>,
}

struct Entry {
    /// In the names of its folder.
    name: Range<u32>,
    kind: fs::FileType,
}

impl Level {
    /// The next one, with its path.
    fn take_entry(&mut self) -> Option<(PathBuf, fs::FileType)> {
        let Entry { name, kind } = self.entries.pop()?;
        Some((join(&self.folder, name_in(&self.names, &name)), kind))
    }
}

fn name_in<'a>(names: &'a [u8], name: &Range<u32>) -> &'a OsStr {
    OsStr::from_bytes(&names[name.start as usize..name.end as usize])
}

impl Walk<'_> {
    /// `None`: the stop came first.
    fn pattern(&mut self, target: &Target, pattern: &Pattern) -> Option<()> {
        let base = pattern.base();
        if !base.exists() {
            self.sweep.unheard = true;
            // Its parent, or the nearest that is there, will see it come.
            base.ancestors()
                .skip(1)
                .find(|folder| folder.is_dir())
                .inspect(|up| self.watches.add_for_entries(up));
        }
        if self.below_off(base) || target.exclude.matches(base) {
            return Some(());
        }
        self.ways.clear();
        let mut levels: Vec<Level> = self.enter(base.to_owned(), &[]).into_iter().collect();
        while let Some(level) = levels.last_mut() {
            if self.stop.is_closed() {
                return None;
            }
            let (heard, folder) = (level.heard, level.folder.clone());
            let Some((path, kind)) = level.take_entry() else {
                levels.pop();
                continue;
            };
            let name = path.file_name().unwrap_or_default();
            let (matches, enters) = (pattern.matches(&path), pattern.enters(name.as_ref(), levels.len()));
            let wanted = (matches || enters) && (kind.is_file() || kind.is_dir() || kind.is_symlink());
            if !wanted
                || kind.is_file() && !matches
                || kind.is_dir() && !enters
                || target.exclude.matches(&path)
            {
                continue;
            }
            let metadata = match fs::metadata(&path) {
                Ok(metadata) => metadata,
                Err(cause) => {
                    self.sweep.unheard = true; // where a link leads, nobody listens
                    self.note_failure(path, cause);
                    continue;
                }
            };
            if kind.is_symlink() && self.below_off(&path) {
                continue;
            }
            if metadata.is_dir() && enters {
                levels.extend(self.enter(path, &levels));
            } else if metadata.is_file() && matches {
                // Who writes by another name is heard of in that one's folder.
                let heard = heard && kind.is_file() && metadata.nlink() == 1;
                self.file(target, &folder, &path, &metadata, heard);
            }
        }
        Some(())
    }

    /// Reads the entries of a folder, unless it is off, or on the path already.
    fn enter(&mut self, folder: PathBuf, levels: &[Level]) -> Option<Level> {
        self.task.beat();
        let level = folder_id(&folder).and_then(|id| {
            if self.off.contains(&id) || levels.iter().any(|level| level.id == id) {
                return Ok(None);
            }
            let ways = self.ways.entry(id).or_default();
            *ways += 1;
            if *ways > WAYS_MAX {
                return Ok(None);
            }
            // A link on the way can be made to lead elsewhere, and whoever follows what it led to hears nothing of that.
            let is_direct = fs::canonicalize(&folder)? == folder;
            let heard = self.watches.add(&folder) && is_direct;
            self.sweep.unheard |= !heard;
            let (mut names, mut entries) = (Vec::new(), Vec::new());
            for entry in fs::read_dir(&folder)? {
                let entry = entry?;
                match entry.file_type() {
                    Ok(kind) => {
                        let begin = names.len() as u32;
                        names.extend_from_slice(entry.file_name().as_bytes());
                        entries.push(Entry { name: begin..names.len() as u32, kind });
                    }
                    Err(cause) => self.note_failure(entry.path(), cause),
                }
            }
            // In order, so that "the first name" of a file is the same in every sweep.
            entries.sort_unstable_by(|a, b| name_in(&names, &b.name).cmp(name_in(&names, &a.name)));
            Ok(Some(Level { id, heard, folder: folder.as_path().into(), names, entries }))
        });
        level.unwrap_or_else(|cause| {
            self.note_failure(folder, cause);
            None
        })
    }

    fn file(
        &mut self,
        target: &Target,
        folder: &Arc<Path>,
        path: &Path,
        metadata: &fs::Metadata,
        heard: bool,
    ) {
        let (file, name) = (FileId::of(metadata), path.file_name().unwrap_or_default());
        if self.outputs.matches(path) || self.own_log.contains(&file) || self.own.contains(file) {
            return;
        }
        self.sweep.note(folder, name, (file, metadata.len(), modified_ns(metadata)), target.source, heard);
    }

    /// What is not there is no failure: it vanished, or a link leads nowhere, or to itself.
    fn note_failure(&mut self, path: PathBuf, cause: io::Error) {
        let nowhere = [Errno::NOENT, Errno::NOTDIR, Errno::LOOP].map(Some);
        if !nowhere.contains(&Errno::from_io_error(&cause)) {
            self.sweep.unheard = true;
            self.sweep.unsure.push(path.clone());
            self.failed.push((path, cause));
        }
    }

    /// Whether it really lies in a folder that is off, by whatever links the path leads there.
    fn below_off(&self, path: &Path) -> bool {
        let real = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
        real.ancestors().any(|folder| folder_id(folder).is_ok_and(|id| self.off.contains(&id)))
    }
}

/// Our own log is no input, wherever standard error (or output) leads, and by whatever name, since it can be
/// rotated.
fn note_own_log(own: &OwnFiles) -> Vec<FileId> {
    let mut noted = Vec::new();
    for descriptor in [rustix::stdio::stdout(), rustix::stdio::stderr()] {
        if let Ok(stat) = rustix::fs::fstat(descriptor)
            && FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile
        {
            let file = FileId { device: stat.st_dev, inode: stat.st_ino };
            noted.push(file);
            if let Ok(path) = fs::read_link(format!("/proc/self/fd/{}", descriptor.as_raw_fd())) {
                own.add(file, &path);
            }
        }
    }
    noted
}

fn folder_id(path: &Path) -> io::Result<FileId> {
    fs::metadata(path).map(|metadata| FileId::of(&metadata))
}
