//! Carries one attempt's output from the shim into events, and ends the CLI at its limits.
//!
//!   output   from frames to commits        end   the CLI is told to end, and has ended
//!
//! Bytes are acknowledged after their commit, and the database holds their offsets: whoever goes on, here
//! or after a restart, goes on exactly there. While a commit is under way nothing is read, so a slow
//! database slows the CLI and no buffer grows.

use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt as _;
use futures::future::BoxFuture;
use kage_shim::protocol::{FromShim, Offsets};
use tokio::time::{Instant, sleep_until};

use crate::db;
use crate::db::events::NewEvent;
use crate::db::runs::RunRow;
use crate::domain::run::RunState;
use crate::domain::verdict::Verdict;
use crate::image::manifest::Manifest;
use crate::image::mapping::Mapping;
use crate::runner::blocks::Blocks;
use crate::runner::disk::DiskWatch;
use crate::runner::drive::Drive;
use crate::runner::failure::{RunFailure, noted};
use crate::runner::flow::Flow;
use crate::runner::lines::{Lines, MAX_LINE};
use crate::runner::prepare::idle_secs;
use crate::runner::reconnect;
use crate::runner::redactor::Redactor;
use crate::runner::retry;
use crate::runner::told::Teller;
use crate::sandbox::container::Sandbox;
use crate::sandbox::shim_link::{LinkError, ShimLink};

mod end;
mod output;

/// Output of one commit at most.
const BATCH: usize = 1 << 20;
/// What the pump ends with.
pub(super) struct Ending {
    pub verdict: Verdict,
    /// To release the shim once the verdict is written down.
    pub link: Option<ShimLink>,
}

pub(super) struct Pump<'a> {
    drive: Drive<'a>,
    run: RunRow,
    sandbox: &'a Sandbox,
    session: String,
    mapping: Option<Mapping>,
    redactor: Redactor,
    blocks: Blocks,
    lines: Lines,
    /// Read from lines, to be committed with them.
    mapped: Vec<NewEvent>,
    flow: Flow,
    /// What is in the database.
    committed: Offsets,
    position: i64,
    teller: Teller,
    /// Beyond a final event.
    after_final: Duration,
    /// When a CLI that has said its last word is ended.
    done_at: Option<Instant>,
    /// The last bytes of both streams.
    tail: Vec<u8>,
    disk: DiskWatch,
    /// Ends when the worktree is over a limit that the kernel does not hold.
    over: BoxFuture<'static, Verdict>,
    wall: Instant,
    idle: Duration,
    idle_at: Instant,
    last_commit: Instant,
    /// Something was over the output limit, and is not kept.
    cut: bool,
    /// What ends the CLI, and when it is to be killed if it has not ended by then. The first cause stays.
    cause: Option<(Verdict, Instant)>,
}

/// What happened first.
enum Step {
    Frame(Result<FromShim, LinkError>),
    Commit,
    Limit(Verdict),
    Kill,
}

impl<'a> Pump<'a> {
    /// Begins where the run's row says that the committed output ends.
    pub async fn open(
        drive: Drive<'a>,
        run: &RunRow,
        sandbox: &'a Sandbox,
        session: String,
    ) -> Result<Self, RunFailure> {
        let manifest: Option<Manifest> = serde_json::from_value(run.manifest.clone()).ok();
        let elapsed = match run.cli_started_at {
            None => Duration::ZERO,
            Some(_) => {
                let pool = &drive.environment.pool;
                drive.environment.patiently(|| db::attempts::running_for(pool, run.id)).await?
            }
        };
        let now = Instant::now();
        let limit = Duration::from_secs(u64::from(run.timeout_secs.unsigned_abs()));
        let idle = Duration::from_secs(idle_secs(drive.environment, run));
        let disk = DiskWatch::of(drive, run.id);
        // A runner before us may have told the CLI to end, or have died just before it could.
        let cause = noted(run);
        let mut pump = Self {
            over: disk.clone().over().boxed(),
            disk,
            drive,
            sandbox,
            session,
            teller: Teller::new(run, manifest.as_ref().is_none_or(|manifest| manifest.model.is_none())),
            after_final: Duration::from_secs(u64::from(
                manifest.as_ref().map_or(0, |manifest| manifest.after_final_secs),
            )),
            done_at: None,
            mapping: manifest.and_then(|manifest| manifest.mapping()),
            redactor: Redactor::new(Arc::clone(&drive.environment.known)),
            blocks: Blocks::new(run.attempt, Offsets::default(), 0),
            lines: Lines::default(),
            mapped: Vec::new(),
            flow: Flow::default(),
            committed: Offsets {
                stdout: run.stdout_offset.unsigned_abs(),
                stderr: run.stderr_offset.unsigned_abs(),
            },
            position: run.output_bytes,
            tail: Vec::new(),
            wall: now + limit.saturating_sub(elapsed),
            idle,
            idle_at: now + idle,
            last_commit: now,
            cut: false,
            cause: cause.map(|verdict| (verdict, end::kill_at(drive))),
            run: run.clone(),
        };
        if pump.committed != Offsets::default() {
            // What the runner before us had in its head.
            let pool = &drive.environment.pool;
            let read =
                || db::events::last_output(pool, (run.task_id, run.id), run.attempt, retry::TAIL_BYTES);
            pump.tail = drive.environment.patiently(read).await?;
        }
        pump.rewind().await?;
        Ok(pump)
    }

    /// Forgets what is not committed: the shim sends it again.
    async fn rewind(&mut self) -> Result<(), RunFailure> {
        self.blocks = self.blocks.anew(self.committed, self.position);
        self.mapped.clear();
        self.redactor.rewind();
        self.teller.rewind();
        let partial = if self.mapping.is_some() && self.committed.stdout > 0 {
            let pool = &self.drive.environment.pool;
            let read = || {
                db::events::partial_line(pool, (self.run.task_id, self.run.id), self.run.attempt, MAX_LINE)
            };
            self.drive.environment.patiently(read).await?
        } else {
            Vec::new()
        };
        self.lines = Lines::resume(partial);
        Ok(())
    }

    /// As [`Pump::run`], for a CLI that another process started.
    pub async fn resume(mut self) -> Result<Ending, RunFailure> {
        match self.reconnect().await? {
            Ok(mut link) => {
                self.terminate_if_ending(&mut link).await;
                self.run(link).await
            }
            Err(verdict) => Ok(self.ending(verdict, None)),
        }
    }

    /// Until the CLI has ended, one way or another.
    pub async fn run(mut self, mut link: ShimLink) -> Result<Ending, RunFailure> {
        loop {
            match self.step(&mut link).await {
                Step::Frame(Ok(FromShim::Output { stream, bytes, .. })) => {
                    self.take(&mut link, stream, &bytes).await?
                }
                Step::Frame(Ok(FromShim::Exited(exited))) => return self.exited(link, &exited).await,
                Step::Frame(Ok(FromShim::Started | FromShim::Hello(_))) => {}
                Step::Frame(Err(error)) => {
                    tracing::warn!(run = %self.run.id, %error, "runner.link_broke");
                    self.rewind().await?;
                    match self.reconnect().await? {
                        Ok(again) => {
                            link = again;
                            self.terminate_if_ending(&mut link).await;
                        }
                        Err(verdict) => return Ok(self.ending(verdict, None)),
                    }
                }
                Step::Commit => self.commit(&mut link, false).await?,
                Step::Limit(verdict) => self.end(&mut link, verdict).await?,
                Step::Kill => {
                    tracing::warn!(run = %self.run.id, "runner.cli_outlived_its_grace");
                    self.commit(&mut link, true).await?;
                    let verdict = self.cause.take().map(|(verdict, _)| verdict);
                    let verdict = verdict.unwrap_or_else(|| Verdict::new(RunState::SandboxError, "killed"));
                    return Ok(self.ending(verdict, None));
                }
            }
        }
    }

    /// Waits for the next thing. What the shim has said goes first, so that a batch fills before it is committed.
    async fn step(&mut self, link: &mut ShimLink) -> Step {
        let waiting = self.blocks.len() > 0 || !self.mapped.is_empty();
        let ending = self.cause.is_some();
        let done_at = self.done_at.unwrap_or(self.wall);
        let kill_at = self.cause.as_ref().map_or_else(Instant::now, |(_, at)| *at);
        tokio::select! {
            biased;
            () = sleep_until(kill_at), if ending => Step::Kill,
            () = self.drive.orders.cancel.cancelled(), if !ending => {
                Step::Limit(Verdict::new(RunState::Cancelled, "cancelled by a client"))
            }
            reason = self.drive.orders.stop.given(), if !ending => {
                Step::Limit(Verdict::budget_exhausted(reason))
            }
            verdict = &mut self.over, if !ending => Step::Limit(verdict),
            () = sleep_until(self.wall), if !ending => {
                let seconds = self.run.timeout_secs;
                Step::Limit(Verdict::new(RunState::TimedOut, format!("over its wall-clock limit of {seconds} s")))
            }
            frame = link.recv(), if self.blocks.len() < BATCH => Step::Frame(frame),
            () = sleep_until(self.last_commit + self.blocks.pause()), if waiting => Step::Commit,
            () = sleep_until(done_at), if !ending && self.done_at.is_some() => Step::Limit(Verdict::done()),
            () = sleep_until(self.idle_at), if !ending => {
                let seconds = self.idle.as_secs();
                Step::Limit(Verdict::new(RunState::IdleTimeout, format!("wrote nothing for {seconds} s")))
            }
        }
    }

    /// Waits for the shim to come back; else says how the sandbox ended.
    async fn reconnect(&mut self) -> Result<Result<ShimLink, Verdict>, RunFailure> {
        let found =
            reconnect::wait(self.drive, self.run.id, self.sandbox, &self.session, self.committed).await?;
        Ok(found.map_err(|verdict| self.cause.take().map_or(verdict, |(cause, _)| cause)))
    }
}
