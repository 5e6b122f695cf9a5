//! Keys, paths, methods, paging, health, and the API's own description.

use reqwest::Method;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
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
    for name in ["database", "runner", "engine"] {
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

/// A request as it is, which no client of ours would send; the answer's status and all of it.
async fn raw(kage: &TestKage, head: &[u8], body: &[u8]) -> (u16, String) {
    let mut stream = TcpStream::connect(kage.address()).await.expect("it listens");
    let key = format!("Host: kage\r\nConnection: close\r\nX-API-Key: {}\r\n", kage.key);
    let length = if body.is_empty() { String::new() } else { format!("Content-Length: {}\r\n", body.len()) };
    // Line, fixed headers, further headers, body: `head` is the line and what comes after it.
    let at = head.windows(2).position(|two| two == b"\r\n").map_or(head.len(), |at| at + 2);
    let (line, further) = head.split_at(at);
    let request = [line, key.as_bytes(), length.as_bytes(), further, b"\r\n", body].concat();
    stream.write_all(&request).await.expect("written");
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.expect("an answer and its end");
    let answer = String::from_utf8_lossy(&answer).into_owned();
    let status = answer.split(' ').nth(1).and_then(|status| status.parse().ok());
    (status.unwrap_or_else(|| panic!("no answer to {:?}", String::from_utf8_lossy(head))), answer)
}

#[tokio::test]
async fn odd_requests_are_refused_and_break_nothing() {
    let mut kage = TestKage::new().await;
    kage.start("api").await;
    let ask = async |expected: u16, line: &[u8], headers: &[u8], body: &[u8]| {
        let head = [line, b" HTTP/1.1\r\n", headers].concat();
        let (status, answer) = raw(&kage, &head, body).await;
        let what = format!("{}{}", String::from_utf8_lossy(&head), String::from_utf8_lossy(body));
        assert_eq!(status, expected, "{what:.300}: {answer}");
        assert!(status != 405 || answer.to_lowercase().contains("\r\nallow: "), "{what}: {answer}");
    };
    for (expected, path) in [
        // Years that Postgres has not, and that RFC 3339 cannot write.
        (422, "/api/v1/audit?since=-4714-01-01T00:00:00Z"),
        (422, "/api/v1/audit?until=-262143-01-01T00:00:00Z"),
        (422, "/api/v1/audit/export?since=%2B262142-12-31T23:59:59Z"),
        (200, "/api/v1/audit?since=0000-01-01T00:00:00Z&until=9999-12-31T23:59:59Z"),
        (422, "/api/v1/audit?cursor=9223372036854775808"),
        (422, "/api/v1/audit?cursor=18446744073709551616"),
        (404, "/api/v1/audit/18446744073709551615/proof"),
        (422, "/api/v1/tasks?page=18446744073709551616"),
        (422, "/api/v1/tasks?page=1e3"),
        // Said twice, unknown, without a value, not UTF-8.
        (422, "/api/v1/tasks?page=1&page=2"),
        (422, "/api/v1/audit?action=a&action=b"),
        (422, "/api/v1/tasks?page=1&pages=1"),
        (422, "/api/v1/tasks?page"),
        (400, "/api/v1/audit?action=%FF"),
        (400, "/api/v1/audit?object=%ED%A0%80"),
        (200, "/api/v1/audit?action=%F0%9F%98%80"),
        (400, "/api/v1/audit?action=%00"),
        (400, "/api/v1/tasks/00000000-0000-4000-8000-000000000000/progress?run=%00"),
        (404, "/api/v1/keys/%FF%FE"),
        (404, "/api/v1/keys/a%2500"),
        (404, "/api/v1/../v1/tasks"),
        (404, "//api/v1/tasks"),
        (404, "/api/v1/tasks/"),
    ] {
        ask(expected, format!("GET {path}").as_bytes(), b"", b"").await;
    }
    for method in ["TRACE", "CONNECT", "OPTIONS", "PATCH", "PUT", "get", "PROPFIND"] {
        ask(405, format!("{method} /api/v1/tasks").as_bytes(), b"", b"").await;
        ask(405, format!("{method} /health").as_bytes(), b"", b"").await;
    }
    let json = b"Content-Type: application/json\r\n";
    for (expected, body) in [
        (400, &b"{"[..]),
        (400, b"{\"name\":\"\xff\",\"scopes\":[\"admin\"]}"),
        (400, br#"{"name":"\ud800","scopes":["admin"]}"#),
        (400, br#"{"name":"a","scopes":["admin"]} {}"#),
        (400, b"\xef\xbb\xbf{}"),
        (400, br#"{"name":"a","scopes":["admin"],"usd_a_day":1e400}"#),
        (422, br#"{"name":"a","name":"b","scopes":["admin"]}"#),
        (422, br#"{"name":"a\u0000","scopes":["admin"]}"#),
        (422, br#"{"name":"a","scopes":["admin"],"is_admin":true}"#),
        (422, br#"{"name":"a","scopes":["admin"],"runs_a_day":4294967296}"#),
        (422, br#"{"name":"a","scopes":["admin"],"repositories":["a\u0000"]}"#),
        (422, br#"{"name":"a","scopes":["admin"],"expires_at":"+10000-01-01T00:00:00Z"}"#),
        // Fields by place instead of by name.
        (422, br#"["a",["tasks:read"],null,null,null,null,null,null]"#),
        (422, b"null"),
        (422, b"[]"),
    ] {
        ask(expected, b"POST /api/v1/keys", json, body).await;
    }
    let deep = format!("{{\"name\":{}1{}}}", "[".repeat(100_000), "]".repeat(100_000));
    ask(422, b"POST /api/v1/keys", json, deep.as_bytes()).await;
    let task = br#"{"description":"0123456789","cli_assignments":[{"cli_name":"shell"}]}"#;
    for (expected, headers) in [
        (415, &b"Content-Type: text/plain\r\n"[..]),
        (415, b"Content-Type: \r\n"),
        (415, b""),
        (400, b"Content-Type: application/json\r\nContent-Length: 99\r\n"),
        (400, b"Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n"),
        (401, b"Content-Type: application/json\r\nX-API-Key: second\r\n"),
        (422, b"Content-Type: application/json\r\nIdempotency-Key: \xff\r\n"),
        (422, b"Content-Type: application/json\r\nX-Request-Id: \xff\r\nAccept: \xff\r\n"),
    ] {
        ask(expected, b"POST /api/v1/tasks", headers, task).await;
    }
    let log = kage.process(0).log();
    assert!(!["internal_error", "panicked"].iter().any(|text| log.contains(text)), "{log}");
    assert_eq!(kage.get("/api/v1/keys").await.json()["keys"].as_array().map(Vec::len), Some(1));
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
