//! Ends what nobody owns any more. It needs no memory: labels and folder names say whose things are.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use uuid::Uuid;

use crate::db;
use crate::git::worktree;
use crate::runner::environment::Environment;
use crate::runner::failure::RunFailure;
use crate::runner::grant;
use crate::sandbox::container::{self, Found, Sandbox};
use crate::sandbox::error::SandboxError;

const INTERVAL: Duration = Duration::from_secs(3600);
/// After one that did not get through.
const AGAIN: Duration = Duration::from_secs(30);
/// A base that nobody asked for in this time is removed.
const BASE_IDLE: Duration = Duration::from_secs(24 * 3600);

/// Runs until the soft token: at start, then hourly, and when something was left.
pub(super) async fn run(environment: Arc<Environment>) {
    let mut soon = AGAIN;
    while !environment.lifecycle.soft().is_cancelled() {
        let pause = match sweep(&environment).await {
            Ok(()) if waits_for_an_end(&environment) => {
                let pause = soon;
                soon = (soon * 2).min(INTERVAL);
                pause
            }
            Ok(()) => {
                soon = AGAIN;
                INTERVAL
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

/// Another runner may have a run whose folder is here: it took the run up before this one was started anew. The folder goes
/// when the run has ended there.
fn waits_for_an_end(environment: &Environment) -> bool {
    let left = run_folders(environment).unwrap_or_default();
    left.into_iter().any(|run| !environment.leases.is_held(run))
}

async fn sweep(environment: &Arc<Environment>) -> Result<(), RunFailure> {
    let found = container::list(&environment.engine, environment.config.instance.as_str()).await?;
    let folders = run_folders(environment)?;
    let candidates: Vec<Uuid> = found
        .iter()
        .map(|container| container.run_id)
        .chain(folders.iter().copied())
        .filter(|run| !environment.leases.is_held(*run))
        .collect::<HashSet<_>>()
        .into_iter()
        .collect();
    let ended = db::runs::ended_of(&environment.pool, &candidates).await?;
    for container in found.iter().filter(|container| ended.contains(&container.run_id)) {
        tracing::warn!(container = container.id, run = %container.run_id, "runner.sweep_container");
    }
    remove_containers(environment, |found| ended.contains(&found.run_id)).await?;
    let this = Arc::clone(environment);
    let blocking = tokio::task::spawn_blocking(move || -> Result<(), RunFailure> {
        for run in folders.into_iter().filter(|run| ended.contains(run)) {
            tracing::warn!(%run, "runner.sweep_folder");
            remove_run_folder(&this, run)?;
        }
        this.bases.collect(&this.folders.runs(), BASE_IDLE)?;
        Ok(())
    });
    blocking.await.unwrap_or_else(|error| Err(RunFailure::Refused(format!("the sweep failed: {error}"))))
}

/// Removes those of this instance's containers that are `wanted`, running or not.
pub(super) async fn remove_containers(
    environment: &Environment,
    wanted: impl Fn(&Found) -> bool,
) -> Result<(), RunFailure> {
    let instance = environment.config.instance.as_str();
    for found in container::list(&environment.engine, instance).await? {
        if wanted(&found) {
            match Sandbox::adopt(&environment.engine, &found.id).await {
                Ok(mut sandbox) => sandbox.remove().await?,
                Err(SandboxError::Gone { .. }) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
    Ok(())
}

fn run_folders(environment: &Environment) -> Result<Vec<Uuid>, RunFailure> {
    let mut found = Vec::new();
    for path in [environment.folders.runs(), environment.folders.models()] {
        let entries = std::fs::read_dir(&path).map_err(RunFailure::io(&path))?;
        found.extend(entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<Uuid>().ok()));
    }
    found.sort_unstable();
    found.dedup();
    Ok(found)
}

/// Unmounts and removes all that a run has on this host. Blocks.
pub(super) fn remove_run_folder(environment: &Environment, run: Uuid) -> Result<(), RunFailure> {
    grant::remove_folder(&environment.folders.model(run))?;
    Ok(worktree::discard(&environment.folders.run(run))?)
}
