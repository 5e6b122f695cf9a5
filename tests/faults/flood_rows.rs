//! What floods the roles that live on the database: audit entries, security events, tasks that are due. The schema's owner writes
//! them, as many in a statement as no writer of ours could.

use chrono::{Datelike as _, Months, TimeDelta, Utc};
use sqlx::{AssertSqlSafe, PgPool};

use crate::support::eventually;

/// Entries of a usual size in a round.
const ENTRIES: usize = 10_000;
/// And of the largest that is taken (migration 0019): together more than the sequencer takes in one step.
const LARGEST: usize = 9;
/// Security events of a round; every tenth is of the largest size (migration 0016).
const EVENTS: usize = 500;
/// Tasks of a round whose output and events are due, each with 40 of them.
const DUE: i64 = 500;

async fn write(pool: &PgPool, statement: String) {
    let done = sqlx::query(AssertSqlSafe(statement.clone())).execute(pool).await;
    done.unwrap_or_else(|error| panic!("{statement}: {error}"));
}

/// Waits until a count is 0.
async fn none_left(pool: &PgPool, what: &str, count: String) {
    eventually(what, async || {
        let left: i64 =
            sqlx::query_scalar(AssertSqlSafe(count.clone())).fetch_one(pool).await.expect("counts");
        (left == 0).then_some(())
    })
    .await;
}

async fn last(pool: &PgPool, table: &str) -> i64 {
    let statement = AssertSqlSafe(format!("SELECT coalesce(max(ordinal), 0) FROM {table}"));
    sqlx::query_scalar(statement).fetch_one(pool).await.expect("a number")
}

/// A backlog for the sequencer, all of it at once; until each of these entries has its place.
pub async fn entries(pool: &PgPool) {
    let columns = "INSERT INTO audit_entries (actor_kind, action, object, outcome, details)";
    // One long text, and as many values as there may be: each costs far more than its text.
    write(
        pool,
        format!(
            "{columns} SELECT 'host', 'flood', 'flood', 'done', CASE
                 WHEN n <= {LARGEST} - 1 THEN jsonb_build_object('text', repeat('x', 4194200))
                 WHEN n <= {LARGEST} THEN (SELECT jsonb_agg(1) FROM generate_series(1, 1398000))
                 ELSE jsonb_build_object('number', n, 'text', repeat(md5(n::text), 8)) END
             FROM generate_series(1, {}) AS n",
            LARGEST + ENTRIES
        ),
    )
    .await;
    let last = last(pool, "audit_queue").await;
    none_left(pool, "all has its place", format!("SELECT count(*) FROM audit_queue WHERE ordinal <= {last}"))
        .await;
}

/// Events for receivers of which only `good` takes them; until it has all of them.
pub async fn events(pool: &PgPool) {
    write(
        pool,
        format!(
            "INSERT INTO security_events (id, kind, severity, subject, details)
             SELECT gen_random_uuid(), 'auth.repeated_failures', 4, 'flood', jsonb_build_object('text',
                        (SELECT string_agg(md5((n * 10000 + i)::text), '') FROM generate_series(1, CASE n % 10 WHEN 0 THEN 2000 ELSE 4 END) AS i))
             FROM generate_series(1, {EVENTS}) AS n"
        ),
    )
    .await;
    let last = last(pool, "security_events").await;
    none_left(pool, "all are told", format!(
        "SELECT (SELECT count(*) FROM security_event_queue WHERE ordinal <= {last})
              + (SELECT count(*) FROM webhook_deliveries WHERE event <= {last} AND hook = 'good' AND state <> 'delivered')"
    ))
    .await;
}

/// Tasks that ended two months ago, when nobody had made that month's tables; until all that is due is gone.
pub async fn due(pool: &PgPool, round: u32) {
    let first =
        Utc::now().date_naive().with_day(1).and_then(|first| first.checked_sub_months(Months::new(2)));
    let from =
        first.expect("a month").and_hms_opt(0, 0, 0).expect("midnight") + TimeDelta::hours(i64::from(round));
    let id = format!(
        "(lpad(to_hex((extract(epoch FROM timestamp '{from}') * 1000)::bigint + n), 12, '0') || '7000'
          || substr(md5((n + {round} * 100000)::text), 1, 16))::uuid"
    );
    write(
        pool,
        format!(
            "WITH task AS (
                 INSERT INTO tasks (id, description, repository, assignments, max_retries, retry_delay, merge_strategy,
                                    submitted_by, event_seq, completed_at, status)
                 SELECT {id}, 'flood', 'demo', '[]', 0, 1, 'auto', 'flood', 40, now() - interval '40 days', 'completed'
                 FROM generate_series(1, {DUE}) AS n RETURNING id)
             INSERT INTO events (task_id, seq, kind, payload, log)
             SELECT id, seq, CASE seq % 2 WHEN 0 THEN 'log' ELSE 'state' END, CASE seq % 2 WHEN 1 THEN '{{}}'::jsonb END,
                    CASE seq % 2 WHEN 0 THEN convert_to(repeat(md5(seq::text), 32), 'UTF8') END
             FROM task, generate_series(1, 40) AS seq"
        ),
    )
    .await;
    none_left(
        pool,
        "all that is due is gone",
        "SELECT count(*) FROM events e WHERE EXISTS (
        SELECT FROM tasks t WHERE t.id = e.task_id AND t.submitted_by = 'flood')"
            .to_owned(),
    )
    .await;
}
