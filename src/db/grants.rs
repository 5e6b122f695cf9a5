//! Grants: how a runner gets a model socket for a run, and how the gateway says what became of it.
//!
//! `wanted` (runner) → `open` or `closed` with an error (gateway) → `closing` (runner) → `closed` (gateway).
//! Many gateways may share a database: the one that has the run's folder serves it.

use std::time::Duration;

use chrono::{DateTime, Utc};
use serde_json::Value;
use sqlx::{PgConnection, PgPool};
use uuid::Uuid;

use crate::db::error::DbError;

#[derive(Debug, Clone, sqlx::FromRow)]
pub struct GrantRow {
    pub run_id: Uuid,
    pub task_id: Uuid,
    pub attempt: i32,
    /// `wanted`, `open`, `closing` or `closed`.
    pub state: String,
    pub cli_name: String,
    pub dialect: String,
    pub model_asked: Option<String>,
    pub model_default: String,
    pub provider: Option<String>,
    /// The name that the CLI is to use; set when it was opened.
    pub model: Option<String>,
    pub policy: Option<Value>,
    /// Why it was not opened.
    pub error: Option<String>,
    /// Why the gateway ends the run: `budget_exhausted`.
    pub stop_reason: Option<String>,
    pub requested_at: DateTime<Utc>,
    pub opened_at: Option<DateTime<Utc>>,
    pub closed_at: Option<DateTime<Utc>>,
    pub traceparent: Option<String>,
}

impl GrantRow {
    pub fn is_open(&self) -> bool {
        self.state == "open"
    }

    pub fn is_closed(&self) -> bool {
        self.state == "closed"
    }
}

/// What a runner asks for.
#[derive(Debug, Clone, Copy)]
pub struct Wish<'a> {
    pub run: Uuid,
    pub task: Uuid,
    pub attempt: i32,
    pub cli_name: &'a str,
    /// As the manifest says.
    pub dialect: &'a str,
    /// The task's wish.
    pub model_asked: Option<&'a str>,
    /// The manifest's default.
    pub model_default: &'a str,
    /// What continues the run's trace.
    pub traceparent: Option<&'a str>,
}

/// Runner: asks for a socket for an attempt; a grant of an earlier one is replaced. One that is open for this very
/// attempt stays: a runner that was started anew asks again for what the gateway serves already. NOTIFY `notify::GRANTS` after
/// the commit.
///
/// # Errors
/// [`DbError`].
pub async fn want(connection: &mut PgConnection, wish: &Wish<'_>) -> Result<(), DbError> {
    sqlx::query(
        "INSERT INTO model_grants (run_id, task_id, attempt, state, cli_name, dialect, model_asked, model_default, traceparent)
         VALUES ($1, $2, $3, 'wanted', $4, $5, $6, $7, $8)
         ON CONFLICT (run_id) DO UPDATE SET attempt = $3, state = 'wanted', cli_name = $4, dialect = $5,
             model_asked = $6, model_default = $7, provider = NULL, model = NULL, policy = NULL, error = NULL,
             traceparent = $8, stop_reason = NULL, requested_at = now(), opened_at = NULL, closed_at = NULL
         WHERE model_grants.attempt <> $3 OR model_grants.state NOT IN ('wanted', 'open')",
    )
    .bind(wish.run)
    .bind(wish.task)
    .bind(wish.attempt)
    .bind(wish.cli_name)
    .bind(wish.dialect)
    .bind(wish.model_asked)
    .bind(wish.model_default)
    .bind(wish.traceparent)
    .execute(connection)
    .await?;
    Ok(())
}

/// # Errors
/// [`DbError`].
pub async fn find(pool: &PgPool, run: Uuid) -> Result<Option<GrantRow>, DbError> {
    Ok(sqlx::query_as("SELECT * FROM model_grants WHERE run_id = $1").bind(run).fetch_optional(pool).await?)
}

/// Runner: waits until the gateway has answered (`open` or `closed`). `None`: it did not within `limit`.
///
/// Looks after 5 ms, then at doubling distances up to 200 ms: an answer takes milliseconds, once a run, and a
/// listener for each run would cost a connection each.
///
/// # Errors
/// [`DbError`].
pub async fn wait_row(pool: &PgPool, run: Uuid, limit: Duration) -> Result<Option<GrantRow>, DbError> {
    let deadline = tokio::time::Instant::now() + limit;
    let mut pause = Duration::from_millis(5);
    loop {
        match find(pool, run).await? {
            Some(grant) if grant.is_open() || grant.is_closed() => return Ok(Some(grant)),
            _ if tokio::time::Instant::now() >= deadline => return Ok(None),
            _ => tokio::time::sleep(pause).await,
        }
        pause = (pause * 2).min(Duration::from_millis(200));
    }
}

/// Runner: the attempt has ended, or never began. Safe to repeat, and where there is no grant. One that no gateway has
/// opened is closed at once: there may be no gateway.
/// NOTIFY `notify::GRANTS` afterwards.
///
/// # Errors
/// [`DbError`].
pub async fn close(connection: &mut PgConnection, run: Uuid) -> Result<(), DbError> {
    sqlx::query(
        "UPDATE model_grants SET state = CASE state WHEN 'wanted' THEN 'closed' ELSE 'closing' END,
                                 closed_at = CASE state WHEN 'wanted' THEN now() END
         WHERE run_id = $1 AND state IN ('wanted', 'open')",
    )
    .bind(run)
    .execute(connection)
    .await?;
    Ok(())
}

/// A grant that is not closed, and what the gateway must know of its run.
#[derive(Debug, Clone, sqlx::FromRow)]
pub struct ActiveGrant {
    #[sqlx(flatten)]
    pub grant: GrantRow,
    pub run_name: String,
    /// The run has ended, is in another attempt, or nobody has held its lease for long.
    pub run_is_over: bool,
    /// It counts against keys' quotas.
    pub is_charged: bool,
}

/// Gateway: all grants that are not closed. `orphan_secs`: how long a run works on without a runner.
///
/// # Errors
/// [`DbError`].
pub async fn active(pool: &PgPool, orphan_secs: u64) -> Result<Vec<ActiveGrant>, DbError> {
    Ok(sqlx::query_as(
        "SELECT g.*, r.name AS run_name,
                r.finished_at IS NOT NULL OR r.attempt <> g.attempt OR r.state = 'queued'
                OR coalesce(r.lease_expires_at < now() - make_interval(secs => $1), true) AS run_is_over,
                r.charged <> '{}' AS is_charged
         FROM model_grants g JOIN runs r ON r.id = g.run_id
         WHERE g.state <> 'closed' ORDER BY g.requested_at",
    )
    .bind(orphan_secs as f64)
    .fetch_all(pool)
    .await?)
}

/// What the gateway decided for a run.
#[derive(Debug, Clone, Copy)]
pub struct Opening<'a> {
    pub run: Uuid,
    pub attempt: i32,
    pub provider: &'a str,
    pub model: &'a str,
    pub policy: &'a Value,
}

/// Gateway: the socket listens. False if the wish was taken back or replaced meanwhile.
///
/// # Errors
/// [`DbError`].
pub async fn set_open(connection: &mut PgConnection, opening: &Opening<'_>) -> Result<bool, DbError> {
    let done = sqlx::query(
        "UPDATE model_grants SET state = 'open', provider = $3, model = $4, policy = $5, opened_at = now()
         WHERE run_id = $1 AND attempt = $2 AND state IN ('wanted', 'open')",
    )
    .bind(opening.run)
    .bind(opening.attempt)
    .bind(opening.provider)
    .bind(opening.model)
    .bind(opening.policy)
    .execute(connection)
    .await?;
    Ok(done.rows_affected() == 1)
}

/// Gateway: it is served no longer, or (with `error`) it never was. False if it was closed already.
///
/// # Errors
/// [`DbError`].
pub async fn set_closed(
    connection: &mut PgConnection,
    run: Uuid,
    attempt: i32,
    error: Option<&str>,
) -> Result<bool, DbError> {
    let done = sqlx::query(
        "UPDATE model_grants SET state = 'closed', error = coalesce(error, $3), closed_at = now()
         WHERE run_id = $1 AND attempt = $2 AND state <> 'closed'",
    )
    .bind(run)
    .bind(attempt)
    .bind(error)
    .execute(connection)
    .await?;
    Ok(done.rows_affected() == 1)
}

/// Gateway: the run is to end. True the first time. NOTIFY `notify::CANCEL` with the task's id afterwards.
///
/// # Errors
/// [`DbError`].
pub async fn stop(
    connection: &mut PgConnection,
    run: Uuid,
    attempt: i32,
    reason: &str,
) -> Result<bool, DbError> {
    let done = sqlx::query(
        "UPDATE model_grants SET stop_reason = $3
         WHERE run_id = $1 AND attempt = $2 AND stop_reason IS NULL AND state <> 'closed'",
    )
    .bind(run)
    .bind(attempt)
    .bind(reason)
    .execute(connection)
    .await?;
    Ok(done.rows_affected() == 1)
}
