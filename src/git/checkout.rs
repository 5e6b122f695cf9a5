//! Writes the files of a tree into a new, empty folder: the bytes of the blobs and nothing else (no
//! filters, no line endings), never through a link, never over anything.

use std::{
    ffi::OsStr,
    os::{
        fd::{AsFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::Path,
    sync::{
        Mutex,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    thread,
};

use bstr::BString;
use git2::{IndexEntry, IndexTime, Odb};
use rustix::{
    fs::{self, AtFlags, Gid, Mode, Stat, Timespec, Timestamps, Uid},
    io::Errno,
};

use crate::git::{
    dirfd,
    error::GitError,
    in_flight::InFlight,
    mirror::Mirror,
    tree_list::{Kind, TreeFile, TreeList},
};

/// Files that a thread takes at a time; those of one folder stand together, so it is opened once.
const BATCH: usize = 64;
const MAX_THREADS: usize = 8;

pub(crate) struct Checkout<'a> {
    pub mirror: &'a Mirror,
    pub list: &'a TreeList,
    pub root: &'a OwnedFd,
    /// User and group of all that is written; `None`: our own.
    pub owner: Option<(u32, u32)>,
    /// Of every file, in seconds since 1970.
    pub mtime: i64,
    pub max_bytes: u64,
    /// What of files may be in memory; a larger file is refused.
    pub held: InFlight,
}

impl Checkout<'_> {
    /// Writes everything; returns what git's index must know of each file, in no order.
    pub fn write(&self) -> Result<Vec<IndexEntry>, GitError> {
        for folder in self.list.folders.iter().skip(1) {
            self.make_folder(folder).map_err(|error| refused(folder, error))?;
        }
        let next = AtomicUsize::new(0);
        let bytes = AtomicU64::new(0);
        let entries = Mutex::new(Vec::with_capacity(self.list.files.len()));
        let threads = thread::available_parallelism().map_or(1, usize::from).min(MAX_THREADS);
        thread::scope(|scope| {
            let workers: Vec<_> = (0..threads)
                .map(|_| {
                    scope.spawn(|| {
                        let result = self.work(&next, &bytes, &entries);
                        if result.is_err() {
                            next.store(self.list.files.len(), Ordering::Relaxed);
                        }
                        result
                    })
                })
                .collect();
            workers.into_iter().try_for_each(|worker| worker.join().expect("a checkout thread panicked"))
        })?;
        Ok(entries.into_inner().expect("no thread panicked with the lock held"))
    }

    fn work(
        &self,
        next: &AtomicUsize,
        bytes: &AtomicU64,
        entries: &Mutex<Vec<IndexEntry>>,
    ) -> Result<(), GitError> {
        let repository = self.mirror.repository()?;
        let odb = repository.odb()?;
        let mut open: Option<(usize, OwnedFd)> = None;
        let mut written = Vec::new();
        loop {
            let start = next.fetch_add(BATCH, Ordering::Relaxed);
            let Some(rest) = self.list.files.get(start..).filter(|rest| !rest.is_empty()) else { break };
            for file in &rest[..rest.len().min(BATCH)] {
                if open.as_ref().is_none_or(|(folder, _)| *folder != file.folder) {
                    let path = &self.list.folders[file.folder];
                    let name = if path.is_empty() { b"." } else { path.as_slice() };
                    let dir = dirfd::open_dir(self.root, name).map_err(|error| refused(path, error))?;
                    open = Some((file.folder, dir));
                }
                let Some((_, dir)) = &open else { continue };
                written.push(self.write_file(dir, &odb, file, bytes)?);
            }
        }
        entries.lock().expect("no thread panicked with the lock held").append(&mut written);
        Ok(())
    }

    fn write_file(
        &self,
        dir: &OwnedFd,
        odb: &Odb<'_>,
        file: &TreeFile,
        bytes: &AtomicU64,
    ) -> Result<IndexEntry, GitError> {
        let path = self.list.path(file);
        if file.kind == Kind::Submodule {
            self.make_submodule(dir, file).map_err(|error| refused(&path, error))?;
        } else {
            let size = odb.read_header(file.id)?.0 as u64;
            let seen = bytes.fetch_add(size, Ordering::Relaxed) + size;
            if seen > self.max_bytes {
                let what = "the size of all files";
                return Err(GitError::CheckoutLimit { what, limit: self.max_bytes, seen });
            }
            let limit = self.held.limit();
            let Some(_held) = self.held.take(size) else {
                return Err(GitError::FileTooLarge { path, size, limit });
            };
            let blob = odb.read(file.id)?;
            match file.kind {
                Kind::Link => self.make_link(dir, file, blob.data()),
                Kind::File { .. } | Kind::Submodule => self.make_file(dir, file, blob.data()),
            }
            .map_err(|error| refused(&path, error))?;
        }
        let stat = dirfd::stat(dir, &file.name).map_err(|error| refused(&path, error))?;
        Ok(index_entry(path, file, &stat))
    }

    fn make_folder(&self, path: &[u8]) -> rustix::io::Result<()> {
        let slash = path.iter().rposition(|&byte| byte == b'/');
        let (parent, name) = slash.map_or((b".".as_slice(), path), |at| (&path[..at], &path[at + 1..]));
        self.make_dir(&dirfd::open_dir(self.root, parent)?, name)
    }

    fn make_submodule(&self, dir: &OwnedFd, file: &TreeFile) -> rustix::io::Result<()> {
        self.make_dir(dir, &file.name)
    }

    fn make_dir(&self, parent: &OwnedFd, name: &[u8]) -> rustix::io::Result<()> {
        let name = OsStr::from_bytes(name);
        fs::mkdirat(parent, name, Mode::RWXU)?;
        // The mode again, because of the umask.
        fs::chmodat(parent, name, Mode::from_raw_mode(0o755), AtFlags::empty())?;
        self.own(parent, name)
    }

    fn make_link(&self, dir: &OwnedFd, file: &TreeFile, target: &[u8]) -> rustix::io::Result<()> {
        let name = OsStr::from_bytes(&file.name);
        fs::symlinkat(OsStr::from_bytes(target), dir, name)?;
        self.own(dir, name)?;
        fs::utimensat(dir, name, &self.times(), AtFlags::SYMLINK_NOFOLLOW)
    }

    fn make_file(&self, dir: &OwnedFd, file: &TreeFile, data: &[u8]) -> rustix::io::Result<()> {
        let executable = file.kind == Kind::File { executable: true };
        let mode = if executable { 0o755 } else { 0o644 };
        let target = dirfd::create_file(dir, &file.name, mode)?;
        write_all(&target, data)?;
        if let Some((uid, gid)) = self.owner {
            fs::fchown(&target, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)))?;
        }
        fs::fchmod(&target, Mode::from_raw_mode(mode))?;
        fs::futimens(&target, &self.times())
    }

    fn own(&self, dir: impl AsFd, name: &OsStr) -> rustix::io::Result<()> {
        let Some((uid, gid)) = self.owner else { return Ok(()) };
        fs::chownat(dir, name, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)), AtFlags::SYMLINK_NOFOLLOW)
    }

    fn times(&self) -> Timestamps {
        let time = Timespec { tv_sec: self.mtime, tv_nsec: 0 };
        Timestamps { last_access: time, last_modification: time }
    }
}

fn write_all(file: &OwnedFd, mut data: &[u8]) -> rustix::io::Result<()> {
    while !data.is_empty() {
        match rustix::io::write(file, data) {
            Ok(0) => return Err(Errno::IO),
            Ok(written) => data = &data[written..],
            Err(Errno::INTR) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn refused(path: &[u8], error: Errno) -> GitError {
    GitError::UnsafeTree { path: path.into(), reason: std::io::Error::from(error).to_string() }
}

fn index_entry(path: BString, file: &TreeFile, stat: &Stat) -> IndexEntry {
    let mut entry = IndexEntry {
        ctime: IndexTime::new(0, 0),
        mtime: IndexTime::new(0, 0),
        dev: 0,
        ino: 0,
        mode: file.kind.git_mode(),
        uid: 0,
        gid: 0,
        file_size: 0,
        id: file.id,
        flags: 0,
        flags_extended: 0,
        path: path.into(),
    };
    set_stat(&mut entry, stat);
    entry
}

/// Writes into an index entry what git compares to tell whether a file was touched. Git keeps the low 32
/// bits of each field.
pub(crate) fn set_stat(entry: &mut IndexEntry, stat: &Stat) {
    entry.ctime = IndexTime::new(stat.st_ctime as i32, stat.st_ctime_nsec as u32);
    entry.mtime = IndexTime::new(stat.st_mtime as i32, stat.st_mtime_nsec as u32);
    entry.dev = stat.st_dev as u32;
    entry.ino = stat.st_ino as u32;
    entry.uid = stat.st_uid;
    entry.gid = stat.st_gid;
    entry.file_size = if entry.mode == 0o160000 { 0 } else { stat.st_size as u32 };
}

/// Opens a folder that we just made, by its path.
pub(crate) fn open_folder(path: &Path) -> Result<OwnedFd, GitError> {
    dirfd::open_root(path).map_err(GitError::io("open", path))
}
