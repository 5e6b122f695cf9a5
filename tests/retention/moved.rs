//! The events that were there before they were kept by month.

use std::path::Path;

use sqlx::{AssertSqlSafe, PgPool};
use uuid::Uuid;

use crate::copies::{day, id_of, month, rows};
use crate::support::database::Database;

/// Number and text of each migration, in order.
fn migrations() -> Vec<(u32, String)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("migrations");
    let files = std::fs::read_dir(folder).expect("the folder").map(|entry| entry.expect("an entry").path());
    let mut found: Vec<(u32, String)> = files
        .filter(|path| path.extension().is_some_and(|extension| extension == "sql"))
        .map(|path| {
            let name = path.file_name().and_then(|name| name.to_str()).expect("UTF-8");
            let number = name.split('_').next().and_then(|number| number.parse().ok()).expect("a number");
            (number, std::fs::read_to_string(&path).expect("reads"))
        })
        .collect();
    found.sort();
    found
}

async fn apply(pool: &PgPool, wanted: impl Fn(u32) -> bool) {
    for (number, text) in migrations().into_iter().filter(|(number, _)| wanted(*number)) {
        let mut transaction = pool.begin().await.expect("begins");
        let done = sqlx::raw_sql(AssertSqlSafe(text)).execute(&mut *transaction).await;
        done.unwrap_or_else(|error| panic!("{number}: {error}"));
        transaction.commit().await.expect("commits");
    }
}

async fn all(pool: &PgPool) -> Vec<String> {
    // The columns in no order of their own.
    sqlx::query_scalar("SELECT to_jsonb(e)::text FROM events e ORDER BY task_id, seq")
        .fetch_all(pool)
        .await
        .expect("reads")
}

#[tokio::test]
async fn every_event_is_moved_and_numbers_stay_unique() {
    let database = Database::create(&Uuid::new_v4().simple().to_string()).await;
    let pool = database.pool.clone();
    sqlx::query("CREATE TABLE _sqlx_migrations (version bigint)")
        .execute(&pool)
        .await
        .expect("as the library does");
    apply(&pool, |number| number < 20).await;
    // Of this month, of two long past, and one whose id is of no time.
    let ids = [id_of(chrono::Utc::now()), id_of(day(5, 7)), id_of(day(14, 7)), Uuid::new_v4()];
    for id in ids {
        sqlx::query(
            "WITH task AS (INSERT INTO tasks (id, description, repository, assignments, max_retries, retry_delay,
                                             merge_strategy, submitted_by, event_seq)
                          VALUES ($1, 'd', 'r', '[]', 0, 1, 'auto', 'k', 20) RETURNING id)
             INSERT INTO events (task_id, seq, kind, payload, attempt, stream, log_offset, log_position, log)
             SELECT id, seq, CASE seq % 2 WHEN 0 THEN 'log' ELSE 'state' END,
                    CASE seq % 2 WHEN 0 THEN NULL ELSE jsonb_build_object('n', seq) END, 1, 1, seq, seq,
                    CASE seq % 2 WHEN 0 THEN decode(repeat(md5(seq::text), 400), 'hex') END
             FROM task, generate_series(1, 20) AS seq",
        )
        .bind(id)
        .execute(&pool)
        .await
        .expect("inserts");
    }
    let before = all(&pool).await;
    apply(&pool, |number| number >= 20).await;
    assert_eq!(all(&pool).await, before);
    assert_eq!(before.len(), 80);
    for (id, place) in [(ids[0], month(0)), (ids[1], month(5)), (ids[2], month(14))] {
        for sort in ["log", "other"] {
            assert_eq!(
                rows(&pool, &format!("events_{sort}_{}", place.format("%Y%m")), id).await,
                10,
                "{place}"
            );
        }
    }
    assert_eq!(rows(&pool, "events_log_rest", ids[3]).await, 10);
    for seq in [2, 3] {
        let twice = sqlx::query(
            "INSERT INTO events (task_id, seq, kind, payload, log) SELECT task_id, seq, kind, payload, log FROM events
             WHERE task_id = $1 AND seq = $2",
        );
        let error = twice.bind(ids[1]).bind(seq).execute(&pool).await.expect_err("it is there");
        assert!(error.as_database_error().is_some_and(|error| error.is_unique_violation()), "{error}");
    }
    // A reader looks at the two tables of the task's month, by their indexes, however many months there are.
    let plan: Vec<String> = {
        let mut connection = pool.acquire().await.expect("a connection");
        sqlx::query("SET enable_seqscan = off").execute(&mut *connection).await.expect("sets");
        let text = format!(
            "EXPLAIN SELECT seq FROM events WHERE task_id = '{}' AND seq > 3 ORDER BY seq LIMIT 16",
            ids[1]
        );
        sqlx::query_scalar(AssertSqlSafe(text)).fetch_all(&mut *connection).await.expect("a plan")
    };
    let scans: Vec<&String> = plan.iter().filter(|line| line.contains(" on events")).collect();
    assert!(scans.len() == 2 && scans.iter().all(|line| line.contains("Index")), "{plan:#?}");
    // A month's table can be made although the rest holds others; not where its own rows are in the rest.
    let made = |of: chrono::NaiveDate| {
        let pool = pool.clone();
        async move {
            let made: bool = sqlx::query_scalar("SELECT add_event_month($1)")
                .bind(of)
                .fetch_one(&pool)
                .await
                .expect("asks");
            made
        }
    };
    assert!(made(month(6)).await && !made(month(6)).await);
    drop(pool);
    assert!(database.destroy().is_empty());
}
