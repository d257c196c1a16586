//! One frame: some records of one chunk for one sink, as they stand in a segment. Written and read in pieces, so
//! that neither side needs more memory than a small buffer besides the records themselves.
//!
//! ```text
//! header (88 bytes, with a checksum of its own)   which generation and bytes of it, how many lines, how long
//! meta                                            source, labels; of each record what is not in its bytes
//! data                                            the bytes of the records, one behind the other
//! ```
//!
//! The header is written last if the frame does not fit into one write: without it there is no frame. It has its
//! own checksum, so that a frame whose body is damaged still says what it was, and where the next one begins.
//!
//! Always true: what [`read`] gives back shows the same records as were written: bytes, times, labels, offsets. All
//! numbers are little endian; those of varying length are LEB128.

use std::io;
use std::sync::Arc;

use crate::ack::{Count, GenerationId, SHARE_BYTES};
use crate::budget::Credit;
use crate::disk::DiskFile;
use crate::record::{Changed, Entry, Labels, Lines, Origin, Place, Records, Shift, Slice};

pub const HEADER_BYTES: usize = 88;

/// What is collected before it is written, and read at once when a body is only checked.
pub const SCRATCH_BYTES: usize = 16 * 1024;

/// No body is longer: a length beyond it is damage that the checksum has missed.
const BODY_MOST: u64 = 1 << 30;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// Rises by one per frame of a spool, over all segments and lives.
    pub sequence: u64,
    pub generation: GenerationId,
    /// The bytes of the generation that it answers for.
    pub start: u64,
    pub end: u64,
    pub lineage: u64,
    pub records: u32,
    /// Bytes of its records in their source.
    pub bytes: u64,
    /// All lines and bytes that were ever put into this spool before it.
    pub before: Count,
    meta_len: u32,
    data_len: u32,
    body_crc: u32,
}

impl Header {
    pub fn count(&self) -> Count {
        Count { lines: u64::from(self.records), bytes: self.bytes }
    }

    /// All that was ever put into this spool, with this frame.
    pub fn after(&self) -> Count {
        let mut after = self.before;
        after += self.count();
        after
    }

    fn body_len(&self) -> u64 {
        u64::from(self.meta_len) + u64::from(self.data_len)
    }

    /// Bytes on disk, header included.
    pub fn len(&self) -> u64 {
        HEADER_BYTES as u64 + self.body_len()
    }

    /// What its records cost in memory, in bytes.
    pub fn cost(&self) -> usize {
        /// Line ends, places, entries.
        const RECORD: usize = size_of::<u32>() + size_of::<Place>() + size_of::<Entry>();
        /// The list of what is under way, labels that are not shared, small change.
        const FRAME: usize = 512;
        self.data_len as usize
            + 2 * self.meta_len as usize
            + self.records as usize * RECORD
            + SHARE_BYTES
            + FRAME
    }

    fn encode(&self, salt: u32) -> [u8; HEADER_BYTES] {
        let mut bytes = Vec::with_capacity(HEADER_BYTES);
        for word in [salt, 0, self.body_crc, self.meta_len, self.data_len, self.records] {
            bytes.extend_from_slice(&word.to_le_bytes());
        }
        let Count { lines, bytes: before } = self.before;
        for word in
            [self.sequence, self.generation.0, self.start, self.end, self.lineage, self.bytes, lines, before]
        {
            bytes.extend_from_slice(&word.to_le_bytes());
        }
        let crc = crc32fast::hash(&bytes[8..]);
        bytes[4..8].copy_from_slice(&crc.to_le_bytes());
        bytes.try_into().expect("six short and eight long words are 88 bytes")
    }

    /// `None`: this is no header of a segment with this salt.
    pub fn decode(bytes: &[u8; HEADER_BYTES], salt: u32) -> Option<Header> {
        let short = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"));
        let long = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"));
        if short(0) != salt || short(4) != crc32fast::hash(&bytes[8..]) {
            return None;
        }
        let header = Header {
            body_crc: short(8),
            meta_len: short(12),
            data_len: short(16),
            records: short(20),
            sequence: long(24),
            generation: GenerationId(long(32)),
            start: long(40),
            end: long(48),
            lineage: long(56),
            bytes: long(64),
            before: Count { lines: long(72), bytes: long(80) },
        };
        (header.records > 0 && header.start <= header.end && header.body_len() <= BODY_MOST).then_some(header)
    }
}

/// What a spool says about a frame that it is about to write.
#[derive(Clone, Copy, Debug)]
pub struct Ticket {
    pub sequence: u64,
    pub before: Count,
    /// Of the segment: a log line that looks like a frame is none.
    pub salt: u32,
    /// Where in the file.
    pub at: u64,
}

const HAS_FILENAME: u8 = 1;
const REPLAYABLE: u8 = 2;
/// The records stand in their source one behind the other and are as they were read.
const DENSE: u8 = 4;
const CONTINUES: u8 = 8;

const PARTIAL: u8 = 1;
const REWRITTEN: u8 = 2;
const HAS_LABELS: u8 = 4;
const HAS_METADATA: u8 = 8;
const GOES_ON: u8 = 16;

/// After an error any part of it may have been written behind `ticket.at`, but no frame stands there.
pub fn write(
    file: &dyn DiskFile,
    ticket: Ticket,
    slice: &Slice,
    scratch: &mut Vec<u8>,
) -> io::Result<Header> {
    let first = slice.first();
    let count = slice.count();
    let range = match slice.range.end - slice.range.start == slice.records.len() {
        true => slice.records.byte_range(),
        false => {
            let last = slice.records.get(slice.range.end - 1);
            first.offset..last.offset + last.len
        }
    };
    let mut out = Out::new(file, ticket.at, scratch);
    write_meta(&mut out, slice, range.start)?;
    let meta_len = out.body_len;
    for record in slice.iter() {
        out.put(record.raw.unwrap_or(record.text))?;
    }
    let header = Header {
        sequence: ticket.sequence,
        generation: first.origin.generation,
        start: range.start,
        end: range.end,
        lineage: first.origin.lineage,
        records: slice.range.end - slice.range.start,
        bytes: count.bytes,
        before: ticket.before,
        meta_len: len32(meta_len)?,
        data_len: len32(out.body_len - meta_len)?,
        body_crc: out.crc.clone().finalize(),
    };
    out.finish(&header.encode(ticket.salt))?;
    Ok(header)
}

fn len32(len: u64) -> io::Result<u32> {
    u32::try_from(len)
        .ok()
        .filter(|len| u64::from(*len) <= BODY_MOST / 2)
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "a record is too large for the spool"))
}

fn write_meta(out: &mut Out<'_>, slice: &Slice, start: u64) -> io::Result<()> {
    let (first, dense) = (slice.first(), is_dense(slice));
    let Origin { source, labels, filename, replayable, .. } = &**first.origin;
    let flag = |flag: u8, is_set: bool| if is_set { flag } else { 0 };
    let flags = flag(HAS_FILENAME, filename.is_some())
        | flag(REPLAYABLE, *replayable)
        | flag(DENSE, dense)
        | flag(CONTINUES, first.continues);
    out.put(&[flags])?;
    out.text(source)?;
    if let Some(filename) = filename {
        out.text(filename)?;
    }
    out.labels(labels)?;
    out.put(&first.time_ns.to_le_bytes())?;
    out.number(first.offset - start)?;
    if dense {
        return slice.iter().try_for_each(|record| out.number(record.len));
    }
    let (mut sets, mut names): (Vec<&Arc<Labels>>, Vec<&str>) = Default::default();
    let (mut time_ns, mut offset) = (first.time_ns, first.offset);
    for record in slice.iter() {
        let own_labels = !Arc::ptr_eq(record.labels, labels);
        let flags = flag(PARTIAL, record.partial)
            | flag(GOES_ON, record.continues)
            | flag(REWRITTEN, record.raw.is_none())
            | flag(HAS_LABELS, own_labels)
            | flag(HAS_METADATA, !record.metadata.is_empty());
        out.put(&[flags])?;
        out.number(zigzag(record.time_ns.wrapping_sub(time_ns)))?;
        out.number(record.offset - offset)?;
        out.number(record.len)?;
        if record.raw.is_none() {
            out.number(record.text.len() as u64)?;
        }
        if own_labels {
            // Records of one stream mostly stand together: the one that is wanted was used a moment ago.
            match sets.iter().rposition(|known| Arc::ptr_eq(known, record.labels)) {
                Some(at) => out.number(at as u64)?,
                None => {
                    out.number(sets.len() as u64)?;
                    out.labels(record.labels)?;
                    sets.push(record.labels);
                }
            }
        }
        if !record.metadata.is_empty() {
            out.number(record.metadata.len() as u64)?;
            for (name, value) in record.metadata {
                match names.iter().position(|known| **known == **name) {
                    Some(at) => out.number(at as u64)?,
                    None => {
                        out.number(names.len() as u64)?;
                        out.text(name)?;
                        names.push(name);
                    }
                }
                out.text(value)?;
            }
        }
        (time_ns, offset) = (record.time_ns.wrapping_add(1), record.offset + record.len);
    }
    Ok(())
}

fn is_dense(slice: &Slice) -> bool {
    let (mut time_ns, mut offset, mut cut) = (slice.first().time_ns, slice.first().offset, None);
    slice.iter().all(|record| {
        let as_read = |raw: &[u8]| {
            let continues = cut.unwrap_or(record.continues);
            record.continues == continues && record.partial == (continues || !raw.ends_with(b"\n"))
        };
        let dense = record.raw.is_some_and(as_read)
            && Arc::ptr_eq(record.labels, &record.origin.labels)
            && record.metadata.is_empty()
            && record.time_ns == time_ns
            && record.offset == offset;
        cut = Some(record.raw.is_some_and(|raw| !raw.ends_with(b"\n")));
        (time_ns, offset) = (record.time_ns.wrapping_add(1), record.offset + record.len);
        dense
    })
}

fn zigzag(number: i64) -> u64 {
    ((number << 1) ^ (number >> 63)) as u64
}

fn unzigzag(number: u64) -> i64 {
    (number >> 1) as i64 ^ -((number & 1) as i64)
}

/// A body on its way into the file. The first buffer keeps room for the header.
struct Out<'a> {
    file: &'a dyn DiskFile,
    /// Of the frame.
    at: u64,
    scratch: &'a mut Vec<u8>,
    /// Bytes in front of the scratch that are in the file, room for the header included.
    flushed: u64,
    body_len: u64,
    crc: crc32fast::Hasher,
}

impl<'a> Out<'a> {
    fn new(file: &'a dyn DiskFile, at: u64, scratch: &'a mut Vec<u8>) -> Out<'a> {
        scratch.clear();
        scratch.resize(HEADER_BYTES, 0);
        Out { file, at, scratch, flushed: 0, body_len: 0, crc: crc32fast::Hasher::new() }
    }

    fn put(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.crc.update(bytes);
        self.body_len += bytes.len() as u64;
        if self.scratch.len() + bytes.len() > SCRATCH_BYTES {
            self.flush()?;
        }
        if bytes.len() > SCRATCH_BYTES {
            self.file.write_at(bytes, self.at + self.flushed)?;
            self.flushed += bytes.len() as u64;
        } else {
            self.scratch.extend_from_slice(bytes);
        }
        Ok(())
    }

    fn number(&mut self, mut number: u64) -> io::Result<()> {
        let (mut bytes, mut len) = ([0u8; 10], 0);
        loop {
            bytes[len] = (number & 0x7f) as u8 | if number > 0x7f { 0x80 } else { 0 };
            (number, len) = (number >> 7, len + 1);
            if number == 0 {
                return self.put(&bytes[..len]);
            }
        }
    }

    fn text(&mut self, text: &str) -> io::Result<()> {
        self.number(text.len() as u64)?;
        self.put(text.as_bytes())
    }

    fn labels(&mut self, labels: &Labels) -> io::Result<()> {
        self.number(labels.iter().count() as u64)?;
        labels.iter().try_for_each(|(name, value)| self.text(name).and_then(|()| self.text(value)))
    }

    fn flush(&mut self) -> io::Result<()> {
        // The room of the header is filled last: it is what makes these bytes a frame.
        let from = if self.flushed == 0 { HEADER_BYTES } else { 0 };
        self.file.write_at(&self.scratch[from..], self.at + self.flushed + from as u64)?;
        self.flushed += self.scratch.len() as u64;
        self.scratch.clear();
        Ok(())
    }

    fn finish(mut self, header: &[u8; HEADER_BYTES]) -> io::Result<()> {
        if self.flushed == 0 {
            self.scratch[..HEADER_BYTES].copy_from_slice(header);
            return self.file.write_at(self.scratch, self.at);
        }
        self.flush()?;
        self.file.write_at(header, self.at)
    }
}

/// Whether the body of a frame at `at` is as it was written.
pub fn is_whole(file: &dyn DiskFile, at: u64, header: &Header, scratch: &mut Vec<u8>) -> io::Result<bool> {
    let (mut crc, mut done) = (crc32fast::Hasher::new(), 0);
    while done < header.body_len() {
        scratch.resize(SCRATCH_BYTES.min((header.body_len() - done) as usize), 0);
        if file.read_at(scratch, at + HEADER_BYTES as u64 + done)? < scratch.len() {
            return Ok(false);
        }
        crc.update(scratch);
        done += scratch.len() as u64;
    }
    Ok(crc.finalize() == header.body_crc)
}

#[derive(Debug)]
pub enum Broken {
    /// The disk does not give it; perhaps later.
    Unreadable(io::Error),
    /// It is not what was written.
    Damaged,
}

/// The records of the frame at `at`. `known`: the source of the frame before it, which is mostly the same one.
pub fn read(
    file: &dyn DiskFile,
    at: u64,
    header: &Header,
    credit: Credit,
    known: &mut Option<Arc<Origin>>,
) -> Result<Records, Broken> {
    let mut meta = vec![0; header.meta_len as usize];
    let mut data = vec![0; header.data_len as usize];
    let meta_at = at + HEADER_BYTES as u64;
    for (bytes, at) in [(&mut meta, meta_at), (&mut data, meta_at + u64::from(header.meta_len))] {
        if file.read_at(bytes, at).map_err(Broken::Unreadable)? < bytes.len() {
            return Err(Broken::Damaged);
        }
    }
    let mut crc = crc32fast::Hasher::new();
    crc.update(&meta);
    crc.update(&data);
    if crc.finalize() != header.body_crc {
        return Err(Broken::Damaged);
    }
    parse(header, &meta, data, credit, known).ok_or(Broken::Damaged)
}

fn parse(
    header: &Header,
    meta: &[u8],
    data: Vec<u8>,
    credit: Credit,
    known: &mut Option<Arc<Origin>>,
) -> Option<Records> {
    let mut meta = Meta(meta);
    let flags = meta.take(1)?[0];
    let source = meta.text()?;
    let filename = if flags & HAS_FILENAME != 0 { Some(meta.text()?) } else { None };
    let origin = Origin {
        source: source.into(),
        generation: header.generation,
        lineage: header.lineage,
        labels: Arc::new(meta.labels()?),
        filename: filename.map(Into::into),
        replayable: flags & REPLAYABLE != 0,
        stages: Box::default(),
        shift: Shift::default(),
    };
    let origin = match known {
        Some(known) if same(known, &origin) => known.clone(),
        _ => known.insert(Arc::new(origin)).clone(),
    };
    let base_ns = i64::from_le_bytes(meta.take(8)?.try_into().ok()?);
    let start = header.start + meta.number()?;
    let mut ends = Vec::with_capacity(header.records as usize);
    let lines = |ends: Vec<u32>| Lines {
        origin,
        start,
        data: data.into(),
        sums: None,
        ends: ends.into(),
        base_ns,
        first_line: 0, // only stages ask for it, and these records have passed them
        continues: flags & CONTINUES != 0,
        timed: None, // each has its place
        credit,
    };
    let mut end = 0u64;
    let mut ends_after = |len: u64| {
        end = end.checked_add(len).filter(|end| *end <= u64::from(header.data_len))?;
        Some(end as u32)
    };
    if flags & DENSE != 0 {
        for _ in 0..header.records {
            let line_end = ends_after(meta.number()?)?;
            ends.push(line_end);
        }
        return (ends.last() == Some(&header.data_len))
            .then(|| Records::replayed(lines(ends), None, Vec::new(), header.sequence));
    }
    let (mut sets, mut names): (Vec<Arc<Labels>>, Vec<Arc<str>>) = Default::default();
    let (mut entries, mut places) = (Vec::new(), Vec::new());
    let (mut time_ns, mut offset) = (base_ns, 0u64);
    for line in 0..header.records {
        let flags = meta.take(1)?[0];
        time_ns = time_ns.wrapping_add(unzigzag(meta.number()?));
        offset = offset.checked_add(meta.number()?)?;
        let len = meta.number()?;
        let rewritten = flags & REWRITTEN != 0;
        let line_end = ends_after(if rewritten { meta.number()? } else { len })?;
        ends.push(line_end);
        let mut changed = Changed::default();
        if flags & HAS_LABELS != 0 {
            let at = meta.number()? as usize;
            if at == sets.len() {
                sets.push(Arc::new(meta.labels()?));
            }
            changed.labels = Some(sets.get(at)?.clone());
        }
        if flags & HAS_METADATA != 0 {
            for _ in 0..meta.number()? {
                let at = meta.number()? as usize;
                if at == names.len() {
                    names.push(meta.text()?.into());
                }
                changed.metadata.push((names.get(at)?.clone(), meta.text()?.into()));
            }
        }
        let changed = (flags & (HAS_LABELS | HAS_METADATA) != 0).then(|| Box::new(changed));
        entries.push(Entry { line, changed });
        let (offset32, len32) = (u32::try_from(offset).ok()?, u32::try_from(len).ok()?);
        places.push(Place {
            time_ns,
            offset: offset32,
            len: len32,
            partial: flags & PARTIAL != 0,
            continues: flags & GOES_ON != 0,
            rewritten,
        });
        (time_ns, offset) = (time_ns.wrapping_add(1), offset.checked_add(len)?);
    }
    let all_there = ends.last() == Some(&header.data_len);
    all_there.then(|| Records::replayed(lines(ends), Some(entries), places, header.sequence))
}

fn same(known: &Origin, origin: &Origin) -> bool {
    known.generation == origin.generation
        && known.lineage == origin.lineage
        && known.replayable == origin.replayable
        && known.source == origin.source
        && known.filename == origin.filename
        && known.labels == origin.labels
}

/// What is left of the meta. `None`: it ends too early, or is no text.
struct Meta<'a>(&'a [u8]);

impl<'a> Meta<'a> {
    fn take(&mut self, len: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        Some(taken)
    }

    fn number(&mut self) -> Option<u64> {
        let mut number = 0u64;
        for shift in (0..64).step_by(7) {
            let byte = self.take(1)?[0];
            number |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Some(number);
            }
        }
        None
    }

    fn text(&mut self) -> Option<&'a str> {
        let len = usize::try_from(self.number()?).ok()?;
        std::str::from_utf8(self.take(len)?).ok()
    }

    fn labels(&mut self) -> Option<Labels> {
        let mut labels = Labels::default();
        for _ in 0..self.number()? {
            let name = self.text()?;
            labels.set(name, self.text()?);
        }
        Some(labels)
    }
}

/// What must come back as it went.
#[cfg(test)]
pub fn shown(record: &crate::record::Record<'_>) -> String {
    let crate::record::Record {
        origin,
        labels,
        time_ns,
        text,
        raw,
        metadata,
        partial,
        continues,
        offset,
        len,
    } = record;
    let Origin { source, generation, lineage, filename, replayable, .. } = &***origin;
    format!(
        "{source} {} {lineage} {filename:?} {replayable} {labels:?} {time_ns} {text:?} {raw:?} {metadata:?} \
         {partial} {continues} {offset} {len}",
        generation.0
    )
}
