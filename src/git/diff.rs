//! What a result changed: the list of files and the patch, from one comparison of two commits of the mirror.
//!
//! Two files are compared line by line only where both are small, and not for ever: the cost of a comparison grows
//! faster than its files. What is not compared is said to be so.

use std::{
    collections::{BTreeMap, HashMap},
    os::unix::ffi::OsStrExt as _,
    time::{Duration, Instant},
};

use bstr::BString;
use git2::{
    Delta, Diff, DiffDelta, DiffFindOptions, DiffOptions, ErrorCode, Odb, Oid, Patch as FilePatch,
    Repository, Tree,
};

use crate::git::{error::GitError, mirror::Mirror, tree_list::joined};

/// Renames with changes are looked for among so many pairs of added and deleted files; beyond, only files that are the same.
const RENAME_PAIRS: usize = 400 * 400;
/// And among so many bytes of them.
const RENAME_BYTES: u64 = 64 << 20;
/// Sources that are tried for each renamed file.
const RENAME_LIMIT: usize = 400;
/// More changed paths than this, and libgit2 compares all by itself.
const MAX_PATHS: usize = 10_000;

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

/// Both sides of a comparison.
struct Trees<'r> {
    repository: &'r Repository,
    old: Option<Tree<'r>>,
    new: Tree<'r>,
}

impl<'r> Trees<'r> {
    fn read(repository: &'r Repository, base: Option<Oid>, commit: Oid) -> Result<Trees<'r>, GitError> {
        let tree = |id: Oid| repository.find_commit(id).and_then(|commit| commit.tree());
        Ok(Trees { repository, old: base.map(tree).transpose()?, new: tree(commit)? })
    }

    /// What differs. Nothing is compared yet but for renames.
    fn compare(&self, odb: &Odb<'_>) -> Result<Diff<'r>, GitError> {
        // By itself libgit2 reads every tree of both sides; told where to look, it skips what is the same.
        let mut changed = Vec::new();
        let (old, new) = (self.old.as_ref(), Some(&self.new));
        changed_paths(self.repository, old, new, &BString::default(), &mut changed)?;
        if changed.is_empty() {
            return Ok(self.repository.diff_tree_to_tree(None, None, None)?);
        }
        if changed.len() > MAX_PATHS {
            changed.clear();
        }
        let mut diff = self.between(&changed, false)?;
        let mut find = DiffFindOptions::new();
        find.renames(true).rename_limit(RENAME_LIMIT);
        if !renames_are_cheap(odb, &diff)? {
            find.exact_match_only(true);
        }
        diff.find_similar(Some(&mut find))?;
        Ok(diff)
    }

    /// The files that are too large to be compared, as if they were binary: in a patch they are replaced as a whole. What
    /// was moved and changed is removed here, and added there.
    fn replaced(&self, odb: &Odb<'_>, diff: &Diff<'_>, limits: &DiffLimits) -> Result<Diff<'r>, GitError> {
        let mut large = Vec::new();
        for delta in diff.deltas() {
            if is_replaced(&delta, sizes(odb, &delta)?, limits) {
                large.extend(old_path(&delta));
                large.push(path(&delta));
            }
        }
        match large.is_empty() {
            true => Ok(self.repository.diff_tree_to_tree(None, None, None)?),
            false => self.between(&large, true),
        }
    }

    /// `paths`: where to look; empty: everywhere.
    fn between(&self, paths: &[BString], as_binary: bool) -> Result<Diff<'r>, GitError> {
        let mut options = DiffOptions::new();
        // Without `include_typechange`, a file that became a link is removed and added, as git writes it. No `max_size`:
        // it counts for nothing where binary content is shown.
        options.show_binary(true).force_binary(as_binary).id_abbrev(40);
        if !paths.is_empty() {
            options.disable_pathspec_match(true);
        }
        for path in paths {
            options.pathspec(path.as_slice());
        }
        Ok(self.repository.diff_tree_to_tree(self.old.as_ref(), Some(&self.new), Some(&mut options))?)
    }
}

/// Whether one content stands in another's place, and one of them is too large to be compared.
fn is_replaced(delta: &DiffDelta<'_>, sizes: [u64; 2], limits: &DiffLimits) -> bool {
    let differs = delta.old_file().id() != delta.new_file().id();
    !is_one_sided(delta) && differs && sizes.iter().any(|&size| size > limits.text_bytes)
}

fn is_one_sided(delta: &DiffDelta<'_>) -> bool {
    matches!(delta.status(), Delta::Added | Delta::Deleted)
}

/// Bytes of the blobs of both sides; 0 where there is none.
fn sizes(odb: &Odb<'_>, delta: &DiffDelta<'_>) -> Result<[u64; 2], GitError> {
    let mut sizes = [0, 0];
    for (size, file) in sizes.iter_mut().zip([delta.old_file(), delta.new_file()]) {
        let mode = u32::from(file.mode());
        if !file.id().is_zero() && mode != 0 && mode != 0o160000 {
            *size = odb.read_header(file.id())?.0 as u64;
        }
    }
    Ok(sizes)
}

/// Whether similar files can be looked for: each added file is held against each deleted one.
fn renames_are_cheap(odb: &Odb<'_>, diff: &Diff<'_>) -> Result<bool, GitError> {
    let count = |status| diff.deltas().filter(|delta| delta.status() == status).count();
    if count(Delta::Added).saturating_mul(count(Delta::Deleted)) > RENAME_PAIRS {
        return Ok(false);
    }
    let mut bytes = 0;
    for delta in diff.deltas().filter(is_one_sided) {
        bytes += sizes(odb, &delta)?.into_iter().sum::<u64>();
        if bytes > RENAME_BYTES {
            return Ok(false);
        }
    }
    Ok(true)
}

/// A file that became a link is removed and added, in this order, which `git apply` needs.
fn in_order(diff: &Diff<'_>) -> Vec<usize> {
    let mut numbers: Vec<usize> = (0..diff.deltas().len()).collect();
    numbers.sort_by_cached_key(|&number| {
        diff.get_delta(number).map(|delta| (path(&delta), delta.status() != Delta::Deleted))
    });
    numbers
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

/// Of a renamed file.
fn old_path(delta: &DiffDelta<'_>) -> Option<BString> {
    (delta.status() == Delta::Renamed).then(|| delta.old_file().path_bytes().unwrap_or_default().into())
}

fn path(delta: &DiffDelta<'_>) -> BString {
    let file = if delta.status() == Delta::Deleted { delta.old_file() } else { delta.new_file() };
    file.path_bytes().unwrap_or_default().into()
}
