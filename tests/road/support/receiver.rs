//! Who is told by webhooks: answers as it is told to, remembers what came, and checks signatures by itself.

use std::collections::VecDeque;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{HeaderMap, Uri};
use axum::response::Response;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, KeyInit as _, Mac as _};
use serde_json::Value;
use sha2::Sha256;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

#[derive(Debug, Clone)]
pub enum Reply {
    Status(u16),
    /// No answer for as long as the world lives.
    Silence,
    /// A redirect to this URL.
    Elsewhere(String),
    /// A good status, and a body that never ends.
    Endless,
}

/// One request.
#[derive(Debug, Clone)]
pub struct Told {
    pub path: String,
    pub headers: HeaderMap,
    pub body: Bytes,
}

#[derive(Default)]
struct Script {
    told: Vec<Told>,
    replies: VecDeque<Reply>,
}

pub struct Receiver {
    pub address: SocketAddr,
    script: Arc<Mutex<Script>>,
    server: JoinHandle<()>,
}

impl Drop for Receiver {
    fn drop(&mut self) {
        self.server.abort();
    }
}

impl Receiver {
    /// Answers so, and then always with 204.
    pub async fn start(replies: impl IntoIterator<Item = Reply>) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let script = Script { told: Vec::new(), replies: replies.into_iter().collect() };
        let script = Arc::new(Mutex::new(script));
        let router = Router::new().fallback(answer).with_state(Arc::clone(&script));
        let server = tokio::spawn(async move { axum::serve(listener, router).await.expect("serves") });
        Self { address, script, server }
    }

    pub fn url(&self) -> String {
        format!("http://{}/hook", self.address)
    }

    pub fn told(&self) -> Vec<Told> {
        self.script.lock().expect("no panic").told.clone()
    }
}

impl Told {
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().expect("ASCII"))
    }

    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).expect("JSON")
    }

    /// How many of its signatures a secret makes: Standard Webhooks, with HMAC of another library.
    pub fn signed_by(&self, secret: &str) -> usize {
        let key = STANDARD.decode(secret.strip_prefix("whsec_").expect("a secret")).expect("Base64");
        let mut mac = Hmac::<Sha256>::new_from_slice(&key).expect("any length");
        mac.update(format!("{}.{}.", self.header("webhook-id"), self.header("webhook-timestamp")).as_bytes());
        mac.update(&self.body);
        let good = format!("v1,{}", STANDARD.encode(mac.finalize().into_bytes()));
        self.header("webhook-signature").split(' ').filter(|signature| *signature == good).count()
    }
}

async fn answer(
    State(script): State<Arc<Mutex<Script>>>,
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let reply = {
        let mut script = script.lock().expect("no panic");
        script.told.push(Told { path: uri.path().to_owned(), headers, body });
        script.replies.pop_front().unwrap_or(Reply::Status(204))
    };
    let status = |status: u16| Response::builder().status(status);
    match reply {
        Reply::Status(code) => status(code).body(Body::from("\u{1b}[2Jthanks\n")),
        Reply::Elsewhere(url) => status(307).header("location", url).body(Body::empty()),
        Reply::Silence => {
            tokio::time::sleep(Duration::from_secs(3600)).await;
            status(200).body(Body::empty())
        }
        Reply::Endless => {
            let piece = async |()| {
                tokio::time::sleep(Duration::from_millis(10)).await;
                Some((Ok::<_, std::io::Error>(Bytes::from_static(b"more ")), ()))
            };
            status(200).body(Body::from_stream(futures::stream::unfold((), piece)))
        }
    }
    .expect("an answer")
}
