//! When an output is full, and the names of what was rotated away: `x.log`, `x.log.1`, `x.log.2` …, the oldest
//! with the highest number.
//!
//! Always true: a rotation deletes nothing. It moves every number up to the first gap by one, so that it can
//! be taken back; what is beyond `keep` is deleted by [`prune`], once the batch is whole.

use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use crate::disk::Disk;
use crate::error::{Context, Result};

/// How much of `rest` goes into a file of `len` bytes that should not exceed `max`; 0: rotate first. The cut is
/// after a line end, so a line larger than `max` makes a larger file. `whole`: the file ends in a line end;
/// if not, the rest of the line goes where its beginning is.
pub fn fits(rest: &[u8], len: u64, whole: bool, max: u64) -> usize {
    let room = usize::try_from(max.saturating_sub(len)).unwrap_or(usize::MAX);
    if rest.len() <= room {
        return rest.len();
    }
    if let Some(end) = memchr::memrchr(b'\n', &rest[..room]) {
        return end + 1;
    }
    if len > 0 && may_end(len, whole, Some(max)) {
        return 0;
    }
    memchr::memchr(b'\n', rest).map_or(rest.len(), |end| end + 1)
}

/// Whether a file may be rotated away as it is. A line that never ends must not make it grow for ever.
pub fn may_end(len: u64, whole: bool, max: Option<u64>) -> bool {
    len > 0 && (whole || max.is_some_and(|max| len >= max.saturating_mul(2)))
}

fn numbered(path: &Path, number: usize) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{number}"));
    name.into()
}

/// `12` for `x.log.12` beside `x.log`.
pub fn number(path: &Path, other: &Path) -> Option<usize> {
    let tail = other.as_os_str().as_bytes().strip_prefix(path.as_os_str().as_bytes())?.strip_prefix(b".")?;
    std::str::from_utf8(tail).ok()?.parse().ok()
}

/// The renames of one rotation, in their order.
pub fn moves(disk: &dyn Disk, path: &Path) -> Result<Vec<(PathBuf, PathBuf)>> {
    let mut gap = 1;
    while exists(disk, &numbered(path, gap))? {
        gap += 1;
    }
    let name = |number| if number == 0 { path.to_owned() } else { numbered(path, number) };
    Ok((0..gap).rev().map(|number| (name(number), name(number + 1))).collect())
}

/// Deletes what is numbered beyond `keep`, up to the first gap. `before` is told of each, and may forbid it. The oldest
/// goes first: what a crash leaves has no gap either.
pub fn prune(
    disk: &dyn Disk,
    path: &Path,
    keep: usize,
    mut before: impl FnMut(&Path) -> Result<()>,
) -> Result<()> {
    let mut gap = keep + 1;
    while exists(disk, &numbered(path, gap))? {
        gap += 1;
    }
    for number in (keep + 1..gap).rev() {
        let old = numbered(path, number);
        before(&old)?;
        disk.remove(&old).context(|| format!("could not delete {}", old.display()))?;
    }
    Ok(())
}

/// Whether there is anything of this name, be it a link to nowhere.
pub fn exists(disk: &dyn Disk, path: &Path) -> Result<bool> {
    disk.is_taken(path).context(|| format!("could not look at {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::RealDisk;

    #[test]
    fn a_file_is_cut_between_lines() {
        for (rest, len, whole, expected, why) in [
            ("ab\ncd\n", 0, true, 6, "all of it fits"),
            ("ab\ncd\n", 4, true, 6, "to the last byte"),
            ("ab\ncd\n", 5, true, 3, "one line fits"),
            ("ab\ncd\n", 8, true, 0, "no line fits"),
            ("ab\ncd\n", 12, true, 0, "the file is too large already"),
            ("ab\ncd\n", 9, false, 3, "the rest of a line stays with its beginning"),
            ("abcd", 9, false, 4, "and so does its middle"),
            ("abcd", 20, false, 0, "but not for ever"),
            ("abcdefghijklm\nop\n", 0, true, 14, "a line larger than a file"),
            ("abcdefghijklm", 0, true, 13, "a cut line larger than a file"),
        ] {
            assert_eq!(fits(rest.as_bytes(), len, whole, 10), expected, "{why}");
        }
    }

    #[test]
    fn a_rotation_moves_up_to_the_first_gap() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.log");
        for name in ["x.log", "x.log.1", "x.log.2", "x.log.4"] {
            std::fs::File::create(folder.path().join(name)).unwrap();
        }
        let name = |path: &PathBuf| path.file_name().unwrap().to_str().unwrap().to_owned();
        let moves: Vec<_> =
            moves(&RealDisk, &path).unwrap().iter().map(|(from, to)| (name(from), name(to))).collect();
        let expected = [("x.log.2", "x.log.3"), ("x.log.1", "x.log.2"), ("x.log", "x.log.1")];
        assert_eq!(moves, expected.map(|(from, to)| (from.to_owned(), to.to_owned())));
        let mut told = Vec::new();
        let tell = |old: &Path| {
            told.push(name(&old.to_owned()));
            Ok(())
        };
        prune(&RealDisk, &path, 1, tell).unwrap();
        assert_eq!(told, ["x.log.2"]);
        assert!(!exists(&RealDisk, &folder.path().join("x.log.2")).unwrap());
        assert!(exists(&RealDisk, &folder.path().join("x.log.1")).unwrap());
        for (other, expected) in
            [("x.log.7", Some(7)), ("x.log", None), ("x.log.", None), ("x.log.1.gz", None)]
        {
            assert_eq!(number(&path, &folder.path().join(other)), expected, "{other}");
        }
    }
}
