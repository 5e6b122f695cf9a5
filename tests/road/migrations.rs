//! The schema: made once by whoever comes first, known exactly or not used.

use std::process::Output;

use crate::support::released::{migrate_to, released};
use crate::support::tasks::shell;
use crate::support::{TestKage, eventually};

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

const ROLES: [&str; 7] = ["api", "runner", "gateway", "sequencer", "notifier", "retention", "serve"];

/// Each command must end with status 1 and a last line that says this. An address and a folder of its own: only the schema is in its way.
async fn refused(kage: &TestKage, commands: &[&[&str]], settings: &[(&str, &str)], says: &[&str]) {
    let ended = commands.iter().map(|args| {
        let mut command = kage.server_command(args);
        command.env("KAGE_API_LISTEN", "127.0.0.1:0").env("KAGE_DATA_DIR", kage.folder.join("second"));
        command.envs(settings.iter().copied());
        tokio::task::spawn_blocking(move || command.output().expect("starts"))
    });
    for (args, output) in commands.iter().zip(futures::future::join_all(ended).await) {
        let output = output.expect("no panic");
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{args:?}: {said}");
        let last = said.lines().last().unwrap_or_default();
        assert!(
            last.starts_with("kage: ") && says.iter().all(|words| last.contains(words)),
            "{args:?}: {said}"
        );
    }
}

async fn sql(kage: &TestKage, statement: &'static str) {
    sqlx::query(statement).execute(kage.pool()).await.expect(statement);
}

/// Of a release that is to come, or changed, or torn: nobody starts on it. Who runs goes on, and says so.
#[tokio::test]
async fn a_schema_that_is_not_this_programs_is_not_used() {
    let mut kage = TestKage::new().await;
    let serve = kage.start("serve").await;
    kage.demo().await;
    let said = async |wanted: &str| {
        let ready = kage.get("/ready").await;
        assert_eq!(ready.status, 503);
        let database = &ready.json()["dependencies"]["database"];
        assert_eq!(database["ok"], false);
        let detail = database["detail"].as_str().expect("text");
        assert!(detail.contains(wanted), "{detail}");
        // Liveness is not readiness.
        assert_eq!(kage.get("/health").await.status, 200);
    };
    let roles = ROLES.each_ref().map(std::slice::from_ref);
    let others = [&["migrate"][..], &["key", "list"], &["image", "list"]];
    let all = [&roles[..], &others[..]].concat();
    sql(
        &kage,
        "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time)
         VALUES (99990101000000, 'from the future', true, '\\x00', 0)",
    )
    .await;
    said("it has migration 99990101000000").await;
    refused(&kage, &all, &[], &["newer than this program", "Start the release that migrated it"]).await;
    assert_eq!(kage.run(&shell("echo x > x")).await["status"], "completed");

    sql(&kage, "DELETE FROM _sqlx_migrations WHERE version = 99990101000000").await;
    sql(&kage, "UPDATE _sqlx_migrations SET checksum = '\\x00' WHERE version = 3").await;
    said("migration 3 of the database's schema is another one").await;
    refused(&kage, &all, &[], &["migration 3 ", "another one than this program's", "Start that build"]).await;

    sql(&kage, "UPDATE _sqlx_migrations SET success = version <> 4").await;
    said("migration 4 of the database's schema was begun").await;
    refused(&kage, &all, &[], &["migration 4 ", "has not ended", "restore a backup"]).await;
    eventually("it is said in the log", async || {
        kage.process(serve).log_says("db.schema_replaced").then_some(())
    })
    .await;
}

/// By whom the schema is not: each waits for `kage migrate`, for as long as it was told to, and says so.
#[tokio::test]
async fn roles_that_may_not_migrate_refuse_an_older_schema() {
    let mut kage = TestKage::unmigrated().await;
    migrate_to(&kage, released()[0]).await;
    let login = format!("{}_login", kage.name);
    let made = format!(
        "CREATE ROLE {login} LOGIN IN ROLE kage_api, kage_runner, kage_gateway; GRANT SELECT ON _sqlx_migrations TO {login}"
    );
    sqlx::raw_sql(sqlx::AssertSqlSafe(made)).execute(kage.pool()).await.expect("a role");
    let mut url = url::Url::parse(&kage.settings["KAGE_DATABASE_URL"]).expect("a URL");
    url.set_username(&login).expect("a name");
    let roles = ROLES.each_ref().map(std::slice::from_ref);
    let settings = [("KAGE_DATABASE_URL", url.as_str()), ("KAGE_DATABASE_START_SECS", "1")];
    refused(
        &kage,
        &roles,
        &settings,
        &["older than this program", "it lacks migration 5", "Run `kage migrate`"],
    )
    .await;
    refused(&kage, &[&["key", "list"]], &[], &["older than this program", "Run `kage migrate`"]).await;
    // One that waits begins as soon as somebody has migrated.
    let api = kage.spawn_with("api", &settings[..1]);
    eventually("it waits", async || kage.process(api).log_says("db.schema_missing").then_some(())).await;
    kage.host(&["migrate"]);
    kage.ready(api).await;
    let dropped = format!("DROP OWNED BY {login}; DROP ROLE {login}");
    sqlx::raw_sql(sqlx::AssertSqlSafe(dropped)).execute(kage.pool()).await.expect("drops");
}

/// All of a migration or nothing; the next try goes on from there.
#[tokio::test]
async fn a_migration_that_fails_leaves_nothing_of_itself() {
    let kage = TestKage::unmigrated().await;
    migrate_to(&kage, 4).await;
    sql(&kage, "CREATE TABLE key_days (in_the_way integer)").await;
    refused(&kage, &[&["migrate"]], &[], &["migration 10", "key_days", "Nothing of this migration was kept"])
        .await;
    assert_eq!(migrations(&kage).await, (1..=9).collect::<Vec<i64>>());
    let kept: i64 = sqlx::query_scalar(
        "SELECT count(*) FROM information_schema.columns WHERE table_name = 'api_keys' AND column_name = 'scopes'",
    )
    .fetch_one(kage.pool())
    .await
    .expect("reads");
    assert_eq!(kept, 0);
    sql(&kage, "DROP TABLE key_days").await;
    kage.host(&["migrate"]);
    kage.host(&["key", "list"]);
}
