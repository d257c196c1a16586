//! Which file is it: the same as before, another one with a reused inode, or nothing that has lines at all.
//!
//! A path is never an identity. Device and inode are, together with a hash of the head, which tells a new file
//! with an old inode from the old file.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use rustix::fs::SeekFrom;
use rustix::io::Errno;
use xxhash_rust::xxh3::Xxh3;

use crate::durable::FileId;
use crate::ledger::{Head, Identity, Known};

/// Enough to tell any two logs apart that have a date in their first lines.
pub const HEAD_BYTES: usize = 1024;

/// At most [`HEAD_BYTES`] from the beginning.
pub fn read_head(file: &File) -> io::Result<Vec<u8>> {
    let mut head = vec![0; HEAD_BYTES];
    let len = read_at(file, &mut head, 0)?;
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

/// As large as a block of any file system that has holes.
const HOLE_BLOCK: usize = 64 * 1024;

pub fn identity(file: FileId, head: Head) -> Identity {
    Identity { device: file.device, inode: file.inode, head }
}

/// Whether a file still begins as it did when `head` was taken.
pub fn begins_with(now: &[u8], head: Head) -> bool {
    now.get(..head.len as usize).is_some_and(|now| Head::of(now) == head)
}

/// Whether a file is the one that `known` tells of, and its position can be trusted. A device number may
/// change with a reboot: then only a whole head is believed.
pub fn is_known(known: &Known, file: FileId, size: u64, head: &[u8]) -> bool {
    known.identity.is_some_and(|identity| {
        let same_device = identity.device == file.device || identity.head.len as usize == HEAD_BYTES;
        identity.inode == file.inode
            && same_device
            && size >= known.position
            && begins_with(head, identity.head)
    })
}

/// Equal for all generations of one path of one source, in every life of the agent.
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

/// A writer that does not append goes on at its old offset after its file was truncated, and leaves a hole of
/// NUL bytes in front. For a file that begins with one: where its text begins, and its first bytes.
pub fn text_after_hole(file: &File) -> io::Result<Option<(u64, Vec<u8>)>> {
    let start = match rustix::fs::seek(file, SeekFrom::Data(0)) {
        Ok(start) => start,
        // Nothing but a hole, or a file system that does not tell.
        Err(Errno::NXIO | Errno::INVAL | Errno::OPNOTSUPP) => return Ok(None),
        Err(cause) => return Err(cause.into()),
    };
    // The hole ends with a block; the text begins somewhere in the next.
    let mut block = vec![0; HOLE_BLOCK];
    let len = read_at(file, &mut block, start)?;
    let Some(nul) = block[..len].iter().position(|byte| *byte != 0) else { return Ok(None) };
    let text = block[nul..len.min(nul + HEAD_BYTES)].to_vec();
    Ok((start > 0 || nul >= HEAD_BYTES).then_some((start + nul as u64, text)))
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
            stamps: Vec::new(),
            progress: Vec::new(),
        }
    }

    #[test]
    fn a_file_is_known_by_inode_head_and_size() {
        let whole = [b'x'; HEAD_BYTES];
        let check = |known: Known, size, head: &[u8]| is_known(&known, FILE, size, head);
        assert!(check(known(1, b"abc", 3), 6, b"abcdef"), "it has grown");
        assert!(check(known(1, b"", 0), 6, b"abcdef"), "it was empty");
        assert!(!check(known(1, b"abc", 3), 6, b"abX"), "another head");
        assert!(!check(known(1, b"abc", 3), 2, b"ab"), "shorter than its head was");
        assert!(!check(known(1, b"abc", 9), 6, b"abcdef"), "shorter than what was read");
        assert!(!check(known(2, b"abc", 3), 6, b"abcdef"), "another device");
        assert!(check(known(2, &whole, 3), 2000, &whole), "the device has another number");
        let other = FileId { inode: 8, ..FILE };
        assert!(!is_known(&known(1, b"abc", 3), other, 6, b"abcdef"), "another inode");
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
