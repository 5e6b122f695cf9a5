//! `kage serve` with its private cluster.

use rustix::process::Signal;

use crate::support::TestKage;
use crate::support::tasks::{shell, string};
use crate::watcher::Watcher;
use crate::world::{assert_result, numbered};

async fn private() -> (TestKage, usize) {
    let mut kage = TestKage::bare().await;
    let serve = kage.spawn_with("serve", &[]);
    // Not ready before it has an image and a key.
    while !kage.process(serve).log_says("runner.started") {
        kage.process(serve).assert_alive();
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    kage.equip();
    kage.ready(serve).await;
    kage.demo().await;
    (kage, serve)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_kill_9_the_cluster_is_whole_and_the_run_goes_on() {
    let (mut kage, mut serve) = private().await;
    let task = kage.submit(&shell(&numbered(20_000, 500))).await;
    let id = string(&task["id"]);
    let watcher = Watcher::follow(&kage, id);
    for text in ["line 700\n", "line 7000\n"] {
        kage.says(id, "shell", text).await;
        kage.process(serve).kill_9();
        serve = kage.start("serve").await;
    }
    let seen = watcher.end().await;
    seen.assert_lines("shell", 20_000);
    assert_result(&kage, &kage.task(id).await, 20_000);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn signals_drain_and_stop_it_too() {
    let (mut kage, serve) = private().await;
    let task = kage.submit(&shell("echo begun; sleep 2; echo 1 > result")).await;
    let id = string(&task["id"]);
    kage.says(id, "shell", "begun").await;
    assert!(kage.process(serve).terminate().await.success());
    let serve = kage.start("serve").await;
    let task = kage.task(id).await;
    assert_result(&kage, &task, 1);

    let task = kage.submit(&shell("echo begun; sleep 5; echo 2 > result")).await;
    let id = string(&task["id"]);
    kage.says(id, "shell", "begun").await;
    kage.process(serve).signal(Signal::TERM);
    while !kage.process(serve).log_says("lifecycle.draining") {
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    kage.process(serve).signal(Signal::TERM);
    assert!(kage.process(serve).wait().await.success());
    // Its cluster can be read without it, and is not left behind.
    assert!(kage.host(&["audit", "verify"]).contains("are what their checkpoints say"));
    assert!(kage.host(&["audit", "show", "--task", id]).contains("task.submit"));
    // What it cannot begin with is no good end.
    let broken = kage
        .spawn_with("serve", &[("KAGE_API_TLS_CERT", "/nowhere/cert"), ("KAGE_API_TLS_KEY", "/nowhere/key")]);
    assert!(!kage.process(broken).wait().await.success());
    kage.start("serve").await;
    let task = kage.ended(id).await;
    assert_result(&kage, &task, 2);
}

/// A second one in the same data folder is refused, and must not take the first one's database away.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_one_does_the_first_no_harm() {
    let (mut kage, serve) = private().await;
    let second = kage.spawn_with("serve", &[("KAGE_API_LISTEN", "127.0.0.1:0")]);
    assert!(!kage.process(second).wait().await.success());
    let task = kage.run(&shell("echo 3 > result")).await;
    assert_result(&kage, &task, 3);
    kage.process(serve).assert_alive();
    assert!(!kage.process(serve).log_says("database_away"));
}

/// The machine's memory killer takes both, `kage serve` and its Postgres.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_kill_9_of_the_cluster_too_it_recovers() {
    let (mut kage, serve) = private().await;
    let task = kage.submit(&shell(&numbered(10_000, 250))).await;
    let id = string(&task["id"]);
    let watcher = Watcher::follow(&kage, id);
    kage.says(id, "shell", "line 700\n").await;
    kage.process(serve).kill_9();
    let pid = std::fs::read_to_string(kage.data.join("postgres/data/postmaster.pid")).expect("it runs");
    let pid: i32 = pid.lines().next().expect("a first line").parse().expect("a process id");
    let pid = rustix::process::Pid::from_raw(pid).expect("a process id");
    rustix::process::kill_process(pid, Signal::KILL).expect("the cluster's first process");
    kage.start("serve").await;
    watcher.end().await.assert_lines("shell", 10_000);
    assert_result(&kage, &kage.task(id).await, 10_000);
}
