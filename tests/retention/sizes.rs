//! What is too much goes oldest first, until it is not. The role itself, in this process.

use std::time::Duration;

use kage::config::retention::{Kept, RetentionConfig};
use kage::db::Zone;
use kage::lifecycle::Lifecycle;
use kage::retention;
use uuid::Uuid;

use crate::copies::{add_month, day, entries, exists, id_of, month, rows};
use crate::support::eventually;
use crate::world::{World, task};

/// Ids of tasks that have output, the oldest first.
async fn with_output(world: &World) -> Vec<Uuid> {
    sqlx::query_scalar("SELECT DISTINCT task_id FROM events_log ORDER BY task_id")
        .fetch_all(world.pool())
        .await
        .expect("reads")
}

#[tokio::test]
async fn what_is_too_much_goes_oldest_first_until_it_is_not() {
    let world = World::new().await;
    let pool = world.pool();
    add_month(pool, month(4)).await;
    // Two of a month that goes as a whole, two of one that nobody made, whose rows are in the rest, one that goes on and is older than
    // all, and a young one: ten bytes each.
    let mut ids = Vec::new();
    for (ago, date) in [(4, 2), (4, 3), (3, 2), (3, 3)] {
        let id = id_of(day(ago, date));
        task(pool, id, Some(&format!("'{}'", day(ago, date).to_rfc3339()))).await;
        ids.push(id);
    }
    let (goes_on, young) = (id_of(day(5, 1)), id_of(chrono::Utc::now()));
    task(pool, goes_on, None).await;
    task(pool, young, Some("now()")).await;
    assert_eq!(
        (rows(pool, "events_log_rest", ids[2]).await, rows(pool, "events_log_rest", goes_on).await),
        (1, 1)
    );
    let table = format!("events_log_{}", month(4).format("%Y%m"));
    assert!(exists(pool, &table).await);

    let lifecycle = Lifecycle::new();
    let log = Kept { days: None, bytes: Some(39) };
    let poll = Duration::from_secs(1);
    let config = RetentionConfig { log, events: Kept::default(), results: Kept::default(), poll };
    let own = world.as_zone(Zone::Retention).await;
    retention::start(own.clone(), config, &lifecycle);
    eventually("two wholly gone, and one more", async || {
        (with_output(&world).await.len() == 3).then_some(())
    })
    .await;
    // Sixty bytes are there, of which thirty are left: thirty-nine would be too few for four.
    let left = with_output(&world).await;
    assert_eq!(left, [goes_on, ids[3], young]);
    assert!(!exists(pool, &table).await);
    // Another round finds nothing more to do.
    tokio::time::sleep(poll * 2).await;
    lifecycle.drain();
    lifecycle.wait().await;
    own.close().await;
    assert_eq!(with_output(&world).await, left);
    let told = entries(pool, "retention.let_go").await;
    let tasks: i64 = told.iter().filter_map(|entry| entry["tasks"].as_i64()).sum();
    assert!(told.len() == 2 && tasks == 3 && told.iter().all(|entry| entry["rule"] == "size"), "{told:#?}");
    assert_eq!(rows(pool, "events_other", ids[0]).await, 2, "of output alone");
}
