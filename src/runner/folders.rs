//! What is where in the data folder, and that it is this runner's alone.
//!
//! ```text
//! runner.lock   held for as long as the runner lives      runner-id   stays the same over restarts
//! bin/          the shim, by content                      repos/      one bare mirror a repository
//! bases/        shared checkouts, one a base revision     runs/<id>/  worktree, io (seen in the sandbox), session
//! disk/         the empty file system that each run gets a copy of
//! refusals/     where runtimes hand over the kernel's listeners; seen in no sandbox
//! fetching/     a repository for each fetch, as long as it lasts; the fetch's own user can pass through
//! model/<id>/   where the gateway opens a run's socket; its own, and seen in the sandbox
//! ```

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};
use sha2::{Digest, Sha256};
use uuid::Uuid;

use crate::db::restoring::NOTE;
use crate::domain::name::{InvalidName, Name};
use crate::runner::failure::StartError;

#[derive(Debug)]
pub(super) struct Folders {
    root: PathBuf,
    /// Where the runs' folders are, beyond all links: the kernel names mounts so.
    runs: PathBuf,
    /// Never read: closing it gives the folder up.
    _lock: File,
}

impl Folders {
    /// Takes the data folder, or says who has it.
    pub fn open(root: &Path) -> Result<Self, StartError> {
        let folder = |path: &Path| {
            let path = path.to_owned();
            move |source| StartError::Folder { path, source }
        };
        DirBuilder::new().recursive(true).mode(0o711).create(root).map_err(folder(root))?;
        let root = fs::canonicalize(root).map_err(folder(root))?;
        for (name, mode) in [
            ("bin", 0o755),
            ("repos", 0o700),
            ("bases", 0o700),
            ("runs", 0o700),
            ("fetching", 0o711),
            ("model", 0o711),
        ] {
            let path = root.join(name);
            DirBuilder::new().recursive(true).mode(mode).create(&path).map_err(folder(&path))?;
        }
        let runs = root.join("runs");
        let runs = fs::canonicalize(&runs).map_err(folder(&runs))?;
        let path = root.join("runner.lock");
        let lock = OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(&path);
        let lock = lock.map_err(folder(&path))?;
        match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {
                // From now on the repositories are no longer those of a restore that might go on.
                let note = root.join(NOTE);
                match fs::remove_file(&note) {
                    Err(error) if error.kind() != io::ErrorKind::NotFound => Err(folder(&note)(error)),
                    _ => Ok(Self { root, runs, _lock: lock }),
                }
            }
            Err(rustix::io::Errno::WOULDBLOCK) => Err(StartError::Taken(root)),
            Err(error) => Err(folder(&path)(error.into())),
        }
    }

    /// This runner's id; made at the first start.
    pub fn runner_id(&self) -> Result<Uuid, StartError> {
        let path = self.root.join("runner-id");
        let folder = |source| StartError::Folder { path: path.clone(), source };
        match fs::read_to_string(&path) {
            Ok(text) => text.trim().parse().map_err(|_| {
                folder(io::Error::new(
                    io::ErrorKind::InvalidData,
                    "does not hold a UUID; remove it if no run is under way",
                ))
            }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let id = Uuid::new_v4();
                write_whole(&path, id.to_string().as_bytes(), 0o600).map_err(folder)?;
                Ok(id)
            }
            Err(error) => Err(folder(error)),
        }
    }

    /// Puts the shim where the engine can mount it, under its digest: an upgrade never changes the
    /// program below a sandbox that runs.
    pub fn install_shim(&self, source: &Path) -> Result<PathBuf, StartError> {
        let bytes =
            fs::read(source).map_err(|error| StartError::Shim { path: source.to_owned(), reason: error })?;
        let digest = hex::encode(Sha256::digest(&bytes));
        let path = self.root.join("bin").join(format!("kage-shim-{}", &digest[..16]));
        let intact = fs::read(&path).is_ok_and(|there| Sha256::digest(&there) == Sha256::digest(&bytes));
        if !intact {
            write_whole(&path, &bytes, 0o755)
                .map_err(|error| StartError::Folder { path: path.clone(), source: error })?;
        }
        Ok(path)
    }

    pub fn root(&self) -> &Path {
        &self.root
    }

    pub fn fetching(&self) -> PathBuf {
        self.root.join("fetching")
    }

    pub fn mirrors(&self) -> PathBuf {
        self.root.join("repos")
    }

    pub fn bases(&self) -> PathBuf {
        self.root.join("bases")
    }

    pub fn runs(&self) -> PathBuf {
        self.runs.clone()
    }

    pub fn run(&self, run: Uuid) -> PathBuf {
        self.runs().join(run.simple().to_string())
    }

    pub fn disk(&self) -> PathBuf {
        self.root.join("disk")
    }

    pub fn refusals(&self) -> PathBuf {
        self.root.join("refusals")
    }

    pub fn models(&self) -> PathBuf {
        self.root.join("model")
    }

    /// The name that the gateway knows it by, too.
    pub fn model(&self, run: Uuid) -> PathBuf {
        self.models().join(run.to_string())
    }

    /// The name comes from the database, whose other writers are not trusted with paths: it is checked again.
    pub fn mirror(&self, repository: &str) -> Result<PathBuf, InvalidName> {
        let name: Name = repository.parse()?;
        Ok(self.mirrors().join(format!("{name}.git")))
    }
}

/// Writes a file under another name first, so that it is there whole or not at all.
pub(super) fn write_whole(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    let parent = path.parent().ok_or(io::ErrorKind::InvalidInput)?;
    let mut file = tempfile::NamedTempFile::new_in(parent)?;
    file.write_all(bytes)?;
    file.as_file().set_permissions(fs::Permissions::from_mode(mode))?;
    file.as_file().sync_all()?;
    file.persist(path).map_err(|error| error.error)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_from_the_database_cannot_lead_out_of_the_folder() {
        let folder = tempfile::tempdir().expect("a folder");
        let folders = Folders::open(folder.path()).expect("opens");
        let inside = folders.mirror("demo.v2").expect("a plain name");
        assert!(inside.starts_with(folder.path()) && inside.ends_with("repos/demo.v2.git"), "{inside:?}");
        for name in ["", ".", "..", "../x", "a/b", "/etc", "a..b", "a\0b", ".hidden", "A"] {
            assert!(folders.mirror(name).is_err(), "{name:?}");
        }
    }
}
