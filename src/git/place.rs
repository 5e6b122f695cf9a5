//! What a walk meets: folders and their entries.

use std::os::fd::OwnedFd;

use git2::{Oid, Tree};
use rustix::fs::FileType;

use crate::git::{lower::Lower, tree_list::Kind};

/// A folder of the worktree.
pub(crate) struct Place {
    /// What the base revision has at this path.
    pub tracked: Option<Oid>,
    /// What shows through from the base, which after a rename is another of its folders.
    pub lower: Lower,
    /// What the run's layer has.
    pub upper: Option<OwnedFd>,
    /// Whether this folder or one above it is ignored: then only tracked files count.
    pub ignored: bool,
    pub depth: usize,
}

/// An entry of a folder.
pub(crate) enum Node {
    /// Removed by the run.
    Gone,
    Folder {
        lower: Lower,
        upper: Option<OwnedFd>,
    },
    /// Unread, in the mirror.
    Blob(Kind, Oid),
    File(Side),
    Link(Side),
    Special(FileType),
}

#[derive(Clone, Copy)]
pub(crate) enum Side {
    Upper,
    Lower,
}

/// What stands in a tree: mode and object.
pub(crate) type Entry = (u32, Oid);

impl Place {
    pub fn dir(&self, side: Side) -> Option<&OwnedFd> {
        match (side, &self.lower) {
            (Side::Upper, _) => self.upper.as_ref(),
            (Side::Lower, Lower::Disk(dir)) => Some(dir),
            (Side::Lower, _) => None,
        }
    }
}

pub(crate) fn tracked_entry(tree: &Tree<'_>, name: &[u8]) -> Option<Entry> {
    let entry = tree.get_name_bytes(name)?;
    let mode = Kind::from_git_mode(entry.filemode_raw()).map_or(0o040000, Kind::git_mode);
    Some((mode, entry.id()))
}
