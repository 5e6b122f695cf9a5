//! What the run's layer and the base make of one name together, read as overlayfs reads it.

use std::os::fd::OwnedFd;

use bstr::{BStr, BString, ByteSlice};
use git2::Repository;
use rustix::{fs::FileType, io::Errno};

use crate::git::{
    dirfd,
    error::HarvestError,
    lower::{Lower, LowerEntry, LowerRoot},
    overlay::{FolderNotes, NotesError},
    place::{Node, Place, Side},
    tree_list::{Kind, joined},
};

pub(crate) struct Layers<'a> {
    pub repository: &'a Repository,
    pub root: LowerRoot,
    /// Whether the run's files are a layer over the base, and not a copy.
    pub overlay: bool,
}

impl Layers<'_> {
    /// What the run's layer has under a name that is in it; `None`: it has no such folder. `folder`: the place's path.
    pub fn upper_node(
        &self,
        place: &Place,
        name: &[u8],
        folder: &BString,
    ) -> Result<Option<Node>, HarvestError> {
        let Some(dir) = &place.upper else { return Ok(None) };
        let path = joined(folder, name);
        let stat = dirfd::stat(dir, name).map_err(|error| io("stat", path.as_bstr(), error))?;
        Ok(Some(match dirfd::file_type(&stat) {
            FileType::RegularFile => Node::File(Side::Upper),
            FileType::Symlink => Node::Link(Side::Upper),
            FileType::CharacterDevice if self.overlay && stat.st_rdev == 0 => Node::Gone,
            FileType::Directory => {
                let opened = dirfd::open_dir(dir, name).map_err(|error| io("open", path.as_bstr(), error))?;
                let lower =
                    if self.overlay { self.shows_through(place, name, &opened, &path)? } else { Lower::None };
                Node::Folder { lower, upper: Some(opened) }
            }
            other => Node::Special(other),
        }))
    }

    /// Which folder of the base shows through the layer's folder `name`.
    fn shows_through(
        &self,
        place: &Place,
        name: &[u8],
        opened: &OwnedFd,
        path: &BString,
    ) -> Result<Lower, HarvestError> {
        let inconsistent = |reason| HarvestError::Inconsistent { path: path.clone(), reason };
        let notes = FolderNotes::read(opened).map_err(|error| match error {
            NotesError::Unknown(reason) => inconsistent(reason),
            NotesError::Io(error) => io("read the marks of", path.as_bstr(), error),
        })?;
        if notes.opaque {
            return Ok(Lower::None);
        }
        let Some(redirect) = notes.redirect else { return place.lower.folder(self.repository, name) };
        let parts = redirect.strip_prefix(b"/").map_or(redirect.as_slice(), |rest| rest);
        let unsafe_part = |part: &[u8]| matches!(part, b"" | b"." | b"..");
        if parts.split(|&byte| byte == b'/').any(unsafe_part) || parts.contains(&0) {
            return Err(inconsistent("a redirect that leads out of the base"));
        }
        let lower = if redirect.starts_with(b"/") {
            self.root.resolve(self.repository, &redirect)?
        } else if redirect.contains(&b'/') {
            return Err(inconsistent("a relative redirect of more than one name"));
        } else {
            self.root.beside(self.repository, &place.lower, place.depth == 0, &redirect)?
        };
        Ok(lower)
    }

    /// What the base has.
    pub fn lower_node(&self, place: &Place, name: &[u8], entry: LowerEntry) -> Result<Node, HarvestError> {
        Ok(match entry {
            LowerEntry::Folder => {
                Node::Folder { lower: place.lower.folder(self.repository, name)?, upper: None }
            }
            // On disk a submodule is an empty folder.
            LowerEntry::Blob(Kind::Submodule, _) => Node::Folder { lower: Lower::None, upper: None },
            LowerEntry::Blob(kind, id) => Node::Blob(kind, id),
            LowerEntry::File => Node::File(Side::Lower),
            LowerEntry::Link => Node::Link(Side::Lower),
        })
    }
}

pub(crate) fn io(action: &'static str, path: &BStr, error: Errno) -> HarvestError {
    HarvestError::Io { action, path: path.to_owned(), source: error.into() }
}
