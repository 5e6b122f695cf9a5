//! Sign-ins that have begun: each can be used once, and not for long. Their number is bounded, whoever begins them.

use sqlx::PgPool;

use crate::db::error::DbError;

/// Seconds for which a person may be at the provider.
pub const SECS: u32 = 600;
/// Of one network at once; a further one takes the place of its oldest.
const OF_A_NETWORK: i64 = 20;
/// Of all together.
const OF_ALL: i64 = 50_000;

/// Notes a sign-in. False if there are too many.
///
/// # Errors
/// [`DbError`].
pub async fn begin(
    pool: &PgPool,
    cookie_sha256: &[u8; 32],
    return_to: &str,
    network: &str,
) -> Result<bool, DbError> {
    let mut transaction = pool.begin().await?;
    sqlx::query("DELETE FROM sign_ins WHERE created_at < now() - make_interval(secs => $1)")
        .bind(f64::from(SECS))
        .execute(&mut *transaction)
        .await?;
    sqlx::query(
        "DELETE FROM sign_ins WHERE cookie_sha256 IN (
             SELECT cookie_sha256 FROM sign_ins WHERE network = $1 ORDER BY created_at DESC OFFSET $2)",
    )
    .bind(network)
    .bind(OF_A_NETWORK - 1)
    .execute(&mut *transaction)
    .await?;
    let made = sqlx::query(
        "INSERT INTO sign_ins (cookie_sha256, return_to, network)
         SELECT $1, $2, $3 WHERE (SELECT count(*) FROM sign_ins) < $4",
    )
    .bind(&cookie_sha256[..])
    .bind(return_to)
    .bind(network)
    .bind(OF_ALL)
    .execute(&mut *transaction)
    .await?;
    transaction.commit().await?;
    Ok(made.rows_affected() == 1)
}

/// Uses a sign-in up: where its person wants to go. `None` if there is none, or its time is over.
///
/// # Errors
/// [`DbError`].
pub async fn take(pool: &PgPool, cookie_sha256: &[u8; 32]) -> Result<Option<String>, DbError> {
    let taken: Option<(String, bool)> = sqlx::query_as(
        "DELETE FROM sign_ins WHERE cookie_sha256 = $1
         RETURNING return_to, created_at > now() - make_interval(secs => $2)",
    )
    .bind(&cookie_sha256[..])
    .bind(f64::from(SECS))
    .fetch_optional(pool)
    .await?;
    Ok(taken.filter(|(_, in_time)| *in_time).map(|(return_to, _)| return_to))
}
