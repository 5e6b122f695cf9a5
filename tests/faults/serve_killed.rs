//! `kage serve` with its private cluster.

use std::os::unix::fs::MetadataExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, Command};

use rustix::process::Signal;

use crate::database_gone::signal_all;
use crate::support::tasks::{shell, string};
use crate::support::{TestKage, eventually};
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

    kage.process(serve).kill_9();
    let mut stranger = give_its_number_to_a_stranger(&kage).await;
    kage.start("serve").await;
    assert!(stranger.try_wait().expect("our child").is_none(), "a stranger was ended");
    stranger.kill().and_then(|()| stranger.wait()).expect("our child");
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

/// As after a restart of the host: nothing of the server lives, and its number is this process's, of the same user.
async fn give_its_number_to_a_stranger(kage: &TestKage) -> Child {
    let root = kage.data.join("postgres");
    let lock = root.join("data/postmaster.pid");
    let text = std::fs::read_to_string(&lock).expect("the server goes on");
    let (first, rest) = text.split_once('\n').expect("lines");
    signal_all(first.parse().expect("a process id"), Signal::KILL);
    let server = Path::new("/proc").join(first);
    eventually("it is gone", async || (!server.exists()).then_some(())).await;
    let owner = std::fs::metadata(root.join("data")).expect("it is there");
    let mut stranger = Command::new("sleep");
    let stranger = stranger.arg("600").uid(owner.uid()).gid(owner.gid()).spawn().expect("starts");
    std::fs::write(&lock, format!("{}\n{rest}", stranger.id())).expect("writes");
    let socket = root.join("socket/.s.PGSQL.5432.lock");
    std::fs::write(&socket, format!("{}\n", stranger.id())).expect("writes");
    stranger
}
