//! A rotated file that was compressed: read as what it was before.
//!
//! Bytes come in their order and in bounded memory: what was read and may be asked for again (a half line, what
//! stands before the position) is kept in a window that moves with the offsets that are asked for. Whoever goes
//! back further makes it begin anew, which costs time and nothing else.
//!
//! Not here: which file it is, and where to read on (`files/missing.rs`).

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use flate2::bufread::MultiGzDecoder;
use ruzstd::decoding::{FrameDecoder, StreamingDecoder};

use super::identity::HEAD_BYTES;
use crate::ledger::{BEFORE_BYTES, Head};

/// Decoded at once.
const STEP_BYTES: usize = 64 * 1024;

/// What a frame of zstd may ask us to keep: as much as its highest usual level does. More is refused.
const ZSTD_WINDOW_MAX: u64 = 8 << 20;

/// With the magic number (RFC 8878, 3.1.1).
const ZSTD_HEADER_MAX: u64 = 18;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    Gzip,
    Zstd,
}

/// By its first bytes. `None`: it is not compressed, or by something that we do not read.
pub(super) fn form(head: &[u8]) -> Option<Form> {
    match head {
        [0x1f, 0x8b, ..] => Some(Form::Gzip),
        [0x28, 0xb5, 0x2f, 0xfd, ..] => Some(Form::Zstd),
        _ => None,
    }
}

/// What is in it, from its first byte to its last.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Survey {
    pub size: u64,
    /// At most [`HEAD_BYTES`].
    pub head: Vec<u8>,
    /// In front of the position that was asked for, up to [`BEFORE_BYTES`].
    pub before: Vec<u8>,
    /// It cannot be read to its end: it is being written, or what wrote it has died, or the disk has rotted.
    pub torn: bool,
}

impl Survey {
    pub fn begins_with(&self, head: Head) -> bool {
        super::identity::begins_with(&self.head, head)
    }

    /// `None`: not known.
    pub fn stands_before(&self, before: Option<Head>) -> bool {
        before.is_none_or(|before| {
            let from = self.before.len().checked_sub(before.len as usize);
            from.is_some_and(|from| Head::of(&self.before[from..]) == before)
        })
    }
}

/// The content of a compressed file.
pub(super) struct Unpacked {
    file: Arc<File>,
    form: Form,
    decoder: Decoder,
    /// Decoded, and not behind what was asked for last.
    window: Vec<u8>,
    /// Where the window begins.
    from: u64,
    torn: bool,
}

enum Decoder {
    Gzip(Box<MultiGzDecoder<BufReader<Raw>>>),
    Zstd(Box<StreamingDecoder<BufReader<Raw>, FrameDecoder>>),
    Over,
}

struct Raw {
    file: Arc<File>,
    at: u64,
}

impl Read for Raw {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.file.read_at(buffer, self.at)?;
        self.at += read as u64;
        Ok(read)
    }
}

impl Unpacked {
    pub fn new(file: File, form: Form) -> Unpacked {
        let file = Arc::new(file);
        Unpacked { decoder: Decoder::Over, file, form, window: Vec::new(), from: u64::MAX, torn: false }
    }

    /// What is in it is not wanted any more. `None` never happens: nobody else has it.
    pub fn into_file(self) -> Option<File> {
        let Unpacked { decoder, file, .. } = self;
        drop(decoder);
        Arc::into_inner(file)
    }

    /// Fills `buffer` from `offset` of the content on, and says how far: less only at its end. What is torn ends
    /// where it is torn.
    pub fn read_at(&mut self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        self.reach(offset)?;
        while self.window.len() < buffer.len() && self.decode()? > 0 {}
        let there = self.window.len().min(buffer.len());
        buffer[..there].copy_from_slice(&self.window[..there]);
        Ok(there)
    }

    /// From the beginning to the end. `go_on` is asked now and then; `None`: it said no.
    pub fn survey(&mut self, position: u64, go_on: &dyn Fn() -> bool) -> io::Result<Option<Survey>> {
        let mut survey = Survey { head: vec![0; HEAD_BYTES], ..Survey::default() };
        let len = self.read_at(&mut survey.head, 0)?;
        survey.head.truncate(len);
        let mut end = 0;
        while end < position && go_on() {
            end = position.min(end + (1 << 20));
            self.reach(end.saturating_sub(BEFORE_BYTES as u64))?;
        }
        survey.before = vec![0; position.min(BEFORE_BYTES as u64) as usize];
        let len = self.read_at(&mut survey.before, position.saturating_sub(BEFORE_BYTES as u64))?;
        survey.before.truncate(len);
        while go_on() {
            self.reach(self.from + self.window.len() as u64)?;
            if self.decode()? == 0 {
                survey.size = self.from + self.window.len() as u64;
                survey.torn = self.torn;
                return Ok(Some(survey));
            }
        }
        Ok(None)
    }

    /// Drops what stands before `offset`, or begins anew if that was dropped already.
    fn reach(&mut self, offset: u64) -> io::Result<()> {
        if offset < self.from {
            (self.decoder, self.from, self.torn) = (Decoder::Over, 0, false);
            self.window.clear();
            match decoder(self.form, BufReader::new(Raw { file: self.file.clone(), at: 0 })) {
                Ok(decoder) => self.decoder = decoder,
                Err(_) if self.file.metadata()?.len() < ZSTD_HEADER_MAX => self.torn = true,
                Err(cause) => return Err(cause), // it asks for more memory than it gets, for one
            }
        }
        loop {
            let before = (offset - self.from).min(self.window.len() as u64);
            self.window.drain(..before as usize);
            self.from += before;
            if self.from == offset || self.decode()? == 0 {
                return Ok(());
            }
        }
    }

    /// Appends to the window; 0: there is no more.
    fn decode(&mut self) -> io::Result<usize> {
        let len = self.window.len();
        self.window.resize(len + STEP_BYTES, 0);
        let decoded = loop {
            match self.decoder.read(&mut self.window[len..]) {
                Ok(0) if self.decoder.next_frame()? => {}
                Err(cause) if cause.kind() == io::ErrorKind::Interrupted => {}
                decoded => break decoded,
            }
        };
        self.window.truncate(len + *decoded.as_ref().unwrap_or(&0));
        match decoded {
            // Of the disk, not of what stands on it.
            Err(cause) if cause.raw_os_error().is_some() => Err(cause),
            Err(_) => {
                (self.decoder, self.torn) = (Decoder::Over, true);
                Ok(0)
            }
            decoded => decoded,
        }
    }
}

fn decoder(form: Form, raw: BufReader<Raw>) -> io::Result<Decoder> {
    match form {
        Form::Gzip => Ok(Decoder::Gzip(Box::new(MultiGzDecoder::new(raw)))),
        Form::Zstd => StreamingDecoder::new_with_max_window_size(raw, ZSTD_WINDOW_MAX)
            .map(|decoder| Decoder::Zstd(Box::new(decoder)))
            .map_err(io::Error::other),
    }
}

impl Decoder {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Decoder::Gzip(decoder) => decoder.read(buffer),
            Decoder::Zstd(decoder) => decoder.read(buffer),
            Decoder::Over => Ok(0),
        }
    }

    /// A file may be made of several frames; those of gzip follow each other by themselves.
    fn next_frame(&mut self) -> io::Result<bool> {
        let Decoder::Zstd(ended) = self else { return Ok(false) };
        if ended.get_mut().fill_buf()?.is_empty() {
            return Ok(false);
        }
        let Decoder::Zstd(ended) = std::mem::replace(self, Decoder::Over) else { return Ok(false) };
        *self = decoder(Form::Zstd, ended.into_inner())?;
        Ok(true)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::io::Write;

    use super::*;

    pub fn gzip(text: &[u8]) -> Vec<u8> {
        let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        packed.write_all(text).unwrap();
        packed.finish().unwrap()
    }

    pub fn zstd(text: &[u8]) -> Vec<u8> {
        ruzstd::encoding::compress_to_vec(text, ruzstd::encoding::CompressionLevel::Fastest)
    }

    fn unpacked(packed: &[u8]) -> Unpacked {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(packed).unwrap();
        Unpacked::new(file, form(packed).expect("it is compressed"))
    }

    fn text() -> Vec<u8> {
        (0..100_000).flat_map(|number| format!("line {number}\n").into_bytes()).collect()
    }

    /// Both forms, in one part and in two.
    fn check(body: impl Fn(&[u8], Unpacked)) {
        let text = text();
        let (first, second) = text.split_at(300_000);
        for pack in [gzip, zstd] {
            body(&text, unpacked(&pack(&text)));
            body(&text, unpacked(&[pack(first), pack(second)].concat()));
        }
    }

    #[test]
    fn any_part_can_be_read() {
        check(|text, mut unpacked| {
            for (offset, len) in [(0, 10), (5, 300_000), (400_000, 70_000), (3, 9), (text.len() - 5, 100)] {
                let mut buffer = vec![0; len];
                let read = unpacked.read_at(&mut buffer, offset as u64).unwrap();
                assert!(buffer[..read] == text[offset..text.len().min(offset + len)], "{len} from {offset}");
            }
            let mut buffer = [0; 10];
            assert_eq!(unpacked.read_at(&mut buffer, text.len() as u64).unwrap(), 0);
            assert!(unpacked.window.capacity() < 1 << 20);
        });
    }

    #[test]
    fn what_is_in_it() {
        check(|text, mut unpacked| {
            for position in [0, 10, 500_000, text.len()] {
                let survey = unpacked.survey(position as u64, &|| true).unwrap().unwrap();
                assert_eq!((survey.size, survey.torn), (text.len() as u64, false));
                assert!(survey.head == text[..HEAD_BYTES]);
                assert!(survey.before == text[position.saturating_sub(BEFORE_BYTES)..position]);
            }
            assert_eq!(unpacked.survey(0, &|| false).unwrap(), None);
        });
    }

    #[test]
    fn what_is_torn_says_so() {
        let text = text();
        for pack in [gzip, zstd] {
            let packed = pack(&text);
            for len in [4, 20, packed.len() / 2, packed.len() - 1] {
                let mut unpacked = unpacked(&packed[..len]);
                let survey = unpacked.survey(0, &|| true).unwrap().unwrap();
                assert!(survey.torn && survey.size < text.len() as u64 + 1, "{len} bytes: {}", survey.size);
                assert!(text.starts_with(&survey.head));
            }
        }
        let mut greedy = b"\x28\xb5\x2f\xfd\x00\xff".to_vec();
        greedy.resize(100, 0);
        assert!(unpacked(&greedy).survey(0, &|| true).is_err(), "a window of terabytes");
    }
}
