//! Months long past, one more every few seconds: what `kage retention` has to let go of while the storm passes, and what not.
//!
//! No task of the storm itself is old enough, so all that is asked of them stays as strict as it was.

use std::collections::BTreeMap;
use std::time::Duration;

use chrono::{DateTime, Datelike as _, Months, NaiveDate, NaiveTime, TimeDelta, Utc};
use serde_json::Value;
use sqlx::PgPool;
use tokio::time::{Instant, sleep, sleep_until};
use uuid::{Builder, Uuid};

use crate::world::World;

/// More than a month, so a month that is over is let go of as a whole.
pub const AGE_DAYS: &str = "40";
/// The youngest of these months is older than that, by any clock that is a day off.
const FIRST: u32 = 3;
/// In a month of which all is due, and in one with a task beside them that ended yesterday.
const DUE: usize = 2;
const PAUSE: Duration = Duration::from_millis(200);
/// It looks every second.
const LET_GO_WITHIN: Duration = Duration::from_secs(100);
const THINGS: [&str; 3] = ["log", "events", "results"];

/// One month, and its tasks.
pub struct Past {
    month: NaiveDate,
    due: Vec<Uuid>,
    /// Began in that month and ended yesterday: it stays, and so does the month's table.
    young: Option<Uuid>,
}

impl Past {
    fn of(number: usize) -> Self {
        let today = Utc::now().date_naive();
        let ago = Months::new(FIRST + u32::try_from(number).expect("few"));
        let month = today.with_day(1).and_then(|first| first.checked_sub_months(ago)).expect("a date");
        let id = || id_of(month.and_time(NaiveTime::MIN).and_utc() + TimeDelta::days(3));
        let young = (number % 2 == 1).then(id);
        Self { month, due: std::iter::repeat_with(id).take(DUE).collect(), young }
    }

    fn tables(&self) -> [String; 2] {
        ["log", "other"].map(|sort| format!("events_{sort}_{}", self.month.format("%Y%m")))
    }
}

/// As the API would have made it then.
fn id_of(then: DateTime<Utc>) -> Uuid {
    let millis = u64::try_from(then.timestamp_millis()).expect("after 1970");
    Builder::from_unix_timestamp_millis(millis, &rand::random()).into_uuid()
}

/// Puts one month after the other there, each when it is time and the database can be asked.
pub async fn plant(pool: PgPool, moments: Vec<u64>, begun: Instant) -> Vec<Past> {
    let mut planted = Vec::new();
    for (number, at) in moments.into_iter().enumerate() {
        sleep_until(begun + Duration::from_millis(at)).await;
        let past = Past::of(number);
        while put(&pool, &past).await.is_err() {
            sleep(PAUSE).await;
        }
        planted.push(past);
    }
    planted
}

/// The month as a whole. Asked again, after an answer that was lost, it does nothing.
async fn put(pool: &PgPool, past: &Past) -> sqlx::Result<()> {
    let mut transaction = pool.begin().await?;
    // As long as retention itself waits for what others do.
    sqlx::query("SET LOCAL lock_timeout = '500ms'").execute(&mut *transaction).await?;
    let there: bool = sqlx::query_scalar("SELECT EXISTS (SELECT FROM tasks WHERE id = $1)")
        .bind(past.due[0])
        .fetch_one(&mut *transaction)
        .await?;
    if there {
        return Ok(());
    }
    sqlx::query("SELECT add_event_month($1)").bind(past.month).execute(&mut *transaction).await?;
    let old =
        past.due.iter().map(|id| (*id, past.month.and_time(NaiveTime::MIN).and_utc() + TimeDelta::days(5)));
    let young = past.young.iter().map(|id| (*id, Utc::now() - TimeDelta::days(1)));
    for (id, ended) in old.chain(young) {
        sqlx::query(TASK).bind(id).bind(ended).execute(&mut *transaction).await?;
    }
    transaction.commit().await
}

/// A task of one run, with a block of output, two other events and a result.
const TASK: &str = "
WITH task AS (
    INSERT INTO tasks (id, description, repository, assignments, max_retries, retry_delay, merge_strategy,
                       submitted_by, event_seq, status, created_at, completed_at)
    VALUES ($1, 'd', 'past', '[]', 0, 1, 'auto', 'k', 3, 'completed', $2, $2) RETURNING id),
run AS (
    INSERT INTO runs (id, task_id, name, position, cli_name, image_digest, manifest, context, timeout_secs,
                      allow_no_changes, state, output_bytes, created_at, finished_at)
    SELECT gen_random_uuid(), id, 'shell', 0, 'shell', 'd', '{}', '{}', 60, false, 'succeeded', 10, $2, $2 FROM task
    RETURNING id),
result AS (
    INSERT INTO run_results (run_id, patch, patch_truncated, files, warnings)
    SELECT id, 'patch', false, '[]', '[]' FROM run)
INSERT INTO events (task_id, seq, run_id, kind, payload, attempt, stream, log_offset, log_position, log)
SELECT task.id, seq, run.id, CASE seq WHEN 2 THEN 'log' ELSE 'state' END, CASE seq WHEN 2 THEN NULL ELSE '{}'::jsonb END,
       1, 1, 0, 0, CASE seq WHEN 2 THEN '0123456789'::bytea END
FROM task, run, generate_series(1, 3) AS seq";

/// What was due is gone, once, and the trail says so once; what was not due is there, all of it.
pub async fn is_let_go(world: &World, planted: &[Past], wrong: &mut Vec<String>) {
    let due: Vec<Uuid> = planted.iter().flat_map(|past| past.due.clone()).collect();
    let until = Instant::now() + LET_GO_WITHIN;
    while count(&world.pool, "SELECT count(*) FROM let_go WHERE task_id = ANY ($1) AND rule = 'age'", &due)
        .await
        < due.len() * THINGS.len()
    {
        if Instant::now() > until {
            wrong.push("retention: not all that is due was let go of".to_owned());
            break;
        }
        sleep(PAUSE).await;
    }
    for (what, wanted, statement) in STANDS {
        let found = count(&world.pool, statement, &due).await;
        let wanted = wanted * due.len();
        if found != wanted {
            wrong.push(format!("retention: {found} {what}, not {wanted}"));
        }
    }
    let young: Vec<Uuid> = planted.iter().filter_map(|past| past.young).collect();
    let whole = count(&world.pool, WHOLE, &young).await;
    if whole != young.len() {
        wrong.push(format!("retention: of {} young tasks {whole} are whole", young.len()));
    }
    for past in planted {
        for table in past.tables() {
            let there: bool = sqlx::query_scalar("SELECT to_regclass($1) IS NOT NULL")
                .bind(&table)
                .fetch_one(&world.pool)
                .await
                .expect("reads");
            if there != past.young.is_some() {
                wrong.push(format!("retention: {table} is {}", if there { "still there" } else { "gone" }));
            }
        }
    }
    wrong.extend(trail(&world.pool, planted).await);
}

/// What there is, how much of it for each task that was due, and how it is counted.
const STANDS: [(&str, usize, &str); 6] = [
    ("tasks that were due", 1, "SELECT count(*) FROM tasks WHERE id = ANY ($1) AND status = 'completed'"),
    ("runs of them", 1, "SELECT count(*) FROM runs WHERE task_id = ANY ($1) AND state = 'succeeded'"),
    ("events of them", 0, "SELECT count(*) FROM events WHERE task_id = ANY ($1)"),
    (
        "results of them",
        0,
        "SELECT count(*) FROM run_results x JOIN runs r ON r.id = x.run_id WHERE r.task_id = ANY ($1)",
    ),
    ("things of them let go", 3, "SELECT count(*) FROM let_go WHERE task_id = ANY ($1)"),
    ("things of others let go", 0, "SELECT count(*) FROM let_go WHERE task_id <> ALL ($1)"),
];

const WHOLE: &str = "
SELECT count(*) FROM tasks t JOIN runs r ON r.task_id = t.id JOIN run_results x ON x.run_id = r.id
WHERE t.id = ANY ($1) AND x.patch = 'patch'
  AND (SELECT count(*) FROM events_other e WHERE e.task_id = t.id) = 2
  AND (SELECT string_agg(e.log, '') FROM events_log e WHERE e.task_id = t.id) = '0123456789'";

async fn count(pool: &PgPool, statement: &'static str, ids: &[Uuid]) -> usize {
    let found: i64 = sqlx::query_scalar(statement).bind(ids).fetch_one(pool).await.expect("reads");
    usize::try_from(found).expect("a count")
}

/// Each thing of each task in one entry: with its month, where that went as a whole, else by name.
async fn trail(pool: &PgPool, planted: &[Past]) -> Vec<String> {
    let entries: Vec<Value> =
        sqlx::query_scalar("SELECT details FROM audit_entries WHERE action = 'retention.let_go'")
            .fetch_all(pool)
            .await
            .expect("reads");
    let mut found = BTreeMap::<(String, String), usize>::new();
    for entry in &entries {
        let named = entry["task_ids"].as_array().into_iter().flatten();
        for of in named.chain(entry.get("month")) {
            let key = [&entry["what"], of].map(|value| value.as_str().unwrap_or("?").to_owned());
            *found.entry(key.into()).or_default() += 1;
        }
    }
    let mut wanted = BTreeMap::new();
    for past in planted {
        for what in THINGS {
            if what != "results" && past.young.is_none() {
                wanted.insert((what.to_owned(), past.month.format("%Y-%m").to_string()), 1);
            } else {
                wanted.extend(past.due.iter().map(|id| ((what.to_owned(), id.to_string()), 1)));
            }
        }
    }
    let keys: std::collections::BTreeSet<_> = found.keys().chain(wanted.keys()).collect();
    let differs = keys.into_iter().filter(|key| found.get(*key) != wanted.get(*key));
    let said = differs.map(|key| {
        let times = found.get(key).copied().unwrap_or(0);
        format!("retention: {times} audit entries that {} of {} was let go", key.0, key.1)
    });
    said.collect()
}
