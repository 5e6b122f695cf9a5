//! Repositories, worktrees and what comes back from them.
//!
//! | module | idea |
//! | --- | --- |
//! | [`mirror`] | our own bare copy of a registered repository |
//! | [`base`] | the shared, read-only checkout of one revision, with its throw-away `.git` |
//! | [`branches`] | the results in a mirror, and their removal |
//! | [`worktree`] | one run's copy-on-write layer over a base |
//! | [`source`] | where a mirror is fetched from, and by whom |
//! | [`quarantine`] | configuration of CLIs in a revision, and the revision without it |
//! | [`harvest`] | the walk over what a run left, into a tree of the mirror |
//! | [`commit`] | that tree as one commit on the run's branch |
//! | [`diff`] | files and patch between base and result |
//! | [`replica`] | a mirror as a list of parts, and a mirror made of them |
//!
//! The git command runs only in bare repositories that we made ([`command`]); git2 opens only those
//! too. A worktree that a sandbox has touched is read by [`harvest`] alone, as bytes.
//! Everything here blocks: callers in async code use `spawn_blocking`.

pub mod base;
pub mod branches;
pub mod command;
pub mod commit;
pub mod diff;
pub mod error;
pub mod harvest;
pub mod mirror;
pub mod quarantine;
pub mod quarantine_rules;
pub mod replica;
pub mod room;
pub mod source;
pub mod worktree;

mod checkout;
mod confined;
mod content;
mod copy;
mod dirfd;
mod gitdir;
pub mod home;
mod ignore_rules;
mod in_flight;
mod layers;
mod lock;
mod lower;
mod names;
mod overlay;
mod place;
mod report;
mod restore;
mod said;
mod staging;
mod store;
mod tally;
mod tree_list;
mod trees;
mod walk;
