//! A world for one test: a database, a folder for sockets, a scripted provider and a gateway in this process, which
//! has the gateway's rights in the database and no others.

#[path = "../../road/support/database.rs"]
#[expect(dead_code, reason = "its other half is for tests of the road")]
pub mod database;
pub mod provider;
pub mod runs;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use kage::config::database::DatabaseConfig;
use kage::config::gateway::GatewayConfig;
use kage::config::settings::Settings;
use kage::db::{self, Zone};
use kage::domain::model::Dialect;
use kage::lifecycle::Lifecycle;
use serde_json::{Value, json};
use sqlx::PgPool;
use uuid::Uuid;

use self::database::Database;
use self::provider::Scripted;

/// How long a test waits for anything. It says that something never comes, not how fast it is.
const PATIENCE: Duration = Duration::from_secs(60);

/// What the scripted provider wants to see, and nobody else may.
pub const CREDENTIAL: &str = "planted-credential-9f2c41d7e8";

pub struct World {
    folder: tempfile::TempDir,
    pub provider: Scripted,
    pub settings: BTreeMap<String, String>,
    database: Option<Database>,
    gateway: Option<Lifecycle>,
}

impl World {
    /// With a gateway that serves every dialect from one scripted provider.
    pub async fn new() -> Self {
        Self::with("", &[]).await
    }

    /// With more in the providers' file, and settings.
    pub async fn with(providers: &str, settings: &[(&str, &str)]) -> Self {
        let mut this = Self::without_gateway(providers, settings).await;
        this.start().await;
        this
    }

    pub async fn without_gateway(providers: &str, settings: &[(&str, &str)]) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        std::fs::create_dir(folder.path().join("model")).expect("a folder");
        std::fs::write(folder.path().join("key"), CREDENTIAL).expect("a file");
        let provider = Scripted::start(Some(CREDENTIAL)).await;
        let name = Uuid::new_v4().simple().to_string();
        let database = Database::create(&name[..12]).await;
        let mut this =
            Self { folder, provider, settings: BTreeMap::new(), database: Some(database), gateway: None };
        db::migrate(this.pool()).await.expect("migrates");
        let file = this.folder.path().join("providers.toml");
        std::fs::write(&file, this.providers() + providers).expect("a file");
        this.settings.insert("KAGE_GATEWAY_PROVIDERS".to_owned(), file.display().to_string());
        this.settings.insert("KAGE_DATA_DIR".to_owned(), this.folder.path().display().to_string());
        this.settings.insert("KAGE_DATABASE_URL".to_owned(), this.database_url());
        for (name, value) in settings {
            this.settings.insert((*name).to_owned(), (*value).to_owned());
        }
        this
    }

    fn providers(&self) -> String {
        let one = |dialect: Dialect| {
            format!(
                r#"
                [[provider]]
                name = "scripted-{dialect}"
                dialect = "{dialect}"
                base_url = "{}"
                credential = "file:{}"
                aliases = {{ short = "m-long" }}
                allow = ["m-*", "gpt-m"]
                server_tool_usd_per_call = {{ web_search = 0.01 }}
                [[provider.model]]
                name = "m-*"
                input_usd_per_mtok = 1.0
                output_usd_per_mtok = 10.0
                cached_input_usd_per_mtok = 0.1
                cache_write_usd_per_mtok = 1.0
                as_of = "2026-01-01"
                "#,
                self.provider.url(),
                self.folder.path().join("key").display()
            )
        };
        Dialect::ALL.map(one).concat()
    }

    pub fn database_url(&self) -> String {
        self.database.as_ref().expect("there until the end").url.clone()
    }

    /// The owner's.
    pub fn pool(&self) -> &PgPool {
        &self.database.as_ref().expect("there until the end").pool
    }

    /// A pool with a zone's rights.
    pub async fn pool_of(&self, zone: Zone) -> PgPool {
        let mut settings = Settings::from_parts(self.settings.clone(), None).expect("settings");
        let mut config = DatabaseConfig::from_settings(&mut settings).expect("settings");
        config.connections = 8;
        db::connect(&config, zone).await.expect("a pool")
    }

    pub fn folder(&self) -> &std::path::Path {
        self.folder.path()
    }

    pub fn socket(&self, run: Uuid) -> PathBuf {
        self.folder.path().join("model").join(run.to_string()).join("model.sock")
    }

    /// Starts a gateway.
    pub async fn start(&mut self) {
        let mut settings = Settings::from_parts(self.settings.clone(), None).expect("settings");
        let config = GatewayConfig::from_settings(&mut settings).expect("settings");
        let lifecycle = Lifecycle::new();
        let pool = self.pool_of(Zone::Gateway).await;
        kage::gateway::start(pool, config, &lifecycle, false).expect("starts");
        self.gateway = Some(lifecycle);
    }

    /// Ends the gateway in order: calls under way are settled.
    pub async fn stop(&mut self) {
        if let Some(gateway) = self.gateway.take() {
            gateway.stop();
            assert!(gateway.wait().await, "the gateway failed");
        }
    }

    /// An HTTP client that comes through a run's socket.
    pub fn client(&self, run: Uuid) -> reqwest::Client {
        let _ = rustls::crypto::ring::default_provider().install_default();
        reqwest::Client::builder().unix_socket(self.socket(run)).no_proxy().build().expect("a client")
    }

    /// Makes a call through a run's socket.
    pub async fn call(&self, run: Uuid, dialect: Dialect, body: &Value) -> Answer {
        let stream = body["stream"].as_bool().unwrap_or(false);
        self.post(run, path(dialect, stream), body).await
    }

    pub async fn post(&self, run: Uuid, path: &str, body: &Value) -> Answer {
        let sent = self.client(run).post(format!("http://gateway{path}")).json(body).send();
        Answer::of(sent.await.expect("an answer")).await
    }

    /// Waits until a query gives true.
    pub async fn until(&self, what: &str, query: &'static str, run: Uuid) {
        eventually(what, async || {
            let row: Option<Option<bool>> =
                sqlx::query_scalar(query).bind(run).fetch_optional(self.pool()).await.expect("a query");
            row.flatten().filter(|yes| *yes)
        })
        .await;
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if let Some(gateway) = self.gateway.take() {
            gateway.stop();
        }
        if let Some(database) = self.database.take() {
            let found = database.destroy();
            assert!(std::thread::panicking() || found.is_empty(), "left over: {found:?}");
        }
    }
}

/// An answer, read to its end.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub headers: http::HeaderMap,
    pub text: String,
    /// Its connection was broken off.
    pub broken: bool,
}

impl Answer {
    async fn of(mut response: reqwest::Response) -> Self {
        let (status, headers) = (response.status().as_u16(), response.headers().clone());
        let mut bytes = Vec::new();
        let broken = loop {
            match response.chunk().await {
                Ok(Some(chunk)) => bytes.extend_from_slice(&chunk),
                Ok(None) => break false,
                Err(_) => break true,
            }
        };
        Self { status, headers, text: String::from_utf8_lossy(&bytes).into_owned(), broken }
    }

    pub fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }
}

/// The path of a call that costs something.
pub const fn path(dialect: Dialect, stream: bool) -> &'static str {
    match (dialect, stream) {
        (Dialect::Anthropic, _) => "/v1/messages",
        (Dialect::Responses, _) => "/v1/responses",
        (Dialect::Chat, _) => "/v1/chat/completions",
        (Dialect::Gemini, true) => "/v1beta/models/m-1:streamGenerateContent?alt=sse",
        (Dialect::Gemini, false) => "/v1beta/models/m-1:generateContent",
        (Dialect::Ollama, _) => "/api/chat",
    }
}

/// A request for an answer of at most 1000 tokens. For Gemini `stream` only tells [`World::call`] the path.
pub fn request(dialect: Dialect, prompt: &str, stream: bool) -> Value {
    let messages = json!([{ "role": "user", "content": prompt }]);
    match dialect {
        Dialect::Anthropic => {
            json!({ "model": "m-1", "max_tokens": 1000, "stream": stream, "messages": messages })
        }
        Dialect::Responses => {
            json!({ "model": "m-1", "max_output_tokens": 1000, "stream": stream, "input": messages })
        }
        Dialect::Chat => {
            json!({ "model": "m-1", "max_tokens": 1000, "stream": stream, "messages": messages })
        }
        Dialect::Gemini => json!({
            "contents": [{ "role": "user", "parts": [{ "text": prompt }] }],
            "generationConfig": { "maxOutputTokens": 1000 }, "stream": stream,
        }),
        Dialect::Ollama => {
            json!({ "model": "m-1", "stream": stream, "messages": messages, "options": { "num_predict": 1000 } })
        }
    }
}

/// A prompt that makes the scripted provider play these turns.
pub fn script(turns: &Value) -> String {
    format!("do as follows\nKAGE-SCRIPT: {turns}")
}

/// A prompt that makes the scripted provider fail in one way.
pub fn fault(fault: &str) -> String {
    script(&json!([{ "text": "one two three four five six seven eight nine ten", "fault": fault }]))
}

/// Waits until a condition gives a value.
pub async fn eventually<T>(what: &str, mut look: impl AsyncFnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(value) = look().await {
            return value;
        }
        assert!(Instant::now() < deadline, "never: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
