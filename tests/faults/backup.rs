//! The drill: back up under load, wipe everything, restore, and hold what is there against what was there.

use std::fs;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::process::Output;

use secrecy::ExposeSecret as _;
use serde_json::{Value, json};

use crate::support::git::git;
use crate::support::tasks::{shell, string};
use crate::support::{TestKage, eventually};
use crate::world::numbered;

/// `kage`, whatever comes of it.
fn kage(world: &TestKage, args: &[&str]) -> Output {
    world.server_command(args).output().expect("kage starts")
}

/// What a command said that had to fail.
pub fn refused(world: &TestKage, args: &[&str]) -> String {
    let output = kage(world, args);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success(), "{args:?} was not refused");
    said
}

pub fn backup(world: &TestKage, args: &[&str]) -> Value {
    serde_json::from_str(&world.host(&[&["backup", "--json"], args].concat())).expect("JSON")
}

/// An age identity in a file, and its public key.
fn identity(world: &TestKage) -> (String, String) {
    let identity = age::x25519::Identity::generate();
    let path = world.folder.join("identity");
    fs::write(&path, format!("# made for a test\n{}\n", identity.to_string().expose_secret()))
        .expect("written");
    (path.display().to_string(), identity.to_public().to_string())
}

/// Every answer about a task that has ended, byte by byte.
async fn answers(world: &TestKage, task: &str) -> Vec<(String, String)> {
    let mut all = Vec::new();
    for path in ["", "/progress", "/runs/shell/log", "/runs/shell/diff", "/runs/shell/files"] {
        let path = format!("/api/v1/tasks/{task}{path}");
        let answer = world.get(&path).await;
        let text = answer.text();
        // A stream begins with the time of its connection.
        let text = match text.split_once("\n\n") {
            Some((first, rest)) if first.starts_with("event: connected") => rest,
            _ => &text,
        };
        all.push((path, format!("{} {text}", answer.status)));
    }
    all
}

fn assert_same(before: &[(String, String)], after: &[(String, String)]) {
    assert_eq!(before.len(), after.len());
    for ((path, before), (_, after)) in before.iter().zip(after) {
        assert_eq!(before, after, "{path}");
    }
}

/// The log's last checkpoint, once nothing waits for its place, in a file.
async fn checkpoint(world: &TestKage) -> PathBuf {
    eventually("every entry has its place", async || {
        let waiting: i64 = sqlx::query_scalar("SELECT count(*) FROM audit_queue")
            .fetch_one(world.pool())
            .await
            .expect("the queue");
        (waiting == 0).then_some(())
    })
    .await;
    let note: String = sqlx::query_scalar("SELECT note FROM audit_checkpoints ORDER BY size DESC LIMIT 1")
        .fetch_one(world.pool())
        .await
        .expect("a checkpoint");
    let path = world.folder.join("checkpoint");
    fs::write(&path, note).expect("written");
    path
}

/// Takes database and data folder away. Of the data folder the log's key is kept, as docs/backup.md says.
pub async fn wipe(world: &TestKage) {
    let wiped = sqlx::raw_sql("DROP SCHEMA public CASCADE; CREATE SCHEMA public").execute(world.pool()).await;
    wiped.expect("an empty database");
    empty_folder(world);
}

/// What a new machine has, and the log's key.
fn empty_folder(world: &TestKage) {
    let key = fs::read(world.data.join("sequencer/key")).expect("the log's key");
    fs::remove_dir_all(&world.data).expect("removed");
    for path in [world.data.clone(), world.data.join("sequencer")] {
        fs::DirBuilder::new().mode(0o711).create(path).expect("made");
    }
    fs::write(world.data.join("sequencer/key"), key).expect("written");
}

fn copy(from: &Path, to: &Path) {
    let status = std::process::Command::new("cp").arg("--archive").args([from, to]).status();
    assert!(status.is_ok_and(|status| status.success()));
}

pub fn manifest(folder: &Path, name: &str) -> Value {
    let path = folder.join("backups").join(format!("{name}.json"));
    serde_json::from_slice(&fs::read(&path).expect("a manifest")).expect("JSON")
}

pub fn flip(path: &Path, place: usize) {
    let mut bytes = fs::read(path).expect("a file");
    let place = place % bytes.len();
    bytes[place] ^= 1;
    fs::write(path, bytes).expect("written");
}

type Damage = Box<dyn Fn(&Path)>;

/// What is done to a copy of the backup, and the place that has to be named.
fn damages(folder: &Path, name: &str) -> Vec<(&'static str, String, Damage)> {
    let whole = manifest(folder, name);
    let objects = whole["objects"].as_array().expect("files");
    let index = string(&whole["index"]["object"]).to_owned();
    let small = objects.iter().min_by_key(|object| object["bytes"].as_u64()).expect("a file");
    let large = objects.iter().max_by_key(|object| object["bytes"].as_u64()).expect("a file");
    let [index, small, large] = [&index, string(&small["name"]), string(&large["name"])]
        .map(|name| format!("objects/{}/{name}", &name[..2]));
    let manifest = format!("backups/{name}.json");
    let flip_at = |place: usize| move |path: &Path| flip(path, place);
    let cut = |path: &Path| {
        let bytes = fs::read(path).expect("a file");
        fs::write(path, &bytes[..bytes.len() - 1]).expect("written");
    };
    let empty = |path: &Path| fs::write(path, "").expect("written");
    let remove = |path: &Path| fs::remove_file(path).expect("removed");
    let link = |path: &Path| {
        let moved = path.with_extension("moved");
        fs::rename(path, &moved).expect("moved");
        std::os::unix::fs::symlink(&moved, path).expect("a link");
    };
    let at = |what, place: &str, damage: Box<dyn Fn(&Path)>| -> (&'static str, String, Damage) {
        let of = place.to_owned();
        (what, place.to_owned(), Box::new(move |copy: &Path| damage(&copy.join(&of))))
    };
    vec![
        at("a flipped bit", &small, Box::new(flip_at(7))),
        at("a flipped bit at the end", &large, Box::new(flip_at(usize::MAX))),
        at("a flipped bit in the index", &index, Box::new(flip_at(40))),
        at("a cut file", &large, Box::new(cut)),
        at("an empty file", &small, Box::new(empty)),
        at("a missing file", &small, Box::new(remove)),
        at("a link", &small, Box::new(link)),
        at("a flipped bit in the manifest", &manifest, Box::new(flip_at(30))),
        at("a missing manifest", &manifest, Box::new(remove)),
        at("no word of the newest", "latest", Box::new(remove)),
    ]
}

/// Each is refused by both commands, and nothing is written.
async fn refuse_damage(world: &TestKage, folder: &Path, name: &str, identity: &str) {
    for (what, place, damage) in damages(folder, name) {
        let copied = world.folder.join("damaged");
        copy(folder, &copied);
        damage(&copied);
        let copied_path = copied.display().to_string();
        for command in [vec!["backup", "verify"], vec!["restore"]] {
            let args = [command, vec![copied_path.as_str(), "--identity", identity]].concat();
            let said = refused(world, &args);
            assert!(said.contains(&place), "{what}: {said}");
        }
        fs::remove_dir_all(&copied).expect("removed");
        assert_nothing(world).await;
    }
}

/// Neither a table nor a repository.
async fn assert_nothing(world: &TestKage) {
    let tables: i64 = sqlx::query_scalar("SELECT count(*) FROM pg_tables WHERE schemaname = 'public'")
        .fetch_one(world.pool())
        .await
        .expect("a count");
    assert_eq!(tables, 0);
    assert!(!world.data.join("repos").exists() && !world.data.join("repos.restoring").exists());
}

/// Goes on until it is cancelled.
const ENDLESS: &str =
    "i=0; while :; do i=$((i + 1)); echo \"line $i\"; [ $((i % 50)) = 0 ] && sleep 0.2; done";

async fn cancel(world: &TestKage, task: &str) {
    let answer = world.delete(&format!("/api/v1/tasks/{task}")).await;
    assert!(answer.status < 300, "{}", answer.text());
    world.ended(task).await;
}

/// What is known of the world before it ends.
struct Before {
    /// Tasks that had ended at the cut.
    ended: Vec<String>,
    /// One that had not.
    load: String,
    answers: Vec<(String, String)>,
    checkpoint: PathBuf,
    backup: Value,
}

/// Two backups while runs go on, the second of which writes what is new.
async fn back_up_under_load(world: &TestKage, dir: &str, recipient: &str) -> Before {
    // A month that no new schema has.
    sqlx::query("SELECT add_event_month('2025-01-01')").execute(world.pool()).await.expect("made");
    let mut ended = Vec::new();
    for script in [numbered(3_000, 3_000).as_str(), "echo two > b; echo out; echo err >&2", "echo no; exit 3"]
    {
        ended.push(string(&world.run(&shell(script)).await["id"]).to_owned());
    }
    let load = string(&world.submit(&shell(ENDLESS)).await["id"]).to_owned();
    world.says(&load, "shell", "line 50\n").await;
    let first = backup(world, &[dir, "--recipient", recipient]);
    assert_eq!((first["encrypted"].as_bool(), first["new_files"] == first["files"]), (Some(true), true));
    // A forgotten option must not leave one in the open.
    assert!(refused(world, &["backup", dir]).contains("are encrypted"));
    ended.push(string(&world.run(&shell("echo three > c")).await["id"]).to_owned());
    let mut all = Vec::new();
    for task in &ended {
        all.extend(answers(world, task).await);
    }
    let checkpoint = checkpoint(world).await;
    let second = backup(world, &[dir, "--recipient", recipient]);
    assert_eq!(second["parent"], first["backup"]);
    let of = |name: &str| second[name].as_u64().expect("a number");
    assert!(of("new_bytes") < of("bytes") && of("new_files") < of("files"), "{second}");
    Before { ended, load, answers: all, checkpoint, backup: second }
}

async fn assert_audited(world: &TestKage, backup: &str) {
    let entries: Vec<(String, String)> =
        sqlx::query_as("SELECT action, object FROM audit_entries WHERE action LIKE 'backup.%' ORDER BY at")
            .fetch_all(world.pool())
            .await
            .expect("entries");
    let actions: Vec<&str> = entries.iter().map(|(action, _)| action.as_str()).collect();
    assert_eq!(actions, ["backup.make", "backup.make", "backup.verify", "backup.verify"]);
    assert!(entries[1..].iter().all(|(_, object)| *object == format!("backup:{backup}")), "{entries:?}");
}

/// Everything that had ended is there; what had not is lost, and goes on by no means.
async fn assert_restored(world: &TestKage, before: &Before) {
    let mut after = Vec::new();
    for task in &before.ended {
        after.extend(answers(world, task).await);
        let run = &world.task(task).await["runs"][0];
        if let Some(branch) = run["branch"].as_str() {
            assert_eq!(run["commit_hash"], git(&world.mirror("demo"), ["rev-parse", branch]));
        }
    }
    assert_same(&before.answers, &after);
    git(&world.mirror("demo"), ["fsck", "--full", "--strict"]);
    let lost = world.task(&before.load).await;
    let run = &lost["runs"][0];
    assert_eq!((lost["status"].as_str(), run["state"].as_str()), (Some("failed"), Some("lost")), "{lost}");
    assert!(string(&run["error"]).contains("restored from a backup"), "{lost}");
    let month: bool = sqlx::query_scalar("SELECT to_regclass('events_log_202501') IS NOT NULL")
        .fetch_one(world.pool())
        .await
        .expect("an answer");
    assert!(month);
    // The log goes on from what it was.
    let checkpoint = before.checkpoint.display().to_string();
    let said = world.host(&["audit", "verify", "--anchor", &checkpoint]);
    assert!(said.contains("are what their checkpoints say"), "{said}");
    let entry: Value =
        sqlx::query_scalar("SELECT details FROM audit_entries WHERE action = 'backup.restore'")
            .fetch_one(world.pool())
            .await
            .expect("an entry");
    assert_eq!(entry["manifest_sha256"], before.backup["manifest_sha256"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_backed_up_under_load_comes_back_after_everything_is_gone() {
    let mut world = TestKage::serving(&[]).await;
    world.demo().await;
    let folder = world.folder.join("backups");
    let dir = folder.display().to_string();
    let (identity, recipient) = identity(&world);
    let before = back_up_under_load(&world, &dir, &recipient).await;
    let name = string(&before.backup["backup"]);
    let verified = world.host(&["backup", "verify", &dir, "--identity", &identity]);
    assert!(verified.contains("every piece opens"), "{verified}");
    let closed = world.host(&["backup", "verify", &dir]);
    assert!(closed.contains("no look inside"), "{closed}");
    assert_audited(&world, name).await;

    // Where rows or repositories are, or a runner works, nothing is restored.
    let restore = ["restore", &dir, "--identity", &identity];
    assert!(refused(&world, &restore).contains("stop kage first"));
    cancel(&world, &before.load).await;
    assert!(world.process(0).terminate().await.success());
    assert!(refused(&world, &restore).contains("has repositories"));
    fs::rename(world.data.join("repos"), world.folder.join("aside")).expect("moved");
    assert!(refused(&world, &restore).contains("the database has rows"));
    wipe(&world).await;

    refuse_damage(&world, &folder, name, &identity).await;
    assert!(refused(&world, &["restore", &dir]).contains("is encrypted"));
    assert_nothing(&world).await;
    let restored = world.host(&[restore.as_slice(), &["--json"]].concat());
    let restored: Value = serde_json::from_str(&restored).expect("JSON");
    assert_eq!(restored["runs"], json!({ "lost": 1, "queued": 0 }), "{restored}");
    assert_eq!(restored["backup"], before.backup["backup"]);
    world.start("serve").await;
    assert_restored(&world, &before).await;
    let again = world.run(&shell("echo four > d")).await;
    assert_eq!(again["status"], "completed", "{again}");
}

/// `kage serve` with its private cluster, and `--requeue`.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_private_cluster_is_backed_up_and_restored_too() {
    let mut world = TestKage::bare().await;
    let serve = world.spawn_with("serve", &[]);
    while !world.process(serve).log_says("runner.started") {
        world.process(serve).assert_alive();
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    world.equip();
    world.ready(serve).await;
    world.demo().await;
    let done = world.run(&shell("echo one > a")).await;
    let done = string(&done["id"]).to_owned();
    let once = shell(ENDLESS);
    let mut again = once.clone();
    again["max_retries"] = json!(1);
    let again = string(&world.submit(&again).await["id"]).to_owned();
    let once = string(&world.submit(&once).await["id"]).to_owned();
    for task in [&again, &once] {
        world.says(task, "shell", "line 1\n").await;
    }
    let dir = world.folder.join("backups").display().to_string();
    let made = backup(&world, &[&dir]);
    assert_eq!(made["encrypted"], false);
    let before = answers(&world, &done).await;
    for task in [&again, &once] {
        cancel(&world, task).await;
    }
    assert!(world.process(serve).terminate().await.success());
    empty_folder(&world);

    let restored = world.host(&["restore", "--json", &dir, "--requeue"]);
    let restored: Value = serde_json::from_str(&restored).expect("JSON");
    assert_eq!(restored["runs"], json!({ "lost": 1, "queued": 1 }), "{restored}");
    // Not twice into the same place.
    assert!(refused(&world, &["restore", &dir]).contains("has repositories"));
    world.start("serve").await;
    assert_same(&before, &answers(&world, &done).await);
    let task = world.reaches(&again, 0, "running").await;
    assert_eq!(task["runs"][0]["attempt"], 2, "{task}");
    cancel(&world, &again).await;
    assert_eq!(world.task(&once).await["runs"][0]["state"], "lost");
}
