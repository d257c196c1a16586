//! Sorting what is sorted seldom, or is short: one sort for all types.
//!
//! A sort of the standard library is compiled anew for every type and every way to compare, 2 to 5 KB each; there
//! were forty of them, a twentieth of the small binary. Here positions are sorted, by a comparison that is
//! called through a pointer, and then the items are put into their places.
//!
//! Always true: equal items stay in their order.
//!
//! Costs a word per item while it runs. Not for what every batch or every sweep sorts: that takes the library's.

use std::cmp::Ordering;
use std::collections::BTreeMap;

pub fn sort<T: Ord>(items: &mut [T]) {
    sort_by(items, T::cmp);
}

pub fn sort_by_key<T, K: Ord>(items: &mut [T], key: impl Fn(&T) -> K) {
    sort_by(items, |a, b| key(a).cmp(&key(b)));
}

pub fn sort_by<T>(items: &mut [T], compare: impl Fn(&T, &T) -> Ordering) {
    if items.len() < 2 {
        return;
    }
    let mut sources = positions(items.len(), &|a, b| compare(&items[a], &items[b]));
    for start in 0..sources.len() {
        let mut place = start;
        loop {
            let source = std::mem::replace(&mut sources[place], place); // filled, or about to be
            if source == start {
                break;
            }
            items.swap(place, source);
            place = source;
        }
    }
}

/// Where the item of each place stands before.
fn positions(count: usize, compare: &dyn Fn(usize, usize) -> Ordering) -> Vec<usize> {
    let mut positions: Vec<usize> = (0..count).collect();
    positions.sort_unstable_by(|a, b| compare(*a, *b).then(a.cmp(b)));
    positions
}

/// Of a few entries. To collect them would sort them first, which makes fuller nodes, by one more sort for each type.
pub fn map<K: Ord, V>(entries: impl Iterator<Item = (K, V)>) -> BTreeMap<K, V> {
    let mut map = BTreeMap::new();
    map.extend(entries);
    map
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn as_the_library_sorts(items: Vec<(u8, u32)>) {
            let (mut ours, mut theirs) = (items.clone(), items.clone());
            super::sort(&mut ours);
            theirs.sort();
            prop_assert_eq!(&ours, &theirs);

            let (mut ours, mut theirs) = (items.clone(), items);
            super::sort_by_key(&mut ours, |(key, _)| key % 8);
            theirs.sort_by_key(|(key, _)| key % 8);
            prop_assert_eq!(ours, theirs);
        }
    }
}
