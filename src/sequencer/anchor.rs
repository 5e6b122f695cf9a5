//! Places outside the database that are told of checkpoints. Each is optional, and none holds the sequencer up: one that fails is
//! tried again with the newest checkpoint, and that it fails is an audit entry.

use std::path::PathBuf;
use std::time::Duration;

use reqwest::Client;
use serde_json::json;
use sqlx::PgPool;
use tokio::sync::watch;
use url::Url;

use crate::config::sequencer::Anchors;
use crate::db;
use crate::db::error::DbError;
use crate::domain::audit::{Actor, Entry, Outcome};
use crate::domain::security_event::{SecurityEvent, SecurityEventKind};
use crate::metrics::metrics;
use crate::sequencer::error::SequencerError;
use crate::sequencer::keep::Keys;
use crate::sequencer::{file, git_ref, http, syslog};
use crate::trail::checkpoint::Checkpoint;

/// Between two tries, doubled up to the second.
const PAUSES: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));
/// For one try.
const WITHIN: Duration = Duration::from_secs(20);

#[derive(Debug, Clone)]
pub enum Anchor {
    File(PathBuf),
    Git(PathBuf),
    Http(Client, Url),
    Syslog(Url),
}

impl Anchor {
    pub const fn name(&self) -> &'static str {
        match self {
            Self::File(_) => "file",
            Self::Git(_) => "git",
            Self::Http(..) => "http",
            Self::Syslog(_) => "syslog",
        }
    }

    fn wrong(&self, problem: impl ToString) -> SequencerError {
        SequencerError::Anchor { anchor: self.name(), problem: problem.to_string() }
    }

    /// # Errors
    /// [`SequencerError::Anchor`].
    pub async fn publish(&self, note: &str) -> Result<(), SequencerError> {
        let told = tokio::time::timeout(WITHIN, async {
            match self {
                Self::File(path) => {
                    let (path, note) = (path.clone(), note.to_owned());
                    blocking(move || file::append(&path, &note)).await
                }
                Self::Git(path) => {
                    let (path, note) = (path.clone(), note.to_owned());
                    blocking(move || git_ref::commit(&path, &note)).await
                }
                Self::Http(client, url) => http::post(client, url, note).await,
                Self::Syslog(url) => syslog::send(url, note).await,
            }
        });
        told.await
            .unwrap_or_else(|_| Err("no answer in time".to_owned()))
            .map_err(|problem| self.wrong(problem))
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, String> + Send + 'static,
) -> Result<T, String> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|error| Err(error.to_string()))
}

/// # Errors
/// [`SequencerError::Anchor`].
pub fn open(config: &Anchors) -> Result<Vec<Anchor>, SequencerError> {
    let mut anchors = Vec::new();
    anchors.extend(config.file.clone().map(Anchor::File));
    anchors.extend(config.git.clone().map(Anchor::Git));
    if let Some(url) = &config.http {
        let client = http::client()
            .map_err(|error| SequencerError::Anchor { anchor: "http", problem: error.to_string() })?;
        anchors.push(Anchor::Http(client, url.clone()));
    }
    anchors.extend(config.syslog.clone().map(Anchor::Syslog));
    Ok(anchors)
}

/// The last checkpoint that an anchor was told of, where it can be asked.
///
/// # Errors
/// [`SequencerError::Anchor`] if it cannot be read: what it knows must not be passed over.
pub async fn last(anchor: &Anchor, keys: &Keys) -> Result<Option<Checkpoint>, SequencerError> {
    let note = match anchor {
        Anchor::File(path) => {
            let path = path.clone();
            blocking(move || file::last(&path)).await
        }
        Anchor::Git(path) => {
            let path = path.clone();
            blocking(move || git_ref::last(&path)).await
        }
        // They take and do not give.
        Anchor::Http(..) | Anchor::Syslog(_) => Ok(None),
    };
    let note = note.map_err(|problem| anchor.wrong(problem))?;
    note.map(|note| keys.open(&note)).transpose().map_err(|error| anchor.wrong(error))
}

/// Tells one anchor of each checkpoint, or of the newest where they come faster than it takes them.
pub async fn follow(anchor: Anchor, mut latest: watch::Receiver<Option<String>>, pool: PgPool) {
    let (mut pause, mut failing) = (PAUSES.0, false);
    latest.mark_changed();
    while latest.changed().await.is_ok() {
        loop {
            let Some(note) = latest.borrow_and_update().clone() else { break };
            let published = anchor.publish(&note).await;
            metrics().trail.anchored(anchor.name(), published.is_ok());
            match published {
                Ok(()) => {
                    if failing {
                        record(&pool, &anchor, Outcome::Done, "it takes checkpoints again").await;
                    }
                    (pause, failing) = (PAUSES.0, false);
                    break;
                }
                Err(error) => {
                    tracing::warn!(%error, "sequencer.anchor_failed");
                    if !failing {
                        record(&pool, &anchor, Outcome::Failed, &error.to_string()).await;
                    }
                    failing = true;
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(PAUSES.1);
                }
            }
        }
    }
}

/// At the change alone: an entry makes a checkpoint, and that one must not fail into the next.
async fn record(pool: &PgPool, anchor: &Anchor, outcome: Outcome, what: &str) {
    let entry = Entry {
        actor: Actor::Sequencer,
        action: "sequencer.anchor",
        object: format!("anchor:{}", anchor.name()),
        outcome,
        details: json!({ "what": what }),
    };
    let written = async {
        let mut transaction = pool.begin().await?;
        db::audit::append(&mut transaction, &entry).await?;
        if outcome == Outcome::Failed {
            let event = SecurityEvent::new(SecurityEventKind::AnchorFailed, &entry.object, &entry.details);
            db::security_events::append(&mut transaction, &event).await?;
        }
        Ok::<(), DbError>(transaction.commit().await?)
    };
    if let Err(error) = written.await {
        tracing::error!(%error, "sequencer.unrecorded");
    }
}
