//! From a request to two branches.

use std::path::Path;

use reqwest::Method;
use serde_json::{Value, json};

use crate::support::TestKage;
use crate::support::git::git;
use crate::support::http::send;
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

/// Changes of every kind that git has a word for.
const CHANGES: &str = r#"
set -e
printf 'one\ntwo\nthree' > notes.txt          # added, no newline at its end
printf '#!/bin/sh\necho good day\n' > src/greet.sh
chmod +x src/greet.sh
git mv README.md HANDBOOK.md                    # renamed, in the CLI's own git
git commit --quiet -m 'of the CLI'
head -c 3000 /dev/zero | tr '\0' '\377' > data.bin
ln -s src/greet.sh greet
mkdir -p deep/er && : > deep/er/empty
seq 1 100000
echo done >&2
"#;

#[tokio::test]
async fn commit_message_diff_files_and_log_tell_the_same_story() {
    let kage = TestKage::serving(&[]).await;
    let upstream = kage.demo().await;
    let task = kage.run(&shell(CHANGES)).await;
    let (id, run) = (string(&task["id"]), &task["runs"][0]);
    assert_eq!(run["state"], "succeeded", "{run}");
    let (mirror, branch) = (kage.mirror("demo"), string(&run["branch"]));

    let show = |format: &str| git(&mirror, ["log", "-1", &format!("--format={format}"), branch]);
    assert_eq!((show("%an"), show("%cn")), ("kage-bunshin".to_owned(), "kage-bunshin".to_owned()));
    let message = show("%B");
    for part in [id, string(&run["id"]), string(&run["image"]), "shell"] {
        assert!(message.contains(part), "{part} in {message}");
    }
    let image = kage.docker(&["image", "inspect", "--format", "{{.Id}}", string(&run["image"])]);
    assert_eq!(image.trim(), string(&run["image"]));

    the_patch_makes_the_tree(&kage, &upstream, id, branch).await;
    the_files_are_told(&kage, &upstream, id, &task).await;
    the_log_is_whole(&kage, id).await;
}

async fn the_patch_makes_the_tree(kage: &TestKage, upstream: &Path, id: &str, branch: &str) {
    let path = format!("/api/v1/tasks/{id}/runs/shell/diff");
    let patch = kage.get(&path).await;
    assert_eq!((patch.status, patch.header("content-type")), (200, "text/x-diff; charset=utf-8"));
    let file = kage.folder.join("patch");
    std::fs::write(&file, &patch.body).expect("write");
    git(upstream, ["apply", "--index", "--binary", file.to_str().expect("UTF-8")]);
    let tree = git(&kage.mirror("demo"), ["rev-parse", &format!("{branch}^{{tree}}")]);
    assert_eq!(git(upstream, ["write-tree"]), tree);

    for (accept, kind) in [
        ("application/json", "application/json"),
        ("text/html, application/json;q=0.9", "application/json"),
        ("text/plain", "text/x-diff; charset=utf-8"),
        ("*/*", "text/x-diff; charset=utf-8"),
    ] {
        let answer = send(kage.request(Method::GET, &path).header("Accept", accept)).await;
        assert_eq!((answer.status, answer.header("content-type")), (200, kind), "{accept}");
        if kind == "application/json" {
            assert_eq!(answer.json()["patch"], String::from_utf8_lossy(&patch.body).as_ref());
            assert_eq!(answer.json()["truncated"], false);
        }
    }
    let refused = send(kage.request(Method::GET, &path).header("Accept", "image/png")).await;
    refused.problem(406);
}

async fn the_files_are_told(kage: &TestKage, upstream: &Path, id: &str, task: &Value) {
    let run = &task["runs"][0];
    let files = kage.get(&format!("/api/v1/tasks/{id}/runs/shell/files")).await.json();
    let told: Vec<(String, String)> = files["files"]
        .as_array()
        .expect("a list")
        .iter()
        .map(|file| (string(&file["status"]).to_owned(), string(&file["path"]).to_owned()))
        .collect();
    let expected = [
        ("added", "deep/er/empty"),
        ("added", "greet"),
        ("added", "notes.txt"),
        ("modified", "data.bin"),
        ("modified", "src/greet.sh"),
        ("renamed", "HANDBOOK.md"),
    ];
    let mut sorted = told.clone();
    sorted.sort();
    assert_eq!(sorted, expected.map(|(status, path)| (status.to_owned(), path.to_owned())));
    assert_eq!(run["files_changed"], told.len());
    assert_eq!(files["commit_hash"], run["commit_hash"]);

    // The same numbers as git's own.
    let base = git(upstream, ["rev-parse", "HEAD"]);
    let range = [base.as_str(), string(&run["branch"])];
    let numbers = git(&kage.mirror("demo"), ["diff", "--numstat", "-M", range[0], range[1]]);
    let sum = |column: usize| -> u64 {
        numbers.lines().filter_map(|line| line.split('\t').nth(column)?.parse::<u64>().ok()).sum()
    };
    assert_eq!((run["insertions"].as_u64(), run["deletions"].as_u64()), (Some(sum(0)), Some(sum(1))));
    let modified = task["cli_results"][0]["files_modified"].as_array().expect("a list");
    assert_eq!(modified.len(), told.len());
}

async fn the_log_is_whole(kage: &TestKage, id: &str) {
    let path = format!("/api/v1/tasks/{id}/runs/shell/log");
    let whole = kage.get(&path).await;
    assert_eq!((whole.status, whole.header("content-type")), (200, "text/plain; charset=utf-8"));
    assert_eq!(whole.header("accept-ranges"), "bytes");
    let expected: String = (1..=100_000).map(|line| format!("{line}\n")).collect::<String>() + "done\n";
    assert!(whole.body == expected.as_bytes(), "{} bytes instead of {}", whole.body.len(), expected.len());
    let total = expected.len();

    let range = |text: &str| {
        let request = kage.request(Method::GET, &path).header("Range", text);
        async move { send(request).await }
    };
    let block = 65536;
    for (text, first, end) in [
        ("bytes=0-0".to_owned(), 0, 1),
        ("bytes=0-".to_owned(), 0, total),
        ("bytes=-5".to_owned(), total - 5, total),
        (format!("bytes=-{}", total * 2), 0, total),
        (format!("bytes={}-{}", block - 1, block), block - 1, block + 1),
        (format!("bytes={}-{}", block + 7, 5 * block - 3), block + 7, 5 * block - 2),
        (format!("bytes={}-99999999", total - 1), total - 1, total),
    ] {
        let answer = range(&text).await;
        assert_eq!(answer.status, 206, "{text}: {}", answer.text());
        assert_eq!(answer.header("content-range"), format!("bytes {first}-{}/{total}", end - 1), "{text}");
        assert!(answer.body == expected.as_bytes()[first..end], "{text}");
    }
    for text in
        [format!("bytes={total}-"), "bytes=5-4".to_owned(), "bytes=0-1,4-5".to_owned(), "lines=1-".to_owned()]
    {
        let answer = range(&text).await;
        answer.problem(416);
        assert_eq!(answer.header("content-range"), format!("bytes */{total}"), "{text}");
    }
}

#[tokio::test]
async fn what_a_run_left_can_be_asked_for_only_once_it_has_ended() {
    let mut kage = TestKage::new().await;
    kage.start("api").await;
    let runner = kage.start("runner").await;
    kage.demo().await;
    let task = kage.submit(&shell("echo begun; until [ -e /tmp/never ]; do sleep 0.1; done")).await;
    let id = string(&task["id"]);
    kage.says(id, "shell", "begun").await;
    for what in ["diff", "files"] {
        kage.get(&format!("/api/v1/tasks/{id}/runs/shell/{what}")).await.problem(409);
        kage.get(&format!("/api/v1/tasks/{id}/runs/other/{what}")).await.problem(404);
    }
    assert_eq!(kage.get(&format!("/api/v1/tasks/{id}/runs/shell/log")).await.text(), "begun\n");
    kage.get(&format!("/api/v1/tasks/{id}/runs/other/log")).await.problem(404);
    assert_eq!(kage.delete(&format!("/api/v1/tasks/{id}")).await.status, 200);
    kage.ended(id).await;
    // Without changes there is an empty patch, and no branch.
    let diff = kage.get(&format!("/api/v1/tasks/{id}/runs/shell/diff")).await;
    assert_eq!((diff.status, diff.text()), (200, String::new()));
    assert!(kage.process(runner).terminate().await.success());
}
