//! How an attempt's CLI ended. A runner writes it down before the harvest, so that one that takes the run up
//! again need not ask anybody.

use kage_shim::protocol::{EndedBy, Exited};
use serde::{Deserialize, Serialize};

use crate::domain::judgement::Told;
use crate::domain::run::RunState;

/// What the kernel sends for a write beyond `RLIMIT_FSIZE` (`man 7 signal`; the same on every architecture of ours), and
/// the status with which a shell tells of a command that it has ended.
const SIGXFSZ: i32 = 25;
const SHELL_SIGXFSZ: i32 = 128 + SIGXFSZ;

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

/// The limit whose end a state is.
const fn limit_of(state: RunState) -> Option<&'static str> {
    Some(match state {
        RunState::TimedOut => "wall-clock limit",
        RunState::IdleTimeout => "idle limit",
        RunState::OutOfMemory => "memory limit",
        RunState::OutputLimit => "output limit",
        RunState::DiskLimit => "disk limit",
        RunState::ProcessLimit => "process limit",
        RunState::FileLimit => "file size limit",
        _ => return None,
    })
}

impl Verdict {
    pub fn new(state: RunState, error: impl Into<String>) -> Self {
        let transient = matches!(state, RunState::TimedOut | RunState::IdleTimeout | RunState::Lost);
        Self { state, error: Some(error.into()), exit_code: None, transient, ..Self::of(state) }
    }

    /// Its state, and who decides on such a one.
    fn of(state: RunState) -> Self {
        let decided_by = limit_of(state).unwrap_or(match state {
            RunState::BudgetExhausted => "the gateway",
            RunState::Cancelled => "a client",
            RunState::ContainmentRefused => "the proof of containment",
            RunState::SandboxError => "the sandbox",
            RunState::Lost | RunState::Failed => "the runner",
            RunState::Succeeded => "final event",
            _ => "",
        });
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

    /// The sandbox has ended, and its first process said nothing of it. `error`: the engine's word.
    pub fn of_silence(status: i64, error: &str) -> Self {
        // Its own words for a failure of its own, and faults: a process outside would have sent SIGKILL or SIGTERM.
        let inside = matches!(status, 101 | 125 | 132..=136 | 139);
        let what = if inside {
            "the sandbox's first process was ended from inside"
        } else {
            "the sandbox ended without a word"
        };
        Self::new(RunState::SandboxError, format!("{what} (status {status}) {error}").trim().to_owned())
    }

    /// What the shim reports, where nothing else ended the CLI. `transient_words`: the output's end speaks of
    /// a fault that passes.
    pub fn of_exit(exited: &Exited, transient_words: bool) -> Self {
        let oom = exited.oom_kills > 0;
        let state = |state, error: String| Self {
            state,
            error: Some(error),
            exit_code: exited.code,
            decided_by: match (limit_of(state), exited.code, exited.signal) {
                (Some(limit), Some(code), _) => format!("{limit} (exit status {code})"),
                (Some(limit), None, Some(signal)) => format!("{limit} (signal {signal})"),
                (Some(limit), None, None) => limit.to_owned(),
                (None, Some(code), _) => format!("exit status {code}"),
                (None, None, Some(signal)) => format!("signal {signal}"),
                (None, None, None) => "the sandbox".to_owned(),
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
            EndedBy::Container => {
                let why = "its container was told to end; was the engine stopped, or started anew?";
                return Self { exit_code: exited.code, ..Self::new(RunState::Lost, why) };
            }
            // Whoever told it to end and is there still knows why, and does not ask here.
            EndedBy::Runner => {
                let why = "a runner that is gone told it to end, and could not write down why";
                return Self { exit_code: exited.code, ..Self::new(RunState::Lost, why) };
            }
            EndedBy::Itself => {}
        }
        match (exited.code, exited.signal) {
            (Some(0), _) => Self { error: None, ..state(RunState::Succeeded, String::new()) },
            _ if oom => state(RunState::OutOfMemory, "over its memory limit; the kernel ended it".to_owned()),
            _ if !exited.full.is_empty() => {
                state(RunState::DiskLimit, format!("no room was left in {}", exited.full.join(", ")))
            }
            _ if exited.refused_forks > 0 => {
                let times = exited.refused_forks;
                state(RunState::ProcessLimit, format!("over its process limit: refused {times} times"))
            }
            (None, Some(SIGXFSZ)) | (Some(SHELL_SIGXFSZ), _) => {
                state(RunState::FileLimit, "wrote a file over its size limit; the kernel ended it".to_owned())
            }
            (Some(code), _) => Self {
                transient: transient_words,
                ..state(RunState::Failed, format!("the CLI ended with status {code}"))
            },
            (None, Some(signal)) => state(RunState::Failed, format!("signal {signal} ended the CLI")),
            (None, None) => state(RunState::SandboxError, "the shim reported no exit status".to_owned()),
        }
    }
}

/// The limits that a CLI has run into and lived on, in words, for the run's watchers; none if it ended by one.
pub fn limits_met(exited: &Exited, ended_as: RunState) -> Option<String> {
    let mut met = Vec::new();
    if exited.oom_kills > 0 && ended_as != RunState::OutOfMemory {
        met.push(format!("the kernel ended {} of its processes for want of memory", exited.oom_kills));
    }
    if !exited.full.is_empty() && ended_as != RunState::DiskLimit {
        met.push(format!("no room was left in {}", exited.full.join(", ")));
    }
    if exited.refused_forks > 0 && ended_as != RunState::ProcessLimit {
        met.push(format!("{} processes or threads over its limit were refused", exited.refused_forks));
    }
    (!met.is_empty()).then(|| format!("it met its limits: {}", met.join("; ")))
}

#[cfg(test)]
mod tests {
    use kage_shim::protocol::Offsets;

    use super::*;

    fn exited(code: Option<i32>, signal: Option<i32>) -> Exited {
        Exited {
            code,
            signal,
            spawn_error: None,
            ended_by: EndedBy::Itself,
            oom_kills: 0,
            refused_forks: 0,
            full: Vec::new(),
            total: Offsets::default(),
        }
    }

    /// What the CLI met, and what it then ended as when it failed.
    fn met() -> [(Exited, RunState); 5] {
        let base = exited(Some(1), None);
        [
            (Exited { oom_kills: 1, refused_forks: 3, ..base.clone() }, RunState::OutOfMemory),
            (Exited { full: vec!["/tmp".to_owned()], refused_forks: 3, ..base.clone() }, RunState::DiskLimit),
            (Exited { refused_forks: 3, ..base }, RunState::ProcessLimit),
            (exited(None, Some(25)), RunState::FileLimit),
            (exited(Some(153), None), RunState::FileLimit),
        ]
    }

    #[test]
    fn each_limit_is_an_end_of_its_own() {
        for (exited, state) in met() {
            let verdict = Verdict::of_exit(&exited, true);
            assert_eq!((verdict.state, verdict.transient), (state, false), "{exited:?}");
            let limit = limit_of(state).unwrap();
            assert!(verdict.decided_by.starts_with(limit), "{}", verdict.decided_by);
        }
        let killed = Exited { oom_kills: 1, ..exited(Some(137), None) };
        assert_eq!(Verdict::of_exit(&killed, false).decided_by, "memory limit (exit status 137)");
        let signalled = Verdict::of_exit(&exited(None, Some(25)), false);
        assert_eq!(signalled.decided_by, "file size limit (signal 25)");
        assert_eq!(Verdict::of_exit(&exited(Some(1), None), false).state, RunState::Failed);
    }

    /// An engine that is started anew sends SIGTERM to all that runs, and a CLI may well say good-bye to it with 0.
    #[test]
    fn one_whose_container_was_told_to_end_is_tried_again() {
        for (code, signal) in [(None, Some(15)), (Some(0), None), (Some(143), None)] {
            let exited = Exited { ended_by: EndedBy::Container, ..exited(code, signal) };
            let verdict = Verdict::of_exit(&exited, false);
            assert_eq!((verdict.state, verdict.transient), (RunState::Lost, true), "{exited:?}");
        }
    }

    #[test]
    fn a_first_process_that_was_ended_is_told_apart_from_a_sandbox_that_was() {
        for (status, inside) in [(125, true), (101, true), (139, true), (137, false), (143, false)] {
            let verdict = Verdict::of_silence(status, "");
            let told = verdict.error.expect("a reason").contains("from inside");
            assert_eq!((verdict.state, told), (RunState::SandboxError, inside), "{status}");
        }
    }

    /// A build that asked for too many jobs and managed with fewer has not failed; but it is told.
    #[test]
    fn a_cli_that_lived_on_and_ended_well_has_succeeded() {
        for (exited, _) in met().into_iter().take(3) {
            let exited = Exited { code: Some(0), ..exited };
            let verdict = Verdict::of_exit(&exited, false);
            assert_eq!(verdict.state, RunState::Succeeded, "{exited:?}");
            assert!(limits_met(&exited, verdict.state).is_some(), "{exited:?}");
        }
        assert_eq!(limits_met(&exited(Some(0), None), RunState::Succeeded), None);
        let full = Exited { full: vec!["/tmp".to_owned()], ..exited(Some(1), None) };
        assert_eq!(limits_met(&full, RunState::DiskLimit), None, "said already");
    }
}
