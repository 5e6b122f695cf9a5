//! The scripted model server as the only provider of every dialect.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;

use kage_model_server::recorder::Recorder;
use kage_model_server::scenario;
use kage_model_server::server::{Listen, Options, Server};
use tokio::task::JoinHandle;

use crate::support::TestKage;

/// What the gateway authenticates with. Nobody else may ever see it.
pub const CREDENTIAL: &str = "planted-c1d7e0a94b5f4e0e8a6b";

/// The CLIs with the dialects that they speak.
pub const AGENTS: [(&str, &str); 7] = [
    ("claude-code", "anthropic"),
    ("codex", "responses"),
    ("gemini", "gemini"),
    ("qwen-code", "chat"),
    ("opencode", "chat"),
    ("aider", "chat"),
    ("ollama", "ollama"),
];

pub struct Models {
    pub recorder: Arc<Recorder>,
    server: JoinHandle<()>,
}

impl Drop for Models {
    fn drop(&mut self) {
        self.server.abort();
    }
}

/// A world whose CLIs have models, and the server that plays them.
pub async fn world(agents: &[&str]) -> (TestKage, Models) {
    world_with(agents, &[]).await
}

/// As [`world`], with settings.
pub async fn world_with(agents: &[&str], settings: &[(&str, &str)]) -> (TestKage, Models) {
    let script = scenario::find("write-hello").expect("it is built in");
    let options = Options { require_key: Some(CREDENTIAL.to_owned()), ..Options::new(script) };
    let listen = Listen::Tcp(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)));
    let server = Server::bind(listen, options).await.expect("a port");
    let address = server.address().expect("TCP");
    let recorder = server.recorder();
    let server = tokio::spawn(async move {
        server.serve(std::future::pending()).await.expect("serves");
    });
    let mut kage = TestKage::new().await;
    let file = kage.folder.join("providers.toml");
    let mut table = String::new();
    for dialect in ["anthropic", "responses", "chat", "gemini", "ollama"] {
        table += &format!(
            "[[provider]]\nname = \"{dialect}\"\ndialect = \"{dialect}\"\nbase_url = \"http://{address}\"\n\
             credential = \"env:PLANTED\"\nallow = [\"*\"]\n[[provider.model]]\nname = \"*\"\n\
             input_usd_per_mtok = 10.0\noutput_usd_per_mtok = 10.0\nas_of = \"2026-11-01\"\n"
        );
    }
    std::fs::write(&file, table).expect("writes");
    kage.set("KAGE_GATEWAY_PROVIDERS", file.to_str().expect("UTF-8"));
    kage.set("PLANTED", CREDENTIAL);
    // The road's scripts make do with less than an agent does.
    kage.set("KAGE_LIMIT_MEMORY_BYTES", "2147483648");
    for (name, value) in settings {
        kage.set(name, value);
    }
    for agent in agents {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("images").join(agent);
        let image = format!("kage-cli-{agent}:dev");
        kage.host(&["image", "build", folder.to_str().expect("UTF-8"), "--existing", &image]);
    }
    kage.start("serve").await;
    kage.demo().await;
    (kage, Models { recorder, server })
}
