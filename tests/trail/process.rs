//! The programs themselves: `kage sequencer` with its anchors, and `kage audit`.

use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use crate::support::Trail;

fn kage(trail: &Trail, folder: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_kage"));
    command
        .args(args)
        .env_clear()
        .env("PATH", "/usr/bin:/bin")
        .env("KAGE_DATABASE_URL", trail.url())
        .env("KAGE_DATA_DIR", folder)
        .env("KAGE_SEQUENCER_KEY_FILE", folder.join("key"))
        .env("KAGE_SEQUENCER_POLL_MILLIS", "20")
        .env("KAGE_SEQUENCER_ANCHOR_FILE", folder.join("anchor"))
        .env("KAGE_SEQUENCER_ANCHOR_GIT", folder.join("anchor.git"))
        .env("KAGE_SEQUENCER_ANCHOR_SYSLOG", format!("unix://{}", folder.join("log").display()));
    command
}

fn run(mut command: Command) -> Output {
    command.output().expect("starts")
}

fn said(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

struct Running(Child);

impl Running {
    fn sequencer(trail: &Trail, folder: &Path) -> Self {
        let mut command = kage(trail, folder, &["sequencer"]);
        Self(command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("starts"))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

async fn until(what: &str, mut done: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !done().await {
        assert!(Instant::now() < deadline, "{what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Until all that is written has its place, the sequencer's own entries too, and both anchors were told.
async fn settled(trail: &Trail, folder: &Path, least: u64) {
    until("all is anchored", async || {
        let Ok(found) = trail_verify(trail, folder) else { return false };
        let size: i64 = sqlx::query_scalar("SELECT coalesce(max(size), 0) FROM audit_checkpoints")
            .fetch_one(trail.pool())
            .await
            .expect("reads");
        let line = format!("\\n{size}\\n");
        let file = std::fs::read_to_string(folder.join("anchor")).unwrap_or_default();
        size as u64 >= least && found.contains("0 wait") && file.contains(&line)
    })
    .await;
}

fn trail_verify(trail: &Trail, folder: &Path) -> Result<String, String> {
    let output = run(kage(trail, folder, &["audit", "verify"]));
    if output.status.success() { Ok(said(&output)) } else { Err(said(&output)) }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_is_kept_anchored_killed_cut_and_refused() {
    let trail = Trail::new().await;
    let home = tempfile::tempdir().expect("a folder");
    let folder = home.path();
    git2::Repository::init_bare(folder.join("anchor.git")).expect("a repository");
    let log = std::os::unix::net::UnixDatagram::bind(folder.join("log")).expect("a socket");
    let key = folder.join("key").display().to_string();
    let public = run(kage(&trail, folder, &["audit", "keygen", "--name", "kage.test/audit", "--out", &key]));
    // No key yet, so no start; the second keygen overwrites nothing.
    assert!(public.status.success(), "{public:?}");
    let public = String::from_utf8_lossy(&public.stdout).trim().to_owned();
    let before = std::fs::read(&key).expect("a key");
    assert!(
        !run(kage(&trail, folder, &["audit", "keygen", "--name", "kage.test/audit", "--out", &key]))
            .status
            .success()
    );
    assert_eq!(std::fs::read(&key).expect("a key"), before);

    trail.log(0..30).await;
    let running = Running::sequencer(&trail, folder);
    settled(&trail, folder, 31).await;
    let mut message = [0; 4096];
    log.set_read_timeout(Some(Duration::from_secs(30))).expect("set");
    let length = log.recv(&mut message).expect("a message");
    let message = String::from_utf8_lossy(&message[..length]).into_owned();
    assert!(message.starts_with("<109>1 ") && message.contains("kage.test/audit"), "{message}");
    // Killed at any moment, and started again.
    drop(running);
    trail.log(30..60).await;
    let running = Running::sequencer(&trail, folder);
    settled(&trail, folder, 62).await;
    drop(running);

    // An export, verified where there is no database.
    let anchor = folder.join("anchor").display().to_string();
    let export = run(kage(&trail, folder, &["audit", "export"]));
    assert!(export.status.success(), "{export:?}");
    let file = folder.join("export").display().to_string();
    std::fs::write(&file, &export.stdout).expect("writes");
    let offline = |args: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_kage"));
        run({
            command.args(["audit", "verify", "--key", &public, "--export", &file]).args(args).env_clear();
            command
        })
    };
    let good = offline(&["--anchor", &anchor]);
    assert!(good.status.success() && said(&good).contains("all there are"), "{good:?}");
    let text = String::from_utf8(export.stdout).expect("text");
    std::fs::write(&file, text.replacen("\"n\":17", "\"n\":18", 1)).expect("writes");
    let bad = offline(&[]);
    assert_eq!(bad.status.code(), Some(1), "{bad:?}");
    assert!(said(&bad).contains("NOT verified: entry "), "{bad:?}");

    // From one checkpoint to another.
    let note = run(kage(&trail, folder, &["audit", "checkpoint"])).stdout;
    let (first, last) = (folder.join("first"), folder.join("last"));
    std::fs::write(&last, &note).expect("writes");
    let line = std::fs::read_to_string(&anchor).expect("an anchor");
    let line: serde_json::Value = serde_json::from_str(line.lines().next().expect("a line")).expect("JSON");
    std::fs::write(&first, line["checkpoint"].as_str().expect("a note")).expect("writes");
    let (first, last) = (first.display().to_string(), last.display().to_string());
    let goes_on = run(kage(&trail, folder, &["audit", "verify", "--from", &first, "--to", &last]));
    assert!(goes_on.status.success() && said(&goes_on).contains("goes on from"), "{goes_on:?}");

    // The tail is cut: in itself the database is whole, the anchor knows better, and so does the next start.
    trail
        .tamper(
            "DELETE FROM audit_entries WHERE id IN (SELECT entry_id FROM audit_leaves WHERE index >=
                 (SELECT min(size) FROM audit_checkpoints));
             DELETE FROM audit_leaves WHERE index >= (SELECT min(size) FROM audit_checkpoints);
             DELETE FROM audit_checkpoints WHERE size > (SELECT min(size) FROM audit_checkpoints)",
        )
        .await;
    assert!(trail_verify(&trail, folder).is_ok());
    let seen = run(kage(&trail, folder, &["audit", "verify", "--anchor", &anchor]));
    assert_eq!(seen.status.code(), Some(1), "{seen:?}");
    let refused = run(kage(&trail, folder, &["sequencer"]));
    assert!(!refused.status.success());
    assert!(said(&refused).contains("it was cut, or is an older copy"), "{refused:?}");
}
