//! Mirror, base, worktree, harvest and diff against the real git, the real overlayfs and a hostile run.
//! Needs root: a test that cannot mount fails.

mod attacks;
mod crash;
mod diff;
mod fetching;
mod figures;
mod hostile_trees;
mod mirror;
mod property;
mod quarantine;
mod support;
mod worktree;
