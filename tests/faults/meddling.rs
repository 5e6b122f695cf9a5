//! Somebody else's hands on our containers.

use serde_json::{Value, json};

use crate::support::TestKage;
use crate::support::tasks::{shell, shell_with, string};
use crate::world::{apart, assert_result};

async fn begun(kage: &TestKage, task: &Value) -> (String, String) {
    let submitted = kage.submit(task).await;
    let id = string(&submitted["id"]).to_owned();
    kage.says(&id, "shell", "begun").await;
    (id, kage.containers().remove(0))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn removed_killed_and_paused() {
    let (kage, _) = apart(&[]).await;
    let sleeps = shell("echo begun; echo x > half; sleep 300");
    for arguments in [&["rm", "--force"][..], &["kill"], &["stop", "--time", "1"]] {
        let (id, container) = begun(&kage, &sleeps).await;
        kage.docker(&[arguments, &[&container]].concat());
        let task = kage.ended(&id).await;
        let run = &task["runs"][0];
        println!("docker {arguments:?}: {}: {}", run["state"], run["error"]);
        // `stop` ends the CLI through the shim, which then tells of it: as when the whole engine is stopped.
        let expected: &[&str] =
            if arguments[0] == "stop" { &["lost", "sandbox_error"] } else { &["sandbox_error"] };
        assert!(expected.contains(&string(&run["state"])), "{arguments:?}: {run}");
        assert!(kage.containers().is_empty());
    }

    // Paused for a while: it goes on as if nothing had been.
    let (id, container) = begun(&kage, &shell("echo begun; sleep 2; echo 5 > result")).await;
    kage.docker(&["pause", &container]);
    tokio::time::sleep(std::time::Duration::from_secs(4)).await;
    kage.docker(&["unpause", &container]);
    let task = kage.ended(&id).await;
    assert_result(&kage, &task, 5);

    // Paused for good: the idle limit ends it, though the shim cannot answer.
    let task = shell_with("echo begun; sleep 300", &json!({ "idle_timeout": 4 }));
    let (id, container) = begun(&kage, &task).await;
    kage.docker(&["pause", &container]);
    let task = kage.ended(&id).await;
    assert_eq!(task["runs"][0]["state"], "idle_timeout", "{task}");
    assert!(kage.containers().is_empty());
}
