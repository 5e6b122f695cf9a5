//! What a run comes to. Exit codes lie, and so may a CLI's last word: its exit, its words, its change and the
//! gateway's own record count together, and the result says which of them decided. Pure: no clock, no database.

use crate::db::model_calls::{CallOutcome, PastCall};
use crate::domain::run::RunState;
use crate::image::manifest::Judge;
use crate::runner::told::Told;
use crate::runner::verdict::Verdict;

/// What there is to judge by, beside the exit.
#[derive(Debug, Clone, Copy)]
pub(super) struct Evidence<'a> {
    pub judge: Judge,
    pub told: &'a Told,
    /// Why the gateway ended the attempt.
    pub stopped: Option<&'a str>,
    /// The attempt's model calls, the last first; `None` for a CLI that asks no model.
    pub calls: Option<&'a [PastCall]>,
}

/// What the worktree shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Work {
    pub changed: bool,
    /// The assignment takes a run that changed nothing for a success.
    pub may_change_nothing: bool,
}

impl Evidence<'_> {
    fn says_done(&self) -> bool {
        self.told.last_word.as_ref().is_some_and(|word| word.ok)
    }

    /// The last call that says something, if it failed. One that the CLI broke off or that was ended with the run says
    /// nothing.
    fn model_failure(&self) -> Option<&PastCall> {
        let silent = [CallOutcome::ClientGone, CallOutcome::Aborted, CallOutcome::Lost];
        let silent = |call: &&PastCall| {
            call.outcome != "open" && silent.iter().all(|outcome| outcome.as_str() != call.outcome)
        };
        self.calls?.iter().find(silent).filter(|call| !call.is_ok())
    }

    /// It asks a model, and never got an answer.
    fn never_answered(&self) -> bool {
        self.calls.is_some_and(|calls| !calls.iter().any(PastCall::is_ok))
    }

    /// The most telling error that there is.
    fn error(&self) -> Option<String> {
        let model = self.model_failure().map(words);
        let last = self.told.last_word.as_ref().filter(|word| !word.ok);
        model.or_else(|| last.and_then(|word| word.message.clone())).or_else(|| self.told.error.clone())
    }
}

/// Before the worktree is looked at: whether the gateway ended the attempt, and whether another one may go better.
pub(super) fn before_harvest(verdict: Verdict, evidence: Evidence<'_>) -> Verdict {
    let by_itself = matches!(verdict.state, RunState::Succeeded | RunState::Failed);
    if by_itself && let Some(reason) = evidence.stopped {
        let finished = verdict.state == RunState::Succeeded && evidence.says_done();
        if !finished {
            let ended = Verdict::budget_exhausted(reason);
            return Verdict { exit_code: verdict.exit_code, ..ended };
        }
    }
    if verdict.state != RunState::Failed {
        return verdict;
    }
    let transient = verdict.transient || evidence.model_failure().is_some_and(passes);
    let error = match (verdict.error, evidence.error()) {
        (Some(error), Some(why)) => Some(format!("{error}; {why}")),
        (error, why) => error.or(why),
    };
    Verdict { transient, error, ..verdict }
}

/// The state that the run ends in.
pub(super) fn after_harvest(verdict: Verdict, evidence: Evidence<'_>, work: Work) -> Verdict {
    if verdict.state != RunState::Succeeded {
        return verdict;
    }
    let fails = |error: String, decided_by: &str| Verdict {
        state: RunState::Failed,
        error: Some(error),
        transient: evidence.model_failure().is_some_and(passes),
        decided_by: decided_by.to_owned(),
        ..verdict.clone()
    };
    if evidence.told.last_word.as_ref().is_some_and(|word| !word.ok) {
        let error = evidence.error().unwrap_or_else(|| "the CLI says that it failed".to_owned());
        return fails(error, "final event");
    }
    if evidence.judge == Judge::Final && evidence.told.last_word.is_none() {
        let why = evidence.error().map(|why| format!("; {why}")).unwrap_or_default();
        return fails(format!("the CLI ended with status 0 without a final event{why}"), "no final event");
    }
    let idle = !work.changed && !work.may_change_nothing;
    let done = evidence.says_done();
    if let Some(call) = evidence.model_failure().filter(|_| idle || !done) {
        return fails(words(call), "the gateway's record");
    }
    if !work.changed && (idle || !done) && evidence.never_answered() {
        let error = match &evidence.told.error {
            Some(error) => format!("no model answered it; {error}"),
            None => "it ended with status 0, but no model ever answered it".to_owned(),
        };
        return fails(error, "the gateway's record");
    }
    if let Some(error) = evidence.told.error.as_ref().filter(|_| !work.changed && !done) {
        return fails(error.clone(), "error event");
    }
    if idle {
        let error = match verdict.exit_code {
            Some(code) => format!("the CLI ended with status {code} but changed nothing"),
            None => "the CLI ended well but changed nothing".to_owned(),
        };
        let decided_by = "no change".to_owned();
        return Verdict { state: RunState::NoChanges, error: Some(error), decided_by, ..verdict };
    }
    let word = if done { "final event" } else { "exit status 0" };
    let change = if work.changed { "change" } else { "no change needed" };
    Verdict { decided_by: format!("{word}, {change}"), ..verdict }
}

/// Whether a failed call may well go better another time.
fn passes(call: &PastCall) -> bool {
    let outcome = |outcome: CallOutcome| call.outcome == outcome.as_str();
    match call.status {
        _ if outcome(CallOutcome::Unreachable)
            || outcome(CallOutcome::Timeout)
            || outcome(CallOutcome::Broken) =>
        {
            true
        }
        Some(status) => status == 429 || (500..600).contains(&status),
        None => false,
    }
}

fn words(call: &PastCall) -> String {
    let status = call.status.map(|status| format!(" ({status})")).unwrap_or_default();
    let why = call.error.as_deref().unwrap_or(&call.outcome);
    if call.outcome == CallOutcome::Refused.as_str() {
        return format!("the model gateway refused its last call{status}: {why}");
    }
    format!("the model's last answer was an error{status}: {why}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runner::told::LastWord;
    use kage_shim::protocol::{EndedBy, Exited, Offsets};

    fn exit(code: i32) -> Verdict {
        let exited = Exited {
            code: Some(code),
            signal: None,
            spawn_error: None,
            ended_by: EndedBy::Itself,
            oom_kills: 0,
            total: Offsets::default(),
        };
        Verdict::of_exit(&exited, false)
    }

    fn call(outcome: CallOutcome, status: i32) -> PastCall {
        PastCall {
            outcome: outcome.as_str().to_owned(),
            status: Some(status),
            error: (status >= 400).then(|| format!("said {status}")),
            model: "m".to_owned(),
            started_at: chrono::DateTime::UNIX_EPOCH,
        }
    }

    fn says(ok: Option<bool>, error: Option<&str>) -> Told {
        let last_word = ok.map(|ok| LastWord { ok, message: Some("its last word".to_owned()) });
        Told { last_word, error: error.map(str::to_owned) }
    }

    const CHANGED: Work = Work { changed: true, may_change_nothing: false };
    const UNCHANGED: Work = Work { changed: false, may_change_nothing: false };
    const ALLOWED: Work = Work { changed: false, may_change_nothing: true };

    struct Case {
        code: i32,
        told: Told,
        judge: Judge,
        stopped: Option<&'static str>,
        calls: Option<Vec<PastCall>>,
        work: Work,
    }

    impl Default for Case {
        fn default() -> Self {
            let calls = Some(vec![call(CallOutcome::Ok, 200)]);
            Self { code: 0, told: says(None, None), judge: Judge::Exit, stopped: None, calls, work: CHANGED }
        }
    }

    impl Case {
        fn judged(&self) -> Verdict {
            let evidence = Evidence {
                judge: self.judge,
                told: &self.told,
                stopped: self.stopped,
                calls: self.calls.as_deref(),
            };
            after_harvest(before_harvest(exit(self.code), evidence), evidence, self.work)
        }

        fn ends(&self, state: RunState, decided_by: &str) -> Verdict {
            let judged = self.judged();
            assert_eq!((judged.state, judged.decided_by.as_str()), (state, decided_by), "{judged:?}");
            judged
        }
    }

    #[test]
    fn a_change_and_a_clean_end_are_a_success() {
        Case::default().ends(RunState::Succeeded, "exit status 0, change");
        let done = || says(Some(true), Some("a retry"));
        Case { told: done(), judge: Judge::Final, ..Case::default() }
            .ends(RunState::Succeeded, "final event, change");
        Case { calls: None, ..Case::default() }.ends(RunState::Succeeded, "exit status 0, change");
        Case { work: ALLOWED, ..Case::default() }
            .ends(RunState::Succeeded, "exit status 0, no change needed");
    }

    #[test]
    fn no_change_is_told_from_a_failure() {
        let judged = Case { work: UNCHANGED, ..Case::default() }.ends(RunState::NoChanges, "no change");
        assert_eq!(judged.error.as_deref(), Some("the CLI ended with status 0 but changed nothing"));
        Case { work: UNCHANGED, calls: None, ..Case::default() }.ends(RunState::NoChanges, "no change");
        let told = || says(None, Some("bad key"));
        for work in [UNCHANGED, ALLOWED] {
            let judged = Case { work, told: told(), ..Case::default() }.ends(RunState::Failed, "error event");
            assert_eq!(judged.error.as_deref(), Some("bad key"));
        }
        Case { told: told(), ..Case::default() }.ends(RunState::Succeeded, "exit status 0, change");
    }

    /// One CLI exits 0 after every API error.
    #[test]
    fn a_swallowed_model_error_is_a_failure_with_its_reason() {
        for (status, transient) in [(401, false), (400, false), (429, true), (529, true)] {
            let calls = || Some(vec![call(CallOutcome::UpstreamError, status), call(CallOutcome::Ok, 200)]);
            for work in [UNCHANGED, ALLOWED, CHANGED] {
                let case = Case { calls: calls(), work, ..Case::default() };
                let judged = case.ends(RunState::Failed, "the gateway's record");
                let error = judged.error.expect("a reason");
                assert!(error.contains(&format!("said {status}")), "{error}");
                assert_eq!(judged.transient, transient);
            }
            let done = Case { calls: calls(), told: says(Some(true), None), ..Case::default() };
            done.ends(RunState::Succeeded, "final event, change");
            let idle = Case { work: UNCHANGED, ..done };
            idle.ends(RunState::Failed, "the gateway's record");
        }
    }

    /// It edited, was refused by the gateway itself, and exits with 0 without a word.
    #[test]
    fn a_call_that_the_gateway_refused_is_a_failure_with_its_reason() {
        for (status, transient) in [(400, false), (403, false), (429, true), (503, true)] {
            let calls = Some(vec![call(CallOutcome::Refused, status), call(CallOutcome::Ok, 200)]);
            let case = Case { calls, ..Case::default() };
            let judged = case.ends(RunState::Failed, "the gateway's record");
            let error = judged.error.expect("a reason");
            assert!(error.contains("refused") && error.contains(&format!("said {status}")), "{error}");
            assert_eq!(judged.transient, transient);
        }
        // It went on after the refusal, and was answered.
        let calls = Some(vec![call(CallOutcome::Ok, 200), call(CallOutcome::Refused, 400)]);
        Case { calls, ..Case::default() }.ends(RunState::Succeeded, "exit status 0, change");
        // It says itself that it is done: a side call was refused.
        let calls = Some(vec![call(CallOutcome::Refused, 400), call(CallOutcome::Ok, 200)]);
        Case { calls, told: says(Some(true), None), ..Case::default() }
            .ends(RunState::Succeeded, "final event, change");
    }

    #[test]
    fn calls_that_were_broken_off_say_nothing() {
        let calls = [CallOutcome::Aborted, CallOutcome::ClientGone, CallOutcome::Lost, CallOutcome::Ok];
        let calls: Vec<PastCall> = calls.into_iter().map(|outcome| call(outcome, 200)).collect();
        Case { calls: Some(calls), ..Case::default() }.ends(RunState::Succeeded, "exit status 0, change");
    }

    /// A prompt that is a command of the CLI's own: it ends well and asks nobody.
    #[test]
    fn an_agent_that_no_model_answered_has_done_nothing() {
        let silent = || Case { calls: Some(Vec::new()), work: UNCHANGED, ..Case::default() };
        silent().ends(RunState::Failed, "the gateway's record");
        Case { work: ALLOWED, ..silent() }.ends(RunState::Failed, "the gateway's record");
        Case { work: ALLOWED, told: says(Some(true), None), ..silent() }
            .ends(RunState::Succeeded, "final event, no change needed");
        Case { work: CHANGED, ..silent() }.ends(RunState::Succeeded, "exit status 0, change");
    }

    #[test]
    fn the_last_word_counts_more_than_the_status() {
        for work in [CHANGED, UNCHANGED, ALLOWED] {
            let case = Case { told: says(Some(false), None), work, ..Case::default() };
            let judged = case.ends(RunState::Failed, "final event");
            assert_eq!(judged.error.as_deref(), Some("its last word"));
        }
        Case { judge: Judge::Final, ..Case::default() }.ends(RunState::Failed, "no final event");
    }

    /// One CLI exits with the HTTP status modulo 256.
    #[test]
    fn another_status_is_a_failure_that_names_the_models_error() {
        let calls = Some(vec![call(CallOutcome::UpstreamError, 429)]);
        let judged = Case { code: 173, calls, ..Case::default() }.ends(RunState::Failed, "exit status 173");
        let error = judged.error.expect("a reason");
        assert!(error.contains("status 173") && error.contains("said 429"), "{error}");
        assert!(judged.transient);
        let told = says(Some(true), None);
        Case { code: 1, told, ..Case::default() }.ends(RunState::Failed, "exit status 1");
    }

    #[test]
    fn a_spent_budget_is_told_from_what_the_cli_makes_of_it() {
        let spent = |code, told| Case { code, told, stopped: Some("budget_exhausted"), ..Case::default() };
        for (code, ok) in [(0, None), (0, Some(false)), (1, None), (1, Some(true)), (146, Some(false))] {
            let judged = spent(code, says(ok, None)).ends(RunState::BudgetExhausted, "the gateway");
            assert!(!judged.transient);
        }
        // It had its last answer when the budget was spent.
        spent(0, says(Some(true), None)).ends(RunState::Succeeded, "final event, change");
    }

    #[test]
    fn what_ended_otherwise_stays_so() {
        for state in [RunState::TimedOut, RunState::Cancelled, RunState::OutOfMemory, RunState::Lost] {
            let verdict = Verdict::new(state, "why");
            let told = says(Some(true), Some("x"));
            let evidence = Evidence { judge: Judge::Exit, told: &told, stopped: Some("x"), calls: Some(&[]) };
            let judged = after_harvest(before_harvest(verdict.clone(), evidence), evidence, CHANGED);
            assert_eq!(judged, verdict);
        }
    }
}
