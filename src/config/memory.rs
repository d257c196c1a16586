//! How `agent.memory_budget` is shared out, so that memory is bounded by construction. Pure.
//!
//! Half is for chunks, and of it up to a quarter for what comes back out of spools. The other half is for encoded
//! batches: each connection may hold one batch as it was put together, once more compressed, with the sixth that a
//! compressor asks for beyond its length, and half of it in what a request is sent from (the file sink less: large
//! stretches stay in their chunk, which is paid for). A batch is at most `batch.max_bytes`, or one longer
//! record; so a connection is paid for the larger of the two. What nobody wrote down shrinks until everything fits;
//! what somebody wrote down never does: it is refused.
//!
//! Not counted, and bounded where it is made: chunk buffers that wait to be used again (`monitors/outlet.rs`, a quarter
//! of what chunks may take), what waits for the ledger while the disk makes it wait (`ledger/mod.rs`, 2 MiB at the very
//! worst, of a thousand small files), and what every followed file takes, whether it has something to say or not: a
//! kilobyte (`tests/cycles` measures it).

use super::values::{KIB, MIB};
use crate::budget::READ_BYTES;
use crate::sinks::http::{SEND_BUFFER_MOST, send_buffer_bytes};

/// Nothing is ever shrunk below it: smaller batches would cost more in requests than they save in memory.
const LEAST_BYTES: usize = 16 * KIB as usize;

/// Headers, frames and the tables of a compressor, for each connection.
const CONNECTION_OVERHEAD: usize = 64 * KIB as usize;

/// What a spool may hold in memory of what it reads back: a large batch.
const SPOOL_BYTES: usize = MIB as usize;

/// The longest record when nobody says anything about it.
pub const MAX_LINE_BYTES: usize = MIB as usize;

pub const BUDGET_LEAST: u64 = MIB;
pub const BUDGET_MOST: u64 = 4 * super::values::GIB;
const _: () = assert!(BUDGET_LEAST as usize / 2 >= READ_BYTES, "a budget has room for at least one read");

/// How much can be under way at most, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Memory {
    /// `agent.memory_budget`: never less than the sum of the others.
    pub budget: usize,
    /// For chunks: what [`crate::budget::Budget`] is made with.
    pub chunk_bytes: usize,
    /// For the encoded batches of all connections together.
    pub batch_bytes: usize,
    /// For each spool: records that it has read back and that its sink has not answered for. 0 without spools.
    pub spool_bytes: usize,
    /// The longest line that stays whole; no source has a larger `max_line_bytes`.
    pub max_record_bytes: usize,
}

/// What a sink asks for.
#[derive(Clone, Copy, Debug)]
pub struct Wish {
    pub connections: usize,
    /// `batch.max_bytes` if somebody wrote it down.
    pub set: Option<usize>,
    /// And if nobody did.
    pub default: usize,
    pub spools: bool,
}

#[derive(Debug, PartialEq, Eq)]
pub enum TooMuch {
    /// So many connections need a budget of at least this many bytes.
    Connections { connections: usize, budget_least: usize },
    /// Those sinks whose `batch.max_bytes` is above `most`.
    Batches { sinks: Vec<usize>, most: usize },
}

#[derive(Debug, PartialEq, Eq)]
pub struct Fit {
    pub memory: Memory,
    /// `batch.max_bytes` of each sink.
    pub batches: Vec<usize>,
}

/// `longest`: the longest record that any source asks for.
pub fn fit(budget: usize, sinks: &[Wish], longest: usize) -> Result<Fit, TooMuch> {
    let half = budget / 2;
    let connections: usize = sinks.iter().map(|sink| sink.connections).sum();
    let least = connections * credit(LEAST_BYTES);
    if least > half {
        return Err(TooMuch::Connections { connections, budget_least: 2 * least });
    }
    let spools = sinks.iter().filter(|sink| sink.spools).count();
    let part = (half / 4).checked_div(spools);
    let spool_bytes = part.map_or(0, |part| longest.max(SPOOL_BYTES).min(part));
    let chunk_bytes = half - spools * spool_bytes;
    let longest = longest.min(chunk_bytes / 4).min(if spools > 0 { spool_bytes } else { usize::MAX });
    // A ceiling for everything that nobody wrote down: as it is, then lower step by step.
    let top = sinks.iter().map(|sink| sink.default).fold(longest, usize::max);
    let steps = (1..=top / LEAST_BYTES).rev().map(|step| step * LEAST_BYTES);
    for ceiling in std::iter::once(top).chain(steps) {
        let max_record_bytes = longest.min(ceiling);
        let batches: Vec<usize> =
            sinks.iter().map(|sink| sink.set.unwrap_or(sink.default.min(ceiling))).collect();
        let need = |(sink, bytes): (&Wish, &usize)| sink.connections * credit(max_record_bytes.max(*bytes));
        let batch_bytes: usize = sinks.iter().zip(&batches).map(need).sum();
        if batch_bytes <= half {
            let memory = Memory { budget, chunk_bytes, batch_bytes, spool_bytes, max_record_bytes };
            return Ok(Fit { memory, batches });
        }
    }
    // Not everybody can be below the mean: somebody is named.
    let most = batch_for(half / connections) / KIB as usize * KIB as usize;
    let greedy = |(_, sink): &(usize, &Wish)| sink.set.is_some_and(|set| set > most);
    Err(TooMuch::Batches { sinks: sinks.iter().enumerate().filter(greedy).map(|(at, _)| at).collect(), most })
}

/// What one connection may hold: the payload, the same compressed, what it is sent from, and what goes around them.
fn credit(bytes: usize) -> usize {
    2 * bytes + bytes / 6 + send_buffer_bytes(bytes) + CONNECTION_OVERHEAD
}

/// The largest batch for which a connection takes no more than that.
fn batch_for(credit: usize) -> usize {
    let left = credit.saturating_sub(CONNECTION_OVERHEAD);
    match left * 3 / 8 {
        small if small / 2 <= SEND_BUFFER_MOST => small,
        _ => (left - SEND_BUFFER_MOST) * 6 / 13,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const K: usize = 1024;
    const M: usize = 1024 * K;

    fn wish(connections: usize, default: usize) -> Wish {
        Wish { connections, set: None, default, spools: false }
    }

    #[test]
    fn the_defaults_fit_as_they_are() {
        let fit = fit(16 * M, &[wish(1, M), wish(1, 256 * K)], M).unwrap();
        assert_eq!(fit.batches, [M, 256 * K]);
        assert_eq!((fit.memory.chunk_bytes, fit.memory.max_record_bytes), (8 * M, M));
        assert_eq!(fit.memory.batch_bytes, 2 * credit(M), "each may hold a record of 1 MiB");
        assert_eq!(credit(6 * M), 13 * M + 512 * K + 64 * K);
    }

    #[test]
    fn spools_have_a_part_of_what_chunks_would_have() {
        let spooled = |default| Wish { spools: true, ..wish(1, default) };
        let two = fit(16 * M, &[spooled(M), spooled(256 * K)], M).unwrap().memory;
        assert_eq!((two.chunk_bytes, two.spool_bytes, two.max_record_bytes), (6 * M, M, M));
        let small = fit(M, &[spooled(M)], M).unwrap().memory;
        assert_eq!(
            (small.chunk_bytes, small.spool_bytes, small.max_record_bytes),
            (384 * K, 128 * K, 96 * K)
        );
        let long = fit(16 * M, &[spooled(M)], 4 * M).unwrap().memory;
        assert_eq!((long.chunk_bytes, long.spool_bytes, long.max_record_bytes), (6 * M, 2 * M, 3 * M / 2));
    }

    #[test]
    fn what_nobody_wrote_down_shrinks_and_the_rest_does_not() {
        let small = fit(2 * M, &[wish(1, M), Wish { set: Some(300 * K), ..wish(1, 256 * K) }], M).unwrap();
        assert_eq!(small.batches, [32 * K, 300 * K]);
        assert_eq!(small.memory.max_record_bytes, 32 * K);
        assert_eq!(
            fit(M, &[wish(1, M)], M).unwrap().memory.max_record_bytes,
            128 * K,
            "a quarter of the chunks"
        );
    }

    #[test]
    fn what_cannot_fit_is_named() {
        assert_eq!(
            fit(M, &[wish(16, M)], M),
            Err(TooMuch::Connections { connections: 16, budget_least: 2 * 16 * credit(16 * K) })
        );
        let greedy = Wish { set: Some(4 * M), ..wish(1, M) };
        assert_eq!(
            fit(16 * M, &[wish(1, M), greedy], M),
            Err(TooMuch::Batches { sinks: vec![1], most: (4 * M - 512 * K - 64 * K) * 6 / 13 / K * K })
        );
    }

    #[test]
    fn the_largest_batch_that_is_named_has_room() {
        for room in (64..9_000).map(|room| room * K) {
            let most = batch_for(room);
            assert!(credit(most) <= room && credit(most + 4) > room - 8, "{room}: {most}");
        }
    }

    proptest! {
        /// The promise: whatever is asked for, what is granted fits the budget, or somebody is named.
        #[test]
        fn memory_is_bounded_by_construction(
            budget in M..64 * M,
            wishes in proptest::collection::vec((1usize..17, any::<bool>(), K..4 * M, any::<bool>()), 1..6),
            longest in 64usize..8 * M,
        ) {
            let sinks: Vec<Wish> = wishes
                .iter()
                .map(|(connections, is_set, bytes, spools)| Wish {
                    connections: *connections,
                    set: is_set.then_some(*bytes),
                    default: *bytes,
                    spools: *spools,
                })
                .collect();
            match fit(budget, &sinks, longest) {
                Ok(Fit { memory, batches }) => {
                    let spools = sinks.iter().filter(|sink| sink.spools).count() * memory.spool_bytes;
                    prop_assert!(memory.chunk_bytes + memory.batch_bytes + spools <= budget);
                    prop_assert!(memory.chunk_bytes >= READ_BYTES);
                    prop_assert!(spools == 0 || memory.max_record_bytes <= memory.spool_bytes);
                    prop_assert!(memory.max_record_bytes <= longest.min(memory.chunk_bytes / 4));
                    for (sink, bytes) in sinks.iter().zip(batches) {
                        prop_assert!(sink.set.is_none_or(|set| set == bytes));
                        prop_assert!(bytes >= sink.default.min(LEAST_BYTES) && bytes <= sink.default);
                    }
                }
                Err(TooMuch::Batches { sinks: named, most }) => {
                    prop_assert!(!named.is_empty());
                    prop_assert!(named.iter().all(|at| sinks[*at].set > Some(most)));
                }
                Err(TooMuch::Connections { budget_least, .. }) => prop_assert!(budget < budget_least),
            }
        }
    }
}
