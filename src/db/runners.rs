//! Runners say that they live.

use chrono::{DateTime, Utc};
use sqlx::{PgExecutor, PgPool};
use uuid::Uuid;

use crate::db::error::DbError;

#[derive(Debug, Clone)]
pub struct Presence {
    pub id: Uuid,
    pub instance: String,
    pub host: String,
    pub concurrency: i32,
    pub draining: bool,
    /// Version of the engine, or why it does not answer.
    pub engine: String,
    pub engine_ok: bool,
    /// OCI runtime of a run that asks for none, and all that may be asked for.
    pub runtime: String,
    pub runtimes: Vec<String>,
    /// Whether the keeper of refused calls answers; `None`: no runtime needs one.
    pub keeper_ok: Option<bool>,
    /// What is free of the data folder's file system, in words, and whether that is above the soft mark.
    pub disk: String,
    pub disk_ok: bool,
}

/// # Errors
/// [`DbError`].
pub async fn announce(pool: &PgPool, presence: &Presence) -> Result<(), DbError> {
    sqlx::query(
        "INSERT INTO runners (id, instance, host, version, concurrency, draining, engine, engine_ok, runtime,
                              runtimes, keeper_ok, disk, disk_ok)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13)
         ON CONFLICT (id) DO UPDATE SET instance = $2, host = $3, version = $4, concurrency = $5, draining = $6,
                                        engine = $7, engine_ok = $8, runtime = $9, runtimes = $10,
                                        keeper_ok = $11, disk = $12, disk_ok = $13,
                                        seen_at = now()",
    )
    .bind(presence.id)
    .bind(&presence.instance)
    .bind(&presence.host)
    .bind(env!("CARGO_PKG_VERSION"))
    .bind(presence.concurrency)
    .bind(presence.draining)
    .bind(&presence.engine)
    .bind(presence.engine_ok)
    .bind(&presence.runtime)
    .bind(&presence.runtimes)
    .bind(presence.keeper_ok)
    .bind(&presence.disk)
    .bind(presence.disk_ok)
    .execute(pool)
    .await?;
    Ok(())
}

#[derive(Debug, Clone, sqlx::FromRow)]
pub struct RunnerRow {
    pub id: Uuid,
    pub host: String,
    pub draining: bool,
    pub engine: String,
    pub engine_ok: bool,
    pub keeper_ok: Option<bool>,
    pub disk: Option<String>,
    pub disk_ok: Option<bool>,
    pub seen_at: DateTime<Utc>,
}

/// Runners heard of within the last half minute.
///
/// # Errors
/// [`DbError`].
pub async fn alive(pool: &PgPool) -> Result<Vec<RunnerRow>, DbError> {
    Ok(sqlx::query_as(
        "SELECT id, host, draining, engine, engine_ok, keeper_ok, disk, disk_ok, seen_at FROM runners
         WHERE seen_at > now() - interval '30 seconds' ORDER BY id",
    )
    .fetch_all(pool)
    .await?)
}

/// The default runtime and the allowed ones, of each runner that [`alive`] would name and that says so.
///
/// # Errors
/// [`DbError`].
pub async fn runtimes(executor: impl PgExecutor<'_>) -> Result<Vec<(String, Vec<String>)>, DbError> {
    Ok(sqlx::query_as(
        "SELECT runtime, runtimes FROM runners
         WHERE seen_at > now() - interval '30 seconds' AND runtime IS NOT NULL AND NOT draining",
    )
    .fetch_all(executor)
    .await?)
}
