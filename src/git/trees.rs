//! Two trees of a mirror, compared: which files differ, and which of them can be compared line by line.

use std::collections::BTreeMap;

use bstr::BString;
use git2::{Delta, Diff, DiffDelta, DiffFindOptions, DiffOptions, Odb, Oid, Repository, Tree};

use crate::git::{diff::DiffLimits, error::GitError, tree_list::joined};

/// Renames with changes are looked for among so many pairs of added and deleted files; beyond, only files that are the same.
const RENAME_PAIRS: usize = 400 * 400;
/// And among so many bytes of them.
const RENAME_BYTES: u64 = 64 << 20;
/// Sources that are tried for each renamed file.
const RENAME_LIMIT: usize = 400;
/// More changed paths than this, and libgit2 compares all by itself.
const MAX_PATHS: usize = 10_000;

/// Both sides of a comparison.
pub(crate) struct Trees<'r> {
    repository: &'r Repository,
    old: Option<Tree<'r>>,
    new: Tree<'r>,
}

impl<'r> Trees<'r> {
    pub fn read(repository: &'r Repository, base: Option<Oid>, commit: Oid) -> Result<Trees<'r>, GitError> {
        let tree = |id: Oid| repository.find_commit(id).and_then(|commit| commit.tree());
        Ok(Trees { repository, old: base.map(tree).transpose()?, new: tree(commit)? })
    }

    /// What differs. Nothing is compared yet but for renames.
    pub fn compare(&self, odb: &Odb<'_>) -> Result<Diff<'r>, GitError> {
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
    pub fn replaced(
        &self,
        odb: &Odb<'_>,
        diff: &Diff<'_>,
        limits: &DiffLimits,
    ) -> Result<Diff<'r>, GitError> {
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
pub(crate) fn is_replaced(delta: &DiffDelta<'_>, sizes: [u64; 2], limits: &DiffLimits) -> bool {
    let differs = delta.old_file().id() != delta.new_file().id();
    !is_one_sided(delta) && differs && sizes.iter().any(|&size| size > limits.text_bytes)
}

fn is_one_sided(delta: &DiffDelta<'_>) -> bool {
    matches!(delta.status(), Delta::Added | Delta::Deleted)
}

/// Bytes of the blobs of both sides; 0 where there is none.
pub(crate) fn sizes(odb: &Odb<'_>, delta: &DiffDelta<'_>) -> Result<[u64; 2], GitError> {
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

/// Of a renamed file.
pub(crate) fn old_path(delta: &DiffDelta<'_>) -> Option<BString> {
    (delta.status() == Delta::Renamed).then(|| delta.old_file().path_bytes().unwrap_or_default().into())
}

pub(crate) fn path(delta: &DiffDelta<'_>) -> BString {
    let file = if delta.status() == Delta::Deleted { delta.old_file() } else { delta.new_file() };
    file.path_bytes().unwrap_or_default().into()
}
