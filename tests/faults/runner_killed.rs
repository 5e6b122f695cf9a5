//! kill -9 of the runner, wherever it stands.

use std::time::Duration;

use rand::{RngExt, SeedableRng};
use serde_json::json;

use crate::support::eventually;
use crate::support::sse::output;
use crate::support::tasks::{shell, shell_with, string};
use crate::watcher::Watcher;
use crate::world::{apart, assert_result, numbered};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn amid_the_output() {
    let (mut kage, mut roles) = apart(&[]).await;
    let task = kage.submit(&shell(&numbered(20_000, 500))).await;
    let id = string(&task["id"]);
    let watcher = Watcher::follow(&kage, id);
    for text in ["line 600\n", "line 6000\n", "line 12000\n"] {
        kage.says(id, "shell", text).await;
        kage.process(roles.runner).kill_9();
        assert_eq!(kage.containers().len(), 1);
        roles.runner = kage.start("runner").await;
    }
    let seen = watcher.end().await;
    seen.assert_lines("shell", 20_000);
    assert_eq!(seen.states("shell"), ["queued", "preparing", "running", "harvesting", "succeeded"]);
    let task = kage.task(id).await;
    assert_eq!(task["runs"][0]["attempt"], 1);
    assert_result(&kage, &task, 20_000);
}

/// Output that waits in the shim while there is no runner, more than its buffer holds.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_the_cli_writes_more_than_anybody_keeps() {
    let (mut kage, roles) = apart(&[]).await;
    let script = "echo begun; sleep 1; for i in $(seq 1 400000); do echo \"a longer line of output, number $i\"; \
                  done; echo 400000 > result";
    let task = kage.submit(&shell(script)).await;
    let id = string(&task["id"]);
    let watcher = Watcher::follow(&kage, id);
    kage.says(id, "shell", "begun").await;
    kage.process(roles.runner).kill_9();
    tokio::time::sleep(Duration::from_secs(5)).await;
    kage.start("runner").await;
    let seen = watcher.end().await;
    let text = String::from_utf8(output(&seen.events, "shell", "stdout")).expect("ASCII");
    let mut lines = text.lines();
    assert_eq!(lines.next(), Some("begun"));
    for number in 1..=400_000 {
        assert_eq!(lines.next(), Some(format!("a longer line of output, number {number}").as_str()));
    }
    assert_eq!(lines.next(), None);
    assert_result(&kage, &kage.task(id).await, 400_000);
}

/// The cut itself must survive: a run over its limit is not begun anew.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_the_output_limit_has_struck() {
    let settings = [("KAGE_LIMIT_OUTPUT_BYTES", "100000"), ("KAGE_RUNNER_GRACE_SECS", "30")];
    let (mut kage, roles) = apart(&settings).await;
    let mut task = shell("trap '' TERM; seq -f 'line %.0f' 1 30000; sleep 300");
    task["max_retries"] = 2.into();
    let submitted = kage.submit(&task).await;
    let id = string(&submitted["id"]);
    eventually("the limit is reached", || async {
        (kage.task(id).await["runs"][0]["output_bytes"] == 100_000).then_some(())
    })
    .await;
    kage.process(roles.runner).kill_9();
    kage.start("runner").await;
    let task = kage.ended(id).await;
    let run = &task["runs"][0];
    assert_eq!((&run["state"], &run["attempt"]), (&"output_limit".into(), &1.into()), "{task}");
    assert_eq!(run["output_bytes"], 100_000);
}

/// Why a CLI was told to end outlives the runner that told it: its end is not taken for its own doing, and its last words and work are
/// kept as they would be.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_it_told_a_cli_to_end() {
    let (mut kage, roles) = apart(&[]).await;
    let script = "trap 'echo told; sleep 3; seq -f \"last %.0f\" 12; echo 1 > result; exit 9' TERM; echo begun; \
                  while :; do sleep 0.1; done";
    let idle = kage.submit(&shell_with(script, &json!({ "idle_timeout": 2 }))).await;
    let cancelled = kage.submit(&shell(script)).await;
    let (idle, cancelled) = (string(&idle["id"]), string(&cancelled["id"]));
    kage.says(cancelled, "shell", "begun").await;
    let answer = kage.delete(&format!("/api/v1/tasks/{cancelled}")).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    for id in [idle, cancelled] {
        kage.says(id, "shell", "told").await;
    }
    kage.process(roles.runner).kill_9();
    tokio::time::sleep(Duration::from_secs(5)).await;
    kage.start("runner").await;
    for (id, state) in [(idle, "idle_timeout"), (cancelled, "cancelled")] {
        let run = kage.ended(id).await["runs"][0].clone();
        assert_eq!((&run["state"], &run["attempt"]), (&state.into(), &1.into()), "{run}");
        assert_eq!((&run["exit_code"], &run["files_changed"]), (&9.into(), &1.into()), "{run}");
        let said = String::from_utf8(output(&kage.events(id, "").await, "shell", "stdout")).expect("ASCII");
        assert!(said.starts_with("begun\ntold\nlast 1\n") && said.ends_with("\nlast 12\n"), "{said}");
    }
}

/// What a CLI said of a fault that passes is heard by the runner that sees its end, too.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn between_a_clis_last_words_and_its_end() {
    let (mut kage, roles) = apart(&[]).await;
    let script =
        "[ $KAGE_ATTEMPT = 2 ] || { echo 'connection reset by peer' >&2; sleep 4; exit 1; }; echo 1 > result";
    let mut task = shell(script);
    task["max_retries"] = 1.into();
    let submitted = kage.submit(&task).await;
    let id = string(&submitted["id"]);
    kage.says(id, "shell", "connection reset").await;
    kage.process(roles.runner).kill_9();
    kage.start("runner").await;
    let run = kage.ended(id).await["runs"][0].clone();
    assert_eq!((&run["state"], &run["attempt"]), (&"succeeded".into(), &2.into()), "{run}");
}

/// Killed after a random while, over and over, until the run is done: preparing, starting, running, harvesting.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn at_any_moment() {
    const ROUNDS: u64 = 12;
    let (mut kage, mut roles) = apart(&[]).await;
    let seed: u64 =
        std::env::var("KAGE_TEST_SEED").ok().and_then(|text| text.parse().ok()).unwrap_or_else(rand::random);
    println!("KAGE_TEST_SEED={seed}");
    let mut random = rand::rngs::StdRng::seed_from_u64(seed);
    let mut kills = std::collections::BTreeMap::<String, usize>::new();
    for round in 0..ROUNDS {
        // Many files, so that the harvest takes its time.
        let script = "for i in $(seq 1 50); do echo \"line $i\"; done; mkdir d; cd d; \
                      for i in $(seq 1 3000); do echo $i > f$i; done; echo 50 > ../result";
        let task = kage.submit(&shell(script)).await;
        let id = string(&task["id"]).to_owned();
        let watcher = Watcher::follow(&kage, &id);
        // Half of the rounds begin early: most of a run is over before its preparation is.
        let mut delay = random.random_range(0..if round % 2 == 0 { 120 } else { 900 });
        loop {
            tokio::time::sleep(Duration::from_millis(delay)).await;
            let state = string(&kage.task(&id).await["runs"][0]["state"]).to_owned();
            // Any end: the assertions below say which one it must be.
            if !["queued", "preparing", "running", "harvesting"].contains(&state.as_str()) {
                break;
            }
            kage.process(roles.runner).kill_9();
            println!("round {round}: killed after {delay} ms, {state}");
            *kills.entry(state).or_default() += 1;
            roles.runner = kage.start("runner").await;
            // Longer each time, on a busy machine too: it must come to an end before the runner is given up.
            delay += delay / 4 + random.random_range(0..500);
        }
        let seen = watcher.end().await;
        seen.assert_lines("shell", 50);
        let task = kage.task(&id).await;
        assert_result(&kage, &task, 50);
        assert_eq!(task["runs"][0]["attempt"], 1, "{task}");
        assert_eq!(task["runs"][0]["files_changed"], 3001);
    }
    println!("kills by state: {kills:?}");
}
