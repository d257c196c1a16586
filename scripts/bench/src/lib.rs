//! What the benchmark's programs share.
//!
//! [`corpus`] is the file that everybody reads, [`push`] the bytes of a push to Loki as the bare loop writes them.

pub mod corpus;
pub mod push;
