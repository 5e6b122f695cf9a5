//! Fulfils what clients wish of repositories: fetch, remove.

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use serde_json::json;
use uuid::Uuid;

use crate::db;
use crate::db::deadline::{ANSWER_WITHIN, within};
use crate::db::error::DbError;
use crate::db::quarantine::Seen;
use crate::db::repositories::{Fetched, RepositoryRow};
use crate::domain::audit::{Actor, Entry, Outcome};
use crate::domain::repository::RepositoryState;
use crate::git::error::GitError;
use crate::git::mirror::{FetchLimits, Mirror};
use crate::runner::environment::Environment;
use crate::runner::fetch_source;
use crate::runner::quarantine;

const SLOW_POLL: Duration = Duration::from_secs(5);
const LEASE_SECS: i32 = 60;
const FETCH_TIME: Duration = Duration::from_secs(1800);
const FETCH_BYTES: u64 = 20 << 30;
/// They are kept in the database and listed.
const MAX_REFS: usize = 10_000;

/// Runs until the soft token.
pub(super) async fn run(environment: Arc<Environment>) {
    while !environment.lifecycle.soft().is_cancelled() {
        if let Err(error) = listen_and_work(&environment).await {
            tracing::warn!(%error, "runner.repositories_failed");
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    }
}

async fn listen_and_work(environment: &Arc<Environment>) -> Result<(), DbError> {
    let soft = environment.lifecycle.soft();
    let mut listener =
        within(ANSWER_WITHIN, db::notify::listen(&environment.pool, db::notify::QUEUE)).await?;
    while !soft.is_cancelled() {
        let claim = || within(ANSWER_WITHIN, db::repositories::claim(&environment.pool, LEASE_SECS));
        while let Some(row) = claim().await? {
            let Some(lease) = row.lease_id else { break };
            let work = async {
                match row.state()? {
                    RepositoryState::Removing => remove(environment, &row, lease).await,
                    _ => fetch(environment, &row, lease).await,
                }
            };
            keeping_lease(environment, &row.name, lease, work).await?;
            if soft.is_cancelled() {
                return Ok(());
            }
        }
        tokio::select! {
            () = soft.cancelled() => {}
            notification = listener.try_recv() => { notification?; }
            () = tokio::time::sleep(SLOW_POLL) => {}
        }
    }
    Ok(())
}

/// Renews the lease for as long as the work takes.
async fn keeping_lease<T>(
    environment: &Environment,
    name: &str,
    lease: Uuid,
    work: impl Future<Output = Result<T, DbError>>,
) -> Result<T, DbError> {
    let renewing = async {
        loop {
            tokio::time::sleep(Duration::from_secs(u64::from(LEASE_SECS.unsigned_abs()) / 3)).await;
            let renewal = db::repositories::renew(&environment.pool, name, lease, LEASE_SECS);
            if let Err(error) = within(ANSWER_WITHIN, renewal).await {
                tracing::warn!(%error, name, "runner.repository_renewal_failed");
            }
        }
    };
    tokio::select! {
        done = work => done,
        () = renewing => unreachable!("it never ends by itself"),
    }
}

async fn fetch(environment: &Arc<Environment>, row: &RepositoryRow, lease: Uuid) -> Result<(), DbError> {
    let this = Arc::clone(environment);
    let (name, source) = (row.name.clone(), row.source.clone());
    let fetched = tokio::task::spawn_blocking(move || mirror(&this, &name, &source)).await;
    let outcome = fetched.unwrap_or_else(|error| Err(format!("the fetch failed: {error}")));
    let (result, details) = match &outcome {
        Ok(fetched) => {
            (Outcome::Done, json!({ "refs": fetched.refs.len(), "default_branch": fetched.default_branch }))
        }
        Err(error) => (Outcome::Failed, json!({ "error": error })),
    };
    let configuration = match &outcome {
        Ok(_) => configuration(environment, &row.name).await?,
        Err(_) => None,
    };
    let mut transaction = environment.pool.begin().await?;
    if db::repositories::finish_fetch(&mut transaction, &row.name, lease, &outcome).await? {
        if let Some((commit, seen)) = &configuration {
            db::quarantine::record(&mut transaction, &row.name, commit, seen).await?;
        }
        let entry = entry(environment, "repository.fetched", &row.name, result, details);
        db::audit::append(&mut transaction, &entry).await?;
    }
    transaction.commit().await?;
    Ok(())
}

/// What the default branch has that runs would not see, so that it can be approved before the first of them. What is
/// not found here, each run finds for itself.
async fn configuration(
    environment: &Arc<Environment>,
    name: &str,
) -> Result<Option<(String, Vec<Seen>)>, DbError> {
    let rules = quarantine::all_rules(&db::images::list(&environment.pool).await?);
    let (this, name) = (Arc::clone(environment), name.to_owned());
    let scan = move || -> Result<Option<(String, Vec<Seen>)>, String> {
        let text = |error: GitError| error.to_string();
        let mirror =
            Mirror::open(&this.folders.mirror(&name).map_err(|error| error.to_string())?).map_err(text)?;
        let Some(branch) = mirror.default_branch().map_err(text)? else { return Ok(None) };
        let Some(commit) = mirror.resolve(&branch).map_err(text)? else { return Ok(None) };
        let found = this.scanner.findings(&mirror, commit, &rules).map_err(text)?;
        Ok(Some((commit.to_string(), found.iter().map(quarantine::seen).collect())))
    };
    let scanned = tokio::task::spawn_blocking(scan).await.unwrap_or_else(|error| Err(error.to_string()));
    Ok(scanned.unwrap_or_else(|error| {
        tracing::warn!(error, "runner.configuration_not_listed");
        None
    }))
}

/// Fetches into this runner's mirror, which is made if it is not there. Blocks.
pub(super) fn mirror(environment: &Environment, name: &str, source: &str) -> Result<Fetched, String> {
    let source = fetch_source::allowed(environment, source)?;
    let text = |error: crate::git::error::GitError| error.to_string();
    let path = environment.folders.mirror(name).map_err(|error| error.to_string())?;
    let mirror = Mirror::create(&path).map_err(text)?;
    mirror.fetch(source.as_source(), &FetchLimits { time: FETCH_TIME, bytes: FETCH_BYTES }).map_err(text)?;
    let mut refs = BTreeMap::new();
    let found = mirror.refs().map_err(text)?;
    if found.len() > MAX_REFS {
        return Err(format!(
            "the source has {} branches and tags; at most {MAX_REFS} are taken",
            found.len()
        ));
    }
    // Tags first, so that a branch of the same name replaces them.
    for space in ["tags/", "heads/"] {
        for (name, commit) in &found {
            if let Some(name) = name.to_string().strip_prefix(space) {
                refs.insert(name.to_owned(), commit.to_string());
            }
        }
    }
    Ok(Fetched { default_branch: mirror.default_branch().map_err(text)?, refs })
}

async fn remove(environment: &Arc<Environment>, row: &RepositoryRow, lease: Uuid) -> Result<(), DbError> {
    let Ok(path) = environment.folders.mirror(&row.name) else {
        tracing::error!(name = row.name, "runner.repository_name_refused");
        return Ok(());
    };
    if let Err(error) = tokio::fs::remove_dir_all(&path).await
        && error.kind() != std::io::ErrorKind::NotFound
    {
        // The wish stays; the lease keeps us from trying again at once.
        tracing::error!(%error, name = row.name, "runner.mirror_not_removed");
        return Ok(());
    }
    let mut transaction = environment.pool.begin().await?;
    if db::repositories::delete(&mut transaction, &row.name, lease).await? {
        let entry = entry(environment, "repository.removed", &row.name, Outcome::Done, json!({}));
        db::audit::append(&mut transaction, &entry).await?;
    }
    transaction.commit().await?;
    Ok(())
}

fn entry(
    environment: &Environment,
    action: &'static str,
    name: &str,
    outcome: Outcome,
    details: serde_json::Value,
) -> Entry {
    let actor = Actor::Runner(environment.id.to_string());
    Entry { actor, action, object: format!("repository:{name}"), outcome, details }
}
