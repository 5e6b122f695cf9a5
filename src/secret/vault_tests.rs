//! The client against a server that speaks Vault's API, and by hand against a real one.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Json;
use axum::Router;
use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use secrecy::ExposeSecret;
use serde_json::{Value, json};

use crate::secret::command::Commands;
use crate::secret::resolver::Resolver;
use crate::secret::source::{Source, VaultPath};
use crate::secret::vault::{Vault, VaultAuth, VaultOptions};

/// What the server knows. Tokens are made in order: `hvs.1`, `hvs.2`…
#[derive(Default)]
struct Server {
    requests: Vec<String>,
    tokens: usize,
    /// The newest token alone counts, unless it was revoked.
    revoked: bool,
    sealed: bool,
    /// Seconds of a token's life; 0: for ever.
    lease: u64,
    renewable: bool,
    static_token: Option<&'static str>,
}

type Shared = Arc<Mutex<Server>>;

async fn answer(State(server): State<Shared>, request: Request) -> Response {
    let (head, body) = request.into_parts();
    let path = head.uri.path().to_owned();
    let header = |name: &str| {
        head.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default().to_owned()
    };
    let (token, namespace, marked) =
        (header("x-vault-token"), header("x-vault-namespace"), header("x-vault-request"));
    let body = axum::body::to_bytes(body, 1 << 20).await.unwrap();
    let body: Value = serde_json::from_slice(&body).unwrap_or_default();
    let mut server = server.lock().unwrap();
    server.requests.push(format!("{path} {namespace}"));
    let no = |status: u16| {
        let words = json!({ "errors": ["hush: a secret in an error"] });
        (StatusCode::from_u16(status).unwrap(), Json(words)).into_response()
    };
    if server.sealed {
        return no(503);
    }
    if marked != "true" {
        return no(400);
    }
    let auth = |server: &Server| {
        let auth = json!({ "client_token": format!("hvs.{}", server.tokens),
                           "lease_duration": server.lease, "renewable": server.renewable });
        Json(json!({ "auth": auth })).into_response()
    };
    if path == "/v1/auth/approle/login" {
        if body["role_id"] != "role" || body["secret_id"] != "secret" {
            return no(400);
        }
        server.tokens += 1;
        server.revoked = false;
        return auth(&server);
    }
    let current = format!("hvs.{}", server.tokens);
    let valid = server.static_token.map_or(token == current && !server.revoked, |known| known == token);
    if !valid {
        return no(403);
    }
    match path.as_str() {
        "/v1/auth/token/lookup-self" => {
            Json(json!({ "data": { "ttl": server.lease, "renewable": server.renewable } })).into_response()
        }
        "/v1/auth/token/renew-self" => auth(&server),
        "/v1/kv/data/team/db" => {
            let data = json!({ "password": "hu\"sh\u{e9}", "port": 5432, "deep": { "a": ["b", null] } });
            Json(json!({ "data": { "data": data, "metadata": { "version": 3 } } })).into_response()
        }
        "/v1/kv/data/garbage" => "hush".into_response(),
        "/v1/kv/data/moved" => (StatusCode::FOUND, [("location", "/v1/kv/data/team/db")]).into_response(),
        "/v1/kv/data/denied" => no(403),
        _ => no(404),
    }
}

async fn serve(server: Server) -> (url::Url, Shared) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap()).parse().unwrap();
    let shared = Arc::new(Mutex::new(server));
    let router = Router::new().fallback(answer).with_state(Arc::clone(&shared));
    tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
    (url, shared)
}

fn vault(address: &url::Url, auth: VaultAuth) -> Vault {
    let options = VaultOptions {
        address: address.clone(),
        namespace: Some("team".to_owned()),
        ca: None,
        auth,
        within: Duration::from_secs(5),
    };
    Vault::new(options, Commands::default()).unwrap()
}

fn app_role(secret_id: &str) -> VaultAuth {
    let (role_id, secret_id) = (Source::Literal("role".into()), Source::of_setting(secret_id).unwrap());
    VaultAuth::AppRole { mount: "approle".to_owned(), role_id, secret_id }
}

fn path(text: &str) -> VaultPath {
    let Source::Vault(path) = Source::of_setting(&format!("vault:{text}")).unwrap() else { panic!() };
    path
}

async fn read(vault: &Vault, text: &str) -> Result<String, String> {
    vault.read(&path(text)).await.map(|secret| secret.expose_secret().to_owned())
}

fn logins(shared: &Shared) -> usize {
    shared.lock().unwrap().requests.iter().filter(|line| line.starts_with("/v1/auth/approle/login")).count()
}

#[tokio::test]
async fn app_role_logs_in_once_and_reads_fields() {
    let (address, shared) = serve(Server { lease: 3600, renewable: true, ..Server::default() }).await;
    // The secret id comes from a program.
    let vault = vault(&address, app_role("exec:/bin/echo secret"));
    assert_eq!(read(&vault, "kv/team/db#password").await.unwrap(), "hu\"sh\u{e9}");
    for (place, says) in [
        ("kv/team/db#port", "no text"),
        ("kv/team/db#deep", "no text"),
        ("kv/team/db#other", "no such field"),
        ("kv/none#x", "404"),
        ("kv/garbage#x", "not understood"),
        ("kv/moved#x", "302"),
        ("kv/denied#x", "403"),
    ] {
        let problem = read(&vault, place).await.unwrap_err();
        assert!(problem.contains(says) && !problem.contains("hush"), "{place}: {problem}");
    }
    let lines = shared.lock().unwrap().requests.clone();
    assert!(lines.iter().all(|line| line.ends_with(" team")), "{lines:?}");
    // The first, and one more to be sure that it is the path that is denied and not the token.
    assert_eq!(logins(&shared), 2, "{lines:?}");
}

#[tokio::test]
async fn a_revoked_token_is_replaced_and_a_sealed_server_named() {
    let (address, shared) = serve(Server { lease: 3600, ..Server::default() }).await;
    let vault = vault(&address, app_role("secret"));
    assert!(read(&vault, "kv/team/db#password").await.is_ok());
    shared.lock().unwrap().revoked = true;
    assert!(read(&vault, "kv/team/db#password").await.is_ok());
    assert_eq!(logins(&shared), 2);
    shared.lock().unwrap().sealed = true;
    let problem = read(&vault, "kv/team/db#password").await.unwrap_err();
    assert!(problem.contains("sealed") && !problem.contains("hush"), "{problem}");
    shared.lock().unwrap().sealed = false;
    assert!(read(&vault, "kv/team/db#password").await.is_ok());
}

#[tokio::test]
async fn a_wrong_secret_id_is_refused_in_our_words() {
    let (address, _) = serve(Server::default()).await;
    let problem = read(&vault(&address, app_role("hush")), "kv/team/db#password").await.unwrap_err();
    assert!(problem.contains("AppRole") && !problem.contains("hush"), "{problem}");
    let away: url::Url = "http://127.0.0.1:1".parse().unwrap();
    let problem = read(&vault(&away, app_role("hush")), "kv/team/db#password").await.unwrap_err();
    assert!(problem.contains("reached"), "{problem}");
}

#[tokio::test]
async fn a_lease_is_renewed_before_it_ends() {
    let (address, shared) = serve(Server { lease: 30, renewable: true, ..Server::default() }).await;
    let vault = vault(&address, app_role("secret"));
    assert!(read(&vault, "kv/team/db#password").await.is_ok());
    let renewals = || {
        let requests = &shared.lock().unwrap().requests;
        requests.iter().filter(|line| line.contains("renew-self")).count()
    };
    vault.keep_alive().await.unwrap();
    assert_eq!(renewals(), 0);
    // The clock is the runtime's: it goes on by itself while nothing else happens.
    let skip = async |seconds| {
        tokio::time::pause();
        tokio::time::advance(Duration::from_secs(seconds)).await;
        tokio::time::resume();
    };
    skip(21).await;
    vault.keep_alive().await.unwrap();
    assert_eq!((renewals(), logins(&shared)), (1, 1));
    // One that cannot be renewed is replaced; one that ran out is not shown any more.
    shared.lock().unwrap().revoked = true;
    skip(21).await;
    vault.keep_alive().await.unwrap();
    assert_eq!(logins(&shared), 2);
    skip(31).await;
    assert!(read(&vault, "kv/team/db#password").await.is_ok());
    assert_eq!(logins(&shared), 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_is_read_again_when_it_counts_no_more() {
    let server = Server { static_token: Some("hvs.first"), ..Server::default() };
    let (address, shared) = serve(server).await;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("token");
    std::fs::write(&file, "hvs.first\n").unwrap();
    let vault = vault(&address, VaultAuth::Token(Source::File(file.clone())));
    let resolver = Resolver { vault: Some(vault), ..Resolver::default() };
    let source = Source::of_setting("vault:kv/team/db#password").unwrap();
    assert!(resolver.read(&source).await.is_ok());
    shared.lock().unwrap().static_token = Some("hvs.second");
    let error = resolver.read(&source).await.unwrap_err().to_string();
    assert!(error.contains("vault:kv/team/db#password") && error.contains("403"), "{error}");
    std::fs::write(&file, "hvs.second\n").unwrap();
    assert!(resolver.read(&source).await.is_ok());
    assert!(!format!("{resolver:?}").contains("hvs."));
    // Within a runtime or without: at the start nobody waits for us.
    assert!(resolver.read_at_once(&source).is_ok());
}

/// Against a real server: KV, AppRole, a short lease, revocation.
#[tokio::test]
#[ignore = "needs a server for tests: KAGE_TEST_VAULT_ADDRESS, and its root token in KAGE_TEST_VAULT_TOKEN"]
async fn a_real_server() {
    let [address, root] =
        ["KAGE_TEST_VAULT_ADDRESS", "KAGE_TEST_VAULT_TOKEN"].map(|name| std::env::var(name).expect(name));
    let address: url::Url = address.parse().unwrap();
    let _ = rustls::crypto::ring::default_provider().install_default();
    let http = reqwest::Client::builder().no_proxy().build().unwrap();
    let ask = async |method: reqwest::Method, path: &str, body: Value| {
        let url = address.join(path).unwrap();
        let sent = http.request(method, url).header("X-Vault-Token", &root).json(&body).send().await.unwrap();
        assert!(sent.status().is_success() || path.contains("sys/"), "{path}: {}", sent.status());
        sent.json::<Value>().await.unwrap_or_default()
    };
    let post = reqwest::Method::POST;
    ask(post.clone(), "v1/sys/mounts/kage-kv", json!({ "type": "kv", "options": { "version": "2" } })).await;
    ask(post.clone(), "v1/sys/auth/approle", json!({ "type": "approle" })).await;
    let policy = "path \"kage-kv/data/team/*\" { capabilities = [\"read\"] }";
    ask(reqwest::Method::PUT, "v1/sys/policies/acl/kage", json!({ "policy": policy })).await;
    let role = json!({ "token_policies": ["kage"], "token_ttl": "3s", "token_max_ttl": "6s" });
    ask(post.clone(), "v1/auth/approle/role/kage", role).await;
    ask(post.clone(), "v1/kage-kv/data/team/db", json!({ "data": { "password": "first", "port": 1 } })).await;
    let role_id = ask(reqwest::Method::GET, "v1/auth/approle/role/kage/role-id", Value::Null).await;
    let secret_id = ask(post.clone(), "v1/auth/approle/role/kage/secret-id", json!({})).await;
    let text = |value: &Value| Source::Literal(value.as_str().unwrap().into());
    let auth = VaultAuth::AppRole {
        mount: "approle".to_owned(),
        role_id: text(&role_id["data"]["role_id"]),
        secret_id: text(&secret_id["data"]["secret_id"]),
    };
    let token = VaultAuth::Token(Source::Literal(root.as_str().into()));
    let commands = Commands::default;
    let options = |auth| VaultOptions {
        address: address.clone(),
        namespace: None,
        ca: None,
        auth,
        within: Duration::from_secs(5),
    };
    let by_token = Vault::new(options(token), commands()).unwrap();
    assert_eq!(read(&by_token, "kage-kv/team/db#password").await.unwrap(), "first");
    let by_role = Vault::new(options(auth), commands()).unwrap();
    assert_eq!(read(&by_role, "kage-kv/team/db#password").await.unwrap(), "first");
    assert!(read(&by_role, "kage-kv/team/db#port").await.unwrap_err().contains("no text"));
    assert!(read(&by_role, "kage-kv/other#x").await.unwrap_err().contains("403"));
    assert!(read(&by_token, "kage-kv/team/none#x").await.unwrap_err().contains("404"));
    ask(post, "v1/kage-kv/data/team/db", json!({ "data": { "password": "second" } })).await;
    // Beyond its longest life: renewed, then replaced.
    for _ in 0..9 {
        tokio::time::sleep(Duration::from_secs(1)).await;
        by_role.keep_alive().await.unwrap();
        assert_eq!(read(&by_role, "kage-kv/team/db#password").await.unwrap(), "second");
    }
    ask(reqwest::Method::DELETE, "v1/kage-kv/data/team/db", Value::Null).await;
    assert!(read(&by_role, "kage-kv/team/db#password").await.unwrap_err().contains("404"));
}
