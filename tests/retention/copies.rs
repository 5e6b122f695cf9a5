//! Tasks of long ago, made by the schema's owner out of one that has just ended.

use chrono::{DateTime, Datelike as _, Months, NaiveDate, NaiveTime, TimeDelta, Utc};
use serde_json::{Value, json};
use sqlx::{AssertSqlSafe, PgConnection, PgPool};
use uuid::{Builder, Uuid};

/// An id of version 7, as the API would have made it then.
pub fn id_of(then: DateTime<Utc>) -> Uuid {
    let millis = u64::try_from(then.timestamp_millis()).expect("after 1970");
    Builder::from_unix_timestamp_millis(millis, &rand::random()).into_uuid()
}

/// The first of the month so many months ago.
pub fn month(ago: u32) -> NaiveDate {
    let today = Utc::now().date_naive();
    today.with_day(1).and_then(|first| first.checked_sub_months(Months::new(ago))).expect("a date")
}

/// Noon of that day of the month so many months ago.
pub fn day(ago: u32, day: u32) -> DateTime<Utc> {
    let noon = NaiveTime::from_hms_opt(12, 0, 0).expect("noon");
    month(ago).with_day(day).expect("a day").and_time(noon).and_utc()
}

/// Copies a task of one run with all that belongs to it, as if it had been submitted then and ended an hour later. `ended`: else
/// it goes on.
pub async fn copy(pool: &PgPool, task: Uuid, then: DateTime<Utc>, ended: bool) -> Uuid {
    let run: Uuid = sqlx::query_scalar("SELECT id FROM runs WHERE task_id = $1")
        .bind(task)
        .fetch_one(pool)
        .await
        .expect("its run");
    let (copy, run_copy) = (id_of(then), id_of(then));
    let status = if ended { "completed" } else { "running" };
    let completed = ended.then(|| then + TimeDelta::hours(1));
    let mut transaction = pool.begin().await.expect("begins");
    let row = json!({ "id": copy, "created_at": then, "completed_at": completed, "status": status });
    again(&mut transaction, "tasks", "id", task, row).await;
    again(&mut transaction, "runs", "id", run, json!({ "id": run_copy, "task_id": copy })).await;
    again(&mut transaction, "events", "task_id", task, json!({ "task_id": copy, "run_id": run_copy })).await;
    again(&mut transaction, "run_results", "run_id", run, json!({ "run_id": run_copy })).await;
    transaction.commit().await.expect("commits");
    copy
}

/// Rows once more, with other values in some columns.
async fn again(connection: &mut PgConnection, table: &str, key: &str, of: Uuid, other: Value) {
    // An event of the task itself has no run.
    let other_here =
        if table == "events" { "CASE WHEN x.run_id IS NULL THEN $2 - 'run_id' ELSE $2 END" } else { "$2" };
    let statement = AssertSqlSafe(format!(
        "INSERT INTO {table} SELECT (jsonb_populate_record(x, {other_here})).* FROM {table} x WHERE {key} = $1"
    ));
    let done = sqlx::query(statement).bind(of).bind(other).execute(connection).await;
    done.unwrap_or_else(|error| panic!("{table}: {error}"));
}

/// The owner makes a month's tables, as the migration did for the months that it found.
pub async fn add_month(pool: &PgPool, month: NaiveDate) {
    let made: bool =
        sqlx::query_scalar("SELECT add_event_month($1)").bind(month).fetch_one(pool).await.expect("makes");
    assert!(made, "{month} was there");
}

/// Rows of a task in what a name stands for.
pub async fn rows(pool: &PgPool, table: &str, task: Uuid) -> i64 {
    let statement = AssertSqlSafe(format!("SELECT count(*) FROM {table} WHERE task_id = $1"));
    sqlx::query_scalar(statement).bind(task).fetch_one(pool).await.expect("counts")
}

/// Whether there is such a table.
pub async fn exists(pool: &PgPool, table: &str) -> bool {
    sqlx::query_scalar("SELECT to_regclass($1) IS NOT NULL").bind(table).fetch_one(pool).await.expect("looks")
}

/// What was let go, as the trail has it, the first first.
pub async fn entries(pool: &PgPool, action: &str) -> Vec<Value> {
    sqlx::query_scalar("SELECT details FROM audit_entries WHERE action = $1 ORDER BY at")
        .bind(action)
        .fetch_all(pool)
        .await
        .expect("entries")
}
