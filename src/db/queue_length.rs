//! How many runs wait, as whoever adds to them must know it.

use sqlx::PgConnection;

use crate::db::error::DbError;

/// Serialises submissions that are near the limit of all that wait.
const LENGTH_LOCK: i64 = 0x6b61_6765_0022;
/// First half of the locks of those who submit; the second is a hash of who.
const LENGTH_OF_LOCK: i32 = 0x6b61_6722;
/// So many runs below the limit, submissions do not wait for one another: no more than that are written at a time.
const LENGTH_MARGIN: i64 = 1000;

/// API, in submit's transaction: runs that wait of one who submits, `most` + 1 standing for more. Nobody else adds to them until
/// the transaction ends.
///
/// # Errors
/// [`DbError`].
pub async fn of_submitter(connection: &mut PgConnection, submitter: &str, most: i64) -> Result<i64, DbError> {
    sqlx::query("SELECT pg_advisory_xact_lock($1, hashtext($2))")
        .bind(LENGTH_OF_LOCK)
        .bind(submitter)
        .execute(&mut *connection)
        .await?;
    Ok(sqlx::query_scalar(
        "SELECT count(*) FROM (SELECT FROM runs WHERE state = 'queued' AND submitted_by = $1 LIMIT $2) r",
    )
    .bind(submitter)
    .bind(most.saturating_add(1))
    .fetch_one(connection)
    .await?)
}

/// As [`of_submitter`], of all together. To be asked after it.
///
/// # Errors
/// [`DbError`].
pub async fn in_all(connection: &mut PgConnection, most: i64) -> Result<i64, DbError> {
    let count = async |connection: &mut PgConnection| {
        sqlx::query_scalar::<_, i64>(
            "SELECT count(*) FROM (SELECT FROM runs WHERE state = 'queued' LIMIT $1) r",
        )
        .bind(most.saturating_add(1))
        .fetch_one(connection)
        .await
    };
    let length = count(&mut *connection).await?;
    let is_near = length.saturating_add(LENGTH_MARGIN) > most;
    let lock =
        if is_near { "SELECT pg_advisory_xact_lock($1)" } else { "SELECT pg_advisory_xact_lock_shared($1)" };
    // One who is near waits for all who were not, and counts what they wrote.
    sqlx::query(lock).bind(LENGTH_LOCK).execute(&mut *connection).await?;
    if is_near { Ok(count(connection).await?) } else { Ok(length) }
}
