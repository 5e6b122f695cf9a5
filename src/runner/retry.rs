//! Which ends are worth another attempt, and when: the predecessor's rules.

use std::sync::LazyLock;
use std::time::Duration;

use regex::bytes::Regex;

use crate::db::runs::RunRow;
use crate::db::tasks::TaskRow;
use crate::domain::run::RunState;
use crate::domain::verdict::Verdict;
use crate::runner::drive::Drive;

/// Most seconds between two attempts.
const LONGEST_DELAY: u32 = 600;

/// How much of the output's end is looked at.
pub(super) const TAIL_BYTES: usize = 4096;

static TRANSIENT: LazyLock<Regex> = LazyLock::new(|| {
    Regex::new(
        r"(?i)\b(429|503)\b|rate.?limit|too many requests|service unavailable|overloaded|timed? ?out|connection (error|refused|reset|closed|aborted)|network is unreachable|temporar(y|ily) (failure|unavailable)",
    )
    .expect("a fixed pattern")
});

/// Whether a failed CLI's last words speak of a fault that passes: timeouts, connections, 429, 503.
pub(super) fn speaks_of_transient_fault(tail: &[u8]) -> bool {
    TRANSIENT.is_match(tail)
}

impl Drive<'_> {
    /// The delay before another attempt, if there is to be one. A cancel comes in its place.
    pub(super) fn retry_after(
        &self,
        run: &RunRow,
        task: &TaskRow,
        verdict: &mut Verdict,
    ) -> Option<Duration> {
        let (retries, delay) = (task.max_retries.unsigned_abs(), task.retry_delay.unsigned_abs());
        let delay = next_attempt(verdict, run.attempt.unsigned_abs(), retries, delay)?;
        if self.orders.cancel.is_cancelled() {
            cancel(verdict);
            return None;
        }
        Some(delay)
    }
}

/// The delay before the next attempt; `None`: this end is final.
fn next_attempt(verdict: &Verdict, attempt: u32, max_retries: u32, retry_delay: u32) -> Option<Duration> {
    if !verdict.transient || attempt > max_retries {
        return None;
    }
    let factor = 1u32.checked_shl(attempt.saturating_sub(1)).unwrap_or(u32::MAX);
    Some(Duration::from_secs(u64::from(retry_delay.saturating_mul(factor).min(LONGEST_DELAY))))
}

/// Of an attempt that would have been followed by another, were its task not to be cancelled.
fn cancel(verdict: &mut Verdict) {
    let why = match verdict.error.take() {
        Some(error) => format!("cancelled by a client before it was tried again: {error}"),
        None => "cancelled by a client before it was tried again".to_owned(),
    };
    let told = std::mem::take(&mut verdict.told);
    *verdict = Verdict { exit_code: verdict.exit_code, told, ..Verdict::new(RunState::Cancelled, why) };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_transient_ends_are_tried_again_with_doubling_delays() {
        let timed_out = Verdict::new(RunState::TimedOut, "");
        let seconds = |attempt| next_attempt(&timed_out, attempt, 3, 5).map(|delay| delay.as_secs());
        assert_eq!([1, 2, 3, 4].map(seconds), [Some(5), Some(10), Some(20), None]);
        assert_eq!(next_attempt(&Verdict::new(RunState::Cancelled, ""), 1, 3, 5), None);
        assert_eq!(next_attempt(&Verdict::new(RunState::OutOfMemory, ""), 1, 3, 5), None);
        assert_eq!(next_attempt(&timed_out, 1, 0, 5), None);
        assert_eq!(next_attempt(&timed_out, 200, 500, 60), Some(Duration::from_secs(600)));
    }

    #[test]
    fn a_cancel_in_place_of_another_attempt_is_a_cancelled_run() {
        let mut verdict =
            Verdict { transient: true, ..Verdict::new(RunState::SandboxError, "no engine answers") };
        cancel(&mut verdict);
        assert_eq!((verdict.state, verdict.transient), (RunState::Cancelled, false));
        assert!(verdict.error.is_some_and(|why| why.contains("no engine answers")));
    }

    #[test]
    fn last_words() {
        for words in
            ["HTTP 429", "error: 503 Service Unavailable", "Connection reset by peer", "request timed out"]
        {
            assert!(speaks_of_transient_fault(words.as_bytes()), "{words}");
        }
        for words in ["syntax error on line 1429", "assertion failed", ""] {
            assert!(!speaks_of_transient_fault(words.as_bytes()), "{words}");
        }
    }
}
