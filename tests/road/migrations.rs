//! The schema: made once by whoever comes first, known exactly or not used.

use std::process::Output;

use crate::support::TestKage;
use crate::support::tasks::shell;

async fn migrations(kage: &TestKage) -> Vec<i64> {
    sqlx::query_scalar("SELECT version FROM _sqlx_migrations WHERE success ORDER BY version")
        .fetch_all(kage.pool())
        .await
        .expect("reads")
}

#[tokio::test]
async fn several_that_start_at_once_migrate_once() {
    let mut kage = TestKage::unmigrated().await;
    let commands = (0..6).map(|_| {
        let mut command = kage.server_command(&["migrate"]);
        tokio::task::spawn_blocking(move || command.output().expect("starts"))
    });
    for output in futures::future::join_all(commands).await {
        let output: Output = output.expect("no panic");
        assert!(output.status.success(), "{output:?}");
    }
    let applied = migrations(&kage).await;
    assert!(!applied.is_empty());
    // Again is nothing new.
    kage.host(&["migrate"]);
    assert_eq!(migrations(&kage).await, applied);
    kage.equip();
    kage.start("serve").await;
    kage.demo().await;
    assert_eq!(kage.run(&shell("echo x > x")).await["status"], "completed");
}

#[tokio::test]
async fn roles_that_start_on_an_empty_database_agree() {
    let mut kage = TestKage::unmigrated().await;
    // The first command on an empty database says what to do, and changes nothing.
    let output = kage.server_command(&["key", "list"]).output().expect("starts");
    assert!(!output.status.success());
    assert!(String::from_utf8_lossy(&output.stderr).contains("kage migrate"), "{output:?}");
    let started: Vec<usize> = ["api", "runner"].into_iter().map(|role| kage.spawn_with(role, &[])).collect();
    for index in started {
        kage.ready(index).await;
    }
    kage.equip();
    kage.demo().await;
    assert_eq!(kage.run(&shell("echo x > x")).await["status"], "completed");
}

#[tokio::test]
async fn a_schema_of_another_version_is_not_used() {
    let kage = TestKage::serving(&[]).await;
    assert_eq!(kage.get("/ready").await.status, 200);
    sqlx::query(
        "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time)
         VALUES (99990101000000, 'from the future', true, '\\x00', 0)",
    )
    .execute(kage.pool())
    .await
    .expect("the owner may");
    let ready = kage.get("/ready").await;
    assert_eq!(ready.status, 503);
    let database = &ready.json()["dependencies"]["database"];
    assert_eq!(database["ok"], false);
    assert!(database["detail"].as_str().is_some_and(|detail| detail.contains("kage migrate")), "{database}");
    for args in [&["api"][..], &["runner"], &["migrate"], &["key", "list"], &["image", "list"]] {
        let mut command = kage.server_command(args);
        // An address and a folder of its own: only the schema is in its way.
        command.env("KAGE_API_LISTEN", "127.0.0.1:0").env("KAGE_DATA_DIR", kage.folder.join("second"));
        let output = command.output().expect("starts");
        assert!(!output.status.success(), "{args:?}");
        let said = String::from_utf8_lossy(&output.stderr);
        let last = said.lines().last().unwrap_or_default();
        assert!(
            last.starts_with("kage: ") && (last.contains("migrat") || last.contains("schema")),
            "{args:?}: {said}"
        );
    }
    // Liveness is not readiness.
    assert_eq!(kage.get("/health").await.status, 200);
}
