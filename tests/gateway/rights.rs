//! What the gateway's database role may not do.

use kage::db::Zone;

use crate::support::World;
use crate::support::runs::NONE;

#[tokio::test]
async fn the_gateway_reads_no_prompts_and_changes_no_history() {
    let world = World::without_gateway("", &[]).await;
    let task = world.task(NONE).await;
    let run = world.run_of(task, NONE).await;
    let pool = world.pool_of(Zone::Gateway).await;
    for statement in [
        "SELECT description FROM tasks",
        "SELECT * FROM tasks",
        "SELECT context FROM runs",
        "SELECT lease_id FROM runs",
        "SELECT * FROM events",
        "SELECT * FROM api_keys",
        "SELECT * FROM audit_entries",
        "SELECT * FROM repositories",
        "UPDATE runs SET state = 'succeeded'",
        "UPDATE tasks SET status = 'completed'",
        "UPDATE audit_entries SET outcome = 'done'",
        "DELETE FROM audit_entries",
        "DELETE FROM model_calls",
        "DELETE FROM model_budgets",
        "DELETE FROM events",
        "UPDATE events SET kind = 'x'",
        "INSERT INTO model_grants SELECT * FROM model_grants",
        "INSERT INTO runs SELECT * FROM runs",
        "TRUNCATE model_calls",
        "DROP TABLE model_calls",
    ] {
        let error = sqlx::query(statement).execute(&pool).await.expect_err(statement);
        let code = error.as_database_error().and_then(|error| error.code().map(|code| code.into_owned()));
        assert_eq!(code.as_deref(), Some("42501"), "{statement}: {error}");
    }
    // In another's name, or in the past: a role lies about itself alone.
    let entry = |kind: &str| {
        format!(
            "INSERT INTO audit_entries (actor_kind, action, object, outcome, details, at)
             VALUES ('{kind}', 'x', 'x', 'done', '{{}}', '2020-01-01')"
        )
    };
    let event = |kind: &str| {
        format!(
            "INSERT INTO events (task_id, seq, kind, payload) VALUES ('{task}', (random() * 1e9)::bigint, '{kind}', '{{}}')"
        )
    };
    for (zone, own, others) in [
        (Zone::Gateway, "gateway", ["runner", "key", "anonymous", "host", "x"].as_slice()),
        (Zone::Runner, "runner", &["gateway", "key", "anonymous", "host"]),
        (Zone::Api, "key", &["gateway", "runner", "host"]),
    ] {
        let pool = world.pool_of(zone).await;
        sqlx::query(sqlx::AssertSqlSafe(entry(own))).execute(&pool).await.expect("in its own name");
        for other in others {
            let error = sqlx::query(sqlx::AssertSqlSafe(entry(other))).execute(&pool).await.expect_err(other);
            let code = error.as_database_error().and_then(|error| error.code().map(|code| code.into_owned()));
            assert_eq!(code.as_deref(), Some("42501"), "{zone:?} as {other}: {error}");
        }
    }
    let old: i64 = sqlx::query_scalar("SELECT count(*) FROM audit_entries WHERE at < '2021-01-01'")
        .fetch_one(world.pool())
        .await
        .expect("the owner may read");
    assert_eq!(old, 0, "the time of an entry is the database's");
    sqlx::query(sqlx::AssertSqlSafe(event("warning"))).execute(&pool).await.expect("the gateway may warn");
    for kind in ["state", "result", "progress", "security", "end"] {
        let error = sqlx::query(sqlx::AssertSqlSafe(event(kind))).execute(&pool).await.expect_err(kind);
        assert!(error.to_string().contains("may not write an event"), "{kind}: {error}");
    }
    // Nor may the others do what is the gateway's.
    for (zone, statement) in [
        (Zone::Api, "UPDATE model_budgets SET limit_micros = NULL"),
        (Zone::Api, "UPDATE model_grants SET state = 'open'"),
        (Zone::Api, "INSERT INTO model_calls SELECT * FROM model_calls"),
        (Zone::Runner, "UPDATE model_budgets SET spent_micros = 0"),
        (Zone::Runner, "INSERT INTO model_calls SELECT * FROM model_calls"),
        (Zone::Runner, "DELETE FROM model_grants"),
    ] {
        let pool = world.pool_of(zone).await;
        let error = sqlx::query(statement).execute(&pool).await.expect_err(statement);
        let code = error.as_database_error().and_then(|error| error.code().map(|code| code.into_owned()));
        assert_eq!(code.as_deref(), Some("42501"), "{zone:?} {statement}: {error}");
    }
    let _ = run;
}
