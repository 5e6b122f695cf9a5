//! API keys: the secret's SHA-256 only.

use chrono::{DateTime, Utc};
use sqlx::{PgConnection, PgPool};

use crate::db::error::DbError;

#[derive(Debug, Clone, sqlx::FromRow, serde::Serialize)]
pub struct KeyRow {
    pub id: String,
    pub name: String,
    pub created_at: DateTime<Utc>,
    pub last_used_at: Option<DateTime<Utc>>,
    pub revoked_at: Option<DateTime<Utc>>,
}

/// # Errors
/// [`DbError`].
pub async fn insert(
    connection: &mut PgConnection,
    id: &str,
    name: &str,
    sha256: &[u8; 32],
) -> Result<(), DbError> {
    sqlx::query("INSERT INTO api_keys (id, name, secret_sha256) VALUES ($1, $2, $3)")
        .bind(id)
        .bind(name)
        .bind(&sha256[..])
        .execute(connection)
        .await?;
    Ok(())
}

/// The hash of a key that is not revoked.
///
/// # Errors
/// [`DbError`].
pub async fn active_hash(pool: &PgPool, id: &str) -> Result<Option<Vec<u8>>, DbError> {
    Ok(sqlx::query_scalar("SELECT secret_sha256 FROM api_keys WHERE id = $1 AND revoked_at IS NULL")
        .bind(id)
        .fetch_optional(pool)
        .await?)
}

/// Notes the use, at most once a minute.
///
/// # Errors
/// [`DbError`].
pub async fn touch(pool: &PgPool, id: &str) -> Result<(), DbError> {
    sqlx::query(
        "UPDATE api_keys SET last_used_at = now()
         WHERE id = $1 AND (last_used_at IS NULL OR last_used_at < now() - interval '1 minute')",
    )
    .bind(id)
    .execute(pool)
    .await?;
    Ok(())
}

/// # Errors
/// [`DbError`].
pub async fn list(pool: &PgPool) -> Result<Vec<KeyRow>, DbError> {
    Ok(sqlx::query_as(
        "SELECT id, name, created_at, last_used_at, revoked_at FROM api_keys ORDER BY created_at, id",
    )
    .fetch_all(pool)
    .await?)
}

/// False if there is no such key, or it is revoked already.
///
/// # Errors
/// [`DbError`].
pub async fn revoke(connection: &mut PgConnection, id: &str) -> Result<bool, DbError> {
    let done = sqlx::query("UPDATE api_keys SET revoked_at = now() WHERE id = $1 AND revoked_at IS NULL")
        .bind(id)
        .execute(connection)
        .await?;
    Ok(done.rows_affected() == 1)
}
