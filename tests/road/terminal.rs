//! The same road through the terminal client.

use std::process::Output;

use serde_json::Value;
use uuid::Uuid;

use crate::support::TestKage;
use crate::support::tasks::string;

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).expect("UTF-8")
}

fn code(output: &Output) -> Option<i32> {
    output.status.code()
}

#[tokio::test]
async fn the_outcome_of_the_task_is_the_exit_code_of_the_command() {
    let kage = TestKage::serving(&[("KAGE_RUNNER_GRACE_SECS", "1")]).await;
    kage.demo().await;
    let run =
        async |script: &str| kage.client(&["run", "--cli", "shell", "--max-retries", "0", script]).await;
    let good = run("echo hello from inside; echo x > x").await;
    assert_eq!(code(&good), Some(0), "{good:?}");
    assert!(text(&good.stdout).contains("hello from inside"), "{good:?}");
    assert!(text(&good.stderr).contains("task-"), "the branch is named: {good:?}");
    assert_eq!(code(&run("echo no good; exit 3").await), Some(1));
    assert_eq!(code(&run("true # changes nothing").await), Some(1));
    let refused = kage.client(&["run", "--cli", "nobody", "--repo", "demo", "echo a task"]).await;
    assert_eq!(code(&refused), Some(3));
    assert!(text(&refused.stderr).contains("nobody"), "{refused:?}");

    let detached = kage.client(&["run", "--detach", "--cli", "shell", "echo begun; sleep 1000"]).await;
    let id = text(&detached.stdout).trim().to_owned();
    assert_eq!((code(&detached), id.parse::<Uuid>().is_ok()), (Some(0), true), "{detached:?}");
    kage.says(&id, "shell", "begun").await;
    // Who follows it sees the end that somebody else brings about.
    let (follow, cancel) = (["logs", "--follow", &id], ["cancel", &id]);
    let (followed, cancelled) = tokio::join!(kage.client(&follow), kage.client(&cancel));
    assert_eq!((code(&cancelled), text(&followed.stdout)), (Some(0), "begun\n".to_owned()), "{cancelled:?}");
    assert_eq!(code(&kage.client(&["cancel", &id]).await), Some(3));
}

#[tokio::test]
async fn logs_and_diff_are_the_servers_bytes() {
    let kage = TestKage::serving(&[]).await;
    kage.demo().await;
    let script = "printf 'a\\377b\\033[31m\\n'; seq 1 50000; printf 'x\\377y' > bytes; rm data.bin";
    let output = kage.client(&["run", "--json", "--cli", "shell", script]).await;
    assert_eq!(code(&output), Some(0), "{output:?}");
    let events: Vec<Value> =
        text(&output.stdout).lines().map(|line| serde_json::from_str(line).expect("JSON lines")).collect();
    let summary = events.last().expect("a summary");
    let id = string(&summary["data"]["id"]);
    for (command, path) in [("logs", "log"), ("diff", "diff")] {
        let shown = kage.client(&[command, id]).await;
        let served = kage.get(&format!("/api/v1/tasks/{id}/runs/shell/{path}")).await;
        assert_eq!(code(&shown), Some(0), "{shown:?}");
        assert!(served.body.len() > 50 && shown.stdout == served.body, "{command}");
    }
    let mut wrong = kage.client_command(&["tasks"]);
    wrong.env("KAGE_API_KEY", "kage_wrong");
    let refused = wrong.output().expect("starts");
    assert_eq!(code(&refused), Some(3));
    assert!(text(&refused.stderr).contains("is KAGE_API_KEY this server's?"), "{refused:?}");
}

#[tokio::test]
async fn a_copied_worktree_does_what_an_overlay_does() {
    let kage = TestKage::serving(&[("KAGE_RUNNER_WORKTREE", "copy")]).await;
    kage.demo().await;
    let script = "set -e; [ -z \"$(git status --porcelain)\" ]; mv src source; echo x >> source/greet.sh; rm README.md";
    let output = kage.client(&["run", "--json", "--cli", "shell", script]).await;
    assert_eq!(code(&output), Some(0), "{output:?}");
    let kind: Vec<String> =
        sqlx::query_scalar("SELECT worktree FROM attempts").fetch_all(kage.pool()).await.expect("reads");
    assert_eq!(kind, ["copy"]);
    let summary = text(&output.stdout);
    let summary: Value = serde_json::from_str(summary.lines().last().expect("a line")).expect("JSON");
    let mut files: Vec<String> =
        kage.get(&format!("/api/v1/tasks/{}/runs/shell/files", string(&summary["data"]["id"]))).await.json()
            ["files"]
            .as_array()
            .expect("a list")
            .iter()
            .map(|file| format!("{} {}", string(&file["status"]), string(&file["path"])))
            .collect();
    files.sort();
    assert_eq!(files, ["deleted README.md", "renamed source/greet.sh"]);
}
