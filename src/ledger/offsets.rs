//! A map by offset that is nearly always empty, and takes eight bytes then: there are some for every known file.
//!
//! What is in it stands in a tree, so it may also become large. A tree keeps its first node, of more than a kilobyte,
//! when the last entry goes: [`Offsets::give_back`] frees that. Not done with every last entry, since a file that is
//! being read would ask for it again with its next chunk. Pure.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Offsets<V>(Option<Box<BTreeMap<u64, V>>>);

impl<V> Default for Offsets<V> {
    fn default() -> Offsets<V> {
        Offsets(None)
    }
}

/// Whether there is room for more makes no difference.
impl<V: PartialEq> PartialEq for Offsets<V> {
    fn eq(&self, other: &Offsets<V>) -> bool {
        self.iter().eq(other.iter())
    }
}

impl<V: Eq> Eq for Offsets<V> {}

impl<V> FromIterator<(u64, V)> for Offsets<V> {
    fn from_iter<I: IntoIterator<Item = (u64, V)>>(entries: I) -> Offsets<V> {
        let mut offsets = Offsets::default();
        entries.into_iter().for_each(|(offset, value)| offsets.insert(offset, value));
        offsets
    }
}

impl<V> Offsets<V> {
    pub fn is_empty(&self) -> bool {
        self.0.as_ref().is_none_or(|tree| tree.is_empty())
    }

    pub fn len(&self) -> usize {
        self.0.as_ref().map_or(0, |tree| tree.len())
    }

    pub fn get(&self, offset: u64) -> Option<&V> {
        self.0.as_ref()?.get(&offset)
    }

    pub fn insert(&mut self, offset: u64, value: V) {
        self.0.get_or_insert_default().insert(offset, value);
    }

    pub fn remove(&mut self, offset: u64) -> Option<V> {
        self.0.as_mut()?.remove(&offset)
    }

    /// Rising.
    pub fn iter(&self) -> impl Iterator<Item = (u64, &V)> {
        self.0.iter().flat_map(|tree| tree.iter()).map(|(offset, value)| (*offset, value))
    }

    /// Those from `first` up to `end`, exclusive, rising.
    pub fn range(&self, first: u64, end: u64) -> impl Iterator<Item = (u64, &V)> {
        let tree = self.0.iter().filter(move |_| first < end);
        tree.flat_map(move |tree| tree.range(first..end)).map(|(offset, value)| (*offset, value))
    }

    /// The last one at `offset` or before it.
    pub fn at_or_before(&self, offset: u64) -> Option<(u64, &V)> {
        self.0.as_ref()?.range(..=offset).next_back().map(|(at, value)| (*at, value))
    }

    pub fn last(&self) -> Option<(u64, &V)> {
        self.0.as_ref()?.last_key_value().map(|(at, value)| (*at, value))
    }

    pub fn give_back(&mut self) {
        self.0.take_if(|tree| tree.is_empty());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_one_takes_eight_bytes_and_is_like_any_other_empty_one() {
        assert_eq!(size_of::<Offsets<[u64; 100]>>(), 8);
        let mut offsets = Offsets::from_iter([(5, 'a'), (9, 'b')]);
        assert_eq!((offsets.at_or_before(8), offsets.at_or_before(4)), (Some((5, &'a')), None));
        assert_eq!(offsets.range(5, 9).count(), 1);
        assert_eq!(offsets.range(9, 5).count(), 0);
        assert_eq!(serde_json::to_string(&offsets).unwrap(), r#"{"5":"a","9":"b"}"#);
        offsets.remove(5);
        offsets.give_back();
        assert_eq!(offsets.last(), Some((9, &'b')));
        offsets.remove(9);
        assert!(offsets.0.is_some() && offsets == Offsets::default());
        offsets.give_back();
        assert!(offsets.0.is_none());
    }
}
