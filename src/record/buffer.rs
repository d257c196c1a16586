//! The memory of chunks, used again: at full speed a chunk is read into a buffer that an earlier one has left, and
//! still is in the cache of the processor.
//!
//! Sizes come in classes, powers of two, so that any buffer of a class serves everybody who asks for it. What is
//! smaller than the least class or larger than the largest is made as long as it has to be and goes when it is dropped.
//!
//! Always true: a pool keeps no more than it was told, in buffers that nobody uses. What is in use is paid for by its
//! [`Buffer::capacity`], by whoever holds it.

use std::ops::{Deref, DerefMut, Range};
use std::sync::Arc;

use crate::disk::PAGE;
use crate::sync::Mutex;

/// In items. What a quiet file brings at once is smaller: as large as it is, so that ten thousand of them fit.
const LEAST_CLASS: usize = 1024;

/// Buffers that wait to be used again. Cheap to clone.
pub struct Pool<T>(Arc<Shared<T>>);

struct Shared<T> {
    /// In items.
    largest: usize,
    /// How many items it keeps at most.
    keeps: usize,
    free: Mutex<Free<T>>,
}

struct Free<T> {
    /// The one that was used last is the last.
    buffers: Vec<Vec<T>>,
    items: usize,
}

/// Items of one chunk, which go back to their pool when they are dropped.
pub struct Buffer<T> {
    items: Vec<T>,
    /// In front of it stands what does not belong to the chunk.
    from: usize,
    home: Option<Pool<T>>,
}

impl<T> Clone for Pool<T> {
    fn clone(&self) -> Pool<T> {
        Pool(self.0.clone())
    }
}

impl<T: Copy + Default> Pool<T> {
    /// `largest`: the largest class. `keeps`: how much it keeps at most. Both in items.
    pub fn new(largest: usize, keeps: usize) -> Pool<T> {
        let free = Mutex::new(Free { buffers: Vec::new(), items: 0 });
        Pool(Arc::new(Shared { largest, keeps, free }))
    }

    /// Bytes that wait to be used again, and how many may.
    pub fn spare_bytes_and_most(&self) -> (usize, usize) {
        (self.0.free.lock().items * size_of::<T>(), self.0.keeps * size_of::<T>())
    }

    /// How many items a buffer for `len` of them has room for.
    pub fn capacity_for(&self, len: usize) -> usize {
        let class = len.next_power_of_two();
        if len < LEAST_CLASS || class > self.0.largest { len } else { class }
    }

    /// With `len` items of whatever value.
    pub fn take(&self, len: usize) -> Buffer<T> {
        let capacity = self.capacity_for(len);
        let known = if capacity < LEAST_CLASS { None } else { self.0.free.lock().take(capacity) };
        let mut items = known.unwrap_or_else(|| Vec::with_capacity(capacity));
        items.resize(len, T::default());
        Buffer { items, from: 0, home: Some(self.clone()) }
    }

    /// One that is used again, however short it is.
    pub fn take_class(&self, len: usize) -> Buffer<T> {
        let mut buffer = self.take(len.max(LEAST_CLASS));
        buffer.keep(0..len);
        buffer
    }

    /// What it takes, in bytes.
    pub fn class_cost(&self, len: usize) -> usize {
        self.capacity_for(len.max(LEAST_CLASS)) * size_of::<T>()
    }

    pub fn copy_of(&self, items: &[T]) -> Buffer<T> {
        let mut buffer = self.take(items.len());
        buffer.copy_from_slice(items);
        buffer
    }
}

impl Pool<u8> {
    /// `len` bytes, the first of which stands so far into a page of memory. Costs what one for a page more costs.
    pub fn take_paged(&self, len: usize, into_page: usize) -> Buffer<u8> {
        let mut buffer = self.take(len + PAGE);
        let from = (buffer.as_ptr().align_offset(PAGE) + into_page) % PAGE;
        buffer.keep(from..from + len);
        buffer
    }
}

impl<T> Shared<T> {
    fn is_class(&self, capacity: usize) -> bool {
        capacity.is_power_of_two() && (LEAST_CLASS..=self.largest).contains(&capacity)
    }
}

impl<T> Free<T> {
    fn take(&mut self, capacity: usize) -> Option<Vec<T>> {
        let at = self.buffers.iter().rposition(|buffer| buffer.capacity() == capacity)?;
        self.items -= capacity;
        Some(self.buffers.remove(at))
    }
}

impl<T> Buffer<T> {
    /// What it costs, in items.
    pub fn capacity(&self) -> usize {
        self.items.capacity()
    }

    /// Only this part is left.
    pub fn keep(&mut self, range: Range<usize>) {
        self.items.truncate(self.from + range.end);
        self.from += range.start;
    }
}

impl<T> From<Vec<T>> for Buffer<T> {
    fn from(items: Vec<T>) -> Buffer<T> {
        Buffer { items, from: 0, home: None }
    }
}

impl<T> Deref for Buffer<T> {
    type Target = [T];

    #[inline]
    fn deref(&self) -> &[T] {
        &self.items[self.from..]
    }
}

impl<T> DerefMut for Buffer<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        &mut self.items[self.from..]
    }
}

impl<T> std::fmt::Debug for Buffer<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Buffer({} of {})", self.len(), self.capacity())
    }
}

impl<T> Drop for Buffer<T> {
    fn drop(&mut self) {
        let Some(Pool(shared)) = self.home.take() else { return };
        let capacity = self.items.capacity();
        if !shared.is_class(capacity) {
            return;
        }
        let mut free = shared.free.lock();
        if free.items + capacity <= shared.keeps {
            free.items += capacity;
            free.buffers.push(std::mem::take(&mut self.items));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kept(pool: &Pool<u8>) -> Vec<usize> {
        let free = pool.0.free.lock();
        assert_eq!(free.items, free.buffers.iter().map(Vec::capacity).sum::<usize>());
        free.buffers.iter().map(Vec::capacity).collect()
    }

    #[test]
    fn what_is_left_is_used_again() {
        let pool = Pool::new(8192, 16 * 1024);
        let mut first = pool.take(3000);
        first[2999] = 7;
        let place = first.as_ptr();
        first.keep(10..2000);
        assert_eq!((first.len(), first.capacity()), (1990, 4096));
        drop(first);
        assert_eq!(kept(&pool), [4096]);
        let other_class = pool.take(2000);
        let second = pool.take(4096);
        assert_eq!((second.len(), second.as_ptr(), other_class.capacity()), (4096, place, 2048));
        assert!(kept(&pool).is_empty());
    }

    #[test]
    fn what_is_very_small_or_very_large_is_not_kept() {
        let pool = Pool::new(8192, 1 << 20);
        for (len, capacity) in [(1, 1), (1023, 1023), (1024, 1024), (8192, 8192), (8193, 8193)] {
            assert_eq!(pool.take(len).capacity(), capacity);
            assert_eq!(pool.capacity_for(len), capacity);
        }
        assert_eq!(kept(&pool), [1024, 8192]);
        drop(Buffer::from(vec![0u8; 2048])); // it has no home
        assert_eq!(kept(&pool), [1024, 8192]);
    }

    #[test]
    fn no_more_is_kept_than_it_was_told() {
        let pool = Pool::new(8192, 10_000);
        let many: Vec<_> = (0..5).map(|_| pool.take(4096)).collect();
        drop(many);
        assert_eq!(kept(&pool), [4096, 4096]);
        assert_eq!(pool.spare_bytes_and_most(), (8192, 10_000));
    }

    #[test]
    fn a_copy_is_what_it_is_of() {
        let pool = Pool::new(8192, 8192);
        drop(pool.copy_of(&[1; 1500]));
        assert_eq!(*pool.copy_of(&[2; 1100]), [2; 1100]);
    }
}
