//! Postgres goes away in the middle, in order or by a crash: a cluster of this test's own.

use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use crate::cluster::Cluster;
use crate::support::TestKage;
use crate::support::tasks::{shell, string};
use crate::watcher::Watcher;
use crate::world::{assert_result, numbered};

/// Sends a signal to the server and its backends.
pub fn signal_all(postmaster: i32, signal: Signal) {
    let entries = std::fs::read_dir("/proc").expect("procfs").flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    let is_backend = |pid: &i32| {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        let parent = stat.rsplit(") ").next().and_then(|fields| fields.split(' ').nth(1));
        parent == Some(postmaster.to_string().as_str())
    };
    for pid in std::iter::once(postmaster).chain(pids.filter(is_backend)) {
        // A backend may have just ended.
        let _ = kill_process(Pid::from_raw(pid).expect("a process id"), signal);
    }
}

async fn outage(mode: &str, lease_secs: &str) {
    let cluster = Cluster::start();
    let mut kage = TestKage::bare().await;
    kage.set("KAGE_DATABASE_URL", &cluster.url());
    kage.set("KAGE_RUNNER_LEASE_SECS", lease_secs);
    kage.host(&["migrate"]);
    kage.equip();
    kage.start("api").await;
    let runner = kage.start("runner").await;
    kage.demo().await;

    let task = kage.submit(&shell(&numbered(20_000, 250))).await;
    let id = string(&task["id"]);
    // A silent one beside it, which has nothing to write while the database is away.
    let silent = kage.submit(&shell("echo line 1; sleep 18; echo 1 > result")).await;
    let silent = string(&silent["id"]);
    let (watcher, beside) = (Watcher::follow(&kage, id), Watcher::follow(&kage, silent));
    kage.says(silent, "shell", "line 1\n").await;
    kage.says(id, "shell", "line 1000\n").await;
    cluster.stop(mode);
    // Its connection breaks too: it comes back to a server that cannot serve it yet.
    watcher.cut.cancel();
    let refused = kage.get(&format!("/api/v1/tasks/{id}")).await;
    refused.problem(503);
    assert!(!refused.header("retry-after").is_empty());
    let ready = kage.get("/ready").await;
    assert_eq!((ready.status, &ready.json()["dependencies"]["database"]["ok"]), (503, &false.into()));
    assert_eq!(kage.get("/health").await.status, 200);
    tokio::time::sleep(Duration::from_secs(10)).await;
    cluster.begin();

    let seen = watcher.end().await;
    assert!(seen.breaks > 0);
    seen.assert_lines("shell", 20_000);
    let task = kage.task(id).await;
    assert_result(&kage, &task, 20_000);
    assert_eq!(task["runs"][0]["attempt"], 1);
    let seen = beside.end().await;
    seen.assert_lines("shell", 1);
    assert_eq!(seen.states("shell"), ["queued", "preparing", "running", "harvesting", "succeeded"]);
    assert_result(&kage, &kage.task(silent).await, 1);
    assert!(!kage.process(runner).log_says("taken_up_again"), "a runner took up what it already held");
    drop(kage);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn shut_down_and_started_again() {
    outage("fast", "30").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn crashed_for_longer_than_a_lease() {
    outage("immediate", "5").await;
}

/// Neither answers nor refuses: every process of it is stopped.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hanging() {
    let cluster = Cluster::start();
    let mut kage = TestKage::bare().await;
    kage.set("KAGE_DATABASE_URL", &cluster.url());
    kage.set("KAGE_RUNNER_LEASE_SECS", "5");
    kage.host(&["migrate"]);
    kage.equip();
    kage.start("api").await;
    kage.start("runner").await;
    kage.demo().await;
    let task = kage.submit(&shell(&numbered(20_000, 250))).await;
    let id = string(&task["id"]);
    let watcher = Watcher::follow(&kage, id);
    kage.says(id, "shell", "line 1000\n").await;
    let pid = std::fs::read_to_string(cluster.folder.join("data/postmaster.pid")).expect("it runs");
    let pid = pid.lines().next().expect("a first line").parse().expect("a process id");
    signal_all(pid, Signal::STOP);
    let answer = kage.get(&format!("/api/v1/tasks/{id}")).await;
    signal_all(pid, Signal::CONT);
    answer.problem(503);
    assert!(!answer.header("retry-after").is_empty());
    watcher.end().await.assert_lines("shell", 20_000);
    let task = kage.task(id).await;
    assert_result(&kage, &task, 20_000);
    assert_eq!(task["runs"][0]["attempt"], 1);
    drop(kage);
}
