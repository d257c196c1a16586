//! Holes: NUL bytes that stand on no disk. A writer that does not append leaves one in front of its text when its
//! file is truncated; a log that was made as large as it may get ends with one.
//!
//! They are asked for (`SEEK_DATA`, `SEEK_HOLE`), never read: a file of a terabyte with three lines costs three
//! reads. Those NUL bytes that fill up the blocks beside a hole belong to it.

use std::fs::File;
use std::io;

use rustix::fs::SeekFrom;
use rustix::io::Errno;

use super::identity::read_at;

/// Read at once in search of text behind a hole: nearly always the rest of one block.
const BLOCK: usize = 64 * 1024;

/// Of NUL bytes that do stand on the disk, looked through at once; the next turn goes on.
const LOOK_MAX: u64 = 16 << 20;

/// What stands at an offset at which a line begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ahead {
    /// Text, and the next hole begins here: at the end of the file if there is none.
    Text { hole: u64 },
    /// Nothing, up to here.
    Hole { end: u64 },
    /// Nothing, up to the end of the file: perhaps its writer fills it up.
    HoleToEnd,
}

/// `size`: of the file. A file system that cannot tell has no holes.
pub(super) fn ahead(file: &File, offset: u64, size: u64) -> io::Result<Ahead> {
    let mut first = [0];
    let hole = next_hole(file, offset)?.unwrap_or(size).min(size);
    if hole > offset && read_at(file, &mut first, offset)? == 1 && first != [0] {
        return Ok(Ahead::Text { hole });
    }
    match text_from(file, offset)? {
        // Zeros that somebody has written are bytes like others.
        Some(text) if hole >= text => Ok(Ahead::Text { hole }),
        Some(end) => Ok(Ahead::Hole { end }),
        None if hole < size => Ok(Ahead::HoleToEnd),
        None => Ok(Ahead::Text { hole: size }),
    }
}

/// The first byte at or behind `offset` that is not NUL, or where to look on. `None`: there is none.
pub(super) fn text_from(file: &File, offset: u64) -> io::Result<Option<u64>> {
    let Some(mut at) = next_data(file, offset)? else { return Ok(None) };
    let mut block = vec![0; BLOCK];
    for _ in 0..LOOK_MAX / BLOCK as u64 {
        let len = read_at(file, &mut block, at)?;
        if let Some(text) = block[..len].iter().position(|byte| *byte != 0) {
            return Ok(Some(at + text as u64));
        }
        match next_data(file, at + len as u64)? {
            Some(next) if len > 0 => at = next,
            _ => return Ok(None),
        }
    }
    Ok(Some(at))
}

fn next_data(file: &File, from: u64) -> io::Result<Option<u64>> {
    match rustix::fs::seek(file, SeekFrom::Data(from)) {
        Ok(data) => Ok(Some(data)),
        Err(Errno::NXIO) => Ok(None),
        Err(Errno::INVAL | Errno::OPNOTSUPP) => Ok(Some(from)),
        Err(cause) => Err(cause.into()),
    }
}

fn next_hole(file: &File, from: u64) -> io::Result<Option<u64>> {
    match rustix::fs::seek(file, SeekFrom::Hole(from)) {
        Ok(hole) => Ok(Some(hole)),
        Err(Errno::NXIO | Errno::INVAL | Errno::OPNOTSUPP) => Ok(None),
        Err(cause) => Err(cause.into()),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use super::*;

    #[test]
    fn what_is_ahead() {
        let file = tempfile::tempfile().unwrap();
        let size = 1 << 40;
        file.set_len(size).unwrap();
        assert_eq!(ahead(&file, 0, size).unwrap(), Ahead::HoleToEnd);
        file.write_all_at(b"text\n", 0).unwrap();
        file.write_all_at(b"more\n", (1 << 30) + 7).unwrap();
        let Ahead::Text { hole } = ahead(&file, 0, size).unwrap() else { panic!("there is text") };
        assert!((5..1 << 30).contains(&hole), "{hole}");
        assert_eq!(ahead(&file, 5, size).unwrap(), Ahead::Hole { end: (1 << 30) + 7 });
        assert_eq!(ahead(&file, (1 << 30) + 12, size).unwrap(), Ahead::HoleToEnd);
    }

    #[test]
    fn zeros_that_were_written_are_no_hole() {
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(b"a\n\0\0\0b\n", 0).unwrap();
        assert_eq!(ahead(&file, 2, 7).unwrap(), Ahead::Text { hole: 7 });
    }
}
