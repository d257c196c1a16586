//! Room that an output has behind its end while it grows fast: what is written there costs less than blocks that the file
//! system has to find one by one.
//!
//! Always true: an output that is not held open has no more room than it needs. What a life that was killed has left is
//! found when the output is opened again, and at the next start if the journal still knows it.

use std::path::Path;
use std::sync::Arc;

use crate::disk::{DiskFile, Seen};

/// What is taken at once, in bytes: a few writes of the largest size. More makes none of them cheaper.
const AHEAD: u64 = 4 << 20;

/// Who writes less at once does not grow fast.
const WRITE_LEAST: u64 = 256 << 10;

/// A file takes more blocks than its bytes need, for the list of them.
const SLACK: u64 = 64 << 10;

pub struct Room {
    file: Arc<dyn DiskFile>,
    path: Arc<Path>,
    /// There is room up to here, in bytes from the start of the file; 0: as much as it needs.
    upto: u64,
}

impl Room {
    /// Of a file that was just looked at, with what another life has left of it.
    pub fn of(file: Arc<dyn DiskFile>, path: Arc<Path>, seen: &Seen) -> Room {
        let is_left = seen.allocated > seen.size + SLACK;
        Room { file, path, upto: if is_left { seen.allocated } else { 0 } }
    }

    /// Before `bytes` are written at `at`, its end.
    pub fn make(&mut self, at: u64, bytes: usize) {
        let bytes = bytes as u64;
        if bytes >= WRITE_LEAST && at + bytes > self.upto && self.file.reserve(at, bytes + AHEAD) {
            self.upto = at + bytes + AHEAD;
        }
    }

    /// Somebody has truncated the file, which gives back all of it.
    pub fn is_gone(&mut self) {
        self.upto = 0;
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        // With a file that was deleted its room goes by itself.
        let is_left = |seen: Seen| self.upto > seen.size && seen.links > 0;
        if self.upto > 0
            && let Err(cause) = self.file.seen().map(is_left).and_then(|is_left| match is_left {
                true => self.file.give_back_room(),
                false => Ok(()),
            })
        {
            log::warn!("could not give back the room behind the end of {}: {cause}", self.path.display());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::{Disk, Open, RealDisk};

    const PIECE: usize = WRITE_LEAST as usize;

    /// On a real disk, where its file system has such room; else there is nothing to see.
    #[test]
    fn an_output_has_room_while_it_grows_fast_and_none_when_it_is_let_go() {
        let folder = tempfile::tempdir().unwrap();
        let path: Arc<Path> = folder.path().join("out").into();
        let file = RealDisk.open(&path, Open::Append).unwrap();
        let spare = || {
            let seen = RealDisk.look(&path).unwrap();
            seen.allocated.saturating_sub(seen.size)
        };
        let write = |room: &mut Room, bytes: usize| {
            let at = file.size().unwrap();
            room.make(at, bytes);
            file.write_at(&vec![b'x'; bytes], at).unwrap();
        };
        let mut room = Room::of(file.clone(), path.clone(), &file.seen().unwrap());
        write(&mut room, PIECE - 1);
        file.sync().unwrap();
        assert!(spare() <= SLACK, "it does not grow fast: {}", spare());
        write(&mut room, PIECE);
        if spare() == 0 {
            return; // not on this file system
        }
        assert!(spare() > AHEAD / 2);
        let size = file.size().unwrap();
        // The next life finds what this one has left.
        std::mem::forget(room);
        drop(Room::of(file.clone(), path.clone(), &file.seen().unwrap()));
        assert_eq!(file.size().unwrap(), size);
        assert!(spare() <= SLACK, "{} bytes are left", spare());
        // Somebody truncates it, and it grows on.
        let mut room = Room::of(file.clone(), path.clone(), &file.seen().unwrap());
        write(&mut room, PIECE);
        file.set_size(0).unwrap();
        room.is_gone();
        write(&mut room, PIECE);
        assert!(spare() > AHEAD / 2);
        drop(room);
        assert!(spare() <= SLACK, "{} bytes are left", spare());
        assert_eq!(file.size().unwrap(), PIECE as u64);
    }
}
