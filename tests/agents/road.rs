//! Each CLI does a task.

use std::collections::BTreeSet;
use std::path::Path;

use serde_json::{Value, json};

use crate::models::{AGENTS, CREDENTIAL, world, world_with};
use crate::support::database::stored;
use crate::support::git::git;
use crate::support::planted::assert_absent;
use crate::support::sse::assert_contiguous;
use crate::support::tasks::string;

/// What the model server's scenario writes.
const HELLO: &str = "Hello from the shadow clone.";

fn task(agents: &[&str]) -> Value {
    let assignments: Vec<Value> =
        agents.iter().map(|agent| json!({ "cli_name": agent, "timeout": 300 })).collect();
    json!({
        "description": "Write a greeting into hello.txt and show it.",
        "repository": "demo",
        "max_retries": 0,
        "cli_assignments": assignments,
    })
}

/// From the request to the branch, with one CLI.
async fn road(agent: &str) {
    let dialect = AGENTS.iter().find(|(name, _)| *name == agent).expect("a CLI of ours").1;
    let (mut kage, models) = world(&[agent]).await;
    let ended = kage.run(&task(&[agent])).await;
    let (id, run) = (string(&ended["id"]), &ended["runs"][0]);
    let log = kage.get(&format!("/api/v1/tasks/{id}/runs/{agent}/log")).await.text();
    assert_eq!(run["state"], "succeeded", "{run}\n{log}");
    assert_eq!(ended["status"], "completed");

    // The right change and no other.
    let (mirror, branch) = (kage.mirror("demo"), string(&run["branch"]));
    let changed = git(&mirror, ["diff", "--name-status", &format!("{branch}^"), branch]);
    assert_eq!(changed, "A\thello.txt", "{log}");
    assert_eq!(git(&mirror, ["show", &format!("{branch}:hello.txt")]), HELLO);

    // What it did is told as it happens, in our words.
    let events = kage.events(id, "").await;
    assert_contiguous(&events, 1);
    let activity = |kind: &str| {
        let mut progress = events.iter().filter(|event| event.name == "progress");
        progress.any(|event| event.data["activity"]["kind"] == kind)
    };
    assert!(activity("tool_call") && activity("tool_result"), "{events:#?}");
    assert!(agent == "aider" || activity("assistant"), "{events:#?}");

    assert_refused(agent, run);

    // The gateway counted it.
    let usage = &run["usage"];
    assert!(usage["calls"].as_u64() > Some(0) && usage["output_tokens"].as_u64() > Some(0), "{run}");
    assert_eq!(usage["provider"], dialect);
    assert!(run["cost"].as_f64() > Some(0.0) && ended["total_cost"] == run["cost"], "{ended}");

    // The prompt went out, with the real credential and no other.
    let requests = models.recorder.requests();
    assert!(!requests.is_empty());
    let sent: String = requests.iter().map(|request| format!("{request:?}")).collect();
    assert!(sent.contains("Write a greeting into hello.txt"));
    assert!(sent.contains(CREDENTIAL) && !sent.contains("kage-placeholder"));

    let rows = stored(kage.pool()).await;
    let output = agent == "aider" || rows.contains("\"type\"");
    assert!(rows.contains("model.open") && output, "it holds audit entries and output");
    for text in [&rows, &log, &ended.to_string(), &kage.process(0).log()] {
        assert!(!text.contains(CREDENTIAL));
    }
}

/// What the sandbox refused this CLI is a checked-in list: another version that needs more, or tries more, shows up.
/// `KAGE_WRITE_GOLDEN=1` writes it anew.
fn assert_refused(agent: &str, run: &Value) {
    let calls = run["refused_calls"].as_array().cloned().unwrap_or_default();
    let one =
        |call: &Value| format!("{} {}", string(&call["call"]), call["form"].as_str().unwrap_or_default());
    let found: BTreeSet<String> = calls.iter().map(|call| one(call).trim().to_owned() + "\n").collect();
    let found: String = found.into_iter().collect();
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/agents/refused/{agent}.txt"));
    if std::env::var_os("KAGE_WRITE_GOLDEN").is_some() {
        std::fs::write(&path, &found).expect("is written");
    }
    let expected = std::fs::read_to_string(&path).expect("a list for each CLI");
    assert_eq!(found, expected, "{agent} was refused other calls than {}", path.display());
}

#[tokio::test]
async fn claude_code() {
    road("claude-code").await;
}

#[tokio::test]
async fn codex() {
    road("codex").await;
}

#[tokio::test]
async fn gemini() {
    road("gemini").await;
}

#[tokio::test]
async fn qwen_code() {
    road("qwen-code").await;
}

#[tokio::test]
async fn opencode() {
    road("opencode").await;
}

#[tokio::test]
async fn aider() {
    road("aider").await;
}

#[tokio::test]
async fn ollama() {
    road("ollama").await;
}

/// On gVisor's kernel: the same road, and the gateway's socket is the only way out there too. The engine needs `runsc`
/// (`scripts/host runsc`).
#[tokio::test]
async fn on_gvisor() {
    let (kage, models) = world_with(&["claude-code"], &[("KAGE_RUNNER_RUNTIMES_ALLOWED", "runsc")]).await;
    let mut asked = task(&["claude-code"]);
    asked["cli_assignments"][0]["runtime"] = json!("runsc");
    let ended = kage.run(&asked).await;
    let (id, run) = (string(&ended["id"]), &ended["runs"][0]);
    let log = kage.get(&format!("/api/v1/tasks/{id}/runs/claude-code/log")).await.text();
    assert_eq!(
        (&run["state"], &run["sandbox"]["runtime"]),
        (&json!("succeeded"), &json!("runsc")),
        "{run}\n{log}"
    );
    assert_eq!(git(&kage.mirror("demo"), ["show", &format!("{}:hello.txt", string(&run["branch"]))]), HELLO);
    assert!(run["usage"]["calls"].as_u64() > Some(0) && !models.recorder.requests().is_empty(), "{run}");
    assert!(run["sandbox"]["notes"].to_string().contains("gVisor"), "{run}");
}

/// Two vendors' CLIs on one task: each has its own branch, and neither sees the other's work.
#[tokio::test]
async fn two_clis_do_the_same_task() {
    let (kage, _models) = world(&["claude-code", "codex"]).await;
    let ended = kage.run(&task(&["claude-code", "codex"])).await;
    assert_eq!(ended["success_count"], 2, "{ended}");
    let costs: f64 =
        ended["runs"].as_array().expect("runs").iter().filter_map(|run| run["cost"].as_f64()).sum();
    assert!((ended["total_cost"].as_f64().expect("a sum") - costs).abs() < 1e-9, "{ended}");
    for run in ended["runs"].as_array().expect("runs") {
        let branch = string(&run["branch"]);
        assert_eq!(git(&kage.mirror("demo"), ["show", &format!("{branch}:hello.txt")]), HELLO);
    }
}

/// What a person reads: what the CLIs say and do, each once, and not the JSON that they print.
#[tokio::test]
async fn the_client_tells_in_words() {
    let (kage, _models) = world(&["opencode", "aider"]).await;
    let prompt = "Write a greeting into hello.txt and show it.";
    let output =
        kage.client(&["run", "--cli", "opencode", "--cli", "aider", "--timeout", "300", prompt]).await;
    let stdout = String::from_utf8(output.stdout).expect("UTF-8");
    assert_eq!(output.status.code(), Some(0), "{stdout}{}", String::from_utf8_lossy(&output.stderr));
    let lines = |start: &str| stdout.lines().filter(|line| line.starts_with(start)).count();
    assert!(
        stdout.lines().all(|line| line.starts_with("[opencode] ") || line.starts_with("[aider] ")),
        "{stdout}"
    );
    assert!(lines("[opencode] → ") > 1 && lines("[opencode] ← ") > 1, "{stdout}");
    assert_eq!(lines("[opencode] {"), 0, "{stdout}");
    assert_eq!(lines("[opencode] hello.txt is written."), 1, "{stdout}");
    assert_eq!(lines(&format!("[aider] {HELLO}")), 1, "{stdout}");
    assert_eq!(lines("[aider] → edit: hello.txt"), 1, "{stdout}");
}

/// Planted in every secret setting of every role; used by none but the first, and the second by the gateway alone.
const PLANTED: [(&str, &str); 4] = [
    ("KAGE_DATABASE_PASSWORD", "planted-database \"pass/word\"+7f31"),
    ("KAGE_VAULT_ROLE_ID", "planted-role-id-5d0c9e1b"),
    ("KAGE_VAULT_SECRET_ID", "planted-secret-id-93be07a2"),
    ("KAGE_API_KEY", "planted-clients-key-60f4d28e"),
];

/// While it works, fails and is refused: what the engine and the kernel show of its sandbox, and afterwards every log,
/// event, error, row and audit entry.
#[tokio::test]
async fn nobody_near_a_sandbox_sees_the_credential() {
    let more = [("KAGE_VAULT_ADDRESS", "http://127.0.0.1:1"), ("KAGE_LOG", "trace")];
    let settings: Vec<(&str, &str)> = PLANTED.into_iter().chain(more).collect();
    let (mut kage, models) = world_with(&["claude-code"], &settings).await;
    let mut slow = task(&["claude-code"]);
    slow["description"] = json!(
        "Wait.\nKAGE-SCRIPT: [{\"text\": \"a while\", \"fault\": \"delay:ms=8000\"}, {\"text\": \"done\"}]\n"
    );
    let submitted = kage.submit(&slow).await;
    let id = string(&submitted["id"]);
    kage.says(id, "claude-code", "\"init\"").await;
    let containers = kage.containers();
    let [container] = &containers[..] else { panic!("one sandbox: {containers:?}") };
    let mut seen = kage.docker(&["inspect", container]);
    let server = std::fs::read_to_string(format!("/proc/{}/limits", kage.process(0).pid())).expect("it runs");
    let core = server.lines().find(|line| line.starts_with("Max core file size")).expect("a limit");
    assert_eq!(core.split_whitespace().skip(4).take(2).collect::<Vec<_>>(), ["0", "0"]);
    // Not dumpable: its files in /proc are root's, whoever it runs as, and another of its user may not trace it.
    let arguments = std::fs::read(format!("/proc/{}/cmdline", kage.process(0).pid())).expect("it runs");
    seen += &String::from_utf8_lossy(&arguments);
    for pid in kage.docker(&["top", container, "-eo", "pid"]).split_whitespace().skip(1) {
        for file in ["cmdline", "environ"] {
            let bytes = std::fs::read(format!("/proc/{pid}/{file}")).unwrap_or_default();
            seen += &String::from_utf8_lossy(&bytes).replace('\0', "\n");
        }
        let limits = std::fs::read_to_string(format!("/proc/{pid}/limits")).unwrap_or_default();
        let core = limits.lines().find(|line| line.starts_with("Max core file size"));
        assert!(core.is_none_or(|core| core.split_whitespace().nth(4) == Some("0")), "{core:?}");
    }
    assert!(
        seen.contains("/opt/claude-code/claude") && seen.contains("kage-placeholder"),
        "the right process"
    );
    assert!(!seen.contains("Wait."), "{seen}");
    kage.ended(id).await;
    // Providers that refuse, fail and answer garbage; requests that are refused.
    let mut bad = task(&["claude-code"]);
    bad["description"] = json!(
        "Fail.\nKAGE-SCRIPT: [{\"text\": \"no\", \"fault\": \"401\"}, {\"text\": \"no\", \"fault\": \"garbage\"}]\n"
    );
    let failed = kage.run(&bad).await;
    let mut answers = format!("{failed}");
    for path in ["/api/v1/tasks/none", "/api/v1/tasks?limit=x", "/nowhere", "/ready", "/health"] {
        answers += &kage.get(path).await.text();
    }
    for task in [id, string(&failed["id"])] {
        answers += &format!("{:?}", kage.events(task, "").await);
        answers += &kage.get(&format!("/api/v1/tasks/{task}/runs/claude-code/log")).await.text();
    }
    let commands: String = ["config", "doctor"]
        .map(|command| format!("{:?}", kage.server_command(&[command, "--json"]).output().expect("starts")))
        .concat();
    let used = format!("{:?}", models.recorder.requests());
    assert!(used.contains(CREDENTIAL), "it was never used");
    let mut planted: Vec<&str> = PLANTED.iter().map(|(_, value)| *value).chain([CREDENTIAL]).collect();
    let key = kage.key.clone();
    planted.push(&key);
    for (place, text) in [
        ("sandbox", seen),
        ("answers", answers),
        ("database", stored(kage.pool()).await),
        ("commands", commands),
        ("log", kage.process(0).log()),
    ] {
        assert_absent(place, &text, &planted);
    }
    // What the providers were shown has their credential and no other secret.
    planted.retain(|secret| *secret != CREDENTIAL);
    assert_absent("provider", &used, &planted);
}
