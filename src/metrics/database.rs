//! Postgres, as this process sees it.

use std::sync::atomic::AtomicU64;
use std::time::{SystemTime, UNIX_EPOCH};

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;

use crate::metrics::family::{Book, counters, gauges, moments};

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Connections {
    zone: &'static str,
    state: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Zone {
    zone: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Kind {
    kind: &'static str,
}

/// What is counted apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failure {
    /// No connection, or it broke.
    Unavailable,
    /// No connection of the pool came free in time.
    Exhausted,
    /// A deadlock or a conflict of transactions: tried again.
    Conflict,
    /// A constraint refused a row: often what was wanted of it.
    Constraint,
    /// A right is missing.
    Forbidden,
    Other,
}

impl Failure {
    const ALL: [Self; 6] =
        [Self::Unavailable, Self::Exhausted, Self::Conflict, Self::Constraint, Self::Forbidden, Self::Other];

    const fn as_str(self) -> &'static str {
        match self {
            Self::Unavailable => "unavailable",
            Self::Exhausted => "pool_exhausted",
            Self::Conflict => "conflict",
            Self::Constraint => "constraint",
            Self::Forbidden => "forbidden",
            Self::Other => "other",
        }
    }
}

pub struct Database {
    connections: Family<Connections, Gauge>,
    most: Family<Zone, Gauge>,
    errors: Family<Kind, Counter>,
    looked: Family<Zone, Gauge<f64, AtomicU64>>,
}

impl Database {
    pub(super) fn register(book: &mut Book) -> Self {
        let this = Self {
            connections: gauges(book, "database_connections", "Connections of a role's pool"),
            most: gauges(book, "database_connections_max", "Most connections that the pool may have"),
            errors: counters(book, "database_errors", "Statements and connections that failed"),
            looked: moments(
                book,
                "figures_timestamp_seconds",
                "When the figures that are asked for were last asked for, in seconds since 1970",
            ),
        };
        for kind in Failure::ALL {
            drop(this.errors.get_or_create(&Kind { kind: kind.as_str() }));
        }
        this
    }

    pub fn pool(&self, zone: &'static str, open: u32, idle: usize, most: u32) {
        let idle = u32::try_from(idle).unwrap_or(u32::MAX).min(open);
        for (state, count) in [("idle", idle), ("used", open - idle)] {
            self.connections.get_or_create(&Connections { zone, state }).set(count.into());
        }
        self.most.get_or_create(&Zone { zone }).set(most.into());
    }

    /// What is asked of the database for the page is of this moment.
    pub fn looked(&self, zone: &'static str) {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        self.looked.get_or_create(&Zone { zone }).set(now.as_secs_f64());
    }

    pub fn failed(&self, failure: Failure) {
        self.errors.get_or_create(&Kind { kind: failure.as_str() }).inc();
    }
}
