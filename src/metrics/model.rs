//! Calls to models.

use std::sync::atomic::AtomicU64;
use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;

use crate::metrics::family::{Book, Histograms, LONG, counter, counters, gauge, histograms, registered};

/// Whose model: both names are out of the operator's configuration, or `other`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Of {
    provider: String,
    model: String,
}

impl Of {
    /// `listed`: the models that the provider's configuration names.
    pub fn new<'a>(provider: &str, model: &str, mut listed: impl Iterator<Item = &'a str>) -> Self {
        let model = if listed.any(|name| name == model) { model } else { "other" };
        Self { provider: provider.to_owned(), model: model.to_owned() }
    }

    pub fn model(&self) -> &str {
        &self.model
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Ended {
    provider: String,
    model: String,
    outcome: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Tokens {
    provider: String,
    model: String,
    kind: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Provider {
    provider: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Refused {
    provider: String,
    kind: &'static str,
}

/// A call that has ended, as it is booked.
#[derive(Debug, Clone, Copy)]
pub struct Call {
    pub outcome: &'static str,
    /// Each with its kind.
    pub tokens: [(&'static str, i64); 4],
    /// Millionths of a USD.
    pub cost_micros: i64,
    pub duration: Duration,
    pub first_byte: Option<Duration>,
}

pub struct Model {
    open: Gauge,
    calls: Family<Ended, Counter>,
    tokens: Family<Tokens, Counter>,
    cost: Family<Of, Counter<f64, AtomicU64>>,
    duration: Histograms<Provider>,
    first_byte: Histograms<Provider>,
    refusals: Family<Refused, Counter>,
    stops: Counter,
}

impl Model {
    pub(super) fn register(book: &mut Book) -> Self {
        let cost = registered(book, "model_cost_usd", "What calls cost, as booked", Family::default());
        Self {
            open: gauge(book, "model_calls_open", "Calls that are booked and have not ended"),
            calls: counters(book, "model_calls", "Calls that were booked and have ended"),
            tokens: counters(book, "model_tokens", "Tokens of calls, as booked"),
            cost,
            duration: histograms(
                book,
                "model_call_duration_seconds",
                "From a call's arrival to the end of its answer",
                LONG,
            ),
            first_byte: histograms(
                book,
                "model_first_byte_seconds",
                "From a call's arrival to the first byte of its answer",
                LONG,
            ),
            refusals: counters(book, "model_refusals", "Requests that the gateway answered with a refusal"),
            stops: counter(book, "model_budget_stops", "Runs that were ended since a budget is spent"),
        }
    }

    pub fn began(&self) {
        self.open.inc();
    }

    /// After [`Model::began`], once.
    pub fn ended(&self, of: &Of, call: &Call) {
        self.open.dec();
        let Of { provider, model } = of.clone();
        self.calls.get_or_create(&Ended { provider, model, outcome: call.outcome }).inc();
        for (kind, count) in call.tokens {
            let Of { provider, model } = of.clone();
            self.tokens.get_or_create(&Tokens { provider, model, kind }).inc_by(count.max(0).unsigned_abs());
        }
        self.cost.get_or_create(of).inc_by(call.cost_micros.max(0) as f64 / 1e6);
        let provider = Provider { provider: of.provider.clone() };
        self.duration.get_or_create(&provider).observe(call.duration.as_secs_f64());
        if let Some(first_byte) = call.first_byte {
            self.first_byte.get_or_create(&provider).observe(first_byte.as_secs_f64());
        }
    }

    pub fn refused(&self, provider: &str, kind: &'static str) {
        self.refusals.get_or_create(&Refused { provider: provider.to_owned(), kind }).inc();
    }

    pub fn stopped(&self) {
        self.stops.inc();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_model_that_is_not_listed_is_another() {
        let listed = ["claude-a", "claude-*"];
        assert_eq!(Of::new("p", "claude-a", listed.into_iter()).model, "claude-a");
        assert_eq!(Of::new("p", "claude-b", listed.into_iter()).model, "other");
    }
}
