//! How an attempt's CLI ended. A runner writes it down before the harvest, so that one that takes the run up
//! again need not ask anybody.

use kage_shim::protocol::{EndedBy, Exited};
use serde::{Deserialize, Serialize};

use crate::domain::judgement::Told;
use crate::domain::run::RunState;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Verdict {
    /// `Succeeded` until the harvest has shown whether anything changed.
    pub state: RunState,
    pub error: Option<String>,
    pub exit_code: Option<i32>,
    /// Whether another attempt may well go better.
    pub transient: bool,
    /// What the state rests on, in words.
    pub decided_by: String,
    /// What the CLI said of itself.
    #[serde(default)]
    pub told: Told,
}

impl Verdict {
    pub fn new(state: RunState, error: impl Into<String>) -> Self {
        let transient = matches!(state, RunState::TimedOut | RunState::IdleTimeout | RunState::Lost);
        Self { state, error: Some(error.into()), exit_code: None, transient, ..Self::of(state) }
    }

    /// Its state, and who decides on such a one.
    fn of(state: RunState) -> Self {
        let decided_by = match state {
            RunState::TimedOut => "wall-clock limit",
            RunState::IdleTimeout => "idle limit",
            RunState::OutOfMemory => "memory limit",
            RunState::OutputLimit => "output limit",
            RunState::BudgetExhausted => "the gateway",
            RunState::Cancelled => "a client",
            RunState::ContainmentRefused => "the proof of containment",
            RunState::SandboxError => "the sandbox",
            RunState::Lost | RunState::Failed => "the runner",
            RunState::Succeeded => "final event",
            _ => "",
        };
        Self {
            state,
            error: None,
            exit_code: None,
            transient: false,
            decided_by: decided_by.to_owned(),
            told: Told::default(),
        }
    }

    /// The CLI has said that it is done, and does not exit by itself.
    pub fn done() -> Self {
        Self::of(RunState::Succeeded)
    }

    /// The gateway serves the run no longer. `reason`: as the grant has it.
    pub fn budget_exhausted(reason: &str) -> Self {
        let error = match reason {
            "budget_exhausted" => "its model budget is spent".to_owned(),
            other => format!("the model gateway ended it: {other}"),
        };
        Self::new(RunState::BudgetExhausted, error)
    }

    /// What the shim reports, where nothing else ended the CLI. `transient_words`: the output's end speaks of
    /// a fault that passes.
    pub fn of_exit(exited: &Exited, transient_words: bool) -> Self {
        let oom = exited.oom_kills > 0;
        let state = |state, error: String| Self {
            state,
            error: Some(error),
            exit_code: exited.code,
            decided_by: match (exited.code, exited.signal) {
                (Some(code), _) => format!("exit status {code}"),
                (None, Some(signal)) => format!("signal {signal}"),
                (None, None) => "the sandbox".to_owned(),
            },
            ..Self::of(state)
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
            (Some(0), _) => Self { error: None, ..state(RunState::Succeeded, String::new()) },
            _ if oom => state(RunState::OutOfMemory, "over its memory limit; the kernel ended it".to_owned()),
            (Some(code), _) => Self {
                transient: transient_words,
                ..state(RunState::Failed, format!("the CLI ended with status {code}"))
            },
            (None, Some(signal)) => state(RunState::Failed, format!("signal {signal} ended the CLI")),
            (None, None) => state(RunState::SandboxError, "the shim reported no exit status".to_owned()),
        }
    }
}
