//! A CLI that is told to end, and one that has ended.

use std::time::Duration;

use kage_shim::protocol::Exited;
use tokio::time::{Instant, timeout};

use crate::db;
use crate::domain::event::EventKind;
use crate::domain::run::RunState;
use crate::domain::verdict::{Verdict, limits_met};
use crate::runner::drive::Drive;
use crate::runner::failure::RunFailure;
use crate::runner::lines::MAX_LINE;
use crate::runner::pump::{Ending, Pump};
use crate::runner::retry;
use crate::sandbox::shim_link::ShimLink;

/// Beyond the grace time, for a shim that was told to end its CLI.
const KILL_MARGIN: Duration = Duration::from_secs(10);
/// So long may it take to write down why a CLI is ended; a database that is away must not let it go on.
const NOTE_WITHIN: Duration = Duration::from_secs(2);

impl Pump<'_> {
    /// Tells the shim to end the CLI; its last output is still taken. Why is written down before.
    pub(super) async fn end(&mut self, link: &mut ShimLink, verdict: Verdict) -> Result<(), RunFailure> {
        let (pool, lease) = (&self.drive.environment.pool, self.drive.lease);
        if let Ok(noted) = serde_json::to_value(&verdict) {
            let write = self.drive.environment.patiently(|| db::attempts::set_ending(pool, lease, &noted));
            match timeout(NOTE_WITHIN, write).await {
                Ok(Ok(())) => {}
                // It ends all the same: that is what it is told to.
                Ok(Err(RunFailure::Database(error))) => {
                    tracing::warn!(run = %self.run.id, %error, "runner.ending_not_noted")
                }
                Ok(Err(failure)) => return Err(failure),
                Err(_) => tracing::warn!(run = %self.run.id, "runner.ending_not_noted: the database is away"),
            }
        }
        self.cause = Some((verdict, kill_at(self.drive)));
        self.terminate_if_ending(link).await;
        Ok(())
    }

    /// Safe to repeat: what was said on a link that broke may not have been heard.
    pub(super) async fn terminate_if_ending(&mut self, link: &mut ShimLink) {
        if self.cause.is_none() {
            return;
        }
        if let Err(error) = link.terminate().await {
            tracing::warn!(run = %self.run.id, %error, "runner.terminate_failed");
        }
    }

    pub(super) async fn exited(mut self, mut link: ShimLink, exited: &Exited) -> Result<Ending, RunFailure> {
        self.keep_last();
        if let Some(line) = self.lines.last() {
            self.map(&[line.as_slice(), b"\n"].concat());
        }
        self.commit(&mut link, true).await?;
        let verdict = match self.cause.take() {
            // Ended by itself just before it was told to: its own status counts, but for cuts and cancels.
            Some((cause, _)) => Verdict { exit_code: exited.code, ..cause },
            None => {
                let mut exited = exited.clone();
                let failed = exited.code != Some(0) && exited.spawn_error.is_none();
                if failed
                    && exited.oom_kills == 0
                    && self.sandbox.inspect().await.is_ok_and(|seen| seen.oom_killed)
                {
                    exited.oom_kills = 1;
                }
                let verdict = Verdict::of_exit(&exited, retry::speaks_of_transient_fault(&self.tail));
                // Between two looks a CLI may have gone over, and have ended.
                let by_itself = matches!(verdict.state, RunState::Succeeded | RunState::Failed);
                let over = if by_itself { self.disk.look().await } else { None };
                over.map_or(verdict, |over| Verdict { exit_code: exited.code, ..over })
            }
        };
        let left_out = self.lines.left_out();
        if left_out > 0 && self.mapping.is_some() {
            let message =
                format!("{left_out} lines of output over {MAX_LINE} bytes were not read for events");
            self.drive.notice(&self.run, EventKind::Warning, &message).await?;
        }
        if let Some(met) = limits_met(exited, verdict.state) {
            self.drive.notice(&self.run, EventKind::Warning, &met).await?;
        }
        Ok(self.ending(verdict, Some(link)))
    }

    /// The verdict goes on with what the CLI said of itself.
    pub(super) fn ending(&self, verdict: Verdict, link: Option<ShimLink>) -> Ending {
        Ending { verdict: Verdict { told: self.teller.told.clone(), ..verdict }, link }
    }
}

/// When a CLI that is told to end now is killed.
pub(super) fn kill_at(drive: Drive<'_>) -> Instant {
    Instant::now() + Duration::from_secs(drive.environment.config.grace_secs) + KILL_MARGIN
}
