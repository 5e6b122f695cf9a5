//! Where a request comes from, and its id: in every answer, problem, log line and audit entry of it.

use std::net::{IpAddr, SocketAddr};

use axum::extract::connect_info::Connected;
use axum::extract::{ConnectInfo, Request};
use axum::http::{HeaderName, HeaderValue};
use axum::middleware::Next;
use axum::response::Response;
use axum::serve::IncomingStream;
use serde_json::{Value, json};
use tracing::Instrument;
use uuid::Uuid;

use crate::api::listener::Guarded;

const HEADER: HeaderName = HeaderName::from_static("x-request-id");
/// Most bytes of an id that a client chose.
const ID_BYTES: usize = 128;

tokio::task_local! {
    static REQUEST_ID: String;
}

/// The other end of the connection.
#[derive(Debug, Clone, Copy)]
pub(super) struct Peer(SocketAddr);

impl Connected<IncomingStream<'_, Guarded>> for Peer {
    fn connect_info(stream: IncomingStream<'_, Guarded>) -> Self {
        Self(*stream.remote_addr())
    }
}

#[derive(Debug, Clone)]
pub(super) struct Origin {
    /// The client's address; `None` where there is no connection, in tests.
    pub address: Option<IpAddr>,
    pub request_id: String,
}

impl Origin {
    pub fn of(request: &Request) -> Self {
        let known = request.extensions().get::<Self>().cloned();
        known.unwrap_or_else(|| Self { address: None, request_id: Uuid::new_v4().to_string() })
    }

    /// What an audit entry says of the request, beside its own details.
    pub fn audited(&self, mut details: Value) -> Value {
        if let Value::Object(fields) = &mut details {
            fields.insert("request_id".to_owned(), json!(self.request_id));
            fields.insert("address".to_owned(), json!(self.address));
        }
        details
    }
}

/// The id of the request that this task works on.
pub(super) fn request_id() -> Option<String> {
    REQUEST_ID.try_with(Clone::clone).ok()
}

/// Outermost: everything that is said of a request is said under its id.
pub(super) async fn mark(mut request: Request, next: Next) -> Response {
    let request_id = chosen(&request).unwrap_or_else(|| Uuid::new_v4().to_string());
    let peer = request.extensions().get::<ConnectInfo<Peer>>().map(|peer| peer.0.0.ip().to_canonical());
    let span = tracing::info_span!("request", request_id = %request_id, method = %request.method());
    request.extensions_mut().insert(Origin { address: peer, request_id: request_id.clone() });
    let value = HeaderValue::from_str(&request_id).ok();
    let mut response = REQUEST_ID.scope(request_id, next.run(request)).instrument(span).await;
    if let Some(value) = value {
        response.headers_mut().insert(HEADER, value);
    }
    response
}

/// The client's own id, if it is a plain token: nothing else may get into logs.
fn chosen(request: &Request) -> Option<String> {
    let text = request.headers().get(HEADER)?.to_str().ok()?;
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    ((1..=ID_BYTES).contains(&text.len()) && text.bytes().all(plain)).then(|| text.to_owned())
}
