//! A disk that fills: first nothing new is begun, then what nobody uses goes.

use serde_json::Value;

use crate::copies::entries;
use crate::support::tasks::{shell, string};
use crate::support::{TestKage, eventually};

async fn disk_says(kage: &TestKage, ok: bool) -> Value {
    eventually("a runner says what its disk has", async || {
        let ready = kage.get("/ready").await.json();
        (ready["dependencies"]["disk"]["ok"] == ok).then_some(ready)
    })
    .await
}

fn bases(kage: &TestKage) -> usize {
    let entries = std::fs::read_dir(kage.data.join("bases")).expect("the folder");
    entries.filter(|entry| entry.as_ref().is_ok_and(|entry| entry.path().is_dir())).count()
}

#[tokio::test]
async fn below_the_soft_mark_nothing_is_begun_and_below_the_hard_one_unused_checkouts_go() {
    let mut kage = TestKage::new().await;
    let api = kage.start("api").await;
    let runner = kage.start("runner").await;
    kage.demo().await;
    assert_eq!(kage.run(&shell("echo x > x")).await["status"], "completed");
    let ready = disk_says(&kage, true).await;
    assert_eq!((&ready["ready"], bases(&kage)), (&true.into(), 1), "{ready}");
    assert!(kage.process(runner).terminate().await.success());

    // Marks above what is free of any file system.
    let low = [("KAGE_RUNNER_DISK_SOFT_PERCENT", "99"), ("KAGE_RUNNER_DISK_HARD_PERCENT", "0")];
    let runner = kage.start_with("runner", &low).await;
    let ready = disk_says(&kage, false).await;
    assert_eq!((&ready["ready"], &ready["degraded"]), (&true.into(), &true.into()), "{ready}");
    let detail = string(&ready["dependencies"]["disk"]["detail"]);
    assert!(detail.contains("less than 99 %: no new run is begun") && !detail.contains('/'), "{detail}");
    let waits = kage.submit(&shell("echo y > y")).await;
    let waits = string(&waits["id"]).to_owned();
    // The runner was woken by it, and looked for long enough to have taken it.
    tokio::time::sleep(std::time::Duration::from_secs(3)).await;
    assert_eq!(kage.task(&waits).await["runs"][0]["state"], "queued");
    assert_eq!(bases(&kage), 1, "above the hard mark they stay");
    assert!(kage.process(runner).log_says("runner.disk_low"));
    assert!(kage.process(runner).terminate().await.success());

    let lower = [("KAGE_RUNNER_DISK_SOFT_PERCENT", "99"), ("KAGE_RUNNER_DISK_HARD_PERCENT", "99")];
    let runner = kage.start_with("runner", &lower).await;
    eventually("the checkout goes", async || (bases(&kage) == 0).then_some(())).await;
    let told = eventually("it is told", async || entries(kage.pool(), "retention.bases").await.pop()).await;
    assert_eq!(
        (&told["what"], &told["rule"], &told["bases"]),
        (&"bases".into(), &"size".into(), &1.into()),
        "{told}"
    );
    assert_eq!(kage.task(&waits).await["runs"][0]["state"], "queued");
    assert!(kage.process(runner).terminate().await.success());

    // With room again, what waited is run, and nothing was lost.
    kage.start("runner").await;
    disk_says(&kage, true).await;
    assert_eq!(kage.ended(&waits).await["status"], "completed");
    kage.process(api).assert_alive();

    let wrong = kage
        .server_command(&["config"])
        .envs([("KAGE_RUNNER_DISK_SOFT_PERCENT", "5"), ("KAGE_RUNNER_DISK_HARD_PERCENT", "6")])
        .output()
        .expect("starts");
    let said = String::from_utf8_lossy(&wrong.stderr);
    assert!(!wrong.status.success() && said.contains("KAGE_RUNNER_DISK_HARD_PERCENT"), "{said}");
}
