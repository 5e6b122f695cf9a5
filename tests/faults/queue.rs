//! Several runners and one queue.

use std::collections::BTreeSet;
use std::sync::Arc;

use kage::db::queue::{self, Claim};
use tokio::sync::Barrier;
use uuid::Uuid;

use crate::database::{TestDatabase, claim};

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn many_runners_claim_each_run_once() {
    const RUNNERS: usize = 5;
    let db = TestDatabase::new().await;
    for _ in 0..25 {
        db.task(4).await;
    }
    let start = Arc::new(Barrier::new(RUNNERS));
    let mut claimers = tokio::task::JoinSet::new();
    for number in 0..RUNNERS {
        let (pool, start, runner) = (db.runner.clone(), Arc::clone(&start), Uuid::new_v4());
        claimers.spawn(async move {
            let mut claimed: Vec<Uuid> = Vec::new();
            start.wait().await;
            let mut empty = 0;
            while empty < 3 {
                // Runners come back for the abandoned ones too: nothing is, so nothing may be taken.
                assert!(
                    queue::claim_abandoned(&pool, runner, 60, false, &[]).await.expect("asks").is_empty()
                );
                let some =
                    queue::claim_queued(&pool, &claim(runner, 1 + number as i64, &[])).await.expect("claims");
                assert!(some.len() <= 1 + number);
                empty = if some.is_empty() { empty + 1 } else { 0 };
                claimed.extend(some.iter().map(|run| run.id));
            }
            claimed
        });
    }
    let claimed: Vec<Uuid> = claimers.join_all().await.concat();
    let distinct: BTreeSet<Uuid> = claimed.iter().copied().collect();
    assert_eq!((claimed.len(), distinct.len()), (100, 100));
    db.remove().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn many_runners_take_up_each_abandoned_run_once() {
    const RUNNERS: usize = 5;
    let db = TestDatabase::new().await;
    let dead = Uuid::new_v4();
    for _ in 0..10 {
        db.task(1).await;
        db.begun(dead).await;
    }
    db.expire().await;
    let start = Arc::new(Barrier::new(RUNNERS));
    let mut claimers = tokio::task::JoinSet::new();
    for _ in 0..RUNNERS {
        let (pool, start) = (db.runner.clone(), Arc::clone(&start));
        claimers.spawn(async move {
            start.wait().await;
            let mut taken = Vec::new();
            for _ in 0..5 {
                taken.extend(
                    queue::claim_abandoned(&pool, Uuid::new_v4(), 60, false, &[]).await.expect("claims"),
                );
            }
            taken
        });
    }
    let taken = claimers.join_all().await.concat();
    let distinct: BTreeSet<Uuid> = taken.iter().map(|(_, run)| run.id).collect();
    assert_eq!((taken.len(), distinct.len()), (10, 10));
    assert!(taken.iter().all(|(former, _)| *former == Some(dead)));
    db.remove().await;
}

/// The database was away for longer than a lease: a runner must not take up beside itself what it works on.
#[tokio::test]
async fn a_runner_does_not_take_up_what_it_holds() {
    let db = TestDatabase::new().await;
    let runner = Uuid::new_v4();
    db.task(2).await;
    let (lease, _) = db.begun(runner).await;
    let queued = queue::claim_queued(&db.runner, &claim(runner, 1, &[])).await.expect("claims").remove(0);
    db.expire().await;
    let held = [lease.run, queued.id];
    for own_too in [false, true] {
        let taken = queue::claim_abandoned(&db.runner, runner, 60, own_too, &held).await.expect("asks");
        assert!(taken.is_empty(), "{taken:?}");
    }
    assert!(queue::claim_queued(&db.runner, &claim(runner, 9, &held)).await.expect("asks").is_empty());
    // An expired lease that nobody took is as good as new.
    assert_eq!(
        queue::renew(&db.runner, &[lease], 60).await.expect("renews"),
        [queue::Renewed { id: lease.run, cancel: false, stop_reason: None }]
    );
    let other = queue::claim_abandoned(&db.runner, Uuid::new_v4(), 60, false, &[]).await.expect("asks");
    assert!(other.is_empty(), "{other:?}");
    db.remove().await;
}

/// What is claimed, by repository.
async fn claimed(db: &TestDatabase) -> Vec<(String, i64)> {
    let statement = "SELECT t.repository, count(*) FROM runs r JOIN tasks t ON t.id = r.task_id
                     WHERE r.lease_expires_at >= now() AND r.finished_at IS NULL GROUP BY 1 ORDER BY 1";
    sqlx::query_as(statement).fetch_all(&db.owner).await.expect("counts")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_repository_has_so_many_at_once_whoever_claims() {
    const RUNNERS: usize = 6;
    let db = TestDatabase::new().await;
    // The crowded one is first in the queue, and must not hold back the others behind it.
    for _ in 0..10 {
        db.task_of("crowded", 4).await;
    }
    db.task_of("few", 2).await;
    db.task_of("other", 5).await;
    for round in 1..=3 {
        let start = Arc::new(Barrier::new(RUNNERS));
        let mut claimers = tokio::task::JoinSet::new();
        for _ in 0..RUNNERS {
            let (pool, start) = (db.runner.clone(), Arc::clone(&start));
            claimers.spawn(async move {
                start.wait().await;
                for _ in 0..4 {
                    let claim = Claim { of_repository: Some(3), ..claim(Uuid::new_v4(), 2, &[]) };
                    queue::claim_queued(&pool, &claim).await.expect("claims");
                }
            });
        }
        claimers.join_all().await;
        let expected = match round {
            1 => vec![("crowded".to_owned(), 3), ("few".to_owned(), 2), ("other".to_owned(), 3)],
            2 => vec![("crowded".to_owned(), 3), ("other".to_owned(), 2)],
            _ => vec![("crowded".to_owned(), 3)],
        };
        assert_eq!(claimed(&db).await, expected, "round {round}");
        // All that work come to their end.
        let end = "UPDATE runs SET state = 'succeeded', finished_at = now() WHERE lease_expires_at >= now()";
        sqlx::query(end).execute(&db.owner).await.expect("ends");
    }
    db.remove().await;
}

/// The one that took an attempt up dies before it has said that it is lost: started anew it must not take the attempt for one
/// of its own that had not begun, and nor may the first.
#[tokio::test]
async fn an_attempt_that_went_to_another_runner_is_lost_whoever_dies_next() {
    let db = TestDatabase::new().await;
    let (first, second) = (Uuid::new_v4(), Uuid::new_v4());
    db.task(1).await;
    let (_, run) = db.begun(first).await;
    assert!(run.verdict.is_none());
    // Its own, started anew.
    let again = queue::claim_abandoned(&db.runner, first, 60, true, &[]).await.expect("claims").remove(0);
    assert_eq!((again.0, again.1.verdict), (Some(first), None));
    for (runner, own_too) in [(second, false), (second, true), (first, false), (first, true)] {
        if !own_too {
            db.expire().await;
        }
        let claimed = queue::claim_abandoned(&db.runner, runner, 60, own_too, &[]).await.expect("claims");
        let verdict = claimed[0].1.verdict.clone().expect("it is written down");
        assert_eq!(verdict["state"], "lost", "{verdict}");
    }
    db.remove().await;
}
