//! The leases that this runner holds, renewed well before they expire.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::db;
use crate::db::deadline::within;
use crate::db::error::DbError;
use crate::db::queue::{Lease, Renewed};
use crate::runner::environment::Environment;

/// On a slow network a renewal is a few round trips, whatever the lease is.
const SLOWEST_RENEWAL: Duration = Duration::from_secs(10);

/// What a run's drive is told from outside.
#[derive(Debug, Clone, Default)]
pub(super) struct Orders {
    /// Somebody else has the run: touch nothing more.
    pub lost: CancellationToken,
    /// A client asked to cancel.
    pub cancel: CancellationToken,
    pub stop: Stop,
}

/// The gateway serves an attempt no longer, and why.
#[derive(Debug, Clone, Default)]
pub(super) struct Stop {
    attempts: CancellationToken,
    reason: Arc<OnceLock<String>>,
}

impl Stop {
    fn give(&self, reason: &str) {
        self.reason.get_or_init(|| reason.to_owned());
        self.attempts.cancel();
    }

    /// Waits for the order; why it was given.
    pub async fn given(&self) -> &str {
        self.attempts.cancelled().await;
        self.reason.get().map_or("", String::as_str)
    }
}

#[derive(Debug)]
struct Held {
    lease: Lease,
    orders: Orders,
    /// Its end is being written, which gives the lease back.
    ending: bool,
}

#[derive(Default)]
pub(super) struct Leases {
    held: Mutex<HashMap<Uuid, Held>>,
}

impl Leases {
    fn lock(&self) -> MutexGuard<'_, HashMap<Uuid, Held>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn hold(&self, lease: Lease) -> Orders {
        let orders = Orders::default();
        self.lock().insert(lease.run, Held { lease, orders: orders.clone(), ending: false });
        orders
    }

    pub fn drop_lease(&self, lease: Lease) {
        let mut held = self.lock();
        if held.get(&lease.run).is_some_and(|held| held.lease == lease) {
            held.remove(&lease.run);
        }
    }

    /// From here on a renewal that does not find the lease says nothing: the write that ends the run gives it back. If
    /// somebody else took it, that write says so.
    pub fn ends(&self, lease: Lease) {
        if let Some(held) = self.lock().get_mut(&lease.run).filter(|held| held.lease == lease) {
            held.ending = true;
        }
    }

    pub fn is_held(&self, run: Uuid) -> bool {
        self.lock().contains_key(&run)
    }

    pub fn is_empty(&self) -> bool {
        self.lock().is_empty()
    }

    /// The runs that a drive of ours is not done with, whether their leases are still ours or not.
    pub fn runs(&self) -> Vec<Uuid> {
        self.lock().keys().copied().collect()
    }

    /// Those that are not known to be lost.
    fn all(&self) -> Vec<Lease> {
        self.lock().values().filter(|held| !held.orders.lost.is_cancelled()).map(|held| held.lease).collect()
    }

    /// Takes in what a renewal said of the leases that were asked about.
    fn take_in(&self, asked: &[Lease], answer: &[Renewed]) {
        let held = self.lock();
        for lease in asked {
            let Some(Held { orders, ending, .. }) = held.get(&lease.run).filter(|held| held.lease == *lease)
            else {
                continue;
            };
            match answer.iter().find(|renewed| renewed.id == lease.run) {
                Some(renewed) => {
                    if renewed.cancel {
                        orders.cancel.cancel();
                    }
                    if let Some(reason) = &renewed.stop_reason {
                        orders.stop.give(reason);
                    }
                }
                None if *ending => {}
                None => {
                    tracing::warn!(run = %lease.run, "runner.lease_lost");
                    orders.lost.cancel();
                }
            }
        }
    }
}

/// Renews until the last run has ended.
pub(super) async fn run(environment: Arc<Environment>) {
    while !environment.has_ended_work() {
        if let Err(error) = listen_and_renew(&environment).await {
            // Not lost yet: the fence is in the database, and so is the lease.
            tracing::warn!(%error, "runner.renewal_failed");
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
    }
}

async fn listen_and_renew(environment: &Environment) -> Result<(), DbError> {
    let lease = Duration::from_secs(environment.config.lease_secs.unsigned_abs().into());
    // One that hears nothing must leave time for another, on another connection.
    let limit = (lease / 3).max(SLOWEST_RENEWAL);
    let mut listener = within(limit, db::notify::listen(&environment.pool, db::notify::CANCEL)).await?;
    let mut beat = tokio::time::interval(lease / 4);
    beat.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    while !environment.has_ended_work() {
        tokio::select! {
            _ = beat.tick() => {}
            notification = listener.try_recv() => { notification?; }
            () = environment.lifecycle.hard().cancelled() => return Ok(()),
            // Between the soft token and the last run's end there is nothing to hear that ends this.
            () = tokio::time::sleep(Duration::from_secs(1)), if environment.lifecycle.soft().is_cancelled() => {}
        }
        let held = environment.leases.all();
        if !held.is_empty() {
            let renewal = db::queue::renew(&environment.pool, &held, environment.config.lease_secs);
            let answer = within(limit, renewal).await?;
            environment.leases.take_in(&held, &answer);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_that_has_just_ended_has_not_lost_its_lease() {
        let leases = Leases::default();
        let lease =
            || Lease { task: Uuid::now_v7(), run: Uuid::now_v7(), id: Uuid::now_v7(), runner: Uuid::nil() };
        let (working, ending) = (lease(), lease());
        let (working_orders, ending_orders) = (leases.hold(working), leases.hold(ending));
        leases.ends(ending);
        let asked = leases.all();
        assert_eq!(asked.len(), 2, "a long end is renewed too");
        leases.take_in(&asked, &[]);
        assert!(working_orders.lost.is_cancelled());
        assert!(!ending_orders.lost.is_cancelled());
        // Another attempt of the run is another lease.
        let again = Lease { id: Uuid::now_v7(), ..ending };
        let orders = leases.hold(again);
        leases.take_in(&leases.all(), &[]);
        assert!(orders.lost.is_cancelled());
    }
}
