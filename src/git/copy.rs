//! A plain copy of a base, for hosts that cannot mount overlays.

use std::{
    ffi::OsStr,
    fs::File,
    io,
    os::{fd::OwnedFd, unix::ffi::OsStrExt},
    path::Path,
};

use git2::Index;
use rustix::{
    fs::{self, AtFlags, FileType, Gid, Mode, Stat, Timespec, Timestamps, Uid},
    io::Errno,
};

use crate::git::{
    checkout::{open_folder, set_stat},
    dirfd,
    error::GitError,
    gitdir::write_index,
};

/// Copies `base` into the empty folder `target`: content, modes, times and owners; then tells the
/// copy's git index about the new files.
pub(crate) fn copy_base(base: &Path, target: &Path) -> Result<(), GitError> {
    let from = open_folder(base)?;
    let to = open_folder(target)?;
    let mut copy = Copy { give: rustix::process::geteuid().is_root(), clone: true };
    copy.folder(&from, &to).map_err(GitError::io("copy", base))?;
    let index = target.join(".git/index");
    if !index.exists() {
        return Ok(());
    }
    let mut entries: Vec<_> = Index::open(&index)?.iter().collect();
    for entry in &mut entries {
        set_stat(entry, &dirfd::stat(&to, &entry.path).map_err(GitError::io("stat", target))?);
    }
    let git = dirfd::open_dir(&to, b".git").map_err(GitError::io("open", &index))?;
    let before = dirfd::stat(&git, b"index").map_err(GitError::io("stat", &index))?;
    write_index(&index, entries)?;
    copy.own(&git, OsStr::new("index"), &before).map_err(GitError::io("give away", &index))
}

struct Copy {
    /// Whether we are root and can keep the owners.
    give: bool,
    /// Whether the file system shares blocks between files; unset when it is found not to.
    clone: bool,
}

impl Copy {
    /// Depth is bounded: a base is never deeper than `tree_list` allows.
    fn folder(&mut self, from: &OwnedFd, to: &OwnedFd) -> std::io::Result<()> {
        for name in dirfd::names(from, u64::MAX)? {
            let stat = dirfd::stat(from, &name)?;
            let path = OsStr::from_bytes(&name);
            match dirfd::file_type(&stat) {
                FileType::Directory => {
                    fs::mkdirat(to, path, Mode::RWXU)?;
                    let child = dirfd::open_dir(to, &name)?;
                    self.folder(&dirfd::open_dir(from, &name)?, &child)?;
                    fs::fchmod(&child, Mode::from_raw_mode(stat.st_mode & 0o777))?;
                    self.own(to, path, &stat)?;
                }
                FileType::Symlink => {
                    fs::symlinkat(fs::readlinkat(from, path, Vec::new())?, to, path)?;
                    self.own(to, path, &stat)?;
                }
                FileType::RegularFile => {
                    let target = dirfd::create_file(to, &name, 0o600)?;
                    self.content(&dirfd::open_file(from, &name)?, &target, stat.st_size as u64)?;
                    self.own(to, path, &stat)?;
                    fs::fchmod(&target, Mode::from_raw_mode(stat.st_mode & 0o777))?;
                }
                _ => return Err(Errno::INVAL.into()),
            }
            fs::utimensat(to, path, &times(&stat), AtFlags::SYMLINK_NOFOLLOW)?;
        }
        Ok(())
    }

    fn content(&mut self, from: &OwnedFd, to: &OwnedFd, size: u64) -> std::io::Result<()> {
        if self.clone {
            match fs::ioctl_ficlone(to, from) {
                Ok(()) => return Ok(()),
                Err(_) => self.clone = false,
            }
        }
        // Shared by the kernel where it can; the worktree may be in a file system of its own.
        let (mut source, mut target) = (File::from(from.try_clone()?), File::from(to.try_clone()?));
        match io::copy(&mut source, &mut target)? {
            copied if copied == size => Ok(()),
            _ => Err(Errno::IO.into()),
        }
    }

    fn own(&self, dir: &OwnedFd, name: &OsStr, like: &Stat) -> rustix::io::Result<()> {
        if !self.give {
            return Ok(());
        }
        let (uid, gid) = (Uid::from_raw(like.st_uid), Gid::from_raw(like.st_gid));
        fs::chownat(dir, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)
    }
}

fn times(stat: &Stat) -> Timestamps {
    Timestamps {
        last_access: Timespec { tv_sec: stat.st_atime, tv_nsec: stat.st_atime_nsec as _ },
        last_modification: Timespec { tv_sec: stat.st_mtime, tv_nsec: stat.st_mtime_nsec as _ },
    }
}
