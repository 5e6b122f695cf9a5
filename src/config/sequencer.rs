//! What `kage sequencer` needs.

use std::path::PathBuf;
use std::time::Duration;

use secrecy::SecretString;
use url::Url;

use crate::config::error::ConfigError;
use crate::config::settings::Settings;

pub const NAMES: [&str; 11] = [
    "KAGE_SEQUENCER_KEY",
    "KAGE_SEQUENCER_KEY_FILE",
    "KAGE_SEQUENCER_FORMER_KEYS",
    "KAGE_SEQUENCER_BATCH",
    "KAGE_SEQUENCER_POLL_MILLIS",
    "KAGE_SEQUENCER_ANCHOR_FILE",
    "KAGE_SEQUENCER_ANCHOR_GIT",
    "KAGE_SEQUENCER_ANCHOR_HTTP",
    "KAGE_SEQUENCER_ANCHOR_SYSLOG",
    "KAGE_AUDIT_KEY",
    "KAGE_AUDIT_WITNESSES",
];

#[derive(Debug, Clone)]
pub struct SequencerConfig {
    /// `PRIVATE+KEY+…`, as `kage audit keygen` makes it.
    pub key: Option<SecretString>,
    /// Public keys that signed earlier checkpoints of this log.
    pub former_keys: Vec<String>,
    /// Most entries of one transaction.
    pub batch: u64,
    /// Between two looks at what waits.
    pub poll: Duration,
    pub anchors: Anchors,
    /// The log's public key, for those who verify.
    pub public_key: Option<String>,
    /// Public keys of witnesses whose signatures are taken.
    pub witnesses: Vec<String>,
}

/// Where checkpoints go outside the database.
#[derive(Debug, Clone, Default)]
pub struct Anchors {
    /// One line a checkpoint.
    pub file: Option<PathBuf>,
    /// A bare repository; branch `kage-checkpoints`.
    pub git: Option<PathBuf>,
    /// Gets a POST a checkpoint.
    pub http: Option<Url>,
    /// `unix:///dev/log`, `udp://host:514`, `tcp://host:601`.
    pub syslog: Option<Url>,
}

impl SequencerConfig {
    /// See the table in `docs/audit.md` for each variable and its default.
    ///
    /// # Errors
    /// [`ConfigError`] names the variable.
    pub fn from_settings(settings: &mut Settings) -> Result<Self, ConfigError> {
        let key = settings.secret("KAGE_SEQUENCER_KEY", "KAGE_SEQUENCER_KEY_FILE")?;
        let former_keys = settings.list("KAGE_SEQUENCER_FORMER_KEYS");
        let batch = settings.within("KAGE_SEQUENCER_BATCH", 10_000, 1, 100_000)?;
        // A checkpoint within a second of what happened.
        let poll = Duration::from_millis(settings.within("KAGE_SEQUENCER_POLL_MILLIS", 500, 10, 900)?);
        let anchors = Anchors {
            file: settings.optional("KAGE_SEQUENCER_ANCHOR_FILE")?,
            git: settings.optional("KAGE_SEQUENCER_ANCHOR_GIT")?,
            http: url(settings, "KAGE_SEQUENCER_ANCHOR_HTTP", &["http", "https"])?,
            syslog: url(settings, "KAGE_SEQUENCER_ANCHOR_SYSLOG", &["unix", "udp", "tcp"])?,
        };
        let public_key = settings.optional("KAGE_AUDIT_KEY")?;
        let witnesses = settings.list("KAGE_AUDIT_WITNESSES");
        Ok(Self { key, former_keys, batch, poll, anchors, public_key, witnesses })
    }
}

fn url(settings: &mut Settings, name: &'static str, schemes: &[&str]) -> Result<Option<Url>, ConfigError> {
    let url: Option<Url> = settings.optional(name)?;
    if let Some(url) = &url {
        if url.password().is_some() {
            settings.mask_last("********".to_owned());
        }
        if !schemes.contains(&url.scheme()) {
            let problem = format!("it begins with {}", schemes.join(":, ") + ":");
            return Err(ConfigError::Invalid { name: name.to_owned(), problem });
        }
    }
    Ok(url)
}
