//! What stands on the disk beside what the ledger knows, for an audit: one sweep, and a look at the head of each file.
//! What is not found by its inode is looked for by its content, in copies and packed files too, as the monitor does at
//! a start; and so is what was rotated unseen.
//!
//! Changes nothing, and reads no more than it takes to know a file. Not here: what is missing (the audit).

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::bounded;

use super::beside::{After, Content, Rest, candidates, content_of, look_into, unseen};
use super::discovery::{Discovery, Setting};
use super::files::opening::open_for_reading;
use super::folder::{Folder, Folders};
use super::identity::{is_known, not_text, read_head, stands_before};
use super::names::Sibling;
use super::sweep::{Found, Sweep};
use super::{mailbox, watch};
use crate::ack::GenerationId;
use crate::clock::Clock;
use crate::durable::{FileId, OwnFiles};
use crate::error::{Error, Result};
use crate::ledger::Known;
use crate::monitors::{Binary, Off, SourceKind, SourceOptions};
use crate::order;
use crate::tasks::{self, Spec, Switch, Table};

/// A slow folder is no reason to give up.
const SILENCE_MAX: Duration = Duration::from_secs(600);

/// Everything that was found.
pub struct Survey {
    /// Where the generations of the ledger stand now; those that stand nowhere are not in it.
    pub standing: HashMap<GenerationId, Standing>,
    /// Files that match and that the ledger does not know, without those that are empty.
    pub strangers: Vec<Stranger>,
    /// Folders and files that could not be looked into to their end.
    pub unsure: Vec<PathBuf>,
}

pub struct Standing {
    /// Its name now.
    pub path: PathBuf,
    /// In bytes; of what is in it, if it is packed.
    pub size: u64,
    /// Compressed.
    pub packed: bool,
    /// Its content ends too early: nobody knows how large it is.
    pub torn: bool,
}

pub struct Stranger {
    pub path: PathBuf,
    /// As in [`Standing`].
    pub size: u64,
    /// Place in `sources[]`.
    pub source: usize,
    /// Why it has no lines for us, if it has none: in words that go after "it is".
    pub passed_over: Option<&'static str>,
}

/// `last_stamp_ns`: when the last line was read. Errors: a pattern that is not one, or no thread to be had.
pub fn survey(
    sources: &[SourceOptions],
    off: Off,
    outputs: Vec<String>,
    own: &OwnFiles,
    known: &[&Known],
    last_stamp_ns: i64,
) -> Result<Survey> {
    let sweep = sweep(sources, off, outputs, own)?;
    let mut by_inode: HashMap<u64, Vec<&Known>> = HashMap::new();
    for known in known.iter().filter(|known| known.filename.is_some()) {
        by_inode.entry(known.identity.map_or(0, |identity| identity.inode)).or_default().push(known);
    }
    let (mut there, mut strangers) = (There::default(), Vec::new());
    let mut met = HashSet::new();
    for found in sweep.spots().into_iter().map(|spot| sweep.found(spot)) {
        met.insert(found.file.inode);
        let opened = open_for_reading(&found.path).and_then(|file| Ok((read_head(&file)?, file)));
        let candidates = by_inode.get(&found.file.inode).map_or(&[][..], Vec::as_slice);
        match which(candidates, found.file, found.size, opened.as_ref().ok()) {
            Some(known) => there.put_plain(known, found.path, found.file, found.size),
            None if found.size == 0 => {}
            None => strangers.push((found.file, stranger(found, opened.ok().map(|(head, _)| head), sources))),
        }
    }
    // Renamed to where no pattern leads: beside where they were.
    let mut folders: HashMap<&Path, HashSet<u64>> = HashMap::new();
    for (inode, known) in by_inode.iter().filter(|(inode, _)| !met.contains(inode)) {
        for folder in known.iter().filter_map(|known| known.filename.as_deref()?.parent()) {
            folders.entry(folder).or_default().insert(*inode);
        }
    }
    let clock = Clock::real();
    let (mut listings, start) = (Folders::new(clock.clone()), clock.now());
    for (folder, wanted) in folders {
        let Some(folder) = listings.since(start, folder) else { continue };
        for (inode, beside) in wanted.iter().filter_map(|inode| Some((inode, folder.file(*inode)?))) {
            let opened = open_for_reading(&beside.path).and_then(|file| Ok((read_head(&file)?, file)));
            if let Some(known) =
                which(&by_inode[inode], beside.file, beside.metadata.len(), opened.as_ref().ok())
            {
                there.put_plain(known, beside.path, beside.file, beside.metadata.len());
            }
        }
    }
    let mut unsure = sweep.unsure;
    let mut newest: BTreeMap<u64, &Known> = BTreeMap::new();
    let mut by_age: Vec<&Known> = by_inode.into_values().flatten().collect();
    order::sort_by_key(&mut by_age, |known| known.generation);
    for known in by_age {
        if !there.standing.contains_key(&known.generation) {
            let folder = known.filename.as_deref().and_then(Path::parent);
            if let Some(folder) = folder.and_then(|folder| listings.since(start, folder)) {
                there.look_inside(&folder, known, own, &mut unsure);
            }
        }
        newest.insert(known.lineage, known);
    }
    for known in newest.into_values() {
        let source = sources.iter().position(|source| source.name == known.source);
        let (Some(original), Some(source)) = (known.filename.as_deref(), source) else { continue };
        let place = there.standing.get(&known.generation).map(|stands| &*stands.path);
        if place == Some(original) {
            continue; // it was not rotated
        }
        let Some(folder) = original.parent().and_then(|folder| listings.since(start, folder)) else {
            continue;
        };
        let may_be = |id| !there.taken.contains(&id) && !own.contains(id);
        let after = place.map_or(After::Time(last_stamp_ns), |path| After::Path(path, last_stamp_ns));
        for Sibling { what: Rest { path, file, .. }, .. } in unseen(&folder, original, after, may_be) {
            strangers.retain(|(known, _)| *known != file);
            match look_into(&path) {
                Ok(inside) => {
                    let found = Found { path: path.clone(), file, size: inside.size, source, heard: false };
                    strangers.push((file, stranger(found, Some(inside.head), sources)));
                    if inside.torn {
                        unsure.push(path)
                    }
                }
                Err(_) => unsure.push(path),
            }
        }
    }
    strangers.retain(|(file, _)| !there.taken.contains(file));
    let strangers = strangers.into_iter().map(|(_, stranger)| stranger).collect();
    Ok(Survey { standing: there.standing, strangers, unsure })
}

/// What was found so far.
#[derive(Default)]
struct There {
    standing: HashMap<GenerationId, Standing>,
    /// A file has the content of one generation at most.
    taken: HashSet<FileId>,
}

impl There {
    fn put_plain(&mut self, known: &Known, path: PathBuf, file: FileId, size: u64) {
        self.taken.insert(file);
        self.standing.insert(known.generation, Standing { path, size, packed: false, torn: false });
    }

    /// Copied aside, or packed.
    fn look_inside(&mut self, folder: &Folder, known: &Known, own: &OwnFiles, unsure: &mut Vec<PathBuf>) {
        let Some(original) = known.filename.as_deref() else { return };
        if known.identity.is_none_or(|identity| identity.head.len == 0) {
            return;
        }
        let may_be = |id| !self.taken.contains(&id) && !own.contains(id);
        let look = |path: &Path| -> io::Result<Option<(FileId, Content)>> {
            let file = open_for_reading(path)?;
            let id = FileId::of(&file.metadata()?);
            Ok(content_of(known, file, &|| true)?.map(|content| (id, content)))
        };
        let mut best: Option<(FileId, Standing)> = None;
        for path in candidates(folder, original, 0, may_be) {
            match look(&path) {
                // A generation can be there twice for a moment: the plain file is the whole one.
                Ok(Some((file, Content { size, form, torn, .. }))) => {
                    let packed = form.is_some();
                    if best.as_ref().is_none_or(|(_, best)| best.packed && !packed) {
                        best = Some((file, Standing { path, size, packed, torn }));
                    }
                }
                Ok(None) => {}
                Err(_) => unsure.push(path),
            }
        }
        if let Some((file, standing)) = best {
            if standing.torn {
                unsure.push(standing.path.clone());
            }
            self.taken.insert(file);
            self.standing.insert(known.generation, standing);
        }
    }
}

fn sweep(sources: &[SourceOptions], off: Off, outputs: Vec<String>, own: &OwnFiles) -> Result<Sweep> {
    let (_switch, stop) = Switch::new()?;
    let (post_hints, _hints) = mailbox();
    let (post_picture, picture) = mailbox();
    let (stir, stirred) = bounded(1);
    let (_watch, watches, _) = watch::watch(post_hints, stir, stop.stop.clone(), true);
    let setting = Setting { off, outputs, own: own.clone(), once: true, stop: stop.stop };
    let discovery = Discovery::new(sources, setting, watches, stirred, post_picture)?;
    let table = Arc::new(Table::new(Clock::real()));
    tasks::run(table.clone(), |tasks| {
        tasks.spawn(Spec::carrier("discovery", SILENCE_MAX), move |task| discovery.run(task))
    })??;
    if let Some(fault) = table.faults(true).into_iter().next() {
        return Err(Error::new(fault));
    }
    picture.take().ok_or_else(|| Error::new("the folders could not be looked into"))
}

/// The newest of those that had this inode which is this file. One that may not be read is told by its inode alone.
fn which<'a>(
    candidates: &[&'a Known],
    file: FileId,
    size: u64,
    opened: Option<&(Vec<u8>, File)>,
) -> Option<&'a Known> {
    let same = |known: &&&'a Known| match opened {
        Some((head, opened)) => is_known(known, file, size, head, |hash, position| {
            stands_before(opened, hash, position).unwrap_or(false)
        }),
        None => {
            known.identity.is_some_and(|identity| identity.device == file.device) && size >= known.position
        }
    };
    candidates.iter().filter(same).max_by_key(|known| known.generation).copied()
}

fn stranger(found: Found, head: Option<Vec<u8>>, sources: &[SourceOptions]) -> Stranger {
    let Found { path, size, source, .. } = found;
    let skips = matches!(&sources[source].kind, SourceKind::File(file) if file.binary == Binary::Skip);
    let passed_over = head.as_deref().filter(|_| skips).and_then(not_text);
    Stranger { path, size, source, passed_over }
}
