//! Ends what nobody owns any more. It needs no memory: labels and folder names say whose things are, and the database says
//! which of their runs have ended.
//!
//! What the database does not know is left: it may be an old one that was restored, or another's. That is said, each time.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use uuid::Uuid;

use crate::db;
use crate::git::error::GitError;
use crate::git::room::Removed;
use crate::git::worktree;
use crate::metrics::metrics;
use crate::metrics::sweep::Kind;
use crate::runner::environment::Environment;
use crate::runner::failure::RunFailure;
use crate::runner::grant;
use crate::runner::let_go;
use crate::runner::sweep_temporary;
use crate::runner::watermark;
use crate::sandbox::container::{self, Found, Sandbox};
use crate::sandbox::error::SandboxError;

const INTERVAL: Duration = Duration::from_secs(3600);
/// After one that did not get through.
const AGAIN: Duration = Duration::from_secs(30);

/// Runs until the soft token: at start, then hourly, and when something was left.
pub(super) async fn run(environment: Arc<Environment>) {
    let mut soon = AGAIN;
    while !environment.lifecycle.soft().is_cancelled() {
        let pause = match sweep(&environment).await {
            Ok(waits) => {
                tracing::info!("runner.swept");
                let pause = if waits { soon } else { INTERVAL };
                soon = if waits { (soon * 2).min(INTERVAL) } else { AGAIN };
                pause
            }
            Err(error) => {
                tracing::warn!(%error, "runner.sweep_failed");
                AGAIN
            }
        };
        let due = async {
            tokio::select! {
                () = environment.sweep.notified() => tokio::time::sleep(AGAIN).await,
                () = tokio::time::sleep(pause) => {}
            }
        };
        tokio::select! {
            () = environment.lifecycle.soft().cancelled() => {}
            () = due => {}
        }
    }
}

/// What is there of runs that nobody here works on.
struct Remains {
    containers: Vec<Found>,
    folders: BTreeSet<Uuid>,
    /// Whether the run has ended; one that is missing is not known to the database.
    ended: BTreeMap<Uuid, bool>,
}

impl Remains {
    async fn look(environment: &Environment) -> Result<Self, RunFailure> {
        // Before the database is asked: what is there by now was written there before it was made.
        let containers = container::list(&environment.engine, environment.config.instance.as_str()).await?;
        let folders = run_folders(environment)?;
        let candidates: BTreeSet<Uuid> = containers
            .iter()
            .map(|container| container.run_id)
            .chain(folders.iter().copied())
            .filter(|run| !environment.leases.is_held(*run))
            .collect();
        let candidates: Vec<Uuid> = candidates.into_iter().collect();
        let ended = db::runs::ends_of(&environment.pool, &candidates).await?;
        let ours = |run: &Uuid| candidates.binary_search(run).is_ok();
        Ok(Self {
            containers: containers.into_iter().filter(|container| ours(&container.run_id)).collect(),
            folders: folders.into_iter().filter(ours).collect(),
            ended,
        })
    }

    fn is_dead(&self, run: Uuid) -> bool {
        self.ended.get(&run) == Some(&true)
    }

    /// Another runner may have a run whose folder is here: it took the run up before this one was started anew. The folder
    /// goes when the run has ended there.
    fn waits_for_an_end(&self) -> bool {
        self.folders.iter().any(|run| self.ended.get(run) == Some(&false))
    }

    fn is_unknown(&self, run: Uuid) -> bool {
        !self.ended.contains_key(&run)
    }
}

/// What cannot be ended now is left for the next time, and keeps nothing else from its end. Whether there is something that
/// waits for a run's end elsewhere.
async fn sweep(environment: &Arc<Environment>) -> Result<bool, RunFailure> {
    let remains = Remains::look(environment).await?;
    let waits = remains.waits_for_an_end();
    tell_of_the_unknown(&remains);
    let mut failure = None;
    let mut still_used = BTreeSet::new();
    for found in remains.containers.iter().filter(|found| remains.is_dead(found.run_id)) {
        tracing::warn!(container = found.id, run = %found.run_id, "runner.sweep_container");
        match remove_container(environment, found).await {
            Ok(()) => metrics().sweep.ended(Kind::Container),
            Err(error) => {
                tracing::warn!(container = found.id, %error, "runner.sweep_container_failed");
                still_used.insert(found.run_id);
                failure = Some(error);
            }
        }
    }
    let dead: Vec<Uuid> = remains.folders.iter().copied().filter(|run| remains.is_dead(*run)).collect();
    let unknown = remains.folders.iter().filter(|run| remains.is_unknown(**run)).count();
    let this = Arc::clone(environment);
    let blocking = tokio::task::spawn_blocking(move || {
        let swept = remove_folders(&this, dead.into_iter().filter(|run| !still_used.contains(run)), unknown);
        let idle = Duration::from_secs(this.config.bases.idle_secs);
        (swept, this.bases.collect(&this.folders.runs(), idle).map_err(RunFailure::from))
    });
    let (swept, bases) =
        blocking.await.map_err(|error| RunFailure::Refused(format!("the sweep failed: {error}")))?;
    let bases = match bases {
        Ok(removed) => record_bases(environment, removed).await,
        Err(error) => Err(error),
    };
    let temporary = sweep_temporary::sweep(environment).await;
    let branches = let_go::branches(environment).await;
    failure.map_or(Ok(()), Err).and(swept).and(bases).and(temporary).and(branches).map(|()| waits)
}

async fn record_bases(environment: &Environment, removed: Removed) -> Result<(), RunFailure> {
    if removed.bases > 0 {
        watermark::record(environment, "age", removed, "nobody asked for them any more").await?;
    }
    Ok(())
}

fn tell_of_the_unknown(remains: &Remains) {
    let unknown = remains.containers.iter().filter(|found| remains.is_unknown(found.run_id));
    for found in unknown.clone() {
        tracing::warn!(
            container = found.id,
            run = %found.run_id,
            "runner.sweep_left: a container is labelled as this instance's, but the database does not know its run"
        );
    }
    metrics().sweep.left(Kind::Container, unknown.count());
    for run in remains.folders.iter().filter(|run| remains.is_unknown(**run)) {
        tracing::warn!(%run, "runner.sweep_left: there is a run's folder, but the database does not know the run");
    }
}

/// `unknown`: folders that are left already. Blocks.
fn remove_folders(
    environment: &Environment,
    runs: impl Iterator<Item = Uuid>,
    unknown: usize,
) -> Result<(), RunFailure> {
    let (mut left, mut failure) = (unknown, None);
    for run in runs {
        tracing::warn!(%run, "runner.sweep_folder");
        match remove_run_folder(environment, run) {
            Ok(()) => metrics().sweep.ended(Kind::Folder),
            Err(RunFailure::Git(error @ GitError::MountOfOthers(_))) => {
                tracing::warn!(%run, %error, "runner.sweep_left");
                left += 1;
            }
            Err(error) => {
                tracing::warn!(%run, %error, "runner.sweep_folder_failed");
                failure = Some(error);
            }
        }
    }
    metrics().sweep.left(Kind::Folder, left);
    failure.map_or(Ok(()), Err)
}

/// Removes those of this instance's containers that are `wanted`, running or not.
pub(super) async fn remove_containers(
    environment: &Environment,
    wanted: impl Fn(&Found) -> bool,
) -> Result<(), RunFailure> {
    let instance = environment.config.instance.as_str();
    for found in container::list(&environment.engine, instance).await? {
        if wanted(&found) {
            remove_container(environment, &found).await?;
        }
    }
    Ok(())
}

pub(super) async fn remove_container(environment: &Environment, found: &Found) -> Result<(), RunFailure> {
    match Sandbox::adopt(&environment.engine, &found.id).await {
        Ok(mut sandbox) => Ok(sandbox.remove().await?),
        Err(SandboxError::Gone { .. }) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

fn run_folders(environment: &Environment) -> Result<BTreeSet<Uuid>, RunFailure> {
    let mut found = BTreeSet::new();
    for path in [environment.folders.runs(), environment.folders.models()] {
        let entries = std::fs::read_dir(&path).map_err(RunFailure::io(&path))?;
        found.extend(entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<Uuid>().ok()));
    }
    Ok(found)
}

/// Unmounts and removes all that a run has on this host. Blocks.
pub(super) fn remove_run_folder(environment: &Environment, run: Uuid) -> Result<(), RunFailure> {
    grant::remove_folder(&environment.folders.model(run))?;
    Ok(worktree::discard(&environment.folders.run(run))?)
}
