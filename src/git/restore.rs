//! Puts what a run did not see back into what it left, so that hiding is no change.
//!
//! What the base has at a hidden path stays, whatever the run has made there: the run's own is held back, and named.
//! So is a name that would take a hidden path's place on a file system without case, and a file that stands
//! where a hidden path has a folder.

use bstr::BString;
use git2::{ObjectType, Odb, Oid, Repository};

use crate::git::{
    error::{GitError, HarvestError},
    place::Entry,
    quarantine::{Below, Paths},
    quarantine_rules::fold,
    store::{NewObjects, tree_object},
    tree_list::joined,
};

type Entries = Vec<(Vec<u8>, u32, Oid)>;

pub(crate) struct Restore<'a> {
    pub repository: &'a Repository,
    pub odb: Odb<'a>,
    /// What the run left, unless the repository has it.
    pub objects: &'a mut NewObjects,
    /// Paths that were held back.
    pub held: Vec<BString>,
}

impl Restore<'_> {
    /// `left`: the tree that the run left. `base`: the whole one of its base revision.
    pub fn whole(&mut self, left: Oid, base: Oid, hidden: &[BString]) -> Result<Oid, HarvestError> {
        self.folder(Some(left), base, &Paths::of(hidden), &BString::default())
    }

    fn folder(
        &mut self,
        left: Option<Oid>,
        base: Oid,
        hidden: &Paths,
        path: &BString,
    ) -> Result<Oid, HarvestError> {
        let tree = self.repository.find_tree(base)?;
        hidden.all_in(&tree)?;
        let mut entries = left.map_or(Ok(Entries::new()), |id| self.entries(id))?;
        for (name, below) in &hidden.0 {
            let Some(entry) = tree.get_name_bytes(name) else { continue };
            let before: Entry = (entry.filemode_raw() as u32, entry.id());
            match below {
                Below::All => {
                    let folded = fold(name);
                    // Another spelling that the base has too was there all along.
                    let takes_its_place = |other: &[u8]| {
                        other == name || (fold(other) == folded && tree.get_name_bytes(other).is_none())
                    };
                    for (other, mode, id) in take(&mut entries, takes_its_place) {
                        if other != *name || (mode, id) != before {
                            self.held.push(joined(path, &other));
                        }
                    }
                    entries.push((name.clone(), before.0, before.1));
                }
                Below::Some(hidden) => {
                    let mut inner = None;
                    for (_, mode, id) in take(&mut entries, |other| other == name) {
                        match mode {
                            0o040000 => inner = Some(id),
                            _ => self.held.push(joined(path, name)),
                        }
                    }
                    let id = self.folder(inner, before.1, hidden, &joined(path, name))?;
                    entries.push((name.clone(), 0o040000, id));
                }
            }
        }
        Ok(self.objects.put(&self.odb, ObjectType::Tree, &tree_object(entries))?)
    }

    fn entries(&self, tree: Oid) -> Result<Entries, GitError> {
        if let Some(content) = self.objects.tree(tree) {
            return parse(content);
        }
        let tree = self.repository.find_tree(tree)?;
        let entries = tree.iter().map(|it| (it.name_bytes().to_vec(), it.filemode_raw() as u32, it.id()));
        Ok(entries.collect())
    }
}

fn take(entries: &mut Entries, mut which: impl FnMut(&[u8]) -> bool) -> Entries {
    entries.extract_if(.., |(name, _, _)| which(name)).collect()
}

/// The entries of a tree object that we made.
fn parse(mut content: &[u8]) -> Result<Entries, GitError> {
    let broken =
        || GitError::UnsafeTree { path: BString::default(), reason: "a tree of ours is broken".to_owned() };
    let mut entries = Entries::new();
    while !content.is_empty() {
        let space = content.iter().position(|&byte| byte == b' ').ok_or_else(broken)?;
        let nul = content.iter().position(|&byte| byte == 0).ok_or_else(broken)?;
        let name = content.get(space + 1..nul).ok_or_else(broken)?;
        let mode =
            std::str::from_utf8(&content[..space]).ok().and_then(|text| u32::from_str_radix(text, 8).ok());
        let id = content.get(nul + 1..nul + 21).ok_or_else(broken)?;
        entries.push((name.to_vec(), mode.ok_or_else(broken)?, Oid::from_bytes(id)?));
        content = &content[nul + 21..];
    }
    Ok(entries)
}
