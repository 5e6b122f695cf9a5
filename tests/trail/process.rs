//! The programs themselves: `kage sequencer` with its anchors, and `kage audit`.

use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use kage::trail::note::{Note, SignerKey};
use kage::trail::{canonical, checkpoint, export, tree};
use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::support::{Trail, public};

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
    // A file that a crash cut in its first line has nothing to hold the log to.
    let cut = folder.join("cut");
    std::fs::write(&cut, "{\"checkpoint\":\"x").expect("writes");
    let cut = cut.to_str().expect("a name");
    let unheld = run(kage(&trail, folder, &["audit", "verify", "--anchor", cut]));
    assert!(!unheld.status.success() && said(&unheld).contains("no checkpoint in it"), "{unheld:?}");
    let refused = run(kage(&trail, folder, &["sequencer"]));
    assert!(!refused.status.success());
    assert!(said(&refused).contains("it was cut, or is an older copy"), "{refused:?}");
    let told: Vec<(String, i16, String)> =
        sqlx::query_as("SELECT kind, severity, details ->> 'what' FROM security_events")
            .fetch_all(trail.pool())
            .await
            .expect("reads");
    assert_eq!((told.len(), told[0].0.as_str(), told[0].1), (1, "trail.inconsistent", 4), "{told:?}");
    assert!(told[0].2.contains("it was cut"), "{told:?}");
}

/// Takes what an HTTP anchor posts: refuses the first, and then keeps the bodies.
async fn collector() -> (String, Arc<Mutex<Vec<String>>>) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let url = format!("http://{}/checkpoints", listener.local_addr().expect("an address"));
    let taken = Arc::new(Mutex::new(Vec::new()));
    let (kept, mut refused) = (taken.clone(), false);
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut bytes = Vec::new();
            while !String::from_utf8_lossy(&bytes).contains("\u{2014} kage.test/audit") {
                if stream.read_buf(&mut bytes).await.unwrap_or(0) == 0 {
                    break;
                }
            }
            let status = if refused { "204 No Content" } else { "503 Service Unavailable" };
            if refused {
                kept.lock().expect("whole").push(String::from_utf8_lossy(&bytes).into_owned());
            }
            refused = true;
            let answer = format!("HTTP/1.1 {status}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
            let _ = stream.write_all(answer.as_bytes()).await;
        }
    });
    (url, taken)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failing_anchor_holds_nothing_up_and_a_witness_is_taken() {
    let trail = Trail::new().await;
    let home = tempfile::tempdir().expect("a folder");
    let folder = home.path();
    let path = |name: &str| folder.join(name).display().to_string();
    let keygen = |name: &str, file: &str, more: &[&str]| {
        let mut command = kage(&trail, folder, &["audit", "keygen", "--name", name, "--out", &path(file)]);
        command.args(more);
        String::from_utf8_lossy(&run(command).stdout).trim().to_owned()
    };
    keygen("kage.test/audit", "key", &[]);
    let witness = keygen("witness.test", "witness", &["--witness"]);
    let (url, taken) = collector().await;
    let mut command = kage(&trail, folder, &["sequencer"]);
    // Nobody is at the syslog's socket.
    command.env_remove("KAGE_SEQUENCER_ANCHOR_GIT").env("KAGE_SEQUENCER_ANCHOR_HTTP", &url);
    trail.log(0..10).await;
    let running = Running(command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("starts"));
    until("the URL was told, and both failures are entries", async || {
        let failed: Vec<(String, String)> = sqlx::query_as(
            "SELECT DISTINCT object, outcome FROM audit_entries WHERE action = 'sequencer.anchor' ORDER BY 1, 2",
        )
        .fetch_all(trail.pool())
        .await
        .expect("reads");
        let failed: Vec<String> = failed.into_iter().map(|(object, outcome)| object + " " + &outcome).collect();
        let told = taken.lock().expect("whole").iter().any(|body| body.contains("POST /checkpoints"));
        told && failed == ["anchor:http done", "anchor:http failed", "anchor:syslog failed"]
    })
    .await;
    until("all has its place", async || {
        trail_verify(&trail, folder).is_ok_and(|said| said.contains("0 wait"))
    })
    .await;
    drop(running);
    let told: Vec<String> = sqlx::query_scalar(
        "SELECT DISTINCT subject FROM security_events WHERE kind = 'trail.anchor_failed' ORDER BY 1",
    )
    .fetch_all(trail.pool())
    .await
    .expect("reads");
    assert_eq!(told, ["anchor:http", "anchor:syslog"]);

    // The witness signs what it is shown.
    let note =
        String::from_utf8_lossy(&run(kage(&trail, folder, &["audit", "checkpoint"])).stdout).into_owned();
    let private = std::fs::read_to_string(path("witness")).expect("a key");
    let private = SignerKey::parse(&private.into()).expect("a key");
    let text = Note::parse(&note).expect("a note").text;
    let sign = |text: &str| private.sign(text, 1_800_000_000).to_string();
    let cosign = |contents: String, witnesses: &str| {
        std::fs::write(path("signed"), contents).expect("writes");
        let mut command = kage(&trail, folder, &["audit", "cosign", &path("signed")]);
        command.env("KAGE_AUDIT_WITNESSES", witnesses);
        run(command)
    };
    let good = format!("{note}{}\n", sign(&text));
    assert!(!cosign(good.clone(), "").status.success(), "nobody knows this witness");
    assert!(!cosign(format!("{note}{}\n", sign("other\n")), &witness).status.success(), "of another text");
    let done = cosign(good, &witness);
    assert!(done.status.success() && said(&done).contains("taken: witness.test"), "{done:?}");
    let kept = run(kage(&trail, folder, &["audit", "checkpoint"]));
    assert!(said(&kept).contains("\u{2014} witness.test "), "{kept:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_api_answers_with_what_can_be_verified() {
    let trail = Trail::grown(300, 100).await;
    let home = tempfile::tempdir().expect("a folder");
    let keyless = |args: &[&str]| {
        let mut command = kage(&trail, home.path(), args);
        command.env_remove("KAGE_SEQUENCER_KEY_FILE");
        command
    };
    let api_key = run(keyless(&["key", "create", "--name", "reader", "--scope", "audit:read"]));
    let api_key = String::from_utf8_lossy(&api_key.stdout).trim().to_owned();
    let port =
        std::net::TcpListener::bind("127.0.0.1:0").and_then(|it| it.local_addr()).expect("a port").port();
    let mut command = keyless(&["api"]);
    command.env("KAGE_API_LISTEN", format!("127.0.0.1:{port}")).stdout(Stdio::null()).stderr(Stdio::null());
    let _running = Running(command.spawn().expect("starts"));
    let _ = rustls::crypto::ring::default_provider().install_default();
    let client = reqwest::Client::builder().no_proxy().build().expect("a client");
    let get = async |path: &str, key: &str| {
        let url = format!("http://127.0.0.1:{port}/api/v1/audit{path}");
        client.get(url).header("X-API-Key", key).send().await
    };
    until("the API is up", async || get("", &api_key).await.is_ok()).await;
    let text = async |path: &str| {
        let answer = get(path, &api_key).await.expect("answers");
        assert_eq!(answer.status(), 200, "{path}");
        answer.text().await.expect("a body")
    };
    let json = async |path: &str| serde_json::from_str::<Value>(&text(path).await).expect("JSON");
    for path in ["", "/3/proof", "/checkpoint", "/export"] {
        assert_eq!(get(path, "kage_no_key").await.expect("answers").status(), 401, "{path}");
    }
    // Pages, filters.
    let page = json("?limit=200").await;
    assert_eq!((page["entries"].as_array().map(Vec::len), &page["next"]), (Some(200), &Value::from(200)));
    let page = json("?limit=200&cursor=200").await;
    assert_eq!((page["entries"].as_array().map(Vec::len), &page["next"]), (Some(100), &Value::Null));
    let one =
        json("?object=task:257&actor=host&outcome=done&action=task.submit&since=2020-01-01T00:00:00Z").await;
    assert_eq!(one["entries"][0]["index"], 257);
    assert_eq!(json("?until=2020-01-01T00:00:00Z").await["entries"], Value::Array(Vec::new()));
    for (path, status) in [
        ("?limit=0", 422),
        ("?nonsense=1", 422),
        ("?object=%00", 400),
        ("/300/proof", 404),
        ("/x/proof", 404),
        ("/18446744073709551615/proof", 404),
        ("?cursor=18446744073709551615", 422),
        ("/export?format=x", 422),
    ] {
        assert_eq!(get(path, &api_key).await.expect("answers").status(), status, "{path}");
    }
    // A proof, checked by its reader.
    let proof = json("/257/proof").await;
    let signed =
        checkpoint::open_by_any(proof["checkpoint"].as_str().expect("a note"), &public()).expect("opens");
    let hash =
        |value: &Value| hex::decode(value.as_str().expect("hex")).expect("hex").try_into().expect("32 bytes");
    let path: Vec<tree::Hash> = proof["proof"].as_array().expect("a list").iter().map(hash).collect();
    let leaf = tree::leaf_hash(&canonical::canonical(&proof["entry"]).expect("JSON"));
    tree::verify_inclusion(&leaf, 257, signed.size, &path, &signed.root).expect("holds");
    assert_eq!(checkpoint::open_by_any(&text("/checkpoint").await, &public()).expect("opens").size, 300);
    for (path, entries) in [("/export", 300), ("/export?since=2020-01-01T00:00:00Z", 300)] {
        let mut reader = export::Reader::new(public(), Vec::new());
        text(path).await.lines().for_each(|line| reader.line(line.as_bytes()).expect("holds"));
        assert_eq!(reader.end().expect("holds").entries, entries);
    }
    assert_eq!(text("/export?format=ocsf").await.lines().count(), 300);
    tiles_are_served(&async |path: &str| get(path, &api_key).await.expect("answers")).await;
    assert_eq!(get("/tile/0/000", "kage_no_key").await.expect("answers").status(), 401);
    // Filters of requests.
    for (filter, entries) in
        [("task=00000000-0000-0000-0000-000000000001", 0), ("address=192.0.2.0/24", 0), ("route=GET%20/", 0)]
    {
        let found = json(&format!("?{filter}")).await;
        assert_eq!(found["entries"].as_array().map(Vec::len), Some(entries), "{filter}");
    }
    for wrong in ["?address=here", "?task=1", "?address=192.0.2.0/64"] {
        assert_eq!(get(wrong, &api_key).await.expect("answers").status(), 422, "{wrong}");
    }
    // What an administrator changed afterwards is not passed off as what was recorded.
    trail.tamper("UPDATE audit_entries SET object = 'task:other' WHERE object = 'task:257'").await;
    let page = json("?cursor=256&limit=2").await;
    let entries = page["entries"].as_array().expect("a list");
    let marks: Vec<_> = entries.iter().map(|one| (&one["index"], &one["as_recorded"])).collect();
    let (one, other) = (Value::from(256), Value::from(257));
    assert_eq!(marks, [(&one, &Value::Bool(true)), (&other, &Value::Bool(false))]);
    assert_eq!(json("/256/proof").await["as_recorded"], true);
    assert_eq!(get("/257/proof", &api_key).await.expect("answers").status(), 500);
    // A stream whose first page fails never begins, or breaks off.
    let events = match get("/export?format=ocsf", &api_key).await {
        Ok(answer) => answer.text().await,
        Err(error) => Err(error),
    };
    assert!(events.is_err(), "{events:?}");
}

/// A monitor that knows the specification alone reads the log over HTTP.
async fn tiles_are_served(get: &impl AsyncFn(&str) -> reqwest::Response) {
    let mut served = std::collections::BTreeMap::new();
    let paths = [
        "checkpoint",
        "tile/entries/000",
        "tile/entries/001.p/44",
        "tile/0/000",
        "tile/0/001.p/44",
        "tile/1/000.p/1",
    ];
    for path in paths {
        let answer = get(&format!("/{path}")).await;
        assert_eq!(answer.status(), 200, "{path}");
        let kind = answer.headers()["content-type"].to_str().expect("text").to_owned();
        let expected =
            if path == "checkpoint" { "text/plain; charset=utf-8" } else { "application/octet-stream" };
        assert_eq!(kind, expected, "{path}");
        served.insert(path, answer.bytes().await.expect("a body").to_vec());
    }
    let of = |path: &str| served.get(path).cloned();
    let vkey = public()[0].to_string();
    assert_eq!(crate::monitor::entries(&of, &vkey).expect("holds").len(), 300);
    // What the log has not grown to is not there, and no other path leads anywhere.
    for path in [
        "tile/0/001",
        "tile/0/001.p/45",
        "tile/0/002",
        "tile/1/000",
        "tile/1/000.p/2",
        "tile/2/000.p/1",
        "tile/entries/001",
        "tile/entries/001.p/0",
        "tile/0/1",
        "tile/entries/..%2Fcheckpoint",
        "tile/0/x001/000",
        "tile/",
        "tile/64/000",
        "tile/0/x999/x999/x999/x999/x999/x999/x999/999",
    ] {
        assert_eq!(get(&format!("/{path}")).await.status(), 404, "{path}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_role_says_when_it_starts_and_stops_and_with_what_settings() {
    let trail = Trail::new().await;
    let home = tempfile::tempdir().expect("a folder");
    let folder = home.path();
    let key = folder.join("key").display().to_string();
    assert!(
        run(kage(&trail, folder, &["audit", "keygen", "--name", "kage.test/audit", "--out", &key]))
            .status
            .success()
    );
    let secret = std::fs::read_to_string(&key).expect("a key");
    let entries = async || -> Vec<(String, String, Value)> {
        sqlx::query_as(
            "SELECT action, outcome, details FROM audit_entries WHERE object = 'role:sequencer' ORDER BY at",
        )
        .fetch_all(trail.pool())
        .await
        .expect("reads")
    };
    for (round, batch) in ["100", "200"].into_iter().enumerate() {
        let mut command = kage(&trail, folder, &["sequencer"]);
        command.env_remove("KAGE_SEQUENCER_ANCHOR_FILE").env_remove("KAGE_SEQUENCER_ANCHOR_GIT");
        command.env_remove("KAGE_SEQUENCER_ANCHOR_SYSLOG").env("KAGE_SEQUENCER_BATCH", batch);
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("starts");
        until("it has started", async || entries().await.len() == round * 2 + 1).await;
        let pid = rustix::process::Pid::from_child(&child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).expect("is there");
        assert!(child.wait().expect("ends").success());
    }
    let rows = entries().await;
    let actions: Vec<(&str, &str)> = rows.iter().map(|row| (row.0.as_str(), row.1.as_str())).collect();
    assert_eq!(
        actions,
        [("role.start", "done"), ("role.stop", "done"), ("role.start", "done"), ("role.stop", "done")]
    );
    let (first, second) = (&rows[0].2, &rows[2].2);
    assert_eq!(first["settings"]["KAGE_SEQUENCER_KEY"], "set");
    assert_eq!(first["settings"]["KAGE_SEQUENCER_BATCH"], "100");
    assert_eq!(first["changed"], Value::Null);
    assert_eq!(
        second["changed"],
        serde_json::json!({ "KAGE_SEQUENCER_BATCH": { "from": "100", "to": "200" } })
    );
    assert_ne!(first["settings_sha256"], second["settings_sha256"]);
    assert!(!rows.iter().any(|row| row.2.to_string().contains(secret.trim())));
    // One that does not come to begin says that too.
    let mut command = kage(&trail, folder, &["sequencer"]);
    command.env("KAGE_SEQUENCER_ANCHOR_GIT", folder.join("nothing.git"));
    assert!(!run(command).status.success());
    assert_eq!((entries().await[5].0.as_str(), entries().await[5].1.as_str()), ("role.stop", "failed"));
}
