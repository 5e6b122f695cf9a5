//! Requests that would have the provider fetch something, or look up what it has kept.

use kage::dialect::answer::RefusalKind;
use kage::domain::model::Dialect;
use serde_json::json;

use crate::{checked, refused};

#[test]
fn the_provider_keeps_and_fetches_nothing() {
    for key in ["previous_response_id", "conversation", "prompt"] {
        for value in [json!("resp_1"), json!({"id": "x"}), json!(""), json!(0), json!(false)] {
            let body = json!({"model": "m", "input": "x", key: value});
            assert_eq!(refused(Dialect::Responses, &body), RefusalKind::ReferenceNotAllowed, "{key}");
        }
        assert_eq!(
            checked(Dialect::Responses, &json!({"model": "m", "input": "x", key: null})).body.get(key),
            None
        );
    }
    assert_eq!(checked(Dialect::Responses, &json!({"model": "m", "input": "x"})).body["store"], false);
    let body = json!({"model": "m", "input": "x", "background": true});
    assert_eq!(refused(Dialect::Responses, &body), RefusalKind::BadRequest);
    for item in
        [json!({"type": "item_reference", "id": "i"}), json!({"id": "i"}), json!({"type": null, "id": "i"})]
    {
        let body = json!({"model": "m", "input": [item]});
        assert_eq!(refused(Dialect::Responses, &body), RefusalKind::ReferenceNotAllowed);
    }
    let body = json!({"model": "m", "messages": [], "container": "container_1"});
    assert_eq!(refused(Dialect::Anthropic, &body), RefusalKind::ReferenceNotAllowed);
    for key in ["cachedContent", "cached_content"] {
        let body = json!({"contents": [], key: "cachedContents/1"});
        assert_eq!(refused(Dialect::Gemini, &body), RefusalKind::ReferenceNotAllowed);
    }
    let part =
        json!([{"role": "user", "content": [{"type": "input_image", "image_url": "https://evil.example"}]}]);
    let body = json!({"model": "m", "input": "x", "instructions": part});
    assert_eq!(refused(Dialect::Responses, &body), RefusalKind::BadRequest, "instructions are text");
    let body = json!({"model": "m", "messages": [{"role": "assistant", "audio": {"id": "a"}}]});
    assert_eq!(refused(Dialect::Chat, &body), RefusalKind::ReferenceNotAllowed);
}

const URLS: &[&str] = &[
    "https://evil.example/a.png",
    "http://10.0.0.1/",
    "//evil.example/a",
    "file:///etc/passwd",
    "gs://b/o",
    " data:image/png;base64,AA",
    "data:image/png,AA",
    "DATA:image/png;base64,AA",
    "data:text/html;x=\"y\";base64,AA",
    "data:https://evil.example/;base64,AA",
    "",
    "ftp:x;base64,AA",
];

#[test]
fn no_url_hides_in_a_message() {
    let data = "data:image/png;base64,AAAA";
    for url in URLS {
        let sources = [json!({"type": "url", "url": url}), json!({"type": "file", "file_id": url})];
        for source in sources {
            let image = json!([{"type": "image", "source": source}]);
            let result = json!([{"type": "tool_result", "tool_use_id": "t", "content": image}]);
            let deep = json!([{"type": "document", "source": {"type": "content", "content": image}}]);
            for content in [&image, &result, &deep] {
                let body = json!({"model": "m", "messages": [{"role": "user", "content": content}]});
                assert_eq!(refused(Dialect::Anthropic, &body), RefusalKind::ReferenceNotAllowed, "{body}");
            }
            let body = json!({"model": "m", "messages": [], "system": image});
            assert_eq!(refused(Dialect::Anthropic, &body), RefusalKind::ReferenceNotAllowed, "{body}");
        }
        let parts = [
            json!({"type": "image_url", "image_url": {"url": url}}),
            json!({"type": "image_url", "image_url": url}),
            json!({"type": "video_url", "video_url": {"url": url}}),
        ];
        for part in parts {
            for role in ["user", "tool", "system"] {
                let body = json!({"model": "m", "messages": [{"role": role, "content": [part]}]});
                assert_eq!(refused(Dialect::Chat, &body), RefusalKind::ReferenceNotAllowed, "{body}");
            }
        }
        let part = json!([{"type": "input_image", "image_url": url}]);
        let items = [
            json!({"role": "user", "content": part}),
            json!({"type": "message", "role": "user", "content": part}),
            json!({"type": "function_call_output", "call_id": "c", "output": part}),
            json!({"type": "custom_tool_call_output", "call_id": "c", "output": part}),
        ];
        for item in items {
            let body = json!({"model": "m", "input": [item]});
            assert_eq!(refused(Dialect::Responses, &body), RefusalKind::ReferenceNotAllowed, "{body}");
        }
    }
    for part in [
        json!({"type": "input_image", "file_id": "f"}),
        json!({"type": "input_file", "file_id": "f"}),
        json!({"type": "input_image", "image_url": data, "file_id": "f"}),
        json!({"type": "input_file", "file_url": "https://evil.example"}),
        json!({"type": "input_file", "file_data": "https://evil.example"}),
    ] {
        let body = json!({"model": "m", "input": [{"role": "user", "content": [part]}]});
        assert_eq!(refused(Dialect::Responses, &body), RefusalKind::ReferenceNotAllowed, "{body}");
    }
    let body = json!({"model": "m", "messages": [{"role": "user", "content": [{"type": "file", "file": {"file_id": "f"}}]}]});
    assert_eq!(refused(Dialect::Chat, &body), RefusalKind::ReferenceNotAllowed);
    for key in ["fileData", "file_data"] {
        let part = json!({key: {"fileUri": "https://evil.example"}});
        let inner = json!({"functionResponse": {"name": "f", "response": {}, "parts": [part]}});
        for part in [part, inner] {
            for body in [
                json!({"contents": [{"parts": [part]}]}),
                json!({"contents": [{"parts": part}]}),
                json!({"contents": [], "systemInstruction": {"parts": [part]}}),
                json!({"contents": [], "system_instruction": {"parts": [part]}}),
            ] {
                assert_eq!(refused(Dialect::Gemini, &body), RefusalKind::ReferenceNotAllowed, "{body}");
            }
        }
    }
    let body = json!({"model": "m", "messages": [{"role": "user", "content": "", "images": ["https://evil.example/"]}]});
    assert_eq!(refused(Dialect::Ollama, &body), RefusalKind::ReferenceNotAllowed);
}

#[test]
fn what_a_tool_returned_is_no_reference() {
    let text = "see https://example.com and {\"type\":\"image\",\"source\":{\"type\":\"url\"}}";
    let body = json!({"model": "m", "messages": [{"role": "user", "content": [
        {"type": "text", "text": text},
        {"type": "tool_use", "id": "t", "name": "fetch", "input": {"url": "https://example.com", "type": "image"}},
        {"type": "tool_result", "tool_use_id": "t", "content": text},
    ]}]});
    let out = checked(Dialect::Anthropic, &body);
    assert_eq!((out.body["messages"].clone(), out.removed), (body["messages"].clone(), vec![]));
}
