//! Far more runs than slots.

use serde_json::json;

use crate::support::sse::{assert_contiguous, output};
use crate::support::tasks::{shell, string};
use crate::world::apart;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sixty_runs_in_three_slots() {
    let (mut kage, roles) = apart(&[("KAGE_RUNNER_CONCURRENCY", "3")]).await;
    let mut tasks = Vec::new();
    for number in 0..30 {
        let mut task = shell(&format!("echo \"{number} $KAGE_RUN\"; echo {number} > result"));
        task["cli_assignments"] = json!([{ "cli_name": "shell" }, { "cli_name": "shell" }]);
        tasks.push(string(&kage.submit(&task).await["id"]).to_owned());
    }
    let mut most = 0;
    for (number, id) in tasks.iter().enumerate() {
        loop {
            most = most.max(kage.containers().len());
            if !kage.task(id).await["completed_at"].is_null() {
                break;
            }
        }
        let events = kage.events(id, "").await;
        assert_contiguous(&events, 1);
        for name in ["shell", "shell-2"] {
            assert_eq!(output(&events, name, "stdout"), format!("{number} {name}\n").as_bytes());
        }
        let task = kage.task(id).await;
        assert_eq!(task["status"], "completed", "{task}");
        assert_eq!(task["success_count"], 2, "{task}");
    }
    // One that is being removed may still be listed while the next one is made.
    assert!((1..=6).contains(&most), "{most} containers at once in three slots");
    kage.process(roles.runner).assert_alive();
}
