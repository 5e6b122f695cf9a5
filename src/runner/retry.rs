//! Which ends are worth another attempt, and when: the predecessor's rules.

use std::sync::LazyLock;
use std::time::Duration;

use regex::bytes::Regex;

use crate::domain::verdict::Verdict;

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

/// The delay before the next attempt; `None`: this end is final.
pub(super) fn next_attempt(
    verdict: &Verdict,
    attempt: u32,
    max_retries: u32,
    retry_delay: u32,
) -> Option<Duration> {
    if !verdict.transient || attempt > max_retries {
        return None;
    }
    let factor = 1u32.checked_shl(attempt.saturating_sub(1)).unwrap_or(u32::MAX);
    Some(Duration::from_secs(u64::from(retry_delay.saturating_mul(factor).min(LONGEST_DELAY))))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::run::RunState;

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
