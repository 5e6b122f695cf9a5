//! The record of every call to a model: made when its cost is reserved, ended when it is settled.

use chrono::{DateTime, Utc};
use serde_json::json;
use sqlx::{PgConnection, PgPool};
use uuid::Uuid;

use crate::db::audit;
use crate::db::budgets::Amount;
use crate::db::call_content::CallContent;
use crate::db::error::DbError;
use crate::domain::audit::{Actor, Entry, Outcome};

/// Of a model's name in the audit trail: a CLI names what it likes.
const NAME_CHARS: usize = 200;

/// How a call ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CallOutcome {
    /// The provider's whole answer reached the CLI.
    Ok,
    /// The provider answered with an error, which reached the CLI.
    UpstreamError,
    /// The provider refused our credential.
    UpstreamAuth,
    /// It could not be reached; nothing was sent.
    Unreachable,
    /// It was too slow, or silent for too long.
    Timeout,
    /// Its answer broke off, or went over a limit of ours.
    Broken,
    /// The CLI went away before the end.
    ClientGone,
    /// The gateway ended it: its run has ended, or the gateway itself.
    Aborted,
    /// The gateway died in the middle; charged as reserved.
    Lost,
    /// The gateway itself said no: nothing was sent, nothing was held.
    Refused,
}

impl CallOutcome {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::UpstreamError => "upstream_error",
            Self::UpstreamAuth => "upstream_auth",
            Self::Unreachable => "unreachable",
            Self::Timeout => "timeout",
            Self::Broken => "broken",
            Self::ClientGone => "client_gone",
            Self::Aborted => "aborted",
            Self::Lost => "lost",
            Self::Refused => "refused",
        }
    }
}

/// A call that is about to be sent.
#[derive(Debug, Clone, Copy)]
pub struct NewCall<'a> {
    pub id: Uuid,
    pub run: Uuid,
    pub task: Uuid,
    pub attempt: i32,
    pub provider: &'a str,
    pub dialect: &'a str,
    pub model_asked: &'a str,
    pub model: &'a str,
    pub reserved: Amount,
    pub streamed: bool,
    pub price_note: Option<&'a str>,
}

/// In the transaction that reserves.
///
/// # Errors
/// [`DbError`].
pub async fn insert(connection: &mut PgConnection, call: &NewCall<'_>) -> Result<(), DbError> {
    sqlx::query(
        "INSERT INTO model_calls (id, run_id, task_id, attempt, provider, dialect, model_asked, model,
                                  reserved_micros, reserved_tokens, streamed, price_note)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12)",
    )
    .bind(call.id)
    .bind(call.run)
    .bind(call.task)
    .bind(call.attempt)
    .bind(call.provider)
    .bind(call.dialect)
    .bind(call.model_asked)
    .bind(call.model)
    .bind(call.reserved.micros)
    .bind(call.reserved.tokens)
    .bind(call.streamed)
    .bind(call.price_note)
    .execute(connection)
    .await?;
    Ok(())
}

/// A call that the gateway refuses by itself. Its model is not always known: the row names none, the error does.
#[derive(Debug, Clone, Copy)]
pub struct RefusedCall<'a> {
    pub run: Uuid,
    pub task: Uuid,
    pub attempt: i32,
    pub provider: &'a str,
    pub dialect: &'a str,
    /// HTTP status that the CLI got.
    pub status: u16,
    /// In words, without a secret.
    pub error: &'a str,
}

/// # Errors
/// [`DbError`].
pub async fn insert_refused(pool: &PgPool, call: &RefusedCall<'_>) -> Result<(), DbError> {
    sqlx::query(
        "INSERT INTO model_calls (id, run_id, task_id, attempt, provider, dialect, model_asked, model, status,
                                  outcome, reserved_micros, reserved_tokens, streamed, error, duration_ms)
         VALUES ($1, $2, $3, $4, $5, $6, '', '', $7, $8, 0, 0, false, $9, 0)",
    )
    .bind(Uuid::now_v7())
    .bind(call.run)
    .bind(call.task)
    .bind(call.attempt)
    .bind(call.provider)
    .bind(call.dialect)
    .bind(i32::from(call.status))
    .bind(CallOutcome::Refused.as_str())
    .bind(call.error)
    .execute(pool)
    .await?;
    Ok(())
}

/// What became of a call.
#[derive(Debug, Clone)]
pub struct EndedCall {
    pub outcome: CallOutcome,
    /// HTTP status that the CLI got.
    pub status: Option<u16>,
    pub input_tokens: i64,
    pub output_tokens: i64,
    pub cached_input_tokens: i64,
    pub cache_write_tokens: i64,
    /// Micro-USD.
    pub cost_micros: i64,
    /// Charged as reserved, for want of the provider's word.
    pub estimated: bool,
    /// In words, without a secret.
    pub error: Option<String>,
    pub first_byte_ms: Option<i32>,
    pub duration_ms: i32,
    /// What was said, where the operator wants it in the audit trail.
    pub content: Option<CallContent>,
}

/// What its row says of a call, for the audit trail.
#[derive(sqlx::FromRow)]
struct CallFacts {
    run_id: Uuid,
    task_id: Uuid,
    attempt: i32,
    provider: String,
    dialect: String,
    model_asked: String,
    model: String,
    streamed: bool,
}

/// In the transaction that settles, with its audit entry. False if it has ended already: then nothing may be charged.
///
/// # Errors
/// [`DbError`].
pub async fn finish(connection: &mut PgConnection, id: Uuid, ended: &EndedCall) -> Result<bool, DbError> {
    let facts: Option<CallFacts> = sqlx::query_as(
        "UPDATE model_calls SET outcome = $2, status = $3, input_tokens = $4, output_tokens = $5,
             cached_input_tokens = $6, cache_write_tokens = $7, cost_micros = $8, estimated = $9, error = $10,
             first_byte_ms = $11, duration_ms = $12
         WHERE id = $1 AND outcome = 'open'
         RETURNING run_id, task_id, attempt, provider, dialect, model_asked, model, streamed",
    )
    .bind(id)
    .bind(ended.outcome.as_str())
    .bind(ended.status.map(i32::from))
    .bind(ended.input_tokens)
    .bind(ended.output_tokens)
    .bind(ended.cached_input_tokens)
    .bind(ended.cache_write_tokens)
    .bind(ended.cost_micros)
    .bind(ended.estimated)
    .bind(&ended.error)
    .bind(ended.first_byte_ms)
    .bind(ended.duration_ms)
    .fetch_optional(&mut *connection)
    .await?;
    let Some(facts) = facts else { return Ok(false) };
    audit::append(connection, &entry(id, &facts, ended)).await?;
    Ok(true)
}

fn entry(id: Uuid, facts: &CallFacts, ended: &EndedCall) -> Entry {
    let cut = |name: &str| name.chars().take(NAME_CHARS).collect::<String>();
    let mut details = json!({
        "call": id,
        "task": facts.task_id,
        "attempt": facts.attempt,
        "provider": facts.provider,
        "dialect": facts.dialect,
        "model_asked": cut(&facts.model_asked),
        "model": cut(&facts.model),
        "streamed": facts.streamed,
        "outcome": ended.outcome.as_str(),
        "status": ended.status,
        "input_tokens": ended.input_tokens,
        "output_tokens": ended.output_tokens,
        "cached_input_tokens": ended.cached_input_tokens,
        "cache_write_tokens": ended.cache_write_tokens,
        "cost_micros": ended.cost_micros,
        "estimated": ended.estimated,
        "duration_ms": ended.duration_ms,
    });
    if let Some(content) = &ended.content {
        details["content"] = content.details();
    }
    let outcome = if ended.outcome == CallOutcome::Ok { Outcome::Done } else { Outcome::Failed };
    Entry {
        actor: Actor::Gateway,
        action: "model.call",
        object: format!("run:{}", facts.run_id),
        outcome,
        details,
    }
}

/// # Errors
/// [`DbError`].
pub async fn exists(connection: &mut PgConnection, id: Uuid) -> Result<bool, DbError> {
    Ok(sqlx::query_scalar("SELECT EXISTS (SELECT FROM model_calls WHERE id = $1)")
        .bind(id)
        .fetch_one(connection)
        .await?)
}

/// A call that was never settled.
#[derive(Debug, Clone, sqlx::FromRow)]
pub struct OpenCall {
    pub id: Uuid,
    pub run_id: Uuid,
    pub task_id: Uuid,
    pub reserved_micros: i64,
    pub reserved_tokens: i64,
    pub started_at: DateTime<Utc>,
}

/// A run's calls that are open in the books. Where no gateway serves the run, their gateway died.
///
/// # Errors
/// [`DbError`].
pub async fn open_of_run(pool: &PgPool, run: Uuid) -> Result<Vec<OpenCall>, DbError> {
    Ok(sqlx::query_as(
        "SELECT id, run_id, task_id, reserved_micros, reserved_tokens, started_at FROM model_calls
         WHERE run_id = $1 AND outcome = 'open' ORDER BY started_at",
    )
    .bind(run)
    .fetch_all(pool)
    .await?)
}

/// Runs with open calls whose grant has been closed for a minute: nobody will settle these.
///
/// # Errors
/// [`DbError`].
pub async fn runs_left_open(pool: &PgPool) -> Result<Vec<Uuid>, DbError> {
    Ok(sqlx::query_scalar(
        "SELECT DISTINCT c.run_id FROM model_calls c JOIN model_grants g ON g.run_id = c.run_id
         WHERE c.outcome = 'open' AND g.state = 'closed' AND g.closed_at < now() - interval '1 minute'",
    )
    .fetch_all(pool)
    .await?)
}

/// What a run has used, over all its attempts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ModelTotals {
    /// Without those that the gateway refused by itself.
    pub calls: u64,
    /// All input, cached too.
    pub input_tokens: u64,
    pub output_tokens: u64,
    pub cached_input_tokens: u64,
    pub cache_write_tokens: u64,
    /// Micro-USD.
    pub cost_micros: u64,
}

/// The totals of each of these runs that made calls.
///
/// # Errors
/// [`DbError`].
pub async fn totals_of_runs(pool: &PgPool, runs: &[Uuid]) -> Result<Vec<(Uuid, ModelTotals)>, DbError> {
    let rows: Vec<(Uuid, i64, i64, i64, i64, i64, i64)> = sqlx::query_as(
        "SELECT run_id, count(*) FILTER (WHERE outcome <> 'refused'), coalesce(sum(input_tokens), 0)::bigint, coalesce(sum(output_tokens), 0)::bigint,
                coalesce(sum(cached_input_tokens), 0)::bigint, coalesce(sum(cache_write_tokens), 0)::bigint,
                coalesce(sum(cost_micros), 0)::bigint
         FROM model_calls WHERE run_id = ANY($1) GROUP BY run_id",
    )
    .bind(runs)
    .fetch_all(pool)
    .await?;
    let totals =
        |(run, calls, input, output, cached, written, cost): (Uuid, i64, i64, i64, i64, i64, i64)| {
            let totals = ModelTotals {
                calls: calls.unsigned_abs(),
                input_tokens: input.unsigned_abs(),
                output_tokens: output.unsigned_abs(),
                cached_input_tokens: cached.unsigned_abs(),
                cache_write_tokens: written.unsigned_abs(),
                cost_micros: cost.unsigned_abs(),
            };
            (run, totals)
        };
    Ok(rows.into_iter().map(totals).collect())
}

/// # Errors
/// [`DbError`].
pub async fn totals_of_run(pool: &PgPool, run: Uuid) -> Result<ModelTotals, DbError> {
    let of_runs = totals_of_runs(pool, &[run]).await?;
    Ok(of_runs.into_iter().next().map(|(_, totals)| totals).unwrap_or_default())
}

/// One ended call, as a judge of the run sees it.
#[derive(Debug, Clone, PartialEq, Eq, sqlx::FromRow)]
pub struct PastCall {
    /// See [`CallOutcome::as_str`].
    pub outcome: String,
    pub status: Option<i32>,
    pub error: Option<String>,
    pub model: String,
    pub started_at: DateTime<Utc>,
}

impl PastCall {
    pub fn is_ok(&self) -> bool {
        self.outcome == CallOutcome::Ok.as_str()
    }
}

/// An attempt's last calls, the last first. Token counts (`count_tokens`) are not among them: they are not booked.
///
/// # Errors
/// [`DbError`].
pub async fn last_outcomes(
    pool: &PgPool,
    run: Uuid,
    attempt: i32,
    limit: i64,
) -> Result<Vec<PastCall>, DbError> {
    Ok(sqlx::query_as(
        "SELECT outcome, status, error, model, started_at FROM model_calls
         WHERE run_id = $1 AND attempt = $2 ORDER BY started_at DESC, id DESC LIMIT $3",
    )
    .bind(run)
    .bind(attempt)
    .bind(limit)
    .fetch_all(pool)
    .await?)
}
