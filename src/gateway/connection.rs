//! One connection, one request: the head is vetted before an HTTP library reads it, and what comes after the
//! answer is never read.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

use crate::dialect::answer::{self, Refusal, RefusalKind};
use crate::domain::model::Dialect;
use crate::gateway::environment::Environment;
use crate::gateway::head::{self, HeadError};
use crate::gateway::served::ServedRun;
use crate::gateway::{call, notices, refused};

/// What a call may take besides its body's time and its own: to be checked, booked and settled.
const SLACK: Duration = Duration::from_secs(10);

/// Serves the one request of a connection, until its answer has ended or the run has.
pub(super) async fn serve(environment: Arc<Environment>, run: Arc<ServedRun>, stream: UnixStream) {
    let (mut reader, mut writer) = stream.into_split();
    let head = tokio::select! {
        () = run.end.cancelled() => return,
        head = tokio::time::timeout(environment.config.head, read_head(&mut reader)) => head,
    };
    // Late, gone, or nothing was asked: there is nobody to answer.
    let Ok(Ok(Some((read, end)))) = head else { return };
    let vetted = if end == 0 {
        Err(HeadError::TooLarge)
    } else {
        head::vet(&read[..end], environment.config.body_bytes)
    };
    if let Err(error) = vetted {
        let refusal = Refusal::new(kind(error), error.to_string());
        notices::refused(&environment, &run, &refusal);
        if error == HeadError::BodyTooLarge {
            // Nothing but a call has such a body.
            refused::book(&environment, &run, &refusal, error.status()).await;
        }
        let said = bytes_of(run.dialect, &refusal, error.status());
        let answer = async {
            writer.write_all(&said).await?;
            writer.shutdown().await?;
            // What was sent meanwhile is read, in part: else it could never read the answer.
            let mut rest = reader.take(1 << 20);
            tokio::io::copy(&mut rest, &mut tokio::io::sink()).await
        };
        let _ = tokio::time::timeout(environment.config.head, answer).await;
        return;
    }
    let io = TokioIo::new(tokio::io::join(io::Cursor::new(read).chain(reader), writer));
    let service = service_fn(|request| {
        let answered = call::answer(Arc::clone(&environment), Arc::clone(&run), request);
        async { Ok::<_, std::convert::Infallible>(answered.await) }
    });
    let mut http = http1::Builder::new();
    http.keep_alive(false).timer(TokioTimer::new()).max_buf_size(64 * 1024);
    let connection = http.serve_connection(io, service);
    tokio::pin!(connection);
    let config = &environment.config;
    let call = run.provider.call_secs.map_or(config.call, Duration::from_secs);
    tokio::select! {
        // How it ended is in the books.
        ended = &mut connection => { ended.ok(); }
        () = async {
            run.end.cancelled().await;
            // Calls under way see the same end and say so to the CLI; who does not read is cut off.
            tokio::time::sleep(Duration::from_secs(1)).await;
        } => {}
        // A call's own time is looked at only while the CLI reads: who does not would hold the provider's
        // connection, and what is held of the budget, for ever.
        () = tokio::time::sleep(config.body + call + SLACK) => {
            tracing::warn!(run = %run.run, "gateway.connection_cut");
        }
    }
}

/// What was read, and where the head ends in it; 0: it is too long. `None`: the connection ended before.
async fn read_head(reader: &mut tokio::net::unix::OwnedReadHalf) -> io::Result<Option<(Bytes, usize)>> {
    let mut read = BytesMut::with_capacity(4096);
    loop {
        // Only what is new, and an end that began before it: a head may come byte by byte.
        let seen = read.len().saturating_sub(3);
        if reader.read_buf(&mut read).await? == 0 {
            return Ok(None);
        }
        match head::end(&read[seen..]) {
            Some(end) => return Ok(Some((read.freeze(), seen + end))),
            None if read.len() > head::MOST_BYTES => return Ok(Some((read.freeze(), 0))),
            None => {}
        }
    }
}

const fn kind(error: HeadError) -> RefusalKind {
    match error {
        HeadError::BodyTooLarge | HeadError::TooLarge => RefusalKind::TooLarge,
        _ => RefusalKind::BadRequest,
    }
}

/// An answer to a head that no HTTP library may see.
fn bytes_of(dialect: Dialect, refusal: &Refusal, status: u16) -> Vec<u8> {
    let body = answer::answer(dialect, refusal).body;
    let reason = http::StatusCode::from_u16(status).ok().and_then(|status| status.canonical_reason());
    let mut bytes = format!(
        "HTTP/1.1 {status} {}\r\ncontent-type: application/json\r\ncontent-length: {}\r\nx-should-retry: false\r\nconnection: close\r\n\r\n",
        reason.unwrap_or("Refused"),
        body.len()
    )
    .into_bytes();
    bytes.extend_from_slice(&body);
    bytes
}
