//! Which file is it: the same as before, another one with a reused inode, or nothing that has lines at all.
//!
//! A path is never an identity. Device and inode are, together with a hash of the head, which tells a new file
//! with an old inode from the old file.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use xxhash_rust::xxh3::Xxh3;

use crate::durable::FileId;
use crate::ledger::{Head, Identity, Known};

/// Enough to tell any two logs apart that have a date in their first lines.
pub const HEAD_BYTES: usize = 1024;

/// At most [`HEAD_BYTES`] from the beginning.
pub fn read_head(file: &File) -> io::Result<Vec<u8>> {
    read_head_at(file, 0)
}

/// At most [`HEAD_BYTES`] from where the text begins.
pub fn read_head_at(file: &File, offset: u64) -> io::Result<Vec<u8>> {
    let mut head = vec![0; HEAD_BYTES];
    let len = read_at(file, &mut head, offset)?;
    head.truncate(len);
    Ok(head)
}

/// Fills `buffer` from `offset` on, and says how far: less only at the end of the file.
pub fn read_at(file: &File, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match file.read_at(&mut buffer[filled..], offset + filled as u64) {
            Ok(0) => break,
            Ok(read) => filled += read,
            Err(cause) if cause.kind() == io::ErrorKind::Interrupted => {}
            Err(cause) => return Err(cause),
        }
    }
    Ok(filled)
}

pub fn identity(file: FileId, head: Head) -> Identity {
    Identity { device: file.device, inode: file.inode, head }
}

/// What tells a file by its first bytes: up to [`HEAD_BYTES`], and without NUL bytes at the end, which are a hole that
/// is filled later.
pub fn head_of(bytes: &[u8]) -> Head {
    let bytes = &bytes[..bytes.len().min(HEAD_BYTES)];
    Head::of(&bytes[..bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1)])
}

/// Whether a file still begins as it did when `head` was taken.
pub fn begins_with(now: &[u8], head: Head) -> bool {
    now.get(..head.len as usize).is_some_and(|now| Head::of(now) == head)
}

/// Whether a file is the one that `known` tells of, and its position can be trusted. A device number may
/// change with a reboot: then only a whole head is believed. `before`: whether these bytes stand in front of this
/// position.
pub fn is_known(
    known: &Known,
    file: FileId,
    size: u64,
    head: &[u8],
    before: impl Fn(Head, u64) -> bool,
) -> bool {
    known.identity.is_some_and(|identity| {
        let same_device = identity.device == file.device || identity.head.len as usize == HEAD_BYTES;
        identity.inode == file.inode
            && same_device
            && size >= known.position
            && begins_with(head, identity.head)
            && known.before.is_none_or(|hash| before(hash, known.position))
    })
}

/// Whether the bytes in front of `position` are those of `before`.
pub fn stands_before(file: &File, before: Head, position: u64) -> io::Result<bool> {
    let mut bytes = vec![0; before.len as usize];
    let Some(from) = position.checked_sub(bytes.len() as u64) else { return Ok(false) };
    let read = read_at(file, &mut bytes, from)?;
    Ok(read == bytes.len() && Head::of(&bytes) == before)
}

/// Whether a file that has another inode goes on like what was read up to `position`. Where nothing was noted of
/// what stands before, a head that is whole, or has all of it, must do.
pub fn goes_on_like(file: &File, head: Head, before: Option<Head>, position: u64) -> io::Result<bool> {
    match before {
        Some(before) => stands_before(file, before, position),
        None => Ok(is_enough(head, position)),
    }
}

/// Whether a head alone tells that a position is the right one.
pub fn is_enough(head: Head, position: u64) -> bool {
    position <= u64::from(head.len) || head.len as usize == HEAD_BYTES
}

/// Equal for all generations of one path, in every life of the agent. `source`: of a stream, which has none.
///
/// A file has the same lineage in whichever source: it belongs to one at a time, and what was rotated before the
/// configuration changed comes before what stands there now.
pub fn lineage(source: &str, path: &Path) -> u64 {
    let mut hash = Xxh3::new();
    hash.update(source.as_bytes());
    hash.update(&[0]);
    hash.update(path.as_os_str().as_encoded_bytes());
    hash.digest()
}

/// Magic numbers of what lies beside logs: <https://www.garykessler.net/library/file_sigs.html> and
/// <https://systemd.io/JOURNAL_FILE_FORMAT/>.
const MAGIC: [(&[u8], &str); 8] = [
    (b"\x1f\x8b", "compressed with gzip"),
    (b"\xfd7zXZ\0", "compressed with xz"),
    (b"\x28\xb5\x2f\xfd", "compressed with zstd"),
    (b"BZh", "compressed with bzip2"),
    (b"PK\x03\x04", "a zip archive"),
    (b"LPKSHHRH", "a journal of systemd"),
    (b"\xff\xfe", "UTF-16 text, which is not supported"),
    (b"\xfe\xff", "UTF-16 text, which is not supported"),
];

/// Why a file with this head has no lines for us, in words that go after "it is".
pub fn not_text(head: &[u8]) -> Option<&'static str> {
    let magic = MAGIC.iter().find(|(magic, _)| head.starts_with(magic)).map(|(_, what)| *what);
    magic.or_else(|| memchr::memchr(0, head).map(|_| "binary: there is a NUL byte in its first KiB"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ack::GenerationId;

    const FILE: FileId = FileId { device: 1, inode: 7 };

    fn known(device: u64, head: &[u8], position: u64) -> Known {
        Known {
            generation: GenerationId(1),
            source: "s".into(),
            filename: None,
            identity: Some(identity(FileId { device, ..FILE }, Head::of(head))),
            lineage: 0,
            position,
            before: None,
            cursor: None,
            line: 0,
            continues: false,
            at_end: false,
            stamps: Vec::new(),
            progress: Vec::new(),
        }
    }

    #[test]
    fn a_file_is_known_by_inode_head_and_size() {
        let whole = [b'x'; HEAD_BYTES];
        let check = |known: Known, size, head: &[u8]| is_known(&known, FILE, size, head, |_, _| true);
        assert!(check(known(1, b"abc", 3), 6, b"abcdef"), "it has grown");
        assert!(check(known(1, b"", 0), 6, b"abcdef"), "it was empty");
        assert!(!check(known(1, b"abc", 3), 6, b"abX"), "another head");
        assert!(!check(known(1, b"abc", 3), 2, b"ab"), "shorter than its head was");
        assert!(!check(known(1, b"abc", 9), 6, b"abcdef"), "shorter than what was read");
        assert!(!check(known(2, b"abc", 3), 6, b"abcdef"), "another device");
        assert!(check(known(2, &whole, 3), 2000, &whole), "the device has another number");
        let other = FileId { inode: 8, ..FILE };
        assert!(!is_known(&known(1, b"abc", 3), other, 6, b"abcdef", |_, _| true), "another inode");
        let rewritten = Known { before: Some(Head::of(b"bc")), ..known(1, b"abc", 3) };
        let asked = |head, position| (head, position) == (Head::of(b"bc"), 3);
        assert!(is_known(&rewritten, FILE, 6, b"abcdef", asked));
        assert!(!is_known(&rewritten, FILE, 6, b"abcdef", |_, _| false), "other bytes before the position");
    }

    #[test]
    fn what_has_no_lines() {
        for text in [&b""[..], b"plain\n", "grüße\n".as_bytes(), b"\xff\xff\n"] {
            assert_eq!(not_text(text), None, "{text:?}");
        }
        assert_eq!(not_text(b"\x1f\x8b\x08"), Some("compressed with gzip"));
        assert!(not_text(b"\xff\xfea\0").unwrap().starts_with("UTF-16"));
        assert!(not_text(b"a\0b").unwrap().starts_with("binary"));
    }
}
