//! How metrics are made: each is registered where it is made, so that none is forgotten.

use std::fmt::Debug;
use std::hash::Hash;
use std::sync::atomic::AtomicU64;

use prometheus_client::encoding::{EncodeGaugeValue, EncodeLabelSet};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::{Family, MetricConstructor};
use prometheus_client::metrics::gauge::{self, Gauge};
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::metrics::{MetricType, TypedMetric};
use prometheus_client::registry::{Metric, Registry, Unit};

/// Seconds, of what answers at once: a request, a call of the engine.
pub(super) const QUICK: &[f64] =
    &[0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0];
/// Seconds, of what an agent takes: from half a second to four hours.
pub(super) const LONG: &[f64] = &[
    0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1200.0, 1800.0, 3600.0, 7200.0,
    14_400.0,
];

pub(super) trait Labels: EncodeLabelSet + Clone + Debug + Eq + Hash + Send + Sync + 'static {}
impl<T: EncodeLabelSet + Clone + Debug + Eq + Hash + Send + Sync + 'static> Labels for T {}

/// Makes histograms with the buckets of their family.
#[derive(Debug, Clone, Copy)]
pub(super) struct Buckets(pub &'static [f64]);

impl MetricConstructor<Histogram> for Buckets {
    fn new_metric(&self) -> Histogram {
        Histogram::new(self.0.iter().copied())
    }
}

pub(super) type Histograms<S> = Family<S, Histogram, Buckets>;

/// The library's registry, and the names of what is in it: it shows no family of which there is no series yet.
#[derive(Debug)]
pub(super) struct Book {
    pub registry: Registry,
    /// As on the page.
    pub names: Vec<(String, MetricType)>,
}

/// Before each name.
const PREFIX: &str = "kage";

impl Default for Book {
    fn default() -> Self {
        Self { registry: Registry::with_prefix(PREFIX), names: Vec::new() }
    }
}

pub(super) fn registered<M: Metric + TypedMetric + Clone>(
    book: &mut Book,
    name: &str,
    help: &str,
    metric: M,
) -> M {
    let total = if matches!(M::TYPE, MetricType::Counter) { "_total" } else { "" };
    book.names.push((format!("{PREFIX}_{name}{total}"), M::TYPE));
    // The library adds the full stop.
    match name.strip_suffix("_seconds") {
        Some(base) => book.registry.register_with_unit(base, help, Unit::Seconds, metric.clone()),
        None => book.registry.register(name, help, metric.clone()),
    }
    metric
}

/// The page shows it as `kage_NAME_total`.
pub(super) fn counter(book: &mut Book, name: &str, help: &str) -> Counter {
    registered(book, name, help, Counter::default())
}

pub(super) fn counters<S: Labels>(book: &mut Book, name: &str, help: &str) -> Family<S, Counter> {
    registered(book, name, help, Family::default())
}

pub(super) fn gauge<N, A>(book: &mut Book, name: &str, help: &str) -> Gauge<N, A>
where
    N: EncodeGaugeValue + Debug + Send + Sync + 'static,
    A: gauge::Atomic<N> + Default + Debug + Send + Sync + 'static,
{
    registered(book, name, help, Gauge::<N, A>::default())
}

pub(super) fn gauges<S: Labels>(book: &mut Book, name: &str, help: &str) -> Family<S, Gauge> {
    registered(book, name, help, Family::default())
}

/// Of seconds since 1970.
pub(super) fn moments<S: Labels>(
    book: &mut Book,
    name: &str,
    help: &str,
) -> Family<S, Gauge<f64, AtomicU64>> {
    registered(book, name, help, Family::default())
}

pub(super) fn histograms<S: Labels>(
    book: &mut Book,
    name: &str,
    help: &str,
    buckets: &'static [f64],
) -> Histograms<S> {
    registered(book, name, help, Histograms::new_with_constructor(Buckets(buckets)))
}

pub(super) fn histogram(book: &mut Book, name: &str, help: &str, buckets: &'static [f64]) -> Histogram {
    registered(book, name, help, Buckets(buckets).new_metric())
}
