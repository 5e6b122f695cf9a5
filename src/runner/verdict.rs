//! How an attempt's CLI ended: written down before the harvest, so that a runner that takes the run up
//! again need not ask anybody.

use kage_shim::protocol::{EndedBy, Exited};
use serde::{Deserialize, Serialize};

use crate::db::attempts::Ending;
use crate::domain::run::RunState;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Verdict {
    /// `Succeeded` until the harvest has shown whether anything changed.
    pub state: RunState,
    pub error: Option<String>,
    pub exit_code: Option<i32>,
    /// Whether another attempt may well go better.
    pub transient: bool,
}

impl Verdict {
    pub fn new(state: RunState, error: impl Into<String>) -> Self {
        let transient = matches!(state, RunState::TimedOut | RunState::IdleTimeout | RunState::Lost);
        Self { state, error: Some(error.into()), exit_code: None, transient }
    }

    /// What the shim reports, where nothing else ended the CLI. `transient_words`: the output's end speaks of
    /// a fault that passes.
    pub fn of_exit(exited: &Exited, transient_words: bool) -> Self {
        let oom = exited.oom_kills > 0;
        let state = |state, error: String| Self {
            state,
            error: Some(error),
            exit_code: exited.code,
            transient: false,
        };
        if let Some(error) = &exited.spawn_error {
            return state(RunState::SandboxError, format!("the CLI could not be started: {error}"));
        }
        match exited.ended_by {
            EndedBy::WallClock => {
                return Self::new(RunState::TimedOut, "over its wall-clock limit (ended by the shim)");
            }
            EndedBy::Orphaned => return Self::new(RunState::Lost, "no runner came back for it in time"),
            EndedBy::Runner | EndedBy::Itself => {}
        }
        match (exited.code, exited.signal) {
            (Some(0), _) => {
                Self { state: RunState::Succeeded, error: None, exit_code: Some(0), transient: false }
            }
            _ if oom => state(RunState::OutOfMemory, "over its memory limit; the kernel ended it".to_owned()),
            (Some(code), _) => Self {
                transient: transient_words,
                ..state(RunState::Failed, format!("the CLI ended with status {code}"))
            },
            (None, Some(signal)) => state(RunState::Failed, format!("signal {signal} ended the CLI")),
            (None, None) => state(RunState::SandboxError, "the shim reported no exit status".to_owned()),
        }
    }

    pub fn ending(&self) -> Ending {
        Ending { state: self.state, error: self.error.clone(), exit_code: self.exit_code }
    }
}
