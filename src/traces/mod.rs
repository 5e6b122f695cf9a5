//! A trace from a client's request to the container: what its spans are called, and how it gets from one process to the next,
//! as W3C `traceparent` beside the task and its model grant.
//!
//! What is in a span goes to the collector: ids, names out of the configuration, states, numbers. No prompt, no path, no output, no
//! header, no error's text. A client chooses the trace's id and nothing else; whether spans are made is not its to say.

pub mod export;

use std::collections::HashMap;

use opentelemetry::Context;
use opentelemetry::propagation::TextMapPropagator as _;
use opentelemetry::trace::{SpanContext, TraceContextExt as _};
use opentelemetry_sdk::propagation::TraceContextPropagator;
use tracing::Span;
use tracing_opentelemetry::OpenTelemetrySpanExt as _;

/// Spans with this target are exported, and no others.
pub const TARGET: &str = "kage::trace";

/// The header, and where it is written down.
pub const HEADER: &str = "traceparent";

/// Bytes of the one version that there is.
const LENGTH: usize = 55;

fn parse(traceparent: &str) -> Option<SpanContext> {
    if traceparent.len() != LENGTH || !traceparent.starts_with("00-") {
        return None;
    }
    let carrier = HashMap::from([(HEADER.to_owned(), traceparent.to_owned())]);
    let context = TraceContextPropagator::new().extract_with_context(&Context::new(), &carrier);
    let found = context.span().span_context().clone();
    found.is_valid().then_some(found)
}

/// Makes a span that has not begun part of the trace that another process began. What is not a `traceparent` begins a trace
/// of its own.
pub fn continue_from(span: &Span, traceparent: Option<&str>) {
    if let Some(parent) = traceparent.and_then(parse) {
        // Where nothing is exported there is nothing to set.
        let _ = span.set_parent(Context::new().with_remote_span_context(parent));
    }
}

/// What another process needs to continue from this span. Where this one exports nothing, what it was given itself.
pub fn traceparent(span: &Span, given: Option<&str>) -> Option<String> {
    let own = span.context().span().span_context().clone();
    let context = Some(own).filter(SpanContext::is_valid).or_else(|| given.and_then(parse))?;
    Some(format!("00-{}-{}-{:02x}", context.trace_id(), context.span_id(), context.trace_flags().to_u8() & 1))
}

/// A part of what the current span is about.
pub fn step(name: &'static str) -> Span {
    tracing::error_span!(target: TARGET, "step", otel.name = name)
}

/// A call to the container engine, where it is part of something: a look that the runner takes by itself is no trace.
pub fn engine_call(call: &'static str) -> Span {
    if Span::current().is_none() {
        return Span::none();
    }
    tracing::error_span!(target: TARGET, "engine", otel.name = format!("engine {call}"), otel.kind = "client")
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    #[test]
    fn what_a_client_makes_up_is_no_parent() {
        assert!(parse(GOOD).is_some());
        let long = format!("{GOOD}-{}", "x".repeat(1 << 20));
        for wrong in [
            "",
            "00",
            "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
            "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "00-4BF92F3577B34DA6A3CE929D0E0E4736-00F067AA0BA902B7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e473g-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-zz",
            "00_4bf92f3577b34da6a3ce929d0e0e4736_00f067aa0ba902b7_01",
            &long,
        ] {
            assert!(parse(wrong).is_none(), "{}", &wrong[..wrong.len().min(80)]);
        }
    }

    #[test]
    fn where_nothing_is_exported_the_trace_is_passed_on() {
        assert_eq!(traceparent(&Span::none(), Some(GOOD)).as_deref(), Some(GOOD));
        assert_eq!(traceparent(&Span::none(), Some("nonsense")), None);
        assert_eq!(traceparent(&Span::none(), None), None);
    }
}
