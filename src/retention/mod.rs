//! `kage retention`: lets go of output, events and results when they are too old, or too much. Of the database it has the right
//! to call the functions that do it, and no other: it sees no task, no output and no result.
//!
//! ```text
//! round     one look at everything
//! ```

mod round;

use std::time::Duration;

use sqlx::PgPool;

use crate::config::retention::RetentionConfig;
use crate::lifecycle::Lifecycle;

/// After a round that did not get through.
const AGAIN: Duration = Duration::from_secs(30);
/// Where more is due than one round does.
const MORE: Duration = Duration::from_secs(1);

/// Begins. Also without any rule: somebody has to make the tables of the months to come.
pub fn start(pool: PgPool, config: RetentionConfig, lifecycle: &Lifecycle) {
    let soft = lifecycle.soft().clone();
    lifecycle.spawn_essential("retention", async move {
        while !soft.is_cancelled() {
            let pause = match soft.run_until_cancelled(round::run(&pool, &config)).await {
                None => return,
                Some(Ok(more)) => {
                    if more {
                        MORE
                    } else {
                        config.poll
                    }
                }
                Some(Err(error)) => {
                    tracing::warn!(%error, "retention.later");
                    AGAIN.min(config.poll)
                }
            };
            let _ = soft.run_until_cancelled(tokio::time::sleep(pause)).await;
        }
    });
}
