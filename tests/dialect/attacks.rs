//! Requests from a hostile agent: each tries to have the provider reach out, keep something, or spend more.

use kage::dialect::answer::RefusalKind;
use kage::dialect::request::check;
use kage::domain::model::Dialect;
use serde_json::{Value, json};

use crate::{call_of, checked, refused, strict};

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
