//! Containers, from the engine's API.

pub mod cursor;
pub mod frames;
pub mod lines;
