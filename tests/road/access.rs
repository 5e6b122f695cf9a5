//! Who may do what, tried on every operation of the OpenAPI document: without a key, without the scope, and from
//! outside the limits with the very ids of what is inside.

use std::collections::BTreeSet;

use reqwest::Method;
use secrecy::ExposeSecret as _;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::support::http::{Answer, send};
use crate::support::tasks::{shell, string};
use crate::support::{TestKage, eventually};

pub const SCOPES: [&str; 6] =
    ["tasks:read", "tasks:write", "results:merge", "repos:write", "audit:read", "keys:admin"];
const REQUEST_ID: &str = "the-same-for-all";

/// One operation of the document.
pub struct Operation {
    pub method: Method,
    pub path: String,
    /// `None`: open to all; empty: any key.
    pub scopes: Option<Vec<String>>,
    /// It is of everything: no key with limits reads any of it.
    of_everything: bool,
}

fn operations(document: &Value) -> Vec<Operation> {
    let mut all = Vec::new();
    for (path, operations) in document["paths"].as_object().expect("paths") {
        for (method, operation) in operations.as_object().expect("operations") {
            let scopes = operation["security"].as_array().map(|security| {
                assert_eq!(security.len(), 1, "{method} {path}");
                serde_json::from_value(security[0]["key"].clone()).expect("a list of scopes")
            });
            let refused = operation["responses"]["403"]["description"].as_str().unwrap_or_default();
            let of_everything = refused.contains("or is limited to");
            let method = method.to_uppercase().parse().expect("a method");
            all.push(Operation { method, path: path.clone(), scopes, of_everything });
        }
    }
    all
}

/// What the path's parameters stand for.
pub struct Ids {
    pub task: String,
    pub repository: String,
    pub approval: String,
    pub key: String,
}

impl Ids {
    pub fn absent() -> Self {
        let id = || Uuid::new_v4().to_string();
        Self { task: id(), repository: "absent".to_owned(), approval: id(), key: "0123456789".to_owned() }
    }

    pub fn fill(&self, path: &str) -> String {
        let id = if path.contains("/approvals/") {
            &self.approval
        } else if path.contains("/keys/") {
            &self.key
        } else {
            &self.task
        };
        path.replace("{id}", id)
            .replace("{name}", &self.repository)
            .replace("{cli}", "shell")
            .replace("{index}", "0")
    }
}

/// A body that the operation takes, for the repository.
pub fn body(operation: &Operation, repository: &str) -> Option<Value> {
    if operation.method != Method::POST {
        return None;
    }
    let last = operation.path.rsplit('/').next().unwrap_or_default();
    Some(match last {
        "tasks" => {
            let mut task = shell("echo this is a task");
            task["repository"] = json!(repository);
            task
        }
        "repositories" => json!({ "name": repository, "source": "/nowhere" }),
        "approvals" => json!({ "path": ".claude", "digest": format!("sha256:{}", "0".repeat(64)) }),
        "keys" => json!({ "name": "another", "scopes": ["keys:admin"] }),
        _ => json!({}),
    })
}

impl TestKage {
    async fn try_operation(&self, operation: &Operation, ids: &Ids, key: Option<&str>) -> Answer {
        let mut request = self.bare_request(operation.method.clone(), &ids.fill(&operation.path));
        request = request.header("X-Request-Id", REQUEST_ID);
        if let Some(key) = key {
            request = request.header("X-API-Key", key);
        }
        if let Some(body) = body(operation, &ids.repository) {
            request = request.json(&body);
        }
        send(request).await
    }
}

pub async fn described(kage: &TestKage) -> Vec<Operation> {
    operations(&send(kage.bare_request(Method::GET, "/openapi.json")).await.json())
}

#[tokio::test]
async fn every_operation_asks_for_a_key_and_its_scope() {
    let mut kage = TestKage::new().await;
    kage.start("api").await;
    let operations = described(&kage).await;
    // The trail is, whatever else there may be.
    let trail = operations.iter().filter(|one| one.path.starts_with("/api/v1/audit"));
    assert!(trail.clone().count() >= 4 && trail.clone().all(|one| one.of_everything));
    let open: BTreeSet<&str> =
        operations.iter().filter(|one| one.scopes.is_none()).map(|one| one.path.as_str()).collect();
    assert_eq!(
        open,
        BTreeSet::from([
            "/",
            "/api/v1/health",
            "/auth/oidc/callback",
            "/auth/oidc/login",
            "/health",
            "/ready"
        ])
    );
    let ids = Ids::absent();
    for operation in operations.iter().filter(|one| one.scopes.is_some()) {
        let name = format!("{} {}", operation.method, operation.path);
        kage.try_operation(operation, &ids, None).await.problem(401);
        let Some(scope) = operation.scopes.as_ref().and_then(|scopes| scopes.first()) else {
            let own = ["/api/v1/keys/self", "/api/v1/session", "/auth/logout"];
            assert!(own.contains(&operation.path.as_str()), "{name} needs no scope");
            continue;
        };
        let others: Vec<&str> = SCOPES.into_iter().filter(|other| other != scope).collect();
        assert_eq!(others.len(), SCOPES.len() - 1, "{name} asks for the scope {scope}, which nobody has");
        let (_, without) = kage.key_with(&json!({ "scopes": others })).await;
        let refused = kage.try_operation(operation, &ids, Some(&without)).await;
        let problem = refused.problem(403);
        let asked = format!("needs the scope {scope};");
        assert!(string(&problem["detail"]).contains(&asked), "{name}: {problem}");
        assert_eq!(
            (&problem["request_id"], refused.header("x-request-id")),
            (&json!(REQUEST_ID), REQUEST_ID)
        );
        let (_, with) = kage.key_with(&json!({ "scopes": [scope] })).await;
        let answer = kage.try_operation(operation, &ids, Some(&with)).await;
        assert!(![401, 403, 500, 503].contains(&answer.status), "{name}: {}", answer.text());
    }
}

/// A repository with a task that has ended, and an approval.
pub async fn inhabited(kage: &TestKage) -> Ids {
    let files: [(&str, &[u8]); 2] = [("README.md", b"demo\n"), (".claude/settings.json", b"{}\n")];
    let folder = kage.make_repository("demo", &files);
    kage.register("demo", &folder).await;
    let task =
        kage.run(&shell("echo a secret of the tenant > secret.txt; echo a secret of the tenant")).await;
    let found = kage.get("/api/v1/repositories/demo/configuration").await.json();
    let (path, digest) = (&found["configuration"][0]["path"], &found["configuration"][0]["digest"]);
    let approved =
        kage.post("/api/v1/repositories/demo/approvals", &json!({ "path": path, "digest": digest })).await;
    assert_eq!(approved.status, 201, "{}", approved.text());
    let (key, _) = kage.key_with(&json!({ "scopes": ["admin"] })).await;
    Ids {
        task: string(&task["id"]).to_owned(),
        repository: "demo".to_owned(),
        approval: string(&approved.json()["id"]).to_owned(),
        key,
    }
}

/// Status, body and headers, but for the time and what is left of the rate.
fn seen(answer: &Answer) -> (u16, String, Vec<(String, String)>) {
    let header =
        |name: &reqwest::header::HeaderName| (name.to_string(), answer.header(name.as_str()).to_owned());
    let mut headers: Vec<_> = answer
        .headers
        .keys()
        .filter(|name| !["date", "ratelimit"].contains(&name.as_str()))
        .map(header)
        .collect();
    headers.sort();
    (answer.status, answer.text(), headers)
}

/// What an operation without an object says to a key that sees nothing of it.
fn shows_nothing(operation: &Operation, there: &Answer) {
    match (operation.method.as_str(), operation.path.as_str()) {
        // As for a repository, or a CLI, that nobody has registered.
        ("POST", "/api/v1/tasks") => drop(there.problem(422)),
        ("POST", "/api/v1/repositories" | "/api/v1/keys") => drop(there.problem(403)),
        ("GET", "/api/v1/repositories") => assert!(!there.text().contains("\"demo\"")),
        ("GET", "/api/v1/tasks") => assert_eq!(there.json()["total"], 0),
        ("GET", "/api/v1/tasks/stats") => {
            assert_eq!((&there.json()["total_tasks"], &there.json()["clis"]), (&json!(0), &json!([])));
        }
        ("GET", "/api/v1/keys") => {
            let keys = there.json()["keys"].as_array().expect("a list").len();
            assert!(keys <= 2, "keys that have no more than it: {}", there.text());
        }
        ("GET", "/api/v1/keys/self") => assert_eq!(there.status, 200),
        // It is a key that asks: it has no session.
        ("GET", "/api/v1/session") | ("POST", "/auth/logout") => assert_eq!(there.status, 404),
        ("GET", "/api/v1/sessions") => assert_eq!(there.json(), json!({ "sessions": [] })),
        _ => panic!(
            "{} {}: what does it show of others' things? Say so here",
            operation.method, operation.path
        ),
    }
}

#[tokio::test]
async fn what_is_outside_a_keys_limits_does_not_exist_for_it() {
    let kage = TestKage::serving(&[]).await;
    let inside = inhabited(&kage).await;
    let other = kage.make_repository("other", &[("README.md", b"other\n")]);
    kage.register("other", &other).await;
    let (_, by_repository) = kage.key_with(&json!({ "scopes": ["admin"], "repositories": ["other"] })).await;
    let (_, by_cli) = kage.key_with(&json!({ "scopes": ["admin"], "clis": ["codex"] })).await;
    let (_, by_none) = kage.key_with(&json!({ "scopes": ["admin"], "repositories": [] })).await;
    let absent = Ids::absent();
    let mut tried = 0;
    for operation in described(&kage).await.iter().filter(|one| one.scopes.is_some()) {
        let name = format!("{} {}", operation.method, operation.path);
        for (limit, key) in [("repository", &by_repository), ("cli", &by_cli), ("nothing", &by_none)] {
            // Repositories have no CLIs: that limit is about tasks.
            if limit == "cli" && operation.path.starts_with("/api/v1/repositories") {
                continue;
            }
            let there = kage.try_operation(operation, &inside, Some(key)).await;
            tried += 1;
            assert!(!there.text().contains("secret of the tenant"), "{name}: {}", there.text());
            assert!(!there.text().contains(&inside.task), "{name}: {}", there.text());
            if operation.of_everything {
                there.problem(403);
                continue;
            }
            if operation.path.contains('{') {
                let nowhere = kage.try_operation(operation, &absent, Some(key)).await;
                assert_eq!(
                    seen(&there),
                    seen(&nowhere),
                    "{name} tells what is there from what is not ({limit})"
                );
                there.problem(404);
                continue;
            }
            shows_nothing(operation, &there);
        }
    }
    assert!(tried > 50, "only {tried}");
    // The same operations find it with a key that may: else the above says nothing.
    let (_, mine) =
        kage.key_with(&json!({ "scopes": ["admin"], "repositories": ["demo"], "clis": ["shell"] })).await;
    for operation in described(&kage).await.iter().filter(|one| one.method == Method::GET) {
        // A key has no session of its own.
        let is_whole = operation.path.contains("/keys/{id}")
            || operation.of_everything
            || operation.path == "/api/v1/session";
        if operation.scopes.is_some() && !is_whole {
            let found = kage.try_operation(operation, &inside, Some(&mine)).await;
            assert_eq!(found.status, 200, "{}: {}", operation.path, found.text());
        }
    }
    let request = kage.bare_request(Method::POST, "/api/v1/tasks").header("X-API-Key", &mine);
    let mut unnamed = shell("echo in the only one that there is");
    unnamed.as_object_mut().expect("an object").remove("repository");
    let made = send(request.json(&unnamed)).await;
    assert_eq!((made.status, &made.json()["repository"]), (201, &json!("demo")), "the only one it sees");
    kage.ended(string(&made.json()["id"])).await;
    let refused = kage.bare_request(Method::POST, "/api/v1/tasks").header("X-API-Key", &by_cli);
    let refused = send(refused.json(&shell("echo with a CLI that is not there"))).await.problem(422);
    assert!(string(&refused["detail"]).contains("no CLI image \"shell\" is registered"), "{refused}");
}

/// Kind and id of the actor, object, details; address and route of the request.
type Refused = (String, Option<String>, String, Value, Option<String>);

#[tokio::test]
async fn refusals_are_in_the_trail_once_a_minute_with_their_count() {
    let mut kage = TestKage::new().await;
    let api = kage.start("api").await;
    let (id, key) = kage.key_with(&json!({ "scopes": ["tasks:read"], "repositories": [] })).await;
    for number in 0..20 {
        let request = kage.bare_request(Method::GET, "/api/v1/keys").header("X-API-Key", &key);
        send(request.header("X-Request-Id", format!("r{number}"))).await.problem(403);
        send(kage.bare_request(Method::GET, "/api/v1/tasks")).await.problem(401);
        let unknown = "kage_0123456789_abcdefghijklmnopqrstuvwxyzABCDEF000000";
        send(kage.bare_request(Method::GET, "/api/v1/tasks").header("X-API-Key", unknown)).await.problem(401);
        let task = format!("/api/v1/tasks/{}", Uuid::new_v4());
        send(kage.bare_request(Method::GET, &task).header("X-API-Key", &key)).await.problem(404);
    }
    // Ids that would break a log line are not taken over.
    let odd = send(kage.bare_request(Method::GET, "/health").header("X-Request-Id", "a b\tc")).await;
    assert!(odd.header("x-request-id").parse::<Uuid>().is_ok(), "{odd:?}");
    kage.process(api).terminate().await;
    // Request, address and route are columns: all three, or nothing.
    let rows: Vec<Refused> = sqlx::query_as(
        "SELECT actor_kind, actor_id, object, details,
                CASE WHEN request_id <> '' THEN host(address) || ' route:' || route END
         FROM audit_entries WHERE action = 'access.refuse' ORDER BY at",
    )
    .fetch_all(kage.pool())
    .await
    .expect("reads");
    for (kind, actor, reason, object) in [
        ("key", Some(&id), "scope-missing", "route:GET /api/v1/keys"),
        ("anonymous", None, "key-missing", "route:GET /api/v1/tasks"),
        ("anonymous", None, "key-unknown", "route:GET /api/v1/tasks"),
        ("key", Some(&id), "not-found", "route:GET /api/v1/tasks/{id}"),
    ] {
        let of: Vec<_> = rows
            .iter()
            .filter(|row| row.0 == kind && row.1.as_ref() == actor && row.3["reason"] == reason)
            .collect();
        let counts: u64 = of.iter().map(|row| row.3["count"].as_u64().expect("a count")).sum();
        assert_eq!(counts, 20, "{reason}: all are counted: {rows:#?}");
        // The first, and the others of each minute together.
        assert!(of.len() <= 4, "{reason}: {rows:#?}");
        let asked = format!("127.0.0.1 {object}");
        assert!(of.iter().all(|row| row.2 == object && row.4.as_ref() == Some(&asked)), "{rows:#?}");
    }
}

/// Keys that open nothing, each with what is wrong with it.
async fn bad_keys(kage: &TestKage) -> Vec<(&'static str, Option<String>)> {
    let (gone, revoked) = kage.key_with(&json!({ "scopes": ["admin"] })).await;
    assert_eq!(kage.delete(&format!("/api/v1/keys/{gone}")).await.status, 200);
    let end = chrono::Utc::now() + chrono::TimeDelta::seconds(2);
    let (_, expired) = kage.key_with(&json!({ "scopes": ["admin"], "expires_at": end })).await;
    assert_eq!(kage.get_as("/api/v1/keys/self", &expired).await.status, 200);
    eventually("the key expires", async || {
        (kage.get_as("/api/v1/keys/self", &expired).await.status == 401).then_some(())
    })
    .await;
    let nobodys = kage::domain::api_key::generate().1.expose_secret().to_owned();
    vec![
        ("none", None),
        ("garbage", Some("garbage".to_owned())),
        ("one that nobody made", Some(nobodys)),
        ("a revoked one", Some(revoked)),
        ("an expired one", Some(expired)),
    ]
}

/// The matrix: every operation of the document, and every key that must not get in.
#[tokio::test]
async fn every_operation_refuses_every_key_that_is_not_good_enough() {
    let kage = TestKage::serving(&[("KAGE_API_RATE_FAILURES", "10000")]).await;
    let inside = inhabited(&kage).await;
    let bad = bad_keys(&kage).await;
    let (_, elsewhere) = kage.key_with(&json!({ "scopes": ["admin"], "repositories": ["other"] })).await;
    let mut tried = 0;
    for operation in described(&kage).await.iter().filter(|one| one.scopes.is_some()) {
        let name = format!("{} {}", operation.method, operation.path);
        for (what, key) in &bad {
            let refused = kage.try_operation(operation, &inside, key.as_deref()).await;
            assert_eq!(refused.status, 401, "{name} with {what}: {}", refused.text());
            assert!(refused.header("www-authenticate").starts_with("ApiKey"), "{name} with {what}");
            for (header, value) in [
                ("cache-control", "no-store"),
                ("x-content-type-options", "nosniff"),
                ("referrer-policy", "no-referrer"),
                ("x-frame-options", "DENY"),
            ] {
                assert_eq!(refused.header(header), value, "{name} with {what}");
            }
            refused.problem(401);
            tried += 1;
        }
        let scope = operation.scopes.as_ref().and_then(|scopes| scopes.first());
        if let Some(scope) = scope {
            let others: Vec<&str> = SCOPES.into_iter().filter(|other| other != scope).collect();
            let (_, without) = kage.key_with(&json!({ "scopes": others })).await;
            kage.try_operation(operation, &inside, Some(&without)).await.problem(403);
        }
        if operation.path.contains('{') {
            let hidden = kage.try_operation(operation, &inside, Some(&elsewhere)).await;
            hidden.problem(if operation.of_everything { 403 } else { 404 });
        }
    }
    assert!(tried >= 5 * 28, "only {tried}");
    // None of it did anything: all is there still.
    for path in [
        format!("/api/v1/tasks/{}", inside.task),
        format!("/api/v1/repositories/{}", inside.repository),
        format!("/api/v1/keys/{}", inside.key),
    ] {
        assert_eq!(kage.get(&path).await.status, 200, "{path}");
    }
    assert_eq!(kage.get("/api/v1/tasks").await.json()["total"], 1);
}
