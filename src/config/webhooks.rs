//! Who is told of security events, from the TOML file that `KAGE_WEBHOOKS_FILE` names. No secret is in it: only where
//! one is to be found. A URL may hold one all the same, so none is shown.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use url::{Host, Url};
use zeroize::Zeroizing;

use crate::config::error::ConfigError;
use crate::config::providers::without_values;
use crate::config::settings::Settings;
use crate::domain::security_event::{SecurityEventKind, Severity};
use crate::secret::resolver::Resolver;
use crate::secret::source::Source;
use crate::secret::watched::Secret;

pub const NAMES: [&str; 4] =
    ["KAGE_WEBHOOKS_FILE", "KAGE_WEBHOOKS_WITHIN_SECS", "KAGE_WEBHOOKS_RETRY_SECS", "KAGE_WEBHOOKS_TRIES"];

/// What secrets begin with.
pub const PREFIX: &str = "whsec_";
/// What a secret looks like, for a person.
const FORM: &str = "webhook secret: whsec_ and 24 to 64 bytes in Base64, as kage webhook keygen makes them";
/// Bytes of a secret, as Standard Webhooks has it.
const BYTES: std::ops::RangeInclusive<usize> = 24..=64;
/// Secrets of one receiver at once.
const SECRETS: usize = 4;
/// Receivers.
const HOOKS: usize = 64;

#[derive(Debug, Clone)]
pub struct WebhooksConfig {
    pub hooks: Vec<Hook>,
    /// For one try.
    pub within: Duration,
    /// Before the second try; later pauses are each four times as long, up to eight hours.
    pub retry: Duration,
    /// After so many an event is given up.
    pub tries: u32,
}

/// One receiver.
#[derive(Clone)]
pub struct Hook {
    pub name: String,
    pub url: Url,
    /// The newest first; each signs.
    pub secrets: Vec<Secret>,
    /// Empty: all.
    pub kinds: Vec<SecurityEventKind>,
    pub min_severity: Severity,
    /// Certificates that are trusted beside the system's.
    pub ca: Option<Vec<u8>>,
}

impl std::fmt::Debug for Hook {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Hook({})", self.name)
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default, rename = "hook")]
    hooks: Vec<Section>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Section {
    name: String,
    /// Not a [`Url`] yet: the message about one that is none would repeat it.
    url: String,
    secrets: Vec<Source>,
    #[serde(default)]
    kinds: Vec<SecurityEventKind>,
    #[serde(default)]
    min_severity: Option<Severity>,
    /// Lets `url` be `http://` on another machine: what is sent can then be read on the way.
    #[serde(default)]
    allow_plain_http: bool,
    #[serde(default)]
    ca_file: Option<PathBuf>,
}

impl WebhooksConfig {
    /// See `docs/webhooks.md` for each variable and its default.
    ///
    /// # Errors
    /// [`ConfigError`] names the variable, or the place in the file.
    pub fn from_settings(settings: &mut Settings) -> Result<Self, ConfigError> {
        let file: Option<PathBuf> = settings.optional("KAGE_WEBHOOKS_FILE")?;
        let within = Duration::from_secs(settings.within("KAGE_WEBHOOKS_WITHIN_SECS", 15, 1, 60)?);
        let retry = Duration::from_secs(settings.within("KAGE_WEBHOOKS_RETRY_SECS", 5, 1, 3600)?);
        let tries = settings.within("KAGE_WEBHOOKS_TRIES", 16, 1, 100)? as u32;
        let mut this = Self { hooks: Vec::new(), within, retry, tries };
        let Some(path) = file else { return Ok(this) };
        let resolver = settings.resolver()?;
        for section in read(&path)? {
            this.hooks.push(section.into_hook(&resolver)?);
        }
        for secret in this.hooks.iter().flat_map(|hook| &hook.secrets) {
            secret
                .read_at_once()
                .map_err(|source| ConfigError::Secret { name: secret.name().to_owned(), source })?;
            settings.secrets.push(secret.clone());
            settings.watched.push(secret.clone());
        }
        Ok(this)
    }
}

fn read(path: &Path) -> Result<Vec<Section>, ConfigError> {
    let text = std::fs::read_to_string(path).map_err(|source| ConfigError::File {
        name: "KAGE_WEBHOOKS_FILE".to_owned(),
        path: path.to_owned(),
        source,
    })?;
    parse(&text).map_err(|problem| ConfigError::Toml { path: path.to_owned(), problem })
}

fn parse(text: &str) -> Result<Vec<Section>, String> {
    // The message alone: the source line beside it may hold what is nobody's business.
    let file: File = toml::from_str(text).map_err(|error| {
        let line = error.span().map_or(0, |span| text[..span.start].matches('\n').count() + 1);
        format!("line {line}: {}", without_values(error.message()))
    })?;
    if file.hooks.len() > HOOKS {
        return Err(format!("there are at most {HOOKS} hooks"));
    }
    let mut names = BTreeSet::new();
    for hook in &file.hooks {
        hook.check().map_err(|problem| format!("hook {:?}: {problem}", hook.name))?;
        if !names.insert(hook.name.as_str()) {
            return Err(format!("hook {:?} is there twice", hook.name));
        }
    }
    Ok(file.hooks)
}

impl Section {
    fn check(&self) -> Result<(), String> {
        let url = self.parsed_url()?;
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        if self.name.is_empty() || self.name.len() > 64 || !self.name.chars().all(plain) {
            return Err("a name is 1 to 64 letters, digits, '-', '_' and '.'".to_owned());
        }
        if !(1..=SECRETS).contains(&self.secrets.len()) {
            return Err(format!("secrets is a list of 1 to {SECRETS}, the newest first"));
        }
        let loopback = match url.host() {
            Some(Host::Domain(name)) => name == "localhost",
            Some(Host::Ipv4(address)) => address.is_loopback(),
            Some(Host::Ipv6(address)) => address.is_loopback(),
            None => false,
        };
        match url.scheme() {
            "https" => {}
            "http" if loopback || self.allow_plain_http => {}
            "http" => {
                return Err("url is https:// (http:// on loopback, or with allow_plain_http)".to_owned());
            }
            _ => return Err("url is an https:// URL".to_owned()),
        }
        if url.host().is_none() || !url.username().is_empty() || url.password().is_some() {
            return Err("url names a host, and no user".to_owned());
        }
        Ok(())
    }

    fn parsed_url(&self) -> Result<Url, String> {
        Url::parse(&self.url).map_err(|problem| format!("url: {problem}"))
    }

    fn into_hook(self, resolver: &Arc<Resolver>) -> Result<Hook, ConfigError> {
        let url = self.parsed_url().map_err(|problem| ConfigError::Invalid {
            name: format!("webhook.{}.url", self.name),
            problem,
        })?;
        let secret = |(number, source): (usize, Source)| {
            let name = match number {
                0 => format!("webhook.{}.secret", self.name),
                number => format!("webhook.{}.secret.{}", self.name, number + 1),
            };
            let is_key = |text: &str| key(text).is_some();
            Secret::with_form(&name, source, Arc::clone(resolver), is_key, Some(FORM))
        };
        let secrets = self.secrets.into_iter().enumerate().map(secret).collect();
        let ca = self.ca_file.map(|path| {
            std::fs::read(&path).map_err(|source| ConfigError::File {
                name: format!("webhook.{}.ca_file", self.name),
                path,
                source,
            })
        });
        Ok(Hook {
            secrets,
            ca: ca.transpose()?,
            min_severity: self.min_severity.unwrap_or(Severity::Low),
            name: self.name,
            url,
            kinds: self.kinds,
        })
    }
}

/// The key that a secret spells: `whsec_` and 24 to 64 bytes in Base64.
pub fn key(secret: &str) -> Option<Zeroizing<Vec<u8>>> {
    let bytes = Zeroizing::new(STANDARD.decode(secret.strip_prefix(PREFIX)?).ok()?);
    BYTES.contains(&bytes.len()).then_some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problem(more: &str) -> String {
        let text = format!("[[hook]]\nname = \"ops\"\nsecrets = [\"env:HOOK\"]\n{more}\n");
        parse(&text).err().unwrap_or_default()
    }

    #[test]
    fn a_url_is_https_unless_it_is_said_otherwise() {
        for good in [
            "url = \"https://ops.example.org/hooks/hush\"",
            "url = \"http://127.0.0.1:9/x\"",
            "url = \"http://[::1]/x\"",
            "url = \"http://localhost/x\"",
            "url = \"http://ops.example.org/x\"\nallow_plain_http = true",
        ] {
            assert_eq!(problem(good), "", "{good}");
        }
        for bad in [
            "url = \"http://ops.example.org/hush\"",
            "url = \"http://127.0.0.1.example.org/hush\"",
            "url = \"ftp://ops.example.org/hush\"\nallow_plain_http = true",
            "url = \"https://u:hush@ops.example.org/\"",
            "url = \"hush\"",
            "url = \"https://ops.example.org/hush\"\nurl = \"https://x\"",
            "url = \"https://ops.example.org/hush\"\nretries = 3",
            "url = \"https://ops.example.org/hush\"\nkinds = [\"hush\"]",
        ] {
            let said = problem(bad);
            assert!(!said.is_empty() && !said.contains("hush"), "{bad}: {said}");
        }
    }

    #[test]
    fn a_secret_stands_elsewhere() {
        let inline = "[[hook]]\nname = \"ops\"\nurl = \"https://x.example\"\nsecrets = [\"whsec_hush\"]\n";
        let said = parse(inline).err().unwrap_or_default();
        assert!(said.contains("env:") && !said.contains("hush"), "{said}");
        assert!(parse(&inline.replace("[\"whsec_hush\"]", "[]")).is_err());
        let twice = inline.replace("whsec_hush", "env:X").repeat(2);
        assert!(parse(&twice).is_err_and(|said| said.contains("twice")));
    }

    #[test]
    fn keys_are_long_enough_and_whole() {
        let of = |bytes: usize| format!("{PREFIX}{}", STANDARD.encode(vec![7; bytes]));
        assert_eq!(key(&of(24)).unwrap().len(), 24);
        assert_eq!(key(&of(64)).unwrap().len(), 64);
        for bad in [of(23), of(65), of(24).replace(PREFIX, ""), format!("{PREFIX}*"), String::new()] {
            assert!(key(&bad).is_none(), "{bad}");
        }
    }
}
