//! What the database's schema is to this program: its own, one to bring forward, or one that it must leave alone.

use std::time::Duration;

use sqlx::Connection as _;
use sqlx::migrate::{MigrateError, Migrator};
use sqlx::postgres::PgPool;
use tokio::time::Instant;

use crate::db::error::DbError;
use crate::db::restoring;

static MIGRATOR: Migrator = sqlx::migrate!();

/// Whoever comes after a migration that waits for a table waits behind it. So none waits for longer than this; those behind it go
/// first then, and it is tried again.
const LOCK_WITHIN: &str = "SET lock_timeout = '2s'";
/// One that is no transaction holds nobody up while it waits, and what it was broken off in would be left half done.
const LOCK_WHENEVER: &str = "SET lock_timeout = 0";
/// Between two tries: long enough for what has waited.
const PAUSE: Duration = Duration::from_secs(1);
/// From the first try on. A dump of a large database takes minutes.
const PATIENCE: Duration = Duration::from_secs(600);

/// How the schema compares with the one that this program knows. Numbers are those of migrations.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Schema {
    Current,
    /// Nobody has migrated yet.
    Missing,
    /// This one is the first that it lacks.
    Older(i64),
    /// It has this one, which the program has never had.
    Newer(i64),
    /// This one is another text than the program's.
    Changed(i64),
    /// This one was begun and not ended.
    Torn(i64),
    /// A restore was begun in it and has not ended; see [`crate::db::restoring`].
    Restoring,
}

impl Schema {
    /// Why a program must not work with it, and what to do. [`Schema::Missing`] and [`Schema::Older`] can be brought forward.
    pub fn refusal(self) -> Option<DbError> {
        match self {
            Self::Current => None,
            Self::Missing => Some(DbError::SchemaMissing),
            Self::Older(lacks) => Some(DbError::SchemaOlder(lacks)),
            Self::Newer(has) => Some(DbError::SchemaNewer { has, known: latest() }),
            Self::Changed(migration) => Some(DbError::SchemaChanged(migration)),
            Self::Torn(migration) => Some(DbError::SchemaTorn(migration)),
            Self::Restoring => Some(DbError::Restoring),
        }
    }

    /// As [`Schema::refusal`], where migrating would not help either.
    pub fn obstacle(self) -> Option<DbError> {
        match self {
            Self::Missing | Self::Older(_) => None,
            other => other.refusal(),
        }
    }
}

/// Versions of this program's migrations, with their checksums, in order.
pub fn own() -> Vec<(i64, Vec<u8>)> {
    MIGRATOR.iter().map(|migration| (migration.version, migration.checksum.to_vec())).collect()
}

/// The newest migration of this program.
pub fn latest() -> i64 {
    MIGRATOR.iter().map(|migration| migration.version).max().unwrap_or(0)
}

/// # Errors
/// [`DbError::Unavailable`] if the database does not answer.
pub async fn state(pool: &PgPool) -> Result<Schema, DbError> {
    let restoring: bool = sqlx::query_scalar("SELECT to_regclass($1) IS NOT NULL")
        .bind(restoring::TABLE)
        .fetch_one(pool)
        .await?;
    if restoring { Ok(Schema::Restoring) } else { of_migrations(pool).await }
}

/// As [`state`], whether a restore is under way or not.
async fn of_migrations(pool: &PgPool) -> Result<Schema, DbError> {
    let exists: bool =
        sqlx::query_scalar("SELECT to_regclass('_sqlx_migrations') IS NOT NULL").fetch_one(pool).await?;
    if !exists {
        return Ok(Schema::Missing);
    }
    let applied: Vec<(i64, bool, Vec<u8>)> =
        sqlx::query_as("SELECT version, success, checksum FROM _sqlx_migrations ORDER BY version")
            .fetch_all(pool)
            .await?;
    Ok(compare(&applied))
}

/// What matters most comes first: of a newer release's schema nothing else that is said could be trusted.
fn compare(applied: &[(i64, bool, Vec<u8>)]) -> Schema {
    let own = |version: i64| MIGRATOR.iter().find(|migration| migration.version == version);
    let unknown = applied.iter().rev().find(|(version, ..)| own(*version).is_none());
    let torn = applied.iter().find(|(_, success, _)| !success);
    let differs = |(version, _, checksum): &&(i64, bool, Vec<u8>)| {
        own(*version).is_some_and(|migration| *migration.checksum != **checksum)
    };
    let changed = applied.iter().find(differs);
    let lacks = MIGRATOR.iter().find(|one| applied.iter().all(|(version, ..)| *version != one.version));
    match (unknown, torn, changed, lacks) {
        (Some((version, ..)), ..) => Schema::Newer(*version),
        (_, Some((version, ..)), ..) => Schema::Torn(*version),
        (_, _, Some((version, ..)), _) => Schema::Changed(*version),
        (.., Some(_)) if applied.is_empty() => Schema::Missing,
        (.., Some(one)) => Schema::Older(one.version),
        _ => Schema::Current,
    }
}

/// Brings it forward. Safe when several start at once: an advisory lock lets one go first.
pub(super) async fn migrate(pool: &PgPool) -> Result<(), DbError> {
    match state(pool).await?.obstacle() {
        Some(obstacle) => Err(obstacle),
        None => migrate_to(pool, latest()).await,
    }
}

/// As `kage migrate` of the release whose last migration this is, for a restore; one that is further already stays as it is.
///
/// # Errors
/// As [`crate::db::migrate`].
pub async fn migrate_to(pool: &PgPool, last: i64) -> Result<(), DbError> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let found = of_migrations(pool).await?;
        if let Some(obstacle) = found.obstacle() {
            return Err(obstacle);
        }
        let first = match found {
            Schema::Older(lacks) => lacks,
            _ => 0,
        };
        match migrate_between(pool, first, last).await {
            Err(error) if is_held_up(&error) && Instant::now() < deadline => {
                tracing::warn!(%error, "db.migration_held_up: others use the tables; it is tried again");
            }
            Err(error) if is_held_up(&error) => return Err(DbError::MigrationHeldUp(PATIENCE.as_secs())),
            // Somebody else's was quicker.
            Err(MigrateError::VersionMissing(has)) => {
                return Err(DbError::SchemaNewer { has, known: latest() });
            }
            Err(error) => return Err(DbError::Migrate(error)),
            Ok(()) => return Ok(()),
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// On a connection of its own: one that fails keeps the advisory lock until it ends.
async fn migrate_between(pool: &PgPool, first: i64, last: i64) -> Result<(), MigrateError> {
    let mut connection = pool.acquire().await?.detach();
    let mut ended = Ok(());
    for migration in MIGRATOR.iter().filter(|migration| (first..=last).contains(&migration.version)) {
        let within = if migration.no_tx { LOCK_WHENEVER } else { LOCK_WITHIN };
        sqlx::query(within).execute(&mut connection).await?;
        ended = MIGRATOR.run_to(migration.version, &mut connection).await;
        if ended.is_err() {
            break;
        }
    }
    // Its end is the lock's, whether it says goodbye or not.
    let _ = connection.close().await;
    ended
}

/// By other transactions: a lock did not come in time, or it would never have come.
fn is_held_up(error: &MigrateError) -> bool {
    let (MigrateError::Execute(error) | MigrateError::ExecuteMigration(error, _)) = error else {
        return false;
    };
    let sqlx::Error::Database(error) = error else { return false };
    matches!(error.code().as_deref(), Some("55P03" | "40P01"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn applied() -> Vec<(i64, bool, Vec<u8>)> {
        MIGRATOR.iter().map(|one| (one.version, true, one.checksum.to_vec())).collect()
    }

    #[test]
    fn a_schema_is_this_programs_or_it_is_said_what_it_is() {
        assert_eq!(compare(&applied()), Schema::Current);
        assert_eq!(compare(&[]), Schema::Missing);
        let mut older = applied();
        let last = older.pop().unwrap().0;
        assert_eq!(compare(&older), Schema::Older(last));
        let mut newer = applied();
        newer.push((last + 1, true, vec![]));
        assert_eq!(compare(&newer), Schema::Newer(last + 1));
        // Of another line of development: number 11 was never given.
        let mut foreign = applied();
        foreign.insert(4, (11, true, vec![]));
        assert_eq!(compare(&foreign), Schema::Newer(11));
        let mut changed = applied();
        changed[2].2[0] ^= 1;
        assert_eq!(compare(&changed), Schema::Changed(3));
        let mut torn = applied();
        torn.last_mut().unwrap().1 = false;
        assert_eq!(compare(&torn), Schema::Torn(last));
    }
}
