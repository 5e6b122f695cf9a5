//! The host goes down and comes back: everything ends at once, what lived in memory is gone, and all starts again in an order
//! that suits nobody, as an engine's restart policies do it.

use std::collections::BTreeMap;

use rustix::process::{Signal, kill_process};
use serde_json::Value;
use sqlx::PgPool;

use crate::cluster::Cluster;
use crate::database_gone::signal_all;
use crate::own_engine::Engine;
use crate::runner_lost::{no_run_folder, start_elsewhere};
use crate::support::leftovers::{keeper, mounts, run_folders};
use crate::support::released::{lost, rows};
use crate::support::tasks::{shell, string};
use crate::support::{TestKage, eventually};
use crate::world::assert_result;

const ROLES: [&str; 5] = ["runner", "gateway", "sequencer", "notifier", "api"];

/// In the order in which they end.
struct Host {
    kage: TestKage,
    running: [(&'static str, usize); 5],
    cluster: Cluster,
    engine: Engine,
}

impl Host {
    async fn start() -> Self {
        let engine = tokio::task::spawn_blocking(|| Engine::start(&[])).await.expect("starts");
        let cluster = Cluster::start();
        let mut kage = TestKage::bare().await;
        let sockets = kage.data.join("model").display().to_string();
        for (name, value) in [
            ("KAGE_DATABASE_URL", cluster.url().as_str()),
            ("KAGE_RUNNER_DOCKER", &engine.url()),
            ("KAGE_RUNNER_CONCURRENCY", "2"),
            ("KAGE_RUNNER_LEASE_SECS", "5"),
            // How soon each says that it waits.
            ("KAGE_DATABASE_ACQUIRE_SECS", "2"),
            ("KAGE_GATEWAY_SOCKETS", &sockets),
        ] {
            kage.set(name, value);
        }
        kage.host(&["migrate"]);
        kage.equip();
        let running = ROLES.map(|role| (role, kage.spawn_with(role, &[])));
        for (role, index) in running {
            if matches!(role, "api" | "runner") {
                kage.ready(index).await;
            }
        }
        kage.demo().await;
        Self { kage, running, cluster, engine }
    }

    /// No process has time for anything.
    fn power_off(&mut self) {
        for (_, index) in self.running {
            self.kage.process(index).kill_9();
        }
        if let Some(keeper) = keeper(&self.kage.data) {
            kill_process(keeper, Signal::KILL).expect("it is ours");
        }
        let lock = std::fs::read_to_string(self.cluster.folder.join("data/postmaster.pid")).expect("it runs");
        signal_all(
            lock.lines().next().and_then(|line| line.parse().ok()).expect("a process id"),
            Signal::KILL,
        );
        self.engine.power_off();
        for mount in mounts(&self.kage.folder) {
            let status = std::process::Command::new("umount").arg(&mount).status().expect("umount");
            assert!(status.success(), "{}", mount.display());
        }
        // A start of the machine has another name each time.
        for folder in run_folders(&self.kage.folder) {
            let mode = folder.join("mode");
            if let Ok(text) = std::fs::read_to_string(&mode) {
                let boot = text.lines().nth(1).expect("the start's name").to_owned();
                std::fs::write(&mode, text.replace(&boot, "00000000-0000-4000-8000-000000000000"))
                    .expect("writes");
            }
        }
    }

    /// The roles first, then the database, then the engine.
    async fn power_on(&mut self) {
        for (role, index) in &mut self.running {
            *index = self.kage.spawn_with(role, &[]);
        }
        for (role, index) in self.running {
            let process = self.kage.process(index);
            eventually(&format!("{role} waits for its database"), async || {
                process.assert_alive();
                process.log_says("db.unavailable").then_some(())
            })
            .await;
        }
        self.cluster.begin();
        eventually("the runner ends, for it has no engine", async || self.restart_ended().then_some(()))
            .await;
        self.engine.power_on();
    }

    /// As `restart: unless-stopped`: one that has ended is started again. It must have ended as one that wants to be.
    fn restart_ended(&mut self) -> bool {
        let mut any = false;
        for (role, index) in &mut self.running {
            let process = self.kage.process(*index);
            if let Some(status) = process.ended() {
                assert!(!status.success(), "{role} ended as if all were well:\n{}", process.log_tail());
                *index = self.kage.spawn_with(role, &[]);
                any = true;
            }
        }
        any
    }

    /// Waits for a task's end, also while there is no API.
    async fn ended(&mut self, task: &Value) -> Value {
        let id = string(&task["id"]);
        let url = format!("{}/api/v1/tasks/{id}", self.kage.url);
        eventually("the task ends", async || {
            self.restart_ended();
            let answer = self.kage.http.get(&url).header("X-API-Key", &self.kage.key).send().await;
            let task: Value = answer.ok()?.json().await.ok()?;
            task["completed_at"].is_string().then_some(())
        })
        .await;
        self.kage.task(id).await
    }
}

/// Says which attempt it is, and the first one has no end.
fn first_has_no_end(result: u32) -> Value {
    let script = "echo attempt $KAGE_ATTEMPT; if [ $KAGE_ATTEMPT = 1 ]; then sleep 3600; fi";
    let mut task = shell(&format!("{script}; echo {result} > result"));
    task["max_retries"] = 1.into();
    task["retry_delay"] = 1.into();
    task
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn everything_comes_back_and_nothing_runs_twice_unasked() {
    let mut host = Host::start().await;
    let once = host.kage.submit(&shell("echo attempt $KAGE_ATTEMPT; sleep 3600")).await;
    let again = host.kage.submit(&first_has_no_end(2)).await;
    for task in [&once, &again] {
        host.kage.says(string(&task["id"]), "shell", "attempt 1\n").await;
    }
    let sandboxes = host.engine.running();
    assert_eq!(sandboxes.len(), 2);
    // One that is to be started again with its engine, so that it is seen that engines do that.
    let control = host.engine.control();
    // Both slots are taken.
    let waits = host.kage.submit(&shell("echo attempt $KAGE_ATTEMPT; echo 3 > result")).await;

    host.power_off();
    host.power_on().await;
    let engine = &host.engine;
    eventually("it starts what it is to", async || engine.running().contains(&control).then_some(())).await;
    assert!(engine.running().iter().all(|id| !sandboxes.contains(id)), "it starts a sandbox by itself");
    engine.remove(&control);

    let ended = host.ended(&once).await;
    let run = &ended["runs"][0];
    assert_eq!((&run["state"], &run["attempt"]), (&"lost".into(), &1.into()), "{ended}");
    for (task, result, said) in [(&again, 2, "attempt 1\nattempt 2\n"), (&waits, 3, "attempt 1\n")] {
        let ended = host.ended(task).await;
        assert_result(&host.kage, &ended, result);
        let path = format!("/api/v1/tasks/{}/runs/shell/log", string(&task["id"]));
        assert_eq!(host.kage.get(&path).await.text(), said);
    }
    let folder = &host.kage.folder;
    eventually("nothing of them is left", async || {
        let gone = host.engine.containers().is_empty()
            && run_folders(folder).is_empty()
            && mounts(folder).is_empty();
        gone.then_some(())
    })
    .await;
    one_comes_back_after_the_end(&mut host).await;
    for (_, index) in host.running {
        host.kage.process(index).assert_alive();
    }
}

/// A runner on another host, with an engine that nobody else reaches, stands still until its run has ended elsewhere: it writes
/// nothing then, and ends what it has.
async fn one_comes_back_after_the_end(host: &mut Host) {
    let (kage, engine, runner) = (&mut host.kage, &host.engine, host.running[0].1);
    let submitted = kage.submit(&first_has_no_end(4)).await;
    let id = string(&submitted["id"]);
    kage.says(id, "shell", "attempt 1").await;
    kage.process(runner).signal(Signal::STOP);
    kage.set("KAGE_RUNNER_DOCKER", &crate::support::engine());
    start_elsewhere(kage).await;
    let task = kage.ended(id).await;
    assert_eq!((&task["status"], &task["runs"][0]["attempt"]), (&"completed".into(), &2.into()), "{task}");
    assert_eq!(engine.running().len(), 1, "its sandbox goes on meanwhile");
    let pool = PgPool::connect(&kage.settings["KAGE_DATABASE_URL"]).await.expect("connects");
    let written = rows(&pool).await;
    kage.process(runner).signal(Signal::CONT);
    eventually("it ends what it has", async || engine.containers().is_empty().then_some(())).await;
    no_run_folder(kage).await;
    let now = rows(&pool).await;
    for table in ["tasks", "runs", "attempts", "events", "run_results"] {
        let of_table =
            |all: &BTreeMap<String, Vec<Value>>| BTreeMap::from([(table.to_owned(), all[table].clone())]);
        assert_eq!(lost(&of_table(&written), &of_table(&now)), [""; 0]);
        assert_eq!(written[table].len(), now[table].len(), "{table}");
    }
    pool.close().await;
}
