//! Configuration that a repository brings for CLIs: hidden until its very content is approved, and never changed by that.

use std::fs;
use std::os::unix::fs::symlink;

use serde_json::{Value, json};

use crate::support::TestKage;
use crate::support::git::{commit_all, git, write_files};
use crate::support::tasks::{shell, string};

const LOOK: &str =
    "find . -path ./.git -prune -o -type f -print | sort; git status --porcelain; echo x >> README.md";

async fn output(kage: &TestKage, task: &Value) -> String {
    kage.get(&format!("/api/v1/tasks/{}/runs/shell/log", string(&task["id"]))).await.text()
}

async fn warnings(kage: &TestKage, task: &Value) -> Vec<String> {
    let sql =
        "SELECT payload ->> 'message' FROM events WHERE task_id = $1::uuid AND kind = 'warning' ORDER BY seq";
    sqlx::query_scalar(sql).bind(string(&task["id"])).fetch_all(kage.pool()).await.expect("events")
}

fn paths(list: &Value) -> Vec<&str> {
    list.as_array().expect("an array").iter().map(|it| string(&it["path"])).collect()
}

async fn kage_repo(kage: &TestKage, args: &[&str]) -> (bool, String) {
    let output = kage.client(&[&["repo"], args].concat()).await;
    let text = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8_lossy(&text).into_owned())
}

fn hostile(kage: &TestKage) -> std::path::PathBuf {
    kage.make_repository(
        "demo",
        &[
            ("README.md", b"demo\n"),
            (".claude/settings.json", b"{\"hooks\":{}}\n"),
            ("packages/x/.MCP.json", b"{\"mcpServers\":{\"evil\":{\"command\":\"id\"}}}\n"),
        ],
    )
}

#[tokio::test]
async fn a_run_sees_what_was_approved_and_nothing_else() {
    let kage = TestKage::serving(&[]).await;
    let upstream = hostile(&kage);
    symlink("README.md", upstream.join(".aider.conf.yml")).expect("linked");
    let head = commit_all(&upstream, "With a link");
    assert_eq!(kage.register("demo", &upstream).await["state"], "ready");

    // Listed by the fetch, before any run.
    let found = kage.get("/api/v1/repositories/demo/configuration").await.json();
    assert_eq!(paths(&found["configuration"]), [".aider.conf.yml", ".claude", "packages/x/.MCP.json"]);
    assert!(found["configuration"][0]["obstacle"].is_string(), "{found}");
    assert_eq!(
        (&found["configuration"][1]["kind"], &found["configuration"][1]["files"]),
        (&json!("folder"), &json!(1))
    );

    let task = kage.run(&shell(LOOK)).await;
    let run = &task["runs"][0];
    assert_eq!(output(&kage, &task).await, "./README.md\n");
    assert_eq!(paths(&run["quarantined"]), [".aider.conf.yml", ".claude", "packages/x/.MCP.json"]);
    assert_eq!(run["quarantined"][1]["digest"], found["configuration"][1]["digest"]);
    let told = warnings(&kage, &task).await;
    assert!(
        told[0].contains("\".claude\" (sha256:") && told[0].contains("kage repo approve demo"),
        "{told:?}"
    );
    // A link can't be approved, and is not hinted at.
    let hint = "to approve the 2 of 3 that can be approved: kage repo approve demo --path .claude --path packages/x/.MCP.json";
    assert!(told[0].ends_with(hint), "{told:?}");
    assert!(run["quarantined"][0]["obstacle"].is_string(), "{run}");
    let audited: Value = sqlx::query_scalar(
        "SELECT details #> '{facts,quarantined}' FROM audit_entries
         WHERE action = 'run.state' AND details ->> 'state' = 'running'",
    )
    .fetch_one(kage.pool())
    .await
    .expect("an entry");
    assert_eq!(audited, run["quarantined"]);
    // The branch has all of it, as it was, from the real base.
    let mirror = kage.mirror("demo");
    assert_eq!(git(&mirror, ["diff", "--name-status", &head, string(&run["branch"])]), "M\tREADME.md");
    assert_eq!(git(&mirror, ["rev-parse", &format!("{}^", string(&run["branch"]))]), head);
    assert_eq!(run["base_commit"], head.as_str());

    approve_and_look(&kage).await;

    // Another content is hidden again, and the same one elsewhere was never approved.
    write_files(
        &upstream,
        &[
            (".claude/settings.json", b"{\"hooks\":{\"x\":1}}\n"),
            ("b/.claude/settings.json", b"{\"hooks\":{}}\n"),
        ],
    );
    let second = commit_all(&upstream, "Second");
    kage.post("/api/v1/repositories/demo/fetch", &json!({})).await;
    kage.fetched("demo").await;
    let task = kage.run(&shell(LOOK)).await;
    assert_eq!(task["runs"][0]["base_commit"], second.as_str());
    assert_eq!(output(&kage, &task).await, "./README.md\n");
    // The old revision, with what was approved of it.
    let mut old = shell(LOOK);
    old["base_revision"] = json!(head);
    let task = kage.run(&old).await;
    assert_eq!(output(&kage, &task).await, "./.claude/settings.json\n./README.md\n");

    take_back(&kage, &old).await;
}

async fn approve_and_look(kage: &TestKage) {
    let (ok, text) = kage_repo(kage, &["approve", "demo"]).await;
    assert!(ok && text.contains(".claude") && text.contains("sha256:") && text.contains("hidden"), "{text}");
    // Nobody is there to be asked.
    let (ok, text) = kage_repo(kage, &["approve", "demo", "--path", ".claude"]).await;
    assert!(!ok && text.contains("--yes"), "{text}");
    let (ok, text) = kage_repo(kage, &["approve", "demo", "--path", ".aider.conf.yml", "--yes"]).await;
    assert!(!ok && text.contains("cannot be approved"), "{text}");
    assert_eq!(kage.get("/api/v1/repositories/demo/approvals").await.json()["approvals"], json!([]));
    let (ok, text) = kage_repo(kage, &["approve", "demo", "--path", ".claude", "--yes"]).await;
    assert!(ok, "{text}");
    let task = kage.run(&shell(LOOK)).await;
    assert_eq!(output(kage, &task).await, "./.claude/settings.json\n./README.md\n");
    assert_eq!(paths(&task["runs"][0]["quarantined"]), [".aider.conf.yml", "packages/x/.MCP.json"]);
}

async fn take_back(kage: &TestKage, task: &Value) {
    let (ok, text) = kage_repo(kage, &["approvals", "demo"]).await;
    assert!(ok && text.contains(".claude"), "{text}");
    let approvals = kage.get("/api/v1/repositories/demo/approvals").await.json();
    let id = string(&approvals["approvals"][0]["id"]).to_owned();
    let (ok, text) = kage_repo(kage, &["revoke", "demo", &id]).await;
    assert!(ok, "{text}");
    let task = kage.run(task).await;
    assert_eq!(output(kage, &task).await, "./README.md\n");
    let actions: Vec<String> = sqlx::query_scalar(
        "SELECT action FROM audit_entries WHERE object = 'repository:demo' AND actor_kind = 'key' ORDER BY at",
    )
    .fetch_all(kage.pool())
    .await
    .expect("entries");
    let expected = ["repository.register", "repository.approve", "repository.fetch", "repository.revoke"];
    assert_eq!(actions, expected);
    kage.delete(&format!("/api/v1/repositories/demo/approvals/{id}")).await.problem(404);
}

#[tokio::test]
async fn nothing_but_what_was_found_can_be_approved() {
    let kage = TestKage::serving(&[]).await;
    let upstream = hostile(&kage);
    kage.register("demo", &upstream).await;
    let approvals = "/api/v1/repositories/demo/approvals";
    let found = kage.get("/api/v1/repositories/demo/configuration").await.json();
    let digest = string(&found["configuration"][0]["digest"]);
    let zeros = format!("sha256:{}", "0".repeat(64));
    for (path, digest) in [
        (".claude", zeros.as_str()),
        (".claude", ""),
        (".claude/", digest),
        (".CLAUDE", digest),
        ("packages/x/.MCP.json", digest),
        ("", digest),
        (".claude\0", digest),
        ("%", "%"),
    ] {
        kage.post(approvals, &json!({ "path": path, "digest": digest })).await.problem(422);
    }
    kage.post(approvals, &json!({ "path": ".claude" })).await.problem(422);
    kage.post(approvals, &json!({ "path": ".claude", "digest": digest, "more": 1 })).await.problem(422);
    let other = "/api/v1/repositories/other";
    kage.post(&format!("{other}/approvals"), &json!({ "path": ".claude", "digest": digest }))
        .await
        .problem(404);
    kage.get(&format!("{other}/approvals")).await.problem(404);
    kage.get(&format!("{other}/configuration")).await.problem(404);
    let right = json!({ "path": ".claude", "digest": digest });
    assert_eq!(kage.post(approvals, &right).await.status, 201);
    assert_eq!(kage.post(approvals, &right).await.status, 200);

    // An approval goes with its repository: another one of that name starts anew.
    kage.delete("/api/v1/repositories/demo").await;
    crate::support::eventually("it is removed", async || {
        (kage.get("/api/v1/repositories/demo").await.status == 404).then_some(())
    })
    .await;
    kage.register("demo", &upstream).await;
    assert_eq!(kage.get(approvals).await.json()["approvals"], json!([]));
}

#[tokio::test]
async fn what_a_run_writes_to_a_hidden_path_is_held_back() {
    for mode in ["overlay", "copy"] {
        let kage = TestKage::serving(&[("KAGE_RUNNER_WORKTREE", mode)]).await;
        let upstream = hostile(&kage);
        kage.register("demo", &upstream).await;
        let script = "mkdir .claude; echo evil > .claude/settings.json; mkdir new; echo evil > new/.mcp.json; rm -r packages; true";
        let task = kage.run(&shell(script)).await;
        let run = &task["runs"][0];
        assert_eq!(run["state"], "succeeded", "{mode}: {run}");
        let changed = git(
            &kage.mirror("demo"),
            ["diff", "--name-status", "refs/upstream/heads/main", string(&run["branch"])],
        );
        assert_eq!(changed, "A\tnew/.mcp.json", "{mode}");
        let told = warnings(&kage, &task).await;
        assert!(told.iter().any(|it| it.starts_with("Held \".claude\"")), "{mode}: {told:?}");
        // What it makes where the base has nothing is a change like any other, and is pointed out.
        assert!(told.iter().any(|it| it.starts_with("Configuration \"new/.mcp.json\"")), "{mode}: {told:?}");
        let stored =
            kage.get(&format!("/api/v1/tasks/{}/runs/shell/files", string(&task["id"]))).await.json();
        assert!(stored["warnings"].to_string().contains("Held"), "{mode}: {stored}");
        let flagged = json!([{ "path": "new/.mcp.json", "kind": "configuration" }]);
        assert_eq!(stored["flagged"], flagged, "{mode}");
        // Also where that was all that it did.
        let task = kage.run(&shell("mkdir .claude; echo evil > .claude/settings.json")).await;
        let run = &task["runs"][0];
        assert_eq!((&run["state"], &run["branch"]), (&json!("no_changes"), &Value::Null), "{mode}: {run}");
        let stored =
            kage.get(&format!("/api/v1/tasks/{}/runs/shell/files", string(&task["id"]))).await.json();
        assert!(stored["warnings"].to_string().contains("Held"), "{mode}: {stored}");
        let rejected = &stored["rejected"][0];
        assert_eq!(
            (&rejected["path"], &rejected["kind"]),
            (&json!(".claude"), &json!("held")),
            "{mode}: {stored}"
        );
        assert!(fs::read_to_string(upstream.join(".claude/settings.json")).expect("kept").contains("hooks"));
    }
}
