//! The secrets that this process has. One that was replaced is looked for as before: it may still be written somewhere.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use secrecy::{ExposeSecret, SecretString};
use tokio::sync::watch::Receiver;

use crate::redact::patterns::{Patterns, SHORTEST};
use crate::secret::watched::Secret;

/// Former values that are kept, of all secrets together.
const FORMER: usize = 64;

#[derive(Debug)]
pub struct Known(Mutex<State>);

#[derive(Debug)]
struct State {
    heard: Vec<Receiver<Option<SecretString>>>,
    former: VecDeque<SecretString>,
    patterns: Arc<Patterns>,
}

impl Known {
    /// Those of these secrets that are long enough; the log names the others.
    pub fn new(secrets: &[Secret]) -> Self {
        for secret in secrets {
            if secret.current().is_some_and(|value| value.expose_secret().len() < SHORTEST) {
                tracing::warn!(setting = secret.name(), "redact.too_short: it is not looked for in output");
            }
        }
        let mut state = State {
            heard: secrets.iter().map(Secret::subscribe).collect(),
            former: VecDeque::new(),
            patterns: Arc::new(Patterns::new([])),
        };
        state.learn();
        Self(Mutex::new(state))
    }

    /// What is looked for now.
    pub fn patterns(&self) -> Arc<Patterns> {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if state.heard.iter().any(|heard| heard.has_changed().unwrap_or(false)) {
            state.learn();
        }
        Arc::clone(&state.patterns)
    }
}

impl State {
    fn learn(&mut self) {
        for heard in &mut self.heard {
            let value = heard.borrow_and_update().clone();
            let is =
                |known: &SecretString, value: &SecretString| known.expose_secret() == value.expose_secret();
            if let Some(value) = value.filter(|value| !self.former.iter().any(|known| is(known, value))) {
                self.former.push_back(value);
            }
        }
        let most = FORMER + self.heard.len();
        self.former.drain(..self.former.len().saturating_sub(most));
        self.patterns = Arc::new(Patterns::new(&self.former));
    }
}
