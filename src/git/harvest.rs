//! Takes in what a run left: a walk over bytes, into a tree for the mirror.
//!
//! The result is what `git add -A` would have staged on the base revision, whatever the run did with
//! its own `.git`: committed or not, hidden by index flags or not. It differs from real git where git
//! would run code, read what the run controls, lose content, or fail:
//!
//! - The worktree's `.git` is not opened. So a file that is ignored by `.gitignore` is left out even if the
//!   run has forced it into a commit, and `info/exclude`, global excludes, sparse checkouts and index
//!   flags have no say.
//! - Content is taken byte by byte: no filters, no line ending conversion, no LFS.
//! - A nested `.git` is left out with a warning and the files around it are taken as files; git would record
//!   a submodule and drop them. A submodule of the base stays as it is; files put into its folder are
//!   left out with a warning.
//! - Special files, names that some system reads as `.git`, and symbolic links called `.gitmodules` are left
//!   out with a warning; git would hang or fail.
//! - Files that are too large, paths that are too long and folders that are too deep are left out with a warning.
//! - `.gitignore` counts if it is a regular file; its size and its rules are limited.

use std::time::{Duration, Instant};

use bstr::BString;
use git2::Oid;

use crate::git::{
    dirfd,
    error::{GitError, HarvestError},
    lower::LowerRoot,
    mirror::Mirror,
    overlay,
    place::Place,
    quarantine,
    restore::Restore,
    store::NewObjects,
    walk::Walk,
    worktree::{Layer, Worktree},
};

/// How much a run may leave. Unchanged files of the base do not count. A path that goes beyond a limit of its own (bytes of
/// the file, of the path, depth) is left out with a warning; beyond what all have together nothing is taken.
#[derive(Clone, Copy, Debug)]
pub struct HarvestLimits {
    /// Files that were added or changed.
    pub files: u64,
    /// Files of the base that are gone.
    pub deleted: u64,
    /// Bytes of the paths of all these together: what the list of them may come to.
    pub list_bytes: u64,
    /// Bytes of those that were added or changed, together.
    pub bytes: u64,
    /// Bytes of one of them.
    pub file_bytes: u64,
    /// Bytes of a path.
    pub path_bytes: usize,
    /// Folders one in another.
    pub depth: usize,
    /// Entries of folders that are looked at, of any kind.
    pub entries: u64,
    /// Wall-clock time.
    pub time: Duration,
}

impl Default for HarvestLimits {
    fn default() -> Self {
        HarvestLimits {
            files: 50_000,
            deleted: 100_000,
            list_bytes: 8 << 20,
            bytes: 512 << 20,
            file_bytes: 64 << 20,
            path_bytes: 1024,
            depth: 64,
            entries: 2_000_000,
            time: Duration::from_secs(30),
        }
    }
}

/// What was left out, and why.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Warning {
    pub kind: WarningKind,
    pub path: BString,
    pub detail: String,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum WarningKind {
    /// A `.git` below the root.
    NestedGit,
    /// A name that is `.git` or another folder to some system, or a link called `.gitmodules`.
    ForbiddenName,
    /// The run's own version of a path that was hidden from it: the base's stays.
    Held,
    /// A FIFO, socket or device.
    SpecialFile,
    /// A file of more bytes than one may have.
    TooLarge,
    /// A path of more bytes than one may have.
    PathTooLong,
    /// A folder in more folders than there may be.
    TooDeep,
    /// Files in a submodule's folder.
    SubmoduleContent,
    /// Rules of a `.gitignore` that would cost too much to follow.
    IgnoreRules,
    /// Paths that `.gitignore` names; one warning for all, at the first of them.
    Ignored,
}

/// What a run left.
#[derive(Debug)]
pub struct Harvest {
    pub tree: Oid,
    /// What of the tree the mirror does not have; [`crate::git::commit::commit`] brings it in.
    pub objects: NewObjects,
    /// Whether `tree` differs from the base's.
    pub changed: bool,
    pub layer: Layer,
    /// Files that were added or changed, and their bytes.
    pub files: u64,
    pub bytes: u64,
    /// Ignored files and folders.
    pub ignored: u64,
    /// At most [`MAX_WARNINGS`].
    pub warnings: Vec<Warning>,
    /// How many more there would have been.
    pub warnings_dropped: u64,
}

pub const MAX_WARNINGS: usize = 200;

/// Reads the worktree of a run whose container is gone and whose layer is unmounted.
pub fn harvest(
    mirror: &Mirror,
    worktree: &Worktree,
    limits: &HarvestLimits,
) -> Result<Harvest, HarvestError> {
    let overlay = worktree.layer() == Layer::Overlay;
    if worktree.is_stale() {
        return Err(HarvestError::Stale);
    }
    if overlay && worktree.is_mounted()? {
        return Err(HarvestError::Mounted);
    }
    let repository = mirror.repository()?;
    let whole = match worktree.commit() {
        Some(id) => Some(repository.find_commit(id)?.tree_id()),
        None => None,
    };
    let hidden = worktree.hidden();
    // What the run saw is what its changes are compared with.
    let base = match whole {
        Some(tree) if !hidden.is_empty() => Some(quarantine::without(&repository, tree, hidden)?),
        whole => whole,
    };
    let path = worktree.harvest_path();
    let upper = dirfd::open_root(&path).map_err(GitError::io("open", &path))?;
    if overlay && !overlay::can_read_notes(&upper) {
        let reason = "the layer's marks cannot be read";
        return Err(HarvestError::Inconsistent { path: BString::default(), reason });
    }
    let root = LowerRoot { tree: base, base: worktree.base_path().to_owned() };
    let lower = if overlay { root.root() } else { crate::git::lower::Lower::None };
    let objects = if hidden.is_empty() { NewObjects::default() } else { NewObjects::with_trees() };
    let walk = Walk::new(&repository, root, overlay, limits, Instant::now(), objects)?;
    let place = Place { tracked: base, lower, upper: Some(upper), ignored: false, depth: 0 };
    let (mut tree, mut objects, mut report) = walk.run(&place)?;
    if let (Some(whole), false) = (whole, hidden.is_empty()) {
        let odb = repository.odb()?;
        let mut restore = Restore { repository: &repository, odb, objects: &mut objects, held: Vec::new() };
        tree = restore.whole(tree, whole, hidden)?;
        report.held(std::mem::take(&mut restore.held));
    }
    let empty = Oid::hash_object(git2::ObjectType::Tree, b"")?;
    Ok(Harvest {
        tree,
        objects,
        changed: tree != whole.unwrap_or(empty),
        layer: worktree.layer(),
        files: report.files,
        bytes: report.bytes,
        ignored: report.ignored,
        warnings: report.warnings,
        warnings_dropped: report.warnings_dropped,
    })
}
