//! A provider of the Messages dialect that answers as the model's name says, and remembers what it was sent.

use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex};

use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::{Json, Router};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

use crate::support::TestKage;

/// The credential that nobody but the gateway and the provider may ever see.
pub const CREDENTIAL: &str = "planted-5f1c9a77e0b24c3d";
/// Tokens that each answer says it cost.
pub const INPUT_TOKENS: u64 = 100;
pub const OUTPUT_TOKENS: u64 = 900;

/// What came: headers and body.
type Seen = Arc<Mutex<Vec<(HeaderMap, Value)>>>;

pub struct Provider {
    port: u16,
    seen: Seen,
    server: JoinHandle<()>,
}

impl Drop for Provider {
    fn drop(&mut self) {
        self.server.abort();
    }
}

impl Provider {
    /// Serves on loopback.
    pub async fn start() -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a port");
        let port = listener.local_addr().expect("an address").port();
        let seen = Seen::default();
        let router = Router::new().fallback(answer).with_state(Arc::clone(&seen));
        let server = tokio::spawn(async move {
            axum::serve(listener, router).await.expect("serves");
        });
        Self { port, seen, server }
    }

    /// All requests so far.
    pub fn seen(&self) -> Vec<(HeaderMap, Value)> {
        self.seen.lock().expect("no panic").clone()
    }

    /// Makes it this world's only provider, and registers the CLI images `asker` (a bash script that is given a model
    /// API) and `reader` (prints its prompt's file).
    pub fn of(&self, kage: &mut TestKage) {
        let file = kage.folder.join("providers.toml");
        let table = format!(
            "[[provider]]\nname = \"near\"\ndialect = \"anthropic\"\nbase_url = \"http://127.0.0.1:{}\"\n\
             credential = \"env:NEAR_KEY\"\nallow = [\"good\", \"status-*\", \"slow\"]\n\
             [[provider.model]]\nname = \"*\"\ninput_usd_per_mtok = 1000.0\noutput_usd_per_mtok = 1000.0\n\
             as_of = \"2026-01-01\"\n",
            self.port
        );
        std::fs::write(&file, table).expect("writes");
        kage.set("KAGE_GATEWAY_PROVIDERS", file.to_str().expect("UTF-8"));
        kage.set("NEAR_KEY", CREDENTIAL);
        let common = "[model]\ndialect = \"anthropic\"\ndefault = \"good\"\n[environment]\n\
                      MODEL = \"{{model}}\"\nURL = \"{{gateway}}\"\nKEY = \"{{token}}\"\n";
        kage.image(
            "asker",
            &format!("command = [\"/bin/bash\", \"-s\"]\nprompt = \"stdin\"\nafter_final_secs = 1\n{EVENTS}{common}"),
        );
        kage.image(
            "reader",
            &format!("command = [\"/bin/cat\", \"{{{{prompt_file}}}}\"]\nprompt = \"file\"\n{common}"),
        );
    }
}

/// Lines of JSON that are events already.
const EVENTS: &str = "events = 'fromjson? | select(type == \"object\")'\n";

impl TestKage {
    /// Registers a CLI image: the test's own, with another manifest.
    pub fn image(&self, name: &str, manifest: &str) {
        let folder = self.folder.join(format!("images-{name}"));
        std::fs::create_dir_all(&folder).expect("mkdir");
        std::fs::write(folder.join("cli.toml"), format!("name = \"{name}\"\n{manifest}")).expect("writes");
        let image = std::env::var("KAGE_TEST_IMAGE").expect("./test sets it");
        self.host(&["image", "build", folder.to_str().expect("UTF-8"), "--existing", &image]);
    }
}

async fn answer(
    State(seen): State<Seen>,
    headers: HeaderMap,
    Json(body): Json<Value>,
) -> (StatusCode, Json<Value>) {
    let model = body["model"].as_str().unwrap_or_default().to_owned();
    seen.lock().expect("no panic").push((headers, body));
    if let Some(status) = model.strip_prefix("status-").and_then(|status| status.parse().ok()) {
        let error = json!({ "type": "invalid_request_error", "message": "the provider said no" });
        let status = StatusCode::from_u16(status).expect("a status");
        return (status, Json(json!({ "type": "error", "error": error })));
    }
    let answer = json!({
        "id": "msg_1", "type": "message", "role": "assistant", "model": model,
        "content": [{ "type": "text", "text": "the answer" }],
        "stop_reason": "end_turn", "stop_sequence": null,
        "usage": { "input_tokens": INPUT_TOKENS, "output_tokens": OUTPUT_TOKENS },
    });
    (StatusCode::OK, Json(answer))
}
