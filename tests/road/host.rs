//! What the runner makes of the host beneath it: recorded at each start, told by the doctor, and a danger that nobody
//! has accepted ends the start.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use serde_json::{Value, json};
use tokio::net::{UnixListener, UnixStream};

use crate::support::{TestKage, engine};

/// The engine at a socket of our own, which everybody may use.
fn open_to_all(socket: &Path) {
    let listener = UnixListener::bind(socket).expect("binds");
    std::fs::set_permissions(socket, std::fs::Permissions::from_mode(0o666)).expect("chmod");
    let engine = engine().trim_start_matches("unix://").to_owned();
    tokio::spawn(async move {
        while let Ok((mut client, _)) = listener.accept().await {
            let engine = engine.clone();
            tokio::spawn(async move {
                let Ok(mut server) = UnixStream::connect(&engine).await else { return };
                let _ = tokio::io::copy_bidirectional(&mut client, &mut server).await;
            });
        }
    });
}

async fn recorded(kage: &TestKage) -> Vec<(String, Value)> {
    sqlx::query_as("SELECT outcome, details FROM audit_entries WHERE action = 'runner.host' ORDER BY at")
        .fetch_all(kage.pool())
        .await
        .expect("the owner may read")
}

fn finding<'a>(details: &'a Value, id: &str) -> &'a Value {
    let all = details["findings"].as_array().expect("a list");
    all.iter().find(|one| one["id"] == id).unwrap_or_else(|| panic!("no {id} in {details:#}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_danger_ends_the_start_until_it_is_accepted() {
    let mut kage = TestKage::new().await;
    let socket = kage.folder.join("engine.sock");
    open_to_all(&socket);
    kage.set("KAGE_RUNNER_DOCKER", &format!("unix://{}", socket.display()));
    let refused = kage.spawn_with("runner", &[("KAGE_RUNNER_ACCEPT_HOST", "cgroup-v1, socket-group")]);
    assert!(!kage.process(refused).wait().await.success());
    let log = kage.process(refused).log();
    assert!(log.contains("KAGE_RUNNER_ACCEPT_HOST=socket-world") && log.contains("mode 0666"), "{log}");

    let output =
        kage.server_command(&["doctor", "--json", "--role", "runner"]).output().expect("kage starts");
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let lines: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let of_socket = lines.as_array().expect("lines").iter().find(|line| line["name"] == "socket-world");
    let of_socket = of_socket.expect("a line");
    assert_eq!((&of_socket["ok"], &of_socket["severity"]), (&json!(false), &json!("danger")));

    kage.set("KAGE_RUNNER_ACCEPT_HOST", "socket-world");
    kage.start("runner").await;
    let entries = recorded(&kage).await;
    assert_eq!(entries.iter().map(|entry| &*entry.0).collect::<Vec<_>>(), ["refused", "done"]);
    assert_eq!(finding(&entries[0].1, "socket-world")["accepted"], json!(false));
    assert_eq!(finding(&entries[1].1, "socket-world")["accepted"], json!(true));
    let told: Vec<(String, Value)> =
        sqlx::query_as("SELECT kind, details -> 'findings' FROM security_events ORDER BY ordinal")
            .fetch_all(kage.pool())
            .await
            .expect("the owner may read");
    let of = |kind: &str| (kind.to_owned(), json!(["socket-world"]));
    assert_eq!(told, [of("host.danger_refused"), of("host.danger_accepted")]);
    let output = kage.server_command(&["doctor", "host"]).output().expect("kage starts");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && text.contains("Accepted by the operator"), "{text}");
    // What was looked at and is well is told too, and nothing twice.
    for part in [
        "ok      host seccomp: ",
        "ok      host limits: the engine limits memory",
        "WARN    host socket-world: the engine",
    ] {
        assert!(text.contains(part), "{part:?} in {text}");
    }
    assert!(!text.contains(": warning: ") && !text.contains(": info: "), "{text}");

    // A role's container has no other role's secrets: nothing of theirs is broken there.
    let as_runner = kage
        .server_command(&["doctor"])
        .env("KAGE_DATABASE_URL", "postgres://kage_runner@127.0.0.1:1/kage")
        .output();
    let output = as_runner.expect("kage starts");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(text.contains("BROKEN  database: ") && text.contains("ok      engine: "), "{text}");
    assert!(!text.contains("provider"), "{text}");
    assert!(String::from_utf8_lossy(&output.stderr).contains("what the runner needs"), "{output:?}");
}

#[tokio::test]
async fn every_start_is_recorded_with_what_was_found() {
    let mut kage = TestKage::new().await;
    kage.start("runner").await;
    let entries = recorded(&kage).await;
    let [(outcome, details)] = &entries[..] else { panic!("{entries:#?}") };
    assert_eq!(outcome, "done");
    for field in ["engine", "runc", "kernel", "cgroup", "runtime"] {
        assert!(details[field].as_str().is_some_and(|text| !text.is_empty()), "{field}: {details:#}");
    }
    let dangers = details["findings"].as_array().expect("a list").iter();
    assert!(dangers.filter(|one| one["severity"] == "danger").count() == 0, "{details:#}");
}
