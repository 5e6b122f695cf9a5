//! A harvested tree as one commit on the run's branch.

use git2::{ErrorCode, Oid, Reference, Repository, Signature, Time};

use crate::git::{error::GitError, lock::FileLock, mirror::Mirror};

/// Every branch of a result begins so.
pub const BRANCH_PREFIX: &str = "task-";

/// The platform's own words: nothing of a run's commits is kept.
#[derive(Clone, Debug)]
pub struct CommitText<'a> {
    pub message: &'a str,
    pub author: &'a str,
    pub email: &'a str,
    /// Seconds since 1970, UTC.
    pub time: i64,
}

/// Commits `tree` on top of `base` and names it `branch`. If the branch is there with the same tree and
/// parent (a run taken up again after a crash), that commit is returned; any other is never moved.
pub fn commit(
    mirror: &Mirror,
    base: Option<Oid>,
    tree: Oid,
    branch: &str,
    text: &CommitText<'_>,
) -> Result<Oid, GitError> {
    let name = format!("refs/heads/{branch}");
    if !branch.starts_with(BRANCH_PREFIX) || branch.contains('/') || !Reference::is_valid_name(&name) {
        return Err(GitError::BranchRefused(branch.to_owned()));
    }
    let _lock = FileLock::exclusive(&mirror.path().join("kage-branches.lock"))?;
    // Under our lock nobody holds git's: a commit that was killed left it.
    let _ = std::fs::remove_file(mirror.path().join(format!("{name}.lock")));
    let repository = mirror.repository()?;
    match repository.find_reference(&name) {
        Ok(existing) => {
            return same_result(&existing, base, tree)?
                .ok_or_else(|| GitError::BranchTaken(branch.to_owned()));
        }
        Err(error) if error.code() == ErrorCode::NotFound => {}
        Err(error) => return Err(error.into()),
    }
    let id = write(&repository, base, tree, text)?;
    repository.reference(&name, id, false, "")?;
    Ok(id)
}

fn same_result(existing: &Reference<'_>, base: Option<Oid>, tree: Oid) -> Result<Option<Oid>, GitError> {
    let commit = existing.peel_to_commit()?;
    let same = commit.tree_id() == tree && commit.parent_ids().eq(base);
    Ok(same.then_some(commit.id()))
}

fn write(
    repository: &Repository,
    base: Option<Oid>,
    tree: Oid,
    text: &CommitText<'_>,
) -> Result<Oid, GitError> {
    let who = Signature::new(text.author, text.email, &Time::new(text.time, 0))?;
    let tree = repository.find_tree(tree)?;
    let parent = base.map(|id| repository.find_commit(id)).transpose()?;
    Ok(repository.commit(None, &who, &who, text.message, &tree, &Vec::from_iter(&parent))?)
}
