//! Bytes that stand in memory as they will stand in the file, page on page: for a write past the page cache (`O_DIRECT`),
//! where the disk fetches them from our memory, and the kernel neither copies them nor keeps a page for each of theirs.
//!
//! What it asks for (open(2), "`O_DIRECT`"): the place in the file, the place in memory and the length are multiples of
//! a block of the device. [`PAGE`] is one of every block size there is, and what is cut there shares no page of the
//! cache with what is written beside it the usual way.

use std::fs::File;
use std::io::{self, ErrorKind};
use std::os::unix::fs::FileExt;

/// In bytes.
pub const PAGE: usize = 4096;

/// Bytes for one place in a file, where each page of the file is a page in memory.
#[derive(Clone, Copy, Debug)]
pub struct Paged<'a> {
    pub bytes: &'a [u8],
    /// In the file.
    pub offset: u64,
}

impl<'a> Paged<'a> {
    /// `None`: they stand otherwise.
    pub fn of(bytes: &'a [u8], offset: u64) -> Option<Paged<'a>> {
        let to_page = (PAGE - (offset % PAGE as u64) as usize) % PAGE;
        (bytes.as_ptr().align_offset(PAGE) == to_page).then_some(Paged { bytes, offset })
    }

    /// What stands before the first whole page, the whole pages, and what stands behind them.
    pub fn parts(self) -> (&'a [u8], &'a [u8], &'a [u8]) {
        let to_page = self.bytes.as_ptr().align_offset(PAGE).min(self.bytes.len());
        let (head, rest) = self.bytes.split_at(to_page);
        let (pages, tail) = rest.split_at(rest.len() / PAGE * PAGE);
        (head, pages, tail)
    }
}

/// A page of memory.
#[repr(align(4096))]
struct Page([u8; PAGE]);

/// Writes whole pages to the end of a file, which is at `offset` and past the cache now. How much was taken; none of it
/// if the file system cannot do it, here or there.
///
/// What is still in the cache of the page before them goes first, as before any direct read of it: else the file could
/// be longer on the disk than what stands in it.
pub(super) fn write_pages(file: &File, pages: &[u8], offset: u64) -> io::Result<usize> {
    if let Some(before) = offset.checked_sub(PAGE as u64)
        && !matches!(file.read_at(&mut Page([0; PAGE]).0, before), Ok(PAGE))
    {
        return Ok(0);
    }
    match file.write_at(pages, offset) {
        Err(cause)
            if matches!(
                cause.kind(),
                ErrorKind::InvalidInput | ErrorKind::Unsupported | ErrorKind::Interrupted
            ) =>
        {
            Ok(0)
        }
        taken => taken,
    }
}

#[cfg(test)]
mod tests {
    use std::io::IoSliceMut;
    use std::path::Path;

    use proptest::prelude::*;
    use rustix::io::{ReadWriteFlags, preadv2};

    use super::*;
    use crate::disk::{Disk, DiskFile, Open, RealDisk};

    /// Memory in which bytes can be laid anywhere in a page.
    fn memory(length: usize) -> Vec<u8> {
        let mut rng = fastrand::Rng::with_seed(length as u64);
        std::iter::repeat_with(|| rng.u8(..)).take(length + 2 * PAGE).collect()
    }

    fn laid(memory: &[u8], length: usize, offset: u64) -> Paged<'_> {
        let start = memory.as_ptr().align_offset(PAGE) + (offset % PAGE as u64) as usize;
        Paged::of(&memory[start..start + length], offset).unwrap()
    }

    proptest! {
        #[test]
        fn only_pages_on_pages_are_cut_out(
            offset in 0_u64..3 * PAGE as u64,
            length in 0_usize..5 * PAGE,
            beside in 1_u64..PAGE as u64,
        ) {
            let memory = memory(length);
            let paged = laid(&memory, length, offset);
            prop_assert!(Paged::of(paged.bytes, offset + beside).is_none());
            let (head, pages, tail) = paged.parts();
            prop_assert_eq!([head, pages, tail].concat(), paged.bytes);
            prop_assert!(head.len() < PAGE && tail.len() < PAGE && pages.len().is_multiple_of(PAGE));
            if !pages.is_empty() {
                let at = (pages.as_ptr().align_offset(PAGE), (offset + head.len() as u64) % PAGE as u64);
                prop_assert_eq!(at, (0, 0));
            }
            prop_assert!(length < 2 * PAGE - 1 || !pages.is_empty());
        }
    }

    /// On the disk that the build stands on, where nobody says that files live in memory.
    fn output() -> (tempfile::TempDir, std::path::PathBuf) {
        let folder = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
        let path = folder.path().join("output");
        (folder, path)
    }

    /// Whoever does not want to wait for the disk is given what is in the cache, and nothing else.
    fn cached_pages(path: &Path) -> usize {
        let (file, pages) = (File::open(path).unwrap(), path.metadata().unwrap().len().div_ceil(PAGE as u64));
        let is_cached = |page: &u64| {
            let mut byte = [0];
            let mut buffers = [IoSliceMut::new(&mut byte)];
            preadv2(&file, &mut buffers, page * PAGE as u64, ReadWriteFlags::NOWAIT).is_ok()
        };
        (0..pages).filter(is_cached).count()
    }

    #[test]
    fn what_is_written_past_the_cache_is_read_as_it_was_written_and_takes_no_page_of_it() {
        let (_folder, path) = output();
        let file = RealDisk.open(&path, Open::Append).unwrap();
        let mut all = Vec::<u8>::new();
        for length in [1, 5000, 100_000, 4096, 0, 123_457, 8191] {
            let memory = memory(length);
            let paged = laid(&memory, length, all.len() as u64);
            file.write_direct(paged).unwrap();
            all.extend(paged.bytes);
        }
        assert!(cached_pages(&path) <= 2 * 7, "two pages for each write at most: {}", cached_pages(&path));
        assert!(std::fs::read(&path).unwrap() == all);
        assert_eq!(cached_pages(&path), all.len().div_ceil(PAGE), "now they are read");
        // The handle goes on as it was: what is not aligned can be read and written.
        file.write_at(b"more", 0).unwrap();
        let mut last = [0; 4];
        file.read_at(&mut last, all.len() as u64).unwrap();
        assert_eq!(&last, b"more");
    }

    /// Where the file ends now, no page ends: the kernel refuses to write past the cache there.
    #[test]
    fn what_another_process_appends_meanwhile_is_not_written_over() {
        let (_folder, path) = output();
        let file = RealDisk.open(&path, Open::Append).unwrap();
        let memory = memory(50_000);
        let paged = laid(&memory, 50_000, 0);
        File::options().append(true).open(&path).unwrap().write_all_at(b"theirs\n", 0).unwrap();
        file.write_direct(paged).unwrap();
        assert!(std::fs::read(&path).unwrap() == [&b"theirs\n"[..], paged.bytes].concat());
    }

    #[test]
    fn a_disk_without_room_says_so() {
        let full = File::options().write(true).open("/dev/full").unwrap();
        let memory = memory(50_000);
        let error = full.write_direct(laid(&memory, 50_000, 0)).unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::StorageFull);
    }
}
