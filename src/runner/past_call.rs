//! What the gateway's record of one call says about the run that made it.

use crate::db::model_calls::{CallOutcome, PastCall};
use crate::domain::judgement::CallWord;

/// The meaning of a call; one that the CLI broke off or that was ended with the run says nothing.
pub(super) fn word(call: &PastCall) -> CallWord {
    let is = |outcome: CallOutcome| call.outcome == outcome.as_str();
    if call.is_ok() {
        CallWord::Answered
    } else if call.outcome == "open"
        || [CallOutcome::ClientGone, CallOutcome::Aborted, CallOutcome::Lost].into_iter().any(is)
    {
        CallWord::Nothing
    } else {
        CallWord::Failed { error: words(call), passes: passes(call) }
    }
}

/// Whether a failed call may well go better another time.
fn passes(call: &PastCall) -> bool {
    let is = |outcome: CallOutcome| call.outcome == outcome.as_str();
    [CallOutcome::Unreachable, CallOutcome::Timeout, CallOutcome::Broken].into_iter().any(is)
        || call.status.is_some_and(|status| status == 429 || (500..600).contains(&status))
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

    fn call(outcome: &str, status: Option<i32>) -> CallWord {
        let error = status.filter(|status| *status >= 400).map(|status| format!("said {status}"));
        let (model, started_at) = ("m".to_owned(), chrono::DateTime::UNIX_EPOCH);
        word(&PastCall { outcome: outcome.to_owned(), status, error, model, started_at })
    }

    #[test]
    fn calls_that_were_broken_off_say_nothing() {
        for outcome in ["open", "client_gone", "aborted", "lost"] {
            assert_eq!(call(outcome, Some(200)), CallWord::Nothing, "{outcome}");
        }
        assert_eq!(call("ok", Some(200)), CallWord::Answered);
    }

    #[test]
    fn a_failed_call_says_why_and_whether_that_passes() {
        for (outcome, status, expected) in [
            ("upstream_error", Some(401), false),
            ("upstream_error", Some(400), false),
            ("upstream_error", Some(429), true),
            ("upstream_error", Some(529), true),
            ("upstream_auth", Some(403), false),
            ("unreachable", None, true),
            ("timeout", Some(504), true),
            ("broken", Some(200), true),
            ("refused", Some(403), false),
            ("refused", Some(429), true),
        ] {
            let CallWord::Failed { error, passes } = call(outcome, status) else { panic!("{outcome}") };
            assert_eq!(passes, expected, "{outcome} {status:?}");
            let why = match status {
                Some(status) if status >= 400 => format!("said {status}"),
                _ => outcome.to_owned(),
            };
            assert!(error.contains(&why), "{error}");
        }
    }
}
