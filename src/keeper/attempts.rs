//! What is counted, by the attempt's name, until a runner has written it down. How many there are is bounded.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::sandbox::refusals::listener::{Refusals, Stage, Watched, new_word};
use crate::sandbox::refusals::protocol::MAX_NAME;

/// A runner has at most a thousand runs.
const MAX_ATTEMPTS: usize = 4096;
/// A sandbox that was not started by then will not be: an engine answers, or fails, far earlier.
const EXPECTED_FOR: Duration = Duration::from_secs(3600);
/// How long the counts of a sandbox that has ended wait for a runner that writes them down.
const KEPT_FOR: Duration = Duration::from_secs(24 * 3600);
/// Bytes of the shortest word that cannot be guessed, in hexadecimal.
const MIN_WORD: usize = 32;

pub(super) struct Attempts {
    refusals: Refusals,
    held: Mutex<HashMap<String, Held>>,
    /// Runners that are connected.
    pub connections: AtomicUsize,
    /// Nothing new is expected any more.
    draining: CancellationToken,
    /// Of this process.
    pub process: String,
}

struct Held {
    watched: Arc<Watched>,
    /// When its stage was last seen to change.
    since: Instant,
    stage: Stage,
}

impl Attempts {
    pub fn new(refusals: Refusals, draining: CancellationToken) -> Self {
        let (held, connections) = (Mutex::default(), AtomicUsize::new(0));
        Self { refusals, held, connections, draining, process: new_word() }
    }

    /// Expects a sandbox. One of the same name that was there is forgotten: its runner has begun the attempt anew.
    ///
    /// # Errors
    /// Why not.
    pub fn expect(&self, attempt: String, word: String) -> Result<(), &'static str> {
        if self.draining.is_cancelled() {
            return Err("it is ending, and takes nothing new");
        }
        if !(1..=MAX_NAME).contains(&attempt.len()) || !(MIN_WORD..=MAX_NAME).contains(&word.len()) {
            return Err("the attempt's name or its word is too short or too long");
        }
        let mut held = self.held();
        held.remove(&attempt);
        if held.len() >= MAX_ATTEMPTS {
            let ended = held.iter().filter(|(_, one)| one.watched.stage() == Stage::Ended);
            let oldest = ended.min_by_key(|(_, one)| one.since).map(|(name, _)| name.clone());
            let oldest = oldest.ok_or("it holds as many attempts as it can")?;
            tracing::warn!(
                attempt = oldest,
                "keeper.forgotten: nobody wrote its counts down, and there is no room"
            );
            held.remove(&oldest);
        }
        let watched = Arc::new(self.refusals.expect_as(word));
        held.insert(attempt, Held { watched, since: Instant::now(), stage: Stage::Expected });
        Ok(())
    }

    pub fn find(&self, attempt: &str) -> Option<Arc<Watched>> {
        self.held().get(attempt).map(|held| Arc::clone(&held.watched))
    }

    /// False: it was not known.
    pub fn over(&self, attempt: &str) -> bool {
        self.held().remove(attempt).is_some()
    }

    pub fn forget_old(&self) {
        self.held().retain(|attempt, held| {
            let stage = held.watched.stage();
            if stage != held.stage {
                (held.stage, held.since) = (stage, Instant::now());
            }
            let old = match stage {
                Stage::Expected => held.since.elapsed() > EXPECTED_FOR,
                Stage::Listening(_) => false,
                Stage::Ended => held.since.elapsed() > KEPT_FOR,
            };
            if old {
                tracing::warn!(attempt, ?stage, "keeper.forgotten: no runner asked for it");
            }
            !old
        });
    }

    pub fn len(&self) -> usize {
        self.held().len()
    }

    /// Listeners that are answered.
    pub fn listening(&self) -> usize {
        self.refusals.listening()
    }

    /// Whether something would be lost if it ended.
    pub fn holds_something(&self) -> bool {
        self.listening() > 0 || self.len() > 0
    }

    pub fn is_needed(&self) -> bool {
        self.connections.load(Ordering::SeqCst) > 0 || self.holds_something()
    }

    fn held(&self) -> MutexGuard<'_, HashMap<String, Held>> {
        // Whole also when somebody panicked while he held it.
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attempts(folder: &std::path::Path) -> Attempts {
        Attempts::new(Refusals::listen(folder).expect("listens"), CancellationToken::new())
    }

    #[tokio::test]
    async fn there_is_an_end_to_what_is_held() {
        let folder = tempfile::tempdir().expect("a folder");
        let attempts = attempts(folder.path());
        for number in 0..MAX_ATTEMPTS {
            attempts.expect(format!("a{number}"), new_word()).expect("there is room");
        }
        attempts.expect("one more".to_owned(), new_word()).expect_err("there is none");
        assert_eq!(attempts.len(), MAX_ATTEMPTS);
        assert!(attempts.over("a7") && !attempts.over("a7"));
        attempts.expect("one more".to_owned(), new_word()).expect("there is room again");
        attempts.expect("one more".to_owned(), new_word()).expect("begun anew");
        assert_eq!(attempts.len(), MAX_ATTEMPTS);
    }

    #[tokio::test(start_paused = true)]
    async fn what_nobody_starts_is_forgotten() {
        let folder = tempfile::tempdir().expect("a folder");
        let attempts = attempts(folder.path());
        attempts.expect("a".to_owned(), new_word()).expect("there is room");
        tokio::time::advance(EXPECTED_FOR).await;
        attempts.forget_old();
        assert!(attempts.find("a").is_some() && attempts.is_needed());
        tokio::time::advance(Duration::from_secs(1)).await;
        attempts.forget_old();
        assert!(attempts.find("a").is_none() && !attempts.is_needed());
    }

    #[tokio::test]
    async fn names_and_words_have_their_size_and_nothing_new_is_taken_at_the_end() {
        let folder = tempfile::tempdir().expect("a folder");
        let attempts = attempts(folder.path());
        for (name, word) in [
            ("", "x".repeat(MIN_WORD)),
            ("a", String::new()),
            ("a", "x".repeat(31)),
            ("a", "x".repeat(MAX_NAME + 1)),
        ] {
            attempts.expect(name.to_owned(), word).expect_err("not of a size");
        }
        attempts.expect("x".repeat(MAX_NAME + 1), new_word()).expect_err("too long");
        attempts.draining.cancel();
        attempts.expect("a".to_owned(), new_word()).expect_err("it is ending");
        assert_eq!(attempts.len(), 0);
    }
}
