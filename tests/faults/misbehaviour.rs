//! CLIs that do what no CLI should.

use serde_json::json;

use crate::support::sse::output;
use crate::support::tasks::{shell, shell_with, string};
use crate::world::{apart, assert_result};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn none_of_it_hangs_or_leaves_anything() {
    let (kage, _) = apart(&[("KAGE_RUNNER_GRACE_SECS", "1"), ("KAGE_LIMIT_PIDS", "64")]).await;
    let state = async |task: &serde_json::Value| {
        let task = kage.run(task).await;
        assert!(kage.containers().is_empty());
        task["runs"][0].clone()
    };

    // Ignores every signal that it can.
    let stubborn = "trap '' TERM INT HUP QUIT USR1 USR2; echo begun; while :; do sleep 1000; done";
    let run = state(&shell_with(stubborn, &json!({ "idle_timeout": 2 }))).await;
    assert_eq!(run["state"], "idle_timeout", "{run}");

    // Goes to the background, leaves its process group, and holds the pipes open: over when the CLI itself is over.
    let daemon = "setsid bash -c 'trap \"\" TERM; while :; do sleep 1000; done' & \
                  setsid sleep 1000 >/dev/null 2>&1 </dev/null & echo 1 > result; echo gone";
    let run = state(&shell(daemon)).await;
    assert_eq!(run["state"], "succeeded", "{run}");

    // Fills the process table: of its own sandbox alone.
    let bomb = "f() { f | f & }; echo 1 > result; f; sleep 3; exit 0";
    let run = state(&shell_with(bomb, &json!({ "idle_timeout": 20 }))).await;
    println!("bomb: {run}");
    assert!(
        ["succeeded", "process_limit", "failed", "idle_timeout"].contains(&string(&run["state"])),
        "{run}"
    );

    // Closes its output and goes on.
    let run = state(&shell("echo before; exec >&- 2>&-; sleep 2; echo 9 > result")).await;
    assert_eq!(run["state"], "succeeded", "{run}");

    // Never reads its prompt of a mebibyte: the rest is thrown away, the CLI's status counts.
    let prompt = format!("echo 9 > result; exec 0<&-; sleep 1; exit 0\n#{}", "x".repeat(1_048_000));
    let run = state(&shell(&prompt)).await;
    assert_eq!(run["state"], "succeeded", "{run}");
    let prompt = format!("echo 9 > result; sleep 3; exit 0\n#{}", "x".repeat(1_048_000));
    let task = kage.run(&shell(&prompt)).await;
    assert_result(&kage, &task, 9);
}

/// The last words of a CLI that is killed are kept, and a cancel reaches one that ignores SIGTERM.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cancel_reaches_the_stubborn() {
    let (kage, _) = apart(&[("KAGE_RUNNER_GRACE_SECS", "1")]).await;
    let task = kage.submit(&shell("trap 'echo no' TERM; echo begun; while :; do sleep 0.1; done")).await;
    let id = string(&task["id"]);
    kage.says(id, "shell", "begun").await;
    let answer = kage.delete(&format!("/api/v1/tasks/{id}")).await;
    assert!(answer.status < 300, "{}", answer.text());
    let task = kage.ended(id).await;
    assert_eq!(
        (&task["status"], &task["runs"][0]["state"]),
        (&"cancelled".into(), &"cancelled".into()),
        "{task}"
    );
    let said = output(&kage.events(id, "").await, "shell", "stdout");
    assert!(said.starts_with(b"begun\nno\n"), "{}", String::from_utf8_lossy(&said));
}
