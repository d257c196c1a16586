//! A map by offset that is nearly always empty or holds one entry, and takes little then: there are some for every
//! known file, and a start reads one chunk of each of ten thousand at once.
//!
//! More stand in a tree, so there may also be many. A tree keeps its first node, of more than a kilobyte, when the last
//! entry goes, and a place for one stays as well: [`Offsets::give_back`] frees that. Not done with every last entry, since
//! a file that is read at full speed would ask for it again with its next chunk. Pure.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

#[derive(Clone, Debug)]
pub struct Offsets<V>(Option<Box<Kept<V>>>);

#[derive(Clone, Debug)]
enum Kept<V> {
    /// Perhaps none.
    One(Option<(u64, V)>),
    /// Perhaps none.
    Many(BTreeMap<u64, V>),
}

impl<V> Default for Offsets<V> {
    fn default() -> Offsets<V> {
        Offsets(None)
    }
}

/// How they are kept makes no difference.
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

impl<V: Serialize> Serialize for Offsets<V> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.iter())
    }
}

impl<'de, V: Deserialize<'de>> Deserialize<'de> for Offsets<V> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Offsets<V>, D::Error> {
        Ok(BTreeMap::deserialize(deserializer)?.into_iter().collect())
    }
}

impl<V> Offsets<V> {
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub fn len(&self) -> usize {
        match self.0.as_deref() {
            None => 0,
            Some(Kept::One(one)) => usize::from(one.is_some()),
            Some(Kept::Many(tree)) => tree.len(),
        }
    }

    pub fn get(&self, offset: u64) -> Option<&V> {
        self.at_or_before(offset).filter(|(at, _)| *at == offset).map(|(_, value)| value)
    }

    pub fn insert(&mut self, offset: u64, value: V) {
        let kept = self.0.get_or_insert_with(|| Box::new(Kept::One(None)));
        match &mut **kept {
            Kept::One(one) => match one.take().filter(|(known, _)| *known != offset) {
                None => *one = Some((offset, value)),
                Some(other) => **kept = Kept::Many(BTreeMap::from([other, (offset, value)])),
            },
            Kept::Many(tree) => drop(tree.insert(offset, value)),
        }
    }

    pub fn remove(&mut self, offset: u64) -> Option<V> {
        match self.0.as_deref_mut()? {
            Kept::One(one) => one.take_if(|(known, _)| *known == offset).map(|(_, value)| value),
            Kept::Many(tree) => tree.remove(&offset),
        }
    }

    /// Rising.
    pub fn iter(&self) -> impl Iterator<Item = (u64, &V)> {
        self.range(0, u64::MAX)
    }

    /// Those from `first` up to `end`, exclusive, rising.
    pub fn range(&self, first: u64, end: u64) -> impl Iterator<Item = (u64, &V)> {
        let (one, tree) = match self.0.as_deref() {
            Some(Kept::One(one)) => (one.as_ref(), None),
            Some(Kept::Many(tree)) if first < end => (None, Some(tree.range(first..end))),
            _ => (None, None),
        };
        let one =
            one.filter(|(offset, _)| (first..end).contains(offset)).map(|(offset, value)| (*offset, value));
        one.into_iter().chain(tree.into_iter().flatten().map(|(offset, value)| (*offset, value)))
    }

    /// The last one at `offset` or before it.
    pub fn at_or_before(&self, offset: u64) -> Option<(u64, &V)> {
        match self.0.as_deref()? {
            Kept::One(one) => one.as_ref().filter(|(at, _)| *at <= offset).map(|(at, value)| (*at, value)),
            Kept::Many(tree) => tree.range(..=offset).next_back().map(|(at, value)| (*at, value)),
        }
    }

    pub fn last(&self) -> Option<(u64, &V)> {
        self.at_or_before(u64::MAX)
    }

    pub fn give_back(&mut self) {
        if self.is_empty() {
            self.0 = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn it_takes_little_and_is_written_like_a_map() {
        assert_eq!(size_of::<Offsets<[u64; 100]>>(), 8);
        let is_many = |offsets: &Offsets<char>| matches!(offsets.0.as_deref(), Some(Kept::Many(_)));
        let mut offsets = Offsets::from_iter([(5, 'a'), (9, 'b')]);
        assert_eq!(serde_json::to_string(&offsets).unwrap(), r#"{"5":"a","9":"b"}"#);
        offsets.remove(5);
        offsets.remove(9);
        assert!(is_many(&offsets) && offsets == Offsets::default());
        offsets.give_back();
        assert!(offsets.0.is_none());
        offsets.insert(7, 'c');
        assert!(!is_many(&offsets));
        offsets.remove(7);
        assert!(offsets.0.is_some(), "its place is kept for the next one");
        offsets.give_back();
        assert!(offsets.0.is_none());
        offsets.insert(7, 'c');
        let read: Offsets<char> = serde_json::from_str(r#"{"7":"c"}"#).unwrap();
        assert!(!is_many(&read) && read == offsets);
    }

    proptest! {
        #[test]
        fn it_behaves_like_a_tree(acts in proptest::collection::vec((0u64..8, 0..3), 0..30)) {
            let (mut offsets, mut tree) = (Offsets::default(), BTreeMap::new());
            for (number, (offset, act)) in acts.into_iter().enumerate() {
                match act {
                    0 => prop_assert_eq!(offsets.remove(offset), tree.remove(&offset)),
                    1 => offsets.give_back(),
                    _ => {
                        offsets.insert(offset, number);
                        tree.insert(offset, number);
                    }
                }
                prop_assert!(offsets.iter().eq(tree.iter().map(|(at, value)| (*at, value))));
                let range = offsets.range(2, offset);
                prop_assert!(range.eq(tree.range(2.min(offset)..offset).filter(|(at, _)| **at >= 2).map(|(at, value)| (*at, value))));
                let before = tree.range(..=offset).next_back().map(|(at, value)| (*at, value));
                prop_assert_eq!(offsets.at_or_before(offset), before);
                prop_assert_eq!((offsets.len(), offsets.get(offset)), (tree.len(), tree.get(&offset)));
            }
        }
    }
}
