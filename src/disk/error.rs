//! What can go wrong with a run's disk space.

use std::io;
use std::path::{Path, PathBuf};

#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DiskError {
    #[error("cannot {action} {}: {source}", path.display())]
    Io { action: &'static str, path: PathBuf, source: io::Error },
    #[error("cannot start {program}: {source}")]
    NotStarted { program: &'static str, source: io::Error },
    #[error("{program} failed ({status}): {said}")]
    Failed { program: &'static str, status: String, said: String },
    #[error("there was no room beneath it for all that was written ({}): no space left on device", .0.display())]
    Lost(PathBuf),
    #[error(
        "{bytes} bytes and {inodes} inodes are asked for; the new file system has {has_bytes} and {has_inodes}"
    )]
    TooSmall { bytes: u64, inodes: u64, has_bytes: u64, has_inodes: u64 },
}

impl DiskError {
    /// For `map_err` on an I/O result.
    pub(crate) fn io<E: Into<io::Error>>(action: &'static str, path: &Path) -> impl FnOnce(E) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { action, path, source: source.into() }
    }
}
