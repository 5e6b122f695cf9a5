//! Opens a socket for every run that wants one, and closes it with the run: arm, query, wait.

use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::json;
use sqlx::postgres::PgListener;
use tracing::{Instrument as _, Span};
use uuid::Uuid;

use crate::db;
use crate::db::budgets::Limits;
use crate::db::error::DbError;
use crate::db::grants::{ActiveGrant, GrantRow, Opening};
use crate::domain::audit::Outcome;
use crate::domain::model::Dialect;
use crate::gateway::door::{self, DoorError, Folder};
use crate::gateway::environment::Environment;
use crate::gateway::served::ServedRun;
use crate::gateway::{catalog, ledger, notices, tariff};

/// Behind the notifications, and for runs whose runner is gone.
const SLOW_POLL: Duration = Duration::from_secs(5);
/// Between two looks for calls that nobody will settle.
const LEFTOVERS: Duration = Duration::from_secs(60);
/// How long a run's calls have to end with it.
const END_WITHIN: Duration = Duration::from_secs(20);

/// Runs until the gateway is to end. With `to_the_last`, it first waits until no run needs it any more.
pub(super) async fn run(environment: Arc<Environment>, to_the_last: bool) {
    while !is_over(&environment, to_the_last) {
        if let Err(error) = listen_and_serve(&environment, to_the_last).await {
            tracing::warn!(%error, "gateway.grants_failed");
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
    }
}

/// Alone it ends with its last call; beside a runner with the last run.
fn is_over(environment: &Environment, to_the_last: bool) -> bool {
    let idle = |run: &Arc<ServedRun>| !to_the_last && run.connections.is_empty();
    environment.lifecycle.soft().is_cancelled() && environment.all_served().iter().all(idle)
}

async fn listen_and_serve(environment: &Arc<Environment>, to_the_last: bool) -> Result<(), DbError> {
    let soft = environment.lifecycle.soft();
    let mut listener = PgListener::connect_with(&environment.pool).await?;
    listener.listen(db::notify::GRANTS).await?;
    let mut looked = None;
    while !is_over(environment, to_the_last) {
        reconcile(environment).await?;
        if looked.is_none_or(|at: Instant| at.elapsed() >= LEFTOVERS) {
            looked = Some(Instant::now());
            for run in db::model_calls::runs_left_open(&environment.pool).await? {
                ledger::settle_lost(environment, run).await?;
            }
        }
        tokio::select! {
            () = soft.cancelled(), if !soft.is_cancelled() => {}
            () = environment.wake.notified() => {}
            notification = listener.try_recv() => { notification?; }
            () = tokio::time::sleep(if soft.is_cancelled() { SLOW_POLL / 10 } else { SLOW_POLL }) => {}
        }
    }
    Ok(())
}

/// Makes what is served equal to what is granted.
async fn reconcile(environment: &Arc<Environment>) -> Result<(), DbError> {
    let active = db::grants::active(&environment.pool, environment.config.orphan_secs).await?;
    for served in environment.all_served() {
        let grant = active.iter().find(|active| active.grant.run_id == served.run);
        let current = grant.filter(|active| active.grant.attempt == served.attempt);
        if current.is_none_or(|active| active.grant.state == "closing" || active.run_is_over) {
            close(environment, &served);
        }
    }
    for active in &active {
        // One that is being closed is looked at again when it is.
        if environment.served(active.grant.run_id).is_some() {
            continue;
        }
        let wanted = matches!(active.grant.state.as_str(), "wanted" | "open") && !active.run_is_over;
        if wanted && environment.shut.is_cancelled() {
            continue;
        }
        match Folder::open(&environment.config.sockets, active.grant.run_id) {
            Ok(Some(folder)) if wanted => {
                open(environment, active, folder).instrument(span(&active.grant)).await?;
            }
            Ok(Some(folder)) => {
                folder.unlink();
                ledger::settle_lost(environment, active.grant.run_id).await?;
                closed(environment, active.grant.run_id, active.grant.attempt).await?;
            }
            // Another machine's, unless nobody can want it any more.
            Ok(None) if active.run_is_over => {
                closed(environment, active.grant.run_id, active.grant.attempt).await?;
            }
            Ok(None) => {}
            Err(error) => {
                tracing::error!(run = %active.grant.run_id, %error, "gateway.folder");
                refuse(environment, active, &error.to_string()).await?;
            }
        }
    }
    Ok(())
}

/// Whose the lines are that are logged from here on, also by what serves the socket.
fn span(grant: &GrantRow) -> Span {
    tracing::error_span!("run", task_id = %grant.task_id, run_id = %grant.run_id, attempt = grant.attempt)
}

/// Opens a run's socket, or says in its grant why not.
async fn open(environment: &Arc<Environment>, active: &ActiveGrant, folder: Folder) -> Result<(), DbError> {
    let served = match decide(environment, active).await {
        Ok(served) => Arc::new(served),
        Err(why) => return refuse(environment, active, &why).await,
    };
    // Of a former gateway, which died.
    ledger::settle_lost(environment, served.run).await?;
    let listener = match folder.bind().await {
        Ok(listener) => listener,
        Err(error @ DoorError::Taken) => {
            tracing::warn!(run = %served.run, %error, "gateway.not_opened");
            return Ok(());
        }
        Err(error) => return refuse(environment, active, &error.to_string()).await,
    };
    let again = active.grant.state == "open";
    // It answers before anybody is told that it does; whatever ends this ends the socket too.
    environment.serve(Arc::clone(&served));
    let keep = door::keep(Arc::clone(environment), Arc::clone(&served), folder, listener);
    environment.lifecycle.spawn(served.connections.track_future(keep));
    let recorded = record(environment, &served, again).await;
    if matches!(recorded, Ok(true)) {
        let (provider, model) = (&served.provider.name, &served.model);
        tracing::info!(run = %served.run, provider, model, again, "gateway.opened");
    } else {
        served.end.cancel();
        served.connections.close();
        served.connections.wait().await;
        environment.forget(&served);
    }
    recorded.map(|_| ())
}

/// Who serves the run, and with which model.
async fn decide(environment: &Environment, active: &ActiveGrant) -> Result<ServedRun, String> {
    let grant = &active.grant;
    let dialect: Dialect =
        grant.dialect.parse().map_err(|_| format!("there is no dialect {:?}", grant.dialect))?;
    let provider = environment.catalog.provider(&grant.cli_name, dialect)?;
    let policy = environment.catalog.policy(&grant.cli_name);
    if let Some(why) = tariff::contradiction(&provider, &policy) {
        return Err(why);
    }
    environment.upstream.client(&provider).map_err(|why| format!("provider {}: {why}", provider.name))?;
    let credential = environment.credentials.of(&provider).await;
    credential.map_err(|error| format!("provider {} has no credential: {error}", provider.name))?;
    let model =
        grant.model_asked.clone().or(policy.default_model.clone()).unwrap_or(grant.model_default.clone());
    if catalog::resolve(&provider, &policy, &model).is_none() {
        let shown: String = model.chars().take(100).flat_map(char::escape_debug).collect();
        return Err(format!(
            "the model {shown} is not allowed for {} at provider {}",
            grant.cli_name, provider.name
        ));
    }
    let end = environment.lifecycle.hard().child_token();
    Ok(ServedRun::new(active, dialect, provider, policy, model, &environment.config, end))
}

/// The grant, the budgets and the audit entry. False if nobody wants it any more.
async fn record(environment: &Environment, served: &ServedRun, again: bool) -> Result<bool, DbError> {
    let policy = &served.policy;
    let policy = json!({
        "models": policy.models, "server_tools": policy.server_tools,
        "remote_references": policy.remote_references,
        "requests_per_minute": policy.requests_per_minute.unwrap_or(environment.config.requests_per_minute),
        "max_output_tokens": served.rules.max_output_tokens,
        "budget_usd": policy.budget_usd, "budget_tokens": policy.budget_tokens,
    });
    let limits = Limits {
        micros: served.policy.budget_usd.map(|usd| (usd * 1e6) as i64),
        tokens: served.policy.budget_tokens.map(|tokens| i64::try_from(tokens).unwrap_or(i64::MAX)),
    };
    let mut transaction = environment.pool.begin().await?;
    db::budgets::tighten(&mut transaction, served.task, served.run, limits).await?;
    let opening = Opening {
        run: served.run,
        attempt: served.attempt,
        provider: &served.provider.name,
        model: &served.model,
        policy: &policy,
    };
    if !db::grants::set_open(&mut transaction, &opening).await? {
        return Ok(false);
    }
    let details = json!({
        "attempt": served.attempt, "cli": served.cli, "dialect": served.dialect.as_str(),
        "provider": served.provider.name, "model": served.model, "policy": policy, "again": again,
    });
    db::audit::append(&mut transaction, &notices::entry("model.open", served.run, Outcome::Done, details))
        .await?;
    transaction.commit().await?;
    db::notify::send(&environment.pool, db::notify::GRANTS, &served.run.to_string()).await?;
    Ok(true)
}

/// A grant that is not opened; the run ends with this reason.
async fn refuse(environment: &Environment, active: &ActiveGrant, why: &str) -> Result<(), DbError> {
    let grant = &active.grant;
    tracing::warn!(run = %grant.run_id, why, "gateway.not_opened");
    let details =
        json!({ "attempt": grant.attempt, "cli": grant.cli_name, "dialect": grant.dialect, "why": why });
    let entry = notices::entry("model.open", grant.run_id, Outcome::Refused, details);
    let mut transaction = environment.pool.begin().await?;
    if db::grants::set_closed(&mut transaction, grant.run_id, grant.attempt, Some(why)).await? {
        db::audit::append(&mut transaction, &entry).await?;
        transaction.commit().await?;
    }
    db::notify::send(&environment.pool, db::notify::GRANTS, &grant.run_id.to_string()).await
}

/// Ends a run's socket and calls; its grant is closed when all of them are settled.
fn close(environment: &Arc<Environment>, served: &Arc<ServedRun>) {
    if served.end.is_cancelled() {
        return;
    }
    served.end.cancel();
    let lifecycle = environment.lifecycle.clone();
    let (environment, served) = (Arc::clone(environment), Arc::clone(served));
    let span =
        tracing::error_span!("run", task_id = %served.task, run_id = %served.run, attempt = served.attempt);
    let closing = async move {
        served.connections.close();
        if tokio::time::timeout(END_WITHIN, served.connections.wait()).await.is_err() {
            tracing::error!(run = %served.run, "gateway.calls_do_not_end");
        }
        notices::last_words(&environment, &served);
        if let Err(error) = closed(&environment, served.run, served.attempt).await {
            // Found again, and closed, by the next look at the grants.
            tracing::warn!(run = %served.run, %error, "gateway.close_failed");
        }
        environment.forget(&served);
        environment.wake.notify_one();
        tracing::info!(run = %served.run, "gateway.closed");
    };
    lifecycle.spawn(closing.instrument(span));
}

async fn closed(environment: &Environment, run: Uuid, attempt: i32) -> Result<(), DbError> {
    let entry = notices::entry("model.close", run, Outcome::Done, json!({ "attempt": attempt }));
    let mut transaction = environment.pool.begin().await?;
    if db::grants::set_closed(&mut transaction, run, attempt, None).await? {
        db::audit::append(&mut transaction, &entry).await?;
        transaction.commit().await?;
    }
    db::notify::send(&environment.pool, db::notify::GRANTS, &run.to_string()).await
}
