//! A backup, put into an empty database and an empty data folder. Everything is read and checked before anything is written.
//!
//! 1. The database says that a restore is under way ([`crate::db::restoring`]): from here to the end nothing else starts on it.
//! 2. The schema of the backup; the repositories, put together beside their place.
//! 3. All rows, in one transaction.
//! 4. The schema of this program; the repositories come to their place; what had not ended is settled, and the word of 1 goes.
//!
//! One that was killed before 3 has ended begins anew, one that was killed later goes on with 4.

use std::path::Path;

use serde_json::json;
use sqlx::{PgConnection, PgPool};
use uuid::Uuid;

use crate::backup::error::BackupError;
use crate::backup::folder::Folder;
use crate::backup::make::at;
use crate::backup::manifest::{self, Index, Manifest};
use crate::backup::seal::Identities;
use crate::backup::store::{Backup, Store};
use crate::backup::verify::{Reader, check, select};
use crate::db;
use crate::db::after_restore::{self, Settled};
use crate::db::reload::{self, Reload};
use crate::db::restoring::{self, Restoring};
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
/// [`BackupError`]: then nothing is there; or [`BackupError::Unfinished`]: then no role starts until it was run again.
pub async fn restore(store: &Store, target: &Target<'_>, wish: Wish) -> Result<Restored, BackupError> {
    let backup = select(store, wish.name.as_deref())?;
    suits(&backup.manifest)?;
    let folder = Folder::take(target.data_dir)?;
    let mut session = session(target.pool).await?;
    let begun = begun(&mut session, &folder, &backup).await?;
    let index = check(store, &backup, &wish.identities, false)?.unwrap_or_default();
    let id = match begun {
        Some(id) => id,
        None => {
            let reader = Reader::new(store, &backup.manifest, &wish.identities);
            let restoring = Restoring {
                id: Uuid::new_v4(),
                backup: backup.name.clone(),
                data_dir: folder.root().display().to_string(),
                loaded: false,
            };
            folder.write_note(restoring.id)?;
            restoring::begin(&mut session, &restoring).await?;
            match prepare(target.pool, &folder, &reader, &index, &backup.manifest).await {
                // From here on it cannot be known whether the rows are there: the database says.
                Ok(reload) => reload.commit().await.map_err(|error| unfinished(error.into()))?,
                Err(error) => {
                    let undone = undo(&mut session, &folder).await;
                    return Err(if undone.is_ok() { error } else { unfinished(error) });
                }
            }
            restoring.id
        }
    };
    let settled = finish(target.pool, &folder, &backup, id, wish.requeue).await.map_err(unfinished)?;
    let (rows, repositories) = (index.tables.iter().map(|table| table.rows).sum(), index.repositories.len());
    Ok(Restored { backup, rows, repositories, settled, missing: index.missing })
}

fn unfinished(error: BackupError) -> BackupError {
    BackupError::Unfinished(Box::new(error))
}

async fn session(pool: &PgPool) -> Result<PgConnection, BackupError> {
    restoring::session(pool).await.map_err(|error| {
        if error.is_lock_timeout() {
            return BackupError::Refused(
                "another restore works with this database: wait until it has ended".to_owned(),
            );
        }
        error.into()
    })
}

/// The restore that was killed after all rows were there, and is to go on. None: there is nothing yet, in the database or in the folder.
async fn begun(
    session: &mut PgConnection,
    folder: &Folder,
    backup: &Backup,
) -> Result<Option<Uuid>, BackupError> {
    let note = folder.read_note();
    match (restoring::find(session).await?, note) {
        (Some(found), _) if found.loaded && found.backup != backup.name => {
            Err(BackupError::Refused(format!(
                "backup {0} was half restored into this database: go on with --backup {0}, or make an empty database and set \
             KAGE_DATABASE_URL",
                found.backup
            )))
        }
        (Some(found), Some(note)) if found.loaded && found.id == note => Ok(Some(note)),
        (Some(found), _) if found.loaded => Err(BackupError::Refused(format!(
            "the database was half restored together with the data folder {}, and {} is not as that restore left it: set \
             KAGE_DATA_DIR to that one, or make an empty database and set KAGE_DATABASE_URL",
            found.data_dir,
            folder.root().display()
        ))),
        (found, note) => {
            if let (None, Some(note)) = (found, note)
                && let Some(ended) = restoring::ended(session, note).await?
            {
                return Err(BackupError::Refused(format!(
                    "backup {ended} was restored to its end, both database and data folder: start kage"
                )));
            }
            folder.refuse_repositories()?;
            refuse_rows(session).await?;
            Ok(None)
        }
    }
}

/// Everything up to the end of the transaction that has the rows.
async fn prepare(
    pool: &PgPool,
    folder: &Folder,
    reader: &Reader<'_>,
    index: &Index,
    manifest: &Manifest,
) -> Result<Reload, BackupError> {
    db::schema::migrate_to(pool, manifest.schema).await?;
    let applied = db::cut::schema(&mut *pool.acquire().await?).await?;
    if manifest::schema_hash(&applied) != manifest.schema_sha256 {
        let further = applied.last().map_or(0, |(version, _)| *version);
        return Err(BackupError::Refused(format!(
            "the database has the schema of migration {further}, and the backup that of {}: a restore of an older one needs a \
             database in which nobody has migrated; make a new one and set KAGE_DATABASE_URL",
            manifest.schema
        )));
    }
    let staged = folder.stage()?;
    for repository in &index.repositories {
        let name: crate::domain::name::Name = repository.name.parse().map_err(|_| {
            BackupError::damaged("the index", format!("{:?} is no name of a repository", repository.name))
        })?;
        reader.repository(repository, &staged.join(format!("{name}.git")))?;
    }
    folder.keep_staged()?;
    let mut reload = Reload::begin(pool).await?;
    // Again, now that nobody can write.
    refuse_rows(reload.connection()).await?;
    load(&mut reload, reader, index).await?;
    reload.arm().await?;
    restoring::set_loaded(reload.connection()).await?;
    Ok(reload)
}

/// Nothing came of it: both are as empty as they were.
async fn undo(session: &mut PgConnection, folder: &Folder) -> Result<(), BackupError> {
    restoring::end(session).await?;
    folder.unstage()?;
    folder.remove_note()
}

/// What comes after the rows. Each step can be repeated.
async fn finish(
    pool: &PgPool,
    folder: &Folder,
    backup: &Backup,
    id: Uuid,
    requeue: bool,
) -> Result<Settled, BackupError> {
    db::schema::migrate_to(pool, db::schema::latest()).await?;
    folder.put()?;
    let mut transaction = pool.begin().await?;
    let reason =
        format!("restored from a backup of {}: what it did since is not known", at(backup.manifest.made_at));
    let settled = after_restore::settle(&mut transaction, requeue, &reason).await?;
    db::audit::append(&mut transaction, &entry(backup, id, requeue, settled)).await?;
    restoring::end(&mut transaction).await?;
    transaction.commit().await?;
    folder.remove_note()?;
    Ok(settled)
}

fn entry(backup: &Backup, id: Uuid, requeue: bool, settled: Settled) -> Entry {
    let manifest = &backup.manifest;
    Entry {
        actor: Actor::Host,
        action: "backup.restore",
        object: format!("backup:{}", backup.name),
        outcome: Outcome::Done,
        details: json!({ "manifest_sha256": sha256_of(&backup.name), "made_at": manifest.made_at,
            "backup": backup.name, "restore": id, "schema": manifest.schema,
            "instance": manifest.instance, "audit": manifest.audit, "requeue": requeue,
            "runs_lost": settled.lost, "runs_queued": settled.queued }),
    }
}

/// Of the manifest; the name was held against it.
pub fn sha256_of(name: &str) -> &str {
    name.rsplit('-').next().unwrap_or_default()
}

/// Rows fit the very schema that they came from: this program's, or one that it once had.
fn suits(manifest: &Manifest) -> Result<(), BackupError> {
    let (theirs, version, ours) = (manifest.schema, &manifest.kage, db::schema::latest());
    let own: Vec<_> = db::schema::own().into_iter().filter(|(version, _)| *version <= theirs).collect();
    if theirs <= ours && manifest.schema_sha256 == manifest::schema_hash(&own) {
        return Ok(());
    }
    let advice = if theirs > ours {
        format!("is newer than this program: restore with kage {version} or a later release")
    } else {
        format!("is none that this program ever had: restore with the build that made it (kage {version})")
    };
    Err(BackupError::Refused(format!("the backup's schema ({theirs}; this program's is {ours}) {advice}")))
}

async fn refuse_rows(connection: &mut PgConnection) -> Result<(), BackupError> {
    match reload::with_rows(connection).await? {
        None => Ok(()),
        Some(table) => Err(BackupError::Refused(format!(
            "the database has rows ({table}): a restore needs an empty one, and no role may have started with it; \
             make a new database and set KAGE_DATABASE_URL"
        ))),
    }
}

async fn load(reload: &mut Reload, reader: &Reader<'_>, index: &Index) -> Result<(), BackupError> {
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
    }
    for sequence in &index.sequences {
        let manifest::Sequence { name, last, called } = sequence.clone();
        if !reload.sequence(&db::cut::Sequence { name, last, called }).await? {
            return Err(damaged(format!("there is no sequence {:?}", sequence.name)));
        }
    }
    Ok(())
}
