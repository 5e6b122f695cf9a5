//! Calls to the container engine.

use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;

use crate::metrics::family::{Book, Histograms, QUICK, counters, histograms};

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Called {
    call: &'static str,
    outcome: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Call {
    call: &'static str,
}

pub struct Engine {
    calls: Family<Called, Counter>,
    duration: Histograms<Call>,
}

impl Engine {
    pub(super) fn register(book: &mut Book) -> Self {
        Self {
            calls: counters(book, "engine_calls", "Calls to the container engine, by how they ended"),
            duration: histograms(book, "engine_call_duration_seconds", "How long they took", QUICK),
        }
    }

    pub fn called(&self, call: &'static str, outcome: &'static str, took: Duration) {
        self.calls.get_or_create(&Called { call, outcome }).inc();
        self.duration.get_or_create(&Call { call }).observe(took.as_secs_f64());
    }
}
