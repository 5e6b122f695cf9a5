//! What a result changed: the list of files and the patch, from one comparison of two commits of the mirror.
//!
//! Two files are compared line by line only where both are small, and not for ever: the cost of a comparison grows
//! faster than its files. What is not compared is said to be so.

use std::{
    collections::HashMap,
    os::unix::ffi::OsStrExt as _,
    time::{Duration, Instant},
};

use bstr::BString;
use git2::{Delta, Diff, DiffDelta, ErrorCode, Oid, Patch as FilePatch};

use crate::git::{
    error::GitError,
    mirror::Mirror,
    trees::{Trees, is_replaced, old_path, path, sizes},
};

/// How much is compared, and for how long.
#[derive(Clone, Copy, Debug)]
pub struct DiffLimits {
    /// Bytes of the patch.
    pub patch_bytes: usize,
    /// Bytes of either of two texts that are compared line by line. A larger one is replaced as a whole.
    pub text_bytes: u64,
    /// Bytes of a file that is read at all. A larger one is not in the patch.
    pub file_bytes: u64,
    /// Wall-clock time. It is looked at between two files; those after it are not compared.
    pub time: Duration,
}

impl Default for DiffLimits {
    fn default() -> Self {
        DiffLimits {
            patch_bytes: 16 << 20,
            text_bytes: 512 << 10,
            file_bytes: 8 << 20,
            time: Duration::from_secs(30),
        }
    }
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum FileStatus {
    Added,
    Modified,
    Deleted,
    Renamed,
    /// From file to link or submodule, or back.
    TypeChanged,
}

impl FileStatus {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Added => "added",
            Self::Modified => "modified",
            Self::Deleted => "deleted",
            Self::Renamed => "renamed",
            Self::TypeChanged => "typechange",
        }
    }
}

/// One changed file.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct FileChange {
    pub path: BString,
    /// Of a renamed file.
    pub old_path: Option<BString>,
    pub status: FileStatus,
    /// As git writes it, such as 0o100644; 0 where there is no file.
    pub old_mode: u32,
    pub new_mode: u32,
    /// Lines; 0 for binary files, and for those that were not compared.
    pub insertions: u64,
    pub deletions: u64,
    pub binary: bool,
    /// Whether its lines were looked at.
    pub compared: bool,
    /// Bytes of the new content; 0 where there is none.
    pub size: u64,
    /// Git's id of the new content; `None` where there is none.
    pub blob: Option<Oid>,
}

/// A patch that `git apply` takes.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Patch {
    pub bytes: Vec<u8>,
    /// Whether files at the end are missing, because a limit was reached. What is there is whole.
    pub truncated: bool,
}

/// What a result changed.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Changes {
    /// In order of their paths, with renames found.
    pub files: Vec<FileChange>,
    /// With binary content.
    pub patch: Patch,
}

/// Compares two commits; `base`: `None` is nothing at all.
pub fn changes(
    mirror: &Mirror,
    base: Option<Oid>,
    commit: Oid,
    limits: &DiffLimits,
) -> Result<Changes, GitError> {
    let started = Instant::now();
    let repository = mirror.repository()?;
    let odb = repository.odb()?;
    let trees = Trees::read(&repository, base, commit)?;
    let diff = trees.compare(&odb)?;
    let replaced = trees.replaced(&odb, &diff, limits)?;
    let side = |delta: &DiffDelta<'_>| (path(delta), delta.status() == Delta::Deleted);
    let large: HashMap<_, _> =
        replaced.deltas().enumerate().map(|(number, it)| (side(&it), number)).collect();
    let mut changes = Changes::default();
    for number in in_order(&diff) {
        let Some(delta) = diff.get_delta(number) else { continue };
        let sizes = sizes(&odb, &delta)?;
        let read = sizes.iter().all(|&size| size <= limits.file_bytes) && started.elapsed() < limits.time;
        let texts = !is_replaced(&delta, sizes, limits);
        let patches = match () {
            () if !read => Vec::new(),
            () if texts => FilePatch::from_diff(&diff, number)?.into_iter().collect(),
            () => {
                let old = old_path(&delta).map(|path| (path, true));
                let parts = old.into_iter().chain([side(&delta)]).filter_map(|side| large.get(&side));
                let patches = parts.map(|&number| FilePatch::from_diff(&replaced, number));
                patches.filter_map(Result::transpose).collect::<Result<_, _>>()?
            }
        };
        let lines = match patches.as_slice() {
            [patch] if texts => patch.line_stats()?,
            _ => (0, 0, 0),
        };
        let same = delta.old_file().id() == delta.new_file().id();
        // Whether it is binary is known only once it was read.
        let binary = !texts || patches.iter().any(|patch| patch.delta().flags().is_binary());
        let change = change(&delta, sizes[1], lines);
        changes.add(FileChange { binary, compared: same || (read && texts), ..change });
        changes.patch.add(patches, limits.patch_bytes)?;
    }
    Ok(changes)
}

/// Shows the new content of changed files, up to so many bytes together; whether that was all.
pub fn contents(
    mirror: &Mirror,
    commit: Oid,
    files: &[FileChange],
    max_bytes: usize,
    mut look: impl FnMut(&FileChange, &[u8]),
) -> Result<bool, GitError> {
    let repository = mirror.repository()?;
    let tree = repository.find_commit(commit)?.tree()?;
    let (mut left, mut all) = (max_bytes, true);
    for file in files.iter().filter(|file| !matches!(file.new_mode, 0 | 0o160000)) {
        let size = usize::try_from(file.size).unwrap_or(usize::MAX);
        let Some(rest) = left.checked_sub(size) else {
            all = false;
            continue;
        };
        left = rest;
        let path = std::path::Path::new(std::ffi::OsStr::from_bytes(&file.path));
        let blob = repository.find_blob(tree.get_path(path)?.id())?;
        look(file, blob.content());
    }
    Ok(all)
}

impl Changes {
    /// A file that became a link stands as one that was removed and one that was added: one change.
    fn add(&mut self, change: FileChange) {
        match self.files.last_mut() {
            Some(last) if last.status == FileStatus::Deleted && last.path == change.path => {
                let FileChange { old_mode, deletions, .. } = *last;
                let (binary, compared) = (last.binary || change.binary, last.compared && change.compared);
                let status = FileStatus::TypeChanged;
                *last = FileChange { status, old_mode, deletions, binary, compared, ..change };
            }
            _ => self.files.push(change),
        }
    }
}

impl Patch {
    /// Adds one file, unless the whole would be longer than `max_bytes` or a file before it is missing. Without patches
    /// it is missing itself.
    fn add(&mut self, patches: Vec<FilePatch<'_>>, max_bytes: usize) -> Result<(), GitError> {
        self.truncated |= patches.is_empty();
        if self.truncated {
            return Ok(());
        }
        let bytes = &mut self.bytes;
        let before = bytes.len();
        for mut patch in patches {
            let printed = patch.print(&mut |_, _, line| {
                if matches!(line.origin(), '+' | '-' | ' ') {
                    bytes.push(line.origin() as u8);
                }
                bytes.extend_from_slice(line.content());
                bytes.len() <= max_bytes
            });
            match printed {
                Err(error) if error.code() != ErrorCode::User => return Err(error.into()),
                Ok(()) if bytes.len() <= max_bytes => {}
                _ => self.truncated = true,
            }
        }
        if self.truncated {
            self.bytes.truncate(before);
        }
        Ok(())
    }
}

/// A file that became a link is removed and added, in this order, which `git apply` needs.
fn in_order(diff: &Diff<'_>) -> Vec<usize> {
    let mut numbers: Vec<usize> = (0..diff.deltas().len()).collect();
    numbers.sort_by_cached_key(|&number| {
        diff.get_delta(number).map(|delta| (path(&delta), delta.status() != Delta::Deleted))
    });
    numbers
}

/// `lines`: of context, inserted, deleted.
fn change(delta: &DiffDelta<'_>, size: u64, lines: (usize, usize, usize)) -> FileChange {
    let status = match delta.status() {
        Delta::Added | Delta::Copied | Delta::Untracked => FileStatus::Added,
        Delta::Deleted => FileStatus::Deleted,
        Delta::Renamed => FileStatus::Renamed,
        Delta::Typechange => FileStatus::TypeChanged,
        _ => FileStatus::Modified,
    };
    FileChange {
        path: path(delta),
        old_path: old_path(delta),
        status,
        blob: Some(delta.new_file().id()).filter(|id| !id.is_zero()),
        old_mode: delta.old_file().mode().into(),
        new_mode: delta.new_file().mode().into(),
        insertions: lines.1 as u64,
        deletions: lines.2 as u64,
        binary: false,
        compared: true,
        size,
    }
}
