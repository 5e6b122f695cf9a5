//! Counts what a result changes. What a run only takes away is counted too: every change is named in the result's list.

use bstr::{BStr, BString, ByteSlice};
use git2::{ObjectType, Repository};

use crate::git::{
    error::{GitError, HarvestError},
    harvest::HarvestLimits,
    place::Entry,
    tree_list::joined,
};

pub(crate) struct Tally<'a> {
    repository: &'a Repository,
    limits: &'a HarvestLimits,
    /// Files that were added or changed.
    pub files: u64,
    deleted: u64,
    path_bytes: u64,
}

impl<'a> Tally<'a> {
    pub fn new(repository: &'a Repository, limits: &'a HarvestLimits) -> Tally<'a> {
        Tally { repository, limits, files: 0, deleted: 0, path_bytes: 0 }
    }

    /// A file that was added or changed.
    pub fn changed(&mut self, path: &BStr) -> Result<(), HarvestError> {
        self.files += 1;
        within("changed files", self.limits.files, self.files)?;
        self.name(path)
    }

    /// What the base has at `path` is gone, with all below it.
    pub fn deleted(&mut self, path: BString, entry: Entry) -> Result<(), HarvestError> {
        let mut left = vec![(path, entry)];
        while let Some((path, (mode, id))) = left.pop() {
            if mode != 0o040000 {
                self.deleted += 1;
                within("deleted files", self.limits.deleted, self.deleted)?;
                self.name(path.as_bstr())?;
                continue;
            }
            let tree = self.repository.find_tree(id).map_err(GitError::from)?;
            left.extend(tree.iter().map(|it| {
                let is_folder = it.kind() == Some(ObjectType::Tree);
                let mode = if is_folder { 0o040000 } else { 0o100644 };
                (joined(&path, it.name_bytes()), (mode, it.id()))
            }));
        }
        Ok(())
    }

    fn name(&mut self, path: &BStr) -> Result<(), HarvestError> {
        self.path_bytes += path.len() as u64;
        within("bytes in the paths of its changes", self.limits.list_bytes, self.path_bytes)
    }
}

fn within(what: &'static str, limit: u64, seen: u64) -> Result<(), HarvestError> {
    if seen > limit { Err(HarvestError::Limit { what, limit, seen }) } else { Ok(()) }
}
