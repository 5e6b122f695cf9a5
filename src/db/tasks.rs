//! Tasks: submitted whole, settled when their last run has ended.

use std::collections::BTreeSet;

use chrono::{DateTime, Utc};
use serde_json::value::RawValue;
use serde_json::{Value, json};
use sqlx::types::Json;
use sqlx::{PgConnection, PgPool, PgTransaction};
use uuid::Uuid;

use crate::db::error::DbError;
use crate::db::events::{self, NewEvent};
use crate::db::runs::{self, RunRow};
use crate::db::visible::Visible;
use crate::db::{audit, run_events};
use crate::domain::audit::{Actor, Entry, Outcome, Record};
use crate::domain::event::EventKind;
use crate::domain::name::Name;
use crate::domain::run::RunState;
use crate::domain::task::TaskStatus;
use crate::wire;

#[derive(Debug, Clone, sqlx::FromRow)]
pub struct TaskRow {
    pub id: Uuid,
    pub description: String,
    pub repository: String,
    pub base_revision: Option<String>,
    /// As text: a tree of its values takes many times as much.
    pub assignments: Json<Box<RawValue>>,
    pub max_retries: i32,
    pub retry_delay: i32,
    pub merge_strategy: String,
    pub created_by: Option<String>,
    pub submitted_by: String,
    pub status: String,
    pub error: Option<String>,
    pub event_seq: i64,
    pub cancel_requested_at: Option<DateTime<Utc>>,
    pub created_at: DateTime<Utc>,
    pub updated_at: DateTime<Utc>,
    pub started_at: Option<DateTime<Utc>>,
    pub completed_at: Option<DateTime<Utc>>,
    /// Of the request; not in a list.
    #[sqlx(default)]
    pub traceparent: Option<String>,
    /// In a list: there is a context that was not read.
    #[sqlx(default)]
    pub contexts_left_out: bool,
}

impl TaskRow {
    /// # Errors
    /// [`DbError::Inconsistent`].
    pub fn status(&self) -> Result<TaskStatus, DbError> {
        self.status.parse().map_err(|problem| DbError::inconsistent("tasks", "status", self.id, problem))
    }
}

/// A run to be submitted with its task.
pub struct NewRun<'a> {
    pub id: Uuid,
    pub name: String,
    pub assignment: &'a wire::task::Assignment,
    pub image_digest: String,
    pub manifest: Value,
}

/// What `insert` writes.
pub struct NewTask<'a> {
    pub id: Uuid,
    pub request: &'a wire::task::NewTask,
    pub repository: &'a str,
    /// The commit that `base_revision` names today, where the API can tell.
    pub base_commit: Option<&'a str>,
    pub submitted_by: &'a str,
    /// Keys whose quotas the runs count against.
    pub charged: &'a [String],
    /// What continues the request's trace.
    pub traceparent: Option<&'a str>,
    pub runs: Vec<NewRun<'a>>,
}

/// Writes a task with its runs, and their first events.
///
/// # Errors
/// [`DbError`].
pub async fn insert(connection: &mut PgConnection, task: &NewTask<'_>) -> Result<(), DbError> {
    let request = task.request;
    let clis: BTreeSet<&str> = task.runs.iter().map(|run| run.assignment.cli_name.as_str()).collect();
    let clis: Vec<&str> = clis.into_iter().collect();
    sqlx::query(
        "INSERT INTO tasks (id, description, repository, base_revision, assignments, max_retries, retry_delay,
                            merge_strategy, created_by, submitted_by, clis, traceparent)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12)",
    )
    .bind(task.id)
    .bind(&request.description)
    .bind(task.repository)
    .bind(&request.base_revision)
    .bind(Json(&request.cli_assignments))
    .bind(i32::try_from(request.max_retries).unwrap_or(i32::MAX))
    .bind(i32::try_from(request.retry_delay).unwrap_or(i32::MAX))
    .bind(request.merge_strategy.as_str())
    .bind(&request.created_by)
    .bind(task.submitted_by)
    .bind(&clis)
    .bind(task.traceparent)
    .execute(&mut *connection)
    .await?;
    for (position, run) in (0i32..).zip(&task.runs) {
        let (id, assignment) = (run.id, run.assignment);
        sqlx::query(
            "INSERT INTO runs (id, task_id, name, position, cli_name, image_digest, manifest, context, timeout_secs,
                               idle_secs, allow_no_changes, base_commit, model, runtime, charged,
                               submitted_by)
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16)",
        )
        .bind(id)
        .bind(task.id)
        .bind(&run.name)
        .bind(position)
        .bind(&assignment.cli_name)
        .bind(&run.image_digest)
        .bind(&run.manifest)
        .bind(Json(&assignment.context))
        .bind(i32::try_from(assignment.timeout).unwrap_or(i32::MAX))
        .bind(assignment.idle_timeout.and_then(|secs| i32::try_from(secs).ok()))
        .bind(assignment.allow_no_changes)
        .bind(task.base_commit)
        .bind(&assignment.model)
        .bind(assignment.runtime.as_ref().map(Name::as_str))
        .bind(task.charged)
        .bind(task.submitted_by)
        .execute(&mut *connection)
        .await?;
        let state = wire::event::State {
            task_id: task.id,
            run: run.name.clone(),
            run_id: id,
            state: RunState::Queued,
            attempt: 0,
            reason: None,
            timestamp: Utc::now(),
        };
        events::append(connection, task.id, Some(id), &[NewEvent::other(EventKind::State, &state)]).await?;
    }
    Ok(())
}

/// # Errors
/// [`DbError`].
pub async fn find(pool: &PgPool, visible: &Visible, id: Uuid) -> Result<Option<TaskRow>, DbError> {
    Ok(sqlx::query_as("SELECT * FROM tasks WHERE id = $3 AND sees_task(repository, clis, $1, $2)")
        .bind(visible.repositories())
        .bind(visible.clis())
        .bind(id)
        .fetch_optional(pool)
        .await?)
}

/// # Errors
/// [`DbError`].
pub async fn cancel_requested(connection: &mut PgConnection, task: Uuid) -> Result<bool, DbError> {
    Ok(sqlx::query_scalar("SELECT cancel_requested_at IS NOT NULL FROM tasks WHERE id = $1")
        .bind(task)
        .fetch_one(connection)
        .await?)
}

/// # Errors
/// [`DbError`].
pub async fn mark_running(connection: &mut PgConnection, task: Uuid) -> Result<(), DbError> {
    sqlx::query(
        "UPDATE tasks SET status = CASE status WHEN 'pending' THEN 'running' ELSE status END,
                          started_at = coalesce(started_at, now())
         WHERE id = $1",
    )
    .bind(task)
    .execute(connection)
    .await?;
    Ok(())
}

/// What became of a request to cancel.
#[derive(Debug, PartialEq, Eq)]
pub enum Cancel {
    NotFound,
    /// It had ended before.
    Ended(TaskStatus),
    Done,
}

/// Asks to cancel (`details`: of the audit entry): runs that wait end at once, those that work are ended by their runner.
///
/// # Errors
/// [`DbError`].
pub async fn cancel(
    mut transaction: PgTransaction<'_>,
    visible: &Visible,
    task: Uuid,
    entry: &(impl Record + Sync),
) -> Result<Cancel, DbError> {
    let row: Option<TaskRow> = sqlx::query_as(
        "SELECT * FROM tasks WHERE id = $3 AND sees_task(repository, clis, $1, $2) FOR UPDATE",
    )
    .bind(visible.repositories())
    .bind(visible.clis())
    .bind(task)
    .fetch_optional(&mut *transaction)
    .await?;
    let Some(row) = row else { return Ok(Cancel::NotFound) };
    let status = row.status()?;
    if status.has_ended() {
        return Ok(Cancel::Ended(status));
    }
    sqlx::query(
        "UPDATE tasks SET status = 'cancelled', cancel_requested_at = now(), updated_at = now(),
                          error = 'cancelled by a client' WHERE id = $1",
    )
    .bind(task)
    .execute(&mut *transaction)
    .await?;
    audit::append(&mut transaction, entry).await?;
    let waiting: Vec<RunRow> = sqlx::query_as(
        "UPDATE runs SET state = 'cancelled', error = 'cancelled before it began', finished_at = now()
         WHERE task_id = $1 AND state = 'queued' AND (lease_expires_at IS NULL OR lease_expires_at < now())
         RETURNING *",
    )
    .bind(task)
    .fetch_all(&mut *transaction)
    .await?;
    for run in &waiting {
        let state = Entry {
            actor: entry.entry().actor.clone(),
            action: "run.state",
            object: format!("run:{}", run.id),
            outcome: Outcome::Done,
            details: json!({ "task": task, "state": RunState::Cancelled,
                             "facts": { "attempt": run.attempt, "error": run.error } }),
        };
        audit::append(&mut transaction, &state).await?;
        let ended = run_events::state_event(run, RunState::Cancelled, run.attempt, run.error.as_deref());
        events::append(&mut transaction, task, Some(run.id), &[ended]).await?;
        run_events::append_result(&mut transaction, run, Vec::new(), &[]).await?;
    }
    settle(&mut transaction, task, &entry.entry().actor).await?;
    transaction.commit().await?;
    Ok(Cancel::Done)
}

/// Ends a task whose last run has ended. The caller's transaction holds the task's row lock.
///
/// # Errors
/// [`DbError`].
pub async fn settle(connection: &mut PgConnection, task: Uuid, actor: &Actor) -> Result<(), DbError> {
    let runs: Vec<RunRow> = sqlx::query_as("SELECT * FROM runs WHERE task_id = $1 ORDER BY position")
        .bind(task)
        .fetch_all(&mut *connection)
        .await?;
    if runs.iter().any(|run| !run.state().has_ended()) {
        return Ok(());
    }
    let states: Vec<RunState> = runs.iter().map(RunRow::state).collect();
    let status = if cancel_requested(connection, task).await? {
        TaskStatus::Cancelled
    } else {
        TaskStatus::of_ended_runs(&states)
    };
    let error = (status == TaskStatus::Failed).then(|| {
        let each: Vec<String> = runs
            .iter()
            .map(|run| format!("{}: {}", run.name, run.error.as_deref().unwrap_or(run.state().as_str())))
            .collect();
        each.join("; ")
    });
    sqlx::query(
        "UPDATE tasks SET status = $2, error = coalesce(error, $3), completed_at = now(), updated_at = now() WHERE id = $1",
    )
    .bind(task)
    .bind(status.as_str())
    .bind(&error)
    .execute(&mut *connection)
    .await?;
    let successes = states.iter().filter(|state| **state == RunState::Succeeded).count() as u32;
    let complete = wire::event::TaskComplete {
        task_id: task,
        status,
        success_count: successes,
        failure_count: states.len() as u32 - successes,
        best_cli: runs::best(&runs).map(|run| run.name.clone()),
        timestamp: Utc::now(),
    };
    events::append(connection, task, None, &[NewEvent::other(EventKind::TaskComplete, &complete)]).await?;
    audit::append(
        connection,
        &Entry {
            actor: actor.clone(),
            action: "task.end",
            object: format!("task:{task}"),
            outcome: Outcome::Done,
            details: json!({ "status": status, "runs": states }),
        },
    )
    .await
}

/// A task submitted before with this key, and the hash of that request.
///
/// # Errors
/// [`DbError`].
pub async fn find_idempotent(
    connection: &mut PgConnection,
    key_id: &str,
    key: &str,
) -> Result<Option<(Vec<u8>, Uuid)>, DbError> {
    Ok(sqlx::query_as(
        "SELECT request_sha256, task_id FROM idempotency_keys WHERE key_id = $1 AND idempotency_key = $2",
    )
    .bind(key_id)
    .bind(key)
    .fetch_optional(connection)
    .await?)
}

/// # Errors
/// [`DbError::is_conflict`] if another request with the same key came first.
pub async fn remember_idempotent(
    connection: &mut PgConnection,
    key_id: &str,
    key: &str,
    request_sha256: &[u8],
    task: Uuid,
) -> Result<(), DbError> {
    sqlx::query("INSERT INTO idempotency_keys (key_id, idempotency_key, request_sha256, task_id) VALUES ($1, $2, $3, $4)")
        .bind(key_id)
        .bind(key)
        .bind(request_sha256)
        .bind(task)
        .execute(connection)
        .await?;
    Ok(())
}

/// The number of the last event of each task.
///
/// # Errors
/// [`DbError`].
pub async fn heads(pool: &PgPool, tasks: &[Uuid]) -> Result<Vec<(Uuid, i64)>, DbError> {
    Ok(sqlx::query_as("SELECT id, event_seq FROM tasks WHERE id = ANY($1)")
        .bind(tasks)
        .fetch_all(pool)
        .await?)
}
