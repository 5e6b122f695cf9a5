//! One consistent cut: the database first, then the repositories. A branch is in its repository before the database names it, so
//! whatever the cut names is there; what came later does no harm.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::{ErrorKind, Read as _};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use chrono::{DateTime, Utc};
use futures::StreamExt as _;
use rand::TryRng as _;
use secrecy::SecretBox;
use serde_json::json;
use sqlx::{PgConnection, PgPool};
use tokio::task::spawn_blocking;

use crate::backup::error::BackupError;
use crate::backup::manifest::{self, FORMAT, Index, Manifest, Object, Piece, Repository, Tree};
use crate::backup::pieces::{FILE_PIECE, Rows};
use crate::backup::seal::{Recipients, Sealer, piece};
use crate::backup::store::{Backup, Published, Store};
use crate::db;
use crate::db::cut::{Branch, Cut, Table};
use crate::domain::audit::{Actor, Entry, Outcome};
use crate::domain::name::Name;
use crate::git::mirror::Mirror;
use crate::git::replica::Parts;
use crate::trail::checkpoint::Checkpoint;
use crate::trail::note::Note;

/// Branches that are named in an error or a manifest; how many there are is said beside.
const NAMED: usize = 1000;

/// What is backed up.
#[derive(Debug)]
pub struct Installation<'a> {
    /// With the owner's rights.
    pub pool: &'a PgPool,
    pub data_dir: &'a Path,
    pub instance: &'a str,
}

/// How.
#[derive(Debug)]
pub struct Wish {
    pub recipients: Recipients,
    /// Whether what the database names may be missing in the data folder.
    pub allow_missing: bool,
}

/// What came of it.
#[derive(Debug)]
pub struct Made {
    pub name: String,
    pub manifest: Manifest,
    pub sha256: String,
    pub rows: u64,
    pub repositories: usize,
    pub new_files: usize,
    pub new_bytes: u64,
    /// The first of them.
    pub missing: Vec<String>,
}

/// Puts pieces into the folder, each once.
struct Writer {
    store: Store,
    sealer: Sealer,
    /// Of the backup before.
    known: HashMap<String, Object>,
    objects: BTreeMap<String, Object>,
    new_files: usize,
    new_bytes: u64,
}

impl Writer {
    fn put(&mut self, bytes: &[u8]) -> Result<Piece, BackupError> {
        let name = self.sealer.name(bytes);
        if !self.objects.contains_key(&name) {
            let known = self.known.remove(&name).filter(|object| self.store.has(object));
            let object = match known {
                Some(object) => object,
                None => {
                    let object = self.store.write(&name, &self.sealer.seal(bytes)?)?;
                    self.new_files += 1;
                    self.new_bytes += object.bytes;
                    object
                }
            };
            self.objects.insert(name.clone(), object);
        }
        Ok(piece(name, bytes))
    }
}

#[derive(Clone)]
struct Shared(Arc<Mutex<Writer>>);

impl Shared {
    fn put_here(&self, bytes: &[u8]) -> Result<Piece, BackupError> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).put(bytes)
    }

    async fn put(&self, bytes: Vec<u8>) -> Result<Piece, BackupError> {
        let this = self.clone();
        spawn_blocking(move || this.put_here(&bytes)).await?
    }

    fn into_inner(self) -> Result<Writer, BackupError> {
        let writer = Arc::into_inner(self.0);
        let writer = writer.map(|writer| writer.into_inner().unwrap_or_else(PoisonError::into_inner));
        writer.ok_or_else(|| BackupError::Refused("a part of the work still goes on: try again".to_owned()))
    }
}

/// Makes a backup in `folder`, of what has changed since the last one there.
///
/// # Errors
/// [`BackupError`]: then there is no backup, and the earlier ones are as they were.
pub async fn make(installation: &Installation<'_>, folder: &Path, wish: Wish) -> Result<Made, BackupError> {
    let store = Store::to_write(folder)?;
    let parent = store.latest()?;
    refuse_plain(parent.as_ref(), &wish)?;
    refuse_anothers(parent.as_ref(), installation.instance)?;
    let mut connection = installation.pool.acquire().await?;
    let key = name_key(&mut connection).await?;
    let schema = db::cut::schema(&mut connection).await?;
    drop(connection);
    let recipients = wish.recipients.names().to_vec();
    let known = parent.iter().flat_map(|parent| &parent.manifest.objects);
    let writer = Shared(Arc::new(Mutex::new(Writer {
        known: known.map(|object| (object.name.clone(), object.clone())).collect(),
        sealer: Sealer::new(wish.recipients, key),
        objects: BTreeMap::new(),
        new_files: 0,
        new_bytes: 0,
        store,
    })));
    let made_at = Utc::now();
    let mut cut = Cut::open(installation.pool).await?;
    let audit = tree(&mut cut).await?;
    let index = index(installation, cut, &writer, wish.allow_missing).await?;
    let bytes = serde_json::to_vec(&index).map_err(|error| BackupError::io("write", folder)(error.into()))?;
    let sealed = writer.put(bytes).await?;
    let writer = writer.into_inner()?;
    let manifest = Manifest {
        format: FORMAT,
        kage: env!("CARGO_PKG_VERSION").to_owned(),
        schema: schema.last().map_or(0, |(version, _)| *version),
        schema_sha256: manifest::schema_hash(&schema),
        instance: installation.instance.to_owned(),
        number: parent.as_ref().map_or(1, |parent| parent.manifest.number + 1),
        made_at,
        parent: parent.map(|parent| parent.name),
        recipients,
        audit,
        index: sealed,
        objects: writer.objects.into_values().collect(),
    };
    let published = writer.store.publish(&manifest)?;
    let sha256 = published.sha256.clone();
    let name = record(installation.pool, published, &manifest, writer.new_bytes).await?;
    Ok(Made {
        name,
        sha256,
        rows: index.tables.iter().map(|table| table.rows).sum(),
        repositories: index.repositories.len(),
        new_files: writer.new_files,
        new_bytes: writer.new_bytes,
        missing: index.missing,
        manifest,
    })
}

async fn name_key(connection: &mut PgConnection) -> Result<SecretBox<[u8; 32]>, BackupError> {
    let mut fresh = [0; 32];
    rand::rngs::SysRng
        .try_fill_bytes(&mut fresh)
        .map_err(|error| BackupError::Encrypt(format!("no random bytes: {error}")))?;
    let key = db::cut::name_key(connection, fresh).await?;
    let key: [u8; 32] =
        key.try_into().map_err(|_| BackupError::Encrypt("the key of names is not 32 bytes".to_owned()))?;
    Ok(SecretBox::new(Box::new(key)))
}

/// Somebody who forgets whom to encrypt to must not get a backup that all can read. Nor is the manifest asked: whoever can write to
/// the folder could put a recipient there.
fn refuse_plain(parent: Option<&Backup>, wish: &Wish) -> Result<(), BackupError> {
    let encrypted = parent.is_some_and(|parent| !parent.manifest.recipients.is_empty());
    if encrypted && wish.recipients.names().is_empty() {
        return Err(BackupError::Refused(
            "the backups in this folder are encrypted: say to whom this one is (--recipient), or name another folder"
                .to_owned(),
        ));
    }
    Ok(())
}

/// The newest of two installations' backups would be whose came last.
fn refuse_anothers(parent: Option<&Backup>, instance: &str) -> Result<(), BackupError> {
    match parent.map(|parent| parent.manifest.instance.as_str()) {
        Some(theirs) if theirs != instance => Err(BackupError::Refused(format!(
            "the backups in this folder are of the instance {theirs:?} (KAGE_INSTANCE), and this one is {instance:?}: name \
             another folder"
        ))),
        _ => Ok(()),
    }
}

/// The audit entry's transaction ends after the backup is there, and takes it away again if it cannot end.
async fn record(
    pool: &PgPool,
    published: Published<'_>,
    manifest: &Manifest,
    new_bytes: u64,
) -> Result<String, BackupError> {
    let details = json!({ "manifest_sha256": published.sha256, "parent": manifest.parent,
        "files": manifest.objects.len(), "bytes": bytes_of(manifest), "new_bytes": new_bytes,
        "encrypted": !manifest.recipients.is_empty(), "recipients": manifest.recipients,
        "audit": manifest.audit });
    let object = format!("backup:{}", published.name);
    let entry = Entry { actor: Actor::Host, action: "backup.make", object, outcome: Outcome::Done, details };
    let recorded = async {
        let mut transaction = pool.begin().await?;
        db::audit::append(&mut transaction, &entry).await?;
        Ok::<_, BackupError>(transaction.commit().await?)
    };
    match recorded.await {
        Ok(()) => published.keep(),
        Err(error) => {
            published.withdraw()?;
            Err(error)
        }
    }
}

/// As it is stored.
pub fn bytes_of(manifest: &Manifest) -> u64 {
    manifest.objects.iter().map(|object| object.bytes).sum()
}

async fn tree(cut: &mut Cut) -> Result<Option<Tree>, BackupError> {
    let head = db::trail::head(cut.connection()).await?;
    let parsed = |note: String| Checkpoint::parse(&Note::parse(&note)?.text);
    let checkpoint = head.note.map(parsed).transpose().map_err(|error| {
        BackupError::Refused(format!(
            "the audit log's last checkpoint cannot be read: {error}; see kage audit verify"
        ))
    })?;
    Ok(checkpoint.map(|checkpoint| Tree { size: checkpoint.size, root: hex::encode(checkpoint.root) }))
}

async fn index(
    installation: &Installation<'_>,
    mut cut: Cut,
    writer: &Shared,
    allow_missing: bool,
) -> Result<Index, BackupError> {
    let mut index = Index::default();
    for partition in &cut.partitions {
        let (parent, name, bound) = (&partition.parent, &partition.name, &partition.bound);
        index.partitions.push(manifest::Partition {
            parent: parent.clone(),
            name: name.clone(),
            bound: bound.clone(),
        });
    }
    for table in cut.tables.clone() {
        index.tables.push(rows(&mut cut, table, writer).await?);
    }
    for sequence in cut.sequences().await? {
        let db::cut::Sequence { name, last, called } = sequence;
        index.sequences.push(manifest::Sequence { name, last, called });
    }
    let (repositories, branches) = (cut.repositories().await?, cut.branches().await?);
    // Nothing waits for the tables any more while files are copied.
    cut.close().await?;
    for (name, fetched) in repositories {
        let (writer, data_dir, named) = (writer.clone(), installation.data_dir.to_owned(), name.clone());
        match spawn_blocking(move || repository(&data_dir, &named, &writer)).await?? {
            Some(repository) => index.repositories.push(repository),
            None if fetched => index.missing.push(format!("repository {name}")),
            None => {}
        }
    }
    let missing = missing(&index.repositories, &branches);
    index.missing.extend(missing);
    if !index.missing.is_empty() && !allow_missing {
        let some = index.missing.iter().take(5).cloned().collect::<Vec<_>>().join(", ");
        return Err(BackupError::Refused(format!(
            "{} has not all that the database names ({}): {some}. Is it this installation's KAGE_DATA_DIR? Something that was \
             removed meanwhile is gone at the next try. Where several runners have data folders of their own, --allow-missing makes \
             a backup of this one's, and each needs its own",
            installation.data_dir.display(),
            index.missing.len(),
        )));
    }
    index.missing.truncate(NAMED);
    Ok(index)
}

async fn rows(cut: &mut Cut, table: Table, writer: &Shared) -> Result<manifest::Table, BackupError> {
    let mut pieces = Vec::new();
    let mut rows = Rows::default();
    let mut stream = cut.rows(&table).await?;
    while let Some(bytes) = stream.next().await {
        for finished in rows.push(&bytes?) {
            pieces.push(writer.put(finished).await?);
        }
    }
    drop(stream);
    let (last, rows) = rows.finish();
    if let Some(last) = last {
        pieces.push(writer.put(last).await?);
    }
    Ok(manifest::Table { name: table.name, columns: table.columns, key: table.key, rows, pieces })
}

/// Blocks. None: there is no such mirror.
fn repository(data_dir: &Path, name: &str, writer: &Shared) -> Result<Option<Repository>, BackupError> {
    // The name comes from the database, and becomes a part of a path.
    let name: Name = name.parse().map_err(|error| {
        BackupError::Refused(format!("the database names a repository {name:?}, which cannot be: {error}"))
    })?;
    let path = data_dir.join("repos").join(format!("{name}.git"));
    if !path.exists() {
        return Ok(None);
    }
    let name = name.to_string();
    let parts = Mirror::open(&path).and_then(|mirror| mirror.parts()).map_err(BackupError::git(&name))?;
    let Parts { refs, default, shallow, files } = parts;
    let mut kept = Vec::new();
    for file in files {
        let pieces = file_pieces(&path.join(&file), writer)?;
        kept.push(manifest::File { name: file, pieces });
    }
    Ok(Some(Repository { name, refs, default, shallow, files: kept }))
}

fn file_pieces(path: &Path, writer: &Shared) -> Result<Vec<Piece>, BackupError> {
    let mut file = match File::open(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => {
            return Err(BackupError::Refused(format!(
                "{} was removed while it was being backed up: try again",
                path.display()
            )));
        }
        other => other.map_err(BackupError::io("open", path))?,
    };
    let mut pieces = Vec::new();
    loop {
        let mut bytes = Vec::new();
        let mut part = (&mut file).take(FILE_PIECE as u64);
        part.read_to_end(&mut bytes).map_err(BackupError::io("read", path))?;
        if bytes.is_empty() {
            return Ok(pieces);
        }
        pieces.push(writer.put_here(&bytes)?);
    }
}

/// Branches of the cut that the repositories do not have, or have with another commit.
fn missing(repositories: &[Repository], branches: &[Branch]) -> Vec<String> {
    let by_name: HashMap<&str, &Repository> =
        repositories.iter().map(|repository| (repository.name.as_str(), repository)).collect();
    let is_there = |branch: &Branch| {
        by_name.get(branch.repository.as_str()).is_some_and(|repository| {
            repository.refs.get(&format!("refs/heads/{}", branch.branch)) == Some(&branch.commit_hash)
        })
    };
    let missing = branches.iter().filter(|branch| !is_there(branch));
    missing.map(|branch| format!("{}: {}", branch.repository, branch.branch)).collect()
}

/// When a backup was made, for people.
pub fn at(time: DateTime<Utc>) -> String {
    time.format("%Y-%m-%d %H:%M:%S UTC").to_string()
}
