//! One run's worktree: a copy-on-write layer over a base, or a plain copy of it.
//!
//! ```text
//! <run folder>/base     which base it stands on; written before the base is used
//! <run folder>/mode     overlay or copy; written when the worktree is complete
//! <run folder>/merged   what the sandbox sees
//! <run folder>/upper    overlay: what the run changed
//! <run folder>/work     overlay: the kernel's own
//! <run folder>/disk     a file system of the run's own, if one is mounted there: then `upper` and `work`, or the
//!                       copy's `merged`, are in it
//! ```

use std::{
    fs::{self, DirBuilder},
    io,
    os::unix::fs::{DirBuilderExt, chown},
    path::{Path, PathBuf},
};

use bstr::BString;
use git2::Oid;

use crate::git::{
    base::{Base, REFERENCE},
    checkout::open_folder,
    copy::copy_base,
    dirfd,
    error::GitError,
    overlay,
};

const MODE: &str = "mode";
/// Where a file system of the run's own is mounted, if it has one.
pub const DISK: &str = "disk";

/// How a worktree is asked for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Mode {
    Overlay,
    Copy,
    /// Overlay where it can be mounted, else a copy.
    Auto,
}

/// How a worktree is made.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Layer {
    Overlay,
    Copy,
}

/// The worktree of one run. Dropping it removes nothing; [`Worktree::open`] finds it again.
#[derive(Debug)]
pub struct Worktree {
    run: PathBuf,
    /// In a file system of its own ([`DISK`]).
    apart: bool,
    layer: Layer,
    base: PathBuf,
    commit: Option<Oid>,
    /// Paths of the commit that the base does not have.
    hidden: Vec<BString>,
    owner: Option<(u32, u32)>,
    /// Overlay layers are not flushed: they are void once the machine was restarted.
    stale: bool,
    /// Why `Auto` took a copy.
    fallback: Option<String>,
}

impl Worktree {
    /// Makes a worktree in `run`, which is created if need be; what an earlier one left there is removed. Where a file
    /// system is mounted at [`DISK`] in it, all that the run writes goes there.
    pub fn create(run: &Path, base: &Base, mode: Mode) -> Result<Worktree, GitError> {
        DirBuilder::new().recursive(true).mode(0o700).create(run).map_err(GitError::io("make", run))?;
        let run = fs::canonicalize(run).map_err(GitError::io("open", run))?;
        let mut worktree = Worktree {
            apart: overlay::is_mounted(&run.join(DISK))?,
            run,
            layer: Layer::Overlay,
            base: base.path.clone(),
            commit: base.commit,
            hidden: base.hidden.clone(),
            owner: base.owner,
            stale: false,
            fallback: None,
        };
        worktree.clear()?;
        worktree.write_reference(base)?;
        if mode != Mode::Copy {
            match worktree.lay_overlay() {
                Ok(()) => return worktree.finished(),
                Err(error) if mode == Mode::Auto => {
                    worktree.fallback = Some(error.to_string());
                    worktree.clear_layers()?;
                }
                Err(error) => {
                    let _ = worktree.remove();
                    return Err(error);
                }
            }
        }
        worktree.layer = Layer::Copy;
        worktree.lay_copy()?;
        worktree.finished()
    }

    /// The worktree in `run`, as an earlier process left it; `None` if there is none or if it was never
    /// finished.
    pub fn open(run: &Path) -> Result<Option<Worktree>, GitError> {
        let Some(mode) = read(&run.join(MODE))? else { return Ok(None) };
        let Some(reference) = read(&run.join(REFERENCE))? else { return Ok(None) };
        let broken =
            |reason: &str| GitError::NotAWorktree { path: run.to_owned(), reason: reason.to_owned() };
        let mut lines = mode.lines();
        let layer = match lines.next() {
            Some("overlay") => Layer::Overlay,
            Some("copy") => Layer::Copy,
            _ => return Err(broken("its mode is not one of ours")),
        };
        let booted = lines.next().ok_or_else(|| broken("its mode is cut off"))?;
        let apart = lines.next() == Some(DISK);
        let mut lines = reference.lines().skip(1);
        let commit = match lines.next() {
            Some("none") => None,
            Some(id) => Some(Oid::from_str(id)?),
            None => return Err(broken("the base's commit is missing")),
        };
        let owner = match lines.next().map(|line| line.split_once(':')) {
            Some(Some((uid, gid))) => match (uid.parse(), gid.parse()) {
                (Ok(uid), Ok(gid)) => Some((uid, gid)),
                _ => return Err(broken("the owner is not a pair of numbers")),
            },
            Some(None) => None,
            None => return Err(broken("the owner is missing")),
        };
        let base = lines.next().map(PathBuf::from).ok_or_else(|| broken("the base's path is missing"))?;
        let path =
            |line| hex::decode(line).map(BString::from).map_err(|_| broken("a hidden path is not one"));
        let hidden = lines.map(path).collect::<Result<_, _>>()?;
        Ok(Some(Worktree {
            run: fs::canonicalize(run).map_err(GitError::io("open", run))?,
            apart,
            layer,
            base,
            commit,
            hidden,
            owner,
            stale: layer == Layer::Overlay && booted != boot_id()?,
            fallback: None,
        }))
    }

    /// What is mounted into the sandbox.
    pub fn path(&self) -> PathBuf {
        match self.layer {
            Layer::Overlay => self.run.join("merged"),
            Layer::Copy => self.layers().join("merged"),
        }
    }

    /// Whether it is in a file system of its own, which holds it within its limits.
    pub fn is_apart(&self) -> bool {
        self.apart
    }

    /// The folder that grows with what the run writes.
    pub fn grows(&self) -> PathBuf {
        self.harvest_path()
    }

    pub fn layer(&self) -> Layer {
        self.layer
    }

    /// Why a copy was made although an overlay was wanted, if so.
    pub fn fallback(&self) -> Option<&str> {
        self.fallback.as_deref()
    }

    /// The commit that the run started from; `None`: a repository without commits.
    pub fn commit(&self) -> Option<Oid> {
        self.commit
    }

    /// Whether the machine was restarted since: then nothing can be harvested, only reset.
    pub fn is_stale(&self) -> bool {
        self.stale
    }

    /// Back to the base, for another attempt. The container of the last one must be gone.
    pub fn reset(&mut self) -> Result<(), GitError> {
        remove_file(&self.run.join(MODE))?;
        self.clear_layers()?;
        match self.layer {
            Layer::Overlay => self.lay_overlay()?,
            Layer::Copy => self.lay_copy()?,
        }
        self.stale = false;
        self.write_mode()
    }

    /// Takes the layer off, which is what a harvest needs. The container must be gone.
    pub fn unmount(&self) -> Result<(), GitError> {
        match self.layer {
            Layer::Overlay => overlay::unmount_layer(&self.path()),
            Layer::Copy => Ok(()),
        }
    }

    pub fn is_mounted(&self) -> Result<bool, GitError> {
        overlay::is_mounted(&self.path())
    }

    /// Removes all that the worktree put into the run's folder; a second call does nothing.
    pub fn remove(&self) -> Result<(), GitError> {
        self.clear()
    }

    /// Paths of the commit that the run did not see; none is below another.
    pub fn hidden(&self) -> &[BString] {
        &self.hidden
    }

    pub(crate) fn base_path(&self) -> &Path {
        &self.base
    }

    /// The folder to harvest: what the run changed, or all that it has.
    pub(crate) fn harvest_path(&self) -> PathBuf {
        match self.layer {
            Layer::Overlay => self.layers().join("upper"),
            Layer::Copy => self.path(),
        }
    }

    fn layers(&self) -> PathBuf {
        if self.apart { self.run.join(DISK) } else { self.run.clone() }
    }

    fn clear(&self) -> Result<(), GitError> {
        remove_file(&self.run.join(MODE))?;
        self.clear_layers()?;
        remove_file(&unfinished(&self.run, MODE))?;
        remove_file(&unfinished(&self.run, REFERENCE))?;
        // Last: as long as it is there, the base is kept.
        remove_file(&self.run.join(REFERENCE))
    }

    fn clear_layers(&self) -> Result<(), GitError> {
        overlay::detach_layer(&self.run.join("merged"))?;
        for folder in [self.run.clone(), self.layers()] {
            let opened = open_folder(&folder)?;
            for name in ["merged", "upper", "work"] {
                dirfd::remove_tree(&opened, name.as_bytes())
                    .map_err(GitError::io("remove", &folder.join(name)))?;
            }
        }
        Ok(())
    }

    fn lay_overlay(&self) -> Result<(), GitError> {
        let layers = self.layers();
        let (upper, work, merged) = (layers.join("upper"), layers.join("work"), self.path());
        for folder in [&work, &merged] {
            DirBuilder::new().mode(0o700).create(folder).map_err(GitError::io("make", folder))?;
        }
        self.make_root(&upper)?;
        overlay::mount_layer(&self.base, &upper, &work, &merged)
    }

    fn lay_copy(&self) -> Result<(), GitError> {
        self.make_root(&self.path())?;
        copy_base(&self.base, &self.path())
    }

    /// The folder that is the worktree's root in the sandbox, which its user must be able to write to.
    fn make_root(&self, path: &Path) -> Result<(), GitError> {
        fs::create_dir(path).map_err(GitError::io("make", path))?;
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        fs::set_permissions(path, mode).map_err(GitError::io("open up", path))?;
        match self.owner {
            Some((uid, gid)) => chown(path, Some(uid), Some(gid)).map_err(GitError::io("give away", path)),
            None => Ok(()),
        }
    }

    fn write_reference(&self, base: &Base) -> Result<(), GitError> {
        let commit = base.commit.map_or("none".to_owned(), |id| id.to_string());
        let owner = base.owner.map_or("own".to_owned(), |(uid, gid)| format!("{uid}:{gid}"));
        let path = base.path.to_str().ok_or_else(|| GitError::PathRefused(base.path.clone()))?;
        let hidden: String = base.hidden.iter().map(|path| format!("{}\n", hex::encode(path))).collect();
        let text = format!("{}\n{commit}\n{owner}\n{path}\n{hidden}", base.key);
        write_whole(&self.run, REFERENCE, &text)
    }

    fn write_mode(&self) -> Result<(), GitError> {
        let layer = match self.layer {
            Layer::Overlay => "overlay",
            Layer::Copy => "copy",
        };
        let apart = if self.apart { DISK } else { "" };
        write_whole(&self.run, MODE, &format!("{layer}\n{}\n{apart}\n", boot_id()?))
    }

    fn finished(self) -> Result<Worktree, GitError> {
        self.write_mode()?;
        Ok(self)
    }
}

/// Changes with every start of the machine.
fn boot_id() -> Result<String, GitError> {
    let path = Path::new("/proc/sys/kernel/random/boot_id");
    fs::read_to_string(path).map(|id| id.trim().to_owned()).map_err(GitError::io("read", path))
}

/// Writes a file whole or not at all. What a killed writer leaves has a fixed name, so that it is found.
fn write_whole(folder: &Path, name: &str, text: &str) -> Result<(), GitError> {
    let (unfinished, target) = (unfinished(folder, name), folder.join(name));
    fs::write(&unfinished, text).map_err(GitError::io("write", &unfinished))?;
    fs::rename(&unfinished, &target).map_err(GitError::io("write", &target))
}

fn unfinished(folder: &Path, name: &str) -> PathBuf {
    folder.join(format!("{name}.new"))
}

fn read(path: &Path) -> Result<Option<String>, GitError> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(GitError::io("read", path)(error)),
    }
}

fn remove_file(path: &Path) -> Result<(), GitError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(GitError::io("remove", path)(error)),
        _ => Ok(()),
    }
}

/// Takes all that is mounted in a run's folder out of sight, whoever still uses it.
pub fn detach(run: &Path) -> Result<(), GitError> {
    overlay::detach_layer(&run.join("merged"))?;
    overlay::detach_layer(&run.join(DISK))
}

/// Removes a run's folder whatever state it is in, with the worktree that is or was half made there.
/// Nothing may use it any more; a second call does nothing.
///
/// # Errors
/// [`GitError::MountOfOthers`]: something is mounted there that no worktree mounts; then nothing was touched.
pub fn discard(run: &Path) -> Result<(), GitError> {
    let (Some(parent), Some(name)) = (run.parent(), run.file_name()) else { return Ok(()) };
    if !run.exists() {
        return Ok(());
    }
    let ours = ["merged", DISK].map(|name| run.join(name));
    if let Some(other) = overlay::mounts_below(run)?.into_iter().find(|point| !ours.contains(point)) {
        return Err(GitError::MountOfOthers(other));
    }
    detach(run)?;
    let parent = open_folder(parent)?;
    dirfd::remove_tree(&parent, name.as_encoded_bytes()).map_err(GitError::io("remove", run))
}
