//! Keys behind open streams: when one is revoked, rotated away or expires, its streams end within a second.
//!
//! What a stream shows is read in statements that ask for the key themselves, so nothing is shown on the strength of
//! what is known here; this ends the streams that wait.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, watch};

use crate::api::state::ApiState;
use crate::db;
use crate::db::keys::Bearer;

/// How often the table is asked, whatever was notified: expiry notifies nobody.
const POLL: Duration = Duration::from_millis(800);

#[derive(Default)]
pub(super) struct Bearers {
    open: Mutex<HashMap<Bearer, watch::Sender<bool>>>,
    changed: Notify,
}

impl Bearers {
    fn lock(&self) -> MutexGuard<'_, HashMap<Bearer, watch::Sender<bool>>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Becomes true when the bearer's secret is no longer taken.
    pub fn watch(&self, bearer: &Bearer) -> watch::Receiver<bool> {
        self.lock().entry(bearer.clone()).or_insert_with(|| watch::channel(false).0).subscribe()
    }

    /// Some key has changed.
    pub fn look(&self) {
        self.changed.notify_one();
    }

    /// Forgets those without streams, and names the others.
    fn watched(&self) -> Vec<Bearer> {
        let mut open = self.lock();
        open.retain(|_, sender| sender.receiver_count() > 0);
        open.keys().cloned().collect()
    }

    fn end(&self, ended: &[Bearer]) {
        let mut open = self.lock();
        for bearer in ended {
            if let Some(sender) = open.remove(bearer) {
                tracing::info!(key = bearer.key_id, "api.streams_of_a_key_end");
                sender.send_replace(true);
            }
        }
    }
}

/// Runs until the soft token.
pub(super) async fn follow(state: ApiState) {
    while !state.soft.is_cancelled() {
        tokio::select! {
            () = state.soft.cancelled() => return,
            () = state.bearers.changed.notified() => {}
            () = tokio::time::sleep(POLL) => {}
        }
        let watched = state.bearers.watched();
        if watched.is_empty() {
            continue;
        }
        match db::keys::still_taken(&state.pool, &watched).await {
            Ok(taken) => {
                let ended: Vec<Bearer> =
                    watched.into_iter().filter(|bearer| !taken.contains(bearer)).collect();
                state.bearers.end(&ended);
            }
            // Nor can anything be read for a stream meanwhile.
            Err(error) => tracing::warn!(%error, "api.keys_not_looked_at"),
        }
    }
}
