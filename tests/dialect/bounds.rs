//! What a request can cost at most, and that it costs no more.

use kage::dialect::answer::RefusalKind;
use kage::domain::model::Dialect;
use serde_json::json;

use crate::{checked, refused, strict};

/// Attack: rows of digits, random letters and other scripts have up to a token a byte.
#[test]
fn the_bound_is_no_less_than_a_token_a_byte() {
    for text in ["7 1 9 3 5 2 ".repeat(1000), "qzxvkj".repeat(2000), "\u{1f600}\u{e0b}".repeat(1000)] {
        let body = json!({"model": "m", "max_tokens": 1, "messages": [{"role": "user", "content": text}]});
        let checked = checked(Dialect::Anthropic, &body);
        assert!(checked.input_bound >= text.len() as u64, "{}", checked.input_bound);
        assert!(checked.input_bound >= checked.input_estimate);
    }
    // A PDF of a few bytes may have hundreds of pages.
    let source = json!({"type": "base64", "media_type": "application/pdf", "data": "AAAA"});
    let content = json!([{"type": "document", "source": source}]);
    let body = json!({"model": "m", "max_tokens": 1, "messages": [{"role": "user", "content": content}]});
    assert!(checked(Dialect::Anthropic, &body).input_bound >= 300_000);
}

/// Attack: an answer of the least, and a budget for what is thought without end.
#[test]
fn what_is_thought_beside_the_answer_is_bounded_with_it() {
    let most = strict().max_output_tokens;
    let base = || json!({"model": "qwen3", "messages": [], "max_tokens": 100});
    let mut asks = Vec::new();
    for (key, value) in [
        ("thinking_budget", json!(10_000_000)),
        ("enable_thinking", json!(true)),
        ("chat_template_kwargs", json!({"enable_thinking": true, "thinking_budget": 10_000_000})),
        ("chat_template_kwargs", json!({"enable_thinking": true})),
        ("thinking", json!({"type": "enabled", "budget_tokens": 10_000_000})),
    ] {
        let mut body = base();
        body[key] = value;
        asks.push(body);
    }
    for mut body in asks {
        for limit in [100, most, most * 2] {
            body["max_tokens"] = json!(limit);
            let sent = checked(Dialect::Chat, &body);
            let places = [
                &sent.body["thinking_budget"],
                &sent.body["chat_template_kwargs"]["thinking_budget"],
                &sent.body["thinking"]["budget_tokens"],
            ];
            let budget = places.iter().find_map(|place| place.as_u64());
            let budget = budget.unwrap_or_else(|| panic!("no budget in {}", sent.body));
            let answer = sent.body["max_tokens"].as_u64().unwrap();
            assert!(answer >= 1 && answer + budget <= most, "{answer} + {budget}: {}", sent.body);
            assert_eq!(sent.output_limit, answer + budget, "{}", sent.body);
        }
    }
    let plain = checked(Dialect::Chat, &base());
    assert_eq!((plain.output_limit, plain.body.get("thinking_budget")), (100, None));
    let mut odd = base();
    odd["thinking_budget"] = json!("all");
    assert_eq!(refused(Dialect::Chat, &odd), RefusalKind::BadRequest);
}

#[test]
fn a_shell_runs_at_the_client_or_not_at_all() {
    let of = |tool: serde_json::Value| {
        let body = json!({"model": "m", "input": "x", "tools": [tool]});
        checked(Dialect::Responses, &body).body["tools"].clone()
    };
    let local = json!([{"type": "shell", "environment": {"type": "local"}}]);
    assert_eq!(of(json!({"type": "shell"})), local);
    assert_eq!(of(json!({"type": "shell", "environment": null})), local);
    assert_eq!(of(local[0].clone()), local);
    for hosted in
        [json!({"type": "container_auto"}), json!({"type": "local", "skills": []}), json!("local"), json!({})]
    {
        assert_eq!(of(json!({"type": "shell", "environment": hosted})), json!([]));
    }
    assert_eq!(of(json!({"type": "local_shell"})), json!([{"type": "local_shell"}]));
}

#[test]
fn gemini_answers_in_text_alone() {
    for config in [json!({}), json!({"responseModalities": []}), json!({"response_modalities": ["text"]})] {
        let sent = checked(Dialect::Gemini, &json!({"contents": [], "generationConfig": config}));
        assert_eq!(sent.body["generationConfig"]["responseModalities"], json!(["TEXT"]));
    }
    for wanted in ["IMAGE", "AUDIO", "VIDEO"] {
        let config = json!({"responseModalities": ["TEXT", wanted]});
        let body = json!({"contents": [], "generationConfig": config});
        assert_eq!(refused(Dialect::Gemini, &body), RefusalKind::BadRequest);
    }
}
