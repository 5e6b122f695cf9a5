//! An engine that does not do as it is told: a socket in front of it changes one word of what it is asked for.

use std::path::Path;

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{UnixListener, UnixStream};

use crate::support::engine;
use crate::support::tasks::{shell, string};
use crate::world::{apart, assert_result};

/// Puts `lie` in the place of `word`, which is as long, in all that goes to the engine.
fn lying(path: &Path, word: &'static str, lie: &'static str) {
    assert_eq!(word.len(), lie.len(), "the request says how long it is");
    let listener = UnixListener::bind(path).expect("binds");
    let target = engine().strip_prefix("unix://").expect("a unix:// URL").to_owned();
    tokio::spawn(async move {
        loop {
            let (near, _) = listener.accept().await.expect("accepts");
            let far = UnixStream::connect(&target).await.expect("the engine answers");
            let ((mut near_read, mut near_write), (mut far_read, mut far_write)) =
                (near.into_split(), far.into_split());
            tokio::spawn(async move { tokio::io::copy(&mut far_read, &mut near_write).await });
            tokio::spawn(async move {
                let (mut held, mut chunk) = (String::new(), vec![0; 64 << 10]);
                while let Ok(read @ 1..) = near_read.read(&mut chunk).await {
                    held.push_str(std::str::from_utf8(&chunk[..read]).expect("requests are text"));
                    held = held.replace(word, lie);
                    // The word may go on in the next chunk.
                    let kept = (1..word.len()).rev().find(|length| held.ends_with(&word[..*length]));
                    let rest = held.split_off(held.len() - kept.unwrap_or(0));
                    far_write.write_all(held.as_bytes()).await.expect("the engine reads");
                    held = rest;
                }
                far_write.shutdown().await
            });
        }
    });
}

/// Outcomes of the proof in the audit trail, with what was found.
async fn proofs(kage: &crate::support::TestKage, run: &Value) -> Vec<(String, Value)> {
    sqlx::query_as(
        "SELECT outcome, details FROM audit_entries WHERE action = 'sandbox.contained' AND object = $1",
    )
    .bind(format!("run:{}", string(&run["id"])))
    .fetch_all(kage.pool())
    .await
    .expect("the audit trail")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sandbox_that_is_not_as_asked_for_gets_no_job() {
    for (word, lie, surprise) in [
        (r#""PidsLimit":512"#, r#""PidsLimit":513"#, "the limit of processes is"),
        (r#""CgroupnsMode":"private""#, r#""CgroupnsMode":"host"   "#, "no cgroup namespace of its own"),
        (r#""ReadonlyRootfs":true"#, r#""readonlyRootfx":true"#, "/ is not read-only"),
        (r#""Target":"/run/kage-shim""#, r#""Target":"/run/kage-shin""#, ""),
    ] {
        let folder = tempfile::tempdir().expect("a folder");
        let socket = folder.path().join("docker.sock");
        lying(&socket, word, lie);
        let (kage, _) = apart(&[("KAGE_RUNNER_DOCKER", &format!("unix://{}", socket.display()))]).await;
        let mut task = shell("echo begun; touch ran");
        task["max_retries"] = json!(2);
        task["retry_delay"] = json!(1);
        let id = string(&kage.submit(&task).await["id"]).to_owned();
        let task = kage.ended(&id).await;
        let run = &task["runs"][0];
        println!("{lie}: {}: {}", run["state"], run["error"]);
        assert!(kage.containers().is_empty());
        assert_eq!((&run["output_bytes"], &run["branch"]), (&json!(0), &Value::Null), "{run}");
        if surprise.is_empty() {
            // Without its shim it does not even start, and nobody takes that for a proof.
            assert_eq!((&run["state"], &run["contained"]), (&json!("sandbox_error"), &Value::Null), "{run}");
            continue;
        }
        assert_eq!((&run["state"], &run["contained"]), (&json!("containment_refused"), &json!(false)));
        assert_eq!(run["attempt"], 1, "another try would be no better: {run}");
        assert!(string(&run["error"]).contains(surprise), "{run}");
        let proof = &run["containment"];
        assert_eq!(proof["state"], "refused", "{proof}");
        assert!(proof["surprises"].to_string().contains(surprise), "{proof}");
        assert!(proof["checks"].to_string().contains("\"surprise\""), "{proof}");
        let proofs = proofs(&kage, run).await;
        assert_eq!(proofs.len(), 1);
        assert_eq!(proofs[0].0, "refused");
        let said = proofs[0].1["containment"]["surprises"].to_string();
        assert!(said.contains(surprise), "{said}");
        // Somebody is to hear of it.
        let told =
            kage.get(&format!("/api/v1/security-events?kind=sandbox.containment_refused&task={id}")).await;
        let told = told.json();
        let event = &told["events"][0];
        assert_eq!((&event["severity"], &event["run_id"]), (&json!("critical"), &run["id"]), "{told}");
        assert!(event["details"]["surprises"].to_string().contains(surprise), "{told}");
        assert_eq!(told["events"].as_array().map(Vec::len), Some(1));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_proof_is_on_record_before_the_job() {
    let (kage, _) = apart(&[]).await;
    let id = string(&kage.submit(&shell("echo 1 > result")).await["id"]).to_owned();
    let task = kage.ended(&id).await;
    assert_result(&kage, &task, 1);
    let run = &task["runs"][0];
    assert_eq!(run["contained"], true);
    assert_eq!(run["refused_calls"], json!([]), "what the shim tries is no news of the CLI: {run}");
    assert_eq!(run["refused_calls_recorded"], "recorded");
    let proof = &run["containment"];
    assert_eq!((&proof["state"], &proof["attempt"]), (&json!("proved"), &json!(1)), "{proof}");
    let checks = proof["checks"].as_array().expect("checks");
    assert!(checks.len() == 9 && checks.iter().all(|check| check["result"] == "ok"), "{proof}");
    assert!(proof["took_ms"].as_f64().is_some_and(|took| took > 0.0), "{proof}");
    assert_eq!(proof["found"], Value::Null, "the facts are the audit trail's: {proof}");
    let proofs = proofs(&kage, run).await;
    assert_eq!(proofs.len(), 1);
    let (outcome, details) = &proofs[0];
    assert_eq!((outcome.as_str(), &details["containment"]["surprises"]), ("done", &json!([])));
    let found = &details["containment"]["found"];
    assert_eq!((&found["status"]["Seccomp"], &found["interfaces"]), (&json!("2"), &json!(["lo"])));
    assert_eq!(found["calls"]["unshare user"], "EPERM");
    let data = kage.mirror("demo");
    let data = data.parent().and_then(std::path::Path::parent).expect("the data folder");
    assert!(!found.to_string().contains(&*data.to_string_lossy()), "no path of the host");
}
