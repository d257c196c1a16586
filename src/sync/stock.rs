//! What several own together, in memory that is used again: what is made for each chunk takes none at full speed.
//!
//! Always true: a value is dropped with its last owner. What waits here is the empty place that it had.

use std::fmt;
use std::ops::Deref;
use std::sync::Arc;

use super::Mutex;

/// More places than chunks are under way at full speed; what many small ones have taken goes back to the heap.
const PLACES_MOST: usize = 16;

/// Places for values. Cheap to clone.
pub struct Stock<T>(Arc<Mutex<Vec<Arc<Option<T>>>>>);

/// As an [`Arc`]; its place goes back to the stock that it came from.
pub struct Shared<T> {
    /// `None`: it is being dropped.
    place: Option<Arc<Option<T>>>,
    home: Option<Stock<T>>,
}

impl<T> Default for Stock<T> {
    fn default() -> Stock<T> {
        Stock(Arc::new(Mutex::new(Vec::new())))
    }
}

impl<T> Clone for Stock<T> {
    fn clone(&self) -> Stock<T> {
        Stock(self.0.clone())
    }
}

impl<T> Stock<T> {
    pub fn share(&self, value: T) -> Shared<T> {
        let known = self.0.lock().pop();
        let mut place = known.unwrap_or_default();
        *Arc::get_mut(&mut place).expect("an empty place has no other owner") = Some(value);
        Shared { place: Some(place), home: Some(self.clone()) }
    }
}

/// For what is not made for each chunk.
impl<T> From<T> for Shared<T> {
    fn from(value: T) -> Shared<T> {
        Shared { place: Some(Arc::new(Some(value))), home: None }
    }
}

impl<T> Shared<T> {
    pub fn owners(shared: &Shared<T>) -> usize {
        shared.place.as_ref().map_or(0, Arc::strong_count)
    }
}

impl<T> Clone for Shared<T> {
    fn clone(&self) -> Shared<T> {
        Shared { place: self.place.clone(), home: self.home.clone() }
    }
}

impl<T> Deref for Shared<T> {
    type Target = T;

    #[inline]
    fn deref(&self) -> &T {
        self.place.as_deref().and_then(Option::as_ref).expect("it is there until the last owner goes")
    }
}

impl<T: fmt::Debug> fmt::Debug for Shared<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (**self).fmt(f)
    }
}

impl<T> Drop for Shared<T> {
    /// Two owners that go at the same moment may each see the other one: then the place goes to the heap.
    fn drop(&mut self) {
        let (Some(mut place), Some(home)) = (self.place.take(), self.home.take()) else { return };
        let Some(value) = Arc::get_mut(&mut place) else { return };
        *value = None; // with no lock held: what it has goes back to its own pools
        let mut places = home.0.lock();
        if places.len() < PLACES_MOST {
            places.push(place);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_used_again_when_its_last_owner_has_gone() {
        let (stock, witness) = (Stock::default(), Arc::new(7));
        let first = stock.share(witness.clone());
        let second = first.clone();
        let place = &raw const *first;
        drop(first);
        assert_eq!((Arc::strong_count(&witness), Shared::owners(&second), **second), (2, 1, 7));
        drop(second);
        assert_eq!(Arc::strong_count(&witness), 1, "the value has gone");
        let next = stock.share(Arc::new(8));
        assert_eq!((&raw const *next, **next), (place, 8));
        assert_ne!(&raw const *stock.share(Arc::new(9)), place);
    }

    #[test]
    fn no_more_places_wait_than_are_of_use() {
        let stock = Stock::default();
        drop((0..2 * PLACES_MOST).map(|number| stock.share(number)).collect::<Vec<_>>());
        assert_eq!(stock.0.lock().len(), PLACES_MOST);
        drop(Shared::from(1));
        assert_eq!(stock.0.lock().len(), PLACES_MOST);
    }
}
