//! Kage Bunshin: hands coding tasks to AI command-line agents without trusting them.

pub mod git;
