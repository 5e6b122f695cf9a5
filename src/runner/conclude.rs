//! The end of an attempt: container gone, changes collected, result written; or another attempt.

use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::json;
use tokio::task::spawn_blocking;
use tokio::time::Instant;
use tracing::Span;

use crate::db;
use crate::db::attempt_ends::{Ending, Harvested};
use crate::db::error::DbError;
use crate::db::results::ResultRow;
use crate::db::runs::RunRow;
use crate::db::tasks::TaskRow;
use crate::domain::event::EventKind;
use crate::domain::judgement::{self, CallWord, Evidence, Work};
use crate::domain::limits::Limits;
use crate::domain::run::RunState;
use crate::domain::verdict::Verdict;
use crate::git::commit::{CommitText, commit_while};
use crate::git::diff::{self, DiffLimits};
use crate::git::error::{GitError, HarvestError};
use crate::git::harvest::{HarvestLimits, harvest};
use crate::git::mirror::Mirror;
use crate::image::manifest::Manifest;
use crate::metrics::metrics;
use crate::metrics::runs::Phase;
use crate::runner::disk;
use crate::runner::drive::{Drive, Ended};
use crate::runner::environment::Environment;
use crate::runner::failure::RunFailure;
use crate::runner::grant::{self, Record};
use crate::runner::harvest_record;
use crate::runner::left_out;
use crate::runner::past_call;
use crate::runner::prepare;
use crate::runner::review;
use crate::runner::secrets;
use crate::sandbox::container::Sandbox;
use crate::sandbox::host_kill;
use crate::wire::run::{FileChange, HarvestFindings};

/// Between tries to remove a container while the engine is away.
const REMOVE_PAUSE: Duration = Duration::from_secs(2);
/// An engine that is away for longer than this does not hold a run's end up.
const LEFT_AFTER: Duration = Duration::from_secs(30);
/// Tries to remove a container before the sweep has to.
const REMOVE_TRIES: usize = 30;

/// Characters of an error, or of a warning: both may name a path, which is an agent's to choose.
const MOST_WORDS: usize = 2000;

/// What came of a harvest.
struct Taken {
    /// None where nothing changed.
    branch: Option<Harvested>,
    findings: HarvestFindings,
    /// Files in which something looks like a secret.
    secrets: Vec<String>,
}

impl Drive<'_> {
    /// Ends the attempt. The worktree is only read once its container is certainly gone.
    pub(super) async fn conclude(
        &self,
        run: &RunRow,
        task: &TaskRow,
        ended: Ended,
    ) -> Result<(), RunFailure> {
        let began = Instant::now();
        let Ended { mut verdict, sandbox } = ended;
        // Found again below, by its label.
        let container = sandbox.map(Sandbox::leave).or_else(|| run.container_id.clone());
        self.remove_all(run, container).await?;
        self.last_refusals(run).await?;
        let manifest: Option<Manifest> = serde_json::from_value(run.manifest.clone()).ok();
        let record = self.record(run, manifest.as_ref()).await?;
        let told = verdict.told.clone();
        let calls: Option<Vec<CallWord>> =
            record.as_ref().map(|record| record.calls.iter().map(past_call::word).collect());
        let evidence = Evidence {
            judge: manifest.as_ref().map(|manifest| manifest.judge).unwrap_or_default(),
            told: &told,
            stopped: record.as_ref().and_then(|record| record.stopped.as_deref()),
            calls: calls.as_deref(),
        };
        verdict = judgement::before_harvest(verdict, evidence);
        if let Some(delay) = self.retry_after(run, task, &mut verdict) {
            return self.again(run, &verdict, delay).await;
        }
        let harvest = || self.harvest(run, task, manifest.clone());
        let taken = match self.when_there_is_room(run, harvest).await {
            Ok(taken) => taken,
            Err(failure @ (RunFailure::LeaseLost | RunFailure::Stopping | RunFailure::Database(_))) => {
                return Err(failure);
            }
            Err(failure) => {
                self.notice(run, EventKind::Error, &format!("its changes could not be collected: {failure}"))
                    .await?;
                verdict = not_collected(verdict, &failure);
                Taken { branch: None, findings: HarvestFindings::default(), secrets: Vec::new() }
            }
        };
        if !taken.secrets.is_empty() {
            let pool = &self.environment.pool;
            self.commit(|| db::redactions::in_branch(pool, self.lease, run, &taken.secrets)).await?;
        }
        for warning in &taken.findings.warnings {
            self.notice(run, EventKind::Warning, warning).await?;
        }
        let work = Work { changed: taken.branch.is_some(), may_change_nothing: run.allow_no_changes };
        verdict = judgement::after_harvest(verdict, evidence, work);
        if !work.changed
            && let Some(delay) = self.retry_after(run, task, &mut verdict)
        {
            return self.again(run, &verdict, delay).await;
        }
        let (pool, ending) = (&self.environment.pool, ending_of(&verdict));
        let (branch, findings) = (taken.branch.as_ref(), &taken.findings);
        self.environment.leases.ends(self.lease);
        self.commit(|| db::attempt_ends::finish(pool, self.lease, run, &ending, branch, findings)).await?;
        metrics().runs.took(Phase::Harvest, began.elapsed());
        self.has_ended(ending.state);
        prepare::discard(self.environment, run.id).await;
        Ok(())
    }

    fn has_ended(&self, state: RunState) {
        metrics().runs.ended(state.as_str());
        tracing::info!(state = state.as_str(), "runner.run_ended");
        if let Some((span, _)) = self.here.trace.get() {
            span.record("run.state", state.as_str());
        }
    }

    /// Ends a run that the database refuses to take further, now and at every later try: nothing of what it left is
    /// written down, only why.
    pub(super) async fn give_up(&self, why: &DbError) -> Result<(), RunFailure> {
        let find = || async {
            let mut connection = self.environment.pool.acquire().await?;
            db::runs::find(&mut connection, self.lease.run).await
        };
        let found = self.environment.patiently(find).await?;
        let run = found.ok_or_else(|| RunFailure::Database(DbError::LeaseLost(self.lease.run)))?;
        self.remove_all(&run, run.container_id.clone()).await?;
        // The text of a database's error can hold what it refused.
        let why: String = why.to_string().chars().filter(|char| *char != '\0').collect();
        let error = format!("its end could not be written down: {why}");
        let verdict =
            Verdict { decided_by: "the database".to_owned(), ..Verdict::new(RunState::SandboxError, error) };
        let (pool, ending) = (&self.environment.pool, ending_of(&verdict));
        let nothing = HarvestFindings::default();
        self.environment.leases.ends(self.lease);
        self.commit(|| db::attempt_ends::finish(pool, self.lease, &run, &ending, None, &nothing)).await?;
        self.has_ended(ending.state);
        prepare::discard(self.environment, run.id).await;
        Ok(())
    }

    /// The gateway's record of an attempt that asked a model; its grant is closed then.
    async fn record(&self, run: &RunRow, manifest: Option<&Manifest>) -> Result<Option<Record>, RunFailure> {
        if manifest.is_none_or(|manifest| manifest.model.is_none()) {
            return Ok(None);
        }
        let record = grant::close(*self, run).await?;
        if record.unsettled {
            let message = "the model gateway has not settled this run's calls; its cost may be incomplete";
            self.notice(run, EventKind::Warning, message).await?;
        }
        Ok(Some(record))
    }

    /// Removes the attempt's container. Where the engine does not answer, its processes are ended without it; once
    /// there is certainly none, a container that the engine will not give up is left to the sweep.
    async fn remove_all(&self, run: &RunRow, container: Option<String>) -> Result<(), RunFailure> {
        let began = Instant::now();
        for _ in 1..REMOVE_TRIES {
            let error = match self.remove_containers(run.id).await {
                Ok(()) => return Ok(()),
                Err(error) => error,
            };
            tracing::warn!(run = %run.id, %error, "runner.container_not_removed");
            if let Some(id) = container.clone() {
                let ended = spawn_blocking(move || host_kill::end(&id)).await.unwrap_or(false);
                if ended && began.elapsed() > LEFT_AFTER {
                    let message = format!(
                        "its container could not be removed ({error}); its processes are ended, and it is left to the sweep"
                    );
                    self.notice(run, EventKind::Warning, &message).await?;
                    self.environment.sweep.notify_one();
                    return Ok(());
                }
            }
            tokio::time::sleep(REMOVE_PAUSE).await;
        }
        self.remove_containers(run.id).await
    }

    async fn again(&self, run: &RunRow, verdict: &Verdict, delay: Duration) -> Result<(), RunFailure> {
        prepare::discard(self.environment, run.id).await;
        let seconds = u32::try_from(delay.as_secs()).unwrap_or(u32::MAX);
        let (pool, ending) = (&self.environment.pool, ending_of(verdict));
        self.environment.leases.ends(self.lease);
        self.commit(|| db::attempt_ends::requeue(pool, self.lease, run, &ending, seconds)).await?;
        metrics().runs.retried();
        let environment = Arc::clone(self.environment);
        self.environment.lifecycle.spawn(async move {
            tokio::select! {
                () = environment.lifecycle.soft().cancelled() => {}
                () = tokio::time::sleep(delay) => environment.wake.notify_one(),
            }
        });
        Ok(())
    }

    async fn harvest(
        &self,
        run: &RunRow,
        task: &TaskRow,
        manifest: Option<Manifest>,
    ) -> Result<Taken, RunFailure> {
        let environment = Arc::clone(self.environment);
        let (run, task) = (run.clone(), task.clone());
        let span = Span::current();
        let blocking = self.here.threads.spawn_blocking(move || {
            let _in = span.enter();
            take(&environment, &run, &task, manifest.as_ref())
        });
        blocking
            .await
            .unwrap_or_else(|error| Err(RunFailure::Refused(format!("the harvest failed: {error}"))))
    }
}

/// What is stored of it.
fn ending_of(verdict: &Verdict) -> Ending {
    Ending {
        state: verdict.state,
        error: verdict.error.as_deref().map(cut),
        exit_code: verdict.exit_code,
        decided_by: verdict.decided_by.clone(),
    }
}

fn cut(text: &str) -> String {
    match text.char_indices().nth(MOST_WORDS) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

/// A success whose changes are lost is none. For want of room another attempt may do better: runs end, and make some.
fn not_collected(verdict: Verdict, failure: &RunFailure) -> Verdict {
    match verdict.state {
        RunState::Succeeded if matches!(failure, RunFailure::CancelledWithoutRoom) => Verdict {
            exit_code: verdict.exit_code,
            told: verdict.told,
            ..Verdict::new(RunState::Cancelled, failure.to_string())
        },
        RunState::Succeeded => Verdict {
            state: if matches!(failure, RunFailure::Limit(_)) {
                RunState::Failed
            } else {
                RunState::SandboxError
            },
            error: Some(format!("its changes could not be collected: {failure}")),
            decided_by: "the harvest".to_owned(),
            transient: failure.is_transient(),
            ..verdict
        },
        _ => verdict,
    }
}

/// Reads the worktree and writes the branch. Blocks; may be repeated after a crash.
fn take(
    environment: &Environment,
    run: &RunRow,
    task: &TaskRow,
    manifest: Option<&Manifest>,
) -> Result<Taken, RunFailure> {
    let Some(worktree) = Drive::worktree(environment, run.id)? else {
        return Ok(Taken { branch: None, findings: HarvestFindings::default(), secrets: Vec::new() });
    };
    worktree.unmount()?;
    disk::settle(&environment.folders.run(run.id))?;
    let mirror = Mirror::open(&environment.folders.mirror(&task.repository)?)?;
    let mut found = harvest(&mirror, &worktree, &harvest_limits(&environment.config.limits))?;
    let mut findings = HarvestFindings {
        warnings: left_out::warnings(&found),
        rejected: left_out::rejected(&found),
        flagged: Vec::new(),
    };
    if !found.changed {
        return Ok(Taken { branch: None, findings, secrets: Vec::new() });
    }
    let branch = format!("task-{}-{}", task.id, run.name);
    let message = message(run, task);
    let text = CommitText {
        message: &message,
        author: "kage-bunshin",
        email: "kage-bunshin@localhost",
        time: chrono::Utc::now().timestamp(),
    };
    let base = worktree.commit();
    let patterns = environment.known.patterns();
    let compare = |id| {
        let changes = diff::changes(&mirror, base, id, &DiffLimits::default())?;
        let secrets = secrets::in_files(&mirror, id, &changes.files, &patterns)?;
        Ok::<_, GitError>((changes, secrets))
    };
    let (id, compared) = commit_while(&mirror, base, &mut found, &branch, &text, compare)?;
    let (diff::Changes { files, patch }, secrets) = compared?;
    let flagged = review::flagged(&files, manifest);
    findings.warnings.splice(0..0, [secrets.warnings, review::warnings(&flagged)].concat());
    findings.flagged = review::listed(&flagged);
    let record = harvest_record::of(&branch, id, &files, &patch, &findings);
    let files: Vec<FileChange> = files.into_iter().map(file_change).collect();
    let signed = |number: u64| i64::try_from(number).unwrap_or(i64::MAX);
    let result = ResultRow {
        patch: patch.bytes,
        patch_truncated: patch.truncated,
        files: json!(files),
        warnings: json!(findings),
    };
    let harvested = Harvested {
        branch,
        commit: id.to_string(),
        files_changed: i32::try_from(files.len()).unwrap_or(i32::MAX),
        insertions: signed(files.iter().map(|file| file.insertions).sum()),
        deletions: signed(files.iter().map(|file| file.deletions).sum()),
        paths: db::results::listed(files.into_iter().map(|file| file.path).collect()),
        flagged: flagged.into_iter().take(review::LISTED).map(|it| it.path).collect(),
        result,
        record,
    };
    Ok(Taken { branch: Some(harvested), findings, secrets: secrets.paths })
}

fn harvest_limits(limits: &Limits) -> HarvestLimits {
    HarvestLimits {
        files: limits.result_files,
        bytes: limits.result_bytes,
        file_bytes: limits.result_file_bytes,
        ..HarvestLimits::default()
    }
}

fn message(run: &RunRow, task: &TaskRow) -> String {
    format!(
        "Apply the work of {name} on task {task}\n\nTask: {task}\nRun: {run}\nCLI: {cli}\nAttempt: {attempt}\nImage: {image}\n",
        name = run.name,
        task = task.id,
        run = run.id,
        cli = run.cli_name,
        attempt = run.attempt,
        image = run.image_digest,
    )
}

fn file_change(file: diff::FileChange) -> FileChange {
    let mode = |mode: u32| (mode != 0).then(|| format!("{mode:06o}"));
    // What JSON and Postgres cannot hold goes in base64 beside.
    let plain = std::str::from_utf8(&file.path).is_ok_and(|path| !path.contains('\0'));
    FileChange {
        path: file.path.to_string(),
        path_base64: (!plain).then(|| STANDARD.encode(&*file.path)),
        old_path: file.old_path.map(|path| path.to_string()),
        status: file.status.as_str().to_owned(),
        old_mode: mode(file.old_mode),
        new_mode: mode(file.new_mode),
        insertions: file.insertions,
        deletions: file.deletions,
        binary: file.binary,
        not_compared: !file.compared,
        size: file.size,
    }
}

impl From<HarvestError> for RunFailure {
    fn from(error: HarvestError) -> Self {
        match error {
            HarvestError::Limit { .. } => Self::Limit(error.to_string()),
            HarvestError::Git(error) => Self::Git(error),
            other => Self::Refused(other.to_string()),
        }
    }
}
