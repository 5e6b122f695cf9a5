//! The data folder of a restore. Repositories are put together beside their place and come to it all at once.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::ErrorKind;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};
use uuid::Uuid;

use crate::backup::error::BackupError;
use crate::db::restoring::NOTE;

/// With no runner at work in it.
#[derive(Debug)]
pub(super) struct Folder {
    root: PathBuf,
    /// Never read: no runner can begin while it is held.
    _lock: File,
}

impl Folder {
    pub fn take(root: &Path) -> Result<Self, BackupError> {
        let made = DirBuilder::new().recursive(true).mode(0o711).create(root);
        made.map_err(BackupError::io("make", root))?;
        let root = &fs::canonicalize(root).map_err(BackupError::io("open", root))?;
        let path = root.join("runner.lock");
        let lock = OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(&path);
        let lock = lock.map_err(BackupError::io("open", &path))?;
        match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Self { root: root.to_owned(), _lock: lock }),
            Err(rustix::io::Errno::WOULDBLOCK) => Err(BackupError::Refused(format!(
                "a runner, or another restore, works in {}: stop kage first",
                root.display()
            ))),
            Err(error) => Err(BackupError::io("lock", &path)(error.into())),
        }
    }

    pub fn root(&self) -> &Path {
        &self.root
    }

    pub fn refuse_repositories(&self) -> Result<(), BackupError> {
        let repositories = self.repositories();
        match fs::read_dir(&repositories).map(|mut list| list.next().is_some()) {
            Ok(true) => Err(BackupError::Refused(format!(
                "{} has repositories: a restore needs an empty data folder; move this folder away, or set another KAGE_DATA_DIR",
                repositories.display()
            ))),
            Err(error) if error.kind() != ErrorKind::NotFound => {
                Err(BackupError::io("list", &repositories)(error))
            }
            _ => Ok(()),
        }
    }

    fn repositories(&self) -> PathBuf {
        self.root.join("repos")
    }

    fn staged(&self) -> PathBuf {
        self.root.join("repos.restoring")
    }

    fn note(&self) -> PathBuf {
        self.root.join(NOTE)
    }

    /// Whose folder it is, before anything of the restore is in it.
    pub fn write_note(&self, id: Uuid) -> Result<(), BackupError> {
        let path = self.note();
        let written = || {
            fs::write(&path, format!("{id}\n"))?;
            File::open(&path)?.sync_all()?;
            self.flush()
        };
        written().map_err(BackupError::io("write", &path))
    }

    /// The restore that worked here last, if no runner has since. One that cannot be read is nobody's.
    pub fn read_note(&self) -> Option<Uuid> {
        fs::read_to_string(self.note()).ok()?.trim().parse().ok()
    }

    pub fn remove_note(&self) -> Result<(), BackupError> {
        remove_if_there(&self.note(), fs::remove_file)
    }

    /// An empty folder; what a restore that was killed left in it goes.
    pub fn stage(&self) -> Result<PathBuf, BackupError> {
        self.unstage()?;
        let path = self.staged();
        DirBuilder::new().mode(0o700).create(&path).map_err(BackupError::io("make", &path))?;
        Ok(path)
    }

    /// Forces to the disk what was put together, before somebody relies on it.
    pub fn keep_staged(&self) -> Result<(), BackupError> {
        let path = self.staged();
        let flushed = File::open(&path).and_then(|folder| folder.sync_all());
        flushed.and_then(|()| self.flush()).map_err(BackupError::io("flush", &path))
    }

    pub fn unstage(&self) -> Result<(), BackupError> {
        remove_if_there(&self.staged(), fs::remove_dir_all)
    }

    /// Puts the repositories in their place, if they are not there already.
    pub fn put(&self) -> Result<(), BackupError> {
        let (staged, path) = (self.staged(), self.repositories());
        if staged.exists() {
            // Takes the place of a folder that is empty, and of no other.
            fs::rename(&staged, &path).map_err(BackupError::io("put the repositories at", &path))?;
        } else if !path.exists() {
            return Err(BackupError::Refused(format!(
                "neither {} nor {} is there any more: make an empty database, move {} away, and begin anew",
                staged.display(),
                path.display(),
                self.root.display()
            )));
        }
        self.flush().map_err(BackupError::io("flush", &self.root))
    }

    fn flush(&self) -> std::io::Result<()> {
        File::open(&self.root)?.sync_all()
    }
}

fn remove_if_there(path: &Path, remove: fn(PathBuf) -> std::io::Result<()>) -> Result<(), BackupError> {
    match remove(path.to_owned()) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(BackupError::io("remove", path)(error)),
        _ => Ok(()),
    }
}
