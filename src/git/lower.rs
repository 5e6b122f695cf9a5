//! The base side of an overlay: what shows through where the run's layer has nothing.
//!
//! A base checkout is a tree of the mirror plus a `.git` folder, so all but that folder is looked up
//! in the tree. The folder itself can be renamed into sight (`mv .git/hooks there`); what shows through
//! then is read from the base's disk, which only we write.

use std::{
    collections::BTreeMap,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
};

use git2::{Oid, Repository};
use rustix::{fs::FileType, io::Errno};

use crate::git::{
    dirfd,
    error::{GitError, HarvestError},
    names,
    tree_list::Kind,
};

/// A folder of the base, or none.
pub(crate) enum Lower {
    None,
    Tree(Oid),
    Disk(OwnedFd),
}

/// An entry of a folder of the base.
#[derive(Clone, Copy)]
pub(crate) enum LowerEntry {
    Folder,
    /// Its content is a blob of the mirror.
    Blob(Kind, Oid),
    /// On the base's disk.
    File,
    Link,
}

/// Where a redirect leads from.
pub(crate) struct LowerRoot {
    pub tree: Option<Oid>,
    pub base: PathBuf,
}

impl LowerRoot {
    /// The folder at `path`, which the kernel noted as a redirect: absolute from the base's root. Taken
    /// as hostile all the same.
    pub fn resolve(&self, repository: &Repository, path: &[u8]) -> Result<Lower, HarvestError> {
        let mut parts = path.strip_prefix(b"/").unwrap_or(path).split(|&byte| byte == b'/');
        let first = parts.next().unwrap_or_default();
        let mut folder = if first == b".git" {
            Lower::Disk(self.open(&self.base.join(".git"))?)
        } else {
            self.root().folder(repository, first)?
        };
        for part in parts {
            folder = folder.folder(repository, part)?;
        }
        Ok(folder)
    }

    /// The folder `name` beside the others of `folder`; at the root that may be `.git`.
    pub fn beside(
        &self,
        repository: &Repository,
        folder: &Lower,
        at_root: bool,
        name: &[u8],
    ) -> Result<Lower, HarvestError> {
        if at_root { self.resolve(repository, name) } else { folder.folder(repository, name) }
    }

    pub fn root(&self) -> Lower {
        self.tree.map_or(Lower::None, Lower::Tree)
    }

    fn open(&self, path: &Path) -> Result<OwnedFd, HarvestError> {
        let opened = dirfd::open_root(path);
        Ok(opened.map_err(GitError::io("open", path))?)
    }
}

impl Lower {
    /// The folder `name` in this one. A submodule's is empty, and so is what is not there.
    pub fn folder(&self, repository: &Repository, name: &[u8]) -> Result<Lower, HarvestError> {
        match self {
            Lower::None => Ok(Lower::None),
            Lower::Tree(id) => {
                let tree = repository.find_tree(*id)?;
                Ok(match tree.get_name_bytes(name) {
                    Some(entry) if entry.filemode_raw() == 0o040000 => Lower::Tree(entry.id()),
                    _ => Lower::None,
                })
            }
            Lower::Disk(dir) => {
                if matches!(name, b"" | b"." | b"..") || name.contains(&b'/') {
                    return Ok(Lower::None);
                }
                match dirfd::open_dir(dir, name) {
                    Ok(dir) => Ok(Lower::Disk(dir)),
                    Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => Ok(Lower::None),
                    Err(error) => Err(io(name, error)),
                }
            }
        }
    }

    pub fn entry(&self, repository: &Repository, name: &[u8]) -> Result<Option<LowerEntry>, HarvestError> {
        match self {
            Lower::None => Ok(None),
            Lower::Tree(id) => {
                let tree = repository.find_tree(*id)?;
                Ok(tree.get_name_bytes(name).map(|entry| tree_entry(&entry)))
            }
            Lower::Disk(dir) => match dirfd::stat(dir, name) {
                Ok(stat) => Ok(disk_entry(dirfd::file_type(&stat))),
                Err(Errno::NOENT) => Ok(None),
                Err(error) => Err(io(name, error)),
            },
        }
    }

    pub fn entries(&self, repository: &Repository) -> Result<BTreeMap<Vec<u8>, LowerEntry>, HarvestError> {
        let mut entries = BTreeMap::new();
        match self {
            Lower::None => {}
            Lower::Tree(id) => {
                for entry in &repository.find_tree(*id)? {
                    entries.insert(entry.name_bytes().to_vec(), tree_entry(&entry));
                }
            }
            Lower::Disk(dir) => {
                let names = dirfd::names(dir, u64::MAX);
                for name in names.map_err(GitError::io("list", Path::new("the base")))? {
                    let stat = dirfd::stat(dir, &name).map_err(|error| io(&name, error))?;
                    if let Some(entry) = disk_entry(dirfd::file_type(&stat)) {
                        entries.insert(name, entry);
                    }
                }
            }
        }
        // A base was checked when it was made; this is for a mirror that was tampered with.
        entries.retain(|name, _| names::refused_component(name).is_none());
        Ok(entries)
    }
}

fn tree_entry(entry: &git2::TreeEntry<'_>) -> LowerEntry {
    match Kind::from_git_mode(entry.filemode_raw()) {
        Some(kind) => LowerEntry::Blob(kind, entry.id()),
        None => LowerEntry::Folder,
    }
}

fn disk_entry(kind: FileType) -> Option<LowerEntry> {
    match kind {
        FileType::Directory => Some(LowerEntry::Folder),
        FileType::RegularFile => Some(LowerEntry::File),
        FileType::Symlink => Some(LowerEntry::Link),
        _ => None,
    }
}

fn io(name: &[u8], error: Errno) -> HarvestError {
    HarvestError::Io { action: "read the base's", path: name.into(), source: error.into() }
}
