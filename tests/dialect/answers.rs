//! How each dialect says no: the whole table, as bytes that a CLI gets.

use kage::dialect::answer::{Refusal, RefusalKind, answer, stream_error};
use kage::dialect::usage::UsageReader;
use kage::domain::model::Dialect;
use serde_json::Value;

const KINDS: [RefusalKind; 14] = [
    RefusalKind::NotFound,
    RefusalKind::BadRequest,
    RefusalKind::ModelNotAllowed,
    RefusalKind::ToolNotAllowed,
    RefusalKind::ReferenceNotAllowed,
    RefusalKind::TooLarge,
    RefusalKind::RateLimited { retry_after_secs: 7 },
    RefusalKind::BudgetExhausted,
    RefusalKind::Revoked,
    RefusalKind::UpstreamAuth,
    RefusalKind::UpstreamUnavailable,
    RefusalKind::UpstreamTimeout,
    RefusalKind::UpstreamBroken,
    RefusalKind::Overloaded,
];

fn body(dialect: Dialect, kind: RefusalKind) -> (u16, Value, Vec<(&'static str, String)>) {
    let said = answer(dialect, &Refusal::new(kind, "why \"so\"\n"));
    (said.status, serde_json::from_slice(&said.body).unwrap(), said.headers)
}

fn message(dialect: Dialect, body: &Value) -> &str {
    let message = if dialect == Dialect::Ollama { &body["error"] } else { &body["error"]["message"] };
    message.as_str().unwrap()
}

#[test]
fn every_refusal_is_an_error_with_the_reason_in_it() {
    for dialect in Dialect::ALL {
        for kind in KINDS {
            let (status, body, headers) = body(dialect, kind);
            assert!((400..600).contains(&status), "{dialect} {kind:?}");
            assert!(message(dialect, &body).starts_with("Kage gateway: why \"so\"\n"), "{dialect} {kind:?}");
            let header = |name| headers.iter().find(|(key, _)| *key == name).map(|(_, value)| value.as_str());
            assert_eq!(header("content-type"), Some("application/json"));
            assert_eq!(header("x-should-retry"), kind.is_final().then_some("false"), "{dialect} {kind:?}");
            let limited = matches!(kind, RefusalKind::RateLimited { .. });
            assert_eq!(header("retry-after"), limited.then_some("7"));
        }
    }
}

/// What was measured to end each CLI at its first answer.
#[test]
fn a_final_refusal_ends_the_cli() {
    for kind in KINDS.into_iter().filter(|kind| kind.is_final()) {
        for dialect in Dialect::ALL {
            let (status, body, _) = body(dialect, kind);
            let ends: &[u16] = match dialect {
                Dialect::Anthropic => &[400, 402, 403, 404, 413],
                Dialect::Gemini => &[400, 402, 403, 404],
                Dialect::Responses => &[400, 404, 429],
                Dialect::Chat | Dialect::Ollama => &[400, 402, 404],
            };
            assert!(ends.contains(&status), "{dialect} {kind:?} {status}");
            if status == 429 {
                assert_eq!(body["error"]["type"], "usage_limit_reached");
                assert_eq!(body["error"]["code"], "insufficient_quota");
            }
        }
    }
    for dialect in [Dialect::Chat, Dialect::Ollama] {
        let said = answer(dialect, &Refusal::new(RefusalKind::BudgetExhausted, "spent"));
        let text = String::from_utf8(said.body).unwrap();
        let body: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(said.status, 402);
        for place in [text.as_str(), message(dialect, &body)] {
            assert!(
                place.contains("insufficient credits") && place.contains("\"code\":402"),
                "{dialect} {place}"
            );
        }
    }
}

#[test]
fn waiting_is_asked_for_in_each_ones_way() {
    let kind = RefusalKind::RateLimited { retry_after_secs: 7 };
    for dialect in Dialect::ALL {
        assert_eq!(body(dialect, kind).0, 429);
    }
    assert_eq!(body(Dialect::Gemini, kind).1["error"]["details"][0]["retryDelay"], "7s");
    assert_eq!(body(Dialect::Anthropic, kind).1["error"]["type"], "rate_limit_error");
    assert_eq!(body(Dialect::Anthropic, RefusalKind::Overloaded).0, 529);
}

#[test]
fn a_stream_ends_with_an_error_that_a_reader_hears() {
    for dialect in Dialect::ALL {
        for kind in KINDS {
            let event = stream_error(dialect, &Refusal::new(kind, "why\r\n\r\ndata: {}"));
            let mut reader = UsageReader::new(dialect, true);
            reader.feed(&event);
            assert!(reader.at_boundary(), "{dialect}");
            let reading = reader.finish();
            assert!(reading.complete, "{dialect} {kind:?}");
            assert!(reading.error.unwrap().starts_with("Kage gateway: why"), "{dialect} {kind:?}");
        }
    }
    let quota = stream_error(Dialect::Responses, &Refusal::new(RefusalKind::BudgetExhausted, "spent"));
    assert!(
        String::from_utf8(quota).unwrap().contains("\"code\":\"insufficient_quota\""),
        "Codex stops at that"
    );
}
