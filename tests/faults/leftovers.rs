//! What killed processes and strangers leave on a host, and what a sweep makes of it: it ends what is proved to be ours and
//! dead, and nothing else.

use std::fs::File;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, SystemTime};

use rustix::fs::{FlockOperation, flock};
use serde_json::json;
use uuid::Uuid;

use crate::support::tasks::{shell, string};
use crate::support::{TestKage, docker, eventually, leftovers, succeeded};

/// A container that carries labels of ours; removed when dropped.
struct Planted(String);

impl Drop for Planted {
    fn drop(&mut self) {
        // The sweep may have been first, as it should.
        if is_there(&self.0) {
            docker(&["rm", "--force", &self.0]);
        }
    }
}

fn planted(instance: &str, run: &str) -> Planted {
    let image = std::env::var("KAGE_TEST_IMAGE").expect("./test sets it");
    let labels =
        [format!("kage.instance={instance}"), format!("kage.run={run}"), "kage.attempt=1".to_owned()];
    let mut args = vec!["run", "--detach", "--network=none", "--entrypoint=sleep"];
    args.extend(labels.iter().flat_map(|label| ["--label", label]));
    args.extend([image.as_str(), "600"]);
    Planted(docker(&args).trim().to_owned())
}

/// What a check of a CLI image has: a container, and a folder that it holds; opened, and not young.
fn check(data: &Path) -> (Planted, PathBuf, File) {
    let instance = format!("kage-kit-{}", Uuid::new_v4().simple());
    let folder = data.join(format!("{instance}.AbC123"));
    std::fs::create_dir_all(folder.join("w")).expect("a folder");
    let opened = File::open(&folder).expect("opens");
    opened.set_modified(SystemTime::now() - Duration::from_secs(3600)).expect("is set");
    (planted(&instance, &Uuid::now_v7().to_string()), folder, opened)
}

fn is_there(container: &str) -> bool {
    docker(&["ps", "--all", "--quiet", "--no-trunc"]).lines().any(|id| id == container)
}

fn mount_tmpfs(at: &Path) {
    std::fs::create_dir_all(at).expect("a folder");
    let output = Command::new("mount").args(["-t", "tmpfs", "planted"]).arg(at).output();
    succeeded(&["mount"], &output.expect("runs"));
}

fn unmount(at: &Path) {
    succeeded(&["umount"], &Command::new("umount").arg(at).output().expect("runs"));
}

/// Runs that have ended; their ids.
async fn ended<const COUNT: usize>(kage: &TestKage) -> [Uuid; COUNT] {
    let mut task = shell("echo x > x");
    task["cli_assignments"] = json!(vec![json!({ "cli_name": "shell" }); COUNT]);
    let task = kage.run(&task).await;
    std::array::from_fn(|run| string(&task["runs"][run]["id"]).parse().expect("an id"))
}

/// Starts the runner anew, and waits for its first sweep.
async fn swept(kage: &mut TestKage, before: usize) -> usize {
    assert!(kage.process(before).terminate().await.success());
    let runner = kage.start("runner").await;
    eventually("it has swept", async || {
        let log = kage.process(runner).log();
        (log.contains("runner.swept") || log.contains("runner.sweep_failed")).then_some(())
    })
    .await;
    runner
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sweep_ends_what_is_ours_and_dead_and_nothing_else() {
    let mut ours = TestKage::new().await;
    ours.start("api").await;
    let runner = ours.start("runner").await;
    ours.demo().await;
    // In the order of the sweep.
    let [blocked, dead, half] = ended(&ours).await;
    // Another instance with a data folder and a database of its own, on the same engine, at work.
    let mut theirs = TestKage::new().await;
    theirs.start("api").await;
    let their_runner = theirs.start("runner").await;
    theirs.demo().await;
    let live = theirs.submit(&shell("echo works; sleep 600")).await;
    let live = string(&live["id"]).to_owned();
    theirs.says(&live, "shell", "works").await;
    let their_live = leftovers::containers(&theirs.name);
    let their_run: Uuid = string(&theirs.task(&live).await["runs"][0]["id"]).parse().expect("an id");
    let [their_dead] = ended(&theirs).await;

    let run = |data: &Path, id: Uuid| data.join("runs").join(id.simple().to_string());
    let unknown = Uuid::now_v7();
    let foul = planted(&ours.name, &dead.to_string());
    let kept = [
        // Runs that our database does not know: it may be an old one, or another's.
        planted(&ours.name, &unknown.to_string()),
        planted(&ours.name, &their_run.to_string()),
        // Dead as ours or as theirs, but not of that instance.
        planted(&theirs.name, &dead.to_string()),
        planted(&format!("{}-else", ours.name), &dead.to_string()),
    ];
    let their_foul = planted(&theirs.name, &their_dead.to_string());
    // Killed between a mount and its record: one over the other.
    for at in ["merged", "merged", "disk", "disk"] {
        mount_tmpfs(&run(&ours.data, dead).join(at));
    }
    let model = ours.data.join("model").join(half.to_string());
    std::fs::create_dir(&model).expect("a folder");
    let _socket = UnixListener::bind(model.join("socket")).expect("a socket");
    std::fs::create_dir_all(run(&ours.data, half).join("io")).expect("a folder");
    // Somebody else's file system where one of ours is expected: what is in it is not ours to remove.
    let stranger = run(&ours.data, blocked).join("backup");
    mount_tmpfs(&stranger);
    std::fs::write(stranger.join("precious"), "x").expect("a file");
    std::fs::create_dir_all(run(&ours.data, unknown)).expect("a folder");
    // Two checks of an image: one was killed, the other lives and holds its folder.
    let (killed, killed_folder, _) = check(&ours.data);
    let (checking, checking_folder, held) = check(&ours.data);
    flock(&held, FlockOperation::NonBlockingLockExclusive).expect("locks");

    let runner = swept(&mut ours, runner).await;
    assert!(!is_there(&foul.0), "a dead run's container was left");
    for id in [dead, half] {
        assert!(!run(&ours.data, id).exists() && !ours.data.join("model").join(id.to_string()).exists());
    }
    assert_eq!(
        leftovers::mounts(&ours.data.join("runs")),
        std::slice::from_ref(&stranger),
        "mounts were left"
    );
    assert_eq!(std::fs::read_to_string(stranger.join("precious")).expect("is there"), "x");
    assert!(run(&ours.data, unknown).exists());
    assert!(!is_there(&killed.0) && !killed_folder.exists(), "a dead check was left");
    assert!(is_there(&checking.0) && checking_folder.exists());
    assert!(kept.iter().all(|one| is_there(&one.0)) && is_there(&their_foul.0));
    // It says what it left, and goes on for ever with the rest.
    let log = ours.process(runner).log();
    for left in [&kept[0].0, &kept[1].0, &unknown.to_string(), &stranger.display().to_string()] {
        assert!(log.contains(left), "nothing is said of {left}");
    }
    let doctor = ours.server_command(&["doctor", "leftovers", "--json"]).output().expect("runs");
    let said: serde_json::Value = serde_json::from_slice(&doctor.stdout).expect("JSON");
    assert_eq!((&said[0]["ok"], &said[0]["warning"]), (&json!(true), &json!(true)), "{said}");
    assert!(string(&said[0]["text"]).contains("2 containers"), "{said}");

    // Theirs, in turn; what lives there goes on.
    swept(&mut theirs, their_runner).await;
    assert!(!is_there(&their_foul.0));
    assert!(kept.iter().all(|one| is_there(&one.0)));
    assert_eq!(theirs.task(&live).await["runs"][0]["state"], "running");
    assert!(their_live.iter().all(|id| leftovers::containers(&theirs.name).contains(id)));

    assert_eq!(theirs.delete(&format!("/api/v1/tasks/{live}")).await.status, 200);
    theirs.ended(&live).await;
    unmount(&stranger);
    for id in [unknown, blocked] {
        std::fs::remove_dir_all(run(&ours.data, id)).expect("is removed");
    }
}
