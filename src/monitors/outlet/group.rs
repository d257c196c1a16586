//! What many files have to say at the same moment, handed over together: their stamps are written down with one write,
//! and the ledger hears of them with one note. Where each of a thousand files has a line a second, a write for each of
//! them costs more than all else that is done with the line.
//!
//! Always true: all stamps of a group are in the journal before the first of its chunks leaves, or none is and nothing
//! leaves. The position of a stream moves when its own chunk was handed over.

use super::{NotSent, Outlet, Stream, WholeLines};
use crate::ack::SinkSet;
use crate::budget::Credit;
use crate::ledger::{Head, Identity, Note, Record, Stamp};
use crate::record::{Buffer, Ends};

/// As much as a few lines: what is larger goes by itself.
pub const SMALL_BYTES: usize = 4 * 1024;

/// One file's part of a group.
#[derive(Debug)]
pub struct Small {
    data: Buffer<u8>,
    ends: Ends,
    before: Head,
    credit: Credit,
    identity: Option<Identity>,
}

impl Outlet {
    /// Whether what comes next in this stream may go with others: it was never read before.
    pub fn gathers(&self, stream: &Stream) -> bool {
        let is_new = stream.past.is_none() && stream.unwritten.is_none();
        is_new && self.stamping.is_some() && self.supply.sinks > 0
    }

    /// Takes what [`Outlet::send_read`] takes. `identity`: the head of the file has grown, see [`Outlet::identify`].
    pub fn gather(
        &self,
        data: Buffer<u8>,
        lines: WholeLines<'_>,
        before: Head,
        credit: Credit,
        identity: Option<Identity>,
    ) -> Small {
        lines.assert_whole(&data);
        Small { data, ends: lines.ends(&self.supply.pools.ends), before, credit, identity }
    }

    /// Hands over one chunk for each of these streams, for which [`Outlet::gathers`] holds. How many were handed over,
    /// the first ones, and why not the others.
    pub fn send_all<'a>(
        &mut self,
        group: impl Iterator<Item = (&'a mut Stream, Small)>,
    ) -> (usize, Result<(), NotSent>) {
        let stamped = self.stamp_all(group);
        let (mut records, mut notes) = (Vec::with_capacity(stamped.len()), Vec::with_capacity(stamped.len()));
        for (stream, small, stamp) in &stamped {
            if let Some(identity) = small.identity {
                let generation = stream.generation;
                records.push(Record::Identified { generation: generation.0, identity });
                notes.push(Note::Identified { generation, identity });
            }
            records.push(Record::read(stamp));
            notes.push(Note::Read(stamp.clone()));
        }
        let written = self.write_down(&records);
        if written.is_err() {
            notes.retain(|note| matches!(note, Note::Identified { .. })); // true all the same
        }
        self.supply.book.noted(Note::Several(notes), written.as_ref().map_or(None, |mark| *mark));
        if let Err(why) = written {
            return (0, Err(why));
        }
        let (mut sent, mut ended) = (0, Ok(()));
        for (stream, small, stamp) in stamped {
            if ended.is_err() {
                self.supply.book.note(Note::TakenBack(stamp));
                continue;
            }
            let (end, lines, cut) = (stamp.end, stamp.lines, stamp.cut);
            let chunk = self.chunk(stream, small.data, small.ends, None, small.credit, &stamp);
            ended = self.hand_over(chunk, stamp);
            if ended.is_ok() {
                stream.move_to(end, lines, cut);
                sent += 1;
            }
        }
        (sent, ended)
    }

    fn stamp_all<'a>(
        &self,
        group: impl Iterator<Item = (&'a mut Stream, Small)>,
    ) -> Vec<(&'a mut Stream, Small, Stamp)> {
        let (sinks, wall_ns) = (SinkSet::all(self.supply.sinks), self.supply.clock.wall_ns());
        let mut stamps = self.supply.stamps.lock();
        let stamped = group.map(|(stream, small)| {
            let base_ns = stamps.reserve(small.ends.len() as u64, wall_ns);
            let stamp = stream.stamp(&small.data, small.ends.len(), base_ns, sinks, small.before);
            (stream, small, stamp)
        });
        stamped.collect()
    }
}
