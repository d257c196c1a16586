//! A frame of a checkpoint on its way to the disk, in pieces: what ten thousand files come to is some megabytes of
//! text, which nobody else needs the memory for.
//!
//! Its head tells how long the body is and what it adds up to, so a body that is longer than a piece is made twice:
//! once to learn that, once to be written. One that is shorter, as nearly all are, is made once and written at once;
//! so is any in a stop, which has no time, and whose memory nobody needs any more.

use std::io::{self, Write};

use crc32fast::Hasher;
use serde::Serialize;

use super::Mark;
use super::checkpoint::FRAME_HEAD_BYTES;
use crate::disk::DiskFile;
use crate::error::{Context, Result};

/// Some eighty files. What is longer is no faster on the disk, and stays in the memory of the process.
const PIECE_BYTES: usize = 16 * 1024;

/// What is known of a frame before it is written.
pub struct Frame<'a, B> {
    body: &'a B,
    pub head: [u8; FRAME_HEAD_BYTES],
    pub seal: u32,
    length: usize,
    /// If it was kept: it fits one piece, or was to be made once.
    text: Option<Vec<u8>>,
}

impl<'a, B: Serialize> Frame<'a, B> {
    /// `before`: the seal before it, or the salt. `at_once`: made once, whatever memory that takes.
    pub fn new(
        (sequence, mark): (u64, Mark),
        before: u32,
        body: &'a B,
        at_once: bool,
    ) -> Result<Frame<'a, B>> {
        let most = if at_once { usize::MAX } else { PIECE_BYTES };
        let mut measured = Pieces { buffer: Vec::new(), most, sum: Hasher::new(), length: 0, to: None };
        serde_json::to_writer(&mut measured, body).context(doing)?;
        let text = (measured.length == 0).then(|| std::mem::take(&mut measured.buffer));
        measured.sum.update(text.as_deref().unwrap_or(&measured.buffer));
        measured.length += text.as_ref().unwrap_or(&measured.buffer).len();
        let mut head = [0; FRAME_HEAD_BYTES];
        let length = u32::try_from(measured.length).context(|| "the checkpoint is too large".into())?;
        head[..4].copy_from_slice(&length.to_le_bytes());
        head[4..12].copy_from_slice(&sequence.to_le_bytes());
        head[12..20].copy_from_slice(&mark.sequence.to_le_bytes());
        head[20..24].copy_from_slice(&mark.seal.to_le_bytes());
        let mut sum = Hasher::new_with_initial(before);
        sum.update(&head[..24]);
        sum.combine(&measured.sum);
        let seal = sum.finalize();
        head[24..].copy_from_slice(&seal.to_le_bytes());
        Ok(Frame { body, head, seal, length: measured.length, text })
    }

    /// On the disk, its head included.
    pub fn len(&self) -> u64 {
        (FRAME_HEAD_BYTES + self.length) as u64
    }

    /// Behind `first`, which begins at `at`.
    pub fn write(self, file: &dyn DiskFile, at: u64, first: &[u8]) -> io::Result<()> {
        let mut buffer = [first, &self.head].concat();
        if let Some(text) = &self.text {
            buffer.extend_from_slice(text);
            return file.write_at(&buffer, at);
        }
        let to = Some((file, at));
        let mut pieces = Pieces { buffer, most: PIECE_BYTES, sum: Hasher::new(), length: 0, to };
        serde_json::to_writer(&mut pieces, self.body)?;
        pieces.flush()
    }
}

fn doing() -> String {
    "could not encode the checkpoint".into()
}

struct Pieces<'a> {
    buffer: Vec<u8>,
    /// It goes when it is as long.
    most: usize,
    sum: Hasher,
    /// Of the pieces that have gone.
    length: usize,
    /// Where the next one goes; `None`: nowhere.
    to: Option<(&'a dyn DiskFile, u64)>,
}

impl Write for Pieces<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.buffer.extend_from_slice(bytes);
        if self.buffer.len() >= self.most {
            self.flush()?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        match &mut self.to {
            None => self.sum.update(&self.buffer),
            Some((file, at)) => {
                file.write_at(&self.buffer, *at)?;
                *at += self.buffer.len() as u64;
            }
        }
        self.length += self.buffer.len();
        self.buffer.clear();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::super::checkpoint::seal_of;
    use super::*;
    use crate::disk::model::ModelDisk;
    use crate::disk::{Disk, Open};

    #[test]
    fn a_frame_in_pieces_is_the_same_frame() {
        for (lines, at_once) in [(1, false), (1_000, false), (100_000, false), (100_000, true)] {
            let disk = ModelDisk::default();
            disk.create_folder(Path::new("/data")).unwrap();
            let file = disk.open(Path::new("/data/frame"), Open::OrCreate).unwrap();
            let text = vec!["line"; lines];
            let frame = Frame::new((7, Mark { sequence: 9, seal: 3 }), 5, &text, at_once).unwrap();
            let (head, seal, len) = (frame.head, frame.seal, frame.len() as usize);
            let before = disk.changes();
            frame.write(&*file, 10, b"first").unwrap();
            let body = serde_json::to_vec(&text).unwrap();
            let mut written = vec![0; 10 + 5 + len];
            file.read_at(&mut written, 0).unwrap();
            assert_eq!(file.size().unwrap(), written.len() as u64, "{lines}");
            assert!(written[15..] == [&head[..], &body].concat(), "{lines}");
            assert_eq!((seal, seal.to_le_bytes().as_slice()), (seal_of(5, &head[..24], &body), &head[24..]));
            let in_pieces = body.len() > PIECE_BYTES && !at_once;
            assert_eq!(disk.changes() - before > 1, in_pieces, "{lines}");
        }
    }
}
