//! overlayfs: mounting a run's layer, and reading the kernel's own notes in it.

use std::{
    ffi::{CString, OsStr},
    fs,
    os::{fd::AsFd, unix::ffi::OsStrExt},
    path::{Path, PathBuf},
    thread::sleep,
    time::Duration,
};

use rustix::{
    fs::{AtFlags, CWD, StatxAttributes, StatxFlags, XattrFlags, fgetxattr, setxattr, statx},
    io::Errno,
    mount::{MountFlags, UnmountFlags, mount, unmount},
};

use crate::git::error::GitError;

const OPAQUE: &str = "trusted.overlay.opaque";
const REDIRECT: &str = "trusted.overlay.redirect";
const METACOPY: &str = "trusted.overlay.metacopy";
/// Written on the layer when it is made. Reading it back at harvest proves that we are allowed to see
/// the kernel's notes; without that right they look absent, and deleted files would seem to be there.
const PROOF: &str = "trusted.kage.layer";
/// More than any accident leaves over one another.
const MOST_LAYERS: usize = 64;

/// Mounts `merged` = `upper` over `lower`.
///
/// - `redirect_dir=on`: rename(2) of a folder that came from the base works as in an ordinary folder.
/// - `metacopy=off`: a file in the upper layer always has its content.
/// - `volatile`: nothing of a run is flushed to disk for durability; a run does not survive a restart of
///   the machine, and what is harvested is flushed in the mirror.
pub(crate) fn mount_layer(lower: &Path, upper: &Path, work: &Path, merged: &Path) -> Result<(), GitError> {
    let mut options = String::new();
    for (name, path) in [("lowerdir=", lower), (",upperdir=", upper), (",workdir=", work)] {
        options.push_str(name);
        options.push_str(plain(path)?);
    }
    options.push_str(",redirect_dir=on,metacopy=off,index=off,nfs_export=off,xino=auto,volatile");
    let options = CString::new(options).map_err(|_| GitError::PathRefused(lower.to_owned()))?;
    setxattr(upper, PROOF, b"1", XattrFlags::empty()).map_err(GitError::io("mark", upper))?;
    let flags = MountFlags::NOSUID | MountFlags::NODEV;
    mount("kage", merged, "overlay", flags, options.as_c_str()).map_err(GitError::io("mount", merged))
}

/// Unmounts `merged`; one that is not mounted is left. Waits a little for a container that is just
/// going away.
pub(crate) fn unmount_layer(merged: &Path) -> Result<(), GitError> {
    // Asked first: who may not mount is refused before the kernel looks whether anything is mounted.
    if !is_mounted(merged)? {
        return Ok(());
    }
    for _ in 0..200 {
        match unmount(merged, UnmountFlags::NOFOLLOW) {
            Ok(()) | Err(Errno::INVAL | Errno::NOENT) => return Ok(()),
            Err(Errno::BUSY) => sleep(Duration::from_millis(10)),
            Err(error) => return Err(GitError::io("unmount", merged)(error)),
        }
    }
    Err(GitError::WorktreeBusy(merged.to_owned()))
}

/// Takes `merged` out of sight at once, whoever still uses it; for throwing a run away. Where a process was killed between
/// a mount and its record, another one may lie over it: all go.
pub(crate) fn detach_layer(merged: &Path) -> Result<(), GitError> {
    for _ in 0..MOST_LAYERS {
        if !is_mounted(merged)? {
            return Ok(());
        }
        match unmount(merged, UnmountFlags::NOFOLLOW | UnmountFlags::DETACH) {
            Ok(()) => {}
            Err(Errno::INVAL | Errno::NOENT) => return Ok(()),
            Err(error) => return Err(GitError::io("unmount", merged)(error)),
        }
    }
    Err(GitError::WorktreeBusy(merged.to_owned()))
}

/// What is mounted beneath a folder of ours, in any order. Our paths have nothing that the kernel's table would escape.
pub(crate) fn mounts_below(folder: &Path) -> Result<Vec<PathBuf>, GitError> {
    let table = Path::new("/proc/self/mountinfo");
    let text = fs::read(table).map_err(GitError::io("read", table))?;
    let folder = fs::canonicalize(folder).map_err(GitError::io("open", folder))?;
    let points = text.split(|byte| *byte == b'\n').filter_map(|line| line.split(|byte| *byte == b' ').nth(4));
    let points = points.map(|point| PathBuf::from(OsStr::from_bytes(point)));
    Ok(points.filter(|point| *point != folder && point.starts_with(&folder)).collect())
}

pub(crate) fn is_mounted(merged: &Path) -> Result<bool, GitError> {
    match statx(CWD, merged, AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT, StatxFlags::TYPE) {
        Ok(stat) => Ok(stat.stx_attributes.contains(StatxAttributes::MOUNT_ROOT)),
        Err(Errno::NOENT) => Ok(false),
        Err(error) => Err(GitError::io("stat", merged)(error)),
    }
}

/// Whether we may read the kernel's notes in the layer `upper`.
pub(crate) fn can_read_notes(upper: impl AsFd) -> bool {
    matches!(note(upper, PROOF), Ok(Some(value)) if value == b"1")
}

/// What the kernel noted on a folder of an upper layer.
#[derive(Debug, Default)]
pub(crate) struct FolderNotes {
    /// Nothing of the base shows through.
    pub opaque: bool,
    /// The base folder that shows through: from the root if it begins with `/`, else a name beside
    /// this folder's own origin.
    pub redirect: Option<Vec<u8>>,
}

impl FolderNotes {
    pub fn read(folder: impl AsFd) -> Result<FolderNotes, NotesError> {
        let opaque = match note(&folder, OPAQUE)?.as_deref() {
            None | Some(b"n") => false,
            Some(b"y") => true,
            Some(_) => return Err(NotesError::Unknown("an opaque mark that we do not know")),
        };
        Ok(FolderNotes { opaque, redirect: note(&folder, REDIRECT)? })
    }
}

/// Whether a file of the upper layer lacks its content. We never mount so; found, it is an error.
pub(crate) fn lacks_content(file: impl AsFd) -> Result<bool, Errno> {
    Ok(note(file, METACOPY)?.is_some())
}

#[derive(Debug)]
pub(crate) enum NotesError {
    Unknown(&'static str),
    Io(Errno),
}

impl From<Errno> for NotesError {
    fn from(error: Errno) -> Self {
        NotesError::Io(error)
    }
}

fn note(file: impl AsFd, name: &str) -> Result<Option<Vec<u8>>, Errno> {
    let mut value = vec![0; 4096];
    match fgetxattr(file, name, &mut value[..]) {
        Ok(length) => {
            value.truncate(length);
            Ok(Some(value))
        }
        Err(Errno::NODATA) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Overlay's options have their own meaning for `:`, `,`, `\` and spaces; ours never need them.
fn plain(path: &Path) -> Result<&str, GitError> {
    let plain = |path: &&str| {
        path.starts_with('/')
            && path
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'/' | b'_' | b'-' | b'.'))
    };
    path.to_str().filter(plain).ok_or_else(|| GitError::PathRefused(path.to_owned()))
}
