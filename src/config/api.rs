//! What `kage api` needs.

use std::net::SocketAddr;

use secrecy::SecretString;

use crate::config::edge::EdgeConfig;
use crate::config::error::ConfigError;
use crate::config::oidc::OidcConfig;
use crate::config::settings::Settings;
use crate::domain::repository::AllowedSources;

pub const NAMES: [&str; 16] = [
    "KAGE_API_LISTEN",
    "KAGE_API_ALLOW_PLAIN_HTTP",
    "KAGE_API_BODY_BYTES",
    "KAGE_API_BODIES_BYTES",
    "KAGE_API_STREAMS",
    "KAGE_API_STREAMS_KEY",
    "KAGE_API_QUEUE_RUNS",
    "KAGE_API_QUEUE_RUNS_KEY",
    "KAGE_API_STALL_SECS",
    "KAGE_API_IDLE_SECS",
    "KAGE_API_ANSWER_SECS",
    "KAGE_API_CONNECTIONS",
    "KAGE_API_FIRST_KEY",
    "KAGE_API_FIRST_KEY_FILE",
    "KAGE_REPOSITORIES_ALLOW",
    "KAGE_REPOSITORIES_ALLOW_PRIVATE",
];

/// The least that there is for all bodies, as a multiple of the largest.
const BODIES: usize = 16;

#[derive(Debug, Clone)]
pub struct ApiConfig {
    pub listen: SocketAddr,
    /// Most bytes of a request's body.
    pub body_bytes: usize,
    /// Most bytes of memory for the bodies of all requests together.
    pub bodies_bytes: usize,
    /// Most event streams at once.
    pub streams: usize,
    /// Most of them with one key, or of one person.
    pub streams_key: usize,
    /// Most runs that wait; a task with more is refused.
    pub queue_runs: i64,
    /// Most of them of one key, or of one person.
    pub queue_runs_key: i64,
    /// Seconds after which a client that does not read is cut off.
    pub stall_secs: u64,
    /// Seconds after which a connection is closed on which nothing was read or written.
    pub idle_secs: u64,
    /// Seconds from a request's first byte to the first one of its answer.
    pub answer_secs: u64,
    /// Most connections at once.
    pub connections: usize,
    /// Made known with all rights if there is no key at all.
    pub first_key: Option<SecretString>,
    pub sources: AllowedSources,
    pub edge: EdgeConfig,
    /// `None`: nobody signs in, and keys are all.
    pub oidc: Option<OidcConfig>,
}

impl ApiConfig {
    /// `KAGE_API_LISTEN` (127.0.0.1:8787), `KAGE_API_ALLOW_PLAIN_HTTP` (false; plain HTTP is for loopback
    /// only without TLS of the server's own, unless this says that something in front does it), `KAGE_API_BODY_BYTES` (4 MiB), `KAGE_API_BODIES_BYTES` (256 MiB),
    /// `KAGE_API_STREAMS` (10000), `KAGE_API_STREAMS_KEY` (1000), `KAGE_API_QUEUE_RUNS` (20000), `KAGE_API_QUEUE_RUNS_KEY` (5000), `KAGE_API_STALL_SECS` (30), `KAGE_API_IDLE_SECS` (60), `KAGE_API_ANSWER_SECS` (90), `KAGE_API_CONNECTIONS` (20000), `KAGE_API_FIRST_KEY` or `KAGE_API_FIRST_KEY_FILE` (none),
    /// `KAGE_REPOSITORIES_ALLOW` (none), `KAGE_REPOSITORIES_ALLOW_PRIVATE` (none).
    ///
    /// # Errors
    /// [`ConfigError`] names the variable.
    pub fn from_settings(settings: &mut Settings) -> Result<Self, ConfigError> {
        let listen: SocketAddr = settings.or("KAGE_API_LISTEN", SocketAddr::from(([127, 0, 0, 1], 8787)))?;
        let plain_http = settings.or("KAGE_API_ALLOW_PLAIN_HTTP", false)?;
        let edge = EdgeConfig::from_settings(settings)?;
        if edge.tls.is_none() && !listen.ip().to_canonical().is_loopback() && !plain_http {
            let problem = format!(
                "{listen} is not loopback and would carry keys in plain HTTP; give a certificate (KAGE_API_TLS_CERT, \
                 KAGE_API_TLS_KEY_FILE), or put a TLS proxy in front and set KAGE_API_ALLOW_PLAIN_HTTP=true"
            );
            return Err(ConfigError::Invalid { name: "KAGE_API_LISTEN".to_owned(), problem });
        }
        let body_bytes = settings.within("KAGE_API_BODY_BYTES", 4 << 20, 1 << 10, 64 << 20)? as usize;
        let bodies_bytes = settings.within("KAGE_API_BODIES_BYTES", 256 << 20, 64 << 10, 1 << 40)? as usize;
        if bodies_bytes < body_bytes.saturating_mul(BODIES) {
            let problem = format!(
                "{bodies_bytes} is less than {BODIES} times KAGE_API_BODY_BYTES ({body_bytes}): a key has a quarter of it, and \
                 one body takes more than twice its size"
            );
            return Err(ConfigError::Invalid { name: "KAGE_API_BODIES_BYTES".to_owned(), problem });
        }
        Ok(Self {
            listen,
            edge,
            oidc: OidcConfig::from_settings(settings)?,
            body_bytes,
            bodies_bytes,
            streams: settings.within("KAGE_API_STREAMS", 10_000, 1, 1_000_000)? as usize,
            streams_key: settings.within("KAGE_API_STREAMS_KEY", 1000, 1, 1_000_000)? as usize,
            queue_runs: settings.within("KAGE_API_QUEUE_RUNS", 20_000, 1, 10_000_000)? as i64,
            queue_runs_key: settings.within("KAGE_API_QUEUE_RUNS_KEY", 5_000, 1, 10_000_000)? as i64,
            stall_secs: settings.within("KAGE_API_STALL_SECS", 30, 1, 3600)?,
            // More than the time between two heartbeats of an event stream.
            idle_secs: settings.within("KAGE_API_IDLE_SECS", 60, 20, 86_400)?,
            answer_secs: settings.within("KAGE_API_ANSWER_SECS", 90, 2, 3_600)?,
            connections: settings.within("KAGE_API_CONNECTIONS", 20_000, 1, 1_000_000)? as usize,
            first_key: settings.secret("KAGE_API_FIRST_KEY", "KAGE_API_FIRST_KEY_FILE")?,
            sources: AllowedSources::new(settings.list("KAGE_REPOSITORIES_ALLOW"))
                .with_private_hosts(settings.list("KAGE_REPOSITORIES_ALLOW_PRIVATE")),
        })
    }
}
