//! Budgets: what a task and each of its runs may spend. Reserved before a call, settled after it.
//!
//! **Lock order: the task's budget, its run's, then (for events and costs) the task's row, the run's row.**
//! The other roles only insert and read here.

use sqlx::{PgConnection, PgPool, Postgres, Transaction};
use uuid::Uuid;

use crate::db::error::DbError;

/// Limits of one level; `None`: no limit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Limits {
    /// Micro-USD.
    pub micros: Option<i64>,
    /// Input and output together.
    pub tokens: Option<i64>,
}

/// Money and tokens.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Amount {
    /// Micro-USD.
    pub micros: i64,
    pub tokens: i64,
}

#[derive(Debug, Clone, PartialEq, Eq, sqlx::FromRow)]
pub struct BudgetRow {
    pub task_id: Uuid,
    /// `None`: of the whole task.
    pub run_id: Option<Uuid>,
    /// Of a key's day, of [`crate::db::quotas`].
    #[sqlx(default)]
    pub key_id: Option<String>,
    pub limit_micros: Option<i64>,
    pub limit_tokens: Option<i64>,
    pub reserved_micros: i64,
    pub spent_micros: i64,
    pub reserved_tokens: i64,
    pub spent_tokens: i64,
    /// Highest percentage that was told: 0, 80 or 95.
    pub warned: i16,
}

impl BudgetRow {
    /// Whose it is, in words.
    pub fn whose(&self) -> String {
        match (&self.key_id, self.run_id) {
            (Some(key), _) => format!("API key {key}, today (UTC),"),
            (None, Some(_)) => "run".to_owned(),
            (None, None) => "task".to_owned(),
        }
    }

    /// Micro-USD that are neither spent nor reserved; `None`: no limit.
    pub fn micros_left(&self) -> Option<i64> {
        let used = self.spent_micros.saturating_add(self.reserved_micros);
        self.limit_micros.map(|limit| limit.saturating_sub(used).max(0))
    }

    /// Tokens that are neither spent nor reserved; `None`: no limit.
    pub fn tokens_left(&self) -> Option<i64> {
        let used = self.spent_tokens.saturating_add(self.reserved_tokens);
        self.limit_tokens.map(|limit| limit.saturating_sub(used).max(0))
    }

    /// Percentage of the tighter limit that is spent; 0 without limits.
    pub fn percent_spent(&self) -> i64 {
        let part = |spent: i64, limit: Option<i64>| match limit {
            None => 0,
            Some(0) => 100,
            Some(limit) => (i128::from(spent) * 100 / i128::from(limit)).min(1000) as i64,
        };
        part(self.spent_micros, self.limit_micros).max(part(self.spent_tokens, self.limit_tokens))
    }
}

/// API, in submit's transaction: the task's budget (`run` is `None`) or a run's. One that exists stays.
///
/// # Errors
/// [`DbError`].
pub async fn create(
    connection: &mut PgConnection,
    task: Uuid,
    run: Option<Uuid>,
    limits: Limits,
) -> Result<(), DbError> {
    sqlx::query(
        "INSERT INTO model_budgets (task_id, run_id, limit_micros, limit_tokens) VALUES ($1, $2, $3, $4)
         ON CONFLICT (task_id, run_id) DO NOTHING",
    )
    .bind(task)
    .bind(run)
    .bind(limits.micros)
    .bind(limits.tokens)
    .execute(connection)
    .await?;
    Ok(())
}

/// Gateway: makes sure that both levels exist, and that the run's is no wider than the operator's limits.
///
/// # Errors
/// [`DbError`].
pub async fn tighten(
    connection: &mut PgConnection,
    task: Uuid,
    run: Uuid,
    operator: Limits,
) -> Result<(), DbError> {
    create(connection, task, None, Limits::default()).await?;
    sqlx::query(
        "INSERT INTO model_budgets AS b (task_id, run_id, limit_micros, limit_tokens) VALUES ($1, $2, $3, $4)
         ON CONFLICT (task_id, run_id) DO UPDATE SET limit_micros = least(b.limit_micros, $3),
                                                     limit_tokens = least(b.limit_tokens, $4)",
    )
    .bind(task)
    .bind(run)
    .bind(operator.micros)
    .bind(operator.tokens)
    .execute(connection)
    .await?;
    Ok(())
}

/// Gateway: begins a transaction that reserves. Its commit does not wait for the disk, which a CLI would feel at
/// every call: what a crash of the database itself loses, the call's end charges all the same. A gateway's own
/// crash loses nothing.
///
/// # Errors
/// [`DbError`].
pub async fn begin_reservation(pool: &PgPool) -> Result<Transaction<'static, Postgres>, DbError> {
    Ok(pool.begin_with("BEGIN; SET LOCAL synchronous_commit TO off").await?)
}

/// Gateway: both levels, the task's first, locked until the transaction ends: what is read here is what is
/// left, whoever else is about to reserve.
///
/// # Errors
/// [`DbError`].
pub async fn lock(connection: &mut PgConnection, task: Uuid, run: Uuid) -> Result<Vec<BudgetRow>, DbError> {
    Ok(sqlx::query_as(
        "SELECT * FROM model_budgets WHERE task_id = $1 AND (run_id IS NULL OR run_id = $2)
         ORDER BY run_id NULLS FIRST FOR UPDATE",
    )
    .bind(task)
    .bind(run)
    .fetch_all(connection)
    .await?)
}

/// Gateway, after [`lock`] in the same transaction: holds an amount on both levels.
///
/// # Errors
/// [`DbError`].
pub async fn reserve(
    connection: &mut PgConnection,
    task: Uuid,
    run: Uuid,
    amount: Amount,
) -> Result<(), DbError> {
    sqlx::query(
        "UPDATE model_budgets SET reserved_micros = reserved_micros + $3, reserved_tokens = reserved_tokens + $4
         WHERE task_id = $1 AND (run_id IS NULL OR run_id = $2)",
    )
    .bind(task)
    .bind(run)
    .bind(amount.micros)
    .bind(amount.tokens)
    .execute(connection)
    .await?;
    Ok(())
}

/// Gateway: gives back what was reserved and charges what was spent, on both levels; how they stand then,
/// the task's first. The run's cost is brought up to date.
///
/// # Errors
/// [`DbError`].
pub async fn settle(
    connection: &mut PgConnection,
    task: Uuid,
    run: Uuid,
    reserved: Amount,
    spent: Amount,
) -> Result<Vec<BudgetRow>, DbError> {
    lock(connection, task, run).await?;
    let mut levels: Vec<BudgetRow> = sqlx::query_as(
        "UPDATE model_budgets SET reserved_micros = reserved_micros - $3, reserved_tokens = reserved_tokens - $4,
                                  spent_micros = spent_micros + $5, spent_tokens = spent_tokens + $6
         WHERE task_id = $1 AND (run_id IS NULL OR run_id = $2) RETURNING *",
    )
    .bind(task)
    .bind(run)
    .bind(reserved.micros)
    .bind(reserved.tokens)
    .bind(spent.micros)
    .bind(spent.tokens)
    .fetch_all(connection)
    .await?;
    levels.sort_by_key(|level| level.run_id);
    Ok(levels)
}

/// Gateway: this percentage has been told.
///
/// # Errors
/// [`DbError`].
pub async fn set_warned(
    connection: &mut PgConnection,
    task: Uuid,
    run: Option<Uuid>,
    percent: i16,
) -> Result<(), DbError> {
    sqlx::query(
        "UPDATE model_budgets SET warned = $3 WHERE task_id = $1 AND run_id IS NOT DISTINCT FROM $2 AND warned < $3",
    )
    .bind(task)
    .bind(run)
    .bind(percent)
    .execute(connection)
    .await?;
    Ok(())
}

/// Gateway: the run's cost as it is spent, for whoever watches. Takes the run's row lock: last in a transaction.
///
/// # Errors
/// [`DbError`].
pub async fn write_cost(connection: &mut PgConnection, run: Uuid, spent_micros: i64) -> Result<(), DbError> {
    sqlx::query("UPDATE runs SET cost_usd = $2::double precision / 1000000 WHERE id = $1")
        .bind(run)
        .bind(spent_micros)
        .execute(connection)
        .await?;
    Ok(())
}

/// The budgets of tasks and their runs.
///
/// # Errors
/// [`DbError`].
pub async fn of_tasks(pool: &PgPool, tasks: &[Uuid]) -> Result<Vec<BudgetRow>, DbError> {
    Ok(sqlx::query_as("SELECT * FROM model_budgets WHERE task_id = ANY($1)")
        .bind(tasks)
        .fetch_all(pool)
        .await?)
}

/// The budgets of a task, its own first.
///
/// # Errors
/// [`DbError`].
pub async fn of_task(pool: &PgPool, task: Uuid) -> Result<Vec<BudgetRow>, DbError> {
    Ok(sqlx::query_as("SELECT * FROM model_budgets WHERE task_id = $1 ORDER BY run_id NULLS FIRST")
        .bind(task)
        .fetch_all(pool)
        .await?)
}
