//! Configuration that a CLI obeys before its first prompt: where a revision has it, what it is, and the same revision
//! without it.
//!
//! All is read from objects of the mirror. A path is quarantined by its name, wherever in the tree it stands, and
//! with all that is below it; an operator approves exactly one content of it, by [`Finding::digest`].

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, PoisonError},
};

use bstr::{BString, ByteSlice};
use git2::{ObjectType, Odb, Oid, Repository, Tree};
use sha2::{Digest, Sha256};

use crate::git::{
    error::GitError,
    mirror::Mirror,
    quarantine_rules::{Match, Rules},
    store::tree_object,
    tree_list::{Kind, joined},
};

/// Folders one in another; a base has no more.
const MAX_DEPTH: usize = 256;
/// Entries of all trees that are looked at; a base has no more files.
const MAX_ENTRIES: u64 = 2_000_000;
/// Quarantined paths of one revision. A revision with more is refused.
const MAX_FINDINGS: usize = 1_000;
/// What is read of quarantined paths to hash them, for one revision. Beyond, a path cannot be approved.
const MAX_HASHED_BYTES: u64 = 64 << 20;
const MAX_HASHED_FILES: u64 = 10_000;
/// Longer paths cannot be approved: they are kept in the database.
const MAX_PATH: usize = 1024;
/// Revisions whose findings are remembered.
const REMEMBERED: usize = 256;

/// A quarantined path of a revision.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Finding {
    pub path: BString,
    pub kind: FindingKind,
    /// `sha256:` and the digest of modes, names and contents, in hexadecimal.
    pub digest: String,
    pub files: u64,
    /// Of all files together.
    pub bytes: u64,
    /// Why it cannot be approved, if so.
    pub obstacle: Option<&'static str>,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum FindingKind {
    File,
    Folder,
    Link,
    Submodule,
}

impl FindingKind {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::File => "file",
            Self::Folder => "folder",
            Self::Link => "link",
            Self::Submodule => "submodule",
        }
    }
}

/// Sorted by path.
pub type Findings = Arc<Vec<Finding>>;

/// Finds quarantined paths, and remembers what it found: a tree never changes.
#[derive(Debug, Default)]
pub struct Scanner {
    /// By tree and rules.
    known: Mutex<HashMap<(Oid, String), Findings>>,
}

impl Scanner {
    /// The quarantined paths of `commit`.
    pub fn findings(&self, mirror: &Mirror, commit: Oid, rules: &Rules) -> Result<Findings, GitError> {
        let repository = mirror.repository()?;
        let tree = repository.find_commit(commit)?.tree_id();
        let key = (tree, rules.key().to_owned());
        if let Some(found) = self.known.lock().unwrap_or_else(PoisonError::into_inner).get(&key) {
            return Ok(Arc::clone(found));
        }
        let found = Arc::new(scan(&repository, tree, rules)?);
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= REMEMBERED {
            known.clear();
        }
        known.insert(key, Arc::clone(&found));
        Ok(found)
    }
}

fn scan(repository: &Repository, tree: Oid, rules: &Rules) -> Result<Vec<Finding>, GitError> {
    let mut scan =
        Scan { repository, rules, entries: 0, hasher: Hasher::new(repository)?, found: Vec::new() };
    scan.folder(tree, &BString::default(), &mut Vec::new())?;
    scan.found.sort_unstable_by(|one, other| one.path.cmp(&other.path));
    Ok(scan.found)
}

struct Scan<'a> {
    repository: &'a Repository,
    rules: &'a Rules,
    entries: u64,
    hasher: Hasher<'a>,
    found: Vec<Finding>,
}

impl Scan<'_> {
    /// `above`: the folded names of the folder's path.
    fn folder(&mut self, tree: Oid, path: &BString, above: &mut Vec<Vec<u8>>) -> Result<(), GitError> {
        let tree = self.repository.find_tree(tree)?;
        self.entries += tree.len() as u64;
        limit("the number of files", MAX_ENTRIES, self.entries)?;
        limit("the depth of folders", MAX_DEPTH as u64, above.len() as u64)?;
        for entry in &tree {
            let (mode, name) = (entry.filemode_raw(), entry.name_bytes());
            let kind = match Kind::from_git_mode(mode) {
                Some(Kind::File { .. }) => FindingKind::File,
                Some(Kind::Link) => FindingKind::Link,
                Some(Kind::Submodule) => FindingKind::Submodule,
                None => FindingKind::Folder,
            };
            above.push(self.rules.fold(name));
            let leads_there = matches!(kind, FindingKind::Link | FindingKind::Submodule);
            match self.rules.matches(above) {
                Some(Match::Whole) => self.find(joined(path, name), kind, mode as u32, entry.id())?,
                // The rest of the pattern may lie where the link leads to.
                Some(Match::Beginning) if leads_there => {
                    self.find(joined(path, name), kind, mode as u32, entry.id())?;
                }
                _ if kind == FindingKind::Folder => self.folder(entry.id(), &joined(path, name), above)?,
                _ => {}
            }
            above.pop();
        }
        Ok(())
    }

    fn find(&mut self, path: BString, kind: FindingKind, mode: u32, id: Oid) -> Result<(), GitError> {
        limit("the number of quarantined paths", MAX_FINDINGS as u64, self.found.len() as u64 + 1)?;
        let mut content = Content::default();
        self.hasher.add(&mut content, &BString::default(), mode, id, 0)?;
        let plain = path.to_str().is_ok_and(|path| path.len() <= MAX_PATH && path.chars().all(is_plain));
        let obstacle = match () {
            () if !plain => Some("its path is not plain text, or too long"),
            () if content.leads_elsewhere => {
                Some("it is or holds a link or a submodule, and no digest says what is at its end")
            }
            () if content.unread => Some("it is too large to be hashed"),
            () => None,
        };
        let digest = format!("sha256:{}", hex::encode(content.hash.finalize()));
        let Content { files, bytes, .. } = content;
        self.found.push(Finding { path, kind, digest, files, bytes, obstacle });
        Ok(())
    }
}

/// What a person reads as it is: nothing that moves the cursor, reorders or hides.
fn is_plain(char: char) -> bool {
    let unseen = matches!(char, '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}'
        | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}');
    !char.is_control() && !unseen
}

#[derive(Default)]
struct Content {
    hash: Sha256,
    files: u64,
    bytes: u64,
    leads_elsewhere: bool,
    unread: bool,
}

/// Hashes content with a stronger function than git's, within limits.
struct Hasher<'a> {
    repository: &'a Repository,
    odb: Odb<'a>,
    files: u64,
    bytes: u64,
}

impl<'a> Hasher<'a> {
    fn new(repository: &'a Repository) -> Result<Hasher<'a>, GitError> {
        Ok(Hasher { repository, odb: repository.odb()?, files: 0, bytes: 0 })
    }

    /// One record a file, in git's order: mode, path and the content's own digest. A name has no NUL.
    fn add(
        &mut self,
        to: &mut Content,
        path: &BString,
        mode: u32,
        id: Oid,
        depth: usize,
    ) -> Result<(), GitError> {
        limit("the depth of folders", MAX_DEPTH as u64, depth as u64)?;
        if mode == 0o040000 {
            for entry in &self.repository.find_tree(id)? {
                let path = joined(path, entry.name_bytes());
                self.add(to, &path, entry.filemode_raw() as u32, entry.id(), depth + 1)?;
            }
            return Ok(());
        }
        to.files += 1;
        self.files += 1;
        to.hash.update(format!("{mode:o} "));
        to.hash.update(&**path);
        to.hash.update([0]);
        to.leads_elsewhere |= matches!(mode & 0o170000, 0o120000 | 0o160000);
        if mode & 0o170000 == 0o160000 {
            to.hash.update(id.as_bytes());
            return Ok(());
        }
        let size = self.odb.read_header(id)?.0 as u64;
        to.bytes += size;
        self.bytes += size;
        if self.bytes > MAX_HASHED_BYTES || self.files > MAX_HASHED_FILES {
            to.unread = true;
            to.hash.update(id.as_bytes());
            return Ok(());
        }
        to.hash.update(Sha256::digest(self.odb.read(id)?.data()));
        Ok(())
    }
}

/// `tree` without the paths in `hidden`, written to the repository. Folders that hold nothing more go too.
pub(crate) fn without(repository: &Repository, tree: Oid, hidden: &[BString]) -> Result<Oid, GitError> {
    let odb = repository.odb()?;
    match thin(repository, &odb, tree, &Paths::of(hidden))? {
        Some(tree) => Ok(tree),
        None => keep(&odb, &[]),
    }
}

fn thin(repository: &Repository, odb: &Odb<'_>, tree: Oid, paths: &Paths) -> Result<Option<Oid>, GitError> {
    let tree = repository.find_tree(tree)?;
    paths.all_in(&tree)?;
    let mut entries = Vec::with_capacity(tree.len());
    for entry in &tree {
        let (name, mode) = (entry.name_bytes(), entry.filemode_raw() as u32);
        match paths.0.get(name) {
            None => entries.push((name.to_vec(), mode, entry.id())),
            Some(Below::All) => {}
            Some(Below::Some(paths)) => {
                if let Some(id) = thin(repository, odb, entry.id(), paths)? {
                    entries.push((name.to_vec(), mode, id));
                }
            }
        }
    }
    if entries.is_empty() { Ok(None) } else { keep(odb, &tree_object(entries)).map(Some) }
}

fn keep(odb: &Odb<'_>, tree: &[u8]) -> Result<Oid, GitError> {
    let id = Oid::hash_object(ObjectType::Tree, tree)?;
    if odb.exists(id) { Ok(id) } else { Ok(odb.write(ObjectType::Tree, tree)?) }
}

/// Paths by folder.
#[derive(Debug, Default)]
pub(crate) struct Paths(pub BTreeMap<Vec<u8>, Below>);

#[derive(Debug)]
pub(crate) enum Below {
    All,
    Some(Paths),
}

impl Paths {
    /// None of the paths may be below another one.
    pub fn of(paths: &[BString]) -> Paths {
        let mut root = Paths::default();
        for path in paths {
            let mut folder = &mut root;
            let mut names = path.split(|&byte| byte == b'/').peekable();
            while let Some(name) = names.next() {
                if names.peek().is_none() {
                    folder.0.insert(name.to_vec(), Below::All);
                    break;
                }
                let below = folder.0.entry(name.to_vec()).or_insert_with(|| Below::Some(Paths::default()));
                let Below::Some(next) = below else { break };
                folder = next;
            }
        }
        root
    }

    /// A path that is not there would be hidden nowhere.
    pub fn all_in(&self, tree: &Tree<'_>) -> Result<(), GitError> {
        match self.0.keys().find(|name| tree.get_name_bytes(name).is_none()) {
            None => Ok(()),
            Some(name) => Err(GitError::UnsafeTree {
                path: name.as_slice().into(),
                reason: "it is to be hidden, but the revision does not have it".to_owned(),
            }),
        }
    }
}

fn limit(what: &'static str, limit: u64, seen: u64) -> Result<(), GitError> {
    if seen > limit { Err(GitError::CheckoutLimit { what, limit, seen }) } else { Ok(()) }
}
