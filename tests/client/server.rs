//! A server on loopback whose every answer is scripted.

use std::collections::HashMap;
use std::convert::Infallible;
use std::io;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Request, State};
use axum::http::{HeaderMap, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use futures::{StreamExt, stream};
use kage::client::{Client, Patience};
use kage::config::client::ClientConfig;
use kage::wire::problem::Problem;

use crate::samples::{Sent, connected};

pub const KEY: &str = "kage_secret_0123456789";

/// A request as it came.
#[derive(Debug, Clone)]
pub struct Seen {
    pub method: Method,
    pub path: String,
    pub headers: HeaderMap,
    pub body: Bytes,
}

impl Seen {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).and_then(|value| value.to_str().ok())
    }
}

type Handler = Box<dyn Fn(&Seen, usize) -> Response + Send + Sync>;

struct Shared {
    handler: Handler,
    seen: Mutex<Vec<Seen>>,
    /// How many requests there were for each method and path.
    counts: Mutex<HashMap<(Method, String), usize>>,
}

/// The running server; ends with the test's runtime.
pub struct Server {
    pub url: String,
    shared: Arc<Shared>,
}

impl Server {
    /// `handler` gets each request, and how many came before it for the same method and path.
    pub async fn start(handler: impl Fn(&Seen, usize) -> Response + Send + Sync + 'static) -> Self {
        let shared =
            Arc::new(Shared { handler: Box::new(handler), seen: Mutex::default(), counts: Mutex::default() });
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let router = Router::new().fallback(answer).with_state(Arc::clone(&shared));
        tokio::spawn(async move { axum::serve(listener, router).await });
        Self { url, shared }
    }

    pub fn seen(&self) -> Vec<Seen> {
        self.shared.seen.lock().unwrap().clone()
    }

    pub fn client(&self) -> Client {
        client(&self.url, quick())
    }
}

async fn answer(State(shared): State<Arc<Shared>>, request: Request) -> Result<Response, Infallible> {
    let (parts, body) = request.into_parts();
    let body = axum::body::to_bytes(body, 8 << 20).await.unwrap_or_default();
    let path = parts.uri.to_string();
    let seen = Seen { method: parts.method, path, headers: parts.headers, body };
    let before = {
        let mut counts = shared.counts.lock().unwrap();
        let count = counts.entry((seen.method.clone(), seen.path.clone())).or_default();
        std::mem::replace(count, *count + 1)
    };
    shared.seen.lock().unwrap().push(seen.clone());
    if before > 1000 {
        panic!("the client asks again and again");
    }
    Ok((shared.handler)(&seen, before))
}

pub fn client(url: &str, patience: Patience) -> Client {
    let pairs = [("KAGE_URL", url), ("KAGE_API_KEY", KEY)];
    let lookup = |name: &str| pairs.iter().find(|(known, _)| *known == name).map(|(_, value)| value.into());
    Client::new(&ClientConfig::load(lookup).unwrap(), patience).unwrap()
}

/// Patient enough for a busy machine, and never waits between tries.
pub fn quick() -> Patience {
    Patience {
        first_delay: Duration::ZERO,
        most_delay: Duration::ZERO,
        idle: Duration::from_secs(20),
        ..Patience::default()
    }
}

/// How a stream ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// As if all had been said.
    Clean,
    /// The connection breaks.
    Broken,
    /// Nothing more ever comes.
    Silent,
}

/// Bytes, then the end.
pub fn stream_of(bytes: impl Into<Bytes>, end: End) -> Response {
    let bytes: Bytes = bytes.into();
    let first = stream::iter((!bytes.is_empty()).then_some(Ok::<_, io::Error>(bytes)));
    let body = match end {
        End::Clean => Body::from_stream(first),
        End::Broken => {
            // What was written must be on its way before the connection breaks.
            let last = stream::once(async {
                tokio::task::yield_now().await;
                Err(io::Error::other("cut"))
            });
            Body::from_stream(first.chain(last))
        }
        End::Silent => Body::from_stream(first.chain(stream::pending())),
    };
    ([(header::CONTENT_TYPE, "text/event-stream")], body).into_response()
}

/// The whole stream that a good server would send after `last`.
pub fn stream_text(story: &[Sent], last: Option<u64>) -> String {
    let fresh = story.iter().filter(|sent| last.is_none_or(|last| sent.id.is_none_or(|id| id > last)));
    let mut text = connected().text;
    text.push_str(": keep-alive\n\nevent: heartbeat\ndata: {}\n\n");
    text.extend(fresh.map(|sent| sent.text.as_str()));
    text
}

pub fn last_event_id(seen: &Seen) -> Option<u64> {
    seen.header("last-event-id").map(|id| id.parse().unwrap())
}

pub fn json(status: u16, value: &impl serde::Serialize) -> Response {
    let kind = [(header::CONTENT_TYPE, "application/json")];
    (StatusCode::from_u16(status).unwrap(), kind, serde_json::to_string(value).unwrap()).into_response()
}

pub fn problem(status: u16, detail: &str) -> Response {
    let body = Problem {
        kind: "about:blank".to_owned(),
        title: "No".to_owned(),
        status,
        detail: detail.to_owned(),
        error: "No".to_owned(),
        instance: None,
        request_id: None,
    };
    let mut response = json(status, &body);
    response.headers_mut().insert(header::CONTENT_TYPE, "application/problem+json".parse().unwrap());
    response
}
