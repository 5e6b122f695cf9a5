//! What can go wrong with a backup.

use std::io;
use std::path::{Path, PathBuf};

use crate::db::error::DbError;
use crate::git::error::GitError;

#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    #[error("cannot {action} {}: {source}", path.display())]
    Io { action: &'static str, path: PathBuf, source: io::Error },
    /// `place`: the file, and what of it.
    #[error("the backup is damaged at {place}: {problem}")]
    Damaged { place: String, problem: String },
    /// Says what to do.
    #[error("{0}")]
    Refused(String),
    /// The database says so too, until the restore is run again.
    #[error(
        "{0}. The restore has not ended, and nothing starts on this database: run the same command again, which goes on"
    )]
    Unfinished(Box<BackupError>),
    #[error("it cannot be encrypted: {0}")]
    Encrypt(String),
    #[error("repository {repository}: {source}")]
    Repository { repository: String, source: GitError },
    #[error(transparent)]
    Database(#[from] DbError),
    #[error("a part of the work ended early: {0}")]
    Ended(#[from] tokio::task::JoinError),
}

impl BackupError {
    /// For `map_err` on an I/O result.
    pub(super) fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { action, path, source }
    }

    pub(super) fn damaged(place: impl ToString, problem: impl ToString) -> Self {
        Self::Damaged { place: place.to_string(), problem: problem.to_string() }
    }

    pub(super) fn git(repository: &str) -> impl FnOnce(GitError) -> Self {
        let repository = repository.to_owned();
        move |source| Self::Repository { repository, source }
    }
}

impl From<sqlx::Error> for BackupError {
    fn from(error: sqlx::Error) -> Self {
        Self::Database(error.into())
    }
}
