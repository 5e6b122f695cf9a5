//! What a runner has of results that were let go: the branches in its mirrors. The database says whose.

use std::path::PathBuf;
use std::sync::Arc;

use serde_json::json;
use uuid::Uuid;

use crate::db;
use crate::domain::audit::{Actor, Entry, Outcome};
use crate::git::mirror::Mirror;
use crate::runner::environment::Environment;
use crate::runner::failure::RunFailure;

/// Tasks of one question, and of one audit entry.
const BATCH: usize = 500;

/// Removes them from every mirror of this runner. What fails stays for the next sweep.
pub(super) async fn branches(environment: &Arc<Environment>) -> Result<(), RunFailure> {
    for (name, path) in mirrors(environment)? {
        let listed =
            blocking(move || Ok(Mirror::open(&path).and_then(|mirror| Ok((mirror.results()?, mirror)))?));
        let (branches, mirror) = match listed.await {
            Ok(found) => found,
            Err(error) => {
                tracing::warn!(%error, name, "runner.branches_not_listed");
                continue;
            }
        };
        let mut branches: Vec<(Uuid, String)> =
            branches.into_iter().filter_map(|branch| Some((task_of(&branch)?, branch))).collect();
        branches.sort();
        for batch in branches.chunks(BATCH) {
            of_batch(environment, &name, &mirror, batch).await?;
        }
    }
    Ok(())
}

async fn of_batch(
    environment: &Environment,
    name: &str,
    mirror: &Mirror,
    batch: &[(Uuid, String)],
) -> Result<(), RunFailure> {
    let mut tasks: Vec<Uuid> = batch.iter().map(|(task, _)| *task).collect();
    tasks.dedup();
    let gone = db::let_go::without_results(&environment.pool, &tasks).await?;
    let doomed: Vec<String> =
        batch.iter().filter(|(task, _)| gone.contains(task)).map(|(_, branch)| branch.clone()).collect();
    if doomed.is_empty() {
        return Ok(());
    }
    // Said before it is done: a branch that is gone without a word would look like a loss.
    let entry = Entry {
        actor: Actor::Runner(environment.id.to_string()),
        action: "retention.branches",
        object: format!("repository:{name}"),
        outcome: Outcome::Done,
        details: json!({ "what": "branches", "branches": doomed }),
    };
    let mut connection = environment.pool.acquire().await.map_err(db::error::DbError::from)?;
    db::audit::append(&mut connection, &entry).await?;
    drop(connection);
    tracing::info!(repository = name, branches = doomed.len(), "runner.branches_let_go");
    let mirror = mirror.clone();
    blocking(move || {
        for branch in &doomed {
            mirror.remove_result(branch)?;
        }
        Ok(())
    })
    .await
}

/// Names and paths. What is none of ours in the folder is not looked at.
fn mirrors(environment: &Environment) -> Result<Vec<(String, PathBuf)>, RunFailure> {
    let folder = environment.folders.mirrors();
    let entries = std::fs::read_dir(&folder).map_err(RunFailure::io(&folder))?;
    let names = entries.filter_map(|entry| {
        let name = entry.ok()?.file_name().into_string().ok()?.strip_suffix(".git")?.to_owned();
        let path = environment.folders.mirror(&name).ok()?;
        Some((name, path))
    });
    Ok(names.collect())
}

/// `task-<id>-<run>`.
fn task_of(branch: &str) -> Option<Uuid> {
    let (id, run) = branch.strip_prefix("task-")?.split_at_checked(36)?;
    run.strip_prefix('-').filter(|run| !run.is_empty())?;
    id.parse().ok()
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, RunFailure> + Send + 'static,
) -> Result<T, RunFailure> {
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|error| Err(RunFailure::Refused(format!("the sweep failed: {error}"))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_branch_names_its_task_or_is_left_alone() {
        let id = Uuid::now_v7();
        assert_eq!(task_of(&format!("task-{id}-shell-2")), Some(id));
        for other in [
            format!("task-{id}"),
            format!("task-{id}-"),
            format!("{id}-shell"),
            "task-x-y".to_owned(),
            "main".to_owned(),
        ] {
            assert_eq!(task_of(&other), None, "{other}");
        }
    }
}
