//! `kage notifier`: tells receivers of security events, by webhooks. It has the receivers' secrets and a way out; of the
//! database it sees the events and its own records, and nothing that an agent wrote but names within them.
//!
//! ```text
//! message  the payload and its signatures      sender   one try: what may come back, and for how long
//! schedule when to try again                   deliver  the loop of one receiver; a dead one holds no other up
//! ```
//!
//! It looks every second instead of being notified, as the sequencer does: a NOTIFY inside a write costs that write a factor
//! of two and more, and the writers here are requests and runs.

pub mod deliver;
pub mod error;
pub mod message;
pub mod schedule;
pub mod sender;

use std::sync::Arc;
use std::time::Duration;

use sqlx::PgPool;

use crate::config::webhooks::WebhooksConfig;
use crate::db;
use crate::db::webhook_deliveries::Wanted;
use crate::domain::security_event::SecurityEventKind;
use crate::lifecycle::Lifecycle;
use crate::notifier::error::NotifierError;
use crate::notifier::sender::Sender;

/// Between two looks.
const POLL: Duration = Duration::from_secs(1);
/// Older than any schedule: what is still waiting then waits for a receiver that is gone.
const STALE_SECS: i64 = 7 * 86_400;
/// Between two looks for what is stale.
const STALE_LOOK: Duration = Duration::from_secs(600);

/// Begins: one loop that gives events out, and one for each receiver.
///
/// # Errors
/// [`NotifierError`]: a receiver's certificates cannot be used.
pub fn start(pool: PgPool, config: &WebhooksConfig, lifecycle: &Lifecycle) -> Result<(), NotifierError> {
    let mut wanted = Vec::new();
    for hook in &config.hooks {
        wanted.push(Wanted {
            hook: hook.name.clone(),
            kinds: hook.kinds.iter().copied().map(SecurityEventKind::as_str).collect(),
            least: hook.min_severity,
        });
        let sender = Arc::new(Sender::new(hook.clone(), config.within)?);
        let receiver = deliver::Receiver::new(pool.clone(), sender, config);
        let soft = lifecycle.soft().clone();
        lifecycle.spawn_essential("webhook", async move { receiver.run(&soft).await });
    }
    let soft = lifecycle.soft().clone();
    lifecycle.spawn_essential("security events", async move {
        soft.run_until_cancelled(give_out(&pool, &wanted)).await;
    });
    Ok(())
}

async fn give_out(pool: &PgPool, wanted: &[Wanted]) {
    let mut looked: Option<tokio::time::Instant> = None;
    loop {
        match db::webhook_deliveries::give_out(pool, wanted, STALE_SECS).await {
            Ok(0) => tokio::time::sleep(POLL).await,
            Ok(events) => tracing::debug!(events, "notifier.given_out"),
            Err(error) => {
                tracing::warn!(%error, "notifier.later");
                tokio::time::sleep(POLL).await;
            }
        }
        if looked.is_none_or(|at| at.elapsed() >= STALE_LOOK) {
            match db::webhook_deliveries::give_up_stale(pool, STALE_SECS).await {
                Ok(0) => {}
                Ok(deliveries) => {
                    tracing::error!(deliveries, "notifier.given_up: nobody took them for a week")
                }
                Err(error) => tracing::warn!(%error, "notifier.later"),
            }
            looked = Some(tokio::time::Instant::now());
        }
    }
}
