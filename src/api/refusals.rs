//! Refusals in the audit trail: of a kind (address, key, reason) the first at once, the others of that minute as a
//! count. Whoever is refused often makes the trail no longer than whoever is refused twice a minute.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde_json::json;
use sqlx::PgPool;
use tokio::sync::Notify;

use crate::api::network::network;
use crate::api::origin::Origin;
use crate::api::state::ApiState;
use crate::db;
use crate::db::error::DbError;
use crate::domain::audit::{Actor, Entry, Outcome};

/// Kinds that are told apart at once; more of them share one.
const KINDS: usize = 2048;
const MINUTE: Duration = Duration::from_secs(60);
const LOOK: Duration = Duration::from_secs(5);

/// A request that was refused.
#[derive(Debug, Clone)]
pub(super) struct Refusal {
    pub origin: Origin,
    /// Of a valid key; what an unknown one says of itself is no name.
    /// `None`: nobody is known.
    pub who: Option<Actor>,
    pub reason: &'static str,
}

impl Refusal {
    fn route(&self) -> &str {
        self.origin.route.as_deref().unwrap_or("?")
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Sort {
    address: Option<IpAddr>,
    who: Option<Actor>,
    reason: &'static str,
}

impl Sort {
    /// Everything for which there is no room.
    const REST: Self = Self { address: None, who: None, reason: "others" };

    fn of(refusal: &Refusal) -> Self {
        Self {
            address: refusal.origin.address.map(network),
            who: refusal.who.clone(),
            reason: refusal.reason,
        }
    }
}

#[derive(Debug, Clone)]
struct Tally {
    /// Since the last entry.
    count: u64,
    latest: Refusal,
    /// When the last entry was written; `None`: there is none yet.
    written: Option<Instant>,
}

#[derive(Default)]
pub(super) struct Refusals {
    tallies: Mutex<HashMap<Sort, Tally>>,
    wake: Notify,
}

impl Refusals {
    fn lock(&self) -> MutexGuard<'_, HashMap<Sort, Tally>> {
        self.tallies.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn note(&self, refusal: Refusal) {
        tracing::info!(
            reason = refusal.reason,
            route = refusal.route(),
            who = refusal.who.as_ref().and_then(Actor::id).as_deref(),
            address = refusal.origin.address.map(tracing::field::display),
            "api.refused"
        );
        let mut tallies = self.lock();
        let mut sort = Sort::of(&refusal);
        if !tallies.contains_key(&sort) && tallies.len() >= KINDS {
            sort = Sort::REST;
        }
        let tally =
            tallies.entry(sort).or_insert_with(|| Tally { count: 0, latest: refusal.clone(), written: None });
        if tally.count == 0 {
            tally.latest = refusal;
        }
        tally.count += 1;
        if tally.written.is_none() {
            self.wake.notify_one();
        }
    }

    /// What is to be written now; what has been quiet for a minute is forgotten.
    fn due(&self, all: bool) -> Vec<(Sort, Tally)> {
        let mut tallies = self.lock();
        let over = |tally: &Tally| tally.written.is_none_or(|at| at.elapsed() >= MINUTE);
        tallies.retain(|_, tally| tally.count > 0 || !over(tally));
        let due = tallies.iter().filter(|(_, tally)| tally.count > 0 && (all || over(tally)));
        due.map(|(sort, tally)| (sort.clone(), tally.clone())).collect()
    }

    /// These were written.
    fn settle(&self, written: &[(Sort, Tally)]) {
        let mut tallies = self.lock();
        for (sort, tally) in written {
            if let Some(known) = tallies.get_mut(sort) {
                known.count = known.count.saturating_sub(tally.count);
                known.written = Some(Instant::now());
            }
        }
    }
}

/// Runs until the soft token, and writes what is left then.
pub(super) async fn write(state: ApiState) {
    loop {
        let last = state.soft.is_cancelled();
        let due = state.refusals.due(last);
        if !due.is_empty() {
            let all = due.len();
            let done = record(&state.pool, due).await;
            state.refusals.settle(&done);
            if done.len() < all {
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        }
        if last {
            return;
        }
        tokio::select! {
            () = state.soft.cancelled() => {}
            () = state.refusals.wake.notified() => {}
            () = tokio::time::sleep(LOOK) => {}
        }
    }
}

/// Writes all at once. One that cannot be written would hold up the others for ever: then each is written for itself, and
/// that one is given up. Returns what is done with.
async fn record(pool: &PgPool, due: Vec<(Sort, Tally)>) -> Vec<(Sort, Tally)> {
    let Err(error) = append(pool, &due).await else { return due };
    tracing::error!(%error, "api.refusals_not_audited");
    let mut done = Vec::new();
    if error.is_transient() {
        return done;
    }
    for one in due {
        match append(pool, std::slice::from_ref(&one)).await {
            Ok(()) => done.push(one),
            Err(error) if error.is_permanent() => {
                tracing::error!(%error, reason = one.0.reason, count = one.1.count, "api.refusal_lost");
                done.push(one);
            }
            Err(error) => {
                tracing::error!(%error, "api.refusals_not_audited");
                if error.is_transient() {
                    break;
                }
            }
        }
    }
    done
}

async fn append(pool: &PgPool, due: &[(Sort, Tally)]) -> Result<(), DbError> {
    let mut transaction = pool.begin().await?;
    for (sort, tally) in due {
        let details = json!({ "reason": sort.reason, "count": tally.count });
        let entry = tally.latest.origin.asked(Entry {
            actor: sort.who.clone().unwrap_or(Actor::Anonymous),
            action: "access.refuse",
            object: format!("route:{}", tally.latest.route()),
            outcome: Outcome::Refused,
            details,
        });
        db::audit::append(&mut transaction, &entry).await?;
    }
    Ok(transaction.commit().await?)
}

#[cfg(test)]
mod tests {
    use std::net::Ipv6Addr;

    use super::*;

    fn refusal(address: &str, key_id: Option<&str>) -> Refusal {
        Refusal {
            origin: Origin { address: address.parse().ok(), request_id: "r".to_owned(), ..Origin::default() },
            who: key_id.map(|id| Actor::Key(id.to_owned())),
            reason: "key-unknown",
        }
    }

    #[test]
    fn a_flood_is_an_entry_and_a_count() {
        let refusals = Refusals::default();
        refusals.note(refusal("10.0.0.1", None));
        let first = refusals.due(false);
        assert_eq!((first.len(), first[0].1.count), (1, 1), "the first at once");
        // Some came while it was written.
        refusals.note(refusal("10.0.0.1", None));
        refusals.settle(&first);
        for _ in 0..10_000 {
            refusals.note(refusal("10.0.0.1", None));
        }
        assert!(refusals.due(false).is_empty(), "the others wait for the minute's end");
        let at_the_end = refusals.due(true);
        assert_eq!((at_the_end.len(), at_the_end[0].1.count), (1, 10_001));
        refusals.note(refusal("10.0.0.1", Some("key")));
        assert_eq!(refusals.due(false).len(), 1, "another key is another kind");
    }

    #[test]
    fn its_memory_is_bounded() {
        let refusals = Refusals::default();
        for host in 0..5000u32 {
            refusals.note(refusal(&format!("fd00::{:x}:{:x}", host / 65536, host % 65536), None));
        }
        assert_eq!(refusals.lock().len(), 1, "one network");
        for host in 0..10_000u32 {
            refusals.note(refusal(&Ipv6Addr::from(u128::from(host) << 64).to_string(), None));
        }
        assert_eq!(refusals.lock().len(), KINDS + 1);
        let total: u64 = refusals.due(true).iter().map(|(_, tally)| tally.count).sum();
        assert_eq!(total, 15_000, "all are counted");
    }
}
