//! What a result changed: the list of files and the patch, between two commits of the mirror.

use bstr::BString;
use git2::{
    Delta, Diff, DiffDelta, DiffFindOptions, DiffOptions, ErrorCode, Oid, Patch as FilePatch, Repository,
};

use crate::git::{error::GitError, mirror::Mirror};

/// Larger files are compared as binary ones: a line diff's cost grows faster than its file.
const MAX_TEXT_BYTES: i64 = 8 << 20;
/// More added and deleted files than this, and renames are not looked for.
const RENAME_LIMIT: usize = 400;

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum FileStatus {
    Added,
    Modified,
    Deleted,
    Renamed,
    /// From file to link or submodule, or back.
    TypeChanged,
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
    /// Lines; 0 for binary files.
    pub insertions: u64,
    pub deletions: u64,
    pub binary: bool,
    /// Bytes of the new content; 0 where there is none.
    pub size: u64,
}

/// A patch that `git apply` takes.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Patch {
    pub bytes: Vec<u8>,
    /// Whether files at the end are missing, because the limit was reached. What is there is whole.
    pub truncated: bool,
}

/// The changed files in order of their paths, with renames found.
pub fn files(mirror: &Mirror, base: Option<Oid>, commit: Oid) -> Result<Vec<FileChange>, GitError> {
    let repository = mirror.repository()?;
    let diff = compare(&repository, base, commit)?;
    let odb = repository.odb()?;
    let mut changes: Vec<FileChange> = Vec::with_capacity(diff.deltas().len());
    for number in in_order(&diff) {
        let Some(patch) = FilePatch::from_diff(&diff, number)? else { continue };
        let (_, insertions, deletions) = patch.line_stats()?;
        let delta = patch.delta();
        let new = delta.new_file();
        let is_blob = delta.status() != Delta::Deleted && u32::from(new.mode()) != 0o160000;
        let size = if is_blob { odb.read_header(new.id())?.0 as u64 } else { 0 };
        let change = change(&delta, size, insertions as u64, deletions as u64);
        match changes.last_mut() {
            Some(last) if last.status == FileStatus::Deleted && last.path == change.path => {
                let (old_mode, deletions, binary) =
                    (last.old_mode, last.deletions, last.binary || change.binary);
                let status = FileStatus::TypeChanged;
                *last = FileChange { status, old_mode, deletions, binary, ..change };
            }
            _ => changes.push(change),
        }
    }
    Ok(changes)
}

/// The patch with binary content, cut before the first file that would make it longer than `max_bytes`.
pub fn patch(mirror: &Mirror, base: Option<Oid>, commit: Oid, max_bytes: usize) -> Result<Patch, GitError> {
    let repository = mirror.repository()?;
    let diff = compare(&repository, base, commit)?;
    let mut bytes = Vec::new();
    for number in in_order(&diff) {
        let whole = bytes.len();
        let Some(mut patch) = FilePatch::from_diff(&diff, number)? else { continue };
        let printed = patch.print(&mut |_, _, line| {
            if matches!(line.origin(), '+' | '-' | ' ') {
                bytes.push(line.origin() as u8);
            }
            bytes.extend_from_slice(line.content());
            bytes.len() <= max_bytes
        });
        match printed {
            Ok(()) if bytes.len() <= max_bytes => {}
            Err(error) if error.code() != ErrorCode::User => return Err(error.into()),
            _ => {
                bytes.truncate(whole);
                return Ok(Patch { bytes, truncated: true });
            }
        }
    }
    Ok(Patch { bytes, truncated: false })
}

/// A file that became a link is removed and added, in this order, which `git apply` needs.
fn in_order(diff: &Diff<'_>) -> Vec<usize> {
    let mut numbers: Vec<usize> = (0..diff.deltas().len()).collect();
    numbers.sort_by_cached_key(|&number| {
        diff.get_delta(number).map(|delta| (path(&delta), delta.status() != Delta::Deleted))
    });
    numbers
}

fn compare<'r>(repository: &'r Repository, base: Option<Oid>, commit: Oid) -> Result<Diff<'r>, GitError> {
    let old = base.map(|id| repository.find_commit(id).and_then(|commit| commit.tree())).transpose()?;
    let new = repository.find_commit(commit)?.tree()?;
    let mut options = DiffOptions::new();
    // Without `include_typechange`, a file that became a link is removed and added, as git writes it.
    options.show_binary(true).max_size(MAX_TEXT_BYTES).id_abbrev(40);
    let mut diff = repository.diff_tree_to_tree(old.as_ref(), Some(&new), Some(&mut options))?;
    diff.find_similar(Some(DiffFindOptions::new().renames(true).rename_limit(RENAME_LIMIT)))?;
    Ok(diff)
}

fn change(delta: &DiffDelta<'_>, size: u64, insertions: u64, deletions: u64) -> FileChange {
    let status = match delta.status() {
        Delta::Added | Delta::Copied | Delta::Untracked => FileStatus::Added,
        Delta::Deleted => FileStatus::Deleted,
        Delta::Renamed => FileStatus::Renamed,
        Delta::Typechange => FileStatus::TypeChanged,
        _ => FileStatus::Modified,
    };
    let renamed = status == FileStatus::Renamed;
    FileChange {
        path: path(delta),
        old_path: renamed.then(|| delta.old_file().path_bytes().unwrap_or_default().into()),
        status,
        old_mode: delta.old_file().mode().into(),
        new_mode: delta.new_file().mode().into(),
        insertions,
        deletions,
        binary: delta.flags().is_binary(),
        size,
    }
}

fn path(delta: &DiffDelta<'_>) -> BString {
    let file = if delta.status() == Delta::Deleted { delta.old_file() } else { delta.new_file() };
    file.path_bytes().unwrap_or_default().into()
}
