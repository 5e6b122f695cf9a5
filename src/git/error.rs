//! What can go wrong with repositories and worktrees.

use std::{
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use bstr::BString;

/// A failure of the mirror, a base, a worktree or a diff.
#[derive(Debug, thiserror::Error)]
pub enum GitError {
    #[error("cannot {action} {}: {source}", path.display())]
    Io { action: &'static str, path: PathBuf, source: io::Error },
    #[error(transparent)]
    Libgit2(#[from] git2::Error),
    /// `reason`: what the command said, or how it ended.
    #[error("{what} failed: {reason}")]
    Command { what: &'static str, reason: String },
    #[error("{what} took longer than {limit:?} and was ended")]
    TimedOut { what: &'static str, limit: Duration },
    #[error("{what} grew to {seen} bytes; the limit is {limit}")]
    TooLarge { what: &'static str, limit: u64, seen: u64 },
    #[error("another process has held {} for {waited:?}", path.display())]
    Locked { path: PathBuf, waited: Duration },
    #[error("the source {source_url:?} is refused: {reason}")]
    SourceRefused { source_url: String, reason: &'static str },
    #[error("the fetch cannot be made or taken over: {}: {reason}", path.display())]
    Staging { path: PathBuf, reason: &'static str },
    #[error("{0:?} is not a branch, a tag or a commit id")]
    InvalidRevision(String),
    #[error("the commit id {0:?} is ambiguous")]
    AmbiguousRevision(String),
    #[error("{} is not a mirror of ours: {reason}", path.display())]
    NotAMirror { path: PathBuf, reason: &'static str },
    #[error("the revision cannot be checked out: {path:?}: {reason}")]
    UnsafeTree { path: BString, reason: String },
    #[error("the revision cannot be checked out: {what} is {seen}; the limit is {limit}")]
    CheckoutLimit { what: &'static str, limit: u64, seen: u64 },
    #[error("the revision cannot be checked out: the file {path:?} has {size} bytes; the limit is {limit}")]
    FileTooLarge { path: BString, size: u64, limit: u64 },
    #[error(
        "the revision cannot be checked out: there is no room: {what} would be {seen}; the limit is {limit}, and all others are in use"
    )]
    NoRoom { what: &'static str, limit: u64, seen: u64 },
    #[error(
        "the revision cannot be checked out: the data folder has {free} {what} free; {wanted} are needed"
    )]
    DiskFull { what: &'static str, wanted: u64, free: u64 },
    #[error("the path {} has characters that an overlay's options cannot carry", .0.display())]
    PathRefused(PathBuf),
    #[error("{} does not hold a worktree of ours: {reason}", path.display())]
    NotAWorktree { path: PathBuf, reason: String },
    #[error("the worktree {} is still in use", .0.display())]
    WorktreeBusy(PathBuf),
    #[error("something is mounted at {} that is not ours: nothing in that folder was touched; unmount it", .0.display())]
    MountOfOthers(PathBuf),
    #[error("the branch {0:?} is refused: results live on branches named task-…")]
    BranchRefused(String),
    #[error("the branch {0:?} already holds another result")]
    BranchTaken(String),
}

impl GitError {
    /// Whether it may well go better later: runs end, and make room.
    pub fn is_transient(&self) -> bool {
        matches!(self, GitError::NoRoom { .. } | GitError::DiskFull { .. })
    }

    /// For `map_err` on an I/O result.
    pub(crate) fn io<E: Into<io::Error>>(action: &'static str, path: &Path) -> impl FnOnce(E) -> GitError {
        let path = path.to_owned();
        move |source| GitError::Io { action, path, source: source.into() }
    }
}

/// Why a run's files could not be taken in.
#[derive(Debug, thiserror::Error)]
pub enum HarvestError {
    /// The run left more than its limits allow.
    #[error("the worktree has {seen} {what}; the limit is {limit}")]
    Limit { what: &'static str, limit: u64, seen: u64 },
    /// The overlay's own records are not what the kernel writes.
    #[error("the overlay is inconsistent at {path:?}: {reason}")]
    Inconsistent { path: BString, reason: &'static str },
    /// The worktree is still mounted: somebody may still write to it.
    #[error("the worktree is still mounted")]
    Mounted,
    /// The machine was restarted since; the layer was never meant to survive that.
    #[error("the worktree was written before the machine was restarted")]
    Stale,
    #[error("cannot {action} {path:?} in the worktree: {source}")]
    Io { action: &'static str, path: BString, source: io::Error },
    #[error(transparent)]
    Git(#[from] GitError),
}

impl From<git2::Error> for HarvestError {
    fn from(error: git2::Error) -> Self {
        HarvestError::Git(error.into())
    }
}
