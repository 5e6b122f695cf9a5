//! Registered repositories. The API writes wishes (`pending`, `removing`); a runner fulfils them.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use serde_json::{Value, json};
use sqlx::{PgConnection, PgPool};
use uuid::Uuid;

use crate::db::error::DbError;
use crate::db::visible::Visible;
use crate::domain::repository::RepositoryState;
use crate::wire;

#[derive(Debug, Clone, sqlx::FromRow)]
pub struct RepositoryRow {
    pub name: String,
    pub source: String,
    pub state: String,
    pub error: Option<String>,
    pub default_branch: Option<String>,
    pub refs: Value,
    pub lease_id: Option<Uuid>,
    pub created_at: DateTime<Utc>,
    pub fetched_at: Option<DateTime<Utc>>,
}

impl RepositoryRow {
    /// # Errors
    /// [`DbError::Inconsistent`].
    pub fn state(&self) -> Result<RepositoryState, DbError> {
        self.state
            .parse()
            .map_err(|problem| DbError::inconsistent("repositories", "state", &self.name, problem))
    }

    /// Branches and tags with their commits, as of the last fetch.
    ///
    /// # Errors
    /// [`DbError::Inconsistent`].
    pub fn refs(&self) -> Result<BTreeMap<String, String>, DbError> {
        serde_json::from_value(self.refs.clone())
            .map_err(|problem| DbError::inconsistent("repositories", "refs", &self.name, problem))
    }

    /// # Errors
    /// [`DbError::Inconsistent`].
    pub fn to_wire(&self) -> Result<wire::repository::Repository, DbError> {
        Ok(wire::repository::Repository {
            name: self.name.clone(),
            source: self.source.clone(),
            state: self.state()?,
            error: self.error.clone(),
            default_branch: self.default_branch.clone(),
            refs: self.refs()?,
            created_at: self.created_at,
            fetched_at: self.fetched_at,
        })
    }
}

/// # Errors
/// [`DbError::is_conflict`] if the name is taken.
pub async fn insert(
    connection: &mut PgConnection,
    name: &str,
    source: &str,
) -> Result<RepositoryRow, DbError> {
    Ok(sqlx::query_as("INSERT INTO repositories (name, source) VALUES ($1, $2) RETURNING *")
        .bind(name)
        .bind(source)
        .fetch_one(connection)
        .await?)
}

/// # Errors
/// [`DbError`].
pub async fn list(pool: &PgPool, visible: &Visible) -> Result<Vec<RepositoryRow>, DbError> {
    Ok(sqlx::query_as("SELECT * FROM repositories WHERE sees_repository(name, $1) ORDER BY name")
        .bind(visible.repositories())
        .fetch_all(pool)
        .await?)
}

/// Their names alone, at most `limit`.
///
/// # Errors
/// [`DbError`].
pub async fn names(
    connection: &mut PgConnection,
    visible: &Visible,
    limit: i64,
) -> Result<Vec<String>, DbError> {
    let names = "SELECT name FROM repositories WHERE sees_repository(name, $1) ORDER BY name LIMIT $2";
    Ok(sqlx::query_scalar(names).bind(visible.repositories()).bind(limit).fetch_all(connection).await?)
}

/// As it is now. Waits for nobody.
///
/// # Errors
/// [`DbError`].
pub async fn read(pool: &PgPool, visible: &Visible, name: &str) -> Result<Option<RepositoryRow>, DbError> {
    Ok(sqlx::query_as("SELECT * FROM repositories WHERE name = $2 AND sees_repository(name, $1)")
        .bind(visible.repositories())
        .bind(name)
        .fetch_optional(pool)
        .await?)
}

/// As it is until the transaction ends.
///
/// # Errors
/// [`DbError`].
pub async fn find(
    connection: &mut PgConnection,
    visible: &Visible,
    name: &str,
) -> Result<Option<RepositoryRow>, DbError> {
    Ok(sqlx::query_as("SELECT * FROM repositories WHERE name = $2 AND sees_repository(name, $1) FOR SHARE")
        .bind(visible.repositories())
        .bind(name)
        .fetch_optional(connection)
        .await?)
}

/// Asks for another fetch, or for the removal. `None` if there is no such repository or it is being removed.
///
/// # Errors
/// [`DbError`].
pub async fn wish(
    connection: &mut PgConnection,
    visible: &Visible,
    name: &str,
    state: RepositoryState,
) -> Result<Option<RepositoryRow>, DbError> {
    Ok(sqlx::query_as(
        "UPDATE repositories SET state = $3, error = NULL
         WHERE name = $2 AND sees_repository(name, $1) AND state <> 'removing' RETURNING *",
    )
    .bind(visible.repositories())
    .bind(name)
    .bind(state.as_str())
    .fetch_optional(connection)
    .await?)
}

/// Unfinished tasks on a repository.
///
/// # Errors
/// [`DbError`].
pub async fn unfinished_tasks(
    connection: &mut PgConnection,
    visible: &Visible,
    name: &str,
) -> Result<i64, DbError> {
    // Of the repository, also those with CLIs that the caller does not see: they keep it in use.
    Ok(sqlx::query_scalar(
        "SELECT count(*) FROM tasks WHERE repository = $2 AND sees_repository(repository, $1) AND completed_at IS NULL",
    )
        .bind(visible.repositories())
        .bind(name)
        .fetch_one(connection)
        .await?)
}

/// Takes one wish that waits, or that a runner left half done.
///
/// # Errors
/// [`DbError`].
pub async fn claim(pool: &PgPool, ttl_secs: i32) -> Result<Option<RepositoryRow>, DbError> {
    Ok(sqlx::query_as(
        "WITH next AS (
             SELECT name FROM repositories
             WHERE state IN ('pending', 'removing', 'fetching') AND (lease_expires_at IS NULL OR lease_expires_at < now())
             ORDER BY created_at LIMIT 1 FOR UPDATE SKIP LOCKED)
         UPDATE repositories r
         SET lease_id = gen_random_uuid(), lease_expires_at = now() + make_interval(secs => $1),
             state = CASE r.state WHEN 'removing' THEN 'removing' ELSE 'fetching' END
         FROM next WHERE r.name = next.name RETURNING r.*",
    )
    .bind(f64::from(ttl_secs))
    .fetch_optional(pool)
    .await?)
}

/// What a fetch found.
pub struct Fetched {
    pub default_branch: Option<String>,
    pub refs: BTreeMap<String, String>,
}

/// Ends a fetch, well or not. A wish that came meanwhile (another fetch, the removal) stays.
///
/// # Errors
/// [`DbError`].
pub async fn finish_fetch(
    connection: &mut PgConnection,
    name: &str,
    lease: Uuid,
    outcome: &Result<Fetched, String>,
) -> Result<bool, DbError> {
    let query = match outcome {
        Ok(fetched) => sqlx::query(
            "UPDATE repositories
             SET state = CASE state WHEN 'fetching' THEN 'ready' ELSE state END, error = NULL,
                 default_branch = $3, refs = $4, fetched_at = now(), lease_id = NULL, lease_expires_at = NULL
             WHERE name = $1 AND lease_id = $2",
        )
        .bind(name)
        .bind(lease)
        .bind(&fetched.default_branch)
        .bind(json!(fetched.refs)),
        Err(error) => sqlx::query(
            "UPDATE repositories
             SET state = CASE state WHEN 'fetching' THEN 'failed' ELSE state END, error = $3,
                 lease_id = NULL, lease_expires_at = NULL
             WHERE name = $1 AND lease_id = $2",
        )
        .bind(name)
        .bind(lease)
        .bind(error),
    };
    Ok(query.execute(connection).await?.rows_affected() == 1)
}

/// # Errors
/// [`DbError`].
pub async fn delete(connection: &mut PgConnection, name: &str, lease: Uuid) -> Result<bool, DbError> {
    let done =
        sqlx::query("DELETE FROM repositories WHERE name = $1 AND lease_id = $2 AND state = 'removing'")
            .bind(name)
            .bind(lease)
            .execute(connection)
            .await?;
    Ok(done.rows_affected() == 1)
}

/// Prolongs the lease on a wish that is being fulfilled.
///
/// # Errors
/// [`DbError`].
pub async fn renew(pool: &PgPool, name: &str, lease: Uuid, ttl_secs: i32) -> Result<(), DbError> {
    sqlx::query(
        "UPDATE repositories SET lease_expires_at = now() + make_interval(secs => $3) WHERE name = $1 AND lease_id = $2",
    )
    .bind(name)
    .bind(lease)
    .bind(f64::from(ttl_secs))
    .execute(pool)
    .await?;
    Ok(())
}
