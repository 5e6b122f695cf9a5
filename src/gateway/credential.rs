//! The operator's credentials: a file that was replaced counts from the next call on, what commands and Vault give is
//! asked for from time to time. What cannot be read again leaves the old one in force.

use std::collections::HashMap;
use std::sync::Arc;

use secrecy::{ExposeSecret, SecretString};

use crate::config::providers::{Provider, Providers};
use crate::db;
use crate::domain::audit::Actor;
use crate::gateway::environment::Environment;
use crate::secret::error::SecretError;
use crate::secret::reload::{News, Reloader};
use crate::secret::resolver::Resolver;
use crate::secret::watched::Secret;

/// By provider.
pub(super) struct Credentials(HashMap<String, Secret>);

impl Credentials {
    /// Nothing is read yet.
    pub fn new(providers: &Providers, resolver: &Arc<Resolver>) -> Self {
        let one = |provider: &Provider| {
            let name = format!("provider.{}.credential", provider.name);
            let secret =
                Secret::new(&name, provider.credential.clone()?, Arc::clone(resolver), goes_in_a_header);
            Some((provider.name.clone(), secret))
        };
        Self(providers.providers.iter().filter_map(one).collect())
    }

    pub fn all(&self) -> Vec<Secret> {
        self.0.values().cloned().collect()
    }

    /// `None`: the provider wants none.
    ///
    /// # Errors
    /// [`SecretError`] names the place.
    pub async fn of(&self, provider: &Provider) -> Result<Option<SecretString>, SecretError> {
        match self.0.get(&provider.name) {
            Some(secret) => secret.get().await.map(Some),
            None => Ok(None),
        }
    }
}

/// What could break a header is no credential.
fn goes_in_a_header(text: &str) -> bool {
    text.bytes().all(|byte| byte.is_ascii_graphic())
}

/// Whether a text holds the secret.
pub(super) fn appears_in(secret: &SecretString, text: &[u8]) -> bool {
    memchr::memmem::find(text, secret.expose_secret().as_bytes()).is_some()
}

/// Reads the credentials again, for as long as the gateway lives, and says what became of it.
pub(super) async fn keep_current(environment: Arc<Environment>) {
    let secrets = environment.credentials.all();
    let mut reloader = Reloader::new(Arc::clone(&environment.config.resolver), secrets);
    let mut now = environment.lifecycle.reloads();
    loop {
        for (secret, news) in reloader.next(&mut now).await {
            let setting = secret.name();
            let problem = match &news {
                News::Changed => {
                    tracing::info!(setting, "gateway.credential_reloaded");
                    None
                }
                News::Failed(problem) if secret.current().is_some() => {
                    tracing::error!(setting, problem, "gateway.credential_not_reloaded: the old one stays");
                    Some(problem.as_str())
                }
                // A provider that nobody uses needs none.
                News::Failed(_) => continue,
            };
            if let Err(error) =
                db::reloads::record(&environment.pool, Actor::Gateway, "gateway", setting, problem).await
            {
                tracing::error!(setting, %error, "gateway.reload_not_audited");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_could_break_a_header_is_no_credential() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("key");
        let mut providers = Providers::built_in();
        providers.providers.truncate(1);
        providers.providers[0].credential = Some(crate::secret::source::Source::File(path.clone()));
        for text in ["", "\n", "two lines\nof it", "a\r\nX-Other: 1", "ümlaut", " space"] {
            let credentials = Credentials::new(&providers, &Arc::default());
            std::fs::write(&path, text).unwrap();
            let error = credentials.of(&providers.providers[0]).await.unwrap_err().to_string();
            assert!(text.trim().is_empty() || !error.contains(text), "{error}");
        }
    }
}
