//! The engine stands still: it takes calls and answers none. An engine of the test's own, that can be stopped.

use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::own_engine::Engine;
use crate::support::sse::output;
use crate::support::tasks::{shell, string};
use crate::watcher::Watcher;
use crate::world::{Roles, apart, assert_result, numbered};

const PATIENCE: Duration = Duration::from_secs(60);

async fn engine(options: &'static [&'static str]) -> Engine {
    tokio::task::spawn_blocking(|| Engine::start(options)).await.expect("starts")
}

/// Whatever stands still, a run's output is taken, its CLI is ended at its limit, its work is kept, and its end is told;
/// what the engine will not give up is swept once it answers again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_holds_up_no_run() {
    let own = engine(&[]).await;
    let settings = [("KAGE_RUNNER_DOCKER", own.url()), ("KAGE_RUNNER_GRACE_SECS", "1".to_owned())];
    let settings = settings.each_ref().map(|(name, value)| (*name, value.as_str()));
    let (kage, _) = apart(&settings).await;

    // Two at work when it stops: one that ends well, and one that ends at no signal.
    let good = kage.submit(&shell(&numbered(2_000, 250))).await;
    let mut stubborn = shell("echo part > part; trap '' TERM; echo begun; while :; do sleep 1000; done");
    stubborn["cli_assignments"][0]["idle_timeout"] = 5.into();
    let stubborn = kage.submit(&stubborn).await;
    kage.says(string(&good["id"]), "shell", "line 250\n").await;
    kage.says(string(&stubborn["id"]), "shell", "begun").await;
    own.signal(Signal::STOP);

    let good = kage.ended(string(&good["id"])).await;
    assert_result(&kage, &good, 2_000);
    let said = output(&kage.events(string(&good["id"]), "").await, "shell", "stdout");
    assert_eq!(said.iter().filter(|byte| **byte == b'\n').count(), 2_000);
    let stubborn = kage.ended(string(&stubborn["id"])).await;
    assert_eq!(stubborn["runs"][0]["state"], "idle_timeout", "{stubborn}");
    assert!(!stubborn["runs"][0]["branch"].is_null(), "what it had done is kept: {stubborn}");
    for task in [&good, &stubborn] {
        let events = kage.events(string(&task["id"]), "").await;
        let told = events.iter().any(|event| event.data["message"].to_string().contains("left to the sweep"));
        assert!(told, "{events:#?}");
    }

    // One that is to begin now waits or fails, and gets there once the engine answers.
    let mut waiting = shell("echo 4 > result");
    waiting["max_retries"] = 5.into();
    waiting["retry_delay"] = 1.into();
    let waiting = kage.submit(&waiting).await;
    kage.reaches(string(&waiting["id"]), 0, "preparing").await;
    own.signal(Signal::CONT);
    assert_result(&kage, &kage.ended(string(&waiting["id"])).await, 4);
    let deadline = Instant::now() + PATIENCE * 2;
    while !own.containers().is_empty() {
        assert!(Instant::now() < deadline, "never swept: {:?}", own.containers());
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

/// Frozen, then ended by force and started anew, as an operator would: a runner that starts meanwhile waits for it. With
/// `live-restore` the run goes on as if nothing had been; without, it is tried again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_is_ended_and_started_anew() {
    let mut own = engine(&["--live-restore"]).await;
    let (mut kage, mut roles) = apart(&[("KAGE_RUNNER_DOCKER", &own.url())]).await;
    let task = kage.submit(&shell(&numbered(15_000, 250))).await;
    let id = string(&task["id"]);
    let watcher = Watcher::follow(&kage, id);
    kage.says(id, "shell", "line 500\n").await;
    own.signal(Signal::STOP);
    kage.process(roles.runner).kill_9();
    roles = Roles { runner: kage.spawn_with("runner", &[]), ..roles };
    while !kage.process(roles.runner).log_says("runner.engine_silent") {
        kage.process(roles.runner).assert_alive();
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    own.restart(&["--live-restore"]);
    kage.ready(roles.runner).await;
    watcher.end().await.assert_lines("shell", 15_000);
    let task = kage.task(id).await;
    assert_eq!(task["runs"][0]["attempt"], 1, "{task}");
    assert_result(&kage, &task, 15_000);

    let mut task = shell(&numbered(7_500, 250));
    task["max_retries"] = 3.into();
    task["retry_delay"] = 1.into();
    let task = kage.submit(&task).await;
    let id = string(&task["id"]);
    kage.says(id, "shell", "line 500\n").await;
    own.signal(Signal::STOP);
    // One that would be tried again, were it not cancelled meanwhile.
    let mut cancelled = shell("echo 5 > result");
    cancelled["max_retries"] = 3.into();
    let cancelled = kage.submit(&cancelled).await;
    kage.reaches(string(&cancelled["id"]), 0, "preparing").await;
    assert_eq!(kage.delete(&format!("/api/v1/tasks/{}", string(&cancelled["id"]))).await.status, 200);
    own.restart(&[]);
    let cancelled = kage.ended(string(&cancelled["id"])).await;
    assert_eq!(cancelled["runs"][0]["state"], "cancelled", "{cancelled}");
    let task = kage.ended(id).await;
    assert_eq!(task["runs"][0]["attempt"], 2, "{task}");
    assert_result(&kage, &task, 7_500);
    kage.process(roles.runner).assert_alive();
    assert_eq!(own.containers(), [] as [&str; 0]);
}
