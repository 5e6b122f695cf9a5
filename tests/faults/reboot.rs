//! The host goes down and comes back: everything ends at once, what lived in memory is gone, and all starts again in an order
//! that suits nobody, as an engine's restart policies do it.

use std::time::Duration;

use crate::cluster::Cluster;
use crate::database_gone::signal_all;
use crate::own_engine::Engine;
use crate::support::leftovers::{keeper, mounts, run_folders};
use crate::support::tasks::{shell, string};
use crate::support::{PATIENCE, TestKage, eventually};
use crate::world::assert_result;

use rustix::process::{Signal, kill_process};

const ROLES: [&str; 5] = ["runner", "gateway", "sequencer", "notifier", "api"];

/// Power off: no process has time for anything.
fn power_off(kage: &mut TestKage, processes: &[usize], cluster: &Cluster, engine: &mut Engine) {
    for index in processes {
        kage.process(*index).kill_9();
    }
    if let Some(keeper) = keeper(&kage.data) {
        kill_process(keeper, Signal::KILL).expect("it is ours");
    }
    let lock = std::fs::read_to_string(cluster.folder.join("data/postmaster.pid")).expect("it runs");
    signal_all(lock.lines().next().and_then(|line| line.parse().ok()).expect("a process id"), Signal::KILL);
    engine.power_off();
    for mount in mounts(&kage.folder) {
        let status = std::process::Command::new("umount").arg(&mount).status().expect("umount");
        assert!(status.success(), "{}", mount.display());
    }
    // A start of the machine has another name each time.
    for folder in run_folders(&kage.folder) {
        let mode = folder.join("mode");
        if let Ok(text) = std::fs::read_to_string(&mode) {
            let boot = text.lines().nth(1).expect("the start's name").to_owned();
            std::fs::write(&mode, text.replace(&boot, "00000000-0000-4000-8000-000000000000"))
                .expect("writes");
        }
    }
}

/// As `restart: unless-stopped`: one that has ended is started again. It must have ended as one that wants to be.
fn restart_ended(kage: &mut TestKage, running: &mut [(&'static str, usize)]) -> bool {
    let mut any = false;
    for (role, index) in running.iter_mut() {
        if let Some(status) = kage.process(*index).ended() {
            assert!(
                !status.success(),
                "{role} ended as if all were well:\n{}",
                kage.process(*index).log_tail()
            );
            *index = kage.spawn_with(role, &[]);
            any = true;
        }
    }
    any
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn everything_comes_back_and_nothing_runs_twice_unasked() {
    let mut engine = tokio::task::spawn_blocking(|| Engine::start(&[])).await.expect("starts");
    let cluster = Cluster::start();
    let mut kage = TestKage::bare().await;
    kage.set("KAGE_DATABASE_URL", &cluster.url());
    kage.set("KAGE_RUNNER_DOCKER", &engine.url());
    kage.set("KAGE_RUNNER_CONCURRENCY", "2");
    // How soon each says that it waits.
    kage.set("KAGE_DATABASE_ACQUIRE_SECS", "2");
    kage.set("KAGE_GATEWAY_SOCKETS", &kage.data.join("model").display().to_string());
    kage.host(&["migrate"]);
    kage.equip();
    let mut running = ROLES.map(|role| (role, kage.spawn_with(role, &[])));
    let (runner, api) = (running[0].1, running[4].1);
    kage.ready(api).await;
    kage.ready(runner).await;
    kage.demo().await;
    let once = kage.submit(&shell("echo begun $KAGE_ATTEMPT; sleep 3600")).await;
    let mut again =
        shell("echo begun $KAGE_ATTEMPT; if [ $KAGE_ATTEMPT = 1 ]; then sleep 3600; fi; echo 2 > result");
    again["max_retries"] = 1.into();
    again["retry_delay"] = 1.into();
    let again = kage.submit(&again).await;
    for task in [&once, &again] {
        kage.says(string(&task["id"]), "shell", "begun 1\n").await;
    }
    // One that is to be started again with its engine, so that it is seen that engines do that.
    let sandboxes = engine.running();
    assert_eq!(sandboxes.len(), 2);
    let control = engine.control();
    // Both slots are taken.
    let waits = kage.submit(&shell("echo begun $KAGE_ATTEMPT; echo 3 > result")).await;

    power_off(&mut kage, &running.map(|(_, index)| index), &cluster, &mut engine);

    // Neither an engine nor a database.
    for (role, index) in &mut running {
        *index = kage.spawn_with(role, &[]);
    }
    let deadline = std::time::Instant::now() + PATIENCE;
    for (_, index) in running {
        while !kage.process(index).log_says("db.unavailable") {
            kage.process(index).assert_alive();
            assert!(std::time::Instant::now() < deadline, "it does not wait for its database");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
    cluster.begin();
    // The runner needs an engine, and ends until there is one.
    while !restart_ended(&mut kage, &mut running) {
        assert!(std::time::Instant::now() < deadline, "the runner works without an engine");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    engine.power_on();
    eventually("the engine starts what it is to", async || engine.running().contains(&control).then_some(()))
        .await;
    assert_eq!(
        engine.running().iter().filter(|id| sandboxes.contains(id)).count(),
        0,
        "it starts a sandbox by itself"
    );
    engine.remove(&control);
    for task in [&once, &again, &waits] {
        let path = format!("/api/v1/tasks/{}", string(&task["id"]));
        eventually("the task ends", async || {
            restart_ended(&mut kage, &mut running);
            let answer =
                kage.http.get(format!("{}{path}", kage.url)).header("X-API-Key", &kage.key).send().await;
            let task: serde_json::Value = answer.ok()?.json().await.ok()?;
            task["completed_at"].is_string().then_some(())
        })
        .await;
    }

    let ended = kage.task(string(&once["id"])).await;
    let run = &ended["runs"][0];
    assert_eq!((&run["state"], &run["attempt"]), (&"lost".into(), &1.into()), "{ended}");
    for (task, result, said) in [(&again, 2, "begun 1\nbegun 2\n"), (&waits, 3, "begun 1\n")] {
        let id = string(&task["id"]);
        let ended = kage.task(id).await;
        assert_result(&kage, &ended, result);
        assert_eq!(kage.get(&format!("/api/v1/tasks/{id}/runs/shell/log")).await.text(), said);
    }
    eventually("nothing of them is left", async || {
        (engine.containers().is_empty()
            && run_folders(&kage.folder).is_empty()
            && mounts(&kage.folder).is_empty())
        .then_some(())
    })
    .await;
    for (_, index) in running {
        kage.process(index).assert_alive();
    }
    drop(kage);
}
