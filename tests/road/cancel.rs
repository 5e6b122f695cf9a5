//! Cancelling, in every state that a task can be in.

use serde_json::{Value, json};

use crate::support::TestKage;
use crate::support::git::git;
use crate::support::sse::output;
use crate::support::tasks::{shell, string};

async fn cancel(kage: &TestKage, id: &str) -> u16 {
    let answer = kage.delete(&format!("/api/v1/tasks/{id}")).await;
    match answer.status {
        200 => {
            assert_eq!(answer.json()["status"], "cancelled");
            assert_eq!(answer.json()["task_id"], id);
        }
        status => {
            answer.problem(status);
        }
    }
    answer.status
}

fn assert_cancelled(task: &Value) {
    assert_eq!(task["status"], "cancelled", "{task}");
    assert_eq!(task["error"], "cancelled by a client");
    for result in task["cli_results"].as_array().expect("a list") {
        assert_eq!(result["status"], "cancelled", "{task}");
    }
}

#[tokio::test]
async fn a_task_that_waits_ends_at_once() {
    let mut kage = TestKage::new().await;
    kage.start("api").await;
    let runner = kage.start("runner").await;
    kage.demo().await;
    assert!(kage.process(runner).terminate().await.success());

    let mut task = shell("echo never to be run");
    task["cli_assignments"] = json!([{ "cli_name": "shell" }, { "cli_name": "shell" }]);
    let task = kage.submit(&task).await;
    let id = string(&task["id"]);
    let mut stream = kage.stream(id, "").await;
    assert_eq!(stream.next().await.expect("connected").name, "connected");
    assert_eq!(cancel(&kage, id).await, 200);
    let task = kage.task(id).await;
    assert_cancelled(&task);
    assert!(!task["completed_at"].is_null() && task["started_at"].is_null(), "{task}");
    let names: Vec<String> = stream.rest().await.into_iter().map(|event| event.name).collect();
    let (state, progress) = ("state".to_owned(), "progress".to_owned());
    let (result, complete) = ("result".to_owned(), "task_complete".to_owned());
    let one = [state.clone(), progress, result];
    assert_eq!(names, [&[state.clone(), state][..], &one, &one, &[complete]].concat());
    // It has ended: there is nothing to cancel, and a runner that comes takes nothing up.
    assert_eq!(cancel(&kage, id).await, 409);
    kage.start("runner").await;
    let other = kage.run(&shell("echo another one > file")).await;
    assert_eq!(other["status"], "completed");
    let untouched = kage.task(id).await;
    assert_eq!((&untouched["runs"], &untouched["updated_at"]), (&task["runs"], &task["updated_at"]));
}

#[tokio::test]
async fn work_that_was_begun_is_kept() {
    let kage = TestKage::serving(&[("KAGE_RUNNER_GRACE_SECS", "2")]).await;
    kage.demo().await;
    let stubborn = "trap '' TERM; echo partial > work; (trap '' TERM; sleep 1000) & echo begun; while :; do sleep 1; done";
    let polite = "trap 'echo tidy > tidy; echo bye; exit 3' TERM; echo partial > work; echo begun; while :; do sleep 0.1; done";
    let (stubborn, polite) = (kage.submit(&shell(stubborn)).await, kage.submit(&shell(polite)).await);
    let mirror = kage.mirror("demo");
    for task in [&stubborn, &polite] {
        let id = string(&task["id"]);
        kage.says(id, "shell", "begun").await;
        assert_eq!(cancel(&kage, id).await, 200);
        // Told already; it is on its way out, or out.
        assert_eq!(cancel(&kage, id).await, 409);
        let task = kage.ended(id).await;
        assert_cancelled(&task);
        let run = &task["runs"][0];
        assert_eq!(run["state"], "cancelled");
        assert_eq!(git(&mirror, ["show", &format!("{}:work", string(&run["branch"]))]), "partial");
        assert_eq!(cancel(&kage, id).await, 409);
    }
    // Whoever hears SIGTERM may end in order, and is heard to the end.
    let polite = kage.task(string(&polite["id"])).await;
    let run = &polite["runs"][0];
    assert_eq!(run["exit_code"], 3);
    assert_eq!(git(&mirror, ["show", &format!("{}:tidy", string(&run["branch"]))]), "tidy");
    // Bash tells of its own child's end on the other stream.
    let events = kage.events(string(&polite["id"]), "").await;
    assert_eq!(output(&events, "shell", "stdout"), b"begun\nbye\n");
}

#[tokio::test]
async fn one_run_that_has_ended_stays_as_it_ended() {
    let kage = TestKage::serving(&[("KAGE_RUNNER_GRACE_SECS", "1")]).await;
    kage.demo().await;
    let mut task =
        shell("echo $KAGE_RUN > who; if [ $KAGE_RUN = shell ]; then exit 0; fi; echo begun; sleep 1000");
    task["cli_assignments"] = json!([{ "cli_name": "shell" }, { "cli_name": "shell" }]);
    let id = string(&kage.submit(&task).await["id"]).to_owned();
    kage.says(&id, "shell-2", "begun").await;
    kage.reaches(&id, 0, "succeeded").await;
    assert_eq!(cancel(&kage, &id).await, 200);
    let task = kage.ended(&id).await;
    assert_eq!(task["status"], "cancelled");
    assert_eq!(
        (&task["runs"][0]["state"], &task["runs"][1]["state"]),
        (&json!("succeeded"), &json!("cancelled"))
    );
    assert_eq!((&task["success_count"], &task["failure_count"]), (&json!(1), &json!(1)));
}

#[tokio::test]
async fn cancelling_while_a_sandbox_is_made_leaves_nothing() {
    let kage = TestKage::serving(&[("KAGE_RUNNER_GRACE_SECS", "1")]).await;
    kage.demo().await;
    let mut states = Vec::new();
    for round in 0..8 {
        let task = kage.submit(&shell("echo begun > file; sleep 1000")).await;
        let id = string(&task["id"]);
        let mut stream = kage.stream(id, "").await;
        stream.until(|event| event.name == "state" && event.data["state"] == "preparing").await;
        // Anywhere between the claim and the CLI's first steps.
        tokio::time::sleep(std::time::Duration::from_millis(round * 40)).await;
        assert_eq!(cancel(&kage, id).await, 200);
        let events = stream.rest().await;
        assert_eq!(events.last().expect("events").name, "task_complete");
        let task = kage.task(id).await;
        assert_cancelled(&task);
        states.push(task["runs"][0]["error"].clone());
        assert_eq!(kage.containers(), Vec::<String>::new(), "round {round}");
    }
    assert!(states.iter().any(|why| why != "cancelled by a client"), "never while preparing: {states:?}");
}
