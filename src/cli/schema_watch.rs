//! Whether the schema is still the one that a running role began with. Somebody may migrate beneath it: then it goes on, for a
//! release works on the schema of the next one too, says so, and cannot be started again.

use std::time::Duration;

use sqlx::PgPool;
use tokio::time::{MissedTickBehavior, interval};

use crate::db::schema::{self, Schema};
use crate::lifecycle::Lifecycle;

const EVERY: Duration = Duration::from_secs(10);

/// Looks until the hard token, and says what is new.
pub fn follow(pool: PgPool, lifecycle: &Lifecycle) {
    let look = async move {
        let mut every = interval(EVERY);
        every.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut known = Schema::Current;
        loop {
            every.tick().await;
            // One that does not answer is told of by who needs it.
            let Ok(found) = schema::state(&pool).await else { continue };
            if found == known {
                continue;
            }
            known = found;
            match found.refusal() {
                Some(refusal) => {
                    tracing::error!(%refusal, "db.schema_replaced: what runs goes on, and starts no more")
                }
                None => tracing::info!("db.schema_current"),
            }
        }
    };
    // Not waited for: it ends with the process.
    tokio::spawn(lifecycle.hard().clone().run_until_cancelled_owned(look));
}
