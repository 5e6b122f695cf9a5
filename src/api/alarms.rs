//! Security events that the edge sees itself, written into the audit trail beside the requests that raise them.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use serde_json::json;
use tokio::sync::mpsc::{Receiver, Sender, channel};

use crate::api::origin::Origin;
use crate::api::state::ApiState;
use crate::db;
use crate::db::error::DbError;
use crate::domain::audit::{Actor, Entry, Outcome};
use crate::domain::security_event::{SecurityEvent, SecurityEventKind};

/// Events that wait for the database; more are counted alone.
const WAITING: usize = 256;

pub(super) struct Alarms {
    queue: Sender<Origin>,
    waiting: Mutex<Option<Receiver<Origin>>>,
    raised: AtomicU64,
}

impl Default for Alarms {
    fn default() -> Self {
        let (queue, waiting) = channel(WAITING);
        Self { queue, waiting: Mutex::new(Some(waiting)), raised: AtomicU64::new(0) }
    }
}

impl Alarms {
    /// An address failed to authenticate too often, and is shut out.
    pub fn repeated_failures(&self, origin: &Origin) {
        let raised = self.raised.fetch_add(1, Ordering::Relaxed) + 1;
        let address = origin.address.map(tracing::field::display);
        let written = self.queue.try_send(origin.clone()).is_ok();
        tracing::warn!(address, raised, written, "auth.repeated_failures");
    }
}

/// Runs until the soft token, and writes what waits then.
pub(super) async fn write(state: ApiState) {
    let waiting = state.alarms.waiting.lock().ok().and_then(|mut waiting| waiting.take());
    let Some(mut waiting) = waiting else { return };
    loop {
        let origin = tokio::select! {
            biased;
            Some(origin) = waiting.recv() => origin,
            () = state.soft.cancelled() => return,
        };
        while let Err(error) = append(&state, &origin).await {
            tracing::error!(%error, "api.alarm_not_audited");
            if state.soft.is_cancelled() {
                return;
            }
            tokio::time::sleep(std::time::Duration::from_secs(1)).await;
        }
    }
}

async fn append(state: &ApiState, origin: &Origin) -> Result<(), DbError> {
    let mut transaction = state.pool.begin().await?;
    let failures = state.config.edge.rates.failures;
    let details = json!({ "more_than_a_minute": failures, "shut_out_secs": 60 });
    let entry = origin.asked(Entry {
        actor: Actor::Anonymous,
        action: "auth.repeated_failures",
        object: "route:*".to_owned(),
        outcome: Outcome::Refused,
        details: details.clone(),
    });
    db::audit::append(&mut transaction, &entry).await?;
    let subject = origin.address.map_or("address:unknown".to_owned(), |address| format!("address:{address}"));
    let event = SecurityEvent::new(SecurityEventKind::RepeatedAuthFailures, &subject, &details);
    db::security_events::append(&mut transaction, &event).await?;
    Ok(transaction.commit().await?)
}
