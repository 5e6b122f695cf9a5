//! Registered CLI images: a name, a digest, a manifest.

use chrono::{DateTime, Utc};
use serde_json::Value;
use sqlx::{PgConnection, PgPool};

use crate::db::error::DbError;

#[derive(Debug, Clone, sqlx::FromRow, serde::Serialize)]
pub struct ImageRow {
    pub name: String,
    pub digest: String,
    pub manifest: Value,
    pub registered_at: DateTime<Utc>,
}

/// Registers an image, or gives its name a new digest.
///
/// # Errors
/// [`DbError`].
pub async fn register(
    connection: &mut PgConnection,
    name: &str,
    digest: &str,
    manifest: &Value,
) -> Result<(), DbError> {
    sqlx::query(
        "INSERT INTO cli_images (name, digest, manifest) VALUES ($1, $2, $3)
         ON CONFLICT (name) DO UPDATE SET digest = $2, manifest = $3, registered_at = now()",
    )
    .bind(name)
    .bind(digest)
    .bind(manifest)
    .execute(connection)
    .await?;
    Ok(())
}

/// # Errors
/// [`DbError`].
pub async fn list(pool: &PgPool) -> Result<Vec<ImageRow>, DbError> {
    Ok(sqlx::query_as("SELECT name, digest, manifest, registered_at FROM cli_images ORDER BY name")
        .fetch_all(pool)
        .await?)
}

/// # Errors
/// [`DbError`].
pub async fn find(connection: &mut PgConnection, name: &str) -> Result<Option<ImageRow>, DbError> {
    Ok(sqlx::query_as("SELECT name, digest, manifest, registered_at FROM cli_images WHERE name = $1")
        .bind(name)
        .fetch_optional(connection)
        .await?)
}
