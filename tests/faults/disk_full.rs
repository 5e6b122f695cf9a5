//! The data folder's disk is full for a while: what has been done waits, and what is to begin is tried again.

use std::process::Command;

use serde_json::Value;

use crate::filling::{fill, free};
use crate::own_engine::mount_file;
use crate::support::leftovers::mounts;
use crate::support::tasks::{shell, string};
use crate::support::{TestKage, eventually};
use crate::world::assert_result;

/// A world whose data folder has a small disk, and whose runner begins runs on it however full it is.
async fn on_a_small_disk() -> (TestKage, [usize; 2]) {
    let mut kage = TestKage::new().await;
    mount_file(&kage.folder.join("disk"), 1_000, &kage.data);
    let mode = Command::new("chmod").arg("711").arg(&kage.data).status();
    assert!(mode.is_ok_and(|status| status.success()));
    // What stops runs from being begun on a disk that is nearly full is not what is tried here.
    for name in
        ["KAGE_RUNNER_RESERVE_BYTES", "KAGE_RUNNER_DISK_SOFT_PERCENT", "KAGE_RUNNER_DISK_HARD_PERCENT"]
    {
        kage.set(name, "0");
    }
    kage.set("KAGE_LIMIT_WORKTREE_BYTES", "67108864");
    let roles = [kage.start("api").await, kage.start("runner").await];
    kage.demo().await;
    (kage, roles)
}

async fn end(mut kage: TestKage, roles: [usize; 2]) {
    for process in roles.into_iter().rev() {
        assert!(kage.process(process).terminate().await.success());
    }
    let unmounted = eventually("its keeper has ended too", async || {
        Command::new("umount").arg(&kage.data).output().ok().filter(|output| output.status.success())
    })
    .await;
    assert!(unmounted.status.success());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_that_a_run_has_done_is_lost() {
    let (mut kage, roles) = on_a_small_disk().await;
    let begun = kage.submit(&shell("echo 7 > result; echo begun; sleep 4")).await;
    let begun = string(&begun["id"]);
    kage.says(begun, "shell", "begun").await;
    // What the kernel has not written yet when the disk is full is another matter: here it has.
    for mount in mounts(&kage.data).iter().filter(|mount| mount.ends_with("disk")) {
        assert!(Command::new("sync").arg("-f").arg(mount).status().is_ok_and(|status| status.success()));
    }
    assert!(fill(&kage.data), "the disk takes more");
    let mut next = shell("echo 8 > result");
    (next["max_retries"], next["retry_delay"]) = (5.into(), 2.into());
    let next = kage.submit(&next).await;
    eventually("one waits for room, and the other is put back", async || {
        let waits = kage.process(roles[1]).log_says("runner.no_room_for_a_result");
        (waits && kage.task(string(&next["id"])).await["runs"][0]["attempt"] != 0).then_some(())
    })
    .await;
    assert_eq!(kage.task(begun).await["runs"][0]["state"], "harvesting");
    free(&kage.data);
    assert_result(&kage, &kage.ended(begun).await, 7);
    assert_result(&kage, &kage.ended(string(&next["id"])).await, 8);
    let events = kage.events(begun, "").await;
    let told = events.iter().filter(|event| event.data["message"].to_string().contains("disk is full"));
    assert_eq!(told.count(), 1);
    end(kage, roles).await;
}

/// Neither a client who gives up nor a runner that is told to stop waits for the room.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_result_that_waits_for_room_can_be_cancelled_and_left() {
    let (mut kage, mut roles) = on_a_small_disk().await;
    let mut ids = Vec::new();
    for _ in 0..2 {
        let task = kage.submit(&shell("echo 7 > result; sync; echo begun; sleep 4")).await;
        ids.push(string(&task["id"]).to_owned());
    }
    for id in &ids {
        kage.says(id, "shell", "begun").await;
    }
    for mount in mounts(&kage.data).iter().filter(|mount| mount.ends_with("disk")) {
        assert!(Command::new("sync").arg("-f").arg(mount).status().is_ok_and(|status| status.success()));
    }
    assert!(fill(&kage.data), "the disk takes more");
    for id in &ids {
        eventually("it waits for room", async || {
            let told = "SELECT EXISTS (SELECT FROM events e WHERE task_id = $1::uuid AND e::text LIKE '%disk is full%')";
            let is_told: bool = sqlx::query_scalar(told).bind(id).fetch_one(kage.pool()).await.expect("selects");
            is_told.then_some(())
        })
        .await;
    }
    let answer = kage.delete(&format!("/api/v1/tasks/{}", ids[0])).await;
    assert!(answer.status < 300, "{}", answer.text());
    let task = kage.ended(&ids[0]).await;
    let run = &task["runs"][0];
    assert_eq!((&task["status"], &run["state"]), (&"cancelled".into(), &"cancelled".into()), "{task}");
    assert!(string(&run["error"]).contains("before there was room"), "{task}");
    assert!(kage.process(roles[1]).terminate().await.success());
    assert_eq!(kage.task(&ids[1]).await["runs"][0]["state"], "harvesting");
    free(&kage.data);
    roles[1] = kage.start("runner").await;
    assert_result(&kage, &kage.ended(&ids[1]).await, 7);
    end(kage, roles).await;
}

/// The kernel dropped what it could not store, and would read zeroes in its place.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_lost_is_no_success() {
    let (kage, roles) = on_a_small_disk().await;
    // More than what a full disk still has for root.
    let script = "echo begun; while [ ! -e go ]; do sleep 0.1; done; yes | head -c 50000000 > result; echo written; sleep 2";
    let task = kage.submit(&shell(script)).await;
    let id = string(&task["id"]);
    kage.says(id, "shell", "begun").await;
    assert!(fill(&kage.data), "the disk takes more");
    let mounts = mounts(&kage.data);
    let worktree = mounts.iter().find(|mount| mount.ends_with("merged")).expect("an overlay");
    std::fs::write(worktree.join("go"), "").expect("the run's own disk has room");
    kage.says(id, "shell", "written").await;
    // The kernel does that by itself, sooner or later.
    let stored = std::fs::File::open(worktree.join("result")).and_then(|file| file.sync_all());
    assert!(stored.is_err(), "there is no room for it");
    free(&kage.data);
    let task = kage.ended(id).await;
    let run = &task["runs"][0];
    assert_eq!((&run["state"], &run["branch"]), (&"sandbox_error".into(), &Value::Null), "{task}");
    assert!(string(&run["error"]).contains("no room beneath it"), "{task}");
    end(kage, roles).await;
}
