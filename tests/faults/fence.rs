//! The fence: a runner that lost its lease writes nothing more, whatever it believes.

use kage::db::attempt_ends::{self, Ending, Harvested};
use kage::db::attempts::{self, Output, SandboxFacts};
use kage::db::error::DbError;
use kage::db::events::NewEvent;
use kage::db::queue::{self, Lease};
use kage::db::results::ResultRow;
use kage::db::runs::RunRow;
use kage::db::starts;
use kage::db::tasks;
use kage::db::visible::Visible;
use kage::domain::audit::{Actor, Entry, Outcome};
use kage::domain::event::EventKind;
use kage::domain::run::RunState;
use kage::wire::run::HarvestFindings;
use serde_json::json;
use sqlx::PgPool;
use uuid::Uuid;

use crate::database::{TestDatabase, claim, lease_of};

fn ours(lease: Lease) -> queue::Renewed {
    queue::Renewed { id: lease.run, cancel: false, stop_reason: None }
}

fn output(bytes: &[u8], before: i64) -> Output {
    let end = before + bytes.len() as i64;
    let log =
        NewEvent::Log { attempt: 1, stream: 1, offset: before, position: before, bytes: bytes.to_vec() };
    Output {
        events: vec![log],
        before: (before, 0),
        stdout: end,
        stderr: 0,
        total: end,
        cost_usd: Some(0.0),
        told: None,
    }
}

fn succeeded() -> Ending {
    Ending {
        state: RunState::Succeeded,
        error: None,
        exit_code: Some(0),
        decided_by: "exit status 0".to_owned(),
    }
}

fn harvested() -> Harvested {
    Harvested {
        branch: "task-x-shell".to_owned(),
        commit: "0".repeat(40),
        files_changed: 1,
        insertions: 1,
        deletions: 0,
        paths: vec!["file".to_owned()],
        flagged: Vec::new(),
        record: json!({}),
        result: ResultRow {
            patch: b"diff".to_vec(),
            patch_truncated: false,
            files: json!([]),
            warnings: json!([]),
        },
    }
}

async fn set_running(pool: &PgPool, lease: Lease, run: &RunRow) -> Result<(), DbError> {
    let record = json!({});
    let facts = SandboxFacts {
        container: "container",
        base_commit: None,
        worktree: "overlay",
        record: &record,
        quarantined: &[],
    };
    attempts::set_running(pool, lease, run, &facts).await
}

/// Every write that a runner can make for a run. Each must be refused, and must leave everything as it is.
async fn every_write_is_refused(db: &TestDatabase, lease: Lease, run: &RunRow) {
    let pool = &db.runner;
    let before = db.everything().await;
    let mut refusals: Vec<(&str, Result<(), DbError>)> = vec![
        ("begin_attempt", attempts::begin_attempt(pool, lease, run).await.map(drop)),
        ("set_running", set_running(pool, lease, run).await),
        ("append_output", attempts::append_output(pool, lease, &output(b"late", run.stdout_offset)).await),
        ("notice", attempts::notice(pool, lease, run, EventKind::Warning, "late".to_owned()).await),
        ("start again", starts::again(pool, lease).await.map(drop)),
        ("set_harvesting", attempts::set_harvesting(pool, lease, run, &json!({})).await),
        ("requeue", attempt_ends::requeue(pool, lease, run, &succeeded(), 1).await),
        (
            "finish",
            attempt_ends::finish(pool, lease, run, &succeeded(), None, &HarvestFindings::default()).await,
        ),
    ];
    let with_branch =
        attempt_ends::finish(pool, lease, run, &succeeded(), Some(&harvested()), &HarvestFindings::default())
            .await;
    refusals.push(("finish with a branch", with_branch));
    for (name, refusal) in refusals {
        assert!(matches!(refusal, Err(DbError::LeaseLost(_))), "{name}: {refusal:?}");
    }
    assert_eq!(queue::renew(pool, &[lease], 60).await.expect("asks"), []);
    assert_eq!(db.everything().await, before, "something was written from behind the fence");
}

#[tokio::test]
async fn a_runner_whose_lease_was_taken_writes_nothing_more() {
    let db = TestDatabase::new().await;
    let (old, new) = (Uuid::new_v4(), Uuid::new_v4());
    db.task(1).await;
    let (lease, run) = db.begun(old).await;
    set_running(&db.runner, lease, &run).await.expect("still holds it");
    attempts::append_output(&db.runner, lease, &output(b"one\n", 0)).await.expect("still holds it");
    assert!(queue::claim_abandoned(&db.runner, new, 60, true, &[]).await.expect("asks").is_empty());
    assert_eq!(queue::renew(&db.runner, &[lease], 60).await.expect("asks"), [ours(lease)]);

    db.expire().await;
    let mut taken = queue::claim_abandoned(&db.runner, new, 60, false, &[]).await.expect("claims");
    let (former, run) = taken.remove(0);
    assert_eq!((former, run.state(), run.stdout_offset), (Some(old), RunState::Running, 4));
    every_write_is_refused(&db, lease, &run).await;

    // The new holder goes on, and nobody else can take it meanwhile.
    let lease = lease_of(&run, new);
    assert!(queue::claim_abandoned(&db.runner, old, 60, true, &[]).await.expect("asks").is_empty());
    attempts::append_output(&db.runner, lease, &output(b"two\n", 4)).await.expect("holds it");
    attempts::set_harvesting(&db.runner, lease, &run, &json!({})).await.expect("holds it");
    attempt_ends::finish(
        &db.runner,
        lease,
        &run,
        &succeeded(),
        Some(&harvested()),
        &HarvestFindings::default(),
    )
    .await
    .expect("holds it");
    every_write_is_refused(&db, lease, &run).await;
    db.remove().await;
}

#[tokio::test]
async fn a_queued_run_whose_claim_expired_goes_to_the_next_claimer() {
    let db = TestDatabase::new().await;
    let (old, new) = (Uuid::new_v4(), Uuid::new_v4());
    db.task(1).await;
    let claimed = queue::claim_queued(&db.runner, &claim(old, 1, &[])).await.expect("claims").remove(0);
    assert!(queue::claim_queued(&db.runner, &claim(new, 1, &[])).await.expect("asks").is_empty());
    db.expire().await;
    let again = queue::claim_queued(&db.runner, &claim(new, 1, &[])).await.expect("claims").remove(0);
    assert_eq!((again.id, again.state()), (claimed.id, RunState::Queued));
    every_write_is_refused(&db, lease_of(&claimed, old), &claimed).await;
    db.remove().await;
}

#[tokio::test]
async fn a_requeued_run_is_no_longer_its_former_holders() {
    let db = TestDatabase::new().await;
    let runner = Uuid::new_v4();
    db.task(1).await;
    let (lease, run) = db.begun(runner).await;
    let lost = Ending {
        state: RunState::Lost,
        error: Some("lost".to_owned()),
        exit_code: None,
        decided_by: "the runner".to_owned(),
    };
    attempt_ends::requeue(&db.runner, lease, &run, &lost, 3600).await.expect("holds it");
    every_write_is_refused(&db, lease, &run).await;
    // Its back-off has not passed, and a restart of the same runner does not cut it short.
    assert!(queue::claim_queued(&db.runner, &claim(runner, 9, &[])).await.expect("asks").is_empty());
    assert!(queue::claim_abandoned(&db.runner, runner, 60, true, &[]).await.expect("asks").is_empty());
    db.remove().await;
}

/// A claim that expired in the queue, then a client's cancel: the run has ended, and the claimer that comes
/// late must not end it a second time.
#[tokio::test]
async fn a_late_claimer_cannot_end_a_run_that_a_cancel_has_ended() {
    let db = TestDatabase::new().await;
    let runner = Uuid::new_v4();
    let task = db.task(1).await;
    let run = queue::claim_queued(&db.runner, &claim(runner, 1, &[])).await.expect("claims").remove(0);
    db.expire().await;
    let entry = Entry {
        actor: Actor::Key("k".to_owned()),
        action: "task.cancel",
        object: format!("task:{task}"),
        outcome: Outcome::Done,
        details: json!({}),
    };
    let transaction = db.api.begin().await.expect("begins");
    let cancelled = tasks::cancel(transaction, &Visible::EVERYTHING, task, &entry).await.expect("cancels");
    assert_eq!(cancelled, tasks::Cancel::Done);
    every_write_is_refused(&db, lease_of(&run, runner), &run).await;
    db.remove().await;
}

/// The answer to a commit can get lost with the connection: the same call again must neither fail nor write twice.
#[tokio::test]
async fn a_write_that_is_repeated_after_its_commit_is_made_once() {
    let db = TestDatabase::new().await;
    let runner = Uuid::new_v4();
    db.task(1).await;
    let queued = queue::claim_queued(&db.runner, &claim(runner, 1, &[])).await.expect("claims").remove(0);
    let lease = lease_of(&queued, runner);
    let pool = &db.runner;
    let run = attempts::begin_attempt(pool, lease, &queued).await.expect("begins").expect("not cancelled");
    let after = db.everything().await;
    let again = attempts::begin_attempt(pool, lease, &queued).await.expect("begins").expect("not cancelled");
    assert_eq!(again.attempt, run.attempt);
    assert_eq!(db.everything().await, after, "begin_attempt");

    set_running(pool, lease, &run).await.expect("writes");
    let after = db.everything().await;
    set_running(pool, lease, &run).await.expect("sees that it is done");
    assert_eq!(db.everything().await, after, "set_running");

    attempts::append_output(pool, lease, &output(b"one\n", 0)).await.expect("writes");
    let after = db.everything().await;
    attempts::append_output(pool, lease, &output(b"one\n", 0)).await.expect("sees that it is done");
    assert_eq!(db.everything().await, after, "append_output");

    attempts::set_harvesting(pool, lease, &run, &json!({ "state": "succeeded" })).await.expect("writes");
    let after = db.everything().await;
    attempts::set_harvesting(pool, lease, &run, &json!({ "state": "succeeded" }))
        .await
        .expect("sees that it is done");
    assert_eq!(db.everything().await, after, "set_harvesting");

    attempt_ends::finish(pool, lease, &run, &succeeded(), Some(&harvested()), &HarvestFindings::default())
        .await
        .expect("writes");
    let after = db.everything().await;
    let repeated = attempt_ends::finish(
        pool,
        lease,
        &run,
        &succeeded(),
        Some(&harvested()),
        &HarvestFindings::default(),
    )
    .await;
    assert!(matches!(repeated, Err(DbError::LeaseLost(_))), "{repeated:?}");
    assert_eq!(db.everything().await, after, "finish");
    db.remove().await;
}
