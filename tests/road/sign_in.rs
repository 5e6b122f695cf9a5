//! People sign in at a real provider: the whole code flow with real tokens, and what an attacker does with a browser.

use reqwest::Method;
use serde_json::{Value, json};

use crate::support::TestKage;
use crate::support::browser::Browser;
use crate::support::database::stored;
use crate::support::http::{Answer, send};
use crate::support::sign_in::{CLIENT_SECRET, RealProvider};
use crate::support::tasks::{shell, string};

const SESSION: &str = "kage-session";
const SIGN_IN: &str = "kage-sign-in";

/// An API that people sign in to, and their provider.
pub async fn world(conform: bool) -> (TestKage, RealProvider) {
    let mut kage = TestKage::new().await;
    let port = RealProvider::port();
    kage.sign_in_at(&format!("http://127.0.0.1:{port}"));
    let provider = RealProvider::start(port, &kage, conform).await;
    kage.start("api").await;
    (kage, provider)
}

async fn csrf(browser: &mut Browser, kage: &TestKage) -> String {
    let own = browser.get(&kage.at("/api/v1/session")).await;
    assert_eq!(own.status, 200, "{}", own.text());
    string(&own.json()["csrf_token"]).to_owned()
}

/// A write of a page, with these headers.
async fn write(browser: &mut Browser, url: &str, headers: &[(&str, &str)]) -> Answer {
    let mut request = browser.request(Method::POST, url).json(&shell("echo x"));
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    browser.send(url, request).await
}

fn kind(answer: &Answer, status: u16) -> String {
    string(&answer.problem(status)["type"]).rsplit(':').next().expect("a part").to_owned()
}

#[tokio::test]
async fn a_person_signs_in_and_out_and_is_in_the_trail() {
    let (kage, provider) = world(true).await;
    let mut alice = Browser::new();
    let page = provider.sign_in(&mut alice, &kage, "alice+dev").await;
    assert_eq!(page.status, 200, "{}", page.text());
    let own = page.json();
    assert_eq!(
        [&own["issuer"], &own["subject"], &own["name"], &own["scopes"], &own["repositories"]],
        [
            &json!(provider.issuer),
            &json!("alice+dev"),
            &json!("alice"),
            &json!(["tasks:read", "tasks:write"]),
            &json!(["demo"])
        ]
    );
    let tasks = kage.at("/api/v1/tasks");
    assert_eq!(alice.get(&tasks).await.status, 200);
    assert_eq!(kind(&alice.get(&kage.at("/api/v1/keys")).await, 403), "scope-missing");
    alice.get(&kage.at("/api/v1/repositories/other")).await.problem(404);
    // A key that is shown counts alone.
    let both = alice.request(Method::GET, &tasks).header("X-API-Key", "kage_wrong");
    assert_eq!(kind(&send(both).await, 401), "key-unknown");

    // Writes show that they come from a page of ours.
    let token = csrf(&mut alice, &kage).await;
    let (own_page, with_token) = (("Origin", kage.url.as_str()), ("X-CSRF-Token", token.as_str()));
    for headers in [
        &[][..],
        &[own_page],
        &[with_token],
        &[own_page, ("X-CSRF-Token", "")],
        &[own_page, ("X-CSRF-Token", &token[1..])],
        &[("Origin", "https://evil.example"), with_token],
        &[("Origin", "null"), with_token],
        &[own_page, with_token, ("Sec-Fetch-Site", "cross-site")],
    ] {
        assert_eq!(kind(&write(&mut alice, &tasks, headers).await, 403), "csrf", "{headers:?}");
    }
    let through = write(&mut alice, &tasks, &[own_page, with_token]).await;
    assert!(![401, 403].contains(&through.status), "{}", through.text());

    // Out: the cookie is of no use any more, whoever has kept it.
    let kept = alice.cookie(&kage.url, SESSION).expect("a cookie");
    assert_eq!(kind(&write(&mut alice, &kage.at("/auth/logout"), &[]).await, 403), "csrf");
    let out = write(&mut alice, &kage.at("/auth/logout"), &[own_page, with_token]).await;
    let end = out.json();
    assert!(
        string(&end["end_session_url"]).starts_with(&format!("{}/session/end?", provider.issuer)),
        "{end}"
    );
    assert_eq!(alice.cookie(&kage.url, SESSION), None);
    alice.plant(&kage.url, SESSION, &kept);
    assert_eq!(kind(&alice.get(&tasks).await, 401), "session-ended");

    // Known there, and nobody here.
    let refused = provider.sign_in(&mut Browser::new(), &kage, "mallory+strangers").await;
    assert_eq!(kind(&refused, 403), "sign-in-no-rights");

    let sql = "SELECT actor_kind, actor_id, action, outcome, details->>'reason' FROM audit_entries
               WHERE action LIKE 'session.%' ORDER BY at";
    let trail: Vec<(String, String, String, String, Option<String>)> =
        sqlx::query_as(sql).fetch_all(kage.pool()).await.expect("reads");
    let entry = |who: &str, action: &str, outcome: &str, reason: Option<&str>| {
        let actor = format!("{}#{who}", provider.issuer);
        ("person".to_owned(), actor, action.to_owned(), outcome.to_owned(), reason.map(str::to_owned))
    };
    assert_eq!(
        trail,
        [
            entry("alice+dev", "session.create", "done", None),
            entry("alice+dev", "session.end", "done", None),
            entry("mallory+strangers", "session.create", "refused", Some("sign-in-no-rights")),
        ]
    );
    kage.refused_for("csrf").await;
    let all = stored(kage.pool()).await;
    for secret in [kept.as_str(), &token, CLIENT_SECRET] {
        assert!(!all.contains(secret), "a secret is stored");
    }
}

#[tokio::test]
async fn a_browser_that_did_not_begin_comes_to_nothing() {
    let (kage, provider) = world(false).await;
    let (mut attacker, mut victim) = (Browser::new(), Browser::new());

    // Login CSRF: the attacker's answer in another browser, which began nothing, or something else.
    let url = provider.answer(&mut attacker, &kage, "eve+dev", "/").await;
    assert_eq!(kind(&victim.get(&url).await, 400), "sign-in-not-begun");
    provider.answer(&mut victim, &kage, "alice+dev", "/").await;
    assert_eq!(kind(&victim.get(&url).await, 400), "sign-in-state");
    assert_eq!(victim.cookie(&kage.url, SESSION), None);

    // Without a state, or with another's; the sign-in itself is not used up by it.
    let begun = attacker.cookie(&kage.url, SIGN_IN).expect("a cookie");
    let (base, query) = url.split_once('?').expect("a query");
    let parts: Vec<&str> = query.split('&').collect();
    let without = |name: &str| {
        let left: Vec<&str> = parts.iter().copied().filter(|part| !part.starts_with(name)).collect();
        format!("{base}?{}", left.join("&"))
    };
    for bad in [without("state="), format!("{}&state=x", without("state="))] {
        attacker.plant(&kage.url, SIGN_IN, &begun);
        assert_eq!(kind(&attacker.get(&bad).await, 400), "sign-in-state");
    }
    // Another provider's answer (mix-up): this one says who it is, and it is believed in this alone.
    for (bad, reason) in [
        (format!("{}&iss=https%3A%2F%2Fevil.example", without("iss=")), "sign-in-answer-issuer"),
        (url.clone(), "sign-in-used"),
    ] {
        attacker.plant(&kage.url, SIGN_IN, &begun);
        let answer = attacker.get(&bad).await;
        assert_eq!(string(&answer.json()["type"]).rsplit(':').next(), Some(reason), "{}", answer.text());
        kage.refused_for(reason).await;
    }
    let missing = provider.answer(&mut attacker, &kage, "eve+dev", "/").await;
    let (base, query) = missing.split_once('?').expect("a query");
    let left: Vec<&str> = query.split('&').filter(|part| !part.starts_with("iss=")).collect();
    let answer = attacker.get(&format!("{base}?{}", left.join("&"))).await;
    assert_eq!(kind(&answer, 403), "sign-in-answer-issuer");

    // Fixation: what was planted before is not what is valid after. A replay makes no second session.
    let planted = "A".repeat(43);
    victim.plant(&kage.url, SESSION, &planted);
    let url = provider.answer(&mut victim, &kage, "alice+dev", "/api/v1/session").await;
    let begun = victim.cookie(&kage.url, SIGN_IN).expect("a cookie");
    let signed_in = victim.get(&url).await;
    assert_eq!((signed_in.status, signed_in.header("location")), (303, "/api/v1/session"));
    let line = signed_in.headers.get_all("set-cookie").iter().next().expect("a cookie");
    let line = line.to_str().expect("ASCII");
    assert!(line.contains("; HttpOnly; SameSite=Lax") && line.contains("; Path=/;"), "{line}");
    let first = victim.cookie(&kage.url, SESSION).expect("a cookie");
    assert_ne!(first, planted);
    victim.plant(&kage.url, SIGN_IN, &begun);
    assert_eq!(kind(&victim.get(&url).await, 400), "sign-in-used");
    assert_eq!(victim.get(&kage.at("/api/v1/session")).await.status, 200, "and the first one goes on");
    // Who signs in anew leaves nothing behind.
    provider.sign_in(&mut victim, &kage, "alice+dev").await;
    assert_eq!(victim.get(&kage.at("/api/v1/session")).await.status, 200);
    victim.plant(&kage.url, SESSION, &first);
    assert_eq!(kind(&victim.get(&kage.at("/api/v1/session")).await, 401), "session-ended");

    for bad in
        ["//evil.example", "/%5Cevil.example", "https://evil.example", "https:evil", "/%09/evil", "/a%0D%0Ab"]
    {
        let answer = victim.get(&kage.at(&format!("/auth/oidc/login?return_to={bad}"))).await;
        assert_eq!(kind(&answer, 422), "invalid", "{bad}");
    }
}

#[tokio::test]
async fn a_provider_may_change_its_keys_and_cookies_go_over_tls_alone() {
    let (mut kage, provider) = world(true).await;
    let port = provider.issuer.rsplit(':').next().and_then(|port| port.parse().ok()).expect("a port");
    assert_eq!(provider.sign_in(&mut Browser::new(), &kage, "alice+dev").await.status, 200);
    drop(provider);
    let provider = RealProvider::start(port, &kage, false).await;
    let page = provider.sign_in(&mut Browser::new(), &kage, "alice+admins").await;
    assert_eq!(page.json()["scopes"], json!(["admin"]), "{}", page.text());

    let listen = format!("127.0.0.1:{}", RealProvider::port());
    let settings = [("KAGE_API_LISTEN", listen.as_str()), ("KAGE_OIDC_PUBLIC_URL", "https://kage.example")];
    kage.start_with("api", &settings).await;
    let answer = Browser::new().get(&format!("http://{listen}/auth/oidc/login")).await;
    let line = answer.header("set-cookie");
    assert!(line.starts_with("__Host-kage-sign-in=") && line.ends_with("; Secure"), "{line}");
    let url = url::Url::parse(answer.header("location")).expect("a URL");
    let back: Option<Value> =
        url.query_pairs().find(|(name, _)| name == "redirect_uri").map(|(_, value)| json!(value));
    assert_eq!(back, Some(json!("https://kage.example/auth/oidc/callback")));
}
