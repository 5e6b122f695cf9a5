//! Keys over their life: made within their maker's rights, rotated with an overlap, revoked so that it is felt, held to
//! their quotas, and never stored.

use std::collections::BTreeSet;
use std::time::Duration;

use chrono::{DateTime, Utc};
use rand::seq::IndexedRandom;
use rand::{Rng, RngExt, SeedableRng};
use reqwest::Method;
use serde_json::{Value, json};

use crate::support::TestKage;
use crate::support::database::stored;
use crate::support::http::send;
use crate::support::sse::EventStream;
use crate::support::tasks::{shell, string};

impl TestKage {
    async fn stream_as(&self, url: &str, task: &str, key: &str) -> EventStream {
        let url = format!("{url}/api/v1/tasks/{task}/progress");
        let mut stream =
            EventStream::new(self.http.get(url).header("X-API-Key", key).send().await.expect("an answer"));
        stream.until(|event| event.name == "state" && event.data["state"] == "running").await;
        stream
    }
}

/// Reads to the end of a stream that its key's end must bring: sooner than the next heartbeat.
async fn ends(mut stream: EventStream) {
    let mut last = None;
    while let Some(event) = stream.next().await {
        assert_ne!(event.name, "heartbeat", "the stream goes on");
        last = Some(event);
    }
    let last = last.expect("it says why");
    assert_eq!((last.name.as_str(), last.id), ("error", None), "{last:?}");
    assert!(string(&last.data["message"]).contains("no longer valid"), "{last:?}");
}

#[tokio::test]
async fn a_revocation_is_felt_at_once_in_every_process() {
    let mut kage = TestKage::serving(&[]).await;
    kage.demo().await;
    let port = kage.address().port() + 1;
    kage.start_with("api", &[("KAGE_API_LISTEN", &format!("127.0.0.1:{port}"))]).await;
    let urls = [kage.url.clone(), format!("http://127.0.0.1:{port}")];
    let task = kage.submit(&shell("echo begun; sleep 600")).await;
    let task = string(&task["id"]).to_owned();
    let read = json!({ "scopes": ["tasks:read"] });

    // By the API of one process; both notice.
    let (id, key) = kage.key_with(&read).await;
    let streams = [kage.stream_as(&urls[0], &task, &key).await, kage.stream_as(&urls[1], &task, &key).await];
    let mine = kage.stream(&task, "").await;
    let begun = std::time::Instant::now();
    assert_eq!(kage.delete(&format!("/api/v1/keys/{id}")).await.json()["id"], json!(id));
    for url in &urls {
        let again = kage.http.get(format!("{url}/api/v1/tasks")).header("X-API-Key", &key);
        send(again).await.problem(401);
    }
    for stream in streams {
        ends(stream).await;
    }
    eprintln!("both streams ended {:?} after the request to revoke was sent", begun.elapsed());
    kage.delete(&format!("/api/v1/keys/{id}")).await.problem(409);

    // By the command on the host.
    let (id, key) = kage.key_with(&read).await;
    let stream = kage.stream_as(&urls[1], &task, &key).await;
    kage.host(&["key", "revoke", &id]);
    ends(stream).await;

    // Nobody is notified: by hand in the database, and of an end that comes by itself.
    let (id, key) = kage.key_with(&read).await;
    let stream = kage.stream_as(&urls[1], &task, &key).await;
    let sql = "UPDATE api_keys SET revoked_at = now() WHERE id = $1";
    sqlx::query(sql).bind(&id).execute(kage.pool()).await.expect("revoked");
    ends(stream).await;
    let end = Utc::now() + Duration::from_secs(4);
    let (_, key) = kage.key_with(&json!({ "scopes": ["tasks:read"], "expires_at": end })).await;
    ends(kage.stream_as(&urls[0], &task, &key).await).await;
    kage.get_as("/api/v1/tasks", &key).await.problem(401);

    // A key that nobody touched goes on.
    kage.delete(&format!("/api/v1/tasks/{task}")).await;
    assert_eq!(
        { mine }.rest().await.last().map(|event| event.name.clone()).as_deref(),
        Some("task_complete")
    );
}

#[tokio::test]
async fn a_rotated_key_has_two_secrets_for_a_while_and_neither_is_stored() {
    let mut kage = TestKage::new().await;
    let api = kage.start("api").await;
    let (id, first) = kage.key_with(&json!({ "scopes": ["tasks:read"] })).await;
    let rotate = format!("/api/v1/keys/{id}/rotate");
    let works = async |key: &str| kage.get_as("/api/v1/tasks", key).await.status == 200;
    let second = kage.post(&rotate, &json!({ "overlap_secs": 3600 })).await.json();
    assert_eq!(second["id"], json!(id), "the same key: what it did stays its own");
    let second = string(&second["key"]).to_owned();
    assert!(works(&first).await && works(&second).await);
    let own = kage.get_as("/api/v1/keys/self", &first).await.json();
    assert_eq!((&own["id"], &own["scopes"]), (&json!(id), &json!(["tasks:read"])));
    // The next rotation ends the overlap of the one before.
    let third = kage.host(&["key", "rotate", &id, "--overlap", "1h"]).trim().to_owned();
    assert_eq!([works(&first).await, works(&second).await, works(&third).await], [false, true, true]);
    let fourth = kage.post(&rotate, &json!({ "overlap_secs": 0 })).await.json();
    let fourth = string(&fourth["key"]).to_owned();
    assert_eq!([works(&third).await, works(&fourth).await], [false, true]);
    // Time ends an overlap as well.
    let fifth = kage.host(&["key", "rotate", &id]).trim().to_owned();
    let past = "UPDATE api_keys SET previous_until = now() WHERE id = $1";
    sqlx::query(past).bind(&id).execute(kage.pool()).await.expect("a while later");
    assert_eq!([works(&fourth).await, works(&fifth).await], [false, true]);
    kage.post(&rotate, &json!({ "overlap_secs": 2_592_001 })).await.problem(422);
    kage.host(&["key", "revoke", &id]);
    kage.post(&rotate, &json!({})).await.problem(409);

    let (database, log) = (stored(kage.pool()).await, kage.process(api).log());
    for key in [&first, &second, &third, &fourth, &fifth, &kage.key] {
        let secret = &key.rsplit('_').next().expect("three parts")[..32];
        assert!(!database.contains(secret) && !log.contains(secret), "a usable key is kept");
    }
    for action in ["key.create", "key.rotate", "key.revoke"] {
        assert!(database.contains(action), "{action} is not in the trail");
    }
}

#[tokio::test]
async fn fifty_mutations_of_a_key_open_nothing() {
    let mut kage = TestKage::new().await;
    kage.start("api").await;
    let (_, other) = kage.key_with(&json!({ "scopes": ["tasks:read"] })).await;
    let seed: u64 = rand::random();
    eprintln!("seed {seed}");
    let mut random = rand::rngs::StdRng::seed_from_u64(seed);
    for _ in 0..50 {
        let mutated = mutate(&kage.key, &other, &mut random);
        if [&kage.key, &other].contains(&&mutated) {
            continue;
        }
        let request = kage.bare_request(Method::GET, "/api/v1/tasks").header("X-API-Key", mutated.as_bytes());
        let problem = send(request).await.problem(401).to_string();
        assert!(mutated.len() < 16 || !problem.contains(&mutated), "{problem}");
    }
    // Two keys at once are none.
    let both = kage.with_key(Method::GET, "/api/v1/tasks", &kage.key).header("X-API-Key", &other);
    send(both).await.problem(401);
}

fn mutate(key: &str, other: &str, random: &mut impl Rng) -> String {
    let mut bytes = key.as_bytes().to_vec();
    let at = random.random_range(0..bytes.len());
    let from = random.random_range(0..bytes.len());
    match random.random_range(0..7) {
        0 => bytes[at] = b"aZ09_-."[random.random_range(0..7)],
        1 => bytes.swap(at, from),
        2 => drop(bytes.remove(at)),
        3 => bytes.insert(at, b'a'),
        // Another key's end: its id with this secret, and so on.
        4 => bytes[at..].copy_from_slice(&other.as_bytes()[at..]),
        5 => bytes.truncate(at),
        _ => bytes[at] = bytes[at].swap_case(),
    }
    String::from_utf8(bytes).expect("ASCII")
}

trait SwapCase {
    fn swap_case(self) -> Self;
}

impl SwapCase for u8 {
    fn swap_case(self) -> Self {
        if self.is_ascii_uppercase() { self.to_ascii_lowercase() } else { self.to_ascii_uppercase() }
    }
}

#[tokio::test]
async fn no_key_makes_or_takes_more_than_it_has() {
    let mut kage = TestKage::new().await;
    kage.start("api").await;
    let end = Utc::now() + Duration::from_secs(86_400);
    let mine = json!({
        "scopes": ["keys:admin", "tasks:read"], "repositories": ["a", "b"], "clis": ["shell"], "expires_at": end,
        "runs_at_once": 2, "runs_a_day": 10, "usd_a_day": 1.5,
    });
    let (id, key) = kage.key_with(&mine).await;
    let seed: u64 = rand::random();
    eprintln!("seed {seed}");
    let mut random = rand::rngs::StdRng::seed_from_u64(seed);
    let (mut made, mut refused) = (0, 0);
    for _ in 0..50 {
        let asked = mutate_rights(&mine, end, &mut random);
        let answer = kage.post_as("/api/v1/keys", &key, &asked).await;
        assert_eq!(answer.status == 201, within(&asked, end), "{asked}: {}", answer.text());
        if answer.status == 201 {
            made += 1;
        } else {
            refused += 1;
            assert!([403, 422].contains(&answer.status), "{}", answer.text());
        }
    }
    assert!(made > 0 && refused > 0, "{made} made, {refused} refused");
    // Its own children and itself, and nobody who has more.
    let listed = kage.get_as("/api/v1/keys", &key).await.json();
    assert_eq!(listed["keys"].as_array().map(Vec::len), Some(made + 1), "{listed}");
    let (admin, _) = kage.key_with(&json!({ "scopes": ["admin"] })).await;
    let mut twin = mine.clone();
    twin["scopes"] = json!(["tasks:read"]);
    // It has no more, but a quota of its own: whoever could rotate it would have both.
    let (twin, _) = kage.key_with(&twin).await;
    for other in [&admin, &twin] {
        let path = format!("/api/v1/keys/{other}");
        kage.get_as(&path, &key).await.problem(404);
        kage.post_as(&format!("{path}/rotate"), &key, &json!({})).await.problem(404);
        send(kage.with_key(Method::DELETE, &path, &key)).await.problem(404);
    }
    assert_eq!(kage.get(&format!("/api/v1/keys/{twin}")).await.json()["revoked_at"], Value::Null);
    assert_eq!(kage.get_as(&format!("/api/v1/keys/{id}"), &key).await.status, 200);
    // A key without the scope makes none at all.
    let (_, reader) = kage.key_with(&json!({ "scopes": ["tasks:read"] })).await;
    kage.post_as("/api/v1/keys", &reader, &json!({ "name": "x", "scopes": ["tasks:read"] }))
        .await
        .problem(403);
}

fn mutate_rights(own: &Value, end: DateTime<Utc>, random: &mut impl Rng) -> Value {
    let mut asked = own.clone();
    asked["name"] = json!("child");
    for _ in 0..random.random_range(0..3) {
        let (field, values) = [
            (
                "scopes",
                vec![json!(["tasks:read"]), json!(["keys:admin"]), json!(["admin"]), json!(["tasks:write"])],
            ),
            ("repositories", vec![json!(["a"]), json!([]), json!(["a", "c"]), Value::Null]),
            ("clis", vec![json!(["shell"]), json!([]), json!(["codex"]), Value::Null]),
            ("runs_at_once", vec![json!(1), json!(2), json!(3), Value::Null]),
            ("runs_a_day", vec![json!(0), json!(11), json!(4_294_967_295_u32), Value::Null]),
            ("usd_a_day", vec![json!(1.5), json!(1.500_001), json!(-1), json!(0), Value::Null]),
            (
                "expires_at",
                vec![json!(end - Duration::from_secs(60)), json!(end + Duration::from_secs(1)), Value::Null],
            ),
        ]
        .choose(random)
        .expect("some")
        .clone();
        asked[field] = values.choose(random).expect("some").clone();
    }
    asked
}

/// Whether a key may be made by one with the rights of the test: said anew, not as the server does.
fn within(asked: &Value, end: DateTime<Utc>) -> bool {
    let subset = |field: &str, of: &[&str]| {
        let names = asked[field].as_array();
        names.is_some_and(|names| names.iter().all(|name| of.contains(&string(name))))
    };
    let at_most =
        |field: &str, most: f64| asked[field].as_f64().is_some_and(|number| (0.0..=most).contains(&number));
    let expires = asked["expires_at"].as_str().and_then(|at| at.parse::<DateTime<Utc>>().ok());
    subset("scopes", &["keys:admin", "tasks:read"])
        && subset("repositories", &["a", "b"])
        && subset("clis", &["shell"])
        && at_most("runs_at_once", 2.0)
        && at_most("runs_a_day", 10.0)
        && at_most("usd_a_day", 1.5)
        && expires.is_some_and(|at| at <= end)
}

#[tokio::test]
async fn the_first_key_comes_from_a_secret_once_and_is_no_default() {
    let mut kage = TestKage::unmigrated().await;
    kage.host(&["migrate"]);
    let file = kage.folder.join("first-key");
    let other = TestKageKey::new();
    std::fs::write(&file, format!("{}\n", &other.key[..other.key.len() - 1])).expect("a file");
    let path = file.display().to_string();
    let settings = [("KAGE_API_FIRST_KEY_FILE", path.as_str())];
    let broken = kage.spawn_with("api", &settings);
    assert!(!kage.process(broken).wait().await.success(), "a key with a wrong checksum stops the start");
    let log = kage.process(broken).log();
    assert!(log.contains("KAGE_API_FIRST_KEY") && !log.contains(&other.key[16..40]), "{log}");
    std::fs::write(&file, format!("{}\n", other.key)).expect("a file");
    let api = kage.start_with("api", &settings).await;
    assert_eq!(kage.get_as("/api/v1/tasks", &other.key).await.status, 200);
    let own = kage.get_as("/api/v1/keys/self", &other.key).await.json();
    assert_eq!((&own["scopes"], &own["made_by"]), (&json!(["admin"]), &json!("first key")));
    kage.process(api).terminate().await;
    // There is a key: whatever the file says now, nobody gets in with it, revoked ones least of all.
    kage.host(&["key", "revoke", string(&own["id"])]);
    let third = TestKageKey::new();
    std::fs::write(&file, &third.key).expect("a file");
    kage.start_with("api", &settings).await;
    kage.get_as("/api/v1/tasks", &third.key).await.problem(401);
    kage.get_as("/api/v1/tasks", &other.key).await.problem(401);
    let firsts: i64 = sqlx::query_scalar("SELECT count(*) FROM audit_entries WHERE action = 'key.first'")
        .fetch_one(kage.pool())
        .await
        .expect("counts");
    assert_eq!(firsts, 1);
}

/// A key as an operator makes it elsewhere.
struct TestKageKey {
    key: String,
}

impl TestKageKey {
    fn new() -> Self {
        use secrecy::ExposeSecret;
        Self { key: kage::domain::api_key::generate().1.expose_secret().to_owned() }
    }
}

#[tokio::test]
async fn the_command_makes_what_it_was_asked_for() {
    let kage = TestKage::new().await;
    let args =
        ["key", "create", "--json", "--name", "narrow", "--scope", "tasks:read", "--scope", "tasks:write"];
    let limits =
        ["--repo", "demo", "--cli", "shell", "--expires", "90d", "--runs-at-once", "2", "--runs-a-day", "9"];
    let made: Value =
        serde_json::from_str(&kage.host(&[&args[..], &limits, &["--usd-a-day", "2.5"]].concat()))
            .expect("JSON");
    assert_eq!(
        [&made["scopes"], &made["repositories"], &made["clis"], &made["runs_at_once"], &made["usd_a_day"]],
        [&json!(["tasks:read", "tasks:write"]), &json!(["demo"]), &json!(["shell"]), &json!(2), &json!(2.5)]
    );
    let shown = kage.host(&["key", "show", string(&made["id"])]);
    let secret = &string(&made["key"])[16..];
    assert!(shown.contains("scopes: tasks:read, tasks:write") && !shown.contains(secret), "{shown}");
    // Nothing is granted that was not asked for.
    for bad in [
        &["key", "create", "--name", "x"][..],
        &["key", "create", "--name", "x", "--admin", "--scope", "tasks:read"],
        &["key", "create", "--name", "x", "--scope", "tasks"],
        &["key", "create", "--name", "", "--admin"],
        &["key", "create", "--name", "x", "--admin", "--usd-a-day", "-1"],
        &["key", "create", "--name", "x", "--admin", "--expires", "soon"],
        &["key", "rotate", string(&made["id"]), "--overlap", "31d"],
    ] {
        let output = kage.server_command(bad).output().expect("kage starts");
        assert_eq!(output.status.code(), Some(2), "{bad:?}: {}", String::from_utf8_lossy(&output.stderr));
    }
    let ids: BTreeSet<String> = sqlx::query_scalar("SELECT name FROM api_keys")
        .fetch_all(kage.pool())
        .await
        .expect("reads")
        .into_iter()
        .collect();
    assert_eq!(ids, BTreeSet::from(["narrow".to_owned(), "test".to_owned()]));
}
