//! Events that came before their month had tables.

use std::time::Duration;

use kage::config::retention::{Kept, RetentionConfig};
use kage::db::Zone;
use kage::db::retention::{self, Thing};
use kage::lifecycle::Lifecycle;
use sqlx::{AssertSqlSafe, PgPool};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::copies::{day, exists, id_of, month, rows};
use crate::support::eventually;
use crate::world::{World, task};

/// In "rest", or in a month, of both sorts.
async fn in_table(pool: &PgPool, end: &str) -> i64 {
    let statement = AssertSqlSafe(format!(
        "SELECT (SELECT count(*) FROM events_log_{end}) + (SELECT count(*) FROM events_other_{end})"
    ));
    sqlx::query_scalar(statement).fetch_one(pool).await.expect("counts")
}

/// An event more, as every writer takes its number.
async fn append(pool: &PgPool, id: Uuid) {
    let mut transaction = pool.begin().await.expect("begins");
    let seq: i64 =
        sqlx::query_scalar("UPDATE tasks SET event_seq = event_seq + 1 WHERE id = $1 RETURNING event_seq")
            .bind(id)
            .fetch_one(&mut *transaction)
            .await
            .expect("a number");
    let output = seq % 2 == 0;
    sqlx::query("INSERT INTO events (task_id, seq, kind, payload, log) VALUES ($1, $2, $3, $4, $5)")
        .bind(id)
        .bind(seq)
        .bind(if output { "log" } else { "state" })
        .bind((!output).then(|| serde_json::json!({ "n": seq })))
        .bind(output.then(|| vec![b'x'; 5000]))
        .execute(&mut *transaction)
        .await
        .expect("an event");
    transaction.commit().await.expect("commits");
}

async fn numbers(pool: &PgPool, id: Uuid) -> Vec<i64> {
    sqlx::query_scalar("SELECT seq FROM events WHERE task_id = $1 ORDER BY seq")
        .bind(id)
        .fetch_all(pool)
        .await
        .expect("reads")
}

/// Writes and reads until it is told to end; how many events there are then. What was seen once is seen ever after.
async fn work(pool: PgPool, id: Uuid, end: CancellationToken) -> i64 {
    let mut seen = 0;
    while !end.is_cancelled() {
        append(&pool, id).await;
        let now = numbers(&pool, id).await;
        assert!(
            now.len() as i64 > seen && now.iter().copied().eq(1..=now.len() as i64),
            "after {seen}: {now:?}"
        );
        seen = now.len() as i64;
    }
    seen
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_came_before_its_month_goes_into_it_while_others_read_and_write() {
    let world = World::new().await;
    let pool = world.pool();
    let zone = world.as_zone(Zone::Retention).await;
    // Two months without tables; one that goes on; ids of no time, and of one that is not to come for long.
    let mut of_month = Vec::new();
    for number in 1..=8 {
        of_month.push(id_of(day(2, number)));
    }
    let (earlier, goes_on) = (id_of(day(4, 3)), id_of(day(2, 20)));
    let strangers = [Uuid::from_u128(1), Uuid::from_u128(u128::MAX)];
    for id in of_month.iter().chain(&strangers).chain([&earlier]) {
        task(pool, *id, Some("now() - interval '50 days'")).await;
    }
    task(pool, goes_on, None).await;
    // More than is moved at once.
    sqlx::query(
        "INSERT INTO events (task_id, seq, kind, log) SELECT $1, n, 'log', 'x' FROM generate_series(4, 2500) AS n",
    )
    .bind(of_month[6])
    .execute(pool)
    .await
    .expect("inserts");
    let name = month(2).format("%Y%m").to_string();
    assert!(!exists(pool, &format!("events_log_{name}")).await);
    let all = in_table(pool, "rest").await;

    // A part of it: the earlier month, then some of the other.
    let first = retention::move_rest(&zone, Thing::Log).await.expect("moves").expect("there is something");
    assert_eq!((first.month, first.tasks, first.rows), (month(4), 1, 1));
    let of = "SELECT month, tasks, moved FROM retention_move_rest('log', 3, 1000000)";
    let part: (chrono::NaiveDate, i64, i64) = sqlx::query_as(of).fetch_one(&zone).await.expect("moves");
    assert_eq!(part, (month(2), 3, 3));
    assert_eq!(rows(pool, &format!("events_log_{name}"), of_month[2]).await, 1);
    assert_eq!(rows(pool, "events_log_rest", of_month[3]).await, 1);
    assert_eq!(rows(pool, "events_log", of_month[3]).await, 1);
    // The month is not whole, though every task of it is due: what is not in its table would stay, and be said to be gone.
    let due: Vec<Uuid> = of_month.iter().copied().chain([goes_on]).collect();
    sqlx::query("UPDATE tasks SET completed_at = now() WHERE id = $1")
        .bind(goes_on)
        .execute(pool)
        .await
        .expect("ends");
    let dropped = retention::drop_month(&zone, Thing::Log, month(2), None, &due).await.expect("asks");
    assert_eq!(dropped, None);
    sqlx::query("UPDATE tasks SET completed_at = NULL WHERE id = $1")
        .bind(goes_on)
        .execute(pool)
        .await
        .expect("goes on");

    let end = CancellationToken::new();
    let workers: Vec<_> = [goes_on, of_month[0]]
        .map(|id| tokio::spawn(work(pool.clone(), id, end.clone())))
        .into_iter()
        .collect();
    let lifecycle = Lifecycle::new();
    let kept = Kept::default();
    let config = RetentionConfig { log: kept, events: kept, results: kept, poll: Duration::from_millis(100) };
    kage::retention::start(zone.clone(), config, &lifecycle);
    eventually("nothing is left but what is of no time", async || {
        (in_table(pool, "rest").await == 3 * strangers.len() as i64).then_some(())
    })
    .await;
    end.cancel();
    let mut written = 0;
    for worker in workers {
        // Of the three that were there.
        written += worker.await.expect("nothing is missing, not for a moment") - 3;
    }
    lifecycle.stop();
    assert!(lifecycle.wait().await);
    assert!(written > 0);
    assert_eq!(in_table(pool, &name).await, all + written - 3 - 3 * strangers.len() as i64);
    assert_eq!(retention::move_rest(&zone, Thing::Log).await.expect("asks"), None);
    // It is a month as any other: what comes late finds it, and it can be dropped whole.
    append(pool, goes_on).await;
    let last = numbers(pool, goes_on).await.len() as i64;
    assert_eq!(in_table(pool, "rest").await, 3 * strangers.len() as i64);
    let stored: String = sqlx::query_scalar(
        "SELECT attstorage::text FROM pg_attribute WHERE attrelid = $1::regclass AND attname = 'log'",
    )
    .bind(format!("events_log_{name}"))
    .fetch_one(pool)
    .await
    .expect("a column");
    assert_eq!(stored, "e", "output is read in parts");
    let unknown =
        sqlx::query("INSERT INTO events (task_id, seq, kind, payload) VALUES ($1, 1, 'state', '{}')");
    let refused = unknown.bind(id_of(day(2, 9))).execute(pool).await.expect_err("there is no such task");
    assert!(refused.as_database_error().is_some_and(|error| error.is_foreign_key_violation()), "{refused}");
    sqlx::query("UPDATE tasks SET completed_at = now() WHERE id = $1")
        .bind(goes_on)
        .execute(pool)
        .await
        .expect("ends");
    let dropped = retention::drop_month(&zone, Thing::Log, month(2), None, &due).await.expect("asks");
    assert_eq!(dropped.map(|gone| gone.tasks), Some(9));
    assert_eq!(rows(pool, "events", goes_on).await, last - last / 2);
}
