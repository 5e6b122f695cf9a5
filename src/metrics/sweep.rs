//! What was left on a runner's host.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;

use crate::metrics::family::{Book, counters, gauges};

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfKind {
    kind: &'static str,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Container,
    Folder,
    /// What a killed process had not brought to its end.
    Temporary,
}

impl Kind {
    pub const ALL: [Self; 3] = [Self::Container, Self::Folder, Self::Temporary];

    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Container => "container",
            Self::Folder => "folder",
            Self::Temporary => "temporary",
        }
    }
}

pub struct Sweep {
    ended: Family<OfKind, Counter>,
    left: Family<OfKind, Gauge>,
}

impl Sweep {
    pub(super) fn register(book: &mut Book) -> Self {
        let this = Self {
            ended: counters(book, "swept", "What ended runs and killed processes had left, and was removed"),
            left: gauges(book, "sweep_left", "What the last sweep found, and could not prove to be dead"),
        };
        for kind in Kind::ALL {
            drop(this.ended.get_or_create(&OfKind { kind: kind.as_str() }));
        }
        this
    }

    pub fn ended(&self, kind: Kind) {
        self.ended.get_or_create(&OfKind { kind: kind.as_str() }).inc();
    }

    /// So many are there now.
    pub fn left(&self, kind: Kind, count: usize) {
        let count = i64::try_from(count).unwrap_or(i64::MAX);
        self.left.get_or_create(&OfKind { kind: kind.as_str() }).set(count);
    }
}
