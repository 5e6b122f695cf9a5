//! Start and stop of the keeper of refused calls, in the audit trail: it has no database itself, so the runner says what it sees.

use serde_json::json;
use tokio::sync::mpsc::UnboundedReceiver;

use crate::db;
use crate::db::error::DbError;
use crate::db::patience::Patience;
use crate::domain::audit::{Actor, Entry, Outcome};
use crate::runner::environment::Environment;
use crate::runner::keeper::Seen;

/// What is there to be told at the runner's start. It does not begin without it.
///
/// # Errors
/// [`DbError`].
pub(super) async fn begin(
    environment: &Environment,
    news: &mut UnboundedReceiver<Seen>,
    patience: Patience,
) -> Result<(), DbError> {
    while let Ok(seen) = news.try_recv() {
        patience.ask(DbError::is_transient, async || append(environment, &seen).await).await?;
    }
    Ok(())
}

/// What is there to be told at its end.
///
/// # Errors
/// [`DbError`].
pub(super) async fn record(
    environment: &Environment,
    news: &mut UnboundedReceiver<Seen>,
) -> Result<(), DbError> {
    while let Ok(seen) = news.try_recv() {
        append(environment, &seen).await?;
    }
    Ok(())
}

/// Until the runner has said its last word to the keeper.
pub(super) async fn follow(environment: &Environment, news: &mut UnboundedReceiver<Seen>) {
    while let Some(seen) = news.recv().await {
        // What it was cannot be asked later: it is told when the database is there again.
        if let Err(error) = environment.patiently(|| append(environment, &seen)).await {
            tracing::error!(%error, ?seen, "runner.keeper_not_audited");
        }
    }
}

async fn append(environment: &Environment, seen: &Seen) -> Result<(), DbError> {
    let (action, keeper) = match seen {
        Seen::Here { keeper, ours: true } => ("role.start", keeper),
        // Whoever has started it, and when: a service of its own, or the runner before us.
        Seen::Here { keeper, ours: false } => ("role.found", keeper),
        Seen::Gone { keeper } => ("role.stop", keeper),
    };
    let details = json!({ "process": keeper.process, "version": keeper.version,
                          "reads_addresses": keeper.reads_addresses, "attempts": keeper.attempts });
    let actor = Actor::Runner(environment.id.to_string());
    let entry = Entry { actor, action, object: "role:keeper".to_owned(), outcome: Outcome::Done, details };
    let mut connection = environment.pool.acquire().await?;
    db::audit::append(&mut connection, &entry).await
}
