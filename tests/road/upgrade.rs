//! Databases of released versions go forward, with their rows in them and the roles of their time at work.

use std::process::Stdio;

use kage::cli::sequencer_key;
use kage::db::Zone;
use kage::sequencer::batch::Sequencer;
use kage::sequencer::keep::Keys;
use kage::trail::checkpoint::Checkpoint;
use kage::trail::note::Kind;
use secrecy::ExposeSecret as _;
use serde_json::json;
use sqlx::Connection as _;

use crate::support::released::{load, lost, migrate_to, newest, released, rows};
use crate::support::{TestKage, eventually};
use crate::upgrade_load::{Load, pool};

/// The root of the trail of all entries in the fixtures up to 0019, as that release computed it.
const ROOT_OF_0019: &str = "78f965e02decf8283edc82ac797f2ebeb2427e3c7f36074080544917b448f25b";

const DONE: &str = "01900000-0000-7000-8000-000000000001";
const FAILED: &str = "01900000-0000-7000-8000-000000000002";
const WAITS: &str = "01900000-0000-7000-8000-000000000003";
const AT_WORK: &str = "01900000-0000-7000-8000-000000000004";

/// An installation that has lived through every release up to this one.
async fn installation(last: i64) -> TestKage {
    let mut kage = TestKage::unmigrated().await;
    for version in released().into_iter().filter(|version| *version <= last) {
        migrate_to(&kage, version).await;
        load(&kage, version).await;
        if version == 19 {
            sequenced(&kage).await;
        }
        let empty: Vec<String> = rows(kage.pool())
            .await
            .into_iter()
            .filter(|(_, rows)| rows.is_empty())
            .map(|(table, _)| table)
            .collect();
        assert_eq!(empty, [""; 0], "the fixture of {version} has no row for these");
    }
    for key in ["Released04", "Released19"] {
        let (sha256, shown) = kage::domain::api_key::renew(key);
        let statement = "UPDATE api_keys SET secret_sha256 = $1 WHERE id = $2";
        let known =
            sqlx::query(statement).bind(&sha256[..]).bind(key).execute(kage.pool()).await.expect("updates");
        if known.rows_affected() == 1 && kage.key.is_empty() {
            kage.key = shown.expose_secret().to_owned();
        }
    }
    kage
}

/// All entries but one get their places, as `kage sequencer` gave them, and a witness has signed.
async fn sequenced(kage: &TestKage) {
    let key = sequencer_key::generate("kage.local/audit", Kind::Log).expect("a key");
    let path = sequencer_key::path(&kage.data);
    std::fs::create_dir_all(path.parent().expect("a folder")).expect("mkdir");
    sequencer_key::write(&path, &key).expect("writes");
    let verifier = key.verifier();
    let pool = pool(kage, Zone::Sequencer).await;
    let mut sequencer = Sequencer::new(pool.clone(), Keys::new(key, Vec::new()), 1000, Vec::new());
    let step = sequencer.step().await.expect("steps").expect("entries");
    assert_eq!(step.size, 302);
    let checkpoint: Checkpoint = kage::trail::checkpoint::open(&step.note, &verifier).expect("its own");
    let root: String = checkpoint.root.iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(
        root, ROOT_OF_0019,
        "entries of older releases have another form now: no trail of theirs would hold"
    );
    pool.close().await;
    sqlx::raw_sql(
        "INSERT INTO audit_cosignatures (size, witness, line, signed_at) VALUES
             (302, 'w.example', '— w.example AAAAAAAA', '2026-02-02 11:00+00');
         INSERT INTO audit_entries (id, at, actor_kind, action, object, outcome, details) VALUES
             ('01900000-0000-7000-8004-000000010003', '2026-02-02 11:00+00', 'host', 'key.revoke', 'key:Revoked004', 'done', '{}')",
    )
    .execute(kage.pool())
    .await
    .expect("inserts");
}

/// Migrates while old roles work and something like a dump looks at every table.
async fn upgraded(last: i64) -> TestKage {
    let kage = installation(last).await;
    let before = rows(kage.pool()).await;
    let load = Load::start(&kage).await;
    load.commits(20).await;

    let mut dump = sqlx::PgConnection::connect(&kage.settings["KAGE_DATABASE_URL"]).await.expect("connects");
    let mut reading = dump.begin().await.expect("begins");
    for table in before.keys() {
        let statement = sqlx::AssertSqlSafe(format!("SELECT FROM {table} LIMIT 1"));
        sqlx::raw_sql(statement).execute(&mut *reading).await.expect("reads");
    }
    let log = kage.folder.join("migrate.log");
    let file = std::fs::File::create(&log).expect("a file");
    let mut command = kage.server_command(&["migrate"]);
    let mut migrating = command.stdout(Stdio::null()).stderr(file).spawn().expect("kage starts");
    let said = |wanted: &str| std::fs::read_to_string(&log).is_ok_and(|log| log.contains(wanted));
    eventually("the migration is held up", async || said("db.migration_held_up").then_some(())).await;
    // It waits for the dump; nobody waits for it.
    load.commits(20).await;
    assert!(migrating.try_wait().expect("our child").is_none(), "it did not wait");
    reading.rollback().await.expect("ends");
    let migrated = tokio::task::spawn_blocking(move || migrating.wait().expect("our child"));
    assert!(
        migrated.await.expect("no panic").success(),
        "{}",
        std::fs::read_to_string(&log).unwrap_or_default()
    );
    load.commits(20).await;
    let figures = load.end().await;
    let (all, longest): (i64, i64) = sqlx::query_as(
        "SELECT sum(execution_time)::bigint / 1000000, max(execution_time) / 1000000 FROM _sqlx_migrations WHERE version > $1",
    )
    .bind(last)
    .fetch_one(kage.pool())
    .await
    .expect("reads");
    eprintln!("from {last:04}: {figures}; the migrations took {all} ms, the longest {longest} ms");

    let applied: i64 = sqlx::query_scalar("SELECT max(version) FROM _sqlx_migrations")
        .fetch_one(kage.pool())
        .await
        .expect("reads");
    assert_eq!(applied, newest().await);
    assert_eq!(lost(&before, &rows(kage.pool()).await), [""; 0]);
    kage
}

/// What is outside of the database is not in the fixture: the repository and the image.
async fn put_right(kage: &mut TestKage) {
    let source = kage.make_repository("old", &[("README.md", b"# old\n")]);
    let key = kage.key.clone();
    kage.equip();
    kage.key = key;
    for (statement, value) in [
        ("UPDATE repositories SET source = $1 WHERE name = 'old'", source.to_str().expect("UTF-8")),
        (
            "UPDATE runs SET image_digest = (SELECT digest FROM cli_images WHERE name = $1), not_before = 'infinity'
             WHERE state = 'queued'",
            "shell",
        ),
    ] {
        sqlx::query(statement).bind(value).execute(kage.pool()).await.expect("updates");
    }
}

async fn serves_what_it_had(kage: &TestKage) {
    let done = kage.task(DONE).await;
    let run = &done["runs"][0];
    let state = (&done["status"], &run["state"], &run["attempt"]);
    assert_eq!(state, (&json!("completed"), &json!("succeeded"), &json!(1)), "{done}");
    let events = kage.events(DONE, "").await;
    let numbers: Vec<i64> = events.iter().filter_map(|event| event.id).collect();
    assert_eq!(numbers, (1..=10).collect::<Vec<i64>>(), "{events:#?}");
    let of_run = |what: &str| format!("/api/v1/tasks/{DONE}/runs/shell/{what}");
    assert_eq!(kage.get(&of_run("log")).await.text(), "one\ntwo\nend\n");
    assert!(kage.get(&of_run("diff")).await.text().contains("+hello"));
    let files = kage.get(&of_run("files")).await.json();
    assert_eq!(
        (&files["files"][0]["path"], &files["warnings"][0]),
        (&json!("greeting"), &json!("a link was left out"))
    );
    let failed = kage.task(FAILED).await;
    let run = &failed["runs"][0];
    assert_eq!(
        (&run["state"], &run["usage"]["calls"]),
        (&json!("budget_exhausted"), &json!(100)),
        "{failed}"
    );
    let listed = kage.get("/api/v1/tasks?status=completed&page_size=1").await.json();
    assert!(listed["total"].as_u64() >= Some(501), "{listed}");
}

async fn goes_on(kage: &TestKage) {
    assert_eq!(kage.post("/api/v1/repositories/old/fetch", &json!({})).await.status, 202);
    assert_eq!(kage.fetched("old").await["state"], "ready");
    let statement = "UPDATE runs SET not_before = now() WHERE state = 'queued'";
    sqlx::query(statement).execute(kage.pool()).await.expect("updates");
    let waited = kage.ended(WAITS).await;
    assert_eq!(waited["status"], "completed", "{waited}");
    // Its runner is gone for good, and it was not to be tried again.
    let lost = kage.ended(AT_WORK).await;
    assert_eq!(
        (&lost["runs"][0]["state"], &lost["runs"][0]["attempt"]),
        (&json!("lost"), &json!(1)),
        "{lost}"
    );
    let verified = eventually("every entry has its place", async || {
        let said = kage.host(&["audit", "verify"]);
        said.contains("; 0 wait").then_some(said)
    })
    .await;
    assert!(verified.contains("are what their checkpoints say"), "{verified}");
}

async fn goes_forward_from(last: i64) {
    let mut kage = upgraded(last).await;
    put_right(&mut kage).await;
    kage.start("serve").await;
    serves_what_it_had(&kage).await;
    goes_on(&kage).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_oldest_schema_goes_forward_under_load() {
    goes_forward_from(released()[0]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_last_released_schema_goes_forward_under_load() {
    let last = released().pop().expect("one");
    if last == newest().await {
        eprintln!("no migration has come since {last:04}: its rows were looked at, and go nowhere");
        drop(installation(last).await);
        return;
    }
    goes_forward_from(last).await;
}
