//! What `POST /tasks` takes, and how it refuses the rest.

use reqwest::Method;
use serde_json::{Value, json};

use crate::support::TestKage;
use crate::support::git::git;
use crate::support::http::{Answer, send};
use crate::support::tasks::{shell, string};

/// An API without a runner: what is accepted waits. Repository `demo` is fetched.
async fn accepting(settings: &[(&str, &str)]) -> TestKage {
    let mut kage = TestKage::new().await;
    for (name, value) in settings {
        kage.set(name, value);
    }
    kage.start("api").await;
    let runner = kage.start("runner").await;
    kage.demo().await;
    assert!(kage.process(runner).terminate().await.success());
    kage
}

/// `shell` with another value at a JSON pointer.
fn with(pointer: &str, value: Value) -> Value {
    let mut task = shell("echo a task");
    let (parent, field) = pointer.rsplit_once('/').expect("a pointer");
    task.pointer_mut(parent).expect("the parent is there")[field] = value;
    task
}

fn assignments(count: usize) -> Value {
    Value::Array(vec![json!({ "cli_name": "shell" }); count])
}

async fn count(kage: &TestKage, table: &str) -> i64 {
    let query = sqlx::AssertSqlSafe(format!("SELECT count(*) FROM {table}"));
    sqlx::query_scalar(query).fetch_one(kage.pool()).await.expect("counts")
}

#[tokio::test]
async fn every_field_is_checked_and_the_refusal_names_it() {
    let kage = accepting(&[]).await;
    let long = |bytes: usize| json!("x".repeat(bytes));
    let first = "/cli_assignments/0";
    let cases = [
        ("/description", json!("too short"), "description"),
        ("/description", json!("          \n\t          "), "description"),
        ("/description", long((1 << 20) + 1), "description"),
        ("/description", json!("echo a task\u{0}"), "NUL"),
        ("/description", json!(["echo a task"]), "description"),
        ("/description", Value::Null, "description"),
        ("/cli_assignments", assignments(0), "cli_assignments"),
        ("/cli_assignments", assignments(5), "cli_assignments"),
        ("/cli_assignments", json!({}), "cli_assignments"),
        ("/max_retries", json!(6), "max_retries"),
        ("/max_retries", json!(-1), "max_retries"),
        ("/max_retries", json!(1.5), "max_retries"),
        ("/retry_delay", json!(0), "retry_delay"),
        ("/retry_delay", json!(61), "retry_delay"),
        ("/merge_strategy", json!("ours"), "merge_strategy"),
        ("/created_by", long(257), "created_by"),
        ("/created_by", json!("a\u{0}b"), "NUL"),
        ("/repository", json!("nowhere"), "nowhere"),
        ("/repository", json!("de\u{0}mo"), "NUL"),
        ("/repository", json!("../demo"), "repository"),
        ("/base_revision", json!("nowhere"), "nowhere"),
        ("/base_revision", json!("--upload-pack=id"), "base_revision"),
        ("/base_revision", json!("main\u{0}"), "NUL"),
        ("/unknown", json!(1), "unknown"),
        (&*format!("{first}/cli_name"), json!("nobody"), "nobody"),
        (&*format!("{first}/cli_name"), json!("sh\u{0}ell"), "NUL"),
        (&*format!("{first}/timeout"), json!(59), "timeout"),
        (&*format!("{first}/timeout"), json!(3601), "timeout"),
        (&*format!("{first}/idle_timeout"), json!(0), "idle_timeout"),
        (&*format!("{first}/idle_timeout"), json!(3601), "idle_timeout"),
        (&*format!("{first}/context"), json!({ "text": "x".repeat(64 << 10) }), "context"),
        (&*format!("{first}/context"), json!({ "text": ["a\u{0}b"] }), "NUL"),
        (&*format!("{first}/context"), json!({ "a\u{0}b": 1 }), "NUL"),
        (&*format!("{first}/context"), json!([1]), "context"),
        (&*format!("{first}/unknown"), json!(1), "unknown"),
    ];
    for (pointer, value, named) in cases {
        let answer = kage.post("/api/v1/tasks", &with(pointer, value.clone())).await;
        let problem = answer.problem(422);
        assert!(string(&problem["detail"]).contains(named), "{pointer} {value}: {problem}");
    }
    for missing in ["description", "cli_assignments"] {
        let mut task = shell("echo a task");
        task.as_object_mut().expect("an object").remove(missing);
        let problem = kage.post("/api/v1/tasks", &task).await.problem(422);
        assert!(string(&problem["detail"]).contains(missing), "{problem}");
    }
    assert_eq!(count(&kage, "tasks").await, 0, "nothing of it was stored");
    assert_eq!(count(&kage, "runs").await, 0);
}

#[tokio::test]
async fn what_is_just_within_the_limits_is_taken() {
    let kage = accepting(&[]).await;
    let head = git(&kage.sources.join("demo"), ["rev-parse", "HEAD"]);
    let first = "/cli_assignments/0";
    let cases = [
        ("/description", json!("ten chars!")),
        ("/description", json!("x".repeat(1 << 20))),
        ("/description", json!("äöüßéèêçñø")),
        ("/cli_assignments", assignments(4)),
        ("/max_retries", json!(5)),
        ("/retry_delay", json!(60)),
        ("/merge_strategy", json!("manual")),
        ("/created_by", json!("x".repeat(256))),
        ("/repository", Value::Null),
        ("/base_revision", json!("main")),
        ("/base_revision", json!(head)),
        ("/base_revision", json!(head[..8])),
        (&*format!("{first}/timeout"), json!(60)),
        (&*format!("{first}/timeout"), json!(3600)),
        (&*format!("{first}/idle_timeout"), json!(3600)),
        // A text that looks like an escape is a text.
        (
            &*format!("{first}/context"),
            json!({ "text": "\\u0000 \\x00 %00 \\0", "list": [1, null, { "a": true }] }),
        ),
    ];
    let number = cases.len() as i64;
    for (pointer, value) in cases {
        let task = kage.submit(&with(pointer, value.clone())).await;
        let again = kage.task(string(&task["id"])).await;
        assert_eq!(again, task);
        if pointer != "/cli_assignments" && pointer != "/repository" {
            assert_eq!(again.pointer(pointer), Some(&value), "{pointer}");
        }
        assert_eq!((&task["status"], &task["repository"]), (&json!("pending"), &json!("demo")));
        assert_eq!(task["runs"].as_array().map(Vec::len), task["cli_assignments"].as_array().map(Vec::len));
    }
    assert_eq!(count(&kage, "tasks").await, number);
    let names: Vec<String> = sqlx::query_scalar(
        "SELECT string_agg(name, ',' ORDER BY position) FROM runs GROUP BY task_id HAVING count(*) = 4",
    )
    .fetch_all(kage.pool())
    .await
    .expect("reads");
    assert_eq!(names, ["shell,shell-2,shell-3,shell-4"]);
}

#[tokio::test]
async fn a_body_that_is_no_task_is_refused_before_it_is_read() {
    let kage = accepting(&[("KAGE_API_BODY_BYTES", "100000")]).await;
    let post = |body: &str, kind: &str| {
        let request = kage.request(Method::POST, "/api/v1/tasks").header("Content-Type", kind);
        let request = request.body(body.to_owned());
        async move { send(request).await }
    };
    for malformed in
        ["", "{", "{\"description\": }", "{\"description\": \"echo\"", "\u{feff}{}", "{'a':1}", "nothing"]
    {
        post(malformed, "application/json").await.problem(400);
    }
    for other in ["[]", "1", "\"text\"", "null"] {
        post(other, "application/json").await.problem(422);
    }
    post("{}", "text/plain").await.problem(415);
    let task = shell(&"x".repeat(100_000)).to_string();
    post(&task, "application/json").await.problem(413);
    // Without a length told ahead, too.
    let chunks = task.into_bytes().chunks(10_000).map(|chunk| Ok(chunk.to_vec())).collect::<Vec<_>>();
    let chunks = futures::stream::iter(chunks.into_iter().map(|chunk: Result<_, std::io::Error>| chunk));
    let request = kage.request(Method::POST, "/api/v1/tasks").header("Content-Type", "application/json");
    send(request.body(reqwest::Body::wrap_stream(chunks))).await.problem(413);
    // Deep nesting must not break the server's stack.
    let deep = format!("{}{}", "[".repeat(40_000), "]".repeat(40_000));
    let deep = format!("{{\"cli_assignments\": [{{\"context\": {{\"a\": {deep}}}}}]}}");
    post(&deep, "application/json").await.problem(400);
    assert_eq!(count(&kage, "tasks").await, 0);

    let url = format!("/api/v1/tasks?{}", "x".repeat(9000));
    kage.get(&url).await.problem(414);
    let request = kage.request(Method::GET, "/api/v1/tasks");
    let many = (0..40).fold(request, |request, n| request.header(format!("x-filler-{n}"), "y".repeat(1000)));
    send(many).await.problem(431);
    assert_eq!(kage.get("/api/v1/tasks").await.status, 200);
}

async fn submit_with_key(kage: &TestKage, task: &Value, idempotency: &str) -> Answer {
    let request = kage.request(Method::POST, "/api/v1/tasks").header("Idempotency-Key", idempotency);
    send(request.json(task)).await
}

#[tokio::test]
async fn a_request_that_arrives_twice_is_one_task() {
    let kage = accepting(&[]).await;
    let (task, other) = (shell("echo a task"), shell("echo another task"));
    let first = submit_with_key(&kage, &task, "key-1").await;
    assert_eq!((first.status, first.header("idempotent-replayed")), (201, ""));
    let location = format!("/api/v1/tasks/{}", string(&first.json()["id"]));
    assert_eq!(first.header("location"), location);
    let second = submit_with_key(&kage, &task, "key-1").await;
    assert_eq!((second.status, second.header("idempotent-replayed")), (201, "true"));
    assert_eq!(second.json()["id"], first.json()["id"]);
    // Spelled in another way it is the same request.
    let mut spelled = task.clone();
    spelled["retry_delay"] = json!(5);
    assert_eq!(submit_with_key(&kage, &spelled, "key-1").await.json()["id"], first.json()["id"]);
    submit_with_key(&kage, &other, "key-1").await.problem(422);
    let third = submit_with_key(&kage, &task, "key-2").await;
    assert_ne!(third.json()["id"], first.json()["id"]);
    for bad in ["", &"x".repeat(256)] {
        submit_with_key(&kage, &task, bad).await.problem(422);
    }
    // A refused request does not use its key up.
    submit_with_key(&kage, &with("/repository", json!("nowhere")), "key-3").await.problem(422);
    assert_eq!(submit_with_key(&kage, &task, "key-3").await.status, 201);

    let before = count(&kage, "tasks").await;
    let many = (0..20).map(|_| submit_with_key(&kage, &other, "key-4"));
    let answers = futures::future::join_all(many).await;
    let mut ids: Vec<Value> = answers.iter().map(|answer| answer.json()["id"].clone()).collect();
    assert!(answers.iter().all(|answer| answer.status == 201), "{answers:?}");
    ids.dedup();
    assert_eq!(ids.len(), 1);
    let fresh = answers.iter().filter(|answer| answer.header("idempotent-replayed").is_empty()).count();
    assert_eq!((fresh, count(&kage, "tasks").await), (1, before + 1));
    let audited: i64 = sqlx::query_scalar(
        "SELECT count(*) FROM audit_entries WHERE action = 'task.submit' AND object = 'task:' || $1",
    )
    .bind(string(&ids[0]))
    .fetch_one(kage.pool())
    .await
    .expect("counts");
    assert_eq!(audited, 1);
}

#[tokio::test]
async fn keys_of_two_clients_do_not_meet() {
    let kage = accepting(&[]).await;
    let made: Value =
        serde_json::from_str(&kage.host(&["key", "create", "--admin", "--json", "--name", "second"]))
            .expect("JSON");
    let task = shell("echo a task");
    let first = submit_with_key(&kage, &task, "the same").await;
    let request = kage.bare_request(Method::POST, "/api/v1/tasks").header("X-API-Key", string(&made["key"]));
    let second = send(request.header("Idempotency-Key", "the same").json(&task)).await;
    assert_eq!((first.status, second.status), (201, 201));
    assert_ne!(first.json()["id"], second.json()["id"]);
}
