//! A runner that does not come back, or not in time.

use crate::own_engine::Engine;
use crate::support::released::rows;
use crate::support::sse::output;
use crate::support::tasks::{shell, string};
use crate::support::{TestKage, engine, eventually};
use crate::watcher::Watcher;
use crate::world::{apart, assert_result};

/// Starts a runner of the same world with another data folder.
async fn start_elsewhere(kage: &mut TestKage) -> usize {
    let elsewhere = kage.folder.join("elsewhere").display().to_string();
    kage.start_with("runner", &[("KAGE_DATA_DIR", &elsewhere)]).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn its_run_is_begun_anew_by_another_runner() {
    let (mut kage, roles) = apart(&[("KAGE_RUNNER_LEASE_SECS", "5")]).await;
    let mut task =
        shell("echo attempt $KAGE_ATTEMPT; if [ $KAGE_ATTEMPT = 1 ]; then sleep 300; fi; echo 2 > result");
    task["max_retries"] = 1.into();
    task["retry_delay"] = 1.into();
    let submitted = kage.submit(&task).await;
    let id = string(&submitted["id"]);
    let watcher = Watcher::follow(&kage, id);
    kage.says(id, "shell", "attempt 1").await;
    kage.process(roles.runner).kill_9();
    start_elsewhere(&mut kage).await;
    let seen = watcher.end().await;
    assert_eq!(output(&seen.events, "shell", "stdout"), b"attempt 1\nattempt 2\n");
    let task = kage.task(id).await;
    assert_eq!((&task["status"], &task["runs"][0]["attempt"]), (&"completed".into(), &2.into()), "{task}");
    assert_eq!(kage.containers(), Vec::<String>::new());
    // The dead one comes back: its folder and its mount go.
    kage.start("runner").await;
    no_run_folder(&kage).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn its_run_is_lost_where_no_retry_is_left() {
    let (mut kage, roles) = apart(&[("KAGE_RUNNER_LEASE_SECS", "5")]).await;
    let submitted = kage.submit(&shell("echo begun; sleep 300")).await;
    let id = string(&submitted["id"]);
    kage.says(id, "shell", "begun").await;
    kage.process(roles.runner).kill_9();
    start_elsewhere(&mut kage).await;
    let task = kage.ended(id).await;
    assert_eq!((&task["status"], &task["runs"][0]["state"]), (&"failed".into(), &"lost".into()), "{task}");
    kage.start("runner").await;
    no_run_folder(&kage).await;
}

async fn no_run_folder(kage: &TestKage) {
    eventually("the run's folder goes", || async {
        crate::support::leftovers::run_folders(&kage.folder).is_empty().then_some(())
    })
    .await;
}

/// One that took it up died at once. What it does when it is started anew is not to run the same attempt a second time.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn its_run_is_not_begun_twice_by_one_that_took_it_up_and_died() {
    let (mut kage, roles) = apart(&[("KAGE_RUNNER_LEASE_SECS", "5")]).await;
    let other = start_elsewhere(&mut kage).await;
    let ids = "SELECT id FROM runners ORDER BY started_at DESC LIMIT 1";
    let id: uuid::Uuid = sqlx::query_scalar(ids).fetch_one(kage.pool()).await.expect("it is announced");
    assert!(kage.process(other).terminate().await.success());
    let mut task =
        shell("echo attempt $KAGE_ATTEMPT; if [ $KAGE_ATTEMPT = 1 ]; then sleep 300; fi; echo 2 > result");
    (task["max_retries"], task["retry_delay"]) = (1.into(), 1.into());
    let submitted = kage.submit(&task).await;
    let task = string(&submitted["id"]);
    let watcher = Watcher::follow(&kage, task);
    kage.says(task, "shell", "attempt 1").await;
    kage.process(roles.runner).kill_9();
    // As the other one does, before it is killed.
    let taken = eventually("the lease runs out", async || {
        let taken = kage::db::queue::claim_abandoned(kage.pool(), id, 5, false, &[]).await.expect("claims");
        (!taken.is_empty()).then_some(taken)
    })
    .await;
    assert_eq!(taken.len(), 1);
    start_elsewhere(&mut kage).await;
    let seen = watcher.end().await;
    assert_eq!(output(&seen.events, "shell", "stdout"), b"attempt 1\nattempt 2\n");
    assert_eq!(kage.task(task).await["runs"][0]["attempt"], 2);
    kage.start("runner").await;
    no_run_folder(&kage).await;
}

/// Stopped in its tracks for longer than its lease, while another one takes its run: what it has must go.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_that_wakes_up_after_its_lease_gives_everything_up() {
    let (mut kage, roles) = apart(&[("KAGE_RUNNER_LEASE_SECS", "5")]).await;
    let mut task = shell(
        "echo attempt $KAGE_ATTEMPT; if [ $KAGE_ATTEMPT = 1 ]; then sleep 300; fi; sleep 3; echo 2 > result",
    );
    task["max_retries"] = 1.into();
    task["retry_delay"] = 1.into();
    let submitted = kage.submit(&task).await;
    let id = string(&submitted["id"]);
    let watcher = Watcher::follow(&kage, id);
    kage.says(id, "shell", "attempt 1").await;
    kage.process(roles.runner).signal(rustix::process::Signal::STOP);
    start_elsewhere(&mut kage).await;
    kage.says(id, "shell", "attempt 2").await;
    kage.process(roles.runner).signal(rustix::process::Signal::CONT);
    let seen = watcher.end().await;
    assert_eq!(output(&seen.events, "shell", "stdout"), b"attempt 1\nattempt 2\n");
    let task = kage.task(id).await;
    assert_eq!((&task["status"], &task["runs"][0]["attempt"]), (&"completed".into(), &2.into()), "{task}");
    no_run_folder(&kage).await;
}

/// On another host, with an engine of its own: nobody else can end what it has there. It wakes up when the run has ended elsewhere.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_that_comes_back_after_the_end_writes_nothing_and_ends_what_it_has() {
    let own = tokio::task::spawn_blocking(|| Engine::start(&[])).await.expect("starts");
    let (mut kage, roles) =
        apart(&[("KAGE_RUNNER_LEASE_SECS", "5"), ("KAGE_RUNNER_DOCKER", &own.url())]).await;
    let first = roles.runner;
    let mut task =
        shell("echo attempt $KAGE_ATTEMPT; if [ $KAGE_ATTEMPT = 1 ]; then sleep 300; fi; echo 2 > result");
    task["max_retries"] = 1.into();
    task["retry_delay"] = 1.into();
    let submitted = kage.submit(&task).await;
    let id = string(&submitted["id"]);
    kage.says(id, "shell", "attempt 1").await;
    kage.process(first).signal(rustix::process::Signal::STOP);
    kage.set("KAGE_RUNNER_DOCKER", &engine());
    start_elsewhere(&mut kage).await;
    let task = kage.ended(id).await;
    assert_eq!((&task["status"], &task["runs"][0]["attempt"]), (&"completed".into(), &2.into()), "{task}");
    assert_eq!(own.running().len(), 1, "its sandbox goes on meanwhile");
    let written = rows(kage.pool()).await;
    kage.process(first).signal(rustix::process::Signal::CONT);
    eventually("it ends what it has", || async { own.containers().is_empty().then_some(()) }).await;
    no_run_folder(&kage).await;
    let now = rows(kage.pool()).await;
    for table in ["tasks", "runs", "attempts", "events", "run_results", "sandboxes"] {
        assert_eq!(written.get(table), now.get(table), "{table}");
    }
    kage.process(first).assert_alive();
    drop(kage);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn its_container_ends_by_itself() {
    let (mut kage, roles) = apart(&[("KAGE_RUNNER_ORPHAN_SECS", "10")]).await;
    let mut task =
        shell("echo attempt $KAGE_ATTEMPT; if [ $KAGE_ATTEMPT = 1 ]; then sleep 300; fi; echo 2 > result");
    task["max_retries"] = 1.into();
    task["retry_delay"] = 1.into();
    let submitted = kage.submit(&task).await;
    let id = string(&submitted["id"]);
    kage.says(id, "shell", "attempt 1").await;
    let container = kage.containers().remove(0);
    kage.process(roles.runner).kill_9();
    let kage = &mut kage;
    eventually("the container ends", || async {
        let running = kage.docker(&["inspect", "--format", "{{.State.Running}}", &container]);
        (running.trim() == "false").then_some(())
    })
    .await;
    // Much later its runner does come back: the attempt is lost, and the next one works.
    kage.start("runner").await;
    let task = kage.ended(id).await;
    assert_result(kage, &task, 2);
    assert_eq!(task["runs"][0]["attempt"], 2, "{task}");
}

/// Two runners on one queue: each run once, and both work.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_share_one_queue() {
    let (mut kage, roles) = apart(&[("KAGE_RUNNER_CONCURRENCY", "2")]).await;
    start_elsewhere(&mut kage).await;
    let mut tasks = Vec::new();
    for _ in 0..12 {
        let task = kage.submit(&shell("echo once; sleep 0.5; echo 1 > result")).await;
        tasks.push(string(&task["id"]).to_owned());
    }
    for id in &tasks {
        let task = kage.ended(id).await;
        assert_eq!(
            (&task["status"], &task["runs"][0]["attempt"]),
            (&"completed".into(), &1.into()),
            "{task}"
        );
        let events = kage.events(id, "").await;
        assert_eq!(output(&events, "shell", "stdout"), b"once\n");
    }
    let shares: Vec<i64> = sqlx::query_scalar("SELECT count(*) FROM attempts GROUP BY runner_id")
        .fetch_all(kage.pool())
        .await
        .expect("selects");
    assert_eq!((shares.len(), shares.iter().sum::<i64>()), (2, 12), "{shares:?}");
    kage.process(roles.runner).assert_alive();
}
