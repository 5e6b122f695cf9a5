//! The calls that there are, and no others.

use kage::dialect::answer::RefusalKind;
use kage::dialect::route::{Call, route, upstream_path};
use kage::domain::model::Dialect;

use crate::GENERATE;

#[test]
fn only_the_listed_paths_are_found() {
    let found = |dialect, method, path, query| route(dialect, method, path, query).ok();
    assert_eq!(found(Dialect::Anthropic, "POST", "/v1/messages", Some("beta=true")), Some(GENERATE));
    assert_eq!(found(Dialect::Anthropic, "HEAD", "/api/hello", None), Some(Call::Hello));
    for path in ["/v1/responses", "/responses"] {
        assert_eq!(found(Dialect::Responses, "POST", path, None), Some(GENERATE));
    }
    let stream = found(
        Dialect::Gemini,
        "POST",
        "/v1beta/models/gemini-2.5-pro:streamGenerateContent",
        Some("alt=sse"),
    );
    let expected =
        Call::Generate { stream_hint: Some(true), model_in_path: Some("gemini-2.5-pro".to_owned()) };
    assert_eq!(stream, Some(expected));
    let nowhere: &[(&str, &str, Option<&str>)] = &[
        ("GET", "/v1/messages", None),
        ("post", "/v1/messages", None),
        ("CONNECT", "/v1/messages", None),
        ("POST", "/v1/messages", Some("")),
        ("POST", "/v1/messages", Some("beta=true&x=1")),
        ("POST", "/v1/messages/", None),
        ("POST", "//v1/messages", None),
        ("POST", "/v1//messages", None),
        ("POST", "/v1/Messages", None),
        ("POST", "/v1/%6dessages", None),
        ("POST", "/v1/x/../messages", None),
        ("POST", "/v1/messages;a", None),
        ("POST", "/v1/messages#", None),
        ("POST", "\\v1\\messages", None),
        ("POST", "http://evil.example/v1/messages", None),
        ("POST", "/v1/messages/batches", None),
        ("POST", "/v1/files", None),
        ("GET", "/v1/responses", None),
        ("DELETE", "/v1/responses/resp_1", None),
        ("POST", "/v1/embeddings", None),
        ("POST", "/v1/completions", None),
        ("POST", "/v1beta/models/m:generateContent", Some("key=k")),
        ("POST", "/v1beta/models/m:streamGenerateContent", None),
        ("POST", "/v1beta/models/:generateContent", None),
        ("POST", "/v1beta/models/m:streamGenerateContent", Some("alt=json")),
        ("POST", "/v1beta/models/a/b:generateContent", None),
        ("POST", "/v1beta/models/..:generateContent", None),
        ("POST", "/v1beta/models/m%2f:generateContent", None),
        ("POST", "/v1beta/cachedContents", None),
        ("POST", "/api/pull", None),
        ("POST", "/api/generate", None),
        ("DELETE", "/api/delete", None),
        ("POST", "/api/web_search", None),
        ("GET", "/", None),
        ("GET", "", None),
        ("", "", None),
    ];
    for (method, path, query) in nowhere {
        for dialect in Dialect::ALL {
            let refusal = route(dialect, method, path, *query).unwrap_err();
            assert_eq!(refusal.kind, RefusalKind::NotFound, "{dialect} {method} {path}");
        }
    }
    let generate = Call::Generate { stream_hint: Some(true), model_in_path: Some("m".to_owned()) };
    let path = upstream_path(Dialect::Gemini, &generate, "../../x?y#z é", true);
    assert_eq!(path, "/v1beta/models/..%2F..%2Fx%3Fy%23z%20%C3%A9:streamGenerateContent?alt=sse");
}
