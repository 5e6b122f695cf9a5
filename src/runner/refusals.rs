//! A run's refused system calls: counted by the keeper, kept in the database while the CLI runs.
//!
//! The keeper gives totals, never increments: to write them down twice, after a runner's death between the write and
//! the word that it is done, changes nothing.

use std::future::pending;
use std::sync::atomic::Ordering;
use std::time::Duration;

use crate::db;
use crate::db::refused_calls::RefusedKind;
use crate::db::runs::RunRow;
use crate::metrics::metrics;
use crate::runner::drive::Drive;
use crate::runner::failure::RunFailure;
use crate::runner::prepare::attempt_name;
use crate::sandbox::refusals::client::{Counted, KeeperError};
use crate::sandbox::refusals::tally::{Refused, Totals};

/// From a refusal to its row and event; a flood is one write each time.
const WRITE_AFTER: Duration = Duration::from_millis(700);

/// How long a question for news is kept open.
const ASK_FOR: Duration = Duration::from_secs(50);

/// How long a runtime may take to hand over, once it says that the sandbox has started. It does so before that.
const HANDOVER_WITHIN: Duration = Duration::from_secs(10);

const UNRECORDED: &str = "refused system calls of this attempt are refused as before, but no longer recorded: \
    the keeper that held the kernel's listener has ended";

/// The same, where connections had to be looked at.
const UNCONNECTED: &str = "refused system calls of this attempt are refused as before, but no longer recorded, and \
    it can open no new network connection, not even to its model: the keeper that held the kernel's listener has ended \
    (KAGE_RUNNER_RECORD_ADDRESSES=false lets such runs go on, without a record of addresses)";

impl Drive<'_> {
    /// Whether the runtime of a run that was begun tells of refused calls.
    fn tells_of_refusals(&self, run: &RunRow) -> bool {
        let demanded = run.manifest.get("runtime").and_then(serde_json::Value::as_str);
        let chosen = self.environment.runtimes.choose(run.runtime.as_deref(), demanded);
        chosen.is_ok_and(|chosen| self.environment.runtimes.reports(&chosen))
    }

    /// No listener, no start.
    pub(super) async fn require_handover(&self) -> Result<(), RunFailure> {
        let Some(counted) = self.here.counted.get() else { return Ok(()) };
        if counted.connected(HANDOVER_WITHIN).await? {
            return Ok(());
        }
        let runtime = self.environment.runtimes.default();
        Err(RunFailure::Refused(format!(
            "the runtime ({runtime}) did not hand over the listener for refused system calls, which runc and crun do; \
             name another one in KAGE_RUNNER_RUNTIME"
        )))
    }

    /// Finds the counts of an attempt that a former runner has begun. Where nobody has them the run says so.
    pub(super) async fn take_up_refusals(&self, run: &RunRow) -> Result<(), RunFailure> {
        if !self.tells_of_refusals(run) {
            return Ok(());
        }
        match self.find_refusals(run).await {
            Some(_) => Ok(()),
            None => self.say_uncounted(run).await,
        }
    }

    async fn find_refusals(&self, run: &RunRow) -> Option<&Counted> {
        if self.here.counted.get().is_none() {
            let keeper = self.environment.keeper.as_ref()?;
            match keeper.take_up(attempt_name(run)).await {
                Ok(counted) => {
                    let _ = self.here.counted.set(counted);
                }
                Err(KeeperError::Unknown) => {}
                Err(error) => tracing::warn!(run = %run.id, %error, "runner.refusals_not_found"),
            }
        }
        self.here.counted.get()
    }

    /// Writes down what is refused, as it happens. Ends only when that cannot be done.
    pub(super) async fn keep_refusals(&self, run: &RunRow) -> RunFailure {
        let Some(counted) = self.here.counted.get() else { return pending().await };
        let mut after = 0;
        loop {
            match self.write_news(run, counted, &mut after).await {
                Ok(Ok(())) => {}
                // The listener has ended with its keeper: there is nothing more to hear.
                Ok(Err(error)) => {
                    tracing::error!(run = %run.id, %error, "runner.refusals_not_counted");
                    match self.say_uncounted(run).await {
                        Ok(()) => return pending().await,
                        Err(failure) => return failure,
                    }
                }
                Err(failure) => return failure,
            }
        }
    }

    /// Once nothing runs any more: what an interrupted write has left, and what was counted while no runner was there.
    pub(super) async fn last_refusals(&self, run: &RunRow) -> Result<(), RunFailure> {
        let Some(counted) = self.find_refusals(run).await else { return Ok(()) };
        match counted.news(0, Duration::ZERO).await {
            Ok(totals) => self.write_refusals(run, totals).await?,
            Err(error) => {
                tracing::error!(run = %run.id, %error, "runner.refusals_not_counted");
                return self.say_uncounted(run).await;
            }
        }
        self.refusals_are_over().await;
        Ok(())
    }

    /// The keeper need not hold the attempt's counts any more.
    pub(super) async fn refusals_are_over(&self) {
        if let Some(counted) = self.here.counted.get()
            && let Err(error) = counted.over().await
        {
            tracing::warn!(run = %self.lease.run, %error, "runner.refusals_not_let_go");
        }
    }

    async fn write_news(
        &self,
        run: &RunRow,
        counted: &Counted,
        after: &mut u64,
    ) -> Result<Result<(), KeeperError>, RunFailure> {
        let asked = async {
            let first = counted.news(*after, ASK_FOR).await?;
            if first.version <= *after {
                return Ok(None);
            }
            tokio::time::sleep(WRITE_AFTER).await;
            counted.news(*after, Duration::ZERO).await.map(Some)
        };
        match asked.await {
            Ok(Some(totals)) => {
                let version = totals.version;
                self.write_refusals(run, totals).await?;
                *after = version;
                Ok(Ok(()))
            }
            Ok(None) => Ok(Ok(())),
            Err(error) => Ok(Err(error)),
        }
    }

    async fn write_refusals(&self, run: &RunRow, totals: Totals) -> Result<(), RunFailure> {
        if totals.failed {
            self.say_uncounted(run).await?;
        }
        if totals.kinds.is_empty() {
            return Ok(());
        }
        self.measure(&totals);
        let kinds: Vec<RefusedKind> = totals.kinds.into_iter().map(kind).collect();
        let (pool, lease) = (&self.environment.pool, self.lease);
        self.commit(|| db::refused_calls::record(pool, lease, run, &kinds)).await
    }

    /// The totals grow; `metrics` gets what is new.
    fn measure(&self, totals: &Totals) {
        for (place, expected) in [true, false].into_iter().enumerate() {
            let of_kind = totals.kinds.iter().filter(|kind| kind.quiet == expected);
            let count = of_kind.map(|kind| kind.count).fold(0, u64::saturating_add);
            let before = self.here.measured[place].fetch_max(count, Ordering::SeqCst);
            metrics().runs.refused(expected, count.saturating_sub(before));
        }
    }

    /// Told once: the listener has ended before the run.
    async fn say_uncounted(&self, run: &RunRow) -> Result<(), RunFailure> {
        if self.here.uncounted.load(Ordering::SeqCst) {
            return Ok(());
        }
        let told = if self.environment.config.record_addresses { UNCONNECTED } else { UNRECORDED };
        let (pool, lease) = (&self.environment.pool, self.lease);
        self.commit(|| db::refused_calls::interrupted(pool, lease, run, told)).await?;
        // Not before: a commit that the run's end cuts short is made again at its end.
        self.here.uncounted.store(true, Ordering::SeqCst);
        metrics().runs.uncounted();
        Ok(())
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
