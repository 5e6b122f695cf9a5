//! Reads any source.

use std::time::Duration;

use secrecy::SecretString;

use crate::secret::command::Commands;
use crate::secret::error::SecretError;
use crate::secret::local;
use crate::secret::source::Source;
use crate::secret::vault::Vault;

#[derive(Debug)]
pub struct Resolver {
    pub commands: Commands,
    /// None: the operator says of none.
    pub vault: Option<Vault>,
    /// Between two times that commands are run and Vault is asked.
    pub every: Duration,
}

impl Default for Resolver {
    fn default() -> Self {
        Self { commands: Commands::default(), vault: None, every: Duration::from_secs(300) }
    }
}

impl Resolver {
    /// # Errors
    /// [`SecretError`] names the place.
    pub async fn read(&self, source: &Source) -> Result<SecretString, SecretError> {
        if let Some(read) = local::read(source) {
            return read;
        }
        match (source, &self.vault) {
            (Source::Command(words), _) => self.commands.read(source, words).await,
            (Source::Vault(path), Some(vault)) => vault
                .read(path)
                .await
                .map_err(|problem| SecretError::Vault { place: source.to_string(), problem })
                .and_then(|secret| local::checked(source, secret)),
            _ => {
                let problem = "KAGE_VAULT_ADDRESS is not set".to_owned();
                Err(SecretError::Vault { place: source.to_string(), problem })
            }
        }
    }

    /// As [`Resolver::read`], at the start, where nothing runs yet that could wait.
    ///
    /// # Errors
    /// [`SecretError`].
    pub fn read_at_once(&self, source: &Source) -> Result<SecretString, SecretError> {
        if let Some(read) = local::read(source) {
            return read;
        }
        let failed = |error| SecretError::Unreadable { place: source.to_string(), error };
        // A runtime of its own on a thread of its own: the caller may be in one already.
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
                runtime.map_err(failed)?.block_on(self.read(source))
            });
            thread.join().unwrap_or_else(|_| Err(failed(std::io::Error::other("it could not be read"))))
        })
    }
}
