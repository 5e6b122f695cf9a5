//! What a run's watchers and the audit trail are told. An event and its audit entry are one transaction.

use std::sync::Arc;

use chrono::Utc;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::db;
use crate::db::error::DbError;
use crate::db::events::NewEvent;
use crate::dialect::answer::{Refusal, RefusalKind};
use crate::domain::audit::{Actor, Entry, Outcome};
use crate::domain::event::EventKind;
use crate::domain::security_event::{SecurityEvent, SecurityEventKind};
use crate::gateway::environment::Environment;
use crate::gateway::served::ServedRun;
use crate::metrics::metrics;
use crate::wire::event::Notice;

/// Why a run is ended, in its grant.
const BUDGET_EXHAUSTED: &str = "budget_exhausted";

/// A warning on a run's stream.
pub(super) fn warning(task: Uuid, run: Option<&str>, message: String) -> NewEvent {
    let notice = Notice { task_id: task, run: run.map(str::to_owned), message, timestamp: Utc::now() };
    NewEvent::other(EventKind::Warning, &notice)
}

pub(super) fn entry(action: &'static str, run: Uuid, outcome: Outcome, details: Value) -> Entry {
    Entry { actor: Actor::Gateway, action, object: format!("run:{run}"), outcome, details }
}

/// Tells of a refusal, in the background; of the first few in a minute one by one, of the others how many.
pub(super) fn refused(environment: &Arc<Environment>, run: &Arc<ServedRun>, refusal: &Refusal) {
    metrics().model.refused(&run.provider.name, refusal.kind.as_str());
    // Told once, by `stop`.
    if refusal.kind == RefusalKind::BudgetExhausted {
        return;
    }
    let Some(untold) = run.tell() else { return };
    // Only what is told is logged: a CLI can cause as many refusals as it likes.
    tracing::info!(run = %run.run, kind = refusal.kind.as_str(), untold, "gateway.refused");
    let words = environment.without_secrets(&refusal.message);
    let mut message = format!("model gateway: {words}");
    if untold > 0 {
        message.push_str(&format!(" ({untold} more refusals before it were not told)"));
    }
    let faults = RefusalKind::UpstreamUnavailable;
    let upstream = [faults, RefusalKind::UpstreamTimeout, RefusalKind::UpstreamBroken];
    let audit = (!upstream.contains(&refusal.kind)).then(|| {
        let details = json!({ "kind": refusal.kind.as_str(), "attempt": run.attempt, "cli": run.cli,
                              "message": words, "untold_before": untold });
        entry("model.refuse", run.run, Outcome::Refused, details)
    });
    in_background(environment, run, message, audit);
}

/// Tells something once a run: what was taken out of requests, a price that is a guess.
pub(super) fn remark(
    environment: &Arc<Environment>,
    run: &Arc<ServedRun>,
    action: &'static str,
    message: &str,
) {
    if run.is_new(message) {
        let message = environment.without_secrets(message);
        let details = json!({ "attempt": run.attempt, "cli": run.cli, "message": message });
        let audit = Some(entry(action, run.run, Outcome::Done, details));
        in_background(environment, run, format!("model gateway: {message}"), audit);
    }
}

/// What was never told is told at the end.
pub(super) fn last_words(environment: &Arc<Environment>, run: &Arc<ServedRun>) {
    let untold = run.take_untold();
    if untold > 0 {
        let details = json!({ "kind": "untold", "attempt": run.attempt, "cli": run.cli, "untold": untold });
        let audit = Some(entry("model.refuse", run.run, Outcome::Refused, details));
        in_background(
            environment,
            run,
            format!("model gateway: {untold} more refusals were not told"),
            audit,
        );
    }
}

fn in_background(
    environment: &Arc<Environment>,
    run: &Arc<ServedRun>,
    message: String,
    audit: Option<Entry>,
) {
    let (environment, run) = (Arc::clone(environment), Arc::clone(run));
    environment.lifecycle.clone().spawn(async move {
        let new = warning(run.task, Some(&run.name), message);
        let write = async {
            let mut transaction = environment.pool.begin().await?;
            db::events::append(&mut transaction, run.task, Some(run.run), &[new]).await?;
            if let Some(entry) = &audit {
                db::audit::append(&mut transaction, entry).await?;
            }
            transaction.commit().await?;
            db::notify::send_events(&environment.pool, &[run.task]).await
        };
        if let Err(error) = write.await {
            tracing::error!(run = %run.run, %error, "gateway.notice_lost");
        }
    });
}

/// Ends a run whose budget is spent: the reason in its grant, the event and the audit entry in one
/// transaction, before the CLI gets its answer. The runner hears of it and ends the CLI.
///
/// # Errors
/// [`DbError`].
pub(super) async fn stop(environment: &Environment, run: &ServedRun, why: &str) -> Result<(), DbError> {
    let mut transaction = environment.pool.begin().await?;
    let new = warning(run.task, Some(&run.name), format!("model gateway: {why}; the run is ended"));
    db::events::append(&mut transaction, run.task, Some(run.run), &[new]).await?;
    if !db::grants::stop(&mut transaction, run.run, run.attempt, BUDGET_EXHAUSTED).await? {
        run.stop();
        return Ok(());
    }
    let details =
        json!({ "reason": BUDGET_EXHAUSTED, "attempt": run.attempt, "cli": run.cli, "message": why });
    let event = SecurityEvent::new(SecurityEventKind::BudgetExhausted, &format!("run:{}", run.run), &details)
        .of_run(run.task, run.run);
    db::audit::append(&mut transaction, &entry("model.stop", run.run, Outcome::Done, details)).await?;
    db::security_events::append(&mut transaction, &event).await?;
    transaction.commit().await?;
    metrics().model.stopped();
    // Not before it is written: another call of the run would be told at once, the CLI could end and take this
    // one with it, and nobody would know why.
    run.stop();
    db::notify::send_events(&environment.pool, &[run.task]).await?;
    db::notify::send(&environment.pool, db::notify::CANCEL, &run.task.to_string()).await
}
