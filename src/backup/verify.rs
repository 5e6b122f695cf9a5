//! A backup, read from its first byte to its last and checked: files, pieces, the audit log's tree, and repositories put
//! together in a folder of their own. Nothing of it is written anywhere else.

use std::collections::{HashMap, HashSet};
use std::path::Path;

use tokio::task::spawn_blocking;

use crate::backup::error::BackupError;
use crate::backup::manifest::{Index, Manifest, Object, Piece, Repository, Tree};
use crate::backup::seal::Identities;
use crate::backup::store::{Backup, Store, by_name};
use crate::git::replica::{self, Parts, Replica};
use crate::trail::tree::{Frontier, Hash};

/// What was found good.
#[derive(Debug)]
pub struct Verified {
    pub backup: Backup,
    /// None: it is encrypted, and without an identity there is no look inside.
    pub index: Option<Index>,
}

/// Reads pieces of one backup.
pub(super) struct Reader<'a> {
    store: &'a Store,
    objects: HashMap<&'a str, &'a Object>,
    identities: &'a Identities,
    encrypted: bool,
}

impl<'a> Reader<'a> {
    pub fn new(store: &'a Store, manifest: &'a Manifest, identities: &'a Identities) -> Self {
        let encrypted = !manifest.recipients.is_empty();
        Self { store, objects: by_name(manifest), identities, encrypted }
    }

    /// `what` it is a part of, for the error.
    pub fn piece(&self, piece: &Piece, what: &str) -> Result<Vec<u8>, BackupError> {
        let object = self.objects.get(piece.object.as_str()).ok_or_else(|| {
            BackupError::damaged(what, format!("the manifest does not name its file {:?}", piece.object))
        })?;
        let stored = self.store.object(object)?;
        self.identities.open(&stored, self.encrypted, piece).map_err(|problem| {
            BackupError::damaged(format!("objects/{}/{} ({what})", &object.name[..2], object.name), problem)
        })
    }

    pub fn index(&self, manifest: &Manifest) -> Result<Index, BackupError> {
        let bytes = self.piece(&manifest.index, "the index")?;
        serde_json::from_slice(&bytes).map_err(|error| BackupError::damaged("the index", error))
    }

    /// Puts a repository together. Blocks.
    pub fn repository(&self, repository: &Repository, path: &Path) -> Result<(), BackupError> {
        let name = &repository.name;
        let damaged =
            |problem: &dyn ToString| BackupError::damaged(format!("repository {name}"), problem.to_string());
        let parts = Parts {
            refs: repository.refs.clone(),
            default: repository.default.clone(),
            shallow: repository.shallow.clone(),
            files: repository.files.iter().map(|file| file.name.clone()).collect(),
        };
        let replica = Replica::begin(path, &parts).map_err(|error| damaged(&error))?;
        for file in &repository.files {
            let mut target = replica.file(&file.name).map_err(BackupError::git(name))?;
            for piece in &file.pieces {
                let bytes = self.piece(piece, &format!("repository {name}, {}", file.name))?;
                replica::write(&mut target, &bytes, &file.name).map_err(BackupError::git(name))?;
            }
        }
        replica.finish().map_err(|error| damaged(&error))
    }

    /// Holds the leaves of the audit log against the root that the manifest says.
    pub fn audit(&self, index: &Index, tree: &Tree) -> Result<(), BackupError> {
        let what = "table audit_leaves";
        let damaged = |problem: &str| BackupError::damaged(what, problem);
        let table = index.tables.iter().find(|table| table.name == "audit_leaves");
        let table = table.ok_or_else(|| damaged("it is missing"))?;
        let place = |name: &str| table.columns.iter().position(|column| column == name);
        let (Some(number), Some(hash)) = (place("index"), place("hash")) else {
            return Err(damaged("it has not the columns of one"));
        };
        let mut edge = Frontier::default();
        let mut root = None;
        for piece in &table.pieces {
            let bytes = self.piece(piece, what)?;
            let text = std::str::from_utf8(&bytes).map_err(|_| damaged("it is no text"))?;
            for line in text.lines() {
                let values: Vec<&str> = line.split('\t').collect();
                let leaf = values.get(hash).and_then(|value| value.strip_prefix("\\\\x"));
                let leaf: Option<Hash> = leaf.and_then(|value| hex::decode(value).ok()?.try_into().ok());
                let expected = edge.size().to_string();
                let (Some(leaf), Some(&number)) = (leaf, values.get(number)) else {
                    return Err(damaged(&format!("leaf {expected} cannot be read")));
                };
                if number != expected {
                    return Err(damaged(&format!("leaf {expected} is missing")));
                }
                edge.push(leaf);
                if edge.size() == tree.size {
                    root = Some(hex::encode(edge.root()));
                }
            }
        }
        match root {
            Some(root) if root == tree.root => Ok(()),
            Some(root) => {
                Err(damaged(&format!("its root at size {} is {root}, and was {}", tree.size, tree.root)))
            }
            None => Err(damaged(&format!("it has {} leaves, and the tree {}", edge.size(), tree.size))),
        }
    }
}

/// Reads everything. With an identity, or where nothing is encrypted, also what is in the files; repositories are put
/// together beneath `scratch`, one at a time.
///
/// # Errors
/// [`BackupError::Damaged`] names the place.
pub async fn verify(
    store: Store,
    name: Option<String>,
    identities: Identities,
    scratch: std::path::PathBuf,
) -> Result<Verified, BackupError> {
    spawn_blocking(move || {
        let backup = select(&store, name.as_deref())?;
        let index = check(&store, &backup, &identities, true)?;
        if let Some(index) = &index {
            let reader = Reader::new(&store, &backup.manifest, &identities);
            for repository in &index.repositories {
                let folder = tempfile::Builder::new().prefix("kage-verify-").tempdir_in(&scratch);
                let folder = folder.map_err(BackupError::io("make a folder in", &scratch))?;
                reader.repository(repository, &folder.path().join("repository.git"))?;
            }
        }
        Ok(Verified { backup, index })
    })
    .await?
}

/// The one that was asked for, or the newest.
pub(super) fn select(store: &Store, name: Option<&str>) -> Result<Backup, BackupError> {
    match name {
        Some(name) => store.backup(name),
        None => store
            .latest()?
            .ok_or_else(|| BackupError::Refused("there is no backup in this folder".to_owned())),
    }
}

/// Every file, and every piece of it if it can be opened. `without`: an encrypted one may stay closed.
pub(super) fn check(
    store: &Store,
    backup: &Backup,
    identities: &Identities,
    without: bool,
) -> Result<Option<Index>, BackupError> {
    let manifest = &backup.manifest;
    let encrypted = !manifest.recipients.is_empty();
    if encrypted && identities.is_empty() {
        if without {
            manifest.objects.iter().try_for_each(|object| store.object(object).map(drop))?;
            return Ok(None);
        }
        return Err(BackupError::Refused(format!(
            "the backup is encrypted to {}: name the file of one's identity with --identity",
            manifest.recipients.join(", ")
        )));
    }
    let reader = Reader::new(store, manifest, identities);
    let index = reader.index(manifest)?;
    let mut seen: HashSet<&str> = [manifest.index.object.as_str()].into();
    for (what, piece) in index.pieces() {
        if seen.insert(&piece.object) {
            reader.piece(piece, &what)?;
        }
    }
    let unseen = manifest.objects.iter().filter(|object| !seen.contains(object.name.as_str()));
    unseen.into_iter().try_for_each(|object| store.object(object).map(drop))?;
    if let Some(tree) = &manifest.audit {
        reader.audit(&index, tree)?;
    }
    Ok(Some(index))
}
