//! What keeps a runner from starting, and what ends a run without a verdict of its own.

use std::collections::BTreeSet;
use std::path::PathBuf;

use crate::db::error::DbError;
use crate::db::runs::RunRow;
use crate::disk::error::DiskError;
use crate::domain::name::InvalidName;
use crate::domain::run::RunState;
use crate::domain::runtime::RuntimeRefused;
use crate::domain::verdict::Verdict;
use crate::git::error::GitError;
use crate::runner::room::says_full;
use crate::sandbox::error::SandboxError;
use crate::sandbox::refusals::client::KeeperError;
use crate::sandbox::shim_link::LinkError;

/// Whoever prints it prints its sources too: none is in a text of its own as well.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error("{path}", path = path.display())]
    Folder { path: PathBuf, source: std::io::Error },
    #[error("another runner works in {path}: one runner for each KAGE_DATA_DIR", path = .0.display())]
    Taken(PathBuf),
    #[error(
        "no shim at {path} ({reason}): build it (see the README) and put it beside `kage`, or set KAGE_RUNNER_SHIM",
        path = path.display()
    )]
    Shim { path: PathBuf, reason: std::io::Error },
    #[error(transparent)]
    Engine(#[from] SandboxError),
    #[error(transparent)]
    Git(#[from] GitError),
    #[error("KAGE_RUNNER_DISK: no file system can be made for each run")]
    Disk(#[from] DiskError),
    #[error(
        "KAGE_RUNNER_RUNTIMES_ALLOWED: the engine knows no runtime {name:?}; it knows {}",
        known.iter().map(String::as_str).collect::<Vec<_>>().join(", ")
    )]
    Runtime { name: String, known: BTreeSet<String> },
    #[error(
        "this host cannot hold sandboxes as they must be held:\n{}\nTo start all the same, name what you accept: KAGE_RUNNER_ACCEPT_HOST={}",
        .texts.join("\n"), .ids.join(",")
    )]
    Host { ids: Vec<&'static str>, texts: Vec<String> },
    #[error("what was found on this host could not be written into the audit trail")]
    Audit(#[source] DbError),
    #[error(
        "{0}; nothing is started without it. Is `kage keeper` running with this KAGE_DATA_DIR? Where no service runs it, the runner does \
         (KAGE_RUNNER_KEEPER=auto), and what went wrong is in refusals/keeper.log. One of another version that still holds sandboxes \
         has its process id in refusals/keeper.lock"
    )]
    Keeper(KeeperError),
    #[error("KAGE_RUNNER_UID: {0} cannot be a sandbox's user")]
    User(u32),
    #[error("KAGE_RUNNER_GATEWAY_UID: only root can give a run's folder to another user ({0})")]
    GatewayUser(u32),
}

/// Why a run could not be brought to its end in the ordinary way.
#[derive(Debug, thiserror::Error)]
pub(super) enum RunFailure {
    /// Somebody else has it now: touch nothing.
    #[error("lost the lease")]
    LeaseLost,
    /// We are told to stop: leave everything for the next start.
    #[error("stopping")]
    Stopping,
    #[error(transparent)]
    Sandbox(#[from] SandboxError),
    #[error(transparent)]
    Link(#[from] LinkError),
    /// No listener, no start.
    #[error(transparent)]
    Keeper(#[from] KeeperError),
    #[error(transparent)]
    Git(#[from] GitError),
    #[error("the worktree's own file system: {0}")]
    Disk(#[from] DiskError),
    #[error("{0}")]
    Refused(String),
    /// The sandbox is not what it was asked to be.
    #[error("the sandbox is not contained as it must be: {}", .0.join("; "))]
    Containment(Vec<String>),
    /// The run left more than its limits allow.
    #[error("{0}")]
    Limit(String),
    /// The gateway will not serve the run, and says why.
    #[error("{0}")]
    Model(String),
    #[error(
        "the model gateway did not open this run's socket within {0} s; is `kage gateway` running, and does it see KAGE_DATA_DIR/model?"
    )]
    NoGateway(u64),
    /// A client asked to cancel while something was waited for.
    #[error("cancelled before the CLI began")]
    Cancelled,
    /// The same while its result waited for room on the disk.
    #[error("cancelled before there was room on the data folder's disk for its changes, which are lost")]
    CancelledWithoutRoom,
    /// The task names a revision that is not there.
    #[error("{0}")]
    Revision(String),
    #[error(transparent)]
    Database(DbError),
    #[error("{path}: {source}", path = path.display())]
    Io { path: PathBuf, source: std::io::Error },
}

impl RunFailure {
    pub fn io(path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { path, source }
    }

    /// Whether another attempt may well go better.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Sandbox(error) if error.is_transient() => true,
            Self::Git(error) if error.is_transient() => true,
            Self::Link(_) | Self::Keeper(_) | Self::NoGateway(_) => true,
            // Runs end, and make room.
            Self::Sandbox(_) | Self::Git(_) | Self::Disk(_) | Self::Io { .. } | Self::Refused(_) => {
                says_full(&self.to_string())
            }
            _ => false,
        }
    }
}

impl From<RuntimeRefused> for RunFailure {
    fn from(error: RuntimeRefused) -> Self {
        Self::Refused(error.to_string())
    }
}

impl From<InvalidName> for RunFailure {
    fn from(error: InvalidName) -> Self {
        Self::Refused(error.to_string())
    }
}

impl From<DbError> for RunFailure {
    fn from(error: DbError) -> Self {
        match error {
            DbError::LeaseLost(_) => Self::LeaseLost,
            other => Self::Database(other),
        }
    }
}

/// What a run's row says of how its attempt ended, or is being ended; `None` if nothing did yet.
pub(super) fn noted(run: &RunRow) -> Option<Verdict> {
    let mut verdict: Verdict = serde_json::from_value(run.verdict.clone()?).ok()?;
    // What the CLI went on to say is in the row beside it.
    if let (RunState::Running, Some(told)) = (run.state(), &run.told) {
        verdict.told = serde_json::from_value(told.clone()).unwrap_or_default();
    }
    Some(verdict)
}

/// The same of an attempt that has ended.
pub(super) fn written(run: &RunRow) -> Verdict {
    noted(run)
        .unwrap_or_else(|| Verdict::new(RunState::SandboxError, "the record of how its CLI ended is broken"))
}

/// What a failure means for the attempt; those that are not the attempt's stay failures.
pub(super) fn verdict_of(failure: RunFailure) -> Result<Verdict, RunFailure> {
    match failure {
        RunFailure::LeaseLost | RunFailure::Stopping | RunFailure::Database(_) => Err(failure),
        RunFailure::Revision(why) => Ok(Verdict::new(RunState::Failed, why)),
        RunFailure::Model(why) => {
            Ok(Verdict { decided_by: "the gateway".to_owned(), ..Verdict::new(RunState::Failed, why) })
        }
        RunFailure::Containment(_) => Ok(Verdict::new(RunState::ContainmentRefused, failure.to_string())),
        RunFailure::Cancelled | RunFailure::CancelledWithoutRoom => {
            Ok(Verdict::new(RunState::Cancelled, failure.to_string()))
        }
        other => {
            let transient = other.is_transient();
            Ok(Verdict { transient, ..Verdict::new(RunState::SandboxError, other.to_string()) })
        }
    }
}
