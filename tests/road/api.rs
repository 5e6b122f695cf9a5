//! Keys, paths, methods, paging, health, and the API's own description.

use reqwest::Method;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::support::TestKage;
use crate::support::http::send;
use crate::support::tasks::{shell, string};

/// Every operation behind the key: method and path, with ids that lead nowhere.
fn keyed() -> Vec<(Method, String)> {
    let task = format!("/api/v1/tasks/{}", Uuid::new_v4());
    let of = |method: &Method, path: &str| (method.clone(), path.to_owned());
    vec![
        of(&Method::GET, "/api/v1/tasks"),
        of(&Method::POST, "/api/v1/tasks"),
        of(&Method::GET, "/api/v1/tasks/stats"),
        of(&Method::GET, &task),
        of(&Method::DELETE, &task),
        of(&Method::GET, &format!("{task}/progress")),
        of(&Method::GET, &format!("{task}/runs/shell/diff")),
        of(&Method::GET, &format!("{task}/runs/shell/log")),
        of(&Method::GET, &format!("{task}/runs/shell/files")),
        of(&Method::GET, "/api/v1/repositories"),
        of(&Method::POST, "/api/v1/repositories"),
        of(&Method::GET, "/api/v1/repositories/demo"),
        of(&Method::DELETE, "/api/v1/repositories/demo"),
        of(&Method::POST, "/api/v1/repositories/demo/fetch"),
    ]
}

#[tokio::test]
async fn nothing_is_told_or_done_without_a_valid_key() {
    let mut kage = TestKage::new().await;
    // Hundreds are refused here, each for its own reason.
    kage.set("KAGE_API_RATE_FAILURES", "10000");
    kage.start("api").await;
    let made: Value =
        serde_json::from_str(&kage.host(&["key", "create", "--admin", "--json", "--name", "gone"]))
            .expect("JSON");
    let revoked = string(&made["key"]).to_owned();
    assert_eq!(
        send(kage.bare_request(Method::GET, "/api/v1/tasks").header("X-API-Key", &revoked)).await.status,
        200
    );
    kage.host(&["key", "revoke", string(&made["id"])]);

    let key = kage.key.clone();
    let (head, last) = key.split_at(key.len() - 1);
    let mistyped = format!("{head}{}", if last == "a" { "b" } else { "a" });
    let upper = key.to_uppercase();
    let invented = "kage_0123456789_abcdefghijklmnopqrstuvwxyzABCDEF000000";
    for (method, path) in keyed() {
        let missing = send(kage.bare_request(method.clone(), &path)).await;
        assert!(missing.header("www-authenticate").starts_with("ApiKey"), "{method} {path}");
        missing.problem(401);
        for wrong in [&revoked, &mistyped, &upper, invented, "", "kage__", &key[..20], "\u{e9}"] {
            let request = kage.bare_request(method.clone(), &path).header("X-API-Key", wrong.as_bytes());
            let refused = send(request).await;
            assert!(refused.header("www-authenticate").starts_with("ApiKey"));
            let problem = refused.problem(401);
            assert!(wrong.is_empty() || !problem.to_string().contains(wrong), "{problem}");
        }
        // Not in the query, where proxies would log it.
        let query = format!("{path}?api_key={key}&X-API-Key={key}");
        send(kage.bare_request(method, &query)).await.problem(401);
    }
    let tried: i64 =
        sqlx::query_scalar("SELECT count(*) FROM tasks").fetch_one(kage.pool()).await.expect("counts");
    assert_eq!(tried, 0);
    // Keys are not stored.
    let secret = key.split('_').nth(2).expect("three parts")[..32].to_owned();
    let rows: Vec<String> = sqlx::query_scalar("SELECT api_keys::text FROM api_keys")
        .fetch_all(kage.pool())
        .await
        .expect("reads");
    assert!(rows.len() == 2 && !rows.iter().any(|row| row.contains(&secret)), "{rows:?}");
    let listed = kage.host(&["key", "list"]);
    assert!(listed.contains("gone") && listed.contains("revoked") && !listed.contains(&secret), "{listed}");
    // What is allowed and hardly meant is noted where the key is made; the list says what binds it.
    let doubtful =
        ["key", "create", "--name", "odd", "--scope", "audit:read", "--repo", "nosuch", "--cli", "none"];
    let output = kage.server_command(&doubtful).output().expect("kage starts");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    for note in ["no repository \"nosuch\"", "no CLI \"none\"", "audit:read reads nothing"] {
        assert!(said.contains(note), "{note}: {said}");
    }
    assert!(kage.host(&["key", "list"]).contains("repositories nosuch  clis none"));
}

#[tokio::test]
async fn what_is_not_there_is_not_found() {
    let mut kage = TestKage::new().await;
    kage.start("api").await;
    for (method, path) in keyed() {
        if path.contains("/tasks/") && !path.ends_with("/stats") || path.contains("/demo") {
            send(kage.request(method, &path)).await.problem(404);
        }
    }
    let id = Uuid::new_v4();
    for path in [
        "/api/v1/tasks/abc".to_owned(),
        "/api/v1/tasks/abc/progress".to_owned(),
        "/api/v1/tasks/00000000-0000-0000-0000-00000000000g".to_owned(),
        format!("/api/v1/tasks/{id}/runs/shell"),
        format!("/api/v1/tasks/{id}/runs/%00/log"),
        format!("/api/v1/tasks/{id}/runs/a%2Fb/log"),
        format!("/api/v1/tasks/{id}/runs/%FF/log"),
        "/api/v1/repositories/%00".to_owned(),
        "/api/v1/repositories/..%2F..%2Fetc".to_owned(),
        "/api/v1/nothing".to_owned(),
        "/api/v2/tasks".to_owned(),
        "/nothing".to_owned(),
    ] {
        let answer = kage.get(&path).await;
        assert!(answer.status == 404, "{path}: {} {}", answer.status, answer.text());
        answer.problem(404);
    }
    send(kage.request(Method::DELETE, "/api/v1/repositories/%00")).await.problem(404);
    send(kage.request(Method::POST, "/api/v1/repositories/%00/fetch")).await.problem(404);
    for (method, path) in [
        (Method::PUT, "/api/v1/tasks"),
        (Method::PATCH, "/api/v1/repositories/demo"),
        (Method::DELETE, "/api/v1/repositories"),
        (Method::POST, "/health"),
        (Method::POST, "/api/v1/tasks/stats"),
    ] {
        let answer = send(kage.request(method.clone(), path)).await;
        assert!(!answer.header("allow").is_empty(), "{method} {path}: {answer:?}");
        answer.problem(405);
    }
}

#[tokio::test]
async fn health_docs_and_description_need_no_key() {
    let kage = TestKage::serving(&[]).await;
    let open = async |path: &str| send(kage.bare_request(Method::GET, path)).await;
    for path in ["/health", "/api/v1/health"] {
        let health = open(path).await;
        assert_eq!((health.status, health.json()["status"].clone()), (200, json!("healthy")));
        assert_eq!(health.header("cache-control"), "no-store");
        assert_eq!(health.header("x-content-type-options"), "nosniff");
    }
    let ready = open("/ready").await;
    assert_eq!((ready.status, ready.json()["ready"].clone()), (200, json!(true)));
    assert_eq!(ready.json()["degraded"], false);
    for name in ["database", "runner", "engine", "keeper", "sequencer"] {
        assert_eq!(ready.json()["dependencies"][name]["ok"], true, "{name}");
    }
    let index = open("/").await;
    assert_eq!((index.status, index.json()["docs"].clone()), (200, json!("/docs")));
    let docs = open("/docs/").await;
    assert_eq!(docs.status, 200, "{}", docs.text());
    assert!(docs.header("content-type").starts_with("text/html"));
    assert!(docs.text().to_lowercase().contains("swagger"));
    let moved = open("/docs").await;
    assert!(moved.status == 200 || moved.header("location") == "/docs/", "{moved:?}");
    // From the program itself: a browser without a network shows it.
    for asset in ["swagger-ui.css", "swagger-ui-bundle.js"] {
        assert_eq!(open(&format!("/docs/{asset}")).await.status, 200, "{asset}");
    }
    describes_itself(&open("/openapi.json").await.json());
}

/// A sequencer that is gone is told, and refuses nothing by itself.
#[tokio::test]
async fn entries_that_wait_for_their_place_are_told_by_readiness() {
    let mut kage = TestKage::new().await;
    kage.start("api").await;
    let sequencer = async || kage.get("/ready").await.json()["dependencies"]["sequencer"].clone();
    assert_eq!(sequencer().await["ok"], true);
    sqlx::query(
        "INSERT INTO audit_entries (at, actor_kind, action, object, outcome, details)
         VALUES (now() - interval '5 minutes', 'host', 'x', 'x', 'done', '{}')",
    )
    .execute(kage.pool())
    .await
    .expect("the owner may");
    sqlx::query(
        "DELETE FROM audit_queue WHERE entry_id IN (SELECT id FROM audit_entries WHERE action <> 'x')",
    )
    .execute(kage.pool())
    .await
    .expect("the owner may");
    let told = sequencer().await;
    assert_eq!(told["ok"], false, "{told}");
    assert!(string(&told["detail"]).contains(" 30"), "{told}");
}

fn describes_itself(document: &Value) {
    let mut table = Vec::new();
    for (path, operations) in document["paths"].as_object().expect("paths") {
        for (method, operation) in operations.as_object().expect("operations") {
            let statuses: Vec<&str> =
                operation["responses"].as_object().expect("responses").keys().map(String::as_str).collect();
            // What all of them have in common is looked at once, below.
            let statuses: Vec<&str> =
                statuses.into_iter().filter(|status| !["414", "431", "503"].contains(status)).collect();
            let scopes = &operation["security"][0]["key"];
            let keyed = scopes.is_array();
            assert_eq!(keyed, statuses.contains(&"401"), "{method} {path}");
            assert!(!string(&operation["operationId"]).is_empty());
            let key = match scopes[0].as_str() {
                Some(scope) => scope,
                None if keyed => "key",
                None => "-",
            };
            table.push(format!("{} {path} {key} {}", method.to_uppercase(), statuses.join(",")));
        }
    }
    for status in ["414", "429", "431", "503"] {
        assert!(statuses_everywhere(document, status), "{status} is not said of every operation");
    }
    table.sort();
    insta::assert_snapshot!(table.join("\n"));
    assert_eq!(document["components"]["securitySchemes"]["key"]["name"], "X-API-Key");
}

fn statuses_everywhere(document: &Value, status: &str) -> bool {
    let mut operations = document["paths"]
        .as_object()
        .expect("paths")
        .values()
        .flat_map(|path| path.as_object().expect("an object").values());
    operations.all(|operation| operation["responses"].get(status).is_some())
}

#[tokio::test]
async fn lists_are_paged_and_stats_are_no_id() {
    let kage = TestKage::serving(&[]).await;
    kage.demo().await;
    let mut ids = Vec::new();
    for n in 0..5 {
        let script = if n % 2 == 0 { "echo x > x # good" } else { "exit 1 # not good" };
        ids.push(kage.run(&shell(script)).await["id"].clone());
    }
    ids.reverse();
    let page = async |query: &str| kage.get(&format!("/api/v1/tasks{query}")).await.json();
    let listed = |page: &Value| -> Vec<Value> {
        page["tasks"].as_array().expect("a list").iter().map(|task| task["id"].clone()).collect()
    };
    let all = page("").await;
    assert_eq!((listed(&all), &all["total"], &all["page"]), (ids.clone(), &json!(5), &json!(1)));
    assert_eq!(all["page_size"], 50);
    assert_eq!(all["tasks"][0], kage.task(string(&ids[0])).await);
    for (query, expected) in [
        ("?page_size=2", &ids[0..2]),
        ("?page=2&page_size=2", &ids[2..4]),
        ("?page=3&page_size=2", &ids[4..]),
    ] {
        let one = page(query).await;
        assert_eq!((listed(&one), &one["total"]), (expected.to_vec(), &json!(5)), "{query}");
    }
    assert_eq!(listed(&page("?page=4&page_size=2").await), Vec::<Value>::new());
    assert_eq!(listed(&page("?page=4294967295&page_size=100").await), Vec::<Value>::new());
    let good = page("?status=completed").await;
    assert_eq!(
        (listed(&good), &good["total"]),
        (vec![ids[0].clone(), ids[2].clone(), ids[4].clone()], &json!(3))
    );
    for bad in
        ["?page=0", "?page=-1", "?page_size=0", "?page_size=101", "?status=done", "?pages=1", "?page=x"]
    {
        kage.get(&format!("/api/v1/tasks{bad}")).await.problem(422);
    }
    let stats = kage.get("/api/v1/tasks/stats").await.json();
    assert_eq!(stats["total_tasks"], 5);
    assert_eq!(
        stats["tasks_by_status"],
        json!({ "pending": 0, "running": 0, "completed": 3, "failed": 2, "cancelled": 0 })
    );
    let cli = &stats["clis"][0];
    assert_eq!((&cli["cli_name"], &cli["total_runs"]), (&json!("shell"), &json!(5)));
    assert_eq!(
        (&cli["success_count"], &cli["failure_count"], &cli["active_count"]),
        (&json!(3), &json!(2), &json!(0))
    );
    assert!(cli["average_duration"].as_f64().is_some_and(|seconds| seconds > 0.0));
}
