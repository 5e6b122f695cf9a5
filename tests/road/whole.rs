//! Limits on the whole: of what waits, of streams, of what works on one repository.

use serde_json::{Value, json};

use crate::support::http::{Answer, send};
use crate::support::tasks::{shell, string};
use crate::support::{TestKage, eventually, free_port};

const SCOPES: [&str; 2] = ["tasks:read", "tasks:write"];

/// The API alone: what is submitted waits.
async fn without_runner(settings: &[(&str, &str)]) -> TestKage {
    let mut kage = TestKage::new().await;
    kage.start_with("api", settings).await;
    let runner = kage.start("runner").await;
    kage.demo().await;
    assert!(kage.process(runner).terminate().await.success());
    kage
}

/// Checks that each answer is a task, or a refusal of this status and kind; how many tasks there are.
fn taken(answers: &[Answer], status: u16, kind: &str) -> usize {
    let (taken, refused): (Vec<&Answer>, Vec<&Answer>) =
        answers.iter().partition(|answer| answer.status == 201);
    for answer in refused {
        assert_eq!(answer.problem(status)["type"], format!("urn:kage:problem:{kind}"));
        assert!(answer.header("retry-after").parse::<u64>().is_ok_and(|seconds| seconds > 0));
    }
    taken.len()
}

async fn series(kage: &TestKage, port: u16, name: &str) -> String {
    let page = kage.http.get(format!("http://127.0.0.1:{port}/metrics")).send().await.expect("the page");
    let page = page.text().await.expect("text");
    let line =
        page.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_else(|| panic!("{name}: {page}"));
    line.trim().to_owned()
}

/// What the trail has of refusals for this reason: who, and the status does not matter.
async fn refusals(kage: &TestKage, reason: &str) -> Vec<Value> {
    let statement = "SELECT json_build_object('who', actor_id, 'object', object) FROM audit_entries
                     WHERE action = 'access.refuse' AND details ->> 'reason' = $1 ORDER BY at";
    sqlx::query_scalar(statement).bind(reason).fetch_all(kage.pool()).await.expect("reads")
}

#[tokio::test]
async fn a_queue_has_an_end_for_each_key_and_for_all() {
    let port = free_port();
    let listen = format!("127.0.0.1:{port}");
    let kage = without_runner(&[
        ("KAGE_API_QUEUE_RUNS_KEY", "3"),
        ("KAGE_API_QUEUE_RUNS", "5"),
        ("KAGE_METRICS_LISTEN", &listen),
    ])
    .await;
    let (greedy_id, greedy) = kage.key_with(&json!({ "scopes": SCOPES })).await;
    let (_, other) = kage.key_with(&json!({ "scopes": SCOPES })).await;
    let (_, third) = kage.key_with(&json!({ "scopes": SCOPES })).await;
    let one = shell("echo never to be run");
    let at_once = async |key: &str| {
        let all = (0..8).map(|_| kage.post_as("/api/v1/tasks", key, &one));
        futures::future::join_all(all).await
    };
    // A task whose answer was lost is found again, however full the queue is by then.
    let first =
        kage.with_key(reqwest::Method::POST, "/api/v1/tasks", &greedy).header("Idempotency-Key", "once");
    let again = first.try_clone().expect("no body yet").json(&one);
    let submitted = send(first.json(&one)).await;
    assert_eq!(submitted.status, 201, "{}", submitted.text());
    let id = string(&submitted.json()["id"]).to_owned();
    assert_eq!(taken(&at_once(&greedy).await, 429, "queue-full"), 2, "with the first one: three");
    let mut two = one.clone();
    two["cli_assignments"] = json!([{ "cli_name": "shell" }, { "cli_name": "shell" }]);
    // Another key is not held up; both together are.
    let answer = kage.post_as("/api/v1/tasks", &other, &two).await;
    assert_eq!(answer.status, 201, "{}", answer.text());
    let full = at_once(&other).await;
    assert_eq!(taken(&full, 503, "queue-full"), 0);
    let replayed = send(again).await;
    assert_eq!((replayed.status, replayed.header("idempotent-replayed")), (201, "true"));
    let waiting: i64 =
        sqlx::query_scalar("SELECT count(*) FROM runs").fetch_one(kage.pool()).await.expect("counts");
    assert_eq!(waiting, 5, "what was refused is not there");

    // Room for one is no room for two, and what is cancelled waits no more.
    assert_eq!(kage.delete(&format!("/api/v1/tasks/{id}")).await.status, 200);
    let refused = kage.post_as("/api/v1/tasks", &third, &two).await;
    assert_eq!(taken(&[refused], 503, "queue-full"), 0);
    assert_eq!(kage.post_as("/api/v1/tasks", &third, &one).await.status, 201);

    assert_eq!(series(&kage, port, "kage_limit_refusals_total{limit=\"queue_of_key\"}").await, "6");
    assert_eq!(series(&kage, port, "kage_limit_refusals_total{limit=\"queue\"}").await, "9");
    eventually("both are in the trail", async || {
        let seen = refusals(&kage, "queue-full").await;
        let both = seen.len() >= 2 && seen.iter().any(|entry| entry["who"] == greedy_id.as_str());
        both.then(|| {
            assert!(seen.iter().all(|entry| entry["object"] == "route:POST /api/v1/tasks"), "{seen:?}")
        })
    })
    .await;
}

#[tokio::test]
async fn a_key_has_so_many_streams_and_gets_its_places_back() {
    let kage = without_runner(&[("KAGE_API_STREAMS_KEY", "1"), ("KAGE_API_STREAMS", "2")]).await;
    let (id, key) = kage.key_with(&json!({ "scopes": SCOPES })).await;
    let (_, third) = kage.key_with(&json!({ "scopes": SCOPES })).await;
    let task = string(&kage.submit(&shell("echo never to be run")).await["id"]).to_owned();
    let path = format!("/api/v1/tasks/{task}/progress");
    let open = async |key: &str| {
        let answer = kage.with_key(reqwest::Method::GET, &path, key).send().await.expect("an answer");
        let retry = answer.headers().contains_key("retry-after");
        (answer.status().as_u16(), retry, answer)
    };
    let held = open(&key).await;
    assert_eq!(held.0, 200);
    for _ in 0..3 {
        let refused = open(&key).await;
        assert_eq!((refused.0, refused.1), (429, true));
    }
    let second = open(&kage.key).await;
    assert_eq!(second.0, 200, "another key has its own");
    let refused = open(&third).await;
    assert_eq!((refused.0, refused.1), (503, true));
    // However often it comes and goes: each that is given up gives its place back.
    let mut held = held;
    for _ in 0..10 {
        drop(held);
        held = eventually("its place comes back", async || {
            let next = open(&key).await;
            (next.0 == 200).then_some(next)
        })
        .await;
    }
    eventually("the trail knows of it", async || {
        refusals(&kage, "streams-full").await.iter().any(|entry| entry["who"] == id.as_str()).then_some(())
    })
    .await;
    drop((held, second));
    kage.delete(&format!("/api/v1/tasks/{task}")).await;
}

/// From when it began to when it ended.
fn span(run: &Value) -> (String, String) {
    (string(&run["started_at"]).to_owned(), string(&run["finished_at"]).to_owned())
}

#[tokio::test]
async fn runs_of_one_repository_wait_for_one_another() {
    let kage = TestKage::serving(&[("KAGE_RUNNER_REPOSITORY_CONCURRENCY", "1")]).await;
    kage.demo().await;
    let mut task = shell("echo x > x; sleep 0.5");
    task["cli_assignments"] = json!([{ "cli_name": "shell" }, { "cli_name": "shell" }]);
    let ended = kage.run(&task).await;
    assert_eq!(ended["status"], "completed", "{ended}");
    let mut spans: Vec<_> = ended["runs"].as_array().expect("runs").iter().map(span).collect();
    spans.sort();
    assert!(spans[0].1 <= spans[1].0, "both at once: {spans:?}");
}
