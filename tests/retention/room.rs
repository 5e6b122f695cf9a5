//! A disk that fills: first nothing new is begun, then what nobody uses goes.

use std::time::Duration;

use serde_json::{Value, json};

use crate::copies::entries;
use crate::support::git::git;
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
    let (old, young) = (kage.run(&shell("echo x > x")).await, kage.run(&shell("echo y > y")).await);
    assert_eq!((&old["status"], &young["status"]), (&"completed".into(), &"completed".into()));
    let [old, young] = [&old, &young].map(|task| string(&task["id"]).to_owned());
    let ready = disk_says(&kage, true).await;
    assert_eq!((&ready["ready"], bases(&kage)), (&true.into(), 1), "{ready}");
    assert!(kage.process(runner).terminate().await.success());

    // Its results are let go while no runner is there: the branch is the next one's to remove.
    let listed = ["for-each-ref", "--format=%(refname:short)", "refs/heads"];
    assert_eq!(git(&kage.mirror("demo"), listed), format!("task-{old}-shell\ntask-{young}-shell"));
    sqlx::query("UPDATE tasks SET completed_at = now() - interval '3 days' WHERE id = $1::uuid")
        .bind(&old)
        .execute(kage.pool())
        .await
        .expect("the owner may");
    let days = [("KAGE_RETENTION_RESULTS_DAYS", "2"), ("KAGE_RETENTION_POLL_SECS", "1")];
    kage.spawn_with("retention", &days);
    eventually("they are let go", async || entries(kage.pool(), "retention.let_go").await.pop()).await;

    // Marks above what is free of any file system.
    let low = [("KAGE_RUNNER_DISK_SOFT_PERCENT", "99"), ("KAGE_RUNNER_DISK_HARD_PERCENT", "99")];
    let runner = kage.start_with("runner", &low).await;
    let ready = disk_says(&kage, false).await;
    assert_eq!((&ready["ready"], &ready["degraded"]), (&true.into(), &true.into()), "{ready}");
    let detail = string(&ready["dependencies"]["disk"]["detail"]);
    assert!(detail.contains("less than 99 %: no new run is begun") && !detail.contains('/'), "{detail}");
    let waits = kage.submit(&shell("echo z > z")).await;
    let waits = string(&waits["id"]).to_owned();
    eventually("the checkout goes", async || (bases(&kage) == 0).then_some(())).await;
    let told = eventually("it is told", async || entries(kage.pool(), "retention.bases").await.pop()).await;
    assert_eq!(
        (&told["what"], &told["rule"], &told["bases"]),
        (&"bases".into(), &"size".into(), &1.into()),
        "{told}"
    );
    eventually("the branch goes", async || {
        (git(&kage.mirror("demo"), listed) == format!("task-{young}-shell")).then_some(())
    })
    .await;
    let told = entries(kage.pool(), "retention.branches").await;
    assert_eq!(told[0]["branches"], json!([format!("task-{old}-shell")]));
    // The submission woke the runner; it looks every two seconds besides.
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(kage.task(&waits).await["runs"][0]["state"], "queued");
    assert!(kage.process(runner).log_says("runner.disk_low"));
    assert!(kage.process(runner).terminate().await.success());

    // With room again, what waited is run, and nothing was lost.
    kage.start("runner").await;
    disk_says(&kage, true).await;
    assert_eq!(kage.ended(&waits).await["status"], "completed");
    kage.process(api).assert_alive();
}
