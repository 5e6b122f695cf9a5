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
