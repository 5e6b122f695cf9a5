//! `kage sequencer`: gives each audit entry its place in the tree, and signs checkpoints. It has the log's private key, and of the
//! database the right to read entries and to add to the tree.
//!
//! It looks every half second instead of being notified: a NOTIFY inside a write costs that write a factor of two and more
//! (`db/notify.rs`), and the writer of an audit entry is a request that somebody waits for.

pub mod anchor;
pub mod batch;
pub mod error;
pub mod file;
pub mod git_ref;
pub mod http;
pub mod keep;
pub mod syslog;

use std::time::Duration;

use serde_json::json;
use sqlx::PgPool;
use tokio::sync::watch;

use crate::config::sequencer::SequencerConfig;
use crate::db;
use crate::db::error::DbError;
use crate::db::patience::Patience;
use crate::domain::audit::{Actor, Entry, Outcome};
use crate::domain::security_event::{SecurityEvent, SecurityEventKind};
use crate::lifecycle::Lifecycle;
use crate::sequencer::batch::Sequencer;
use crate::sequencer::error::SequencerError;

/// Between two tries when the database is away.
const PATIENCE: Duration = Duration::from_secs(1);
/// Failures in a row of one that is not away: another sequencer does not win for ever.
const TRIES: u32 = 20;

/// Reads the key, asks the anchors what they know, holds the tree against it, and begins.
///
/// # Errors
/// [`SequencerError`]: the key, an anchor, or a tree that is not what it was.
pub async fn start(
    pool: PgPool,
    config: &SequencerConfig,
    patience: Patience,
    lifecycle: &Lifecycle,
) -> Result<(), SequencerError> {
    let keys = keep::keys(config)?;
    let anchors = anchor::open(&config.anchors)?;
    let mut known = Vec::new();
    for anchor in &anchors {
        known.extend(anchor::last(anchor, &keys).await?);
    }
    let mut sequencer = Sequencer::new(pool.clone(), keys, config.batch, known);
    let checked = patience.ask(SequencerError::is_transient, async || sequencer.check().await).await;
    // A database that is away says nothing of the tree.
    if let Err(error) = &checked
        && !error.is_transient()
    {
        record(&pool, "sequencer.refuse", error.to_string(), Some(alarm(error))).await;
    }
    let note = checked?;
    record(&pool, "sequencer.start", sequencer.verifier().to_string(), None).await;
    let (made, latest) = watch::channel(note);
    for anchor in anchors {
        let (latest, pool, soft) = (latest.clone(), pool.clone(), lifecycle.soft().clone());
        lifecycle.spawn(async move {
            soft.run_until_cancelled(anchor::follow(anchor, latest, pool)).await;
        });
    }
    let (this, poll) = (lifecycle.clone(), config.poll);
    lifecycle.spawn_essential("sequencer", async move { run(sequencer, poll, &made, &this).await });
    Ok(())
}

/// Until the soft token; then what waits is sequenced a last time.
async fn run(
    mut sequencer: Sequencer,
    poll: Duration,
    made: &watch::Sender<Option<String>>,
    lifecycle: &Lifecycle,
) {
    let mut failures = 0;
    loop {
        let ending = lifecycle.soft().is_cancelled();
        let pause = match sequencer.step().await {
            Ok(Some(step)) => {
                failures = 0;
                tracing::debug!(size = step.size, entries = step.entries, "sequencer.checkpoint");
                made.send_replace(Some(step.note));
                if step.full { Duration::ZERO } else { poll }
            }
            Ok(None) => poll,
            Err(error) if error.is_transient() => {
                failures += 1;
                tracing::warn!(%error, "sequencer.later");
                let away = matches!(&error, SequencerError::Database(error) if error.is_transient());
                if !away && failures >= TRIES {
                    return refuse(&sequencer, &error).await;
                }
                PATIENCE
            }
            Err(error) => return refuse(&sequencer, &error).await,
        };
        if ending {
            return;
        }
        if pause > Duration::ZERO {
            let _ = lifecycle.soft().run_until_cancelled(tokio::time::sleep(pause)).await;
        }
    }
}

/// Says why; that this loop ends then ends the process.
async fn refuse(sequencer: &Sequencer, error: &SequencerError) {
    tracing::error!(%error, "sequencer.refused");
    record(sequencer.pool(), "sequencer.refuse", error.to_string(), Some(alarm(error))).await;
}

fn alarm(error: &SequencerError) -> SecurityEventKind {
    match error {
        SequencerError::Refused(_) => SecurityEventKind::TrailInconsistent,
        _ => SecurityEventKind::CheckpointFailed,
    }
}

/// An entry of its own. That it cannot be written is logged: the sequencer itself must not fail over it.
async fn record(pool: &PgPool, action: &'static str, what: String, alarm: Option<SecurityEventKind>) {
    let outcome = if alarm.is_some() { Outcome::Failed } else { Outcome::Done };
    let (object, details) = ("trail".to_owned(), json!({ "what": what }));
    let entry = Entry { actor: Actor::Sequencer, action, object, outcome, details };
    let written = async {
        let mut transaction = pool.begin().await?;
        db::audit::append(&mut transaction, &entry).await?;
        if let Some(kind) = alarm {
            let event = SecurityEvent::new(kind, &entry.object, &entry.details);
            db::security_events::append(&mut transaction, &event).await?;
        }
        Ok::<(), DbError>(transaction.commit().await?)
    };
    if let Err(error) = written.await {
        tracing::error!(%error, action, "sequencer.unrecorded");
    }
}
