//! An engine with `userns-remap`: the sandbox's user is nobody on the host, and a run gets from request to branch.

use std::fs;

use serde_json::json;

use crate::own_engine::Engine;
use crate::support::TestKage;
use crate::support::git::git;
use crate::support::tasks::{shell, string};

/// In no table of this machine.
const FIRST: u32 = 300_000;

const WORK: &str = "id -u > uid; echo more >> README.md; mkdir d; echo new > d/f; ls -ldn /run/kage > seen
    echo begun; for i in $(seq 1 1000); do [ -e go ] && break; sleep 0.1; done; rm go; echo done";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_run_whose_user_is_nobody_on_the_host() {
    let own = tokio::task::spawn_blocking(|| Engine::remapped(FIRST)).await.expect("starts");
    let kage = TestKage::serving(&[("KAGE_RUNNER_DOCKER", &own.url())]).await;
    kage.demo().await;
    let task = kage.submit(&shell(WORK)).await;
    let id = string(&task["id"]);
    kage.says(id, "shell", "begun").await;

    // By the host's own word.
    let container = own.containers().pop().expect("it runs");
    let pid =
        own.docker().args(["inspect", "--format", "{{.State.Pid}}", &container]).output().expect("docker");
    let pid = String::from_utf8_lossy(&pid.stdout).trim().to_owned();
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("its first process");
    let there = FIRST + 10_001;
    for kind in ["Uid", "Gid"] {
        assert!(status.contains(&format!("{kind}:\t{there}\t{there}\t{there}\t{there}\n")), "{status}");
    }
    fs::write(format!("/proc/{pid}/root/workspace/go"), "").expect("root may");

    let task = kage.ended(id).await;
    assert_eq!(task["runs"][0]["state"], "succeeded", "{task}");
    let branch = string(&task["runs"][0]["branch"]);
    let show = |file: &str| git(&kage.mirror("demo"), ["show", &format!("{branch}:{file}")]);
    assert_eq!((show("uid"), show("d/f")), ("10001".to_owned(), "new".to_owned()));
    assert!(show("README.md").ends_with("more"), "a file of the base");
    assert!(
        show("seen").contains(" 65534 65534 "),
        "the runner's files are nobody's there: {}",
        show("seen")
    );

    let details: serde_json::Value =
        sqlx::query_scalar("SELECT details FROM audit_entries WHERE action = 'runner.host'")
            .fetch_one(kage.pool())
            .await
            .expect("the owner may read");
    let found = details["findings"].as_array().expect("a list");
    let found = found.iter().find(|one| one["id"] == "userns-remap").expect("it is told");
    assert_eq!(found["severity"], json!("info"));
    assert!(found["seen"].to_string().contains("root is 300000:300000"), "{found}");
}
