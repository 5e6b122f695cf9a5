//! CLIs that ask a model: the way through the gateway, and what their runs come to.

use std::os::unix::fs::PermissionsExt as _;

use serde_json::{Value, json};

use crate::support::database::stored;
use crate::support::git::git;
use crate::support::provider::{CREDENTIAL, INPUT_TOKENS, OUTPUT_TOKENS, Provider};
use crate::support::tasks::string;
use crate::support::{TestKage, eventually};

/// `ask [MODEL]`: one call; prints what the model said, fails as the call does.
const ASK: &str = r#"
ask() {
  python3 - "${1:-$MODEL}" <<'END'
import json, os, sys, urllib.request
body = {"model": sys.argv[1], "max_tokens": 1000, "messages": [{"role": "user", "content": "x"}]}
headers = {"content-type": "application/json", "x-api-key": os.environ["KEY"], "anthropic-version": "2023-06-01",
           "cookie": "run=another", "x-kage-run": "another"}
request = urllib.request.Request(os.environ["URL"] + "/v1/messages", json.dumps(body).encode(), headers)
try:
    with urllib.request.urlopen(request) as answer:
        print(json.load(answer)["content"][0]["text"])
except urllib.error.HTTPError as error:
    print("refused", error.code, error.read().decode())
    sys.exit(1)
END
}
"#;

pub fn task(script: &str) -> Value {
    json!({
        "description": format!("{ASK}\n{script}\nexit $?\n"),
        "repository": "demo",
        "max_retries": 0,
        "cli_assignments": [{ "cli_name": "asker" }],
    })
}

async fn world() -> (TestKage, Provider) {
    let (mut kage, provider) = (TestKage::new().await, Provider::start().await);
    provider.of(&mut kage);
    kage.start("serve").await;
    kage.demo().await;
    (kage, provider)
}

fn run_of(task: &Value) -> &Value {
    &task["runs"][0]
}

impl TestKage {
    async fn output(&self, task: &Value, run: &str) -> String {
        self.get(&format!("/api/v1/tasks/{}/runs/{run}/log", string(&task["id"]))).await.text()
    }

    fn model_folder(&self, run: &Value) -> std::path::PathBuf {
        self.data.join("model").join(string(&run["id"]))
    }
}

#[tokio::test]
async fn a_run_reaches_its_model_and_nothing_else() {
    let (mut kage, provider) = world().await;
    let script = r"
ask > answer.txt || exit 1
env > env.txt; ls -la /run/model; cat /proc/net/dev
for address in 127.0.0.1/8081 127.0.0.1/5432 1.1.1.1/443; do
  (exec 3<>/dev/tcp/$address) 2>/dev/null && echo reached $address
done
touch /run/model/mine && echo wrote
true";
    let ended = kage.run(&task(script)).await;
    let run = run_of(&ended);
    assert_eq!(
        (&run["state"], &run["decided_by"]),
        (&json!("succeeded"), &json!("exit status 0, change")),
        "{run}"
    );
    let output = kage.output(&ended, "asker").await;
    assert!(!output.contains("reached") && !output.contains("wrote"), "{output}");
    let branch = string(&run["branch"]);
    assert_eq!(git(&kage.mirror("demo"), ["show", &format!("{branch}:answer.txt")]), "the answer");
    let environment = git(&kage.mirror("demo"), ["show", &format!("{branch}:env.txt")]);
    assert!(
        environment.contains("KEY=kage-placeholder") && environment.contains("URL=http://127.0.0.1:8080")
    );

    let usage = &run["usage"];
    assert_eq!(
        (&usage["model"], &usage["provider"], &usage["calls"]),
        (&json!("good"), &json!("near"), &json!(1))
    );
    assert_eq!(usage["input_tokens"], INPUT_TOKENS);
    assert_eq!(usage["output_tokens"], OUTPUT_TOKENS);
    assert_eq!((run["cost"].as_f64(), ended["total_cost"].as_f64()), (Some(1.0), Some(1.0)), "{run}");
    let listed = kage.client(&["tasks"]).await;
    assert!(String::from_utf8_lossy(&listed.stdout).contains("1.0000 USD"), "{listed:?}");
    let shown = kage.client(&["task", string(&ended["id"])]).await;
    assert!(
        String::from_utf8_lossy(&shown.stdout).contains("good by near: 1 call, 100 tokens in"),
        "{shown:?}"
    );

    // What the client said of itself is dropped; the credential is where it belongs, and nowhere else.
    let (headers, _) = &provider.seen()[0];
    assert_eq!(headers["x-api-key"], CREDENTIAL);
    assert!(!headers.contains_key("cookie") && !headers.contains_key("x-kage-run"));
    let events = kage.events(string(&ended["id"]), "").await;
    let (rows, logged) = (stored(kage.pool()).await, kage.process(0).log());
    assert!(
        rows.contains("model.open") && logged.contains("gateway.opened"),
        "this looks into the right places"
    );
    for text in [&output, &environment, &ended.to_string(), &format!("{events:?}"), &rows, &logged] {
        assert!(!text.contains(CREDENTIAL));
    }
    assert!(!kage.model_folder(run).exists(), "the socket lives as long as the run");
}

#[tokio::test]
async fn a_socket_is_one_runs_alone() {
    let (kage, _provider) = world().await;
    let mut both = task(
        "ask >> $KAGE_RUN.txt; [ $KAGE_RUN = asker ] || ask >> $KAGE_RUN.txt; ls /run/model > ls.txt; true",
    );
    both["cli_assignments"] = json!([{ "cli_name": "asker" }, { "cli_name": "asker" }]);
    let ended = kage.run(&both).await;
    for (index, calls) in [(0, 1), (1, 2)] {
        let run = &ended["runs"][index];
        assert_eq!((&run["state"], &run["usage"]["calls"]), (&json!("succeeded"), &json!(calls)), "{run}");
        let listed = git(&kage.mirror("demo"), ["show", &format!("{}:ls.txt", string(&run["branch"]))]);
        assert_eq!(listed, "model.sock");
    }
    assert_eq!(ended["total_cost"].as_f64(), Some(3.0));
}

#[tokio::test]
async fn a_spent_budget_ends_the_run_and_keeps_its_work() {
    let (kage, _provider) = world().await;
    let mut endless = task("for n in 1 2 3 4 5 6 7 8 9; do echo $n > part; ask || break; done; sleep 600");
    endless["budget"] = json!({ "tokens": 3500 });
    let ended = kage.run(&endless).await;
    let run = run_of(&ended);
    assert_eq!(
        (&run["state"], &run["decided_by"]),
        (&json!("budget_exhausted"), &json!("the gateway")),
        "{run}"
    );
    assert_eq!(ended["cli_results"][0]["status"], "blocked");
    assert_eq!(ended["budget"], json!({ "tokens": 3500 }));
    let part = git(&kage.mirror("demo"), ["show", &format!("{}:part", string(&run["branch"]))]);
    let calls = run["usage"]["calls"].as_u64().expect("a count");
    assert_eq!(part.parse::<u64>().expect("a number"), calls + 1, "the call that was refused was one more");
    assert!((1..=4).contains(&calls), "{run}");

    // One that does not wait to be ended is told from a failure as well.
    endless = task("echo half > part; while ask; do :; done; exit 0");
    endless["cli_assignments"][0]["budget"] = json!({ "usd": 1.5 });
    let ended = kage.run(&endless).await;
    assert_eq!(run_of(&ended)["state"], "budget_exhausted", "{ended}");
    assert_eq!(run_of(&ended)["files_changed"], 1);
}

#[tokio::test]
async fn what_a_run_comes_to() {
    let (kage, _provider) = world().await;
    let hangs = r#"echo '{"kind":"tool_call","name":"Write","message":"a.txt"}'; ask > a.txt
echo '{"kind":"final","ok":true,"message":"all done"}'; sleep 600"#;
    let swallows = "ask status-400; exit 0";
    let half = "echo half > a.txt; ask; ask status-529; exit 0";
    let silent = "true";
    let denies = r#"echo x > a.txt; ask; echo '{"kind":"final","ok":false,"message":"cannot"}'"#;
    let run = async |script: &str| kage.run(&task(script)).await;
    let (hangs, swallows, half, silent, denies) =
        tokio::join!(run(hangs), run(swallows), run(half), run(silent), run(denies));
    for (ended, state, decided_by, error) in [
        (&hangs, "succeeded", "final event, change", ""),
        (&swallows, "failed", "the gateway's record", "400"),
        (&half, "failed", "the gateway's record", "529"),
        (&silent, "failed", "the gateway's record", "no model ever answered"),
        (&denies, "failed", "final event", "cannot"),
    ] {
        let run = run_of(ended);
        assert_eq!((string(&run["state"]), string(&run["decided_by"])), (state, decided_by), "{run}");
        assert!(run["error"].as_str().unwrap_or_default().contains(error), "{run}");
    }
    assert_eq!(run_of(&half)["files_changed"], 1, "what it did is kept");
    let events = kage.events(string(&hangs["id"]), "").await;
    let events: Vec<Value> =
        events.iter().filter(|event| event.name == "progress").map(|event| event.data.clone()).collect();
    let activity = |kind: &str| events.iter().find(|event| event["activity"]["kind"] == kind).cloned();
    let call = activity("tool_call").expect("told");
    assert_eq!((&call["message"], &call["activity"]["tool"]), (&json!("→ Write: a.txt"), &json!("Write")));
    assert_eq!(activity("final").expect("told")["activity"]["ok"], true);
}

#[tokio::test]
async fn a_run_that_the_gateway_will_not_serve_never_starts() {
    let (kage, provider) = world().await;
    let mut foreign = task("ask");
    foreign["cli_assignments"][0]["model"] = json!("another/model");
    let ended = kage.run(&foreign).await;
    let run = run_of(&ended);
    assert_eq!(run["state"], "failed", "{run}");
    assert!(string(&run["error"]).contains("another/model is not allowed"), "{run}");
    let begun: Option<chrono::DateTime<chrono::Utc>> =
        sqlx::query_scalar("SELECT cli_started_at FROM runs WHERE task_id = $1::uuid")
            .bind(string(&ended["id"]))
            .fetch_one(kage.pool())
            .await
            .expect("a row");
    assert_eq!(begun, None);
    assert!(provider.seen().is_empty());
}

#[tokio::test]
async fn context_and_description_make_one_prompt() {
    let (kage, _provider) = world().await;
    let mut read = json!({
        "description": "-x /help $(id) `id`\nsecond line",
        "repository": "demo",
        "max_retries": 0,
        "cli_assignments": [{ "cli_name": "reader", "context": { "files": ["a.rs"] } }],
    });
    let ended = kage.run(&read).await;
    let expected = "-x /help $(id) `id`\nsecond line\n\n## Context\n\n```json\n{\n  \"files\": [\n    \"a.rs\"\n  ]\n}\n```\n";
    assert_eq!(kage.output(&ended, "reader").await, expected);

    read["description"] = json!("x".repeat(1 << 20));
    let refused = kage.post("/api/v1/tasks", &read).await;
    assert_eq!(refused.status, 422, "{}", refused.text());
    assert!(refused.text().contains("cli_assignments[0].context"), "{}", refused.text());
}

#[tokio::test]
async fn models_and_budgets_are_checked_when_a_task_is_submitted() {
    let (kage, _provider) = world().await;
    let refused = async |change: Value, word: &str| {
        let mut wrong = task("ask");
        for (name, value) in change.as_object().expect("an object") {
            match name.as_str() {
                "budget" => wrong["budget"] = value.clone(),
                name => wrong["cli_assignments"][0][name] = value.clone(),
            }
        }
        let answer = kage.post("/api/v1/tasks", &wrong).await;
        assert_eq!(answer.status, 422, "{change}: {}", answer.text());
        assert!(answer.text().contains(word), "{change}: {}", answer.text());
    };
    refused(json!({ "model": "--yolo" }), "cli_assignments[0].model").await;
    refused(json!({ "model": "a b" }), "cli_assignments[0].model").await;
    refused(json!({ "budget": {} }), "budget").await;
    refused(json!({ "budget": { "usd": 0.0 } }), "budget.usd").await;
    refused(json!({ "budget": { "usd": -1 } }), "budget.usd").await;
    refused(json!({ "budget": { "tokens": 0 } }), "budget.tokens").await;
    refused(json!({ "cli_name": "shell", "model": "good" }), "asks no model").await;
}

#[tokio::test]
async fn a_run_keeps_its_model_when_everything_is_started_anew() {
    let (mut kage, provider) = world().await;
    let script = "ask >> a.txt; echo ready; sleep 4; until ask >> a.txt; do sleep 1; done; ask >> a.txt";
    let submitted = kage.submit(&task(script)).await;
    let id = string(&submitted["id"]).to_owned();
    kage.says(&id, "asker", "ready").await;
    kage.process(0).kill_9();
    kage.start("serve").await;
    let ended = kage.ended(&id).await;
    let run = run_of(&ended);
    assert_eq!((&run["state"], &run["attempt"]), (&json!("succeeded"), &json!(1)), "{run}");
    assert_eq!(run["usage"]["calls"], 3, "{run}");
    assert_eq!(provider.seen().len(), 3);
}

#[tokio::test]
async fn a_cancelled_run_loses_its_socket() {
    let (kage, _provider) = world().await;
    let submitted = kage.submit(&task("ask; echo ready; sleep 600")).await;
    let id = string(&submitted["id"]).to_owned();
    kage.says(&id, "asker", "ready").await;
    let folder = kage.model_folder(&submitted["runs"][0]);
    assert!(folder.join("model.sock").exists());
    let mode = std::fs::metadata(&folder).expect("a folder").permissions().mode();
    assert_eq!(mode & 0o777, 0o750, "nobody else on the host speaks for the run");
    let cancelled = kage.client(&["cancel", &id]).await;
    assert!(cancelled.status.success(), "{cancelled:?}");
    let ended = kage.ended(&id).await;
    assert_eq!(
        (&run_of(&ended)["state"], &run_of(&ended)["usage"]["calls"]),
        (&json!("cancelled"), &json!(1))
    );
    eventually("the folder is gone", async || (!folder.exists()).then_some(())).await;
    let open: i64 = sqlx::query_scalar("SELECT count(*) FROM model_grants WHERE state <> 'closed'")
        .fetch_one(kage.pool())
        .await
        .expect("a count");
    assert_eq!(open, 0);
}

/// Each role as a process of its own, as in Compose; the gateway dies while a run needs it.
#[tokio::test]
async fn a_gateway_that_is_killed_comes_back_for_its_runs() {
    let (mut kage, provider) = (TestKage::new().await, Provider::start().await);
    provider.of(&mut kage);
    kage.start("api").await;
    kage.start("runner").await;
    let gateway = kage.spawn_with("gateway", &[]);
    kage.demo().await;
    let submitted = kage
        .submit(&task("ask >> a.txt; echo ready; until ask >> a.txt; do sleep 1; done; ask >> a.txt"))
        .await;
    let id = string(&submitted["id"]).to_owned();
    kage.says(&id, "asker", "ready").await;
    kage.process(gateway).kill_9();
    kage.spawn_with("gateway", &[]);
    let ended = kage.ended(&id).await;
    assert_eq!(run_of(&ended)["state"], "succeeded", "{ended}");
    assert!(provider.seen().len() >= 2);
}

#[tokio::test]
async fn without_a_gateway_a_run_says_so() {
    let (mut kage, provider) = (TestKage::new().await, Provider::start().await);
    provider.of(&mut kage);
    kage.start("api").await;
    kage.start("runner").await;
    kage.demo().await;
    let ended = kage.run(&task("ask")).await;
    let run = run_of(&ended);
    assert_eq!(run["state"], "sandbox_error", "{run}");
    assert!(string(&run["error"]).contains("is `kage gateway` running"), "{run}");
}
