//! What a request may hold, dialect by dialect, and what is made of it.

use kage::dialect::request::{OnServerTool, Rules, check};
use kage::dialect::route::Call;
use kage::domain::model::Dialect;
use serde_json::{Value, json};

use crate::{COUNT, checked, strict, try_check};

/// Every dialect's smallest request.
fn small(dialect: Dialect) -> Value {
    match dialect {
        Dialect::Anthropic | Dialect::Chat | Dialect::Ollama => {
            json!({"model": "m", "messages": [{"role": "user", "content": "hi"}]})
        }
        Dialect::Responses => json!({"model": "m", "input": "hi"}),
        Dialect::Gemini => json!({"contents": [{"role": "user", "parts": [{"text": "hi"}]}]}),
    }
}

fn limit_in(dialect: Dialect, body: &Value) -> &Value {
    match dialect {
        Dialect::Anthropic | Dialect::Chat => &body["max_tokens"],
        Dialect::Responses => &body["max_output_tokens"],
        Dialect::Gemini => &body["generationConfig"]["maxOutputTokens"],
        Dialect::Ollama => &body["options"]["num_predict"],
    }
}

fn with_limit(dialect: Dialect, limit: Value) -> Value {
    let mut body = small(dialect);
    match dialect {
        Dialect::Anthropic | Dialect::Chat => body["max_tokens"] = limit,
        Dialect::Responses => body["max_output_tokens"] = limit,
        Dialect::Gemini => body["generationConfig"] = json!({"maxOutputTokens": limit}),
        Dialect::Ollama => body["options"] = json!({"num_predict": limit}),
    }
    body
}

#[test]
fn every_request_has_an_output_limit() {
    for dialect in Dialect::ALL {
        let plain = checked(dialect, &small(dialect));
        assert_eq!((plain.output_limit, limit_in(dialect, &plain.body)), (8_192, &json!(8_192)), "{dialect}");
        assert_eq!(plain.removed, Vec::<String>::new());
        let asked = checked(dialect, &with_limit(dialect, json!(100)));
        assert_eq!((asked.output_limit, limit_in(dialect, &asked.body)), (100, &json!(100)), "{dialect}");
        let float = checked(dialect, &with_limit(dialect, json!(100.0)));
        assert_eq!(limit_in(dialect, &float.body), &json!(100), "{dialect}");
        let greedy = checked(dialect, &with_limit(dialect, json!(u64::MAX)));
        assert_eq!((greedy.output_limit, limit_in(dialect, &greedy.body)), (32_000, &json!(32_000)));
        assert!(greedy.removed[0].ends_with("over 32000"), "{:?}", greedy.removed);
        for wrong in [json!("100"), json!(1.5), json!([1]), json!(true)] {
            assert!(try_check(dialect, &with_limit(dialect, wrong.clone()), &strict()).is_err(), "{wrong}");
        }
    }
    for dialect in Dialect::ALL {
        let nought = checked(dialect, &with_limit(dialect, json!(0)));
        assert_eq!(nought.output_limit, 8_192, "{dialect}: to some, nought is without end");
    }
    for endless in [-1, -2] {
        let all = checked(Dialect::Ollama, &with_limit(Dialect::Ollama, json!(endless)));
        assert_eq!(all.output_limit, 8_192);
    }
    let thinking =
        json!({"contents": [], "generationConfig": {"thinkingConfig": {"thinkingBudget": 10_000}}});
    assert_eq!(checked(Dialect::Gemini, &thinking).output_limit, 18_192, "thoughts count as output");
}

#[test]
fn unknown_fields_are_taken_away_and_named() {
    for dialect in Dialect::ALL {
        let mut body = small(dialect);
        for key in ["metadata", "user", "service_tier", "brand_new", "\u{1b}[31m"] {
            body[key] = json!({"user_id": "me"});
        }
        let out = checked(dialect, &body);
        assert_eq!(
            out.removed,
            ["metadata", "user", "service_tier", "brand_new", "\\u{1b}[31m"],
            "{dialect}"
        );
        assert_eq!(out.body.as_object().unwrap().get("user"), None);
        let many: Value = (0..1000)
            .map(|i| (format!("{i}{}", "k".repeat(1000)), json!(1)))
            .collect::<serde_json::Map<_, _>>()
            .into();
        let mut body = small(dialect);
        body.as_object_mut().unwrap().extend(many.as_object().unwrap().clone());
        let out = checked(dialect, &body);
        assert_eq!(out.removed.len(), 41);
        assert!(out.removed.iter().all(|what| what.len() < 100));
    }
}

#[test]
fn the_order_of_a_schema_is_kept() {
    let schema = json!({"type": "object", "properties": {"z": {"type": "string"}, "a": {"type": "string"}}});
    let mut body = small(Dialect::Anthropic);
    body["tools"] = json!([{"name": "t", "input_schema": schema}]);
    let text = checked(Dialect::Anthropic, &body).body.to_string();
    assert!(text.find("\"z\"") < text.find("\"a\""), "{text}");
}

#[test]
fn client_tools_pass_as_they_are() {
    let schema = json!({"type": "object", "properties": {"url": {"type": "string"}, "file_id": {}}});
    let mut anthropic = small(Dialect::Anthropic);
    anthropic["tools"] = json!([
        {"name": "web_search", "description": "the client's own", "input_schema": schema},
        {"type": "custom", "name": "b", "input_schema": schema, "defer_loading": true},
        {"type": "bash_20250124", "name": "bash"},
        {"type": "text_editor_20250728", "name": "str_replace_based_edit_tool", "max_characters": 10},
        {"type": "memory_20250818", "name": "memory"},
    ]);
    anthropic["tool_choice"] = json!({"type": "tool", "name": "bash"});
    let mut responses = small(Dialect::Responses);
    responses["tools"] = json!([
        {"type": "function", "name": "exec", "parameters": schema, "strict": false},
        {"type": "custom", "name": "apply_patch", "format": {"type": "grammar", "syntax": "lark"}},
        {"type": "local_shell"},
        {"type": "shell", "environment": {"type": "local"}},
        {"type": "apply_patch"},
        {"type": "namespace", "name": "n", "tools": [{"type": "function", "name": "f"}]},
    ]);
    responses["tool_choice"] = json!({"type": "function", "name": "exec"});
    let mut chat = small(Dialect::Chat);
    chat["tools"] = json!([
        {"type": "function", "function": {"name": "web_search", "parameters": schema}},
        {"type": "custom", "custom": {"name": "c"}},
    ]);
    chat["tool_choice"] = json!("auto");
    let mut gemini = small(Dialect::Gemini);
    gemini["tools"] =
        json!([{"functionDeclarations": [{"name": "googleSearch", "parametersJsonSchema": schema}]}]);
    let mut ollama = small(Dialect::Ollama);
    ollama["tools"] = json!([{"type": "function", "function": {"name": "f", "parameters": schema}}]);
    for (dialect, body) in Dialect::ALL.into_iter().zip([anthropic, responses, chat, gemini, ollama]) {
        let out = checked(dialect, &body);
        assert_eq!(out.removed, Vec::<String>::new(), "{dialect}");
        assert_eq!(out.body["tools"], body["tools"], "{dialect}");
        assert_eq!(out.body.get("tool_choice"), body.get("tool_choice"), "{dialect}");
    }
}

#[test]
fn an_allowed_server_tool_passes_and_only_that() {
    let rules = Rules { server_tools: vec!["web_search".to_owned()], ..strict() };
    let mut anthropic = small(Dialect::Anthropic);
    anthropic["tools"] = json!([
        {"type": "web_search_20250305", "name": "web_search", "max_uses": 3},
        {"type": "web_fetch_20250910", "name": "web_fetch"},
    ]);
    let out = try_check(Dialect::Anthropic, &anthropic, &rules).unwrap();
    assert_eq!(out.body["tools"], json!([anthropic["tools"][0]]));
    assert_eq!(out.removed, ["tool web_fetch (web_fetch_20250910)"]);
    let mut gemini = small(Dialect::Gemini);
    gemini["tools"] = json!([{"google_search": {}, "codeExecution": {}}]);
    let out = try_check(Dialect::Gemini, &gemini, &rules).unwrap();
    assert_eq!(out.body["tools"], json!([{"google_search": {}}]));
    let mut chat = small(Dialect::Chat);
    chat["web_search_options"] = json!({});
    assert!(try_check(Dialect::Chat, &chat, &rules).unwrap().body.get("web_search_options").is_some());
}

#[test]
fn references_pass_where_the_rules_say_so() {
    let rules = Rules { remote_references: true, ..strict() };
    let body = json!({"model": "m", "store": true, "previous_response_id": "resp_1", "input": [
        {"role": "user", "content": [{"type": "input_image", "image_url": "https://example.com/a.png"}]},
        {"id": "msg_1", "type": "item_reference"},
    ]});
    let out = try_check(Dialect::Responses, &body, &rules).unwrap();
    assert_eq!(out.body["input"], body["input"]);
    assert_eq!(out.body["store"], true);
    let background = json!({"model": "m", "input": "x", "background": true});
    assert!(try_check(Dialect::Responses, &background, &rules).is_err(), "nobody would count it");
}

#[test]
fn a_chat_stream_ends_with_its_usage() {
    let mut body = small(Dialect::Chat);
    body["stream"] = json!(true);
    for options in [Value::Null, json!({}), json!({"include_usage": false, "other": 1})] {
        body["stream_options"] = options;
        let out = checked(Dialect::Chat, &body);
        assert_eq!((out.stream, &out.body["stream_options"]), (true, &json!({"include_usage": true})));
    }
    body["stream"] = json!(false);
    assert_eq!(checked(Dialect::Chat, &body).body.get("stream_options"), None);
}

#[test]
fn streaming_is_as_the_dialect_has_it() {
    for (dialect, streams) in Dialect::ALL.into_iter().zip([false, false, false, true, true]) {
        assert_eq!(checked(dialect, &small(dialect)).stream, streams, "{dialect}");
    }
    assert!(
        try_check(Dialect::Chat, &json!({"model": "m", "messages": [], "stream": "yes"}), &strict()).is_err()
    );
}

#[test]
fn a_model_is_set_where_the_dialect_has_it() {
    let mut chat = checked(Dialect::Chat, &small(Dialect::Chat));
    chat.set_model(Dialect::Chat, "gpt-5.5");
    assert_eq!(
        (&chat.body["model"], &chat.body["max_completion_tokens"]),
        (&json!("gpt-5.5"), &json!(8_192))
    );
    assert_eq!(chat.body.get("max_tokens"), None, "OpenAI's reasoning models refuse it");
    for (model, name) in [
        ("qwen3-coder", "max_tokens"),
        ("gpt-4o", "max_tokens"),
        ("ollama-x", "max_tokens"),
        ("openai/o3-mini", "max_completion_tokens"),
    ] {
        for said in ["max_tokens", "max_completion_tokens"] {
            let mut body = small(Dialect::Chat);
            body[said] = json!(10);
            let mut chat = checked(Dialect::Chat, &body);
            chat.set_model(Dialect::Chat, model);
            assert_eq!(chat.body[name], 10, "{model}");
            assert_eq!(
                ["max_tokens", "max_completion_tokens"]
                    .iter()
                    .filter(|key| chat.body.get(**key).is_some())
                    .count(),
                1
            );
        }
    }
    let mut gemini = checked(Dialect::Gemini, &small(Dialect::Gemini));
    gemini.set_model(Dialect::Gemini, "gemini-x");
    assert_eq!((gemini.model.as_str(), gemini.body.get("model")), ("gemini-2.5-pro", None));
}

#[test]
fn both_names_of_a_limit_at_once_become_one() {
    let mut body = small(Dialect::Chat);
    (body["max_tokens"], body["max_completion_tokens"]) = (json!(1_000_000), json!(50));
    let out = checked(Dialect::Chat, &body);
    assert_eq!((out.output_limit, out.body.get("max_tokens")), (50, None));
}

#[test]
fn a_thinking_budget_stays_below_the_limit() {
    let mut body = small(Dialect::Anthropic);
    body["max_tokens"] = json!(64_000);
    body["thinking"] = json!({"type": "enabled", "budget_tokens": 63_999});
    assert_eq!(checked(Dialect::Anthropic, &body).body["thinking"]["budget_tokens"], 16_000);
    let rules = Rules { max_output_tokens: 1_000, ..strict() };
    let out = try_check(Dialect::Anthropic, &body, &rules).unwrap();
    assert_eq!(out.body.get("thinking"), None);
}

#[test]
fn counting_costs_nothing_and_generates_nothing() {
    let mut body = small(Dialect::Anthropic);
    (body["max_tokens"], body["stream"]) = (json!(5), json!(true));
    let out = check(Dialect::Anthropic, &COUNT, body.to_string().as_bytes(), &strict()).unwrap();
    assert_eq!((out.stream, out.output_limit), (false, 0));
    assert_eq!(out.body, small(Dialect::Anthropic));
    let call = Call::CountTokens { model_in_path: Some("g".to_owned()) };
    let body =
        json!({"generate_content_request": {"model": "models/other", "contents": [], "cachedContent": null}});
    let mut out = check(Dialect::Gemini, &call, body.to_string().as_bytes(), &strict()).unwrap();
    out.set_model(Dialect::Gemini, "g");
    assert_eq!(out.body, json!({"generateContentRequest": {"contents": [], "model": "models/g"}}));
    assert!(check(Dialect::Chat, &COUNT, b"{\"model\":\"m\",\"messages\":[]}", &strict()).is_err());
}

#[test]
fn the_estimate_covers_text_and_pictures() {
    let mut body = small(Dialect::Anthropic);
    body["messages"][0]["content"] = json!("word ".repeat(3_000));
    let text = checked(Dialect::Anthropic, &body).input_estimate;
    assert!((5_000..5_200).contains(&text), "{text}");
    let data = "A".repeat(3_000_000);
    let source = json!({"type": "base64", "media_type": "image/png", "data": data});
    let image = json!([{"type": "tool_result", "tool_use_id": "t", "content": [{"type": "image", "source": source}]}]);
    body["messages"][0]["content"] = image;
    let picture = checked(Dialect::Anthropic, &body).input_estimate;
    assert!((5_000..5_200).contains(&picture), "a picture is not priced by its bytes: {picture}");
    body["messages"][0]["content"] = json!([{"type": "document", "source": source}]);
    assert!(checked(Dialect::Anthropic, &body).input_estimate > 1_000_000, "a document is");
}

#[test]
fn refusing_is_a_rule_too() {
    let rules = Rules { on_server_tool: OnServerTool::Refuse, ..strict() };
    let mut body = small(Dialect::Responses);
    body["tools"] = json!([{"type": "web_search"}]);
    let refusal = try_check(Dialect::Responses, &body, &rules).unwrap_err();
    assert_eq!(refusal.message, "the tool web_search would run at the provider, which is not allowed here");
}
