//! What a run's watchers are told of its states.

use chrono::Utc;
use sqlx::PgConnection;

use crate::db::error::DbError;
use crate::db::events::{self, NewEvent};
use crate::db::run_parts;
use crate::db::runs::RunRow;
use crate::domain::event::EventKind;
use crate::domain::run::RunState;
use crate::wire;

pub(super) fn state_event(run: &RunRow, state: RunState, attempt: i32, reason: Option<&str>) -> NewEvent {
    NewEvent::other(
        EventKind::State,
        &wire::event::State {
            task_id: run.task_id,
            run: run.name.clone(),
            run_id: run.id,
            state,
            attempt: attempt.unsigned_abs(),
            reason: reason.map(str::to_owned),
            timestamp: Utc::now(),
        },
    )
}

pub(super) fn progress_event(run: &RunRow, state: RunState, message: String) -> NewEvent {
    NewEvent::other(EventKind::Progress, &progress(run, state, message))
}

fn progress(run: &RunRow, state: RunState, message: String) -> wire::event::Progress {
    wire::event::Progress {
        task_id: run.task_id,
        cli_name: run.name.clone(),
        session_id: run.id,
        status: state.progress_status(),
        message,
        timestamp: Utc::now(),
        activity: None,
        files_modified: None,
        cost: None,
        duration: None,
    }
}

/// The `result` event and the predecessor's last `progress` event of a run that has ended. `paths`: those that are
/// [`crate::db::results::listed`].
///
/// # Errors
/// [`DbError`].
pub(super) async fn append_result(
    connection: &mut PgConnection,
    run: &RunRow,
    paths: Vec<String>,
    warnings: &[String],
) -> Result<(), DbError> {
    let state = run.state();
    let message = match &run.error {
        Some(error) => format!("{state}: {error}"),
        None => format!("{state}: {} file(s) changed", run.files_changed),
    };
    let progress = wire::event::Progress {
        files_modified: Some(paths.clone()),
        cost: Some(run.cost_usd),
        duration: Some(run.duration()),
        ..progress(run, state, message)
    };
    let parts = run_parts::of_runs(connection, &[run.id]).await?.remove(&run.id);
    let result = wire::event::RunResult {
        task_id: run.task_id,
        run: run.to_wire(parts.unwrap_or_default()),
        files_modified: paths,
        warnings: warnings.to_vec(),
    };
    let new = [NewEvent::other(EventKind::Progress, &progress), NewEvent::other(EventKind::Result, &result)];
    events::append(connection, run.task_id, Some(run.id), &new).await?;
    Ok(())
}
