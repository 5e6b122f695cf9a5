//! What each role may do about what is kept, as the roles themselves.

use serde_json::Value;
use sqlx::{AssertSqlSafe, PgPool};

use crate::copies::{day, entries, id_of, month, rows};
use crate::world::{World, task};

const DENIED: Option<&str> = Some("42501");
const ROLES: [&str; 6] =
    ["kage_api", "kage_runner", "kage_gateway", "kage_sequencer", "kage_notifier", "kage_retention"];

/// Runs a statement as a role and takes it back; the SQLSTATE where it is refused.
async fn as_role(pool: &PgPool, role: &str, statement: &str) -> Option<String> {
    let mut transaction = pool.begin().await.expect("a connection");
    let set = AssertSqlSafe(format!("SET LOCAL ROLE {role}"));
    sqlx::query(set).execute(&mut *transaction).await.expect("the role is there");
    let done = sqlx::query(AssertSqlSafe(statement.to_owned())).execute(&mut *transaction).await;
    transaction.rollback().await.expect("rolls back");
    match done {
        Ok(_) => None,
        Err(sqlx::Error::Database(error)) => Some(error.code().expect("a SQLSTATE").into_owned()),
        Err(error) => panic!("{statement}: {error}"),
    }
}

#[tokio::test]
async fn nobody_but_retention_lets_go_and_it_does_nothing_else() {
    let world = World::new().await;
    let pool = world.pool();
    let id = id_of(chrono::Utc::now());
    task(pool, id, Some("now() - interval '9 days'")).await;
    let calls = [
        "SELECT retention_due('log', now(), NULL, false)".to_owned(),
        format!("SELECT retention_let_go('log', ARRAY['{id}'::uuid], 'age')"),
        format!("SELECT retention_drop_month('log', '{}', now(), '{{}}')", month(0)),
        "SELECT retention_make_months(3)".to_owned(),
        "SELECT retention_past_months('log')".to_owned(),
        "SELECT retention_move_rest('log', 10, 1000)".to_owned(),
    ];
    let inner = [
        format!("SELECT add_event_month('{}')", month(30)),
        "SELECT record_let_go('log', '{}')".to_owned(),
        "SELECT * FROM event_months('log')".to_owned(),
        format!("SELECT kept_bytes('{id}', 'log')"),
        // Its entry is written by the functions, which nobody speaks for.
        "INSERT INTO audit_entries (actor_kind, action, object, outcome, details)
         VALUES ('retention', 'retention.let_go', 'retention:log', 'done', '{}')"
            .to_owned(),
        format!("INSERT INTO let_go (task_id, what, rule) VALUES ('{id}', 'log', 'age')"),
        "DELETE FROM let_go".to_owned(),
        "DELETE FROM events".to_owned(),
        "DELETE FROM events_log".to_owned(),
        "TRUNCATE events_log_rest".to_owned(),
        format!("DROP TABLE events_log_{}", month(0).format("%Y%m")),
        "ALTER TABLE events_log DETACH PARTITION events_log_rest".to_owned(),
        "CREATE TABLE loot (x text)".to_owned(),
        // Rights are on the whole: no month is a way around the trigger on it, or around what a role may see.
        "SELECT * FROM events_log".to_owned(),
        format!("SELECT * FROM events_other_{}", month(0).format("%Y%m")),
        format!(
            "INSERT INTO events_other_rest (task_id, seq, kind, payload) VALUES ('{id}', 9, 'state', '{{}}')"
        ),
    ];
    for role in ROLES {
        for statement in &calls {
            let refused = as_role(pool, role, statement).await;
            assert_eq!(
                refused.as_deref(),
                if role == "kage_retention" { None } else { DENIED },
                "{role}: {statement}"
            );
        }
        for statement in &inner {
            assert_eq!(as_role(pool, role, statement).await.as_deref(), DENIED, "{role}: {statement}");
        }
        let sees = ["kage_api", "kage_runner"].contains(&role);
        assert_eq!(as_role(pool, role, "SELECT * FROM let_go").await.is_none(), sees, "{role}");
    }
    for table in
        ["tasks", "runs", "events", "run_results", "audit_entries", "api_keys", "people", "security_events"]
    {
        let statement = format!("SELECT * FROM {table}");
        assert_eq!(as_role(pool, "kage_retention", &statement).await.as_deref(), DENIED, "{statement}");
    }
    for (object, may) in [("role:retention", true), ("role:api", false)] {
        let statement = format!(
            "INSERT INTO audit_entries (actor_kind, action, object, outcome, details)
             VALUES ('host', 'role.start', '{object}', 'done', '{{}}')"
        );
        assert_eq!(as_role(pool, "kage_retention", &statement).await.is_none(), may, "{object}");
    }
}

/// What a role that was taken over would try.
#[tokio::test]
async fn what_has_not_ended_is_not_let_go_whatever_retention_asks_for() {
    let world = World::new().await;
    let pool = world.pool();
    let mut connection = pool.acquire().await.expect("a connection");
    sqlx::query("SELECT add_event_month($1)").bind(month(3)).execute(&mut *connection).await.expect("makes");
    let (goes_on, ended) = (id_of(day(3, 5)), id_of(day(3, 6)));
    task(pool, goes_on, None).await;
    task(pool, ended, Some("now() - interval '70 days'")).await;
    sqlx::query("SET ROLE kage_retention").execute(&mut *connection).await.expect("it is there");

    let drop = "SELECT tasks FROM retention_drop_month('log', $1, now() + interval '1 year', $2)";
    for of in [month(3), month(0)] {
        let dropped: Option<i64> = sqlx::query_scalar(drop)
            .bind(of)
            .bind([goes_on, ended])
            .fetch_one(&mut *connection)
            .await
            .expect("asks");
        assert_eq!(dropped, None, "{of}: something goes on in it, or it is not over");
    }
    let let_go = "SELECT tasks FROM retention_let_go($1, $2, 'age')";
    for thing in ["log", "events", "results"] {
        let gone: i64 = sqlx::query_scalar(let_go)
            .bind(thing)
            .bind([goes_on, ended])
            .fetch_one(&mut *connection)
            .await
            .expect("asks");
        assert_eq!(gone, 1, "{thing}: the one that has ended");
        // Not twice, and never without a word.
        let again: i64 = sqlx::query_scalar(let_go)
            .bind(thing)
            .bind([ended])
            .fetch_one(&mut *connection)
            .await
            .expect("asks");
        assert_eq!(again, 0);
    }
    for nonsense in ["tasks", "audit_entries", "x'; DROP TABLE tasks; --"] {
        let refused = sqlx::query(let_go).bind(nonsense).bind([ended]).execute(&mut *connection).await;
        assert!(refused.is_err(), "{nonsense}");
    }
    sqlx::query("RESET ROLE").execute(&mut *connection).await.expect("resets");
    assert_eq!((rows(pool, "events", goes_on).await, rows(pool, "events", ended).await), (3, 0));
    let told = entries(pool, "retention.let_go").await;
    let things: Vec<&Value> = told.iter().map(|entry| &entry["what"]).collect();
    assert_eq!(things, ["log", "events", "results"]);
    let waiting: i64 =
        sqlx::query_scalar("SELECT count(*) FROM audit_queue").fetch_one(pool).await.expect("counts");
    assert_eq!(waiting, 3, "each is on its way into the signed trail");
}

/// Somebody who reads for long keeps a month from going, and is not kept waiting by it.
#[tokio::test]
async fn a_table_in_use_is_left_for_later() {
    let world = World::new().await;
    let pool = world.pool();
    sqlx::query("SELECT add_event_month($1)").bind(month(3)).execute(pool).await.expect("makes");
    let ended = id_of(day(3, 6));
    task(pool, ended, Some("now() - interval '70 days'")).await;
    let mut reader = pool.begin().await.expect("begins");
    sqlx::query("SELECT count(*) FROM events").execute(&mut *reader).await.expect("reads");
    let drop = || async {
        kage::db::retention::drop_month(
            pool,
            kage::db::retention::Thing::Log,
            month(3),
            Some(chrono::Utc::now()),
            &[],
        )
        .await
    };
    let refused = drop().await.expect_err("somebody reads");
    assert!(refused.is_lock_timeout(), "{refused}");
    assert_eq!((rows(pool, "events", ended).await, entries(pool, "retention.let_go").await.len()), (3, 0));
    reader.rollback().await.expect("ends");
    let gone = drop().await.expect("nobody reads").expect("all of it is due");
    assert_eq!((gone.tasks, rows(pool, "events", ended).await), (1, 2));
}
