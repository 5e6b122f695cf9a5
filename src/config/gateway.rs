//! What `kage gateway` needs. Its providers are in a file of their own: `config/providers.rs`.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use secrecy::ExposeSecret;
use url::Url;

use crate::config::error::ConfigError;
use crate::config::providers::Providers;
use crate::config::settings::Settings;
use crate::secret::resolver::Resolver;

pub const NAMES: [&str; 20] = [
    "KAGE_DATA_DIR",
    "KAGE_GATEWAY_PROVIDERS",
    "KAGE_GATEWAY_SOCKETS",
    "KAGE_GATEWAY_CA_FILE",
    "KAGE_GATEWAY_PROXY",
    "KAGE_GATEWAY_BODY_BYTES",
    "KAGE_GATEWAY_MEMORY_BYTES",
    "KAGE_GATEWAY_ANSWER_BYTES",
    "KAGE_GATEWAY_AUDIT_CONTENT_BYTES",
    "KAGE_GATEWAY_CONNECTIONS",
    "KAGE_GATEWAY_CALLS",
    "KAGE_GATEWAY_REQUESTS_PER_MINUTE",
    "KAGE_GATEWAY_OUTPUT_TOKENS",
    "KAGE_GATEWAY_HEAD_SECS",
    "KAGE_GATEWAY_BODY_SECS",
    "KAGE_GATEWAY_CONNECT_SECS",
    "KAGE_GATEWAY_IDLE_SECS",
    "KAGE_GATEWAY_CALL_SECS",
    "KAGE_GATEWAY_DRAIN_SECS",
    "KAGE_GATEWAY_ORPHAN_SECS",
];

#[derive(Debug, Clone)]
pub struct GatewayConfig {
    /// Where each run has a folder for its socket.
    pub sockets: PathBuf,
    pub providers: Providers,
    /// Reads the providers' credentials.
    pub resolver: Arc<Resolver>,
    /// PEM file of certificates that are trusted beside the system's.
    pub ca_file: Option<PathBuf>,
    /// Proxy for all providers that name none. The environment's own `HTTPS_PROXY` and the like count for nothing.
    pub proxy: Option<Url>,
    /// Largest request body.
    pub body_bytes: usize,
    /// For the requests of all runs together, each of them taken for four times its body.
    pub memory_bytes: usize,
    /// Largest answer.
    pub answer_bytes: u64,
    /// Bytes of a request, and of its answer, that go into the audit trail. 0: nothing of them.
    pub audit_content_bytes: usize,
    /// Connections at once on one run's socket.
    pub connections: usize,
    /// Calls at once of one run.
    pub calls: usize,
    /// Requests a minute of one run, where its CLI's section says nothing.
    pub requests_per_minute: u32,
    /// Most output tokens of one call, where its CLI's section says nothing.
    pub output_tokens: u64,
    /// For a request's head to come.
    pub head: Duration,
    /// For a request's body to come.
    pub body: Duration,
    /// For a connection to a provider.
    pub connect: Duration,
    /// Without a single byte from a provider.
    pub idle: Duration,
    /// For a whole call.
    pub call: Duration,
    /// That calls may go on after the first signal, where the gateway is a process of its own.
    pub drain: Duration,
    /// That a run is served without a runner.
    pub orphan_secs: u64,
}

impl GatewayConfig {
    /// See the table in `docs/gateway.md` for each variable and its default.
    ///
    /// # Errors
    /// [`ConfigError`] names the variable, or the place in the providers' file.
    pub fn from_settings(settings: &mut Settings) -> Result<Self, ConfigError> {
        let resolver = settings.resolver()?;
        let data_dir: PathBuf = settings.or("KAGE_DATA_DIR", "/var/lib/kage".to_owned())?.into();
        let file: Option<PathBuf> = settings.optional("KAGE_GATEWAY_PROVIDERS")?;
        let sockets = settings.optional("KAGE_GATEWAY_SOCKETS")?;
        let ca_file = settings.optional("KAGE_GATEWAY_CA_FILE")?;
        let proxy = proxy(settings)?;
        const MIB: u64 = 1 << 20;
        let body_bytes = settings.within("KAGE_GATEWAY_BODY_BYTES", 32 * MIB, 1024, 32 * MIB)? as usize;
        let memory_bytes =
            settings.within("KAGE_GATEWAY_MEMORY_BYTES", 512 * MIB, 64 * 1024, 1024 * 1024 * MIB)? as usize;
        if memory_bytes < body_bytes.next_multiple_of(1024) * 4 {
            // The largest request would be told to come again for ever.
            let problem = "it is at least four times KAGE_GATEWAY_BODY_BYTES".to_owned();
            return Err(ConfigError::Invalid { name: "KAGE_GATEWAY_MEMORY_BYTES".to_owned(), problem });
        }
        let mut secs = |name, default, low, high| -> Result<Duration, ConfigError> {
            Ok(Duration::from_secs(settings.within(name, default, low, high)?))
        };
        Ok(Self {
            head: secs("KAGE_GATEWAY_HEAD_SECS", 10, 1, 300)?,
            body: secs("KAGE_GATEWAY_BODY_SECS", 60, 1, 3600)?,
            connect: secs("KAGE_GATEWAY_CONNECT_SECS", 10, 1, 300)?,
            idle: secs("KAGE_GATEWAY_IDLE_SECS", 300, 1, 86_400)?,
            call: secs("KAGE_GATEWAY_CALL_SECS", 1800, 1, 86_400)?,
            drain: secs("KAGE_GATEWAY_DRAIN_SECS", 30, 0, 86_400)?,
            orphan_secs: settings.within("KAGE_GATEWAY_ORPHAN_SECS", 900, 10, 86_400)?,
            body_bytes,
            memory_bytes,
            answer_bytes: settings.within("KAGE_GATEWAY_ANSWER_BYTES", 64 * MIB, 1024, 1024 * MIB)?,
            audit_content_bytes: settings.within("KAGE_GATEWAY_AUDIT_CONTENT_BYTES", 0, 0, MIB / 4)? as usize,
            connections: settings.within("KAGE_GATEWAY_CONNECTIONS", 64, 1, 10_000)? as usize,
            calls: settings.within("KAGE_GATEWAY_CALLS", 8, 1, 1000)? as usize,
            requests_per_minute: settings.within("KAGE_GATEWAY_REQUESTS_PER_MINUTE", 120, 1, 1_000_000)?
                as u32,
            output_tokens: settings.within("KAGE_GATEWAY_OUTPUT_TOKENS", 64_000, 256, 10_000_000)?,
            sockets: sockets.unwrap_or_else(|| data_dir.join("model")),
            providers: match file {
                Some(path) => Providers::read(&path)?,
                None => Providers::built_in(),
            },
            resolver,
            ca_file,
            proxy,
        })
    }
}

/// A URL that may hold a password.
fn proxy(settings: &mut Settings) -> Result<Option<Url>, ConfigError> {
    let Some(text) = settings.text_or_secret("KAGE_GATEWAY_PROXY")? else { return Ok(None) };
    let proxy = Url::parse(text.expose_secret()).ok().filter(|url| matches!(url.scheme(), "http" | "https"));
    let proxy = proxy.ok_or_else(|| ConfigError::Invalid {
        name: "KAGE_GATEWAY_PROXY".to_owned(),
        problem: "it is an http:// or https:// URL".to_owned(),
    })?;
    if let Some(password) = proxy.password() {
        settings.mask_last("********".to_owned());
        settings.remember_secret("KAGE_GATEWAY_PROXY", password);
    }
    Ok(Some(proxy))
}
