//! Postgres goes away between two steps of a role's start: it is waited for there as at the beginning, and nobody raises an alarm.

use sqlx::{AssertSqlSafe, PgConnection, PgPool};

use crate::proxy::{Proxy, Weather};
use crate::support::{TestKage, eventually};

/// A step that waits for a lock of the test's: the database goes away while a role is in the middle of it.
const HOLD: &str = "
CREATE FUNCTION held() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_advisory_xact_lock_shared(CASE NEW.action WHEN 'role.start' THEN 1 ELSE 2 END);
    RETURN NEW;
END $$;
CREATE TRIGGER held BEFORE INSERT ON audit_entries FOR EACH ROW
    WHEN (NEW.action IN ('role.start', 'runner.host')) EXECUTE FUNCTION held()";
const BY_ADVICE: &str =
    "SELECT pid FROM pg_locks WHERE NOT granted AND locktype = 'advisory' AND objid = $1 AND database =
     (SELECT oid FROM pg_database WHERE datname = current_database())";
const BY_TABLE: &str =
    "SELECT pid FROM pg_locks WHERE NOT granted AND locktype = 'relation' AND $1 = 0 AND database =
     (SELECT oid FROM pg_database WHERE datname = current_database())";

async fn run(connection: &mut PgConnection, statement: &str) {
    sqlx::raw_sql(AssertSqlSafe(statement.to_owned())).execute(connection).await.expect(statement);
}

/// Whoever waits for the lock.
async fn waiter(pool: &PgPool, waiters: &'static str, lock: i64) -> i32 {
    eventually("somebody waits for the lock", async || {
        sqlx::query_scalar(waiters).bind(lock).fetch_optional(pool).await.expect("looks")
    })
    .await
}

async fn break_connection(pool: &PgPool, pid: i32) {
    sqlx::query("SELECT pg_terminate_backend($1)").bind(pid).execute(pool).await.expect("ends it");
}

/// Takes the database away from who waits for the lock.
async fn take_away(pool: &PgPool, proxy: &Proxy, waiters: &'static str, lock: i64) {
    let pid = waiter(pool, waiters, lock).await;
    proxy.set(Weather { is_refusing: true, ..Weather::default() });
    proxy.cut();
    // The server would see only later that nobody is there any more.
    break_connection(pool, pid).await;
}

/// Until a role has said so often that it waits.
async fn waits(kage: &mut TestKage, process: usize, times: usize) {
    eventually("it waits for its database", async || {
        kage.process(process).assert_alive();
        (kage.process(process).log().matches("waiting for the database").count() >= times).then_some(())
    })
    .await;
}

async fn count(pool: &PgPool, statement: &'static str) -> i64 {
    sqlx::query_scalar(statement).fetch_one(pool).await.expect("counts")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_runner_waits_for_it_at_every_step_of_its_start() {
    let mut kage = TestKage::new().await;
    let pool = kage.pool().clone();
    let (proxy, url) = Proxy::before_postgres(&kage.settings["KAGE_DATABASE_URL"]);
    kage.set("KAGE_DATABASE_URL", &url);
    kage.set("KAGE_DATABASE_ACQUIRE_SECS", "2");
    let mut holder = pool.acquire().await.expect("a connection");
    run(&mut holder, HOLD).await;
    run(&mut holder, "SELECT pg_advisory_lock(1), pg_advisory_lock(2)").await;

    // Who is to wait no time ends, and says why once.
    let hasty = kage.spawn_with("runner", &[("KAGE_DATABASE_START_SECS", "0")]);
    take_away(&pool, &proxy, BY_ADVICE, 1).await;
    assert_eq!(kage.process(hasty).wait().await.code(), Some(1));
    let log = kage.process(hasty).log();
    let last = log.lines().last().expect("a last line");
    assert!(
        last.starts_with("kage: runner: its start cannot be put into the audit trail: the database"),
        "{last}"
    );
    proxy.set(Weather::default());

    let runner = kage.spawn_with("runner", &[]);
    for step in [1, 2] {
        take_away(&pool, &proxy, BY_ADVICE, step).await;
        let before = kage.process(runner).log().matches("waiting for the database").count();
        waits(&mut kage, runner, before + 1).await;
        proxy.set(Weather::default());
        sqlx::query("SELECT pg_advisory_unlock($1)").bind(step).execute(&mut *holder).await.expect("lets go");
    }
    kage.ready(runner).await;
    drop(holder);
    for action in ["role.start", "runner.host"] {
        let found: i64 = sqlx::query_scalar(
            "SELECT count(*) FROM audit_entries WHERE action = $1 AND object LIKE '%runner%'",
        )
        .bind(action)
        .fetch_one(&pool)
        .await
        .expect("counts");
        assert_eq!(found, 1, "{action}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sequencer_does_not_take_a_database_that_went_away_for_a_broken_log() {
    let mut kage = TestKage::new().await;
    let pool = kage.pool().clone();
    let (proxy, url) = Proxy::before_postgres(&kage.settings["KAGE_DATABASE_URL"]);
    kage.set("KAGE_DATABASE_URL", &url);
    kage.set("KAGE_DATABASE_ACQUIRE_SECS", "2");
    let mut holder = pool.begin().await.expect("begins");
    run(&mut holder, "LOCK TABLE audit_checkpoints IN ACCESS EXCLUSIVE MODE").await;
    // The database is there again at once: an alarm could be raised.
    let hasty = kage.spawn_with("sequencer", &[("KAGE_DATABASE_START_SECS", "0")]);
    break_connection(&pool, waiter(&pool, BY_TABLE, 0).await).await;
    assert_eq!(kage.process(hasty).wait().await.code(), Some(1));
    let sequencer = kage.spawn_with("sequencer", &[]);
    take_away(&pool, &proxy, BY_TABLE, 0).await;
    waits(&mut kage, sequencer, 1).await;
    proxy.set(Weather::default());
    holder.rollback().await.expect("lets go");
    eventually("it begins", async || {
        (count(&pool, "SELECT count(*) FROM audit_entries WHERE action = 'sequencer.start'").await == 1)
            .then_some(())
    })
    .await;
    assert_eq!(count(&pool, "SELECT count(*) FROM audit_entries WHERE action = 'sequencer.refuse'").await, 0);
    assert_eq!(
        count(&pool, "SELECT count(*) FROM security_events WHERE kind = 'trail.checkpoint_failed'").await,
        0
    );
}
