//! A run's refused system calls: counted by the sandbox's listener, kept in the database while the CLI runs.

use std::future::pending;
use std::time::Duration;

use crate::db;
use crate::db::refused_calls::RefusedKind;
use crate::db::runs::RunRow;
use crate::domain::event::EventKind;
use crate::runner::drive::Drive;
use crate::runner::failure::RunFailure;
use crate::sandbox::refusals::tally::Refused;

/// From a refusal to its row and event; a flood is one write each time.
const WRITE_AFTER: Duration = Duration::from_millis(700);

/// How long a runtime may take to hand over, once it says that the sandbox has started. It does so before that.
const HANDOVER_WITHIN: Duration = Duration::from_secs(10);

const UNRECORDED: &str = "refused system calls of this attempt are refused as before, but no longer recorded: \
    the kernel's listener has ended, with the runner that began it";

/// The same, where connections had to be looked at.
const UNCONNECTED: &str = "refused system calls of this attempt are refused as before, but no longer recorded, and \
    it can open no new network connection, not even to its model: the kernel's listener has ended, with the runner that began it \
    (KAGE_RUNNER_RECORD_ADDRESSES=false lets such runs go on, without a record of addresses)";

impl Drive<'_> {
    /// Whether the runtime of a run that was begun tells of refused calls.
    pub(super) fn tells_of_refusals(&self, run: &RunRow) -> bool {
        let demanded = run.manifest.get("runtime").and_then(serde_json::Value::as_str);
        let chosen = self.environment.runtimes.choose(run.runtime.as_deref(), demanded);
        chosen.is_ok_and(|chosen| self.environment.runtimes.reports(&chosen))
    }

    /// No listener, no start.
    pub(super) async fn require_handover(&self) -> Result<(), RunFailure> {
        match self.here.watched.get() {
            Some(watched) if !watched.connected(HANDOVER_WITHIN).await => {
                let runtime = self.environment.runtimes.default();
                Err(RunFailure::Refused(format!(
                    "the runtime ({runtime}) did not hand over the listener for refused system calls, which runc and crun do; \
                     name another one in KAGE_RUNNER_RUNTIME"
                )))
            }
            _ => Ok(()),
        }
    }

    /// Writes down what is refused, as it happens. Ends only when that cannot be done.
    pub(super) async fn keep_refusals(&self, run: &RunRow) -> RunFailure {
        let Some(watched) = self.here.watched.get() else { return pending().await };
        loop {
            watched.tally().changed(WRITE_AFTER).await;
            if let Err(failure) = self.write_refusals(run).await {
                return failure;
            }
        }
    }

    /// Once nothing runs any more. What an interrupted write has left is written too.
    pub(super) async fn last_refusals(&self, run: &RunRow) -> Result<(), RunFailure> {
        if let Some(watched) = self.here.watched.get() {
            watched.tally().renew();
        }
        self.write_refusals(run).await
    }

    /// What a run is told when its listener has ended before it.
    pub(super) fn unrecorded(&self) -> &'static str {
        if self.environment.config.record_addresses { UNCONNECTED } else { UNRECORDED }
    }

    async fn write_refusals(&self, run: &RunRow) -> Result<(), RunFailure> {
        let Some(watched) = self.here.watched.get() else { return Ok(()) };
        if watched.tally().take_failure() {
            self.notice(run, EventKind::Warning, self.unrecorded()).await?;
        }
        let news = watched.tally().take_news().unwrap_or_default();
        if news.is_empty() {
            return Ok(());
        }
        let kinds: Vec<RefusedKind> = news.into_iter().map(kind).collect();
        let (pool, lease) = (&self.environment.pool, self.lease);
        self.commit(|| db::refused_calls::record(pool, lease, run, &kinds)).await
    }
}

fn kind(refused: Refused) -> RefusedKind {
    RefusedKind {
        call: refused.call,
        form: refused.form,
        arguments: refused.arguments.iter().map(|argument| format!("{argument:#x}")).collect(),
        expected: refused.quiet,
        count: i64::try_from(refused.count).unwrap_or(i64::MAX),
        first_at: refused.first_at,
        last_at: refused.last_at,
    }
}
