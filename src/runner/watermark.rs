//! The room on the data folder's file system, against the operator's two marks.
//!
//! Below the soft one no new run is begun here; what is under way goes on. Below the hard one the checkouts that no run uses are
//! removed, which is what is left on a host of work that has ended. The reserve of [`crate::git::room`] is for one checkout:
//! whether it may be made.

use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde_json::json;

use crate::config::runner::DiskMarks;
use crate::db;
use crate::db::error::DbError;
use crate::domain::audit::{Actor, Entry, Outcome};
use crate::git::error::GitError;
use crate::git::room::{Free, Removed};
use crate::metrics::metrics;
use crate::runner::environment::Environment;

/// Between two looks.
const LOOK: Duration = Duration::from_secs(5);

/// Where what is free stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Level {
    Enough,
    BelowSoft,
    BelowHard,
}

impl Level {
    /// `reserve`: bytes without which no checkout is made, so that a run could only fail.
    fn of(free: Free, marks: DiskMarks, reserve: u64) -> Self {
        let (bytes, inodes) = free.shares();
        let below = |percent: u8| bytes.min(inodes) * 100.0 < f64::from(percent);
        if below(marks.hard) {
            Self::BelowHard
        } else if below(marks.soft) || free.bytes < reserve {
            Self::BelowSoft
        } else {
            Self::Enough
        }
    }
}

/// The last look.
#[derive(Debug)]
pub(super) struct Watermark {
    level: AtomicU8,
    words: Mutex<String>,
}

/// Until somebody has looked, nothing is begun.
const UNKNOWN: u8 = u8::MAX;

impl Default for Watermark {
    fn default() -> Self {
        Self { level: AtomicU8::new(UNKNOWN), words: Mutex::new("nobody has looked yet".to_owned()) }
    }
}

impl Watermark {
    /// Whether a new run may be begun.
    pub fn has_room(&self) -> bool {
        self.level.load(Ordering::Relaxed) == Level::Enough as u8
    }

    /// What is free, in words.
    pub fn words(&self) -> String {
        self.words.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// What it was before.
    fn note(&self, level: Level, words: &str) -> u8 {
        words.clone_into(&mut self.words.lock().unwrap_or_else(PoisonError::into_inner));
        self.level.swap(level as u8, Ordering::Relaxed)
    }
}

/// Runs until no run is left.
pub(super) async fn run(environment: Arc<Environment>) {
    while !environment.lifecycle.soft().is_cancelled() {
        if look(&environment) == Level::BelowHard
            && let Err(error) = make_room(&environment).await
        {
            tracing::warn!(error, "runner.no_room_made");
        }
        tokio::select! {
            () = environment.lifecycle.soft().cancelled() => {}
            () = tokio::time::sleep(LOOK) => {}
        }
    }
}

/// Looks now, and says so when it is another level than before.
pub(super) fn look(environment: &Environment) -> Level {
    let (marks, mark) = (environment.config.marks, &environment.watermark);
    let reserve = environment.config.bases.reserve_bytes;
    let (level, words) = match Free::of(&environment.config.data_dir) {
        Ok(free) => {
            let level = Level::of(free, marks, reserve);
            let (bytes, inodes) = free.shares();
            metrics().retention.room(bytes, inodes, level >= Level::BelowSoft, level == Level::BelowHard);
            (level, words(free, level, marks, reserve))
        }
        // Where it cannot be told nothing is begun, and nothing is removed either.
        Err(error) => (Level::BelowSoft, error.to_string()),
    };
    let before = mark.note(level, &words);
    let was_low = before != UNKNOWN && before != Level::Enough as u8;
    match (was_low, mark.has_room()) {
        (false, false) => tracing::warn!(words, "runner.disk_low: no new run is begun here"),
        (true, true) => {
            tracing::info!(words, "runner.disk_has_room");
            environment.wake.notify_one();
        }
        _ => {}
    }
    level
}

fn words(free: Free, level: Level, marks: DiskMarks, reserve: u64) -> String {
    let (bytes, inodes) = free.shares();
    let seen = format!("{:.1} % of bytes and {:.1} % of inodes are free", bytes * 100.0, inodes * 100.0);
    match level {
        Level::Enough => seen,
        Level::BelowSoft if free.bytes < reserve => format!(
            "{seen}; {} bytes are free, fewer than KAGE_RUNNER_RESERVE_BYTES ({reserve}): no new run is begun",
            free.bytes
        ),
        Level::BelowSoft => format!("{seen}, less than {} %: no new run is begun", marks.soft),
        Level::BelowHard => {
            format!("{seen}, less than {} %: no new run is begun, unused checkouts go", marks.hard)
        }
    }
}

async fn make_room(environment: &Arc<Environment>) -> Result<(), String> {
    let this = Arc::clone(environment);
    let removing = tokio::task::spawn_blocking(move || {
        let (folder, marks) = (&this.config.data_dir, this.config.marks);
        this.bases
            .remove_while(|| Ok::<_, GitError>(Level::of(Free::of(folder)?, marks, 0) == Level::BelowHard))
    });
    let removed = removing.await.map_err(|error| error.to_string())?.map_err(|error| error.to_string())?;
    if removed.bases > 0 {
        let words = environment.watermark.words();
        record(environment, "size", removed, &words).await.map_err(|error| error.to_string())?;
    }
    Ok(())
}

/// That checkouts went. Each can be made again from its mirror.
///
/// # Errors
/// [`DbError`].
pub(super) async fn record(
    environment: &Environment,
    rule: &str,
    removed: Removed,
    why: &str,
) -> Result<(), DbError> {
    let Removed { bases, bytes } = removed;
    tracing::info!(rule, bases, bytes, why, "runner.bases_let_go");
    let entry = Entry {
        actor: Actor::Runner(environment.id.to_string()),
        action: "retention.bases",
        object: format!("runner:{}", environment.id),
        outcome: Outcome::Done,
        details: json!({ "what": "bases", "rule": rule, "bases": bases, "bytes": bytes, "why": why }),
    };
    let mut connection = environment.pool.acquire().await?;
    db::audit::append(&mut connection, &entry).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_scarcer_of_bytes_and_inodes_counts() {
        let marks = DiskMarks { soft: 10, hard: 5 };
        let level =
            |bytes, inodes| Level::of(Free { bytes, all_bytes: 1000, inodes, all_inodes: 1000 }, marks, 0);
        assert_eq!(level(100, 1000), Level::Enough);
        assert_eq!(level(99, 1000), Level::BelowSoft);
        assert_eq!(level(50, 1000), Level::BelowSoft);
        assert_eq!(level(49, 1000), Level::BelowHard);
        assert_eq!(level(1000, 99), Level::BelowSoft);
        assert_eq!(level(1000, 0), Level::BelowHard);
        // A file system without a bound of inodes has enough of them.
        let unbounded = Free { bytes: 500, all_bytes: 1000, inodes: 0, all_inodes: 0 };
        assert_eq!(Level::of(unbounded, marks, 0), Level::Enough);
        let off = DiskMarks { soft: 0, hard: 0 };
        assert_eq!(
            Level::of(Free { bytes: 0, all_bytes: 1000, inodes: 0, all_inodes: 1000 }, off, 0),
            Level::Enough
        );
        // The reserve is a soft mark too, and is named; what is below the hard one stays so.
        let free = Free { bytes: 820, all_bytes: 1000, inodes: 0, all_inodes: 0 };
        assert_eq!(Level::of(free, marks, 820), Level::Enough);
        assert_eq!(Level::of(free, marks, 821), Level::BelowSoft);
        assert_eq!(Level::of(Free { bytes: 49, ..free }, marks, 821), Level::BelowHard);
        assert!(words(free, Level::BelowSoft, marks, 821).contains("KAGE_RUNNER_RESERVE_BYTES (821)"));
        assert!(!words(free, Level::BelowSoft, marks, 0).contains("RESERVE"));
        assert!(!Watermark::default().has_room());
    }
}
