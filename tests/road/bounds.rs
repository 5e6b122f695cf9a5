//! What one client can make the API hold: connections of its database, memory for what is read, memory for what is sent.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::TcpStream;
use std::time::Duration;

use reqwest::Method;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::support::http::send;
use crate::support::tasks::{shell, string};
use crate::support::{TestKage, eventually};

/// An API alone, with repository `demo` as if a runner had fetched it.
async fn alone(settings: &[(&str, &str)]) -> (TestKage, usize) {
    let mut kage = TestKage::new().await;
    for (name, value) in settings {
        kage.set(name, value);
    }
    let sql = "INSERT INTO repositories (name, source, state, default_branch, refs, fetched_at)
               VALUES ('demo', '/nowhere', 'ready', 'main', jsonb_build_object('main', repeat('0', 40)), now())";
    sqlx::query(sql).execute(kage.pool()).await.expect("inserted");
    let api = kage.start("api").await;
    (kage, api)
}

/// The most bytes that a process has had in memory so far.
fn peak(kage: &mut TestKage, process: usize) -> u64 {
    let path = format!("/proc/{}/status", kage.process(process).pid());
    let status = std::fs::read_to_string(path).expect("it runs");
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("the kernel says it");
    line.trim().trim_end_matches(" kB").parse::<u64>().expect("a number") << 10
}

#[tokio::test]
async fn submissions_do_not_wait_for_one_anothers_connections() {
    let (kage, _) = alone(&[("KAGE_DATABASE_CONNECTIONS", "6"), ("KAGE_DATABASE_ACQUIRE_SECS", "60")]).await;
    let mut task = shell("echo a task");
    task.as_object_mut().expect("an object").remove("repository");
    let answers = futures::future::join_all((0..40).map(|_| kage.post("/api/v1/tasks", &task))).await;
    for answer in &answers {
        assert_eq!(answer.status, 201, "{}", answer.text());
    }

    // Somebody holds a row, a runner that was stopped say: whoever wants it is told so.
    let id = answers[0].json()["id"].clone();
    let mut held = kage.pool().begin().await.expect("a transaction");
    let lock = "SELECT FROM tasks WHERE id = $1 FOR UPDATE";
    let parsed: Uuid = string(&id).parse().expect("an id");
    sqlx::query(lock).bind(parsed).execute(&mut *held).await.expect("locked");
    let path = format!("/api/v1/tasks/{}", string(&id));
    let refused = futures::future::join_all((0..6).map(|_| kage.delete(&path))).await;
    for answer in refused {
        let problem = answer.problem(503);
        assert_eq!((&problem["type"], answer.header("retry-after")), (&json!("urn:kage:problem:busy"), "5"));
    }
    let sql = "SELECT FROM repositories WHERE name = 'demo' FOR UPDATE";
    sqlx::query(sql).execute(&mut *held).await.expect("locked");
    for path in ["/api/v1/repositories/demo", "/api/v1/repositories/demo/approvals", &path] {
        assert_eq!(kage.get(path).await.status, 200, "who reads waits for nobody: {path}");
    }
    held.rollback().await.expect("ended");
    assert_eq!(kage.delete(&path).await.status, 200);
}

#[tokio::test]
async fn a_page_of_tasks_is_small_whatever_they_were_given() {
    let (mut kage, api) = alone(&[]).await;
    let mut task = shell("echo a task");
    // No text takes more memory once it is read.
    let context = json!({ "a": vec![json!([]); 21_000] });
    task["cli_assignments"] = Value::Array(vec![json!({ "cli_name": "shell", "context": context }); 4]);
    let id = kage.submit(&task).await["id"].clone();
    let plain = kage.submit(&shell("echo another")).await["id"].clone();
    let sqls = [
        "INSERT INTO tasks SELECT (jsonb_populate_record(t, jsonb_build_object('id', gen_random_uuid()))).*
         FROM tasks t, generate_series(1, 98) WHERE t.id = $1",
        "INSERT INTO runs SELECT (jsonb_populate_record(r, jsonb_build_object('id', gen_random_uuid(), 'task_id', t.id))).*
         FROM runs r, tasks t WHERE r.task_id = $1 AND NOT EXISTS (SELECT FROM runs o WHERE o.task_id = t.id)",
    ];
    let parsed: Uuid = string(&id).parse().expect("an id");
    for sql in sqls {
        sqlx::query(sql).bind(parsed).execute(kage.pool()).await.expect("copied");
    }
    let before = peak(&mut kage, api);
    let path = "/api/v1/tasks?page_size=100";
    let pages = futures::future::join_all((0..4).map(|_| kage.get(path))).await;
    let more = (peak(&mut kage, api) - before) >> 20;
    assert!(more < 100, "four pages took {more} MiB");
    for page in pages {
        assert!(page.status == 200 && page.body.len() < 1 << 20, "{} bytes", page.body.len());
        let page = page.json();
        let tasks = page["tasks"].as_array().expect("tasks");
        assert_eq!((tasks.len(), &page["total"]), (100, &json!(100)));
        for task in tasks {
            let with_contexts = task["id"] != plain;
            assert_eq!(task["contexts_left_out"].as_bool().unwrap_or(false), with_contexts);
            let assignments = task["cli_assignments"].as_array().expect("assignments");
            assert_eq!(assignments.len(), if with_contexts { 4 } else { 1 });
            assert!(assignments.iter().all(|one| one["context"] == json!({}) && one["cli_name"] == "shell"));
            assert_eq!(task["runs"].as_array().map(Vec::len), Some(assignments.len()));
        }
    }
    let whole = kage.task(string(&id)).await;
    assert_eq!(
        (&whole["cli_assignments"][3]["context"], &whole["contexts_left_out"]),
        (&context, &Value::Null)
    );
}

/// A request with all of its body but the last byte.
fn unfinished(kage: &TestKage, head: &str, body: usize) -> TcpStream {
    let mut stream = TcpStream::connect(kage.address()).expect("the kernel takes it");
    stream.set_write_timeout(Some(Duration::from_secs(20))).expect("a timeout");
    stream.write_all(head.as_bytes()).expect("writes");
    // Refused in the middle: what else is written meets a connection that is closed.
    let _ = stream.write_all(&vec![b' '; body - 1]);
    stream.set_nonblocking(true).expect("set");
    stream
}

/// Whether it was: by its answer, or as one that is closed while it still sends.
fn is_refused(stream: &mut TcpStream) -> bool {
    let mut answer = [0; 4096];
    match stream.read(&mut answer) {
        Ok(0) => true,
        Ok(bytes) => {
            let answer = String::from_utf8_lossy(&answer[..bytes]).to_lowercase();
            assert!(answer.starts_with("http/1.1 429 "), "{answer}");
            assert!(answer.contains("\r\nretry-after: 5\r\n"), "{answer}");
            true
        }
        Err(error) => error.kind() != ErrorKind::WouldBlock,
    }
}

#[tokio::test]
async fn bodies_that_never_end_take_no_more_than_a_share() {
    const BODY: usize = 1 << 20;
    const CROWD: usize = 100;
    let (mut kage, api) =
        alone(&[("KAGE_API_BODY_BYTES", "1048576"), ("KAGE_API_BODIES_BYTES", "16777216")]).await;
    let (_, other) = kage.key_with(&json!({ "scopes": ["tasks:write", "tasks:read"] })).await;
    assert_eq!(kage.get("/api/v1/tasks").await.status, 200);
    let before = peak(&mut kage, api);
    let head = format!(
        "POST /api/v1/tasks HTTP/1.1\r\nHost: kage\r\nX-API-Key: {}\r\nContent-Type: application/json\r\nContent-Length: {BODY}\r\n\r\n",
        kage.key
    );
    let mut open: Vec<TcpStream> = (0..CROWD).map(|_| unfinished(&kage, &head, BODY)).collect();
    eventually("all are refused but the two that fit into a quarter of 16 MiB", async || {
        open.retain_mut(|stream| !is_refused(stream));
        (open.len() <= 2).then_some(())
    })
    .await;
    let more = (peak(&mut kage, api) - before) >> 20;
    assert!(more < 64, "{CROWD} bodies of 1 MiB took {more} MiB");
    let submit = async |key: &str| {
        send(kage.with_key(Method::POST, "/api/v1/tasks", key).json(&shell("echo a task"))).await.status
    };
    assert_eq!(submit(&other).await, 201, "another key has its own");
    drop(open);
    eventually("what was held is given back", async || (submit(&kage.key).await == 201).then_some(())).await;
    // What would never fit is not to be tried again.
    let nested = format!("{{\"cli_assignments\": [{}[]]}}", "[],".repeat(20_000));
    let request = kage.request(Method::POST, "/api/v1/tasks").header("Content-Type", "application/json");
    send(request.body(nested)).await.problem(413);
}

#[tokio::test]
async fn what_is_let_go_during_a_request_is_not_no_changes() {
    let (kage, _) = alone(&[]).await;
    for (path, accept) in
        [("diff", "text/x-diff"), ("diff", "application/json"), ("files", "application/json")]
    {
        let task = kage.submit(&shell("echo a task")).await;
        let id: Uuid = string(&task["id"]).parse().expect("an id");
        for sql in [
            "UPDATE runs SET state = 'succeeded', finished_at = now() WHERE task_id = $1",
            "UPDATE tasks SET status = 'completed', completed_at = now() WHERE id = $1",
            "INSERT INTO run_results (run_id, patch, patch_truncated, files, warnings, paths)
             SELECT id, 'x', false, '[]', '{}', '{}' FROM runs WHERE task_id = $1",
        ] {
            sqlx::query(sql).bind(id).execute(kage.pool()).await.expect(sql);
        }
        let path = format!("/api/v1/tasks/{id}/runs/shell/{path}");
        let mut retention = kage.pool().begin().await.expect("a transaction");
        sqlx::query("LOCK TABLE run_results").execute(&mut *retention).await.expect("locked");
        let request = kage.request(Method::GET, &path).header("Accept", accept);
        let answer = tokio::spawn(send(request));
        let waiting = "SELECT EXISTS (SELECT FROM pg_locks l WHERE NOT l.granted AND l.relation = 'run_results'::regclass)";
        eventually("a request that waits", async || {
            let waits: bool = sqlx::query_scalar(waiting).fetch_one(kage.pool()).await.expect("an answer");
            waits.then_some(())
        })
        .await;
        let sql = "SELECT tasks FROM retention_let_go('results', ARRAY[$1], 'age')";
        let gone: i64 =
            sqlx::query_scalar(sql).bind(id).fetch_one(&mut *retention).await.expect("lets it go");
        assert_eq!(gone, 1);
        retention.commit().await.expect("committed");
        let problem = answer.await.expect("no panic").problem(410);
        assert_eq!(problem["type"], "urn:kage:problem:let-go", "{path}");
    }
}
