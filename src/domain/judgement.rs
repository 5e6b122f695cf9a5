//! What a run comes to. Exit codes lie, and so may a CLI's last word: its exit, its words, its change and the
//! gateway's own record count together, and the result says which of them decided. Pure: no clock, no database.
//!
//! The runner judges by all of it; the conformance kit by the CLI's own account alone ([`Evidence::own_account`]).

use serde::{Deserialize, Serialize};

use crate::domain::run::RunState;
use crate::domain::verdict::Verdict;

/// Kept of a CLI's words for the judgement, in bytes.
const KEPT: usize = 2000;

/// What a CLI's exit status is worth.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Judge {
    /// Status 0 is a success, unless the CLI or the gateway says otherwise.
    #[default]
    Exit,
    /// Only a `final` event that says `ok` is.
    Final,
}

/// What a CLI says of itself: the facts that its end is judged by; stored with the output that they were read from.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Told {
    /// The last final event.
    pub last_word: Option<LastWord>,
    /// The last error event.
    pub error: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LastWord {
    pub ok: bool,
    pub message: Option<String>,
}

impl Told {
    pub fn hear_error(&mut self, message: &str) {
        self.error = Some(kept(message));
    }

    pub fn hear_final(&mut self, ok: bool, message: Option<&str>) {
        self.last_word = Some(LastWord { ok, message: message.map(kept) });
    }
}

fn kept(text: &str) -> String {
    let end = (0..=KEPT.min(text.len())).rev().find(|end| text.is_char_boundary(*end)).unwrap_or_default();
    text[..end].to_owned()
}

/// What one call to a model says about the run that made it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CallWord {
    Answered,
    Failed {
        /// Why, for a person.
        error: String,
        /// It may well go better another time.
        passes: bool,
    },
    /// The CLI broke it off, or it ended with the run, or it is not over: it says nothing.
    Nothing,
}

/// What there is to judge by, beside the exit.
#[derive(Debug, Clone, Copy)]
pub struct Evidence<'a> {
    pub judge: Judge,
    pub told: &'a Told,
    /// Why the gateway ended the attempt.
    pub stopped: Option<&'a str>,
    /// The attempt's model calls, the last first; `None` for a CLI that asks no model.
    pub calls: Option<&'a [CallWord]>,
}

/// What the worktree shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Work {
    pub changed: bool,
    /// The assignment takes a run that changed nothing for a success.
    pub may_change_nothing: bool,
}

impl<'a> Evidence<'a> {
    /// The CLI's own words, and nothing that others know of it.
    pub const fn own_account(judge: Judge, told: &'a Told) -> Self {
        Self { judge, told, stopped: None, calls: None }
    }

    fn says_done(&self) -> bool {
        self.told.last_word.as_ref().is_some_and(|word| word.ok)
    }

    /// Why the last call that says something failed, if it did, and whether that passes.
    fn model_failure(&self) -> Option<(&'a str, bool)> {
        match self.calls?.iter().find(|call| **call != CallWord::Nothing)? {
            CallWord::Failed { error, passes } => Some((error, *passes)),
            CallWord::Answered | CallWord::Nothing => None,
        }
    }

    /// It asks a model, and never got an answer.
    fn never_answered(&self) -> bool {
        self.calls.is_some_and(|calls| !calls.contains(&CallWord::Answered))
    }

    /// The most telling error that there is.
    fn error(&self) -> Option<String> {
        let model = self.model_failure().map(|(error, _)| error.to_owned());
        let last = self.told.last_word.as_ref().filter(|word| !word.ok);
        model.or_else(|| last.and_then(|word| word.message.clone())).or_else(|| self.told.error.clone())
    }

    /// The model's last word was an error that may well go better another time.
    fn passes(&self) -> bool {
        self.model_failure().is_some_and(|(_, passes)| passes)
    }
}

/// Before the worktree is looked at: whether the gateway ended the attempt, and whether another one may go better.
pub fn before_harvest(verdict: Verdict, evidence: Evidence<'_>) -> Verdict {
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
    let transient = verdict.transient || evidence.passes();
    let error = match (verdict.error, evidence.error()) {
        (Some(error), Some(why)) => Some(format!("{error}; {why}")),
        (error, why) => error.or(why),
    };
    Verdict { transient, error, ..verdict }
}

/// The state that the run ends in.
pub fn after_harvest(verdict: Verdict, evidence: Evidence<'_>, work: Work) -> Verdict {
    if verdict.state != RunState::Succeeded {
        return verdict;
    }
    let fails = |error: String, decided_by: &str| Verdict {
        state: RunState::Failed,
        error: Some(error),
        transient: evidence.passes(),
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
    if let Some((error, _)) = evidence.model_failure().filter(|_| idle || !done) {
        return fails(error.to_owned(), "the gateway's record");
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

/// What a run comes to by the CLI's own account: neither its change nor the gateway's record is asked.
pub fn by_own_account(verdict: Verdict, judge: Judge, told: &Told) -> Verdict {
    let evidence = Evidence::own_account(judge, told);
    let work = Work { changed: false, may_change_nothing: true };
    after_harvest(before_harvest(verdict, evidence), evidence, work)
}

#[cfg(test)]
mod tests {
    use super::*;
    use kage_shim::protocol::{EndedBy, Exited, Offsets};

    fn exit(code: i32) -> Verdict {
        let exited = Exited {
            code: Some(code),
            signal: None,
            spawn_error: None,
            ended_by: EndedBy::Itself,
            oom_kills: 0,
            refused_forks: 0,
            full: Vec::new(),
            total: Offsets::default(),
        };
        Verdict::of_exit(&exited, false)
    }

    fn failed(status: i32, passes: bool) -> CallWord {
        CallWord::Failed { error: format!("said {status}"), passes }
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
        calls: Option<Vec<CallWord>>,
        work: Work,
    }

    impl Default for Case {
        fn default() -> Self {
            let calls = Some(vec![CallWord::Answered]);
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
            let calls = || Some(vec![failed(status, transient), CallWord::Answered]);
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
    fn a_refused_call_is_a_failure_unless_it_was_not_the_last() {
        let calls = Some(vec![failed(403, false), CallWord::Answered]);
        Case { calls, ..Case::default() }.ends(RunState::Failed, "the gateway's record");
        // It went on after the refusal, and was answered.
        let calls = Some(vec![CallWord::Answered, failed(400, false)]);
        Case { calls, ..Case::default() }.ends(RunState::Succeeded, "exit status 0, change");
    }

    #[test]
    fn calls_that_were_broken_off_say_nothing() {
        let calls = vec![CallWord::Nothing, CallWord::Nothing, CallWord::Answered];
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
        let calls = Some(vec![failed(429, true)]);
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

    #[test]
    fn the_own_account_knows_neither_change_nor_record() {
        let judged = |code, told: &Told, judge| by_own_account(exit(code), judge, told).state;
        assert_eq!(judged(0, &says(None, None), Judge::Exit), RunState::Succeeded);
        assert_eq!(judged(0, &says(Some(true), Some("a retry")), Judge::Final), RunState::Succeeded);
        assert_eq!(judged(0, &says(None, Some("bad key")), Judge::Exit), RunState::Failed);
        assert_eq!(judged(0, &says(None, None), Judge::Final), RunState::Failed);
        assert_eq!(judged(0, &says(Some(false), None), Judge::Exit), RunState::Failed);
        assert_eq!(judged(3, &says(Some(true), None), Judge::Exit), RunState::Failed);
    }

    #[test]
    fn what_is_kept_of_its_words_ends_at_a_character() {
        assert_eq!(kept("short"), "short");
        assert_eq!(kept(&"€".repeat(1000)).len(), KEPT - KEPT % 3);
    }
}
