//! Letting go of what is kept too long. All of it is done by functions of the schema's owner (migrations 0021, 0025), which look
//! again whether a task has ended and record each act: with its own rights this role reads and removes nothing.

use chrono::{DateTime, NaiveDate, Utc};
use sqlx::PgPool;
use uuid::Uuid;

use crate::db::error::DbError;

/// What has an age and a size of its own in the database.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Thing {
    /// Output.
    Log,
    /// All other events.
    Events,
    /// Patches, lists of files, findings, branches.
    Results,
}

impl Thing {
    pub const ALL: [Self; 3] = [Self::Log, Self::Events, Self::Results];

    /// Those that are kept in tables by month.
    pub const BY_MONTH: [Self; 2] = [Self::Log, Self::Events];

    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Log => "log",
            Self::Events => "events",
            Self::Results => "results",
        }
    }
}

/// As many come at once (migration 0021).
pub const MOST_DUE: usize = 20_000;

/// When a thing is due.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    /// Of tasks that ended before.
    pub before: Option<DateTime<Utc>>,
    /// Of the tasks that ended first, as long as all of it is more.
    pub most_bytes: Option<i64>,
    /// Whether what is due by age waits until its month can go.
    pub whole_months: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, sqlx::FromRow)]
pub struct Due {
    pub task: Uuid,
    /// Of the table that it is in.
    pub month: Option<NaiveDate>,
    /// `age` or `size`.
    pub rule: String,
}

/// What went.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Gone {
    pub tasks: u64,
    pub bytes: u64,
}

fn gone((tasks, bytes): (Option<i64>, Option<i64>)) -> Option<Gone> {
    let bytes = bytes.unwrap_or(0).unsigned_abs();
    tasks.map(|tasks| Gone { tasks: tasks.unsigned_abs(), bytes })
}

/// Tasks whose thing may go one by one, the one first that ended first; a part of them where there are many.
///
/// # Errors
/// [`DbError`].
pub async fn due(pool: &PgPool, thing: Thing, bounds: Bounds) -> Result<Vec<Due>, DbError> {
    let due = sqlx::query_as("SELECT task, month, rule FROM retention_due($1, $2, $3, $4)")
        .bind(thing.as_str())
        .bind(bounds.before)
        .bind(bounds.most_bytes)
        .bind(bounds.whole_months)
        .fetch_all(pool)
        .await?;
    Ok(due)
}

/// Lets go of a thing of these tasks, at most 1000, in one transaction with its audit entry.
///
/// # Errors
/// [`DbError`].
pub async fn let_go(pool: &PgPool, thing: Thing, tasks: &[Uuid], rule: &str) -> Result<Gone, DbError> {
    let row = sqlx::query_as("SELECT tasks, bytes FROM retention_let_go($1, $2, $3)")
        .bind(thing.as_str())
        .bind(tasks)
        .bind(rule)
        .fetch_one(pool)
        .await?;
    Ok(gone(row).unwrap_or_default())
}

/// Months that are over and have a table of this thing, oldest first.
///
/// # Errors
/// [`DbError`].
pub async fn past_months(pool: &PgPool, thing: Thing) -> Result<Vec<NaiveDate>, DbError> {
    let months =
        sqlx::query_scalar("SELECT retention_past_months($1)").bind(thing.as_str()).fetch_all(pool).await?;
    Ok(months)
}

/// Drops a month's table, if all of it is due: its tasks ended before `before`, or are among `due`, or are let go already.
/// None: something in it has to stay.
///
/// # Errors
/// [`DbError`]; one that [`DbError::is_lock_timeout`] where somebody uses the table for longer than is waited.
pub async fn drop_month(
    pool: &PgPool,
    thing: Thing,
    month: NaiveDate,
    before: Option<DateTime<Utc>>,
    due: &[Uuid],
) -> Result<Option<Gone>, DbError> {
    let row = sqlx::query_as("SELECT tasks, bytes FROM retention_drop_month($1, $2, $3, $4)")
        .bind(thing.as_str())
        .bind(month)
        .bind(before)
        .bind(due)
        .fetch_one(pool)
        .await?;
    Ok(gone(row))
}

/// Makes the tables of this month and of so many after it; how many were missing.
///
/// # Errors
/// As [`drop_month`].
pub async fn make_months(pool: &PgPool, ahead: i32) -> Result<i32, DbError> {
    Ok(sqlx::query_scalar("SELECT retention_make_months($1)").bind(ahead).fetch_one(pool).await?)
}

/// Rows and bytes that are moved in one transaction, during which nobody reads or writes events; of one task all at once.
const MOST_MOVED: (i32, i64) = (2000, 16 << 20);

/// What went into the tables of a month.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Moved {
    pub month: NaiveDate,
    pub tasks: i64,
    pub rows: i64,
}

/// Moves a part of what came before its month had a table into the one of the first such month. None: there is no more of it.
///
/// # Errors
/// As [`drop_month`].
pub async fn move_rest(pool: &PgPool, thing: Thing) -> Result<Option<Moved>, DbError> {
    let (month, tasks, rows): (Option<NaiveDate>, Option<i64>, Option<i64>) =
        sqlx::query_as("SELECT month, tasks, moved FROM retention_move_rest($1, $2, $3)")
            .bind(thing.as_str())
            .bind(MOST_MOVED.0)
            .bind(MOST_MOVED.1)
            .fetch_one(pool)
            .await?;
    Ok(month.map(|month| Moved { month, tasks: tasks.unwrap_or(0), rows: rows.unwrap_or(0) }))
}
