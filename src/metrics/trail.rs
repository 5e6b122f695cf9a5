//! The audit trail: how far the sequencer is behind, and whether its checkpoints get out.

use std::sync::atomic::AtomicU64;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;

use crate::metrics::family::{Book, counters, gauge, gauges};

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Anchor {
    anchor: &'static str,
}

/// How the trail stands.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Stand {
    /// Entries without a place.
    pub unsequenced: i64,
    /// How long the first of them waits, in seconds.
    pub oldest_secs: f64,
    /// Entries with a place.
    pub entries: i64,
    /// When the last checkpoint was made, in seconds since 1970; 0: there is none.
    pub checkpoint_at: f64,
}

pub struct Trail {
    unsequenced: Gauge,
    oldest: Gauge<f64, AtomicU64>,
    entries: Gauge,
    checkpoint: Gauge<f64, AtomicU64>,
    failures: Family<Anchor, Counter>,
    failing: Family<Anchor, Gauge>,
}

impl Trail {
    pub(super) fn register(book: &mut Book) -> Self {
        Self {
            unsequenced: gauge(book, "trail_unsequenced_entries", "Audit entries without a place in the log"),
            oldest: gauge(book, "trail_unsequenced_oldest_age_seconds", "How long the first of them waits"),
            entries: gauge(book, "trail_entries", "Audit entries with a place in the log"),
            checkpoint: gauge(
                book,
                "trail_checkpoint_timestamp_seconds",
                "When the last checkpoint was made, in seconds since 1970",
            ),
            failures: counters(
                book,
                "trail_anchor_failures",
                "Tries to give an anchor a checkpoint that failed",
            ),
            failing: gauges(book, "trail_anchor_failing", "1 while an anchor takes no checkpoint, else 0"),
        }
    }

    pub fn stands(&self, stand: Stand) {
        self.unsequenced.set(stand.unsequenced);
        self.oldest.set(stand.oldest_secs);
        self.entries.set(stand.entries);
        self.checkpoint.set(stand.checkpoint_at);
    }

    pub fn anchored(&self, anchor: &'static str, taken: bool) {
        let failures = self.failures.get_or_create(&Anchor { anchor });
        if !taken {
            failures.inc();
        }
        drop(failures);
        self.failing.get_or_create(&Anchor { anchor }).set(i64::from(!taken));
    }
}
