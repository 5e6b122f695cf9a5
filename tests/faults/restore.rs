//! A restore that is killed at one moment after the other, a backup of an older schema, and repositories that are not as usual.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use kage::backup::make::{self, Installation};
use kage::backup::seal::Recipients;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use sqlx::{AssertSqlSafe, Connection as _, PgConnection};

use crate::backup::{backup, manifest, refused, wipe};
use crate::support::TestKage;
use crate::support::git::{git, git_bytes};
use crate::support::released::{load, lost, migrate_to, newest, released, rows};
use crate::support::tasks::{shell, string};

const ROLES: [&[&str]; 7] =
    [&["serve"], &["api"], &["runner"], &["sequencer"], &["retention"], &["migrate"], &["key", "list"]];

/// Holds a restore at a statement, in the database itself.
struct Hold {
    connection: PgConnection,
}

impl Hold {
    /// At the first statement of this kind for which the condition holds; with `rows`, only where a task is there.
    async fn at(world: &TestKage, condition: &str, with_rows: bool) -> Self {
        let url = &world.settings["KAGE_DATABASE_URL"];
        let mut connection = PgConnection::connect(url).await.expect("connects");
        let wait = "PERFORM pg_advisory_lock(77); PERFORM pg_advisory_unlock(77);";
        let body = if with_rows {
            format!(
                "IF to_regclass('public.tasks') IS NOT NULL THEN IF EXISTS (SELECT FROM public.tasks) THEN {wait} END IF; END IF;"
            )
        } else {
            wait.to_owned()
        };
        let made = format!(
            "CREATE SCHEMA IF NOT EXISTS hold;
             CREATE OR REPLACE FUNCTION hold.here() RETURNS event_trigger LANGUAGE plpgsql AS $$
             BEGIN IF {condition} THEN {body} END IF; END $$;
             CREATE EVENT TRIGGER hold ON ddl_command_end EXECUTE FUNCTION hold.here();
             SELECT pg_advisory_lock(77)"
        );
        sqlx::raw_sql(AssertSqlSafe(made)).execute(&mut connection).await.expect("a trigger");
        Self { connection }
    }

    /// Until it is held there.
    async fn reached(&mut self, restore: &mut Child) {
        let deadline = Instant::now() + Duration::from_secs(120);
        loop {
            let waits: bool = sqlx::query_scalar(
                "SELECT EXISTS (SELECT FROM pg_locks WHERE locktype = 'advisory' AND objid = 77 AND NOT granted
                                AND database = (SELECT oid FROM pg_database WHERE datname = current_database()))",
            )
            .fetch_one(&mut self.connection)
            .await
            .expect("looks");
            if waits {
                return;
            }
            assert!(restore.try_wait().expect("our child").is_none(), "the restore was not held");
            assert!(Instant::now() < deadline, "the restore never came there");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    async fn release(mut self) {
        let gone = "SELECT pg_advisory_unlock(77); DROP EVENT TRIGGER hold";
        sqlx::raw_sql(gone).execute(&mut self.connection).await.expect("gone");
        self.connection.close().await.expect("closed");
    }
}

/// Begins a restore, and kills it where it is held.
async fn killed_at(world: &TestKage, args: &[&str], condition: &str, with_rows: bool) {
    let mut hold = Hold::at(world, condition, with_rows).await;
    let mut restore =
        world.server_command(args).stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("kage starts");
    hold.reached(&mut restore).await;
    restore.kill().expect("killed");
    restore.wait().expect("our child");
    hold.release().await;
}

/// What a command said that had to end by itself, and fail.
fn ended(world: &TestKage, args: &[&str]) -> String {
    let log = world.folder.join("ended.log");
    let file = fs::File::create(&log).expect("a file");
    let mut child =
        world.server_command(args).stdout(Stdio::null()).stderr(file).spawn().expect("kage starts");
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        if let Some(status) = child.try_wait().expect("our child") {
            let said = fs::read_to_string(&log).expect("a log");
            assert!(!status.success(), "{args:?} was not refused: {said}");
            return said;
        }
        if Instant::now() > deadline {
            child.kill().expect("killed");
            child.wait().expect("our child");
            panic!("{args:?} started: {}", fs::read_to_string(&log).expect("a log"));
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Nobody works with what is half restored, and each says what to do.
fn assert_nobody_starts(world: &TestKage) {
    for args in ROLES {
        let said = ended(world, args);
        let last = said.lines().last().unwrap_or_default();
        assert!(last.contains("has not ended") && last.contains("`kage restore`"), "{args:?}: {said}");
    }
}

/// Sources whose mirrors are not as usual.
async fn unusual(world: &TestKage) {
    let source = world.demo().await;
    let url = format!("file://{}", source.display());
    fs::write(source.join("more"), "more").expect("written");
    crate::support::git::commit_all(&source, "More");
    git(&world.sources, ["clone", "--quiet", "--depth", "1", &url, "shallow"]);
    fs::create_dir(world.sources.join("empty")).expect("made");
    git(&world.sources.join("empty"), ["init", "--quiet", "--initial-branch", "main"]);
    let odd = world.make_repository("odd", &[("a", b"a")]);
    for name in [
        "refs/heads/\u{fc}n\u{ef}\u{1f980}".as_bytes(),
        b"refs/heads/$(id);'|&%41",
        b"refs/heads/-f",
        b"refs/heads/UPPER/lower/@",
    ] {
        git(&odd, [OsStr::new("update-ref"), OsStr::from_bytes(name), OsStr::new("HEAD")]);
    }
    for name in ["shallow", "empty", "odd"] {
        let repository = world.register(name, &world.sources.join(name)).await;
        assert_eq!(repository["state"], "ready", "{repository}");
    }
    assert!(world.mirror("shallow").join("shallow").exists());
    // A fetch takes no name that is no UTF-8; a backup leaves none out.
    let no_text = OsStr::from_bytes(b"refs/heads/caf\xe9");
    git(&world.mirror("odd"), [OsStr::new("update-ref"), no_text, OsStr::new("refs/upstream/heads/main")]);
}

/// Every ref byte by byte, and where history is cut.
fn mirrors(world: &TestKage) -> Vec<(Vec<u8>, Vec<u8>)> {
    let of = |name: &str| {
        let mirror = world.mirror(name);
        let format: [OsString; 2] =
            ["for-each-ref".into(), "--format=%(objectname) %(refname) %(symref)".into()];
        git(&mirror, ["fsck", "--strict"]);
        (git_bytes(&mirror, format), fs::read(mirror.join("shallow")).unwrap_or_default())
    };
    ["demo", "shallow", "empty", "odd"].map(of).into()
}

/// The restore of the audit entry, as it stood in the data folder.
async fn note_of(world: &TestKage) -> String {
    let statement = "SELECT details ->> 'restore' FROM audit_entries WHERE action = 'backup.restore'";
    sqlx::query_scalar(statement).fetch_one(world.pool()).await.expect("an entry")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restore_that_is_killed_is_begun_anew_or_goes_on() {
    let mut world = TestKage::serving(&[]).await;
    unusual(&world).await;
    let done = string(&world.run(&shell("echo one > a")).await["id"]).to_owned();
    let dir = world.folder.join("backups").display().to_string();
    let earlier = backup(&world, &[&dir]);
    backup(&world, &[&dir]);
    let before = (mirrors(&world), world.task(&done).await);
    assert!(world.process(0).terminate().await.success());
    wipe(&world).await;

    let restore = ["restore", &dir];
    let made = "TG_TAG = 'CREATE TABLE' AND to_regclass('public.restore_under_way') IS NOT NULL";
    killed_at(&world, &restore, made, false).await;
    // Nothing had begun yet. From here on something has.
    let migrating = "TG_TAG = 'CREATE TABLE' AND to_regclass('public.model_grants') IS NOT NULL";
    killed_at(&world, &restore, migrating, false).await;
    assert_nobody_starts(&world);
    killed_at(&world, &restore, "TG_TAG = 'ALTER TABLE'", true).await;
    assert!(world.data.join("repos.restoring").exists() && !world.data.join("repos").exists());
    assert_nobody_starts(&world);
    let last = "TG_TAG = 'DROP TABLE' AND to_regclass('public.restore_under_way') IS NULL";
    killed_at(&world, &restore, last, true).await;
    assert!(world.data.join("repos").exists() && !world.data.join("repos.restoring").exists());
    assert_nobody_starts(&world);

    // All rows are there now: it goes on, with the same backup and the same folder.
    let name = string(&earlier["backup"]);
    assert!(refused(&world, &["restore", &dir, "--backup", name]).contains("go on with --backup"));
    let mut elsewhere = world.server_command(&restore);
    let output = elsewhere.env("KAGE_DATA_DIR", world.folder.join("second")).output().expect("kage starts");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && said.contains(&world.data.display().to_string()), "{said}");
    world.host(&restore);

    // Killed after its end, and before its note was gone.
    fs::write(world.data.join("restoring"), note_of(&world).await).expect("written");
    assert!(refused(&world, &restore).contains("was restored to its end"));
    world.start("serve").await;
    assert!(!world.data.join("restoring").exists());
    assert_eq!((mirrors(&world), world.task(&done).await), before);
    assert_eq!(world.run(&shell("echo two > b")).await["status"], "completed");
    for name in ["shallow", "empty", "odd"] {
        assert_eq!(world.post(&format!("/api/v1/repositories/{name}/fetch"), &json!({})).await.status, 202);
        assert_eq!(world.fetched(name).await["state"], "ready", "{name}");
    }
}

/// The same backup, as a release that is to come would have made it.
fn forge_newer(folder: &Path, name: &str) {
    let mut newer = manifest(folder, name);
    newer["schema"] = json!(9999);
    newer["kage"] = json!("99.0.1");
    newer["number"] = json!(2);
    let bytes = serde_json::to_vec_pretty(&newer).expect("JSON");
    let hash: String = Sha256::digest(&bytes).iter().map(|byte| format!("{byte:02x}")).collect();
    let forged = format!("000002-20260101T000000Z-{hash}");
    fs::write(folder.join(format!("backups/{forged}.json")), bytes).expect("written");
    fs::write(folder.join("latest"), forged).expect("written");
}

/// Tables in which what had not ended leaves its traces.
const SETTLED: [&str; 6] =
    ["runs: ", "tasks: ", "attempts: ", "model_grants: ", "audit_queue: ", "key_days: "];

#[tokio::test]
async fn a_backup_of_an_older_schema_goes_through_it() {
    let world = TestKage::unmigrated().await;
    for version in released() {
        migrate_to(&world, version).await;
        load(&world, version).await;
    }
    migrate_to(&world, 24).await;
    let folder = world.folder.join("backups");
    let before = rows(world.pool()).await;
    let installation = Installation { pool: world.pool(), data_dir: &world.data, instance: "old" };
    // Its repository is in no fixture.
    let wish = make::Wish { recipients: Recipients::default(), allow_missing: true };
    let made = make::make(&installation, &folder, wish).await.expect("a backup");
    wipe_database(&world).await;
    let dir = folder.display().to_string();
    let restore = ["restore", dir.as_str(), "--backup", &made.name];

    forge_newer(&folder, &made.name);
    let said = refused(&world, &["restore", &dir]);
    assert!(said.contains("newer than this program") && said.contains("99.0.1"), "{said}");
    // Rows of before do not fit a schema of after; what was tried leaves nothing.
    world.host(&["migrate"]);
    assert!(refused(&world, &restore).contains("in which nobody has migrated"));
    world.host(&["key", "list"]);
    wipe_database(&world).await;

    // All rows are there, and the schema goes forward.
    killed_at(&world, &restore, "TG_TAG = 'CREATE FUNCTION'", true).await;
    assert_nobody_starts(&world);
    let restored = world.host(&[&restore[..], &["--json"]].concat());
    let restored: Value = serde_json::from_str(&restored).expect("JSON");
    assert!(restored["runs"]["lost"].as_u64().expect("a number") > 0, "{restored}");
    world.host(&["key", "list"]);
    let applied: i64 = sqlx::query_scalar("SELECT max(version) FROM _sqlx_migrations")
        .fetch_one(world.pool())
        .await
        .expect("reads");
    assert_eq!(applied, newest().await);
    let mut gone = lost(&before, &rows(world.pool()).await);
    let left_out = ["runners: ", "sessions: ", "sign_ins: "];
    gone.retain(|row| !SETTLED.iter().chain(&left_out).any(|table| row.starts_with(table)));
    assert_eq!(gone, [""; 0]);
    let unfinished: i64 = sqlx::query_scalar("SELECT count(*) FROM runs WHERE finished_at IS NULL")
        .fetch_one(world.pool())
        .await
        .expect("counts");
    assert_eq!(unfinished, 0);
}

async fn wipe_database(world: &TestKage) {
    let wiped = sqlx::raw_sql("DROP SCHEMA public CASCADE; CREATE SCHEMA public").execute(world.pool()).await;
    wiped.expect("an empty database");
}

/// Who makes backups may read what is in one, and say that it did.
#[tokio::test]
async fn backups_are_made_by_a_role_that_changes_nothing() {
    let world = TestKage::new().await;
    let may: Vec<(String, String)> = sqlx::query_as(
        "SELECT c.relname::text, p.name FROM pg_class c,
                unnest(ARRAY['SELECT', 'INSERT', 'UPDATE', 'DELETE', 'TRUNCATE', 'REFERENCES', 'TRIGGER']) AS p (name)
         WHERE c.relnamespace = 'public'::regnamespace AND c.relkind IN ('r', 'p') AND NOT c.relispartition
           AND has_table_privilege('kage_backup', c.oid, p.name) <> (p.name = 'SELECT') ORDER BY 1, 2",
    )
    .fetch_all(world.pool())
    .await
    .expect("reads");
    let exceptions = [
        ("audit_entries", "INSERT"),
        ("backup_name_key", "INSERT"),
        ("runners", "SELECT"),
        ("sessions", "SELECT"),
        ("sign_ins", "SELECT"),
    ];
    let may: Vec<(&str, &str)> = may.iter().map(|(table, right)| (table.as_str(), right.as_str())).collect();
    assert_eq!(
        may, exceptions,
        "every table is read but the last three, and nothing is written but the first two"
    );

    let login = format!("{}_backup", world.name);
    let role = format!("CREATE ROLE {login} LOGIN IN ROLE kage_backup");
    sqlx::raw_sql(AssertSqlSafe(role)).execute(world.pool()).await.expect("a role");
    let mut url = url::Url::parse(&world.settings["KAGE_DATABASE_URL"]).expect("a URL");
    url.set_username(&login).expect("a name");
    let dir = world.folder.join("backups").display().to_string();
    let as_it = |args: &[&str]| {
        world.server_command(args).env("KAGE_DATABASE_URL", url.as_str()).output().expect("kage starts")
    };
    for args in [&["backup", &dir][..], &["backup", "verify", &dir], &["backup", &dir]] {
        let output = as_it(args);
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && !said.contains("audit trail"), "{args:?}: {said}");
    }
    let pruned = as_it(&["backup", "prune", &dir, "--keep", "1", "--json"]);
    assert!(pruned.status.success(), "{}", String::from_utf8_lossy(&pruned.stderr));
    let pruned: Value = serde_json::from_slice(&pruned.stdout).expect("JSON");
    assert_eq!(
        (pruned["removed"].as_array().map(Vec::len), pruned["dry_run"].as_bool()),
        (Some(1), Some(false))
    );
    world.host(&["backup", "verify", &dir]);
    let actions: Vec<String> =
        sqlx::query_scalar("SELECT action FROM audit_entries WHERE action LIKE 'backup.%' ORDER BY at")
            .fetch_all(world.pool())
            .await
            .expect("entries");
    assert_eq!(actions, ["make", "verify", "make", "prune", "verify"].map(|what| format!("backup.{what}")));

    let mut connection = PgConnection::connect(url.as_str()).await.expect("connects");
    for (kind, action) in [
        ("host", "backup.restore"),
        ("host", "key.create"),
        ("key", "backup.make"),
        ("retention", "retention.let_go"),
    ] {
        let entry = format!(
            "INSERT INTO audit_entries (actor_kind, action, object, outcome, details)
             VALUES ('{kind}', '{action}', 'backup:x', 'done', '{{}}')"
        );
        let refused = sqlx::query(AssertSqlSafe(entry)).execute(&mut connection).await;
        let refused = refused.expect_err("it speaks of backups alone").to_string();
        assert!(refused.contains("may not write an audit entry"), "{refused}");
    }
    // What comes later is in the next backup.
    sqlx::raw_sql("CREATE TABLE later (x integer)").execute(world.pool()).await.expect("made");
    sqlx::raw_sql("SELECT * FROM later").execute(&mut connection).await.expect("is read");
    connection.close().await.expect("closed");
    let dropped = format!("DROP OWNED BY {login}; DROP ROLE {login}");
    sqlx::raw_sql(AssertSqlSafe(dropped)).execute(world.pool()).await.expect("drops");
}
