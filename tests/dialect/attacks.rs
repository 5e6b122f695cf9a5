//! Requests from a hostile agent: each tries to have the provider reach out, keep something, or spend more.

use kage::dialect::answer::RefusalKind;
use kage::dialect::request::check;
use kage::dialect::route::{Call, route, upstream_path};
use kage::domain::model::Dialect;
use serde_json::{Value, json};

use crate::{GENERATE, call_of, checked, refused, strict};

/// No text of these is left anywhere in the body.
#[track_caller]
fn gone(dialect: Dialect, body: &Value, words: &[&str]) {
    let out = checked(dialect, body);
    let text = out.body.to_string();
    for word in words {
        assert!(!text.contains(word), "{word} is in {text}");
    }
    assert!(!out.removed.is_empty(), "nobody is told of {body}");
}

#[test]
fn tools_that_a_provider_runs_are_taken_away() {
    for kind in [
        "web_search_20250305",
        "web_search_20260209",
        "web_fetch_20250910",
        "code_execution_20250825",
        "computer_20250124",
        "mcp_toolset",
        "advisor_20260301",
        "Web_Search_20250305",
        "WEB_SEARCH_20250305",
        "web_search",
        "custom_20250305",
        "ｃustom",
        "custom ",
        "bash_2025012x",
        "tool_search_tool_web_20250101",
    ] {
        let tools = json!([{"name": "t", "input_schema": {}}, {"type": kind, "name": "evil"}]);
        let body = json!({"model": "m", "messages": [], "tools": tools, "tool_choice": {"type": "tool", "name": "evil"}});
        gone(Dialect::Anthropic, &body, &["evil", "tool_choice"]);
    }
    for kind in [
        "web_search",
        "web_search_preview",
        "web_search_2025_08_26",
        "file_search",
        "code_interpreter",
        "image_generation",
        "mcp",
        "computer_use_preview",
        "computer",
        "Function",
        "FUNCTION",
        "function\u{0}",
        "plugin",
    ] {
        let tools =
            json!([{"type": kind, "server_url": "https://evil.example", "container": {"type": "auto"}}]);
        let body = json!({"model": "m", "input": "x", "tools": tools, "tool_choice": {"type": kind}});
        gone(Dialect::Responses, &body, &["evil", "container", "tool_choice"]);
        let body = json!({"model": "m", "messages": [], "tools": tools, "tool_choice": {"type": kind}});
        gone(Dialect::Chat, &body, &["evil", "container", "tool_choice"]);
        gone(Dialect::Ollama, &json!({"model": "m", "messages": [], "tools": tools}), &["evil"]);
    }
    for key in [
        "googleSearch",
        "google_search",
        "googleSearchRetrieval",
        "google_search_retrieval",
        "urlContext",
        "url_context",
        "codeExecution",
        "code_execution",
        "fileSearch",
        "computerUse",
        "googleMaps",
        "mcpServers",
        "retrieval",
        "enterpriseWebSearch",
        "GoogleSearch",
        "GOOGLESEARCH",
        "somethingNew",
    ] {
        let body =
            json!({"contents": [], "tools": [{"functionDeclarations": [], key: {"x": "evil"}}, {key: {}}]});
        gone(Dialect::Gemini, &body, &["evil", key]);
    }
}

#[test]
fn tools_hide_nowhere() {
    let evil = json!({"type": "mcp", "server_url": "https://evil.example", "server_label": "l"});
    let nested =
        json!([{"type": "namespace", "name": "n", "tools": [evil, {"type": "function", "name": "f"}]}]);
    let body = json!({"model": "m", "input": "x", "tools": nested});
    gone(Dialect::Responses, &body, &["evil"]);
    let item = json!({"type": "tool_search_output", "call_id": "c", "tools": [evil]});
    gone(Dialect::Responses, &json!({"model": "m", "input": [item]}), &["evil"]);
    let item = json!({"type": "additional_tools", "role": "developer", "tools": nested});
    gone(Dialect::Responses, &json!({"model": "m", "input": [item]}), &["evil"]);
    let hosted =
        json!([{"type": "shell", "environment": {"type": "container_reference", "container_id": "evil"}}]);
    gone(Dialect::Responses, &json!({"model": "m", "input": "x", "tools": hosted}), &["evil"]);
    let mixed = json!([{"type": "shell", "environment": {"type": "local", "container_id": "evil"}}]);
    gone(Dialect::Responses, &json!({"model": "m", "input": "x", "tools": mixed}), &["evil"]);
    let body = json!({"model": "m", "messages": [], "tools": [{"name": "t", "allowed_callers": ["code_execution"]}]});
    gone(Dialect::Anthropic, &body, &["allowed_callers"]);
    for (typed, name) in
        [(json!(["web_search_20250305"]), "list"), (json!({"a": 1}), "map"), (json!(7), "number")]
    {
        let tools = json!([{"type": typed, "name": name}]);
        gone(Dialect::Anthropic, &json!({"model": "m", "messages": [], "tools": tools}), &[name]);
        gone(Dialect::Chat, &json!({"model": "m", "messages": [], "tools": tools}), &[name]);
        gone(Dialect::Responses, &json!({"model": "m", "input": "x", "tools": tools}), &[name]);
    }
    for tools in [json!({"type": "web_search"}), json!("web_search"), json!(["web_search"]), json!([[evil]])]
    {
        for dialect in Dialect::ALL {
            let body = json!({"model": "m", "messages": [], "input": "x", "contents": [], "tools": tools});
            assert_eq!(refused(dialect, &body), RefusalKind::BadRequest, "{dialect} {tools}");
        }
    }
}

#[test]
fn fields_that_reach_out_are_taken_away() {
    let servers = json!([{"type": "url", "url": "https://evil.example", "name": "e"}]);
    gone(
        Dialect::Anthropic,
        &json!({"model": "m", "messages": [], "mcp_servers": servers}),
        &["evil", "mcp"],
    );
    for key in
        ["web_search_options", "enable_search", "search_options", "search_parameters", "plugins", "models"]
    {
        gone(Dialect::Chat, &json!({"model": "m", "messages": [], key: {"evil": true}}), &["evil", key]);
    }
    for key in ["Tools", "TOOLS", "tools ", "tool\u{17f}"] {
        for dialect in Dialect::ALL {
            let body =
                json!({"model": "m", "messages": [], "input": "x", "contents": [], key: [{"type": "evil"}]});
            gone(dialect, &body, &["evil"]);
        }
    }
    let body = json!({"model": "m", "messages": [], "options": {"num_predict": 5, "NUM_PREDICT": 900_000, "num_gpu": 9}});
    gone(Dialect::Ollama, &body, &["900000", "num_gpu"]);
    let body = json!({"model": "m", "messages": [{"role": "user", "content": "", "Images": ["https://evil.example"]}]});
    gone(Dialect::Ollama, &body, &["evil"]);
    gone(
        Dialect::Responses,
        &json!({"model": "m", "input": "x", "include": ["file_search_call.results"]}),
        &["file_s"],
    );
    gone(Dialect::Responses, &json!({"model": "m", "input": "x", "store": true}), &["\"store\":true"]);
    gone(Dialect::Chat, &json!({"model": "m", "messages": [], "store": true}), &["\"store\":true"]);
}

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

#[test]
fn blocks_of_foreign_kinds_do_not_go_on() {
    for kind in
        ["server_tool_use", "web_search_tool_result", "mcp_tool_use", "Image", "container_upload", "zzz"]
    {
        let block = json!({"type": kind, "name": "web_search", "source": {"type": "url", "url": "https://evil.example"}});
        let body = json!({"model": "m", "messages": [{"role": "user", "content": [block]}]});
        if kind == "container_upload" {
            assert_eq!(refused(Dialect::Anthropic, &body), RefusalKind::ReferenceNotAllowed);
        } else {
            gone(Dialect::Anthropic, &body, &["evil"]);
        }
    }
    for kind in [
        "web_search_call",
        "mcp_call",
        "mcp_list_tools",
        "computer_call_output",
        "image_generation_call",
        "zzz",
    ] {
        let item = json!({"type": kind, "id": "evil", "output": {"image_url": "https://evil.example"}});
        gone(Dialect::Responses, &json!({"model": "m", "input": [item]}), &["evil"]);
    }
}

#[test]
fn said_twice_is_refused_in_every_dialect_and_place() {
    for dialect in Dialect::ALL {
        for body in [
            r#"{"model":"m","messages":[],"input":"x","contents":[],"tools":[],"tools":[{"type":"web_search"}]}"#,
            r#"{"model":"m","messages":[],"input":"x","contents":[],"model":"n"}"#,
            r#"{"model":"m","messages":[{"role":"user","content":"a","content":[{"type":"image"}]}],"input":"x","contents":[]}"#,
            r#"{"model":"m","messages":[],"input":"x","contents":[],"x":{"max_tokens":1,"m\u0061x_tokens":2}}"#,
        ] {
            let refusal = check(dialect, &call_of(dialect), body.as_bytes(), &strict()).unwrap_err();
            assert_eq!(refusal.kind, RefusalKind::BadRequest, "{dialect} {body}");
            assert!(refusal.message.contains("said twice"), "{}", refusal.message);
        }
    }
    for twice in [
        json!({"contents": [], "tools": [], "generationConfig": {}, "generation_config": {}}),
        json!({"contents": [{"parts": [{"inlineData": {}, "inline_data": {}}]}]}),
        json!({"contents": [], "generationConfig": {"maxOutputTokens": 1, "max_output_tokens": 90_000}}),
    ] {
        assert_eq!(refused(Dialect::Gemini, &twice), RefusalKind::BadRequest);
    }
    let snake = json!({"contents": [], "generation_config": {"max_output_tokens": 90_000}});
    assert_eq!(checked(Dialect::Gemini, &snake).output_limit, 32_000);
}

#[test]
fn one_answer_and_of_text() {
    for n in [json!(2), json!(0), json!(-1), json!("1"), json!(1e9), json!(1.5)] {
        let body = json!({"model": "m", "messages": [], "n": n});
        assert_eq!(refused(Dialect::Chat, &body), RefusalKind::BadRequest, "{n}");
        for key in ["candidateCount", "candidate_count"] {
            let body = json!({"contents": [], "generationConfig": {key: n}});
            assert_eq!(refused(Dialect::Gemini, &body), RefusalKind::BadRequest, "{n}");
        }
    }
    assert_eq!(
        checked(Dialect::Chat, &json!({"model": "m", "messages": [], "n": 1})).removed,
        Vec::<String>::new()
    );
    let body = json!({"model": "m", "messages": [], "modalities": ["text", "audio"]});
    assert_eq!(refused(Dialect::Chat, &body), RefusalKind::BadRequest);
    let body = json!({"contents": [], "generationConfig": {"responseModalities": ["IMAGE"]}});
    assert_eq!(refused(Dialect::Gemini, &body), RefusalKind::BadRequest);
}

#[test]
fn sizes_and_depths_are_refused_not_suffered() {
    for dialect in Dialect::ALL {
        for body in [
            format!("{}1{}", "{\"a\":".repeat(200_000), "}".repeat(200_000)),
            format!("{{\"model\":\"m\",\"messages\":{}{}}}", "[".repeat(5_000_000), "]".repeat(5_000_000)),
            format!("{{\"x\":[{}0]}}", "0,".repeat(2_000_000)),
            " ".repeat(40 << 20),
        ] {
            let refusal = check(dialect, &call_of(dialect), body.as_bytes(), &strict()).unwrap_err();
            assert_eq!(refusal.kind, RefusalKind::TooLarge, "{dialect}");
        }
        for body in [
            "",
            "null",
            "[]",
            "\"x\"",
            "{",
            "{\"a\":NaN}",
            "{\"a\":Infinity}",
            "{\"a\":1e400}",
            "\u{feff}{}",
            "{}{}",
        ] {
            let refusal = check(dialect, &call_of(dialect), body.as_bytes(), &strict()).unwrap_err();
            assert_eq!(refusal.kind, RefusalKind::BadRequest, "{dialect} {body}");
        }
    }
}

#[test]
fn a_model_is_a_plain_name() {
    for model in
        [json!(""), json!(" m"), json!("a\nb"), json!("m".repeat(201)), json!(["m"]), json!(null), json!(1)]
    {
        let body = json!({"model": model, "messages": [], "input": "x"});
        for dialect in [Dialect::Anthropic, Dialect::Responses, Dialect::Chat, Dialect::Ollama] {
            assert_eq!(refused(dialect, &body), RefusalKind::BadRequest, "{dialect} {model}");
        }
    }
}

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
