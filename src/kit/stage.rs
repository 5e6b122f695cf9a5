//! What all attempts of a check share.

use std::fs::{self, File};
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};
use tempfile::TempDir;
use uuid::Uuid;

use crate::domain::limits::Limits;
use crate::image::manifest::Manifest;
use crate::kit::error::KitError;
use crate::kit::tree::{self, Entry};
use crate::sandbox::engine::Engine;
use crate::sandbox::image_check::ImageFacts;
use crate::sandbox::profile::{KIT_INSTANCE, WORKSPACE};
use crate::sandbox::refusals::listener::Refusals;
use crate::sandbox::remap::Users;
use crate::sandbox::seccomp::SeccompProfile;
use crate::sandbox::spec::SandboxUser;

/// A user that no image knows by name.
pub const FOREIGN_UID: u32 = 54_321;

pub struct Stage {
    /// In the labels of its containers, so that no runner and no other check takes them for its own.
    pub instance: String,
    pub engine: Engine,
    pub seccomp: SeccompProfile,
    pub refusals: Refusals,
    pub manifest: Manifest,
    pub image: ImageFacts,
    pub limits: Limits,
    pub runtime: Option<String>,
    /// The user of a runner's sandboxes.
    pub user: SandboxUser,
    users: Users,
    pub shim: PathBuf,
    /// Where each attempt's output, events and requests are kept.
    pub keep: Option<PathBuf>,
    /// Where the attempts' folders are; the engine finds it under the same path.
    root: TempDir,
    /// Never read. While it is held, no sweep takes the folder, or containers of this instance, for a dead check's.
    _lock: File,
}

/// What a stage is made of.
pub struct Props {
    pub engine: Engine,
    pub manifest: Manifest,
    pub image: ImageFacts,
    pub limits: Limits,
    pub runtime: Option<String>,
    pub user: SandboxUser,
    /// What the engine does with users.
    pub users: Users,
    /// The static `kage-shim`.
    pub shim: PathBuf,
    /// Folders are made below this one.
    pub folder: PathBuf,
    /// Where each attempt's output, events and requests are kept, if at all.
    pub keep: Option<PathBuf>,
}

impl Stage {
    /// Must be called within a runtime.
    ///
    /// # Errors
    /// [`KitError::File`]: no folder can be made there, or the shim is not to be found.
    pub fn set(props: Props) -> Result<Self, KitError> {
        if let Some(folder) = &props.keep {
            fs::create_dir_all(folder).map_err(KitError::file(folder))?;
        }
        let instance = format!("{KIT_INSTANCE}-{}", Uuid::new_v4().simple());
        let root = tempfile::Builder::new().prefix(&format!("{instance}.")).tempdir_in(&props.folder);
        let root = root.map_err(KitError::file(&props.folder))?;
        let lock = File::open(root.path()).map_err(KitError::file(root.path()))?;
        flock(&lock, FlockOperation::NonBlockingLockExclusive)
            .map_err(|errno| KitError::file(root.path())(errno.into()))?;
        let shim = root.path().join("kage-shim");
        fs::copy(&props.shim, &shim).map_err(KitError::file(&props.shim))?;
        fs::set_permissions(&shim, fs::Permissions::from_mode(0o555)).map_err(KitError::file(&shim))?;
        let folder = root.path().join("refusals");
        Ok(Self {
            instance,
            engine: props.engine,
            seccomp: SeccompProfile::built_in(),
            refusals: Refusals::listen(&folder).map_err(KitError::file(&folder))?,
            manifest: props.manifest,
            image: props.image,
            limits: props.limits,
            runtime: props.runtime,
            user: props.user,
            users: props.users,
            shim,
            keep: props.keep,
            root,
            _lock: lock,
        })
    }

    /// [`FOREIGN_UID`], where we may give files away. None: we are not root.
    pub fn foreign_user(&self) -> Option<SandboxUser> {
        let user = SandboxUser::new(FOREIGN_UID, FOREIGN_UID)?.of_engine(self.users);
        user.filter(|_| rustix::process::geteuid().is_root())
    }

    /// Folders for one attempt, with a small repository as its worktree.
    ///
    /// # Errors
    /// [`KitError::File`], [`KitError::Repository`].
    pub fn folders(&self, user: SandboxUser) -> Result<Folders, KitError> {
        let root = tempfile::tempdir_in(self.root.path()).map_err(KitError::file(self.root.path()))?;
        let folders = Folders {
            workspace: root.path().join("w"),
            io_dir: root.path().join("io"),
            model_dir: root.path().join("m"),
            before: Vec::new(),
            _root: root,
        };
        for folder in [&folders.workspace, &folders.model_dir] {
            fs::create_dir(folder).map_err(KitError::file(folder))?;
            fs::set_permissions(folder, fs::Permissions::from_mode(0o755)).map_err(KitError::file(folder))?;
        }
        make_repository(&folders.workspace)?;
        if rustix::process::geteuid().is_root() {
            give_away(&folders.workspace, user).map_err(KitError::file(&folders.workspace))?;
        }
        let before =
            tree::walk(&folders.workspace, WORKSPACE, ".git").map_err(KitError::file(&folders.workspace))?;
        Ok(Folders { before, ..folders })
    }
}

/// Removed when dropped.
pub struct Folders {
    pub workspace: PathBuf,
    pub io_dir: PathBuf,
    /// Where the model's socket is.
    pub model_dir: PathBuf,
    /// The worktree's files as they were.
    pub before: Vec<Entry>,
    _root: TempDir,
}

fn make_repository(folder: &Path) -> Result<(), KitError> {
    for (name, text) in
        [("README.md", "# A small project\n\nNothing to see here.\n"), ("greeting.txt", "good morning\n")]
    {
        let path = folder.join(name);
        fs::write(&path, text).map_err(KitError::file(&path))?;
    }
    let repository = git2::Repository::init(folder)?;
    let mut index = repository.index()?;
    index.add_all(["*"], git2::IndexAddOption::DEFAULT, None)?;
    index.write()?;
    let tree = repository.find_tree(index.write_tree()?)?;
    let author = git2::Signature::new("Kit", "kit@localhost", &git2::Time::new(1_767_225_600, 0))?;
    repository.commit(Some("HEAD"), &author, &author, "A small project", &tree, &[])?;
    Ok(())
}

/// Only of what we have just made ourselves.
fn give_away(path: &Path, user: SandboxUser) -> std::io::Result<()> {
    if fs::symlink_metadata(path)?.is_dir() {
        for entry in fs::read_dir(path)? {
            give_away(&entry?.path(), user)?;
        }
    }
    let (uid, gid) = user.on_host();
    chown(path, Some(uid), Some(gid))
}
