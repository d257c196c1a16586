//! What the last life was about to write, compared with what stands in the outputs now.
//!
//! ```text
//!            │◀── entry ──▶│◀── entry ──▶│◀──── entry ────▶│
//! ███████████│█████████████│█████░░░█████│█████            ·
//!                whole: a     torn: cut      the end of the file: cut with it
//!                receipt      off here
//! ```
//!
//! Always true: bytes are a receipt only if every block of their entry is there. What is cut off is ours, block by
//! block: as its entry says, or never written (zeros), up to the end of the file; and can be read again from its
//! source. Everything else stays as it is, and what an entry says is written once more: rather doubled than lost.
//! If a sync of the last life has failed, what is a receipt is written to its place again, before it is one.
//!
//! A power cut may leave a hole with whole entries behind it, in the same file or in the one that was begun after a
//! rotation, or take entries from the journal and leave those behind them. So the first entry of an output that is not
//! whole, or of which the journal lacks the number, ends what is believed of that output: what has a higher number is
//! cut off with it, or, where something else stands around it, is no receipt: written anew behind what was in the hole,
//! so that order holds. Nothing that the ledger knew before is among them: a checkpoint comes after a sync of all that
//! was written before it, holes and all. What is not believed is void in the journal, for every later start.
//!
//! What somebody has taken is no hole: an output that was moved or deleted, or truncated and written to since.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::frame::{Appended, Entry, Part, blocks, sum_on};
use super::journal::Found;
use super::{UNSYNCED_MAX, rotate};
use crate::ack::GenerationId;
use crate::disk::{Disk, DiskFile, Durable, Kind, Open, Seen, folder_of};
use crate::durable::{self, SyncFolder, Unsynced};
use crate::error::{Context, Result};

/// As much of an output as is read at once: whole blocks.
const READ_BYTES: u64 = 64 * 1024;

/// What the journal could tell.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Recovered {
    /// Source bytes that stand in the outputs.
    pub delivered: Vec<(GenerationId, Range<u64>)>,
    /// Numbers of the entries that say so.
    pub believed: BTreeSet<u64>,
    /// Bytes cut off.
    pub cut: u64,
    /// Bytes that were about to be written, are not there, and could not be cut off: other bytes stand around them.
    pub strange: u64,
    /// Something could not be compared or cut off.
    pub failed: bool,
}

/// By rising offset, none over another.
type Known = Vec<(u64, Appended)>;

/// An output that cannot be looked at is said, and nothing of it is a receipt. Cuts are noted as unsynced.
pub fn recover(name: &str, found: Found, disk: &Arc<dyn Disk>, unsynced: &Unsynced) -> Recovered {
    let mut recovered = Recovered::default();
    // All are looked at before any is judged: what is torn in one ends what is believed of those that came later.
    let mut folders = BTreeSet::new();
    let mut whole = Upto { gap: found.gap, outputs: BTreeMap::new() };
    let outputs = by_inode(found.entries, &mut recovered);
    let looked: Vec<_> = outputs
        .into_iter()
        .map(|(inode, known)| {
            let states = look(inode, &known, disk, unsynced, &mut folders);
            if let Ok(Some(states)) = &states {
                whole.note(&known, states);
            }
            (inode, known, states)
        })
        .collect();
    for (inode, known, states) in looked {
        let path = path_of(&known);
        let judged = states.and_then(|states| {
            let Some((file, states)) = find(path, inode, &**disk)?.zip(states) else { return Ok(()) };
            judge(&file, &known, &states, &whole, unsynced, &mut recovered)
                .context(|| format!("could not repair {}", path.display()))?;
            if unsynced.was_in_doubt() {
                let again = known.iter().try_for_each(|(_, entry)| write_again(&*file, entry));
                again.context(|| format!("could not write {} again", path.display()))?;
            }
            Ok(())
        });
        if let Err(cause) = judged {
            log::warn!("{name}: {cause}; what was written there last will be written once more");
            recovered.failed = true;
        }
    }
    recovered
}

/// Not by name: a rotation gives a file another one, and its old name to another file.
fn by_inode(entries: Vec<(u64, Entry)>, recovered: &mut Recovered) -> BTreeMap<u64, Known> {
    let mut outputs: BTreeMap<u64, Known> = BTreeMap::new();
    for (number, entry) in entries {
        match entry {
            Entry::Appended(appended) => {
                let known = outputs.entry(appended.inode).or_default();
                // Somebody has truncated the file, or it has another life.
                while known.pop_if(|(_, earlier)| earlier.end() > appended.offset).is_some() {}
                known.push((number, appended));
            }
            Entry::Deleted { inode, length } => {
                recovered.believed.insert(number);
                let deleted = outputs.remove(&inode).into_iter().flatten();
                for (number, entry) in deleted.filter(|(_, known)| known.end() <= length) {
                    recovered.add(number, &entry.parts);
                }
            }
        }
    }
    outputs
}

fn path_of(known: &Known) -> &Path {
    &known.last().expect("an output is known by its entries").1.path
}

impl Recovered {
    fn add(&mut self, number: u64, parts: &[Part]) {
        self.believed.insert(number);
        self.delivered.extend(parts.iter().map(|part| (part.generation, part.range.clone())));
    }
}

/// Up to which number entries are believed.
struct Upto {
    gap: u64,
    /// The first that is not whole, by the path of the output.
    outputs: BTreeMap<PathBuf, u64>,
}

impl Upto {
    fn note(&mut self, known: &Known, states: &[State]) {
        for ((number, entry), _) in known.iter().zip(states).filter(|(_, state)| **state != State::Whole) {
            let first = self.outputs.entry(entry.path.clone()).or_insert(*number);
            *first = *number.min(first);
        }
    }

    fn has(&self, number: u64, path: &Path) -> bool {
        number < self.gap && self.outputs.get(path).is_none_or(|first| number < *first)
    }
}

/// `None`: somebody has moved or deleted it.
fn look(
    inode: u64,
    known: &Known,
    disk: &Arc<dyn Disk>,
    unsynced: &Unsynced,
    folders: &mut BTreeSet<PathBuf>,
) -> Result<Option<Vec<State>>> {
    let path = path_of(known);
    let Some(file) = find(path, inode, &**disk)? else { return Ok(None) };
    // What the last life has not synced is about to be relied on, the name included.
    unsynced.note(durable::Written::found(file.clone()));
    note_folders(path, disk, unsynced, folders);
    if unsynced.len() >= UNSYNCED_MAX {
        unsynced.sync()?;
    }
    states(&*file, known).context(|| format!("could not read {}", path.display())).map(Some)
}

/// An output may have been the first in its folder, and that the first in the one above it.
fn note_folders(path: &Path, disk: &Arc<dyn Disk>, unsynced: &Unsynced, known: &mut BTreeSet<PathBuf>) {
    let folder = folder_of(path);
    if known.insert(folder.to_owned()) {
        unsynced.note_folder(SyncFolder::of(disk, folder));
    }
    for above in folder.ancestors().skip(1).filter(|above| !above.as_os_str().is_empty()) {
        if !known.insert(above.to_owned()) {
            break;
        }
        unsynced.note_folder(SyncFolder::above(disk, above));
    }
}

/// At its path, or beside it with a number.
fn find(path: &Path, inode: u64, disk: &dyn Disk) -> Result<Option<Arc<dyn DiskFile>>> {
    let doing = || format!("could not look for {}", path.display());
    let is_it = |seen: Seen| seen.kind == Kind::File && seen.id.inode == inode;
    // Not found: also a link to nowhere, or one that was deleted just now.
    let open = |candidate: &Path| match disk.look(candidate).is_ok_and(is_it) {
        true => disk.open(candidate, Open::Existing).map(Some).context(doing),
        false => Ok(None),
    };
    let mut found = open(path)?;
    if found.is_none() {
        let beside = disk.list(folder_of(path)).context(doing)?;
        let mut family = beside.iter().filter(|other| rotate::number(path, other).is_some());
        found = family.find_map(|candidate| open(candidate).transpose()).transpose()?;
    }
    Ok(found.filter(|file| file.seen().is_ok_and(is_it)))
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Whole,
    /// Some of its blocks are missing or zeros, the others are as they should be.
    Torn,
    Strange,
}

fn judge(
    file: &Arc<dyn DiskFile>,
    known: &Known,
    states: &[State],
    whole: &Upto,
    unsynced: &Unsynced,
    recovered: &mut Recovered,
) -> io::Result<()> {
    let size = file.size()?;
    // From the end back, as far as everything is ours and can be read again.
    let mut cut = None;
    let mut end = size.max(known.last().map_or(0, |(_, entry)| entry.end()));
    for (at, (_, entry)) in known.iter().enumerate().rev() {
        if entry.end() != end || states[at] == State::Strange || !entry.can_be_read_again() {
            break;
        }
        if states[at] == State::Torn {
            cut = Some(at);
        }
        end = entry.offset;
    }
    // On the disk before anything is written in its place: else a power cut may bring it back behind that.
    if let Some(offset) = cut.map(|at| known[at].1.offset).filter(|offset| *offset < size) {
        let file = durable::Written::found(file.clone());
        file.set_size(offset)?;
        unsynced.note(file.clone());
        if let Err(cause) = file.sync() {
            log::debug!("{cause}: the next one who syncs it says so"); // since it is noted
        }
        recovered.cut += size - offset;
    }
    for (at, (number, entry)) in known.iter().enumerate().take(cut.unwrap_or(known.len())) {
        let stays = states[at] == State::Whole && !entry.can_be_read_again();
        if stays || whole.has(*number, &entry.path) {
            recovered.add(*number, &entry.parts);
        } else {
            recovered.strange += entry.length;
        }
    }
    Ok(())
}

/// What can be read may not stand on the disk, and a sync would not know.
fn write_again(file: &dyn DiskFile, entry: &Appended) -> io::Result<()> {
    let (mut at, end) = (entry.offset, entry.end().min(file.size()?));
    while at < end {
        let mut bytes = vec![0; READ_BYTES.min(end - at) as usize];
        file.read_at(&mut bytes, at)?;
        file.write_at(&bytes, at)?;
        at += bytes.len() as u64;
    }
    Ok(())
}

fn states(file: &dyn DiskFile, known: &Known) -> io::Result<Vec<State>> {
    let size = file.size()?;
    known.iter().map(|(_, entry)| state(file, entry, size)).collect()
}

fn state(file: &dyn DiskFile, entry: &Appended, size: u64) -> io::Result<State> {
    let (mut sums, mut before, mut state) = (entry.sums.iter(), 0, State::Whole);
    let mut start = entry.offset;
    while start < entry.end() {
        let end = entry.end().min((start / READ_BYTES + 1) * READ_BYTES);
        let mut bytes = vec![0; (end.min(size).saturating_sub(start)) as usize];
        let filled = file.read_at(&mut bytes, start)?;
        bytes.truncate(filled);
        for (block, sum) in blocks(start..end, entry.block).zip(&mut sums) {
            let range = (block.start - start) as usize..(block.end - start) as usize;
            let there = &bytes[range.start.min(filled)..range.end.min(filled)];
            let before = std::mem::replace(&mut before, *sum);
            if there.len() < range.len() || sum_on(before, there) != *sum {
                if there.iter().any(|byte| *byte != 0) {
                    return Ok(State::Strange);
                }
                state = State::Torn;
            }
        }
        start = end;
    }
    Ok(state)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::model::ModelDisk;
    use crate::sinks::file::frame::{Block, New, sums};

    const OUT: &str = "/out/x";

    /// Bytes that are written, one append after the other; generation `at`, from 0.
    struct Bench {
        disk: ModelDisk,
        file: Arc<dyn DiskFile>,
        entries: Vec<(u64, Entry)>,
        gap: u64,
    }

    impl Bench {
        fn new() -> Bench {
            let disk = ModelDisk::default();
            disk.create_folder(Path::new("/out")).unwrap();
            let file = disk.open(Path::new(OUT), Open::Append).unwrap();
            Bench { disk, file, entries: Vec::new(), gap: u64::MAX }
        }

        fn note(&mut self, bytes: &[u8], replayable: bool) {
            self.note_in(Block::Sector, bytes, replayable);
        }

        fn note_in(&mut self, block: Block, bytes: &[u8], replayable: bool) {
            let offset = self.file.size().unwrap();
            let sums = sums(offset, New { bytes, block, sums: &[] }).collect();
            let generation = GenerationId(self.entries.len() as u64);
            self.entries.push((
                generation.0 + 1,
                Entry::Appended(Appended {
                    path: OUT.into(),
                    inode: self.file.id().unwrap().inode,
                    offset,
                    length: bytes.len() as u64,
                    block,
                    sums,
                    parts: vec![Part { generation, range: 0..bytes.len() as u64, replayable }],
                }),
            ));
        }

        fn append(&mut self, bytes: &[u8]) {
            self.note(bytes, true);
            self.foreign(bytes);
        }

        fn foreign(&self, bytes: &[u8]) {
            self.file.write_at(bytes, 0).unwrap();
        }

        fn found(&self) -> Found {
            Found { entries: self.entries.clone(), gap: self.gap }
        }

        /// Generations that stand in the output, and its length afterwards.
        fn recover(&self) -> (Vec<u64>, u64, Recovered) {
            let disk: Arc<dyn Disk> = Arc::new(self.disk.clone());
            let recovered = recover("out", self.found(), &disk, &Unsynced::default());
            let delivered = recovered.delivered.iter().map(|(generation, _)| generation.0).collect();
            (delivered, self.file.size().unwrap(), recovered)
        }
    }

    fn noise(length: usize, seed: u64) -> Vec<u8> {
        let mut rng = fastrand::Rng::with_seed(seed);
        std::iter::repeat_with(|| rng.u8(1..)).take(length).collect()
    }

    /// What went past the page cache.
    #[test]
    fn pages_that_did_not_reach_the_disk_are_cut_off_and_half_ones_are_strange() {
        let (first, second) = (noise(700, 1), noise(20_000, 2));
        for (end, hole, state) in [
            (20_700, 0..0, State::Whole),
            (8192, 0..0, State::Torn),
            (700, 0..0, State::Torn),
            (20_700, 4096..8192, State::Torn),
            (20_700, 4096..20_700, State::Torn),
            // What stands beside whole pages goes through the cache.
            (1024, 0..0, State::Torn),
            (20_700, 20_480..20_700, State::Torn),
            (20_480 + 100, 0..0, State::Strange),
            // Past the cache no file system leaves half a page: it is somebody else's.
            (8192 + 512, 0..0, State::Strange),
            (20_700, 8192..8704, State::Strange),
        ] {
            let mut bench = Bench::new();
            bench.append(&first);
            bench.note_in(Block::Page, &second, true);
            bench.foreign(&second);
            bench.file.set_size(end).unwrap();
            let zeros = vec![0; (hole.end - hole.start) as usize];
            bench.file.in_place().unwrap().write_at(&zeros, hole.start).unwrap();
            let (delivered, size, recovered) = bench.recover();
            let expected = match state {
                State::Whole => (vec![0, 1], end, 0, 0),
                State::Torn => (vec![0], 700, end - 700, 0),
                State::Strange => (vec![0], end, 0, 20_000),
            };
            assert_eq!((delivered, size, recovered.cut, recovered.strange), expected, "{end} {hole:?}");
        }
    }

    #[test]
    fn a_torn_tail_is_cut_at_every_block_and_nowhere_else() {
        let (first, second) = (noise(700, 1), noise(3000, 2));
        for end in 700..=3700_u64 {
            let mut bench = Bench::new();
            bench.append(&first);
            bench.append(&second);
            bench.file.set_size(end).unwrap();
            let (delivered, size, recovered) = bench.recover();
            if end == 3700 {
                assert_eq!((delivered, size), (vec![0, 1], 3700));
            } else if end % 512 == 0 || end == 700 {
                assert_eq!((delivered, size, recovered.cut), (vec![0], 700, end - 700), "{end}");
            } else {
                assert_eq!((delivered, size, recovered.strange), (vec![0], end, 3000), "{end}: whose is it?");
            }
        }
    }

    #[test]
    fn what_somebody_else_wrote_stays() {
        let mut bench = Bench::new();
        bench.append(b"ours\n");
        bench.foreign(b"theirs\n");
        assert_eq!((bench.recover().0, bench.recover().1), (vec![0], 12));
        // Instead of what was about to be written; then behind it.
        bench.note(b"ours, too, and longer\n", true);
        bench.foreign(b"theirs\n");
        assert_eq!((bench.recover().0, bench.recover().1), (vec![0], 19));
        bench.foreign(&[b'x'; 2000]);
        assert_eq!((bench.recover().0, bench.recover().1), (vec![0], 2019));
        // And a torn tail behind all that is still cut.
        bench.append(&noise(2000, 1));
        bench.file.set_size(2048).unwrap();
        assert_eq!((bench.recover().0, bench.recover().1), (vec![0], 2019));
    }

    #[test]
    fn a_hole_is_cut_with_what_is_behind_it_unless_that_cannot_be_read_again() {
        for replayable in [true, false] {
            let mut bench = Bench::new();
            bench.append(b"first\n");
            bench.append(&noise(2000, 1));
            let hole = bench.disk.open(Path::new(OUT), Open::Existing).unwrap();
            hole.write_at(&[0; 512], 512).unwrap();
            for line in [b"third\n", b"forth\n"] {
                bench.note(line, replayable);
                bench.foreign(line);
            }
            let expected = if replayable { (vec![0], 6) } else { (vec![0, 2, 3], 2018) };
            assert_eq!((bench.recover().0, bench.recover().1), expected);
        }
    }

    #[test]
    fn what_came_behind_a_hole_is_written_behind_it_again() {
        let mut bench = Bench::new();
        bench.append(b"first\n");
        bench.append(&noise(2000, 1));
        bench.file.set_size(1024).unwrap();
        bench.disk.rename(Path::new(OUT), Path::new("/out/x.1")).unwrap();
        bench.file = bench.disk.open(Path::new(OUT), Open::Append).unwrap();
        bench.append(b"third\n");
        let (delivered, size, recovered) = bench.recover();
        assert_eq!((delivered, size, recovered.cut, recovered.strange), (vec![0], 6, 1018, 6));
    }

    #[test]
    fn what_the_journal_has_behind_a_gap_is_written_again_and_not_cut() {
        let mut bench = Bench::new();
        (0..4).for_each(|_| bench.append(b"line\n"));
        bench.gap = 3;
        bench.entries.remove(2);
        let (delivered, size, recovered) = bench.recover();
        assert_eq!((delivered, size, recovered.strange), (vec![0, 1], 20, 5));
        assert_eq!(recovered.believed, BTreeSet::from([1, 2]));
    }

    #[test]
    fn a_torn_tail_that_cannot_be_read_again_stays() {
        let mut bench = Bench::new();
        bench.note(&[b'x'; 2000], false);
        bench.foreign(&[b'x'; 1024]);
        let (delivered, size, recovered) = bench.recover();
        assert_eq!((delivered, size, recovered.cut, recovered.strange), (vec![], 1024, 0, 2000));
    }

    #[test]
    fn an_entry_that_was_taken_back_is_none() {
        let mut bench = Bench::new();
        bench.append(b"the same bytes\n");
        bench.file.set_size(0).unwrap();
        bench.append(b"the same bytes\n");
        assert_eq!(bench.recover().0, [1]);
        bench.append(b"behind\n");
        bench.file.set_size(0).unwrap();
        assert_eq!(bench.recover().0, [0; 0], "somebody has emptied it");
        bench.entries.push((4, Entry::Deleted { inode: bench.file.id().unwrap().inode, length: 15 }));
        assert_eq!(bench.recover().0, [1], "what was in it when we deleted it");
    }

    #[test]
    fn a_rotated_output_is_found_by_what_it_is() {
        let mut bench = Bench::new();
        bench.append(b"old\n");
        bench.disk.rename(Path::new(OUT), Path::new("/out/x.12")).unwrap();
        bench.file = bench.disk.open(Path::new(OUT), Open::Append).unwrap();
        bench.append(b"new\n");
        assert_eq!(bench.recover().0, [0, 1]);
        bench.disk.rename(Path::new("/out/x.12"), Path::new("/out/x.old")).unwrap();
        assert_eq!(bench.recover().0, [1], "moved by somebody: rather doubled");
    }
}
