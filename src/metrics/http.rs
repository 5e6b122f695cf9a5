//! The API: requests, who was refused, streams.

use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;

use crate::metrics::family::{
    Book, Histograms, LONG, QUICK, counter, counters, gauge, histogram, histograms,
};

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Answered {
    method: &'static str,
    route: String,
    status: u16,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Asked {
    method: &'static str,
    route: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Policy {
    policy: &'static str,
}

/// A limit of the whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Limit {
    Queue,
    QueueOfKey,
    Streams,
    StreamsOfKey,
    Bodies,
    BodiesOfKey,
}

impl Limit {
    pub const ALL: [Self; 6] =
        [Self::Queue, Self::QueueOfKey, Self::Streams, Self::StreamsOfKey, Self::Bodies, Self::BodiesOfKey];

    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Queue => "queue",
            Self::QueueOfKey => "queue_of_key",
            Self::Streams => "streams",
            Self::StreamsOfKey => "streams_of_key",
            Self::Bodies => "bodies",
            Self::BodiesOfKey => "bodies_of_key",
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Limited {
    limit: &'static str,
}

pub struct Http {
    requests: Family<Answered, Counter>,
    duration: Histograms<Asked>,
    auth_failures: Counter,
    rate_limited: Family<Policy, Counter>,
    limited: Family<Limited, Counter>,
    streams: Gauge,
    stream_lag: Histogram,
}

impl Http {
    pub(super) fn register(book: &mut Book) -> Self {
        let this = Self {
            requests: counters(book, "http_requests", "Requests that were answered"),
            duration: histograms(
                book,
                "http_request_duration_seconds",
                "From a request's head to its answer's head",
                QUICK,
            ),
            auth_failures: counter(book, "auth_failures", "Requests without a valid key where one is needed"),
            rate_limited: counters(book, "rate_limited", "Requests over a limit of rates, answered with 429"),
            limited: counters(
                book,
                "limit_refusals",
                "Requests refused since as much of something is there as may be, answered with 429 or 503",
            ),
            streams: gauge(book, "streams_open", "Event streams that are open"),
            stream_lag: histogram(
                book,
                "stream_lag_seconds",
                "From an event, or a stream's start if that is later, until the stream had it to send",
                LONG,
            ),
        };
        for policy in ["address", "key", "failures"] {
            drop(this.rate_limited.get_or_create(&Policy { policy }));
        }
        for limit in Limit::ALL {
            drop(this.limited.get_or_create(&Limited { limit: limit.as_str() }));
        }
        this
    }

    /// `route`: its template; none where no route fits, whatever was asked for.
    pub fn answered(&self, method: &str, route: Option<&str>, status: u16, took: Duration) {
        let (method, route) = (method_name(method), route.unwrap_or("other").to_owned());
        let asked = Asked { method, route };
        self.duration.get_or_create(&asked).observe(took.as_secs_f64());
        self.requests.get_or_create(&Answered { method, route: asked.route, status }).inc();
    }

    pub fn auth_failed(&self) {
        self.auth_failures.inc();
    }

    pub fn rate_limited(&self, policy: &'static str) {
        self.rate_limited.get_or_create(&Policy { policy }).inc();
    }

    pub fn limited(&self, limit: Limit) {
        self.limited.get_or_create(&Limited { limit: limit.as_str() }).inc();
    }

    /// Counts a stream for as long as it is held.
    pub fn stream(&self) -> Stream {
        self.streams.inc();
        Stream(self.streams.clone())
    }

    pub fn stream_lagged(&self, lag: Duration) {
        self.stream_lag.observe(lag.as_secs_f64());
    }
}

/// HTTP lets a client make up methods, as long as a head may be: those are `other`.
pub fn method_name(method: &str) -> &'static str {
    let methods = ["GET", "POST", "DELETE", "PUT", "PATCH", "HEAD", "OPTIONS"];
    methods.into_iter().find(|known| *known == method).unwrap_or("other")
}

pub struct Stream(Gauge);

impl Drop for Stream {
    fn drop(&mut self) {
        self.0.dec();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_client_makes_up_is_one_series() {
        let mut book = Book::default();
        let http = Http::register(&mut book);
        for number in 0..1000 {
            http.answered(&format!("METHOD{number}"), None, 404, Duration::ZERO);
        }
        let mut page = String::new();
        prometheus_client::encoding::text::encode(&mut page, &book.registry).unwrap();
        let series: Vec<&str> =
            page.lines().filter(|line| line.starts_with("kage_http_requests_total")).collect();
        assert_eq!(
            series,
            ["kage_http_requests_total{method=\"other\",route=\"other\",status=\"404\"} 1000"]
        );
    }

    #[test]
    fn a_stream_is_counted_while_it_is_open() {
        let http = Http::register(&mut Book::default());
        let (first, second) = (http.stream(), http.stream());
        assert_eq!(http.streams.get(), 2);
        drop((first, second));
        assert_eq!(http.streams.get(), 0);
    }
}
