//! A database that neither works nor is away: it refuses for a while, its connections die without a word, or somebody who holds its rows
//! stands still.

use std::time::Duration;

use kage::db::deadline::within;
use kage::db::error::DbError;
use kage::db::queue;
use sqlx::PgPool;
use uuid::Uuid;

use crate::database::{TestDatabase, claim};
use crate::proxy::Proxy;
use crate::support::tasks::{shell, string};
use crate::support::{TestKage, eventually};
use crate::watcher::Watcher;
use crate::world::{apart, assert_result, numbered};

/// A full disk, and a query that an administrator cancels: neither is the run's fault.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_database_refuses_for_a_while_ends_no_run() {
    let (mut kage, roles) = apart(&[]).await;
    for code in ["53100", "57014"] {
        let task = kage.submit(&shell(&numbered(4_000, 250))).await;
        let id = string(&task["id"]);
        let watcher = Watcher::follow(&kage, id);
        kage.says(id, "shell", "line 1000\n").await;
        let refuse = format!(
            "CREATE OR REPLACE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS
             $$ BEGIN RAISE EXCEPTION 'refused with {code}' USING ERRCODE = '{code}'; END $$;
             CREATE TRIGGER refuse BEFORE INSERT ON events FOR EACH STATEMENT EXECUTE FUNCTION refuse();"
        );
        sqlx::raw_sql(sqlx::AssertSqlSafe(refuse)).execute(kage.pool()).await.expect("refuses");
        let refused = format!("refused with {code}");
        eventually("a write is refused", async || {
            kage.process(roles.runner).log_says(&refused).then_some(())
        })
        .await;
        sqlx::query("DROP TRIGGER refuse ON events").execute(kage.pool()).await.expect("is well again");
        watcher.end().await.assert_lines("shell", 4_000);
        let task = kage.task(id).await;
        assert_result(&kage, &task, 4_000);
        assert_eq!(task["runs"][0]["attempt"], 1, "{task}");
    }
}

/// All connections of a pool die in the middle of a call: its places come back.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_that_died_without_a_word_is_replaced() {
    let db = TestDatabase::new().await;
    let (proxy, url) = Proxy::before_postgres(&db.url());
    let pool = db.pool_through(&url, 2).await;
    let sleep = async |pool: &PgPool, secs: f64| -> Result<(), DbError> {
        sqlx::query("SELECT pg_sleep($1)").bind(secs).execute(pool).await?;
        Ok(())
    };
    let (first, second) = tokio::join!(sleep(&pool, 0.2), sleep(&pool, 0.2));
    first.and(second).expect("two connections");
    let short = Duration::from_secs(2);
    let calls =
        async { tokio::join!(within(short, sleep(&pool, 600.0)), within(short, sleep(&pool, 600.0))) };
    let forget = async {
        tokio::time::sleep(Duration::from_millis(500)).await;
        proxy.forget();
    };
    let ((first, second), ()) = tokio::join!(calls, forget);
    for given_up in [first, second] {
        let error = given_up.expect_err("nothing answers");
        assert!(error.is_transient() && error.to_string().contains("no answer within 2 s"), "{error}");
    }
    let (first, second) = tokio::join!(sleep(&pool, 0.2), sleep(&pool, 0.2));
    first.and(second).expect("two connections again");
    // Those that idle when they die, too.
    proxy.forget();
    let (first, second) = tokio::join!(sleep(&pool, 0.2), sleep(&pool, 0.2));
    first.and(second).expect("two connections again");
    pool.close().await;
    drop(proxy);
    db.remove().await;
}

/// As a runner that is stopped (SIGSTOP) between two statements: the server sees a session that asks nothing more.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_that_stands_still_in_a_transaction_holds_nobody_up_for_ever() {
    let db = TestDatabase::new().await;
    let (old, new) = (Uuid::new_v4(), Uuid::new_v4());
    db.task(1).await;
    let (_, run) = db.begun(old).await;
    db.expire().await;
    let mut still = db.runner.begin().await.expect("begins");
    sqlx::query("SELECT FROM runs WHERE id = $1 FOR UPDATE")
        .bind(run.id)
        .execute(&mut *still)
        .await
        .expect("has the row");
    let mut claiming = db.runner.begin().await.expect("begins");
    // What counted claims take.
    sqlx::query("SELECT pg_advisory_xact_lock($1)")
        .bind(0x6b61_6765_0002_i64)
        .execute(&mut *claiming)
        .await
        .expect("has the lock");
    assert!(queue::claim_abandoned(&db.runner, new, 60, false, &[]).await.expect("asks").is_empty());
    let taken = eventually("the row is free", async || {
        let taken = queue::claim_abandoned(&db.runner, new, 60, false, &[]).await.expect("claims");
        (!taken.is_empty()).then_some(taken)
    })
    .await;
    assert_eq!(taken[0].1.id, run.id);
    db.task(1).await;
    let counted = queue::Claim { of_repository: Some(5), ..claim(new, 1, &[]) };
    assert_eq!(queue::claim_queued(&db.runner, &counted).await.expect("claims").len(), 1);
    // Both wake up: too late.
    for late in [still, claiming] {
        late.commit().await.expect_err("was ended");
    }
    db.remove().await;
}

/// A firewall forgets all connections of a runner at once, in the middle of a write.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "waits for a deadline of 30 s"]
async fn a_run_goes_on_though_all_connections_died() {
    let mut kage = TestKage::new().await;
    let (proxy, url) = Proxy::before_postgres(&kage.settings["KAGE_DATABASE_URL"]);
    kage.start("api").await;
    let runner = kage.start_with("runner", &[("KAGE_DATABASE_URL", &url)]).await;
    kage.demo().await;
    let task = kage.submit(&shell(&numbered(4_000, 250))).await;
    let id = string(&task["id"]);
    let watcher = Watcher::follow(&kage, id);
    kage.says(id, "shell", "line 1000\n").await;
    let slow = "CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_sleep(2); RETURN NULL; END $$;
                CREATE TRIGGER slow BEFORE INSERT ON events FOR EACH STATEMENT EXECUTE FUNCTION slow();";
    sqlx::raw_sql(slow).execute(kage.pool()).await.expect("is slow");
    eventually("a write is under way", async || {
        let writes = "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE datname = current_database() AND wait_event = 'PgSleep')";
        let is_written: bool = sqlx::query_scalar(writes).fetch_one(kage.pool()).await.expect("selects");
        is_written.then_some(())
    })
    .await;
    proxy.forget();
    sqlx::query("DROP TRIGGER slow ON events").execute(kage.pool()).await.expect("is well again");
    watcher.end().await.assert_lines("shell", 4_000);
    let task = kage.task(id).await;
    assert_result(&kage, &task, 4_000);
    assert_eq!(task["runs"][0]["attempt"], 1, "{task}");
    // The next one, too: the loops that claim and renew are not stuck.
    assert_result(&kage, &kage.run(&shell("echo 7 > result")).await, 7);
    assert!(kage.process(runner).terminate().await.success());
}

/// The kernel names mounts by where they are, not by the link that leads there.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_folder_of_runs_may_be_a_link() {
    let mut kage = TestKage::new().await;
    let elsewhere = kage.folder.join("elsewhere");
    std::fs::create_dir(&elsewhere).expect("a folder");
    std::os::unix::fs::symlink(&elsewhere, kage.data.join("runs")).expect("a link");
    kage.start("api").await;
    kage.start("runner").await;
    kage.demo().await;
    assert_result(&kage, &kage.run(&shell("echo 7 > result")).await, 7);
    eventually("its folder goes", async || {
        std::fs::read_dir(&elsewhere).expect("is there").next().is_none().then_some(())
    })
    .await;
}
