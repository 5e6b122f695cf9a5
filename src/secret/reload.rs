//! Reads secrets again: files when they change, commands and Vault from time to time, all of them when asked.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use crate::secret::resolver::Resolver;
use crate::secret::watched::{Secret, Standing};

/// Between two looks at the files.
const LOOK: Duration = Duration::from_secs(2);

/// What happened to one setting.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum News {
    /// Another value is in force.
    Changed,
    /// It could not be read again, for this reason; the value before it, if any, stays.
    Failed(String),
}

/// Some secrets, and what was told of each.
pub struct Reloader {
    resolver: Arc<Resolver>,
    secrets: Vec<(Secret, Standing)>,
    /// Of Vault's token.
    vault_failure: Option<String>,
}

impl Reloader {
    pub fn new(resolver: Arc<Resolver>, secrets: impl IntoIterator<Item = Secret>) -> Self {
        let secrets = secrets.into_iter().map(|secret| {
            let told = secret.standing();
            (secret, told)
        });
        Self { secrets: secrets.collect(), resolver, vault_failure: None }
    }

    /// Waits until something has happened to any of them. A change of `now` has all of them read at once.
    pub async fn next(&mut self, now: &mut watch::Receiver<u64>) -> Vec<(Secret, News)> {
        loop {
            let all = tokio::select! {
                Ok(()) = now.changed() => true,
                () = tokio::time::sleep(LOOK) => false,
            };
            let news = self.look(all).await;
            if !news.is_empty() {
                return news;
            }
        }
    }

    /// One look: reads what is due, or all; what is new.
    pub async fn look(&mut self, all: bool) -> Vec<(Secret, News)> {
        if let Some(vault) = &self.resolver.vault {
            let failure = vault.keep_alive().await.err();
            if failure.is_some() && failure != self.vault_failure {
                tracing::warn!(problem = failure.as_deref(), "secret.vault_token_not_renewed");
            }
            self.vault_failure = failure;
        }
        let mut news = Vec::new();
        for (secret, told) in &mut self.secrets {
            if all || secret.is_due() {
                // Seen in its standing.
                let _ = secret.read().await;
            }
            let standing = secret.standing();
            if standing.changes != told.changes {
                news.push((secret.clone(), News::Changed));
            }
            if let Some(failure) = standing.failure.clone().filter(|_| standing.failure != told.failure) {
                news.push((secret.clone(), News::Failed(failure)));
            }
            *told = standing;
        }
        news
    }
}
