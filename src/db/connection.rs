//! How connections of a pool begin, and how those that died without a word are found.

use std::io;
use std::time::Duration;

use sqlx::postgres::{PgConnection, PgPoolOptions};
use sqlx::{AssertSqlSafe, Connection as _, Executor as _};

use crate::db::{Zone, stale_plans};

/// A process that stands still in the middle of a transaction holds its rows, and nobody else gets on: the server ends that
/// session after so many seconds. Ours ask one thing after the other; what they do between takes milliseconds. Not the owner's and
/// not a backup's, which have transactions that idle.
const IDLE_IN_TRANSACTION_SECS: u32 = 10;

/// The same of a host that is gone: the server notices after these seconds of silence. (The driver has no such settings for this
/// side: there the deadlines are.)
const KEEPALIVE_SECS: u32 = 30;

/// How long a statement of the API waits for what another transaction holds. Its connections are few, and whoever else asks waits
/// for one of them.
const API_LOCK_SECS: u32 = 5;

/// An idle connection answers within this, or is none.
const PING_WITHIN: Duration = Duration::from_secs(5);

/// A pool whose connections act with a zone's rights, and that hands none out, and takes none back, that does not answer.
pub(super) fn pool(zone: Zone) -> PgPoolOptions {
    PgPoolOptions::new()
        // By the driver itself it has no limit.
        .test_before_acquire(false)
        .before_acquire(|connection, held| {
            Box::pin(async move {
                if stale_plans::is_older(held.age) {
                    return Ok(false);
                }
                ping(connection).await.map(|()| true)
            })
        })
        // The driver does the same next, without a limit: one call that is given up in the middle would cost the pool a place for ever.
        .after_release(|connection, _| Box::pin(async move { ping(connection).await.map(|()| true) }))
        .after_connect(move |connection, _| {
            Box::pin(async move {
                connection.execute(AssertSqlSafe(beginning(zone))).await?;
                Ok(())
            })
        })
}

async fn ping(connection: &mut PgConnection) -> Result<(), sqlx::Error> {
    let silent = || io::Error::new(io::ErrorKind::TimedOut, "an idle connection does not answer");
    tokio::time::timeout(PING_WITHIN, connection.ping()).await.unwrap_or_else(|_| Err(silent().into()))
}

/// In one round trip. Where Postgres is reached by a file, what is TCP's does nothing.
fn beginning(zone: Zone) -> String {
    let mut statements = format!(
        "SET tcp_keepalives_idle = {KEEPALIVE_SECS}; SET tcp_keepalives_interval = 10; SET tcp_keepalives_count = 3; \
         SET tcp_user_timeout = '{KEEPALIVE_SECS}s'"
    );
    if let Some(role) = zone.set_role() {
        statements = format!("{role}; {statements}");
    }
    if !matches!(zone, Zone::Owner | Zone::Backup) {
        statements =
            format!("{statements}; SET idle_in_transaction_session_timeout = '{IDLE_IN_TRANSACTION_SECS}s'");
    }
    if zone == Zone::Api {
        statements = format!("{statements}; SET lock_timeout = '{API_LOCK_SECS}s'");
    }
    statements
}
