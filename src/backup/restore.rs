//! A backup, put into an empty database and an empty data folder. Everything is read and checked before anything is written; then
//! the repositories are put together beside their place, the rows are taken in one transaction, and both appear at its end.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::ErrorKind;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};
use serde_json::json;
use sqlx::PgPool;

use crate::backup::error::BackupError;
use crate::backup::make::at;
use crate::backup::manifest::{self, Index, Manifest};
use crate::backup::seal::Identities;
use crate::backup::store::{Backup, Store};
use crate::backup::verify::{Reader, check, select};
use crate::db;
use crate::db::after_restore::{self, Settled};
use crate::db::reload::{self, Reload};
use crate::domain::audit::{Actor, Entry, Outcome};

/// Where it goes.
#[derive(Debug)]
pub struct Target<'a> {
    /// With the owner's rights; an empty database.
    pub pool: &'a PgPool,
    pub data_dir: &'a Path,
}

/// Which one, and how.
pub struct Wish {
    pub name: Option<String>,
    pub identities: Identities,
    /// Whether runs that had not ended get another attempt, as far as their tasks allow one.
    pub requeue: bool,
}

#[derive(Debug)]
pub struct Restored {
    pub backup: Backup,
    pub rows: u64,
    pub repositories: usize,
    pub settled: Settled,
    pub missing: Vec<String>,
}

/// # Errors
/// [`BackupError`]: then the database has no row and the data folder no repository of it.
pub async fn restore(store: &Store, target: &Target<'_>, wish: Wish) -> Result<Restored, BackupError> {
    let backup = select(store, wish.name.as_deref())?;
    suits(&backup.manifest)?;
    let folder = Folder::take(target.data_dir)?;
    refuse_rows(&mut *target.pool.acquire().await?).await?;
    let index = check(store, &backup, &wish.identities, false)?.unwrap_or_default();
    let reader = Reader::new(store, &backup.manifest, &wish.identities);
    let staged = folder.stage()?;
    for repository in &index.repositories {
        let name: crate::domain::name::Name = repository.name.parse().map_err(|_| {
            BackupError::damaged("the index", format!("{:?} is no name of a repository", repository.name))
        })?;
        reader.repository(repository, &staged.join(format!("{name}.git")))?;
    }
    db::migrate(target.pool).await?;
    let mut reload = Reload::begin(target.pool).await?;
    // Again, now that nobody can write.
    refuse_rows(reload.connection()).await?;
    let rows = load(&mut reload, &reader, &index).await?;
    reload.arm().await?;
    let reason =
        format!("restored from a backup of {}: what it did since is not known", at(backup.manifest.made_at));
    let settled = after_restore::settle(reload.connection(), wish.requeue, &reason).await?;
    db::audit::append(reload.connection(), &entry(&backup, wish.requeue, settled)).await?;
    folder.put(&staged)?;
    if let Err(error) = reload.commit().await {
        folder.take_back()?;
        return Err(error.into());
    }
    let repositories = index.repositories.len();
    Ok(Restored { backup, rows, repositories, settled, missing: index.missing })
}

fn entry(backup: &Backup, requeue: bool, settled: Settled) -> Entry {
    let manifest = &backup.manifest;
    Entry {
        actor: Actor::Host,
        action: "backup.restore",
        object: format!("backup:{}", backup.name),
        outcome: Outcome::Done,
        details: json!({ "manifest_sha256": sha256_of(&backup.name), "made_at": manifest.made_at,
            "instance": manifest.instance, "audit": manifest.audit, "requeue": requeue,
            "runs_lost": settled.lost, "runs_queued": settled.queued }),
    }
}

/// Of the manifest; the name was held against it.
pub fn sha256_of(name: &str) -> &str {
    name.rsplit('-').next().unwrap_or_default()
}

/// Rows fit the very schema that they came from. Older ones go through the version that knows them.
fn suits(manifest: &Manifest) -> Result<(), BackupError> {
    let own = db::schema::own();
    if manifest.schema_sha256 == manifest::schema_hash(&own) {
        return Ok(());
    }
    let (theirs, version) = (manifest.schema, &manifest.kage);
    let ours = own.last().map_or(0, |(version, _)| *version);
    let advice = if theirs > ours {
        format!("is newer than this program: restore with kage {version} or the release that made it")
    } else {
        format!(
            "is not this program's: restore with the release that made it (kage {version}), then start this one, which \
             brings the schema up to date"
        )
    };
    Err(BackupError::Refused(format!("the backup's schema ({theirs}; this program's is {ours}) {advice}")))
}

async fn refuse_rows(connection: &mut sqlx::PgConnection) -> Result<(), BackupError> {
    match reload::with_rows(connection).await? {
        None => Ok(()),
        Some(table) => Err(BackupError::Refused(format!(
            "the database has rows ({table}): a restore needs an empty one, and no role may have started with it; \
             make a new database and set KAGE_DATABASE_URL"
        ))),
    }
}

async fn load(reload: &mut Reload, reader: &Reader<'_>, index: &Index) -> Result<u64, BackupError> {
    let damaged = |problem: String| BackupError::damaged("the index", problem);
    if reload.count() != index.tables.len() {
        return Err(damaged("it has not all tables of its schema".to_owned()));
    }
    for partition in &index.partitions {
        let manifest::Partition { parent, name, bound } = partition.clone();
        let partition = db::cut::Partition { parent, name, bound };
        if !reload.partition(&partition).await? {
            return Err(damaged(format!("the partition {:?} cannot be made", partition.name)));
        }
    }
    let mut all = 0;
    for kept in &index.tables {
        let manifest::Table { name, columns, key, rows, pieces } = kept;
        let table = db::cut::Table { name: name.clone(), columns: columns.clone(), key: key.clone() };
        if !reload.knows(&table) {
            return Err(damaged(format!("the table {name:?} is not as in its schema")));
        }
        let what = format!("table {name}");
        let mut copy = reload.rows(&table).await?;
        for piece in pieces {
            copy.send(reader.piece(piece, &what)?).await?;
        }
        let taken = copy.finish().await?;
        if taken != *rows {
            return Err(damaged(format!("the table {name} has {taken} rows, and had {rows}")));
        }
        all += taken;
    }
    for sequence in &index.sequences {
        let manifest::Sequence { name, last, called } = sequence.clone();
        if !reload.sequence(&db::cut::Sequence { name, last, called }).await? {
            return Err(damaged(format!("there is no sequence {:?}", sequence.name)));
        }
    }
    Ok(all)
}

/// The data folder, with no runner at work in it.
struct Folder {
    root: PathBuf,
    /// Never read: no runner can begin while it is held.
    _lock: File,
}

impl Folder {
    fn take(root: &Path) -> Result<Self, BackupError> {
        let made = DirBuilder::new().recursive(true).mode(0o711).create(root);
        made.map_err(BackupError::io("make", root))?;
        let path = root.join("runner.lock");
        let lock = OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(&path);
        let lock = lock.map_err(BackupError::io("open", &path))?;
        match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => {
                return Err(BackupError::Refused(format!(
                    "a runner works in {}: stop kage first",
                    root.display()
                )));
            }
            Err(error) => return Err(BackupError::io("lock", &path)(error.into())),
        }
        let this = Self { root: root.to_owned(), _lock: lock };
        let repositories = this.repositories();
        match fs::read_dir(&repositories).map(|mut list| list.next().is_some()) {
            Ok(true) => Err(BackupError::Refused(format!(
                "{} has repositories: a restore needs an empty data folder; move this folder away, or set another KAGE_DATA_DIR",
                repositories.display()
            ))),
            Err(error) if error.kind() != ErrorKind::NotFound => {
                Err(BackupError::io("list", &repositories)(error))
            }
            _ => Ok(this),
        }
    }

    fn repositories(&self) -> PathBuf {
        self.root.join("repos")
    }

    fn staged(&self) -> PathBuf {
        self.root.join("repos.restoring")
    }

    /// An empty folder; what a restore that was killed left in it goes.
    fn stage(&self) -> Result<PathBuf, BackupError> {
        let path = self.staged();
        match fs::remove_dir_all(&path) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                return Err(BackupError::io("remove", &path)(error));
            }
            _ => {}
        }
        DirBuilder::new().mode(0o700).create(&path).map_err(BackupError::io("make", &path))?;
        Ok(path)
    }

    fn put(&self, staged: &Path) -> Result<(), BackupError> {
        let path = self.repositories();
        // Takes the place of a folder that is empty, and of no other.
        fs::rename(staged, &path).map_err(BackupError::io("put the repositories at", &path))?;
        let flushed = File::open(&self.root).and_then(|folder| folder.sync_all());
        flushed.map_err(BackupError::io("flush", &self.root))
    }

    fn take_back(&self) -> Result<(), BackupError> {
        let path = self.repositories();
        fs::rename(&path, self.staged()).map_err(BackupError::io("remove", &path))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // What was put together and did not come to its place.
        let _ = fs::remove_dir_all(self.staged());
    }
}
