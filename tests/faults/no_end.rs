//! Runs that cannot come to an end in the ordinary way come to one all the same.

use crate::support::eventually;
use crate::support::tasks::{shell, string};
use crate::world::apart;

/// The database refuses a result, whenever it is tried.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_result_that_the_database_never_takes() {
    let (kage, _) = apart(&[]).await;
    sqlx::query("ALTER TABLE run_results ADD CONSTRAINT never CHECK (patch_truncated) NOT VALID")
        .execute(kage.pool())
        .await
        .expect("alters");
    let task = kage.run(&shell("echo x > result")).await;
    let run = &task["runs"][0];
    assert_eq!((&task["status"], &run["state"]), (&"failed".into(), &"sandbox_error".into()), "{task}");
    let error = string(&run["error"]);
    assert!(error.starts_with("its end could not be written down: ") && error.contains("never"), "{error}");
    assert_eq!(run["decided_by"], "the database");
    assert_eq!(run["attempt"], 1);
    eventually("its folder is gone", || async {
        crate::support::leftovers::run_folders(&kage.folder).is_empty().then_some(())
    })
    .await;
}

/// Whatever ends the runner each time that it sets about an attempt does so a few times only.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_attempt_that_ends_its_runner_each_time() {
    let (mut kage, roles) = apart(&[]).await;
    let task = kage.submit(&shell("echo begun; sleep 600")).await;
    let id = string(&task["id"]);
    kage.says(id, "shell", "begun").await;
    kage.process(roles.runner).kill_9();
    // As if it had always ended while it prepared, and once more now.
    sqlx::query("UPDATE runs SET state = 'preparing' WHERE task_id = $1::uuid")
        .bind(id)
        .execute(kage.pool())
        .await
        .expect("updates");
    sqlx::query("UPDATE attempts SET starts = 20").execute(kage.pool()).await.expect("updates");
    kage.start("runner").await;
    let task = kage.ended(id).await;
    let run = &task["runs"][0];
    assert_eq!((&run["state"], &run["attempt"]), (&"sandbox_error".into(), &1.into()), "{task}");
    assert!(string(&run["error"]).contains("its runner ended 20 times"), "{run}");
    assert!(kage.containers().is_empty());
}
