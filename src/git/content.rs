//! Content of files that a run left: read within limits, stored as blobs.

use std::{
    fs::File,
    io::Read,
    os::fd::{AsRawFd, OwnedFd},
};

use bstr::{BStr, BString, ByteSlice};
use git2::{ObjectType, Odb, Oid};
use rustix::{fs::FileType, io::Errno};

use crate::git::{
    dirfd,
    error::{GitError, HarvestError},
    harvest::HarvestLimits,
    overlay,
    store::NewObjects,
    tree_list::Kind,
};

/// Larger `.gitignore` files are refused: each rule is tried on each path.
const MAX_IGNORE_FILE: u64 = 1 << 20;

/// What became of a file.
pub(crate) enum Taken {
    /// Its mode and blob.
    Blob(u32, Oid),
    /// It has so many bytes, and was not read.
    TooLarge(u64),
}

pub(crate) struct Content<'a> {
    pub odb: Odb<'a>,
    pub objects: NewObjects,
    pub limits: &'a HarvestLimits,
    pub overlay: bool,
    /// Of changed files so far.
    pub bytes: u64,
}

impl Content<'_> {
    /// The file `name`; `before` is what the base revision has at its path.
    pub fn file(
        &mut self,
        dir: &OwnedFd,
        name: &[u8],
        path: &BStr,
        before: Option<(u32, Oid)>,
    ) -> Result<Taken, HarvestError> {
        let (file, size, mode) = self.open(dir, name, path)?;
        let mode = Kind::File { executable: mode & 0o100 != 0 }.git_mode();
        let same_size = match before {
            Some((mode, id)) if mode != 0o040000 && mode != 0o160000 => {
                (self.odb.read_header(id)?.0 as u64 == size).then_some(id)
            }
            _ => None,
        };
        if let Some(id) = same_size {
            // A file that was only touched is no change, however large it is; so hash before limiting.
            let link = format!("/proc/self/fd/{}", file.as_raw_fd());
            if Oid::hash_file(ObjectType::Blob, link)? == id {
                return Ok(Taken::Blob(mode, id));
            }
        }
        if size > self.limits.file_bytes {
            return Ok(Taken::TooLarge(size));
        }
        let id = self.blob(file, size, path)?;
        Ok(Taken::Blob(mode, id))
    }

    /// Mode and blob of a symbolic link.
    pub fn link(&mut self, target: &[u8]) -> Result<(u32, Oid), HarvestError> {
        self.charge(target.len() as u64)?;
        Ok((Kind::Link.git_mode(), self.put(ObjectType::Blob, target)?))
    }

    /// The content of a `.gitignore`; `None` if it is not a regular file.
    pub fn ignore_file(
        &mut self,
        dir: &OwnedFd,
        name: &[u8],
        folder: &BString,
    ) -> Result<Option<Vec<u8>>, HarvestError> {
        let path = crate::git::tree_list::joined(folder, name);
        let (file, size, _) = self.open(dir, name, path.as_bstr())?;
        if size > MAX_IGNORE_FILE {
            return Err(limit("bytes in a .gitignore", MAX_IGNORE_FILE, size));
        }
        read(file, size, path.as_bstr()).map(Some)
    }

    /// The same of one that the mirror has.
    pub fn ignore_blob(&self, id: Oid) -> Result<Option<Vec<u8>>, HarvestError> {
        let size = self.odb.read_header(id)?.0 as u64;
        if size > MAX_IGNORE_FILE {
            return Err(limit("bytes in a .gitignore", MAX_IGNORE_FILE, size));
        }
        Ok(Some(self.odb.read(id)?.data().to_vec()))
    }

    fn open(&self, dir: &OwnedFd, name: &[u8], path: &BStr) -> Result<(File, u64, u32), HarvestError> {
        let io =
            |action, error: Errno| HarvestError::Io { action, path: path.to_owned(), source: error.into() };
        let file = dirfd::open_file(dir, name).map_err(|error| io("open", error))?;
        let stat = rustix::fs::fstat(&file).map_err(|error| io("stat", error))?;
        if dirfd::file_type(&stat) != FileType::RegularFile {
            let reason = "a file became something else during the harvest";
            return Err(HarvestError::Inconsistent { path: path.to_owned(), reason });
        }
        if self.overlay && overlay::lacks_content(&file).map_err(|error| io("read the marks of", error))? {
            let reason = "a file without its content";
            return Err(HarvestError::Inconsistent { path: path.to_owned(), reason });
        }
        Ok((File::from(file), stat.st_size as u64, stat.st_mode))
    }

    fn blob(&mut self, file: File, size: u64, path: &BStr) -> Result<Oid, HarvestError> {
        self.charge(size)?;
        let bytes = read(file, size, path)?;
        Ok(self.put(ObjectType::Blob, &bytes)?)
    }

    /// Keeps an object unless the mirror has it.
    pub fn put(&mut self, kind: ObjectType, content: &[u8]) -> Result<Oid, GitError> {
        self.objects.put(&self.odb, kind, content)
    }

    fn charge(&mut self, size: u64) -> Result<(), HarvestError> {
        self.bytes += size;
        if self.bytes > self.limits.bytes {
            return Err(limit("bytes in changed files", self.limits.bytes, self.bytes));
        }
        Ok(())
    }
}

/// Reads exactly `size` bytes; a file that is not of that size any more is an error.
fn read(file: File, size: u64, path: &BStr) -> Result<Vec<u8>, HarvestError> {
    let mut file = file;
    let mut bytes = Vec::with_capacity(usize::try_from(size).unwrap_or_default() + 1);
    let read = (&mut file).take(size + 1).read_to_end(&mut bytes);
    read.map_err(|source| HarvestError::Io { action: "read", path: path.to_owned(), source })?;
    if bytes.len() as u64 != size {
        let reason = "a file changed during the harvest";
        return Err(HarvestError::Inconsistent { path: path.to_owned(), reason });
    }
    Ok(bytes)
}

fn limit(what: &'static str, limit: u64, seen: u64) -> HarvestError {
    HarvestError::Limit { what, limit, seen }
}
