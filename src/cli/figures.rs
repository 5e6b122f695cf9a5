//! Looks after those figures of a role that nothing counts as it happens.

use std::time::Duration;

use sqlx::PgPool;
use tokio::time::{MissedTickBehavior, interval, timeout};

use crate::db::error::DbError;
use crate::db::{Zone, figures};
use crate::lifecycle::Lifecycle;
use crate::metrics::{LOOK_EVERY, metrics};

/// A look that takes longer is given up: it must not pile up on a database that is slow.
const WITHIN: Duration = Duration::from_secs(4);

/// Looks every few seconds, until the hard token.
pub fn keep_current(pools: Vec<(Zone, PgPool)>, lifecycle: &Lifecycle) {
    let look = async move {
        let mut every = interval(LOOK_EVERY);
        every.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            every.tick().await;
            for (zone, pool) in &pools {
                look(*zone, pool).await;
            }
        }
    };
    // Not waited for: it ends with the process.
    tokio::spawn(lifecycle.hard().clone().run_until_cancelled_owned(look));
}

async fn look(zone: Zone, pool: &PgPool) {
    figures::pool(zone, pool);
    let asked = timeout(WITHIN, async {
        match zone {
            Zone::Api => figures::runs(pool).await,
            Zone::Sequencer => figures::trail(pool).await,
            Zone::Owner | Zone::Runner | Zone::Gateway | Zone::Notifier | Zone::Retention | Zone::Backup => {
                Ok::<(), DbError>(())
            }
        }
    });
    match asked.await {
        Ok(Ok(())) => metrics().database.looked(zone.name()),
        Ok(Err(error)) => tracing::warn!(zone = zone.name(), %error, "metrics.not_looked"),
        Err(_) => tracing::warn!(zone = zone.name(), "metrics.not_looked: the database took too long"),
    }
}
