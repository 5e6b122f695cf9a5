//! What stands between the network and the API beside TLS, with real clients: addresses behind proxies, limits of rates,
//! other origins, the record of refusals.

use reqwest::Method;
use serde_json::{Value, json};

use crate::support::http::send;
use crate::support::tasks::string;
use crate::support::{TestKage, eventually};

/// Entries of the trail about failures, by address.
async fn alarms(kage: &TestKage) -> Vec<Value> {
    let sql = "SELECT details || jsonb_build_object('address', host(address)) FROM audit_entries WHERE action = 'auth.repeated_failures' ORDER BY at";
    sqlx::query_scalar(sql).fetch_all(kage.pool()).await.expect("reads")
}

#[tokio::test]
async fn forged_addresses_and_other_keys_do_not_reset_a_limit() {
    let mut kage = TestKage::new().await;
    kage.set("KAGE_API_RATE_FAILURES", "5");
    kage.start("api").await;
    let guess = |number: u32| {
        let request = kage.bare_request(Method::GET, "/api/v1/tasks");
        request
            .header("X-API-Key", format!("kage_{number:010}_abcdefghijklmnopqrstuvwxyzABCDEF000000"))
            .header("X-Forwarded-For", format!("198.51.100.{number}"))
            .header("Forwarded", format!("for=198.51.100.{number}"))
            .header("X-Real-IP", format!("198.51.100.{number}"))
    };
    let mut statuses = Vec::new();
    for number in 0..20 {
        statuses.push(send(guess(number)).await.status);
    }
    assert!(statuses[..5].iter().all(|status| *status == 401), "{statuses:?}");
    assert!(statuses[8..].iter().all(|status| *status == 429), "{statuses:?}");
    let refused = send(guess(99)).await;
    let problem = refused.problem(429);
    assert_eq!(problem["type"], "urn:kage:problem:rate-limited");
    let wait: u64 = refused.header("retry-after").parse().expect("seconds");
    assert!((1..=60).contains(&wait));
    assert!(refused.header("ratelimit").contains("\"failures\";r=0;"), "{}", refused.header("ratelimit"));
    // A right key tells no guesser that it is right.
    kage.get("/api/v1/tasks").await.problem(429);
    assert_eq!(
        send(kage.bare_request(Method::GET, "/health")).await.status,
        200,
        "what needs no key goes on"
    );
    let raised = eventually("the alarm is in the trail", async || {
        let raised = alarms(&kage).await;
        (!raised.is_empty()).then_some(raised)
    })
    .await;
    assert_eq!((raised.len(), &raised[0]["address"]), (1, &json!("127.0.0.1")));
}

#[tokio::test]
async fn behind_a_trusted_proxy_each_client_has_a_limit_of_its_own() {
    let mut kage = TestKage::new().await;
    kage.set("KAGE_API_TRUSTED_PROXIES", "127.0.0.0/8");
    kage.set("KAGE_API_RATE_FAILURES", "3");
    kage.start("api").await;
    let from =
        |address: &str| kage.bare_request(Method::GET, "/api/v1/tasks").header("X-Forwarded-For", address);
    for number in 0..10 {
        // What the client wrote stands left of what the proxy adds.
        send(from(&format!("203.0.113.{number}, 198.51.100.1"))).await;
    }
    send(from("198.51.100.1")).await.problem(429);
    send(from("198.51.100.2")).await.problem(401);
    for host in 0..8 {
        send(from(&format!("2001:db8::{host}:1"))).await;
    }
    send(from("2001:db8::ffff")).await.problem(429);
    send(from("2001:db8:0:1::1")).await.problem(401);
    let good = from("198.51.100.3").header("X-API-Key", &kage.key);
    assert_eq!(send(good).await.status, 200);
    let raised = eventually("both alarms are in the trail", async || {
        let raised = alarms(&kage).await;
        (raised.len() >= 2).then_some(raised)
    })
    .await;
    assert_eq!(raised[0]["address"], "198.51.100.1", "{raised:?}");
}

#[tokio::test]
async fn keys_and_addresses_have_rates_and_hear_of_them() {
    let mut kage = TestKage::new().await;
    kage.set("KAGE_API_RATE_KEY", "5");
    kage.start("api").await;
    let (id, key) = kage.key_with(&json!({ "scopes": ["tasks:read"] })).await;
    let with = |key: &str| kage.bare_request(Method::GET, "/api/v1/tasks").header("X-API-Key", key);
    let first = send(with(&key)).await;
    let (policy, left) = (first.header("ratelimit-policy"), first.header("ratelimit"));
    assert_eq!(policy, "\"address\";q=6000;w=60, \"key\";q=5;w=60");
    assert!(left.contains("\"key\";r=4;t=12") && left.contains("\"address\";r="), "{left}");
    let mut last = 200;
    for _ in 0..8 {
        last = send(with(&key)).await.status;
    }
    assert_eq!(last, 429);
    // Another secret of the same key, and another address that it claims to come from, are the same key.
    let rotated: Value = serde_json::from_str(&kage.host(&["key", "rotate", &id, "--json"])).expect("JSON");
    send(with(string(&rotated["key"]))).await.problem(429);
    send(with(&key).header("X-Forwarded-For", "198.51.100.7")).await.problem(429);
    let (_, other) = kage.key_with(&json!({ "scopes": ["tasks:read"] })).await;
    assert_eq!(send(with(&other)).await.status, 200, "another key has its own");
}

#[tokio::test]
async fn pages_of_other_origins_are_let_in_by_name_alone() {
    let mut kage = TestKage::new().await;
    let index = kage.start("api").await;
    let preflight = |origin: &str| {
        kage.bare_request(Method::OPTIONS, "/api/v1/tasks")
            .header("Origin", origin)
            .header("Access-Control-Request-Method", "POST")
            .header("Access-Control-Request-Headers", "x-api-key,content-type")
    };
    let off = send(preflight("https://console.example")).await;
    assert_eq!(off.header("access-control-allow-origin"), "", "off unless listed");
    kage.process(index).terminate().await;
    kage.set("KAGE_API_CORS_ORIGINS", "https://console.example");
    kage.start("api").await;
    let preflight = |origin: &str| {
        kage.bare_request(Method::OPTIONS, "/api/v1/tasks")
            .header("Origin", origin)
            .header("Access-Control-Request-Method", "POST")
            .header("Access-Control-Request-Headers", "x-api-key,content-type")
    };
    let listed = send(preflight("https://console.example")).await;
    assert_eq!(
        (listed.status, listed.header("access-control-allow-origin")),
        (200, "https://console.example")
    );
    assert!(listed.header("access-control-allow-headers").contains("x-api-key"));
    for other in
        ["https://evil.example", "https://console.example.evil.example", "http://console.example", "null"]
    {
        let answer = send(preflight(other)).await;
        assert_eq!(answer.header("access-control-allow-origin"), "", "{other}");
        let answer = send(kage.request(Method::GET, "/api/v1/tasks").header("Origin", other)).await;
        assert_eq!(answer.header("access-control-allow-origin"), "", "{other}");
    }
    let answer =
        send(kage.request(Method::GET, "/api/v1/tasks").header("Origin", "https://console.example")).await;
    assert_eq!(answer.header("access-control-allow-origin"), "https://console.example");
    assert_eq!(
        answer.header("access-control-allow-credentials"),
        "",
        "a browser adds nothing of its own accord"
    );
    assert_eq!(answer.header("strict-transport-security"), "", "not over plain HTTP");
    assert!(answer.header("access-control-expose-headers").contains("ratelimit"));
    // A refusal can be read as well.
    let refused = kage.bare_request(Method::GET, "/api/v1/tasks").header("Origin", "https://console.example");
    let refused = send(refused).await;
    refused.problem(401);
    assert_eq!(refused.header("access-control-allow-origin"), "https://console.example");
}

#[tokio::test]
async fn a_made_up_method_does_not_stop_the_record_of_refusals() {
    let mut kage = TestKage::new().await;
    kage.set("KAGE_API_TRUSTED_PROXIES", "127.0.0.0/8");
    kage.set("KAGE_API_RATE_ADDRESS", "20");
    let api = kage.start("api").await;
    // More than an index of the trail holds, and nothing that Postgres could compress.
    let name: String = (0..188).map(|_| uuid::Uuid::new_v4().simple().to_string()).collect();
    let method = Method::from_bytes(name.as_bytes()).expect("a token");
    let flood = || kage.bare_request(method.clone(), "/x").header("X-Forwarded-For", "198.51.100.66");
    for _ in 0..24 {
        send(flood()).await;
    }
    send(flood()).await.problem(429);
    let other = kage.bare_request(Method::GET, "/api/v1/tasks").header("X-Forwarded-For", "198.51.100.67");
    send(other).await.problem(401);
    let sql =
        "SELECT host(address) || ' ' || object FROM audit_entries WHERE action = 'access.refuse' ORDER BY 1";
    let told: Vec<String> = eventually("both are in the trail", async || {
        let told: Vec<String> = sqlx::query_scalar(sql).fetch_all(kage.pool()).await.expect("reads");
        (told.len() >= 2).then_some(told)
    })
    .await;
    assert_eq!(told, ["198.51.100.66 route:other *", "198.51.100.67 route:GET /api/v1/tasks"]);
    assert!(!kage.process(api).log_says("api.refusals_not_audited"));
}

#[tokio::test]
async fn a_refusal_that_cannot_be_written_holds_up_no_other() {
    let mut kage = TestKage::new().await;
    kage.set("KAGE_API_TRUSTED_PROXIES", "127.0.0.0/8");
    let api = kage.start("api").await;
    let sql = "ALTER TABLE audit_entries ADD CONSTRAINT never CHECK (address IS DISTINCT FROM '198.51.100.66'::inet)";
    sqlx::query(sql).execute(kage.pool()).await.expect("the owner may");
    let from = |kage: &TestKage, address: &str| {
        kage.bare_request(Method::GET, "/api/v1/tasks").header("X-Forwarded-For", address)
    };
    send(from(&kage, "198.51.100.66")).await.problem(401);
    eventually("it is tried", async || kage.process(api).log_says("api.refusals_not_audited").then_some(()))
        .await;
    send(from(&kage, "198.51.100.67")).await.problem(401);
    let sql = "SELECT count(*) FROM audit_entries WHERE action = 'access.refuse' AND host(address) = '198.51.100.67'";
    eventually("the other is in the trail", async || {
        let told: i64 = sqlx::query_scalar(sql).fetch_one(kage.pool()).await.expect("reads");
        (told == 1).then_some(())
    })
    .await;
    assert!(kage.process(api).log_says("api.refusal_lost"), "what is given up is told");
}
