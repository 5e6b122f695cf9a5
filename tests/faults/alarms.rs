//! Of what an attempt is refused: when it is a burst or a flood, and that each is told once.

use chrono::Utc;
use kage::db::refused_calls::{self, RefusedKind};
use kage::sandbox::refusals::tally::FLOOD;
use uuid::Uuid;

use crate::database::TestDatabase;

fn kind(call: &str, form: &str, expected: bool, count: i64) -> RefusedKind {
    let now = Utc::now();
    let (call, form) = (call.to_owned(), form.to_owned());
    RefusedKind { call, form, arguments: Vec::new(), expected, count, first_at: now, last_at: now }
}

#[tokio::test]
async fn a_burst_and_a_flood_are_told_once_an_attempt() {
    let db = TestDatabase::new().await;
    db.task(1).await;
    let (lease, run) = db.begun(Uuid::new_v4()).await;
    let told = async |kinds: &[RefusedKind]| -> Vec<String> {
        refused_calls::record(&db.runner, lease, &run, kinds).await.expect("records");
        sqlx::query_scalar("SELECT kind FROM security_events ORDER BY ordinal")
            .fetch_all(&db.owner)
            .await
            .expect("the owner may read")
    };
    let none: [&str; 0] = [];
    // What ordinary programs try makes no burst, however often.
    assert_eq!(told(&[kind("clone3", "", true, 1_000_000), kind("bpf", "", false, 19)]).await, none);
    assert_eq!(
        told(&[kind("bpf", "", false, 19), kind("mount", "", false, 1)]).await,
        ["sandbox.refused_burst"]
    );
    assert_eq!(told(&[kind("bpf", "", false, i64::MAX), kind("mount", "", false, 9)]).await.len(), 1);
    let both = ["sandbox.refused_burst", "sandbox.flood"];
    assert_eq!(told(&[kind("clone3", FLOOD, false, 1)]).await, both);
    assert_eq!(told(&[kind("clone3", FLOOD, false, 70), kind("bpf", FLOOD, false, 5)]).await, both);
    let stale = kage::db::queue::Lease { id: Uuid::new_v4(), ..lease };
    assert!(refused_calls::record(&db.runner, stale, &run, &[kind("acct", "", false, 50)]).await.is_err());
    assert_eq!(told(&[]).await, both, "who lost the run tells nothing of it");
    db.remove().await;
}
