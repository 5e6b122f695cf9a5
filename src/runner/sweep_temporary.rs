//! Temporary folders of killed processes: homes of git, and what a check of a CLI image works in. Each is locked while its process
//! lives, so the lock tells; whose it is, its name and its owner tell.

use std::fs;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rustix::fs::{FileType, FlockOperation, Mode, OFlags, flock, fstat, open};

use crate::git::home;
use crate::metrics::metrics;
use crate::metrics::sweep::Kind;
use crate::runner::environment::Environment;
use crate::runner::failure::RunFailure;
use crate::runner::sweep::remove_container;
use crate::sandbox::container;
use crate::sandbox::profile::KIT_INSTANCE;

/// Between a folder's making and its lock there is a moment.
const SETTLED: Duration = Duration::from_secs(60);

/// The lock is held meanwhile: nobody else takes the folder for dead.
struct Dead {
    path: PathBuf,
    /// Of the containers that a check of an image left.
    instance: Option<String>,
    _lock: OwnedFd,
}

/// What cannot be ended is left for the next time, and keeps nothing else from its end.
pub(super) async fn sweep(environment: &Arc<Environment>) -> Result<(), RunFailure> {
    let owners = [rustix::process::geteuid().as_raw(), environment.config.fetch_uid];
    let parents = [std::env::temp_dir(), environment.config.data_dir.clone()];
    let look = move || parents.iter().flat_map(|parent| dead_in(parent, &owners)).collect::<Vec<Dead>>();
    let dead = tokio::task::spawn_blocking(look).await;
    let dead = dead.map_err(|error| RunFailure::Refused(format!("the sweep failed: {error}")))?;
    let mut failure = None;
    for one in dead {
        tracing::warn!(path = %one.path.display(), "runner.sweep_temporary");
        match end(environment, &one).await {
            Ok(()) => metrics().sweep.ended(Kind::Temporary),
            Err(error) => {
                tracing::warn!(path = %one.path.display(), %error, "runner.sweep_temporary_failed");
                failure = Some(error);
            }
        }
    }
    failure.map_or(Ok(()), Err)
}

/// Its containers first: the folders are mounted in them.
async fn end(environment: &Environment, dead: &Dead) -> Result<(), RunFailure> {
    if let Some(instance) = &dead.instance {
        for found in container::list(&environment.engine, instance).await? {
            tracing::warn!(container = found.id, instance, "runner.sweep_container");
            remove_container(environment, &found).await?;
        }
    }
    let path = dead.path.clone();
    let removed = tokio::task::spawn_blocking(move || home::remove(&path)).await;
    Ok(removed.map_err(|error| RunFailure::Refused(format!("the sweep failed: {error}")))??)
}

/// Folders of ours that nobody holds any more. One that cannot be looked at is not proved to be either.
fn dead_in(parent: &Path, owners: &[u32]) -> Vec<Dead> {
    let entries = fs::read_dir(parent).into_iter().flatten().flatten();
    let named = entries.filter(|entry| {
        let name = entry.file_name();
        name.to_str().is_some_and(|name| name.starts_with(home::PREFIX) || kit_instance(name).is_some())
    });
    named.filter_map(|entry| dead(entry.path(), owners)).collect()
}

fn dead(path: PathBuf, owners: &[u32]) -> Option<Dead> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let lock = open(&path, flags, Mode::empty()).ok()?;
    let stat = fstat(&lock).ok()?;
    let is_ours =
        FileType::from_raw_mode(stat.st_mode) == FileType::Directory && owners.contains(&stat.st_uid);
    let changed = SystemTime::UNIX_EPOCH + Duration::from_secs(u64::try_from(stat.st_mtime).ok()?);
    let is_settled = changed.elapsed().is_ok_and(|age| age > SETTLED);
    if !is_ours || !is_settled || flock(&lock, FlockOperation::NonBlockingLockExclusive).is_err() {
        return None;
    }
    let instance = path.file_name()?.to_str().and_then(kit_instance);
    Some(Dead { path, instance, _lock: lock })
}

/// `kage-kit-NUMBER.REST` is of the check whose containers are labelled `kage-kit-NUMBER`.
fn kit_instance(name: &str) -> Option<String> {
    let (instance, _) = name.split_once('.')?;
    let number = instance.strip_prefix(KIT_INSTANCE)?.strip_prefix('-')?;
    let is_number = number.len() == 32 && number.bytes().all(|byte| byte.is_ascii_hexdigit());
    is_number.then(|| instance.to_owned())
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::unix::fs::symlink;

    use super::*;

    fn folder(parent: &Path, name: &str, age_secs: u64) -> PathBuf {
        let path = parent.join(name);
        fs::create_dir(&path).expect("makes");
        let then = SystemTime::now() - Duration::from_secs(age_secs);
        File::open(&path).and_then(|folder| folder.set_modified(then)).expect("is set");
        path
    }

    #[test]
    fn only_what_is_ours_and_dead_is_taken() {
        let parent = tempfile::tempdir().expect("a folder");
        let parent = parent.path();
        let kit = format!("kage-kit-{}", "0123456789abcdef".repeat(2));
        let git = folder(parent, "kage-git-dead", 100);
        let checked = folder(parent, &format!("{kit}.AbC123"), 100);
        folder(parent, "kage-git-young", 1);
        let held = folder(parent, "kage-git-live", 100);
        let lock = File::open(&held).expect("opens");
        flock(&lock, FlockOperation::NonBlockingLockExclusive).expect("locks");
        for other in ["kage-kit-.x", "kage-kit-123.x", "kage-kit-mine", "something", "kage-gits"] {
            folder(parent, other, 100);
        }
        fs::write(parent.join("kage-git-file"), "x").expect("writes");
        symlink(&git, parent.join("kage-git-link")).expect("links");
        let own = rustix::process::geteuid().as_raw();
        let mut found = dead_in(parent, &[own]);
        found.sort_by(|a, b| a.path.cmp(&b.path));
        let told: Vec<_> = found.iter().map(|dead| (dead.path.clone(), dead.instance.clone())).collect();
        assert_eq!(told, [(git, None), (checked, Some(kit))]);
        assert!(dead_in(parent, &[own]).is_empty(), "they are held by who found them");
        drop(found);
        assert!(dead_in(parent, &[own + 1]).is_empty(), "another's");
        // Its process has died.
        drop(lock);
        assert_eq!(dead_in(parent, &[own]).len(), 3);
    }
}
