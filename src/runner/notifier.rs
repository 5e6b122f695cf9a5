//! Tells the world of new events: at most one NOTIFY statement at a time, for all tasks that have some.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::Notify;
use uuid::Uuid;

use crate::db;
use crate::db::deadline::{ANSWER_WITHIN, within};
use crate::runner::environment::Environment;

#[derive(Default)]
pub(super) struct Notifier {
    pending: Mutex<HashSet<Uuid>>,
    wake: Notify,
}

impl Notifier {
    /// After the commit. What gets lost here, the listeners' slow poll finds.
    pub fn task_has_events(&self, task: Uuid) {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner).insert(task);
        self.wake.notify_one();
    }

    fn take(&self) -> Vec<Uuid> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner).drain().collect()
    }
}

/// Runs until the last run has ended.
pub(super) async fn run(environment: Arc<Environment>) {
    loop {
        let tasks = environment.notifier.take();
        if tasks.is_empty() {
            if environment.has_ended_work() {
                return;
            }
            tokio::select! {
                () = environment.notifier.wake.notified() => {}
                () = environment.lifecycle.hard().cancelled() => {}
                () = tokio::time::sleep(std::time::Duration::from_secs(1)) => {}
            }
            continue;
        }
        if let Err(error) = within(ANSWER_WITHIN, db::notify::send_events(&environment.pool, &tasks)).await {
            tracing::warn!(%error, "runner.notify_failed");
        }
    }
}
