//! What a result changed: the list of files and the patch, between two commits of the mirror.

use std::collections::BTreeMap;
use std::os::unix::ffi::OsStrExt as _;

use bstr::BString;
use git2::{
    Delta, Diff, DiffDelta, DiffFindOptions, DiffOptions, ErrorCode, Oid, Patch as FilePatch, Repository,
    Tree,
};

use crate::git::{error::GitError, mirror::Mirror, tree_list::joined};

/// Larger files are compared as binary ones: a line diff's cost grows faster than its file.
const MAX_TEXT_BYTES: i64 = 8 << 20;
/// More added and deleted files than this, and renames are not looked for.
const RENAME_LIMIT: usize = 400;
/// More changed paths than this, and libgit2 compares all by itself.
const MAX_PATHS: usize = 10_000;

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
    let tree = |id: Oid| repository.find_commit(id).and_then(|commit| commit.tree());
    let old = base.map(tree).transpose()?;
    let new = tree(commit)?;
    let mut options = DiffOptions::new();
    // Without `include_typechange`, a file that became a link is removed and added, as git writes it.
    options.show_binary(true).max_size(MAX_TEXT_BYTES).id_abbrev(40);
    // By itself libgit2 reads every tree of both sides; told where to look, it skips what is the same.
    let mut changed = Vec::new();
    changed_paths(repository, old.as_ref(), Some(&new), &BString::default(), &mut changed)?;
    if changed.len() <= MAX_PATHS {
        options.disable_pathspec_match(true);
        for path in &changed {
            options.pathspec(path.as_slice());
        }
    }
    let mut diff = match changed.is_empty() {
        true => repository.diff_tree_to_tree(None, None, None)?,
        false => repository.diff_tree_to_tree(old.as_ref(), Some(&new), Some(&mut options))?,
    };
    diff.find_similar(Some(DiffFindOptions::new().renames(true).rename_limit(RENAME_LIMIT)))?;
    Ok(diff)
}

/// The paths of files that differ between two trees; equal folders are not read.
fn changed_paths(
    repository: &Repository,
    old: Option<&Tree<'_>>,
    new: Option<&Tree<'_>>,
    folder: &BString,
    changed: &mut Vec<BString>,
) -> Result<(), GitError> {
    let mut sides: BTreeMap<Vec<u8>, [Option<(i32, Oid)>; 2]> = BTreeMap::new();
    for (side, tree) in [old, new].into_iter().enumerate() {
        for entry in tree.into_iter().flat_map(|tree| tree.iter()) {
            let name = entry.name_bytes().to_vec();
            sides.entry(name).or_default()[side] = Some((entry.filemode_raw(), entry.id()));
        }
    }
    for (name, sides) in sides.into_iter().filter(|(_, [old, new])| old != new) {
        let path = joined(folder, &name);
        let is_folder = |side: &Option<(i32, Oid)>| side.is_some_and(|(mode, _)| mode == 0o040000);
        if sides.iter().any(|side| side.is_some() && !is_folder(side)) {
            changed.push(path.clone());
        }
        let tree = |side: Option<(i32, Oid)>| {
            side.filter(|_| is_folder(&side)).map(|(_, id)| repository.find_tree(id)).transpose()
        };
        let [old, new] = [tree(sides[0])?, tree(sides[1])?];
        if old.is_some() || new.is_some() {
            changed_paths(repository, old.as_ref(), new.as_ref(), &path, changed)?;
        }
    }
    Ok(())
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
