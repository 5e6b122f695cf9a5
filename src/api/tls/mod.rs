//! TLS in the server itself: 1.3 and 1.2, with files that may be exchanged while it serves.

pub mod error;
pub mod identity;

use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::sync::Arc;

use chrono::{TimeDelta, Utc};
use rustls::ServerConfig;
use serde_json::{Value, json};
use tokio::sync::watch;

use crate::api::state::ApiState;
use crate::api::tls::error::TlsError;
use crate::api::tls::identity::{Files, Identity};
use crate::config::edge::{TlsConfig, TlsKey};
use crate::db;
use crate::domain::audit::{Actor, Entry, Outcome};

/// A certificate that ends sooner is warned of.
const SOON: TimeDelta = TimeDelta::days(14);
/// How often a warning is repeated.
const REPEAT: TimeDelta = TimeDelta::hours(12);

/// What is served now. New handshakes take the newest; connections keep what they began with.
#[derive(Clone)]
pub(super) struct Tls {
    current: watch::Receiver<Arc<ServerConfig>>,
    pub handshake: std::time::Duration,
}

impl Tls {
    pub fn current(&self) -> Arc<ServerConfig> {
        Arc::clone(&self.current.borrow())
    }
}

/// Reads the files and looks whether they can be served.
///
/// # Errors
/// [`TlsError`] says what is wrong with which file.
pub fn examine(config: &TlsConfig) -> Result<Identity, TlsError> {
    Files::read(config)?.understand(config)
}

/// How long a certificate is good for yet, as a person says it; an error if it is not.
///
/// # Errors
/// Since when it is over.
pub fn validity(identity: &Identity) -> Result<String, String> {
    let (left, ends) = (identity.not_after - Utc::now(), identity.not_after);
    match left {
        left if left <= TimeDelta::zero() => Err(format!("ended on {ends}")),
        left => Ok(format!("ends on {ends}, in {} days", left.num_days())),
    }
}

/// Whether a certificate should be renewed by now.
pub fn ends_soon(identity: &Identity) -> bool {
    identity.not_after - Utc::now() <= SOON
}

/// The mode of the key's file, if others than its owner can read or write it.
pub fn exposed_key(config: &TlsConfig) -> Option<(&Path, u32)> {
    let TlsKey::File(path) = &config.key else { return None };
    let mode = std::fs::metadata(path).ok()?.mode() & 0o777;
    // Its group may: a key is often given to a service so.
    (mode & 0o027 != 0).then_some((path.as_path(), mode))
}

fn warn_of_exposed_key(config: &TlsConfig) {
    if let Some((path, mode)) = exposed_key(config) {
        let (path, mode) = (path.display(), format!("{mode:03o}"));
        tracing::warn!(%path, mode, "api.certificate_key_exposed: others can read or write it; chmod 600");
    }
}

/// The files as they are now, and the loop that follows them.
///
/// # Errors
/// [`TlsError`]: a server that cannot be reached safely does not start.
pub(super) fn open(config: &TlsConfig) -> Result<(Tls, Follower), TlsError> {
    let files = Files::read(config)?;
    let identity = files.understand(config)?;
    let (sender, current) = watch::channel(Arc::clone(&identity.server));
    let tls = Tls { current, handshake: config.handshake };
    tracing::info!(subject = identity.subject, not_after = %identity.not_after, "api.certificate");
    warn_of_exposed_key(config);
    let follower = Follower { config: config.clone(), seen: files.digest(), identity, sender, warned: None };
    Ok((tls, follower))
}

/// Who exchanged the files is somebody on the host. What is served is exchanged whether or not this can be written.
async fn record(state: &ApiState, outcome: Outcome, details: Value) {
    let (actor, object) = (Actor::Host, "setting:KAGE_API_TLS_CERT".to_owned());
    let entry = Entry { actor, action: "certificate.reload", object, outcome, details };
    let written = async {
        let mut connection = state.pool.acquire().await?;
        db::audit::append(&mut connection, &entry).await
    };
    if let Err(error) = written.await {
        tracing::error!(%error, "api.certificate_exchange_not_audited");
    }
}

/// Looks at the files again and again.
pub(super) struct Follower {
    config: TlsConfig,
    /// Of the files that were looked at last, good or not: a bad pair is told of once.
    seen: [u8; 32],
    identity: Identity,
    sender: watch::Sender<Arc<ServerConfig>>,
    warned: Option<chrono::DateTime<Utc>>,
}

impl Follower {
    /// Runs until the soft token.
    pub async fn run(mut self, state: ApiState) {
        loop {
            self.warn();
            tokio::select! {
                () = state.soft.cancelled() => return,
                () = tokio::time::sleep(self.config.reload) => {}
            }
            let config = self.config.clone();
            let read = tokio::task::spawn_blocking(move || Files::read(&config)).await;
            match read {
                Ok(read) => {
                    if let Some((outcome, details)) = self.take(read) {
                        record(&state, outcome, details).await;
                    }
                }
                Err(error) => tracing::error!(%error, "api.certificate_not_read"),
            }
        }
    }

    /// Two files are never exchanged at once: while they do not belong together the former pair stays.
    fn take(&mut self, read: Result<Files, TlsError>) -> Option<(Outcome, Value)> {
        let digest = read.as_ref().map_or([0; 32], Files::digest);
        if digest == self.seen {
            return None;
        }
        self.seen = digest;
        match read.and_then(|files| files.understand(&self.config)) {
            Ok(identity) => {
                tracing::info!(subject = identity.subject, not_after = %identity.not_after, "api.certificate_exchanged");
                warn_of_exposed_key(&self.config);
                self.sender.send_replace(Arc::clone(&identity.server));
                let details = json!({ "subject": identity.subject, "not_after": identity.not_after });
                (self.identity, self.warned) = (identity, None);
                Some((Outcome::Done, details))
            }
            Err(error) => {
                let kept = &self.identity.subject;
                tracing::error!(%error, kept, "api.certificate_refused");
                Some((Outcome::Failed, json!({ "problem": error.to_string(), "kept": kept })))
            }
        }
    }

    fn warn(&mut self) {
        let due = self.warned.is_none_or(|at| Utc::now() - at >= REPEAT);
        if !due || !ends_soon(&self.identity) {
            return;
        }
        self.warned = Some(Utc::now());
        let (subject, not_after) = (&self.identity.subject, self.identity.not_after);
        match validity(&self.identity) {
            Ok(_) => tracing::warn!(subject, %not_after, "api.certificate_ends_soon"),
            Err(_) => tracing::error!(subject, %not_after, "api.certificate_has_ended"),
        }
    }
}
