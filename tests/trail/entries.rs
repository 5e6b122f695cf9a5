//! What an entry says beside its details: its request, and of a role's start its settings.

use std::collections::BTreeMap;

use ipnet::IpNet;
use kage::db::role_starts::{self, Role};
use kage::db::trail::{Filter, Placed};
use kage::db::{self, Zone};
use kage::domain::audit::{Asked, Request};
use kage::trail::{canonical, ocsf};
use serde_json::{Value, json};
use sqlx::migrate::Migrator;

use crate::support::{Trail, entry};

async fn found(trail: &Trail, filter: Filter) -> Vec<Placed> {
    let mut connection = trail.pool().acquire().await.expect("a connection");
    db::trail::placed(&mut connection, &filter, (0, i64::MAX as u64), 100).await.expect("reads")
}

async fn sequenced(trail: &Trail) {
    let mut sequencer = trail.sequencer(1, 100, Vec::new()).await;
    while sequencer.step().await.expect("steps").is_some() {}
    sequencer.pool().close().await;
}

fn asked(number: u64, id: &str, address: &str, route: &str) -> Asked {
    let request = Request { id: id.to_owned(), address: address.parse().ok(), route: Some(route.to_owned()) };
    Asked { entry: entry(number, json!({ "n": number })), request }
}

/// The migrations before a version, from a folder of their own.
async fn migrator_before(version: i64) -> Migrator {
    let folder = tempfile::tempdir().expect("a folder");
    for file in std::fs::read_dir("migrations").expect("is there") {
        let file = file.expect("is there");
        let name = file.file_name().into_string().expect("ASCII");
        let number = name.split('_').next().and_then(|number| number.parse::<i64>().ok());
        if number.is_some_and(|number| number < version) {
            std::fs::copy(file.path(), folder.path().join(name)).expect("copies");
        }
    }
    Migrator::new(folder.path()).await.expect("migrations")
}

/// Entries, leaves and checkpoints of the release before hold in this one, and what comes after them too.
#[tokio::test]
async fn what_was_logged_before_a_request_had_columns_holds() {
    let trail = Trail::bare().await;
    migrator_before(18).await.run(trail.pool()).await.expect("migrates");
    for number in 0..20 {
        sqlx::query(
            "INSERT INTO audit_entries (actor_kind, actor_id, action, object, outcome, details)
             VALUES ('key', 'k', 'task.submit', 'task:' || $1::text, 'done', $2)",
        )
        .bind(number.to_string())
        .bind(json!({ "n": number, "request_id": "r", "address": "192.0.2.1" }))
        .execute(trail.pool())
        .await
        .expect("writes");
    }
    sequenced(&trail).await;
    let before = trail.checkpoint(20).await;
    db::migrate(trail.pool()).await.expect("migrates");
    let mut connection = trail.pool().acquire().await.expect("a connection");
    db::audit::append(&mut connection, &asked(20, "a-b", "2001:db8::1", "GET /x")).await.expect("appends");
    drop(connection);
    sequenced(&trail).await;
    assert_eq!(trail.verify(vec![before]).await.expect("holds").size, 21);
}

#[tokio::test]
async fn a_request_is_found_by_each_of_its_parts() {
    let trail = Trail::new().await;
    let mut connection = trail.pool().acquire().await.expect("a connection");
    for record in [
        asked(0, "one", "192.0.2.7", "POST /api/v1/tasks"),
        asked(1, "two", "192.0.2.9", "GET /api/v1/keys"),
        asked(2, "three", "2001:db8::7", "GET /api/v1/keys"),
    ] {
        db::audit::append(&mut connection, &record).await.expect("appends");
    }
    drop(connection);
    trail.log(3..4).await;
    sequenced(&trail).await;
    let network = |text: &str| Some(text.parse::<IpNet>().expect("a network"));
    let text = |text: &str| Some(text.to_owned());
    for (filter, expected) in [
        (Filter { request: text("two"), ..Filter::default() }, vec![1]),
        (Filter { address: network("192.0.2.7/32"), ..Filter::default() }, vec![0]),
        (Filter { address: network("192.0.2.0/24"), ..Filter::default() }, vec![0, 1]),
        (Filter { address: network("2001:db8::/32"), ..Filter::default() }, vec![2]),
        (Filter { route: text("GET /api/v1/keys"), ..Filter::default() }, vec![1, 2]),
        (Filter { route: text("GET /"), ..Filter::default() }, vec![]),
    ] {
        let indexes: Vec<i64> =
            found(&trail, filter.clone()).await.iter().map(|placed| placed.index).collect();
        assert_eq!(indexes, expected, "{filter:?}");
    }
    let all = found(&trail, Filter::default()).await;
    let leaf = |placed: &Placed| {
        let leaf = canonical::leaf(placed.row.as_deref().expect("is there")).expect("a leaf");
        canonical::parse(&leaf).expect("canonical")
    };
    let first = leaf(&all[0]);
    let parts = (&first["request_id"], &first["address"], &first["route"]);
    assert_eq!(parts, (&json!("one"), &json!("192.0.2.7"), &json!("POST /api/v1/tasks")));
    let event = ocsf::event(0, &first, "1").expect("an event");
    let http = json!({ "http_method": "POST", "url": { "path": "/api/v1/tasks" }, "uid": "one" });
    assert_eq!((&event["http_request"], &event["src_endpoint"]["ip"]), (&http, &json!("192.0.2.7")));
    assert!(leaf(&all[3]).get("request_id").is_none(), "no request, no member");
}

fn settings(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

#[tokio::test]
async fn a_start_tells_what_has_changed_since_the_last_one_of_that_role() {
    let trail = Trail::new().await;
    let (api, gateway) = (trail.as_zone(Zone::Api, 1).await, trail.as_zone(Zone::Gateway, 1).await);
    let role = |name, instance| Role { name, instance, version: "1" };
    let first = settings(&[("A", "1"), ("B", "set"), ("C", "x")]);
    let second = settings(&[("A", "2"), ("B", "set"), ("D", "y")]);
    role_starts::started(&api, role("api", "one"), &first, "h1").await.expect("records");
    role_starts::stopped(&api, role("api", "one"), false).await.expect("records");
    // Another role's and another instance's starts are no measure for this one.
    role_starts::started(&gateway, role("gateway", "one"), &second, "h2").await.expect("records");
    role_starts::started(&api, role("api", "two"), &second, "h2").await.expect("records");
    role_starts::started(&api, role("api", "one"), &second, "h2").await.expect("records");
    // Nor is what a role says of another one under an actor that it may be.
    sqlx::query(
        "INSERT INTO audit_entries (actor_kind, actor_id, action, object, outcome, details)
         VALUES ('gateway', NULL, 'role.start', 'role:api', 'done', '{\"instance\": \"one\", \"settings\": {}}')",
    )
    .execute(&gateway)
    .await
    .expect("in its own name");
    role_starts::started(&api, role("api", "one"), &second, "h2").await.expect("records");
    // A role tells of itself alone.
    let other = role_starts::started(&gateway, role("api", "one"), &first, "h1").await;
    assert!(other.expect_err("another role's name").to_string().contains("may not write"), "refused");
    role_starts::stopped(&gateway, role("sequencer", "one"), false).await.expect_err("another role's name");
    let rows: Vec<Value> = sqlx::query_scalar(
        "SELECT details->'changed' FROM audit_entries WHERE action = 'role.start' AND actor_kind = 'host' ORDER BY at",
    )
    .fetch_all(trail.pool())
    .await
    .expect("reads");
    let changed = json!({ "A": { "from": "1", "to": "2" }, "C": { "from": "x", "to": null },
                          "D": { "from": null, "to": "y" } });
    assert_eq!(rows, [Value::Null, Value::Null, Value::Null, changed, json!({})]);
    api.close().await;
    gateway.close().await;
}
