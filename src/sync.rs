//! What our own synchronisation is made of: the real thing, or loom's model of it.
//!
//! The few places where threads meet without a channel (the shares of an ack, the budget, the rows of the task
//! table) take their locks and atomics from here. With the feature `model` these are loom's, which runs a test
//! through *every* interleaving: `make model`. Everything else uses channels, which are tested by those who
//! make them. What is shared and used again is in `sync/stock.rs`.

mod stock;

pub use stock::{Shared, Stock};

#[cfg(not(feature = "model"))]
pub use std::sync::atomic::{AtomicI32, AtomicU8, AtomicU64, AtomicUsize, Ordering};

#[cfg(not(feature = "model"))]
pub use parking_lot::Mutex;

#[cfg(feature = "model")]
pub use loom::sync::atomic::{AtomicI32, AtomicU8, AtomicU64, AtomicUsize, Ordering};

#[cfg(feature = "model")]
pub use modelled::Mutex;

#[cfg(feature = "model")]
mod modelled {
    /// loom's, with the face of parking_lot's: locking cannot fail.
    #[derive(Debug, Default)]
    pub struct Mutex<T>(loom::sync::Mutex<T>);

    impl<T> Mutex<T> {
        pub fn new(value: T) -> Mutex<T> {
            Mutex(loom::sync::Mutex::new(value))
        }

        pub fn lock(&self) -> loom::sync::MutexGuard<'_, T> {
            self.0.lock().expect("a panic ends the model")
        }
    }
}
