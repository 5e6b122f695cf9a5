//! Sessions: held to what the person may do, ended so that it is felt; and tokens that are not what they say.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ed25519_dalek::SigningKey;
use reqwest::Method;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::support::TestKage;
use crate::support::browser::Browser;
use crate::support::http::Answer;
use crate::support::sign_in::{CLIENT_SECRET, Scripted, begin, sign, unsigned};
use crate::support::sse::EventStream;
use crate::support::tasks::{shell, string};

async fn world(role: &'static str) -> (TestKage, Scripted) {
    let mut kage = TestKage::new().await;
    let provider = Scripted::start().await;
    kage.sign_in_at(&provider.issuer());
    kage.set("KAGE_API_RATE_FAILURES", "1000");
    kage.start(role).await;
    (kage, provider)
}

/// Comes back from the provider, which has this to say: of the nonce, and honest claims.
async fn come_back(
    kage: &TestKage,
    provider: &Scripted,
    browser: &mut Browser,
    token: impl Fn(&Value) -> String,
) -> Answer {
    let (state, nonce) = begin(browser, kage).await;
    provider.says(&token(&provider.claims(&nonce)));
    finish(kage, provider, browser, &state).await
}

async fn finish(kage: &TestKage, provider: &Scripted, browser: &mut Browser, state: &str) -> Answer {
    let mut url = url::Url::parse(&kage.at("/auth/oidc/callback")).expect("a URL");
    url.query_pairs_mut().extend_pairs([("code", "c"), ("state", state), ("iss", &provider.issuer())]);
    browser.get(url.as_str()).await
}

/// RFC 2104, of keys of up to 64 bytes.
fn hmac(key: &[u8], text: &[u8]) -> [u8; 32] {
    let pad = |with: u8| {
        let mut block = [with; 64];
        block.iter_mut().zip(key).for_each(|(byte, key)| *byte ^= key);
        block
    };
    let inner = Sha256::new().chain_update(pad(0x36)).chain_update(text).finalize();
    Sha256::new().chain_update(pad(0x5c)).chain_update(inner).finalize().into()
}

#[tokio::test]
async fn a_forged_token_signs_nobody_in() {
    let (kage, provider) = world("api").await;
    let with = |claims: &Value, name: &str, value: Value| {
        let mut claims = claims.clone();
        claims[name] = value;
        provider.signed(&claims)
    };
    let now = chrono::Utc::now().timestamp();
    let honest = |claims: &Value| provider.signed(claims);
    let welcome = come_back(&kage, &provider, &mut Browser::new(), honest).await;
    assert_eq!(welcome.status, 303, "the honest one: {}", welcome.text());
    let (public, other) = (
        provider.0.lock().expect("no panic").key.verifying_key().to_bytes(),
        SigningKey::from_bytes(&rand::random()),
    );
    let hs256 = |claims: &Value, key: &[u8]| {
        let text = unsigned(&json!({ "alg": "HS256" }), claims);
        format!("{text}.{}", URL_SAFE_NO_PAD.encode(hmac(key, text.as_bytes())))
    };
    let known = json!({ "alg": "EdDSA", "kid": "k1" });
    type Forged<'a> = (&'static str, &'static str, Box<dyn Fn(&Value) -> String + 'a>);
    let forged: Vec<Forged<'_>> = vec![
        ("another nonce", "token-nonce", Box::new(|c| with(c, "nonce", json!("x")))),
        ("no nonce", "token-nonce", Box::new(|c| with(c, "nonce", Value::Null))),
        ("another audience", "token-audience", Box::new(|c| with(c, "aud", json!("other")))),
        ("one more audience", "token-audience", Box::new(|c| with(c, "aud", json!(["kage", "other"])))),
        ("for another party", "token-audience", Box::new(|c| with(c, "azp", json!("other")))),
        ("expired", "token-time", Box::new(|c| with(c, "exp", json!(now - 1)))),
        ("of long ago", "token-time", Box::new(|c| with(c, "iat", json!(now - 4000)))),
        ("of tomorrow", "token-time", Box::new(|c| with(c, "iat", json!(now + 86_400)))),
        ("another issuer", "token-issuer", Box::new(|c| with(c, "iss", json!("https://evil.example")))),
        (
            "another access token's",
            "access-token",
            Box::new(|c| with(c, "at_hash", json!("AAAAAAAAAAAAAAAAAAAAAA"))),
        ),
        ("no subject", "no-token", Box::new(|c| with(c, "sub", Value::Null))),
        ("a subject with a line end", "subject", Box::new(|c| with(c, "sub", json!("a\nb")))),
        ("alg none", "token-algorithm", Box::new(|c| format!("{}.", unsigned(&json!({ "alg": "none" }), c)))),
        ("HS256 with the client's id", "token-algorithm", Box::new(|c| hs256(c, b"kage"))),
        ("HS256 with the public key", "token-algorithm", Box::new(|c| hs256(c, &public))),
        (
            "HS256 with the client's secret",
            "token-algorithm",
            Box::new(|c| hs256(c, CLIENT_SECRET.as_bytes())),
        ),
        ("another key under its name", "token-signature", Box::new(|c| sign(&known, c, &other))),
        (
            "an unknown key",
            "token-signature",
            Box::new(|c| sign(&json!({ "alg": "EdDSA", "kid": "k9" }), c, &other)),
        ),
        ("no signature", "token-signature", Box::new(|c| format!("{}.", unsigned(&known, c)))),
        ("nothing", "no-token", Box::new(|_| String::new())),
    ];
    let keys_before = provider.0.lock().expect("no panic").keys_asked;
    for (what, reason, token) in &forged {
        let mut browser = Browser::new();
        let answer = come_back(&kage, &provider, &mut browser, token).await;
        let problem = answer.problem(403);
        assert_eq!(problem["type"], format!("urn:kage:problem:sign-in-{reason}"), "{what}");
        assert_eq!(browser.cookie(&kage.url, "kage-session"), None, "{what}");
        kage.refused_for(&format!("sign-in-{reason}")).await;
    }
    let mut browser = Browser::new();
    let again = come_back(&kage, &provider, &mut browser, |c| {
        sign(&json!({ "alg": "EdDSA", "kid": "k8" }), c, &other)
    });
    again.await.problem(403);
    let looked = provider.0.lock().expect("no panic").keys_asked - keys_before;
    assert_eq!(looked, 1, "unknown keys make one look a minute");

    // Its answers are not followed elsewhere, nor read without end.
    let elsewhere = format!("{}/elsewhere", provider.issuer());
    for (status, headers, body, expected) in [
        (307, vec![("location", elsewhere)], String::new(), 403),
        (200, vec![], format!("{{\"x\":\"{}\"}}", "x".repeat(600 << 10)), 503),
        (400, vec![], json!({ "error": "invalid_grant" }).to_string(), 403),
        (500, vec![], String::new(), 403),
    ] {
        let mut browser = Browser::new();
        let (state, _) = begin(&mut browser, &kage).await;
        provider.0.lock().expect("no panic").token = (status, headers, body);
        finish(&kage, &provider, &mut browser, &state).await.problem(expected);
    }
    let asked = provider.0.lock().expect("no panic").asked.clone();
    assert!(
        asked.iter().all(|line| line.starts_with("/token ") && line.contains("code_verifier=")),
        "{asked:?}"
    );
    let sessions: i64 =
        sqlx::query_scalar("SELECT count(*) FROM sessions").fetch_one(kage.pool()).await.expect("reads");
    assert_eq!(sessions, 1);
}

impl TestKage {
    async fn signed_in(&self, provider: &Scripted, who: &str, group: &str) -> (Browser, Value) {
        let mut browser = Browser::new();
        let token = |claims: &Value| {
            let mut claims = claims.clone();
            (claims["sub"], claims["groups"]) = (json!(who), json!(group));
            provider.signed(&claims)
        };
        let answer = come_back(self, provider, &mut browser, token).await;
        assert_eq!(answer.status, 303, "{}", answer.text());
        let own = browser.get(&self.at("/api/v1/session")).await.json();
        (browser, own)
    }

    async fn submit_in(&self, browser: &mut Browser, own: &Value, task: &Value) -> Answer {
        let url = self.at("/api/v1/tasks");
        let request = browser.request(Method::POST, &url).json(task);
        let request = request.header("Origin", &self.url).header("X-CSRF-Token", string(&own["csrf_token"]));
        browser.send(&url, request).await
    }
}

async fn ends(mut stream: EventStream) {
    let mut last = None;
    while let Some(event) = stream.next().await {
        assert_ne!(event.name, "heartbeat", "the stream goes on");
        last = Some(event);
    }
    let last = last.expect("it says why");
    assert!(string(&last.data["message"]).contains("session is no longer valid"), "{last:?}");
}

#[tokio::test]
async fn a_session_is_held_to_its_rights_and_its_end_is_felt() {
    let (kage, provider) = world("serve").await;
    kage.demo().await;
    let (mut alice, own) = kage.signed_in(&provider, "alice", "dev").await;
    let task = kage.submit_in(&mut alice, &own, &shell("echo begun; sleep 600")).await;
    assert_eq!(task.status, 201, "{}", task.text());
    let task = string(&task.json()["id"]).to_owned();

    // The day's quota is the person's, not the session's: signing in anew gives no more.
    let (mut again, twice) = kage.signed_in(&provider, "alice", "dev").await;
    assert_eq!(twice["used"]["runs_today"], 1, "{twice}");
    let mut two = shell("echo two runs of it");
    two["cli_assignments"] = json!([{ "cli_name": "shell" }, { "cli_name": "shell" }]);
    kage.submit_in(&mut again, &twice, &two).await.problem(429);
    // Another person's are his own; and a key of the day before sees no sessions without the scope.
    let (_, other) = kage.signed_in(&provider, "bob", "dev").await;
    assert_eq!(other["used"]["runs_today"], 0);

    let stream = async |browser: &Browser| {
        let url = kage.at(&format!("/api/v1/tasks/{task}/progress"));
        let answer = browser.request(Method::GET, &url).send().await.expect("an answer");
        let mut stream = EventStream::new(answer);
        stream.until(|event| event.name == "state" && event.data["state"] == "running").await;
        stream
    };
    let listed = kage.get("/api/v1/sessions").await.json();
    let names: Vec<&str> =
        listed["sessions"].as_array().expect("a list").iter().map(|one| string(&one["subject"])).collect();
    assert_eq!(names, ["alice", "alice", "bob"]);
    let (_, narrow) = kage.key_with(&json!({ "scopes": ["keys:admin"], "repositories": ["demo"] })).await;
    let seen = kage.get_as("/api/v1/sessions", &narrow).await.json();
    assert_eq!(seen["sessions"], json!([]), "they have scopes that it has not");
    let revoke = format!("/api/v1/sessions/{}", string(&own["id"]));
    crate::support::http::send(kage.with_key(Method::DELETE, &revoke, &narrow)).await.problem(404);

    // By an administrator, and by hand in the database, which tells nobody; of an end that comes by itself, and of disuse.
    let open = stream(&alice).await;
    assert_eq!(kage.delete(&revoke).await.json()["subject"], "alice");
    ends(open).await;
    alice.get(&kage.at("/api/v1/tasks")).await.problem(401);
    kage.delete(&revoke).await.problem(404);
    let (third, third_own) = kage.signed_in(&provider, "alice", "dev").await;
    for (browser, own, change) in [
        (&again, &twice, "ended_at = now(), ended_how = 'revoked'"),
        (&third, &third_own, "last_used_at = now() - make_interval(secs => idle_secs)"),
    ] {
        let open = stream(browser).await;
        let sql = sqlx::AssertSqlSafe(format!("UPDATE sessions SET {change} WHERE id = $1"));
        sqlx::query(sql).bind(string(&own["id"])).execute(kage.pool()).await.expect("changed");
        ends(open).await;
    }
    let (mut fourth, own) = kage.signed_in(&provider, "alice", "admins").await;
    assert_eq!(fourth.get(&kage.at("/api/v1/keys")).await.status, 200);
    let keys = kage.get("/api/v1/keys").await.json();
    assert_eq!(keys["keys"].as_array().map(Vec::len), Some(2), "people are no keys: {keys}");
    let sql = "UPDATE sessions SET expires_at = now() WHERE id = $1";
    sqlx::query(sql).bind(string(&own["id"])).execute(kage.pool()).await.expect("changed");
    fourth.get(&kage.at("/api/v1/keys")).await.problem(401);
    kage.delete(&format!("/api/v1/tasks/{task}")).await;
    kage.ended(&task).await;
}
