//! Where a request comes from, and its id: in every answer, problem, log line and audit entry of it.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

use axum::extract::connect_info::Connected;
use axum::extract::{ConnectInfo, MatchedPath, Request, State};
use axum::http::{HeaderName, HeaderValue};
use axum::middleware::Next;
use axum::response::Response;
use axum::serve::IncomingStream;
use serde_json::{Value, json};
use tracing::Instrument;
use uuid::Uuid;

use crate::api::in_span::in_span;
use crate::api::listener::{Guarded, Remote};
use crate::api::network;
use crate::api::state::ApiState;
use crate::domain::audit::{self, Asked, Entry};
use crate::metrics::http::method_name;
use crate::metrics::metrics;
use crate::traces;

const HEADER: HeaderName = HeaderName::from_static("x-request-id");
/// Most bytes of an id that a client chose.
const ID_BYTES: usize = 128;

tokio::task_local! {
    static REQUEST_ID: String;
}

/// The other end of the connection.
#[derive(Debug, Clone)]
pub(super) struct Peer(Remote);

impl Connected<IncomingStream<'_, Guarded>> for Peer {
    fn connect_info(stream: IncomingStream<'_, Guarded>) -> Self {
        Self(stream.remote_addr().clone())
    }
}

#[derive(Debug, Clone, Default)]
pub(super) struct Origin {
    /// The client's address, through trusted proxies; `None` where there is no connection, in tests.
    pub address: Option<IpAddr>,
    pub request_id: String,
    /// Whether the connection is our own TLS.
    pub tls: bool,
    /// The subject of the certificate that the connection's other end has shown.
    pub certificate: Option<Arc<str>>,
    /// Method and path of the route, once it is known.
    pub route: Option<Arc<str>>,
    /// What continues this request's trace elsewhere.
    pub traceparent: Option<String>,
}

impl Origin {
    pub fn of(request: &Request) -> Self {
        let known = request.extensions().get::<Self>().cloned();
        known.unwrap_or_else(|| Self { request_id: Uuid::new_v4().to_string(), ..Self::default() })
    }

    /// An audit entry with the request that it came of.
    pub fn asked(&self, mut entry: Entry) -> Asked {
        if let (Value::Object(fields), Some(certificate)) = (&mut entry.details, &self.certificate) {
            fields.insert("certificate".to_owned(), json!(**certificate));
        }
        let route = self.route.as_deref().map(str::to_owned);
        Asked { entry, request: audit::Request { id: self.request_id.clone(), address: self.address, route } }
    }
}

/// The id of the request that this task works on.
pub(super) fn request_id() -> Option<String> {
    REQUEST_ID.try_with(Clone::clone).ok()
}

/// Outermost: everything that is said of a request is said under its id.
pub(super) async fn mark(State(state): State<ApiState>, mut request: Request, next: Next) -> Response {
    let (started, method) = (Instant::now(), method_name(request.method().as_str()));
    let route = request.extensions().get::<MatchedPath>().cloned();
    let request_id = chosen(&request).unwrap_or_else(|| Uuid::new_v4().to_string());
    let peer = request.extensions().get::<ConnectInfo<Peer>>().map(|peer| peer.0.0.clone());
    let edge = &state.config.edge;
    let address = peer.as_ref().map(|peer| network::client(peer.address.ip(), request.headers(), edge));
    let name = route.as_ref().map_or("request", MatchedPath::as_str);
    let span = tracing::error_span!(
        target: traces::TARGET,
        parent: None,
        "request", %request_id, method, address = address.map(tracing::field::display),
        otel.name = name, otel.kind = "server", http.response.status_code = tracing::field::Empty
    );
    let given = request.headers().get(traces::HEADER).and_then(|value| value.to_str().ok());
    traces::continue_from(&span, given);
    let traceparent = traces::traceparent(&span, given);
    let tls = peer.as_ref().is_some_and(|peer| peer.tls);
    let certificate = peer.and_then(|peer| peer.certificate);
    request.extensions_mut().insert(Origin {
        address,
        request_id: request_id.clone(),
        tls,
        certificate,
        route: route.as_ref().map(|route| format!("{method} {}", route.as_str()).into()),
        traceparent,
    });
    let value = HeaderValue::from_str(&request_id).ok();
    let reading = tracing::error_span!("answer", %request_id);
    let answered = REQUEST_ID.scope(request_id, next.run(request)).instrument(span.clone()).await;
    span.record("http.response.status_code", answered.status().as_u16());
    let mut response = answered.map(|body| in_span(body, reading));
    let (route, status) = (route.as_ref().map(MatchedPath::as_str), response.status().as_u16());
    metrics().http.answered(method, route, status, started.elapsed());
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
