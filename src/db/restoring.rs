//! A restore that has begun and has not ended, as the database knows it. Who begins to work with the database looks for it first
//! ([`crate::db::schema::Schema::Restoring`]), so nobody starts on one that is half restored.
//!
//! Its table belongs to no migration: it is there before the schema is, whichever release's schema it will be.

use sqlx::{Connection as _, PgConnection, PgPool};
use uuid::Uuid;

use crate::db::error::DbError;

pub(super) const TABLE: &str = "restore_under_way";
/// In the data folder: the id of the restore that worked there last. The next runner there takes it away.
pub const NOTE: &str = "restoring";
/// Any number that nothing else of ours locks.
const LOCK: i64 = 0x6b61_6765_7273;
/// The session of a restore that was killed ends with its statement.
const LOCK_WITHIN: &str = "SET lock_timeout = '60s'";

/// What was written down of it.
#[derive(Debug, Clone, PartialEq, Eq, sqlx::FromRow)]
pub struct Restoring {
    pub id: Uuid,
    /// The backup's name.
    pub backup: String,
    /// The data folder that belongs to it.
    pub data_dir: String,
    /// Whether all rows are there, as they were in the backup.
    pub loaded: bool,
}

/// A session that one restore holds as long as it works. The lock goes with it.
///
/// # Errors
/// [`DbError`]; [`DbError::is_lock_timeout`] while another restore works.
pub async fn session(pool: &PgPool) -> Result<PgConnection, DbError> {
    let mut connection = pool.acquire().await?.detach();
    sqlx::query(LOCK_WITHIN).execute(&mut connection).await?;
    sqlx::query("SELECT pg_advisory_lock($1)").bind(LOCK).execute(&mut connection).await?;
    Ok(connection)
}

/// # Errors
/// [`DbError`].
pub async fn find(connection: &mut PgConnection) -> Result<Option<Restoring>, DbError> {
    let exists: bool = sqlx::query_scalar("SELECT to_regclass('restore_under_way') IS NOT NULL")
        .fetch_one(&mut *connection)
        .await?;
    if !exists {
        return Ok(None);
    }
    let statement = "SELECT id, backup, data_dir, loaded FROM restore_under_way";
    Ok(sqlx::query_as(statement).fetch_optional(connection).await?)
}

/// Writes one down, in the place of one that came to nothing.
///
/// # Errors
/// [`DbError`].
pub async fn begin(connection: &mut PgConnection, restoring: &Restoring) -> Result<(), DbError> {
    let mut transaction = connection.begin().await?;
    sqlx::raw_sql(
        "DROP TABLE IF EXISTS restore_under_way;
         CREATE TABLE restore_under_way (
             one      boolean PRIMARY KEY DEFAULT true CHECK (one),
             id       uuid NOT NULL,
             backup   text NOT NULL,
             data_dir text NOT NULL,
             loaded   boolean NOT NULL)",
    )
    .execute(&mut *transaction)
    .await?;
    sqlx::query("INSERT INTO restore_under_way (id, backup, data_dir, loaded) VALUES ($1, $2, $3, $4)")
        .bind(restoring.id)
        .bind(&restoring.backup)
        .bind(&restoring.data_dir)
        .bind(restoring.loaded)
        .execute(&mut *transaction)
        .await?;
    Ok(transaction.commit().await?)
}

/// All rows are there, once the transaction ends.
///
/// # Errors
/// [`DbError`].
pub async fn set_loaded(connection: &mut PgConnection) -> Result<(), DbError> {
    sqlx::query("UPDATE restore_under_way SET loaded = true").execute(connection).await?;
    Ok(())
}

/// Roles may start, once the transaction ends.
///
/// # Errors
/// [`DbError`].
pub async fn end(connection: &mut PgConnection) -> Result<(), DbError> {
    sqlx::query("DROP TABLE IF EXISTS restore_under_way").execute(connection).await?;
    Ok(())
}

/// The backup that the restore with this id put into this database; none if it has not ended, or was another database's.
///
/// # Errors
/// [`DbError`].
pub async fn ended(connection: &mut PgConnection, id: Uuid) -> Result<Option<String>, DbError> {
    let exists: bool = sqlx::query_scalar("SELECT to_regclass('audit_entries') IS NOT NULL")
        .fetch_one(&mut *connection)
        .await?;
    if !exists {
        return Ok(None);
    }
    let statement = "SELECT details ->> 'backup' FROM audit_entries
                     WHERE action = 'backup.restore' AND details ->> 'restore' = $1";
    let found: Option<Option<String>> =
        sqlx::query_scalar(statement).bind(id.to_string()).fetch_optional(connection).await?;
    Ok(found.flatten())
}
