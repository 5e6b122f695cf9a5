//! Database calls that outlast a database that is away for a while.

use std::future::Future;
use std::time::Duration;

use tokio::time::Instant;

use crate::db::deadline::{ANSWER_WITHIN, within};
use crate::db::error::DbError;
use crate::runner::environment::Environment;
use crate::runner::failure::RunFailure;

const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);
/// One try. A line so narrow that a batch of output takes longer than the first one's time must get it through all the same.
const LONGEST_TRY: Duration = Duration::from_secs(600);

impl Environment {
    /// Repeats a call for as long as the database is away, or says nothing; ends with the process's stop. The call must be safe
    /// to repeat after a commit whose answer was lost: those in `db::runs` look before they write.
    pub(super) async fn patiently<T, F>(&self, mut call: impl FnMut() -> F) -> Result<T, RunFailure>
    where
        F: Future<Output = Result<T, DbError>>,
    {
        let (mut pause, mut limit) = (FIRST_PAUSE, ANSWER_WITHIN);
        loop {
            let begun = Instant::now();
            match within(limit, call()).await {
                Err(error) if error.is_transient() => {
                    tracing::warn!(%error, "runner.database_away");
                    tokio::select! {
                        () = self.lifecycle.hard().cancelled() => return Err(RunFailure::Stopping),
                        () = tokio::time::sleep(pause) => {}
                    }
                    pause = (pause * 2).min(LONGEST_PAUSE);
                    if begun.elapsed() >= limit {
                        limit = (limit * 2).min(LONGEST_TRY);
                    }
                }
                other => return other.map_err(RunFailure::from),
            }
        }
    }
}
