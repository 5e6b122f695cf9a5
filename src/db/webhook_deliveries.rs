//! Who is told of which security event, and how far that is. Written by notifiers.
//!
//! A try is a lease: it begins with a commit that puts the next try off until this one is certainly over, and ends with one
//! that says what came of it. A notifier that dies in between leaves the lease to run out, and the event is sent again
//! under the same id. Several notifiers pass over one another's rows.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use serde_json::Value;
use sqlx::{PgExecutor, PgPool};
use uuid::Uuid;

use crate::db::error::DbError;
use crate::db::security_events::SecurityEventRow;
use crate::domain::security_event::Severity;
use crate::wire::security_event::{Delivery, DeliveryState};

/// Events that are given out at once.
const BATCH: i64 = 100;

/// What a receiver wants to hear of.
#[derive(Debug, Clone)]
pub struct Wanted {
    pub hook: String,
    /// Empty: all.
    pub kinds: Vec<&'static str>,
    pub least: Severity,
}

/// Gives new events out to their receivers; how many there were. What is older than `secs` is nobody's news.
///
/// # Errors
/// [`DbError`].
pub async fn give_out(pool: &PgPool, wanted: &[Wanted], secs: i64) -> Result<u64, DbError> {
    let mut transaction = pool.begin().await?;
    let taken: Vec<i64> = sqlx::query_scalar(
        "DELETE FROM security_event_queue WHERE ordinal IN (
             SELECT ordinal FROM security_event_queue ORDER BY ordinal LIMIT $1 FOR UPDATE SKIP LOCKED)
         RETURNING ordinal",
    )
    .bind(BATCH)
    .fetch_all(&mut *transaction)
    .await?;
    if taken.is_empty() {
        transaction.rollback().await?;
        return Ok(0);
    }
    for hook in wanted {
        sqlx::query(
            "INSERT INTO webhook_deliveries (event, hook)
             SELECT ordinal, $2 FROM security_events
             WHERE ordinal = ANY($1) AND severity >= $3 AND ($4::text[] = '{}' OR kind = ANY($4))
               AND at > now() - make_interval(secs => $5)
             ON CONFLICT (event, hook) DO NOTHING",
        )
        .bind(&taken)
        .bind(&hook.hook)
        .bind(hook.least.rank())
        .bind(&hook.kinds)
        .bind(secs as f64)
        .execute(&mut *transaction)
        .await?;
    }
    transaction.commit().await?;
    Ok(taken.len() as u64)
}

/// A try that was begun.
#[derive(Debug, Clone)]
pub struct Try {
    pub event: SecurityEventRow,
    pub lease: Uuid,
    /// This one included.
    pub attempts: u32,
}

#[derive(sqlx::FromRow)]
struct TryRow {
    attempts: i32,
    #[sqlx(flatten)]
    event: SecurityEventRow,
}

/// Begins tries of what is due for a receiver, the oldest first. Nobody else begins them again before `lease_secs` are over.
///
/// # Errors
/// [`DbError`].
pub async fn begin(pool: &PgPool, hook: &str, most: i64, lease_secs: u64) -> Result<Vec<Try>, DbError> {
    let lease = Uuid::new_v4();
    let rows: Vec<TryRow> = sqlx::query_as(
        "WITH due AS (SELECT event, hook FROM webhook_deliveries
                      WHERE hook = $1 AND state = 'pending' AND next_at <= now()
                      ORDER BY next_at, event LIMIT $2 FOR UPDATE SKIP LOCKED),
              begun AS (UPDATE webhook_deliveries d
                        SET lease = $3, attempts = attempts + 1, last_at = now(),
                            next_at = now() + make_interval(secs => $4)
                        FROM due WHERE d.event = due.event AND d.hook = due.hook RETURNING d.event, d.attempts)
         SELECT begun.attempts, e.ordinal, e.id, e.kind, e.severity, e.subject, e.details, e.task_id, e.run_id, e.at
         FROM begun JOIN security_events e ON e.ordinal = begun.event ORDER BY e.ordinal",
    )
    .bind(hook)
    .bind(most)
    .bind(lease)
    .bind(lease_secs as f64)
    .fetch_all(pool)
    .await?;
    Ok(rows
        .into_iter()
        .map(|row| Try { event: row.event, lease, attempts: row.attempts.unsigned_abs() })
        .collect())
}

/// What came of a try.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    pub state: DeliveryState,
    pub status: Option<u16>,
    pub problem: Option<String>,
    /// Milliseconds until the next try.
    pub pause_ms: u64,
}

/// Ends a try. False: its lease had run out, and another one was begun.
///
/// # Errors
/// [`DbError`].
pub async fn end(
    pool: &PgPool,
    hook: &str,
    event: i64,
    lease: Uuid,
    outcome: &Outcome,
) -> Result<bool, DbError> {
    let done = sqlx::query(
        "UPDATE webhook_deliveries SET state = $4, status = $5, problem = $6, lease = NULL,
                                       next_at = now() + make_interval(secs => $7)
         WHERE hook = $1 AND event = $2 AND lease = $3 AND state = 'pending'",
    )
    .bind(hook)
    .bind(event)
    .bind(lease)
    .bind(outcome.state.as_str())
    .bind(outcome.status.map(i32::from))
    .bind(&outcome.problem)
    .bind(outcome.pause_ms as f64 / 1000.0)
    .execute(pool)
    .await?;
    Ok(done.rows_affected() == 1)
}

/// Gives up what waits longer than `secs` although its time to be tried has come: its receiver is gone from the
/// file, or says that it is. How many.
///
/// # Errors
/// [`DbError`].
pub async fn give_up_stale(pool: &PgPool, secs: i64) -> Result<u64, DbError> {
    let done = sqlx::query(
        "UPDATE webhook_deliveries d SET state = 'given_up', problem = coalesce(problem, 'it was never tried') FROM security_events e
         WHERE e.ordinal = d.event AND d.state = 'pending' AND d.next_at < now()
           AND e.at < now() - make_interval(secs => $1)",
    )
    .bind(secs as f64)
    .execute(pool)
    .await?;
    Ok(done.rows_affected())
}

#[derive(sqlx::FromRow)]
struct DeliveryRow {
    event: i64,
    hook: String,
    state: String,
    attempts: i32,
    last_at: Option<DateTime<Utc>>,
    status: Option<i32>,
    problem: Option<String>,
    next_at: DateTime<Utc>,
}

impl DeliveryRow {
    fn into_wire(self) -> Result<Delivery, DbError> {
        let state = serde_json::from_value(Value::String(self.state));
        let state: DeliveryState = state
            .map_err(|problem| DbError::inconsistent("webhook_deliveries", "state", self.event, problem))?;
        Ok(Delivery {
            hook: self.hook,
            state,
            attempts: self.attempts.unsigned_abs(),
            last_at: self.last_at,
            last_status: self.status.and_then(|status| u16::try_from(status).ok()),
            problem: self.problem,
            next_try_at: (state == DeliveryState::Pending).then_some(self.next_at),
        })
    }
}

/// Of each of these events who was, is or will be told.
///
/// # Errors
/// [`DbError`].
pub async fn of_events(
    executor: impl PgExecutor<'_>,
    events: &[i64],
) -> Result<BTreeMap<i64, Vec<Delivery>>, DbError> {
    let rows: Vec<DeliveryRow> = sqlx::query_as(
        "SELECT event, hook, state, attempts, last_at, status, problem, next_at FROM webhook_deliveries
         WHERE event = ANY($1) ORDER BY event, hook",
    )
    .bind(events)
    .fetch_all(executor)
    .await?;
    let mut by_event: BTreeMap<i64, Vec<Delivery>> = BTreeMap::new();
    for row in rows {
        by_event.entry(row.event).or_default().push(row.into_wire()?);
    }
    Ok(by_event)
}
