//! The concurrent-commit trap: rows of concurrent transactions become visible out of order, and a reader that
//! goes by `seq > cursor` must still see each of them once, in order.

use std::time::Duration;

use kage::db::events::{self, NewEvent};
use kage::db::keys::Bearer;
use kage::db::visible::Visible;
use kage::domain::event::EventKind;
use serde_json::json;
use uuid::Uuid;

use crate::database::TestDatabase;

fn numbered(writer: usize, number: usize) -> NewEvent {
    NewEvent::Other { kind: EventKind::Progress, payload: json!({ "writer": writer, "number": number }) }
}

#[tokio::test]
async fn an_event_is_not_seen_before_one_that_comes_first() {
    let db = TestDatabase::new().await;
    let task = db.task(1).await;
    let seen = async |cursor| -> Vec<i64> {
        db.events_after(task, cursor, 100).await.iter().map(|row| row.seq).collect()
    };
    let head = *seen(0).await.last().expect("a task begins with an event");

    let mut slow = db.runner.begin().await.expect("begins");
    let first = events::append(&mut slow, task, None, &[numbered(0, 0)]).await.expect("appends");
    let pool = db.runner.clone();
    let mut quick = tokio::spawn(async move {
        let mut quick = pool.begin().await.expect("begins");
        let last = events::append(&mut quick, task, None, &[numbered(1, 0)]).await.expect("appends");
        quick.commit().await.expect("commits");
        last
    });
    // The second one waits for the first: until that one commits, a reader sees neither.
    assert!(tokio::time::timeout(Duration::from_millis(500), &mut quick).await.is_err());
    assert_eq!(seen(head).await, Vec::<i64>::new());
    slow.commit().await.expect("commits");
    let second = quick.await.expect("ends");
    assert_eq!((first, second), (head + 1, head + 2));
    assert_eq!(seen(head).await, [head + 1, head + 2]);
    // A secret that is not taken reads nothing, and that at once.
    let other = Bearer { secret_sha256: [8; 32], ..db.bearer() };
    let rows = events::after(&db.api, &Visible::EVERYTHING, &other, task, 0, None, 100).await.expect("reads");
    assert!(rows.is_empty(), "{rows:?}");

    // What is rolled back leaves no gap.
    let mut undone = db.runner.begin().await.expect("begins");
    events::append(&mut undone, task, None, &[numbered(2, 0)]).await.expect("appends");
    undone.rollback().await.expect("rolls back");
    let mut next = db.runner.begin().await.expect("begins");
    let third = events::append(&mut next, task, None, &[numbered(3, 0)]).await.expect("appends");
    next.commit().await.expect("commits");
    assert_eq!(third, head + 3);
    db.remove().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_reader_beside_many_writers_sees_every_event_once_and_in_order() {
    const WRITERS: usize = 6;
    const EACH: usize = 60;
    let db = TestDatabase::new().await;
    let task = db.task(WRITERS).await;
    let head = db.events_after(task, 0, 100).await.len() as i64;
    let mut writers = tokio::task::JoinSet::new();
    for writer in 0..WRITERS {
        let pool = db.runner.clone();
        writers.spawn(async move {
            let mut total = 0;
            for number in 0..EACH {
                let count = 1 + (writer * 7 + number) % 5;
                let batch: Vec<NewEvent> = (0..count).map(|_| numbered(writer, number)).collect();
                let mut transaction = pool.begin().await.expect("begins");
                events::append(&mut transaction, task, None, &batch).await.expect("appends");
                // Held open for a while that differs, and some are thrown away.
                tokio::time::sleep(Duration::from_micros(((writer * 131 + number * 37) % 3000) as u64)).await;
                if (writer + number) % 9 == 0 {
                    transaction.rollback().await.expect("rolls back");
                } else {
                    transaction.commit().await.expect("commits");
                    total += count;
                }
            }
            total
        });
    }
    let (pool, bearer, stop) = (db.api.clone(), db.bearer(), tokio_util::sync::CancellationToken::new());
    let stopped = stop.clone();
    let reader = tokio::spawn(async move {
        let (mut cursor, mut seen): (i64, Vec<(i64, u64, u64)>) = (head, Vec::new());
        loop {
            // Asked before the query: what is committed by then is in its answer.
            let last = stopped.is_cancelled();
            let all = Visible::EVERYTHING;
            let rows = events::after(&pool, &all, &bearer, task, cursor, None, 7).await.expect("reads");
            for row in &rows {
                let payload = row.payload.as_ref().expect("a payload");
                let field = |name: &str| payload[name].as_u64().expect("a number");
                seen.push((row.seq, field("writer"), field("number")));
                cursor = row.seq;
            }
            if rows.is_empty() && last {
                return seen;
            }
        }
    });
    let written: usize = writers.join_all().await.iter().sum();
    stop.cancel();
    let seen = reader.await.expect("ends");
    let sequence: Vec<i64> = seen.iter().map(|event| event.0).collect();
    assert_eq!(sequence, (head + 1..=head + written as i64).collect::<Vec<_>>());
    for writer in 0..WRITERS as u64 {
        let numbers: Vec<u64> = seen.iter().filter(|event| event.1 == writer).map(|event| event.2).collect();
        assert!(numbers.is_sorted(), "writer {writer} out of order: {numbers:?}");
    }
    db.remove().await;
}

#[tokio::test]
async fn tasks_do_not_wait_for_one_another() {
    let db = TestDatabase::new().await;
    let (held, free): (Uuid, Uuid) = (db.task(1).await, db.task(1).await);
    let mut slow = db.runner.begin().await.expect("begins");
    events::append(&mut slow, held, None, &[numbered(0, 0)]).await.expect("appends");
    let mut quick = db.runner.begin().await.expect("begins");
    events::append(&mut quick, free, None, &[numbered(1, 0)])
        .await
        .expect("appends, though another task is held");
    quick.commit().await.expect("commits");
    slow.rollback().await.expect("rolls back");
    db.remove().await;
}
