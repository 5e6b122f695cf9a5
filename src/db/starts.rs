//! How often a runner sets about the same attempt.

use sqlx::PgPool;

use crate::db::attempts::fenced;
use crate::db::error::DbError;
use crate::db::queue::Lease;

/// Another start of the attempt that the run is at; how many there have been.
///
/// # Errors
/// [`DbError::LeaseLost`].
pub async fn again(pool: &PgPool, lease: Lease) -> Result<u32, DbError> {
    let mut write = fenced(pool, lease, &[]).await?;
    let starts: i32 = sqlx::query_scalar(
        "UPDATE attempts SET starts = starts + 1 WHERE run_id = $1 AND number = $2 RETURNING starts",
    )
    .bind(lease.run)
    .bind(write.run.attempt)
    .fetch_one(&mut *write.transaction)
    .await?;
    write.transaction.commit().await?;
    Ok(starts.unsigned_abs())
}
