//! `GET /metrics`, on an address of its own. It has no key and no TLS: it is for loopback, or a network that only the one that
//! scrapes is in. There is nothing on the page but figures.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;

use crate::lifecycle::Lifecycle;
use crate::metrics::metrics;

/// Connections at once: a few that scrape, and a person.
const CONNECTIONS: usize = 16;
/// For one connection, whatever goes on on it.
const WITHIN: Duration = Duration::from_secs(10);
/// For a head: who says nothing shall not hold off a scrape.
const HEAD_WITHIN: Duration = Duration::from_secs(2);
const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Binds the address and serves until everything else has ended: what a role does while it drains is to be seen.
///
/// # Errors
/// If the address is in use or not ours.
pub async fn start(address: SocketAddr, role: &'static str, lifecycle: &Lifecycle) -> io::Result<()> {
    let listener = TcpListener::bind(address).await?;
    metrics().build.begun(role);
    tracing::info!(address = %listener.local_addr()?, "metrics.listening");
    // Not waited for: it ends with the process.
    tokio::spawn(lifecycle.hard().clone().run_until_cancelled_owned(serve(listener)));
    Ok(())
}

async fn serve(listener: TcpListener) {
    let permits = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let Ok(permit) = Arc::clone(&permits).acquire_owned().await else { return };
        match listener.accept().await {
            Ok((stream, _)) => drop(tokio::spawn(async move {
                let _permit = permit;
                // Who is late or gone gets nothing.
                let _ = tokio::time::timeout(WITHIN, connection(stream)).await;
            })),
            Err(error) => {
                tracing::warn!(%error, "metrics.accept_failed");
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        }
    }
}

async fn connection(stream: TcpStream) -> hyper::Result<()> {
    let service = service_fn(|request| std::future::ready(Ok::<_, Infallible>(answer(&request))));
    let mut http = http1::Builder::new();
    http.keep_alive(false).timer(TokioTimer::new()).header_read_timeout(HEAD_WITHIN).max_buf_size(16 * 1024);
    http.serve_connection(TokioIo::new(stream), service).await
}

fn answer(request: &Request<Incoming>) -> Response<Full<Bytes>> {
    let (status, kind, body) = match (request.method(), request.uri().path()) {
        (&Method::GET | &Method::HEAD, "/metrics") => (StatusCode::OK, CONTENT_TYPE, metrics().page()),
        (_, "/metrics") => (StatusCode::METHOD_NOT_ALLOWED, "text/plain", "GET\n".to_owned()),
        _ => (StatusCode::NOT_FOUND, "text/plain", "/metrics\n".to_owned()),
    };
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, header::HeaderValue::from_static(kind));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, header::HeaderValue::from_static("nosniff"));
    response
}
