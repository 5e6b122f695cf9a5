//! SIGTERM: the first drains, the second stops.

use rustix::process::Signal;

use crate::support::eventually;
use crate::support::tasks::{shell, string};
use crate::watcher::Watcher;
use crate::world::{apart, assert_result};

/// Says `begun`, then waits for a file in its worktree, which the test writes.
const WAITS: &str = "echo begun; until [ -e go ]; do sleep 0.1; done; rm go; echo 7 > result; echo ended";

fn let_go(kage: &crate::support::TestKage) {
    let folder = crate::support::leftovers::run_folders(&kage.folder).remove(0);
    let go = folder.join("merged/go");
    std::fs::write(&go, "").expect("writes");
    std::os::unix::fs::chown(&go, Some(10_001), Some(10_001)).expect("chown");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_first_one_lets_a_run_finish_and_takes_no_other() {
    let (mut kage, roles) = apart(&[]).await;
    let task = kage.submit(&shell(WAITS)).await;
    let id = string(&task["id"]);
    kage.says(id, "shell", "begun").await;
    kage.process(roles.runner).signal(Signal::TERM);
    let runner = roles.runner;
    while !kage.process(runner).log_says("lifecycle.draining") {
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    let next = kage.submit(&shell("echo 8 > result")).await;
    let next = string(&next["id"]);
    let_go(&kage);
    let task = kage.ended(id).await;
    assert_result(&kage, &task, 7);
    assert!(kage.process(runner).wait().await.success());
    assert_eq!(kage.task(next).await["runs"][0]["state"], "queued");
    kage.start("runner").await;
    let task = kage.ended(next).await;
    assert_result(&kage, &task, 8);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_second_one_stops_and_the_run_is_taken_up_at_the_next_start() {
    let (mut kage, roles) = apart(&[]).await;
    let task = kage.submit(&shell(WAITS)).await;
    let id = string(&task["id"]);
    let watcher = Watcher::follow(&kage, id);
    kage.says(id, "shell", "begun").await;
    let runner = roles.runner;
    kage.process(runner).signal(Signal::TERM);
    while !kage.process(runner).log_says("lifecycle.draining") {
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    kage.process(runner).signal(Signal::TERM);
    assert!(kage.process(runner).wait().await.success());
    assert_eq!(kage.task(id).await["runs"][0]["state"], "running");
    assert_eq!(kage.containers().len(), 1);
    kage.start("runner").await;
    let_go(&kage);
    let seen = watcher.end().await;
    assert_eq!(crate::support::sse::output(&seen.events, "shell", "stdout"), b"begun\nended\n");
    assert_result(&kage, &kage.task(id).await, 7);
}

/// A source that never answers: a listener that takes connections and says nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_second_one_does_not_wait_for_a_fetch() {
    let (mut kage, roles) = apart(&[]).await;
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("binds");
    let source = format!("https://{}/repository.git", silent.local_addr().expect("an address"));
    kage.process(roles.runner).terminate().await;
    kage.process(roles.api).terminate().await;
    let allow = format!("{},https://{}/", kage.sources.display(), silent.local_addr().expect("an address"));
    kage.set("KAGE_REPOSITORIES_ALLOW", &allow);
    kage.set("KAGE_REPOSITORIES_ALLOW_PRIVATE", "127.0.0.1");
    kage.start("api").await;
    let runner = kage.start("runner").await;
    let body = serde_json::json!({ "name": "silent", "source": source });
    let answer = kage.post("/api/v1/repositories", &body).await;
    assert_eq!(answer.status, 202, "{}", answer.text());
    let (connection, _) = silent.accept().await.expect("the fetch begins");
    kage.process(runner).signal(Signal::TERM);
    while !kage.process(runner).log_says("lifecycle.draining") {
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    assert!(kage.process(runner).ended().is_none());
    kage.process(runner).signal(Signal::TERM);
    kage.process(runner).wait().await;
    drop((silent, connection));
    eventually("the fetch's own process ends", || async {
        let processes = std::process::Command::new("pgrep").args(["-f", &source]).output().expect("pgrep");
        processes.stdout.is_empty().then_some(())
    })
    .await;
}
