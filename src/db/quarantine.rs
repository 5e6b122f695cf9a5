//! Configuration of CLIs in repositories, as runners found it, and what of it is approved.

use std::collections::HashSet;

use chrono::{DateTime, Utc};
use serde_json::json;
use sqlx::{PgConnection, PgPool};
use uuid::Uuid;

use crate::db::error::DbError;
use crate::db::queue::Lease;
use crate::db::runs::RunRow;
use crate::db::security_events;
use crate::db::visible::Visible;
use crate::domain::security_event::{SecurityEvent, SecurityEventKind};
use crate::wire;

/// Days after which what no run and no fetch has met any more is forgotten.
const KEPT_DAYS: i32 = 90;
/// Most rows of one answer.
const LISTED: i64 = 2_000;

/// A quarantined path of a revision, with one content.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    pub path: String,
    pub digest: String,
    pub kind: &'static str,
    pub files: i64,
    pub bytes: i64,
    /// Why it cannot be approved.
    pub obstacle: Option<&'static str>,
}

#[derive(Debug, Clone, sqlx::FromRow)]
pub struct ConfigurationRow {
    pub path: String,
    pub digest: String,
    pub kind: String,
    pub files: i64,
    pub bytes: i64,
    pub obstacle: Option<String>,
    pub commit_hash: String,
    pub seen_at: DateTime<Utc>,
    pub approval: Option<Uuid>,
}

impl ConfigurationRow {
    pub fn into_wire(self) -> wire::quarantine::Configuration {
        wire::quarantine::Configuration {
            path: self.path,
            digest: self.digest,
            kind: self.kind,
            files: self.files.unsigned_abs(),
            bytes: self.bytes.unsigned_abs(),
            obstacle: self.obstacle,
            commit_hash: self.commit_hash,
            seen_at: self.seen_at,
            approval: self.approval,
        }
    }
}

#[derive(Debug, Clone, sqlx::FromRow)]
pub struct ApprovalRow {
    pub id: Uuid,
    pub path: String,
    pub digest: String,
    pub approved_by: String,
    pub approved_at: DateTime<Utc>,
}

impl ApprovalRow {
    pub fn into_wire(self) -> wire::quarantine::Approval {
        wire::quarantine::Approval {
            id: self.id,
            path: self.path,
            digest: self.digest,
            approved_by: self.approved_by,
            approved_at: self.approved_at,
        }
    }
}

/// Notes what was found at `commit`.
///
/// # Errors
/// [`DbError`].
pub async fn record(
    connection: &mut PgConnection,
    repository: &str,
    commit: &str,
    seen: &[Seen],
) -> Result<(), DbError> {
    for found in seen {
        sqlx::query(
            "INSERT INTO repository_configuration
                 (repository, path, digest, kind, files, bytes, obstacle, commit_hash)
             SELECT name, $2, $3, $4, $5, $6, $7, $8 FROM repositories WHERE name = $1
             ON CONFLICT (repository, path, digest) DO UPDATE SET obstacle = $7, commit_hash = $8, seen_at = now()",
        )
        .bind(repository)
        .bind(&found.path)
        .bind(&found.digest)
        .bind(found.kind)
        .bind(found.files)
        .bind(found.bytes)
        .bind(found.obstacle)
        .bind(commit)
        .execute(&mut *connection)
        .await?;
    }
    sqlx::query(
        "DELETE FROM repository_configuration WHERE repository = $1 AND seen_at < now() - make_interval(days => $2)",
    )
    .bind(repository)
    .bind(KEPT_DAYS)
    .execute(connection)
    .await?;
    Ok(())
}

/// What was found, the latest first.
///
/// # Errors
/// [`DbError`].
pub async fn list(
    pool: &PgPool,
    visible: &Visible,
    repository: &str,
) -> Result<Vec<ConfigurationRow>, DbError> {
    Ok(sqlx::query_as(
        "SELECT c.path, c.digest, c.kind, c.files, c.bytes, c.obstacle, c.commit_hash, c.seen_at, a.id AS approval
         FROM repository_configuration c LEFT JOIN repository_approvals a USING (repository, path, digest)
         WHERE c.repository = $2 AND sees_repository(c.repository, $1) ORDER BY c.seen_at DESC, c.path LIMIT $3",
    )
    .bind(visible.repositories())
    .bind(repository)
    .bind(LISTED)
    .fetch_all(pool)
    .await?)
}

/// Path and digest of all that is approved.
///
/// # Errors
/// [`DbError`].
pub async fn approved(pool: &PgPool, repository: &str) -> Result<HashSet<(String, String)>, DbError> {
    let pairs: Vec<(String, String)> =
        sqlx::query_as("SELECT path, digest FROM repository_approvals WHERE repository = $1")
            .bind(repository)
            .fetch_all(pool)
            .await?;
    Ok(pairs.into_iter().collect())
}

/// # Errors
/// [`DbError`].
pub async fn approvals(
    pool: &PgPool,
    visible: &Visible,
    repository: &str,
) -> Result<Vec<ApprovalRow>, DbError> {
    Ok(sqlx::query_as(
        "SELECT id, path, digest, approved_by, approved_at FROM repository_approvals
         WHERE repository = $2 AND sees_repository(repository, $1) ORDER BY path, approved_at LIMIT $3",
    )
    .bind(visible.repositories())
    .bind(repository)
    .bind(LISTED)
    .fetch_all(pool)
    .await?)
}

/// Approves what a runner has found. `None`: none has found it, or it cannot be approved. The flag says whether it is
/// new.
///
/// # Errors
/// [`DbError`].
pub async fn approve(
    connection: &mut PgConnection,
    visible: &Visible,
    repository: &str,
    path: &str,
    digest: &str,
    by: &str,
) -> Result<Option<(ApprovalRow, bool)>, DbError> {
    let added: Option<ApprovalRow> = sqlx::query_as(
        "INSERT INTO repository_approvals (repository, path, digest, approved_by)
         SELECT repository, path, digest, $5 FROM repository_configuration
         WHERE repository = $2 AND sees_repository(repository, $1) AND path = $3 AND digest = $4 AND obstacle IS NULL
         ON CONFLICT (repository, path, digest) DO NOTHING
         RETURNING id, path, digest, approved_by, approved_at",
    )
    .bind(visible.repositories())
    .bind(repository)
    .bind(path)
    .bind(digest)
    .bind(by)
    .fetch_optional(&mut *connection)
    .await?;
    if let Some(row) = added {
        return Ok(Some((row, true)));
    }
    let there: Option<ApprovalRow> = sqlx::query_as(
        "SELECT id, path, digest, approved_by, approved_at FROM repository_approvals
         WHERE repository = $2 AND sees_repository(repository, $1) AND path = $3 AND digest = $4",
    )
    .bind(visible.repositories())
    .bind(repository)
    .bind(path)
    .bind(digest)
    .fetch_optional(connection)
    .await?;
    Ok(there.map(|row| (row, false)))
}

/// Takes an approval back; runs that have begun keep what they see.
///
/// # Errors
/// [`DbError`].
pub async fn revoke(
    connection: &mut PgConnection,
    visible: &Visible,
    repository: &str,
    id: Uuid,
) -> Result<Option<ApprovalRow>, DbError> {
    Ok(sqlx::query_as(
        "DELETE FROM repository_approvals WHERE repository = $2 AND sees_repository(repository, $1) AND id = $3
         RETURNING id, path, digest, approved_by, approved_at",
    )
    .bind(visible.repositories())
    .bind(repository)
    .bind(id)
    .fetch_optional(connection)
    .await?)
}

/// Tells that a run begins without what is quarantined: once a run, not at each of its attempts.
pub(super) async fn tell(
    connection: &mut PgConnection,
    lease: Lease,
    run: &RunRow,
    base_commit: Option<&str>,
    hidden: &[wire::quarantine::Quarantined],
) -> Result<(), DbError> {
    if hidden.is_empty() {
        return Ok(());
    }
    let paths: Vec<&str> = hidden.iter().map(|hidden| hidden.path.as_str()).collect();
    let details =
        json!({ "run": run.name, "base_commit": base_commit, "count": paths.len(), "paths": paths });
    let subject = format!("run:{}", lease.run);
    let event = SecurityEvent::new(SecurityEventKind::RepositoryQuarantined, &subject, &details)
        .of_run(lease.task, lease.run)
        .once(lease.run.to_string());
    security_events::append(connection, &event).await
}
