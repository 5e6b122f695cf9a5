//! Disk space of a run's worktree, held within its limits of bytes and inodes.

pub mod error;
pub mod image;
pub mod loop_nodes;
pub mod usage;
