//! The folder of backups itself: what others may have put there, and whose backups it has.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::PathBuf;

use serde_json::Value;

use crate::backup::{backup, flip, refused};
use crate::support::TestKage;
use crate::support::tasks::shell;

/// A task with a result, where backups go, and where its repository comes from.
async fn with_a_result() -> (TestKage, String, PathBuf) {
    let world = TestKage::serving(&[]).await;
    let upstream = world.demo().await;
    let done = world.run(&shell("head -c 200000 /dev/urandom > noise")).await;
    assert_eq!(done["status"], "completed", "{done}");
    let dir = world.folder.join("backups").display().to_string();
    (world, dir, upstream)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_repository_that_was_removed_and_added_again_is_backed_up() {
    let (world, dir, upstream) = with_a_result().await;
    assert_eq!(backup(&world, &[&dir])["repositories"], 1);
    assert_eq!(world.delete("/api/v1/repositories/demo").await.status, 202);
    crate::support::eventually("it is gone", async || {
        (world.get("/api/v1/repositories/demo").await.status == 404).then_some(())
    })
    .await;
    world.register("demo", &upstream).await;
    let made = backup(&world, &[&dir]);
    assert_eq!((&made["repositories"], &made["missing"]), (&1.into(), &Value::Array(Vec::new())), "{made}");
}

/// None of it is followed, waited for, removed or quoted.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_leads_out_of_the_folder_is_refused() {
    let (world, dir, _) = with_a_result().await;
    let folder = world.folder.join("backups");
    backup(&world, &[&dir]);
    let (victim, secret) = (world.folder.join("victim"), world.folder.join("secret"));
    fs::create_dir(&victim).expect("made");
    fs::write(victim.join("kept"), "kept").expect("written");
    fs::write(&secret, "root:planted-secret\n").expect("written");

    for name in ["unfinished", "objects", "backups"] {
        let aside = folder.join("aside");
        fs::rename(folder.join(name), &aside).expect("moved");
        symlink(&victim, folder.join(name)).expect("linked");
        let said = refused(&world, &["backup", &dir]);
        assert!(said.contains("is no folder"), "{said}");
        assert_eq!(fs::read_dir(&victim).expect("lists").count(), 1);
        fs::remove_file(folder.join(name)).expect("removed");
        fs::rename(&aside, folder.join(name)).expect("moved");
    }
    let latest = fs::read(folder.join("latest")).expect("it names one");
    fs::remove_file(folder.join("latest")).expect("removed");
    symlink(&secret, folder.join("latest")).expect("linked");
    assert!(!refused(&world, &["backup", "verify", &dir]).contains("planted"));
    fs::remove_file(folder.join("latest")).expect("removed");
    fs::copy(&secret, folder.join("latest")).expect("copied");
    let said = refused(&world, &["backup", "verify", &dir]);
    assert!(said.contains("names no backup") && !said.contains("planted"), "{said}");
    let quoted: i64 =
        sqlx::query_scalar("SELECT count(*) FROM audit_entries WHERE details::text LIKE '%planted%'")
            .fetch_one(world.pool())
            .await
            .expect("counts");
    assert_eq!(quoted, 0);
    fs::remove_file(folder.join("latest")).expect("removed");
    for name in ["latest", "lock"] {
        let aside = folder.join("aside");
        let was = fs::rename(folder.join(name), &aside);
        rustix::fs::mknodat(
            rustix::fs::CWD,
            folder.join(name),
            rustix::fs::FileType::Fifo,
            rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR,
            0,
        )
        .expect("a pipe");
        refused(&world, &["backup", "verify", &dir]);
        fs::remove_file(folder.join(name)).expect("removed");
        if was.is_ok() {
            fs::rename(&aside, folder.join(name)).expect("moved");
        }
    }
    fs::write(folder.join("latest"), latest).expect("written");
    fs::set_permissions(&folder, fs::Permissions::from_mode(0o777)).expect("open to all");
    assert!(refused(&world, &["backup", &dir]).contains("anybody may write"));
    fs::set_permissions(&folder, fs::Permissions::from_mode(0o700)).expect("closed");
    backup(&world, &[&dir]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_installations_are_not_mixed_and_a_rotten_pack_is_found() {
    let (world, dir, _) = with_a_result().await;
    backup(&world, &[&dir]);
    let other =
        world.server_command(&["backup", &dir]).env("KAGE_INSTANCE", "another").output().expect("starts");
    let said = String::from_utf8_lossy(&other.stderr);
    assert!(!other.status.success() && said.contains("another folder"), "{said}");

    // The largest pack has the noise of the result.
    let packs = world.data.join("repos/demo.git/objects/pack");
    let packs = fs::read_dir(packs).expect("lists").map(|entry| entry.expect("an entry").path());
    let pack = packs
        .filter(|path| path.extension().is_some_and(|suffix| suffix == "pack"))
        .max_by_key(|path| fs::metadata(path).map_or(0, |stat| stat.len()))
        .expect("a result has one");
    flip(&pack, 100_000);
    backup(&world, &[&dir]);
    let said = refused(&world, &["backup", "verify", &dir]);
    assert!(said.contains("demo"), "{said}");
}
