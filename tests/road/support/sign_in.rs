//! OpenID providers to sign in at: a certified one in a container, and one that says what the test wants it to say.

use std::sync::{Arc, Mutex};

use axum::Router;
use axum::extract::State;
use axum::response::IntoResponse;
use axum::routing::{get, post};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use chrono::Utc;
use ed25519_dalek::{Signer as _, SigningKey};
use serde_json::{Value, json};
use url::Url;

use crate::support::browser::Browser;
use crate::support::http::{self, Answer};
use crate::support::{TestKage, docker, eventually, free_port};

pub const CLIENT_SECRET: &str = "the-secret-of-the-relying-party-9f2c";
const RIGHTS: &str = r#"
[[grant]]
value = "admins"
scopes = ["admin"]

[[grant]]
value = "dev"
scopes = ["tasks:read", "tasks:write"]
repositories = ["demo"]
runs_a_day = 2
"#;

impl TestKage {
    /// Sets sign-in up, at a provider.
    pub fn sign_in_at(&mut self, issuer: &str) {
        let (rights, url) = (self.folder.join("rights.toml"), self.url.clone());
        std::fs::write(&rights, RIGHTS).expect("a file");
        self.set("KAGE_OIDC_ISSUER", issuer);
        self.set("KAGE_OIDC_CLIENT_ID", "kage");
        self.set("KAGE_OIDC_CLIENT_SECRET", CLIENT_SECRET);
        self.set("KAGE_OIDC_PUBLIC_URL", &url);
        self.set("KAGE_OIDC_RIGHTS", &rights.display().to_string());
        self.set("KAGE_OIDC_ALLOW_PLAIN_HTTP", "true");
    }

    pub fn at(&self, path: &str) -> String {
        format!("{}{path}", self.url)
    }

    pub async fn refused_for(&self, reason: &str) {
        let sql = "SELECT count(*) FROM audit_entries WHERE outcome = 'refused' AND details->>'reason' = $1";
        eventually(&format!("the trail tells of {reason}"), async || {
            let count: i64 =
                sqlx::query_scalar(sql).bind(reason).fetch_one(self.pool()).await.expect("reads");
            (count > 0).then_some(())
        })
        .await;
    }
}

/// The certified provider, in a container that goes with this.
pub struct RealProvider {
    pub issuer: String,
    name: String,
}

impl RealProvider {
    /// `conform`: groups are in the user info alone, as the specification has it.
    pub async fn start(port: u16, kage: &TestKage, conform: bool) -> Self {
        let this = Self {
            issuer: format!("http://127.0.0.1:{port}"),
            name: format!("{}-oidc-{conform}", kage.name),
        };
        let settings = [
            format!("PORT={port}"),
            "CLIENT_ID=kage".to_owned(),
            format!("CLIENT_SECRET={CLIENT_SECRET}"),
            format!("PUBLIC_URL={}", kage.url),
            format!("CONFORM={conform}"),
        ];
        let mut args = vec!["run", "--detach", "--rm", "--network", "host", "--name", &this.name];
        settings.iter().for_each(|setting| args.extend(["--env", setting]));
        args.push("kage-oidc-provider:dev");
        docker(&args);
        let (http, url) = (http::client(), format!("{}/jwks", this.issuer));
        eventually("the provider is up", async || http.get(&url).send().await.ok().map(drop)).await;
        this
    }

    pub fn port() -> u16 {
        free_port()
    }

    /// Signs somebody in as far as the URL that the provider sends the browser back to.
    pub async fn answer(&self, browser: &mut Browser, kage: &TestKage, who: &str, return_to: &str) -> String {
        let callback = kage.at("/auth/oidc/callback");
        let back = |url: &str| url.starts_with(&callback);
        let begin = kage.at(&format!("/auth/oidc/login?return_to={return_to}"));
        let (mut url, mut page) = browser.walk(&begin, back).await;
        for fields in
            [&[("prompt", "login"), ("login", who), ("password", "any")][..], &[("prompt", "consent")]]
        {
            if back(&url) {
                break;
            }
            let (action, answer) = browser.submit(&page, fields).await;
            assert!((300..400).contains(&answer.status), "{}: {}", answer.status, answer.text());
            let next = Url::parse(&action).expect("a URL").join(answer.header("location")).expect("a URL");
            (url, page) = if back(next.as_str()) {
                (next.into(), answer)
            } else {
                browser.walk(next.as_str(), back).await
            };
        }
        assert!(back(&url), "{url}: {}", page.text());
        url
    }

    /// Signs somebody in: the answer of the page that it comes to.
    pub async fn sign_in(&self, browser: &mut Browser, kage: &TestKage, who: &str) -> Answer {
        let url = self.answer(browser, kage, who, "/api/v1/session").await;
        browser.walk(&url, |_| false).await.1
    }
}

impl Drop for RealProvider {
    fn drop(&mut self) {
        docker(&["rm", "--force", &self.name]);
    }
}

/// What the scripted provider says.
pub struct Script {
    pub issuer: String,
    pub key: SigningKey,
    pub kid: String,
    /// The answer of its token endpoint: status, headers, body.
    pub token: (u16, Vec<(&'static str, String)>, String),
    /// Requests that came to the token endpoint.
    pub asked: Vec<String>,
    pub keys_asked: usize,
}

#[derive(Clone)]
pub struct Scripted(pub Arc<Mutex<Script>>);

impl Scripted {
    pub async fn start() -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let issuer = format!("http://{}", listener.local_addr().expect("an address"));
        let this = Self(Arc::new(Mutex::new(Script {
            issuer,
            key: SigningKey::from_bytes(&rand::random()),
            kid: "k1".to_owned(),
            token: (500, Vec::new(), String::new()),
            asked: Vec::new(),
            keys_asked: 0,
        })));
        let router = Router::new()
            .route("/.well-known/openid-configuration", get(discovery))
            .route("/jwks", get(keys))
            .route("/token", post(token))
            .route("/elsewhere", post(token))
            .with_state(this.clone());
        tokio::spawn(async move { axum::serve(listener, router).await });
        this
    }

    pub fn issuer(&self) -> String {
        self.0.lock().expect("no panic").issuer.clone()
    }

    /// The token endpoint's next answers: this ID token.
    pub fn says(&self, id_token: &str) {
        let body = json!({ "access_token": "at", "token_type": "Bearer", "id_token": id_token });
        self.0.lock().expect("no panic").token = (200, Vec::new(), body.to_string());
    }

    /// What an honest token says.
    pub fn claims(&self, nonce: &str) -> Value {
        let now = Utc::now().timestamp();
        json!({
            "iss": self.issuer(), "sub": "mallory", "aud": "kage", "exp": now + 300, "iat": now, "nonce": nonce,
            "groups": ["admins"],
        })
    }

    pub fn signed(&self, claims: &Value) -> String {
        let script = self.0.lock().expect("no panic");
        sign(&json!({ "alg": "EdDSA", "kid": script.kid, "typ": "JWT" }), claims, &script.key)
    }
}

pub fn sign(header: &Value, claims: &Value, key: &SigningKey) -> String {
    let text = unsigned(header, claims);
    let signature = URL_SAFE_NO_PAD.encode(key.sign(text.as_bytes()).to_bytes());
    format!("{text}.{signature}")
}

/// Header and claims, as they are signed.
pub fn unsigned(header: &Value, claims: &Value) -> String {
    let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
    format!("{}.{}", part(header), part(claims))
}

async fn discovery(State(this): State<Scripted>) -> impl IntoResponse {
    let issuer = this.issuer();
    axum::Json(json!({
        "issuer": issuer,
        "authorization_endpoint": format!("{issuer}/auth"),
        "token_endpoint": format!("{issuer}/token"),
        "jwks_uri": format!("{issuer}/jwks"),
        "response_types_supported": ["code"],
        "subject_types_supported": ["public"],
        "authorization_response_iss_parameter_supported": true,
        "id_token_signing_alg_values_supported": ["RS256", "EdDSA", "HS256", "none"],
    }))
}

async fn keys(State(this): State<Scripted>) -> impl IntoResponse {
    let mut script = this.0.lock().expect("no panic");
    script.keys_asked += 1;
    let x = URL_SAFE_NO_PAD.encode(script.key.verifying_key().to_bytes());
    let key =
        json!({ "kty": "OKP", "crv": "Ed25519", "x": x, "kid": script.kid, "use": "sig", "alg": "EdDSA" });
    axum::Json(json!({ "keys": [key] }))
}

async fn token(State(this): State<Scripted>, uri: axum::http::Uri, body: String) -> impl IntoResponse {
    let mut script = this.0.lock().expect("no panic");
    script.asked.push(format!("{} {body}", uri.path()));
    let (status, headers, body) = script.token.clone();
    let mut answer =
        axum::http::Response::builder().status(status).header("content-type", "application/json");
    for (name, value) in headers {
        answer = answer.header(name, value);
    }
    answer.body(axum::body::Body::from(body)).expect("an answer")
}

/// Begins at the scripted provider: `state` and `nonce` as the browser carries them there.
pub async fn begin(browser: &mut Browser, kage: &TestKage) -> (String, String) {
    let answer = browser.get(&kage.at("/auth/oidc/login?return_to=/api/v1/session")).await;
    assert_eq!(answer.status, 303, "{}", answer.text());
    let url = Url::parse(answer.header("location")).expect("a URL");
    let of = |name: &str| {
        let found = url.query_pairs().find(|(given, _)| given == name);
        found.unwrap_or_else(|| panic!("no {name} in {url}")).1.into_owned()
    };
    assert_eq!((of("code_challenge_method").as_str(), of("response_type").as_str()), ("S256", "code"));
    (of("state"), of("nonce"))
}
