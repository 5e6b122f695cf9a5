//! Everything that an attempt needs before its CLI can start: base, worktree, run folder, container.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use git2::Oid;
use kage_shim::protocol::{Bridge, Job, JobFile, JobLimits};
use serde_json::Value;
use tokio::task::spawn_blocking;
use tokio::time::Instant;
use tracing::Span;

use crate::config::runner::{RunnerConfig, WorktreeMode};
use crate::db;
use crate::db::error::DbError;
use crate::db::repositories::RepositoryRow;
use crate::db::runs::RunRow;
use crate::db::tasks::TaskRow;
use crate::db::visible::Visible;
use crate::domain::limits::{Enforcement, Limits};
use crate::domain::model_name::ModelName;
use crate::domain::name::Name;
use crate::domain::prompt;
use crate::git::base::{CheckoutLimits, Settings};
use crate::git::mirror::Mirror;
use crate::git::worktree::{Layer, Mode, Worktree};
use crate::image::launch::Launch;
use crate::image::manifest::Manifest;
use crate::image::template::{GATEWAY_PORT, PROMPT_FILE};
use crate::runner::drive::Drive;
use crate::runner::environment::Environment;
use crate::runner::failure::RunFailure;
use crate::runner::grant;
use crate::runner::lines::MAX_LINE;
use crate::runner::quarantine::{self, Quarantine};
use crate::runner::repositories;
use crate::runner::session;
use crate::sandbox::container::Sandbox;
use crate::sandbox::error::SandboxError;
use crate::sandbox::profile::{self, MODEL_SOCKET, WORKSPACE};
use crate::sandbox::refusals::client::Counted;
use crate::sandbox::seccomp::SeccompProfile;
use crate::sandbox::shim_link::new_session;
use crate::sandbox::shim_listener::ShimListener;
use crate::sandbox::spec::Spec;
use crate::wire::quarantine::Quarantined;

/// How long a started sandbox's shim may take to connect.
pub(super) const SHIM_WITHIN: Duration = Duration::from_secs(60);

/// How long an engine may take to finish, or give up, a call whose caller was killed.
const NAME_FREE_WITHIN: Duration = Duration::from_secs(60);
const NAME_PAUSE: Duration = Duration::from_millis(200);

/// What the shim allows beyond the runner's own wall clock: it is the second to strike.
const SHIM_MARGIN_SECS: u64 = 30;

/// Unacknowledged output that the shim keeps, in bytes.
const SHIM_BUFFER: u64 = 8 << 20;

/// Ready to be started; no CLI runs yet.
pub(super) struct Prepared {
    pub sandbox: Sandbox,
    pub spec: Spec,
    pub listener: ShimListener,
    pub job: Job,
    pub facts: Facts,
    /// `None`: the runtime does not tell of refused calls.
    pub counted: Option<Counted>,
    /// What the run's watchers should know.
    pub warnings: Vec<String>,
}

/// What the record says of the attempt.
pub(super) struct Facts {
    pub base_commit: Option<String>,
    pub worktree: &'static str,
    pub record: Value,
    pub quarantined: Vec<Quarantined>,
}

/// The part of a run's folder that its sandbox sees.
pub(super) fn io_path(folder: &Path) -> PathBuf {
    folder.join("io")
}

pub(super) async fn prepare(drive: Drive<'_>, run: &RunRow, task: &TaskRow) -> Result<Prepared, RunFailure> {
    let environment = drive.environment;
    let manifest: Manifest = serde_json::from_value(run.manifest.clone())
        .map_err(|error| RunFailure::Refused(format!("the image's manifest is broken: {error}")))?;
    let runtime =
        environment.runtimes.choose(run.runtime.as_deref(), manifest.runtime.as_ref().map(Name::as_str))?;
    let folder = environment.folders.run(run.id);
    // An attempt without it has not begun.
    let path = session::path(&folder);
    match std::fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(RunFailure::io(&path)(error)),
        _ => {}
    }
    if let Some(access) = &manifest.model {
        // The gateway's work goes on beside ours.
        grant::want(drive, run, access).await?;
    }
    let repository = repository(environment, &task.repository).await?;
    let (worktree, quarantine) = worktree(drive, run, task, repository, &manifest).await?;

    let session = new_session();
    let listener = ShimListener::bind(&io_path(&folder), environment.user)?;

    let model = match &manifest.model {
        Some(_) => Some(grant::opened(drive, run).await?),
        None => None,
    };
    let spec = spec(environment, run, &manifest, &worktree, runtime)?;
    let reports = spec.runtime.as_deref().is_some_and(|runtime| environment.runtimes.reports(runtime));
    let (counted, seccomp) = match environment.keeper.as_ref().filter(|_| reports) {
        Some(keeper) => {
            let (counted, seccomp) = keeper.expect(attempt_name(run)).await?;
            (Some(counted), seccomp)
        }
        None => (None, environment.seccomp.clone()),
    };
    let sandbox = create(drive, run, &spec, &seccomp).await?;
    let warning = quarantine.warning(&task.repository);
    let facts = Facts {
        base_commit: worktree.commit().map(|commit| commit.to_string()),
        worktree: if worktree.layer() == Layer::Overlay { "overlay" } else { "copy" },
        record: record(run, &spec, &seccomp),
        quarantined: quarantine.record,
    };
    let fallback =
        worktree.fallback().map(|why| format!("the worktree is a plain copy, not an overlay: {why}"));
    let warnings = warning.into_iter().chain(fallback).collect();
    let launch = launch(run, task, &manifest, model.as_ref())?;
    let job = job(environment, run, launch, &spec, session);
    Ok(Prepared { sandbox, spec, listener, job, facts, counted, warnings })
}

/// The sandbox's own record, and the limits that are not the sandbox's but the run's.
fn record(run: &RunRow, spec: &Spec, seccomp: &SeccompProfile) -> Value {
    let mut record = profile::record(spec, seccomp);
    for (name, value) in
        [("wall_secs", u64::from(run.timeout_secs.unsigned_abs())), ("line_bytes", MAX_LINE as u64)]
    {
        record["limits"][name] = value.into();
        record["held"][name] = serde_json::json!(Enforcement::Hard);
    }
    record
}

/// What the keeper of refused calls knows an attempt by.
pub(super) fn attempt_name(run: &RunRow) -> String {
    format!("{}/{}", run.id, run.attempt)
}

/// Makes the container. Its name may be taken by this very attempt: the engine carries out a call whose caller was
/// killed, and for a while it keeps the name without showing the container.
async fn create(
    drive: Drive<'_>,
    run: &RunRow,
    spec: &Spec,
    seccomp: &SeccompProfile,
) -> Result<Sandbox, RunFailure> {
    let environment = drive.environment;
    let give_up = Instant::now() + NAME_FREE_WITHIN;
    loop {
        match Sandbox::create(&environment.engine, spec, seccomp).await {
            Err(SandboxError::NameTaken { .. }) if Instant::now() < give_up => {
                drive.remove_containers(run.id).await?;
                tokio::time::sleep(NAME_PAUSE).await;
            }
            made => return Ok(made?),
        }
    }
}

async fn repository(environment: &Environment, name: &str) -> Result<RepositoryRow, RunFailure> {
    let find = || async {
        let mut connection = environment.pool.acquire().await?;
        db::repositories::find(&mut connection, &Visible::EVERYTHING, name).await
    };
    let row = environment.patiently(find).await?;
    row.ok_or_else(|| RunFailure::Refused(format!("repository {name:?} was removed")))
}

async fn worktree(
    drive: Drive<'_>,
    run: &RunRow,
    task: &TaskRow,
    repository: RepositoryRow,
    manifest: &Manifest,
) -> Result<(Worktree, Quarantine), RunFailure> {
    let environment = Arc::clone(drive.environment);
    let name = repository.name.clone();
    let approved = environment.patiently(|| db::quarantine::approved(&environment.pool, &name)).await?;
    let rules = quarantine::rules(manifest);
    let (run, base_commit, revision) = (run.id, run.base_commit.clone(), task.base_revision.clone());
    let span = Span::current();
    let blocking =
        drive.here.threads.spawn_blocking(move || -> Result<(Worktree, Quarantine), RunFailure> {
            let _in = span.enter();
            let (mirror, commit) =
                base(&environment, &repository, base_commit.as_deref(), revision.as_deref())?;
            let named =
                revision.filter(|revision| repository.refs().is_ok_and(|refs| refs.contains_key(revision)));
            let found = match commit {
                Some(commit) => environment.scanner.findings(&mirror, commit, &rules)?,
                None => Arc::default(),
            };
            let quarantine = Quarantine::new(&found, &approved);
            let settings = Settings {
                history_depth: environment.config.history,
                owner: environment.file_owner(),
                branch: named.or(repository.default_branch),
                hidden: quarantine.hidden.clone(),
                limits: checkout_limits(&environment.config),
            };
            let base = environment.bases.acquire(&mirror, commit, &settings)?;
            let mode = match environment.config.worktree {
                WorktreeMode::Auto => Mode::Auto,
                WorktreeMode::Overlay => Mode::Overlay,
                WorktreeMode::Copy => Mode::Copy,
            };
            let folder = environment.folders.run(run);
            environment.disk.provide(&folder)?;
            Ok((Worktree::create(&folder, &base, mode)?, quarantine))
        });
    let (worktree, quarantine) = blocking.await.unwrap_or_else(|error| {
        Err(RunFailure::Refused(format!("preparing the worktree failed: {error}")))
    })?;
    if let (Some(commit), false) = (worktree.commit(), quarantine.seen.is_empty()) {
        let environment = drive.environment;
        let commit = commit.to_string();
        let record = || async {
            let mut transaction = environment.pool.begin().await?;
            db::quarantine::record(&mut transaction, &name, &commit, &quarantine.seen).await?;
            transaction.commit().await.map_err(DbError::from)
        };
        environment.patiently(record).await?;
    }
    Ok((worktree, quarantine))
}

fn checkout_limits(config: &RunnerConfig) -> CheckoutLimits {
    let of = config.bases;
    CheckoutLimits {
        files: of.each_files,
        bytes: of.each_bytes,
        file_bytes: of.file_bytes,
        ..CheckoutLimits::default()
    }
}

/// The mirror and the commit to start from; `None`: the repository has no commit yet.
fn base(
    environment: &Environment,
    repository: &RepositoryRow,
    commit: Option<&str>,
    revision: Option<&str>,
) -> Result<(Mirror, Option<Oid>), RunFailure> {
    let path = environment.folders.mirror(&repository.name)?;
    let wanted = commit.or(revision);
    let look = |mirror: &Mirror| match wanted {
        Some(wanted) => mirror.resolve(wanted),
        None => match mirror.default_branch()? {
            Some(branch) => mirror.resolve(&branch),
            None => Ok(None),
        },
    };
    if let Ok(mirror) = Mirror::open(&path) {
        let found = look(&mirror)?;
        if found.is_some() || (wanted.is_none() && mirror.is_empty()?) {
            return Ok((mirror, found));
        }
    }
    // Another runner fetched it, or it is newer than this mirror.
    repositories::mirror(environment, &repository.name, &repository.source).map_err(RunFailure::Refused)?;
    let mirror = Mirror::open(&path)?;
    let found = look(&mirror)?;
    match (found, wanted) {
        (None, Some(wanted)) => Err(RunFailure::Revision(format!(
            "unknown revision: repository {:?} has no branch, tag or commit {wanted:?}",
            repository.name
        ))),
        (None, None) if !mirror.is_empty()? => Err(RunFailure::Revision(format!(
            "unknown revision: repository {:?} has no default branch; name a base_revision",
            repository.name
        ))),
        (found, _) => Ok((mirror, found)),
    }
}

fn spec(
    environment: &Environment,
    run: &RunRow,
    manifest: &Manifest,
    worktree: &Worktree,
    runtime: String,
) -> Result<Spec, RunFailure> {
    let image = run.image_digest.parse().map_err(|error| RunFailure::Refused(format!("{error}")))?;
    Ok(Spec {
        instance: environment.config.instance.to_string(),
        run_id: run.id,
        attempt: run.attempt.unsigned_abs(),
        image,
        user: environment.user,
        limits: Limits { idle_secs: idle_secs(environment, run), ..environment.config.limits.clone() },
        worktree_held: environment.disk.enforcement(),
        workspace: worktree.path(),
        io_dir: io_path(&environment.folders.run(run.id)),
        model_dir: manifest.model.as_ref().map(|_| environment.folders.model(run.id)),
        shim: environment.shim.clone(),
        writable: manifest.writable.clone(),
        runtime: Some(runtime),
        log_copy_bytes: Some(environment.config.log_copy_bytes).filter(|bytes| *bytes > 0),
    })
}

/// Seconds without output: the assignment's wish, or the runner's own.
pub(super) fn idle_secs(environment: &Environment, run: &RunRow) -> u64 {
    run.idle_secs.map_or(environment.config.limits.idle_secs, |secs| u64::from(secs.unsigned_abs()))
}

fn launch(
    run: &RunRow,
    task: &TaskRow,
    manifest: &Manifest,
    model: Option<&ModelName>,
) -> Result<Launch, RunFailure> {
    let prompt = match model {
        Some(_) => prompt::compose(&task.description, &run.context),
        None => task.description.clone(),
    };
    manifest.launch(&prompt, model).map_err(|error| RunFailure::Refused(error.to_string()))
}

fn job(environment: &Environment, run: &RunRow, launch: Launch, spec: &Spec, session: String) -> Job {
    let mut env = launch.env;
    let ours = [
        ("KAGE_TASK_ID", run.task_id.to_string()),
        ("KAGE_RUN", run.name.clone()),
        ("KAGE_ATTEMPT", run.attempt.to_string()),
        ("KAGE_CONTEXT", run.context.to_string()),
    ];
    env.extend(ours.map(|(name, value)| (name.to_owned(), value)));
    let config = &environment.config;
    let limits = JobLimits {
        wall_secs: u64::from(run.timeout_secs.unsigned_abs()) + SHIM_MARGIN_SECS,
        orphan_secs: config.orphan_secs,
        grace_ms: config.grace_secs * 1000,
        buffer_bytes: SHIM_BUFFER,
    };
    Job {
        session,
        argv: launch.argv,
        env,
        cwd: WORKSPACE.to_owned(),
        stdin: launch.stdin,
        file: launch.file.map(|text| JobFile { path: PROMPT_FILE.to_owned(), text }),
        bridge: spec
            .model_dir
            .is_some()
            .then(|| Bridge { port: GATEWAY_PORT, socket: MODEL_SOCKET.to_owned() }),
        places: profile::places(spec),
        copy_output: config.log_copy_bytes > 0,
        limits,
    }
}

/// Removes the worktree and all else of a run on this host.
pub(super) async fn discard(environment: &Arc<Environment>, run: uuid::Uuid) {
    let this = Arc::clone(environment);
    let removed = spawn_blocking(move || crate::runner::sweep::remove_run_folder(&this, run)).await;
    match removed {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::warn!(%run, %error, "runner.folder_left_for_the_sweep"),
        Err(error) => tracing::warn!(%run, %error, "runner.folder_left_for_the_sweep"),
    }
}
