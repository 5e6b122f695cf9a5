//! Wakes streams: one LISTEN a process, fanned out in memory, and one slow query behind it.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use sqlx::postgres::PgListener;
use tokio::sync::watch;
use uuid::Uuid;

use crate::api::state::ApiState;
use crate::db;
use crate::db::error::DbError;

/// How often the tables are asked whether a notification got lost.
const SLOW_POLL: Duration = Duration::from_secs(5);

/// The tasks that somebody watches, each with the last sequence number that was heard of.
#[derive(Default)]
pub(super) struct Hub {
    tasks: Mutex<HashMap<Uuid, watch::Sender<i64>>>,
}

impl Hub {
    fn lock(&self) -> MutexGuard<'_, HashMap<Uuid, watch::Sender<i64>>> {
        self.tasks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes whenever the task has new events. Subscribe **before** you query.
    pub fn subscribe(&self, task: Uuid) -> watch::Receiver<i64> {
        self.lock().entry(task).or_insert_with(|| watch::channel(0).0).subscribe()
    }

    fn wake(&self, task: Uuid) {
        if let Some(sender) = self.lock().get(&task) {
            sender.send_modify(|_| {});
        }
    }

    fn wake_advanced(&self, heads: &[(Uuid, i64)]) {
        let tasks = self.lock();
        for (task, head) in heads {
            if let Some(sender) = tasks.get(task) {
                sender.send_if_modified(|known| std::mem::replace(known, *head) != *head);
            }
        }
    }

    fn wake_all(&self) {
        for sender in self.lock().values() {
            sender.send_modify(|_| {});
        }
    }

    /// Forgets tasks that nobody watches any more, and names the others.
    fn watched(&self) -> Vec<Uuid> {
        let mut tasks = self.lock();
        tasks.retain(|_, sender| sender.receiver_count() > 0);
        tasks.keys().copied().collect()
    }
}

/// Runs until the soft token.
pub(super) async fn listen(state: ApiState) {
    while !state.soft.is_cancelled() {
        if let Err(error) = listen_once(&state).await {
            tracing::warn!(%error, "api.hub_reconnecting");
        }
        tokio::select! {
            () = state.soft.cancelled() => {}
            () = tokio::time::sleep(Duration::from_secs(1)) => {}
        }
    }
}

async fn listen_once(state: &ApiState) -> Result<(), DbError> {
    let mut listener = PgListener::connect_with(&state.pool).await?;
    listener.listen_all([db::notify::EVENTS, db::notify::KEYS]).await?;
    // Whatever was said while nobody listened.
    state.hub.wake_all();
    state.bearers.look();
    let mut poll = tokio::time::interval(SLOW_POLL);
    poll.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = state.soft.cancelled() => return Ok(()),
            notification = listener.try_recv() => match notification? {
                Some(notification) if notification.channel() == db::notify::KEYS => state.bearers.look(),
                Some(notification) => match notification.payload().parse() {
                    Ok(task) => state.hub.wake(task),
                    Err(_) => tracing::warn!("api.hub_bad_payload"),
                },
                None => {
                    state.hub.wake_all();
                    state.bearers.look();
                }
            },
            _ = poll.tick() => {
                let watched = state.hub.watched();
                if !watched.is_empty() {
                    state.hub.wake_advanced(&db::tasks::heads(&state.pool, &watched).await?);
                }
            }
        }
    }
}
