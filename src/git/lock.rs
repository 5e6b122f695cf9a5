//! Advisory locks on files (`flock`): they go when their holder dies.

use std::{
    fs::{File, OpenOptions},
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::Path,
    thread::sleep,
    time::{Duration, Instant},
};

use rustix::{
    fs::{FlockOperation, flock},
    io::Errno,
};

use crate::git::error::GitError;

/// A held lock; dropping it releases it.
#[derive(Debug)]
pub struct FileLock(File);

impl FileLock {
    pub fn shared(path: &Path) -> Result<FileLock, GitError> {
        Self::blocking(path, FlockOperation::LockShared)
    }

    pub fn exclusive(path: &Path) -> Result<FileLock, GitError> {
        Self::blocking(path, FlockOperation::LockExclusive)
    }

    /// `None` if somebody else holds it.
    pub fn try_exclusive(path: &Path) -> Result<Option<FileLock>, GitError> {
        loop {
            let file = open(path)?;
            match flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) if is_current(&file, path)? => return Ok(Some(FileLock(file))),
                Ok(()) => {}
                Err(Errno::WOULDBLOCK) => return Ok(None),
                Err(error) => return Err(GitError::io("lock", path)(error)),
            }
        }
    }

    /// Waits at most `limit`.
    pub fn exclusive_within(path: &Path, limit: Duration) -> Result<FileLock, GitError> {
        let start = Instant::now();
        loop {
            if let Some(lock) = Self::try_exclusive(path)? {
                return Ok(lock);
            }
            if start.elapsed() >= limit {
                return Err(GitError::Locked { path: path.to_owned(), waited: limit });
            }
            sleep(Duration::from_millis(20));
        }
    }

    /// The locked file. A child that inherits it holds the lock for as long as it lives.
    pub fn file(&self) -> &File {
        &self.0
    }

    fn blocking(path: &Path, operation: FlockOperation) -> Result<FileLock, GitError> {
        loop {
            let file = open(path)?;
            match flock(&file, operation) {
                Ok(()) if is_current(&file, path)? => return Ok(FileLock(file)),
                Ok(()) | Err(Errno::INTR) => {}
                Err(error) => return Err(GitError::io("lock", path)(error)),
            }
        }
    }
}

fn open(path: &Path) -> Result<File, GitError> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(path)
        .map_err(GitError::io("open", path))
}

/// Whether the file that we locked is still the one of that name: it may have been removed while we waited.
fn is_current(file: &File, path: &Path) -> Result<bool, GitError> {
    let held = file.metadata().map_err(GitError::io("stat", path))?;
    match std::fs::symlink_metadata(path) {
        Ok(named) => Ok(named.ino() == held.ino() && named.dev() == held.dev()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(GitError::io("stat", path)(error)),
    }
}
