//! The drill: back up under load, wipe everything, restore, and hold what is there against what was there.

use std::fs;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::process::Output;

use secrecy::ExposeSecret as _;
use serde_json::{Value, json};

use crate::support::tasks::{shell, string};
use crate::support::{TestKage, eventually};
use crate::world::numbered;

/// `kage`, whatever comes of it.
fn kage(world: &TestKage, args: &[&str]) -> Output {
    world.server_command(args).output().expect("kage starts")
}

/// What a command said that had to fail.
fn refused(world: &TestKage, args: &[&str]) -> String {
    let output = kage(world, args);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success(), "{args:?} was not refused");
    said
}

fn backup(world: &TestKage, args: &[&str]) -> Value {
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
async fn wipe(world: &TestKage) {
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

/// The file of a backup that holds this piece, as the manifest names it.
fn manifest(folder: &Path, name: &str) -> (PathBuf, Value) {
    let path = folder.join("backups").join(format!("{name}.json"));
    let value = serde_json::from_slice(&fs::read(&path).expect("a manifest")).expect("JSON");
    (path, value)
}

fn object(folder: &Path, name: &str) -> PathBuf {
    folder.join("objects").join(&name[..2]).join(name)
}

fn flip(path: &Path, place: usize) {
    let mut bytes = fs::read(path).expect("a file");
    let place = place % bytes.len();
    bytes[place] ^= 1;
    fs::write(path, bytes).expect("written");
}

/// Damages copies of a backup in every way; each is refused by both commands, with its place, and nothing is written.
async fn refuse_damage(world: &TestKage, folder: &Path, name: &str, identity: &str) {
    let (_, whole) = manifest(folder, name);
    let objects = whole["objects"].as_array().expect("files");
    let index = string(&whole["index"]["object"]).to_owned();
    let small = objects.iter().min_by_key(|object| object["bytes"].as_u64()).expect("a file");
    let large = objects.iter().max_by_key(|object| object["bytes"].as_u64()).expect("a file");
    let (small, large) = (string(&small["name"]).to_owned(), string(&large["name"]).to_owned());
    let in_object = |of: &str| format!("objects/{}/{of}", &of[..2]);
    type Damage<'a> = Box<dyn Fn(&Path) + 'a>;
    let damages: Vec<(&str, String, Damage<'_>)> = vec![
        ("a flipped bit", in_object(&small), Box::new(|copy| flip(&object(copy, &small), 7))),
        (
            "a flipped bit at the end",
            in_object(&large),
            Box::new(|copy| flip(&object(copy, &large), usize::MAX)),
        ),
        ("a flipped bit in the index", in_object(&index), Box::new(|copy| flip(&object(copy, &index), 40))),
        (
            "a cut file",
            in_object(&large),
            Box::new(|copy| {
                let path = object(copy, &large);
                let bytes = fs::read(&path).expect("a file");
                fs::write(path, &bytes[..bytes.len() - 1]).expect("written");
            }),
        ),
        (
            "an empty file",
            in_object(&small),
            Box::new(|copy| fs::write(object(copy, &small), "").expect("written")),
        ),
        (
            "a missing file",
            in_object(&small),
            Box::new(|copy| fs::remove_file(object(copy, &small)).expect("removed")),
        ),
        (
            "a link",
            in_object(&small),
            Box::new(|copy| {
                let path = object(copy, &small);
                let moved = copy.join("moved");
                fs::rename(&path, &moved).expect("moved");
                std::os::unix::fs::symlink(&moved, &path).expect("a link");
            }),
        ),
        (
            "a flipped bit in the manifest",
            format!("backups/{name}.json"),
            Box::new(|copy| flip(&manifest(copy, name).0, 30)),
        ),
        (
            "a missing manifest",
            format!("backups/{name}.json"),
            Box::new(|copy| fs::remove_file(manifest(copy, name).0).expect("removed")),
        ),
        (
            "no word of the newest",
            "latest".to_owned(),
            Box::new(|copy| fs::remove_file(copy.join("latest")).expect("removed")),
        ),
    ];
    for (what, place, damage) in damages {
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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_backed_up_under_load_comes_back_after_everything_is_gone() {
    let mut world = TestKage::serving(&[]).await;
    world.demo().await;
    let folder = world.folder.join("backups");
    let dir = folder.display().to_string();
    let (identity, recipient) = identity(&world);
    let mut ended = Vec::new();
    for script in [numbered(3_000, 3_000).as_str(), "echo two > b; echo out; echo err >&2", "echo no; exit 3"]
    {
        ended.push(string(&world.run(&shell(script)).await["id"]).to_owned());
    }
    let load = world.submit(&shell(&numbered(4_000, 100))).await;
    let load = string(&load["id"]).to_owned();
    world.says(&load, "shell", "line 50\n").await;

    let first = backup(&world, &[&dir, "--recipient", &recipient]);
    assert_eq!((first["encrypted"].as_bool(), first["new_files"] == first["files"]), (Some(true), true));
    // A forgotten option must not leave one in the open.
    assert!(refused(&world, &["backup", &dir]).contains("are encrypted"));
    ended.push(string(&world.run(&shell("echo three > c")).await["id"]).to_owned());
    let mut before = Vec::new();
    for task in &ended {
        before.extend(answers(&world, task).await);
    }
    let anchor = checkpoint(&world).await;
    let second = backup(&world, &[&dir, "--recipient", &recipient]);
    assert_eq!(second["parent"], first["backup"]);
    let of = |value: &Value, name: &str| value[name].as_u64().expect("a number");
    assert!(of(&second, "new_bytes") < of(&second, "bytes"), "{second}");
    assert!(of(&second, "new_files") < of(&second, "files"), "{second}");
    let verified = world.host(&["backup", "verify", &dir, "--identity", &identity]);
    assert!(verified.contains("every piece opens"), "{verified}");
    let closed = world.host(&["backup", "verify", &dir]);
    assert!(closed.contains("no look inside"), "{closed}");
    let audited: Vec<(String, String)> =
        sqlx::query_as("SELECT action, object FROM audit_entries WHERE action LIKE 'backup.%' ORDER BY at")
            .fetch_all(world.pool())
            .await
            .expect("entries");
    let actions: Vec<&str> = audited.iter().map(|(action, _)| action.as_str()).collect();
    assert_eq!(actions, ["backup.make", "backup.make", "backup.verify", "backup.verify"]);
    assert_eq!(audited[1].1, format!("backup:{}", string(&second["backup"])));

    // Where rows or repositories are, or a runner works, nothing is restored.
    assert!(refused(&world, &["restore", &dir, "--identity", &identity]).contains("stop kage first"));
    let done = world.ended(&load).await;
    assert_eq!(done["status"], "completed");
    assert!(world.process(0).terminate().await.success());
    assert!(refused(&world, &["restore", &dir, "--identity", &identity]).contains("has repositories"));
    let aside = world.folder.join("aside");
    fs::rename(world.data.join("repos"), &aside).expect("moved");
    assert!(refused(&world, &["restore", &dir, "--identity", &identity]).contains("the database has rows"));
    wipe(&world).await;

    refuse_damage(&world, &folder, string(&second["backup"]), &identity).await;
    assert!(refused(&world, &["restore", &dir]).contains("is encrypted"));
    assert_nothing(&world).await;
    let restored = world.host(&["restore", "--json", &dir, "--identity", &identity]);
    let restored: Value = serde_json::from_str(&restored).expect("JSON");
    assert_eq!(restored["runs"], json!({ "lost": 1, "queued": 0 }), "{restored}");
    assert_eq!(restored["backup"], second["backup"]);

    world.start("serve").await;
    let mut after = Vec::new();
    for task in &ended {
        after.extend(answers(&world, task).await);
    }
    assert_same(&before, &after);
    // Nothing of what was under way begins again by itself.
    let lost = world.task(&load).await;
    let run = &lost["runs"][0];
    assert_eq!((lost["status"].as_str(), run["state"].as_str()), (Some("failed"), Some("lost")), "{lost}");
    assert!(string(&run["error"]).contains("restored from a backup"), "{lost}");
    for task in &ended {
        let run = &world.task(task).await["runs"][0];
        if let Some(branch) = run["branch"].as_str() {
            let id = crate::support::git::git(&world.mirror("demo"), ["rev-parse", branch]);
            assert_eq!(run["commit_hash"], id);
        }
    }
    crate::support::git::git(&world.mirror("demo"), ["fsck", "--full", "--strict"]);
    // The log goes on from what it was.
    let anchor = anchor.display().to_string();
    let said = world.host(&["audit", "verify", "--anchor", &anchor]);
    assert!(said.contains("are what their checkpoints say"), "{said}");
    let entry: Value =
        sqlx::query_scalar("SELECT details FROM audit_entries WHERE action = 'backup.restore'")
            .fetch_one(world.pool())
            .await
            .expect("an entry");
    assert_eq!(entry["manifest_sha256"], second["manifest_sha256"]);
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
    let mut again = shell("echo begun; sleep 3; echo two > b");
    again["max_retries"] = json!(1);
    let again = string(&world.submit(&again).await["id"]).to_owned();
    let once = string(&world.submit(&shell("echo begun; sleep 3; echo two > b")).await["id"]).to_owned();
    for task in [&again, &once] {
        world.says(task, "shell", "begun").await;
    }
    let folder = world.folder.join("backups");
    let dir = folder.display().to_string();
    let made = backup(&world, &[&dir]);
    assert_eq!(made["encrypted"], false);
    let before = answers(&world, &done).await;
    for task in [&again, &once] {
        world.ended(task).await;
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
    let ended = world.ended(&again).await;
    assert_eq!(
        (ended["status"].as_str(), ended["runs"][0]["attempt"].as_u64()),
        (Some("completed"), Some(2)),
        "{ended}"
    );
    assert_eq!(world.task(&once).await["runs"][0]["state"], "lost");
}
