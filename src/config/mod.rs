//! Configuration: one file per reader, each value checked at start with its name in the error.

pub mod client;
