//! What a key may use: runs that wait for their turn, days that are counted.

use serde_json::json;

use crate::support::TestKage;
use crate::support::tasks::{shell, string};

#[tokio::test]
async fn runs_wait_for_their_keys_turn_and_days_are_counted() {
    let kage = TestKage::serving(&[]).await;
    kage.demo().await;
    let rights =
        json!({ "scopes": ["tasks:read", "tasks:write", "keys:admin"], "runs_at_once": 1, "runs_a_day": 4 });
    let (id, key) = kage.key_with(&rights).await;
    // What its children use is its own.
    let child = json!({ "name": "child", "scopes": ["tasks:write"], "runs_at_once": 1, "runs_a_day": 4 });
    let child = kage.post_as("/api/v1/keys", &key, &child).await.json();
    let child = string(&child["key"]).to_owned();
    let first = kage.submit_as(&key, &shell("echo holds its place; sleep 600")).await;
    let first = string(&first["id"]).to_owned();
    kage.reaches(&first, 0, "running").await;
    let mut two = shell("echo x > x");
    two["cli_assignments"] = json!([{ "cli_name": "shell" }, { "cli_name": "shell" }]);
    let second = kage.submit_as(&child, &two).await;
    let own = kage.get_as("/api/v1/keys/self", &key).await.json();
    assert_eq!(own["used"], json!({ "runs_at_work": 1, "runs_today": 3, "usd_today": 0.0 }));
    // Another key's run comes and goes meanwhile.
    assert_eq!(kage.run(&shell("echo y > y")).await["status"], "completed");
    let waiting = kage.task(string(&second["id"])).await;
    assert!(
        waiting["runs"].as_array().expect("runs").iter().all(|run| run["state"] == "queued"),
        "{waiting}"
    );
    // The day's fifth run is refused whole, whoever asks, and counts nothing.
    let refused = kage.post_as("/api/v1/tasks", &child, &two).await;
    let problem = refused.problem(429);
    assert!(
        string(&problem["detail"]).contains(&format!("API key {id} may submit 4 runs a day")),
        "{problem}"
    );
    let seconds: u64 = refused.header("retry-after").parse().expect("seconds");
    assert!((1..=86_401).contains(&seconds), "{seconds}");
    // The first run ends, and the two go one after the other.
    kage.delete(&format!("/api/v1/tasks/{first}")).await;
    let ended = kage.ended(string(&second["id"])).await;
    let mut spans: Vec<(String, String)> = ended["runs"]
        .as_array()
        .expect("runs")
        .iter()
        .map(|run| (string(&run["started_at"]).to_owned(), string(&run["finished_at"]).to_owned()))
        .collect();
    spans.sort();
    assert!(spans[0].1 <= spans[1].0, "both at once: {spans:?}");
    assert_eq!(ended["status"], "completed", "{ended}");
    kage.submit_as(&key, &shell("echo the fourth > 4")).await;
    kage.post_as("/api/v1/tasks", &key, &shell("echo the fifth > 5")).await.problem(429);
    // A new day.
    let past = "UPDATE key_days SET day = day - 1";
    sqlx::query(past).execute(kage.pool()).await.expect("a day later");
    let last = kage.submit_as(&key, &shell("echo another day > day")).await;
    kage.ended(string(&last["id"])).await;
    // Money that is spent is spent.
    let (rich, key) = kage.key_with(&json!({ "scopes": ["tasks:write"], "usd_a_day": 2 })).await;
    let spent = "INSERT INTO key_days (key_id, day, spent_micros) VALUES ($1, (now() AT TIME ZONE 'UTC')::date, 2000000)";
    sqlx::query(spent).bind(&rich).execute(kage.pool()).await.expect("spent");
    let problem = kage.post_as("/api/v1/tasks", &key, &shell("echo for money")).await.problem(429);
    assert!(string(&problem["detail"]).contains("2.0000 USD a day (UTC) and has spent 2.0000"), "{problem}");
}
