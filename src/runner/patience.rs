//! Database calls that outlast a database that is away for a while.

use std::future::Future;
use std::time::Duration;

use crate::db::error::DbError;
use crate::runner::environment::Environment;
use crate::runner::failure::RunFailure;

const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

impl Environment {
    /// Repeats a call for as long as the database is away; ends with the process's stop. The call must be safe
    /// to repeat after a commit whose answer was lost: those in `db::runs` look before they write.
    pub(super) async fn patiently<T, F>(&self, mut call: impl FnMut() -> F) -> Result<T, RunFailure>
    where
        F: Future<Output = Result<T, DbError>>,
    {
        let mut pause = FIRST_PAUSE;
        loop {
            match call().await {
                Err(error) if error.is_transient() => {
                    tracing::warn!(%error, "runner.database_away");
                    tokio::select! {
                        () = self.lifecycle.hard().cancelled() => return Err(RunFailure::Stopping),
                        () = tokio::time::sleep(pause) => {}
                    }
                    pause = (pause * 2).min(LONGEST_PAUSE);
                }
                other => return other.map_err(RunFailure::from),
            }
        }
    }
}
