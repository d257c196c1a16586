//! What the bytes of a chunk sum up to at each border of a page, found while they are read and still are in the cache of
//! the processor. Who writes them to a file needs not look at them any more: on another core, that would cost more than
//! to sum them up.

use crc32fast::Hasher;

use super::Buffer;
use crate::disk::PAGE;

/// Of all bytes of a chunk.
#[derive(Debug)]
pub struct PageSums {
    /// Where in its page the first byte stands.
    into_page: usize,
    /// CRC-32 of the bytes up to each border between two of them, and of all.
    sums: Buffer<u32>,
}

impl PageSums {
    /// Where the first byte stands at `offset` of a file. `None`: its pages begin elsewhere.
    pub fn at(&self, offset: u64) -> Option<&[u32]> {
        (offset % PAGE as u64 == self.into_page as u64).then_some(&*self.sums)
    }

    /// What they take, in bytes.
    pub fn cost(&self) -> usize {
        self.sums.capacity() * size_of::<u32>()
    }
}

/// Those of bytes that are still coming.
pub struct Summing {
    into_page: usize,
    sums: Buffer<u32>,
    /// How many borders are behind us.
    borders: usize,
    /// Of the bytes before the last of them.
    hasher: Hasher,
}

impl Summing {
    /// How many sums so many bytes have at most.
    pub fn count(bytes: usize) -> usize {
        bytes.div_ceil(PAGE) + 1
    }

    /// `sums`: as many as [`Summing::count`] says of all bytes.
    pub fn new(into_page: usize, sums: Buffer<u32>) -> Summing {
        Summing { into_page, sums, borders: 0, hasher: Hasher::new() }
    }

    /// How many bytes stand before a border.
    fn border(&self, number: usize) -> usize {
        (number * PAGE).saturating_sub(self.into_page)
    }

    /// `data`: all bytes so far. Goes up to the last border within them.
    pub fn go_on(&mut self, data: &[u8]) {
        loop {
            let next = self.border(self.borders + 1);
            if next >= data.len() {
                return;
            }
            self.hasher.update(&data[self.border(self.borders)..next]);
            self.sums[self.borders] = self.hasher.clone().finalize();
            self.borders += 1;
        }
    }

    /// `data`: all bytes there are; some of those that were seen may be missing at their end.
    pub fn end(mut self, data: &[u8]) -> PageSums {
        self.go_on(data);
        while self.borders > 0 && self.border(self.borders) >= data.len() {
            self.borders -= 1;
        }
        let before = self.borders.checked_sub(1).map_or(0, |last| self.sums[last]);
        let mut hasher = Hasher::new_with_initial(before);
        hasher.update(&data[self.border(self.borders)..]);
        self.sums[self.borders] = hasher.finalize();
        self.sums.keep(0..self.borders + 1);
        PageSums { into_page: self.into_page, sums: self.sums }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn they_are_of_all_bytes_up_to_each_border_however_they_came(
            into_page in 0..PAGE,
            steps in proptest::collection::vec(0..2 * PAGE, 1..5),
            without in 0..2 * PAGE,
        ) {
            let data: Vec<u8> = (0..steps.iter().sum()).map(|at| (at / 7) as u8).collect();
            let mut summing = Summing::new(into_page, vec![0; Summing::count(data.len())].into());
            let mut upto = 0;
            for step in steps {
                upto += step;
                summing.go_on(&data[..upto]);
            }
            let data = &data[..upto.saturating_sub(without)];
            let sums = summing.end(data);
            let borders = (1..).map(|page| page * PAGE - into_page).take_while(|border| *border < data.len());
            let expected: Vec<u32> =
                borders.chain([data.len()]).map(|upto| crc32fast::hash(&data[..upto])).collect();
            prop_assert_eq!(sums.at(7 * PAGE as u64 + into_page as u64), Some(&*expected));
            prop_assert_eq!(sums.at(into_page as u64 + 1), None);
        }
    }
}
