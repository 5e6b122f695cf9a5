//! Runs: the queue, the lease with its fence, and the states on the road.
//!
//! A claim only takes the lease. Every later write of a runner goes through [`fenced`]: the task's
//! row first (events), then the run's row by id **and lease**; a runner that lost its lease can
//! write nothing, whatever it believes.

use chrono::{DateTime, Utc};
use serde_json::{Value, json};
use sqlx::{PgConnection, PgPool, Postgres, Transaction};
use uuid::Uuid;

use crate::db::error::DbError;
use crate::db::events::{self, NewEvent};
use crate::db::{audit, results, tasks};
use crate::domain::audit::{Actor, Entry, Outcome};
use crate::domain::event::EventKind;
use crate::domain::run::RunState;
use crate::wire;

#[derive(Debug, Clone, sqlx::FromRow)]
pub struct RunRow {
    pub id: Uuid,
    pub task_id: Uuid,
    pub name: String,
    pub position: i32,
    pub cli_name: String,
    pub image_digest: String,
    pub manifest: Value,
    pub context: Value,
    pub timeout_secs: i32,
    pub idle_secs: Option<i32>,
    pub allow_no_changes: bool,
    #[sqlx(try_from = "String")]
    pub state: StateColumn,
    pub error: Option<String>,
    pub exit_code: Option<i32>,
    pub attempt: i32,
    pub lease_id: Option<Uuid>,
    pub runner_id: Option<Uuid>,
    pub container_id: Option<String>,
    pub base_commit: Option<String>,
    pub verdict: Option<Value>,
    pub stdout_offset: i64,
    pub stderr_offset: i64,
    pub output_bytes: i64,
    pub cost_usd: f64,
    pub branch: Option<String>,
    pub commit_hash: Option<String>,
    pub files_changed: i32,
    pub insertions: i64,
    pub deletions: i64,
    pub started_at: Option<DateTime<Utc>>,
    pub cli_started_at: Option<DateTime<Utc>>,
    pub finished_at: Option<DateTime<Utc>>,
}

/// A state as the column spells it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StateColumn(pub RunState);

impl TryFrom<String> for StateColumn {
    type Error = crate::domain::run::UnknownState;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse().map(Self)
    }
}

impl RunRow {
    pub fn state(&self) -> RunState {
        self.state.0
    }

    /// Seconds from the first attempt's start to the end, or until now.
    pub fn duration(&self) -> f64 {
        let Some(start) = self.started_at else { return 0.0 };
        let end = self.finished_at.unwrap_or_else(Utc::now);
        (end - start).as_seconds_f64().max(0.0)
    }

    pub fn to_wire(&self) -> wire::run::Run {
        wire::run::Run {
            id: self.id,
            name: self.name.clone(),
            cli_name: self.cli_name.clone(),
            state: self.state(),
            error: self.error.clone(),
            exit_code: self.exit_code,
            attempt: self.attempt.unsigned_abs(),
            started_at: self.started_at,
            finished_at: self.finished_at,
            image: self.image_digest.clone(),
            base_commit: self.base_commit.clone(),
            branch: self.branch.clone(),
            commit_hash: self.commit_hash.clone(),
            files_changed: self.files_changed.unsigned_abs(),
            insertions: self.insertions.unsigned_abs(),
            deletions: self.deletions.unsigned_abs(),
            output_bytes: self.output_bytes.unsigned_abs(),
            cost: self.cost_usd,
        }
    }
}

/// The right to write one run's rows, as long as nobody else claims it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lease {
    pub task: Uuid,
    pub run: Uuid,
    pub id: Uuid,
    pub runner: Uuid,
}

/// # Errors
/// [`DbError`].
pub async fn of_tasks(pool: &PgPool, tasks: &[Uuid]) -> Result<Vec<RunRow>, DbError> {
    Ok(sqlx::query_as("SELECT * FROM runs WHERE task_id = ANY($1) ORDER BY task_id, position")
        .bind(tasks)
        .fetch_all(pool)
        .await?)
}

/// # Errors
/// [`DbError`].
pub async fn find(connection: &mut PgConnection, run: Uuid) -> Result<Option<RunRow>, DbError> {
    Ok(sqlx::query_as("SELECT * FROM runs WHERE id = $1").bind(run).fetch_optional(connection).await?)
}

/// # Errors
/// [`DbError`].
pub async fn find_by_name(pool: &PgPool, task: Uuid, name: &str) -> Result<Option<RunRow>, DbError> {
    Ok(sqlx::query_as("SELECT * FROM runs WHERE task_id = $1 AND name = $2")
        .bind(task)
        .bind(name)
        .fetch_optional(pool)
        .await?)
}

/// Takes up to `limit` queued runs, oldest first, but for those that this runner is not done with (`held`).
///
/// # Errors
/// [`DbError`].
pub async fn claim_queued(
    pool: &PgPool,
    runner: Uuid,
    ttl_secs: i32,
    limit: i64,
    held: &[Uuid],
) -> Result<Vec<RunRow>, DbError> {
    Ok(sqlx::query_as(
        "WITH next AS (
             SELECT id FROM runs
             WHERE state = 'queued' AND not_before <= now()
               AND (lease_expires_at IS NULL OR lease_expires_at < now()) AND id <> ALL($4)
             ORDER BY not_before, created_at, position
             LIMIT $3 FOR UPDATE SKIP LOCKED)
         UPDATE runs SET lease_id = gen_random_uuid(), runner_id = $1,
                         lease_expires_at = now() + make_interval(secs => $2)
         FROM next WHERE runs.id = next.id RETURNING runs.*",
    )
    .bind(runner)
    .bind(f64::from(ttl_secs))
    .bind(limit)
    .bind(held)
    .fetch_all(pool)
    .await?)
}

/// Takes runs whose runner let the lease expire. With `own_too`, also all that this very runner held
/// before it was started anew (it holds the lock on its data folder, so its former self is dead). Never those
/// that it works on (`held`), whose leases expired while the database was away: they are renewed. The former holder is given beside each.
///
/// # Errors
/// [`DbError`].
pub async fn claim_abandoned(
    pool: &PgPool,
    runner: Uuid,
    ttl_secs: i32,
    own_too: bool,
    held: &[Uuid],
) -> Result<Vec<(Option<Uuid>, RunRow)>, DbError> {
    let mut transaction = pool.begin().await?;
    let abandoned: Vec<RunRow> = sqlx::query_as(
        "SELECT * FROM runs
         WHERE ((state IN ('preparing', 'running', 'harvesting')
                 AND (lease_expires_at IS NULL OR lease_expires_at < now() OR ($2 AND runner_id = $1)))
                OR (state = 'queued' AND $2 AND runner_id = $1 AND lease_id IS NOT NULL))
           AND id <> ALL($3)
         FOR UPDATE SKIP LOCKED",
    )
    .bind(runner)
    .bind(own_too)
    .bind(held)
    .fetch_all(&mut *transaction)
    .await?;
    let mut claimed = Vec::new();
    for run in abandoned {
        let taken: RunRow = sqlx::query_as(
            "UPDATE runs SET lease_id = gen_random_uuid(), runner_id = $2,
                             lease_expires_at = now() + make_interval(secs => $3)
             WHERE id = $1 RETURNING *",
        )
        .bind(run.id)
        .bind(runner)
        .bind(f64::from(ttl_secs))
        .fetch_one(&mut *transaction)
        .await?;
        claimed.push((run.runner_id, taken));
    }
    transaction.commit().await?;
    Ok(claimed)
}

/// Prolongs leases. A run that is missing from the answer is no longer ours.
/// The flag says whether its task is to be cancelled.
///
/// # Errors
/// [`DbError`].
pub async fn renew(pool: &PgPool, leases: &[Lease], ttl_secs: i32) -> Result<Vec<(Uuid, bool)>, DbError> {
    let (runs, ids): (Vec<Uuid>, Vec<Uuid>) = leases.iter().map(|lease| (lease.run, lease.id)).unzip();
    Ok(sqlx::query_as(
        "UPDATE runs r SET lease_expires_at = now() + make_interval(secs => $3)
         FROM unnest($1::uuid[], $2::uuid[]) AS held (run, lease), tasks t
         WHERE r.id = held.run AND r.lease_id = held.lease AND r.finished_at IS NULL AND t.id = r.task_id
         RETURNING r.id, t.cancel_requested_at IS NOT NULL",
    )
    .bind(runs)
    .bind(ids)
    .bind(f64::from(ttl_secs))
    .fetch_all(pool)
    .await?)
}

/// Gives a queued run back untouched.
///
/// # Errors
/// [`DbError`].
pub async fn release(pool: &PgPool, lease: Lease) -> Result<(), DbError> {
    sqlx::query("UPDATE runs SET lease_id = NULL, lease_expires_at = NULL WHERE id = $1 AND lease_id = $2")
        .bind(lease.run)
        .bind(lease.id)
        .execute(pool)
        .await?;
    Ok(())
}

/// Ids of those runs, of the given ones, whose files a runner may delete: they have ended, or do not exist.
///
/// # Errors
/// [`DbError`].
pub async fn without_owner(pool: &PgPool, candidates: &[Uuid]) -> Result<Vec<Uuid>, DbError> {
    Ok(sqlx::query_scalar(
        "SELECT c FROM unnest($1::uuid[]) AS c LEFT JOIN runs r ON r.id = c
         WHERE r.id IS NULL OR r.state NOT IN ('queued', 'preparing', 'running', 'harvesting')",
    )
    .bind(candidates)
    .fetch_all(pool)
    .await?)
}

/// A write by the lease's holder: events first, then whatever follows does to the run's row. Not committed,
/// it leaves no trace. Every transition looks at the state that it finds: one that was committed before, whose
/// answer was lost, is not made twice.
struct Fenced<'a> {
    transaction: Transaction<'a, Postgres>,
    run: RunRow,
}

/// Opens a transaction, appends the events (and so locks the task), and locks the run by lease.
async fn fenced<'a>(pool: &'a PgPool, lease: Lease, new: &[NewEvent]) -> Result<Fenced<'a>, DbError> {
    let mut transaction = pool.begin().await?;
    events::append(&mut transaction, lease.task, Some(lease.run), new).await?;
    let run: Option<RunRow> = sqlx::query_as("SELECT * FROM runs WHERE id = $1 AND lease_id = $2 FOR UPDATE")
        .bind(lease.run)
        .bind(lease.id)
        .fetch_optional(&mut *transaction)
        .await?;
    // A cancel can end a run whose claim has expired in the queue; the API's role cannot take the lease off.
    let run = run.filter(|run| !run.state().has_ended()).ok_or(DbError::LeaseLost(lease.run))?;
    Ok(Fenced { transaction, run })
}

fn audit_state(lease: Lease, state: RunState, details: Value) -> Entry {
    Entry {
        actor: Actor::Runner(lease.runner.to_string()),
        action: "run.state",
        object: format!("run:{}", lease.run),
        outcome: Outcome::Done,
        details: json!({ "task": lease.task, "state": state, "facts": details }),
    }
}

fn state_event(run: &RunRow, state: RunState, attempt: i32, reason: Option<&str>) -> NewEvent {
    NewEvent::other(
        EventKind::State,
        &wire::event::State {
            task_id: run.task_id,
            run: run.name.clone(),
            run_id: run.id,
            state,
            attempt: attempt.unsigned_abs(),
            reason: reason.map(str::to_owned),
            timestamp: Utc::now(),
        },
    )
}

fn progress_event(run: &RunRow, state: RunState, message: String) -> NewEvent {
    NewEvent::other(
        EventKind::Progress,
        &wire::event::Progress {
            task_id: run.task_id,
            cli_name: run.name.clone(),
            session_id: run.id,
            status: state.progress_status(),
            message,
            timestamp: Utc::now(),
            files_modified: None,
            cost: None,
            duration: None,
        },
    )
}

/// `queued` → `preparing`, as the next attempt. `None` if the task is cancelled: the run must end so.
///
/// # Errors
/// [`DbError::LeaseLost`].
pub async fn begin_attempt(pool: &PgPool, lease: Lease, run: &RunRow) -> Result<Option<RunRow>, DbError> {
    let attempt = run.attempt + 1;
    let new = [
        state_event(run, RunState::Preparing, attempt, None),
        progress_event(
            run,
            RunState::Preparing,
            format!("attempt {attempt}: preparing worktree and sandbox"),
        ),
    ];
    let mut write = fenced(pool, lease, &new).await?;
    if write.run.state() == RunState::Preparing && write.run.attempt == attempt {
        return Ok(Some(write.run));
    }
    if tasks::cancel_requested(&mut write.transaction, lease.task).await? {
        return Ok(None);
    }
    let run: RunRow = sqlx::query_as(
        "UPDATE runs SET state = 'preparing', attempt = $2, container_id = NULL, verdict = NULL, error = NULL,
                         stdout_offset = 0, stderr_offset = 0, cli_started_at = NULL,
                         started_at = coalesce(started_at, now())
         WHERE id = $1 RETURNING *",
    )
    .bind(lease.run)
    .bind(attempt)
    .fetch_one(&mut *write.transaction)
    .await?;
    sqlx::query("INSERT INTO attempts (run_id, number, runner_id) VALUES ($1, $2, $3)")
        .bind(lease.run)
        .bind(attempt)
        .bind(lease.runner)
        .execute(&mut *write.transaction)
        .await?;
    tasks::mark_running(&mut write.transaction, lease.task).await?;
    audit::append(
        &mut write.transaction,
        &audit_state(lease, RunState::Preparing, json!({ "attempt": attempt })),
    )
    .await?;
    write.transaction.commit().await?;
    Ok(Some(run))
}

/// What the sandbox of an attempt is.
pub struct SandboxFacts<'a> {
    pub container: &'a str,
    pub base_commit: Option<&'a str>,
    /// `overlay` or `copy`.
    pub worktree: &'a str,
    /// Image digest, profile hash, limits.
    pub record: &'a Value,
}

/// `preparing` → `running`: committed **before** the job is handed to the shim, so that an attempt
/// that is still `preparing` has certainly not begun and may be started over.
///
/// # Errors
/// [`DbError::LeaseLost`].
pub async fn set_running(
    pool: &PgPool,
    lease: Lease,
    run: &RunRow,
    facts: &SandboxFacts<'_>,
) -> Result<(), DbError> {
    let new = [
        state_event(run, RunState::Running, run.attempt, None),
        progress_event(run, RunState::Running, format!("attempt {}: the CLI is running", run.attempt)),
    ];
    let mut write = fenced(pool, lease, &new).await?;
    if write.run.state() == RunState::Running && write.run.container_id.as_deref() == Some(facts.container) {
        return Ok(());
    }
    sqlx::query(
        "UPDATE runs SET state = 'running', container_id = $2, base_commit = $3, cli_started_at = now() WHERE id = $1",
    )
    .bind(lease.run)
    .bind(facts.container)
    .bind(facts.base_commit)
    .execute(&mut *write.transaction)
    .await?;
    sqlx::query("UPDATE attempts SET sandbox = $3, worktree = $4 WHERE run_id = $1 AND number = $2")
        .bind(lease.run)
        .bind(run.attempt)
        .bind(facts.record)
        .bind(facts.worktree)
        .execute(&mut *write.transaction)
        .await?;
    let details = json!({ "attempt": run.attempt, "container": facts.container, "worktree": facts.worktree,
                          "base_commit": facts.base_commit, "sandbox": facts.record });
    audit::append(&mut write.transaction, &audit_state(lease, RunState::Running, details)).await?;
    write.transaction.commit().await?;
    Ok(())
}

/// Output blocks and what was read from them, with the new ends of both streams.
pub struct Output {
    pub events: Vec<NewEvent>,
    /// Ends of standard output and standard error before this write.
    pub before: (i64, i64),
    pub stdout: i64,
    pub stderr: i64,
    /// Committed output of all attempts after this write.
    pub total: i64,
    pub cost_usd: f64,
}

/// Safe to repeat: a write that was committed already (its answer was lost) is seen by the offsets.
///
/// # Errors
/// [`DbError::LeaseLost`].
pub async fn append_output(pool: &PgPool, lease: Lease, output: &Output) -> Result<(), DbError> {
    let mut transaction = pool.begin().await?;
    events::append(&mut transaction, lease.task, Some(lease.run), &output.events).await?;
    let done = sqlx::query(
        "UPDATE runs SET stdout_offset = $3, stderr_offset = $4, output_bytes = $5, cost_usd = $6
         WHERE id = $1 AND lease_id = $2 AND state = 'running' AND stdout_offset = $7 AND stderr_offset = $8",
    )
    .bind(lease.run)
    .bind(lease.id)
    .bind(output.stdout)
    .bind(output.stderr)
    .bind(output.total)
    .bind(output.cost_usd)
    .bind(output.before.0)
    .bind(output.before.1)
    .execute(&mut *transaction)
    .await?;
    if done.rows_affected() == 1 {
        transaction.commit().await?;
        return Ok(());
    }
    transaction.rollback().await?;
    let committed: Option<(i64, i64)> =
        sqlx::query_as("SELECT stdout_offset, stderr_offset FROM runs WHERE id = $1 AND lease_id = $2")
            .bind(lease.run)
            .bind(lease.id)
            .fetch_optional(pool)
            .await?;
    if committed == Some((output.stdout, output.stderr)) {
        Ok(())
    } else {
        Err(DbError::LeaseLost(lease.run))
    }
}

/// Tells the run's watchers something.
///
/// # Errors
/// [`DbError::LeaseLost`].
pub async fn notice(
    pool: &PgPool,
    lease: Lease,
    run: &RunRow,
    kind: EventKind,
    message: String,
) -> Result<(), DbError> {
    let notice = wire::event::Notice {
        task_id: lease.task,
        run: Some(run.name.clone()),
        message,
        timestamp: Utc::now(),
    };
    let write = fenced(pool, lease, &[NewEvent::other(kind, &notice)]).await?;
    write.transaction.commit().await?;
    Ok(())
}

/// `running` → `harvesting`, with how the CLI ended.
///
/// # Errors
/// [`DbError::LeaseLost`].
pub async fn set_harvesting(
    pool: &PgPool,
    lease: Lease,
    run: &RunRow,
    verdict: &Value,
) -> Result<(), DbError> {
    let new = [
        state_event(run, RunState::Harvesting, run.attempt, None),
        progress_event(run, RunState::Harvesting, "the CLI has ended; collecting its changes".to_owned()),
    ];
    let mut write = fenced(pool, lease, &new).await?;
    if write.run.state() == RunState::Harvesting {
        return Ok(());
    }
    sqlx::query("UPDATE runs SET state = 'harvesting', verdict = $2 WHERE id = $1")
        .bind(lease.run)
        .bind(verdict)
        .execute(&mut *write.transaction)
        .await?;
    let details = json!({ "attempt": run.attempt, "verdict": verdict });
    audit::append(&mut write.transaction, &audit_state(lease, RunState::Harvesting, details)).await?;
    write.transaction.commit().await?;
    Ok(())
}

/// How an attempt ended.
#[derive(Debug, Clone)]
pub struct Ending {
    pub state: RunState,
    pub error: Option<String>,
    pub exit_code: Option<i32>,
}

/// The branch that an attempt left.
#[derive(Debug, Clone)]
pub struct Harvested {
    pub branch: String,
    pub commit: String,
    pub files_changed: i32,
    pub insertions: i64,
    pub deletions: i64,
    pub result: results::ResultRow,
    pub paths: Vec<String>,
}

async fn end_attempt(transaction: &mut PgConnection, run: &RunRow, ending: &Ending) -> Result<(), DbError> {
    sqlx::query(
        "UPDATE attempts SET state = $3, error = $4, exit_code = $5, finished_at = now()
         WHERE run_id = $1 AND number = $2",
    )
    .bind(run.id)
    .bind(run.attempt)
    .bind(ending.state.as_str())
    .bind(&ending.error)
    .bind(ending.exit_code)
    .execute(transaction)
    .await?;
    Ok(())
}

/// The run's end, with its result; and the task's, when it was the last.
///
/// # Errors
/// [`DbError::LeaseLost`].
pub async fn finish(
    pool: &PgPool,
    lease: Lease,
    run: &RunRow,
    ending: &Ending,
    harvested: Option<&Harvested>,
    warnings: &[String],
) -> Result<(), DbError> {
    let new = [state_event(run, ending.state, run.attempt, ending.error.as_deref())];
    let mut write = fenced(pool, lease, &new).await?;
    let connection = &mut *write.transaction;
    let finished: RunRow = sqlx::query_as(
        "UPDATE runs SET state = $2, error = $3, exit_code = $4, branch = $5, commit_hash = $6, files_changed = $7,
                         insertions = $8, deletions = $9, finished_at = now(), lease_id = NULL, lease_expires_at = NULL
         WHERE id = $1 RETURNING *",
    )
    .bind(lease.run)
    .bind(ending.state.as_str())
    .bind(&ending.error)
    .bind(ending.exit_code)
    .bind(harvested.map(|h| &h.branch))
    .bind(harvested.map(|h| &h.commit))
    .bind(harvested.map_or(0, |h| h.files_changed))
    .bind(harvested.map_or(0, |h| h.insertions))
    .bind(harvested.map_or(0, |h| h.deletions))
    .fetch_one(&mut *connection)
    .await?;
    if let Some(harvested) = harvested {
        results::store(connection, lease.run, &harvested.result).await?;
    }
    end_attempt(connection, run, ending).await?;
    let paths = harvested.map(|h| h.paths.clone()).unwrap_or_default();
    append_result(connection, &finished, paths, warnings).await?;
    let details = json!({ "attempt": run.attempt, "error": ending.error, "exit_code": ending.exit_code,
                          "branch": finished.branch, "commit": finished.commit_hash,
                          "files": finished.files_changed, "warnings": warnings.len() });
    audit::append(connection, &audit_state(lease, ending.state, details)).await?;
    tasks::settle(connection, lease.task, &Actor::Runner(lease.runner.to_string())).await?;
    write.transaction.commit().await?;
    Ok(())
}

/// Paths named in an event; all of them are in the run's result.
const EVENT_PATHS: usize = 1000;

/// The `result` event and the predecessor's last `progress` event of a run that has ended.
///
/// # Errors
/// [`DbError`].
pub async fn append_result(
    connection: &mut PgConnection,
    run: &RunRow,
    mut paths: Vec<String>,
    warnings: &[String],
) -> Result<(), DbError> {
    paths.truncate(EVENT_PATHS);
    let state = run.state();
    let message = match &run.error {
        Some(error) => format!("{state}: {error}"),
        None => format!("{state}: {} file(s) changed", run.files_changed),
    };
    let progress = wire::event::Progress {
        task_id: run.task_id,
        cli_name: run.name.clone(),
        session_id: run.id,
        status: state.progress_status(),
        message,
        timestamp: Utc::now(),
        files_modified: Some(paths.clone()),
        cost: Some(run.cost_usd),
        duration: Some(run.duration()),
    };
    let result = wire::event::RunResult {
        task_id: run.task_id,
        run: run.to_wire(),
        files_modified: paths,
        warnings: warnings.to_vec(),
    };
    let new = [NewEvent::other(EventKind::Progress, &progress), NewEvent::other(EventKind::Result, &result)];
    events::append(connection, run.task_id, Some(run.id), &new).await?;
    Ok(())
}

/// Back to `queued` for another attempt after `delay_secs`.
///
/// # Errors
/// [`DbError::LeaseLost`].
pub async fn requeue(
    pool: &PgPool,
    lease: Lease,
    run: &RunRow,
    ending: &Ending,
    delay_secs: u32,
) -> Result<(), DbError> {
    let why = ending.error.as_deref().unwrap_or(ending.state.as_str());
    let new = [
        state_event(run, RunState::Queued, run.attempt, Some(why)),
        progress_event(
            run,
            RunState::Queued,
            format!("attempt {} ended ({why}); next in {delay_secs} s", run.attempt),
        ),
    ];
    let mut write = fenced(pool, lease, &new).await?;
    sqlx::query(
        "UPDATE runs SET state = 'queued', container_id = NULL, verdict = NULL, lease_id = NULL, lease_expires_at = NULL,
                         not_before = now() + make_interval(secs => $2)
         WHERE id = $1",
    )
    .bind(lease.run)
    .bind(f64::from(delay_secs))
    .execute(&mut *write.transaction)
    .await?;
    end_attempt(&mut write.transaction, &write.run, ending).await?;
    let details = json!({ "attempt": run.attempt, "ended": ending.state, "error": ending.error, "retry_in_secs": delay_secs });
    audit::append(&mut write.transaction, &audit_state(lease, RunState::Queued, details)).await?;
    write.transaction.commit().await?;
    Ok(())
}
