//! What keys have used of their quotas, day by day (UTC). **Lock order: after the budgets of task and run.**

use chrono::{DateTime, NaiveDate, Utc};
use sqlx::{PgConnection, PgPool};
use uuid::Uuid;

use crate::db::budgets::{Amount, BudgetRow};
use crate::db::error::DbError;

/// A key's day, with its quotas.
#[derive(Debug, Clone, PartialEq, Eq, sqlx::FromRow)]
pub struct DayRow {
    pub key_id: String,
    pub day: NaiveDate,
    pub runs: i64,
    pub reserved_micros: i64,
    pub spent_micros: i64,
    pub runs_a_day: Option<i32>,
    pub micros_a_day: Option<i64>,
}

/// API, in submit's transaction: counts runs on today's rows of these keys, and how they stand with them. The caller
/// rolls back where that is too many.
///
/// # Errors
/// [`DbError`].
pub async fn count_runs(
    connection: &mut PgConnection,
    charged: &[String],
    runs: usize,
) -> Result<Vec<DayRow>, DbError> {
    if charged.is_empty() {
        return Ok(Vec::new());
    }
    // The rows are locked in the order of the ids.
    Ok(sqlx::query_as(
        "WITH counted AS (
             INSERT INTO key_days AS d (key_id, day, runs)
             SELECT id, (now() AT TIME ZONE 'UTC')::date, $2 FROM api_keys WHERE id = ANY($1) ORDER BY id
             ON CONFLICT (key_id, day) DO UPDATE SET runs = d.runs + $2
             RETURNING key_id, day, runs, reserved_micros, spent_micros)
         SELECT c.*, k.runs_a_day, k.micros_a_day FROM counted c JOIN api_keys k ON k.id = c.key_id ORDER BY c.key_id",
    )
    .bind(charged)
    .bind(i64::try_from(runs).unwrap_or(i64::MAX))
    .fetch_all(connection)
    .await?)
}

/// When the present day ends, as the database counts, and what it is now there.
///
/// # Errors
/// [`DbError`].
pub async fn day_ends(connection: &mut PgConnection) -> Result<(DateTime<Utc>, DateTime<Utc>), DbError> {
    Ok(sqlx::query_as(
        "SELECT date_trunc('day', now() AT TIME ZONE 'UTC') AT TIME ZONE 'UTC' + interval '1 day', now()",
    )
    .fetch_one(connection)
    .await?)
}

/// What a key has used today, and its runs that work now.
///
/// # Errors
/// [`DbError`].
pub async fn used(pool: &PgPool, key_id: &str) -> Result<(i64, i64, i64), DbError> {
    let day: Option<(i64, i64)> = sqlx::query_as(
        "SELECT runs, spent_micros + reserved_micros FROM key_days
         WHERE key_id = $1 AND day = (now() AT TIME ZONE 'UTC')::date",
    )
    .bind(key_id)
    .fetch_optional(pool)
    .await?;
    let at_work: i64 = sqlx::query_scalar(
        "SELECT count(*) FROM runs WHERE charged @> ARRAY[$1] AND charged <> '{}' AND finished_at IS NULL
           AND (state <> 'queued' OR lease_expires_at > now())",
    )
    .bind(key_id)
    .fetch_one(pool)
    .await?;
    let (runs, micros) = day.unwrap_or_default();
    Ok((runs, micros, at_work))
}

/// Gateway, after [`crate::db::budgets::lock`] in the same transaction: today's rows of the keys that a run counts
/// against and that may spend so much a day, locked.
///
/// # Errors
/// [`DbError`].
pub async fn lock(connection: &mut PgConnection, task: Uuid, run: Uuid) -> Result<Vec<BudgetRow>, DbError> {
    let keys: Vec<(String, i64)> = sqlx::query_as(
        "SELECT k.id, k.micros_a_day FROM runs r JOIN api_keys k ON k.id = ANY(r.charged)
         WHERE r.id = $1 AND r.charged <> '{}' AND k.micros_a_day IS NOT NULL ORDER BY k.id",
    )
    .bind(run)
    .fetch_all(&mut *connection)
    .await?;
    let mut levels = Vec::with_capacity(keys.len());
    for (key_id, limit) in keys {
        // A row that is there is locked; one that is not is made.
        let (reserved_micros, spent_micros): (i64, i64) = sqlx::query_as(
            "INSERT INTO key_days AS d (key_id, day) VALUES ($1, (now() AT TIME ZONE 'UTC')::date)
             ON CONFLICT (key_id, day) DO UPDATE SET spent_micros = d.spent_micros
             RETURNING reserved_micros, spent_micros",
        )
        .bind(&key_id)
        .fetch_one(&mut *connection)
        .await?;
        levels.push(BudgetRow {
            task_id: task,
            run_id: None,
            key_id: Some(key_id),
            limit_micros: Some(limit),
            limit_tokens: None,
            reserved_micros,
            spent_micros,
            reserved_tokens: 0,
            spent_tokens: 0,
            warned: 0,
        });
    }
    Ok(levels)
}

/// Gateway, after [`lock`]: holds an amount on these keys' day.
///
/// # Errors
/// [`DbError`].
pub async fn reserve(
    connection: &mut PgConnection,
    levels: &[BudgetRow],
    amount: Amount,
) -> Result<(), DbError> {
    let keys: Vec<&str> = levels.iter().filter_map(|level| level.key_id.as_deref()).collect();
    if keys.is_empty() {
        return Ok(());
    }
    sqlx::query(
        "UPDATE key_days SET reserved_micros = reserved_micros + $2
         WHERE key_id = ANY($1) AND day = (now() AT TIME ZONE 'UTC')::date",
    )
    .bind(keys)
    .bind(amount.micros)
    .execute(connection)
    .await?;
    Ok(())
}

/// Gateway, after [`crate::db::budgets::settle`]: gives back what a call held on its day and charges that day. A call
/// that the database has lost is charged to today.
///
/// # Errors
/// [`DbError`].
pub async fn settle(
    connection: &mut PgConnection,
    run: Uuid,
    call: Uuid,
    reserved: Amount,
    spent: Amount,
) -> Result<(), DbError> {
    let keys: Vec<String> = sqlx::query_scalar(
        "SELECT k.id FROM runs r JOIN api_keys k ON k.id = ANY(r.charged)
         WHERE r.id = $1 AND r.charged <> '{}' AND k.micros_a_day IS NOT NULL ORDER BY k.id",
    )
    .bind(run)
    .fetch_all(&mut *connection)
    .await?;
    for key in keys {
        sqlx::query(
            "INSERT INTO key_days AS d (key_id, day, spent_micros)
             VALUES ($1, coalesce((SELECT charged_day FROM model_calls WHERE id = $2), (now() AT TIME ZONE 'UTC')::date), $4)
             ON CONFLICT (key_id, day) DO UPDATE SET reserved_micros = greatest(d.reserved_micros - $3, 0),
                                                     spent_micros = d.spent_micros + $4",
        )
        .bind(key)
        .bind(call)
        .bind(reserved.micros)
        .bind(spent.micros)
        .execute(&mut *connection)
        .await?;
    }
    Ok(())
}
