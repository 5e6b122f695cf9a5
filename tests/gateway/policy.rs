//! What a CLI may ask for.

use kage::domain::model::Dialect;
use serde_json::json;

use crate::support::runs::NONE;
use crate::support::{World, request};

#[tokio::test]
async fn a_model_that_is_not_allowed_is_refused_told_and_recorded() {
    let world = World::new().await;
    for dialect in [Dialect::Anthropic, Dialect::Responses, Dialect::Chat, Dialect::Ollama] {
        let run = world.open(dialect.as_str(), NONE, NONE).await;
        for model in ["claude-opus-4", "M-1", "m", "gpt-m2", "../m-1", "m-1?x=y"] {
            let mut body = request(dialect, "hello", true);
            body["model"] = json!(model);
            let answer = world.call(run.id, dialect, &body).await;
            assert!(matches!(answer.status, 400 | 403), "{dialect} {model}: {answer:?}");
            assert!(answer.text.contains("not allowed"), "{dialect} {model}: {answer:?}");
        }
        world.warned(&run, "the model claude-opus-4 is not allowed").await;
        let audit = world.audit(&run, "model.refuse").await;
        assert!(
            audit
                .iter()
                .any(|(outcome, details)| outcome == "refused" && details["kind"] == "model_not_allowed")
        );
    }
    let run = world.open("gemini", NONE, NONE).await;
    let body = request(Dialect::Gemini, "hello", false);
    let answer = world.post(run.id, "/v1beta/models/gemini-x:generateContent", &body).await;
    assert!(answer.status >= 400 && answer.text.contains("not allowed"), "{answer:?}");
    assert!(world.provider.requests().is_empty());
}

#[tokio::test]
async fn a_vendors_own_tools_are_taken_out_or_refused() {
    let world = World::with(
        "[cli.strict]\nrefuse_server_tools = true\n[cli.open]\nserver_tools = [\"web_search\"]\n",
        &[],
    )
    .await;
    let mut body = request(Dialect::Anthropic, "look it up", false);
    body["tools"] = json!([
        { "name": "shell", "description": "runs", "input_schema": { "type": "object", "properties": {} } },
        { "type": "web_search_20250305", "name": "web_search" },
    ]);
    for (cli, status, tools) in [("cli", 200, 1), ("strict", 403, 0), ("open", 200, 2)] {
        let run = world.run_of(world.task(NONE).await, NONE).await;
        world.want(&run, cli, "anthropic", None).await;
        assert!(world.answered(&run).await.is_open());
        let before = world.provider.requests().len();
        let answer = world.call(run.id, Dialect::Anthropic, &body).await;
        assert_eq!(answer.status, status, "{cli}: {answer:?}");
        let sent = world.provider.requests();
        if status == 200 {
            let json = sent.last().unwrap().json.clone().unwrap();
            assert_eq!(json["tools"].as_array().map_or(0, Vec::len), tools, "{cli}: {json}");
            // 1000 in, 50 out, and the fee of the tool that was let through.
            let fee = if cli == "open" { 10_000 } else { 0 };
            assert_eq!(world.calls(&run).await[0].cost_micros, 1500 + fee, "{cli}");
        } else {
            assert_eq!(sent.len(), before, "{cli}");
        }
        if cli == "cli" {
            let warning = world.warned(&run, "web_search").await;
            assert!(warning.contains("taken out"), "{warning}");
            assert_eq!(world.audit(&run, "model.scrub").await.len(), 1);
        }
    }
}

#[tokio::test]
async fn a_server_tool_that_nobody_priced_is_not_let_through() {
    let world = World::with("[cli.open]\nserver_tools = [\"web_fetch\"]\n", &[]).await;
    let run = world.run_of(world.task(NONE).await, NONE).await;
    world.want(&run, "open", "anthropic", None).await;
    let grant = world.answered(&run).await;
    let error = grant.error.clone().unwrap_or_default();
    assert!(grant.is_closed() && error.contains("web_fetch is let through, but"), "{grant:?}");
}

#[tokio::test]
async fn what_lies_elsewhere_is_not_fetched() {
    let world = World::new().await;
    let run = world.open("anthropic", NONE, NONE).await;
    let mut body = request(Dialect::Anthropic, "", false);
    body["messages"][0]["content"] =
        json!([{ "type": "image", "source": { "type": "url", "url": "https://elsewhere.example/?leak" } }]);
    let answer = world.call(run.id, Dialect::Anthropic, &body).await;
    let sent = world.provider.requests();
    let leaked =
        sent.iter().any(|sent| sent.json.clone().unwrap_or_default().to_string().contains("elsewhere"));
    assert!(!leaked, "{answer:?}");
}

/// A CLI that swallows errors is judged by these rows; nobody can fill the table with them.
#[tokio::test]
async fn a_refused_call_is_a_row_but_a_flood_of_them_is_not_many() {
    let world = World::with("", &[("KAGE_GATEWAY_REQUESTS_PER_MINUTE", "100000")]).await;
    let run = world.open("chat", NONE, NONE).await;
    let good = request(Dialect::Chat, "hello", false);
    let mut bad = good.clone();
    bad["model"] = json!("claude-opus-4");
    for _ in 0..2 {
        assert_eq!(world.call(run.id, Dialect::Chat, &good).await.status, 200);
        for _ in 0..30 {
            assert_eq!(world.call(run.id, Dialect::Chat, &bad).await.status, 400);
            assert_eq!(world.post(run.id, "/v1/chat/completions", &json!([])).await.status, 400);
            // What costs nothing is nobody's failure.
            assert_eq!(world.post(run.id, "/v1/files", &json!({})).await.status, 404);
        }
    }
    // Before the answer, so before anybody can judge the run.
    let last = kage::db::model_calls::last_outcomes(world.pool(), run.id, 1, 50).await.unwrap();
    assert_eq!((last[0].outcome.as_str(), last[0].status), ("refused", Some(400)));
    let calls = world.calls(&run).await;
    let outcomes: Vec<&str> = calls.iter().map(|call| call.outcome.as_str()).collect();
    assert_eq!(outcomes, ["ok", "refused", "refused", "ok", "refused", "refused"]);
    let error = last.iter().find_map(|call| call.error.clone().filter(|error| error.contains("claude")));
    assert!(error.unwrap().contains("the model claude-opus-4 is not allowed"));
    assert!(
        calls.iter().all(|call| call.outcome == "ok" || (call.cost_micros, call.reserved_micros) == (0, 0))
    );
    let totals = kage::db::model_calls::totals_of_run(world.pool(), run.id).await.unwrap();
    assert_eq!(totals.calls, 2);
}

#[tokio::test]
async fn a_cli_that_the_file_does_not_know_has_the_operators_default() {
    let world = World::with("[policy.default]\nrequests_per_minute = 1\nbudget_usd = 0.5\n", &[]).await;
    let run = world.run_of(world.task(NONE).await, NONE).await;
    world.want(&run, "my-own-image", "anthropic", None).await;
    assert!(world.answered(&run).await.is_open());
    let body = request(Dialect::Anthropic, "hello", false);
    assert_eq!(world.call(run.id, Dialect::Anthropic, &body).await.status, 200);
    assert_eq!(world.call(run.id, Dialect::Anthropic, &body).await.status, 429);
    let (_, of_run) = world.budgets(&run).await;
    assert_eq!(of_run.limit_micros, Some(500_000));
}
