//! One run, told top to bottom.
//!
//! ```text
//! queued ──begin──▶ preparing ──▶ running ──▶ harvesting ──▶ an end, or queued again
//! ```
//!
//! Every step may be the first one of this process: a run whose runner died is taken up where the database
//! says that it stands.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU64, Ordering};
use std::time::Duration;

use chrono::{DateTime, Utc};
use tokio_util::task::TaskTracker;
use tracing::{Instrument as _, Span};
use uuid::Uuid;

use crate::db;
use crate::db::attempts::SandboxFacts;
use crate::db::error::DbError;
use crate::db::queue::Lease;
use crate::db::runs::RunRow;
use crate::db::tasks::TaskRow;
use crate::db::visible::Visible;
use crate::domain::event::EventKind;
use crate::domain::run::RunState;
use crate::domain::verdict::Verdict;
use crate::git::worktree::Worktree;
use crate::metrics::metrics;
use crate::metrics::runs::Phase;
use crate::runner::environment::Environment;
use crate::runner::failure::{RunFailure, noted, verdict_of, written};
use crate::runner::lease::Orders;
use crate::runner::prepare::{self, Prepared, SHIM_WITHIN};
use crate::runner::pump::{Ending, Pump};
use crate::runner::{session, sweep, trace};
use crate::sandbox::container::{self, ContainerState, Inspected, Sandbox};
use crate::sandbox::refusals::client::Counted;
use crate::sandbox::shim_listener::ShimListener;
use crate::traces;

/// Starts of one attempt. Each but the first means that a runner ended meanwhile.
const MOST_STARTS: u32 = 20;

/// What every step of one run needs.
#[derive(Clone, Copy)]
pub(super) struct Drive<'a> {
    pub environment: &'a std::sync::Arc<Environment>,
    pub lease: Lease,
    pub orders: &'a Orders,
    pub here: &'a Here,
}

/// What a drive has on this host.
#[derive(Default)]
pub(super) struct Here {
    /// The attempt whose container it may have made; 0: none.
    attempt: AtomicI32,
    /// Its span, and what continues that elsewhere.
    pub trace: OnceLock<(Span, Option<String>)>,
    /// Threads that work in the run's folder; they go on when the drive is dropped.
    pub threads: TaskTracker,
    /// Counts what its sandbox is refused, where the runtime tells.
    pub counted: OnceLock<Counted>,
    /// What of it `metrics` has: calls that programs try, and others.
    pub measured: [AtomicU64; 2],
    /// Nobody counts any more, and the run's watchers know it.
    pub uncounted: AtomicBool,
}

pub(super) async fn drive(
    environment: &std::sync::Arc<Environment>,
    run: RunRow,
    lease: Lease,
    orders: &Orders,
    former: Option<Uuid>,
) {
    let (id, name, here) = (run.id, run.name.clone(), Here::default());
    let drive = Drive { environment, lease, orders, here: &here };
    let hard = environment.lifecycle.hard();
    let ended = tokio::select! {
        ended = drive.road(run, former) => ended,
        () = orders.lost.cancelled() => Err(RunFailure::LeaseLost),
        () = hard.cancelled() => Err(RunFailure::Stopping),
    };
    // What a run left must not keep it from its end.
    let ended = match ended {
        Err(RunFailure::Database(error)) if !error.is_transient() => {
            tracing::error!(run = %id, name, %error, "runner.run_given_up");
            tokio::select! {
                given_up = drive.give_up(&error) => given_up,
                () = orders.lost.cancelled() => Err(RunFailure::LeaseLost),
                () = hard.cancelled() => Err(RunFailure::Stopping),
            }
        }
        ended => ended,
    };
    match ended {
        Ok(()) => {}
        Err(RunFailure::LeaseLost) => {
            tracing::warn!(run = %id, name, "runner.run_lost");
            metrics().runs.lease_lost();
            tokio::select! {
                () = drive.abandon() => {}
                () = hard.cancelled() => {}
            }
        }
        Err(RunFailure::Stopping) => tracing::info!(run = %id, name, "runner.run_left_for_the_next_start"),
        Err(error) => tracing::error!(run = %id, name, %error, "runner.run_stuck"),
    }
}

/// An attempt whose CLI has ended, or that never came to one.
pub(super) struct Ended {
    pub verdict: Verdict,
    /// The container, if this process made or adopted it.
    pub sandbox: Option<Sandbox>,
}

impl Drive<'_> {
    /// As a part of the trace that the task came with.
    async fn road(&self, run: RunRow, former: Option<Uuid>) -> Result<(), RunFailure> {
        let task = self.task().await?;
        let (span, further) = trace::begin(&run, &task);
        let _ = self.here.trace.set((span.clone(), further));
        self.travel(run, task, former).instrument(span).await
    }

    async fn travel(&self, run: RunRow, task: TaskRow, former: Option<Uuid>) -> Result<(), RunFailure> {
        self.here.attempt.store(run.attempt, Ordering::Relaxed);
        // Not even where a former self of this one took it from another, which is written as lost, and died.
        let is_mine = former == Some(self.environment.id)
            && (run.state() == RunState::Harvesting
                || noted(&run).is_none_or(|verdict| verdict.state != RunState::Lost));
        let (run, ended) = match run.state() {
            RunState::Queued => {
                metrics().runs.took(Phase::Queue, since(run.not_before));
                let begun = self
                    .commit(|| db::attempts::begin_attempt(&self.environment.pool, self.lease, &run))
                    .await?;
                let Some(run) = begun else {
                    let verdict = Verdict::new(RunState::Cancelled, "cancelled before it began");
                    return self.conclude(&run, &task, Ended { verdict, sandbox: None }).await;
                };
                self.here.attempt.store(run.attempt, Ordering::Relaxed);
                let ended = self.begin(&run, &task).await?;
                (run, ended)
            }
            _ if !is_mine => {
                let verdict = written(&run);
                (run, Ended { verdict, sandbox: None })
            }
            // Certainly not begun: start over.
            RunState::Preparing => {
                let ended = self.begin_again(&run, &task).await?;
                (run, ended)
            }
            RunState::Running if !self.was_given_its_job(run.id)? => {
                let message = "its runner was started anew before the CLI began; starting over";
                self.notice(&run, EventKind::Warning, message).await?;
                let ended = self.begin_again(&run, &task).await?;
                (run, ended)
            }
            RunState::Running => {
                let ended = self.resume(&run).await?;
                (run, ended)
            }
            _ if self.starts().await? > MOST_STARTS => {
                let ended = self.start_no_more(&run).await?;
                (run, ended)
            }
            _ => {
                let verdict = written(&run);
                (run, Ended { verdict, sandbox: None })
            }
        };
        self.conclude(&run, &task, ended).instrument(traces::step("harvest")).await
    }

    async fn task(&self) -> Result<TaskRow, RunFailure> {
        let find = || db::tasks::find(&self.environment.pool, &Visible::EVERYTHING, self.lease.task);
        let row = self.environment.patiently(find).await?;
        row.ok_or_else(|| RunFailure::Database(DbError::LeaseLost(self.lease.run)))
    }

    /// A write that watchers are told of.
    pub(super) async fn commit<T, F>(&self, call: impl FnMut() -> F) -> Result<T, RunFailure>
    where
        F: Future<Output = Result<T, DbError>>,
    {
        let done = self.environment.patiently(call).await?;
        self.environment.notifier.task_has_events(self.lease.task);
        Ok(done)
    }

    /// How often this attempt was started, with this time.
    async fn starts(&self) -> Result<u32, RunFailure> {
        self.environment.patiently(|| db::starts::again(&self.environment.pool, self.lease)).await
    }

    /// Starts an attempt over that has not begun; not for ever, for it may be what ended its runner.
    async fn begin_again(&self, run: &RunRow, task: &TaskRow) -> Result<Ended, RunFailure> {
        self.remove_containers(run.id).await?;
        if self.starts().await? > MOST_STARTS {
            return self.start_no_more(run).await;
        }
        self.begin(run, task).await
    }

    /// Its files go unread: they may be what ended the runner.
    async fn start_no_more(&self, run: &RunRow) -> Result<Ended, RunFailure> {
        self.remove_containers(run.id).await?;
        prepare::discard(self.environment, run.id).await;
        let why = format!(
            "its runner ended {MOST_STARTS} times while it was at this attempt; it is not started again"
        );
        Ok(Ended { verdict: Verdict::new(RunState::SandboxError, why), sandbox: None })
    }

    /// From nothing to the CLI's end. Only a lost lease, a stop or a broken database is an error: all else is a verdict.
    async fn begin(&self, run: &RunRow, task: &TaskRow) -> Result<Ended, RunFailure> {
        let began = Utc::now();
        let prepared = match prepare::prepare(*self, run, task).instrument(traces::step("prepare")).await {
            Ok(prepared) => prepared,
            Err(failure) => return Ok(Ended { verdict: verdict_of(failure)?, sandbox: None }),
        };
        metrics().runs.took(Phase::Prepare, since(began));
        metrics().runs.quarantined(prepared.facts.quarantined.len());
        for warning in &prepared.warnings {
            self.notice(run, EventKind::Warning, warning).await?;
        }
        if self.orders.cancel.is_cancelled() {
            let verdict = Verdict::new(RunState::Cancelled, "cancelled before the CLI began");
            return Ok(Ended { verdict, sandbox: Some(prepared.sandbox) });
        }
        let Prepared { sandbox, spec, listener, job, facts, counted, .. } = prepared;
        if let Some(counted) = counted {
            // A drive makes one sandbox.
            let _ = self.here.counted.set(counted);
        }
        let (session, started) = (job.session.clone(), Utc::now());
        let start = async {
            let facts = SandboxFacts {
                container: sandbox.id(),
                base_commit: facts.base_commit.as_deref(),
                worktree: facts.worktree,
                record: &facts.record,
                quarantined: &facts.quarantined,
            };
            // Side by side: the engine takes far longer, and no job is handed out before both are done.
            let running =
                self.commit(|| db::attempts::set_running(&self.environment.pool, self.lease, run, &facts));
            let started = async { sandbox.start().await.map_err(RunFailure::from) };
            tokio::try_join!(running, started)?;
            self.require_handover().await?;
            tracing::info!("runner.sandbox_started");
            let (mut link, found) = tokio::select! {
                link = listener.accept_first(SHIM_WITHIN) => link?,
                ended = sandbox.wait() => {
                    let status = ended?.exit_code;
                    let why = format!("the sandbox ended before the CLI began (status {status})");
                    return Err(RunFailure::Refused(why));
                }
            };
            self.require_containment(run, &spec, found).await?;
            // From here on the CLI may have begun.
            session::write(*self, run.id, &job.session).await?;
            link.give(job).await?;
            Ok(link)
        };
        match start.instrument(traces::step("start")).await {
            Err(failure) => Ok(Ended { verdict: verdict_of(failure)?, sandbox: Some(sandbox) }),
            Ok(link) => {
                let pump = Pump::open(*self, run, &sandbox, session).await?;
                let ending = tokio::select! {
                    ending = pump.run(link).instrument(traces::step("cli")) => ending?,
                    failure = self.keep_refusals(run) => return Err(failure),
                };
                metrics().runs.took(Phase::Run, since(started));
                self.pumped(run, ending, sandbox).await
            }
        }
    }

    /// Takes up a run whose CLI may be at work.
    async fn resume(&self, run: &RunRow) -> Result<Ended, RunFailure> {
        self.notice(run, EventKind::Warning, "its runner was started anew; the run goes on").await?;
        self.take_up_refusals(run).await?;
        // One that was being ended when its runner died is that, however it was found.
        let lost = |why: &str| noted(run).unwrap_or_else(|| Verdict::new(RunState::Lost, why));
        let Some(id) = &run.container_id else {
            return Ok(Ended { verdict: lost("its container is not known"), sandbox: None });
        };
        let sandbox = match Sandbox::adopt(&self.environment.engine, id).await {
            Ok(sandbox) => sandbox,
            Err(error) if error.is_transient() => return Err(error.into()),
            Err(error) => return Ok(Ended { verdict: lost(&error.to_string()), sandbox: None }),
        };
        match sandbox.inspect().await {
            Ok(Inspected { state: ContainerState::Exited, exit_code, oom_killed, .. }) => {
                let status = exit_code.unwrap_or(-1);
                let why = format!("its sandbox ended while no runner was there (status {status})");
                let verdict = if oom_killed { Verdict::new(RunState::OutOfMemory, why) } else { lost(&why) };
                return Ok(Ended { verdict, sandbox: Some(sandbox) });
            }
            Ok(_) => {}
            Err(error) if error.is_transient() => {
                sandbox.leave();
                return Err(error.into());
            }
            Err(error) => return Ok(Ended { verdict: lost(&error.to_string()), sandbox: None }),
        }
        let folder = self.environment.folders.run(run.id);
        let session = match std::fs::read_to_string(session::path(&folder)) {
            Ok(session) => session,
            Err(error) => {
                let verdict = lost(&format!("its session cannot be read: {error}"));
                return Ok(Ended { verdict, sandbox: Some(sandbox) });
            }
        };
        let pump = Pump::open(*self, run, &sandbox, session).await?;
        let ending = tokio::select! {
            ending = pump.resume().instrument(traces::step("cli")) => ending?,
            failure = self.keep_refusals(run) => return Err(failure),
        };
        if let Some(started) = run.cli_started_at {
            metrics().runs.took(Phase::Run, since(started));
        }
        self.pumped(run, ending, sandbox).await
    }

    /// Writes the verdict down, and lets the shim go.
    async fn pumped(&self, run: &RunRow, ending: Ending, sandbox: Sandbox) -> Result<Ended, RunFailure> {
        self.set_harvesting(run, &ending.verdict).await?;
        if let Some(mut link) = ending.link {
            // The container is removed next, whether it hears this or not.
            let _ = link.release().await;
        }
        Ok(Ended { verdict: ending.verdict, sandbox: Some(sandbox) })
    }

    pub(super) async fn set_harvesting(&self, run: &RunRow, verdict: &Verdict) -> Result<(), RunFailure> {
        let value = serde_json::to_value(verdict).expect("plain struct");
        self.commit(|| db::attempts::set_harvesting(&self.environment.pool, self.lease, run, &value)).await
    }

    pub(super) async fn notice(
        &self,
        run: &RunRow,
        kind: EventKind,
        message: &str,
    ) -> Result<(), RunFailure> {
        // It may name what the run has made: a path, a program.
        let mut message = message.to_owned();
        self.environment.known.patterns().redact_text(&mut message);
        self.commit(|| db::attempts::notice(&self.environment.pool, self.lease, run, kind, message.clone()))
            .await
    }

    /// Removes whatever containers a run has, whoever made them.
    pub(super) async fn remove_containers(&self, run: Uuid) -> Result<(), RunFailure> {
        sweep::remove_containers(self.environment, |found| found.run_id == run).await
    }

    /// Somebody else has the run, or it has ended: what this attempt has on this host must neither go on nor stay.
    async fn abandon(&self) {
        let (run, attempt) = (self.lease.run, self.here.attempt.load(Ordering::Relaxed).unsigned_abs());
        self.here.threads.close();
        self.here.threads.wait().await;
        let mine = |found: &container::Found| found.run_id == run && found.attempt == attempt;
        if let Err(error) = sweep::remove_containers(self.environment, mine).await {
            tracing::error!(%run, %error, "runner.container_left_for_the_sweep");
            return;
        }
        self.refusals_are_over().await;
        prepare::discard(self.environment, run).await;
    }

    /// Whether the CLI may have begun: the session is written down just before.
    fn was_given_its_job(&self, run: Uuid) -> Result<bool, RunFailure> {
        let path = session::path(&self.environment.folders.run(run));
        path.try_exists().map_err(RunFailure::io(&path))
    }

    /// Listens in its folder for the run's shim, which has its job.
    pub(super) fn listen(&self, run: Uuid, session: &str) -> Result<ShimListener, RunFailure> {
        let folder = prepare::io_path(&self.environment.folders.run(run));
        Ok(ShimListener::bind_again(&folder, self.environment.user, session)?)
    }

    /// The worktree of a run, if it has one on this host. Blocks.
    pub(super) fn worktree(environment: &Environment, run: Uuid) -> Result<Option<Worktree>, RunFailure> {
        Ok(Worktree::open(&environment.folders.run(run))?)
    }
}

fn since(then: DateTime<Utc>) -> Duration {
    (Utc::now() - then).to_std().unwrap_or_default()
}
