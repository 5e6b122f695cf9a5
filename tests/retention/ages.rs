//! Output, events and results that are too old or too much go, each as a whole, and whoever asks for them hears so.

use chrono::Utc;
use serde_json::Value;
use sqlx::PgPool;
use uuid::Uuid;

use crate::copies::{add_month, copy, day, entries, exists, month, rows};
use crate::support::sse::Event;
use crate::support::tasks::{shell, string};
use crate::support::{TestKage, eventually};

/// A world with a task that wrote and changed something.
async fn world() -> (TestKage, Uuid) {
    let kage = TestKage::serving(&[]).await;
    kage.demo().await;
    let task = kage.run(&shell("echo to the log; echo x > x")).await;
    assert_eq!(task["status"], "completed", "{task}");
    let id = string(&task["id"]).parse().expect("an id");
    (kage, id)
}

fn names(events: &[Event]) -> Vec<&str> {
    events.iter().map(|event| event.name.as_str()).collect()
}

/// The problem of something that was let go.
async fn gone(kage: &TestKage, path: &str) -> Value {
    let answer = kage.get(path).await;
    let problem = answer.problem(410);
    assert_eq!(problem["type"], "urn:kage:problem:let-go");
    problem
}

async fn is_let_go(pool: &PgPool, task: Uuid, what: &str) -> Option<()> {
    let found: bool =
        sqlx::query_scalar("SELECT EXISTS (SELECT FROM let_go WHERE task_id = $1 AND what = $2)")
            .bind(task)
            .bind(what)
            .fetch_one(pool)
            .await
            .expect("looks");
    found.then_some(())
}

#[tokio::test]
async fn a_month_of_output_goes_as_a_whole_and_whoever_asks_hears_so() {
    let (mut kage, new) = world().await;
    let pool = kage.pool().clone();
    // One month of which all has ended, and one in which a task still goes on.
    for ago in [4, 3] {
        add_month(&pool, month(ago)).await;
    }
    let old = copy(&pool, new, day(4, 3), true).await;
    let older_neighbour = copy(&pool, new, day(3, 3), true).await;
    let goes_on = copy(&pool, new, day(3, 4), false).await;
    let tables = [4, 3].map(|ago| format!("events_log_{}", month(ago).format("%Y%m")));
    assert_eq!((rows(&pool, &tables[0], old).await, rows(&pool, &tables[1], goes_on).await), (1, 1));
    let before = kage.task(&old.to_string()).await;
    let all = kage.events(&old.to_string(), "").await;
    assert!(names(&all).contains(&"log") && before["let_go"].is_null(), "{before}");

    kage.spawn_with("retention", &[("KAGE_RETENTION_LOG_DAYS", "40"), ("KAGE_RETENTION_POLL_SECS", "1")]);
    eventually("the month is dropped", async || (!exists(&pool, &tables[0]).await).then_some(())).await;
    eventually("its neighbour's output goes", async || is_let_go(&pool, older_neighbour, "log").await).await;
    // What goes on keeps what it has, and the month that it is in; what is young stays.
    assert!(exists(&pool, &tables[1]).await);
    assert_eq!(
        (rows(&pool, "events_log", older_neighbour).await, rows(&pool, "events_log", goes_on).await),
        (0, 1)
    );
    assert_eq!(rows(&pool, "events_log", new).await, 1);

    let problem = gone(&kage, &format!("/api/v1/tasks/{old}/runs/shell/log")).await;
    assert!(
        problem["detail"].as_str().is_some_and(|it| it.starts_with("the output was let go on 20")),
        "{problem}"
    );
    let mut after = kage.task(&old.to_string()).await;
    let told = after.as_object_mut().and_then(|task| task.remove("let_go")).expect("it says so");
    assert_eq!((&told[0]["what"], &told[0]["rule"], told[1].is_null()), (&"log".into(), &"age".into(), true));
    assert_eq!(after, before, "task, runs and how they ended stay");
    assert_eq!(kage.get(&format!("/api/v1/tasks/{old}/runs/shell/diff")).await.status, 200);
    // A stream says what is missing before it goes on: from the beginning, and from an old cursor.
    let other: Vec<&Event> = all.iter().filter(|event| event.name != "log").collect();
    for (cursor, from) in [("", 0), ("?after=2", 2)] {
        let left = kage.events(&old.to_string(), cursor).await;
        assert_eq!(
            (left[0].name.as_str(), left[0].id, &left[0].data["what"]),
            ("let_go", None, &"log".into())
        );
        let wanted: Vec<&Event> = other.iter().filter(|event| event.id > Some(from)).copied().collect();
        assert_eq!(left[1..].iter().collect::<Vec<_>>(), wanted);
    }
    let said = kage.client(&["logs", &old.to_string()]).await;
    let words = String::from_utf8_lossy(&said.stderr);
    assert_eq!((said.status.code(), words.lines().count()), (Some(3), 1), "{words}");
    assert!(words.contains("the output was let go on 20"), "{words}");
    let said = kage.client(&["logs", "-f", &old.to_string()]).await;
    assert!(said.status.success() && String::from_utf8_lossy(&said.stderr).contains("let go"), "{said:?}");
    let said = kage.client(&["task", &old.to_string()]).await;
    assert!(String::from_utf8_lossy(&said.stdout).contains("let go      the output was"), "{said:?}");

    let entries = entries(&pool, "retention.let_go").await;
    let dropped =
        entries.iter().find(|entry| entry["month"] == month(4).format("%Y-%m").to_string()).expect("told");
    assert_eq!(
        (&dropped["what"], &dropped["rule"], &dropped["tasks"]),
        (&"log".into(), &"age".into(), &1.into())
    );
    assert!(dropped["bytes"].as_i64() > Some(0) && !dropped["ended_until"].is_null(), "{dropped}");
    let single = entries.iter().find(|entry| !entry["task_ids"].is_null()).expect("told");
    assert_eq!((&single["task_ids"], &single["rows"]), (&serde_json::json!([older_neighbour]), &1.into()));
    assert_eq!(entries.len(), 2, "{entries:#?}");
}

#[tokio::test]
async fn results_and_events_go_too() {
    let (mut kage, new) = world().await;
    let pool = kage.pool().clone();
    let stays = copy(&pool, new, Utc::now(), true).await;
    // An age under a month is kept to the day; the month is not waited for.
    sqlx::query("UPDATE tasks SET completed_at = now() - interval '3 days' WHERE id = $1")
        .bind(new)
        .execute(&pool)
        .await
        .expect("the owner may");
    kage.spawn_with(
        "retention",
        &[
            ("KAGE_RETENTION_RESULTS_DAYS", "2"),
            ("KAGE_RETENTION_EVENTS_DAYS", "2"),
            ("KAGE_RETENTION_POLL_SECS", "1"),
        ],
    );
    for what in ["results", "events"] {
        eventually(what, async || is_let_go(&pool, new, what).await).await;
    }
    for what in ["diff", "files"] {
        let problem = gone(&kage, &format!("/api/v1/tasks/{new}/runs/shell/{what}")).await;
        assert!(
            problem["detail"].as_str().is_some_and(|it| it.starts_with("the results were let go")),
            "{problem}"
        );
        assert_eq!(kage.get(&format!("/api/v1/tasks/{stays}/runs/shell/{what}")).await.status, 200);
    }
    // A stream without its last event would never end: there is none.
    let problem = gone(&kage, &format!("/api/v1/tasks/{new}/progress?after=3")).await;
    assert!(
        problem["detail"].as_str().is_some_and(|it| it.starts_with("the events were let go")),
        "{problem}"
    );
    let log = kage.get(&format!("/api/v1/tasks/{new}/runs/shell/log")).await;
    assert_eq!((log.status, log.text().as_str()), (200, "to the log\n"));
    let task = kage.task(&new.to_string()).await;
    assert_eq!(
        (&task["status"], &task["runs"][0]["files_changed"]),
        (&"completed".into(), &1.into()),
        "{task}"
    );
    let said = kage.client(&["diff", &new.to_string()]).await;
    let words = String::from_utf8_lossy(&said.stderr);
    assert_eq!((said.status.code(), words.lines().count()), (Some(3), 1), "{words}");
    assert!(kage.client(&["task", &new.to_string()]).await.status.success());
}
