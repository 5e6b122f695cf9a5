//! The log as C2SP tlog-tiles has it, read by a monitor that knows nothing of ours.

use std::path::Path;
use std::process::{Command, Output};

use crate::monitor;
use crate::support::{Trail, key};

fn tiles(trail: &Trail, folder: &Path) -> Output {
    Command::new(env!("CARGO_BIN_EXE_kage"))
        .args(["audit", "tiles", "--key", &key(1).verifier().to_string(), "--out"])
        .arg(folder)
        .env_clear()
        .env("KAGE_DATABASE_URL", trail.url())
        .output()
        .expect("starts")
}

fn monitored(folder: &Path) -> Result<Vec<Vec<u8>>, String> {
    let served = |path: &str| std::fs::read(folder.join(path)).ok();
    monitor::entries(&served, &key(1).verifier().to_string())
}

#[tokio::test]
async fn a_monitor_of_others_reads_the_folder_and_sees_every_change_to_it() {
    let trail = Trail::grown(600, 100).await;
    let home = tempfile::tempdir().expect("a folder");
    let folder = home.path().join("tiles");
    assert!(tiles(&trail, &folder).status.success());
    assert_eq!(monitored(&folder).expect("holds").len(), 600);
    // Gone on from: what was full stays as it is.
    let full = std::fs::metadata(folder.join("tile/0/001")).expect("is there").modified().expect("a time");
    trail.log(600..1500).await;
    let mut sequencer = trail.sequencer(1, 500, Vec::new()).await;
    while sequencer.step().await.expect("steps").is_some() {}
    sequencer.pool().close().await;
    assert!(tiles(&trail, &folder).status.success());
    let entries = monitored(&folder).expect("holds");
    assert_eq!(entries.len(), 1500);
    assert!(String::from_utf8_lossy(&entries[1499]).contains("\"object\":\"task:1499\""));
    assert_eq!(
        std::fs::metadata(folder.join("tile/0/001")).expect("is there").modified().expect("a time"),
        full
    );
    for path in ["tile/entries/004", "tile/0/005.p/220", "tile/0/000", "tile/1/000.p/5", "checkpoint"] {
        let path = folder.join(path);
        let good = std::fs::read(&path).expect("is there");
        let mut bad = good.clone();
        bad[20] ^= 1;
        std::fs::write(&path, bad).expect("writes");
        monitored(&folder).expect_err(&path.display().to_string());
        std::fs::write(&path, good).expect("writes");
    }
    assert!(monitored(&folder).is_ok());
}

#[tokio::test]
async fn a_folder_is_not_carried_on_into_another_past() {
    let trail = Trail::grown(40, 10).await;
    let home = tempfile::tempdir().expect("a folder");
    assert!(tiles(&trail, home.path()).status.success());
    let before = std::fs::read(home.path().join("checkpoint")).expect("is there");
    // The tail was cut, and another one grew longer.
    let cut = "DELETE FROM audit_entries WHERE id IN (SELECT entry_id FROM audit_leaves WHERE index >= 30);
        DELETE FROM audit_leaves WHERE index >= 30; DELETE FROM audit_checkpoints WHERE size > 30";
    trail.tamper(cut).await;
    let shorter = tiles(&trail, home.path());
    assert!(String::from_utf8_lossy(&shorter.stderr).contains("does not go on"), "{shorter:?}");
    trail.log(100..120).await;
    let mut sequencer = trail.sequencer(1, 100, Vec::new()).await;
    while sequencer.step().await.expect("steps").is_some() {}
    sequencer.pool().close().await;
    let other = tiles(&trail, home.path());
    assert!(String::from_utf8_lossy(&other.stderr).contains("does not go on"), "{other:?}");
    assert_eq!(std::fs::read(home.path().join("checkpoint")).expect("is there"), before);
    // Nor is an entry that is not what was sequenced written anywhere.
    let other = home.path().join("new");
    trail.tamper("UPDATE audit_entries SET details = '{}' WHERE object = 'task:7'").await;
    let refused = tiles(&trail, &other);
    assert!(String::from_utf8_lossy(&refused.stderr).contains("entry 7"), "{refused:?}");
    assert!(!other.join("checkpoint").exists());
}
