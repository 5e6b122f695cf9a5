//! Folders as descriptors: every step names one entry beneath an open folder and follows no link.

use std::{
    ffi::OsStr,
    io,
    os::{
        fd::{AsFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::Path,
};

use rustix::{
    fs::{self, AtFlags, Dir, FileType, Mode, OFlags, RawMode, ResolveFlags, Stat},
    io::Errno,
};

const DIRECTORY: OFlags =
    OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// Nothing above the folder, no links of any kind, no other mounts.
const INSIDE: ResolveFlags = ResolveFlags::BENEATH
    .union(ResolveFlags::NO_SYMLINKS)
    .union(ResolveFlags::NO_MAGICLINKS)
    .union(ResolveFlags::NO_XDEV);

pub fn open_root(path: &Path) -> rustix::io::Result<OwnedFd> {
    fs::open(path, DIRECTORY, Mode::empty())
}

/// Opens a folder beneath `dir`; `path` may have several components.
pub fn open_dir(dir: impl AsFd, path: &[u8]) -> rustix::io::Result<OwnedFd> {
    retrying(|| fs::openat2(&dir, OsStr::from_bytes(path), DIRECTORY, Mode::empty(), INSIDE))
}

/// Opens whatever is called `name` for reading, without waiting for a FIFO's writer. The caller must
/// look at its type before reading.
pub fn open_file(dir: impl AsFd, name: &[u8]) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    retrying(|| fs::openat2(&dir, OsStr::from_bytes(name), flags, Mode::empty(), INSIDE))
}

/// Makes a new file, in no case an existing one.
pub fn create_file(dir: impl AsFd, name: &[u8], mode: RawMode) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    fs::openat(dir, OsStr::from_bytes(name), flags, Mode::from_raw_mode(mode))
}

pub fn stat(dir: impl AsFd, name: &[u8]) -> rustix::io::Result<Stat> {
    fs::statat(dir, OsStr::from_bytes(name), AtFlags::SYMLINK_NOFOLLOW)
}

pub fn file_type(stat: &Stat) -> FileType {
    FileType::from_raw_mode(stat.st_mode)
}

/// `openat2` answers EAGAIN when a rename anywhere raced with it.
fn retrying(open: impl Fn() -> rustix::io::Result<OwnedFd>) -> rustix::io::Result<OwnedFd> {
    for _ in 0..64 {
        match open() {
            Err(Errno::AGAIN | Errno::INTR) => {}
            other => return other,
        }
    }
    open()
}

/// The names in a folder without `.` and `..`, in the disk's order; stops after `limit` of them.
pub fn names(dir: impl AsFd, limit: u64) -> io::Result<Vec<Vec<u8>>> {
    let mut names = Vec::new();
    let mut entries = Dir::read_from(dir)?;
    while let Some(entry) = entries.read() {
        let entry = entry?;
        match entry.file_name().to_bytes() {
            b"." | b".." => {}
            name => names.push(name.to_vec()),
        }
        if names.len() as u64 >= limit {
            break;
        }
    }
    Ok(names)
}

/// Removes `name` beneath `parent` with all that is in it, whatever its depth: folders are moved up as
/// they are met, so neither the stack nor the descriptors grow with a hostile tree.
pub fn remove_tree(parent: impl AsFd, name: &[u8]) -> io::Result<()> {
    let parent = parent.as_fd();
    let root = match open_dir(parent, name) {
        Ok(root) => root,
        Err(Errno::NOENT) => return Ok(()),
        Err(Errno::NOTDIR | Errno::LOOP) => {
            return Ok(fs::unlinkat(parent, OsStr::from_bytes(name), AtFlags::empty())?);
        }
        Err(error) => return Err(error.into()),
    };
    let mut moved: u64 = 0;
    loop {
        let entries = names(&root, 100_000)?;
        if entries.is_empty() {
            break;
        }
        for entry in entries {
            if unlink_unless_dir(&root, &entry)? {
                continue;
            }
            empty_into(&root, &entry, &mut moved)?;
            fs::unlinkat(&root, OsStr::from_bytes(&entry), AtFlags::REMOVEDIR)?;
        }
    }
    drop(root);
    Ok(fs::unlinkat(parent, OsStr::from_bytes(name), AtFlags::REMOVEDIR)?)
}

/// Removes the files of the folder `name` and moves its folders up into `root`.
fn empty_into(root: &OwnedFd, name: &[u8], moved: &mut u64) -> io::Result<()> {
    let dir = open_closed_dir(root, name)?;
    loop {
        let entries = names(&dir, 100_000)?;
        if entries.is_empty() {
            return Ok(());
        }
        for entry in entries {
            if unlink_unless_dir(&dir, &entry)? {
                continue;
            }
            loop {
                *moved += 1;
                let target = format!(".kage-removed-{moved}");
                let flags = rustix::fs::RenameFlags::NOREPLACE;
                match fs::renameat_with(&dir, OsStr::from_bytes(&entry), root, target.as_str(), flags) {
                    Ok(()) => break,
                    Err(Errno::EXIST) => {}
                    Err(error) => return Err(error.into()),
                }
            }
        }
    }
}

/// Opens a folder of ours that a run has closed to its owner; only needed where we are not root.
fn open_closed_dir(root: &OwnedFd, name: &[u8]) -> rustix::io::Result<OwnedFd> {
    match open_dir(root, name) {
        Err(Errno::ACCESS) if file_type(&stat(root, name)?) == FileType::Directory => {
            fs::chmodat(root, OsStr::from_bytes(name), Mode::RWXU, AtFlags::empty())?;
            open_dir(root, name)
        }
        other => other,
    }
}

fn unlink_unless_dir(dir: &OwnedFd, name: &[u8]) -> io::Result<bool> {
    match fs::unlinkat(dir, OsStr::from_bytes(name), AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => Ok(true),
        Err(Errno::ISDIR | Errno::PERM) => Ok(false),
        Err(error) => Err(error.into()),
    }
}
