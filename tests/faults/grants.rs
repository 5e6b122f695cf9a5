//! A model grant while its runner or its gateway is started anew.

use kage::db::grants::{self, GrantRow, Opening, Wish};
use kage::db::queue;
use kage::db::runs::RunRow;
use serde_json::json;
use uuid::Uuid;

use crate::database::{TestDatabase, lease_of};

async fn want(db: &TestDatabase, run: &RunRow, attempt: i32) {
    let wish = Wish {
        run: run.id,
        task: run.task_id,
        attempt,
        cli_name: "asker",
        dialect: "chat",
        model_asked: None,
        model_default: "m",
        traceparent: None,
    };
    let mut connection = db.runner.acquire().await.expect("connects");
    grants::want(&mut connection, &wish).await.expect("asks");
}

async fn open(db: &TestDatabase, run: &RunRow, attempt: i32) -> bool {
    let opening = Opening { run: run.id, attempt, provider: "p", model: "m", policy: &json!({}) };
    let mut connection = db.owner.acquire().await.expect("connects");
    grants::set_open(&mut connection, &opening).await.expect("answers")
}

async fn stop(db: &TestDatabase, run: &RunRow, attempt: i32) -> bool {
    let mut connection = db.owner.acquire().await.expect("connects");
    grants::stop(&mut connection, run.id, attempt, "budget_exhausted").await.expect("stops")
}

async fn close(db: &TestDatabase, run: &RunRow) -> GrantRow {
    let mut connection = db.runner.acquire().await.expect("connects");
    grants::close(&mut connection, run.id).await.expect("closes");
    grant(db, run).await
}

async fn grant(db: &TestDatabase, run: &RunRow) -> GrantRow {
    grants::find(&db.runner, run.id).await.expect("answers").expect("a grant")
}

#[tokio::test]
async fn asked_for_again_by_a_runner_that_was_started_anew() {
    let db = TestDatabase::new().await;
    db.task(1).await;
    let (_, run) = db.begun(Uuid::new_v4()).await;
    want(&db, &run, 1).await;
    assert!(open(&db, &run, 1).await);
    want(&db, &run, 1).await;
    assert!(grant(&db, &run).await.is_open(), "the gateway serves it already and has nothing to do");

    want(&db, &run, 2).await;
    let next = grant(&db, &run).await;
    assert_eq!((next.state.as_str(), next.attempt, next.model), ("wanted", 2, None));
    assert!(!open(&db, &run, 1).await, "a late answer to the attempt before");
    db.remove().await;
}

#[tokio::test]
async fn closed_at_once_where_no_gateway_had_opened_it() {
    let db = TestDatabase::new().await;
    db.task(1).await;
    let (_, run) = db.begun(Uuid::new_v4()).await;
    want(&db, &run, 1).await;
    assert!(close(&db, &run).await.is_closed());
    assert!(!open(&db, &run, 1).await, "a gateway that comes late opens nothing");
    want(&db, &run, 1).await;
    assert!(open(&db, &run, 1).await);
    assert_eq!(close(&db, &run).await.state, "closing", "its calls are to be settled first");
    db.remove().await;
}

#[tokio::test]
async fn a_stop_reaches_the_runner_for_its_own_attempt_only() {
    let db = TestDatabase::new().await;
    db.task(1).await;
    let runner = Uuid::new_v4();
    let (lease, run) = db.begun(runner).await;
    let renewed =
        async || queue::renew(&db.runner, &[lease], 60).await.expect("renews").remove(0).stop_reason;
    assert_eq!(renewed().await, None);
    want(&db, &run, 1).await;
    open(&db, &run, 1).await;
    assert_eq!(renewed().await, None);
    assert!(stop(&db, &run, 1).await);
    assert_eq!(renewed().await.as_deref(), Some("budget_exhausted"));

    sqlx::query("UPDATE runs SET attempt = 2").execute(&db.owner).await.expect("updates");
    assert_eq!(lease_of(&run, runner), lease);
    assert_eq!(renewed().await, None, "another attempt was stopped");
    db.remove().await;
}
