//! A call that the gateway refuses by itself is in the books too: a CLI that is refused and ends well all the same is
//! judged by them. One row for each kind of refusal between two calls that are booked: so many rows a CLI can cause,
//! however often it asks.

use std::sync::Arc;
use std::time::Duration;

use crate::db;
use crate::db::model_calls::RefusedCall;
use crate::dialect::answer::{Refusal, RefusalKind};
use crate::gateway::environment::Environment;
use crate::gateway::served::ServedRun;

/// How long a refusal waits for the books.
const PATIENCE: Duration = Duration::from_secs(2);

/// Books a refusal that the CLI gets with this status; before its answer, for the CLI may end with it.
pub(super) async fn book(
    environment: &Arc<Environment>,
    run: &Arc<ServedRun>,
    refusal: &Refusal,
    status: u16,
) {
    let kind = refusal.kind;
    // A spent budget is in the run's grant, and after its end nobody is judged.
    if matches!(kind, RefusalKind::BudgetExhausted | RefusalKind::Revoked)
        || !run.is_first_refusal(kind.as_str())
    {
        return;
    }
    let (done, written) = tokio::sync::oneshot::channel();
    let (this, served) = (Arc::clone(environment), Arc::clone(run));
    let error: String = environment.without_secrets(&refusal.message).chars().take(500).collect();
    // Tracked by the run, so that its grant is closed after it; a CLI that hangs up does not stop it.
    environment.lifecycle.spawn(run.connections.track_future(async move {
        let call = RefusedCall {
            run: served.run,
            task: served.task,
            attempt: served.attempt,
            provider: &served.provider.name,
            dialect: served.dialect.as_str(),
            status,
            error: &error,
        };
        if let Err(error) = db::model_calls::insert_refused(&this.pool, &call).await {
            tracing::error!(run = %served.run, %error, "gateway.refusal_not_booked");
            served.forget_refusal(kind.as_str());
        }
        // The waiter may have lost its patience.
        let _ = done.send(());
    }));
    let _ = tokio::time::timeout(PATIENCE, written).await;
}
