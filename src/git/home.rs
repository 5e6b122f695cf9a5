//! A folder for one call of git, in the system's folder for such things. It is locked for as long as its process lives, however
//! that ends: whoever gets the lock knows that nobody uses it.

use std::fs::File;
use std::path::Path;

use rustix::fs::{FlockOperation, flock};
use tempfile::TempDir;

use crate::git::dirfd;
use crate::git::error::GitError;

/// What such folders are called, before a random rest.
pub const PREFIX: &str = "kage-git-";

#[derive(Debug)]
pub(crate) struct Home {
    folder: TempDir,
    /// Never read: closing it gives the folder up.
    _lock: File,
}

impl Home {
    pub fn make() -> Result<Home, GitError> {
        let folder = tempfile::Builder::new().prefix(PREFIX).tempdir();
        let folder = folder.map_err(GitError::io("make", Path::new("a temporary folder")))?;
        let lock = File::open(folder.path()).map_err(GitError::io("open", folder.path()))?;
        flock(&lock, FlockOperation::NonBlockingLockExclusive)
            .map_err(GitError::io("lock", folder.path()))?;
        Ok(Home { folder, _lock: lock })
    }

    pub fn path(&self) -> &Path {
        self.folder.path()
    }
}

/// Removes a folder with all that is in it: follows no link, enters no mount and takes none off, whoever exchanges what
/// meanwhile. One that is not there is removed. Blocks.
///
/// # Errors
/// [`GitError::Io`], where something is mounted in it, too.
pub fn remove(folder: &Path) -> Result<(), GitError> {
    let (Some(parent), Some(name)) = (folder.parent(), folder.file_name()) else { return Ok(()) };
    let parent = dirfd::open_root(parent).map_err(GitError::io("open", parent))?;
    dirfd::remove_tree(&parent, name.as_encoded_bytes()).map_err(GitError::io("remove", folder))
}
