//! A tree of the mirror as flat lists of folders and files, refused if any name in it is unsafe.

use std::collections::HashSet;

use bstr::{BString, ByteSlice};
use git2::{Oid, Repository};

use crate::git::{error::GitError, names};

/// Deeper than any honest repository; keeps the recursion small.
const MAX_DEPTH: usize = 256;
/// What ext4, xfs and btrfs can hold as one name.
const MAX_NAME: usize = 255;
/// The kernel's PATH_MAX, which no program in the sandbox could pass anyway.
const MAX_PATH: usize = 4095;

/// What an entry of a tree becomes on disk.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Kind {
    File {
        executable: bool,
    },
    Link,
    /// A submodule: an empty folder.
    Submodule,
}

impl Kind {
    /// The file mode that git's index and new trees use.
    pub fn git_mode(self) -> u32 {
        match self {
            Kind::File { executable: false } => 0o100644,
            Kind::File { executable: true } => 0o100755,
            Kind::Link => 0o120000,
            Kind::Submodule => 0o160000,
        }
    }

    /// `None` for a folder and for what git does not know.
    pub fn from_git_mode(mode: i32) -> Option<Kind> {
        match mode & 0o170000 {
            0o100000 => Some(Kind::File { executable: mode & 0o100 != 0 }),
            0o120000 => Some(Kind::Link),
            0o160000 => Some(Kind::Submodule),
            _ => None,
        }
    }
}

pub(crate) struct TreeFile {
    /// Index into [`TreeList::folders`].
    pub folder: usize,
    pub name: BString,
    pub kind: Kind,
    pub id: Oid,
}

#[derive(Default)]
pub(crate) struct TreeList {
    /// Paths from the root, parents first; the first is the root itself, "".
    pub folders: Vec<BString>,
    /// The files of one folder stand together.
    pub files: Vec<TreeFile>,
}

impl TreeList {
    /// Reads `tree` with all below it; no more than `max_files` entries, against trees that
    /// multiply themselves.
    pub fn read(repository: &Repository, tree: Oid, max_files: u64) -> Result<TreeList, GitError> {
        let mut list = TreeList { folders: vec![BString::default()], files: Vec::new() };
        let mut trees = vec![(0, tree, 0)];
        while let Some((folder, id, depth)) = trees.pop() {
            list.read_folder(repository, folder, id, depth, &mut trees)?;
            let seen = (list.files.len() + list.folders.len()) as u64;
            if seen > max_files {
                return Err(GitError::CheckoutLimit { what: "the number of files", limit: max_files, seen });
            }
        }
        Ok(list)
    }

    pub fn path(&self, file: &TreeFile) -> BString {
        joined(&self.folders[file.folder], &file.name)
    }

    fn read_folder(
        &mut self,
        repository: &Repository,
        folder: usize,
        id: Oid,
        depth: usize,
        trees: &mut Vec<(usize, Oid, usize)>,
    ) -> Result<(), GitError> {
        let tree = repository.find_tree(id)?;
        let mut seen = HashSet::with_capacity(tree.len());
        for entry in &tree {
            let name = entry.name_bytes();
            let path = joined(&self.folders[folder], name);
            let refuse =
                |reason: &str| GitError::UnsafeTree { path: path.clone(), reason: reason.to_owned() };
            if let Some(reason) = names::refused_component(name) {
                return Err(refuse(reason));
            }
            if !seen.insert(name.to_vec()) {
                return Err(refuse("the name stands twice in its folder"));
            }
            if name.len() > MAX_NAME || path.len() > MAX_PATH || depth >= MAX_DEPTH {
                return Err(refuse("the name is too long or too deep"));
            }
            match Kind::from_git_mode(entry.filemode_raw()) {
                Some(kind) => self.files.push(TreeFile { folder, name: name.into(), kind, id: entry.id() }),
                None if entry.filemode_raw() == 0o040000 => {
                    self.folders.push(path);
                    trees.push((self.folders.len() - 1, entry.id(), depth + 1));
                }
                None => return Err(refuse("its mode is not one that git knows")),
            }
        }
        Ok(())
    }
}

pub(crate) fn joined(folder: &[u8], name: &[u8]) -> BString {
    match folder {
        b"" => name.into(),
        _ => [folder, b"/", name].concat().as_bstr().to_owned(),
    }
}
