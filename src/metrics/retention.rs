//! What was let go, and the room that is left.

use std::sync::atomic::AtomicU64;
use std::time::{SystemTime, UNIX_EPOCH};

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;

use crate::metrics::family::{Book, counters, gauge, gauges, registered};

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct What {
    what: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Of {
    of: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Mark {
    mark: &'static str,
}

pub struct Retention {
    tasks: Family<What, Counter>,
    bytes: Family<What, Counter>,
    looked: Gauge<f64, AtomicU64>,
    free: Family<Of, Gauge<f64, AtomicU64>>,
    below: Family<Mark, Gauge>,
}

impl Retention {
    pub(super) fn register(book: &mut Book) -> Self {
        Self {
            tasks: counters(book, "let_go_tasks", "Tasks of which something was let go"),
            bytes: counters(book, "let_go_bytes", "Bytes that were let go"),
            looked: gauge(
                book,
                "retention_timestamp_seconds",
                "When what is due was last looked for to the end",
            ),
            free: registered(
                book,
                "data_free_ratio",
                "What is free of the data folder's file system",
                Family::default(),
            ),
            below: gauges(book, "data_below_mark", "1 while less is free than this mark asks for"),
        }
    }

    pub fn let_go(&self, what: &'static str, tasks: u64, bytes: u64) {
        self.tasks.get_or_create(&What { what }).inc_by(tasks);
        self.bytes.get_or_create(&What { what }).inc_by(bytes);
    }

    /// Now.
    pub fn looked(&self) {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        self.looked.set(now.as_secs_f64());
    }

    /// Shares of the file system that are free, and whether that is below each mark.
    pub fn room(&self, bytes: f64, inodes: f64, soft: bool, hard: bool) {
        self.free.get_or_create(&Of { of: "bytes" }).set(bytes);
        self.free.get_or_create(&Of { of: "inodes" }).set(inodes);
        self.below.get_or_create(&Mark { mark: "soft" }).set(i64::from(soft));
        self.below.get_or_create(&Mark { mark: "hard" }).set(i64::from(hard));
    }
}
