//! A call's whole road, in every dialect.

use kage::domain::model::Dialect;
use serde_json::json;

use crate::support::runs::NONE;
use crate::support::{CREDENTIAL, World, path, request, script};

/// 400 plain, 100 cached, 50 out: 400 + 10 + 500.
const TURN: &str = r#"[{"text": "well done", "usage": {"input": 500, "cached_input": 100, "output": 50}}]"#;

#[tokio::test]
async fn every_dialect_is_carried_booked_and_paid() {
    let world = World::new().await;
    for dialect in Dialect::ALL {
        let run = world.open(dialect.as_str(), NONE, NONE).await;
        let prompt = script(&serde_json::from_str(TURN).unwrap());
        for stream in [true, false] {
            let body = request(dialect, &prompt, stream);
            let answer =
                world.client(run.id).post(format!("http://any{}", path(dialect, stream))).json(&body);
            let answer = answer
                .header("authorization", "Bearer kage-placeholder")
                .header("x-api-key", "kage-placeholder")
                .header("x-goog-api-key", "kage-placeholder")
                .header("cookie", "session=1")
                .header("x-kage-run", "another")
                .send()
                .await
                .unwrap();
            assert_eq!(answer.status(), 200, "{dialect}");
            let text = answer.text().await.unwrap();
            assert!(text.contains("well") && text.contains("done"), "{dialect}: {text}");
        }
        let calls = world.calls(&run).await;
        // Ollama's own counts know no cache.
        let cost = if dialect == Dialect::Ollama { 500 + 500 } else { 400 + 10 + 500 };
        for (call, stream) in calls.iter().zip([true, false]) {
            assert_eq!(call.outcome, "ok", "{call:?}");
            assert_eq!(
                (call.input_tokens, call.output_tokens, call.cost_micros),
                (500, 50, cost),
                "{call:?}"
            );
            assert!(!call.estimated && call.status == Some(200) && call.first_byte_ms.is_some(), "{call:?}");
            assert!(call.streamed == stream && call.duration_ms >= call.first_byte_ms, "{call:?}");
            assert_eq!(
                (call.provider.as_str(), call.model.as_str()),
                (format!("scripted-{dialect}").as_str(), "m-1")
            );
            assert!(call.reserved_micros > call.cost_micros, "{call:?}");
        }
        assert_eq!(calls.len(), 2);
        let (task, of_run) = world.budgets(&run).await;
        for level in [task, of_run] {
            assert_eq!((level.spent_micros, level.spent_tokens), (2 * cost, 2 * 550));
            assert_eq!((level.reserved_micros, level.reserved_tokens), (0, 0));
        }
        let shown: f64 = sqlx::query_scalar("SELECT cost_usd FROM runs WHERE id = $1")
            .bind(run.id)
            .fetch_one(world.pool())
            .await
            .unwrap();
        assert!((shown - 2.0 * cost as f64 / 1e6).abs() < 1e-9, "{shown}");
        // Each is in the trail, with what it cost, and nothing of what was said.
        let told = world.audit(&run, "model.call").await;
        assert_eq!(told.len(), 2, "{told:#?}");
        for (outcome, call) in &told {
            let figures =
                (&call["cost_micros"], &call["input_tokens"], &call["output_tokens"], &call["status"]);
            assert_eq!(figures, (&json!(cost), &json!(500), &json!(50), &json!(200)), "{call}");
            assert_eq!((outcome.as_str(), &call["model"]), ("done", &json!("m-1")));
            assert!(!call.to_string().contains("well"), "{call}");
        }
        let totals = kage::db::model_calls::totals_of_run(world.pool(), run.id).await.unwrap();
        assert_eq!((totals.calls, totals.input_tokens, totals.cost_micros), (2, 1000, 2 * cost as u64));
        world.close(&run).await;
    }
    for request in world.provider.requests() {
        let all: Vec<String> =
            request.headers.iter().map(|(name, value)| format!("{name}: {value}")).collect();
        let all = all.join("\n");
        assert_eq!(all.matches(CREDENTIAL).count(), 1, "{all}");
        for word in ["placeholder", "cookie", "x-kage-run", "session"] {
            assert!(!all.contains(word), "{all}");
        }
    }
    assert_eq!(world.provider.requests().len(), 10);
}

#[tokio::test]
async fn the_gateway_tells_of_itself_without_asking_anybody() {
    let world = World::new().await;
    for (dialect, path, word) in [
        ("anthropic", "/v1/models", "m-default"),
        ("anthropic", "/api/hello", "{}"),
        ("responses", "/v1/models", "m-default"),
        ("chat", "/v1/models", "short"),
        ("gemini", "/v1beta/models", "models/m-default"),
        ("ollama", "/api/tags", "m-default"),
        ("ollama", "/api/version", "version"),
    ] {
        let run = world.open(dialect, NONE, NONE).await;
        let answer = world.client(run.id).get(format!("http://any{path}")).send().await.unwrap();
        assert_eq!(answer.status(), 200, "{dialect} {path}");
        let text = answer.text().await.unwrap();
        assert!(text.contains(word), "{dialect} {path}: {text}");
    }
    let run = world.open("anthropic", NONE, NONE).await;
    let hello = world.client(run.id).head("http://any/api/hello").send().await.unwrap();
    assert_eq!((hello.status().as_u16(), hello.text().await.unwrap()), (200, String::new()));
    assert!(world.provider.requests().is_empty());
}

#[tokio::test]
async fn an_alias_and_a_model_without_a_price_are_told_apart() {
    let world = World::new().await;
    let run = world.open("chat", NONE, NONE).await;
    for model in ["short", "gpt-m", "gpt-m"] {
        let mut body = request(Dialect::Chat, "hello", false);
        body["model"] = json!(model);
        assert_eq!(world.call(run.id, Dialect::Chat, &body).await.status, 200);
    }
    let calls = world.calls(&run).await;
    assert_eq!((calls[0].model_asked.as_str(), calls[0].model.as_str()), ("short", "m-long"));
    assert_eq!(calls[0].price_note, None);
    assert!(calls[1].price_note.as_deref().unwrap().contains("dearest"), "{:?}", calls[1]);
    let sent: Vec<_> =
        world.provider.requests().iter().map(|sent| sent.json.clone().unwrap()["model"].clone()).collect();
    assert_eq!(sent, ["m-long", "gpt-m", "gpt-m"]);
    // Once a run.
    let warning = world.warned(&run, "dearest").await;
    assert!(warning.contains("gpt-m"), "{warning}");
    world.close(&run).await;
    let warnings = world.warnings(&run).await;
    assert_eq!(warnings.iter().filter(|warning| warning.contains("dearest")).count(), 1, "{warnings:?}");
}

#[tokio::test]
async fn tokens_are_counted_without_being_booked() {
    let world = World::new().await;
    for (dialect, path) in [
        (Dialect::Anthropic, "/v1/messages/count_tokens?beta=true"),
        (Dialect::Gemini, "/v1beta/models/m-1:countTokens"),
    ] {
        let run = world.open(dialect.as_str(), NONE, NONE).await;
        let mut body = request(dialect, "how long is this?", false);
        for name in ["max_tokens", "stream", "generationConfig"] {
            body.as_object_mut().unwrap().remove(name);
        }
        let answer = world.post(run.id, path, &body).await;
        assert_eq!(answer.status, 200, "{answer:?}");
        assert!(answer.text.contains("okens"), "{answer:?}");
        assert!(world.calls(&run).await.is_empty());
    }
}
