//! Shared checkouts: one per revision and settings, never written again once it is there.
//!
//! A base is made under a temporary name and renamed, so a crash leaves none that is half made. It is in
//! use while its lock is held shared ([`Base`]) or while a run folder names it; the run folder is written
//! under the shared lock, and [`Bases::collect`] looks at the run folders under the exclusive one.
//! Nothing is counted in memory.

use std::{
    fs::{self, DirBuilder, FileTimes},
    io,
    os::unix::fs::{DirBuilderExt, lchown},
    path::{Path, PathBuf},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use bstr::BString;
use git2::{ErrorCode, Oid};
use rustix::process::geteuid;
use sha2::{Digest, Sha256};

use crate::git::{
    checkout::{Checkout, open_folder},
    dirfd,
    error::GitError,
    gitdir::{DEFAULT_BRANCH, GitDir},
    in_flight::InFlight,
    lock::FileLock,
    mirror::Mirror,
    quarantine,
    room::{BasesLimits, Bounds, Removed, Size},
    tree_list::TreeList,
};

/// Part of every key: raise it when a base's content changes, so that old ones are not taken for new.
const FORMAT: &str = "1";
/// The file in a run's folder that names its base.
pub(crate) const REFERENCE: &str = "base";

/// How a base is made. Different settings make different bases.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Generations of history behind the revision that the run may see; 0: all of it.
    pub history_depth: u32,
    /// User and group of the files, which are the sandbox's. `None`: our own. Another than our own
    /// needs root.
    pub owner: Option<(u32, u32)>,
    /// The branch that HEAD names; `None`: "main".
    pub branch: Option<String>,
    /// Paths of the revision that the run must not see, none below another.
    pub hidden: Vec<BString>,
    pub limits: CheckoutLimits,
}

/// Bounds of a checkout.
#[derive(Clone, Copy, Debug)]
pub struct CheckoutLimits {
    pub files: u64,
    /// Bytes of all files together, and of the history beside them.
    pub bytes: u64,
    /// Bytes of one file: so much of files is held in memory.
    pub file_bytes: u64,
    /// Wall-clock time for packing the history.
    pub time: Duration,
}

impl Default for CheckoutLimits {
    fn default() -> Self {
        CheckoutLimits {
            files: 1_000_000,
            bytes: 4 << 30,
            file_bytes: 256 << 20,
            time: Duration::from_secs(600),
        }
    }
}

/// A finished base, kept from collection for as long as this value lives.
#[derive(Debug)]
pub struct Base {
    pub path: PathBuf,
    /// `None`: upstream has no commit yet.
    pub commit: Option<Oid>,
    pub(crate) hidden: Vec<BString>,
    pub(crate) key: String,
    pub(crate) owner: Option<(u32, u32)>,
    _in_use: FileLock,
}

/// The folder with all bases.
#[derive(Clone, Debug)]
pub struct Bases {
    root: PathBuf,
    bounds: Option<Bounds>,
}

impl Bases {
    /// Opens or makes the folder; only we may look into it.
    pub fn open(root: &Path) -> Result<Bases, GitError> {
        DirBuilder::new().recursive(true).mode(0o700).create(root).map_err(GitError::io("make", root))?;
        let root = fs::canonicalize(root).map_err(GitError::io("open", root))?;
        Ok(Bases { root, bounds: None })
    }

    /// Bounds them together. `runs`: the folder with one folder a run, by which is known what is in use.
    pub fn bounded(self, limits: BasesLimits, runs: &Path) -> Bases {
        Bases { bounds: Some(Bounds { limits, runs: runs.to_owned() }), ..self }
    }

    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    pub(crate) fn bounds(&self) -> Option<&Bounds> {
        self.bounds.as_ref()
    }

    /// The checkout of `commit` (`None`: of a repository without commits), made now if it is not there.
    /// Others who want the same one wait for it.
    pub fn acquire(
        &self,
        mirror: &Mirror,
        commit: Option<Oid>,
        settings: &Settings,
    ) -> Result<Base, GitError> {
        if settings.owner.is_some_and(|(uid, _)| uid != geteuid().as_raw()) && !geteuid().is_root() {
            let error =
                io::Error::new(io::ErrorKind::PermissionDenied, "files can be given away by root alone");
            return Err(GitError::io("make", &self.root)(error));
        }
        let key = key(mirror, commit, settings);
        let path = self.root.join(&key);
        loop {
            let in_use = FileLock::shared(&self.lock_path(&key))?;
            if path.exists() {
                let times = FileTimes::new().set_modified(SystemTime::now());
                in_use.file().set_times(times).map_err(GitError::io("touch", &path))?;
                let (hidden, owner) = (settings.hidden.clone(), settings.owner);
                return Ok(Base { path, commit, hidden, key, owner, _in_use: in_use });
            }
            drop(in_use);
            let _making = FileLock::exclusive(&self.lock_path(&key))?;
            if !path.exists() {
                self.make(&key, mirror, commit, settings)?;
            }
        }
    }

    /// Removes the bases that no folder in `runs` names and that nobody has asked for within `idle`;
    /// returns how many, and what they took. `runs` holds one folder a run.
    pub fn collect(&self, runs: &Path, idle: Duration) -> Result<Removed, GitError> {
        let mut removed = Removed::default();
        let root = open_folder(&self.root)?;
        for name in dirfd::names(&root, u64::MAX).map_err(GitError::io("list", &self.root))? {
            let Ok(name) = String::from_utf8(name) else { continue };
            let Some(key) = name.strip_suffix(".lock") else { continue };
            let size = self.size_of(key)?;
            if self.remove_unused(key, runs, idle)? {
                removed.add(size);
            }
        }
        Ok(removed)
    }

    /// Whether there was one, and it is removed now.
    pub(crate) fn remove_unused(&self, key: &str, runs: &Path, idle: Duration) -> Result<bool, GitError> {
        let root = open_folder(&self.root)?;
        let lock_path = self.lock_path(key);
        let Some(lock) = FileLock::try_exclusive(&lock_path)? else { return Ok(false) };
        let asked =
            lock.file().metadata().and_then(|it| it.modified()).map_err(GitError::io("stat", &lock_path))?;
        let unused = asked.elapsed().unwrap_or_default();
        if unused < idle || named_by_a_run(runs, key)? {
            return Ok(false);
        }
        // Under another name first: a base that is half removed must never be found.
        let doomed = temporary_name(key);
        dirfd::remove_tree(&root, doomed.as_bytes()).map_err(GitError::io("remove", &self.root))?;
        let removed = match fs::rename(self.root.join(key), self.root.join(&doomed)) {
            Ok(()) => true,
            Err(error) if error.kind() == io::ErrorKind::NotFound => false,
            Err(error) => return Err(GitError::io("remove", &self.root.join(key))(error)),
        };
        dirfd::remove_tree(&root, doomed.as_bytes()).map_err(GitError::io("remove", &self.root))?;
        fs::remove_file(&lock_path).map_err(GitError::io("remove", &lock_path))?;
        Ok(removed)
    }

    pub(crate) fn lock_path(&self, key: &str) -> PathBuf {
        self.root.join(format!("{key}.lock"))
    }

    /// Makes a base. The caller holds its lock, so the temporary name is ours alone.
    fn make(
        &self,
        key: &str,
        mirror: &Mirror,
        commit: Option<Oid>,
        settings: &Settings,
    ) -> Result<(), GitError> {
        let root = open_folder(&self.root)?;
        let name = temporary_name(key);
        let path = self.root.join(&name);
        dirfd::remove_tree(&root, name.as_bytes()).map_err(GitError::io("remove", &path))?;
        let made = self.fill(key, &path, mirror, commit, settings);
        if made.is_err() {
            let _ = dirfd::remove_tree(&root, name.as_bytes());
        }
        made?;
        let target = self.root.join(key);
        fs::rename(&path, &target).map_err(GitError::io("rename", &target))?;
        rustix::fs::fsync(&root).map_err(GitError::io("flush", &self.root))
    }

    fn fill(
        &self,
        key: &str,
        path: &Path,
        mirror: &Mirror,
        commit: Option<Oid>,
        settings: &Settings,
    ) -> Result<(), GitError> {
        DirBuilder::new().mode(0o755).create(path).map_err(GitError::io("make", path))?;
        if let Some((uid, gid)) = settings.owner {
            lchown(path, Some(uid), Some(gid)).map_err(GitError::io("give away", path))?;
        }
        let root = open_folder(path)?;
        let (mut entries, mut visible, mut size) = (Vec::new(), None, Size::default());
        if let Some(id) = commit {
            let repository = mirror.repository()?;
            let commit = match repository.find_commit(id) {
                Err(error) if error.code() == ErrorCode::NotFound => {
                    return Err(GitError::InvalidRevision(id.to_string()));
                }
                other => other?,
            };
            let mut tree = commit.tree_id();
            if !settings.hidden.is_empty() {
                tree = quarantine::without(&repository, tree, &settings.hidden)?;
                visible = Some(tree);
            }
            let list = TreeList::read(&repository, tree, settings.limits.files)?;
            size = Size::planned(&repository, &list, &settings.limits)?;
            self.make_room(key, size, size)?;
            let checkout = Checkout {
                mirror,
                list: &list,
                root: &root,
                owner: settings.owner,
                mtime: file_time(commit.time().seconds()),
                max_bytes: settings.limits.bytes,
                held: InFlight::new(settings.limits.file_bytes),
            };
            entries = checkout.write()?;
        }
        let git_dir = GitDir {
            mirror,
            commit,
            visible,
            history_depth: settings.history_depth,
            branch: settings.branch.as_deref().unwrap_or(DEFAULT_BRANCH),
            owner: settings.owner,
            time_limit: settings.limits.time,
            watch: &|| self.look_at_reserve(),
        };
        git_dir.write(path, entries)?;
        let size = size.with(Size::of(&path.join(".git"))?);
        let limit = settings.limits.bytes;
        if size.bytes > limit.saturating_add(size.entries * 4096) {
            let what = "the size of all files and their history";
            return Err(GitError::CheckoutLimit { what, limit, seen: size.bytes });
        }
        self.make_room(key, size, Size::default())?;
        // One flush of the file system instead of one a file: all of it must be on disk before the rename.
        rustix::fs::syncfs(&root).map_err(GitError::io("flush", path))
    }
}

/// Git distrusts files that are not older than its index; two seconds are enough for any file system.
fn file_time(commit: i64) -> i64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs() as i64);
    commit.clamp(0, (now - 2).max(0))
}

fn temporary_name(key: &str) -> String {
    format!(".making-{key}")
}

fn key(mirror: &Mirror, commit: Option<Oid>, settings: &Settings) -> String {
    let commit = commit.map_or("none".to_owned(), |id| id.to_string());
    let owner = settings.owner.map_or("own".to_owned(), |(uid, gid)| format!("{uid}:{gid}"));
    let depth = settings.history_depth.to_string();
    let branch = settings.branch.as_deref().unwrap_or(DEFAULT_BRANCH);
    let mut hash = Sha256::new();
    hash.update(mirror.path().as_os_str().as_encoded_bytes());
    for part in [FORMAT, &commit, &depth, &owner, branch] {
        hash.update([0]);
        hash.update(part);
    }
    for path in &settings.hidden {
        hash.update([0]);
        hash.update(&**path);
    }
    hex::encode(&hash.finalize()[..16])
}

fn named_by_a_run(runs: &Path, key: &str) -> Result<bool, GitError> {
    let entries = match fs::read_dir(runs) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        other => other.map_err(GitError::io("list", runs))?,
    };
    for entry in entries {
        let file = entry.map_err(GitError::io("list", runs))?.path().join(REFERENCE);
        match fs::read_to_string(&file) {
            Ok(text) if text.lines().next() == Some(key) => return Ok(true),
            Ok(_) => {}
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {}
            Err(error) => return Err(GitError::io("read", &file)(error)),
        }
    }
    Ok(false)
}
