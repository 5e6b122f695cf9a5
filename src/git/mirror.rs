//! Our own bare copy of a registered repository.
//!
//! Upstream's branches and tags live under `refs/upstream/`, results under `refs/heads/task-…`, so
//! neither can ever take the other's name.

use std::{
    collections::BTreeMap,
    ffi::OsString,
    fmt,
    fs::{self, DirBuilder},
    io,
    ops::Deref,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
    process::Stdio,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use bstr::BString;
use git2::{ErrorCode, Oid, Reference, Repository, RepositoryOpenFlags};

use crate::git::{error::GitError, lock::FileLock, source::Source, staging::Staging};

pub(crate) const HEADS: &str = "refs/upstream/heads/";
pub(crate) const TAGS: &str = "refs/upstream/tags/";
/// Names upstream's default branch. Our own HEAD names none, so that git never takes one for checked out.
const DEFAULT: &str = "refs/upstream/HEAD";
const MAX_REVISION: usize = 255;

/// `fsyncObjectFiles` is libgit2's name for it: a result that we report must survive a power cut.
const CONFIG: &str = "[core]\n\trepositoryformatversion = 0\n\tbare = true\n\tfilemode = true\n\
    \thooksPath = /dev/null\n\tlogAllRefUpdates = false\n\tfsyncObjectFiles = true\n\
    \tprotectHFS = true\n\tprotectNTFS = true\n[gc]\n\tauto = 0\n[maintenance]\n\tauto = false\n\
    [transfer]\n\tfsckObjects = true\n[kage]\n\tmirror = 1\n";

const FETCH: [&str; 10] = [
    "fetch",
    "--quiet",
    "--force",
    "--prune",
    "--no-tags",
    "--no-write-fetch-head",
    "--no-recurse-submodules",
    "--no-auto-maintenance",
    "--update-shallow",
    "--",
];
const REFSPECS: [&str; 2] = ["+refs/heads/*:refs/upstream/heads/*", "+refs/tags/*:refs/upstream/tags/*"];

/// Bounds of one fetch.
#[derive(Clone, Copy, Debug)]
pub struct FetchLimits {
    /// Wall-clock time.
    pub time: Duration,
    /// Bytes that the mirror's objects may take on disk.
    pub bytes: u64,
}

/// A bare repository that only we write. Cheap to clone.
#[derive(Clone)]
pub struct Mirror {
    path: PathBuf,
    /// Opened and not in use: opening reads configuration, refs and pack indexes, which costs milliseconds.
    idle: Arc<Mutex<Option<Repository>>>,
}

/// The mirror's repository, for one caller at a time: git2's is not for several threads.
pub(crate) struct Lent<'m> {
    /// Taken by the drop alone.
    repository: Option<Repository>,
    idle: &'m Mutex<Option<Repository>>,
}

impl Deref for Lent<'_> {
    type Target = Repository;

    fn deref(&self) -> &Repository {
        self.repository.as_ref().expect("only the drop takes it")
    }
}

impl Drop for Lent<'_> {
    fn drop(&mut self) {
        *self.idle.lock().unwrap_or_else(PoisonError::into_inner) = self.repository.take();
    }
}

impl fmt::Debug for Mirror {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Mirror").field("path", &self.path).finish_non_exhaustive()
    }
}

impl Mirror {
    /// Makes the mirror at `path`, whole or not at all; one that is there is opened.
    pub fn create(path: &Path) -> Result<Mirror, GitError> {
        let parent =
            path.parent().ok_or(GitError::NotAMirror { path: path.into(), reason: "no parent folder" })?;
        fs::create_dir_all(parent).map_err(GitError::io("make", parent))?;
        if !path.exists() {
            let temporary = tempfile::Builder::new()
                .prefix(".mirror-")
                .tempdir_in(parent)
                .map_err(GitError::io("make a folder in", parent))?;
            write_skeleton(temporary.path())?;
            match fs::rename(temporary.path(), path) {
                Ok(()) => {}
                // Somebody else made it first.
                Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => {}
                Err(error) => return Err(GitError::io("make", path)(error)),
            }
        }
        Mirror::open(path)
    }

    pub fn open(path: &Path) -> Result<Mirror, GitError> {
        let path = fs::canonicalize(path).map_err(GitError::io("open", path))?;
        let mirror = Mirror { path, idle: Arc::default() };
        if mirror.repository()?.config()?.get_i32("kage.mirror").ok() != Some(1) {
            return Err(GitError::NotAMirror { path: mirror.path, reason: "it was not made by us" });
        }
        Ok(mirror)
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn repository(&self) -> Result<Lent<'_>, GitError> {
        let idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner).take();
        let repository = match idle {
            Some(repository) => repository,
            None => self.open_repository()?,
        };
        Ok(Lent { repository: Some(repository), idle: &self.idle })
    }

    fn open_repository(&self) -> Result<Repository, GitError> {
        let flags =
            RepositoryOpenFlags::NO_SEARCH | RepositoryOpenFlags::BARE | RepositoryOpenFlags::NO_DOTGIT;
        Ok(Repository::open_ext(&self.path, flags, std::iter::empty::<OsString>())?)
    }

    /// Brings all branches and tags of `source` here, and drops those that it no longer has. Which sources are allowed
    /// is the caller's decision. Git works in a repository of its own ([`crate::git::staging`]), as
    /// the source's user.
    pub fn fetch<'s>(&self, source: impl Into<Source<'s>>, limits: &FetchLimits) -> Result<(), GitError> {
        let source = source.into();
        let checked = source.check()?;
        let lock = FileLock::exclusive_within(&self.path.join("kage-fetch.lock"), limits.time)?;
        self.sweep()?;
        // Git inherits the lock: if we die, the next fetch waits for the orphan.
        let inherited =
            || lock.file().try_clone().map(Stdio::from).map_err(GitError::io("clone", &self.path));
        let folder = source.staging.or(self.path.parent()).unwrap_or(&self.path);
        let staging = Staging::make(self, folder, source.user, &checked, limits)?;
        let fetched = (|| {
            let fetch = staging.command(
                "git fetch",
                &[FETCH.as_slice(), &[source.url], &REFSPECS].concat(),
                inherited()?,
            );
            let objects = staging.objects();
            let check = || match folder_bytes(&objects) {
                seen if seen > limits.bytes => {
                    Err(GitError::TooLarge { what: "git fetch", limit: limits.bytes, seen })
                }
                _ => Ok(()),
            };
            // What is too large may have ended git first.
            let ran = fetch.run(0, check);
            check()?;
            ran?;
            let args = ["ls-remote", "--quiet", "--symref", "--", source.url, "HEAD"];
            let head = staging.command("git ls-remote", &args, inherited()?).run(1 << 20, || Ok(()))?;
            staging.take_over()?;
            self.store_default_branch(&head)
        })();
        if fetched.is_err() {
            self.sweep()?;
        }
        let removed = staging.remove();
        fetched.and(removed)
    }

    /// Upstream's branches and tags under our names, with the very objects that they name.
    pub(crate) fn upstream_refs(&self) -> Result<BTreeMap<String, Oid>, GitError> {
        let repository = self.repository()?;
        let mut refs = BTreeMap::new();
        for space in [HEADS, TAGS] {
            for reference in repository.references_glob(&format!("{space}*"))? {
                let reference = reference?;
                if let (Ok(name), Some(id)) = (reference.name(), reference.target()) {
                    refs.insert(name.to_owned(), id);
                }
            }
        }
        Ok(refs)
    }

    /// Whether upstream has no branch and no tag yet.
    pub fn is_empty(&self) -> Result<bool, GitError> {
        let repository = self.repository()?;
        for space in [HEADS, TAGS] {
            if repository.references_glob(&format!("{space}*"))?.next().is_some() {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// The branch that upstream's HEAD names; `None` while upstream is empty or when it cannot be told.
    pub fn default_branch(&self) -> Result<Option<String>, GitError> {
        let repository = self.repository()?;
        let Some(reference) = found(repository.find_reference(DEFAULT))? else { return Ok(None) };
        Ok(reference.symbolic_target()?.and_then(|target| target.strip_prefix(HEADS)).map(str::to_owned))
    }

    /// Upstream's branches (`heads/main`) and tags (`tags/v1`) with the commits that they stand for.
    pub fn refs(&self) -> Result<Vec<(BString, Oid)>, GitError> {
        let repository = self.repository()?;
        let mut refs = Vec::new();
        for space in [HEADS, TAGS] {
            for reference in repository.references_glob(&format!("{space}*"))? {
                let reference = reference?;
                let Ok(commit) = reference.peel_to_commit() else { continue };
                let name = reference.name_bytes();
                refs.push((name.strip_prefix(b"refs/upstream/").unwrap_or(name).into(), commit.id()));
            }
        }
        Ok(refs)
    }

    /// The commit that a branch, a tag, a full commit id or an unambiguous beginning of one (four
    /// digits at least) stands for; `None` if there is none. Revision expressions are refused.
    pub fn resolve(&self, revision: &str) -> Result<Option<Oid>, GitError> {
        let acceptable = revision.len() <= MAX_REVISION
            && !revision.starts_with('-')
            && Reference::is_valid_name(&format!("{HEADS}{revision}"));
        if !acceptable {
            return Err(GitError::InvalidRevision(revision.to_owned()));
        }
        let repository = self.repository()?;
        for space in [HEADS, TAGS] {
            if let Some(reference) = found(repository.find_reference(&format!("{space}{revision}")))? {
                return Ok(reference.peel_to_commit().ok().map(|commit| commit.id()));
            }
        }
        if !(4..=40).contains(&revision.len()) || !revision.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Ok(None);
        }
        let prefix = Oid::from_str(revision)?;
        let id = match repository.odb()?.exists_prefix(prefix, revision.len()) {
            Err(error) if error.code() == ErrorCode::Ambiguous => {
                return Err(GitError::AmbiguousRevision(revision.to_owned()));
            }
            other => found(other)?,
        };
        let Some(id) = id else { return Ok(None) };
        let object = repository.find_object(id, None)?;
        Ok(object.peel_to_commit().ok().map(|commit| commit.id()))
    }

    fn store_default_branch(&self, ls_remote: &[u8]) -> Result<(), GitError> {
        let repository = self.repository()?;
        let text = String::from_utf8_lossy(ls_remote);
        let named = text.lines().find_map(|line| {
            line.strip_prefix("ref: refs/heads/")
                .and_then(|rest| rest.strip_suffix("\tHEAD"))
                .map(str::to_owned)
        });
        let commit =
            text.lines().find_map(|line| line.strip_suffix("\tHEAD")).and_then(|id| Oid::from_str(id).ok());
        let branch = match named {
            Some(branch) => Some(branch),
            None => likely_branch(&repository, commit)?,
        };
        match branch.map(|branch| format!("{HEADS}{branch}")) {
            Some(target) if found(repository.find_reference(&target))?.is_some() => {
                repository.reference_symbolic(DEFAULT, &target, true, "")?;
            }
            _ => {
                if let Some(mut stored) = found(repository.find_reference(DEFAULT))? {
                    stored.delete()?;
                }
            }
        }
        Ok(())
    }

    /// Removes what a killed fetch left. Only under the fetch lock.
    fn sweep(&self) -> Result<(), GitError> {
        let pack = self.path.join("objects/pack");
        for entry in fs::read_dir(&pack).map_err(GitError::io("list", &pack))?.flatten() {
            if entry.file_name().to_string_lossy().starts_with("tmp_") {
                let _ = fs::remove_file(entry.path());
            }
        }
        for name in ["shallow.lock", "HEAD.lock", "packed-refs.lock"] {
            let _ = fs::remove_file(self.path.join(name));
        }
        remove_locks(&self.path.join("refs/upstream"));
        Ok(())
    }
}

pub(crate) fn write_skeleton(path: &Path) -> Result<(), GitError> {
    for folder in ["objects/pack", "objects/info", "refs/heads", "refs/tags"] {
        let folder = path.join(folder);
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&folder)
            .map_err(GitError::io("make", &folder))?;
    }
    for (name, text) in [("HEAD", "ref: refs/heads/none\n"), ("config", CONFIG)] {
        let file = path.join(name);
        fs::write(&file, text).map_err(GitError::io("write", &file))?;
    }
    Ok(())
}

/// When upstream's HEAD names no branch: the one that stands where it stands, or the usual names.
fn likely_branch(repository: &Repository, head: Option<Oid>) -> Result<Option<String>, GitError> {
    let mut branches = Vec::new();
    for reference in repository.references_glob(&format!("{HEADS}*"))? {
        let reference = reference?;
        if let (Ok(name), Some(id)) = (reference.name(), reference.target()) {
            branches.push((name.strip_prefix(HEADS).unwrap_or(name).to_owned(), id));
        }
    }
    branches.sort_by_key(|(name, id)| (Some(*id) != head, name != "main", name != "master", name.clone()));
    Ok(branches.into_iter().next().map(|(name, _)| name))
}

fn found<T>(result: Result<T, git2::Error>) -> Result<Option<T>, GitError> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) if error.code() == ErrorCode::NotFound => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Bytes of the files two levels deep, which is all that an object store has.
fn folder_bytes(folder: &Path) -> u64 {
    let files = |folder: &Path| fs::read_dir(folder).into_iter().flatten().flatten().collect::<Vec<_>>();
    files(folder)
        .iter()
        .flat_map(|entry| files(&entry.path()))
        .filter_map(|entry| entry.metadata().ok())
        .map(|metadata| metadata.len())
        .sum()
}

fn remove_locks(folder: &Path) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        match entry.file_type() {
            Ok(kind) if kind.is_dir() => remove_locks(&entry.path()),
            Ok(_) if entry.file_name().to_string_lossy().ends_with(".lock") => {
                let _ = fs::remove_file(entry.path());
            }
            _ => {}
        }
    }
}
