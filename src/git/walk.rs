//! The walk over a run's files: for each folder, what the run's layer and the base make of it together,
//! compared with what the base revision tracks there.

use std::{
    collections::HashSet,
    ffi::OsStr,
    os::{fd::OwnedFd, unix::ffi::OsStrExt},
    time::Instant,
};

use bstr::{BStr, BString, ByteSlice};
use git2::{ObjectType, Oid, Repository, Tree};
use rustix::fs::readlinkat;

use crate::git::{
    content::{Content, Taken},
    dirfd,
    error::{GitError, HarvestError},
    harvest::{HarvestLimits, WarningKind},
    ignore_rules::IgnoreRules,
    layers::{Layers, io},
    lower::{Lower, LowerRoot},
    names,
    place::{Entry, Node, Place, tracked_entry},
    report::Report,
    store::{NewObjects, tree_object},
    tally::Tally,
    tree_list::{Kind, joined},
};

pub(crate) struct Walk<'a> {
    repository: &'a Repository,
    layers: Layers<'a>,
    limits: &'a HarvestLimits,
    started: Instant,
    entries: u64,
    content: Content<'a>,
    tally: Tally<'a>,
    rules: IgnoreRules,
    report: Report,
    /// Of the folder that the walk is in.
    path: BString,
}

impl<'a> Walk<'a> {
    pub fn new(
        repository: &'a Repository,
        root: LowerRoot,
        overlay: bool,
        limits: &'a HarvestLimits,
        started: Instant,
        objects: NewObjects,
    ) -> Result<Walk<'a>, HarvestError> {
        let odb = repository.odb().map_err(GitError::from)?;
        Ok(Walk {
            repository,
            layers: Layers { repository, root, overlay },
            limits,
            started,
            entries: 0,
            content: Content { odb, objects, limits, overlay, bytes: 0 },
            tally: Tally::new(repository, limits),
            rules: IgnoreRules::default(),
            report: Report::default(),
            path: BString::default(),
        })
    }

    /// Walks all: the tree, and the objects of it that the mirror does not have.
    pub fn run(mut self, root: &Place) -> Result<(Oid, NewObjects, Report), HarvestError> {
        let tree = match self.folder(root)? {
            Some(tree) => tree,
            None => self.content.put(ObjectType::Tree, b"")?,
        };
        let report = self.report.finish(self.tally.files, self.content.bytes);
        Ok((tree, self.content.objects, report))
    }

    /// The tree that the folder becomes; `None` if nothing in it counts.
    fn folder(&mut self, place: &Place) -> Result<Option<Oid>, HarvestError> {
        if let (None, Lower::Tree(lower)) = (&place.upper, &place.lower)
            && Some(*lower) == place.tracked
        {
            return Ok(place.tracked);
        }
        if place.depth > self.limits.depth {
            let detail = format!(
                "folders are taken to a depth of {}{}",
                self.limits.depth,
                stays(place.tracked.is_some())
            );
            self.report.warn(WarningKind::TooDeep, self.path.clone(), detail);
            return Ok(place.tracked);
        }
        let tracked = place.tracked.map(|id| self.repository.find_tree(id)).transpose()?;
        // Where the base shows through at its own place, all that the layer does not name is unchanged.
        let in_place =
            matches!((&place.lower, place.tracked), (Lower::Tree(lower), Some(id)) if *lower == id);
        let upper = self.upper_names(place)?;
        let ignore_file = if place.ignored { None } else { self.ignore_file(place, &upper)? };
        let dropped = self.rules.enter(&self.path, ignore_file.as_deref());
        if dropped > 0 {
            let detail =
                format!("{dropped} rules are too many or have too many stars; they are not followed");
            self.report.warn(WarningKind::IgnoreRules, joined(&self.path, b".gitignore"), detail);
        }
        let mut changes: Vec<(Vec<u8>, Option<Entry>)> = Vec::new();
        let mut same = true;
        let mut kept = 0;
        if !in_place {
            for (name, entry) in place.lower.entries(self.repository)? {
                if upper.binary_search(&name).is_err() {
                    let node = self.layers.lower_node(place, &name, entry)?;
                    self.entry(place, tracked.as_ref(), name, node, &mut changes)?;
                }
            }
        }
        for name in upper {
            if let Some(node) = self.layers.upper_node(place, &name, &self.path)? {
                self.entry(place, tracked.as_ref(), name, node, &mut changes)?;
            }
        }
        self.rules.leave();
        if let (Some(tree), false) = (&tracked, in_place) {
            self.unnamed(tree, &changes)?;
        }
        for (name, entry) in &changes {
            let before = tracked.as_ref().and_then(|tree| tracked_entry(tree, name));
            same &= *entry == before;
            kept += usize::from(entry.is_some());
        }
        same &= in_place || tracked.as_ref().is_none_or(|tree| tree.len() == kept);
        if same && (tracked.is_some() || kept == 0) {
            return Ok(place.tracked);
        }
        self.write_tree(if in_place { tracked.as_ref() } else { None }, changes)
    }

    /// Decides what one entry becomes.
    fn entry(
        &mut self,
        place: &Place,
        tracked: Option<&Tree<'_>>,
        name: Vec<u8>,
        node: Node,
        changes: &mut Vec<(Vec<u8>, Option<Entry>)>,
    ) -> Result<(), HarvestError> {
        let elapsed = self.started.elapsed();
        if elapsed > self.limits.time {
            let seconds = self.limits.time.as_secs();
            return Err(limit("seconds of work", seconds, elapsed.as_secs()));
        }
        let path = joined(&self.path, &name);
        let before = tracked.and_then(|tree| tracked_entry(tree, &name));
        let is_folder = matches!(node, Node::Folder { .. });
        let after = match node {
            Node::Gone => None,
            Node::Folder { lower, upper } => self.subfolder(place, path.as_bstr(), before, lower, upper)?,
            Node::Special(kind) => {
                self.report.warn(WarningKind::SpecialFile, path.clone(), format!("{kind:?}"));
                None
            }
            node => {
                let is_tracked = before.is_some_and(|(mode, _)| mode != 0o040000);
                if !is_tracked && (place.ignored || self.rules.ignores(path.as_bstr(), false)) {
                    self.report.ignored(path.clone());
                    None
                } else {
                    self.file(place, &name, path.as_bstr(), node, before)?
                }
            }
        };
        let gone = before.filter(|before| {
            let was_folder = before.0 == 0o040000;
            // What is gone from a folder that is still one is counted in it.
            let replaced = if is_folder { !was_folder } else { was_folder || after.is_none() };
            replaced && after != Some(*before)
        });
        if let Some(gone) = gone {
            self.tally.deleted(path, gone)?;
        }
        changes.push((name, after));
        Ok(())
    }

    /// Counts what the base tracks in a folder and nothing in its place names.
    fn unnamed(
        &mut self,
        tracked: &Tree<'_>,
        named: &[(Vec<u8>, Option<Entry>)],
    ) -> Result<(), HarvestError> {
        let named: HashSet<&[u8]> = named.iter().map(|(name, _)| name.as_slice()).collect();
        for entry in tracked.iter().filter(|entry| !named.contains(entry.name_bytes())) {
            if let Some(gone) = tracked_entry(tracked, entry.name_bytes()) {
                self.tally.deleted(joined(&self.path, entry.name_bytes()), gone)?;
            }
        }
        Ok(())
    }

    fn subfolder(
        &mut self,
        place: &Place,
        path: &BStr,
        before: Option<Entry>,
        lower: Lower,
        upper: Option<OwnedFd>,
    ) -> Result<Option<Entry>, HarvestError> {
        let tracked = match before {
            Some((0o160000, _)) => {
                let has_content = !lower.entries(self.repository)?.is_empty()
                    || upper.is_some_and(|dir| dirfd::names(&dir, 1).is_ok_and(|names| !names.is_empty()));
                if has_content {
                    let detail = "files in a submodule's folder are left out".to_owned();
                    self.report.warn(WarningKind::SubmoduleContent, path.to_owned(), detail);
                }
                return Ok(before);
            }
            Some((0o040000, id)) => Some(id),
            _ => None,
        };
        let ignored = place.ignored || self.rules.ignores(path, true);
        if ignored && tracked.is_none() {
            self.report.ignored(path.to_owned());
            return Ok(None);
        }
        let child = Place { tracked, lower, upper, ignored, depth: place.depth + 1 };
        let above = std::mem::replace(&mut self.path, path.to_owned());
        let tree = self.folder(&child)?;
        self.path = above;
        Ok(tree.map(|id| (0o040000, id)))
    }

    fn file(
        &mut self,
        place: &Place,
        name: &[u8],
        path: &BStr,
        node: Node,
        before: Option<Entry>,
    ) -> Result<Option<Entry>, HarvestError> {
        let entry = match node {
            Node::Blob(kind, id) => (kind.git_mode(), id),
            Node::File(side) => {
                let Some(dir) = place.dir(side) else { return Ok(None) };
                match self.content.file(dir, name, path, before)? {
                    Taken::Blob(mode, id) => (mode, id),
                    Taken::TooLarge(size) => {
                        let most = self.limits.file_bytes;
                        let detail =
                            format!("it has {size} bytes; {most} are taken{}", stays(before.is_some()));
                        self.report.warn(WarningKind::TooLarge, path.to_owned(), detail);
                        return Ok(before);
                    }
                }
            }
            Node::Link(side) => {
                let Some(dir) = place.dir(side) else { return Ok(None) };
                let target = readlinkat(dir, OsStr::from_bytes(name), Vec::new())
                    .map_err(|error| io("read the link", path, error))?;
                self.content.link(target.as_bytes())?
            }
            Node::Gone | Node::Folder { .. } | Node::Special(_) => return Ok(None),
        };
        if entry.0 == 0o120000 && names::is_dotgitmodules(name) {
            let detail = "git refuses a symbolic link of this name".to_owned();
            self.report.warn(WarningKind::ForbiddenName, path.to_owned(), detail);
            return Ok(None);
        }
        if Some(entry) == before {
            return Ok(before);
        }
        if path.len() > self.limits.path_bytes {
            let (bytes, most) = (path.len(), self.limits.path_bytes);
            let detail = format!("its path has {bytes} bytes; {most} are taken{}", stays(before.is_some()));
            self.report.warn(WarningKind::PathTooLong, path.to_owned(), detail);
            return Ok(before);
        }
        self.tally.changed(path)?;
        Ok(Some(entry))
    }

    /// The names in the run's layer that a tree may have, sorted.
    fn upper_names(&mut self, place: &Place) -> Result<Vec<Vec<u8>>, HarvestError> {
        let Some(dir) = &place.upper else { return Ok(Vec::new()) };
        let left = self.limits.entries.saturating_sub(self.entries);
        let mut found = dirfd::names(dir, left + 1).map_err(|source| HarvestError::Io {
            action: "list",
            path: self.path.clone(),
            source,
        })?;
        self.entries += found.len() as u64;
        if self.entries > self.limits.entries {
            return Err(limit("entries", self.limits.entries, self.entries));
        }
        let at_root = place.depth == 0;
        found.retain(|name| {
            let Some(reason) = names::refused_component(name) else { return true };
            let kind = match name.as_slice() {
                b".git" if at_root => return false,
                b".git" => WarningKind::NestedGit,
                _ => WarningKind::ForbiddenName,
            };
            self.report.warn(kind, joined(&self.path, name), reason.to_owned());
            false
        });
        found.sort_unstable();
        Ok(found)
    }

    /// The content of the folder's `.gitignore` as the run sees it.
    fn ignore_file(&mut self, place: &Place, upper: &[Vec<u8>]) -> Result<Option<Vec<u8>>, HarvestError> {
        let name = b".gitignore".to_vec();
        let node = if upper.binary_search(&name).is_ok() {
            self.layers.upper_node(place, &name, &self.path)?
        } else {
            match place.lower.entry(self.repository, &name)? {
                Some(entry) => Some(self.layers.lower_node(place, &name, entry)?),
                None => None,
            }
        };
        match node {
            Some(Node::File(side)) => match place.dir(side) {
                Some(dir) => self.content.ignore_file(dir, &name, &self.path),
                None => Ok(None),
            },
            Some(Node::Blob(Kind::File { .. }, id)) => self.content.ignore_blob(id),
            _ => Ok(None),
        }
    }

    /// The tree of `start` with `changes`; `None` if it is empty.
    fn write_tree(
        &mut self,
        start: Option<&Tree<'_>>,
        changes: Vec<(Vec<u8>, Option<Entry>)>,
    ) -> Result<Option<Oid>, HarvestError> {
        let mut entries = Vec::new();
        if let Some(tree) = start {
            let changed: HashSet<&[u8]> = changes.iter().map(|(name, _)| name.as_slice()).collect();
            let kept = tree.iter().filter(|entry| !changed.contains(entry.name_bytes()));
            entries.extend(
                kept.map(|entry| (entry.name_bytes().to_vec(), entry.filemode_raw() as u32, entry.id())),
            );
        }
        let new = changes.into_iter().filter_map(|(name, entry)| entry.map(|(mode, id)| (name, mode, id)));
        entries.extend(new);
        if entries.is_empty() {
            return Ok(None);
        }
        Ok(Some(self.content.put(ObjectType::Tree, &tree_object(entries))?))
    }
}

/// What a warning adds where the base has something at the path.
const fn stays(tracked: bool) -> &'static str {
    if tracked { "; the base's stays" } else { "" }
}

fn limit(what: &'static str, limit: u64, seen: u64) -> HarvestError {
    HarvestError::Limit { what, limit, seen }
}
