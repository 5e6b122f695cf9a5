//! Takes runs off the queue: arm, query, wait.

use std::sync::Arc;
use std::time::Duration;

use tracing::Instrument as _;
use uuid::Uuid;

use crate::db;
use crate::db::deadline::{ANSWER_WITHIN, within};
use crate::db::error::DbError;
use crate::db::queue::{Claim, Lease};
use crate::db::runs::RunRow;
use crate::runner::drive;
use crate::runner::environment::Environment;
use crate::runner::lease::Orders;
use crate::runner::trace;

/// Behind the notifications, and for back-offs that come due.
const SLOW_POLL: Duration = Duration::from_secs(2);

/// Runs until the soft token.
pub(super) async fn run(environment: Arc<Environment>) {
    let mut first = true;
    while !environment.lifecycle.soft().is_cancelled() {
        if let Err(error) = listen_and_claim(&environment, &mut first).await {
            tracing::warn!(%error, "runner.claim_failed");
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
    }
}

async fn listen_and_claim(environment: &Arc<Environment>, first: &mut bool) -> Result<(), DbError> {
    let soft = environment.lifecycle.soft();
    let mut listener =
        within(ANSWER_WITHIN, db::notify::listen(&environment.pool, db::notify::QUEUE)).await?;
    while !soft.is_cancelled() {
        // What this runner held before its restart is ours at once: the lock on the folder proves it.
        take_abandoned(environment, *first).await?;
        *first = false;
        take_queued(environment).await?;
        tokio::select! {
            () = soft.cancelled() => {}
            () = environment.wake.notified() => {}
            notification = listener.try_recv() => { notification?; }
            () = tokio::time::sleep(SLOW_POLL) => {}
        }
    }
    Ok(())
}

async fn take_abandoned(environment: &Arc<Environment>, own_too: bool) -> Result<(), DbError> {
    let ttl = environment.config.lease_secs;
    let held = environment.leases.runs();
    let claim = db::queue::claim_abandoned(&environment.pool, environment.id, ttl, own_too, &held);
    for (former, run) in within(ANSWER_WITHIN, claim).await? {
        tracing::info!(run = %run.id, state = %run.state(), "runner.taken_up_again");
        // Over the limit if need be: these sandboxes run already.
        let permit = Arc::clone(&environment.slots).try_acquire_owned().ok();
        begin(environment, run, former, permit);
    }
    Ok(())
}

async fn take_queued(environment: &Arc<Environment>) -> Result<(), DbError> {
    let free = environment.slots.available_permits();
    // They wait in the queue: another runner may have room.
    if free == 0 || !environment.watermark.has_room() {
        return Ok(());
    }
    let claim = Claim {
        runner: environment.id,
        ttl_secs: environment.config.lease_secs,
        limit: i64::try_from(free).unwrap_or(i64::MAX),
        held: &environment.leases.runs(),
        of_repository: environment.config.repository_concurrency,
    };
    for run in within(ANSWER_WITHIN, db::queue::claim_queued(&environment.pool, &claim)).await? {
        let permit = Arc::clone(&environment.slots).try_acquire_owned().ok();
        begin(environment, run, None, permit);
    }
    Ok(())
}

fn begin(
    environment: &Arc<Environment>,
    run: RunRow,
    former: Option<Uuid>,
    permit: Option<tokio::sync::OwnedSemaphorePermit>,
) {
    let Some(lease_id) = run.lease_id else { return };
    let lease = Lease { task: run.task_id, run: run.id, id: lease_id, runner: environment.id };
    let held = Held { orders: environment.leases.hold(lease), lease, environment: Arc::clone(environment) };
    let span = trace::lines(&run);
    let driven = async move {
        // Dropped in the reverse order, so that the slot is free when the claim loop wakes.
        let (held, _permit) = (held, permit);
        drive::drive(&held.environment, run, lease, &held.orders, former).await;
    };
    environment.lifecycle.spawn(driven.instrument(span));
}

/// A lease for as long as its drive lives: one that panics must not be renewed for ever.
struct Held {
    environment: Arc<Environment>,
    lease: Lease,
    orders: Orders,
}

impl Drop for Held {
    fn drop(&mut self) {
        self.environment.leases.drop_lease(self.lease);
        self.environment.wake.notify_one();
    }
}
