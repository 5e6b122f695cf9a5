//! What is counted and measured, for Prometheus. `docs/metrics.md` has the table; a test holds it against this.
//!
//! ```text
//! family     how a metric is made and registered
//! http  runs  sweep  model  engine  trail  retention  database  build     what there is of each, and the one call that counts it
//! listener   the page, on an address of its own
//! ```
//!
//! A label's value is a word of the program's own (`&'static str`), a route's template, or a name out of the operator's
//! configuration. Nothing that a request, a repository or an agent brings becomes one: whoever could make up values could fill
//! the memory of this process and of the one that scrapes it.

pub mod build;
pub mod database;
pub mod engine;
mod family;
pub mod http;
pub mod listener;
pub mod model;
pub mod retention;
pub mod runs;
pub mod sweep;
pub mod trail;

use std::sync::LazyLock;
use std::time::Duration;

use prometheus_client::encoding::text;

use crate::metrics::build::Build;
use crate::metrics::database::Database;
use crate::metrics::engine::Engine;
use crate::metrics::family::Book;
use crate::metrics::http::Http;
use crate::metrics::model::Model;
use crate::metrics::retention::Retention;
use crate::metrics::runs::Runs;
use crate::metrics::sweep::Sweep;
use crate::metrics::trail::Trail;

/// Between two looks at what is asked for rather than counted: the queue, the pools, the trail.
pub const LOOK_EVERY: Duration = Duration::from_secs(5);

static METRICS: LazyLock<Metrics> = LazyLock::new(Metrics::new);

/// Those of this process.
pub fn metrics() -> &'static Metrics {
    &METRICS
}

pub struct Metrics {
    book: Book,
    pub build: Build,
    pub http: Http,
    pub runs: Runs,
    pub sweep: Sweep,
    pub model: Model,
    pub engine: Engine,
    pub trail: Trail,
    pub retention: Retention,
    pub database: Database,
}

impl Metrics {
    fn new() -> Self {
        let mut book = Book::default();
        Self {
            build: Build::register(&mut book),
            http: Http::register(&mut book),
            runs: Runs::register(&mut book),
            sweep: Sweep::register(&mut book),
            model: Model::register(&mut book),
            engine: Engine::register(&mut book),
            trail: Trail::register(&mut book),
            retention: Retention::register(&mut book),
            database: Database::register(&mut book),
            book,
        }
    }

    /// The page, in the OpenMetrics text format.
    pub fn page(&self) -> String {
        let mut page = String::new();
        // Writing to a String cannot fail.
        let _ = text::encode(&mut page, &self.book.registry);
        page
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    const TABLE: &str = include_str!("../../docs/metrics.md");
    const ALERTS: &str = include_str!("../../deploy/prometheus/alerts.yml");

    fn exported() -> BTreeSet<(String, String)> {
        let names = Metrics::new().book.names;
        names.into_iter().map(|(name, kind)| (name, kind.as_str().to_owned())).collect()
    }

    #[test]
    fn the_table_has_every_metric_and_no_other() {
        let rows = TABLE.lines().filter(|line| line.starts_with("| `kage_"));
        let documented: BTreeSet<_> = rows
            .map(|row| {
                let cells: Vec<&str> = row.split('|').map(str::trim).collect();
                (cells[1].trim_matches('`').to_owned(), cells[2].to_owned())
            })
            .collect();
        let exported = exported();
        assert!(exported.len() > 30, "{exported:?}");
        let missing: Vec<_> = exported.difference(&documented).collect();
        let stale: Vec<_> = documented.difference(&exported).collect();
        assert!(missing.is_empty() && stale.is_empty(), "missing: {missing:#?}\nstale: {stale:#?}");
    }

    /// As Prometheus' own guide wants them: lower case, base units, what is counted in the plural.
    #[test]
    fn names_are_as_prometheus_wants_them() {
        for (name, kind) in exported() {
            assert!(name.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_'), "{name}");
            assert!(!name.contains("_ms") && !name.contains("milli") && !name.contains("__"), "{name}");
            assert_eq!(name.ends_with("_total"), kind == "counter", "{name}");
            if kind == "histogram" {
                assert!(name.ends_with("_seconds"), "{name}");
            }
        }
    }

    #[test]
    fn alerts_ask_for_metrics_that_there_are() {
        let exported: BTreeSet<String> = exported().into_iter().map(|(name, _)| name).collect();
        let words = ALERTS.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
        let asked: BTreeSet<&str> = words.filter(|word| word.starts_with("kage_")).collect();
        assert!(asked.len() > 10, "{asked:?}");
        for name in asked {
            let base = name.strip_suffix("_bucket").or(name.strip_suffix("_count")).unwrap_or(name);
            assert!(exported.contains(base), "alerts.yml asks for {name}");
        }
    }

    /// A rate over a series that begins with its first fault shows nothing of it.
    #[test]
    fn what_alerts_count_is_there_from_the_beginning() {
        let page = Metrics::new().page();
        for line in [
            "kage_auth_failures_total 0",
            "kage_containment_refusals_total 0",
            "kage_runs_ended_total{state=\"sandbox_error\"} 0",
            "kage_database_errors_total{kind=\"unavailable\"} 0",
            "kage_rate_limited_total{policy=\"failures\"} 0",
        ] {
            assert!(page.lines().any(|it| it == line), "{line}:\n{page}");
        }
    }
}
