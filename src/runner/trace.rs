//! A run's part of its task's trace.

use tracing::Span;

use crate::db::runs::RunRow;
use crate::db::tasks::TaskRow;
use crate::domain::run::RunState;
use crate::traces;

/// The attempt that is to begin, or goes on.
pub(super) fn attempt(run: &RunRow) -> i32 {
    run.attempt + i32::from(run.state() == RunState::Queued)
}

/// For the log alone: from the claim to the lease's end.
pub(super) fn lines(run: &RunRow) -> Span {
    tracing::error_span!("run", task_id = %run.task_id, run_id = %run.id, attempt = attempt(run))
}

/// Its span, and what continues that elsewhere.
pub(super) fn begin(run: &RunRow, task: &TaskRow) -> (Span, Option<String>) {
    let span = tracing::error_span!(
        target: traces::TARGET,
        parent: None,
        "run", task_id = %run.task_id, run_id = %run.id, attempt = attempt(run), cli = run.cli_name,
        run.state = tracing::field::Empty
    );
    let given = task.traceparent.as_deref();
    traces::continue_from(&span, given);
    let further = traces::traceparent(&span, given);
    (span, further)
}
