//! From a request to two branches.

use serde_json::json;

use crate::support::TestKage;
use crate::support::git::git;
use crate::support::sse::{assert_contiguous, output};
use crate::support::tasks::{shell, string};

#[tokio::test]
async fn two_runs_work_side_by_side_and_leave_a_branch_each() {
    let kage = TestKage::serving(&[]).await;
    let upstream = kage.demo().await;
    let base = git(&upstream, ["rev-parse", "HEAD"]);
    let mut task =
        shell("echo \"$KAGE_RUN out\"; echo \"$KAGE_RUN err\" >&2; echo \"$KAGE_RUN\" > who; rm data.bin");
    task["cli_assignments"] = json!([{ "cli_name": "shell" }, { "cli_name": "shell" }]);
    let submitted = kage.submit(&task).await;
    assert_eq!(submitted["status"], "pending");
    let id = string(&submitted["id"]);

    let events = kage.events(id, "").await;
    assert_contiguous(&events, 1);
    let last = events.last().expect("events");
    assert_eq!(last.name, "task_complete");
    assert_eq!(last.data["status"], "completed");
    assert_eq!(last.data["success_count"], 2);

    let task = kage.task(id).await;
    assert_eq!(task["status"], "completed");
    for (index, name) in ["shell", "shell-2"].into_iter().enumerate() {
        let run = &task["runs"][index];
        assert_eq!((run["name"].as_str(), run["state"].as_str()), (Some(name), Some("succeeded")), "{run}");
        assert_eq!(output(&events, name, "stdout"), format!("{name} out\n").as_bytes());
        assert_eq!(output(&events, name, "stderr"), format!("{name} err\n").as_bytes());

        let (mirror, branch) = (kage.mirror("demo"), format!("task-{id}-{name}"));
        assert_eq!(run["branch"], branch);
        assert_eq!(run["commit_hash"], git(&mirror, ["rev-parse", &branch]));
        assert_eq!(git(&mirror, ["rev-parse", &format!("{branch}^")]), base);
        assert_eq!(git(&mirror, ["show", &format!("{branch}:who")]), name);
        assert_eq!(git(&mirror, ["ls-tree", "-r", "--name-only", &branch]), "README.md\nsrc/greet.sh\nwho");
    }
}
