//! A run's way to a model: asked of the gateway before the sandbox is made, ended with the attempt.
//!
//! The two meet in Postgres and in one folder, `model/<run>` in the data folder, which this role makes, gives to the
//! gateway's user, mounts into the sandbox read-only, and removes.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::path::Path;
use std::time::Duration;

use tokio::time::Instant;

use crate::db;
use crate::db::error::DbError;
use crate::db::grants::{GrantRow, Wish};
use crate::db::model_calls::PastCall;
use crate::db::runs::RunRow;
use crate::domain::model_name::ModelName;
use crate::image::manifest::ModelAccess;
use crate::runner::drive::Drive;
use crate::runner::environment::Environment;
use crate::runner::failure::RunFailure;

/// How long a gateway may take to open a run's socket.
const OPEN_WITHIN: Duration = Duration::from_secs(30);
/// How long it may take to settle a run's last calls.
const CLOSE_WITHIN: Duration = Duration::from_secs(10);
const CLOSE_PAUSE: Duration = Duration::from_millis(20);

/// Of an attempt's calls: the last decide, and more than these no CLI tries in a row.
const LAST_CALLS: i64 = 50;

/// What the gateway knows of an attempt that has ended.
#[derive(Debug, Default)]
pub(super) struct Record {
    /// Why the gateway ended it.
    pub stopped: Option<String>,
    /// Its last calls, the last first.
    pub calls: Vec<PastCall>,
    /// The gateway did not say in time that it has settled everything.
    pub unsettled: bool,
}

/// Asks for a socket. What follows does not wait for it: see [`opened`].
pub(super) async fn want(drive: Drive<'_>, run: &RunRow, access: &ModelAccess) -> Result<(), RunFailure> {
    let environment = drive.environment;
    make_folder(&environment.folders.model(run.id), environment)?;
    let wish = Wish {
        run: run.id,
        task: run.task_id,
        attempt: run.attempt,
        cli_name: &run.cli_name,
        dialect: access.dialect.as_str(),
        model_asked: run.model.as_deref(),
        model_default: access.default.as_str(),
        traceparent: drive.here.trace.get().and_then(|(_, parent)| parent.as_deref()),
    };
    let want = || async {
        let mut connection = environment.pool.acquire().await?;
        db::grants::want(&mut connection, &wish).await
    };
    environment.patiently(want).await?;
    tell(environment, run).await;
    Ok(())
}

/// Waits for the gateway's answer: the model that the CLI is to ask for.
pub(super) async fn opened(drive: Drive<'_>, run: &RunRow) -> Result<ModelName, RunFailure> {
    let pool = &drive.environment.pool;
    let wait = || db::grants::wait_row(pool, run.id, OPEN_WITHIN);
    let answer = tokio::select! {
        answer = drive.environment.patiently(wait) => answer?,
        // What follows ends the run as cancelled; nobody asks for this model.
        () = drive.orders.cancel.cancelled() => return Err(RunFailure::Cancelled),
    };
    let Some(grant) = answer else {
        return Err(RunFailure::NoGateway(OPEN_WITHIN.as_secs()));
    };
    if let Some(why) = grant.error.filter(|_| grant.state == "closed") {
        return Err(RunFailure::Model(why));
    }
    let model = grant.model.filter(|_| grant.state == "open");
    let model = model.ok_or_else(|| RunFailure::Model("the model gateway closed at once".to_owned()))?;
    model.parse().map_err(|error| RunFailure::Model(format!("the gateway's model {model:?}: {error}")))
}

/// Ends what there is of a grant, and waits for the last call to be settled. Safe to repeat.
pub(super) async fn close(drive: Drive<'_>, run: &RunRow) -> Result<Record, RunFailure> {
    let environment = drive.environment;
    let close = || async {
        let mut connection = environment.pool.acquire().await?;
        db::grants::close(&mut connection, run.id).await
    };
    environment.patiently(close).await?;
    tell(environment, run).await;
    let settled = || settled(environment, run);
    let Some(grant) = environment.patiently(settled).await? else { return Ok(Record::default()) };
    let calls = || db::model_calls::last_outcomes(&environment.pool, run.id, run.attempt, LAST_CALLS);
    Ok(Record {
        calls: environment.patiently(calls).await?,
        stopped: grant.stop_reason.clone().filter(|_| grant.attempt == run.attempt),
        unsettled: !grant.is_closed(),
    })
}

async fn settled(environment: &Environment, run: &RunRow) -> Result<Option<GrantRow>, DbError> {
    let give_up = Instant::now() + CLOSE_WITHIN;
    loop {
        let grant = db::grants::find(&environment.pool, run.id).await?;
        if grant.as_ref().is_none_or(GrantRow::is_closed) || Instant::now() >= give_up {
            return Ok(grant);
        }
        tokio::time::sleep(CLOSE_PAUSE).await;
    }
}

/// Should it get lost, the gateway's slow poll finds the row.
async fn tell(environment: &Environment, run: &RunRow) {
    let told = db::notify::send(&environment.pool, db::notify::GRANTS, &run.id.to_string()).await;
    if let Err(error) = told {
        tracing::warn!(run = %run.id, %error, "runner.notify_failed");
    }
}

/// One that is there stays: an attempt that is begun anew may be served already.
///
/// The gateway's user owns it, the sandbox's group may enter: whoever else is on this host cannot speak for the run.
fn make_folder(path: &Path, environment: &Environment) -> Result<(), RunFailure> {
    match DirBuilder::new().mode(0o700).create(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
            return Err(RunFailure::io(path)(error));
        }
        _ => {}
    }
    let group = environment.file_owner().map(|(_, group)| group);
    if environment.gateway_uid.is_some() || group.is_some() {
        std::os::unix::fs::chown(path, environment.gateway_uid, group).map_err(RunFailure::io(path))?;
    }
    // After the change of owner: until then it is nobody's but ours.
    fs::set_permissions(path, fs::Permissions::from_mode(0o750)).map_err(RunFailure::io(path))
}

/// Follows no links. Blocks, briefly: there is a socket in it.
pub(super) fn remove_folder(path: &Path) -> Result<(), RunFailure> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(RunFailure::io(path)(error)),
        _ => Ok(()),
    }
}
