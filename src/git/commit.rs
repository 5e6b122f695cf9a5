//! A harvested tree as one commit on the run's branch.

use git2::{ErrorCode, ObjectType, Oid, Reference};

use crate::git::{error::GitError, harvest::Harvest, lock::FileLock, mirror::Mirror};

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

/// As [`commit_while`], with nothing else to do.
pub fn commit(
    mirror: &Mirror,
    base: Option<Oid>,
    harvest: &mut Harvest,
    branch: &str,
    text: &CommitText<'_>,
) -> Result<Oid, GitError> {
    commit_while(mirror, base, harvest, branch, text, |_| ()).map(|(id, ())| id)
}

/// Commits what was harvested on top of `base` and names it `branch`: objects and commit in one pack, flushed
/// before the branch is. If the branch is there with the same tree and parent (a run taken up again after a
/// crash), that commit is returned. One that an earlier attempt of the same run left is moved: its runner lost it before
/// its end was written down. Any other is never moved.
///
/// `read` looks at the commit while the disk is waited for; what it finds counts only if all is well.
pub fn commit_while<T: Send>(
    mirror: &Mirror,
    base: Option<Oid>,
    harvest: &mut Harvest,
    branch: &str,
    text: &CommitText<'_>,
    read: impl FnOnce(Oid) -> T + Send,
) -> Result<(Oid, T), GitError> {
    let name = format!("refs/heads/{branch}");
    if !branch.starts_with(BRANCH_PREFIX) || branch.contains('/') || !Reference::is_valid_name(&name) {
        return Err(GitError::BranchRefused(branch.to_owned()));
    }
    let lock = FileLock::exclusive(&mirror.path().join("kage-branches.lock"))?;
    // Under our lock nobody holds git's: a commit that was killed left it.
    let _ = std::fs::remove_file(mirror.path().join(format!("{name}.lock")));
    let repository = mirror.repository()?;
    let left = match repository.find_reference(&name) {
        Ok(existing) => {
            if let Some(id) = same_result(&existing, base, harvest.tree)? {
                drop(lock);
                return Ok((id, read(id)));
            }
            if !is_of_an_earlier_attempt(&existing, text.message)? {
                return Err(GitError::BranchTaken(branch.to_owned()));
            }
            true
        }
        Err(error) if error.code() == ErrorCode::NotFound => false,
        Err(error) => return Err(error.into()),
    };
    let content = commit_object(base, harvest.tree, text);
    let id = harvest.objects.put(&repository.odb()?, ObjectType::Commit, &content)?;
    let unflushed = harvest.objects.write(mirror)?;
    std::thread::scope(|scope| {
        let reading = scope.spawn(move || read(id));
        unflushed.flush()?;
        repository.reference(&name, id, left, "")?;
        // Other results of this repository need not wait for the reading.
        drop(lock);
        Ok((id, reading.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))))
    })
}

fn same_result(existing: &Reference<'_>, base: Option<Oid>, tree: Oid) -> Result<Option<Oid>, GitError> {
    let commit = existing.peel_to_commit()?;
    let same = commit.tree_id() == tree && commit.parent_ids().eq(base);
    Ok(same.then_some(commit.id()))
}

/// By our own words in both messages; a run writes neither.
fn is_of_an_earlier_attempt(existing: &Reference<'_>, message: &str) -> Result<bool, GitError> {
    let existing = existing.peel_to_commit()?;
    let before = existing.message().ok().unwrap_or_default();
    let attempt = |message| word(message, "Attempt: ").and_then(|number| number.parse::<u32>().ok());
    let same_run = word(before, "Run: ").is_some() && word(before, "Run: ") == word(message, "Run: ");
    Ok(same_run && attempt(before).zip(attempt(message)).is_some_and(|(before, now)| before < now))
}

/// What follows a name in the message's last paragraph.
fn word<'a>(message: &'a str, name: &str) -> Option<&'a str> {
    let last = message.trim_end().rsplit("\n\n").next()?;
    last.lines().find_map(|line| line.strip_prefix(name))
}

fn commit_object(base: Option<Oid>, tree: Oid, text: &CommitText<'_>) -> Vec<u8> {
    let parent = base.map(|id| format!("parent {id}\n")).unwrap_or_default();
    let who = format!("{} <{}> {} +0000", text.author, text.email, text.time);
    format!("tree {tree}\n{parent}author {who}\ncommitter {who}\n\n{}", text.message).into_bytes()
}
