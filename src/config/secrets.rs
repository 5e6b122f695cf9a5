//! Secret settings: each takes a value or a reference (`docs/secrets.md`), and as `NAME_FILE` the path of a file.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use secrecy::{ExposeSecret, SecretString};
use url::{Host, Url};

use crate::config::error::ConfigError;
use crate::config::settings::Settings;
use crate::secret::command::Commands;
use crate::secret::resolver::Resolver;
use crate::secret::source::Source;
use crate::secret::vault::{Vault, VaultAuth, VaultOptions};
use crate::secret::watched::Secret;

pub const NAMES: [&str; 14] = [
    "KAGE_SECRETS_RELOAD_SECS",
    "KAGE_SECRETS_EXEC_SECS",
    "KAGE_SECRETS_EXEC_ENV",
    "KAGE_VAULT_ADDRESS",
    "KAGE_VAULT_NAMESPACE",
    "KAGE_VAULT_CA_FILE",
    "KAGE_VAULT_SECS",
    "KAGE_VAULT_TOKEN",
    "KAGE_VAULT_TOKEN_FILE",
    "KAGE_VAULT_APPROLE_MOUNT",
    "KAGE_VAULT_ROLE_ID",
    "KAGE_VAULT_ROLE_ID_FILE",
    "KAGE_VAULT_SECRET_ID",
    "KAGE_VAULT_SECRET_ID_FILE",
];

pub(super) const MASK: &str = "********";

/// What is given of a secret setting.
struct Given {
    source: Source,
    /// Where the setting itself was found.
    origin: String,
}

impl Settings {
    /// A secret that counts as it is at the start.
    ///
    /// # Errors
    /// [`ConfigError`] if both names are given, or it cannot be read.
    pub fn secret(
        &mut self,
        name: &'static str,
        file: &'static str,
    ) -> Result<Option<SecretString>, ConfigError> {
        Ok(self.read_secret(name, file)?.and_then(|secret| secret.current()))
    }

    /// A secret whose user asks for its value each time, or hears of new ones.
    ///
    /// # Errors
    /// As [`Settings::secret`].
    pub fn watched_secret(
        &mut self,
        name: &'static str,
        file: &'static str,
    ) -> Result<Option<Secret>, ConfigError> {
        let secret = self.read_secret(name, file)?;
        self.watched.extend(secret.clone());
        Ok(secret)
    }

    /// A setting that may hold a secret, such as a URL with a password: a text, or a reference to one. A text is
    /// noted as it is; the caller masks it.
    ///
    /// # Errors
    /// As [`Settings::secret`].
    pub fn text_or_secret(&mut self, name: &'static str) -> Result<Option<SecretString>, ConfigError> {
        let Some(value) = self.given.get(name).cloned() else {
            self.note(name, "", None);
            return Ok(None);
        };
        if let Ok(Source::Literal(text)) = Source::of_setting(&value.text) {
            self.note(name, text.expose_secret(), Some(value.origin));
            return Ok(Some(text));
        }
        self.secret(name, "")
    }

    /// Notes a secret that was found within another setting, such as the password of a URL.
    pub fn remember_secret(&mut self, name: &str, value: &str) {
        if !value.is_empty() {
            self.secrets.push(Secret::fixed(name, value.into()));
        }
    }

    /// What reads references; its own settings are read with it.
    ///
    /// # Errors
    /// [`ConfigError`] names the variable.
    pub fn resolver(&mut self) -> Result<Arc<Resolver>, ConfigError> {
        if let Some(resolver) = &self.resolver {
            return Ok(Arc::clone(resolver));
        }
        let commands = Commands {
            within: Duration::from_secs(self.within("KAGE_SECRETS_EXEC_SECS", 10, 1, 300)?),
            environment: self.list("KAGE_SECRETS_EXEC_ENV"),
        };
        let every = Duration::from_secs(self.within("KAGE_SECRETS_RELOAD_SECS", 300, 1, 86_400)?);
        let vault = self.vault(&commands)?;
        let resolver = Arc::new(Resolver { commands, vault, every });
        self.resolver = Some(Arc::clone(&resolver));
        Ok(resolver)
    }

    /// Every secret that was read, for those who keep them out of what is stored.
    pub fn secrets(&self) -> &[Secret] {
        &self.secrets
    }

    /// Those whose new values count without a restart.
    pub fn watched(&self) -> &[Secret] {
        &self.watched
    }

    fn read_secret(&mut self, name: &'static str, file: &'static str) -> Result<Option<Secret>, ConfigError> {
        let resolver = self.resolver()?;
        let Some(given) = self.given_secret(name, file)? else { return Ok(None) };
        let secret = Secret::new(name, given.source, resolver, |_| true);
        let named = if self.given.contains_key(name) { name } else { file };
        secret.read_at_once().map_err(|source| ConfigError::Secret { name: named.to_owned(), source })?;
        self.secrets.push(secret.clone());
        Ok(Some(secret))
    }

    fn given_secret(&mut self, name: &'static str, file: &'static str) -> Result<Option<Given>, ConfigError> {
        let invalid = |problem: String| ConfigError::Invalid { name: name.to_owned(), problem };
        self.confidential.insert(name);
        let given = match (self.given.get(name).cloned(), self.given.get(file).cloned()) {
            (Some(_), Some(_)) => return Err(invalid(format!("give it or {file}, not both"))),
            (Some(value), None) => {
                let source = Source::of_setting(&value.text).map_err(|bad| invalid(bad.to_string()))?;
                Given { source, origin: value.origin }
            }
            (None, Some(value)) => {
                Given { source: Source::File(PathBuf::from(value.text)), origin: value.origin }
            }
            (None, None) => {
                self.note(name, "", None);
                return Ok(None);
            }
        };
        let origin = match &given.source {
            Source::Literal(_) => given.origin.clone(),
            reference => format!("{reference} ({})", given.origin),
        };
        self.note(name, MASK, Some(origin));
        Ok(Some(given))
    }

    fn vault(&mut self, commands: &Commands) -> Result<Option<Vault>, ConfigError> {
        let address: Option<Url> = self.optional("KAGE_VAULT_ADDRESS")?;
        let namespace = self.optional("KAGE_VAULT_NAMESPACE")?;
        let ca_file: Option<PathBuf> = self.optional("KAGE_VAULT_CA_FILE")?;
        let within = Duration::from_secs(self.within("KAGE_VAULT_SECS", 10, 1, 120)?);
        let token = self.own_secret("KAGE_VAULT_TOKEN", "KAGE_VAULT_TOKEN_FILE", commands)?;
        let mount = self.or("KAGE_VAULT_APPROLE_MOUNT", "approle".to_owned())?;
        let role_id = self.own_secret("KAGE_VAULT_ROLE_ID", "KAGE_VAULT_ROLE_ID_FILE", commands)?;
        let secret_id = self.own_secret("KAGE_VAULT_SECRET_ID", "KAGE_VAULT_SECRET_ID_FILE", commands)?;
        let Some(address) = address else { return Ok(None) };
        let invalid = |name: &str, problem: &str| {
            Err(ConfigError::Invalid { name: name.to_owned(), problem: problem.to_owned() })
        };
        let loopback = match address.host() {
            Some(Host::Domain(name)) => name == "localhost",
            Some(Host::Ipv4(address)) => address.is_loopback(),
            Some(Host::Ipv6(address)) => address.is_loopback(),
            None => false,
        };
        if !(address.scheme() == "https" || address.scheme() == "http" && loopback) {
            return invalid("KAGE_VAULT_ADDRESS", "it is an https:// URL (http:// on loopback alone)");
        }
        if !address.username().is_empty() || address.password().is_some() || address.query().is_some() {
            return invalid("KAGE_VAULT_ADDRESS", "it holds neither a user nor a query");
        }
        let auth = match (token, role_id, secret_id) {
            (Some(token), None, None) => VaultAuth::Token(token),
            (None, Some(role_id), Some(secret_id)) => VaultAuth::AppRole { mount, role_id, secret_id },
            _ => {
                let problem =
                    "beside it there is KAGE_VAULT_TOKEN, or KAGE_VAULT_ROLE_ID and KAGE_VAULT_SECRET_ID";
                return invalid("KAGE_VAULT_ADDRESS", problem);
            }
        };
        let ca = match ca_file {
            None => None,
            Some(path) => Some(std::fs::read(&path).map_err(|source| ConfigError::File {
                name: "KAGE_VAULT_CA_FILE".to_owned(),
                path,
                source,
            })?),
        };
        let options = VaultOptions { address, namespace, ca, auth, within };
        let vault = Vault::new(options, commands.clone());
        vault.map(Some).or_else(|problem| invalid("KAGE_VAULT_CA_FILE", &problem))
    }

    /// One of those that Vault itself wants: read again at each login, and known here for the sake of redaction.
    fn own_secret(
        &mut self,
        name: &'static str,
        file: &'static str,
        commands: &Commands,
    ) -> Result<Option<Source>, ConfigError> {
        let Some(given) = self.given_secret(name, file)? else { return Ok(None) };
        if matches!(given.source, Source::Vault(_)) {
            let problem = "what opens Vault cannot be in it".to_owned();
            return Err(ConfigError::Invalid { name: name.to_owned(), problem });
        }
        let here = Resolver { commands: commands.clone(), ..Resolver::default() };
        let secret = Secret::new(name, given.source.clone(), Arc::new(here), |_| true);
        let named = if self.given.contains_key(name) { name } else { file };
        secret.read_at_once().map_err(|source| ConfigError::Secret { name: named.to_owned(), source })?;
        self.secrets.push(secret);
        Ok(Some(given.source))
    }
}
