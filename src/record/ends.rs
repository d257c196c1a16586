//! Where the lines of a chunk end. Whoever takes all lines as they stand never asks: they are looked for when somebody
//! does, and then once.

use std::fmt;
use std::sync::OnceLock;

use memchr::memchr_iter;

use super::{Buffer, Pool};

/// Never empty.
pub struct Ends {
    lines: u32,
    /// Exclusive, rising; the last one is where the chunk ends.
    found: OnceLock<Buffer<u32>>,
    /// For those that are not found yet.
    pool: Option<Pool<u32>>,
}

impl fmt::Debug for Ends {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Ends({})", self.lines)
    }
}

impl From<Buffer<u32>> for Ends {
    fn from(ends: Buffer<u32>) -> Ends {
        Ends { lines: ends.len() as u32, found: OnceLock::from(ends), pool: None }
    }
}

impl From<Vec<u32>> for Ends {
    fn from(ends: Vec<u32>) -> Ends {
        Buffer::from(ends).into()
    }
}

impl Ends {
    /// So many lines, each of which ends in `\n`, as the bytes of the chunk do.
    pub fn counted(lines: u32, pool: Pool<u32>) -> Ends {
        Ends { lines, found: OnceLock::new(), pool: Some(pool) }
    }

    pub fn len(&self) -> usize {
        self.lines as usize
    }

    pub fn is_empty(&self) -> bool {
        self.lines == 0
    }

    /// `data`: of the chunk.
    pub fn of(&self, data: &[u8]) -> &[u32] {
        self.found.get_or_init(|| self.find(data))
    }

    #[cold]
    fn find(&self, data: &[u8]) -> Buffer<u32> {
        let mut ends = match &self.pool {
            Some(pool) => pool.take(self.len()),
            None => vec![0; self.len()].into(),
        };
        let mut places = memchr_iter(b'\n', data);
        ends.iter_mut().zip(&mut places).for_each(|(end, at)| *end = at as u32 + 1);
        debug_assert!(ends.last().copied() == Some(data.len() as u32) && places.next().is_none());
        ends
    }

    /// Where line `line` begins; behind the last one, where the chunk ends.
    #[inline]
    pub fn start(&self, line: usize, data: &[u8]) -> usize {
        match line {
            0 => 0,
            _ if line == self.len() => data.len(),
            _ => self.of(data)[line - 1] as usize,
        }
    }
}
