//! What a run has done outlives a disk that is full: it is collected when there is room again.

use std::path::Path;
use std::time::Duration;

use rustix::fs::statvfs;
use tokio::time::{Instant, sleep};

use crate::db::runs::RunRow;
use crate::domain::event::EventKind;
use crate::runner::drive::Drive;
use crate::runner::failure::RunFailure;

/// Between two looks.
const PAUSE: Duration = Duration::from_secs(2);
/// Room that comes later than this comes too late.
const WAITED_FOR: Duration = Duration::from_secs(3600);
/// With less than this free, in bytes, it may be for lack of room that a file could not be written: libraries do not say.
const FULL: u64 = 16 << 20;

/// What the system says of a full disk, here or in an engine's words.
pub(super) fn says_full(text: &str) -> bool {
    text.to_ascii_lowercase().contains("no space left on device")
}

impl Drive<'_> {
    /// Repeats what reads the worktree and writes the result for as long as the data folder's disk is full. A client's cancel ends that,
    /// and so does a runner's stop: the next start goes on with it.
    pub(super) async fn when_there_is_room<T, F>(
        &self,
        run: &RunRow,
        mut work: impl FnMut() -> F,
    ) -> Result<T, RunFailure>
    where
        F: Future<Output = Result<T, RunFailure>>,
    {
        let until = Instant::now() + WAITED_FOR;
        let mut is_told = false;
        loop {
            let failure = match work().await {
                Err(failure @ (RunFailure::Git(_) | RunFailure::Io { .. } | RunFailure::Refused(_))) => {
                    failure
                }
                other => return other,
            };
            let is_full = says_full(&failure.to_string()) || is_full(&self.environment.folders.runs());
            if !is_full {
                return Err(failure);
            }
            if Instant::now() > until {
                // Also where the failure itself does not say so: another attempt may do better.
                return Err(RunFailure::Refused(format!("{failure}: no space left on device")));
            }
            tracing::warn!(run = %run.id, %failure, "runner.no_room_for_a_result");
            if !is_told {
                let message =
                    "the data folder's disk is full: its changes are collected when there is room again";
                self.notice(run, EventKind::Warning, message).await?;
                is_told = true;
            }
            tokio::select! {
                () = sleep(PAUSE) => {}
                () = self.orders.cancel.cancelled() => return Err(RunFailure::CancelledWithoutRoom),
                () = self.environment.lifecycle.soft().cancelled() => return Err(RunFailure::Stopping),
            }
        }
    }
}

pub(super) fn is_full(folder: &Path) -> bool {
    statvfs(folder).is_ok_and(|found| found.f_bavail.saturating_mul(found.f_frsize) < FULL)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_disk_is_known_by_its_words() {
        let error = std::io::Error::from(rustix::io::Errno::NOSPC).to_string();
        assert!(says_full(&error) && says_full("mkdir /var/lib/x: no space left on device: unknown"));
        assert!(!says_full("permission denied"));
    }
}
