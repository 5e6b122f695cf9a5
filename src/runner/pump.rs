//! Carries one attempt's output from the shim into events, and ends the CLI at its limits.
//!
//! Bytes are acknowledged after their commit, and the database holds their offsets: whoever goes on, here
//! or after a restart, goes on exactly there. While a commit is under way nothing is read, so a slow
//! database slows the CLI and no buffer grows.

use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt as _;
use futures::future::BoxFuture;
use kage_shim::protocol::{Exited, FromShim, Offsets, Stream};
use tokio::time::{Instant, sleep_until};

use crate::db;
use crate::db::attempts::Output;
use crate::db::events::NewEvent;
use crate::db::runs::RunRow;
use crate::domain::event::EventKind;
use crate::domain::run::RunState;
use crate::domain::verdict::{Verdict, limits_met};
use crate::image::manifest::Manifest;
use crate::image::mapped::Meaning;
use crate::image::mapping::{Mapped, Mapping};
use crate::runner::blocks::Blocks;
use crate::runner::disk::DiskWatch;
use crate::runner::drive::Drive;
use crate::runner::failure::RunFailure;
use crate::runner::flow::Flow;
use crate::runner::lines::{Lines, MAX_LINE};
use crate::runner::prepare::idle_secs;
use crate::runner::reconnect;
use crate::runner::redactor::Redactor;
use crate::runner::retry::{self, TAIL_BYTES};
use crate::runner::told::Teller;
use crate::sandbox::container::Sandbox;
use crate::sandbox::shim_link::{LinkError, ShimLink};

/// Output of one commit at most.
const BATCH: usize = 1 << 20;
/// Beyond the grace time, for a shim that was told to end its CLI.
const KILL_MARGIN: Duration = Duration::from_secs(10);

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
    /// What ends the CLI, and when it is to be killed if it has not ended by then.
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
        let now = Instant::now();
        let elapsed = run
            .cli_started_at
            .map_or(Duration::ZERO, |start| (chrono::Utc::now() - start).to_std().unwrap_or_default());
        let limit = Duration::from_secs(u64::from(run.timeout_secs.unsigned_abs()));
        let idle = Duration::from_secs(idle_secs(drive.environment, run));
        let disk = DiskWatch::of(drive, run.id);
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
            cause: None,
            run: run.clone(),
        };
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
            Ok(link) => self.run(link).await,
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
                        Ok(again) => link = again,
                        Err(verdict) => return Ok(self.ending(verdict, None)),
                    }
                }
                Step::Commit => self.commit(&mut link, false).await?,
                Step::Limit(verdict) => self.end(&mut link, verdict).await,
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

    /// Tells the shim to end the CLI; its last output is still taken.
    async fn end(&mut self, link: &mut ShimLink, verdict: Verdict) {
        let grace = Duration::from_secs(self.drive.environment.config.grace_secs);
        self.cause = Some((verdict, Instant::now() + grace + KILL_MARGIN));
        if let Err(error) = link.terminate().await {
            tracing::warn!(run = %self.run.id, %error, "runner.terminate_failed");
        }
    }

    async fn take(&mut self, link: &mut ShimLink, stream: Stream, bytes: &[u8]) -> Result<(), RunFailure> {
        self.idle_at = Instant::now() + self.idle;
        let limit = self.drive.environment.config.limits.output_bytes;
        let before = self.taken(link, bytes.len());
        let room = usize::try_from(limit.saturating_sub(before)).unwrap_or(usize::MAX);
        let kept = &bytes[..bytes.len().min(room)];
        let out = self.redactor.take(stream, kept);
        self.keep(stream, &out);
        self.tail.extend_from_slice(&kept[kept.len().saturating_sub(TAIL_BYTES)..]);
        self.tail.drain(..self.tail.len().saturating_sub(TAIL_BYTES));
        if kept.len() < bytes.len() {
            let over = !matches!(&self.cause, Some((verdict, _)) if verdict.state == RunState::OutputLimit);
            if over {
                let verdict = Verdict::new(
                    RunState::OutputLimit,
                    format!("wrote more than {limit} bytes; the rest is cut"),
                );
                self.end(link, verdict).await;
            }
            // Nothing more is kept: acknowledge, so that the CLI's end is not held up.
            self.commit(link, true).await?;
        }
        Ok(())
    }

    /// What may be stored.
    fn keep(&mut self, stream: Stream, bytes: &[u8]) {
        self.blocks.push(stream, bytes);
        if stream == Stream::Stdout && self.mapping.is_some() {
            self.map(bytes);
        }
    }

    /// What waited for more, when nothing follows.
    fn keep_last(&mut self) {
        for stream in [Stream::Stdout, Stream::Stderr] {
            let rest = self.redactor.last(stream);
            self.keep(stream, &rest);
        }
    }

    /// Bytes of this attempt before the frame that was just received.
    fn taken(&self, link: &ShimLink, frame: usize) -> u64 {
        let received = link.received();
        (received.stdout + received.stderr).saturating_sub(frame as u64)
    }

    fn map(&mut self, bytes: &[u8]) {
        let Some(mapping) = self.mapping.clone() else { return };
        let mut found = Vec::new();
        self.lines.push(bytes, |line| found.push(mapping.map_line(line)));
        for Mapped { events, .. } in found {
            for mut event in events {
                // What a filter makes of a line may show what the line hid.
                event.texts_mut().into_iter().for_each(|text| self.redactor.redact(text));
                let (event, meaning) = self.teller.take(event);
                self.mapped.extend(self.flow.admit(event));
                self.heed(meaning);
            }
        }
    }

    /// A CLI that has said its last word may take so long to exit, and begins anew if it goes on.
    fn heed(&mut self, meaning: Meaning) {
        match meaning {
            Meaning::Nothing => {}
            Meaning::AtWork if self.done_at.is_none() => {}
            Meaning::AtWork | Meaning::Done => self.done_at = Some(Instant::now() + self.after_final),
        }
    }

    /// Commits what there is, then acknowledges it. `last`: also the beginnings of unfinished characters, and
    /// all that the output limit cut off.
    async fn commit(&mut self, link: &mut ShimLink, last: bool) -> Result<(), RunFailure> {
        if last {
            self.keep_last();
        }
        if self.redactor.take_news() {
            let (pool, lease) = (&self.drive.environment.pool, self.drive.lease);
            self.drive.commit(|| db::redactions::of_output(pool, lease, &self.run)).await?;
        }
        let (mut events, ends, position) = self.blocks.take(last);
        events.append(&mut self.mapped);
        if !events.is_empty() {
            let signed = |offset: u64| i64::try_from(offset).unwrap_or(i64::MAX);
            let output = Output {
                events,
                before: (signed(self.committed.stdout), signed(self.committed.stderr)),
                stdout: signed(ends.stdout),
                stderr: signed(ends.stderr),
                total: position,
                cost_usd: self.teller.cost(),
                told: serde_json::to_value(&self.teller.told).ok(),
            };
            let (pool, lease) = (&self.drive.environment.pool, self.drive.lease);
            self.drive.commit(|| db::attempts::append_output(pool, lease, &output)).await?;
            self.committed = ends;
            self.position = position;
            self.teller.stored();
        }
        if let Some(news) = self.flow.news(self.blocks.is_coarse()) {
            self.drive.notice(&self.run, EventKind::Warning, news).await?;
        }
        self.last_commit = Instant::now();
        self.idle_at = self.last_commit + self.idle;
        let limited = matches!(&self.cause, Some((verdict, _)) if verdict.state == RunState::OutputLimit);
        let acknowledged = if last && limited { link.received() } else { self.committed };
        // A link that breaks here is noticed at the next receive; the shim then sends again, and what
        // is committed already is cut off.
        if let Err(error) = link.ack(acknowledged).await {
            tracing::debug!(run = %self.run.id, %error, "runner.ack_failed");
        }
        Ok(())
    }

    async fn exited(mut self, mut link: ShimLink, exited: &Exited) -> Result<Ending, RunFailure> {
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
    fn ending(&self, verdict: Verdict, link: Option<ShimLink>) -> Ending {
        Ending { verdict: Verdict { told: self.teller.told.clone(), ..verdict }, link }
    }

    /// Waits for the shim to come back; else says how the sandbox ended.
    async fn reconnect(&mut self) -> Result<Result<ShimLink, Verdict>, RunFailure> {
        let found =
            reconnect::wait(self.drive, self.run.id, self.sandbox, &self.session, self.committed).await?;
        Ok(found.map_err(|verdict| self.cause.take().map_or(verdict, |(cause, _)| cause)))
    }
}
