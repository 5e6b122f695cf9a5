//! What the bases may take of the disk: each, all together, and what has to stay free.
//!
//! A base's size stands in its lock file, from before it is made. So two that are made at once know of each other.

use std::{
    fs::{self, Metadata},
    io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use git2::{Odb, Repository};
use rustix::fs::statvfs;

use crate::git::{
    base::{Bases, CheckoutLimits},
    error::GitError,
    lock::FileLock,
    tree_list::{Kind, TreeList},
};

/// What a file takes of the disk is a multiple of this.
const BLOCK: u64 = 4096;

/// Bounds of all bases together.
#[derive(Clone, Copy, Debug)]
pub struct BasesLimits {
    /// What they take of the disk, in bytes.
    pub bytes: u64,
    /// Files and folders.
    pub entries: u64,
    /// Bytes that stay free of the file system. Where less is free, none is made.
    pub reserve_bytes: u64,
}

/// Bounds, and where runs say which bases they use.
#[derive(Clone, Debug)]
pub(crate) struct Bounds {
    pub limits: BasesLimits,
    pub runs: PathBuf,
}

/// What something takes of the disk.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(crate) struct Size {
    pub bytes: u64,
    pub entries: u64,
}

/// What is free of a file system, for those without rights of their own.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Free {
    pub bytes: u64,
    pub all_bytes: u64,
    pub inodes: u64,
    /// 0: this file system has no such bound.
    pub all_inodes: u64,
}

impl Free {
    pub fn of(path: &Path) -> Result<Free, GitError> {
        let seen = statvfs(path).map_err(GitError::io("look at the free space of", path))?;
        // What only root may take counts as taken: a sandbox cannot, and for us it is the last resort.
        let taken = seen.f_blocks.saturating_sub(seen.f_bfree);
        let bytes = seen.f_bavail.saturating_mul(seen.f_frsize);
        let all_bytes = taken.saturating_mul(seen.f_frsize).saturating_add(bytes);
        Ok(Free { bytes, all_bytes, inodes: seen.f_favail, all_inodes: seen.f_files })
    }

    /// The shares of bytes and inodes that are free, 0 to 1.
    pub fn shares(&self) -> (f64, f64) {
        let share = |free: u64, all: u64| if all == 0 { 1.0 } else { free as f64 / all as f64 };
        (share(self.bytes, self.all_bytes), share(self.inodes, self.all_inodes))
    }
}

/// Bases that were removed.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Removed {
    pub bases: u64,
    pub bytes: u64,
}

impl Removed {
    pub(crate) fn add(&mut self, size: Size) {
        self.bases += 1;
        self.bytes += size.bytes;
    }
}

impl Size {
    /// What a checkout will take. Refuses one that is over its limits before a byte of it is read.
    pub fn planned(
        repository: &Repository,
        list: &TreeList,
        limits: &CheckoutLimits,
    ) -> Result<Size, GitError> {
        let odb = repository.odb()?;
        let mut size = Size { bytes: 0, entries: list.folders.len() as u64 };
        let mut content = 0;
        for file in &list.files {
            size.entries += 1;
            if file.kind == Kind::Submodule {
                continue;
            }
            let bytes = bytes_of(&odb, file.id)?;
            if bytes > limits.file_bytes {
                let path = list.path(file);
                return Err(GitError::FileTooLarge { path, size: bytes, limit: limits.file_bytes });
            }
            content += bytes;
            size.bytes += bytes.next_multiple_of(BLOCK);
            if content > limits.bytes {
                let what = "the size of all files";
                return Err(GitError::CheckoutLimit { what, limit: limits.bytes, seen: content });
            }
        }
        Ok(size)
    }

    /// What a folder of ours takes.
    pub fn of(path: &Path) -> Result<Size, GitError> {
        let mut size = Size::default();
        let mut left = vec![path.to_owned()];
        while let Some(folder) = left.pop() {
            for entry in fs::read_dir(&folder).map_err(GitError::io("list", &folder))? {
                let entry = entry.map_err(GitError::io("list", &folder))?;
                let stat: Metadata = entry.metadata().map_err(GitError::io("stat", &entry.path()))?;
                size = size.with(Size { bytes: stat.blocks() * 512, entries: 1 });
                if stat.is_dir() {
                    left.push(entry.path());
                }
            }
        }
        Ok(size)
    }

    pub fn with(self, other: Size) -> Size {
        Size { bytes: self.bytes + other.bytes, entries: self.entries + other.entries }
    }
}

fn bytes_of(odb: &Odb<'_>, id: git2::Oid) -> Result<u64, GitError> {
    Ok(odb.read_header(id)?.0 as u64)
}

impl Bases {
    /// Makes room for the base `key`, which this process holds the lock of: the bases that were asked for longest ago
    /// go first, if no run uses them. `size`: of the whole; `missing`: of what is not on the disk yet.
    pub(crate) fn make_room(&self, key: &str, size: Size, missing: Size) -> Result<(), GitError> {
        let Some(bounds) = self.bounds() else { return Ok(()) };
        // Beside the folder: in it, each lock is one of a base.
        let _one_at_a_time = FileLock::exclusive(&self.root().with_extension("lock"))?;
        let mut idle = self.by_last_use()?.into_iter().filter(|(_, other)| other != key);
        while let Some(reason) = self.lack(bounds, key, size, missing)? {
            let mut removed = false;
            for (_, other) in idle.by_ref() {
                removed = self.remove_unused(&other, &bounds.runs, Duration::ZERO)?;
                if removed {
                    break;
                }
            }
            if !removed {
                return Err(reason);
            }
        }
        let lock = self.lock_path(key);
        fs::write(&lock, format!("{} {}\n", size.bytes, size.entries)).map_err(GitError::io("write", &lock))
    }

    /// Whether what has to stay free is free.
    pub(crate) fn look_at_reserve(&self) -> Result<(), GitError> {
        match self.bounds() {
            Some(bounds) => self.on_disk(bounds, Size::default()).map_or(Ok(()), Err),
            None => Ok(()),
        }
    }

    /// Why there is no room.
    fn lack(
        &self,
        bounds: &Bounds,
        key: &str,
        size: Size,
        missing: Size,
    ) -> Result<Option<GitError>, GitError> {
        let mut all = size;
        for (_, other) in self.by_last_use()?.iter().filter(|(_, other)| other != key) {
            all = all.with(self.size_of(other)?);
        }
        let over = |what, limit, seen| Some(GitError::NoRoom { what, limit, seen });
        Ok(match bounds.limits {
            limits if all.bytes > limits.bytes => over("bytes of all bases", limits.bytes, all.bytes),
            limits if all.entries > limits.entries => {
                over("files and folders of all bases", limits.entries, all.entries)
            }
            _ => self.on_disk(bounds, missing),
        })
    }

    fn on_disk(&self, bounds: &Bounds, missing: Size) -> Option<GitError> {
        let free = match Free::of(self.root()) {
            Ok(free) => free,
            Err(error) => return Some(error),
        };
        let wanted = missing.bytes.saturating_add(bounds.limits.reserve_bytes);
        if free.bytes < wanted {
            return Some(GitError::DiskFull { what: "bytes", wanted, free: free.bytes });
        }
        (free.all_inodes > 0 && free.inodes < missing.entries).then_some(GitError::DiskFull {
            what: "inodes",
            wanted: missing.entries,
            free: free.inodes,
        })
    }

    /// Removes bases that no run uses, the one first that was asked for longest ago, for as long as `wanted` says so.
    pub fn remove_while(
        &self,
        mut wanted: impl FnMut() -> Result<bool, GitError>,
    ) -> Result<Removed, GitError> {
        let mut removed = Removed::default();
        let Some(bounds) = self.bounds() else { return Ok(removed) };
        let _one_at_a_time = FileLock::exclusive(&self.root().with_extension("lock"))?;
        for (_, key) in self.by_last_use()? {
            if !wanted()? {
                break;
            }
            let size = self.size_of(&key)?;
            if self.remove_unused(&key, &bounds.runs, Duration::ZERO)? {
                removed.add(size);
            }
        }
        Ok(removed)
    }

    /// The keys of all bases, the one first that was asked for longest ago.
    fn by_last_use(&self) -> Result<Vec<(SystemTime, String)>, GitError> {
        let mut found = Vec::new();
        for entry in fs::read_dir(self.root()).map_err(GitError::io("list", self.root()))? {
            let entry = entry.map_err(GitError::io("list", self.root()))?;
            let Some(key) =
                entry.file_name().to_str().and_then(|it| it.strip_suffix(".lock").map(str::to_owned))
            else {
                continue;
            };
            match entry.metadata().and_then(|stat| stat.modified()) {
                Ok(used) => found.push((used, key)),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(GitError::io("stat", &entry.path())(error)),
            }
        }
        found.sort();
        Ok(found)
    }

    /// What a base takes, or will when it is made.
    pub(crate) fn size_of(&self, key: &str) -> Result<Size, GitError> {
        let text = fs::read_to_string(self.lock_path(key)).unwrap_or_default();
        let mut numbers = text.split_ascii_whitespace().map_while(|number| number.parse().ok());
        let path = self.root().join(key);
        match (numbers.next(), numbers.next()) {
            (Some(bytes), Some(entries)) => {
                let is_made = path.exists() || FileLock::try_exclusive(&self.lock_path(key))?.is_none();
                Ok(if is_made { Size { bytes, entries } } else { Size::default() })
            }
            // Made before sizes were written down.
            _ if path.exists() => Size::of(&path),
            _ => Ok(Size::default()),
        }
    }
}
