//! A start that outlasts a database that goes away meanwhile. What a role does later has patience of its own.

use std::fmt::Display;
use std::time::Duration;

use tokio::time::{Instant, sleep};

/// Between two tries.
const PAUSE: Duration = Duration::from_secs(1);

/// For how long a role that starts waits for its database: `KAGE_DATABASE_START_SECS`, at each of its steps.
#[derive(Debug, Clone, Copy)]
pub struct Patience(pub Duration);

impl Patience {
    /// Repeats a call for as long as the database is away. It must be safe to repeat after a commit whose answer was lost.
    ///
    /// # Errors
    /// The call's own: at once where `is_away` says that another try would not help, else when patience has run out.
    pub async fn ask<T, E: Display>(
        self,
        is_away: impl Fn(&E) -> bool,
        mut call: impl AsyncFnMut() -> Result<T, E>,
    ) -> Result<T, E> {
        let until = Instant::now() + self.0;
        loop {
            match call().await {
                Err(error) if is_away(&error) && Instant::now() < until => {
                    tracing::warn!(%error, "db.unavailable: waiting for the database");
                    sleep(PAUSE).await;
                }
                answer => return answer,
            }
        }
    }
}
